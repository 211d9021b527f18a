"""Records for fuzzing: right ones with any value in any place, other JSON, and bytes that are none."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from pipeline.records import CommitRecord, FailureRecord, JobRecord, StatusRecord

KINDS = (CommitRecord, FailureRecord, JobRecord, StatusRecord)
INPUT = {"uri": "s3://b/a.tar", "size_bytes": 1, "etag": "e"}
COUNTS = {
    "num_samples": 1, "num_rows": 1, "num_rejected": 0, "rejects": {}, "num_frames": 1, "num_audio_samples": 1,
    "audio_s": 1.0, "num_frames_by_codebooks": {"1": 1}
}  # fmt: skip
WHOLE: tuple[dict[str, Any], ...] = (
    {
        "format_version": 1, "shard_id": "a-00000000", "fingerprint": "f", "input": INPUT, "attempt": "a",
        "counts": COUNTS,
        "objects": [{"path": "tokens/a", "num_bytes": 1, "sha256": "0"}], "timings": {"wall_s": 1.0},
        "environment": {"host": "h"},
    },
    {"format_version": 1, "shard_id": "a-00000000", "input": INPUT, "attempt": "a", "kind": "data", "error": "E",
    "message": "m"},
    {
        "format_version": 1, "voxmill_version": "1", "fingerprint": "f", "parts": {"device": "cpu"},
        "config": {"input": ["a"]},
        "codec": {"name": "c", "checkpoint_hash": "h", "sample_rate_hz": 1, "frame_size": 1,
        "semantic_cardinality": 1,
                  "acoustic_cardinalities": [1]},
    },
    {
        "format_version": 1, "state": "running", "driver": "d", "updated_unix_s": 1, "started_unix_s": 1,
        "status_every_s": 1,
        "num_shards": 1, "num_committed": 1, "num_failed": 1, "num_missing": 1, "num_replicas": 1, "num_rows": 1,
        "num_rejected": 0, "audio_s": 1, "times_real_time": 1,
    },
)  # fmt: skip

values = st.recursive(
    st.sampled_from(
        [None, True, 0, -1, 1, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "1", "9" * 5000]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[type[Any], bytes]:
    """A kind of record, and one with up to three places changed or taken away, maybe cut."""
    at = draw(st.integers(0, len(KINDS) - 1))
    record = json.loads(json.dumps(WHOLE[at]))
    for _ in range(draw(st.integers(0, 3))):
        place = record
        while True:
            names = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(place[name], (dict, list)) and draw(st.booleans()):
                place = place[name]
                continue
            if draw(st.integers(0, 3)):
                place[name] = draw(values)
            else:
                del place[name]
            break
    content = json.dumps(record).encode(draw(st.sampled_from(["utf-8"] * 9 + ["utf-16"])))
    is_cut = not draw(st.integers(0, 9))
    return KINDS[at], content[: draw(st.integers(0, len(content)))] if is_cut else content


strange = values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)
contents = st.one_of(changed(), changed(), st.tuples(st.sampled_from(KINDS), strange))
