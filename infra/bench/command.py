"""`voxmill bench NAME [flags]`: one benchmark, by its module."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from infra.bench import BENCHES
from infra.bench.report import BenchReport


def run_bench(name: str, argv: Sequence[str]) -> BenchReport:
    """Run a benchmark with its own flags. Leaves with argparse's message on a wrong one."""
    module = importlib.import_module(f"infra.bench.{name}")
    parser = argparse.ArgumentParser(
        prog=f"voxmill bench {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_flags(parser)
    report: BenchReport = module.bench(parser.parse_args(argv))
    return report


def known_benches() -> str:
    """A line for each."""
    width = max(map(len, BENCHES))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in BENCHES.items())
