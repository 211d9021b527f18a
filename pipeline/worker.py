"""The whole way of one shard: read -> admit -> decode -> batch -> encode -> write -> commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.admission import admit
from pipeline.commit import Committed, commit, find_standing, put_objects
from pipeline.config import JobConfig
from pipeline.decoder import DecoderPool
from pipeline.encoder import Encoder, Progress
from pipeline.errors import TooManyRejectsError
from pipeline.layout import OutputPlace
from pipeline.prefetch import prefetched
from pipeline.ranges import RangeStream
from pipeline.reader import read_samples
from pipeline.records import CommitRecord, Counts, InputRecord
from pipeline.storage import Store, Stores
from pipeline.types import Clip, Reject, Task, TokenRow
from pipeline.writer import RejectWriter, Spool, SpooledFile, TokenFormat, open_token_writer


@dataclass(frozen=True)
class Workbench:
    """All that a replica has at hand, shared by the shards that it does at once."""

    config: JobConfig
    fingerprint: str
    token_format: TokenFormat
    place: OutputPlace
    stores: Stores
    outputs: Store
    decoder: DecoderPool
    encoder: Encoder
    environment: Mapping[str, str | int]


@dataclass
class _Tally:
    """What a shard came to; `rows` and `rejected` are filled by different threads, and read after both ended."""

    num_rows: int = 0
    num_frames: int = 0
    num_audio_samples: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    carried: Counter[str] = field(default_factory=Counter)

    def count_rows(self, rows: Iterable[TokenRow]) -> Iterator[TokenRow]:
        for row in rows:
            self.num_rows += 1
            self.num_frames += row.num_frames
            self.num_audio_samples += row.num_audio_samples
            self.carried.update(row.sidecars.keys())
            yield row

    def counts(self, sample_rate_hz: int) -> Counts:
        num_rejected = sum(self.rejects.values())
        return Counts(
            num_samples=self.num_rows + num_rejected,
            num_rows=self.num_rows,
            num_rejected=num_rejected,
            rejects=dict(sorted(self.rejects.items())),
            num_frames=self.num_frames,
            carried=dict(sorted(self.carried.items())),
            num_audio_samples=self.num_audio_samples,
            audio_s=self.num_audio_samples / sample_rate_hz,
        )


def process_shard(task: Task, bench: Workbench, progress: Progress) -> Committed:
    """Turn one shard into a committed token shard, or learn that another attempt already did.

    Safe from several threads: their batches take turns on the device, so that while one shard is encoded
    the next is read and the last is put. Raises what the stages raise; then nothing of the attempt counts.
    """
    shard, config, info = task.shard, bench.config, bench.encoder.codec.info
    # Before any object is put: a fence that comes later is then in this attempt's term, and ends it.
    standing = find_standing(bench.outputs, bench.place, shard.shard_id)
    if standing.record is not None:
        return Committed(standing.record, ours=False)
    started_s, tally, ticket = time.monotonic(), _Tally(), bench.encoder.turn.ticket()
    with Spool() as spool, RangeStream(bench.stores(shard.uri), shard, config.reading) as stream:
        rejects = RejectWriter(spool, bench.token_format.metadata)
        samples = admit(read_samples(stream, shard.size_bytes, config.reading, config.carry))
        clips = _put_aside(bench.decoder.decode(samples), rejects, tally, progress)
        planned = bench.encoder.windows(clips, config.batching)
        writer = open_token_writer(config.format, spool, bench.token_format)
        with prefetched(planned, items_max=config.batching.windows_in_flight, name=f"feed {shard.shard_id}") as feed:
            for window in feed:
                writer.write(tally.count_rows(bench.encoder.encode(window, ticket=ticket, progress=progress)))
                del window  # its pages are for the next one
        stream.check()
        _check_rejects(tally, config.reading.rejects_max_share, shard.uri)
        writer.close()
        rejects.close()
        files = _counted(spool.finished(), progress)
        objects = put_objects(bench.outputs, bench.place, shard.shard_id, task.attempt, files)
    record = CommitRecord(
        shard_id=shard.shard_id,
        term=standing.term,
        fingerprint=bench.fingerprint,
        input=InputRecord.of(shard),
        attempt=task.attempt,
        objects=objects,
        counts=tally.counts(info.sample_rate_hz),
        num_halved_batches=progress.num_halved_batches,
        timings=_timings(progress, time.monotonic() - started_s),
        environment=dict(bench.environment),
    )
    return commit(bench.outputs, bench.place, record)


def _put_aside(
    items: Iterable[Clip | Reject], rejects: RejectWriter, tally: _Tally, progress: Progress
) -> Iterator[Clip]:
    """Pass clips on; write rejects to their list."""
    for item in items:
        progress.num_clips += 1
        if isinstance(item, Reject):
            tally.rejects[item.reason.value] = tally.rejects.get(item.reason.value, 0) + 1
            rejects.write(item)
        else:
            yield item


def _counted(files: Iterable[SpooledFile], progress: Progress) -> Iterator[SpooledFile]:
    for file in files:
        yield file
        progress.num_objects += 1


def _check_rejects(tally: _Tally, share_max: float, uri: str) -> None:
    num_rejected = sum(tally.rejects.values())
    num_samples = tally.num_rows + num_rejected
    if num_samples and num_rejected / num_samples > share_max:
        raise TooManyRejectsError(
            f"{uri}: {num_rejected} of {num_samples} samples rejected ({tally.rejects}), allowed is a share of "
            f"{share_max} (reading.rejects_max_share); mend the shard or raise the share"
        )


def _timings(progress: Progress, wall_s: float) -> dict[str, float]:
    return {
        "wall_s": round(wall_s, 3),
        "encode_s": round(progress.encode_s, 3),
        "padded_s": round(progress.padded_s, 3),
    }
