"""The work that every side of `voxmill bench rivals` does by the same code: decode a clip, encode a padded batch."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import soundfile
import torch
from numpy.typing import NDArray

from codec.base import Codec
from pipeline.resample import Resampler, to_mono

BATCH_CLIPS = 16
"""Clips of a plain batch, in the order in which they come."""


def decode(audio: bytes, sample_rate_hz: int) -> NDArray[np.float32]:
    """A file's waveform, mono float32 [T] at `sample_rate_hz`."""
    samples, rate_hz = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    resampler = Resampler(rate_hz, sample_rate_hz, samples.shape[1])
    parts = [resampler.push(np.ascontiguousarray(samples.T)), resampler.finish()]
    return to_mono(np.concatenate(parts, axis=1))


def encode(codec: Codec, keys: Sequence[str], waveforms: Sequence[NDArray[np.float32]]) -> pa.Table:
    """Rows of key and tokens of one batch, padded to its longest clip."""
    frame_size = codec.info.frame_size
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = np.zeros((len(waveforms), -(-int(lengths.max()) // frame_size) * frame_size), np.float32)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = waveform
    tokens = codec.encode(torch.from_numpy(padded), lengths)
    assert tokens.semantic is not None
    assert tokens.acoustic is not None
    num_frames = tokens.num_frames.tolist()
    semantic = tokens.semantic.numpy().astype(np.uint16)
    acoustic = tokens.acoustic.numpy().astype(np.uint16)
    columns = {
        "key": pa.array(keys, pa.string()),
        "num_frames": pa.array(num_frames, pa.int32()),
        "semantic": _ids([semantic[row, :frames] for row, frames in enumerate(num_frames)]),
    }
    for k in range(acoustic.shape[1]):
        columns[f"acoustic_{k}"] = _ids([acoustic[row, k, :frames] for row, frames in enumerate(num_frames)])
    return pa.table(columns)


def _ids(rows: Sequence[NDArray[np.uint16]]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))
