"""What programs use of a channel: opening and serving, requests and replies in both directions, one-way
messages, cancellation, and the names and signatures of aiomas."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
import types
from collections.abc import Callable
from typing import Any

import pytest
import trustme

from aiomas_ng import channel as channels
from aiomas_ng import codecs, util
from aiomas_ng.channel import Channel, ChannelProtocol, Limits, Reply, Request
from aiomas_ng.exceptions import (
    CallTimeoutError,
    ChannelClosedError,
    ClosedByPeerError,
    ClosedByUsError,
    RemoteCancelledError,
    RemoteException,
    SerializationError,
)
from tests.faults import (
    CANCEL,
    EXCEPTION,
    FIRST_ID,
    MESSAGE,
    PING,
    PONG,
    REQUEST,
    RESULT,
    SESSION,
    RawPeer,
    accept,
    connect_raw,
    open_link,
    open_raw_client,
    open_raw_server,
    serve,
    until,
)


def echo(content: Any) -> Any:
    return content


# -- Names and signatures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "positional", "keyword"),
    [
        (channels.open_connection, ["addr"], {"loop": None, "codec": None}),
        (channels.start_server, ["addr", "client_connected_cb"], {"loop": None, "codec": None}),
        (ChannelProtocol, ["codec", "client_connected_cb"], {"loop": inspect.Parameter.empty}),
        (Request, ["content", "message_id", "protocol"], {}),
        (Channel, ["protocol", "codec", "transport", "loop"], {}),
        (Request.reply, ["self", "result"], {}),
        (Request.fail, ["self", "exception"], {}),
        (Channel.send, ["self", "content"], {}),
        (Channel.recv, ["self"], {}),
        (Channel.close, ["self"], {}),
        (Channel.get_extra_info, ["self", "name", "default"], {}),
        (ChannelProtocol.connection_made, ["self", "transport"], {}),
        (ChannelProtocol.data_received, ["self", "data"], {}),
        (ChannelProtocol.eof_received, ["self"], {}),
        (ChannelProtocol.connection_lost, ["self", "exc"], {}),
    ],
)
def test_signatures_are_those_of_aiomas(
    function: Callable[..., Any], positional: list[str], keyword: dict[str, Any]
) -> None:
    """Every function takes what that of aiomas takes, under the same names, and what is new is optional."""
    parameters = inspect.signature(function).parameters
    places = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in places] == positional
    for name, default in keyword.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is default
    for name in set(parameters) - set(positional) - set(keyword):
        kind = parameters[name].kind
        assert kind is kind.VAR_KEYWORD or parameters[name].default is not inspect.Parameter.empty


def test_further_arguments_of_open_and_start_go_to_the_loop() -> None:
    """Both functions accept any keyword argument, for the loop's functions."""
    for function in (channels.open_connection, channels.start_server):
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD in kinds


def test_module_has_the_names_of_aiomas() -> None:
    """The constants and classes of aiomas's module are there, and every public name exists."""
    assert (channels.REQUEST, channels.RESULT, channels.EXCEPTION) == (0, 1, 2)
    assert channels.Header.size == 4
    assert channels.DEFAULT_CODEC is codecs.MsgPack
    assert issubclass(ChannelProtocol, asyncio.Protocol)
    assert all(hasattr(channels, name) for name in channels.__all__)


async def test_channel_shows_transport_codec_and_extra_info(transport: Any) -> None:
    """A channel gives its transport and codec, and what the transport knows about the connection."""
    async with open_link(transport, codec=codecs.JSON) as (client, server):
        assert client.transport.get_protocol().channel is client
        assert type(client.codec) is type(server.codec) is codecs.JSON
        assert client.codec is not server.codec
        names = client.get_extra_info("peername"), client.get_extra_info("sockname")
        assert names[0]
        assert client.get_extra_info("no such thing") is None
        assert client.get_extra_info("no such thing", 5) == 5
        assert "open" in repr(client)
    assert "closed: the connection was closed on this side" in repr(client)
    assert names == (client.get_extra_info("peername"), client.get_extra_info("sockname"))


async def test_the_loop_may_be_named(transport: Any) -> None:
    """Functions of this package and of aiomas take the loop that is running."""
    loop = asyncio.get_running_loop()
    async with open_link(transport, loop=loop) as (client, server):
        serve(server, echo)
        assert await client.send(1) == 1


async def test_each_connection_of_a_server_has_a_codec_of_its_own(transport: Any) -> None:
    """What is added to the codec of one connection is unknown to the others."""
    made: list[codecs.Codec] = []

    def make_codec() -> codecs.Codec:
        made.append(codecs.MsgPack())
        return made[-1]

    serving: list[Channel] = []
    async with await channels.start_server(transport.address(), serving.append, codec=make_codec) as server:
        clients = [await channels.open_connection(server.url) for _ in range(2)]
        for client in clients:
            reply = client.send(0)
            await until(lambda: len(serving) == 2)
            await (await serving[clients.index(client)].recv()).reply(1)
            assert await reply == 1
        assert len({id(channel.codec) for channel in serving}) == 2
        assert made[0] not in [
            channel.codec for channel in serving
        ]  # it only showed that a codec can be made
        for channel in (*clients, *serving):
            await channel.close()


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    @classmethod
    def __serializer__(cls) -> tuple[Any, ...]:
        return cls, lambda point: point.x, cls


async def test_extra_serializers_are_added_on_both_sides(transport: Any) -> None:
    """Callables that return the arguments of add_serializer let types of one's own cross the channel."""
    async with open_link(transport, extra_serializers=[Point.__serializer__]) as (client, server):
        serve(server, echo)
        assert (await client.send(Point(3))).x == 3


async def test_a_codec_that_cannot_be_made_fails_before_anything_is_dialled(transport: Any) -> None:
    """A missing package of a codec is reported by the call itself, not by the first connection."""

    def make_codec() -> codecs.Codec:
        raise ImportError("pip install it")

    with pytest.raises(ImportError):
        await channels.open_connection(("127.0.0.1", 1), codec=make_codec)
    with pytest.raises(ImportError):
        await channels.start_server(transport.address(), print, codec=make_codec)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": codecs.JSON()},
        {"codec": "json"},
        {"extra_serializers": Point.__serializer__},
        {"extra_serializers": [Point]},
        {"extra_serializers": [lambda: (1, 2)]},
    ],
)
async def test_options_of_the_wrong_kind(options: dict[str, Any]) -> None:
    """Mistakes with codecs and serializers are reported by the call itself, not by the first connection."""
    with pytest.raises(TypeError, match=next(iter(options))):
        await channels.open_connection(("127.0.0.1", 1), **options)
    with pytest.raises(TypeError, match=next(iter(options))):
        await channels.start_server(("127.0.0.1", 0), print, **options)


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server at localhost and of its client."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_tls() -> None:
    """With TLS contexts requests go both ways, the certificate can be seen, and closing is orderly."""
    server_context, client_context = tls_contexts()
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    async with await channels.start_server(
        ("localhost", 0), accepted.set_result, ssl=server_context
    ) as server:
        client = await channels.open_connection(server.url, ssl=client_context)
        serve(client, echo)
        serving = await accepted
        serve(serving, echo)
        big = bytes(2**20)
        assert await asyncio.gather(client.send(big), serving.send(big)) == [big, big]
        assert client.get_extra_info("peercert")
        pending = serving.send("wait")
        await client.close()
        with contextlib.suppress(ClosedByPeerError):
            await pending
        await serving.close()


# -- Requests and replies --------------------------------------------------------------------------


async def test_requests_go_in_both_directions(transport: Any) -> None:
    """Both ends receive requests with recv() and answer them, also with an exception."""
    async with open_link(transport) as ends:
        for near, far in (ends, reversed(ends)):
            reply = near.send(["ohai", {"a": 1}])
            request = await far.recv()
            assert request.content == ("ohai", {"a": 1})
            assert not request.is_oneway
            await request.reply(["hi", None])
            assert await reply == ("hi", None)

            reply = near.send("boom")
            await (await far.recv()).fail(ZeroDivisionError("no"))
            with pytest.raises(RemoteException) as caught:
                await reply
            assert (caught.value.type_name, caught.value.message) == ("ZeroDivisionError", "no")
            assert "ZeroDivisionError: no" in caught.value.remote_traceback
            # A client of a Unix socket has no name.
            own = near.get_extra_info("sockname")
            assert caught.value.origin == (near.get_extra_info("peername") or own)


async def test_send_need_not_be_awaited(transport: Any) -> None:
    """send() sends at once; the reply is a future with result(), and what is sent may change afterwards."""
    async with open_link(transport) as (client, server):
        serve(server, echo)
        content = [1]
        first = client.send(content)
        content.append(2)
        second = client.send(content)
        assert isinstance(first, asyncio.Future)
        await asyncio.gather(first, second)
        assert (first.result(), second.result()) == ((1,), (1, 2))


async def test_replies_may_come_in_any_order(transport: Any) -> None:
    """Each reply goes to its own request."""
    async with open_link(transport) as (client, server):
        replies = [client.send(i) for i in range(10)]
        requests = [await server.recv() for _ in range(10)]
        assert [request.content for request in requests] == list(range(10))
        for request in reversed(requests):
            await request.reply(request.content * 2)
        assert [await reply for reply in replies] == [i * 2 for i in range(10)]


async def test_calls_inside_of_calls(transport: Any) -> None:
    """A handler may call back on the same channel while its own caller waits, to some depth."""
    async with open_link(transport) as (client, server):

        def make(channel: Channel) -> Callable[[int], Any]:
            async def handle(depth: int) -> int:
                return 0 if not depth else 1 + await channel.send(depth - 1)

            return handle

        serve(client, make(client))
        serve(server, make(server))
        assert await client.send(20) == 20


async def test_handlers_that_return_futures_and_odd_awaitables(transport: Any) -> None:
    """The result of a handler is awaited whatever kind of awaitable it is; a plain value is sent as it is."""

    class Odd:
        def __await__(self) -> Any:
            return asyncio.sleep(0, "odd").__await__()

    @types.coroutine
    def generator() -> Any:
        yield from asyncio.sleep(0).__await__()
        return "generator"

    async def coroutine() -> str:
        await asyncio.sleep(0)
        return "coroutine"

    def future() -> Any:
        made = asyncio.get_running_loop().create_future()
        made.set_result("future")
        return made

    kinds: dict[str, Callable[[], Any]] = {
        "odd": Odd,
        "generator": generator,
        "coroutine": coroutine,
        "future": future,
        "task": lambda: asyncio.get_running_loop().create_task(coroutine()),
        "plain": lambda: "plain",
    }
    async with open_link(transport) as (client, server):
        serve(server, lambda name: kinds[name]())
        results = {name: await client.send(name) for name in kinds}
    assert results == {name: name if name != "task" else "coroutine" for name in kinds}


async def test_a_result_that_cannot_be_encoded_becomes_an_error_of_the_call(transport: Any) -> None:
    """The caller learns that the result could not cross the wire; the channel goes on."""
    async with open_link(transport) as (client, server):
        reply = client.send("x")
        await (await server.recv()).reply(object())
        with pytest.raises(RemoteException, match="No serializer found") as caught:
            await reply
        assert isinstance(caught.value, ValueError)
        serve(server, echo)
        assert await client.send(1) == 1


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_request_that_cannot_be_encoded(transport: Any, is_first: bool) -> None:
    """send() raises and has sent nothing; the peer still recognizes us, so cancellation works afterwards."""
    async with open_link(transport) as (client, server):
        cancelled = asyncio.Event()

        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        serve(server, lambda content: wait() if content == "wait" else content)
        if not is_first:
            assert await client.send(1) == 1
        with pytest.raises(SerializationError):
            client.send(object())
        with pytest.raises(SerializationError):
            client.post(object())
        assert await client.send(1) == 1
        waiting = client.send("wait")
        assert await client.send(2) == 2
        waiting.cancel()
        await cancelled.wait()


async def test_a_serializer_that_sends(transport: Any) -> None:
    """A request that cannot be encoded, while encoding it has sent another, withdraws only itself."""
    async with open_link(transport) as (client, server):
        serve(server, echo)
        inner: list[Reply] = []

        def serialize(point: Point) -> Any:
            inner.append(client.send("inner"))
            raise ValueError("no")

        client.codec.add_serializer(Point, serialize, Point)
        with pytest.raises(SerializationError):
            client.send(Point(1))
        assert await client.send("outer") == "outer"
        assert await inner[0] == "inner"


async def test_a_codec_of_ones_own_that_raises_anything(transport: Any) -> None:
    """Errors of a codec that is not ours become SerializationError and RemoteSerializationError."""

    class Strict(codecs.JSON):
        def encode(self, data: Any) -> bytes:
            if "secret" in repr(data):
                raise KeyError("secret")
            return super().encode(data)

    async with open_link(transport, codec=Strict) as (client, server):
        serve(server, lambda content: "se" + "cret" if content == "tell" else content)
        with pytest.raises(SerializationError, match="cannot encode 'secret'"):
            client.send("secret")
        assert await client.send("open") == "open"


async def test_replying_twice_harms_nobody(transport: Any) -> None:
    """The second reply to a request is dropped by the caller."""
    async with open_link(transport) as (client, server):
        reply = client.send("x")
        request = await server.recv()
        await request.reply(1)
        await request.reply(2)
        await request.fail(ValueError("3"))
        assert await reply == 1
        serve(server, echo)
        assert await client.send("y") == "y"


# -- recv ------------------------------------------------------------------------------------------


async def test_recv_may_be_cancelled_without_losing_a_request(transport: Any) -> None:
    """Cancelling a recv(), at whatever moment, leaves the request for the next one."""
    async with open_link(transport) as (client, server):
        receiving = asyncio.ensure_future(server.recv())
        await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        assert receiving.cancelled()

        receiving = asyncio.ensure_future(server.recv())
        await asyncio.sleep(0)
        reply = client.send("x")
        await until(lambda: server._inbox)
        receiving.cancel()  # at the moment when the request is there and the task does not know yet
        await asyncio.wait([receiving])
        request = await server.recv() if receiving.cancelled() else receiving.result()
        await request.reply("y")
        assert await reply == "y"


async def test_a_second_recv_is_refused(transport: Any) -> None:
    """Two tasks cannot wait in recv() at once; the first one is not disturbed."""
    async with open_link(transport) as (client, server):
        receiving = asyncio.ensure_future(server.recv())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await server.recv()
        reply = client.send("x")
        await (await receiving).reply("y")
        assert await reply == "y"


async def test_recv_is_refused_where_a_service_answers(transport: Any) -> None:
    """Requests that are served by a handler cannot be received as well."""
    async with open_link(transport) as (_, server):
        serve(server, echo)
        with pytest.raises(RuntimeError):
            await server.recv()


async def test_requests_that_arrived_are_received_after_the_end(transport: Any) -> None:
    """recv() gives what had arrived when the peer closed, then raises; replying raises as well."""
    async with open_link(transport) as (client, server):
        replies = [client.send(i) for i in range(2)]
        await client.close()
        assert [type(reply.exception()) for reply in replies] == [ClosedByUsError] * 2
        first = await server.recv()
        await until(lambda: server.is_closed)
        assert first.content == 0
        second = await server.recv()
        assert second.content == 1
        with pytest.raises(ClosedByPeerError):
            await server.recv()
        with pytest.raises(ChannelClosedError):
            await second.reply(1)
        with pytest.raises(ChannelClosedError):
            await second.fail(ValueError())


async def test_handler_that_comes_late_gets_what_waits(transport: Any) -> None:
    """Requests that arrived before there was a handler are served by it."""
    async with open_link(transport) as (client, server):
        replies = [client.send(i) for i in range(3)]
        await until(lambda: len(server._inbox) == 3)
        serve(server, echo)
        assert await asyncio.gather(*replies) == [0, 1, 2]


# -- One-way messages ------------------------------------------------------------------------------


async def test_one_way_messages_are_in_order_with_requests(transport: Any) -> None:
    """post() needs no reply, keeps the order with requests, and replying to it does nothing."""
    async with open_link(transport) as (client, server):
        reply = client.send("hello")
        await (await server.recv()).reply(None)
        await reply
        client.post(1)
        reply = client.send(2)
        client.post(3)
        requests = [await server.recv() for _ in range(3)]
        assert [(r.content, r.is_oneway) for r in requests] == [(1, True), (2, False), (3, True)]
        for request in requests:
            await request.reply(None)
            await request.fail(ValueError("nobody sees this"))
        assert await reply is None
        assert not client._exchange.calls


async def test_one_way_message_to_a_peer_that_is_not_known_yet(transport: Any) -> None:
    """It goes as a request, whose result or error is dropped without a trace."""
    async with open_link(transport) as (client, server):
        client.post("first")
        request = await server.recv()
        assert (request.content, request.is_oneway) == ("first", False)
        await request.fail(ValueError("dropped"))
        await until(lambda: not client._exchange.calls)
    async with open_link(transport) as (client, server):
        client.post("never answered")
        await server.recv()


async def test_one_way_messages_to_an_old_peer_are_requests(transport: Any) -> None:
    """A peer that knows the types 0 to 2 gets nothing else, and its replies are dropped."""
    async with open_raw_server(transport, "json") as (client, peer):
        for content in ("a", "b"):
            client.post(content)
            msg_type, msg_id, received = await peer.recv()
            assert (msg_type, received) == (REQUEST, content)
            peer.send(EXCEPTION, msg_id, ["ValueError", "x"])
        client.post("for another layer", lane=1)
        assert await peer.recv() == [MESSAGE, 1, "for another layer"], "who uses it knows the peer"


async def test_errors_of_one_way_calls_are_logged(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for them, so they show up where they happen."""
    async with open_link(transport) as (client, server):

        async def fail(content: Any) -> Any:
            if content == "fail":
                raise ValueError("in vain")
            return content

        serve(server, fail)
        await client.send("hello")
        client.post("fail")
        await client.send("again")
    assert "a one-way call from" in caplog.text
    assert "in vain" in caplog.text


async def test_one_way_call_runs_on_after_its_sender_has_left(transport: Any) -> None:
    """A sender may post and close; the work is done nevertheless, and a close on the side of the work stops
    it."""
    async with open_link(transport) as (client, server):
        go = asyncio.Event()
        done: list[str] = []

        async def work(name: str) -> None:
            try:
                await go.wait()
                done.append(name)
            except asyncio.CancelledError:
                done.append(f"{name} cancelled")
                raise

        serve(server, lambda content: content if content == "hello" else work(content))
        await client.send("hello")
        client.post("a")
        await client.close()
        await until(lambda: server.is_closed)
        go.set()
        await until(lambda: done)
        assert done == ["a"]
    async with open_link(transport) as (client, server):
        go.clear()
        serve(server, lambda content: content if content == "hello" else work(content))
        await client.send("hello")
        client.post("b")
        await client.send("hello")
        await server.close()
        assert done == ["a", "b cancelled"]


# -- Cancellation and timeouts ---------------------------------------------------------------------


class Work:
    """Handlers that wait, and what became of them."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.count = 0

    def __call__(self, content: Any) -> Any:
        return self.wait() if content == "wait" else content

    async def wait(self) -> None:
        self.count += 1
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.mark.parametrize("way", ["reply", "task", "timeout", "wait_for", "aclose"])
async def test_giving_up_a_call_cancels_the_work_at_the_peer(transport: Any, way: str) -> None:
    """However a call ends early, its handler is cancelled, and the channel is as good as before."""
    async with open_link(transport) as (client, server):
        work = Work()
        serve(server, work)
        assert await client.send("hello") == "hello"

        async def call() -> Any:
            return await client.send("wait")

        if way == "timeout":
            reply: Any = client.send("wait", timeout=0.01)
        elif way in ("reply", "aclose"):
            reply = client.send("wait")
        elif way == "task":
            reply = asyncio.ensure_future(call())
        else:
            reply = asyncio.ensure_future(asyncio.wait_for(client.send("wait"), 0.01))
        await work.started.wait()
        if way in ("reply", "task"):
            assert reply.cancel()
        elif way == "aclose":
            await reply.aclose()
        (error,) = await asyncio.gather(reply, return_exceptions=True)
        if way == "timeout":
            assert isinstance(error, CallTimeoutError)
            assert str(error) == "the request was not answered within 0.01 s"
        assert isinstance(error, TimeoutError if way in ("timeout", "wait_for") else asyncio.CancelledError)
        await work.cancelled.wait()
        assert not client._exchange.calls
        assert await client.send("again") == "again"
        assert not server._exchange.jobs
        assert not server._running


async def test_cancelling_before_the_peer_is_known_reaches_it_as_soon_as_it_is(transport: Any) -> None:
    """The first call of a connection can be cancelled too, before anything of the peer has arrived."""
    async with open_link(transport) as (client, server):
        work = Work()
        serve(server, work)
        reply = client.send("wait")
        reply.cancel()
        await work.cancelled.wait()
        assert work.started.is_set()
        assert await client.send("again") == "again"


async def test_request_and_its_cancellation_in_one_read(transport: Any) -> None:
    """A handler that is cancelled before it began never runs, and leaves nothing behind."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        work = Work()
        futures: list[asyncio.Future[None]] = []

        def handle(content: Any) -> Any:
            if content == "future":
                futures.append(asyncio.get_running_loop().create_future())
                return futures[0]
            return work(content)

        serve(server, handle)
        for content in ("wait", "future"):
            msg_id = peer.request("hello")
            peer.request(content)
            peer.send(CANCEL, msg_id + 1)
            await peer.recv_reply(msg_id)
        await peer.call("still there")
        assert work.count == 0
        assert futures[0].cancelled()
        assert not server._running
        assert not server._exchange.jobs


async def test_cancelling_a_request_that_was_not_taken_yet(transport: Any) -> None:
    """A request that nobody has received is dropped; another one stays."""
    async with open_link(transport) as (client, server):
        hello = client.send("hello")
        await (await server.recv()).reply(None)
        await hello
        first, second = client.send(1), client.send(2)
        first.cancel()
        third = client.send(3)
        await until(lambda: 3 in [content for content, _ in server._inbox.values()])
        requests = [await server.recv(), await server.recv()]
        assert [request.content for request in requests] == [2, 3]
        for request in requests:
            await request.reply(request.content)
        assert [await second, await third] == [2, 3]


@pytest.mark.parametrize("early", ["cancel", "timeout"])
async def test_late_replies_harm_no_other_call(transport: Any, early: str) -> None:
    """A call that was cancelled or timed out and is answered late does not disturb the others."""
    async with open_raw_server(transport) as (client, peer):
        given_up = client.send("slow", timeout=0.01 if early == "timeout" else None)
        other = client.send("other")
        slow_id, other_id = (await peer.recv())[1], (await peer.recv())[1]
        if early == "cancel":
            given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        peer.send(RESULT, slow_id, "late")
        peer.send(EXCEPTION, slow_id, ["ValueError", "even later"])
        peer.send(RESULT, other_id, "in time")
        assert await other == "in time"
        following = client.send("following")
        peer.send(RESULT, (await peer.recv())[1], "fine")
        assert await following == "fine"


async def test_reply_in_time_stops_the_timer(transport: Any) -> None:
    """A call with a timeout that is answered leaves no timer behind that keeps the program waiting."""
    async with open_link(transport) as (client, server):
        serve(server, echo)
        reply = client.send(1, timeout=1000)
        assert await reply == 1
        await asyncio.sleep(0)
        assert reply._timer is None
        reply.expire_after(0.001)  # an ended reply does not expire any more
        assert reply._timer is None
        assert not reply.cancel()


async def test_work_that_is_cancelled_at_the_peer_ends_the_call(transport: Any) -> None:
    """If not the caller but somebody at the peer cancels the work, the caller is told."""
    async with open_link(transport) as (client, server):
        tasks: list[asyncio.Task[Any]] = []

        async def wait(_: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            await asyncio.Event().wait()

        async def cancel_itself(_: Any) -> None:
            raise asyncio.CancelledError

        handlers = {"wait": wait, "cancel": cancel_itself}
        serve(server, lambda name: handlers[name](name))
        reply = client.send("wait")
        await until(lambda: tasks)
        tasks[0].cancel()
        with pytest.raises(RemoteCancelledError):
            await reply
        with pytest.raises(RemoteCancelledError):
            await client.send("cancel")


async def test_cleanup_of_a_cancelled_handler_is_not_cancelled(transport: Any) -> None:
    """A handler is cancelled once; what it awaits in its ``finally`` ends, and close() waits for it."""
    async with open_link(transport) as (client, server):
        events: list[str] = []

        async def wait(_: Any) -> None:
            events.append("begun")
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                events.append("cleaned up")

        serve(server, lambda content: content if content == "hello" else wait(content))
        await client.send("hello")
        reply = client.send("wait")
        await client.send("hello")
        reply.cancel()
        await until(lambda: any(job._is_cancelled for job in server._running))
        await asyncio.gather(server.close(), server.close())
        assert events == ["begun", "cleaned up"]


async def test_error_of_a_handler_that_was_given_up_is_logged(
    transport: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What a handler raises when nobody waits for it any more is not lost."""
    async with open_link(transport) as (client, server):

        async def wait(_: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("cannot clean up")

        serve(server, lambda content: content if content == "hello" else wait(content))
        await client.send("hello")
        reply = client.send("wait")
        await client.send("hello")
        reply.cancel()
        await client.send("hello")
    assert "a call that was given up" in caplog.text
    assert "cannot clean up" in caplog.text


async def test_base_exception_in_a_handler(transport: Any) -> None:
    """An error that is no ``Exception`` is told to the caller, as any other; the connection goes on."""

    class Stop(BaseException):
        pass

    tasks: list[asyncio.Task[Any] | None] = []

    async def leave(_: Any) -> None:
        tasks.append(asyncio.current_task())
        raise Stop("now")

    async with open_link(transport) as (client, server):
        serve(server, leave)
        with pytest.raises(RemoteException) as caught:
            await client.send("x")
        assert (caught.value.type_name, caught.value.message) == ("Stop", "now")
        assert tasks[0] is not None
        assert tasks[0].exception() is None  # nobody would retrieve it
        with pytest.raises(RemoteException):
            await client.send("y")


# -- Old peers and control frames ------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_old_client_sees_types_0_to_2_only(transport: Any, codec: str) -> None:
    """A client in the manner of mosaik is served, calls and is called, and never gets a frame it does not
    know."""
    async with open_raw_client(transport, codec) as (peer, server):
        serve(server, lambda content: 1 / 0 if content == "boom" else content)
        assert await peer.call(["step", [1], {}]) == ["step", [1], {}]
        failure = await peer.recv_reply(peer.request("boom"))
        assert failure[0] == EXCEPTION
        assert failure[2][:2] == ["ZeroDivisionError", "division by zero"]
        assert all(isinstance(part, str) for part in failure[2])

        call = server.send("get_progress")
        msg_type, msg_id, content = await peer.recv()
        assert (msg_type, content) == (REQUEST, "get_progress")
        peer.send(RESULT, msg_id, 50)
        assert await call == 50

        call = server.send("fail")
        peer.send(EXCEPTION, (await peer.recv())[1], "Traceback as aiomas sends it")
        with pytest.raises(RemoteException, match="Traceback as aiomas"):
            await call

        cancelled = server.send("too slow")
        assert (await peer.recv())[0] == REQUEST
        cancelled.cancel()
        server.post("one-way")
        assert (await peer.recv())[0] == REQUEST
        assert await peer.call("end") == "end"
        assert not peer.frames


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_old_server_sees_types_0_to_2_only(transport: Any, codec: str) -> None:
    """To a server that has not shown that it is one of ours only requests are sent."""
    async with open_raw_server(transport, codec) as (client, peer):
        replies = [client.send(i) for i in range(3)]
        replies[0].cancel()
        with pytest.raises(CallTimeoutError):
            await client.send("slow", timeout=0.001)
        client.post("one-way")
        received = [await peer.recv() for _ in range(5)]
        assert [frame[0] for frame in received] == [REQUEST] * 5
        for _, msg_id, content in received:
            peer.send(RESULT, msg_id, content)
        assert [await reply for reply in replies[1:]] == [1, 2]
        assert not peer.frames


async def test_peers_recognize_each_other_by_the_first_request(transport: Any) -> None:
    """A first request with our first id is answered by a SESSION frame, once; after it CANCEL is understood
    and sent."""
    async with open_raw_client(transport, greets=True) as (peer, server):
        serve(server, echo)
        msg_id = peer.request("hello")
        assert msg_id == FIRST_ID
        frame = await peer.recv()
        assert frame[:2] == [SESSION, 0]
        assert frame[2]["version"] == 1
        assert await peer.recv() == [RESULT, msg_id, "hello"]
        peer.send(REQUEST, FIRST_ID, "hello")
        assert await peer.recv() == [RESULT, FIRST_ID, "hello"]
        call = server.send("x")
        assert await peer.recv() == [REQUEST, FIRST_ID, "x"]
        call.cancel()
        assert await peer.recv() == [CANCEL, FIRST_ID, None]
        server.post("y")
        assert await peer.recv() == [MESSAGE, 0, "y"]


async def test_abandoned_calls_are_cancelled_when_the_peer_is_recognized(transport: Any) -> None:
    """A SESSION frame makes up for the CANCEL frames that could not be sent before."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        assert (await peer.recv())[:2] == [REQUEST, FIRST_ID]
        reply.cancel()
        peer.send(SESSION, 0, {"version": 1})
        assert await peer.recv() == [CANCEL, FIRST_ID, None]


async def test_ids_may_be_texts(transport: Any) -> None:
    """A client may number its requests by strings; they are echoed exactly."""
    async with open_raw_client(transport, "json") as (peer, server):
        serve(server, echo)
        peer.send(REQUEST, "ünïcode-1", "x")
        assert await peer.recv() == [RESULT, "ünïcode-1", "x"]


async def test_ping_is_answered(transport: Any) -> None:
    """Every PING gets a PONG with its number."""
    async with open_raw_client(transport) as (peer, _):
        for number in (7, 8):
            peer.send(PING, number)
            assert await peer.recv() == [PONG, number, None]
        peer.send(PONG, 9)
        peer.send(PING, 10)
        assert await peer.recv() == [PONG, 10, None]


# -- The end of a connection -----------------------------------------------------------------------


@pytest.mark.parametrize("by_us", [True, False])
async def test_calls_fail_when_the_connection_ends(transport: Any, by_us: bool) -> None:
    """Calls that wait fail with an error that says who closed and that they were sent; later ones not."""
    expected = ClosedByUsError if by_us else ClosedByPeerError
    async with open_link(transport) as (client, server):
        replies = [client.send(i) for i in range(3)]
        await server.recv()
        await (client if by_us else server).close()
        done = await asyncio.gather(*replies, return_exceptions=True)
        assert [type(error) for error in done] == [expected] * 3
        assert len({id(error) for error in done}) == 3
        assert all(isinstance(error, ConnectionResetError) and error.was_sent for error in done)
        assert "may have executed" in str(done[0])
        for call in (client.send, client.post):
            with pytest.raises(expected) as caught:
                call("late")
            assert caught.value.was_sent is False
        with pytest.raises(expected):
            await client.recv()
        with pytest.raises(expected):
            await client.drain()
        assert client.is_closed


async def test_a_broken_connection_names_the_cause(transport: Any) -> None:
    """A reset by the peer shows as ClosedByPeerError, with the transport's error as its cause."""
    async with open_raw_server(transport) as (client, peer):
        reply = client.send("x")
        await peer.recv()
        peer.abort()
        with pytest.raises(ClosedByPeerError):
            await reply


async def test_the_layers_above_learn_of_the_end(transport: Any) -> None:
    """Who asked before is told when the connection ends, once; who asks afterwards is told at once."""
    async with open_link(transport) as (client, server):
        errors: list[BaseException] = []
        server._when_lost(errors.append)
        await client.close()
        await until(lambda: errors)
        server._when_lost(errors.append)
        await server.close()
        assert [type(error) for error in errors] == [ClosedByPeerError] * 2


async def test_close_may_be_called_any_number_of_times(transport: Any) -> None:
    """Twice, at the same time, and after the peer has closed."""
    async with open_link(transport) as (client, server):
        await asyncio.gather(client.close(), client.close(), server.close())
        await client.close()
        await server.close()


async def test_close_cancels_handlers_and_waits_for_them(transport: Any) -> None:
    """After close() no handler of the channel runs any more, and nobody gets a reply."""
    async with open_link(transport) as (client, server):
        work = Work()
        serve(server, work)
        reply = client.send("wait")
        await work.started.wait()
        await server.close()
        assert work.cancelled.is_set()
        with pytest.raises(ClosedByPeerError):
            await reply


async def test_handler_may_close_its_own_channel(transport: Any) -> None:
    """close() inside of a handler does not cancel or wait for that handler, also from a task it has started;
    others are cancelled."""
    async with open_link(transport) as (client, server):
        work = Work()
        ended = asyncio.Event()

        async def close(_: Any) -> str:
            await asyncio.ensure_future(server.close())
            await server.close()
            ended.set()
            return "nobody hears this"

        serve(server, lambda content: close(content) if content == "close" else work(content))
        replies = [client.send("wait"), client.send("close")]
        await ended.wait()
        assert work.cancelled.is_set()
        errors = await asyncio.gather(*replies, return_exceptions=True)
        assert [type(error) for error in errors] == [ClosedByPeerError] * 2


async def test_close_does_not_wait_for_ever_for_a_handler_that_ignores_cancellation(
    transport: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After some time close() returns nevertheless, and says so in the log."""
    monkeypatch.setattr("aiomas_ng._io.connection.CLOSE_GRACE", 0.02)
    async with open_link(transport) as (client, server):
        begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def ignore(_: Any) -> None:
            begun.set()
            while not go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go.wait()
            ended.set()

        serve(server, ignore)
        reply = client.send("x")
        await begun.wait()
        try:
            await server.close()
            assert "goes on although" in caplog.text
        finally:
            go.set()
        await ended.wait()
        await until(lambda: not server._running)
        with pytest.raises(ClosedByPeerError):
            await reply


async def test_replies_of_one_read_are_written_before_a_close_in_it(transport: Any) -> None:
    """A plain handler that ends the connection does not take the replies with it that were due before."""
    async with open_raw_client(transport) as (peer, server):

        def handle(content: Any) -> Any:
            if content == "close":
                server._set_error(ClosedByUsError("enough"))
            return content

        serve(server, handle)
        peer.request("first")
        peer.request("close")
        peer.request("not executed")
        assert (await peer.recv())[2] == "first"
        with pytest.raises(EOFError):
            await peer.recv()


async def test_error_of_a_handler_that_has_ended_the_connection(transport: Any) -> None:
    """Nobody can be told of it any more, and nothing is written to a closed connection."""
    async with open_link(transport) as (client, server):

        def handle(_: Any) -> None:
            server._set_error(ClosedByUsError("enough"))
            raise ValueError("too late")

        serve(server, handle)
        with pytest.raises(ClosedByPeerError):
            await client.send("x")


# -- The callback of a server ----------------------------------------------------------------------


async def test_client_connected_cb_may_be_a_coroutine(transport: Any) -> None:
    """A coroutine function runs in a task that close() waits for, and may end with the connection."""
    ended = asyncio.Event()
    serving: list[Channel] = []

    async def connected(channel: Channel) -> None:
        serving.append(channel)
        try:
            while True:
                request = await channel.recv()
                await request.reply(request.content)
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with await channels.start_server(transport.address(), connected) as server:
        client = await channels.open_connection(server.url)
        assert await client.send(1) == 1
        await client.close()
        await ended.wait()
        await serving[0].close()


async def test_client_connected_cb_may_close_its_channel(transport: Any) -> None:
    """A callback that closes the channel does not wait for itself."""

    async def connected(channel: Channel) -> None:
        await (await channel.recv()).reply("bye")
        await channel.close()

    async with await channels.start_server(transport.address(), connected) as server:
        client = await channels.open_connection(server.url)
        assert await client.send("x") == "bye"
        with pytest.raises(ClosedByPeerError):
            await client.recv()
        await client.close()


@pytest.mark.parametrize("is_coroutine", [True, False])
async def test_errors_in_client_connected_cb_close_that_connection(
    transport: Any, is_coroutine: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, the client is not left hanging, and the server serves the next one."""
    serving: list[Channel] = []

    def connected(channel: Channel) -> None:
        serving.append(channel)
        if len(serving) == 1:
            raise ValueError("not you")
        serve(channel, echo)

    async def connected_async(channel: Channel) -> None:
        await asyncio.sleep(0)
        connected(channel)

    callback = connected_async if is_coroutine else connected
    async with await channels.start_server(transport.address(), callback) as server:
        refused = await channels.open_connection(server.url)
        with pytest.raises(ClosedByPeerError):
            await refused.recv()
        assert "client_connected_cb failed" in caplog.text
        assert "not you" in caplog.text
        assert "ClosedByUsError" in repr(serving[0]._error)
        client = await channels.open_connection(server.url)
        assert await client.send(1) == 1
        for channel in (refused, client, *serving):
            await channel.close()


async def test_end_of_another_channel_in_client_connected_cb_is_an_error(
    transport: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the end of the callback's own channel is the usual end; that of another leaves nobody hanging."""
    async with open_link(transport) as (other, _):

        async def connected(channel: Channel) -> None:
            await other.recv()

        async with await channels.start_server(transport.address(), connected) as server:
            client = await channels.open_connection(server.url)
            await other.close()
            with pytest.raises(ClosedByPeerError):
                await client.recv()
            await client.close()
    assert "client_connected_cb failed" in caplog.text


async def test_transport_closed_by_hand(transport: Any) -> None:
    """Programs that close the transport themselves see the same end."""
    async with open_link(transport) as (client, server):
        reply = client.send("x")
        client.transport.close()
        with pytest.raises(ChannelClosedError):
            await reply
        assert (await server.recv()).content == "x"
        with pytest.raises(ClosedByPeerError):
            await server.recv()


# -- A pair without a server -----------------------------------------------------------------------


async def test_open_pair() -> None:
    """Both ends of a pair call each other by the given name and are channels like any other."""
    loop = asyncio.get_running_loop()
    near, far = await channels.open_pair("me", loop=loop, codec=codecs.JSON)
    serve(near, echo)
    serve(far, echo)
    assert near.get_extra_info("peername") == far.get_extra_info("peername") == "me"
    assert await near.send((1,)) == await far.send((1,)) == [1]
    await near.close()
    await far.close()


async def test_open_pair_has_limits_and_serializers() -> None:
    """What is given to a pair holds for both ends."""
    loop = asyncio.get_running_loop()
    near, far = await channels.open_pair(
        "me", loop=loop, limits=Limits(calls=1), extra_serializers=[Point.__serializer__]
    )
    serve(far, echo)
    assert (await near.send(Point(4))).x == 4
    assert near._limits.calls == far._limits.calls == 1
    await near.close()
    await far.close()


def test_synchronous_programs_use_the_current_loop(transport: Any) -> None:
    """Without a running loop and with ``loop=`` of a program's own, everything runs in that loop."""

    async def program(loop: asyncio.AbstractEventLoop) -> Any:
        async with accept(transport, loop=loop) as (server, accepted):
            peer = RawPeer()
            await connect_raw(server.url, peer)
            serve(await accepted, echo)
            result = await peer.call("x")
            peer.abort()
            return result

    loop = util.get_loop()
    assert loop.run_until_complete(program(loop)) == "x"
