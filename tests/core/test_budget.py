"""What connections share: nobody gets more than there is, and what is given back can be had again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiomas_ng._core.budget import LEASE, Budget
from aiomas_ng._core.exchange import Exchange
from aiomas_ng._core.limits import Limits
from aiomas_ng.exceptions import OverloadError


class Calls(RuleBasedStateMachine):
    """Any number of connections that open and end calls, against a count of them all."""

    LIMIT, OWN = 700, 400

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(Limits(container_calls=self.LIMIT))
        self.exchanges = [Exchange(self.OWN, self.budget) for _ in range(4)]

    def total(self) -> int:
        return sum(len(exchange.calls) for exchange in self.exchanges)

    @rule(index=st.integers(0, 3), count=st.integers(1, 2 * LEASE))
    def open(self, index: int, count: int) -> None:
        """A call is opened if and only if there is room for it, on the connection and in all."""
        exchange = self.exchanges[index]
        for _ in range(count):
            has_room = len(exchange.calls) < self.OWN and self.total() < self.LIMIT
            if has_room:
                exchange.open(object())
            else:
                with pytest.raises(OverloadError):
                    exchange.open(object())

    @rule(index=st.integers(0, 3), count=st.integers(1, 2 * LEASE))
    def end(self, index: int, count: int) -> None:
        exchange = self.exchanges[index]
        for msg_id in list(exchange.calls)[:count]:
            assert exchange.settle(msg_id) is not None

    @precondition(lambda self: self.total() > 0)
    @rule(index=st.integers(0, 3))
    def close(self, index: int) -> None:
        """A connection ends, and another one takes its place."""
        self.exchanges[index].close()
        self.exchanges[index] = Exchange(self.OWN, self.budget)

    @invariant()
    def is_within_the_limit(self) -> None:
        assert self.total() <= self.LIMIT


test_calls = Calls.TestCase


def test_error_of_calls_says_which_limit() -> None:
    """Whether it is the limit of the connection or of the container can be read in the error."""
    budget = Budget(Limits(container_calls=1))
    first, second = Exchange(5, budget), Exchange(5, budget)
    msg_id = first.open(object())
    with pytest.raises(OverloadError, match="container_calls"):
        second.open(object())
    first.settle(msg_id)
    second.open(object())
    alone = Exchange(1)
    alone.open(object())
    with pytest.raises(OverloadError, match="on this connection, which is the limit"):
        alone.open(object())


@pytest.mark.parametrize("limit", [float("inf"), 10**9])
def test_unlimited_calls(limit: Any) -> None:
    """Without a limit there is none."""
    exchange = Exchange(limit, Budget(Limits(container_calls=limit)))
    for _ in range(3 * LEASE):
        exchange.open(object())
    assert len(exchange.calls) == 3 * LEASE


def test_work() -> None:
    """Work is counted up to the limit, and who waits is told as long as there is room, in order."""
    budget = Budget(Limits(container_requests=2))
    told: list[str] = []

    def first() -> None:
        told.append("first")
        budget.begin()

    def second() -> None:
        told.append("second")

    def third() -> None:
        told.append("third")

    assert budget.has_room_to_work(2)
    assert not budget.has_room_to_work(3)
    budget.begin(2)
    assert not budget.has_room_to_work()
    for tell in (first, first, second, third):
        budget.ask(tell)
    budget.leave(third)
    budget.leave(third)
    budget.end()
    assert told == ["first"]
    budget.end()
    assert told == ["first", "second"]
    budget.end()
    assert told == ["first", "second"]
    assert budget.working == 0


def test_waiting() -> None:
    """Requests and bytes that wait are counted up to the limits, each by itself."""
    budget = Budget(Limits(container_requests=2, container_size=100))
    assert budget.has_room_to_wait(100)
    assert not budget.has_room_to_wait(101)
    budget.put(60)
    assert budget.has_room_to_wait(40)
    assert not budget.has_room_to_wait(41)
    budget.put(0)
    assert not budget.has_room_to_wait(0)
    assert budget.has_room_for(40)
    budget.take(60, 2)
    assert (budget.waiting, budget.size) == (0, 0)
