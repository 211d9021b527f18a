"""What may be written to a terminal: names come from a bucket, and an escape sequence in one must do nothing there."""

from __future__ import annotations

import re

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(line: str) -> str:
    r"""The line with its control and direction characters escaped as `\x1b`, but for tabs and line ends."""
    return _CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], line)
