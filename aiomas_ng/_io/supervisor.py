"""What a container does about failures: it restarts tasks and agents, or stops.

An agent is restarted so::

    running ── take out ──▶ stopping ──▶ pausing ──▶ making ──▶ running
                 │                          ▲           │
                 │ calls fail from now on   └───────────┤ the constructor has failed
                 ▼                                      ▼
              its own calls are cancelled            given up, if the restarts are used up

Only while it pauses and makes the agent is it safe to interrupt this: ``on_stop`` runs to its end.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.restarts import Failure, History, Log, RestartAgent, RestartTask, Step, decide
from aiomas_ng._io.background import AgentTasks, BackgroundTask
from aiomas_ng._io.supervised import get_declared, make_again
from aiomas_ng.exceptions import AgentIdError

if TYPE_CHECKING:
    from aiomas_ng.agent import Agent, Container

__all__ = ["Supervisor"]

logger = logging.getLogger("aiomas_ng.supervision")

#: Failures that a supervisor remembers.
MAX_FAILURES: Final = 50


@dataclass(eq=False, slots=True)
class _Absence:
    """An agent that is being restarted.

    Attributes:
        old: The agent that was stopped.
        new: The one that has taken its id; ``None`` before.
        is_interruptible: Whether the task may be cancelled.
        is_given_up: Whether the agent is to stay away.
    """

    old: Agent
    new: Agent | None = None
    task: asyncio.Task[None] | None = None
    is_interruptible: bool = False
    is_given_up: bool = False

    def give_up(self) -> None:
        """Let the agent stay away."""
        self.is_given_up = True
        if self.is_interruptible and self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()


#: The agent that is being made anew by the running code: the first one of its class gets its id.
_MAKING: contextvars.ContextVar[_Absence | None] = contextvars.ContextVar("_MAKING", default=None)


class Supervisor:
    """Owns the background tasks of all agents of a container, and decides what follows a failure.

    Args:
        container: The container.
    """

    def __init__(self, container: Container) -> None:
        #: The most recent failures.
        self.failures: collections.deque[Failure] = collections.deque(maxlen=MAX_FAILURES)
        #: The failure that the container was shut down for, if it was.
        self.stopped_by: Failure | None = None
        self._container = container
        self._callbacks: list[Callable[[Failure], object]] = []
        self._tables: dict[str, AgentTasks] = {}  # by agent id; made when an agent first needs one
        self._histories: dict[str, History] = {}  # of agents that were restarted, by id
        self._absences: dict[str, _Absence] = {}
        self._kept: set[asyncio.Task[Any]] = set()  # the shutdown, and tasks that do not end
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Supervisor of {self._container}: {len(self.tasks)} tasks, restarting {self.restarting}>"

    @property
    def tasks(self) -> list[BackgroundTask]:
        """The background tasks of all agents that have not ended."""
        return [task for table in self._tables.values() for task in table]

    @property
    def restarting(self) -> list[str]:
        """The ids of the agents that are just being restarted."""
        return list(self._absences)

    def on_failure(self, callback: Callable[[Failure], object]) -> None:
        """Call *callback*, a plain function, with each :class:`Failure`, when it is known what is done about
        it. What it raises is logged.

        Raises:
            TypeError: *callback* cannot be called, or is a coroutine function.
        """
        given: Any = callback
        if not callable(given) or inspect.iscoroutinefunction(given):
            raise TypeError(f"the callback must be a plain function but is {callback!r}")
        self._callbacks.append(callback)

    # For agents and their tasks

    def _get_tasks(self, agent: Agent) -> AgentTasks:
        """Return the tasks of *agent*; closed ones if it is not in the container any more."""
        aid = _get_aid(agent)
        table = self._tables.get(aid)
        if table is None or table.agent is not agent:
            is_here = self._container.agents.dict.get(aid) is agent
            table = AgentTasks(agent, self)
            table.is_closed = self._is_closed or not is_here
            if is_here:
                self._tables[aid] = table
        return table

    def _begin(self, agent: Agent) -> None:
        """The agent's ``on_ready`` has ended: start the tasks that its class declares."""
        for name, policy in get_declared(type(agent)).items():
            try:
                self._get_tasks(agent)._start_declared(name, policy)
            except Exception:
                logger.exception("task %r of %s cannot be started", name, agent.addr)

    def _has_tasks(self, agent: Agent) -> bool:
        """Return whether the agent has ever had tasks."""
        table = self._tables.get(_get_aid(agent))
        return table is not None and table.agent is agent

    def _is_making(self, agent: Agent) -> bool:
        """Return whether *agent* is just being made in place of one that was stopped."""
        absence = _MAKING.get()
        return absence is not None and absence.new is agent

    async def _stop_tasks(self, agent: Agent) -> None:
        """End the agent's tasks; it cannot start any from now on."""
        aid = _get_aid(agent)
        table = self._tables.get(aid)
        if table is not None and table.agent is agent:
            try:
                await table._close()
            finally:
                if self._tables.get(aid) is table:
                    del self._tables[aid]
        self._forget(aid)

    def _forget(self, aid: str) -> None:
        """Forget what has befallen an agent that does not come back."""
        if aid not in self._absences:
            self._histories.pop(aid, None)

    def _now(self) -> float:
        """Return the time of the container's clock."""
        return self._container.clock.time()

    def _call_in(self, seconds: float, func: Callable[[], object]) -> Any:
        """Call *func* after a pause by the container's clock, in simulated time where that is it; return what
        can be cancelled."""
        if seconds <= 0:
            return self._container.loop.call_soon(func)
        try:
            return self._container.clock.call_in(seconds, func)
        except NotImplementedError:  # a clock of the user's, without timers
            return self._container.loop.call_later(seconds, func)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it ends."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def _task_failed(self, task: BackgroundTask, error: BaseException) -> None:
        """Do what follows the failure of *task*."""
        agent = task._owner.agent
        aid = _get_aid(agent)
        if task._owner.is_closed or self._is_closed:
            logger.error("task %r of %s failed while it was ended", task.name, task._owner, exc_info=error)
            task._finish(task.state.FAILED)
            return
        step = decide(task.on_failure, task._history, self._get_history(aid, agent), self._now())
        failure = self._report(agent, task.name, error, step)
        if isinstance(step.policy, RestartTask):
            task._pause(step.pause)
            return
        task._finish(task.state.FAILED)
        if isinstance(step.policy, RestartAgent):
            self._restart(aid, agent, step.policy, step.pause)
        elif not isinstance(step.policy, Log):
            self._stop_container(failure)

    def _get_history(self, aid: str, agent: Agent) -> History:
        history = self._histories.get(aid)
        if history is None:
            history = self._histories[aid] = History(agent.addr)
        return history

    def _report(self, agent: Agent, task: str | None, error: BaseException, step: Step) -> Failure:
        failure = Failure(
            agent.addr,
            type(agent).__name__,
            task,
            error,
            step.policy,
            step.pause,
            step.used_up,
            self._now(),
        )
        self.failures.append(failure)
        logger.error("%s", failure, exc_info=error)
        for callback in tuple(self._callbacks):
            try:
                callback(failure)
            except Exception:
                logger.exception("a callback for failures raised an error")
        return failure

    # Agents that are restarted

    def _get_absent(self, aid: str) -> Agent | None:
        """Return the agent that was *aid* before, if it is just being restarted."""
        absence = self._absences.get(aid)
        return absence.old if absence is not None else None

    def _claim(self, agent: Agent, aid: str | None) -> str | None:
        """Return the id of the agent that *agent* is made in place of; ``None`` if it is a new one.

        Args:
            agent: An agent that is being constructed.
            aid: The id that it is to have, if that was said.
        """
        absence = _MAKING.get()
        if absence is None or absence.new is not None or type(agent) is not type(absence.old):
            return None
        old_aid = _get_aid(absence.old)
        is_meant = self._absences.get(old_aid) is absence and aid in (None, old_aid)
        if not is_meant:
            return None
        absence.new = agent
        if "access" in vars(absence.old):  # who may reach it was said for this agent, and not for its class
            agent.access = vars(absence.old)["access"]
        self._container.agents.restarting.discard(old_aid)
        self._container.site.bring_back(old_aid, agent)
        return old_aid

    async def _give_up(self, agent: Agent | str, *, wait: bool) -> bool:
        """Let an agent that is just being restarted stay away; return whether it is.

        Args:
            agent: The agent that was stopped, or its id.
            wait: Whether to wait for its end.
        """
        absence = self._absences.get(agent if isinstance(agent, str) else _get_aid(agent))
        if absence is None or not (isinstance(agent, str) or absence.old is agent):
            return False
        absence.give_up()
        if wait and absence.task is not None and absence.task is not asyncio.current_task():
            await asyncio.wait([absence.task])
        return True

    async def _close(self, *, wait: bool) -> None:
        """The container is shut down: restart nothing from now on.

        Args:
            wait: Whether to wait for agents that are just being stopped.
        """
        self._is_closed = True
        for absence in self._absences.values():
            absence.give_up()
        for aid in self.restarting:
            await self._give_up(aid, wait=wait)

    def _abort(self) -> list[asyncio.Task[None]]:
        """Cancel what stops agents that were to be restarted, and return it."""
        tasks = [absence.task for absence in self._absences.values() if absence.task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    def _restart(self, aid: str, agent: Agent, policy: RestartAgent, pause: float) -> None:
        self._get_tasks(agent).is_closed = True  # further failures change nothing
        self._absences[aid] = absence = _Absence(agent)
        self._take_out(aid)
        coroutine = self._run_restart(aid, absence, policy, pause)
        # In a context of its own: it has nothing to do with the call in which somebody started the task.
        absence.task = self._container.loop.create_task(
            coroutine, name=f"restart of {agent.addr}", context=contextvars.Context()
        )

    def _take_out(self, aid: str) -> None:
        """Let nobody reach the agent *aid* until there is a new one; give up what it works on."""
        container = self._container
        container.agents.restarting.add(aid)
        del container.agents.dict[aid]
        container.agents.router.unset_sub_router(aid)
        container.site.put_away(aid)
        for client in list(container._connections):
            for job in list(client.channel._running):
                job.cancel_below(f"agents/{aid}/")

    async def _run_restart(self, aid: str, absence: _Absence, policy: RestartAgent, pause: float) -> None:
        old, container = absence.old, self._container
        is_back = False
        try:
            await container._stop_agent(aid, old)
            absence.is_interruptible = True
            while not absence.is_given_up:
                await self._sleep(pause)
                try:
                    agent = await self._make(aid, absence, policy)
                except Exception as error:
                    step = decide(policy, None, self._get_history(aid, old), self._now())
                    failure = self._report(old, None, error, step)
                    if not isinstance(step.policy, RestartAgent):
                        if not isinstance(step.policy, Log):
                            self._stop_container(failure)
                        return
                    policy, pause = step.policy, step.pause
                else:
                    is_back = True
                    self._get_history(aid, old).restarted(self._now())
                    logger.info("restarted %s(%r)", type(agent).__name__, agent.addr)
                    return
        except asyncio.CancelledError:
            if not absence.is_given_up:
                raise
        finally:
            del self._absences[aid]
            if is_back:
                container.site.refresh(aid)
            else:
                container.agents.restarting.discard(aid)
                container.site.remove_agent(aid)
                self._histories.pop(aid, None)

    async def _make(self, aid: str, absence: _Absence, policy: RestartAgent) -> Agent:
        """Make the agent anew; if that fails, nothing of it is left."""
        absence.new = None
        has_run = False  # whether the loop may have run on_ready of the new agent
        token = _MAKING.set(absence)
        try:
            made: Any
            made = policy.factory(self._container) if policy.factory is not None else make_again(absence.old)
            if inspect.isawaitable(made):
                has_run = True
                made = await made
            if absence.new is None or made is not absence.new:
                raise AgentIdError(
                    f"the factory must make one {type(absence.old).__name__}, to be agent {aid!r} again, and "
                    f"return it, but has returned {made!r:.100}"
                )
            agent: Agent = absence.new
            return agent
        except BaseException:
            half_made = absence.new
            if half_made is not None:
                self._take_out(aid)
                stopping = self._container._stop_agent(aid, half_made) if has_run else None
                await (stopping or self._stop_tasks(half_made))
            raise
        finally:
            _MAKING.reset(token)

    async def _sleep(self, seconds: float) -> None:
        pause = self._container.loop.create_future()
        timer = self._call_in(seconds, functools.partial(_wake, pause))
        try:
            await pause
        finally:
            timer.cancel()

    # The end

    def _stop_container(self, failure: Failure) -> None:
        """Shut the container down, in a task of its own: it is to end the one that has failed as well."""
        if self.stopped_by is not None or self._is_closed:
            return
        self.stopped_by = failure
        coroutine = self._container.shutdown(as_coro=True)
        task = self._container.loop.create_task(
            coroutine, name=f"shutdown of {self._container}", context=contextvars.Context()
        )
        self._keep(task)


def _wake(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


def _get_aid(agent: Agent) -> str:
    return agent.addr.rpartition("/")[2]
