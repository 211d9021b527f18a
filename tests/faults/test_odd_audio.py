"""Odd and damaged audio: it costs its sample, named in the rejects, and nothing beside it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests import faulty_decoding
from tests.containers import flac_of_silence, with_length
from tests.corpus import CLIPS, tar_of
from tests.faults.ground import Sabotage
from tests.faults.matrix import row
from tests.faults.saboteurs import noted, sabotage

GOOD = CLIPS[0]
TONE = (0.3 * np.sin(np.arange(32000) / 9)).astype(np.float32)


def encoded(waveform: np.ndarray, rate_hz: int = 16000, **how: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, **how)
    return buffer.getvalue()


def judge(
    ground, odd: dict[str, bytes], rejects: dict[str, str], *flags: str, sabotage: Sabotage | None = None
) -> dict[str, str]:
    """The odd files stand between a good clip and a clean shard; those that are no rejects must be rows.

    Returns the words of each reject.
    """
    ground.put_clean(2)
    ground.put({"odd.tar": tar_of([*odd.items(), (GOOD.name, GOOD.read_bytes())])})
    keys = {name.split(".")[0] for name in odd} - rejects.keys()
    rows = {**dict.fromkeys(keys), GOOD.stem: ground.lab.clip_ids(GOOD.read_bytes())}
    ended = ground.run(*flags, sabotage=sabotage)
    objects = ground.check(ended, rows={"odd.tar": rows}, rejects={"odd.tar": rejects} if rejects else {})
    return {one["key"]: one["detail"] for one in rows_of(objects, "rejects/odd-")}


def rows_of(objects: dict[str, bytes], start: str) -> list[dict]:
    return [
        one
        for path, content in objects.items()
        if path.startswith(start)
        for one in pq.read_table(io.BytesIO(content)).to_pylist()
    ]


FORMATS = {
    "wav": {"format": "WAV"},
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


@row("audio", "truncated files", "WAV, FLAC, MP3, Vorbis and Opus cut in the middle")
@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated(ground, suffix):
    noisy = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)  # so that Ogg needs many pages
    content = encoded(noisy, **FORMATS[suffix])
    judge(ground, {f"cut.{suffix}": content[: len(content) // 2]}, {"cut": "truncated"})


@row("audio", "NaN and infinity", "float WAVs with one sample that is not finite")
def test_not_finite(ground):
    odd = {}
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        waveform = TONE.copy()
        waveform[1000] = value
        odd[f"{name}.wav"] = encoded(waveform, format="WAV", subtype="FLOAT")
    judge(ground, odd, {"nan": "not_finite", "inf": "not_finite"})


@row("audio", "empty and all but empty", "no bytes, no samples, one sample")
def test_empty(ground):
    odd = {
        "nothing.wav": b"",
        "empty.wav": encoded(TONE[:0], format="WAV"),
        "one.wav": encoded(TONE[:1], format="WAV"),
    }
    judge(ground, odd, {"nothing": "empty", "empty": "empty", "one": "too_short"})


@row("audio", "odd but good", "24 ms, 31 s, 8 channels, 192 kHz, 8-bit, 32-bit float: rows, not rejects")
def test_odd_but_good(ground):
    odd = {
        "short.wav": encoded(TONE[:384], format="WAV"),
        "long.flac": encoded(np.tile(TONE, 16)[: 31 * 16000], format="FLAC"),
        "eight.wav": encoded(np.tile(TONE[:, None], (1, 8)), format="WAV"),
        "fast.wav": encoded(TONE, 192000, format="WAV"),
        "coarse.wav": encoded(TONE, format="WAV", subtype="PCM_U8"),
        "float.wav": encoded(TONE, format="WAV", subtype="FLOAT"),
    }
    judge(ground, odd, {})


@row("audio", "more or less declared than there is", "a header's length set off in WAV, FLAC, MP3, Vorbis and Opus")
def test_other_length_declared(ground):
    noisy = np.random.default_rng(0).normal(0, 0.1, 5 * 16000).astype(np.float32)
    whole = {suffix: encoded(noisy, **how) for suffix, how in FORMATS.items()}
    odd = {f"more-{suffix}.{suffix}": with_length(content, 8000) for suffix, content in whole.items()}
    odd |= {f"less-{suffix}.{suffix}": with_length(whole[suffix], -8000) for suffix in ("flac", "mp3")}
    odd |= {f"twice-{suffix}.{suffix}": 2 * whole[suffix] for suffix in ("flac", "mp3", "ogg", "opus")}
    judge(ground, odd, {name.split(".")[0]: "truncated" for name in odd})


@row("audio", "forged lengths", "FLAC headers that ask for 256 GiB, for 5 hours, for what 20 kB could hold")
def test_forged_lengths(ground):
    flac = encoded(TONE, format="FLAC")
    odd = {
        "gigabytes.flac": with_length(flac, (1 << 36) - 1 - len(TONE)),
        "overlong.flac": flac_of_silence(5 * 3600 * 16000),
        "possible.flac": with_length(flac, 1000 * len(flac) - len(TONE)),
    }
    rejects = {"gigabytes": "absurd_header", "overlong": "too_long", "possible": "truncated"}
    told = judge(ground, odd, rejects)
    assert f"{(1 << 36) - 1} samples" in told["gigabytes"]


@row("audio", "silence that expands 9,000 times", "FLAC of 20 minutes in 4 kB, beside one that says it is shorter")
def test_silence_that_expands(ground):
    num_samples = 20 * 60 * 16000
    silence, less = flac_of_silence(num_samples), with_length(flac_of_silence(10 * 65535), -65535)
    assert 9000 * len(silence) < 2 * num_samples
    judge(ground, {"silence.flac": silence, "less.flac": less}, {"less": "truncated"})
    rows = rows_of(ground.place.objects(), "tokens/odd-")
    (found,) = [one for one in rows if one["key"] == "silence"]
    assert (found["num_audio_samples"], len(found["segments"])) == (num_samples, 40)


@row(
    "audio", "a decoder that goes wrong", "it segfaults, aborts, raises, hangs, asks for 8 GiB, eats memory bit by bit"
)
def test_faulty_decoder(ground, tmp_path):
    odd = {
        "segfault.wav": faulty_decoding.SEGFAULT,
        "abort.wav": faulty_decoding.ABORT,
        "raise.wav": faulty_decoding.RAISE,
        "hang.wav": faulty_decoding.HANG,
        "ask.wav": faulty_decoding.ALLOCATE,
        "eat.wav": faulty_decoding.EAT,
    }
    crashed = dict.fromkeys(("segfault", "abort", "raise"), "decoder_crashed")
    starved = dict.fromkeys(("ask", "eat"), "decoder_out_of_memory")
    limits = ("--set=decoding.timeout_s=2", f"--set=decoding.memory_bytes_max={256 << 20}")
    hook = sabotage("with_faulty_decoder", tmp_path / "notes")
    told = judge(ground, odd, {**crashed, **starved, "hang": "decoder_timeout"}, *limits, sabotage=hook)
    assert noted(tmp_path / "notes") == ["a faulty decoder"]
    words = {"segfault": "SIGSEGV", "abort": "SIGABRT", "raise": "an odd error", "hang": "2.0 s", "ask": "268435456"}
    for key, word in words.items():
        assert word in told[key]
    ground.note("4 samples tried twice")


@row("audio", "a clip of 3 h", "noise in a FLAC; its segments compared with each encoded alone", heavy=True)
@pytest.mark.timeout(600)
def test_three_hours(ground, tmp_path):
    second = np.random.default_rng(0).integers(-2, 3, 16000).astype(np.int16)
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        for _ in range(3 * 60):
            file.write(np.tile(second, 60))
    content = tar_of([("long.flac", path.read_bytes()), (GOOD.name, GOOD.read_bytes())])
    ground.put({"long.tar": content})
    good = ground.lab.clip_ids(GOOD.read_bytes())
    objects = ground.check(ground.run(limit_s=300), rows={"long.tar": {"long": None, GOOD.stem: good}})
    (found,) = [one for one in rows_of(objects, "tokens/long-") if one["key"] == "long"]
    assert found["num_audio_samples"] == 3 * 3600 * 16000
    minute = np.tile(second.astype(np.float32) / 32768, 60)
    frame, position = 0, 0
    for number, segment in enumerate(found["segments"]):
        assert segment["start"] == position
        if number % 40 == 0:
            alone, _ = ground.lab.ids(np.roll(minute, -(position % 16000))[: segment["length"]])
            assert found["semantic"][frame : frame + segment["num_frames"]] == alone
        position, frame = position + segment["length"], frame + segment["num_frames"]
    assert (position, frame) == (3 * 3600 * 16000, found["num_frames"])
