"""Bodies larger than a message, from the requester's side (RFC 7959).

The body of a request leaves block by block, each after the one before was acknowledged, so that other
messages of the connection get their turn. All blocks have the same Request-Tag (RFC 9175), so that the server
never puts two bodies together. The body of a response is fetched in the same way; all its blocks must have
the same entity tag. If the tag changes on the way, so has the resource, and the body is fetched anew.

All blocks go over one connection: that of the first one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiomas_ng._core.blocks import BERT_UNIT, choose_szx, unit_of
from aiomas_ng._core.codes import SAFE_METHODS
from aiomas_ng.error import ResourceChanged, UnexpectedBlock1Option, UnexpectedBlock2
from aiomas_ng.exceptions import OverloadError
from aiomas_ng.message import Block, Code, Message

if TYPE_CHECKING:
    from aiomas_ng.protocol import Context

__all__ = ["Bodies", "has_more"]

#: How often a body that changes while its blocks are fetched is fetched anew.
RESTARTS: Final = 5

#: Turns of the loop that are left to others between two blocks. A small request takes some eight of them,
#: from end to end. So while it is on its way, one block at most is worked on, and its latency grows by half;
#: without these pauses it was threefold. The transfer takes a fifth longer (tests/big_transfer.py).
TURNS: Final = 8

#: Methods that change nothing, so that they can be done again.

#: Tells the transfers of one process from those of another, and from each other.
_tags = itertools.count(int.from_bytes(os.urandom(4), "big") << 32)


class Bodies:
    """The bodies of one request and of its responses.

    Args:
        context: Sends the blocks.
        request: The request with the whole of its body.
    """

    def __init__(self, context: Context, request: Message) -> None:
        self._context = context
        #: The request with the whole of its body, and with a Request-Tag where it needs one.
        self.request = request
        self.is_large = len(request.payload) > context.limits.payload_size and request.opt.block1 is None
        # Without a tag, the large responses to two equal requests could not be told from each other.
        if (self.is_large or request.code not in SAFE_METHODS) and not request.opt.request_tag:
            tag = next(_tags).to_bytes(8, "big")
            self.request = request.copy(request_tag=(tag,))
        if context.limits.has_small_frames and request.opt.block2 is None:
            # A block of the size that servers choose would not fit into our frames.
            size = min(context.limits.payload_size, BERT_UNIT)
            self.request = self.request.copy(block2=Block(0, False, choose_szx(size, bert=False)))

    async def send(self) -> Message:
        """Send all blocks of the request's body but the last.

        Returns:
            The request with the last block, still to be sent; or the response, if there is one already.

        Raises:
            UnexpectedBlock1Option: The server has acknowledged another block than was sent.
            OverloadError: The body is larger than the limit.
        """
        request = self.request
        body = request.payload
        if len(body) > self._context.limits.body_size:
            raise OverloadError(
                f"the body of {request!r} is larger than the limit, {self._context.limits.body_size} bytes"
            )
        size, start = self._context.limits.payload_size, 0
        szx = choose_szx(size)
        while start + size < len(body):
            message = request.copy(
                payload=body[start : start + size],
                block1=Block(start // unit_of(szx), True, szx),
                size1=len(body) if start == 0 else None,
                observe=None,
            )
            response = await self._exchange(message)
            request.remote = response.remote
            taken = response.opt.block1
            has_smaller = taken is not None and taken.szx < szx
            if response.code == Code.CONTINUE:
                if taken is None or taken.start != start:
                    raise UnexpectedBlock1Option(
                        f"{request!r}: {_describe(message.opt.block1)} was answered by {_describe(taken)}"
                    )
                start += size
            elif not (response.code == Code.REQUEST_ENTITY_TOO_LARGE and start == 0 and has_smaller):
                return response
            if taken is not None and has_smaller:
                szx, size = taken.szx, taken.size
        return request.copy(payload=body[start:], block1=Block(start // unit_of(szx), False, szx))

    async def fetch(self, first: Message, on_restart: Callable[[], object]) -> Message:
        """Fetch the rest of the body that *first* begins.

        Args:
            first: A response, or a notification.
            on_restart: Called before the body is fetched anew, from the state that there is then.

        Returns:
            The response with all of its body; or an unsuccessful one that came in place of a block.

        Raises:
            ResourceChanged: It has changed again and again meanwhile.
            OverloadError: It is larger than the limit.
            UnexpectedBlock2: The server has sent another block than was asked for.
        """
        request, left = self.request, RESTARTS
        while (whole := await self._fetch_once(first)) is None:
            if request.code not in SAFE_METHODS:
                raise ResourceChanged(f"{request!r}: the response has changed while its blocks were fetched")
            if not left:
                raise ResourceChanged(f"{request!r}: the resource changes faster than it can be fetched")
            left -= 1
            self._context.log.info("%r has changed while its blocks were fetched; starting anew", request)
            on_restart()
            request.remote = first.remote
            message = await self.send() if self.is_large else request
            if message.code.is_request():
                message = await self._exchange(message.copy(observe=None, etags=()))
            first = message
            if not has_more(first):
                return _without_blocks(first)
        return whole

    async def _fetch_once(self, first: Message) -> Message | None:
        """Fetch the rest; return ``None`` if it has changed meanwhile."""
        block = first.opt.block2
        assert block is not None
        if block.number:
            raise UnexpectedBlock2(f"{self.request!r} was answered by {_describe(block)}, not the first one")
        follow_up = self.request.copy(remote=first.remote, observe=None, etags=())
        if self.is_large:
            follow_up.payload = b""  # the server has put it together, and keeps what it has made of it
        body = bytearray(first.payload)
        self._check_size(max(len(body), first.opt.size2 or 0))
        while block.more:
            wanted = Block(len(body) // unit_of(block.szx), False, block.szx)
            response = await self._exchange(follow_up.copy(block2=wanted))
            if response.code != first.code or response.opt.etag != first.opt.etag:
                # The resource has changed, or the server has forgotten what it was sending, or something is
                # wrong.
                return None if response.code.is_successful() or self._can_redo(response) else response
            block = response.opt.block2
            if block is None or block.start != len(body) or not response.payload:
                raise UnexpectedBlock2(
                    f"{self.request!r}: asked for {_describe(wanted)}, but got {_describe(block)}"
                )
            body += response.payload
            self._check_size(len(body))
        return _without_blocks(first.copy(payload=bytes(body)))

    def _can_redo(self, response: Message) -> bool:
        """Return whether the server has forgotten what it was sending, and may be asked again."""
        return response.code == Code.REQUEST_ENTITY_INCOMPLETE and self.request.code in SAFE_METHODS

    def _check_size(self, size: int) -> None:
        limit = self._context.limits.body_size
        if size > limit:
            raise OverloadError(f"the response to {self.request!r} is larger than the limit, {limit} bytes")

    async def _exchange(self, message: Message) -> Message:
        response = await self._context.request(message, handle_blockwise=False).response
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return response


def has_more(response: Message) -> bool:
    """Return whether *response* has only a part of its body."""
    block = response.opt.block2
    return block is not None and block.more


def _without_blocks(response: Message) -> Message:
    response.opt.block2 = None
    response.opt.size2 = None
    return response


def _describe(block: Block | None) -> str:
    return "no block" if block is None else f"the block at byte {block.start}"
