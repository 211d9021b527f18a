"""Samples -> clips, in order, decoded in processes of their own: a decoder's crash or hang costs one sample."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final

from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.decode_chunk import Decoded, Refused
from pipeline.decode_messages import CHUNK_SAMPLES_MAX, WorkerSettings
from pipeline.decode_processes import DecodingSeat, Nursery
from pipeline.errors import DecoderUnavailableError
from pipeline.plain_wav import plain_samples
from pipeline.settings import DecodingConfig
from pipeline.types import Clip, Reject, RejectReason, Sample

CHUNKS_IN_FLIGHT_PER_WORKER: Final = 2
"""One is decoded while the next waits: more would only hold long clips in memory."""


PLAIN_MEMORY_SHARE: Final = 8
"""A plain file goes without a decoding process up to this part of `memory_bytes_max`: no decoder could have run out."""


class DecoderPool:
    """Decoding processes shared by all shards of a replica; a context manager, safe from several threads.

    Clips come out at `sample_rate_hz`. `fault_hook` is for tests alone: the `module:function` is called in the
    decoding processes with the bytes of each sample before it is decoded, to which all samples go then.
    """

    def __init__(self, config: DecodingConfig, sample_rate_hz: int, *, fault_hook: str | None = None) -> None:
        settings = WorkerSettings(
            sample_rate_hz=sample_rate_hz,
            clip_ms_min=config.clip_ms_min,
            clip_s_max=config.clip_s_max,
            memory_bytes_max=config.memory_bytes_max,
            fault_hook=fault_hook,
        )
        self._sample_rate_hz = sample_rate_hz
        self._limits = ClipLimits(config.clip_ms_min, config.clip_s_max)
        self._plain_bytes_max = 0 if fault_hook else config.memory_bytes_max // PLAIN_MEMORY_SHARE
        self._chunks_max = min(CHUNKS_IN_FLIGHT_PER_WORKER * config.workers, config.clips_in_flight_max)
        self._chunk_samples_max = min(config.clips_in_flight_max // self._chunks_max, CHUNK_SAMPLES_MAX)
        self._chunk_bytes = config.chunk_bytes
        self._nursery = Nursery(settings)
        self._all_seats = [DecodingSeat(self._nursery, config.timeout_s) for _ in range(config.workers)]
        self._free_seats: queue.SimpleQueue[DecodingSeat] = queue.SimpleQueue()
        for seat in self._all_seats:
            self._free_seats.put(seat)
        self._executor = ThreadPoolExecutor(config.workers, thread_name_prefix="voxmill-decode")

    def __enter__(self) -> DecoderPool:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to start the decoding processes, which takes them seconds."""
        self._nursery.start()

    def wait_ready(self) -> None:
        """Wait for the decoding processes, so that the first clips do not have to; for before the first `decode`.

        Where they cannot be started, the first `decode` says so.
        """
        with suppress(DecoderUnavailableError):
            for seat in self._all_seats:
                seat.start()

    def close(self) -> None:
        """End all decoding processes; `decode` calls still under way raise `DecoderUnavailableError`."""
        self._nursery.close()
        self._executor.shutdown(wait=True)  # what is queued there fails at once, now that the nursery is closed
        for seat in self._all_seats:
            seat.close()

    def decode(self, samples: Iterable[Sample | Reject]) -> Iterator[Clip | Reject]:
        """A clip or a reject for each sample, in order; rejects pass through in their place.

        At most `clips_in_flight_max` items are between `samples` and the caller. Raises `DecoderUnavailableError`
        when decoding processes cannot be kept alive, and whatever `samples` raises.
        """
        waiting: deque[Future[deque[Clip | Reject]]] = deque()
        chunk: list[Sample | Clip | Reject] = []
        num_bytes = 0
        try:
            for item in map(self._without_decoder, samples):
                if not (waiting or chunk or isinstance(item, Sample)):
                    yield item
                    continue
                chunk.append(item)
                num_bytes += _num_bytes(item)
                if num_bytes >= self._chunk_bytes or len(chunk) == self._chunk_samples_max:
                    waiting.append(self._submit(chunk))
                    chunk, num_bytes = [], 0
                    while waiting and (len(waiting) == self._chunks_max or waiting[0].done()):
                        yield from _given_away(waiting.popleft().result())
            if chunk:
                waiting.append(self._submit(chunk))
            while waiting:
                yield from _given_away(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()

    def _without_decoder(self, item: Sample | Reject) -> Sample | Clip | Reject:
        """What becomes of a sample that has to be looked at only; others as they are."""
        if not isinstance(item, Sample) or len(item.audio) > self._plain_bytes_max:
            return item
        try:
            samples = plain_samples(item.audio, self._sample_rate_hz, self._limits)
        except AudioRejectedError as error:
            return _reject(item, error.reason, error.detail)
        return item if samples is None else Clip(item.key, samples, self._sample_rate_hz, 1, item.sidecars)

    def _submit(self, chunk: list[Sample | Clip | Reject]) -> Future[deque[Clip | Reject]]:
        try:
            return self._executor.submit(self._decode_chunk, chunk)
        except RuntimeError:  # the executor's word for being shut down
            raise DecoderUnavailableError("the decoder pool was closed; open a new one") from None

    def _decode_chunk(self, chunk: list[Sample | Clip | Reject]) -> deque[Clip | Reject]:
        files = [item.audio for item in chunk if isinstance(item, Sample)]
        outcomes: deque[Decoded | Refused] = deque()
        seat = self._free_seats.get()
        try:
            while len(outcomes) < len(files):
                outcomes += seat.decode(files[len(outcomes) :])
        finally:
            self._free_seats.put(seat)
        return deque(_result(item, outcomes.popleft()) if isinstance(item, Sample) else item for item in chunk)


def _given_away(items: deque[Clip | Reject]) -> Iterator[Clip | Reject]:
    """Yield the items without holding on to those that were yielded: a clip may be hundreds of megabytes."""
    while items:
        yield items.popleft()


def _result(sample: Sample, outcome: Decoded | Refused) -> Clip | Reject:
    if isinstance(outcome, Refused):
        return _reject(sample, outcome.reason, outcome.detail)
    return Clip(
        key=sample.key,
        pcm=outcome.pcm,
        source_sample_rate_hz=outcome.source_sample_rate_hz,
        source_num_channels=outcome.source_num_channels,
        sidecars=sample.sidecars,
    )


def _reject(sample: Sample, reason: RejectReason, detail: str) -> Reject:
    return Reject(sample.key, sample.audio_member, reason, detail, len(sample.audio))


def _num_bytes(item: Sample | Clip | Reject) -> int:
    """What an item holds in memory, as far as it is large."""
    if isinstance(item, Reject):
        return 0
    audio_bytes = len(item.audio) if isinstance(item, Sample) else item.pcm.nbytes
    return audio_bytes + sum(map(len, item.sidecars.values()))
