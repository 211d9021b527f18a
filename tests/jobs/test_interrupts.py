"""Signals at moments of a run that a test can set."""

from __future__ import annotations

import os
import signal

import pytest

from jobs import run
from pipeline.config import load_config

CONFIG = {"input": "in", "output": "out", "codec": "calibrated:"}


class StartingExecutor:
    """Is sent a signal while it starts, as often as told."""

    def __init__(self, num_signals):
        self.steps = []
        for _ in range(num_signals):
            os.kill(os.getpid(), signal.SIGTERM)
            self.steps.append("starting")

    def close(self):
        self.steps.append("closed")


def test_a_signal_while_the_executor_starts_is_answered_when_it_is_up(monkeypatch):
    started = []
    monkeypatch.setattr(run, "make_executor", lambda _: started.append(StartingExecutor(1)) or started[0])
    with pytest.raises(KeyboardInterrupt):
        run.run_job(load_config(CONFIG), plain=True)
    assert started[0].steps == ["starting", "closed"]


def test_a_second_signal_does_not_wait(monkeypatch):
    monkeypatch.setattr(run, "make_executor", lambda _: StartingExecutor(3))
    steps = []
    monkeypatch.setattr(StartingExecutor, "close", lambda _: steps.append("closed"))
    with pytest.raises(KeyboardInterrupt):
        run.run_job(load_config(CONFIG), plain=True)
    assert steps == []
