"""Archives for fuzzing: whole ones of every format, odd headers with right checksums, and damage on top."""

from __future__ import annotations

import base64
import tarfile
import zlib
from typing import Any

from hypothesis import strategies as st

from tests.tars import block, padded


class Archive(bytes):
    """Bytes that are shown packed, as they may stand in an `@example`: most of an archive is zeros."""

    def __repr__(self) -> str:
        return f"unpacked({base64.b85encode(zlib.compress(self, 9)).decode()!r})"


def unpacked(text: str) -> Archive:
    """The bytes that are shown so."""
    return Archive(zlib.decompress(base64.b85decode(text)))


NAMES = (
    "a.wav", "a.WAV", "a.txt", "a.mic.wav", "b.flac", "d/a.wav", "b.json", "README", ".hidden.wav", "__m__/a.wav",
    "__m__", "d/", "d/.x.wav", "../up.wav", "/abs.wav", "a.", "x" * 101 + ".wav", "p/" * 70 + "long.wav", "é.wav",
)  # fmt: skip
names = st.sampled_from(NAMES) | st.text(st.sampled_from("ab./_é\0\n "), max_size=8)
raw_names = names.map(lambda name: name.encode()) | st.binary(max_size=100)
contents = st.sampled_from([b"", b"x", b"RIFF" * 200, bytes(512), bytes(1024), b"y" * 512]) | st.binary(max_size=40)

SIZES = (
    b"00000000005\0", b"00000000000\0", b"          5 ", b"5\0garbage!!!", bytes(12), b"77777777777\0", b"\xff" * 12,
    b"\x80" + bytes(10) + b"\x05", b"\x80" + b"\x7f" * 11, b"0000000008 \0", b"-0000000001\0", b"00000000512\0",
    b"00000001000\0", b"000000002000", b"\xff" + b"\x80" * 11, b" " * 12,
)  # fmt: skip
MAGICS = (b"ustar\x0000", b"ustar  \0", bytes(8), b"tar\0\0\0\0\0", b"ustar\0\0\0")
TYPES = tuple(bytes([code]) for code in b"0\x0001234567DKLMNSVAXgxZ")


def _octal(number: int) -> bytes:
    return b"%011o\0" % number


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header of any fields with its right checksum, and data that may fit its size."""
    data = draw(contents)
    size = draw(st.sampled_from((_octal(len(data)),) * 80 + SIZES))
    kind = draw(st.sampled_from((*TYPES, *(b"0",) * 60)))
    head = block(
        name=draw(raw_names)[:100],
        size=size,
        kind=kind,
        magic=draw(st.sampled_from(MAGICS[:3] * 9 + MAGICS)),
        prefix=draw(st.just(b"") | raw_names)[:155],
        is_signed=draw(st.booleans()),
    )
    return head + draw(st.sampled_from([padded(data)] * 25 + [data]))


PAX_KEYWORDS = (
    b"path", b"size", b"linkpath", b"hdrcharset", b"mtime", b"comment", b"GNU.sparse.major", b"GNU.sparse.minor",
    b"GNU.sparse.name", b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.realsize", b"GNU.sparse.numblocks",
)  # fmt: skip
PAX_VALUES = (b"", b"/", b"0", b"1", b"5", b"512", b"-1", b"9" * 25, b"0,1", b"BINARY", b"1.5", b"a=b", b"d/x.wav/")


def pax_record(keyword: bytes, value: bytes) -> bytes:
    """`<length> <keyword>=<value>` and a newline, with the length that counts itself."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


pax_records = st.builds(pax_record, st.sampled_from(PAX_KEYWORDS), st.sampled_from(PAX_VALUES) | raw_names)
pax_headers = st.builds(
    lambda kind, records: block(kind=kind, name=b"pax", size=_octal(len(records))) + padded(records),
    st.sampled_from([b"x", b"X", b"g"]),
    st.lists(pax_records, max_size=4).map(b"".join),
)
long_names = st.builds(
    lambda kind, name: (
        block(kind=kind, name=b"././@LongLink", size=_octal(len(name)), magic=b"ustar  \0") + padded(name)
    ),
    st.sampled_from([b"L", b"L", b"K"]),
    raw_names.map(lambda name: name + b"\0") | st.sampled_from([b"n" * 600 + b".wav\0", b"x" * 9000 + b".wav"]),
)


@st.composite
def sparse_members(draw: st.DrawFn) -> bytes:
    """A GNU sparse header, its map's blocks, and data."""
    data = draw(contents)
    head = bytearray(block(name=draw(raw_names)[:100], kind=b"S", magic=b"ustar  \0", size=_octal(len(data))))
    num_more = draw(st.integers(0, 3))
    head[482] = num_more > 0
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    blocks = [
        bytes(504) + bytes([draw(st.integers(0, 9)) if at < num_more else 0]) + bytes(7) for at in range(num_more)
    ]
    return bytes(head) + b"".join(blocks) + padded(data)


def _member(name: str, data: bytes, format: int) -> bytes:  # noqa: A002
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if len(name.encode()) > 99 and format == tarfile.USTAR_FORMAT:
        format = tarfile.GNU_FORMAT  # noqa: A001
    return info.tobuf(format, "utf-8", "surrogateescape") + padded(data)


whole_members = st.builds(
    _member,
    names.filter(lambda name: "\0" not in name),
    contents,
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
ends = st.sampled_from([bytes(1024)] * 12 + [bytes(10_240), bytes(512), b"", bytes(20_480), bytes(1024) + b"junk"])
member = st.one_of(whole_members, headers(), headers(), sparse_members())
parts = st.one_of(
    *[
        st.builds(lambda *blocks: b"".join(blocks), *together)
        for together in (
            (member,),
            (member,),
            (pax_headers, member),
            (long_names, member),
            (pax_headers, long_names, member),
        )
    ],
    st.sampled_from([bytes(512), b"5 a=\n" * 90]),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Parts one after another, an end, and perhaps damage that leaves checksums right or not."""
    data = b"".join(draw(st.lists(parts, max_size=6))) + draw(ends)
    damage: Any = draw(st.sampled_from([None] * 9 + ["cut", "flip", "flip and sum", "splice", "insert", "repeat"]))
    if damage is None or not data:
        return data
    at = draw(st.integers(0, len(data) - 1))
    if damage == "cut":
        return data[:at]
    if damage == "insert":
        return data[:at] + draw(st.binary(max_size=600)) + data[at:]
    if damage == "splice":
        return data[:at] + data[draw(st.integers(0, len(data) - 1)) // 512 * 512 :]
    if damage == "repeat":
        return data + data[at // 512 * 512 :]
    flipped = bytearray(data)
    flipped[at] ^= draw(st.integers(1, 255))
    if damage == "flip and sum":
        start = at // 512 * 512
        head = flipped[start : start + 512]
        head[148:156] = b" " * 8
        flipped[start + 148 : start + 156] = b"%06o\0 " % sum(head)
    return bytes(flipped)


archives = damaged().map(Archive)
