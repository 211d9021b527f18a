"""The commands beside jobs: measuring, converting a checkpoint, checking a machine."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from typing import Any

from jobs.cli_flags import EXIT_REFUSED, add_command
from jobs.cli_output import emit, say


def add_bench(commands: Any) -> None:
    """`voxmill bench`."""

    def run(arguments: argparse.Namespace) -> int:
        from infra.bench import BENCHES
        from infra.bench.command import known_benches, run_bench

        if arguments.name not in BENCHES:
            say(f"found bench {arguments.name!r}; there are:\n{known_benches()}")
            return EXIT_REFUSED
        flags = [flag for flag in arguments.flags if flag != "--json"]
        with redirect_stdout(sys.stderr):
            report = run_bench(arguments.name, flags)
        emit(report, arguments.json or "--json" in arguments.flags)
        return 0

    parser = add_command(commands, "bench", run, "measure this machine; ratios within one run, JSON with --json")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("name", help="codec, padding, feed, pipeline, ...; a wrong one lists them all")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of the one named; see `voxmill bench NAME --help`")


def add_convert(commands: Any) -> None:
    """`voxmill convert`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.convert import convert_checkpoint
        from jobs.options import storage_settings
        from pipeline.storage import store_options

        source, (storage, _) = arguments.source, storage_settings()
        options = store_options(source, storage) if source.startswith("s3://") else {}
        emit(convert_checkpoint(source, arguments.output, options), arguments.json)
        return 0

    parser = add_command(commands, "convert", run, "turn LongCat's published files into a folder for transformers")
    parser.epilog = "exit codes: 0 done, 1 the source or the disk failed on the way, 2 no such checkpoint, or refused"
    parser.add_argument("source", help="longcat, hf://owner/name, a folder or s3:// URI with the published files")
    parser.add_argument("output", help="a new folder")
    parser.add_argument("--json", action="store_true")


def add_doctor(commands: Any) -> None:
    """`voxmill doctor`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.doctor import run_doctor

        return run_doctor(arguments.uri, as_json=arguments.json)

    parser = add_command(commands, "doctor", run, "check this machine, and places if given")
    parser.add_argument("uri", nargs="*", help="inputs or outputs to reach")
    parser.add_argument("--json", action="store_true")
