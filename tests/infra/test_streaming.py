"""The example and the benchmark of streams, on the golden checkpoint."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec.base import CodecError, Tokens
from codec.longcat.checkpoint import open_checkpoint
from codec.longcat.model import LongCatCodec
from codec.sources import LocalFolder
from infra.bench import agreement_plot, streaming
from infra.examples import microphone
from tests.codec.golden import GOLDEN, Expected

CLIP = GOLDEN / "clip_16k_short_350ms.flac"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The example and the benchmark set the process's threads; the codec of the tests takes one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wav_of(clip: Path, folder: Path) -> Path:
    samples, rate_hz = soundfile.read(clip, dtype="int16")
    soundfile.write(folder / "speech.wav", samples, rate_hz)
    return folder / "speech.wav"


@pytest.mark.parametrize("sample_rate_hz", [16000, 24000])
def test_the_microphone_s_speech_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sample_rate_hz: int
) -> None:
    """All of it: what one piece after the other gives is what the whole clip's tokens decode to."""
    heard = tmp_path / "heard.wav"
    command = ["microphone", str(wav_of(CLIP, tmp_path)), str(heard), "--codec", str(GOLDEN)]
    monkeypatch.setattr(sys, "argv", [*command, "--sample-rate-hz", str(sample_rate_hz)])
    microphone.main()
    assert capsys.readouterr().out == f"6 frames of 60 ms -> {heard}\n"
    samples, rate_hz = soundfile.read(heard, dtype="float32")
    assert rate_hz == sample_rate_hz
    expected = Expected(GOLDEN / "expected.npz")
    name = "16k_short_350ms"
    tokens = Tokens(expected[f"{name}/semantic"][None], expected[f"{name}/acoustic"][None], torch.tensor([6]))
    whole = LongCatCodec(open_checkpoint(LocalFolder(GOLDEN))).decode(tokens, sample_rate_hz)[0].numpy()
    # The clip is shorter than the look-ahead of the semantic ids: they are the whole clip's. The WAV has 16 bits.
    np.testing.assert_allclose(samples, whole, atol=1e-4)


def test_another_rate_is_refused(tmp_path: Path) -> None:
    codec = LongCatCodec(open_checkpoint(LocalFolder(GOLDEN)))
    with pytest.raises(CodecError, match=r"clip_8k_mono\.flac is at 8000 Hz; give one at the codec's 16000 Hz"):
        microphone.speak_and_hear(codec, GOLDEN / "clip_8k_mono.flac", tmp_path / "heard.wav", 24000)
    assert not (tmp_path / "heard.wav").exists()
    source = tmp_path / "own.flac"
    source.write_bytes((GOLDEN / "clip_16k_mono.flac").read_bytes())
    with pytest.raises(CodecError, match="give another target"):
        microphone.speak_and_hear(codec, source, source, 24000)
    assert source.read_bytes() == (GOLDEN / "clip_16k_mono.flac").read_bytes()


def test_the_readme_s_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    section = (root / "README.md").read_text(encoding="utf-8").partition("## Streaming")[2]
    example = re.search(r"^```python\n(.*?)^```", section, re.M | re.S)
    assert example
    monkeypatch.chdir(root)
    names: dict[str, Any] = {}
    exec(example.group(1), names)
    assert sum(part.shape[1] for part in names["heard"]) == 47 * 1440


def measured(tmp_path: Path, *flags: str) -> dict[str, float]:
    (tmp_path / "speech").mkdir()
    shutil.copy(CLIP, tmp_path / "speech")
    parser = argparse.ArgumentParser()
    streaming.add_flags(parser)
    small = ["--codec", str(GOLDEN), "--speech", str(tmp_path / "speech"), "--audio-s", "0.6", "--threads", "1"]
    small += ["--agreement-audio-s", "0.3", "--look-ahead-s", "0", "0.3", "--hop-frames", "1"]
    report = streaming.bench(parser.parse_args([*small, *flags]))
    return {figure.name: figure.value for figure in report.figures}


def test_the_benchmark_tells_latency_speed_and_agreement(tmp_path: Path) -> None:
    figures = measured(tmp_path)
    assert figures["encode acoustic: look-ahead"] == pytest.approx(448.0)
    assert figures["decode 24k_4codebooks: look-ahead"] == pytest.approx(180.0)
    assert figures["decode 16k_4codebooks: look-ahead"] == pytest.approx(568.25)
    # Look-ahead counts in whole chunks of 60 ms, and computing takes a while.
    assert figures["encode both streams: latency, look-ahead in chunks and median computation"] > 480.0
    assert all(value > 0 for name, value in figures.items() if name.endswith("real-time factor"))
    ahead = "semantic ids as of the whole clip, 4 s of context, {} s ahead"
    assert 0 < figures[ahead.format("0")] < figures[ahead.format("0.3")] == 1.0


def test_the_agreement_is_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured(tmp_path, "--plots", str(tmp_path / "plots"), "--context-s", "1", "4")
    assert (tmp_path / "plots" / "streaming.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_an_error_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_plot, "find_spec", lambda _: None)
    monkeypatch.setattr(streaming, "load_codec", None)
    with pytest.raises(CodecError, match=r"pip install 'voxmill\[plots\]'"):
        measured(tmp_path, "--plots", str(tmp_path / "plots"))
