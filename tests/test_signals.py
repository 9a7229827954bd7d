"""Signals that end a container: once in order, twice at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import Agent, Container, rpc, subproc
from aiomas_ng._container.signals import SignalWatch
from aiomas_ng.exceptions import ClosedByPeerError
from aiomas_ng.local_queue import get_queue

ROOT = Path(__file__).parents[1]


class Worker(Agent):
    """An agent that works until it is let go."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.gate = asyncio.Event()
        self.is_busy = False
        self.is_stopped = False

    @rpc.expose
    async def work(self) -> str:
        self.is_busy = True
        await self.gate.wait()
        return "done"

    def on_stop(self) -> None:
        self.is_stopped = True


def kill(number: int = signal.SIGTERM) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


# -- Container.serve_forever -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_in_order(transport: Transport, number: signal.Signals) -> None:
    """Running handlers finish, hooks run, and the signal does afterwards what it did before."""
    former = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    one = await Container.create(transport.address(), as_coro=True)
    two = await Container.create(transport.address(), as_coro=True)
    worker = Worker(two)
    call = (await one.connect(worker.addr)).work()
    await wait_until(lambda: worker.is_busy)
    serving = asyncio.ensure_future(two.serve_forever())
    await asyncio.sleep(0)
    kill(number)
    await wait_until(lambda: worker.is_stopped)
    assert not serving.done()
    worker.gate.set()
    assert await call == "done"
    assert await serving is number
    assert two.is_shut_down
    assert {each: signal.getsignal(each) for each in former} == former
    await one.shutdown(as_coro=True)


async def test_second_signal_ends_at_once(transport: Transport) -> None:
    """It does not wait for handlers, whichever of the signals it is."""
    one = await Container.create(transport.address(), as_coro=True)
    two = await Container.create(transport.address(), as_coro=True)
    worker = Worker(two)
    call = (await one.connect(worker.addr)).work()
    await wait_until(lambda: worker.is_busy)
    serving = asyncio.ensure_future(two.serve_forever(grace=1000))
    await asyncio.sleep(0)
    kill(signal.SIGTERM)
    await wait_until(lambda: worker.is_stopped)
    kill(signal.SIGINT)
    assert await asyncio.wait_for(serving, 5) is signal.SIGTERM
    with pytest.raises(ClosedByPeerError):
        await call
    await one.shutdown(as_coro=True)


async def test_several_containers_end_by_one_signal(transport: Transport) -> None:
    """Each of them gets it; who ends earlier by itself does not disturb the others."""
    made = [await Container.create(transport.address(), as_coro=True) for _ in range(3)]
    serving = [asyncio.ensure_future(container.serve_forever()) for container in made]
    await asyncio.sleep(0)
    await made[0].shutdown(as_coro=True)
    assert await serving[0] is None
    kill()
    assert await asyncio.gather(*serving[1:]) == [signal.SIGTERM] * 2
    assert all(container.is_shut_down for container in made)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_cancelled_serving_shuts_down(transport: Transport) -> None:
    """Cancelling it shuts the container down, and puts the signals back."""
    container = await Container.create(transport.address(), as_coro=True)
    worker = Worker(container)
    serving = asyncio.ensure_future(container.serve_forever())
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert container.is_shut_down
    assert worker.is_stopped
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_serving_without_signals_in_another_thread() -> None:
    """Only the main thread can watch signals; elsewhere it serves without them."""
    outcomes: list[Any] = []

    async def main() -> None:
        container = await Container.create(get_queue("thread"), as_coro=True)
        with pytest.raises(RuntimeError, match="main thread"):
            await container.serve_forever()
        serving = asyncio.ensure_future(container.serve_forever(signals=()))
        await asyncio.sleep(0)
        await container.shutdown(as_coro=True)
        outcomes.append(await serving)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert outcomes == [None]


async def test_mistakes() -> None:
    """What is no signal that could be watched, and no grace, is refused; the container goes on."""
    container = await Container.create(get_queue("mistakes"), as_coro=True)
    for signals, grace in (((signal.SIGTERM, signal.SIGKILL), 1), ((0,), 1), ((), -1)):
        with pytest.raises(ValueError, match=r".+"):
            await container.serve_forever(signals=signals, grace=grace)
    assert not container.is_shut_down
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    await container.shutdown(as_coro=True)


async def test_handler_of_before_is_put_back() -> None:
    """Also when watches of the same signal end in another order than they have begun."""
    seen: list[Any] = []

    def former(number: int, frame: Any) -> None:
        seen.append("former")

    loop = asyncio.get_running_loop()
    original = signal.signal(signal.SIGUSR1, former)
    try:
        first = SignalWatch(loop, [signal.SIGUSR1], lambda number: seen.append(("first", number)))
        second = SignalWatch(loop, [signal.SIGUSR1, signal.SIGUSR1], lambda number: seen.append("second"))
        first.__enter__()
        second.__enter__()
        kill(signal.SIGUSR1)
        await wait_until(lambda: len(seen) == 2)
        first.__exit__()
        kill(signal.SIGUSR1)
        await wait_until(lambda: len(seen) == 3)
        second.__exit__()
        second.__exit__()
        kill(signal.SIGUSR1)
        await wait_until(lambda: len(seen) == 4)
        assert seen == [("first", signal.SIGUSR1), "second", "second", "former"]
    finally:
        signal.signal(signal.SIGUSR1, original)


# -- Whole programs --------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from aiomas_ng import Agent, Container, expose

class Worker(Agent):
    @expose
    async def work(self):
        print("busy", flush=True)
        try:
            await asyncio.sleep({seconds})
        finally:
            print("over", flush=True)

    async def on_stop(self):
        print("stopping", flush=True)

async def main():
    container = await Container.create(("127.0.0.1", 0), as_coro=True)
    print(Worker(container).addr, flush=True)
    print(await container.serve_forever(grace=30), flush=True)

asyncio.run(main())
"""


async def start_program(code: str) -> asyncio.subprocess.Process:
    """Start a program of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(code),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def read_line(process: asyncio.subprocess.Process) -> str:
    """Return the next line that a program prints."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_program_that_is_told_to_end(number: signal.Signals) -> None:
    """It ends in order and by itself: its handlers finish, and it exits with 0."""
    process = await start_program(PROGRAM.format(seconds=0.3))
    url = await read_line(process)
    container = await Container.create(get_queue("caller"), as_coro=True)
    call = (await container.connect(url)).work()
    assert await read_line(process) == "busy"
    process.send_signal(number)
    assert await call is None
    assert [await read_line(process) for _ in range(3)] == ["stopping", "over", str(number)]
    assert await process.wait() == 0
    await container.shutdown(as_coro=True)


async def test_program_that_is_told_twice() -> None:
    """It ends at once, and still in order: its handlers are cancelled."""
    process = await start_program(PROGRAM.format(seconds=1000))
    url = await read_line(process)
    container = await Container.create(get_queue("caller"), as_coro=True)
    call = (await container.connect(url)).work()
    assert await read_line(process) == "busy"
    process.send_signal(signal.SIGTERM)
    assert await read_line(process) == "stopping"
    process.send_signal(signal.SIGTERM)
    assert await read_line(process) == "over"
    assert await asyncio.wait_for(process.wait(), 10) == 0
    with pytest.raises(ClosedByPeerError):
        await call
    await container.shutdown(as_coro=True)


# -- Container processes ---------------------------------------------------------------------------


async def test_start_ends_by_sigterm() -> None:
    """``subproc.start`` returns after it; the container has ended in order."""
    serving = asyncio.ensure_future(subproc.start(get_queue("serve")))
    container = await Container.create(get_queue("caller"), as_coro=True)
    await container.connect("local://serve/0", timeout=5)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    kill()
    await serving
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    await container.shutdown(as_coro=True)


async def test_start_leaves_signals_alone_that_somebody_handles() -> None:
    """By default it watches SIGTERM only if nobody else does."""
    seen: list[int] = []
    original = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        serving = asyncio.ensure_future(subproc.start(get_queue("serve")))
        container = await Container.create(get_queue("caller"), as_coro=True)
        manager = await container.connect("local://serve/0", timeout=5)
        kill()
        await wait_until(lambda: seen)
        assert not serving.done()
        await manager.stop()
        await serving
        await container.shutdown(as_coro=True)
    finally:
        signal.signal(signal.SIGTERM, original)


async def test_container_process_ends_in_order_by_sigterm() -> None:
    """A process of ``start_processes`` lets its handlers finish; a second signal ends it at once."""
    async with await subproc.start_processes([("127.0.0.1", 0)] * 2) as processes:
        container = await Container.create(get_queue("caller"), as_coro=True)
        calls = []
        for url in processes.managers:
            agent, _ = await (await container.connect(url)).spawn("subproc_agents:Sleeper")
            calls.append([agent.sleep(0.5), agent.sleep(1000)])
            assert await agent.is_there() is True
        for pid in processes.pids:
            os.kill(pid, signal.SIGTERM)
        assert [await short for short, _ in calls] == ["slept"] * 2
        os.kill(processes.pids[0], signal.SIGTERM)
        with pytest.raises(ClosedByPeerError):
            await calls[0][1]
        assert await processes.stop() == [0, 0]
        with pytest.raises(ClosedByPeerError):
            await calls[1][1]
        await container.shutdown(as_coro=True)
