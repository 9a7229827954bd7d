"""One direction of a bad connection, without a loop: what arrives, and when."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.fault_rules import Conditions, Exponential, Fate
from aiomas_ng._core.line import TICK, Line, Mark

KIB = 1024

seconds = st.floats(0, 5)
delays = st.one_of(seconds, st.tuples(seconds, seconds).map(lambda pair: tuple(sorted(pair))))
conditions = st.builds(
    Conditions,
    delay=delays,
    jitter=delays,
    rate=st.one_of(st.none(), st.floats(100, 1e6)),
    window=st.integers(1, 100_000),
)
writes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 200)), max_size=12)


def make_line(seed: int = 0, **kwds: Any) -> Line:
    """Return a line under such conditions."""
    return Line(Conditions(**kwds), Random(seed))


def data_of(items: list[tuple[float, Any]]) -> bytes:
    """Return the bytes among what has arrived."""
    return b"".join(item for _, item in items if not isinstance(item, Mark))


def drain(line: Line, until: float = math.inf) -> list[tuple[float, Any]]:
    """Take all that arrives up to a time, each at the time that the line has named."""
    items = []
    while (due := line.next_due()) is not None and due <= until:
        item = line.take(due)
        assert item is not None, "it named a time at which nothing arrives"
        items.append((due, item if isinstance(item, Mark) else bytes(item)))
        if item is Mark.CUT:
            break
    return items


def write_all(line: Line, pieces: list[tuple[float, int]]) -> tuple[bytes, list[tuple[float, Any]]]:
    """Write pieces of so many bytes, each after such a pause; take what arrives meanwhile and after."""
    now, sent, items = 0.0, b"", []
    rng = Random(7)
    for pause, size in pieces:
        now += pause
        items += drain(line, now)
        data = rng.randbytes(size)
        line.put(data, now)
        sent += data
    line.put_mark(Mark.EOF, now)
    return sent, items + drain(line)


# What holds whatever the conditions are


@given(conditions=conditions, pieces=writes, seed=st.integers())
def test_all_bytes_arrive_in_order(
    conditions: Conditions, pieces: list[tuple[float, int]], seed: int
) -> None:
    """Whatever the delays and rates, all bytes arrive, in their order, and behind them the end."""
    line = Line(conditions, Random(seed))
    sent, items = write_all(line, pieces)
    assert data_of(items) == sent
    assert [item for _, item in items if isinstance(item, Mark)] == [Mark.EOF]
    assert items[-1][1] is Mark.EOF
    assert (line.size, line.passed, line.lost, line.is_empty()) == (0, len(sent), 0, True)


@given(conditions=conditions, pieces=writes, seed=st.integers())
def test_times_do_not_go_back(conditions: Conditions, pieces: list[tuple[float, int]], seed: int) -> None:
    """What arrives later has a later time, or the same."""
    _, items = write_all(Line(conditions, Random(seed)), pieces)
    assert all(before <= after for (before, _), (after, _) in pairwise(items))


@given(conditions=conditions, pieces=writes, seed=st.integers())
def test_the_same_seed_gives_the_same(
    conditions: Conditions, pieces: list[tuple[float, int]], seed: int
) -> None:
    """Two lines with the same seed that are given the same bytes do the same at the same times."""
    first, second = (write_all(Line(conditions, Random(seed)), pieces) for _ in range(2))
    assert first == second


@given(conditions=conditions, pieces=writes, step=st.floats(0.01, 3))
def test_when_it_is_asked_makes_no_difference(
    conditions: Conditions, pieces: list[tuple[float, int]], step: float
) -> None:
    """Who asks at times of its own gets the same bytes, those that are due and no others."""
    exact, coarse = (Line(conditions, Random(1)) for _ in range(2))
    now = 0.0
    for _, size in pieces:
        exact.put(bytes(size), now)
        coarse.put(bytes(size), now)
    while exact.size:
        now += step
        expected = data_of(drain(exact, now))
        taken = b""
        while (item := coarse.take(now)) is not None:
            taken += bytes(item)
        assert taken == expected


@given(
    conditions=conditions,
    pieces=writes,
    at=st.integers(0, 2000),
    kind=st.sampled_from(["cut_after", "blackhole_after"]),
)
def test_a_fault_comes_after_exactly_so_many_bytes(
    conditions: Conditions, pieces: list[tuple[float, int]], at: int, kind: str
) -> None:
    """A cut, or a hole, comes when exactly that many bytes have arrived, within a piece if need be."""
    line = Line(conditions, Random(0))
    line.apply(Conditions(**{name: getattr(conditions, name) for name in ("rate", "window")}, **{kind: at}))
    sent, items = write_all(line, pieces)
    mark = Mark.CUT if kind == "cut_after" else Mark.HOLE
    if at > len(sent):
        assert data_of(items) == sent
        assert items[-1][1] is Mark.EOF
        return
    index = next(index for index, (_, item) in enumerate(items) if item is mark)
    assert data_of(items[:index]) == sent[:at]


@given(conditions=conditions, pieces=writes, at=st.floats(0, 12))
def test_lost_and_passed_bytes_add_up(
    conditions: Conditions, pieces: list[tuple[float, int]], at: float
) -> None:
    """Each byte is under way, has passed or is lost; what has passed is what came before the hole."""
    line = Line(conditions, Random(0))
    now, sent = 0.0, b""
    passed = b""
    for number, (pause, size) in enumerate(pieces):
        now += pause
        if now >= at:
            line.set_fate(Fate.LOSE)
        passed += data_of(drain(line, now))
        data = bytes([number]) * size
        sent += data
        line.put(data, now)
        assert line.passed + line.lost + line.size == len(sent)
    passed += data_of(drain(line))
    assert sent.startswith(passed)
    assert line.passed == len(passed)


# Delays


def test_a_line_without_conditions_is_a_good_one() -> None:
    """What is written arrives at once, as it was written."""
    line = make_line()
    line.put(b"one", 5.0)
    line.put(b"two", 5.0)
    assert [line.take(5.0), line.take(5.0), line.take(5.0)] == [b"one", b"two", None]


def test_a_delay_is_drawn_for_a_connection() -> None:
    """Two lines have two delays; all bytes of one have the same."""
    first, second = (make_line(seed, delay=(1, 2)) for seed in (1, 2))
    assert first.delay != second.delay
    assert 1 <= first.delay <= 2
    for now in (0.0, 1.0):
        first.put(b"x", now)
    assert drain(first) == [(first.delay, b"x"), (1 + first.delay, b"x")]


def test_jitter_is_drawn_for_each_write() -> None:
    """Writes have delays of their own, and none overtakes another one."""
    line = make_line(1, jitter=(0, 10))
    for number in range(50):
        line.put(bytes([number]), 0.0)
    items = drain(line)
    assert data_of(items) == bytes(range(50))
    assert 1 < len({when for when, _ in items}) < 50


def test_what_a_function_draws_below_zero_is_zero() -> None:
    """A distribution may reach below zero; nothing arrives before it was sent."""
    line = make_line(delay=lambda rng: -1.0)
    line.put(b"x", 3.0)
    assert drain(line) == [(3.0, b"x")]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", True])
def test_what_a_function_draws_is_checked(value: Any) -> None:
    """What is no finite number is a mistake of who wrote the function."""
    with pytest.raises(ValueError, match="must return a finite number"):
        make_line(delay=lambda rng: value)


# Rates


def test_a_rate_spreads_bytes_over_time() -> None:
    """A large write arrives bit by bit, at the rate, and the last bit when all had the time to pass."""
    line = make_line(rate=1000, delay=0.5)
    line.put(bytes(1000), 2.0)
    items = drain(line)
    assert len(items) == round(1 / TICK)
    assert items[0][0] == pytest.approx(2.5 + TICK)
    assert items[-1][0] == pytest.approx(3.5)
    sent = 0
    for when, item in items:
        sent += len(item)
        assert when == pytest.approx(2.5 + sent / 1000)


def test_writes_share_the_rate() -> None:
    """Bytes of the second write leave after those of the first, also if it is long past."""
    line = make_line(rate=100)
    line.put(bytes(100), 0.0)
    line.put(bytes(100), 0.5)
    assert drain(line)[-1][0] == pytest.approx(2.0)
    line.put(bytes(100), 10.0)
    assert drain(line)[-1][0] == pytest.approx(11.0)


def test_the_slowest_rate_still_moves() -> None:
    """With less than one byte in a tick, each byte has its time."""
    line = make_line(rate=0.5)
    line.put(b"abc", 0.0)
    assert drain(line) == [(2.0, b"a"), (4.0, b"b"), (6.0, b"c")]


def test_the_end_waits_for_the_rate() -> None:
    """The end of a connection comes behind the bytes that wait to leave."""
    line = make_line(rate=10, delay=1)
    line.put(bytes(10), 0.0)
    line.put_mark(Mark.CLOSE, 0.0)
    assert drain(line)[-1] == (2.0, Mark.CLOSE)


def test_what_has_not_left_is_held() -> None:
    """Bytes that wait for the rate are still the sender's; those under way are not, up to the window."""
    line = make_line(rate=100, delay=5, window=150)
    line.put(bytes(200), 0.0)
    assert line.count_held(0.0) == 200
    assert line.count_held(0.5) == 150
    assert line.count_held(1.5) == 50
    assert line.count_held(2.0) == 50  # all has left, and the window has 150
    assert len(data_of(drain(line))) == 200
    assert line.count_held(7.0) == 0


def test_only_what_is_held_can_be_dropped() -> None:
    """A sender that breaks the connection takes back what has not left, and nothing else."""
    line = make_line(rate=100, delay=5)
    line.put(bytes(50) + b"x" * 50, 0.0)
    line.put(bytes(100), 0.0)
    line.put_mark(Mark.CLOSE, 0.0)
    line.drop_held(0.75)
    line.put_mark(Mark.RESET, 0.75)
    items = drain(line)
    assert data_of(items) == bytes(50) + b"x" * 25
    assert items[-1][1] is Mark.RESET
    assert items[-1][0] == pytest.approx(5.75)


def test_dropping_from_a_line_that_holds_nothing() -> None:
    """Of a line with all bytes under way only the end can be taken back."""
    line = make_line(delay=1)
    line.put(b"abc", 0.0)
    line.put_mark(Mark.EOF, 0.0)
    line.drop_held(0.5)
    assert drain(line) == [(1.0, b"abc")]
    line.drop_held(0.5)
    assert line.is_empty()


# Faults


def test_held_bytes_arrive_when_that_is_over() -> None:
    """While a line holds, nothing arrives; then all does, with the time at which it was due."""
    line = make_line(delay=1)
    line.put(b"before", 0.0)
    line.set_fate(Fate.HOLD)
    line.put(b"while", 1.0)
    assert line.next_due() is None
    assert line.take(100.0) is None
    line.set_fate(Fate.PASS)
    assert data_of(drain(line)) == b"beforewhile"


def test_lost_bytes_leave_a_gap_that_ends_the_connection() -> None:
    """After a hole the line is silent until somebody writes behind the gap, which cuts it."""
    line = make_line(delay=1)
    line.put(b"under way", 0.0)
    line.set_fate(Fate.LOSE)
    line.put(b"lost", 0.5)
    assert (line.lost, line.size, line.next_due()) == (13, 0, None)
    line.set_fate(Fate.PASS)
    assert line.next_due() is None
    line.put(b"behind", 2.0)
    assert line.take(2.0) is Mark.CUT
    assert line.lost == 19


def test_a_hole_in_which_nothing_was_written_does_no_harm() -> None:
    """Who was silent all the time has lost nothing."""
    line = make_line()
    line.set_fate(Fate.LOSE)
    line.set_fate(Fate.PASS)
    line.put(b"x", 1.0)
    assert drain(line) == [(1.0, b"x")]


def test_a_lost_end_is_a_gap() -> None:
    """That the peer has closed can be lost as well."""
    line = make_line()
    line.set_fate(Fate.LOSE)
    line.put_mark(Mark.CLOSE, 0.0)
    line.set_fate(Fate.PASS)
    assert line.has_gap
    assert line.next_due() is None


def test_a_cut_may_come_before_the_first_byte() -> None:
    """With 0 bytes to pass, there is no connection to speak of."""
    line = make_line(cut_after=0)
    assert line.next_due() == -math.inf
    assert line.take(0.0) is Mark.CUT


def test_a_cut_can_be_ordered() -> None:
    """So many bytes after now, whatever has passed before."""
    line = make_line()
    line.put(b"abc", 0.0)
    assert line.take(0.0) == b"abc"
    line.cut_after(2)
    line.put(b"defg", 0.0)
    assert [line.take(0.0), line.take(0.0)] == [b"de", Mark.CUT]


def test_how_long_a_hole_lasts_is_drawn() -> None:
    """It is, where the conditions say so."""
    assert make_line().draw_hole() is None
    assert make_line(blackhole_for=3).draw_hole() == 3
    assert 1 <= make_line(blackhole_for=(1, 2)).draw_hole() <= 2


def test_new_conditions_are_for_new_bytes() -> None:
    """What is under way keeps its time; what is written later does not overtake it."""
    line = make_line(delay=5)
    line.put(b"slow", 0.0)
    line.apply(Conditions(delay=1))
    line.put(b"fast", 0.0)
    assert drain(line) == [(5.0, b"slow"), (5.0, b"fast")]
    line.put(b"fast", 10.0)
    assert drain(line) == [(11.0, b"fast")]


def test_conditions_that_stay_are_not_drawn_anew() -> None:
    """A change of one condition leaves the draws of the others alone."""
    draws = iter([100, 200, 300])
    cut_after = lambda rng: next(draws)  # noqa: E731  # to be the same object in both
    line = make_line(cut_after=cut_after, delay=(1, 2))
    delay = line.delay
    line.apply(Conditions(cut_after=cut_after, delay=(1, 2), rate=10))
    assert line.delay == delay
    assert next(draws) == 200
    line.apply(Conditions(cut_after=5, delay=(3, 4)))
    assert 3 <= line.delay <= 4
    line.put(bytes(10), 0.0)
    assert len(data_of(drain(line))) == 5


def test_what_was_put_back_arrives_next() -> None:
    """A protocol that stops in the middle gets the rest before anything else."""
    line = make_line(delay=1)
    line.put(b"abcd", 0.0)
    line.put(b"ef", 0.0)
    assert line.take(1.0) == b"abcd"
    line.put_back(memoryview(b"abcd")[2:])
    assert (line.size, line.passed) == (4, 2)
    assert data_of(drain(line)) == b"cdef"


def test_a_line_in_a_rush_holds_nothing_back() -> None:
    """All that is under way arrives at once, what is written later as well, and no cut comes."""
    line = make_line(delay=100, rate=1, cut_after=3)
    line.put(b"abcdef", 0.0)
    line.rush()
    assert line.count_held(0.0) == 0
    line.put(b"gh", 0.0)
    assert data_of(drain(line, -math.inf)) == b"abcdefgh"


# The conditions


def test_exponential_numbers_have_their_mean() -> None:
    """The distribution is what it says, and the same for the same generator."""
    rng = Random(1)
    numbers = [Exponential(50)(rng) for _ in range(20_000)]
    assert sum(numbers) / len(numbers) == pytest.approx(50, rel=0.05)
    assert Exponential(50)(Random(1)) == numbers[0]


@pytest.mark.parametrize("mean", [0, -1, math.nan, math.inf])
def test_a_mean_is_checked(mean: float) -> None:
    """A mean is a number above zero."""
    with pytest.raises(ValueError, match="mean"):
        Exponential(mean)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("delay", -1),
        ("delay", math.nan),
        ("delay", (2, 1)),
        ("delay", (1,)),
        ("delay", (0, math.inf)),
        ("delay", "1"),
        ("delay", None),
        ("jitter", True),
        ("cut_after", -1),
        ("blackhole_after", (-1, 1)),
        ("blackhole_for", math.inf),
        ("rate", 0),
        ("rate", -1),
        ("rate", math.inf),
        ("rate", "fast"),
        ("window", 0),
        ("window", 1.5),
        ("window", None),
        ("refusals", 1.1),
        ("refusals", -0.1),
        ("refusals", None),
    ],
)
def test_conditions_are_checked(name: str, value: Any) -> None:
    """What is out of range is said by its name, and not when the first byte is delayed."""
    with pytest.raises(ValueError, match=name):
        Conditions(**{name: value})
