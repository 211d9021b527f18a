"""Open a decode job: from a config and the place of some tokens to what is left to decode."""

from __future__ import annotations

from dataclasses import dataclass

from codec.base import CheckpointError, DecoderInfo
from codec.registry import codec_info, decoder_info
from jobs.decode_setup import DecodeSetup
from jobs.prepare import OpenJob, absolute, claim_and_resume, job_record
from jobs.replica import checkpoint_options
from pipeline.audio_config import DecodeConfig, audio_parts
from pipeline.config import Device
from pipeline.errors import ConfigError, ObjectMissingError, RefusedError
from pipeline.fingerprint import fingerprint
from pipeline.layout import output_place
from pipeline.records import RECORD_BYTES_MAX, JobRecord, StatusRecord
from pipeline.shards import Listing, StoreAt
from pipeline.storage import Stores
from pipeline.token_reader import TokenReader
from pipeline.uris import check_uri


@dataclass(frozen=True)
class Decoding:
    """What is decoded, by what, and why by that; `setup` has the fingerprint of the job that it would be."""

    config: DecodeConfig
    source: TokenReader
    setup: DecodeSetup
    parts: dict[str, object]
    why: str


def open_decode_job(config: DecodeConfig, device: Device, *, stores: StoreAt | None = None) -> tuple[OpenJob, Decoding]:
    """Know the tokens, choose the decoder, claim the output place, and find what is left to decode.

    Raises `RefusedError` for whatever must be mended first, `codec.base.CodecError` for a decoder that cannot be had.
    """
    stores = stores or Stores(config.storage, config.retry)
    decoding = open_decoding(config, device, stores=stores)
    shards = decoding.source.shards()
    if not shards:
        raise ConfigError(f"no shard is committed in {config.tokens}; run the job of the tokens first")
    job = claim_and_resume(
        output_place(config.output),
        stores(config.output),
        decoding.setup,
        Listing(tuple(shards), ()),
        job_record(decoding.config, decoding.parts, decoding.source.job.codec),
    )
    return job, decoding


def open_decoding(config: DecodeConfig, device: Device, *, stores: StoreAt) -> Decoding:
    """Know the tokens and choose the decoder; nothing is written.

    Raises `RefusedError` when the tokens have not what is asked for, or the codec is not the one that made them,
    `codec.base.CodecError` for a decoder that cannot be had.
    """
    _check_apart(config)
    source = TokenReader.open(config.tokens, store=stores(config.tokens))
    config = absolute(config.model_copy(update={"codec": config.codec or _codec_of(source.job)}))
    semantic, num_codebooks = _choice(config, source)
    options = checkpoint_options(config)
    decoder = decoder_info(
        config.codec,
        sample_rate_hz=config.sample_rate_hz,
        num_acoustic_codebooks=num_codebooks,
        storage_options=options,
    )
    if decoder.semantic_required and not semantic:
        raise ConfigError(
            f"streams has no 'semantic', but the acoustic codebooks of codec {decoder.name} only refine the semantic "
            "one; decode with --streams semantic,acoustic, of tokens that were made with both"
        )
    _check_codec(config, source.job)
    parts = audio_parts(
        config,
        decoder,
        device,
        source_fingerprint=source.job.fingerprint,
        semantic=semantic,
        num_acoustic_codebooks=num_codebooks,
    )
    setup = DecodeSetup(
        config=config,
        fingerprint=fingerprint(parts),
        device=device,
        decoder=decoder,
        source_rate_hz=source.rules.sample_rate_hz,
        semantic=semantic,
        num_acoustic_codebooks=num_codebooks,
    )
    return Decoding(config, source, setup, parts, why(decoder, semantic, num_codebooks, adaptive=source.rules.adaptive))


def why(decoder: DecoderInfo, semantic: bool, num_acoustic_codebooks: int, *, adaptive: bool) -> str:
    """Which decoder was taken, and why it."""
    if adaptive:
        return (
            f"{'semantic' if semantic else 'no semantic'} and, as each clip has them, up to {num_acoustic_codebooks} "
            f"acoustic codebooks to {decoder.sample_rate_hz} Hz by decoder {decoder.name} for all, "
            "since it takes fewer too"
        )
    taken = len(decoder.acoustic_cardinalities)
    streams = f"{'semantic' if semantic else 'no semantic'} and {num_acoustic_codebooks} acoustic codebooks"
    reason = (
        "made for exactly so many"
        if taken == num_acoustic_codebooks
        else f"none is made for exactly so many, and this one, the rate's largest, takes up to {taken}"
    )
    return f"{streams} to {decoder.sample_rate_hz} Hz by decoder {decoder.name}: {reason}"


def tokens_so_far(source: TokenReader) -> str | None:
    """What is to be said of tokens whose job was not complete when it last wrote its status; it may have died since."""
    try:
        content = source.store.read(source.place.status, bytes_max=RECORD_BYTES_MAX)
        last = StatusRecord.from_bytes(content, source.place.status)
    except (ObjectMissingError, RefusedError):
        return f"{source.place.base} has no status: whether its job is complete is not known"
    if last.state == "complete":
        return None
    return (
        f"the job of {source.place.base} is not complete ({last.state}: {last.num_committed} of {last.num_shards} "
        "shards): what it commits later is decoded by the same command again"
    )


def _check_apart(config: DecodeConfig) -> None:
    tokens, output = output_place(config.tokens).base, output_place(config.output).base
    if f"{tokens}/".startswith(f"{output}/") or f"{output}/".startswith(f"{tokens}/"):
        raise ConfigError(f"the output {output} and the tokens {tokens} are in one another; name another output")


def _codec_of(job: JobRecord) -> str:
    codec = job.config.get("codec")
    try:
        if not isinstance(codec, str):
            raise ValueError("is no name")
        check_uri(codec)
    except ValueError:
        raise ConfigError("the tokens' job does not say which codec made them; name it with --codec") from None
    return codec


def _choice(config: DecodeConfig, source: TokenReader) -> tuple[bool, int]:
    """(whether semantic ids are decoded, how many acoustic codebooks). Raises `ConfigError` on what is not there."""
    rules = source.rules
    there = len(rules.acoustic_cardinalities)
    has = [name for name in rules.streams if name != "acoustic"] + ([f"{there} acoustic codebooks"] if there else [])
    streams: tuple[str, ...] = config.streams or rules.streams
    missing = [stream for stream in streams if stream not in rules.streams]
    if missing:
        raise ConfigError(f"streams has {missing}, the tokens of {config.tokens} have {' and '.join(has)}")
    if "acoustic" not in streams:
        if config.num_acoustic_codebooks is not None:
            raise ConfigError(
                f"num_acoustic_codebooks is {config.num_acoustic_codebooks}, but acoustic ids are not decoded: the "
                f"tokens of {config.tokens} have {' and '.join(has)}"
            )
        return True, 0
    num_codebooks = config.num_acoustic_codebooks or there
    if num_codebooks > there:
        raise ConfigError(
            f"num_acoustic_codebooks is {num_codebooks}, the tokens of {config.tokens} have {' and '.join(has)}"
        )
    return "semantic" in streams, num_codebooks


def _check_codec(config: DecodeConfig, job: JobRecord) -> None:
    """Ids mean nothing to another checkpoint's decoder, and no id shows it: so the encoders are compared."""
    info = codec_info(config.codec, storage_options=checkpoint_options(config))
    made_by = job.parts["codec.checkpoint_hash"]  # which the fingerprint covers, unlike the record of the codec
    if info.checkpoint_hash != made_by:
        raise CheckpointError(
            f"codec {config.codec} has checkpoint hash {info.checkpoint_hash[:12]}, the tokens of {config.tokens} are "
            f"of {made_by[:12]}; name the codec that made them with --codec"
        )
