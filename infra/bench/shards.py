"""Shards to measure with: files of speech over and over under fresh keys, in plain tars."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Sequence
from pathlib import Path


def write_shard(
    path: Path, files: Sequence[Path], *, num_bytes: int | None = None, num_clips: int | None = None
) -> int:
    """Write a tar of these files in turn until it has so many bytes (or a little more) or clips; returns its clips.

    Equal arguments make shards of equal bytes but for the place of the files, which are taken as they are.
    """
    assert (num_bytes is None) != (num_clips is None)
    contents = [(file.suffix, file.read_bytes()) for file in files]
    with tarfile.open(path, "w") as tar:
        for index in itertools.count():
            full = tar.offset >= num_bytes if num_bytes is not None else index == num_clips
            if full:
                return index
            suffix, content = contents[index % len(contents)]
            member = tarfile.TarInfo(f"clip-{index:07d}{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    raise AssertionError("itertools.count() has no end")
