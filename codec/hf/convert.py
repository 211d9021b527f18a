"""From a checkpoint's published files to a folder that `from_pretrained` reads, with a model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

from codec.base import CodecError, CodecInfo
from codec.hf.configuration import LongCatConfig
from codec.hf.feature_extraction import LongCatFeatureExtractor
from codec.hf.model_card import model_card
from codec.hf.modeling import FeatureBuffers, LongCatModel
from codec.longcat.checkpoint import Checkpoint

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote; `missing_decoders` are those of the config whose file the source has not."""

    folder: Path
    published: CodecInfo
    num_parameters: int
    decoders: tuple[str, ...]
    missing_decoders: tuple[str, ...]
    has_license: bool


def convert(checkpoint: Checkpoint, folder: Path) -> Converted:
    """Write `config.json`, `model.safetensors`, `preprocessor_config.json`, `README.md`, and the source's licence.

    The folder must not exist, or be empty; it appears whole. Decoders that the source lacks are left out, of the config
    too. Raises `CodecError` when the folder is not empty, `CheckpointError` where the published files are wrong.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CodecError(f"{folder} is there already and not empty; give a new folder")
    names = checkpoint.config.decoders
    decoders = {name: names[name] for name in names if checkpoint.has_decoder(name)}
    model = _model(checkpoint, LongCatConfig.of(checkpoint.config.model_copy(update={"decoders": decoders})))
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        return _write(making, folder, checkpoint, model)
    finally:
        shutil.rmtree(making, ignore_errors=True)  # nothing is there once it has been renamed


def _write(making: Path, folder: Path, checkpoint: Checkpoint, model: LongCatModel) -> Converted:
    """All files into `making`, which then becomes `folder`."""
    names = checkpoint.config.decoders
    decoders = model.config.sizes.decoders
    model.save_pretrained(making)
    LongCatFeatureExtractor(sampling_rate=model.config.sampling_rate).save_pretrained(making)
    has_license = _copy_license(checkpoint, making)
    result = Converted(
        folder=folder,
        published=checkpoint.info(),
        num_parameters=sum(tensor.numel() for tensor in model.parameters()),
        decoders=tuple(decoders),
        missing_decoders=tuple(name for name in names if name not in decoders),
        has_license=has_license,
    )
    (making / "README.md").write_text(model_card(model.config, checkpoint.source.uri, result.published, has_license))
    for path in making.iterdir():
        path.chmod(0o644)  # safetensors are written for their owner alone
    making.chmod(0o755)  # and temporary folders made for him
    if folder.exists():
        folder.rmdir()
    making.rename(folder)
    return result


def _model(checkpoint: Checkpoint, config: LongCatConfig) -> LongCatModel:
    """The model with the published files' modules; it is never initialised, so that no weight is in memory twice."""
    with torch.device("meta"):
        model = LongCatModel(config)
    model.encoder = checkpoint.load_encoder()
    model.decoders = nn.ModuleDict({name: checkpoint.load_decoder(name) for name in config.sizes.decoders})
    model.features = FeatureBuffers(checkpoint.load_feature_constants())
    model.eval()
    return model


def _copy_license(checkpoint: Checkpoint, folder: Path) -> bool:
    for name in LICENSE_NAMES:
        found = checkpoint.source.fetch([name]) / name
        if found.is_file():
            shutil.copyfile(found, folder / "LICENSE")
            return True
    return False
