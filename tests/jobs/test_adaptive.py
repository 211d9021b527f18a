"""Runs in which clips choose their codebooks: rows in both formats, counts, reports, `verify`, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.finish import RunReport
from jobs.plan import plan
from jobs.run import run_job
from jobs.status import status
from jobs.verify import verify
from pipeline.config import load_config
from pipeline.errors import ConfigError, OtherJobError
from pipeline.records import CommitRecord
from pipeline.settings import RetryConfig, StorageConfig
from tests.corpus import GOLDEN, committed_hashes, put_shards, tar_of, tokens_of
from tests.jobs.test_run import FAST

AUTO = "auto:residual=0.05"
LOUDNESS = {
    "loud": [(1.0, 1.0)],
    "quiet": [(2.0, 0.1)],
    "faint": [(0.5, 0.002)],
    "silent": [(1.0, 0.0)],
    "long": [(20.0, 1.0), (45.0, 0.002)],  # alone, its later segments would take more
}
NUM_CODEBOOKS = {"loud": 1, "quiet": 2, "faint": 3, "silent": 1, "long": 1}
NUM_FRAMES = {"loud": 17, "quiet": 34, "faint": 9, "silent": 17, "long": 1084}


def wav(parts: list[tuple[float, float]]) -> bytes:
    rng = np.random.default_rng(0)
    pcm = np.concatenate([rng.uniform(-loud, loud, round(seconds * 16000)) for seconds, loud in parts])
    file = io.BytesIO()
    soundfile.write(file, pcm, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def shards() -> dict[str, bytes]:
    members = [(f"{key}.wav", wav(parts)) for key, parts in LOUDNESS.items()]
    return {"a.tar": tar_of(members[:3]), "b.tar": tar_of(members[3:])}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return put_shards(str(tmp_path_factory.mktemp("in")), shards())


def run(inputs: list[str], output: Path, **changes: Any) -> RunReport:
    return run_job(load_config(job(inputs, output, **changes)), plain=True)


def job(inputs: list[str], output: Path, **changes: Any) -> dict[str, Any]:
    fixed = {"codec": "calibrated:", "executor": "inline", "num_acoustic_codebooks": AUTO}
    return {"input": inputs, "output": str(output), **fixed, **FAST, **changes}


def faults(output: Path) -> list[str]:
    return verify(str(output), StorageConfig(), RetryConfig()).faults


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: list[str]) -> dict[str, Any]:
    """The tokens of a run that keeps all codebooks."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(inputs, output, num_acoustic_codebooks=None).exit_code == 0
    schema = pq.read_schema(next((output / "tokens").glob("*.parquet")))
    assert "num_acoustic_codebooks" not in schema.names
    return tokens_of(str(output))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, inputs: list[str]) -> dict[str, Path]:
    """The outputs, by format, of runs in which clips choose; not to be written to."""
    folder = tmp_path_factory.mktemp("adaptive")
    for kind in ("parquet", "webdataset"):
        assert run(inputs, folder / kind, format=kind).exit_code == 0
    return {kind: folder / kind for kind in ("parquet", "webdataset")}


@pytest.fixture
def adaptive(tmp_path: Path, outputs: dict[str, Path]) -> Path:
    """One's own copy of a parquet output."""
    return Path(shutil.copytree(outputs["parquet"], tmp_path / "out"))


def test_parquet_rows_say_their_number_and_have_nulls_above_it(adaptive: Path, whole: dict[str, Any]) -> None:
    table = pq.read_table(adaptive / "tokens")
    assert table.column_names[5:] == [
        "segments", "num_acoustic_codebooks", "semantic", "acoustic_0", "acoustic_1", "acoustic_2"
    ]  # fmt: skip
    assert table.schema.field("num_acoustic_codebooks") == pa.field(
        "num_acoustic_codebooks", pa.int16(), nullable=False
    )
    for row in table.to_pylist():
        number, (semantic, acoustic) = row["num_acoustic_codebooks"], whole[row["key"]]
        assert number == NUM_CODEBOOKS[row["key"]]
        assert row["semantic"] == semantic
        found = [row[f"acoustic_{k}"] for k in range(3)]
        assert found == acoustic[:number] + [None] * (3 - number)
    assert [len(row["segments"]) for row in table.to_pylist() if row["key"] == "long"] == [3]
    assert faults(adaptive) == []


def test_webdataset_arrays_have_as_many_rows_as_their_numbers_say(
    outputs: dict[str, Path], whole: dict[str, Any]
) -> None:
    output = outputs["webdataset"]
    found: dict[str, tuple[int, ...]] = {}
    for path in (output / "acoustic").glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".npy"):
                    key = name.removesuffix(".acoustic.npy")
                    ids = np.load(io.BytesIO(tar.extractfile(name).read()))  # type: ignore[union-attr]
                    numbers = json.load(tar.extractfile(f"{key}.json"))  # type: ignore[arg-type]
                    assert len(ids) == numbers["num_acoustic_codebooks"]
                    found[key] = ids.shape
    assert found == {key: (number, NUM_FRAMES[key]) for key, number in NUM_CODEBOOKS.items()}
    assert tokens_of(str(output)) == {key: (s, a[: NUM_CODEBOOKS[key]]) for key, (s, a) in whole.items()}
    assert faults(output) == []


def test_commits_reports_and_status_tell_what_is_saved(tmp_path: Path, inputs: list[str]) -> None:
    output = tmp_path / "out"
    report = run(inputs[:1], output)
    assert report.counts.num_frames_by_codebooks == {1: 17, 2: 34, 3: 9}
    report = run(inputs, output)  # the second shard joins
    assert report.num_committed_now == 1
    assert report.counts.num_frames_by_codebooks == {1: 1118, 2: 34, 3: 9}
    bits = (1118 * 2 + 34) * np.log2(8100)
    told = "1 in 96.3%, 2 in 2.9%, 3 in 0.8% of 1161 frames; 65.2% of the acoustic bits saved"
    assert f"acoustic codebooks: {told} (0.004 MB before compression)" in report.lines()
    assert report.to_json()["saved_acoustic_bits"] == round(bits)
    last = status(str(output), StorageConfig(), RetryConfig())
    assert f"codebooks  {told} (0.004 MB before compression)" in last.lines()
    assert last.to_json()["saved_acoustic_bits"] == round(bits)
    (output / "manifest.parquet").unlink()
    again = run(inputs, output)
    assert (again.num_committed_now, again.counts) == (0, report.counts)
    assert status(str(output), StorageConfig(), RetryConfig()).savings == last.savings


def test_a_fixed_number_says_nothing_of_savings(tmp_path: Path, inputs: list[str]) -> None:
    report = run(inputs[:1], tmp_path / "out", num_acoustic_codebooks=2)
    assert (report.savings, report.to_json()["saved_acoustic_bits"]) == (None, None)
    assert not [line for line in report.lines() if "codebooks" in line]
    assert status(str(tmp_path / "out"), StorageConfig(), RetryConfig()).savings is None


def test_the_bytes_are_a_function_of_the_shard_and_the_job(tmp_path: Path, adaptive: Path, inputs: list[str]) -> None:
    assert run(inputs[::-1], tmp_path / "again").exit_code == 0
    assert committed_hashes(str(tmp_path / "again")) == committed_hashes(str(adaptive))
    with pytest.raises(OtherJobError, match=r"acoustic_residual_max: there 0\.05, here 0\.06"):
        run(inputs, adaptive, num_acoustic_codebooks="auto:residual=0.06")
    with pytest.raises(OtherJobError, match=r"acoustic_residual_max: there 0\.05, here None"):
        run(inputs, adaptive, num_acoustic_codebooks=3)


def test_a_checkpoint_whose_codebooks_leave_too_much_keeps_them_all(tmp_path: Path, inputs: list[str]) -> None:
    output = tmp_path / "out"
    assert run(inputs[:1], output, codec=str(GOLDEN)).counts.num_frames_by_codebooks == {3: 60}
    assert run(inputs[:1], tmp_path / "all", codec=str(GOLDEN), num_acoustic_codebooks=None).exit_code == 0
    assert tokens_of(str(output)) == tokens_of(str(tmp_path / "all"))
    assert faults(output) == []


def test_a_codec_that_cannot_tell_is_refused_before_anything_is_written(tmp_path: Path, inputs: list[str]) -> None:
    for attempt in (run, lambda *a, **changes: plan(load_config(job(*a, **changes)))):
        with pytest.raises(ConfigError, match=r"auto:residual=0\.05, but codec .* cannot tell .* number from 1 to 3"):
            attempt(inputs, tmp_path / "out", codec="calibrated:ids=zero")
    assert not (tmp_path / "out").exists()


def test_a_plan_gives_a_bound(tmp_path: Path, inputs: list[str]) -> None:
    report = plan(load_config(job(inputs, tmp_path / "out")))
    assert report.num_codebooks == 4
    assert any("4 a frame at most" in line for line in report.lines())
    assert any("output     at most" in line for line in report.lines())


def rewrite(output: Path, shard: str, change: Callable[[bytes], bytes], folder: str = "tokens") -> None:
    """Change an object of a shard, and its commit so that size and hash are right."""
    commit = next((output / "commits").glob(f"{shard}-*.json"))
    record = CommitRecord.from_bytes(commit.read_bytes(), str(commit))
    objects = []
    for item in record.objects:
        if item.path.startswith(f"{folder}/"):
            content = change((output / item.path).read_bytes())
            (output / item.path).write_bytes(content)
            item = item.model_copy(  # noqa: PLW2901
                update={"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            )
        objects.append(item)
    commit.write_bytes(record.model_copy(update={"objects": tuple(objects)}).to_bytes())


def column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        table, sink = pq.read_table(io.BytesIO(content)), io.BytesIO()
        index, field = table.schema.get_field_index(name), table.schema.field(name)
        changed = pa.array(values(table[name].to_pylist()), field.type)
        pq.write_table(table.set_column(index, field, changed), sink)
        return sink.getvalue()

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (column("num_acoustic_codebooks", lambda n: [2, *n[1:]]), "'loud' says that it has 2 .* ids in \\[0\\]"),
        (column("num_acoustic_codebooks", lambda n: [n[0], 1, n[2]]), "'quiet' says that it has 1 .* \\[0, 1\\]"),
        (column("num_acoustic_codebooks", lambda n: [*n[:2], 4]), "'faint' says that it has 4 .* \\[0, 1, 2\\]"),
        (column("num_acoustic_codebooks", lambda n: [0, *n[1:]]), "'loud' says that it has 0"),
        (column("acoustic_0", lambda ids: [None, *ids[1:]]), "'loud' says that it has 1 .* \\[\\]"),
        (column("acoustic_2", lambda ids: [ids[2][:17], *ids[1:]]), "'loud' says that it has 1 .* \\[0, 2\\]"),
        (column("acoustic_1", lambda ids: [ids[0], ids[1][:-1], ids[2]]), "different lengths"),
        (column("acoustic_1", lambda ids: [ids[0], [9000] * 34, ids[2]]), "'quiet': an? acoustic id is not below"),
    ],
)
def test_verify_sees_a_tampered_parquet_shard(adaptive: Path, change: Callable[[bytes], bytes], fault: str) -> None:
    rewrite(adaptive, "a", change)
    (found,) = faults(adaptive)
    assert re.search(fault, found), found


def test_verify_sees_a_shard_cut_to_fewer_codebooks_and_a_commit_that_lies(adaptive: Path) -> None:
    def cut(content: bytes) -> bytes:
        fewer = column("num_acoustic_codebooks", lambda numbers: [1] * len(numbers))(content)
        for name in ("acoustic_1", "acoustic_2"):
            fewer = column(name, lambda ids: [None] * len(ids))(fewer)
        return fewer

    rewrite(adaptive, "a", cut)
    (found,) = faults(adaptive)
    assert "frames by codebooks are {1: 60}, its commit says {1: 17, 2: 34, 3: 9}" in found


@pytest.mark.parametrize(
    ("number", "fault"), [(2, r"shape \(1, 17\)"), ("1", r"say 1 acoustic"), (0, "say 0"), (None, "KeyError")]
)
def test_verify_sees_tampered_numbers_beside_arrays(
    tmp_path: Path, outputs: dict[str, Path], number: object, fault: str
) -> None:
    output = Path(shutil.copytree(outputs["webdataset"], tmp_path / "out"))

    def change(content: bytes) -> bytes:
        members = []
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name == "loud.json":
                    numbers = json.loads(data)
                    del numbers["num_acoustic_codebooks"]
                    told = {} if number is None else {"num_acoustic_codebooks": number}
                    data = json.dumps(numbers | told).encode()
                members.append((member.name, data))
        return tar_of(members)

    for folder in ("semantic", "acoustic"):
        rewrite(output, "a", change, folder)
    (found,) = faults(output)
    assert re.search(fault, found), found
