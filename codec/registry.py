"""From a codec's name or URI to the codec on a device.

    longcat                  the published checkpoint on the hub
    hf://owner/name          a repository of the hub
    /a/folder, file:///...   a local folder
    s3://bucket/folder       a folder of a bucket, kept in a local cache
    plugin:NAME              a codec of an installed package
    calibrated:cost_s=0.5    the fake codec of set cost

A repository or folder is known by what is in it: LongCat by its published file names, which stand at the top or in
`ckpts/`; a converted LongCat and the codecs of the transformers package by the `model_type` in `config.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from codec.base import Codec, CodecError, CodecInfo, CodecLoader, DecoderInfo, DecoderLoader, TokenDecoder
from codec.calibrated import PREFIX, CalibratedLoader, parse_options
from codec.plugins import PREFIX as PLUGIN
from codec.plugins import find_plugin
from codec.sources import LocalFolder, Source

NAMES = ("longcat",)
"""Codecs that go by a name; a folder of the same name is `./longcat`."""

LONGCAT_REPOSITORY = "meituan-longcat/LongCat-Audio-Codec"


def load_codec(
    name_or_uri: str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    storage_options: Mapping[str, Any] | None = None,
) -> Codec:
    """The codec, its encoder loaded on `device`.

    `precision` is float32, tf32, bfloat16 or float16, as far as the codec and the device offer it; the calibrated
    codec computes nothing that either would change. `storage_options` are s3fs's, for an `s3://` folder. Raises
    `CodecError` when the codec is unknown or denied, the device or a package is missing, `CheckpointError` when its
    files are wrong, `CodecUnavailableError` when their place does not answer now, `ValueError` on a precision or device
    not offered.
    """
    return _find(name_or_uri, storage_options or {}).load(device=device, precision=precision)


def codec_info(name_or_uri: str, *, storage_options: Mapping[str, Any] | None = None) -> CodecInfo:
    """What the codec is: its encoder's files are fetched and hashed, no weights are loaded. Raises as `load_codec`."""
    return _find(name_or_uri, storage_options or {}).info()


def check_arithmetic(name_or_uri: str, info: CodecInfo, *, device: str, precision: str) -> None:
    """Raises `ValueError` where `load_codec` would, for a precision that such a device does not offer.

    `info` is the codec's. A plugin's own word comes when it is loaded.
    """
    if name_or_uri.startswith((PREFIX, PLUGIN)):
        return
    kind = device.partition(":")[0]
    from codec.longcat.precision import weights_dtype
    from codec.transformers_codec import check_precision
    from codec.transformers_families import FAMILIES

    if info.name in FAMILIES:
        check_precision(info.name, precision, kind)
    else:
        weights_dtype(precision, torch.device(kind))


def _find(name_or_uri: str, storage_options: Mapping[str, Any]) -> CodecLoader:
    if name_or_uri.startswith(PREFIX):
        return CalibratedLoader(parse_options(name_or_uri))
    if name_or_uri.startswith(PLUGIN):
        return find_plugin(name_or_uri.removeprefix(PLUGIN))
    return _find_files(source_of(name_or_uri, storage_options))


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
    return _decoders(name_or_uri, storage_options or {}).decoder_info(sample_rate_hz, num_acoustic_codebooks)


def load_decoder(
    name_or_uri: str, info: DecoderInfo, *, device: str = "cpu", storage_options: Mapping[str, Any] | None = None
) -> TokenDecoder:
    """The decoder that `info` tells of, on `device`; of LongCat without the codec's encoder.

    Raises `CheckpointError` when the files are no longer those of `info`, or as `load_codec`.
    """
    return _decoders(name_or_uri, storage_options or {}).load_decoder(info, device=device)


def _decoders(name_or_uri: str, storage_options: Mapping[str, Any]) -> DecoderLoader:
    """A codec's decoders. Of LongCat, published or converted, the encoder's files are not fetched."""
    from codec.decoders import WholeCodec
    from codec.longcat.checkpoint import CONFIG_FILE, ENCODER_FILE, open_for_decoding
    from codec.longcat.converted import MODEL_TYPE, converted_in
    from codec.longcat.decoding import LongCatDecoders
    from codec.transformers_codec import model_type_of

    if name_or_uri.startswith(PREFIX):
        raise CodecError(f"{name_or_uri}: its ids are hashes, which hold no audio; decode tokens of a true codec")
    if name_or_uri.startswith(PLUGIN):
        return WholeCodec(name_or_uri, _find(name_or_uri, storage_options))
    source = source_of(name_or_uri, storage_options)
    folder = source.fetch([CONFIG_FILE])
    model_type = None if (folder / ENCODER_FILE).is_file() else model_type_of(folder / CONFIG_FILE)
    if model_type is None:
        return LongCatDecoders(open_for_decoding(source))
    if model_type == MODEL_TYPE:
        return LongCatDecoders(converted_in(source))
    return WholeCodec(name_or_uri, _find_files(source))


def _find_files(source: Source) -> CodecLoader:
    from codec.longcat.checkpoint import CHECKPOINT_FILES, CONFIG_FILE, ENCODER_FILE, checkpoint_in
    from codec.longcat.converted import MODEL_TYPE, converted_in
    from codec.longcat.loader import LongCatLoader
    from codec.transformers_codec import model_type_of, open_transformers

    folder = source.fetch(CHECKPOINT_FILES)
    if not (folder / ENCODER_FILE).is_file() and (model_type := model_type_of(folder / CONFIG_FILE)) is not None:
        if model_type == MODEL_TYPE:
            return LongCatLoader(converted_in(source))
        return open_transformers(source, model_type)
    return LongCatLoader(checkpoint_in(source, folder))


def source_of(name_or_uri: str, storage_options: Mapping[str, Any]) -> Source:
    """The place that a name or URI means. Raises `CodecError` when it means none."""
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
            f"s3://bucket/folder, a local folder, plugin:NAME, {PREFIX}..."
        )
    return LocalFolder(folder)


def _hub_repository(repository: str) -> Source:
    from codec.source_hub import HubRepository

    return HubRepository(repository)
