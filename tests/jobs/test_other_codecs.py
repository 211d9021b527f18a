"""Whole runs with codecs that are not the published LongCat files, and `voxmill convert`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from codec.base import Tokens
from codec.calibrated import CalibratedLoader, CalibratedOptions
from codec.registry import load_codec
from jobs.prepare import absolute
from pipeline.config import load_config
from tests.codec.small_models import save_small_model
from tests.corpus import CLIPS, GOLDEN, put_shards, speech_shards, tokens_of
from tests.jobs.test_cli import run, voxmill


@pytest.fixture
def inputs(tmp_path):
    return put_shards(str(tmp_path / "in"), speech_shards())


def waveform_of(clip, rate_hz):
    """A clip that is at the rate already."""
    waveform, found_hz = soundfile.read(clip, dtype="float32")
    assert found_hz == rate_hz
    return torch.from_numpy(waveform)


def test_a_codec_of_acoustic_tokens_alone_fills_a_run(tmp_path, inputs):
    folder = save_small_model(tmp_path / "dac", "dac")
    for command in ("run", "plan"):
        flags = [f"--input={one}" for one in inputs] + [f"--output={tmp_path}/out", f"--codec={folder}"]
        done = voxmill(command, *flags, *(["--executor=inline"] if command == "run" else []))
        assert done.returncode == 2
        assert "has no semantic tokens; use --streams acoustic" in done.stderr
    assert not (tmp_path / "out" / "job.json").exists(), "what is refused claims no place"

    done, report = run(tmp_path, inputs, "--streams=acoustic", codec=folder)
    assert done.returncode == 0, done.stderr
    assert report["num_committed"] == 3
    table = pq.read_table(tmp_path / "out" / "tokens")
    assert [name for name in table.column_names if name.startswith(("semantic", "acoustic"))] == [
        f"acoustic_{k}" for k in range(4)
    ]
    codec = load_codec(str(folder))
    rows = {row["key"]: row for row in table.to_pylist()}
    assert rows.keys() == {clip.stem for clip in CLIPS}
    for clip in CLIPS[:3]:
        waveform = waveform_of(clip, codec.info.sample_rate_hz)
        alone = codec.encode(waveform[None], torch.tensor([len(waveform)]), semantic=False).acoustic[0]
        assert [rows[clip.stem][f"acoustic_{k}"] for k in range(4)] == alone.tolist()
    (record, *_) = (json.loads(path.read_text()) for path in (tmp_path / "out" / "commits").iterdir())
    assert record["environment"]["transformers"]
    assert voxmill("verify", tmp_path / "out").returncode == 0


def test_mimis_first_codebook_is_the_semantic_stream(tmp_path, inputs):
    folder = save_small_model(tmp_path / "mimi", "mimi")
    done, _ = run(tmp_path, inputs[:1], "--num-acoustic-codebooks=2", codec=folder)
    assert done.returncode == 0, done.stderr
    tokens = tokens_of(f"{tmp_path}/out")
    assert len(tokens) == 4
    assert all(len(acoustic) == 2 and len(semantic) == len(acoustic[0]) for semantic, acoustic in tokens.values())
    assert voxmill("verify", tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("kind", "streams"), [("mimi", "semantic,acoustic"), ("encodec", "acoustic"), ("dac", "acoustic")]
)
def test_tokens_of_transformers_codecs_are_decoded(tmp_path, inputs, kind, streams):
    folder = save_small_model(tmp_path / kind, kind)
    done, _ = run(tmp_path, inputs[:1], f"--streams={streams}", codec=folder)
    assert done.returncode == 0, done.stderr
    codec = load_codec(str(folder))
    rate_hz = codec.info.sample_rate_hz
    out = tmp_path / "audio"
    done = voxmill("decode", tmp_path / "out", f"--to={rate_hz}", f"--out={out}", "--format=files", "--executor=inline")
    assert done.returncode == 0, done.stderr
    assert f"to {rate_hz} Hz by decoder {kind}: made for exactly so many" in done.stderr
    tokens = tokens_of(f"{tmp_path}/out")
    files = {path.stem: path for path in out.rglob("*.flac")}
    assert files.keys() == tokens.keys()
    assert len(files) == 4
    for key, (semantic, acoustic) in tokens.items():
        ids = Tokens(
            semantic=None if not semantic else torch.tensor(semantic)[None],
            acoustic=torch.tensor(acoustic)[None],
            num_frames=torch.tensor([len(acoustic[0])]),
        )
        alone = codec.decode(ids, rate_hz)[0].numpy()
        found, found_hz = soundfile.read(files[key], dtype="float32")
        assert found_hz == rate_hz
        assert 0 <= len(alone) - len(found) < codec.info.frame_size
        assert abs(found - alone[: len(found)].clip(-1, 1 - 2**-15)).max() <= 2**-16
    assert voxmill("verify", out).returncode == 0


def test_what_such_a_codec_does_not_decode_is_refused(tmp_path, inputs):
    folder = save_small_model(tmp_path / "mimi", "mimi")
    done, _ = run(tmp_path, inputs[:1], codec=folder)
    assert done.returncode == 0, done.stderr
    rate_hz = load_codec(str(folder)).info.sample_rate_hz
    for flags, message in (
        (["--to=16001"], f"found 16001 Hz for codec {folder}; it decodes to {rate_hz} Hz"),
        (
            [f"--to={rate_hz}", "--streams=acoustic"],
            "codebooks of codec mimi only refine the semantic one",
        ),
    ):
        done = voxmill("decode", tmp_path / "out", *flags, f"--out={tmp_path}/audio", "--executor=inline")
        assert done.returncode == 2
        assert message in done.stderr
    assert not (tmp_path / "audio").exists()


def test_a_plugins_tokens_are_decoded_when_it_says_that_it_can(tmp_path, inputs, monkeypatch):
    @dataclass(frozen=True)
    class Hum(CalibratedLoader):
        rates_hz: tuple[int, ...] = (8000,)

        def info(self):
            return replace(super().info(), name="hum", decoder_sample_rates_hz=self.rates_hz)

        def load(self, *, device, precision):
            codec = super().load(device=device, precision=precision)
            codec._info = self.info()
            codec.decode = self.decode
            return codec

        def decode(self, tokens, sample_rate_hz):
            return torch.full((len(tokens.num_frames), 480 * int(tokens.num_frames.max())), 0.25)

    monkeypatch.setattr("codec.registry.find_plugin", lambda name: Hum(CalibratedOptions()))
    done, _ = run(tmp_path, inputs[:1], codec="plugin:it")
    assert done.returncode == 0, done.stderr
    key = next(iter(tokens_of(f"{tmp_path}/out")))
    done = voxmill("decode", tmp_path / "out", "--to=8000", f"--out={tmp_path}/audio", f"--keys={key}")
    assert done.returncode == 0, done.stderr
    waveform, rate_hz = soundfile.read(tmp_path / "audio" / f"{key}.flac")
    assert rate_hz == 8000
    assert (waveform == 0.25).all()

    monkeypatch.setattr("codec.registry.find_plugin", lambda name: Hum(CalibratedOptions(), rates_hz=()))
    done = voxmill("decode", tmp_path / "out", "--to=8000", f"--out={tmp_path}/audio", f"--keys={key}")
    assert done.returncode == 2
    assert "it has no decoder" in done.stderr


def test_a_plugin_of_semantic_tokens_alone_fills_a_run(tmp_path, inputs, monkeypatch):
    @dataclass(frozen=True)
    class SemanticAlone(CalibratedLoader):
        def info(self):
            return replace(super().info(), name="semantic-alone", acoustic_cardinalities=())

        def load(self, *, device, precision):
            codec = super().load(device=device, precision=precision)
            codec._info = self.info()
            return codec

    monkeypatch.setattr("codec.registry.find_plugin", lambda name: SemanticAlone(CalibratedOptions()))
    done, _ = run(tmp_path, inputs[:1], codec="plugin:it")
    assert done.returncode == 2
    assert "has no acoustic tokens; use --streams semantic" in done.stderr
    done, _ = run(tmp_path, inputs[:1], "--streams=semantic", codec="plugin:it")
    assert done.returncode == 0, done.stderr
    assert "acoustic_0" not in pq.read_table(tmp_path / "out" / "tokens").column_names
    assert voxmill("verify", tmp_path / "out").returncode == 0


def test_a_precision_that_the_codec_has_not_is_refused(tmp_path, inputs):
    folder = save_small_model(tmp_path / "dac", "dac")
    done, _ = run(tmp_path, inputs, "--streams=acoustic", "--precision=bfloat16", codec=folder)
    assert done.returncode == 2
    assert "codec dac is computed there in float32" in done.stderr


def test_a_converted_longcat_makes_the_same_tokens(tmp_path, inputs):
    done = voxmill("convert", GOLDEN, tmp_path / "converted", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["decoders"]) == {"16k_4codebooks", "24k_2codebooks", "24k_4codebooks"}
    tokens = []
    for index, codec in enumerate((GOLDEN, tmp_path / "converted")):
        done, _ = run(tmp_path / str(index), inputs[:1], codec=codec)
        assert done.returncode == 0, done.stderr
        tokens.append(tokens_of(f"{tmp_path}/{index}/out"))
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 4


def test_a_bucket_is_no_place_for_a_conversion_and_a_name_no_folder(tmp_path, inputs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = voxmill("convert", GOLDEN, "s3://bucket/out")
    assert done.returncode == 2
    assert "is written to a local folder" in done.stderr
    assert absolute(load_config({"input": inputs, "output": "out", "codec": "longcat"})).codec == "longcat"
    shutil.copytree(GOLDEN, "longcat")
    assert absolute(load_config({"input": inputs, "output": "out", "codec": "longcat"})).codec == "longcat"
    named = absolute(load_config({"input": inputs, "output": "out", "codec": "./longcat"}))
    assert named.codec == str(tmp_path / "longcat")


@pytest.mark.parametrize(
    ("source", "message"),
    [("/no/such/folder", "no known name and no folder"), ("calibrated:", "no known name and no folder")],
)
def test_what_is_no_checkpoint_is_not_converted(tmp_path, source, message):
    done = voxmill("convert", source, tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
