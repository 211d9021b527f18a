"""Tokenize shards with voxmill.

    python -m infra.bench.rival_ours SHARDS OUTPUT CODEC [NAME=VALUE ...]

Prints the seconds from the first shard that is handed out to the end of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from infra.bench.watched import watched_run
from jobs.options import config_of


def main() -> None:
    shards, output, codec, *settings = sys.argv[1:]
    chosen = argparse.Namespace(
        job=None, set=settings, input=[f"{shards}/"], output=output, codec=codec, executor="inline", ray_address=None
    )
    report, watched = watched_run(config_of(chosen))
    ended_s = time.perf_counter()
    assert report.exit_code == 0, report.lines()
    print(json.dumps({"work_s": ended_s - min(watched.first_submit_s.values()), "num_rows": report.counts.num_rows}))
    sys.stdout.flush()
    os._exit(0)  # as the program does


if __name__ == "__main__":
    main()
