"""How text and numbers are written for people, on a terminal or in a log.

Names come from a bucket, and an escape sequence in one must do nothing on a terminal.
"""

from __future__ import annotations

import math
import re

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(line: str) -> str:
    r"""The line with its control and direction characters escaped as `\x1b`, but for tabs and line ends."""
    return _CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], line)


def hours(seconds: float) -> str:
    """Audio time as people say it."""
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


def duration(seconds: float) -> str:
    """Wall time as h:mm:ss; unknown is `-`."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
