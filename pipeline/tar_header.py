"""One tar header block and the extension records around it, parsed strictly; pure functions over bytes.

Formats: old V7, POSIX ustar and pax (IEEE Std 1003.1-2017, `pax`, "ustar Interchange Format" and "pax Extended
Header"), GNU (tar manual, "Basic Tar Format"). Every fault is a `TarError` with the header's offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.errors import TarError

BLOCK_BYTES: Final = 512
SIZE_FIELD_MAX: Final = 0o77777777777
"""The largest size that fits in a header; of larger files a pax header says it, and the header anything."""

NUMBER_BYTES_MAX: Final = 20
"""Digits of a pax record's length or size: enough for 2**64, so that no number is absurdly long to parse."""

_POSIX_MAGIC: Final = b"ustar\0"
_KNOWN_MAGICS: Final = (_POSIX_MAGIC, b"ustar ", bytes(6))

_PACKED_MAGICS: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The fields that matter of one header block; `name` as stored, `type` its one byte.

    `sparse_map` is for type S alone: the first entries of GNU's map of a sparse file, and the byte that says whether
    more blocks of it follow.
    """

    name: bytes
    size_bytes: int
    type: bytes
    sparse_map: bytes


def parse_header(block: bytes, offset: int) -> Header:
    """The header in `block` (512 bytes, found at `offset`). Raises `TarError` on any fault."""
    if not has_valid_checksum(block):
        if offset == 0:
            refuse_packed(block)
        raise TarError(_no_header(block, offset))
    magic = block[257:263]
    if magic not in _KNOWN_MAGICS:
        raise TarError(
            f"offset {offset}: a tar header has the format mark {magic!r}; known: ustar, GNU, old V7. "
            "Pack the shard again with a common tar"
        )
    name = _string(block[:100])
    prefix = _string(block[345:500]) if magic == _POSIX_MAGIC else b""
    return Header(
        name=prefix + b"/" + name if prefix else name,
        size_bytes=_number(block[124:136], offset),
        type=block[156:157],
        sparse_map=block[386:483],
    )


def has_valid_checksum(block: bytes) -> bool:
    """Whether a block bears the checksum of a tar header, summed over unsigned or (old tars) signed bytes."""
    field = block[148:156].split(b"\0", 1)[0].strip(b" ")
    if not field or field.strip(b"01234567"):
        return False
    summed = block[:148] + block[156:BLOCK_BYTES]
    unsigned = sum(summed) + 8 * ord(" ")
    if int(field, 8) == unsigned:
        return True
    return int(field, 8) == unsigned - 256 * sum(byte > 0x7F for byte in summed)


def parse_pax(payload: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """Keyword and value of each pax record (`<length> <keyword>=<value>` and a newline). Raises `TarError`."""
    start = 0
    while start < len(payload):
        digits, space, _ = payload[start : start + NUMBER_BYTES_MAX].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = payload[start : start + length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or not record.endswith(b"\n") or not equals or not keyword:
            raise TarError(
                f"offset {offset}: a pax header holds {payload[start : start + 32]!r} where a record "
                "'<length> <keyword>=<value>' should stand; the archive is damaged"
            )
        yield keyword, value
        start += length


def parse_pax_size(value: bytes, header: Header, offset: int) -> int:
    """The number of bytes in the pax `size` record of the member with `header`. Raises `TarError`."""
    if not value.isdigit() or len(value) > NUMBER_BYTES_MAX:
        raise TarError(f"offset {offset}: a pax header says size {value[:32]!r}; allowed are decimal digits")
    size_bytes = int(value)
    if header.size_bytes not in (0, size_bytes) and size_bytes <= SIZE_FIELD_MAX:
        raise TarError(
            f"offset {offset}: a member has {header.size_bytes} bytes by its own header and {size_bytes} by a pax "
            "header before it: members would be swallowed or cut; pack the shard again"
        )
    return size_bytes


def parse_long_name(payload: bytes, offset: int) -> bytes:
    """The name in the data of a GNU long name header. Raises `TarError` when there is more than a name."""
    name = payload.rstrip(b"\0")
    if b"\0" in name:
        raise TarError(
            f"offset {offset}: a GNU long name holds more than a name: members may be hidden in it, or it is "
            "damaged; pack the shard again"
        )
    return name


def num_sparse_bytes(entries: bytes, offset: int) -> int:
    """Bytes of data by some entries of a GNU sparse map: an offset and a length, 12 bytes each. Raises `TarError`."""
    numbers = [_number(entries[at : at + 12], offset) for at in range(0, len(entries), 12)]
    return sum(numbers[1::2])


def refuse_packed(head: bytes) -> None:
    """Raise `TarError` when the first bytes of a shard are those of a compressed file."""
    for magic, name in _PACKED_MAGICS.items():
        if head.startswith(magic):
            raise TarError(f"offset 0: the shard is compressed with {name}; decompress it: shards are plain tar files")


def _string(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes, offset: int) -> int:
    """Octal digits, or GNU's base 256: first bit set, the rest a big-endian two's complement."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if value >> (bits - 1):
            raise TarError(f"offset {offset}: a tar header says a size of {value - (1 << bits)} bytes")
        return value
    digits = _string(field).strip(b" ")
    if digits.strip(b"01234567"):
        raise TarError(f"offset {offset}: a tar header says size {digits!r}; allowed are octal digits")
    return int(digits or b"0", 8)


def _no_header(block: bytes, offset: int) -> str:
    found = f"{block[:16].hex(' ')} ..."
    if block[257:262] == b"ustar":
        return (
            f"offset {offset}: a tar header ({found}) does not match its checksum; the archive is damaged here: "
            "fetch or pack the shard again"
        )
    return (
        f"offset {offset}: no tar header but {found}; the archive is damaged here, or is no tar file: "
        "fetch or pack the shard again"
    )
