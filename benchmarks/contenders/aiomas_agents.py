"""aiomas 2.0, which aiomas_ng takes the place of: agents in containers.

With MsgPack in place of JSON, its default. It runs with the help of
:mod:`benchmarks.contenders.aiomas_shim`. Within one process agents call each other over a LocalQueue.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import AGENTS, Operations
from benchmarks.contenders.aiomas_shim import aiomas


class Echo(aiomas.Agent):  # type: ignore[misc]  # has no types
    """The agent that is called."""

    @aiomas.expose  # type: ignore[untyped-decorator]
    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value


def free_address() -> tuple[str, int]:
    """Return an address with a free port: agents have the port in theirs that the container was given."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host, port = listener.getsockname()
    return host, port


@asynccontextmanager
async def new_container(address: Any = None) -> AsyncIterator[Any]:
    """Give a container that listens."""
    container = await aiomas.Container.create(address or free_address(), codec=aiomas.MsgPack, as_coro=True)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    async with new_container() as container:
        yield [Echo(container).addr for _ in range(AGENTS)]


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    async with (
        new_container() as container,
        new_container(aiomas.get_queue("caller")) as caller,
        new_container(aiomas.get_queue("called")) as called,
    ):
        agent = await container.connect(address[0])
        agents = await asyncio.gather(*map(container.connect, address))
        own = await caller.connect(Echo(called).addr)
        yield Operations(
            number=agent.echo,
            record=agent.echo,
            data=agent.echo,
            agents=[agent.echo for agent in agents],
            own_number=own.echo,
            own_record=own.echo,
            container=new_population,
        )
        await asyncio.sleep(0)


@asynccontextmanager
async def new_population() -> AsyncIterator[Callable[[int], Sequence[Any]]]:
    """Give a function that makes agents in a new container."""
    async with new_container() as container:
        yield lambda count: [Echo(container) for _ in range(count)]
