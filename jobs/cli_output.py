"""What the commands say: lines that no terminal can be misled by, and reports as text or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from jobs.terminal import visible


def say(line: str) -> None:
    """To stderr."""
    sys.stderr.write(f"voxmill: {visible(line)}\n")


def print_line(line: str) -> None:
    """To stdout, for people and programs."""
    try:
        sys.stdout.write(visible(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left; the exit code still tells how it went.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (until the process ends)


def emit(report: Any, as_json: bool) -> None:
    """A report as JSON, or as its own lines."""
    if as_json:
        print_line(json.dumps(report.to_json(), indent=1))
    else:
        for line in report.lines():
            print_line(line)
