"""What container processes of the tests make at each start, and how they die."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from aiomas_ng import Agent, Container, background, expose, state
from aiomas_ng.supervision import RestartAgent, StopContainer


class Worker(Agent):
    """An agent that a process has again after each start."""

    number = 0
    made = 0

    def __init__(self, container: Container, name: str) -> None:
        super().__init__(container, aid=name)
        Worker.made += 1

    async def on_ready(self) -> None:
        await asyncio.sleep(0)
        self.number = 1

    @expose
    def get_pid(self) -> int:
        return os.getpid()

    @expose
    def count_made(self) -> int:
        """Return how many agents this process has made."""
        return self.made

    @expose
    def get_time(self) -> float:
        return self.container.clock.time()

    @state
    def pid(self) -> int:
        return os.getpid()

    @state
    def is_ready(self) -> bool:
        return self.number == 1

    @expose
    def exit(self, code: int) -> None:
        os._exit(code)

    @expose
    def fail(self, policy: str) -> None:
        """Let a task fail."""
        policies = {"stop": StopContainer(), "agent": RestartAgent(first_pause=0)}
        self.tasks.start(self.raise_error, on_failure=policies[policy])

    async def raise_error(self) -> None:
        raise ValueError("on purpose")


class Hasty(Agent):
    """An agent that ends its container as soon as it is there."""

    @background(on_failure=StopContainer())
    async def fail(self) -> None:
        raise ValueError("at once")


async def set_up(container: Container, *names: str) -> None:
    """Make some workers."""
    for name in names or ("worker",):
        await asyncio.sleep(0)
        Worker(container, name)


def set_up_plainly(container: Container) -> None:
    """Make a worker, without a coroutine."""
    Worker(container, "plain")


def fail(container: Container) -> None:
    """Be of no use."""
    raise RuntimeError("no device")


def hasten(container: Container) -> None:
    """Make an agent that fails."""
    Hasty(container)


def work_once(container: Container, path: str, how: str, **_: Any) -> None:
    """Make a worker at the first start; go wrong at each later one."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(Path(path).read_text().split()) == 1:
        Worker(container, "worker")
    elif how == "exit":
        os._exit(7)
    elif how == "block":
        time.sleep(60)
    else:
        raise RuntimeError("no device")
