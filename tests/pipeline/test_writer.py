"""Token shards: both formats hold the same rows, the bytes are a function of the rows, memory is bounded."""

import gc
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SpoolFullError
from pipeline.settings import WritingConfig
from pipeline.spool import Spool
from pipeline.types import Reject, RejectReason, Segment, TokenRow
from pipeline.writer import ParquetTokenWriter, RejectWriter, TokenFormat, open_token_writer

FORMAT = TokenFormat(
    semantic=True,
    num_acoustic_codebooks=2,
    carry=("json", "txt", "vec"),
    metadata={"voxmill.fingerprint": "f" * 64, "voxmill.codec": "longcat"},
    writing=WritingConfig(row_group_rows=3),
)


def row(n: int) -> TokenRow:
    rng = np.random.default_rng(n)
    frames = int(rng.integers(1, 50))
    return TokenRow(
        key=f"dir/клип {n}",
        num_frames=frames,
        num_audio_samples=frames * 960 - 7,
        source_sample_rate_hz=44100,
        source_num_channels=2,
        segments=(Segment(0, frames * 960 - 7, frames),),
        semantic=rng.integers(0, 8192, frames).astype(np.uint16),
        acoustic=rng.integers(0, 8100, (2, frames)).astype(np.uint16),
        sidecars={"txt": f"слова {n}".encode(), "vec": bytes([0, 255, n])} if n % 2 else {"json": b'{"a": 1}'},
    )


ROWS = [row(n) for n in range(8)]


def written(kind: str, rows=ROWS, token_format=FORMAT) -> dict[str, bytes]:
    with Spool() as spool:
        writer = open_token_writer(kind, spool, token_format)
        for one in rows:
            writer.write([one])
        writer.close()
        found = {}
        for file in spool.finished():
            content = Path(file.path).read_bytes()
            assert file.num_bytes == len(content)
            assert file.sha256 == hashlib.sha256(content).hexdigest()
            found[file.folder] = content
        return found


def test_parquet_has_a_column_a_codebook_and_keeps_order_and_sidecars():
    table = pq.read_table(io.BytesIO(written("parquet")["tokens"]))
    assert table.column_names == [
        "key", "num_frames", "num_audio_samples", "source_sample_rate_hz", "source_num_channels", "segments",
        "semantic", "acoustic_0", "acoustic_1", "json", "txt", "vec",
    ]  # fmt: skip
    assert table.schema.metadata[b"voxmill.fingerprint"] == b"f" * 64
    for found, wanted in zip(table.to_pylist(), ROWS, strict=True):
        assert found["key"] == wanted.key
        assert found["semantic"] == wanted.semantic.tolist()
        assert [found["acoustic_0"], found["acoustic_1"]] == wanted.acoustic.tolist()
        assert found["txt"] == (wanted.sidecars["txt"].decode() if "txt" in wanted.sidecars else None)
        assert found["vec"] == wanted.sidecars.get("vec")
        assert found["segments"][0]["length"] == wanted.num_audio_samples


def test_webdataset_tars_have_the_same_keys_in_the_same_order_and_the_same_tokens():
    files = written("webdataset")
    for stream in ("semantic", "acoustic"):
        with tarfile.open(fileobj=io.BytesIO(files[stream])) as tar:
            arrays = [m for m in tar.getnames() if m.endswith(".npy")]
            assert arrays == [f"{one.key}.{stream}.npy" for one in ROWS]
            for one in ROWS:
                ids = np.load(io.BytesIO(tar.extractfile(f"{one.key}.{stream}.npy").read()), allow_pickle=False)
                assert np.array_equal(ids, one.semantic if stream == "semantic" else one.acoustic)
                assert json.load(tar.extractfile(f"{one.key}.json"))["num_frames"] == one.num_frames
            assert (f"{ROWS[1].key}.txt" in tar.getnames()) == (stream == "semantic")
    with tarfile.open(fileobj=io.BytesIO(files["semantic"])) as tar:
        assert tar.extractfile(f"{ROWS[0].key}.source.json").read() == b'{"a": 1}'


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_bytes_are_a_function_of_the_rows(kind):
    assert written(kind) == written(kind)
    assert written(kind) != written(kind, ROWS[::-1])


def test_row_groups_close_by_rows_and_by_frames(monkeypatch):
    parquet = pq.ParquetFile(io.BytesIO(written("parquet")["tokens"]))
    assert [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)] == [3, 3, 2]
    monkeypatch.setattr("pipeline.writer.ROW_GROUP_FRAMES_MAX", 1)
    assert pq.ParquetFile(io.BytesIO(written("parquet")["tokens"])).num_row_groups == len(ROWS)


def test_a_shard_of_rejects_alone_still_makes_a_readable_empty_token_shard():
    assert pq.read_table(io.BytesIO(written("parquet", rows=[])["tokens"])).num_rows == 0
    with tarfile.open(fileobj=io.BytesIO(written("webdataset", rows=[])["semantic"])) as tar:
        assert tar.getnames() == []


def test_rejects_have_a_file_only_when_there_are_some():
    with Spool() as spool:
        RejectWriter(spool, {}).close()
        assert list(spool.finished()) == []
        writer = RejectWriter(spool, {})
        writer.write(Reject("k", "k.wav", RejectReason.TRUNCATED, "half is there", 12))
        writer.close()
        (file,) = spool.finished()
        assert pq.read_table(file.path).to_pylist() == [
            {"key": "k", "member": "k.wav", "reason": "truncated", "detail": "half is there", "bytes": 12}
        ]


def test_a_failure_leaves_no_writer_open_behind():
    def fail(spool: Spool) -> None:
        ParquetTokenWriter(spool, FORMAT).write(ROWS)
        raise RuntimeError("boom")

    with Spool() as spool, pytest.raises(RuntimeError, match="boom"):
        fail(spool)
    gc.collect()


def test_a_writer_that_cannot_be_closed_leaves_no_other_open() -> None:
    closed = []

    class OnFullDisk:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            raise OSError(28, "No space left on device")

    spool = Spool()
    files = []
    for name in ("tokens", "rejects"):
        files.append(spool.file(name))
        spool.closes(OnFullDisk(name))
    with pytest.raises(SpoolFullError, match="No space left"):
        spool.__exit__(None, None, None)
    assert sorted(closed) == ["rejects", "tokens"]
    assert all(file.closed for file in files)
