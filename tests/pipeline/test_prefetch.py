"""Running ahead: bounded, errors carried over at their place, and no thread left behind."""

import threading

import pytest

from pipeline.prefetch import prefetched


def test_items_arrive_in_order_and_the_source_is_never_far_ahead():
    made = []

    def source():
        for n in range(20):
            made.append(n)
            yield n

    with prefetched(source(), items_max=2, name="feed") as items:
        for n in items:
            assert made[-1] <= n + 4  # one with us, two waiting, one being put


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise ValueError("cut tar")

    seen = []
    with prefetched(source(), items_max=4, name="feed") as items:
        seen.append(next(items))
        seen.append(next(items))
        with pytest.raises(ValueError, match="cut tar"):
            next(items)
    assert seen == [1, 2]


def test_leaving_early_closes_the_source_in_its_thread_and_ends_it():
    closed_in = []

    def source():
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed_in.append(threading.current_thread().name)

    with prefetched(source(), items_max=1, name="feed-x") as items:
        assert next(items) == 0
    assert closed_in == ["feed-x"]
    assert "feed-x" not in {thread.name for thread in threading.enumerate()}
