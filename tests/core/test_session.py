"""Sessions: a model of two ends and a bad network, and the rules one by one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiomas_ng._core.session import ACK_EVERY, Session, State
from aiomas_ng.exceptions import MalformedFrameError, ResumptionError

SECRET = bytes(range(32))
LIMIT = 4 * ACK_EVERY


class End:
    """One end: a session, what was written to it, and what has arrived."""

    def __init__(self, *, is_dialler: bool) -> None:
        self.session = Session(is_dialler=is_dialler, limit=LIMIT)
        self.written = bytearray()
        self.arrived = bytearray()
        self.wire = bytearray()  # what lies in the transport on the way to the other end
        self.is_full = False
        self.session.on_full = self.note_full

    def note_full(self) -> None:
        assert not self.is_full, "told twice"
        self.is_full = True

    def write(self, data: bytes) -> None:
        self.written += data
        self.session.write(data)

    def take(self, data: bytes) -> None:
        self.arrived += data
        self.session.received += len(data)


class TwoEnds(RuleBasedStateMachine):
    """Two ends that write, acknowledge, lose their transport at any byte, and take up the session again."""

    @initialize(early=st.binary(min_size=1, max_size=50), late=st.binary(min_size=1, max_size=50))
    def begin(self, early: bytes, late: bytes) -> None:
        self.dialler, self.acceptor = End(is_dialler=True), End(is_dialler=False)
        self.old: list[tuple[list[Any], int]] = []  # requests that somebody has overheard
        self.connect()
        self.dialler.write(early)  # before anything is known
        self.acceptor.write(late)
        self.dialler.session.accept(self.acceptor.session.offer("id", SECRET, 10.0))

    def connect(self) -> None:
        for end in self.dialler, self.acceptor:
            end.wire = bytearray()
            end.session.pass_on = end.wire.extend

    def other(self, end: End) -> End:
        return self.acceptor if end is self.dialler else self.dialler

    ends = st.sampled_from(["dialler", "acceptor"])

    @rule(name=ends, data=st.binary(min_size=1, max_size=40), repeat=st.sampled_from([1, 1, 1, 2000]))
    def write(self, name: str, data: bytes, repeat: int) -> None:
        end: End = getattr(self, name)
        end.write(data * repeat)
        if end.session.excess:
            assert end.is_full

    @rule(name=ends, share=st.floats(0, 1))
    def deliver(self, name: str, share: float) -> None:
        """A part of what is on the way arrives."""
        end: End = getattr(self, name)
        if end.session.pass_on is None or self.other(end).session.pass_on is None:
            end.wire.clear()  # nobody is at the other end of it
            return
        size = math.ceil(share * len(end.wire))
        self.other(end).take(bytes(end.wire[:size]))
        del end.wire[:size]

    @rule(name=ends)
    def acknowledge(self, name: str) -> None:
        """An end acknowledges, if it is due, and the other one reads that."""
        end: End = getattr(self, name)
        count = end.session.take_due_ack()
        if count is not None:
            assert count == len(end.arrived)
            assert end.session.take_due_ack() is None, "not twice"
            self.settle(self.other(end), count)

    @rule(name=ends, share=st.floats(0, 1))
    def acknowledge_late(self, name: str, share: float) -> None:
        """An acknowledgement arrives that was sent earlier."""
        end: End = getattr(self, name)
        self.settle(self.other(end), int(share * len(end.arrived)))

    def settle(self, end: End, count: int) -> None:
        end.session.acknowledge(count)
        if not end.session.excess:
            end.is_full = False

    @rule()
    def cut(self) -> None:
        """Both ends see the transport break."""
        for end in self.dialler, self.acceptor:
            end.wire.clear()
            end.session.interrupt()

    @precondition(lambda self: self.dialler.session.state is State.OPEN)
    @rule()
    def cut_dialler(self) -> None:
        """Only the dialler sees it; the acceptor goes on writing into the void."""
        self.dialler.wire.clear()
        self.acceptor.wire.clear()
        self.dialler.session.interrupt()

    @precondition(lambda self: self.dialler.session.state is State.INTERRUPTED)
    @rule(is_heard=st.booleans(), is_answer_heard=st.booleans())
    def dial(self, is_heard: bool, is_answer_heard: bool) -> None:
        """The dialler connects anew; request or answer may be lost."""
        dialler, acceptor = self.dialler.session, self.acceptor.session
        request = dialler.ask()
        if not is_heard:
            return
        self.old.append((request, len(self.dialler.arrived)))
        answer = acceptor.answer(request)
        self.acceptor.is_full = bool(acceptor.excess)
        self.acceptor.wire = bytearray()
        acceptor.resume(self.acceptor.wire.extend)
        if not is_answer_heard:
            self.acceptor.wire.clear()
            acceptor.interrupt()
            return
        dialler.take_answer(answer)
        self.dialler.is_full = bool(dialler.excess)
        self.dialler.wire = bytearray()
        dialler.resume(self.dialler.wire.extend)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Somebody says again what was said before: it is refused, and changes nothing."""
        request, _ = data.draw(st.sampled_from(self.old))
        before = self.snapshot()
        with pytest.raises(ResumptionError):
            self.acceptor.session.answer(request)
        assert self.snapshot() == before

    @rule(
        index=st.integers(0, 3),
        value=st.one_of(
            st.integers(), st.text(max_size=70), st.none(), st.binary(max_size=5), st.lists(st.none())
        ),
    )
    def forge(self, index: int, value: Any) -> None:
        """Somebody who has no secret changes a part of a request: it is refused, and changes nothing."""
        attempt = self.acceptor.session._attempt + 1
        session = self.acceptor.session
        request = [
            "id",
            attempt,
            len(self.dialler.arrived),
            session._prove("resume", attempt, len(self.dialler.arrived)),
        ]
        if type(request[index]) is type(value) and request[index] == value:
            return
        request[index] = value
        before = self.snapshot()
        with pytest.raises(ResumptionError):
            session.answer(request)
        assert self.snapshot() == before

    def snapshot(self) -> tuple[Any, ...]:
        session = self.acceptor.session
        return session.state, session.written, session.acknowledged, session.received, session._attempt

    @invariant()
    def arrives_once_and_in_order(self) -> None:
        if not hasattr(self, "dialler"):
            return
        for end in self.dialler, self.acceptor:
            arrived = self.other(end).arrived
            assert end.written[: len(arrived)] == arrived
            assert end.session.acknowledged <= len(arrived)
            kept = b"".join(end.session._kept)
            assert bytes(end.written[end.session.acknowledged :]) == kept
            if end.session.pass_on is not None and self.other(end).session.pass_on is not None:
                assert arrived + end.wire == end.written, "nothing is lost while both are connected"

    def teardown(self) -> None:
        """Without further faults everything arrives, and is acknowledged."""
        if not hasattr(self, "dialler"):
            return
        if self.dialler.session.state is State.OPEN:
            self.cut()
        self.dial(True, True)
        for end in self.dialler, self.acceptor:
            self.other(end).take(bytes(end.wire))
            end.wire.clear()
            assert self.other(end).arrived == end.written
            end.session.acknowledge(len(end.written))
            assert end.session.kept_size == 0
            assert not end.session._kept


TestTwoEnds = TwoEnds.TestCase


def opened(is_dialler: bool = True, limit: int = LIMIT) -> Session:
    """Return a session that is open."""
    session = Session(is_dialler=is_dialler, limit=limit)
    if is_dialler:
        session.accept(["id", SECRET.hex(), 10.0])
    else:
        session.offer("id", SECRET, 10.0)
    return session


@pytest.mark.parametrize(
    "offer",
    [
        None,
        True,
        [],
        ["id"],
        ["id", SECRET.hex()],
        ["", SECRET.hex(), 1.0],
        [7, SECRET.hex(), 1.0],
        ["id", "no hex", 1.0],
        ["id", "", 1.0],
        ["id", b"00", 1.0],
        ["id", SECRET.hex(), 0],
        ["id", SECRET.hex(), -1.0],
        ["id", SECRET.hex(), math.inf],
        ["id", SECRET.hex(), math.nan],
        ["id", SECRET.hex(), "1"],
        ["id", SECRET.hex(), True],
        ["i" * 1000, SECRET.hex(), 1.0],
        ["id", "00" * 1000, 1.0],
        {"id": 1},
        "abc",
    ],
    ids=repr,
)
def test_bad_offer_is_refused(offer: Any) -> None:
    """What is no offer is a broken rule of the peer, and opens nothing."""
    session = Session(is_dialler=True, limit=LIMIT)
    with pytest.raises(MalformedFrameError, match="offer of a session"):
        session.accept(offer)
    assert session.state is State.UNKNOWN


def test_second_offer_is_ignored() -> None:
    """Of two offers the first one counts: a peer cannot exchange the secret of an open session."""
    session = opened()
    session.accept(["other", SECRET.hex(), 1.0])
    assert session.id == "id"


@pytest.mark.parametrize("count", [-1, 101, 2**80, 1.0, "1", None, True, [1]], ids=repr)
def test_impossible_acknowledgement(count: Any) -> None:
    """An acknowledgement of what was never written, or that is no number, is a broken rule, and forgets
    nothing."""
    session = opened()
    session.write(bytes(100))
    with pytest.raises(MalformedFrameError, match="acknowledgement"):
        session.acknowledge(count)
    assert session.kept_size == 100


@given(st.lists(st.binary(max_size=30), max_size=30), st.data())
def test_acknowledgement_within_a_chunk(chunks: list[bytes], data: st.DataObject) -> None:
    """Any number of bytes can be acknowledged; the rest is written to the next transport as it was."""
    session = opened()
    for chunk in chunks:
        session.write(chunk)
    whole = b"".join(chunks)
    count = data.draw(st.integers(0, len(whole)))
    session.acknowledge(count)
    session.interrupt()
    sent = bytearray()
    session.resume(sent.extend)
    assert sent == whole[count:]


def test_full_is_told_once_until_there_is_room() -> None:
    """Beyond the limit ``on_full`` is called once, and again only after it was below."""
    told: list[int] = []
    session = opened(limit=100)
    session.on_full = lambda: told.append(session.kept_size)
    session.write(bytes(100))
    assert not told
    session.write(b"1")
    session.write(b"2")
    assert told == [101]
    session.acknowledge(50)
    session.write(bytes(60))
    assert told == [101, 112]


def test_ack_is_due_after_so_many_bytes() -> None:
    """What was received is acknowledged once for each :data:`ACK_EVERY` bytes."""
    session = opened()
    session.received += ACK_EVERY - 1
    assert session.take_due_ack() is None
    session.received += 1
    assert session.take_due_ack() == ACK_EVERY
    assert session.take_due_ack() is None
    session.received += ACK_EVERY
    assert session.take_due_ack() == 2 * ACK_EVERY


def tampered(answer: list[Any]) -> list[Callable[[], Any]]:
    """Return answers that are not what the acceptor has said."""
    received, proof = answer
    return [
        lambda: [received + 1, proof],
        lambda: [received, "0" * 64],
        lambda: [received, ""],
        lambda: [received],
        lambda: [received, proof, 1],
        lambda: None,
        lambda: [str(received), proof + "0"],
        lambda: [received, None],
        lambda: 7,
    ]


@pytest.mark.parametrize("number", range(9))
def test_acceptor_has_to_prove_itself(number: int) -> None:
    """Who answers without the secret does not get the rest of the bytes."""
    dialler, acceptor = opened(), opened(is_dialler=False)
    dialler.write(b"secret")
    dialler.interrupt()
    answer = acceptor.answer(dialler.ask())
    sent = bytearray()
    with pytest.raises(ResumptionError, match="prove"):
        dialler.take_answer(tampered(answer)[number]())
    assert dialler.state is State.INTERRUPTED
    assert not sent
    dialler.take_answer(answer)


def test_answer_of_an_earlier_attempt_is_refused() -> None:
    """An answer that somebody has overheard is of no use for the next attempt."""
    dialler, acceptor = opened(), opened(is_dialler=False)
    dialler.interrupt()
    answer = acceptor.answer(dialler.ask())
    request = dialler.ask()
    with pytest.raises(ResumptionError, match="prove"):
        dialler.take_answer(answer)
    dialler.take_answer(acceptor.answer(request))


def test_ended_session_keeps_nothing_and_is_not_taken_up() -> None:
    """After its end nothing is kept, and even the right proof is refused."""
    dialler, acceptor = opened(), opened(is_dialler=False)
    acceptor.write(b"data")
    dialler.interrupt()
    request = dialler.ask()
    acceptor.end()
    assert not acceptor._kept
    with pytest.raises(ResumptionError, match="ended"):
        acceptor.answer(request)


def test_acceptor_that_lost_count_is_refused() -> None:
    """A proven answer that acknowledges more than was written is no basis to go on."""
    dialler, acceptor = opened(), opened(is_dialler=False)
    acceptor.received = 10
    dialler.interrupt()
    with pytest.raises(ResumptionError, match="acknowledgement"):
        dialler.take_answer(acceptor.answer(dialler.ask()))


def test_dialler_that_lost_count_is_refused() -> None:
    """The same the other way round."""
    dialler, acceptor = opened(), opened(is_dialler=False)
    dialler.received = 10
    dialler.interrupt()
    with pytest.raises(ResumptionError, match="acknowledgement"):
        acceptor.answer(dialler.ask())


if __name__ == "__main__":
    # The model for as long as it takes: python -m tests.core.test_session [examples]
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    thorough = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(TwoEnds, settings=thorough)
    print(f"{examples} examples of the session model hold")
