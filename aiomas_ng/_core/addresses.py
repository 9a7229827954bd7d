"""Addresses and URLs.

===========  ==========================================  =====================================
transport    address                                     URL of an agent
===========  ==========================================  =====================================
TCP          ``(host, port)``                            ``tcp://host:port/aid``
Unix socket  ``"/path/of/socket"``                       ``ipc://[/path/of/socket]/aid``
LocalQueue   a :class:`~aiomas_ng.local_queue.LocalQueue`  ``local://queue-id/aid``
===========  ==========================================  =====================================

Without the agent's id the same is the URL of a server, with or without the last slash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import AddressError

__all__ = ["Address", "parse_agent_url", "parse_host_port", "parse_url", "tcp_url"]

PROTOCOLS = ("tcp", "ipc", "local")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: ``(host, port)`` for tcp, else a path (ipc) or queue id (local) in *place*."""

    protocol: str
    place: tuple[str, int] | str

    @property
    def url(self) -> str:
        """The base URL, which ends with a slash."""
        if isinstance(self.place, tuple):
            return tcp_url(*self.place)
        return f"ipc://[{self.place}]/" if self.protocol == "ipc" else f"local://{self.place}/"


def tcp_url(host: str, port: int | str) -> str:
    """Return the base URL of a TCP address; IPv6 hosts get their brackets."""
    return f"tcp://[{host}]:{port}/" if ":" in host else f"tcp://{host}:{port}/"


def parse_url(url: str) -> tuple[Address, str]:
    """Return the address in *url* and what follows it, which may be empty.

    Raises:
        AddressError: The URL does not parse; says where, and what would be right.
    """
    if not isinstance(url, str):
        raise AddressError(f"a URL must be a string but is {url!r}")
    protocol, separator, rest = url.partition("://")
    if not separator or protocol not in PROTOCOLS:
        raise AddressError(f"cannot parse URL {url!r}: it must begin with one of tcp://, ipc://, local://")
    if protocol == "tcp":
        place, _, tail = rest.partition("/")
        host, separator, port = place.rpartition(":")
        if not separator:
            raise AddressError(f"cannot parse URL {url!r}: {place!r} has no port, expected tcp://host:port/…")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if "[" in host or "]" in host:
            raise AddressError(f"cannot parse URL {url!r}: {host!r} is no host, expected tcp://host:port/…")
        if not host:
            raise AddressError(f"cannot parse URL {url!r}: the host is missing, expected tcp://host:port/…")
        try:
            return Address("tcp", parse_host_port((host, port))), tail
        except AddressError as error:
            raise AddressError(f"cannot parse URL {url!r}: {error}") from None
    if protocol == "ipc" and rest.startswith("["):
        # The brackets tell the path from the agent's id, so a path with "]/" in it ends at the last one.
        path, separator, tail = rest[1:].rpartition("]")
        if not separator or not path or (tail and not tail.startswith("/")):
            raise AddressError(f"cannot parse URL {url!r}: expected ipc://[path]/…")
        return Address("ipc", path), tail[1:]
    if protocol == "ipc":
        if not rest:
            raise AddressError(f"cannot parse URL {url!r}: the path is missing, expected ipc://[path]/…")
        return Address("ipc", rest), ""
    queue_id, _, tail = rest.partition("/")
    if not queue_id:
        raise AddressError(f"cannot parse URL {url!r}: the queue id is missing, expected local://id/…")
    return Address("local", queue_id), tail


def parse_agent_url(url: str) -> tuple[Address, str]:
    """Return the container's address and the agent's id in *url*.

    Raises:
        AddressError: The URL does not parse, or names no agent.
    """
    address, aid = parse_url(url)
    if not aid or "/" in aid:
        what = "no agent id is given" if not aid else f"{aid!r} is no agent id"
        raise AddressError(f"cannot parse agent URL {url!r}: {what}, expected {address.url}agent-id")
    return address, aid


def parse_host_port(addr: tuple[Any, ...]) -> tuple[Any, int]:
    """Return ``(host, port)`` with the port as a number; it may come as a numeric string.

    Raises:
        AddressError: Not two parts, or the port is no number from 0 to 65535.
    """
    if len(addr) != 2:
        raise AddressError(f"a TCP address must be (host, port) but is {addr!r}")
    host, port = addr
    number = port
    # int() alone would also take signs, spaces, underscores and the digits of all scripts.
    if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) <= 5:
        number = int(port)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 65535:
        raise AddressError(f"port must be a number from 0 to 65535 but is {short(port)}")
    return host, int(number)
