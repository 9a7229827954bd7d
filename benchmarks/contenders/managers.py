"""multiprocessing.managers of the standard library: pickles over a connection, a thread for each.

Blocking; one call at a time on a connection, so nothing can be in flight. A stream is a call for each item.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager, IteratorProxy  # type: ignore[attr-defined]  # it is there
from typing import Any

from benchmarks.contender import Operations

KEY = b"benchmarks"


class Echo:
    """What is called."""

    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value

    def stream(self, count: int) -> Iterator[int]:
        """Stream numbers."""
        yield from range(count)


class Manager(BaseManager):
    """The manager, which is client and server."""


Manager.register("Echo", Echo, exposed=("echo", "stream"), method_to_typeid={"stream": "Stream"})
Manager.register("Stream", proxytype=IteratorProxy, create_method=False)


@contextmanager
def server() -> Iterator[Any]:
    """Serve, until the process ends."""
    server = Manager(("127.0.0.1", 0), KEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.address


@contextmanager
def client(address: Any) -> Iterator[Operations]:
    """Be connected."""
    manager = Manager(tuple(address), KEY)
    manager.connect()
    proxy: Any = manager.Echo()  # type: ignore[attr-defined]  # registered above
    yield Operations(number=proxy.echo, record=proxy.echo, data=proxy.echo, stream=proxy.stream)
