"""How busy a run keeps its codecs: seconds in `encode` over seconds that the replicas had, with 1 and 4 replicas.

    voxmill bench pipeline [--wall-s 50] [--num-shards 20]

The codec is `calibrated:` and sleeps for a set time a second of padded audio, so that the machine has the whole of its
processor for all the rest; its cost is set so that a run takes about `--wall-s`. The shards are human speech, of equal
size and content (names of one file), so that each of 4 replicas has a fourth of them. One replica runs in this process
(the inline executor), four on a local Ray.

A replica's time runs from the first shard that is handed to it to the last commit of the run that the driver hears of:
what its first batch waits for, what comes behind its last one, and waiting for the others' last ones count. Starting Ray
and replicas comes before. On a host with fewer cores than replicas some start later than others; a second figure, without
a goal, lets all their times run from the first shard of any.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import soundfile

from codec.base import CodecError
from infra.bench.report import BenchReport, Figure
from infra.bench.shards import write_shard
from infra.bench.speech import speech_files
from jobs.display import PlainDisplay
from jobs.driver import Driver
from jobs.executor import Ended, Event, Executor
from jobs.finish import RunReport
from jobs.interrupts import Interrupts
from jobs.options import config_of
from jobs.prepare import absolute, open_job
from jobs.replica import ReplicaSetup
from jobs.run import make_executor
from pipeline.commit import find_commit
from pipeline.config import Device, JobConfig
from pipeline.layout import OutputPlace
from pipeline.storage import Stores
from pipeline.types import Task

SHARD_AUDIO_S = 1200.0
BUSY_MIN = 0.97


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wall-s", type=float, default=50.0, help="about so long takes each of the two runs")
    parser.add_argument("--num-shards", type=int, default=20)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--speech", metavar="FOLDER", help="audio files of your own; default: Debian's, by apt")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as of `voxmill run`")


def bench(arguments: argparse.Namespace) -> BenchReport:
    figures, details = [], {}
    with TemporaryDirectory(prefix="voxmill-bench-") as folder:
        shards = Path(folder, "shards")
        audio_s = _make_shards(shards, speech_files(folder=arguments.speech), arguments.num_shards)
        for replicas in arguments.replicas:
            cost_s = arguments.wall_s * replicas / (audio_s * arguments.num_shards)
            run = _run(shards, Path(folder, f"output-{replicas}"), replicas, cost_s, arguments.set)
            name = f"codec busy, {replicas} replica{'s' if replicas > 1 else ''}"
            figures.append(Figure(name, run["busy"], at_least=BUSY_MIN))
            figures.append(Figure(f"{name}, from the first shard of any", run["busy_from_first_shard_of_any"]))
            details[f"{replicas} replicas"] = run
    return BenchReport("pipeline", tuple(figures), details)


def _make_shards(folder: Path, files: Sequence[Path], num_shards: int) -> float:
    """Equal shards; returns the audio seconds of each, about."""
    folder.mkdir()
    mean_s: float = sum(soundfile.info(file).duration for file in files) / len(files)
    first = folder / f"shard-{0:03d}.tar"
    num_clips = write_shard(first, files, num_clips=round(SHARD_AUDIO_S / mean_s))
    for index in range(1, num_shards):
        os.link(first, folder / f"shard-{index:03d}.tar")
    return num_clips * mean_s


@dataclass
class _Watched(Executor):
    """Another executor, and when what was handed out and ended; times are of `time.perf_counter`."""

    executor: Executor
    first_submit_s: dict[str, float] = field(default_factory=dict)
    ended_s: list[float] = field(default_factory=list)
    num_ended: Counter[str] = field(default_factory=Counter)

    def pick_device(self, asked: Device | Literal["auto"]) -> Device:
        return self.executor.pick_device(asked)

    def start(self, setup: ReplicaSetup) -> None:
        self.executor.start(setup)

    def adjust(self) -> int:
        return self.executor.adjust()

    def outlook(self) -> str:
        return self.executor.outlook()

    def submit(self, replica: str, task: Task) -> None:
        self.first_submit_s.setdefault(replica, time.perf_counter())
        self.executor.submit(replica, task)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        events = self.executor.poll(timeout_s)
        for event in events:
            if isinstance(event, Ended):
                self.ended_s.append(time.perf_counter())
                self.num_ended[event.replica] += 1
        return events

    def give_up(self, replica: str) -> None:
        self.executor.give_up(replica)

    def close(self) -> None:
        self.executor.close()


def _run(shards: Path, output: Path, replicas: int, cost_s: float, settings: Sequence[str]) -> dict[str, Any]:
    chosen = argparse.Namespace(
        job=None,
        set=settings,
        input=[f"{shards}/"],
        output=str(output),
        codec=f"calibrated:cost_s={cost_s:.9f},per=audio_s,ids=zero",
        executor="inline" if replicas == 1 else "ray",
        replicas=replicas,
        ray_address=None,
    )
    config = absolute(config_of(chosen))
    with Interrupts() as interrupts:
        executor = _Watched(make_executor(config))
        try:
            job = open_job(config, executor.pick_device("cpu"))
        except BaseException:
            executor.close()
            raise
        report = Driver(job, executor, PlainDisplay(), interrupts).run()
    if report.exit_code:
        raise CodecError(f"the run did not end complete: {report.lines()}")
    return _found(config, executor, report, [shard.shard_id for shard in job.todo])


def _found(config: JobConfig, executor: _Watched, report: RunReport, shard_ids: Sequence[str]) -> dict[str, Any]:
    place, store = OutputPlace(config.output), Stores(config.storage, config.retry)(config.output)
    records = [find_commit(store, place, shard_id) for shard_id in shard_ids]
    encode_s = sum(record.timings["encode_s"] for record in records if record is not None)
    first_s = sorted(executor.first_submit_s.values())
    wall_s = executor.ended_s[-1] - first_s[0]
    return {
        "busy": encode_s / sum(executor.ended_s[-1] - at_s for at_s in first_s),
        "busy_from_first_shard_of_any": encode_s / (wall_s * len(first_s)),
        "encode_s": encode_s,
        "wall_s": wall_s,
        "executor": config.executor,
        "codec": config.codec,
        "first_shard_of_each_replica_s": [at_s - first_s[0] for at_s in first_s],
        "ends_s": [at_s - first_s[0] for at_s in executor.ended_s],
        "shards_a_replica": sorted(executor.num_ended.values()),
        "audio_s": report.counts.audio_s,
    }
