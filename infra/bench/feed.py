"""What a run spends around a codec of no cost, over reading, decoding and resampling the same shards barely.

Each side is a process of its own a round: `voxmill run` with the inline executor and `calibrated:ids=zero`; and one
loop of `tarfile`, `soundfile.read` and our own resampler on one thread. Both are counted by the user and system seconds
of the process and all that it waited for, decoding processes too, less those of the same process on a single clip, so
that neither imports nor starts count. The shards are human speech in WAV and FLAC (16 kHz) and MP3 (44.1 kHz), in the
page cache; a shard counts several times by hard links, so that a round takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from codec.base import CodecError
from infra.bench.report import BenchReport, Figure
from infra.bench.speech import speech_files
from pipeline.resample import resample, to_mono

RATE_HZ: Final = 16_000
RATIO_MIN: Final = 0.90

RUN: Final = """
import json, sys
from jobs.run import run_job
from pipeline.config import load_config
report = run_job(load_config(json.loads(sys.argv[1])), plain=True)
assert report.exit_code == 0, report.lines()
assert report.counts.num_rejected == 0, report.counts
print(report.counts.audio_s)
"""
BARE: Final = """
import sys
from infra.bench.feed import read_barely
print(read_barely(sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A container, and how often a round reads its shard, so that all rounds take about as long."""

    name: str
    rate_hz: int
    num_readings: int


KINDS: Final = (Kind("wav", 16_000, 16), Kind("flac", 16_000, 5), Kind("mp3", 44_100, 1))


@dataclass(frozen=True, slots=True)
class Round:
    """Processor seconds of both sides, starts taken off, and what the starts took."""

    run_s: float
    bare_s: float
    run_start_s: float
    bare_start_s: float

    @property
    def ratio(self) -> float:
        """Speed of the run over the bare loop's."""
        return self.bare_s / self.run_s


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `voxmill bench feed`."""
    parser.add_argument("--kinds", default=",".join(kind.name for kind in KINDS), help="of wav, flac, mp3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-s", type=float, default=6000, help="seconds of audio of a shard")
    parser.add_argument("--speech-s", type=float, default=600, help="seconds of speech that a shard repeats")
    parser.add_argument("--speech", help="a folder of speech of one's own; default: Debian's festvox-ru")
    parser.add_argument("--config", default="{}", help="settings of the run, as JSON")


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Both sides in turn, round by round; the figure is the median of the rounds' ratios."""
    wanted = [kind for kind in KINDS if kind.name in arguments.kinds.split(",")]
    speech = list(_speech(speech_files(folder=arguments.speech), arguments.speech_s))
    figures: list[Figure] = []
    details: dict[str, Any] = {"md5_ms_a_mb": round(_md5_ms_a_mb(), 3)}
    for kind in wanted:
        with TemporaryDirectory(prefix="voxmill-bench-") as folder:
            side = _Sides(Path(folder), kind, speech, arguments.shard_s, json.loads(arguments.config))
            rounds = [side.round(number) for number in range(arguments.rounds)]
        ratio = median(one.ratio for one in rounds)
        figures.append(Figure(f"{kind.name}: speed a core over bare reading", ratio, "", at_least=RATIO_MIN))
        details[kind.name] = {
            "audio_s": side.audio_s,
            "shard_bytes": side.shard_bytes,
            "bare_us_an_audio_s": round(1e6 * median(one.bare_s for one in rounds) / side.audio_s, 2),
            "run_us_an_audio_s": round(1e6 * median(one.run_s for one in rounds) / side.audio_s, 2),
            "rounds": [asdict(one) for one in rounds],
        }
    return BenchReport("feed", tuple(figures), details)


def read_barely(paths: Sequence[str]) -> float:
    """The bare side: the seconds of audio at `RATE_HZ` in the shards, every clip decoded to mono."""
    torch.set_num_threads(1)
    num_samples = 0
    for path in paths:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                waveform, rate_hz = soundfile.read(io.BytesIO(content.read()), dtype="float32")
                if waveform.ndim == 2:
                    waveform = waveform.mean(axis=1)
                if rate_hz != RATE_HZ:
                    waveform = resample(waveform[None], rate_hz, RATE_HZ)[0]
                num_samples += len(waveform)
    return num_samples / RATE_HZ


class _Sides:
    """One kind's shards, and the two ways over them."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        speech: Sequence[NDArray[np.float32]],
        shard_s: float,
        settings: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        self._settings = settings
        clips, lengths_s = [_encoded(clip, kind) for clip in speech], [len(clip) / RATE_HZ for clip in speech]
        self._one = folder / f"{kind.name}-one.tar"
        self._shards = [folder / f"{kind.name}-{index:03d}.tar" for index in range(kind.num_readings)]
        first = self._shards[0]
        _pack(self._one, clips[:1], lengths_s, shard_s=0)
        _pack(first, clips, lengths_s, shard_s)
        for path in self._shards[1:]:
            path.hardlink_to(first)
        self.shard_bytes = first.stat().st_size
        self.audio_s = read_barely([str(first)]) * kind.num_readings  # also warms the page cache

    def round(self, number: int) -> Round:
        """One round; which side begins changes from one to the next."""
        sides = [self._run, self._bare] if number % 2 else [self._bare, self._run]
        spent_s = {side: (side(self._shards), side([self._one])) for side in sides}
        (run_s, run_start_s), (bare_s, bare_start_s) = spent_s[self._run], spent_s[self._bare]
        return Round(run_s - run_start_s, bare_s - bare_start_s, run_start_s, bare_start_s)

    def _run(self, shards: Sequence[Path]) -> float:
        with TemporaryDirectory(prefix="out-", dir=self._folder) as output:
            inputs = [str(path) for path in shards]
            config = {"input": inputs, "output": output, "codec": "calibrated:ids=zero", "executor": "inline"}
            return self._checked_s(shards, RUN, json.dumps(config | dict(self._settings)))

    def _bare(self, shards: Sequence[Path]) -> float:
        return self._checked_s(shards, BARE, *map(str, shards))

    def _checked_s(self, shards: Sequence[Path], program: str, *arguments: str) -> float:
        """Processor seconds of a side, which must have come to all of the audio."""
        spent_s, audio_s = _spent(program, arguments)
        if shards is self._shards and abs(audio_s - self.audio_s) > 1:
            raise CodecError(f"a side found {audio_s} s of audio in shards of {self.audio_s} s: it is no measure")
        return spent_s


def _spent(program: str, arguments: Sequence[str]) -> tuple[float, float]:
    """Processor seconds of a Python process with all that it waited for, and the number that it wrote last."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CodecError(f"a side of the benchmark ended with {process.returncode}; what it said is above")
    return used.ru_utime + used.ru_stime, float(told.split()[-1])


def _speech(paths: Sequence[Path], speech_s: float) -> Iterator[NDArray[np.float32]]:
    """Clips at `RATE_HZ`, until they come to so many seconds."""
    num_samples = 0
    for path in paths:
        if num_samples >= speech_s * RATE_HZ:
            return
        channels, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        clip = to_mono(resample(np.ascontiguousarray(channels.T), rate_hz, RATE_HZ))
        num_samples += len(clip)
        yield clip


def _encoded(clip: NDArray[np.float32], kind: Kind) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, resample(clip[None], RATE_HZ, kind.rate_hz)[0], kind.rate_hz, format=kind.name)
    return file.getvalue()


def _pack(path: Path, clips: Sequence[bytes], lengths_s: Sequence[float], shard_s: float) -> None:
    """The clips over and over under new keys, until they come to so many seconds."""
    packed_s = 0.0
    with tarfile.open(path, "w") as tar:
        for index, (clip, length_s) in enumerate(itertools.cycle(zip(clips, lengths_s, strict=True))):
            member = tarfile.TarInfo(f"clip-{index:06d}.{path.stem.split('-')[0]}")
            member.size = len(clip)
            tar.addfile(member, io.BytesIO(clip))
            packed_s += length_s
            if packed_s >= shard_s:
                return


def _md5_ms_a_mb() -> float:
    """What the check of a shard's MD5 costs (`reading.check_md5`), which stores of local files have none of."""
    data = os.urandom(1 << 24)
    started_s = time.process_time()
    hashlib.md5(data, usedforsecurity=False)
    return 1e3 * (time.process_time() - started_s) / (len(data) / 1e6)
