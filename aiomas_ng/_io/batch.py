"""Many calls that are handed over at once: fewer messages, futures and turns of the loop than one by one.

::

    batch ── per connection, 64 at a time ── one request ──▶ Batch.run: each call in its turn
      ▲                                                        │ async ones: all together, in a Job
      └────────────── one result for all of them ◀─────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any, Final

from aiomas_ng._core import failure
from aiomas_ng._core.calls import MAX_BATCH, explain_bad_call
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.frames import RESULT
from aiomas_ng._core.routing import Router
from aiomas_ng._io.answerer import PLAIN_TYPES, Answerer
from aiomas_ng._io.job import dispose, is_awaitable, is_stream
from aiomas_ng._io.proxy import Proxy
from aiomas_ng._io.reply import Reply
from aiomas_ng.exceptions import (
    DeserializationError,
    FrameTooLargeError,
    MalformedFrameError,
    OverloadError,
    RoutingError,
    SerializationError,
    StreamError,
)

__all__ = ["answer_batch", "batch"]

NO_STREAM: Final = "this method streams its reply; it cannot be called in a batch"


async def batch(
    calls: Iterable[partial[Any] | Proxy],
    *,
    timeout: float | None = None,
    return_exceptions: bool = False,
) -> list[Any]:
    """Make many calls at once, and return the list of their results in the order of the calls.

    ::

        powers = await rpc.batch(partial(agent.get_power, hour) for agent in agents)

    They may go to any agents at any places. To each place they go in few messages, several times faster than
    one by one, and are executed there in their order; of ``async`` methods, many run at the same time. What
    is true of a single call is true of each: its values pass through the codec, and its error is its own.

    Args:
        calls: Proxies of functions, with their arguments as :func:`functools.partial`.
        timeout: Seconds to wait for the replies.
        return_exceptions: Return the exception of a call that fails in the place of its result. Else the
            first one is raised, after all calls have ended.

    Raises:
        TypeError: One of *calls* is something else.
        SerializationError: Arguments cannot be encoded; then calls of this batch may have been sent already.
        RemoteException: A call has failed at the peer.
        ChannelClosedError, CallTimeoutError, FrameTooLargeError, OverloadError: As for single calls, for some
            of the calls together.

    Cancelling it gives up the calls, as far as they have not ended.
    """
    parts: list[_Part] = []
    results: list[Any] = []
    errors: dict[int, Exception] = {}
    try:
        count = _send(calls, parts, timeout)
        results = [None] * count
        for part in parts:
            await part.collect(results, errors)
    except BaseException:
        for part in parts:
            part.cancel()
        raise
    if errors and not return_exceptions:
        raise errors[min(errors)]
    for index, error in errors.items():
        results[index] = error
    return results


class _Part:
    """Calls of a batch that go over the same connection in one request.

    Args:
        proxy: The proxy of the first of them.
    """

    __slots__ = ("_replies", "calls", "places", "proxy")

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy
        self.places: list[int] = []
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        # The reply to all, or those to each; one-way calls have none.
        self._replies: Reply | list[Reply | None] = []

    def send(self, timeout: float | None) -> None:
        channel, options = self.proxy._channel, self.proxy._options
        if channel is not None and channel._exchange.is_peer_ours and options is None:
            name = f"a batch of {len(self.calls)} calls"
            self._replies = channel._request((None, self.calls, {}), (), name, timeout)
            channel._protocol.flush()
            return
        # The peer is not known to understand batches, or something is special about these calls.
        link = self.proxy._link
        self._replies = replies = []
        for path, args, kwargs in self.calls:
            reply = link.call(path, args, kwargs, options)
            if reply is not None and timeout is not None:
                reply.expire_after(timeout)
            replies.append(reply)

    async def collect(self, results: list[Any], errors: dict[int, Exception]) -> None:
        """Wait for the outcomes and put them where they belong."""
        if isinstance(self._replies, list):
            for place, reply in zip(self.places, self._replies, strict=True):
                try:
                    results[place] = await reply if reply is not None else None
                except Exception as error:
                    errors[place] = error
            return
        try:
            self._put(await self._replies, results, errors)
        except Exception as error:
            errors.update(dict.fromkeys(self.places, error))

    def _put(self, outcome: Any, results: list[Any], errors: dict[int, Exception]) -> None:
        try:
            values, failures = outcome
            for place, value in zip(self.places, values, strict=True):
                results[place] = value
            channel = self.proxy._channel
            origin = channel._protocol._peername() if channel is not None else self.proxy._link.url
            for index, description in failures:
                error = failure.rebuild(origin, description)
                error.path = self.calls[index][0]
                errors[self.places[index]] = error
        except (TypeError, ValueError, IndexError) as cause:
            raise MalformedFrameError(
                f"the result of a batch must be [results, errors]: {short(outcome)}"
            ) from cause

    def cancel(self) -> None:
        """Give up what has not ended."""
        for reply in self._replies if isinstance(self._replies, list) else [self._replies]:
            if reply is not None:
                reply.cancel()


def _send(calls: Iterable[partial[Any] | Proxy], parts: list[_Part], timeout: float | None) -> int:
    """Send *calls*, each part as soon as it is full; add the parts to *parts*, return the number of calls."""
    current: dict[Any, _Part] = {}  # those that are not full, by the way there
    last: Any = None  # the last proxy, whose path and part are known
    path, part = "", _Part(None)
    index = -1
    for index, call in enumerate(calls):
        if type(call) is partial:
            proxy, args, kwargs = call.func, call.args, call.keywords
            if proxy is last and len(part.calls) < MAX_BATCH - 1:  # nothing about it needs a second look
                part.places.append(index)
                part.calls.append((path, args, kwargs))
                continue
        else:
            proxy, args, kwargs = call, (), {}
        if type(proxy) is not Proxy or not proxy._path:
            raise TypeError(
                f"call {index} of a batch is {short(call)}; give proxies of functions, with arguments as "
                f"functools.partial(proxy, …)"
            )
        path = proxy._path
        key = proxy._link if proxy._options is None else (proxy._link, proxy._options)
        found = current.get(key)
        if found is None:
            found = current[key] = _Part(proxy)
            parts.append(found)
        part = found
        part.places.append(index)
        part.calls.append((path, args, kwargs))
        if len(part.calls) < MAX_BATCH:
            last = proxy
        else:
            del current[key]
            last = None
            part.send(timeout)  # the peer works on it while the next one is put together
    for part in current.values():
        part.send(timeout)
    return index + 1


def answer_batch(channel: Answerer, router: Router | None, msg_id: int | str, calls: Any) -> None:
    """Execute the *calls* of a peer and answer with all of their results.

    Raises:
        DeserializationError: They are too many.
    """
    if len(calls) > MAX_BATCH:
        raise DeserializationError(f"a batch has {len(calls)} calls, {MAX_BATCH} are the most")
    results: list[Any] = []
    errors: list[tuple[int, list[str]]] = []
    waiting: list[tuple[int, Any]] = []
    functions: dict[str, Any] = {}  # the calls have come at once, so each is looked up once
    for index, call in enumerate(calls):
        result = None
        try:
            path, args, kwargs = call
            func = functions.get(path)
            if func is None:
                if router is None:
                    raise RoutingError("this side of the connection offers no RPC service")
                func = functions[path] = router.resolve(path)
            result = func(*args, **kwargs)
            if type(result) not in PLAIN_TYPES:
                if is_awaitable(result):
                    waiting.append((index, result))
                    result = None
                elif is_stream(result):
                    raise StreamError(NO_STREAM)
        except (SystemExit, KeyboardInterrupt):
            for _, awaitable in waiting:
                dispose(awaitable)
            raise
        except BaseException as error:  # even CancelledError: the function has it from some other future
            errors.append((index, _describe(call, error)))
            result = None
        results.append(result)
    if len(waiting) + len(channel._running) + channel._batched > channel._limits.requests:
        overload = OverloadError("too many requests of this connection are being worked on")
        for index, awaitable in waiting:
            dispose(awaitable)
            errors.append((index, failure.describe(overload)))
        waiting = []
    rest = _Rest(channel, results, errors, waiting)
    if not waiting:
        try:
            channel._protocol.write_now(channel._encode((RESULT, msg_id, (results, errors))))
        except (SerializationError, FrameTooLargeError):
            rest.leave_out_unencodable()
            channel._answer(msg_id, (results, errors))
        channel._protocol.flush()  # there may be more in this read, but this is enough for a write
    else:
        channel._settle(msg_id, rest)


def _describe(call: Any, error: BaseException) -> list[str]:
    tb = error.__traceback__
    if tb is not None and tb.tb_next is None:  # raised by answer_batch itself, before or at the call
        error = explain_bad_call(call, error)
    return failure.describe(error)


class _Rest:
    """What is left of a batch after its plain calls: awaitable for its result.

    Args:
        channel: Where the batch came from.
        results: The results so far.
        errors: And the errors.
        waiting: Index and awaitable of each of the others.
    """

    def __init__(
        self,
        channel: Answerer,
        results: list[Any],
        errors: list[tuple[int, list[str]]],
        waiting: list[tuple[int, Any]],
    ) -> None:
        self._channel = channel
        self._results = results
        self._errors = errors
        self._waiting = waiting

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    def close(self) -> None:
        """Drop what was not begun."""
        for _, awaitable in self._waiting:
            dispose(awaitable)

    async def _run(self) -> Any:
        count = len(self._waiting)
        self._channel._batched += count
        try:
            outcomes = await asyncio.gather(*[_run_to_end(awaitable) for _, awaitable in self._waiting])
        finally:
            self._channel._batched -= count
        for (index, _), (result, error) in zip(self._waiting, outcomes, strict=True):
            if error is not None:
                self._errors.append((index, failure.describe(error)))
            else:
                self._results[index] = result
        try:
            self._channel._encode((RESULT, 0, (self._results, self._errors)))
        except SerializationError:
            self.leave_out_unencodable()
        return self._results, self._errors

    def leave_out_unencodable(self) -> None:
        """Turn results that cannot be encoded into errors."""
        for index, result in enumerate(self._results):
            try:
                self._channel._encode((RESULT, 0, result))
            except SerializationError as error:
                self._results[index] = None
                self._errors.append((index, failure.describe(error)))


async def _run_to_end(awaitable: Any) -> tuple[Any, BaseException | None]:
    """Return result and error of an ``async`` call."""
    try:
        result = await awaitable
        if is_stream(result):
            raise StreamError(NO_STREAM)
        return result, None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None, error  # of something that it has waited for
    except Exception as error:
        return None, error
