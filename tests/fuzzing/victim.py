"""What is attacked: a container with agents and resources, a client of it that behaves well, and limits.

After each attack a :class:`Victim` checks what has to hold whatever a peer sends: no exception got out,
nothing of the attacker is left, what is held stays within the limits, and the well-behaved client is served.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil

import aiomas_ng
from aiomas_ng import Agent, Container, MsgPack, expose, local_queue, rpc
from aiomas_ng import channel as channels
from aiomas_ng.channel import Channel, Limits
from aiomas_ng.resource import ObservableResource, Resource

__all__ = ["LIMITS", "Attacker", "Victim"]

LIMITS = Limits(
    frame_size=64 * 1024,
    calls=100,
    requests=50,
    inbox_size=64 * 1024,
    backlog=64 * 1024,
    observations=20,
    transfers=4,
    transfer_size=64 * 1024,
    body_size=32 * 1024,
    resend_size=64 * 1024,
    sessions=5,
    grace_time=0.05,
    violations=20,
)

#: Turns of the loop after each piece of an attack.
TURNS = 6
#: Attacks between two looks at the well-behaved client, and at the memory.
EVERY, MEMORY_EVERY = 20, 2000
#: Bytes by which the process may grow after it has warmed up: caches, and what the fuzzer itself keeps.
MAX_GROWTH = 200 * 2**20

_names = itertools.count()


class Machine(Agent):
    """An agent with a bit of everything."""

    def __init__(self, container: Container) -> None:
        super().__init__(container, aid="m")
        self.level = 0

    @expose
    def echo(self, value: Any = None, *args: Any, **kwargs: Any) -> Any:
        return value

    @expose
    async def wait(self, value: Any = None) -> Any:
        await asyncio.sleep(0)
        return value

    @expose
    def fail(self, *args: Any) -> None:
        raise ValueError(args)

    @expose
    async def count(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item

    @aiomas_ng.state
    def state(self) -> int:
        return self.level

    @state.setter
    def set_state(self, value: int) -> None:
        self.level = value


class Attacker(asyncio.Protocol):
    """Writes anything and reads everything."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        del self.received[: -64 * 1024]


class _Alarm(logging.Handler):
    """Notes what asyncio has to complain about."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        self.note(logging.Formatter().format(record))


class Victim:
    """A container that is attacked, in a loop of its own.

    Args:
        codec: What the container speaks.
    """

    def __init__(self, codec: Any = MsgPack) -> None:
        logging.getLogger("aiomas_ng").setLevel(logging.CRITICAL)
        self.codec = codec
        self.loop = asyncio.new_event_loop()
        self.problems: list[str] = []
        self.attacks = 0
        self.loop.set_exception_handler(lambda _, context: self.problems.append(repr(context)))
        self._alarm = _Alarm(self.problems.append)
        logging.getLogger("asyncio").addHandler(self._alarm)
        self._first_size: int | None = None
        self.run(self._start())

    def close(self) -> None:
        """Shut the container down, and check that nothing is left."""

        async def shut_down() -> None:
            await self.friend.shutdown(as_coro=True)
            await self.container.shutdown(as_coro=True)
            await self._turn()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        self.run(shut_down())
        self.loop.close()
        logging.getLogger("asyncio").removeHandler(self._alarm)
        logging.getLogger("aiomas_ng").setLevel(logging.NOTSET)
        assert not self.problems, "\n".join(self.problems)

    def run(self, coro: Any) -> Any:
        """Run *coro* in the loop of the victim."""
        return self.loop.run_until_complete(coro)

    async def _start(self) -> None:
        self.queue = local_queue.get_queue(f"victim-{next(_names)}")
        self.container = await Container.create(self.queue, codec=self.codec, limits=LIMITS, as_coro=True)
        machine = Machine(self.container)
        machine.site.add_resource("value", _Value())
        machine.site.add_resource("plain", _Plain())
        self.friend = await Container.create(
            local_queue.get_queue(f"friend-{next(_names)}"), codec=self.codec, as_coro=True
        )
        self.proxy = await self.friend.connect(machine.addr)
        self.url = machine.addr
        self.own_connections = len(self.container._connections)

    async def attack_server(self, pieces: list[bytes]) -> None:
        """Connect to the container, and send *pieces*."""
        attacker = Attacker()
        await local_queue.create_connection(lambda: attacker, self.queue)
        await self._send(attacker, pieces)
        attacker.transport.abort()
        await self._turn()

    async def attack_client(self, pieces: list[bytes], use: Callable[[Channel], Any]) -> None:
        """Let a client of ours connect to an attacker, *use* the channel, and get *pieces* for an answer."""
        queue = local_queue.get_queue("attacker")
        attackers: list[Attacker] = []

        def make() -> Attacker:
            attackers.append(Attacker())
            return attackers[-1]

        server = await local_queue.create_server(make, queue)
        channel = await channels.open_connection(queue, codec=self.codec, limits=LIMITS, resumable=True)
        client = rpc.RpcClient(channel)
        waiting = use(channel)
        await self._turn()
        for piece in pieces:
            if attackers[-1].transport.is_closing():
                break
            attackers[-1].transport.write(piece)
            await self._turn()
        server.close()
        for attacker in attackers:
            attacker.transport.abort()
        await client.close()
        for call in waiting:
            if not call.done():
                self.problems.append(f"{call!r} did not end with its connection")
            elif not call.cancelled():
                call.exception()

    async def _send(self, attacker: Attacker, pieces: list[bytes]) -> None:
        for piece in pieces:
            if attacker.transport.is_closing():
                return
            attacker.transport.write(piece)
            await self._turn()

    async def _turn(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def check(self) -> None:
        """Look whether all that has to hold does.

        Raises:
            AssertionError: Something does not.
        """
        self.attacks += 1
        if self.attacks % EVERY == 0:
            async with asyncio.timeout(20):
                assert await self.proxy.echo(self.attacks) == self.attacks
                assert await self.friend.context.get(f"{self.url}/plain") == b"plain"
                while len(self.container._connections) > self.own_connections + LIMITS.sessions:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        if self.attacks % MEMORY_EVERY == 0:
            gc.collect()
            size = psutil.Process().memory_info().rss
            if self._first_size is None:
                self._first_size = size
            assert size < self._first_size + MAX_GROWTH, f"grew from {self._first_size} to {size} bytes"
            left = len(asyncio.all_tasks()) - 1
            assert left < 100, f"{left} tasks"
        assert not self.problems, "\n".join(self.problems)


class _Value(ObservableResource):
    def __init__(self) -> None:
        super().__init__()
        self.content = b"value"

    async def render_get(self, request: Any) -> Any:
        return aiomas_ng.message.Message(aiomas_ng.message.CONTENT, payload=self.content)

    async def render_put(self, request: Any) -> Any:
        self.content = request.payload
        self.updated_state()
        return aiomas_ng.message.Message(aiomas_ng.message.CHANGED)


class _Plain(Resource):
    async def render_get(self, request: Any) -> Any:
        return aiomas_ng.message.Message(aiomas_ng.message.CONTENT, payload=b"plain")
