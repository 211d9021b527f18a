"""Token objects that no commit names, and when they may be deleted.

They are listed first; the commit of their shard is read after that, from its record and never from derived data. An
attempt finds its term before it puts an object, so of what was listed then no other attempt than the commit's can still
count: a standing commit, or a fence put after the listing, proves the loss.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.layout import OutputPlace, parse_token_path
from pipeline.manifest import Manifest
from pipeline.records import CommitRecord
from pipeline.storage import Store
from pipeline.types import ObjectInfo


def unnamed_objects(
    listed: Iterable[ObjectInfo], place: OutputPlace, manifest: Manifest
) -> dict[str, list[ObjectInfo]]:
    """Token objects by shard id that the manifest does not name, which may be out of date: so these are candidates."""
    named = manifest.rows.object_paths()
    found: dict[str, list[ObjectInfo]] = {}
    for info in listed:
        path = place.path(info.uri)
        owner = parse_token_path(path) if path not in named else None
        if owner:
            found.setdefault(owner[0], []).append(info)
    return found


def delete_unnamed(
    store: Store, place: OutputPlace, found: Iterable[ObjectInfo], standing: CommitRecord | None
) -> list[ObjectInfo]:
    """Delete those of the listed objects of a shard that its commit, read after the listing, does not name.

    None stands for a fence that was put after the listing. Returns what was deleted.
    """
    named = {item.path for item in standing.objects} if standing is not None else set()
    unnamed = [info for info in found if place.path(info.uri) not in named]
    for info in unnamed:
        store.delete(info.uri)
    return unnamed
