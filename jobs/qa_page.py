"""One HTML page to look at and listen to: it holds its audio and its plots, and loads nothing from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment
from numpy.typing import NDArray

from jobs.qa import ComparedClip, QaReport
from jobs.qa_plots import codebook_use, distribution, spectrograms
from jobs.qa_scores import unit

MEASURES = {
    "stoi": ("STOI", "intelligibility, to 1"),
    "pesq": ("PESQ-WB", "quality, 1 to 4.64"),
    "log_mel_db": ("log-mel distance", "dB, 0 is the same"),
}
SPECTROGRAMS_MAX = 12
"""Of the worst clips: each is some hundred kilobytes."""

# Keys and details come from strangers' shards: jinja2 escapes them, and the policy forbids all that is not in the page.
TEMPLATE = Path(__file__).with_name("qa_page.html")


def page(report: QaReport) -> str:
    """The page's text."""
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        version=version("voxmill"),
        scores=list(_score_rows(report)),
        plots={name: distribution(_by_rate(report, measure), name) for measure, (name, _) in MEASURES.items()},
        use=codebook_use(report.use.codebooks),
        clips=[_shown(clip, report, has_image=index < SPECTROGRAMS_MAX) for index, clip in enumerate(report.clips)],
    )


def _by_rate(report: QaReport, measure: str) -> dict[int, list[float]]:
    return {rate_hz: report.values(rate_hz, measure) for rate_hz in report.decoders}


def _score_rows(report: QaReport) -> Iterator[dict[str, Any]]:
    for measure, (name, about) in MEASURES.items():
        for rate_hz, found in _by_rate(report, measure).items():
            if found:
                worst, best = (max, min) if measure == "log_mel_db" else (min, max)
                values = [float(np.mean(found)), worst(found), float(np.median(found)), best(found)]
                yield {"name": name, "about": about, "rate": rate_hz, "num": len(found), "figures": values}


def _shown(clip: ComparedClip, report: QaReport, *, has_image: bool) -> dict[str, Any]:
    waveforms: dict[str, tuple[NDArray[np.float32], int]] = {}
    if not isinstance(clip.source, str):
        waveforms["source"] = (clip.source, report.source_rate_hz)
    for rate_hz, row in clip.decoded.items():
        waveforms[f"{rate_hz} Hz"] = (unit(row.pcm), rate_hz)
    players = [
        {"name": name, "audio": _flac(waveform, rate_hz), "scores": _scores_line(clip, name)}
        for name, (waveform, rate_hz) in waveforms.items()
    ]
    longest = max(len(waveform) / rate_hz for waveform, rate_hz in waveforms.values())
    return {
        "key": clip.key,
        "shard_id": clip.drawn.record.shard_id,
        "position": clip.drawn.position,
        "duration_s": longest,
        "missing": clip.source if isinstance(clip.source, str) else "",
        "players": players,
        "image": spectrograms(waveforms) if has_image else "",
    }


def _scores_line(clip: ComparedClip, name: str) -> str:
    for rate_hz, scores in clip.scores.items():
        if name == f"{rate_hz} Hz":
            found = [(label, getattr(scores, measure)) for measure, (label, _) in MEASURES.items()]
            return ", ".join(
                f"{label} {'not to be had' if value is None else f'{value:.2f}'}" for label, value in found
            )
    return ""


def _flac(waveform: NDArray[np.float32], rate_hz: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(file.getvalue()).decode("ascii")
