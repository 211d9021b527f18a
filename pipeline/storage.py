"""Object stores behind one small face: list, read by ranges, put whole, put only if absent.

Every place is an absolute URI (`s3://bucket/key`, `file:///path` or a plain path). One implementation a
kind of store: `storage_local.py`, `storage_s3.py`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from pipeline.errors import ConfigError, ObjectMissingError, RefusedError, UnsafeStoreError
from pipeline.retry import Retry
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage_local import LocalStore, local_path
from pipeline.types import Content, ObjectInfo, PartialObject
from pipeline.uris import check_uri, without_credentials

PROBE_PREFIX = ".probe-"
"""Of objects that a probe puts and deletes again, unless its process dies."""


class Store(Protocol):
    """One kind of store. Every call is retried inside by the one policy and is safe from several threads.

    All raise `StoreDeniedError` when the credentials are missing or wrong (never retried),
    `StoreUnavailableError` when the policy's bound is reached, `ObjectMissingError` where an object is not there.
    No message holds a credential.
    """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below a folder (recursive, in name order); nothing when there is none."""
        ...

    def stat(self, uri: str) -> ObjectInfo:
        """One object's size and ETag."""
        ...

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        """A small object whole; `DataError` when it is larger than `bytes_max`."""
        ...

    def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> Content:
        """Exactly the bytes [start, end); `ObjectChangedError` when the object no longer has that ETag."""
        ...

    def md5(self, uri: str, *, etag: str) -> str | None:
        """The MD5 (hex) of an object's content, where the store tells it; `ObjectChangedError` on another ETag."""
        ...

    def put(self, uri: str, data: bytes) -> ObjectInfo:
        """Write an object whole and at once, over any older one."""
        ...

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        """Write a local file as an object, whole and at once; returns what the store says it holds.

        Raises `StoreUnavailableError` when size or checksum differ from the file's.
        """
        ...

    def put_if_absent(self, uri: str, data: bytes) -> ObjectInfo | None:
        """Write an object unless there is one: None when there is, else the object written.

        After a lost reply the object found may be our own: read it back and compare. On
        `StoreUnavailableError` the outcome is unknown.
        """
        ...

    def delete(self, uri: str) -> None:
        """Delete an object; no error when there is none."""
        ...

    def list_partial(self, prefix: str) -> Iterator[PartialObject]:
        """Writes below a folder that have not ended: those under way, and those whose writer died."""
        ...

    def drop_partial(self, partial: PartialObject) -> None:
        """End such a write without an object: its writer, if it lives, gets an error. No error when it is gone."""
        ...


def open_store(uri: str, storage: StorageConfig, retry: RetryConfig) -> Store:
    """The store that holds `uri`; no request is made.

    Raises `ConfigError` when `uri` is no path, `file://` or `s3://` URI.
    """
    if not is_remote(uri):
        return LocalStore(Retry(retry))
    from pipeline.storage_s3 import S3Store  # s3fs takes a second to import

    return S3Store(storage, Retry(retry))


def store_options(uri: str, storage: StorageConfig) -> dict[str, Any]:
    """The fsspec `storage_options` that reach the same store, for readers that speak fsspec themselves.

    Raises `ConfigError` when `uri` is no path, `file://` or `s3://` URI.
    """
    if not is_remote(uri):
        return {}
    from pipeline.storage_s3 import s3_options

    return s3_options(storage)


def is_remote(uri: str) -> bool:
    """Whether `uri` is in object storage. Raises `ConfigError` when it is in no kind of store known here."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    scheme = match.group(1) if match else "file"
    if scheme not in ("file", "s3"):
        raise ConfigError(
            f"{without_credentials(uri)!r}: {scheme}:// is no store; allowed: a plain path, file://, s3://"
        )
    return scheme == "s3"


def normal_uri(uri: str) -> str:
    """`uri` as the stores write it: a plain absolute path for local files, `s3://bucket/key` as it is.

    Raises `ConfigError` when it is in no kind of store known here, or carries credentials.
    """
    try:
        check_uri(uri)
    except ValueError as error:
        raise ConfigError(f"{without_credentials(uri)!r}: {error}") from None
    return uri if is_remote(uri) else str(local_path(uri))


def probe_put_if_absent(store: Store, base_uri: str) -> None:
    """Prove that `store` writes below `base_uri`, and one key only once: two puts of one fresh key.

    Raises `UnsafeStoreError` when the second put goes through, `StoreDeniedError` when the place cannot be
    written or cleaned, `RefusedError` when its bucket is not there.
    """
    uri = join(base_uri, f"{PROBE_PREFIX}{uuid4().hex}")
    try:
        store.put_if_absent(uri, b"first")
        second = store.put_if_absent(uri, b"second")
        store.delete(uri)
    except ObjectMissingError as error:
        raise RefusedError(f"the output {base_uri} cannot be written: {error}; create the bucket first") from error
    except KeyboardInterrupt:
        store.delete(uri)  # an interrupted run leaves nothing but what the next one goes on from
        raise
    if second is not None:
        raise UnsafeStoreError(
            f"the store of {base_uri} let a second put-if-absent of one key through (If-None-Match was ignored), "
            "so two writers of one shard could both think that they committed it; choose a store that enforces "
            "it, or take that risk with --allow-unsafe-store"
        )


def join(base: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([base.rstrip("/"), *parts])


class Stores:
    """The store of any URI, each kind opened once; `stores(uri)` may be called from several threads."""

    def __init__(self, storage: StorageConfig, retry: RetryConfig) -> None:
        self._storage = storage
        self._retry = retry
        self._opened: dict[bool, Store] = {}
        self._opening = threading.Lock()

    def __call__(self, uri: str) -> Store:
        """The store that holds `uri`. Raises `ConfigError` when it is in no kind of store known here."""
        remote = is_remote(uri)
        with self._opening:
            if remote not in self._opened:
                self._opened[remote] = open_store(uri, self._storage, self._retry)
            return self._opened[remote]
