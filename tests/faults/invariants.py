"""The one judge of all rows: whether I1..I6 hold of what a run left behind.

Looks at the bare objects of an output place and at what the run said, with nothing of the product's own readers: only
JSON, Parquet, tar and NumPy.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import pyarrow.parquet as pq

TOKEN_FOLDERS = ("tokens", "semantic", "acoustic", "rejects")
DERIVED = ("manifest.parquet", "status.json", "job.json")

Ids = tuple[list[int], list[list[int]]]
"""Semantic ids, and acoustic ids by codebook."""

_Row = tuple[Ids, int, int, bool]
"""Its ids, frames and audio samples, and whether it has its own number of codebooks."""


@dataclass(frozen=True)
class Expected:
    """What must stand in an output place.

    `rows` and `rejects` by shard name, then by key; a row without ids (None) is checked in all but its ids. `hashes`
    are those of the fault-free run's objects, for shards whose bytes are as in that run. `failed` shards must not be
    committed, `committed` ones must; the others may be. A driver that was `killed` may have left its
    probe of the store. Rows that say their own number of acoustic codebooks must have just those, the truth's first.
    """

    rows: Mapping[str, Mapping[str, Ids | None]]
    rejects: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hashes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    committed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    complete: bool = True
    killed: bool = False
    frame_size: int = 960
    sample_rate_hz: int = 16000


def commits(objects: Mapping[str, bytes]) -> dict[str, dict]:
    """The commit records by shard name (the last part of the input's URI); a shard has one at most."""
    found: dict[str, dict] = {}
    for path, content in objects.items():
        if path.startswith("commits/"):
            record = json.loads(content)
            if not record.get("fence"):
                name = record["input"]["uri"].rsplit("/", 1)[1]
                assert name not in found, f"I3: {name} is committed twice"
                found[name] = record
    return found


def check(objects: Mapping[str, bytes], expected: Expected) -> None:
    """Raises `AssertionError` naming the invariant that is broken."""
    standing = commits(objects)
    assert expected.committed <= standing.keys(), f"I5: not committed: {set(expected.committed) - standing.keys()}"
    assert not (expected.failed & standing.keys()), f"I5: failed, yet committed: {expected.failed & standing.keys()}"
    unknown = standing.keys() - expected.rows.keys() - expected.rejects.keys()
    assert not unknown, f"I1: commits of shards that are no input: {unknown}"
    named: set[str] = set()
    everywhere: dict[str, str] = {}
    for name, record in standing.items():
        for item in record["objects"]:
            content = objects.get(item["path"])
            assert content is not None, f"I3: the commit of {name} names {item['path']}, which is not there"
            assert len(content) == item["num_bytes"], f"I3: {item['path']} has another size than its commit says"
            assert hashlib.sha256(content).hexdigest() == item["sha256"], f"I3: {item['path']} was damaged"
            assert item["path"] not in named, f"I3: two commits name {item['path']}"
            named.add(item["path"])
        _check_shard(name, record, objects, expected)
        everywhere |= dict.fromkeys(expected.rows.get(name, {}), name)
    if expected.complete:
        strangers = {path for path in objects if path.split("/")[0] in TOKEN_FOLDERS} - named
        assert not strangers, f"I3: a plain glob sees what no commit names: {sorted(strangers)}"
        rows = pq.read_table(io.BytesIO(objects["manifest.parquet"])).to_pylist()
        attempts = {row["shard_id"]: row["attempt"] for row in rows}
        assert attempts == {r["shard_id"]: r["attempt"] for r in standing.values()}, (
            "I3: the manifest is not the commits"
        )
    for path in objects:
        known = path.split("/")[0] in (*TOKEN_FOLDERS, "commits", "failures") or path in DERIVED
        known |= expected.killed and path.startswith(".probe-")
        assert known, f"I3: {path} is nothing that a run leaves"


def _check_shard(name: str, record: dict, objects: Mapping[str, bytes], expected: Expected) -> None:
    rows: dict[str, _Row] = {}
    rejects: dict[str, list[str]] = {}
    for item in record["objects"]:
        folder, content = item["path"].split("/")[0], objects[item["path"]]
        if folder == "rejects":
            for row in pq.read_table(io.BytesIO(content)).to_pylist():
                rejects.setdefault(row["key"], []).append(row["reason"])
        elif folder == "tokens":
            for row in pq.read_table(io.BytesIO(content)).to_pylist():
                assert row["key"] not in rows, f"I1: {name}: {row['key']} stands twice"
                acoustic = [row[column] for column in sorted(row) if column.startswith("acoustic_")]
                rows[row["key"]] = _row(name, row, row.get("semantic") or [], acoustic)
        elif folder == "semantic":
            acoustic_path = item["path"].replace("semantic/", "acoustic/", 1)
            rows = _tar_rows(name, content, objects.get(acoustic_path))
    wanted, unwanted = expected.rows.get(name, {}), expected.rejects.get(name, {})
    lost, strange = sorted(wanted.keys() - rows.keys()), sorted(rows.keys() - wanted.keys())
    assert not lost, f"I1: {name}: lost {lost}"
    assert not strange, f"I1: {name}: not of the shard: {strange}"
    found = {key: reasons[0] for key, reasons in rejects.items()}
    assert found == dict(unwanted), f"I1: {name}: rejects are {found}, not {dict(unwanted)}"
    doubled = [key for key, reasons in rejects.items() if len(reasons) > 1]
    assert not doubled, f"I1: {name}: rejected twice: {doubled}"
    counts = record["counts"]
    assert (counts["num_rows"], counts["num_rejected"]) == (len(rows), len(rejects)), f"I1: {name}: the counts lie"
    for key, (ids, num_frames, num_audio_samples, is_cut) in rows.items():
        lengths = {len(stream) for stream in ([ids[0]] if ids[0] else []) + ids[1]}
        assert lengths == {num_frames}, f"I6: {name}: {key}: {num_frames} frames, ids of {lengths}"
        assert num_frames == ceil(num_audio_samples / expected.frame_size), f"I6: {name}: {key}: {num_frames} frames"
        truth = wanted[key]
        if truth is not None:
            truth = (truth[0], truth[1][: len(ids[1])]) if is_cut else truth
            assert ids == truth, f"I6: {name}: {key}: other ids than of the clip encoded alone"
    if name in expected.hashes:
        hashes = sorted(f"{item['path'].split('/')[0]} {item['sha256']}" for item in record["objects"])
        assert hashes == list(expected.hashes[name]), f"I2: {name}: other bytes than the fault-free run's"


def _row(name: str, numbers: Mapping, semantic: list[int], acoustic: list) -> _Row:
    """A row, of its acoustic codebooks those that it says it has."""
    num_codebooks = numbers.get("num_acoustic_codebooks")
    if num_codebooks is not None:
        held = [k for k, ids in enumerate(acoustic) if ids is not None]
        assert held == list(range(num_codebooks)) != [], (
            f"I6: {name}: {numbers['key']} says {num_codebooks} acoustic codebooks, and has ids in {held}"
        )
        acoustic = acoustic[:num_codebooks]
    ids = (semantic, acoustic)
    return ids, numbers["num_frames"], numbers["num_audio_samples"], num_codebooks is not None


def _tar_rows(name: str, semantic: bytes, acoustic: bytes | None) -> dict[str, _Row]:
    parts: dict[str, dict] = {}
    for content in (semantic, acoustic):
        if content is None:
            continue
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                for suffix in ("semantic.npy", "acoustic.npy", "json"):
                    if member.name.endswith(f".{suffix}"):
                        part = parts.setdefault(member.name.removesuffix(f".{suffix}"), {})
                        assert suffix == "json" or suffix not in part, f"I1: {name}: {member.name} stands twice"
                        data = file.read()
                        part[suffix] = json.loads(data) if suffix == "json" else np.load(io.BytesIO(data)).tolist()
    return {
        key: _row(name, part["json"], part.get("semantic.npy", []), part.get("acoustic.npy", []))
        for key, part in parts.items()
    }
