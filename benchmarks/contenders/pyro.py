"""Pyro5: a thread for each connection, with the serializer marshal.

That is its fastest; for batches it is msgpack, the fastest that can. Blocking; one call at a time on a
connection, so nothing can be in flight, but there are batches. It runs one-way calls in a thread each. A
stream is a call for each item.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import Pyro5.api

from benchmarks.contender import Operations

Pyro5.api.config.SERIALIZER = "marshal"
Pyro5.api.config.SOCK_NODELAY = True


@Pyro5.api.expose
@Pyro5.api.behavior(instance_mode="single")
class Echo:
    """What is called."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()

    def echo(self, value: Any) -> Any:
        """Return *value*."""
        return value

    @Pyro5.api.oneway  # type: ignore[untyped-decorator]  # has no types
    def post(self, value: int) -> None:
        """Count a message."""
        with self.lock:
            self.count += 1

    def arrived(self) -> int:
        """Return how many messages there were."""
        return self.count

    def stream(self, count: int) -> Iterator[int]:
        """Stream numbers."""
        yield from range(count)


@contextmanager
def server() -> Iterator[Any]:
    """Serve."""
    with Pyro5.api.Daemon("127.0.0.1", 0) as daemon:
        uri = daemon.register(Echo())
        threading.Thread(target=daemon.requestLoop, daemon=True).start()
        yield str(uri)


@contextmanager
def client(address: Any) -> Iterator[Operations]:
    """Be connected."""
    with Pyro5.api.Proxy(address) as proxy, Pyro5.api.Proxy(address) as batch_proxy:
        batch_proxy._pyroSerializer = "msgpack"

        def batch(values: Sequence[Any]) -> list[Any]:
            calls = Pyro5.api.BatchProxy(batch_proxy)
            for value in values:
                calls.echo(value)
            return list(calls())

        def post(count: int) -> None:
            for number in range(count):
                proxy.post(number)

        yield Operations(
            number=proxy.echo,
            record=proxy.echo,
            data=proxy.echo,
            batch=batch,
            post=post,
            arrived=proxy.arrived,
            stream=proxy.stream,
        )
