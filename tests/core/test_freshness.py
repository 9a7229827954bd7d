"""Freshness: of two notifications the newer one counts, whatever their numbers have gone around."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng._core.freshness import MAX_AGE_OF_ORDER, MODULUS, Freshness, is_newer

HALF = MODULUS // 2

numbers = st.integers(0, MODULUS - 1) | st.sampled_from([0, 1, HALF - 1, HALF, HALF + 1, MODULUS - 1])
times = st.floats(0, 1e6) | st.integers(0, 1000)


def rfc_is_newer(v1: int, t1: float, v2: int, t2: float) -> bool:
    """The condition of RFC 7641, section 3.4, as it stands there."""
    return (v1 < v2 and v2 - v1 < 2**23) or (v1 > v2 and v1 - v2 > 2**23) or (t2 > t1 + 128)


@given(v1=numbers, t1=times, v2=numbers, dt=st.floats(0, 300) | st.just(128) | st.just(0))
@example(v1=0, t1=0.0, v2=0, dt=128.0)
@example(v1=0, t1=0.0, v2=HALF, dt=0.0)
@example(v1=HALF, t1=0.0, v2=0, dt=0.0)
@example(v1=MODULUS - 1, t1=0.0, v2=0, dt=0.0)
def test_it_is_the_condition_of_the_rfc(v1: int, t1: float, v2: int, dt: float) -> None:
    """The shorter form agrees with the one that the RFC prints, for all numbers and times."""
    assert is_newer(v1, t1, v2, t1 + dt) == rfc_is_newer(v1, t1, v2, t1 + dt)


@given(a=numbers, b=numbers)
def test_two_numbers_are_never_both_newer(a: int, b: int) -> None:
    """While the order is young, at most one of two is newer, and exactly one unless they are opposites."""
    newer = is_newer(a, 0.0, b, 0.0) + is_newer(b, 0.0, a, 0.0)
    assert newer == (0 if (a - b) % MODULUS in (0, HALF) else 1)


def test_after_128_seconds_any_number_is_newer() -> None:
    """At 128 seconds the numbers still decide, after them they do not."""
    assert not is_newer(5, 1.0, 4, 1.0 + MAX_AGE_OF_ORDER)
    assert is_newer(5, 1.0, 4, 1.0 + MAX_AGE_OF_ORDER + 0.001)
    assert is_newer(5, 1.0, 5, 1.0 + MAX_AGE_OF_ORDER + 0.001)


@given(first=numbers, now=times)
def test_the_first_notification_is_accepted(first: int, now: float) -> None:
    """Whatever its number; and the same again at once is not."""
    freshness = Freshness()
    assert freshness.number is None
    assert freshness.accept(first, now)
    assert freshness.number == first
    assert not freshness.accept(first, now)


@given(steps=st.lists(st.tuples(numbers, st.floats(0, 200))))
def test_what_was_not_accepted_changes_nothing(steps: list[tuple[int, float]]) -> None:
    """Any sequence: each notification is compared with the last accepted one, in number and in time."""
    freshness = Freshness()
    last: tuple[int, float] | None = None
    now = 0.0
    for number, dt in steps:
        now += dt
        expected = last is None or rfc_is_newer(*last, number, now)
        assert freshness.accept(number, now) is expected
        if expected:
            last = number, now
        assert freshness.number == (last[0] if last else None)


@given(start=numbers, jumps=st.lists(st.integers(1, HALF - 1), max_size=50))
def test_a_server_that_counts_is_always_accepted(start: int, jumps: list[int]) -> None:
    """Notifications in order are never dropped, however often the numbers go around."""
    freshness = Freshness()
    assert freshness.accept(start, 0.0)
    for jump in jumps:
        start = (start + jump) % MODULUS
        assert freshness.accept(start, 0.0)


def test_overtaken_notifications_are_dropped() -> None:
    """Two that change places at the wrap: the older one is recognized."""
    freshness = Freshness()
    assert freshness.accept(MODULUS - 2, 0.0)
    assert freshness.accept(0, 0.1)
    assert not freshness.accept(MODULUS - 1, 0.2)
    assert freshness.accept(1, 0.3)


@pytest.mark.parametrize("number", [-1, MODULUS, 2**32])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    """What three bytes cannot carry is an error, and changes nothing."""
    freshness = Freshness()
    with pytest.raises(ValueError, match=f"from 0 to {MODULUS - 1} but is {number}"):
        freshness.accept(number, 0.0)
    assert freshness.number is None


def test_repr_says_where_it_stands() -> None:
    """Number and time can be read."""
    freshness = Freshness()
    freshness.accept(7, 2.5)
    assert repr(freshness) == "<Freshness: number 7 at 2.5 s>"
