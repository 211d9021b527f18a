"""The commands. Thin: each parses its flags and calls the file that has its substance, imported only then."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any, NoReturn

from jobs.terminal import visible

EXIT_INCOMPLETE, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 3

INTERRUPTED = "interrupted; the same command again goes on where this one stopped"

EXIT_CODES = "exit codes: 0 complete, 1 incomplete or failed shards, 2 wrong usage or refused, 3 interrupted, resumable"


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
        _say(INTERRUPTED)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One clear message for what is ours or the machine's; a traceback for what is a bug."""
    from codec.base import CodecError
    from pipeline.errors import RefusedError, VoxmillError

    if not isinstance(error, (CodecError, VoxmillError, OSError)):
        raise error
    _say(f"{type(error).__name__}: {error}")
    return EXIT_REFUSED if isinstance(error, (CodecError, RefusedError)) else EXIT_INCOMPLETE


def _say(line: str) -> None:
    sys.stderr.write(f"voxmill: {visible(line)}\n")


def _print(line: str) -> None:
    try:
        sys.stdout.write(visible(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left; the exit code still tells how it went.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (until the process ends)


def _emit(report: Any, as_json: bool) -> None:
    """A report as JSON, or as its own lines."""
    if as_json:
        _print(json.dumps(report.to_json(), indent=1))
    else:
        for line in report.lines():
            _print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voxmill",
        description="Tokenize speech datasets: WebDataset audio shards in, semantic and acoustic token shards out.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_pack(commands)
    _add_plan(commands)
    _add_run(commands)
    _add_decode(commands)
    _add_status(commands)
    _add_verify(commands)
    _add_qa(commands)
    _add_redo(commands)
    _add_gc(commands)
    _add_bench(commands)
    _add_convert(commands)
    _add_doctor(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading metadata takes time that `--help` has not."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        _print(f"voxmill {version('voxmill')}")
        parser.exit()


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES)
    parser.set_defaults(command=run)
    return parser


def _add_job_flags(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--streams", type=_list, metavar="semantic,acoustic")
    parser.add_argument(
        "--num-acoustic-codebooks",
        type=_number_or_word,
        metavar="N|auto:residual=X",
        help="default: all; auto: for each clip the fewest that leave at most this share of its energy, e.g. 0.05",
    )
    parser.add_argument("--format", choices=["parquet", "webdataset"])
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16", "float16"])
    parser.add_argument("--carry", type=_list, metavar="json,txt", help="sidecars to carry into the token shards")
    _add_replica_flags(parser)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _add_demo(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.demo import demo

        return demo(arguments.output, force=arguments.force)

    parser = _command(commands, "demo", run, "pack, tokenize and verify ten clips of human speech, on a local Ray")
    parser.add_argument("--output", default="demo-output", metavar="FOLDER")
    parser.add_argument("--force", action="store_true", help="replace an earlier demo's folder")


def _add_pack(commands: Any) -> None:
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
        _emit(report, arguments.json)
        return 0

    parser = _command(
        commands, "pack", run, "pack a folder of audio files, or a JSONL manifest, into WebDataset shards"
    )
    parser.add_argument("source", help="a folder, or a manifest.jsonl with audio_filepath, text, ...")
    parser.add_argument("output", help="folder or s3:// URI for the shards")
    parser.add_argument("--shard-mb", type=int, default=500, metavar="MB", help="about so large (default: %(default)s)")
    parser.add_argument("--samples-max", type=int, default=100_000, metavar="N", help="of one shard")
    parser.add_argument("--prefix", default="shard", help="shards are PREFIX-000000.tar, ... (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write over shards of the same prefix")
    parser.add_argument("--json", action="store_true")


def _add_plan(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import config_of

        config = config_of(arguments)
        if arguments.calibrate or arguments.deadline_h is not None:
            from jobs.calibrate import calibrated_plan

            _emit(calibrated_plan(config, deadline_h=arguments.deadline_h), arguments.json)
        else:
            from jobs.plan import plan

            _emit(plan(config), arguments.json)
        return 0

    parser = _command(
        commands, "plan", run, "tell shards, bytes, estimated hours, tokens and output size; writes nothing"
    )
    _add_job_flags(parser)
    parser.add_argument(
        "--calibrate", action="store_true", help="encode the first clips here for a minute, and tell the run's hours"
    )
    parser.add_argument(
        "--deadline-h", type=_hours, metavar="H", help="tell how many replicas it takes; calibrates as well"
    )
    parser.add_argument("--json", action="store_true")


def _add_run(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import config_of
        from jobs.run import run_job

        with redirect_stdout(sys.stderr):  # Ray prints there when a node dies; stdout is for the report alone
            report = run_job(config_of(arguments), plain=arguments.plain or arguments.json)
        _emit(report, arguments.json)
        return report.exit_code

    parser = _command(commands, "run", run, "tokenize; run again to resume")
    _add_job_flags(parser)
    _add_resume_flags(parser)


def _add_resume_flags(parser: argparse.ArgumentParser) -> None:
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


def _add_replica_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of where a job's replicas are, and how many."""
    parser.add_argument("--executor", choices=["ray", "inline"])
    parser.add_argument("--replicas", type=_number_or_word, metavar="N|auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster (default: RAY_ADDRESS, else own)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. batching.batch_s=120")


def _add_decode(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import decode_config_of

        config = decode_config_of(arguments)
        if arguments.keys is not None:
            from jobs.decode_keys import decode_keys, read_keys
            from pipeline.errors import ConfigError

            given = [name for name in ("format", "executor", "replicas") if getattr(arguments, name) is not None]
            if given:
                raise ConfigError(f"--keys writes files at once, without a job: leave out --{', --'.join(given)}")
            found = decode_keys(config, read_keys(arguments.keys))
            _emit(found, arguments.json)
            return found.exit_code
        from jobs.decode import decode_job

        with redirect_stdout(sys.stderr):
            report = decode_job(config, plain=arguments.plain or arguments.json)
        _emit(report, arguments.json)
        return report.exit_code

    parser = _command(commands, "decode", run, "tokens back to audio; run again to resume")
    parser.add_argument("tokens", metavar="TOKENS", help="output place of a `voxmill run`")
    parser.add_argument("--out", dest="output", required=True, metavar="URI", help="place of the audio")
    parser.add_argument(
        "--to", dest="sample_rate_hz", type=int, required=True, metavar="HZ", help="16000 or 24000 for longcat"
    )
    parser.add_argument("--streams", type=_list, metavar="semantic,acoustic", help="default: all that there are")
    parser.add_argument("--num-acoustic-codebooks", type=int, metavar="N", help="default: all that there are")
    parser.add_argument("--format", choices=["shards", "files"], help="WebDataset tars (default), or a file a key")
    parser.add_argument("--audio", choices=["flac", "wav"], help="default: flac")
    parser.add_argument("--codec", metavar="NAME_OR_URI", help="default: the one that made the tokens")
    parser.add_argument(
        "--keys", metavar="K1,K2|@LIST", help="only these, as files OUT/KEY.flac, at once and without a job"
    )
    _add_replica_flags(parser)
    _add_resume_flags(parser)


def _add_status(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.status import status

        _emit(status(arguments.output, *storage_settings()), arguments.json)
        return 0

    parser = _command(commands, "status", run, "tell how a job stands, from its output place alone")
    parser.epilog = "exit codes: 0 when it could tell, whatever the job's state (see --json); 2 when there is no job"
    parser.add_argument("output")
    parser.add_argument("--json", action="store_true")


def _add_verify(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.verify import verify

        report = verify(arguments.output, *storage_settings())
        _emit(report, arguments.json)
        return 0 if report.sound else EXIT_INCOMPLETE

    parser = _command(
        commands, "verify", run, "read every object again: size, sha256, counts, ids, frames, keys; list orphans"
    )
    parser.add_argument("output")
    parser.add_argument("--json", action="store_true")


def _add_qa(commands: Any) -> None:
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
        _emit(report, arguments.json)
        return report.exit_code

    parser = _command(commands, "qa", run, "decode a sample, score it against its sources, write a page to listen to")
    parser.epilog = "exit codes: 0 when every drawn row was compared with its source; 1 when some were not; 2 refused"
    parser.add_argument("output", help="of voxmill run")
    parser.add_argument("--out", default="qa.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--num-clips", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--codec", metavar="NAME_OR_URI", help="default: the one that made the tokens")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--json", action="store_true")


def _add_redo(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.options import storage_settings
        from jobs.redo import redo

        _emit(redo(arguments.output, arguments.shard_id, *storage_settings()), arguments.json)
        return 0

    parser = _command(commands, "redo", run, "take committed shards back, so that the next run does them anew")
    parser.epilog = "exit codes: 0 done, 1 the store failed on the way, 2 no job or no such commit there"
    parser.add_argument("output")
    parser.add_argument("shard_id", nargs="+", help="as the names in commits/, without .json")
    parser.add_argument("--json", action="store_true")


def _add_gc(commands: Any) -> None:
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
        _emit(report, arguments.json)
        return 0

    parser = _command(commands, "gc", run, "remove token objects that no commit names and never will; safe beside runs")
    parser.epilog = (
        "exit codes: 0 done, 1 the store failed on the way, 2 no job there, or refused; run it again at will"
    )
    parser.add_argument("output")
    parser.add_argument(
        "--grace-s",
        type=_seconds,
        default=86400.0,
        metavar="SECONDS",
        help="what is younger stays, since it may be of an attempt under way (default: a day)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("--json", action="store_true")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _hours(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _add_bench(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from infra.bench import BENCHES
        from infra.bench.command import known_benches, run_bench

        if arguments.name not in BENCHES:
            _say(f"found bench {arguments.name!r}; there are:\n{known_benches()}")
            return EXIT_REFUSED
        flags = [flag for flag in arguments.flags if flag != "--json"]
        with redirect_stdout(sys.stderr):
            report = run_bench(arguments.name, flags)
        _emit(report, arguments.json or "--json" in arguments.flags)
        return 0

    parser = _command(commands, "bench", run, "measure this machine; ratios within one run, JSON with --json")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("name", help="codec, padding, feed, pipeline, ...; a wrong one lists them all")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of the one named; see `voxmill bench NAME --help`")


def _add_convert(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.convert import convert_checkpoint
        from jobs.options import storage_settings
        from pipeline.storage import store_options

        source, (storage, _) = arguments.source, storage_settings()
        options = store_options(source, storage) if source.startswith("s3://") else {}
        _emit(convert_checkpoint(source, arguments.output, options), arguments.json)
        return 0

    parser = _command(commands, "convert", run, "turn LongCat's published files into a folder for transformers")
    parser.epilog = "exit codes: 0 done, 1 the source or the disk failed on the way, 2 no such checkpoint, or refused"
    parser.add_argument("source", help="longcat, hf://owner/name, a folder or s3:// URI with the published files")
    parser.add_argument("output", help="a new folder")
    parser.add_argument("--json", action="store_true")


def _add_doctor(commands: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from jobs.doctor import run_doctor

        return run_doctor(arguments.uri, as_json=arguments.json)

    parser = _command(commands, "doctor", run, "check this machine, and places if given")
    parser.add_argument("uri", nargs="*", help="inputs or outputs to reach")
    parser.add_argument("--json", action="store_true")


if __name__ == "__main__":
    entry()
