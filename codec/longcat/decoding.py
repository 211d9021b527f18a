"""LongCat decoders by themselves, on one device: ids to waveforms, without the encoder in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from codec.arithmetic import arithmetic, check_device
from codec.base import CheckpointError, CodecError, CodecInfo, DecoderInfo, Tokens
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.weights import DecoderWeights
from codec.tokens import own_tokens


@dataclass(frozen=True)
class LongCatDecoders:
    """A `codec.base.DecoderLoader`: each decoder is a file of its own, and the encoder is left where it is."""

    checkpoint: DecoderWeights

    def decoder_info(self, sample_rate_hz: int, num_acoustic_codebooks: int) -> DecoderInfo:
        """The decoder for a rate and so many codebooks. Raises as `codec.base.DecoderLoader.decoder_info`."""
        try:
            return self.checkpoint.decoder_info(sample_rate_hz, num_acoustic_codebooks)
        except ValueError as error:
            raise CodecError(str(error)) from None

    def load_decoder(self, info: DecoderInfo, *, device: str = "cpu") -> LongCatTokenDecoder:
        """The decoder that `info` tells of, on a device. Raises `CheckpointError` when its files are others by now."""
        found = self.decoder_info(info.sample_rate_hz, len(info.acoustic_cardinalities))
        if found != info:
            raise CheckpointError(
                f"{self.checkpoint.source.uri} has decoder {found.name} ({found.file_hash[:12]}) here, but {info.name} "
                f"({info.file_hash[:12]}) is wanted, as where the run was started; give all hosts the same files"
            )
        on_device = check_device(device)
        return LongCatTokenDecoder(self.checkpoint.load_decoder(info.name).to(on_device), info)


@dataclass(frozen=True)
class LongCatTokenDecoder:
    """A `codec.base.TokenDecoder`, in float32. One thread at a time may compute (see `arithmetic`)."""

    decoder: LongCatDecoder
    info: DecoderInfo

    def decode(self, tokens: Tokens) -> torch.Tensor:
        """Waveforms float32 [B, F * frame size], as `codec.base.TokenDecoder.decode` says."""
        return run_decoder(self.decoder, tokens, self.info)


@torch.no_grad()
def run_decoder(decoder: LongCatDecoder, tokens: Tokens, info: CodecInfo | DecoderInfo) -> torch.Tensor:
    """Waveforms float32 [B, T] on the CPU, of tokens whose ids `info` bounds, by a decoder on any device."""
    own = own_tokens(tokens, info)
    device = next(decoder.parameters()).device
    semantic, acoustic = (None if ids is None else ids.to(device) for ids in (own.semantic, own.acoustic))
    with arithmetic(tf32=False):
        waveforms: torch.Tensor = decoder(semantic, acoustic, own.num_frames.to(device))
    return waveforms.cpu()
