from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import doctor as doctor_module
from jobs.doctor import (
    Check,
    Status,
    audio_check,
    compiler_check,
    cpus_found,
    cuda_check,
    hub_check,
    lines,
    machine_checks,
    media_check,
    memory_check,
    packages_check,
    place_checks,
    place_of,
    ray_check,
    run_doctor,
    shm_check,
)
from pipeline.errors import ConfigError, StoreDeniedError, StoreUnavailableError
from pipeline.types import ObjectInfo


def statuses(checks: list[Check]) -> list[tuple[str, Status]]:
    return [(check.name.split()[0], check.status) for check in checks]


def test_this_machine_is_looked_over_and_what_is_not_ok_says_what_to_do() -> None:
    checks = {check.name: check for check in machine_checks({})}
    assert list(checks)[:4] == ["python", "packages", "cpus", "memory"]
    assert checks["audio"].status is Status.OK
    assert all(check.found for check in checks.values())
    assert all(check.remedy for check in checks.values() if check.status is not Status.OK)


def test_missing_packages_are_named() -> None:
    assert packages_check({"torch": "2.13.0", "ray": "2.60.0"}) == Check(
        "packages", Status.OK, "torch 2.13.0, ray 2.60.0"
    )
    check = packages_check({"torch": None, "ray": "2.60.0", "soundfile": None})
    assert (check.status, check.found) == (Status.FAIL, "missing: torch, soundfile")


@pytest.mark.parametrize(
    ("cpu_max", "found"),
    [
        (None, "8"),
        ("max 100000\n", "8"),
        ("250000 100000\n", "8, held to the time of 2.5 by the container"),
    ],
)
def test_cpus_count_the_containers_quota(cpu_max: str | None, found: str) -> None:
    assert cpus_found(8, cpu_max) == found


@pytest.mark.parametrize(
    ("meminfo", "limit", "status", "found"),
    [
        ("MemTotal: 99 kB\nMemAvailable:   8388608 kB\n", None, Status.OK, "8.0 GiB to be had"),
        ("MemAvailable: 8388608 kB", "max\n", Status.OK, "8.0 GiB to be had"),
        ("MemAvailable: 8388608 kB", "2147483648\n", Status.WARN, "2.0 GiB to be had"),
        ("MemAvailable: 1048576 kB", "8589934592\n", Status.WARN, "1.0 GiB to be had"),
        (None, None, Status.WARN, "not told by this system"),
    ],
)
def test_memory_is_the_less_of_what_is_free_and_what_is_allowed(
    meminfo: str | None, limit: str | None, status: Status, found: str
) -> None:
    check = memory_check(meminfo, limit)
    assert (check.status, check.found) == (status, found)


def test_small_or_missing_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shm_check(tmp_path).status is Status.OK
    monkeypatch.setattr(doctor_module, "SHM_BYTES_MIN", 1 << 62)
    assert "--shm-size" in shm_check(tmp_path).remedy
    assert shm_check(tmp_path / "none").status is Status.WARN


@pytest.mark.parametrize(
    ("cuda", "devices", "driver", "status", "found"),
    [
        ("13.0", ["NVIDIA H100", "NVIDIA H100"], True, Status.OK, "2 device(s), NVIDIA H100, CUDA 13.0"),
        ("13.0", [], False, Status.OK, "--device auto means cpu"),
        (None, [], False, Status.OK, "--device auto means cpu"),
        (None, [], True, Status.WARN, "a torch built for CPUs alone"),
        ("13.0", [], True, Status.WARN, "a driver and a torch for CUDA 13.0, and no device"),
    ],
)
def test_a_driver_that_torch_cannot_use_is_a_warning(
    cuda: str | None, devices: list[str], driver: bool, status: Status, found: str
) -> None:
    check = cuda_check(cuda, devices, driver=driver)
    assert check.status is status
    assert found in check.found


def test_torch_compile_needs_a_compiler_and_pythons_headers(tmp_path: Path) -> None:
    header = tmp_path / "Python.h"
    assert compiler_check("no-such-compiler", header).found == "no compiler 'no-such-compiler' and no Python.h"
    header.touch()
    assert compiler_check("sh", header) == Check("c++ compiler", Status.OK, "sh")


def test_audio_formats_that_are_not_read_are_named() -> None:
    everything = {"WAV", "FLAC", "OGG", "VORBIS", "OPUS", "MP3"}
    assert media_check("18.1.0").found == "PyAV 18.1.0: M4A, AAC, WebM, Matroska"
    assert "pip install 'voxmill[media]'" in media_check(None).found
    assert audio_check("1.2.2", everything).status is Status.OK
    assert audio_check("1.0.28", everything - {"MP3", "OPUS"}).found == "libsndfile 1.0.28 does not read OPUS, MP3"
    assert audio_check("1.0.28", everything - {"MP3", "OPUS"}).status is Status.WARN
    assert audio_check("1.2.2", everything - {"FLAC"}).status is Status.FAIL


def test_the_hub_cache_is_where_the_client_looks(tmp_path: Path) -> None:
    (tmp_path / "home" / "hub" / "models--owner--name").mkdir(parents=True)
    for environ in (
        {"HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HOME": "/nowhere"},
        {"HF_HOME": str(tmp_path / "home")},
    ):
        check = hub_check(environ)
        assert (check.status, check.found) == (Status.OK, f"1 model(s) cached in {tmp_path}/home/hub, online")
    assert f"{tmp_path}/huggingface/hub" in hub_check({"XDG_CACHE_HOME": str(tmp_path)}).found


def test_offline_without_a_cache_is_a_warning(tmp_path: Path) -> None:
    check = hub_check({"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_secret"})
    assert check.status is Status.WARN
    assert "unset HF_HUB_OFFLINE" in check.remedy
    assert "hf_secret" not in check.found


def test_a_cache_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o777)
    assert "not writable" in hub_check({"HF_HOME": str(tmp_path / "file" / "below")}).found


def test_a_cluster_without_a_token_is_a_warning() -> None:
    assert ray_check({}).found == "RAY_ADDRESS is not set: a run starts a Ray of its own"
    assert ray_check({"RAY_ADDRESS": "10.0.0.1:6379"}).status is Status.WARN
    check = ray_check({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token"})
    assert (check.status, check.found) == (Status.OK, "a run joins RAY_ADDRESS=10.0.0.1:6379, with a token")


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/in", "s3://bucket/in"),
        ("s3://bucket/in/", "s3://bucket/in"),
        ("s3://bucket/in/train-{000..127}.tar", "s3://bucket/in"),
        ("s3://bucket/in/*/a.tar", "s3://bucket/in"),
        ("s3://bucket/in/one.tar", "s3://bucket/in"),
        ("s3://bucket", "s3://bucket"),
        ("file:///data/in/?.tar", "/data/in"),
        ("/data", "/data"),
        ("/", "/"),
    ],
)
def test_the_place_of_an_input_is_its_folder(uri: str, place: str) -> None:
    assert place_of(uri) == place


def test_a_relative_shard_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of("one.tar") == str(tmp_path)
    with pytest.raises(ConfigError, match="is no store"):
        place_of("hf://owner/name")


def test_a_place_is_read_written_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "one.tar").touch()
    read, write = place_checks(str(tmp_path))
    assert read == Check(f"read {tmp_path}", Status.OK, f"{tmp_path}/one.tar, ...")
    assert write == Check(f"write {tmp_path}", Status.OK, "written once, refused twice, deleted")
    assert [path.name for path in tmp_path.iterdir()] == ["one.tar"]


def test_a_place_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    read, write = place_checks(str(tmp_path / "misspelt" / "out"))
    assert (read.found, write.found) == ("nothing there yet", "not there yet, and can be made")
    assert not (tmp_path / "misspelt").exists()
    (tmp_path / "file").touch()
    assert statuses(place_checks(str(tmp_path / "file" / "out"))) == [("read", Status.OK), ("write", Status.WARN)]


def test_a_bucket_is_reached(bucket: str) -> None:
    assert statuses(place_checks(f"{bucket}/in/{{0..9}}.tar")) == [("read", Status.OK), ("write", Status.OK)]
    missing = place_checks("s3://no-such-bucket-anywhere/in")
    assert statuses(missing) == [("read", Status.FAIL), ("write", Status.WARN)]


class FailingStore:
    """A store of which every request ends in the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise self.error

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        raise self.error


class OverwritingStore(FailingStore):
    """A store that ignores the condition of a put, and is empty."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        return True

    def delete(self, uri: str) -> None:
        pass


@pytest.mark.parametrize(
    ("store", "read_status", "remedies"),
    [
        (FailingStore(StoreDeniedError("403")), Status.FAIL, ("", "fine for an input; an output must be writable")),
        (FailingStore(StoreUnavailableError("503")), Status.FAIL, ("check AWS_ENDPOINT_URL, the network",) * 2),
        (OverwritingStore(Exception()), Status.OK, ("", "fine for an input; an output is refused without the flag")),
    ],
)
def test_what_a_store_refuses_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, store: FailingStore, read_status: Status, remedies: tuple[str, str]
) -> None:
    monkeypatch.setattr(doctor_module, "open_store", lambda *_: store)
    checks = place_checks("s3://bucket/out")
    assert statuses(checks) == [("read", read_status), ("write", Status.WARN)]
    for check, remedy in zip(checks, remedies, strict=True):
        assert check.remedy.startswith(remedy)
        assert bool(check.remedy) == bool(remedy)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    (check,) = place_checks("s3://key:hidden@bucket/in")
    assert check.status is Status.FAIL
    assert "hidden" not in check.found + check.remedy


def test_lines_put_the_remedy_below_what_was_found() -> None:
    checks = [Check("one", Status.OK, "fine"), Check("longer", Status.FAIL, "broken", "mend it")]
    assert lines(checks) == ["ok    one     fine", "fail  longer  broken", "              -> mend it"]


@pytest.mark.parametrize(("worst", "exit_code"), [(Status.OK, 0), (Status.WARN, 0), (Status.FAIL, 1)])
def test_only_a_failed_check_ends_in_an_error(
    worst: Status, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("one", Status.OK, "fine"), Check("two", worst, "found", "do")]
    monkeypatch.setattr(doctor_module, "machine_checks", lambda environ: iter(checks))
    assert run_doctor([], as_json=True) == exit_code
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "two",
        "status": worst.value,
        "found": "found",
        "remedy": "do",
    }
    assert run_doctor([], as_json=False) == exit_code
    assert capsys.readouterr().out.splitlines() == lines(checks)
