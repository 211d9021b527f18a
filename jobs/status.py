"""`voxmill status`: how a job stands, from its output place alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from jobs.terminal import duration, hours
from pipeline.codebooks import Savings
from pipeline.commit import list_commits
from pipeline.errors import ObjectMissingError, RefusedError
from pipeline.job import read_job
from pipeline.layout import OutputPlace, output_place
from pipeline.records import RECORD_BYTES_MAX, JobRecord, StatusRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Store, Stores

SILENT_TURNS = 6
"""A running driver that has missed so many turns of writing its status has died or lost the store."""


@dataclass(frozen=True)
class JobStatus:
    """What the place says now, and what the last driver said."""

    output: str
    job: JobRecord
    num_commits: int
    last: StatusRecord | None
    age_s: float

    @property
    def savings(self) -> Savings | None:
        """What the choice of acoustic codebooks saved in all that was committed when the driver last spoke."""
        if self.last is None:
            return None
        return Savings.of(self.last.num_frames_by_codebooks, self.job.codec.acoustic_cardinalities)

    def lines(self) -> list[str]:
        """For people."""
        codec = self.job.codec
        lines = [
            f"job        {self.output}",
            f"codec      {codec.name} ({codec.checkpoint_hash[:12]}), fingerprint {self.job.fingerprint[:12]}",
            *self._decoding(),
            f"committed  {self.num_commits} shards",
        ]
        if self.last is None:
            return [*lines, "driver     none has reported yet"]
        last, age = self.last, duration(self.age_s)
        state: str = last.state
        if last.state == "running" and self.age_s > SILENT_TURNS * max(10.0, last.status_every_s):
            state = f"silent for {age}: dead, or without the store; run the same command to resume"
        lines += [
            f"state      {state} (driver {last.driver}, {age} ago)",
            f"of         {last.num_shards} shards; {last.num_failed} given up, {last.num_missing} missing",
            f"this run   {last.num_rows} rows, {last.num_rejected} rejects, {hours(last.audio_s)} of audio, "
            f"{last.times_real_time}x real time, {last.num_replicas} replicas",
        ]
        if self.savings is not None:
            lines.append(f"codebooks  {self.savings.line()}")
        if last.unsafe_store:
            lines.append("WARNING    unsafe store: put-if-absent is not enforced there")
        return lines + [f"failed     {uri}: {why}" for uri, why in last.failed.items()]

    def _decoding(self) -> list[str]:
        """What a job that makes audio makes it of."""
        if not self.job.makes_audio:
            return []
        parts = self.job.parts
        return [
            f"decodes    {self.job.config.get('tokens')} by decoder {parts.get('decoder.name')} to "
            f"{parts.get('decoder.sample_rate_hz')} Hz, {parts.get('audio')} as {parts.get('format')}"
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "output": self.output,
            "fingerprint": self.job.fingerprint,
            "codec": self.job.codec.model_dump(),
            "num_commits": self.num_commits,
            "last": self.last.model_dump(mode="json") if self.last else None,
            "saved_acoustic_bits": None if self.savings is None else round(self.savings.bits),
            "last_age_s": self.age_s if self.last else None,
        }


def status(output: str, storage: StorageConfig, retry: RetryConfig) -> JobStatus:
    """One read of the job, one listing of the commits, one read of the last status.

    Raises `RefusedError` when there is no job.
    """
    place = output_place(output)
    store = Stores(storage, retry)(place.base)
    job = read_job(store, place)
    num_commits = sum(1 for _ in list_commits(store, place))
    last = _last(store, place)
    age_s = time.time() - last.updated_unix_s if last else 0.0
    return JobStatus(place.base, job, num_commits, last, age_s)


def _last(store: Store, place: OutputPlace) -> StatusRecord | None:
    try:
        return StatusRecord.from_bytes(store.read(place.status, bytes_max=RECORD_BYTES_MAX), place.status)
    except ObjectMissingError:
        return None
    except RefusedError:
        return None  # damaged: it is derived, and the next driver writes it anew
