"""Calls and one-way messages over connections that break all the time: each arrives once, and in order.

    python -m tests.endurance.cuts [--messages 100000] [--cuts 1000] [--seed 1]
    python -m tests.endurance.cuts --containers 50 --messages 200 --blackholes

The first cuts the connections of two containers, that call each other, at random bytes. The second lets the
bytes between many containers vanish for random times, without a sign, until the pings find out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from aiomas_ng import Agent, Container, expose, faults, local_queue
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import AiomasError
from aiomas_ng.liveness import Liveness
from aiomas_ng.rpc import with_options

__all__ = ["Report", "run_blackholes", "run_cuts"]

#: Calls of one agent to another one that wait at the same time.
WINDOW = 200
#: Long enough for a network that is bad all the time.
PATIENT = Limits(grace_time=60.0, refusal_time=60.0)

_names = itertools.count()


class Peer(Agent):
    """Notes what it is sent, by sender, in order."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.received: dict[str, list[tuple[str, int]]] = {}

    def _note(self, sender: str, kind: str, number: int) -> None:
        self.received.setdefault(sender, []).append((kind, number))

    @expose
    def hello(self) -> None:
        pass

    @expose
    def call(self, sender: str, number: int) -> int:
        self._note(sender, "call", number)
        return number

    @expose
    def tell(self, sender: str, number: int) -> None:
        self._note(sender, "tell", number)


@dataclass
class Report:
    """What has happened."""

    seed: int
    messages: int = 0
    cuts: int = 0
    blackholes: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = "\n".join(self.problems) or "each message arrived once, and in order"
        return (
            f"seed {self.seed}: {self.messages} calls and one-way messages, {self.cuts} cuts, "
            f"{self.blackholes} blackholes, {self.seconds:.1f} s\n{what}"
        )


async def reach(container: Container, url: str) -> Any:
    """Return a proxy whose connection can be taken up again: attempts that break before that do not count."""
    while True:
        try:
            proxy = await container.connect(url, timeout=30)
            await proxy.hello()
        except AiomasError:
            await asyncio.sleep(0.01)
        else:
            return proxy


async def talk(sender: Peer, proxy: Any, count: int, report: Report) -> None:
    """Send *count* calls and as many one-way messages, in turn."""
    me = sender.addr
    tell = with_options(proxy.tell, oneway=True)
    waiting: list[asyncio.Future[Any]] = []

    async def settle() -> None:
        for number, result in enumerate(await asyncio.gather(*waiting, return_exceptions=True), first):
            if result != number:
                report.problems.append(f"call {number} of {me} ended with {result!r}")
        waiting.clear()

    first = 0
    for number in range(count):
        waiting.append(asyncio.ensure_future(proxy.call(me, number)))
        tell(me, number)
        if len(waiting) == WINDOW:
            await settle()
            first = number + 1
    await settle()
    await proxy.hello()  # what is one-way has arrived before


def check(sender: Peer, receiver: Peer, count: int, report: Report) -> None:
    """See whether all has arrived as it was sent."""
    received = receiver.received.get(sender.addr, [])
    report.messages += len(received)
    expected = [(kind, number) for number in range(count) for kind in ("call", "tell")]
    if received != expected:
        place = next(
            (i for i, (a, b) in enumerate(zip(received, expected, strict=False)) if a != b), len(received)
        )
        report.problems.append(
            f"{receiver.addr} got {len(received)} of {len(expected)} messages of {sender.addr}; "
            f"first wrong one at {place}: {received[place : place + 3]}"
        )


async def run_cuts(messages: int, cuts: int, seed: int, kind: str = "tcp") -> Report:
    """Let two containers call each other over a network that cuts.

    Args:
        messages: Calls, and as many one-way messages, in each direction.
        cuts: How often the connections are cut, about, and at least.
        seed: Of the network.
        kind: ``'tcp'`` or ``'local'``.
    """
    report = Report(seed)
    # Some 35 bytes for each message and 15 for each result.
    network = faults.Network(seed, cut_after=faults.Exponential(max(60, 150 * messages // cuts)))
    begin = time.perf_counter()
    a, b = [await create(kind, network) for _ in range(2)]
    try:
        ends = [Peer(a), Peer(b)]
        proxies = [await reach(a, ends[1].addr), await reach(b, ends[0].addr)]
        sent = 0
        while sent < messages or network.counts.get("cut", 0) < cuts:
            for end in ends:
                end.received.clear()
            count = min(messages, 5000)
            await asyncio.gather(
                *(talk(end, proxy, count, report) for end, proxy in zip(ends, proxies, strict=True))
            )
            sent += count
            for end, other in (ends, ends[::-1]):
                check(end, other, count, report)
            if report.problems:
                break
    finally:
        report.cuts = network.counts.get("cut", 0)
        report.seconds = time.perf_counter() - begin
        await asyncio.gather(a.shutdown(as_coro=True), b.shutdown(as_coro=True))
    return report


async def run_blackholes(
    containers: int, messages: int, seed: int, kind: str = "tcp", share: float = 0.1
) -> Report:
    """Let many containers call each other over a network that swallows bytes for a time.

    Args:
        containers: How many.
        messages: Calls, and as many one-way messages, of each container to each it talks to.
        seed: Of the network, and of who talks to whom.
        kind: ``'tcp'`` or ``'local'``.
        share: Of the pairs of containers, how many talk to each other.
    """
    report = Report(seed)
    rng = random.Random(seed)
    network = faults.Network(
        seed,
        blackhole_after=faults.Exponential(20_000),
        blackhole_for=(0.1, 1.5),
        cut_after=faults.Exponential(200_000),
        connect_time=1.0,
    )
    begin = time.perf_counter()
    homes = [
        await create(kind, network, liveness=Liveness(interval=0.2, patience=0.3, busy_patience=10))
        for _ in range(containers)
    ]
    try:
        peers = [Peer(home) for home in homes]
        pairs = [(a, b) for a, b in itertools.permutations(peers, 2) if rng.random() < share] or [
            (peers[0], peers[1])
        ]

        async def talk_to(a: Peer, b: Peer) -> None:
            await talk(a, await reach(a.container, b.addr), messages, report)

        await asyncio.gather(*(talk_to(a, b) for a, b in pairs))
        for a, b in pairs:
            check(a, b, messages, report)
    finally:
        report.cuts, report.blackholes = network.counts.get("cut", 0), network.counts.get("blackhole", 0)
        report.seconds = time.perf_counter() - begin
        network.heal()
        await asyncio.gather(*(home.shutdown(as_coro=True) for home in homes))
    return report


async def create(kind: str, network: faults.Network, **options: Any) -> Container:
    """Make a container in the network."""
    addr = ("127.0.0.1", 0) if kind == "tcp" else local_queue.get_queue(f"cuts-{next(_names)}")
    return await Container.create(addr, as_coro=True, limits=PATIENT, network=network, **options)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--containers", type=int, default=50)
    parser.add_argument("--blackholes", action="store_true")
    parser.add_argument("--kind", choices=["tcp", "local"], default="tcp")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a write to a transport that has just been cut
    if options.blackholes:
        run = run_blackholes(options.containers, options.messages, options.seed, options.kind)
    else:
        run = run_cuts(options.messages, options.cuts, options.seed, options.kind)
    report = asyncio.run(run)
    print(report)
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
