"""The fault matrix: a row is a test that injects one fault into a real run and lets one checker judge what is left.

    @row("tar", "cut in a header", "the shard ends 100 bytes into its third header")
    def test_cut_in_a_header(ground):
        ground.put({"cut.tar": CLEAN[:5000]})
        ended = ground.run()
        ground.check(ended, exit_code=1, failed={"cut.tar": "ends inside"})

A row is quick (a second or two, part of `make test`) or `heavy=True` (`make faults` alone). `ground` (see `ground.py`)
runs the command in a process of its own and has the checker; several tests may share a row by the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

GROUPS = ("tar", "audio", "hostile", "store", "processes", "people", "random")

Test = TypeVar("Test", bound=Callable[..., object])


@dataclass(frozen=True, order=True)
class Row:
    """One fault, and how it is injected."""

    group: str
    fault: str
    injected: str


@dataclass
class Tally:
    """What the tests of a row came to."""

    num_passed: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    retries: list[str] = field(default_factory=list)
    num_redone: int = 0

    @property
    def survived(self) -> str:
        if self.num_failed:
            return "NO"
        return "yes" if self.num_passed else "not run"


def row(group: str, fault: str, injected: str, *, heavy: bool = False) -> Callable[[Test], Test]:
    """Make a test a row of the matrix."""
    assert group in GROUPS, f"{group} is none of {GROUPS}"

    def mark(test: Test) -> Test:
        marked = pytest.mark.fault_row(group, fault, injected)(test)
        return pytest.mark.heavy(marked) if heavy else marked

    return mark


def table(tallies: Mapping[Row, Tally]) -> Iterable[str]:
    """The matrix as a Markdown table."""
    yield "| | fault | injected how | survived | retries | shards redone |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in sorted(tallies, key=lambda row: (GROUPS.index(row.group), row)):
        tally = tallies[one]
        retries = ", ".join(dict.fromkeys(tally.retries)) or "0"
        cells = (one.group, one.fault, one.injected, tally.survived, retries, str(tally.num_redone))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
