"""Who gives up a call frees the work at every hop, and harms nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Transport
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from aiomas_ng import deadlines, rpc
from aiomas_ng.clocks import ExternalClock
from aiomas_ng.error import ResponseWrappingError
from aiomas_ng.exceptions import CallTimeoutError, ChannelClosedError, DeadlineExceededError, RemoteException
from tests.hops import KINDS, Row, open_row

MIXES = [
    ["call", "call", "call"],
    ["plain", "stream", "batch"],
    ["get", "call", "observe"],
    ["stream", "get", "call"],
    ["batch", "forward", "plain"],
    ["items", "batch", "stream"],
    ["forward", "items", "get"],
    ["observe", "plain", "items"],
]
"""How work is passed on: each way comes first, and each somewhere behind."""

ENDINGS = ["cancel", "wait_for", "deadline", "simulated deadline"]


async def reach_last(row: Row, count: int) -> None:
    """Wait until the last agent works on so much."""
    await wait_until(lambda: row.last.working == count)


async def until_nothing_is_left(row: Row) -> None:
    """Wait until no hop holds anything of a call, and say what does if it lasts."""
    try:
        async with asyncio.timeout(5):
            await wait_until(lambda: not row.find_left())
    except TimeoutError:
        pytest.fail("\n".join(row.find_left()))


async def give_up(row: Row, kinds: list[str], ending: str, clock: ExternalClock) -> None:
    """Begin work, and give it up in one of several ways when it has come to the last one."""
    before = row.last.working
    with contextlib.ExitStack() as stack:
        if ending == "simulated deadline":
            stack.enter_context(deadlines.within(60, clock=clock))
        if ending == "deadline":
            stack.enter_context(deadlines.within(0.15))
        task = asyncio.create_task(row.first.begin(kinds))
    if ending == "deadline":
        with pytest.raises(DeadlineExceededError):
            await task
        return
    await reach_last(row, before + 1)
    if ending == "simulated deadline":
        clock.set_time(clock.time() + 60)
        with pytest.raises(DeadlineExceededError):
            await task
    elif ending == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.001)
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("number", "ending"),
    [(number, ending) for number in range(len(MIXES)) for ending in (ENDINGS * 4)[number : number + 2]],
)
async def test_the_work_is_freed_at_every_hop(transport: Transport, number: int, ending: str) -> None:
    """After a caller has given up, each hop is cancelled and holds nothing any more; the same work once more,
    begun over the same connections before and after, is done."""
    kinds = MIXES[number]
    clock = ExternalClock("2026-01-01")
    async with open_row(transport, 4, clocks=[clock] * 5) as row:
        other = asyncio.create_task(row.first.begin(kinds))
        await reach_last(row, 1)
        connections = {client for container in row.containers for client in container._connections}
        await give_up(row, kinds, ending, clock)
        await wait_until(lambda: [hop.working for hop in row.hops] == [1] * 4)
        # The first one is not cancelled by a deadline: it gets the error. In real time, that may come before
        # the work has reached all of them.
        cancelled = [hop.cancelled for hop in row.hops[1:]]
        assert cancelled == [1] * 3 or ending == "deadline"
        late = asyncio.create_task(row.first.begin(kinds))
        await reach_last(row, 2)
        assert not other.done()
        row.gate.set()
        assert await other == await late == "done"
        await until_nothing_is_left(row)
        assert connections <= {client for container in row.containers for client in container._connections}
        assert [hop.cancelled for hop in row.hops[1:]] == cancelled


@settings(max_examples=20)
@given(
    works=st.lists(
        st.tuples(
            st.lists(st.sampled_from(KINDS), min_size=3, max_size=3), st.sampled_from(["cancel", "finish"])
        ),
        min_size=1,
        max_size=6,
    )
)
async def test_any_mix_of_ways(works: list[tuple[list[str], str]]) -> None:
    """Any works at the same time, of which any are given up: those are freed at each hop, and the others are
    done."""
    async with open_row(Transport("local", Path()), 4) as row:
        tasks = [asyncio.create_task(row.first.begin(kinds)) for kinds, _ in works]
        await reach_last(row, len(works))
        staying = [task for task, (_, ending) in zip(tasks, works, strict=True) if ending == "finish"]
        for task in tasks:
            if task not in staying:
                task.cancel()
        await wait_until(lambda: row.count_working() == [len(staying)] * 4)
        row.gate.set()
        assert await asyncio.gather(*staying) == ["done"] * len(staying)
        await until_nothing_is_left(row)
        assert [hop.cancelled for hop in row.hops] == [len(works) - len(staying)] * 4


@settings(max_examples=40)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=3, max_size=3), turns=st.integers(0, 60))
async def test_giving_up_at_any_point(kinds: list[str], turns: int) -> None:
    """Wherever on its way the work is when it is given up, nothing of it is left at any hop."""
    async with open_row(Transport("local", Path()), 4) as row:
        task = asyncio.create_task(row.first.begin(kinds))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await until_nothing_is_left(row)
        row.gate.set()
        assert await row.first.begin(kinds) == "done"
        await until_nothing_is_left(row)


@pytest.mark.parametrize("turns", range(12))
async def test_a_batch_given_up_before_its_coroutines_begin(turns: int) -> None:
    """At whichever turn of the loop a batch is given up, none of its coroutines is left over, and the calls
    that its plain functions have made are given up as well."""
    async with open_row(Transport("local", Path()), 3) as row:
        agent = row.first.next
        calls = [partial(agent.work, ["call"]), partial(agent.plain, ["plain"]), partial(agent.hand_on, [])]
        task = asyncio.create_task(rpc.batch(calls))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_nothing_is_left(row)


@pytest.mark.parametrize("kinds", MIXES, ids="-".join)
async def test_a_lost_connection_frees_what_lies_behind_it(transport: Transport, kinds: list[str]) -> None:
    """When the connection of the first hop breaks and cannot be taken up again, the work is given up at all
    hops behind it."""
    async with open_row(transport, 4, resumable=False) as row:
        task = asyncio.create_task(row.first.begin(kinds))
        await reach_last(row, 1)
        for client in list(row.containers[0]._connections):
            client.channel.transport.abort()
        if kinds[0] == "observe":
            await wait_until(lambda: row.last.cancelled == 1)  # it is begun anew by itself
            task.cancel()
        with pytest.raises((ChannelClosedError, ConnectionError, RemoteException, asyncio.CancelledError)):
            await task
        await until_nothing_is_left(row)
        assert row.last.cancelled >= 1


@pytest.mark.parametrize("kind", ["call", "plain", "batch", "get", "observe"])
async def test_a_timeout_of_one_call(transport: Transport, kind: str) -> None:
    """The timeout of a single call frees the work at all hops too, without a deadline."""
    async with open_row(transport, 4) as row:
        first, context = row.first, row.first.container.context
        url = row.hops[1].addr
        rest = ["call", "get"]
        waiting: dict[str, Any] = {
            "call": lambda: rpc.with_options(first.next.work, timeout=0.15)(rest),
            "plain": lambda: rpc.with_options(first.next.plain, timeout=0.15)(rest),
            "batch": lambda: rpc.batch([partial(first.next.work, rest)], timeout=0.15),
            "get": lambda: context.get(url + "/work?call&get", timeout=0.15),
            "observe": lambda: anext(context.observe(url + "/state?call&get", timeout=0.15)),
        }
        with pytest.raises(CallTimeoutError) as caught:
            await waiting[kind]()
        assert not isinstance(caught.value, DeadlineExceededError)
        await until_nothing_is_left(row)
        assert row.count_working() == [0] * 4


async def test_leaving_a_stream(transport: Transport) -> None:
    """Who leaves a stream in its midst frees what its producer waits for, hops away."""
    async with open_row(transport, 4) as row:
        async with contextlib.aclosing(row.first.next.stream(["stream", "get"])) as stream:
            async for item in stream:
                assert item == "first"
                await reach_last(row, 1)
                break
        await until_nothing_is_left(row)
        assert row.last.cancelled == 1


async def test_a_reply_that_is_dropped(transport: Transport) -> None:
    """A call whose reply nobody keeps is not given up: it is executed like one that is awaited."""
    async with open_row(transport, 4) as row:
        row.first.next.work(["call", "get"])
        await reach_last(row, 1)
        gc.collect()
        for _ in range(20):
            await asyncio.sleep(0)
        assert row.last.working == 1
        row.gate.set()
        await until_nothing_is_left(row)
        assert row.last.cancelled == 0


async def test_a_response_that_is_dropped(transport: Transport) -> None:
    """The same is true of a request to a resource."""
    async with open_row(transport, 4) as row:
        context = row.first.container.context
        task = asyncio.create_task(context.get(row.hops[1].addr + "/work?call&get"))
        await reach_last(row, 1)
        asyncio.shield(task).cancel()  # who waits for something that is shielded leaves it alone
        await asyncio.sleep(0)
        assert row.last.working == 1
        row.gate.set()
        assert await task == "done"
        await until_nothing_is_left(row)


async def test_cancelling_twice(transport: Transport) -> None:
    """Each hop is cancelled once, so that it can clean up, however often the caller gives up."""
    async with open_row(transport, 3) as row:
        is_cleaned_up = asyncio.Event()
        do = row.last.do

        async def do_and_clean_up() -> str:
            try:
                return await do()
            finally:
                await asyncio.sleep(0.02)
                is_cleaned_up.set()

        row.last.do = do_and_clean_up  # type: ignore[method-assign]
        with deadlines.within(0.2):
            reply: Any = row.first.next.work(["call"])
        await reach_last(row, 1)
        reply.cancel()
        assert not reply.cancel()
        await asyncio.sleep(0.25)  # the deadline passes as well
        await is_cleaned_up.wait()
        await until_nothing_is_left(row)
        assert row.last.cancelled == 1


async def test_work_that_does_not_end(transport: Transport) -> None:
    """A handler that goes on although it is cancelled holds up nobody: its late result is dropped."""
    async with open_row(transport, 3) as row:
        release = asyncio.Event()

        async def insist() -> str:
            with contextlib.suppress(asyncio.CancelledError):
                await row.gate.wait()
            await release.wait()
            return "late"

        row.last.do = insist  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceededError), deadlines.within(0.1):
            await row.first.next.work(["call"])
        assert row.hops[1].next is not None
        await wait_until(lambda: row.hops[1].working == 0)
        assert row.last.working == 1
        with pytest.raises(ResponseWrappingError):  # the connection and the agent go on
            await row.first.container.context.get(row.last.addr + "/nothing")
        release.set()
        await until_nothing_is_left(row)
