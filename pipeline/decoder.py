"""Samples -> clips, in order, decoded in processes of their own: a decoder's crash or hang costs one sample."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final

from pipeline.config import DecodingConfig
from pipeline.decode_messages import CHUNK_SAMPLES_MAX, WorkerSettings
from pipeline.decode_processes import Decoded, DecodingSeat, Nursery, Refused
from pipeline.errors import DecoderUnavailableError
from pipeline.types import Clip, Reject, Sample

CHUNKS_IN_FLIGHT_PER_WORKER: Final = 2
"""One is decoded while the next waits: more would only hold long clips in memory."""


class DecoderPool:
    """Decoding processes shared by all shards of a replica; a context manager, safe from several threads.

    Clips come out at `sample_rate_hz`. `fault_hook` is for tests alone: the `module:function` is called in the
    decoding processes with the bytes of each sample before it is decoded.
    """

    def __init__(self, config: DecodingConfig, sample_rate_hz: int, *, fault_hook: str | None = None) -> None:
        settings = WorkerSettings(
            sample_rate_hz=sample_rate_hz,
            clip_ms_min=config.clip_ms_min,
            clip_s_max=config.clip_s_max,
            memory_bytes_max=config.memory_bytes_max,
            fault_hook=fault_hook,
        )
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
        try:
            for chunk in self._chunks(samples):
                waiting.append(self._submit(chunk))
                while waiting and (len(waiting) == self._chunks_max or waiting[0].done()):
                    yield from _given_away(waiting.popleft().result())
            while waiting:
                yield from _given_away(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()

    def _chunks(self, samples: Iterable[Sample | Reject]) -> Iterator[list[Sample | Reject]]:
        chunk: list[Sample | Reject] = []
        num_bytes = 0
        for item in samples:
            chunk.append(item)
            if isinstance(item, Sample):
                num_bytes += len(item.audio) + sum(map(len, item.sidecars.values()))
            if num_bytes >= self._chunk_bytes or len(chunk) == self._chunk_samples_max:
                yield chunk
                chunk, num_bytes = [], 0
        if chunk:
            yield chunk

    def _submit(self, chunk: list[Sample | Reject]) -> Future[deque[Clip | Reject]]:
        try:
            return self._executor.submit(self._decode_chunk, chunk)
        except RuntimeError:  # the executor's word for being shut down
            raise DecoderUnavailableError("the decoder pool was closed; open a new one") from None

    def _decode_chunk(self, chunk: list[Sample | Reject]) -> deque[Clip | Reject]:
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
        return Reject(sample.key, sample.audio_member, outcome.reason, outcome.detail, len(sample.audio))
    return Clip(
        key=sample.key,
        waveform=outcome.waveform,
        source_sample_rate_hz=outcome.source_sample_rate_hz,
        source_num_channels=outcome.source_num_channels,
        sidecars=sample.sidecars,
    )
