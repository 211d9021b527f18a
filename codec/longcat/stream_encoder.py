"""Encoding as the audio comes: tokens without an end."""

from __future__ import annotations

import torch
from torch.nn import functional

from codec.arithmetic import arithmetic
from codec.base import CodecError, CodecInfo, Tokens
from codec.framing import padded_length
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import LogMel
from codec.longcat.reach import reach_of
from codec.longcat.stream_layers import Stage, stage_of
from codec.longcat.stream_semantic import SemanticStream, SemanticWindow


class StreamEncoder:
    """The tokens of a stream of audio; a `LongCatCodec`'s `stream_encoder` makes it.

    What equals what, in float32:

    - The ids are the same however the audio was cut into pushes, to the last bit of what they come from: the audio is
      encoded in steps of a frame, which lie at the same samples always.
    - Acoustic ids are those of the acoustic encoder over the whole stream in one piece. `LongCatCodec.encode` gives
      these of a clip that is no longer than it takes (30 s); where a longer clip is cut into segments instead, frames
      near the cuts differ, since there each segment ends in zeros.
    - A semantic id is that of its frame in a clip of the frame's window alone, but that what the encoder computes
      before its transformer knows the audio before the window too. So a stream whose context and look-ahead are each
      as long as the whole of it has the ids of `LongCatCodec.encode`; of others they may differ, since the published
      encoder looks both ways over all of a clip.

    `look_ahead` says how many audio samples past a frame's own must have come for its ids: with the published strides
    7168 (448 ms) for the acoustic ones, and `960 * (look-ahead + hop - 1) - 560` for the semantic ones (look-ahead and
    hop in frames). A frame comes out when all its ids are there. What is kept is bounded: the samples, rows and frames
    that later ids still see. One thread at a time; several streams of a codec may take turns.
    """

    def __init__(
        self,
        encoder: LongCatEncoder,
        log_mel: LogMel,
        *,
        info: CodecInfo,
        window: SemanticWindow | None,
        num_acoustic_codebooks: int,
        num_streams: int,
        device: torch.device,
        dtype: torch.dtype,
        tf32: bool,
    ) -> None:
        if num_streams < 1:
            raise ValueError(f"found num_streams={num_streams}; it is 1 or more")
        self._encoder, self._info, self._num_streams = encoder, info, num_streams
        self._device, self._dtype, self._tf32 = device, dtype, tf32
        self._num_codebooks = num_acoustic_codebooks
        look_aheads: list[int] = []
        self._semantic: SemanticStream | None = None
        if window is not None:
            model = encoder.semantic_tokenizer.model
            self._semantic = SemanticStream(model, log_mel, window, dtype=dtype, tf32=tf32)
            look_aheads.append(self._semantic.look_ahead)
        self._acoustic: Stage | None = None
        if num_acoustic_codebooks:
            self._acoustic = stage_of(encoder.encoder)
            look_aheads.append(reach_of(encoder.encoder).look_ahead)
        self._look_ahead = max(look_aheads)
        # Ids that have come, while those of the other kind for the same frames have not.
        self._semantic_ids = torch.zeros(num_streams, 0, dtype=torch.int64)
        self._acoustic_ids = torch.zeros(num_streams, num_acoustic_codebooks, 0, dtype=torch.int64)
        self._pending = torch.zeros(num_streams, 0, dtype=torch.float32)
        self._num_encoded = 0
        """Audio samples that the encoders have had."""
        self._has_ended = self._has_failed = False

    @property
    def look_ahead(self) -> int:
        """Audio samples past a frame's own that must have come before its ids do."""
        return self._look_ahead

    @torch.no_grad()
    def push(self, waveforms: torch.Tensor) -> Tokens:
        """The frames that further audio settles, on the CPU, as many of each stream: 0 or more.

        `waveforms` float32 [num_streams, T] at the codec's rate, T of 0 or more. Raises `ValueError` on another shape
        or dtype and on values that are not finite, before anything is encoded; `CodecError` after `finish`;
        `torch.OutOfMemoryError` when the device is full, after which this stream is lost.
        """
        self._check_open()
        self._check(waveforms)
        samples = torch.cat((self._pending, waveforms.cpu()), dim=1)
        num_used = 0
        while samples.shape[1] - num_used >= (num := self._step()):
            self._encode(samples[:, num_used : num_used + num], last=False)
            num_used += num
        self._pending = samples[:, num_used:].clone()
        return self._taken()

    @torch.no_grad()
    def finish(self) -> Tokens:
        """The rest of the frames: `ceil(audio samples / frame size)` in all. Nothing can be pushed any more.

        Raises `CodecError` when called twice.
        """
        self._check_open()
        self._has_ended = True
        num_samples = self._num_encoded + self._pending.shape[1]
        num_missing = padded_length(num_samples, self._info.frame_size) - num_samples
        self._encode(functional.pad(self._pending, (0, num_missing)), last=True)
        return self._taken()

    def _step(self) -> int:
        """How many audio samples are encoded next: the first step ends where the first frame's look-ahead may end."""
        frame_size = self._info.frame_size
        return (self._look_ahead - self._num_encoded - 1) % frame_size + 1

    def _encode(self, samples: torch.Tensor, *, last: bool) -> None:
        self._has_failed = True  # unless this comes to its end: one stream of ids may have grown, the other not
        self._num_encoded += samples.shape[1]
        samples = samples.to(self._device)
        if self._semantic is not None:
            features = self._semantic(samples, last=last)
            with arithmetic(tf32=False):
                ids = self._encoder.semantic_tokenizer.kmeans(features)
            self._semantic_ids = torch.cat((self._semantic_ids, ids.cpu()), dim=-1)
        if self._acoustic is not None:
            with arithmetic(tf32=self._tf32):
                latents = self._acoustic(samples[..., None].to(self._dtype), last=last).float()
            with arithmetic(tf32=False):
                ids = self._encoder.acoustic_quantizer.nearest(latents, self._num_codebooks)
            self._acoustic_ids = torch.cat((self._acoustic_ids, ids.cpu()), dim=-1)
        self._has_failed = False

    def _taken(self) -> Tokens:
        """The frames whose ids are all there."""
        asked = [self._semantic_ids] * (self._semantic is not None)
        asked += [self._acoustic_ids] * (self._acoustic is not None)
        num = min(ids.shape[-1] for ids in asked)
        semantic, self._semantic_ids = self._semantic_ids[:, :num], self._semantic_ids[:, num:].clone()
        acoustic, self._acoustic_ids = self._acoustic_ids[..., :num], self._acoustic_ids[..., num:].clone()
        return Tokens(
            None if self._semantic is None else semantic,
            None if self._acoustic is None else acoustic,
            torch.full((self._num_streams,), num),
        )

    def _check(self, waveforms: torch.Tensor) -> None:
        if waveforms.dim() != 2 or len(waveforms) != self._num_streams or waveforms.dtype != torch.float32:
            raise ValueError(
                f"found waveforms {waveforms.dtype} {list(waveforms.shape)}; "
                f"allowed: torch.float32 [{self._num_streams}, T]"
            )
        if not torch.isfinite(waveforms).all():
            raise ValueError("found NaN or infinity in a waveform; a stream has no place for them: put silence there")

    def _check_open(self) -> None:
        if self._has_failed:
            raise CodecError("encoding failed within this stream, whose state is lost; make another encoder")
        if self._has_ended:
            raise CodecError("this stream was finished; make another encoder for the next one")
