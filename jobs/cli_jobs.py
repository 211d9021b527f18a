"""The commands that make or use a job: each parses its flags and calls the file that has its substance."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from typing import Any

from jobs.cli_flags import add_command, add_job_flags, add_replica_flags, add_resume_flags, hours, name_list
from jobs.cli_output import emit

OF_A_JOB = ("format", "executor", "replicas", "ray_address", "redo_changed", "retry_failed", "allow_unsafe_store")
"""Flags of `voxmill decode` that mean nothing beside `--keys`."""


def add_demo(commands: Any) -> None:
    """`voxmill demo`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.demo import demo

        return demo(arguments.output, force=arguments.force)

    parser = add_command(commands, "demo", run, "pack, tokenize and verify ten clips of human speech, on a local Ray")
    parser.add_argument("--output", default="demo-output", metavar="FOLDER")
    parser.add_argument("--force", action="store_true", help="replace an earlier demo's folder")


def add_pack(commands: Any) -> None:
    """`voxmill pack`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.pack import pack
        from pipeline.storage import Stores

        report = pack(
            arguments.source,
            arguments.output,
            shard_bytes=arguments.shard_mb * 1_000_000,
            samples_max=arguments.samples_max,
            prefix=arguments.prefix,
            store_of=Stores(*storage_settings()),
            force=arguments.force,
        )
        emit(report, arguments.json)
        return 0

    parser = add_command(
        commands, "pack", run, "pack a folder of audio files, or a JSONL manifest, into WebDataset shards"
    )
    parser.add_argument("source", help="a folder, or a manifest.jsonl with audio_filepath, text, ...")
    parser.add_argument("output", help="folder or s3:// URI for the shards")
    parser.add_argument("--shard-mb", type=int, default=500, metavar="MB", help="about so large (default: %(default)s)")
    parser.add_argument("--samples-max", type=int, default=100_000, metavar="N", help="of one shard")
    parser.add_argument("--prefix", default="shard", help="shards are PREFIX-000000.tar, ... (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write over shards of the same prefix")
    parser.add_argument("--json", action="store_true")


def add_plan(commands: Any) -> None:
    """`voxmill plan`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import config_of

        config = config_of(arguments)
        if arguments.calibrate or arguments.deadline_h is not None:
            from jobs.calibrate import calibrated_plan

            emit(calibrated_plan(config, deadline_h=arguments.deadline_h), arguments.json)
        else:
            from jobs.plan import plan

            emit(plan(config), arguments.json)
        return 0

    parser = add_command(
        commands, "plan", run, "tell shards, bytes, estimated hours, tokens and output size; writes nothing"
    )
    add_job_flags(parser)
    parser.add_argument(
        "--calibrate", action="store_true", help="encode the first clips here for a minute, and tell the run's hours"
    )
    parser.add_argument(
        "--deadline-h", type=hours, metavar="H", help="tell how many replicas it takes; calibrates as well"
    )
    parser.add_argument("--json", action="store_true")


def add_run(commands: Any) -> None:
    """`voxmill run`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import config_of
        from jobs.run import run_job

        with redirect_stdout(sys.stderr):  # Ray prints there when a node dies; stdout is for the report alone
            report = run_job(config_of(arguments), plain=arguments.plain or arguments.json)
        emit(report, arguments.json)
        return report.exit_code

    parser = add_command(commands, "run", run, "tokenize; run again to resume")
    add_job_flags(parser)
    add_resume_flags(parser)


def add_decode(commands: Any) -> None:
    """`voxmill decode`."""

    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import decode_config_of

        config = decode_config_of(arguments)
        if arguments.keys is not None:
            from jobs.decode_keys import decode_keys, read_keys
            from pipeline.errors import ConfigError

            given = [name for name in OF_A_JOB if getattr(arguments, name) is not None]
            if given:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
                raise ConfigError(f"--keys writes files at once, without a job: leave out {flags}")
            found = decode_keys(config, read_keys(arguments.keys))
            emit(found, arguments.json)
            return found.exit_code
        from jobs.decode import decode_job

        with redirect_stdout(sys.stderr):
            report = decode_job(config, plain=arguments.plain or arguments.json)
        emit(report, arguments.json)
        return report.exit_code

    parser = add_command(commands, "decode", run, "tokens back to audio; run again to resume")
    parser.add_argument("tokens", metavar="TOKENS", help="output place of a `voxmill run`")
    parser.add_argument("--out", dest="output", required=True, metavar="URI", help="place of the audio")
    parser.add_argument(
        "--to", dest="sample_rate_hz", type=int, required=True, metavar="HZ", help="16000 or 24000 for longcat"
    )
    parser.add_argument("--streams", type=name_list, metavar="semantic,acoustic", help="default: all that there are")
    parser.add_argument("--num-acoustic-codebooks", type=int, metavar="N", help="default: all that there are")
    parser.add_argument("--format", choices=["shards", "files"], help="WebDataset tars (default), or a file a key")
    parser.add_argument("--audio", choices=["flac", "wav"], help="default: flac")
    parser.add_argument("--codec", metavar="NAME_OR_URI", help="default: the one that made the tokens")
    parser.add_argument(
        "--keys", metavar="K1,K2|@LIST", help="only these, as files OUT/KEY.flac, at once and without a job"
    )
    add_replica_flags(parser)
    add_resume_flags(parser)
