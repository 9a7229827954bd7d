"""Write down the results: tables in Markdown, and a plot."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import Entry, find
from benchmarks.figures import TARGETS, Results, Verdict, judge, median, spread
from benchmarks.workloads import WORKLOADS

__all__ = ["describe_run", "plot", "tables", "verdicts"]

#: What belongs into one table.
GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "Calls": ("sequential", "in-flight", "batch", "agents"),
    "Large data": ("1-mib", "1-mib-later", "16-mib"),
    "Agents of one container": ("own-sequential", "own-in-flight"),
    "Messages and streams": ("one-way", "stream"),
    "Resources": ("get", "get-in-flight", "observers"),
    "Containers and agents": ("start", "creation", "memory"),
}


def describe_run(entries: Iterable[Entry], **settings: Any) -> dict[str, Any]:
    """Return when, where, how and with what was measured."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", _module_name(), *sys.argv[1:]]),
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "environment": {name: value for name, value in sorted(os.environ.items()) if "MALLOC" in name},
        "versions": {entry.name: entry.versions() for entry in entries},
        **settings,
    }


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else "benchmarks"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def heading(about: Mapping[str, Any]) -> str:
    """Return what is said of a run above its figures, in Markdown."""
    versions = {version for text in about["versions"].values() for version in text.split(", ") if version}
    variables = "".join(f"{name}={value} " for name, value in about["environment"].items())
    return (
        f"`{variables}{about['command']}`\n\n{about['date']}. {about['machine']}, {about['system']}, "
        f"{about['python']}; load before: {about['load']:.1f}. "
        f"Medians of {about['rounds']} rounds of {about['seconds']:g} s.\n\n"
        f"Versions: {', '.join(sorted(versions, key=str.lower))}."
    )


def number(value: float, unit: str) -> str:
    """Return a figure with three digits that matter, and a unit where it has one of its own."""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e3, "ms")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {name}"
        return f"{value * 1e6:.3g} µs"
    if unit == "bytes":
        return f"{value:.0f} B"
    if value >= 1000:
        digits = 3 - len(f"{value:.0f}")
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}"


def tables(results: Results, names: Sequence[str]) -> str:
    """Return the tables of all groups that something was measured of."""
    errors: list[str] = []
    parts = []
    for title, workloads in GROUPS.items():
        measured = [name for name in workloads if name in results.figures or name in results.errors]
        if measured:
            parts.append(f"### {title}\n\n{_table(results, names, measured, errors)}")
    if errors:
        parts.append("\n".join(errors))
    return "\n\n".join(parts) + "\n"


def _table(results: Results, names: Sequence[str], workloads: Sequence[str], errors: list[str]) -> str:
    heads = [f"{WORKLOADS[name].title} ({WORKLOADS[name].unit})" for name in workloads]
    rows = [["", *heads]]
    for name in names:
        cells = [_cell(results, workload, name, errors) for workload in workloads]
        if any(cell != "–" for cell in cells):
            rows.append([find(name).title, *cells])
    return markdown(rows)


def _cell(results: Results, workload: str, name: str, errors: list[str]) -> str:
    if error := results.errors.get(workload, {}).get(name):
        errors.append(f"[{len(errors) + 1}] {find(name).title}, {workload}: {error}\n")
        return f"failed [{len(errors)}]"
    figures = list(results.of(workload, name).values())
    if not figures:
        return "–"
    text = number(median(figures), WORKLOADS[workload].unit)
    if len(figures) > 1:
        text += f" ±{spread(figures):.0%}"
    reference = results.reference(workload)
    factor = results.ratio(workload, name, reference) if reference else None
    if factor is None:
        return text
    return f"{text}, **1**" if name == reference else f"{text}, {factor:.2f}"


def verdicts(results: Results) -> list[Verdict]:
    """Return what became of the targets whose contender took part."""
    return [
        judge(target, results)
        for target in TARGETS
        if target.workload in results.figures or target.workload in results.errors
    ]


def table_of_targets(found: Iterable[Verdict]) -> str:
    """Return the targets and what became of them."""
    rows = [["work", "contender", "against", "target", "reached", "holds"]]
    for verdict in found:
        target = verdict.target
        workload = WORKLOADS[target.workload]
        if verdict.reference is None:
            against = "–"
            wanted = f"at most {number(verdict.wanted, workload.unit)}"
            reached = "–" if verdict.reached is None else number(verdict.reached, workload.unit)
        else:
            against = find(verdict.reference).title
            wanted = f"{verdict.wanted:.2f}"
            reached = "–" if verdict.reached is None else f"{verdict.reached:.2f}"
        holds = {True: "yes", False: "**no**", None: "not measured"}[verdict.holds]
        rows.append([workload.title, find(target.contender).title, against, wanted, reached, holds])
    return markdown(rows) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown that can also be read as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def plot(results: Results, names: Sequence[str], path: Path) -> None:
    """Draw bars of the ratios, for each workload.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    workloads = [name for name in WORKLOADS if results.reference(name)]
    columns = min(4, max(1, len(workloads)))
    lines = max(1, -(-len(workloads) // columns))
    figure, axes = pyplot.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False)
    for place in axes.flat[len(workloads) :]:
        place.set_axis_off()
    for place, workload in zip(axes.flat, workloads, strict=False):
        reference = results.reference(workload)
        bars = [
            (find(name).title, results.ratio(workload, name, reference or ""), name.startswith("ours"))
            for name in reversed(names)
            if results.of(workload, name)
        ]
        place.barh(
            [title for title, _, _ in bars],
            [factor or 0.0 for _, factor, _ in bars],
            color=["tab:blue" if is_ours else "tab:gray" for _, _, is_ours in bars],
        )
        place.axvline(1.0, color="black", linewidth=0.8)
        place.set_title(WORKLOADS[workload].title, fontsize=9)
        place.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
