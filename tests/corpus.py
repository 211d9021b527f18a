"""Shards of human speech for tests, and what came of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.layout import OutputPlace
from pipeline.manifest import fold_commits
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Store, Stores

DATA = Path(__file__).parent / "data"
CLIPS = sorted((DATA / "pocketsphinx").glob("*.flac"))
GOLDEN = DATA / "longcat-golden"

Tokens = dict[str, tuple[list[int], list[list[int]]]]


def texts() -> dict[str, str]:
    """Transcripts by clip stem."""
    lines = (DATA / "pocketsphinx" / "manifest.jsonl").read_text().splitlines()
    return {Path(entry["audio_filepath"]).stem: entry["text"] for entry in map(json.loads, lines)}


def tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A plain tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def speech_shards(num_shards: int = 3) -> dict[str, bytes]:
    """The ten clips with their texts, dealt over shards: 4 + 3 + 3 for three."""
    words = texts()
    found = {}
    for index in range(num_shards):
        members = []
        for clip in CLIPS[index::num_shards]:
            members += [(f"{clip.stem}.flac", clip.read_bytes()), (f"{clip.stem}.txt", words[clip.stem].encode())]
        found[f"speech-{index:03d}.tar"] = tar_of(members)
    return found


def put_shards(base: str, shards: Mapping[str, bytes]) -> list[str]:
    """Put shards below a folder or bucket; returns their URIs."""
    store = store_of(base)
    for name, content in shards.items():
        store.put(f"{base}/{name}", content)
    return [f"{base}/{name}" for name in shards]


def store_of(uri: str) -> Store:
    """The store of a place, set up from the environment."""
    return Stores(StorageConfig(), RetryConfig(attempts_max=2, backoff_s=0.01))(uri)


def committed_hashes(output: str) -> dict[str, list[str]]:
    """SHA-256 of each committed object by input file name, checked against the bytes that are there."""
    import hashlib

    store, place = store_of(output), OutputPlace(output)
    found: dict[str, list[str]] = {}
    for row in fold_commits(store, place, "").rows.values():
        hashes = []
        for item in row.record.objects:
            content = store.read(place.uri(item.path), bytes_max=1 << 30)
            assert hashlib.sha256(content).hexdigest() == item.sha256
            hashes.append(f"{item.path.split('/')[0]} {item.sha256}")
        found[row.record.input.uri.rsplit("/", 1)[1]] = sorted(hashes)
    return found


def attempts(folder: Path) -> dict[str, str]:
    """Attempt by shard of the commits that stand in `folder`/out."""
    return {path.stem: json.loads(path.read_text())["attempt"] for path in (folder / "out" / "commits").glob("*.json")}


def tokens_of(output: str) -> Tokens:
    """(semantic, acoustic) ids by key, of either format, from a plain listing, as a reader without manifest sees it."""
    store, place = store_of(output), OutputPlace(output)
    found: Tokens = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for info in store.list(output):
        path = place.path(info.uri)
        content = (
            store.read(info.uri, bytes_max=1 << 30) if path.startswith(("tokens", "semantic", "acoustic")) else b""
        )
        if path.startswith("tokens/"):
            for row in pq.read_table(io.BytesIO(content)).to_pylist():
                assert row["key"] not in found, f"{row['key']} stands twice"
                names = [name for name in row if name.startswith("acoustic_")]
                columns = [row[name] for name in sorted(names, key=lambda name: int(name.split("_")[1]))]
                acoustic = columns[: row.get("num_acoustic_codebooks", len(columns))]
                found[row["key"]] = (row.get("semantic", []), acoustic)
        elif content:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                for member in tar:
                    if member.name.endswith(".npy"):
                        key, stream, _ = member.name.rsplit(".", 2)
                        assert stream not in parts.setdefault(key, {}), f"{member.name} stands twice"
                        parts[key][stream] = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
    found |= {key: (ids["semantic"].tolist(), ids["acoustic"].tolist()) for key, ids in parts.items()}
    return found
