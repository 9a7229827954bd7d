"""A container process is killed under load, again and again, and started anew at the same address.

    python -m tests.endurance.killed [--rounds 5] [--callers 10] [--in-flight 100]

What has to hold: each call that waited ends within the documented time with an error that says whether it was
sent; a call that is said not to have been executed was not; after the restart all callers go on by
themselves; observers get the state of the new process.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import aiomas_ng
from aiomas_ng import Agent, Container, expose
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import ChannelClosedError, ConnectError

#: What a call may take on top of the documented time, on a machine that does other things too.
SLACK = 3.0


class Target(Agent):
    """What is called: it says what it has executed, on its standard output."""

    def __init__(self, container: Container) -> None:
        super().__init__(container, aid="target")

    @aiomas_ng.state
    def value(self) -> int:
        return os.getpid()

    @expose
    async def work(self, number: int) -> int:
        sys.stdout.write(f"{number}\n")
        await asyncio.sleep(0.05)
        return number

    @expose
    def get_pid(self) -> int:
        return os.getpid()


async def serve(port: int) -> None:
    """What runs in the process that is killed."""
    container = await Container.create(("127.0.0.1", port), as_coro=True)
    target = Target(container)
    print(target.addr, flush=True)
    while True:
        await asyncio.sleep(0.01)
        sys.stdout.flush()


@dataclass
class Outcome:
    """What became of the calls."""

    results: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    longest: float = 0.0  # from the kill to the end of a call
    restarts: int = 0
    notified: int = 0  # observers that got the state of each new process
    problems: list[str] = field(default_factory=list)


def start(port: int) -> tuple[subprocess.Popen[str], str]:
    """Start a process; return it and its agent's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.endurance.killed", "--serve", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


async def run(
    rounds: int = 5, callers: int = 10, in_flight: int = 100, limits: Limits | None = None
) -> Outcome:
    """Kill a process *rounds* times while *callers* containers each keep *in_flight* calls waiting."""
    limits = limits or Limits()
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    process, url = await loop.run_in_executor(None, start, 0)
    port = int(url.split(":")[2].split("/")[0])
    containers = [
        await Container.create(("127.0.0.1", 0), as_coro=True, limits=limits) for _ in range(callers)
    ]
    numbers = iter(range(10**9))
    not_executed: set[int] = set()
    down_since: float | None = None
    is_over = False

    async def call(proxy: Any) -> None:
        nonlocal down_since
        while not is_over:
            number = next(numbers)
            try:
                result = await proxy.work(number)
                if result != number:
                    outcome.problems.append(f"call {number} got the result {result}")
                outcome.results += 1
            except ChannelClosedError as error:
                if down_since is not None:
                    outcome.longest = max(outcome.longest, loop.time() - down_since)
                outcome.errors[f"{type(error).__name__}, was_sent={error.was_sent}"] += 1
                if error.was_sent is None:
                    outcome.problems.append(f"call {number}: nobody knows whether it was sent")
                elif not error.was_sent:
                    not_executed.add(number)
            except ConnectError:  # while there is no process: the call was not sent
                outcome.errors["ConnectError"] += 1
                not_executed.add(number)
                await asyncio.sleep(0.05)

    seen: list[set[int]] = [set() for _ in containers]

    async def observe(container: Container, pids: set[int]) -> None:
        request = container.context.observe(f"{url}/value")
        async for value in request:
            pids.add(value)

    proxies = [await container.connect(url) for container in containers]
    tasks = [asyncio.create_task(call(proxy)) for proxy in proxies for _ in range(in_flight)]
    observers = [
        asyncio.create_task(observe(container, pids))
        for container, pids in zip(containers, seen, strict=True)
    ]
    executed: collections.Counter[int] = collections.Counter()
    try:
        for _ in range(rounds):
            await asyncio.sleep(0.5)
            before = outcome.results
            down_since = loop.time()
            os.kill(process.pid, signal.SIGKILL)
            output, _ = await loop.run_in_executor(None, process.communicate)
            executed.update(int(line) for line in output.splitlines()[:-1] if line.isdigit())
            await asyncio.sleep(0.3)  # it is not there for a while
            process, again = await loop.run_in_executor(None, start, port)
            assert again == url
            outcome.restarts += 1
            deadline = loop.time() + limits.grace_time + SLACK
            while outcome.results < before + callers * in_flight:
                await asyncio.sleep(0.01)
                if loop.time() > deadline:
                    outcome.problems.append("not all callers went on after the restart")
                    break
            down_since = None
            while not all(process.pid in pids for pids in seen):
                await asyncio.sleep(0.05)
                if loop.time() > deadline + limits.grace_time:
                    outcome.problems.append(f"not all observers saw process {process.pid}")
                    break
            else:
                outcome.notified += 1
    finally:
        is_over = True
        _, pending = await asyncio.wait(tasks, timeout=limits.grace_time + SLACK)
        if pending:
            outcome.problems.append(f"{len(pending)} calls never ended")
        for task in [*pending, *observers]:
            task.cancel()
        await asyncio.gather(*tasks, *observers, return_exceptions=True)
        process.kill()
        output, _ = await loop.run_in_executor(None, process.communicate)
        executed.update(int(line) for line in output.splitlines()[:-1] if line.isdigit())
        for container in containers:
            await container.shutdown(as_coro=True)
    twice = [number for number, count in executed.items() if count > 1]
    if twice:
        outcome.problems.append(f"{len(twice)} calls were executed twice")
    wrong = not_executed & executed.keys()
    if wrong:
        outcome.problems.append(f"{len(wrong)} calls were executed although their errors deny it")
    if outcome.longest > limits.grace_time + SLACK:
        outcome.problems.append(f"a call ended {outcome.longest:.1f} s after the kill")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=10)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--serve", type=int)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    begin = time.perf_counter()
    outcome = asyncio.run(run(options.rounds, options.callers, options.in_flight))
    print(f"{outcome.restarts} kills, {outcome.results} results, {time.perf_counter() - begin:.1f} s")
    for name, count in sorted(outcome.errors.items()):
        print(f"  {count} calls ended by {name}")
    print(f"  last of them {outcome.longest:.2f} s after the kill")
    print(f"  all observers saw the new process in {outcome.notified} of {outcome.restarts} restarts")
    print("\n".join(outcome.problems) or "all that has to hold has held")
    sys.exit(bool(outcome.problems))


if __name__ == "__main__":
    main()
