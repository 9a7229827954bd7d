"""The fuzzer's loop, with or without atheris."""

from __future__ import annotations

import random

from aiomas_ng import JSON, MsgPack
from aiomas_ng.channel import Channel
from tests.fuzzing.entries import ENTRIES, Source
from tests.fuzzing.victim import Victim

__all__ = ["Fuzzer", "fuzz_plainly"]

CODECS = {"msgpack": MsgPack, "json": JSON}


class Fuzzer:
    """Attacks one entry with what it is given.

    Args:
        entry: Which one, of :data:`~tests.fuzzing.entries.ENTRIES`.
        codec: ``'msgpack'`` or ``'json'``.
    """

    def __init__(self, entry: str, codec: str = "msgpack") -> None:
        self.entry = entry
        self.size = 0  #: Bytes of input.
        self.written = 0  #: Bytes that they have become at the victim.
        self._attack = ENTRIES[entry]
        self._victim = Victim(CODECS[codec])

    def __str__(self) -> str:
        attacks = self._victim.attacks
        return f"{self.entry}: {attacks} attacks, {self.size} bytes of input, {self.written} bytes sent"

    def run(self, data: bytes) -> None:
        """Attack once.

        Raises:
            AssertionError: What has to hold does not.
        """
        victim = self._victim
        self.size += len(data)
        source = Source(data)
        is_client = source.byte() % 4 == 0
        pieces = self._attack(victim, source)
        self.written += sum(map(len, pieces))
        victim.run(self._run(pieces, is_client=is_client))

    async def _run(self, pieces: list[bytes], *, is_client: bool) -> None:
        victim = self._victim
        if is_client:
            await victim.attack_client(pieces, _use)
        else:
            await victim.attack_server(pieces)
        await victim.check()

    def close(self) -> None:
        """End the victim."""
        self._victim.close()


def _use(channel: Channel) -> list[object]:
    """Let a channel wait for all sorts of things; return what has to end with it."""
    return [channel.send(["agents/m/echo", [1], {}]), channel.send("x", timeout=60)]


def fuzz_plainly(fuzzer: Fuzzer, size: int, seed: int) -> None:
    """Attack with *size* bytes that nobody has guided, but for mutations of earlier ones.

    Args:
        fuzzer: What attacks.
        size: In bytes.
        seed: Of the random numbers.
    """
    rng = random.Random(seed)
    earlier: list[bytes] = []
    while fuzzer.size < size:
        if earlier and rng.random() < 0.7:
            data = bytearray(rng.choice(earlier))
            for _ in range(rng.randint(1, 8)):
                position = rng.randrange(len(data) + 1)
                kind = rng.random()
                if kind < 0.5 and position < len(data):
                    data[position] = rng.randrange(256)
                elif kind < 0.75:
                    data[position:position] = rng.randbytes(rng.randint(1, 20))
                else:
                    del data[position : position + rng.randint(1, 20)]
        else:
            data = bytearray(rng.randbytes(rng.randint(1, 600)))
        fuzzer.run(bytes(data))
        if len(earlier) < 200:
            earlier.append(bytes(data))
        else:
            earlier[rng.randrange(200)] = bytes(data)
