"""The boxes of an MP4 or QuickTime file (ISO/IEC 14496-12, 4.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.media_track import truncated, unreadable


@dataclass(frozen=True, slots=True)
class Box:
    """A box of the file `audio`: it begins at `begin`, its content at `start`, and both end at `end`."""

    audio: bytes
    kind: bytes
    begin: int
    start: int
    end: int

    def children(self, skip: int = 0) -> list[Box]:
        """The boxes in it, `skip` bytes after its start."""
        return list(boxes(self.audio, self.start + skip, self.end))

    def find(self, *path: bytes) -> Box | None:
        """The first box at that path, None where there is none."""
        found: Box | None = self
        for kind in path:
            found = next((child for child in found.children() if child.kind == kind), None) if found else None
        return found

    def need(self, *path: bytes) -> Box:
        """The first box at that path; a file without it is not read."""
        found = self.find(*path)
        if found is None:
            raise unreadable(f"its box {_name(self.kind)!r} has no {'/'.join(map(_name, path))!r}")
        return found

    def content(self, skip: int = 0) -> bytes:
        """Its bytes, `skip` after its start."""
        return self.audio[self.start + skip : self.end]

    def unpack(self, form: str, skip: int = 0) -> tuple[Any, ...]:
        """Big-endian fields, `skip` bytes after its start."""
        if self.start + skip + struct.calcsize(">" + form) > self.end:
            raise unreadable(f"its box {_name(self.kind)!r} is too short")
        return struct.unpack_from(">" + form, self.audio, self.start + skip)

    def table(self, dtype: str, num_rows: int, skip: int) -> NDArray[Any]:
        """`num_rows` values of a structured or plain type; no more than are there."""
        kind = np.dtype(dtype)
        if self.start + skip + num_rows * kind.itemsize > self.end:
            raise unreadable(f"its box {_name(self.kind)!r} says {num_rows} entries, more than it has room for")
        return np.frombuffer(self.audio, kind, num_rows, self.start + skip)


def boxes(audio: bytes, position: int, end: int) -> Iterator[Box]:
    """The boxes one behind the other from `position` to `end`; raises `AudioRejectedError` where one does not fit."""
    while position < end:
        if end - position < 8:
            if end < len(audio) and not any(audio[position:end]):
                return  # QuickTime ends some lists with four zero bytes
            raise truncated(f"its box at byte {position} is cut")
        size, kind = struct.unpack_from(">I4s", audio, position)
        head_bytes = 8
        if size == 1 and end - position >= 16:
            size, head_bytes = int.from_bytes(audio[position + 8 : position + 16], "big"), 16
        elif size == 0 and end == len(audio):
            size = end - position
        if size < head_bytes:
            raise truncated(f"its box {_name(kind)!r} at byte {position} has no room for its own header")
        if position + size > end:
            detail = f"its box {_name(kind)!r} at byte {position} says {size} bytes, {end - position} are there"
            raise truncated(detail)
        yield Box(audio, kind, position, position + head_bytes, position + size)
        position += size


def _name(kind: bytes) -> str:
    return kind.decode("latin-1").encode("ascii", "backslashreplace").decode()
