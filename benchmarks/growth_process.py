"""What runs in a process of its own when growth is measured: a container of ours, or who calls it.

``python -m benchmarks.growth_process server CONTENDER SERIES SIZE`` and ``… client …`` talk as
:mod:`benchmarks.process` does. The client answers ``{"seconds": 0.5}`` with a sample, and in the series
``memory`` with the bytes that Python has in use for each call in flight, in the client and in the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import resource
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TextIO

import aiomas_ng
from aiomas_ng import rpc
from benchmarks.contender import IN_FLIGHT, RECORD
from benchmarks.contenders import find
from benchmarks.contenders.ours import new_container
from benchmarks.process import loop_factory, stdin_lines, take_stdout, write, write_error
from benchmarks.workloads import Sample, check, repeat

#: How many agents are connected to at the same time.
CONNECTING: Final = 1_000
#: Files that are open besides the connections.
OTHER_FILES: Final = 50


class Echo(aiomas_ng.Agent):
    """The agent that is called."""

    @aiomas_ng.expose
    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value


class Holder(Echo):
    """The agent that does not answer before it is told to."""

    released: asyncio.Event | None = None
    held = 0

    @aiomas_ng.expose
    async def hold(self, value: Any) -> Any:
        """Return *value*, but later."""
        if self.released is None:
            self.released = asyncio.Event()
        self.held += 1
        await self.released.wait()
        return value

    @aiomas_ng.expose
    def in_use(self) -> list[int]:
        """Return how many calls are held, and the bytes in use; begin to count them with the first call."""
        return [self.held, bytes_in_use()]

    @aiomas_ng.expose
    def release(self) -> None:
        """Answer what is held."""
        if self.released is not None:
            self.released.set()
            self.released = None
        self.held = 0


def bytes_in_use() -> int:
    """Return how much memory Python has in use; it is counted from the first call on."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@asynccontextmanager
async def server(series: str, size: int) -> AsyncIterator[str]:
    """Serve as many agents as the series needs; give what their addresses have in common."""
    async with new_container() as container:
        base = Holder(container, aid="holder").addr.removesuffix("holder")
        agents = [Echo(container) for _ in range(size if series == "agents" else 1)]
        check(agents[-1].addr == f"{base}{len(agents) - 1}", "addresses")
        yield base


@asynccontextmanager
async def client(series: str, size: int, base: str) -> AsyncIterator[Callable[[float], Awaitable[Any]]]:
    """Be connected; give a function that measures for some seconds."""
    async with new_container() as container, contextlib.AsyncExitStack() as stack:
        agent = await container.connect(f"{base}0")
        if series == "memory":
            holder = await container.connect(f"{base}holder")
            yield lambda seconds: remembered(holder, size)
        elif series == "agents":
            agents = [agent]
            for start in range(1, size, CONNECTING):
                urls = [f"{base}{number}" for number in range(start, min(start + CONNECTING, size))]
                agents += await asyncio.gather(*map(container.connect, urls))
            check(len(agents) == size, "agents")
            yield partial(repeat, around([agent.echo for agent in agents], IN_FLIGHT))
        elif series == "connections":
            connections = [await rpc.open_connection(base.rstrip("/")) for _ in range(size)]
            for connection in connections:
                stack.push_async_callback(connection.close)
            calls = [getattr(connection.remote.agents, "0").echo for connection in connections]
            yield partial(repeat, around(calls, size))
        else:
            yield partial(repeat, around([agent.echo], size))


def around(calls: list[Any], in_flight: int) -> Callable[[], Awaitable[int]]:
    """Make so many calls at once, wait for all, and again, so that in the end all of *calls* have their turn.

    Where there are less calls than are to be in flight, each is made several times.
    """
    records = [{**RECORD, "id": number} for number in range(in_flight)]
    ring = calls * (1 + -(-in_flight // len(calls)))
    place = 0

    async def do_round() -> int:
        nonlocal place
        some = ring[place : place + in_flight]
        place = (place + in_flight) % len(calls)
        replies = await asyncio.gather(*[call(record) for call, record in zip(some, records, strict=True)])
        check(replies == records, "records")
        return in_flight

    return do_round


async def remembered(holder: Any, size: int) -> dict[str, float]:
    """Return the bytes in use for each of so many calls that are held by the server."""
    await holder.in_use()  # so that the first call of that method is over
    bytes_in_use()
    _, server_before = await holder.in_use()
    before = bytes_in_use()
    calls = [holder.hold(number) for number in range(size)]
    while (state := await holder.in_use())[0] < size:
        pass
    after = bytes_in_use()
    await holder.release()
    check(await asyncio.gather(*calls) == list(range(size)), "numbers")
    return {"client": (after - before) / size, "server": (state[1] - server_before) / size}


async def run(role: str, series: str, size: int, answers: TextIO) -> None:
    """Be a server or a client, until standard input ends."""
    async with stdin_lines() as lines:
        if role == "server":
            async with server(series, size) as address:
                write(answers, address)
                await lines.read()
            return
        async with client(series, size, json.loads(await lines.readline())) as measure:
            write(answers, None)
            while line := await lines.readline():
                try:
                    sample = await measure(json.loads(line)["seconds"])
                except Exception as error:
                    write_error(answers, error)
                else:
                    write(answers, dataclasses.asdict(sample) if isinstance(sample, Sample) else sample)


def main() -> None:
    """Do what the command line says."""
    role, contender, series, size = sys.argv[1:]
    answers = take_stdout()
    allow_files(int(size) + OTHER_FILES)
    with asyncio.Runner(loop_factory=loop_factory(find(contender))) as runner:
        runner.run(run(role, series, int(size), answers))


def allow_files(count: int) -> None:
    """Let this process have so many files open, as far as the system allows that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


if __name__ == "__main__":
    main()
