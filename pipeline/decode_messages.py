"""What a decoding process and its parent say to each other: small JSON messages, bulk data in memory files.

A message is one packet of an AF_UNIX SOCK_SEQPACKET pair, with at most one file descriptor beside it. A packet
arrives whole or not at all, so a process that dies in the middle leaves no half message. No pickle: a decoder
that ran wild can send nothing that its parent would run.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MESSAGE_BYTES_MAX: Final = 1 << 16
DETAIL_CHARS_MAX: Final = 2_000
CHUNK_SAMPLES_MAX: Final = 1_024
"""Their sizes fit in one message."""

_FD: Final = struct.Struct("i")
_CUT: Final = int(socket.MSG_CTRUNC)
"""As a number: a flag of an enumeration is a hundred times slower to ask for."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a decoding process is told at its start.

    `fault_hook` is for tests alone: `module:function`, called with the bytes of each sample before it is decoded.
    """

    sample_rate_hz: int
    clip_ms_min: float
    clip_s_max: float
    memory_bytes_max: int
    fault_hook: str | None = None


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Mapping[str, object], fd: int | None = None) -> None:
    """Send a message. Raises `EOFError` when the other end is gone."""
    ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(fd))]
    try:
        channel.sendmsg([json.dumps(message).encode()], ancillary)
    except ConnectionError:
        raise EOFError("the other end is gone") from None


def receive(channel: socket.socket) -> tuple[dict[str, Any], int | None]:
    """The next message and the descriptor beside it, which is the caller's to close.

    Raises `EOFError` when the other end is gone, `TimeoutError` after the channel's timeout, `OSError` when this
    process may open no more descriptors.
    """
    space = socket.CMSG_LEN(_FD.size)
    try:
        data, ancillary, flags, _ = channel.recvmsg(MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        data, ancillary, flags = b"", [], 0
    if not data:
        raise EOFError("the other end is gone")
    if flags & _CUT:
        raise OSError(
            errno.EMFILE, "no descriptor is left for what a decoding process sent; raise the limit (ulimit -n)"
        )
    fds = [_FD.unpack(content[: _FD.size])[0] for _, _, content in ancillary]
    return json.loads(data), fds[0] if fds else None


def memory_file(name: str) -> int:
    """A new file in memory, private to whom its descriptor is sent."""
    return os.memfd_create(name, os.MFD_CLOEXEC)
