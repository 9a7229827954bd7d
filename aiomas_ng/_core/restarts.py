"""What follows a failure: policies, and when what they restart has failed too often.

Rules:

- Each policy but the last one names the next, which applies when its restarts are used up:
  :class:`RestartTask` → :class:`RestartAgent` → :class:`StopContainer`.
- ``max_restarts`` counts the restarts of the last ``within`` seconds in which the thing *ran*. Pauses do not
  count: else growing pauses would see to it that the number is never reached.
- The more restarts there are in these seconds, the longer is the pause before the next one.
- The same failures at the same times give the same pauses: what makes them differ between things that fail
  together is drawn from the name of the thing.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiomas_ng._core.codec_errors import describe

__all__ = [
    "Failure",
    "History",
    "Log",
    "Policy",
    "Restart",
    "RestartAgent",
    "RestartTask",
    "Step",
    "StopContainer",
    "decide",
]

#: Restarts that are remembered where their number has no bound.
MAX_KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Log:
    """The failure is logged, with its traceback; the task has ended."""

    def __str__(self) -> str:
        return "Log"


@dataclass(frozen=True, slots=True)
class StopContainer:
    """The container is shut down, as by :meth:`~aiomas_ng.agent.Container.shutdown`.

    A process of :mod:`aiomas_ng.subproc` then ends with exit code 1, so that whoever started it can restart
    it.
    """

    def __str__(self) -> str:
        return "StopContainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """When a thing that failed is started again, and how often.

    Attributes:
        max_restarts: Restarts within ``within`` seconds; the next failure is one too many. 0 is none,
            ``None`` has no bound.
        within: Seconds in which the thing ran; pauses do not count.
        first_pause: Seconds before the first restart, 0 for as soon as possible.
        growth: Each pause is this many times as long as the one before.
        longest_pause: Seconds that no pause exceeds.
        jitter: Up to which part, from 0 to 1, a pause is shortened by chance, so that not all that failed
            together comes back together.
        seed: What chance depends on, together with the name of the thing.

    Raises:
        ValueError: One of them is out of range.
    """

    max_restarts: int | None = 5
    within: float = 60.0
    first_pause: float = 0.1
    growth: float = 2.0
    longest_pause: float = 60.0
    jitter: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        count: Any = self.max_restarts
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
            raise ValueError(f"max_restarts must be an integer >= 0, or None, but is {count!r}")
        for name, lowest, highest in RANGES:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not lowest <= value <= highest or math.isinf(value):
                raise ValueError(f"{name} must be a number from {lowest} to {highest} but is {value!r}")
        if self.within <= 0:
            raise ValueError(f"within must be > 0 but is {self.within!r}")

    def __str__(self) -> str:
        often = "any number of times" if self.max_restarts is None else f"{self.max_restarts} times"
        return f"{type(self).__name__}, {often} within {self.within} s"


#: What the numbers of a :class:`Restart` can be.
RANGES: Final = (
    ("within", 0.0, math.inf),
    ("first_pause", 0.0, math.inf),
    ("growth", 1.0, math.inf),
    ("longest_pause", 0.0, math.inf),
    ("jitter", 0.0, 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartAgent(Restart):
    """The agent is stopped and made anew, with the same id; see :mod:`aiomas_ng.supervision`.

    Attributes:
        factory: Called with the container, returns the new agent; may be a coroutine function. By default
            the agent's class is called with the arguments that it was made with.
        then: What applies when the restarts are used up.
    """

    factory: Callable[[Any], Any] | None = None
    then: Log | StopContainer = field(default_factory=StopContainer)

    def __post_init__(self) -> None:
        Restart.__post_init__(self)
        _check_next(self, self.then, (Log, StopContainer))
        if self.factory is not None and not callable(self.factory):
            raise TypeError(f"factory must be callable but is {self.factory!r}")

    __str__ = Restart.__str__


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartTask(Restart):
    """The task is started again: its function is called with the same arguments.

    Attributes:
        always: Whether it is started again also when it has returned.
        then: What applies when the restarts are used up.
    """

    always: bool = False
    then: Log | RestartAgent | StopContainer = field(default_factory=RestartAgent)

    def __post_init__(self) -> None:
        Restart.__post_init__(self)
        _check_next(self, self.then, (Log, RestartAgent, StopContainer))

    __str__ = Restart.__str__


Policy = Log | RestartTask | RestartAgent | StopContainer


def _check_next(policy: Restart, following: Any, allowed: tuple[type, ...]) -> None:
    if not isinstance(following, allowed):
        names = ", ".join(f"{cls.__name__}()" for cls in allowed)
        raise TypeError(f"after {type(policy).__name__} comes one of {names}, not {following!r}")


class History:
    """The restarts of one thing, on a scale of time that stands still during its pauses.

    Args:
        name: What the thing is called; chance depends on it.
    """

    __slots__ = ("_down", "_failed_at", "_name", "_random", "_restarts")

    def __init__(self, name: str) -> None:
        self._name = name
        self._restarts: collections.deque[float] = collections.deque(maxlen=MAX_KEPT)
        self._down = 0.0  # seconds for which it did not run
        self._failed_at: float | None = None  # it does not run now
        self._random: random.Random | None = None

    def next_pause(self, rule: Restart, now: float) -> float | None:
        """The thing has failed: return the seconds until it is to be started again; ``None`` if its restarts
        are used up."""
        if self._failed_at is None:
            self._failed_at = now
        ran = self._failed_at - self._down
        restarts = self._restarts
        while restarts and ran - restarts[0] >= rule.within:
            restarts.popleft()
        if rule.max_restarts is not None and len(restarts) >= rule.max_restarts:
            return None
        try:
            pause = min(rule.first_pause * rule.growth ** len(restarts), rule.longest_pause)
        except OverflowError:
            pause = rule.longest_pause if rule.first_pause else 0.0
        restarts.append(ran)
        if rule.jitter:
            if self._random is None:
                self._random = random.Random(f"{rule.seed}/{self._name}")
            pause *= 1 - rule.jitter * self._random.random()
        return pause

    def restarted(self, now: float) -> None:
        """The thing runs again."""
        if self._failed_at is not None:
            self._down += now - self._failed_at
            self._failed_at = None


@dataclass(frozen=True, slots=True)
class Step:
    """What is done about a failure.

    Attributes:
        policy: The policy that applies.
        pause: Seconds before a restart.
        used_up: The policies before it, whose restarts are used up.
    """

    policy: Policy
    pause: float = 0.0
    used_up: tuple[Restart, ...] = ()


def decide(policy: Policy, task: History | None, agent: History, now: float) -> Step:
    """Return what is to be done about a failure at the time *now*.

    Args:
        policy: The policy of what has failed.
        task: The restarts of the task; ``None`` if it is the agent that failed, which cannot be made anew.
        agent: The restarts of its agent.
        now: Seconds, of a clock that does not go back.
    """
    used_up: list[Restart] = []
    while isinstance(policy, RestartTask | RestartAgent):
        if isinstance(policy, RestartAgent):
            pause = agent.next_pause(policy, now)
        else:
            pause = task.next_pause(policy, now) if task is not None else None
        if pause is not None:
            return Step(policy, pause, tuple(used_up))
        used_up.append(policy)
        policy = policy.then
    return Step(policy, used_up=tuple(used_up))


@dataclass(frozen=True, slots=True)
class Failure:
    """Something of an agent has failed.

    Attributes:
        agent: The agent's address.
        class_name: The name of its class.
        task: The name of the task; ``None`` if the agent could not be made anew.
        error: What it has failed with.
        policy: The policy that applies now.
        pause: Seconds before a restart.
        used_up: The policies before that, whose restarts are used up.
        time: When that was, by the container's clock, in seconds.
    """

    agent: str
    class_name: str
    task: str | None
    error: BaseException
    policy: Policy
    pause: float
    used_up: tuple[Restart, ...]
    time: float

    def __str__(self) -> str:
        what = f"task {self.task!r} of" if self.task is not None else "restarting"
        agent = f"{self.class_name}({self.agent!r})"
        text = f"{what} {agent} failed: {describe(self.error)}; policy {self.policy}"
        if isinstance(self.policy, Restart):
            thing = "task" if isinstance(self.policy, RestartTask) else "agent"
            text += f": the {thing} is restarted in {self.pause:.3g} s"
        elif not isinstance(self.policy, Log):
            text += ": the container is shut down"
        else:
            text += ": the task is not restarted" if self.task is not None else ": the agent stays away"
        if self.used_up:
            text += f" (used up: {'; '.join(map(str, self.used_up))})"
        return text
