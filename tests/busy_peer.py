"""A container in a process of its own that can be stopped, made busy and killed, and returns where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from aiomas_ng import Agent, Container, expose
from aiomas_ng.rpc import Service

__all__ = ["BusyProcess", "open_process"]


class Worker(Agent):
    """What is called."""

    router = Service()

    @expose
    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value

    @expose
    def compute(self, seconds: float) -> str:
        """Block the loop of the process."""
        time.sleep(seconds)
        return "done"


class BusyProcess:
    """Runs the container.

    Args:
        address: Where it listens.
    """

    def __init__(self, address: Any) -> None:
        self.address = address
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Start it, anew if it has been killed, at the address that it had; return the agent's address."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.busy_peer",
            *map(str, self.address if isinstance(self.address, tuple) else [self.address]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONASYNCIODEBUG": ""},
        )
        assert self._process.stdout is not None
        self.url = (await self._process.stdout.readline()).decode().strip()
        if isinstance(self.address, tuple):
            self.address = (self.address[0], int(self.url.rstrip("/").rpartition(":")[2].partition("/")[0]))
        return self.url + "worker"

    def stop(self) -> None:
        """Let it do nothing at all, as if it computed for long."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@contextlib.asynccontextmanager
async def open_process(address: Any) -> AsyncIterator[BusyProcess]:
    """Give a process that is killed at the end."""
    process = BusyProcess(address)
    try:
        yield process
    finally:
        await process.kill()


async def main(address: Any) -> None:
    """Serve until the input ends, as it does when the parent dies."""
    container = await Container.create(address, as_coro=True, liveness=None)
    Worker(container, aid="worker")
    print(container._base_url, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await container.shutdown(as_coro=True)


if __name__ == "__main__":
    place = sys.argv[1:]
    asyncio.run(main((place[0], int(place[1])) if len(place) > 1 else place[0]))
