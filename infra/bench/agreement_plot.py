"""The picture of `bench streaming`: how many semantic ids of a stream are the whole clip's, against its look-ahead."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from codec.base import CodecError


def check_matplotlib() -> None:
    """Raises `CodecError` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise CodecError("--plots needs matplotlib; install it with: pip install 'voxmill[plots]'")


def write_plot(agreement: Mapping[float, Mapping[float, float]], folder: Path, *, codec: str) -> Path:
    """`folder`/streaming.png: a line for each context in seconds, of shares by look-ahead in seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for context_s, by_look_ahead in agreement.items():
        axes.plot(list(by_look_ahead), list(by_look_ahead.values()), marker="o", label=f"context of {context_s:g} s")
    axes.set(
        xlabel="look-ahead (s)",
        ylabel="semantic ids as of the whole clip (share)",
        ylim=(0.0, 1.02),
        title=f"codec: {Path(codec).name}",
    )
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "streaming.png"
    figure.savefig(path, dpi=150)
    return path
