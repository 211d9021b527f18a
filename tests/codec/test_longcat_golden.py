"""The one-clip path against what the reference program computed (see the golden folder)."""

from __future__ import annotations

import pytest
import torch

from codec.base import Codec, Tokens
from codec.longcat.checkpoint import FEATURE_CONSTANTS, open_checkpoint
from codec.longcat.features import feature_constants
from codec.longcat.model import LongCatCodec
from codec.sources import LocalFolder
from tests.codec.golden import CLIPS, GOLDEN, Expected

DECODED_CLIPS = ("16k_mono", "16k_short_350ms", "22k_mono")
DECODINGS = {
    "decoder_16k_4codebooks": (16000, 3),
    "decoder_24k_4codebooks": (24000, 3),
    "decoder_24k_2codebooks": (24000, 1),
    "decoder_16k_4codebooks/1_acoustic": (16000, 1),
}


def assert_close_to_largest(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("clip", CLIPS)
def test_tokens_equal_the_reference(codec: LongCatCodec, expected: Expected, clip: str) -> None:
    waveform = expected[f"{clip}/wav16k"]
    tokens = codec.encode(waveform[None], torch.tensor([len(waveform)]))
    assert tokens.semantic is not None
    assert tokens.acoustic is not None
    assert torch.equal(tokens.semantic[0], expected[f"{clip}/semantic"])
    assert torch.equal(tokens.acoustic[0], expected[f"{clip}/acoustic"])
    assert tokens.num_frames.tolist() == [-(-len(waveform) // 960)]


@pytest.mark.parametrize("clip", CLIPS)
def test_encoder_outputs_are_close_to_the_reference(codec: LongCatCodec, expected: Expected, clip: str) -> None:
    waveform = expected[f"{clip}/wav16k"]
    batch = waveform[None], torch.tensor([len(waveform)])
    assert_close_to_largest(codec.semantic_features(*batch)[0], expected[f"{clip}/semantic_features"])
    assert_close_to_largest(codec.acoustic_latents(*batch)[0].T, expected[f"{clip}/acoustic_latents"])


@pytest.mark.parametrize("clip", DECODED_CLIPS)
@pytest.mark.parametrize("decoding", DECODINGS)
def test_audio_is_close_to_the_reference(codec: LongCatCodec, expected: Expected, clip: str, decoding: str) -> None:
    sample_rate_hz, num_codebooks = DECODINGS[decoding]
    semantic, acoustic = expected[f"{clip}/semantic"], expected[f"{clip}/acoustic"]
    tokens = Tokens(semantic[None], acoustic[None, :num_codebooks], torch.tensor([len(semantic)]))
    assert_close_to_largest(codec.decode(tokens, sample_rate_hz)[0], expected[f"{clip}/{decoding}"])


def test_every_reference_array_is_looked_at(expected: Expected) -> None:
    encoded = {
        f"{clip}/{name}"
        for clip in CLIPS
        for name in ("wav16k", "semantic", "acoustic", "semantic_features", "acoustic_latents")
    }
    decoded = {f"{clip}/{decoding}" for clip in DECODED_CLIPS for decoding in DECODINGS}
    assert expected.names() == encoded | decoded


def test_feature_constants_are_the_checkpoint_s_to_the_last_bit() -> None:
    held = torch.load(GOLDEN / "LongCatAudioCodec_encoder.pt", weights_only=True)
    found = open_checkpoint(LocalFolder(GOLDEN)).load_feature_constants()
    for field, name in FEATURE_CONSTANTS.items():
        assert torch.equal(getattr(found, field), held[name])


def test_feature_constants_by_formula_are_the_reference_s() -> None:
    """But for the last bits of a logarithm, which vector libraries round differently from processor to processor."""
    checkpoint = open_checkpoint(LocalFolder(GOLDEN))
    derived = feature_constants(checkpoint.load_statistics(), sample_rate_hz=16000)
    reference = checkpoint.load_feature_constants()
    assert torch.equal(derived.mean, reference.mean)
    assert torch.equal(derived.scale, reference.scale)
    for found, true in ((derived.window, reference.window), (derived.mel_banks, reference.mel_banks)):
        assert torch.allclose(found, true, rtol=0, atol=2e-5)  # 7e-6 where each logarithm is rounded correctly


def test_it_is_a_codec(codec: LongCatCodec) -> None:
    assert isinstance(codec, Codec)
    assert codec.info.frame_rate_hz == pytest.approx(16000 / 960)
    assert codec.info.decoder_sample_rates_hz == (16000, 24000)
