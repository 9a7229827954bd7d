"""Requests to resources, and the answers of one's own.

::

    context = await Context.create_client_context()
    response = await context.request(Message(GET, uri="tcp://localhost:5555/battery/soc")).response

    state = await context.get("tcp://localhost:5555/battery/soc")          # the same, decoded
    async with context.observe("tcp://localhost:5555/battery/soc") as states:
        async for state in states:
            ...

The way of a request that comes in::

    Remote.take ── TokenManager.process_request ── IncomingPipe ──┐
                                                                  ▼ Context.render_to_pipe
    Remote.send_response ◀── IncomingPipe ◀── RenderPipe ◀── Site, Resource: in a task of its own

A :class:`Context` opens and accepts connections by itself, over TCP, TLS, Unix domain sockets and LocalQueue;
or it belongs to a :class:`~aiomas_ng.agent.Container` and uses the connections that carry its remote
procedure calls.

What is logged at which level: DEBUG, what happens even if all is well; INFO, what is to be expected in a
network, such as timeouts, and connections that end; WARNING, a peer that misbehaves, or seems to; ERROR,
something that went wrong, such as a connection that breaks, or a handler that raises.

The reference is the API page of ``aiocoap.protocol``. We differ in that there is no UDP, so no multicast, in
that observations outlive a lost connection, and in what is new: timeouts per request, a cache, values instead
of payloads, discovery.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Self

from aiomas_ng import channel as channels
from aiomas_ng import clocks, error, rpc, util
from aiomas_ng._coap.admission import enter
from aiomas_ng._coap.blockwise import RenderPipe, assemble, find_body
from aiomas_ng._coap.deadlines import bind_outgoing
from aiomas_ng._coap.incoming import IncomingPipe
from aiomas_ng._coap.observation import ClientObservation, ServerObservation
from aiomas_ng._coap.remote import Remote
from aiomas_ng._coap.requests import BaseRequest, BaseUnicastRequest, BlockwiseRequest, Reopener, Request
from aiomas_ng._coap.states import States
from aiomas_ng._coap.verbs import Verbs
from aiomas_ng._core.addresses import PROTOCOLS, Address, parse_url
from aiomas_ng._core.budget import Budget
from aiomas_ng._core.deadline import get_context_without
from aiomas_ng._core.limits import DEFAULT_LIMITS, Limits
from aiomas_ng._io.closing import GRACE, check_grace
from aiomas_ng._io.endpoint import Server, as_address
from aiomas_ng._io.peer import Peers
from aiomas_ng.cache import Cache
from aiomas_ng.content import Coder
from aiomas_ng.exceptions import ChannelClosedError, ClosedByUsError, ConnectError
from aiomas_ng.faults import Network, make_options
from aiomas_ng.liveness import DEFAULT_LIVENESS, Liveness
from aiomas_ng.local_queue import LocalQueue
from aiomas_ng.message import Message
from aiomas_ng.pipe import CURRENT_DRIVER, Pipe, run_driving_pipe
from aiomas_ng.resource import Renderer
from aiomas_ng.tokenmanager import TokenManager

__all__ = [
    "DEFAULT_PORT",
    "BaseRequest",
    "BaseUnicastRequest",
    "BlockwiseRequest",
    "ClientObservation",
    "Context",
    "Request",
    "ServerObservation",
    "States",
]

#: The port of CoAP, which a server listens at if it is not told otherwise.
DEFAULT_PORT: Final = 5683

#: Seconds for which a lost connection is tried again before an observation over it is given up.
PATIENCE: Final = 60.0

#: Seconds that :meth:`Context.shutdown` waits for handlers that were cancelled and do not end.
SHUTDOWN_TIMEOUT: Final = 5.0

SHUTTING_DOWN: Final = "the peer shuts down"  #: What peers are told.

#: Names that the option *transports* knows.
TRANSPORTS: Final = (*PROTOCOLS, "tls")


class Context(Verbs):
    """Where an application sends its requests from, and where those of others are answered.

    Made by :meth:`create_client_context` or :meth:`create_server_context`; a container has one already.

    Args:
        loop: The event loop, by default the running one.
        serversite: What answers requests, usually a :class:`~aiomas_ng.resource.Site`; ``None`` answers 4.04.
            It can be set later.
        loggername: Name of the logger.
        client_credentials: :class:`~aiomas_ng.util.SSLCerts` or an :class:`ssl.SSLContext` for connections
            that are opened; ``None`` for no TLS.
        server_credentials: The same for connections that are accepted.
        clock: What the ages of cached responses are measured with, by default real time.
        cache: Where responses are kept while they are fresh; ``None`` for no cache.
        codec: The codec of connections that are opened or accepted.
        extra_serializers: Serializers of own types, as of :class:`~aiomas_ng.agent.Container`.
        limits: Bounds of each connection, and of all of them together.
        liveness: When and how patiently the peer of a connection is asked whether it is there; ``None`` for
            never.
        network: A bad network that connections go through; see :mod:`aiomas_ng.faults`.
        patience: Seconds for which a lost connection is tried again before an observation over it is given
            up.
        shows_errors: Whether who requests something is told type and text of exceptions in handlers; else
            these are only logged.
        transports: Names of the transports that may be used: ``'tcp'``, ``'tls'``, ``'ipc'``, ``'local'``; by
            default all.
        peers: The connections of a container, to be used instead of own ones.
        url: Base URL of that container.

    Raises:
        ValueError: *transports* has an unknown name.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        serversite: Renderer | None = None,
        loggername: str = "coap",
        client_credentials: Any = None,
        server_credentials: Any = None,
        *,
        clock: clocks.BaseClock | None = None,
        cache: Cache | None = None,
        codec: Any = None,
        extra_serializers: Iterable[Any] = (),
        limits: Limits = DEFAULT_LIMITS,
        liveness: Liveness | None = DEFAULT_LIVENESS,
        patience: float = PATIENCE,
        shows_errors: bool = False,
        transports: Iterable[str] | None = None,
        peers: Peers | None = None,
        url: str | None = None,
        network: Network | None = None,
    ) -> None:
        self.loop = loop or util.get_loop()
        if isinstance(serversite, type):
            raise TypeError(f"serversite must be an instance, as Site(), and not the class {serversite!r}")
        self.serversite = serversite
        self._url = url
        self.log = logging.getLogger(loggername)
        self.client_credentials = client_credentials
        self.server_credentials = server_credentials
        self.clock = clock or clocks.AsyncioClock(self.loop)
        self._cache: Cache | None = None
        self.cache = cache
        self.limits = limits
        self.patience = patience
        self.shows_errors = shows_errors
        self.coder = Coder(extra_serializers, limits)
        self.tokenmanager = TokenManager(self)
        self._transports = _check_transports(transports)
        wire = {
            "codec": codec,
            "extra_serializers": tuple(extra_serializers),
            "limits": limits,
            "liveness": liveness,
            "budget": Budget(limits),
        }
        self._dial_options, self._listen_options = (wire | own for own in make_options(network, url or ""))
        self._peers = peers or Peers(self.loop, self._open_connection, limits.calls)
        self._has_own_peers = peers is None
        self._servers: list[Server] = []
        self._accepted: set[rpc.RpcClient] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._is_winding_down = False

    def __repr__(self) -> str:
        where = f" at {', '.join(self.urls)}" if self._servers else ""
        return f"<{type(self).__name__}{where}{', closed' if self._is_closed else ''}>"

    @property
    def cache(self) -> Cache | None:
        """Where responses are kept while they are fresh; ``None`` for no cache. It can be set at any time."""
        return self._cache

    @cache.setter
    def cache(self, cache: Cache | None) -> None:
        if cache is not None:
            if not isinstance(cache, Cache):
                raise TypeError(f"cache must be a Cache, or None, but is {cache!r}")
            cache.use_clock(self.clock)
        self._cache = cache

    # Creation and end

    @classmethod
    async def create_client_context(
        cls,
        *,
        loggername: str = "coap",
        loop: asyncio.AbstractEventLoop | None = None,
        transports: Iterable[str] | None = None,
        **kwds: Any,
    ) -> Self:
        """Return a context that sends requests; it listens nowhere.

        Args:
            loggername: Name of the logger.
            loop: The event loop, by default the running one.
            transports: Names of the transports that may be used, see :class:`Context`.
            **kwds: As for :class:`Context`.

        Raises:
            ValueError: *transports* has an unknown name.
        """
        return cls(loop, None, loggername, transports=transports, **kwds)

    @classmethod
    async def create_server_context(
        cls,
        site: Renderer | None,
        bind: Any = None,
        *,
        loggername: str = "coap-server",
        loop: asyncio.AbstractEventLoop | None = None,
        _ssl_context: Any = None,
        multicast: Iterable[Any] = (),
        server_credentials: Any = None,
        transports: Iterable[str] | None = None,
        insecure: bool = False,
        **kwds: Any,
    ) -> Self:
        """Return a context that answers requests, and may also send some.

        Args:
            site: What answers requests; ``None`` if that is to be set later (:attr:`serversite`).
            bind: The address to listen at, as for :func:`aiomas_ng.channel.start_server`, or a list of
                addresses; of ``(host, port)`` the port may be ``None`` for :data:`DEFAULT_PORT`. By default
                all interfaces, at that port.
            loggername: Name of the logger.
            loop: The event loop, by default the running one.
            _ssl_context: The same as *server_credentials*.
            insecure: To listen on all interfaces without TLS is meant, and needs no warning.
            multicast: Has to be empty: there is no UDP here.
            server_credentials: See :class:`Context`.
            transports: Names of the transports that may be used, see :class:`Context`.
            **kwds: As for :class:`Context`.

        Raises:
            MulticastNotSupported: *multicast* is not empty.
            AddressInUseError: Somebody listens at the address already.
            AddressError: *bind* is no address.
            ValueError: *transports* has an unknown name, or not that of *bind*.
        """
        if multicast:
            raise error.MulticastNotSupported(
                "there is no multicast: messages travel over connections; use a directory to find others"
            )
        context = cls(
            loop,
            site,
            loggername,
            server_credentials=server_credentials or _ssl_context,
            transports=transports,
            **kwds,
        )
        try:
            for addr in bind if isinstance(bind, list) else [bind]:
                await context.listen(addr, insecure=insecure)
        except BaseException:
            await context.shutdown()
            raise
        return context

    async def listen(self, addr: Any = None, *, insecure: bool = False) -> Server:
        """Accept connections at a further address.

        Args:
            addr: As *bind* of :meth:`create_server_context`.
            insecure: To listen on all interfaces without TLS is meant, and needs no warning.

        Raises:
            AddressInUseError, AddressError, ValueError: As for :meth:`create_server_context`.
            LibraryShutdown: The context was shut down.
        """
        if self._is_closed:
            raise _was_shut_down()
        if addr is None:
            addr = ("", DEFAULT_PORT)
        elif isinstance(addr, tuple) and len(addr) == 2 and addr[1] is None:
            addr = (addr[0], DEFAULT_PORT)
        credentials = self.server_credentials
        if isinstance(as_address(addr), LocalQueue):
            credentials = None  # nothing leaves the process
        ssl = util.as_ssl_context(credentials, is_server=True)
        server = await channels.start_server(
            addr,
            self._accept,
            loop=self.loop,
            start_serving=False,
            ssl=ssl,
            insecure=insecure,
            **self._listen_options,
        )
        try:
            self._check_transport(server.address, is_tls=ssl is not None)
            await server.start_serving()
            if self._is_closed:
                raise _was_shut_down()
        except BaseException:
            server.close()
            raise
        self._servers.append(server)
        return server

    @property
    def urls(self) -> list[str]:
        """The base URLs that resources of this context can be reached at."""
        own = [self._url] if self._url is not None else []
        return own + [server.url for server in self._servers]

    async def shutdown(self, *, grace: float = GRACE) -> None:
        """Stop listening, end all requests in both directions, and close the connections; wait for the
        handlers.

        Requests of ours that wait fail with :exc:`~aiomas_ng.error.LibraryShutdown`, and the peers are told
        to stop. Connections of a container stay open. Safe to be called twice, by several tasks, and from
        within a handler.

        Args:
            grace: Seconds that running handlers are given to end by themselves before that. Meanwhile the
                peers are told, and new requests are answered by 5.03; observations end at once.

        Raises:
            ValueError: *grace* is no number >= 0.

        Cancelling it ends all at once.
        """
        if check_grace(grace) and self._has_own_peers and not self._is_closed:
            try:
                await self._wind_down(self.loop.time() + grace)
            except asyncio.CancelledError:
                self._end_at_once()
                self._cancel_tasks()
                raise
        clients = list(self._accepted)
        self._end_at_once()
        tasks = self._cancel_tasks()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=SHUTDOWN_TIMEOUT)
            for task in pending:
                self.log.warning("a handler goes on although its context was shut down: %r", task)
        closing = [client.close() for client in clients]
        if self._has_own_peers:
            closing.append(self._peers.close())
        await asyncio.gather(*closing, return_exceptions=True)

    async def _wind_down(self, deadline: float) -> None:
        """Take no new requests, and wait for the handlers of those under way."""
        self._is_winding_down = True
        for server in self._servers:
            server.close()
        channels = self._get_channels()
        for channel in channels:
            channel._begin_close(SHUTTING_DOWN)
        while waiting := [future for channel in channels for future in channel._get_under_way()]:
            left = deadline - self.loop.time()
            if left <= 0:
                return
            await asyncio.wait(waiting, timeout=left)

    def _cancel_tasks(self) -> list[asyncio.Task[Any]]:
        """Cancel what runs, but for the running code itself; return it."""
        callers = (asyncio.current_task(), CURRENT_DRIVER.get())
        tasks = [task for task in self._tasks if task not in callers]
        for task in tasks:
            if not task.cancelling():  # a second time would break into its cleaning up
                task.cancel()
        return tasks

    def _get_channels(self) -> list[channels.Channel]:
        return [remote.channel for remote in self.tokenmanager.remotes]

    def _end_at_once(self) -> None:
        """Do all that can be done without waiting."""
        channels = self._get_channels() if self._has_own_peers else []
        self.end_requests()
        for channel in channels:
            channel._end_here()
        if self._has_own_peers:
            self._peers.end()

    def end_requests(self) -> None:
        """Stop listening, and end all requests in both directions, without waiting."""
        self._is_closed = True
        for server in self._servers:
            server.close()
        self.tokenmanager.end_requests()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    # Connections

    def attach(self, channel: channels.Channel, url: str | None = None) -> Remote:
        """Exchange messages over *channel* from now on.

        Args:
            channel: A connection.
            url: Base URL, where we have dialled it.
        """
        remote = Remote(channel, self.tokenmanager, url)
        channel._serve_lane(remote)
        self.tokenmanager.join(remote)
        channel._when_lost(functools.partial(self._lost, remote))
        return remote

    def _lost(self, remote: Remote, reason: ChannelClosedError) -> None:
        level = _get_level(reason) if remote.outgoing or remote.incoming else logging.DEBUG
        self.log.log(level, "the connection to %s has ended: %s", remote.hostinfo, reason)
        self.tokenmanager.dispatch_error(reason, remote)

    def _accept(self, channel: channels.Channel) -> None:
        # Whoever tries to call procedures here is told that there are none.
        client = rpc.RpcClient(channel)
        if self._is_closed or self._is_winding_down:
            channel._set_error(ClosedByUsError("the context was shut down"))
            return
        self._accepted.add(client)
        channel._when_lost(lambda _: self._accepted.discard(client))
        self.attach(channel)

    async def _open_connection(self, address: Address, timeout: float | None) -> rpc.RpcClient:
        tls = rpc.tls_for(address, util.as_ssl_context(self.client_credentials, is_server=False))
        channel = await channels.open_connection(
            address, timeout=timeout, loop=self.loop, **self._dial_options, **tls
        )
        client = rpc.RpcClient(channel)
        client.url = address.url
        self.attach(channel, address.url)
        return client

    def _check_transport(self, address: Address, is_tls: bool) -> None:
        name = "tls" if is_tls and address.protocol == "tcp" else address.protocol
        if name not in self._transports:
            raise ValueError(
                f"transport {name!r} of {address.url} is not among those chosen: {self._transports}"
            )

    async def resolve_remote(self, message: Message, timeout: float | None = 0) -> Remote:
        """Return the connection that *message* goes to, after making one if need be.

        Args:
            message: Its remote is a connection, or an address (set by ``uri``).
            timeout: Seconds to go on trying while nobody answers; 0 tries once.

        Raises:
            NetworkError: Nobody answers there, or the connection has ended.
            ValueError: The message does not say where it goes, or its transport is not allowed.
        """
        remote = self._find_remote(message)
        if remote is not None:
            return remote
        address: Address = message.remote
        self._check_transport(address, is_tls=self.client_credentials is not None)
        try:
            client = await self._peers.get(address).connect(timeout)
        except (ConnectError, ChannelClosedError) as failure:
            if self._is_closed:
                raise _was_shut_down() from failure
            raise error.NetworkError(str(failure)) from failure
        return self._get_remote(client.channel)

    def _find_remote(self, message: Message) -> Remote | None:
        """Return the connection that *message* goes to if it is there, ``None`` if it has to be made."""
        if self._is_closed:
            raise _was_shut_down()
        remote = message.remote
        if isinstance(remote, Remote):
            if remote.is_closed:
                raise error.NetworkError(f"the connection to {remote.hostinfo} has ended")
            return remote
        if not isinstance(remote, Address):
            raise ValueError(f"{message!r} does not say where it goes: set its uri or remote")
        channel = self._peers.get(remote).channel
        return None if channel is None else self._get_remote(channel)

    def _get_remote(self, channel: channels.Channel) -> Remote:
        lane = channel._lane
        return lane if isinstance(lane, Remote) else self.attach(channel)

    async def find_remote_and_interface(self, message: Message) -> TokenManager:
        """Set the remote of *message* to the connection that it goes to, made if need be; return what sends
        it.

        Raises:
            NetworkError, ValueError: As for :meth:`resolve_remote`.
        """
        await self.tokenmanager.fill_or_recognize_remote(message)
        return self.tokenmanager

    # Requests of ours

    def request(
        self, request_message: Message, handle_blockwise: bool = True, *, timeout: float | None = None
    ) -> Request:
        """Send *request_message* and return the :class:`Request`, whose ``response`` is a future.

        Args:
            request_message: Its ``uri`` or ``remote`` says where it goes. With ``observe=0`` the resource is
                observed, see :attr:`Request.observation`.
            handle_blockwise: Whether bodies that are larger than a message are cut into blocks and put
                together; otherwise the caller does that. It is also what a cache is used for.
            timeout: Seconds for all of it; ``None`` for no limit.

        Cancelling the response takes back the request, and stops the work at the peer. The response fails
        with :exc:`~aiomas_ng.error.NetworkError` if there is no way to the peer, and with
        :exc:`~aiomas_ng.error.RequestTimedOut` after the *timeout*, or with
        :exc:`~aiomas_ng.exceptions.DeadlineExceededError` when a deadline around it passes
        (:mod:`aiomas_ng.deadlines`); of an observation, that bounds the first response only.
        """
        if not isinstance(request_message, Message):
            raise TypeError(f"a request must be a Message but is {request_message!r}")
        if request_message.code is None or not request_message.code.is_request():
            raise ValueError(
                f"the code of a request must be a method, as GET, but is {request_message.code!r}"
            )
        message = request_message.copy()  # so that the caller can use its own again
        if handle_blockwise:
            return BlockwiseRequest(self, message, timeout=timeout)
        pipe = Pipe(message, self.log)
        request = Request(pipe, self.loop, self.log, timeout=timeout, reopener=self.get_reopener(message))
        self.begin(pipe)
        return request

    def begin(self, pipe: Pipe) -> None:
        """Send the request of *pipe*, after connecting if need be; what goes wrong goes into the pipe."""
        try:
            remote = self._find_remote(pipe.request)
            bind_outgoing(pipe, self.loop)
        except Exception as failure:
            pipe.add_exception(failure)
            return
        if remote is not None:
            pipe.request.remote = remote
            self.tokenmanager.request(pipe)
        else:
            task = self.spawn(self._connect_and_request(pipe), pipe.add_exception)
            pipe.on_interest_end(task.cancel)

    async def _connect_and_request(self, pipe: Pipe) -> None:
        pipe.request.remote = await self.resolve_remote(pipe.request)
        self.tokenmanager.request(pipe)

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, Any],
        on_failure: Callable[[BaseException], object] | None = None,
    ) -> asyncio.Task[Any]:
        """Run *coroutine* in a task that ends with the context at the latest, and is bound by no deadline.

        Args:
            coroutine: What is to be run.
            on_failure: Called with the exception that it ends with; with
                :exc:`~aiomas_ng.error.LibraryShutdown` if it is cancelled because the context is shut down.
                By default an exception is left to asyncio, which logs it.
        """
        task = self.loop.create_task(coroutine, context=get_context_without())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if on_failure is not None:
            # Not from within the coroutine: one that is cancelled before it begins never runs.
            task.add_done_callback(functools.partial(self._task_done, on_failure))
        return task

    def _task_done(self, on_failure: Callable[[BaseException], object], task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            failure = task.exception()
            if failure is not None:
                on_failure(failure)
        elif self._is_closed:
            on_failure(_was_shut_down())

    def get_reopener(self, message: Message) -> Reopener | None:
        """Return what registers the observation of *message* anew when its connection was lost; ``None`` if
        there is
        no observation, or nobody knows where the peer could be reached."""
        if message.opt.observe != 0:
            return None
        remote = message.remote
        if isinstance(remote, Remote) and remote.url:
            remote = parse_url(remote.url)[0]
        return Reopener(self, remote) if isinstance(remote, Address) else None

    def get_cache_name(self, message: Message) -> str | None:
        """Return what a cache knows the server of *message* by; ``None`` for one that is not cached."""
        remote = message.remote
        return remote.url if isinstance(remote, Remote | Address) else None

    # Requests of others

    def render_to_pipe(self, pipe: Pipe) -> None:
        """Let the site answer the request of *pipe*, in a task; what goes wrong becomes an unsuccessful
        response."""
        inner = RenderPipe(pipe, self)
        run_driving_pipe(inner, self._render(inner), tasks=self._tasks)

    async def _render(self, pipe: RenderPipe) -> None:
        if isinstance(pipe._outlet, IncomingPipe):
            pipe._outlet.driver = CURRENT_DRIVER.get()
        request = pipe.request
        opt = request.opt
        site = self.serversite
        if self._is_closed:
            raise error.ServiceUnavailable("shutting down")
        pipe.rules = enter(request, site)
        unknown = opt.unknown_critical()
        if unknown:
            raise error.BadOption(f"unknown or malformed critical options: {', '.join(map(str, unknown))}")
        if opt.proxy_uri is not None or opt.proxy_scheme is not None:
            raise error.ProxyingNotSupported("this server forwards only what lies below a path of its own")
        if site is None:
            raise error.NotFound("there are no resources here")
        if (opt.block1 is not None or opt.block2 is not None) and await site.needs_blockwise_assembly(
            request
        ):
            found = find_body(request, self)
            if found is not None:
                pipe.add_response(found, is_last=True)
                return
            pipe.request = assemble(request, self)
        await site.render_to_pipe(pipe)


def _was_shut_down() -> error.LibraryShutdown:
    return error.LibraryShutdown("the context was shut down")


def _get_level(reason: ChannelClosedError) -> int:
    """Return the level at which the end of a connection in use is logged.

    That by us, or in good order by the peer, is to be expected.
    """
    is_irregular = reason.__cause__ is not None or "in the middle of a frame" in reason.reason
    return logging.ERROR if is_irregular else logging.INFO


def _check_transports(transports: Iterable[str] | None) -> tuple[str, ...]:
    if transports is None:
        return TRANSPORTS
    names = tuple(transports)
    for name in names:
        if name not in TRANSPORTS:
            raise ValueError(f"there is no transport {name!r} here; what is: {', '.join(TRANSPORTS)}")
    return names
