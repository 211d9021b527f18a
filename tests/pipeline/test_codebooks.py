"""How many acoustic codebooks a clip gets: the setting, the choice, what it saves, and rows cut to it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from codec.base import CodecInfo, Tokens
from codec.registry import codec_info, load_codec
from pipeline.codebooks import AutoCodebooks, Savings
from pipeline.config import JobConfig, load_config
from pipeline.encoder import Encoder, Progress
from pipeline.errors import CodecContractError, ConfigError
from pipeline.fingerprint import fingerprint_parts
from pipeline.settings import BatchingConfig
from pipeline.types import Clip, TokenRow

RATE_HZ = 16000
JOB = {"input": "/in/a.tar", "output": "/out", "codec": "calibrated:"}


def config(setting: object, **more: object) -> JobConfig:
    return load_config({**JOB, "num_acoustic_codebooks": setting, **more})


@pytest.mark.parametrize("text", ["auto:residual=0.05", "auto:residual=5e-2", "auto:residual=.050"])
def test_a_share_is_one_however_it_is_written(text: str) -> None:
    found = config(text)
    assert found.auto_codebooks == AutoCodebooks(0.05)
    assert found.model_dump(mode="json")["num_acoustic_codebooks"] == "auto:residual=0.05"
    assert load_config({**JOB, **found.model_dump(mode="json")}) == found


@pytest.mark.parametrize("setting", [2, "2", 2.0])
def test_a_number_stays_a_number(setting: object) -> None:
    found = config(setting)
    assert (found.num_acoustic_codebooks, found.auto_codebooks) == (2, None)
    assert found.model_dump(mode="json")["num_acoustic_codebooks"] == 2


@pytest.mark.parametrize(
    "setting",
    [
        "auto",
        "auto:",
        "auto:residual",
        "auto:residual=",
        "auto:residual=0",
        "auto:residual=1",
        "auto:residual=-0.1",
        "auto:residual=nan",
        "auto:residual=1e-999",
        "auto:residual=0.1,max=2",
        "auto:energy=0.1",
        "automatic",
        "two",
        0,
        -1,
        1.5,
        [2],
        {"residual_max": 0.5},
    ],
)
def test_what_is_neither_is_refused_with_what_is_allowed(setting: object) -> None:
    with pytest.raises(ConfigError) as refused:
        config(setting)
    message = str(refused.value)
    assert "1 fault(s)" in message
    assert f"num_acoustic_codebooks: found {setting!r}; allowed: a whole number from 1, or auto:residual=X" in message


def test_it_needs_the_acoustic_stream_and_its_own_column() -> None:
    with pytest.raises(ConfigError, match="streams has no 'acoustic'"):
        config("auto:residual=0.1", streams="semantic")
    with pytest.raises(ConfigError, match="carry has 'num_acoustic_codebooks'"):
        config("auto:residual=0.1", carry="num_acoustic_codebooks")
    assert config(2, carry="num_acoustic_codebooks").carry == ("num_acoustic_codebooks",)


def test_the_share_is_part_of_the_fingerprint_and_a_fixed_number_s_parts_stay() -> None:
    info = codec_info("calibrated:")

    def parts(setting: object) -> dict[str, Any]:
        return fingerprint_parts(config(setting), info, "cpu", has_media=False)

    own, others, fixed = parts("auto:residual=0.1"), parts("auto:residual=0.2"), parts(None)
    assert {name for name in own if own[name] != others[name]} == {"acoustic_residual_max"}
    assert {**fixed, "acoustic_residual_max": 0.1} == own
    assert (fixed["num_acoustic_codebooks"], parts(2)["num_acoustic_codebooks"]) == (3, 2)
    assert "acoustic_residual_max" not in fixed


@pytest.mark.parametrize(
    ("energies", "residual_max", "chosen"),
    [
        ([100, 50, 10, 1], 0.5, 1),  # as much as allowed is little enough
        ([100, 50, 10, 1], 0.4999, 2),
        ([100, 50, 10, 1], 0.05, 3),
        ([100, 50, 10, 1], 1e-9, 3),  # none suffices
        ([100, 50, 10, 1], 0.999999, 1),
        ([0, 0, 0, 0], 1e-9, 1),  # silence
        ([0, 1, 0, 0], 0.9, 2),  # a codebook that adds to nothing
        ([100, 120, 40, 60], 0.5, 2),  # it need not fall
        ([100, 120, 140, 160], 0.9, 3),
        ([100, 50], 0.1, 1),
    ],
)
def test_the_fewest_that_suffice_are_chosen(energies: list[float], residual_max: float, chosen: int) -> None:
    assert AutoCodebooks(residual_max).choose(energies) == chosen


def test_what_is_saved_is_counted_in_bits_of_the_codebooks_left_out() -> None:
    savings = Savings.of({1: 10, 3: 30}, (256, 16, 4))
    assert savings is not None
    assert savings.bits == 10 * (4 + 2)
    assert savings.share == pytest.approx(60 / (40 * 14))
    assert savings.line() == (
        "1 in 25.0%, 3 in 75.0% of 40 frames; 10.7% of the acoustic bits saved (0.000 MB before compression)"
    )
    assert Savings.of({}, (256, 16, 4)) is None
    assert Savings.of({2: 0}, (256, 16, 4)) is None


def noise(key: str, *parts: tuple[float, float]) -> Clip:
    """A clip of parts, each of so many seconds and so loud."""
    rng = np.random.default_rng(len(key))
    pcm = [rng.uniform(-loudness, loudness, round(seconds * RATE_HZ)) for seconds, loudness in parts]
    return Clip(key, np.concatenate(pcm).astype(np.float32), RATE_HZ, 1)


CLIPS = [
    noise("loud", (3, 1.0)),
    noise("quiet", (0.5, 0.1)),
    noise("faint", (7, 0.002)),
    noise("loud, then faint", (25, 1.0), (60, 0.002)),
    noise("faint, then quiet", (40, 0.002), (8, 0.1)),
    noise("silent", (2, 0.0)),
    noise("short", (0.01, 0.5)),
]
WANTED = {0.05: [1, 2, 3, 1, 2, 1, 2], 1e-9: [3, 3, 3, 3, 3, 1, 3], 1 - 1e-9: [1, 2, 3, 1, 2, 1, 1]}


def rows_of(
    codec: Any, residual_max: float | None, clips: list[Clip] = CLIPS, batching: BatchingConfig | None = None
) -> list[TokenRow]:
    auto = None if residual_max is None else AutoCodebooks(residual_max)
    encoder = Encoder(codec=codec, semantic=True, num_acoustic_codebooks=3, auto_codebooks=auto, clock=time.monotonic)
    rows: list[TokenRow] = []
    for window in encoder.windows(clips, batching or BatchingConfig()):
        rows += encoder.encode(window, ticket=1, progress=Progress())
    return rows


def plain_share(clip: Clip, num_codebooks: int) -> float:
    sizes = np.abs(np.rint(clip.pcm * 32767.0)).astype(np.int64)
    left = sizes % (1 << (15 - 3 * num_codebooks))
    return float((left**2).sum()) / max(1.0, float((sizes**2).sum()))


@pytest.mark.parametrize("residual_max", WANTED)
def test_each_clip_has_the_first_codebooks_of_all_as_many_as_it_needs_as_a_whole(residual_max: float) -> None:
    codec = load_codec("calibrated:")
    rows, fixed = rows_of(codec, residual_max), rows_of(codec, None)
    chosen = []
    for row, full, clip in zip(rows, fixed, CLIPS, strict=True):
        assert row.acoustic is not None
        assert full.acoustic is not None
        assert full.semantic is not None
        chosen.append(len(row.acoustic))
        assert np.array_equal(row.acoustic, full.acoustic[: len(row.acoustic)])
        assert np.array_equal(row.semantic, full.semantic)
        enough = [k for k in (1, 2, 3) if plain_share(clip, k) <= residual_max]
        assert len(row.acoustic) == min(enough, default=3)
    assert chosen == WANTED[residual_max]
    assert len(rows[3].segments) >= 3


def test_the_choice_is_the_same_in_any_batch_and_alone() -> None:
    codec = load_codec("calibrated:")
    together = rows_of(codec, 0.05)
    small = rows_of(codec, 0.05, batching=BatchingConfig(window_s=5, batch_s=30, batch_size_max=2))
    alone = [row for clip in CLIPS for row in rows_of(codec, 0.05, [clip])]
    for rows in (small, alone):
        for row, other in zip(rows, together, strict=True):
            assert np.array_equal(row.acoustic, other.acoustic)


class Tampered:
    """The calibrated codec with its energies tampered with, and a bound on the clips of a batch."""

    def __init__(self, tamper: Any = None, clips_max: int | None = None) -> None:
        self._codec, self._tamper, self._clips_max = load_codec("calibrated:"), tamper, clips_max

    @property
    def info(self) -> CodecInfo:
        return self._codec.info

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor, **asked: Any) -> Tokens:
        return self._codec.encode(waveforms, lengths, **asked)

    def encode_with_residuals(
        self, waveforms: torch.Tensor, lengths: torch.Tensor, **asked: Any
    ) -> tuple[Tokens, torch.Tensor]:
        if self._clips_max is not None and len(waveforms) > self._clips_max:
            raise torch.OutOfMemoryError("the device is full")
        tokens, energies = self._codec.encode_with_residuals(waveforms, lengths, **asked)  # type: ignore[attr-defined]
        return tokens, self._tamper(energies) if self._tamper else energies

    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        raise AssertionError("not asked for")


def test_a_batch_that_is_halved_changes_no_choice() -> None:
    for row, other in zip(rows_of(Tampered(clips_max=1), 0.05), rows_of(Tampered(), 0.05), strict=True):
        assert np.array_equal(row.acoustic, other.acoustic)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda e: e.float(), "float32"),
        (lambda e: e[:, :-1], "expected float64"),
        (lambda e: e[:-1], "expected float64"),
        (lambda e: e * math.nan, "not finite"),
        (lambda e: e + math.inf, "not finite"),
        (lambda e: e - 1e18, "negative"),
    ],
)
def test_energies_that_are_none_are_caught(tamper: Any, message: str) -> None:
    with pytest.raises(CodecContractError, match=message):
        rows_of(Tampered(tamper), 0.05)


def test_a_codec_that_cannot_tell_is_caught() -> None:
    class Silent:
        info = replace(load_codec("calibrated:").info, name="mute")
        encode = decode = Tampered.decode

    with pytest.raises(CodecContractError, match="codec mute cannot tell"):
        rows_of(Silent(), 0.05)
