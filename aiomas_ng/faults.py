"""Bad networks: delays, throttles, cuts, blackholes and partitions, on every transport, as a seed says.

A :class:`Network` is given to a container, to ``open_connection`` or to ``start_server``. It then lies
between the real connections and the programs, and does to the bytes what its :class:`Conditions` say, and
what it is told while the program runs::

    network = faults.Network(seed=1, delay=(0.01, 0.1), cut_after=faults.Exponential(50_000), clock=clock)
    container = await Container.create(addr, network=network, as_coro=True)
    network.partition([a.addr], [b.addr])

The rules:

- The bytes of one connection arrive in their order, and all of them until the connection breaks.
- **One end does it, for both directions.** By default that is the end which has dialled, as it knows both
  addresses: containers that share a network, or have one each, meet it once. A network for peers that have
  none, such as the clients of a server, is made with ``applies_to="accepted"``.
- All that is random is drawn from the seed, for each connection by itself: the n-th connection of the m-th
  route has the same fate in each run. On a LocalQueue with an :class:`~aiomas_ng.clocks.ExternalClock` two
  runs with the same seed have the same :attr:`Network.log`. Over sockets the log differs in what the system
  decides, such as how many bytes are read at a time.
- A place is known by its base URL (``local://home/``; that of an agent means the same), or by the name that
  :meth:`Network.at` gives to one that does not listen.
- With TLS the faults apply to what is encrypted, so numbers of bytes are those of our frames.
- Calls inside of one container use no connection, and meet no network.

Without a network nothing of this is there.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from aiomas_ng import clocks, local_queue
from aiomas_ng._core.addresses import parse_url
from aiomas_ng._core.fault_rules import (
    Apart,
    Between,
    Conditions,
    Event,
    Exponential,
    Fate,
    Route,
    Rules,
    Scope,
)
from aiomas_ng._io.endpoint import address_of, as_address
from aiomas_ng._io.fault_gate import Connect, Factory, Gate
from aiomas_ng._io.fault_outages import Outage, Outages
from aiomas_ng._io.fault_time import Timing
from aiomas_ng._io.fault_transport import FaultyTransport

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Conditions", "Event", "Exponential", "FaultyTransport", "Network", "Outage", "Place", "Route"]

#: Events that a network's log keeps, unless it is told otherwise.
LOG_SIZE: Final = 100_000
#: Seconds after which an attempt to connect is given up where nothing answers, as by Linux.
CONNECT_TIME: Final = 127.0


def _url_of(addr: Any) -> str:
    """Return the base URL of an address."""
    return address_of(as_address(addr)).url


def _name_of(place: Any) -> str:
    """Return the name of a place that is given as a :class:`Place`, an address, a URL, or by that name.

    Raises:
        AddressError: It is none of these.
    """
    if isinstance(place, Place):
        return place.name
    if isinstance(place, str) and "://" in place:
        return parse_url(place)[0].url
    if isinstance(place, str) and "/" not in place:
        return place
    return _url_of(place)


def _names_of(places: Any) -> frozenset[str] | None:
    """Return the names of one place, or of several in a list or set; ``None`` means all."""
    if places is None:
        return None
    if isinstance(places, list | set | frozenset):
        return frozenset(map(_name_of, places))
    return frozenset([_name_of(places)])


class Place:
    """Somewhere in a network, made by :meth:`Network.at`; given in place of the network, it says who
    dials."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name

    def __repr__(self) -> str:
        return f"<Place {self.name!r} in {self.network!r}>"

    async def _dial(self, connect: Connect, target: Any, factory: Factory) -> Any:
        """Connect to *target* by means of *connect*; used by :mod:`aiomas_ng.channel`.

        Returns:
            The protocol that *factory* has made.

        Raises:
            ConnectError: The network refuses it, or lets nothing through; or *connect* has failed.
            ValueError: The network applies to accepted connections.
        """
        network = self.network
        if network.applies_to != "dialled":
            raise ValueError(f"{network!r} applies to accepted connections only: it cannot be used to dial")
        return await network._gate.dial(self.name, connect, target, factory)

    def _accept(self, get_url: Callable[[], str], factory: Factory) -> Factory:
        """Return a factory in place of *factory*, that of a server; it is the same everywhere."""
        return self.network._accept(get_url, factory)


class Network:
    """A bad network, seeded.

    It belongs to one event loop, and is not safe for threads. Pickled, it becomes a network of its own with
    the same seed and conditions: each container process has one.

    Args:
        seed: What all that is random depends on.
        clock: Whose time delays and rates take, for example an :class:`~aiomas_ng.clocks.ExternalClock`; by
            default real time. A simulated clock has to be moved on while something waits for bytes.
        applies_to: The connections of whoever has this network that it applies to: those that are
            ``'dialled'`` or those that are ``'accepted'``.
        connect_time: Seconds after which an attempt to connect is given up if nothing gets through; ``None``
            for never.
        is_tracing: Whether each piece that passes is logged, as ``out`` and ``in`` with its size.
        log_size: How many events are kept; the oldest ones go.
        **conditions: See :class:`Conditions`: ``delay``, ``jitter``, ``rate``, ``window``, ``cut_after``,
            ``blackhole_after``, ``blackhole_for``, ``refusals``.

    Raises:
        TypeError: There is no such condition.
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        seed: int | str = 0,
        *,
        clock: clocks.BaseClock | None = None,
        applies_to: Literal["dialled", "accepted"] = "dialled",
        connect_time: float | None = CONNECT_TIME,
        is_tracing: bool = False,
        log_size: int = LOG_SIZE,
        **conditions: Any,
    ) -> None:
        if applies_to not in ("dialled", "accepted"):
            raise ValueError(f"applies_to must be 'dialled' or 'accepted' but is {applies_to!r}")
        if connect_time is not None and not connect_time > 0:
            raise ValueError(f"connect_time must be a number of seconds > 0, or None, not {connect_time!r}")
        if log_size < 1:
            raise ValueError(f"log_size must be a number >= 1 but is {log_size!r}")
        self.seed = seed
        self.clock = clock
        self.applies_to = applies_to
        self.is_tracing = is_tracing
        self._connect_time = connect_time
        self._log_size = log_size
        self._rules = Rules(Conditions(**conditions))
        self._start()

    def _start(self) -> None:
        self._timing = Timing(self.clock)
        self._origin: float | None = None if self.clock is None else 0.0
        self._log: collections.deque[Event] = collections.deque(maxlen=self._log_size)
        self._counts: collections.Counter[str] = collections.Counter()
        self._is_closed = False
        # No set: its order would differ from run to run.
        self._transports: dict[FaultyTransport, None] = {}
        self._outages = Outages(self._timing, self._note, self._refresh)
        self._gate = Gate(
            self, self.seed, self._rules, self._outages, self._timing, self._connect_time, self._note
        )

    def __repr__(self) -> str:
        state = ", closed" if self._is_closed else f", {len(self._transports)} connections"
        return f"<Network with seed {self.seed!r}{state}>"

    def __getstate__(self) -> dict[str, Any]:
        names = ("seed", "clock", "applies_to", "is_tracing", "_connect_time", "_log_size", "_rules")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # What was done

    @property
    def log(self) -> list[Event]:
        """What the network has done and seen, in that order.

        ===========  ==========================================================================
        event        meaning
        ===========  ==========================================================================
        dial         somebody wants to connect
        refuse       the attempt is refused
        hang         the attempt gets no answer, as nothing gets through
        fail         the attempt has failed: nobody listens, or no answer came in time
        connect      there is a connection, on the side that has dialled
        accept       the same on the side that was dialled
        out, in      so many bytes have passed, where the network traces
        cut          a connection was broken
        blackhole    bytes vanish, on one connection or, where it has no number, between places
        hold         bytes are held back
        release      they pass again
        partition    bytes are held back, or vanish, between groups of places
        close        our end has closed a connection
        abort        our end has broken a connection
        lost         the peer has closed or broken a connection, which our end is told later
        set          conditions have changed
        heal         an outage is over
        ===========  ==========================================================================
        """
        return list(self._log)

    @property
    def counts(self) -> dict[str, int]:
        """How often each event has occurred, also those that the log has forgotten."""
        return dict(self._counts)

    @property
    def connections(self) -> list[FaultyTransport]:
        """The connections that there are, oldest first; also those that only the peer's end knows of."""
        return list(self._transports)

    def get_conditions(self, sender: Any, receiver: Any) -> Conditions:
        """Return the conditions of what goes from one place to another."""
        return self._rules.get(_name_of(sender), _name_of(receiver))

    # What can be done

    def at(self, name: Any) -> Place:
        """Return the place of that name, to be given in place of the network to whoever dials there.

        Args:
            name: A name without a ``/``, a URL or an address. A container does this with its base URL.
        """
        return Place(self, _name_of(name))

    def set(self, a: Any = None, b: Any = None, *, one_way: bool = False, **conditions: Any) -> None:
        """Change conditions, also for the connections that there are.

        What is under way arrives under the old ones. Later calls count more than earlier ones.

        Args:
            a: Between this place, or these in a list, …
            b: … and this one, or these. ``None`` means all.
            one_way: Only for what goes from *a* to *b*.
            **conditions: See :class:`Conditions`.

        Raises:
            TypeError: There is no such condition.
            ValueError: A value is out of its range.
        """
        self._rules.change(Between(_names_of(a), _names_of(b), one_way), conditions)
        self._note("set", detail=", ".join(f"{name}={value!r}" for name, value in conditions.items()))
        for transport in list(self._transports):
            transport._apply(self._rules.get)

    def cut(self, a: Any = None, b: Any = None, *, after: int | None = None) -> int:
        """Break all connections between places for both ends, and return how many.

        Args:
            a: Between this place, or these in a list, …
            b: … and this one, or these. ``None`` means all.
            after: Each only when so many more bytes have passed on it in one direction; ``None`` for now.
        """
        scope = Between(_names_of(a), _names_of(b))
        chosen = [
            transport
            for transport in self._transports
            if scope.covers(transport.route.source, transport.route.target)
        ]
        for transport in chosen:
            transport.cut(after)
        return len(chosen)

    def blackhole(
        self, a: Any = None, b: Any = None, *, one_way: bool = False, seconds: float | None = None
    ) -> Outage:
        """Let all bytes between places vanish, without a sign to either side; attempts to connect hang.

        A connection that has lost something never recovers. When this is over, it breaks as soon as one side
        writes what would have come behind the gap; until then it is half-open.

        Args:
            a: Between this place, or these in a list, …
            b: … and this one, or these. ``None`` means all.
            one_way: Only what goes from *a* to *b* vanishes.
            seconds: For how long; ``None`` until it is ended.
        """
        scope = Between(_names_of(a), _names_of(b), one_way)
        return self._begin_outage("blackhole", scope, Fate.LOSE, seconds)

    def hold(
        self, a: Any = None, b: Any = None, *, one_way: bool = False, seconds: float | None = None
    ) -> Outage:
        """Hold all bytes between places back; attempts to connect hang.

        When this is over, everything arrives: as in a short outage, after which TCP sends again.

        Args:
            a: Between this place, or these in a list, …
            b: … and this one, or these. ``None`` means all.
            one_way: Only what goes from *a* to *b* is held back.
            seconds: For how long; ``None`` until it is ended.
        """
        scope = Between(_names_of(a), _names_of(b), one_way)
        return self._begin_outage("hold", scope, Fate.HOLD, seconds)

    def partition(self, *groups: Iterable[Any], lossy: bool = False, seconds: float | None = None) -> Outage:
        """Let nothing through between groups of places; attempts to connect hang.

        Args:
            *groups: Lists of places. A single group is parted from all others; of several, places that are in
                none of them reach all.
            lossy: What is written vanishes, as with :meth:`blackhole`; else it is held back.
            seconds: For how long; ``None`` until it is ended.

        Raises:
            ValueError: No group is given.
        """
        if not groups:
            raise ValueError("a partition needs groups: partition([a, b], [c])")
        scope = Apart(tuple(_names_of(list(_as_group(group))) or frozenset() for group in groups))
        return self._begin_outage("partition", scope, Fate.LOSE if lossy else Fate.HOLD, seconds)

    def refuse(self, a: Any = None, b: Any = None, *, seconds: float | None = None) -> Outage:
        """Refuse new connections between places; those that there are go on.

        Args:
            a: Between this place, or these in a list, …
            b: … and this one, or these. ``None`` means all.
            seconds: For how long; ``None`` until it is ended.
        """
        return self._begin_outage("refuse", Between(_names_of(a), _names_of(b)), Fate.PASS, seconds)

    def heal(self) -> None:
        """End all outages, also those of single connections."""
        self._outages.end(list(self._outages.current))
        for transport in list(self._transports):
            transport.release()

    def close(self) -> None:
        """Be a good network from now on: end all outages, let arrive what is under way, apply no more
        conditions, and log nothing more; safe to be called twice.

        Call it before the end of a program: connections that only the peer's end knows of are closed by it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._gate.open()
        self.heal()
        for transport in list(self._transports):
            transport._rush()

    def _begin_outage(self, what: str, scope: Scope, fate: Fate, seconds: float | None) -> Outage:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        return self._outages.begin(what, scope, fate, seconds)

    def _refresh(self) -> None:
        for transport in list(self._transports):
            transport._refresh()
        self._gate.wake()

    # For channel.open_connection() and channel.start_server()

    async def _dial(self, connect: Connect, target: Any, factory: Factory) -> Any:
        """Connect from a place that has no name; see :class:`Place`."""
        return await self.at("")._dial(connect, target, factory)

    def _accept(self, get_url: Callable[[], str], factory: Factory) -> Factory:
        """Return a factory in place of *factory*, that of a server; used by :mod:`aiomas_ng.channel`.

        Raises:
            ValueError: The network applies to dialled connections.
        """
        if self.applies_to != "accepted":
            raise ValueError(
                f"{self!r} applies to dialled connections only; "
                f"a network for the clients of a server is made with applies_to='accepted'"
            )
        return self._gate.accept(get_url, factory)

    # As the owner of transports

    def _begin(self, transport: FaultyTransport) -> None:
        """Take note of a new connection."""
        self._transports[transport] = None
        if self._is_closed:  # while it was being made
            transport._rush()
        self._note("connect" if self.applies_to == "dialled" else "accept", transport.route, transport.number)

    def _get_fate(self, sender: str, receiver: str) -> Fate:
        """Return what outages do to bytes from one place, given by its name, to another one."""
        return self._outages.get_fate(sender, receiver)

    def _forget(self, transport: FaultyTransport) -> None:
        """Take note that a connection is over for both ends."""
        self._transports.pop(transport, None)

    def _note_of(self, transport: FaultyTransport, what: str, detail: float | str = "") -> None:
        """Take note of what has happened to a connection."""
        self._note(what, transport.route, transport.number, detail)

    def _note(self, what: str, route: Route | None = None, number: int = 0, detail: float | str = "") -> None:
        if self._is_closed:
            return
        try:
            now = self._timing.now()
        except RuntimeError:  # before the loop runs
            now = self._origin or 0.0
        else:
            if self._origin is None:
                self._origin = now
        self._log.append(Event(now - (self._origin or 0.0), what, route, number, detail))
        self._counts[what] += 1


def make_options(network: Network | None, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options with which a container or context at the place *name* dials, and those with which it
    listens.

    Raises:
        TypeError: *network* is neither a network nor ``None``.
    """
    if network is None:
        return {}, {}
    if not isinstance(network, Network):
        raise TypeError(f"network must be a Network, or None, but is {network!r}")
    return (
        ({"network": network.at(name)}, {}) if network.applies_to == "dialled" else ({}, {"network": network})
    )


def _as_group(group: Any) -> Iterable[Any]:
    is_one: bool = isinstance(group, str | tuple | Place | local_queue.LocalQueue)
    return [group] if is_one else group
