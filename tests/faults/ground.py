"""Where a row stands: shards in a place of their own, runs of the real command on them, judgement of what is left."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import soundfile
import torch

from codec.registry import load_codec
from tests.clusters import ROOT, kill, session, wait_for
from tests.corpus import CLIPS, speech_shards
from tests.faults.invariants import Expected, Ids, check, commits
from tests.servers import S3Server

CODEC = "calibrated:"
"""Its ids are hashes of the audio, so that one wrong sample shows in them, and cost nothing."""

FAST = (
    "--set=decoding.workers=1",
    "--set=retry.attempts_max=4",
    "--set=retry.backoff_s=0.01",
    "--set=running.retry_backoff_s=0.01",
    "--set=running.tick_s=0.05",
)
RSS_BYTES_MAX = 1536 << 20
"""I4: no process of a run may be larger, whatever the fault; a fault-free one is at 0.4 GB."""

FAILED_RECORDS_MAX = 40
"""I4: tries are bounded; no row's bounds allow for more."""

NOT_OF_TOKENS = (
    "--set=retry.",
    "--set=running.",
    "--set=storage.",
    "--set=ray.",
    "--executor",
    "--replicas",
    "--ray-",
    "--codec=calibrated:cost_s=",
)
"""Flags that do not decide tokens: the fault-free run needs them not."""

Sabotage = tuple[str, str, dict[str, Any]]
"""Module, function and arguments of what is called in the run's process before the command."""


@dataclass(frozen=True)
class Ended:
    """What a run left besides its output."""

    exit_code: int
    report: Mapping[str, Any]
    stdout: str
    stderr: str
    rss_bytes_max: int


@dataclass(frozen=True)
class Running:
    """A command that was started; `pid` leads a session of its own."""

    pid: int
    folder: Path

    @property
    def stderr(self) -> str:
        path = self.folder / "stderr"
        return path.read_text() if path.exists() else ""

    @property
    def has_ended(self) -> bool:
        return (self.folder / "ended.json").exists()

    def wait(self, limit_s: float = 60.0) -> Ended:
        """Its end. Raises `TimeoutError`; then all of it is killed."""
        try:
            wait_for(lambda: self.has_ended, "the run's end", limit_s)
        except TimeoutError:
            kill(session(self.pid))
            raise TimeoutError(f"I4: not ended after {limit_s} s:\n{self.stderr}") from None
        stdout = (self.folder / "stdout").read_text()
        try:
            report = json.loads(stdout)
        except ValueError:
            report = {}
        end = json.loads((self.folder / "ended.json").read_text())
        return Ended(report=report, stdout=stdout, stderr=self.stderr, **end)


class Lab:
    """What all rows share: the process that runs are forked from, the truth, and the fault-free runs' hashes."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path) -> None:
        self._zygote = zygote
        self._folder = folder
        self._references: dict[Any, dict[str, list[str]]] = {}
        self._codecs: dict[str, Any] = {}
        self._started: list[Running] = []

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], sabotage: Sabotage | None = None
    ) -> Running:
        """Fork a process that runs a command."""
        folder = self._folder / uuid4().hex
        folder.mkdir()
        request = {
            "command": list(command),
            "environment": {**os.environ, **environment},
            "sabotage": sabotage,
            **{name: str(folder / name) for name in ("stdout", "stderr")},
            "ended": str(folder / "ended.json"),
        }
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        self._started.append(Running(json.loads(self._zygote.stdout.readline())["pid"], folder))
        return self._started[-1]

    def end_all(self) -> None:
        """Kill what a row that failed left running."""
        for running in self._started:
            if not running.has_ended:
                kill(session(running.pid))
        self._started.clear()

    def ids(self, waveform: np.ndarray, codec: str = CODEC) -> Ids:
        """The ids of a clip at the codec's rate that is encoded alone."""
        if codec not in self._codecs:
            self._codecs[codec] = load_codec(codec)
        alone = self._codecs[codec].encode(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
        return alone.semantic[0].tolist(), alone.acoustic[0].tolist()

    def clip_ids(self, content: bytes, codec: str = CODEC) -> Ids:
        """The ids of a file of audio at 16 kHz, mono."""
        waveform, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
        assert rate_hz == 16000
        return self.ids(waveform, codec)

    def reference(self, shards: Mapping[str, bytes], flags: Sequence[str]) -> dict[str, list[str]]:
        """Hashes of the objects that a fault-free run makes of these shards."""
        decisive = tuple(flag for flag in flags if not flag.startswith(NOT_OF_TOKENS))
        key = (decisive, tuple(sorted((name, hash(content)) for name, content in shards.items())))
        if key not in self._references:
            folder = self._folder / f"reference-{len(self._references)}"
            place = Place(str(folder))
            for name, content in shards.items():
                place.put(f"in/{name}", content)
            ended = self.start(command(place, list(shards), *decisive, "--executor=inline"), {}).wait()
            assert ended.exit_code == 0, ended.stderr
            self._references[key] = {
                name: sorted(f"{item['path'].split('/')[0]} {item['sha256']}" for item in record["objects"])
                for name, record in commits(place.objects()).items()
            }
        return self._references[key]


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab whose processes end with it."""
    program = [sys.executable, "-m", "tests.faults.zygote"]
    with subprocess.Popen(
        program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as zygote:
        try:
            yield Lab(zygote, folder)
        finally:
            assert zygote.stdin is not None
            zygote.stdin.close()
            zygote.wait(30)


@dataclass(frozen=True)
class Place:
    """A folder, or a bucket's, read and written behind the run's back: never through a proxy."""

    base: str
    server: S3Server | None = None

    def put(self, path: str, content: bytes) -> str:
        """Write an object; returns its URI."""
        if self.server is not None:
            self._client().put_object(Bucket=self._bucket, Key=self._key(path), Body=content)
        else:
            Path(self.base, path).parent.mkdir(parents=True, exist_ok=True)
            Path(self.base, path).write_bytes(content)
        return f"{self.base}/{path}"

    def delete(self, path: str) -> None:
        """Delete an object."""
        if self.server is not None:
            self._client().delete_object(Bucket=self._bucket, Key=self._key(path))
        else:
            Path(self.base, path).unlink()

    def uploads(self) -> list[tuple[str, str]]:
        """Key and id of each upload in parts that has not ended."""
        found = self._client().list_multipart_uploads(Bucket=self._bucket).get("Uploads", [])
        return [(item["Key"], item["UploadId"]) for item in found]

    def drop_uploads(self) -> None:
        """Abort them, as `voxmill gc` does."""
        for key, upload_id in self.uploads():
            self._client().abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def objects(self) -> dict[str, bytes]:
        """Every object of the output by its path, hidden leftovers of the local store apart."""
        if self.server is None:
            root = Path(self.base, "out")
            files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".tmp-")]
            return {str(path.relative_to(root)): path.read_bytes() for path in files}
        client, prefix, found = self._client(), self._key("out/"), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                body = client.get_object(Bucket=self._bucket, Key=item["Key"])["Body"].read()
                found[item["Key"].removeprefix(prefix)] = body
        return found

    @property
    def _bucket(self) -> str:
        return self.base.removeprefix("s3://").split("/")[0]

    def _key(self, path: str) -> str:
        return "/".join([*self.base.removeprefix("s3://").split("/")[1:], path])

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        assert self.server is not None
        return boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            aws_access_key_id=self.server.access_key,
            aws_secret_access_key=self.server.secret_key,
            region_name="us-east-1",
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )


def command(place: Place, names: Sequence[str], *flags: str) -> list[str]:
    """`voxmill run` over shards of a place."""
    inputs = [f"--input={place.base}/in/{name}" for name in names]
    return ["run", *inputs, f"--output={place.base}/out", f"--codec={CODEC}", *FAST, *flags, "--json"]


@dataclass
class Ground:
    """The ground of one test."""

    lab: Lab
    place: Place
    environment: dict[str, str] = field(default_factory=dict)
    shards: dict[str, bytes] = field(default_factory=dict)
    flags: tuple[str, ...] = ("--executor=inline",)
    num_redone: int = 0
    killed: bool = False
    retries: list[str] = field(default_factory=list)

    def put(self, shards: Mapping[str, bytes]) -> None:
        """Put input shards."""
        for name, content in shards.items():
            self.shards[name] = content
            self.place.put(f"in/{name}", content)

    def put_clean(self, num_shards: int = 3) -> dict[str, bytes]:
        """Put the ten clips, dealt over shards."""
        shards = speech_shards(num_shards)
        self.put(shards)
        return shards

    def start(self, *flags: str, sabotage: Sabotage | None = None, **environment: str) -> Running:
        """Begin a run over all shards that were put."""
        self.flags = flags if any(flag.startswith("--executor") for flag in flags) else (*flags, "--executor=inline")
        arguments = command(self.place, list(self.shards), *self.flags)
        return self.lab.start(arguments, {**self.environment, **environment}, sabotage)

    def run(self, *flags: str, sabotage: Sabotage | None = None, limit_s: float = 60.0, **environment: str) -> Ended:
        """A run from its start to its end."""
        return self.start(*flags, sabotage=sabotage, **environment).wait(limit_s)

    def voxmill(self, *arguments: str, limit_s: float = 60.0) -> Ended:
        """Any other command."""
        return self.lab.start(arguments, self.environment).wait(limit_s)

    def note(self, retries: str) -> None:
        """What a row says of its retries besides the attempts, which are counted by themselves."""
        self.retries.append(retries)

    def check(
        self,
        ended: Ended,
        *,
        exit_code: int = 0,
        rows: Mapping[str, Mapping[str, Ids | None]] | None = None,
        rejects: Mapping[str, Mapping[str, str]] | None = None,
        failed: Mapping[str, str] | None = None,
        says: Sequence[str] = (),
        never: Sequence[str] = (),
        may_miss: bool = False,
    ) -> dict[str, bytes]:
        """Judge all invariants; returns the objects of the output.

        `rows` and `rejects` are by shard for shards that are not clean; `failed` holds, by shard, words of the reason
        that the report must give; with `may_miss` other shards may stand or not (an interrupted run).
        """
        rows, rejects, failed = dict(rows or {}), dict(rejects or {}), dict(failed or {})
        assert ended.exit_code == exit_code, f"I5: exit code {ended.exit_code}, not {exit_code}:\n{ended.stderr}"
        said = ended.stderr + ended.stdout
        for words in says:
            assert words in said, f"I5: {words!r} is not said:\n{said}"
        for words in ("Traceback", *never):
            assert words not in said, f"I5: {words!r} is said:\n{said}"
        self.killed |= exit_code == -signal.SIGKILL
        assert ended.rss_bytes_max < RSS_BYTES_MAX, f"I4: a process took {ended.rss_bytes_max >> 20} MB"
        told = {uri.rsplit("/", 1)[1]: why for uri, why in ended.report.get("failed", {}).items()}
        if ended.report:
            assert told.keys() == failed.keys(), f"I5: the report's failed shards are {told}"
        for name, words in failed.items():
            assert not ended.report or words in told[name], f"I5: {name} failed as {told[name]!r}"
        clean = self._clean()
        expected_rows = {name: rows.get(name, clean.get(name, {})) for name in self.shards}
        whole = {name: content for name, content in self.shards.items() if name in clean and name not in rows}
        objects = self.place.objects()
        check(
            objects,
            Expected(
                rows=expected_rows,
                rejects=rejects,
                hashes=self.lab.reference(whole, self.flags) if whole else {},
                committed=frozenset() if may_miss else frozenset(self.shards) - failed.keys(),
                failed=frozenset(failed),
                complete=exit_code == 0,
                killed=self.killed,
            ),
        )
        records = [json.loads(content) for path, content in objects.items() if path.startswith("failures/")]
        assert len(records) <= FAILED_RECORDS_MAX, f"I4: {len(records)} failed attempts"
        num_retried = sum(not record["final"] for record in records)
        self.num_redone += num_retried
        if num_retried:
            self.retries.append(f"{num_retried} attempts" if num_retried > 1 else "1 attempt")
        return objects

    def _clean(self) -> dict[str, dict[str, Ids]]:
        """The rows of shards that hold nothing but the clips of the corpus, as they are."""
        known = {clip.read_bytes(): clip.stem for clip in CLIPS}
        found: dict[str, dict[str, Ids]] = {}
        for name, content in self.shards.items():
            if content in _clean_contents():
                with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                    audio = [tar.extractfile(member).read() for member in tar if member.name.endswith(".flac")]
                found[name] = {known[one]: self.lab.clip_ids(one, self._codec) for one in audio}
        return found

    @property
    def _codec(self) -> str:
        """Of the last run, its cost left out."""
        named = [flag.removeprefix("--codec=") for flag in self.flags if flag.startswith("--codec=")]
        return named[-1] if named and not named[-1].startswith(CODEC) else CODEC


def _clean_contents() -> set[bytes]:
    if not _CLEAN:
        for num_shards in (2, 3, 5, 10):
            _CLEAN.update(speech_shards(num_shards).values())
    return _CLEAN


_CLEAN: set[bytes] = set()
