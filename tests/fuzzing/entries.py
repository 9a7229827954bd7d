"""From the fuzzer's bytes to an attack, for each entry.

Each function takes a :class:`Source` and returns the pieces that the attacker writes. The bytes steer: some
are sent as they are, others choose from what the wire knows, so that mutations get deep into every layer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from aiomas_ng._core.frames import FIRST_ID
from tests.fuzzing.victim import Victim

__all__ = ["ENTRIES", "Source"]

REQUEST, RESULT, EXCEPTION, CANCEL, ITEM, MESSAGE, CREDIT, PING, PONG, SESSION, STREAM, BUNDLE, ACK, CLOSE = (
    range(14)
)

PATHS = [
    "validate_aid",
    "agents/m/echo",
    "agents/m/wait",
    "agents/m/fail",
    "agents/m/count",
    "agents/m",
    "",
    "agents",
    "x",
    "/",
    None,
]
SEGMENTS = ["m", "value", "plain", "state", ".well-known", "core", "", "x"]
INTEGERS = [
    0,
    1,
    -1,
    63,
    64,
    127,
    128,
    255,
    2**16,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    FIRST_ID,
    FIRST_ID + 1,
]


class Source:
    """Choices made by bytes; when they are used up, the first of each choice.

    Args:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def byte(self) -> int:
        """Return the next byte."""
        position = self._position
        if position >= len(self._data):
            return 0
        self._position = position + 1
        return self._data[position]

    def bytes(self, size: int) -> bytes:
        """Return the next *size* bytes, or what is left."""
        data = self._data[self._position : self._position + size]
        self._position += len(data)
        return data

    def choose(self, choices: Any) -> Any:
        """Return one of *choices*."""
        return choices[self.byte() % len(choices)]

    def integer(self) -> int:
        """Return an integer, often a notable one."""
        kind = self.byte()
        if kind < 128:
            return kind
        if kind < 200:
            number: int = self.choose(INTEGERS)
            return number
        return int.from_bytes(self.bytes(kind % 8), "big", signed=True)

    def text(self) -> str:
        """Return a text."""
        return self.bytes(self.byte() % 24).decode("latin-1")

    def value(self, depth: int = 0) -> Any:
        """Return anything that MsgPack can encode."""
        kind = self.byte() % (14 if depth < 6 else 9)
        if kind == 0:
            return None
        if kind == 1:
            return bool(self.byte() % 2)
        if kind in (2, 3):
            return self.integer()
        if kind == 4:
            return struct.unpack("!d", self.bytes(8).ljust(8, b"\0"))[0]
        if kind in (5, 6):
            return self.text()
        if kind == 7:
            return self.bytes(self.byte())
        if kind == 8:
            return msgpack.ExtType(self.byte() % 128, self.bytes(self.byte() % 40))
        if kind in (9, 10, 11):
            return [self.value(depth + 1) for _ in range(self.byte() % 6)]
        return {self._key(): self.value(depth + 1) for _ in range(self.byte() % 5)}

    def _key(self) -> Any:
        return self.integer() if self.byte() % 4 == 0 else self.text()


def frame(payload: bytes) -> bytes:
    """Return *payload* with its header."""
    return struct.pack("!L", len(payload)) + payload


def encode(victim: Victim, message: Any) -> bytes:
    """Return the payload of a frame."""
    if victim.codec.__name__ == "JSON":
        return json.dumps(message, default=repr, skipkeys=True).encode()
    try:
        packed: bytes = msgpack.packb(message)
    except (OverflowError, ValueError):
        packed = b"\xc1"
    return packed


def _cut(source: Source, data: bytes) -> list[bytes]:
    """Return *data* in pieces of any size."""
    if source.byte() % 4:
        return [data]
    pieces = []
    while data:
        size = source.byte() + 1 if source else len(data)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def _spoil(source: Source, payload: bytes) -> bytes:
    """Now and then change a byte, or cut the end off."""
    kind = source.byte()
    if kind < 200 or not payload:
        return payload
    position = source.byte() * len(payload) // 256
    if kind < 230:
        return payload[:position] + bytes([source.byte()]) + payload[position + 1 :]
    return payload[:position]


def channel(victim: Victim, source: Source) -> list[bytes]:
    """Bytes as they are, bytes in frames, and frames of any type with any content."""
    stream = bytearray()
    while source:
        kind = source.byte() % 8
        if kind == 0:
            stream += source.bytes(source.byte())
        elif kind == 1:
            stream += frame(source.bytes(source.byte()))
        elif kind == 2:
            stream += struct.pack("!L", source.integer() & 0xFFFFFFFF)
        else:
            msg_type = source.choose([*range(15), -1, 255, None, "0", 1.0])
            msg_id = source.choose([FIRST_ID, 0, 1, 2, FIRST_ID + 1, -1, None, "id", 1.5, b"id"])
            content = source.value()
            if msg_type == BUNDLE:
                content = [
                    [source.byte() % 14, source.integer(), source.value()] for _ in range(source.byte() % 5)
                ]
            stream += frame(_spoil(source, encode(victim, [msg_type, msg_id, content])))
    return _cut(source, bytes(stream))


def rpc(victim: Victim, source: Source) -> list[bytes]:
    """Calls, right and wrong, one-way, in batches, with metadata, cancelled and granted credit."""
    stream = bytearray()
    number = FIRST_ID if source.byte() % 2 else 0
    while source:
        kind = source.byte() % 10
        if kind < 6:
            content = _call(source)
            if kind == 1:
                content = [None, [_call(source)[:3] for _ in range(source.byte() % 70)], {}]
            message = [MESSAGE, 0, content] if kind == 2 else [REQUEST, number, content]
            number += source.byte() % 3
        elif kind == 6:
            message = [CANCEL, number - source.byte() % 4, None]
        elif kind == 7:
            message = [CREDIT, number - source.byte() % 4, source.integer()]
        elif kind == 8:
            message = [source.choose([RESULT, EXCEPTION, ITEM, STREAM]), source.integer(), source.value()]
        else:
            message = [SESSION, 0, {"version": 1, "bundle": source.integer()}]
        stream += frame(_spoil(source, encode(victim, message)))
    return _cut(source, bytes(stream))


def _call(source: Source) -> list[Any]:
    kind = source.byte() % 8
    path = source.text() if kind == 0 else source.choose(PATHS)
    args = source.value() if kind == 1 else [source.value() for _ in range(source.byte() % 3)]
    kwargs = source.value() if kind == 2 else {}
    content = [path, args, kwargs]
    if kind in (3, 4):
        content.append({"deadline": source.value()} if kind == 3 else source.value())
    return content


def messages(victim: Victim, source: Source) -> list[bytes]:
    """Requests to resources, responses and signals."""
    stream = bytearray()
    while source:
        kind = source.byte() % 12
        token = bytes([source.byte() % 4]) * (source.byte() % 10)
        content: Any
        if kind == 0:
            content = source.value()
        elif kind == 1:
            content = [0, token, source.value()]
        elif kind == 2:
            content = [0, token]
        else:
            code = source.byte() if kind == 3 else source.choose([1, 2, 3, 4, 5, 6, 7, 69, 95, 132, 224])
            payload = source.value() if kind == 4 else source.bytes(source.byte())
            content = [code, token, _options(source), payload, bool(source.byte() % 2)]
        stream += frame(_spoil(source, encode(victim, [MESSAGE, 1, content])))
    return _cut(source, bytes(stream))


def _options(source: Source) -> Any:
    if source.byte() % 16 == 0:
        return source.value()
    options: list[Any] = []
    kinds = [
        1,
        3,
        4,
        5,
        6,
        7,
        8,
        11,
        12,
        14,
        15,
        16,
        17,
        20,
        23,
        27,
        28,
        35,
        39,
        60,
        252,
        258,
        292,
        65000,
        65001,
    ]
    for number in sorted(source.choose(kinds) for _ in range(source.byte() % 5)):
        options += [number, source.value(6) if source.byte() % 2 else source.integer()]
    for segment in [source.choose(SEGMENTS) for _ in range(source.byte() % 4)] or ["m", "value"]:
        options += [11, segment]
    pairs = sorted(zip(options[::2], options[1::2], strict=True), key=lambda pair: pair[0])
    return [item for pair in pairs for item in pair]


def session(victim: Victim, source: Source) -> list[bytes]:
    """What is said about sessions: greetings, acknowledgements, attempts to take one up, the end."""
    stream = bytearray()
    if source.byte() % 2:
        stream += frame(encode(victim, [REQUEST, FIRST_ID, ["agents/m/echo", [1], {}]]))
    while source:
        kind = source.byte() % 8
        message: list[Any]
        if kind == 0:
            message = [SESSION, 0, {"version": source.value(), "session": source.value()}]
        elif kind == 1:
            message = [SESSION, 0, {"version": 1, "session": True, "bundle": source.integer()}]
        elif kind == 2:
            message = [ACK, source.integer(), source.value()]
        elif kind == 3:
            message = [CLOSE, source.integer(), source.value()]
        elif kind == 4:
            known = list(victim_sessions(victim))
            name = source.choose(known) if known and source.byte() % 2 else source.value()
            parts = [name, source.integer(), source.integer(), source.text()]
            message = [SESSION, 0, {"resume": parts if source.byte() % 4 else source.value()}]
        elif kind == 5:
            message = [SESSION, 0, {source.choose(["resumed", "refused", "resume"]): source.value()}]
        elif kind == 6:
            message = [source.choose([PING, PONG]), source.integer(), source.value()]
        else:
            message = [source.choose([REQUEST, MESSAGE]), FIRST_ID + source.byte() % 3, _call(source)]
        stream += frame(_spoil(source, encode(victim, message)))
    return _cut(source, bytes(stream))


def victim_sessions(victim: Victim) -> list[str]:
    """Return the ids of the sessions that the container knows."""
    ids = set()
    for client in victim.container._connections:
        resumption = client.channel._protocol._resumption
        if resumption is not None and resumption.session.id:
            ids.add(resumption.session.id)
    return sorted(ids)


ENTRIES: dict[str, Callable[[Victim, Source], list[bytes]]] = {
    "channel": channel,
    "rpc": rpc,
    "messages": messages,
    "session": session,
}
