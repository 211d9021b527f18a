"""How busy a run keeps its codecs: seconds in `encode` over seconds that the replicas had, with 1 and 4 replicas.

    voxmill bench pipeline [--wall-s 50] [--num-shards 20]

The codec is `calibrated:` and sleeps for a set time a second of padded audio, so that the machine has the whole of its
processor for all the rest; its cost is set so that a run takes about `--wall-s`. The shards are human speech, of equal
size and content (names of one file), so that each of 4 replicas has a fourth of them. One replica runs in this process
(the inline executor), four on a local Ray.

Time runs from the first shard that is handed out to the last commit that the driver hears of, times the replicas: what
the first batch waits for, what comes behind the last, and waiting for the other replicas' last ones count. Starting Ray
and the replicas comes before: none is handed a shard before all are up, since on a host with fewer cores than replicas
they come up one after the other.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import soundfile

from codec.base import CodecError
from infra.bench.report import BenchReport, Figure
from infra.bench.shards import write_shard
from infra.bench.speech import speech_files
from infra.bench.watched import Watched, watched_run
from jobs.options import config_of
from pipeline.commit import Committed
from pipeline.config import JobConfig

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
    config = config_of(chosen)
    report, watched = watched_run(config)
    if report.exit_code:
        raise CodecError(f"the run did not end complete: {report.lines()}")
    return _found(config, watched, report.counts.audio_s)


def _found(config: JobConfig, executor: Watched, audio_s: float) -> dict[str, Any]:
    encode_s = sum(
        outcome.record.timings["encode_s"] for outcome in executor.outcomes if isinstance(outcome, Committed)
    )
    first_s = sorted(executor.first_submit_s.values())
    wall_s = executor.ended_s[-1] - first_s[0]
    return {
        "busy": encode_s / (wall_s * len(first_s)),
        "encode_s": encode_s,
        "wall_s": wall_s,
        "executor": config.executor,
        "codec": config.codec,
        "first_shard_of_each_replica_s": [at_s - first_s[0] for at_s in first_s],
        "ends_s": [at_s - first_s[0] for at_s in executor.ended_s],
        "shards_a_replica": sorted(executor.num_ended.values()),
        "audio_s": audio_s,
    }
