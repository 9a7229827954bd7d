"""Container processes that die and are started again: at their address, with their agents, not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import restarted_agents
from test_subproc import HOST, START, is_running, new_container, wait_until

from aiomas_ng import ExternalClock, subproc
from aiomas_ng.exceptions import ProcessError, RemoteRestartingError, SessionLostError
from aiomas_ng.subproc import ProcessFailure, ProcessSet
from aiomas_ng.supervision import Restart

AT_ONCE = Restart(max_restarts=3, first_pause=0.05, growth=1, jitter=0)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    directory = Path(tempfile.mkdtemp(prefix="ng-"))
    yield directory
    shutil.rmtree(directory)


class Events:
    """What a set of processes tells."""

    def __init__(self, processes: ProcessSet) -> None:
        self.failures: list[ProcessFailure] = []
        self.restarted: asyncio.Queue[str] = asyncio.Queue()
        processes.on_failure(self.failures.append)
        processes.on_restart(self.restarted.put_nowait)


def worker_url(manager: str, name: str = "worker") -> str:
    """Return the address of a worker, given that of the manager beside it."""
    return f"{manager.rpartition('/')[0]}/{name}"


async def call(function: Any) -> Any:
    """Call *function* of an agent whose process was started again, anew if the old connection was still being
    taken up then."""
    while True:
        try:
            return await function()
        except SessionLostError as error:
            assert error.was_sent is False  # noqa: PT017  # it must not be sent twice


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_killed_process_comes_back(
    kind: str, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After kill -9 there is a new process at the same address with the same agents; proxies and observers of
    others find it, the log and callbacks say so, and others of the set are not concerned."""
    caplog.set_level(logging.INFO, "aiomas_ng.subproc")
    addrs: list[Any] = [HOST, HOST] if kind == "tcp" else [str(short_path / name) for name in "ab"]
    setup = functools.partial(restarted_agents.set_up)
    async with (
        new_container(addr=HOST) as container,
        await subproc.start_processes(addrs, setup=setup, restart=AT_ONCE) as processes,
    ):
        events = Events(processes)
        managers, pids = list(processes.managers), processes.pids
        worker = await container.connect(worker_url(managers[0]))
        assert await worker.get_pid() == pids[0]
        async with container.context.observe(worker_url(managers[0]) + "/pid") as observed:
            assert await anext(observed) == pids[0]
            kill(pids[0])
            assert await events.restarted.get() == managers[0]
            assert processes.managers == managers
            assert processes.pids[1] == pids[1]
            new_pid = processes.pids[0]
            assert new_pid != pids[0]
            assert await call(worker.get_pid) == new_pid
            while await anext(observed) != new_pid:
                pass
        assert await container.context.get(worker_url(managers[0]) + "/is_ready") is True
        manager = await container.connect(managers[0])
        await manager.spawn("subproc_agents:Battery")
        assert processes.restarts == [1, 0]
        (failure,) = events.failures
        assert failure == ProcessFailure(managers[0], pids[0], -signal.SIGKILL, None, 0.05, 0)
        assert [record.getMessage() for record in caplog.records if record.name == "aiomas_ng.subproc"] == [
            f"container process {pids[0]} ({managers[0]}) died with code -9; it is restarted in 0.05 s",
            f"restarted container process {new_pid} ({managers[0]})",
        ]
        kill(new_pid)  # and once more
        await events.restarted.get()
        assert await call(worker.get_pid) == processes.pids[0]
    assert await processes.wait() == [0, 0]
    assert not any(map(is_running, [*pids, new_pid, *processes.pids]))


async def test_without_restart_nothing_comes_back() -> None:
    """By default who dies is dead."""
    async with await subproc.start_processes([HOST]) as processes:
        kill(processes.pids[0])
        assert await processes.wait() == [-signal.SIGKILL]
        assert processes.restarts == [0]


@pytest.mark.parametrize("how", ["stop", "signal", "exit"])
async def test_an_orderly_end_is_no_death(how: str) -> None:
    """A process whose manager was told to stop, that got SIGTERM, or that has exited with 0, is not started
    again."""
    async with (
        new_container() as container,
        await subproc.start_processes(
            [HOST], setup=restarted_agents.set_up_plainly, restart=AT_ONCE
        ) as processes,
    ):
        events = Events(processes)
        if how == "stop":
            await (await container.connect(processes.managers[0])).stop()
        elif how == "signal":
            os.kill(processes.pids[0], signal.SIGTERM)
        else:
            worker = await container.connect(worker_url(processes.managers[0], "plain"))
            with pytest.raises(ConnectionResetError):
                await worker.exit(0)
        assert await processes.wait() == [0]
        assert (events.failures, processes.restarts) == ([], [0])


async def test_a_container_that_was_stopped_by_a_failure_comes_back() -> None:
    """StopContainer ends the process with exit code 1, so that its parent starts it again."""
    async with (
        new_container() as container,
        await subproc.start_processes([HOST], setup=restarted_agents.set_up, restart=AT_ONCE) as processes,
    ):
        events = Events(processes)
        pid = processes.pids[0]
        worker = await container.connect(worker_url(processes.managers[0]))
        await worker.fail("agent")
        await wait_for_second_agent(worker)
        assert await worker.get_pid() == pid
        assert events.failures == []
        await worker.fail("stop")
        await events.restarted.get()
        assert [failure.code for failure in events.failures] == [1]
        assert await call(worker.get_pid) == processes.pids[0] != pid


async def wait_for_second_agent(worker: Any) -> None:
    """Wait until the worker has been restarted within its process."""
    count = 1
    while count < 2:
        with contextlib.suppress(RemoteRestartingError):
            count = await worker.count_made()
        await asyncio.sleep(0.01)


async def test_a_manager_that_is_started_by_hand_tells_of_the_failure() -> None:
    """start() ends with an error if a failure has shut its container down."""
    with pytest.raises(
        ProcessError, match=r"was shut down: task 'fail' of Hasty.*ValueError: at once"
    ) as info:
        await subproc.start(HOST, setup=restarted_agents.hasten)
    assert isinstance(info.value.__cause__, ValueError)


@pytest.mark.parametrize("how", ["exit", "error"])
async def test_a_process_that_dies_at_each_start_does_not_spin(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Deaths on the way to being ready count as well; when the restarts are used up the process is given up,
    which the log says, and whoever waits has the last exit code."""
    path = tmp_path / "starts"
    setup = functools.partial(restarted_agents.work_once, path=str(path), how=how)
    restart = Restart(max_restarts=2, first_pause=0.05, growth=2, jitter=0)
    async with await subproc.start_processes([HOST], setup=setup, restart=restart) as processes:
        events = Events(processes)
        kill(processes.pids[0])
        code = 7 if how == "exit" else 1
        assert await processes.wait() == [code]
        assert [failure.pause for failure in events.failures] == [0.05, 0.1, None]
        assert [failure.code for failure in events.failures] == [-9, code, code]
        assert [type(failure.error) for failure in events.failures] == [
            type(None),
            ProcessError,
            ProcessError,
        ]
        assert processes.restarts == [2]
        assert await processes.stop() == [code]
    assert len(path.read_text().split()) == 3
    assert "it was restarted 2 times, and is given up" in caplog.text
    assert ("no device" in caplog.text) is (how == "error")


async def test_a_process_that_does_not_get_ready_again_is_ended(tmp_path: Path) -> None:
    """A process that is not ready in time is killed, and that counts as a death."""
    path = tmp_path / "starts"
    setup = functools.partial(restarted_agents.work_once, path=str(path), how="block")
    restart = Restart(max_restarts=1, first_pause=0.01)
    processes = await subproc.start_processes([HOST], setup=setup, restart=restart, timeout=8)
    async with processes:
        events = Events(processes)
        processes._slots[0]._timeout = 2.0
        kill(processes.pids[0])
        assert await processes.wait() == [-signal.SIGKILL]
        assert "not ready within 2.0 s" in str(events.failures[1].error)
        assert events.failures[1].pause is None


@pytest.mark.parametrize("phase", ["pausing", "starting"])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_stop_during_a_restart(phase: str, is_cancelled: bool, tmp_path: Path) -> None:
    """Who stops the set, or gives up to wait for that, while a process pauses or is started again, leaves no
    process behind."""
    path = tmp_path / "starts"
    setup = functools.partial(restarted_agents.work_once, path=str(path), how="block")
    pause = 60 if phase == "pausing" else 0
    before = {child.pid for child in psutil.Process().children()}
    processes = await subproc.start_processes(
        [HOST], setup=setup if phase == "starting" else None, restart=Restart(first_pause=pause)
    )
    events = Events(processes)
    kill(processes.pids[0])
    await wait_until(lambda: events.failures, "the death")
    if phase == "starting":
        await wait_until(lambda: len(path.read_text().split()) > 1, "the next start")
    if is_cancelled:
        stopping = asyncio.create_task(processes.stop(60))
        await asyncio.sleep(0.2)
        stopping.cancel()
        await asyncio.wait([stopping])
        await processes.wait()
    else:
        await asyncio.gather(processes.stop(0.5), processes.stop(0.5))
    assert {child.pid for child in psutil.Process().children()} == before


async def test_settings_are_those_of_the_moment() -> None:
    """A process that is started again gets the clock as it is now in its parent."""
    clock = ExternalClock(START)
    async with (
        new_container(clock=clock) as container,
        await subproc.start_processes(
            [HOST], clock=clock, setup=restarted_agents.set_up, restart=AT_ONCE
        ) as processes,
    ):
        events = Events(processes)
        worker = await container.connect(worker_url(processes.managers[0]))
        assert await worker.get_time() == 0
        clock.set_time(100)
        kill(processes.pids[0])
        await events.restarted.get()
        assert await call(worker.get_time) == 100


async def test_a_callback_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An error in a callback is logged; the process is started again all the same."""
    async with await subproc.start_processes([HOST], restart=AT_ONCE) as processes:
        processes.on_failure(lambda failure: 1 / 0)
        processes.on_restart(lambda manager: 1 / 0)
        events = Events(processes)
        kill(processes.pids[0])
        await events.restarted.get()
        assert caplog.text.count("a callback of a set of processes failed") == 2


async def test_a_setup_that_fails_at_once() -> None:
    """What a setup raises at the first start is the error of start_processes."""
    with pytest.raises(ProcessError, match="RuntimeError: no device"):
        await subproc.start_processes([HOST], setup=restarted_agents.fail, restart=AT_ONCE)


async def test_wrong_arguments_are_refused() -> None:
    """A setup that the children could not have, and a rule that is none, are TypeErrors."""
    with pytest.raises(TypeError, match="pickled"):
        await subproc.start_processes([HOST], setup=lambda container: None)
    wrong: Any = 5
    with pytest.raises(TypeError, match=r"must be an aiomas_ng\.supervision\.Restart"):
        await subproc.start_processes([HOST], restart=wrong)


PARENT = """
import asyncio, json, os, signal, sys

sys.path[:0] = json.loads(sys.argv[1])

import restarted_agents
from aiomas_ng import subproc
from aiomas_ng.supervision import Restart


async def main():
    processes = await subproc.start_processes(
        [("127.0.0.1", 0)] * 2, setup=restarted_agents.set_up, restart=Restart(first_pause=0)
    )
    restarted = asyncio.Event()
    processes.on_restart(lambda manager: restarted.set())
    old = processes.pids
    os.kill(old[0], signal.SIGKILL)
    await restarted.wait()
    print(json.dumps([old, processes.pids]), flush=True)
    await asyncio.sleep(60)


asyncio.run(main())
"""


@contextlib.contextmanager
def parent_program() -> Iterator[subprocess.Popen[str]]:
    """Run a program that has its processes killed and started again."""
    path = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-W", "error", "-c", PARENT, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        yield parent


async def test_no_restarted_process_outlives_its_parent() -> None:
    """When the parent is killed, those that it had started again end as well, and start nobody."""
    with parent_program() as parent:
        assert parent.stdout is not None
        try:
            old, new = json.loads(parent.stdout.readline() or "null")
            assert new[0] != old[0]
            assert new[1] == old[1]
            assert all(map(is_running, new))
        finally:
            parent.kill()
        parent.wait()
        await wait_until(lambda: not any(map(is_running, new)), "the end of the containers")
