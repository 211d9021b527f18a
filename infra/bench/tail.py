"""The end of a run: how long shards of many sizes take over what they would at best.

The real driver and the real ledger, with simulated replicas on a simulated clock. No order could take less than
max(all work / all replicas' speed, the longest shard): the ideal. Sizes are lognormal; replicas differ in speed by up
to 10% and come up within one mean shard's time, which the ideal knows; a shard's first batch is ready 3% of that time
after it was handed out, and its commit stands 2% after its last batch, which the ideal does without.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

from infra.bench.fleet import WAV_BYTES_PER_S, Fleet, FleetConfig, drive, job_config
from infra.bench.report import BenchReport, Figure
from infra.bench.stores import MemoryStore

BASE = "s3://simulated"
MEAN_S = 3600.0
"""Audio of a shard, on average."""

LEAD_SHARE, PUT_SHARE, START_SHARE = 0.03, 0.02, 1.0
SPEED_SPREAD = 0.1
SPEED = 100.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--shards-per-replica", type=int, nargs="+", default=[20, 60, 200])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.5, 1.0, 1.5], help="of the lognormal sizes")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--shards-in-flight", type=int, nargs="+", default=[1, 2, 3])


@dataclass(frozen=True, slots=True)
class _Case:
    num_replicas: int
    num_shards: int
    sigma: float
    seed: int
    shards_in_flight: int


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Each case once: nothing in it is left to the machine."""
    found = [
        (case, over_ideal(case))
        for shards_in_flight in arguments.shards_in_flight
        for per_replica in arguments.shards_per_replica
        for sigma in arguments.sigma
        for seed in range(arguments.seeds)
        for case in [_Case(arguments.replicas, per_replica * arguments.replicas, sigma, seed, shards_in_flight)]
    ]
    figures = []
    for shards_in_flight in arguments.shards_in_flight:
        worst = max(ratio for case, ratio in found if case.shards_in_flight == shards_in_flight)
        is_default = shards_in_flight == job_config(BASE).running.shards_in_flight
        name = f"makespan over the ideal, {shards_in_flight} shards in flight, worst of {arguments.seeds} seeds"
        figures.append(Figure(name, worst, at_most=1.05 if is_default else None))
    return BenchReport("tail", tuple(figures), {"cases": [[str(case), round(ratio, 4)] for case, ratio in found]})


def over_ideal(case: _Case) -> float:
    """Makespan over the ideal."""
    rng = random.Random(case.seed)
    draws = [rng.lognormvariate(0.0, case.sigma) for _ in range(case.num_shards)]
    scale = MEAN_S * WAV_BYTES_PER_S / (sum(draws) / len(draws))
    store = MemoryStore()
    audio_s = []
    for index, draw in enumerate(draws):
        size_bytes = round(draw * scale)
        audio_s.append(size_bytes / WAV_BYTES_PER_S)
        store.put(f"{BASE}/in/shard-{index:06d}.tar", b"", size_bytes)
    mean_s = MEAN_S / SPEED
    fleet = Fleet(
        FleetConfig(
            num_replicas=case.num_replicas,
            speed=SPEED,
            speed_spread=SPEED_SPREAD,
            lead_s=LEAD_SHARE * mean_s,
            put_s=PUT_SHARE * mean_s,
            start_s=START_SHARE * mean_s,
            seed=case.seed,
        )
    )
    config = job_config(BASE, shards_in_flight=case.shards_in_flight)
    report = drive(fleet, config, store).report
    assert report.exit_code == 0, report.lines()
    return fleet.now_s / fleet.ideal_s(audio_s)
