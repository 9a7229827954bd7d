"""Waiting for what the tested code does in its own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

PAUSE = 0.001
"""Seconds between two looks: what crosses a socket needs more than turns of the loop."""


async def wait_until(is_reached: Callable[[], Any]) -> None:
    """Wait until a condition is true that no event tells of."""
    while not is_reached():  # noqa: ASYNC110  # the tested code has no event for it
        await asyncio.sleep(PAUSE)
