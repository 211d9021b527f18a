"""`voxmill redo`: shards are taken back, so that the next run does them anew; safe beside runs and sleepers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.commit import find_standing, take_back
from pipeline.errors import RefusedError
from pipeline.job import read_job
from pipeline.layout import output_place
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Stores


@dataclass(frozen=True)
class RedoReport:
    """The shards that were taken back."""

    output: str
    shard_ids: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        return [
            *(f"taken back: {shard_id}" for shard_id in self.shard_ids),
            f"run the job on {self.output} again: it does them anew",
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"output": self.output, "shard_ids": list(self.shard_ids)}


def redo(output: str, shard_ids: Sequence[str], storage: StorageConfig, retry: RetryConfig) -> RedoReport:
    """Turn the commits of these shards into fences.

    Raises `RefusedError`, before anything is changed, where there is no job or one of them has no commit.
    """
    place = output_place(output)
    store = Stores(storage, retry)(place.base)
    read_job(store, place)
    standing = {shard_id: find_standing(store, place, shard_id) for shard_id in shard_ids}
    without = [shard_id for shard_id, found in standing.items() if found.record is None]
    if without:
        raise RefusedError(
            f"{', '.join(without)}: no commit stands in {place.base}; shard ids are the names in commits/ without "
            "their ending, as `voxmill verify` tells them"
        )
    for found in standing.values():
        take_back(store, place, found)
    return RedoReport(place.base, tuple(standing))
