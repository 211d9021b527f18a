"""The semantic encoder: log-mel features, two convolutions, a bidirectional transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from codec.framing import Reach
from codec.longcat.config import SemanticConfig
from codec.longcat.features import NUM_MELS

_NUM_CHANNELS = 32
_KERNEL_SIZE = 3


class Subsampling(nn.Module):
    """Two 3x3 convolutions that look only back in time, then one linear layer: ten-millisecond steps to frames."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.time_strides = config.time_strides
        first_stride, second_stride = config.time_strides
        self.conv = nn.ModuleDict(
            {
                "subsampling/conv0": nn.Conv2d(1, _NUM_CHANNELS, _KERNEL_SIZE, stride=(first_stride, 1)),
                "subsampling/conv1": nn.Conv2d(_NUM_CHANNELS, _NUM_CHANNELS, _KERNEL_SIZE, stride=(second_stride, 1)),
            }
        )
        num_mels_out = NUM_MELS - 2 * (_KERNEL_SIZE - 1)
        self.affine = nn.Linear(_NUM_CHANNELS * num_mels_out, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Log-mel features [B, N, 80] to [B, F, width]."""
        x = features.unsqueeze(1)
        for conv in self.conv.values():
            x = conv(functional.pad(x, (0, 0, _KERNEL_SIZE - 1, 0))).relu()
        return self.project(x.transpose(1, 2))

    def steps(self) -> list[tuple[Reach, Callable[[torch.Tensor], torch.Tensor]]]:
        """Each convolution with its ReLU, without padding: [B, N, C, M] to [B, N', 32, M - 2], and its reach in N."""
        return [
            (Reach(stride, before=_KERNEL_SIZE - 1), partial(_convolved, conv))
            for stride, conv in zip(self.time_strides, self.conv.values(), strict=True)
        ]

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The convolutions' output [B, F, 32, 76] to [B, F, width]."""
        normed: torch.Tensor = self.norm(self.affine(x.flatten(2)))
        return normed


def _convolved(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    convolved: torch.Tensor = conv(x.transpose(1, 2)).relu()
    return convolved.transpose(1, 2)


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention of queries, keys and values [..., F, heads, dim], each clip's frames to its own alone; the same shape."""


class SelfAttention(nn.Module):
    """Bidirectional attention over the frames of one clip."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`x` [..., F, width] to the same shape."""
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.view(*x.shape[:-1], 3, self.num_heads, -1).unbind(-3)
        mixed: torch.Tensor = self.out_proj(attend(query, key, value).flatten(-2))
        return mixed


class TransformerLayer(nn.Module):
    """x += attention(norm1 x); x += linear2(gelu(linear1(norm2 x))); x = norm3(x)."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.self_attn = SelfAttention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feed_forward_dim)
        self.linear2 = nn.Linear(config.feed_forward_dim, config.width)
        self.norm3 = nn.LayerNorm(config.width)

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`x` [..., F, width] to the same shape."""
        x = x + self.self_attn(self.norm1(x), attend)
        x = x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))
        normed: torch.Tensor = self.norm3(x)
        return normed


class Transformer(nn.Module):
    """The stack of layers."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`x` [..., F, width] to the same shape."""
        for layer in self.layers:
            x = layer(x, attend)
        return x


class SemanticEncoder(nn.Module):
    """Log-mel features to one vector a frame."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.subsampling = Subsampling(config)
        self.encoder = Transformer(config)

    def forward(self, features: torch.Tensor, past_end: torch.Tensor | None) -> torch.Tensor:
        """Features [B, N, 80] to [B, F, width]; `past_end` bool [B, F], None when every clip fills the batch."""
        encoded: torch.Tensor = self.encoder(self._frames(features), partial(_attend_in_batch, past_end))
        return encoded

    def packed(self, features: torch.Tensor, num_frames: Sequence[int]) -> torch.Tensor:
        """Features [B, N, 80] to [sum of num_frames, width], clip after clip: no padding goes through the layers."""
        frames = self._frames(features)
        packed = torch.cat([clip[:size] for clip, size in zip(frames, num_frames, strict=True)])
        encoded: torch.Tensor = self.encoder(packed, partial(_attend_packed, num_frames))
        return encoded

    def in_context(self, subsampled: torch.Tensor) -> torch.Tensor:
        """What `subsampling` gave of a window of frames [B, W, width] to the same shape; positions count from it."""
        encoded: torch.Tensor = self.encoder(_placed(subsampled), partial(_attend_in_batch, None))
        return encoded

    def _frames(self, features: torch.Tensor) -> torch.Tensor:
        return _placed(self.subsampling(features))


def _placed(x: torch.Tensor) -> torch.Tensor:
    """[B, F, width], scaled, with the frames' positions added."""
    width = x.shape[-1]
    positions = sinusoids(x.shape[1], width, device=x.device)
    return x * math.sqrt(width) + positions.to(x.dtype)


def _attend_in_batch(
    past_end: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Of [B, F, heads, dim]: keys past a clip's end are masked."""
    own_keys = None if past_end is None else ~past_end[:, None, None, :]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=own_keys).transpose(1, 2)


def _attend_packed(
    num_frames: Sequence[int], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Of [sum of num_frames, heads, dim]: clip by clip."""
    attended = torch.empty_like(query)
    end = 0
    for size in num_frames:
        clip = slice(end, end := end + size)
        own = (part[None, clip] for part in (query, key, value))
        attended[clip] = _attend_in_batch(None, *own)[0]
    return attended


def sinusoids(num_positions: int, width: int, *, device: torch.device) -> torch.Tensor:
    """Positions float32 [num_positions, width]: sine on even, cosine on odd dimensions (arXiv 1706.03762)."""
    rates = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / width))
    angles = torch.arange(num_positions, device=device, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
