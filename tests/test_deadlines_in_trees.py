"""Trees of nested calls with deadlines, in simulated time: each call ends exactly when it should.

A model computes when each call of a tree ends, and how. The tree is then executed by agents in several
containers, all of which go by one clock, and what has happened must be what the model says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aiomas_ng import Agent, Container, deadlines, expose, get_queue, rpc
from aiomas_ng.clocks import ExternalClock
from aiomas_ng.exceptions import DeadlineExceededError
from aiomas_ng.message import Message
from aiomas_ng.resource import Resource

CONTAINERS = 3
KINDS = ("call", "batch", "stream", "get", "timeout")
NEVER = float("inf")

#: Turns of the loop in which everything has settled that can, before time goes on.
TURNS = 150


@dataclass
class Node:
    """One call: it calls others, one after the other or all at once, and then works for some time."""

    kind: str
    place: int
    within: float | None
    work: float
    is_parallel: bool
    children: list[Node]
    number: int = -1
    start: float = NEVER
    end: float = NEVER
    outcome: str = "not begun"

    def walk(self) -> Iterator[Node]:
        """Yield this one and all below."""
        yield self
        for child in self.children:
            yield from child.walk()


def model(node: Node, start: float, deadline: float) -> float:
    """Set when the call of *node* begins and ends, and how; return when its caller goes on."""
    inner = min(deadline, start + (NEVER if node.within is None else node.within))
    node.start = now = start
    if node.is_parallel:
        now = max([model(child, start, inner) for child in node.children], default=start)
    else:
        for child in node.children:
            if now >= deadline:
                break
            if now < inner:
                now = model(child, now, inner)
    node.end = min(now + node.work, deadline)
    # At equal times the deadline counts, as it was there before.
    node.outcome = "cancelled" if node.end >= deadline else "done"
    return node.end


@dataclass
class Tree:
    """The nodes by number, and what has happened to them."""

    nodes: dict[int, Node]
    clock: ExternalClock
    events: dict[int, tuple[float, float, str]] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)


class Player(Agent):
    """Executes nodes."""

    def __init__(self, container: Container, tree: Tree) -> None:
        super().__init__(container, aid="player")
        self.tree = tree
        self.proxies: list[Any] = []
        self.site.add_resource("run", Run(self))

    @expose
    async def run(self, number: int) -> int:
        tree, clock = self.tree, self.container.clock
        node = tree.nodes[number]
        tree.begun[number] = start = clock.time()
        outcome = "cancelled"
        try:
            with deadlines.within(node.within, clock=clock):
                if node.is_parallel:
                    await asyncio.gather(*map(self.call, node.children))
                else:
                    for child in node.children:
                        await self.call(child)
            await clock.sleep(node.work)
            outcome = "done"
        finally:
            tree.events[number] = (start, clock.time(), outcome)
        return number

    @expose
    async def stream(self, number: int) -> Any:
        yield await self.run(number)

    async def call(self, node: Node) -> None:
        """Call the agent that executes *node*."""
        agent = self.proxies[node.place]
        with contextlib.suppress(DeadlineExceededError):
            if node.kind == "batch":
                result = (await rpc.batch([partial(agent.run, node.number)]))[0]
            elif node.kind == "stream":
                (result,) = [item async for item in agent.stream(node.number)]
            elif node.kind == "get":
                url = f"{agent._url}player/run?{node.number}"
                result = int(await self.container.context.get(url))
            elif node.kind == "timeout":
                result = await rpc.with_options(agent.run, timeout=3600)(node.number)
            else:
                result = await agent.run(node.number)
            assert result == node.number


class Run(Resource):
    """The same for requests."""

    def __init__(self, player: Player) -> None:
        self.player = player

    async def render_get(self, request: Message) -> Message:
        number = await self.player.run(int(request.opt.uri_query[0]))
        return Message(payload=str(number).encode(), content_format=0)


def nodes(children: st.SearchStrategy[list[Node]]) -> st.SearchStrategy[Node]:
    """Make a node, with these below it."""
    quarters = st.integers(1, 60).map(lambda number: number / 4)
    return st.builds(
        Node,
        kind=st.sampled_from(KINDS),
        place=st.integers(0, CONTAINERS - 1),
        within=st.none() | quarters,
        work=quarters,
        is_parallel=st.booleans(),
        children=children,
    )


trees = st.recursive(nodes(st.just([])), lambda inner: nodes(st.lists(inner, max_size=4)), max_leaves=12)


@settings(max_examples=int(os.environ.get("AIOMAS_NG_TREES", "25")))
@given(root=trees)
async def test_each_call_ends_by_its_deadline(root: Node) -> None:
    """Every call of any tree begins and ends when the model says, cancelled or done; those whose time was
    over before are not begun. In the end nobody holds anything: no call, no work, no timer."""
    clock = ExternalClock("2026-01-01")
    tree = Tree({}, clock)
    for number, node in enumerate(root.walk()):
        node.number = number
        tree.nodes[number] = node
        node.start = node.end = NEVER
        node.outcome = "not begun"
    model(root, 0.0, NEVER)
    async with contextlib.AsyncExitStack() as stack:
        players = []
        for _ in range(CONTAINERS):
            container = await Container.create(get_queue(uuid.uuid4().hex), clock=clock, as_coro=True)
            stack.push_async_callback(container.shutdown, as_coro=True)
            players.append(Player(container, tree))
        for player in players:
            player.proxies = [await player.container.connect(other.addr) for other in players]
        task = asyncio.create_task(players[0].call(root))
        while True:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            due = clock.next_due()
            if due is None:
                break
            clock.set_time(due)
        await task
        for number, node in tree.nodes.items():
            expected = (node.start, node.end, node.outcome) if node.outcome != "not begun" else None
            assert tree.events.get(number) == expected, node
        assert tree.begun.keys() == tree.events.keys()
        for player in players:
            for client in player.container._connections:
                channel = client.channel
                assert not channel._exchange.calls
                assert not channel._exchange.jobs
                assert not channel._running
                assert not channel._lane.outgoing
                assert not channel._lane.incoming
        await asyncio.sleep(0)
        assert clock.next_due() is None


if __name__ == "__main__":
    import subprocess
    import sys

    # A long run: python -m tests.test_deadlines_in_trees 5000
    env = {**os.environ, "AIOMAS_NG_TREES": sys.argv[1] if len(sys.argv) > 1 else "2000"}
    sys.exit(
        subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], env=env, check=False).returncode
    )
