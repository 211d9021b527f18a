"""Records that are none: refused by name, in bounded time, memory and words."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import RefusedError
from pipeline.records import RECORD_BYTES_MAX, CommitRecord


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format_version": ' + b"[" * 100_000,
        json.dumps({"format_version": 1, "objects": [0] * (RECORD_BYTES_MAX // 4)}).encode(),
        json.dumps({"format_version": "v" * (RECORD_BYTES_MAX // 2)}).encode(),
        b'{"format_version": 1, "timings": {"wall_s": Infinity}}',
    ],
    ids=["deep", "deep version", "wide", "long version", "infinite"],
)
def test_a_record_that_is_none_is_refused_in_few_words(content):
    with pytest.raises(RefusedError, match=r"commits/x\.json") as refused:
        CommitRecord.from_bytes(content, "commits/x.json")
    assert len(str(refused.value)) < 2000
