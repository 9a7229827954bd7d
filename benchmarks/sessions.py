"""What it costs that a connection can be taken up again: calls with and without, in pairs, interleaved.

    python -m benchmarks.sessions [--rounds 40] [--uvloop]

Both ends run in one process, so the time of its processor is that of whole calls. A ratio of 0.95 means that
in the same time there are 0.95 times as many calls with sessions as without.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiomas_ng import expose, rpc

__all__ = ["run"]

IN_FLIGHT = 256
#: The least that a ratio may be.
LEAST = 0.9


class Service:
    """What is called."""

    router = rpc.Service()

    @expose
    def echo(self, value: Any) -> Any:
        return value


async def in_turn(echo: Any) -> int:
    """Make one call after the other; return how many."""
    for number in range(400):
        await echo(number)
    return 400


async def in_flight(echo: Any) -> int:
    """Make many calls at once; return how many."""
    for _ in range(12):
        await asyncio.gather(*(echo(number) for number in range(IN_FLIGHT)))
    return 12 * IN_FLIGHT


WORK: dict[str, Callable[[Any], Awaitable[int]]] = {"in turn": in_turn, f"{IN_FLIGHT} in flight": in_flight}


async def run(rounds: int) -> dict[str, tuple[float, float, float]]:
    """Measure.

    Returns:
        For each kind of work calls per second without sessions, with them, and the median of the ratios.
    """
    servers = [await rpc.start_server(("127.0.0.1", 0), Service(), resumable=on) for on in (False, True)]
    clients = [
        await rpc.open_connection(server.url, resumable=on)
        for server, on in zip(servers, (False, True), strict=True)
    ]
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in WORK}
    try:
        for number in range(rounds + 1):  # the first round is for warming up
            for on in (0, 1) if number % 2 else (1, 0):
                echo = clients[on].remote.echo
                for name, work in WORK.items():
                    begin = time.process_time()
                    count = await work(echo)
                    if number:
                        rates[name][on].append(count / (time.process_time() - begin))
    finally:
        for client in clients:
            await client.close()
        for server in servers:
            server.close()
    return {
        name: (
            statistics.median(without),
            statistics.median(with_),
            statistics.median(b / a for a, b in zip(without, with_, strict=True)),
        )
        for name, (without, with_) in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    factory = None
    if options.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        figures = runner.run(run(options.rounds))
    for name, (without, with_, ratio) in figures.items():
        print(f"{name:14}  without {without:9,.0f}/s  with {with_:9,.0f}/s  ratio {ratio:.2f}")
    sys.exit(any(ratio < LEAST for _, _, ratio in figures.values()))


if __name__ == "__main__":
    main()
