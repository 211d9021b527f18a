"""The whole way of one shard of tokens back to audio: read -> batch -> decode -> write -> commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.audio_config import DecodeConfig
from pipeline.audio_objects import put_files
from pipeline.audio_writer import AudioFormat, AudioWriter
from pipeline.commit import Committed, commit, find_standing, put_objects
from pipeline.encoder import Progress
from pipeline.layout import OutputPlace
from pipeline.prefetch import prefetched
from pipeline.records import CommitRecord, Counts, InputRecord, ObjectRecord
from pipeline.spool import Spool, SpooledFile
from pipeline.storage import Store
from pipeline.synthesizer import Synthesizer
from pipeline.token_batcher import token_windows
from pipeline.token_reader import TokenReader
from pipeline.types import AudioRow, Task, TokenRow


@dataclass(frozen=True)
class SynthesisBench:
    """All that a replica that decodes has at hand, shared by the shards that it does at once."""

    config: DecodeConfig
    fingerprint: str
    audio_format: AudioFormat
    place: OutputPlace
    outputs: Store
    source: TokenReader
    synthesizer: Synthesizer
    environment: Mapping[str, str | int]


@dataclass
class _Tally:
    """What a shard came to."""

    num_rows: int = 0
    num_frames: int = 0
    num_audio_samples: int = 0
    carried: Counter[str] = field(default_factory=Counter)

    def count(self, rows: Iterable[AudioRow]) -> Iterator[AudioRow]:
        for row in rows:
            self.num_rows += 1
            self.num_frames += row.num_frames
            self.num_audio_samples += len(row.pcm)
            self.carried.update(row.sidecars.keys())
            yield row

    def counts(self, sample_rate_hz: int) -> Counts:
        return Counts(
            num_samples=self.num_rows,
            num_rows=self.num_rows,
            num_rejected=0,
            num_frames=self.num_frames,
            num_audio_samples=self.num_audio_samples,
            audio_s=self.num_audio_samples / sample_rate_hz,
            carried=dict(sorted(self.carried.items())),
        )


def synthesize_shard(task: Task, bench: SynthesisBench, progress: Progress) -> Committed:
    """Turn one committed token shard into a committed audio shard, or learn that another attempt already did.

    Safe from several threads: their batches take turns on the device, so that while one shard is decoded the next is
    read and the last is put. Raises what the stages raise; then nothing of the attempt counts.
    """
    shard, config, info = task.shard, bench.config, bench.synthesizer.decoder.info
    # Before any object is put: a fence that comes later is then in this attempt's term, and ends it.
    standing = find_standing(bench.outputs, bench.place, shard.shard_id)
    if standing.record is not None:
        return Committed(standing.record, ours=False)
    started_s, tally, ticket = time.monotonic(), _Tally(), bench.synthesizer.turn.ticket()
    rules = bench.source.rules
    with Spool() as spool:
        rows = _noted(bench.source.read(shard), progress)
        planned = token_windows(rows, config.batching, frame_rate_hz=rules.sample_rate_hz / rules.frame_size)
        writer = AudioWriter(spool, bench.audio_format)
        with prefetched(planned, items_max=config.batching.windows_in_flight, name=f"feed {shard.shard_id}") as feed:
            for window in feed:
                made = bench.synthesizer.synthesize(window, ticket=ticket, progress=progress)
                writer.write(tally.count(made))
                del window  # it holds the rows' sidecars
        writer.close()
        objects = _put(task, bench, spool.finished(), progress)
    record = CommitRecord(
        shard_id=shard.shard_id,
        term=standing.term,
        fingerprint=bench.fingerprint,
        input=InputRecord.of(shard),
        attempt=task.attempt,
        objects=objects,
        counts=tally.counts(info.sample_rate_hz),
        num_halved_batches=progress.num_halved_batches,
        timings={
            "wall_s": round(time.monotonic() - started_s, 3),
            "decode_s": round(progress.encode_s, 3),
            "padded_s": round(progress.padded_s, 3),
        },
        environment=dict(bench.environment),
    )
    return commit(bench.outputs, bench.place, record)


def _noted(rows: Iterable[TokenRow], progress: Progress) -> Iterator[TokenRow]:
    for row in rows:
        progress.num_clips += 1
        yield row


def _put(
    task: Task, bench: SynthesisBench, files: Iterable[SpooledFile], progress: Progress
) -> tuple[ObjectRecord, ...]:
    def note() -> None:
        progress.num_objects += 1

    shard_id = task.shard.shard_id
    if bench.config.format == "files":
        return put_files(bench.outputs, bench.place, shard_id, task.attempt, files, on_put=note)
    objects = put_objects(bench.outputs, bench.place, shard_id, task.attempt, files)
    note()
    return objects
