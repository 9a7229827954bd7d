"""The short way of a call from one agent to another of the same container.

Such calls go through a channel whose two ends are in this process, as all others. But where the caller does
nothing else than wait for the reply, the function is run right then, in place of the turns of the loop that
would run it: no message, no future that is waited for, and everything else as ever. In particular:

- The values pass through the codec, both ways.
- The function is run when the caller *waits*, not when it calls: until then code of the caller's may run on
  that must not be interrupted by what the function does.
- Calls and messages stay in their order: the short way is taken only if all that was sent before has been
  taken, and what is sent after goes after it.
- The function has the context (:mod:`contextvars`) that it always has, not the caller's.
- A result does not overtake what was sent to the caller before.
- What is large takes the long way, where the limits are.
- After :data:`MAX_IN_A_ROW` calls in a turn of the loop the next one takes the long way, so that others have
  their turn.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import msgpack
from msgpack import unpackb

from aiomas_ng._core.deadline import get_deadline
from aiomas_ng._core.frames import REQUEST
from aiomas_ng._io.answerer import PLAIN_TYPES
from aiomas_ng._io.job import is_awaitable, is_stream
from aiomas_ng._io.principal import CURRENT_PRINCIPAL
from aiomas_ng._io.reply import Reply
from aiomas_ng.codecs import LARGE, MsgPack
from aiomas_ng.exceptions import AiomasError

if TYPE_CHECKING:
    from aiomas_ng._core.routing import Router
    from aiomas_ng._io.proxy import CallOptions
    from aiomas_ng.rpc import RpcClient

__all__ = ["MAX_IN_A_ROW", "Shortcut"]

#: Calls that may take the short way in one turn of the loop.
MAX_IN_A_ROW: Final = 50


class _OwnReply(Reply):
    """The reply to a call that may take the short way."""

    __slots__ = ("_args", "_kwargs", "_shortcut")

    _args: bytes  #: Encoded.
    _kwargs: bytes  #: Encoded.
    _shortcut: Shortcut | None  #: ``None`` from when the call has left.

    def __await__(self) -> Generator[Any, None, Any]:
        if self._shortcut is not None:
            self._shortcut.run(self)
        return _await(self)

    __iter__ = __await__


_await: Final = asyncio.Future.__await__
_NO_KWARGS: Final = b"\x80"


def _new_packer() -> Callable[[Any], bytes]:
    # Without a hook, so that nothing can use it while it packs.  What it cannot pack, the codec can.
    pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack
    return pack


class Shortcut:
    """Joins the two ends of a container's channel to itself.

    Args:
        near: The end that the calls are sent from; its codec is plain :class:`~aiomas_ng.codecs.MsgPack`.
        far: What serves them at the other end.
        router: Finds the functions.
    """

    def __init__(self, near: RpcClient, far: RpcClient, router: Router) -> None:
        self._client = near
        self._near = near.channel
        self._far = far
        self._loop = near.channel._loop
        self._router = router
        self._exchange = near.channel._exchange
        # What is on its way back; it must not be overtaken by a result.
        self._way_back = near.channel.transport._incoming
        self._far_protocol = far.channel._protocol
        # The type, an id of nine bytes and the heads of the arrays come on top of what is counted.
        self._room = min(near.channel._limits.frame_size, far.channel._limits.frame_size, LARGE) - 16
        self._pack = _new_packer()
        assert isinstance(near.channel.codec, MsgPack)
        assert isinstance(far.channel.codec, MsgPack)
        self._near_hook = near.channel.codec._ext_hook
        self._far_hook = far.channel.codec._ext_hook
        # That of all that comes by the long way.
        self._context: contextvars.Context = far.channel.transport._context
        # All that runs in it is called by us. So rules are not asked: what lives here may do everything.
        self._context.run(CURRENT_PRINCIPAL.set, far.channel._principal)
        self._lone: _OwnReply | None = None  # the call that nobody waits for yet
        self._is_clear = True  # nothing else is under way
        self._count = 0
        self._is_turn_due = False
        self._is_running = False
        near.channel._shortcut = self
        for channel in near.channel, far.channel:
            channel._exchange.recognize()

    def call(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions | None
    ) -> Reply | None:
        """Call the function at *path*; see :meth:`aiomas_ng.channel.Channel.send` for errors."""
        if (
            self._lone is not None
            or options is not None
            or get_deadline() is not None  # which has to travel along
            # In a turn in which something took the long way, all that follows does.
            or not (self._is_clear or (not self._is_turn_due and self._check_clear()))
            or len(self._exchange.calls) >= self._exchange.max_calls
        ):
            return self._client.call(path, args, kwargs, options)
        reply = _OwnReply(loop=self._loop)
        pack = self._pack
        try:
            reply._args = pack(args)
            reply._kwargs = pack(kwargs) if kwargs else _NO_KWARGS
        except Exception:
            reply._args = self._near.codec.encode(args)
            reply._kwargs = self._near.codec.encode(kwargs)
            if self._lone is not None:
                self._hand_over()  # a serializer has made a call of its own
        is_large = len(path) + len(reply._args) + len(reply._kwargs) > self._room
        if is_large or not path.isascii():
            if is_large:
                self._pack = _new_packer()  # it never gives back what it has once needed
            return self._client.call(path, args, kwargs, options)  # which says what is wrong, if anything is
        reply.path = path
        reply._channel = None
        reply._shortcut = self
        self._lone = reply
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._turn)
        return reply

    def make_way(self) -> None:
        """Something is about to be sent by the long way: what was called before goes first."""
        self._is_clear = False
        if self._lone is not None:
            self._hand_over()

    def _turn(self) -> None:
        """A turn of the loop is over."""
        self._is_turn_due = False
        self._count = 0
        if self._lone is not None:
            self._hand_over()

    def _check_clear(self) -> bool:
        """See whether all that took the long way has arrived."""
        near, far = self._near, self._far.channel
        is_under_way = near._protocol.get_unsent_size() or far._inbox or far._protocol.is_paused
        self._is_clear = near._error is None and not is_under_way
        return self._is_clear

    def _hand_over(self) -> None:
        """Let the call that nobody waits for take the long way."""
        reply, self._lone = self._lone, None
        assert reply is not None
        assert reply.path is not None
        reply._shortcut = None
        if reply.done():
            return
        self._is_clear = False
        try:
            near, pack = self._near, self._pack
            msg_id = self._open(reply)
            head = b"\x93" + pack(REQUEST) + pack(msg_id) + b"\x93" + pack(reply.path)
            near._protocol.write(head + reply._args + reply._kwargs)
            if not near._is_reading:
                near._start_reading()
        except AiomasError as error:
            if reply._channel is not None:
                near._exchange.withdraw(reply._msg_id)
            reply.set_exception(error)

    def _open(self, reply: _OwnReply) -> int:
        near = self._near
        if near._error is not None:
            near._raise_closed()
        reply._msg_id = near._exchange.open(reply)
        reply._channel = near
        return reply._msg_id

    def run(self, reply: _OwnReply) -> None:
        """The caller of *reply* waits: run the function, if nothing is before it."""
        if (
            not self._is_clear
            or self._is_running
            or self._count >= MAX_IN_A_ROW
            or self._near._error is not None
        ):
            self._hand_over()
            return
        try:
            args = unpackb(reply._args, use_list=False, strict_map_key=False, ext_hook=self._far_hook)
            kwargs = (
                {}
                if reply._kwargs is _NO_KWARGS
                else unpackb(reply._kwargs, use_list=False, strict_map_key=False, ext_hook=self._far_hook)
            )
        except BaseException:
            self._hand_over()  # there it is answered as it should be
            return
        self._lone = reply._shortcut = None
        if reply.done():
            return
        self._count += 1
        path = reply.path
        assert path is not None
        self._is_running = True
        try:
            result = self._context.run(self._router.resolve(path), *args, **kwargs)
        except BaseException as error:
            self._far._call_failed(self._open(reply), (path, args, kwargs), error)
            return
        finally:
            self._is_running = False
        protocol = self._far_protocol
        is_behind = self._way_back.size or protocol._gathered or protocol._held
        if not is_behind and (type(result) in PLAIN_TYPES or not (is_awaitable(result) or is_stream(result))):
            try:
                answer = self._pack(result)
                value = unpackb(answer, use_list=False, strict_map_key=False, ext_hook=self._near_hook)
            except BaseException:
                pass  # it is of no plain type; or it cannot be encoded, and the error is sent
            else:
                if len(answer) <= self._room:
                    if not reply.done():
                        reply.set_result(value)
                    return
                self._pack = _new_packer()
        self._context.run(self._far.channel._settle, self._open(reply), result, path)
