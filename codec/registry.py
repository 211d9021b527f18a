"""From a codec's name or URI to the codec on a device.

    longcat                  the published checkpoint on the hub
    hf://owner/name          a repository of the hub
    /a/folder, file:///...   a local folder
    s3://bucket/folder       a folder of a bucket, kept in a local cache
    calibrated:cost_s=0.5    the fake codec of set cost

Checkpoint files stand at the top of their place or in its `ckpts/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from codec.base import Codec, CodecError, CodecInfo, DecoderInfo, TokenDecoder
from codec.calibrated import PREFIX, CalibratedCodec, calibrated_info, parse_options
from codec.sources import LocalFolder, Source

LONGCAT_REPOSITORY = "meituan-longcat/LongCat-Audio-Codec"


def load_codec(
    name_or_uri: str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    storage_options: Mapping[str, Any] | None = None,
) -> Codec:
    """The codec, its encoder loaded on `device`.

    `precision` is float32, tf32, bfloat16 or float16, as far as the device offers it; the calibrated codec computes
    nothing that either would change. `storage_options` are s3fs's, for an `s3://` folder. Raises `CodecError`
    when the codec is unknown or denied or the device is missing, `CheckpointError` when its files are wrong,
    `CodecUnavailableError` when their place does not answer now, `ValueError` on a precision or device not offered.
    """
    if name_or_uri.startswith(PREFIX):
        return CalibratedCodec(parse_options(name_or_uri))
    from codec.longcat.checkpoint import open_checkpoint
    from codec.longcat.model import LongCatCodec

    checkpoint = open_checkpoint(_source(name_or_uri, storage_options or {}))
    return LongCatCodec(checkpoint, device=device, precision=precision)


def check_arithmetic(name_or_uri: str, *, device: str, precision: str) -> None:
    """Raises `ValueError` where `load_codec` would, for a precision that such a device does not offer."""
    if not name_or_uri.startswith(PREFIX):
        from codec.longcat.precision import weights_dtype

        weights_dtype(precision, torch.device(device))


def codec_info(name_or_uri: str, *, storage_options: Mapping[str, Any] | None = None) -> CodecInfo:
    """What the codec is: its encoder's files are fetched and hashed, no weights are loaded. Raises as `load_codec`."""
    if name_or_uri.startswith(PREFIX):
        return calibrated_info(parse_options(name_or_uri))
    from codec.longcat.checkpoint import open_checkpoint

    return open_checkpoint(_source(name_or_uri, storage_options or {})).info()


def decoder_info(
    name_or_uri: str,
    *,
    sample_rate_hz: int,
    num_acoustic_codebooks: int,
    storage_options: Mapping[str, Any] | None = None,
) -> DecoderInfo:
    """The codec's decoder for a rate and so many acoustic codebooks; its file is fetched and hashed.

    The one made for exactly so many, else the rate's largest. Raises `CodecError` when there is none, or as
    `load_codec`.
    """
    if name_or_uri.startswith(PREFIX):
        raise CodecError(f"{name_or_uri}: its ids are hashes, which hold no audio; decode tokens of a true codec")
    from codec.longcat.checkpoint import open_for_decoding

    checkpoint = open_for_decoding(_source(name_or_uri, storage_options or {}))
    try:
        return checkpoint.decoder_info(sample_rate_hz, num_acoustic_codebooks)
    except ValueError as error:
        raise CodecError(str(error)) from None


def load_decoder(
    name_or_uri: str, info: DecoderInfo, *, device: str = "cpu", storage_options: Mapping[str, Any] | None = None
) -> TokenDecoder:
    """The decoder that `info` tells of, on `device`, without the codec's encoder.

    Raises `CheckpointError` when the files are no longer those of `info`, or as `load_codec`.
    """
    from codec.longcat.checkpoint import open_for_decoding
    from codec.longcat.decoding import LongCatTokenDecoder

    return LongCatTokenDecoder(open_for_decoding(_source(name_or_uri, storage_options or {})), info, device=device)


def _source(name_or_uri: str, storage_options: Mapping[str, Any]) -> Source:
    if name_or_uri == "longcat":
        return _hub_repository(LONGCAT_REPOSITORY)
    scheme, separator, rest = name_or_uri.partition("://")
    if separator and scheme == "hf":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", rest):
            raise CodecError(f"found {name_or_uri!r}; a repository of the hub is hf://owner/name")
        return _hub_repository(rest)
    if separator and scheme == "s3":
        from codec.source_s3 import S3Folder

        return S3Folder(name_or_uri, storage_options)
    folder = Path(rest if separator and scheme == "file" else name_or_uri)
    if not folder.is_dir():
        raise CodecError(
            f"found codec {name_or_uri!r}, which is no known name and no folder here; known: longcat, hf://owner/name, "
            f"s3://bucket/folder, a local folder, {PREFIX}..."
        )
    return LocalFolder(folder)


def _hub_repository(repository: str) -> Source:
    from codec.source_hub import HubRepository

    return HubRepository(repository)
