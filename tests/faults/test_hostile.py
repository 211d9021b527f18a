"""Inputs that want to run, to write elsewhere or to be fetched: nothing runs, nothing leaves the output place."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.clusters import ROOT
from tests.corpus import CLIPS, GOLDEN, tar_of
from tests.faults.matrix import row
from tests.tars import END, block, padded

AUDIO = [clip.read_bytes() for clip in CLIPS]


class Toucher:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mknod, (self._path,)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Toucher(canary))


def of_torch(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Toucher(canary), buffer)
    return buffer.getvalue()


def of_numpy(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Toucher(canary)], object))
    return buffer.getvalue()


def of_python(canary: Path) -> bytes:
    return f"open({str(canary)!r}, 'w').close()\n".encode()


def of_yaml(canary: Path) -> bytes:
    return f"a: !!python/object/apply:os.mknod [{canary}]\n".encode()


PAYLOADS = {"pickle": pickled, "pkl": pickled, "pyd": pickled, "pt": of_torch, "npy": of_numpy, "py": of_python}
PAYLOADS |= {"yaml": of_yaml}


def check_payloads(folder: Path) -> None:
    """Each does make its file where it is trusted, so its absence proves something."""
    loaders: dict[str, Callable[[bytes], object]] = {
        "pickle": pickle.loads,
        "pt": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "npy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        "py": exec,
    }
    for name, load in loaders.items():
        canary = folder / f"loaded-{name}"
        load(PAYLOADS[name](canary))
        assert canary.exists()
        canary.unlink()


@row("hostile", "pickle, .pt, .npy, .py and .yaml members", "payloads that make a file when loaded, read and carried")
@pytest.mark.parametrize("token_format", ["parquet", "webdataset"])
def test_payloads_in_a_shard(ground, tmp_path, token_format):
    check_payloads(tmp_path)
    canary = tmp_path / "canary"
    carried = {suffix: payload(canary) for suffix, payload in PAYLOADS.items()}
    sidecars = [(f"a.{suffix}", data) for suffix, data in carried.items()]
    as_audio = [("b.flac", carried["pickle"]), ("c.wav", carried["pt"]), ("d.mp3", carried["npy"])]
    ground.put_clean(2)
    ground.put({"hostile.tar": tar_of([("a.flac", AUDIO[0]), *sidecars, *as_audio, ("e.pickle", b"c")])})
    objects = ground.check(
        ground.run(f"--format={token_format}", f"--carry={','.join(carried)}"),
        rows={"hostile.tar": {"a": ground.lab.clip_ids(AUDIO[0])}},
        rejects={"hostile.tar": {**dict.fromkeys("bcd", "unreadable"), "e": "no_audio"}},
    )
    assert sidecars_of(objects, "hostile-") == {"a": carried}
    for command in ("verify", "status"):
        assert ground.voxmill(command, f"{ground.place.base}/out").exit_code == 0
    assert not canary.exists()


def sidecars_of(objects: dict[str, bytes], start: str) -> dict[str, dict[str, bytes]]:
    """What of the payloads stands in a token shard, byte for byte, by key."""
    found: dict[str, dict[str, bytes]] = {}
    for path, content in objects.items():
        folder, _, name = path.partition("/")
        if folder == "tokens" and name.startswith(start):
            for one in pq.read_table(io.BytesIO(content)).to_pylist():
                found[one["key"]] = {suffix: one[suffix] for suffix in PAYLOADS}
        elif folder == "semantic" and name.startswith(start):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    if suffix in PAYLOADS:
                        file = tar.extractfile(member)
                        assert file is not None
                        found.setdefault(key, {})[suffix] = file.read()
    return found


@row("hostile", "names that lead out of the output", "../canary, absolute ones, a symbolic link and a file through it")
def test_names_that_lead_out(ground, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    ground.put_clean(2)
    link = block(name=b"way.flac", kind=b"2", size=b"00000000000\0")
    linked = link[:157] + str(outside).encode().ljust(100, b"\0") + link[257:]
    linked = linked[:148] + b"%06o\0 " % sum(linked[:148] + b" " * 8 + linked[156:]) + linked[156:]
    names = ["../canary.flac", f"{outside}/canary.flac", "a/../../../canary.flac", "way.flac/canary.flac", "ok.flac"]
    members = b"".join(
        block(name=name.encode(), size=b"%011o\0" % len(data)) + padded(data)
        for name, data in zip(names, AUDIO, strict=False)
    )
    ground.put({"out.tar": linked + members + END})
    before = files_of(tmp_path)
    objects = ground.check(
        ground.run("--format=webdataset"),
        rows={"out.tar": {"way.flac/canary": ground.lab.clip_ids(AUDIO[3]), "ok": ground.lab.clip_ids(AUDIO[4])}},
        rejects={
            "out.tar": {
                "way.flac": "not_a_file",
                "../canary": "bad_name",
                f"{outside}/canary": "bad_name",
                "a/../../../canary": "bad_name",
            }
        },
    )
    assert files_of(tmp_path) == before
    assert not [path for folder in (ROOT, ROOT.parent, tmp_path.parent) for path in folder.glob("*canary*")]
    for path, content in objects.items():
        if path.startswith(("semantic/", "acoustic/")):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                assert all(member.isreg() and ".." not in member.name for member in tar)
                assert not [member.name for member in tar if member.name.startswith("/")]


def files_of(folder: Path) -> list[str]:
    """Everything below a folder, the output apart."""
    found = [path.relative_to(folder) for path in folder.rglob("*")]
    return sorted(str(path) for path in found if path.parts[0] != "out")


@row("hostile", "inputs that name programs or inner addresses", "pipe:, the metadata address, a socket that listens")
@pytest.mark.parametrize("listed", [False, True])
def test_inputs_that_are_no_places(ground, tmp_path, listed):
    ground.put_clean(2)
    canary, listing = tmp_path / "canary", tmp_path / "list.txt"
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        here = f"127.0.0.1:{listener.getsockname()[1]}"
        schemes = ("http", "https", "ftp", "gs", "webhdfs", "simplecache::http", "zip://a.tar::http")
        bad = [f"pipe:touch {canary}", "http://169.254.169.254/latest/meta-data/"]
        bad += [f"{scheme}://{here}/a.tar" for scheme in schemes]
        for given in bad:
            listing.write_text(f"in/speech-000.tar\n{given}\n")
            assert_refused(ground, f"--input={f'@{listing}' if listed else given}")
        if not listed:
            for flag in (f"--input=@http://{here}/l.txt", f"--output=http://{here}/out", f"--codec=http://{here}/c"):
                assert_refused(ground, f"--input={ground.place.base}/in/speech-000.tar", flag)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not canary.exists()
    assert not ground.place.objects()
    listing.write_text("in/speech-000.tar\n")
    assert (
        ground.voxmill("plan", f"--input=@{listing}", f"--output={tmp_path}/out", "--codec=calibrated:").exit_code == 0
    )


def assert_refused(ground, *flags: str) -> None:
    ended = ground.voxmill(
        "run", f"--output={ground.place.base}/out", "--codec=calibrated:", "--executor=inline", *flags
    )
    assert ended.exit_code == 2, f"{flags}: {ended.stderr}"
    assert "ConfigError" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


@row("hostile", "a checkpoint that holds a payload", "a pickle, torch's or bare, as weights; objects as statistics")
@pytest.mark.parametrize(
    ("file", "payload"),
    [
        ("LongCatAudioCodec_encoder.pt", pickled),
        ("LongCatAudioCodec_encoder.pt", of_torch),
        ("LongCatAudioCodec_encoder_cmvn.npy", of_numpy),
    ],
)
def test_payload_in_a_checkpoint(ground, tmp_path, file, payload):
    check_payloads(tmp_path)
    canary, folder = tmp_path / "canary", tmp_path / "codec"
    shutil.copytree(GOLDEN, folder)
    (folder / file).write_bytes(payload(canary))
    ground.put_clean(2)
    ended = ground.run(f"--codec={folder}")
    assert ended.exit_code == 2, ended.stderr
    assert f"CheckpointError: {folder}/{file}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not canary.exists()
    assert ground.place.objects().keys() <= {"job.json", "status.json", "manifest.parquet"}


@row("hostile", "YAML that makes objects", "!!python/object/apply in job.yaml and in --set")
def test_yaml_that_makes_objects(ground, tmp_path):
    canary, job = tmp_path / "canary", tmp_path / "job.yaml"
    ground.put_clean(2)
    place = json.dumps(ground.place.base)[1:-1]
    settings = f"input: {place}/in/speech-000.tar\noutput: {place}/out\ncodec: 'calibrated:'\nexecutor: inline\n"
    job.write_bytes(settings.encode() + of_yaml(canary))
    ended = ground.voxmill("run", str(job))
    assert (ended.exit_code, "is no YAML" in ended.stderr) == (2, True), ended.stderr
    job.write_text(settings)
    ended = ground.voxmill("run", str(job), f"--set=codec=!!python/object/apply:os.mknod [{canary}]")
    assert (ended.exit_code, "no YAML" in ended.stderr) == (2, True), ended.stderr
    assert not canary.exists()
    assert not ground.place.objects()
    assert ground.voxmill("run", str(job)).exit_code == 0, "without the payload it is a job"
