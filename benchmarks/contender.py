"""What a contender is: a module with a server, and a client that offers the same operations as the others.

Server and client are context managers without arguments, or with the address of the server. Where the
library is made for asyncio they are asynchronous ones, and all operations return awaitables; else they and
all operations are blocking. An operation that a library does not have stays ``None``, and the table shows a
dash for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["AGENTS", "IN_FLIGHT", "RECORD", "AsyncContender", "BlockingContender", "Contender", "Operations"]

#: How many agents a server has, at least, for the calls to many agents.
AGENTS: Final = 1_000
#: How many calls are kept in flight.
IN_FLIGHT: Final = 256
#: The small record: 5 fields of 5 types.
RECORD: Final[Mapping[str, Any]] = {"id": 17, "t": 3600.5, "p_kw": 12.25, "name": "pv-17", "ok": True}

#: A call: takes a value and returns it, or an awaitable of it. Each is a trip to the other side.
Call = Callable[[Any], Any]
#: Address of a server, as JSON carries it.
Address = Any


def as_dict(record: Mapping[str, Any]) -> Any:
    """Return *record* in the form in which a library without types of its own sends it."""
    return dict(record)


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What the client of a contender can do.

    Everything is a bound callable of the library where it can be, so that no layer of ours is measured.
    """

    #: Return an ``int`` that was sent.
    number: Call | None = None
    #: Return a record that was sent.
    record: Call | None = None
    #: Return ``bytes`` that were sent.
    data: Call | None = None
    #: Return a record that was sent: one function for each agent of the server.
    agents: Sequence[Call] = ()
    #: Return the list of records that was sent, after one call for each that were handed over at once.
    batch: Call | None = None
    #: Send that many one-way messages.
    post: Callable[[int], Any] | None = None
    #: Return how many one-way messages have arrived.
    arrived: Callable[[], Any] | None = None
    #: Iterate over ``range(n)``, streamed by the server.
    stream: Callable[[int], Any] | None = None
    #: Return an ``int`` that was sent to an agent in the same container.
    own_number: Call | None = None
    #: Return a record that was sent to an agent in the same container.
    own_record: Call | None = None
    #: Read a resource, whose state is :data:`RECORD`.
    get: Callable[[], Any] | None = None
    #: Change a state that many observe, and wait until all have the new one; return how many these are.
    notify: Callable[[], Any] | None = None
    #: A context manager, asynchronous too, for a container that listens; gives a function, which may be a
    #: coroutine function, that makes so many agents in it and returns them.
    container: Callable[[], Any] | None = None
    #: Make of :data:`RECORD` what the library sends: an object of a declared type, where it has such.
    as_record: Callable[[Mapping[str, Any]], Any] = as_dict


class AsyncContender(Protocol):
    """The module of a contender that is made for asyncio."""

    def server(self) -> AbstractAsyncContextManager[Address]:
        """Serve while the context is entered."""

    def client(self, address: Address) -> AbstractAsyncContextManager[Operations]:
        """Be connected while the context is entered."""


class BlockingContender(Protocol):
    """The module of a contender that is made for threads."""

    def server(self) -> AbstractContextManager[Address]:
        """Serve, in other threads, while the context is entered."""

    def client(self, address: Address) -> AbstractContextManager[Operations]:
        """Be connected while the context is entered."""


Contender = AsyncContender | BlockingContender
