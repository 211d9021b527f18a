"""`make chaos`: many faults at once on real processes, then the judgement; exits non-zero with the evidence."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.chaos import chaos
from tests.faults.ground import lab
from tests.pipeline.test_interleavings import walk
from tests.servers import moto_server

RAY_S_MIN = 120.0
"""Shorter runs have none on Ray: its start takes ten seconds."""

WALKS_SHARE = 0.05
"""Of the time goes to random interleavings in memory."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    say(f"seed {seed}")
    num_walks, until_s = 0, time.monotonic() + WALKS_SHARE * arguments.seconds
    while time.monotonic() < until_s:
        try:
            walk(random.Random(seed + num_walks))
        except AssertionError:
            say(f"VIOLATED: by the interleaving of seed {seed + num_walks}")
            raise
        num_walks += 1
    say(f"{num_walks} random interleavings")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with lab(folder) as opened, moto_server() as server:
        seconds = arguments.seconds * (1 - WALKS_SHARE)
        with_ray = arguments.seconds >= RAY_S_MIN
        outcome = chaos(opened, server, folder, seconds=seconds, seed=seed, with_ray=with_ray)
    for what, count in sorted(outcome.counts.items()):
        say(f"{what}: {count}")
    for violation in outcome.violations:
        say(f"VIOLATED: {violation}")
    say(
        f"{len(outcome.violations)} violations; seed {seed}" + (f"; evidence in {folder}" if outcome.violations else "")
    )
    return 1 if outcome.violations else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
