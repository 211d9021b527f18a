"""Signals at moments of a run that a test can set."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

from jobs import run
from jobs.interrupts import sigterm_kept
from pipeline.config import load_config
from tests.clusters import wait_for

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


def test_a_handler_that_a_library_resets_is_put_back():
    libc, received = ctypes.CDLL(None), []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("term"))
    try:
        with sigterm_kept():
            libc.signal(int(signal.SIGTERM), 0)  # SIG_DFL, behind Python's back
            wait_for(lambda: handled_by(libc) != 0, "the handler to be back", 10)
            os.kill(os.getpid(), signal.SIGTERM)
            libc.signal(int(signal.SIGTERM), 0)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["term", "term"]


def test_a_handler_that_a_library_sets_is_not_taken():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("ours"))
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with sigterm_kept():
            ours = signal.getsignal(signal.SIGTERM)
            assert signal.signal(signal.SIGTERM, lambda *_: received.append("the library's")) is ours
            assert signal.signal(signal.SIGINT, signal.SIG_IGN) is on_interrupt
            assert signal.signal(signal.SIGINT, on_interrupt) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.signal(signal.SIGTERM, before) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["ours"]


def handled_by(libc):
    """The handler's address; 0 is SIG_DFL. The first field of `struct sigaction` on Linux."""
    action = ctypes.create_string_buffer(512)
    libc.sigaction(int(signal.SIGTERM), None, action)
    return int.from_bytes(action.raw[:8], "little")
