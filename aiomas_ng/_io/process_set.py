"""Sets of container processes, as their parent has them: started together, ended together, and started again
one by one if that is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import pickle
import types
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.access import Rule
from aiomas_ng._core.addresses import parse_agent_url
from aiomas_ng._core.restarts import Restart
from aiomas_ng._io.endpoint import as_address
from aiomas_ng._io.slot import ProcessFailure, Slot
from aiomas_ng.exceptions import ProcessError

if TYPE_CHECKING:
    from aiomas_ng.agent import Container

__all__ = ["ProcessSet", "start_processes"]

logger = logging.getLogger("aiomas_ng.subproc")

#: Seconds until a child has to be ready.
START_TIMEOUT: Final = 60.0
#: Seconds that a child is given to end before it is terminated, and again before it is killed.
STOP_TIMEOUT: Final = 5.0
#: The same for children of a set of which one could not be started.
FAILED_STOP_TIMEOUT: Final = 1.0


#: What the children run.
MAIN: Final = "aiomas_ng.subproc:_run_child"


class ProcessSet:
    """Container processes that were started together; see :func:`~aiomas_ng.subproc.start_processes`.

    Attributes:
        managers: The address of each container's manager, in the order of the addresses given.
    """

    def __init__(self) -> None:
        self.managers: list[str] = []
        self._slots: list[Slot] = []
        self._on_failure: list[Callable[[ProcessFailure], object]] = []
        self._on_restart: list[Callable[[str], object]] = []

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes; of one that has died its last one, until there is a new one."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    @property
    def restarts(self) -> list[int]:
        """How often each of them was started again."""
        return [slot.restarts for slot in self._slots]

    def on_failure(self, callback: Callable[[ProcessFailure], object]) -> None:
        """Call *callback* with each :class:`~aiomas_ng.subproc.ProcessFailure`, where processes are
        restarted."""
        self._on_failure.append(callback)

    def on_restart(self, callback: Callable[[str], object]) -> None:
        """Call *callback* with the address of the manager of each process that was restarted and is ready."""
        self._on_restart.append(callback)

    async def wait(self) -> list[int]:
        """Wait until all processes have ended, and none of them is to be restarted; return their exit codes
        (negative: the signal that killed them)."""
        return [await slot.wait() for slot in self._slots]

    async def stop(self, timeout: float = STOP_TIMEOUT) -> list[int]:
        """End all processes, orderly where that works and otherwise by force, and return their exit codes.

        Safe to be called twice. Cancelling it kills those that have not ended.

        Args:
            timeout: Seconds that they are given to shut down, and again after SIGTERM, before they are
                killed.
        """
        try:
            for slot in self._slots:
                await slot.unwatch()
            for slot in self._slots:
                slot.hang_up()
            await self._wait_for_end(timeout)
            for process in self._running():
                logger.warning("container process %s does not end; terminating it", process.pid)
                process.terminate()
            await self._wait_for_end(timeout)
        finally:
            for process in self._running():
                logger.warning("container process %s does not end; killing it", process.pid)
                process.kill()
        return await self.wait()

    async def _add(self, slot: Slot) -> None:
        try:
            await slot.start()
        finally:
            if slot.process is not None:
                self._slots.append(slot)

    def _watch(self, rule: Restart) -> None:
        for slot in self._slots:
            slot.watch(
                rule, functools.partial(_tell, self._on_failure), functools.partial(_tell, self._on_restart)
            )

    def _running(self) -> list[asyncio.subprocess.Process]:
        return [slot.process for slot in self._slots if slot.process is not None and slot.is_running]

    async def _wait_for_end(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), timeout)

    async def __aenter__(self) -> ProcessSet:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _tell(callbacks: list[Callable[[Any], object]], event: Any) -> None:
    for callback in tuple(callbacks):
        try:
            callback(event)
        except Exception:
            logger.exception("a callback of a set of processes failed")


async def start_processes(
    addrs: Iterable[Any],
    *,
    allow: Iterable[str] | Mapping[str, Rule | None] | None = None,
    setup: Callable[[Container], Any] | None = None,
    restart: Restart | None = None,
    timeout: float = START_TIMEOUT,
    **container_kwargs: Any,
) -> ProcessSet:
    """Start one process for each address, with a container and its :class:`~aiomas_ng.subproc.Manager`; all
    can be connected to on return.

    No process is left behind: neither when one of them fails to start, nor when this is cancelled, nor when
    this process dies, be it by SIGKILL.

    Args:
        addrs: Where the containers listen.
        allow: What the managers may create, see :class:`~aiomas_ng.subproc.Manager`; rules in it are pickled.
        setup: Called in each process with its container when the manager is there, at each start; may be a
            coroutine function. The process is ready when the agents that it has made are. It is pickled, so
            it is a function of a module, or a :func:`functools.partial` of one.
        restart: When a process that has died (with an exit code other than 0) is started again: at the same
            address, with the same arguments, as they are then. By default it is not. What its agents were,
            only *setup* can bring back.
        timeout: Seconds until all have to be ready, and until each has to be that is started again.
        **container_kwargs: Passed on to :meth:`aiomas_ng.agent.Container.create` in the children, pickled;
            but ``manager_access``, who may reach the managers, is as of :func:`~aiomas_ng.subproc.start`.

    Raises:
        ProcessError: A process failed, died before it was ready, or was not ready in time. Says why, and has
            the child's traceback as a note.
        TypeError: An argument cannot be pickled, or consists of what is defined in the main script, which the
            children do not have.
    """
    if allow is not None and not isinstance(allow, str | Mapping):
        allow = list(allow)
    if restart is not None and not isinstance(restart, Restart):
        raise TypeError(f"restart must be an aiomas_ng.supervision.Restart but is {restart!r}")
    slots = []
    settings = []
    for addr in addrs:
        make_settings = functools.partial(_make_settings, addr, allow, setup, container_kwargs)
        settings.append(make_settings(None))
        slots.append(Slot(MAIN, make_settings, timeout))
    processes = ProcessSet()
    try:
        async with asyncio.timeout(timeout):
            for slot in slots:
                await processes._add(slot)
            async with asyncio.TaskGroup() as group:
                for slot, setting in zip(slots, settings, strict=True):
                    group.create_task(slot.set_up(setting))
        processes.managers += [slot.manager for slot in slots if slot.manager is not None]
    except BaseException as error:
        await processes.stop(FAILED_STOP_TIMEOUT)
        if isinstance(error, TimeoutError):
            raise ProcessError(f"the container processes were not ready within {timeout} s") from error
        if isinstance(error, OSError):
            raise ProcessError(f"a container process cannot be started: {error}") from error
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None  # one says enough; the others were cancelled because of it
        raise
    if restart is not None:
        processes._watch(restart)
    return processes


def _make_settings(
    addr: Any,
    allow: Any,
    setup: Callable[[Container], Any] | None,
    container_kwargs: dict[str, Any],
    manager: str | None,
) -> bytes:
    """Return the settings of a child, pickled.

    Args:
        addr: Where it listens.
        allow: What its manager may create.
        setup: What makes its agents.
        container_kwargs: How the container is made.
        manager: The address of the manager before, whose port is used again.

    Raises:
        TypeError: They cannot be pickled.
    """
    if manager is not None:
        target, place = as_address(addr), parse_agent_url(manager)[0].place
        if isinstance(target, tuple) and isinstance(place, tuple):
            addr = (target[0], place[1])
    return _pickle((addr, allow, setup, container_kwargs))


def _pickle(settings: tuple[Any, ...]) -> bytes:
    stream = io.BytesIO()
    try:
        _SettingsPickler(stream).dump(settings)
    except Exception as error:
        raise TypeError(f"the arguments for a container process cannot be pickled: {error}") from error
    return stream.getvalue()


class _SettingsPickler(pickle.Pickler):
    """Refuses what the child could not find."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType) and obj.__module__ == "__main__":
            raise TypeError(
                f"{obj.__qualname__} is defined in the main script, which container processes do not have; "
                f"move it to a module"
            )
        return NotImplemented
