"""The retry policy: which errors, how often, how long."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipeline.errors import InfraError, ObjectMissingError, StoreDeniedError, StoreUnavailableError
from pipeline.retry import Retry
from pipeline.settings import RetryConfig


class Scripted:
    """A call that fails with the given errors in turn and then returns 'done'; counts its tries."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


class FakeClock:
    """Time that passes only by sleeping; every sleep is recorded."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        self.now_s += wait_s
        self.sleeps_s.append(wait_s)


class TopOfRange(random.Random):
    """Draws the upper bound, so that a test sees the bounds themselves."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def policy(clock: FakeClock, rng: random.Random | None = None, **settings: float) -> Retry:
    return Retry(RetryConfig.model_validate(settings), clock=clock, sleep=clock.sleep, rng=rng)


def unavailable(times: int) -> list[StoreUnavailableError]:
    return [StoreUnavailableError(f"fault {n}") for n in range(1, times + 1)]


def test_success_after_faults_takes_one_try_more_than_the_faults(clock: FakeClock) -> None:
    call = Scripted(*unavailable(3))
    assert policy(clock, attempts_max=4).call(call) == "done"
    assert call.tries == 4
    assert len(clock.sleeps_s) == 3


def test_last_error_is_raised_with_the_number_of_tries(clock: FakeClock) -> None:
    call = Scripted(*unavailable(9))
    with pytest.raises(StoreUnavailableError, match=r"^fault 5; gave up after 5 tries in"):
        policy(clock, attempts_max=5).call(call)
    assert call.tries == 5
    assert len(clock.sleeps_s) == 4


@pytest.mark.parametrize("error", [ObjectMissingError("m"), StoreDeniedError("d"), InfraError("i"), ValueError("v")])
def test_other_errors_are_raised_at_once_as_they_are(clock: FakeClock, error: Exception) -> None:
    call = Scripted(error)
    with pytest.raises(type(error)) as caught:
        policy(clock, attempts_max=5).call(call)
    assert caught.value is error
    assert caught.value.args == (error.args[0],)
    assert call.tries == 1


def test_backoff_doubles_up_to_its_bound(clock: FakeClock) -> None:
    call = Scripted(*unavailable(5))
    policy(clock, TopOfRange(), attempts_max=6, backoff_s=1.0, backoff_s_max=5.0).call(call)
    assert clock.sleeps_s == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_is_full(clock: FakeClock) -> None:
    call = Scripted(*unavailable(99))
    policy(clock, random.Random(0), attempts_max=100, backoff_s=1.0, backoff_s_max=1.0).call(call)
    assert all(0.0 <= wait_s <= 1.0 for wait_s in clock.sleeps_s)
    assert min(clock.sleeps_s) < 0.1
    assert max(clock.sleeps_s) > 0.9


def test_total_time_ends_the_tries_before_a_wait_that_would_pass_it(clock: FakeClock) -> None:
    call = Scripted(*unavailable(99))
    retry = policy(clock, TopOfRange(), attempts_max=100, backoff_s=4.0, backoff_s_max=4.0, total_s_max=10.0)
    with pytest.raises(StoreUnavailableError, match=r"fault 3; gave up after 3 tries in 8\.0 s"):
        retry.call(call)
    assert call.tries == 3


def test_time_spent_inside_the_call_counts(clock: FakeClock) -> None:
    def slow() -> None:
        clock.now_s += 60.0
        raise StoreUnavailableError("slow")

    with pytest.raises(StoreUnavailableError, match=r"after 1 try in 60\.0 s"):
        policy(clock, attempts_max=100, total_s_max=50.0).call(slow)


def test_calls_do_not_share_their_counts(clock: FakeClock) -> None:
    retry = policy(clock, attempts_max=3)
    calls: list[Callable[[], str]] = [Scripted(*unavailable(2)), Scripted(*unavailable(2))]
    assert [retry.call(call) for call in calls] == ["done", "done"]
