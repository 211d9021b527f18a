"""The matrix product of a device, which speeds are told as a share of."""

from __future__ import annotations

import time
from typing import Final

import torch

SIZE: Final = 2048
SPELL_S: Final = 0.25
DTYPES: Final = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MatrixProduct:
    """The square product on one device in one precision, counted by all of its work over all of its time."""

    def __init__(self, device: torch.device, precision: str, *, size: int = SIZE) -> None:
        self._device = device
        self._arithmetic = "high" if precision == "tf32" else "highest"
        self._a, self._b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self._num = 0
        self.spent_s = 0.0
        self._multiply(1)  # what a device loads once does not count

    def spell(self, spell_s: float = SPELL_S) -> None:
        """Multiply for so long, at least three times."""
        started_s = time.perf_counter()
        while (elapsed_s := time.perf_counter() - started_s) < spell_s or not elapsed_s:
            num = 3 if self._device.type == "cpu" else 100
            self._multiply(num)
            self._num += num
        self.spent_s += elapsed_s

    @property
    def gflops(self) -> float:
        """GFLOP/s over all spells, multiplications and additions."""
        return 2e-9 * len(self._a) ** 3 * self._num / self.spent_s

    def _multiply(self, num: int) -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self._arithmetic)
        try:
            for _ in range(num):
                torch.mm(self._a, self._b, out=self._out)
        finally:
            torch.set_float32_matmul_precision(before)
        wait_for(self._device)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
