"""From windows of token rows to rows of audio, one batch at a time on the device.

A row's segments were encoded one by one; they are decoded one by one, each as if it were alone, and joined. The whole
is cut to the clip's own length (`num_audio_samples`) at the new rate: what a clip's last frame holds beyond its end is
the codec's echo of the zeros that it was padded with.

Samples become 16 bits by `rint(x * 32768)`, the inverse of how such files are read, without dither. A batch's padded
shape may change a float's last bits (by 1e-6 of full scale at most on a CPU), so that a sample which stands that near
to the border of two steps may come out one step apart when the same row is decoded in another batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from codec.base import TokenDecoder, Tokens
from pipeline.batcher import Piece
from pipeline.encoder import Progress
from pipeline.errors import CodecContractError, ShardCancelledError
from pipeline.token_batcher import TokenWindow
from pipeline.turn import Turn
from pipeline.types import AudioRow, TokenRow

_Pieces = dict[tuple[int, int], NDArray[np.int16]]


def num_samples_at(num_audio_samples: int, source_rate_hz: int, sample_rate_hz: int) -> int:
    """The length of a clip at another rate, rounded to the nearest sample, halves up."""
    return (2 * num_audio_samples * sample_rate_hz + source_rate_hz) // (2 * source_rate_hz)


def quantized(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples of full scale 1 as int16 of full scale 32768; 1.0 itself is the largest that there is."""
    steps: NDArray[np.int16] = np.clip(np.rint(waveform * np.float32(32768)), -32768, 32767).astype(np.int16)
    return steps


@dataclass(frozen=True)
class Synthesizer:
    """One decoder on one device, shared by the shards of a replica.

    `source_rate_hz` is the rate that the rows' `num_audio_samples` count at, `num_acoustic_codebooks` the number asked
    for: 0 without the acoustic stream.
    """

    decoder: TokenDecoder
    source_rate_hz: int
    semantic: bool
    num_acoustic_codebooks: int
    clock: Callable[[], float]
    cancelled: threading.Event = field(default_factory=threading.Event)
    turn: Turn = field(default_factory=Turn)

    def synthesize(self, window: TokenWindow, *, ticket: int, progress: Progress) -> Iterator[AudioRow]:
        """The window's rows, in shard order.

        Raises `CodecContractError` when the decoder returns what it must not, `ShardCancelledError` when the
        replica stops, `torch.OutOfMemoryError` when one segment alone does not fit the device.
        """
        pieces: _Pieces = {}
        for batch in window.batches:
            self._decode_batch(window.rows, batch, pieces, ticket=ticket, progress=progress)
        for row_index, row in enumerate(window.rows):
            yield self._row(row_index, row, pieces)

    def _decode_batch(
        self, rows: Sequence[TokenRow], batch: Sequence[Piece], pieces: _Pieces, *, ticket: int, progress: Progress
    ) -> None:
        tokens = self._tokens(rows, batch)
        with self.turn.take(ticket):
            if self.cancelled.is_set():
                raise ShardCancelledError("the replica is stopping; the shard is left for the next run")
            started_s = self.clock()
            try:
                waveforms = self.decoder.decode(tokens)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                waveforms = None
            progress.encode_s += self.clock() - started_s
        if waveforms is None:
            # The two halves have other padded shapes than the plan's, so the commit record says it happened.
            progress.num_halved_batches += 1
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                self._decode_batch(rows, half, pieces, ticket=ticket, progress=progress)
            return
        self._gather(batch, waveforms, pieces)
        info = self.decoder.info
        progress.num_batches += 1
        progress.audio_s += sum(piece.num_frames for piece in batch) * info.frame_size / info.sample_rate_hz
        progress.padded_s += waveforms.numel() / info.sample_rate_hz

    def _tokens(self, rows: Sequence[TokenRow], batch: Sequence[Piece]) -> Tokens:
        """The batch's ids, 0 past each segment's own frames; its rows have as many acoustic codebooks each."""
        num_codebooks = self._num_codebooks(rows[batch[0].clip_index])
        num_frames = torch.tensor([piece.num_frames for piece in batch])
        num_frames_max = int(num_frames.max())
        semantic = torch.zeros(len(batch), num_frames_max, dtype=torch.int64)
        acoustic = torch.zeros(len(batch), num_codebooks, num_frames_max, dtype=torch.int64)
        for index, piece in enumerate(batch):
            row = rows[piece.clip_index]
            start = sum(segment.num_frames for segment in row.segments[: piece.segment_index])
            frames, own = slice(start, start + piece.num_frames), slice(0, piece.num_frames)
            if self.semantic:
                assert row.semantic is not None
                semantic[index, own] = torch.from_numpy(row.semantic[frames].astype(np.int64))
            if num_codebooks:
                assert row.acoustic is not None
                ids = row.acoustic[:num_codebooks, frames].astype(np.int64)
                acoustic[index, :, own] = torch.from_numpy(ids)
        return Tokens(
            semantic=semantic if self.semantic else None,
            acoustic=acoustic if num_codebooks else None,
            num_frames=num_frames,
        )

    def _num_codebooks(self, row: TokenRow) -> int:
        """Acoustic codebooks that are decoded of a row, which may have fewer than are asked for."""
        return 0 if row.acoustic is None else min(self.num_acoustic_codebooks, len(row.acoustic))

    def _gather(self, batch: Sequence[Piece], waveforms: torch.Tensor, pieces: _Pieces) -> None:
        """Check what the decoder returned and take each segment's own samples."""
        info = self.decoder.info
        found = waveforms.numpy()
        expected = (len(batch), max(piece.num_frames for piece in batch) * info.frame_size)
        if found.dtype != np.float32 or found.shape != expected:
            raise CodecContractError(
                f"decoder {info.name} returned {found.dtype} of shape {found.shape}, expected float32 {expected}"
            )
        if not np.isfinite(found).all():
            raise CodecContractError(f"decoder {info.name} returned samples that are not finite")
        for index, piece in enumerate(batch):
            own = found[index, : piece.num_frames * info.frame_size]
            pieces[piece.clip_index, piece.segment_index] = quantized(own)

    def _row(self, row_index: int, row: TokenRow, pieces: _Pieces) -> AudioRow:
        parts = [pieces.pop((row_index, index)) for index in range(len(row.segments))]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        sample_rate_hz = self.decoder.info.sample_rate_hz
        return AudioRow(
            key=row.key,
            pcm=whole[: num_samples_at(row.num_audio_samples, self.source_rate_hz, sample_rate_hz)],
            sample_rate_hz=sample_rate_hz,
            num_frames=row.num_frames,
            source_sample_rate_hz=row.source_sample_rate_hz,
            source_num_channels=row.source_num_channels,
            num_acoustic_codebooks=self._num_codebooks(row),
            sidecars=row.sidecars,
        )
