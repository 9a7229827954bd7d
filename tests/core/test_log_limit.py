"""The limit of lines in the log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.log_limit import LogLimit


def test_lines_beyond_the_limit_are_counted() -> None:
    """So many are let through; the number of the others is told once."""
    limit = LogLimit(lines=3, period=60)
    assert [limit.admit(now) for now in (0, 1, 2, 3, 59.9)] == [True, True, True, False, False]
    assert limit.collect() == 2
    assert limit.collect() == 0


def test_next_period_begins_with_its_first_line() -> None:
    """After a period as many lines are let through again, counted from the first one."""
    limit = LogLimit(lines=1, period=60)
    assert [limit.admit(now) for now in (100, 159, 161, 220, 221)] == [True, False, True, False, True]


@given(
    st.lists(st.floats(0, 100, allow_nan=False), max_size=300),
    st.integers(1, 5),
    st.floats(0.1, 100),
)
def test_never_more_than_the_limit(pauses: list[float], lines: int, period: float) -> None:
    """In no period are more lines let through than allowed for twice, and none is lost from the count."""
    limit = LogLimit(lines, period)
    now, admitted = 0.0, []
    for pause in pauses:
        now += pause
        if limit.admit(now):
            admitted.append(now)
    for begin in admitted:
        assert sum(begin <= time < begin + period for time in admitted) <= 2 * lines
    assert limit.collect() == len(pauses) - len(admitted)
