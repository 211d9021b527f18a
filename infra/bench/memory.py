"""Peak memory of a replica on a shard, and on one many times larger.

    python infra/bench/memory.py [--small-mb 40] [--factor 50] [--codec calibrated:]

Makes two shards of the same human speech under a temporary folder, tokenizes each in a process of its own (the inline
executor: one replica), and prints both peaks (VmHWM of the replica, decoding processes apart) and their ratio as JSON.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

CLIPS = sorted((Path(__file__).parents[2] / "tests" / "data" / "pocketsphinx").glob("*.flac"))

REPLICA = """
import json, sys
from jobs.run import run_job
from pipeline.config import load_config
report = run_job(load_config(json.loads(sys.argv[1])), plain=True)
assert report.exit_code == 0, report.lines()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"peak_kb": int(status["VmHWM"].split()[0]), "audio_s": report.counts.audio_s}))
"""


def make_shard(path: Path, num_bytes: int) -> None:
    """Human speech over and over, under new keys, until the shard is so large."""
    contents = [clip.read_bytes() for clip in CLIPS]
    with tarfile.open(path, "w") as tar:
        for index in itertools.count():
            if tar.offset >= num_bytes:
                return
            member = tarfile.TarInfo(f"clip-{index:07d}.flac")
            member.size = len(contents[index % len(contents)])
            tar.addfile(member, io.BytesIO(contents[index % len(contents)]))


def peak(shard: Path, output: Path, codec: str) -> dict[str, float]:
    """Run one replica on one shard."""
    config = {"input": str(shard), "output": str(output), "codec": codec, "executor": "inline"}
    command = [sys.executable, "-c", REPLICA, json.dumps(config)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small-mb", type=int, default=40)
    parser.add_argument("--factor", type=int, default=50)
    parser.add_argument("--codec", default="calibrated:")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="voxmill-bench-") as folder:
        found = {}
        for name, factor in (("small", 1), ("large", arguments.factor)):
            shard = Path(folder) / f"{name}.tar"
            make_shard(shard, arguments.small_mb * 1_000_000 * factor)
            found[name] = peak(shard, Path(folder) / name, arguments.codec) | {"shard_bytes": shard.stat().st_size}
            shard.unlink()
        found["ratio"] = round(found["large"]["peak_kb"] / found["small"]["peak_kb"], 4)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
