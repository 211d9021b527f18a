"""Windows become rows: shard order, one clip's tokens whatever its batch, memory shortage, and lying codecs."""

import threading
import time
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec.base import Tokens
from codec.registry import load_codec
from pipeline.batcher import Piece, plan, windows
from pipeline.encoder import Encoder, Progress
from pipeline.errors import CodecContractError, ShardCancelledError
from pipeline.settings import BatchingConfig
from pipeline.turn import Turn
from pipeline.types import Clip

RATE_HZ, FRAME = 16000, 960


def clip(key: str, seconds: float, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip(key, rng.uniform(-1, 1, round(seconds * RATE_HZ)).astype(np.float32), RATE_HZ, 1)


def rows_of(clips, encoder, config=None):
    progress = Progress()
    rows = []
    for window in encoder.windows(clips, config or BatchingConfig()):
        rows += encoder.encode(window, ticket=1, progress=progress)
    return rows, progress


def encoder_of(codec) -> Encoder:
    return Encoder(codec=codec, semantic=True, num_acoustic_codebooks=3, clock=time.monotonic)


class FakeCodec:
    """The calibrated codec with its answers, or its memory, tampered with."""

    def __init__(self, tamper=None, clips_max=None):
        self._codec = load_codec("calibrated:")
        self._tamper = tamper
        self._clips_max = clips_max
        self.batches = []

    @property
    def info(self):
        return self._codec.info

    def encode(self, waveforms, lengths, *, semantic=True, num_acoustic_codebooks=None):
        self.batches.append(tuple(waveforms.shape))
        if self._clips_max is not None and len(waveforms) > self._clips_max:
            raise torch.OutOfMemoryError("the device is full")
        tokens = self._codec.encode(
            waveforms, lengths, semantic=semantic, num_acoustic_codebooks=num_acoustic_codebooks
        )
        return self._tamper(tokens) if self._tamper else tokens

    def decode(self, tokens, sample_rate_hz):
        raise AssertionError("not asked for")


class FakeStagingCodec(FakeCodec):
    """Notes the threads and the tensors of a batch's way to the device."""

    def __init__(self):
        super().__init__()
        self.staged = []

    def stage(self, waveforms):
        self.staged.append((threading.current_thread().name, waveforms.clone()))
        return self.staged[-1][1]

    def encode(self, waveforms, lengths, **streams):
        assert any(waveforms is staged for _, staged in self.staged)
        return super().encode(waveforms, lengths, **streams)


CLIPS = [clip(f"c{n}", seconds, n) for n, seconds in enumerate([3, 0.5, 12, 0.06, 7, 31, 0.2, 95, 4])]


def assert_same(left, right):
    assert [row.key for row in left] == [row.key for row in right]
    for a, b in zip(left, right, strict=True):
        assert np.array_equal(a.semantic, b.semantic)
        assert np.array_equal(a.acoustic, b.acoustic)


def test_rows_stand_in_shard_order_with_each_clips_own_tokens():
    encoder = encoder_of(FakeCodec())
    together, progress = rows_of(CLIPS, encoder)
    assert [row.key for row in together] == [f"c{n}" for n in range(9)]
    alone = [row for one in CLIPS for row in rows_of([one], encoder)[0]]
    assert_same(together, alone)
    for row, source in zip(together, CLIPS, strict=True):
        assert row.num_frames == -(-len(source.waveform) // FRAME) == len(row.semantic) == row.acoustic.shape[1]
        assert sum(segment.length for segment in row.segments) == len(source.waveform)
    assert progress.audio_s == pytest.approx(sum(len(c.waveform) for c in CLIPS) / RATE_HZ)
    assert progress.padded_s >= progress.audio_s


def test_batches_are_staged_ahead_in_the_thread_that_pads_them():
    codec = FakeStagingCodec()
    rows, _ = rows_of(CLIPS, encoder_of(codec), BatchingConfig(batch_s=20))
    assert_same(rows, rows_of(CLIPS, encoder_of(FakeCodec()))[0])
    assert len(codec.staged) == len(codec.batches) > 3
    assert {name for name, _ in codec.staged} == {"voxmill-pad"}


class FakePackingCodec(FakeCodec):
    computes_padding = False


def test_batches_are_filled_where_padding_costs_nothing_and_none_is_counted():
    padding, packing = FakeCodec(), FakePackingCodec()
    clips = [clip(f"k{n}", 1 + n / 8, n) for n in range(12)]
    rows, progress = rows_of(clips, encoder_of(packing))
    assert_same(rows, rows_of(clips, encoder_of(padding))[0])
    assert len(padding.batches) > len(packing.batches) == 1
    assert progress.padded_s == pytest.approx(sum(row.num_frames for row in rows) * FRAME / RATE_HZ)
    rows_of(clips, encoder_of(packing), BatchingConfig(batch_cost_s=0))
    assert len(packing.batches) > 10, "what is asked for goes before the codec's own"


def test_the_plan_depends_on_lengths_alone_and_keeps_its_bounds():
    pieces = [Piece(n, 0, frames) for n, frames in enumerate([5, 1, 9, 9, 2, 40, 3])]
    batches = plan(pieces, frames_max=18, batch_size_max=3, batch_cost_frames=100.0)
    assert [[piece.num_frames for piece in batch] for batch in batches] == [[40], [9, 9], [5], [3, 2, 1]]
    assert sorted(piece.clip_index for batch in batches for piece in batch) == list(range(7))


def partitions(num_pieces):
    """Every way to cut so many pieces in runs, as tuples of their sizes."""
    if num_pieces == 0:
        yield ()
    for first in range(1, num_pieces + 1):
        yield from ((first, *rest) for rest in partitions(num_pieces - first))


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=9),
    st.integers(1, 60),
    st.integers(1, 5),
    st.sampled_from([0.0, 1.0, 7.5]),
)
def test_no_other_plan_pads_less(lengths, frames_max, batch_size_max, batch_cost_frames):
    def cost(sizes):
        ordered, total = sorted(lengths, reverse=True), 0.0
        for size in sizes:
            padded = size * ordered[0]
            if size > batch_size_max or (padded > frames_max and size > 1):
                return inf
            ordered, total = ordered[size:], total + padded + batch_cost_frames
        return total

    pieces = [Piece(index, 0, frames) for index, frames in enumerate(lengths)]
    found = plan(pieces, frames_max, batch_size_max, batch_cost_frames=batch_cost_frames)
    assert sorted(piece.clip_index for batch in found for piece in batch) == list(range(len(lengths)))
    assert cost([len(batch) for batch in found]) == min(cost(sizes) for sizes in partitions(len(lengths)))


def test_windows_close_by_seconds_so_memory_is_bounded():
    config = BatchingConfig(window_s=10)
    found = list(windows(iter(CLIPS), config, sample_rate_hz=RATE_HZ, frame_size=FRAME))
    assert [[cut.clip.key for cut in window.clips] for window in found] == [
        ["c0", "c1", "c2"], ["c3", "c4", "c5"], ["c6", "c7"], ["c8"],
    ]  # fmt: skip
    assert len(found[2].clips[1].segments) >= 4


def test_small_windows_and_batches_change_no_token():
    encoder = encoder_of(FakeCodec())
    small = BatchingConfig(window_s=5, batch_s=30, batch_size_max=2)
    assert_same(rows_of(CLIPS, encoder)[0], rows_of(CLIPS, encoder, small)[0])


def test_a_batch_that_does_not_fit_is_halved_and_counted():
    codec = FakeCodec(clips_max=2)
    rows, progress = rows_of([clip(f"k{n}", 2, n) for n in range(7)], encoder_of(codec))
    assert [shape[0] for shape in codec.batches] == [7, 3, 1, 2, 4, 2, 2]
    assert progress.num_halved_batches == 3
    assert_same(rows, rows_of([clip(f"k{n}", 2, n) for n in range(7)], encoder_of(FakeCodec()))[0])


def test_one_segment_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        rows_of(CLIPS, encoder_of(FakeCodec(clips_max=0)))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda t: replace(t, num_frames=t.num_frames + 1), "frames"),
        (lambda t: replace(t, semantic=None), "no semantic tokens"),
        (lambda t: replace(t, semantic=t.semantic[:, :-1]), "shape"),
        (lambda t: replace(t, acoustic=t.acoustic[:, :2]), "shape"),
        (lambda t: replace(t, acoustic=t.acoustic + 8100), "outside"),
        (lambda t: replace(t, semantic=t.semantic - 9000), "outside"),
        (lambda t: replace(t, semantic=t.semantic * torch.nan), "type float32"),
    ],
)
def test_a_codec_that_breaks_its_word_is_caught(tamper, message):
    with pytest.raises(CodecContractError, match=message):
        rows_of(CLIPS, encoder_of(FakeCodec(tamper)))


def test_semantics_alone():
    encoder = Encoder(codec=FakeCodec(), semantic=True, num_acoustic_codebooks=0, clock=time.monotonic)
    rows, _ = rows_of(CLIPS, encoder)
    assert all(row.acoustic is None and row.semantic is not None for row in rows)


def test_a_cancelled_replica_stops_at_the_next_batch():
    encoder = encoder_of(FakeCodec())
    encoder.cancelled.set()
    with pytest.raises(ShardCancelledError):
        rows_of(CLIPS, encoder)


def test_the_turn_goes_to_the_oldest_shard_that_waits():
    turn = Turn()
    first, *later = (turn.ticket() for _ in range(4))
    order, waiting = [], threading.Semaphore(0)

    def wait_for(ticket):
        waiting.release()
        with turn.take(ticket):
            order.append(ticket)

    with turn.take(first):
        threads = [threading.Thread(target=wait_for, args=(ticket,)) for ticket in reversed(later)]
        for thread in threads:
            thread.start()
        for _ in threads:
            waiting.acquire()
        deadline = time.monotonic() + 10
        while len(turn._waiting) < len(later):
            assert time.monotonic() < deadline
    for thread in threads:
        thread.join(10)
    assert order == later


def test_tokens_type_is_what_the_protocol_says():
    tokens = load_codec("calibrated:").encode(torch.zeros(1, 960), torch.tensor([960]))
    assert isinstance(tokens, Tokens)
