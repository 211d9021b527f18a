"""What tells the codecs of the transformers package apart: their sizes, and how each is called.

They share one shape: waveforms [B, 1, T] to ids [B, K, F] and back. `FAMILIES` is by `model_type` of `config.json`.
Configs and models are the package's own, hence `Any`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from codec.base import CodecError


@dataclass(frozen=True)
class Sizes:
    """A codec's numbers, by its config; of `num_codebooks` ids a frame the first `num_semantic` are semantic.

    `looks_ahead` means that a frame depends on what follows the clip, be it zeros: such clips share a batch only
    with clips as long.
    """

    sample_rate_hz: int
    frame_size: int
    cardinality: int
    num_codebooks: int
    num_semantic: int
    looks_ahead: bool


@dataclass(frozen=True)
class Family:
    """One kind of codec.

    `encode` takes a model, waveforms float32 [B, 1, T] of whole frames and a number of codebooks, and gives ids
    int64 [B, K', F], K' at least that number; `decode` takes a model and ids [B, K, F] and gives [B, 1, T] or [B, T].
    """

    config_class: str
    model_class: str
    sizes: Callable[[Any], Sizes]
    encode: Callable[[Any, torch.Tensor, int], torch.Tensor]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]


_PADS_BEFORE = ("constant", "replicate")
"""Paddings of a causal convolution that look at nothing behind the clip."""


def _mimi_sizes(config: Any) -> Sizes:
    if config.audio_channels != 1:
        raise CodecError(f"this Mimi has audio_channels {config.audio_channels}; clips here are mono")
    if config.num_semantic_quantizers != 1:
        raise CodecError(
            f"this Mimi has {config.num_semantic_quantizers} semantic codebooks; one is what token shards hold"
        )
    return Sizes(
        sample_rate_hz=config.sampling_rate,
        frame_size=config.frame_size,
        cardinality=config.codebook_size,
        num_codebooks=config.num_quantizers,
        num_semantic=1,
        looks_ahead=not config.use_causal_conv or config.pad_mode not in _PADS_BEFORE,
    )


def _encode_mimi(model: Any, waveforms: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    ids: torch.Tensor = model.encode(waveforms, num_quantizers=num_codebooks).audio_codes
    return ids


def _encodec_sizes(config: Any) -> Sizes:
    refused = {
        f"audio_channels is {config.audio_channels}; clips here are mono": config.audio_channels != 1,
        "chunk_length_s is set; frames of overlapping chunks are more than a clip's": config.chunk_length_s is not None,
        "normalize is set; decoding needs each clip's loudness, which is not in the ids": config.normalize,
    }
    for reason, found in refused.items():
        if found:
            raise CodecError(f"this EnCodec cannot be used: {reason}; use one like facebook/encodec_24khz")
    return Sizes(
        sample_rate_hz=config.sampling_rate,
        frame_size=config.hop_length,
        cardinality=config.codebook_size,
        num_codebooks=config.num_quantizers,
        num_semantic=0,
        # A group norm is over all of a clip's time, and padding by reflection mirrors, in clips of a few frames, what
        # stands past the end to before the start.
        looks_ahead=not config.use_causal_conv
        or config.norm_type == "time_group_norm"
        or config.pad_mode not in _PADS_BEFORE,
    )


def _encode_encodec(model: Any, waveforms: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    # [chunks, B, K, F]; without chunk_length_s there is one chunk.
    ids: torch.Tensor = model.encode(waveforms, bandwidth=_bandwidth(model, num_codebooks)).audio_codes[0]
    return ids


def _dac_sizes(config: Any) -> Sizes:
    return Sizes(
        sample_rate_hz=config.sampling_rate,
        frame_size=config.hop_length,
        cardinality=config.codebook_size,
        num_codebooks=config.n_codebooks,
        num_semantic=0,
        looks_ahead=True,
    )


def _encode_dac(model: Any, waveforms: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    ids: torch.Tensor = model.encode(waveforms, n_quantizers=num_codebooks).audio_codes
    return ids


def _xcodec_sizes(config: Any) -> Sizes:
    return Sizes(
        sample_rate_hz=config.sample_rate,
        frame_size=config.hop_length,
        cardinality=config.codebook_size,
        num_codebooks=config.num_quantizers,
        # Features of HuBERT and of the audio go into one residual quantizer: no codebook is of semantics alone.
        num_semantic=0,
        looks_ahead=True,
    )


def _encode_xcodec(model: Any, waveforms: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    ids: torch.Tensor = model.encode(waveforms, bandwidth=_bandwidth(model, num_codebooks)).audio_codes
    return ids


def _bandwidth(model: Any, num_codebooks: int) -> float:
    """The least of the model's bandwidths that has so many codebooks, which is how EnCodec and X-Codec are asked."""
    bandwidths: list[float] = sorted(model.config.target_bandwidths)
    enough = (one for one in bandwidths if model.quantizer.get_num_quantizers_for_bandwidth(one) >= num_codebooks)
    return next(enough, bandwidths[-1])


def _decode_encodec(model: Any, ids: torch.Tensor) -> torch.Tensor:
    waveforms: torch.Tensor = model.decode(ids[None], [None]).audio_values
    return waveforms


def _decode(model: Any, ids: torch.Tensor) -> torch.Tensor:
    waveforms: torch.Tensor = model.decode(audio_codes=ids).audio_values
    return waveforms


FAMILIES: Mapping[str, Family] = {
    "mimi": Family("MimiConfig", "MimiModel", _mimi_sizes, _encode_mimi, _decode),
    "encodec": Family("EncodecConfig", "EncodecModel", _encodec_sizes, _encode_encodec, _decode_encodec),
    "dac": Family("DacConfig", "DacModel", _dac_sizes, _encode_dac, _decode),
    "xcodec": Family("XcodecConfig", "XcodecModel", _xcodec_sizes, _encode_xcodec, _decode),
}
