"""What the figures say: medians, spreads, ratios, and whether the targets are reached. Nothing runs here.

A figure is one measurement: a rate, or what one piece costs. The ratio of a contender to another is the
median of the ratios of the rounds, in each of which they worked soon after each other, so that a machine
that becomes slower in the meantime slows down both. It says how many times as good a contender is: 2 is
twice the rate, or half the cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.workloads import WORKLOADS

__all__ = ["REFERENCES", "TARGETS", "Results", "Target", "Verdict", "judge", "median", "ratio", "spread"]


def median(figures: Sequence[float]) -> float:
    """Return the median, which must be one of at least one figure."""
    return statistics.median(figures)


def spread(figures: Sequence[float]) -> float:
    """Return how far the figures lie apart: half of what is between the lowest and the highest, as a share of
    the median."""
    return (max(figures) - min(figures)) / 2 / statistics.median(figures)


def ratio(
    ours: Mapping[int, float], reference: Mapping[int, float], more_is_better: bool = True
) -> float | None:
    """Return how many times as good we are, over the rounds in which both were measured, if there are any."""
    pairs = [(ours[number], reference[number]) for number in sorted(ours.keys() & reference.keys())]
    if not pairs:
        return None
    return statistics.median(a / b if more_is_better else b / a for a, b in pairs)


class Results:
    """The figures of a run, as they come in."""

    def __init__(self) -> None:
        #: Figures by workload, contender and round.
        self.figures: dict[str, dict[str, dict[int, float]]] = {}
        #: Errors by workload and contender; an error takes the place of the figures.
        self.errors: dict[str, dict[str, str]] = {}

    def add(self, workload: str, contender: str, number: int, figure: float) -> None:
        """Keep the figure of round *number*."""
        self.figures.setdefault(workload, {}).setdefault(contender, {})[number] = figure

    def add_error(self, workload: str, contender: str, error: str) -> None:
        """Keep the first error."""
        self.errors.setdefault(workload, {}).setdefault(contender, error)

    def of(self, workload: str, contender: str) -> dict[int, float]:
        """Return the figures by round; none if there was an error."""
        if contender in self.errors.get(workload, {}):
            return {}
        return self.figures.get(workload, {}).get(contender, {})

    def ratio(self, workload: str, contender: str, reference: str) -> float | None:
        """Return how many times as good a contender is as another."""
        return ratio(
            self.of(workload, contender), self.of(workload, reference), WORKLOADS[workload].more_is_better
        )

    def reference(self, workload: str) -> str | None:
        """Return the contender that is 1 in this row: if none of those provided for was measured, another."""
        candidates = (*REFERENCES.get(workload, ()), "ours", *self.figures.get(workload, ()))
        return next((name for name in candidates if self.of(workload, name)), None)

    def as_json(self) -> dict[str, Any]:
        """Return everything, as JSON has it."""
        return {"figures": self.figures, "errors": self.errors}


#: Who is 1 in a row, if it was measured, else the next.
REFERENCES: Final[Mapping[str, Sequence[str]]] = {
    "sequential": ("thriftpy2",),
    "in-flight": ("aio-msgpack-rpc",),
    "batch": ("pyro5",),
    "agents": ("aiomas", "mango"),
    "1-mib": ("pyro5",),
    "1-mib-later": ("pyro5",),
    "16-mib": ("managers",),
    "own-sequential": ("xoscar",),
    "own-in-flight": ("xoscar",),
    "one-way": ("aio-msgpack-rpc",),
    "stream": ("grpc",),
    "start": ("aiomas", "xoscar"),
    "creation": ("aiomas", "xoscar"),
    "memory": ("aiomas", "xoscar"),
}


@dataclass(frozen=True)
class Target:
    """What is to be reached: a ratio to a reference, or a figure that is not to be exceeded."""

    workload: str
    contender: str
    #: At least this often as good as the reference; without a reference at most this, in the unit of the
    #: workload.
    value: float
    #: With the factor by which the target is higher: of a slower reference that stands in for the first one.
    references: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of a target."""

    target: Target
    reference: str | None
    #: The target, in relation to *reference*.
    wanted: float
    #: ``None`` if it was not measured.
    reached: float | None

    @property
    def holds(self) -> bool | None:
        """Whether the target is reached; ``None`` if that was not measured."""
        if self.reached is None:
            return None
        return self.reached >= self.wanted if self.target.references else self.reached <= self.wanted


TARGETS: Final = (
    Target("sequential", "ours", 0.95, [("thriftpy2", 1.0)]),
    Target("sequential", "ours-uvloop", 1.05, [("thriftpy2", 1.0)]),
    Target("sequential", "ours-busy", 3.0, [("thriftpy2", 1.0)]),
    Target("in-flight", "ours", 2.4, [("aio-msgpack-rpc", 1.0)]),
    Target("in-flight", "ours-uvloop", 3.3, [("aio-msgpack-rpc", 1.0)]),
    Target("batch", "ours", 2.0, [("pyro5", 1.0)]),
    Target("agents", "ours", 2.8, [("aiomas", 1.0), ("mango", 1 / 0.36)]),
    Target("1-mib", "ours", 1.05, [("pyro5", 1.0)]),
    Target("1-mib-later", "ours", 1.05, [("pyro5", 1.0)]),
    Target("16-mib", "ours", 2.0, [("managers", 1.0)]),
    Target("own-sequential", "ours", 3.0, [("xoscar", 1.0)]),
    Target("own-in-flight", "ours", 1.4, [("xoscar", 1.0)]),
    Target("creation", "ours", 5e-6),
    Target("memory", "ours", 1000.0),
)


def judge(target: Target, results: Results) -> Verdict:
    """Return whether a target is reached."""
    if not target.references:
        figures = results.of(target.workload, target.contender)
        return Verdict(target, None, target.value, median([*figures.values()]) if figures else None)
    for reference, factor in target.references:
        reached = results.ratio(target.workload, target.contender, reference)
        if reached is not None:
            return Verdict(target, reference, target.value * factor, reached)
    reference, factor = target.references[0]
    return Verdict(target, reference, target.value * factor, None)
