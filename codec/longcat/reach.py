"""What the codec's convolutions see, from the layers themselves: so how far a stream must look ahead."""

from __future__ import annotations

from functools import reduce

from torch import nn

from codec.framing import Delay, Reach
from codec.longcat.layers import Conv, TransposedConv


def reach_of(encoder: nn.Module) -> Reach:
    """The audio samples that a frame of the acoustic encoder sees (samples counted from the frame's first).

    Residual units add nothing: what goes past their convolutions is seen by them too.
    """
    reaches = (layer.reach for layer in encoder.modules() if isinstance(layer, Conv))
    return reduce(Reach.then, reaches, Reach())


def delay_of(decoder: nn.Module) -> Delay:
    """How many audio samples of the frames that a waveform decoder was given are not settled yet."""
    delays = (
        layer.delay if isinstance(layer, TransposedConv) else Delay(1, layer.reach.after)
        for layer in decoder.modules()
        if isinstance(layer, Conv | TransposedConv)
    )
    return reduce(Delay.then, delays, Delay())
