"""The program `voxmill`: one command of `cli_jobs`, `cli_places` or `cli_tools`, and its exit code.

Commands are thin: each parses its flags and calls the file that has its substance, imported only then.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from jobs.cli_flags import EXIT_CODES, EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_REFUSED
from jobs.cli_jobs import add_decode, add_demo, add_pack, add_plan, add_run
from jobs.cli_output import print_line, say
from jobs.cli_places import add_gc, add_qa, add_redo, add_status, add_verify
from jobs.cli_tools import add_bench, add_convert, add_doctor

INTERRUPTED = "interrupted; the same command again goes on where this one stopped"


def entry() -> NoReturn:
    """The program: runs one command and leaves with its exit code.

    Not by way of the interpreter's own end: a native thread that is still busy then (a shard left behind by a second
    Ctrl-C, a reader of Arrow's) aborts the process, and the exit code is lost.
    """
    signal.signal(signal.SIGTERM, _leave)  # a run has its own way with it while it lasts
    sys.unraisablehook = _complain
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the outcome stands
    if (ray := sys.modules.get("ray")) is not None:
        from jobs.interrupts import sigterm_kept

        with sigterm_kept():
            ray.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def _complain(unraisable: sys.UnraisableHookArgs) -> None:
    """Of an error in a destructor; not where an interrupt left an object half made, so that it lacks attributes."""
    interrupts = sys.modules.get("jobs.interrupts")
    is_half_made = isinstance(unraisable.exc_value, AttributeError)
    if interrupts is None or not (interrupts.Interrupts.any_raised and is_half_made):
        sys.__unraisablehook__(unraisable)


def _leave(_number: int, _frame: object) -> NoReturn:
    """At once: an exception could come up in a destructor, where Python swallows it."""
    os.write(sys.stderr.fileno(), f"voxmill: {INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:
        say(INTERRUPTED)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One clear message for what is ours or the machine's; a traceback for what is a bug."""
    from codec.base import CodecError
    from pipeline.errors import RefusedError, VoxmillError

    if not isinstance(error, (CodecError, VoxmillError, OSError)):
        raise error
    say(f"{type(error).__name__}: {error}")
    return EXIT_REFUSED if isinstance(error, (CodecError, RefusedError)) else EXIT_INCOMPLETE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voxmill",
        description="Tokenize speech datasets: WebDataset audio shards in, semantic and acoustic token shards out.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_demo(commands)
    add_pack(commands)
    add_plan(commands)
    add_run(commands)
    add_decode(commands)
    add_status(commands)
    add_verify(commands)
    add_qa(commands)
    add_redo(commands)
    add_gc(commands)
    add_bench(commands)
    add_convert(commands)
    add_doctor(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading metadata takes time that `--help` has not."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print_line(f"voxmill {version('voxmill')}")
        parser.exit()


if __name__ == "__main__":
    entry()
