"""Two sides that call each other, nested and many at a time, at their limits: no call is left waiting."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import pytest

import aiomas_ng
from aiomas_ng import Agent, Container, expose, rpc
from aiomas_ng.channel import Limits
from aiomas_ng.error import NetworkError, ResponseWrappingError
from aiomas_ng.exceptions import OverloadError, RemoteException
from aiomas_ng.message import CONTENT
from aiomas_ng.resource import Resource

DEPTH = 4
COUNT = 120

TIGHT = {
    "calls": {"calls": 7},
    "requests": {"requests": 7},
    "inbox": {"requests": 3, "inbox_size": 200},
    "backlog": {"backlog": 1000, "inbox_size": 1000, "requests": 20},
    "container": {"container_calls": 10, "container_requests": 5, "container_size": 1000},
    "turn": {"turn": 1, "calls": 11, "requests": 9},
    "none": {},
}
"""Limits that are reached; the last ones are those by default."""


class Player(Agent):
    """Passes a call on to the other one until it has been passed on so often."""

    other: Any = None
    other_url = ""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.heard = 0
        self.site.add_resource(["play"], Play(self))

    @expose
    async def play(self, depth: int, load: bytes = b"") -> int:
        return 1 + await self.other.play(depth - 1, load) if depth else 0

    @expose
    def look(self) -> None:
        """Do nothing."""

    @expose
    def hear(self, depth: int) -> None:
        self.heard += 1
        if depth:
            rpc.with_options(self.other.hear, oneway=True)(depth - 1)

    @expose
    async def hear_slowly(self, depth: int) -> None:
        await asyncio.sleep(0)
        self.heard += 1
        if depth:
            await self.other.play(1)
            rpc.with_options(self.other.hear_slowly, oneway=True)(depth - 1)


class Play(Resource):
    """The same as a resource."""

    def __init__(self, player: Player) -> None:
        super().__init__()
        self.player = player

    async def render_post(self, request: Any) -> Any:
        depth = int(request.payload)
        if depth:
            await self.player.container.context.post(self.player.other_url, str(depth - 1))
        return aiomas_ng.Message(code=CONTENT, payload=request.payload)


async def open_players(transport: Any, **limits: Any) -> list[Player]:
    """Return two players in containers of their own, that know each other."""
    homes = [
        await Container.create(transport.address(), limits=Limits(**limits), as_coro=True) for _ in range(2)
    ]
    players = [Player(home) for home in homes]
    for player, other in zip(players, reversed(players), strict=True):
        player.other = await player.container.connect(other.addr)
        player.other_url = other.addr + "/play"
    return players


async def close(players: list[Player]) -> None:
    for player in players:
        await player.container.shutdown(as_coro=True)


def sort_outcomes(outcomes: list[Any], value: Any) -> collections.Counter[str]:
    """Count results and errors.

    Raises:
        AssertionError: There is another result, or an error that does not say that it is about overload.
    """
    counted: collections.Counter[str] = collections.Counter()
    for outcome in outcomes:
        if isinstance(outcome, RemoteException | OverloadError):
            # Of a call further on the traceback tells it.
            assert isinstance(outcome, OverloadError) or "OverloadError" in str(outcome), outcome
            counted["overload"] += 1
        else:
            assert outcome == value, outcome
            counted["result"] += 1
    return counted


@pytest.mark.parametrize("load", [0, 20_000])
@pytest.mark.parametrize("limits", TIGHT.values(), ids=TIGHT)
async def test_nested_calls(transport: Any, limits: dict[str, Any], load: int) -> None:
    """Calls that go back and forth, many at a time from both sides, end with their result or an error of
    overload; and then a single one has its result."""
    players = await open_players(transport, **limits)

    async def call(player: Player) -> Any:
        return await player.other.play(DEPTH, bytes(load))

    outcomes = await asyncio.gather(
        *(call(player) for _ in range(COUNT) for player in players), return_exceptions=True
    )
    counted = sort_outcomes(outcomes, DEPTH)
    if not limits:
        assert counted["result"] == 2 * COUNT
    for player in players:
        assert await asyncio.wait_for(call(player), 10) == DEPTH
        assert not any(client.channel._exchange.calls for client in player.container._connections)
        budget = player.container._connect_kwargs["budget"]
        assert (budget.waiting, budget.size) == (0, 0)
    await close(players)


@pytest.mark.parametrize("limits", [TIGHT["requests"], TIGHT["container"], TIGHT["turn"], {}], ids=str)
async def test_nested_resources(transport: Any, limits: dict[str, Any]) -> None:
    """The same for requests to resources, whose answer beyond the limit is 5.03."""
    players = await open_players(transport, **limits)

    async def post(player: Player, depth: int = 2) -> Any:
        return await player.container.context.post(player.other_url, str(depth))

    outcomes = await asyncio.gather(
        *(post(player) for _ in range(COUNT // 4) for player in players), return_exceptions=True
    )
    results = 0
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            assert limits
            assert isinstance(outcome, ResponseWrappingError | OverloadError), outcome
            assert not isinstance(outcome, NetworkError)
        else:
            assert outcome == b"2"
            results += 1
    assert limits or results == len(outcomes)
    for player in players:
        assert await asyncio.wait_for(post(player), 10) == b"2"
    await close(players)


@pytest.mark.parametrize("method", ["hear", "hear_slowly"])
async def test_oneway_calls_back_and_forth(transport: Any, method: str) -> None:
    """One-way messages that cause others, whose handlers wait for calls, end as well; beyond the limits some
    are dropped, but none is left."""
    players = await open_players(transport, requests=5, oneways=10, oneway_time=0.05, turn=8)
    for player in players:
        for _ in range(COUNT):
            rpc.with_options(getattr(player.other, method), oneway=True)(2)
    channels = [client.channel for player in players for client in player.container._connections]
    heard: list[int] = []
    async with asyncio.timeout(20):
        # What was sent before a call has arrived when its result has; it may have caused something else.
        while (
            any(c._running or c._oneways.jobs or c._inbox for c in channels)
            or len(heard) < 5
            or len(set(heard[-5:])) > 1
        ):
            for player in players:
                assert await player.other.look() is None
            heard.append(sum(player.heard for player in players))
    for player in players:
        assert player.heard > 5
        assert await asyncio.wait_for(player.other.play(DEPTH), 10) == DEPTH
    if method == "hear":
        assert [player.heard for player in players] == [3 * COUNT] * 2
    await close(players)
