"""Containers in processes of their own.

:func:`start` runs a container with a :class:`Manager` in this process, until the manager is told to stop.
:func:`start_processes` starts such containers in new processes and ends them reliably::

    async with await subproc.start_processes([("127.0.0.1", 0)] * 3, clock=clock) as processes:
        manager = await container.connect(processes.managers[0])
        agent, addr = await manager.spawn("my_agents:Battery", capacity=10)

The way of :func:`start_processes`: the settings go to the child through a line of its own, pickled, and the
child reports the URL of its manager, or why it failed (``aiomas_ng._io.child``). The line stays open: when
it ends, because :meth:`ProcessSet.stop` hung up or because the parent died in whatever way, the child shuts
down. Standard input is empty; standard output and standard error are those of the parent.

The reference is what programs rely on in ``aiomas.subproc``. We differ in what a manager may create
(:meth:`Manager.spawn`). :func:`start_processes` needs POSIX.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aiomas_ng import access, clocks, rpc, util
from aiomas_ng._container.signals import SignalWatch
from aiomas_ng._core.access import Rule, check_rule
from aiomas_ng._io.child import Line
from aiomas_ng._io.process_set import ProcessSet, start_processes
from aiomas_ng._io.slot import ProcessFailure
from aiomas_ng.access import same_host
from aiomas_ng.agent import Agent, Container
from aiomas_ng.exceptions import ProcessError, SpawnError
from aiomas_ng.supervision import Failure, StopContainer

__all__ = ["Manager", "ProcessFailure", "ProcessSet", "start", "start_processes"]

logger = logging.getLogger(__name__)

#: In what a manager is allowed, the name for every class of agents.
ANY_AGENT: Final = "*"


async def start(
    addr: Any,
    *,
    allow: Iterable[str] | Mapping[str, Rule | None] | None = None,
    setup: Callable[[Container], Any] | None = None,
    manager_access: Rule | None = None,
    signals: Iterable[int] | None = None,
    **container_kwargs: Any,
) -> None:
    """Run a container with a :class:`Manager` at *addr* until :meth:`Manager.stop` is called, or the process
    is told to end by a signal; then shut it down in order.

    Args:
        addr: Where the container listens.
        allow: What the manager may create, see :class:`Manager`.
        setup: Called with the container when the manager is there; may be a coroutine function.
        manager_access: Who may reach the manager, a rule of :mod:`aiomas_ng.access`; by default everybody who
            may reach the container.
        signals: Signals that end it, as of :meth:`aiomas_ng.agent.Container.serve_forever`; a second one ends
            it at once. By default SIGTERM, in the main thread and if nobody else handles it.
        **container_kwargs: Passed on to :meth:`aiomas_ng.agent.Container.create`; ``access`` is among them.

    Raises:
        ProcessError: The container was shut down because of a failure
            (:class:`~aiomas_ng.supervision.StopContainer`).
        RuntimeError, ValueError: *signals* cannot be watched, see
            :meth:`aiomas_ng.agent.Container.serve_forever`.

    Cancelling it is safe; the container shuts down.
    """
    container_kwargs["manager_access"] = manager_access
    ending = _Ending()
    watch = SignalWatch(
        asyncio.get_running_loop(), _default_signals() if signals is None else signals, ending.begin
    )
    with watch:
        await _serve(addr, allow, setup, container_kwargs, ending.set_manager)


def _default_signals() -> tuple[int, ...]:
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    return (signal.SIGTERM,) if is_ours else ()


class _Ending:
    """Ends a container with a manager, or the task that is about to make it."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._manager: Manager | None = None
        self._has_begun = False

    def set_manager(self, manager: Manager) -> None:
        """The container is there."""
        self._manager = manager
        if self._has_begun:
            manager.stop()

    def begin(self, number: signal.Signals | None = None) -> None:
        """End the container in order; the second time, at once."""
        if self._has_begun:
            self.hurry()
        elif self._manager is not None:
            self._manager.stop()
        elif number is None and self._task is not None:
            self._task.cancel()
        self._has_begun = True

    def hurry(self) -> None:
        """End the container at once."""
        if self._manager is not None:
            self._manager.stop()
            self._manager.container._ending.hurry()


async def _serve(
    addr: Any,
    allow: Iterable[str] | Mapping[str, Rule | None] | None,
    setup: Callable[[Container], Any] | None,
    container_kwargs: dict[str, Any],
    ready: Callable[[Manager], None],
) -> None:
    manager_access = container_kwargs.pop("manager_access", None)
    check_rule(manager_access)
    container = await Container.create(addr, **{**container_kwargs, "as_coro": True})
    try:
        manager = Manager(container, allow=allow)
        if manager_access is not None:
            manager.access = manager_access

        def failed(failure: Failure) -> None:
            if isinstance(failure.policy, StopContainer):
                manager.stop()

        container.supervisor.on_failure(failed)
        if setup is not None:
            result = setup(container)
            if inspect.isawaitable(result):
                await result
            for agent in list(container.agents.dict.values()):
                await container._wait_ready(agent)
        ready(manager)
        await manager.stop_received
    finally:
        await container.shutdown(as_coro=True)
    failure = container.supervisor.stopped_by
    if failure is not None:
        raise ProcessError(f"the container was shut down: {failure}") from failure.error


class Manager(Agent):
    """An agent that creates other agents in its container, sets its clock and ends it.

    Args:
        container: The container.
        allow: What may be created, as the names given to :meth:`spawn`, and nothing else. It may be anything
            that makes an agent, not only a class of agents. ``'package.module:*'`` stands for what is defined
            in a module (what it imports is not); ``'*'``, for every class of agents and its factories, in any
            module that can be imported: a peer can so have modules imported, and run with them what they do
            when imported. A mapping says for each name who may have it created: a rule of
            :mod:`aiomas_ng.access`, or ``None`` for everybody. A manager that is created is not bound by all
            this itself. By default it is ``{'*': same_host()}``: from other hosts nothing can be created.

    Raises:
        TypeError: *allow* is a single string, or a mapping to something else than rules.

    Who may reach the manager at all, also to end it, is narrowed by its ``access``, as with any agent.
    """

    def __init__(
        self, container: Container, *, allow: Iterable[str] | Mapping[str, Rule | None] | None = None
    ) -> None:
        if isinstance(allow, str):
            raise TypeError(f"allow must be a collection of names but is the string {allow!r}")
        if allow is None:
            allow = {ANY_AGENT: same_host()}
        allowed = dict(allow) if isinstance(allow, Mapping) else dict.fromkeys(allow)
        for rule in allowed.values():
            check_rule(rule)
        super().__init__(container)
        #: Done when :meth:`stop` was called.
        self.stop_received: asyncio.Future[bool] = container.loop.create_future()
        self.__allow = allowed

    @rpc.expose
    async def spawn(self, qualname: str, *args: Any, **kwargs: Any) -> tuple[Any, str]:
        """Create an agent, wait until it is ready, and return it (a proxy, for a remote caller) and its
        address. Exposed.

        Args:
            qualname: ``'module:Class'`` or ``'module:Class.factory'``, a class method or static method, which
                may be a coroutine function. It is called with the container and the other arguments.
            *args: Arguments of the class or factory.
            **kwargs: Arguments of the class or factory.

        Raises:
            SpawnError: The manager's owner has not allowed it, or not to who calls; or what it made is no
                agent.
            ValueError: *qualname* is malformed.
            ImportError, AttributeError: It does not exist.
        """
        factory = self.__find_factory(qualname)
        if "allow" in kwargs and _makes_managers(factory):
            raise SpawnError("what a manager may create is not for those to say who can call another one")
        agent = factory(self.container, *args, **kwargs)
        if inspect.isawaitable(agent):
            agent = await agent
        if not isinstance(agent, Agent):
            raise SpawnError(f"{qualname!r} made no agent but {agent!r:.100}")
        await self.container._wait_ready(agent)
        logger.debug("spawned %s", agent)
        return agent, agent.addr

    def __find_factory(self, qualname: Any) -> Any:
        if not isinstance(qualname, str) or qualname.count(":") != 1:
            raise ValueError(
                f"malformed name {qualname!r}: expected 'module:Class' or 'module:Class.factory'"
            )
        # Decided by the name and by who calls, so that what is not allowed does not even import its module.
        module = qualname.partition(":")[0]
        matching = [name for name in (qualname, f"{module}:*", ANY_AGENT) if name in self.__allow]
        names = [name for name in matching if self.__is_allowed(name)]
        if not names:
            if matching:
                access.note_denial(f"to have {qualname} created")
            whom = " for who has called it" if matching else ""
            raise SpawnError(f"{qualname!r} is not among what this manager may create{whom}")
        factory = util.obj_from_str(qualname)
        if qualname in names:
            return factory
        if names[0] != ANY_AGENT and _is_defined_in_module(qualname):
            return factory
        if ANY_AGENT not in names:
            raise SpawnError(f"{qualname!r} is not defined in its module; it has to be allowed by name")
        is_special = qualname.rpartition(".")[2].startswith("__")  # __init_subclass__ for example
        if is_special or not _is_agent_factory(qualname, factory):
            raise SpawnError(
                f"{qualname!r} is no class of agents and no factory of one; "
                f"this manager creates such a thing only if it is allowed by name"
            )
        return factory

    def __is_allowed(self, name: str) -> bool:
        rule = self.__allow[name]
        return rule is None or access.is_allowed(rule)

    @rpc.expose
    def set_time(self, time: float) -> None:
        """Set the container's clock, an :class:`~aiomas_ng.clocks.ExternalClock`, to *time*.  Exposed."""
        clock = self.container.clock
        if not isinstance(clock, clocks.ExternalClock):
            raise TypeError(f"the time of a {type(clock).__name__} cannot be set; use an ExternalClock")
        clock.set_time(time)

    @rpc.expose
    def stop(self) -> None:
        """End the container and, with :func:`start`, its process.  Exposed; safe to be called twice."""
        if not self.stop_received.done():
            self.stop_received.set_result(True)


def _is_agent_factory(qualname: str, factory: Any) -> bool:
    """Return whether *factory* is a class of agents, or a method of one that is called without an
    instance."""
    if isinstance(factory, type):
        return issubclass(factory, Agent)
    module, _, name = qualname.partition(":")
    parent, _, attribute = name.rpartition(".")
    if not parent:
        return False
    cls = util.obj_from_str(f"{module}:{parent}")
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        return False
    return any(isinstance(vars(base).get(attribute), classmethod | staticmethod) for base in cls.__mro__)


def _is_defined_in_module(qualname: str) -> bool:
    """Return whether *qualname* leads to something of the module's own: a module also has what it imports,
    and through that everything else."""
    module, _, name = qualname.partition(":")
    first, *rest = name.split(".")
    is_own = getattr(util.obj_from_str(f"{module}:{first}"), "__module__", None) == module
    return is_own and not any(part.startswith("__") for part in rest)


def _makes_managers(factory: Any) -> bool:
    cls = getattr(factory, "__self__", factory)  # of a class method: its class
    return isinstance(cls, type) and issubclass(cls, Manager)


# The child's side


def _run_child(line: Line) -> None:
    """Run the container that the parent describes; see the module's docstring."""
    settings = line.read()
    if settings is None:
        sys.exit(1)  # the parent has died or given up, so there is nobody to tell
    try:
        asyncio.run(_run_container(settings, line))
    except Exception as error:
        if line.was_used:
            if isinstance(error, ProcessError):
                sys.exit(str(error))  # the log has its traceback
            raise
        text = "".join(traceback.format_exception_only(error)).strip()
        line.report(error=text, traceback=traceback.format_exc())
        sys.exit(1)


async def _run_container(settings: bytes, line: Line) -> None:
    loop = asyncio.get_running_loop()
    ending = _Ending()

    def ready(manager: Manager) -> None:
        ending.set_manager(manager)
        line.report(manager=manager.addr)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.begin)
    watching = threading.Thread(
        target=line.watch_parent, args=(loop, ending.begin, ending.hurry), daemon=True
    )
    watching.start()
    addr, allow, setup, container_kwargs = pickle.loads(settings)
    with contextlib.suppress(asyncio.CancelledError):
        await _serve(addr, allow, setup, container_kwargs, ready)
