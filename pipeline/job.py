"""The job record: an output place belongs to the first job that claims it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ObjectMissingError, OtherJobError, RefusedError
from pipeline.layout import OutputPlace
from pipeline.records import RECORD_BYTES_MAX, JobRecord
from pipeline.storage import Store


def claim_job(store: Store, place: OutputPlace, record: JobRecord) -> None:
    """Write `job.json` if there is none. Raises `OtherJobError` when the place is another job's."""
    if store.put_if_absent(place.job, record.to_bytes()):
        return
    standing = read_job(store, place)
    if standing.fingerprint != record.fingerprint:
        remedy = "use the same settings, or another output place"
        if next(iter(store.list(place.commits)), None) is None:
            remedy += f"; nothing is committed there yet, so if no run of it is alive, delete {place.job}"
        raise OtherJobError(_difference(place, standing.parts, record.parts) + remedy)


def read_job(store: Store, place: OutputPlace) -> JobRecord:
    """The job of an output place. Raises `RefusedError` when there is none."""
    try:
        return JobRecord.from_bytes(store.read(place.job, bytes_max=RECORD_BYTES_MAX), place.job)
    except ObjectMissingError:
        raise RefusedError(f"{place.base} holds no voxmill job: {place.job} is not there; check the place") from None


def _difference(place: OutputPlace, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    lines = [f"  {name}: there {theirs.get(name)!r}, here {ours.get(name)!r}" for name in names]
    return f"{place.base} holds another job; what decides the tokens differs in:\n" + "\n".join(lines) + "\n"
