"""Counting of calls: whoever makes calls has a :class:`CallCounter` and makes all of them through it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any


class CallCounter:
    """Makes calls, and counts them.

    Connecting to an agent counts as well: it is one call, which asks the container at the other end whether
    there is such an agent.
    """

    def __init__(self) -> None:
        #: How many calls were made.
        self.count = 0

    async def one(self, call: Awaitable[Any]) -> Any:
        """Wait for a call and return its result."""
        self.count += 1
        return await call

    async def all(self, calls: Iterable[Awaitable[Any]]) -> list[Any]:
        """Wait for *calls* that are under way at the same time.

        Returns:
            The results in the order of *calls*, no matter in which order they arrived.
        """
        pending = list(calls)
        self.count += len(pending)
        return await asyncio.gather(*pending)
