"""Blocks: a body arrives as it was cut, and no peer makes us hold more than the bounds say."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiomas_ng._core.blocks import (
    BERT,
    BERT_UNIT,
    MAX_NUMBER,
    Assembly,
    AssemblyTable,
    BlockError,
    BodyTable,
    choose_szx,
    cut,
    unit_of,
)
from aiomas_ng._core.codes import Code
from aiomas_ng._core.options import Block
from aiomas_ng.exceptions import AiomasError

INCOMPLETE = Code.REQUEST_ENTITY_INCOMPLETE
TOO_LARGE = Code.REQUEST_ENTITY_TOO_LARGE
BAD_REQUEST = Code.BAD_REQUEST
UNAVAILABLE = Code.SERVICE_UNAVAILABLE

szxs = st.integers(0, BERT)


def body_of(size: int) -> bytes:
    """Return bytes that differ from block to block."""
    return b"".join(index.to_bytes(4, "big") for index in range(size // 4 + 1))[:size]


def fails(code: int, match: str | None = None) -> Any:
    """Expect a block error with this code."""
    return pytest.raises(BlockError, match=match, check=lambda error: error.code == code)


# -- Sizes and parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "szx", "szx_without_bert"),
    [
        (16, 0, 0),
        (31, 0, 0),
        (32, 1, 1),
        (1023, 5, 5),
        (1024, 7, 6),
        (1025, 7, 6),
        (2048, 7, 6),
        (32 * 1024, 7, 6),
        (2**30, 7, 6),
    ],
)
def test_the_largest_block_that_fits_is_chosen(room: int, szx: int, szx_without_bert: int) -> None:
    """By the room in a message, and by what the peer understands."""
    assert choose_szx(room) == szx
    assert choose_szx(room, bert=False) == szx_without_bert
    assert unit_of(szx_without_bert) <= room < 2 * unit_of(szx_without_bert) or room >= 2048


@pytest.mark.parametrize("room", [15, 1, 0, -1])
def test_a_message_without_room_is_refused(room: int) -> None:
    """Below 16 bytes there are no blocks."""
    with pytest.raises(ValueError, match=f"must have room for a block of 16 bytes but has {room}"):
        choose_szx(room)


@pytest.mark.parametrize("szx", [-1, 8])
def test_other_sizes_do_not_exist(szx: int) -> None:
    """The exponent has three bits."""
    with pytest.raises(ValueError, match=f"szx must be from 0 to 7 but is {szx}"):
        unit_of(szx)


def test_units_are_those_of_the_option() -> None:
    """What a number counts is what the option says."""
    assert [unit_of(szx) for szx in range(8)] == [16, 32, 64, 128, 256, 512, 1024, 1024]
    assert all(unit_of(szx) == Block(0, False, szx).size for szx in range(8))


@given(size=st.integers(0, 5000), szx=szxs, units=st.integers(1, 4))
@example(size=0, szx=0, units=1)
@example(size=4096, szx=7, units=4)
@example(size=1024, szx=6, units=1)
def test_parts_make_up_the_body(size: int, szx: int, units: int) -> None:
    """Cut from the beginning, block after block, there is all of it; only the last one says so."""
    body = body_of(size)
    parts = []
    number = 0
    while True:
        part, block = cut(body, number, szx, units * BERT_UNIT + 5)
        assert (block.number, block.szx) == (number, szx)
        assert block.start == sum(map(len, parts))
        parts.append(part)
        if not block.more:
            break
        assert len(part) == (units * BERT_UNIT if szx == BERT else 16 << szx)
        number += len(part) // unit_of(szx)
    assert b"".join(parts) == body
    assert all(parts) or parts == [b""]
    with fails(BAD_REQUEST, f"is not within {size} bytes"):
        cut(body, -(-max(size, 1) // unit_of(szx)), szx, BERT_UNIT)


def test_parts_before_the_body_do_not_exist() -> None:
    """A negative number finds nothing at the end."""
    with fails(BAD_REQUEST, "block -1 of 16 bytes is not within 100 bytes"):
        cut(bytes(100), -1, 0)


def test_a_message_needs_room_for_a_unit() -> None:
    """With BERT the size is the caller's, and there is no block without bytes."""
    with pytest.raises(ValueError, match="room for 1024 bytes but has 1023"):
        cut(bytes(5000), 0, BERT, 1023)


def test_a_number_that_cannot_be_sent_is_refused() -> None:
    """20 bits count up to a mebi of blocks; the error says how large the body may be."""

    class Large(bytes):
        def __len__(self) -> int:
            return 2**40

    assert cut(Large(), MAX_NUMBER, 0)[1] == Block(MAX_NUMBER, True, 0)
    with fails(TOO_LARGE, "cannot be sent in blocks that are counted by 16 bytes") as caught:
        cut(Large(), MAX_NUMBER + 1, 0)
    assert caught.value.limit == 16 * 2**20


# -- One body --------------------------------------------------------------------------------------


@given(size=st.integers(0, 20_000), data=st.data())
def test_a_body_arrives_as_it_was_cut(size: int, data: st.DataObject) -> None:
    """Also if the size of the blocks changes on the way, and if each block comes twice."""
    body = body_of(size)
    assembly = Assembly(size)
    is_complete = False
    start = 0
    while not is_complete:
        assert len(assembly) == start
        szx = data.draw(st.sampled_from([szx for szx in range(8) if start % unit_of(szx) == 0]))
        room = data.draw(st.integers(1, 3)) * BERT_UNIT
        part, block = cut(body, start // unit_of(szx), szx, room)
        is_complete = assembly.add(block, part)
        assert is_complete is not block.more
        if data.draw(st.booleans()):
            assert assembly.add(block, part) is is_complete
        start += len(part)
    assert assembly.is_complete
    assert assembly.take() == body
    assert len(assembly) == 0


@pytest.mark.parametrize(
    ("block", "payload"),
    [
        (Block(1, True, 0), bytes(16)),
        (Block(3, True, 0), bytes(16)),
        (Block(3, False, 0), b""),
        (Block(0, True, 0), bytes(16)),
        (Block(0, True, 1), bytes(32)),
        (Block(1, False, 1), b"x"),
        (Block(1, False, BERT), b"x"),
        (Block(MAX_NUMBER, True, 6), bytes(1024)),
    ],
)
def test_a_block_out_of_order_is_refused(block: Block, payload: bytes) -> None:
    """Too early, too late, or elsewhere by its size; the body is as before, and goes on."""
    assembly = Assembly(1000)
    if block == Block(1, False, 1):
        block = Block(2, False, 1)
    assembly.add(Block(0, True, 0), bytes(16))
    assembly.add(Block(1, True, 0), bytes(15) + b"1")
    if block == Block(1, True, 0):
        payload = payload[1:]  # else it would be the same again
    with fails(INCOMPLETE, "expected the block that begins at byte 32, not at"):
        assembly.add(block, payload)
    assert assembly.add(Block(2, False, 0), b"end")
    assert assembly.take() == bytes(31) + b"1end"


def test_a_later_block_cannot_be_the_first() -> None:
    """A body begins with block 0."""
    with fails(INCOMPLETE, "expected the block that begins at byte 0, not at 16"):
        Assembly(1000).add(Block(1, False, 0), b"x")


def test_nothing_follows_the_last_block() -> None:
    """Neither further blocks, nor the last one with another length, nor the same one with more to follow."""
    assembly = Assembly(1000)
    assert assembly.add(Block(0, False, 0), bytes(16))
    for block, payload in [
        (Block(1, True, 0), bytes(16)),
        (Block(0, False, 0), bytes(15)),
        (Block(0, True, 0), bytes(16)),
    ]:
        with fails(INCOMPLETE, "follows the last one"):
            assembly.add(block, payload)
    assert assembly.add(Block(0, False, 0), bytes(16))
    assert assembly.take() == bytes(16)


@pytest.mark.parametrize(
    ("block", "length"),
    [
        (Block(0, True, 0), 0),
        (Block(0, True, 0), 15),
        (Block(0, True, 0), 17),
        (Block(0, False, 0), 17),
        (Block(0, True, 6), 1023),
        (Block(0, True, 6), 2048),
        (Block(0, False, 6), 1025),
        (Block(0, True, BERT), 0),
        (Block(0, True, BERT), 1023),
        (Block(0, True, BERT), 1025),
    ],
)
def test_a_block_of_a_wrong_size_is_refused(block: Block, length: int) -> None:
    """All but the last are full, none is more than full, and with BERT all but the last have whole units."""
    assembly = Assembly(10_000)
    with fails(BAD_REQUEST, f"{length}"):
        assembly.add(block, bytes(length))
    assert len(assembly) == 0
    assert not assembly.is_complete


@pytest.mark.parametrize(
    ("block", "length"),
    [
        (Block(0, False, 0), 0),
        (Block(0, False, 0), 16),
        (Block(0, False, BERT), 0),
        (Block(0, False, BERT), 5000),
        (Block(0, False, BERT), 1),
    ],
)
def test_the_last_block_has_what_is_left(block: Block, length: int) -> None:
    """Up to the size of a block, or with BERT any number of bytes; nothing is fine, too."""
    assembly = Assembly(5000)
    assert assembly.add(block, bytes(length))
    assert len(assembly.take()) == length


def test_a_body_is_bounded() -> None:
    """Exactly the limit is taken; one byte more is refused, with the limit, and nothing of it is kept."""
    assembly = Assembly(40)
    assembly.add(Block(0, True, 0), bytes(16))
    assembly.add(Block(1, True, 0), bytes(16))
    with fails(TOO_LARGE, "has 41 bytes or more, the limit is 40") as caught:
        assembly.add(Block(2, False, 0), bytes(9))
    assert caught.value.limit == 40
    assert len(assembly) == 32
    assert assembly.add(Block(2, False, 0), bytes(8))


def test_an_announced_size_is_checked_at_once() -> None:
    """Who says that it will be too large need not send it."""
    Assembly(40, 40)
    with fails(TOO_LARGE, "has 41 bytes or more, the limit is 40") as caught:
        Assembly(40, 41)
    assert caught.value.limit == 40


def test_an_unfinished_body_cannot_be_taken() -> None:
    """Nobody gets half a body by mistake."""
    assembly = Assembly(100)
    with pytest.raises(RuntimeError, match="last block has not arrived"):
        assembly.take()
    assembly.add(Block(0, True, 0), bytes(16))
    with pytest.raises(RuntimeError, match="last block has not arrived"):
        assembly.take()


def test_small_blocks_take_no_more_memory_than_their_bytes() -> None:
    """A mebibyte in blocks of 16 bytes takes little more than that, not one object per block."""
    size = 2**20
    part = bytes(16)
    tracemalloc.start()
    try:
        assembly = Assembly(size)
        for number in range(size // 16 - 1):
            assembly.add(Block(number, True, 0), part)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1.5 * size


def test_errors_are_of_the_usual_kinds() -> None:
    """One of ours, and a ValueError."""
    error = BlockError(INCOMPLETE, "text")
    assert isinstance(error, AiomasError)
    assert isinstance(error, ValueError)
    assert (str(error), error.code, error.limit) == ("text", 0x88, None)


# -- Bodies that arrive ----------------------------------------------------------------------------


def start(table: AssemblyTable[Any], key: Hashable, now: float = 0.0, size: int | None = None) -> None:
    """Begin a transfer with a block of 16 bytes."""
    assert table.feed(key, Block(0, True, 0), bytes(16), size, now) is None


def test_transfers_do_not_disturb_each_other() -> None:
    """Blocks of two bodies by turns."""
    table: AssemblyTable[str] = AssemblyTable()
    for number in range(3):
        for key in "ab":
            assert table.feed(key, Block(number, True, 0), key.encode() * 16, None, 0.0) is None
    assert table.feed("a", Block(3, False, 0), b"!", None, 0.0) == b"a" * 48 + b"!"
    assert "a" not in table
    assert len(table) == 1
    assert table.total == 48
    assert table.feed("b", Block(3, False, 0), b"", None, 0.0) == b"b" * 48
    assert len(table) == 0
    assert table.total == 0


def test_a_body_of_one_block_needs_no_room() -> None:
    """Also if the table is full, and whether or not it was announced."""
    table: AssemblyTable[str] = AssemblyTable(max_body=100, max_total=100, max_count=1)
    start(table, "a", size=100)
    assert table.feed("b", Block(0, False, 6), b"all", 3, 0.0) == b"all"
    assert table.feed("c", Block(0, False, 6), b"all", None, 0.0) == b"all"
    assert len(table) == 1


def test_block_0_begins_anew() -> None:
    """What was there of the transfer before is forgotten, even if the new one fails."""
    table: AssemblyTable[str] = AssemblyTable(max_body=100)
    start(table, "a")
    table.feed("a", Block(1, True, 0), b"x" * 16, None, 0.0)
    start(table, "a")
    assert table.total == 16
    assert table.feed("a", Block(1, False, 0), b"end", None, 0.0) == bytes(16) + b"end"
    start(table, "a")
    with fails(TOO_LARGE, "limit is 100"):
        table.feed("a", Block(0, True, 0), bytes(16), 101, 0.0)
    assert len(table) == 0


def test_a_later_block_of_no_transfer_is_refused() -> None:
    """It may have expired, ended, or never begun: the sender has to begin anew."""
    table: AssemblyTable[str] = AssemblyTable()
    with fails(INCOMPLETE, "no transfer that block 1 could belong to"):
        table.feed("a", Block(1, True, 0), bytes(16), None, 0.0)
    start(table, "a")
    table.feed("a", Block(1, False, 0), b"", None, 0.0)
    with fails(INCOMPLETE, "no transfer that block 1 could belong to"):
        table.feed("a", Block(1, False, 0), b"", None, 0.0)


@pytest.mark.parametrize(
    ("block", "length", "hint", "code"),
    [
        (Block(2, True, 0), 16, None, INCOMPLETE),
        (Block(1, True, 0), 15, None, BAD_REQUEST),
        (Block(1, False, BERT), 1, None, INCOMPLETE),
        (Block(1, True, 0), 16, 101, TOO_LARGE),
    ],
)
def test_an_error_ends_the_transfer(block: Block, length: int, hint: int | None, code: Code) -> None:
    """Nothing of it is kept, so that blocks of two senders are never put together."""
    table: AssemblyTable[str] = AssemblyTable(max_body=100)
    start(table, "a")
    with fails(code):
        table.feed("a", block, bytes(length), hint, 0.0)
    assert len(table) == 0
    assert table.total == 0


def test_a_transfer_that_rests_expires() -> None:
    """When its lifetime is over, and not before; each block renews it."""
    table: AssemblyTable[str] = AssemblyTable(lifetime=10.0)
    assert table.next_expiry() is None
    start(table, "a", now=0.0)
    start(table, "b", now=1.0)
    assert table.next_expiry() == 10.0
    assert table.feed("a", Block(1, True, 0), bytes(16), None, 9.0) is None
    assert table.next_expiry() == 11.0
    assert table.expire(10.9) == 0
    assert table.expire(11.0) == 1
    assert "b" not in table
    assert table.next_expiry() == 19.0
    with fails(INCOMPLETE, "no transfer"):
        table.feed("a", Block(2, True, 0), bytes(16), None, 19.0)
    assert len(table) == 0
    assert table.total == 0


def test_a_lifetime_may_be_unlimited() -> None:
    """Then nothing ever expires, and no timer is needed."""
    table: AssemblyTable[str] = AssemblyTable(lifetime=math.inf)
    start(table, "a")
    assert table.next_expiry() is None
    assert table.expire(1e12) == 0


def test_a_new_transfer_does_not_displace_others() -> None:
    """As many as there may be: one more is refused, until another one ends or expires."""
    table: AssemblyTable[str] = AssemblyTable(max_count=2, lifetime=10.0)
    start(table, "a", now=0.0)
    start(table, "b", now=5.0)
    with fails(UNAVAILABLE, "2 transfers are under way, which is the limit"):
        start(table, "c", now=9.9)
    assert "c" not in table
    start(table, "b", now=9.9)  # anew, in its own place
    start(table, "c", now=10.0)  # in that of "a", which has expired
    assert table.feed("b", Block(1, False, 0), b"", None, 10.0) == bytes(16)
    start(table, "d", now=10.0)
    assert len(table) == 2


def test_an_announced_body_gets_all_its_room_or_none() -> None:
    """It is refused with its first block, or never for lack of room; what grows unannounced gives way."""
    table: AssemblyTable[str] = AssemblyTable(max_body=64, max_total=100)
    start(table, "a", size=64)
    assert table.total == 64
    with fails(UNAVAILABLE, "other transfers leave 36 bytes, 37 are needed"):
        start(table, "b", size=37)
    start(table, "c")
    assert table.feed("c", Block(1, True, 0), bytes(16), None, 0.0) is None
    with fails(UNAVAILABLE, "other transfers leave 36 bytes, 48 are needed"):
        table.feed("c", Block(2, True, 0), bytes(16), None, 0.0)
    assert "c" not in table
    for number in (1, 2):
        assert table.feed("a", Block(number, True, 0), bytes(16), 64, 0.0) is None
        assert table.total == 64
    assert table.feed("a", Block(3, False, 0), bytes(16), None, 0.0) == bytes(64)
    assert table.total == 0


def test_who_announces_too_little_grows_like_others() -> None:
    """The announcement is no upper bound, only a reservation."""
    table: AssemblyTable[str] = AssemblyTable(max_body=48, max_total=48)
    start(table, "a", size=1)
    assert table.total == 16
    table.feed("a", Block(1, True, 0), bytes(16), None, 0.0)
    assert table.total == 32


def test_one_of_many_that_grow_gets_through() -> None:
    """Transfers that are too large together do not block each other for ever."""
    table: AssemblyTable[int] = AssemblyTable(max_body=160, max_total=200, max_count=10)
    waiting = set(range(10))
    done, codes = [], set()
    for key in waiting:
        start(table, key)
    for number in range(1, 10):
        for key in sorted(waiting):
            try:
                body = table.feed(key, Block(number, number < 9, 0), bytes(16), None, 0.0)
            except BlockError as error:
                codes.add(error.code)
            else:
                if body is not None:
                    done.append(key)
            if key not in table:
                waiting.discard(key)
        assert table.total <= 200
    assert done
    assert codes == {UNAVAILABLE}
    assert not waiting
    assert table.total == 0


def test_a_table_can_be_emptied() -> None:
    """One by one, where a request was taken back, or all at once at the end of a connection."""
    table: AssemblyTable[str] = AssemblyTable()
    for key in "abc":
        start(table, key)
    table.discard("a")
    table.discard("a")
    table.discard("x")
    assert (len(table), table.total) == (2, 32)
    table.clear()
    assert (len(table), table.total, table.next_expiry()) == (0, 0, None)


@pytest.mark.parametrize("cls", [AssemblyTable, BodyTable])
@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        ({"max_body": 0}, "max_body must be > 0 but is 0"),
        ({"max_count": 0}, "max_count must be > 0 but is 0"),
        ({"lifetime": 0.0}, r"lifetime must be > 0 but is 0\.0"),
        ({"lifetime": math.nan}, "lifetime must be > 0 but is nan"),
        ({"max_body": 100, "max_total": 99}, "max_total must be at least max_body, 100 bytes, but is 99"),
    ],
)
def test_bounds_are_checked(cls: type[Any], bounds: dict[str, Any], match: str) -> None:
    """A table that could hold nothing is a mistake."""
    with pytest.raises(ValueError, match=match):
        cls(**bounds)


class AssemblyModel(RuleBasedStateMachine):
    """Transfers by a plainer program: lists of blocks, and all sums computed anew each time."""

    MAX_BODY, MAX_TOTAL, MAX_COUNT, LIFETIME = 200, 300, 3, 10

    @initialize()
    def begin(self) -> None:
        self.table: AssemblyTable[str] = AssemblyTable(
            max_body=self.MAX_BODY,
            max_total=self.MAX_TOTAL,
            max_count=self.MAX_COUNT,
            lifetime=self.LIFETIME,
        )
        self.now = 0.0
        self.parts: dict[str, list[bytes]] = {}
        self.hints: dict[str, int] = {}
        self.used: dict[str, float] = {}

    def forget(self, key: str) -> None:
        for table in (self.parts, self.hints, self.used):
            table.pop(key, None)  # type: ignore[attr-defined]  # each is a dict

    def expire(self) -> None:
        for key, used in list(self.used.items()):
            if used + self.LIFETIME <= self.now:
                self.forget(key)

    def size_of(self, key: str) -> int:
        return max(self.hints[key], sum(map(len, self.parts[key])))

    @rule(dt=st.sampled_from([0.0, 1.0, 3.0, 10.0]))
    def wait(self, dt: float) -> None:
        self.now += dt

    @rule(key=st.sampled_from("abcde"))
    def discard(self, key: str) -> None:
        self.table.discard(key)
        self.forget(key)

    @rule(
        key=st.sampled_from("abcde"),
        is_first=st.booleans(),
        jump=st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
        more=st.sampled_from([True, True, True, False]),
        length=st.sampled_from([32, 32, 32, 32, 31, 33, 0]),
        hint=st.none() | st.sampled_from([0, 64, 200, 201]),
    )
    def feed(self, key: str, is_first: bool, jump: int, more: bool, length: int, hint: int | None) -> None:
        self.expire()
        before = b"".join(self.parts.get(key, [])) if not is_first else b""
        number = 0 if is_first else max(len(before) // 32 + jump, 0)
        payload = bytes([len(self.parts.get(key, []))]) * length
        code, body = self.expect(key, number, more, payload, hint)
        if code is not None:
            with fails(code):
                self.table.feed(key, Block(number, more, 1), payload, hint, self.now)
        else:
            assert self.table.feed(key, Block(number, more, 1), payload, hint, self.now) == body

    def expect(
        self, key: str, number: int, more: bool, payload: bytes, hint: int | None
    ) -> tuple[int | None, bytes | None]:
        """Return the code of the error, and the body if it is complete."""
        if number == 0:
            self.forget(key)
            parts: list[bytes] = []
            count = len(self.parts)
        elif key not in self.parts:
            return INCOMPLETE, None
        else:
            parts = self.parts[key]
            count = 0
            is_repeated = len(parts) - 1 == number and len(parts[-1]) == len(payload) and more
            if is_repeated and (hint or 0) <= self.MAX_BODY:
                self.used[key] = self.now
                return None, None
        code = self.check(parts, number, more, payload, hint)
        if code is None and more:
            size = max(hint or 0 if number == 0 else self.hints[key], sum(map(len, parts)) + len(payload))
            others = sum(self.size_of(other) for other in self.parts if other != key)
            if count >= self.MAX_COUNT or others + size > self.MAX_TOTAL:
                code = UNAVAILABLE
        if code is not None or not more:
            self.forget(key)
            return (code, None) if code is not None else (None, b"".join([*parts, payload]))
        self.parts[key] = [*parts, payload]
        self.hints.setdefault(key, hint or 0)
        self.used[key] = self.now
        return None, None

    def check(
        self, parts: list[bytes], number: int, more: bool, payload: bytes, hint: int | None
    ) -> int | None:
        if (hint or 0) > self.MAX_BODY:
            return TOO_LARGE
        if number != len(parts):
            return INCOMPLETE
        if len(payload) > 32 or (more and len(payload) < 32):
            return BAD_REQUEST
        return TOO_LARGE if 32 * number + len(payload) > self.MAX_BODY else None

    @invariant()
    def is_bounded(self) -> None:
        self.expire()
        self.table.expire(self.now)
        assert len(self.table) == len(self.parts) <= self.MAX_COUNT
        assert self.table.total == sum(map(self.size_of, self.parts)) <= self.MAX_TOTAL
        assert self.table.next_expiry() == min(
            (used + self.LIFETIME for used in self.used.values()), default=None
        )


TestAssemblyModel = AssemblyModel.TestCase


# -- Bodies that are fetched -----------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """What has a body."""

    payload: bytes


def test_responses_are_kept_by_key() -> None:
    """The same object comes back; a new one takes the place of the old one; what is dropped is gone."""
    table: BodyTable[str, Response] = BodyTable()
    first, second = Response(bytes(100)), Response(bytes(50))
    assert table.get("a", 0.0) is None
    table.put("a", first, 0.0)
    assert table.get("a", 0.0) is first
    assert table.total == 100
    table.put("a", second, 0.0)
    assert table.get("a", 0.0) is second
    assert (len(table), table.total) == (1, 50)
    table.discard("a")
    assert table.get("a", 0.0) is None
    assert table.total == 0


def test_the_least_recently_used_response_gives_way() -> None:
    """For bytes and for the count alike; fetching a block is use."""
    table: BodyTable[str, Response] = BodyTable(max_body=100, max_total=100, max_count=3)
    for key in "abc":
        table.put(key, Response(bytes(30)), 0.0)
    table.get("a", 1.0)
    table.put("d", Response(b""), 1.0)
    assert [key for key in "abcd" if key in table] == ["a", "c", "d"]
    table.get("c", 1.0)
    table.put("e", Response(bytes(70)), 1.0)
    assert [key for key in "abcde" if key in table] == ["c", "d", "e"]
    table.put("f", Response(bytes(100)), 1.0)
    assert [key for key in "abcdef" if key in table] == ["f"]


def test_a_response_that_is_too_large_is_refused() -> None:
    """It harms no other one; what its key had before is gone, for it is out of date."""
    table: BodyTable[str, Response] = BodyTable(max_body=100)
    table.put("a", Response(bytes(100)), 0.0)
    table.put("b", Response(bytes(100)), 0.0)
    with fails(Code.INTERNAL_SERVER_ERROR, "has 101 bytes, the limit is 100"):
        table.put("a", Response(bytes(101)), 0.0)
    assert "a" not in table
    assert "b" in table
    assert table.total == 100


def test_a_response_that_nobody_fetches_expires() -> None:
    """When its lifetime is over; each block that is fetched renews it."""
    table: BodyTable[str, Response] = BodyTable(lifetime=10.0)
    table.put("a", Response(b"a"), 0.0)
    table.put("b", Response(b"b"), 1.0)
    assert table.get("a", 9.0) is not None
    assert table.next_expiry() == 11.0
    assert table.get("b", 11.0) is None
    assert table.get("a", 18.9) is not None
    assert table.expire(28.9) == 1
    assert table.next_expiry() is None


class BodyModel(RuleBasedStateMachine):
    """Responses by a plainer program: a list in the order of use."""

    MAX_BODY, MAX_TOTAL, MAX_COUNT, LIFETIME = 60, 100, 3, 10

    @initialize()
    def begin(self) -> None:
        self.table: BodyTable[str, Response] = BodyTable(
            max_body=self.MAX_BODY,
            max_total=self.MAX_TOTAL,
            max_count=self.MAX_COUNT,
            lifetime=self.LIFETIME,
        )
        self.now = 0.0
        self.held: list[tuple[str, Response, float]] = []  # the most recently used one last

    def forget(self, key: str) -> None:
        self.held = [entry for entry in self.held if entry[0] != key]

    def expire(self) -> None:
        self.held = [entry for entry in self.held if entry[2] + self.LIFETIME > self.now]

    @rule(dt=st.sampled_from([0.0, 1.0, 3.0, 10.0]))
    def wait(self, dt: float) -> None:
        self.now += dt

    @rule(key=st.sampled_from("abcde"))
    def discard(self, key: str) -> None:
        self.table.discard(key)
        self.forget(key)

    @rule(key=st.sampled_from("abcde"), size=st.integers(0, 62))
    def put(self, key: str, size: int) -> None:
        response = Response(bytes(size))
        self.forget(key)
        if size > self.MAX_BODY:
            with fails(Code.INTERNAL_SERVER_ERROR, "the limit is 60"):
                self.table.put(key, response, self.now)
            return
        self.table.put(key, response, self.now)
        self.expire()
        self.held.append((key, response, self.now))
        while len(self.held) > self.MAX_COUNT or self.count_bytes() > self.MAX_TOTAL:
            del self.held[0]

    @rule(key=st.sampled_from("abcde"))
    def get(self, key: str) -> None:
        self.expire()
        found = next((response for name, response, _ in self.held if name == key), None)
        assert self.table.get(key, self.now) is found
        if found is not None:
            self.forget(key)
            self.held.append((key, found, self.now))

    def count_bytes(self) -> int:
        return sum(len(response.payload) for _, response, _ in self.held)

    @invariant()
    def is_bounded(self) -> None:
        self.expire()
        self.table.expire(self.now)
        assert [key for key, _, _ in self.held if key in self.table] == [key for key, _, _ in self.held]
        assert len(self.table) == len(self.held) <= self.MAX_COUNT
        assert self.table.total == self.count_bytes() <= self.MAX_TOTAL
        assert self.table.next_expiry() == (self.held[0][2] + self.LIFETIME if self.held else None)


TestBodyModel = BodyModel.TestCase
