"""A server under attack, and what a client that behaves well notices of it::

    python -m tests.endurance.overload --connections 10000

Server, attackers and client are processes of their own. Each attack is measured in rounds: without it, with
it, without it, …, so that whatever else the machine does concerns both alike. It prints the median latency of
the client and the memory of the server, and ends with 1 if one of these bounds does not hold:

- The client's calls take at most ``--factor`` times as long as without the attack, and ``--slack`` on top, in
  the median, and none fails. Not so for ``bomb``: a frame is decoded at once.
- The server's memory stays below what the limits sum up to for the attack.

The attacks:

==========  ======================================================================================
``slow``    many connections, each of which sends one byte of a frame per second
``deaf``    connections that request large results and never read
``flood``   one connection that sends calls as fast as it can, ten times as many as can be served
``oneway``  the same with one-way messages whose handlers are coroutines
``bomb``    frames that stand for gigabytes of empty maps
==========  ======================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import resource
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import msgpack
import psutil

import aiomas_ng
from aiomas_ng import expose, rpc
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import AiomasError

MIB = 2**20
LARGE = 256 * 1024
"""Bytes of a large result."""
WANTED = 50
"""Large results that each deaf connection asks for.  The system takes some of them, see ``tcp_wmem``."""
CHUNK = 1000
"""Calls of a flood that are sent at a time."""
FRAME_TIME = 30.0


class Service:
    """What is called."""

    router = rpc.Service()

    @expose
    def echo(self, value: Any) -> Any:
        return value

    @expose
    async def work(self, value: Any) -> Any:
        await asyncio.sleep(0.005)
        return value

    @expose
    def large(self) -> bytes:
        return bytes(LARGE)


# -- The server ------------------------------------------------------------------------------------


def run_server(pipe: Any, limits: dict[str, Any]) -> None:
    """Serve until something comes through *pipe*."""
    raise_file_limit()

    async def serve() -> None:
        server = await rpc.start_server(("127.0.0.1", 0), Service(), limits=Limits(**limits))
        pipe.send(server.address.place)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        server.close_clients()
        server.close()

    asyncio.run(serve())


def raise_file_limit() -> int:
    """Allow as many open files as the system does; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# -- The attackers ---------------------------------------------------------------------------------


def encode(message: Any) -> bytes:
    """Return a frame."""
    payload: bytes = msgpack.packb(message)
    return struct.pack("!L", len(payload)) + payload


class Attacker(asyncio.Protocol):
    """A connection that is not what it should be."""

    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def attack(self) -> None:
        """Go on; called some times in a second."""

    def stop(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Slow(Attacker):
    """Sends one byte of a frame per second."""

    def __init__(self) -> None:
        self._bytes = iter(encode([0, 0, ["echo", [bytes(10_000)], {}]]))
        self._due = time.monotonic()

    def attack(self) -> None:
        if time.monotonic() >= self._due and not self.transport.is_closing():
            self._due += 1
            self.transport.write(bytes([next(self._bytes)]))


class Deaf(Attacker):
    """Asks for large results and never reads one."""

    @staticmethod
    def make_socket() -> socket.socket:
        """Return a socket that takes next to nothing by itself, so that it is the server that has to hold
        what is sent, and not the system."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        return sock

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        transport.write(b"".join(encode([0, number, ["large", [], {}]]) for number in range(WANTED)))


class Flood(Attacker):
    """Sends calls as fast as it can, and reads the results."""

    head, tail = b"\x93\x00\xce", msgpack.packb(["echo", [1], {}])

    def __init__(self) -> None:
        self._next = 0
        self._is_paused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(256 * 1024)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        asyncio.get_running_loop().call_soon(self.attack)

    def attack(self) -> None:
        head = struct.pack("!L", len(self.head) + 4 + len(self.tail)) + self.head
        while not self._is_paused and not self.transport.is_closing():
            numbers = range(self._next, self._next + CHUNK)
            self._next = (self._next + CHUNK) % 2**31
            self.transport.write(
                b"".join([head + number.to_bytes(4, "big") + self.tail for number in numbers])
            )


class Oneway(Flood):
    """Sends one-way messages; their ids are the lane."""

    tail = msgpack.packb(["work", [1], {}])

    def attack(self) -> None:
        data = encode([5, 0, ["work", [1], {}]]) * CHUNK
        while not self._is_paused and not self.transport.is_closing():
            self.transport.write(data)


class Bomb(Attacker):
    """Sends one frame of empty maps after the other, as long as they are answered."""

    data = encode([0, 0, ["echo", [[{}] * (2 * MIB)], {}]])

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.data)


ATTACKS: dict[str, Callable[[], Attacker]] = {
    "slow": Slow,
    "deaf": Deaf,
    "flood": Flood,
    "oneway": Oneway,
    "bomb": Bomb,
}


def run_attackers(pipe: Any, address: tuple[str, int]) -> None:
    """Attack the server at *address* as told through *pipe*: ``(kind, count)``, or ``None`` to stop."""
    raise_file_limit()

    async def attack() -> None:
        loop = asyncio.get_running_loop()
        attackers: list[Attacker] = []

        async def connect(kind: str) -> None:
            with contextlib.suppress(OSError):
                if kind == "deaf":
                    sock = Deaf.make_socket()
                    await loop.sock_connect(sock, address)
                    _, attacker = await loop.create_connection(ATTACKS[kind], sock=sock)
                else:
                    _, attacker = await loop.create_connection(ATTACKS[kind], *address)
                attackers.append(attacker)

        async def go_on() -> None:
            while True:
                for attacker in attackers:
                    attacker.attack()
                await asyncio.sleep(0.2)

        while (order := await loop.run_in_executor(None, pipe.recv)) is not None:
            kind, count = order
            for start in range(0, count, 100):
                await asyncio.gather(*(connect(kind) for _ in range(start, min(start + 100, count))))
            going = loop.create_task(go_on())
            pipe.send(len(attackers))
            await loop.run_in_executor(None, pipe.recv)
            going.cancel()
            alive = sum(not attacker.transport.is_closing() for attacker in attackers)
            for attacker in attackers:
                attacker.stop()
            attackers.clear()
            await asyncio.sleep(0.1)
            pipe.send(alive)

    asyncio.run(attack())


# -- The client that behaves well ------------------------------------------------------------------


async def measure(client: Any, method: str, seconds: float) -> list[float]:
    """Return the latencies, in seconds, of calls one after the other."""
    call = getattr(client.remote, method)
    end = time.monotonic() + seconds
    latencies = []
    while time.monotonic() < end:
        begin = time.perf_counter()
        assert await asyncio.wait_for(call(7), 60) == 7
        latencies.append(time.perf_counter() - begin)
        await asyncio.sleep(0.002)
    return latencies


class Arena:
    """The processes of one run.

    Args:
        limits: Those of the server.
    """

    def __init__(self, **limits: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._server_pipe, far = context.Pipe()
        self._server = context.Process(target=run_server, args=(far, limits))
        self._server.start()
        self.address = self._server_pipe.recv()
        self._pipe, far = context.Pipe()
        self._attackers = context.Process(target=run_attackers, args=(far, self.address))
        self._attackers.start()
        self._memory = psutil.Process(self._server.pid)

    def close(self) -> None:
        """End all processes."""
        self._pipe.send(None)
        self._server_pipe.send(None)
        for process in (self._attackers, self._server):
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()

    def get_memory(self) -> int:
        """Return the bytes that the server holds."""
        size: int = self._memory.memory_info().rss
        return size

    async def tell(self, order: Any) -> Any:
        """Tell the attackers what to do; return what they say."""
        self._pipe.send(order)
        return await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv)

    async def settle(self, client: Any) -> float:
        """Wait until the server has taken the connections, and filled the buffers of the system; return the
        seconds that took, two minutes at most."""
        begin = time.monotonic()
        quick = 0
        while quick < 20 and time.monotonic() < begin + 120:
            asked = time.monotonic()
            assert await asyncio.wait_for(client.remote.echo(7), 60) == 7
            quick = quick + 1 if time.monotonic() < asked + 0.02 else 0
        return time.monotonic() - begin

    async def attack(self, kind: str, count: int, seconds: float, rounds: int) -> dict[str, Any]:
        """Measure an attack."""
        url = f"tcp://{self.address[0]}:{self.address[1]}"
        client = await rpc.open_connection(url)
        methods = ("echo", "work")
        alone: dict[str, list[float]] = {method: [] for method in methods}
        during: dict[str, list[float]] = {method: [] for method in methods}
        for method in methods:
            await measure(client, method, 0.5)
        base = peak = self.get_memory()
        connected = alive = 0
        settled = 0.0
        for _ in range(rounds):
            for method in methods:
                alone[method] += await measure(client, method, seconds / 2)
            connected = await self.tell((kind, count))
            if kind in ("slow", "deaf"):  # to take the connections, and to fill the buffers of the system
                settled = max(settled, await self.settle(client))
            for method in methods:
                during[method] += await measure(client, method, seconds / 2)
                peak = max(peak, self.get_memory())
            alive = await self.tell("stop")
        await client.close()
        return {
            "connected": connected,
            "alive": alive,
            "settled": settled,
            "base": base,
            "peak": peak,
            **{
                method: (statistics.median(alone[method]), statistics.median(during[method]))
                for method in methods
            },
        }


def get_bound(kind: str, count: int, limits: Limits) -> float:
    """Return the bytes that the server may take because of an attack."""
    connection = 64 * 1024  # objects of Python, and what the system does not count
    if kind == "slow":
        return count * connection + 32 * MIB
    if kind == "deaf":
        # What was asked for, one result that waits to be written and one on its way.
        return count * (connection + 2 * LARGE + WANTED * 1024) + 32 * MIB
    if kind == "bomb":
        return 5 * limits.decoded_size + 3 * limits.frame_size + 32 * MIB
    # One read of requests that wait for their turn, and handlers at work.
    return count * (connection + 8 * MIB) + limits.container_requests * 8 * 1024 + 32 * MIB


async def run(kinds: list[str], counts: dict[str, int], args: Any) -> bool:
    """Measure all attacks; return whether all bounds hold."""
    limits: dict[str, Any] = {
        "frame_time": FRAME_TIME,
        "container_requests": 20_000,
        "decoded_size": 64 * MIB,
    }
    is_well = True
    for kind in kinds:
        arena = Arena(**limits)
        try:
            result = await arena.attack(kind, counts[kind], args.seconds, args.rounds)
        except (AiomasError, TimeoutError) as error:
            print(f"{kind}: the client failed: {error!r}")
            is_well = False
            continue
        finally:
            arena.close()
        grown, bound = result["peak"] - result["base"], get_bound(kind, counts[kind], Limits(**limits))
        print(
            f"{kind}: {result['connected']} connections, {result['alive']} of them alive at the end, "
            f"settled in {result['settled']:.1f} s; "
            f"memory {result['base'] / MIB:.0f} -> {result['peak'] / MIB:.0f} MiB "
            f"(may grow by {bound / MIB:.0f})"
        )
        is_well &= grown <= bound
        for method in ("echo", "work"):
            alone, during = result[method]
            print(
                f"  {method}: {alone * 1e3:.2f} ms alone, {during * 1e3:.2f} ms: {during / alone:.2f} times"
            )
            if kind != "bomb":  # a frame is decoded at once, however long that takes
                is_well &= during <= args.factor * alone + args.slack / 1e3
    return is_well


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.overload")
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], help="by default all")
    parser.add_argument("--connections", type=int, default=10_000, help="slow connections")
    parser.add_argument("--deaf", type=int, default=1_000, help="connections that never read")
    parser.add_argument("--floods", type=int, default=1, help="connections that send too much")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each half of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor", type=float, default=2.0, help="how much longer calls may take")
    parser.add_argument("--slack", type=float, default=1.0, help="and on top, in ms: turns of the attackers")
    args = parser.parse_args(argv)
    files = raise_file_limit()
    if args.connections > files - 100:
        print(f"the system allows {files} open files, so there are only {files - 100} slow connections")
        args.connections = files - 100
    counts = {
        "slow": args.connections,
        "deaf": args.deaf,
        "flood": args.floods,
        "oneway": args.floods,
        "bomb": args.floods,
    }
    print(f"aiomas_ng {aiomas_ng.__version__}, Python {sys.version.split()[0]}")
    is_well = asyncio.run(run(args.attacks or list(ATTACKS), counts, args))
    print("all bounds hold" if is_well else "a bound does not hold")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
