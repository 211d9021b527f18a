"""A device and how it computes: what every codec here asks of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from codec.base import CodecError

_DEVICES = ("cpu", "cuda")


def check_device(device: str) -> torch.device:
    """The device of that name. Raises `ValueError` on another kind, `CodecError` when this host has none."""
    kind, _, index = device.partition(":")
    if kind not in _DEVICES or (index and not index.isdigit()):
        raise ValueError(f"found device {device!r}; allowed: cpu, cuda, cuda:<number>")
    num_gpus = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= num_gpus:
        raise CodecError(
            f"device {device!r} is asked for but torch sees {num_gpus} CUDA devices here; "
            "use device cpu, or a host, driver and torch build with CUDA"
        )
    return torch.device(device)


@contextmanager
def arithmetic(*, tf32: bool) -> Iterator[None]:
    """Float32 products in full precision, or with tf32 inputs; deterministic kernels either way; no caller's autocast.

    The switches are the process's: two codecs of different precision must not compute at the same time in it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
