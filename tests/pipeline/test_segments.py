from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.segments import cut
from pipeline.types import Segment

RATE_HZ, FRAME = 1000, 60


def segments(waveform: NDArray[np.float32], segment_s: float = 6.0, search_s: float = 2.0) -> tuple[Segment, ...]:
    return cut(waveform, sample_rate_hz=RATE_HZ, frame_size=FRAME, segment_s=segment_s, search_s=search_s)


def loud(num_samples: int) -> NDArray[np.float32]:
    return np.ones(num_samples, np.float32)


def lengths(found: tuple[Segment, ...]) -> list[int]:
    return [segment.length for segment in found]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 40_000),
    st.integers(1, 500),
    st.sampled_from([0.06, 0.1, 0.5, 3.0, 6.0, 7.123]),
    st.sampled_from([0.0, 0.05, 1.0, 5.0, 100.0]),
    st.integers(0, 3),
)
def test_segments_cover_the_clip_in_whole_frames(
    num_samples: int, frame_size: int, segment_s: float, search_s: float, seed: int
) -> None:
    waveform = np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)
    if segment_s * RATE_HZ < frame_size:
        with pytest.raises(ValueError, match=r"batching\.segment_s"):
            cut(waveform, sample_rate_hz=RATE_HZ, frame_size=frame_size, segment_s=segment_s, search_s=search_s)
        return
    found = cut(waveform, sample_rate_hz=RATE_HZ, frame_size=frame_size, segment_s=segment_s, search_s=search_s)
    assert [segment.start for segment in found] == [0, *np.cumsum(lengths(found))[:-1]]
    assert sum(lengths(found)) == num_samples
    assert max(lengths(found)) <= segment_s * RATE_HZ + 1e-6
    assert all(length % frame_size == 0 for length in lengths(found)[:-1])
    assert [segment.num_frames for segment in found] == [-(-length // frame_size) for length in lengths(found)]
    assert sum(segment.num_frames for segment in found) == -(-num_samples // frame_size)
    frames_max = int(segment_s * RATE_HZ / frame_size + 1e-9)
    if frames_max >= 4:
        # Never by the search: no segment but the last two is shorter than half of the longest.
        assert all(segment.num_frames >= frames_max // 2 for segment in found[:-2])
        assert len(found) == 1 or found[-1].length >= min(RATE_HZ, frames_max * frame_size // 2 - frame_size)
    again = cut(waveform, sample_rate_hz=RATE_HZ, frame_size=frame_size, segment_s=segment_s, search_s=search_s)
    assert again == found


def test_a_clip_that_fits_is_one_segment() -> None:
    assert segments(loud(6000)) == (Segment(0, 6000, 100),)
    assert segments(loud(5999)) == (Segment(0, 5999, 100),)
    assert len(segments(loud(6001))) == 2


def test_the_cut_is_at_the_quietest_frame_border_of_the_search() -> None:
    waveform = loud(9000)
    waveform[4620 - 20 : 4620 + 20] = 0.01  # around a frame border within the last 2 s
    waveform[5000 - 20 : 5000 + 20] = 0.0  # quieter, but no frame border within 20 ms
    waveform[3900 - 20 : 3900 + 20] = 0.0  # quieter, but before the search
    assert lengths(segments(waveform)) == [4620, 4380]


@pytest.mark.parametrize("shift", [-7, 7])
def test_the_window_lies_around_the_cut(shift: int) -> None:
    waveform = loud(9000)
    waveform[4620 - 20 : 4620 + 20] = 0.01
    waveform[5040 + shift - 20 : 5040 + shift + 20] = 0
    assert lengths(segments(waveform)) == [4620, 4380]


def test_of_equally_quiet_points_the_latest_is_taken() -> None:
    assert lengths(segments(loud(20_000)))[:2] == [6000, 6000]
    waveform = loud(9000)
    waveform[4200:5400] = 0
    assert lengths(segments(waveform))[0] == 5340


def test_near_silence_is_told_from_silence_after_loud_audio() -> None:
    waveform = (loud(9000) * 1e4).astype(np.float32)
    waveform[4100:5990] = 1e-6
    waveform[4500 - 20 : 4500 + 20] = 0
    assert lengths(segments(waveform))[0] == 4500


def test_the_last_segment_is_not_a_splinter() -> None:
    assert lengths(segments(loud(6001))) == [4980, 1021]
    assert lengths(segments(loud(6001), search_s=0.0)) == [4980, 1021]
    assert lengths(segments(loud(12_010))) == [6000, 4980, 1030]


def test_without_search_the_cut_is_at_the_end() -> None:
    assert lengths(segments(loud(15_000), search_s=0.0)) == [6000, 6000, 3000]


def test_an_empty_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        segments(loud(0))
