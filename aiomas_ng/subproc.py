"""Containers in processes of their own.

:func:`start` runs a container with a :class:`Manager` in this process, until the manager is told to stop.
:func:`start_processes` starts such containers in new processes and ends them reliably::

    async with await subproc.start_processes([("127.0.0.1", 0)] * 3, clock=clock) as processes:
        manager = await container.connect(processes.managers[0])
        agent, addr = await manager.spawn("my_agents:Battery", capacity=10)

The way of :func:`start_processes`: the settings go to the child through its standard input, pickled; the
child reports the URL of its manager through its standard output, once it can be connected to. The standard
input stays open: when it ends, because :meth:`ProcessSet.stop` closed it or because the parent died in
whatever way, the child shuts down, and if that takes too long, ends at once.

The reference is what programs rely on in ``aiomas.subproc``. We differ in what a manager may create
(:meth:`Manager.spawn`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import IO, Any, Final

from aiomas_ng import clocks, rpc, util
from aiomas_ng.agent import Agent, Container
from aiomas_ng.exceptions import ProcessError, SpawnError

__all__ = ["Manager", "ProcessSet", "start", "start_processes"]

logger = logging.getLogger(__name__)

#: Seconds until a child has to be ready, and seconds it is given to end before it is killed.
START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 5.0


async def start(addr: Any, *, allow: Iterable[str] | None = None, **container_kwargs: Any) -> None:
    """Run a container with a :class:`Manager` at *addr* until :meth:`Manager.stop` is called.

    Args:
        addr: Where the container listens.
        allow: What the manager may create besides agent classes, see :meth:`Manager.spawn`.
        **container_kwargs: Passed on to :meth:`aiomas_ng.agent.Container.create`.
    """
    await _serve(addr, allow, container_kwargs)


async def _serve(
    addr: Any,
    allow: Iterable[str] | None,
    container_kwargs: dict[str, Any],
    report: Any = None,
    stop: Any = None,
) -> None:
    container = await Container.create(addr, **{**container_kwargs, "as_coro": True})
    try:
        manager = Manager(container, allow=allow)
        if stop is not None:
            stop.append(manager.stop)
        if report is not None:
            report(manager.addr)
        await manager.stop_received
    except KeyboardInterrupt:
        logger.info("interrupted")
    finally:
        await container.shutdown(as_coro=True)


class Manager(Agent):
    """An agent that creates other agents in its container, sets its clock and ends it.

    Args:
        container: The container.
        allow: Names, as given to :meth:`spawn`, that may be created although they are no agent classes;
            ``'package.module:*'`` allows all of a module. If it is given, agent classes have to be named in
            it as well.
    """

    def __init__(self, container: Container, *, allow: Iterable[str] | None = None) -> None:
        super().__init__(container)
        #: Done when :meth:`stop` was called.
        self.stop_received: asyncio.Future[bool] = container.loop.create_future()
        self.__allow = None if allow is None else frozenset(allow)

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
            SpawnError: It is neither a class of agents nor a factory of one, and not allowed by the manager's
                owner; or what it made is no agent.
            ValueError: *qualname* is malformed.
            ImportError, AttributeError: It does not exist.
        """
        self.__check_allowed(qualname)
        factory = util.obj_from_str(qualname)
        if self.__allow is None and not _is_agent_factory(qualname, factory):
            raise SpawnError(
                f"{qualname!r} is no class of agents and no factory of one, and this manager allows nothing else"
            )
        agent = factory(self.container, *args, **kwargs)
        if inspect.isawaitable(agent):
            agent = await agent
        if not isinstance(agent, Agent):
            raise SpawnError(f"{qualname!r} made no agent but {agent!r:.100}")
        await self.container._wait_ready(agent)
        logger.debug("spawned %s", agent)
        return agent, agent.addr

    def __check_allowed(self, qualname: Any) -> None:
        if not isinstance(qualname, str) or qualname.count(":") != 1:
            raise ValueError(
                f"malformed name {qualname!r}: expected 'module:Class' or 'module:Class.factory'"
            )
        # Decided by the name alone, so that a name that is not allowed does not even import its module.
        module = qualname.partition(":")[0]
        if self.__allow is not None and not {qualname, f"{module}:*"} & self.__allow:
            raise SpawnError(f"{qualname!r} is not among what this manager may create")

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


# The parent's side


class ProcessSet:
    """Container processes that were started together; see :func:`start_processes`.

    Attributes:
        managers: The address of each container's :class:`Manager`, in the order of the addresses given.
    """

    def __init__(self, processes: Sequence[asyncio.subprocess.Process], managers: Sequence[str]) -> None:
        self._processes = list(processes)
        self.managers = list(managers)

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes]

    async def wait(self) -> list[int]:
        """Wait until all processes have ended; return their exit codes (negative: the signal that killed
        them)."""
        return [await process.wait() for process in self._processes]

    async def stop(self, timeout: float = STOP_TIMEOUT) -> list[int]:
        """End all processes, orderly where that works and otherwise by force, and return their exit codes.
        Safe to be called twice.

        Args:
            timeout: Seconds that they are given to shut down, and again after SIGTERM, before they are
                killed.
        """
        try:
            for process in self._processes:
                if process.stdin is not None:
                    process.stdin.close()
            await self._wait_for_end(timeout)
            for process in self._processes:
                if process.returncode is None:
                    logger.warning("container process %s does not end; terminating it", process.pid)
                    process.terminate()
            await self._wait_for_end(timeout)
        finally:
            for process in self._processes:
                if process.returncode is None:
                    process.kill()
        codes = await self.wait()
        for process in self._processes:
            process._transport.close()  # type: ignore[attr-defined]  # closes the pipes at once, on every version
        return codes

    async def _wait_for_end(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), timeout)

    async def __aenter__(self) -> ProcessSet:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def start_processes(
    addrs: Iterable[Any],
    *,
    allow: Iterable[str] | None = None,
    timeout: float = START_TIMEOUT,
    **container_kwargs: Any,
) -> ProcessSet:
    """Start one process for each address, with a container and its :class:`Manager`; all can be connected to
    on return.

    No process is left behind: neither when one of them fails to start, nor when this is cancelled, nor when
        this process dies, be it by SIGKILL.

    Args:
        addrs: Where the containers listen.
        allow: What the managers may create, see :class:`Manager`.
        timeout: Seconds until all have to be ready.
        **container_kwargs: Passed on to :meth:`aiomas_ng.agent.Container.create` in the children, pickled.

    Raises:
        ProcessError: A process died before it was ready, or was not ready in time; says with what code, its
            output is on standard error.
        TypeError: An argument cannot be pickled.
    """
    try:
        settings = [
            pickle.dumps((list(sys.path), addr, allow and list(allow), container_kwargs)) for addr in addrs
        ]
    except Exception as error:
        raise TypeError(f"the arguments for a container process cannot be pickled: {error}") from error
    processes = ProcessSet([], [])
    try:
        async with asyncio.timeout(timeout):
            for setting in settings:
                processes._processes.append(await _start_process(setting))
            for process in processes._processes:
                processes.managers.append(await _await_report(process))
    except TimeoutError as error:
        await processes.stop(timeout=0.1)
        raise ProcessError(f"the container processes were not ready within {timeout} s") from error
    except BaseException:
        await processes.stop(timeout=0.1)
        raise
    return processes


async def _start_process(setting: bytes) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # -W, -X dev and the like, as multiprocessing does
        "-c",
        "from aiomas_ng.subproc import _run_child; _run_child()",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdin is not None
    process.stdin.write(struct.pack("!Q", len(setting)) + setting)
    return process


async def _await_report(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        code = await process.wait()
        raise ProcessError(
            f"container process {process.pid} ended with code {code} before it was ready; see its standard error"
        )
    return str(json.loads(line)["manager"])


# The child's side


def _run_child() -> None:
    """Run the container that the parent describes on standard input; see the module's docstring."""
    # What agents print must not get into the report, so the pipe is moved out of their way.
    report_pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    (size,) = struct.unpack("!Q", settings.read(8))
    path, addr, allow, container_kwargs = pickle.loads(settings.read(size))
    sys.path[:] = path

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop: list[Any] = []

        def report(manager_addr: str) -> None:
            with report_pipe:
                report_pipe.write(json.dumps({"manager": manager_addr}) + "\n")

        task = asyncio.ensure_future(_serve(addr, allow, container_kwargs, report, stop))
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, lambda: stop[0]() if stop else task.cancel())
        threading.Thread(target=_watch_parent, args=(settings, loop, stop, task), daemon=True).start()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())


def _watch_parent(
    pipe: IO[bytes], loop: asyncio.AbstractEventLoop, stop: list[Any], task: asyncio.Task[None]
) -> None:
    """Wait in a thread, which works even while the loop is busy, until the parent closes the pipe or dies;
    then end this process."""
    pipe.read()
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends already
        loop.call_soon_threadsafe(lambda: stop[0]() if stop else task.cancel())
    threading.Event().wait(STOP_TIMEOUT)
    os._exit(1)
