"""xoscar: actors in a pool without sub-pools, called from a pool in the client.

Stateless actors with coroutine methods, which run without a lock. Calls within one pool pass references,
without any codec. Batches are its ``extensible`` methods. A stream is a call for each item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import xoscar

from benchmarks.contender import AGENTS, Operations


class Echo(xoscar.StatelessActor):  # type: ignore[misc]  # has no types
    """The actor that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value

    @xoscar.extensible  # type: ignore[untyped-decorator]
    def echo_many(self, value: Any) -> Any:
        """Return *value*; can be called in batches."""
        return value

    async def post(self, value: int) -> None:
        """Count a message."""
        self.count += 1

    async def arrived(self) -> int:
        """Return how many messages there were."""
        return self.count

    @xoscar.generator  # type: ignore[untyped-decorator]
    def stream(self, count: int) -> Any:
        """Stream numbers."""
        yield from range(count)


@asynccontextmanager
async def new_pool() -> AsyncIterator[str]:
    """Give the address of a pool in this process."""
    pool = await xoscar.create_actor_pool("127.0.0.1:0", n_process=0)
    try:
        yield pool.external_address
    finally:
        await pool.stop()


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    async with new_pool() as address:
        for number in range(AGENTS):
            await xoscar.create_actor(Echo, address=address, uid=str(number))
        yield address


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    async with new_pool() as own_address:
        actors = [await xoscar.actor_ref(address=address, uid=str(number)) for number in range(AGENTS)]
        actor = actors[0]
        await xoscar.create_actor(Echo, address=own_address, uid="own")
        own = await xoscar.actor_ref(address=own_address, uid="own")

        def batch(values: Sequence[Any]) -> Any:
            return actor.echo_many.batch(*[actor.echo_many.delay(value) for value in values])

        async def post(count: int) -> None:
            for number in range(count):
                await actor.post.tell(number)

        async def stream(count: int) -> AsyncIterator[int]:
            async for number in await actor.stream(count):
                yield number

        yield Operations(
            number=actor.echo,
            record=actor.echo,
            data=actor.echo,
            agents=[actor.echo for actor in actors],
            batch=batch,
            post=post,
            arrived=actor.arrived,
            stream=stream,
            own_number=own.echo,
            own_record=own.echo,
            container=new_population,
        )


@asynccontextmanager
async def new_population() -> AsyncIterator[Callable[[int], Coroutine[Any, Any, Sequence[Any]]]]:
    """Give a function that makes actors in a new pool."""
    async with new_pool() as address:

        async def create(count: int) -> Sequence[Any]:
            return [await xoscar.create_actor(Echo, address=address) for _ in range(count)]

        yield create
