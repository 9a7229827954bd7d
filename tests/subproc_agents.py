"""What the tests of aiomas_ng.subproc let managers and container processes create."""

from __future__ import annotations

import asyncio
import os
import os as imported_module
import subprocess
import sys
import time
from collections.abc import Callable
from os import getcwd as imported_function
from pathlib import Path
from typing import Any

from aiomas_ng import Agent, Container, ExternalClock, MsgPack, expose, subproc
from aiomas_ng.agent import Agent as ImportedAgent

__all__ = ["ImportedAgent", "imported_function", "imported_module"]


class Battery(Agent):
    """An agent with some state and all sorts of factories."""

    def __init__(self, container: Container, capacity: float = 1.0, *, name: str = "battery") -> None:
        super().__init__(container)
        self.capacity = capacity
        self.name = name

    class Cell(Agent):
        """An agent whose class lies within another."""

    @classmethod
    async def create(cls, container: Container, capacity: float = 1.0, **kwargs: Any) -> Battery:
        """Take some turns of the loop to make one."""
        await asyncio.sleep(0)
        return cls(container, capacity, **kwargs)

    @classmethod
    def create_at_once(cls, container: Container, capacity: float = 1.0, **kwargs: Any) -> Battery:
        return cls(container, capacity, **kwargs)

    @staticmethod
    def create_static(container: Container, capacity: float = 1.0, **kwargs: Any) -> Battery:
        return Battery(container, capacity, **kwargs)

    @classmethod
    async def create_nothing(cls, container: Container) -> str:
        return f"no agent in {container}"

    @expose
    def get_state(self) -> list[Any]:
        return [self.capacity, self.name, os.getpid()]

    @property
    def level(self) -> float:
        return 0.5


class HeavyBattery(Battery):
    """Inherits its factories."""


class Sluggish(Agent):
    """Takes its time to become ready, until the test lets it."""

    gate: asyncio.Event

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.is_ready = False

    async def on_ready(self) -> None:
        await self.gate.wait()
        self.is_ready = True


class Broken(Agent):
    """Cannot be made."""

    def __init__(self, container: Container) -> None:
        raise RuntimeError(f"broken on purpose, in {container}")


class Sleeper(Agent):
    """Sleeps as long as it is told to."""

    @expose
    async def sleep(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    @expose
    def is_there(self) -> bool:
        return True


class Probe(Agent):
    """Looks around in its process, and disturbs it."""

    @expose
    def get_time(self) -> float:
        return self.container.clock.time()

    @expose
    def print_lines(self, text: str) -> None:
        print(text)
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os.write(1, f"{text}, unbuffered\n".encode())

    @expose
    def read_stdin(self) -> str:
        return sys.stdin.read()

    @expose
    def get_path(self) -> list[str]:
        return sys.path

    @expose
    def get_environment(self, name: str) -> str | None:
        return os.environ.get(name)

    @expose
    def import_module(self, name: str) -> str | None:
        return __import__(name).__file__

    @expose
    def start_process(self, *command: str) -> int:
        """Start a process that has all files which it may inherit."""
        with open(os.devnull) as null:
            return subprocess.Popen(command, close_fds=False, stdout=null).pid

    @expose
    def get_ballast(self) -> int:
        return len(self.container.clock.ballast)  # type: ignore[attr-defined]  # of HeavyClock

    @expose
    def block(self, seconds: float, path: str) -> None:
        """Let nothing else run in the loop; *path* appears when that begins."""
        Path(path).touch()
        time.sleep(seconds)

    @expose
    def exit(self, code: int) -> None:
        os._exit(code)

    @expose
    def leave_note_at_stop(self, path: str) -> None:
        self.path = Path(path)

    async def on_stop(self) -> None:
        if hasattr(self, "path"):
            await asyncio.sleep(0)
            self.path.write_text("stopped")


class NoAgent:
    """Not an agent, but its class methods make some."""

    def __init__(self, *args: Any) -> None:
        raise AssertionError("this class must not be used")

    @classmethod
    def create(cls, container: Container) -> Battery:
        return Battery(container)


class Recorder(subproc.Manager):
    """A manager as programs derive their own: with a further method, and one that does more."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.spawned: list[str] = []

    @expose
    async def spawn(self, qualname: str, *args: Any, **kwargs: Any) -> tuple[Any, str]:
        agent, addr = await super().spawn(qualname, *args, **kwargs)
        self.spawned.append(addr)
        return agent, addr

    @expose
    def get_spawned(self) -> list[str]:
        return self.spawned


class Liberal(subproc.Manager):
    """A manager that passes on whatever it is given."""

    def __init__(self, container: Container, **kwargs: Any) -> None:
        super().__init__(container, **kwargs)

    @classmethod
    async def create(cls, container: Container, **kwargs: Any) -> Liberal:
        return cls(container, **kwargs)


def make_battery(container: Container, capacity: float = 1.0) -> Battery:
    """Make an agent, but be no class of agents."""
    return Battery(container, capacity)


make_by_lambda = lambda container: Battery(container)  # noqa: E731  # a lambda is meant
a_battery_class_alias = Battery
a_constant = 42


# Settings of containers


class HeavyClock(ExternalClock):
    """A clock that is large when pickled."""

    ballast: bytes = b""


class Trap:
    """Calls something in the process in which it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> Any:
        return self.function, self.args

    def __call__(self) -> Any:
        return MsgPack()


def exit_at_once(code: int) -> None:
    """End the process without any more words."""
    os._exit(code)


def touch_and_sleep(path: str, seconds: float) -> None:
    """Tell, by making a file, that the process has come so far, and go no further."""
    Path(path).touch()
    time.sleep(seconds)
