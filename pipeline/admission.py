"""Which samples may go on: names and sidecars that the output could not hold are put aside before decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from pipeline.types import Reject, RejectReason, Sample

TEXT_SUFFIXES = frozenset(
    {"cls", "csv", "json", "jsonl", "lab", "lang", "srt", "text", "transcript", "tsv", "txt", "vtt"}
)
"""Last parts of suffixes whose sidecars are stored as strings; all others are stored as bytes."""


def is_text(suffix: str) -> bool:
    """Whether sidecars of this suffix are stored as UTF-8 strings."""
    return suffix.rsplit(".", 1)[-1] in TEXT_SUFFIXES


def admit(samples: Iterable[Sample | Reject]) -> Iterator[Sample | Reject]:
    """Pass samples on, in order; those that no output could hold become rejects."""
    for item in samples:
        yield _checked(item) if isinstance(item, Sample) else item


def _checked(sample: Sample) -> Sample | Reject:
    path = PurePosixPath(sample.key)
    if path.is_absolute() or ".." in path.parts:
        # As a member's name in a token tar it would lead out of the folder that the tar is unpacked in.
        detail = "the key is an absolute path or climbs with '..'; name members below the archive's root"
        return Reject(sample.key, sample.audio_member, RejectReason.BAD_NAME, detail, len(sample.audio))
    for suffix, content in sample.sidecars.items():
        if is_text(suffix):
            try:
                content.decode()
            except UnicodeDecodeError as error:
                detail = f"sidecar {suffix!r} is not UTF-8 at byte {error.start}; convert it, or do not carry it"
                return Reject(sample.key, f"{sample.key}.{suffix}", RejectReason.BAD_SIDECAR, detail, len(content))
    return sample
