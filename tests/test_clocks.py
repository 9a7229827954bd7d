"""Clocks: real and simulated time, and the timers that depend on it."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import arrow
import pytest
from arrow.arrow import Arrow
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng import clocks
from aiomas_ng.clocks import AsyncioClock, BaseClock, ExternalClock, TimerHandle

START = "2014-01-01T00:00:00"
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture
def clock() -> ExternalClock:
    """A simulated clock at time 0."""
    return ExternalClock(START)


@pytest.fixture(params=[AsyncioClock, lambda: ExternalClock(START, init_time=3)], ids=["asyncio", "external"])
def any_clock(request: pytest.FixtureRequest) -> BaseClock:
    """Each kind of clock in turn."""
    made: BaseClock = request.param()
    return made


async def turn() -> None:
    """Let the loop make one turn."""
    await asyncio.sleep(0)


# -- The interface ----------------------------------------------------------------------------------


def test_base_clock_demands_everything() -> None:
    """A clock that defines nothing can do nothing."""
    clock = BaseClock()
    calls: list[Callable[[], object]] = [
        clock.time,
        clock.utcnow,
        clock.next_due,
        lambda: clock.sleep(1),
        lambda: clock.sleep_until(1),
        lambda: clock.call_in(1, print),
        lambda: clock.call_at(1, print),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()


def test_own_clock_needs_time_and_date_only() -> None:
    """A user's subclass works with time() and utcnow(), and can use the conversion of dates."""

    class OwnClock(BaseClock):
        def time(self) -> float:
            return 10

        def utcnow(self) -> Arrow:
            return arrow.get(START)

        def call_at(self, t: float | Arrow, func: Callable[..., object], *args: Any) -> Any:
            return self._check_date(t)

    clock = OwnClock()
    assert clock.call_at(11, print) == 11
    assert clock.call_at(arrow.get("2014-01-01T00:00:01"), print) == 11
    with pytest.raises(ValueError, match="in the past"):
        clock.call_at(10, print)
    with pytest.raises(NotImplementedError):
        clock.sleep(1)


@pytest.mark.parametrize("value", NOT_FINITE)
async def test_times_are_finite(any_clock: BaseClock, value: float) -> None:
    """NaN and infinity are refused by every method, as they have no place in the order of time."""
    calls: list[Callable[[], object]] = [
        lambda: any_clock.sleep(value),
        lambda: any_clock.sleep_until(value),
        lambda: any_clock.call_in(value, print),
        lambda: any_clock.call_at(value, print),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"finite number of seconds, but is {value}"):
            call()
    assert any_clock.next_due() is None


async def test_points_in_the_past_are_refused(any_clock: BaseClock) -> None:
    """Neither now nor an earlier time or date can be waited for."""
    for t in (any_clock.time(), any_clock.time() - 1, any_clock.utcnow(), any_clock.utcnow().shift(days=-1)):
        with pytest.raises(ValueError, match="in the past"):
            any_clock.sleep_until(t)
        with pytest.raises(ValueError, match="in the past"):
            any_clock.call_at(t, print)
    assert any_clock.next_due() is None


async def test_only_numbers_are_times(any_clock: BaseClock) -> None:
    """Something that is no number is a fault of the program, not a time."""
    wrong: Any = "soon"
    for call in (any_clock.sleep, any_clock.sleep_until):
        with pytest.raises(TypeError):
            call(wrong)


async def test_next_due_is_the_first_timer_that_waits(any_clock: BaseClock) -> None:
    """Of all timers the earliest counts; cancelled ones do not, from the moment they are cancelled."""
    now = any_clock.time()
    assert any_clock.next_due() is None
    late = any_clock.call_at(now + 300, print)
    sleep = any_clock.sleep_until(now + 200)
    early = any_clock.call_at(now + 100, print)
    assert any_clock.next_due() == now + 100
    early.cancel()
    assert any_clock.next_due() == now + 200
    sleep.cancel()
    assert any_clock.next_due() == now + 300
    late.cancel()
    assert any_clock.next_due() is None


async def test_handle_tells_its_state(any_clock: BaseClock) -> None:
    """A handle knows its time and whether it was cancelled; cancelling twice is fine."""
    when = any_clock.time() + 100
    handle = any_clock.call_at(when, print)
    assert isinstance(handle, TimerHandle)
    assert handle.when() == when
    assert not handle.cancelled()
    assert "waiting" in repr(handle)
    handle.cancel()
    handle.cancel()
    assert handle.cancelled()
    assert repr(handle) == f"<TimerHandle at {when} s, cancelled>"


async def test_cancelled_timers_do_not_accumulate(any_clock: BaseClock) -> None:
    """A program that sets and cancels timers for ever, such as timeouts, holds only those that wait."""
    now = any_clock.time()
    kept = any_clock.call_at(now + 1e6, print)
    count = len(any_clock._schedule._heap)  # type: ignore[attr-defined]  # what it holds cannot be seen otherwise
    for n in range(2000):
        any_clock.call_at(now + 1000 + n, print).cancel()
        any_clock.sleep_until(now + 1000 + n).cancel()
        if n % 10 == 0:
            await turn()
    await turn()
    assert len(any_clock._schedule._heap) <= count + clocks.MIN_SWEEP  # type: ignore[attr-defined]
    assert any_clock.next_due() == now + 1e6
    kept.cancel()


async def test_cancelling_many_timers_frees_them(any_clock: BaseClock) -> None:
    """Timers that are cancelled at once are forgotten without a further call to the clock."""
    calls = [any_clock.call_in(1000, print) for _ in range(1000)]
    sleeps = [any_clock.sleep(1000) for _ in range(1000)]
    for timer in calls + sleeps:
        timer.cancel()
    await turn()
    assert len(any_clock._schedule._heap) <= clocks.MIN_SWEEP  # type: ignore[attr-defined]  # not to be seen otherwise


async def test_cancelled_call_lets_go_of_its_arguments(any_clock: BaseClock) -> None:
    """What a cancelled call refers to is free at once, though the schedule may keep the timer for a while."""

    class Payload:
        pass

    payload = Payload()
    reference = weakref.ref(payload)
    any_clock.call_in(1, print)
    handle = any_clock.call_in(100, print, payload)
    handle.cancel()
    del payload
    gc.collect()
    assert reference() is None


def test_clock_is_used_in_one_loop_after_the_other(any_clock: BaseClock) -> None:
    """Two asyncio.run() in a row: timers of the first loop are dropped, new ones work in the second."""
    called: list[str] = []

    async def first() -> None:
        any_clock.call_in(0.01, called.append, "first")
        any_clock.sleep(0.01).add_done_callback(lambda future: called.append("first"))
        assert any_clock.next_due() is not None

    async def second() -> None:
        assert any_clock.next_due() is None
        future = any_clock.sleep(0.02, "result")
        any_clock.call_in(0.02, called.append, "second")
        if isinstance(any_clock, ExternalClock):
            any_clock.set_time(any_clock.time() + 1)
        assert await future == "result"
        await turn()

    asyncio.run(first())
    asyncio.run(second())
    assert called == ["second"]


def test_given_loop_is_left_when_it_is_closed() -> None:
    """A loop that was given is used while it is open, afterwards the clock goes with the one that runs."""
    given_loop = asyncio.new_event_loop()
    for clock in (AsyncioClock(given_loop), ExternalClock(START, loop=given_loop)):
        future = clock.sleep(1)
        assert future.get_loop() is given_loop
        future.cancel()
    call = ExternalClock(START, loop=given_loop)
    called: list[int] = []
    call.call_in(1, called.append, 1)
    call.set_time(1)
    assert called == []
    given_loop.run_until_complete(turn())
    assert called == [1]
    given_loop.close()

    async def main() -> None:
        for clock in (AsyncioClock(given_loop), call):
            future = clock.sleep(1)
            assert future.get_loop() is asyncio.get_running_loop()
            future.cancel()

    asyncio.run(main())


def test_timers_of_closed_loops_do_not_accumulate(any_clock: BaseClock) -> None:
    """Timers that die with their loop are forgotten, though nobody cancels them."""

    async def leave_timers() -> None:
        for _ in range(100):
            any_clock.call_in(1000, print)

    for _ in range(10):
        asyncio.run(leave_timers())
    assert len(any_clock._schedule._heap) <= 300  # type: ignore[attr-defined]  # not to be seen otherwise
    assert any_clock.next_due() is None


@pytest.mark.parametrize("copier", [lambda clock: pickle.loads(pickle.dumps(clock)), copy.deepcopy])
async def test_clock_can_be_copied(any_clock: BaseClock, copier: Callable[[Any], BaseClock]) -> None:
    """A clock goes to another process without its timers and its loop, and works there."""
    handle = any_clock.call_in(1, print)
    twin = copier(any_clock)
    assert type(twin) is type(any_clock)
    assert twin.next_due() is None
    twin.call_in(1, print).cancel()
    if isinstance(twin, ExternalClock):
        assert twin.time() == any_clock.time()
        assert twin.utcnow() == any_clock.utcnow()
        twin.set_time(100)
    assert any_clock.next_due() == handle.when()
    handle.cancel()


# -- Real time --------------------------------------------------------------------------------------


async def test_asyncio_clock_is_the_time_of_the_loop() -> None:
    """time() is the loop's, utcnow() the computer's, in UTC."""
    clock = AsyncioClock()
    loop = asyncio.get_running_loop()
    before, time, after = loop.time(), clock.time(), loop.time()
    assert before <= time <= after
    assert arrow.utcnow() - clock.utcnow() < timedelta(seconds=10)
    assert clock.utcnow().tzinfo == arrow.utcnow().tzinfo


async def test_asyncio_clock_sleeps() -> None:
    """Every way to wait ends, not too early, with the result that was given."""
    clock = AsyncioClock()
    begin = clock.time()
    assert await clock.sleep(0.01, "a") == "a"
    assert clock.time() >= begin + 0.01 - 0.001
    assert await clock.sleep_until(clock.time() + 0.01, "b") == "b"
    assert await clock.sleep_until(clock.utcnow().shift(microseconds=10_000), "c") == "c"
    assert await clock.sleep(0.001) is None
    assert clock.time() >= begin + 0.03 - 0.003
    await turn()
    assert clock.next_due() is None


@pytest.mark.parametrize("dt", [0, -1])
async def test_asyncio_clock_sleeps_not_at_all(dt: float) -> None:
    """A span of zero or less is over as soon as possible, as with asyncio.sleep()."""
    clock = AsyncioClock()
    called: list[int] = []
    clock.call_in(dt, called.append, 1)
    assert await clock.sleep(dt, "result") == "result"
    assert called == [1]


async def test_asyncio_clock_calls() -> None:
    """Calls are made with their arguments unless they are cancelled, and are no longer due then."""
    clock = AsyncioClock()
    called: list[tuple[int, ...]] = []
    done = asyncio.Event()
    handle = clock.call_in(0.001, lambda *args: called.append(args), 1, 2)
    clock.call_at(clock.time() + 0.002, called.append, (3,))
    clock.call_at(clock.time() + 0.003, called.append, (4,)).cancel()
    clock.call_at(clock.utcnow().shift(microseconds=20_000), done.set)
    await done.wait()
    assert called == [(1, 2), (3,)]
    assert "called" in repr(handle)
    handle.cancel()
    assert not handle.cancelled()
    assert clock.next_due() is None


async def test_cancelled_sleep_does_not_wake_the_loop() -> None:
    """Cancelling the future removes the timer from the loop as well."""
    clock = AsyncioClock()
    future = clock.sleep(1000)
    timer = clock._schedule._heap[0][2]._loop_handle
    assert timer is not None
    future.cancel()
    await turn()
    assert timer.cancelled()


# -- Simulated time: the date -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "utc_start",
    [
        "2014-01-01",
        "2014-01-01T00:00:00",
        "2014-01-01T01:00:00+01:00",
        arrow.get("2014-01-01T00:00:00"),
        arrow.get("2014-01-01T01:00:00+01:00"),
        arrow.get("2013-12-31T19:00:00").replace(tzinfo="America/New_York"),
        datetime(2014, 1, 1),
        datetime(2014, 1, 1, tzinfo=UTC),
        datetime(2014, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        1388534400,
        1388534400.0,
    ],
    ids=repr,
)
def test_start_is_converted_to_utc(utc_start: Any) -> None:
    """The start can be given in all common forms and time zones, and is UTC afterwards."""
    clock = ExternalClock(utc_start)
    assert clock._utc_start.isoformat() == "2014-01-01T00:00:00+00:00"
    assert clock.utcnow().isoformat() == "2014-01-01T00:00:00+00:00"


@pytest.mark.parametrize("utc_start", ["yesterday", float("nan")])
def test_start_must_be_a_date(utc_start: Any) -> None:
    """Something that is no date is refused."""
    with pytest.raises(ValueError):
        ExternalClock(utc_start)


def test_initial_time_shifts_the_date() -> None:
    """The start is the date at time zero, whatever the time to begin with."""
    clock = ExternalClock(START, init_time=3600)
    assert clock.time() == 3600
    assert clock.utcnow() == arrow.get("2014-01-01T01:00:00")
    for value in NOT_FINITE:
        with pytest.raises(ValueError, match="init_time"):
            ExternalClock(START, init_time=value)


@given(st.floats(0, 1e9), st.integers(1, 10**15))
def test_dates_are_exact_to_the_microsecond(now: float, microseconds: int) -> None:
    """A date is due at its distance from the start, whatever the rounding of the current date."""
    clock = ExternalClock(START, init_time=now)
    date = arrow.get(START) + timedelta(microseconds=microseconds)
    due = microseconds / 1e6
    if due <= now:
        with pytest.raises(ValueError, match="in the past"):
            clock.call_at(date, print)
        return
    try:
        handle = clock.call_at(date, print)
    except ValueError:
        # Within one microsecond the current date and the date are the same.
        assert due - now < 2e-6
    else:
        assert handle.when() == pytest.approx(due, rel=1e-15, abs=0)


def test_date_of_a_whole_second_is_due_in_that_second() -> None:
    """Rounding of the current date does not move a date past the full second."""
    clock = ExternalClock(START, init_time=0.1234563)
    assert clock.call_at(arrow.get("2014-01-01T00:00:01"), print).when() == 1.0


def test_utcnow_can_be_replaced() -> None:
    """A program may put its own utcnow() on a clock; dates are then converted with it."""
    clock: Any = ExternalClock(START)
    clock.utcnow = lambda: arrow.get("2020-01-01")
    assert clock.call_at(arrow.get("2020-01-01T00:00:05"), print).when() == 5
    with pytest.raises(ValueError, match="in the past: it is 2020-01-01"):
        clock.call_at(arrow.get("2019-01-01"), print)


# -- Simulated time: set_time -----------------------------------------------------------------------


def test_time_only_increases(clock: ExternalClock) -> None:
    """Setting the time to now, back, or to no time is refused, and says which times are meant."""
    clock.set_time(1.5)
    assert clock.time() == 1.5
    assert clock.utcnow() == arrow.get("2014-01-01T00:00:01.500000")
    for t in (1.5, 1, -3):
        with pytest.raises(ValueError, match=rf"more than 1\.5 s.* not to {t} s"):
            clock.set_time(t)
    for t in NOT_FINITE:
        with pytest.raises(ValueError, match="finite"):
            clock.set_time(t)
    assert clock.time() == 1.5


async def test_timers_fire_in_order(clock: ExternalClock) -> None:
    """All that is due fires in the order of time, then of registration; the rest waits."""
    log: list[str] = []

    async def sleeper(name: str, t: float) -> None:
        log.append(await clock.sleep_until(t, name))

    tasks = [asyncio.ensure_future(sleeper("sleep 2", 2)), asyncio.ensure_future(sleeper("sleep 1", 1))]
    await turn()
    clock.call_at(2, log.append, "call 2")
    clock.call_at(1, log.append, "call 1")
    clock.call_at(clock.utcnow().shift(seconds=1), log.append, "date 1")
    clock.call_in(3, log.append, "call 3")
    clock.set_time(0.5)
    await turn()
    assert log == []
    clock.set_time(2)
    assert log == [], "nothing is called within set_time()"
    await asyncio.gather(*tasks)
    # A task needs one more turn than a callback, between its future and itself.
    assert [entry for entry in log if entry.startswith("sleep")] == ["sleep 1", "sleep 2"]
    assert [entry for entry in log if not entry.startswith("sleep")] == ["call 1", "date 1", "call 2"]
    assert clock.next_due() == 3


@given(st.lists(st.integers(1, 20), max_size=40), st.lists(st.integers(1, 5), max_size=8), st.data())
def test_any_timers_fire_in_order(times: list[int], steps: list[int], data: st.DataObject) -> None:
    """Any timers, some cancelled: each fires once, in the first step that reaches it, in the due order."""
    clock = ExternalClock(START)
    log: list[tuple[int, int]] = []
    cancelled = data.draw(st.sets(st.integers(0, max(0, len(times) - 1))))

    async def main() -> None:
        handles = [clock.call_at(t, log.append, (t, n)) for n, t in enumerate(times)]
        for n in cancelled & set(range(len(times))):
            handles[n].cancel()
        left = sorted((t, n) for n, t in enumerate(times) if n not in cancelled)
        for step in steps:
            assert clock.next_due() == (left[0][0] if left else None)
            clock.set_time(clock.time() + step)
            await turn()
            due = [entry for entry in left if entry[0] <= clock.time()]
            assert log == due
            log.clear()
            left = left[len(due) :]

    asyncio.run(main())


async def test_fired_calls_see_the_new_time(clock: ExternalClock) -> None:
    """Whatever was due, it is the new time for what is called; what it sets for then or before is late."""
    seen: list[Any] = []

    def callback() -> None:
        seen.append(clock.time())
        for t in (1, 5, 10):
            with pytest.raises(ValueError, match="in the past"):
                clock.call_at(t, print)
        clock.call_at(10.5, seen.append, "next")

    clock.call_at(5, callback)
    clock.set_time(10)
    await turn()
    assert seen == [10]
    assert clock.next_due() == 10.5
    clock.set_time(11)
    await turn()
    assert seen == [10, "next"]


async def test_failing_callback_does_not_stop_time(clock: ExternalClock, asyncio_errors: list[str]) -> None:
    """A callback that raises is reported by the loop, and the others are called."""
    called: list[int] = []
    clock.call_in(1, lambda: 1 / 0)
    clock.call_in(2, called.append, 2)
    clock.set_time(3)
    await turn()
    assert called == [2]
    assert len(asyncio_errors) == 1
    asyncio_errors.clear()


async def test_sleep_returns_a_future_with_the_result(clock: ExternalClock) -> None:
    """The future is done within set_time(), with the result that was given."""
    futures = [clock.sleep(1, "a"), clock.sleep_until(2, "b"), clock.sleep(3)]
    futures.append(clock.sleep_until(arrow.get("2014-01-01T00:00:04"), "d"))
    clock.set_time(3)
    assert [future.done() for future in futures] == [True, True, True, False]
    clock.set_time(4)
    assert await asyncio.gather(*futures) == ["a", "b", None, "d"]


async def test_done_futures_are_left_alone(clock: ExternalClock) -> None:
    """A future that was cancelled, or set by its owner, does not disturb when its time comes."""
    cancelled, done, waiting = clock.sleep(1), clock.sleep(1), clock.sleep(1, "result")
    cancelled.cancel()
    done.set_result("early")
    clock.set_time(1)
    assert cancelled.cancelled()
    assert done.result() == "early"
    assert waiting.result() == "result"


async def test_cancelled_task_removes_its_timer(clock: ExternalClock) -> None:
    """wait_for() that gives up, or a cancelled task, leaves no timer behind."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(clock.sleep(100), 0.001)
    assert clock.next_due() is None


@pytest.mark.parametrize("dt", [0, -1, -0.1])
async def test_simulated_spans_are_positive(clock: ExternalClock, dt: float) -> None:
    """Without time passing, a span of zero would never be over, so it is refused."""
    for call in (lambda: clock.sleep(dt), lambda: clock.call_in(dt, print)):
        with pytest.raises(ValueError, match=f"dt must be > 0, but is {dt}"):
            call()


async def test_call_can_be_cancelled_until_it_is_made(clock: ExternalClock) -> None:
    """A call that is due, but not made yet, can still be cancelled."""
    called: list[int] = []
    handle = clock.call_in(1, called.append, 1)
    other = clock.call_in(1, called.append, 2)
    clock.set_time(1)
    handle.cancel()
    await turn()
    assert called == [2]
    assert handle.cancelled()
    assert not other.cancelled()
    assert "called" in repr(other)


async def test_calls_keep_the_context_of_their_caller(clock: ExternalClock) -> None:
    """A callback sees the context variables of whoever scheduled it, not of whoever sets the time."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[str] = []
    variable.set("scheduling")
    clock.call_in(1, lambda: seen.append(variable.get()))
    variable.set("setting")
    clock.set_time(1)
    await turn()
    assert seen == ["scheduling"]


def test_timers_can_be_set_before_the_loop_runs(clock: ExternalClock) -> None:
    """A future of the current loop, which runs later, and calls, which are made in whichever loop runs."""
    called: list[int] = []
    future = clock.sleep(1, "result")
    clock.call_in(1, called.append, 1)

    async def main() -> Any:
        clock.set_time(1)
        return await future

    loop = future.get_loop()
    assert loop.run_until_complete(main()) == "result"
    assert called == [1]
    loop.close()

    clock.call_in(1, called.append, 2)

    async def in_another_loop() -> None:
        clock.set_time(2)
        await turn()

    asyncio.run(in_another_loop())
    assert called == [1, 2]


def test_time_can_be_set_without_a_loop(clock: ExternalClock) -> None:
    """A clock is useful where nothing is asynchronous; calls wait for the current loop to run."""
    clock.set_time(1)
    called: list[int] = []
    clock.call_in(1, called.append, 1)
    clock.set_time(2)
    assert called == []
    asyncio.get_event_loop_policy().get_event_loop().run_until_complete(turn())
    assert called == [1]


async def test_clock_can_be_subclassed() -> None:
    """Subclasses extend set_time() and keep attributes of their own, also when copied."""

    class Logged(ExternalClock):
        def __init__(self, start: str) -> None:
            super().__init__(start, 10)
            self.log: list[float] = []

        def set_time(self, t: float) -> None:
            self.log.append(t)
            super().set_time(t)

    clock = Logged(START)
    future = clock.sleep(5, "result")
    clock.set_time(15)
    assert await future == "result"
    twin = copy.copy(clock)
    assert twin.log == [15]
    assert twin.time() == 15


def test_many_timers(clock: ExternalClock) -> None:
    """A hundred thousand timers are no burden: each fires once, in order, whatever is cancelled."""
    fired: list[int] = []
    times = [(n * 7919) % 100_003 + 1 for n in range(100_000)]

    async def main() -> None:
        handles = [clock.call_at(t, fired.append, t) for t in times]
        for handle in handles[::2]:
            handle.cancel()
        assert clock.next_due() == min(times[1::2])
        clock.set_time(200_000)
        await turn()

    # Debug mode keeps the stack of every callback, which takes longer than the timers themselves.
    asyncio.run(main(), debug=False)
    assert fired == sorted(times[1::2])
    assert clock.next_due() is None
