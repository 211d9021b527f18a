"""The records of an output place: checked when written and again when read."""

from __future__ import annotations

import json
import reprlib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from pipeline.errors import FailureKind, OtherJobError, RefusedError, ReplicaLostError
from pipeline.fingerprint import FORMAT_VERSION
from pipeline.types import Shard

RECORD_BYTES_MAX = 16 << 20
"""No record is larger; a larger object under a record's name is not ours."""


FAULTS_SHOWN_MAX = 8


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """As JSON, for people too."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, uri: str) -> Self:
        """Parse and check; raises `RefusedError` naming what is wrong with the object at `uri`."""
        try:
            version = json.loads(content).get("format_version")
        except (ValueError, AttributeError, RecursionError):
            raise RefusedError(f"{uri} is no {cls.__name__}: not a JSON object; was it written by voxmill?") from None
        if version != FORMAT_VERSION:
            raise OtherJobError(
                f"{uri} has format version {reprlib.repr(version)}, this voxmill reads {FORMAT_VERSION}; "
                "use the voxmill that wrote it, or another output place"
            )
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False)[:FAULTS_SHOWN_MAX]
            faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in found)
            raise RefusedError(f"{uri} is no {cls.__name__}: {faults}") from None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class CodecRecord(_Part):
    """The codec's numbers, for readers of the tokens."""

    name: str
    checkpoint_hash: str
    sample_rate_hz: int
    frame_size: int
    semantic_cardinality: int
    acoustic_cardinalities: tuple[int, ...]


class JobRecord(_Record):
    """`job.json`: what the output place is for."""

    voxmill_version: str
    fingerprint: str
    parts: dict[str, Any] = Field(description="all that decides the tokens")
    config: dict[str, Any] = Field(description="the config of the run that made the place")
    codec: CodecRecord

    @property
    def makes_audio(self) -> bool:
        """Whether its shards are audio made of another job's tokens."""
        return self.parts.get("job") == "decode"


class InputRecord(_Part):
    """The input shard that was read."""

    uri: str
    size_bytes: int
    etag: str

    @classmethod
    def of(cls, shard: Shard) -> InputRecord:
        """The record of a listed shard."""
        return cls(uri=shard.uri, size_bytes=shard.size_bytes, etag=shard.etag)


class ObjectRecord(_Part):
    """An object that a commit makes count; `path` is relative to the output."""

    path: str
    num_bytes: int
    sha256: str


FramesByCodebooks = dict[int, int]
"""Frames by how many acoustic codebooks they have; empty where all rows of a job have the same number."""


class Counts(_Part):
    """`num_samples = num_rows + num_rejected`; rejects by reason."""

    num_samples: int
    num_rows: int
    num_rejected: int
    rejects: dict[str, int] = Field(default_factory=dict)
    num_frames: int
    num_audio_samples: int
    audio_s: float
    carried: dict[str, int] = Field(default_factory=dict, description="rows that have a sidecar, by suffix")
    num_frames_by_codebooks: FramesByCodebooks = Field(default_factory=dict)


class CommitRecord(_Record):
    """`commits/<shard-id>.json`, or `commits/<shard-id>.<term>.json`: the one object that makes an attempt count."""

    shard_id: str
    term: int = Field(0, ge=0, description="how many fences came before; see pipeline/commit.py")
    fingerprint: str
    input: InputRecord
    attempt: str
    objects: Annotated[tuple[ObjectRecord, ...], FailFast()]
    counts: Counts
    num_halved_batches: int = Field(
        0, description="batches that were halved for memory: another plan than the config's"
    )
    timings: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, str | int] = Field(default_factory=dict)


class FailureRecord(_Record):
    """`failures/<shard-id>/<attempt>.json`: why an attempt failed."""

    shard_id: str
    input: InputRecord
    attempt: str
    kind: FailureKind
    error: str = Field(description="class of the error")
    message: str
    traceback: str = ""
    final: bool = Field(False, description="the run gave the shard up")

    @property
    def waits(self) -> bool:
        """Whether later runs leave the shard alone until `--retry-failed`.

        Not for the surroundings' sake (a store that was away), but where it killed its replicas.
        """
        return self.final and (self.kind is not FailureKind.INFRA or self.error == ReplicaLostError.__name__)


State = Literal["running", "complete", "incomplete", "interrupted"]


class StatusRecord(_Record):
    """`status.json`: how the run is doing; derived, and out of date when its driver died."""

    state: State
    driver: str
    updated_unix_s: float
    started_unix_s: float
    status_every_s: float
    num_shards: int
    num_committed: int
    num_failed: int
    num_missing: int
    num_replicas: int
    num_rows: int
    num_rejected: int
    audio_s: float
    times_real_time: float
    unsafe_store: bool = False
    num_frames_by_codebooks: FramesByCodebooks = Field(default_factory=dict, description="of all that is committed")
    failed: dict[str, str] = Field(default_factory=dict, description="the first failed shards, with why")
