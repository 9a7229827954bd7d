"""The hooks of agents: when ``on_ready`` and ``on_stop`` run, and what becomes of their exceptions."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from aiomas_ng._core.deadline import get_context_without
from aiomas_ng._io.connection import CLOSE_GRACE
from aiomas_ng._io.job import pass_on_interrupt
from aiomas_ng._io.principal import CURRENT_PRINCIPAL
from aiomas_ng._io.supervised import get_declared

if TYPE_CHECKING:
    from aiomas_ng.agent import Agent, Container

__all__ = ["CURRENT_HOOK", "Hooks", "is_in_hook"]

logger = logging.getLogger("aiomas_ng.agent")

#: The task that runs the hook which the running code is part of; a shutdown may be waiting for it.
CURRENT_HOOK: contextvars.ContextVar[asyncio.Task[Any] | None] = contextvars.ContextVar(
    "CURRENT_HOOK", default=None
)


def is_in_hook() -> bool:
    """Return whether the running code is part of an agent's hook that has not ended."""
    hook = CURRENT_HOOK.get()
    return hook is not None and not hook.done()


class Hooks:
    """Runs the hooks of the agents of a container, and in between the tasks that they declare.

    Args:
        container: The container.
        base: The class whose hooks do nothing.
    """

    def __init__(self, container: Container, base: type[Agent]) -> None:
        self._container = container
        self._loop = container.loop
        self._base = base
        self._ready: dict[str, asyncio.Future[None]] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}  # runs of on_ready
        # The agents that are being ended, and what is done when they are; with those that were ended with the
        # container, which keeps them.
        self._stopping: dict[str, tuple[Agent, asyncio.Future[None]]] = {}

    def register(self, aid: str, agent: Agent) -> None:
        """See to it that ``on_ready`` and the tasks of a new agent are run, if it has some."""
        if self._has(agent, "on_ready") or get_declared(type(agent)):
            self._ready[aid] = self._loop.create_future()
            # In the next turn of the loop the constructors of all subclasses are through.
            self._loop.call_soon(self._make_ready, aid, agent)

    def _make_ready(self, aid: str, agent: Agent) -> None:
        ready = self._ready[aid]

        def end(task: asyncio.Task[None] | None) -> None:
            if self._starting.get(aid) is task is not None:
                del self._starting[aid]
                if not task.cancelled():
                    self._container.supervisor._begin(agent)
            if self._ready.get(aid) is ready:  # or the agent was restarted, and this is its old one
                del self._ready[aid]
            ready.set_result(None)

        if not self._container._may_get_ready(aid, agent):
            end(None)
            return
        # The agent goes on to live when what has made it is over.
        hook, context = self._run(agent, "on_ready"), get_context_without()
        self._starting[aid] = self._loop.create_task(hook, context=context)
        self._starting[aid].add_done_callback(end)

    async def wait_ready(self, aid: str) -> None:
        """Wait until ``on_ready`` of an agent has ended."""
        ready = self._ready.get(aid)
        if ready is not None:
            await asyncio.shield(ready)

    def begin_stop(self, aid: str, agent: Agent, *, is_kept: bool = False) -> Awaitable[None] | None:
        """End an agent: its ``on_ready``, its tasks, and at last its ``on_stop``; return what is left to be
        awaited, ``None`` if that is nothing.

        Who ends an agent that is being ended already waits for the same end, except for a hook, which may be
        what that waits for.

        Args:
            aid: Its id.
            agent: The agent.
            is_kept: The container goes on to have it.
        """
        earlier, ended = self._stopping.get(aid, (None, None))
        if earlier is agent and ended is not None:
            return None if ended.done() or is_in_hook() else asyncio.shield(ended)
        ended = self._loop.create_future()
        self._stopping[aid] = agent, ended
        rest = None
        try:
            rest = self._begin_stop(aid, agent)
        finally:
            if rest is None:
                self._stopped(aid, ended, is_kept)
        return None if rest is None else self._finish_stop(aid, rest, ended, is_kept)

    def is_stopping(self, aid: str, agent: Agent) -> bool:
        """Return whether the agent is being ended."""
        return self._stopping.get(aid, (None, None))[0] is agent

    async def _finish_stop(
        self, aid: str, rest: Awaitable[None], ended: asyncio.Future[None], is_kept: bool
    ) -> None:
        try:
            await rest
        finally:
            self._stopped(aid, ended, is_kept)

    def _stopped(self, aid: str, ended: asyncio.Future[None], is_kept: bool) -> None:
        if not ended.done():
            ended.set_result(None)
        if not is_kept and self._stopping[aid][1] is ended:
            del self._stopping[aid]

    def close(self) -> None:
        """Let nobody wait any more for agents whose time to end is over."""
        for _, ended in self._stopping.values():
            if not ended.done():
                ended.set_result(None)

    def _begin_stop(self, aid: str, agent: Agent) -> Awaitable[None] | None:
        starting = self._starting.get(aid)
        if starting in (asyncio.current_task(), CURRENT_HOOK.get()):
            starting = None
        if starting is not None or self._container.supervisor._has_tasks(agent):
            return self._stop(agent, starting)
        self._container.supervisor._forget(aid)
        if not self._has(agent, "on_stop"):
            return None
        # Without a task for a plain function: there may be many agents.
        rest = self._call(agent, "on_stop")
        return None if rest is None else self._await(rest, agent, "on_stop")

    async def _stop(self, agent: Agent, starting: asyncio.Task[None] | None) -> None:
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting], timeout=CLOSE_GRACE)
        await self._container.supervisor._stop_tasks(agent)
        if self._has(agent, "on_stop"):
            await self._run(agent, "on_stop")

    async def _run(self, agent: Agent, name: str) -> None:
        rest = self._call(agent, name)
        if rest is not None:
            await self._await(rest, agent, name)

    def _call(self, agent: Agent, name: str) -> Awaitable[Any] | None:
        """Call a hook, and return what it returns if that is to be awaited."""
        token = CURRENT_HOOK.set(asyncio.current_task())
        caller = CURRENT_PRINCIPAL.set(None)  # it may be whose call has made, or ends, the agent
        try:
            result = getattr(agent, name)()
            return result if inspect.isawaitable(result) else None
        except BaseException as error:  # of any kind: no agent is to keep another one from its turn
            self._log(agent, name, error)
            return None
        finally:
            CURRENT_HOOK.reset(token)
            CURRENT_PRINCIPAL.reset(caller)

    async def _await(self, rest: Awaitable[Any], agent: Agent, name: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        token = CURRENT_HOOK.set(task)
        caller = CURRENT_PRINCIPAL.set(None)
        try:
            await rest
        except asyncio.CancelledError as error:
            if task.cancelling():
                raise
            self._log(agent, name, error)
        except BaseException as error:
            self._log(agent, name, error)
        finally:
            CURRENT_HOOK.reset(token)
            CURRENT_PRINCIPAL.reset(caller)

    def _has(self, agent: Agent, name: str) -> bool:
        """Return whether the class of *agent* has a hook of its own."""
        return getattr(type(agent), name) is not getattr(self._base, name)

    def _log(self, agent: Agent, name: str, error: BaseException) -> None:
        logger.error("%s of %s failed", name, agent, exc_info=error)
        pass_on_interrupt(error)
