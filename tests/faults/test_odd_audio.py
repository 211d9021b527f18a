"""Odd and damaged audio: it costs its sample, named in the rejects, and nothing beside it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from tests.corpus import CLIPS, tar_of
from tests.faults.matrix import row

GOOD = CLIPS[0]
TONE = (0.3 * np.sin(np.arange(32000) / 9)).astype(np.float32)


def encoded(waveform: np.ndarray, rate_hz: int = 16000, **how: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, **how)
    return buffer.getvalue()


def judge(ground, odd: dict[str, bytes], rejects: dict[str, str]) -> None:
    """The odd files stand between a good clip and a clean shard; those that are no rejects must be rows."""
    ground.put_clean(2)
    ground.put({"odd.tar": tar_of([*odd.items(), (GOOD.name, GOOD.read_bytes())])})
    keys = {name.split(".")[0] for name in odd} - rejects.keys()
    rows = {**dict.fromkeys(keys), GOOD.stem: ground.lab.clip_ids(GOOD.read_bytes())}
    ground.check(ground.run(), rows={"odd.tar": rows}, rejects={"odd.tar": rejects} if rejects else {})


FORMATS = {
    "wav": {"format": "WAV"},
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


@row("audio", "truncated files", "WAV, FLAC, MP3, Vorbis and Opus cut in the middle")
@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated(ground, suffix):
    noisy = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)  # so that Ogg needs many pages
    content = encoded(noisy, **FORMATS[suffix])
    judge(ground, {f"cut.{suffix}": content[: len(content) // 2]}, {"cut": "truncated"})


@row("audio", "NaN and infinity", "float WAVs with one sample that is not finite")
def test_not_finite(ground):
    odd = {}
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        waveform = TONE.copy()
        waveform[1000] = value
        odd[f"{name}.wav"] = encoded(waveform, format="WAV", subtype="FLOAT")
    judge(ground, odd, {"nan": "not_finite", "inf": "not_finite"})


@row("audio", "empty and all but empty", "no bytes, no samples, one sample")
def test_empty(ground):
    odd = {
        "nothing.wav": b"",
        "empty.wav": encoded(TONE[:0], format="WAV"),
        "one.wav": encoded(TONE[:1], format="WAV"),
    }
    judge(ground, odd, {"nothing": "empty", "empty": "empty", "one": "too_short"})


@row("audio", "odd but good", "24 ms, 31 s, 8 channels, 192 kHz, 8-bit, 32-bit float: rows, not rejects")
def test_odd_but_good(ground):
    odd = {
        "short.wav": encoded(TONE[:384], format="WAV"),
        "long.flac": encoded(np.tile(TONE, 16)[: 31 * 16000], format="FLAC"),
        "eight.wav": encoded(np.tile(TONE[:, None], (1, 8)), format="WAV"),
        "fast.wav": encoded(TONE, 192000, format="WAV"),
        "coarse.wav": encoded(TONE, format="WAV", subtype="PCM_U8"),
        "float.wav": encoded(TONE, format="WAV", subtype="FLOAT"),
    }
    judge(ground, odd, {})
