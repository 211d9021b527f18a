"""From rows of tokens in shard order to batches of segments of like lengths; the encoder's planner, the other way.

A pure function of the shard and the config, so that the audio's last bits are too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.audio_config import AudioBatchingConfig
from pipeline.batcher import WINDOW_CLIPS_MAX, WINDOW_SIDECAR_BYTES_MAX, Piece, plan
from pipeline.types import TokenRow


@dataclass(frozen=True, slots=True)
class TokenWindow:
    """Rows that follow one another in the shard, and the plan of their segments' batches (longest first)."""

    rows: tuple[TokenRow, ...]
    batches: tuple[tuple[Piece, ...], ...]


def token_windows(
    rows: Iterable[TokenRow], config: AudioBatchingConfig, *, frame_rate_hz: float
) -> Iterator[TokenWindow]:
    """Gather rows in windows of `window_s`, and plan each window's batches: rows of as many codebooks together."""
    gathered: list[TokenRow] = []
    num_frames = sidecar_bytes = 0
    for row in rows:
        gathered.append(row)
        num_frames += row.num_frames
        sidecar_bytes += sum(map(len, row.sidecars.values()))
        full = num_frames >= config.window_s * frame_rate_hz or len(gathered) >= WINDOW_CLIPS_MAX
        if full or sidecar_bytes >= WINDOW_SIDECAR_BYTES_MAX:
            yield _window(gathered, config, frame_rate_hz)
            gathered, num_frames, sidecar_bytes = [], 0, 0
    if gathered:
        yield _window(gathered, config, frame_rate_hz)


def _window(rows: Sequence[TokenRow], config: AudioBatchingConfig, frame_rate_hz: float) -> TokenWindow:
    pieces: dict[int, list[Piece]] = {}
    for row_index, row in enumerate(rows):
        num_codebooks = 0 if row.acoustic is None else len(row.acoustic)
        pieces.setdefault(num_codebooks, []).extend(
            Piece(row_index, segment_index, segment.num_frames) for segment_index, segment in enumerate(row.segments)
        )
    frames_max = int(config.batch_s * frame_rate_hz + 1e-9)
    batch_cost_frames = config.batch_cost_s * frame_rate_hz
    batches = [
        batch
        for _, alike in sorted(pieces.items())
        for batch in plan(alike, frames_max, config.batch_size_max, batch_cost_frames=batch_cost_frames)
    ]
    return TokenWindow(tuple(rows), tuple(batches))
