"""Full load with faults, for a long time: memory, tasks and file descriptors stay level.

    python -m tests.endurance.soak [--minutes 10] [--seed 1]

Containers call each other, stream, observe and change states over a network that delays, cuts and swallows;
now and then one of them is shut down and replaced, and a process is killed and started anew. At times
the load is held for a moment, and what the process holds is written down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import psutil

import aiomas_ng
from aiomas_ng import Agent, Container, expose, faults
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import AiomasError
from aiomas_ng.liveness import Liveness
from aiomas_ng.rpc import with_options
from tests.endurance import killed

__all__ = ["Level", "Report", "run"]

CONTAINERS = 8
#: Of a call, in seconds; what the faults delay for longer fails, and that is a part of the load.
TIMEOUT = 5.0
#: What the process may have more at the end than after a third of the time.
MORE_MEMORY = 0.15
MORE_TASKS = 5
MORE_FILES = 5


@dataclass
class Level:
    """What the process holds while nothing happens."""

    seconds: float
    memory: int
    tasks: int
    files: int
    done: int

    def __str__(self) -> str:
        mib = self.memory / 2**20
        what = f"{self.tasks:5} tasks  {self.files:5} files  {self.done:9} done"
        return f"{self.seconds:6.0f} s  {mib:7.1f} MiB  {what}"


@dataclass
class Report:
    """What has happened."""

    seed: int
    levels: list[Level] = field(default_factory=list)
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Worker(Agent):
    """Is called, and calls."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self._level = 0

    @aiomas_ng.state
    def level(self) -> int:
        return self._level

    @level.setter
    def set_level(self, value: int) -> None:
        self._level = value

    @expose
    def echo(self, value: Any) -> Any:
        return value

    @expose
    async def wait(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @expose
    async def count(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item

    @expose
    def change(self, value: int) -> None:
        self._level = value
        self.level.changed()  # type: ignore[attr-defined]


class Soak:
    """The load and its faults.

    Args:
        seed: Of all that is random.
    """

    def __init__(self, seed: int) -> None:
        self.report = Report(seed)
        self.rng = random.Random(seed)
        self.network = faults.Network(
            seed,
            delay=(0.0, 0.005),
            cut_after=faults.Exponential(500_000),
            blackhole_after=faults.Exponential(2_000_000),
            blackhole_for=(0.1, 2.0),
            connect_time=2.0,
            log_size=1000,  # what it keeps by default would look like a leak
        )
        self.workers: list[Worker] = []
        self.is_held = False
        self.is_over = False
        self._free = asyncio.Event()
        self._free.set()
        self._busy = 0

    async def add_worker(self) -> None:
        """Make one more container with an agent in it."""
        container = await Container.create(
            ("127.0.0.1", 0),
            as_coro=True,
            network=self.network,
            limits=Limits(grace_time=5.0),
            liveness=Liveness(interval=0.5, patience=1.0, busy_patience=30.0),
        )
        self.workers.append(Worker(container))

    async def replace_worker(self) -> None:
        """Shut a container down, and make another one."""
        worker = self.workers.pop(self.rng.randrange(len(self.workers)))
        await self.add_worker()
        await worker.container.shutdown(as_coro=True)

    async def load(self, target_url: list[str]) -> None:
        """Do one thing after the other, until it is over."""
        rng = self.rng
        while not self.is_over:
            await self._free.wait()
            self._busy += 1
            try:
                async with asyncio.timeout(TIMEOUT):
                    await self._do(rng, target_url)
                self.report.done += 1
            except (AiomasError, TimeoutError) as error:
                name = type(error).__name__
                self.report.failed[name] = self.report.failed.get(name, 0) + 1
                await asyncio.sleep(0.01)
            finally:
                self._busy -= 1

    async def _do(self, rng: random.Random, target_url: list[str]) -> None:
        here, there = rng.sample(self.workers, 2)
        kind = rng.randrange(8)
        if kind == 7 and rng.random() < 0.2:
            proxy = await here.container.connect(target_url[0])
            await proxy.get_pid()
            return
        proxy = await here.container.connect(there.addr)
        if kind < 3:
            assert await asyncio.gather(*(proxy.echo(number) for number in range(50))) == list(range(50))
        elif kind == 3:
            with_options(proxy.echo, oneway=True)(b"x" * rng.randrange(50_000))
            data = rng.randbytes(rng.randrange(100_000))
            assert await proxy.echo(data) == data
        elif kind == 4:
            with contextlib.suppress(TimeoutError):
                await with_options(proxy.wait, timeout=0.05)(rng.random() / 10)
        elif kind == 5:
            number = rng.randrange(200)
            assert [item async for item in proxy.count(number)] == list(range(number))
        elif kind == 6:
            url = f"{there.addr}/level"
            async with here.container.context.observe(url) as states:
                async for _ in states:
                    break
                await proxy.change(rng.randrange(2**30))
                async for _ in states:
                    break
        else:
            await here.container.context.put(f"{there.addr}/level", rng.randrange(1000))
            await here.container.context.get(f"{there.addr}/level")

    async def hold(self) -> Level:
        """Let the load come to rest, and write down what the process holds."""
        self._free.clear()
        while self._busy:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(3.0)  # what was given up at one end ends at the other
        gc.collect()
        process = psutil.Process()
        level = Level(
            time.perf_counter() - self.begin,
            process.memory_info().rss,
            len(asyncio.all_tasks()),
            process.num_fds(),
            self.report.done,
        )
        self.report.levels.append(level)
        self._free.set()
        return level

    async def run(self, seconds: float, parallel: int, interval: float) -> Report:
        """Work for so many seconds."""
        self.begin = time.perf_counter()
        loop = asyncio.get_running_loop()
        process, url = await loop.run_in_executor(None, killed.start, 0)
        port = int(url.split(":")[2].split("/")[0])
        for _ in range(CONTAINERS):
            await self.add_worker()
        tasks = [asyncio.create_task(self.load([url])) for _ in range(parallel)]
        try:
            for turn in itertools.count():
                left = seconds - (time.perf_counter() - self.begin)
                if left <= 0 and len(self.report.levels) >= 2:
                    break
                await asyncio.sleep(interval)
                await self.replace_worker()
                os.kill(process.pid, 9)
                await loop.run_in_executor(None, process.communicate)
                process, _ = await loop.run_in_executor(None, killed.start, port)
                if turn % 2:
                    print(await self.hold(), flush=True)
        finally:
            self.is_over = True
            self._free.set()
            _, pending = await asyncio.wait(tasks, timeout=30)
            if pending:
                self.report.problems.append(f"{len(pending)} tasks do not end")
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self.report.problems += [repr(result) for result in results if isinstance(result, Exception)]
            self.network.close()
            for worker in self.workers:
                await worker.container.shutdown(as_coro=True)
            process.kill()
            await loop.run_in_executor(None, process.communicate)
        self._compare()
        return self.report

    def _compare(self) -> None:
        levels = self.report.levels
        # Until a third of the time is over, the heap of the process still grows to what the load needs.
        first, last = levels[len(levels) // 3], levels[-1]
        if last.memory > first.memory * (1 + MORE_MEMORY):
            self.report.problems.append(f"memory grew from {first.memory} to {last.memory} bytes")
        if last.tasks > first.tasks + MORE_TASKS:
            self.report.problems.append(f"tasks grew from {first.tasks} to {last.tasks}")
        if last.files > first.files + MORE_FILES:
            self.report.problems.append(f"open files grew from {first.files} to {last.files}")
        if last.done <= first.done:
            self.report.problems.append("nothing was done any more")


async def run(minutes: float = 10, seed: int = 1, parallel: int = 40, interval: float = 15.0) -> Report:
    """Soak for so many minutes; see the head of this file."""
    return await Soak(seed).run(60 * minutes, parallel, interval)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, default=15.0)
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("aiomas_ng").setLevel(logging.ERROR)
    report = asyncio.run(run(options.minutes, options.seed, interval=options.interval))
    print(f"seed {report.seed}: {report.done} done; failed: {report.failed or 'none'}")
    print("\n".join(report.problems) or "memory, tasks and files are level")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
