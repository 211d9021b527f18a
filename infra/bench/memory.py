"""Peak memory of a replica on a large shard over its peak on a small one.

    voxmill bench memory [--small-mb 40] [--large-mb 4000] [--codec URI]

Two shards of the same human speech are tokenized, each by a replica in a process of its own (the inline executor). The
peak is the largest resident size that the kernel has seen of that process (VmHWM); decoding processes, which have a
limit of their own, and the page cache do not count.

The small shard must fill all that a large one fills, or the two would be compared for what they are, not for what
grows. So the speech is of short files of some 30 kB, of which 40 MB make more than a row group
(`writing.row_group_rows`); the codec costs enough to stay behind the reading, so that all windows are full; and the
small shard is made larger than `--small-mb` where its audio is less than that of the windows that a shard may hold at
once (`batching.window_s`, `batching.windows_in_flight`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import soundfile

from infra.bench.report import BenchReport, Figure
from infra.bench.shards import write_shard
from infra.bench.speech import PACKAGES, speech_files
from pipeline.settings import BatchingConfig

RATIO_MAX = 1.05

REPLICA = """
import json, sys
from jobs.run import run_job
from pipeline.config import load_config
report = run_job(load_config(json.loads(sys.argv[1])), plain=True)
assert report.exit_code == 0, report.lines()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"peak_kb": int(status["VmHWM"].split()[0]), "audio_s": report.counts.audio_s,
                  "num_rows": report.counts.num_rows}))
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small-mb", type=int, default=40)
    parser.add_argument("--large-mb", type=int, default=4000)
    parser.add_argument("--codec", default="calibrated:cost_s=0.0005,per=audio_s,ids=zero")
    parser.add_argument("--package", default=PACKAGES[1], help="of Debian's speech (default: %(default)s)")
    parser.add_argument("--speech", metavar="FOLDER", help="audio files of your own instead")


def bench(arguments: argparse.Namespace) -> BenchReport:
    files = speech_files(arguments.package, folder=arguments.speech)
    small_bytes = max(arguments.small_mb * 1_000_000, _bytes_that_fill(files))
    large_bytes = max(arguments.large_mb * 1_000_000, small_bytes)
    with TemporaryDirectory(prefix="voxmill-bench-") as folder:
        small = _peak(files, small_bytes, Path(folder), arguments.codec)
        large = _peak(files, large_bytes, Path(folder), arguments.codec)
    name = f"peak memory on a shard of {large_bytes / 1e6:.0f} MB over one of {small_bytes / 1e6:.0f} MB"
    ratio = large["peak_kb"] / small["peak_kb"]
    return BenchReport("memory", (Figure(name, ratio, at_most=RATIO_MAX),), {"small": small, "large": large})


def _bytes_that_fill(files: list[Path]) -> int:
    """Bytes of a shard of these files whose audio fills every window that a shard holds, and a few batches more."""
    batching = BatchingConfig()
    num_windows = batching.windows_in_flight + 3  # one gathered, one in the gatherer's hand, one encoded
    audio_s: float = sum(soundfile.info(file).duration for file in files)
    num_bytes = sum(file.stat().st_size + 1024 for file in files)
    return round(num_windows * batching.window_s * num_bytes / audio_s)


def _peak(files: list[Path], num_bytes: int, folder: Path, codec: str) -> dict[str, Any]:
    """Tokenize one shard of so many bytes by one replica."""
    shard, output = folder / f"{num_bytes}.tar", folder / f"{num_bytes}"
    write_shard(shard, files, num_bytes=num_bytes)
    config = {"input": str(shard), "output": str(output), "codec": codec, "executor": "inline"}
    command = [sys.executable, "-c", REPLICA, json.dumps(config)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = {"shard_bytes": shard.stat().st_size, **json.loads(done.stdout)}
    shard.unlink()
    return found
