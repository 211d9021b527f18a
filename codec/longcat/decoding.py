"""A LongCat decoder by itself, on one device: ids to waveforms, without the encoder in memory."""

from __future__ import annotations

import torch

from codec.arithmetic import arithmetic, check_device
from codec.base import CheckpointError, CodecInfo, DecoderInfo, Tokens
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.weights import DecoderWeights
from codec.tokens import own_tokens


class LongCatTokenDecoder:
    """A `codec.base.TokenDecoder`, in float32. One thread at a time may compute (see `arithmetic`)."""

    def __init__(self, checkpoint: DecoderWeights, info: DecoderInfo, *, device: str = "cpu") -> None:
        """Load the decoder that `info` tells of. Raises `CheckpointError` when its files are others by now."""
        found = checkpoint.decoder_info(info.sample_rate_hz, len(info.acoustic_cardinalities))
        if found != info:
            raise CheckpointError(
                f"{checkpoint.source.uri} has decoder {found.name} ({found.file_hash[:12]}) here, but {info.name} "
                f"({info.file_hash[:12]}) is wanted, as where the run was started; give all hosts the same files"
            )
        self._info = info
        self._device = check_device(device)
        self._decoder = checkpoint.load_decoder(info.name).to(self._device)

    @property
    def info(self) -> DecoderInfo:
        """What the decoder is."""
        return self._info

    def decode(self, tokens: Tokens) -> torch.Tensor:
        """Waveforms float32 [B, F * frame size], as `codec.base.TokenDecoder.decode` says."""
        return run_decoder(self._decoder, tokens, self._info)


@torch.no_grad()
def run_decoder(decoder: LongCatDecoder, tokens: Tokens, info: CodecInfo | DecoderInfo) -> torch.Tensor:
    """Waveforms float32 [B, T] on the CPU, of tokens whose ids `info` bounds, by a decoder on any device."""
    own = own_tokens(tokens, info)
    device = next(decoder.parameters()).device
    semantic, acoustic = (None if ids is None else ids.to(device) for ids in (own.semantic, own.acoustic))
    with arithmetic(tf32=False):
        waveforms: torch.Tensor = decoder(semantic, acoustic, own.num_frames.to(device))
    return waveforms.cpu()
