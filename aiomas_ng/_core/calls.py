"""What is in a request for a remote procedure call: ``[path, args, kwargs]``.

A batch of calls has ``None`` for its path, and such requests for its args. Its result is ``[results,
errors]``: a list of the calls' results, ``None`` for those that failed, and a list of ``[index, exception]``
for these, each exception as in an EXCEPTION frame.
"""

from __future__ import annotations

from typing import Any, Final

from aiomas_ng.exceptions import ArgumentError, DeserializationError, RoutingError

__all__ = ["MAX_BATCH", "SEQUENCES", "explain_bad_call"]

#: What the arguments of a call are, decoded.
SEQUENCES: Final = (tuple, list)

#: Calls of a batch that are sent in one request. The peer works on one while the next is encoded.
MAX_BATCH: Final = 64


def explain_bad_call(content: Any, error: BaseException) -> BaseException:
    """Return what is wrong with a call that could not even be begun."""
    if isinstance(error, RoutingError):
        return error
    if not isinstance(content, tuple | list) or len(content) not in (3, 4):
        return DeserializationError("the content of an RPC request must be [path, args, kwargs]")
    path, args, kwargs = content[:3]
    if (
        not isinstance(args, SEQUENCES)
        or not isinstance(kwargs, dict)
        or not all(isinstance(key, str) for key in kwargs)
    ):
        return DeserializationError(
            "the content of an RPC request must be [path, args, kwargs] with a list and a dict"
        )
    if isinstance(error, TypeError):
        return ArgumentError(f"cannot call {path!r}: {error}")
    return error
