"""Bodies larger than a message, from the responder's side (RFC 7959).

Between the pipe of a request that came in and the resource that renders it lies a :class:`RenderPipe`. Blocks
of a request's body are put together before the resource is asked (:func:`assemble`); a response's body that
is too large leaves block by block, and is kept meanwhile, so that all blocks are of the same version.
Resources that handle blocks by themselves, such as those that forward, say so and are left alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng._coap.admission import get_principal, make_denial
from aiomas_ng._coap.driving import log_about
from aiomas_ng._coap.remote import Remote
from aiomas_ng._core.blocks import (
    BERT,
    AssemblyTable,
    BlockError,
    BodyTable,
    choose_szx,
    cut,
    entity_tag_of,
    unit_of,
)
from aiomas_ng._core.codes import SAFE_METHODS
from aiomas_ng.error import RequestEntityIncomplete
from aiomas_ng.message import Block, Code, Message, OptionNumber
from aiomas_ng.pipe import Event, LinkedPipe, Pipe, render_exception

if TYPE_CHECKING:
    from aiomas_ng._core.limits import Limits
    from aiomas_ng.protocol import Context

__all__ = ["RenderPipe", "Transfers", "assemble"]

#: Options that differ from block to block of one transfer.
BLOCK_OPTIONS: Final = (
    OptionNumber.BLOCK1,
    OptionNumber.BLOCK2,
    OptionNumber.SIZE1,
    OptionNumber.SIZE2,
    OptionNumber.OBSERVE,
    OptionNumber.ETAG,
)


class Transfers:
    """The bodies that come and go block by block over one connection, and the timer that ends those that
    rest.

    Args:
        limits: Their bounds.
        loop: The event loop.
    """

    __slots__ = ("_loop", "_paused", "_timer", "assemblies", "bodies")

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        bounds: dict[str, Any] = {
            "max_body": limits.body_size,
            "max_total": max(limits.transfer_size, limits.body_size),
            "max_count": limits.transfers,
            "lifetime": limits.transfer_time,
        }
        self.assemblies: AssemblyTable[bytes] = AssemblyTable(**bounds)
        self.bodies: BodyTable[bytes, Message] = BodyTable(**bounds)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        # Observed states, by the body that is being fetched.
        self._paused: dict[bytes, weakref.WeakSet[Pipe]] = {}

    def watch(self) -> None:
        """See to it that what rests for too long is dropped."""
        if self._timer is None:
            expiries = [table.next_expiry() for table in (self.assemblies, self.bodies)]
            due = min((expiry for expiry in expiries if expiry is not None), default=None)
            if due is not None:
                self._timer = self._loop.call_at(due, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        self.assemblies.expire(now)
        self.bodies.expire(now)
        self._resume()
        self.watch()

    def keep(self, key: bytes, response: Message) -> None:
        """Keep *response*, of which further blocks will be asked for."""
        self.bodies.put(key, response, self._loop.time())
        self._resume()
        self.watch()

    def discard(self, key: bytes) -> None:
        """Forget the response: its last block was asked for."""
        self.bodies.discard(key)
        self._resume()

    def pause(self, pipe: Pipe, key: bytes) -> None:
        """Pause *pipe* until all blocks of a response were asked for, or it was dropped."""
        pipe.pause()
        self._paused.setdefault(key, weakref.WeakSet()).add(pipe)

    def _resume(self) -> None:
        for key in [key for key in self._paused if key not in self.bodies]:
            for pipe in self._paused.pop(key):
                pipe.resume()

    def close(self) -> None:
        """Drop everything."""
        self.assemblies.clear()
        self.bodies.clear()
        self._paused.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def get_transfers(remote: Remote, context: Context) -> Transfers:
    """Return the transfers of *remote*, after making room for them if there were none."""
    if remote.transfers is None:
        remote.transfers = Transfers(context.limits, context.loop)
    return remote.transfers


def get_key(request: Message) -> bytes:
    """Return what all blocks of a transfer have in common, and no two transfers of a connection."""
    # Of a body that comes in blocks, each message has another part; who fetches the response then sends none.
    # A digest, because options and payload may be large, and their size is not counted.
    digest = hashlib.sha256(request.payload if request.opt.block1 is None else b"")
    digest.update(repr((int(request.code), request.opt.cache_key(BLOCK_OPTIONS))).encode())
    return digest.digest()


def assemble(request: Message, context: Context) -> Message:
    """Return *request* with the whole of its body, if this message brings the last block.

    Raises:
        BlockContinue: Further blocks are to come.
        BlockError: The block does not fit.
        RequestEntityIncomplete: It has not come over a connection, so that there can be no others.
    """
    block = request.opt.block1
    if block is None or (block.number == 0 and not block.more):
        return request
    remote = request.remote
    if not isinstance(remote, Remote):
        raise RequestEntityIncomplete("only what comes over a connection can come in blocks")
    transfers = get_transfers(remote, context)
    try:
        body = transfers.assemblies.feed(
            get_key(request), block, request.payload, request.opt.size1, context.loop.time()
        )
    except BlockError as error:
        log_about(request, context.log, logging.WARNING, "%r: %s", request, error)
        raise
    if body is None:
        transfers.watch()
        raise BlockContinue
    return request.copy(payload=body)


class BlockContinue(Exception):
    """The block was taken, and the next one is expected."""


def find_body(request: Message, context: Context) -> Message | None:
    """Return the response whose body the requester goes on to fetch; ``None`` if it is to be rendered.

    Raises:
        RequestEntityIncomplete: It is not there any more, and rendering it again would do the work again.
    """
    wanted = request.opt.block2
    if wanted is None or wanted.number == 0:
        return None
    remote = request.remote
    if isinstance(remote, Remote) and remote.transfers is not None:
        found: Message | None = remote.transfers.bodies.get(get_key(request), context.loop.time())
        if found is not None:
            return found
    # A request with a tag may have had a body, which is not there any more either.
    if request.code not in SAFE_METHODS or request.opt.request_tag:
        text = "%r asks for a block of a response that is not there"
        log_about(request, context.log, logging.WARNING, text, request)
        raise RequestEntityIncomplete("there is no response of which a further block could be sent")
    return None


class RenderPipe(LinkedPipe):
    """What a site renders to: turns exceptions into responses, and large responses into blocks.

    Args:
        outlet: The pipe of the request that came in.
        context: Whose request it is.
    """

    __slots__ = ("_context", "_has_begun", "_original")

    def __init__(self, outlet: Pipe, context: Context) -> None:
        super().__init__(outlet, context.log)
        self._context = context
        self._original = outlet.request
        self._has_begun = False  # whether there was a first response
        self.on_event(self._pass_on)
        outlet.on_interest_end(self._abandon)

    def _pass_on(self, event: Event) -> bool:
        request = self._original
        context = self._context
        response = event.message
        if self._has_begun and self.rules and not self._is_still_allowed():
            return False
        self._has_begun = True
        if response is None:
            assert event.exception is not None
            response = self._render(event.exception)
        # One response of a stream travels as it is: nobody could say of which one a block is wanted.
        if event.is_last or response.opt.observe is not None:
            opt = request.opt
            is_large = len(response.payload) > context.limits.payload_size
            if (is_large and isinstance(request.remote, Remote)) or opt.block2 or opt.block1:
                try:
                    response = self._cut(response)
                except BlockError as error:
                    log_about(request, context.log, logging.WARNING, "%r: %s", request, error)
                    response = self._render(error)
        self._outlet.add_response(response, event.is_last)
        return True

    def _is_still_allowed(self) -> bool:
        """Return whether the requester may go on to get notifications, or more of a stream; if not, end it
        here."""
        principal = get_principal(self._original)
        if principal is None or all(map(principal.allows, self.rules)):
            return True
        self._outlet.add_response(make_denial(principal, self._original).to_message(), is_last=True)
        return False

    def _render(self, exception: BaseException) -> Message:
        request = self._original
        if isinstance(exception, BlockContinue):
            block = request.opt.block1
            assert block is not None
            return Message(Code.CONTINUE, block1=block)
        if isinstance(exception, BlockError):
            response = Message(Code(exception.code), str(exception).encode())
            response.opt.size1 = exception.limit
            return response
        return render_exception(exception, request, self._context.log, has_details=self._context.shows_errors)

    def _cut(self, response: Message) -> Message:
        """Return the block of *response* that was asked for, the first one otherwise."""
        request = self._original
        context = self._context
        if response.opt.block1 is None and request.opt.block1 is not None:
            response = response.copy(block1=request.opt.block1)
        wanted = request.opt.block2
        if response.opt.block2 is not None or not response.code.is_successful():
            return response
        limit = context.limits.payload_size
        size = len(response.payload)
        if size <= limit and (wanted is None or (wanted.number == 0 and size <= _get_size(wanted, limit))):
            return response
        largest = choose_szx(limit)
        if wanted is None:
            wanted = Block(0, False, largest)
        elif wanted.szx > largest:
            wanted = Block(wanted.start // unit_of(largest), False, largest)
        if response.opt.etag is None:
            # All blocks then have it, so that nobody puts two versions together.
            response = response.copy(etag=entity_tag_of(response.payload))
        part, block = cut(response.payload, wanted.number, wanted.szx, limit)
        self._keep(response, block)
        return response.copy(payload=part, block2=block, size2=size if block.number == 0 else None)

    def _keep(self, response: Message, block: Block) -> None:
        """Keep what further blocks will be asked of; forget it after the last."""
        remote = self._original.remote
        if not isinstance(remote, Remote):
            return
        key = get_key(self._original)
        transfers = get_transfers(remote, self._context)
        if not block.more:
            transfers.discard(key)
        elif block.number == 0 or key not in transfers.bodies:
            transfers.keep(key, response)
            if response.opt.observe is not None:
                # The next state would take the place of this one, which then could never be fetched.
                transfers.pause(self, key)


def _get_size(block: Block, limit: int) -> int:
    return limit if block.szx == BERT else block.size
