"""Streams on one device, in chunks of 60 ms: how late tokens and audio come, and how much of real time they take.

A chunk's latency is the look-ahead, in whole chunks, and the chunk's own computation; the real-time factor is seconds
of computation over seconds of audio, one stream alone, and beside it seconds of all its threads' processor time, which
other work on the machine hardly changes. Beside them: how many semantic ids of a stream are those of the
whole clip, by look-ahead, as a table, and with --plots as a picture (matplotlib, the extra `plots`). Only trained
weights make that agreement mean anything: those of the random checkpoint and of the golden one are not.

On a GPU:  voxmill bench streaming --device cuda --codec longcat --speech FOLDER --hop-frames 1 --plots FOLDER
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from codec.base import CodecError
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.model import LongCatCodec
from codec.longcat.stream_decoder import StreamDecoder
from codec.longcat.stream_encoder import StreamEncoder
from codec.registry import load_codec
from infra.bench.agreement_plot import check_matplotlib, write_plot
from infra.bench.clips import SAMPLE_RATE_HZ, mixed_clips
from infra.bench.random_checkpoint import random_checkpoint, random_decoder
from infra.bench.report import BenchReport, Figure

_CHUNK_S = 0.06
_FRAME_S = 0.06
_WARM_UP_CHUNKS = 20
"""Until then the first layers fill up, and kernels are made at their first use."""

Agreement = dict[float, dict[float, float]]
"""Share of semantic ids that are the whole clip's: by context, then by look-ahead, both in seconds."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `voxmill bench streaming`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument("--precision", default="float32", help="of the encoders (default: %(default)s)")
    parser.add_argument("--codec", help="a checkpoint; default: random weights of the published sizes, 2.1 GB on disk")
    parser.add_argument("--speech", metavar="FOLDER", help="default: Debian packages, fetched by apt")
    parser.add_argument("--audio-s", type=float, default=6.0, help="of each timed stream (default: %(default)s)")
    parser.add_argument("--agreement-audio-s", type=float, default=6.0, help="of all clips (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="on a CPU: all cores")
    parser.add_argument("--context-s", type=float, nargs="+", default=[4.0], help="the first one is timed")
    parser.add_argument("--look-ahead-s", type=float, nargs="+", default=[0.0, 0.12, 0.24, 0.48, 0.96, 1.92])
    parser.add_argument(
        "--hop-frames", type=int, default=4, help="looked up at a time; all but the last see further (default: 4)"
    )
    parser.add_argument("--plots", metavar="FOLDER", type=Path, help="write the agreement there as streaming.png")


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Time the encoder's streams and the decoders', then compare semantic ids."""
    if arguments.plots:
        check_matplotlib()
    torch.set_num_threads(arguments.threads)
    codec = _load(arguments)
    clips = [
        torch.from_numpy(clip.waveform)[None] for clip in mixed_clips(arguments.speech, arguments.agreement_audio_s)
    ]
    speech = _long_enough(clips, arguments.audio_s)
    window = {"context_s": arguments.context_s[0], "hop_frames": arguments.hop_frames}
    encoders = {
        "encode acoustic": codec.stream_encoder(semantic=False),
        "encode both streams": codec.stream_encoder(**window),
    }
    figures: list[Figure] = []
    details: dict[str, object] = {
        "codec": arguments.codec or "random",
        "device": arguments.device,
        "threads": arguments.threads,
        "window of the timed semantic ids": window,
    }
    for name, encoder in encoders.items():
        chunks = torch.split(speech, round(_CHUNK_S * SAMPLE_RATE_HZ), dim=1)
        figures += _timed(name, [partial(encoder.push, chunk) for chunk in chunks], encoder.look_ahead / SAMPLE_RATE_HZ)
    for name in codec.checkpoint.config.decoders:
        decoder, rate_hz = _decoder(codec, name, is_random=not arguments.codec)
        pushes = _token_pushes(codec, decoder, name, num_frames=round(arguments.audio_s / _FRAME_S))
        figures += _timed(f"decode {name}", pushes, decoder.delay.held / rate_hz)
    agreement = {
        context_s: {
            look_ahead_s: _agreement(codec, clips, context_s, look_ahead_s, arguments.hop_frames)
            for look_ahead_s in arguments.look_ahead_s
        }
        for context_s in arguments.context_s
    }
    figures += _agreement_figures(agreement)
    details["semantic ids as of the whole clip, by context and look-ahead in seconds"] = agreement
    if arguments.plots:
        details["plot"] = str(write_plot(agreement, arguments.plots, codec=str(details["codec"])))
    return BenchReport("streaming", tuple(figures), details)


def _load(arguments: argparse.Namespace) -> LongCatCodec:
    uri = arguments.codec or str(random_checkpoint())
    codec = load_codec(uri, device=arguments.device, precision=arguments.precision)
    if not isinstance(codec, LongCatCodec):
        raise CodecError(f"{uri} has no streams; give a LongCat checkpoint with --codec")
    return codec


def _decoder(codec: LongCatCodec, name: str, *, is_random: bool) -> tuple[StreamDecoder, int]:
    """A stream through a decoder of the checkpoint, or one of random weights, and its sample rate."""
    sizes = codec.checkpoint.config.decoders[name]
    decoder: LongCatDecoder = random_decoder(name, device=codec.device) if is_random else codec.decoder(name)
    stream = StreamDecoder(
        decoder,
        info=codec.info,
        semantic=True,
        num_acoustic_codebooks=sizes.num_codebooks,
        num_streams=1,
        device=codec.device,
    )
    return stream, sizes.sample_rate_hz


def _token_pushes(
    codec: LongCatCodec, stream: StreamDecoder, name: str, *, num_frames: int
) -> list[Callable[[], object]]:
    """A frame of random ids each."""
    generator = torch.Generator().manual_seed(0)
    info, num_codebooks = codec.info, codec.checkpoint.config.decoders[name].num_codebooks
    semantic = torch.randint(info.semantic_cardinality, (num_frames, 1, 1), generator=generator)
    acoustic = torch.randint(info.acoustic_cardinalities[0], (num_frames, 1, num_codebooks, 1), generator=generator)
    return [partial(stream.push, *frame) for frame in zip(semantic, acoustic, strict=True)]


def _timed(name: str, pushes: Sequence[Callable[[], object]], look_ahead_s: float) -> list[Figure]:
    """Each push is of `_CHUNK_S` seconds; results come back on the CPU, so a GPU has done its work by then."""
    took_s: list[tuple[float, float]] = []
    for push in pushes:
        started_s, started_processor_s = time.perf_counter(), time.process_time()
        push()
        took_s.append((time.perf_counter() - started_s, time.process_time() - started_processor_s))
    settled: NDArray[np.float64]
    settled, processor = np.array(took_s[min(_WARM_UP_CHUNKS, len(took_s) // 2) :]).T
    waits_s = -(-round(look_ahead_s * 1e6) // round(_CHUNK_S * 1e6)) * _CHUNK_S
    median_s, slow_s = (float(np.quantile(settled, share)) for share in (0.5, 0.99))
    return [
        Figure(f"{name}: real-time factor", float(settled.mean()) / _CHUNK_S),
        Figure(f"{name}: processor time over audio", float(processor.mean()) / _CHUNK_S),
        Figure(f"{name}: look-ahead", 1e3 * look_ahead_s, "ms"),
        Figure(f"{name}: latency, look-ahead in chunks and median computation", 1e3 * (waits_s + median_s), "ms"),
        Figure(f"{name}: computation of a chunk, 99th percentile", 1e3 * slow_s, "ms"),
    ]


def _agreement(
    codec: LongCatCodec, clips: Sequence[torch.Tensor], context_s: float, look_ahead_s: float, hop_frames: int
) -> float:
    """Share of all clips' semantic ids."""
    num_same = num = 0
    for clip in clips:
        whole = codec.encode(clip, torch.tensor([clip.shape[1]]), num_acoustic_codebooks=0).semantic
        stream = codec.stream_encoder(
            num_acoustic_codebooks=0, context_s=context_s, look_ahead_s=look_ahead_s, hop_frames=hop_frames
        )
        found = _semantic(stream, clip)
        assert whole is not None
        num_same += int((found == whole).sum())
        num += whole.numel()
    return num_same / num


def _semantic(stream: StreamEncoder, clip: torch.Tensor) -> torch.Tensor:
    parts = [stream.push(clip).semantic, stream.finish().semantic]
    return torch.cat([part for part in parts if part is not None], dim=1)


def _agreement_figures(agreement: Agreement) -> list[Figure]:
    return [
        Figure(f"semantic ids as of the whole clip, {context_s:g} s of context, {look_ahead_s:g} s ahead", share)
        for context_s, by_look_ahead in agreement.items()
        for look_ahead_s, share in by_look_ahead.items()
    ]


def _long_enough(clips: Sequence[torch.Tensor], audio_s: float) -> torch.Tensor:
    """Clips one after another, over again where they are too short: [1, T] of whole chunks."""
    joined, num = torch.cat(list(clips), dim=1), round(audio_s / _CHUNK_S) * round(_CHUNK_S * SAMPLE_RATE_HZ)
    return joined.repeat(1, -(-num // joined.shape[1]))[:, :num]
