"""A clip's tokens and audio do not depend on what it is batched with."""

from __future__ import annotations

import random

import pytest
import torch

from codec.base import Tokens
from codec.longcat.model import LongCatCodec
from tests.codec.golden import CLIPS, Expected


def batch_of(expected: Expected, clips: list[str], *, garbage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms with `garbage` past each clip's end, and lengths."""
    waveforms = [expected[f"{clip}/wav16k"] for clip in clips]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=garbage), lengths


# NaN as garbage: one value read from past a clip's end would spread over all of its tokens.
@pytest.mark.parametrize("garbage", [0.0, 0.7, float("nan")])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_do_not_depend_on_the_batch(codec: LongCatCodec, expected: Expected, seed: int, garbage: float) -> None:
    chance = random.Random(seed)
    clips = chance.choices(CLIPS, k=chance.randint(2, 8))
    tokens = codec.encode(*batch_of(expected, clips, garbage=garbage))
    assert tokens.semantic is not None
    assert tokens.acoustic is not None
    for row, clip in enumerate(clips):
        num_frames = int(tokens.num_frames[row])
        assert torch.equal(tokens.semantic[row, :num_frames], expected[f"{clip}/semantic"])
        assert torch.equal(tokens.acoustic[row, :, :num_frames], expected[f"{clip}/acoustic"])
        assert not tokens.semantic[row, num_frames:].any()
        assert not tokens.acoustic[row, :, num_frames:].any()


def test_padding_of_the_whole_batch_changes_no_token(codec: LongCatCodec, expected: Expected) -> None:
    waveforms, lengths = batch_of(expected, ["16k_short_350ms", "16k_tiny_300_samples"], garbage=0.0)
    padded = torch.nn.functional.pad(waveforms, (0, 12345), value=0.3)
    tokens = codec.encode(padded, lengths)
    assert tokens.semantic is not None
    assert tokens.semantic.shape == (2, -(-padded.shape[1] // 960))
    assert torch.equal(tokens.semantic[0, :6], expected["16k_short_350ms/semantic"])
    assert torch.equal(tokens.semantic[1, :1], expected["16k_tiny_300_samples/semantic"])


@pytest.mark.parametrize(("sample_rate_hz", "num_codebooks"), [(16000, 3), (24000, 3), (24000, 1)])
def test_audio_does_not_depend_on_the_batch(
    codec: LongCatCodec, expected: Expected, sample_rate_hz: int, num_codebooks: int
) -> None:
    clips = ["16k_short_350ms", "44k_stereo", "16k_tiny_300_samples", "16k_exact_15_frames"]
    num_frames = torch.tensor([len(expected[f"{clip}/semantic"]) for clip in clips])
    # Past a clip's own frames stand ids that are out of range: none may be looked at.
    semantic = torch.full((len(clips), int(num_frames.max())), -1)
    acoustic = torch.full((len(clips), num_codebooks, int(num_frames.max())), 10**6)
    for row, clip in enumerate(clips):
        semantic[row, : num_frames[row]] = expected[f"{clip}/semantic"]
        acoustic[row, :, : num_frames[row]] = expected[f"{clip}/acoustic"][:num_codebooks]
    together = codec.decode(Tokens(semantic, acoustic, num_frames), sample_rate_hz)
    samples_per_frame = 960 * sample_rate_hz // 16000
    assert together.shape == (len(clips), int(num_frames.max()) * samples_per_frame)
    for row, frames in enumerate(num_frames.tolist()):
        own = slice(row, row + 1)
        tokens = Tokens(semantic[own, :frames], acoustic[own, :, :frames], num_frames[own])
        alone = codec.decode(tokens, sample_rate_hz)[0]
        end = frames * samples_per_frame
        assert (together[row, :end] - alone).abs().max() <= 1e-5 * alone.abs().max()
        assert not together[row, end:].any()
