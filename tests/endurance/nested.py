"""Two sides that each call the other, nested, thousands of times, at their limits: nobody waits for ever.

    python -m tests.endurance.nested [--depth 10000] [--limit N] [--kind tcp]

Each call is answered only when the one that it makes in turn, back to the other side, is. Both sides begin at
the same time. With a limit below what is needed some calls fail, each with an error that says why.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import sys
import time
from typing import Any

from aiomas_ng import Agent, Container, expose, local_queue
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import OverloadError, RemoteException

__all__ = ["run"]

_names = itertools.count()


class Side(Agent):
    """Calls the other side as often as it is told."""

    other: Any

    @expose
    async def dig(self, depth: int) -> int:
        return 0 if depth == 0 else 1 + await self.other.dig(depth - 1)


async def run(
    depth: int, limits: Limits, kind: str = "tcp", seconds: float = 120.0
) -> collections.Counter[str]:
    """Let both sides call each other *depth* times nested.

    Returns:
        How many of the two outer calls ended how.

    Raises:
        TimeoutError: They did not end in time: that would be a deadlock.
    """
    homes = [
        await Container.create(
            ("127.0.0.1", 0) if kind == "tcp" else local_queue.get_queue(f"nested-{next(_names)}"),
            as_coro=True,
            limits=limits,
        )
        for _ in range(2)
    ]
    ends: collections.Counter[str] = collections.Counter()
    try:
        sides = [Side(home) for home in homes]
        for side, other in (sides, sides[::-1]):
            side.other = await side.container.connect(other.addr)
        async with asyncio.timeout(seconds):
            results = await asyncio.gather(*(side.other.dig(depth) for side in sides), return_exceptions=True)
            for result in results:
                if result == depth:
                    ends["result"] += 1
                elif isinstance(result, OverloadError | RemoteException) and "Overload" in repr(result):
                    ends["overload"] += 1
                else:
                    ends[f"{result!r:.200}"] += 1
            assert await sides[0].other.dig(3) == 3, "they go on to serve each other"
    finally:
        for home in homes:
            await home.shutdown(as_coro=True, grace=0)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=10_000)
    parser.add_argument("--limit", type=int, help="calls and requests of a connection")
    parser.add_argument("--kind", choices=["tcp", "local"], default="tcp")
    options = parser.parse_args()
    limit = options.limit or options.depth + 1  # each side makes half of the calls of both
    begin = time.perf_counter()
    ends = asyncio.run(run(options.depth, Limits(calls=limit, requests=limit), options.kind))
    print(f"{options.depth} deep, limit {limit}: {dict(ends)}, {time.perf_counter() - begin:.1f} s")
    sys.exit(bool(ends.keys() - {"result", "overload"}))


if __name__ == "__main__":
    main()
