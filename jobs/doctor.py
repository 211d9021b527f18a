"""What stands in the way when voxmill does not run: this machine looked over, and places tried.

Each check is a function of what was found and says what to do. No request leaves the machine unless a place is given.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import StoreUnavailableError, UnsafeStoreError, VoxmillError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Store, is_remote, normal_uri, open_store, probe_put_if_absent
from pipeline.uris import check_uri

PACKAGES = ("voxmill", "torch", "ray", "numpy", "pyarrow", "pydantic", "soundfile", "s3fs", "webdataset")
MEMORY_BYTES_MIN = 4 << 30
SHM_BYTES_MIN = 256 << 20
PLACE_RETRY = RetryConfig(attempts_max=2, total_s_max=20.0)
PLACE_STORAGE = StorageConfig(connect_timeout_s=5.0, read_timeout_s=10.0)
"""Less patience than a run has: somebody waits for the answer."""


class Status(StrEnum):
    """`warn` is slower or riskier than need be; `fail` stops a run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was found, and what to do unless it is ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def run_doctor(uris: Sequence[str], *, as_json: bool) -> int:
    """Print all checks to stdout; returns 1 when one failed, else 0."""
    checks = doctor(uris)
    told = json.dumps([asdict(check) for check in checks], indent=1) if as_json else "\n".join(lines(checks))
    sys.stdout.write(told + "\n")
    return int(any(check.status is Status.FAIL for check in checks))


def doctor(uris: Sequence[str] = ()) -> list[Check]:
    """Check this machine, then each place (an input's or output's folder), reading and writing one small object."""
    checks = [*machine_checks(os.environ)]
    for uri in uris:
        checks += place_checks(uri)
    return checks


def lines(checks: Sequence[Check]) -> list[str]:
    """The checks for people: one line each, and one for what to do."""
    width = max(len(check.name) for check in checks)
    told = []
    for check in checks:
        told.append(f"{check.status:4}  {check.name:{width}}  {check.found}")
        if check.remedy:
            told.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    return told


def machine_checks(environ: Mapping[str, str]) -> Iterator[Check]:
    """All that can be told without asking anybody else."""
    yield Check("python", Status.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield packages_check({name: _version(name) for name in PACKAGES})
    cgroup = Path("/sys/fs/cgroup")
    yield Check("cpus", Status.OK, cpus_found(len(os.sched_getaffinity(0)), _text(cgroup / "cpu.max")))
    yield memory_check(_text(Path("/proc/meminfo")), _text(cgroup / "memory.max"))
    yield shm_check(Path("/dev/shm"))  # noqa: S108 - looked at, not written
    yield _torch_check(driver=Path("/proc/driver/nvidia/version").exists())
    yield compiler_check(environ.get("CXX", "g++"), Path(sysconfig.get_path("include"), "Python.h"))
    yield _audio_check()
    yield media_check(_version("av"))
    yield hub_check(environ)
    yield ray_check(environ)


def packages_check(versions: Mapping[str, str | None]) -> Check:
    """Installed versions; None for a package that is not."""
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        remedy = "install them: make install in a checkout, or pip install voxmill, into the Python that runs this"
        return Check("packages", Status.FAIL, f"missing: {', '.join(missing)}", remedy)
    return Check("packages", Status.OK, ", ".join(f"{name} {found}" for name, found in versions.items()))


def cpus_found(num_cpus: int, cpu_max: str | None) -> str:
    """CPUs that this process may use; `cpu_max` is cgroup v2's file: `<quota us or max> <period us>`."""
    if cpu_max is None or cpu_max.startswith("max"):
        return f"{num_cpus}"
    quota, period = map(int, cpu_max.split())
    return f"{num_cpus}, held to the time of {quota / period:g} by the container"


def memory_check(meminfo: str | None, limit: str | None) -> Check:
    """Memory to be had: /proc/meminfo's MemAvailable, or cgroup v2's `memory.max` (bytes, or max) where it is less.

    What the cgroup uses already is left out of account: most of it is often page cache, which it gives back.
    """
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo or "")
    sizes = [int(available.group(1)) << 10] if available else []
    sizes += [int(limit)] if limit is not None and limit.strip() != "max" else []
    if not sizes:
        return Check("memory", Status.WARN, "not told by this system", "see to 4 GiB and more by other means")
    found = f"{min(sizes) / (1 << 30):.1f} GiB to be had"
    if min(sizes) >= MEMORY_BYTES_MIN:
        return Check("memory", Status.OK, found)
    remedy = "Ray takes 1 GiB, and each replica its codec, a batch and decoders: run fewer --replicas, or free some"
    return Check("memory", Status.WARN, found, remedy)


def shm_check(folder: Path) -> Check:
    """Size of the shared memory that Ray's object store lies in."""
    if not folder.is_dir():
        return Check("shared memory", Status.WARN, f"no {folder}", "mount a tmpfs there; Ray uses a disk instead")
    num_bytes = shutil.disk_usage(folder).total
    found = f"{num_bytes / (1 << 20):.0f} MiB in {folder}"
    if num_bytes >= SHM_BYTES_MIN:
        return Check("shared memory", Status.OK, found)
    return Check("shared memory", Status.WARN, found, "start the container with --shm-size=1g; Ray uses a disk instead")


def _torch_check(*, driver: bool) -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is not there
        return Check("torch", Status.FAIL, f"cannot be imported: {error}", "install it again, for this Python and CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return cuda_check(torch.version.cuda, names, driver=driver)


def cuda_check(cuda: str | None, device_names: Sequence[str], *, driver: bool) -> Check:
    """CUDA as torch sees it: the version it was built for (None: for CPUs alone), devices, and NVIDIA's driver."""
    if device_names:
        return Check("cuda", Status.OK, f"{len(device_names)} device(s), {device_names[0]}, CUDA {cuda}")
    if not driver:
        return Check("cuda", Status.OK, "no driver here: --device auto means cpu")
    if cuda is None:
        remedy = "install the same version of torch built for CUDA (pytorch.org tells how)"
        return Check("cuda", Status.WARN, "a driver, and a torch built for CPUs alone", remedy)
    remedy = "see what nvidia-smi says; is the driver older than that CUDA, or CUDA_VISIBLE_DEVICES empty?"
    return Check("cuda", Status.WARN, f"a driver and a torch for CUDA {cuda}, and no device", remedy)


def compiler_check(compiler: str, header: Path) -> Check:
    """What torch.compile needs on CPUs: a C++ compiler (`CXX`, or g++) and Python's headers."""
    missing = [f"compiler {compiler!r}"] if shutil.which(compiler) is None else []
    missing += [] if header.is_file() else ["Python.h"]
    if not missing:
        return Check("c++ compiler", Status.OK, compiler)
    remedy = "install g++ and python3-dev, or set CXX; without them the codec runs uncompiled: slower, same tokens"
    return Check("c++ compiler", Status.WARN, f"no {' and no '.join(missing)}", remedy)


def _audio_check() -> Check:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: no libsndfile
        return Check("audio", Status.FAIL, f"soundfile cannot be imported: {error}", "install soundfile or libsndfile")
    formats = {*soundfile.available_formats(), *soundfile.available_subtypes("OGG")}
    return audio_check(soundfile.__libsndfile_version__, formats)


def audio_check(libsndfile: str, formats: Collection[str]) -> Check:
    """Formats that libsndfile reads, by its own names."""
    missing = [name for name in ("WAV", "FLAC", "VORBIS", "OPUS", "MP3") if name not in formats]
    if not missing:
        return Check("audio", Status.OK, f"libsndfile {libsndfile}: WAV, FLAC, Ogg Vorbis and Opus, MP3")
    status = Status.FAIL if {"WAV", "FLAC"} & set(missing) else Status.WARN
    remedy = "install libsndfile 1.1 or newer, or the soundfile wheel that has it; such clips would be rejected"
    return Check("audio", status, f"libsndfile {libsndfile} does not read {', '.join(missing)}", remedy)


def media_check(pyav: str | None) -> Check:
    """PyAV, which not all need."""
    if pyav is not None:
        return Check("media", Status.OK, f"PyAV {pyav}: M4A, AAC, WebM, Matroska")
    return Check("media", Status.OK, "no PyAV: M4A, AAC, WebM and Matroska are rejects; pip install 'voxmill[media]'")


def hub_check(environ: Mapping[str, str]) -> Check:
    """The Hugging Face cache that `--codec longcat` and `hf://` read and fill, by the hub client's own rules.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    home = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    cache = Path(environ.get("HF_HUB_CACHE") or Path(environ.get("HF_HOME") or home, "hub")).expanduser()
    num_models = len(list(cache.glob("models--*")))
    offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found = f"{num_models} model(s) cached in {cache}, {'offline' if offline else 'online'}"
    if offline and not num_models:
        return Check("hub", Status.WARN, found, "unset HF_HUB_OFFLINE, copy a cache there, or give --codec a folder")
    if not offline and not _can_make(cache):
        return Check("hub", Status.WARN, f"{found}, not writable", "set HF_HOME to a folder that this user can write")
    return Check("hub", Status.OK, found)


def ray_check(environ: Mapping[str, str]) -> Check:
    """Which Ray a run would use."""
    address = environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        return Check("ray", Status.OK, "RAY_ADDRESS is not set: a run starts a Ray of its own")
    found = f"a run joins RAY_ADDRESS={address}"
    if environ.get("RAY_AUTH_MODE") == "token":
        return Check("ray", Status.OK, f"{found}, with a token")
    remedy = "start the cluster with RAY_AUTH_MODE=token and set it here: who reaches an open port can run programs"
    return Check("ray", Status.WARN, f"{found}, without RAY_AUTH_MODE=token", remedy)


def place_checks(uri: str) -> list[Check]:
    """Whether a place can be read, and written in the way that commits need: one probe object is put and deleted."""
    try:
        check_uri(uri)
        place = place_of(uri)
        store = open_store(place, PLACE_STORAGE, PLACE_RETRY)
    except (ValueError, VoxmillError) as error:
        return [Check("place", Status.FAIL, str(error), "give a folder, file:// or s3:// URI")]
    return [_read_check(store, place), _write_check(store, place)]


def place_of(uri: str) -> str:
    """The folder of a URI as the stores write it: up to the first glob or brace, without a shard's name.

    Raises `ConfigError` when it is in no kind of store known here.
    """
    plain = re.split(r"[*?\[{]", uri, maxsplit=1)[0]
    names_one_object = plain != uri or plain.endswith(".tar")
    return normal_uri(plain.rpartition("/")[0] or "." if names_one_object else plain).rstrip("/") or "/"


def _read_check(store: Store, place: str) -> Check:
    try:
        first = next(iter(store.list(place)), None)
    except VoxmillError as error:
        return Check(f"read {place}", Status.FAIL, str(error), _remedy(error))
    return Check(f"read {place}", Status.OK, f"{first.uri}, ..." if first else "nothing there yet")


def _write_check(store: Store, place: str) -> Check:
    name = f"write {place}"
    if not is_remote(place) and not Path(place).exists():
        # A probe would leave the folder behind, which may be a misspelt name.
        if _can_make(Path(place)):
            return Check(name, Status.OK, "not there yet, and can be made")
        return Check(name, Status.WARN, "not there, and cannot be made", "fine for an input; give this user the right")
    try:
        probe_put_if_absent(store, place)
    except UnsafeStoreError as error:
        return Check(name, Status.WARN, str(error), "fine for an input; an output is refused without the flag")
    except VoxmillError as error:
        return Check(name, Status.WARN, str(error), _remedy(error) or "fine for an input; an output must be writable")
    return Check(name, Status.OK, "written once, refused twice, deleted")


def _remedy(error: VoxmillError) -> str:
    # Refusals say themselves what to do; a store that does not answer cannot know.
    unavailable = isinstance(error, StoreUnavailableError)
    return "check AWS_ENDPOINT_URL, the network and the proxy" if unavailable else ""


def _can_make(path: Path) -> bool:
    """Whether this user could make or write a folder: by the rights on the nearest one that is there."""
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
