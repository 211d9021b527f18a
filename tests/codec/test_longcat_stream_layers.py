"""Each layer fed piece by piece gives what it gives of the whole, as soon as that is settled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from codec.framing import Reach
from codec.longcat.decoder import MemoryLayer
from codec.longcat.layers import Conv, ResidualUnit, TransposedConv
from codec.longcat.stream_layers import Sliding, Stage, stage_of
from tests.codec.streams import pieces

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


def drawn(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer.requires_grad_(False)


def rows(num: int, width: int = 4) -> torch.Tensor:
    return torch.randn(2, num, width, generator=torch.Generator().manual_seed(num))


def streamed(stage: Stage, x: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    parts = [stage(piece.mT, last=False) for piece in pieces(x.mT, sizes)]
    return [*parts, stage(x[:, :0], last=True)]


def assert_joined(parts: list[torch.Tensor], whole: torch.Tensor) -> None:
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(num=st.integers(1, 40), sizes=SIZES, kernel=st.integers(1, 8), stride=st.integers(1, 6), data=st.data())
def test_a_convolution(num: int, sizes: list[int], kernel: int, stride: int, data: st.DataObject) -> None:
    dilation = data.draw(st.integers(1, 3))
    seen = (kernel - 1) * dilation
    padding = (data.draw(st.integers(0, seen)), data.draw(st.integers(0, seen)))
    if kernel == 1:
        stride = 1  # such a layer is a product of matrices
    if num + sum(padding) <= seen:
        return
    layer = drawn(Conv(4, 3, kernel, stride=stride, dilation=dilation, padding=padding))
    assert isinstance(layer, Conv)
    whole = layer(rows(num))
    parts = streamed(stage_of(layer), rows(num), sizes)
    assert_joined(parts, whole)
    # Nothing waits that is settled.
    so_far = torch.cat(parts[:-1], dim=1).shape[1]
    settled = max((num + padding[0] - seen - 1) // stride + 1, 0)
    assert so_far == min(settled, whole.shape[1])


@settings(deadline=None, max_examples=60)
@given(num=st.integers(1, 12), sizes=SIZES, rate=st.integers(1, 8), is_causal=st.booleans())
def test_an_upsampling_convolution(num: int, sizes: list[int], rate: int, is_causal: bool) -> None:
    if is_causal or rate == 1:
        layer = TransposedConv(4, 3, rate, stride=rate)
    else:
        layer = TransposedConv(4, 3, 2 * rate, stride=rate, padding=-(-rate // 2), output_padding=rate % 2)
    drawn(layer)
    parts = streamed(stage_of(layer), rows(num), sizes)
    assert_joined(parts, layer(rows(num)))
    assert torch.cat(parts[:-1], dim=1).shape[1] == max(num * layer.delay.rate - layer.delay.held, 0)


@settings(deadline=None, max_examples=30)
@given(num=st.integers(1, 30), sizes=SIZES, dilation=st.integers(1, 4), causal=st.booleans())
def test_a_residual_unit(num: int, sizes: list[int], dilation: int, causal: bool) -> None:
    unit = drawn(ResidualUnit(4, dilation, causal=causal))
    parts = streamed(stage_of(unit), rows(num), sizes)
    assert_joined(parts, unit(rows(num), None))
    assert torch.cat(parts[:-1], dim=1).shape[1] == max(num - (0 if causal else 3 * dilation), 0)


@settings(deadline=None, max_examples=20)
@given(num=st.integers(1, 20), sizes=SIZES)
def test_the_memory(num: int, sizes: list[int]) -> None:
    memory = drawn(MemoryLayer(4))
    assert_joined(streamed(stage_of(memory), rows(num), sizes), memory(rows(num)))


@given(num=st.integers(0, 40), sizes=SIZES, before=st.integers(0, 3), after=st.integers(0, 3), stride=st.integers(1, 9))
def test_windows_that_skip_inputs(num: int, sizes: list[int], before: int, after: int, stride: int) -> None:
    reach = Reach(stride, before, after)
    x = torch.arange(1, num + 1)[None]
    slide = Sliding(reach, lambda rows: rows.unfold(1, reach.span, stride))
    parts = [*(slide(piece, last=False) for piece in pieces(x, sizes)), slide(x[:, :0], last=True)]
    padded = nn.functional.pad(x, (before, 0))
    whole = (
        padded.unfold(1, reach.span, stride) if padded.shape[1] >= reach.span else padded.new_zeros(1, 0, reach.span)
    )
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="found a BatchNorm1d"):
        stage_of(nn.BatchNorm1d(4))
