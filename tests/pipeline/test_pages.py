from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.pages import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Pages


def address(array: NDArray[np.uint8]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "look",
    [
        lambda array: array,
        lambda array: array.view(np.int16)[10:20],
        lambda array: array.data.toreadonly(),
        lambda array: np.frombuffer(array.data.toreadonly(), np.int16, offset=44),
        lambda array: torch.from_numpy(array.view(np.float32)),
    ],
)
def test_a_block_is_used_again_once_nobody_looks_at_it(look: Callable[[NDArray[np.uint8]], object]) -> None:
    pages = Pages()
    array = pages.take(300_000)
    where, view = address(array), look(array)
    del array
    assert pages.idle_bytes == 0
    assert address(pages.take(300_000)) != where
    del view
    assert where in {address(array) for array in [pages.take(310_000), pages.take(310_000)]}


@pytest.mark.parametrize("num_bytes", [0, 1, BLOCK_BYTES_MIN - 1, BLOCK_BYTES_MIN, 300_001, BLOCK_BYTES_MAX])
def test_arrays_have_the_size_asked_for_and_are_writable(num_bytes: int) -> None:
    array = Pages().take(num_bytes)
    array[:] = 7
    assert array.nbytes == num_bytes
    assert array.dtype == np.uint8


def test_small_and_huge_blocks_are_not_kept() -> None:
    pages = Pages()
    for num_bytes in (BLOCK_BYTES_MIN - 1, BLOCK_BYTES_MAX + 1):
        pages.take(num_bytes)
    assert pages.idle_bytes == 0


def test_idle_blocks_are_bounded_and_sizes_out_of_use_go_first() -> None:
    pages = Pages(idle_bytes_max=4 << 20)
    old = [pages.take(1 << 20) for _ in range(4)]
    new = [pages.take(1 << 19) for _ in range(4)]
    del old
    assert pages.idle_bytes == 4 << 20
    del new
    assert pages.idle_bytes == 4 << 20
    kept = [pages.take(1 << 19) for _ in range(4)]
    assert pages.idle_bytes == 2 << 20
    del kept


def test_threads_never_share_a_block() -> None:
    pages = Pages()

    def work(mark: int) -> None:
        for _ in range(200):
            array = pages.take(BLOCK_BYTES_MIN)
            array[:] = mark
            gc.collect(0)
            assert (array == mark).all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
