"""A fake codec of set cost: for tests, benches and trying a cluster without a model.

Its ids are a hash of a frame's samples rounded to 16 bits: known beforehand, the same in any batch, and other ids for
other audio. With `ids=zero` all are 0 and no sample is looked at, so that a run shows what is around a codec alone.
Its "latents" are the samples, of which each acoustic codebook takes the next three bits from the top: of loud clips a
smaller share is left than of quiet ones, and silence has no energy at all.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codec.base import CodecError, CodecInfo, Tokens
from codec.batch import batch_frames, check_batch, check_streams, pad_batch, past_end_mask
from codec.framing import num_frames

PREFIX = "calibrated:"

_SAMPLE_RATE_HZ = 16000
_SEGMENT_S_MAX = 30.0
_SEMANTIC_CARDINALITY = 8192
_ACOUSTIC_CARDINALITY = 8100
_HASH_VERSION = 1
_BITS_A_CODEBOOK = 3


class CalibratedOptions(BaseModel):
    """The options of `calibrated:cost_s=0.5,per=batch,mode=sleep,frame_size=960,codebooks=3,ids=hash`, each optional.

    A batch costs `cost_s`, or with `per=audio_s` that much for each second of its padded audio; `sleep` leaves the
    processor free, `spin` keeps it busy. Hashes take some 150 us of a core for a second of audio, `ids=zero` nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cost_s: float = Field(0.0, ge=0, le=3600, allow_inf_nan=False)
    per: Literal["batch", "audio_s"] = "batch"
    mode: Literal["sleep", "spin"] = "sleep"
    frame_size: int = Field(960, ge=1, le=_SAMPLE_RATE_HZ)
    codebooks: int = Field(3, ge=1, le=32)
    ids: Literal["hash", "zero"] = "hash"


def parse_options(uri: str) -> CalibratedOptions:
    """The options in a `calibrated:` URI. Raises `CodecError` naming each option that is wrong."""
    values: dict[str, str] = {}
    for item in filter(None, uri.removeprefix(PREFIX).split(",")):
        name, _, value = item.partition("=")
        if name in values:
            raise CodecError(f"{uri}: option {name!r} stands there twice; give it once")
        values[name] = value
    try:
        return CalibratedOptions.model_validate(values)
    except ValidationError as error:
        faults = [f"{fault['loc'][0]}={fault['input']!r}: {fault['msg']}" for fault in error.errors(include_url=False)]
        known = ", ".join(CalibratedOptions.model_fields)
        raise CodecError(f"{uri}: {'; '.join(faults)}; the options are {known}") from None


@dataclass(frozen=True)
class CalibratedLoader:
    """A `codec.base.CodecLoader` of a `calibrated:` URI; on any device, in any precision, it is the same."""

    options: CalibratedOptions

    def info(self) -> CodecInfo:
        """What the codec is."""
        return calibrated_info(self.options)

    def load(self, *, device: str, precision: str) -> CalibratedCodec:  # noqa: ARG002 (it computes nothing)
        """The codec."""
        return CalibratedCodec(self.options)


class CalibratedCodec:
    """A `codec.base.Codec` that costs what it is told and cannot decode.

    A `ResidualCodec` too, but with `ids=zero`, where `encode_with_residuals` raises `CodecError`.
    """

    def __init__(self, options: CalibratedOptions) -> None:
        self._options = options
        self._info = calibrated_info(options)

    @property
    def info(self) -> CodecInfo:
        """LongCat's numbers, but for the options; the hash covers what decides the ids, not the cost."""
        return self._info

    def encode(
        self,
        waveforms: torch.Tensor,
        lengths: torch.Tensor,
        *,
        semantic: bool = True,
        num_acoustic_codebooks: int | None = None,
    ) -> Tokens:
        """Tokens of a batch of clips, as `codec.base.Codec.encode` says."""
        num_codebooks = check_streams(semantic, num_acoustic_codebooks, info=self._info)
        lengths = check_batch(waveforms, lengths, info=self._info)
        num_frames_max = num_frames(waveforms.shape[1], self._info.frame_size)
        self._spend(len(lengths) * num_frames_max / self._info.frame_rate_hz)
        if self._options.ids == "zero":
            return self._zeros(batch_frames(lengths, info=self._info), num_frames_max, semantic, num_codebooks)
        batch = pad_batch(waveforms, lengths, info=self._info)
        hashes = _frame_hashes(batch.waveforms.numpy(), self._options.frame_size)
        past_end = past_end_mask(batch.num_frames, batch.num_frames_max)

        def ids(stream: int, cardinality: int) -> torch.Tensor:
            found = (_mixed(hashes + np.uint64(stream)) % np.uint64(cardinality)).astype(np.int64)
            return torch.from_numpy(found).masked_fill(past_end, 0)

        acoustic = [
            ids(1 + codebook, cardinality)
            for codebook, cardinality in enumerate(self._info.acoustic_cardinalities[:num_codebooks])
        ]
        return Tokens(
            semantic=ids(0, self._info.semantic_cardinality) if semantic else None,
            acoustic=torch.stack(acoustic, dim=1) if acoustic else None,
            num_frames=batch.num_frames,
        )

    def encode_with_residuals(
        self, waveforms: torch.Tensor, lengths: torch.Tensor, *, semantic: bool = True
    ) -> tuple[Tokens, torch.Tensor]:
        """Tokens with all acoustic codebooks, and what each of them leaves, as `codec.base.ResidualCodec` says."""
        if not self._info.tells_residuals:
            raise CodecError(
                "the calibrated codec with ids=zero looks at no sample; leave ids away to choose codebooks"
            )
        tokens = self.encode(waveforms, lengths, semantic=semantic)
        batch = pad_batch(waveforms, lengths, info=self._info)
        return tokens, _residual_energies(batch.waveforms.numpy(), self._options.codebooks)

    def _zeros(self, frames: torch.Tensor, num_frames_max: int, semantic: bool, num_codebooks: int) -> Tokens:
        zeros = torch.zeros(1 + num_codebooks, len(frames), num_frames_max, dtype=torch.int64)
        return Tokens(
            semantic=zeros[0] if semantic else None,
            acoustic=zeros[1:].transpose(0, 1) if num_codebooks else None,
            num_frames=frames,
        )

    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        """Raises `CodecError`: the ids hold no audio."""
        raise CodecError(
            f"the calibrated codec cannot decode (asked for {int(tokens.num_frames.sum())} frames to "
            f"{sample_rate_hz} Hz): its ids are hashes; use a codec with a decoder, such as longcat"
        )

    def _spend(self, padded_audio_s: float) -> None:
        options = self._options
        cost_s = options.cost_s * (padded_audio_s if options.per == "audio_s" else 1.0)
        if options.mode == "sleep":
            time.sleep(cost_s)
            return
        end_s = time.perf_counter() + cost_s
        while time.perf_counter() < end_s:
            pass


def calibrated_info(options: CalibratedOptions) -> CodecInfo:
    """What a calibrated codec of these options is."""
    decisive = f"calibrated {_HASH_VERSION} {options.frame_size} {options.codebooks}"
    if options.ids == "zero":
        decisive += " zero"
    return CodecInfo(
        name="calibrated",
        checkpoint_hash=hashlib.sha256(decisive.encode()).hexdigest(),
        sample_rate_hz=_SAMPLE_RATE_HZ,
        frame_size=options.frame_size,
        semantic_cardinality=_SEMANTIC_CARDINALITY,
        acoustic_cardinalities=(_ACOUSTIC_CARDINALITY,) * options.codebooks,
        segment_s_max=_SEGMENT_S_MAX,
        tells_residuals=options.ids == "hash",
    )


def _rounded(waveforms: NDArray[np.float32]) -> NDArray[np.int64]:
    """The samples rounded to 16 bits."""
    samples: NDArray[np.int64] = np.rint(np.clip(waveforms, -1.0, 1.0) * 32767.0).astype(np.int64)
    return samples


def _frame_hashes(waveforms: NDArray[np.float32], frame_size: int) -> NDArray[np.uint64]:
    """A polynomial hash, modulo 2^64, of each frame's samples: uint64 [B, F] of float32 [B, F * frame_size]."""
    samples = _rounded(waveforms).astype(np.uint64)
    weights = np.cumprod(np.full(frame_size, 6364136223846793005, dtype=np.uint64))
    frames = samples.reshape(*samples.shape[:-1], -1, frame_size)
    hashed: NDArray[np.uint64] = (frames * weights).sum(axis=-1, dtype=np.uint64)
    return hashed


def _residual_energies(waveforms: NDArray[np.float32], num_codebooks: int) -> torch.Tensor:
    """Energies float64 [B, 1 + K] of float32 [B, T]: of the samples, and of their bits below the first 3, 6, ...

    Sums of integers below 2^53, so exact, whatever the batch.
    """
    sizes = np.abs(_rounded(waveforms))
    lowest_bits = [max(0, 15 - _BITS_A_CODEBOOK * codebook) for codebook in range(num_codebooks + 1)]
    left = np.stack([np.square(sizes % (1 << lowest_bit)).sum(axis=-1) for lowest_bit in lowest_bits], axis=-1)
    return torch.from_numpy(left.astype(np.float64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finish (https://prng.di.unimi.it/splitmix64.c): neighbouring inputs, unrelated outputs."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
