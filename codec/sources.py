"""Where a checkpoint's files come from: a local folder here, the hub and S3 in the files beside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CHECKPOINT_SUBFOLDER = "ckpts"
"""Checkpoint files may stand at the top of their place or in this folder of it, as published repositories have it."""


class Source(Protocol):
    """A place that holds checkpoint files, at its top or in `ckpts/`."""

    @property
    def uri(self) -> str:
        """The place, for messages."""
        ...

    def fetch(self, names: Sequence[str]) -> Path:
        """A local folder with those of the named files that the place has, each whole.

        Raises `CodecError` when the place does not exist or is denied, `CodecUnavailableError` when it does not
        answer now.
        """
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this host's file system; nothing is copied."""

    root: Path

    @property
    def uri(self) -> str:
        """The folder's path."""
        return str(self.root)

    def fetch(self, names: Sequence[str]) -> Path:
        """The folder itself, or its `ckpts/`."""
        return folder_of(self.root, names)


def folder_of(root: Path, names: Sequence[str]) -> Path:
    """`root`, or its `ckpts/` when that holds one of the named files and `root` does not."""
    subfolder = root / CHECKPOINT_SUBFOLDER
    for folder in (root, subfolder):
        if (folder / names[0]).is_file():
            return folder
    return root


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the lines `<name> <SHA-256>` of some files, in name order; each is read a block at a time."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
