"""The published files of a checkpoint: found, hashed, and read strictly into modules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from codec.base import CheckpointError, CodecInfo
from codec.longcat.config import PUBLISHED, SEGMENT_S_MAX, LongCatConfig, read_config
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import NUM_MELS, FeatureConstants, feature_constants
from codec.longcat.layers import PublishedLayer, Shapes, Tensors
from codec.sources import Source

ENCODER_FILE = "LongCatAudioCodec_encoder.pt"
CMVN_FILE = "LongCatAudioCodec_encoder_cmvn.npy"
CONFIG_FILE = "config.json"

_FEATURES = "semantic_tokenizer.feature_extractor"
FEATURE_CONSTANTS = {
    "window": f"{_FEATURES}.fbank.window",
    "mel_banks": f"{_FEATURES}.fbank.mel_banks",
    "mean": f"{_FEATURES}.cmvn.cmvn_mean",
    "scale": f"{_FEATURES}.cmvn.cmvn_scale",
}
DERIVED_TENSORS = frozenset((*FEATURE_CONSTANTS.values(), f"{_FEATURES}.fbank.eps"))
"""Buffers that follow from formulas and the statistics file: a checkpoint may hold or lack them."""

_DERIVED_ERROR_MAX = 1e-4
"""Of the largest value: between processors the formulas' last bits differ by less than a tenth of it."""

_FAULTS_SHOWN_MAX = 8

_Module = TypeVar("_Module", bound=nn.Module)


def decoder_file(name: str) -> str:
    """The file of a decoder of the config."""
    return f"LongCatAudioCodec_decoder_{name}.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and sizes; no weights are read yet."""

    source: Source
    folder: Path
    config: LongCatConfig

    def info(self) -> CodecInfo:
        """What the codec is. Reads the encoder's files once for their hash, a block at a time.

        The hash is over the lines `<name> <SHA-256>` of the encoder, its statistics and, where there is one,
        config.json, in name order.
        """
        acoustic = self.config.acoustic
        return CodecInfo(
            name=self.config.codec,
            checkpoint_hash=_hash_files(self._encoder_files()),
            sample_rate_hz=self.config.sample_rate_hz,
            frame_size=self.config.frame_size,
            semantic_cardinality=self.config.semantic.cardinality,
            acoustic_cardinalities=(acoustic.cardinality,) * acoustic.num_codebooks,
            segment_s_max=SEGMENT_S_MAX,
            decoder_sample_rates_hz=tuple(
                sorted({decoder.sample_rate_hz for decoder in self.config.decoders.values()})
            ),
            tells_residuals=True,
        )

    def load_encoder(self) -> LongCatEncoder:
        """The encoder on the CPU, float32. Raises `CheckpointError` like `read_module`."""
        return read_module(lambda: LongCatEncoder(self.config), self.folder / ENCODER_FILE, ignored=DERIVED_TENSORS)

    def load_statistics(self) -> torch.Tensor:
        """The feature statistics, float64 [2, 81]. Raises `CheckpointError` on anything else."""
        path = self.folder / CMVN_FILE
        try:
            stats = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CheckpointError(f"{path} is no plain .npy array; fetch the checkpoint again") from error
        expected = (2, NUM_MELS + 1)
        if stats.shape != expected or stats.dtype.kind != "f" or not np.isfinite(stats).all() or stats[0, -1] <= 0:
            raise CheckpointError(
                f"{path}: found {stats.dtype} {stats.shape}; allowed: finite floats {expected}, "
                "the count (the last of row 0) above 0"
            )
        return torch.from_numpy(stats.astype(np.float64))

    def load_feature_constants(self) -> FeatureConstants:
        """The constants of the log-mel features: the encoder file's own where it holds them, else by the formulas.

        Raises `CheckpointError` naming those that the formulas contradict.
        """
        path = self.folder / ENCODER_FILE
        derived = feature_constants(self.load_statistics(), sample_rate_hz=self.config.sample_rate_hz)
        tensors = _read_tensors(path)
        held = {field: tensors[name].clone() for field, name in FEATURE_CONSTANTS.items() if name in tensors}
        for field, tensor in held.items():
            if not _agree(tensor, getattr(derived, field)):
                raise CheckpointError(
                    f"{path}: {FEATURE_CONSTANTS[field]}: is not what the formulas and {CMVN_FILE} give (found "
                    f"{tensor.dtype} {list(tensor.shape)}); the two files are not of one checkpoint, or are damaged"
                )
        return replace(derived, **held)

    def load_decoder(self, name: str) -> LongCatDecoder:
        """A decoder of the config on the CPU, float32; fetched now. Raises `CheckpointError` like `read_module`."""
        path = self.source.fetch([decoder_file(name)]) / decoder_file(name)
        if not path.is_file():
            raise CheckpointError(
                f"{self.source.uri} has no {path.name}, which decoding needs; add it to the checkpoint"
            )
        return read_module(lambda: LongCatDecoder(self.config, self.config.decoders[name]), path)

    def _encoder_files(self) -> list[Path]:
        config_file = self.folder / CONFIG_FILE
        return [self.folder / ENCODER_FILE, self.folder / CMVN_FILE, *([config_file] if config_file.is_file() else [])]


def open_checkpoint(source: Source) -> Checkpoint:
    """The checkpoint of a source, its encoder's files fetched.

    Raises `CheckpointError` when one of them is not there or the config is wrong, and what the source raises.
    """
    folder = source.fetch([ENCODER_FILE, CMVN_FILE, CONFIG_FILE])
    missing = [name for name in (ENCODER_FILE, CMVN_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{source.uri} has no {' and no '.join(missing)}, neither at its top nor in ckpts/; "
            "give a folder with a checkpoint's published file names"
        )
    config_file = folder / CONFIG_FILE
    return Checkpoint(source, folder, read_config(config_file) if config_file.is_file() else PUBLISHED)


def published_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's learned tensors in a checkpoint, by the checkpoint's names."""
    return {
        _join(prefix, name): shape
        for prefix, layer in module.named_modules()
        for name, shape in _layer_shapes(layer).items()
    }


def read_module(build: Callable[[], _Module], path: Path, *, ignored: frozenset[str] = frozenset()) -> _Module:
    """A module with the learned tensors of a checkpoint file, on the CPU, without gradients.

    It is built without memory, and unchanged tensors stay views of the mapped file, so the weights are in memory
    once. The file must hold exactly the module's learned tensors, float32, finite, in their shapes; names in
    `ignored` may be there or not. Raises `CheckpointError` naming the file and each tensor that is missing,
    unknown or wrong, or when the file is no archive of plain tensors; code in it is never run.
    """
    with torch.device("meta"):
        module = build()
    tensors = {name: tensor for name, tensor in _read_tensors(path).items() if name not in ignored}
    _raise_faults(path, _faults(tensors, published_shapes(module)))
    state: dict[str, torch.Tensor] = {}
    for prefix, layer in module.named_modules():
        own: Tensors = {name: tensors[_join(prefix, name)] for name in _layer_shapes(layer)}
        if isinstance(layer, PublishedLayer):
            own = layer.from_published(own)
            _raise_faults(path, (f"{prefix}: its {name} is not finite" for name in own if not _is_finite(own[name])))
        state |= {_join(prefix, name): tensor for name, tensor in own.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # What a damaged or hostile archive makes the unpickler raise is not bounded by any documented class.
        raise CheckpointError(
            f"{path} is no archive of plain tensors as torch.save writes it, or holds code, which is never run; "
            "fetch the checkpoint again from a place you trust"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; allowed: one dict of names to tensors")
    return found


def _faults(tensors: Tensors, shapes: Shapes) -> Iterator[str]:
    for name, shape in shapes.items():
        if name not in tensors:
            yield f"{name}: missing, expected {list(shape)}"
            continue
        found = tensors[name]
        if tuple(found.shape) != shape:
            yield f"{name}: found {list(found.shape)}, expected {list(shape)}"
        elif found.dtype != torch.float32:
            yield f"{name}: found {found.dtype}, expected torch.float32"
        elif not _is_finite(found):
            yield f"{name}: found NaN or infinity, expected finite numbers"
    for name, tensor in tensors.items():
        # A counter or flag that training left there (an integer, a single number) is nothing learned.
        if name not in shapes and tensor.is_floating_point() and tensor.dim():
            yield f"{name}: unknown, found {list(tensor.shape)}"


def _raise_faults(path: Path, faults: Iterator[str]) -> None:
    found = list(faults)
    if found:
        more = [f"and {len(found) - _FAULTS_SHOWN_MAX} more"] if len(found) > _FAULTS_SHOWN_MAX else []
        raise CheckpointError(
            f"{path} does not fit the sizes of its config.json (or, without one, the published sizes); "
            f"{len(found)} tensor(s) at fault:\n  " + "\n  ".join(found[:_FAULTS_SHOWN_MAX] + more)
        )


def _agree(held: torch.Tensor, derived: torch.Tensor) -> bool:
    if held.shape != derived.shape or held.dtype != derived.dtype:
        return False
    return bool((held - derived).abs().max() <= _DERIVED_ERROR_MAX * derived.abs().max())


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all of a tensor is finite, without a second tensor of its size."""
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _layer_shapes(layer: nn.Module) -> Shapes:
    if isinstance(layer, PublishedLayer):
        return layer.published_shapes()
    own = chain(layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
    return {name: tuple(tensor.shape) for name, tensor in own}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
