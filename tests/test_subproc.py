"""Containers in processes of their own: what a manager creates, and that no process is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import subproc_agents

from aiomas_ng import JSON, AsyncioClock, Container, ExternalClock, get_queue, rpc, subproc, util
from aiomas_ng.exceptions import AddressInUseError, ProcessError, RemoteException, SpawnError

START = "2024-01-01T00:00:00+00:00"
HOST = ("127.0.0.1", 0)
AGENTS = "subproc_agents"

# Things happen in other processes here: how long to wait for them at most, in seconds.
PATIENCE = 30.0


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    directory = Path(tempfile.mkdtemp(prefix="ng-"))
    yield directory
    shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def new_container(**kwargs: Any) -> AsyncIterator[Container]:
    """A container in this process, shut down at the end."""
    addr = kwargs.pop("addr", None) or get_queue(uuid.uuid4().hex)
    container = await Container.create(addr, as_coro=True, **kwargs)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


@contextlib.asynccontextmanager
async def new_manager(tracebacks: bool = False, **kwargs: Any) -> AsyncIterator[subproc.Manager]:
    """A manager in a container of this process."""
    async with new_container(tracebacks=tracebacks) as container:
        yield subproc.Manager(container, **kwargs)


async def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something that another process brings about and nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return whether there is a process *pid* that is more than the remains of one."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def child_pids() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


# -- What a manager creates ------------------------------------------------------------------------


async def test_spawn_returns_the_object_itself_to_a_local_caller() -> None:
    """Called locally, spawn returns the real agent and its address."""
    async with new_manager() as manager:
        agent, addr = await manager.container.agents.dict["0"].spawn(f"{AGENTS}:Battery", 5, name="b")
        assert type(agent) is subproc_agents.Battery
        assert (agent.capacity, agent.name) == (5, "b")
        assert addr == agent.addr == manager.addr[:-1] + "1"
        assert manager.container.agents.dict["1"] is agent


async def test_spawn_returns_a_proxy_to_a_remote_caller() -> None:
    """Called remotely, spawn returns a proxy and the address, both of which lead to the agent."""
    async with new_manager() as manager, new_container() as container:
        remote = await container.connect(manager.addr)
        proxy, addr = await remote.spawn(f"{AGENTS}:Battery", 5, name="b")
        assert isinstance(proxy, rpc.Proxy)
        assert str(proxy) == f"BatteryProxy({addr!r})"
        assert proxy == await container.connect(addr)
        assert list(await proxy.get_state()) == [5, "b", os.getpid()]


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("Battery", subproc_agents.Battery),
        ("Battery.create", subproc_agents.Battery),
        ("Battery.create_at_once", subproc_agents.Battery),
        ("Battery.create_static", subproc_agents.Battery),
        ("HeavyBattery.create", subproc_agents.HeavyBattery),
        ("HeavyBattery.create_static", subproc_agents.Battery),
        ("Battery.Cell", subproc_agents.Battery.Cell),
        ("a_battery_class_alias", subproc_agents.Battery),
        ("ImportedAgent", subproc_agents.ImportedAgent),
    ],
)
async def test_spawn_takes_classes_of_agents_and_their_factories(name: str, cls: type) -> None:
    """Without being allowed anything, a manager creates from classes of agents, class and static methods."""
    async with new_manager() as manager:
        agent, _ = await manager.spawn(f"{AGENTS}:{name}")
        assert type(agent) is cls


@pytest.mark.parametrize(
    "qualname",
    [
        f"{AGENTS}:make_battery",
        f"{AGENTS}:make_by_lambda",
        f"{AGENTS}:a_constant",
        f"{AGENTS}:NoAgent",
        f"{AGENTS}:NoAgent.create",
        f"{AGENTS}:Battery.get_state",
        f"{AGENTS}:Battery.level",
        f"{AGENTS}:Battery.__init__",
        f"{AGENTS}:Battery.__init_subclass__",
        f"{AGENTS}:Battery.__subclasses__",
        f"{AGENTS}:Battery.create.__func__",
        f"{AGENTS}:imported_function",
        f"{AGENTS}:imported_module.system",
        "os:system",
        "builtins:eval",
        "builtins:print",
        "aiomas_ng:Container",
        "aiomas_ng:Container.create",
    ],
)
async def test_spawn_refuses_what_is_no_agent(qualname: str) -> None:
    """Whatever is no class of agents and no factory of one is not called."""
    async with new_manager() as manager, new_container() as container:
        with pytest.raises(SpawnError, match="no class of agents"):
            await manager.spawn(qualname)
        remote = await container.connect(manager.addr)
        with pytest.raises(RemoteException) as caught:
            await remote.spawn(qualname)
        assert caught.value.type_name == "aiomas_ng.SpawnError"
        assert list(manager.container.agents.dict.values()) == [manager]


@pytest.mark.parametrize(
    "qualname",
    ["", ":", "Battery", f"{AGENTS}:", ":Battery", f"{AGENTS}:a:b", f"{AGENTS}:a.", f"{AGENTS}: a",
     f"{AGENTS}.:Battery", f".{AGENTS}:Battery", "a/b:c", f"{AGENTS}:Battery()", 7, None, [AGENTS]],
)  # fmt: skip
async def test_spawn_refuses_malformed_names(qualname: Any) -> None:
    """A malformed name is a ValueError, which the remote caller is told of."""
    async with new_manager() as manager, new_container() as container:
        with pytest.raises(ValueError, match=r"[Mm]alformed"):
            await manager.spawn(qualname)
        remote = await container.connect(manager.addr)
        with pytest.raises(RemoteException) as caught:
            await remote.spawn(qualname)
        assert caught.value.type_name == "ValueError"


@pytest.mark.parametrize(
    ("qualname", "error"),
    [
        ("no_such_module_anywhere:Agent", ModuleNotFoundError),
        (f"{AGENTS}.sub:Agent", ModuleNotFoundError),
        (f"{AGENTS}:Missing", AttributeError),
        (f"{AGENTS}:Battery.missing", AttributeError),
    ],
)
async def test_spawn_says_what_does_not_exist(qualname: str, error: type[Exception]) -> None:
    """A missing module is an ImportError, a missing object an AttributeError, here and remotely."""
    async with new_manager() as manager, new_container() as container:
        with pytest.raises(error):
            await manager.spawn(qualname)
        remote = await container.connect(manager.addr)
        with pytest.raises(RemoteException) as caught:
            await remote.spawn(qualname)
        assert caught.value.type_name == error.__name__


async def test_spawn_refuses_a_factory_that_makes_something_else() -> None:
    """A factory that returns no agent is a SpawnError that shows what it made."""
    async with new_manager() as manager:
        with pytest.raises(SpawnError, match=r"made no agent but .no agent in"):
            await manager.spawn(f"{AGENTS}:Battery.create_nothing")


async def test_spawn_passes_on_what_the_agent_raises() -> None:
    """An exception in an agent's constructor arrives with type, message and traceback, if that is switched
    on."""
    async with new_manager(tracebacks=True) as manager, new_container() as container:
        remote = await container.connect(manager.addr)
        with pytest.raises(RemoteException, match=r"subproc_agents.py") as caught:
            await remote.spawn(f"{AGENTS}:Broken")
        assert (caught.value.type_name, caught.value.message[:17]) == ("RuntimeError", "broken on purpose")


async def test_spawn_waits_until_the_agent_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawn returns after the agent's on_ready."""
    gate = asyncio.Event()
    monkeypatch.setattr(subproc_agents.Sluggish, "gate", gate, raising=False)
    async with new_manager() as manager, new_container() as container:
        remote = await container.connect(manager.addr)
        spawning = remote.spawn(f"{AGENTS}:Sluggish")
        await wait_until(lambda: "1" in manager.container.agents.dict, "the construction of the agent")
        agent: Any = manager.container.agents.dict["1"]
        assert not spawning.done()
        assert not agent.is_ready
        gate.set()
        await spawning
        assert agent.is_ready


@pytest.fixture
def fresh_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with an agent and more that nobody has imported yet."""
    name = f"fresh_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent("""
            from os import getcwd
            import os
            import aiomas_ng
            from subproc_agents import Battery
            class Own(Battery): pass
            def make(container): return Own(container)
            class Maker:
                @staticmethod
                def make(container): return Own(container)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("allow", [[], ["{}:Other", "subproc_agents:*"], ["{}:Own.*", "*:*", "{}"]])
async def test_what_is_not_allowed_is_not_even_imported(fresh_module: str, allow: list[str]) -> None:
    """With a list of what is allowed, anything else is refused by its name alone, agent or not."""
    async with new_manager(allow=[name.format(fresh_module) for name in allow]) as manager:
        for name in ("Own", "make", "Missing"):
            with pytest.raises(SpawnError, match="not among what this manager may create"):
                await manager.spawn(f"{fresh_module}:{name}")
    assert fresh_module not in sys.modules


async def test_allowed_names_are_created(fresh_module: str) -> None:
    """What is allowed by name may be a function; other things of the same module are refused."""
    async with new_manager(allow={f"{fresh_module}:make", f"{fresh_module}:Maker.make"}) as manager:
        for name in ("make", "Maker.make"):
            agent, _ = await manager.spawn(f"{fresh_module}:{name}")
            assert type(agent).__name__ == "Own"
        with pytest.raises(SpawnError):
            await manager.spawn(f"{fresh_module}:Own")


async def test_an_allowed_module_is_not_what_it_imports(fresh_module: str) -> None:
    """A module that is allowed as a whole gives what is defined in it, and not what it imported."""
    async with new_manager(allow=[f"{fresh_module}:*"]) as manager:
        for name in ("Own", "make", "Maker.make", "Own.create"):
            await manager.spawn(f"{fresh_module}:{name}")
        for name in ("getcwd", "os.system", "os.getcwd", "Battery", "Battery.create", "Own.__init__",
                     "aiomas_ng.subproc.Manager", "make.__globals__.clear"):  # fmt: skip
            with pytest.raises(SpawnError, match="has to be allowed by name"):
                await manager.spawn(f"{fresh_module}:{name}")


async def test_who_calls_a_manager_does_not_say_what_another_may_create() -> None:
    """A peer cannot have a manager made that is allowed more than the one it can call."""
    async with new_manager() as manager:
        for name in ("aiomas_ng.subproc:Manager", f"{AGENTS}:Liberal", f"{AGENTS}:Liberal.create"):
            await manager.spawn(name)
            with pytest.raises(SpawnError, match="not for those to say"):
                await manager.spawn(name, allow=[f"{AGENTS}:make_battery"])


async def test_allow_must_be_a_collection() -> None:
    """A single string, whose letters would be taken for names, is refused."""
    async with new_container() as container:
        with pytest.raises(TypeError, match="a collection of names"):
            subproc.Manager(container, allow="subproc_agents:Battery")
        assert not container.agents.dict


# -- The other methods of a manager ----------------------------------------------------------------


async def test_set_time_sets_an_external_clock() -> None:
    """The remote set_time sets the clock of the container, and passes on that time cannot go back."""
    async with new_container(clock=ExternalClock(START)) as container, new_container() as other:
        manager = await other.connect(subproc.Manager(container).addr)
        await manager.set_time(23.5)
        assert container.clock.time() == 23.5
        with pytest.raises(RemoteException) as caught:
            await manager.set_time(23)
        assert caught.value.type_name == "ValueError"


async def test_set_time_of_another_clock_says_so() -> None:
    """The time of an AsyncioClock cannot be set, and the error says what can."""
    async with new_container(clock=AsyncioClock()) as container, new_container() as other:
        manager = await other.connect(subproc.Manager(container).addr)
        with pytest.raises(RemoteException) as caught:
            await manager.set_time(23)
        assert caught.value.type_name == "TypeError"
        assert caught.value.message == "the time of a AsyncioClock cannot be set; use an ExternalClock"


async def test_start_runs_until_stop_is_called() -> None:
    """Start serves a manager, answers the call that stops it, and has freed the address when it ends."""
    async with new_container() as other:
        queue = get_queue("test-start")
        running = asyncio.create_task(subproc.start(queue, clock=ExternalClock(START), codec=JSON))
        codec_kwargs: dict[str, Any] = {"codec": JSON}
        async with new_container(**codec_kwargs) as client:
            manager = await client.connect("local://test-start/0", 5)
            await manager.set_time(1)
            _, addr = await manager.spawn(f"{AGENTS}:Battery.create", 3)
            assert addr == "local://test-start/1"
            await asyncio.gather(manager.stop(), manager.stop())
            await running
        with pytest.raises(ConnectionRefusedError):
            await other.connect("local://test-start/0")


async def test_start_can_be_cancelled() -> None:
    """A cancelled start shuts its container down."""
    queue = get_queue("test-cancel")
    running = asyncio.create_task(subproc.start(queue))
    async with new_container() as other:
        await other.connect("local://test-cancel/0", 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(ConnectionRefusedError):
            await other.connect("local://test-cancel/0")


async def test_start_passes_on_what_may_be_created() -> None:
    """The manager of start creates what it is allowed, and nothing else."""
    queue = get_queue("test-allow")
    running = asyncio.create_task(subproc.start(queue, allow=[f"{AGENTS}:make_battery"]))
    async with new_container() as other:
        manager = await other.connect("local://test-allow/0", 5)
        await manager.spawn(f"{AGENTS}:make_battery", 2)
        with pytest.raises(RemoteException):
            await manager.spawn(f"{AGENTS}:Battery")
        await manager.stop()
    await running


def test_start_from_a_program_without_a_loop(short_path: Path) -> None:
    """A program as written for aiomas runs a container until its manager is stopped, and then another."""
    for number in range(2):
        path = short_path / f"s{number}"

        async def control(path: Path = path) -> None:
            async with new_container() as container:
                manager = await container.connect(f"ipc://[{path}]/0", 5)
                await manager.spawn(f"{AGENTS}:Battery")
                await manager.stop()

        loop = util.get_loop()
        task = loop.create_task(control())
        util.run(until=subproc.start(str(path), clock=ExternalClock(START, init_time=-1)))
        util.run(until=task)
        assert not path.exists()


async def test_a_derived_manager_in_a_program_of_its_own() -> None:
    """A subclass adds to spawn, and its program waits for stop_received as for any future."""
    async with new_container() as container, new_container() as other:
        manager = subproc_agents.Recorder(container)
        assert container.agents.dict == {"0": manager}
        remote = await other.connect(manager.addr)
        _, addr = await remote.spawn(f"{AGENTS}:Battery")
        assert list(await remote.get_spawned()) == [addr]
        assert not manager.stop_received.done()
        stopping = remote.stop()
        assert await manager.stop_received is True
        await stopping
        await remote.stop()


# -- Processes that start and end ------------------------------------------------------------------


async def test_processes_are_ready_on_return() -> None:
    """Each process has a port of its own, can be connected to at once, and ends with code 0."""
    async with new_container(addr=HOST, clock=ExternalClock(START)) as container:
        processes = await subproc.start_processes([HOST] * 3, clock=ExternalClock(START))
        async with processes:
            assert len(processes) == len(set(processes.managers)) == len(set(processes.pids)) == 3
            for addr, pid in zip(processes.managers, processes.pids, strict=True):
                assert addr.startswith("tcp://127.0.0.1:")
                assert not addr.startswith("tcp://127.0.0.1:0/")
                manager = await container.connect(addr)
                battery, _ = await manager.spawn(f"{AGENTS}:Battery.create", 5)
                assert list(await battery.get_state()) == [5, "battery", pid]
                probe, _ = await manager.spawn(f"{AGENTS}:Probe")
                await manager.set_time(17)
                assert await probe.get_time() == 17
            assert all(map(is_running, processes.pids))
        assert await processes.stop() == [0, 0, 0]
        assert await processes.wait() == [0, 0, 0]
        assert not any(map(is_running, processes.pids))


async def test_processes_at_unix_sockets(short_path: Path) -> None:
    """Processes listen at Unix sockets, which are gone afterwards."""
    paths = [str(short_path / name) for name in "ab"]
    async with (
        new_container(codec=JSON) as container,
        await subproc.start_processes(paths, codec=JSON) as processes,
    ):
        assert processes.managers == [f"ipc://[{path}]/0" for path in paths]
        for addr in processes.managers:
            await (await container.connect(addr)).spawn(f"{AGENTS}:Battery")
    assert not any(map(os.path.exists, paths))


async def test_no_processes() -> None:
    """A set may be empty."""
    processes = await subproc.start_processes([])
    assert (len(processes), processes.managers, processes.pids) == (0, [], [])
    assert await processes.stop() == []


async def test_allow_reaches_every_process() -> None:
    """Each manager of a set creates what is allowed, also if that was given as an iterator."""
    async with (
        new_container() as container,
        await subproc.start_processes([HOST] * 2, allow=iter([f"{AGENTS}:make_battery"])) as processes,
    ):
        for addr in processes.managers:
            manager = await container.connect(addr)
            await manager.spawn(f"{AGENTS}:make_battery")
            with pytest.raises(RemoteException) as caught:
                await manager.spawn(f"{AGENTS}:Battery")
            assert caught.value.type_name == "aiomas_ng.SpawnError"


async def test_what_agents_print_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    """What agents print goes to the output of the parent, and reading input finds none."""
    async with (
        new_container() as container,
        await subproc.start_processes([HOST], codec=subproc_agents.Trap(print, "noise")) as processes,
    ):
        probe, _ = await (await container.connect(processes.managers[0])).spawn(f"{AGENTS}:Probe")
        await probe.print_lines("hello")
        assert await probe.read_stdin() == ""
    out, err = capfd.readouterr()
    assert out.splitlines() == ["noise", "hello", "hello, unbuffered"]
    assert err == "hello\n"


async def test_large_settings() -> None:
    """Settings of 10 MiB reach every process."""
    clock = subproc_agents.HeavyClock(START)
    clock.ballast = bytes(10 * 2**20)
    async with (
        new_container() as container,
        await subproc.start_processes([HOST] * 2, clock=clock) as processes,
    ):
        for addr in processes.managers:
            probe, _ = await (await container.connect(addr)).spawn(f"{AGENTS}:Probe")
            assert await probe.get_ballast() == 10 * 2**20


async def test_the_childs_path_is_that_of_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_module: str
) -> None:
    """A child imports what its parent can, from where the parent does; its environment stays as it is."""
    (tmp_path / "decoy").mkdir()
    for name in ("aiomas_ng", "asyncio", "json", "pickle", "socket"):
        (tmp_path / "decoy" / f"{name}.py").write_text("raise AssertionError('a decoy was imported')")
    monkeypatch.chdir(tmp_path / "decoy")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    async with new_container() as container, await subproc.start_processes([HOST]) as processes:
        manager = await container.connect(processes.managers[0])
        await manager.spawn(f"{fresh_module}:Own")
        probe, _ = await manager.spawn(f"{AGENTS}:Probe")
        assert list(await probe.get_path()) == sys.path
        assert await probe.get_environment("PYTHONPATH") == "/nowhere"
        assert await probe.import_module("json") == sys.modules["json"].__file__


# -- Processes that do not start -------------------------------------------------------------------


async def test_an_address_in_use_is_a_process_error() -> None:
    """If one container of several cannot listen, the error says why, and no process is left."""
    async with new_container(addr=HOST) as container:
        port = int(container._base_url.rpartition(":")[2][:-1])
        before = child_pids()
        with pytest.raises(ProcessError, match=rf"AddressInUseError: .*{port}.* is in use") as caught:
            await subproc.start_processes([HOST, ("127.0.0.1", port), HOST])
        assert "In the container process:\nTraceback" in caught.value.__notes__[0]
        assert AddressInUseError.__name__ in caught.value.__notes__[0]
        assert child_pids() == before


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"nonsense": 1}, "TypeError: .*'nonsense'"),
        ({"codec": len}, "TypeError: "),
        ({"ssl": "yes"}, "TypeError: ssl must be"),
        ({"allow": "one:string"}, "TypeError: allow must be"),
        ({"clock": subproc_agents.Trap(int, "x")}, "ValueError: invalid literal"),
    ],
)
async def test_bad_settings_are_a_process_error(kwargs: dict[str, Any], reason: str) -> None:
    """Settings that the child cannot use are an error that says why."""
    with pytest.raises(ProcessError, match=rf"^container process \d+ failed: .*{reason}"):
        await subproc.start_processes([HOST] * 2, **kwargs)


async def test_a_death_before_being_ready_is_a_process_error() -> None:
    """If a process dies on its way, the error has its exit code."""
    large = subproc_agents.HeavyClock(START)
    large.ballast = bytes(2**20)
    for clock in (None, large):
        codec = subproc_agents.Trap(subproc_agents.exit_at_once, 7)
        with pytest.raises(ProcessError, match="ended with code 7 before it was ready"):
            await subproc.start_processes([HOST] * 2, codec=codec, clock=clock)


async def test_a_process_that_cannot_be_made_is_a_process_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system refuses to start a process, the error says why."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ProcessError, match=r"cannot be started: .*No such file"):
        await subproc.start_processes([HOST])


class OfMainScript(ExternalClock):
    """Pretends to be defined in the main script."""


OfMainScript.__module__ = "__main__"


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"codec": lambda: JSON()}, "lambda"),
        ({"clock": OfMainScript(START)}, "OfMainScript is defined in the main script"),
        ({"extra_serializers": [OfMainScript]}, "move it to a module"),
    ],
)
async def test_settings_that_cannot_be_pickled_are_a_type_error(kwargs: dict[str, Any], reason: str) -> None:
    """Settings that cannot be pickled are refused before any process is started."""
    before = child_pids()
    with pytest.raises(TypeError, match=reason):
        await subproc.start_processes([HOST], **kwargs)
    assert child_pids() == before


async def test_processes_that_take_too_long_are_a_process_error(tmp_path: Path) -> None:
    """Processes that are not ready in time are ended."""
    stuck = subproc_agents.Trap(subproc_agents.touch_and_sleep, str(tmp_path / "stuck"), 60)
    before = child_pids()
    with pytest.raises(ProcessError, match=r"not ready within 1\.5 s"):
        await subproc.start_processes([HOST] * 2, timeout=1.5, codec=stuck)
    assert child_pids() == before


@pytest.mark.parametrize("moment", ["at once", "with the first process", "when stuck"])
async def test_cancelling_the_start_leaves_no_process(tmp_path: Path, moment: str) -> None:
    """Start_processes may be cancelled at any time."""
    flag = tmp_path / "stuck"
    stuck = subproc_agents.Trap(subproc_agents.touch_and_sleep, str(flag), 60)
    before = child_pids()
    starting = asyncio.create_task(subproc.start_processes([HOST] * 3, codec=stuck))
    if moment == "at once":
        await asyncio.sleep(0)
    elif moment == "with the first process":
        await wait_until(lambda: child_pids() != before, "the start of a process")
    else:
        await wait_until(flag.exists, "the use of the settings")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert child_pids() == before


# -- Processes that end, or do not -----------------------------------------------------------------


async def test_stop_lets_agents_end(tmp_path: Path) -> None:
    """Stop ends containers orderly, with the on_stop of their agents; a second stop returns the same."""
    note = tmp_path / "note"
    async with new_container() as container, await subproc.start_processes([HOST]) as processes:
        probe, _ = await (await container.connect(processes.managers[0])).spawn(f"{AGENTS}:Probe")
        await probe.leave_note_at_stop(str(note))
        assert await asyncio.gather(processes.stop(), processes.stop()) == [[0], [0]]
        assert note.read_text() == "stopped"
        assert await processes.stop() == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_process_orderly(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT shut the container down, with the on_stop of its agents, and the code is 0."""
    note = tmp_path / "note"
    async with new_container() as container, await subproc.start_processes([HOST]) as processes:
        probe, _ = await (await container.connect(processes.managers[0])).spawn(f"{AGENTS}:Probe")
        await probe.leave_note_at_stop(str(note))
        os.kill(processes.pids[0], number)
        assert await processes.wait() == [0]
        assert note.read_text() == "stopped"


async def test_exit_codes_tell_how_processes_ended() -> None:
    """Wait returns codes in the order of the addresses: 0, a code of the process's own, or the signal."""
    async with new_container() as container, await subproc.start_processes([HOST] * 3) as processes:
        managers = [await container.connect(addr) for addr in processes.managers]
        probe, _ = await managers[1].spawn(f"{AGENTS}:Probe")
        await managers[0].stop()
        with pytest.raises(ConnectionResetError):
            await probe.exit(5)
        os.kill(processes.pids[2], signal.SIGKILL)
        assert await processes.wait() == [0, 5, -signal.SIGKILL]
        assert await processes.stop() == [0, 5, -signal.SIGKILL]


async def test_a_process_that_does_not_end_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process whose loop is blocked is terminated, then killed; the others end orderly all the same."""
    flag = tmp_path / "blocked"
    caplog.set_level(logging.WARNING, "aiomas_ng.subproc")
    async with new_container() as container, await subproc.start_processes([HOST] * 2) as processes:
        probe, _ = await (await container.connect(processes.managers[1])).spawn(f"{AGENTS}:Probe")
        blocking = probe.block(60, str(flag))
        await wait_until(flag.exists, "the blocking of the loop")
        assert await processes.stop(timeout=0.5) == [0, -signal.SIGKILL]
        with pytest.raises(ConnectionResetError):
            await blocking
    pid = processes.pids[1]
    records = [record for record in caplog.records if record.name == "aiomas_ng.subproc"]
    assert [record.getMessage() for record in records] == [
        f"container process {pid} does not end; terminating it",
        f"container process {pid} does not end; killing it",
    ]


async def test_cancelling_stop_kills(tmp_path: Path) -> None:
    """If nobody waits for the end any more, the processes that are left are killed."""
    flag = tmp_path / "blocked"
    async with new_container() as container, await subproc.start_processes([HOST]) as processes:
        probe, _ = await (await container.connect(processes.managers[0])).spawn(f"{AGENTS}:Probe")
        blocking = probe.block(60, str(flag))
        await wait_until(flag.exists, "the blocking of the loop")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(processes.stop(timeout=60), 0.2)
        assert await processes.wait() == [-signal.SIGKILL]
        with pytest.raises(ConnectionResetError):
            await blocking


async def test_the_processes_of_agents_do_not_hold_the_line(tmp_path: Path) -> None:
    """A process that an agent started, with whatever it inherits, keeps nobody from ending."""
    async with new_container() as container, await subproc.start_processes([HOST]) as processes:
        probe, _ = await (await container.connect(processes.managers[0])).spawn(f"{AGENTS}:Probe")
        pid = await probe.start_process(sys.executable, "-c", "import time; time.sleep(60)")
        try:
            assert await processes.stop() == [0]
        finally:
            os.kill(pid, signal.SIGKILL)


# -- Parents that are programs of their own --------------------------------------------------------

PARENT = """
import asyncio, json, os, sys, time

sys.path[:0] = json.loads(sys.argv[1])

from aiomas_ng import Container, rpc, subproc


async def main(mode):
    container = await Container.create(("127.0.0.1", 0), as_coro=True)
    processes = await subproc.start_processes([("127.0.0.1", 0)] * 2)
    for number, addr in enumerate(processes.managers):
        manager = await container.connect(addr)
        probe, _ = await manager.spawn("subproc_agents:Probe")
        if mode == "busy":
            flag = f"blocked-{number}"
            rpc.with_options(probe.block, oneway=True)(60, flag)
            while not os.path.exists(flag):
                await asyncio.sleep(0.01)
    fork = os.fork() if mode.startswith("fork") else None
    if fork == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(json.dumps({"pids": processes.pids, "fork": fork}), flush=True)
    if mode.endswith("stop"):
        codes = await processes.stop(timeout=20)
        await container.shutdown(as_coro=True)
        print(json.dumps(codes), flush=True)
    else:
        await asyncio.sleep(60)


mode = sys.argv[2]
if mode.startswith("uvloop"):
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(mode))
else:
    asyncio.run(main(mode))
"""


@contextlib.contextmanager
def parent_program(directory: Path, mode: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run a program that starts container processes; yield it and what it has printed about them."""
    script = directory / "elsewhere" / "parent.py"
    script.parent.mkdir()
    script.write_text(PARENT)
    # Of the modules, only the program knows where they are.
    path = json.dumps([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-X", "dev", str(script), path, mode]
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        try:
            facts = json.loads(parent.stdout.readline() or "null")
            assert facts is not None, "the program failed, see its standard error"
            try:
                yield parent, facts
            finally:
                if facts["fork"]:
                    os.kill(facts["fork"], signal.SIGKILL)
        finally:
            parent.kill()


@pytest.mark.parametrize(
    "mode", ["stop", "fork-stop", pytest.param("uvloop-stop", marks=pytest.mark.needs("uvloop"))]
)
def test_a_program_starts_and_stops_processes(tmp_path: Path, mode: str) -> None:
    """A program anywhere ends its containers, on any loop, and also if a fork of it holds the lines open."""
    with parent_program(tmp_path, mode) as (parent, facts):
        assert parent.stdout is not None
        assert parent.stdout.readline() == "[0, 0]\n"
        assert parent.wait(PATIENCE) == 0
        assert not any(map(is_running, facts["pids"]))


@pytest.mark.parametrize("mode", ["idle", "busy", "fork"])
async def test_no_process_outlives_its_parent(tmp_path: Path, mode: str) -> None:
    """When the parent is killed, its containers end by themselves, though their loops be busy."""
    with parent_program(tmp_path, mode) as (parent, facts):
        assert all(map(is_running, facts["pids"]))
        parent.kill()
        killed_at = time.monotonic()
        parent.wait()
        await wait_until(lambda: not any(map(is_running, facts["pids"])), "the end of the containers")
        assert time.monotonic() - killed_at < 10
