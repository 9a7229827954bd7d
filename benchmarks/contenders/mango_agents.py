"""mango-agents: agents that send each other messages; a call is a tracked message and its reply.

With its codec PROTOBUF, which wraps pickles, and carries all the values. Messages within one container are
passed as references, its default.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import mango

from benchmarks.contender import AGENTS, Operations


class Echo(mango.Agent):  # type: ignore[misc]  # has no types
    """The agent that is called."""

    def handle_message(self, content: Any, meta: dict[str, Any]) -> None:
        """Send *content* back."""
        self.schedule_instant_task(self.reply_to(content, meta))


class Counter(mango.Agent):  # type: ignore[misc]
    """The agent that counts messages."""

    count = 0

    def handle_message(self, content: Any, meta: dict[str, Any]) -> None:
        """Count a message, or say how many there were."""
        if content is None:
            self.schedule_instant_task(self.reply_to(self.count, meta))
        else:
            self.count += 1


class Caller(mango.Agent):  # type: ignore[misc]
    """The agent that calls."""

    async def call(self, address: Any, value: Any) -> Any:
        """Send *value* to an agent and return its reply."""
        reply = asyncio.get_running_loop().create_future()
        await self.send_tracked_message(value, address, lambda content, meta: reply.set_result(content))
        return await reply

    def handle_message(self, content: Any, meta: dict[str, Any]) -> None:
        """Do nothing: replies have handlers of their own."""


@asynccontextmanager
async def new_container() -> AsyncIterator[Any]:
    """Give a container that listens."""
    container = mango.create_tcp_container(("127.0.0.1", 0), codec=mango.PROTOBUF())
    async with mango.activate(container):
        yield container


@asynccontextmanager
async def server() -> AsyncIterator[Any]:
    """Serve."""
    async with new_container() as container:
        names = [container.register(Echo()).aid for _ in range(AGENTS)]
        yield [container.addr, names, container.register(Counter()).aid]


@asynccontextmanager
async def client(address: Any) -> AsyncIterator[Operations]:
    """Be connected."""
    (host, port), names, counter_name = address
    addresses = [mango.AgentAddress((host, port), name) for name in names]
    counter = mango.AgentAddress((host, port), counter_name)
    async with new_container() as container:
        caller = container.register(Caller())
        call = partial(caller.call, addresses[0])
        call_own = partial(caller.call, container.register(Echo()).addr)

        async def post(count: int) -> None:
            for number in range(count):
                await caller.send_message(number, counter)

        yield Operations(
            number=call,
            record=call,
            data=call,
            agents=[partial(caller.call, agent) for agent in addresses],
            post=post,
            arrived=partial(caller.call, counter, None),
            own_number=call_own,
            own_record=call_own,
            container=new_population,
        )


@asynccontextmanager
async def new_population() -> AsyncIterator[Callable[[int], Sequence[Any]]]:
    """Give a function that makes agents in a new container."""
    async with new_container() as container:
        yield lambda count: [container.register(Echo()) for _ in range(count)]
