"""Restarts: what follows a failure, how long the pauses are, and when it was once too often."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.restarts import (
    MAX_KEPT,
    History,
    Log,
    Restart,
    RestartAgent,
    RestartTask,
    StopContainer,
    decide,
)

EXACT = {"jitter": 0.0}

rules = st.builds(
    Restart,
    max_restarts=st.none() | st.integers(0, 6),
    within=st.floats(0.1, 100),
    first_pause=st.just(0.0) | st.floats(0.01, 10),
    growth=st.floats(1, 1e6),
    longest_pause=st.floats(0, 100),
    jitter=st.floats(0, 1),
    seed=st.integers(),
)


def pauses_of(rule: Restart, *runs: float, name: str = "thing") -> list[float | None]:
    """Return the pauses after a thing has run for so many seconds each time, up to the last one."""
    history, now = History(name), 0.0
    pauses = []
    for seconds in runs:
        now += seconds
        pause = history.next_pause(rule, now)
        pauses.append(pause)
        if pause is None:
            break
        now += pause
        history.restarted(now)
    return pauses


def test_pauses_grow_up_to_the_longest() -> None:
    """Each pause is ``growth`` times as long as the one before, until the longest one is reached."""
    rule = Restart(max_restarts=None, first_pause=0.5, growth=3, longest_pause=10, **EXACT)
    assert pauses_of(rule, *[0.0] * 5) == [0.5, 1.5, 4.5, 10, 10]


def test_the_failure_after_the_last_restart_is_one_too_many() -> None:
    """With three restarts, the fourth failure finds them used up; with none, the first one does."""
    assert pauses_of(Restart(max_restarts=3, **EXACT), *[0.0] * 9)[3:] == [None]
    assert pauses_of(Restart(max_restarts=0), 0.0) == [None]


def test_who_has_run_long_enough_begins_anew() -> None:
    """Restarts that lie further back than ``within`` seconds neither count nor lengthen the pause."""
    rule = Restart(max_restarts=2, within=60, first_pause=1, **EXACT)
    assert pauses_of(rule, 0, 0, 60, 0, 59, 1) == [1, 2, 1, 2, None]


def test_pauses_do_not_count_as_running() -> None:
    """Pauses that are longer than ``within`` do not keep the restarts from being used up."""
    rule = Restart(max_restarts=4, within=10, first_pause=100, longest_pause=1000, growth=1, **EXACT)
    assert pauses_of(rule, *[0.1] * 9) == [100, 100, 100, 100, None]


@given(rule=rules, runs=st.lists(st.floats(0, 200), max_size=30))
def test_no_more_restarts_than_allowed_in_any_stretch_of_running(rule: Restart, runs: list[float]) -> None:
    """In no ``within`` seconds of running are there more restarts than allowed; pauses keep their bounds, and
    failing is refused only if it has to be."""
    ran, times = 0.0, []
    for seconds, pause in zip(runs, pauses_of(rule, *runs), strict=False):
        ran += seconds
        recent = [time for time in times if ran - time < rule.within]
        if pause is None:
            assert rule.max_restarts is not None
            assert len(recent) >= rule.max_restarts - 1  # a sum of floats may lie on either side of the bound
            continue
        assert rule.max_restarts is None or len(recent) <= rule.max_restarts
        full = min(rule.first_pause * rule.growth ** min(len(times), 40), rule.longest_pause)
        assert 0 <= pause <= full
        times.append(ran)


@given(rule=rules, runs=st.lists(st.floats(0, 200), max_size=10))
def test_the_same_failures_give_the_same_pauses(rule: Restart, runs: list[float]) -> None:
    """What happens is a function of the failures, the rule and the name."""
    assert pauses_of(rule, *runs) == pauses_of(rule, *runs)


def test_jitter_differs_by_name_and_seed() -> None:
    """Two things that fail together come back at different times, as does one with another seed."""
    rule = Restart(jitter=0.5)
    pauses = {pauses_of(rule, 0.0, name=name)[0] for name in "abc"}
    pauses |= {pauses_of(Restart(jitter=0.5, seed=1), 0.0, name="a")[0]}
    assert len(pauses) == 4
    assert all(pause is not None and 0.05 <= pause <= 0.1 for pause in pauses)


def test_failing_for_ever_keeps_little_and_does_not_overflow() -> None:
    """Where the number of restarts has no bound, neither memory nor the pause grow without one."""
    rule = Restart(max_restarts=None, growth=1e300, longest_pause=7, **EXACT)
    history = History("thing")
    for _ in range(3 * MAX_KEPT):
        pause = history.next_pause(rule, 0.0)
        history.restarted(0.0)
    assert pause == 7
    assert len(history._restarts) == MAX_KEPT
    assert pauses_of(Restart(max_restarts=None, first_pause=0, growth=1e300), *[0.0] * 9) == [0.0] * 9


@pytest.mark.parametrize(
    "kwargs",
    [{"max_restarts": -1}, {"max_restarts": 1.5}, {"max_restarts": True}, {"within": 0}, {"within": -1},
     {"within": float("inf")}, {"first_pause": -0.1}, {"first_pause": float("nan")}, {"growth": 0.9},
     {"longest_pause": "1"}, {"jitter": 1.1}, {"jitter": -0.1}],
)  # fmt: skip
def test_rules_are_checked(kwargs: dict[str, Any]) -> None:
    """What cannot be a rule is a ValueError that names the number."""
    for cls in (Restart, RestartTask, RestartAgent):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            cls(**kwargs)


def test_the_chain_goes_up_only() -> None:
    """After an agent was restarted too often no task is restarted, and what is no policy is refused."""
    wrong: Any
    for wrong in (RestartTask(), RestartAgent(), None, Log):
        with pytest.raises(TypeError, match="after RestartAgent comes one of Log"):
            RestartAgent(then=wrong)
    for wrong in (RestartTask(), StopContainer, "stop"):
        with pytest.raises(TypeError, match="after RestartTask comes one of Log"):
            RestartTask(then=wrong)
    with pytest.raises(TypeError, match="factory must be callable"):
        RestartAgent(factory=7)  # type: ignore[arg-type]  # which is the point


def test_failures_climb_the_whole_chain() -> None:
    """A task that fails again and again is restarted, then its agent is, then the container stops; and what
    was used up is said."""
    policy = RestartTask(max_restarts=2, then=RestartAgent(max_restarts=1))
    agent = History("agent")
    taken = []
    for _ in range(2):  # agents, each of which has a new task
        task = History("task")
        for _ in range(3):
            step = decide(policy, task, agent, 0.0)
            taken.append((type(step.policy), len(step.used_up)))
            task.restarted(0.0)
        agent.restarted(0.0)
    again = [(RestartTask, 0), (RestartTask, 0)]
    assert taken == [*again, (RestartAgent, 1), *again, (StopContainer, 2)]


def test_an_agent_that_cannot_be_made_skips_the_restart_of_tasks() -> None:
    """Where the agent itself has failed, there is no task to be restarted."""
    step = decide(RestartTask(), None, History("agent"), 0.0)
    assert isinstance(step.policy, RestartAgent)


@pytest.mark.parametrize("policy", [Log(), StopContainer()])
def test_the_last_policies_need_no_history(policy: Log | StopContainer) -> None:
    """Log and StopContainer apply at once, and each time."""
    agent = History("agent")
    assert [decide(policy, None, agent, 0.0).policy for _ in range(3)] == [policy] * 3


def test_policies_name_themselves() -> None:
    """In the log a policy says what it is and allows."""
    assert str(RestartTask(max_restarts=3, within=10)) == "RestartTask, 3 times within 10 s"
    assert str(RestartAgent(max_restarts=None)) == "RestartAgent, any number of times within 60.0 s"
    assert [str(Log()), str(StopContainer())] == ["Log", "StopContainer"]
