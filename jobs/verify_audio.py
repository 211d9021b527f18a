"""What must be true of one committed audio shard: bytes, counts, audio that can be decoded, numbers, keys."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import soundfile

from pipeline.errors import RefusedError
from pipeline.fetch import fetch_object
from pipeline.fingerprint import fingerprint
from pipeline.layout import OutputPlace
from pipeline.reader import split_name
from pipeline.records import CommitRecord, JobRecord
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class AudioRules:
    """What a job's record says of every row; `files` when each row is an object of its own."""

    fingerprint: str
    sample_rate_hz: int
    audio: str
    files: bool

    @classmethod
    def of(cls, job: JobRecord, uri: str) -> AudioRules:
        """From the parts of `job.json` that its fingerprint covers. Raises `RefusedError` when it does not."""
        parts = job.parts
        if fingerprint(parts) != job.fingerprint:
            raise RefusedError(f"{uri} was changed: its fingerprint is not that of its parts; put the right one back")
        return cls(
            fingerprint=job.fingerprint,
            sample_rate_hz=parts["decoder.sample_rate_hz"],
            audio=parts["audio"],
            files=parts["format"] == "files",
        )


@dataclass
class _Sum:
    """What the rows come to; `num_frames` is known of shards alone."""

    num_rows: int = 0
    num_audio_samples: int = 0
    num_frames: int = 0


def check_audio(store: Store, place: OutputPlace, record: CommitRecord, rules: AudioRules) -> Iterator[str]:
    """Every fault of the objects of one committed audio shard, as a line."""
    found = _Sum()
    for item in record.objects:
        with TemporaryFile(prefix="voxmill-") as file:
            fault = fetch_object(store, place.uri(item.path), item, file)
            if fault:
                yield f"{item.path}: {fault}"
                return
            if rules.files:
                yield from (f"{item.path}: {line}" for line in _check_file(file.read(), rules, found))
                continue
            try:
                yield from (f"{item.path}: {line}" for line in _check_tar(file, rules, found))
            except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
                yield f"{item.path}: cannot be read as audio shard: {type(error).__name__}: {error}"
                return
    yield from _check_counts(found, rules, record)


def _check_counts(found: _Sum, rules: AudioRules, record: CommitRecord) -> Iterator[str]:
    counts = record.counts
    numbers = {"num_rows": found.num_rows, "num_samples": found.num_rows, "num_audio_samples": found.num_audio_samples}
    if not rules.files:
        numbers["num_frames"] = found.num_frames
    for name, value in numbers.items():
        if value != getattr(counts, name):
            yield f"{name} is {value}, its commit says {getattr(counts, name)}"
    if abs(counts.audio_s - found.num_audio_samples / rules.sample_rate_hz) > 1e-3:
        yield f"audio_s is {found.num_audio_samples / rules.sample_rate_hz}, its commit says {counts.audio_s}"


def _check_file(content: bytes, rules: AudioRules, found: _Sum) -> Iterator[str]:
    """Decode one file whole."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as audio:
            what = (audio.format, audio.subtype, audio.samplerate, audio.channels)
            num_samples = len(audio.read(dtype="int16"))
    except soundfile.LibsndfileError as error:
        yield f"cannot be decoded: {error}"
        return
    expected = (rules.audio.upper(), "PCM_16", rules.sample_rate_hz, 1)
    if what != expected:
        yield f"is {what}, expected {expected}"
    found.num_rows += 1
    found.num_audio_samples += num_samples


def _check_tar(file: IO[bytes], rules: AudioRules, found: _Sum) -> Iterator[str]:
    """Each sample: `<key>.<audio>`, then `<key>.json`, then its sidecars."""
    suffix, keys = f".{rules.audio}", set()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        members = iter(tar)
        member = next(members, None)
        while member is not None:
            if not member.name.endswith(suffix):
                raise ValueError(f"member {member.name!r} stands where a <key>{suffix} should")
            key, before = member.name.removesuffix(suffix), found.num_audio_samples
            if key in keys:
                yield f"key {key!r} stands twice"
            keys.add(key)
            yield from (f"key {key!r}: {line}" for line in _check_file(_content(tar, member), rules, found))
            numbers = _numbers(tar, next(members, None), f"{key}.json")
            wanted = (key, rules.fingerprint, found.num_audio_samples - before)
            if (numbers["key"], numbers["voxmill.fingerprint"], numbers["num_samples"]) != wanted:
                yield f"key {key!r}: the numbers beside it are of another key, job or length"
            found.num_frames += numbers["num_frames"]
            member = next(members, None)
            while member is not None and _is_sidecar(member.name, key, suffix):
                member = next(members, None)


def _is_sidecar(name: str, key: str, suffix: str) -> bool:
    """Not by the beginning of its name alone: a key may be that of a folder with a dot, as `a.d/b` behind `a`."""
    return not name.endswith(suffix) and (split_name(name) or ("",))[0] == key


def _numbers(tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str) -> dict[str, Any]:
    if member is None or member.name != name:
        raise ValueError(f"{name!r} does not follow its audio")
    numbers = json.loads(_content(tar, member))
    if not isinstance(numbers, dict):
        raise ValueError(f"{name!r} holds no numbers")
    return numbers


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name!r} is no file")
    return content.read()
