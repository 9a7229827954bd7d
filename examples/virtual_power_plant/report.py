"""The tables that are printed at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.virtual_power_plant.portfolio import Scenario
from examples.virtual_power_plant.simulation import Figures, Result
from examples.virtual_power_plant.timeline import STEP_HOURS


def print_result(console: Console, scenario: Scenario, result: Result) -> None:
    """Print tables of plants and batteries, what went into the grid, how many calls it took, and what was
    observed."""
    figures = result.figures
    console.print(_make_plant_table(figures))
    if figures.batteries:
        console.print(_make_battery_table(figures))
    feed_in = math.fsum(hour.feed_in for hour in figures.hours) * STEP_HOURS
    most = max(hour.feed_in for hour in figures.hours)
    console.print(
        f"Fed in: {feed_in:,.1f} kWh, at most {most:,.1f} kW; "
        f"the limit is {scenario.get_grid_limit():,.1f} kW."
    )
    console.print(
        f"Calls:  {figures.calls:,}, {result.calls_per_second:,.0f} per second; "
        f"{len(figures.hours):,} hours took {result.seconds:.1f} s."
    )
    if figures.batteries:
        console.print(
            f"Seen:   {result.states:,} states of charge, live; "
            f"batteries found in the directory: {len(figures.batteries):,}."
        )
    console.print(f"Fingerprint of all figures: {figures.fingerprint}")


def _make_plant_table(figures: Figures) -> Table:
    columns = ["kWp", "produced", "of it stored", "curtailed"]
    rows = [(p.name, [p.peak_power, p.produced, p.stored, p.curtailed]) for p in figures.plants]
    return _make_table("Plants", columns, rows)


def _make_battery_table(figures: Figures) -> Table:
    columns = ["capacity", "charged", "discharged", "lost", "stored", "cost/EUR"]
    rows = [
        (b.name, [b.capacity, b.charged, b.discharged, b.lost, b.stored, b.cost]) for b in figures.batteries
    ]
    return _make_table("Batteries", columns, rows)


def _make_table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, list[float]]]) -> Table:
    """Return a table of *rows*, each a name and its numbers, with their sums below."""
    table = Table(title=f"{title} (energies in kWh)", title_justify="left", box=SIMPLE_HEAD, show_footer=True)
    table.add_column("", footer="all", no_wrap=True)
    for i, column in enumerate(columns):
        total = math.fsum(numbers[i] for _, numbers in rows)
        table.add_column(column, footer=f"{total:,.1f}", justify="right", no_wrap=True)
    for name, numbers in rows:
        table.add_row(name, *(f"{number:,.1f}" for number in numbers))
    return table
