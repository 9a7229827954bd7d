"""The types of frames and what a first request says about its sender.

A frame's payload is the codec's encoding of ``[type, id, content]``. Types 0 to 2 are those of aiomas,
simpy.io and mosaik; from 3 on they are ours and are sent only to a peer that has shown that it knows them
(see :class:`~aiomas_ng._core.exchange.Exchange`).
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACK",
    "BUNDLE",
    "CANCEL",
    "CLOSE",
    "CREDIT",
    "EXCEPTION",
    "FIRST_ID",
    "ITEM",
    "LANE_RESOURCES",
    "LANE_RPC",
    "MESSAGE",
    "PING",
    "PONG",
    "REQUEST",
    "RESULT",
    "SESSION",
    "STREAM",
    "WIRE_VERSION",
]

REQUEST: Final = 0
RESULT: Final = 1
EXCEPTION: Final = 2
#: ``[3, id, null]``: the sender of request *id* no longer wants its result.
CANCEL: Final = 3
#: ``[4, id, value]``: one item of the stream that answers request *id*.
ITEM: Final = 4
#: ``[5, lane, content]``: a message that is not answered; the lane says who takes it.
MESSAGE: Final = 5
#: ``[6, id, n]``: *n* more items of the stream that answers request *id* may be sent.
CREDIT: Final = 6
#: ``[7, n, null]``, answered by ``[8, n, null]``.
PING: Final = 7
PONG: Final = 8
#: ``[9, 0, {"version": 1, …}]``: the sender is one of ours; answers the peer's first request.
SESSION: Final = 9
#: ``[10, id, null]``: request *id* is answered by a stream; its items follow as credit allows.
STREAM: Final = 10

#: The lane of one-way RPC calls, and of :meth:`Channel.post`.
LANE_RPC: Final = 0
#: The lane of requests to resources, and the responses to them (see :mod:`aiomas_ng.message`).
LANE_RESOURCES: Final = 1

#: ``[11, 0, [[type, id, content], …]]``: several frames in one, sent to a peer whose SESSION has said that it
#: takes them: to decode them together is faster than one by one.
BUNDLE: Final = 11

#: ``[12, n, null]``: *n* bytes of the session have been received (see :mod:`~aiomas_ng._core.session`).
ACK: Final = 12
#: ``[13, 0, reason]``: the sender takes no new requests, answers those under way, and closes the connection
#: then, for good. Sent to a peer whose SESSION has said that it knows it, or that takes part in a session.
CLOSE: Final = 13

#: Our ids count up from here.  Old peers echo any id; ours recognize one of theirs by its first request.
FIRST_ID: Final = 0x616E6700

WIRE_VERSION: Final = 1
