"""What an attempt at an audio shard puts: its tar, or each member of it as an object of its own."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath

from pipeline.errors import DataError
from pipeline.layout import OutputPlace, file_path
from pipeline.records import RECORD_BYTES_MAX, ObjectRecord
from pipeline.spool import SpooledFile
from pipeline.storage import Store

PUTS_IN_FLIGHT = 8
"""Files put at once; each is in memory meanwhile."""

NAME_BYTES_MAX = 255
"""Of one name between two slashes: what file systems take."""

_OBJECT_RECORD_BYTES = 160
"""Of a commit record, for one object without its path; and its paths may be escaped to twice their length."""


def put_files(
    store: Store,
    place: OutputPlace,
    shard_id: str,
    attempt: str,
    spooled: Iterable[SpooledFile],
    *,
    on_put: Callable[[], None],
) -> tuple[ObjectRecord, ...]:
    """Put each member of a shard's tar as an object below a folder that no other attempt has, in the tar's order.

    Raises `DataError` when a key is no name of a file, or when they are too many for one commit record.
    """
    objects: list[ObjectRecord] = []
    with ThreadPoolExecutor(PUTS_IN_FLIGHT, thread_name_prefix="voxmill-files") as pool:

        def put(member: tuple[str, bytes]) -> ObjectRecord:
            path = file_path(shard_id, attempt, member[0])
            store.put(place.uri(path), member[1])
            return ObjectRecord(path=path, num_bytes=len(member[1]), sha256=hashlib.sha256(member[1]).hexdigest())

        for file in spooled:
            _check_names(file, shard_id, attempt)
            members = _members(file)
            while some := list(islice(members, PUTS_IN_FLIGHT)):
                objects += pool.map(put, some)
                on_put()
    return tuple(objects)


def check_file_name(name: str) -> None:
    """Raises `DataError` unless `name` (with its folders) names one file below a folder, the same on every store."""
    parts = name.split("/")
    is_plain = str(PurePosixPath(name)) == name and not name.startswith("/") and ".." not in parts
    hidden = any(part.startswith(".tmp-") for part in parts)
    too_long = any(len(part.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX for part in parts)
    if not is_plain or hidden or too_long or "\0" in name:
        raise DataError(f"{name[:NAME_BYTES_MAX]!r} is no name for a file; write shards (--format shards) instead")


def _check_names(file: SpooledFile, shard_id: str, attempt: str) -> None:
    num_bytes, names = 0, set()
    with tarfile.open(file.path, mode="r:") as tar:
        for member in tar:
            check_file_name(member.name)
            if member.name in names:
                raise DataError(f"the shard has {member.name!r} twice; write shards (--format shards) instead")
            names.add(member.name)
            num_bytes += _OBJECT_RECORD_BYTES + 2 * len(file_path(shard_id, attempt, member.name).encode())
    if num_bytes > RECORD_BYTES_MAX:
        raise DataError(
            f"the shard's {len(names)} files are too many for one commit record; write shards (--format shards) instead"
        )


def _members(file: SpooledFile) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file.path, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None, "the writer adds files alone"
            yield member.name, content.read()
