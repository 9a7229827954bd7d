"""What every test runs in: its own event loop in debug mode, and a check that it left nothing behind.

* ``async def`` tests need no marker.  Each runs in a fresh loop and may take :data:`ASYNC_TIMEOUT` seconds.
  Fixtures are never ``async``; a test enters asynchronous context managers itself.  Under ``@given`` each
  example has a loop of its own; a synchronous test runs coroutines with the fixture ``arun``.
* A test fails if it leaves a task, a socket, a pipe or a process behind, or if asyncio logged an error (such
  as an exception that nobody retrieved).  A test that expects asyncio to log one empties ``asyncio_errors``.
* ``@pytest.mark.needs("numpy")`` deselects a test where that package is not installed.
* ``AIOMAS_NG_TEST_LOOP=uvloop`` in the environment runs everything on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.util
import inspect
import logging
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psutil
import pytest

T = TypeVar("T")

ASYNC_TIMEOUT = 30.0
"""How long one asynchronous test may take, in seconds."""

SETTLE_CYCLES = 5
"""Cycles of the loop granted after a test: asyncio frees the socket of a closed transport one cycle later."""

LOOP_KIND = os.environ.get("AIOMAS_NG_TEST_LOOP", "asyncio")
TEST_FAILED = pytest.StashKey[bool]()

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# -- Collecting and running ------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and choose the kind of event loop for this process."""
    config.addinivalue_line("markers", "needs(*modules): run only where these modules can be imported")
    # Also for the loops that the library or a child process makes, not only for those made here.
    os.environ["PYTHONASYNCIODEBUG"] = "1"
    if LOOP_KIND not in ("asyncio", "uvloop"):
        raise pytest.UsageError(f"AIOMAS_NG_TEST_LOOP is {LOOP_KIND!r}, must be 'asyncio' or 'uvloop'")
    if LOOP_KIND == "uvloop":
        import uvloop

        uvloop.new_event_loop().close()  # the first one opens pipes that live as long as the process
        if sys.version_info < (3, 14):
            # For synchronous tests, whose loop is made by the library; policies are deprecated from 3.14 on.
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def pytest_report_header() -> str:
    """Say which kind of loop the tests run on."""
    return f"event loop: {LOOP_KIND}, in debug mode"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a package which is not installed."""
    missing = [item for item in items if not all(map(_is_installed, _needed_modules(item)))]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if item not in set(missing)]


def pytest_collection_finish() -> None:
    """Spare the collection after each test the objects of modules and tests, which stay anyway."""
    gc.collect()
    gc.freeze()


def _needed_modules(item: pytest.Item) -> Iterator[str]:
    for marker in item.iter_markers("needs"):
        yield from marker.args


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function as a test; under ``@given`` run each example as one."""
    test = pyfuncitem.obj
    if getattr(test, "is_hypothesis_test", False):
        inner = test.hypothesis.inner_test
        if inspect.iscoroutinefunction(inner):
            test.hypothesis.inner_test = _as_synchronous(inner)
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    run_in_new_loop(test(**{name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}))
    return True


def _as_synchronous(test: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> T:
        return run_in_new_loop(test(*args, **kwargs))

    return run


def run_in_new_loop(coro: Coroutine[Any, Any, T]) -> T:
    """Run *coro* in a loop of its own, in debug mode, and check that it leaves no task in it."""
    with asyncio.Runner(debug=True, loop_factory=_loop_factory()) as runner:
        result = runner.run(_with_timeout(coro))
        # A second run, so that the tasks are looked at from outside of the test, and only if it passed.
        runner.run(_check_tasks())
        return result


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if LOOP_KIND == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return None


async def _with_timeout(coro: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(ASYNC_TIMEOUT):
        return await coro


async def _check_tasks() -> None:
    await _settle()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        pytest.fail("the test left tasks behind: " + "\n".join(sorted(map(repr, left))), pytrace=False)


async def _settle() -> None:
    for _ in range(SETTLE_CYCLES):
        await asyncio.sleep(0)


# -- Nothing is left behind ------------------------------------------------------------------------


class _ErrorLog(logging.Handler):
    """Keeps the errors that asyncio logs: exceptions in callbacks, and those that nobody retrieved."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(logging.Formatter().format(record))


@pytest.fixture
def asyncio_errors() -> Iterator[list[str]]:
    """The errors that asyncio has logged since the test began; any that is left at the end fails the test."""
    handler = _ErrorLog()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember whether a test failed."""
    report = yield
    if report.when == "call":
        item.stash[TEST_FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest, asyncio_errors: list[str]) -> Iterator[None]:
    """Fail a test that passed, but left something behind or made asyncio log an error."""
    asyncio.set_event_loop(None)
    files = _open_channels()
    processes = set(_children())
    yield
    _clear_local_queues()
    problems = _close_current_loop()
    gc.collect()  # so that what was forgotten unclosed warns now, in the test that forgot it
    problems += [f"{kind} {number}" for number, kind in sorted(_open_channels().items() - files.items())]
    problems += [f"process {process}" for process in _children() if process not in processes]
    problems += [f"an error in the log of asyncio, {message}" for message in asyncio_errors]
    _kill([process for process in _children() if process not in processes])
    # After a failure, what is left is a consequence, and would only hide the cause.
    if problems and not request.node.stash.get(TEST_FAILED, False):
        pytest.fail("the test left behind: " + "\n".join(problems), pytrace=False)


def _clear_local_queues() -> None:
    module = sys.modules.get("aiomas_ng.local_queue")
    if module is not None:
        module.clear_queue_cache()


def _close_current_loop() -> list[str]:
    """Close the loop that synchronous code made current, and describe the tasks that are left in it.

    Such code cannot hand its loop to anybody, so it is no leak as long as nothing runs in it.
    """
    try:
        loop = asyncio.get_event_loop()
    except RuntimeError:
        return []
    asyncio.set_event_loop(None)
    if loop.is_closed():
        return []
    # As after an asynchronous test: the runner first lets closed transports free their sockets.
    loop.run_until_complete(_settle())
    tasks = [f"task {task!r}" for task in asyncio.all_tasks(loop)]
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(_settle())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    return tasks


def _open_channels() -> dict[tuple[int, int], str]:
    """Return the sockets and pipes that this process holds, by file number and inode."""
    trackers = {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_fd", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_alive_fd", None),
    }
    found = {}
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the one that listed the directory is closed by now
            status = os.fstat(number)
            if stat.S_ISSOCK(status.st_mode) or stat.S_ISFIFO(status.st_mode):
                kind = "socket" if stat.S_ISSOCK(status.st_mode) else "pipe"
                if number not in trackers:
                    found[number, status.st_ino] = kind
    return found


def _children() -> list[psutil.Process]:
    """Return the processes below this one, without the two that multiprocessing keeps for itself."""
    helpers = {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None),
    }
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in helpers]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


# -- What tests ask for ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def arun() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return a function that runs a coroutine in a loop of its own; for synchronous tests and ``@given``."""
    return run_in_new_loop


class Transport:
    """One way to reach a peer: ``kind`` is ``'tcp'``, ``'unix'`` or ``'local'``."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._directory = directory

    def __repr__(self) -> str:
        return f"Transport({self.kind!r})"

    def address(self) -> Any:
        """Return an address to listen at that nobody has used before.

        Over TCP it has port 0: connect to the address that the server then has, not to this one.
        """
        if self.kind == "tcp":
            return ("127.0.0.1", 0)
        if self.kind == "unix":
            return str(self._directory / uuid.uuid4().hex[:8])
        from aiomas_ng.local_queue import get_queue

        return get_queue(uuid.uuid4().hex)


@pytest.fixture(params=["tcp", "unix", "local"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Every transport in turn."""
    # Not tmp_path: the path of a Unix socket has at most some 100 bytes.
    directory = Path(tempfile.mkdtemp(prefix="ng-"))
    yield Transport(request.param, directory)
    shutil.rmtree(directory)
