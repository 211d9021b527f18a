"""Reading shards from object storage over plain GETs of the same server, and the requests that a shard costs.

    voxmill bench s3 [--shard-mb 400] [--rounds 7] [--endpoint URL --bucket NAME]

**Bytes a second.** One shard of human speech is read whole through `RangeStream` and `read_samples`, with the reader's
defaults (so with its MD5), and by one boto3 GET in pieces of a megabyte, in turns. The server is rclone on a folder, a
program of its own on loopback; `--endpoint` takes a store of one's own (credentials from the environment), where the
shard is put first and deleted at last.

**Requests a shard.** Two real runs, of few and of more small shards, go through a counting proxy to moto, which
enforces put-if-absent. What more shards cost more, over their number, is what a shard costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from codec.base import CodecError
from infra.bench.report import BenchReport, Figure
from infra.bench.shards import write_shard
from infra.bench.speech import speech_files
from pipeline.ranges import RangeStream
from pipeline.reader import read_samples
from pipeline.settings import ReadingConfig, RetryConfig, StorageConfig
from pipeline.storage import PROBE_PREFIX, Store, open_store
from pipeline.types import Shard

BUCKET = "bench"
PIECE_BYTES = 1 << 20
FEW, MORE = 4, 12
CLIPS_A_SHARD = 20


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard-mb", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--speech", metavar="FOLDER", help="audio files of your own; default: Debian's, by apt")
    parser.add_argument("--endpoint", metavar="URL", help="a store of your own for the reads; needs --bucket")
    parser.add_argument("--bucket", default=BUCKET, help="on --endpoint; bench-shard.tar is put there, and deleted")


def bench(arguments: argparse.Namespace) -> BenchReport:
    files = speech_files(folder=arguments.speech)
    with TemporaryDirectory(prefix="voxmill-bench-") as folder:
        shard = Path(folder, "bench-shard.tar")
        write_shard(shard, files, num_bytes=arguments.shard_mb * 1_000_000)
        reads = _reads(arguments, shard)
        shard.unlink(missing_ok=True)
        requests = _requests_a_shard(files, Path(folder))
    ratios = [ours / plain for ours, plain in zip(reads["ours_mb_s"], reads["plain_mb_s"], strict=True)]
    puts, others = requests["puts_a_shard"], requests["others_a_shard"]
    return BenchReport(
        "s3",
        (
            Figure("shard bytes a second over a plain GET's", median(ratios), at_least=0.8),
            Figure("puts a shard", puts, at_most=2),
            Figure("other requests a shard, ranged reads apart", others, at_most=2),
        ),
        {**reads, "ratios": ratios, **requests},
    )


def _reads(arguments: argparse.Namespace, shard: Path) -> dict[str, list[float]]:
    with _store_environment(arguments.endpoint, shard.parent):
        import boto3

        client, store = boto3.client("s3"), open_store("s3://", StorageConfig(), RetryConfig())
        if arguments.endpoint:
            client.upload_file(str(shard), arguments.bucket, shard.name)
        else:
            (shard.parent / arguments.bucket).mkdir()
            shard.rename(shard.parent / arguments.bucket / shard.name)
        uri = f"s3://{arguments.bucket}/{shard.name}"
        info = store.stat(uri)
        listed = Shard(uri, info.size_bytes, info.etag)
        ours, plain = [], []
        try:
            for _ in range(arguments.rounds):
                plain.append(_plain_mb_s(client, arguments.bucket, shard.name))
                ours.append(_ours_mb_s(store, listed))
        finally:
            client.delete_object(Bucket=arguments.bucket, Key=shard.name)
        return {"ours_mb_s": ours, "plain_mb_s": plain}


@contextmanager
def _store_environment(endpoint: str | None, folder: Path) -> Iterator[None]:
    """An environment that leads S3 clients to the store of one's own, or to an rclone over the folder."""
    if endpoint:
        with _environment({"AWS_ENDPOINT_URL": endpoint}):
            yield
        return
    with _servers().rclone_server(folder) as server, _environment(server.environment()):
        yield


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _servers() -> Any:
    try:
        from tests import servers
    except ImportError:
        raise CodecError(
            "bench s3 starts the servers of the tests: run it in a checkout, as `python -m jobs.cli bench s3`"
        ) from None
    return servers


def _plain_mb_s(client: Any, bucket: str, key: str) -> float:
    started_s, num_bytes = time.perf_counter(), 0
    body = client.get_object(Bucket=bucket, Key=key)["Body"]
    while piece := body.read(PIECE_BYTES):
        num_bytes += len(piece)
    return num_bytes / 1e6 / (time.perf_counter() - started_s)


def _ours_mb_s(store: Store, shard: Shard) -> float:
    started_s, config = time.perf_counter(), ReadingConfig()
    with RangeStream(store, shard, config) as stream:
        for _ in read_samples(stream, shard.size_bytes, config, ()):
            pass
        stream.check()
    return shard.size_bytes / 1e6 / (time.perf_counter() - started_s)


def _requests_a_shard(files: list[Path], folder: Path) -> dict[str, Any]:
    """Requests of a run with `MORE` shards less those of a run with `FEW`, over the difference."""
    servers = _servers()
    with servers.moto_server() as server:
        servers.make_bucket(server, BUCKET)
        few, more = (_requests_of_run(server, files, folder, num_shards) for num_shards in (FEW, MORE))
    a_shard = {kind: (more[kind] - few[kind]) / (MORE - FEW) for kind in sorted(few | more)}
    kinds = {kind: count for kind, count in a_shard.items() if kind != RANGED_READ}
    puts = sum(count for kind, count in kinds.items() if kind.startswith("PUT"))
    return {
        "puts_a_shard": puts,
        "others_a_shard": sum(kinds.values()) - puts,
        "requests_a_shard": a_shard,
        "requests_of_runs": {FEW: dict(few), MORE: dict(more)},
    }


RANGED_READ = "GET of a range of the shard"


def _requests_of_run(server: Any, files: list[Path], folder: Path, num_shards: int) -> Counter[str]:
    from tests.faults.proxy import FaultProxy

    job = f"job-{num_shards}"
    with _environment(server.environment()):
        store = open_store("s3://", StorageConfig(), RetryConfig())
        for index in range(num_shards):
            # Other clips in each, so that no two shards are alike.
            path = folder / f"{index:03d}.tar"
            write_shard(path, files[index:] + files[:index], num_clips=CLIPS_A_SHARD)
            store.put_file(f"s3://{BUCKET}/{job}/in/{path.name}", path)
    with FaultProxy(server) as proxy:
        environment = {**os.environ, **server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}
        places = ["--input", f"s3://{BUCKET}/{job}/in/", "--output", f"s3://{BUCKET}/{job}/out"]
        # A status comes each so many seconds, not with each shard: a slow machine would have more of them in one run.
        once = ["--set", "running.status_every_s=3600"]
        run = [sys.executable, "-m", "jobs.cli", "run", *places, "--codec", "calibrated:", "--executor", "inline"]
        done = subprocess.run([*run, *once, "--json"], env=environment, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode or json.loads(done.stdout)["num_committed"] != num_shards:
            raise CodecError(f"the run ended with exit code {done.returncode}: {done.stdout}")
        return Counter(_kind(exchange, f"{job}/") for exchange in proxy.log)


def _kind(exchange: Any, job: str) -> str:
    """A request by its method and place: which folder of the output, or the input."""
    path = exchange.key.removeprefix(job)
    if exchange.method == "GET" and path.startswith("in/") and "range" in exchange.headers:
        return RANGED_READ
    folder = path.removeprefix("out/").split("/")[0] if path else "a listing"
    folder = "a probe" if folder.startswith(PROBE_PREFIX) else folder
    return f"{exchange.method} of {folder}"
