"""The guard of the hot path: what one call costs, in counts and not in seconds.

Each test counts something for a call after a warm-up, both ends in one loop that is not in debug mode, and
compares it with a bound: what it is today, or that and some five per cent. A failure means that a change has
made *every* call more expensive. If that is worth it and cannot be avoided, the number is renewed:
``python -m tests.test_hot_path`` prints all numbers of the Python that it runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import pytest

import aiomas_ng
from aiomas_ng import channel as channels
from aiomas_ng import expose, local_queue, rpc, tuning
from aiomas_ng._io.answerer import Answerer
from aiomas_ng._io.caller import Caller
from aiomas_ng._io.local_transport import LocalQueueTransport
from aiomas_ng._io.writer import MAX_GATHERED, FrameWriter
from aiomas_ng.rpc import RpcClient

WARM_UP = 20
IN_FLIGHT = 256
MIB = 2**20
PACKAGE = os.path.dirname(aiomas_ng.__file__) + os.sep

TODAY = {
    ("in turn", "pair"): (87.0, 239.0),
    ("in turn", "local"): (87.0, 239.0),
    ("in turn", "tcp"): (59.0, 135.0),
    ("at once", "pair"): (18.1, 123.9),
    ("at once", "local"): (18.1, 123.9),
    ("at once", "tcp"): (18.1, 122.9),
    ("in turn", "resumable"): (61.0, 145.0),
    ("at once", "resumable"): (18.1, 123.1),
}
"""Functions of Python, and lines of the package, that are run for a call.

Python 3.11, 3.12 and 3.13 differ by less than one; only over TCP 3.13 has two functions less.
"""

SLACK = 1.05 if sys.version_info < (3, 14) else 1.25
"""What is allowed on top, more where nobody has measured yet."""


class Service:
    """What is called."""

    router = rpc.Service()

    def __init__(self) -> None:
        self.gate: asyncio.Future[None] | None = None

    @expose
    def echo(self, value: Any) -> Any:
        return value

    @expose
    async def wait(self, value: Any) -> Any:
        assert self.gate is not None
        await self.gate
        return value


@dataclass
class Counts:
    """What was counted while something ran."""

    tasks: int = 0
    futures: int = 0
    handles: int = 0
    timers: int = 0
    writes: int = 0
    functions: int = 0
    lines: int = 0


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def create_task(self, *args: Any, **kwargs: Any) -> Any:
        self.counts.tasks += 1
        return super().create_task(*args, **kwargs)

    def create_future(self) -> Any:
        self.counts.futures += 1
        return super().create_future()

    def call_soon(self, *args: Any, **kwargs: Any) -> Any:
        self.counts.handles += 1
        return super().call_soon(*args, **kwargs)

    def call_at(self, *args: Any, **kwargs: Any) -> Any:
        self.counts.timers += 1
        return super().call_at(*args, **kwargs)


@contextlib.contextmanager
def counted_writes(counts: Counts) -> Iterator[None]:
    """Count what is given to the transports of LocalQueue and asyncio."""
    from asyncio.selector_events import _SelectorSocketTransport

    classes: list[Any] = [LocalQueueTransport, _SelectorSocketTransport]
    originals = [cls.write for cls in classes]

    def counting(original: Any) -> Any:
        def write(self: Any, data: Any) -> None:
            counts.writes += 1
            original(self, data)

        return write

    for cls, original in zip(classes, originals, strict=True):
        cls.write = counting(original)
    try:
        yield
    finally:
        for cls, original in zip(classes, originals, strict=True):
            cls.write = original


@contextlib.asynccontextmanager
async def open_ends(way: str, service: Any) -> AsyncIterator[tuple[RpcClient, RpcClient]]:
    """Give two ends of a connection, the first of which calls the service of the other."""
    loop = asyncio.get_running_loop()
    if way == "pair":
        near, far = await channels.open_pair("pair", loop=loop)
        ends = RpcClient(near), RpcClient(far, rpc_service=service)
    else:
        accepted: asyncio.Future[RpcClient] = loop.create_future()
        address: Any = local_queue.LocalQueue("hot") if way == "local" else ("127.0.0.1", 0)
        resumable = way == "resumable"
        server = await rpc.start_server(
            address, service, client_connected_cb=accepted.set_result, resumable=resumable
        )
        client = await rpc.open_connection(address if way == "local" else server.url, resumable=resumable)
        ends = client, await accepted
        server.close()
        await server.wait_closed()
    try:
        yield ends
    finally:
        for end in ends:
            await end.close()


WAYS = ["pair", "local", "tcp", "resumable"]


def measure(
    way: str, work: Callable[[Any, Counts, Service], Any], loop_factory: Any = CountingLoop
) -> tuple[Any, Counts]:
    """Run *work* with a proxy of the service, after a warm-up, in a loop that is not in debug mode."""

    async def run() -> Any:
        service = Service()
        counts: Counts = getattr(asyncio.get_running_loop(), "counts", Counts())
        with counted_writes(counts):
            async with open_ends(way, service) as (client, _):
                for _ in range(WARM_UP):
                    await client.remote.echo(1)
                await asyncio.gather(*[client.remote.echo(1) for _ in range(IN_FLIGHT)])
                await client.remote.echo(1)
                for name in vars(counts):
                    setattr(counts, name, 0)
                return await work(client.remote, counts, service), counts

    was_enabled, tracer = gc.isenabled(), sys.gettrace()
    gc.disable()  # it would run the finalizers of others in between
    sys.settrace(None)  # that of coverage takes memory for each frame
    try:
        with asyncio.Runner(debug=False, loop_factory=loop_factory) as runner:
            result: tuple[Any, Counts] = runner.run(run())
            return result
    finally:
        sys.settrace(tracer)
        if was_enabled:
            gc.enable()


async def call_in_turn(remote: Any, count: int) -> None:
    """Make *count* calls one after the other."""
    echo = remote.echo
    for n in range(count):
        assert await echo(n) == n


async def call_at_once(remote: Any, count: int) -> None:
    """Make *count* calls at once; await them without what ``gather`` adds."""
    echo = remote.echo
    replies = [echo(n) for n in range(count)]
    for n, reply in enumerate(replies):
        assert await reply == n


async def count_of(remote: Any, counts: Counts, call: Any, count: int) -> Counts:
    """Return what *count* calls cost, without what there is only once."""
    await call(remote, count)
    result = Counts(**vars(counts))
    for name in vars(counts):
        setattr(counts, name, 0)
    return result


def counts_per_call(way: str, call: Any, count: int) -> Counts:
    """Return what one call costs."""

    async def work(remote: Any, counts: Counts, service: Service) -> Counts:
        return await count_of(remote, counts, call, count)

    result, _ = measure(way, work)
    return Counts(**{name: value / count for name, value in vars(result).items()})


def trace_calls(call: Any, way: str, count: int) -> tuple[float, float]:
    """Return the functions written in Python, and the lines of the package, that one call runs.

    It is the difference of two runs, so that what happens once does not count.
    """
    functions = lines = 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal functions
        if event == "call":
            functions += 1

    ours: dict[CodeType, bool] = {}

    def trace_lines(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
        return trace_lines

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code not in ours:
            ours[code] = code.co_filename.startswith(PACKAGE)
        return trace_lines if ours[code] else None

    async def work(remote: Any, counts: Counts, service: Service) -> list[tuple[int, int]]:
        nonlocal functions, lines
        seen = []
        for size in (count, 2 * count):
            functions = lines = 0
            before = sys.getprofile()
            sys.setprofile(profile)
            try:
                await call(remote, size)
            finally:
                sys.setprofile(before)
            sys.settrace(trace)
            try:
                # Frames that exist already are not traced; all that matters are made for each call.
                await call(remote, size)
            finally:
                sys.settrace(None)
            seen.append((functions, lines))
        return seen

    (functions_1, lines_1), (functions_2, lines_2) = measure(way, work, asyncio.SelectorEventLoop)[0]
    return (functions_2 - functions_1) / count, (lines_2 - lines_1) / count


CALLS = {"in turn": (call_in_turn, 50), "at once": (call_at_once, IN_FLIGHT)}


def assert_below_today(kind: str, way: str, functions: float, lines: float) -> None:
    most_functions, most_lines = TODAY[kind, way]
    assert functions <= most_functions * SLACK, f"a call {kind} over {way}: {functions:.2f} functions"
    assert lines <= most_lines * SLACK, f"a call {kind} over {way}: {lines:.2f} lines"


# -- The guard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_one_call_after_the_other(way: str) -> None:
    """A call makes no task, one future (the reply, which is not made by the loop), two writes, and a handle
    for whoever waits, and for each delivery of LocalQueue.

    A failure: something is scheduled, or written, once more for each call. There is nothing to renew.
    """
    counts = counts_per_call(way, call_in_turn, 50)
    assert counts.tasks == 0
    assert counts.futures == 0
    assert counts.timers == 0
    assert counts.writes == 2
    assert counts.handles <= (1 if way in ("tcp", "resumable") else 3)


@pytest.mark.parametrize("way", WAYS)
def test_many_calls_at_once(way: str) -> None:
    """256 calls in flight make no tasks, no further futures, and one write for each 64 of them and way.

    A failure: something is scheduled for each call, or frames do not leave together. Renew the number of
    writes only if ``MAX_GATHERED`` has changed.
    """
    counts = counts_per_call(way, call_at_once, IN_FLIGHT)
    assert counts.tasks == 0
    assert counts.futures == 0
    assert counts.timers == 0
    assert counts.writes * IN_FLIGHT <= 2 * IN_FLIGHT / MAX_GATHERED + 4
    # The test itself waits for one reply after the other: most of them are there already.
    assert counts.handles * IN_FLIGHT <= 40


@pytest.mark.parametrize("way", WAYS)
def test_futures_in_flight(way: str) -> None:
    """While calls are in flight there is one future for each of them, on both sides together.

    A failure: something is waited for besides the reply. There is nothing to renew.
    """

    async def work(remote: Any, counts: Counts, service: Service) -> tuple[int, int]:
        def count() -> int:
            return sum(isinstance(obj, asyncio.Future) for obj in gc.get_objects())

        before = count()
        replies = [remote.echo(n) for n in range(IN_FLIGHT)]
        made = count() - before
        for reply in replies:
            await reply
        del replies, reply
        return made, count() - before

    (made, left), _ = measure(way, work)
    assert made == IN_FLIGHT
    assert left <= 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CALLS)
def test_work_in_python(kind: str, way: str) -> None:
    """A call runs so many functions of Python, in both ends and asyncio, and so many lines of the package.

    A failure: the way of a call has become longer. To renew the numbers, see the head of this file.
    """
    call, count = CALLS[kind]
    assert_below_today(kind, way, *trace_calls(call, way, count))


def test_work_in_python_is_counted_exactly() -> None:
    """The numbers are the same each time, or nobody could rely on them."""
    assert len({trace_calls(call_in_turn, "pair", 20) for _ in range(3)}) == 1
    assert len({trace_calls(call_at_once, "pair", IN_FLIGHT) for _ in range(3)}) == 1


@pytest.mark.parametrize("way", WAYS)
def test_memory_does_not_grow_with_calls(way: str) -> None:
    """After 2,000 more calls there are as many blocks of memory as before.

    A failure: something is kept for each call after its end. There is nothing to renew.
    """

    async def work(remote: Any, counts: Counts, service: Service) -> list[int]:
        blocks = []
        for _ in range(4):
            await call_in_turn(remote, 500)
            await call_at_once(remote, 500)
            gc.collect()
            blocks.append(sys.getallocatedblocks())
        return blocks

    blocks, _ = measure(way, work)
    assert blocks[-1] - blocks[1] < 200, blocks


def test_memory_of_a_call_in_flight_is_constant() -> None:
    """A call that a coroutine works on takes as much with 5,000 others as with 1,000: 1.7 kB.

    A failure: more is held for each call that waits, or something grows faster than their number. To renew
    the bytes, see the head of this file.
    """
    few, many = memory_in_flight(1000), memory_in_flight(5000)
    assert many <= 1.1 * few
    assert few <= 2000


def memory_in_flight(count: int) -> float:
    """Return the bytes that one call takes in both ends."""

    async def work(remote: Any, counts: Counts, service: Service) -> float:
        service.gate = asyncio.get_running_loop().create_future()
        wait = remote.wait
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            replies = [wait(n) for n in range(count)]
            while len(asyncio.all_tasks()) <= count:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0)
            size = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        service.gate.set_result(None)
        for n, reply in enumerate(replies):
            assert await reply == n
        return size / count

    return float(measure("pair", work, asyncio.SelectorEventLoop)[0])


LARGE_PEAKS = {"pair": 2.03, "local": 2.03, "tcp": 1.25, "resumable": 2.07}
"""Most MiB in use during a call with 1 MiB, besides the data itself and the buffer that is kept."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.skipif(not tuning.keep_freed_memory(), reason="no buffer is kept, so there is one more")
def test_copies_of_large_data(way: str) -> None:
    """Of 1 MiB that goes there and back there are hardly more copies at any time than what each side gets,
    and what lies between the two in a queue.

    A failure: there is a copy more. To renew the numbers, see the head of this file.
    """
    assert peak_of_large_call(way) <= LARGE_PEAKS[way] + 0.5


def peak_of_large_call(way: str) -> float:
    """Return the most memory that is in use during a call with 1 MiB, in MiB."""
    data = bytes(MIB)

    async def work(remote: Any, counts: Counts, service: Service) -> float:
        for _ in range(3):
            assert await remote.echo(data) == data
        tracemalloc.start()
        try:
            result = await remote.echo(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert result == data
        return peak / MIB

    return float(measure(way, work, asyncio.SelectorEventLoop)[0])


# -- The guard of the guard ------------------------------------------------------------------------


def with_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer each request from a task."""
    original = Answerer._settle

    def settle(self: Any, msg_id: Any, result: Any, path: Any) -> None:
        async def answer() -> None:
            original(self, msg_id, result, path)

        task = self._loop.create_task(answer())
        KEPT.add(task)
        task.add_done_callback(KEPT.discard)

    monkeypatch.setattr(Answerer, "_settle", settle)
    original_handle = RpcClient._handle

    def handle(self: Any, msg_id: Any, content: Any) -> None:
        async def run() -> None:
            original_handle(self, msg_id, content)

        task = self._channel._loop.create_task(run())
        KEPT.add(task)
        task.add_done_callback(KEPT.discard)

    # In the connections that are made from now on.
    monkeypatch.setattr(RpcClient, "_handle", handle)


def with_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one more future for each call."""
    original = Caller._request

    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        reply = original(self, *args, **kwargs)
        KEPT.add(asyncio.Future(loop=self._loop))
        self._loop.create_future()
        return reply

    monkeypatch.setattr(Caller, "_request", request)


def with_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loop call something for each call."""
    original = Caller._request

    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        reply = original(self, *args, **kwargs)
        for _ in range(3):
            reply.add_done_callback(lambda reply: None)
        return reply

    monkeypatch.setattr(Caller, "_request", request)


def with_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run some more functions for each call."""
    original = Caller._request

    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        for _ in range(5):
            repr(self._limits.has_small_frames)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Caller, "_request", request)


def with_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep something of each call for ever."""
    original = Caller._request

    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        KEPT.add(object())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Caller, "_request", request)


def with_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write header and payload one by one, and nothing together with anything else."""

    def write(self: Any, payload: bytes) -> None:
        self.transport.write(len(payload).to_bytes(4, "big"))
        self.transport.write(payload)

    monkeypatch.setattr(FrameWriter, "write", write)
    monkeypatch.setattr(FrameWriter, "write_now", write)


def with_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put large frames together before they are written, and hold one copy more."""

    def write_pieces(self: Any, pieces: Any) -> None:
        payload = b"".join(pieces)
        data = len(payload).to_bytes(4, "big") + payload
        self.flush()
        self._pass_on(bytes(bytearray(data)))

    monkeypatch.setattr(FrameWriter, "write_pieces", write_pieces)


KEPT: set[Any] = set()


@pytest.fixture
def kept() -> Iterator[None]:
    """What the modified paths keep, emptied at the end."""
    yield
    KEPT.clear()


@pytest.mark.parametrize(
    ("modify", "guard", "args"),
    [
        (with_task, test_one_call_after_the_other, ("pair",)),
        (with_task, test_many_calls_at_once, ("tcp",)),
        (with_future, test_one_call_after_the_other, ("pair",)),
        (with_future, test_many_calls_at_once, ("tcp",)),
        (with_future, test_futures_in_flight, ("pair",)),
        (with_callback, test_one_call_after_the_other, ("tcp",)),
        (with_callback, test_many_calls_at_once, ("pair",)),
        (with_lines, test_work_in_python, ("in turn", "pair")),
        (with_lines, test_work_in_python, ("at once", "tcp")),
        (with_leak, test_memory_does_not_grow_with_calls, ("pair",)),
        (with_write, test_one_call_after_the_other, ("pair",)),
        (with_write, test_many_calls_at_once, ("tcp",)),
        (with_copy, test_copies_of_large_data, ("pair",)),
        (with_copy, test_copies_of_large_data, ("tcp",)),
    ],
)
@pytest.mark.usefixtures("kept")
def test_guard_notices(
    modify: Callable[[pytest.MonkeyPatch], None],
    guard: Callable[..., None],
    args: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each guard fails if what it watches is made worse on purpose.

    A failure of this test: that guard has become blind. It has to be mended, not this test.
    """
    modify(monkeypatch)
    with pytest.raises(AssertionError):
        guard(*args)


if __name__ == "__main__":
    for way in WAYS:
        for kind, (call, count) in CALLS.items():
            functions, lines = trace_calls(call, way, count)
            print(f'    ("{kind}", "{way}"): ({functions:.2f}, {lines:.2f}),')
        print(f"# {way}, 1 MiB: {peak_of_large_call(way):.2f} MiB")
        print(f"# {way}: {counts_per_call(way, call_in_turn, 50)}")
        print(f"# {way}: {counts_per_call(way, call_at_once, IN_FLIGHT)}")
    print(f"# a call in flight: {memory_in_flight(1000):.0f}, {memory_in_flight(5000):.0f} bytes")
