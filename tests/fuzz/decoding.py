"""Real audio files with bytes changed, through real decoding processes."""

from __future__ import annotations

import atexit
import io
from collections.abc import Callable
from functools import cache

import numpy as np
import soundfile
from hypothesis import strategies as st

from pipeline.decoder import DecoderPool
from pipeline.settings import DecodingConfig
from pipeline.types import Clip, Reject, RejectReason, Sample
from tests.media import KINDS as MEDIA_KINDS
from tests.media import encoded

RATE_HZ = 16_000
KINDS = (
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("RF64", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "ULAW"), ("NIST", "PCM_16"), ("WAV", "IMA_ADPCM"),
)  # fmt: skip
SURE = frozenset(RejectReason) - {RejectReason.DECODER_TIMEOUT}
"""What may become of a file; a decoder that hangs is a find, since it costs every run a minute."""


def _file(kind: tuple[str, str]) -> bytes:
    file = io.BytesIO()
    container, subtype = kind
    samples = 0.3 * np.sin(np.arange(4_000)[:, None] / [7, 11])
    soundfile.write(file, samples, 48_000 if subtype == "OPUS" else 44_100, format=container, subtype=subtype)
    return file.getvalue()


@cache
def _files() -> tuple[bytes, ...]:
    return tuple(map(_file, KINDS))


@cache
def _media_files() -> tuple[bytes, ...]:
    """Of the extra `[media]`; a fragmented one too."""
    waveform = (0.3 * np.sin(np.arange(4_000) / [[7], [11]])).astype(np.float32)
    plain = [encoded(kind, waveform, 48_000) for kind in MEDIA_KINDS]
    options = {"movflags": "+empty_moov+delay_moov", "frag_duration": "30000"}
    return (*plain, encoded("m4a-aac", waveform, 48_000, options))


def damaged() -> st.SearchStrategy[bytes]:
    """A file with up to four places changed, most near its head; maybe cut."""
    return _damaged(_files)


def damaged_media() -> st.SearchStrategy[bytes]:
    """The same of a file of the extra `[media]`."""
    return _damaged(_media_files)


@st.composite
def _damaged(draw: st.DrawFn, files: Callable[[], tuple[bytes, ...]]) -> bytes:
    audio = bytearray(draw(st.sampled_from(files())))
    for _ in range(draw(st.integers(0, 4))):
        last = len(audio) - 1
        head, tail = st.integers(0, min(120, last)), st.integers(max(last - 700, 0), last)  # an index may be at the end
        at = draw(head | st.integers(0, last) | tail)
        new = draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]))
        audio[at : at + len(new)] = new
    return bytes(audio[: draw(st.integers(0, len(audio)))] if draw(st.integers(0, 5)) == 5 else audio)


@cache
def _pool() -> DecoderPool:
    pool = DecoderPool(DecodingConfig(workers=1, timeout_s=10.0, memory_bytes_max=1 << 29), RATE_HZ)
    atexit.register(pool.close)
    return pool.__enter__()


def check_audio(audio: bytes) -> str:
    """Raises `AssertionError` unless the file is a sound clip or a reject, and the same one again; how it ended."""
    sample = Sample("a", "a.wav", "wav", audio)
    first, second = _pool().decode([sample, sample])
    if isinstance(first, Reject):
        assert first.reason in SURE, first
        assert second == first
        return first.reason.value
    assert isinstance(first, Clip)
    assert isinstance(second, Clip)
    assert first.waveform.tobytes() == second.waveform.tobytes()
    assert np.isfinite(first.waveform).all()
    assert len(first.waveform)
    return "clip"
