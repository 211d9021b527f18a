"""Codecs of the transformers package, against what the package itself makes of one clip."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codec.base import CheckpointError, CodecError, Tokens
from codec.registry import check_arithmetic, codec_info, load_codec
from codec.sources import LocalFolder
from codec.transformers_codec import TransformersCodec, open_transformers, require_transformers
from codec.transformers_families import FAMILIES, Sizes
from tests.codec.small_models import CARDINALITY, save_small_model

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {  # sample rate, frame size, semantic cardinality, acoustic codebooks
    "mimi": (24000, 192, CARDINALITY, 4),
    "encodec": (24000, 320, 0, 13),
    "dac": (16000, 40, 0, 4),
    "xcodec": (16000, 320, 0, 6),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {model_type: save_small_model(base / model_type, model_type) for model_type in FAMILIES}


def together(folder: Path, model_type: str) -> TransformersCodec:
    """The codec as it is on a GPU: clips share a batch."""
    checkpoint = open_transformers(LocalFolder(folder), model_type)
    return TransformersCodec(checkpoint, device="cpu", precision="float32", together=True)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("mimi", Sizes(24000, 1920, 2048, num_codebooks=32, num_semantic=1, looks_ahead=False)),
        ("encodec", Sizes(24000, 320, 1024, num_codebooks=32, num_semantic=0, looks_ahead=True)),
        ("dac", Sizes(16000, 512, 1024, num_codebooks=9, num_semantic=0, looks_ahead=True)),
        ("xcodec", Sizes(16000, 320, 1024, num_codebooks=8, num_semantic=0, looks_ahead=True)),
    ],
)
def test_the_sizes_of_the_packages_default_configs(model_type: str, expected: Sizes) -> None:
    family = FAMILIES[model_type]
    assert family.sizes(getattr(require_transformers(), family.config_class)()) == expected


def ids_of(tokens: Tokens) -> torch.Tensor:
    """All ids [B, K, F], semantic first."""
    parts = [None if tokens.semantic is None else tokens.semantic[:, None], tokens.acoustic]
    return torch.cat([part for part in parts if part is not None], dim=1)


def package_ids(codec: TransformersCodec, waveform: torch.Tensor) -> torch.Tensor:
    """What the package makes of one clip [T] in whole frames, all codebooks: [K, F]."""
    model, name = codec.model, codec.info.name
    most = {"bandwidth": model.config.target_bandwidths[-1]} if name in ("encodec", "xcodec") else {}
    with torch.no_grad():
        found = model.encode(waveform[None, None], **most).audio_codes
    ids: torch.Tensor = found[0, 0] if name == "encodec" else found[0]
    return ids


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_info_is_the_configs(folders: dict[str, Path], model_type: str) -> None:
    info = codec_info(str(folders[model_type]))
    found = (info.sample_rate_hz, info.frame_size, info.semantic_cardinality, len(info.acoustic_cardinalities))
    assert found == SIZES[model_type]
    assert info.name == model_type
    assert set(info.acoustic_cardinalities) == {CARDINALITY}
    assert load_codec(str(folders[model_type])).info == info


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_clips_ids_are_the_packages_own_whatever_it_is_batched_with(
    folders: dict[str, Path], model_type: str
) -> None:
    alone, shared = load_codec(str(folders[model_type])), together(folders[model_type], model_type)
    size, has_semantic = alone.info.frame_size, alone.info.semantic_cardinality > 0
    chance = random.Random(0)
    # Clips of few frames are where padding by reflection shows; two of one length go through the model together.
    lengths = [1, size, 2 * size - 1, 3 * size, 5 * size, 5 * size, *(chance.randint(1, 40 * size) for _ in range(4))]
    # One value read from past a clip's end would spread over its ids.
    waveforms = torch.full((len(lengths), max(lengths) + size), float("nan"))
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = 0.1 * torch.randn(length, generator=generator)
    for codec in (alone, shared):
        tokens = codec.encode(waveforms, torch.tensor(lengths), semantic=has_semantic)
        assert tokens.num_frames.tolist() == [-(-length // size) for length in lengths]
        ids = ids_of(tokens)
        assert ids.dtype == torch.int64
        assert ids.min() >= 0
        assert ids.max() < CARDINALITY
        for row, (length, num_frames) in enumerate(zip(lengths, tokens.num_frames.tolist(), strict=True)):
            clip = torch.nn.functional.pad(waveforms[row, :length], (0, num_frames * size - length))
            assert torch.equal(ids[row, :, :num_frames], package_ids(shared, clip)), (codec is shared, row)
            assert not ids[row, :, num_frames:].any()
    assert ids.unique().numel() > CARDINALITY // 4, "a model that gives a few ids shows nothing"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fewer_codebooks_are_the_first_ones(folders: dict[str, Path], model_type: str) -> None:
    codec = load_codec(str(folders[model_type]))
    batch = (
        0.1 * torch.randn(1, 20 * codec.info.frame_size, generator=torch.Generator().manual_seed(2)),
        torch.tensor([20 * codec.info.frame_size]),
    )
    has_semantic = codec.info.semantic_cardinality > 0
    whole = codec.encode(*batch, semantic=has_semantic)
    assert whole.acoustic is not None
    for num_codebooks in (1, 2, len(codec.info.acoustic_cardinalities)):
        fewer = codec.encode(*batch, semantic=False, num_acoustic_codebooks=num_codebooks)
        assert fewer.semantic is None
        assert fewer.acoustic is not None
        assert torch.equal(fewer.acoustic, whole.acoustic[:, :num_codebooks])
    if has_semantic:
        alone = codec.encode(*batch, num_acoustic_codebooks=0)
        assert alone.acoustic is None
        assert torch.equal(alone.semantic, whole.semantic)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match=f"codec {model_type} has acoustic ones alone"):
            codec.encode(*batch)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_decoding_makes_a_frame_of_each_id_and_silence_past_a_clips_end(
    folders: dict[str, Path], model_type: str
) -> None:
    codec = load_codec(str(folders[model_type]))
    info = codec.info
    lengths = torch.tensor([6 * info.frame_size, 9 * info.frame_size])
    noise = 0.1 * torch.randn(2, int(lengths.max()), generator=torch.Generator().manual_seed(3))
    tokens = codec.encode(noise, lengths, semantic=info.semantic_cardinality > 0)
    waveforms = codec.decode(tokens, info.sample_rate_hz)
    assert waveforms.shape == noise.shape
    assert waveforms[0, : int(lengths[0]) - info.frame_size].abs().sum() > 0
    assert not waveforms[0, lengths[0] :].any()
    first = Tokens(
        None if tokens.semantic is None else tokens.semantic[:1, :6],
        None if tokens.acoustic is None else tokens.acoustic[:1, :, :6],
        tokens.num_frames[:1],
    )
    assert torch.equal(codec.decode(first, info.sample_rate_hz)[0], waveforms[0, : lengths[0]])
    with pytest.raises(ValueError, match=f"decodes to {info.sample_rate_hz}"):
        codec.decode(tokens, 8000)
    without = Tokens(tokens.acoustic[:, 0] if info.name != "mimi" else None, tokens.acoustic, tokens.num_frames)  # type: ignore[index]
    with pytest.raises(ValueError, match="no semantic"):
        codec.decode(without, info.sample_rate_hz)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("encodec", {"audio_channels": 2}, "clips here are mono"),
        ("encodec", {"chunk_length_s": 1.0, "overlap": 0.01}, "chunk_length_s is set"),
        ("encodec", {"normalize": True}, "normalize is set"),
        ("mimi", {"num_semantic_quantizers": 2}, "2 semantic codebooks"),
    ],
)
def test_a_codec_whose_tokens_would_not_be_true_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], message: str
) -> None:
    save_small_model(tmp_path, model_type, **changes)
    for open_it in (codec_info, load_codec):
        with pytest.raises(CodecError, match=message):
            open_it(str(tmp_path))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.conv1.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.conv1.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors.*never from pickles"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "does not fit its config.json"),
        (lambda folder: edit_config(folder, codebook_size=32), "does not fit its config.json"),
        (lambda folder: edit_config(folder, n_codebooks="four"), "config.json is no DacConfig"),
        (drop_a_tensor, "lacks 1 tensors.*encoder.conv1.bias"),
        (spoil_a_tensor, "NaN or infinity in encoder.conv1.bias"),
        (lambda folder: edit_config(folder, n_codebooks=5), "lacks .* tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrong_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    save_small_model(tmp_path, "dac")
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_codec(str(tmp_path))


def test_a_model_that_makes_other_frames_than_its_config_says_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_transformers(LocalFolder(folders["dac"]), "dac")
    monkeypatch.setattr(checkpoint.config, "hop_length", 80)
    with pytest.raises(CheckpointError, match=r"makes ids \(1, 4, 6\) of 3 frames of 80 samples"):
        checkpoint.load(device="cpu", precision="float32")


def test_a_pickle_beside_the_config_is_never_read(tmp_path: Path) -> None:
    save_small_model(tmp_path, "dac")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never from pickles"):
        load_codec(str(tmp_path))


def test_another_model_type_is_refused_with_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CodecError, match="'whisper', which is no codec known here; known: mimi, encodec, dac, xcodec"):
        codec_info(str(tmp_path))


def test_without_the_package_the_error_says_what_to_install(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CodecError, match="pip install 'transformers>=5' safetensors"):
        codec_info(str(folders["dac"]))


def test_other_weights_have_another_hash_and_the_same_ones_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    same = codec_info(str(save_small_model(tmp_path / "same", "dac")))
    assert same.checkpoint_hash == codec_info(str(folders["dac"])).checkpoint_hash
    save_small_model(tmp_path / "other", "dac")
    edit_config(tmp_path / "other", codebook_loss_weight=2.0)
    assert codec_info(str(tmp_path / "other")).checkpoint_hash != same.checkpoint_hash


def test_half_precision_is_refused(folders: dict[str, Path]) -> None:
    info = codec_info(str(folders["dac"]))
    for precision in ("bfloat16", "tf32"):
        with pytest.raises(ValueError, match="codec dac is computed there in float32"):
            load_codec(str(folders["dac"]), precision=precision)
        with pytest.raises(ValueError, match="codec dac is computed there in float32"):
            check_arithmetic(str(folders["dac"]), info, device="cpu", precision=precision)
    check_arithmetic(str(folders["dac"]), info, device="cuda", precision="tf32")
