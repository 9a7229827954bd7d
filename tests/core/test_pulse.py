"""The decisions about the life of a peer, without a loop, a socket or a clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.pulse import LOOKS, SOON, Pulse, Step, Verdict
from aiomas_ng.liveness import Liveness


class World:
    """A peer, its host, and a loop that looks after the peer when it is told to, and later than that.

    ``now`` is the time, ``awake`` that part of it in which the loop was not late.
    """

    def __init__(self, figures: Liveness, start: float = 0.0) -> None:
        self.figures = figures
        self.now = start
        self.awake = 0.0
        self.received = 0
        self.is_reading = True
        self.is_host_there = False
        self.answers = False
        self.pulse = Pulse(figures, start, 0)
        self.pings: list[float] = []
        self.verdicts: list[Verdict] = []
        self.delay = 0.0

    def look(self, late: float = 0.0) -> Verdict | None:
        """Let the time come at which one has to look, and *late* seconds more; return the verdict,
        if there is one."""
        self.now += self.delay + late
        self.awake += self.delay
        step, self.delay = self.pulse.look(self.now, self.received, late=late, is_reading=self.is_reading)
        verdict = None
        if step is Step.PING:
            self.ping()
        elif step is Step.JUDGE:
            assert self.is_reading
            verdict, self.delay = self.pulse.judge(self.now, self.received, self.is_host_there)
            self.verdicts.append(verdict)
            if verdict is Verdict.BUSY:
                self.ping()
        longest = max(self.figures.interval / LOOKS, self.figures.patience)
        assert SOON <= self.delay <= longest
        return verdict

    def ping(self) -> None:
        self.pings.append(self.awake)
        if self.answers:
            self.received += 1

    def look_until(self, verdict: Verdict, lates: Iterable[float] = ()) -> None:
        for late in itertools.chain(lates, itertools.repeat(0.0)):
            if self.look(late) is verdict:
                return
        raise AssertionError(f"no verdict: {self.verdicts}")


starts = st.floats(0, 1e9)


@st.composite
def figures(draw: st.DrawFn, is_busy_bounded: bool = True) -> Liveness:
    # Not too far apart, or there are millions of looks.
    interval = draw(st.floats(0.2, 1e4))
    patience = draw(st.floats(0.05, 10)) * interval
    busy = draw(st.floats(1, 10)) * patience if is_busy_bounded else None
    return Liveness(interval=interval, patience=patience, busy_patience=busy)


def about(time: float, now: float = 0.0) -> float:
    """Return what a computed time may be off."""
    return 2 * SOON + 1e-6 * (time + now * 1e-6)


@given(figures())
def test_silent_peer_is_dead_when_its_time_is_up(figures: Liveness) -> None:
    """A peer whose host is silent as well is dead interval + patience after the last byte, and not later than
    a third of the interval more."""
    world = World(figures)
    world.look()
    first = world.delay * 0.5  # the last byte comes between two looks
    world.received += 1
    world.look_until(Verdict.DEAD)
    silence = world.awake - first
    least = figures.interval + figures.patience
    assert least - about(least) <= silence <= least + figures.interval / LOOKS + about(least)
    assert world.verdicts == [Verdict.DEAD]
    assert world.pulse.is_unresponsive
    assert len(world.pings) == 1


@given(figures(), st.lists(st.floats(0, 1e6), min_size=1, max_size=50), starts)
def test_time_of_our_own_does_not_count(figures: Liveness, lates: list[float], start: float) -> None:
    """However late our loop is, and however often, the peer gets the same time in which we could have heard
    it."""
    world = World(figures, start)
    world.look_until(Verdict.DEAD, lates)
    least = figures.interval + figures.patience
    off = about(least, world.now)
    assert world.awake >= least - off
    assert world.pulse.get_silence(world.now) == pytest.approx(world.awake, abs=off)


@given(figures(), starts)
def test_busy_peer_is_dead_when_its_time_is_up(figures: Liveness, start: float) -> None:
    """A peer whose host is there is dead busy_patience after the first ping, neither sooner nor later."""
    world = World(figures, start)
    world.is_host_there = True
    world.look_until(Verdict.DEAD)
    assert figures.busy_patience is not None
    off = about(figures.busy_patience, world.now) + about(figures.interval)
    assert world.awake - world.pings[0] == pytest.approx(figures.busy_patience, abs=off)


@given(figures(is_busy_bounded=False))
def test_busy_peer_may_be_waited_for_without_end(figures: Liveness) -> None:
    """With ``None`` a busy peer is unresponsive for ever, and pinged once per patience."""
    world = World(figures)
    world.is_host_there = True
    while len(world.verdicts) < 20:
        world.look()
    assert set(world.verdicts) == {Verdict.BUSY}
    assert world.pulse.is_unresponsive
    assert len(world.pings) == 21


@given(figures())
def test_host_that_goes_while_its_program_is_busy(figures: Liveness) -> None:
    """A peer that was busy is dead as soon as its host does not confirm the latest ping."""
    world = World(Liveness(interval=figures.interval, patience=figures.patience, busy_patience=None))
    world.is_host_there = True
    world.look_until(Verdict.BUSY)
    before = world.awake
    world.is_host_there = False
    world.look_until(Verdict.DEAD)
    assert world.awake - before == pytest.approx(figures.patience)


@given(figures(), st.integers(1, 200))
def test_peer_that_answers_lives(figures: Liveness, count: int) -> None:
    """Who answers each ping is never judged, and not asked more than once per interval."""
    world = World(figures)
    world.answers = True
    for _ in range(count):
        world.look()
    assert world.verdicts == []
    assert not world.pulse.is_unresponsive
    for earlier, later in itertools.pairwise(world.pings):
        assert later - earlier >= figures.interval - about(figures.interval)


@given(figures(), st.data())
def test_bytes_in_time_are_life(figures: Liveness, data: st.DataObject) -> None:
    """Whatever comes, and whether pings are answered or not: if there is something within each patience, the
    peer is alive."""
    world = World(figures)
    gap = figures.patience * 0.99
    last = 0.0
    for _ in range(60):
        if world.now + world.delay - last >= gap:
            # Something came before the next look: somewhere in time.
            last = world.now + data.draw(st.floats(0, 1)) * min(world.delay, gap)
            world.received += 1
        world.look()
    assert Verdict.DEAD not in world.verdicts
    assert Verdict.BUSY not in world.verdicts


@given(figures(), st.sampled_from(["look", "judge"]))
def test_any_byte_brings_it_back(figures: Liveness, where: str) -> None:
    """A busy peer of which a byte has come is alive at once, and the count begins anew."""
    world = World(figures)
    world.is_host_there = True
    while not world.pulse.is_unresponsive:
        if world.look() is Verdict.DEAD:
            return  # busy_patience is patience
    world.received += 1
    if where == "look":
        world.look()
    else:
        verdict, world.delay = world.pulse.judge(world.now, world.received, False)
        assert verdict is Verdict.ALIVE
    assert not world.pulse.is_unresponsive
    before = world.awake
    world.look_until(Verdict.DEAD if figures.busy_patience == figures.patience else Verdict.BUSY)
    least = figures.interval + figures.patience
    assert world.awake - before >= least - about(least, world.now)


@given(figures())
def test_bytes_in_the_last_turn_are_life(figures: Liveness) -> None:
    """What was read in the turn of the loop before the judgement saves the peer."""
    world = World(figures)
    while True:
        world.now += world.delay
        step, world.delay = world.pulse.look(world.now, 0)
        if step is Step.JUDGE:
            break
    assert world.pulse.judge(world.now, 1, False)[0] is Verdict.ALIVE


@given(figures(), st.integers(0, 30), st.integers(1, 60))
def test_peer_is_not_judged_while_we_do_not_read(figures: Liveness, before: int, count: int) -> None:
    """While we read nothing, the peer is not judged, and is sent signs of life of ours; then its time begins
    anew."""
    world = World(figures)
    world.is_host_there = True
    for _ in range(before):
        if world.look() is Verdict.DEAD:
            return
    verdicts, pings, awake = len(world.verdicts), len(world.pings), world.awake
    world.is_reading = False
    for _ in range(count):
        world.look()
    assert len(world.verdicts) == verdicts
    assert len(world.pings) - pings >= int((world.awake - awake) / (figures.interval * (1 + 1 / LOOKS)))
    world.is_reading = True
    world.is_host_there = False
    awake = world.awake
    world.look_until(Verdict.DEAD)
    assert world.awake - awake >= figures.patience - about(figures.patience, world.now)


def test_reset_forgets_everything() -> None:
    """On a new connection nothing is left of what was suspected of the one before."""
    world = World(Liveness(interval=1, patience=1))
    world.is_host_there = True
    world.look_until(Verdict.BUSY)
    world.pulse.reset(world.now, 0)
    assert not world.pulse.is_unresponsive
    assert world.pulse.get_silence(world.now) == 0
    assert world.pulse.judge(world.now, 0, False)[0] is Verdict.ALIVE


def test_hearing_is_told() -> None:
    """Only a number that has changed is a sign of life; it may go down, as on a new connection."""
    pulse = Pulse(Liveness(), 0, 5)
    assert not pulse.hear(1, 5)
    assert pulse.get_silence(1) == 1
    assert pulse.hear(1, 3)
    assert pulse.get_silence(1) == 0
