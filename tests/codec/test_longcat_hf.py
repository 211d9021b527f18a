"""LongCat as a model of transformers, and converted checkpoints: equal to the reference, and in the usual shape."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from codec.base import CheckpointError, CodecError, Tokens
from codec.hf import LongCatConfig, LongCatFeatureExtractor, LongCatModel
from codec.hf.convert import Converted, convert
from codec.longcat.checkpoint import open_checkpoint
from codec.longcat.config import PUBLISHED, read_config
from codec.longcat.model import LongCatCodec
from codec.registry import codec_info, load_codec
from codec.sources import LocalFolder
from tests.codec.golden import CLIPS, GOLDEN, Expected
from tests.codec.test_longcat_batching import batch_of

pytestmark = pytest.mark.usefixtures("one_thread")

DECODERS = {"16k_4codebooks", "24k_2codebooks", "24k_4codebooks"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert(open_checkpoint(LocalFolder(GOLDEN)), tmp_path_factory.mktemp("converted") / "longcat")


@pytest.fixture(scope="module")
def model(done: Converted) -> LongCatModel:
    return LongCatModel.from_pretrained(done.folder)


def small_config() -> LongCatConfig:
    return LongCatConfig.of(read_config(GOLDEN / "config.json"))


def inputs_of(expected: Expected, clips: list[str]) -> dict[str, torch.Tensor]:
    extractor = LongCatFeatureExtractor()
    waveforms = [expected[f"{clip}/wav16k"].numpy() for clip in clips]
    return dict(extractor(raw_audio=waveforms, sampling_rate=16000, return_tensors="pt"))


def assert_codes(codes: torch.Tensor, expected: Expected, clips: list[str]) -> None:
    for row, clip in zip(codes, clips, strict=True):
        own = torch.cat([expected[f"{clip}/semantic"][None], expected[f"{clip}/acoustic"]])
        assert torch.equal(row[:, : own.shape[1]], own), clip
        assert not row[:, own.shape[1] :].any()


# The model, against the reference.


@pytest.mark.parametrize("clip", CLIPS)
def test_one_clips_codes_are_the_references(model: LongCatModel, expected: Expected, clip: str) -> None:
    codes = model.encode(**inputs_of(expected, [clip])).audio_codes
    assert codes.dtype == torch.int64
    assert_codes(codes, expected, [clip])


def test_codes_do_not_depend_on_the_batch(model: LongCatModel, expected: Expected) -> None:
    clips = list(CLIPS)
    inputs = inputs_of(expected, clips)
    assert inputs["input_values"].shape[:2] == (len(clips), 1)
    codes = model.encode(**inputs).audio_codes
    assert_codes(codes, expected, clips)
    # What stands in the padding is not looked at.
    inputs["input_values"] = inputs["input_values"].masked_fill(~inputs["padding_mask"][:, None].bool(), float("nan"))
    assert torch.equal(model.encode(**inputs).audio_codes, codes)
    own = model.get_audio_codes_mask(inputs["padding_mask"])
    assert own.shape == (codes.shape[0], codes.shape[2])
    assert own.sum(-1).tolist() == [len(expected[f"{clip}/semantic"]) for clip in clips]
    assert model.get_encoded_length(inputs["padding_mask"].sum(-1)).tolist() == own.sum(-1).tolist()


def test_fewer_codebooks_are_the_first_ones(model: LongCatModel, expected: Expected) -> None:
    inputs = inputs_of(expected, ["16k_mono"])
    codes = model.encode(**inputs).audio_codes
    assert codes.shape[1] == model.config.num_quantizers == 4
    for num_quantizers in (1, 2, 4):
        fewer = model.encode(**inputs, num_quantizers=num_quantizers).audio_codes
        assert torch.equal(fewer, codes[:, :num_quantizers])
    with pytest.raises(ValueError, match="num_quantizers=5; this model has 1 to 4"):
        model.encode(**inputs, num_quantizers=5)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_decoded_audio_is_the_references(model: LongCatModel, expected: Expected, decoder: str) -> None:
    clip = "22k_mono"
    num_acoustic = 1 if decoder == "24k_2codebooks" else 3
    codes = torch.cat([expected[f"{clip}/semantic"][None], expected[f"{clip}/acoustic"][:num_acoustic]])[None]
    audio = model.decode(codes, sampling_rate=int(decoder[:2]) * 1000).audio_values
    true = expected[f"{clip}/decoder_{decoder}"].flatten()
    assert audio.shape == (1, 1, len(true))
    assert (audio.flatten() - true).abs().max() <= 1e-4 * true.abs().max()


def test_forward_gives_codes_and_audio_as_long_as_the_input(model: LongCatModel, expected: Expected) -> None:
    inputs = inputs_of(expected, ["16k_short_350ms", "16k_tiny_300_samples"])
    output = model(**inputs)
    assert torch.equal(output.audio_codes, model.encode(**inputs).audio_codes)
    assert output.audio_values.shape == inputs["input_values"].shape
    as_tuple = model(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], output.audio_codes)
    assert torch.equal(as_tuple[1], output.audio_values)
    assert not output.audio_values[1, 0, 960:].any(), "past the second clip's one frame there is silence"
    other_rate = model(**inputs, audio_codes=output.audio_codes, sampling_rate=24000).audio_values
    assert other_rate.shape[-1] == output.audio_codes.shape[-1] * 1440


@pytest.mark.parametrize(
    ("input_values", "padding_mask", "message"),
    [
        (torch.zeros(1, 2, 960), None, "mono"),
        (torch.zeros(960), None, "mono"),
        (torch.zeros(1, 1, 960), torch.ones(1, 961), "padding_mask"),
        (torch.zeros(1, 1, 960), torch.arange(960)[None] > 10, "pad on the right"),
        (torch.zeros(1, 1, 960), torch.zeros(1, 960), "put empty clips aside"),
        (torch.zeros(1, 1, 16000 * 31), None, "at most 30 s"),
    ],
)
def test_wrong_inputs_are_refused(
    model: LongCatModel, input_values: torch.Tensor, padding_mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(input_values, padding_mask)


def test_wrong_codes_and_rates_are_refused(model: LongCatModel) -> None:
    for codes in (torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 4, 2), 10**6), torch.zeros(1, 5, 2).long()):
        with pytest.raises(ValueError, match="found"):
            model.decode(codes)
    with pytest.raises(ValueError, match=r"decodes to \[16000, 24000\] Hz"):
        model.decode(torch.zeros(1, 4, 2, dtype=torch.int64), sampling_rate=8000)


# What transformers' own tests ask of each model.


def test_the_auto_classes_know_it(done: Converted, expected: Expected) -> None:
    assert isinstance(AutoConfig.from_pretrained(done.folder), LongCatConfig)
    extractor = AutoFeatureExtractor.from_pretrained(done.folder)
    assert isinstance(extractor, LongCatFeatureExtractor)
    inputs = extractor(raw_audio=expected["16k_mono/wav16k"].numpy(), sampling_rate=16000, return_tensors="pt")
    for auto in (AutoModel, AutoModelForAudioTokenization):
        found = auto.from_pretrained(done.folder)
        assert type(found) is LongCatModel
        assert_codes(found.encode(**inputs).audio_codes, expected, ["16k_mono"])
    with pytest.raises(ValueError, match="sampling rate"):
        extractor(raw_audio=expected["16k_mono/wav16k"].numpy(), sampling_rate=8000)


def test_the_config_goes_round(tmp_path: Path) -> None:
    config = small_config()
    config.save_pretrained(tmp_path)
    again = LongCatConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() | {"transformers_version": again.transformers_version}
    assert again.sizes == read_config(GOLDEN / "config.json")
    assert LongCatConfig().sizes == PUBLISHED
    assert (config.hop_length, config.num_quantizers, config.codebook_sizes) == (960, 4, [256, 8100, 8100, 8100])
    assert config.sample_rate == 16000


@pytest.mark.parametrize("change", [{"semantic": {"width": 48}}, {"sampling_rate": 8000}, {"decoders": {"a": {}}}])
def test_a_config_that_makes_no_codec_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="fault"):
        LongCatConfig(**change)


def test_saving_and_loading_changes_no_bit(model: LongCatModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again, found = LongCatModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found
    assert not again.training
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_random_model_has_finite_weights_of_its_own_and_encodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random_model = LongCatModel(small_config()).eval()
    assert all(torch.isfinite(tensor).all() for tensor in random_model.state_dict().values())
    assert all(tensor.is_contiguous() or tensor.dim() == 4 for tensor in random_model.state_dict().values())
    noise = 0.1 * torch.randn(2, 1, 16000)
    codes = random_model.encode(noise).audio_codes
    assert codes.shape == (2, 4, 17)
    assert codes.unique().numel() > 20
    audio = random_model.decode(codes).audio_values
    assert torch.isfinite(audio).all()
    random_model.save_pretrained(tmp_path)
    assert torch.equal(LongCatModel.from_pretrained(tmp_path).encode(noise).audio_codes, codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_what_decides_ids_in_float32(done: Converted, dtype: torch.dtype) -> None:
    half = LongCatModel.from_pretrained(done.folder, dtype=dtype)
    kept = {name for name, tensor in half.state_dict().items() if tensor.dtype == torch.float32}
    narrowed = {name for name, tensor in half.state_dict().items() if tensor.dtype == dtype}
    assert kept | narrowed == half.state_dict().keys()
    assert all(
        name.startswith(("encoder.encoder.", "encoder.semantic_tokenizer.model.")) and not name.endswith("alpha")
        for name in narrowed
    )
    assert "encoder.semantic_tokenizer.kmeans.codebook" in kept
    assert "features.mel_banks" in kept


def test_a_model_narrowed_as_a_whole_is_refused(done: Converted) -> None:
    whole = LongCatModel.from_pretrained(done.folder).to(torch.bfloat16)
    for use in (lambda: whole.encode(torch.zeros(1, 1, 960)), lambda: whole.decode(torch.zeros(1, 4, 1).long())):
        with pytest.raises(ValueError, match=r"features in torch\.bfloat16.*give the dtype to from_pretrained"):
            use()


def test_bfloat16_computes_what_the_codec_does(done: Converted, expected: Expected) -> None:
    half = LongCatModel.from_pretrained(done.folder, dtype=torch.bfloat16)
    waveforms, lengths = batch_of(expected, ["16k_mono"], garbage=0.0)
    codec = LongCatCodec(open_checkpoint(LocalFolder(GOLDEN)), precision="bfloat16")
    tokens = codec.encode(waveforms, lengths)
    codes = half.encode(waveforms).audio_codes
    assert torch.equal(codes[:, 0], tokens.semantic)  # type: ignore[arg-type]
    assert torch.equal(codes[:, 1:], tokens.acoustic)  # type: ignore[arg-type]


def test_weights_that_change_are_used_at_once(done: Converted, expected: Expected) -> None:
    own = LongCatModel.from_pretrained(done.folder)
    inputs = inputs_of(expected, ["16k_mono"])
    before = own.encode(**inputs).audio_codes
    with torch.no_grad():
        own.encoder.semantic_tokenizer.kmeans.codebook.copy_(
            own.encoder.semantic_tokenizer.kmeans.codebook.flip(1).clone()
        )
    after = own.encode(**inputs).audio_codes
    assert torch.equal(after[:, 0], 255 - before[:, 0])


# Converted folders as codecs of a run.


def test_a_converted_folder_is_the_same_codec(done: Converted, expected: Expected, golden: Path) -> None:
    codec, published = load_codec(str(done.folder)), codec_info(str(golden))
    assert isinstance(codec, LongCatCodec)
    info = codec.info
    assert info == codec_info(str(done.folder))
    assert info.checkpoint_hash != published.checkpoint_hash
    assert (info.name, info.frame_size, info.acoustic_cardinalities) == ("longcat", 960, (8100,) * 3)
    tokens = codec.encode(*batch_of(expected, list(CLIPS), garbage=float("nan")))
    assert tokens.semantic is not None
    assert tokens.acoustic is not None
    assert_codes(torch.cat([tokens.semantic[:, None], tokens.acoustic], dim=1), expected, list(CLIPS))
    clip = "22k_mono"
    own = Tokens(expected[f"{clip}/semantic"][None], expected[f"{clip}/acoustic"][None], tokens.num_frames[5:6])
    true = expected[f"{clip}/decoder_16k_4codebooks"].flatten()
    assert (codec.decode(own, 16000)[0] - true).abs().max() <= 1e-4 * true.abs().max()


def test_reading_a_converted_folder_needs_no_transformers(done: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert load_codec(str(done.folder)).info.name == "longcat"
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CodecError, match="pip install safetensors"):
        load_codec(str(done.folder))


def edit_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_config(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    del settings["semantic"]["width"]
    (folder / "config.json").write_text(json.dumps(settings))


CODEBOOK = "encoder.semantic_tokenizer.kmeans.codebook"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_tensor(CODEBOOK, lambda _: None), "kmeans.codebook: missing"),
        (edit_tensor(CODEBOOK, lambda old: old[:, :-1].clone()), r"kmeans.codebook: found \[48, 255\]"),
        (edit_tensor(CODEBOOK, lambda old: old * float("nan")), "kmeans.codebook: found NaN"),
        (edit_tensor(CODEBOOK, lambda old: old.bfloat16()), "kmeans.codebook: found torch.bfloat16"),
        (edit_tensor("features.scale", lambda _: None), "scale: missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 64), "no whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (edit_config, "semantic.width: Field required"),
    ],
)
def test_a_damaged_converted_folder_is_refused(
    done: Converted, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(done.folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_codec(str(folder))


def test_a_conversion_says_what_it_wrote(done: Converted) -> None:
    assert {path.name for path in done.folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert [path.name for path in done.folder.parent.iterdir()] == [done.folder.name], "nothing half made is left"
    assert {path.stat().st_mode & 0o777 for path in done.folder.iterdir()} == {0o644}
    assert set(done.decoders) == DECODERS
    assert done.missing_decoders == ()
    card = (done.folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert done.published.checkpoint_hash in card
    assert "256 + 8100 + 8100 + 8100" in card
    assert "16.67 a second" in card
    assert str(GOLDEN) not in card


def test_the_cards_example_runs(done: Converted) -> None:
    example = (done.folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(example.replace("THIS_FOLDER", str(done.folder)), names)
    assert names["codes"].shape == (2, 4, 42)
    assert names["audio"].shape == (2, 1, 42 * 960)


def test_decoders_that_are_not_there_are_left_out_and_a_licence_is_copied(
    checkpoint_copy: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint_copy("LongCatAudioCodec_decoder_24k_2codebooks.pt")
    (source / "LICENSE").write_text("MIT License")
    done = convert(open_checkpoint(LocalFolder(source)), tmp_path / "out")
    assert done.decoders == ("24k_2codebooks",)
    assert set(done.missing_decoders) == DECODERS - {"24k_2codebooks"}
    assert (done.folder / "LICENSE").read_text() == "MIT License"
    assert codec_info(str(done.folder)).decoder_sample_rates_hz == (24000,)
    model = LongCatModel.from_pretrained(done.folder)
    assert model.decode(torch.zeros(1, 2, 3, dtype=torch.int64)).audio_values.shape == (1, 1, 3 * 1440)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CodecError, match="not empty"):
        convert(open_checkpoint(LocalFolder(GOLDEN)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# What surrounds a call.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_callers_autocast_and_default_dtype_change_nothing(
    model: LongCatModel, expected: Expected, dtype: torch.dtype
) -> None:
    inputs, clip = inputs_of(expected, ["22k_mono"]), "22k_mono"
    before = model.decode(model.encode(**inputs).audio_codes).audio_values
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            codes = model.encode(**inputs).audio_codes
            audio = model.decode(codes).audio_values
        assert load_codec(str(GOLDEN)).info.name == "longcat"
    finally:
        torch.set_default_dtype(torch.float32)
    assert_codes(codes, expected, [clip])
    assert torch.equal(audio, before)


def test_configs_share_no_sizes() -> None:
    assert LongCatConfig().acoustic is not None
    LongCatConfig().acoustic["width"] = 1  # type: ignore[index]
    assert LongCatConfig().sizes == PUBLISHED


def test_masks_that_are_not_the_codes_are_refused(model: LongCatModel) -> None:
    codes = torch.zeros(2, 4, 2, dtype=torch.int64)
    for mask, message in (
        (torch.ones(3, 960), "padding_mask"),
        (torch.ones(2, 2881), "padding_mask of 4 frames for audio_codes of 2"),
        (torch.arange(1920)[None].expand(2, -1) >= 960, "pad on the right"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(codes, mask)
