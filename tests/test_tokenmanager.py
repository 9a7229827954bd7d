"""Tokens: every response finds its request and no other, and every request ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiomas_ng import error, tokenmanager
from aiomas_ng.exceptions import (
    ChannelClosedError,
    ClosedByPeerError,
    FrameTooLargeError,
    OverloadError,
    ProtocolError,
)
from aiomas_ng.message import CONTENT, EMPTY, GET, PUT, Block, Message
from aiomas_ng.pipe import WINDOW, IterablePipe, Pipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource
from aiomas_ng.tokenmanager import TokenManager
from tests.coap_contexts import Stuck, Value, raw_client, served, site_of
from tests.resource_peers import FakeEnd, Stream
from tests.waiting import wait_until

NO_RESPONSE = 0xE0


def payloads(events: list[Any]) -> list[bytes]:
    return [event.message.payload for event in events]


# -- Tokens ----------------------------------------------------------------------------------------


def test_tokens_are_short_and_differ() -> None:
    """They are bytes, 1 to 8 of them, and come in an order that repeats none."""
    manager = FakeEnd().manager
    tokens = [manager.next_token() for _ in range(70_000)]
    assert len(set(tokens)) == len(tokens)
    assert {len(token) for token in tokens} == {1, 2, 3}


def test_tokens_come_round() -> None:
    """After 2**64 of them, without ever being empty or too long."""
    manager = FakeEnd().manager
    manager._token = 2**64 - 2
    assert [manager.next_token() for _ in range(3)] == [b"\xff" * 8, b"\x01", b"\x02"]


def test_a_token_in_flight_is_not_used_again() -> None:
    """Also after the tokens have come round, for each remote on its own."""
    end = FakeEnd()
    other, _ = end.connect()
    first, _ = end.request()
    second, _ = end.request()
    third, _ = end.request(other)
    assert [pipe.request.token for pipe in (first, second, third)] == [b"\x01", b"\x02", b"\x03"]
    end.manager._token = 2**64 - 1
    fourth, _ = end.request()
    assert fourth.request.token == b"\x03"  # another one than that of the other remote
    end.manager._token = 2**64 - 1
    end.respond(b"\x01")
    fifth, _ = end.request()
    assert fifth.request.token == b"\x01"
    assert set(end.manager.outgoing_requests.values()) == {second, third, fourth, fifth}


def test_sending_the_same_message_twice() -> None:
    """Each of both requests has its own token, and ends on its own."""
    end = FakeEnd()
    message = Message(GET, remote=end.remote)
    got: list[Any] = []
    for number in range(2):
        pipe = Pipe(message)
        pipe.on_event(lambda event, number=number: got.append((number, event.message.payload)) or True)
        end.manager.request(pipe)
    end.respond(b"\x02", b"second")
    end.respond(b"\x01", b"first")
    assert got == [(1, b"second"), (0, b"first")]
    assert not end.manager.outgoing_requests


# -- Requests and responses ------------------------------------------------------------------------


def test_a_request_and_its_response() -> None:
    """The response gets into the pipe, and knows which request it answers."""
    end = FakeEnd()
    pipe, events = end.request()
    assert end.channel.sent == [[1, b"\x01", [11, "x"]]]
    end.respond(b"\x01", b"hello")
    ((message, exception, is_last),) = events
    assert (message.payload, exception, is_last) == (b"hello", None, True)
    assert message.request is pipe.request
    assert message.remote is end.remote
    assert not end.manager.outgoing_requests
    assert end.channel.sent[1:] == []


def test_requests_that_are_under_way() -> None:
    """They can be looked up by token and remote, in both directions."""
    end = FakeEnd()
    other, _ = end.connect()
    first, _ = end.request()
    second, _ = end.request(other)
    third = end.receive(token=b"abc")
    outgoing, incoming = end.manager.outgoing_requests, end.manager.incoming_requests
    assert isinstance(outgoing, Mapping)
    assert outgoing == {(b"\x01", end.remote): first, (b"\x02", other): second}
    assert list(incoming.items()) == [((b"abc", end.remote), third)]
    assert (b"\x01", other) not in outgoing
    with pytest.raises(KeyError):
        outgoing[b"\x07", other]
    assert repr(end.manager) == "<TokenManager with 2 outgoing and 1 incoming requests>"


def test_a_response_is_matched_with_its_remote() -> None:
    """The same token at another remote is another request."""
    end = FakeEnd()
    other, channel = end.connect()
    _, events = end.request()
    other.take([69, b"\x01"])
    assert events == []
    assert channel.sent == [[0, b"\x01"]]
    end.respond(b"\x01")
    assert len(events) == 1


def test_a_response_that_nobody_waits_for() -> None:
    """The peer is told to stop; while it does not read, nothing is written, so nothing piles up."""
    end = FakeEnd()
    for _ in range(3):
        end.respond(b"unknown", more=True)
    assert end.channel.take_sent() == [[0, b"unknown"]] * 3
    end.channel.is_paused = True
    for _ in range(1000):
        end.respond(b"unknown", more=True)
    assert end.channel.take_sent() == []


@pytest.mark.parametrize("is_observed", [False, True])
@pytest.mark.parametrize("observe", [None, 5])
def test_whether_a_response_is_the_last_one_by_itself(is_observed: bool, observe: int | None) -> None:
    """Without being told, a notification of an observation is not, and any other is."""
    end = FakeEnd()
    pipe, events = end.request(observe=0 if is_observed else None)
    response = Message(CONTENT, token=b"\x01", remote=end.remote, observe=observe)
    assert end.manager.process_response(response)
    is_notification = is_observed and observe is not None
    assert events == [(response, None, not is_notification)]
    assert pipe.is_ended == (not is_notification)
    assert end.manager.process_response(response) == is_notification


def test_a_request_that_nobody_is_interested_in() -> None:
    """It is not sent at all."""
    end = FakeEnd()
    pipe = Pipe(Message(GET, remote=end.remote))
    end.manager.request(pipe)
    assert pipe.is_ended
    assert end.channel.sent == []
    assert not end.manager.outgoing_requests


def test_loss_of_interest_is_told_to_the_peer() -> None:
    """Once, and not after the last response."""
    end = FakeEnd()
    pipe, _ = end.request()
    pipe._abandon()
    assert end.channel.sent[1:] == [[0, b"\x01"]]
    end.respond(b"\x01")
    assert end.channel.sent[2:] == [[0, b"\x01"]]  # the answer to that response
    pipe, _ = end.request()
    end.channel.take_sent()
    end.respond(b"\x02")
    pipe._abandon()
    assert end.channel.take_sent() == []


def test_interest_that_ends_with_a_response_that_is_not_the_last() -> None:
    """The peer is told to stop."""
    end = FakeEnd()
    pipe = Pipe(Message(GET, remote=end.remote))
    pipe.on_event(lambda _: False)
    end.manager.request(pipe)
    end.respond(b"\x01", more=True)
    assert end.channel.sent[1:] == [[0, b"\x01"]]
    assert not end.manager.outgoing_requests


def test_a_request_without_a_connection() -> None:
    """It ends with an error that says what is missing."""
    end = FakeEnd()
    pipe = Pipe(Message(GET, uri="tcp://localhost:5555/x"))
    events: list[Any] = []
    pipe.on_event(events.append)
    end.manager.request(pipe)
    assert isinstance(events[0].exception, ValueError)
    assert "fill_or_recognize_remote" in str(events[0].exception)


@pytest.mark.parametrize("failure", [OverloadError("x"), FrameTooLargeError(2, 1, "x"), RuntimeError("x")])
def test_a_request_that_cannot_be_sent(failure: Exception) -> None:
    """The error becomes an event, and nothing is left of the request."""
    end = FakeEnd()
    end.channel.failure = failure
    pipe, events = end.request()
    assert events == [(None, failure, True)]
    assert pipe.is_ended
    assert not end.manager.outgoing_requests
    assert end.channel.sent == []


def test_a_request_over_a_lost_connection() -> None:
    """It ends with a NetworkError."""
    end = FakeEnd()
    end.channel.is_closed = True
    _, events = end.request()
    assert isinstance(events[0].exception, error.NetworkError)
    assert isinstance(events[0].exception.__cause__, ChannelClosedError)
    assert "closed" in repr(end.remote)


def test_a_request_without_a_code() -> None:
    """It ends with a ValueError."""
    end = FakeEnd()
    pipe = Pipe(Message(remote=end.remote))
    events: list[Any] = []
    pipe.on_event(events.append)
    end.manager.request(pipe)
    assert isinstance(events[0].exception, ValueError)


def test_poke_asks_whether_the_peer_is_there() -> None:
    """As long as the request is under way, and only a peer that understands."""
    end = FakeEnd()
    pipe, _ = end.request()
    pipe.poke()
    assert end.channel.pings == 1
    end.channel.is_peer_ours = False
    pipe.poke()
    assert end.channel.pings == 1
    end.channel.is_peer_ours = True
    end.respond(b"\x01")
    pipe.poke()
    assert end.channel.pings == 1


# -- No-Response (RFC 7967) ------------------------------------------------------------------------


def test_a_request_without_any_response() -> None:
    """It ends at once, with an empty response, and the token is free."""
    end = FakeEnd()
    pipe, events = end.request(no_response=26)
    assert len(end.channel.sent) == 1
    ((message, _, is_last),) = events
    assert (message.code, is_last) == (EMPTY, True)
    assert message.request is pipe.request
    assert not end.manager.outgoing_requests


def test_a_request_without_any_response_over_a_lost_connection() -> None:
    """It has not been sent, and that is told."""
    end = FakeEnd()
    end.channel.is_closed = True
    _, events = end.request(no_response=26)
    assert isinstance(events[0].exception, error.NetworkError)


def test_a_request_without_a_response_of_some_class() -> None:
    """It waits until the peer says that there will be none, or for one of another class."""
    end = FakeEnd()
    _, events = end.request(no_response=2)
    assert events == []
    end.remote.take([NO_RESPONSE, b"\x01"])
    assert events[0].message.code == EMPTY
    assert events[0].is_last
    end.remote.take([NO_RESPONSE, b"\x01"])
    end.remote.take([NO_RESPONSE, b"other"])
    _, events = end.request(no_response=2)
    end.remote.take([132, b"\x02"])
    assert events[0].message.code == 132


# -- Streams, from the requester's side ------------------------------------------------------------


def test_credit_is_granted_in_halves_of_the_window() -> None:
    """As long as the requester takes what comes."""
    end = FakeEnd()
    _, events = end.request()
    end.channel.take_sent()
    for number in range(4 * WINDOW):
        end.respond(b"\x01", b"%d" % number, more=True)
    assert end.channel.take_sent() == [[0, b"\x01", WINDOW // 2]] * 8
    end.respond(b"\x01", b"end")
    assert len(events) == 4 * WINDOW + 1
    assert end.channel.take_sent() == []


def test_notifications_need_no_credit() -> None:
    """However many come, nothing is said about them."""
    end = FakeEnd()
    _, events = end.request(observe=0)
    end.channel.take_sent()
    for number in range(10 * WINDOW):
        end.respond(b"\x01", more=True, observe=number)
    assert len(events) == 10 * WINDOW
    assert end.channel.take_sent() == []


def test_a_paused_requester_grants_no_credit() -> None:
    """It does when it goes on, for all that it has taken meanwhile; not if it is gone by then."""
    end = FakeEnd()
    pipe, events = end.request()
    end.channel.take_sent()
    pipe.pause()
    for _ in range(WINDOW):
        end.respond(b"\x01", more=True)
    assert end.channel.take_sent() == []
    pipe.resume()
    assert end.channel.take_sent() == [[0, b"\x01", WINDOW]]
    pipe.pause()
    for _ in range(WINDOW):
        end.respond(b"\x01", more=True)
    pipe._abandon()
    assert end.channel.take_sent() == [[0, b"\x01"]]
    assert len(events) == 2 * WINDOW


def test_no_credit_is_granted_to_a_peer_that_does_not_read() -> None:
    """Nothing piles up; when it reads, it gets all of it."""
    end = FakeEnd()
    pipe, _ = end.request()
    end.channel.take_sent()
    end.channel.is_paused = True
    for _ in range(WINDOW):
        end.respond(b"\x01", more=True)
    assert end.channel.take_sent() == []
    pipe.pause()
    end.channel.is_paused = False
    end.remote.writing_resumed()  # now the requester is the one who is slow
    assert end.channel.take_sent() == []
    pipe.resume()
    assert end.channel.take_sent() == [[0, b"\x01", WINDOW]]


def test_what_waits_for_reading_ends_with_the_request() -> None:
    """Credit for a request that is gone is not granted."""
    end = FakeEnd()
    end.request()
    end.channel.is_paused = True
    for _ in range(WINDOW):
        end.respond(b"\x01", more=True)
    end.respond(b"\x01")
    end.channel.take_sent()
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert end.channel.take_sent() == []


def test_a_peer_that_floods_without_credit() -> None:
    """It breaks the rules: its request ends with that error, it is told to stop, and harms no other."""
    end = FakeEnd()
    pipe, events = end.request()
    _, others = end.request()
    end.channel.take_sent()
    pipe.pause()
    for _ in range(WINDOW):
        end.respond(b"\x01", more=True)
    with pytest.raises(ProtocolError, match="more responses than the 64"):
        end.respond(b"\x01", more=True)
    assert len(events) == WINDOW + 1
    assert isinstance(events[-1].exception, ProtocolError)
    assert end.channel.take_sent() == [[0, b"\x01"]]
    end.respond(b"\x01", more=True)
    assert len(events) == WINDOW + 1
    end.respond(b"\x02")
    assert len(others) == 1


@pytest.mark.parametrize("head", [0, WINDOW // 2])
def test_a_peer_that_floods_with_all_kinds_of_responses(head: int) -> None:
    """An iterated observation holds but a few of them, and nothing else than ProtocolError comes of it."""
    end = FakeEnd()
    pipe = IterablePipe(Message(GET, remote=end.remote, observe=0))
    end.manager.request(pipe)
    for _ in range(head):
        end.respond(b"\x01", more=True)
    accepted = 0
    with contextlib.suppress(ProtocolError):
        while accepted < 1000:
            end.respond(b"\x01", more=True, observe=accepted)
            end.respond(b"\x01", more=True)
            accepted += 1
    assert WINDOW // 2 <= accepted <= 2 * WINDOW
    assert pipe.is_ended
    assert len(pipe._queue) <= 2 * WINDOW + 2
    assert not end.manager.outgoing_requests


# -- Requests of the peers -------------------------------------------------------------------------


def test_a_token_that_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    """The first request ends, which is logged; the second is worked on."""
    end = FakeEnd()
    end.manager.log = logging.getLogger("tests.tokenmanager")
    first = end.receive()
    second = end.receive()
    assert first.was_abandoned
    assert not second.is_ended
    assert "has used a token again" in caplog.text
    first.add_response(Message(CONTENT, b"first"), is_last=True)
    assert end.channel.sent == []
    assert end.manager.incoming_requests == {(b"t", end.remote): second}
    second.add_response(Message(CONTENT, b"second"), is_last=True)
    assert end.channel.sent == [[CONTENT, b"t", [], b"second"]]


def test_finishing_a_request_whose_token_was_used_again() -> None:
    """The other one, which has the token now, goes on."""
    end = FakeEnd()
    first = end.receive()
    second = end.receive()
    end.manager.finish(first)
    assert end.manager.incoming_requests == {(b"t", end.remote): second}


@pytest.mark.parametrize("observe", [0, 1])
def test_registering_anew_and_deregistering(observe: int, caplog: pytest.LogCaptureFixture) -> None:
    """For an observation, its token used again with Observe is in order (RFC 7641, 4.1)."""
    end = FakeEnd()
    end.manager.log = logging.getLogger("tests.tokenmanager")
    first = end.receive(observe=0)
    second = end.receive(observe=observe)
    assert first.was_abandoned
    assert second.is_observed == (observe == 0)
    assert not caplog.records
    end.receive()
    assert ("used a token again" in caplog.text) == (observe == 0 or not second.is_observed)


def test_too_many_requests() -> None:
    """Those beyond the limit get a 5.03, unless they want none; a token used again makes room."""
    end = FakeEnd(requests=2)
    first = end.receive(token=b"1")
    end.receive(token=b"2")
    end.receive(token=b"3")
    ((code, token, options, _),) = end.channel.take_sent()
    assert (code, token, options) == (163, b"3", [14, 1])
    end.receive(token=b"4", no_response=16)
    end.receive(token=b"5", no_response=26)
    assert end.channel.take_sent() == [[NO_RESPONSE, b"4"]]
    assert len(end.context.pipes) == 2
    end.receive(token=b"2")
    assert len(end.context.pipes) == 3
    first.add_response(Message(CONTENT), is_last=True)
    end.receive(token=b"3")
    assert len(end.context.pipes) == 4


def test_too_many_observations() -> None:
    """Those beyond the limit are answered as plain requests (RFC 7641, 4.1); other remotes have their own."""
    end = FakeEnd(observations=2)
    end.receive(token=b"0")
    assert [end.receive(token=b"%d" % n, observe=0).is_observed for n in range(1, 4)] == [True, True, False]
    other, _ = end.connect()
    assert end.receive(other, observe=0).is_observed
    end.remote.take([0, b"1"])
    assert end.receive(token=b"4", observe=0).is_observed


def test_signals_for_unknown_tokens() -> None:
    """They may be late, so nothing comes of them."""
    end = FakeEnd()
    for content in ([0, b"x"], [0, b"x", 5], [NO_RESPONSE, b"x"], [0, b""], [0, b"12345678"]):
        end.remote.take(content)
    assert end.channel.sent == []


def test_a_stopped_request_is_also_taken_back_from_the_inbox() -> None:
    """It may be there still, or there and here."""
    end = FakeEnd()
    end.remote.take([0, b"x"])
    assert end.channel.withdrawn == [b"x"]
    end.remote.take([0, b"x", 1])
    end.remote.take([NO_RESPONSE, b"x"])
    assert end.channel.withdrawn == [b"x"]


# -- The end of a connection -----------------------------------------------------------------------


def test_the_end_of_a_connection_ends_its_requests() -> None:
    """All of that remote, in both directions, and no others."""
    end = FakeEnd()
    other, other_channel = end.connect()
    lost = [end.request()[1] for _ in range(3)]
    kept, kept_events = end.request(other)
    stopped = end.receive()
    going_on = end.receive(other)
    end.channel.is_closed = True
    cause = ClosedByPeerError("the peer closed the connection")
    end.manager.dispatch_error(cause, end.remote)
    exceptions = [events[0].exception for events in lost]
    assert all(type(exception) is error.NetworkError for exception in exceptions)
    assert all(str(exception) == str(cause) for exception in exceptions)
    assert all(exception.__cause__ is cause for exception in exceptions)
    assert len(set(map(id, exceptions))) == 3  # each with a traceback of its own
    assert stopped.was_abandoned
    assert end.manager.outgoing_requests == {(kept.request.token, other): kept}
    assert end.manager.incoming_requests == {(b"t", other): going_on}
    assert end.manager.remotes == [other]
    other.take([69, kept.request.token])
    assert len(kept_events) == 1
    assert other_channel.sent[1:] == []
    end.manager.dispatch_error(cause, end.remote)


def test_the_end_of_a_connection_ends_what_waits_for_the_peer() -> None:
    """Nothing of it is kept."""
    end = FakeEnd()
    end.request()
    end.channel.is_paused = True
    for _ in range(WINDOW):
        end.respond(b"\x01", more=True)
    end.receive(observe=0).add_response(Message(CONTENT, observe=1))
    assert len(end.remote.waiting) == 2
    end.manager.dispatch_error(OSError("lost"), end.remote)
    assert not end.remote.waiting


async def test_the_end_of_a_connection_ends_its_transfers(transport: Any) -> None:
    """Blocks that have come are dropped, and no timer is left."""
    async with served(transport, site_of(value=Value())) as (_, server, url), raw_client(url) as peer:
        response = await peer.ask(PUT, "value", bytes(1024), block1=Block(0, True, 6))
        assert response.code.dotted == "2.31"
        (remote,) = server.tokenmanager.remotes
        assert remote.transfers is not None
        assert remote.transfers._timer is not None
        peer.raw.abort()
        await wait_until(lambda: remote.transfers._timer is None)


def test_a_message_that_was_lost_ends_the_requests_that_may_be_waiting_for_it() -> None:
    """All of ours over that connection, each with an error of its own; the peer is told to stop."""
    end = FakeEnd()
    other, _ = end.connect()
    lost = [end.request()[1] for _ in range(2)]
    kept, _ = end.request(other)
    incoming = end.receive()
    end.channel.take_sent()
    cause = FrameTooLargeError(2, 1, "a frame")
    end.remote.lose(cause)
    exceptions = [events[0].exception for events in lost]
    assert all(isinstance(exception, error.NetworkError) for exception in exceptions)
    assert all(exception.__cause__ is cause for exception in exceptions)
    assert len(set(map(id, exceptions))) == 2
    assert end.channel.take_sent() == [[0, b"\x01"], [0, b"\x02"]]
    assert list(end.manager.outgoing_requests.values()) == [kept]
    assert not incoming.is_ended


def test_a_request_made_while_the_connection_ends() -> None:
    """As by who tries again at once: it fails as well, and does not wait for ever."""
    end = FakeEnd()
    again: list[Any] = []
    pipe = Pipe(Message(GET, remote=end.remote))
    pipe.on_event(lambda _: again.append(end.request()[1]))
    end.manager.request(pipe)
    end.channel.is_closed = True
    end.manager.dispatch_error(OSError("lost"), end.remote)
    assert isinstance(again[0][0].exception, error.NetworkError)
    assert not end.manager.outgoing_requests


async def test_shutdown_ends_all_requests() -> None:
    """Ours fail, the peers' get a 5.03 if they want to know, and later ones fail at once."""
    end = FakeEnd()
    again: list[Any] = []
    _, events = end.request()
    pipe = Pipe(Message(GET, remote=end.remote))
    pipe.on_event(lambda _: again.append(end.request()[1]))
    end.manager.request(pipe)
    incoming = [end.receive(token=b"a"), end.receive(token=b"b", no_response=26)]
    held = end.receive(token=b"c")
    for _ in range(WINDOW + 1):
        held.add_response(Message(CONTENT))
    held.add_response(Message(CONTENT), is_last=True)
    end.channel.take_sent()
    await end.manager.shutdown()
    assert isinstance(events[0].exception, error.LibraryShutdown)
    assert isinstance(again[0][0].exception, error.LibraryShutdown)
    assert all(pipe.was_abandoned for pipe in incoming)
    sent = end.channel.take_sent()
    assert [content[:2] for content in sent] == [[0, b"\x01"], [0, b"\x02"], [163, b"a"], [163, b"c"]]
    await end.manager.shutdown()
    held.grant(1)
    end.remote.take([0, b"c", 1])
    assert end.channel.take_sent() == []
    assert isinstance(end.request()[1][0].exception, error.LibraryShutdown)


# -- A model of all that ---------------------------------------------------------------------------


class TokenModel(RuleBasedStateMachine):
    """Requests over two remotes that begin, are answered and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.end = FakeEnd()
        self.remotes = [(self.end.remote, self.end.channel), self.end.connect()]
        self.waiting: dict[tuple[int, bytes], tuple[Pipe, list[Any], list[Any]]] = {}
        self.done: list[tuple[list[Any], list[Any]]] = []
        self.known: list[bytes] = [b"unknown"]

    which = st.integers(0, 1)

    @rule(which=which, wraps=st.booleans())
    def request(self, which: int, wraps: bool) -> None:
        if wraps:
            self.end.manager._token = 2**64 - 2
        pipe, events = self.end.request(self.remotes[which][0])
        token = pipe.request.token
        assert (which, token) not in self.waiting
        self.waiting[which, token] = pipe, events, []
        self.known.append(token)

    @rule(which=which, data=st.data(), more=st.booleans())
    def respond(self, which: int, data: st.DataObject, more: bool) -> None:
        token = data.draw(st.sampled_from(self.known))
        remote, channel = self.remotes[which]
        channel.take_sent()
        response = Message(CONTENT, token=token, remote=remote)
        is_known = (which, token) in self.waiting
        assert self.end.manager.process_response(response, is_last=not more) == is_known
        if is_known:
            self.waiting[which, token][2].append((response, not more))
            if not more:
                self.done.append(self.waiting.pop((which, token))[1:])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def lose_interest(self, data: st.DataObject) -> None:
        which, token = data.draw(st.sampled_from(sorted(self.waiting)))
        pipe, *lists = self.waiting.pop((which, token))
        channel = self.remotes[which][1]
        channel.take_sent()
        pipe._abandon()
        assert channel.take_sent() == [[0, token]]
        self.done.append(tuple(lists))

    @rule(which=which)
    def lose_connection(self, which: int) -> None:
        self.end.manager.dispatch_error(OSError("lost"), self.remotes[which][0])
        for key in [key for key in self.waiting if key[0] == which]:
            pipe, events, expected = self.waiting.pop(key)
            assert isinstance(events.pop().exception, error.NetworkError)
            assert pipe.is_ended
            self.done.append((events, expected))
        self.remotes[which] = self.end.connect()

    @invariant()
    def agrees(self) -> None:
        keys = {(token, self.remotes[which][0]): item[0] for (which, token), item in self.waiting.items()}
        assert self.end.manager.outgoing_requests == keys
        assert self.end.manager.remotes == [] or set(self.end.manager.remotes) == {r for r, _ in self.remotes}
        for events, expected in [*self.done, *(item[1:] for item in self.waiting.values())]:
            assert [(event.message, event.is_last) for event in events] == expected


TokenModel.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestTokenModel = TokenModel.TestCase


# -- Over connections ------------------------------------------------------------------------------


async def open_pipe(client: Any, url: str, pipe: Pipe) -> None:
    await client.tokenmanager.fill_or_recognize_remote(pipe.request)
    client.tokenmanager.request(pipe)


async def test_slow_reader_of_a_long_stream(transport: Any) -> None:
    """1,000 responses arrive in order; neither end ever holds more than two windows of them."""
    stream = Stream(1000)
    async with served(transport, site_of(stream=stream)) as (client, server, url):
        async with IterablePipe(Message(GET, uri=url + "stream")) as pipe:
            await open_pipe(client, url, pipe)
            got = 0
            async for event in pipe:
                got += 1
                assert event.message.payload == b"%d" % got
                assert stream.produced - got <= 3 * WINDOW
                assert len(pipe._queue) <= 2 * WINDOW
                for held in server.tokenmanager.incoming_requests.values():
                    assert len(held._held or ()) <= WINDOW
                if got % 50 == 0:
                    await asyncio.sleep(0.005)
        assert got == 1000
        assert not client.tokenmanager.outgoing_requests
        await wait_until(lambda: not server.tokenmanager.incoming_requests)


async def test_reader_that_stops_reading(transport: Any) -> None:
    """The producer stops as well, at the far end; it goes on when the reader does, and ends with it."""
    stream = Stream()
    async with served(transport, site_of(stream=stream)) as (client, server, url):
        async with IterablePipe(Message(GET, uri=url + "stream")) as pipe:
            await open_pipe(client, url, pipe)
            produced = -1
            while produced != stream.produced or not produced:
                produced = stream.produced
                await asyncio.sleep(0.02)
            assert WINDOW <= produced <= 3 * WINDOW
            iterator = aiter(pipe)
            for _ in range(produced):
                await anext(iterator)
            await wait_until(lambda: stream.produced > produced)
        await stream.ended.wait()
        assert isinstance(stream.error, asyncio.CancelledError)
        await wait_until(lambda: not server.tokenmanager.incoming_requests)


@pytest.mark.parametrize("how", ["break", "cancel", "raise"])
async def test_leaving_a_stream_stops_the_producer(transport: Any, how: str) -> None:
    """However the loop is left, and in the middle of many responses."""
    stream = Stream()
    async with served(transport, site_of(stream=stream)) as (client, _, url):

        async def read() -> None:
            pipe = IterablePipe(Message(GET, uri=url + "stream"))
            await open_pipe(client, url, pipe)
            count = 0
            async for _ in pipe:
                count += 1
                if count == 100:
                    if how == "break":
                        break
                    if how == "raise":
                        raise ValueError
                    await asyncio.Event().wait()

        task = asyncio.create_task(read())
        if how == "cancel":
            await wait_until(lambda: stream.produced >= 100)
            task.cancel()
        with contextlib.suppress(ValueError, asyncio.CancelledError):
            await task
        await stream.ended.wait()
        assert isinstance(stream.error, asyncio.CancelledError)
        assert not client.tokenmanager.outgoing_requests


@pytest.mark.parametrize("side", ["client", "server", "middle"])
async def test_connection_that_is_lost_in_the_middle(transport: Any, side: str) -> None:
    """At the client, what waits ends with NetworkError; at the server, the work on it is cancelled."""
    stream, stuck, value = Stream(), Stuck(), Value(b"0")
    async with served(
        transport, site_of(stream=stream, stuck=stuck, value=value), near={"patience": 0.0}
    ) as (client, server, url):
        request = client.request(Message(GET, uri=url + "stuck"))
        observation = client.request(Message(GET, uri=url + "value", observe=0))
        pipe = IterablePipe(Message(GET, uri=url + "stream"))
        await open_pipe(client, url, pipe)
        iterator = aiter(pipe)
        await anext(iterator)
        await observation.response
        await wait_until(lambda: stuck.begun)
        (near,), (far,) = client.tokenmanager.remotes, server.tokenmanager.remotes
        if side == "client":
            await near.channel.close()
        elif side == "server":
            await far.channel.close()
        else:
            near.channel.transport.abort()
        with pytest.raises(error.NetworkError):
            await request.response
        rest = [event async for event in iterator]
        assert isinstance(rest[-1].exception, error.NetworkError)
        await stream.ended.wait()
        assert isinstance(stream.error, asyncio.CancelledError)
        await wait_until(lambda: stuck.cancelled == 1)
        await wait_until(lambda: value.observation_count == 0)
        for manager in (client.tokenmanager, server.tokenmanager):
            await wait_until(lambda manager=manager: not manager.incoming_requests)
            await wait_until(lambda manager=manager: not manager.outgoing_requests)
        observation.observation.cancel()


async def test_a_handler_that_finds_the_connection_broken_is_cancelled(transport: Any) -> None:
    """Also where its own writing has broken it, so that the news come in its own context."""
    begun = asyncio.Event()
    ends: list[str] = []

    class Breaking(Resource):
        async def render_to_pipe(self, pipe: Any) -> None:
            try:
                remote = pipe.request.remote
                remote.channel.transport.abort()  # what a failing write leads to
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

    async with served(transport, site_of(breaking=Breaking())) as (client, _, url):
        request = client.request(Message(GET, uri=url + "breaking"))
        with pytest.raises(error.NetworkError):
            await request.response
        await begun.wait()
        await wait_until(lambda: ends)


async def test_a_handler_that_shuts_its_context_down_gets_that_done(transport: Any) -> None:
    """It is not cancelled by it, and the requester gets a 5.03."""
    ends: list[str] = []

    class Closing(Resource):
        async def render_get(self, request: Message) -> Message:
            await server.shutdown(grace=0)
            ends.append("done")
            return Message(CONTENT)

    async with served(transport, site_of(x=Closing(), stuck=Stuck())) as (client, server, url):
        other = client.request(Message(GET, uri=url + "stuck"))
        response = await client.request(Message(GET, uri=url + "x")).response
        assert response.code.dotted == "5.03"
        await other.response
        await wait_until(lambda: ends)


async def test_a_handler_that_closes_its_connection_gets_that_done(transport: Any) -> None:
    """It goes on after that, though nobody waits for its response any more; others are cancelled."""
    steps: list[str] = []
    stuck = Stuck()

    class Closing(Resource):
        async def render_get(self, request: Message) -> Message:
            await request.remote.channel.close()
            steps.append("done")
            return Message(CONTENT)

    async with served(transport, site_of(x=Closing(), stuck=stuck)) as (client, _, url):
        other = client.request(Message(GET, uri=url + "stuck"))
        await wait_until(lambda: stuck.begun)
        for request in (client.request(Message(GET, uri=url + "x")), other):
            with pytest.raises(error.NetworkError):
                await request.response
        await wait_until(lambda: steps and stuck.cancelled)


async def test_recognizing_a_remote(transport: Any) -> None:
    """An address becomes a connection; one of our own is known, a lost one and that of another are not."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, server, url):
        manager = client.tokenmanager
        message = Message(GET, uri=url + "value")
        assert await manager.fill_or_recognize_remote(message)
        assert message.remote in manager.remotes
        assert await manager.fill_or_recognize_remote(message)
        await wait_until(lambda: server.tokenmanager.remotes)
        assert not await manager.fill_or_recognize_remote(Message(remote=server.tokenmanager.remotes[0]))
        remote = message.remote
        await remote.channel.close()
        assert not await manager.fill_or_recognize_remote(message)


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:1/x", "ipc://[/no/such/socket]/x", "local://nobody/x"])
async def test_nobody_at_an_address(url: str) -> None:
    """It is a NetworkError, for who connects as well as for who just sends."""
    async with await Context.create_client_context() as client:
        message = Message(GET, uri=url)
        with pytest.raises(error.NetworkError):
            await client.tokenmanager.fill_or_recognize_remote(message)
        with pytest.raises(error.NetworkError):
            await client.request(message).response


def test_credentials_are_those_of_the_context() -> None:
    """As the reference has it."""
    end = FakeEnd()
    assert end.manager.client_credentials is end.context.client_credentials


def test_names_of_the_reference() -> None:
    """All are there."""
    assert tokenmanager.PlumbingRequest is Pipe
    assert tokenmanager.__all__ == ["PlumbingRequest", "TokenManager"]
    for name in (
        "outgoing_requests",
        "incoming_requests",
        "client_credentials",
        "next_token",
        "dispatch_error",
        "process_request",
        "process_response",
        "request",
        "fill_or_recognize_remote",
        "shutdown",
    ):
        assert hasattr(TokenManager, name)
