"""Contexts: how they begin and end, over which transports they talk, and values in place of messages."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from coap_contexts import Echo, MessagePeer, Stuck, Value, raw_client, raw_server, served, site_of
from conftest import Transport
from faults import RawPeer, connect_raw, until
from waiting import wait_until

from aiomas_ng import Container, error, protocol
from aiomas_ng.channel import Limits
from aiomas_ng.clocks import AsyncioClock, ExternalClock
from aiomas_ng.exceptions import (
    AddressError,
    AddressInUseError,
    DeserializationError,
    SerializationError,
)
from aiomas_ng.local_queue import get_queue
from aiomas_ng.message import (
    BAD_OPTION,
    CHANGED,
    CONTENT,
    CREATED,
    DELETED,
    GET,
    INTERNAL_SERVER_ERROR,
    NOT_FOUND,
    PROXYING_NOT_SUPPORTED,
    PUT,
    SERVICE_UNAVAILABLE,
    Message,
)
from aiomas_ng.pipe import IterablePipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource, Site, WKCResource
from aiomas_ng.tokenmanager import TokenManager
from aiomas_ng.util import SSLCerts, make_ssl_client_context, make_ssl_server_context

LOCALHOST = ("127.0.0.1", 0)


class Failing(Resource):
    """Raises what was not foreseen."""

    def render_get(self, request: Message) -> Message:
        raise ZeroDivisionError("the secret of the house")


class Calling(Resource):
    """Runs a coroutine function of the test, and answers with its result as text."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    async def render_get(self, request: Message) -> Message:
        return Message(payload=str(await self.function()).encode())


@pytest.fixture
def certs(tmp_path: Path) -> SSLCerts:
    """Return the files of a certificate for this host and of its authority."""
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in cert.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    return SSLCerts(*(str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")))


def levels(caplog: pytest.LogCaptureFixture, *names: str) -> list[str]:
    """Return the levels of what was logged by the loggers with these names."""
    return [record.levelname for record in caplog.records if record.name in names]


# -- Creation --------------------------------------------------------------------------------------


async def test_client_context_listens_nowhere() -> None:
    """It has no address, and the loop that runs."""
    async with await Context.create_client_context(loggername="some-name") as context:
        assert context.urls == []
        assert context.loop is asyncio.get_running_loop()
        assert context.log.name == "some-name"
        assert context.serversite is None
        assert isinstance(context.clock, AsyncioClock)
        assert repr(context) == "<Context>"
        assert isinstance(context.tokenmanager, TokenManager)
    assert repr(context) == "<Context, closed>"


async def test_subclass_is_created() -> None:
    """The constructors return a context of the class that they are called on."""

    class Mine(Context):
        pass

    for context in (
        await Mine.create_client_context(),
        await Mine.create_server_context(None, get_queue("subclass")),
    ):
        assert isinstance(context, Mine)
        await context.shutdown()


async def test_server_context_says_where_it_listens(transport: Transport) -> None:
    """Its URLs are those that clients take; with port 0 they have the port that was given."""
    async with await Context.create_server_context(None, transport.address()) as server:
        (url,) = server.urls
        assert url.endswith("/")
        assert ":0/" not in url
        assert repr(server) == f"<Context at {url}>"
        assert server.log.name == "coap-server"
        async with await Context.create_client_context() as client:
            assert (await client.request(Message(GET, uri=url)).response).code == NOT_FOUND


async def test_site_can_be_set_later(transport: Transport) -> None:
    """Without a site there are no resources; with one there are."""
    async with served(transport, None) as (client, server, url):
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04.*no resources here"):
            await client.get(url + "value")
        server.serversite = site_of(value=Value(b"x"))
        assert await client.get(url + "value") == b"x"


async def test_several_transports_at_once(tmp_path: Path) -> None:
    """A server listens at a list of addresses, further ones can be added, and one client reaches all of
    them."""
    path = f"{tmp_path}/socket" if len(str(tmp_path)) < 80 else "/tmp/ng-several"
    value = Value(b"x")
    async with (
        await Context.create_server_context(site_of(value=value), [LOCALHOST, path]) as server,
        await Context.create_client_context() as client,
    ):
        await server.listen(get_queue("several"))
        assert [url.partition(":")[0] for url in server.urls] == ["tcp", "ipc", "local"]
        for number, url in enumerate(server.urls):
            await client.put(url + "value", str(number))
            assert await client.get(url + "value") == str(number).encode()
        assert len(server.tokenmanager.remotes) == len(client.tokenmanager.remotes) == 3


@pytest.mark.parametrize("multicast", [["lo"], [("224.0.1.187", "eth0")]])
async def test_multicast_is_refused(multicast: list[Any]) -> None:
    """There is none, the error says so, and nothing is left open."""
    with pytest.raises(error.MulticastNotSupported, match="directory") as caught:
        await Context.create_server_context(Site(), LOCALHOST, multicast=multicast)
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize(
    ("bind", "port"), [(None, 0), (("", None), 0), (("0.0.0.0", None), 0), (("127.0.0.1", None), 0)]
)
async def test_default_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bind: Any, port: int
) -> None:
    """Without an address it is all interfaces, without a port that of CoAP; all interfaces deserve a
    warning."""
    assert protocol.DEFAULT_PORT == 5683
    monkeypatch.setattr(protocol, "DEFAULT_PORT", port)
    async with await Context.create_server_context(None, bind) as server:
        (url,) = server.urls
        assert url.startswith("tcp://")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (bind != ("127.0.0.1", None))
    assert all("without TLS" in warning for warning in warnings)


async def test_all_interfaces_with_tls(certs: SSLCerts, caplog: pytest.LogCaptureFixture) -> None:
    """With TLS there is nothing to be warned of."""
    async with await Context.create_server_context(None, ("", 0), server_credentials=certs):
        assert not levels(caplog, "coap-server")


@pytest.mark.parametrize(
    "bind", [("127.0.0.1",), ("127.0.0.1", "http"), 5683, "localhost:1", ["localhost:1"], b"x"]
)
async def test_bad_address(bind: Any) -> None:
    """What is no address is an error that says so."""
    with pytest.raises(AddressError):
        await Context.create_server_context(None, bind)


async def test_address_in_use_leaves_nothing_behind(transport: Transport) -> None:
    """If one address of several is taken, the others are free again after the error."""
    async with await Context.create_server_context(None, transport.address()) as server:
        free = get_queue("free again")
        with pytest.raises(AddressInUseError):
            await Context.create_server_context(None, [free, server.urls[0]])
        await (await Context.create_server_context(None, free)).shutdown()


async def test_names_of_transports(transport: Transport) -> None:
    """Only the transports that were chosen are used, for listening and for requests."""
    name = {"tcp": "tcp", "unix": "ipc", "local": "local"}[transport.kind]
    others = [other for other in ("tcp", "tls", "ipc", "local") if other != name]
    address = transport.address()
    with pytest.raises(ValueError, match=f"transport '{name}'.*not among"):
        await Context.create_server_context(None, address, transports=others)
    async with await Context.create_server_context(
        site_of(value=Value(b"x")), address, transports=[name]
    ) as server:
        async with await Context.create_client_context(transports=others) as client:
            with pytest.raises(ValueError, match=f"transport '{name}'.*not among"):
                await client.get(server.urls[0] + "value")
        async with await Context.create_client_context(transports=iter([name])) as client:
            assert await client.get(server.urls[0] + "value") == b"x"


@pytest.mark.parametrize("name", ["udp6", "tcpclient", "oscore", "", None])
async def test_unknown_transports(name: Any) -> None:
    """An unknown name is refused, and the error lists those that are known."""
    for create in (Context.create_client_context, lambda **kwds: Context.create_server_context(None, **kwds)):
        with pytest.raises(ValueError, match="tcp, ipc, local, tls"):
            await create(transports=["tcp", name])


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_contexts", [False, True], ids=["files", "contexts"])
async def test_tls(certs: SSLCerts, tmp_path: Path, as_contexts: bool) -> None:
    """TLS is used for TCP and Unix sockets; LocalQueue, which leaves no process, needs none."""
    near: Any = make_ssl_client_context(*certs) if as_contexts else certs
    far: Any = make_ssl_server_context(*certs) if as_contexts else certs
    path = f"/tmp/ng-{tmp_path.name[-20:]}"
    async with (
        await Context.create_server_context(
            site_of(value=Value(b"x")), [LOCALHOST, path, get_queue("tls")], server_credentials=far
        ) as server,
        await Context.create_client_context(client_credentials=near) as client,
    ):
        assert client.tokenmanager.client_credentials is near
        versions = []
        for url in server.urls:
            response = await client.request(Message(GET, uri=url + "value")).response
            assert response.payload == b"x"
            ssl = response.remote.channel.get_extra_info("ssl_object")
            versions.append(ssl and ssl.version())
        assert versions == ["TLSv1.3", "TLSv1.3", None]


async def test_tls_is_a_transport_of_its_own(certs: SSLCerts) -> None:
    """``'tls'`` allows TCP with TLS alone, ``'tcp'`` that without."""
    far = make_ssl_server_context(*certs)
    async with await Context.create_server_context(
        site_of(value=Value(b"x")), LOCALHOST, _ssl_context=far, transports=["tls"]
    ) as server:
        url = server.urls[0] + "value"
        async with await Context.create_client_context(
            client_credentials=certs, transports=["tls"]
        ) as client:
            assert await client.get(url) == b"x"
        for kwds in ({"client_credentials": certs, "transports": ["tcp"]}, {"transports": ["tls"]}):
            async with await Context.create_client_context(**kwds) as client:  # type: ignore[arg-type]
                with pytest.raises(ValueError, match="not among"):
                    await client.get(url)
    for kwds in ({"transports": ["tls"]}, {"transports": ["tcp"], "server_credentials": certs}):
        with pytest.raises(ValueError, match="not among"):
            await Context.create_server_context(None, LOCALHOST, **kwds)  # type: ignore[arg-type]


async def test_strangers_are_refused(certs: SSLCerts) -> None:
    """Who has no certificate gets no response."""
    asyncio.get_running_loop().set_debug(False)  # else asyncio logs each refusal as an error
    async with (
        await Context.create_server_context(
            site_of(value=Value(b"x")), LOCALHOST, server_credentials=certs
        ) as server,
        await Context.create_client_context() as client,
    ):
        with pytest.raises(error.NetworkError):
            await client.get(server.urls[0] + "value", timeout=10)


@pytest.mark.parametrize("credentials", ["certs", True, (1, 2)])
async def test_credentials_of_a_wrong_type(credentials: Any) -> None:
    """They are refused by the first use."""
    with pytest.raises(TypeError, match="SSLCerts"):
        await Context.create_server_context(None, LOCALHOST, server_credentials=credentials)
    async with await Context.create_client_context(client_credentials=credentials) as client:
        with pytest.raises(TypeError, match="SSLCerts"):
            await client.get("tcp://127.0.0.1:1/x")


# -- The end ---------------------------------------------------------------------------------------


async def test_shutdown_ends_everything(transport: Transport) -> None:
    """Requests in both directions end, connections and addresses are free, and the context as well."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, server, url):
        request = client.request(Message(GET, uri=url + "stuck"))
        await wait_until(lambda: stuck.begun)
        await client.shutdown()
        with pytest.raises(error.LibraryShutdown) as caught:
            await request.response
        assert isinstance(caught.value, ConnectionError)
        assert not isinstance(caught.value, error.NetworkError)
        await wait_until(lambda: stuck.cancelled and not server.tokenmanager.remotes)
        assert not client.tokenmanager.remotes
        await client.shutdown()
        for call in (client.get(url + "stuck"), client.put(url + "stuck", bytes(100_000))):
            with pytest.raises(error.LibraryShutdown):
                await call
        with pytest.raises(error.LibraryShutdown):
            await client.find_remote_and_interface(Message(GET, uri=url))
        with pytest.raises(error.LibraryShutdown):
            await client.listen(get_queue("too late"))


async def test_server_shutdown_tells_the_clients(transport: Transport) -> None:
    """Requests that wait at a server that goes are answered by 5.03; its handlers have cleaned up."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, server, url):
        requests = [client.request(Message(GET, uri=url + "stuck")) for _ in range(3)]
        await wait_until(lambda: stuck.begun == 3)
        await server.shutdown(grace=0)
        assert stuck.cancelled == 3
        assert not server._tasks
        codes = [(await request.response).code for request in requests]
        assert codes == [SERVICE_UNAVAILABLE] * 3
        with pytest.raises(error.NetworkError):
            await client.get(url + "stuck")


async def test_shutdown_lets_handlers_clean_up(transport: Transport) -> None:
    """Cleaning up that takes a while is not interrupted, even if the context is shut down several times."""
    steps: list[int] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for step in range(5):
                await asyncio.sleep(0.001)
                steps.append(step)

    async with served(transport, site_of(work=Calling(work))) as (client, server, url):
        request = client.request(Message(GET, uri=url + "work"))
        await wait_until(lambda: server._tasks)
        await asyncio.sleep(0.01)
        first = asyncio.ensure_future(server.shutdown(grace=0))
        await wait_until(lambda: steps)
        await asyncio.gather(server.shutdown(grace=0), server.shutdown(grace=0))
        assert steps == [0, 1, 2, 3, 4]
        await first
        assert (await request.response).code == SERVICE_UNAVAILABLE


async def test_handler_that_does_not_end(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A shutdown does not wait for ever for a handler that ignores its cancellation, but names it."""
    monkeypatch.setattr(protocol, "SHUTDOWN_TIMEOUT", 0.02)
    begun, proceed = asyncio.Event(), asyncio.Event()

    async def stay() -> None:
        begun.set()
        while not proceed.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await proceed.wait()

    async with served(transport, site_of(stay=Calling(stay))) as (client, server, url):
        request = client.request(Message(GET, uri=url + "stay"))
        await begun.wait()
        await server.shutdown(grace=0)
        assert [r.levelname for r in caplog.records if "a handler goes on" in r.message] == ["WARNING"]
        proceed.set()
        await wait_until(lambda: not server._tasks)
        await request.response_nonraising


async def test_shutdown_from_a_handler(transport: Transport) -> None:
    """A handler can shut down its own context, and goes on after that; nobody waits for anybody."""
    steps: list[str] = []

    async def stop() -> None:
        await server.shutdown(grace=0)
        steps.append("stopped")
        await asyncio.sleep(0)
        steps.append("after")

    async with served(transport, site_of(stop=Calling(stop), stuck=Stuck())) as (client, server, url):
        other = client.request(Message(GET, uri=url + "stuck"))
        response = await client.request(Message(GET, uri=url + "stop")).response
        assert response.code == SERVICE_UNAVAILABLE
        await other.response
        await wait_until(lambda: steps == ["stopped", "after"])


async def test_shutdown_from_a_callback_and_a_task_of_its_own(transport: Transport) -> None:
    """A task that the context runs can shut it down as well."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, server, url):
        await client.get(url + "value")
        task = client.spawn(client.shutdown())
        await asyncio.wait_for(task, 2)
        task = server.spawn(server.shutdown())
        await asyncio.wait_for(task, 2)


@pytest.mark.parametrize("size", [0, 100_000])
async def test_shutdown_while_connecting(transport: Transport, size: int) -> None:
    """Requests that wait for a connection fail, also those that were made a moment ago."""
    has_begun = asyncio.Event()

    async def never(*args: Any) -> Any:
        has_begun.set()
        await asyncio.Event().wait()

    for waits in (False, True):
        client = await Context.create_client_context()
        client._peers._open = never
        requests = [
            client.request(Message(PUT, bytes(size), uri="local://somewhere/", observe=0), block)
            for block in (True, False)
        ]
        if waits:
            await has_begun.wait()
        await client.shutdown()
        for request in requests:
            with pytest.raises(error.LibraryShutdown):
                await request.response
            assert request.observation is not None
            assert request.observation.cancelled


async def test_shutdown_while_blocks_travel(transport: Transport) -> None:
    """Transfers in both directions fail, and do not wait for ever."""
    async with raw_server(transport) as (client, server):
        up = client.request(Message(PUT, bytes(100_000), uri=server.url))
        peer = await server.peer()
        await peer.receive_message()
        down = client.request(Message(GET, uri=server.url))
        peer.respond(await peer.receive_message(), CONTENT, bytes(1024), block2=(0, True, 6))
        await peer.receive_message()
        await client.shutdown()
        for request in (up, down):
            with pytest.raises(error.LibraryShutdown):
                await request.response
        assert not client._tasks


async def test_shutdown_while_accepting(transport: Transport) -> None:
    """A connection that comes in while the context is shut down is closed."""
    server = await Context.create_server_context(None, transport.address())
    accept = server._accept
    channels = []

    def accept_late(channel: Any) -> None:
        channels.append(channel)
        server._is_closed = True
        accept(channel)

    server._accept = accept_late  # type: ignore[method-assign]
    url = server.urls[0]
    server._servers.pop().close()
    await server.listen(url)
    peer = RawPeer()
    await connect_raw(url, peer)
    await peer.until_lost()
    await until(lambda: channels and channels[0].is_closed)
    assert not server.tokenmanager.remotes
    await server.shutdown()


async def test_shutdown_while_beginning_to_listen() -> None:
    """A server that is being opened meanwhile is closed again."""
    context = await Context.create_client_context()
    listening = asyncio.ensure_future(context.listen(LOCALHOST))
    await asyncio.sleep(0)
    await context.shutdown()
    with pytest.raises(error.LibraryShutdown):
        await listening
    assert context.urls == []


async def test_shutdown_while_a_connection_is_looked_for() -> None:
    """Who asks for the connection of a message learns of the end, too."""
    client = await Context.create_client_context()
    has_begun = asyncio.Event()

    async def never(*args: Any) -> Any:
        has_begun.set()
        await asyncio.Event().wait()

    client._peers._open = never
    finding = asyncio.ensure_future(client.find_remote_and_interface(Message(GET, uri="local://somewhere/")))
    await has_begun.wait()
    await client.shutdown()
    with pytest.raises(error.LibraryShutdown):
        await finding


async def test_request_to_a_context_that_has_ended(transport: Transport) -> None:
    """A container's context can end before its connections: then requests are answered by 5.03."""
    address = ("127.0.0.1", 0) if transport.kind == "tcp" else transport.address()
    near = await Container.create(transport.address(), as_coro=True)
    far = await Container.create(address, as_coro=True)
    url = far._base_url
    assert (await near.context.request(Message(GET, uri=url + "x")).response).code == NOT_FOUND
    await far.context.shutdown()
    response = await near.context.request(Message(GET, uri=url + "x")).response
    assert (response.code, response.payload) == (SERVICE_UNAVAILABLE, b"shutting down")
    for container in (near, far):
        await container.shutdown(as_coro=True)


async def test_context_is_freed(transport: Transport) -> None:
    """After its end nothing holds a context, nor what it has worked with."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, server, url):
        async with client.observe(url + "value") as states:
            await anext(states)
        await client.put(url + "value", bytes(100_000))
        references = [weakref.ref(client), weakref.ref(server)]
    del client, server, states
    await asyncio.sleep(0)
    gc.collect()
    assert [reference() for reference in references] == [None, None]


async def test_async_with_ends_in_any_case(transport: Transport) -> None:
    """The context is shut down when its block is left by an exception, too."""
    address = transport.address()
    with pytest.raises(LookupError):
        async with await Context.create_server_context(None, address) as server:
            raise LookupError
    with pytest.raises(error.LibraryShutdown):
        await server.listen(address)


# -- Dispatching -----------------------------------------------------------------------------------


async def test_find_remote_and_interface(transport: Transport) -> None:
    """The message gets the connection that it goes to; what cannot be reached is an error."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, _, url):
        message = Message(GET, uri=url + "value")
        interface = await client.find_remote_and_interface(message)
        assert interface is client.tokenmanager
        remote = message.remote
        assert remote.uri_base == url
        assert await client.find_remote_and_interface(message) is interface
        assert message.remote is remote
        pipe = IterablePipe(message)
        interface.request(pipe)
        (event,) = [event async for event in pipe]
        assert event.message is not None
        assert event.message.payload == b"x"
        with pytest.raises(error.NetworkError):
            await client.find_remote_and_interface(Message(GET, uri="local://nobody/"))
        with pytest.raises(ValueError, match="where it goes"):
            await client.find_remote_and_interface(Message(GET))


async def test_concurrent_requests_share_a_connection(transport: Transport) -> None:
    """However many requests are made at once, one connection carries them."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, server, url):
        values = await asyncio.gather(*(client.get(url + "value") for _ in range(20)))
        assert values == [b"x"] * 20
        assert len(server.tokenmanager.remotes) == 1


async def test_both_sides_send_requests(transport: Transport) -> None:
    """Handlers send requests back over the connection that a request came by, and so on."""

    class Back(Resource):
        def __init__(self, get_context: Callable[[], Context]) -> None:
            self.get_context = get_context

        async def render_get(self, request: Message) -> Message:
            depth = int(request.opt.uri_query[0])
            if not depth:
                return Message(payload=b"bottom")
            message = Message(GET, uri_path=["back"], uri_query=[str(depth - 1)], remote=request.remote)
            return Message(payload=(await self.get_context().request(message).response).payload)

    async with served(transport, site_of(back=Back(lambda: server))) as (client, server, url):
        client.serversite = site_of(back=Back(lambda: client))
        assert await client.get(url + "back?7") == b"bottom"
        assert len(server.tokenmanager.remotes) == 1


async def test_render_to_pipe_and_errors(caplog: pytest.LogCaptureFixture) -> None:
    """A pipe is filled by the site; errors become responses, and faults of handlers are logged as ERROR."""
    async with Context(serversite=site_of(value=Value(b"x"), failing=Failing())) as context:
        for message, code in (
            (Message(GET, uri_path=["value"]), CONTENT),
            (Message(GET, uri_path=["nothing"]), NOT_FOUND),
            (Message(GET, uri_path=["failing"]), INTERNAL_SERVER_ERROR),
            (Message(GET, uri_path=["value"], proxy_uri="coap://else/where"), PROXYING_NOT_SUPPORTED),
            (Message(GET, uri_path=["value"], proxy_scheme="coap"), PROXYING_NOT_SUPPORTED),
        ):
            pipe = IterablePipe(message)
            context.render_to_pipe(pipe)
            (event,) = [event async for event in pipe]
            assert event.message is not None
            assert event.is_last
            assert event.message.code == code
        assert levels(caplog, "coap") == ["ERROR"]
        assert caplog.records[0].exc_info is not None


async def test_unknown_critical_option(transport: Transport) -> None:
    """An option that has to be understood and is not is answered by 4.02; one that has not, is ignored."""
    async with served(transport, site_of(value=Value(b"x"))) as (_, _, url), raw_client(url) as peer:
        peer.send([GET, b"1", [11, "value", 2053, b"?"]])
        response = await peer.receive_message()
        assert response.code == BAD_OPTION
        assert b"2053" in response.payload
        peer.send([GET, b"2", [11, "value", 2054, b"?"]])
        assert (await peer.receive_message()).payload == b"x"


@pytest.mark.parametrize("shows_errors", [False, True])
async def test_internals_of_errors(transport: Transport, shows_errors: bool) -> None:
    """What has gone wrong in a handler is told only if that was asked for."""
    async with served(transport, site_of(failing=Failing()), far={"shows_errors": shows_errors}) as (
        client,
        _,
        url,
    ):
        response = await client.request(Message(GET, uri=url + "failing")).response
        assert response.code == INTERNAL_SERVER_ERROR
        assert (b"secret" in response.payload) is shows_errors
        assert (b"ZeroDivisionError" in response.payload) is shows_errors


async def test_procedures_are_not_offered(transport: Transport) -> None:
    """Who calls a procedure at a context is told that there are none, and the connection goes on."""
    async with served(transport, site_of(value=Value(b"x"))) as (client, _server, url):
        remote = (await client.request(Message(GET, uri=url + "value")).response).remote
        with pytest.raises(LookupError):
            await remote.channel.send([["no", "such"], [], {}])
        assert await client.get(url + "value") == b"x"


async def test_limits_and_codec_are_those_of_the_connections(transport: Transport) -> None:
    """Options of the wire hold for connections that are opened and that are accepted."""
    from aiomas_ng.codecs import JSON

    limits = Limits(calls=7)
    async with served(transport, site_of(value=Value(b"\0\xff")), limits=limits, codec=JSON) as (
        client,
        server,
        url,
    ):
        response = await client.request(Message(GET, uri=url + "value")).response
        assert response.payload == b"\0\xff"
        for context in (client, server):
            (remote,) = context.tokenmanager.remotes
            assert isinstance(remote.channel.codec, JSON)


async def test_clock() -> None:
    """The clock of a context is the one that it was given."""
    clock = ExternalClock("2026-01-01T00:00:00+00:00")
    async with await Context.create_client_context(clock=clock) as context:
        assert context.clock is clock


async def test_spawned_task_that_fails(asyncio_errors: list[str]) -> None:
    """Who wants to know of a failure is told; else asyncio notes it."""
    failures: list[BaseException] = []

    async def fail() -> None:
        raise LookupError("lost")

    async with await Context.create_client_context() as context:
        task = context.spawn(fail(), failures.append)
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert isinstance(failures[0], LookupError)
        task = context.spawn(asyncio.sleep(0), failures.append)
        await task
        cancelled = context.spawn(asyncio.sleep(100), failures.append)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert len(failures) == 1
        waiting = context.spawn(asyncio.sleep(100), failures.append)
    assert waiting.cancelled()
    assert isinstance(failures[1], error.LibraryShutdown)


# -- Logging ---------------------------------------------------------------------------------------


async def test_nothing_is_said_of_what_goes_well(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests, transfers, observations and the end of a context are worth nothing above DEBUG."""
    caplog.set_level(logging.INFO)
    async with served(transport, site_of(value=Value(b"x"))) as (client, _, url):
        await client.put(url + "value", bytes(100_000))
        async with client.observe(url + "value") as states:
            await anext(states)
        with pytest.raises(error.ResponseWrappingError):
            await client.get(url + "nothing")
    assert not levels(caplog, "coap", "coap-server", "aiomas_ng.channel")


async def test_end_of_a_connection_in_use(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """In good order it is INFO; in the middle of a frame ERROR; unused connections are DEBUG only."""
    caplog.set_level(logging.DEBUG, "coap")
    for number, (is_used, is_torn, level) in enumerate(
        ((True, False, "INFO"), (True, True, "ERROR"), (False, False, "DEBUG"))
    ):
        caplog.clear()
        async with raw_server(transport) as (client, server):
            request = client.request(Message(GET, uri=server.url))
            peer = await server.peer()
            message = await peer.receive_message()
            if not is_used:
                peer.respond(message, CONTENT)
                await request.response
            if is_torn:
                peer.raw.send_bytes(b"\0\0\0\x10abc")
            peer.raw.close()
            if is_used:
                with pytest.raises(error.NetworkError):
                    await request.response
            await wait_until(lambda: not client.tokenmanager.remotes)
            ends = [record.levelname for record in caplog.records if "has ended" in record.message]
            assert ends == [level], number


async def test_misbehaviour_is_a_warning(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A token that is used twice, and a block that is not there, are worth a WARNING."""
    async with (
        served(transport, site_of(stuck=Stuck(), echo=Echo())) as (_, _server, url),
        raw_client(url) as peer,
    ):
        peer.request(GET, "stuck")
        peer.request(GET, "stuck")
        await wait_until(lambda: levels(caplog, "coap-server") == ["WARNING"])
        response = await peer.ask(2, "echo", block2=(3, False, 6), token=b"other")
        assert response.code.class_ == 4
        assert levels(caplog, "coap-server") == ["WARNING", "WARNING"]


# -- Values ----------------------------------------------------------------------------------------


class Store(Resource):
    """Keeps a value of any format; remembers the requests."""

    def __init__(self) -> None:
        self.payload = b""
        self.format: int | None = None
        self.requests: list[Message] = []

    def render_get(self, request: Message) -> Message:
        self.requests.append(request)
        return Message(payload=self.payload, content_format=self.format)

    def render_put(self, request: Message) -> Message:
        self.requests.append(request)
        self.payload, self.format = request.payload, request.opt.content_format
        return Message(CHANGED)

    def render_post(self, request: Message) -> Message:
        self.requests.append(request)
        return Message(CREATED, request.payload, content_format=request.opt.content_format)

    def render_delete(self, request: Message) -> Message:
        self.requests.append(request)
        self.payload, self.format = b"", None
        return Message(DELETED)


@pytest.mark.parametrize(
    ("value", "content_format", "expected"),
    [
        ("text", None, 0),
        (b"\0bytes", None, 42),
        ({"a": [1, 2.5, None]}, None, 50),
        (3, None, 50),
        (None, None, 50),
        ("text", 50, 50),
    ],
)
async def test_values(transport: Transport, value: Any, content_format: int | None, expected: int) -> None:
    """Values of all kinds are put, posted and got, in the format that suits them or that was asked for."""
    store = Store()
    async with served(transport, site_of(store=store)) as (client, _, url):
        assert await client.put(url + "store", value, content_format=content_format) is None
        assert store.format == expected
        assert await client.get(url + "store") == value
        if value is not None:
            assert await client.post(url + "store", value, content_format=content_format) == value
        assert await client.delete(url + "store") is None
        assert await client.get(url + "store") is None


async def test_post_without_a_value(transport: Transport) -> None:
    """Nothing is sent along where there is nothing to send."""
    store = Store()
    async with served(transport, site_of(store=store)) as (client, _, url):
        assert await client.post(url + "store") is None
        (request,) = store.requests
        assert (request.payload, request.opt.content_format) == (b"", None)
        assert await client.post(url + "store", None, content_format=50) is None
        assert store.requests[-1].payload == b"null"


async def test_options_of_values(transport: Transport) -> None:
    """Options go along by name, and arguments of the query in the URL."""
    store = Store()
    async with served(transport, site_of(store=store)) as (client, _, url):
        await client.get(url + "store?a=1&b", accept=50, etags=(b"x",))
        opt = store.requests[-1].opt
        assert (opt.uri_query, opt.accept, opt.etags) == (("a=1", "b"), 50, (b"x",))
        await client.post(url + "store", 1, uri_query=["c"])
        assert store.requests[-1].opt.uri_query == ("c",)
        with pytest.raises(error.ResponseWrappingError, match=r"4\.12"):
            await client.put(url + "store", 1, if_none_match=True)
        await client.delete(url + "store", if_match=(b"",))
        assert store.requests[-1].opt.if_match == (b"",)
        with pytest.raises(AttributeError):
            await client.get(url, no_such_option=1)


async def test_failures_of_values(transport: Transport) -> None:
    """What goes wrong is an exception of its own kind each."""
    store, stuck = Store(), Stuck()
    async with served(transport, site_of(store=store, stuck=stuck)) as (client, _, url):
        with pytest.raises(SerializationError):
            await client.put(url + "store", object())
        with pytest.raises(error.ResponseWrappingError) as caught:
            await client.get(url + "nothing")
        assert caught.value.code == NOT_FOUND
        with pytest.raises(error.NetworkError):
            await client.get("local://nobody/x")
        for call in (client.get, client.post):
            with pytest.raises(error.RequestTimedOut):
                await call(url + "stuck", timeout=0.01)
        store.payload, store.format = b"{", 50
        with pytest.raises(DeserializationError):
            await client.get(url + "store")
        with pytest.raises(AddressError):
            await client.get("udp://somewhere/x")
        assert not store.requests[1:]
        await wait_until(lambda: stuck.begun == stuck.cancelled == 2)


async def test_cancelling_a_get(transport: Transport) -> None:
    """Cancelling who waits for a value stops the work at the server."""
    stuck = Stuck()
    async with served(transport, site_of(stuck=stuck)) as (client, _, url):
        task = asyncio.ensure_future(client.get(url + "stuck"))
        await wait_until(lambda: stuck.begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: stuck.cancelled)


# -- Discovery -------------------------------------------------------------------------------------


def listed(**resources: Any) -> Site:
    """Return a site with a list of its resources."""
    site = site_of(**resources)
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    return site


async def test_discovery_at_several_servers(transport: Transport) -> None:
    """Links of all servers come together, filtered at the servers, with URLs that can be got."""
    one, two, three = Value(b"1"), Value(b"2"), Value(b"3")
    one.rt, two.rt, three.rt = "energy.soc", "energy.power other", "weather"
    one.if_ = "sensor"
    async with (
        served(transport, listed(one=one, two=two)) as (client, _server, url),
        await Context.create_server_context(listed(three=three), get_queue("third")) as other,
    ):
        urls = [url, other.urls[0]]
        links = await client.discover(*urls)
        assert {link.href for link in links} >= {url + "one", url + "two", urls[1] + "three"}
        links = await client.discover(*urls, rt="energy.*", timeout=5)
        assert [await client.get(link.href) for link in links] == [b"1", b"2"]
        assert [link.href for link in await client.discover(url, if_="sensor")] == [url + "one"]
        assert await client.discover(*urls, rt="nothing") == []
        assert await client.discover() == []


async def test_failing_discovery(transport: Transport) -> None:
    """If one of the servers fails, so does the discovery, and nothing goes on in the background."""
    stuck = Stuck()
    site = site_of()
    site.add_resource([".well-known", "core"], stuck)
    async with served(transport, site) as (client, _, url):
        with pytest.raises(error.NetworkError):
            await client.discover(url, "local://nobody/")
        await wait_until(lambda: stuck.begun == stuck.cancelled)
        with pytest.raises(error.RequestTimedOut):
            await client.discover(url, timeout=0.01)
    async with served(transport, site_of()) as (client, _, url):
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await client.discover(url)


@pytest.mark.parametrize("answer", [b"<", b"\xff\xfe", b"no links here", b'</a>;rt="'])
async def test_discovery_of_nonsense(transport: Transport, answer: bytes) -> None:
    """An answer that is no list of links is an error of the peer."""

    class Nonsense(Resource):
        def render_get(self, request: Message) -> Message:
            return Message(payload=answer)

    site = site_of()
    site.add_resource([".well-known", "core"], Nonsense())
    async with served(transport, site) as (client, _, url):
        with pytest.raises(DeserializationError):
            await client.discover(url)


async def test_message_peer_drops_signals(transport: Transport) -> None:
    """A signal of no interest for an unknown token, and nonsense, do not disturb a context."""
    async with served(transport, site_of(value=Value(b"x"))) as (_, _, url), raw_client(url) as peer:
        assert isinstance(peer, MessagePeer)
        peer.send([0, b"unknown"])
        peer.send([0, b"unknown", 5])
        peer.send("nonsense")
        assert (await peer.ask(GET, "value")).payload == b"x"
