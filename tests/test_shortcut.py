"""Calls inside a container: by the short way they are what they are by the long one, except faster."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import types
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from aiomas_ng import Agent, Container, codecs, expose, rpc, state
from aiomas_ng._container.hooks import CURRENT_HOOK
from aiomas_ng._io.shortcut import MAX_IN_A_ROW
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import (
    CallTimeoutError,
    ClosedByUsError,
    FrameTooLargeError,
    OverloadError,
    RemoteCancelledError,
    RemoteException,
    RemoteLookupError,
    RemoteSerializationError,
    SerializationError,
)

HOST = ("127.0.0.1", 0)
VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


class OtherMsgPack(codecs.MsgPack):
    """The same messages; but as it has a method of its own, there is no short way for it."""

    # A copy, and not a call of the other one, which would be code of a user's in the tracebacks.
    encode = types.FunctionType(codecs.MsgPack.encode.__code__, vars(codecs), "encode")


@codecs.serializable
class Point:
    """A type of the user's."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


class Worker(Agent):
    """An agent with functions of every sort, that keeps what was called."""

    def __init__(self, container: Container, aid: str | None = None) -> None:
        super().__init__(container, aid=aid)
        self.log: list[Any] = []
        self.kept: Any = None
        self.event = asyncio.Event()
        self.working = 0
        self.cancelled = 0
        self.hook: Callable[[], Any] | None = None

    @state()
    def level(self) -> int:
        self.log.append("level")
        return len(self.log)

    @expose
    def note(self, value: Any) -> Any:
        self.log.append(value)
        return value

    @expose
    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @expose
    def keep(self, value: Any) -> None:
        self.kept = value

    @expose
    def get_kept(self) -> Any:
        return self.kept

    @expose
    def get_type(self, value: Any) -> str:
        return type(value).__name__

    @expose
    def later(self, value: Any, turns: int = 1) -> Coroutine[Any, Any, Any]:
        self.log.append(value)  # at the call; when it is begun is another matter

        async def wait() -> Any:
            for _ in range(turns):
                await asyncio.sleep(0)
            return value

        return wait()

    @expose
    async def wait(self) -> str:
        self.working += 1
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.working -= 1
        return "done"

    @expose
    def count(self, stop: int, value: Any = None) -> AsyncIterator[int]:
        self.log.append(value)

        async def run() -> AsyncIterator[int]:
            for number in range(stop):
                await asyncio.sleep(0)
                yield number

        return run()

    @expose
    def fail(self, value: Any = None) -> None:
        self.log.append(value)
        raise ValueError(f"bad {value}")

    @expose
    async def fail_later(self) -> None:
        await asyncio.sleep(0)
        raise KeyError("é")

    @expose
    def be_cancelled(self) -> None:
        raise asyncio.CancelledError

    @expose
    def tell(self, observer: Any, value: Any) -> Any:
        self.log.append(value)
        observer.note(value)
        return value

    @expose
    def run_hook(self) -> Any:
        assert self.hook is not None
        return self.hook()

    @expose
    async def run_hook_async(self) -> Any:
        assert self.hook is not None
        return self.hook()

    def hidden(self) -> None: ...


class Way:
    """A caller's container, the container of its peers, and whether they are the same."""

    def __init__(self, kind: str, home: Container, other: Container) -> None:
        self.kind = kind
        self.home = home
        self.other = other
        self.agent = Worker(other)

    async def connect(self, agent: Worker | None = None) -> rpc.Proxy:
        """Return a proxy of an agent, by default of the one that is there; it has the way it should have."""
        proxy = await self.home.connect((agent or self.agent).addr)
        assert (proxy._link.channel._shortcut is not None) == (self.kind == "short")
        # From here on both ends know each other, on whichever way.
        assert await proxy.get_type(1) == "int"
        return proxy


@contextlib.asynccontextmanager
async def open_way(kind: str, **kwds: Any) -> AsyncIterator[Way]:
    """Open one of the ways: ``'short'``, ``'long'`` in one container, ``'far'`` to another one over TCP."""
    codec = codecs.MsgPack if kind != "long" else OtherMsgPack
    made = [
        await Container.create(
            HOST, codec=codec, extra_serializers=[Point.__serializer__], as_coro=True, **kwds
        )
        for _ in range(2 if kind == "far" else 1)
    ]
    try:
        yield Way(kind, made[0], made[-1])
    finally:
        for container in made:
            await container.shutdown(as_coro=True)


WAYS = ("short", "long", "far")


@pytest.fixture(params=WAYS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every way in turn: what holds for one must hold for all."""
    result: str = request.param
    return result


# -- Order -----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["await", "start", "create_task"]),
        st.sampled_from(["note", "later", "fail", "count", "unknown", "unencodable", "add_done_callback"]),
    )
    | st.tuples(st.just("await"), st.sampled_from(["level", "batch", "gather", "many", "finish"]))
    | st.tuples(st.just("start"), st.sampled_from(["oneway", "bad argument", "cancel"]))
    | st.tuples(st.just("yield"), st.integers(0, 3).map(str)),
    max_size=25,
)


async def run_program(kind: str, steps: list[tuple[str, str]], is_told: bool) -> tuple[list[Any], list[Any]]:
    """Run a program of one caller; return what was called, in order, and what the caller got."""
    outcomes: list[Any] = []
    waiting: list[Any] = []
    async with open_way(kind) as way:
        proxy = await way.connect()
        observer = Worker(way.home)

        async def get(reply: Any, name: str, number: int) -> None:
            try:
                if name == "count":
                    outcomes.append((number, [item async for item in reply]))
                else:
                    outcomes.append((number, await reply))
            except RemoteException as error:
                outcomes.append((number, type(error), error.path))

        def call(name: str, number: int) -> Any:
            if name == "count":
                return proxy.count(3, number)
            if name == "unknown":
                return proxy.unknown(number)
            if name == "unencodable":
                way.agent.hook = object
                return proxy.run_hook()
            if name == "add_done_callback":
                reply = proxy.note(number)
                reply.add_done_callback(lambda _: None)
                return reply
            return getattr(proxy, name)(number)

        for number, (how, what) in enumerate(steps):
            if how == "yield":
                for _ in range(int(what)):
                    await asyncio.sleep(0)
            elif what == "oneway":
                rpc.with_options(proxy.note, oneway=True)(number)
            elif what == "bad argument":
                with pytest.raises(SerializationError):
                    proxy.note(object())
            elif what == "cancel":
                reply = proxy.wait()
                reply.cancel()
            elif what == "level":
                outcomes.append((number, await way.home.context.get(way.agent.addr + "/level")))
            elif what == "batch":
                outcomes.append((number, await rpc.batch(partial(proxy.note, (number, n)) for n in range(3))))
            elif what == "gather":
                calls = [proxy.note((number, n)) for n in range(3)]
                outcomes.append((number, await asyncio.gather(*calls)))
            elif what == "many":
                for n in range(MAX_IN_A_ROW + 5):
                    assert await proxy.note((number, n)) == (number, n)
            elif what == "finish":
                for reply, name, index in waiting:
                    await get(reply, name, index)
                waiting.clear()
            elif how == "await":
                await get(call(what, number), what, number)
                if is_told:
                    await proxy.tell(observer, number)
                    outcomes.append((number, number in observer.log))
            elif how == "start":
                waiting.append((call(what, number), what, number))
            else:
                await asyncio.create_task(get(call(what, number), what, number))
        for reply, name, index in waiting:
            await get(reply, name, index)
        await proxy.note("end")
        return way.agent.log, outcomes


@pytest.mark.parametrize("is_told", [False, True])
@given(steps=STEPS)
@settings(max_examples=40)
async def test_a_program_runs_the_same_on_every_way(is_told: bool, steps: list[tuple[str, str]]) -> None:
    """Whatever one caller does, in whichever order it awaits: the functions are called in the same order, and
    it gets the same, with the short way and without."""
    assert await run_program("short", steps, is_told) == await run_program("long", steps, is_told)


@given(steps=STEPS)
@settings(max_examples=10)
async def test_a_program_runs_as_over_a_socket(steps: list[tuple[str, str]]) -> None:
    """The same holds in comparison with another container."""
    assert await run_program("short", steps, False) == await run_program("far", steps, False)


async def test_calls_messages_and_resources_stay_in_order(kind: str) -> None:
    """A call that nobody waits for yet goes before all that is sent after it, in whichever way."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        oneway = rpc.with_options(proxy.note, oneway=True)
        replies = [proxy.note(1)]
        oneway(2)
        replies.append(proxy.note(3))
        await way.home.context.get(way.agent.addr + "/level")
        replies.append(proxy.note(4))
        assert await rpc.batch([partial(proxy.note, 5), partial(proxy.note, 6)]) == [5, 6]
        replies.append(proxy.later(7))
        assert [item async for item in proxy.count(2, 8)] == [0, 1]
        replies.append(rpc.with_options(proxy.note, timeout=20)(9))
        assert await proxy.note(10) == 10
        assert await asyncio.gather(*replies) == [1, 3, 4, 7, 9]
        assert way.agent.log == [1, 2, 3, "level", 4, 5, 6, 7, 8, 9, 10]


async def test_a_call_of_a_handler_goes_before_those_of_its_caller_afterwards(kind: str) -> None:
    """What a plain function calls without waiting is called before what its caller calls next."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        third = Worker(way.other)
        from_home, from_other = await way.connect(third), await way.other.connect(third.addr)
        if kind == "far":
            return  # two connections: no order between them
        way.agent.hook = lambda: from_other.note("handler") and None
        await proxy.run_hook()
        await from_home.note("caller")
        assert third.log == ["handler", "caller"]


async def test_what_a_handler_tells_its_caller_comes_before_the_result(kind: str) -> None:
    """A function calls its caller back and returns: the caller has been told before it has the result."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        observer = Worker(way.home)
        for number in range(3):
            await proxy.tell(observer, number)
            assert observer.log == list(range(number + 1))


async def test_what_was_told_before_comes_before_a_result(kind: str) -> None:
    """What was sent to the caller's side before its call is there before the result."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        observer = Worker(way.home)
        await proxy.keep(observer)
        for number in range(3):
            way.agent.kept.note(number)
            await proxy.get_type(1)
            assert observer.log == list(range(number + 1))


async def test_a_caller_is_not_called_back_before_it_waits(kind: str) -> None:
    """Between a call and its await nothing of the caller's is run by others: the function may call back, but
    runs later."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        steps: list[str] = []
        way.agent.hook = lambda: steps.append("handler")
        reply = proxy.run_hook()
        steps.append("caller")
        await reply
        assert steps == ["caller", "handler"]


async def test_several_tasks(kind: str) -> None:
    """Each of many tasks has its own results, and its calls in order."""
    async with open_way(kind) as way:
        agents = [Worker(way.other) for _ in range(5)]
        proxies = [await way.connect(agent) for agent in agents]

        async def work(task: int) -> None:
            for number in range(30):
                proxy = proxies[(task + number) % 5]
                call = proxy.later if number % 4 == 0 else proxy.note
                assert await call((task, number)) == (task, number)
                if number % 7 == 0:
                    await asyncio.sleep(0)

        await asyncio.gather(*map(work, range(10)))
        for agent in agents:
            for task in range(10):
                numbers = [number for by, number in agent.log if by == task]
                assert numbers == sorted(numbers)
        assert sum(len(agent.log) for agent in agents) == 300


# -- Values ----------------------------------------------------------------------------------------


async def test_values_are_copies(kind: str) -> None:
    """What is passed or returned is another object; what the caller changes after the call, or the callee
    after its return, is not seen by the other."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        value = {"a": [1, {"b": bytearray(b"x")}]}
        reply = proxy.keep(value)
        value["a"].append(2)
        value["c"] = []
        await reply
        assert way.agent.kept == {"a": (1, {"b": b"x"})}
        got = await proxy.get_kept()
        assert got == way.agent.kept
        assert got is not way.agent.kept
        assert got["a"][1] is not way.agent.kept["a"][1]
        got["a"] = None
        assert way.agent.kept == {"a": (1, {"b": b"x"})}


class Number(int):
    """A subclass, which arrives as what it is of."""


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -(2**63),
        2**64 - 1,
        2**70,
        -(2**70),
        1.5,
        float("inf"),
        "",
        "ü€😀\0",
        b"",
        b"\xff" * 300,
        bytearray(b"x"),
        memoryview(b"abc"),
        [],
        (),
        [1, (2, [3])],
        {},
        {1: {(1, 2): [None]}, "x": b"y", None: 1.5},
        Number(5),
        Point(1, [2, Point(3, 2**80)]),
        {"points": [Point("ü", None)]},
        {1, 2},
        frozenset({"a"}),
        complex(1, 2),
        "x" * 100_000,
        list(range(1000)),
    ],
    ids=lambda value: repr(value)[:25],
)
async def test_values_are_what_the_codec_makes_of_them(value: Any) -> None:
    """An argument and a result arrive in the same type and value on every way, or with the same error."""

    async def pass_through(kind: str) -> Any:
        async with open_way(kind) as way:
            proxy = await way.connect()
            way.agent.hook = lambda: value
            outcomes: list[Any] = []
            for call in (
                lambda: proxy.echo(value, k=value),
                lambda: proxy.get_type(value),
                lambda: proxy.run_hook(),
            ):
                try:
                    outcomes.append(await call())
                except (SerializationError, RemoteException) as error:
                    outcomes.append(type(error))
            outcomes.append(repr(outcomes))
            assert await proxy.note(1) == 1
            return outcomes

    expected = await pass_through("long")
    assert await pass_through("short") == expected


@pytest.mark.needs("numpy")
async def test_arrays(kind: str) -> None:
    """Arrays and scalars of numpy arrive as such, and as copies."""
    import numpy as np

    async with open_way(kind) as way:
        proxy = await way.connect()
        array = np.arange(6, dtype=np.int16).reshape(2, 3)
        reply = proxy.keep(array)
        array[0, 0] = 100
        await reply
        assert way.agent.kept.dtype == np.int16
        assert way.agent.kept.tolist() == [[0, 1, 2], [3, 4, 5]]
        got = await proxy.get_kept()
        assert isinstance(got, np.ndarray)
        assert got.tolist() == way.agent.kept.tolist()
        assert not np.shares_memory(got, way.agent.kept)
        assert type((await proxy.echo(np.float32(1.5)))[0][0]) is np.float32


async def test_agents_as_values(kind: str) -> None:
    """Agents and proxies arrive as proxies, as arguments and as results, and can be called."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        mine = Worker(way.home)
        await proxy.keep([mine, proxy])
        first, second = way.agent.kept
        assert isinstance(first, rpc.Proxy)
        assert isinstance(second, rpc.Proxy)
        assert await asyncio.gather(first.note(1), second.note(2)) == [1, 2]
        way.agent.kept = way.agent
        got = await proxy.get_kept()
        assert isinstance(got, rpc.Proxy)
        assert got == proxy
        assert await got.note(3) == 3
        assert (mine.log, way.agent.log) == ([1], [2, 3])


@pytest.mark.parametrize("value", [object(), [object()], "\udc80", {"k": ["\udc80"]}, {1j: {object}}])
async def test_what_cannot_be_encoded(kind: str, value: Any) -> None:
    """As an argument it is an error of the call itself, as a result one of the callee; both name the
    culprit, and later calls are fine."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        with pytest.raises(SerializationError):
            proxy.note(value)
        with pytest.raises(SerializationError):
            proxy.echo(1, k=value)
        way.agent.hook = lambda: value
        for call in (proxy.run_hook, proxy.run_hook_async):
            with pytest.raises(RemoteSerializationError) as caught:
                await call()
            assert caught.value.method == call._path.rpartition("/")[2]
            with pytest.raises(RemoteSerializationError):
                await asyncio.gather(call())
        assert await proxy.note(1) == 1
        assert way.agent.log == [1]


async def test_what_contains_itself(kind: str) -> None:
    """Data without an end is refused, in both directions."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(SerializationError):
            proxy.note(loop)
        way.agent.hook = lambda: loop
        with pytest.raises(RemoteSerializationError):
            await proxy.run_hook()
        assert await proxy.note(1) == 1


async def test_what_cannot_be_decoded(kind: str) -> None:
    """A type whose deserializer fails at the other side is an error there for an argument, and of the caller
    for a result."""

    class Trap:
        pass

    def spring(_: Any) -> Any:
        raise ValueError("sprung")

    async with open_way(kind) as way:
        proxy = await way.connect()
        for client in (*way.home._connections, *(way.other._connections if kind == "far" else ())):
            client.channel.codec.add_serializer(Trap, lambda _: 1, spring, name="trap")
        for call in (lambda: proxy.note(Trap()), lambda: proxy.note([1, {"x": Trap()}])):
            with pytest.raises(RemoteSerializationError, match="sprung"):
                await call()
        way.agent.hook = Trap
        with pytest.raises(Exception, match="sprung") as caught:
            await proxy.run_hook()
        assert not isinstance(caught.value, RemoteException)
        assert await proxy.note(1) == 1
        assert way.agent.log == [1]


async def test_a_path_that_cannot_be_encoded(kind: str) -> None:
    """It is an error of that call, awaited or gathered, and harms no other one."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        async def attempt() -> None:
            with pytest.raises((SerializationError, RemoteLookupError)):
                await getattr(proxy, "\udc80")(1)

        await attempt()
        with pytest.raises((SerializationError, RemoteLookupError)):
            await asyncio.wait_for(getattr(proxy, "\udc80")(1), 1)
        with contextlib.suppress(SerializationError):
            getattr(proxy, "\udc80")(1).cancel()
        assert await asyncio.gather(proxy.note(1), proxy.note(2)) == [1, 2]


async def test_what_is_too_large(kind: str) -> None:
    """The limit of frames holds on every way, whether the call is awaited or gathered."""
    async with open_way(kind, limits=Limits(frame_size=5000)) as way:
        proxy = await way.connect()
        for data in (b"x" * 6000, ["x" * 6000], ["x" * 100] * 60):
            with pytest.raises(FrameTooLargeError):
                await proxy.note(data)
            with pytest.raises(FrameTooLargeError):
                await asyncio.gather(proxy.note(data))
            way.agent.hook = lambda data=data: data  # type: ignore[misc]
            with pytest.raises(RemoteSerializationError):
                await proxy.run_hook()
            with pytest.raises(RemoteSerializationError):
                await asyncio.gather(proxy.run_hook())
        assert await proxy.note(b"x" * 3000) == b"x" * 3000
        assert len(way.agent.log) == 1


# -- Fairness and bounds ---------------------------------------------------------------------------


async def test_a_caller_that_calls_on_and_on_lets_others_run(kind: str) -> None:
    """In a loop of nothing but calls, timers fire, and other tasks and callbacks have their turns."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        is_over = False
        turns = calls = 0
        loop = asyncio.get_running_loop()

        def end() -> None:
            nonlocal is_over
            is_over = True

        async def count_turns() -> None:
            nonlocal turns
            while not is_over:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count_turns())
        loop.call_later(0.1, end)
        while not is_over:
            await proxy.get_type(1)
            calls += 1
        await other
        assert turns > 3
        assert calls <= turns * 2 * MAX_IN_A_ROW


async def test_callers_share_the_turns() -> None:
    """Several tasks that do nothing but call get their share, and so do two containers."""
    async with open_way("short") as one, open_way("short") as two:
        counts = [0, 0, 0, 0]
        is_over = asyncio.Event()

        async def call(index: int, proxy: rpc.Proxy) -> None:
            while not is_over.is_set():
                await proxy.get_type(1)
                counts[index] += 1
                if counts[index] == 2000:
                    is_over.set()

        proxies = [await one.connect(), await one.connect(Worker(one.home)), await two.connect()]
        proxies.append(await two.connect())
        await asyncio.gather(*(call(index, proxy) for index, proxy in enumerate(proxies)))
        assert min(counts) >= 10, counts


async def test_the_short_way_is_taken() -> None:
    """Calls that are awaited at once are run without a message, as long as it is their turn."""
    async with open_way("short") as way:
        proxy = await way.connect()
        await asyncio.sleep(0)
        exchange = proxy._channel._exchange  # type: ignore[union-attr]
        before = exchange._next_id
        for number in range(MAX_IN_A_ROW):
            assert await proxy.note(number) == number
        assert exchange._next_id == before
        assert await proxy.note(1) == 1
        assert exchange._next_id == before + 1


async def test_the_limit_of_calls(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    """The limit of calls in flight holds for calls of async functions on every way; what is refused is not
    executed, and no coroutine is forgotten."""
    async with open_way(kind, limits=Limits(calls=2)) as way:
        proxy = await way.connect()
        replies = [proxy.wait(), proxy.wait()]
        await wait_until(lambda: way.agent.working == 2)
        with pytest.raises(OverloadError):
            await proxy.wait()
        with pytest.raises(OverloadError):
            await proxy.later("x")
        assert way.agent.working == 2
        assert way.agent.log == []
        way.agent.event.set()
        assert await asyncio.gather(*replies) == ["done", "done"]
        assert await proxy.note(1) == 1
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


# -- Errors ----------------------------------------------------------------------------------------

FAILURES: dict[str, Callable[[rpc.Proxy], Any]] = {
    "plain": lambda proxy: proxy.fail("é"),
    "async": lambda proxy: proxy.fail_later(),
    "cancelled": lambda proxy: proxy.be_cancelled(),
    "unknown": lambda proxy: proxy.unknown(1),
    "hidden": lambda proxy: proxy.hidden(),
    "too few arguments": lambda proxy: proxy.note(),
    "unknown argument": lambda proxy: proxy.note(1, b=2),
    "twice": lambda proxy: proxy.note(1, value=2),
    "too few arguments, async": lambda proxy: proxy.later(),
    "unencodable": lambda proxy: proxy.run_hook(),
    "unencodable, async": lambda proxy: proxy.run_hook_async(),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_an_error_is_the_same(name: str) -> None:
    """Type, message, path, origin and traceback of an error are the same on the short way and the long
    one."""

    async def get_errors(kind: str) -> list[Any]:
        async with open_way(kind) as way:
            proxy = await way.connect()
            way.agent.hook = lambda: [print]  # which no codec knows
            facts = []
            for is_awaited in (True, False):
                with pytest.raises(RemoteException) as caught:
                    await (FAILURES[name](proxy) if is_awaited else asyncio.gather(FAILURES[name](proxy)))
                error = caught.value
                facts.append(
                    (type(error), error.type_name, error.message, error.path, error.remote_traceback)
                )
                assert error.origin == proxy._channel.get_extra_info("peername")  # type: ignore[union-attr]
                assert error.agent == way.agent.addr.rpartition("/")[2]
            assert facts[0] == facts[1]
            assert await proxy.note(1) == 1
            return facts

    assert await get_errors("short") == await get_errors("long")


def test_a_system_exit_of_a_handler_ends_the_loop(asyncio_errors: list[str]) -> None:
    """``SystemExit`` in a function is answered as an error, and ends the loop, not the caller alone."""
    for kind in ("short", "long"):
        loop = asyncio.new_event_loop()
        seen: list[Any] = []

        async def main(kind: str = kind, seen: list[Any] = seen) -> None:
            async with open_way(kind) as way:
                proxy = await way.connect()

                def leave() -> None:
                    raise SystemExit(3)

                way.agent.hook = leave
                try:
                    await proxy.run_hook()
                except RemoteException as error:
                    seen.append(error.type_name)

        task = loop.create_task(main())
        with pytest.raises(SystemExit):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        assert seen == ["SystemExit"]
    assert asyncio_errors == []


async def test_an_error_that_nobody_retrieves(kind: str, asyncio_errors: list[str]) -> None:
    """The error of a call that was not awaited is reported by asyncio, as for any future, once."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        proxy.fail(1)
        await wait_until(lambda: way.agent.log)
        assert await proxy.note(2) == 2
    gc.collect()
    assert len(asyncio_errors) == 1
    assert "bad 1" in asyncio_errors[0]
    asyncio_errors.clear()


# -- What may be done with a reply -----------------------------------------------------------------


async def test_a_call_that_is_never_awaited_is_executed(kind: str) -> None:
    """Also if its reply is dropped at once, and nothing else is called."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        proxy.note(1)
        gc.collect()
        await wait_until(lambda: way.agent.log == [1])
        reply = proxy.note(2)
        await wait_until(lambda: reply.done())
        assert reply.result() == 2


async def test_cancelling_before_the_call_has_left(kind: str) -> None:
    """Then the function may have been run or not; who awaits it gets the cancellation, and later calls are
    fine."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        reply = proxy.note(1)
        assert reply.cancel()
        assert not reply.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reply
        waiting = proxy.wait()
        waiting.cancel()
        assert await proxy.note(2) == 2
        await wait_until(lambda: not way.agent.working)
        assert way.agent.log in ([2], [1, 2])
        assert not proxy._channel._exchange.calls  # type: ignore[union-attr]


async def test_cancelling_what_runs(kind: str) -> None:
    """The work of an async function is stopped, however it is waited for."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        async def call() -> None:
            await proxy.wait()

        for start in (call, lambda: asyncio.wait_for(proxy.wait(), 20), lambda: asyncio.gather(proxy.wait())):
            way.agent.cancelled = 0
            task = asyncio.ensure_future(start())
            await wait_until(lambda: way.agent.working)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await wait_until(lambda: way.agent.cancelled == 1)
        assert way.agent.working == 0
        assert await proxy.note(1) == 1


async def test_a_reply_that_is_cancelled_by_the_function_itself(kind: str) -> None:
    """A function that happens to make its caller give up, being in the same process, does not break
    anything."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        for hook_ends_with in ("a result", ValueError("an error")):
            replies: list[Any] = []

            def hook(replies: list[Any] = replies, end: Any = hook_ends_with) -> Any:
                replies[0].cancel()
                if isinstance(end, Exception):
                    raise end
                return end

            way.agent.hook = hook
            replies.append(proxy.run_hook())
            with pytest.raises(asyncio.CancelledError):
                await replies[0]
            assert await proxy.note(1) == 1


async def test_awaiting_twice_and_by_two(kind: str) -> None:
    """A reply can be awaited again, and by several tasks; the function is run once."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        async def get(reply: Any) -> Any:
            return await reply

        for name in ("note", "later"):
            way.agent.log.clear()
            reply = getattr(proxy, name)(1)
            assert [await reply, await reply] == [1, 1]
            reply = getattr(proxy, name)(2)
            assert await asyncio.gather(get(reply), get(reply), reply) == [2, 2, 2]
            assert way.agent.log == [1, 2]
        reply = proxy.fail(3)
        for _ in range(2):
            with pytest.raises(RemoteException):
                await reply
        assert way.agent.log == [1, 2, 3]


async def test_the_tools_of_asyncio(kind: str) -> None:
    """A reply is a future: for gather, wait, wait_for, shield, as_completed, tasks, groups and callbacks."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        async def call(value: Any) -> Any:
            return await proxy.note(value)

        assert await asyncio.gather(proxy.note(1), proxy.later(2), call(3)) == [1, 2, 3]
        assert await asyncio.wait_for(proxy.note(4), 20) == 4
        assert await asyncio.wait_for(call(5), 20) == 5
        assert await asyncio.shield(proxy.note(6)) == 6
        done, _ = await asyncio.wait([proxy.note(7), proxy.later(8)])
        assert sorted(reply.result() for reply in done) == [7, 8]
        assert sorted([await reply for reply in asyncio.as_completed([proxy.note(9), proxy.note(10)])]) == [
            9,
            10,
        ]
        assert await asyncio.create_task(call(11)) == 11
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call(value)) for value in (12, 13)]
        assert [task.result() for task in tasks] == [12, 13]
        values: list[Any] = []
        reply = proxy.note(14)
        reply.add_done_callback(lambda reply: values.append(reply.result()))
        assert await reply == 14
        await wait_until(lambda: values)
        reply = proxy.note(15)
        reply.add_done_callback(lambda reply: values.append(reply.result()))
        await wait_until(lambda: len(values) == 2)
        assert values == [14, 15]
        assert way.agent.log == list(range(1, 16))


async def test_a_task_that_was_cancelled_before_it_waits(kind: str) -> None:
    """A task that has cancelled itself ends as cancelled, and the connection is none the worse for it."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        async def run() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await proxy.note(1)
            await asyncio.sleep(0)

        task = asyncio.create_task(run())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await proxy.note(2) == 2


async def test_timeouts(kind: str) -> None:
    """They hold as anywhere: with options, wait_for, and timeout blocks; the work is stopped."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        with pytest.raises(CallTimeoutError):
            await rpc.with_options(proxy.wait, timeout=0.02)()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(proxy.wait(), 0.02)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await proxy.wait()
        await wait_until(lambda: way.agent.cancelled == 3)
        assert await rpc.with_options(proxy.note, timeout=20)(1) == 1
        assert not proxy._channel._exchange.calls  # type: ignore[union-attr]


async def test_streams(kind: str) -> None:
    """Async generators stream, to their end or until they are given up; awaiting gives the stream."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        assert [number async for number in proxy.count(200)] == list(range(200))
        stream = await proxy.count(5)
        assert [number async for number in stream] == list(range(5))
        async with contextlib.aclosing(proxy.count(10**9)) as endless:
            async for number in endless:
                if number == 100:
                    break
        await wait_until(lambda: not any(client.channel._running for client in way.other._connections))
        assert await proxy.note(1) == 1


# -- What the function sees ------------------------------------------------------------------------


async def test_the_context_of_the_caller_is_not_seen(kind: str) -> None:
    """Context variables of the caller are unknown to the function, plain or async, generator or not."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        VAR.set("the caller's")
        way.agent.hook = VAR.get
        for _ in range(2):
            assert await proxy.run_hook() == "unset"
            assert await proxy.run_hook_async() == "unset"
            assert await asyncio.gather(proxy.run_hook(), proxy.run_hook_async()) == ["unset"] * 2
            assert await rpc.batch([proxy.run_hook, proxy.run_hook_async]) == ["unset"] * 2

        async def generate() -> AsyncIterator[str]:
            yield VAR.get()

        way.agent.hook = generate
        assert [value async for value in proxy.run_hook()] == ["unset"]
        assert VAR.get() == "the caller's"


async def test_the_context_of_who_connects_is_not_seen(kind: str) -> None:
    """Whoever happens to be the first that connects leaves nothing of its context to the functions."""
    async with open_way(kind) as way:
        token = VAR.set("who connected first")
        proxy = await way.connect()
        VAR.reset(token)
        way.agent.hook = VAR.get
        seen = [await proxy.run_hook(), await proxy.run_hook_async(), await asyncio.gather(proxy.run_hook())]
        assert seen == ["unset", "unset", ["unset"]]


async def test_the_context_of_the_function_is_not_seen(kind: str) -> None:
    """Nor does the caller see what the function sets, while the function sees on every way what it has set
    before."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        way.agent.hook = lambda: VAR.set("the function's") and None
        await proxy.run_hook()
        assert VAR.get() == "unset"
        way.agent.hook = VAR.get
        seen = [await proxy.run_hook(), *await asyncio.gather(proxy.run_hook())]
        assert seen == ["the function's"] * 2


async def test_a_function_that_steps_a_coroutine_by_hand(kind: str) -> None:
    """A plain function may run a coroutine of its own as far as its first wait, as eager tasks do; a call in
    it is made, and is none of the function's own errors."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        to_itself = await way.other.connect(way.agent.addr)
        left: list[Any] = []

        def hook() -> str:
            async def nested() -> Any:
                return await to_itself.note("nested")

            coro = nested()
            try:
                coro.send(None)
            except StopIteration as end:
                return f"ended with {end.value}"
            left.append(coro)
            return "waits"

        way.agent.hook = hook
        assert await proxy.run_hook() in ("waits", "ended with nested")
        async with asyncio.timeout(1):
            await wait_until(lambda: way.agent.log == ["nested"])
        for coro in left:
            coro.close()


async def test_a_hook_that_calls_lets_an_async_function_shut_down(kind: str) -> None:
    """That a hook of an agent made the call is unknown to the function: it is none of the hook."""
    async with open_way(kind) as way:
        await way.connect()
        seen: list[Any] = []
        way.agent.hook = CURRENT_HOOK.get

        class Starter(Agent):
            async def on_ready(self) -> None:
                proxy = await self.container.connect(way.agent.addr)
                seen.append([await proxy.run_hook(), await proxy.run_hook_async()])

        Starter(way.home)
        await wait_until(lambda: seen)
        assert seen == [[None, None]]


# -- The end ---------------------------------------------------------------------------------------


async def test_a_call_that_waits_to_leave_at_shutdown(kind: str) -> None:
    """It is executed, or fails with an error that says that we closed; it does not hang."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        replies = [proxy.note(1), proxy.wait()]
        await way.home.shutdown(as_coro=True)
        outcomes = await asyncio.wait_for(asyncio.gather(*replies, return_exceptions=True), 5)
        assert isinstance(outcomes[1], ClosedByUsError)
        assert outcomes[0] == 1 or isinstance(outcomes[0], ClosedByUsError)


async def test_calls_after_the_shutdown(kind: str) -> None:
    """A container that was shut down makes no calls, not to its own agents either."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        assert await proxy.note(1) == 1
        await way.home.shutdown(as_coro=True)
        for _ in range(2):
            with pytest.raises(ClosedByUsError):
                await proxy.note(2)
        with pytest.raises(ClosedByUsError):
            await asyncio.gather(proxy.note(3))
        with pytest.raises(ClosedByUsError):
            await proxy.later(4)
        assert way.agent.log == [1]


async def test_a_connection_that_breaks_is_replaced(kind: str) -> None:
    """A proxy is as good as new when its connection was lost, for plain and for async functions."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        assert await proxy.note(1) == 1
        for number in (2, 4):
            lost = proxy._channel
            assert lost is not None
            lost._abort("for a test")
            assert await proxy.note(number) == number
            assert await proxy.later(number + 1) == number + 1
        assert way.agent.log == [1, 2, 3, 4, 5]


async def test_an_agent_that_goes_between_call_and_await(kind: str) -> None:
    """Its function is not run any more, and the error says that it is not there."""
    async with open_way(kind) as way:
        proxy = await way.connect()
        if kind == "far":
            return  # the request is under way
        reply = proxy.note(1)
        await way.other.remove_agent(way.agent)
        with pytest.raises(RemoteLookupError):
            await reply
        with pytest.raises(RemoteLookupError):
            await proxy.note(2)
        assert way.agent.log == []


async def test_a_function_that_removes_its_own_agent(kind: str) -> None:
    """It still returns its result; the calls after it fail."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        def leave() -> str:
            coro = way.other.remove_agent(way.agent)
            with contextlib.suppress(StopIteration):  # it has nothing to wait for
                coro.send(None)
            return "gone"

        way.agent.hook = leave
        assert await proxy.run_hook() == "gone"
        with pytest.raises(RemoteLookupError):
            await proxy.note(2)


async def test_a_function_that_shuts_its_container_down(kind: str) -> None:
    """The caller's call ends, and nothing hangs."""
    async with open_way(kind) as way:
        proxy = await way.connect()

        class Closer(Agent):
            @expose
            async def close(self) -> None:
                await self.container.shutdown(as_coro=True, grace=0)

        closer = await way.home.connect(Closer(way.other).addr)
        replies = [proxy.wait(), closer.close()]
        outcomes = await asyncio.wait_for(asyncio.gather(*replies, return_exceptions=True), 5)
        assert isinstance(outcomes[0], ConnectionError | RemoteCancelledError)
        assert outcomes[1] is None or isinstance(outcomes[1], ConnectionError)


class Noted:
    """Something whose serializer makes a call."""


async def test_a_serializer_that_calls() -> None:
    """A call that a serializer makes while another call is encoded is not lost, and goes first."""
    proxy: Any = None
    replies: list[Any] = []

    def serialize(_: Noted) -> int:
        replies.append(proxy.get_type("text"))
        return 1

    def serializer() -> tuple[Any, ...]:
        return Noted, serialize, lambda _: Noted()

    container = await Container.create(("127.0.0.1", 0), extra_serializers=[serializer], as_coro=True)
    try:
        proxy = await container.connect(Worker(container).addr)
        assert await proxy.get_type(1) == "int"
        async with asyncio.timeout(10):
            assert await proxy.get_type(Noted()) == "Noted"
            assert await asyncio.gather(*replies) == ["str"] * len(replies)
        assert replies
    finally:
        await container.shutdown(as_coro=True)
