"""The plots of a `voxmill qa` page, each an SVG image in a data URI; the same data give the same bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jobs.qa_codebooks import Codebook
from jobs.qa_scores import at_scored_rate, log_mel_db

COLOURS: Final = ("#2f6fb3", "#d1702a", "#4a9a5c", "#8b5aa8")
_RANGE_DB: Final = 70


def distribution(values: Mapping[int, Sequence[float]], name: str) -> str:
    """How a measure is distributed over the clips, by rate."""
    with _styled():
        figure = Figure(figsize=(3.6, 2.4), layout="constrained")
        axes = figure.subplots()
        shown = {rate_hz: found for rate_hz, found in values.items() if found}
        if shown:
            labels = [f"{rate_hz} Hz" for rate_hz in shown]
            axes.hist(list(shown.values()), bins=12, label=labels, color=COLOURS[: len(shown)])
            axes.legend(frameon=False)
        axes.set_xlabel(name)
        axes.set_ylabel("clips")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return _data_uri(figure)


def codebook_use(codebooks: Sequence[Codebook]) -> str:
    """The share of all ids that the commonest entries have, codebook by codebook."""
    with _styled():
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        axes = figure.subplots()
        for codebook, colour in zip(codebooks, COLOURS * len(codebooks), strict=False):
            counts = np.sort(codebook.counts)[::-1]
            entries = np.arange(1, len(counts) + 1) / len(counts)
            axes.plot(entries, np.cumsum(counts) / max(1, counts.sum()), label=codebook.name, color=colour)
        axes.plot([0, 1], [0, 1], ":", color="grey", label="all alike")
        axes.set_xlabel("share of entries, commonest first")
        axes.set_ylabel("share of ids")
        axes.legend(frameon=False)
        return _data_uri(figure)


def spectrograms(waveforms: Mapping[str, tuple[NDArray[np.float32], int]]) -> str:
    """Mel spectra of one clip, one above the other: waveforms with their rates by name."""
    with _styled():
        figure = Figure(figsize=(7.2, 1.3 * len(waveforms)), layout="constrained")
        for axes, (name, (waveform, rate_hz)) in zip(
            figure.subplots(len(waveforms), 1, sharex=True, squeeze=False)[:, 0], waveforms.items(), strict=True
        ):
            image = log_mel_db(at_scored_rate(waveform, rate_hz))
            top = float(image.max())
            duration_s = len(waveform) / rate_hz
            extent = (0.0, duration_s, 0.0, float(len(image)))
            axes.imshow(
                image, origin="lower", aspect="auto", extent=extent, vmin=top - _RANGE_DB, vmax=top, cmap="magma"
            )
            axes.set_ylabel(name)
            axes.set_yticks([])
        axes.set_xlabel("s")
        return _data_uri(figure)


def _styled() -> AbstractContextManager[None]:
    return mpl.rc_context(
        {"svg.hashsalt": "voxmill", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )


def _data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
