"""Runs jobs in forked children that SIGKILL themselves at a scripted call to the store; one JSON line each way.

A child begins where its parent has everything imported, so that dozens of runs cost little more than their work.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import pipeline.storage
from jobs.run import run_job
from pipeline.config import load_config

CALLS = ("list", "stat", "read", "read_range", "put", "put_file", "put_if_absent", "delete")


class KillingStore:
    """A store that kills its process right after the call number `kill_after` of all stores of the process."""

    num_calls = 0

    def __init__(self, store: Any, kill_after: int | None, log: Any) -> None:
        self._store = store
        self._kill_after = kill_after
        self._log = log

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in CALLS:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            result = iter(list(result)) if name == "list" else result
            KillingStore.num_calls += 1
            self._log.write(f"{name} {args[0]}\n")
            self._log.flush()
            if KillingStore.num_calls == self._kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def run(request: dict[str, Any]) -> None:
    """In the child: the job, with its stores wrapped; the report goes to a file."""
    opened = pipeline.storage.open_store
    with open(request["log"], "w") as log:  # noqa: PTH123
        pipeline.storage.open_store = lambda *args: KillingStore(opened(*args), request.get("kill_after"), log)  # type: ignore[assignment]
        report = run_job(load_config(request["config"]), plain=True)
        with open(request["report"], "w") as file:  # noqa: PTH123
            json.dump(report.to_json(), file)
    os._exit(report.exit_code)


def main() -> None:
    """Fork a child for each request line, answer with its wait status."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run(json.loads(line))
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"exit": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
