"""Many faults at once, drawn from a seed, on real processes; `make chaos` does the same for a quarter of an hour."""

from __future__ import annotations

import pytest

from tests.chaos.chaos import chaos
from tests.faults.matrix import row

HOW = (
    "drivers killed, stopped, woken and ended by SIGTERM, gc without a grace, inputs added and replaced, and a store "
    "that refuses, resets, stalls and loses replies; judged by what stands and by the store's history"
)


@row("random", "chaos for some seconds", HOW)
@pytest.mark.timeout(300)
def test_chaos(faults_lab, moto_server, tmp_path):
    run_chaos(faults_lab, moto_server, tmp_path, seconds=2.0, seed=6)


@row("random", "chaos for a minute", f"{HOW}; the first driver has two replicas on Ray", heavy=True)
@pytest.mark.timeout(600)
def test_longer_chaos(faults_lab, moto_server, tmp_path):
    counts = run_chaos(faults_lab, moto_server, tmp_path, seconds=60.0, seed=6, with_ray=True)
    assert counts["gc started"]
    assert counts["ray run started"]


def run_chaos(lab, server, folder, *, seconds, seed, with_ray=False):
    outcome = chaos(lab, server, folder, seconds=seconds, seed=seed, with_ray=with_ray)
    assert not outcome.violations, "\n".join([f"seed {seed}; the log is in {folder}", *outcome.violations])
    for what in ("SIGKILL", "SIGSTOP", "SIGCONT", "commits"):
        assert outcome.counts[what], f"{what}: {outcome.counts}"
    assert sum(num for what, num in outcome.counts.items() if what.startswith("fault ")), outcome.counts
    return outcome.counts
