"""Cutting long clips into segments at the quietest frame borders."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Pcm, Segment

WINDOW_S: Final = 0.04
"""The loudness at a cut is the energy of this much audio around it."""

LAST_SEGMENT_S_MIN: Final = 1.0
"""A last segment is not made shorter than this, or half a segment, when an earlier cut avoids it."""


def cut(pcm: Pcm, *, sample_rate_hz: int, frame_size: int, segment_s: float, search_s: float) -> tuple[Segment, ...]:
    """The segments of a clip, [T] with T > 0: in order, without gaps, each at most `segment_s` long.

    A clip that fits is one segment. A longer one is cut at multiples of `frame_size`, so that the frames of the
    segments add up to ceil(T / frame_size). Each cut is the quietest such point in the last `search_s` of the
    longest segment possible there, though not in its first half; the latest where several are equally quiet.
    It leaves at least `LAST_SEGMENT_S_MIN` to the end. Raises `ValueError` on an empty clip, or when
    not even one frame fits in `segment_s`.
    """
    frames_max = _whole_frames(segment_s, sample_rate_hz, frame_size)
    if frames_max < 1:
        raise ValueError(
            f"a segment of {segment_s} s holds no frame of {frame_size} samples at {sample_rate_hz} Hz; raise "
            "batching.segment_s"
        )
    if not len(pcm):
        raise ValueError("a clip without samples has no segments; such clips are rejected when they are decoded")
    frames_back = min(_whole_frames(search_s, sample_rate_hz, frame_size), frames_max // 2)
    rest_min = min(round(LAST_SEGMENT_S_MIN * sample_rate_hz), frames_max * frame_size // 2)
    segments: list[Segment] = []
    start = 0
    while (rest := len(pcm) - start) > frames_max * frame_size:
        last = max(1, min(frames_max, (rest - rest_min) // frame_size))
        first = max(1, min(frames_max - frames_back, last))
        candidates = start + frame_size * np.arange(first, last + 1)
        end = _quietest(pcm, candidates, round(WINDOW_S * sample_rate_hz))
        segments.append(Segment(start, end - start, (end - start) // frame_size))
        start = end
    segments.append(Segment(start, rest, -(-rest // frame_size)))
    return tuple(segments)


def _whole_frames(duration_s: float, sample_rate_hz: int, frame_size: int) -> int:
    # As the decimal that was written: 0.29 s at 100 Hz are 29 samples, though 0.29 * 100 < 29 in binary.
    return math.floor(Fraction(repr(float(duration_s))) * sample_rate_hz / frame_size)


def _quietest(pcm: Pcm, points: NDArray[np.int64], window: int) -> int:
    """The point with the least energy in the `window` samples around it, the last one of equals.

    Each window is summed on its own, in float64: differences of a running sum would lose near-silence. Energies of
    int16 are those of float32 times a power of two, to the last bit, so they are in the same order.
    """
    first = points[0] - window // 2
    stop = points[-1] - window // 2 + window
    around = np.zeros(stop - first)
    inside = pcm[max(first, 0) : stop].astype(np.float64)
    offset = max(first, 0) - first
    around[offset : offset + len(inside)] = np.square(inside)
    energies = [float(np.add.reduce(around[point - points[0] :][:window])) for point in points]
    quietest = min(range(len(points)), key=lambda index: (energies[index], -index))
    return int(points[quietest])
