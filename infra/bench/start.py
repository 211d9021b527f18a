"""How long a person waits for `voxmill --help`, and for `voxmill plan` of 10,000 shards on the local disk.

    voxmill bench start [--num-shards 10000] [--rounds 5]

Seconds of whole processes, from their start to their end: what is measured here has no other side to be compared with.
The shards are one small tar of synthetic audio under as many names (hard links), since a plan lists them all and reads
the heads of four.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

from infra.bench.report import BenchReport, Figure
from infra.bench.shards import write_shard

HELP_S_MAX, PLAN_S_MAX = 0.2, 2.0
RATE_HZ = 16_000


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-shards", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)


def bench(arguments: argparse.Namespace) -> BenchReport:
    with TemporaryDirectory(prefix="voxmill-bench-") as folder:
        shards = Path(folder, "shards")
        _make_shards(shards, arguments.num_shards)
        plan = ["plan", "--input", f"{shards}/", "--output", f"{folder}/output", "--json"]
        help_s, plan_s = [], []
        for _ in range(arguments.rounds):
            help_s.append(_wall_s(["--help"]))
            plan_s.append(_wall_s(plan))
    return BenchReport(
        "start",
        (
            Figure("voxmill --help", median(help_s), "s", at_most=HELP_S_MAX),
            Figure(f"voxmill plan of {arguments.num_shards} local shards", median(plan_s), "s", at_most=PLAN_S_MAX),
        ),
        {"help_s": help_s, "plan_s": plan_s, "num_shards": arguments.num_shards},
    )


def _make_shards(folder: Path, num_shards: int) -> None:
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, RATE_HZ)
    audio = folder / "noise.flac"
    soundfile.write(audio, noise, RATE_HZ)
    first = folder / f"shard-{0:06d}.tar"
    write_shard(first, [audio], num_clips=2)
    audio.unlink()
    for index in range(1, num_shards):
        os.link(first, folder / f"shard-{index:06d}.tar")


def _wall_s(arguments: Sequence[str]) -> float:
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_s
