"""Log-mel features of a waveform, normalised by the checkpoint's statistics; always float32.

The filterbank is Kaldi's `fbank` (https://kaldi-asr.org/doc/feat.html) with the codec's settings. Nothing here is
learned, but the last bits of what the formulas give follow the processor (a vector library's logarithm): a checkpoint
that holds these constants is believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from codec.framing import Reach
from codec.longcat.config import HOP_MS

NUM_MELS = 80
_WINDOW_MS = 25
_FFT_SIZE = 512
_LOW_HZ = 40.0
_HIGH_HZ = 7800.0
_PRE_EMPHASIS = 0.97
_WINDOW_POWER = 0.85
_INT16_SCALE = 32767.0
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class FeatureConstants:
    """float32: `window` [400], `mel_banks` [257, 80], and by mel bin [80] the `mean` and `scale` = 1 / deviation."""

    window: torch.Tensor
    mel_banks: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor


def feature_constants(stats: torch.Tensor, *, sample_rate_hz: int) -> FeatureConstants:
    """The constants by their formulas.

    `stats` float64 [2, 81] are sums and, last, the count; then sums of squares (Kaldi's CMVN statistics).
    """
    window = torch.hann_window(_window_size(sample_rate_hz), periodic=False, dtype=torch.float32).pow(_WINDOW_POWER)
    mean, scale = mean_and_scale(stats)
    return FeatureConstants(window, mel_banks(sample_rate_hz), mean, scale)


class LogMel:
    """Waveforms float32 [B, T] in -1..1 to normalised log-mel features float32 [B, 1 + (T - 400) // 160, 80]."""

    def __init__(self, constants: FeatureConstants, *, sample_rate_hz: int, device: torch.device | str = "cpu") -> None:
        self._window_size = _window_size(sample_rate_hz)
        self._hop = sample_rate_hz * HOP_MS // 1000
        self._window = constants.window.to(device)
        self._mel_banks = constants.mel_banks.to(device)
        self._mean = constants.mean.to(device)
        self._scale = constants.scale.to(device)

    @property
    def reach(self) -> Reach:
        """The samples that a step sees."""
        return Reach(self._hop, after=self._window_size - 1)

    def __call__(self, waveforms: torch.Tensor) -> torch.Tensor:
        """The features; frames stay inside the waveform (Kaldi's "snip edges")."""
        frames = (waveforms * _INT16_SCALE).unfold(-1, self._window_size, self._hop)
        # The sample before a frame's first is that first sample itself, not the waveform's earlier one.
        previous = functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
        emphasised = (frames - _PRE_EMPHASIS * previous) * self._window
        power: torch.Tensor = torch.fft.rfft(emphasised, n=_FFT_SIZE).abs().square()
        energies = (power @ self._mel_banks).clamp_min(_EPSILON)
        return (energies.log() - self._mean) * self._scale


def _window_size(sample_rate_hz: int) -> int:
    return sample_rate_hz * _WINDOW_MS // 1000


def mean_and_scale(stats: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / standard deviation, both float32 [80], of CMVN statistics float64 [2, 81]."""
    count = stats[0, -1]
    mean = stats[0, :-1] / count
    variance = stats[1, :-1] / count - mean.square()
    # Rounded to float32 before the root: so the scale is the reference's to the last bit.
    scale = 1.0 / variance.float().clamp_min(0.0).sqrt().clamp_min(_EPSILON)
    return mean.float(), scale


def mel_banks(sample_rate_hz: int) -> torch.Tensor:
    """Triangles over the power spectrum, float32 [257, 80]: linear in mel, nothing from the Nyquist bin."""
    mel_low, mel_high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (_LOW_HZ, _HIGH_HZ))
    mel_step = (mel_high - mel_low) / (NUM_MELS + 1)
    index = torch.arange(NUM_MELS, dtype=torch.float32)[:, None]
    left, centre, right = (mel_low + (index + offset) * mel_step for offset in (0.0, 1.0, 2.0))
    bin_hz = sample_rate_hz / _FFT_SIZE
    mels = 1127.0 * (1.0 + bin_hz * torch.arange(_FFT_SIZE // 2, dtype=torch.float32)[None] / 700.0).log()
    triangles = torch.minimum((mels - left) / (centre - left), (right - mels) / (right - centre)).clamp_min(0.0)
    return functional.pad(triangles, (0, 1)).T.contiguous()
