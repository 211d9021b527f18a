from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.framing import Delay, Reach, num_frames, padded_length


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


def inputs_seen(layers: list[Reach], output: int) -> tuple[int, int]:
    """The first and the last input that an output of several layers sees, layer by layer."""
    first = last = output
    for layer in reversed(layers):
        first, last = first * layer.stride - layer.before, last * layer.stride + layer.after
    return first, last


@given(st.lists(st.builds(Reach, st.integers(1, 8), st.integers(0, 30), st.integers(0, 30)), max_size=6))
def test_reaches_join(layers: list[Reach]) -> None:
    joined = reduce(Reach.then, layers, Reach())
    for output in (0, 1, 7):
        first, last = inputs_seen(layers, output)
        assert (first, last) == (output * joined.stride - joined.before, output * joined.stride + joined.after)
        assert joined.span == last - first + 1
        assert joined.look_ahead == last - ((output + 1) * joined.stride - 1)


@given(st.lists(st.builds(Delay, st.integers(1, 8), st.integers(0, 30)), max_size=5), st.integers(0, 50))
def test_delays_join(layers: list[Delay], num_inputs: int) -> None:
    settled = num_inputs
    for layer in layers:
        settled = settled * layer.rate - layer.held
    joined = reduce(Delay.then, layers, Delay())
    assert settled == num_inputs * joined.rate - joined.held
