"""Show how the cost of a call grows with what there is: ``python -m benchmarks.growth --help``.

Each series has sizes; for each of them there is a pair of processes, and all work in turn, as in
:mod:`benchmarks.runner`. The growth of a cost is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.__main__ import alone, say, until_signal
from benchmarks.contenders import CONTENDERS
from benchmarks.figures import median, ratio, spread
from benchmarks.runner import ContenderError, Process, rotated

__all__ = ["SERIES", "Growth", "Series", "fit"]

MODULE: Final = "benchmarks.growth_process"


@dataclass(frozen=True)
class Series:
    """Something that there may be few or many of."""

    name: str
    title: str
    sizes: Sequence[int]
    #: The cost at the last one of these sizes in relation to that at the first one is to be at most this.
    between: tuple[int, int] | None = None
    limit: float = 0.0


SERIES: Final = {
    series.name: series
    for series in (
        Series(
            "agents",
            "agents in one container, 256 calls in flight, to all in turn",
            (10, 100, 1_000, 10_000, 100_000),
            (10, 100_000),
            1.1,
        ),
        Series(
            "connections", "connections, with one call in flight on each", (10, 100, 1_000), (10, 1_000), 1.3
        ),
        Series("in-flight", "calls in flight on one connection", (1, 10, 100, 1_000, 10_000)),
        Series(
            "memory",
            "calls in flight, held by a coroutine of the agent",
            (100, 1_000, 10_000),
            (1_000, 10_000),
            1.1,
        ),
    )
}


class Growth:
    """What was measured: seconds per call, in the series ``memory`` bytes, by series, size and round."""

    def __init__(self) -> None:
        self.costs: dict[str, dict[int, dict[int, float]]] = {}
        self.errors: dict[str, dict[int, str]] = {}

    def add(self, series: str, size: int, number: int, cost: float) -> None:
        """Keep the cost of round *number*."""
        self.costs.setdefault(series, {}).setdefault(size, {})[number] = cost

    def ratio(self, series: str, small: int, large: int) -> float | None:
        """Return the growth of the cost between two sizes."""
        costs = self.costs.get(series, {})
        return ratio(costs.get(large, {}), costs.get(small, {}))


def fit(costs: Mapping[int, float]) -> tuple[float, float]:
    """Return slope and offset of the straight line through the totals: the cost of a further one, and what is
    there anyway. *costs* are those of each, by how many there were."""
    sizes = list(costs)
    totals = [size * cost for size, cost in costs.items()]
    middle, middle_total = sum(sizes) / len(sizes), sum(totals) / len(totals)
    slope = sum((x - middle) * (y - middle_total) for x, y in zip(sizes, totals, strict=True)) / sum(
        (x - middle) ** 2 for x in sizes
    )
    return slope, middle_total - slope * middle


class Pair:
    """Server and client for one size of one series."""

    def __init__(self, contender: str, series: str, size: int) -> None:
        self._args = (contender, series, str(size))
        self._processes: list[Process] = []

    async def measure(self, seconds: float, timeout: float) -> float:
        """Return the cost of a call.

        Raises:
            ContenderError: It does not work.
        """
        if not self._processes:
            address = await self._start("server")
            await self._start("client", address)
        client = self._processes[-1]
        client.tell({"seconds": seconds})
        answer = await client.answer(timeout + 2 * seconds)
        if "error" in answer:
            raise ContenderError(answer["error"])
        if "server" in answer:
            return float(answer["client"] + answer["server"])
        return float(answer["amount"] / answer["count"])

    async def _start(self, role: str, *commands: Any) -> Any:
        process = Process(role, MODULE, role, *self._args)
        self._processes.append(process)
        return await process.start(*commands)

    async def stop(self) -> None:
        """End both processes."""
        while self._processes:
            await self._processes.pop().stop(is_patient=False)


async def run(
    contender: str, chosen: Sequence[Series], rounds: int, seconds: float, timeout: float
) -> Growth:
    """Measure all sizes of the series in turn."""
    growth = Growth()
    for series in chosen:
        pairs = {str(size): Pair(contender, series.name, size) for size in series.sizes}
        try:
            for number in range(rounds):
                for name in rotated(list(pairs), number):
                    if int(name) in growth.errors.get(series.name, {}):
                        continue
                    say(f"{series.name}: round {number + 1} of {rounds}, {name}")
                    try:
                        cost = await pairs[name].measure(seconds, timeout)
                    except ContenderError as error:
                        growth.errors.setdefault(series.name, {})[int(name)] = str(error)
                    else:
                        growth.add(series.name, int(name), number, cost)
        finally:
            await asyncio.shield(asyncio.gather(*(pair.stop() for pair in pairs.values())))
    return growth


def describe(growth: Growth, chosen: Sequence[Series]) -> str:
    """Return all that was measured, in Markdown."""
    parts = []
    for series in chosen:
        unit = "bytes" if series.name == "memory" else "s"
        rows = [["", f"{'memory' if unit == 'bytes' else 'time'} per call", "in relation to the first"]]
        for size in series.sizes:
            error = growth.errors.get(series.name, {}).get(size)
            if error:
                rows.append([f"{size:,}", f"failed: {error}", ""])
                continue
            costs = list(growth.costs[series.name][size].values())
            growing = growth.ratio(series.name, series.sizes[0], size)
            text = f"{report.number(median(costs), unit)} ±{spread(costs):.0%}"
            rows.append([f"{size:,}", text, f"{growing:.2f}" if growing else "–"])
        parts.append(f"### {series.title}\n\n{report.markdown(rows)}")
        if unit == "bytes" and series.name not in growth.errors:
            slope, offset = fit(
                {size: median([*costs.values()]) for size, costs in growth.costs[series.name].items()}
            )
            parts.append(f"A straight line through them: {slope:.0f} B for each call, and {offset:.0f} B.")
        if series.between:
            parts.append(verdict(growth, series, series.between))
    return "\n\n".join(parts) + "\n"


def verdict(growth: Growth, series: Series, between: tuple[int, int]) -> str:
    """Return whether the growth is as small as it is to be."""
    reached = growth.ratio(series.name, *between)
    small, large = between
    text = f"From {small:,} to {large:,}: target at most {series.limit:.2f}, "
    if reached is None:
        return text + "not measured"
    return text + f"reached {reached:.2f}: {'holds' if reached <= series.limit else '**does not hold**'}"


def plot(growth: Growth, chosen: Sequence[Series], path: Path) -> None:
    """Draw the costs over the sizes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(chosen), figsize=(4 * len(chosen), 3), squeeze=False)
    for place, series in zip(axes.flat, chosen, strict=True):
        factor = 1.0 if series.name == "memory" else 1e6
        costs = {size: [*by_round.values()] for size, by_round in growth.costs.get(series.name, {}).items()}
        place.plot(list(costs), [factor * median(some) for some in costs.values()], marker="o")
        place.set_xscale("log")
        place.set_ylim(bottom=0)
        place.set_xlabel(series.title, fontsize=7)
        place.set_ylabel("bytes per call" if factor == 1 else "µs per call", fontsize=8)
        place.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> int:
    """Measure what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    ours = [name for name in CONTENDERS if name.startswith("ours")]
    parser.add_argument("--contender", choices=ours, default="ours", help="which event loop [%(default)s]")
    parser.add_argument("--series", metavar="A,B", help=f"only these of {', '.join(SERIES)}")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often everything is measured [%(default)s]"
    )
    parser.add_argument("--time", type=float, default=0.3, help="seconds for each measurement [%(default)s]")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds after which it hangs [%(default)s]"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write growth.json, growth.md and growth.svg there"
    )
    options = parser.parse_args()
    names = options.series.split(",") if options.series else list(SERIES)
    if unknown := [name for name in names if name not in SERIES]:
        parser.error(f"there is no series {unknown[0]!r}")
    entry = CONTENDERS[options.contender]
    if missing := entry.missing():
        parser.error(f"{options.contender} cannot run: {missing}")
    chosen = [SERIES[name] for name in names]
    about = report.describe_run([entry], rounds=options.rounds, seconds=options.time)
    with alone(), asyncio.Runner() as runner:
        growth = runner.run(
            until_signal(run(options.contender, chosen, options.rounds, options.time, options.timeout))
        )
    say("")
    text = f"{report.heading(about)}\n\n{describe(growth, chosen)}"
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"run": about, "costs": growth.costs, "errors": growth.errors}, indent=1)
        (options.output / "growth.json").write_text(content + "\n", encoding="utf-8")
        (options.output / "growth.md").write_text(text, encoding="utf-8")
        try:
            plot(growth, chosen, options.output / "growth.svg")
        except ModuleNotFoundError as error:
            print(f"there is no plot: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("ended before it was done")
