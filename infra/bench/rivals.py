"""The same shards tokenized by voxmill, by Ray Data, and by `webdataset` with a torch DataLoader.

    voxmill bench rivals [--num-shards 8] [--audio-s 3000] [--rounds 3]

Once with a codec that costs nothing (`calibrated:ids=zero`: all that is around a codec), once with the small random
LongCat of the golden tests, float32 on the processor. All sides decode with soundfile and the reference's resampler,
and write key and tokens to parquet on the local disk. The rivals are the scripts `rival_ray_data.py` and
`rival_dataloader.py`: idiomatic, batches of 16 clips in the order in which they come, one actor or loader worker a
core; they check, record and resume nothing. voxmill is one replica in one process with a decoding process a core; all
cores encode, as in the DataLoader's script.

Figures are a rival's seconds over voxmill's: medians of rounds in which all sides run in turn, each in a process of its
own; `with start` from the start of that process to its end, `without` from the first sample (for Ray Data: from the
first actor that has its codec) to the end of the writing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory

import soundfile

from codec.base import CodecError
from infra.bench.report import BenchReport, Figure
from infra.bench.shards import write_shard
from infra.bench.speech import PACKAGES, speech_files

GOLDEN = Path(__file__).parents[2] / "tests" / "data" / "longcat-golden"
CLIP_S_MIN, CLIP_S_MAX = 0.1, 30.0
"""The plain scripts put no empty clip aside, and cut none in segments."""

RIVALS = {"Ray Data": "rival_ray_data", "a DataLoader": "rival_dataloader"}
OURS = "voxmill"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-shards", type=int, default=8)
    parser.add_argument("--audio-s", type=float, default=3_000, help="of all shards, for the codec of no cost")
    parser.add_argument("--golden-share", type=float, default=0.1, help="of that audio, for the small LongCat")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--package", default=PACKAGES[1], help="of Debian's speech (default: %(default)s)")
    parser.add_argument("--speech", metavar="FOLDER", help="audio files of your own instead")


def bench(arguments: argparse.Namespace) -> BenchReport:
    files = speech_files(arguments.package, folder=arguments.speech)
    seconds = {file: soundfile.info(file).duration for file in files}
    files = [file for file in files if CLIP_S_MIN <= seconds[file] <= CLIP_S_MAX]
    mean_s = sum(seconds[file] for file in files) / len(files)
    figures, details = [], {}
    codecs = {"no codec": ("calibrated:ids=zero", 1.0), "a small LongCat": (str(GOLDEN), arguments.golden_share)}
    for label, (codec, share) in codecs.items():
        num_clips = round(arguments.audio_s * share / mean_s / arguments.num_shards)
        with TemporaryDirectory(prefix="voxmill-bench-") as folder:
            shards = Path(folder, "shards")
            shards.mkdir()
            for index in range(arguments.num_shards):
                first = index * num_clips % len(files)
                write_shard(shards / f"{index:03d}.tar", files[first:] + files[:first], num_clips=num_clips)
            rounds = [_round(shards, Path(folder), codec) for _ in range(arguments.rounds)]
        for rival in RIVALS:
            for kind, name in (("work_s", "without start"), ("whole_s", "with start")):
                ratio = median(sides[rival][kind] / sides[OURS][kind] for sides in rounds)
                figures.append(Figure(f"times as fast as {rival}, {label}, {name}", ratio, at_least=1.0))
        details[label] = {"rounds": rounds, "num_clips": num_clips * arguments.num_shards, "mean_clip_s": mean_s}
    return BenchReport("rivals", tuple(figures), details)


def _round(shards: Path, folder: Path, codec: str) -> dict[str, dict[str, float]]:
    """Each side's seconds."""
    num_cores = len(os.sched_getaffinity(0))
    settings = [f"decoding.workers={num_cores}", f"cpu_threads={num_cores}"]
    sides = {OURS: _side("rival_ours", shards, folder, codec, settings)}
    for rival, script in RIVALS.items():
        sides[rival] = _side(script, shards, folder, codec)
    if len({side["num_rows"] for side in sides.values()}) > 1:
        raise CodecError(f"the sides wrote different numbers of rows: {sides}")
    return sides


def _side(script: str, shards: Path, folder: Path, codec: str, settings: Sequence[str] = ()) -> dict[str, float]:
    output = folder / script
    started_s = time.perf_counter()
    command = [sys.executable, "-m", f"infra.bench.{script}", str(shards), str(output), codec, *settings]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    whole_s = time.perf_counter() - started_s
    if done.returncode:
        raise CodecError(f"{script} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    rmtree(output)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"whole_s": whole_s}
