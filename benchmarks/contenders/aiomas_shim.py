"""Make aiomas 2.0, which is of 2017, run on the Python of today. Import :mod:`aiomas` from here.

Only what its modules see is changed, not asyncio itself: some functions of asyncio do not take ``loop`` any
more, and MsgPack's decoder no ``encoding``. Nothing of this is done per call but the one layer around the
decoder.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiomas
import msgpack

__all__ = ["aiomas"]


def without_loop(function: Any) -> Any:
    """Return *function*, or class, as one that ignores ``loop``."""

    def call(*args: Any, loop: Any = None, **kwds: Any) -> Any:
        return function(*args, **kwds)

    return call


def unpackb(data: Any, *, encoding: str, **kwds: Any) -> Any:
    """Decode; text is always UTF-8."""
    return msgpack.unpackb(data, **kwds)


old_asyncio = SimpleNamespace(**vars(asyncio))
for name in ("Queue", "gather", "sleep"):
    setattr(old_asyncio, name, without_loop(getattr(asyncio, name)))
for module in (aiomas.agent, aiomas.channel, aiomas.clocks, aiomas.local_queue, aiomas.rpc):
    module.asyncio = old_asyncio
aiomas.codecs.msgpack = SimpleNamespace(packb=msgpack.packb, unpackb=unpackb)
