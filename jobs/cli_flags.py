"""Flags that several commands have, and how a command is declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

EXIT_INCOMPLETE, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 3

EXIT_CODES = "exit codes: 0 complete, 1 incomplete or failed shards, 2 wrong usage or refused, 3 interrupted, resumable"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """A command by this name: `run` gets its arguments and gives the exit code, `text` says what it does."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES)
    parser.set_defaults(command=run)
    return parser


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that make a config; every other setting by the YAML file or `--set`."""
    parser.add_argument("job", nargs="?", metavar="job.yaml", help="settings; flags go over them")
    parser.add_argument(
        "--input",
        action="append",
        metavar="URI",
        help="shards: path or s3:// URI, glob, braces {000..127}, folder, or @list; may be repeated",
    )
    parser.add_argument("--output", metavar="URI", help="place of the token shards")
    parser.add_argument("--codec", metavar="NAME_OR_URI", help="longcat, hf://owner/name, a folder, plugin:NAME, ...")
    parser.add_argument("--streams", type=name_list, metavar="semantic,acoustic")
    parser.add_argument(
        "--num-acoustic-codebooks",
        type=number_or_word,
        metavar="N|auto:residual=X",
        help="default: all; auto: for each clip the fewest that leave at most this share of its energy, e.g. 0.05",
    )
    parser.add_argument("--format", choices=["parquet", "webdataset"])
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16", "float16"])
    parser.add_argument("--carry", type=name_list, metavar="json,txt", help="sidecars to carry into the token shards")
    add_replica_flags(parser)


def add_replica_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of where a job's replicas are, and how many."""
    parser.add_argument("--executor", choices=["ray", "inline"])
    parser.add_argument("--replicas", type=number_or_word, metavar="N|auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster (default: RAY_ADDRESS, else own)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. batching.batch_s=120")


def add_resume_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of one run's life on a job."""
    parser.add_argument(
        "--redo-changed", action="store_true", default=None, help="redo inputs changed since their commit"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", default=None, help="take shards that were given up again"
    )
    parser.add_argument(
        "--allow-unsafe-store", action="store_true", default=None, help="accept a store without put-if-absent"
    )
    parser.add_argument("--plain", action="store_true", help="plain progress lines on a terminal too")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")


def name_list(text: str) -> list[str]:
    """A flag `a,b,c`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number_or_word(text: str) -> int | str:
    """A flag that is a number or a word such as `auto`."""
    return int(text) if text.lstrip("-").isdigit() else text


def seconds(text: str) -> float:
    """A flag of seconds, 0 or more. Raises `ValueError`."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def hours(text: str) -> float:
    """A flag of hours, above 0. Raises `ValueError`."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value
