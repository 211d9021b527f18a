"""What must hold of any bytes that are read as a shard."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

from pipeline.errors import DataError, TarError
from pipeline.reader import AUDIO_EXTENSIONS, NAME_CHARS_MAX, is_meta, read_samples, split_name
from pipeline.settings import ReadingConfig
from pipeline.tar import EXTENSION_BYTES_MAX, TRAILING_ZEROS_BYTES_MAX, MemberKind, printable, read_members
from pipeline.types import Reject, Sample
from tests.fuzz.bounds import bounded
from tests.tars import BytesStream

CONFIG = ReadingConfig(sample_bytes_max=2000, samples_max=50)
CARRY = ("txt", "json")
TEXT_CHARS_MAX = 16_384
"""Of the words of one sample or reject: thousands are held at once."""


class Metered(BytesStream):
    """A stream that hands out no more at once than a reader may hold."""

    def read_exact(self, num_bytes: int) -> bytes:
        assert 0 <= num_bytes <= EXTENSION_BYTES_MAX + 512, f"{num_bytes} bytes were taken at once"
        return super().read_exact(num_bytes)


@dataclass(frozen=True)
class Found:
    """A member as the strict parser gave it; `begin` and `end` are those of its payload."""

    name: str
    kind: MemberKind
    offset: int
    begin: int
    end: int


def check_shard(data: bytes) -> str:
    """Raises `AssertionError` where the readers break a promise; returns what became of the archive."""
    with bounded():
        members, fault = _members(data)
        items, reading_fault = _items(data)
    assert all(len(str(error)) < TEXT_CHARS_MAX for error in (fault, reading_fault))
    if fault is not None:
        assert "offset" in str(fault)
        assert reading_fault is not None, "the reader went on behind a damage"
        return "damaged"
    _check_ranges(data, members)
    _check_against_tarfile(data, members)
    if reading_fault is None:
        _check_items(data, members, items)
    return "whole"


def _members(data: bytes) -> tuple[list[Found], TarError | None]:
    stream, found = BytesStream(data), []
    try:
        for member in read_members(stream, len(data)):
            begin = stream.position
            found.append(Found(member.name, member.kind, member.offset, begin, begin + member.size_bytes))
    except TarError as error:
        return found, error
    return found, None


def _items(data: bytes) -> tuple[list[Sample | Reject], DataError | None]:
    items: list[Sample | Reject] = []
    try:
        items += read_samples(Metered(data), len(data), CONFIG, CARRY)
    except DataError as error:
        return items, error
    for item in items:
        words = item.key + (item.audio_member if isinstance(item, Sample) else item.member + item.detail)
        assert len(words) < TEXT_CHARS_MAX, f"{len(words)} characters of words"
        words.encode()
        assert printable(item.key) == item.key
    return items, None


def _check_ranges(data: bytes, members: list[Found]) -> None:
    """Each block is of a header, of a payload or of the archive's end; none is passed over."""
    position = 0
    for member in members:
        assert member.offset == position
        assert member.offset < member.begin <= member.end <= len(data)
        position = -(-member.end // 512) * 512
    end = data[position:]
    assert 1024 <= len(end) <= 1024 + TRAILING_ZEROS_BYTES_MAX
    assert not end.strip(b"\0")


def _check_against_tarfile(data: bytes, members: list[Found]) -> None:
    """What `tarfile` takes for regular files is there, with its name and its data.

    An empty pax path is no name (POSIX has it delete the header's): `tarfile` takes it, ours keeps the header's.
    """
    ours = {(one.name, data[one.begin : one.end]) for one in members if one.kind is MemberKind.FILE}
    ours |= {("", content) for _, content in ours}
    sparse = [one.name for one in members if one.kind is MemberKind.SPARSE_FILE]
    try:
        with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
            theirs = [(info, archive.extractfile(info)) for info in archive if info.isreg()]
            is_global = archive.pax_headers.keys() & {"path", "size"}
    except (tarfile.TarError, ValueError):  # also what it stumbles over: a charset that is none, an absurd number
        return
    if is_global:  # one name or size for all that follows, which no program writes, and each reader takes otherwise
        return
    for info, file in theirs:
        assert file is not None
        if not info.issparse():
            # Of a sparse name and a path `tarfile` takes the later; both stand for sparse files alone.
            possible = {_name(info, data), info.pax_headers.get("GNU.sparse.name")}
            content = file.read()
            assert any(name in sparse or (name, content) in ours for name in possible) or (sparse and not info.name), (
                info
            )
    assert sum(info.issparse() for info, _ in theirs) <= len(sparse)


def _name(info: tarfile.TarInfo, data: bytes) -> str:
    """Its name without the prefix, which `tarfile` takes from headers too that have other things there (GNU, V7)."""
    header = data[info.offset_data - 512 : info.offset_data]
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    is_posix = header[257:263] == b"ustar\0"
    return info.name.removeprefix(prefix + "/") if prefix and not is_posix else info.name


def _check_items(data: bytes, members: list[Found], items: list[Sample | Reject]) -> None:
    """Each file is in one item, in order; folders and what WebDataset keeps for itself are in none."""
    strays = [item for item in items if isinstance(item, Reject) and item.reason in ("not_a_file", "bad_name")]
    grouped = [item for item in items if item not in strays]
    expected_strays, groups = [], []
    for member in members:
        named = split_name(member.name)
        shown = printable(member.name)
        if member.kind is MemberKind.DIRECTORY:
            continue
        is_named = member.kind is MemberKind.FILE and shown == member.name
        if (
            is_named
            and len(shown) <= NAME_CHARS_MAX
            and is_meta(shown)
            and shown.rpartition(".")[2].lower() not in AUDIO_EXTENSIONS
        ):
            continue
        if not is_named or is_meta(shown) or named is None or len(shown) > NAME_CHARS_MAX:
            expected_strays.append(shown[:NAME_CHARS_MAX])
        elif groups and groups[-1][0] == named[0] and named[1] not in groups[-1][1]:
            groups[-1][1][named[1]] = member
        else:
            groups.append((named[0], {named[1]: member}))
    assert [item.key for item in strays] == expected_strays
    assert [item.key for item in grouped] == [key for key, _ in groups]
    seen = set()
    for item, (key, together) in zip(grouped, groups, strict=True):
        if isinstance(item, Sample):
            assert key not in seen
            payloads = {suffix: data[one.begin : one.end] for suffix, one in together.items()}
            assert item.audio == payloads[item.audio_suffix]
            assert together[item.audio_suffix].name == item.audio_member
            assert item.sidecars == {suffix: payloads[suffix] for suffix in CARRY if suffix in payloads}
        else:
            assert item.reason == "duplicate_key" or key not in seen
        seen.add(key)
