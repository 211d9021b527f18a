"""`make bench`: every benchmark, each in a process of its own, and their table.

python -m infra.bench [NAME ...] [--folder build/bench]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infra.bench import BENCHES
from infra.bench.report import Figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", choices=[*BENCHES, []], help="default: all")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="each one's JSON, and the table")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in arguments.name or BENCHES:
        print(f"bench {name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "jobs.cli", "bench", name, "--json"]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
        else:
            (arguments.folder / f"{name}.json").write_text(done.stdout, encoding="utf-8")
    stored = [arguments.folder / f"{name}.json" for name in BENCHES]
    text = table(json.loads(path.read_text(encoding="utf-8")) for path in stored if path.exists())
    (arguments.folder / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")
    for name in failed:
        print(f"bench {name} failed; see its message above", file=sys.stderr)
    return 1 if failed else 0


def table(reports: Iterable[dict[str, Any]]) -> str:
    """Markdown, with the machine and the dates above it."""
    found = list(reports)
    rows = [
        f"| {report['bench']} | {figure['name']} | {Figure(figure['name'], figure['value'], figure['unit']).shown} "
        f"| {figure['goal']} | {'' if figure['is_met'] is None else 'yes' if figure['is_met'] else '**no**'} |"
        for report in found
        for figure in report["figures"]
    ]
    places = sorted({(report["date"], *_place(report["machine"])) for report in found})
    head = [f"{date}: {processor}, {cores} cores, torch {torch}" for date, processor, cores, torch in places]
    columns = ["| bench | figure | value | to reach | reached |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, "", *columns, *rows]) + "\n"


def _place(machine: dict[str, Any]) -> tuple[str, int, str]:
    return machine["processor"], machine["num_cores"], machine["torch"]


if __name__ == "__main__":
    sys.exit(main())
