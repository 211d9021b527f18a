"""Fixtures around the golden checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from codec.longcat.checkpoint import open_checkpoint
from codec.longcat.model import LongCatCodec
from codec.sources import LocalFolder
from tests.codec.golden import GOLDEN, Expected


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the golden checkpoint; not to be written to."""
    return GOLDEN


@pytest.fixture(scope="session")
def expected() -> Expected:
    return Expected(GOLDEN / "expected.npz")


@pytest.fixture(scope="session")
def codec() -> LongCatCodec:
    return LongCatCodec(open_checkpoint(LocalFolder(GOLDEN)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small models only lose by more threads, and on a busy machine wait for each of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint_copy(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of one's own with the golden encoder's files, and any others that are named."""

    def copy(*more: str) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for name in ("LongCatAudioCodec_encoder.pt", "LongCatAudioCodec_encoder_cmvn.npy", "config.json", *more):
            shutil.copyfile(GOLDEN / name, folder / name)
        return folder

    return copy
