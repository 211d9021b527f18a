"""A batch of waveforms as codecs take it: checked, silent past each clip's end, in whole frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from codec.base import CodecInfo
from codec.framing import padded_length


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """`waveforms` float32 [B, F * frame size], zero past each clip's end; `num_frames` int64 [B] on the CPU."""

    waveforms: torch.Tensor
    num_frames: torch.Tensor
    num_frames_max: int

    @property
    def is_full(self) -> bool:
        """Whether every clip fills the batch: then nothing has to be masked."""
        return bool((self.num_frames == self.num_frames_max).all())


def pad_batch(
    waveforms: torch.Tensor, lengths: torch.Tensor, *, info: CodecInfo, device: torch.device | str = "cpu"
) -> PaddedBatch:
    """The batch on `device`, F being `ceil(T / frame size)`; values past a clip's length are dropped.

    The caller's T decides the padded shape, so that equal plans give equal bits. Raises `ValueError` as `check_batch`
    does, and on a waveform that is not finite.
    """
    lengths = check_batch(waveforms, lengths, info=info)
    past_end = torch.arange(waveforms.shape[1]) >= lengths[:, None]
    silent_past_end = waveforms.to(device).masked_fill(past_end.to(device), 0.0)
    if not torch.isfinite(silent_past_end).all():
        raise ValueError("found NaN or infinity in a waveform; put such clips aside before encoding")
    padded = padded_length(waveforms.shape[1], info.frame_size)
    return PaddedBatch(
        waveforms=functional.pad(silent_past_end, (0, padded - waveforms.shape[1])),
        num_frames=batch_frames(lengths, info=info),
        num_frames_max=padded // info.frame_size,
    )


def check_batch(waveforms: torch.Tensor, lengths: torch.Tensor, *, info: CodecInfo) -> torch.Tensor:
    """The lengths, on the CPU. Raises `ValueError` on a wrong shape or dtype, and an empty or over-long clip."""
    _check_shapes(waveforms, lengths)
    lengths = lengths.cpu()
    length_max = min(waveforms.shape[1], int(info.segment_s_max * info.sample_rate_hz))
    outside = [length for length in lengths.tolist() if not 1 <= length <= length_max]
    if outside:
        raise ValueError(
            f"found clips of {outside} audio samples in waveforms of {waveforms.shape[1]}; allowed: 1 to "
            f"{length_max} (at most {info.segment_s_max:g} s); put empty clips aside and cut longer ones into segments"
        )
    return lengths


def batch_frames(lengths: torch.Tensor, *, info: CodecInfo) -> torch.Tensor:
    """Frames of each clip, int64 [B], of lengths int64 [B]."""
    return (lengths + info.frame_size - 1) // info.frame_size


def _check_shapes(waveforms: torch.Tensor, lengths: torch.Tensor) -> None:
    if waveforms.dim() != 2 or waveforms.shape[0] < 1 or waveforms.dtype != torch.float32:
        raise ValueError(
            f"found waveforms {waveforms.dtype} {list(waveforms.shape)}; allowed: torch.float32 [B, T], B >= 1"
        )
    if lengths.shape != waveforms.shape[:1] or lengths.dtype != torch.int64:
        raise ValueError(
            f"found lengths {lengths.dtype} {list(lengths.shape)}; "
            f"allowed: torch.int64 [{waveforms.shape[0]}], one a waveform"
        )


def check_streams(semantic: bool, num_acoustic_codebooks: int | None, *, info: CodecInfo) -> int:
    """How many acoustic codebooks are asked for; None means all.

    Raises `ValueError` on more than the codec has, and when nothing at all is asked for.
    """
    if semantic and not info.semantic_cardinality:
        raise ValueError(f"semantic tokens are asked for; codec {info.name} has acoustic ones alone")
    num_codebooks_max = len(info.acoustic_cardinalities)
    num_codebooks = num_codebooks_max if num_acoustic_codebooks is None else num_acoustic_codebooks
    if not 0 <= num_codebooks <= num_codebooks_max:
        raise ValueError(
            f"found num_acoustic_codebooks={num_codebooks}; codec {info.name} has 0 to {num_codebooks_max}"
        )
    if not semantic and num_codebooks == 0:
        raise ValueError("neither semantic nor acoustic tokens are asked for; ask for at least one")
    return num_codebooks


def past_end_mask(num_units: torch.Tensor, num_units_max: int) -> torch.Tensor:
    """Bool [B, num_units_max], True past each row's own number of units (int64 [B])."""
    return torch.arange(num_units_max, device=num_units.device) >= num_units[:, None]
