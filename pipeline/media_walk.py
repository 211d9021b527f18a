"""The containers of the `[media]` extra by name, and whether PyAV is there; needs none of it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from pipeline.media_adts import adts_track
from pipeline.media_matroska import matroska_track
from pipeline.media_mp4 import mp4_track
from pipeline.media_track import Container, Track, unreadable

HAS_MEDIA: Final = find_spec("av") is not None
"""Whether PyAV is installed; one that is broken fails where it is imported, not file by file."""

_WALKS: Final[dict[Container, Callable[[bytes], Track]]] = {
    "ADTS": adts_track,
    "MP4": mp4_track,
    "Matroska": matroska_track,
}


def walk(audio: bytes, container: Container) -> Track:
    """The one audio track of such a file, as its container tells it; raises `AudioRejectedError`."""
    try:
        return _WALKS[container](audio)
    except (ArithmeticError, ValueError, IndexError, struct.error) as error:
        # Sizes and places that no file has; whatever arithmetic they break, it is the file's fault.
        raise unreadable(f"its {container} structure cannot be ({error}); decode it to FLAC by another tool") from error
