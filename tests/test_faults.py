"""Bad networks, as programs use them: channels, RPC, containers and resources on every transport."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

import aiomas_ng
from aiomas_ng import ExternalClock, expose, faults, get_queue, local_queue, rpc
from aiomas_ng import channel as channels
from aiomas_ng.exceptions import CallTimeoutError, ChannelClosedError, ConnectError
from aiomas_ng.faults import Conditions, Network, Route
from aiomas_ng.resource import Site, WKCResource
from tests.conftest import Transport
from tests.faults import serve
from tests.waiting import wait_until

T = TypeVar("T")

TURNS = 50
"""Turns of the loop after which everything has happened that happens without a later time, but on sockets."""


async def drive(clock: ExternalClock, awaitable: Awaitable[T]) -> T:
    """Move a clock on, from one due time to the next, until something is done."""
    task = asyncio.ensure_future(awaitable)
    while True:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if task.done():
            return task.result()
        due = clock.next_due()
        if due is not None:
            clock.set_time(due)
        else:
            await asyncio.sleep(0.001)  # sockets take real time


@contextlib.asynccontextmanager
async def open_server(transport: Transport, **kwds: Any) -> AsyncIterator[channels.Server]:
    """Give a server that echoes, and closes what is left at the end."""
    server = await channels.start_server(
        transport.address(), lambda channel: serve(channel, lambda content: content), **kwds
    )
    try:
        yield server
    finally:
        server.close_clients()
        server.close()


class Agent(aiomas_ng.Agent):
    """Says what it is told, and tells others."""

    router = rpc.Service()

    def __init__(self, container: aiomas_ng.Container) -> None:
        super().__init__(container)
        self.calls = 0

    @expose
    def echo(self, value: Any) -> Any:
        self.calls += 1
        return value

    @expose
    async def pass_on(self, address: str, value: Any) -> Any:
        return await (await self.container.connect(address)).echo(value)


@contextlib.asynccontextmanager
async def open_containers(
    transport: Transport, count: int, network: Network, **kwds: Any
) -> AsyncIterator[list[Agent]]:
    """Give agents in containers of their own that share a network."""
    containers = [
        await aiomas_ng.Container.create(
            transport.address(),
            as_coro=True,
            network=network,
            **{"resumable": False, "liveness": None, **kwds},
        )
        for _ in range(count)
    ]
    try:
        yield [Agent(container) for container in containers]
    finally:
        network.close()
        for container in containers:
            await container.shutdown(as_coro=True)
        await wait_until(lambda: not network.connections)


def make_site() -> Site:
    """Return a site that lists its resources."""
    site = Site()
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    return site


# Time


async def test_delays_are_of_simulated_time(transport: Transport) -> None:
    """To connect takes one way there and back, and so does a call; not a moment more or less."""
    clock = ExternalClock(0)
    with Network(delay=10, clock=clock) as network:
        async with open_server(transport) as server:
            channel = await drive(clock, channels.open_connection(server.url, network=network))
            assert clock.time() == 20
            assert await drive(clock, channel.send("x")) == "x"
            assert clock.time() == 40
            await channel.close()
        assert [(event.what, event.time) for event in network.log] == [
            ("dial", 0),
            ("connect", 20),
            ("close", 40),
        ]


async def test_delays_are_of_real_time_by_default(transport: Transport) -> None:
    """Without a clock, seconds are seconds."""
    with Network(delay=0.02) as network:
        async with open_server(transport) as server:
            loop = asyncio.get_running_loop()
            begin = loop.time()
            channel = await channels.open_connection(server.url, network=network)
            await channel.send("x")
            assert loop.time() - begin >= 0.079
            assert network.log[0].time == 0
            await channel.close()


async def test_the_clock_of_asyncio_will_do(transport: Transport) -> None:
    """A container's usual clock can be given as well."""
    with Network(delay=0.002, clock=aiomas_ng.AsyncioClock()) as network:
        async with open_server(transport) as server:
            channel = await channels.open_connection(server.url, network=network)
            assert await channel.send(bytes(200_000)) == bytes(200_000)
            await channel.close()


async def test_connections_overtake_each_other(transport: Transport) -> None:
    """Each connection has its own delay; within one the order is kept, between them it is not."""
    clock = ExternalClock(0)
    order: list[tuple[int, int]] = []
    with Network(seed=3, delay=(1, 100), clock=clock) as network:
        server = await channels.start_server(
            transport.address(), lambda channel: serve(channel, lambda content: order.append(tuple(content)))
        )
        opened = [await drive(clock, channels.open_connection(server.url, network=network)) for _ in range(4)]
        calls = [channel.send([number, n]) for n in range(3) for number, channel in enumerate(opened)]
        await drive(clock, asyncio.gather(*calls))
        assert [number for number, _ in order] != sorted(number for number, _ in order)
        for number in range(4):
            assert [n for which, n in order if which == number] == [0, 1, 2]
        assert [number for number, n in order if n == 0] != [0, 1, 2, 3]
        for channel in opened:
            await channel.close()
        server.close_clients()
        server.close()


async def test_a_clock_that_jumps_keeps_the_order_of_times() -> None:
    """What was due earlier arrives earlier, also between connections, when time passes both at once."""
    clock = ExternalClock(0)
    order: list[Any] = []
    with Network(clock=clock) as network:
        server = await channels.start_server(get_queue("order"), lambda channel: serve(channel, order.append))
        near = [await channels.open_connection(server.url, network=network.at(name)) for name in "ab"]
        network.set("b", jitter=3)
        calls = []
        for t, jitter in enumerate([5, 1, 5]):
            if t:
                clock.set_time(t)
            network.set("a", jitter=jitter)
            calls += [near[0].send(("a", t)), near[1].send(("b", t))]
            await asyncio.sleep(0)
        clock.set_time(100)
        await drive(clock, asyncio.gather(*calls))
        assert [tuple(content) for content in order] == [
            ("b", 0),
            ("b", 1),
            ("a", 0),
            ("a", 1),
            ("b", 2),
            ("a", 2),
        ]
        for channel in near:
            await channel.close()
        server.close_clients()
        server.close()


# The same seed, the same run


async def run_study(seed: int, **conditions: Any) -> tuple[list[faults.Event], list[Any]]:
    """Let three containers talk over a bad network in simulated time; return its log and what they got."""
    local_queue.clear_queue_cache()
    clock = ExternalClock(0)
    network = Network(
        seed,
        delay=(0.01, 0.1),
        jitter=(0, 0.05),
        rate=20_000,
        cut_after=faults.Exponential(3000),
        refusals=0.1,
        clock=clock,
        is_tracing=True,
        **conditions,
    )
    containers = [
        await aiomas_ng.Container.create(
            get_queue(name), clock=clock, as_coro=True, network=network, resumable=False, liveness=None
        )
        for name in ("home", "away", "off")
    ]
    agents = [Agent(container) for container in containers]
    results: list[Any] = []

    async def talk(agent: Agent, other: Agent, number: int) -> None:
        try:
            value = await (await agent.container.connect(other.addr)).echo("x" * number)
            results.append((agent.addr, number, len(value)))
        except (ChannelClosedError, ConnectError) as error:
            results.append((agent.addr, number, type(error).__name__))

    rng = Random(seed)
    clock.call_at(0.5, network.partition, [agents[0].addr], [agents[1].addr])
    clock.call_at(1.5, network.heal)

    async def talk_all() -> None:
        for number in range(8):
            pairs = [rng.sample(agents, 2) for _ in range(3)]
            await asyncio.gather(*(talk(*pair, number * 80) for pair in pairs))

    await drive(clock, talk_all())
    network.close()
    for container in containers:
        await container.shutdown(as_coro=True)
    return network.log, results


async def test_the_same_seed_gives_the_same_log() -> None:
    """On a LocalQueue in simulated time two runs are the same, byte by byte; with other seeds not."""
    log, results = await run_study(1)
    again, results_again = await run_study(1)
    assert log == again
    assert results == results_again
    other, _ = await run_study(2)
    assert log != other
    whats = {event.what for event in log}
    assert {"dial", "connect", "out", "in", "cut", "partition", "heal", "refuse"} <= whats
    assert any(isinstance(result[2], str) for result in results)
    assert len(results) == 24


async def test_another_process_gives_the_same_log() -> None:
    """Nothing depends on addresses in memory or on the hashes of strings, which differ between processes."""
    script = "import asyncio; from tests.test_faults import run_study; print(asyncio.run(run_study(1)))"
    outputs = []
    for hash_seed in "12":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONASYNCIODEBUG": ""},
        )
        outputs.append(process.communicate())
    (first, _), (second, _) = await asyncio.gather(*outputs)
    assert first == second
    assert b"cut" in first


async def test_the_fate_of_a_connection_does_not_depend_on_others(transport: Transport) -> None:
    """What is drawn for the second connection of a route is the same, whatever the first has done."""

    async def draw_cut(calls: int) -> int:
        with Network(7, cut_after=(1000, 100_000)) as network:
            async with open_server(transport) as server:
                first = await channels.open_connection(server.url, network=network)
                for _ in range(calls):
                    await first.send("x")
                second = await channels.open_connection(server.url, network=network)
                line = network.connections[1]._out
                await first.close()
                await second.close()
                return int(line._cut_at)

    assert await draw_cut(0) == await draw_cut(5)


# Faults between places


async def test_a_partition_holds_calls_until_it_is_over(transport: Transport) -> None:
    """Calls across it wait, those within a part go on, and all succeed when it has healed."""
    network = Network()
    async with open_containers(transport, 3, network) as (a, b, c):
        to_b, to_c = await a.container.connect(b.addr), await a.container.connect(c.addr)
        with network.partition([a.addr, c.addr], [b.addr]) as outage:
            across, within = asyncio.ensure_future(to_b.echo(1)), asyncio.ensure_future(to_c.echo(2))
            assert await within == 2
            await asyncio.sleep(0.01)
            assert not across.done()
            assert not outage.is_over
            assert "going on" in repr(outage)
        assert outage.is_over
        assert "over" in repr(outage)
        assert await across == 1


async def test_a_lossy_partition_leaves_half_open_connections(transport: Transport) -> None:
    """Calls time out; afterwards the old connection breaks when it is used, and a new one does the work."""
    network = Network()
    async with open_containers(transport, 2, network) as (a, b):
        proxy = await a.container.connect(b.addr)
        assert await proxy.echo(1) == 1
        outage = network.partition([a.addr], lossy=True)
        with pytest.raises(CallTimeoutError):
            await rpc.with_options(proxy.echo, timeout=0.01)(2)
        outage.end()
        outage.end()
        with pytest.raises(ChannelClosedError):
            await proxy.echo(3)
        assert await proxy.echo(4) == 4
        assert network.counts["cut"] == 1
        assert network.counts["heal"] == 1


async def test_one_group_is_parted_from_all_others(transport: Transport) -> None:
    """Others reach each other, also those that were never named."""
    network = Network()
    async with open_containers(transport, 3, network) as (a, b, c):
        with network.partition([a.addr]):
            assert await b.pass_on(c.addr, 1) == 1
            with pytest.raises(ConnectError):
                await a.container.connect(b.addr, timeout=0.01)


async def test_two_outages_are_over_when_both_are(transport: Transport) -> None:
    """The worse one counts, and the end of one is not that of the other."""
    network = Network()
    async with open_containers(transport, 2, network) as (a, b):
        proxy = await a.container.connect(b.addr)
        first = network.hold(a.addr, b.addr)
        second = network.partition([a.addr], [b.addr])
        call = asyncio.ensure_future(proxy.echo(1))
        first.end()
        await asyncio.sleep(0.005)
        assert not call.done()
        second.end()
        assert await call == 1


async def test_dialling_into_a_blackhole_hangs(transport: Transport) -> None:
    """It is not refused: it ends by its timeout, or succeeds when packets pass again."""
    network = Network()
    async with open_containers(transport, 2, network) as (a, b):
        network.blackhole(a.addr, b.addr)
        with pytest.raises(ConnectError, match=r"within 0\.01"):
            await a.container.connect(b.addr, timeout=0.01)
        dialling = asyncio.ensure_future(a.container.connect(b.addr))
        await asyncio.sleep(0.005)
        assert not dialling.done()
        network.heal()
        assert await (await dialling).echo(1) == 1
        assert network.counts["hang"] == 2


async def test_dialling_a_channel_into_a_blackhole(transport: Transport) -> None:
    """The same without containers, where the connection has no name of its own."""
    with Network() as network:
        async with open_server(transport) as server:
            network.blackhole()
            with pytest.raises(ConnectError, match=r"no answer within 0\.01 s"):
                await channels.open_connection(server.url, network=network, timeout=0.01)
            dialling = asyncio.ensure_future(channels.open_connection(server.url, network=network))
            await asyncio.sleep(0.005)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            assert not network._gate._waiting


async def test_the_system_gives_up_to_connect(transport: Transport) -> None:
    """Without a timeout of one's own it takes as long as the network says, in its time."""
    clock = ExternalClock(0)
    with Network(clock=clock, connect_time=127) as network:
        async with open_server(transport) as server:
            outage = network.hold(seconds=500)
            with pytest.raises(ConnectError, match="no answer within 127 s"):
                await drive(clock, channels.open_connection(server.url, network=network))
            assert clock.time() == 127
            assert [event.what for event in network.log] == ["hold", "dial", "hang", "fail"]
            await drive(clock, clock.sleep_until(500))
            assert outage.is_over


async def test_a_blackhole_that_begins_while_somebody_connects(transport: Transport) -> None:
    """The handshake is lost and begins anew when it is over."""
    clock = ExternalClock(0)
    with Network(clock=clock, delay=5, connect_time=None) as network:
        async with open_server(transport) as server:
            clock.call_at(3, lambda: network.blackhole(seconds=1000))
            channel = await drive(clock, channels.open_connection(server.url, network=network))
            assert clock.time() == 1013
            assert [event.what for event in network.log] == ["dial", "blackhole", "hang", "heal", "connect"]
            await channel.close()


async def test_a_blackhole_of_one_way(transport: Transport) -> None:
    """Requests vanish, or replies do, and the other direction is not harmed."""
    network = Network()
    async with open_containers(transport, 2, network) as (a, b):
        proxy = await a.container.connect(b.addr)
        back = await b.container.connect(a.addr)
        assert [await proxy.echo(0), await back.echo(0)] == [0, 0]
        received = network.connections[0].bytes_received
        with network.blackhole(b.addr, a.addr, one_way=True):
            with pytest.raises(CallTimeoutError):
                await rpc.with_options(proxy.echo, timeout=0.01)(1)
            connection = network.connections[0]
            assert connection.bytes_received == received
            await wait_until(lambda: connection.bytes_lost)
            assert connection._out.lost == 0
            url = b.container._base_url
            with pytest.raises(ConnectError):
                await channels.open_connection(url, network=network.at(a.addr), timeout=0.01)


async def test_cuts_are_of_chosen_links(transport: Transport) -> None:
    """Only connections between the named places break, for both ends; calls fail, and later ones connect."""
    network = Network()
    async with open_containers(transport, 3, network) as (a, b, c):
        to_b, to_c = await a.container.connect(b.addr), await a.container.connect(c.addr)
        assert len(network.connections) == 2
        assert network.cut(b.addr, c.addr) == 0
        assert network.cut(b.addr, a.addr) == 1
        with pytest.raises(ChannelClosedError):
            await to_b.echo(1)
        assert await to_c.echo(1) == 1
        assert await to_b.echo(2) == 2
        assert network.cut() == 2
        assert network.counts["cut"] == 3


async def test_a_cut_in_the_middle_of_a_frame(transport: Transport) -> None:
    """The peer says so: that is what an own study of half frames looks like."""
    with Network() as network:
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        server = await channels.start_server(transport.address(), accepted.set_result)
        channel = await channels.open_connection(server.url, network=network)
        network.cut(after=10)
        call = channel.send("x" * 100)
        far = await accepted
        with pytest.raises(ChannelClosedError) as excinfo:
            await far.recv()
        assert "in the middle of a frame (10 bytes" in str(excinfo.value)
        with pytest.raises(ChannelClosedError) as excinfo:
            await call
        assert excinfo.value.was_sent
        await channel.close()
        await far.close()
        server.close()


async def test_refused_connections(transport: Transport) -> None:
    """They are refused at once, those that there are go on, and who tries again succeeds when it is over."""
    network = Network()
    async with open_containers(transport, 3, network) as (a, b, c):
        proxy = await a.container.connect(b.addr)
        outage = network.refuse(a.addr, [b.addr, c.addr])
        assert await proxy.echo(1) == 1
        with pytest.raises(ConnectError, match="the network refuses it"):
            await a.container.connect(c.addr)
        assert await b.pass_on(c.addr, 2) == 2
        asyncio.get_running_loop().call_later(0.02, outage.end)
        assert await (await a.container.connect(c.addr, timeout=5)).echo(3) == 3


async def test_a_share_of_refusals(transport: Transport) -> None:
    """So many of the attempts are refused, the same ones with the same seed."""

    async def attempt(seed: int) -> list[bool]:
        outcome = []
        with Network(seed, refusals=0.5) as network:
            async with open_server(transport) as server:
                for _ in range(20):
                    try:
                        channel = await channels.open_connection(server.url, network=network)
                    except ConnectError:
                        outcome.append(False)
                    else:
                        outcome.append(True)
                        await channel.close()
        return outcome

    first = await attempt(1)
    assert 4 <= sum(first) <= 16
    assert await attempt(1) == first
    assert await attempt(2) != first


async def test_nobody_listens(transport: Transport) -> None:
    """A network does not hide that, and its log has it."""
    with Network(delay=0.001) as network:
        async with open_server(transport) as server:
            url = server.url
        with pytest.raises(ConnectError):
            await channels.open_connection(url, network=network)
        assert [event.what for event in network.log] == ["dial", "fail"]
        assert not network.connections


# Conditions


async def test_conditions_of_a_link(transport: Transport) -> None:
    """A route may differ from the others, in one direction only, and change while connections are open."""
    clock = ExternalClock(0)
    network = Network(clock=clock)
    network.set(delay=1)
    async with open_containers(transport, 2, network) as (a, b):
        network.set(a.addr, b.addr, delay=10)
        network.set(b.addr, a.addr, one_way=True, delay=100)
        proxy = await drive(clock, a.container.connect(b.addr))
        begin = clock.time()
        assert await drive(clock, proxy.echo(1)) == 1
        assert clock.time() == begin + 110
        network.set(a.addr, delay=2)
        begin = clock.time()
        assert await drive(clock, proxy.echo(1)) == 1
        assert clock.time() == begin + 4
        assert network.get_conditions(a.addr, b.addr) == Conditions(delay=2)
        assert network.get_conditions("x", "y") == Conditions(delay=1)


def test_a_network_is_prepared_before_the_loop_runs() -> None:
    """Conditions and outages can be set where there is no loop yet; what happens then has the time 0."""
    network = Network()
    network.set("a", delay=1)
    outage = network.partition(["a"])
    assert [event.time for event in network.log] == [0, 0]

    async def note() -> None:
        outage.end()

    asyncio.run(note())
    assert network.log[-1] == faults.Event(0, "heal", detail="partition")


async def test_what_is_no_network() -> None:
    """A container, or a context, says so when it is made."""
    for wrong in ("bad", Network().at("me")):
        with pytest.raises(TypeError, match="network must be a Network"):
            await aiomas_ng.Container.create(get_queue("q"), as_coro=True, network=wrong)
        with pytest.raises(TypeError, match="network must be a Network"):
            await aiomas_ng.Context.create_client_context(network=wrong)


def test_rules_that_are_wrong_change_nothing() -> None:
    """A mistake is said at once, by name."""
    network = Network(delay=1)
    with pytest.raises(TypeError, match="latency"):
        network.set(latency=3)
    with pytest.raises(ValueError, match="rate"):
        network.set("a", delay=5, rate=-1)
    assert network.get_conditions("a", "b") == Conditions(delay=1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"latency": 1}, TypeError),
        ({"delay": -1}, ValueError),
        ({"applies_to": "all"}, ValueError),
        ({"connect_time": 0}, ValueError),
        ({"log_size": 0}, ValueError),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception]) -> None:
    """When the network is made."""
    with pytest.raises(error, match=next(iter(options))):
        Network(**options)


async def test_outages_are_checked() -> None:
    """A partition has groups, and a while is longer than nothing."""
    network = Network()
    with pytest.raises(ValueError, match="groups"):
        network.partition()
    for seconds in (0, -1):
        with pytest.raises(ValueError, match="seconds"):
            network.hold(seconds=seconds)
    network.close()
    with pytest.raises(RuntimeError, match="closed"):
        network.blackhole()


def test_names_of_places() -> None:
    """An address, its URL, that of an agent there, and a place mean the same; anything else is a name."""
    network = Network()
    for place, name in [
        ("tcp://localhost:5555/7", "tcp://localhost:5555/"),
        (("localhost", 5555), "tcp://localhost:5555/"),
        ("ipc://[/tmp/s]/a", "ipc://[/tmp/s]/"),
        ("/tmp/s", "ipc://[/tmp/s]/"),
        (get_queue("q"), "local://q/"),
        ("me", "me"),
        (network.at("me"), "me"),
    ]:
        assert network.at(place).name == name
    assert "'me'" in repr(network.at("me"))
    assert str(Route("a", "b")) == "a → b"
    assert str(Route("", "b")) == "? → b"
    assert str(faults.Event(1.5, "cut", Route("a", "b"), 3)) == "1.500000 cut #3 a → b"
    assert str(faults.Event(1.5, "heal", detail="hold")) == "1.500000 heal hold"


async def test_groups_of_all_kinds(transport: Transport) -> None:
    """Places can be given singly or in lists and sets, as addresses, URLs or names."""
    network = Network()
    outage = network.partition("me", {"local://a/", "local://b/"}, [("localhost", 1)], network.at("you"))
    for one, other, is_apart in [
        ("me", "you", True),
        ("me", "local://a/", True),
        ("local://a/", "local://b/", False),
        ("tcp://localhost:1/", "local://b/", True),
        ("me", "else", False),
        ("me", "me", False),
    ]:
        fates = {network._get_fate(one, other).name, network._get_fate(other, one).name}
        assert fates == {"HOLD" if is_apart else "PASS"}
    outage.end()


# Who has the network


async def test_only_one_end_applies_it(transport: Transport) -> None:
    """Two containers that share a network meet it once for each connection, at the end that has dialled."""
    network = Network()
    async with open_containers(transport, 2, network) as (a, b):
        assert await a.pass_on(b.addr, 1) == 1
        (connection,) = network.connections
        assert connection.route == Route(a.container._base_url, b.container._base_url)
        accepted = next(iter(b.container._connections))
        assert not isinstance(accepted.channel.transport, faults.FaultyTransport)
        dialled = next(iter(a.container._connections))
        assert dialled.channel.transport is connection


async def test_a_network_for_the_clients_of_a_server(transport: Transport) -> None:
    """It applies to clients that have none, whose route has no source."""
    clock = ExternalClock(0)
    with Network(applies_to="accepted", delay=5, clock=clock) as network:
        async with open_server(transport, network=network) as server:
            channel = await channels.open_connection(server.url)
            assert await drive(clock, channel.send(1)) == 1
            assert clock.time() == 10
            (connection,) = network.connections
            assert connection.route == Route("", server.url)
            assert [event.what for event in network.log] == ["accept"]
            network.cut(server.url)
            with pytest.raises(ChannelClosedError):
                await channel.send(2)
            network.refuse()
            with contextlib.suppress(ConnectError):
                refused = await channels.open_connection(server.url)
                with pytest.raises(ChannelClosedError):
                    await refused.send(3)
                await refused.close()
            await channel.close()


async def test_a_container_for_clients_without_a_network(transport: Transport) -> None:
    """It applies the network to what it accepts, and not to what it dials."""
    network = Network(applies_to="accepted")
    async with open_containers(transport, 2, network) as (a, b):
        assert await a.pass_on(b.addr, 1) == 1
        (connection,) = network.connections
        assert connection.route == Route("", b.container._base_url)


async def test_a_network_for_the_wrong_end(transport: Transport) -> None:
    """It is an error, and not a network that does nothing."""
    dialled, accepted = Network(), Network(applies_to="accepted")
    for network in (dialled, dialled.at("me")):
        with pytest.raises(ValueError, match="applies to dialled connections only"):
            await channels.start_server(transport.address(), print, network=network)
    async with open_server(transport) as server:
        for network in (accepted, accepted.at("me")):
            with pytest.raises(ValueError, match="applies to accepted connections only"):
                await channels.open_connection(server.url, network=network)


async def test_rpc_connections_and_third_parties(transport: Transport) -> None:
    """An RPC client meets it, and so do the connections that it makes for proxies of third parties."""

    class Service:
        router = rpc.Service()

        def __init__(self, other: Any = None) -> None:
            self.other = other

        @expose
        def get_other(self) -> Any:
            return self.other

        @expose
        def echo(self, value: Any) -> Any:
            return value

    with Network() as network:
        third = await rpc.start_server(transport.address(), Service())
        to_third = await rpc.open_connection(third.url)
        second = await rpc.start_server(transport.address(), Service(to_third.remote))
        client = await rpc.open_connection(second.url, network=network.at("me"))
        other = await client.remote.get_other()
        assert await other.echo(5) == 5
        assert [connection.route for connection in network.connections] == [
            Route("me", second.url),
            Route("me", third.url),
        ]
        await client.close()
        await to_third.close()
        for server in (second, third):
            server.close_clients()
            server.close()


async def test_resources(transport: Transport) -> None:
    """Requests to resources meet the network as well, in a container and in a context of one's own."""
    clock = ExternalClock(0)
    with Network(delay=1, clock=clock) as network:
        server = await aiomas_ng.Context.create_server_context(make_site(), transport.address())
        client = await aiomas_ng.Context.create_client_context(network=network)
        response = await drive(clock, client.get(server.urls[0] + ".well-known/core"))
        assert response is not None
        assert clock.time() == 4
        assert network.connections[0].route == Route("", server.urls[0])
        await client.shutdown()
        await server.shutdown()
    with Network(applies_to="accepted") as network:
        server = await aiomas_ng.Context.create_server_context(
            make_site(), transport.address(), network=network
        )
        client = await aiomas_ng.Context.create_client_context()
        await client.get(server.urls[0] + ".well-known/core")
        assert network.counts["accept"] == 1
        await client.shutdown()
        await server.shutdown()


async def test_calls_within_a_container_meet_no_network(transport: Transport) -> None:
    """They take no connection, so nothing can happen to them."""
    network = Network(cut_after=0, refusals=1)
    async with open_containers(transport, 1, network) as (a,):
        assert await a.pass_on(Agent(a.container).addr, 1) == 1
        assert network.log == []


async def test_without_a_network_nothing_is_there(transport: Transport) -> None:
    """A connection without a network has the real transport."""
    async with open_server(transport) as server:
        channel = await channels.open_connection(server.url, network=None)
        assert not isinstance(channel.transport, faults.FaultyTransport)
        assert channel.transport.get_protocol() is channel._protocol
        await channel.close()


# The network itself


async def test_a_closed_network_is_a_good_one(transport: Transport) -> None:
    """What is under way arrives at once, outages are over, who dials meets nothing any more."""
    clock = ExternalClock(0)
    network = Network(delay=1000, cut_after=10_000, clock=clock)
    async with open_server(transport) as server:
        channel = await drive(clock, channels.open_connection(server.url, network=network))
        dialling = asyncio.ensure_future(channels.open_connection(server.url, network=network))
        call = channel.send("x" * 20_000)
        network.partition([server.url])
        await asyncio.sleep(0)
        network.close()
        network.close()
        assert "closed" in repr(network)
        assert await call == "x" * 20_000
        other = await dialling
        third = await channels.open_connection(server.url, network=network)
        assert not isinstance(third.transport, faults.FaultyTransport)
        for opened in (channel, other, third):
            assert await opened.send("y") == "y"
            await opened.close()
        assert clock.time() == 2000
        assert not network.connections


async def test_a_closed_network_accepts_as_if_it_was_not_there(transport: Transport) -> None:
    """The same on the side of a server."""
    network = Network(applies_to="accepted", delay=1000)
    async with open_server(transport, network=network) as server:
        network.close()
        channel = await channels.open_connection(server.url)
        assert await channel.send(1) == 1
        assert network.log == []
        await channel.close()


async def test_the_log_is_bounded() -> None:
    """The oldest events go, and are still counted."""
    network = Network(log_size=10)
    for _ in range(20):
        network.set(delay=1)
    assert len(network.log) == 10
    assert network.counts == {"set": 20}


async def test_a_pickled_network_has_the_same_seed_and_conditions(transport: Transport) -> None:
    """Each container process has a network of its own, without the connections of the first."""
    network = Network(
        5, delay=(1, 2), cut_after=faults.Exponential(10), applies_to="accepted", clock=ExternalClock(0)
    )
    network.set("a", rate=3)
    network.hold()
    copy = pickle.loads(pickle.dumps(network))
    assert (copy.seed, copy.applies_to, copy.clock.time()) == (5, "accepted", 0)
    assert copy.get_conditions("a", "b") == network.get_conditions("a", "b")
    assert copy.get_conditions("b", "c") == Conditions(delay=(1, 2), cut_after=faults.Exponential(10))
    assert (copy.log, copy.connections) == ([], [])
    assert "5" in repr(copy)


async def test_both_ends_of_many_calls_survive_a_bad_network(transport: Transport) -> None:
    """Cut at random again and again, each call ends with its own result or an error of the connection."""
    network = Network(11, cut_after=faults.Exponential(2000), jitter=(0, 0.001))
    outcomes: dict[str, int] = {}
    async with open_containers(transport, 2, network) as (a, b):

        async def call(agent: Agent, other: Agent, number: int) -> None:
            value = f"{number}" * (number % 50)
            try:
                proxy = await agent.container.connect(other.addr)
                result = await rpc.with_options(proxy.echo, timeout=10)(value)
            except (ChannelClosedError, ConnectError) as error:
                outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
            else:
                assert result == value
                outcomes["result"] = outcomes.get("result", 0) + 1

        for turn in range(10):
            calls = [call(*((a, b) if n % 2 else (b, a)), turn * 10 + n) for n in range(10)]
            await asyncio.gather(*calls)
    assert sum(outcomes.values()) == 100
    assert outcomes["result"] > 20
    assert len(outcomes) > 1
    assert network.counts["cut"] > 2


async def test_containers_mend_what_is_cut(transport: Transport) -> None:
    """With connections that are taken up again, random cuts in mid-frame cost no call; none is made twice."""
    network = Network(3, cut_after=faults.Exponential(1500))
    async with open_containers(transport, 2, network, resumable=True) as (a, b):
        to_b, to_a = await a.container.connect(b.addr), await b.container.connect(a.addr)
        for turn in range(10):
            values = [f"{turn} {n}" * n for n in range(10)]
            results = await asyncio.gather(*(proxy.echo(value) for value in values for proxy in (to_a, to_b)))
            assert results == [value for value in values for _ in range(2)]
        assert (a.calls, b.calls) == (100, 100)
        assert network.counts["cut"] > 2


def test_a_callable_condition_is_asked_in_order() -> None:
    """A function of a condition is given the generator of the connection, and nothing else random."""
    drawn: list[float] = []

    def delay(rng: Random) -> float:
        drawn.append(rng.random())
        return drawn[-1]

    def make(seed: int) -> Callable[[], list[float]]:
        network = Network(seed, delay=delay)
        route = Route("a", "b")
        for _ in range(3):
            _, make_rng = network._gate._enter(route)
            network._gate._make_lines("a", "b", make_rng)
        taken = list(drawn)
        drawn.clear()
        return lambda: taken

    assert make(1)() == make(1)()
    assert make(1)() != make(2)()
    assert len(set(make(1)())) == 6
