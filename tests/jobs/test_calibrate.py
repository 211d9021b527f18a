"""What a calibration tells, of a codec whose cost is known, by a clock that only that codec moves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from infra.bench.shards import write_shard
from jobs.calibrate import CalibratedPlanReport, calibrated_plan, num_replicas_for
from pipeline.config import load_config
from pipeline.errors import RefusedError

RATE_HZ = 16_000
CLIP_S = 1.92
"""32 whole frames, so that a batch of such clips has no padding."""

COST_S = 0.01
CODEC = f"calibrated:cost_s={COST_S},per=audio_s"


class Clock:
    """Time passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("codec.calibrated.time", SimpleNamespace(sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of 100 clips, or 192 s, each."""
    audio = tmp_path / "noise.wav"
    soundfile.write(audio, np.random.default_rng(0).normal(0, 0.1, round(CLIP_S * RATE_HZ)), RATE_HZ)
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(4):
        write_shard(folder / f"{index}.tar", [audio], num_clips=100)
    return folder


def calibrated(shards: Path, clock: Clock, *, measure_s: float = 60.0, **settings: Any) -> CalibratedPlanReport:
    deadline_h = settings.pop("deadline_h", None)
    values = {"input": f"{shards}/", "output": f"{shards}-out", "codec": CODEC, "executor": "ray", **settings}
    return calibrated_plan(load_config(values), deadline_h=deadline_h, clock=clock, measure_s=measure_s)


def test_the_rate_is_the_codecs(shards: Path, clock: Clock) -> None:
    report = calibrated(shards, clock, replicas=2)
    found = report.calibration
    assert found.times_real_time == pytest.approx(1 / COST_S)
    assert found.measured_audio_s == pytest.approx(4 * 192)
    assert found.measured_s == pytest.approx(4 * 192 * COST_S)
    assert report.plan.estimated_audio_s == pytest.approx(4 * 192, rel=0.05)
    assert found.estimated_run_s == pytest.approx(4 * 192 * COST_S / 2, rel=0.05)
    assert not Path(f"{shards}-out").exists()


def test_it_ends_with_the_batch_under_way_when_its_time_is_over(shards: Path, clock: Clock) -> None:
    found = calibrated(shards, clock, measure_s=1.0).calibration
    num_clips = 7 + 31 + 31  # of the shard's 100: 31 go into a batch of 60 s
    assert found.measured_s == pytest.approx(num_clips * CLIP_S * COST_S)
    assert found.num_batches == 3
    assert found.times_real_time == pytest.approx(1 / COST_S)


def test_a_deadline_tells_the_replicas(shards: Path, clock: Clock) -> None:
    second_h = 1 / 3600  # all take 7.7 s, one shard 1.9 s
    in_time = calibrated(shards, clock, deadline_h=4 * second_h)
    assert in_time.calibration.num_replicas_for_deadline == 3
    assert "deadline   3 replicas end within" in in_time.lines()[-1]
    too_late = calibrated(shards, clock, deadline_h=second_h)
    assert too_late.calibration.num_replicas_for_deadline is None
    assert "no number of replicas" in too_late.lines()[-1]


@pytest.mark.parametrize(
    ("deadline_s", "replicas"), [(99, 2), (100, 1), (50, 3), (20, 9), (11, 10), (10, 10), (9.9, None)]
)
def test_replicas_for_ten_shards_of_ten_seconds(deadline_s: float, replicas: int | None) -> None:
    assert num_replicas_for(deadline_s, 100, 10, num_shards=10) == replicas


def test_no_clip_is_refused(tmp_path: Path, clock: Clock) -> None:
    text = tmp_path / "a.txt"
    text.write_text("no audio")
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "0.tar", [text], num_clips=3)
    with pytest.raises(RefusedError, match="no clip of the input"):
        calibrated(tmp_path / "in", clock)


def test_the_command_says_it_in_json_too(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import main

    codec = "calibrated:"
    places = ["--input", f"{shards}/", "--output", f"{shards}-out", "--codec", codec]
    assert main(["plan", *places, "--deadline-h", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibration"]["num_replicas_for_deadline"] == 1
    assert found["num_shards"] == 4
    assert main(["plan", *places, "--json"]) == 0
    assert "calibration" not in json.loads(capsys.readouterr().out)
