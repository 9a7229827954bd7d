"""Where connections enter a bad network: those that are dialled, and those that are accepted."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from aiomas_ng._core.fault_rules import Route, Rules
from aiomas_ng._core.line import Line
from aiomas_ng._io.endpoint import address_of
from aiomas_ng._io.fault_flow import Owner
from aiomas_ng._io.fault_outages import Note, Outages
from aiomas_ng._io.fault_time import Timing
from aiomas_ng._io.fault_transport import FaultyTransport
from aiomas_ng.exceptions import ConnectError

__all__ = ["Connect", "Factory", "Gate"]

Factory = Callable[[], Any]
#: Connects what a factory makes.
Connect = Callable[[Factory], Awaitable[Any]]


class Gate:
    """Makes the connections of a network.

    Args:
        owner: The network.
        seed: What all that is random depends on.
        rules: The conditions.
        outages: What does not get through.
        timing: How long it takes to connect is measured by it.
        connect_time: Seconds after which an attempt without an answer is given up, ``None`` for never.
        note: Takes note of attempts.
    """

    def __init__(
        self,
        owner: Owner,
        seed: int | str,
        rules: Rules,
        outages: Outages,
        timing: Timing,
        connect_time: float | None,
        note: Note,
    ) -> None:
        self._owner = owner
        self._seed = seed
        self._rules = rules
        self._outages = outages
        self._timing = timing
        self._connect_time = connect_time
        self._note = note
        self._is_open = False
        self._waiting: dict[asyncio.Future[None], None] = {}  # no set: its order would differ
        self._routes: dict[Route, tuple[int, int]] = {}  # number of the route, and of its connections
        self._number = 0

    def open(self) -> None:
        """Let pass whoever wants to connect, from now on for ever."""
        self._is_open = True
        self.wake()

    def wake(self) -> None:
        """Let all who want to connect look anew at the outages."""
        for future in list(self._waiting):
            _wake(future)

    async def dial(self, source: str, connect: Connect, target: Any, factory: Factory) -> Any:
        """Connect from a place to an address by means of *connect*; return what *factory* has made.

        Raises:
            ConnectError: The network refuses it, or lets nothing through; or *connect* has failed.
        """
        if self._is_open:
            return await connect(factory)
        route = Route(source, address_of(target).url)
        number, make_rng = self._enter(route)
        self._note("dial", route, number)
        if self._is_refused(route, make_rng("dial")):
            self._note("refuse", route, number)
            raise ConnectError(target, "the network refuses it")
        lines = self._make_lines(source, route.target, make_rng)
        made: list[Any] = []

        def make_wire() -> asyncio.Protocol:
            made.append(factory())
            transport = FaultyTransport(
                made[-1], self._owner, route, number, lines, self._timing, has_dialled=True
            )
            return transport.wire

        try:
            await self._shake_hands(target, route, number, sum(line.delay for line in lines))
            await connect(make_wire)
        except ConnectError as error:
            self._note("fail", route, number, type(error).__name__)
            raise
        return made[-1]

    def accept(self, get_url: Callable[[], str], factory: Factory) -> Factory:
        """Return a factory in place of that of a server, whose URL is told later."""

        def make_wire() -> asyncio.BaseProtocol:
            if self._is_open:
                protocol: asyncio.BaseProtocol = factory()
                return protocol
            route = Route("", get_url())
            number, make_rng = self._enter(route)
            if self._is_refused(route, make_rng("dial")):
                self._note("refuse", route, number)
                return _Refusal()
            lines = self._make_lines(route.target, "", make_rng)
            transport = FaultyTransport(
                factory(), self._owner, route, number, lines, self._timing, has_dialled=False
            )
            return transport.wire

        return make_wire

    def _enter(self, route: Route) -> tuple[int, Callable[[str], Random]]:
        """Count a connection; return its number, and what makes its generators of random numbers."""
        self._number += 1
        index, count = self._routes.get(route, (len(self._routes), 0))
        self._routes[route] = index, count + 1
        # By the order of the routes and not by their names, in which may be a port that the system chose.
        return self._number, lambda what: Random(f"{self._seed} {index} {count} {what}")

    def _is_refused(self, route: Route, rng: Random) -> bool:
        share = self._rules.get(route.source, route.target).refusals
        return rng.random() < share or self._outages.is_refused(route)

    def _make_lines(self, sender: str, receiver: str, make_rng: Callable[[str], Random]) -> tuple[Line, Line]:
        get = self._rules.get
        return Line(get(sender, receiver), make_rng("out")), Line(get(receiver, sender), make_rng("in"))

    async def _shake_hands(self, target: Any, route: Route, number: int, seconds: float) -> None:
        """Wait as long as it takes until a connection is there: as long as nothing gets through, and the time
        that packets take there and back.

        Raises:
            ConnectError: That was too long.
        """
        end = None if self._connect_time is None else self._timing.now() + self._connect_time
        while True:
            if self._is_blocked(route):
                self._note("hang", route, number)
            while self._is_blocked(route):
                await self._wait(end)
                if end is not None and self._timing.now() >= end and self._is_blocked(route):
                    raise ConnectError(target, f"no answer within {self._connect_time} s")
            arrival = self._timing.now() + seconds
            while not self._is_blocked(route):
                if self._timing.now() >= arrival or self._is_open:
                    return
                await self._wait(arrival)

    def _is_blocked(self, route: Route) -> bool:
        return not self._is_open and self._outages.is_blocked(route)

    async def _wait(self, end: float | None) -> None:
        """Wait until *end*, or until an outage begins or ends."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        timer = None if end is None else self._timing.call_at(end, functools.partial(_wake, future))
        try:
            await future
        finally:
            del self._waiting[future]
            if timer is not None:
                timer.cancel()


class _Refusal(asyncio.Protocol):
    """A connection that the system has accepted, but the network does not."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
