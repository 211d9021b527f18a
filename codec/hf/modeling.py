"""LongCat as a model of transformers: the modules of `codec.longcat`, in the shape that EnCodec and Mimi have there.

The computing is `codec.longcat.model.LongCatCodec`'s; here are the names, the arguments, and initial weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput, can_return_tuple

from codec.base import CodecInfo, Tokens
from codec.framing import num_frames
from codec.hf.configuration import LongCatConfig
from codec.longcat.config import LongCatConfig as LongCatSizes
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import NUM_MELS, FeatureConstants, feature_constants
from codec.longcat.layers import Conv, Snake, TransposedConv
from codec.longcat.model import LongCatCodec
from codec.longcat.quantizer import NearestColumn
from codec.longcat.semantic import SelfAttention
from codec.longcat.weights import info_of


@dataclass
class LongCatEncoderOutput(ModelOutput):
    """`audio_codes` int64 [B, K, F]: the semantic ids first; 0 past a clip's own frames."""

    audio_codes: torch.Tensor | None = None


@dataclass
class LongCatDecoderOutput(ModelOutput):
    """`audio_values` float32 [B, 1, T']."""

    audio_values: torch.Tensor | None = None


@dataclass
class LongCatOutput(ModelOutput):
    """Both."""

    audio_codes: torch.Tensor | None = None
    audio_values: torch.Tensor | None = None


class FeatureBuffers(nn.Module):
    """The constants of the log-mel features, which belong to a checkpoint though nothing learned them."""

    window: torch.Tensor
    mel_banks: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, constants: FeatureConstants) -> None:
        super().__init__()
        for name in ("window", "mel_banks", "mean", "scale"):
            self.register_buffer(name, getattr(constants, name).clone())


class LongCatModel(PreTrainedAudioTokenizerBase):
    """A LongCat codec, made for inference: ids and audio come without gradients.

    In half precision (`from_pretrained(..., dtype=torch.bfloat16)`) the two encoders alone are; codebook searches,
    features and decoders stay float32, since ids and audio would suffer.
    """

    config_class = LongCatConfig
    base_model_prefix = "longcat"
    main_input_name = "input_values"
    input_modalities = "audio"
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = [
        "kmeans",
        "acoustic_quantizer",
        "decoders",
        "features",
        "alpha",
        "inverse",
    ]

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__(config)
        sizes = config.sizes
        self.encoder = LongCatEncoder(sizes)
        self.decoders = nn.ModuleDict({name: LongCatDecoder(sizes, one) for name, one in sizes.decoders.items()})
        self.features = FeatureBuffers(_neutral_constants(sizes))
        self.post_init()

    @can_return_tuple
    @torch.no_grad()
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> LongCatEncoderOutput:
        """Ids of waveforms float32 [B, 1, T] (or [B, T]) in -1..1; a clip's do not depend on the others in the batch.

        `padding_mask` [B, T] or [B, 1, T] is 1 for a clip's own samples, which stand at the left; None means all.
        `num_quantizers` counts the semantic codebook; None means all. A clip has `ceil(samples / hop_length)` frames.
        Raises `ValueError` on wrong shapes, a mask with holes, an empty clip or one of more than 30 s.
        """
        waveforms = _waveforms(input_values)
        most = self.config.num_quantizers
        asked = most if num_quantizers is None else num_quantizers
        if not 1 <= asked <= most:
            raise ValueError(f"found num_quantizers={num_quantizers}; this model has 1 to {most}")
        lengths = _lengths(waveforms, padding_mask)
        tokens = self._codec().encode(waveforms.float(), lengths, num_acoustic_codebooks=asked - 1)
        assert tokens.semantic is not None  # it is asked for by default
        parts = [tokens.semantic[:, None], *([] if tokens.acoustic is None else [tokens.acoustic])]
        codes = torch.cat(parts, dim=1).to(input_values.device)
        return LongCatEncoderOutput(codes)

    @can_return_tuple
    @torch.no_grad()
    def decode(
        self,
        audio_codes: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        sampling_rate: int | None = None,
    ) -> LongCatDecoderOutput:
        """Audio of ids int64 [B, K, F], semantic first; K from 1 up to all.

        `padding_mask`, as for `encode`, tells which frames are a clip's own; what is past them is silence.
        `sampling_rate` is one of the decoders' (by default the input's rate if there is one for it, else the lowest).
        Raises `ValueError` on wrong shapes, ids out of range, or a rate without a decoder.
        """
        if audio_codes.dim() != 3 or audio_codes.shape[1] < 1:
            raise ValueError(f"found audio_codes {list(audio_codes.shape)}; allowed: [batch, codebooks, frames]")
        if padding_mask is None:
            frames = torch.full((len(audio_codes),), audio_codes.shape[-1])
        else:
            own = _mask_lengths(padding_mask, len(audio_codes), padding_mask.shape[-1])
            frames = self.get_encoded_length(own)
            if frames.max() > audio_codes.shape[-1]:
                raise ValueError(
                    f"found a padding_mask of {int(frames.max())} frames for audio_codes of {audio_codes.shape[-1]}"
                )
        tokens = Tokens(audio_codes[:, 0], audio_codes[:, 1:] if audio_codes.shape[1] > 1 else None, frames)
        waveforms = self._codec().decode(tokens, sampling_rate or self._rate())
        return LongCatDecoderOutput(waveforms[:, None].to(audio_codes.device))

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        audio_codes: torch.Tensor | None = None,
        *,
        sampling_rate: int | None = None,
    ) -> LongCatOutput:
        """Ids (unless given) and what they decode to. At the input's rate the audio is as long as the input.

        Arguments as of `encode` and `decode`, whose errors it raises.
        """
        if audio_codes is None:
            audio_codes = self.encode(input_values, padding_mask, num_quantizers, return_dict=True).audio_codes
        values = self.decode(audio_codes, padding_mask, sampling_rate, return_dict=True).audio_values
        if (sampling_rate or self._rate()) == self.config.sampling_rate:
            values = values[..., : input_values.shape[-1]]
        return LongCatOutput(audio_codes, values)

    def get_encoded_length(self, input_length: torch.Tensor) -> torch.Tensor:
        """Frames of clips of so many samples."""
        hop: int = self.config.hop_length
        return (input_length + hop - 1) // hop

    def get_audio_codes_mask(self, padding_mask: torch.Tensor) -> torch.Tensor:
        """Bool [B, F]: which frames are a clip's own, by a `padding_mask` as for `encode`."""
        own = padding_mask.reshape(len(padding_mask), -1).bool()
        frames = self.get_encoded_length(own.sum(-1))
        most = num_frames(own.shape[-1], self.config.hop_length)
        return torch.arange(most, device=frames.device) < frames[:, None]

    def _codec(self) -> LongCatCodec:
        """The codec on this model's own modules; made anew, since weights, device and dtype may have changed.

        Raises `ValueError` when all of the model was made half precision.
        """
        if (found := self.features.window.dtype) != torch.float32:
            raise ValueError(
                f"found features in {found}; they and the codebooks stay float32: give the dtype to from_pretrained, "
                "which narrows the encoders alone"
            )
        return LongCatCodec(_ModelWeights(self), device=str(self.device), packed=False)

    def _rate(self) -> int:
        rates = {decoder.sample_rate_hz for decoder in self.config.sizes.decoders.values()}
        own: int = self.config.sampling_rate
        return own if own in rates else min(rates, default=own)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights that keep about the variance of what flows through; loaded ones are left alone."""
        if isinstance(module, (Conv, TransposedConv)):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
            init.zeros_(module.bias)
        elif isinstance(module, Snake):
            init.ones_(module.alpha)
            init.copy_(module.inverse, 1.0 / (torch.ones_like(module.alpha) + 1e-9))
        elif isinstance(module, SelfAttention):
            init.normal_(module.in_proj_weight, std=module.in_proj_weight.shape[1] ** -0.5)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, NearestColumn):
            init.normal_(module.codebook, std=module.codebook.shape[0] ** -0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, FeatureBuffers):
            constants = _neutral_constants(self.config.sizes)
            for name in ("window", "mel_banks", "mean", "scale"):
                init.copy_(getattr(module, name), getattr(constants, name))
        else:
            super()._init_weights(module)


@dataclass(frozen=True)
class _ModelWeights:
    """A model in memory as `codec.longcat.weights.Weights`."""

    model: LongCatModel

    @property
    def config(self) -> LongCatSizes:
        sizes: LongCatSizes = self.model.config.sizes
        return sizes

    def info(self) -> CodecInfo:
        return info_of(self.config, checkpoint_hash="")

    def load_encoder(self) -> LongCatEncoder:
        return self.model.encoder

    def load_feature_constants(self) -> FeatureConstants:
        held = self.model.features
        return FeatureConstants(held.window, held.mel_banks, held.mean, held.scale)

    def load_decoder(self, name: str) -> LongCatDecoder:
        decoder = self.model.decoders[name]
        assert isinstance(decoder, LongCatDecoder)
        return decoder


def _neutral_constants(sizes: LongCatSizes) -> FeatureConstants:
    """The features' constants for statistics of mean 0 and deviation 1."""
    statistics = torch.zeros(2, NUM_MELS + 1, dtype=torch.float64, device="cpu")
    statistics[0, -1] = 1.0
    statistics[1, :-1] = 1.0
    with torch.device("cpu"):  # a model is made on the meta device, where there is nothing to compute with
        return feature_constants(statistics, sample_rate_hz=sizes.sample_rate_hz)


def _waveforms(input_values: torch.Tensor) -> torch.Tensor:
    """[B, T] of [B, 1, T] or [B, T]."""
    if input_values.dim() == 3 and input_values.shape[1] == 1:
        return input_values[:, 0]
    if input_values.dim() == 2:
        return input_values
    raise ValueError(f"found input_values {list(input_values.shape)}; allowed: mono, [batch, 1, samples]")


def _lengths(waveforms: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """Samples of each clip, int64 [B] on the CPU."""
    num_clips, num_samples = waveforms.shape
    if padding_mask is None:
        return torch.full((num_clips,), num_samples)
    return _mask_lengths(padding_mask, num_clips, num_samples)


def _mask_lengths(padding_mask: torch.Tensor, num_clips: int, num_samples: int) -> torch.Tensor:
    """Samples of each clip by its mask [B, T] or [B, 1, T], int64 [B] on the CPU."""
    if padding_mask.shape not in ((num_clips, num_samples), (num_clips, 1, num_samples)):
        raise ValueError(f"found padding_mask {list(padding_mask.shape)}; allowed: [{num_clips}, {num_samples}]")
    own = padding_mask.reshape(num_clips, num_samples).bool().cpu()
    lengths = own.sum(-1)
    if not torch.equal(own, torch.arange(num_samples) < lengths[:, None]):
        raise ValueError("found a padding_mask with padding before a clip's end; pad on the right")
    return lengths
