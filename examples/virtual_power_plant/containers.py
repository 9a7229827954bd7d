"""Where the agents live: three containers, in this process or in three others.

This is the only module that knows the difference.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, get_args

from arrow.arrow import Arrow

import aiomas_ng
from aiomas_ng import subproc
from aiomas_ng.exceptions import ProcessError
from examples.virtual_power_plant.messages import SERIALIZERS
from examples.virtual_power_plant.timeline import STEP

Transport = Literal["local", "ipc", "tcp"]
TRANSPORTS: Final[tuple[str, ...]] = get_args(Transport)

#: How many containers the agents are distributed over.
CONTAINERS: Final = 3

PACKAGE: Final = __name__.rpartition(".")[0]
#: All that managers may create: a process that listens to others should not import whatever it is told.
PLANT: Final = f"{PACKAGE}.plants:Plant"
BATTERY: Final = f"{PACKAGE}.batteries:Battery.create"
CONTROLLER: Final = f"{PACKAGE}.controller:Controller.create"
ALLOWED: Final = (PLANT, BATTERY, CONTROLLER)


@asynccontextmanager
async def open_containers(
    transport: Transport, start: Arrow
) -> AsyncIterator[tuple[aiomas_ng.Container, list[str]]]:
    """Start all containers, and end them and their processes when the context is left, in whatever way.

    Args:
        transport: ``'local'`` for all in this process, over LocalQueue; ``'ipc'`` and ``'tcp'`` for a process
            for each, over Unix sockets or TCP.
        start: The date at which the simulation begins.

    Yields:
        The container of this process, and the addresses of the managers of the three others.

    Raises:
        ProcessError: A process could not be started, or has died; the error that showed it is its cause.
    """
    async with AsyncExitStack() as stack:
        own_addr, *addrs = _make_addrs(transport, stack)
        # The first to come is the last to go, so that the others can take their leave of it.
        container = await aiomas_ng.Container.create(own_addr, as_coro=True, **_make_settings(start))
        stack.push_async_callback(container.shutdown, as_coro=True)
        if transport == "local":
            managers = [await _open_here(addr, start, stack) for addr in addrs]
        else:
            processes = await subproc.start_processes(addrs, allow=ALLOWED, **_make_settings(start))
            managers = (await stack.enter_async_context(processes)).managers
            await stack.enter_async_context(_tell_the_dead(processes))
        yield container, managers


@asynccontextmanager
async def _tell_the_dead(processes: subproc.ProcessSet) -> AsyncIterator[None]:
    """Say so if an error comes of the death of a process; a call knows only that its connection broke."""
    try:
        yield
    except aiomas_ng.AiomasError as error:
        codes = await processes.stop()
        dead = [
            f"the container process at {addr.rpartition('/')[0]} has died (exit code {code})"
            for addr, code in zip(processes.managers, codes, strict=True)
            if code != 0
        ]
        if not dead:
            raise
        raise ProcessError("; ".join(dead)) from error


async def _open_here(addr: Any, start: Arrow, stack: AsyncExitStack) -> str:
    """Open a container in this process and return the address of its manager."""
    container = await aiomas_ng.Container.create(addr, as_coro=True, **_make_settings(start))
    stack.push_async_callback(container.shutdown, as_coro=True)
    return subproc.Manager(container, allow=ALLOWED).addr


def _make_settings(start: Arrow) -> dict[str, Any]:
    """Return the settings that are the same for each container, with a clock of its own."""
    # The clock stands one step before the start, so that each hour, the first too, begins with setting it.
    clock = aiomas_ng.ExternalClock(start, init_time=-STEP)
    return {"clock": clock, "extra_serializers": SERIALIZERS}


def _make_addrs(transport: Transport, stack: AsyncExitStack) -> Sequence[Any]:
    """Return an address for the container of this process and for each of the three others."""
    numbers = range(CONTAINERS + 1)
    if transport == "tcp":
        return [("127.0.0.1", 0) for _ in numbers]  # with port 0, the system chooses a free one
    if transport == "ipc":
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vpp-")))
        return [str(directory / str(number)) for number in numbers]
    name = secrets.token_hex(4)
    return [aiomas_ng.get_queue(f"vpp-{name}-{number}") for number in numbers]
