"""Agents in a row, each in a container of its own, that pass work on in every way there is.

:func:`open_row` gives a :class:`Row`. ``row.first.begin(["call", "get"])`` lets the first agent pass the work
to the second one by a call, that one to the third one by a request to its resource, and that one does it: it
waits for ``row.gate``. What runs, and what was cancelled, is counted at each hop, and :meth:`Row.find_left`
tells what any container still holds of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any

from aiomas_ng import Agent, Container, expose, rpc
from aiomas_ng.clocks import BaseClock
from aiomas_ng.error import ResponseWrappingError
from aiomas_ng.message import GET, Message
from aiomas_ng.pipe import IterablePipe, Pipe
from aiomas_ng.resource import ObservableResource, Resource

KINDS = ("call", "plain", "batch", "stream", "get", "observe", "items", "forward")
"""How work is passed on; ``items`` is a stream of responses, and ``forward`` goes through a third one."""


class Hop(Agent):
    """One agent of a row.

    Args:
        container: Its container.
        row: The row.
    """

    def __init__(self, container: Container, row: Row) -> None:
        super().__init__(container, aid="hop")
        self.row = row
        self.next: Any = None  # the proxy of the next one
        self.working = 0
        self.cancelled = 0
        self.site.add_resource("work", Work(self))
        self.site.add_resource("items", Items(self))
        self.site.add_resource("state", State(self))

    @expose
    async def work(self, kinds: list[str]) -> str:
        return await self.begin(kinds)

    @expose
    def plain(self, kinds: list[str]) -> Coroutine[Any, Any, str]:
        return self.begin(kinds)

    @expose
    def hand_on(self, kinds: list[str]) -> Any:
        return self.next.work(kinds)  # the reply itself, and not a coroutine that waits for it

    @expose
    async def stream(self, kinds: list[str]) -> AsyncIterator[str]:
        yield "first"
        yield await self.begin(kinds)

    async def begin(self, kinds: list[str]) -> str:
        """Do the work, or pass it on, and count that."""
        self.working += 1
        try:
            return await self.pass_on(kinds[0], kinds[1:]) if kinds else await self.do()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.working -= 1

    async def do(self) -> str:
        await self.row.gate.wait()
        return "done"

    async def pass_on(self, kind: str, rest: list[str]) -> str:
        """Pass the work on."""
        beyond = self.next._url + "hop/"
        query = "?" + "&".join(rest) if rest else ""
        context = self.container.context
        result: Any = None
        if kind == "call":
            result = await self.next.work(rest)
        elif kind == "plain":
            result = await self.next.plain(rest)
        elif kind == "batch":
            (result,) = await rpc.batch([partial(self.next.work, rest)])
        elif kind == "stream":
            async for item in self.next.stream(rest):
                result = item
        elif kind == "get":
            result = await context.get(beyond + "work" + query)
        elif kind == "observe":
            async with context.observe(beyond + "state" + query) as states:
                result = await anext(states)
        elif kind == "items":
            async with IterablePipe(Message(GET, uri=beyond + "items" + query)) as pipe:
                context.begin(pipe)
                async for event in pipe:
                    if event.exception is not None:
                        raise event.exception
                    assert event.message is not None
                    if not event.message.code.is_successful():
                        raise ResponseWrappingError(event.message)
                    result = event.message.text
        else:
            assert kind == "forward"
            result = await context.get(
                self.row.middle._base_url + f"to/{self.row.index(self) + 1}/hop/work" + query
            )
        assert isinstance(result, str)
        return result


class Work(Resource):
    """The same as a resource; what is still to do stands in the query."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop

    async def render_get(self, request: Message) -> Message:
        return Message(payload=(await self.hop.begin(list(request.opt.uri_query))).encode(), content_format=0)


class State(ObservableResource):
    """The same, to be observed."""

    def __init__(self, hop: Hop) -> None:
        super().__init__()
        self.hop = hop

    async def render_get(self, request: Message) -> Message:
        return await Work(self.hop).render_get(request)


class Items(Work):
    """The same as a stream of responses."""

    async def render_to_pipe(self, pipe: Pipe) -> None:
        pipe.add_response(Message(69, b"first"))
        pipe.add_response(await self.render(pipe.request), is_last=True)


class Row:
    """The agents, from the first to the last, and what they wait for."""

    def __init__(self) -> None:
        self.hops: list[Hop] = []
        self.containers: list[Container] = []
        self.middle: Container  # forwards to all of them
        self.gate = asyncio.Event()

    @property
    def first(self) -> Hop:
        """Where work begins."""
        return self.hops[0]

    @property
    def last(self) -> Hop:
        """The last one."""
        return self.hops[-1]

    def index(self, hop: Hop) -> int:
        """Return the place of *hop*."""
        return self.hops.index(hop)

    def count_working(self) -> list[int]:
        """Return how much each of them works on."""
        return [hop.working for hop in self.hops]

    def find_left(self) -> list[str]:
        """Return what there is anywhere of calls and requests that have not ended."""
        left = [f"{hop.addr} works on {hop.working}" for hop in self.hops if hop.working]
        for container in [*self.containers, self.middle]:
            for client in container._connections:
                channel = client.channel
                held = {
                    "calls": len(channel._exchange.calls),
                    "jobs": len(channel._exchange.jobs),
                    "running": len(channel._running),
                    "batched": channel._batched,
                    "inbox": len(channel._inbox),
                    "lane": len(channel._lane.outgoing) + len(channel._lane.incoming),
                }
                left += [f"{channel!r} holds {count} {name}" for name, count in held.items() if count]
            if container.context._tasks:
                left.append(f"{container} has tasks {container.context._tasks}")
        return left


@contextlib.asynccontextmanager
async def open_row(
    transport: Any, size: int, *, clocks: list[BaseClock] | None = None, **kwds: Any
) -> AsyncIterator[Row]:
    """Give a row of *size* agents, connected with each other.

    Args:
        transport: Which way to connect.
        size: How many there are.
        clocks: The clock of each, and of what is in the middle.
        **kwds: Further options of the containers.
    """
    row = Row()

    async def create(index: int) -> Container:
        own = {"clock": clocks[index]} if clocks else {}
        container = await Container.create(transport.address(), as_coro=True, **own, **kwds)
        stack.push_async_callback(container.shutdown, as_coro=True)
        return container

    async with contextlib.AsyncExitStack() as stack:
        for index in range(size):
            row.containers.append(await create(index))
            row.hops.append(Hop(row.containers[-1], row))
        row.middle = await create(-1)
        for index, container in enumerate(row.containers):
            row.middle.mount(f"to/{index}", container._base_url)
        for hop, following in zip(row.hops, row.hops[1:], strict=False):
            hop.next = await hop.container.connect(following.addr)
        yield row
