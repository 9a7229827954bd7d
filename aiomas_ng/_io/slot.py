"""One place in a set of container processes: the child that is there now, and those that come after it.

::

    start ─▶ set up ─▶ ready ─▶ dead ─▶ pausing ─▶ start …
                                  │
                                  ├─▶ ended: its exit code is 0
                                  └─▶ given up: its restarts are used up

A child that dies on its way to being ready has died like any other, so one that never gets there does not
spin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiomas_ng._core.deadline import get_context_without
from aiomas_ng._core.restarts import History, Restart
from aiomas_ng._io.child import Child
from aiomas_ng.exceptions import ProcessError

__all__ = ["ProcessFailure", "Slot"]

logger = logging.getLogger("aiomas_ng.subproc")

#: Seconds that a child which did not get ready is given to end before it is killed.
END_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class ProcessFailure:
    """A container process has died, or could not be started again.

    Attributes:
        manager: The address of its manager.
        pid: The id of the process.
        code: Its exit code; negative: the signal that killed it; ``None`` if there was no process.
        error: Why it could not be started again; ``None`` if it was running.
        pause: Seconds until it is started again; ``None`` if it is given up.
        restarts: How often it was started again before.
    """

    manager: str
    pid: int
    code: int | None
    error: BaseException | None
    pause: float | None
    restarts: int

    def __str__(self) -> str:
        what = f"container process {self.pid} ({self.manager})"
        if self.error is None:
            text = f"{what} died with code {self.code}"
        else:
            text = f"{what} cannot be started again: {type(self.error).__name__}: {self.error}"
        if self.pause is None:
            return f"{text}; it was restarted {self.restarts} times, and is given up"
        return f"{text}; it is restarted in {self.pause:.3g} s"


class Slot:
    """One place in a set of processes.

    Args:
        main: What the children run, see :meth:`~aiomas_ng._io.child.Child.start`.
        make_settings: Returns the settings for a child, given the address of the manager that was there
            before; ``None`` at first.
        timeout: Seconds that a child which is started again is given to get ready.
    """

    def __init__(self, main: str, make_settings: Callable[[str | None], bytes], timeout: float) -> None:
        self.manager: str | None = None  #: The address of the manager, as soon as that is known.
        self.restarts = 0  #: How often a child was started again.
        self._main = main
        self._make_settings = make_settings
        self._timeout = timeout
        self._child: Child | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def process(self) -> asyncio.subprocess.Process | None:
        """The process that is there now, or was there last."""
        return self._child.process if self._child is not None else None

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._child is not None and self._child.process.returncode is None

    async def start(self) -> None:
        """Start a child, which then waits for its settings.

        Raises:
            OSError: The system cannot start one.
        """
        starting = asyncio.create_task(Child.start(self._main))
        try:
            # If this is cancelled, there is a process to be ended all the same: uvloop would forget it.
            await asyncio.shield(starting)
        finally:
            self._child = await starting

    async def set_up(self, settings: bytes) -> None:
        """Hand the child its *settings*, and wait until it is ready.

        Raises:
            ProcessError: It failed or died.
        """
        assert self._child is not None
        self.manager = (await self._child.set_up(settings))["manager"]

    def watch(
        self,
        rule: Restart,
        on_failure: Callable[[ProcessFailure], object],
        on_restart: Callable[[str], object],
    ) -> None:
        """Start the child again when it dies, as *rule* says, from now on until :meth:`unwatch`."""
        watching = self._watch(rule, on_failure, on_restart)
        self._watcher = asyncio.create_task(watching, context=get_context_without())

    async def unwatch(self) -> None:
        """Start nothing any more; safe to be called twice."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])

    def hang_up(self) -> None:
        """Let the child shut down; safe to be called twice."""
        if self._child is not None:
            self._child.hang_up()

    async def wait(self) -> int:
        """Wait until there is no process and will be none; return the exit code of the last one."""
        if self._watcher is not None:
            await asyncio.wait([self._watcher])
        assert self._child is not None
        return await self._child.process.wait()

    async def _watch(
        self,
        rule: Restart,
        on_failure: Callable[[ProcessFailure], object],
        on_restart: Callable[[str], object],
    ) -> None:
        assert self._child is not None
        assert self.manager is not None
        loop = asyncio.get_running_loop()
        history = History(self.manager)
        error: Exception | None = None
        while True:
            process = self._child.process
            code = await process.wait()
            if code == 0 and error is None:
                return  # it was told to end
            self._child.hang_up()
            pause = history.next_pause(rule, loop.time())
            failure = ProcessFailure(self.manager, process.pid, code, error, pause, self.restarts)
            logger.error("%s", failure, exc_info=error)
            on_failure(failure)
            if pause is None:
                return
            await asyncio.sleep(pause)
            error = None
            self.restarts += 1
            try:
                await self._start_again()
            except Exception as failed:
                error = failed
            else:
                history.restarted(loop.time())
                logger.warning("restarted container process %s (%s)", self._child.process.pid, self.manager)
                on_restart(self.manager)

    async def _start_again(self) -> None:
        """Put a new child in the place of the one that has died; if it does not get ready, end it.

        Raises:
            ProcessError: It failed or died, or was not ready in time.
            OSError: The system cannot start one.
            TypeError: Its settings cannot be pickled any more.
        """
        settings = self._make_settings(self.manager)
        try:
            await self.start()
            async with asyncio.timeout(self._timeout):
                await self.set_up(settings)
        except TimeoutError as error:
            await self._end()
            raise ProcessError(f"it was not ready within {self._timeout} s") from error
        except ProcessError:
            await self._end()
            raise
        except BaseException:
            self.hang_up()  # whoever cancels this waits for the child's end
            raise

    async def _end(self) -> None:
        assert self._child is not None
        self._child.hang_up()
        process: Any = self._child.process
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_TIMEOUT)
        if process.returncode is None:
            process.kill()
            await process.wait()
