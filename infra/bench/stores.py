"""Stores to measure with: one in memory, and one that counts the requests another is asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.errors import ObjectChangedError, ObjectMissingError
from pipeline.storage import Store
from pipeline.types import ObjectInfo, PartialObject

PAGE_KEYS = 1000
"""Keys in one answer of S3's ListObjectsV2."""


class MemoryStore:
    """Objects in a dict. Implements `pipeline.storage.Store`; every object's ETag is new."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[ObjectInfo, bytes]] = {}
        self._etags = count(1)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below a folder in name order, as they are when the listing begins."""
        folder = prefix.rstrip("/") + "/"
        for uri in sorted(uri for uri in self._objects if uri.startswith(folder)):
            yield self._objects[uri][0]

    def stat(self, uri: str) -> ObjectInfo:
        """One object's size and ETag."""
        return self._found(uri)[0]

    def read(self, uri: str, *, bytes_max: int) -> bytes:  # noqa: ARG002 - the protocol's
        """An object whole."""
        return self._found(uri)[1]

    def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> bytes:
        """The bytes [start, end). Raises `ObjectChangedError` on another ETag."""
        info, data = self._found(uri)
        if etag is not None and info.etag != etag:
            raise ObjectChangedError(f"{uri} changed: its ETag was {etag} and is {info.etag}")
        return data[start:end]

    def md5(self, uri: str, *, etag: str) -> str | None:  # noqa: ARG002 - the protocol's
        """None: its ETags are no checksums."""
        return None

    def put(self, uri: str, data: bytes, size_bytes: int | None = None) -> ObjectInfo:
        """Write an object; `size_bytes` lets it pass for a larger one."""
        info = ObjectInfo(uri, len(data) if size_bytes is None else size_bytes, f"{next(self._etags):032x}")
        self._objects[uri] = (info, data)
        return info

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        """Write a local file."""
        return self.put(uri, path.read_bytes())

    def put_if_absent(self, uri: str, data: bytes) -> ObjectInfo | None:
        """Write an object unless there is one."""
        return None if uri in self._objects else self.put(uri, data)

    def delete(self, uri: str) -> None:
        """Delete an object; no error when there is none."""
        self._objects.pop(uri, None)

    def list_partial(self, prefix: str) -> Iterator[PartialObject]:  # noqa: ARG002 - the protocol's
        """None: every write ends at once."""
        return iter(())

    def drop_partial(self, partial: PartialObject) -> None:
        """Never asked."""
        raise ObjectMissingError(f"{partial.uri} is no write under way")

    def _found(self, uri: str) -> tuple[ObjectInfo, bytes]:
        if uri not in self._objects:
            raise ObjectMissingError(f"{uri} is not there")
        return self._objects[uri]


class CountedStore:
    """Another store, with `requests` as S3 would bill them, by kind and folder below `base`; listings in pages."""

    def __init__(self, store: Store, base: str) -> None:
        self._store = store
        self._base = base.rstrip("/") + "/"
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        """The other store's method, counted."""
        method = getattr(self._store, name)

        def counted(uri: str, *args: Any, **options: Any) -> Any:
            self.requests[f"{name} {self._folder(uri)}"] += 1
            return method(uri, *args, **options)

        return counted

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The other store's listing, counted in pages."""
        num_keys = 0
        try:
            for info in self._store.list(prefix):
                num_keys += 1
                yield info
        finally:
            self.requests[f"list {self._folder(prefix)}"] += max(1, math.ceil(num_keys / PAGE_KEYS))

    def _folder(self, uri: str) -> str:
        return "/".join(uri.removeprefix(self._base).split("/")[:2])
