"""Local places with very many files, made quickly: hard links to a few."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

LINKS_MAX = 50_000
"""To one file; ext4 allows 65,000."""


def quick_folder() -> str | None:
    """Where temporary files are in memory, if somewhere: else the usual place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Links:
    """Files of one content and one ETag; each new name is a hard link."""

    def __init__(self, spare: Path, content: bytes) -> None:
        self._spare = spare
        self._content = content
        self._num = 0
        spare.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path) -> None:
        """One more name; its folder must be there."""
        source = self._spare / f"{self._num // LINKS_MAX}"
        if self._num % LINKS_MAX == 0:
            source.write_bytes(self._content)
            os.utime(source, ns=(10**18, 10**18))  # the same time, and so the same ETag, for all
        os.link(source, path)
        self._num += 1

    def add_all(self, paths: Iterable[Path]) -> None:
        """Many, with their folders."""
        folder = None
        for path in paths:
            if path.parent != folder:
                folder = path.parent
                folder.mkdir(parents=True, exist_ok=True)
            self.add(path)


def input_paths(folder: Path, num_shards: int) -> list[Path]:
    """Names of shards below `folder`/in, in folders of ten thousand."""
    return [folder / "in" / f"part-{n // 10_000:04d}" / f"shard-{n:07d}.tar" for n in range(num_shards)]
