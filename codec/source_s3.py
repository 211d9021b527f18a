"""Checkpoints in S3: fetched once into a local cache that is addressed by what the store said it holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, NoCredentialsError

from codec.base import CodecError, CodecUnavailableError
from codec.sources import CHECKPOINT_SUBFOLDER


@dataclass(frozen=True, slots=True)
class _Object:
    path: str
    size_bytes: int
    etag: str


class S3Folder:
    """A folder of a bucket; `storage_options` are s3fs's (`endpoint_url`, `profile`, `anon`, ...)."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        self._uri = uri.rstrip("/")
        self._storage_options = dict(storage_options)
        self._objects: dict[str, _Object] | None = None

    @property
    def uri(self) -> str:
        """The folder's URI."""
        return self._uri

    def fetch(self, names: Sequence[str]) -> Path:
        """The cache folder, with the files whole. Raises as `Source.fetch` says.

        The processes of a host fetch one after another, so that each file crosses the network once.
        """
        store = fsspec.filesystem("s3", **self._storage_options)
        if self._objects is None:
            with self._explained():
                self._objects = _list(store, self._uri, names[0])
        folder = _cache_folder(self._uri, self._objects)
        with _locked(folder), self._explained():
            for name in names:
                if name in self._objects:
                    self._fetch_one(store, self._objects[name], folder / name)
        return folder

    def _fetch_one(self, store: Any, found: _Object, target: Path) -> None:
        """Fetch an object unless it is here; the file appears whole, by a rename."""
        if target.is_file() and target.stat().st_size == found.size_bytes:
            return
        part = target.with_name(f".{target.name}.part")
        try:
            store.get_file(found.path, str(part))
            now = store.info(found.path, refresh=True)
            if part.stat().st_size != found.size_bytes or now["ETag"] != found.etag:
                raise CodecUnavailableError(
                    f"s3://{found.path} arrived incomplete, or changed while it was being fetched: run again"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the client's errors into the codec's; their text may hold a key's name and stays in the chain."""
        try:
            yield
        except FileNotFoundError as error:
            raise CodecError(f"{self._uri} was not found: check the bucket and the folder's name") from error
        except (PermissionError, NoCredentialsError) as error:
            raise CodecError(
                f"{self._uri} is denied: check the credentials (environment or profile) and their right to list and "
                "read it"
            ) from error
        except (OSError, BotoCoreError) as error:
            raise CodecUnavailableError(
                f"{self._uri} cannot be fetched now ({type(error).__name__}): check the network, the endpoint "
                "and the room in the cache folder, and run again"
            ) from error


def _list(store: Any, uri: str, wanted: str) -> dict[str, _Object]:
    """The objects at the folder's top, or those of its `ckpts/` when `wanted` stands only there; by name."""
    top = _list_one(store, uri)
    subfolder = PurePosixPath(uri.removeprefix("s3://")) / CHECKPOINT_SUBFOLDER
    if wanted in top or not store.isdir(str(subfolder)):
        return top
    return _list_one(store, f"s3://{subfolder}")


def _list_one(store: Any, uri: str) -> dict[str, _Object]:
    return {
        PurePosixPath(entry["name"]).name: _Object(entry["name"], int(entry["size"]), str(entry["ETag"]))
        for entry in store.ls(uri, detail=True, refresh=True)
        if entry["type"] == "file"
    }


def _cache_folder(uri: str, objects: Mapping[str, _Object]) -> Path:
    """`$XDG_CACHE_HOME/voxmill/checkpoints/<hash>`: another content at the same URI is another folder."""
    parts = [uri, sorted((found.path, found.size_bytes, found.etag) for found in objects.values())]
    address = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    # The XDG base directory specification: an empty variable counts as none.
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "voxmill" / "checkpoints" / address


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process of this host in here at a time; the lock ends with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
