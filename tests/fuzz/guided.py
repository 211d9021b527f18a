"""One fuzz target, guided by coverage: `python -m tests.fuzz.guided shards -max_total_time=60`.

Needs atheris, which is no dependency of the project: `pip install atheris` (Linux on x86-64). What follows the
target's name goes to libFuzzer.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pipeline", "jobs.options"]):
    from tests.fuzz.targets import COUNTS, TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)].hypothesis.fuzz_one_input  # type: ignore[attr-defined]  # put there by @given
    num_tried = 0

    def try_one(data: bytes) -> None:
        nonlocal num_tried
        target(data)
        num_tried += 1
        if num_tried % 10_000 == 0:
            sys.stderr.write(f"{dict(COUNTS)}\n")

    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
