"""What is measured: the loops around the operations of a contender, the same for all of them.

A loop is made of rounds of some calls each; between the rounds it looks at the clock. All that comes back is
compared with what was sent, so nobody is fast by being wrong; of large data a sample.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import random
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final, Literal, TypeVar

from benchmarks.contender import AGENTS, IN_FLIGHT, RECORD, Call, Operations

__all__ = ["WORKLOADS", "Sample", "Workload", "check", "measure", "measure_blocking", "repeat"]

T = TypeVar("T")

MIB: Final = 2**20
#: Calls of one round, where they are made one after the other.
SEQUENCE: Final = 64
#: Messages of one round, where they are not answered, and items of one stream.
MESSAGES: Final = 1_000
#: Agents that are made in one round.
POPULATION: Final = 10_000
#: The share of the time for which a workload is measured that it runs before, unmeasured.
WARM_UP: Final = 0.1
#: How long one-way messages may be on their way, in seconds.
PATIENCE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """How often something was done, and what it took, in seconds or bytes."""

    count: int
    amount: float


#: Does a round of the work, and returns how much that was.
AsyncRound = Callable[[], Awaitable[int]]
BlockingRound = Callable[[], int]


@dataclass(frozen=True)
class Workload:
    """A row of the table."""

    name: str
    title: str
    #: The operation that is measured; a contender without it is left out.
    operation: str
    #: What the figures are: calls per second and the like, or seconds or bytes for each.
    unit: Literal["calls/s", "MiB/s", "messages/s", "items/s", "notifications/s", "s", "bytes"]
    rounds: Callable[[Operations], AsyncRound] | None = None
    blocking_rounds: Callable[[Operations], BlockingRound] | None = None
    #: In place of rounds.
    alone: Callable[[Operations, float], Awaitable[Sample]] | None = None
    #: What one call counts for, in *unit*.
    factor: float = 1.0

    @property
    def more_is_better(self) -> bool:
        """Whether the figures are rates."""
        return self.unit not in ("s", "bytes")

    def can_be_done(self, operations: Operations, is_blocking: bool) -> bool:
        """Return whether a contender has what this needs."""
        is_made = self.blocking_rounds if is_blocking else self.rounds or self.alone
        return bool(getattr(operations, self.operation)) and is_made is not None

    def figure(self, sample: Sample) -> float:
        """Return the figure that the table shows for a sample, in :attr:`unit`."""
        if self.more_is_better:
            return self.factor * sample.count / sample.amount
        return sample.amount / sample.count


async def measure(workload: Workload, operations: Operations, seconds: float) -> Sample:
    """Do the work for some seconds, with operations that are awaited."""
    if workload.alone is not None:
        return await workload.alone(operations, seconds)
    if workload.rounds is None:
        raise NotImplementedError(f"{workload.name} is not made for asyncio")
    return await repeat(workload.rounds(operations), seconds)


async def repeat(do_round: AsyncRound, seconds: float) -> Sample:
    """Do rounds for some seconds, after some to warm up."""
    gc.collect()
    for time in (seconds * WARM_UP, seconds):
        count = 0
        start = now = perf_counter()
        while now < start + time:
            count += await do_round()
            now = perf_counter()
    return Sample(count, now - start)


def measure_blocking(workload: Workload, operations: Operations, seconds: float) -> Sample:
    """Do the work for some seconds, with operations that block."""
    if workload.blocking_rounds is None:
        raise NotImplementedError(f"{workload.name} is not made for blocking calls")
    do_round = workload.blocking_rounds(operations)
    gc.collect()
    for time in (seconds * WARM_UP, seconds):
        count = 0
        start = now = perf_counter()
        while now < start + time:
            count += do_round()
            now = perf_counter()
    return Sample(count, now - start)


def check(is_right: bool, what: str) -> None:
    """Raise :exc:`AssertionError` if what came back is not what was expected."""
    if not is_right:
        raise AssertionError(f"{what}: what came back is wrong")


def given(operation: T | None) -> T:
    """Return the operation, which is there: see :meth:`Workload.can_be_done`."""
    assert operation is not None
    return operation


# -- One call after the other ----------------------------------------------------------------------


def sequential(call: Call) -> AsyncRound:
    """Call with a small number, and wait for the result before the next call."""
    number = 0

    async def do_round() -> int:
        nonlocal number
        for _ in range(SEQUENCE):
            number += 1
            if await call(number) != number:
                check(False, "number")
        return SEQUENCE

    return do_round


def sequential_blocking(call: Call) -> BlockingRound:
    """Do as :func:`sequential`."""
    number = 0

    def do_round() -> int:
        nonlocal number
        for _ in range(SEQUENCE):
            number += 1
            if call(number) != number:
                check(False, "number")
        return SEQUENCE

    return do_round


def reading(operations: Operations) -> AsyncRound:
    """Read a resource, and wait for its state before the next time."""
    get = given(operations.get)

    async def do_round() -> int:
        for _ in range(SEQUENCE):
            check(await get() == RECORD, "state")
        return SEQUENCE

    return do_round


# -- Many calls at once ----------------------------------------------------------------------------


def make_records(operations: Operations) -> list[Any]:
    """Return as many different records as there are calls in flight."""
    return [operations.as_record({**RECORD, "id": number}) for number in range(IN_FLIGHT)]


def in_flight(operations: Operations, call: Call) -> AsyncRound:
    """Make many calls at once, wait for all, and again."""
    records = make_records(operations)

    async def do_round() -> int:
        check(await asyncio.gather(*map(call, records)) == records, "records")
        return IN_FLIGHT

    return do_round


def to_agents(operations: Operations) -> AsyncRound:
    """Do as :func:`in_flight`, with one agent after the other."""
    records = make_records(operations)
    agents = operations.agents
    check(len(agents) == AGENTS, "agents")
    ring = [*agents, *agents[:IN_FLIGHT]]  # so that every slice is long enough
    place = 0

    async def do_round() -> int:
        nonlocal place
        calls = ring[place : place + IN_FLIGHT]
        place = (place + IN_FLIGHT) % AGENTS
        replies = await asyncio.gather(*[call(record) for call, record in zip(calls, records, strict=True)])
        check(replies == records, "records")
        return IN_FLIGHT

    return do_round


def batches(operations: Operations) -> AsyncRound:
    """Hand over many calls at once, wait for all results, and again."""
    records = make_records(operations)
    batch = given(operations.batch)

    async def do_round() -> int:
        check(await batch(records) == records, "records")
        return IN_FLIGHT

    return do_round


def batches_blocking(operations: Operations) -> BlockingRound:
    """Do as :func:`batches`."""
    records = make_records(operations)
    batch = given(operations.batch)

    def do_round() -> int:
        check(batch(records) == records, "records")
        return IN_FLIGHT

    return do_round


def reading_many(operations: Operations) -> AsyncRound:
    """Read a resource many times at once, wait for all, and again."""
    get = given(operations.get)
    states = [dict(RECORD)] * IN_FLIGHT

    async def do_round() -> int:
        check(await asyncio.gather(*[get() for _ in states]) == states, "states")
        return IN_FLIGHT

    return do_round


# -- Large data ------------------------------------------------------------------------------------


def is_same_data(received: Any, sent: bytes) -> bool:
    """Return whether the two have the same length, and are equal at the ends and in the middle."""
    half = len(sent) // 2
    return len(received) == len(sent) and all(
        received[part] == sent[part] for part in (slice(0, 64), slice(half, half + 64), slice(-64, None))
    )


def large(operations: Operations, size: int, before: int = 0) -> AsyncRound:
    """Send bytes there and back; *before* that once so many."""
    call = given(operations.data)
    data = random.Random(size).randbytes(size)

    async def do_round() -> int:
        nonlocal before
        if before:
            check(len(await call(bytes(before))) == before, "data")
            before = 0
        check(is_same_data(await call(data), data), "data")
        return 1

    return do_round


def large_blocking(operations: Operations, size: int, before: int = 0) -> BlockingRound:
    """Do as :func:`large`."""
    call = given(operations.data)
    data = random.Random(size).randbytes(size)

    def do_round() -> int:
        nonlocal before
        if before:
            check(len(call(bytes(before))) == before, "data")
            before = 0
        check(is_same_data(call(data), data), "data")
        return 1

    return do_round


# -- Messages without an answer, streams, observations ---------------------------------------------


def one_way(operations: Operations) -> AsyncRound:
    """Send messages, and ask whether all have arrived."""
    post, arrived = given(operations.post), given(operations.arrived)

    async def do_round() -> int:
        expected = await arrived() + MESSAGES
        await post(MESSAGES)
        give_up = perf_counter() + PATIENCE
        while (number := await arrived()) < expected and perf_counter() < give_up:
            pass  # a library that keeps no order may answer too early
        check(number == expected, "messages")
        return MESSAGES

    return do_round


def one_way_blocking(operations: Operations) -> BlockingRound:
    """Do as :func:`one_way`."""
    post, arrived = given(operations.post), given(operations.arrived)

    def do_round() -> int:
        expected = arrived() + MESSAGES
        post(MESSAGES)
        give_up = perf_counter() + PATIENCE
        while (number := arrived()) < expected and perf_counter() < give_up:
            pass
        check(number == expected, "messages")
        return MESSAGES

    return do_round


def streams(operations: Operations) -> AsyncRound:
    """Read what the server streams."""
    stream = given(operations.stream)
    expected = list(range(MESSAGES))

    async def do_round() -> int:
        check([item async for item in stream(MESSAGES)] == expected, "items")
        return MESSAGES

    return do_round


def streams_blocking(operations: Operations) -> BlockingRound:
    """Do as :func:`streams`."""
    stream = given(operations.stream)
    expected = list(range(MESSAGES))

    def do_round() -> int:
        check(list(stream(MESSAGES)) == expected, "items")
        return MESSAGES

    return do_round


def notifications(operations: Operations) -> AsyncRound:
    """Change a state, and wait until all observers have seen it."""
    notify = given(operations.notify)

    async def do_round() -> int:
        return int(await notify())

    return do_round


# -- Containers and agents -------------------------------------------------------------------------


async def started(operations: Operations, seconds: float) -> Sample:
    """Start containers; their end is not counted."""
    container = given(operations.container)
    count, amount = -1, 0.0  # the first one loads what is loaded late
    end = perf_counter() + seconds
    while count < 1 or perf_counter() < end:
        start = perf_counter()
        async with container():
            amount = 0.0 if count < 0 else amount + perf_counter() - start
        count += 1
    return Sample(count, amount)


async def created(operations: Operations, seconds: float) -> Sample:
    """Make agents; the containers they are in, and their end, are not counted."""
    count, amount = 0, 0.0
    while not count or amount < seconds:
        async with given(operations.container)() as create:
            gc.collect()
            start = perf_counter()
            agents = await populate(create, POPULATION)
            amount += perf_counter() - start
            count += len(agents)
            del agents
    return Sample(count, amount)


async def remembered(operations: Operations, seconds: float) -> Sample:
    """Count the bytes that Python has in use for agents which have not done anything yet."""
    async with given(operations.container)() as create:
        first = await populate(create, 10)  # what is made once, for the first one, does not count
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            agents = await populate(create, POPULATION)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        after -= agents.__sizeof__()  # the list is ours
        count = len(agents)
        del agents, first
    return Sample(count, after - before)


async def populate(create: Callable[[int], Any], count: int) -> Sequence[Any]:
    """Make agents, with what may be a coroutine function or a plain one; let them become ready."""
    agents = create(count)
    agents = await agents if inspect.isawaitable(agents) else agents
    check(len(agents) == count, "agents")
    await asyncio.sleep(0)
    return agents  # type: ignore[no-any-return]  # it is Any, as of an unknown library


WORKLOADS: Final[dict[str, Workload]] = {
    workload.name: workload
    for workload in (
        Workload(
            "sequential",
            "one after the other, a number",
            "number",
            "calls/s",
            lambda operations: sequential(given(operations.number)),
            lambda operations: sequential_blocking(given(operations.number)),
        ),
        Workload(
            "in-flight",
            f"{IN_FLIGHT} in flight, a record",
            "record",
            "calls/s",
            lambda operations: in_flight(operations, given(operations.record)),
        ),
        Workload("batch", f"{IN_FLIGHT} handed over at once", "batch", "calls/s", batches, batches_blocking),
        Workload(
            "agents", f"{IN_FLIGHT} in flight, to {AGENTS} agents in turn", "agents", "calls/s", to_agents
        ),
        Workload(
            "1-mib",
            "1 MiB, there and back",
            "data",
            "MiB/s",
            partial(large, size=MIB),
            partial(large_blocking, size=MIB),
        ),
        # glibc keeps freed blocks from then on that it would have given back before.
        Workload(
            "1-mib-later",
            "1 MiB, after 16 MiB have passed once",
            "data",
            "MiB/s",
            partial(large, size=MIB, before=16 * MIB),
            partial(large_blocking, size=MIB, before=16 * MIB),
        ),
        Workload(
            "16-mib",
            "16 MiB, there and back",
            "data",
            "MiB/s",
            partial(large, size=16 * MIB),
            partial(large_blocking, size=16 * MIB),
            factor=16,
        ),
        Workload(
            "own-sequential",
            "within a container, one after the other",
            "own_number",
            "calls/s",
            lambda operations: sequential(given(operations.own_number)),
        ),
        Workload(
            "own-in-flight",
            f"within a container, {IN_FLIGHT} in flight",
            "own_record",
            "calls/s",
            lambda operations: in_flight(operations, given(operations.own_record)),
        ),
        Workload("one-way", "one-way messages", "post", "messages/s", one_way, one_way_blocking),
        Workload("stream", "streamed replies", "stream", "items/s", streams, streams_blocking),
        Workload("get", "GET of a resource, one after the other", "get", "calls/s", reading),
        Workload(
            "get-in-flight", f"GET of a resource, {IN_FLIGHT} in flight", "get", "calls/s", reading_many
        ),
        Workload("observers", "a state with 1000 observers", "notify", "notifications/s", notifications),
        Workload("start", "start of a container", "container", "s", alone=started),
        Workload("creation", "creation of an agent", "container", "s", alone=created),
        Workload("memory", "memory of an agent", "container", "bytes", alone=remembered),
    )
}
