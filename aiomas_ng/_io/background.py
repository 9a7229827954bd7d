"""The background tasks of one agent: each is started by its function, kept, and ended with the agent.

A task has a context (:mod:`contextvars`) of its own, empty at each start: it does not belong to the call or
hook in which it happened to be started, nor to that one's deadline.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._core.restarts import History, Policy, RestartTask
from aiomas_ng._io.connection import CLOSE_GRACE
from aiomas_ng.exceptions import TaskEndedError

if TYPE_CHECKING:
    from aiomas_ng._io.supervisor import Supervisor
    from aiomas_ng.agent import Agent

__all__ = ["AgentTasks", "BackgroundTask", "TaskState", "check_policy"]

logger = logging.getLogger("aiomas_ng.supervision")

#: The background task that the running code is part of: who ends it from within must not wait for itself.
CURRENT_BACKGROUND: contextvars.ContextVar[BackgroundTask | None] = contextvars.ContextVar(
    "CURRENT_BACKGROUND", default=None
)

#: The task that the running code ends agents for, if it runs in another one, as a shutdown does.
ENDER: contextvars.ContextVar[asyncio.Task[Any] | None] = contextvars.ContextVar("ENDER", default=None)

#: What ends the event loop, whatever a policy says.
INTERRUPTS: Final = (SystemExit, KeyboardInterrupt)


class TaskState(enum.StrEnum):
    """What a :class:`BackgroundTask` does."""

    RUNNING = "running"
    PAUSING = "pausing"  #: It has failed, and will be started again.
    ENDED = "ended"  #: It has returned.
    FAILED = "failed"  #: It has failed, and is not started again.
    CANCELLED = "cancelled"  #: Its agent is gone, or somebody has called :meth:`BackgroundTask.cancel`.


def check_policy(policy: Any, what: str) -> Policy:
    """Return *policy* if it is one.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(policy, Policy):
        hint = ": give an instance of it" if isinstance(policy, type) else ""
        raise TypeError(f"{what} must be a policy of aiomas_ng.supervision but is {policy!r}{hint}")
    return policy


class BackgroundTask:
    """A task that an agent owns, made by :meth:`AgentTasks.start`."""

    __slots__ = (
        "_call",
        "_history",
        "_is_cancelled",
        "_over",
        "_owner",
        "_run",
        "_timer",
        "failures",
        "last_error",
        "name",
        "on_failure",
        "restarts",
        "state",
    )

    def __init__(
        self, owner: AgentTasks, name: str, call: Callable[[], Awaitable[Any]], on_failure: Policy
    ) -> None:
        self.name = name  #: Its name, among those of its agent.
        self.on_failure = on_failure  #: Its policy.
        self.state = TaskState.RUNNING  #: What it does.
        self.restarts = 0  #: How often it was started again.
        self.failures = 0  #: How often it has failed.
        self.last_error: BaseException | None = None  #: What it has failed with most recently.
        self._owner = owner
        self._call = call
        self._history = History(f"{owner.agent.addr}/{name}")
        self._run: asyncio.Task[Any] | None = None
        self._timer: Any = None  # the end of a pause
        self._is_cancelled = False
        self._over: asyncio.Future[None] = owner.loop.create_future()

    def __repr__(self) -> str:
        return f"<BackgroundTask {self.name!r} of {self._owner.agent.addr}, {self.state}>"

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good."""
        return self._over.done()

    def cancel(self) -> None:
        """Let it end, now or, while it pauses, without a further start; that is no failure."""
        if self._over.done():
            return
        self._is_cancelled = True
        if self._timer is not None:
            self._timer.cancel()
            self._finish(TaskState.CANCELLED)
        elif self._run is not None:
            self._run.cancel()

    async def wait(self) -> None:
        """Wait until it has ended for good; cancelling that is safe."""
        await asyncio.shield(self._over)

    def _begin(self, awaitable: Awaitable[Any] | None = None) -> None:
        """Start it; a call that fails at once is a failure like any other."""
        self._timer = None
        self.state = TaskState.RUNNING
        if awaitable is None:
            try:
                awaitable = self._call()
                _check_awaitable(awaitable, self.name)
            except Exception as error:
                self._failed(error)
                return
        context = contextvars.Context()
        context.run(CURRENT_BACKGROUND.set, self)
        coroutine = awaitable if inspect.iscoroutine(awaitable) else _wait_for(awaitable)
        name = f"{self._owner.agent.addr}/{self.name}"
        self._run = self._owner.loop.create_task(coroutine, name=name, context=context)
        self._run.add_done_callback(self._ended, context=context)

    def _pause(self, seconds: float) -> None:
        """Start it again after a pause."""
        self.state = TaskState.PAUSING
        self._timer = self._owner.supervisor._call_in(seconds, self._begin_again)

    def _begin_again(self) -> None:
        self.restarts += 1
        self._history.restarted(self._owner.supervisor._now())
        self._begin()

    def _ended(self, run: asyncio.Task[Any]) -> None:
        self._run = None
        error: BaseException | None
        if run.cancelled():
            error = asyncio.CancelledError("it was cancelled, but not by its agent")
        else:
            error = run.exception()
        if isinstance(error, INTERRUPTS):  # which the loop ends with
            self.last_error = error
            self._finish(TaskState.FAILED)
        elif self._is_cancelled and (error is None or run.cancelled()):
            self._finish(TaskState.CANCELLED)
        elif error is not None:
            self._failed(error)
        elif isinstance(self.on_failure, RestartTask) and self.on_failure.always:
            self._failed(TaskEndedError("it has returned, but is to run always"))
        else:
            self._finish(TaskState.ENDED)

    def _failed(self, error: BaseException) -> None:
        self.failures += 1
        self.last_error = error
        if self._is_cancelled:
            logger.error("task %r of %s failed while it was ended", self.name, self._owner, exc_info=error)
            self._finish(TaskState.FAILED)
        else:
            self._owner.supervisor._task_failed(self, error)

    def _finish(self, state: TaskState) -> None:
        self.state = state
        self._timer = None
        self._owner._discard(self)
        if not self._over.done() and not self._owner.loop.is_closed():
            self._over.set_result(None)


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _check_awaitable(result: Any, name: str) -> None:
    if not inspect.isawaitable(result):
        raise TypeError(
            f"a background task must be a coroutine function, but {name} has returned {result!r:.100}"
        )


class AgentTasks:
    """The background tasks of an agent, as its attribute ``tasks``; iterates over those that have not ended.

    Args:
        agent: The agent.
        supervisor: Decides what follows a failure.
    """

    def __init__(self, agent: Agent, supervisor: Supervisor) -> None:
        self.agent = agent
        self.supervisor = supervisor
        self.loop = agent.container.loop
        self.is_closed = False  #: Whether the agent is gone, or about to.
        self._tasks: dict[str, BackgroundTask] = {}

    def __str__(self) -> str:
        return f"{type(self.agent).__name__}({self.agent.addr!r})"

    def __repr__(self) -> str:
        return f"<AgentTasks of {self}: {list(self._tasks)}>"

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[BackgroundTask]:
        return iter(list(self._tasks.values()))

    def __getitem__(self, name: str) -> BackgroundTask:
        return self._tasks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def start(
        self,
        func: Callable[..., Awaitable[Any]] | Awaitable[Any],
        *args: Any,
        name: str | None = None,
        on_failure: Policy | None = None,
    ) -> BackgroundTask:
        """Call a coroutine function and run what it returns as a task, until it ends or the agent does.

        Args:
            func: A coroutine function. A coroutine will do as well, unless the policy restarts the task.
            *args: Its arguments, the same ones at each start.
            name: The task's name, by default that of the function, with a number if there is one already.
            on_failure: What follows a failure, by default the agent's ``on_failure``.

        Raises:
            TypeError: *func* is no coroutine function, or it cannot be restarted; *on_failure* is no policy.
            ValueError: A task of that name has not ended yet.
            RuntimeError: The agent was stopped.
            Exception: What *func* raises when it is called.
        """
        policy = check_policy(self._get_default() if on_failure is None else on_failure, "on_failure")
        is_coroutine = not callable(func)
        coroutine: Any = func
        try:
            if is_coroutine and isinstance(policy, RestartTask):
                raise TypeError(
                    f"a task that is to be restarted needs the function and its arguments, "
                    f"start(func, *args), not what the function has returned: {func!r:.100}"
                )
            if is_coroutine and args:
                raise TypeError("a coroutine takes no arguments")
            self._check_open()
            if name is None:
                name = self._find_name(getattr(func, "__name__", type(func).__name__))
            elif name in self._tasks:
                raise ValueError(f"{self} has a task {name!r} already")
            if not is_coroutine:
                coroutine = func(*args)  # type: ignore[operator]  # then it is callable
            _check_awaitable(coroutine, name)
        except BaseException:
            if inspect.iscoroutine(coroutine):
                coroutine.close()  # nobody is going to await it
            raise
        task = BackgroundTask(self, name, lambda: func(*args), policy)  # type: ignore[operator]  # see above
        self._tasks[name] = task
        task._begin(coroutine)
        return task

    def _start_declared(self, name: str, on_failure: Policy | None) -> None:
        """Start a task that the agent's class declares."""
        policy = check_policy(self._get_default() if on_failure is None else on_failure, "on_failure")
        if not self.is_closed and name not in self._tasks:
            self._tasks[name] = task = BackgroundTask(self, name, getattr(self.agent, name), policy)
            task._begin()

    async def _close(self) -> None:
        """End all tasks, and wait for them, but not for the one that this is called in, and for none longer
        than 5 seconds."""
        self.is_closed = True
        current = ENDER.get() or asyncio.current_task()
        waiting = []
        for task in self:
            if task._run is current is not None:
                continue
            if CURRENT_BACKGROUND.get() is task and current is not None:
                # Something that the task has begun, and maybe waits for: it has to come first.
                current.add_done_callback(lambda _, task=task: task.cancel())  # type: ignore[misc]  # mypy knows no defaults of lambdas
                continue
            if task._run is not None:
                waiting.append(task._run)
            task.cancel()
        if waiting:
            _, pending = await asyncio.wait(waiting, timeout=CLOSE_GRACE)
            for run in pending:
                logger.warning(
                    "task %s does not end %s s after it was cancelled", run.get_name(), CLOSE_GRACE
                )
                self.supervisor._keep(run)

    def _get_default(self) -> Policy:
        return check_policy(self.agent.on_failure, f"{type(self.agent).__name__}.on_failure")

    def _check_open(self) -> None:
        if self.is_closed:
            raise RuntimeError(f"{self} was stopped, so it cannot start tasks any more")

    def _find_name(self, name: str) -> str:
        found, number = name, 2
        while found in self._tasks:
            found, number = f"{name}-{number}", number + 1
        return found

    def _discard(self, task: BackgroundTask) -> None:
        if self._tasks.get(task.name) is task:
            del self._tasks[task.name]
