"""Remote procedure calls over channels, in both directions.

::

    proxy.agents.a1.step(5)                                        class A1:
        │ Proxy.__call__                                               router = Service()
        ▼                                                              @expose
    Link.call ── Channel.send([path, args, kwargs]) ──▶ …              def step(self, n): …
                                                                           ▲
                        … ──▶ RpcClient._handle ── Router.resolve(path) ───┘

A service is an object with a :class:`Router`: an instance of a class that has ``router = Service()``, or a
:class:`ServiceDict`. Services form a tree, and a path names a function in it. A service as an argument or
result arrives as a :class:`Proxy`; so does a proxy that is handed on, and the third party then reaches the
service by itself, at its address.

The reference is what programs rely on in ``aiomas.rpc``. We differ in that nothing is reachable that was not
exposed, not even by chance, and in what is new: one-way calls, timeouts per call, streams, proxies that can
be handed on.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

from aiomas_ng import channel as channels
from aiomas_ng._core.addresses import Address, parse_url
from aiomas_ng._core.budget import Budget
from aiomas_ng._core.calls import SEQUENCES, explain_bad_call
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.deadline import CURRENT, Clock, Deadline, from_metadata, get_deadline
from aiomas_ng._core.limits import DEFAULT_LIMITS
from aiomas_ng._core.routing import Router, Service, ServiceDict, expose, is_rpc_service
from aiomas_ng._io.batch import answer_batch, batch
from aiomas_ng._io.endpoint import as_address
from aiomas_ng._io.expiry import now_in
from aiomas_ng._io.job import pass_on_interrupt
from aiomas_ng._io.peer import Peers
from aiomas_ng._io.principal import CURRENT_PRINCIPAL
from aiomas_ng._io.proxy import CallOptions, Proxy, with_options
from aiomas_ng._io.reply import Reply, describe_call
from aiomas_ng.channel import Channel, Server
from aiomas_ng.clocks import BaseClock
from aiomas_ng.exceptions import (
    AccessDeniedError,
    AddressError,
    ClosedByUsError,
    DeadlineExceededError,
    DeserializationError,
    RoutingError,
    SerializationError,
)
from aiomas_ng.liveness import ConnectionState

__all__ = [
    "Proxy",
    "Router",
    "RpcClient",
    "Service",
    "ServiceDict",
    "batch",
    "expose",
    "open_connection",
    "start_server",
    "with_options",
]

logger = logging.getLogger(__name__)

#: The name under which references to services travel.
REFERENCE_NAME: Final = "aiomas_ng.service"
# Whose a referenced service is: the sender's, the receiver's, or that of a third party at a URL.
OF_SENDER, OF_RECEIVER, OF_THIRD = 0, 1, 2

#: What of the way in which a peer was connected to also holds for third parties.
SHARED_OPTIONS: Final[tuple[str, ...]] = (
    "loop",
    "codec",
    "extra_serializers",
    "limits",
    "liveness",
    "budget",
    "resumable",
    "tracebacks",
    "ssl",
    "network",
)


async def open_connection(
    addr: Any, *, rpc_service: Any = None, clock: BaseClock | None = None, **kwds: Any
) -> RpcClient:
    """Connect to *addr* and return the :class:`RpcClient`.

    Args:
        addr: As for :func:`aiomas_ng.channel.open_connection`; the port may be a numeric string.
        rpc_service: What we offer to the peer, so that it can call back.
        clock: Simulated time for the deadlines of calls (:mod:`aiomas_ng.deadlines`).
        **kwds: Passed on to :func:`aiomas_ng.channel.open_connection`: ``codec``, ``extra_serializers``,
            ``timeout``, ``limits``, ``liveness``, ``network``, …

    Raises:
        ValueError: *rpc_service* is no service.
        ConnectError, AddressError: See :func:`aiomas_ng.channel.open_connection`.
    """
    _check_service(rpc_service, is_optional=True)
    channel = await channels.open_connection(addr, **kwds)
    target = as_address(addr)
    client = RpcClient(channel, rpc_service, clock=clock)
    if isinstance(target, tuple):
        client.url = Address("tcp", target).url
    else:
        client.url = (
            Address("ipc", target).url if isinstance(target, str) else Address("local", target.queue_id).url
        )
    client._open_kwds = {key: kwds[key] for key in SHARED_OPTIONS if key in kwds}
    return client


async def start_server(
    addr: Any,
    rpc_service: Any,
    client_connected_cb: Callable[[RpcClient], Any] | None = None,
    *,
    clock: BaseClock | None = None,
    **kwds: Any,
) -> Server:
    """Listen on *addr* and offer *rpc_service* to every client.

    Args:
        addr: As for :func:`aiomas_ng.channel.start_server`.
        rpc_service: The service.
        client_connected_cb: Called with the :class:`RpcClient` of every client; a function or coroutine
            function.
        clock: As for :func:`open_connection`.
        **kwds: Passed on to :func:`aiomas_ng.channel.start_server`.

    Raises:
        ValueError: *rpc_service* is no service.
        AddressInUseError, AddressError: See :func:`aiomas_ng.channel.start_server`.
    """
    _check_service(rpc_service)
    kwds.setdefault("budget", Budget(kwds.get("limits", DEFAULT_LIMITS)))
    # The context for TLS, if there is one, is that of a server and cannot be used to connect; nor can a
    # network that applies to the connections of a server.
    open_kwds = {key: kwds[key] for key in SHARED_OPTIONS if key in kwds and key not in ("ssl", "network")}

    def connected(channel: Channel) -> Any:
        client = RpcClient(channel, rpc_service, clock=clock)
        client._open_kwds = open_kwds
        return client_connected_cb(client) if client_connected_cb is not None else None

    return await channels.start_server(addr, connected, **kwds)


def tls_for(address: Address, ssl: Any) -> dict[str, Any]:
    """Return the options for a TLS connection to *address*: TLS is for what leaves the process.

    A Unix socket has no host name, so certificates there have to be issued to ``localhost``.
    """
    if ssl is None or address.protocol == "local":
        return {}
    return {"ssl": ssl, "server_hostname": "localhost"} if address.protocol == "ipc" else {"ssl": ssl}


def _check_service(rpc_service: Any, is_optional: bool = False) -> None:
    if not (is_rpc_service(rpc_service) or (is_optional and rpc_service is None)):
        is_class = isinstance(rpc_service, type) and isinstance(getattr(rpc_service, "router", None), Service)
        what = (
            "give an instance of the class" if is_class else "it needs a router, as in 'router = Service()'"
        )
        raise ValueError(f"{rpc_service!r} is not a valid RPC service: {what}")


class _ServiceEnd(asyncio.Future[None]):
    """Done when the connection of a service has ended; cancelling it closes the connection, cancelling who
    awaits it does not."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(loop=channel._loop)
        self._channel = channel

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._channel._set_error(ClosedByUsError("the service was cancelled"))
        return True

    def __await__(self) -> Generator[Any, None, None]:
        # A task that is cancelled cancels what it awaits, and expects to be woken by that with the error. By
        # this future it would be woken without one, and go on.
        return super().__await__() if self.done() else asyncio.shield(self).__await__()

    __iter__ = __await__


class RpcClient:
    """One end of an RPC connection; both ends have one.

    Args:
        channel: The connection.
        rpc_service: What we offer to the peer, ``None`` for nothing.
        own_url: Base URL of our container, so that our services can be reached by third parties.
        peers: The servers that we know, for proxies that we get of third parties.
        clock: Measures the deadlines of calls in simulated time; without one they have none here.
    """

    def __init__(
        self,
        channel: Channel,
        rpc_service: Any = None,
        *,
        own_url: str | None = None,
        peers: Peers | None = None,
        clock: BaseClock | None = None,
    ) -> None:
        _check_service(rpc_service, is_optional=True)
        self.url: str | None = None  #: Base URL of the peer, if we have dialled it.
        self._channel = channel
        self._router: Router | None = rpc_service.router if rpc_service is not None else None
        self._principal = channel._principal
        self._own_url = own_url
        self._peers = peers
        self._clock: Clock | None = clock if clock is not None and not clock.is_real else None
        self._bound_by: Deadline | None = None  # what bounds the call that is just being begun
        self._has_own_peers = peers is None
        self._is_own = False  # whether both ends are in one container
        self._open_kwds: dict[str, Any] = {}
        self._reset_callback: Callable[[BaseException], Any] | None = None
        self._service = _ServiceEnd(channel) if rpc_service is not None else None
        channel.codec.add_serializer(object, self._serialize, self._deserialize, name=REFERENCE_NAME)
        channel._when_lost(self._connection_ended)
        channel._serve(self._handle)

    def __repr__(self) -> str:
        return f"<RpcClient of {self._channel!r}>"

    @property
    def channel(self) -> Channel:
        """The connection."""
        return self._channel

    @property
    def state(self) -> ConnectionState:
        """What is known of the connection; :meth:`Channel.on_state <aiomas_ng.channel.Channel.on_state>` of
        :attr:`channel` tells of changes."""
        return self._channel.state

    @property
    def service(self) -> asyncio.Future[None] | None:
        """A future that is done when the connection has ended, ``None`` without a service. Cancelling it
        closes the connection."""
        return self._service

    @property
    def remote(self) -> Proxy:
        """A proxy for the peer's service."""
        return Proxy(self, "")

    def on_connection_reset(self, callback: Callable[[BaseException], Any] | None) -> None:
        """Call *callback* with the error when the peer ends the connection; it replaces an earlier one,
        ``None`` removes it.

        Raises:
            ValueError: *callback* is neither callable nor ``None``.
            RuntimeError: There is no service on this side.
        """
        if self._service is None:
            raise RuntimeError("this RpcClient has no RPC service running")
        if callback is not None and not callable(callback):
            raise ValueError(f"{callback!r} must be callable or None")
        self._reset_callback = callback

    async def close(self, *, grace: float = 0) -> None:
        """Close the connection and those made for its proxies; wait until handlers that still run have
        ended.

        Args:
            grace: Seconds that they are given to end by themselves, see
                :meth:`aiomas_ng.channel.Channel.close`.
        """
        await self._channel.close(grace=grace)
        if self._peers is not None and self._has_own_peers:
            await self._peers.close()

    def _connection_ended(self, error: BaseException) -> None:
        if self._service is not None and not self._service.done():
            self._service.set_result(None)
        if self._peers is not None and self._has_own_peers and self.url is None:
            # Nobody closes the client that stands for a peer who dialled us, so what was opened for the
            # proxies that it has sent would stay for ever.
            self._peers.drop()
        if self._reset_callback is not None and not isinstance(error, ClosedByUsError):
            try:
                self._reset_callback(error)
            except Exception:
                logger.exception("the on_connection_reset callback of %r failed", self)

    # Calls of ours

    def call(
        self,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions | None = None,
        reply: Reply | None = None,
    ) -> Reply | None:
        """Call the peer's function at *path*; the reply is ``None`` for a one-way call. See
        :meth:`aiomas_ng.channel.Channel.send` for errors."""
        if options is None:
            return self._channel._request((path, args, kwargs), args, path, None, reply)
        if options.oneway:
            content: Any = (path, args, kwargs)
            deadline = get_deadline()
            if deadline is not None:
                content = self._channel._add_deadline(content, deadline, path)
            self._channel.post(content)
            if reply is not None:
                reply.set_result(None)
            return None
        timeout = options.timeout if reply is None else None  # else its time runs already
        return self._channel._request((path, args, kwargs), args, path, timeout, reply)

    # Calls of the peer

    def _handle(self, msg_id: int | str | None, content: Any) -> None:
        """Run the function that a request names, and answer."""
        channel, principal = self._channel, self._principal
        # For a bundle it has been set once.
        token = None if CURRENT_PRINCIPAL.get() is principal else CURRENT_PRINCIPAL.set(principal)
        try:
            if len(content) != 3 or get_deadline() is not self._bound_by:
                self._handle_apart(msg_id, content)
                return
            path, args, kwargs = content
            if type(args) not in SEQUENCES or type(kwargs) is not dict or self._router is None:
                if type(args) not in SEQUENCES or type(kwargs) is not dict:
                    raise TypeError
                raise RoutingError("this side of the connection offers no RPC service")
            if path is None and msg_id is not None:
                answer_batch(channel, self._router, msg_id, args)
                return
            result = self._router.resolve(path, principal)(*args, **kwargs)
        except BaseException as error:  # even CancelledError: the function has it from some other future
            self._call_failed(msg_id, content, error)
            return
        finally:
            if token is not None:
                CURRENT_PRINCIPAL.reset(token)
        channel._settle(msg_id, result, path)

    def _handle_apart(self, msg_id: int | str | None, content: Any) -> None:
        """Run the function of a request that brings a deadline, or comes where another one is.

        There should be none: but an event loop calls a transport's callbacks in the context in which somebody
        has last resumed it, who may have been bound by one.

        Raises:
            DeserializationError: The content is malformed.
            DeadlineExceededError: The deadline has passed.
        """
        deadline, loop = None, self._channel._loop
        if len(content) != 3:
            if type(content) not in SEQUENCES or len(content) != 4:
                raise explain_bad_call(content, TypeError())
            *content, metadata = content
            deadline = from_metadata(metadata, self._clock, now_in(loop))
            if deadline is not None and deadline.has_passed(now_in(loop)):
                raise DeadlineExceededError(describe_call(short(content[0])), deadline.get_left(now_in(loop)))
        before, self._bound_by = self._bound_by, deadline
        try:
            context = contextvars.copy_context()
            context.run(CURRENT.set, deadline)
            context.run(self._handle, msg_id, content)
        finally:
            self._bound_by = before

    def _call_failed(self, msg_id: int | str | None, content: Any, error: BaseException) -> None:
        """Answer with the *error* of a call that did not get as far as its first wait."""
        pass_on_interrupt(error)
        tb = error.__traceback__
        if tb is not None and tb.tb_next is None:  # raised by _handle itself, before or at the call
            error = explain_bad_call(content, error)
        if msg_id is not None:
            self._channel._answer_error(msg_id, error)
        elif not isinstance(error, AccessDeniedError):  # that is in the log already
            peer = self._channel._protocol._peername()
            text = "a one-way call from %s failed"
            self._channel._log(logging.ERROR, text, peer, log=logger, error=error)

    # Services as values

    def _serialize(self, obj: Any) -> list[Any]:
        """Turn a service or proxy into the reference that travels: ``[whose, path, url, class name]``.

        Raises:
            SerializationError: It is neither, or cannot be reached over this connection.
        """
        if isinstance(obj, Proxy):
            if obj._link is self:
                return [OF_RECEIVER, obj._path, None, obj._name]
            url = obj._url or obj._link.url
            if url is None:
                raise SerializationError(
                    f"{obj} cannot be handed on: its owner has no address that others could connect to; "
                    f"services of containers, and of servers that we have dialled, can"
                )
            return [OF_THIRD, obj._path, url, obj._name]
        if not is_rpc_service(obj):
            raise SerializationError(f"No serializer found for type {type(obj)}")
        router: Router = obj.router
        if self._router is not None and router.root is not self._router:
            self._router.adopt()
        root = router.root
        name = f"{type(obj).__name__}Proxy({str(obj.addr)!r})" if hasattr(obj, "addr") else None
        if root is not self._router:
            # An agent of another container has an address of its own.
            url = getattr(root.obj, "_base_url", None)
            if isinstance(url, str):
                return [OF_THIRD, router.path, url, name]
            if self._router is None:
                raise SerializationError(
                    "no RPC service runs on this side of the connection, so none can be sent"
                )
            raise SerializationError(
                f"RPC service {obj!r} is not exposed for this connection: "
                f"it is no sub-service of what is served here"
            )
        return [OF_SENDER, router.path, self._own_url, name if self._own_url else None]

    def _deserialize(self, reference: Any) -> Any:
        """Return what a reference of the peer stands for.

        Raises:
            DeserializationError: It is malformed, or leads nowhere.
        """
        try:
            whose, path, url, name = reference
        except (TypeError, ValueError):
            raise DeserializationError(
                f"a reference to a service must have four parts: {short(reference)}"
            ) from None
        if not isinstance(path, str) or not isinstance(url, str | None) or not isinstance(name, str | None):
            raise DeserializationError(f"a reference to a service is malformed: {short(reference)}")
        if whose == OF_SENDER:
            return Proxy(self, path, url, name=name)
        if whose == OF_RECEIVER:
            return self._own_service(path, name)
        if whose != OF_THIRD or url is None:
            raise DeserializationError(f"a reference to a service is malformed: {short(reference)}")
        try:
            address, rest = parse_url(url)
        except AddressError as error:
            raise DeserializationError(str(error)) from error
        if rest:
            raise DeserializationError(f"{url!r} is no base URL")
        if address.url == self._own_url:
            self._check_reference(path)
        return Proxy(self._get_peers().get(address), path, address.url, name=name)

    def _own_service(self, path: str, name: str | None) -> Any:
        """Return what the peer sends back to us: the service itself, or in a container again a proxy.

        There a receiver must not be able to tell whether the service lives in its own container: methods of
        the one are called, those of the other are awaited.
        """
        if self._router is None:
            raise DeserializationError("the peer refers to a service of ours, but we offer none")
        self._check_reference(path)
        if self._own_url is not None:
            address, _ = parse_url(self._own_url)
            return Proxy(self._get_peers().get(address), path, address.url, name=name)
        try:
            return self._router.find(path) if path else self._router.obj
        except RoutingError as error:
            raise DeserializationError(
                f"the peer refers to a service of ours that is not there: {error}"
            ) from error

    def _check_reference(self, path: str) -> None:
        """Check that the peer may itself reach what it wants a handler of ours to call: we would reach it.

        Raises:
            DeserializationError: It may not.
        """
        try:
            if self._router is not None and path:
                self._router.find(path, self._principal)
        except AccessDeniedError as error:
            raise DeserializationError(f"a reference is not allowed: {error}") from None
        except RoutingError:
            pass  # who calls it will see

    def _get_peers(self) -> Peers:
        if self._peers is None:
            self._peers = Peers(self._channel._loop, self._open_third)
        return self._peers

    def _open_third(self, address: Address, timeout: float | None) -> Awaitable[RpcClient]:
        kwds = {"codec": type(self._channel.codec), **self._open_kwds}
        tls = tls_for(address, kwds.pop("ssl", None))
        return open_connection(address, timeout=timeout, **kwds, **tls)
