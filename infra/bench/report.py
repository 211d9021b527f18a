"""What a benchmark found: figures with what they are to reach, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `at_least` or `at_most` is what it is to reach; neither where it is told for its own sake."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """In words; empty without one."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.value <= self.at_most if self.at_most is not None else None

    @property
    def shown(self) -> str:
        """Four digits that count, and the unit."""
        text = f"{self.value:,.0f}" if abs(self.value) >= 10_000 else f"{self.value:.4g}"
        return f"{text} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All of one benchmark; `details` holds what the figures were made from, such as each round's times."""

    bench: str
    figures: tuple[Figure, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""
        width = max(len(figure.name) for figure in self.figures)
        marks = {None: "", True: "reached", False: "NOT REACHED"}
        return [
            f"{figure.name:<{width}}  {figure.shown:>14}  {figure.goal:<9} {marks[figure.is_met]}".rstrip()
            for figure in self.figures
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "bench": self.bench,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "figures": [
                {
                    "name": figure.name,
                    "value": figure.value,
                    "unit": figure.unit,
                    "goal": figure.goal,
                    "is_met": figure.is_met,
                }
                for figure in self.figures
            ],
            "details": dict(self.details),
        }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and the versions that speed depends on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("voxmill", "torch", "ray", "numpy", "pyarrow", "soundfile")},
    }
