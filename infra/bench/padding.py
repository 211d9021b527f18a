"""Padded over real seconds of the batches that a run plans, on human speech of several packages.

Lengths alone are read; frames are counted whole, so the last one of each segment, up to 60 ms, is padding too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from infra.bench.clips import SAMPLE_RATE_HZ
from infra.bench.report import BenchReport, Figure
from infra.bench.speech import PACKAGES, speech_files
from pipeline.batcher import windows
from pipeline.settings import BatchingConfig
from pipeline.types import Clip

_FRAME_SIZE = 960
_RATIO_MAX = 1.02


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `voxmill bench padding`."""
    default = BatchingConfig()
    parser.add_argument("--speech", metavar="FOLDER", help="default: Debian packages, fetched by apt")
    parser.add_argument("--batch-s", type=float, default=default.batch_s)
    parser.add_argument("--batch-cost-s", type=float, default=default.batch_cost_s)
    parser.add_argument("--window-s", type=float, default=default.window_s)


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Plan each package as one shard, in the order of its files."""
    config = BatchingConfig(batch_s=arguments.batch_s, batch_cost_s=arguments.batch_cost_s, window_s=arguments.window_s)
    sources = {arguments.speech: speech_files(folder=arguments.speech)} if arguments.speech else _packages()
    figures: list[Figure] = []
    details: dict[str, object] = {"batching": config.model_dump()}
    for name, files in sources.items():
        real_s, padded_s, num_batches = _planned(files, config)
        figures.append(Figure(f"padded over real seconds, {name}", padded_s / real_s, at_most=_RATIO_MAX))
        details[name] = {"clips": len(files), "audio_s": real_s, "padded_s": padded_s, "batches": num_batches}
    return BenchReport("padding", tuple(figures), details)


def _packages() -> dict[str, list[Path]]:
    return {package: speech_files(package) for package in PACKAGES}


def _planned(files: Sequence[Path], config: BatchingConfig) -> tuple[float, float, int]:
    """Real seconds, padded seconds and batches of all files."""
    real_samples = padded_frames = num_batches = 0
    for window in windows(_silent_clips(files), config, sample_rate_hz=SAMPLE_RATE_HZ, frame_size=_FRAME_SIZE):
        real_samples += sum(len(cut.clip.pcm) for cut in window.clips)
        padded_frames += sum(len(batch) * batch[0].num_frames for batch in window.batches)
        num_batches += len(window.batches)
    return real_samples / SAMPLE_RATE_HZ, padded_frames * _FRAME_SIZE / SAMPLE_RATE_HZ, num_batches


def _silent_clips(files: Sequence[Path]) -> Iterator[Clip]:
    """As long as the files; the plan looks at lengths, and at what is heard only where a clip is cut."""
    for path in files:
        header = soundfile.info(path)
        num_samples = -(-header.frames * SAMPLE_RATE_HZ // header.samplerate)
        if num_samples:
            silence = np.broadcast_to(np.int16(0), (num_samples,))
            yield Clip(path.stem, silence, header.samplerate, header.channels)
