"""From clips in shard order to batches of like lengths; a pure function of the shard and the config.

Clips gather in a window of `window_s`; inside it their segments are sorted by length and cut into batches so that
the least is padded, under a budget of padded seconds. Windows follow one another in shard order, so that rows can be
written in shard order and memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.segments import cut
from pipeline.settings import BatchingConfig
from pipeline.types import Clip, Segment

WINDOW_SIDECAR_BYTES_MAX = 64 << 20
WINDOW_CLIPS_MAX = 1 << 16
"""A window closes at these too: clips may be short and their sidecars large."""

BATCH_COST_S = 0.5
"""What a batch costs beside its seconds, in seconds of padding."""

BATCH_COST_WITHOUT_PADDING_S = 8.0
"""The same where padding is not computed: what is left of its cost is memory, and clips of like length go faster."""


@dataclass(frozen=True, slots=True)
class CutClip:
    """A clip with its segments, in order."""

    clip: Clip
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One row of a batch: which segment of which clip of the window."""

    clip_index: int
    segment_index: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class Window:
    """Clips that follow one another in the shard, and the plan of their batches (longest first)."""

    clips: tuple[CutClip, ...]
    batches: tuple[tuple[Piece, ...], ...]


def windows(
    clips: Iterable[Clip],
    config: BatchingConfig,
    *,
    sample_rate_hz: int,
    frame_size: int,
    computes_padding: bool = True,
) -> Iterator[Window]:
    """Cut clips into segments, gather them in windows, and plan each window's batches."""
    if config.batch_cost_s is None:
        default = BATCH_COST_S if computes_padding else BATCH_COST_WITHOUT_PADDING_S
        config = config.model_copy(update={"batch_cost_s": default})
    gathered: list[CutClip] = []
    gathered_s, sidecar_bytes = 0.0, 0
    for clip in clips:
        segments = cut(
            clip.pcm,
            sample_rate_hz=sample_rate_hz,
            frame_size=frame_size,
            segment_s=config.segment_s,
            search_s=config.segment_search_s,
        )
        gathered.append(CutClip(clip, segments))
        gathered_s += clip.num_audio_samples / sample_rate_hz
        sidecar_bytes += sum(map(len, clip.sidecars.values()))
        full = gathered_s >= config.window_s or len(gathered) >= WINDOW_CLIPS_MAX
        if full or sidecar_bytes >= WINDOW_SIDECAR_BYTES_MAX:
            yield _window(gathered, config, frame_size / sample_rate_hz)
            gathered, gathered_s, sidecar_bytes = [], 0.0, 0
    if gathered:
        yield _window(gathered, config, frame_size / sample_rate_hz)


def _window(clips: Sequence[CutClip], config: BatchingConfig, frame_s: float) -> Window:
    pieces = [
        Piece(clip_index, segment_index, segment.num_frames)
        for clip_index, cut_clip in enumerate(clips)
        for segment_index, segment in enumerate(cut_clip.segments)
    ]
    assert config.batch_cost_s is not None
    frames_max = int(config.batch_s / frame_s + 1e-9)
    batches = plan(pieces, frames_max, config.batch_size_max, batch_cost_frames=config.batch_cost_s / frame_s)
    return Window(tuple(clips), batches)


def plan(
    pieces: Sequence[Piece], frames_max: int, batch_size_max: int, *, batch_cost_frames: float
) -> tuple[tuple[Piece, ...], ...]:
    """Batches of like lengths: each holds at most `frames_max` padded frames and `batch_size_max` pieces.

    Of all ways to cut the pieces, sorted by length, the one with the least padded frames, a batch counting
    `batch_cost_frames` more. Longest first, equal lengths in shard order, so the plan depends on nothing but the
    lengths. A piece longer than `frames_max` makes a batch of its own.
    """
    ordered = sorted(pieces, key=lambda piece: -piece.num_frames)
    costs, starts, first = [0.0], [0], 0
    for end in range(1, len(ordered) + 1):
        while end - first > batch_size_max or (
            end - first > 1 and (end - first) * ordered[first].num_frames > frames_max
        ):
            first += 1
        cost, start = min(
            (costs[start] + (end - start) * ordered[start].num_frames + batch_cost_frames, start)
            for start in range(first, end)
        )
        costs.append(cost)
        starts.append(start)
    batches: list[tuple[Piece, ...]] = []
    end = len(ordered)
    while end:
        batches.append(tuple(ordered[starts[end] : end]))
        end = starts[end]
    return tuple(reversed(batches))
