"""Many calls that are handed over at once: fewer messages, futures and turns of the loop than one by one.

::

    batch ── per connection, 64 at a time ── one request ──▶ Batch.run: each call in its turn
      ▲                                                        │ async ones: all together, in a Job
      └────────────── one result for all of them ◀─────────────┘
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any, Final

from aiomas_ng._core import failure
from aiomas_ng._core.calls import MAX_BATCH, SEQUENCES, explain_bad_call
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.frames import RESULT
from aiomas_ng._core.routing import Router
from aiomas_ng._io.answerer import PLAIN_TYPES, Answerer
from aiomas_ng._io.job import dispose, is_awaitable, is_stream, pass_on_interrupt
from aiomas_ng._io.proxy import CallOptions, Proxy
from aiomas_ng._io.reply import Reply
from aiomas_ng.exceptions import (
    ChannelClosedError,
    DeadlineExceededError,
    DeserializationError,
    FrameTooLargeError,
    MalformedFrameError,
    OverloadError,
    RemoteException,
    RoutingError,
    SerializationError,
    StreamError,
)

__all__ = ["answer_batch", "batch"]

#: The task of the call of a batch that the running code is part of.
CURRENT_CALL: contextvars.ContextVar[asyncio.Task[Any] | None] = contextvars.ContextVar(
    "CURRENT_CALL", default=None
)

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
        ChannelClosedError, CallTimeoutError, DeadlineExceededError, FrameTooLargeError, OverloadError: As for
            single calls, for some of the calls together.

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

    __slots__ = ("_error", "_replies", "calls", "link", "options", "places")

    def __init__(self, proxy: Any) -> None:
        self.link: Any = proxy._link if proxy is not None else None
        self.options: CallOptions | None = proxy._options if proxy is not None else None
        self.places: list[int] = []
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        # The reply to all, or those to each; one-way calls have none.
        self._replies: Reply | list[Reply | None] = []
        self._error: Exception | None = None  # why they could not be sent

    def send(self, timeout: float | None) -> None:
        """Send them.

        Raises:
            SerializationError, FrameTooLargeError: Arguments cannot be sent.
        """
        try:
            channel, options = self.link.channel, self.options
            if channel is not None and channel._exchange.is_peer_ours and options is None:
                name = f"a batch of {len(self.calls)} calls"
                self._replies = channel._request((None, self.calls, {}), (), name, timeout)
                channel._protocol.flush()
                return
            # The peer is not known to understand batches, or something is special about these calls.
            if timeout is not None and not (options is not None and options.oneway):
                own = options.timeout if options is not None else None
                options = CallOptions(timeout if own is None else min(own, timeout))
            self._replies = replies = []
            for path, args, kwargs in self.calls:
                replies.append(self.link.call(path, args, kwargs, options))
        except (ChannelClosedError, OverloadError, DeadlineExceededError) as error:
            self._error = error

    async def collect(self, results: list[Any], errors: dict[int, Exception]) -> None:
        """Wait for the outcomes and put them where they belong."""
        replies = self._replies
        if isinstance(replies, list):
            # Those after the first one that could not be sent were not sent either.
            for place in self.places[len(replies) :]:
                assert self._error is not None
                errors[place] = self._error
            for place, reply in zip(self.places, replies, strict=False):
                try:
                    results[place] = await reply if reply is not None else None
                except Exception as error:
                    errors[place] = error
            return
        try:
            self._put(await replies, results, errors)
        except RemoteException as error:
            for place, (path, _, _) in zip(self.places, self.calls, strict=True):
                errors[place] = own = type(error)(
                    error.origin, error.remote_traceback, error.type_name, error.message
                )
                own.path = path
        except Exception as error:
            errors.update(dict.fromkeys(self.places, error))

    def _put(self, outcome: Any, results: list[Any], errors: dict[int, Exception]) -> None:
        """Put the result of a batch where it belongs.

        Raises:
            MalformedFrameError: It is none.
        """
        count = len(self.places)
        try:
            values, failures = outcome
            if type(values) not in SEQUENCES or len(values) != count or type(failures) not in SEQUENCES:
                raise ValueError(outcome)
            failed = {index: description for index, description in failures}
            if not all(type(index) is int and 0 <= index < count for index in failed):
                raise ValueError(outcome)
        except (TypeError, ValueError):
            text = f"the result of a batch of {count} must be [results, errors] but is {short(outcome)}"
            raise MalformedFrameError(text) from None
        first = self.places[0]
        if self.places[-1] - first == count - 1:  # in a row, as nearly always
            results[first : first + count] = values
        else:
            for place, value in zip(self.places, values, strict=True):
                results[place] = value
        channel = self.link.channel
        origin = channel._protocol._peername() if channel is not None else self.link.url
        for index, description in failed.items():
            error = failure.rebuild(origin, description)
            error.path = self.calls[index][0]
            errors[self.places[index]] = error

    def cancel(self) -> None:
        """Give up what has not ended."""
        for reply in self._replies if isinstance(self._replies, list) else [self._replies]:
            if reply is not None:
                reply.cancel()


def _send(calls: Iterable[partial[Any] | Proxy], parts: list[_Part], timeout: float | None) -> int:
    """Send *calls*, each part as soon as it is full; add the parts to *parts*, return the number of calls."""
    current: dict[Any, _Part] = {}  # those that are not full, by the place they go to
    last: Any = None  # the last proxy, whose path and part are known
    path, part = "", _Part(None)
    part_calls, places = part.calls, part.places
    index = -1
    for index, call in enumerate(calls):
        if type(call) is partial:
            proxy, args, kwargs = call.func, call.args, call.keywords
            if proxy is last and len(places) < MAX_BATCH - 1:  # nothing about it needs a second look
                places.append(index)
                part_calls.append((path, args, kwargs))
                continue
        else:
            proxy, args, kwargs = call, (), {}
        if type(proxy) is not Proxy or not proxy._path:
            raise TypeError(
                f"call {index} of a batch is {short(call)}; give proxies of functions, with arguments as "
                f"functools.partial(proxy, …)"
            )
        path = proxy._path
        place = proxy._channel or proxy._link
        found = current.get(place)
        if found is not None and (found.options != proxy._options or found.link is not proxy._link):
            found.send(timeout)  # what goes to one place stays in its order
            found = None
        if found is None:
            found = current[place] = _Part(proxy)
            parts.append(found)
        part = found
        part_calls, places = part.calls, part.places
        places.append(index)
        part_calls.append((path, args, kwargs))
        if len(places) < MAX_BATCH:
            last = proxy
        else:
            del current[place]
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
            path, args, kwargs = call if len(call) == 3 else call[:3]
            if type(args) not in SEQUENCES or type(kwargs) is not dict or type(call) not in SEQUENCES:
                raise TypeError
            func = functions.get(path) if type(path) is str else None
            if func is None:
                if router is None:
                    raise RoutingError("this side of the connection offers no RPC service")
                func = functions[path] = router.resolve(path, channel._principal)
            result = func(*args, **kwargs)
            if type(result) not in PLAIN_TYPES:
                if is_awaitable(result):
                    waiting.append((index, result))
                    result = None
                elif is_stream(result):
                    raise StreamError(NO_STREAM)
        except BaseException as error:  # even CancelledError: the function has it from some other future
            pass_on_interrupt(error)
            errors.append((index, _describe(channel, call, error)))
            result = None
        results.append(result)
    if len(waiting) + len(channel._running) + channel._batched > channel._limits.requests:
        overload = OverloadError("too many requests of this connection are being worked on")
        for index, awaitable in waiting:
            dispose(awaitable)
            errors.append((index, channel._describe(overload)))
        waiting = []
    rest = _Rest(channel, results, errors, waiting, [calls[index][0] for index, _ in waiting])
    if waiting:
        channel._settle(msg_id, rest)
        rest.count()
        return
    try:
        channel._protocol.write_now(channel._encode((RESULT, msg_id, (results, errors))))
    except (SerializationError, FrameTooLargeError):
        rest.leave_out_unencodable()
        channel._answer(msg_id, (results, errors))
    channel._protocol.flush()  # there may be more in this read, but this is enough for a write


def _describe(channel: Answerer, call: Any, error: BaseException) -> list[str]:
    tb = error.__traceback__
    if tb is not None and tb.tb_next is None:  # raised by answer_batch itself, before or at the call
        error = explain_bad_call(call, error)
    return channel._describe(error)


class _Rest:
    """What is left of a batch after its plain calls: awaitable for its result.

    Args:
        channel: Where the batch came from.
        results: The results so far.
        errors: And the errors.
        waiting: Index and awaitable of each of the others.
        paths: Their paths.
    """

    def __init__(
        self,
        channel: Answerer,
        results: list[Any],
        errors: list[tuple[int, list[str]]],
        waiting: list[tuple[int, Any]],
        paths: list[str],
    ) -> None:
        self._channel = channel
        self._results = results
        self._errors = errors
        self._waiting = waiting
        self._paths = paths
        self._given_up: set[asyncio.Task[Any]] = set()  # by cancel_others
        self._tasks: list[asyncio.Task[Any]] = []
        self._counted = 0
        self._is_over = False  # closed, or at its end

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    def count(self) -> None:
        """Count the tasks among those of the connection."""
        if not self._is_over:
            self._counted = len(self._waiting)
            self._channel._batched += self._counted

    def close(self) -> None:
        """Drop what was not begun."""
        for _, awaitable in self._waiting:
            dispose(awaitable)
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._channel._batched -= self._counted
        self._counted = 0

    def cancel_others(self, prefix: str = "") -> None:
        """One of the calls ends the connection, or what lies below *prefix*: cancel the others."""
        current = asyncio.current_task() if prefix else CURRENT_CALL.get()
        for task, path in zip(self._tasks, self._paths, strict=False):
            if task is not current and path.startswith(prefix):
                self._given_up.add(task)
                task.cancel()

    async def _run(self) -> Any:
        create_task = self._channel._loop.create_task
        self._tasks = [create_task(self._run_to_end(awaitable)) for _, awaitable in self._waiting]
        try:
            outcomes = await asyncio.gather(*self._tasks)
        finally:
            for task, (_, awaitable) in zip(self._tasks, self._waiting, strict=True):
                if task.done():  # it may have been cancelled before its first step
                    dispose(awaitable)
            self._end()
        for (index, _), (result, error) in zip(self._waiting, outcomes, strict=True):
            if error is not None:
                self._errors.append((index, self._channel._describe(error)))
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
                self._errors.append((index, self._channel._describe(error)))

    async def _run_to_end(self, awaitable: Any) -> tuple[Any, BaseException | None]:
        """Return result and error of an ``async`` call."""
        CURRENT_CALL.set(asyncio.current_task())
        try:
            result = await awaitable
            if is_stream(result):
                raise StreamError(NO_STREAM)
            return result, None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling() and task not in self._given_up:
                raise
            return None, error  # or of something that it has waited for
        except BaseException as error:
            pass_on_interrupt(error)
            return None, error
