"""Clips end to end in tiles give what each gives alone, wherever the tiles' edges fall."""

from __future__ import annotations

import copy

import pytest
import torch

from codec.longcat import strips
from codec.longcat.layers import Snake
from codec.longcat.model import LongCatCodec
from codec.longcat.strips import Strip, StripEncoder

FRAME_SIZE = 960


@pytest.mark.parametrize("num_frames", [[1], [5, 1, 3], [2, 2, 2, 2], [11, 1], [1, 1, 17, 4]])
@pytest.mark.parametrize("tile_rows", [64, 97, 700, 1 << 20])
def test_tiles_give_the_latents_of_each_clip_alone(
    codec: LongCatCodec, num_frames: list[int], tile_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "_TILE_VALUES", 0)
    monkeypatch.setattr(strips, "_TILE_ROWS_MIN", tile_rows)
    encoder = codec.encoder.encoder
    generator = torch.Generator().manual_seed(len(num_frames))
    clips = [0.3 * torch.randn(frames * FRAME_SIZE, generator=generator) for frames in num_frames]
    waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    by_strips = StripEncoder(encoder)
    with torch.no_grad():
        alone = torch.cat([encoder(clip[None], None)[0] for clip in clips])
        by_strips(waveforms.flip(0), num_frames[::-1])  # what an earlier batch left in the buffers must not matter
        together = by_strips(waveforms, num_frames)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_a_strip_keeps_clips_apart() -> None:
    strip = Strip.of([10, 7, 5], gap=3, margin=4, multiple=5)
    assert strip.starts == (5, 20, 30)
    assert strip.ends == (15, 27, 35)
    assert strip.num_rows == 40
    assert list(strip.gaps(0, 40)) == [slice(0, 5), slice(15, 20), slice(27, 30), slice(35, 40)]
    assert list(strip.gaps(16, 28)) == [slice(0, 4), slice(11, 12)]
    assert list(strip.clips(12, 30)) == [(0, 12, 15), (1, 20, 27)]


@torch.no_grad()
def test_a_snake_of_no_curve_is_the_identity(codec: LongCatCodec) -> None:
    encoder = copy.deepcopy(codec.encoder.encoder)
    for snake in (layer for layer in encoder.modules() if isinstance(layer, Snake)):
        snake.alpha[::2], snake.inverse[::2] = 0.0, 1e9
        snake.alpha[1::4], snake.inverse[1::4] = -1e-5, -1e5
    clip = 0.3 * torch.randn(3 * FRAME_SIZE, generator=torch.Generator().manual_seed(0))
    alone = encoder(clip[None], None)[0]
    torch.testing.assert_close(
        StripEncoder(encoder)(clip[None], [3]), alone, rtol=0, atol=1e-5 * float(alone.abs().max())
    )
