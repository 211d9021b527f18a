"""From windows of clips to rows of tokens, one batch at a time on the device."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from codec.base import Codec, ResidualCodec, StagingCodec, Tokens, computes_padding
from pipeline.batcher import CutClip, Piece, Window, windows
from pipeline.codebooks import AutoCodebooks
from pipeline.errors import CodecContractError, ShardCancelledError
from pipeline.pages import PAGES
from pipeline.prefetch import prefetched
from pipeline.settings import BatchingConfig
from pipeline.turn import Turn
from pipeline.types import Clip, TokenRow, scale_into


@dataclass(frozen=True, slots=True)
class _EncodedPiece:
    """A segment's tokens as in a `TokenRow`, and its energies float64 [1 + K] where clips choose their codebooks."""

    semantic: NDArray[np.uint16] | None
    acoustic: NDArray[np.uint16] | None
    energies: NDArray[np.float64] | None


_Pieces = dict[tuple[int, int], _EncodedPiece]


@dataclass(slots=True)
class Progress:
    """How far a shard is; each field is written by one thread, and read by others.

    `num_clips` counts what came out of decoding, rejects too: a shard of bad audio also moves.
    """

    num_clips: int = 0
    num_batches: int = 0
    num_objects: int = 0
    num_halved_batches: int = 0
    audio_s: float = 0.0
    padded_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _PaddedBatch:
    """A batch as the codec takes it: waveforms float32 [B, T], lengths int64 [B]."""

    pieces: Sequence[Piece]
    waveforms: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Encoder:
    """One codec on one device, shared by the shards of a replica.

    `num_acoustic_codebooks` is the number asked for: 0 without the acoustic stream. With `auto_codebooks`, which takes
    a `ResidualCodec`, it is all that the codec has, and rows have as many of them as their clips need.
    """

    codec: Codec
    semantic: bool
    num_acoustic_codebooks: int
    clock: Callable[[], float]
    auto_codebooks: AutoCodebooks | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    turn: Turn = field(default_factory=Turn)

    def windows(self, clips: Iterable[Clip], config: BatchingConfig) -> Iterator[Window]:
        """The clips in windows, with the batches that suit the codec."""
        info = self.codec.info
        return windows(
            clips,
            config,
            sample_rate_hz=info.sample_rate_hz,
            frame_size=info.frame_size,
            computes_padding=computes_padding(self.codec),
        )

    def encode(self, window: Window, *, ticket: int, progress: Progress) -> Iterator[TokenRow]:
        """The window's rows, in shard order.

        Raises `CodecContractError` when the codec returns what it must not, `ShardCancelledError` when the
        replica stops, `torch.OutOfMemoryError` when one segment alone does not fit the device.
        """
        pieces: _Pieces = {}
        # The device would wait for each batch to be padded and copied where no other shard has one ready.
        with prefetched(self._staged(window), items_max=1, name="voxmill-pad") as ahead:
            for batch in ahead:
                self._encode_batch(window.clips, batch, pieces, ticket=ticket, progress=progress)
                del batch  # its pages serve the next one
        for clip_index, cut_clip in enumerate(window.clips):
            parts = [pieces.pop((clip_index, index)) for index in range(len(cut_clip.segments))]
            yield _row(cut_clip, parts, self.auto_codebooks)

    def _staged(self, window: Window) -> Iterator[_PaddedBatch]:
        stage = self.codec.stage if isinstance(self.codec, StagingCodec) else None
        for batch in window.batches:
            yield self._padded_batch(window.clips, batch, stage)  # not held here while it waits

    def _padded_batch(
        self, clips: Sequence[CutClip], batch: Sequence[Piece], stage: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> _PaddedBatch:
        waveforms, lengths = _padded(clips, batch, self.codec.info.frame_size)
        return _PaddedBatch(batch, stage(waveforms) if stage else waveforms, lengths)

    def _encode_batch(
        self,
        clips: Sequence[CutClip],
        batch: _PaddedBatch,
        pieces: _Pieces,
        *,
        ticket: int,
        progress: Progress,
    ) -> None:
        with self.turn.take(ticket):
            if self.cancelled.is_set():
                raise ShardCancelledError("the replica is stopping; the shard is left for the next run")
            started_s = self.clock()
            try:
                encoded = self._tokens(batch)
            except torch.OutOfMemoryError:
                if len(batch.pieces) == 1:
                    raise
                encoded = None
            progress.encode_s += self.clock() - started_s
        if encoded is None:
            # The two halves have other padded shapes than the plan's, so the commit record says it happened.
            progress.num_halved_batches += 1
            middle = len(batch.pieces) // 2
            for half in (batch.pieces[:middle], batch.pieces[middle:]):
                padded = _PaddedBatch(half, *_padded(clips, half, self.codec.info.frame_size))
                self._encode_batch(clips, padded, pieces, ticket=ticket, progress=progress)
            return
        self._gather(batch.pieces, *encoded, pieces)
        info = self.codec.info
        num_frames = [piece.num_frames for piece in batch.pieces]
        frames_computed = max(num_frames) * len(num_frames) if computes_padding(self.codec) else sum(num_frames)
        progress.num_batches += 1
        progress.audio_s += float(batch.lengths.sum()) / info.sample_rate_hz
        progress.padded_s += frames_computed / info.frame_rate_hz

    def _tokens(self, batch: _PaddedBatch) -> tuple[Tokens, torch.Tensor | None]:
        """What the codec makes of a batch, with its residuals' energies where clips choose their codebooks."""
        codec = self.codec
        if self.auto_codebooks is None:
            num_codebooks = self.num_acoustic_codebooks
            tokens = codec.encode(
                batch.waveforms, batch.lengths, semantic=self.semantic, num_acoustic_codebooks=num_codebooks
            )
            return tokens, None
        if not isinstance(codec, ResidualCodec):
            raise CodecContractError(f"codec {codec.info.name} cannot tell what its codebooks leave, as its info says")
        return codec.encode_with_residuals(batch.waveforms, batch.lengths, semantic=self.semantic)

    def _gather(self, batch: Sequence[Piece], tokens: Tokens, energies: torch.Tensor | None, pieces: _Pieces) -> None:
        """Check what the codec returned (I6) and take each piece's own frames."""
        info = self.codec.info
        wanted = [piece.num_frames for piece in batch]
        found = tokens.num_frames.tolist()
        if found != wanted:
            raise CodecContractError(f"codec {info.name} returned {found} frames for segments of {wanted} frames")
        shape = (len(batch), max(wanted))
        semantic = acoustic = None
        if self.semantic:
            semantic = _ids(tokens.semantic, shape, [info.semantic_cardinality], info.name, "semantic")
        if self.num_acoustic_codebooks:
            cardinalities = info.acoustic_cardinalities[: self.num_acoustic_codebooks]
            acoustic = _ids(tokens.acoustic, shape, cardinalities, info.name, "acoustic")
        left = None
        if energies is not None:
            left = _energies(energies, (len(batch), 1 + self.num_acoustic_codebooks), info.name)
        for row, piece in enumerate(batch):
            frames = slice(0, piece.num_frames)
            pieces[piece.clip_index, piece.segment_index] = _EncodedPiece(
                semantic=None if semantic is None else semantic[row, 0, frames].copy(),
                acoustic=None if acoustic is None else acoustic[row, :, frames].copy(),
                energies=None if left is None else left[row],
            )


def _padded(clips: Sequence[CutClip], batch: Sequence[Piece], frame_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms float32 [B, T] padded with zeros to the longest piece in whole frames, lengths int64 [B]."""
    shape = (len(batch), max(piece.num_frames for piece in batch) * frame_size)
    waveforms = PAGES.take(math.prod(shape) * np.dtype(np.float32).itemsize).view(np.float32).reshape(shape)
    lengths = np.empty(len(batch), dtype=np.int64)
    for row, piece in enumerate(batch):
        cut_clip = clips[piece.clip_index]
        segment = cut_clip.segments[piece.segment_index]
        scale_into(cut_clip.clip.pcm[segment.start : segment.start + segment.length], waveforms[row, : segment.length])
        waveforms[row, segment.length :] = 0
        lengths[row] = segment.length
    return torch.from_numpy(waveforms), torch.from_numpy(lengths)


def _ids(
    found: torch.Tensor | None, shape: tuple[int, int], cardinalities: Sequence[int], codec: str, stream: str
) -> NDArray[np.uint16]:
    """Ids as uint16 [B, K, F], checked for type, shape and range."""
    if found is None:
        raise CodecContractError(f"codec {codec} returned no {stream} tokens though they were asked for")
    ids = found.cpu().numpy()
    if ids.dtype.kind not in "iu":  # NaN is in no range and out of none
        raise CodecContractError(f"codec {codec} returned {stream} tokens of type {ids.dtype}, expected integers")
    if ids.ndim == 2:
        ids = ids[:, None]
    num_clips, num_frames = shape
    if ids.shape != (num_clips, len(cardinalities), num_frames):
        expected = (num_clips, len(cardinalities), num_frames)
        raise CodecContractError(f"codec {codec} returned {stream} tokens of shape {ids.shape}, expected {expected}")
    limits = np.asarray(cardinalities)[None, :, None]
    if (ids < 0).any() or (ids >= limits).any():
        raise CodecContractError(f"codec {codec} returned {stream} tokens outside 0..cardinality-1 of {cardinalities}")
    return ids.astype(np.uint16)


def _energies(found: torch.Tensor, shape: tuple[int, int], codec: str) -> NDArray[np.float64]:
    """Energies float64 [B, 1 + K], checked for type, shape and range."""
    energies: NDArray[np.float64] = found.cpu().numpy()
    if energies.dtype != np.float64 or energies.shape != shape:
        raise CodecContractError(
            f"codec {codec} returned energies {energies.dtype} {list(energies.shape)}, expected float64 {list(shape)}"
        )
    if not (np.isfinite(energies) & (energies >= 0)).all():
        raise CodecContractError(f"codec {codec} returned an energy that is negative or not finite")
    return energies


def _row(cut_clip: CutClip, parts: Sequence[_EncodedPiece], auto_codebooks: AutoCodebooks | None) -> TokenRow:
    clip, segments = cut_clip.clip, cut_clip.segments
    semantic = [part.semantic for part in parts if part.semantic is not None]
    acoustic = [part.acoustic for part in parts if part.acoustic is not None]
    num_codebooks = None
    if auto_codebooks is not None:
        # Of the clip as a whole, not of a segment; added in their order, so that equal plans give equal bits.
        energies = np.sum([part.energies for part in parts if part.energies is not None], axis=0)
        num_codebooks = auto_codebooks.choose(energies.tolist())
    return TokenRow(
        key=clip.key,
        num_frames=sum(segment.num_frames for segment in segments),
        num_audio_samples=clip.num_audio_samples,
        source_sample_rate_hz=clip.source_sample_rate_hz,
        source_num_channels=clip.source_num_channels,
        segments=segments,
        semantic=np.concatenate(semantic) if semantic else None,
        acoustic=np.concatenate(acoustic, axis=1)[:num_codebooks] if acoustic else None,
        sidecars=clip.sidecars,
    )
