"""The figures of liveness, and the decisions that follow from them, without a loop, a socket or a clock."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.liveness import LOOKS, SOON, Pulse, Step, Verdict
from aiomas_ng.liveness import DEFAULT_LIVENESS, ConnectionState, Liveness, PeerStatus

# -- The figures -----------------------------------------------------------------------------------


def test_defaults() -> None:
    """Ping after 15 s, wait for 30 s, and for 5 minutes if the peer is busy."""
    assert Liveness() == DEFAULT_LIVENESS
    assert dataclasses.astuple(Liveness()) == (15.0, 30.0, 300.0)


@pytest.mark.parametrize("name", ["interval", "patience", "busy_patience"])
@pytest.mark.parametrize("value", [0, -1, 0.009, math.inf, math.nan, True, "15"])
def test_figure_that_is_no_time_is_refused(name: str, value: Any) -> None:
    """Each is a number of seconds, not too small, and finite; the error names it."""
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Liveness(**{name: value})


@pytest.mark.parametrize("name", ["interval", "patience"])
def test_only_busy_peers_may_be_waited_for_without_end(name: str) -> None:
    """``None`` is a value of busy_patience alone."""
    assert Liveness(busy_patience=None).busy_patience is None
    with pytest.raises(ValueError, match=name):
        Liveness(**{name: None})


def test_busy_peer_is_not_waited_for_less() -> None:
    """A busy_patience below patience would declare dead who is alive before who is not."""
    assert Liveness(patience=2, busy_patience=2).busy_patience == 2
    with pytest.raises(ValueError, match="busy_patience must not be less"):
        Liveness(patience=2, busy_patience=1)


def test_figures_cannot_be_changed_and_travel_to_other_processes() -> None:
    """Many connections share them; a container process gets them as an argument."""
    figures = Liveness(interval=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.interval = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(figures)) == figures
    assert pickle.loads(pickle.dumps(ConnectionState.CLOSED)) is ConnectionState.CLOSED


def test_status_cannot_be_changed() -> None:
    """It is what was the case at a time."""
    status = PeerStatus("tcp://h:1/", ConnectionState.CLOSED, None, None)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.state = ConnectionState.CONNECTED  # type: ignore[misc]


# -- The decisions ---------------------------------------------------------------------------------


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
    off = about(figures.patience, world.now) + about(figures.interval)
    assert world.awake - before == pytest.approx(figures.patience, abs=off)


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
