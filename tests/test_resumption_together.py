"""What resumption meets on the same connection: limits, liveness, the orderly end, and code of users."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from faults import SESSION, RawPeer, connect_raw, encode, serve, until
from test_resumption import (
    SHORT,
    begin,
    cut,
    never,
    open_link,
    resumption_of,
    slow,
    until_broken,
    until_resumed,
)

import aiomas_ng
from aiomas_ng import Agent, Container, expose, rpc
from aiomas_ng import channel as channels
from aiomas_ng._core.session import State
from aiomas_ng._io import returning
from aiomas_ng.channel import Channel, Limits, Server
from aiomas_ng.exceptions import ClosedByPeerError, PeerUnresponsiveError, TooManyConnectionsError
from aiomas_ng.liveness import ConnectionState, Liveness

CLOSE = 13
ONE = Limits(connections=1)


@contextlib.asynccontextmanager
async def open_served(transport: Any, **kwds: Any) -> AsyncIterator[tuple[Server, Channel, Channel]]:
    """Give a server and the ends of the first connection to it, whose session is open."""
    accepted: list[Channel] = []
    async with await channels.start_server(
        transport.address(), accepted.append, resumable=True, **kwds
    ) as server:
        client = await channels.open_connection(server.url, resumable=True)
        try:
            await until(lambda: accepted)
            await begin(client, accepted[0])
            yield server, client, accepted[0]
        finally:
            await client.close()
            for far in accepted:
                await far.close()


def lose(client: Channel, far: Channel) -> None:
    """Break the connection so that only the client notices."""
    far.transport.wire.set_protocol(asyncio.Protocol())
    resumption_of(client).interrupt("nothing was heard")


def dial_by(client: Channel, redial: Any) -> None:
    """Begin to dial anew, by *redial*."""
    resumption = resumption_of(client)
    resumption.task.cancel()
    resumption._redial = redial
    resumption.task = asyncio.ensure_future(resumption._dial())


def admission_of(channel: Channel) -> Any:
    return channel._protocol._admission


# -- Limits of connections -------------------------------------------------------------------------


async def test_there_is_room_for_who_returns(transport: Any) -> None:
    """A client takes its connection up again although the server, which has not noticed the break, still
    counts that as its last place; it counts once afterwards."""
    async with open_served(transport, limits=ONE) as (_, client, far):
        for number in range(3):
            lose(client, far)
            await until_resumed(client)
            assert await client.send(number) == number
            assert len(admission_of(far)) == 1


async def test_there_is_room_though_others_came_meanwhile(transport: Any) -> None:
    """The place of a broken connection may be taken by another one; who returns is let in all the same."""
    accepted: list[Channel] = []
    async with await channels.start_server(
        transport.address(), accepted.append, limits=ONE, resumable=True
    ) as server:
        client = await channels.open_connection(server.url, resumable=True)
        await until(lambda: accepted)
        await begin(client, accepted[0])
        redial, resumption_of(client)._redial = resumption_of(client)._redial, never
        cut(client)
        await until_broken(accepted[0])
        other = await channels.open_connection(server.url)
        await until(lambda: len(accepted) == 2)
        dial_by(client, redial)
        assert await client.send(1) == 1
        assert len(admission_of(accepted[0])) == 2
        for end in (client, other, *accepted):
            await end.close()
        assert len(admission_of(accepted[0])) == 0


async def open_raw(url: str) -> RawPeer:
    peer = RawPeer(greets=True)
    await connect_raw(url, peer)
    await peer.until(lambda: peer.transport)
    return peer


@pytest.mark.parametrize(
    "first",
    [
        encode("msgpack", 0, 1, "a request"),
        encode("msgpack", SESSION, 0, {"version": 1}),
        encode("msgpack", SESSION, 0, None),
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x00",
    ],
    ids=repr,
)
async def test_others_are_refused_still(transport: Any, first: bytes) -> None:
    """Who begins with anything else than taking up a connection is refused, however it is cut."""
    async with open_served(transport, limits=ONE) as (server, client, far):
        for pieces in ([first], [first[index : index + 1] for index in range(len(first))]):
            peer = await open_raw(server.url)
            for piece in pieces:
                if not peer.is_lost and not peer.transport.is_closing():
                    peer.send_bytes(piece)
                await asyncio.sleep(0)
            assert (await peer.recv())[2][0] == "aiomas_ng.TooManyConnectionsError"
            await peer.until_lost()
        assert len(admission_of(far)) == 1
        assert await client.send(1) == 1


async def test_who_guesses_is_refused_at_the_limit(transport: Any) -> None:
    """Beyond the limit, too, only who has the secret takes up a connection."""
    async with open_served(transport, limits=ONE) as (server, client, far):
        peer = await open_raw(server.url)
        peer.send(SESSION, 0, {"version": 1, "resume": [resumption_of(far).session.id, 1, 0, "0" * 64]})
        answer = await peer.recv()
        assert set(answer[2]) == {"version", "refused"}
        await peer.until_lost()
        assert await client.send(1) == 1


async def test_silent_ones_do_not_stay(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those beyond the limit that say nothing, a few are waited for, not long; the others are refused at
    once. All go when the server stops."""
    monkeypatch.setattr(returning, "MAX_RETURNING", 2)
    monkeypatch.setattr(returning, "RETURN_TIME", 0.2)
    async with open_served(transport, limits=ONE) as (server, _client, far):
        first = [await open_raw(server.url) for _ in range(2)]
        last = await open_raw(server.url)
        assert (await last.recv())[2][0] == "aiomas_ng.TooManyConnectionsError"
        await last.until_lost()
        assert not any(peer.is_lost for peer in first)
        for peer in first:
            await peer.until_lost()
            assert (await peer.recv())[2][0] == "aiomas_ng.TooManyConnectionsError"
        monkeypatch.setattr(returning, "RETURN_TIME", 1000)
        for _ in range(2):
            gone = await open_raw(server.url)
            gone.abort()
            await gone.until_lost()
        await until(lambda: len(far._protocol._connections) == 1)
        left = await open_raw(server.url)
        await until(lambda: len(far._protocol._connections) == 2)
        server.close()
        await left.until_lost()


# -- What others do at the same time ---------------------------------------------------------------


async def test_a_broken_connection_does_not_count(transport: Any) -> None:
    """A connection that we have given up ourselves, since its peer does not answer, leaves its place to
    others, as any that broke does."""
    async with open_served(transport, limits=ONE) as (_, client, far):
        resumption_of(client)._redial = never
        far._give_up_transport(PeerUnresponsiveError("nothing came"))
        assert far.state is ConnectionState.INTERRUPTED
        assert len(admission_of(far)) == 0


async def test_large_welcome_before_the_answer(transport: Any) -> None:
    """A server that begins each connection with much has sent that before it knows who returns; it is
    skipped."""
    accepted: list[Channel] = []

    def connected(channel: Channel) -> None:
        accepted.append(channel)
        serve(channel, lambda content: content)
        channel.post(b"x" * 300_000)
        channel.post("y" * 70_000)

    async with await channels.start_server(transport.address(), connected, resumable=True) as server:
        client = await channels.open_connection(server.url, resumable=True)
        serve(client, lambda content: None)
        assert await client.send("first") == "first"
        for number in range(3):
            cut(client)
            await until_broken(client)
            assert await client.send(number) == number
        await client.close()
        for channel in accepted:
            await channel.close()


async def test_what_is_gathered_for_who_returns_is_dropped(transport: Any) -> None:
    """What the server was about to say on the new connection when that took up an earlier one does not get
    into the bytes of the latter."""
    async with open_served(transport) as (_, client, far):
        asked: list[Any] = []
        accept = resumption_of(far).accept

        def accept_and_write(request: Any, wire: Any) -> Any:
            asked.append(request)
            connections = far._protocol._connections
            assert connections is not None
            (new,) = connections - {far._protocol}
            new.write(new.codec.encode((5, 0, "to the new one")))  # leaves at the end of this turn
            return accept(request, wire)

        resumption_of(far).accept = accept_and_write
        received: list[Any] = []
        serve(client, received.append)
        for number in range(3):
            cut(client)
            await until_broken(client)
            assert await client.send(number) == number
            assert resumption_of(client).session.received == resumption_of(far).session.written
        assert len(asked) == 3
        assert received == []


async def test_requests_that_wait_are_served_after_the_break(transport: Any) -> None:
    """Requests that waited because too much was kept while there was no transport are served when there is
    one again, though it takes at once all that was kept."""
    async with open_served(transport, limits=Limits(resend_size=1000)) as (_, client, far):
        redial, resumption_of(client)._redial = resumption_of(client)._redial, never
        cut(client)
        await until_broken(client)
        await until_broken(far)
        while not far._protocol.is_paused:
            far._send_control(8, 7)
            far._protocol.flush()
        early = client.send("early")
        client._protocol.flush()
        # It arrives by hand, as what has waited for its turn would.
        near_session, far_session = resumption_of(client).session, resumption_of(far).session
        rest = b"".join(near_session._kept)[far_session.received - near_session.acknowledged :]
        far._protocol.data_received(rest)
        assert len(far._inbox) == 1
        dial_by(client, redial)
        async with asyncio.timeout(5):
            assert await early == "early"
            assert await client.send("late") == "late"


async def test_handler_that_closes_while_it_is_taken_up(transport: Any) -> None:
    """A handler that runs because a connection is taken up again, and closes that, ends it in order."""
    async with open_served(transport) as (_, client, far):
        far._protocol.pause_writing()  # so that the request waits
        reply = client.send("close")
        await until(lambda: far._inbox)
        serve(far, lambda content: far._end_here())
        assert far._inbox
        lose(client, far)
        with pytest.raises(ClosedByPeerError):
            await reply
        await asyncio.shield(far._lost)
        assert resumption_of(far).session.state is State.ENDED


async def test_listener_that_closes_while_it_is_taken_up(transport: Any) -> None:
    """Who is told that the connection is back, or broken, may close it."""
    for when in (ConnectionState.INTERRUPTED, ConnectionState.CONNECTED):
        for number in range(2):
            async with open_served(transport, limits=SHORT) as (_, client, far):
                end = (client, far)[number]
                end.on_state(lambda channel, state, when=when: state is when and channel._end_here())
                cut(client)
                await until(lambda end=end: end.is_closed)
                await asyncio.shield(end._lost)
                await until(lambda: client.is_closed and far.is_closed)


async def test_long_break_is_no_stall(transport: Any) -> None:
    """A broken connection over which too much waits in both directions is not given up as one on which
    neither side reads: there is no side."""
    limits = Limits(stall_time=0.05, requests=1, resend_size=1000, grace_time=20.0)
    async with open_served(transport, limits=limits) as (_, client, far):
        far._handler = None
        for number in range(3):
            client.post(number)
        await until(lambda: not far._is_reading)
        resumption_of(client)._redial, redial = never, resumption_of(client)._redial
        cut(far)
        await until_broken(client)
        await until_broken(far)
        while not far._protocol.is_paused:
            far.post("x" * 50)
            far._protocol.flush()
        far._check_stall()
        await asyncio.sleep(0.2)
        assert not far.is_closed
        dial_by(client, redial)
        assert [(await far.recv()).content for _ in range(3)] == [0, 1, 2]


async def test_two_diallers_do_not_meet(transport: Any) -> None:
    """An attempt whose time is up just when it was answered does not go on beside the one for the next
    break."""
    async with open_served(transport) as (_, client, _far):
        resumption = resumption_of(client)
        dials = 0
        held = asyncio.Event()
        redial = resumption._redial

        async def redial_late(make: Any) -> Any:
            nonlocal dials
            dials += 1
            if dials == 2:
                await held.wait()
            result = await redial(make)
            if dials == 1:
                await until_resumed(client)
                raise TimeoutError
            return result

        resumption._redial = redial_late
        cut(client)
        await until_broken(client)
        first = resumption.task
        await until_resumed(client)
        cut(client)
        await until_broken(client)
        assert resumption.task is not first
        await first
        held.set()
        assert await client.send(1) == 1
        assert dials == 2


# -- CLOSE -----------------------------------------------------------------------------------------


async def test_malformed_close_ends_nothing(transport: Any) -> None:
    """A CLOSE that is a fault is only that: the connection can be taken up still."""
    async with open_link(transport) as (client, far):
        client._send_control(CLOSE, 0, 7)
        assert await client.send(1) == 1
        assert far._violations == 1
        assert resumption_of(far).session.state is State.OPEN
        cut(client)
        await until_broken(client)
        assert await client.send(2) == 2


async def test_close_while_broken_is_told_when_it_is_back(transport: Any) -> None:
    """Who closes in order while the connection is broken says so when it is taken up again; what is under way
    is answered, and nothing is kept any more."""
    gate = asyncio.Event()
    async with open_link(transport) as (client, far):
        serve(far, slow(gate))
        reply = client.send(1)
        await until(lambda: far._exchange.jobs)
        cut(client)
        await until_broken(far)
        closing = asyncio.ensure_future(far.close(grace=20))
        await until(lambda: client.is_peer_closing)
        assert resumption_of(client).session.state is State.ENDED
        assert resumption_of(far).session.state is State.ENDED
        gate.set()
        assert await reply == 1
        async with asyncio.timeout(10):
            await closing
        await until(lambda: client.is_closed)


@pytest.mark.parametrize("side", ["closer", "other"])
async def test_break_after_close(transport: Any, side: str) -> None:
    """A connection that breaks after CLOSE has ended for both ends at once, grace or not: calls fail as lost,
    and whoever closes does not wait for an answer that nobody gets."""
    async with open_link(transport, limits=Limits(grace_time=60.0)) as (client, far):
        serve(far, slow(asyncio.Event()))
        reply = client.send(1)
        await until(lambda: far._exchange.jobs)
        closing = asyncio.ensure_future(far.close(grace=60))
        await until(lambda: client.is_peer_closing)
        wire = (far if side == "closer" else client).transport.wire
        wire.abort()
        async with asyncio.timeout(10):
            with pytest.raises(ClosedByPeerError):
                await reply
            await closing


async def test_flood_of_closes(transport: Any) -> None:
    """CLOSE said a thousand times, or by who was never told of it, is taken once and harms nothing."""
    async with open_link(transport) as (client, far):
        for number in range(1000):
            client._send_control(CLOSE, 0, f"reason {number}", gather=True)
        assert await client.send(1) == 1
        assert far.is_peer_closing
        assert far._peer_closing == "reason 0"
        with pytest.raises(ClosedByPeerError) as error:
            far.send(2)
        assert error.value.was_sent is False


# -- Counts that are forged ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 2**62, "x", True, 1.5, [1]], ids=repr)
@pytest.mark.parametrize("kind", ["ack", "ping", "pong"])
async def test_forged_counts(transport: Any, kind: str, count: Any) -> None:
    """A count of received bytes that cannot be is a fault, whichever frame it is in; nothing is forgotten."""
    async with open_link(transport) as (client, far):
        before = resumption_of(far).session.acknowledged
        if kind == "ack":
            client._send_control(12, count)
        else:
            client._send_control(7 if kind == "ping" else 8, 1, count)
        assert await client.send(1) == 1
        assert far._violations == 1
        assert resumption_of(far).session.acknowledged == before
        cut(client)
        await until_broken(client)
        assert await client.send(2) == 2


# -- All at once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_everything_is_given_back(transport: Any, seed: int) -> None:
    """After many connections that break, return, are lost or closed at any moment, in order or not, with
    calls, streams, one-way messages and large frames under way, nothing is counted any more."""
    numbers = random.Random(seed)
    limits = Limits(
        grace_time=0.3, refusal_time=0.1, requests=20, container_requests=30, connections=4, turn=3, oneways=5
    )
    accepted: list[Channel] = []

    async def work(content: Any) -> Any:
        for _ in range(numbers.randrange(5)):
            await asyncio.sleep(0)
        if content == "stream":
            return items()
        return content

    async def items() -> AsyncIterator[int]:
        for item in range(20):
            yield item
            await asyncio.sleep(0)

    def connected(channel: Channel) -> None:
        accepted.append(channel)
        serve(channel, lambda content: work(content) if numbers.random() < 0.7 else content)

    async with await channels.start_server(
        transport.address(), connected, resumable=True, limits=limits
    ) as server:
        budget = None

        async def use() -> None:
            nonlocal budget
            client = await channels.open_connection(server.url, resumable=True, limits=limits)
            replies: list[Any] = []
            try:
                for _ in range(30):
                    what = numbers.randrange(10)
                    if what < 3:
                        replies.append(client.send(numbers.choice(["x", "stream", b"y" * 200_000])))
                    elif what < 5:
                        for _ in range(10):
                            client.post("z" * numbers.choice([10, 1000]))
                    elif what == 5 and client.transport.wire is not None:
                        cut(client)
                    elif what == 6 and accepted:
                        far = numbers.choice(accepted)
                        if far.transport.wire is not None:
                            far.transport.wire.abort()
                    elif what == 7 and replies:
                        numbers.choice(replies).cancel()
                    elif what == 8 and accepted and numbers.random() < 0.1:
                        far = numbers.choice(accepted)
                        closings.append(asyncio.ensure_future(far.close(grace=numbers.choice([0, 0.05]))))
                    for _ in range(numbers.randrange(8)):
                        await asyncio.sleep(0)
            except (ClosedByPeerError, TooManyConnectionsError, aiomas_ng.exceptions.AiomasError):
                pass
            await client.close(grace=numbers.choice([0, 0.05]))
            results = await asyncio.gather(*replies, return_exceptions=True)
            for result in results:
                if hasattr(result, "aclose"):
                    await result.aclose()
            own = client._budget
            await until(lambda: (own.working, own.waiting, own.size, own._lent) == (0, 0, 0, 0))

        closings: list[asyncio.Future[None]] = []
        for _ in range(3):
            await asyncio.gather(*(use() for _ in range(6)))
        await asyncio.gather(*closings)
        for far in accepted:
            await far.close()
        far = accepted[0]
        budget = far._budget
        await until(lambda: (budget.working, budget.waiting, budget.size, budget._lent) == (0, 0, 0, 0))
        assert not budget._queue
        assert not budget._borrowers
        await until(lambda: not len(admission_of(far)))
        assert not admission_of(far)._hosts
        sessions = resumption_of(far)._sessions
        assert not sessions._known
        assert not sessions._broken
        await until(lambda: not sessions.returning)
        await until(lambda: not server._connections)


class Worker(Agent):
    """Calls others, who call it back."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.heard: list[int] = []

    @expose
    async def work(self, url: str, depth: int) -> int:
        if not depth:
            await asyncio.sleep(0)
            return 1
        other = await self.container.connect(url)
        return 1 + int(await other.work(self.addr, depth - 1))

    @expose
    async def hear(self, number: int) -> None:
        await asyncio.sleep(0)
        self.heard.append(number)

    @expose
    async def never(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("seed", range(4))
async def test_containers_that_end_while_they_are_cut(transport: Any, seed: int) -> None:
    """Containers whose connections break all the time, under deadlines and with pings, each shut down at any
    moment: all calls end, so does each container in its grace, and nothing is counted any more."""
    numbers = random.Random(seed)
    kwds: dict[str, Any] = {
        "limits": Limits(grace_time=1.0, refusal_time=0.2, requests=10, oneways=4, turn=2, connections=3),
        "liveness": Liveness(interval=0.05, patience=0.5),
        "as_coro": True,
    }
    containers = [await Container.create(transport.address(), **kwds) for _ in range(3)]
    workers = [Worker(container) for container in containers]

    async def call(worker: Worker) -> None:
        for _ in range(8):
            other = numbers.choice(workers)
            with contextlib.suppress(aiomas_ng.exceptions.AiomasError):
                async with contextlib.AsyncExitStack() as stack:
                    if numbers.random() < 0.5:
                        stack.enter_context(aiomas_ng.deadlines.within(numbers.choice([0.001, 0.05, 5.0])))
                    remote = await worker.container.connect(other.addr)
                    await remote.work(worker.addr, numbers.randrange(4))
                    for number in range(numbers.randrange(20)):
                        rpc.with_options(remote.hear, oneway=True)(number)
                    if numbers.random() < 0.2:
                        rpc.with_options(remote.never, oneway=True)()

    async def cut_some() -> None:
        while not all(container._ending.is_over for container in containers):
            for container in containers:
                for client in list(container._connections):
                    wire = getattr(client.channel.transport, "wire", None)
                    if wire is not None and numbers.random() < 0.05:
                        wire.abort()
            await asyncio.sleep(0.001)

    async def end(container: Container) -> None:
        await asyncio.sleep(numbers.random() * 0.3)
        await container.shutdown(as_coro=True, grace=numbers.choice([0, 0.1]))

    budgets = [container._connect_kwargs["budget"] for container in containers]
    async with asyncio.timeout(20):
        await asyncio.gather(
            *(call(worker) for worker in workers for _ in range(3)),
            cut_some(),
            *(end(container) for container in containers),
        )
    for budget in budgets:
        assert (budget.working, budget.waiting, budget.size, budget._lent) == (0, 0, 0, 0)
        assert not budget._queue


@pytest.mark.parametrize("grace", [0, 5])
async def test_one_way_calls_do_not_outlive_the_container(transport: Any, grace: float) -> None:
    """One-way calls go on when the connection that they came over has ended; the end of the container waits
    for them as for others, and cancels what does not end."""
    home = await Container.create(transport.address(), as_coro=True)
    other = await Container.create(transport.address(), as_coro=True)
    go = asyncio.Event()
    ends: list[str] = []

    class Slow(Agent):
        @expose
        async def run(self) -> None:
            try:
                await go.wait()
                ends.append("done")
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

    agent = Slow(home)
    remote = await other.connect(agent.addr)
    rpc.with_options(remote.run, oneway=True)()
    budget = home._connect_kwargs["budget"]
    await until(lambda: budget.working == 1)
    await other.shutdown(as_coro=True, grace=0)
    await until(lambda: not home._connections)
    assert (budget.working, ends) == (1, [])
    shutdown = asyncio.ensure_future(home.shutdown(as_coro=True, grace=grace))
    if grace:
        for _ in range(20):
            await asyncio.sleep(0)
        assert not shutdown.done()
        go.set()
    await shutdown
    assert ends == ["done" if grace else "cancelled"]
    assert budget.working == 0
