"""LongCat's encoder the plain way: one clip after another, eager, weight norm computed at every call.

It is written for `bench codec` alone, from the same checkpoint's tensors under their own names, in the layout
(batch, channel, time) and the operations in which such models are published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from codec.base import CodecError
from codec.framing import padded_length
from codec.longcat.checkpoint import ENCODER_FILE, Checkpoint
from codec.longcat.config import LongCatConfig
from codec.longcat.features import LogMel
from codec.longcat.semantic import sinusoids
from codec.longcat.weights import Weights
from pipeline.types import Clip

_DILATIONS = (1, 3, 9)


def plain_encoder(checkpoint: Weights, device: torch.device) -> PlainEncoder:
    """Of a checkpoint's published files, on a device, in float32. Raises `CodecError` on a converted one."""
    if not isinstance(checkpoint, Checkpoint):
        raise CodecError("the plain way reads the published files; give a --codec that has them")
    stored = torch.load(checkpoint.folder / ENCODER_FILE, map_location="cpu", weights_only=True, mmap=True)
    log_mel = LogMel(
        checkpoint.load_feature_constants(), sample_rate_hz=checkpoint.config.sample_rate_hz, device=device
    )
    return PlainEncoder(
        {name: tensor.to(device) for name, tensor in stored.items()}, checkpoint.config, log_mel, device
    )


class PlainEncoder:
    """Ids of one clip at a time, of `tensors` as they stand in an encoder file."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], config: LongCatConfig, log_mel: LogMel, device: torch.device
    ) -> None:
        self._tensors, self._config, self._log_mel, self._device = tensors, config, log_mel, device

    def encode_all(self, clips: Sequence[Clip]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The ids of each clip, on the CPU."""
        return [self.encode(torch.from_numpy(clip.waveform).to(self._device)) for clip in clips]

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Semantic ids int64 [F] and acoustic ids int64 [K, F] of a clip float32 [T]."""
        padded = padded_length(len(waveform), self._config.frame_size)
        clip = functional.pad(waveform, (0, padded - len(waveform)))[None]
        return self._semantic(clip)[0].cpu(), self._acoustic(clip)[0].cpu()

    def _semantic(self, clip: torch.Tensor) -> torch.Tensor:
        x = self._log_mel(clip)[:, None]
        for index, stride in enumerate(self._config.semantic.time_strides):
            name = f"semantic_tokenizer.model.subsampling.conv.subsampling/conv{index}"
            x = functional.conv2d(functional.pad(x, (0, 0, 2, 0)), *self._affine(name), stride=(stride, 1)).relu()
        x = functional.linear(
            x.transpose(1, 2).flatten(2), *self._affine("semantic_tokenizer.model.subsampling.affine")
        )
        x = self._layer_norm(x, "semantic_tokenizer.model.subsampling.norm")
        x = x * math.sqrt(x.shape[-1]) + sinusoids(x.shape[1], x.shape[2], device=x.device)
        for index in range(self._config.semantic.num_layers):
            x = self._transformer_layer(x, f"semantic_tokenizer.model.encoder.layers.{index}")
        x = functional.normalize(x, dim=-1)
        codebook = self._tensors["semantic_tokenizer.kmeans.codebook"]
        return (x.square().sum(-1, keepdim=True) - 2 * x @ codebook + codebook.square().sum(0)).argmin(-1)

    def _transformer_layer(self, x: torch.Tensor, name: str) -> torch.Tensor:
        attention = f"{name}.self_attn"
        projected = functional.linear(
            self._layer_norm(x, f"{name}.norm1"),
            self._tensors[f"{attention}.in_proj_weight"],
            self._tensors[f"{attention}.in_proj_bias"],
        )
        num_heads = self._config.semantic.num_heads
        query, key, value = projected.view(*x.shape[:2], 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        x = x + functional.linear(mixed, *self._affine(f"{attention}.out_proj"))
        hidden = functional.linear(self._layer_norm(x, f"{name}.norm2"), *self._affine(f"{name}.linear1"))
        x = x + functional.linear(functional.gelu(hidden), *self._affine(f"{name}.linear2"))
        return self._layer_norm(x, f"{name}.norm3")

    def _acoustic(self, clip: torch.Tensor) -> torch.Tensor:
        x = self._conv(clip[:, None], "encoder.block.0", padding=3)
        for index, stride in enumerate(self._config.acoustic.strides):
            name = f"encoder.block.{index + 1}.block"
            for unit, dilation in enumerate(_DILATIONS):
                part = f"{name}.{unit}.block"
                y = self._conv(self._snake(x, f"{part}.0"), f"{part}.1", dilation=dilation, padding=3 * dilation)
                x = x + self._conv(self._snake(y, f"{part}.2"), f"{part}.3")
            x = self._conv(self._snake(x, f"{name}.3"), f"{name}.4", stride=stride, padding=-(-stride // 2))
        last = len(self._config.acoustic.strides) + 1
        residual = self._conv(self._snake(x, f"encoder.block.{last}"), f"encoder.block.{last + 1}", padding=1)
        return self._quantize(residual)

    def _quantize(self, residual: torch.Tensor) -> torch.Tensor:
        ids = []
        for index in range(self._config.acoustic.num_codebooks):
            name = f"acoustic_quantizer.quantizers.{index}"
            entries, values = [], []
            for half in "ab":
                codebook = self._tensors[f"{name}.codebook_{half}.weight"]
                projected = self._conv(residual, f"{name}.in_proj_{half}").transpose(1, 2)
                similarity = functional.normalize(projected, dim=-1) @ functional.normalize(codebook, dim=-1).T
                entries.append(similarity.argmax(-1))
                values.append(self._conv(codebook[entries[-1]].transpose(1, 2), f"{name}.out_proj_{half}"))
            ids.append(entries[0] * self._config.acoustic.half_cardinality + entries[1])
            residual = residual - torch.cat(values, dim=1)
        return torch.stack(ids, dim=1)

    def _conv(
        self, x: torch.Tensor, name: str, *, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> torch.Tensor:
        direction, size = self._tensors[f"{name}.weight_v"], self._tensors[f"{name}.weight_g"]
        weight = direction * (size / torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True))
        bias = self._tensors[f"{name}.bias"]
        return functional.conv1d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)

    def _snake(self, x: torch.Tensor, name: str) -> torch.Tensor:
        alpha = self._tensors[f"{name}.alpha"]
        return x + (alpha + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)

    def _layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], *self._affine(name))

    def _affine(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
