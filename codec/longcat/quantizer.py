"""From vectors to ids and back: one flat codebook of semantics, residual codebooks of acoustics; always float32."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from codec.longcat.config import AcousticConfig, SemanticConfig
from codec.longcat.layers import Conv


class NearestColumn(nn.Module):
    """The semantic codebook, [dim, entries]; the checkpoint calls it k-means."""

    codebook: torch.Tensor

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.empty(config.width, config.cardinality))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Ids int64 [B, F] of features float32 [B, F, dim]: nearest to the unit vector, columns as they are."""
        # |x - c|^2 less |x|^2, which is the same for every column.
        distances = self.codebook.square().sum(0) - 2.0 * (functional.normalize(features, dim=-1) @ self.codebook)
        return distances.argmin(-1)


class HalvedCodebook(nn.Module):
    """One acoustic codebook: each half of the latent is looked up apart, an id is the pair of entries."""

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        latent_dim, half_dim, search_dim = config.latent_dim, config.latent_dim // 2, config.search_dim
        self.half_cardinality = config.half_cardinality
        self.in_proj_a = Conv(latent_dim, search_dim, 1)
        self.out_proj_a = Conv(search_dim, half_dim, 1)
        self.in_proj_b = Conv(latent_dim, search_dim, 1)
        self.out_proj_b = Conv(search_dim, half_dim, 1)
        self.codebook_a = nn.Embedding(config.half_cardinality, search_dim)
        self.codebook_b = nn.Embedding(config.half_cardinality, search_dim)

    def nearest(self, residual: torch.Tensor) -> torch.Tensor:
        """Ids int64 [B, F] of a residual float32 [B, F, latent_dim]."""
        entry_a = _nearest_by_cosine(self.in_proj_a(residual), self.codebook_a.weight)
        entry_b = _nearest_by_cosine(self.in_proj_b(residual), self.codebook_b.weight)
        return entry_a * self.half_cardinality + entry_b

    def value(self, ids: torch.Tensor) -> torch.Tensor:
        """The latents float32 [B, F, latent_dim] that ids int64 [B, F] stand for."""
        half_a = self.out_proj_a(self.codebook_a(ids // self.half_cardinality))
        half_b = self.out_proj_b(self.codebook_b(ids % self.half_cardinality))
        return torch.cat((half_a, half_b), dim=-1)


class ResidualCodebooks(nn.Module):
    """Codebooks coarse to fine, each for what the ones before it left."""

    def __init__(self, config: AcousticConfig, num_codebooks: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(HalvedCodebook(config) for _ in range(num_codebooks))

    def nearest(self, latents: torch.Tensor, num_codebooks: int) -> torch.Tensor:
        """Ids int64 [B, num_codebooks, F] of latents float32 [B, F, latent_dim]."""
        ids: list[torch.Tensor] = []
        residual = latents
        for index, quantizer in enumerate(self._first(num_codebooks)):
            ids.append(quantizer.nearest(residual))
            if index + 1 < num_codebooks:
                residual = residual - quantizer.value(ids[-1])
        return torch.stack(ids, dim=1)

    def value(self, ids: torch.Tensor) -> torch.Tensor:
        """Latents float32 [B, F, latent_dim] of ids int64 [B, K, F], K at most the number of codebooks."""
        values = [quantizer.value(one) for quantizer, one in zip(self._first(ids.shape[1]), ids.unbind(1), strict=True)]
        return torch.stack(values).sum(0)

    def residual_energies(self, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Energies float64 [B, 1 + K, F] of latents float32 [B, F, latent_dim], frame by frame.

        First the latents' own, then of what is left behind each codebook, by ids int64 [B, K, F] that `nearest` gave.
        The residuals are computed anew, as there: beside an encoder they cost nothing.
        """
        residual = latents
        energies = [_energies(residual)]
        for quantizer, one in zip(self._first(ids.shape[1]), ids.unbind(1), strict=True):
            residual = residual - quantizer.value(one)
            energies.append(_energies(residual))
        return torch.stack(energies, dim=1)

    def _first(self, num_codebooks: int) -> list[HalvedCodebook]:
        return cast("list[HalvedCodebook]", list(self.quantizers)[:num_codebooks])


def _nearest_by_cosine(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (functional.normalize(x, dim=-1) @ functional.normalize(codebook, dim=-1).T).argmax(-1)


def _energies(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().sum(-1)
