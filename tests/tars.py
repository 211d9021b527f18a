"""Small tar archives for tests: well-formed ones by `tarfile`, odd blocks by hand, and a stream over bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

END = bytes(1024)


class BytesStream:
    """A `ByteStream` over bytes, as strict as the real one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read_exact(self, num_bytes: int) -> bytes:
        self.skip(num_bytes)
        return self._data[self.position - num_bytes : self.position]

    def read_payload(self, num_bytes: int) -> bytes:
        return self.read_exact(num_bytes)

    def skip(self, num_bytes: int) -> None:
        if self.position + num_bytes > len(self._data):
            raise EOFError
        self.position += num_bytes


def tar(files: Sequence[tuple[str, bytes]], *, format: int = tarfile.PAX_FORMAT, **fields: object) -> bytes:  # noqa: A002
    """An archive of regular files, or of members with other `fields` of their `TarInfo`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=format, errors="surrogateescape") as writer:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            writer.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def block(
    *,
    name: bytes = b"a.txt",
    size: bytes = b"00000000005\0",
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    is_signed: bool = False,
) -> bytes:
    """One header block, field by field, with its right checksum."""
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0"
    tail = kind + bytes(100) + magic.ljust(8, b"\0") + bytes(80) + prefix.ljust(155, b"\0") + bytes(12)
    summed = head + b" " * 8 + tail
    total = sum(summed) - (256 * sum(byte > 127 for byte in summed) if is_signed else 0)
    return head + b"%06o\0 " % total + tail


def padded(data: bytes) -> bytes:
    """Data, padded to whole blocks."""
    return data + bytes(-len(data) % 512)
