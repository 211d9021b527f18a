from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from pipeline import audio as audio_module
from pipeline.audio import DecodedAudio, decode_audio
from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.containers_mp3 import walk_mp3, with_length
from pipeline.types import Pcm, RejectReason, scale_into

RATE_HZ = 16_000
LIMITS = ClipLimits(clip_ms_min=10, clip_s_max=60)

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav-8-bit": ("WAV", "PCM_U8"),
    "wav-24-bit": ("WAV", "PCM_24"),
    "wav-32-bit": ("WAV", "PCM_32"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-double": ("WAV", "DOUBLE"),
    "wavex": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the decoding processes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def waveform(num_samples: int = 2 * RATE_HZ) -> NDArray[np.float32]:
    """Noise that grows from silence, so that a bit rate that varies does vary."""
    generator = np.random.default_rng(0)
    growing = np.linspace(0, 0.2, num_samples)
    return (growing * generator.standard_normal(num_samples)).astype(np.float32)


def encoded(kind: str, samples: NDArray[np.float32] | None = None, rate_hz: int = RATE_HZ) -> bytes:
    file = io.BytesIO()
    container, subtype = FORMATS[kind]
    soundfile.write(file, waveform() if samples is None else samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def decoded(
    audio: bytes, rate_hz: int = RATE_HZ, limits: ClipLimits = LIMITS
) -> tuple[DecodedAudio, NDArray[np.float32]]:
    blocks: list[Pcm] = []
    result = decode_audio(audio, rate_hz, limits, blocks.append)
    assert {block.itemsize for block in blocks} == {result.sample_bytes}
    joined = np.concatenate(blocks)
    assert len(joined) == result.num_audio_samples
    samples = np.empty(len(joined), np.float32)
    scale_into(joined, samples)
    return result, samples


def rejected(audio: bytes, limits: ClipLimits = LIMITS) -> tuple[RejectReason, str]:
    with pytest.raises(AudioRejectedError) as caught:
        decode_audio(audio, RATE_HZ, limits, lambda _: None)
    assert str(caught.value) == caught.value.detail
    return caught.value.reason, caught.value.detail


def reason(audio: bytes, limits: ClipLimits = LIMITS) -> RejectReason:
    return rejected(audio, limits)[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_decodes_every_container_whole(kind: str) -> None:
    result, samples = decoded(encoded(kind))
    assert result == DecodedAudio(2 * RATE_HZ, result.sample_bytes, RATE_HZ, 1)
    assert samples.dtype == np.float32
    tolerance = {"vorbis": 0.4, "opus": 0.8, "mp3": 0.4, "wav-8-bit": 0.02}.get(kind, 1e-4)
    np.testing.assert_allclose(samples, waveform(), atol=tolerance)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_file_is_never_taken_for_a_whole_one(kind: str) -> None:
    whole = encoded(kind)
    lengths = [*range(1, 200, 7), *range(200, len(whole) - 1, len(whole) // 60), len(whole) - 1]
    reasons = [reason(whole[:length]) for length in lengths]
    assert set(reasons) <= {RejectReason.TRUNCATED, RejectReason.UNREADABLE, RejectReason.EMPTY}
    # Where a header is left to say what is missing, that is what is said.
    assert {found for found, length in zip(reasons, lengths, strict=True) if length > 6000} == {RejectReason.TRUNCATED}


@pytest.mark.parametrize("kind", ["flac", "mp3", "vorbis", "opus", "wav-float"])
def test_the_size_of_the_blocks_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(kind, rate_hz=24_000)
    _, whole = decoded(file)
    monkeypatch.setattr(audio_module, "_BLOCK_VALUES", 1000)
    np.testing.assert_array_equal(decoded(file)[1], whole)


def test_channels_are_averaged_after_resampling() -> None:
    stereo = np.stack([waveform(), -waveform()], axis=1)
    result, samples = decoded(encoded("wav-float", stereo, 48_000))
    assert (result.source_sample_rate_hz, result.source_num_channels) == (48_000, 2)
    np.testing.assert_array_equal(samples, np.zeros(-(-2 * RATE_HZ // 3)))


def with_sizes(wav: bytes, riff: int, data: int) -> bytes:
    start = wav.index(b"data")
    return wav[:4] + struct.pack("<I", riff) + wav[8 : start + 4] + struct.pack("<I", data) + wav[start + 8 :]


@pytest.mark.parametrize("sizes", [(0, 0), (36, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000)])
def test_wav_files_written_to_a_pipe_have_an_unknown_length(sizes: tuple[int, int]) -> None:
    wav = encoded("wav")
    np.testing.assert_array_equal(decoded(with_sizes(wav, *sizes))[1], decoded(wav)[1])


def test_a_wav_file_that_says_it_is_empty_is_so() -> None:
    assert reason(encoded("wav", waveform(0))) is RejectReason.EMPTY
    notes = encoded("wav", waveform(0)) + b"LIST" + struct.pack("<I", 4) + b"abcd"
    assert reason(with_sizes(notes, len(notes) - 8, 0)) is RejectReason.EMPTY


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_a_flipped_bit_in_an_ogg_file_is_seen(kind: str) -> None:
    """A decoder drops the damaged page: in the last one, the clip is shorter without an error."""
    whole = encoded(kind, waveform(4 * RATE_HZ))
    last = whole.rindex(b"OggS")
    for at in range(last + 30, len(whole), max(1, (len(whole) - last) // 20)):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        assert rejected(bytes(damaged))[0] is RejectReason.TRUNCATED


def test_an_ogg_file_without_its_last_page_mark_is_cut() -> None:
    ogg = bytearray(encoded("opus"))
    last = ogg.rindex(b"OggS")
    ogg[last + 5] &= ~4
    assert rejected(bytes(ogg[:last]))[0] is RejectReason.TRUNCATED


@pytest.mark.parametrize("kind", ["flac", "vorbis", "opus", "mp3"])
def test_a_second_file_joined_on_is_not_lost_in_silence(kind: str) -> None:
    assert reason(encoded(kind) * 2) is RejectReason.TRUNCATED


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_a_page_missing_inside_an_ogg_file_is_seen(kind: str) -> None:
    ogg = encoded(kind, waveform(8 * RATE_HZ))
    pages = [at for at in range(len(ogg)) if ogg.startswith(b"OggS", at)]
    assert "pages are missing" in rejected(ogg[: pages[3]] + ogg[pages[4] :])[1]


def test_tags_after_the_audio_are_harmless() -> None:
    tag = b"TAG" + bytes(125)
    for kind in ("mp3", "vorbis", "flac", "wav"):
        assert decoded(encoded(kind) + tag)[0].num_audio_samples == 2 * RATE_HZ
    id3 = b"ID3\x04\0\0\0\0\x02\x01" + b"\xff\xfb" * 128 + b"\xff"
    assert decoded(id3 + encoded("mp3"))[0].num_audio_samples == 2 * RATE_HZ


def headless_mp3() -> tuple[bytes, NDArray[np.float32]]:
    """An MP3 file without a Xing header, and its samples with one (which trims the encoder's delay)."""
    mp3 = encoded("mp3", rate_hz=44_100)
    second = mp3.index(mp3[:2], 2)
    return mp3[second:], decoded(mp3, 44_100)[1]


def test_an_mp3_file_without_a_length_is_read_to_its_end() -> None:
    mp3, expected = headless_mp3()
    with soundfile.SoundFile(io.BytesIO(mp3)) as guessed:
        assert guessed.frames < len(expected) / 2  # what libsndfile alone would read
    _, samples = decoded(mp3, 44_100)
    delay = 576  # of the encoder; the decoder's own is trimmed
    np.testing.assert_array_equal(samples[delay : delay + len(expected)], expected)
    assert decoded(b"\xff\xfb\x90\x44junk" + mp3, 44_100)[0].num_audio_samples == len(samples)


def test_an_mp3_file_with_a_vbri_header_is_read_to_its_end() -> None:
    mp3, _ = headless_mp3()
    xing = with_length(mp3, walk_mp3(mp3)).removesuffix(mp3)
    vbri = xing[:4] + bytes(32) + b"VBRI" + bytes(len(xing) - 40)
    np.testing.assert_array_equal(decoded(vbri + mp3, 44_100)[1], decoded(mp3, 44_100)[1])


def num_frames(mp3: bytes) -> int:
    walked = walk_mp3(mp3)
    assert walked is not None
    return walked.num_frames


def test_an_mp3_file_is_walked_over_junk_between_frames() -> None:
    mp3, _ = headless_mp3()
    later = with_length(mp3, walk_mp3(mp3)).removesuffix(mp3)  # a frame more, of the same kind
    assert num_frames(mp3 + b"\xff\xfbjunk" + later + mp3) == 2 * num_frames(mp3) + 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("at", [0, 20_000, 2 * RATE_HZ - 1])
def test_what_is_not_finite_is_rejected(value: float, at: int) -> None:
    samples = waveform().astype(np.float64)
    samples[at] = value
    for rate_hz in (RATE_HZ, 44_100):
        file = io.BytesIO()
        soundfile.write(file, samples, rate_hz, format="WAV", subtype="DOUBLE")
        assert reason(file.getvalue()) is RejectReason.NOT_FINITE


def test_lengths_are_bounded() -> None:
    assert reason(b"") is RejectReason.EMPTY
    assert reason(encoded("flac"), ClipLimits(0, 1.999)) is RejectReason.TOO_LONG
    assert reason(encoded("flac"), ClipLimits(2000.1, 60)) is RejectReason.TOO_SHORT
    decoded(encoded("flac"), limits=ClipLimits(2000, 2))


def with_flac_length(flac: bytes, num_samples: int) -> bytes:
    fields = int.from_bytes(flac[18:26], "big")
    return flac[:18] + (fields >> 36 << 36 | num_samples).to_bytes(8, "big") + flac[26:]


def test_a_flac_file_may_leave_its_length_open() -> None:
    flac = encoded("flac")
    np.testing.assert_array_equal(decoded(with_flac_length(flac, 0))[1], decoded(flac)[1])
    assert reason(with_flac_length(flac, 0), ClipLimits(0, 1)) is RejectReason.TOO_LONG


def test_a_flac_file_behind_id3_tags_is_whole_and_judged_like_any_other() -> None:
    flac, tag = encoded("flac"), b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
    np.testing.assert_array_equal(decoded(tag + flac)[1], decoded(flac)[1])
    for damaged in (with_flac_length(flac, RATE_HZ), flac + flac):
        assert reason(tag + damaged) is RejectReason.TRUNCATED


def test_a_flac_file_that_says_too_little_is_not_cut_in_silence() -> None:
    flac = encoded("flac")
    assert rejected(with_flac_length(flac, RATE_HZ)) == (
        RejectReason.TRUNCATED,
        "its header says 16000 samples, but more are there; the rest would be lost",
    )
    np.testing.assert_array_equal(decoded(flac + b"TAG".ljust(128, b"\0"))[1], decoded(flac)[1])


def test_a_forged_flac_length_allocates_nothing() -> None:
    assert reason(with_flac_length(encoded("flac"), 2**36 - 1)) is RejectReason.ABSURD_HEADER
    assert reason(with_flac_length(encoded("flac"), 2 * RATE_HZ + 1)) is RejectReason.TRUNCATED
    assert reason(with_flac_length(encoded("flac"), 61 * RATE_HZ)) is RejectReason.TOO_LONG


def test_silence_may_expand_hundreds_of_times() -> None:
    flac = encoded("flac", np.zeros(59 * RATE_HZ, np.float32))
    result, samples = decoded(flac)
    assert result.num_audio_samples > 300 * len(flac)
    assert not samples.any()


def wav_header(num_channels: int, rate_hz: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, num_channels, rate_hz, 2 * num_channels * rate_hz % 2**32, 2 * num_channels, 16)
    return b"RIFF" + struct.pack("<I", 36 + 4096) + b"WAVEfmt \x10\0\0\0" + form + b"data\0\x10\0\0" + bytes(4096)


@pytest.mark.parametrize(("num_channels", "rate_hz"), [(65, 16_000), (1, 999), (1, 768_001), (1, 44_101)])
def test_absurd_headers_are_rejected(num_channels: int, rate_hz: int) -> None:
    assert reason(wav_header(num_channels, rate_hz)) is RejectReason.ABSURD_HEADER


def test_headers_at_the_bounds_are_read() -> None:
    assert decoded(wav_header(64, 16_000), limits=ClipLimits(0, 60))[0].num_audio_samples == 32
    assert decoded(wav_header(1, 768_000), limits=ClipLimits(0, 60))[0].num_audio_samples == 43


@pytest.mark.parametrize("audio", [b"hello", b"RIFF", b"OggS" * 50, b"\xff\xfb" * 1000, b"fLaC" + bytes(100)])
def test_what_is_no_audio_is_unreadable_and_says_the_same_each_time(audio: bytes) -> None:
    assert rejected(audio)[0] in {RejectReason.UNREADABLE, RejectReason.TRUNCATED}
    assert rejected(audio) == rejected(audio)
    assert "0x" not in rejected(audio)[1]


def test_containers_whose_length_cannot_be_checked_are_refused() -> None:
    file = io.BytesIO()
    soundfile.write(file, waveform(), RATE_HZ, format="CAF")
    found, detail = rejected(file.getvalue())
    assert found is RejectReason.UNREADABLE
    assert "allowed" in detail


def test_a_flac_file_with_a_damaged_frame_is_rejected() -> None:
    flac = bytearray(encoded("flac", waveform(8 * RATE_HZ)))
    flac[len(flac) // 2] ^= 4
    assert reason(bytes(flac)) is RejectReason.UNREADABLE
