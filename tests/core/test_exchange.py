"""The exchange of ids: whatever a peer replies, every request ends once and no other is harmed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiomas_ng._core import exchange as exchanges
from aiomas_ng._core.exchange import Exchange
from aiomas_ng._core.frames import FIRST_ID
from aiomas_ng.exceptions import MalformedFrameError, OverloadError, ProtocolError, UnknownReplyError

# Printing it needs more digits than Python converts.
HUGE = 2**20_000

ODD_IDS = [
    None,
    True,
    float(FIRST_ID),
    float("nan"),
    str(FIRST_ID),
    "",
    b"x",
    [FIRST_ID],
    {"id": FIRST_ID},
    {FIRST_ID},
    (),
    HUGE,
    -HUGE,
    [HUGE],
    "x" * 100_000,
    0,
    -1,
    -FIRST_ID,
    FIRST_ID - 1,
]
"""Ids that were never given out, some of them no ids at all, not even hashable or printable."""

peer_ids = st.integers(-1, 3) | st.just(FIRST_ID) | st.sampled_from(["", "a", "0", "1"])
odd_ids = st.sampled_from(ODD_IDS) | st.floats() | st.text(max_size=3) | st.integers(max_value=FIRST_ID - 1)


class ExchangeModel(RuleBasedStateMachine):
    """What the rules say, by a plainer program: every id that was given out has one state."""

    @initialize(max_calls=st.integers(1, 5))
    def start(self, max_calls: int) -> None:
        self.exchange = Exchange(max_calls)
        self.max_calls = max_calls
        self.calls: dict[int, object] = {}  # that wait
        self.ended: set[int] = set()  # by a reply, by their caller, or at the close
        self.remembered: list[int] = []
        self.jobs: dict[int | str, object] = {}
        self.is_ours = False
        self.has_seen_request = False

    def count_given(self) -> int:
        return len(self.calls) + len(self.ended)

    def given_id(self, data: st.DataObject) -> int:
        """Draw an id that was given out before; waiting ones and those that have ended are as likely."""
        pools = [sorted(pool) for pool in (self.calls, self.ended) if pool]
        return data.draw(st.one_of([st.sampled_from(pool) for pool in pools]))

    has_given = precondition(lambda self: self.calls or self.ended)

    @rule()
    def open(self) -> None:
        call = object()
        if len(self.calls) == self.max_calls:
            with pytest.raises(OverloadError, match=f"{self.max_calls} calls wait for a reply"):
                self.exchange.open(call)
            return
        expected = FIRST_ID + self.count_given()
        assert self.exchange.open(call) == expected
        self.calls[expected] = call

    @has_given
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """A reply: in time, late or double."""
        msg_id = self.given_id(data)
        assert self.exchange.settle(msg_id) is self.calls.pop(msg_id, None)
        self.ended.add(msg_id)

    @has_given
    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        """An item of a stream, which ends nothing."""
        msg_id = self.given_id(data)
        assert self.exchange.find(msg_id) is self.calls.get(msg_id)

    @rule(data=st.data(), ahead=st.integers(0, 3), method=st.sampled_from(["settle", "find"]))
    def reply_to_nothing(self, data: st.DataObject, ahead: int, method: str) -> None:
        """A reply to what was never sent, be it only the next id."""
        msg_id = data.draw(odd_ids | st.just(FIRST_ID + self.count_given() + ahead))
        with pytest.raises(UnknownReplyError, match="which was never sent"):
            getattr(self.exchange, method)(msg_id)

    @has_given
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        """The caller cancels, or its time is over: before or after the reply, once or twice."""
        msg_id = self.given_id(data)
        is_waiting = msg_id in self.calls
        assert self.exchange.abandon(msg_id) == (is_waiting and self.is_ours)
        if is_waiting:
            del self.calls[msg_id]
            self.ended.add(msg_id)
            if not self.is_ours:
                self.remembered.append(msg_id)

    @has_given
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """The request could not be encoded: the last id is given out again, unless its call has ended."""
        msg_id = self.given_id(data)
        is_last = msg_id == FIRST_ID + self.count_given() - 1
        self.exchange.withdraw(msg_id)
        if self.calls.pop(msg_id, None) is not None and not is_last:
            self.ended.add(msg_id)

    @rule(msg_id=peer_ids)
    def begin(self, msg_id: int | str) -> None:
        """A request of the peer; an id may be used again once the first request has ended."""
        job = object()
        if msg_id in self.jobs:
            with pytest.raises(MalformedFrameError, match="again before its request was answered"):
                self.exchange.begin(msg_id, job)
        else:
            self.exchange.begin(msg_id, job)
            self.jobs[msg_id] = job

    @rule(msg_id=peer_ids)
    def end(self, msg_id: int | str) -> None:
        assert self.exchange.end(msg_id) is self.jobs.pop(msg_id, None)

    @rule(msg_id=peer_ids)
    def greet(self, msg_id: int | str) -> None:
        assert self.exchange.greet(msg_id) == (not self.has_seen_request and msg_id == FIRST_ID)
        self.has_seen_request = True

    @rule()
    def recognize(self) -> None:
        assert self.exchange.recognize() == self.remembered
        self.remembered = []
        self.is_ours = True

    @rule()
    def close(self) -> None:
        calls, jobs = self.exchange.close()
        assert calls == list(self.calls.values())
        assert jobs == list(self.jobs.values())
        self.ended |= set(self.calls)
        self.calls.clear()
        self.jobs.clear()

    @invariant()
    def agrees(self) -> None:
        assert self.exchange.calls == self.calls
        assert self.exchange.jobs == self.jobs
        assert self.exchange.is_peer_ours == self.is_ours
        assert not set(self.remembered) & set(self.calls), "a live request would be cancelled"


TestExchange = ExchangeModel.TestCase
TestExchange.settings = settings(stateful_step_count=40, deadline=None)


# -- Replies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("msg_id", ODD_IDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("method", ["settle", "find"])
def test_odd_ids_are_an_error_of_the_peer(msg_id: Any, method: str) -> None:
    """A reply with any odd id is a short error of the protocol, never another error, and takes no call."""
    exchange = Exchange(10)
    call_id = exchange.open("call")
    with pytest.raises(UnknownReplyError) as caught:
        getattr(exchange, method)(msg_id)
    assert isinstance(caught.value, ProtocolError)
    assert isinstance(caught.value, LookupError)
    assert len(str(caught.value)) < 200
    assert exchange.settle(call_id) == "call"


def test_late_and_double_replies_are_dropped_for_ever() -> None:
    """A late reply is told from an unknown one after any number of requests, and nothing is kept for that."""
    exchange = Exchange(1)
    ids = []
    for n in range(5000):
        ids.append(exchange.open("call"))
        assert exchange.settle(ids[-1]) == "call" if n % 2 else not exchange.abandon(ids[-1])
    assert all(exchange.settle(msg_id) is exchange.find(msg_id) is None for msg_id in ids)
    assert not exchange.calls


def test_call_that_is_replaced_by_its_stream_ends_once() -> None:
    """What waits may be replaced by what takes the items; it ends like the first."""
    exchange = Exchange(1)
    msg_id = exchange.open("reply")
    assert exchange.find(msg_id) == "reply"
    exchange.calls[msg_id] = "stream"
    assert exchange.find(msg_id) == "stream"
    assert exchange.settle(msg_id) == "stream"
    assert exchange.find(msg_id) is exchange.settle(msg_id) is None


def test_limit_counts_calls_that_wait() -> None:
    """Only calls that wait count; there may be any number of them in total."""
    exchange = Exchange(2)
    first, second = exchange.open(1), exchange.open(2)
    with pytest.raises(
        OverloadError, match="2 calls wait for a reply on this connection, which is the limit"
    ):
        exchange.open(3)
    exchange.settle(first)
    third = exchange.open(3)
    assert [first, second, third] == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2], "the refused call cost an id"


# -- Requests that were not sent -------------------------------------------------------------------


def test_first_id_is_seen_by_the_peer_even_if_the_first_request_failed() -> None:
    """The peer recognizes us by our first id, so one that was never sent is given out again."""
    exchange = Exchange(10)
    exchange.withdraw(exchange.open("unencodable"))
    with pytest.raises(UnknownReplyError):
        exchange.settle(FIRST_ID)
    assert exchange.open("first") == FIRST_ID


@pytest.mark.parametrize(
    "end", [lambda e: e.close(), lambda e: e.abandon(FIRST_ID)], ids=["close", "abandon"]
)
def test_request_that_ends_while_it_is_encoded(end: Callable[[Exchange], Any]) -> None:
    """If a serializer closes the connection or cancels the call, withdrawing that is no error.

    Nor is the id given out again: it may be remembered as one to be cancelled.
    """
    exchange = Exchange(10)
    msg_id = exchange.open("call")
    end(exchange)
    exchange.withdraw(msg_id)
    live = exchange.open("live")
    assert live == FIRST_ID + 1
    assert live not in exchange.recognize()
    assert exchange.settle(live) == "live"


def test_withdrawing_an_older_request_changes_no_other() -> None:
    """If a serializer makes a call itself, the id of the outer one is not given out again."""
    exchange = Exchange(10)
    outer, inner = exchange.open("outer"), exchange.open("inner")
    exchange.withdraw(outer)
    assert exchange.settle(outer) is None
    assert exchange.open("next") == inner + 1
    assert exchange.settle(inner) == "inner"


# -- Requests of the peer --------------------------------------------------------------------------


@pytest.mark.parametrize("msg_id", [0, -1, HUGE, "", "x" * 100_000], ids=lambda value: type(value).__name__)
def test_id_in_use_is_refused_in_few_words(msg_id: int | str) -> None:
    """A second request of the same id does not disturb the first, whatever the id."""
    exchange = Exchange(10)
    exchange.begin(msg_id, "first")
    with pytest.raises(MalformedFrameError, match=r"used id .* again") as caught:
        exchange.begin(msg_id, "second")
    assert len(str(caught.value)) < 200
    assert exchange.end(msg_id) == "first"
    exchange.begin(msg_id, "third")
    assert exchange.end(msg_id) == "third"
    assert exchange.end(msg_id) is None


def test_ids_of_both_sides_are_apart() -> None:
    """The peer may use the ids that we use, at the same time."""
    exchange = Exchange(10)
    msg_id = exchange.open("ours")
    exchange.begin(msg_id, "theirs")
    assert exchange.settle(msg_id) == "ours"
    assert exchange.end(msg_id) == "theirs"


# -- Who the peer is -------------------------------------------------------------------------------


@given(ids=st.lists(peer_ids, min_size=1))
def test_only_the_first_request_shows_who_the_peer_is(ids: list[int | str]) -> None:
    """A foreign peer that happens to use our first id later is not taken for one of ours."""
    exchange = Exchange(10)
    assert [exchange.greet(msg_id) for msg_id in ids] == [ids[0] == FIRST_ID] + [False] * (len(ids) - 1)


def test_abandoned_requests_are_cancelled_once_the_peer_is_known() -> None:
    """Before it is known, they are remembered and told once; afterwards each is told at once."""
    exchange = Exchange(10)
    first, second, third = (exchange.open(n) for n in range(3))
    assert not exchange.abandon(second)
    assert not exchange.abandon(first)
    assert not exchange.abandon(first)
    assert exchange.recognize() == [second, first]
    assert exchange.abandon(third)
    assert not exchange.abandon(third)
    assert exchange.recognize() == []


def test_memory_of_abandoned_requests_is_bounded() -> None:
    """With a peer that is never known, only so many abandoned requests are remembered."""
    exchange = Exchange(10)
    ids = []
    for _ in range(exchanges.MAX_REMEMBERED + 100):
        ids.append(exchange.open("call"))
        assert not exchange.abandon(ids[-1])
    assert exchange.recognize() == ids[: exchanges.MAX_REMEMBERED]
