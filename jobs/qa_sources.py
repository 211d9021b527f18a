"""The recordings that drawn rows were made of, read again from their shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.qa_draw import DrawnRow
from pipeline.admission import admit
from pipeline.config import JobConfig
from pipeline.decoder import DecoderPool
from pipeline.errors import DecoderUnavailableError, VoxmillError
from pipeline.ranges import RangeStream
from pipeline.reader import read_samples
from pipeline.storage import Stores
from pipeline.types import Clip, Sample, Shard, scale_into

Source = NDArray[np.float32] | str
"""A waveform [T] at the codec's rate, or why there is none."""


def read_sources(
    drawn: Sequence[DrawnRow], config: JobConfig, decoder: DecoderPool, num_audio_samples_max: int
) -> Mapping[str, Source]:
    """What each of one shard's rows was made of, by key, up to so many samples.

    `config` is that of the job, by whose rules the shard is read. A shard that cannot be read costs its own rows.
    Raises `DecoderUnavailableError` when the decoding processes do not work here.
    """
    record = drawn[0].record.input
    shard = Shard(record.uri, record.size_bytes, record.etag)
    wanted = {one.row.key: one.row for one in drawn}
    found: dict[str, Source] = {}
    try:
        with RangeStream(Stores(config.storage, config.retry)(shard.uri), shard, config.reading) as stream:
            for sample in admit(read_samples(stream, shard.size_bytes, config.reading, ())):
                if isinstance(sample, Sample) and sample.key in wanted:
                    row = wanted.pop(sample.key)
                    found[row.key] = _decoded(sample, decoder, row.num_audio_samples, num_audio_samples_max)
                if not wanted:
                    break
    except DecoderUnavailableError:
        raise
    except VoxmillError as error:
        return {**dict.fromkeys(wanted, f"its shard could not be read: {error}"), **found}
    return {**dict.fromkeys(wanted, f"{shard.uri} has no such sample any more"), **found}


def _decoded(sample: Sample, decoder: DecoderPool, num_audio_samples: int, num_audio_samples_max: int) -> Source:
    (clip,) = decoder.decode([sample])
    if not isinstance(clip, Clip):
        return f"it could not be decoded: {clip.reason.value}, {clip.detail}"
    if clip.num_audio_samples != num_audio_samples:
        return f"it has {clip.num_audio_samples} samples now, its row says {num_audio_samples}"
    beginning = np.empty(min(len(clip.pcm), num_audio_samples_max), np.float32)  # not a view of all of a long clip
    scale_into(clip.pcm[: len(beginning)], beginning)
    return beginning
