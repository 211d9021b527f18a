"""A committed object copied to this host and held against its record."""

from __future__ import annotations

import hashlib
from typing import IO

from pipeline.errors import DataError
from pipeline.records import ObjectRecord
from pipeline.storage import Store

RANGE_BYTES = 8 << 20


def fetch_object(store: Store, uri: str, item: ObjectRecord, file: IO[bytes]) -> str | None:
    """Copy an object to a local file, which is then at its start; returns what is wrong with its size or checksum."""
    try:
        info = store.stat(uri)
        if info.size_bytes != item.num_bytes:
            return f"has {info.size_bytes} bytes, its commit says {item.num_bytes}"
        digest = hashlib.sha256()
        for start in range(0, item.num_bytes, RANGE_BYTES):
            end = min(start + RANGE_BYTES, item.num_bytes)
            content = store.read_range(uri, start, end, etag=info.etag)
            digest.update(content)
            file.write(content)
    except DataError as error:
        return str(error)
    if digest.hexdigest() != item.sha256:
        return f"has sha256 {digest.hexdigest()}, its commit says {item.sha256}"
    file.seek(0)
    return None
