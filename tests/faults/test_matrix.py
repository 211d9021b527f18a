"""The README's table has exactly the rows that there are."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from tests.faults.matrix import GROUPS, Row

README = Path(__file__).parents[2] / "README.md"


def rows_that_there_are() -> set[Row]:
    """Of every test with a row's mark."""
    modules = [importlib.import_module(f"tests.faults.{path.stem}") for path in Path(__file__).parent.glob("test_*.py")]
    tests = [test for module in modules for name, test in vars(module).items() if name.startswith("test_")]
    marks = [mark for test in tests for mark in getattr(test, "pytestmark", [])]
    return {Row(*mark.args) for mark in marks if mark.name == "fault_row"}


def rows_in_readme() -> set[Row]:
    lines = [line for line in README.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:4]] for line in lines]
    return {Row(*row) for row in cells if row[0] in GROUPS}


def test_the_readme_shows_every_row():
    assert rows_in_readme() == rows_that_there_are()
