"""The codec protocol: what the data plane may ask of any speech codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch  # takes a second, which commands that only need the numbers of a codec have not


class CodecError(Exception):
    """A codec cannot be found, loaded or used; the message says what was found and what to do."""


class CheckpointError(CodecError):
    """A checkpoint lacks a learned tensor, has one too many, or one of another shape."""


class CodecUnavailableError(CodecError):
    """The place that holds the checkpoint cannot be reached now; trying again may help."""


@dataclass(frozen=True, slots=True)
class CodecInfo:
    """What a codec is, in numbers that decide its tokens.

    `checkpoint_hash` is the SHA-256 (hex) over the encoder's checkpoint files in name order.
    `semantic_cardinality` is 0 where a codec has no semantic stream; `acoustic_cardinalities` has one entry per
    acoustic codebook, coarse to fine; they are nested: the first k of a clip are the same however many are computed.
    `tells_residuals` says whether the codec is a `ResidualCodec`, `semantic_required` whether acoustic ids alone decode
    to nothing, since they refine what the semantic ones begin.
    """

    name: str
    checkpoint_hash: str
    sample_rate_hz: int
    frame_size: int
    semantic_cardinality: int
    acoustic_cardinalities: tuple[int, ...]
    segment_s_max: float
    decoder_sample_rates_hz: tuple[int, ...] = ()
    tells_residuals: bool = False
    semantic_required: bool = False

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second of audio."""
        return self.sample_rate_hz / self.frame_size


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """One way of a codec from tokens to audio, in numbers that decide the audio.

    `file_hash` is the SHA-256 (hex) over the files that it is read from, in name order; `frame_size` are audio samples
    of one frame at `sample_rate_hz`; `acoustic_cardinalities` has one entry per acoustic codebook that it takes, of
    which the later ones may be left out. `semantic_required` as of `CodecInfo`.
    """

    name: str
    file_hash: str
    sample_rate_hz: int
    frame_size: int
    semantic_cardinality: int
    acoustic_cardinalities: tuple[int, ...]
    semantic_required: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a batch; frames past a clip's own `num_frames` are 0 and mean nothing.

    `semantic` int64 [B, F] or None, `acoustic` int64 [B, K, F] or None, `num_frames` int64 [B].
    """

    semantic: torch.Tensor | None
    acoustic: torch.Tensor | None
    num_frames: torch.Tensor


@runtime_checkable
class Codec(Protocol):
    """A codec on one device, in one precision."""

    @property
    def info(self) -> CodecInfo:
        """What the codec is."""
        ...

    def encode(
        self,
        waveforms: torch.Tensor,
        lengths: torch.Tensor,
        *,
        semantic: bool = True,
        num_acoustic_codebooks: int | None = None,
    ) -> Tokens:
        """Tokens of a batch of segments; each clip's tokens do not depend on the others in the batch.

        `waveforms` float32 [B, T] at `info.sample_rate_hz`, any values past `lengths` int64 [B] are ignored;
        `num_acoustic_codebooks` None means all, 0 means none. Raises `ValueError` on a wrong shape, an empty
        clip or one longer than `info.segment_s_max`; `torch.OutOfMemoryError` when the device is full.
        """
        ...

    def decode(self, tokens: Tokens, sample_rate_hz: int) -> torch.Tensor:
        """Waveforms float32 [B, T'] at `sample_rate_hz`; acoustic or semantic ids may be missing, not both."""
        ...


@runtime_checkable
class TokenDecoder(Protocol):
    """One decoder of a codec on one device, without the codec's encoder."""

    @property
    def info(self) -> DecoderInfo:
        """What the decoder is."""
        ...

    def decode(self, tokens: Tokens) -> torch.Tensor:
        """Waveforms float32 [B, F * info.frame_size] on the CPU, each clip as if it were alone, zero past its end.

        Acoustic or semantic ids may be missing, not both. Raises `ValueError` on wrong shapes or ids out of range,
        `torch.OutOfMemoryError` when the device is full.
        """
        ...


@runtime_checkable
class PackingCodec(Codec, Protocol):
    """A codec that says whether it pays for padding; of one that does not say so it is taken for granted."""

    @property
    def computes_padding(self) -> bool:
        """Whether what stands past the clips' ends takes time as the clips do."""
        ...


def computes_padding(codec: Codec) -> bool:
    """Whether padding costs time with this codec."""
    return codec.computes_padding if isinstance(codec, PackingCodec) else True


@runtime_checkable
class StagingCodec(Codec, Protocol):
    """A codec that takes a batch to its device ahead of time."""

    def stage(self, waveforms: torch.Tensor) -> torch.Tensor:
        """What `encode` takes in place of `waveforms`; called from other threads while `encode` runs."""
        ...


class DecoderLoader(Protocol):
    """A codec's decoders, none loaded yet."""

    def decoder_info(self, sample_rate_hz: int, num_acoustic_codebooks: int) -> DecoderInfo:
        """The decoder for a rate, made for exactly so many acoustic codebooks, else the rate's largest.

        Raises `CodecError` when there is none, `CheckpointError` without its file.
        """
        ...

    def load_decoder(self, info: DecoderInfo, *, device: str) -> TokenDecoder:
        """The decoder that `info` tells of, on a device. Raises `CheckpointError` when its files are others by now."""
        ...


class CodecLoader(Protocol):
    """A codec that was found and is not loaded yet; what an installed package offers (see infra/CODECS.md)."""

    def info(self) -> CodecInfo:
        """What the codec is, without loading weights. Raises `CodecError` when it cannot be had."""
        ...

    def load(self, *, device: str, precision: str) -> Codec:
        """The codec on a device, its `info` equal to the loader's.

        `device` is cpu, cuda or cuda:N; `precision` float32, tf32, bfloat16 or float16. Raises `CodecError`, and
        `ValueError` on a precision that the device does not offer.
        """
        ...


@runtime_checkable
class ResidualCodec(Codec, Protocol):
    """A codec that can tell what its acoustic codebooks leave of a clip; its info says `tells_residuals`."""

    def encode_with_residuals(
        self, waveforms: torch.Tensor, lengths: torch.Tensor, *, semantic: bool = True
    ) -> tuple[Tokens, torch.Tensor]:
        """The tokens that `encode` gives with all acoustic codebooks, and energies float64 [B, 1 + K] on the CPU.

        Column 0 is the energy (the sum of squares) of each clip's acoustic latents, column k what the first k codebooks
        leave of it. Summed in float64 over the clip's own frames, never over padding, so that those of a clip's
        segments add up. Raises as `encode` does.
        """
        ...
