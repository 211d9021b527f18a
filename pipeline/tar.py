"""A strict tar parser over a stream: each member in order, or a `TarError` with the offset of the fault.

Nothing is passed over in silence: a cut anywhere, a hole of zeros, a second archive after the first, a damaged
header. Python's `tarfile` takes all of these for the archive's end, and samples vanish.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from pipeline.errors import TarError
from pipeline.tar_header import (
    BLOCK_BYTES,
    Header,
    has_valid_checksum,
    num_sparse_bytes,
    parse_header,
    parse_long_name,
    parse_pax,
    parse_pax_size,
    refuse_packed,
)
from pipeline.types import Content

EXTENSION_BYTES_MAX: Final = 1 << 20
"""Of a GNU long name or a pax header: paths and attributes, never data."""

TRAILING_ZEROS_BYTES_MAX: Final = 10_240 - BLOCK_BYTES
"""After the last member. Tars are padded to records of 10 KiB by habit; many more zeros are lost data."""

NAME_CHARS_SHOWN: Final = 200
"""Of a name in a message."""

_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_SCAN_BYTES: Final = 128 * BLOCK_BYTES


class ByteStream(Protocol):
    """What the parser reads from."""

    def read_exact(self, num_bytes: int) -> bytes:
        """The next bytes; `EOFError` when the stream ends before them."""
        ...

    def read_payload(self, num_bytes: int) -> Content:
        """As `read_exact`, for a member's data."""
        ...

    def skip(self, num_bytes: int) -> None:
        """Pass over the next bytes; `EOFError` when the stream ends before them."""
        ...


class MemberKind(StrEnum):
    """What a member is; the value reads in a message."""

    FILE = "file"
    DIRECTORY = "directory"
    DIRECTORY_WITH_DATA = "directory with data"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    DEVICE = "device"
    FIFO = "fifo"
    SPARSE_FILE = "sparse file"
    UNKNOWN = "member of unknown type"


_KINDS: Final = {
    b"\0": MemberKind.FILE,
    b"0": MemberKind.FILE,
    b"7": MemberKind.FILE,
    b"1": MemberKind.HARD_LINK,
    b"2": MemberKind.SYMBOLIC_LINK,
    b"3": MemberKind.DEVICE,
    b"4": MemberKind.DEVICE,
    b"5": MemberKind.DIRECTORY,
    b"D": MemberKind.DIRECTORY,
    b"6": MemberKind.FIFO,
    b"S": MemberKind.SPARSE_FILE,
}
_TYPES_WITHOUT_DATA: Final = b"123456"
_LINK_TYPES: Final = (b"1", b"2")
_PAX_TYPES: Final = (b"x", b"X", b"g")
_GNU_LONG_TYPES: Final = {b"L": b"path", b"K": b"linkpath"}


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `offset` is that of its first header; bytes of `name` that are not UTF-8 are surrogates.

    `read()` gives the payload, `size_bytes` of it, once and before the next member is asked for; what is not
    read is passed over without being held.
    """

    name: str
    size_bytes: int
    kind: MemberKind
    offset: int
    read: Callable[[], Content]


def read_members(stream: ByteStream, shard_size_bytes: int) -> Iterator[Member]:
    """The members of the archive that is the whole of `stream`, `shard_size_bytes` long.

    Raises `TarError` where the archive is damaged, after the members before the fault were yielded.
    """
    return _Archive(stream, shard_size_bytes).members()


class _Archive:
    def __init__(self, stream: ByteStream, size_bytes: int) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self._position = 0
        self._payload_end = 0
        self._global_records: dict[bytes, bytes] = {}

    def members(self) -> Iterator[Member]:
        if self._size_bytes == 0:
            raise TarError("offset 0: the shard is empty (0 bytes); an archive has two zero blocks at least")
        if self._size_bytes < BLOCK_BYTES:
            refuse_packed(self._stream.read_exact(self._size_bytes))
        while (member := self._next_member()) is not None:
            yield member
            self._skip_rest()

    def _next_member(self) -> Member | None:
        """The next member, its extension headers applied, or None after the archive's well-formed end."""
        offset = self._position
        records: dict[bytes, bytes] = {}
        while True:
            header_offset = self._position
            block = self._take(BLOCK_BYTES, "a header, or the two zero blocks that end an archive")
            if block == _ZERO_BLOCK:
                if header_offset != offset:
                    raise TarError(f"offset {header_offset}: zeros stand where a pax or GNU header's member should")
                self._check_end()
                return None
            header = parse_header(block, header_offset)
            if header.type in _PAX_TYPES or header.type in _GNU_LONG_TYPES:
                self._read_extension(header, header_offset, records)
            else:
                return self._member(header, header_offset, self._global_records | records, offset)

    def _read_extension(self, header: Header, offset: int, records: dict[bytes, bytes]) -> None:
        if header.size_bytes > EXTENSION_BYTES_MAX:
            raise TarError(
                f"offset {offset}: an extension header says {header.size_bytes} bytes; allowed are "
                f"{EXTENSION_BYTES_MAX}: it is damaged, or holds what is no name"
            )
        self._check_fits(header.size_bytes, "an extension header", offset)
        payload = self._take(_padded(header.size_bytes), "an extension header")[: header.size_bytes]
        if header.type in _GNU_LONG_TYPES:
            records.setdefault(_GNU_LONG_TYPES[header.type], parse_long_name(payload, offset))
            return
        found: dict[bytes, bytes] = {}
        for keyword, value in parse_pax(payload, offset):
            if keyword.startswith(b"GNU.sparse.") and keyword != b"GNU.sparse.name":
                found[b"GNU.sparse"] = b"1"
            elif keyword in (b"path", b"size", b"GNU.sparse.name"):
                found[keyword] = value.rstrip(b"/") if keyword == b"path" else value
        if header.type == b"g":
            self._global_records.update(found)
        else:
            records.update(found | records)  # the first header of a member counts, as for tarfile and so WebDataset

    def _member(self, header: Header, offset: int, records: dict[bytes, bytes], start: int) -> Member:
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or header.name
        text = name.decode("utf-8", "surrogateescape")
        if b"linkpath" in records and header.type not in _LINK_TYPES:
            raise TarError(
                f"offset {offset}: a GNU long link name stands before {_shown(text)}, which is no link: it may hide "
                "members; pack the shard again"
            )
        kind, size_bytes = self._kind_and_size(header, offset, records, name)
        if header.type == b"S":
            self._skip_sparse_map(header, size_bytes, offset)
        self._check_fits(size_bytes, f"member {_shown(text)}", offset)
        self._payload_end = self._position + size_bytes
        return Member(text, size_bytes, kind, start, self._read_payload)

    def _kind_and_size(
        self, header: Header, offset: int, records: dict[bytes, bytes], name: bytes
    ) -> tuple[MemberKind, int]:
        if header.type in _TYPES_WITHOUT_DATA:
            return _KINDS[header.type], 0
        if header.type == b"\0" and name.endswith(b"/"):
            return MemberKind.DIRECTORY, 0  # the old way to say so, before there was a type for it
        size_bytes = header.size_bytes
        if (size := records.get(b"size")) is not None:
            size_bytes = parse_pax_size(size, header, offset)
        kind = _KINDS.get(header.type, MemberKind.UNKNOWN)
        if kind is MemberKind.FILE and b"GNU.sparse" in records:
            kind = MemberKind.SPARSE_FILE
        if kind is MemberKind.DIRECTORY and size_bytes:
            kind = MemberKind.DIRECTORY_WITH_DATA  # by GNU a list of its files, by anyone else who knows what
        return kind, size_bytes

    def _skip_sparse_map(self, header: Header, size_bytes: int, offset: int) -> None:
        """Pass over the blocks between an old GNU sparse header and its data.

        Raises `TarError` when their entries do not come to the data's size: what stands there is then no map.
        """
        num_bytes = num_sparse_bytes(header.sparse_map[:-1], offset)
        is_continued = header.sparse_map[-1] != 0
        while is_continued:
            block = self._take(BLOCK_BYTES, "a sparse file's map")
            num_bytes += num_sparse_bytes(block[:504], offset)
            is_continued = block[504] != 0
        if num_bytes != size_bytes:
            raise TarError(
                f"offset {offset}: the map of a sparse file comes to {num_bytes} bytes, its header says {size_bytes}; "
                "the archive is damaged: fetch or pack the shard again"
            )

    def _read_payload(self) -> Content:
        num_bytes = self._payload_end - self._position
        self._check_left(num_bytes, "a member's data")
        payload = self._stream.read_payload(num_bytes)
        self._position += num_bytes
        return payload

    def _check_fits(self, num_bytes: int, what: str, offset: int) -> None:
        left = self._size_bytes - self._position
        if num_bytes > left:
            raise TarError(
                f"offset {offset}: {what} says {num_bytes} bytes, but the shard has {left} more; it is cut or "
                "damaged: fetch or pack it again"
            )

    def _check_end(self) -> None:
        """Called after the first zero block: a second one, then nothing but a few more zeros."""
        end = self._position
        second = self._take(BLOCK_BYTES, "the second of the two zero blocks that end an archive")
        if second != _ZERO_BLOCK:
            raise TarError(
                f"offset {end - BLOCK_BYTES}: one block of zeros stands between members: a hole in the data; "
                "fetch or pack the shard again"
            )
        padding_end = min(self._size_bytes, self._position + TRAILING_ZEROS_BYTES_MAX)
        self._check_zeros(end, padding_end)
        if padding_end < self._size_bytes:
            raise TarError(
                f"offset {end - BLOCK_BYTES}: the archive ends here, and {self._size_bytes - end} bytes of the "
                f"shard are left; allowed are {TRAILING_ZEROS_BYTES_MAX} of padding: members were lost, or the "
                "padding is absurd: fetch or pack the shard again"
            )

    def _check_zeros(self, end: int, until: int) -> None:
        while self._position < until:
            start = self._position
            piece = self._take(min(_SCAN_BYTES, until - start), "its padding")
            num_zeros = len(piece) - len(piece.lstrip(b"\0"))
            if num_zeros < len(piece):
                block_start = num_zeros - num_zeros % BLOCK_BYTES
                block = piece[block_start : block_start + BLOCK_BYTES]
                is_header = len(block) == BLOCK_BYTES and has_valid_checksum(block)
                found = "a further tar header" if is_header else "data"
                raise TarError(
                    f"offset {start + num_zeros}: {found} after the archive's end at offset {end}: a second "
                    "archive, a hole of zeros or junk; pack the shard again as one archive"
                )

    def _take(self, num_bytes: int, what: str) -> bytes:
        self._check_left(num_bytes, what)
        taken = self._stream.read_exact(num_bytes)
        self._position += num_bytes
        return taken

    def _skip_rest(self) -> None:
        """Pass over what is left of the member's payload and its padding to a whole block."""
        num_bytes = _padded(self._payload_end) - self._position
        self._check_left(num_bytes, "the padding of a member's data")
        self._stream.skip(num_bytes)
        self._position += num_bytes

    def _check_left(self, num_bytes: int, what: str) -> None:
        left = self._size_bytes - self._position
        if num_bytes > left:
            raise TarError(
                f"offset {self._position}: {what} should stand here, but the shard has {left} more bytes: it is "
                "cut; fetch or pack it again"
            )


def printable(name: str) -> str:
    r"""A name with its surrogates and control characters escaped as `\xff`: valid text, fit for one line."""
    visible = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\x{ord(match[0]):02x}", visible)


def _shown(name: str) -> str:
    return repr(printable(name)[:NAME_CHARS_SHOWN])


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
