"""The endurance tests, small: they run as a part of the suite, and their long forms by ``python -m``."""

from __future__ import annotations

import pytest

from aiomas_ng.channel import Limits
from tests.endurance import cuts, killed, nested

KINDS = ["tcp", "local"]


@pytest.mark.parametrize("kind", KINDS)
async def test_connections_that_are_cut(kind: str) -> None:
    """Calls and one-way messages in both directions arrive once and in order, wherever the bytes are cut."""
    report = await cuts.run_cuts(400, 8, 1, kind)
    assert not report.problems
    assert report.cuts >= 8
    assert report.messages >= 4 * 400


@pytest.mark.parametrize("kind", KINDS)
async def test_blackholes_between_containers(kind: str) -> None:
    """The same between several containers whose bytes vanish for a while, without a sign."""
    report = await cuts.run_blackholes(4, 60, 3, kind, share=0.5)
    assert not report.problems


async def test_killed_container() -> None:
    """After ``kill -9`` each call ends in time with the right error, and after a restart all go on."""
    outcome = await killed.run(rounds=1, callers=2, in_flight=10)
    assert not outcome.problems
    assert outcome.restarts == outcome.notified == 1
    assert outcome.errors


@pytest.mark.parametrize("kind", KINDS)
async def test_nested_calls_at_the_limit(kind: str) -> None:
    """Two sides that call each other nested end with results at their limit, and with errors beyond it."""
    assert await nested.run(100, Limits(calls=101, requests=101), kind) == {"result": 2}
    assert await nested.run(100, Limits(calls=100, requests=100), kind) == {"overload": 2}
