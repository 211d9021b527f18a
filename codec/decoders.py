"""Decoders of a codec that does not part them from its encoder: the whole codec is loaded, and only decodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from codec.base import CheckpointError, Codec, CodecError, CodecLoader, DecoderInfo, TokenDecoder, Tokens


@dataclass(frozen=True)
class WholeCodec:
    """A `codec.base.DecoderLoader` of any codec."""

    name_or_uri: str
    loader: CodecLoader

    def decoder_info(self, sample_rate_hz: int, num_acoustic_codebooks: int) -> DecoderInfo:  # noqa: ARG002 (of all)
        """The codec as a decoder of all its codebooks; it is one file with the encoder, and its hash is the encoder's.

        Raises `CodecError` when it does not decode to this rate.
        """
        info = self.loader.info()
        rates = info.decoder_sample_rates_hz
        if sample_rate_hz not in rates:
            known = f"it decodes to {' or '.join(f'{rate} Hz' for rate in rates)}" if rates else "it has no decoder"
            raise CodecError(f"found {sample_rate_hz} Hz for codec {self.name_or_uri}; {known}")
        frame_size, odd = divmod(info.frame_size * sample_rate_hz, info.sample_rate_hz)
        if odd:
            raise CodecError(
                f"codec {self.name_or_uri} says that it decodes to {sample_rate_hz} Hz, where a frame of "
                f"{info.frame_size} samples at {info.sample_rate_hz} Hz is no whole number of samples; mend its info"
            )
        return DecoderInfo(
            name=info.name,
            file_hash=info.checkpoint_hash,
            sample_rate_hz=sample_rate_hz,
            frame_size=frame_size,
            semantic_cardinality=info.semantic_cardinality,
            acoustic_cardinalities=info.acoustic_cardinalities,
            semantic_required=info.semantic_required,
        )

    def load_decoder(self, info: DecoderInfo, *, device: str) -> TokenDecoder:
        """The codec on a device, as a decoder. Raises `CheckpointError` when it is no longer that of `info`."""
        found = self.decoder_info(info.sample_rate_hz, len(info.acoustic_cardinalities))
        if found != info:
            raise CheckpointError(
                f"codec {self.name_or_uri} is {found.name} ({found.file_hash[:12]}) here, but {info.name} "
                f"({info.file_hash[:12]}) is wanted, as where the run was started; give all hosts the same"
            )
        return _Decoder(self.loader.load(device=device, precision="float32"), info)


@dataclass(frozen=True)
class _Decoder:
    codec: Codec
    info: DecoderInfo

    def decode(self, tokens: Tokens) -> torch.Tensor:
        return self.codec.decode(tokens, self.info.sample_rate_hz)
