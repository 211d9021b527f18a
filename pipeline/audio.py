"""The bytes of an audio file -> a mono waveform at the codec's rate, block by block, or the reason why not.

Runs in the decoding processes; nothing here is allocated by what a header declares.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.containers import CONTAINERS, flac_length, missing_part, with_sound_header
from pipeline.flac_frames import has_16_bit_frames
from pipeline.resample import KERNEL_VALUES_MAX, Resampler, num_kernel_values, to_mono
from pipeline.types import Pcm, RejectReason

CHANNELS_MAX: Final = 64
SAMPLE_RATE_HZ_MIN: Final = 1_000
SAMPLE_RATE_HZ_MAX: Final = 768_000
SAMPLES_PER_BYTE_MAX: Final = 8_192
"""The best packing there is: 65,535 equal samples in a FLAC frame of 11 bytes, or 120 ms of Opus in two."""

_Dtype = Literal["int16", "float32"]

_BLOCK_VALUES: Final = 1 << 18
_UNKNOWN_LENGTH_MIN: Final = 1 << 62
"""libsndfile's largest count stands for a length that the header leaves open."""
_SUBTYPES_UNREAD: Final = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II"})
"""Their length is guessed from the first frame, and no header can mend that as it can for layer III."""
_OF_16_BITS: Final = frozenset({"AIFF", "AU", "NIST", "RF64", "WAV", "WAVEX"})
"""Whose PCM_16 is true of each sample; a FLAC frame may be of another depth than its header says."""
_MALLOC_FAILED: Final = 17
"""libsndfile's SFE_MALLOC_FAILED."""


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """What was decoded: `num_audio_samples` at the codec's rate, int16 or float32, and what the source was."""

    num_audio_samples: int
    sample_bytes: int
    source_sample_rate_hz: int
    source_num_channels: int


class _UnseekingFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from front to end.

    soundfile seeks after every read; in an MP3 file that changes the last bits of what comes next, so a clip
    would depend on how it is cut in blocks.
    """

    def seekable(self) -> bool:
        return False


class _Source(io.BytesIO):
    """The file's bytes; like a file of the system's, it stays where it is when told to seek before its start."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def decode_audio(audio: bytes, sample_rate_hz: int, limits: ClipLimits, write: Callable[[Pcm], object]) -> DecodedAudio:
    """Decode a whole audio file; its mono blocks [N] at `sample_rate_hz` go to `write` in order.

    They are int16 where that is what stands in the file (the same values in half the memory), else float32.
    Raises `AudioRejectedError`, maybe after blocks were written; `MemoryError` when memory ends.
    """
    if not audio:
        raise AudioRejectedError(RejectReason.EMPTY, "the file has 0 bytes")
    file = with_sound_header(audio)
    source = _Source(file.audio)
    with _opened(source) as sound:
        num_declared = _num_declared(sound, audio)
        _check_header(sound, len(audio), num_declared, sample_rate_hz)
        if (missing := missing_part(audio, sound.format, file.mp3)) is not None:
            raise AudioRejectedError(RejectReason.TRUNCATED, missing)
        if num_declared is not None:
            limits.check_not_too_long(num_declared, sound.samplerate)
        resampler = Resampler(sound.samplerate, sample_rate_hz, sound.channels)
        dtype: _Dtype = "int16" if _is_mono_of_16_bits(sound, audio, sample_rate_hz) else "float32"
        num_source = num_written = 0
        for block in _blocks(sound, source, num_declared, dtype):
            num_source += block.shape[1]
            limits.check_not_too_long(num_source, sound.samplerate)
            if dtype == "int16":
                write(block[0])
                num_written += block.shape[1]
            else:
                num_written += _write_mono(resampler.push(cast(NDArray[np.float32], block)), write)
        _check_source_length(num_source, num_declared, sound, limits)
        num_written += _write_mono(resampler.finish(), write)
        return DecodedAudio(num_written, np.dtype(dtype).itemsize, sound.samplerate, sound.channels)


def _opened(source: io.BytesIO) -> _UnseekingFile:
    try:
        return _UnseekingFile(source)
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from None


def _check_header(sound: _UnseekingFile, num_bytes: int, num_declared: int | None, sample_rate_hz: int) -> None:
    if sound.format not in CONTAINERS or sound.subtype in _SUBTYPES_UNREAD:
        detail = f"{sound.format} {sound.subtype} is not read; allowed: {', '.join(sorted(CONTAINERS))}"
        raise AudioRejectedError(RejectReason.UNREADABLE, detail)
    if not 1 <= sound.channels <= CHANNELS_MAX:
        detail = f"the header says {sound.channels} channels; allowed are 1 to {CHANNELS_MAX}"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)
    if not SAMPLE_RATE_HZ_MIN <= sound.samplerate <= SAMPLE_RATE_HZ_MAX:
        allowed = f"{SAMPLE_RATE_HZ_MIN} to {SAMPLE_RATE_HZ_MAX} Hz"
        detail = f"the header says {sound.samplerate} Hz; allowed are {allowed}"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)
    if num_kernel_values(sound.samplerate, sample_rate_hz) > KERNEL_VALUES_MAX:
        detail = f"{sound.samplerate} Hz has too small a common divisor with {sample_rate_hz} Hz to be resampled"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)
    if num_declared is not None and num_declared > SAMPLES_PER_BYTE_MAX * num_bytes:
        detail = f"the header says {num_declared} samples, too many for the {num_bytes} bytes of the file"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)


def _is_mono_of_16_bits(sound: _UnseekingFile, audio: bytes, sample_rate_hz: int) -> bool:
    """Whether the source's samples come out as they stand in the file, which are of 16 bits."""
    if sound.subtype != "PCM_16" or sound.channels != 1 or sound.samplerate != sample_rate_hz:
        return False
    return sound.format in _OF_16_BITS or (sound.format == "FLAC" and has_16_bit_frames(audio))


def _blocks(sound: _UnseekingFile, source: io.BytesIO, num_declared: int | None, dtype: _Dtype) -> Iterator[Pcm]:
    """The source, [C, T] at a time, up to the declared length, which must be its end."""
    num_left, block_samples = num_declared or sound.frames, _BLOCK_VALUES // sound.channels
    while num_left:
        try:
            block = sound.read(min(num_left, block_samples), dtype=dtype, always_2d=True)
        except soundfile.LibsndfileError as error:
            if source.tell() < len(source.getbuffer()):
                raise _unreadable(error) from None
            detail = f"it breaks off before the length that its header says: {error.error_string}"
            raise AudioRejectedError(RejectReason.TRUNCATED, detail) from None
        if not len(block):
            return
        num_left -= len(block)
        yield np.ascontiguousarray(block.T)
    if sound.format == "FLAC" and _has_more(sound):
        detail = f"its header says {num_declared} samples, but more are there; the rest would be lost"
        raise AudioRejectedError(RejectReason.TRUNCATED, detail)


def _has_more(sound: _UnseekingFile) -> bool:
    try:
        return len(sound.read(1)) > 0
    except soundfile.LibsndfileError:  # tags or padding, which are no audio
        return False


def _write_mono(block: NDArray[np.float32], write: Callable[[Pcm], object]) -> int:
    if not block.size:
        return 0
    mono = to_mono(block)
    # Whatever was not finite in a channel is not finite here, and so is what overflowed on the way.
    if not _is_finite(mono):
        raise AudioRejectedError(RejectReason.NOT_FINITE, "the waveform holds NaN or infinity")
    write(mono)
    return len(mono)


def _is_finite(mono: NDArray[np.float32]) -> bool:
    # Squares cannot cancel each other, so a finite sum of them, which takes a tenth of the time, leaves no doubt.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(mono, mono)) or np.isfinite(mono).all())


def _check_source_length(num_source: int, num_declared: int | None, sound: _UnseekingFile, limits: ClipLimits) -> None:
    if num_declared is not None and num_source < num_declared:
        detail = f"its header says {num_declared} samples, {num_source} came out"
        raise AudioRejectedError(RejectReason.TRUNCATED, detail)
    limits.check_not_too_short(num_source, sound.samplerate)


def _num_declared(sound: _UnseekingFile, audio: bytes) -> int | None:
    num_frames: int = flac_length(audio) or sound.frames
    return num_frames if num_frames < _UNKNOWN_LENGTH_MIN else None


def _unreadable(error: soundfile.LibsndfileError) -> Exception:
    if error.code == _MALLOC_FAILED:
        return MemoryError(error.error_string)
    return AudioRejectedError(RejectReason.UNREADABLE, f"libsndfile: {error.error_string}")
