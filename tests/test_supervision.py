"""Supervision: tasks that agents own, what follows their failures, and agents that are made anew."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from conftest import Transport
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from aiomas_ng import Agent, Container, ExternalClock, background, get_queue, rpc, state
from aiomas_ng._io import background as background_module
from aiomas_ng.clocks import BaseClock
from aiomas_ng.error import ResponseWrappingError
from aiomas_ng.exceptions import (
    AgentIdError,
    AgentNotFoundError,
    RemoteCancelledError,
    RemoteRestartingError,
    TaskEndedError,
)
from aiomas_ng.supervision import (
    BackgroundTask,
    Failure,
    Log,
    RestartAgent,
    RestartTask,
    StopContainer,
    TaskState,
)

NOW: dict[str, Any] = {"first_pause": 0, "jitter": 0}
"""Restarts that follow at once."""


class Broken(Exception):
    """What tasks of the tests fail with."""


class Worker(Agent):
    """An agent whose tasks do as the test says; each instance is noted on the class."""

    made: list[Worker]
    log: list[str]

    def __init__(self, container: Container, *values: Any, aid: str | None = None, **named: Any) -> None:
        super().__init__(container, aid=aid)
        self.values = values
        self.named = named
        self.gate = asyncio.Event()
        self.level = len(self.made)
        self.made.append(self)

    @state
    def number(self) -> int:
        return self.level

    @number.setter
    async def set_number(self, value: int) -> None:
        await self.gate.wait()

    @rpc.expose
    def get_level(self) -> int:
        return self.level

    @rpc.expose
    async def wait(self) -> str:
        await self.gate.wait()
        return "done"

    @rpc.expose
    async def stream(self) -> AsyncIterator[int]:
        yield self.level
        await self.gate.wait()

    def on_stop(self) -> None:
        self.log.append(f"on_stop {self.level}")

    async def work(self, outcome: Any = None) -> None:
        """Wait for the gate, then raise *outcome*, if that is an error."""
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.log.append(f"cancelled {self.level}")
            raise
        if outcome is not None:
            raise outcome


@pytest.fixture(autouse=True)
def fresh_worker() -> None:
    """Forget the agents of the test before."""
    Worker.made = []
    Worker.log = []


@contextlib.asynccontextmanager
async def new_container(addr: Any = None, **kwargs: Any) -> AsyncIterator[Container]:
    """A container, shut down at the end."""
    container = await Container.create(addr or get_queue(str(id(kwargs))), as_coro=True, **kwargs)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


@contextlib.asynccontextmanager
async def simulated() -> AsyncIterator[tuple[Container, ExternalClock]]:
    """A container in simulated time."""
    clock = ExternalClock("2026-01-01")
    async with new_container(clock=clock) as container:
        yield container, clock


def noted(container: Container) -> list[Failure]:
    """Return a list that the failures in *container* come to."""
    failures: list[Failure] = []
    container.supervisor.on_failure(failures.append)
    return failures


async def fail(error: BaseException | None = None) -> None:
    """Fail at the first step."""
    raise error if error is not None else Broken("on purpose")


# -- Tasks that run and end ------------------------------------------------------------------------


async def test_a_task_runs_until_it_ends() -> None:
    """A task that returns has ended, which is no failure, and leaves the table."""
    async with new_container() as container:
        worker, failures = Worker(container), noted(container)
        task = worker.tasks.start(worker.work)
        assert [task] == list(worker.tasks) == container.supervisor.tasks
        assert worker.tasks["work"] is task
        assert (task.name, task.state, task.is_over) == ("work", TaskState.RUNNING, False)
        worker.gate.set()
        await task.wait()
        assert (task.state, task.failures, task.last_error) == (TaskState.ENDED, 0, None)
        assert (len(worker.tasks), failures, "work" in worker.tasks) == (0, [], False)


async def test_tasks_are_started_before_the_loop_runs_on() -> None:
    """A constructor may start tasks already, with arguments."""

    class Eager(Worker):
        def __init__(self, container: Container) -> None:
            super().__init__(container)
            self.tasks.start(self.note, 1, name="one")

        async def note(self, value: int) -> None:
            self.log.append(str(value))

    async with new_container() as container:
        await Eager(container).tasks["one"].wait()
        assert Worker.log == ["1"]


async def test_names_of_tasks() -> None:
    """A task has its function's name, with a number where that is taken; a given name must be free."""
    async with new_container() as container:
        worker = Worker(container)
        names = [worker.tasks.start(worker.work).name for _ in range(3)]
        assert names == ["work", "work-2", "work-3"]
        assert worker.tasks.start(functools.partial(worker.work)).name == "partial"
        with pytest.raises(ValueError, match="has a task 'work' already"):
            worker.tasks.start(worker.work, name="work")


async def test_what_cannot_be_a_task_is_refused() -> None:
    """Neither a plain function, nor an async generator, nor a policy that is none gets far."""

    async def stream() -> AsyncIterator[int]:
        yield 1

    wrong: Any
    async with new_container() as container:
        worker = Worker(container)
        for wrong in (lambda: 7, stream, print):
            with pytest.raises(TypeError, match="must be a coroutine function"):
                worker.tasks.start(wrong)
        with pytest.raises(TypeError, match="must be a coroutine function"):
            worker.tasks.start(7)  # type: ignore[arg-type]  # which is the point
        for wrong in ("restart", RestartTask, None.__class__):
            with pytest.raises(TypeError, match=r"on_failure must be a policy of aiomas_ng\.supervision"):
                worker.tasks.start(worker.work, on_failure=wrong)
        with pytest.raises(TypeError, match="takes 1 positional argument"):
            worker.tasks.start(worker.wait, 7)
        with pytest.raises(TypeError, match="must be a plain function"):
            container.supervisor.on_failure(fail)  # type: ignore[arg-type]  # which is the point
        assert not list(worker.tasks)


async def test_a_coroutine_cannot_be_restarted() -> None:
    """A coroutine is taken where the policy never starts it again; else the error says what to give."""
    async with new_container() as container:
        worker = Worker(container)
        with pytest.raises(TypeError, match=r"needs the function and its arguments, start\(func, \*args\)"):
            worker.tasks.start(worker.work(), on_failure=RestartTask())
        worker.gate.set()
        await worker.tasks.start(worker.work(), on_failure=StopContainer()).wait()


async def test_a_task_has_a_context_of_its_own() -> None:
    """A task sees nothing of the context it was started in, such as a call's, not even after a restart."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen = []

    async def look() -> None:
        seen.append(variable.get())
        variable.set("changed")
        raise Broken

    async with new_container() as container:
        variable.set("mine")
        policy = RestartTask(max_restarts=1, then=Log(), **NOW)
        await Worker(container).tasks.start(look, on_failure=policy).wait()
    assert seen == ["none", "none"]


async def test_cancel_ends_a_task() -> None:
    """Who cancels a task by its handle ends it for good; that is no failure."""
    async with new_container() as container:
        worker, failures = Worker(container), noted(container)
        task = worker.tasks.start(worker.work, on_failure=RestartTask(**NOW))
        await asyncio.sleep(0)
        task.cancel()
        task.cancel()
        await task.wait()
        task.cancel()
        assert (task.state, failures, Worker.log) == (TaskState.CANCELLED, [], ["cancelled 0"])


async def test_cancelling_who_waits_does_not_cancel_the_task() -> None:
    """Waiting for a task is only waiting."""
    async with new_container() as container:
        worker = Worker(container)
        task = worker.tasks.start(worker.work)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task.wait(), 0.01)
        assert task.state is TaskState.RUNNING


# -- Policies --------------------------------------------------------------------------------------


async def test_log_says_all_once(caplog: pytest.LogCaptureFixture) -> None:
    """By default a failure is logged once, with traceback, agent, task, policy and what is done; the task
    has ended."""
    async with new_container() as container:
        worker, failures = Worker(container), noted(container)
        task = worker.tasks.start(fail, name="poll")
        await task.wait()
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.name == "aiomas_ng.supervision"
        assert record.getMessage() == (
            f"task 'poll' of Worker({worker.addr!r}) failed: Broken: on purpose; "
            f"policy Log: the task is not restarted"
        )
        assert "async def fail" not in caplog.text
        assert "raise error if error" in caplog.text
        assert (task.state, task.failures, task.restarts) == (TaskState.FAILED, 1, 0)
        (failure,) = failures
        assert list(container.supervisor.failures) == [failure]
        assert (failure.agent, failure.task, failure.error) == (worker.addr, "poll", task.last_error)


async def test_one_failure_harms_no_other_task() -> None:
    """One for one: other tasks of the agent go on."""
    async with new_container() as container:
        worker = Worker(container)
        other = worker.tasks.start(worker.work)
        await worker.tasks.start(fail).wait()
        assert other.state is TaskState.RUNNING


async def test_restarts_follow_the_clock_of_the_container() -> None:
    """In simulated time a task pauses for simulated seconds, growing ones, and counts its restarts."""
    async with simulated() as (container, clock):
        worker = Worker(container)
        policy = RestartTask(max_restarts=3, first_pause=10, growth=2, jitter=0, then=Log())
        task = worker.tasks.start(fail, on_failure=policy)
        for restarts, due in enumerate((10, 30, 70)):
            await wait_until(lambda: task.state is TaskState.PAUSING)
            assert (task.restarts, clock.next_due()) == (restarts, due)
            clock.set_time(due - 1)
            assert task.state is TaskState.PAUSING
            clock.set_time(due)
            await wait_until(lambda restarts=restarts: task.failures == restarts + 2)
        await task.wait()
        assert (task.state, task.restarts, task.failures) == (TaskState.FAILED, 3, 4)
        assert clock.next_due() is None


async def test_the_same_simulation_has_the_same_pauses() -> None:
    """With jitter, too, what happens in simulated time is the same in each run."""
    runs = []
    for _ in range(2):
        clock = ExternalClock("2026-01-01")
        async with new_container(get_queue("same"), clock=clock) as container:
            worker = Worker(container)
            tasks = [worker.tasks.start(fail, on_failure=RestartTask(jitter=0.5)) for _ in range(3)]
            await wait_until(lambda tasks=tasks: all(task.failures for task in tasks))
            runs.append([failure.pause for failure in container.supervisor.failures])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


async def test_restarts_call_with_the_same_arguments() -> None:
    """A task is started again with its arguments, and ends when it does not fail any more."""
    calls = []

    async def flaky(value: str) -> None:
        calls.append(value)
        if len(calls) < 3:
            raise Broken

    async with new_container() as container:
        task = Worker(container).tasks.start(flaky, "x", on_failure=RestartTask(**NOW))
        await task.wait()
    assert calls == ["x"] * 3
    assert (task.state, task.restarts, task.failures) == (TaskState.ENDED, 2, 2)


async def test_a_call_that_fails_at_a_restart_is_a_failure() -> None:
    """If the function itself raises, or returns no coroutine, when it is called again, that counts."""
    answers: list[Callable[[], Any]] = [fail, lambda: 1 / 0, lambda: 7]
    async with new_container() as container:
        failures = noted(container)
        policy = RestartTask(max_restarts=2, then=Log(), **NOW)
        task = Worker(container).tasks.start(lambda: answers.pop(0)(), on_failure=policy)
        await task.wait()
    assert [type(failure.error) for failure in failures] == [Broken, ZeroDivisionError, TypeError]
    assert task.state is TaskState.FAILED


async def test_always_restarts_what_has_returned() -> None:
    """With always, returning counts as a failure, and is bounded like any other."""

    async def nothing() -> None:
        """Return at once."""

    async with new_container() as container:
        failures = noted(container)
        policy = RestartTask(max_restarts=2, always=True, then=Log(), **NOW)
        task = Worker(container).tasks.start(nothing, on_failure=policy)
        await task.wait()
    assert [type(failure.error) for failure in failures] == [TaskEndedError] * 3
    assert isinstance(task.last_error, TaskEndedError)


async def test_a_cancellation_from_elsewhere_is_a_failure() -> None:
    """A task that is cancelled by nobody of us, itself or a future that it waits for, has failed."""

    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async def wait_for_a_cancelled_one() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with new_container() as container:
        failures = noted(container)
        worker = Worker(container)
        for func in (cancel_itself, wait_for_a_cancelled_one):
            task = worker.tasks.start(func, on_failure=RestartTask(max_restarts=1, then=Log(), **NOW))
            await task.wait()
            assert (task.state, task.failures) == (TaskState.FAILED, 2)
    assert {type(failure.error) for failure in failures} == {asyncio.CancelledError}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_interrupts_end_the_loop(error: BaseException) -> None:
    """SystemExit and KeyboardInterrupt in a task end the program; no policy restarts it."""
    tasks: list[BackgroundTask] = []

    async def main() -> None:
        container = await Container.create(get_queue("interrupted"), as_coro=True)
        try:
            tasks.append(Worker(container).tasks.start(fail, error, on_failure=RestartTask(**NOW)))
            await asyncio.sleep(60)
        finally:
            await container.shutdown(as_coro=True)

    with pytest.raises(type(error)):
        asyncio.run(main())
    (task,) = tasks
    assert (task.state, task.last_error, task.restarts) == (TaskState.FAILED, error, 0)


async def test_stop_container_ends_all() -> None:
    """The container is shut down, with the on_stop of all agents and without waiting for itself."""
    async with new_container(("127.0.0.1", 0)) as container, new_container() as other:
        worker, bystander = Worker(container), Worker(container)
        running = bystander.tasks.start(bystander.work)
        proxy = await other.connect(worker.addr)
        worker.tasks.start(fail, on_failure=StopContainer())
        await running.wait()
        await container.shutdown(as_coro=True)  # waits for the end
        assert Worker.log == ["on_stop 0", "cancelled 1", "on_stop 1"]
        stopped_by = container.supervisor.stopped_by
        assert stopped_by is not None
        assert isinstance(stopped_by.error, Broken)
        assert str(stopped_by).endswith("policy StopContainer: the container is shut down")
        with pytest.raises(ConnectionError):
            await proxy.get_level()


async def test_many_tasks_stop_the_container_once() -> None:
    """Tasks that fail together shut the container down together."""
    async with new_container() as container:
        worker = Worker(container)
        tasks = [worker.tasks.start(fail, on_failure=StopContainer()) for _ in range(3)]
        for task in tasks:
            await task.wait()
        await container.shutdown(as_coro=True)
        assert Worker.log == ["on_stop 0"]


async def test_a_callback_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An error in a callback is logged; other callbacks, and the policy, are not concerned."""
    async with new_container() as container:
        container.supervisor.on_failure(lambda failure: 1 / 0)
        failures = noted(container)
        policy = RestartTask(max_restarts=1, then=Log(), **NOW)
        await Worker(container).tasks.start(fail, on_failure=policy).wait()
    assert len(failures) == 2
    assert caplog.text.count("a callback for failures raised an error") == 2


async def test_failures_are_bounded() -> None:
    """Of many failures the latest are remembered."""
    async with new_container() as container:
        policy = RestartTask(max_restarts=99, then=Log(), **NOW)
        task = Worker(container).tasks.start(fail, on_failure=policy)
        await task.wait()
        assert task.failures == 100
        assert len(container.supervisor.failures) == 50
        assert "used up: RestartTask, 99 times" in str(container.supervisor.failures[-1])


# -- Tasks that a class declares -------------------------------------------------------------------


class Declaring(Worker):
    """Has tasks of its own."""

    on_failure = RestartTask(max_restarts=1, then=Log(), **NOW)

    async def on_ready(self) -> None:
        self.log.append("on_ready")
        await self.gate.wait()

    @background
    async def first(self) -> None:
        self.log.append("first")
        raise Broken

    @background(on_failure=Log())
    async def second(self) -> None:
        self.log.append("second")
        await self.work()


async def test_declared_tasks_begin_after_on_ready() -> None:
    """They are started when on_ready has ended, in the order of their definition, with the policy of the
    agent unless they have one of their own."""
    async with new_container() as container:
        agent, failures = Declaring(container), noted(container)
        await wait_until(lambda: Worker.log)
        assert (Worker.log, list(agent.tasks)) == (["on_ready"], [])
        agent.gate.set()
        await wait_until(lambda: len(failures) == 2)
        assert Worker.log == ["on_ready", "first", "second", "first"]
        assert {failure.task for failure in failures} == {"first"}


async def test_declared_tasks_of_an_agent_without_on_ready() -> None:
    """An agent needs no on_ready for its tasks; a subclass decides by what it overrides."""

    class Base(Worker):
        @background
        async def poll(self) -> None:
            self.log.append("poll")

        @background
        async def other(self) -> None:
            self.log.append("other")

    class Sub(Base):
        async def poll(self) -> None:
            raise AssertionError("it is not declared any more")

        @background
        async def other(self) -> None:
            self.log.append("other of Sub")

    async with new_container() as container:
        Sub(container)
        await wait_until(lambda: Worker.log)
        assert Worker.log == ["other of Sub"]


async def test_an_agent_that_is_gone_before_it_is_ready_starts_nothing() -> None:
    """Neither an agent that is removed at once, nor one whose on_ready was cancelled, gets its tasks."""
    async with new_container() as container:
        await container.remove_agent(Declaring(container))
        late = Declaring(container)
        await wait_until(lambda: Worker.log[-1] == "on_ready")
        await container.remove_agent(late)
        assert Worker.log == ["on_stop 0", "on_ready", "on_stop 1"]


def test_wrong_declarations_are_refused_at_once() -> None:
    """What is no coroutine function or no policy is a TypeError when the class is made."""
    wrong: Any
    with pytest.raises(TypeError, match="must be a coroutine function"):

        @background
        def plain(self: Any) -> None: ...

    for wrong in (RestartTask, "log"):
        with pytest.raises(TypeError, match="must be a policy"):
            background(on_failure=wrong)
    with pytest.raises(TypeError, match=r"Wrong\.on_failure must be a policy"):

        class Wrong(Declaring):
            on_failure: Any = "restart"


async def test_names_that_agents_use_for_something_else() -> None:
    """An agent that has used the names ``tasks`` and ``on_failure`` for something else goes on to work."""

    class Old(Worker):
        tasks: Any = ()

        def on_failure(self) -> str:
            return "mine"

    async with new_container() as container:
        agent = Old(container)
        assert (agent.tasks, agent.on_failure()) == ((), "mine")
        await container.remove_agent(agent)
        assert Worker.log == ["on_stop 0"]


# -- The end of an agent ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["remove", "shutdown"])
async def test_tasks_end_before_on_stop(how: str) -> None:
    """When an agent goes, its tasks have ended before its on_stop runs; none can be started then."""

    class Careful(Worker):
        async def slow(self) -> None:
            try:
                await self.gate.wait()
            finally:
                await asyncio.sleep(0)
                self.log.append("cleaned up")

        def on_stop(self) -> None:
            super().on_stop()
            with pytest.raises(RuntimeError, match="was stopped"):
                self.tasks.start(self.work)
            self.log.append("refused")

    async with new_container() as container:
        agent, failures = Careful(container), noted(container)
        task = agent.tasks.start(agent.slow, on_failure=RestartTask(**NOW))
        await asyncio.sleep(0)
        if how == "remove":
            await container.remove_agent(agent)
        else:
            await container.shutdown(as_coro=True)
        assert Worker.log == ["cleaned up", "on_stop 0", "refused"]
        assert (task.state, failures, container.supervisor.tasks) == (TaskState.CANCELLED, [], [])
        with pytest.raises(RuntimeError, match="was stopped"):
            agent.tasks.start(agent.work)


async def test_a_task_that_fails_while_it_is_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the cleanup of a task is logged, and not followed by a restart."""

    async def clumsy() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise Broken

    async with new_container() as container:
        agent, failures = Worker(container), noted(container)
        task = agent.tasks.start(clumsy, on_failure=RestartTask(**NOW))
        await asyncio.sleep(0)
        await container.remove_agent(agent)
        assert (task.state, failures) == (TaskState.FAILED, [])
    assert "failed while it was ended" in caplog.text


async def test_the_end_during_a_pause() -> None:
    """An agent that goes while a task pauses takes the task along; its timer is gone, too."""
    async with simulated() as (container, clock):
        agent = Worker(container)
        task = agent.tasks.start(fail, on_failure=RestartTask())
        await wait_until(lambda: task.state is TaskState.PAUSING)
        await container.remove_agent(agent)
        await task.wait()
        assert (task.state, clock.next_due()) == (TaskState.CANCELLED, None)


async def test_a_task_that_ignores_its_cancellation(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not end is waited for as long as for handlers, named in the log, and left alone."""
    monkeypatch.setattr(background_module, "CLOSE_GRACE", 0.01)
    gate = asyncio.Event()

    async def stubborn() -> None:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    async with new_container() as container:
        agent = Worker(container)
        task = agent.tasks.start(stubborn)
        await asyncio.sleep(0)
        await container.remove_agent(agent)
        assert f"task {agent.addr}/stubborn does not end 0.01 s after it was cancelled" in caplog.text
        assert (Worker.log, task.is_over) == (["on_stop 0"], False)
        gate.set()
        await task.wait()
        assert task.state is TaskState.CANCELLED


@pytest.mark.parametrize("is_indirect", [False, True])
@pytest.mark.parametrize("how", ["remove", "shutdown"])
async def test_a_task_may_end_its_own_agent(how: str, is_indirect: bool) -> None:
    """A task that removes its agent, or shuts the container down, does not wait for itself, and goes on."""

    class Suicidal(Worker):
        async def end(self) -> None:
            ending = (
                self.container.remove_agent(self)
                if how == "remove"
                else self.container.shutdown(as_coro=True)
            )
            if is_indirect:
                await asyncio.create_task(ending)  # as asyncio.wait_for does in Python 3.11
            else:
                await ending
            self.log.append("went on")

    async with new_container() as container:
        agent = Suicidal(container)
        other = agent.tasks.start(agent.work)
        await asyncio.wait_for(agent.tasks.start(agent.end).wait(), 3)
        await other.wait()
        assert Worker.log[:2] == ["cancelled 0", "on_stop 0"]
        assert is_indirect or Worker.log[2:] == ["went on"]


# -- Agents that are made anew ---------------------------------------------------------------------


async def test_a_restarted_agent_has_the_same_address(transport: Transport) -> None:
    """The agent is stopped and made anew, with the same arguments and id, so that proxies of others, those of
    before and new ones, reach it."""
    async with new_container(transport.address()) as home, new_container(transport.address()) as other:
        old = Worker(home, 1, "two", three=3)
        proxy = await other.connect(old.addr)
        assert await proxy.get_level() == 0
        old.tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: len(Worker.made) == 2 and not home.supervisor.restarting)
        new = Worker.made[1]
        assert Worker.log == ["on_stop 0"]
        assert (new.addr, new.values, new.named) == (old.addr, (1, "two"), {"three": 3})
        assert home.agents.dict == {"0": new}
        assert await proxy.get_level() == 1
        assert await (await other.connect(old.addr)).get_level() == 1
        assert await (await home.connect(old.addr)).get_level() == 1
        assert Worker(home).addr.endswith("/1")  # the numbers go on
        with pytest.raises(RuntimeError, match="was stopped"):
            old.tasks.start(old.work)


@pytest.mark.parametrize("aid", [None, "north"])
async def test_names_stay(aid: str | None) -> None:
    """An agent that was given a name has it again; nobody else can have it, also not meanwhile."""
    async with simulated() as (container, clock):
        old = Worker(container, aid=aid)
        name = aid or "0"
        old.tasks.start(fail, on_failure=RestartAgent(first_pause=10, jitter=0))
        await wait_until(lambda: container.supervisor.restarting == [name])
        with pytest.raises(AgentIdError, match="was given before"):
            Worker(container, aid=name)
        await wait_until(clock.next_due)
        clock.set_time(10)
        await wait_until(lambda: not container.supervisor.restarting)
        assert container.agents.dict[name].addr == old.addr
        with pytest.raises(AgentIdError, match="was given before"):
            Worker(container, aid=name)


async def test_what_comes_meanwhile(transport: Transport) -> None:
    """While the agent is away, running calls have been cancelled, new ones fail with an error of their own,
    connecting works, and requests get 5.03; afterwards all is well."""
    clock = ExternalClock("2026-01-01")
    async with (
        new_container(transport.address(), clock=clock) as home,
        new_container(transport.address()) as other,
    ):
        old = Worker(home)
        bystander = Worker(home)
        proxy = await other.connect(old.addr)
        waiting = [asyncio.ensure_future(proxy.wait()) for _ in range(2)]
        near = asyncio.ensure_future((await home.connect(old.addr)).wait())
        unconcerned = asyncio.ensure_future((await other.connect(bystander.addr)).wait())
        putting = asyncio.ensure_future(other.context.put(old.number.url, 5))
        await wait_until(lambda: home.site.get_agent_site("0")._work)
        old.tasks.start(fail, on_failure=RestartAgent(first_pause=10, jitter=0))
        for call in (*waiting, near):
            with pytest.raises(RemoteCancelledError):
                await call
        with pytest.raises(ResponseWrappingError, match="given up"):
            await putting
        assert home.supervisor.restarting == ["0"]
        assert "0" not in home.agents.dict
        for container in (home, other):
            with pytest.raises(RemoteRestartingError, match="just being restarted"):
                await (await container.connect(old.addr)).get_level()
        with pytest.raises(ResponseWrappingError, match="just being restarted"):
            await other.context.get(old.number.url)
        await wait_until(clock.next_due)
        clock.set_time(10)
        await wait_until(lambda: "0" in home.agents.dict)
        assert await proxy.get_level() == 2
        assert await other.context.get(old.number.url) == 2
        bystander.gate.set()
        assert await unconcerned == "done"


async def test_calls_of_a_batch_are_cancelled_one_by_one(transport: Transport) -> None:
    """Of a batch, the calls to the agent that is restarted are cancelled; the others have their results."""
    async with new_container(transport.address()) as home, new_container(transport.address()) as other:
        old, bystander = Worker(home), Worker(home)
        proxies = [await other.connect(agent.addr) for agent in (old, bystander, old)]
        batch = asyncio.ensure_future(rpc.batch([proxy.wait for proxy in proxies], return_exceptions=True))
        await asyncio.sleep(0)
        await proxies[0].get_level()  # comes after
        old.tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: len(Worker.made) == 3)
        bystander.gate.set()
        first, second, third = await batch
        assert isinstance(first, RemoteCancelledError)
        assert isinstance(third, RemoteCancelledError)
        assert second == "done"


async def test_streams_are_cancelled(transport: Transport) -> None:
    """A stream of an agent that is restarted ends with the error of a cancelled call."""
    async with new_container(transport.address()) as home, new_container(transport.address()) as other:
        old = Worker(home)
        async with contextlib.aclosing(aiter((await other.connect(old.addr)).stream())) as items:
            assert await anext(items) == 0
            old.tasks.start(fail, on_failure=RestartAgent(**NOW))
            with pytest.raises(RemoteCancelledError):
                await anext(items)


async def test_observers_get_the_new_state(transport: Transport) -> None:
    """Who observes a declared state stays registered over a restart and gets the state of the new agent."""
    async with new_container(transport.address()) as home, new_container(transport.address()) as other:
        old = Worker(home)
        async with (
            other.context.observe(old.number.url) as remote,
            home.context.observe(old.number.url) as near,
        ):
            assert [await anext(remote), await anext(near)] == [0, 0]
            old.tasks.start(fail, on_failure=RestartAgent(**NOW))
            assert [await anext(remote), await anext(near)] == [1, 1]
            new = Worker.made[1]
            old.level = 7
            old.number.changed()  # of interest to nobody any more
            new.level = 9
            new.number.changed()
            assert [await anext(remote), await anext(near)] == [9, 9]
            assert await other.context.get(new.number.url) == 9


async def test_the_constructor_may_fail() -> None:
    """A constructor that raises, before or after the agent has its id, counts as a failure of the agent, with
    the next pause; nothing of the half-made agent is left."""
    cancelled = []

    class Fragile(Worker):
        def __init__(self, container: Container, **kwds: Any) -> None:
            if len(self.made) == 1:
                self.made.append(self)
                raise Broken("too early")
            super().__init__(container, **kwds)
            if len(self.made) == 3:
                cancelled.append(self.tasks.start(self.work))
                raise Broken("too late")

    async with new_container() as container:
        failures = noted(container)
        Fragile(container).tasks.start(fail, on_failure=RestartAgent(max_restarts=5, **NOW))
        await wait_until(lambda: len(Worker.made) == 4 and not container.supervisor.restarting)
        assert [str(failure.error) for failure in failures] == ["on purpose", "too early", "too late"]
        assert [failure.task for failure in failures] == ["fail", None, None]
        assert str(failures[1]).startswith("restarting Fragile('local://")
        assert str(failures[1]).endswith("the agent is restarted in 0 s")
        assert container.agents.dict == {"0": Worker.made[3]}
        assert cancelled[0].state is TaskState.CANCELLED
        assert container.supervisor.tasks == []


@pytest.mark.parametrize("last", [Log(), StopContainer()])
async def test_an_agent_that_is_given_up(last: Log | StopContainer) -> None:
    """When the restarts of the agent are used up it stays away, as one that was removed, or the container
    stops; observers learn of it, and the id is not given again."""

    class Hopeless(Worker):
        def __init__(self, container: Container, **kwds: Any) -> None:
            if self.made:
                raise Broken
            super().__init__(container, **kwds)

    async with new_container(("127.0.0.1", 0)) as container, new_container() as other:
        agent, failures = Hopeless(container), noted(container)
        proxy = await other.connect(agent.addr)
        async with other.context.observe(agent.number.url) as states:
            assert await anext(states) == 0
            agent.tasks.start(fail, on_failure=RestartAgent(max_restarts=2, then=last, **NOW))
            if isinstance(last, Log):
                with pytest.raises(ResponseWrappingError, match="removed"):
                    await anext(states)
            await wait_until(lambda: len(failures) == 3 and not container.supervisor.restarting)
        assert failures[-1].policy == last
        if isinstance(last, Log):
            assert str(failures[-1]).partition("policy ")[2].startswith("Log: the agent stays away")
            with pytest.raises(AgentNotFoundError):
                await container.connect(agent.addr)
            with pytest.raises(LookupError, match="not found"):
                await proxy.get_level()
            with pytest.raises(AgentIdError):
                Worker(container, aid="0")
        else:
            await container.shutdown(as_coro=True)
            assert container.supervisor.stopped_by is failures[-1]


async def test_tasks_agents_containers() -> None:
    """A task that fails for ever is restarted, then its agent is, then the container stops; what is used up
    is said."""

    class Doomed(Worker):
        @background(on_failure=RestartTask(max_restarts=2, then=RestartAgent(max_restarts=1, **NOW), **NOW))
        async def poll(self) -> None:
            raise Broken

    async with new_container() as container:
        failures = noted(container)
        Doomed(container)
        await wait_until(lambda: container.supervisor.stopped_by)
        await container.shutdown(as_coro=True)
    policies = [type(failure.policy) for failure in failures]
    again = [RestartTask, RestartTask]
    assert policies == [*again, RestartAgent, *again, StopContainer]
    assert "used up: RestartTask, 2 times within 60.0 s; RestartAgent, 1 times" in str(failures[-1])
    assert Worker.log == ["on_stop 0", "on_stop 1"]


async def test_two_tasks_restart_the_agent_once() -> None:
    """Tasks that fail together, or while the agent is stopped, make one restart."""
    async with new_container() as container:
        agent = Worker(container)
        policy = RestartAgent(**NOW)
        for _ in range(3):
            agent.tasks.start(fail, on_failure=policy)
        await wait_until(lambda: len(Worker.made) == 2 and not container.supervisor.restarting)
        assert (len(Worker.made), Worker.log) == (2, ["on_stop 0"])


async def test_a_factory_makes_the_agent() -> None:
    """Where a constructor is not enough, a factory makes the agent, and may take its time."""

    async def make(container: Container) -> Worker:
        await asyncio.sleep(0)
        worker = Worker(container, "from the factory")
        await asyncio.sleep(0)
        return worker

    async with new_container() as container:
        agent = Worker(container)
        agent.tasks.start(fail, on_failure=RestartAgent(factory=make, **NOW))
        await wait_until(lambda: not container.supervisor.restarting and len(Worker.made) == 2)
        assert Worker.made[1].addr == agent.addr
        assert Worker.made[1].values == ("from the factory",)


@pytest.mark.parametrize("kind", ["other class", "other id", "nothing", "the old one"])
async def test_a_factory_that_makes_something_else(kind: str) -> None:
    """A factory that does not return a new agent of the class in its place has failed."""

    class Other(Worker):
        pass

    async with new_container() as container:
        agent, failures = Worker(container), noted(container)

        def make(container: Container) -> Any:
            if kind == "other class":
                return Other(container)
            if kind == "other id":
                return Worker(container, aid="other")
            return agent if kind == "the old one" else None

        agent.tasks.start(fail, on_failure=RestartAgent(max_restarts=1, factory=make, then=Log(), **NOW))
        await wait_until(lambda: len(failures) == 2)
        assert isinstance(failures[1].error, AgentIdError)
        assert "must make one Worker, to be agent '0' again" in str(failures[1].error)
        assert "0" not in container.agents.dict


async def test_agents_that_a_constructor_makes_are_others() -> None:
    """Only the agent itself gets its id again, not those that its constructor makes before or after."""

    class Parent(Worker):
        def __init__(self, container: Container) -> None:
            Worker(container)
            super().__init__(container)
            Parent.__mro__[1](container)

    async with new_container() as container:
        parent = Parent(container)
        assert parent.addr.endswith("/1")
        parent.tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: len(Worker.made) == 6 and not container.supervisor.restarting)
        assert Worker.made[4].addr == parent.addr
        assert sorted(container.agents.dict) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("how", ["remove", "remove the old one", "shutdown"])
@pytest.mark.parametrize("phase", ["stopping", "pausing", "making"])
async def test_the_end_during_a_restart(how: str, phase: str) -> None:
    """An agent that is removed, or whose container is shut down, while it is restarted, stays away; its
    on_stop runs to the end."""
    stopping, gate = asyncio.Event(), asyncio.Event()

    class Slow(Worker):
        async def on_stop(self) -> None:
            if not stopping.is_set():
                stopping.set()
                if phase == "stopping":
                    await gate.wait()
            await asyncio.sleep(0)
            super().on_stop()

    making = asyncio.Event()

    async def make(container: Container) -> Any:
        worker = Slow(container)
        making.set()
        await asyncio.sleep(60)
        return worker

    async with simulated() as (container, clock):
        agent = Slow(container)
        pause = 10 if phase == "pausing" else 0
        factory = make if phase == "making" else None
        policy = RestartAgent(first_pause=pause, jitter=0, factory=factory)
        agent.tasks.start(fail, on_failure=policy)
        if phase == "stopping":
            await stopping.wait()
        elif phase == "pausing":
            await wait_until(clock.next_due)
        else:
            await making.wait()
        if how == "shutdown":
            ending: Any = container.shutdown(as_coro=True)
        elif phase == "making" and how == "remove the old one":
            return  # it is in place again, under its id
        else:
            ending = container.remove_agent("0" if how == "remove" else agent)
        ending = asyncio.create_task(ending)
        await asyncio.sleep(0)
        gate.set()
        await ending
        assert container.supervisor.restarting == [] or phase == "making"
        assert Worker.log[0] == "on_stop 0"
        assert "0" not in container.agents.dict or how == "shutdown"
        assert clock.next_due() is None


async def test_on_stop_may_end_everything_during_a_restart() -> None:
    """An on_stop that removes its agent or shuts the container down does not wait for itself."""

    class Final(Worker):
        async def on_stop(self) -> None:
            await self.container.remove_agent(self)
            await self.container.shutdown(as_coro=True)
            self.log.append("shut down")

    async with new_container() as container:
        Final(container).tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: Worker.log)
        await wait_until(lambda: not container.supervisor.restarting)
        assert (Worker.log, len(Worker.made)) == (["shut down"], 1)


async def test_an_old_on_ready_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If on_ready of the old agent ignores its cancellation, the new one is ready on its own account."""
    from aiomas_ng._container import hooks

    monkeypatch.setattr(hooks, "CLOSE_GRACE", 0.01)
    gate = asyncio.Event()

    class Stubborn(Worker):
        async def on_ready(self) -> None:
            while len(self.made) == 1 and not gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await gate.wait()
            self.log.append(f"ready {self.level}")

        @background
        async def poll(self) -> None:
            self.log.append(f"poll {self.level}")

    async with new_container() as container:
        Stubborn(container).tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: "poll 1" in Worker.log)
        assert Worker.log == ["on_stop 0", "ready 1", "poll 1"]
        gate.set()
        await wait_until(lambda: "ready 0" in Worker.log)
        assert "poll 0" not in Worker.log


async def test_an_agent_of_a_class_with_its_own_new() -> None:
    """An agent whose class has a base with arguments in its ``__new__`` is made, and made anew, with them."""

    class Base:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            self = super().__new__(cls)
            self.seen = args[1:]  # type: ignore[attr-defined]  # an object of any class
            return self

    class Mixed(Worker, Base):
        seen: tuple[Any, ...]

    async with new_container() as container:
        agent = Mixed(container, 1, 2)
        assert agent.seen == (1, 2)
        agent.tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: len(Worker.made) == 2)
        assert Worker.made[1].seen == (1, 2)  # type: ignore[attr-defined]  # it is a Mixed


async def test_an_agent_that_looks_empty_is_found() -> None:
    """An agent that counts as false, as an empty collection does, can be connected to, and be restarted."""

    class Empty(Worker):
        def __len__(self) -> int:
            return 0

    async with new_container() as container:
        agent = Empty(container)
        agent.tasks.start(fail, on_failure=RestartAgent(**NOW))
        await wait_until(lambda: len(Worker.made) == 2)
        assert await (await container.connect(agent.addr)).get_level() == 1


async def test_a_factory_that_fails_when_the_agent_is_ready_already() -> None:
    """If a factory fails late, its agent is stopped like any other: on_ready, tasks, on_stop."""

    class Late(Worker):
        async def on_ready(self) -> None:
            self.log.append(f"on_ready {self.level}")
            if self.level == 1:
                await self.gate.wait()

    async def make(container: Container) -> Late:
        agent = Late(container)
        if len(Worker.made) == 2:
            await wait_until(lambda: "on_ready 1" in Worker.log)
        if len(Worker.made) == 2:
            raise Broken
        return agent

    async with new_container() as container:
        Late(container).tasks.start(fail, on_failure=RestartAgent(factory=make, **NOW))
        await wait_until(lambda: "on_ready 2" in Worker.log)
        assert Worker.log == ["on_ready 0", "on_stop 0", "on_ready 1", "on_stop 1", "on_ready 2"]
        assert list(container.agents.dict.values()) == [Worker.made[2]]


async def test_an_error_that_cannot_be_printed(caplog: pytest.LogCaptureFixture) -> None:
    """An error whose text fails itself is logged by its type, and handled like any other."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    async with new_container() as container:
        policy = RestartTask(max_restarts=1, then=Log(), **NOW)
        await Worker(container).tasks.start(fail, Unspeakable(), on_failure=policy).wait()
    assert caplog.text.count("failed: Unspeakable; policy") == 2


async def test_a_clock_without_timers() -> None:
    """With a clock of the user's that has no timers, pauses are real time."""

    class Plain(BaseClock):
        def time(self) -> float:
            return 5.0

    async with new_container(clock=Plain()) as container:
        policy = RestartTask(max_restarts=1, first_pause=0.001, then=Log())
        task = Worker(container).tasks.start(fail, on_failure=policy)
        await task.wait()
        assert task.failures == 2


async def test_only_the_agent_itself_is_given_up() -> None:
    """Removing an agent of another container, which happens to have the same id, does not end a restart."""
    async with simulated() as (container, clock), new_container() as other:
        old, stranger = Worker(container), Worker(other)
        old.tasks.start(fail, on_failure=RestartAgent(first_pause=10, jitter=0))
        await wait_until(clock.next_due)
        with pytest.raises(AgentNotFoundError):
            await container.remove_agent(stranger)
        assert container.supervisor.restarting == ["0"]
        await container.remove_agent(old)
        assert container.supervisor.restarting == []
        with pytest.raises(AgentNotFoundError):
            await container.remove_agent("0")


def test_signatures_of_agents() -> None:
    """Tools see the arguments of the constructor."""
    assert str(inspect.signature(Agent)) == "(container: 'Container', *, aid: 'str | None' = None) -> 'None'"
    assert list(inspect.signature(Worker).parameters) == ["container", "values", "aid", "named"]


# -- Whatever happens ------------------------------------------------------------------------------

POLICIES = [
    Log(),
    RestartTask(max_restarts=1, first_pause=1, then=RestartAgent(max_restarts=1, first_pause=3, then=Log())),
    RestartTask(max_restarts=2, then=Log(), **NOW),
    RestartTask(max_restarts=1, first_pause=2, always=True, then=RestartAgent(**NOW)),
    RestartAgent(max_restarts=2, first_pause=0),
    RestartAgent(max_restarts=2, first_pause=5, then=Log()),
    StopContainer(),
]

ACTIONS = st.one_of(
    st.tuples(st.just("make"), st.booleans()),
    st.tuples(st.just("start"), st.integers(0, 4), st.sampled_from(POLICIES), st.sampled_from(
        ["fail", "later", "return", "forever"])),
    st.tuples(st.just("remove"), st.integers(0, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("time"), st.integers(1, 8)),
    st.tuples(st.just("turns"), st.integers(1, 5)),
    st.tuples(st.just("shutdown")),
)  # fmt: skip


class Chaotic(Worker):
    """Notes its own life."""

    def __init__(self, container: Container, is_fragile: bool) -> None:
        if is_fragile and len(self.made) % 3 == 2:
            raise Broken("in the constructor")
        super().__init__(container, is_fragile)

    async def on_stop(self) -> None:
        assert not self.tasks
        await asyncio.sleep(0)
        self.log.append(f"on_stop {self.level}")


async def act(container: Container, clock: ExternalClock, action: Any) -> asyncio.Task[Any] | None:
    """Do one of the ACTIONS; return what it has begun."""
    ending: Any = None
    match action:
        case ("make", is_fragile):
            if not container.supervisor._is_closed:
                with contextlib.suppress(Broken):
                    Chaotic(container, is_fragile)
        case ("start", index, policy, how):
            agents = list(container.agents.dict.values())
            if agents:
                agent: Any = agents[index % len(agents)]
                func, args = {
                    "fail": (fail, ()),
                    "later": (clock_fail, (clock,)),
                    "return": (asyncio.sleep, (0,)),
                    "forever": (agent.work, ()),
                }[how]
                with contextlib.suppress(RuntimeError):  # it is just being stopped
                    agent.tasks.start(func, *args, on_failure=policy)
        case ("remove", index):
            aids = [*container.agents.dict, *container.supervisor.restarting]
            if aids:
                ending = container.remove_agent(aids[index % len(aids)])
        case ("cancel", index):
            tasks = container.supervisor.tasks
            if tasks:
                tasks[index % len(tasks)].cancel()
        case ("time", seconds):
            clock.set_time(clock.time() + seconds)
        case ("turns", count):
            for _ in range(count):
                await asyncio.sleep(0)
        case ("shutdown",):
            ending = container.shutdown(as_coro=True)
    return asyncio.create_task(ending) if ending is not None else None


async def clock_fail(clock: ExternalClock) -> None:
    """Fail in two simulated seconds."""
    await clock.sleep(2)
    raise Broken


@given(actions=st.lists(ACTIONS, max_size=25))
async def test_whatever_happens_all_comes_to_an_end(actions: list[Any]) -> None:
    """Whatever fails, ends and is cancelled, in whichever order and at the same time: nothing hangs, no timer
    and no task is left, and each agent is stopped once, after its tasks."""
    Worker.made, Worker.log = [], []
    clock = ExternalClock("2026-01-01")
    container = await Container.create(get_queue(f"chaos-{id(clock)}"), clock=clock, as_coro=True)
    Chaotic(container, False)
    pending = [await act(container, clock, action) for action in actions]
    await container.shutdown(as_coro=True)
    for task in filter(None, pending):
        with contextlib.suppress(AgentNotFoundError):  # it was removed twice
            await task
    stopped = [line for line in Worker.log if line.startswith("on_stop")]
    assert sorted(stopped) == sorted(f"on_stop {agent.level}" for agent in Worker.made)
    assert (container.supervisor.tasks, container.supervisor.restarting) == ([], [])
    assert clock.next_due() is None
