"""What a container knows of the others that it has dialled, and whom it tells."""

from __future__ import annotations

import asyncio
import datetime
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.addresses import Address, parse_url
from aiomas_ng._io.listeners import Listeners
from aiomas_ng.exceptions import AddressError, ConnectError, WaitTimeoutError
from aiomas_ng.liveness import ConnectionState, PeerStatus

if TYPE_CHECKING:
    from aiomas_ng._io.peer import Peers
    from aiomas_ng.channel import Channel

__all__ = ["PeerStates", "PeerWatching"]

#: Peers that are remembered after they have gone; beyond, those that went first are forgotten.
MAX_GONE: Final = 1000


class PeerStates:
    """The states of the peers that were connected to, by the base URL of each."""

    def __init__(self) -> None:
        self._statuses: dict[str, PeerStatus] = {}
        self._channels: dict[str, Channel] = {}  # those that count
        self._gone: dict[str, None] = {}  # in their order
        self._listeners = Listeners("on_peer callback")
        #: The same, for everybody to read.
        self.view: Mapping[str, PeerStatus] = types.MappingProxyType(self._statuses)

    def add_listener(self, callback: Callable[[str, ConnectionState], Any]) -> Callable[[], None]:
        """Tell *callback* of changes; return a function that ends this."""
        return self._listeners.add(callback)

    def connected(self, url: str, channel: Channel) -> None:
        """There is a new connection to the peer at *url*."""

        def changed(_: Channel, state: ConnectionState) -> None:
            if self._channels.get(url) is channel:
                self._set(url, state, channel._error)

        self._channels[url] = channel
        channel.on_state(changed)
        self._gone.pop(url, None)
        self._set(url, channel.state, channel._error)

    def failed(self, url: str, error: ConnectError) -> None:
        """The peer at *url* could not be connected to."""
        status = self._statuses.get(url)
        if status is not None:
            # Not the error itself, which holds all that was on the stack when it was raised.
            copy = type(error)(error.address, error.reason)
            self._statuses[url] = PeerStatus(url, status.state, status.since, copy)

    def _set(self, url: str, state: ConnectionState, error: Exception | None) -> None:
        before = self._statuses.get(url)
        if before is not None and before.state is state:
            return
        since = datetime.datetime.now(datetime.UTC)
        if error is None and before is not None:
            error = before.error
        self._statuses[url] = PeerStatus(url, state, since, error)
        if state is ConnectionState.CLOSED:
            self._channels.pop(url, None)
            self._gone[url] = None
            if len(self._gone) > MAX_GONE:
                oldest = next(iter(self._gone))
                del self._gone[oldest], self._statuses[oldest]
        self._listeners.tell(url, state)


class PeerWatching:
    """The part of a :class:`~aiomas_ng.agent.Container` that tells which others are there."""

    _peers: Peers
    _peer_states: PeerStates
    _base_url: str

    @property
    def peers(self) -> Mapping[str, PeerStatus]:
        """What is known of the other containers that this one has connected to, by their base URLs, as
        ``'tcp://localhost:5555/'``.

        Read-only, and always up to date. Containers that have connected to this one are not in it: where
        they listen they do not say. Of those that have gone the latest 1000 stay in it.
        """
        return self._peer_states.view

    def on_peer(self, callback: Callable[[str, ConnectionState], Any]) -> Callable[[], None]:
        """Call *callback* with the base URL of a peer and its new state whenever that changes; return a
        function that ends this.

        It is called for each change once and in their order: ``CONNECTED`` for the first connection and when
        the peer has returned, ``UNRESPONSIVE``, ``INTERRUPTED`` and ``CLOSED`` when it goes. A peer that has
        gone is dialled anew by the next call to one of its agents, by :meth:`connect` or
        :meth:`wait_for_peer`. If the callback fails, that is logged, and harms nothing.

        Raises:
            TypeError: *callback* is not a plain function.
        """
        return self._peer_states.add_listener(callback)

    async def wait_for_peer(
        self,
        url: str,
        state: ConnectionState = ConnectionState.CONNECTED,
        timeout: float | None = None,
    ) -> PeerStatus:
        """Wait until the container at *url* is in a state, and return its status.

        For ``CONNECTED`` it is dialled, with growing pauses, until it answers. The state may have passed when
        this returns.

        Args:
            url: Its base URL, or the address of an agent there.
            state: The state. A peer that was never connected to is in none.
            timeout: Seconds to wait; ``None`` for no limit, 0 to look once.

        Raises:
            WaitTimeoutError: That is not so in time.
            AddressError: *url* does not parse, or is that of this container.
            ClosedByUsError: This container was shut down.

        Cancelling it is safe. Any number of tasks may wait.
        """
        address, _ = parse_url(url)
        if address == parse_url(self._base_url)[0]:
            raise AddressError(f"{url!r} is the address of this container itself")
        self._peers.check_open()
        try:
            if timeout is not None and timeout <= 0:
                status = self.peers.get(address.url)
                if status is None or status.state is not state:
                    raise TimeoutError
                return status
            async with self._peers._attempt(timeout):
                return await self._wait_for_peer(address, state)
        except TimeoutError:
            self._peers.check_open()
            raise WaitTimeoutError(f"{address.url} is {state.value}", timeout or 0) from None

    async def _wait_for_peer(self, address: Address, state: ConnectionState) -> PeerStatus:
        peer, url = self._peers.get(address), address.url
        is_wanted = state is ConnectionState.CONNECTED
        while True:
            if is_wanted:
                await peer.connect(None)
            status = self.peers.get(url)
            if status is not None and status.state is state:
                return status
            passed: asyncio.Future[PeerStatus] = asyncio.get_running_loop().create_future()

            def changed(
                peer_url: str, new: ConnectionState, passed: asyncio.Future[PeerStatus] = passed
            ) -> None:
                is_end = new is state or (is_wanted and new is ConnectionState.CLOSED)
                if peer_url == url and is_end and not passed.done():
                    passed.set_result(self.peers[url])

            remove = self.on_peer(changed)
            try:
                status = await passed
            finally:
                remove()
            if status.state is state:
                return status

    async def _dialled(self, address: Address, opening: Awaitable[Channel]) -> Channel:
        """Return the channel to another container that is being opened, and note what comes of it."""
        try:
            channel = await opening
        except ConnectError as error:
            self._peer_states.failed(address.url, error)
            raise
        self._peer_states.connected(address.url, channel)
        return channel
