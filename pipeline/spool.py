"""Unnamed local files, where what is to be put, or was fetched, is gathered whole."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from types import TracebackType
from typing import Protocol, Self

from pipeline.errors import SpoolFullError


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """A finished file in the spool, to be put under a folder of the output."""

    folder: str
    path: Path
    num_bytes: int
    sha256: str


class Closing(Protocol):
    """What has an end."""

    def close(self) -> None:
        """Finish; a second call does nothing."""
        ...


class Spool:
    """Unnamed local files: the disk gets them back even when the process is killed."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._files: dict[str, io.BufferedRandom] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.close()
        except OSError as closing:
            _check_room(closing)
            raise
        _check_room(error)

    def closes(self, writer: Closing) -> None:
        """Close this writer before the files at the latest; its `close` may be called twice.

        Also after a failure, and when the closing of another fails: a writer left open would write its footer later,
        into a closed file.
        """
        self._open.callback(writer.close)

    def file(self, folder: str) -> io.BufferedRandom:
        """The one file that goes to this folder."""
        if folder not in self._files:
            self._files[folder] = self._open.enter_context(TemporaryFile(prefix="voxmill-"))  # noqa: SIM115 (the stack closes it)
        return self._files[folder]

    def finished(self) -> Iterator[SpooledFile]:
        """All files with size and SHA-256, in name order of their folders."""
        for folder, file in sorted(self._files.items()):
            file.flush()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            path = Path(f"/proc/self/fd/{file.fileno()}")  # opens the unnamed file anew, from its start
            yield SpooledFile(folder, path, os.fstat(file.fileno()).st_size, digest)


def _check_room(error: BaseException | None) -> None:
    """Say of an error of a full disk which disk it is: the operating system does not."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise SpoolFullError(
            f"the temporary folder {gettempdir()} has no room for this token shard ({error.strerror}); free some space "
            "there, or set TMPDIR to a folder on a larger disk"
        ) from error
