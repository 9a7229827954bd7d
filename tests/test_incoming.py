"""Requests of a peer: what goes back to it, in which order, and what is held while it does not take it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiomas_ng import error
from aiomas_ng.exceptions import FrameTooLargeError, OverloadError, SerializationError
from aiomas_ng.message import CONTENT, EMPTY, GET, Message
from aiomas_ng.pipe import WINDOW
from tests.coap_contexts import raw_client, served, site_of
from tests.resource_peers import FakeEnd, Stream
from tests.waiting import wait_until

NO_RESPONSE = 0xE0


def item(payload: object = b"", **options: Any) -> Message:
    return Message(CONTENT, str(payload).encode(), **options)


def compact(payload: object, more: bool, token: bytes = b"t", options: list[Any] | None = None) -> list[Any]:
    return [CONTENT, token, options or [], str(payload).encode(), *([True] if more else [])]


# -- Single responses ------------------------------------------------------------------------------


def test_the_last_response_is_sent_and_the_request_forgotten() -> None:
    """With the token of the request, whatever token it has itself."""
    end = FakeEnd()
    pipe = end.receive(token=b"abc")
    assert end.manager.incoming_requests == {(b"abc", end.remote): pipe}
    pipe.add_response(Message(CONTENT, b"x", token=b"other"), is_last=True)
    assert end.channel.sent == [[CONTENT, b"abc", [], b"x"]]
    assert not end.manager.incoming_requests


@pytest.mark.parametrize(
    ("failure", "code", "payload"),
    [(error.NotFound("no such thing"), 132, b"no such thing"), (ValueError("secret"), 160, None)],
)
def test_an_exception_becomes_the_last_response(failure: Exception, code: int, payload: bytes) -> None:
    """The peer gets the code that the error has, or 5.00 without internals."""
    end = FakeEnd()
    end.receive().add_exception(failure)
    assert end.channel.sent == [[code, b"t", [], payload] if payload else [code, b"t"]]
    assert not end.remote.incoming


@pytest.mark.parametrize(
    "failure", [FrameTooLargeError(10, 5, "a frame"), SerializationError("no"), ValueError(), RuntimeError()]
)
@pytest.mark.parametrize("is_last", [False, True])
def test_a_response_that_cannot_be_sent(failure: Exception, is_last: bool) -> None:
    """The peer gets a 5.00 in its place, does not wait for more, and the work is stopped."""
    end = FakeEnd()
    pipe = end.receive()
    stopped = []
    pipe.on_interest_end(lambda: stopped.append(pipe.was_abandoned))
    end.channel.failure = failure
    pipe.add_response(item(1), is_last)
    ((code, token, _, text),) = end.channel.sent
    assert (code, token) == (160, b"t")
    assert text.startswith(b"the response cannot be sent")
    assert (b"limit" in text) == isinstance(failure, FrameTooLargeError)
    assert stopped == [not is_last]
    assert not end.remote.incoming
    pipe.add_response(item(2))
    assert len(end.channel.sent) == 1


def test_a_limit_so_small_that_no_text_fits() -> None:
    """Then the peer gets the code alone."""
    end = FakeEnd()
    pipe = end.receive()
    send = end.channel._send_control

    def send_small(msg_type: int, msg_id: int, content: Any = None, *, gather: bool = False) -> None:
        if len(content) > 2:
            raise FrameTooLargeError(10, 5, "a frame")
        send(msg_type, msg_id, content, gather=gather)

    end.channel._send_control = send_small  # type: ignore[method-assign]
    pipe.add_response(item(1), is_last=True)
    assert end.channel.sent == [[160, b"t"]]


# -- No-Response (RFC 7967) ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [65, 69, 132, 143, 160, 165])
@pytest.mark.parametrize("option", [None, 0, 2, 8, 16, 10, 18, 24, 26, 127])
def test_suppressed_responses(code: int, option: int | None) -> None:
    """A class that is not wanted is not sent; who waits for another one is told that nothing will come."""
    end = FakeEnd()
    pipe = end.receive(no_response=option)
    pipe.add_response(Message(code), is_last=True)
    bit = {2: 2, 4: 8, 5: 16}[code >> 5]
    if not (option or 0) & bit:
        assert end.channel.sent == [[code, b"t"]]
    elif option == 26:
        assert end.channel.sent == []
    else:
        assert end.channel.sent == [[NO_RESPONSE, b"t"]]
    assert not end.remote.incoming


def test_suppressed_responses_of_a_stream() -> None:
    """They cost no credit, and are never held."""
    end = FakeEnd()
    pipe = end.receive(no_response=2)
    for _ in range(10 * WINDOW):
        pipe.add_response(item())
    pipe.add_exception(error.NotFound())
    assert end.channel.sent == [[132, b"t"]]


def test_a_response_that_was_not_sent_further_on() -> None:
    """An empty one, as a forwarder gets it, tells the peer that nothing comes; it is no loss of interest."""
    end = FakeEnd()
    end.receive(no_response=2).add_response(Message(EMPTY), is_last=True)
    end.receive(no_response=26).add_response(Message(EMPTY), is_last=True)
    pipe = end.receive()
    pipe.add_response(Message(EMPTY))
    pipe.add_response(Message(EMPTY), is_last=True)
    assert end.channel.sent == [[NO_RESPONSE, b"t"], [NO_RESPONSE, b"t"]]


# -- Streams ---------------------------------------------------------------------------------------


def test_a_stream_costs_credit() -> None:
    """As many responses as the peer takes are sent, then the producer is to wait."""
    end = FakeEnd()
    pipe = end.receive()
    for number in range(WINDOW):
        assert not pipe.is_paused
        pipe.add_response(item(number))
    assert pipe.is_paused
    assert end.channel.take_sent() == [compact(number, True) for number in range(WINDOW)]
    pipe.add_response(item("held"))
    assert end.channel.take_sent() == []
    end.remote.take([0, b"t", 1])
    assert end.channel.take_sent() == [compact("held", True)]
    assert pipe.is_paused
    end.remote.take([0, b"t", 2])
    assert not pipe.is_paused


def test_what_is_held_is_sent_before_the_last_response() -> None:
    """The last one needs no credit, but it waits for those before it; till then the request is known."""
    end = FakeEnd()
    pipe = end.receive()
    for number in range(WINDOW + 2):
        pipe.add_response(item(number))
    pipe.add_response(item("last"), is_last=True)
    end.channel.take_sent()
    end.remote.take([0, b"t", 1])
    assert end.remote.incoming
    assert end.channel.take_sent() == [compact(WINDOW, True)]
    end.remote.take([0, b"t", 1])
    assert end.channel.take_sent() == [compact(WINDOW + 1, True), compact("last", False)]
    assert not end.remote.incoming


def test_what_is_held_is_bounded() -> None:
    """A producer that does not wait gets an error; the peer gets what there was before, and a 5.00."""
    end = FakeEnd()
    pipe = end.receive()
    for number in range(2 * WINDOW):
        pipe.add_response(item(number))
    with pytest.raises(OverloadError, match=r"await pipe\.drain\(\)") as caught:
        pipe.add_response(item("too many"))
    pipe.add_exception(caught.value)
    end.channel.take_sent()
    end.remote.take([0, b"t", WINDOW])
    sent = end.channel.take_sent()
    assert sent == [*(compact(number, True) for number in range(WINDOW, 2 * WINDOW)), [160, b"t"]]


@pytest.mark.parametrize("count", [WINDOW, WINDOW + 1, 2**31, 2**64])
def test_nonsense_credit_is_worth_a_window(count: int) -> None:
    """However much is granted, never more than a window is sent without being asked for again."""
    end = FakeEnd()
    pipe = end.receive()
    for _ in range(3):
        end.remote.take([0, b"t", count])
    for number in range(2 * WINDOW):
        pipe.add_response(item(number))
    assert len(end.channel.take_sent()) == WINDOW
    with pytest.raises(OverloadError):
        pipe.add_response(item())


def test_a_stream_that_is_held_and_stopped() -> None:
    """Nothing of it is sent any more, whatever the peer grants."""
    end = FakeEnd()
    for is_ended in (False, True):
        pipe = end.receive()
        for number in range(WINDOW + 5):
            pipe.add_response(item(number))
        if is_ended:
            pipe.add_response(item(), is_last=True)
        end.channel.take_sent()
        end.remote.take([0, b"t"])
        assert not end.remote.incoming
        end.remote.take([0, b"t", 10])
        pipe.grant(10)
        pipe.writing_resumed()
        assert end.channel.take_sent() == []


def test_a_held_response_that_cannot_be_sent() -> None:
    """It ends the stream: those behind it are dropped, also where the producer has finished long ago."""
    for is_ended in (False, True):
        end = FakeEnd()
        pipe = end.receive()
        for number in range(WINDOW + 5):
            pipe.add_response(item(number))
        if is_ended:
            pipe.add_response(item(), is_last=True)
        end.channel.take_sent()
        end.channel.failure = SerializationError("no")
        end.remote.take([0, b"t", 3])
        ((code, *_),) = end.channel.take_sent()
        assert code == 160
        assert pipe.is_ended
        assert not end.remote.incoming


# -- Notifications ---------------------------------------------------------------------------------


def test_notifications_cost_no_credit() -> None:
    """An observation lasts as long as both want."""
    end = FakeEnd()
    pipe = end.receive(observe=0)
    for number in range(10 * WINDOW):
        pipe.add_response(item(number, observe=number))
    assert not pipe.is_paused
    assert len(end.channel.sent) == 10 * WINDOW


def test_only_the_latest_notification_waits() -> None:
    """For a peer that does not read; when it reads, it gets that one."""
    end = FakeEnd()
    pipe = end.receive(observe=0)
    end.channel.is_paused = True
    assert pipe.is_paused
    for number in range(1000):
        pipe.add_response(item(number, observe=number))
    assert end.channel.sent == []
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert end.channel.take_sent() == [compact(999, True, options=[6, 999])]
    end.remote.writing_resumed()
    assert end.channel.take_sent() == []


def test_the_last_notification_counts_for_more() -> None:
    """One that waits is not sent after the end."""
    end = FakeEnd()
    pipe = end.receive(observe=0)
    end.channel.is_paused = True
    pipe.add_response(item(1, observe=1))
    pipe.add_response(item("end"), is_last=True)
    assert end.channel.take_sent() == [compact("end", False)]
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert end.channel.take_sent() == []
    assert not end.remote.waiting


@pytest.mark.parametrize("how", ["stop", "token", "loss"])
def test_a_notification_that_waits_ends_with_the_observation(how: str) -> None:
    """It is neither sent nor kept."""
    end = FakeEnd()
    pipe = end.receive(observe=0)
    end.channel.is_paused = True
    pipe.add_response(item(1, observe=1))
    if how == "stop":
        end.remote.take([0, b"t"])
    elif how == "token":
        assert end.receive(observe=1) is not pipe
    else:
        end.manager.dispatch_error(OSError("lost"), end.remote)
    assert pipe.was_abandoned
    assert not end.remote.waiting
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert end.channel.sent == []


def test_an_observe_option_does_not_make_a_notification() -> None:
    """What nobody has asked to observe is a stream, and costs credit."""
    end = FakeEnd()
    pipe = end.receive()
    for number in range(WINDOW):
        pipe.add_response(item(number, observe=number))
    assert pipe.is_paused


def test_a_notification_always_has_room() -> None:
    """Also where a stream, which nobody takes, came before it."""
    end = FakeEnd()
    pipe = end.receive(observe=0)
    for number in range(2 * WINDOW):
        pipe.add_response(item(number))
    pipe.add_response(item("state", observe=1))
    with pytest.raises(OverloadError):
        pipe.add_response(item())
    assert end.channel.sent[-1][3] == b"state"


# -- Waiting for the peer --------------------------------------------------------------------------


def test_no_wake_up_is_lost_between_credit_and_reading() -> None:
    """Who waits for both goes on when both are there, in whichever order they come and go."""
    end = FakeEnd()
    pipe = end.receive()
    for number in range(WINDOW):
        pipe.add_response(item(number))
    end.channel.is_paused = True
    called = []
    pipe.on_resume(lambda: called.append(1))
    end.channel.is_paused = False
    end.remote.writing_resumed()  # there is no credit yet
    assert not called
    end.channel.is_paused = True
    pipe.grant(1)  # the peer does not read any more
    assert not called
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert called
    assert not end.remote.waiting


def test_those_who_wait_get_their_turn_until_the_peer_stops_reading() -> None:
    """Then the others keep their place."""
    end = FakeEnd()
    pipes = [end.receive(token=b"%d" % number, observe=0) for number in range(4)]
    end.channel.is_paused = True
    for pipe in pipes:
        pipe.add_response(item(observe=1))

    def stop_reading() -> None:
        end.channel.is_paused = True

    pipes[1].on_resume(stop_reading)
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert [content[1] for content in end.channel.take_sent()] == [b"0", b"1"]
    assert list(end.remote.waiting) == pipes[2:]
    end.channel.is_paused = False
    end.remote.writing_resumed()
    assert [content[1] for content in end.channel.take_sent()] == [b"2", b"3"]


class IncomingModel(RuleBasedStateMachine):
    """What the rules say, by a plainer program, for anything that producer and peer do."""

    def __init__(self) -> None:
        super().__init__()
        self.end = FakeEnd()
        self.is_observed = False
        self.begin()

    def begin(self) -> None:
        self.pipe = self.end.receive(observe=0 if self.is_observed else None)
        self.expected: list[Any] = []
        self.end.channel.take_sent()
        self.credit = WINDOW
        self.held: list[Any] = []
        self.latest: Any = None
        self.is_stopped = self.is_finished = False  # by the peer, by the producer
        self.number = 0
        self.waiters: list[list[int]] = []

    @property
    def is_over(self) -> bool:
        return self.is_stopped or self.is_finished

    @property
    def is_paused(self) -> bool:
        return not self.is_over and (not self.credit or self.end.channel.is_paused)

    @precondition(lambda self: self.is_over)
    @rule(is_observed=st.booleans())
    def begin_anew(self, is_observed: bool) -> None:
        self.end.remote.take([0, b"t"])
        self.is_observed = is_observed
        self.begin()

    @rule(count=st.integers(1, 2 * WINDOW))
    def add_items(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            if not self.is_over and len(self.held) >= WINDOW:
                with pytest.raises(OverloadError):
                    self.pipe.add_response(item(self.number))
                return
            self.pipe.add_response(item(self.number))
            if self.is_over:
                continue
            if self.credit:
                self.credit -= 1
                self.expected.append(compact(self.number, True))
            else:
                self.held.append(compact(self.number, True))

    @precondition(lambda self: self.is_observed)
    @rule()
    def notify(self) -> None:
        self.number += 1
        self.pipe.add_response(item(self.number, observe=1))
        content = compact(self.number, True, options=[6, 1])
        if not self.is_over:
            if self.end.channel.is_paused:
                self.latest = content
            else:
                self.expected.append(content)

    @rule(is_exception=st.booleans())
    def finish(self, is_exception: bool) -> None:
        if is_exception:
            self.pipe.add_exception(error.NotFound())
            content: list[Any] = [132, b"t"]
        else:
            self.pipe.add_response(item("last"), is_last=True)
            content = compact("last", False)
        if not self.is_over:
            self.is_finished = True
            self.latest = None
            (self.held if self.held else self.expected).append(content)

    @rule()
    def stop(self) -> None:
        self.end.remote.take([0, b"t"])
        self.is_stopped = True
        self.held = []
        self.latest = None

    @rule(count=st.integers(1, 3 * WINDOW))
    def grant(self, count: int) -> None:
        self.end.remote.take([0, b"t", count])
        self.credit = min(self.credit + count, WINDOW)
        while self.held and (self.credit or self.held[0][-1] is not True):
            if self.held[0][-1] is True:
                self.credit -= 1
            self.expected.append(self.held.pop(0))

    @rule()
    def stop_reading(self) -> None:
        self.end.channel.is_paused = True

    @rule()
    def read(self) -> None:
        self.end.channel.is_paused = False
        self.end.remote.writing_resumed()
        if self.latest is not None:
            self.expected.append(self.latest)
            self.latest = None

    @rule()
    def wait(self) -> None:
        calls: list[int] = []
        self.waiters.append(calls)
        self.pipe.on_resume(lambda: calls.append(1))

    @invariant()
    def agrees(self) -> None:
        assert self.end.channel.sent == self.expected
        assert self.pipe.is_ended == self.is_over
        assert self.pipe.is_paused == self.is_paused
        assert len(self.held) <= WINDOW + 1
        # Nobody waits in vain, and nobody is woken twice.
        if not self.is_paused:
            assert all(self.waiters)
        assert all(len(calls) <= 1 for calls in self.waiters)
        is_known = not self.is_stopped and not (self.is_finished and not self.held)
        assert (b"t" in self.end.remote.incoming) == is_known


IncomingModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestIncomingModel = IncomingModel.TestCase


# -- Over a connection -----------------------------------------------------------------------------


async def test_credit_over_a_connection(transport: Any) -> None:
    """A peer that grants nothing gets a window, and each grant gets it as many more."""
    stream = Stream(1000)
    async with served(transport, site_of(stream=stream)) as (_, _, url), raw_client(url) as peer:
        peer.request(GET, "stream")
        for number in range(1, WINDOW + 1):
            assert (await peer.receive())[3:] == [b"%d" % number, True]
        for _ in range(20):
            await asyncio.sleep(0)
        assert stream.produced == WINDOW
        assert not peer.raw.frames
        number = WINDOW
        while not stream.ended.is_set():
            peer.send([0, b"t", 10])
            for _ in range(min(10, 1000 - number)):
                number += 1
                content = await peer.receive()
                assert content[3] == b"%d" % number
            assert stream.produced <= number + 1
        assert (number, content[4:]) == (1000, [])


async def test_producer_that_does_not_wait(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is stopped by an error of its own; the peer gets all that fits, and a 5.00 without internals."""
    stream = Stream(waits=False)
    async with served(transport, site_of(stream=stream)) as (_, server, url), raw_client(url) as peer:
        peer.request(GET, "stream")
        await stream.ended.wait()
        assert isinstance(stream.error, OverloadError)
        peer.send([0, b"t", WINDOW])
        got = [await peer.receive() for _ in range(2 * WINDOW + 1)]
        assert [content[3] for content in got[:-1]] == [b"%d" % (n + 1) for n in range(2 * WINDOW)]
        assert got[-1] == [160, b"t"]
        assert "await pipe.drain()" in caplog.text
        await wait_until(lambda: not server.tokenmanager.incoming_requests)


@pytest.mark.parametrize("how", ["stop", "close", "abort", "token"])
@pytest.mark.parametrize("is_held", [False, True])
async def test_end_of_a_stream_by_the_peer(transport: Any, how: str, is_held: bool) -> None:
    """The producer is cancelled wherever it is, and nothing is left of the request."""
    stream = Stream()
    async with served(transport, site_of(stream=stream)) as (_, server, url), raw_client(url) as peer:
        peer.request(GET, "stream")
        for _ in range(WINDOW if is_held else 5):
            await peer.receive()
        if how == "stop":
            peer.send([0, b"t"])
        elif how == "token":
            peer.request(GET, "nothing")
        elif how == "close":
            peer.raw.close()
        else:
            peer.raw.abort()
        await stream.ended.wait()
        assert isinstance(stream.error, asyncio.CancelledError)
        await wait_until(lambda: not server.tokenmanager.incoming_requests)
        await wait_until(lambda: not server._tasks)


async def test_a_stream_to_a_peer_that_does_not_read(transport: Any) -> None:
    """It waits, however much the peer grants, and goes on when that reads."""

    class LargeStream(Stream):
        async def render_to_pipe(self, pipe: Any) -> None:
            while True:
                self.produced += 1
                pipe.add_response(Message(CONTENT, bytes(20_000)))
                await pipe.drain()

    stream = LargeStream()
    async with served(transport, site_of(stream=stream)) as (_, _, url), raw_client(url) as peer:
        peer.raw.stop_reading()
        peer.request(GET, "stream")
        produced = -1
        while produced != stream.produced or not produced:
            produced = stream.produced
            peer.send([0, b"t", 10])
            await asyncio.sleep(0.05)
        assert 0 < produced < 10_000
        peer.raw.start_reading()
        for _ in range(3 * produced):
            await peer.receive()
            peer.send([0, b"t", 1])
        peer.send([0, b"t"])


def test_the_log_names_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    """Of a response that cannot be sent."""
    end = FakeEnd()
    end.manager.log = logging.getLogger("tests.incoming")
    end.channel.failure = SerializationError("no way")
    end.receive().add_response(item(), is_last=True)
    assert "cannot be sent to nowhere: no way" in caplog.text
