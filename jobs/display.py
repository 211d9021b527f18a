"""Progress of a run: a live line on a terminal, plain lines elsewhere. Always on stderr: stdout is for results."""

from __future__ import annotations

import math
import sys
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from jobs.terminal import duration, hours, visible
from jobs.view import RunView
from pipeline.records import Counts

PLAIN_EVERY_S = 10.0
"""A plain log gets a line so often, and one at each warning."""


class Display(Protocol):
    """Where a run shows itself."""

    def update(self, view: RunView, now_s: float) -> None:
        """Show the numbers as they are now."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def summary(view: RunView, now_s: float) -> str:
    """The numbers in one line."""
    eta_s = view.eta_s(now_s)
    parts = [
        f"shards {view.num_done_before + view.num_committed}/{view.num_shards}",
        f"audio {hours(view.audio_s)}",
        f"{view.recent_rate() or view.times_real_time(now_s):.1f}x real time",
        f"rows {view.num_rows}",
        f"rejects {view.num_rejected}",
        f"replicas {view.num_replicas}/{view.num_replicas_wanted}",
        f"ETA {duration(eta_s)}",
    ]
    if view.num_failed:
        parts.insert(1, f"failed {view.num_failed}")
    if view.num_retries:
        parts.insert(1, f"retries {view.num_retries}")
    if view.draining:
        parts.append("draining")
    return "  ".join(parts)


def rejected(counts: Counts) -> str:
    """The rejects by reason, in words."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.rejects.items())
    return f"samples rejected: {reasons or 'none'}"


class PlainDisplay:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._last_s = -math.inf

    def update(self, view: RunView, now_s: float) -> None:
        """Print when the last line is old enough; nothing before the first replica is up."""
        if view.num_replicas and now_s - self._last_s >= PLAIN_EVERY_S:
            self._last_s = now_s
            self.say(summary(view, now_s))

    def say(self, line: str) -> None:
        """Print a line."""
        sys.stderr.write(visible(line) + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Nothing to leave."""


class RichDisplay:
    """A bar and a line of numbers that redraw in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def update(self, view: RunView, now_s: float) -> None:
        """Redraw."""
        self._live.update(self._draw(view, now_s))

    def say(self, line: str) -> None:
        """Print above the live part."""
        self._console.print(Text(visible(line)))

    def close(self) -> None:
        """Take the live part away."""
        self._live.stop()

    def _draw(self, view: RunView, now_s: float) -> Group:
        share = (view.num_done_before + view.num_committed) / max(1, view.num_shards)
        width = max(10, min(40, self._console.width // 3))
        filled = int(width * share)
        bar = Text.assemble(("━" * filled, "green"), ("━" * (width - filled), "bright_black"), f" {100 * share:.0f}%")
        return Group(bar, Text(summary(view, now_s)))


def open_display(plain: bool = False) -> Display:
    """Rich on a terminal, plain lines elsewhere or when asked for."""
    console = Console(stderr=True)
    return RichDisplay(console) if console.is_terminal and not plain else PlainDisplay()
