"""Audio rows to a tar in a spool, as WebDataset has them; nothing of time, host or attempt is in it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import soundfile

from pipeline.errors import DataError
from pipeline.spool import Spool
from pipeline.types import AudioRow
from pipeline.writer import add_member

AUDIO_FOLDER = "audio"


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What every audio shard of a job has in common.

    `metadata` stands in each row's numbers. With `files` a row is its audio alone.
    """

    audio: Literal["flac", "wav"]
    files: bool
    metadata: Mapping[str, str | int]


def encoded(row: AudioRow, audio: Literal["flac", "wav"]) -> bytes:
    """The row's audio as a file: 16 bits, mono, the samples as they are."""
    buffer = io.BytesIO()
    soundfile.write(buffer, row.pcm, row.sample_rate_hz, format=audio.upper(), subtype="PCM_16")
    return buffer.getvalue()


def _check_key(key: str) -> None:
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or "\0" in key:
        # It would lead out of the folder that the tar is unpacked in, or be cut.
        raise DataError(f"the tokens hold the key {key!r}, which is no name below a folder; were they made by voxmill?")


class AudioWriter:
    """Writes rows of one shard, in the order given, into a spool.

    A row is `<key>.flac` (or `.wav`), `<key>.json` with its numbers, and the sidecars that its tokens carried, of which
    `json`, and one of the audio's own suffix, stand as `<key>.source.<suffix>`.
    """

    def __init__(self, spool: Spool, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._tar = tarfile.open(fileobj=spool.file(AUDIO_FOLDER), mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        spool.closes(self._tar)

    def write(self, rows: Iterable[AudioRow]) -> None:
        """Add rows; each goes to disk at once. Raises `DataError` on a key that no member may be named after."""
        audio = self._format.audio
        for row in rows:
            _check_key(row.key)
            add_member(self._tar, f"{row.key}.{audio}", encoded(row, audio))
            if self._format.files:
                continue
            add_member(self._tar, f"{row.key}.json", self._numbers(row))
            for suffix, content in sorted(row.sidecars.items()):
                name = f"source.{suffix}" if suffix in ("json", audio) else suffix
                add_member(self._tar, f"{row.key}.{name}", content)

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def _numbers(self, row: AudioRow) -> bytes:
        numbers = {
            "key": row.key,
            "sample_rate_hz": row.sample_rate_hz,
            "num_samples": len(row.pcm),
            "duration_s": len(row.pcm) / row.sample_rate_hz,
            "num_frames": row.num_frames,
            "source_sample_rate_hz": row.source_sample_rate_hz,
            "source_num_channels": row.source_num_channels,
            "acoustic_codebooks": row.num_acoustic_codebooks,
            **self._format.metadata,
        }
        return json.dumps(numbers, ensure_ascii=False).encode()
