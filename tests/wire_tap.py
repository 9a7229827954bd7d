"""A relay between two ends of a TCP connection that keeps what passes, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

__all__ = ["Tap", "read_frames"]


class Tap:
    """Accept connections and pass them on to *target*.

    What the client sends is appended to ``<record>.client``, what the server sends to ``<record>.server``,
    before it is passed on.

    Args:
        target: ``(host, port)`` of the server.
        record: Path of the files, without their suffix.
    """

    def __init__(self, target: tuple[str, int], record: Path) -> None:
        self._target = target
        self._record = record
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Tap:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    @property
    def addr(self) -> tuple[str, int]:
        """Where the relay listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._relay(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(
                self._copy(reader, far_writer, "client"), self._copy(far_reader, writer, "server")
            )
        finally:
            for end in (writer, far_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                self._keep(data, name)
                sink.write(data)
                await sink.drain()
            sink.write_eof()

    def _keep(self, data: bytes, name: str) -> None:
        with open(f"{self._record}.{name}", "ab") as record:
            record.write(data)


def read_frames(path: Path) -> list[Any]:
    """Return the JSON frames in a record; fail if it ends within one."""
    data = path.read_bytes()
    frames = []
    while data:
        size = int.from_bytes(data[:4], "big")
        assert len(data) >= 4 + size, "the record ends within a frame"
        frames.append(json.loads(data[4 : 4 + size]))
        data = data[4 + size :]
    return frames
