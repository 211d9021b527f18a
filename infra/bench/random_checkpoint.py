"""A full-size LongCat checkpoint with random weights under the published names: for speed, not for meaning.

    python -m infra.bench.random_checkpoint FOLDER

Weights keep the variance of what flows through them, and codebooks are drawn around what the encoder makes of noise
and tones, so that ids are spread over the codebooks as those of trained weights are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from codec.longcat.checkpoint import CMVN_FILE, ENCODER_FILE, Checkpoint, open_checkpoint, published_shapes
from codec.longcat.config import PUBLISHED
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import NUM_MELS
from codec.longcat.model import LongCatCodec
from codec.longcat.quantizer import HalvedCodebook
from codec.sources import LocalFolder
from infra.bench.speech import cache_folder

_SEED = 0
_PROBE_S = 20
_ATTENTION_SCALE = 0.1
"""Random attention averages a clip's frames, and 26 layers of it would make them all alike."""

_LOG_MEL_MEAN, _LOG_MEL_DEVIATION = 10.0, 4.0
"""About those of speech."""


def random_checkpoint(folder: Path | None = None) -> Path:
    """The folder of the checkpoint, 2.1 GB, made at its first use."""
    place = folder or cache_folder().parent / "random-longcat"
    if place.is_dir():
        return place
    making = place.with_name(f".{place.name}.part")
    making.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.device("meta"):
        shapes = published_shapes(LongCatEncoder(PUBLISHED))
    tensors = {name: _drawn(name, shape, generator) for name, shape in shapes.items()}
    _save(making, tensors)
    tensors |= _fitted_codebooks(open_checkpoint(LocalFolder(making)), generator)
    _save(making, tensors)
    making.rename(place)
    return place


def random_decoder(name: str, *, device: torch.device) -> LongCatDecoder:
    """A decoder of the published sizes in memory, 600 MB, of random weights: for speed alone."""
    generator = torch.Generator(device).manual_seed(_SEED)
    with torch.device("meta"):
        decoder = LongCatDecoder(PUBLISHED, PUBLISHED.decoders[name])
    decoder.to_empty(device=device).requires_grad_(False)
    for parameter in decoder.parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.5)
        else:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter[0].numel()), generator=generator)
    return decoder.eval()


def _save(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    count = 1000.0
    statistics = np.empty((2, NUM_MELS + 1))
    statistics[0] = _LOG_MEL_MEAN * count
    statistics[1] = (_LOG_MEL_MEAN**2 + _LOG_MEL_DEVIATION**2) * count
    statistics[0, -1] = count
    torch.save(dict(tensors), folder / ENCODER_FILE)
    np.save(folder / CMVN_FILE, statistics)


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    last = name.rpartition(".")[2]
    if last == "alpha":
        return 0.5 + torch.rand(shape, generator=generator)
    if last.endswith("bias"):
        return torch.zeros(shape)
    if last == "weight_g" or len(shape) == 1:  # an output channel's norm, a LayerNorm's scale
        return torch.ones(shape)
    scale = _ATTENTION_SCALE if name.endswith("out_proj.weight") else 1.0
    return scale * torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


@torch.no_grad()
def _fitted_codebooks(checkpoint: Checkpoint, generator: torch.Generator) -> dict[str, torch.Tensor]:
    codec = LongCatCodec(checkpoint)
    waveform = _probe(codec.info.sample_rate_hz, generator)
    probe = waveform[None], torch.tensor([len(waveform)])
    features = torch.nn.functional.normalize(codec.semantic_features(*probe)[0], dim=-1)
    fitted = {"semantic_tokenizer.kmeans.codebook": _around(features, PUBLISHED.semantic.cardinality, generator).T}
    residual = codec.acoustic_latents(*probe)
    quantizers = cast(Sequence[HalvedCodebook], codec.encoder.acoustic_quantizer.quantizers)
    for index, quantizer in enumerate(quantizers):
        for half, project in (("a", quantizer.in_proj_a), ("b", quantizer.in_proj_b)):
            entries = _around(project(residual)[0], quantizer.half_cardinality, generator)
            fitted[f"acoustic_quantizer.quantizers.{index}.codebook_{half}.weight"] = entries
            getattr(quantizer, f"codebook_{half}").weight.copy_(entries)
        residual = residual - quantizer.value(quantizer.nearest(residual))
    return {name: tensor.contiguous() for name, tensor in fitted.items()}


def _around(vectors: torch.Tensor, num: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [num, D], normally distributed as the vectors [N, D] are, dimension by dimension."""
    noise = torch.randn(num, vectors.shape[1], generator=generator)
    return vectors.mean(0) + noise * vectors.std(0)


def _probe(sample_rate_hz: int, generator: torch.Generator) -> torch.Tensor:
    """Tones that glide and swell, with noise: float32 [T]."""
    t = torch.arange(_PROBE_S * sample_rate_hz) / sample_rate_hz
    glide = torch.sin(2 * math.pi * (150 * t + 40 * torch.sin(2 * t)))
    swell = 0.5 + 0.5 * torch.sin(2 * math.pi * 3 * t)
    return 0.3 * glide * swell + 0.03 * torch.randn(len(t), generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(random_checkpoint(parser.parse_args().folder))


if __name__ == "__main__":
    main()
