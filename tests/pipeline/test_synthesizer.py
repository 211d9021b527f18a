"""Rows of tokens become audio: the reference's samples, segments joined, own lengths, batches that do not show."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec.base import DecoderInfo, Tokens
from codec.registry import decoder_info, load_decoder
from pipeline.audio_config import AudioBatchingConfig
from pipeline.encoder import Progress
from pipeline.errors import CodecContractError, ShardCancelledError
from pipeline.synthesizer import Synthesizer, num_samples_at, quantized
from pipeline.token_batcher import token_windows
from pipeline.types import AudioRow, Segment, TokenRow
from tests.codec.golden import GOLDEN, Expected

STEP = 1 / 32768
DECODED = ("16k_mono", "16k_short_350ms", "22k_mono")
DECODINGS = {
    "decoder_16k_4codebooks": (16000, 3),
    "decoder_24k_4codebooks": (24000, 3),
    "decoder_24k_2codebooks": (24000, 1),
    "decoder_16k_4codebooks/1_acoustic": (16000, 1),
}


@pytest.fixture(scope="module")
def expected() -> Expected:
    return Expected(GOLDEN / "expected.npz")


def synthesizer(sample_rate_hz: int, num_codebooks: int, *, semantic: bool = True) -> Synthesizer:
    info = decoder_info(str(GOLDEN), sample_rate_hz=sample_rate_hz, num_acoustic_codebooks=num_codebooks)
    return around(load_decoder(str(GOLDEN), info), num_codebooks, semantic=semantic)


def around(decoder, num_codebooks: int = 3, *, semantic: bool = True) -> Synthesizer:
    return Synthesizer(
        decoder=decoder,
        source_rate_hz=16000,
        semantic=semantic,
        num_acoustic_codebooks=num_codebooks,
        clock=time.monotonic,
    )


def golden_row(expected: Expected, clip: str) -> TokenRow:
    semantic, acoustic = (expected[f"{clip}/{stream}"].numpy().astype(np.uint16) for stream in ("semantic", "acoustic"))
    num_samples, num_frames = len(expected[f"{clip}/wav16k"]), len(semantic)
    return TokenRow(clip, num_frames, num_samples, 16000, 1, (Segment(0, num_samples, num_frames),), semantic, acoustic)


def joined(key: str, rows: list[TokenRow]) -> TokenRow:
    """One row whose segments are these rows, the inner ones cut to whole frames."""
    segments, start = [], 0
    for row in rows[:-1]:
        segments.append(Segment(start, row.num_frames * 960, row.num_frames))
        start += row.num_frames * 960
    segments.append(Segment(start, rows[-1].num_audio_samples, rows[-1].num_frames))
    return TokenRow(
        key,
        sum(row.num_frames for row in rows),
        start + rows[-1].num_audio_samples,
        16000,
        1,
        tuple(segments),
        np.concatenate([row.semantic for row in rows]),
        np.concatenate([row.acoustic for row in rows], axis=1),
    )


def audio_of(maker: Synthesizer, rows, config=None) -> tuple[dict[str, AudioRow], Progress]:
    progress = Progress()
    found: dict[str, AudioRow] = {}
    for window in token_windows(rows, config or AudioBatchingConfig(), frame_rate_hz=16000 / 960):
        for row in maker.synthesize(window, ticket=1, progress=progress):
            assert row.key not in found
            found[row.key] = row
    return found, progress


@pytest.mark.parametrize("decoding", DECODINGS)
def test_audio_is_the_references_to_half_a_step_of_16_bits(expected: Expected, decoding: str) -> None:
    sample_rate_hz, num_codebooks = DECODINGS[decoding]
    rows = [golden_row(expected, clip) for clip in DECODED]
    found, _ = audio_of(synthesizer(sample_rate_hz, num_codebooks), rows)
    assert list(found) == list(DECODED), "in shard order"
    for clip, row in found.items():
        true = expected[f"{clip}/{decoding}"].numpy()
        num_samples = num_samples_at(len(expected[f"{clip}/wav16k"]), 16000, sample_rate_hz)
        assert (row.sample_rate_hz, len(row.pcm)) == (sample_rate_hz, num_samples)
        error = np.abs(row.pcm / 32768 - true[:num_samples]).max()
        assert error <= 1e-4 * np.abs(true).max() + 0.51 * STEP


@pytest.mark.parametrize(("sample_rate_hz", "num_codebooks"), [(16000, 3), (24000, 3), (24000, 1), (16000, 0)])
def test_audio_does_not_depend_on_the_batch_but_for_a_step_here_and_there(expected, sample_rate_hz, num_codebooks):
    maker = synthesizer(sample_rate_hz, num_codebooks)
    rows = [golden_row(expected, clip) for clip in (*DECODED, "16k_tiny_300_samples", "44k_stereo")]
    together, progress = audio_of(maker, rows, AudioBatchingConfig(batch_cost_s=1000))
    assert progress.num_batches == 1
    num_apart = num_samples = 0
    for row in rows:
        alone = audio_of(maker, [row])[0][row.key].pcm.astype(int)
        apart = np.abs(together[row.key].pcm - alone)
        assert apart.max() <= 1
        num_apart, num_samples = num_apart + np.count_nonzero(apart), num_samples + len(apart)
    assert num_apart <= 0.002 * num_samples


def test_floats_of_a_batch_are_within_1e_6_of_each_alone(expected):
    decoder = synthesizer(24000, 3).decoder
    rows = [golden_row(expected, clip) for clip in (*DECODED, "16k_tiny_300_samples")]
    num_frames = torch.tensor([row.num_frames for row in rows])
    semantic = torch.zeros(len(rows), int(num_frames.max()), dtype=torch.int64)
    acoustic = torch.zeros(len(rows), 3, int(num_frames.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        semantic[index, : row.num_frames] = torch.from_numpy(row.semantic.astype(np.int64))
        acoustic[index, :, : row.num_frames] = torch.from_numpy(row.acoustic.astype(np.int64))
    together = decoder.decode(Tokens(semantic, acoustic, num_frames))
    for index, count in enumerate(num_frames.tolist()):
        own = slice(index, index + 1)
        alone = decoder.decode(Tokens(semantic[own, :count], acoustic[own, :, :count], num_frames[own]))
        assert (together[index, : count * 1440] - alone[0]).abs().max() <= 1e-6


def test_segments_are_decoded_one_by_one_and_joined(expected):
    maker = synthesizer(24000, 3)
    parts = [golden_row(expected, clip) for clip in ("16k_exact_15_frames", "16k_short_350ms", "22k_mono")]
    whole = audio_of(maker, [joined("long", parts)])[0]["long"].pcm.astype(int)
    alone = [audio_of(maker, [part])[0][part.key].pcm.astype(int) for part in parts]
    assert len(whole) == num_samples_at(15 * 960 + 6 * 960 + parts[2].num_audio_samples, 16000, 24000)
    start = 0
    for part, samples in zip(parts, alone, strict=True):
        own = whole[start : start + len(samples)]
        assert np.abs(own - samples).max() <= 1, part.key
        start += part.num_frames * 1440


def test_semantics_alone_sound_other_than_with_acoustics(expected):
    row = golden_row(expected, "22k_mono")
    both = audio_of(synthesizer(16000, 3), [row])[0][row.key].pcm
    alone = audio_of(synthesizer(16000, 0), [row])[0][row.key].pcm
    assert alone.shape == both.shape
    assert np.abs(alone.astype(int) - both).max() > 100
    assert np.abs(alone).max() > 100


@given(st.integers(1, 10**9), st.sampled_from([(16000, 16000), (16000, 24000), (24000, 16000), (16000, 44100)]))
def test_lengths_at_another_rate_are_rounded_halves_up(num_audio_samples, rates):
    exact = Fraction(num_audio_samples * rates[1], rates[0])
    assert num_samples_at(num_audio_samples, *rates) == floor(exact + Fraction(1, 2))


def test_16_bits_are_the_nearest_and_come_back_as_they_are():
    every = np.arange(-32768, 32768, dtype=np.int16)
    assert np.array_equal(quantized((every / 32768).astype(np.float32)), every)
    near = (every[1:-1] / 32768 + 0.4 * STEP).astype(np.float32)
    assert np.array_equal(quantized(near), every[1:-1])
    assert quantized(np.array([1.0, -1.0, 1.5], np.float32)).tolist() == [32767, -32768, 32767]


class FakeDecoder:
    """Samples that are the semantic id of their frame; its answers, or its memory, tampered with."""

    info = DecoderInfo("fake", "0" * 64, 24000, 1440, 8192, (8100,) * 3)

    def __init__(self, tamper=None, rows_max=None):
        self._tamper = tamper
        self._rows_max = rows_max
        self.batches = []

    def decode(self, tokens):
        self.batches.append(tuple(tokens.semantic.shape))
        if self._rows_max is not None and len(tokens.semantic) > self._rows_max:
            raise torch.OutOfMemoryError("the device is full")
        audio = (tokens.semantic / 32768).repeat_interleave(1440, dim=1).float()
        return audio if self._tamper is None else self._tamper(audio)


def fake_row(key: str, lengths: list[int], first_id: int = 0) -> TokenRow:
    """A row whose frames count up from `first_id`, its segments of so many frames."""
    rng = np.arange(first_id, first_id + sum(lengths)).astype(np.uint16)
    starts = np.cumsum([0, *lengths[:-1]])
    segments = tuple(Segment(int(s) * 960, n * 960, n) for s, n in zip(starts, lengths, strict=True))
    total = sum(lengths)
    return TokenRow(key, total, total * 960, 16000, 1, segments, rng, np.zeros((3, total), np.uint16))


ROWS = [fake_row("a", [5, 3, 7]), fake_row("b", [4], 100), fake_row("c", [7, 7], 200), fake_row("d", [1], 300)]


@pytest.mark.parametrize("rows_max", [None, 1])
def test_every_frame_comes_out_once_in_its_place_also_when_batches_are_halved(rows_max):
    decoder = FakeDecoder(rows_max=rows_max)
    found, progress = audio_of(around(decoder), ROWS)
    for row in ROWS:
        assert found[row.key].pcm.tolist() == np.repeat(row.semantic, 1440).tolist()
    assert bool(progress.num_halved_batches) == (rows_max is not None)


def test_batches_keep_their_bounds_and_do_not_depend_on_anything_else():
    config = AudioBatchingConfig(batch_s=0.9, batch_size_max=3, window_s=1)
    first, second = FakeDecoder(), FakeDecoder()
    audio_of(around(first), ROWS, config)
    audio_of(around(second), iter(ROWS), config)
    assert first.batches == second.batches
    assert all(rows <= 3 and rows * frames <= 15 for rows, frames in first.batches)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda audio: audio[:, :-1],
        lambda audio: audio.double(),
        lambda audio: audio.index_fill(1, torch.tensor([0]), torch.nan),
    ],
    ids=["short", "double", "nan"],
)
def test_a_decoder_that_breaks_its_contract_is_found_out(tamper):
    with pytest.raises(CodecContractError):
        audio_of(around(FakeDecoder(tamper)), ROWS)


def test_one_segment_that_never_fits_is_an_error_and_a_stop_is_heard():
    with pytest.raises(torch.OutOfMemoryError):
        audio_of(around(FakeDecoder(rows_max=0)), ROWS)
    maker = around(FakeDecoder())
    maker.cancelled.set()
    with pytest.raises(ShardCancelledError):
        audio_of(maker, ROWS)


def test_rows_of_other_numbers_of_codebooks_are_decoded_with_their_own(expected: Expected) -> None:
    """As in tokens whose clips chose their numbers; the golden audio of one codebook tells the decoder's answer."""
    all_three = [golden_row(expected, clip) for clip in DECODED]
    mixed = [replace(row, acoustic=row.acoustic[:k]) for row, k in zip(all_three, (1, 3, 1), strict=True)]
    found, progress = audio_of(synthesizer(16000, 3), mixed)
    assert list(found) == list(DECODED)
    assert progress.num_batches == 2
    assert [row.num_acoustic_codebooks for row in found.values()] == [1, 3, 1]
    for clip, decoding in zip(DECODED, ("/1_acoustic", "", "/1_acoustic"), strict=True):
        true = expected[f"{clip}/decoder_16k_4codebooks{decoding}"].numpy().reshape(-1)
        ours = found[clip].pcm / np.float32(32768)
        assert np.abs(ours - true[: len(ours)]).max() < 1e-4 * np.abs(true).max() + STEP
