"""The decoders: ids to latents, a memory over the frames, transposed convolutions up to the waveform."""

from __future__ import annotations

import torch
from torch import nn

from codec.batch import past_end_mask
from codec.longcat.acoustic import DILATIONS
from codec.longcat.config import DecoderConfig, LongCatConfig
from codec.longcat.layers import Conv, ResidualUnit, Snake, TransposedConv, silence
from codec.longcat.quantizer import ResidualCodebooks


class MemoryLayer(nn.Module):
    """LSTM, LayerNorm, LSTM, LayerNorm over the frames, looking only back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm_list1 = nn.ModuleList([nn.LSTM(width, width, batch_first=True)])
        self.ln1 = nn.LayerNorm(width)
        self.lstm_list2 = nn.ModuleList([nn.LSTM(width, width, batch_first=True)])
        self.ln2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, F, width] to the same shape."""
        x = self.ln1(self.lstm_list1[0](x)[0])
        remembered: torch.Tensor = self.ln2(self.lstm_list2[0](x)[0])
        return remembered


class DecoderBlock(nn.Module):
    """Snake, an upsampling convolution that halves the width, three residual units."""

    def __init__(self, width: int, rate: int, *, causal: bool) -> None:
        super().__init__()
        if causal:
            up = TransposedConv(width, width // 2, rate, stride=rate)
        else:
            up = TransposedConv(
                width, width // 2, 2 * rate, stride=rate, padding=-(-rate // 2), output_padding=rate % 2
            )
        self.rate = rate
        self.block = nn.ModuleList(
            [Snake(width), up, *(ResidualUnit(width // 2, dilation, causal=causal) for dilation in DILATIONS)]
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, T, C] to [B, T * rate, C / 2]; `lengths` int64 [B] of the input."""
        snake, up, *units = self.block
        x = up(snake(silence(x, past_end_mask(lengths, x.shape[1]))))
        past_end = past_end_mask(lengths * self.rate, x.shape[1])
        for unit in units:
            x = unit(x, past_end)
        return x


class WaveformDecoder(nn.Module):
    """Latents of frames to waveform."""

    def __init__(self, input_dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.rates = config.rates
        self.mem_layers = nn.ModuleList([MemoryLayer(input_dim)])
        widths = [config.width // 2**index for index in range(len(config.rates) + 1)]
        blocks = [
            DecoderBlock(width, rate, causal=config.causal) for width, rate in zip(widths, config.rates, strict=False)
        ]
        # The published causal decoders hold the last padding as a layer without tensors, like their residual units.
        padding_layer = [nn.Identity()] if config.causal else []
        last = Conv(widths[-1], 1, 7, padding=(6, 0) if config.causal else (3, 3))
        # The first convolution looks three frames ahead in the causal decoders too.
        first = Conv(input_dim, config.width, 7, padding=(3, 3))
        self.model = nn.ModuleList([first, *blocks, Snake(widths[-1]), *padding_layer, last])

    def forward(self, x: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """[B, F, input_dim] to waveforms [B, T], T the samples of F frames; `num_frames` int64 [B]."""
        for memory in self.mem_layers:
            x = memory(x)
        x = self.model[0](silence(x, past_end_mask(num_frames, x.shape[1])))
        lengths = num_frames
        for block, rate in zip(self.model[1 : 1 + len(self.rates)], self.rates, strict=True):
            x = block(x, lengths)
            lengths = lengths * rate
        past_end = past_end_mask(lengths, x.shape[1])
        for layer in self.model[1 + len(self.rates) :]:
            x = layer(silence(x, past_end))
        return silence(x.tanh(), past_end).squeeze(-1)


class SemanticEntries(nn.Module):
    """The vector of each semantic id."""

    def __init__(self, cardinality: int, width: int) -> None:
        super().__init__()
        self.dequant = nn.Embedding(cardinality, width)


class LongCatDecoder(nn.Module):
    """One published decoder file: its own codebooks and the way to the waveform."""

    def __init__(self, config: LongCatConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        semantic, acoustic = config.semantic, config.acoustic
        self.decoder = WaveformDecoder(semantic.width + acoustic.latent_dim, decoder)
        self.acoustic_quantizer = ResidualCodebooks(acoustic, decoder.num_codebooks)
        self.semantic_dequantizer = SemanticEntries(semantic.cardinality, semantic.width)
        self.latent_dim = acoustic.latent_dim

    def forward(
        self, semantic: torch.Tensor | None, acoustic: torch.Tensor | None, num_frames: torch.Tensor
    ) -> torch.Tensor:
        """Waveforms float32 [B, T] of ids int64 [B, F] and [B, K, F]; a missing stream counts as zero latents."""
        waveforms: torch.Tensor = self.decoder(self.latents(semantic, acoustic), num_frames)
        return waveforms

    def latents(self, semantic: torch.Tensor | None, acoustic: torch.Tensor | None) -> torch.Tensor:
        """What the ids stand for, float32 [B, F, width]: the semantic part first."""
        entries = self.semantic_dequantizer.dequant
        parts = [
            None if semantic is None else entries(semantic),
            None if acoustic is None else self.acoustic_quantizer.value(acoustic),
        ]
        widths = (entries.embedding_dim, self.latent_dim)
        given = next(part for part in parts if part is not None)
        full = [
            given.new_zeros(*given.shape[:2], width) if part is None else part
            for part, width in zip(parts, widths, strict=True)
        ]
        return torch.cat(full, dim=-1)
