"""Audio containers for fuzzing: right ones in their outline, wrong in any field, cut, joined or damaged."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from pipeline.containers import CONTAINERS, _ogg_checksum

sizes = st.integers(0, 40) | st.sampled_from([0x7FFF0000, 0xFFFFFFFF, 0x80000000, 1 << 20])
bodies = st.binary(max_size=40) | st.sampled_from([bytes(100), b"\xff" * 50, b"\xff\xfb\x90\x00" * 20])


@dataclass(frozen=True)
class File:
    """Bytes, and the container that they are looked at as."""

    audio: bytes
    container: str


def _chunks(order: str) -> st.SearchStrategy[bytes]:
    kinds = st.sampled_from([b"data", b"ds64", b"fmt ", b"SSND", b"COMM", b"LIST", b"\0\0\0\0"])
    chunk = st.builds(
        lambda kind, size, body, honest: struct.pack(f"{order}4sI", kind,
        len(body) if honest else size) + body + b"\0" * (len(body) % 2),
        kinds, sizes, bodies, st.booleans(),
    )  # fmt: skip
    return st.lists(chunk, max_size=4).map(b"".join)


riffs = st.builds(
    lambda magic, size, chunks: magic + struct.pack("<I", size) + b"WAVE" + chunks,
    st.sampled_from([b"RIFF", b"RF64", b"RIFX"]), sizes, _chunks("<") | _chunks(">"),
)  # fmt: skip
aiffs = st.builds(lambda size, chunks: b"FORM" + struct.pack(">I", size) + b"AIFF" + chunks, sizes, _chunks(">"))
aus = st.builds(
    lambda magic, start, size, body: magic + struct.pack(">II", start, size) + body,
    st.sampled_from([b".snd", b"dns."]), sizes, sizes, bodies,
)  # fmt: skip
nists = st.lists(
    st.sampled_from(
        [b"NIST_1A\n   1024\n", b"sample_count -i 99\n", b"channel_count -i 2\n", b"sample_n_bytes -i 2\n", b"x" * 50,
         b"sample_count -i 999999999999999999\n", b"sample_count -i -1\n", b" " * 900, b"\n" * 900, b"end_head\n",
         bytes(1024)]
    ), max_size=6,
).map(b"".join)  # fmt: skip


@st.composite
def oggs(draw: st.DrawFn) -> bytes:
    """Pages of up to two streams, most with their right checksum."""
    pages = b""
    for number in range(draw(st.integers(0, 4))):
        body = draw(bodies)
        flags = draw(st.sampled_from([0, 2, 4, 6, 1]))
        counted = draw(st.sampled_from([number, number, number, 0, 0xFFFFFFFF]))
        lacings = [*[255] * (len(body) // 255), len(body) % 255]
        page = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, 0, draw(st.integers(0, 1)), counted, 0, len(lacings))
        page += bytes(lacings) + body
        checksum = _ogg_checksum(page) if draw(st.integers(0, 9)) else 0
        pages += page[:22] + struct.pack("<I", checksum) + page[26:]
    return pages


@st.composite
def mp3s(draw: st.DrawFn) -> bytes:
    """Frames of any kind with their own length or not, tags, length headers and junk between them."""
    pieces = []
    for _ in range(draw(st.integers(0, 6))):
        head = b"\xff" + bytes([draw(st.sampled_from([0xFB, 0xFA, 0xF3, 0xE3, 0xFD, 0xFF, 0xE0]))])
        head += bytes([draw(st.integers(0, 255)), draw(st.integers(0, 255))])
        mark = draw(
            st.sampled_from([b"", b"Xing\0\0\0\x01\0\0\0\x02", b"Info\0\0\0\x01\xff\xff\xff\xff", b"VBRI", b"Xing"])
        )
        at = draw(st.sampled_from([9, 17, 32]))
        pieces.append(draw(st.sampled_from([head + bytes(at) + mark + bytes(413 - at), head + bytes(68), head])))
        pieces.append(
            draw(
                st.sampled_from(
                    [
                        b"",
                        b"",
                        b"",
                        b"ID3\x03\0\0\0\0\0\x05junk!",
                        b"ID3" + b"\x7f" * 7,
                        b"TAG" + bytes(125),
                        b"\xff" * 300,
                    ]
                )
            )
        )
    return b"".join(pieces)


whole = {
    "AIFF": aiffs, "AU": aus, "FLAC": st.binary(max_size=60).map(lambda rest: b"fLaC" + rest), "MP3": mp3s(),
    "NIST": nists,
    "OGG": oggs(), "RF64": riffs, "WAV": riffs, "WAVEX": riffs,
}  # fmt: skip
assert whole.keys() == CONTAINERS


@st.composite
def files(draw: st.DrawFn) -> File:
    """A file, cut or damaged in one of three."""
    container = draw(st.sampled_from(sorted(whole)))
    audio = bytearray(draw(whole[container]))
    damage = draw(st.sampled_from(["none", "none", "none", "none", "cut", "cut", "flip", "other"]))
    if damage == "cut":
        del audio[draw(st.integers(0, len(audio))) :]
    elif damage == "flip" and audio:
        audio[draw(st.integers(0, len(audio) - 1))] ^= draw(st.integers(1, 255))
    elif damage == "other":
        container = draw(st.sampled_from(sorted(whole)))
    return File(bytes(audio), container)
