"""The real driver and ledger on simulated replicas and a simulated clock: nothing here is left to the machine."""

from __future__ import annotations

import argparse

import pytest

from infra.bench import simulate, tail
from infra.bench.fleet import Fleet, FleetConfig, drive, job_config
from infra.bench.stores import MemoryStore

BASE = "s3://simulated"


def parsed(module, *argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_flags(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("shards_in_flight", [2, 3])
def test_shards_of_many_sizes_end_together(shards_in_flight):
    """Without the rule of shares the worst of these takes half as long again as the ideal."""
    flags = ["--shards-per-replica=20", "--sigma=1.5", "--seeds=4", f"--shards-in-flight={shards_in_flight}"]
    (figure,) = tail.bench(parsed(tail, *flags)).figures
    assert figure.value <= 1.05


def test_replicas_that_fail_and_die_cost_tries_and_no_shard():
    flags = ["--shards=1500", "--replicas=50", "--failure-rate=0.05", "--deaths-per-hour=20", "--start-s=5"]
    report = simulate.bench(parsed(simulate, *flags))
    figures = {figure.name: figure.value for figure in report.figures}
    assert 1.05 < figures["attempts a shard"] < 1.5
    assert figures["replicas lost"] > 10
    assert figures["makespan over the ideal"] < 2


def test_more_replicas_than_shards_have_one_each():
    memory = MemoryStore()
    for number in range(20):
        memory.put(f"{BASE}/in/shard-{number}.tar", b"", 32_000 * 3600)
    fleet = Fleet(FleetConfig(num_replicas=100, speed=100.0))
    assert drive(fleet, job_config(BASE), memory).report.exit_code == 0
    assert fleet.num_attempts == 20
    assert fleet.now_s == pytest.approx(36.0), "side by side"
