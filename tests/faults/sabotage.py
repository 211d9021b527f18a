"""What a row does inside the process of a run, before the command: see `ground.Sabotage`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pipeline.worker


def stop_before_commit(marker: str) -> None:
    """The process stops itself (SIGSTOP) once, when a shard's objects are put and its commit is not."""
    commit = pipeline.worker.commit

    def stopping(*arguments: Any) -> Any:
        if not Path(marker).exists():
            Path(marker).touch()
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # so that this thread goes no step further
        return commit(*arguments)

    pipeline.worker.commit = stopping  # type: ignore[assignment]
