"""Who waits for what on one connection.

The rules of the exchange, for both sides alike:

- Ids are per sender. Ours count up from :data:`~aiomas_ng._core.frames.FIRST_ID`, so an id tells by itself
  whether it was ever given out, and a late or double reply is told from one that is unknown without
  remembering anything.
- A request ends exactly once: settled by a reply, abandoned by its caller, or failed when the connection
  closes.
- A reply to a request that has ended is dropped.  A reply to one that never was is an error of the peer.
- A peer may not use the id of a request that is still being worked on.
- The peer is one of ours when its first request has our first id, or when it has sent a frame of a type above
  2. Until that is known, abandoned requests are remembered, and cancelled at the peer once it is.

The class holds *calls* (what waits for our requests) and *jobs* (what works on the peer's) without looking at
them.
"""

from __future__ import annotations

from typing import Any, Final

from aiomas_ng._core.budget import Budget
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.frames import FIRST_ID
from aiomas_ng.exceptions import MalformedFrameError, OverloadError, UnknownReplyError

__all__ = ["Exchange"]

#: Abandoned requests remembered until it is known whether the peer understands that they are cancelled.
MAX_REMEMBERED: Final = 1024


class Exchange:
    """The ids in use on one connection, ours and the peer's.

    Args:
        limit: Requests of ours that may wait for a reply.
        budget: What all connections of the container share.
    """

    __slots__ = (
        "_abandoned",
        "_budget",
        "_has_seen_request",
        "_limit",
        "_next_id",
        "calls",
        "is_peer_ours",
        "jobs",
        "max_calls",
    )

    def __init__(self, limit: float, budget: Budget | None = None) -> None:
        self._limit = limit
        self._budget = budget
        #: Requests of ours that may wait for a reply, without asking the budget for more.
        self.max_calls: float = limit if budget is None else 0
        self._next_id = FIRST_ID
        self._abandoned: list[int] = []
        self._has_seen_request = False
        #: Whether the peer understands frames of types above 2.
        self.is_peer_ours = False
        #: What waits for our requests, by id.
        self.calls: dict[int, Any] = {}
        #: What works on the peer's requests, by id.
        self.jobs: dict[int | str, Any] = {}

    # Our requests

    def open(self, call: Any) -> int:
        """Register *call* and return its id.

        Raises:
            OverloadError: Too many calls wait already.
        """
        if len(self.calls) >= self.max_calls:
            self._find_room()
        msg_id = self._next_id
        self._next_id = msg_id + 1
        self.calls[msg_id] = call
        return msg_id

    @property
    def next_id(self) -> int:
        """The id of the next call."""
        return self._next_id

    def _find_room(self) -> None:
        count = len(self.calls)
        if count >= self._limit or self._budget is None:
            raise OverloadError(f"{count} calls wait for a reply on this connection, which is the limit")
        more = self._budget.lend(self, self._limit)
        if not more:
            raise OverloadError(
                f"{count} calls wait for a reply on this connection, and with those on all others of the "
                f"container, as many as Limits(container_calls=...) allows"
            )
        self.max_calls += more

    def withdraw(self, msg_id: int) -> None:
        """Forget the call of *msg_id*, whose request was not sent after all.

        The id is given out again: the peer recognizes us by the first one it sees. Not so if the call has
        ended meanwhile, because it was abandoned or everything was closed: then it may be on record.
        """
        if self.calls.pop(msg_id, None) is not None and msg_id == self._next_id - 1:
            self._next_id = msg_id

    def settle(self, msg_id: Any) -> Any | None:
        """Take the call that a reply to *msg_id* ends; ``None`` if it has ended before.

        Raises:
            UnknownReplyError: No request of that id was ever sent.
        """
        return self.calls.pop(msg_id, None) if self._was_opened(msg_id) else None

    def find(self, msg_id: Any) -> Any | None:
        """Return the call that waits for *msg_id* without ending it; ``None`` if it has ended.

        Raises:
            UnknownReplyError: No request of that id was ever sent.
        """
        return self.calls.get(msg_id) if self._was_opened(msg_id) else None

    def abandon(self, msg_id: int) -> bool:
        """End the call of *msg_id* because its caller gave up; return whether to tell the peer now."""
        if self.calls.pop(msg_id, None) is None:
            return False
        if not self.is_peer_ours and len(self._abandoned) < MAX_REMEMBERED:
            self._abandoned.append(msg_id)
        return self.is_peer_ours

    def _was_opened(self, msg_id: Any) -> bool:
        if type(msg_id) is int and FIRST_ID <= msg_id < self._next_id:
            return True
        raise UnknownReplyError(f"the peer replied to request {short(msg_id)}, which was never sent")

    # The peer's requests

    def begin(self, msg_id: int | str, job: Any) -> None:
        """Register the *job* that works on the peer's request *msg_id*.

        Raises:
            MalformedFrameError: Another request of that id is still being worked on.
        """
        if msg_id in self.jobs:
            raise MalformedFrameError(
                f"the peer used id {short(msg_id)} again before its request was answered"
            )
        self.jobs[msg_id] = job

    def end(self, msg_id: int | str) -> Any | None:
        """Take the job of *msg_id*; ``None`` if there is none (any more)."""
        return self.jobs.pop(msg_id, None)

    # Who the peer is

    def greet(self, msg_id: int | str) -> bool:
        """Note a request of the peer; return whether it is the first one and shows that the peer is ours."""
        if self._has_seen_request:
            return False
        self._has_seen_request = True
        return msg_id == FIRST_ID

    def recognize(self) -> list[int]:
        """Note that the peer is ours; return the abandoned requests that it has to be told of."""
        self.is_peer_ours = True
        abandoned, self._abandoned = self._abandoned, []
        return abandoned

    def close(self) -> tuple[list[Any], list[Any]]:
        """End everything; return the calls that fail and the jobs to stop."""
        calls, jobs = list(self.calls.values()), list(self.jobs.values())
        self.calls.clear()
        self.jobs.clear()
        if self._budget is not None:
            self._budget.settle(self)
        return calls, jobs
