"""Encoding human speech of mixed lengths on one device, by the batches that a run would make.

The share of the device's own matrix product (2048 x 2048) counts real seconds only: padding is loss. The product is
measured right before and after each round, and on a CPU, where neighbours come and go, before each batch as well; both
are counted by all of their work over all of their time. Beside it: the speed over the plain way (one clip after
another, eager, weight norm unfolded), whose float32 ids must be the same, and how many ids each narrow precision shares
with float32.

On a GPU:  voxmill bench codec --device cuda --codec longcat --speech FOLDER
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch

from codec.base import Codec, CodecError, CodecInfo, Tokens
from codec.longcat.config import PUBLISHED
from codec.longcat.model import LongCatCodec
from codec.registry import load_codec
from infra.bench.clips import SAMPLE_RATE_HZ, mixed_clips
from infra.bench.matrix import MatrixProduct, wait_for
from infra.bench.plain import PlainEncoder, plain_encoder
from infra.bench.random_checkpoint import random_checkpoint
from infra.bench.report import BenchReport, Figure
from pipeline.encoder import Encoder, Progress
from pipeline.settings import BatchingConfig
from pipeline.types import Clip, TokenRow

GFLOP_PER_AUDIO_S = 30.2
"""Of the published encoder: semantic 17.7, acoustic 12.4; multiplications and additions."""

_SHARE_AT_LEAST = {"float32": 0.85, "bfloat16": 0.5}
_OVER_PLAIN_AT_LEAST = {"float32": 3.0, "bfloat16": 8.0}


@dataclass(frozen=True, slots=True)
class _Round:
    """One pass over the clips, and the speed of the matrix product around it."""

    encode_s: float
    matrix_gflops: float
    share: float
    rows: list[TokenRow]

    def details(self) -> dict[str, float]:
        """What was measured."""
        return {"encode_s": self.encode_s, "matrix_gflops": self.matrix_gflops, "share": self.share}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `voxmill bench codec`."""
    default = BatchingConfig()
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument(
        "--precision", action="append", help="may be repeated; default: float32, and bfloat16 where it is no slower"
    )
    parser.add_argument("--codec", help="a checkpoint of the published sizes; default: random weights, 2.1 GB on disk")
    parser.add_argument("--speech", metavar="FOLDER", help="default: Debian packages, fetched by apt")
    parser.add_argument("--audio-s", type=float, default=1200.0, help="of a round (default: %(default)s, a window)")
    parser.add_argument("--plain-audio-s", type=float, default=30.0, help="for the plain way (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="on a CPU: all cores")
    parser.add_argument("--batch-s", type=float, default=default.batch_s)
    parser.add_argument("--window-s", type=float, default=default.window_s)


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Measure each precision, and compare it with the plain way and with float32."""
    torch.set_num_threads(arguments.threads)
    uri = arguments.codec or str(random_checkpoint())
    batching = BatchingConfig(batch_s=arguments.batch_s, window_s=arguments.window_s)
    clips = mixed_clips(arguments.speech, arguments.audio_s)
    few = _first(clips, arguments.plain_audio_s)
    figures: list[Figure] = []
    details: dict[str, object] = {
        "codec": uri,
        "device": _device_name(arguments.device),
        "threads": arguments.threads,
        "batching": batching.model_dump(),
        "clips_s": [round(len(clip.waveform) / SAMPLE_RATE_HZ, 2) for clip in clips],
    }
    rows: dict[str, list[TokenRow]] = {}
    plain: PlainEncoder | None = None
    for precision in arguments.precision or _worthwhile(arguments.device, details):
        codec = _load(uri, arguments.device, precision)
        encode_few = partial(_encode, codec, few, batching)
        encode_few()  # what is compiled or packed once
        rounds = [_round(codec, clips, precision, batching) for _ in range(arguments.rounds)]
        rows[precision] = rounds[-1].rows
        details[precision] = [one.details() for one in rounds]
        figures += _speed(rounds, _audio_s(clips), precision, arguments.device)
        plain = plain or plain_encoder(codec.checkpoint, codec.device)
        encode_plainly = partial(plain.encode_all, few)
        pairs = [(_timed(encode_plainly, codec), _timed(encode_few, codec)) for _ in range(3)]
        details[f"{precision}: seconds plain, ours"] = pairs
        over_plain = median(theirs / ours for theirs, ours in pairs)
        goal = _OVER_PLAIN_AT_LEAST.get(precision)
        figures.append(Figure(f"{precision}, times as fast as the plain way", over_plain, at_least=goal))
        if precision == "float32":
            differing = _differing(encode_few(), encode_plainly())
            figures.append(Figure("float32, ids that differ from the plain way's", differing, at_most=0))
        else:
            figures += _agreement(rows, precision)
    return BenchReport("codec", tuple(figures), details)


def _worthwhile(device: str, details: dict[str, object]) -> list[str]:
    """float32, and bfloat16 where the device has arithmetic for it: some processors only emulate it."""
    products = {name: MatrixProduct(torch.device(device), name, size=256) for name in ("float32", "bfloat16")}
    for product in products.values():
        product.spell()
    gflops = {name: product.gflops for name, product in products.items()}
    if gflops["bfloat16"] >= gflops["float32"] / 2:
        return ["float32", "bfloat16"]
    details["bfloat16 left out"] = f"GFLOP/s of a product of 256 x 256: {gflops}"
    return ["float32"]


def _load(uri: str, device: str, precision: str) -> LongCatCodec:
    codec = load_codec(uri, device=device, precision=precision)
    if not isinstance(codec, LongCatCodec) or codec.checkpoint.config != PUBLISHED:
        raise CodecError(f"{uri} has not the published sizes, for which the arithmetic is known; give another --codec")
    return codec


def _encode(codec: Codec, clips: Sequence[Clip], batching: BatchingConfig) -> list[TokenRow]:
    """The clips' rows, as a replica makes them."""
    num_codebooks = len(codec.info.acoustic_cardinalities)
    encoder = Encoder(codec, semantic=True, num_acoustic_codebooks=num_codebooks, clock=time.monotonic)
    ticket, progress = encoder.turn.ticket(), Progress()
    planned = encoder.windows(clips, batching)
    return [row for window in planned for row in encoder.encode(window, ticket=ticket, progress=progress)]


def _round(codec: LongCatCodec, clips: Sequence[Clip], precision: str, batching: BatchingConfig) -> _Round:
    product = MatrixProduct(codec.device, precision)
    product.spell()
    before_s, started_s = product.spent_s, time.perf_counter()
    rows = _encode(_Alternating(codec, product) if codec.device.type == "cpu" else codec, clips, batching)
    wait_for(codec.device)
    encode_s = time.perf_counter() - started_s - (product.spent_s - before_s)
    product.spell()
    return _Round(encode_s, product.gflops, GFLOP_PER_AUDIO_S * _audio_s(clips) / encode_s / product.gflops, rows)


@dataclass(frozen=True)
class _Alternating:
    """A codec before each batch of which the matrix product has a spell."""

    codec: LongCatCodec
    product: MatrixProduct

    @property
    def info(self) -> CodecInfo:
        return self.codec.info

    @property
    def computes_padding(self) -> bool:
        return self.codec.computes_padding

    def encode(
        self,
        waveforms: torch.Tensor,
        lengths: torch.Tensor,
        *,
        semantic: bool = True,
        num_acoustic_codebooks: int | None = None,
    ) -> Tokens:
        self.product.spell()
        return self.codec.encode(waveforms, lengths, semantic=semantic, num_acoustic_codebooks=num_acoustic_codebooks)

    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        return self.codec.decode(tokens, sample_rate_hz)


def _speed(rounds: Sequence[_Round], audio_s: float, precision: str, device: str) -> list[Figure]:
    share = median(one.share for one in rounds)
    rate = audio_s / median(one.encode_s for one in rounds)
    goal = _SHARE_AT_LEAST.get(precision) if device == "cpu" else None
    unit = "audio-hours an hour"
    return [
        Figure(f"{precision}, share of the matrix product", share, at_least=goal),
        Figure(f"{precision}, speed of one replica", rate, unit),
    ]


def _agreement(rows: dict[str, list[TokenRow]], precision: str) -> list[Figure]:
    """The share of ids that are float32's, by codebook."""
    if "float32" not in rows:
        return []
    found, true = _joined(rows[precision]), _joined(rows["float32"])
    return [
        Figure(f"{precision}, share of ids as in float32, {name}", float((found[name] == true[name]).mean()))
        for name in true
    ]


def _joined(rows: Sequence[TokenRow]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.uint16]]]:
    streams = {"semantic": [row.semantic for row in rows]}
    acoustic = [row.acoustic for row in rows if row.acoustic is not None]
    streams |= {f"acoustic_{index}": [ids[index] for ids in acoustic] for index in range(len(acoustic[0]))}
    return {name: np.concatenate([part for part in parts if part is not None]) for name, parts in streams.items()}


def _differing(ours: Sequence[TokenRow], plain: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
    num = 0
    for row, (semantic, acoustic) in zip(ours, plain, strict=True):
        assert row.semantic is not None
        assert row.acoustic is not None
        num += int((row.semantic != semantic.numpy()).sum()) + int((row.acoustic != acoustic.numpy()).sum())
    return num


def _timed(run: Callable[[], object], codec: LongCatCodec) -> float:
    started_s = time.perf_counter()
    run()
    wait_for(codec.device)
    return time.perf_counter() - started_s


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _audio_s(clips: Sequence[Clip]) -> float:
    return sum(len(clip.waveform) for clip in clips) / SAMPLE_RATE_HZ


def _first(clips: Sequence[Clip], audio_s: float) -> list[Clip]:
    """The first clips, of about so many seconds."""
    total_s = np.cumsum([len(clip.waveform) / SAMPLE_RATE_HZ for clip in clips])
    return list(clips[: int(np.searchsorted(total_s, audio_s)) + 1])
