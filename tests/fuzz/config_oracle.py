"""What must hold of any job file, any `--set` and any input that a person may give."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jobs.options import config_of
from pipeline import shards
from pipeline.config import JobConfig
from pipeline.errors import ConfigError, ObjectMissingError, RefusedError
from pipeline.shards import Listing, list_shards
from pipeline.storage import is_remote, normal_uri
from pipeline.types import ObjectInfo
from tests.fuzz.bounds import bounded
from tests.fuzz.configs import SECRET

MESSAGE_CHARS_MAX = 100_000
"""Of an error: it stands on a terminal, in a log and in a failure record."""

ENTRIES_MAX = 1_000
"""The bound on the names of one input, made small, so that passing it shows."""


NAMES_MAX = 5
"""Of the objects in a place, each of which a name that is a folder stands for."""


def check_config(folder: Path, job_file: bytes, assignments: Sequence[str]) -> str:
    """Raises `AssertionError` unless there is a config or a `ConfigError` that tells no secret."""
    path = folder / "job.yaml"
    path.write_bytes(job_file)
    try:
        with bounded():
            flags = ["input=/in/a.tar", "output=/out", *assignments]
            config = config_of(argparse.Namespace(job=str(path), set=flags, ray_address=None))
    except ConfigError as error:
        _check_message(error)
        return "refused"
    assert isinstance(config, JobConfig)
    return "taken"


def check_input(text: str, objects: Sequence[str], lines: bytes) -> str:
    """Raises `AssertionError` unless `text` stands for shards of `objects` or is refused."""
    store = _Objects(objects, lines)
    try:
        with bounded(), patch.object(shards, "ENTRIES_MAX", ENTRIES_MAX):
            listing = list_shards([text], store.at)
    except RefusedError as error:
        _check_message(error)
        return "refused"
    _check_listing(listing)
    return "listed"


def _check_listing(listing: Listing) -> None:
    assert len(listing.shards) + len(listing.missing) <= ENTRIES_MAX * NAMES_MAX
    uris = [shard.uri for shard in listing.shards]
    assert uris == sorted(set(uris))
    for uri in uris:
        assert normal_uri(uri) == uri
        assert SECRET not in uri


def _check_message(error: RefusedError) -> None:
    message = str(error)
    assert SECRET not in message, message
    assert len(message) < MESSAGE_CHARS_MAX, f"{len(message)} characters"


class _Objects:
    """A store that holds some objects; a `@list` holds `lines`."""

    def __init__(self, names: Sequence[str], lines: bytes) -> None:
        self._names = names
        self._lines = lines

    def at(self, uri: str) -> _Objects:
        is_remote(uri)
        return self

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for name in sorted(set(self._names)):
            uri = f"{prefix.rstrip('/')}/{name}"
            if is_remote(uri) or normal_uri(uri) == uri:
                yield ObjectInfo(uri, 1, "e")

    def stat(self, uri: str) -> ObjectInfo:
        if "\0" in uri:
            raise ValueError("embedded null byte")  # as a file system's call does
        if uri.rpartition("/")[2] in self._names:
            return ObjectInfo(uri, 1, "e")
        raise ObjectMissingError("not there")

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        self.stat(uri + "x") if "\0" in uri else None
        return self._lines[:bytes_max]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"listing calls {name}")
