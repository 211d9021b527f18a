"""Semantic features of a stream: the encoder looks both ways over a whole clip, here over a window that slides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch

from codec.arithmetic import arithmetic
from codec.base import CodecInfo
from codec.framing import Reach
from codec.longcat.features import LogMel
from codec.longcat.semantic import SemanticEncoder
from codec.longcat.stream_layers import Chain, Pointwise, Sliding


@dataclass(frozen=True, slots=True)
class SemanticWindow:
    """What `hop_frames` frames are looked up from: so many frames before the first and behind the last of them."""

    context_frames: int
    look_ahead_frames: int
    hop_frames: int = 1

    @classmethod
    def of(cls, info: CodecInfo, *, context_s: float, look_ahead_s: float, hop_frames: int = 1) -> SemanticWindow:
        """From seconds, rounded up to whole frames.

        Raises `ValueError` on negative ones, a hop below 1, and a window of more frames than a segment may have: the
        encoder knows no positions beyond.
        """
        if hop_frames < 1 or not 0 <= context_s < math.inf or not 0 <= look_ahead_s < math.inf:
            raise ValueError(
                f"found context_s={context_s}, look_ahead_s={look_ahead_s}, hop_frames={hop_frames}; "
                "allowed: seconds of 0 and more, 1 frame and more"
            )
        window = cls(_frames(info, context_s), _frames(info, look_ahead_s), hop_frames)
        num_frames_max = int(info.segment_s_max * info.frame_rate_hz)
        if window.num_frames > num_frames_max:
            raise ValueError(
                f"found a context of {window.context_frames}, a look-ahead of {window.look_ahead_frames} and "
                f"a hop of {hop_frames} frames; allowed: {num_frames_max} together ({info.segment_s_max:g} s)"
            )
        return window

    @property
    def num_frames(self) -> int:
        """Of a whole window."""
        return self.context_frames + self.hop_frames + self.look_ahead_frames


class SemanticStream:
    """Features of each frame in its window.

    Up to the transformer the encoder looks only back, so that part is computed once, with the true past: only at the
    stream's own start is it padded. Then each window goes through the transformer, its positions counted from the
    window's first frame, as a clip's are.
    """

    def __init__(
        self, model: SemanticEncoder, log_mel: LogMel, window: SemanticWindow, *, dtype: torch.dtype, tf32: bool
    ) -> None:
        self._model, self._window, self._dtype, self._tf32 = model, window, dtype, tf32
        steps = model.subsampling.steps()
        self._log_mel = Sliding(log_mel.reach, log_mel)
        self._subsampling = Chain(
            [*(Sliding(reach, compute) for reach, compute in steps), Pointwise(model.subsampling.project)]
        )
        self._reach = reduce(Reach.then, (reach for reach, _ in steps), log_mel.reach)
        self._frames: torch.Tensor | None = None
        """The context of the frame whose features come next, and all from that frame on."""
        self._num_before = 0
        """Frames of that context."""

    @property
    def look_ahead(self) -> int:
        """Audio samples past a frame's own that are needed for its features; below 0 where not all of its own are."""
        window = self._window
        return self._reach.look_ahead + self._reach.stride * (window.look_ahead_frames + window.hop_frames - 1)

    def __call__(self, waveforms: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Features float32 [B, F, width] that the next audio samples [B, T] settle; with `last` all the rest."""
        with arithmetic(tf32=False):
            log_mel = self._log_mel(waveforms, last=last)
        with arithmetic(tf32=self._tf32):
            # The convolutions have one input channel: mel bins are their second dimension.
            frames = self._subsampling(log_mel.to(self._dtype).unsqueeze(2), last=last)
            self._frames = frames if self._frames is None else torch.cat((self._frames, frames), dim=1)
            features = [frames[:, :0]]
            while (num := self._num_ready(last=last)) > 0:
                features.append(self._next_features(num))
        return torch.cat(features, dim=1).float()

    def _num_ready(self, *, last: bool) -> int:
        """How many frames can be looked up at once now."""
        assert self._frames is not None
        window, num_left = self._window, self._frames.shape[1] - self._num_before
        if num_left >= window.hop_frames + window.look_ahead_frames:
            return window.hop_frames
        return min(num_left, window.hop_frames) if last else 0

    def _next_features(self, num: int) -> torch.Tensor:
        assert self._frames is not None
        before, end = self._num_before, self._num_before + num
        encoded = self._model.in_context(self._frames[:, : end + self._window.look_ahead_frames])
        self._num_before = min(end, self._window.context_frames)
        self._frames = self._frames[:, end - self._num_before :]
        return encoded[:, before:end]


def _frames(info: CodecInfo, seconds: float) -> int:
    return math.ceil(round(seconds * info.frame_rate_hz, 6))
