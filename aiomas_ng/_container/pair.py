"""The connection of a container to itself."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

from aiomas_ng.channel import Channel

__all__ = ["join_pair"]


async def join_pair(
    pair: Coroutine[Any, Any, tuple[Channel, Channel]], loop: asyncio.AbstractEventLoop
) -> tuple[Channel, Channel]:
    """Return both ends of the channel that *pair* makes; cancelling it leaves none of them behind."""
    # What is called through it has nothing to do with who happens to connect first.
    task = loop.create_task(pair, context=contextvars.Context())
    try:
        return await task
    except asyncio.CancelledError:
        if task.done() and not task.cancelled() and task.exception() is None:
            for channel in task.result():  # it was there already
                channel._end_here()
        raise
