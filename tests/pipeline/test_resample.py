from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.resample import PIECE_SAMPLES, Resampler, num_kernel_values, resample, to_mono
from tests.corpus import GOLDEN

GOLDEN_CLIPS = sorted(GOLDEN.glob("clip_*.flac"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the decoding processes: the last bits follow the number of threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def noise(num_channels: int, num_samples: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(num_samples)
    return (0.1 * generator.standard_normal((num_channels, num_samples))).astype(np.float32)


def by_blocks(waveform: NDArray[np.float32], source: int, target: int, borders: list[int]) -> NDArray[np.float32]:
    resampler = Resampler(source, target, len(waveform))
    blocks = [resampler.push(block) for block in np.split(waveform, borders, axis=1)]
    rest = resampler.finish()
    return np.concatenate([*blocks, rest] if source != target else blocks, axis=1)


def of_one_convolution(waveform: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    """The published formula, written down as it stands: the whole clip at once, all channels in one batch."""
    divisor = math.gcd(source, target)
    old, new = source // divisor, target // divisor
    base = 0.99 * min(old, new)
    width = math.ceil(6 * old / base)
    t = torch.arange(0, -new, -1, dtype=torch.float32)[:, None] / new
    t = t + torch.arange(-width, width + old, dtype=torch.float32)[None] / old
    t = (t * base).clamp(-6, 6)
    window = torch.cos(t * math.pi / 6 / 2) ** 2
    t = t * math.pi
    kernel = torch.where(t == 0, torch.tensor(1.0), t.sin() / t) * (window * (base / old))
    padded = torch.nn.functional.pad(torch.from_numpy(waveform), (width, width + old))
    phases = torch.nn.functional.conv1d(padded[:, None], kernel[:, None], stride=old)
    length = math.ceil(new * waveform.shape[1] / old)
    result: NDArray[np.float32] = phases.transpose(1, 2).reshape(len(waveform), -1)[:, :length].numpy()
    return result


@pytest.mark.parametrize("path", GOLDEN_CLIPS, ids=lambda path: path.stem)
def test_golden_clips_bit_for_bit(path: Path) -> None:
    expected = np.load(GOLDEN / "expected.npz")
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    mono = to_mono(resample(np.ascontiguousarray(samples.T), rate_hz, 16_000))
    np.testing.assert_array_equal(mono, expected[f"{path.stem.removeprefix('clip_')}/wav16k"].reshape(-1))


@pytest.mark.parametrize("num_channels", [1, 2, 5])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        *((source, 16_000) for source in (8_000, 11_025, 22_050, 44_100, 48_000, 96_000)),
        *((source, 24_000) for source in (16_000, 32_000, 44_100)),
    ],
)
def test_long_clips_in_odd_blocks_equal_one_convolution(source: int, target: int, num_channels: int) -> None:
    waveform = noise(num_channels, 3 * PIECE_SAMPLES + 1234)
    expected = of_one_convolution(waveform, source, target)
    np.testing.assert_array_equal(resample(waveform, source, target), expected)
    borders = [1, 2, 999, PIECE_SAMPLES - 1, PIECE_SAMPLES + 5, 2 * PIECE_SAMPLES, 3 * PIECE_SAMPLES + 1233]
    np.testing.assert_array_equal(by_blocks(waveform, source, target, borders), expected)


@pytest.mark.parametrize(
    "num_samples", [0, 1, 2, 440, 20_000, 20_500, PIECE_SAMPLES - 20, PIECE_SAMPLES, PIECE_SAMPLES + 700]
)
def test_clips_around_the_size_of_a_piece_equal_one_convolution(num_samples: int) -> None:
    for source, target in [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000)]:
        waveform = noise(1, num_samples)
        found = by_blocks(waveform, source, target, [num_samples // 3])
        np.testing.assert_array_equal(found, of_one_convolution(waveform, source, target))


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]),
    st.integers(1, 2),
    st.integers(1, 2 * PIECE_SAMPLES),
    st.lists(st.integers(0, 2 * PIECE_SAMPLES), max_size=4),
)
def test_blocks_do_not_matter_and_the_length_is_exact(
    source: int, num_channels: int, num_samples: int, borders: list[int]
) -> None:
    waveform = noise(num_channels, num_samples)
    whole = resample(waveform, source, 16_000)
    assert whole.dtype == np.float32
    assert whole.shape == (num_channels, -(-16_000 * num_samples // source))
    np.testing.assert_array_equal(by_blocks(waveform, source, 16_000, sorted(borders)), whole)


def test_rates_without_a_common_divisor_are_refused() -> None:
    assert num_kernel_values(44_101, 16_000) > 1 << 24
    with pytest.raises(ValueError, match="44101 to 16000 Hz"):
        Resampler(44_101, 16_000, 1)


def test_mono_is_the_mean_of_the_channels() -> None:
    waveform = np.array([[1.0, 2.0], [2.0, 4.0], [6.0, 0.0]], np.float32)
    np.testing.assert_array_equal(to_mono(waveform), np.array([3.0, 2.0], np.float32))
    assert waveform[0, 0] == 1.0
