"""The start of a run on a place where (nearly) all shards are committed, and its end.

The place is local: hard links to a few input files, commit records and token objects, and a true manifest; each run is
a process of its own, with the real `open_job`, driver, ledger and `finish`. Two shards are left to do. "start": from
the listing of the inputs until the first shard is handed out; "end": from the last commit to the report. The requests
are those that S3 would bill: a listing has 1,000 names a page.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.bench.fleet import Fleet, FleetConfig, drive, job_config, peak_bytes, record_of
from infra.bench.places import Links, input_paths
from infra.bench.report import BenchReport, Figure
from infra.bench.stores import CountedStore
from jobs.prepare import open_job
from pipeline.commit import Committed
from pipeline.layout import OutputPlace, token_path
from pipeline.manifest import Manifest, load_manifest, write_manifest
from pipeline.manifest_rows import ManifestRow, Rows
from pipeline.storage import Stores
from pipeline.types import Task

NUM_LEFT = 2
SHARD_BYTES = 1 << 16


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=1000, help="to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="for temporary files: 3 names a shard; default: the system's")


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Make both places, then run on one and the other in turn."""
    with TemporaryDirectory(prefix="voxmill-bench-", dir=arguments.folder) as folder:
        sizes = {arguments.few: Path(folder, "few"), arguments.shards: Path(folder, "many")}
        for num, base in sizes.items():
            make_place(base, num)
        rounds = [{num: run_once(base) for num, base in sizes.items()} for _ in range(arguments.rounds)]
    few, many = arguments.few, arguments.shards

    def median(num: int, name: str) -> float:
        return statistics.median(float(found[num][name]) for found in rounds)

    requests: Counter[str] = Counter(rounds[0][many]["requests_at_start"])
    pages = sum(count for name, count in requests.items() if name.startswith("list "))
    growth = (median(many, "start_s") / many) / (median(few, "start_s") / few)
    figures = (
        Figure(f"start on {many} shards", median(many, "start_s"), "s", at_most=60.0),
        Figure(f"start a shard, {many} over {few} shards", growth, at_most=1.0),
        Figure("pages listed at the start", pages),
        Figure("commit records read at the start", requests["read out/commits"], at_most=0),
        Figure("other requests at the start", requests.total() - pages),
        Figure(f"end on {many} shards", median(many, "end_s"), "s"),
        Figure("manifest written once", median(many, "manifest_s"), "s"),
        Figure("manifest", rounds[0][many]["manifest_bytes"] / (1 << 20), "MiB"),
        Figure("driver's memory at its peak", median(many, "peak_bytes") / (1 << 30), "GiB"),
        Figure("the same a shard", (median(many, "peak_bytes") - median(few, "peak_bytes")) / (many - few), "bytes"),
    )
    return BenchReport("resume", figures, {"arguments": vars(arguments), "rounds": rounds})


def make_place(base: Path, num_shards: int) -> None:
    """A place where all but the last shards are committed."""
    Links(base / "spare" / "in", bytes(SHARD_BYTES)).add_all(input_paths(base, num_shards))
    config = job_config(str(base))
    job = open_job(config, "cpu")
    shards = job.listing.shards[:-NUM_LEFT]
    rng = random.Random(0)
    tasks = [Task(shard, f"{rng.getrandbits(128):032x}") for shard in shards]
    record = record_of(job.setup.fingerprint, tasks[0])
    commits = Links(base / "spare" / "commits", record.to_bytes())
    commits.add_all(Path(job.place.commit(task.shard.shard_id)) for task in tasks)
    tokens = Links(base / "spare" / "tokens", bytes(100))
    tokens.add_all(base / "out" / token_path("tokens", task.shard.shard_id, task.attempt) for task in tasks)
    etag = job.store.stat(job.place.commit(tasks[0].shard.shard_id)).etag
    rows = Rows(job.setup.fingerprint)
    for task in tasks:
        record = record_of(job.setup.fingerprint, task, sha256=f"{rng.getrandbits(256):064x}")
        rows[record.shard_id] = ManifestRow(record, etag)
    write_manifest(job.store, job.place, Manifest(job.setup.fingerprint, rows))


def run_once(base: Path) -> dict[str, Any]:
    """One run, in a process of its own; the place is then as before, save for two rows of the manifest."""
    command = [sys.executable, "-c", "from infra.bench.resume import resume; resume()", str(base)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    for path in found.pop("committed"):
        Path(path).unlink()
    return found


def resume() -> None:
    """Run on the place that the command line names, and print what it took as JSON."""
    base = sys.argv[1]
    config = job_config(base)
    store = CountedStore(Stores(config.storage, config.retry)(config.output), base)
    fleet = _Watched(store)
    began_s = time.monotonic()
    driven = drive(fleet, config, store)
    ended_s = time.monotonic()
    assert driven.report.exit_code == 0, driven.report.lines()
    assert driven.report.num_committed_now == NUM_LEFT, driven.report.lines()
    found: dict[str, Any] = {
        "start_s": fleet.handed_out_s - began_s,
        "end_s": ended_s - fleet.over_s,
        "cpu_s": {"open": driven.open_cpu_s, "loop": driven.loop_cpu_s, "finish": driven.finish_cpu_s},
        "peak_bytes": peak_bytes(),
        "requests_at_start": fleet.requests_at_start,
        "requests": store.requests,
        "committed": fleet.committed,
    }
    place = OutputPlace(config.output)
    manifest = load_manifest(store, place, driven.fingerprint)
    began_s = time.monotonic()
    write_manifest(store, place, manifest)
    found["manifest_s"] = time.monotonic() - began_s
    found["manifest_bytes"] = store.stat(place.manifest).size_bytes
    print(json.dumps(found))


class _Watched(Fleet):
    """A fleet that notes when its first shard comes, and when it is over."""

    def __init__(self, store: CountedStore) -> None:
        super().__init__(FleetConfig(num_replicas=1, speed=1e12))
        self._store = store
        self.handed_out_s = self.over_s = 0.0
        self.requests_at_start: dict[str, int] = {}
        self.committed: list[str] = []

    def submit(self, replica: str, task: Task) -> None:
        if not self.handed_out_s:
            self.handed_out_s = time.monotonic()
            self.requests_at_start = dict(self._store.requests)
        super().submit(replica, task)

    def finished(self, task: Task) -> Committed:
        self.committed.append(self._job.place.commit(task.shard.shard_id))
        return super().finished(task)

    def close(self) -> None:
        super().close()
        self.over_s = time.monotonic()
