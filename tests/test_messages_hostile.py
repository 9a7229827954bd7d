"""What peers do on the lane for messages that they should not: it is answered or noted, and harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomas_ng import error
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import ProtocolError
from aiomas_ng.message import CONTENT, DELETE, GET, POST, PUT, Message
from aiomas_ng.pipe import WINDOW, IterablePipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource, Site
from tests.coap_contexts import Echo, MessagePeer, Stuck, Value, raw_client, raw_server, served, site_of
from tests.faults import EXCEPTION, MESSAGE, REQUEST, RESULT, open_raw_client
from tests.resource_peers import FakeEnd, Stream
from tests.waiting import wait_until

KIB = 2**10

SITE = {"value": lambda: Value(b"state"), "echo": Echo, "stream": lambda: Stream(10), "stuck": Stuck}


def make_site() -> Site:
    return site_of(**{name: make() for name, make in SITE.items()})


async def assert_served(peer: MessagePeer) -> None:
    """Check that the peer is still answered."""
    while True:
        peer.request(GET, "value", token=b"alive")
        content = await peer.receive()
        while content[1] != b"alive":
            content = await peer.receive()
        assert content[0] == CONTENT
        return


async def receive_violation(peer: MessagePeer) -> str:
    """Return the type of the error that the peer is told of."""
    while True:
        msg_type, msg_id, content = await peer.raw.recv()
        if msg_type == EXCEPTION:
            assert msg_id is None
            return str(content[0])


async def until_stable(get: Any) -> Any:
    """Wait until a number does not change any more, and return it."""
    before = None
    while before != (before := get()):  # noqa: ASYNC110  # the system has no event for it
        await asyncio.sleep(0.05)
    return before


# -- Content that is no message --------------------------------------------------------------------

MALFORMED = [
    None,
    0,
    "text",
    b"bytes",
    {},
    {1: b"t"},
    [],
    [1],
    [None, b"t"],
    [True, b"t"],
    [1.0, b"t"],
    ["GET", b"t"],
    [-1, b"t"],
    [256, b"t"],
    [2**63, b"t"],
    [1, None],
    [1, "t"],
    [1, 5],
    [1, b"123456789"],
    [1, b"t", 5],
    [1, b"t", {}],
    [1, b"t", "options"],
    [1, b"t", [11]],
    [1, b"t", ["11", "x"]],
    [1, b"t", [12, 0, 11, "x"]],
    [1, b"t", [-1, b""]],
    [1, b"t", [2**20, b""]],
    [1, b"t", [], "text"],
    [1, b"t", [], None],
    [1, b"t", [], b"", True],
    [1, b"t", [], b"", 1],
    [69, b"t", [], b"", 1],
    [69, b"t", [], b"", None],
    [69, b"t", [], b"", False, 0],
    [32, b"t"],
    [63, b"t"],
    [0xC0, b"t"],
    [0xE1, b"t"],
    [0xFF, b"t"],
    [0, None],
    [0, "t"],
    [0, b"123456789"],
    [0, b"t", 0],
    [0, b"t", -1],
    [0, b"t", True],
    [0, b"t", "5"],
    [0, b"t", 1.5],
    [0, b"t", 5, 5],
    [0xE0, b"t", 5],
    [0xE0, 5],
]


@pytest.mark.parametrize("content", MALFORMED, ids=repr)
def test_malformed_messages_are_protocol_errors(content: Any) -> None:
    """Nothing is answered, and no request comes of it."""
    end = FakeEnd()
    with pytest.raises(ProtocolError):
        end.remote.take(content)
    assert end.channel.sent == []
    assert not end.context.pipes


async def test_malformed_messages_are_violations(transport: Any) -> None:
    """The peer is told of each, and is served after all of them."""
    async with served(transport, make_site()) as (_, _, url), raw_client(url) as peer:
        for content in MALFORMED:
            peer.send(content)
            assert await receive_violation(peer) == "aiomas_ng.MalformedFrameError"
        await assert_served(peer)


async def test_too_many_violations_end_the_connection(transport: Any) -> None:
    """As everywhere on the wire; what was under way is stopped."""
    stuck = Stuck()
    limits = Limits(violations=5)
    async with served(transport, site_of(stuck=stuck), far={"limits": limits}) as (_, server, url):
        async with raw_client(url) as peer:
            peer.request(GET, "stuck")
            await wait_until(lambda: stuck.begun)
            for _ in range(6):
                peer.send(None)
            await peer.raw.until_lost()
        await wait_until(lambda: stuck.cancelled)
        assert not server.tokenmanager.incoming_requests


async def test_other_lanes_are_served_by_nobody(transport: Any) -> None:
    """Whatever they are called."""
    async with served(transport, make_site()) as (_, _, url), raw_client(url) as peer:
        for lane in (2, -1, "1", None, 1.5):
            peer.raw.send(MESSAGE, lane, [1, b"t", [11, "value"]])
            assert await receive_violation(peer) == "aiomas_ng.MalformedFrameError"
        await assert_served(peer)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=10)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=10,
)
tokens = st.sampled_from([b"", b"1", b"2", b"12345678"])
option_lists = st.lists(
    st.tuples(st.sampled_from([1, 4, 5, 6, 11, 12, 14, 15, 17, 23, 27, 28, 60, 258, 65001]), anything),
    max_size=3,
).map(lambda pairs: [part for pair in sorted(pairs, key=lambda pair: pair[0]) for part in pair])
codes = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 31, 64, 69, 95, 132, 160, 0xE0]) | st.integers(-1, 256)
almost_messages = st.one_of(
    st.tuples(codes, tokens),
    st.tuples(codes, tokens, option_lists),
    st.tuples(codes, tokens, option_lists, st.binary(max_size=20)),
    st.tuples(codes, tokens, option_lists, st.binary(max_size=20), st.booleans()),
    st.tuples(st.just(0), tokens, st.integers(-1, 100)),
    st.tuples(codes, anything, anything, anything),
)


@settings(max_examples=300)
@given(st.lists(anything | almost_messages, max_size=20))
def test_whatever_comes_is_at_most_a_protocol_error(contents: list[Any]) -> None:
    """With requests of ours under way, of all kinds, and those of the peer answered or not."""
    end = FakeEnd(requests=3, observations=1)
    end.manager._token = int.from_bytes(b"1", "big") - 1
    _, plain = end.request()
    _, observed = end.request(observe=0)
    for number, content in enumerate(contents):
        with contextlib.suppress(ProtocolError):
            end.remote.take(content)
        for pipe in end.context.pipes[-1:]:
            pipe.add_response(Message(CONTENT, observe=number), is_last=number % 3 == 0)
        assert len(end.remote.incoming) <= 3
    for events in (plain, observed):
        assert sum(event.is_last for event in events) <= 1


@settings(max_examples=30)
@given(st.lists(anything | almost_messages, max_size=30))
async def test_whatever_comes_over_a_connection(contents: list[Any]) -> None:
    """Nothing is raised out of data_received, and the connection goes on if there were not too many."""
    limits = Limits(violations=1000)
    async with served(Local(), make_site(), far={"limits": limits}) as (_, _, url), raw_client(url) as peer:
        for content in contents:
            peer.send(content)
        await assert_served(peer)


class Local:
    """The transport that needs nothing of the system, for many examples."""

    kind = "local"
    _numbers = itertools.count()

    def address(self) -> Any:
        return f"local://hostile-{next(self._numbers)}"


async def test_options_with_values_of_another_type(transport: Any) -> None:
    """A critical one gets 4.02, as one that nobody knows does; any other is left out."""
    async with served(transport, make_site()) as (_, _, url), raw_client(url) as peer:
        for options in ([11, 5], [11, ["x"]], [17, "text"], [9999, b""]):
            peer.send([1, b"t", options])
            assert (await peer.receive())[:2] == [130, b"t"]
        for options in ([6, "0", 11, "value"], [11, "value", 9998, b""]):
            peer.send([1, b"t", options])
            assert (await peer.receive())[:2] == [69, b"t"]


# -- Codes -----------------------------------------------------------------------------------------


async def test_requests_with_unknown_codes(transport: Any) -> None:
    """They are methods that no resource offers: 4.05, and 4.04 where there is none."""
    async with served(transport, make_site()) as (_, _, url), raw_client(url) as peer:
        for code in range(8, 32):
            assert (await peer.ask(code, "value")).code.dotted == "4.05"
            assert (await peer.ask(code, "nothing")).code.dotted == "4.04"


async def test_a_request_in_place_of_a_response(transport: Any) -> None:
    """It is a request of its own, even with the token of ours; the one of ours waits on."""
    async with raw_server(transport) as (client, server):
        request = client.request(Message(GET, uri=server.url + "x"))
        peer = await server.peer()
        token = (await peer.receive())[1]
        peer.send([1, token])
        assert (await peer.receive())[:2] == [132, token]
        assert not request.response.done()
        peer.send([69, token])
        assert (await request.response).code == CONTENT


async def test_responses_with_unknown_codes(transport: Any) -> None:
    """Those of the classes 2 to 5 arrive as they are."""
    async with raw_server(transport) as (client, server):
        for code in (64, 94, 96, 127, 150, 191):
            request = client.request(Message(GET, uri=server.url + "x"))
            peer = await server.peer()
            peer.send([code, (await peer.receive())[1]])
            assert (await request.response).code == code


async def test_responses_and_signals_for_unknown_tokens(transport: Any) -> None:
    """The peer is told to stop what nobody waits for; signals are for nothing."""
    async with served(transport, make_site()) as (_, _, url), raw_client(url) as peer:
        peer.send([69, b"what", [], b"", True])
        assert await peer.receive() == [0, b"what"]
        for content in ([0, b"what"], [0, b"what", 5], [0xE0, b"what"]):
            peer.send(content)
        await assert_served(peer)


# -- Tokens that are used again --------------------------------------------------------------------


async def test_a_token_that_is_used_again_ends_the_first_request(transport: Any) -> None:
    """The work on it is stopped; the second is answered, once."""
    stuck = Stuck()
    async with (
        served(transport, site_of(stuck=stuck, value=Value(b"x"))) as (_, _, url),
        raw_client(url) as peer,
    ):
        peer.request(GET, "stuck")
        await wait_until(lambda: stuck.begun)
        response = await peer.ask(GET, "value")
        assert response.payload == b"x"
        await wait_until(lambda: stuck.cancelled)
        await assert_served(peer)


async def test_registering_an_observation_anew(transport: Any) -> None:
    """With the same token there is one observer, as often as it registers (RFC 7641, 4.1)."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (_, _, url), raw_client(url) as peer:
        for _ in range(20):
            response = await peer.ask(GET, "value", observe=0)
            assert response.opt.observe is not None
            assert value.observation_count == 1
        value.set(b"1")
        assert (await peer.receive_message()).payload == b"1"
        assert not peer.raw.frames


async def test_deregistering_an_observation(transport: Any) -> None:
    """By Observe 1 with its token, which is answered with the state; after that nothing comes."""
    value = Value(b"0")
    async with served(transport, site_of(value=value)) as (_, _, url), raw_client(url) as peer:
        await peer.ask(GET, "value", observe=0)
        response = await peer.ask(GET, "value", observe=1)
        assert (response.payload, response.opt.observe) == (b"0", None)
        await wait_until(lambda: value.observation_count == 0)
        value.set(b"1")
        await assert_served(peer)


# -- Too much of it --------------------------------------------------------------------------------


async def test_too_many_requests(transport: Any) -> None:
    """Those beyond the limit get a 5.03 at once, with the time after which to try again."""
    stuck = Stuck()
    limits = Limits(requests=5)
    async with (
        served(transport, site_of(stuck=stuck), far={"limits": limits}) as (_, _, url),
        raw_client(url) as peer,
    ):
        for number in range(8):
            peer.request(GET, "stuck", token=b"%d" % number)
        refused = [await peer.receive_message() for _ in range(3)]
        assert {(r.code.dotted, r.opt.max_age) for r in refused} == {("5.03", 1)}
        assert [r.token for r in refused] == [b"5", b"6", b"7"]
        assert stuck.begun == 5
        peer.send([0, b"0"])
        await wait_until(lambda: stuck.cancelled)
        peer.request(GET, "stuck", token=b"8")
        await wait_until(lambda: stuck.begun == 6)


async def test_too_many_observations(transport: Any) -> None:
    """Those beyond the limit get the state once."""
    value = Value(b"0")
    limits = Limits(observations=3)
    async with (
        served(transport, site_of(value=value), far={"limits": limits}) as (_, _, url),
        raw_client(url) as peer,
    ):
        responses = [await peer.ask(GET, "value", token=b"%d" % n, observe=0) for n in range(5)]
        assert [r.opt.observe is not None for r in responses] == [True, True, True, False, False]
        assert value.observation_count == 3
        value.set(b"1")
        notified = {(await peer.receive_message()).token for _ in range(3)}
        assert notified == {b"0", b"1", b"2"}


@pytest.mark.parametrize("kind", ["stream", "observation"])
async def test_a_server_that_floods_a_stream(transport: Any, kind: str) -> None:
    """The reader gets what was allowed, then an error; the server is told to stop. Other requests go on."""
    async with raw_server(transport) as (client, server):
        message = Message(GET, uri=server.url + "x", observe=0 if kind == "observation" else None)
        async with IterablePipe(message) as pipe:
            client.begin(pipe)
            peer = await server.peer()
            token = (await peer.receive())[1]
            other = client.request(Message(GET, uri=server.url + "y"))
            for number in range(10 * WINDOW):
                peer.send([69, token, [], b"%d" % number, True])
            other_token = (await peer.receive())[1]
            peer.send([69, other_token])
            await other.response
            events = [event async for event in pipe]
        assert isinstance(events[-1].exception, ProtocolError)
        assert WINDOW <= len(events) <= 2 * WINDOW
        assert [event.message.payload for event in events[:-1]] == [b"%d" % n for n in range(len(events) - 1)]
        while (signal := await peer.receive_signal()) != [0, token]:
            assert len(signal) == 3


async def test_a_response_that_is_too_large_to_be_taken(transport: Any) -> None:
    """Whose it was is not known, so all requests of ours fail; the connection goes on."""
    async with raw_server(transport, limits=Limits(frame_size=10_000)) as (client, server):
        requests = [client.request(Message(GET, uri=server.url + name)) for name in "ab"]
        peer = await server.peer()
        token = (await peer.receive())[1]
        await peer.receive()
        peer.send([69, token, [], bytes(20_000)])
        for request in requests:
            with pytest.raises(error.NetworkError, match="was lost"):
                await request.response
        again = client.request(Message(GET, uri=server.url + "c"))
        while (content := await peer.receive())[0] != GET:
            pass
        peer.send([69, content[1]])
        assert (await again.response).code == CONTENT
        assert len(server.peers) == 1


async def test_a_request_that_is_too_large_for_the_peer(transport: Any) -> None:
    """It fails, and does not wait for ever."""
    limits = Limits(frame_size=10_000, block_size=1024)
    async with served(transport, make_site(), far={"limits": limits}) as (client, _, url):
        with pytest.raises(error.NetworkError, match="was lost"):
            await client.request(Message(PUT, bytes(20_000), uri=url + "value")).response
        assert await client.get(url + "value") == b"state"


# -- Peers that do not read ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def deaf_peer(
    transport: Any, site: Site, **limits: Any
) -> AsyncIterator[tuple[MessagePeer, Context, Any]]:
    """Give a peer that reads nothing, the server, and the server's remote to it."""
    async with (
        served(transport, site, far={"limits": Limits(**limits)}) as (_, server, url),
        raw_client(url) as peer,
    ):
        await assert_served(peer)
        peer.raw.stop_reading()
        (remote,) = server.tokenmanager.remotes
        yield peer, server, remote


async def clog(peer: MessagePeer, remote: Any) -> int:
    """Ask a peer's server for large responses until nothing moves any more; return how many."""
    count = 0
    size = -1
    while not remote.is_paused or size != remote.channel._protocol.get_unsent_size():
        size = remote.channel._protocol.get_unsent_size()
        for _ in range(20):
            peer.request(GET, "large", token=b"c%d" % count)
            count += 1
        await asyncio.sleep(0.02)
    return count


def make_clogging_site(**resources: Any) -> Site:
    return site_of(value=Value(b"state"), large=Value(bytes(20 * KIB)), **resources)


async def test_requests_of_a_peer_that_does_not_read(transport: Any) -> None:
    """They wait, then reading stops: memory is bounded. When the peer reads again, all are answered."""
    async with deaf_peer(transport, make_clogging_site(), requests=50) as (peer, _, remote):
        count = await clog(peer, remote)
        for _ in range(1000):
            peer.request(GET, "large", bytes(4 * KIB), token=b"c%d" % count)
            count += 1
        await wait_until(lambda: not remote.channel._is_reading)
        unsent = await until_stable(remote.channel._protocol.get_unsent_size)
        assert unsent < 5 * 2**20
        assert len(remote.channel._inbox) <= 50 + 256 // 4 + 1  # and what one read brings
        assert len(remote.incoming) <= 50
        peer.raw.start_reading()
        got = []
        for _ in range(count):
            content = await peer.receive()
            assert content[0] in (CONTENT, 163)
            got.append(content[1])
        assert sorted(got) == sorted(b"c%d" % number for number in range(count))
        await assert_served(peer)


async def test_observations_of_a_peer_that_does_not_read(transport: Any) -> None:
    """Only the latest state is kept for each; when the peer reads, each observer ends on it."""
    value = Value(b"0")
    site = make_clogging_site(observed=value)
    async with deaf_peer(transport, site) as (peer, _, remote):
        peer.raw.start_reading()
        for number in range(20):
            await peer.ask(GET, "observed", token=b"o%d" % number, observe=0)
        peer.raw.stop_reading()
        await clog(peer, remote)
        unsent = await until_stable(remote.channel._protocol.get_unsent_size)
        for number in range(1, 501):
            value.set(b"%d" % number)
            if number % 10 == 0:
                await asyncio.sleep(0)
        assert remote.channel._protocol.get_unsent_size() <= unsent
        assert len(remote.waiting) <= 20
        peer.raw.start_reading()
        latest: dict[bytes, bytes] = {}
        while list(latest.values()) != [b"500"] * 20:
            content = await peer.receive()
            if content[1].startswith(b"o"):
                latest[content[1]] = content[3]
        await assert_served(peer)


async def test_a_request_that_waits_can_be_taken_back(transport: Any) -> None:
    """It is never begun; the others keep their turn."""
    echo = Value()
    async with deaf_peer(transport, make_clogging_site(echo=echo)) as (peer, _, remote):
        await clog(peer, remote)
        for number in range(5):
            peer.request(PUT, "echo", b"%d" % number, token=b"w%d" % number)
        peer.send([0, b"w1"])
        peer.request(PUT, "echo", b"again", token=b"w3")  # in place of the other one
        peer.send([0, b"w0", 5])  # this means nothing yet
        await wait_until(lambda: b"w4" in remote.channel._inbox)
        await wait_until(lambda: list(remote.channel._inbox)[-1] == b"w3")
        assert echo.writes == []
        peer.raw.start_reading()
        await assert_served(peer)
        assert echo.writes == [b"0", b"2", b"4", b"again"]
        assert not remote.channel._inbox
        assert remote.channel._inbox_size == 0


async def test_malformed_requests_that_wait(transport: Any) -> None:
    """They are violations when their turn comes, or at once, and never more."""
    async with deaf_peer(transport, make_clogging_site()) as (peer, _, remote):
        await clog(peer, remote)
        peer.send([1, b"w", [11]])
        peer.send([1, b"123456789"])
        peer.send([1, "w"])
        peer.send([1, []])
        await wait_until(lambda: b"w" in remote.channel._inbox)
        peer.raw.start_reading()
        await assert_served(peer)
        assert remote.channel._violations == 4


async def test_responses_to_nobody_from_a_peer_that_does_not_read(transport: Any) -> None:
    """They are not answered, so that nothing piles up."""
    async with deaf_peer(transport, make_clogging_site()) as (peer, _, remote):
        await clog(peer, remote)
        unsent = await until_stable(remote.channel._protocol.get_unsent_size)
        for number in range(5000):
            peer.send([69, b"n%d" % number, [], b"", True])
            peer.send([0, b"n%d" % number])
        peer.send([0, b"c0", 1])
        peer.request(GET, "value", token=b"end")
        await wait_until(lambda: b"end" in remote.channel._inbox or not remote.channel._is_reading)
        assert remote.channel._protocol.get_unsent_size() <= unsent


async def test_connection_that_is_lost_while_the_peer_does_not_read(transport: Any) -> None:
    """What waits is dropped, and the work is stopped."""
    stuck, value = Stuck(), Value(b"0")
    site = make_clogging_site(stuck=stuck, observed=value)
    async with deaf_peer(transport, site) as (peer, server, remote):
        peer.request(GET, "stuck", token=b"s")
        peer.request(GET, "observed", token=b"o", observe=0)
        await wait_until(lambda: stuck.begun and value.observation_count)
        await clog(peer, remote)
        peer.request(GET, "stuck", token=b"w")
        value.set(b"1")
        await wait_until(lambda: b"w" in remote.channel._inbox)
        peer.raw.abort()
        await wait_until(lambda: stuck.cancelled == 1)
        await wait_until(lambda: value.observation_count == 0)
        assert stuck.begun == 1
        assert not remote.waiting
        assert not server.tokenmanager.incoming_requests


async def test_requests_are_refused_where_waiting_is_not_safe(transport: Any) -> None:
    """While a request of ours waits for a peer that does not read, its own are refused beyond the limit."""
    async with deaf_peer(transport, make_clogging_site(), requests=50) as (peer, server, remote):
        await clog(peer, remote)
        ours = server.request(Message(GET, remote=remote))
        assert remote.is_waiting
        for number in range(100):
            peer.request(GET, "value", token=b"r%d" % number)
        peer.request(GET, "value", token=b"quiet", no_response=26)
        peer.send([1, b"123456789"])
        await wait_until(lambda: remote.channel._violations)
        assert remote.channel._is_reading
        assert len(remote.channel._inbox) == 50
        peer.raw.start_reading()
        codes = {}
        while len(codes) < 100:
            content = await peer.receive()
            if content[1].startswith(b"r"):
                codes[content[1]] = content[0]
            elif content[0] == GET:
                peer.send([69, content[1], [], b"response"])
        assert set(codes.values()) == {69, 163}
        assert b"quiet" not in codes
        assert (await ours.response).payload == b"response"


async def test_a_request_of_ours_makes_us_read_on(transport: Any) -> None:
    """Its response lies behind the peer's requests for which there was no room."""
    async with deaf_peer(transport, make_clogging_site(), requests=10) as (peer, server, remote):
        count = await clog(peer, remote)
        for _ in range(100):
            peer.request(GET, "value", bytes(4 * KIB), token=b"c%d" % count)
            count += 1
        await wait_until(lambda: not remote.channel._is_reading)
        ours = server.request(Message(GET, remote=remote))
        assert remote.channel._is_reading
        peer.send([69, ours.request.token, [], b"early"])
        assert (await ours.response).payload == b"early"


async def test_two_sides_that_flood_each_other(transport: Any) -> None:
    """Every request of either side ends, with the response or with a 5.03; neither waits for ever."""
    large = bytes(20 * KIB)
    async with served(transport, site_of(large=Value(large))) as (client, server, url):
        client.serversite = site_of(large=Value(large))
        await client.get(url + "large")
        (remote,) = server.tokenmanager.remotes
        theirs = [client.request(Message(GET, uri=url + "large")) for _ in range(1000)]
        ours = [server.request(Message(GET, remote=remote, uri_path=("large",))) for _ in range(1000)]
        responses = await asyncio.gather(*(request.response for request in theirs + ours))
        assert {response.code.dotted for response in responses} <= {"2.05", "5.03"}
        assert sum(response.code == CONTENT for response in responses) >= 1000


async def test_two_sides_that_flood_each_other_with_streams(transport: Any) -> None:
    """Both get all of them."""
    async with served(transport, Streams()) as (client, server, url):
        client.serversite = Streams()
        await client.request(Message(POST, uri=url)).response
        (remote,) = server.tokenmanager.remotes

        async def read(context: Context, message: Message) -> int:
            async with IterablePipe(message) as pipe:
                context.begin(pipe)
                return sum([1 async for event in pipe if event.message is not None])

        counts = await asyncio.gather(
            *(read(client, Message(GET, uri=url)) for _ in range(10)),
            *(read(server, Message(GET, remote=remote)) for _ in range(10)),
        )
        assert counts == [300] * 20


class Streams(Resource):
    """Each request gets a stream of its own, of large responses."""

    async def render_to_pipe(self, pipe: Any) -> None:
        if pipe.request.code == GET:
            for _ in range(299):
                pipe.add_response(Message(CONTENT, bytes(5 * KIB)))
                await pipe.drain()
        pipe.add_response(Message(CONTENT), is_last=True)


# -- Without procedures ----------------------------------------------------------------------------


async def test_a_connection_that_nobody_calls_procedures_over(transport: Any) -> None:
    """Requests that had to wait are taken, though nobody receives what waits for recv()."""
    async with open_raw_client(transport, greets=True) as (raw, channel):
        peer = MessagePeer(raw)
        context = await Context.create_client_context()
        async with context:
            context.serversite = make_clogging_site(echo=(echo := Value()))
            remote = context.attach(channel)
            raw.stop_reading()
            await clog(peer, remote)
            peer.request(PUT, "echo", b"1", token=b"w1")
            raw.send(REQUEST, raw.first_id, "for recv()")
            peer.request(PUT, "echo", b"2", token=b"w2")
            await wait_until(lambda: b"w2" in channel._inbox)
            raw.start_reading()
            while (await peer.receive())[1] != b"w1":
                pass
            assert echo.writes == [b"1"]
            request = await channel.recv()
            assert request.content == "for recv()"
            await request.reply("reply")
            assert (await raw.recv_reply(raw.first_id))[0] == RESULT
            receiving = asyncio.create_task(channel.recv())
            assert (await peer.receive())[1] == b"w2"
            assert echo.writes == [b"1", b"2"]
            raw.send(REQUEST, raw.first_id + 1, "next")
            assert (await receiving).content == "next"
            assert (await peer.ask(DELETE, "value")).code.dotted == "4.05"


async def test_a_connection_without_resources(transport: Any) -> None:
    """Requests get 4.04; what is none gets nothing, and what is no message is a violation."""
    async with open_raw_client(transport) as (raw, channel):
        peer = MessagePeer(raw)
        for content in ([69, b"t"], [0, b"t"], [0, b"t", 5], [0xE0, b"t"]):
            peer.send(content)
        assert (await peer.ask(GET, "value")).code.dotted == "4.04"
        for content in (None, [1], ["GET", b"t"], [1, "t"]):
            peer.send(content)
            assert await receive_violation(peer) == "aiomas_ng.MalformedFrameError"
        assert (await peer.ask(31, "value", token=b"x")).token == b"x"
        assert channel._violations == 4


async def test_an_attached_connection_that_is_lost_already(transport: Any) -> None:
    """Its remote is forgotten at once, and requests over it fail."""
    async with open_raw_client(transport) as (raw, channel), await Context.create_client_context() as context:
        raw.abort()
        await wait_until(lambda: channel.is_closed)
        remote = context.attach(channel)
        assert context.tokenmanager.remotes == []
        with pytest.raises(error.NetworkError):
            await context.request(Message(GET, remote=remote)).response
