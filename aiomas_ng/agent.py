"""Agents, and the containers they live in.

A :class:`Container` has one server, at which its agents can be reached, and one connection to each other
container that they talk to. An :class:`Agent` is a service with an address: ``tcp://host:port/id``. From any
agent ``await self.container.connect(address)`` gives a :class:`~aiomas_ng.rpc.Proxy` of any other, in the
same container, in another process, or on another host, with the same semantics: inside one container a call
skips the socket, and its values still pass through the codec.

The reference is what programs rely on in ``aiomas.agent``. We differ in that ids are never given twice, dead
connections are replaced, and in what is new: named agents, removal, the hooks :meth:`Agent.on_ready` and
:meth:`Agent.on_stop`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import socket
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, Literal, Self, TypeVar, overload

from aiomas_ng import access as access_
from aiomas_ng import channel, clocks, local_queue, rpc, util
from aiomas_ng._coap.agent_states import BoundState, State, get_states, state
from aiomas_ng._coap.container_site import AgentSite, ContainerSite
from aiomas_ng._container.construction import undo_if_construction_fails
from aiomas_ng._container.ending import Ending
from aiomas_ng._container.hooks import Hooks, is_in_hook
from aiomas_ng._container.pair import join_pair
from aiomas_ng._container.signals import END_SIGNALS
from aiomas_ng._core.access import Rule, StrictAccess, check_class
from aiomas_ng._core.addresses import Address, parse_agent_url, tcp_url
from aiomas_ng._core.budget import Budget
from aiomas_ng._core.limits import DEFAULT_LIMITS, Limits
from aiomas_ng._io.closing import GRACE
from aiomas_ng._io.endpoint import Server, as_address
from aiomas_ng._io.peer import Peers
from aiomas_ng._io.peer_states import PeerStates, PeerWatching
from aiomas_ng._io.principal import make_own_principal
from aiomas_ng._io.shortcut import Shortcut
from aiomas_ng._io.supervised import Supervised
from aiomas_ng._io.supervisor import Supervisor
from aiomas_ng.content import Coder
from aiomas_ng.exceptions import (
    AgentIdError,
    AgentNotFoundError,
    CallTimeoutError,
    ConnectError,
    DeadlineExceededError,
    RemoteLookupError,
    TLSError,
    TLSRefusedError,
)
from aiomas_ng.faults import Network, make_options
from aiomas_ng.forwarding import Forwarder
from aiomas_ng.liveness import DEFAULT_LIVENESS, Liveness
from aiomas_ng.protocol import Context
from aiomas_ng.util import WILDCARD_HOSTS, SSLCerts

__all__ = ["Agent", "BoundState", "Container", "SSLCerts", "State", "state"]

logger = logging.getLogger(__name__)

#: Seconds that a container which was connected to is given to say whether it has an agent.
ANSWER_TIMEOUT: Final = 30.0

T = TypeVar("T")


def _get_base_url(addr: Any) -> str:
    """Return the base URL of the agents in a container at *addr*."""
    target = as_address(addr)
    if isinstance(target, local_queue.LocalQueue):
        return Address("local", target.queue_id).url
    if isinstance(target, str):
        return Address("ipc", target).url
    host, port = target
    return tcp_url(socket.getfqdn() if host in WILDCARD_HOSTS else host, port)


def _block(coro: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None) -> T:
    """Run *coro* to its end.

    Raises:
        RuntimeError: An event loop is running already.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return util.run(coro, loop=loop)
    coro.close()
    raise RuntimeError("an event loop is running already: use 'await' and as_coro=True")


class Container(PeerWatching):
    """A home for agents, made by :meth:`create`.

    Subclasses may override ``__init__``, with the same arguments.

    Args:
        base_url: What the addresses of the agents begin with; ends with a slash.
        loop: The event loop.
        clock: The agents' clock.
        connect_kwargs: How connections to other containers are opened.
    """

    router = rpc.Service(["agents"])

    #: Who may reach anything here, a rule of :mod:`aiomas_ng.access`; ``None`` for everybody.
    access: Any = StrictAccess()

    @overload
    @classmethod
    def create(
        cls,
        addr: Any,
        *,
        clock: clocks.BaseClock | None = None,
        codec: Any = None,
        extra_serializers: Any = None,
        ssl: Any = None,
        as_coro: Literal[False] = False,
        loop: asyncio.AbstractEventLoop | None = None,
        limits: Limits = DEFAULT_LIMITS,
        resumable: bool = True,
        access: Rule | None = None,
        liveness: Liveness | None = DEFAULT_LIVENESS,
        tracebacks: bool = False,
        insecure: bool = False,
        network: Network | None = None,
    ) -> Self: ...
    @overload
    @classmethod
    def create(
        cls,
        addr: Any,
        *,
        clock: clocks.BaseClock | None = None,
        codec: Any = None,
        extra_serializers: Any = None,
        ssl: Any = None,
        as_coro: Literal[True],
        loop: asyncio.AbstractEventLoop | None = None,
        limits: Limits = DEFAULT_LIMITS,
        resumable: bool = True,
        access: Rule | None = None,
        liveness: Liveness | None = DEFAULT_LIVENESS,
        tracebacks: bool = False,
        insecure: bool = False,
        network: Network | None = None,
    ) -> Coroutine[Any, Any, Self]: ...
    @classmethod
    def create(
        cls,
        addr: Any,
        *,
        clock: clocks.BaseClock | None = None,
        codec: Any = None,
        extra_serializers: Any = None,
        ssl: Any = None,
        as_coro: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        limits: Limits = DEFAULT_LIMITS,
        resumable: bool = True,
        access: Rule | None = None,
        liveness: Liveness | None = DEFAULT_LIVENESS,
        tracebacks: bool = False,
        insecure: bool = False,
        network: Network | None = None,
    ) -> Any:
        """Make a container that listens on *addr*.

        Args:
            addr: ``(host, port)``, the path of a Unix domain socket, a
                :class:`~aiomas_ng.local_queue.LocalQueue`, or a URL of these. With port 0 the system gives
                one, and the agents' addresses have it. With the host ``None``, ``''``, ``'0.0.0.0'`` or
                ``'::'`` the container listens on all interfaces, and its agents' addresses have the machine's
                name.
            clock: The agents' clock, by default an :class:`~aiomas_ng.clocks.AsyncioClock`.
            codec: A subclass of :class:`~aiomas_ng.codecs.Codec`, by default
                :class:`~aiomas_ng.codecs.MsgPack`.
            extra_serializers: Callables that return the arguments of
                :meth:`~aiomas_ng.codecs.Codec.add_serializer`. One for :class:`arrow.Arrow` is always there.
            ssl: :class:`SSLCerts`, or a pair of :class:`ssl.SSLContext` for the server and for clients, for
                TLS.
            as_coro: Return a coroutine, to be awaited where the loop is running already; else block until the
                container is there.
            loop: The event loop; by default the running or current one, or a new one.
            limits: Bounds of each connection, and of all of them together.
            resumable: Take up connections to other containers again when they break, with all calls, streams
                and observations on them.
            access: Who may reach anything here, a rule or :class:`~aiomas_ng.access.Policy`; by default
                everybody who can connect. It is the attribute ``access`` of the container, too.
            liveness: When and how patiently the peer of a connection is asked whether it is there; ``None``
                for never.
            tracebacks: Whether peers get the tracebacks of exceptions in our agents, besides type and
                message, and of those in resources type and message; else these are in our log.
            insecure: To listen on all interfaces without TLS is meant; else the log gets a warning.
            network: A bad network to study the agents on. It applies to the connections that this container
                dials, or to those that it accepts.

        Returns:
            The container, or the coroutine that returns it.

        Raises:
            AddressInUseError: Somebody listens on *addr* already.
            AddressError: *addr* is no address.
            RuntimeError: An event loop is running already, and *as_coro* is not set.
        """
        wire = {
            "codec": codec or channel.DEFAULT_CODEC,
            "extra_serializers": [util.arrow_serializer, *(extra_serializers or ())],
            "limits": limits,
            "resumable": resumable,
            "budget": Budget(limits),
            "liveness": liveness,
            "tracebacks": tracebacks,
        }
        coro = cls._create(addr, clock, ssl, access, insecure, wire, network)
        return coro if as_coro else _block(coro, loop)

    @classmethod
    async def _create(
        cls,
        addr: Any,
        clock: clocks.BaseClock | None,
        ssl: Any,
        access: Rule | None,
        insecure: bool,
        wire: dict[str, Any],
        network: Network | None,
    ) -> Self:
        server_ssl, client_ssl = util.make_ssl_contexts(ssl)
        container: Self

        def connected(chan: channel.Channel) -> None:
            if container._ending.has_begun:
                chan._end_here()
            else:
                container._add_connection(chan)

        # It listens before the container is made, which has to know the port that was given for port 0, and
        # serves after.
        listen = {**wire, "ssl": server_ssl, **make_options(network, "")[1]}
        server = await channel.start_server(addr, connected, insecure=insecure, start_serving=False, **listen)
        try:
            place = server.address.place
            base_url = _get_base_url(place if isinstance(place, tuple) else addr)
            connect_kwargs = {**wire, "ssl": client_ssl, **make_options(network, base_url)[0]}
            container = cls(base_url, server.get_loop(), clock or clocks.AsyncioClock(), connect_kwargs)
            container.set_server(server)
            if access is not None:
                container.access = access
            await server.start_serving()
        except BaseException:
            server.close()
            raise
        return container

    def __init__(
        self,
        base_url: str,
        loop: asyncio.AbstractEventLoop,
        clock: clocks.BaseClock,
        connect_kwargs: dict[str, Any],
    ) -> None:
        self._base_url = base_url
        self._loop = loop
        self._clock = clock
        self._connect_kwargs = connect_kwargs
        self._tcp_server: Server | None = None
        self._connections: set[rpc.RpcClient] = set()  # both those accepted and those made
        limits = connect_kwargs.get("limits", DEFAULT_LIMITS)
        self._peers = Peers(loop, self._open_connection, limits.calls)
        self._peer_states = PeerStates()
        self._next_aid = 0
        self._given_aids: set[str] = set()  # names that were chosen; numbers are known by _next_aid
        self._hooks = Hooks(self, Agent)
        self._supervisor = Supervisor(self)
        self._ending = Ending(self)
        #: The agents; ``agents.dict`` has them by id.
        self.agents = rpc.ServiceDict()
        self._site = ContainerSite(self.agents.dict, self._get_coder, self.router)
        self._context = Context(
            loop,
            self._site,
            __name__,
            client_credentials=connect_kwargs.get("ssl"),
            clock=clock,
            codec=connect_kwargs.get("codec"),
            extra_serializers=connect_kwargs.get("extra_serializers") or (),
            limits=limits,
            shows_errors=connect_kwargs.get("tracebacks", False),
            peers=self._peers,
            url=base_url,
        )
        self.router.adopt()  # so that the agents have their paths, whether we serve already or not

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    @property
    def is_shut_down(self) -> bool:
        """Whether :meth:`shutdown` was called and is through."""
        return self._ending.is_over

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._loop

    @property
    def clock(self) -> clocks.BaseClock:
        """The agents' clock."""
        return self._clock

    @property
    def supervisor(self) -> Supervisor:
        """Owns the background tasks of the agents; see :mod:`aiomas_ng.supervision`."""
        return self._supervisor

    @property
    def context(self) -> Context:
        """Sends requests to the resources of all agents, in this container or another one:
        ``await container.context.get(url)``."""
        return self._context

    @property
    def site(self) -> ContainerSite:
        """The root of the resources that can be reached at this container; the site of each agent lies below
        its id."""
        return self._site

    def get_site(self, agent: Agent | str) -> AgentSite:
        """Return the site of an agent, given itself or its id, to add resources to it.

        Raises:
            AgentNotFoundError: There is no such agent here.
        """
        aid = _get_aid(agent)
        site = self._site.get_agent_site(aid)
        if site is None or (site.agent is not agent and agent is not aid):
            raise AgentNotFoundError(aid if agent is aid else str(agent), self._base_url)
        return site

    def mount(
        self,
        path: Sequence[str] | str,
        url: str,
        *,
        timeout: float | None = None,
        access: Rule | None = None,
    ) -> None:
        """Let the resources of another container be reached through this one.

        ``container.site.remove_resource(path)`` takes it back.

        Args:
            path: Where, below the base URL of this container.
            url: Base URL of the other one, or of an agent there.
            timeout: Seconds that the other one has to answer; ``None`` leaves it to who asks.
            access: Who may use it, a rule of :mod:`aiomas_ng.access`. The other container only sees that it
                is asked by us, for somebody.

        Raises:
            AddressError: *url* is none.
        """
        forwarder = Forwarder(self._context, url, name=self._base_url, timeout=timeout, access=access)
        self._site.add_resource(path, forwarder)

    def _get_coder(self) -> Coder:
        return self._context.coder

    def _state_changed(self, agent: Agent, path: tuple[str, ...]) -> None:
        self._site.notify(_get_aid(agent), agent, path)

    def set_server(self, server: Server) -> None:
        """Set the server that the agents are reached at; done by :meth:`create`.

        Raises:
            RuntimeError: There is one already.
        """
        if self._tcp_server is not None:
            raise RuntimeError("the container has a server already")
        self._tcp_server = server

    async def connect(self, url: str, timeout: float | None = 0) -> rpc.Proxy:
        """Connect to the agent at *url* and return its proxy.

        One connection serves all agents of two containers; it is made anew if it has died. To an agent of
        this container no socket is used.

        Args:
            url: The agent's address, ``tcp://host:port/id``, ``ipc://[path]/id`` or ``local://queue/id``.
            timeout: Seconds to go on trying while nobody answers there; 0 tries once, ``None`` for ever.

        Raises:
            ConnectError: Nobody answers (a ``ConnectionRefusedError``; for a missing socket path a
                ``FileNotFoundError`` as well).
            TLSError: One of both sides refuses the other one; at once, whatever *timeout* says.
            AgentNotFoundError: The container there has no such agent (a ``ConnectionError``).
            RemoteAccessError: The agent, or its container, is not for us (a ``PermissionError``).
            AddressError: *url* does not parse (a ``ValueError``).
            ClosedByUsError: This container was shut down.
            DeadlineExceededError: A deadline around it has passed (:mod:`aiomas_ng.deadlines`).

        Cancelling it is safe and disturbs no other call.
        """
        self._check_loop()
        address, aid = parse_agent_url(url)
        peer = self._peers.get(address)
        client = await peer.connect(timeout)
        proxy = peer.proxies.get(aid)
        if proxy is None:
            class_name = await self._validate(client, address, aid, timeout)
            if class_name is None:
                raise AgentNotFoundError(aid, address.url)
            proxy = rpc.Proxy(peer, f"agents/{aid}", address.url, name=f"{class_name}Proxy({url!r})")
            if peer.client is client:
                peer.proxies[aid] = proxy
        return proxy

    async def _validate(
        self, client: rpc.RpcClient, address: Address, aid: str, timeout: float | None
    ) -> str | None:
        """Ask the container at *address* for the class of an agent.

        Raises:
            ConnectError: What listens there does not answer, or is no container.
        """
        validate = client.remote.validate_aid
        if timeout is not None:
            validate = rpc.with_options(validate, timeout=timeout or ANSWER_TIMEOUT)
        try:
            class_name: str | None = await validate(aid)
        except DeadlineExceededError:
            raise
        except CallTimeoutError as error:
            raise ConnectError(address.url, f"it is connected, but {error}") from error
        except RemoteLookupError as error:
            raise ConnectError(address.url, f"no container answers there: {error.message}") from error
        except TLSRefusedError as error:
            raise TLSError(address.url, error.reason) from error
        return class_name

    @router.expose
    def validate_aid(self, aid: str) -> str | None:
        """Return the name of the class of the agent *aid*, or ``None`` if there is no such agent. Exposed."""
        agent = self.agents.dict.get(aid, self._supervisor._get_absent(aid))
        if agent is None:
            return None
        access_.check(agent.router.access, f"agents/{aid}")
        return type(agent).__name__

    async def remove_agent(self, agent: Agent | str) -> None:
        """Remove an agent, given itself or its id: its :meth:`Agent.on_stop` is run, and calls to it fail
        from now on.

        Raises:
            AgentNotFoundError: There is no such agent here.
        """
        aid = _get_aid(agent)
        found = self.agents.dict.get(aid)
        if found is None and await self._supervisor._give_up(agent, wait=not is_in_hook()):
            return
        if found is None or (found is not agent and agent is not aid):
            raise AgentNotFoundError(aid if agent is aid else str(agent), self._base_url)
        self._forget(aid)
        await self._stop_agent(aid, found)

    def _forget(self, aid: str) -> None:
        del self.agents.dict[aid]
        self.agents.router.unset_sub_router(aid)
        self._site.remove_agent(aid)

    @overload
    def shutdown(self, as_coro: Literal[False] = False, *, grace: float = ...) -> None: ...
    @overload
    def shutdown(self, as_coro: Literal[True], *, grace: float = ...) -> Coroutine[Any, Any, None]: ...
    def shutdown(self, as_coro: bool = False, *, grace: float = GRACE) -> Coroutine[Any, Any, None] | None:
        """Stop listening, stop the agents, let handlers that run end, and close all connections; safe to be
        called twice.

        Peers are told, and new requests of theirs are refused: they get
        :exc:`~aiomas_ng.exceptions.ClosedByPeerError` with ``was_sent`` ``False``. Where nothing runs, it
        returns at once.

        Args:
            as_coro: Return a coroutine, to be awaited where the loop is running; else block until it is done.
            grace: Seconds that handlers which run are given to end by themselves; then they are cancelled.
                All :meth:`Agent.on_stop` together are given as much, but at least 5 s.

        Raises:
            RuntimeError: An event loop is running, and *as_coro* is not set; or it is another one than that
                of the container.
            ValueError: *grace* is no number >= 0.

        Who calls it again waits for the end as well, except in a handler or hook of the container, for whose
        end the first caller waits; with less grace, it comes earlier. Cancelling it ends all at once, and
        skips what the agents still do in :meth:`Agent.on_stop`.
        """
        coro = self._ending.run(grace)
        return coro if as_coro else _block(coro, self._loop)

    async def serve_forever(
        self, *, signals: Iterable[int] = END_SIGNALS, grace: float = GRACE
    ) -> signal.Signals | None:
        """Serve until the process is told to end by a signal, then :meth:`shutdown` in order; for the end of
        a program's main function.

        A second signal ends all at once. It returns, too, when somebody else has shut the container down.

        Args:
            signals: The signals; by default SIGINT (Ctrl-C) and SIGTERM. What they did before is put back
                afterwards.
            grace: As for :meth:`shutdown`.

        Returns:
            The signal, ``None`` if it was not one that has ended the container.

        Raises:
            RuntimeError: This is not the main thread, which alone can watch signals.
            ValueError: One of *signals* cannot be watched, or *grace* is no number >= 0.

        Cancelling it shuts down in order, too; cancelling it twice, at once. Several containers of a process
        may do this at the same time.
        """
        return await self._ending.serve(signals, grace)

    def _close_server(self) -> None:
        server, self._tcp_server = self._tcp_server, None
        if server is not None:
            server.close()

    def _check_loop(self) -> None:
        """Raise ``RuntimeError`` if another loop runs than that of the container."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                f"{self} belongs to another event loop than the one that runs: where you use asyncio.run(), "
                f"create the container in the coroutine that it runs, with as_coro=True"
            )

    # Connections

    async def _open_connection(self, address: Address, timeout: float | None) -> rpc.RpcClient:
        """Open a connection for :attr:`_peers`."""
        if address == self._own_address():
            return await self._join_self(address)
        kwds = dict(self._connect_kwargs)
        tls = rpc.tls_for(address, kwds.pop("ssl", None))
        opening = channel.open_connection(address, timeout=timeout, loop=self._loop, **kwds, **tls)
        chan = await self._dialled(address, opening)
        if self._ending.is_closing:
            chan._end_here()
            self._peers.check_open()
        return self._add_connection(chan, address.url)

    def _own_address(self) -> Address:
        return parse_agent_url(self._base_url + "-")[0]

    async def _join_self(self, address: Address) -> rpc.RpcClient:
        """Return the near end of a connection that ends in this container without a socket."""
        pair = channel.open_pair(
            self._base_url,
            loop=self._loop,
            codec=self._connect_kwargs["codec"],
            extra_serializers=self._connect_kwargs["extra_serializers"],
            limits=self._connect_kwargs.get("limits", DEFAULT_LIMITS),
            tracebacks=self._connect_kwargs.get("tracebacks", False),
            budget=self._connect_kwargs.get("budget"),
        )
        # What is called through it has nothing to do with who happens to connect first.
        near, far = await join_pair(pair, self._loop)
        near._principal = far._principal = make_own_principal()
        server = self._add_connection(far)
        client = self._add_connection(near, address.url)
        server._is_own = client._is_own = True
        if near._plain is not None:
            Shortcut(client, server, self.router)
        return client

    def _add_connection(self, chan: channel.Channel, url: str | None = None) -> rpc.RpcClient:
        """Serve a connection, which was dialled if there is a *url*."""
        client = rpc.RpcClient(chan, self, own_url=self._base_url, peers=self._peers, clock=self._clock)
        client.url = url
        self._connections.add(client)
        self._context.attach(chan, url)
        chan._when_lost(lambda _: self._ending.forget(client))
        return client

    # Agents

    def _register(self, agent: Agent, aid: str | None) -> str:
        """Give *agent* an id, attach it and return its address.

        Raises:
            AgentIdError: *aid* is malformed, or was given before.
        """
        replaced = self._supervisor._claim(agent, aid)
        if replaced is not None:
            aid = replaced
        elif aid is None:
            while str(self._next_aid) in self._given_aids:
                self._next_aid += 1
            aid = str(self._next_aid)
            self._next_aid += 1
        else:
            self._check_aid(aid)
            self._given_aids.add(aid)
        if asyncio._get_running_loop() is not None:
            self._check_loop()
        self.agents.router.set_sub_router(agent.router, aid)
        self.agents.dict[aid] = agent
        self._hooks.register(aid, agent)
        return self._base_url + aid

    def _check_aid(self, aid: Any) -> None:
        if not isinstance(aid, str) or not aid or set(aid) & set("/?#[] \t\r\n"):
            raise AgentIdError(
                f"an agent id must be a non-empty string without '/', '?', '#', brackets and spaces, "
                f"not {aid!r}"
            )
        if aid in self._given_aids or (
            aid.isdecimal() and str(int(aid)) == aid and int(aid) < self._next_aid
        ):
            raise AgentIdError(f"agent id {aid!r} was given before; ids are never given twice")

    async def _stop_agent(self, aid: str, agent: Agent) -> None:
        """End an agent: its :meth:`Agent.on_ready`, its tasks, and at last its :meth:`Agent.on_stop`."""
        stopping = self._hooks.begin_stop(aid, agent)
        if stopping is not None:
            await stopping

    async def _wait_ready(self, agent: Agent) -> None:
        """Wait until the agent's :meth:`Agent.on_ready` has ended."""
        await self._hooks.wait_ready(_get_aid(agent))

    def _may_get_ready(self, aid: str, agent: Agent) -> bool:
        return self.agents.dict.get(aid) is agent and not self._ending.has_begun


def _get_aid(agent: Agent | str) -> str:
    return agent if isinstance(agent, str) else agent.addr.rpartition("/")[2]


class _SiteOfAgent:
    """The site of an agent as its attribute, which a subclass or an instance may use for something else."""

    def __get__(self, agent: Agent | None, owner: type) -> Any:
        return self if agent is None else agent.container.get_site(agent)


class Agent(Supervised):
    """Base of all agents.

    Args:
        container: The container that the agent lives in.
        aid: A name to be the agent's id; by default it gets a number. No id is ever given twice by a
            container.

    Raises:
        TypeError: *container* is no container.
        AgentIdError: *aid* is malformed, or was given before.
    """

    router = rpc.Service()

    #: Who may reach the agent's methods and resources, a rule of :mod:`aiomas_ng.access`; ``None`` for
    #: everybody. Set by a subclass or, at any time, for one agent.
    access: Any = StrictAccess()

    #: The agent's resources, an :class:`~aiomas_ng.resource.Site`: those declared with :func:`state`, and
    #: those added by ``self.site.add_resource(path, resource)``.
    site = _SiteOfAgent()

    def __init_subclass__(cls, **kwds: Any) -> None:
        super().__init_subclass__(**kwds)
        check_class(cls)
        undo_if_construction_fails(cls)
        get_states(cls)  # raises an error now, and not when the first agent is asked for its state

    def __init__(self, container: Container, *, aid: str | None = None) -> None:
        if not isinstance(container, Container):
            hint = " (await it first)" if inspect.isawaitable(container) else ""
            raise TypeError(f"container must be a Container but is {container!r}{hint}")
        self.__container = container
        self.__addr = container._register(self, aid)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.addr!r})"

    @property
    def container(self) -> Container:
        """The container that the agent lives in."""
        try:
            return self.__container
        except AttributeError:
            raise _not_initialized(self) from None

    @property
    def addr(self) -> str:
        """The agent's address, for :meth:`Container.connect`."""
        try:
            return self.__addr
        except AttributeError:
            raise _not_initialized(self) from None

    def on_ready(self) -> Any:
        """Called by the loop when the agent is complete and its container serves; may be a coroutine
        function.

        An exception is logged.
        """

    def on_stop(self) -> Any:
        """Called when the agent is removed or its container shuts down, while connections are still open; may
        be a coroutine function.

        Where :meth:`on_ready` still runs, it is cancelled first. An exception is logged.
        """


def _not_initialized(agent: Agent) -> RuntimeError:
    return RuntimeError(f"{type(agent).__name__}.__init__ must call super().__init__(container) first")
