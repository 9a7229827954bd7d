"""A real mosaik calls services of aiomas_ng as its simulators, and is called back by them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from wire_tap import Tap, read_frames

from aiomas_ng import JSON, rpc

sys.path.append(str(Path(__file__).parent / "mosaik_sims"))

import simulators

pytestmark = pytest.mark.needs("mosaik")

PROGRAMS = Path(__file__).parent / "mosaik_sims"
PATIENCE = 30.0
STEPS = 4

# What the controller asks mosaik in each of its steps.
CALLBACKS = Counter(get_progress=3, get_related_entities=3, get_data=1, set_data=1)


def program(kind: str, record: Path) -> dict[str, Any]:
    """Return how mosaik starts the simulator *kind* as a process of its own."""
    return {
        "cmd": f"%(python)s {PROGRAMS / 'simulators.py'} {kind} %(addr)s {record}",
        "env": {"PYTHONPATH": os.pathsep.join([str(PROGRAMS.parent), str(PROGRAMS.parents[1])])},
    }


async def run_scenario(sim_config: dict[str, Any], **params: Any) -> tuple[Any, str]:
    """Run the scenario in a process; return what it printed and mosaik's log.

    It has ended only when its simulators have, because they share its standard error.
    """
    options = [f"--{name.replace('_', '-')}={json.dumps(value)}" for name, value in params.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAMS / "scenario.py"),
        json.dumps(sim_config),
        f"--until={STEPS}",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, log = (text.decode() for text in await process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, log
    return json.loads(output), log


def check_wire(sent: Path, received: Path, callbacks: Counter[str]) -> list[Any]:
    """Check that a simulator has *sent* mosaik what it may, and nothing that it was not asked for.

    Returns:
        The failures that it has sent.
    """
    asked = read_frames(received)
    said = read_frames(sent)
    assert {frame[0] for frame in said} <= {0, 1, 2}
    assert all(len(frame) == 3 for frame in said)
    # Each request of mosaik is answered once.
    assert [frame[1] for frame in said if frame[0] != 0] == [frame[1] for frame in asked if frame[0] == 0]
    requests = [frame[2] for frame in said if frame[0] == 0]
    assert Counter(function for function, _, _ in requests) == callbacks
    assert all(isinstance(args, list) and isinstance(kwargs, dict) for _, args, kwargs in requests)
    failures = [frame[2] for frame in said if frame[0] == 2]
    assert all(isinstance(part, str) for failure in failures for part in failure)
    return failures


def check_results(results: dict[str, Any]) -> None:
    """Check that both simulators have seen what the scenario is about."""
    a, b, controller = ids = results["ids"]
    source = results["source"]
    assert source["calls"] == ["init Source-0 60.0", "create 2 Source", "setup_done"]
    assert (source["names"], source["options"]) == (["a"], {"option": [1, {"b": None}]})
    # What the controller has set in one step arrives in the next one.
    limits = [{}, {controller: 1.5}, {controller: 2.5}, {controller: 3.5}]
    assert source["history"] == [
        [time, eid, limits[time]] for time in range(STEPS) for eid in ("source_0", "source_1")
    ]
    steps = results["controller"]["history"]
    assert [step["inputs"] for step in steps] == [dict.fromkeys((a, b), p) for p in (11, 1.5, 2.5, 3.5)]
    for time, step in enumerate(steps):
        assert step["time"] == time
        assert 0 <= step["progress"] <= 100
        assert step["related"].keys() == {a, b}
        assert step["related"][a]["type"] == "Source"
        assert step["nodes"] == sorted(ids)
        assert step["by_list"].keys() == {controller, a}
        assert step["by_list"][a].keys() == {controller}
        assert step["data"].keys() == {a, b}
        assert step["answer"] is None


def scaled(counter: Counter[str], factor: int) -> Counter[str]:
    return Counter({name: count * factor for name, count in counter.items()})


async def test_mosaik_starts_simulators(tmp_path: Path) -> None:
    """Simulators started by mosaik work, call back, and say nothing that they were not asked."""
    results, log = await run_scenario(
        {
            "Source": program("source", tmp_path / "source"),
            "Controller": program("controller", tmp_path / "controller"),
        }
    )
    check_results(results)
    assert "INFO Simulation finished successfully." in log
    assert "ERROR" not in log
    assert not check_wire(tmp_path / "source.client", tmp_path / "source.server", Counter())
    callbacks = scaled(CALLBACKS, STEPS)
    assert not check_wire(tmp_path / "controller.client", tmp_path / "controller.server", callbacks)


async def test_a_simulator_ends_when_mosaik_hangs_up(tmp_path: Path) -> None:
    """A simulator's program that mosaik does not terminate ends at the end of file, after its stop."""
    await run_scenario(
        {
            "Source": {**program("source", tmp_path / "source"), "auto_terminate": False},
            "Controller": program("controller", tmp_path / "controller"),
        }
    )
    assert (tmp_path / "source.end").read_text() == "stopped: True"


@contextlib.asynccontextmanager
async def served(simulator: simulators.Simulator, record: Path) -> Any:
    """Serve a simulator in this process; yield how mosaik connects to it."""

    def connected(client: rpc.RpcClient) -> None:
        simulator.mosaik = client.remote

    async with (
        await rpc.start_server(("127.0.0.1", 0), simulator, connected, codec=JSON) as server,
        Tap(server.address.place, record) as tap,
    ):
        host, port = tap.addr
        yield {"connect": f"{host}:{port}"}
        server.close_clients()


async def test_mosaik_connects_to_simulators(tmp_path: Path) -> None:
    """Simulators that listen before mosaik connects work in the same way."""
    source, controller = simulators.Source(), simulators.Controller()
    async with (
        served(source, tmp_path / "source") as source_config,
        served(controller, tmp_path / "controller") as controller_config,
    ):
        results, _ = await run_scenario({"Source": source_config, "Controller": controller_config})
        await asyncio.gather(source.was_stopped.wait(), controller.was_stopped.wait())
    check_results(results)
    assert not check_wire(tmp_path / "source.server", tmp_path / "source.client", Counter())
    callbacks = scaled(CALLBACKS, STEPS)
    assert not check_wire(tmp_path / "controller.server", tmp_path / "controller.client", callbacks)


async def test_a_failure_of_mosaik_reaches_the_simulator(tmp_path: Path) -> None:
    """What mosaik raises at a call of the simulator is a RemoteException there, and harms nothing."""
    results, _ = await run_scenario(
        {
            "Source": program("source", tmp_path / "source"),
            "Controller": program("controller", tmp_path / "controller"),
        },
        controller_params={"wrong_at": STEPS - 1},
    )
    assert results["controller"]["history"].pop() == ["RemoteException", "KeyError"]
    check_results(results)


@pytest.mark.parametrize(
    ("failure", "type_and_message", "place"),
    [
        ("plain", f"ValueError(the source has run dry at {STEPS - 1} – für immer)", "in run_dry"),
        ("later", f"ValueError(the source has run dry at {STEPS - 1} – für immer)", "in run_dry"),
        ("silent", "ValueError()", "in fail_silently"),
        ("no JSON", "aiomas_ng.SerializationError(", "set"),
        ("stream", "aiomas_ng.StreamError(", "streams its reply"),
    ],
)
async def test_mosaik_reports_a_failure_of_a_simulator(
    tmp_path: Path, failure: str, type_and_message: str, place: str
) -> None:
    """If a step fails, mosaik says which simulator it was, with type, message and traceback, and ends."""
    results, log = await run_scenario(
        {
            "Source": program("source", tmp_path / "source"),
            "Controller": program("controller", tmp_path / "controller"),
        },
        source_params={"fail_at": STEPS - 1, "failure": failure},
    )
    assert f"ERROR Simulator Source-0 aborted the simulation with error {type_and_message}" in log
    # Where no code of the simulator's failed, there is nothing to trace back.
    assert ("Traceback (most recent call last):\n" in log) == place.startswith("in ")
    assert place in log
    assert "finished successfully" not in log
    # The link is as good as before.
    assert len(results["source"]["history"]) == 2 * (STEPS - 1)
    (sent,) = check_wire(tmp_path / "source.client", tmp_path / "source.server", Counter())
    assert f"{sent[0]}({sent[1]})".startswith(type_and_message)
