"""Codecs of the transformers package: a repository or folder as `save_pretrained` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from codec.arithmetic import arithmetic, check_device
from codec.base import CheckpointError, CodecError, CodecInfo, Tokens
from codec.batch import check_streams, pad_batch, past_end_mask
from codec.sources import Source, hash_files
from codec.tokens import own_tokens
from codec.transformers_families import FAMILIES, Family, Sizes

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

SEGMENT_S_MAX = 30.0
"""The longest piece that the data plane cuts; these codecs take longer ones, at a cost that grows with the square."""

PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32")}
"""In half precision their searches of codebooks would be too, and find other ids."""

_PROBE_FRAMES = 3


@dataclass(frozen=True)
class TransformersCheckpoint:
    """A folder with `config.json` and `model.safetensors`; no weights are read yet. A `codec.base.CodecLoader`."""

    source: Source
    folder: Path
    model_type: str

    def info(self) -> CodecInfo:
        """What the codec is, by its config; the files are read once for their hash.

        Raises `CodecError` where the transformers package is missing or the codec is of a kind that cannot be used,
        `CheckpointError` when a file is missing or wrong.
        """
        if not (self.folder / WEIGHTS_FILE).is_file():
            raise CheckpointError(
                f"{self.source.uri} has no {WEIGHTS_FILE}: weights are read from that one file alone, never from "
                "pickles (.bin, .pt); save the model anew with save_pretrained"
            )
        sizes = self.sizes
        return CodecInfo(
            name=self.model_type,
            checkpoint_hash=hash_files([self.folder / CONFIG_FILE, self.folder / WEIGHTS_FILE]),
            sample_rate_hz=sizes.sample_rate_hz,
            frame_size=sizes.frame_size,
            semantic_cardinality=sizes.cardinality if sizes.num_semantic else 0,
            acoustic_cardinalities=(sizes.cardinality,) * (sizes.num_codebooks - sizes.num_semantic),
            segment_s_max=SEGMENT_S_MAX,
            decoder_sample_rates_hz=(sizes.sample_rate_hz,),
            semantic_required=sizes.num_semantic > 0,
        )

    def load(self, *, device: str, precision: str) -> TransformersCodec:
        """The codec on a device. Raises as `info`, and `ValueError` on a precision that is not offered."""
        return TransformersCodec(self, device=device, precision=precision)

    @property
    def family(self) -> Family:
        """How a codec of this kind is called."""
        return FAMILIES[self.model_type]

    @cached_property
    def config(self) -> Any:
        """The package's config object. Raises `CheckpointError` when the file does not make one."""
        config_class = getattr(require_transformers(), self.family.config_class)
        try:
            return config_class.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:
            # Configs check themselves by assertions, errors of their own, and whatever arithmetic then raises.
            raise CheckpointError(
                f"{self.folder / CONFIG_FILE} is no {self.family.config_class}: {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def sizes(self) -> Sizes:
        """The numbers of the config. Raises as `config`, and `CodecError` for a codec that cannot be used here."""
        return self.family.sizes(self.config)

    def load_model(self) -> Any:
        """The package's model on the CPU, float32, in evaluation mode. Raises `CheckpointError` on wrong weights."""
        package = require_transformers()
        try:
            model, found = getattr(package, self.family.model_class).from_pretrained(
                str(self.folder),
                config=self.config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # Sizes that differ and files that are none raise errors of several packages, with no class in common.
            raise CheckpointError(
                f"{self.folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {type(error).__name__}: {error}"
            ) from error
        if missing := sorted(found["missing_keys"]):
            raise CheckpointError(
                f"{self.folder / WEIGHTS_FILE} lacks {len(missing)} tensors of a {self.family.model_class}, among them "
                f"{', '.join(missing[:8])}; they would be random"
            )
        if broken := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
            raise CheckpointError(f"{self.folder / WEIGHTS_FILE}: NaN or infinity in {', '.join(broken[:8])}")
        return model.requires_grad_(False).eval()


class TransformersCodec:
    """A `codec.base.Codec`. In float32 a clip's tokens do not depend on what it is batched with.

    Each clip is padded with zeros to whole frames, so that it has `ceil(samples / frame size)` of them. On a CPU clips
    go one by one, which computes no padding and is the package's own one-clip result to the last bit. On a GPU (or with
    `together`) clips share a batch: any of a causal codec, of another only those of equally many frames.
    """

    def __init__(
        self, checkpoint: TransformersCheckpoint, *, device: str, precision: str, together: bool | None = None
    ) -> None:
        self.device = check_device(device)
        check_precision(checkpoint.model_type, precision, self.device.type)
        self._tf32 = precision == "tf32"
        self._family, self._sizes = checkpoint.family, checkpoint.sizes
        self._info = checkpoint.info()
        self._together = self.device.type != "cpu" if together is None else together
        self.model = checkpoint.load_model().to(self.device)
        self._check_probe()

    @property
    def info(self) -> CodecInfo:
        """What the codec is."""
        return self._info

    @property
    def computes_padding(self) -> bool:
        """Only where clips of other lengths share a batch."""
        return self._together and not self._sizes.looks_ahead

    @torch.no_grad()
    def encode(
        self,
        waveforms: torch.Tensor,
        lengths: torch.Tensor,
        *,
        semantic: bool = True,
        num_acoustic_codebooks: int | None = None,
    ) -> Tokens:
        """Tokens of a batch of clips, as `codec.base.Codec.encode` says; the ids come back on the CPU."""
        num_acoustic = check_streams(semantic, num_acoustic_codebooks, info=self._info)
        batch = pad_batch(waveforms, lengths, info=self._info, device=self.device)
        num_semantic = self._sizes.num_semantic
        ids = torch.zeros(len(waveforms), num_semantic + num_acoustic, batch.num_frames_max, dtype=torch.int64)
        for rows in self._groups(batch.num_frames):
            num_frames = int(batch.num_frames[rows].max())
            group = batch.waveforms[rows, None, : num_frames * self._sizes.frame_size]
            ids[rows, :, :num_frames] = self._ids(group, num_semantic + num_acoustic)
        ids.masked_fill_(past_end_mask(batch.num_frames, batch.num_frames_max)[:, None], 0)
        return Tokens(
            semantic=ids[:, 0] if semantic else None,
            acoustic=ids[:, num_semantic:] if num_acoustic else None,
            num_frames=batch.num_frames,
        )

    @torch.no_grad()
    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        """Waveforms float32 [B, T'] on the CPU, `frame_size` samples a frame, zero past each clip's own frames.

        Clips are decoded one by one. Where a decoder makes fewer samples than its frames stand for (DAC with odd
        strides), zeros stand at the end. Raises `ValueError` on another rate than the codec's, wrong shapes, ids out of
        range, or without the first codebook's ids, which the others only refine.
        """
        if sample_rate_hz != self._info.sample_rate_hz:
            raise ValueError(
                f"found {sample_rate_hz} Hz; codec {self._info.name} decodes to {self._info.sample_rate_hz}"
            )
        if tokens.semantic is not None and not self._sizes.num_semantic:
            raise ValueError(f"found semantic ids; codec {self._info.name} has no semantic stream")
        own = own_tokens(tokens, self._info)
        parts = [None if own.semantic is None else own.semantic[:, None], own.acoustic]
        if self._sizes.num_semantic and parts[0] is None:
            raise ValueError(f"found no semantic ids; the other codebooks of {self._info.name} only refine them")
        ids = torch.cat([part for part in parts if part is not None], dim=1)
        result = torch.zeros(len(ids), ids.shape[-1] * self._sizes.frame_size)
        for row, num_frames in enumerate(own.num_frames.tolist()):
            with arithmetic(tf32=False):
                decoded = self._family.decode(self.model, ids[row : row + 1, :, :num_frames].to(self.device))
            waveform = decoded.flatten()[: num_frames * self._sizes.frame_size].cpu()
            result[row, : len(waveform)] = waveform
        return result

    def _groups(self, num_frames: torch.Tensor) -> Iterator[torch.Tensor]:
        """Rows int64 [N] that go through the model together."""
        if not self._together:
            yield from torch.arange(len(num_frames))[:, None]
        elif not self._sizes.looks_ahead:
            yield torch.arange(len(num_frames))
        else:
            for one in sorted(set(num_frames.tolist())):
                yield (num_frames == one).nonzero().flatten()

    def _ids(self, waveforms: torch.Tensor, num_codebooks: int) -> torch.Tensor:
        """Ids int64 [N, num_codebooks, F], on the CPU, of waveforms float32 [N, 1, F * frame size]."""
        with arithmetic(tf32=self._tf32):
            ids = self._family.encode(self.model, waveforms, num_codebooks)
        return ids[:, :num_codebooks].cpu()

    def _check_probe(self) -> None:
        """What the config says is believed once the model does it. Raises `CheckpointError`."""
        sizes = self._sizes
        noise = 0.1 * torch.randn(1, 1, _PROBE_FRAMES * sizes.frame_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = tuple(self._ids(noise.to(self.device), sizes.num_codebooks).shape)
        expected = (1, sizes.num_codebooks, _PROBE_FRAMES)
        if found != expected:
            raise CheckpointError(
                f"this {self._info.name} makes ids {found} of {_PROBE_FRAMES} frames of {sizes.frame_size} samples; "
                f"by its {CONFIG_FILE} they would be {expected}"
            )


def check_precision(codec: str, precision: str, device_kind: str) -> None:
    """Raises `ValueError` on a precision that such a device does not offer these codecs."""
    allowed = PRECISIONS[device_kind]
    if precision not in allowed:
        raise ValueError(
            f"found precision {precision!r} on {device_kind}; codec {codec} is computed there in {' or '.join(allowed)}"
        )


def open_transformers(source: Source, model_type: str) -> TransformersCheckpoint:
    """The checkpoint of a source whose config says `model_type`; its weights are fetched.

    Raises `CodecError` for a kind that is not known, and what the source raises.
    """
    if model_type not in FAMILIES:
        raise CodecError(
            f"{source.uri} holds a model of type {model_type!r}, which is no codec known here; known: "
            f"{', '.join(FAMILIES)}"
        )
    require_transformers()  # before gigabytes are fetched
    return TransformersCheckpoint(source, source.fetch([CONFIG_FILE, WEIGHTS_FILE]), model_type)


def model_type_of(config_file: Path) -> str | None:
    """The `model_type` that a `config.json` names; None when there is no such file or it names none."""
    try:
        found = json.loads(config_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    model_type = found.get("model_type") if isinstance(found, dict) else None
    return model_type if isinstance(model_type, str) else None


def require_transformers() -> Any:
    """The transformers package. Raises `CodecError` saying what to install."""
    try:
        import transformers
    except ImportError as error:
        raise CodecError(
            "this needs the transformers package, which is not installed: pip install 'transformers>=5' safetensors "
            "(voxmill's extra `hf`)"
        ) from error
    # A bar for each replica's loading would stand between a run's own lines.
    transformers.utils.logging.disable_progress_bar()
    return transformers
