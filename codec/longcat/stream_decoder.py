"""Decoding as the tokens come: a waveform without an end."""

from __future__ import annotations

import torch

from codec.arithmetic import arithmetic
from codec.base import CodecError, CodecInfo, Tokens
from codec.framing import Delay
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.reach import delay_of
from codec.longcat.stream_layers import stage_of
from codec.tokens import own_tokens


class StreamDecoder:
    """The waveform of a stream of tokens; a `LongCatCodec`'s `stream_decoder` makes it.

    All that was returned, joined, is what `LongCatCodec.decode` gives of all tokens (but for last bits: no more than
    1e-5 of the largest value), and it is the same to the last bit however the tokens were cut into pushes: they are
    decoded frame by frame. After n frames the first `n * delay.rate - delay.held` audio samples are out, and no
    earlier sample depends on what comes later. So the look-ahead is, with the published rates:

    - 24 kHz: 3 frames (180 ms), which the first convolution of the waveform decoder sees;
    - 16 kHz: 3 frames and 6212 samples (568.25 ms): the later convolutions are symmetric in that decoder.

    What is kept is bounded: the LSTMs' states and the rows that the convolutions' next outputs see. One thread at a
    time; several streams of a codec may take turns.
    """

    def __init__(
        self,
        decoder: LongCatDecoder,
        *,
        info: CodecInfo,
        semantic: bool,
        num_acoustic_codebooks: int,
        num_streams: int,
        device: torch.device,
    ) -> None:
        if num_streams < 1:
            raise ValueError(f"found num_streams={num_streams}; it is 1 or more")
        self._decoder, self._info, self._device = decoder, info, device
        self._semantic, self._num_codebooks, self._num_streams = semantic, num_acoustic_codebooks, num_streams
        self._stage = stage_of(decoder.decoder)
        self._delay = delay_of(decoder.decoder)
        self._has_ended = self._has_failed = False

    @property
    def delay(self) -> Delay:
        """Audio samples of a frame, and how many of those pushed are held back."""
        return self._delay

    @torch.no_grad()
    def push(self, semantic: torch.Tensor | None, acoustic: torch.Tensor | None) -> torch.Tensor:
        """The waveform that further tokens settle, float32 [num_streams, T] on the CPU, T of 0 or more.

        `semantic` int64 [num_streams, F] and `acoustic` int64 [num_streams, K, F], F of 0 or more, K of the streams
        that the decoder was made for; None for one that it was not made for. Raises `ValueError` on other streams,
        wrong shapes and ids out of range, before anything is decoded; `CodecError` after `finish`, or after decoding
        failed, as when the device is full (`torch.OutOfMemoryError`).
        """
        self._check_open()
        own = self._own(semantic, acoustic)
        frames = [self._decode(_frame(own, index), last=False) for index in range(_num_frames(own))]
        return torch.cat([torch.zeros(self._num_streams, 0, dtype=torch.float32), *frames], dim=1)

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """The rest of the waveform, float32 [num_streams, T] on the CPU; nothing can be pushed any more.

        Raises `CodecError` when called twice.
        """
        self._check_open()
        self._has_ended = True
        none = torch.zeros(self._num_streams, 0, dtype=torch.int64)
        return self._decode(
            Tokens(
                none if self._semantic else None,
                none[:, None].expand(-1, self._num_codebooks, -1) if self._num_codebooks else None,
                torch.zeros(self._num_streams, dtype=torch.int64),
            ),
            last=True,
        )

    def _decode(self, tokens: Tokens, *, last: bool) -> torch.Tensor:
        semantic, acoustic = (
            None if ids is None else ids.to(self._device) for ids in (tokens.semantic, tokens.acoustic)
        )
        self._has_failed = True  # unless this comes to its end: layers may have taken the frame, others not
        with arithmetic(tf32=False):
            waveforms = self._stage(self._decoder.latents(semantic, acoustic), last=last).squeeze(-1).cpu()
        self._has_failed = False
        return waveforms

    def _own(self, semantic: torch.Tensor | None, acoustic: torch.Tensor | None) -> Tokens:
        given = [ids for ids in (semantic, acoustic) if ids is not None]
        num_frames = min((ids.shape[-1] for ids in given if ids.dim()), default=0)
        rows = torch.full((len(given[0]) if given and given[0].dim() else 0,), num_frames)
        own = own_tokens(Tokens(semantic, acoustic, rows), self._info, num_frames_min=0)
        num_codebooks = 0 if own.acoustic is None else own.acoustic.shape[1]
        found = (own.semantic is not None, num_codebooks, len(rows))
        if found != (self._semantic, self._num_codebooks, self._num_streams):
            raise ValueError(
                f"found {_told(*found)}; this decoder was made for "
                f"{_told(self._semantic, self._num_codebooks, self._num_streams)}"
            )
        return own

    def _check_open(self) -> None:
        if self._has_failed:
            raise CodecError("decoding failed within this stream, whose state is lost; make another decoder")
        if self._has_ended:
            raise CodecError("this stream was finished; make another decoder for the next one")


def _num_frames(tokens: Tokens) -> int:
    ids = tokens.semantic if tokens.acoustic is None else tokens.acoustic
    assert ids is not None
    return ids.shape[-1]


def _frame(tokens: Tokens, index: int) -> Tokens:
    semantic, acoustic = (
        None if ids is None else ids[..., index : index + 1] for ids in (tokens.semantic, tokens.acoustic)
    )
    return Tokens(semantic, acoustic, torch.ones_like(tokens.num_frames))


def _told(semantic: bool, num_codebooks: int, num_streams: int) -> str:
    semantics = "semantic" if semantic else "no semantic"
    return f"{semantics} ids and {num_codebooks} acoustic codebooks of {num_streams} stream(s)"
