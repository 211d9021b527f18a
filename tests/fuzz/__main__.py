"""`make fuzz`: every target for its share of a set time, with fresh inputs; ends at the first that breaks a promise.

What was found is printed as it may stand in an `@example` of the target, so that it is tried ever after.
"""

from __future__ import annotations

import argparse
import sys
import time

from hypothesis import HealthCheck, settings

from tests.fuzz.targets import COUNTS, TARGETS

ROUND_EXAMPLES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    arguments = parser.parse_args()
    fresh = settings(
        max_examples=ROUND_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    targets = {name: TARGETS[name] for name in arguments.target or TARGETS}
    for name, target in targets.items():
        until_s = time.monotonic() + arguments.seconds / len(targets)
        run = fresh(target)
        while time.monotonic() < until_s:
            run()
        total = sum(count for what, count in COUNTS.items() if what.split()[0] == name)
        sys.stdout.write(f"{name}: {total} inputs\n")
        for what, count in sorted(COUNTS.items()):
            if what.split()[0] == name:
                sys.stdout.write(f"  {what.removeprefix(name).strip()}: {count}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
