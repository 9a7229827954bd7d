"""The orderly end of a container.

In this order:

1. It stops listening, and tells its peers: no new requests are taken (see :mod:`aiomas_ng._io.closing`).
2. The agents' ``on_stop`` hooks run, one after the other. All connections are still open.
3. Handlers that run are waited for, as long as the grace lasts.
4. What is left is cancelled, and all is closed.

All of it happens in a task of its own, so that nobody who waits for it can break it off half-way: who is
cancelled, or calls again with less grace, only makes it faster.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._container.hooks import is_in_hook
from aiomas_ng._container.signals import SignalWatch
from aiomas_ng._core.deadline import get_context_without
from aiomas_ng._io.background import ENDER
from aiomas_ng._io.closing import GRACE, check_grace
from aiomas_ng._io.connection import CLOSE_GRACE
from aiomas_ng._io.job import CURRENT_JOB, Job
from aiomas_ng.pipe import CURRENT_DRIVER

if TYPE_CHECKING:
    from aiomas_ng.agent import Container
    from aiomas_ng.rpc import RpcClient

__all__ = ["GRACE", "Ending"]

#: Seconds that all ``on_stop`` hooks together are given, or the grace if that is more.
HOOK_TIME: Final = 5.0
#: Seconds that a hook is given which was cancelled, and all together that come when the time is up.
LAST_HOOK_TIME: Final = 1.0

SHUTTING_DOWN: Final = "the container is shutting down"

logger = logging.getLogger("aiomas_ng.agent")


def is_in_handler() -> bool:
    """Return whether the running code is part of a handler that has not ended."""
    job, driver = CURRENT_JOB.get(), CURRENT_DRIVER.get()
    return (job is not None and not job.task.done()) or (driver is not None and not driver.done())


class Ending:
    """The end of one container.

    Args:
        container: The container.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self._loop = container.loop
        self._task: asyncio.Task[None] | None = None
        # Done when nothing is waited for any more: neither hooks nor handlers.
        self._hooks_over: asyncio.Future[None] = self._loop.create_future()
        self._grace_over: asyncio.Future[None] = self._loop.create_future()
        self._timers: list[asyncio.TimerHandle] = []
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._is_hurried = False
        # One-way calls that go on although their connection has ended.
        self._left_over: set[Job] = set()
        self.is_closing = False  #: Whether the connections are being closed.

    @property
    def has_begun(self) -> bool:
        """Whether the container was told to shut down."""
        return self._task is not None

    @property
    def is_over(self) -> bool:
        """Whether the container has been shut down."""
        return self._task is not None and self._task.done()

    async def run(self, grace: float) -> None:
        """Shut the container down; see :meth:`aiomas_ng.agent.Container.shutdown`."""
        check_grace(grace)
        self._container._check_loop()
        self._container._close_server()
        now = self._loop.time()
        if self._task is None:
            self._set_timer(now + max(grace, HOOK_TIME), self._hooks_over)
            self._set_timer(now + grace, self._grace_over)
            context = get_context_without() or contextvars.copy_context()
            context.run(ENDER.set, asyncio.current_task())
            self._task = self._loop.create_task(
                self._end_all(), name=f"shutdown of {self._container}", context=context
            )
        elif not self._task.done():
            self._set_timer(now + grace, self._grace_over)
            if is_in_handler() or is_in_hook():
                return  # the task may wait for us
        await self.wait()

    async def wait(self) -> None:
        """Wait for the end, which must have begun; cancelling it makes it come at once, and waits for it
        still."""
        assert self._task is not None
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if not self._task.done():
                self.hurry()
                await asyncio.shield(self._task)
            raise

    async def serve(self, signals: Iterable[int], grace: float) -> signal.Signals | None:
        """Wait for a signal or the end; see :meth:`aiomas_ng.agent.Container.serve_forever`."""
        check_grace(grace)
        self._container._check_loop()
        received: asyncio.Future[signal.Signals] = self._loop.create_future()

        def take(number: signal.Signals) -> None:
            if received.done():
                logger.warning("got %s again: %s ends at once", number.name, self._container)
                self.hurry()
            else:
                logger.info("got %s: %s shuts down", number.name, self._container)
                received.set_result(number)

        with SignalWatch(self._loop, signals, take):
            try:
                waiting: list[asyncio.Future[Any]] = [received, self._over]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not self.is_over:
                    await self.run(grace)
        return received.result() if received.done() else None

    def forget(self, client: RpcClient) -> None:
        """A connection has ended. What nobody waits for, one-way calls, goes on, but not without end."""
        self._container._connections.discard(client)
        for job in client.channel._running:
            self._left_over.add(job)
            job.task.add_done_callback(lambda _, job=job: self._left_over.discard(job))  # type: ignore[misc]

    def _get_left_over(self) -> list[Job]:
        current = CURRENT_JOB.get()
        return [job for job in self._left_over if job is not current]

    def hurry(self) -> None:
        """Wait for nothing any more: what still runs is cancelled, and all is closed."""
        self._is_hurried = True
        _set(self._hooks_over)
        _set(self._grace_over)

    def _set_timer(self, when: float, over: asyncio.Future[None]) -> None:
        if when <= self._loop.time():
            _set(over)
        else:
            self._timers.append(self._loop.call_at(when, _set, over))

    # The steps

    async def _end_all(self) -> None:
        try:
            self._tell_peers()
            await self._stop_agents()
            await self._wait_for_handlers()
        finally:
            for timer in self._timers:
                timer.cancel()
            try:
                await self._close()
            finally:
                _set(self._over)

    def _tell_peers(self) -> None:
        for client in list(self._container._connections):
            if not client._is_own:  # the agents of this container still serve each other
                client.channel._begin_close(SHUTTING_DOWN)

    async def _stop_agents(self) -> None:
        """Run the hooks. What takes too long is cancelled, so that each agent has its turn."""
        container = self._container
        await self._stop_restarts()
        left: list[asyncio.Task[None]] = []
        for aid, agent in list(container.agents.dict.items()):
            if self._is_hurried:
                break
            if container.agents.dict.get(aid) is not agent and not container._hooks.is_stopping(aid, agent):
                continue  # it was removed while others were ended
            rest = container._hooks.begin_stop(aid, agent, is_kept=True)
            if rest is None:
                continue
            task = self._loop.create_task(_as_coroutine(rest), name=f"on_stop of {agent}")
            left.append(task)
            if not self._hooks_over.done() and await self._wait([task], self._hooks_over):
                left.pop()
        if left:
            # Those that came when the time was up are at least begun, and get some time together.
            if not self._is_hurried:
                await asyncio.wait(left, timeout=LAST_HOOK_TIME)
            await _cancel(left)
        container._hooks.close()

    async def _stop_restarts(self) -> None:
        """Restart no agent any more, and wait for those that are just being stopped for it."""
        supervisor = self._container.supervisor
        closing = self._loop.create_task(supervisor._close(wait=not is_in_hook()))
        if not await self._wait([closing], self._hooks_over):
            closing.cancel()
            tasks = supervisor._abort()
            if tasks:
                await asyncio.wait(tasks, timeout=LAST_HOOK_TIME)

    async def _wait_for_handlers(self) -> None:
        container = self._container
        while not self._grace_over.done():
            waiting: set[asyncio.Future[Any]] = set(container._peers.get_tasks())  # calls not sent yet
            for client in container._connections:
                waiting.update(client.channel._get_under_way())
            waiting.update(job.task for job in self._get_left_over())
            if not waiting or not await self._wait(waiting, self._grace_over):
                return

    async def _wait(self, waiting: Iterable[asyncio.Future[Any]], over: asyncio.Future[None]) -> bool:
        """Wait until all are done; return whether they are, ``False`` if it was *over* before."""
        # All of them in one, because to wait for the first of many takes as long as all, each time.
        all_done = self._loop.create_task(_wait_all(waiting))
        try:
            await asyncio.wait([all_done, over], return_when=asyncio.FIRST_COMPLETED)
            return all_done.done()
        finally:
            all_done.cancel()

    async def _close(self) -> None:
        container = self._container
        self.is_closing = True
        clients = list(container._connections)
        left_over = self._get_left_over()
        # At once, and without waiting for anything: whoever may cancel us now, all is on its way.
        container._context.end_requests()
        for client in clients:
            client.channel._end_here()
        container._peers.end()
        try:
            # All at once: if we are in a handler, the end of one of two connected ends must not cancel it
            # through the other one.
            await asyncio.gather(
                container._context.shutdown(grace=0),
                *(client.close() for client in clients),
                container._peers.close(),
                _cancel_jobs(left_over),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            for client in clients:  # the loop is about to end
                client.channel.transport.abort()
            raise


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _as_coroutine(awaitable: Any) -> None:
    await awaitable


async def _wait_all(waiting: Iterable[asyncio.Future[Any]]) -> None:
    await asyncio.wait(waiting)


async def _cancel_jobs(jobs: list[Job]) -> None:
    """Cancel calls, and give them a moment to end."""
    for job in jobs:
        job.cancel()
    if jobs:
        _, pending = await asyncio.wait([job.task for job in jobs], timeout=CLOSE_GRACE)
        for task in pending:
            logger.warning("a handler goes on although its container has ended: %r", task)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel hooks that take too long, and give them a moment to end."""
    for task in tasks:
        task.cancel()
    _, pending = await asyncio.wait(tasks, timeout=LAST_HOOK_TIME)
    for task in tasks:
        if task in pending:
            logger.warning("%s goes on although it was cancelled", task.get_name())
        elif task.cancelled():
            logger.warning("%s took too long; it was cancelled", task.get_name())
