"""aiomas_ng itself: an agent in a container of the server, called from a container of the client.

Handlers are plain functions. Everything else is as it is by default.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiomas_ng
from aiomas_ng import rpc
from benchmarks.contender import AGENTS, RECORD, Operations

#: Those who observe one state, and the containers they share.
OBSERVERS, OBSERVING_CONTAINERS = 1_000, 10


class Echo(aiomas_ng.Agent):
    """The agent that is called."""

    number = 0  # of the state that is observed
    count = 0

    @aiomas_ng.expose
    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value

    @aiomas_ng.expose
    def post(self, value: int) -> None:
        """Count a message."""
        self.count += 1

    @aiomas_ng.expose
    def arrived(self) -> int:
        """Return how many messages there were."""
        return self.count

    @aiomas_ng.expose
    async def stream(self, count: int) -> AsyncIterator[int]:
        """Stream numbers."""
        for number in range(count):
            yield number

    @aiomas_ng.state
    def record(self) -> dict[str, Any]:
        """The state that is read."""
        return dict(RECORD)

    @aiomas_ng.state
    def observed(self) -> int:
        """The state that is observed."""
        return self.number

    @aiomas_ng.expose
    def change(self) -> int:
        """Change the state that is observed."""
        self.number += 1
        self.observed.changed()
        return self.number


@asynccontextmanager
async def new_container() -> AsyncIterator[aiomas_ng.Container]:
    """Give a container that listens."""
    container = await aiomas_ng.Container.create(("127.0.0.1", 0), as_coro=True)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    async with new_container() as container:
        agents = [Echo(container) for _ in range(AGENTS)]
        yield {
            "agents": [agent.addr for agent in agents],
            "record": agents[0].record.url,
            "observed": agents[0].observed.url,
        }


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    async with new_container() as container:
        agents = await asyncio.gather(*map(container.connect, address["agents"]))
        agent = agents[0]
        own = await container.connect(Echo(container).addr)
        async with Observers(address["observed"], agent) as observers:
            yield Operations(
                number=agent.echo,
                record=agent.echo,
                data=agent.echo,
                agents=[agent.echo for agent in agents],
                batch=partial(batch, agent.echo),
                post=partial(post, rpc.with_options(agent.post, oneway=True)),
                arrived=agent.arrived,
                stream=agent.stream,
                own_number=own.echo,
                own_record=own.echo,
                get=partial(container.context.get, address["record"]),
                notify=observers.notify,
                container=new_population,
            )


def batch(call: rpc.Proxy, values: Sequence[Any]) -> Any:
    """Hand over all calls at once."""
    if hasattr(rpc, "batch"):
        return rpc.batch([partial(call, value) for value in values])
    return asyncio.gather(*map(call, values))


async def post(call: rpc.Proxy, count: int) -> None:
    """Send numbered messages."""
    for number in range(count):
        call(number)


@asynccontextmanager
async def new_population() -> AsyncIterator[Callable[[int], Sequence[Any]]]:
    """Give a function that makes agents in a new container."""
    async with new_container() as container:
        yield lambda count: [Echo(container) for _ in range(count)]


class Observers:
    """Many who observe one state, over several connections, from the first call of :meth:`notify` on."""

    def __init__(self, url: str, agent: rpc.Proxy) -> None:
        self._url = url
        self._agent = agent
        self._tasks: list[asyncio.Task[None]] = []
        self._containers: list[Any] = []
        self._expected = 0
        self._missing = 0
        self._all_there = asyncio.Event()

    async def __aenter__(self) -> Observers:
        return self

    async def __aexit__(self, *args: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for container in self._containers:
            await container.shutdown(as_coro=True)

    async def notify(self) -> int:
        """Change the state, and wait until all have seen it."""
        if not self._tasks:
            await self._begin()
        self._all_there.clear()
        self._missing = OBSERVERS
        self._expected += 1
        if await self._agent.change() != self._expected:
            raise AssertionError("somebody else changes the state")
        await self._all_there.wait()
        return OBSERVERS

    async def _begin(self) -> None:
        self._expected = await self._agent.change()
        self._missing = OBSERVERS
        for _ in range(OBSERVING_CONTAINERS):
            self._containers.append(await aiomas_ng.Container.create(("127.0.0.1", 0), as_coro=True))
        containers = itertools.islice(itertools.cycle(self._containers), OBSERVERS)
        self._tasks = [asyncio.create_task(self._observe(container)) for container in containers]
        await self._all_there.wait()

    async def _observe(self, container: aiomas_ng.Container) -> None:
        seen = None
        async with container.context.observe(self._url) as states:
            async for number in states:
                if number == self._expected and number != seen:
                    seen = number
                    self._missing -= 1
                    if not self._missing:
                        self._all_there.set()
