from __future__ import annotations

import pytest

from codec.framing import num_frames, padded_length


@pytest.mark.parametrize(
    ("num_samples", "frames", "padded"), [(0, 0, 0), (1, 1, 960), (959, 1, 960), (960, 1, 960), (961, 2, 1920)]
)
def test_a_begun_frame_counts(num_samples: int, frames: int, padded: int) -> None:
    assert num_frames(num_samples, 960) == frames
    assert padded_length(num_samples, 960) == padded


def test_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 audio samples"):
        num_frames(-1, 960)
    with pytest.raises(ValueError, match="frame size of 0"):
        padded_length(1, 0)
