"""Human speech as clips at the codec's rate, mixed lengths, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from infra.bench.speech import PACKAGES, speech_files
from pipeline.resample import resample, to_mono
from pipeline.types import Clip

SAMPLE_RATE_HZ = 16000


def mixed_clips(folder: str | None, audio_s: float, *, segment_s_max: float = 30.0) -> list[Clip]:
    """Clips of about `audio_s` seconds in all, evenly from a folder's files or from both packages, in turn."""
    sources = [speech_files(folder=folder)] if folder else [speech_files(package) for package in PACKAGES[:2]]
    clips: list[Clip] = []
    for files in sources:
        clips += _evenly(files, audio_s / len(sources), segment_s_max)
    order = np.random.default_rng(0).permutation(len(clips))
    return [clips[index] for index in order]


def read_clip(path: Path) -> Clip:
    """One file, mono at the codec's rate."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    channels = np.ascontiguousarray(samples.T)
    return Clip(path.stem, to_mono(resample(channels, rate_hz, SAMPLE_RATE_HZ)), rate_hz, len(channels))


def _evenly(files: Sequence[Path], audio_s: float, segment_s_max: float) -> list[Clip]:
    """As many files as make up the seconds, drawn from all; what is longer than a segment is passed over."""
    order = np.random.default_rng(0).permutation(len(files))
    clips: list[Clip] = []
    missing_s = audio_s
    for index in order:
        if missing_s <= 0:
            break
        clip = read_clip(files[index])
        clip_s = len(clip.waveform) / SAMPLE_RATE_HZ
        if 0.1 <= clip_s <= segment_s_max:
            clips.append(clip)
            missing_s -= clip_s
    return clips
