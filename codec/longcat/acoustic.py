"""The acoustic encoder: a stack of strided convolutions from waveform to one latent a frame."""

from __future__ import annotations

import torch
from torch import nn

from codec.batch import past_end_mask
from codec.longcat.config import AcousticConfig
from codec.longcat.layers import Conv, ResidualUnit, Snake, silence

DILATIONS = (1, 3, 9)


class EncoderBlock(nn.Module):
    """Three residual units, Snake, and a convolution that strides and doubles the width."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        padding = -(-stride // 2)
        self.block = nn.ModuleList(
            [
                *(ResidualUnit(width, dilation, causal=False) for dilation in DILATIONS),
                Snake(width),
                Conv(width, 2 * width, 2 * stride, stride=stride, padding=(padding, padding)),
            ]
        )

    def forward(self, x: torch.Tensor, past_end: torch.Tensor | None) -> torch.Tensor:
        """[B, T, C] to [B, T / stride, 2 C]; `past_end` bool [B, T]."""
        *units, snake, down = self.block
        for unit in units:
            x = unit(x, past_end)
        strided: torch.Tensor = down(snake(silence(x, past_end)))
        return strided


class AcousticEncoder(nn.Module):
    """Waveforms to latents; each clip as if it were alone in the batch."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        self.strides = config.strides
        widths = [config.width * 2**index for index in range(len(config.strides) + 1)]
        self.block = nn.ModuleList(
            [
                Conv(1, config.width, 7, padding=(3, 3)),
                *(EncoderBlock(width, stride) for width, stride in zip(widths, config.strides, strict=False)),
                Snake(widths[-1]),
                Conv(widths[-1], config.latent_dim, 3, padding=(1, 1)),
            ]
        )

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Latents [B, F, latent_dim] of `waveforms` [B, T], zero past `lengths`.

        T and `lengths` int64 [B] are whole frames, in samples; None when every clip fills the batch.
        """
        first, *blocks, snake, last = self.block
        x = first(waveforms[..., None])
        past_end = _past_end(lengths, x)
        for block, stride in zip(blocks, self.strides, strict=True):
            x = block(x, past_end)
            lengths = None if lengths is None else lengths // stride
            past_end = _past_end(lengths, x)
        latents: torch.Tensor = last(snake(silence(x, past_end)))
        return latents


def _past_end(lengths: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    return None if lengths is None else past_end_mask(lengths, x.shape[1])
