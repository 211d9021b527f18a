"""A LongCat checkpoint as `voxmill convert` writes it: `config.json` and `model.safetensors`.

Its tensors are this package's own, weight norm folded and named by its modules: `encoder.*`, `decoders.<name>.*`,
`features.*`. Reading it needs no transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from codec.base import CheckpointError, CodecError, CodecInfo, DecoderInfo
from codec.longcat.checkpoint import CONFIG_FILE, faults_of, raise_faults
from codec.longcat.config import LongCatConfig, parse_config
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import NUM_MELS, FeatureConstants, feature_constants
from codec.longcat.layers import Conv, TransposedConv
from codec.longcat.tokens import choose_decoder
from codec.longcat.weights import decoder_info_of, info_of
from codec.sources import Source, hash_files

MODEL_TYPE = "longcat_audio_codec"
"""In `config.json`; what transformers knows the model by once `codec.hf` is imported."""

WEIGHTS_FILE = "model.safetensors"

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A folder with the two files; no weights are read yet. `codec.longcat.weights.Weights`."""

    source: Source
    folder: Path
    config: LongCatConfig

    def info(self) -> CodecInfo:
        """What the codec is. Reads both files once for their hash, which is another than the published files'."""
        return info_of(self.config, checkpoint_hash=self._hash())

    def decoder_info(self, sample_rate_hz: int, num_acoustic_codebooks: int) -> DecoderInfo:
        """The decoder that `choose_decoder` takes. Raises `ValueError` as that."""
        name = choose_decoder(self.config.decoders, sample_rate_hz, num_acoustic_codebooks)
        return decoder_info_of(self.config, name, file_hash=self._hash())

    def load_encoder(self) -> LongCatEncoder:
        """The encoder. Raises `CheckpointError` naming each tensor that is missing, unknown or wrong."""
        return self._module(lambda: LongCatEncoder(self.config), "encoder.")

    def load_feature_constants(self) -> FeatureConstants:
        """The constants of the log-mel features. Raises `CheckpointError` as `load_encoder`."""
        tensors = self._tensors("features.")
        likeness = feature_constants(torch.ones(2, NUM_MELS + 1).double(), sample_rate_hz=self.config.sample_rate_hz)
        names = ("window", "mel_banks", "mean", "scale")
        shapes = {name: tuple(getattr(likeness, name).shape) for name in names}
        raise_faults(self.folder / WEIGHTS_FILE, faults_of(tensors, shapes))
        return FeatureConstants(**{name: tensors[name] for name in names})

    def load_decoder(self, name: str) -> LongCatDecoder:
        """A decoder of the config. Raises `CheckpointError` as `load_encoder`."""
        return self._module(lambda: LongCatDecoder(self.config, self.config.decoders[name]), f"decoders.{name}.")

    def _hash(self) -> str:
        return hash_files([self.folder / CONFIG_FILE, self.folder / WEIGHTS_FILE])

    def _module(self, build: Callable[[], _Module], prefix: str) -> _Module:
        with torch.device("meta"):
            module = build()
        tensors = self._tensors(prefix)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        raise_faults(self.folder / WEIGHTS_FILE, faults_of(tensors, shapes))
        module.load_state_dict({name: tensors[name] for name in shapes}, strict=True, assign=True)
        for layer in module.modules():
            if isinstance(layer, (Conv, TransposedConv)) and layer.weight.dim() == 4:
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        return module.requires_grad_(False).eval()

    def _tensors(self, prefix: str) -> Mapping[str, torch.Tensor]:
        """The tensors below a prefix, without it; no others are read."""
        path = self.folder / WEIGHTS_FILE
        safetensors = _require_safetensors()
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is no dict)
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"{path} is no whole safetensors file ({error}); convert or fetch it again"
            ) from error


def converted_in(source: Source) -> ConvertedCheckpoint:
    """The converted checkpoint of a source, its files fetched.

    Raises `CheckpointError` when one is not there or the config is wrong, `CodecError` without the safetensors package,
    and what the source raises.
    """
    _require_safetensors()
    folder = source.fetch([CONFIG_FILE, WEIGHTS_FILE])
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{source.uri} has no {WEIGHTS_FILE}, which its {CONFIG_FILE} belongs to; convert it again"
        )
    path = folder / CONFIG_FILE
    return ConvertedCheckpoint(source, folder, parse_config(sizes_of(json.loads(path.read_bytes())), path))


def sizes_of(settings: Mapping[str, Any]) -> bytes:
    """The settings of a converted `config.json` as JSON of `LongCatConfig`."""
    named = {"codec": "longcat", "sample_rate_hz": settings.get("sampling_rate")}
    parts = {name: settings[name] for name in ("acoustic", "semantic", "decoders") if name in settings}
    return json.dumps({**named, **parts}).encode()


def _require_safetensors() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise CodecError(
            "a converted checkpoint needs the safetensors package, which is not installed: pip install safetensors "
            "(voxmill's extra `hf` has it)"
        ) from error
    return safetensors
