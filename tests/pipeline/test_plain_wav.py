"""A plain WAV file comes out the same whether it is looked at or decoded, as a clip or as a reject."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import decode_audio
from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.decoder import PLAIN_MEMORY_SHARE, DecoderPool
from pipeline.plain_wav import plain_samples
from pipeline.segments import cut
from pipeline.settings import DecodingConfig
from pipeline.types import Clip, Pcm, Reject, Sample, scale_into
from tests.containers import with_length
from tests.fuzz import audio as fuzzed

RATE_HZ = 16_000
LIMITS = ClipLimits(clip_ms_min=10, clip_s_max=0.2)
Outcome = bytes | tuple[str, str]


def wav(num_samples: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, num_samples).astype(np.int16)
    soundfile.write(file, samples, RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


def looked_at(audio: bytes) -> Outcome | None:
    try:
        samples = plain_samples(audio, RATE_HZ, LIMITS)
    except AudioRejectedError as error:
        return error.reason.value, error.detail
    if samples is None:
        return None
    waveform = np.empty(len(samples), np.float32)
    scale_into(samples, waveform)
    return waveform.tobytes()


def decoded(audio: bytes) -> Outcome:
    blocks: list[Pcm] = []
    try:
        found = decode_audio(audio, RATE_HZ, LIMITS, blocks.append)
    except AudioRejectedError as error:
        return error.reason.value, error.detail
    assert (found.source_sample_rate_hz, found.source_num_channels) == (RATE_HZ, 1)
    samples = np.concatenate(blocks)
    waveform = np.empty(len(samples), np.float32)
    scale_into(samples, waveform)
    return waveform.tobytes()


@pytest.mark.parametrize("num_samples", [1, 159, 160, 161, 3199, 3200, 3201, 40_000])
def test_plain_files_are_known_and_come_out_as_decoded(num_samples: int) -> None:
    found = looked_at(wav(num_samples))
    assert found is not None
    assert found == decoded(wav(num_samples))


def test_every_value_is_scaled_as_libsndfile_does_it() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.arange(-(1 << 15), 1 << 15).astype(np.int16), RATE_HZ, format="WAV")
    samples = plain_samples(file.getvalue(), RATE_HZ, ClipLimits(0, 60))
    assert samples is not None
    waveform = np.empty(len(samples), np.float32)
    scale_into(samples, waveform)
    expected, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    assert waveform.tobytes() == expected.tobytes()


@pytest.mark.parametrize("more", [-8, -1, 1, 8, 10_000])
def test_files_of_another_length_than_declared_are_decoded(more: int) -> None:
    assert looked_at(with_length(wav(1000), more)) is None


@pytest.mark.parametrize("num_bytes", [0, 1, 43, 44, 45, 46, 1043, 2043])
def test_cut_files_are_decoded(num_bytes: int) -> None:
    assert looked_at(wav(1000)[:num_bytes]) is None


FIELDS = ((4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4))
"""Where the numbers of the header stand, and their bytes."""


@st.composite
def nearly_plain(draw: st.DrawFn) -> bytes:
    """A plain file, most with fields of the header changed, cut, or with something behind."""
    file = bytearray(wav(draw(st.sampled_from([0, 1, 100, 160, 1000, 3200, 3201])), draw(st.integers(0, 3))))
    for _ in range(draw(st.integers(0, 2))):
        at, size = draw(st.sampled_from(FIELDS))
        old = int.from_bytes(file[at : at + size], "little")
        near = st.sampled_from([old - 1, old + 1, old + 2, 2 * old, 0, 1, 3, 8, 24, 0xFFFE, 0xFFFFFFFF])
        file[at : at + size] = (draw(near) % (1 << 8 * size)).to_bytes(size, "little")
    if draw(st.booleans()):
        at = draw(st.integers(0, 43))
        file[at] = draw(st.integers(0, 255))
    chunk = draw(st.sampled_from([b"", b"", b"\0", b"TAG" + bytes(125), b"LIST" + struct.pack("<I", 4) + b"INFO"]))
    return bytes(file[: draw(st.integers(0, len(file)))] if draw(st.integers(0, 5)) == 5 else file + chunk)


@settings(deadline=None, max_examples=500)
@given(nearly_plain() | fuzzed.files().map(lambda file: file.audio))
def test_whatever_is_taken_for_plain_comes_out_as_decoded(audio: bytes) -> None:
    found = looked_at(audio)
    assert found is None or found == decoded(audio)


def sample(key: str, audio: bytes) -> Sample:
    return Sample(key, f"{key}.wav", "wav", audio, {"txt": key.encode()})


def test_the_pool_gives_plain_files_in_their_place() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1000, np.int16), RATE_HZ, format="FLAC", subtype="PCM_24")
    samples = [
        *(sample("a", wav(1000)), sample("b", file.getvalue()), sample("c", wav(1001)), sample("d", wav(1))),
        *(sample("e", file.getvalue()), sample("f", wav(1002))),
    ]
    with DecoderPool(DecodingConfig(workers=1), RATE_HZ) as pool:
        found = list(pool.decode(samples))
    assert [item.key for item in found] == ["a", "b", "c", "d", "e", "f"]
    kinds = [item.reason.value if isinstance(item, Reject) else item.pcm.dtype.name for item in found]
    assert kinds == ["int16", "float32", "int16", "too_short", "float32", "int16"]
    assert isinstance(found[0], Clip)
    assert found[0].waveform.tobytes() == soundfile.read(io.BytesIO(samples[0].audio), dtype="float32")[0].tobytes()
    assert (found[0].source_sample_rate_hz, found[0].source_num_channels) == (RATE_HZ, 1)
    assert found[0].sidecars == {"txt": b"a"}
    assert isinstance(found[3], Reject)
    assert (found[3].member, found[3].num_bytes) == ("d.wav", 46)


def test_a_plain_file_that_a_decoder_might_have_no_memory_for_is_left_to_it() -> None:
    config = DecodingConfig(workers=1, memory_bytes_max=1 << 26)
    small, large = wav(1000), wav((1 << 26) // PLAIN_MEMORY_SHARE // 2)
    with DecoderPool(config, RATE_HZ) as pool:
        found = list(pool.decode([sample("a", small), sample("b", large)]))
    for clip, audio, is_view in zip(found, [small, large], [True, False], strict=True):
        assert isinstance(clip, Clip)
        assert np.shares_memory(clip.pcm, np.frombuffer(audio, np.uint8)) is is_view


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40_000), st.integers(0, 3), st.sampled_from([1, 3, 300, 1 << 15]))
def test_cuts_are_where_they_are_in_float32(num_samples: int, seed: int, loudness: int) -> None:
    pcm = np.random.default_rng(seed).integers(-loudness, loudness, num_samples).astype(np.int16)
    waveform = np.empty(num_samples, np.float32)
    scale_into(pcm, waveform)
    how = {"sample_rate_hz": 1000, "frame_size": 60, "segment_s": 6.0, "search_s": 2.0}
    assert cut(pcm, **how) == cut(waveform, **how)  # type: ignore[arg-type]
