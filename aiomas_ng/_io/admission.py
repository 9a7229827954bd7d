"""Who may connect to a server: as long as there are not too many connections, in all and from one address."""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import Any

from aiomas_ng._core.limits import Limits
from aiomas_ng._io.limited_log import LimitedLog

__all__ = ["Admission"]


class Admission:
    """The connections of one server, counted.

    Args:
        limits: ``connections`` and ``host_connections`` count.
        log: For those that are refused, or given up.
    """

    __slots__ = ("_hosts", "_limits", "_members", "log")

    def __init__(self, limits: Limits, log: LimitedLog) -> None:
        self.log = log
        self._limits = limits
        self._members: dict[Hashable, Any] = {}
        self._hosts: collections.Counter[Any] = collections.Counter()

    def __len__(self) -> int:
        return len(self._members)

    def admit(self, member: Hashable, peername: Any) -> str | None:
        """Count *member*, a new connection, or return why there is no room for it.

        Args:
            member: The connection.
            peername: Its peer; that of TCP has a host, others have none.
        """
        limits = self._limits
        if len(self._members) >= limits.connections:
            return f"this server has {len(self._members)} connections, which is its limit"
        host = _host_of(peername)
        if host is not None and self._hosts[host] >= limits.host_connections:
            return f"this server has {self._hosts[host]} connections from {host}, which is its limit"
        self._add(member, host)
        return None

    def _add(self, member: Hashable, host: Any) -> None:
        self._members[member] = host
        if host is not None:
            self._hosts[host] += 1

    def readmit(self, member: Hashable, peername: Any) -> None:
        """Count *member*, which has been admitted before and goes on with another transport: there is always
        room for it."""
        self.leave(member)
        self._add(member, _host_of(peername))

    def leave(self, member: Hashable) -> None:
        """*member* has ended; nothing happens if it was not admitted."""
        host = self._members.pop(member, None)
        if host is not None:
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]


def _host_of(peername: Any) -> Any:
    return peername[0] if isinstance(peername, tuple) and peername else None
