"""What a replica does with its threads, shown by codecs that look."""

from __future__ import annotations

import ctypes
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import pipeline.storage
from codec.base import CheckpointError
from codec.registry import codec_info, load_codec
from jobs.executor import Ended, InlineExecutor
from jobs.replica import Failure, Replica, ReplicaSetup, environment
from jobs.run import run_job
from pipeline.config import load_config
from pipeline.decoder import DecoderPool
from pipeline.errors import RefusedError
from pipeline.records import FailureRecord, InputRecord
from pipeline.types import Shard, Task
from tests.corpus import put_shards, speech_shards
from tests.jobs.test_run import FAST

WAIT_S_MAX = 30.0
WORKERS = {"workers": 3}


def openmp_threads() -> int:
    """How many threads a kernel called from here would use; asking torch would set them as a side effect."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    (library,) = {line.split()[-1] for line in maps if "libgomp" in line}
    return int(ctypes.CDLL(library).omp_get_max_threads())


class Read:
    """Which shards have been read, and whether they are two by now."""

    def __init__(self) -> None:
        self.shards: set[str] = set()
        self.two = threading.Event()

    def add(self, uri: str) -> None:
        self.shards.add(uri)
        if len(self.shards) == 2:
            self.two.set()


class Watched:
    """A store that notes which shards are read."""

    def __init__(self, store: Any, read: Read) -> None:
        self._store, self._read = store, read

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(uri: str, *args: Any, **kwargs: Any) -> Any:
            result = method(uri, *args, **kwargs)
            if name == "read_range":
                self._read.add(uri)
            return result

        return call


class Patient:
    """The calibrated codec; its first batch ends only when the second shard has been read."""

    def __init__(self, read: Read) -> None:
        self._codec = load_codec("calibrated:")
        self._read = read
        self.next_was_read: bool | None = None
        self.num_threads: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        self.num_threads.add(openmp_threads())
        if self.next_was_read is None:
            self.next_was_read = self._read.two.wait(WAIT_S_MAX)
        return self._codec.encode(*args, **kwargs)


def test_the_next_shard_is_read_while_this_one_is_encoded_on_the_threads_of_the_config(tmp_path, monkeypatch):
    inputs = put_shards(str(tmp_path / "in"), speech_shards(5))
    read = Read()
    codec = Patient(read)
    opened = pipeline.storage.open_store
    monkeypatch.setattr("pipeline.storage.open_store", lambda *args: Watched(opened(*args), read))
    monkeypatch.setattr("jobs.replica.load_codec", lambda *args, **kwargs: codec)
    config: dict[str, Any] = {
        "input": inputs,
        "output": f"{tmp_path}/out",
        "codec": "calibrated:",
        "executor": "inline",
        **FAST,
    }
    config["cpu_threads"] = 3
    report = run_job(load_config(config), plain=True)
    assert report.exit_code == 0
    assert codec.next_was_read
    assert codec.num_threads == {3}, "in every thread that encodes, whatever the environment says"


def test_a_replica_is_up_when_its_decoding_processes_are(tmp_path: Path) -> None:
    config = load_config({"input": "/in/a.tar", "output": str(tmp_path), "codec": "calibrated:", "decoding": WORKERS})
    replica = Replica(ReplicaSetup(config, "0" * 64, "cpu", codec_info("calibrated:")))
    try:
        zygote = replica._work.decoder._nursery._zygote
        assert zygote is not None
        pid = zygote.process.pid
        assert len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) == WORKERS["workers"]
    finally:
        replica.close()


def test_a_replica_whose_codec_cannot_be_loaded_leaves_no_decoding_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config({"input": "/in/a.tar", "output": "/out", "codec": "calibrated:"})
    pools: list[DecoderPool] = []
    monkeypatch.setattr("jobs.replica.DecoderPool", lambda *args: pools.append(DecoderPool(*args)) or pools[0])
    with pytest.raises(CheckpointError, match="give all hosts the same files"):
        Replica(ReplicaSetup(config, "0" * 64, "cpu", codec_info("calibrated:frame_size=480")))
    assert pools[0]._nursery.is_closed
    assert pools[0]._nursery._zygote is None


def test_a_host_that_differs_in_what_it_can_read_does_no_shard() -> None:
    config = load_config({"input": "/in/a.tar", "output": "/out", "codec": "calibrated:"})
    setup = ReplicaSetup(config, "0" * 64, "cpu", codec_info("calibrated:"))
    assert setup.has_media
    with pytest.raises(RefusedError, match=r"install voxmill\[media\] on all hosts or on none"):
        Replica(replace(setup, has_media=False))


def test_the_decoders_of_media_files_are_recorded() -> None:
    config = load_config({"input": "/in/a.tar", "output": "/out", "codec": "calibrated:"})
    found = environment(ReplicaSetup(config, "0" * 64, "cpu", codec_info("calibrated:")))
    assert found["av"] == version("av")
    assert str(found["ffmpeg"])[0].isdigit()


def test_a_failure_of_any_words_makes_a_record_that_is_read_again() -> None:
    shard = Shard("/in/a.tar", 1, "e")
    for error in (
        ValueError("x" * (20 << 20)),
        FileNotFoundError(2, "gone", "\udcff"),
        SystemExit(),
        KeyError("\ud800"),
    ):
        failure = Failure.of(error)
        record = FailureRecord(
            shard_id=shard.shard_id,
            input=InputRecord.of(shard),
            attempt="0" * 32,
            kind=failure.kind,
            error=failure.error,
            message=failure.message,
            traceback=failure.traceback,
        )
        content = record.to_bytes()
        assert len(content) < 200_000
        assert FailureRecord.from_bytes(content, "record") == record
        assert failure.message


def test_a_codec_that_exits_ends_its_attempt_and_is_told() -> None:
    class Exiting:
        def process(self, task: Task) -> Any:
            raise SystemExit("out of licence")

        def progress(self) -> dict[str, Any]:
            return {}

    executor = InlineExecutor(lambda _: Exiting())  # type: ignore[arg-type, return-value]
    executor.start(None)  # type: ignore[arg-type]
    executor.submit("inline", Task(Shard("/in/a.tar", 1, "e"), "0" * 32))
    until_s = time.monotonic() + WAIT_S_MAX
    ended: list[Ended] = []
    while not ended:
        assert time.monotonic() < until_s, "the attempt's end is never told"
        ended = [event for event in executor.poll(0.1) if isinstance(event, Ended)]
    assert isinstance(ended[0].outcome, Failure)
    assert (ended[0].outcome.kind, ended[0].outcome.message) == ("unknown", "out of licence")
