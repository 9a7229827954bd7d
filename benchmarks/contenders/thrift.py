"""thriftpy2: declared types, buffered binary protocol and transport in C, a thread for each connection.

Blocking; one call at a time on a connection, so nothing can be in flight.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import thriftpy2
from thriftpy2.protocol.cybin import TCyBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.server import TThreadedServer
from thriftpy2.thrift import TProcessor
from thriftpy2.transport import TServerSocket
from thriftpy2.transport.buffered import TCyBufferedTransportFactory

from benchmarks.contender import Operations

INTERFACE = """
struct Record {1: i64 id, 2: double t, 3: double p_kw, 4: string name, 5: bool ok}
service Echo {
    i64 number(1: i64 value),
    Record record(1: Record value),
    binary data(1: binary value),
    oneway void post(1: i64 value),
    i64 arrived(),
}
"""


interface = thriftpy2.load_fp(io.StringIO(INTERFACE), "echo_thrift")
PROTOCOL = TCyBinaryProtocolFactory()
TRANSPORT = TCyBufferedTransportFactory()


class Echo:
    """What is called."""

    count = 0

    def number(self, value: Any) -> Any:
        """Return *value*."""
        return value

    record = data = number

    def post(self, value: int) -> None:
        """Count a message."""
        self.count += 1

    def arrived(self) -> int:
        """Return how many messages there were."""
        return self.count


@contextmanager
def server() -> Iterator[Any]:
    """Serve, until the process ends: the library has no other end."""
    listener = TServerSocket("127.0.0.1", 0, client_timeout=None)
    server = TThreadedServer(TProcessor(interface.Echo, Echo()), listener, TRANSPORT, PROTOCOL, daemon=True)
    threading.Thread(target=server.serve, daemon=True).start()
    while listener.sock is None or not listener.sock.getsockname()[1]:
        time.sleep(0.01)
    yield listener.sock.getsockname()


@contextmanager
def client(address: Any) -> Iterator[Operations]:
    """Be connected."""
    client = make_client(
        interface.Echo, *address, proto_factory=PROTOCOL, trans_factory=TRANSPORT, timeout=None
    )

    def post(count: int) -> None:
        for number in range(count):
            client.post(number)

    yield Operations(
        number=client.number,
        record=client.record,
        data=client.data,
        post=post,
        arrived=client.arrived,
        as_record=lambda record: interface.Record(**record),
    )
    client.close()
