"""A transport that outlives the ones that carry its bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiomas_ng._core.session import Session

__all__ = ["SessionTransport", "feed"]


class SessionTransport(asyncio.Transport):
    """What the protocol of a resumable connection writes to, whatever transport carries it just now.

    That one is called the wire; there may be none for a while. It calls the protocol directly.

    Args:
        wire: The first transport.
        session: Counts and keeps what is written.
        loop: The event loop.
    """

    def __init__(self, wire: Any, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._wire: Any = wire
        self._last_wire = wire  # for what is asked about the connection while there is none
        self._session = session
        self._loop = loop
        self._protocol = wire.get_protocol()
        self._is_reading = True
        self._is_closing = False
        session.pass_on = wire.write
        # Without a call in between: every frame comes by here.
        self.write = session.write  # type: ignore[method-assign,assignment]

    def __repr__(self) -> str:
        return f"<SessionTransport over {self._wire!r}>"

    @property
    def wire(self) -> Any:
        """The transport that carries the bytes now, ``None`` while there is none."""
        return self._wire

    def attach(self, wire: Any, protocol: asyncio.BaseProtocol | None = None) -> None:
        """Let *wire* carry the bytes from now on; what was kept is not written yet."""
        if protocol is not None:
            self._protocol = protocol
        self._wire = self._last_wire = wire
        wire.set_protocol(self._protocol)
        if not self._is_reading:
            wire.pause_reading()

    def detach(self) -> Any:
        """Take the wire off and return it; nothing of it is heard any more."""
        wire, self._wire = self._wire, None
        self._session.pass_on = None
        if wire is not None:
            wire.set_protocol(_NOBODY)
        return wire

    def bypass(self) -> None:
        """Keep nothing any more of what is written."""
        self.write = self._drop if self._wire is None else self._wire.write  # type: ignore[method-assign]

    def _drop(self, data: Any) -> None:
        pass

    # What asyncio.Transport describes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._last_wire.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._is_closing or (self._wire is not None and self._wire.is_closing())

    def close(self) -> None:
        self._end("close")

    def abort(self) -> None:
        self._end("abort")

    def _end(self, how: str) -> None:
        is_first = not self._is_closing
        self._is_closing = True
        if self._wire is not None:
            getattr(self._wire, how)()
        elif is_first:
            self._loop.call_soon(self._protocol.connection_lost, None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        if self._wire is not None:
            self._wire.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False
        if self._wire is not None:
            self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._is_reading = True
        if self._wire is not None:
            self._wire.resume_reading()

    def get_write_buffer_size(self) -> int:
        size: int = self._session.kept_size if self._wire is None else self._wire.get_write_buffer_size()
        return size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        limits: tuple[int, int] = self._last_wire.get_write_buffer_limits()
        return limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._last_wire.set_write_buffer_limits(high, low)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False  # the end of one direction would be the end of a wire


class _Nobody(asyncio.Protocol):
    """Hears the last events of a wire that was taken off."""


_NOBODY = _Nobody()


def feed(transport: SessionTransport, data: bytes) -> None:
    """Give *data* to the protocol of *transport*, as a wire would."""
    while data:
        protocol = transport.get_protocol()
        if not isinstance(protocol, asyncio.BufferedProtocol):
            assert isinstance(protocol, asyncio.Protocol)
            protocol.data_received(data)
            return
        buffer = memoryview(protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        data = data[size:]
        protocol.buffer_updated(size)
