"""What a decoding needs to know of its tokens: that they are right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codec.base import CodecInfo, DecoderInfo, Tokens
from codec.batch import past_end_mask


def own_tokens(tokens: Tokens, info: CodecInfo | DecoderInfo, *, num_frames_min: int = 1) -> Tokens:
    """The tokens, on the CPU, with 0 past each clip's own frames and None for a stream without a codebook.

    A clip has `num_frames_min` frames at least: 1, or 0 for a piece of one. Raises `ValueError` on wrong shapes or
    dtypes, both streams missing, or an id outside its codebook within a clip's own frames; ids past them mean nothing
    and are not looked at.
    """
    semantic = _stream("semantic", tokens.semantic, tokens.num_frames, (info.semantic_cardinality,), num_frames_min)
    acoustic = _stream("acoustic", tokens.acoustic, tokens.num_frames, info.acoustic_cardinalities, num_frames_min)
    if semantic is None and acoustic is None:
        raise ValueError("found neither semantic nor acoustic ids; give at least one stream")
    if semantic is not None and acoustic is not None and semantic.shape[-1] != acoustic.shape[-1]:
        raise ValueError(
            f"found {semantic.shape[-1]} semantic and {acoustic.shape[-1]} acoustic frames; they must be equally many"
        )
    return Tokens(None if semantic is None else semantic[:, 0], acoustic, tokens.num_frames.cpu())


def _stream(
    name: str,
    ids: torch.Tensor | None,
    num_frames: torch.Tensor,
    cardinalities: Sequence[int],
    num_frames_min: int,
) -> torch.Tensor | None:
    """One stream's ids int64 [B, K, F], checked, 0 past each clip's own frames; None when there are no ids."""
    if ids is None:
        return None
    num_dims = 2 if name == "semantic" else 3
    if ids.dtype != torch.int64 or ids.dim() != num_dims:
        raise ValueError(
            f"found {name} ids {ids.dtype} {list(ids.shape)}; allowed: torch.int64 of {num_dims} dimensions"
        )
    ids = ids.cpu() if num_dims == 3 else ids.cpu()[:, None]
    num_clips, num_codebooks, num_frames_max = ids.shape
    if num_codebooks > len(cardinalities):
        raise ValueError(f"found {num_codebooks} {name} codebooks; the codec has {len(cardinalities)}")
    if num_frames.dtype != torch.int64 or num_frames.shape != (num_clips,) or num_clips == 0:
        raise ValueError(
            f"found num_frames {num_frames.dtype} {list(num_frames.shape)}; allowed: torch.int64 [{num_clips}], "
            f"one for each row of the {name} ids, of which there must be one at least"
        )
    num_frames = num_frames.cpu()
    if num_frames.min() < num_frames_min or num_frames.max() > num_frames_max:
        raise ValueError(
            f"found num_frames {num_frames.tolist()}; allowed: {num_frames_min} to {num_frames_max} for the {name} ids"
        )
    own = ids.masked_fill(past_end_mask(num_frames, num_frames_max)[:, None], 0)
    for codebook, (found, cardinality) in enumerate(zip(own.unbind(1), cardinalities, strict=False)):
        if not found.numel():
            continue
        low, high = (int(bound) for bound in found.aminmax())
        if low < 0 or high >= cardinality:
            raise ValueError(
                f"found {name} ids {low} to {high} in codebook {codebook}; allowed: 0 to {cardinality - 1}"
            )
    return own if num_codebooks else None
