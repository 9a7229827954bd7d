"""Deadlines by themselves: the tighter one counts, and what a peer hears is never more than what is left."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core import deadline as deadlines
from aiomas_ng._core.deadline import Deadline, from_metadata, from_options, tighten, to_metadata, to_options
from aiomas_ng.exceptions import DeserializationError
from aiomas_ng.message import Message, OptionNumber
from tests.made_messages import junk


class StillClock:
    """A clock that stands."""

    def __init__(self, time: float = 0.0) -> None:
        self.now = time

    def time(self) -> float:
        return self.now


CLOCKS = [None, StillClock(), StillClock()]
times = st.floats(-1e9, 1e9)
bounds = st.lists(st.tuples(st.sampled_from(CLOCKS), times), min_size=1, max_size=6)


def at(now: float) -> Callable[[Any], float]:
    """Return a reader of clocks for which it is *now* in real time."""
    return lambda clock: now if clock is None else clock.time()


def make(bounds: list[tuple[Any, float]]) -> Deadline | None:
    """Return the deadline of all *bounds* inside of each other."""
    deadline = None
    for clock, when in bounds:
        deadline = tighten(deadline, clock, when)
    return deadline


# -- One within another ----------------------------------------------------------------------------


@given(bounds)
def test_the_earliest_time_of_each_clock_counts(bounds: list[tuple[Any, float]]) -> None:
    """Whatever the order in which they lie in each other, of each clock there is one time, the earliest."""
    deadline = make(bounds)
    assert deadline is not None
    assert len(deadline.times) == len({clock for clock, _ in bounds})
    for clock in CLOCKS:
        expected = min([when for own, when in bounds if own is clock], default=None)
        assert deadline.get_time(clock) == expected


@given(bounds, times)
def test_the_first_clock_to_pass_counts(bounds: list[tuple[Any, float]], now: float) -> None:
    """A deadline has passed as soon as it has on one of its clocks, and exactly when nothing is left."""
    deadline = make(bounds)
    assert deadline is not None
    assert deadline.has_passed(at(now)) == any(
        (now if clock is None else 0.0) >= when for clock, when in deadline.times
    )
    assert deadline.has_passed(at(now)) == (deadline.get_left(at(now)) <= 0)


def test_infinity_changes_nothing() -> None:
    """A bound that never comes is none."""
    assert tighten(None, None, math.inf) is None
    deadline = tighten(None, None, 5.0)
    assert tighten(deadline, StillClock(), math.inf) is deadline
    assert tighten(deadline, None, 5.0) is deadline
    assert tighten(deadline, None, 6.0) is deadline


def test_what_is_no_number_is_refused() -> None:
    """NaN would never pass, and never not."""
    with pytest.raises(ValueError, match="NaN"):
        tighten(None, None, math.nan)


def test_a_context_without_a_deadline() -> None:
    """It differs from the current one in that alone, and is not made where it is the same."""
    other: contextvars.ContextVar[str] = contextvars.ContextVar("other")

    def look() -> None:
        assert deadlines.get_context_without() is None
        other.set("x")
        deadlines.CURRENT.set(tighten(None, None, 1.0))
        context = deadlines.get_context_without()
        assert context is not None
        assert context[other] == "x"
        assert context.run(deadlines.get_deadline) is None
        assert deadlines.get_deadline() is not None

    contextvars.copy_context().run(look)


# -- On the wire -----------------------------------------------------------------------------------


@given(now=times, left=st.floats(0, 1e9), time=times, simulated=st.floats(0, 1e9))
def test_the_peer_is_never_later(now: float, left: float, time: float, simulated: float) -> None:
    """A peer whose clocks show the same time comes to the same deadline, up to rounding, and to no later
    one."""
    clock = StillClock(time)
    deadline = make([(None, now + left), (clock, time + simulated)])
    assert deadline is not None
    found = from_metadata(to_metadata(deadline, at(now)), clock, at(now))
    assert found is not None
    for each in (None, clock):
        theirs, ours = found.get_time(each), deadline.get_time(each)
        assert theirs is not None
        assert ours is not None
        assert theirs <= ours
        assert theirs == pytest.approx(ours, rel=1e-12, abs=1e-6)


@given(time=st.integers(0, 10**9), left=st.integers(0, 10**6), parts=st.sampled_from([1, 2, 4, 1024]))
def test_simulated_time_is_exact(time: int, left: int, parts: int) -> None:
    """Times that simulations use, whole seconds and their binary parts, arrive as they were."""
    clock = StillClock(time / parts)
    deadline = make([(clock, (time + left) / parts)])
    assert deadline is not None
    found = from_metadata(to_metadata(deadline, at(0.0)), clock, at(0.0))
    assert found is not None
    assert found.times == deadline.times


@given(now=times, left=st.floats(0, 1e9))
def test_options_are_rounded_up_to_microseconds(now: float, left: float) -> None:
    """A responder gives up at most a microsecond after the requester, who does by itself."""
    deadline = make([(None, now + left)])
    assert deadline is not None
    exact = max(0.0, now + left - now)
    microseconds = to_options(deadline, at(now))[OptionNumber.DEADLINE]
    assert -1e-6 <= microseconds / 1e6 - exact <= 2e-6


@given(bounds)
def test_options_survive_a_message(bounds: list[tuple[Any, float]]) -> None:
    """What is told by options is what the other end reads."""
    deadline = make(bounds)
    assert deadline is not None
    message = Message(1)
    message.opt._values.update(to_options(deadline, at(0.0)))
    arrived, _ = Message.from_compact(message.to_compact())
    found = from_options(arrived.opt._values, CLOCKS[1], at(0.0))
    real = deadline.get_time(None)
    simulated = [when for clock, when in deadline.times if clock is not None]
    if real is None:
        assert found is None or found.get_time(None) is None
    else:
        assert found is not None
        assert found.get_time(None) == pytest.approx(max(0.0, real), abs=2e-6)
    if simulated:
        assert found is not None
        assert found.get_time(CLOCKS[1]) == pytest.approx(max(0.0, min(simulated)), abs=2e-6)


def test_times_that_nobody_can_name_are_left_out() -> None:
    """What is too long for the wire is not sent: in practice it is no bound."""
    deadline = make([(None, 1e300), (StillClock(), 5.0)])
    assert deadline is not None
    assert to_metadata(deadline, at(0.0)) == {"simulated_deadline": 5.0}
    assert to_options(deadline, at(0.0)) == {OptionNumber.SIMULATED_DEADLINE: 5_000_000}


def test_what_has_passed_is_told_as_nothing_left() -> None:
    """Between the last look and the sending, time goes on; a negative number is never sent."""
    deadline = make([(None, -5.0)])
    assert deadline is not None
    assert to_metadata(deadline, at(0.0)) == {"deadline": 0.0}
    assert to_options(deadline, at(0.0)) == {OptionNumber.DEADLINE: 0}


def test_simulated_time_needs_a_clock() -> None:
    """Where there is none, it is not measured; real time is."""
    assert from_metadata({"simulated_deadline": 5}, None, at(0.0)) is None
    found = from_metadata({"simulated_deadline": 5, "deadline": 7}, None, at(1.0))
    assert found is not None
    assert found.times == ((None, 8.0),)


def test_other_keys_are_ignored() -> None:
    """A later version may say more."""
    assert from_metadata({"trace": [1, 2], 5: None}, StillClock(), at(0.0)) is None
    assert from_metadata({"deadline": None}, StillClock(), at(0.0)) is None


@pytest.mark.parametrize("key", ["deadline", "simulated_deadline"])
@pytest.mark.parametrize(
    "value",
    [-1, -1e-9, math.nan, math.inf, -math.inf, "5", b"5", [5], {}, True, 10**400, 2.0**53 + 2, 2**63],
    ids=lambda value: repr(value)[:12],
)
def test_a_bad_deadline(key: str, value: Any) -> None:
    """It is an error that names key and value, with or without a clock to measure it."""
    for clock in (None, StillClock()):
        with pytest.raises(DeserializationError, match=f"'{key}' of a call must be a number of seconds"):
            from_metadata({key: value}, clock, at(0.0))


@given(junk)
def test_any_metadata(metadata: Any) -> None:
    """Whatever a peer sends gives a deadline, none, or the one error."""
    try:
        found = from_metadata(metadata, StillClock(), at(0.0))
    except DeserializationError:
        return
    assert type(metadata) is dict
    assert found is None or isinstance(found, Deadline)
