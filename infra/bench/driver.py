"""The driver's processor time a shard: its whole life, from the listing of the inputs to the last deletion.

Real job, driver, ledger and commit records in a local place; the replicas end every shard at once. "inline": they are
in this process, and what they themselves take (putting a token object and a commit record) is not counted. "over Ray":
they are actors in processes of their own, and all of this process counts, with Ray's threads.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.bench.fleet import Fleet, FleetConfig, Silent, commit_at_once, drive, job_config
from infra.bench.places import Links, input_paths, quick_folder
from infra.bench.report import BenchReport, Figure
from jobs.driver import Driver
from jobs.interrupts import Interrupts
from jobs.prepare import open_job
from jobs.replica import Failure, ReplicaSetup
from jobs.run import make_executor
from pipeline.commit import Committed
from pipeline.config import load_config
from pipeline.layout import OutputPlace, token_path
from pipeline.storage import Store, Stores
from pipeline.types import Task

SHARD_BYTES = 1 << 16
ORPHANS_EVERY = 100
"""Each so many shards leave a token object that no commit names, for the end of the run to delete."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=100_000, help="with replicas in this process")
    parser.add_argument("--replicas", type=int, default=64, help="in this process")
    parser.add_argument("--ray-shards", type=int, nargs=2, default=[4000, 8000], help="two numbers, to see the growth")
    parser.add_argument("--ray-replicas", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=quick_folder(), help="for temporary files; default: in memory")


def bench(arguments: argparse.Namespace) -> BenchReport:
    """One round of each after the other."""
    few, many = arguments.ray_shards
    rounds = [
        {
            "inline_ms": inline_ms(arguments.shards, arguments.replicas, arguments.folder),
            "ray_few_ms": ray_ms(few, arguments.ray_replicas, arguments.folder),
            "ray_many_ms": ray_ms(many, arguments.ray_replicas, arguments.folder),
        }
        for _ in range(arguments.rounds)
    ]
    inline, ray_few, ray_many = (
        sorted(found[name] for found in rounds)[len(rounds) // 2] for name in ("inline_ms", "ray_few_ms", "ray_many_ms")
    )
    figures = (
        Figure(f"CPU a shard, inline, {arguments.shards} shards", inline, "ms", at_most=1.0),
        Figure(f"CPU a shard, over Ray, {many} shards", ray_many, "ms", at_most=3.0),
        Figure(f"CPU a shard, over Ray, {many} over {few} shards", ray_many / ray_few, at_most=1.1),
    )
    return BenchReport("driver", figures, {"arguments": vars(arguments), "rounds": rounds})


def inline_ms(num_shards: int, num_replicas: int, folder: str | None) -> float:
    """The driver's CPU a shard, in ms."""
    with TemporaryDirectory(prefix="voxmill-bench-", dir=folder) as base:
        Links(Path(base, "spare"), bytes(SHARD_BYTES)).add_all(input_paths(Path(base), num_shards))
        fleet = _Linking(FleetConfig(num_replicas, speed=1e12), Path(base))
        driven = drive(fleet, job_config(base))
        assert driven.report.exit_code == 0, driven.report.lines()
        left = sum(1 for _ in os.scandir(Path(base, "out", "tokens")))
        assert left == num_shards, f"{left} token objects are left of {num_shards} shards"
        return 1e3 * driven.cpu_s / num_shards


class _Linking(Fleet):
    """A fleet whose token objects are links, some of them orphans."""

    def __init__(self, config: FleetConfig, base: Path) -> None:
        super().__init__(config)
        self._tokens = base / "out"
        self._links = Links(base / "tokens", bytes(100))
        (self._tokens / "tokens").mkdir(parents=True)

    def finished(self, task: Task) -> Committed:
        shard_id = task.shard.shard_id
        attempts = [task.attempt] if self.num_attempts % ORPHANS_EVERY else [task.attempt, "0" * 32]
        for attempt in attempts:
            self._links.add(self._tokens / token_path("tokens", shard_id, attempt))
        return super().finished(task)


def ray_ms(num_shards: int, num_replicas: int, folder: str | None) -> float:
    """The driver's CPU a shard, in ms, without the start of Ray itself."""
    with TemporaryDirectory(prefix="voxmill-bench-", dir=folder) as base:
        Links(Path(base, "spare"), bytes(SHARD_BYTES)).add_all(input_paths(Path(base), num_shards))
        values: dict[str, Any] = {
            "input": f"{base}/in/",
            "output": f"{base}/out",
            "codec": "calibrated:",
            "replicas": num_replicas,
            "ray": {"address": "local"},
        }
        config = load_config(values)
        executor = make_executor(config, replica_class=InstantActor)
        began_s = time.process_time()
        job = open_job(config, executor.pick_device("cpu"))
        report = Driver(job, executor, Silent(), Interrupts(), rng=random.Random(1)).run()
        cpu_s = time.process_time() - began_s
        assert report.exit_code == 0, report.lines()
        return 1e3 * cpu_s / num_shards


class InstantActor:
    """Has the methods of `jobs.ray_executor.ReplicaActor`; commits a shard at once."""

    def __init__(self) -> None:
        self._setup: ReplicaSetup
        self._store: Store
        self._place: OutputPlace

    def start(self, setup: ReplicaSetup) -> str | Failure:
        """Nothing is loaded."""
        config = setup.config
        self._setup = setup
        self._store, self._place = Stores(config.storage, config.retry)(config.output), OutputPlace(config.output)
        return f"pid {os.getpid()}"

    def process(self, task: Task) -> Committed | Failure:
        """Put the commit record."""
        return commit_at_once(self._store, self._place, self._setup.fingerprint, task)

    def progress(self) -> dict[str, object]:
        """No shard lasts so long."""
        return {}
