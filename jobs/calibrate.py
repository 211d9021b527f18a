"""`voxmill plan --calibrate`: what a run will take, from a minute of encoding the input's own first clips here.

The clips go the way of a run (read, decode, batch, encode) on one replica of the job's codec, device, precision and
threads; nothing is written. The rate is of this machine: on another kind of device, calibrate there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from codec.base import Codec, CodecInfo, Tokens, computes_padding
from codec.registry import codec_info, load_codec
from jobs.executor import InlineExecutor
from jobs.plan import PlanReport, plan
from jobs.prepare import check_codec
from jobs.replica import ReplicaSetup, checkpoint_options
from jobs.terminal import duration
from pipeline.admission import admit
from pipeline.config import JobConfig
from pipeline.decoder import DecoderPool
from pipeline.encoder import Encoder, Progress
from pipeline.errors import RefusedError, ShardCancelledError
from pipeline.fingerprint import fingerprint, fingerprint_parts
from pipeline.media_walk import HAS_MEDIA
from pipeline.prefetch import prefetched
from pipeline.ranges import RangeStream
from pipeline.reader import read_samples
from pipeline.shards import list_shards
from pipeline.storage import Stores
from pipeline.types import Clip, Reject, Shard

CALIBRATION_S = 60.0
"""Of encoding; the batch under way then is ended."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Calibration:
    """How fast one replica is here, and what follows for the run; estimates are None where the audio is not known.

    `times_real_time` are audio seconds a second, of all between the ends of the first batch and the last.
    `estimated_run_s` is without the start of replicas. `num_replicas_for_deadline` is None without a deadline, and
    where the largest shard alone takes longer.
    """

    codec: str
    device: str
    precision: str
    cpu_threads: int
    num_batches: int
    measured_audio_s: float
    measured_s: float
    times_real_time: float
    num_replicas: int
    estimated_run_s: float | None
    estimated_largest_shard_s: float | None
    deadline_h: float | None
    num_replicas_for_deadline: int | None

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"measured   {self.times_real_time:.1f} times real time on one replica ({self.device}, {self.precision}, "
            f"{self.cpu_threads} threads): {self.measured_audio_s:.0f} s of audio in {self.num_batches} batches"
        ]
        if self.estimated_run_s is None or self.estimated_largest_shard_s is None:
            return lines
        replicas = "1 replica" if self.num_replicas == 1 else f"{self.num_replicas} replicas"
        lines.append(f"run        about {_h_mm_ss(self.estimated_run_s)} on {replicas} like this one")
        if self.num_replicas_for_deadline is not None:
            lines.append(f"deadline   {self.num_replicas_for_deadline} replicas end within {self.deadline_h:g} h")
        elif self.deadline_h is not None:
            lines.append(
                f"deadline   no number of replicas ends within {self.deadline_h:g} h: the largest shard takes one "
                f"{_h_mm_ss(self.estimated_largest_shard_s)}; pack smaller shards, or take a faster device"
            )
        return lines


@dataclass(frozen=True)
class CalibratedPlanReport:
    """A plan, and a calibration below it."""

    plan: PlanReport
    calibration: Calibration

    def lines(self) -> list[str]:
        """For people."""
        return [*self.plan.lines(), *self.calibration.lines()]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**self.plan.to_json(), "calibration": asdict(self.calibration)}


def calibrated_plan(
    config: JobConfig,
    *,
    deadline_h: float | None = None,
    clock: Clock = time.monotonic,
    measure_s: float = CALIBRATION_S,
) -> CalibratedPlanReport:
    """Plan, then encode for about `measure_s` of `clock`.

    Raises as a plan does, `codec.base.CodecError` for a codec that cannot be had, `RefusedError` where no clip of the
    input can be encoded.
    """
    report = plan(config)
    shards = list_shards(config.input, Stores(config.storage, config.retry)).shards
    setup = _setup(config)
    meter = measured(setup, shards, clock=clock, measure_s=measure_s)
    if not meter.ends_s:
        raise RefusedError(
            "no clip of the input could be encoded, so nothing was measured; a run tells why in rejects/"
        )
    largest_bytes = max(shard.size_bytes for shard in shards)
    num_replicas = 1 if config.replicas == "auto" else config.replicas
    run_s = shard_s = needed = None
    if report.estimated_audio_s and report.num_bytes_todo:
        one_s = report.estimated_audio_s / meter.times_real_time
        shard_s = min(one_s, one_s * largest_bytes / report.num_bytes_todo)
        run_s = max(one_s / num_replicas, shard_s)
        if deadline_h is not None:
            num_todo = report.num_shards - report.num_missing - report.num_committed
            needed = num_replicas_for(deadline_h * 3600, one_s, shard_s, num_todo)
    calibration = Calibration(
        codec=setup.info.name,
        device=setup.device,
        precision=config.precision,
        cpu_threads=config.cpu_threads,
        num_batches=len(meter.ends_s),
        measured_audio_s=sum(meter.audio_s),
        measured_s=meter.ends_s[-1] - meter.started_s,
        times_real_time=meter.times_real_time,
        num_replicas=num_replicas,
        estimated_run_s=run_s,
        estimated_largest_shard_s=shard_s,
        deadline_h=deadline_h,
        num_replicas_for_deadline=needed,
    )
    return CalibratedPlanReport(report, calibration)


def num_replicas_for(deadline_s: float, one_replica_s: float, largest_shard_s: float, num_shards: int) -> int | None:
    """The fewest replicas that surely end in time; None when the largest shard alone does not.

    Replicas take the next shard as they end one, so all end within total / N + (1 - 1 / N) * largest (Graham 1969,
    Bounds on multiprocessing timing anomalies); with a replica a shard, within the largest.
    """
    if largest_shard_s > deadline_s:
        return None
    rest_s, spare_s = one_replica_s - largest_shard_s, deadline_s - largest_shard_s
    return min(num_shards, max(1, math.ceil(rest_s / spare_s))) if spare_s > 0 else num_shards


def _setup(config: JobConfig) -> ReplicaSetup:
    device = InlineExecutor().pick_device(config.device)
    info = codec_info(config.codec, storage_options=checkpoint_options(config))
    check_codec(config, info, device)
    parts = fingerprint_parts(config, info, device, has_media=HAS_MEDIA)
    return ReplicaSetup(config, fingerprint(parts), device, info)


@dataclass
class Meter:
    """A codec that notes when its batches end, and after `measure_s` asks for the end; implements `Codec`."""

    codec: Codec
    clock: Clock
    measure_s: float
    stop: Callable[[], None] = lambda: None
    started_s: float = math.inf
    ends_s: list[float] = field(default_factory=list)
    audio_s: list[float] = field(default_factory=list)

    @property
    def info(self) -> CodecInfo:
        """The codec's."""
        return self.codec.info

    @property
    def computes_padding(self) -> bool:
        """Whether the codec does."""
        return computes_padding(self.codec)

    @property
    def times_real_time(self) -> float:
        """Audio seconds a second; the first batch, at which much is loaded and compiled, counts only when alone."""
        if len(self.ends_s) == 1:
            return self.audio_s[0] / (self.ends_s[0] - self.started_s)
        return sum(self.audio_s[1:]) / (self.ends_s[-1] - self.ends_s[0])

    def encode(
        self,
        waveforms: torch.Tensor,
        lengths: torch.Tensor,
        *,
        semantic: bool = True,
        num_acoustic_codebooks: int | None = None,
    ) -> Tokens:
        """As the codec does."""
        self.started_s = min(self.started_s, self.clock())
        tokens = self.codec.encode(waveforms, lengths, semantic=semantic, num_acoustic_codebooks=num_acoustic_codebooks)
        self.ends_s.append(self.clock())
        self.audio_s.append(float(lengths.sum()) / self.info.sample_rate_hz)
        if self.ends_s[-1] - self.started_s >= self.measure_s:
            self.stop()
        return tokens

    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        """As the codec does."""
        return self.codec.decode(tokens, sample_rate_hz)


def measured(setup: ReplicaSetup, shards: Iterable[Shard], *, clock: Clock, measure_s: float) -> Meter:
    """Encode shards in turn on one replica's ground until `measure_s` are over, or the shards."""
    config = setup.config
    torch.set_num_threads(config.cpu_threads)
    with DecoderPool(config.decoding, setup.info.sample_rate_hz) as decoder:
        options = checkpoint_options(config)
        codec = load_codec(config.codec, device=setup.device, precision=config.precision, storage_options=options)
        meter = Meter(codec, clock, measure_s)
        encoder = Encoder(
            codec=meter,
            semantic="semantic" in config.streams,
            num_acoustic_codebooks=setup.num_acoustic_codebooks,  # all where clips choose: that takes the same time
            clock=clock,
        )
        meter.stop = encoder.cancelled.set
        decoder.wait_ready()
        try:
            for shard in shards:
                _encode_shard(shard, config, decoder, encoder)
        except ShardCancelledError:
            pass  # the time is over
    return meter


def _encode_shard(shard: Shard, config: JobConfig, decoder: DecoderPool, encoder: Encoder) -> None:
    progress, ticket = Progress(), encoder.turn.ticket()
    with RangeStream(Stores(config.storage, config.retry)(shard.uri), shard, config.reading) as stream:
        samples = admit(read_samples(stream, shard.size_bytes, config.reading, config.carry))
        clips = _clips(decoder.decode(samples))
        planned = encoder.windows(clips, config.batching)
        with prefetched(planned, items_max=config.batching.windows_in_flight, name="calibrating") as feed:
            for window in feed:
                for _ in encoder.encode(window, ticket=ticket, progress=progress):
                    pass


def _clips(items: Iterable[Clip | Reject]) -> Iterator[Clip]:
    for item in items:
        if isinstance(item, Clip):
            yield item


def _h_mm_ss(seconds: float) -> str:
    return f"{duration(seconds)} h"
