"""Peers that are not ours: they know the frame types 0 to 2, and write tracebacks as strings, as aiomas does.

The peers here are written by hand on plain sockets, and share no code with the package.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from aiomas_ng import JSON, Agent, Container, expose, rpc
from aiomas_ng.exceptions import (
    AgentNotFoundError,
    CallTimeoutError,
    ClosedByPeerError,
    RemoteException,
    StreamError,
)

REQUEST, RESULT, EXCEPTION = 0, 1, 2
HOST = ("127.0.0.1", 0)
TRACEBACK = "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\nKeyError: 'é'\n"


class ForeignPeer:
    """One end of a connection as a program in another language would have it.

    Every frame that it gets is kept in ``seen``.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seen: list[Any] = []

    def write(self, *frame: Any, **style: Any) -> None:
        text = json.dumps(frame, **style).encode()
        self.writer.write(len(text).to_bytes(4, "big") + text)

    async def read(self) -> Any:
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        self.seen.append(json.loads(await self.reader.readexactly(size)))
        return self.seen[-1]

    async def call(self, number: int | str, path: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function, and return type and content of the next frame, which must be the reply."""
        self.write(REQUEST, number, [path, args, kwargs])
        kind, reply_to, content = await self.read()
        assert reply_to == number
        return [kind, content]

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def assert_nothing_more(self) -> None:
        """Half-close the connection; assert that nothing else comes, and that all was of the old types."""
        self.writer.write_eof()
        assert await self.reader.read() == b""
        assert all(len(frame) == 3 and frame[0] in (REQUEST, RESULT, EXCEPTION) for frame in self.seen)
        await self.close()


class Calculator:
    """A service of ours."""

    router = rpc.Service(["deep"])

    def __init__(self) -> None:
        self.deep = rpc.ServiceDict({"name": expose(lambda: "deep")})
        self.was_cancelled = asyncio.Event()
        self.is_waiting = asyncio.Event()

    @expose
    def add(self, a: Any, b: Any = 1) -> Any:
        return a + b

    @expose
    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    @expose
    async def add_later(self, a: Any, turns: int) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return a

    @expose
    async def wait(self) -> None:
        self.is_waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.was_cancelled.set()

    @expose
    def fail(self) -> None:
        raise KeyError("é")

    @expose
    async def count(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number


@contextlib.asynccontextmanager
async def foreign_client(
    service: Any = None, addr: Any = HOST, **kwargs: Any
) -> AsyncIterator[tuple[ForeignPeer, rpc.RpcClient]]:
    """A foreign client of a server of ours, and our end of the connection to it."""
    ends: asyncio.Queue[rpc.RpcClient] = asyncio.Queue()
    service = service or Calculator()
    async with await rpc.start_server(addr, service, ends.put_nowait, codec=JSON, **kwargs) as server:
        place = server.address.place
        if isinstance(place, str):
            foreign = ForeignPeer(*await asyncio.open_unix_connection(place))
        else:
            foreign = ForeignPeer(*await asyncio.open_connection(*place))
        end = await ends.get()
        try:
            yield foreign, end
        finally:
            await foreign.close()
            await end.close()


@contextlib.asynccontextmanager
async def foreign_server(
    serve: Callable[[ForeignPeer], Awaitable[None]],
) -> AsyncIterator[tuple[tuple[str, int], list[ForeignPeer]]]:
    """A foreign server, and its ends of the connections that were made."""
    peers: list[ForeignPeer] = []
    tasks: list[asyncio.Task[None]] = []

    async def run(peer: ForeignPeer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await serve(peer)
        await peer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(ForeignPeer(reader, writer))
        tasks.append(asyncio.create_task(run(peers[-1])))

    server = await asyncio.start_server(accept, *HOST)
    try:
        yield server.sockets[0].getsockname(), peers
    finally:
        server.close()
        await asyncio.gather(*tasks)


# -- Foreign clients -------------------------------------------------------------------------------


async def test_a_foreign_client_calls() -> None:
    """Calls are answered with the same ids, from 0 on, and with nothing else."""
    async with foreign_client() as (foreign, _):
        assert await foreign.call(0, "add", 1, b=41) == [RESULT, 42]
        assert await foreign.call(1, "deep/name") == [RESULT, "deep"]
        assert await foreign.call(2, "add_later", None, 3) == [RESULT, None]
        assert await foreign.call(3, "echo", 1.5, [True], {}, k={"ü": None}) == [
            RESULT,
            [[1.5, [True], {}], {"k": {"ü": None}}],
        ]
        await foreign.assert_nothing_more()


async def test_a_foreign_client_at_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for Unix sockets."""
    monkeypatch.chdir(tmp_path)
    async with foreign_client(addr="socket") as (foreign, _):
        assert await foreign.call(0, "add", 1) == [RESULT, 2]
        await foreign.assert_nothing_more()


@pytest.mark.parametrize("number", [0, 1, -1, 2**31, 2**53, "", "a", "0"])
async def test_a_foreign_client_may_use_any_id(number: int | str) -> None:
    """Ids are the client's business: any number or string comes back as it is."""
    async with foreign_client() as (foreign, _):
        assert await foreign.call(number, "add", 1) == [RESULT, 2]
        assert await foreign.call(number, "add", 2) == [RESULT, 3]
        await foreign.assert_nothing_more()


async def test_replies_to_a_foreign_client_come_as_they_are_ready() -> None:
    """Requests that wait do not delay others, and each reply goes to its id."""
    async with foreign_client() as (foreign, _):
        for number, turns in enumerate([30, 3, 0]):
            foreign.write(REQUEST, number, ["add_later", [number, turns], {}])
        foreign.write(REQUEST, 3, ["add", [2], {}])
        assert [await foreign.read() for _ in range(4)] == [
            [RESULT, 3, 3],
            [RESULT, 2, 2],
            [RESULT, 1, 1],
            [RESULT, 0, 0],
        ]
        await foreign.assert_nothing_more()


@pytest.mark.parametrize("style", [{"indent": 3}, {"separators": (",", ":")}, {"ensure_ascii": False}])
async def test_a_foreign_client_may_write_json_in_its_own_style(style: dict[str, Any]) -> None:
    """Spaces, line breaks and escapes in the JSON of a client make no difference."""
    async with foreign_client() as (foreign, _):
        foreign.write(REQUEST, 7, ["add", ["ä\n", "€😀"], {}], **style)
        assert await foreign.read() == [RESULT, 7, "ä\n€😀"]
        await foreign.assert_nothing_more()


async def test_a_foreign_client_gets_failures_as_lists_of_strings() -> None:
    """A failure is type, message and, where they are switched on, traceback lines; the connection goes on."""
    async with foreign_client() as (foreign, _):
        kind, content = await foreign.call(0, "fail")
        assert (kind, list(content)) == (EXCEPTION, ["KeyError", "'é'"])
    async with foreign_client(tracebacks=True) as (foreign, _):
        kind, (type_name, message, *lines) = await foreign.call(0, "fail")
        assert (kind, type_name, message) == (EXCEPTION, "KeyError", "'é'")
        assert "".join(lines).startswith("Traceback (most recent call last):\n")
        assert 'raise KeyError("é")' in "".join(lines)
        for number, (path, args, name) in enumerate(
            [
                ("nothing", [], "aiomas_ng.RoutingError"),
                ("deep/nothing", [], "aiomas_ng.RoutingError"),
                ("was_cancelled", [], "aiomas_ng.NotExposedError"),
                ("add", [], "aiomas_ng.ArgumentError"),
                ("count", [3], "aiomas_ng.StreamError"),
            ]
        ):
            kind, content = await foreign.call(number, path, *args)
            assert (kind, content[0]) == (EXCEPTION, name)
            assert len(content) > 2
            assert all(isinstance(part, str) for part in content)
        assert await foreign.call(9, "add", 1) == [RESULT, 2]
        await foreign.assert_nothing_more()


async def test_a_foreign_client_that_leaves_stops_its_work() -> None:
    """When a client goes, what was still done for it is cancelled."""
    service = Calculator()
    async with foreign_client(service) as (foreign, end):
        foreign.write(REQUEST, 0, ["wait", [], {}])
        await service.is_waiting.wait()
        await foreign.close()
        await service.was_cancelled.wait()
        assert end.service is not None
        await end.service


@hypothesis.given(
    data=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.floats(-1e9, 1e9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    cuts=st.lists(st.integers(1, 40), max_size=6),
)
@hypothesis.settings(max_examples=40)
async def test_plain_data_of_a_foreign_client_is_left_alone(data: list[Any], cuts: list[int]) -> None:
    """Whatever JSON has comes back as it was, cut into pieces anyhow; also a dict with odd keys."""
    async with foreign_client() as (foreign, _):
        text = "".join(json.dumps([REQUEST, 5, ["echo", data, {}]])).encode()
        stream = len(text).to_bytes(4, "big") + text
        for cut in cuts:
            foreign.writer.write(stream[:cut])
            await asyncio.sleep(0)
            stream = stream[cut:]
        foreign.writer.write(stream)
        assert await foreign.read() == [RESULT, 5, [data, {}]]
        await foreign.assert_nothing_more()


# -- Calls to foreign clients ----------------------------------------------------------------------


async def test_a_foreign_client_is_called_back() -> None:
    """A request to a foreign client is a function, a list and a dict, and its results arrive."""
    async with foreign_client() as (foreign, end):
        first, second = end.remote.get("a", k=1), end.remote.deep.get()
        requests = [await foreign.read(), await foreign.read()]
        assert [request[2] for request in requests] == [["get", ["a"], {"k": 1}], ["deep/get", [], {}]]
        # Out of order, and with a call of the client's own in between that has the same number.
        foreign.write(RESULT, requests[1][1], [2])
        assert await foreign.call(requests[0][1] + 1, "add", 1) == [RESULT, 2]
        foreign.write(RESULT, requests[0][1], {"one": 1})
        assert await first == {"one": 1}
        assert await second == [2]
        await foreign.assert_nothing_more()


@pytest.mark.parametrize(
    ("content", "type_name", "message", "text"),
    [
        (TRACEBACK, "", TRACEBACK, TRACEBACK),
        ("", "", "", ""),
        ("x", "", "x", "x"),
        (["KeyError", "'é'"], "KeyError", "'é'", "KeyError: 'é'"),
        (["KeyError", "'é'", "line 1\n", "line 2\n"], "KeyError", "'é'", "line 1\nline 2\n"),
        (["KeyError"], "KeyError", "", "KeyError: "),
        ([], "", "[]", "[]"),
        (None, "", "None", "None"),
        ([1, 2], "", "[1, 2]", "[1, 2]"),
        ({"error": 5}, "", "{'error': 5}", "{'error': 5}"),
    ],
)
async def test_the_failure_of_a_foreign_client_is_a_remote_exception(
    content: Any, type_name: str, message: str, text: str
) -> None:
    """Failures in any style are RemoteExceptions: a traceback in one string, a list, and odd things."""
    async with foreign_client() as (foreign, end):
        call = end.remote.get()
        foreign.write(EXCEPTION, (await foreign.read())[1], content)
        with pytest.raises(RemoteException) as caught:
            await call
        error = caught.value
        assert (error.type_name, error.message, error.remote_traceback) == (type_name, message, text)
        assert (error.path, error.origin) == ("get", end.channel.get_extra_info("peername"))
        assert text in str(error)
        await foreign.assert_nothing_more()


async def test_a_call_of_a_foreign_client_that_is_given_up() -> None:
    """The client is not told of a cancelled or timed-out call; its late replies harm no other call."""
    async with foreign_client() as (foreign, end):
        cancelled, other = end.remote.get(1), end.remote.get(3)
        timed_out = rpc.with_options(end.remote.get, timeout=0.01)(2)
        cancelled.cancel()
        with pytest.raises(CallTimeoutError):
            await timed_out
        # The client's first request must not change that either.
        assert await foreign_call_between(foreign, 3) == [RESULT, 2]
        for _, number, (_, args, _) in foreign.seen[:2]:
            foreign.write(RESULT, number, args[0])
        foreign.write(EXCEPTION, foreign.seen[2][1], TRACEBACK)
        assert await other == 3
        await foreign.assert_nothing_more()


async def foreign_call_between(foreign: ForeignPeer, count: int) -> list[Any]:
    """Read *count* requests, then make a call."""
    for _ in range(count):
        assert (await foreign.read())[0] == REQUEST
    return await foreign.call(0, "add", 1)


async def test_a_one_way_call_of_a_foreign_client_is_a_request() -> None:
    """A client that knows no one-way messages gets a request, and may answer it in any way or not at all."""
    async with foreign_client() as (foreign, end):
        for number in range(3):
            rpc.with_options(end.remote.note, oneway=True)(number)
        frames = [await foreign.read() for _ in range(3)]
        assert [(frame[0], frame[2]) for frame in frames] == [
            (REQUEST, ["note", [number], {}]) for number in range(3)
        ]
        foreign.write(RESULT, frames[0][1], None)
        foreign.write(EXCEPTION, frames[1][1], TRACEBACK)
        assert await foreign.call(0, "add", 1) == [RESULT, 2]
        await foreign.assert_nothing_more()


async def test_a_foreign_client_does_not_stream() -> None:
    """Iterating over the reply of a peer that cannot stream says so."""
    async with foreign_client() as (foreign, end):
        call = end.remote.get()
        foreign.write(RESULT, (await foreign.read())[1], [1, 2])
        with pytest.raises(StreamError, match="no stream"):
            await anext(aiter(call))
        await foreign.assert_nothing_more()


# -- Foreign servers, and containers ---------------------------------------------------------------


async def serve_like_aiomas(foreign: ForeignPeer) -> None:
    """Serve a container with one agent as aiomas does: by request, failing with a string."""
    while True:
        kind, number, (path, args, kwargs) = await foreign.read()
        assert kind == REQUEST
        if path == "validate_aid":
            foreign.write(RESULT, number, "Old" if args == ["0"] else None)
        elif path == "agents/0/echo":
            foreign.write(RESULT, number, [args, kwargs])
        elif path == "agents/0/leave":
            return
        elif path == "agents/0/call_back":
            foreign.write(REQUEST, 0, [args[0], [20], {"b": 22}])
            reply = await foreign.read()
            assert reply[1] == 0
            foreign.write(RESULT, number, reply[2])
        else:
            foreign.write(EXCEPTION, number, TRACEBACK)


async def test_a_foreign_server_is_called() -> None:
    """A server of types 0 to 2 is called, and calls back over the same connection."""
    async with foreign_server(serve_like_aiomas) as (addr, peers):
        client = await rpc.open_connection(addr, rpc_service=Calculator(), codec=JSON)
        agent = getattr(client.remote.agents, "0")
        assert await agent.echo(1, k="v") == [[1], {"k": "v"}]
        assert await agent.call_back("add") == 42
        # Its failure arrives as a failure of ours would: a list of strings.
        assert (await agent.call_back("fail"))[0] == "aiomas_ng.ArgumentError"
        with pytest.raises(RemoteException) as caught:
            await agent.fail()
        assert caught.value.remote_traceback == TRACEBACK
        assert (caught.value.agent, caught.value.method) == ("0", "fail")
        with pytest.raises(ClosedByPeerError):
            await agent.leave()
        await client.close()
        assert {frame[0] for peer in peers for frame in peer.seen} == {REQUEST, RESULT, EXCEPTION}


async def test_a_container_connects_to_a_foreign_one() -> None:
    """Agents of foreign containers are connected to and called as any; only plain requests are sent."""
    async with foreign_server(serve_like_aiomas) as (addr, peers):
        container = await Container.create(HOST, codec=JSON, as_coro=True)
        url = f"tcp://127.0.0.1:{addr[1]}/"
        agent = await container.connect(f"{url}0")
        assert str(agent) == f"OldProxy('{url}0')"
        assert await agent.echo([{}], k=None) == [[[{}]], {"k": None}]
        with pytest.raises(AgentNotFoundError):
            await container.connect(f"{url}1")
        with pytest.raises(RemoteException):
            await agent.unknown()
        agent.echo().cancel()
        with pytest.raises(ConnectionResetError):
            await agent.leave()
        # The proxy is as good as new, on a new connection.
        assert await agent.echo() == [[], {}]
        await container.shutdown(as_coro=True)
        assert len(peers) == 2
        assert [frame[2] for frame in peers[0].seen] == [
            ["validate_aid", ["0"], {}],
            ["agents/0/echo", [[{}]], {"k": None}],
            ["validate_aid", ["1"], {}],
            ["agents/0/unknown", [], {}],
            ["agents/0/echo", [], {}],
            ["agents/0/leave", [], {}],
        ]


class Thermostat(Agent):
    """An agent of ours."""

    @expose
    def set_to(self, value: float, *, unit: str = "K") -> str:
        return f"{value} {unit}"


async def test_a_foreign_client_calls_an_agent() -> None:
    """A client in any language finds an agent with validate_aid, and calls it by its path."""
    container = await Container.create(HOST, codec=JSON, as_coro=True)
    Thermostat(container)
    place = container._tcp_server.address.place if container._tcp_server else None
    assert isinstance(place, tuple)
    foreign = ForeignPeer(*await asyncio.open_connection(*place))
    assert await foreign.call(0, "validate_aid", "0") == [RESULT, "Thermostat"]
    assert await foreign.call(1, "validate_aid", "1") == [RESULT, None]
    assert await foreign.call(2, "agents/0/set_to", 293, unit="K") == [RESULT, "293 K"]
    kind, content = await foreign.call(3, "agents/1/set_to", 293)
    assert (kind, content[0]) == (EXCEPTION, "aiomas_ng.RoutingError")
    await foreign.assert_nothing_more()
    await container.shutdown(as_coro=True)
