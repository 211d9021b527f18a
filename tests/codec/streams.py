"""What the tests of streams share: a tensor in pieces, and what a stream keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from codec.base import Tokens
from codec.longcat.stream_decoder import StreamDecoder
from codec.longcat.stream_encoder import StreamEncoder


def pieces(x: torch.Tensor, sizes: Iterable[int]) -> Iterator[torch.Tensor]:
    """`x` cut along its last dimension, the sizes over and over; they must not all be 0."""
    cycle, begin = list(sizes), 0
    assert any(cycle)
    while begin < x.shape[-1]:
        for size in cycle:
            yield x[..., begin : begin + size]
            begin += size


def encoded(stream: StreamEncoder, waveforms: torch.Tensor, sizes: Iterable[int]) -> Tokens:
    """All tokens of waveforms [B, T]."""
    parts = [*map(stream.push, pieces(waveforms, sizes)), stream.finish()]
    semantic = [part.semantic for part in parts if part.semantic is not None]
    acoustic = [part.acoustic for part in parts if part.acoustic is not None]
    return Tokens(
        torch.cat(semantic, dim=-1) if semantic else None,
        torch.cat(acoustic, dim=-1) if acoustic else None,
        sum((part.num_frames for part in parts), torch.tensor([0])),
    )


def decoded(
    stream: StreamDecoder, semantic: torch.Tensor | None, acoustic: torch.Tensor | None, sizes: Iterable[int]
) -> torch.Tensor:
    """The whole waveform of ids [B, F] and [B, K, F]."""
    given = semantic if acoustic is None else acoustic
    assert given is not None
    waveforms = []
    for frames in pieces(torch.arange(given.shape[-1]), sizes):
        parts = (None if ids is None else ids[..., frames] for ids in (semantic, acoustic))
        waveforms.append(stream.push(*parts))
    return torch.cat([*waveforms, stream.finish()], dim=-1)


def state_bytes(stream: object) -> int:
    """Bytes of all tensors that a stream holds, those that it shares with its codec left out."""
    held: dict[int, int] = {}
    seen: set[int] = set()

    def look(value: object) -> None:
        if id(value) in seen or isinstance(value, nn.Module | nn.Parameter):
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, list | tuple):
            for item in value:
                look(item)
        elif type(value).__module__.startswith("codec.longcat.stream"):
            for item in getattr(value, "__dict__", {}).values():
                look(item)

    look(stream)
    return sum(held.values())
