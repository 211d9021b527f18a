"""`voxmill convert`: a LongCat checkpoint's published files as a folder for transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.base import CodecError
from codec.longcat.checkpoint import open_checkpoint
from codec.registry import source_of
from codec.transformers_codec import require_transformers


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    folder: str
    num_parameters: int
    published_hash: str
    decoders: tuple[str, ...]
    missing_decoders: tuple[str, ...]
    has_license: bool

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"converted  {self.num_parameters / 1e6:.1f} M parameters into {self.folder}",
            f"decoders   {', '.join(self.decoders) or 'none'}",
        ]
        if self.missing_decoders:
            lines.append(f"left out   decoders whose files are not there: {', '.join(self.missing_decoders)}")
        if not self.has_license:
            lines.append(
                "licence    no LICENSE file is there to copy; add the published codec's before sharing the folder"
            )
        return [
            *lines,
            f"use        --codec {self.folder}, or codec.hf.LongCatModel.from_pretrained; see its README.md",
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def convert_checkpoint(source: str, folder: str, storage_options: Mapping[str, Any]) -> ConvertReport:
    """Convert what a name or URI of `--codec` means.

    Raises `CodecError` where the transformers package is missing, the source has no published files, or the folder is
    not empty or no local one.
    """
    if "://" in folder:
        raise CodecError(f"found output {folder}; a conversion is written to a local folder, copy it from there")
    require_transformers()
    from codec.hf.convert import convert

    done = convert(open_checkpoint(source_of(source, storage_options)), Path(folder))
    return ConvertReport(
        folder=folder,
        num_parameters=done.num_parameters,
        published_hash=done.published.checkpoint_hash,
        decoders=done.decoders,
        missing_decoders=done.missing_decoders,
        has_license=done.has_license,
    )
