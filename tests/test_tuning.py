"""What makes a whole process faster: the C library's memory, and the loop that polls before it sleeps."""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aiomas_ng import tuning
from aiomas_ng.tuning import BusyPollingEventLoop, keep_freed_memory

is_glibc = platform.libc_ver()[0] == "glibc"

FAULTS = """
import json, resource, sys
from aiomas_ng import tuning

def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

is_kept = tuning.keep_freed_memory() if sys.argv[1:] != ["not called"] else None
size = 8 * 2**20  # above glibc's own limit, and below 32 MiB
before = count()
bytearray(size)
first = count() - before
before = count()
for _ in range(50):
    block = bytearray(size // 2)
    del block
print(json.dumps([is_kept, first, (count() - before) / 50]))
"""
PAGES = 4 * 2**20 // os.sysconf("SC_PAGE_SIZE")
"""Pages of the blocks that are taken again and again."""


def run_python(code: str, *args: str, **env: str) -> Any:
    """Run a program with these variables in its environment; return what it prints, as JSON."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "AIOMAS_NG_", "GLIBC_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=clean | env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- Memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not is_glibc, reason="needs glibc")
def test_freed_memory_is_kept() -> None:
    """A large block that was freed is given out again, instead of being mapped and cleared page by page."""
    is_kept, _, faults = run_python(FAULTS)
    assert is_kept is True
    assert faults < PAGES / 10


@pytest.mark.parametrize(
    "env",
    [
        {"AIOMAS_NG_MALLOC": "system"},
        {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"AIOMAS_NG_MALLOC": "system", "MALLOC_MMAP_THRESHOLD_": "131072"},
    ],
)
def test_environment_prevents_it(env: dict[str, str]) -> None:
    """Whoever says how the memory is to be handled is not overruled."""
    is_kept, _, _ = run_python(FAULTS, **env)
    assert is_kept is False


@pytest.mark.skipif(not is_glibc, reason="needs glibc")
@pytest.mark.parametrize("value", ["", "keep"])
def test_other_values_do_not_prevent_it(value: str) -> None:
    """Only the value ``system`` prevents it."""
    assert run_python(FAULTS, AIOMAS_NG_MALLOC=value)[0] is True


@pytest.mark.skipif(not is_glibc, reason="needs glibc")
def test_limit_of_the_user_stays_in_force() -> None:
    """A limit that the environment sets is the one that holds: blocks above it come from the system anew."""
    is_kept, _, faults = run_python(FAULTS, MALLOC_MMAP_THRESHOLD_="131072")
    assert is_kept is False
    assert faults > PAGES / 2


def test_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without glibc, or without its function, nothing is done, and nothing fails."""
    for name in ("AIOMAS_NG_MALLOC", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    uncached = keep_freed_memory.__wrapped__
    monkeypatch.setattr(tuning.platform, "libc_ver", lambda: ("", ""))
    assert uncached() is False
    monkeypatch.setattr(tuning.platform, "libc_ver", lambda: ("glibc", "2.36"))
    for fault in (OSError, AttributeError):

        def fail(name: Any, fault: type[Exception] = fault) -> Any:
            raise fault

        monkeypatch.setattr(tuning.ctypes, "CDLL", fail)
        assert uncached() is False

    class Refuses:
        def mallopt(self, parameter: int, value: int) -> int:
            return 0

    monkeypatch.setattr(tuning.ctypes, "CDLL", lambda name: Refuses())
    assert uncached() is False


def test_it_is_done_by_the_first_connection_and_not_by_the_import() -> None:
    """To import the package changes nothing about the process; to open a connection does, once."""
    code = """
import asyncio, json
import aiomas_ng
from aiomas_ng import channel, tuning

before = tuning.keep_freed_memory.cache_info().misses

async def main():
    for _ in range(3):
        near, far = await channel.open_pair("pair", loop=asyncio.get_running_loop())
        await near.close()
        await far.close()

asyncio.run(main())
print(json.dumps([before, tuning.keep_freed_memory.cache_info().misses]))
"""
    assert run_python(code) == [0, 1]


# -- The loop --------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[BusyPollingEventLoop]:
    """A loop that polls."""
    loop = BusyPollingEventLoop()
    yield loop
    loop.close()


@pytest.mark.parametrize("poll_time", [0, -1, -0.0, math.nan, -math.inf])
def test_time_to_poll_must_be_positive(poll_time: float) -> None:
    """A time that is none is refused, and nothing is left open."""
    with pytest.raises(ValueError, match="poll_time must be > 0"):
        BusyPollingEventLoop(poll_time)


def test_time_to_poll_must_be_a_number() -> None:
    """What is no number is refused."""
    with pytest.raises(TypeError):
        BusyPollingEventLoop("1")  # type: ignore[arg-type]


@pytest.mark.parametrize("poll_time", [1e-9, 1e-4, 10.0, math.inf])
def test_timers_fire_in_time_and_in_order(poll_time: float) -> None:
    """Timers shorter and longer than the time to poll fire when they are due, never before."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        fired: list[int] = []
        start = loop.time()
        for n, delay in enumerate([0.03, 0.001, 0.0, 0.02]):
            loop.call_later(delay, fired.append, n)
        await asyncio.sleep(0.04)
        assert loop.time() - start >= 0.04 - 0.001
        assert fired == [2, 1, 3, 0]

    with asyncio.Runner(loop_factory=lambda: BusyPollingEventLoop(poll_time)) as runner:
        runner.run(check())


@pytest.mark.parametrize("poll_time", [1e-9, 1e-4, 60.0])
def test_thread_wakes_it(poll_time: float) -> None:
    """A callback of another thread comes at once, whether the loop polls or sleeps."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        for delay in (0.0, 0.02):
            event = asyncio.Event()
            thread = threading.Timer(delay, loop.call_soon_threadsafe, [event.set])
            thread.start()
            await asyncio.wait_for(event.wait(), 10)
            thread.join()
        assert await loop.run_in_executor(None, lambda: 5) == 5

    with asyncio.Runner(loop_factory=lambda: BusyPollingEventLoop(poll_time)) as runner:
        runner.run(check())


@pytest.mark.parametrize("poll_time", [1e-4, 60.0])
def test_signal_wakes_it(poll_time: float) -> None:
    """Handlers of signals are run while the loop waits."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, event.set)
        timer = threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGUSR1])
        timer.start()
        await asyncio.wait_for(event.wait(), 10)
        timer.join()
        assert loop.remove_signal_handler(signal.SIGUSR1)

    with asyncio.Runner(loop_factory=lambda: BusyPollingEventLoop(poll_time)) as runner:
        runner.run(check())


def test_idle_loop_sleeps() -> None:
    """A loop that has nothing to do takes next to no time of the processor."""

    async def check() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(0.3, lambda: None)
        start = time.process_time()
        await asyncio.sleep(0.3)
        return time.process_time() - start

    with asyncio.Runner(loop_factory=BusyPollingEventLoop, debug=False) as runner:
        assert min(runner.run(check()) for _ in range(2)) < 0.1


def test_it_polls_before_it_sleeps() -> None:
    """While the time to poll lasts it looks again and again without waiting, and then waits once."""
    selector = tuning._BusySelector(0.02)
    waits: list[float | None] = []

    class Base:
        def select(self, timeout: float | None = None) -> list[Any]:
            waits.append(timeout)
            return []

    # super() in the method finds the next class behind _BusySelector, whose method is replaced here.
    original = tuning.selectors.DefaultSelector.select
    tuning.selectors.DefaultSelector.select = Base.select  # type: ignore[method-assign,assignment]
    try:
        assert selector.select(0) == []
        assert waits == [0]
        assert selector.select(-1) == []
        assert waits == [0, 0]
        waits.clear()
        assert selector.select(None) == []
        assert len(waits) > 10
        assert set(waits[:-1]) == {0}
        assert waits[-1] is None
        waits.clear()
        assert selector.select(1.0) == []
        assert 0.5 < waits[-1] <= 0.98  # type: ignore[operator]
        waits.clear()
        assert selector.select(0.001) == []
        assert waits[-1] == 0
    finally:
        tuning.selectors.DefaultSelector.select = original  # type: ignore[method-assign]
        selector.close()


def test_what_is_ready_is_returned_at_once(loop: BusyPollingEventLoop) -> None:
    """What comes while it polls is returned without a further wait."""
    selector = tuning._BusySelector(60.0)
    reader, writer = os.pipe()
    try:
        selector.register(reader, tuning.selectors.EVENT_READ)
        timer = threading.Timer(0.02, os.write, [writer, b"x"])
        timer.start()
        start = time.monotonic()
        assert [key.fd for key, _ in selector.select(None)] == [reader]
        assert time.monotonic() - start < 30
        timer.join()
    finally:
        selector.close()
        os.close(reader)
        os.close(writer)


def test_calls_over_it(transport: Any) -> None:
    """Channels work on it as on any loop."""

    async def check() -> None:
        from tests.faults import open_link, serve

        async with open_link(transport) as (client, server):
            serve(server, lambda content: content)
            for content in (1, bytes(300_000)):
                assert await client.send(content) == content
            assert await asyncio.gather(*map(client.send, range(300))) == list(range(300))

    with asyncio.Runner(loop_factory=BusyPollingEventLoop) as runner:
        assert isinstance(runner.get_loop(), asyncio.SelectorEventLoop)
        runner.run(check())
