"""The commands about a place where a job has written."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.cli_flags import EXIT_INCOMPLETE, add_command, seconds
from jobs.cli_output import emit


def add_status(commands: Any) -> None:
    """`voxmill status`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.status import status

        emit(status(arguments.output, *storage_settings()), arguments.json)
        return 0

    parser = add_command(commands, "status", run, "tell how a job stands, from its output place alone")
    parser.epilog = "exit codes: 0 when it could tell, whatever the job's state (see --json); 2 when there is no job"
    parser.add_argument("output")
    parser.add_argument("--json", action="store_true")


def add_verify(commands: Any) -> None:
    """`voxmill verify`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.verify import verify

        report = verify(arguments.output, *storage_settings())
        emit(report, arguments.json)
        return 0 if report.sound else EXIT_INCOMPLETE

    parser = add_command(
        commands, "verify", run, "read every object again: size, sha256, counts, ids, frames, keys; list orphans"
    )
    parser.add_argument("output")
    parser.add_argument("--json", action="store_true")


def add_qa(commands: Any) -> None:
    """`voxmill qa`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.qa import qa, write_page

        storage, retry = storage_settings()
        report = qa(
            arguments.output,
            num_clips=arguments.num_clips,
            seed=arguments.seed,
            storage=storage,
            retry=retry,
            codec=arguments.codec or "",
            device=arguments.device,
        )
        write_page(report, arguments.out)
        emit(report, arguments.json)
        return report.exit_code

    parser = add_command(
        commands, "qa", run, "decode a sample, score it against its sources, write a page to listen to"
    )
    parser.epilog = "exit codes: 0 when every drawn row was compared with its source; 1 when some were not; 2 refused"
    parser.add_argument("output", help="of voxmill run")
    parser.add_argument("--out", default="qa.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--num-clips", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--codec", metavar="NAME_OR_URI", help="default: the one that made the tokens")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--json", action="store_true")


def add_redo(commands: Any) -> None:
    """`voxmill redo`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.redo import redo

        emit(redo(arguments.output, arguments.shard_id, *storage_settings()), arguments.json)
        return 0

    parser = add_command(commands, "redo", run, "take committed shards back, so that the next run does them anew")
    parser.epilog = "exit codes: 0 done, 1 the store failed on the way, 2 no job or no such commit there"
    parser.add_argument("output")
    parser.add_argument("shard_id", nargs="+", help="as the names in commits/, without .json")
    parser.add_argument("--json", action="store_true")


def add_gc(commands: Any) -> None:
    """`voxmill gc`."""

    def run(arguments: argparse.Namespace) -> int:
        import time

        from jobs.gc import collect_garbage
        from jobs.options import storage_settings

        report = collect_garbage(
            arguments.output,
            *storage_settings(),
            grace_s=arguments.grace_s,
            dry_run=arguments.dry_run,
            clock=time.time,
        )
        emit(report, arguments.json)
        return 0

    parser = add_command(
        commands, "gc", run, "remove token objects that no commit names and never will; safe beside runs"
    )
    parser.epilog = (
        "exit codes: 0 done, 1 the store failed on the way, 2 no job there, or refused; run it again at will"
    )
    parser.add_argument("output")
    parser.add_argument(
        "--grace-s",
        type=seconds,
        default=86400.0,
        metavar="SECONDS",
        help="what is younger stays, since it may be of an attempt under way (default: a day)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("--json", action="store_true")
