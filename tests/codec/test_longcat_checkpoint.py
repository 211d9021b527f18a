"""A checkpoint is taken whole and right, or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codec.base import CheckpointError, CodecInfo, Tokens
from codec.longcat.checkpoint import DERIVED_TENSORS, FEATURE_CONSTANTS, open_checkpoint, published_shapes
from codec.longcat.config import PUBLISHED
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.model import LongCatCodec
from codec.sources import LocalFolder
from tests.codec.golden import DATA, Expected

ENCODER = "LongCatAudioCodec_encoder.pt"
CODEBOOK = "semantic_tokenizer.kmeans.codebook"
WEIGHT_V = "encoder.block.2.block.1.block.3.weight_v"

Copy = Callable[..., Path]


def load(folder: Path) -> LongCatCodec:
    return LongCatCodec(open_checkpoint(LocalFolder(folder)))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = dict(torch.load(folder / ENCODER, weights_only=True))
    change(tensors)
    torch.save(tensors, folder / ENCODER)


def full_size_modules() -> dict[str, Callable[[], nn.Module]]:
    modules: dict[str, Callable[[], nn.Module]] = {"encoder": lambda: LongCatEncoder(PUBLISHED)}
    for name, sizes in PUBLISHED.decoders.items():
        modules[f"decoder_{name}"] = lambda sizes=sizes: LongCatDecoder(PUBLISHED, sizes)  # type: ignore[misc]
    return modules


@pytest.mark.parametrize("file", sorted(full_size_modules()))
def test_full_sizes_expect_exactly_the_published_tensors(file: str) -> None:
    published = json.loads((DATA / "longcat-keys" / f"{file}.keys.json").read_text())
    with torch.device("meta"):
        found = published_shapes(full_size_modules()[file]())
    learned = {name: tuple(entry["shape"]) for name, entry in published.items() if name not in DERIVED_TENSORS}
    assert found == learned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(WEIGHT_V), rf"{WEIGHT_V}: missing, expected \[16, 16, 1\]"),
        (lambda tensors: tensors.pop(CODEBOOK), rf"{CODEBOOK}: missing, expected \[48, 256\]"),
        (
            lambda tensors: tensors.update({CODEBOOK: tensors[CODEBOOK].T}),
            rf"{CODEBOOK}: found \[256, 48\], expected \[48, 256\]",
        ),
        (lambda tensors: tensors.update({"encoder.more": torch.zeros(2)}), r"encoder.more: unknown, found \[2\]"),
        (lambda tensors: tensors.update({WEIGHT_V: tensors[WEIGHT_V].half()}), f"{WEIGHT_V}: found torch.float16"),
        (lambda tensors: tensors[CODEBOOK][3].fill_(float("nan")), f"{CODEBOOK}: found NaN"),
        (lambda tensors: tensors[CODEBOOK][3].fill_(float("inf")), f"{CODEBOOK}: found NaN or infinity"),
        (lambda tensors: tensors[WEIGHT_V][5].zero_(), "encoder.block.2.block.1.block.3: its weight is not finite"),
    ],
    ids=["missing", "no-codebook", "misshapen", "unknown", "half", "nan", "inf", "zero-norm"],
)
def test_a_wrong_tensor_is_named(
    checkpoint_copy: Copy, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = checkpoint_copy()
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=rf"(?s){ENCODER}.*{message}"):
        load(folder)


def test_a_long_list_of_faults_is_cut(checkpoint_copy: Copy) -> None:
    folder = checkpoint_copy()
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)[:20]])
    with pytest.raises(CheckpointError, match=r"(?s)20 tensor\(s\) at fault.*and 12 more"):
        load(folder)


def test_what_training_left_in_a_file_is_no_fault(checkpoint_copy: Copy) -> None:
    folder = checkpoint_copy()
    left = {"num_updates": torch.tensor(7), "scale": torch.tensor(0.5), "steps": torch.zeros(3, dtype=torch.int64)}
    rewrite(folder, lambda tensors: tensors.update(left))
    load(folder)


def test_derived_buffers_may_be_missing(checkpoint_copy: Copy, expected: Expected) -> None:
    folder = checkpoint_copy()
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in DERIVED_TENSORS])
    waveform = expected["16k_short_350ms/wav16k"]
    tokens = load(folder).encode(waveform[None], torch.tensor([len(waveform)]))
    assert tokens.semantic is not None
    assert torch.equal(tokens.semantic[0], expected["16k_short_350ms/semantic"])


@pytest.mark.parametrize("field", FEATURE_CONSTANTS)
def test_a_derived_buffer_that_contradicts_the_formulas_is_named(checkpoint_copy: Copy, field: str) -> None:
    folder, name = checkpoint_copy(), FEATURE_CONSTANTS[field]
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name] * 1.01}))
    with pytest.raises(CheckpointError, match=rf"(?s){ENCODER}.*{name}: is not what the formulas"):
        load(folder)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mknod, (str(self.path),))


@pytest.mark.parametrize("save", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_code_in_a_checkpoint_does_not_run(
    checkpoint_copy: Copy, tmp_path: Path, save: Callable[[object, Path], object]
) -> None:
    folder, canary = checkpoint_copy(), tmp_path / "canary"
    save({CODEBOOK: _Touch(canary)}, folder / ENCODER)
    with pytest.raises(CheckpointError, match=rf"{ENCODER} is no archive of plain tensors"):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 999])
def test_a_damaged_file_is_named(checkpoint_copy: Copy, damage: Callable[[bytes], bytes]) -> None:
    folder = checkpoint_copy()
    (folder / ENCODER).write_bytes(damage((folder / ENCODER).read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{ENCODER} is no archive"):
        load(folder)


def test_a_file_of_something_else_is_named(checkpoint_copy: Copy) -> None:
    folder = checkpoint_copy()
    torch.save([torch.zeros(1)], folder / ENCODER)
    with pytest.raises(CheckpointError, match=rf"{ENCODER} holds a list"):
        load(folder)


@pytest.mark.parametrize("missing", [ENCODER, "LongCatAudioCodec_encoder_cmvn.npy"])
def test_a_missing_file_is_named(checkpoint_copy: Copy, missing: str) -> None:
    folder = checkpoint_copy()
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"has no {missing}"):
        load(folder)


@pytest.mark.parametrize(
    "stats",
    [np.zeros((2, 81)), np.ones((2, 80)), np.full((2, 81), np.nan), np.array({"code": 1}, dtype=object)],
    ids=["no-count", "shape", "nan", "object"],
)
def test_wrong_statistics_are_named(checkpoint_copy: Copy, stats: np.ndarray[Any, Any]) -> None:
    folder = checkpoint_copy()
    np.save(folder / "LongCatAudioCodec_encoder_cmvn.npy", stats)
    with pytest.raises(CheckpointError, match=r"cmvn\.npy"):
        load(folder)


def test_a_decoder_is_needed_only_to_decode(checkpoint_copy: Copy) -> None:
    codec = load(checkpoint_copy("LongCatAudioCodec_decoder_16k_4codebooks.pt"))
    semantic_alone = Tokens(torch.zeros(1, 2, dtype=torch.int64), None, torch.tensor([2]))
    assert codec.decode(semantic_alone, 16000).shape == (1, 1920)
    with pytest.raises(CheckpointError, match=r"has no LongCatAudioCodec_decoder_24k_4codebooks\.pt"):
        codec.decode(semantic_alone, 24000)


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["semantic"].update(num_layer=3), "semantic.num_layer: Extra inputs"),
        (lambda config: config["semantic"].pop("width"), "semantic.width: Field required"),
        (lambda config: config["acoustic"].update(width="8"), "acoustic.width: Input should be a valid integer"),
        (lambda config: config["acoustic"].update(strides=[4, 5, 6, 9]), "frames of 1080 samples.*frames of 960"),
        (lambda config: config["semantic"].update(num_heads=5), "semantic.width is 48"),
        (lambda config: config["decoders"]["24k_4codebooks"].update(rates=[8, 6, 5, 4]), "24000 Hz needs 1440"),
        (lambda config: config["decoders"].update({"../x": config["decoders"]["24k_4codebooks"]}), r"decoders\.\.\./x"),
        (lambda config: config.update(sample_rate_hz=8000), "sample_rate_hz: Input should be 16000"),
    ],
)
def test_a_wrong_config_field_is_named(
    checkpoint_copy: Copy, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = checkpoint_copy()
    change_config(folder, change)
    with pytest.raises(CheckpointError, match=rf"(?s)config.json has 1 fault.*{message}"):
        open_checkpoint(LocalFolder(folder))


def test_sizes_come_from_the_config(checkpoint_copy: Copy) -> None:
    folder = checkpoint_copy()
    change_config(folder, lambda config: config["semantic"].update(num_layers=2))
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.2\.norm1\.weight: unknown"):
        load(folder)
    (folder / "config.json").unlink()
    assert open_checkpoint(LocalFolder(folder)).config == PUBLISHED


def info_of(folder: Path) -> CodecInfo:
    return open_checkpoint(LocalFolder(folder)).info()


def test_the_hash_follows_what_decides_the_tokens(checkpoint_copy: Copy) -> None:
    folder = checkpoint_copy("LongCatAudioCodec_decoder_16k_4codebooks.pt")
    first = info_of(folder).checkpoint_hash
    (folder / "LongCatAudioCodec_decoder_16k_4codebooks.pt").unlink()
    assert info_of(folder).checkpoint_hash == first
    hashes = {first}
    for name in (ENCODER, "LongCatAudioCodec_encoder_cmvn.npy"):
        with (folder / name).open("ab") as file:
            file.write(b"\0")
        hashes.add(info_of(folder).checkpoint_hash)
    (folder / "config.json").unlink()
    hashes.add(info_of(folder).checkpoint_hash)
    assert len(hashes) == 4
