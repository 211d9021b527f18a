"""Signals at moments of a run that a test can set."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import cli, run
from jobs.interrupts import Interrupts, sigterm_kept
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
            wait_for(lambda: handled_by(libc) != bytes(8), "the handler to be back", 10)
            os.kill(os.getpid(), signal.SIGTERM)
            libc.signal(int(signal.SIGTERM), 0)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["term", "term"]


def test_an_alarm_that_a_library_sets_on_a_signal_does_not_go_off():
    libc = ctypes.CDLL(None)
    action = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os.abort())
    before = signal.getsignal(signal.SIGALRM)
    own = ctypes.create_string_buffer(512)
    try:
        signal.signal(signal.SIGALRM, lambda *_: None)
        libc.sigaction(int(signal.SIGALRM), None, own)
        signal.alarm(1_000)
        with sigterm_kept():
            wait_for(lambda: signal.alarm(1_000) > 0, "our own alarm, which is not touched", 10)
            libc.signal(int(signal.SIGALRM), action)
            wait_for(lambda: handled_by(libc, signal.SIGALRM) == own.raw[:8], "the handler to be back", 10)
            assert signal.alarm(0) == 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_what_an_interrupt_leaves_half_made_does_not_complain(capsys):
    class HalfMade:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    def delete_one(error):
        HalfMade(error)

    cli_hook = sys.unraisablehook
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "unraisablehook", cli._complain)
        patched.setattr(Interrupts, "any_raised", False)
        delete_one(AttributeError("_ssock"))
        assert "AttributeError: _ssock" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt), Interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
        delete_one(AttributeError("_ssock"))
        assert capsys.readouterr().err == ""
        delete_one(OSError("disk full"))
        assert "OSError: disk full" in capsys.readouterr().err
    assert sys.unraisablehook is cli_hook


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


def test_another_thread_is_told_that_it_cannot_set_handlers():
    with sigterm_kept(), ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="main thread"):
        executor.submit(signal.signal, signal.SIGTERM, signal.SIG_IGN).result()


def test_an_interrupt_between_its_lines_leaves_nothing_behind(monkeypatch):
    class InterruptedThread(threading.Thread):
        def start(self):
            super().start()
            raise KeyboardInterrupt

    set_handler = signal.signal
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Thread", InterruptedThread)
        with pytest.raises(KeyboardInterrupt), sigterm_kept():
            pass
    assert signal.signal is set_handler
    assert "voxmill-sigterm" not in [thread.name for thread in threading.enumerate()]


def handled_by(libc, number=signal.SIGTERM):
    """The handler's address, bytes; zeros are SIG_DFL. The first field of `struct sigaction` on Linux."""
    action = ctypes.create_string_buffer(512)
    libc.sigaction(int(number), None, action)
    return action.raw[:8]
