"""The picture: what became of the energy, hour by hour or day by day."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.virtual_power_plant.messages import Hour
from examples.virtual_power_plant.portfolio import Scenario
from examples.virtual_power_plant.simulation import Figures
from examples.virtual_power_plant.timeline import HOURS_PER_DAY, STEP_HOURS, ZONE, get_start

#: Longer simulations than this are drawn by days instead of hours.
MAX_DAYS_BY_HOURS: Final = 31

FED_IN, STORED, DISCHARGED, CURTAILED, LINE = "#f2c14e", "#4d9078", "#8cc7b0", "#c0504d", "#30343f"

#: Dates and spans of time, which matplotlib takes, though its type hints do not say so.
Date = Any


def draw(path: Path, scenario: Scenario, figures: Figures) -> None:
    """Draw what became of the energy, hour by hour or, for more than a month, day by day.

    Args:
        path: The file; its suffix says in which format.
        scenario: What was simulated.
        figures: What came out.

    Raises:
        OSError: The file cannot be written.
        ValueError: Its suffix is not known.
    """
    hours = figures.hours
    begin: Date = get_start(scenario.days).to(ZONE).naive
    # A figure of its own instead of pyplot, which keeps figures in global state and may want a display.
    with rc_context({"date.converter": "concise"}):
        figure = Figure(figsize=(12, 7), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.set_title("Virtual power plant: what became of the energy of the sun", loc="left")
        if scenario.days > MAX_DAYS_BY_HOURS:
            _draw_days(upper, lower, begin, hours)
        else:
            _draw_hours(upper, lower, begin, hours, scenario.get_grid_limit())
        upper.set_ylim(bottom=0)
        lower.set_ylim(0, max(1.0, math.fsum(battery.capacity for battery in figures.batteries)))
        lower.set_xlim(begin, begin + timedelta(days=scenario.days))
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(path, dpi=120)


def _draw_hours(upper: Axes, lower: Axes, begin: Date, hours: Sequence[Hour], limit: float) -> None:
    """Draw powers and, below, the energy in the batteries, hour by hour."""
    step = timedelta(hours=1)
    layers = {
        "fed in at once": (FED_IN, [hour.produced - hour.charged for hour in hours]),
        "fed in from batteries": (DISCHARGED, [hour.discharged for hour in hours]),
        "into batteries": (STORED, [hour.charged for hour in hours]),
        "curtailed": (CURTAILED, [hour.curtailed for hour in hours]),
    }
    _stack(upper, begin, step, layers)
    label = f"limit of the grid, {limit:,.0f} kW"
    upper.axhline(limit, color=LINE, linestyle="--", linewidth=1, label=label)
    upper.set_ylabel("kW")
    # What is stored is known for the end of each hour.
    ends: list[Date] = [begin + i * step for i in range(1, len(hours) + 1)]
    lower.fill_between(ends, [hour.stored for hour in hours], color=STORED, alpha=0.5)
    lower.set_ylabel("kWh in batteries")


def _draw_days(upper: Axes, lower: Axes, begin: Date, hours: Sequence[Hour]) -> None:
    """Draw energies and, below, the most energy in the batteries, day by day."""
    days = [hours[i : i + HOURS_PER_DAY] for i in range(0, len(hours), HOURS_PER_DAY)]
    step = timedelta(days=1)
    # What came out of batteries went into them on the same day, so it is not to be counted again.
    layers = {
        "fed in at once": (FED_IN, [_add_up(hour.produced - hour.charged for hour in day) for day in days]),
        "into batteries": (STORED, [_add_up(hour.charged for hour in day) for day in days]),
        "curtailed": (CURTAILED, [_add_up(hour.curtailed for hour in day) for day in days]),
    }
    _stack(upper, begin, step, layers)
    upper.set_ylabel("kWh per day")
    _stack(lower, begin, step, {"": (STORED, [max(hour.stored for hour in day) for day in days])})
    lower.set_ylabel("kWh in batteries,\nat most")


def _stack(axes: Axes, begin: Date, step: Date, layers: dict[str, tuple[str, list[float]]]) -> None:
    """Draw *layers* (label, color, heights) one upon the other, with a bar for each *step* from *begin*."""
    bottoms: list[float] = []
    for label, (color, heights) in layers.items():
        bottoms = bottoms or [0.0] * len(heights)
        dates: Date = [begin + i * step for i in range(len(heights))]
        axes.bar(dates, heights, step, bottoms, align="edge", color=color, label=label)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]


def _add_up(powers: Iterable[float]) -> float:
    """Return the energy in kWh of hourly *powers* in kW."""
    return math.fsum(powers) * STEP_HOURS
