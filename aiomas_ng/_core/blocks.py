"""Bodies that travel in blocks (RFC 7959, and BERT of RFC 8323, section 6).

The rules:

- A block has a number, a size of ``16 << szx`` bytes for ``szx`` 0 to 6, and says whether more follow.  Its
  place in the body is its number times its size.  The size may change on the way; the place must not jump.
- With ``szx`` 7 (BERT) the number counts units of 1024 bytes, and a message carries any number of such units.
- All blocks but the last are full.
- Blocks of a body arrive in order: our connections keep the order, and a sender awaits the answer to each.
  A block that arrives twice in a row counts once.  Anything else out of order ends the transfer, so that what
  two senders mix up is never put together.  Block 0 begins a new transfer.

What a peer can make us hold is bounded in bytes per body, in bytes of all bodies, in their number, and in the
time for which nothing happens. Bodies that arrive (:class:`AssemblyTable`) and bodies that are fetched
(:class:`BodyTable`) differ in what gives way when there is no room, see there.

The time is an argument, in seconds of a clock that never goes back.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeVar

from aiomas_ng._core.codes import Code
from aiomas_ng._core.options import Block
from aiomas_ng.exceptions import AiomasError

__all__ = [
    "BERT",
    "BERT_UNIT",
    "DEFAULT_LIFETIME",
    "MAX_NUMBER",
    "Assembly",
    "AssemblyTable",
    "BlockError",
    "BodyTable",
    "choose_szx",
    "cut",
    "entity_tag_of",
    "unit_of",
]

MIB: Final = 2**20

#: The ``szx`` of a message with any number of units.
BERT: Final = 7

#: What the number of a BERT block counts, in bytes.
BERT_UNIT: Final = 1024

#: The largest number that a block option can carry, which has 20 bits for it.
MAX_NUMBER: Final = 2**20 - 1

#: Seconds for which a transfer may rest: EXCHANGE_LIFETIME of RFC 7252, section 4.8.2.
DEFAULT_LIFETIME: Final = 247.0

K = TypeVar("K", bound=Hashable)


class BlockError(AiomasError, ValueError):
    """A block cannot be taken or given.

    Args:
        code: Code of the response that says so: 4.00, 4.08, 4.13, 5.00 or 5.03.
        text: What is wrong, for the diagnostic payload.
        limit: With 4.13, the largest body that would be taken, in bytes (for the Size1 option).
    """

    def __init__(self, code: int, text: str, limit: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.limit = limit


def unit_of(szx: int) -> int:
    """Return how many bytes the number of a block of this *szx* counts.

    Raises:
        ValueError: *szx* is not one of 0 to 7.
    """
    if not 0 <= szx <= BERT:
        raise ValueError(f"szx must be from 0 to {BERT} but is {szx}")
    return BERT_UNIT if szx == BERT else 16 << szx


def choose_szx(max_payload: int, *, bert: bool = True) -> int:
    """Return the ``szx`` of the largest blocks whose payload fits into a message.

    Args:
        max_payload: What a message may carry, in bytes.
        bert: Whether the peer understands BERT, as all of ours do.

    Raises:
        ValueError: Not even the smallest block, of 16 bytes, fits.
    """
    if max_payload < 16:
        raise ValueError(f"a message must have room for a block of 16 bytes but has {max_payload}")
    return BERT if bert and max_payload >= BERT_UNIT else min(max_payload.bit_length() - 5, BERT - 1)


def cut(payload: bytes, number: int, szx: int, block_size: int = 0) -> tuple[bytes, Block]:
    """Return the part of *payload* that block *number* is, and the block.

    Args:
        payload: The whole body.
        number: Where the part begins, in units of *szx*.
        szx: The size of the part, or 7 for as many units as fit into *block_size*.
        block_size: With ``szx`` 7, what a message may carry, in bytes; else it is not looked at.

    Returns:
        The bytes, and a block whose ``more`` says whether further ones follow.

    Raises:
        BlockError: The body ends before the block (4.00), or there are so many blocks before it that its
            number cannot be sent (4.13).
        ValueError: *szx* is not one of 0 to 7, or *block_size* has no room for one unit.
    """
    unit = unit_of(szx)
    if number > MAX_NUMBER:
        limit = (MAX_NUMBER + 1) * unit
        raise BlockError(
            Code.REQUEST_ENTITY_TOO_LARGE,
            f"{len(payload)} bytes cannot be sent in blocks that are counted by {unit} bytes",
            limit,
        )
    size = unit
    if szx == BERT:
        size = block_size // unit * unit
        if not size:
            raise ValueError(f"a message must have room for {unit} bytes but has {block_size}")
    start = number * unit
    if number < 0 or start >= max(len(payload), 1):
        raise BlockError(
            Code.BAD_REQUEST, f"block {number} of {unit} bytes is not within {len(payload)} bytes"
        )
    end = start + size
    return payload[start:end], Block(number, end < len(payload), szx)


class Assembly:
    """One body that arrives in blocks.

    Args:
        max_body: Bytes that it may have.
        size_hint: Bytes that the sender says it has (Size1 or Size2), ``None`` if it does not.

    Raises:
        BlockError: It says that it has too many (4.13).
    """

    __slots__ = ("_data", "_is_complete", "_last", "_max_body")

    def __init__(self, max_body: int, size_hint: int | None = None) -> None:
        _check_size(size_hint or 0, max_body)
        self._max_body = max_body
        # Not a list of the blocks: objects of 16 bytes each would take several times the bytes that we count.
        # It grows by more each time, so that copying stays linear.
        self._data = bytearray()
        self._last: tuple[int, int] | None = None  # where the last block began, and its length
        self._is_complete = False

    def __len__(self) -> int:
        """Return how many bytes have arrived."""
        return len(self._data)

    @property
    def is_complete(self) -> bool:
        """Whether the last block has arrived."""
        return self._is_complete

    def add(self, block: Block, payload: bytes) -> bool:
        """Take the next block and return whether the body is complete.

        The same block as before is taken for a repetition: nothing changes.  Nor does it by an error.

        Raises:
            BlockError: The block is not the next one (4.08), is not full although others follow, or more than
                full (4.00), or the body becomes too large (4.13).
        """
        number, more, szx = block
        start = number * unit_of(szx)
        if (start, len(payload)) == self._last and self._is_complete != more:
            return self._is_complete
        if start != len(self._data) or self._is_complete:
            raise BlockError(
                Code.REQUEST_ENTITY_INCOMPLETE,
                f"expected the block that begins at byte {len(self._data)}, not at {start}"
                if not self._is_complete
                else f"the block at byte {start} follows the last one",
            )
        _check_block(more, szx, len(payload))
        _check_size(start + len(payload), self._max_body)
        self._data += payload
        self._last = (start, len(payload))
        self._is_complete = not more
        return self._is_complete

    def take(self) -> bytes:
        """Return the body, and forget it.

        Raises:
            RuntimeError: It is not complete.
        """
        if not self._is_complete:
            raise RuntimeError("the last block has not arrived")
        data, self._data = self._data, bytearray()
        self._last, self._is_complete = None, False
        return bytes(data)


def _check_block(more: bool, szx: int, length: int) -> None:
    """Check that a block has the size that its option says."""
    if szx == BERT:
        if more and (length == 0 or length % BERT_UNIT):
            raise BlockError(
                Code.BAD_REQUEST,
                f"a block of several units must have a multiple of {BERT_UNIT} bytes if more follow, "
                f"but has {length}",
            )
    elif length > 16 << szx or (more and length != 16 << szx):
        raise BlockError(
            Code.BAD_REQUEST, f"a block of size {16 << szx} has {length} bytes{' and more follow' * more}"
        )


def _check_size(size: int, max_body: int) -> None:
    if size > max_body:
        raise BlockError(
            Code.REQUEST_ENTITY_TOO_LARGE,
            f"the body has {size} bytes or more, the limit is {max_body}",
            max_body,
        )


class _Slot:
    """An entry of a table: what it takes in bytes, and when it was used last."""

    __slots__ = ("size", "used")

    def __init__(self, now: float) -> None:
        self.size = 0
        self.used = now


S = TypeVar("S", bound=_Slot)


def entity_tag_of(payload: bytes) -> bytes:
    """Return an entity tag of 8 bytes made from *payload*; it tells versions from each other and is no
    protection."""
    return hashlib.sha1(payload, usedforsecurity=False).digest()[:8]


class _Table(Generic[K, S]):
    """Entries in the order of their last use, with their bounds and their expiry."""

    def __init__(
        self,
        *,
        max_body: int = 64 * MIB,
        max_total: int = 128 * MIB,
        max_count: int = 256,
        lifetime: float = DEFAULT_LIFETIME,
    ) -> None:
        for name, value in (("max_body", max_body), ("max_count", max_count), ("lifetime", lifetime)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0 but is {value}")
        if max_total < max_body:
            raise ValueError(f"max_total must be at least max_body, {max_body} bytes, but is {max_total}")
        self._max_body = max_body
        self._max_total = max_total
        self._max_count = max_count
        self._lifetime = lifetime
        self._slots: OrderedDict[K, S] = OrderedDict()
        self._total = 0

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._slots)

    def __contains__(self, key: K) -> bool:
        return key in self._slots

    @property
    def total(self) -> int:
        """Bytes that the entries hold, or have been promised."""
        return self._total

    def discard(self, key: K) -> None:
        """Drop the entry of *key*. Without such a one nothing happens."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._total -= slot.size

    def clear(self) -> None:
        """Drop everything: the connection has ended."""
        self._slots.clear()
        self._total = 0

    def expire(self, now: float) -> int:
        """Drop the entries that were not used for the lifetime; return how many."""
        count = 0
        while self._slots:
            key, slot = next(iter(self._slots.items()))
            if slot.used + self._lifetime > now:
                break
            self.discard(key)
            count += 1
        return count

    def next_expiry(self) -> float | None:
        """Return when the first entry expires unless it is used, ``None`` if none ever does."""
        slot = next(iter(self._slots.values()), None)
        return None if slot is None or self._lifetime == math.inf else slot.used + self._lifetime

    def _touch(self, key: K, slot: S, now: float) -> None:
        slot.used = now
        self._slots.move_to_end(key)

    def _resize(self, slot: S, size: int) -> None:
        self._total += size - slot.size
        slot.size = size


class _Transfer(_Slot):
    """A body that arrives, and the bytes that are kept free for it."""

    __slots__ = ("assembly",)

    def __init__(self, assembly: Assembly, now: float) -> None:
        super().__init__(now)
        self.assembly = assembly


class AssemblyTable(_Table[K, _Transfer]):
    """The bodies that arrive on one connection.

    When there is no room, what has begun goes first:

    - A transfer that rests is dropped when its lifetime is over, and not before, whoever may want its place.
    - A new transfer is refused (5.03) as long as as many as there may be are under way.
    - Who announces the size of the body is given the whole room, or refused, with the first block; a transfer
      of that size never fails later for lack of room.
    - Who does not announce it takes room as the body grows.  If there is none left, this transfer, and no
      other, is ended (5.03): the others can go on, and those that were ended make room for them.

    A transfer ends with its last block and with any error; the sender then begins again with block 0.

    Args:
        max_body: Bytes of one body.
        max_total: Bytes of all bodies, those that are promised included; at least *max_body*.
        max_count: Bodies at a time.
        lifetime: Seconds for which a transfer may rest.

    Raises:
        ValueError: A bound is not positive, or *max_total* has no room for one body.
    """

    def feed(self, key: K, block: Block, payload: bytes, size_hint: int | None, now: float) -> bytes | None:
        """Take the next block of the transfer *key*.

        Args:
            key: What tells the transfer from others: path and options of the request.
            block: The block.
            payload: Its bytes.
            size_hint: The size of the body where the sender announced it, in bytes.
            now: The time in seconds.

        Returns:
            The body, if this was its last block; else ``None``.

        Raises:
            BlockError: As of :meth:`Assembly.add`; or there is no such transfer (4.08), or no room (5.03).
        """
        self.expire(now)
        if block.number == 0:
            self.discard(key)
            transfer = None
        elif (transfer := self._slots.get(key)) is None:
            raise BlockError(
                Code.REQUEST_ENTITY_INCOMPLETE,
                f"there is no transfer that block {block.number} could belong to; begin with block 0",
            )
        try:
            if transfer is None:
                assembly = Assembly(self._max_body, size_hint)
                if assembly.add(block, payload):
                    return assembly.take()  # it needs no room
                transfer = self._begin(key, assembly, now)
                self._reserve(transfer, max(size_hint or 0, len(payload)))
            else:
                assembly = transfer.assembly
                _check_size(size_hint or 0, self._max_body)
                if assembly.add(block, payload):
                    body = assembly.take()
                    self.discard(key)
                    return body
                self._reserve(transfer, max(transfer.size, len(assembly)))
        except BlockError:
            self.discard(key)
            raise
        self._touch(key, transfer, now)
        return None

    def _begin(self, key: K, assembly: Assembly, now: float) -> _Transfer:
        if len(self._slots) >= self._max_count:
            raise BlockError(
                Code.SERVICE_UNAVAILABLE, f"{len(self._slots)} transfers are under way, which is the limit"
            )
        transfer = self._slots[key] = _Transfer(assembly, now)
        return transfer

    def _reserve(self, transfer: _Transfer, size: int) -> None:
        """Give room to a transfer, and refuse it if there is not enough."""
        if self._total - transfer.size + size > self._max_total:
            raise BlockError(
                Code.SERVICE_UNAVAILABLE,
                f"other transfers leave {self._max_total - self._total + transfer.size} bytes, "
                f"{size} are needed",
            )
        self._resize(transfer, size)


class HasPayload(Protocol):
    """A response, or anything else with a body."""

    @property
    def payload(self) -> bytes:
        """The body."""


R = TypeVar("R", bound=HasPayload)


class _Body(_Slot, Generic[R]):
    """A response whose body is fetched."""

    __slots__ = ("response",)

    def __init__(self, response: R, now: float) -> None:
        super().__init__(now)
        self.response = response


class BodyTable(_Table[K, _Body[R]]):
    """The responses whose bodies are being fetched block by block over one connection.

    Where there is no room for another one, the least recently used ones give way. Who was fetching such a one
    gets the next block from a new response, and sees by its entity tag whether it still fits, else begins
    again (RFC 7959, section 2.4).

    Args:
        max_body: Bytes of one body.
        max_total: Bytes of all bodies; at least *max_body*.
        max_count: Bodies at a time.
        lifetime: Seconds for which one may wait for its next block to be fetched.

    Raises:
        ValueError: A bound is not positive, or *max_total* has no room for one body.
    """

    def put(self, key: K, response: R, now: float) -> None:
        """Keep *response*, in place of the one that *key* had before; its payload must not change any more.

        Raises:
            BlockError: Its body is larger than one may be (5.00).
        """
        size = len(response.payload)
        self.discard(key)
        if size > self._max_body:
            raise BlockError(
                Code.INTERNAL_SERVER_ERROR, f"the response has {size} bytes, the limit is {self._max_body}"
            )
        self.expire(now)
        while self._slots and (len(self._slots) >= self._max_count or self._total + size > self._max_total):
            self.discard(next(iter(self._slots)))
        body = self._slots[key] = _Body(response, now)
        self._resize(body, size)

    def get(self, key: K, now: float) -> R | None:
        """Return the response of *key* and note that it is in use; ``None`` if there is none (any more).

        When its last block was served, :meth:`discard` it.
        """
        self.expire(now)
        body = self._slots.get(key)
        if body is None:
            return None
        self._touch(key, body, now)
        return body.response
