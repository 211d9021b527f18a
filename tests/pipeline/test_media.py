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
from pipeline import media as media_module
from pipeline.audio import decode_audio
from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.decoder import DecoderPool
from pipeline.media_track import adts_frame_bytes, media_container
from pipeline.media_walk import walk
from pipeline.mono import DecodedAudio
from pipeline.settings import DecodingConfig
from pipeline.types import Clip, Pcm, RejectReason, Sample
from tests.media import KINDS, Webm, element, encoded, in_webm, ogg_packets, uint, with_box

RATE_HZ = 48_000
NUM_SAMPLES = 100_001
LIMITS = ClipLimits(clip_ms_min=10, clip_s_max=60)

EXACT = {
    "m4a-alac": 24, "mp4-flac": 16, "mp4-pcm": 16, "mp4-pcm-24": 24, "mp4-pcm-float": 0, "mov-pcm": 16,
    "mov-pcm-be": 16, "mka-flac": 16, "mka-alac": 24, "mka-pcm": 16, "mka-pcm-24": 24, "mka-pcm-8": 8,
    "mka-pcm-double": 0,
}  # fmt: skip
"""Kinds that lose nothing, and to how many bits a sample is rounded on the way in."""

# Nothing in an ADTS file says what the encoder put in front, and Matroska's AAC says not what it put behind.
AROUND = {"aac": (1024, 351), "mka-aac": (0, 351)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the decoding processes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def waveform(num_samples: int = NUM_SAMPLES, num_channels: int = 1) -> NDArray[np.float32]:
    """Band-limited noise, so that a shift by one sample shows, [C, T]."""
    noise = np.random.default_rng(0).standard_normal((num_channels, num_samples + 31))
    window = np.hanning(33)[1:-1]
    smooth = np.stack(
        [np.convolve(channel, window / window.sum() ** 0.5 / 2, "valid")[:num_samples] for channel in noise]
    )
    return np.ascontiguousarray(np.clip(0.2 * smooth, -0.9, 0.9), np.float32)


def decoded(
    audio: bytes, rate_hz: int = RATE_HZ, limits: ClipLimits = LIMITS
) -> tuple[DecodedAudio, NDArray[np.float32]]:
    blocks: list[Pcm] = []
    result = decode_audio(audio, rate_hz, limits, blocks.append)
    joined = np.concatenate(blocks)
    assert joined.dtype == np.float32
    assert len(joined) == result.num_audio_samples
    return result, joined.astype(np.float32)


def sound(audio: bytes) -> NDArray[np.float32]:
    """What soundfile reads."""
    return soundfile.read(io.BytesIO(audio), dtype="float32")[0]


def rejected(audio: bytes, limits: ClipLimits = LIMITS) -> tuple[RejectReason, str]:
    with pytest.raises(AudioRejectedError) as caught:
        decode_audio(audio, RATE_HZ, limits, lambda _: None)
    return caught.value.reason, caught.value.detail


def outcome(audio: bytes) -> RejectReason | bytes:
    try:
        return decoded(audio)[1].tobytes()
    except AudioRejectedError as error:
        return error.reason


def snr_db(found: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(truth).sum() / np.square(found - truth).sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_decoded_whole_and_in_its_place(kind: str) -> None:
    result, samples = decoded(encoded(kind, waveform(), RATE_HZ))
    before, after = AROUND.get(kind, (0, 0))
    assert result == DecodedAudio(before + NUM_SAMPLES + after, 4, RATE_HZ, 1)
    found, truth = samples[before : before + NUM_SAMPLES], waveform()[0]
    if kind in EXACT:
        scale = 2.0 ** (EXACT[kind] - 1) if EXACT[kind] else 0
        expected = np.round(truth.astype(np.float64) * scale) / scale if scale else truth
        np.testing.assert_array_equal(found, expected.astype(np.float32))
    else:
        assert snr_db(found, truth) > 15
        assert snr_db(found[1:], truth[:-1]) < snr_db(found, truth) - 3
        assert snr_db(found[:-1], truth[1:]) < snr_db(found, truth) - 3


@pytest.mark.parametrize("kind", ["m4a-aac", "m4a-alac", "mp4-opus", "webm-opus", "mka-pcm"])
def test_channels_are_averaged_after_resampling(kind: str) -> None:
    one = waveform()
    result, samples = decoded(encoded(kind, np.concatenate([one, -one]), RATE_HZ), 16_000)
    assert (result.source_sample_rate_hz, result.source_num_channels) == (RATE_HZ, 2)
    assert len(samples) == -(-NUM_SAMPLES // 3)
    assert np.abs(samples).max() < 0.05


def boundaries(audio: bytes) -> set[int]:
    """Where boxes and elements begin, as far as their names tell."""
    names = [b"moov", b"mdat", b"moof", b"free", b"mfra", b"\x1f\x43\xb6\x75", b"\x1c\x53\xbb\x6b", b"\x12\x54\xc3\x67"]
    found = set()
    for name in names:
        at = audio.find(name)
        while at >= 0:
            found |= {at - 4, at, at + 4, at + 8}
            at = audio.find(name, at + 1)
    return found


def cuts(audio: bytes) -> list[int]:
    near = {at + by for at in boundaries(audio) for by in (-1, 0, 1)}
    spread = {*range(1, 64, 5), *range(64, len(audio), len(audio) // 60), *range(len(audio) - 40, len(audio), 3)}
    return sorted(at for at in near | spread if 0 < at < len(audio))


FASTSTART = {"movflags": "+faststart"}


@pytest.mark.parametrize(("kind", "options"), [(kind, {}) for kind in KINDS if kind != "aac"] + [
    ("m4a-aac", FASTSTART), ("m4a-alac", FASTSTART), ("mp4-opus", FASTSTART), ("mov-pcm", FASTSTART),
    ("mka-flac", {"cues_to_front": "1", "reserve_index_space": "2000"}),
])  # fmt: skip
def test_a_cut_file_is_never_a_shorter_clip(kind: str, options: dict[str, str]) -> None:
    audio = encoded(kind, waveform(24_001), RATE_HZ, options)
    whole = outcome(audio)
    assert isinstance(whole, bytes)
    lost = {outcome(audio[:at]) for at in cuts(audio)} - {whole}
    assert lost <= {RejectReason.TRUNCATED, RejectReason.UNREADABLE}
    assert RejectReason.TRUNCATED in lost


@pytest.mark.parametrize("options", [{}, FASTSTART])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "aac"])
def test_at_no_byte_is_a_cut_taken_for_the_end(kind: str, options: dict[str, str]) -> None:
    audio = encoded(kind, waveform(2_401), RATE_HZ, options)
    whole = outcome(audio)
    assert isinstance(whole, bytes)
    found = {outcome(audio[:at]) for at in range(1, len(audio))} - {whole}
    assert found == {RejectReason.TRUNCATED, RejectReason.UNREADABLE}


def test_sizes_alone_tell_a_cut_where_no_duration_does() -> None:
    audio = bytes(webm_of(opus_file(), duration_ms=None))
    decoded(audio)
    for at in range(len(audio) - 1200, len(audio), 7):
        found, detail = rejected(audio[:at])
        assert found is RejectReason.TRUNCATED
        assert detail.endswith("are there")


def test_tables_alone_tell_a_cut_where_the_data_go_to_the_end_of_the_file() -> None:
    audio = encoded("m4a-aac", waveform(), RATE_HZ, FASTSTART)
    at = audio.index(b"mdat") - 4
    audio = audio[:at] + bytes(4) + audio[at + 4 :]
    decoded(audio)
    for cut in (1, 100, 10_000):
        found, detail = rejected(audio[:-cut])
        assert found is RejectReason.TRUNCATED
        assert "its tables say that it goes on to byte" in detail


def test_an_adts_file_is_cut_unseen_only_between_frames() -> None:
    audio = encoded("aac", waveform(24_001), RATE_HZ)
    frame_ends = []
    at = 0
    while at < len(audio):
        at += (audio[at + 3] & 3) << 11 | audio[at + 4] << 3 | audio[at + 5] >> 5
        frame_ends.append(at)
    for cut in sorted({*cuts(audio), *frame_ends} - {len(audio)}):
        found = outcome(audio[:cut])
        assert isinstance(found, bytes) == (cut in frame_ends)
    assert outcome(audio + b"TAG".ljust(128, b"\0")) == outcome(audio)
    assert outcome(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + audio) == outcome(audio)
    assert rejected(audio + b"junk and more")[0] is RejectReason.TRUNCATED


def opus_file(num_samples: int = NUM_SAMPLES) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform(num_samples)[0], RATE_HZ, format="OGG", subtype="OPUS")
    return file.getvalue()


def webm_of(ogg: bytes, num_samples: int = NUM_SAMPLES, **changes: object) -> Webm:
    head, _, *packets = ogg_packets(ogg)
    pre_skip = struct.unpack_from("<H", head, 10)[0]
    lengths = [opus_samples(packet) for packet in packets]
    padding = sum(lengths) - pre_skip - num_samples
    fields: dict[str, object] = {
        "blocks": [(sum(lengths[:index]) // 48, [packet]) for index, packet in enumerate(packets)],
        "delay_ns": pre_skip * 10**9 // 48_000,
        "discard_ns": round(padding * 10**9 / 48_000),
        "duration_ms": 1000 * num_samples / 48_000,
    }
    return Webm("A_OPUS", head, **{**fields, **changes})  # type: ignore[arg-type]


def opus_samples(packet: bytes) -> int:
    """At 48 kHz, of a packet of CELT with one frame or two (RFC 6716, 3.1)."""
    assert packet[0] >> 3 >= 16
    return (120 << (packet[0] >> 3 & 3)) * (1, 2, 2)[packet[0] & 3]


def test_opus_packets_are_the_same_samples_in_webm_as_in_ogg() -> None:
    ogg = opus_file()
    expected = sound(ogg)
    assert len(expected) == NUM_SAMPLES
    # Two builds of one library: their last bits differ.
    np.testing.assert_allclose(decoded(bytes(webm_of(ogg)))[1], expected, atol=2e-7)


def test_vorbis_packets_are_the_same_samples_in_webm_as_in_ogg() -> None:
    file = io.BytesIO()
    soundfile.write(file, waveform()[0], RATE_HZ, format="OGG", subtype="VORBIS")
    _, samples = decoded(in_webm(file.getvalue()))
    # Ogg tells the end to the sample; Matroska does not unless its writer adds it.
    assert NUM_SAMPLES <= len(samples) < NUM_SAMPLES + 2048
    np.testing.assert_allclose(samples[:NUM_SAMPLES], sound(file.getvalue()), atol=1e-6)


@pytest.mark.parametrize("lacing", [1, 2, 3])
def test_laced_packets_are_read_one_by_one(lacing: int) -> None:
    ogg = opus_file()
    plain = webm_of(ogg)
    packets = [packet for _, (packet,) in plain.blocks]
    if lacing == 2:  # packets of one size: the same one again and again
        packets = [packets[5]] * 20
        plain = webm_of(ogg, blocks=[(20 * index, [packet]) for index, packet in enumerate(packets)], duration_ms=400)
    blocks = [(20 * at, packets[at : at + 4]) for at in range(0, len(packets), 4)]
    together = webm_of(ogg, blocks=blocks, lacing=lacing, duration_ms=plain.duration_ms)
    np.testing.assert_array_equal(decoded(bytes(together))[1], decoded(bytes(plain))[1])


def test_packets_of_no_bytes_are_refused() -> None:
    ogg = opus_file()
    empty = webm_of(ogg, blocks=[(0, [b""] * 200)], lacing=2, duration_ms=None)
    assert rejected(bytes(empty))[0] is RejectReason.TRUNCATED
    assert rejected(bytes(webm_of(ogg, blocks=[(0, [b""])], duration_ms=None)))[0] is RejectReason.UNREADABLE


def test_a_recording_of_open_size_is_whole_when_it_ends_between_two_blocks() -> None:
    ogg = opus_file()
    webm = webm_of(ogg, is_open=True, duration_ms=None, discard_ns=0)
    audio = bytes(webm)
    _, samples = decoded(audio)
    np.testing.assert_array_equal(samples[:NUM_SAMPLES], decoded(bytes(webm_of(ogg)))[1])
    shorter = bytes(webm_of(ogg, blocks=webm.blocks[:-3], is_open=True, duration_ms=None, discard_ns=0))
    for cut in range(len(shorter) - 40, len(audio)):
        found = outcome(audio[:cut])
        if isinstance(found, bytes):
            assert len(found) % (4 * 960) == 4 * 960 - 4 * 312
        else:
            assert found is RejectReason.TRUNCATED
    with_duration = bytes(webm_of(ogg, is_open=True))
    late = len(with_duration) - len(shorter) // 10
    assert {outcome(with_duration[:cut]) for cut in range(late - 400, late)} == {RejectReason.TRUNCATED}


def test_a_block_that_is_missing_is_seen() -> None:
    ogg = opus_file()
    webm = webm_of(ogg)
    gapped = webm_of(ogg, blocks=[*webm.blocks[:30], *webm.blocks[31:]], duration_ms=None)
    found, detail = rejected(bytes(gapped))
    assert found is RejectReason.TRUNCATED
    assert "20 ms from where it should" in detail
    last = webm_of(ogg, blocks=webm.blocks[:-2])
    assert rejected(bytes(last))[0] is RejectReason.TRUNCATED


def test_padding_elsewhere_than_at_the_end_is_refused() -> None:
    ogg = opus_file()
    webm = webm_of(ogg)
    audio = bytes(webm)
    group = audio.index(b"\x75\xa2\x01")
    start = audio.rindex(b"\xa0\x01", 0, group)
    block_group = audio[start:]
    joined = bytes(webm_of(ogg, is_open=True)) + block_group
    assert "DiscardPadding" in rejected(joined)[1]


def sound_track(number: int, codec: bytes = b"A_VORBIS") -> bytes:
    return element(0xAE, uint(0xD7, number), uint(0x83, 2), element(0x86, codec))


def test_of_several_audio_tracks_none_is_guessed() -> None:
    ogg = opus_file()
    found, detail = rejected(bytes(webm_of(ogg, extra_tracks=sound_track(2))))
    assert found is RejectReason.AMBIGUOUS_AUDIO
    assert "2 audio tracks" in detail
    video = element(0xAE, uint(0xD7, 2), uint(0x83, 1), element(0x86, b"V_VP9"))
    np.testing.assert_array_equal(decoded(bytes(webm_of(ogg, extra_tracks=video)))[1], decoded(bytes(webm_of(ogg)))[1])


def test_a_file_without_an_audio_track_is_told() -> None:
    audio = bytes(webm_of(opus_file())).replace(uint(0x83, 2), uint(0x83, 1))
    assert rejected(audio)[0] is RejectReason.NO_AUDIO
    audio = encoded("m4a-aac", waveform(), RATE_HZ).replace(b"soun", b"vide")
    assert rejected(audio)[0] is RejectReason.NO_AUDIO


@pytest.mark.parametrize("extra", [element(0x6D80, b""), element(0x86, b"A_AC3")])
def test_tracks_that_are_not_read_are_refused(extra: bytes) -> None:
    assert rejected(bytes(webm_of(opus_file(), entry_extra=extra)))[0] is RejectReason.UNREADABLE


@pytest.mark.parametrize("kind", ["m4a-aac", "webm-opus", "aac"])
def test_without_the_extra_such_a_file_is_a_reject_that_says_what_to_install(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "HAS_MEDIA", False)
    found, detail = rejected(encoded(kind, waveform(), RATE_HZ))
    assert found is RejectReason.UNREADABLE
    assert "pip install 'voxmill[media]'" in detail


def test_what_soundfile_reads_is_never_given_to_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_module, "decode_media", None)
    for container, subtype in (
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("RF64", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
        ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "ULAW"), ("NIST", "PCM_16"),
    ):  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, waveform()[0], RATE_HZ, format=container, subtype=subtype)
        assert media_container(file.getvalue()) is None
        assert media_container(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + file.getvalue()) is None
        decode_audio(file.getvalue(), RATE_HZ, LIMITS, lambda _: None)


def test_a_frame_of_mp3_is_none_of_adts() -> None:
    mp3, adts = b"\xff\xfb\x50\x80\x02\x1f\xfc", b"\xff\xf1\x50\x80\x02\x1f\xfc"
    assert adts_frame_bytes(mp3, 0) is None
    assert adts_frame_bytes(adts, 0) == 16


def test_of_flac_every_flipped_bit_is_seen() -> None:
    audio = bytearray(encoded("mka-flac", waveform(24_001), RATE_HZ))
    first = audio.index(b"\x1f\x43\xb6\x75")
    for at in range(first + 60, len(audio) - 100, len(audio) // 40):
        audio[at] ^= 8
        assert outcome(bytes(audio)) in (RejectReason.UNREADABLE, RejectReason.TRUNCATED)
        audio[at] ^= 8


def test_a_packet_of_zeros_is_no_silence() -> None:
    audio = encoded("m4a-aac", waveform(), RATE_HZ)
    middle = audio.index(b"mdat") + 4000
    assert outcome(audio[:middle] + bytes(2000) + audio[middle + 2000 :]) in (
        RejectReason.UNREADABLE, RejectReason.TRUNCATED,
    )  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "mka-pcm-double"), (np.inf, "mp4-pcm-float")])
def test_what_is_not_finite_is_rejected(value: float, kind: str) -> None:
    samples = waveform()
    samples[0, 50_000] = value
    assert rejected(encoded(kind, samples, RATE_HZ))[0] is RejectReason.NOT_FINITE


@pytest.mark.parametrize("kind", ["m4a-alac", "webm-opus"])
def test_lengths_are_bounded(kind: str) -> None:
    audio = encoded(kind, waveform(96_000), RATE_HZ)
    assert rejected(audio, ClipLimits(0, 1.999))[0] is RejectReason.TOO_LONG
    assert rejected(audio, ClipLimits(2000.1, 60))[0] is RejectReason.TOO_SHORT
    decoded(audio, limits=ClipLimits(2000, 2))


STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def test_tables_that_say_more_or_less_than_there_is_are_seen() -> None:
    audio = encoded("m4a-aac", waveform(), RATE_HZ)
    forged = with_box(audio, (*STBL, b"stsz"), lambda box: box[:8] + b"\xff\xff\xff\xff" + box[12:])
    assert rejected(forged)[0] is RejectReason.UNREADABLE
    forged = with_box(audio, (*STBL, b"stsz"), lambda box: box[:4] + struct.pack(">II", 9, 2**32 - 1))
    assert rejected(forged)[0] is RejectReason.UNREADABLE
    one = struct.pack(">IIII", 0, 1, 99, 2048)
    assert rejected(with_box(audio, (*STBL, b"stts"), lambda _: one))[0] is RejectReason.TRUNCATED
    one = struct.pack(">IIII", 0, 1, 99, 900)
    plain = audio.replace(b"edts", b"free")
    found, detail = rejected(with_box(plain, (*STBL, b"stts"), lambda _: one))
    assert found is RejectReason.TRUNCATED
    assert "would be lost" in detail
    other = struct.pack(">I", 0) + b"\0\0\0\x01" + b"\0\0\0\x0curl \0\0\0\0"
    external = with_box(audio, (*STBL[:-1], b"dinf", b"dref"), lambda _: other)
    assert "another file" in rejected(external)[1]


def edit(*parts: tuple[int, int], rate: int = 0x10000) -> bytes:
    return struct.pack(">II", 0, len(parts)) + b"".join(struct.pack(">Iii", *part, rate) for part in parts)


def edited(*parts: tuple[int, int], rate: int = 0x10000) -> bytes:
    """M4A of 100,001 samples behind 1,024 of delay; the whole's clock ticks in milliseconds."""
    audio = encoded("m4a-aac", waveform(), RATE_HZ)
    return with_box(audio, (b"moov", b"trak", b"edts", b"elst"), lambda _: edit(*parts, rate=rate))


def test_an_edit_list_says_what_is_the_audio() -> None:
    _, whole = decoded(edited((2105, 0)))
    assert len(whole) == 1024 + NUM_SAMPLES
    for parts in ([(2084, 1024)], [(2083, 1024)], [(0, 1024)], [(500, -1), (2084, 1024)]):
        np.testing.assert_array_equal(decoded(edited(*parts))[1], whole[1024:])
    np.testing.assert_array_equal(decoded(edited((1000, 1024)))[1], whole[1024 : 1024 + RATE_HZ])
    fine = with_box(
        edited((NUM_SAMPLES - 1, 1024)),
        (b"moov", b"mvhd"),
        lambda box: box[:12] + struct.pack(">I", RATE_HZ) + box[16:],
    )
    np.testing.assert_array_equal(decoded(fine)[1], whole[1024:-1])
    assert rejected(edited((2090, 1024)))[0] is RejectReason.TRUNCATED
    assert rejected(edited((1000, 0), (1000, 48_000)))[0] is RejectReason.UNREADABLE
    assert rejected(edited((2084, 1024), rate=0x20000))[0] is RejectReason.UNREADABLE


def itunes(*fields: int, edits: tuple[tuple[int, int], ...] = ()) -> bytes:
    text = " 00000000 " + " ".join(f"{field:08X}" for field in fields[:2]) + f" {fields[2]:016X} 00000000"
    data = b"data" + struct.pack(">II", 1, 0) + text.encode()
    tag = b"mean\0\0\0\0com.apple.iTunes\0\0\0\x14name\0\0\0\0iTunSMPB"
    content = tag + struct.pack(">I", 4 + len(data)) + data
    return with_box(
        edited(*edits), (b"moov", b"udta"), lambda box: box + struct.pack(">I4s", 8 + len(content), b"free") + content
    )


def test_itunes_says_the_delay_where_no_edit_list_does() -> None:
    _, whole = decoded(edited((2105, 0)))
    np.testing.assert_array_equal(decoded(itunes(2112, 913, 98_000))[1], whole[2112:100_112])
    np.testing.assert_array_equal(decoded(itunes(2112, 913, 98_000, edits=((2105, 0),)))[1], whole[2112:100_112])
    np.testing.assert_array_equal(decoded(itunes(2112, 913, 98_000, edits=((2084, 1024),)))[1], whole[1024:])
    assert rejected(itunes(2112, 0, 100_001))[0] is RejectReason.TRUNCATED


@pytest.mark.parametrize("kind", ["m4a-aac", "mp4-flac", "mp4-opus"])
@pytest.mark.parametrize(
    "flags", ["empty_moov", "empty_moov+default_base_moof", "dash+global_sidx", "empty_moov+delay_moov"]
)
def test_fragments_are_read_one_behind_the_other(kind: str, flags: str) -> None:
    options = {"movflags": f"+{flags}", "frag_duration": "300000"}
    audio = encoded(kind, waveform(), RATE_HZ, options)
    assert audio.count(b"moof") > 3
    _, expected = decoded(encoded(kind, waveform(), RATE_HZ))
    _, samples = decoded(audio)
    # FFmpeg writes the edit list, which tells AAC's delay, only where the index may wait for the first fragment.
    delay = 1024 if kind == "m4a-aac" and "delay_moov" not in flags else 0
    assert len(samples) == delay + len(expected)
    np.testing.assert_array_equal(samples[delay:], expected)
    whole = outcome(audio)
    for cut in cuts(audio):
        found = outcome(audio[:cut])
        if isinstance(found, bytes) and found != whole:
            assert "sidx" not in flags
            assert audio[cut + 4 : cut + 8] in (b"moof", b"mfra")
    second, third = _fragment_starts(audio)[1:3]
    without = audio[:second] + audio[third:]
    assert rejected(without)[0] is RejectReason.TRUNCATED


def _fragment_starts(audio: bytes) -> list[int]:
    return [at - 4 for at in range(len(audio)) if audio.startswith(b"moof", at)]


def test_a_track_whose_decoder_doubles_the_rate_keeps_its_length() -> None:
    """As spectral band replication does, here in the description alone: the track's clock is that of half the rate."""
    audio = encoded("m4a-aac", waveform(), 24_000)
    plain, replicated = b"\x05\x80\x80\x80\x05\x13\x08\x56\xe5\x00", b"\x05\x80\x80\x80\x05\x2b\x09\x88\x00\x00"
    assert audio.count(plain) == 1
    result, _ = decoded(audio.replace(plain, replicated))
    assert (result.source_sample_rate_hz, result.num_audio_samples) == (48_000, 2 * NUM_SAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_is_told_without_decoding(kind: str) -> None:
    audio = encoded(kind, waveform(), RATE_HZ)
    container = media_container(audio)
    assert container is not None
    assert walk(audio, container).length_s == pytest.approx(NUM_SAMPLES / RATE_HZ, abs=0.06)


def test_a_change_of_rate_or_channels_is_refused() -> None:
    other = encoded("aac", waveform(), 44_100)
    assert "another rate" in rejected(encoded("aac", waveform(), RATE_HZ) + other)[1]


def test_files_joined_are_not_read_as_one() -> None:
    for kind in ("m4a-aac", "webm-opus", "mka-pcm"):
        assert isinstance(outcome(encoded(kind, waveform(), RATE_HZ) * 2), RejectReason)


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x18ftypM4A ", b"\x1a\x45\xdf\xa3", b"\0\0\0\x08moov", b"\xff\xf1\x50\x80\x02\x1f\xfc"]
)
def test_what_begins_like_such_a_file_and_is_none_is_unreadable(head: bytes) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        assert isinstance(outcome(head + generator.bytes(200)), RejectReason)


def test_decoding_processes_read_them_within_their_memory() -> None:
    kinds = ["m4a-aac", "webm-opus", "mka-flac", "aac"]
    files = [encoded(kind, waveform(), RATE_HZ) for kind in kinds]
    with DecoderPool(DecodingConfig(workers=1, memory_bytes_max=256 << 20), RATE_HZ) as pool:
        # The names say nothing.
        clips = list(pool.decode([Sample(kind, "a.wav", "wav", file) for kind, file in zip(kinds, files, strict=True)]))
    for clip, file in zip(clips, files, strict=True):
        assert isinstance(clip, Clip)
        np.testing.assert_array_equal(clip.waveform, decoded(file)[1])
