"""How near decoded speech is to its source, by measures that need no listener.

STOI: C. H. Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy speech", 2011
(pystoi). PESQ: ITU-T P.862.2, wideband (pesq). Both take 16 kHz.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import RefusedError
from pipeline.resample import resample

RATE_HZ: Final = 16_000
SCORED_S_MIN: Final = 0.5
"""Shorter speech has no STOI and no PESQ, as silence has none: STOI looks at windows of 384 ms."""

_PESQ_S_MAX: Final = 19.0
"""pesq writes past its arrays at more than 50 utterances, and one takes 0.4 s at least; longer speech goes in parts."""

_FFT, _HOP, _NUM_MELS = 512, 160, 80
_FLOOR_DB: Final = -60.0
"""Under the loudest band of the source: what is fainter counts as that, or silence would decide."""


@dataclass(frozen=True, slots=True)
class Scores:
    """`stoi` up to 1 and `pesq` 1 to 4.64, None where the source has too little speech; of `log_mel_db` less is better.

    Silence in place of speech has the least of both: 0 and 1.
    """

    stoi: float | None
    pesq: float | None
    log_mel_db: float


def check_installed() -> None:
    """Raises `RefusedError` where the packages for the scores and the page are missing."""
    try:
        import matplotlib  # noqa: F401
        import pesq  # noqa: F401
        import pystoi  # noqa: F401
    except ImportError as error:
        raise RefusedError(f"voxmill qa needs {error.name}; install it with: pip install 'voxmill[qa]'") from None


def at_scored_rate(waveform: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """The waveform [T] at `RATE_HZ`."""
    return waveform if rate_hz == RATE_HZ else resample(waveform[None], rate_hz, RATE_HZ)[0]


def unit(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    """Samples of full scale 32768 as float32 of full scale 1."""
    return pcm.astype(np.float32) / np.float32(32768)


def score(source: NDArray[np.float32], decoded: NDArray[np.float32]) -> Scores:
    """Scores of `decoded` [T'] against `source` [T], both at `RATE_HZ`, over what both have."""
    length = min(len(source), len(decoded))
    source, decoded = source[:length], decoded[:length]
    log_mel_db = log_mel_distance_db(source, decoded)
    if length < SCORED_S_MIN * RATE_HZ or not source.any() or (stoi := _stoi(source, decoded)) is None:
        return Scores(None, None, log_mel_db)
    if not decoded.any():
        return Scores(0.0, 1.0, log_mel_db)
    return Scores(stoi, _pesq(source, decoded), log_mel_db)


def log_mel_distance_db(source: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    """The mean distance of two waveforms' mel spectra, in dB, over 80 bands and frames of 32 ms each 10 ms."""
    true, found = log_mel_db(source), log_mel_db(decoded)
    floor = float(true.max()) + _FLOOR_DB
    return float(np.abs(np.maximum(true, floor) - np.maximum(found, floor)).mean())


def log_mel_db(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Power of each mel band in dB of full scale, float32 [80, frames]; mel(f) = 1127 ln(1 + f / 700)."""
    samples = torch.from_numpy(np.ascontiguousarray(waveform))
    spectrum = torch.stft(samples, _FFT, _HOP, window=torch.hann_window(_FFT), return_complex=True, pad_mode="constant")
    power = _mel_bands() @ spectrum.abs().square() / (_FFT / 2) ** 2
    decibels: NDArray[np.float32] = (10 * power.clamp_min(1e-12).log10()).numpy()
    return decibels


def _mel_bands() -> torch.Tensor:
    """Triangles [80, bins], linear in mel, from 0 Hz to half the rate."""
    mel_max = 1127 * math.log1p(RATE_HZ / 2 / 700)
    edges = torch.linspace(0, mel_max, _NUM_MELS + 2)
    bins = 1127 * torch.log1p(torch.linspace(0, RATE_HZ / 2, _FFT // 2 + 1) / 700)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


def _stoi(source: NDArray[np.float32], decoded: NDArray[np.float32]) -> float | None:
    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # its word for too little speech, for which it returns 1e-5
        try:
            return float(stoi(source, decoded, RATE_HZ))
        except RuntimeWarning:
            return None


def _pesq(source: NDArray[np.float32], decoded: NDArray[np.float32]) -> float | None:
    """The mean over parts of equal length, each short enough; without those in which there is no utterance."""
    from pesq import NoUtterancesError, pesq

    num_parts = math.ceil(len(source) / (_PESQ_S_MAX * RATE_HZ))
    parts = zip(np.array_split(source, num_parts), np.array_split(decoded, num_parts), strict=True)
    found: list[float] = []
    for true, heard in parts:
        with suppress(NoUtterancesError):
            found.append(float(pesq(RATE_HZ, true, heard, "wb")))
    return sum(found) / len(found) if found else None
