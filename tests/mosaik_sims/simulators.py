"""Two simulators for mosaik that are RPC services of aiomas_ng, and the program that mosaik starts for one.

The source has a power ``p`` that grows by one per step, up to a limit. The controller reads it and, calling
mosaik back from within its own step, sets that limit.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from wire_tap import Tap

from aiomas_ng import JSON, expose, rpc


class Simulator:
    """What both have in common; ``mosaik`` must be set before ``step`` is called."""

    router = rpc.Service()
    model: str
    attrs: tuple[str, ...]

    def __init__(self) -> None:
        self.mosaik: rpc.Proxy | None = None
        self.sid = ""
        self.calls: list[str] = []
        self.history: list[Any] = []
        self.was_stopped = asyncio.Event()

    @expose
    def init(self, sid: str, time_resolution: float, **params: Any) -> dict[str, Any]:
        self.sid = sid
        self.params = params
        self.calls.append(f"init {sid} {time_resolution}")
        return {
            "api_version": "3.0",
            "type": "time-based",
            "models": {self.model: {"public": True, "params": ["start"], "attrs": list(self.attrs)}},
            "extra_methods": ["get_history"],
        }

    @expose
    def create(self, num: int, model: str, **params: Any) -> list[dict[str, Any]]:
        self.calls.append(f"create {num} {model}")
        self.eids = [f"{model.lower()}_{number}" for number in range(num)]
        self.values = dict.fromkeys(self.eids, params.get("start", 0))
        return [{"eid": eid, "type": model} for eid in self.eids]

    @expose
    def setup_done(self) -> None:
        self.calls.append("setup_done")

    @expose
    def get_history(self, *names: str, **options: Any) -> dict[str, Any]:
        """Extra method, by which the scenario looks into the simulator."""
        return {"calls": self.calls, "history": self.history, "names": list(names), "options": options}

    @expose
    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.was_stopped.set()


def run_dry(time: int) -> None:
    raise ValueError(f"the source has run dry at {time} – für immer")


def fail_silently(time: int) -> None:
    raise ValueError


async def fail_later(time: int) -> None:
    await asyncio.sleep(0)
    run_dry(time)


async def stream(time: int) -> AsyncIterator[int]:
    yield time + 1


FAILURES: dict[str, Callable[[int], Any]] = {
    "plain": run_dry,
    "silent": fail_silently,
    "later": fail_later,
    "no JSON": lambda time: {time},
    "stream": stream,
}


class Source(Simulator):
    """A plain simulator: mosaik calls it, and that is all.

    Its parameter ``fail_at`` makes a step fail; ``failure`` says how.
    """

    router = rpc.Service()
    model = "Source"
    attrs = ("p", "limit")

    @expose
    def step(self, time: int, inputs: dict[str, Any], max_advance: int) -> Any:
        if time == self.params.get("fail_at"):
            return FAILURES[self.params["failure"]](time)
        for eid in self.eids:
            limits = inputs.get(eid, {}).get("limit", {})
            self.history.append([time, eid, limits])
            self.values[eid] = min([self.values[eid] + 1, *limits.values()])
        return time + 1

    @expose
    def get_data(self, outputs: dict[str, list[str]]) -> dict[str, Any]:
        return {eid: {attr: self.values[eid] for attr in attrs} for eid, attrs in outputs.items()}


class Controller(Simulator):
    """Asks mosaik about everything during a step, and sends set points back."""

    router = rpc.Service()
    model = "Controller"
    attrs = ("p",)

    @expose
    async def step(self, time: int, inputs: dict[str, Any], max_advance: int) -> int:
        assert self.mosaik is not None
        mosaik, own_id = self.mosaik, f"{self.sid}.{self.eids[0]}"
        sources = sorted(inputs[self.eids[0]]["p"])
        # A call that is given up, and one whose answer nobody wants.
        mosaik.get_progress().cancel()
        rpc.with_options(mosaik.get_progress, oneway=True)()
        # Several at once: mosaik answers one after another.
        progress, related, all_entities = await asyncio.gather(
            mosaik.get_progress(), mosaik.get_related_entities(own_id), mosaik.get_related_entities()
        )
        by_list = await mosaik.get_related_entities([own_id, sources[0]])
        data = await mosaik.get_data({source: ["p"] for source in sources})
        answer = await mosaik.set_data({own_id: {source: {"limit": time + 1.5} for source in sources}})
        self.history.append(
            {
                "time": time,
                "inputs": inputs[self.eids[0]]["p"],
                "progress": progress,
                "related": related,
                "nodes": sorted(all_entities["nodes"]),
                "by_list": by_list,
                "data": data,
                "answer": answer,
            }
        )
        if time == self.params.get("wrong_at"):
            try:
                await mosaik.set_data({own_id: {"Nobody-0.nothing": {"limit": 1}}})
            except Exception as error:
                self.history.append([type(error).__name__, getattr(error, "type_name", None)])
        return time + 1

    @expose
    def get_data(self, outputs: dict[str, list[str]]) -> dict[str, Any]:
        return {eid: {attr: 0 for attr in attrs} for eid, attrs in outputs.items()}


KINDS: dict[str, type[Simulator]] = {"source": Source, "controller": Controller}


async def serve(simulator: Simulator, addr: str, record: Path) -> None:
    """Connect to mosaik through a recording relay, and end when mosaik ends the connection."""
    host, _, port = addr.rpartition(":")
    async with Tap((host, int(port)), record) as tap:
        client = await rpc.open_connection(tap.addr, rpc_service=simulator, codec=JSON, timeout=10)
        simulator.mosaik = client.remote
        assert client.service is not None
        await client.service
        await client.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("addr")
    parser.add_argument("record", type=Path)
    args = parser.parse_args()
    simulator = KINDS[args.kind]()
    asyncio.run(serve(simulator, args.addr, args.record))
    Path(f"{args.record}.end").write_text(f"stopped: {simulator.was_stopped.is_set()}")


if __name__ == "__main__":
    main()
