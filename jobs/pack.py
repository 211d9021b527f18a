"""Pack loose audio files, with their texts, into WebDataset shards.

Files are copied as they are, not decoded. The same files give the same bytes: members in key order, and nothing of
time, owner or machine in their headers.
"""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import soundfile

from jobs.pack_source import Entry, Source, dotted, has_audio_suffix, open_source
from pipeline.clip_limits import AudioRejectedError
from pipeline.errors import ConfigError, DataError, InfraError, RefusedError
from pipeline.media_track import media_container
from pipeline.media_walk import walk
from pipeline.reader import AUDIO_EXTENSIONS
from pipeline.storage import Store, join, normal_uri
from pipeline.types import ObjectInfo
from pipeline.uris import check_uri

FAULTS_NAMED_MAX = 10
"""Faulty files that one message names."""


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed, at least one shard; `num_skipped`: hidden in the folder, or neither audio nor its text."""

    shards: tuple[ObjectInfo, ...]
    num_samples: int
    num_texts: int
    num_skipped: int

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def lines(self) -> list[str]:
        """For people."""
        first, last = self.shards[0].uri, self.shards[-1].uri
        lines = [
            f"packed {self.num_samples} samples ({self.num_texts} with text) into {len(self.shards)} shard(s), "
            f"{self.num_bytes / 1e6:.1f} MB: {first}" + (f" to {last}" if last != first else "")
        ]
        if self.num_skipped:
            lines.append(f"left out {self.num_skipped} files or folders that are hidden or neither audio nor its text")
        return lines

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"num_bytes": self.num_bytes}


def pack(
    source: str,
    output: str,
    *,
    shard_bytes: int,
    samples_max: int,
    prefix: str,
    store_of: Callable[[str], Store],
    force: bool = False,
) -> PackReport:
    """Pack a local folder or JSONL manifest into `<output>/<prefix>-000000.tar`, `-000001.tar`, ...

    A shard is closed before the sample that would bring it over `shard_bytes` or `samples_max`; one larger sample
    has a shard to itself. Members: the audio under its own ending, the text as `<key>.txt`, the manifest's other
    fields as `<key>.json`. Shards of the prefix that are there are refused, or with `force` deleted before the
    first is written, so that two packs never stand mixed.

    Raises `RefusedError` on wrong arguments and on shards that are there; `DataError` on a malformed manifest, two
    files with one key, and missing, unreadable or empty audio, all before anything is written; and what the store
    raises.
    """
    output = _checked_output(output, shard_bytes, samples_max, prefix)
    store = store_of(output)
    older = _older_shards(store, output, prefix)
    if older and not force:
        raise RefusedError(
            f"{output} holds {len(older)} shard(s) {prefix!r} already, such as {older[0]}; "
            "choose another prefix or output, or replace them with --force"
        )
    origin = open_source(source)
    _check_audio(origin.entries)
    for uri in older:
        store.delete(uri)
    shards: list[ObjectInfo] = []
    num_texts = start = 0
    with TemporaryDirectory(prefix="voxmill-pack-") as folder:
        path = Path(folder, "shard.tar")
        while start < len(origin.entries):
            with _explained_when_full(folder, shard_bytes):
                filled = _write_shard(path, origin, origin.entries[start : start + samples_max], shard_bytes)
            shards.append(store.put_file(join(output, f"{prefix}-{len(shards):06d}.tar"), path))
            start += filled.num_samples
            num_texts += filled.num_texts
    return PackReport(tuple(shards), len(origin.entries), num_texts, origin.num_skipped)


def _checked_output(output: str, shard_bytes: int, samples_max: int, prefix: str) -> str:
    if shard_bytes < 1 or samples_max < 1:
        raise ConfigError(f"shard_bytes is {shard_bytes} and samples_max {samples_max}; both are at least 1")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", prefix):
        raise ConfigError(f"prefix {prefix!r} is not a file name of letters, digits, '_', '-' and '.'; choose another")
    try:
        check_uri(output)
    except ValueError as error:
        raise ConfigError(f"output: {error}") from None
    # As the stores list it, so that the names found there compare with it.
    return normal_uri(output).rstrip("/")


def _older_shards(store: Store, output: str, prefix: str) -> list[str]:
    shard = re.compile(re.escape(f"{output}/{prefix}-") + r"\d{6,}\.tar")
    return [found.uri for found in store.list(output) if shard.fullmatch(found.uri)]


def _check_audio(entries: Sequence[Entry]) -> None:
    faults = []
    num_faults = 0
    for entry in entries:
        fault = _audio_fault(entry.audio)
        num_faults += fault is not None
        if fault is not None and num_faults <= FAULTS_NAMED_MAX:
            faults.append(f"{entry.audio}: {fault}")
    if num_faults:
        more = [f"and {num_faults - len(faults)} more"] if num_faults > len(faults) else []
        raise DataError(
            f"{num_faults} of {len(entries)} audio files cannot be packed, and nothing was written; "
            "mend them or leave them out:\n  " + "\n  ".join(faults + more)
        )


def _audio_fault(path: str) -> str | None:
    if not has_audio_suffix(path):
        return f"has an ending that readers of shards do not take for audio; they take {dotted(AUDIO_EXTENSIONS)}"
    if not Path(path).is_file():
        return "is not a file" if Path(path).exists() else "is missing"
    try:
        # The declared length does not tell: a FLAC that was streamed declares none.
        with soundfile.SoundFile(path) as audio:
            return None if len(audio.read(1)) else "is empty"
    except soundfile.LibsndfileError as error:
        return _media_fault(Path(path).read_bytes(), f"is not readable: {error.error_string}")


def _media_fault(audio: bytes, otherwise: str) -> str | None:
    """As `_audio_fault`, of a file that soundfile does not read, and PyAV may: its container alone is looked at."""
    container = media_container(audio)
    if container is None:
        return otherwise
    try:
        return None if len(walk(audio, container).sizes) else "is empty"
    except AudioRejectedError as error:
        return f"is not readable: {error.detail}"


@contextmanager
def _explained_when_full(folder: str, shard_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InfraError(
            f"no space in {folder} for one shard of about {shard_bytes} bytes; "
            "set TMPDIR to a folder on a larger disk, or make smaller shards"
        ) from error


@dataclass(frozen=True, slots=True)
class _Filled:
    num_samples: int
    num_texts: int


def _write_shard(path: Path, source: Source, entries: Sequence[Entry], shard_bytes: int) -> _Filled:
    """Write the first of the entries as one archive: at least one, then as many as fit."""
    num_texts = 0
    # PAX headers appear only where a name is not ASCII or too long; the two zero blocks and padding come on closing.
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for index, entry in enumerate(entries):
            sidecars = source.sidecars(entry)
            audio_bytes = Path(entry.audio).stat().st_size
            if index and tar.offset + _stored_bytes([audio_bytes, *map(len, sidecars.values())]) > shard_bytes:
                return _Filled(index, num_texts)
            _add_audio(tar, entry)
            for suffix, content in sidecars.items():
                _add(tar, f"{entry.key}.{suffix}", io.BytesIO(content), len(content))
            num_texts += "txt" in sidecars
    return _Filled(len(entries), num_texts)


def _stored_bytes(sizes: Sequence[int]) -> int:
    """Bytes that members of these sizes take in an archive: a header block each, content in whole blocks."""
    return sum(tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for size in sizes)


def _add_audio(tar: tarfile.TarFile, entry: Entry) -> None:
    path = Path(entry.audio)
    try:
        with path.open("rb") as file:
            _add(tar, entry.key + path.suffix.lower(), file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise DataError(f"{path} cannot be read to its end: {error}; was it changed meanwhile? Pack again") from error


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size_bytes: int) -> None:
    # A fresh TarInfo has mode 0644, time, owner and group 0 and no names.
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    tar.addfile(member, content)
