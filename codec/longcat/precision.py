"""The precisions that a device offers the codec, and how its modules take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from codec.base import CodecError
from codec.longcat.layers import Snake

# float16 is left out on CPUs: their kernels emulate it, ten times slower than float32.
_ALLOWED = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16", "float16")}
_WEIGHTS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_ERROR_MAX = 0.2
"""Root mean square, of float32's: bfloat16 was seen at 0.007 with trained-like weights, at 0.073 with random ones."""


def weights_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations. Raises `ValueError` on a precision the device does not offer."""
    allowed = _ALLOWED[device.type]
    if precision not in allowed:
        raise ValueError(f"found precision {precision!r} on {device.type}; allowed there: {', '.join(allowed)}")
    return _WEIGHTS[precision]


def narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert a module's weights in place, one tensor at a time; Snake keeps float32 (see there)."""
    for layer in module.modules():
        if not isinstance(layer, Snake):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def check_near(
    found: Mapping[str, torch.Tensor], true: Mapping[str, torch.Tensor], *, precision: str, device: torch.device
) -> None:
    """Refuse a precision whose kernels compute something else here than float32's, as some processors' do.

    Raises `CodecError` naming the encoder and its error.
    """
    for name, expected in true.items():
        error = ((found[name] - expected).norm() / expected.norm()).item()
        if not error <= _ERROR_MAX:
            raise CodecError(
                f"precision {precision}: the {name} encoder is {error:.2f} off float32 on this {device.type} "
                f"(root mean square; allowed: {_ERROR_MAX}): its "
                "kernels compute wrongly here; use float32, or another host"
            )
