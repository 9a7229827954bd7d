"""The command: ``python -m examples.virtual_power_plant``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiomas_ng
from examples.virtual_power_plant.containers import TRANSPORTS
from examples.virtual_power_plant.portfolio import Scenario
from examples.virtual_power_plant.timeline import DAYS_PER_YEAR, HOURS_PER_DAY, get_start

#: What the demonstration needs beyond the library itself; the extra "demo" has all of it.
PACKAGES: Final = ("pvlib", "rich", "matplotlib")

DEFAULT_DAYS: Final = 7

#: Exit codes; 128 + 2 is what a shell says of a program that SIGINT has ended.
FAILED: Final = 1
INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments *argv*, and return its exit code."""
    args = _make_parser().parse_args(argv)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"{', '.join(missing)} must be installed for this: pip install -e '.[demo]'")
    try:
        _run(args)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except aiomas_ng.RemoteException as error:
        return _fail(_explain(error))
    except (aiomas_ng.AiomasError, OSError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str, code: int = FAILED) -> int:
    print(f"virtual_power_plant: {message}", file=sys.stderr)
    return code


def _explain(error: aiomas_ng.RemoteException) -> str:
    """Return in one line what an agent failed with.

    A failure that has come through several agents has the tracebacks of all; the last line is the cause.
    """
    where = f"{error.method}() of agent {error.agent}" if error.agent else "a call"
    *_, cause = [error.type_name, *error.remote_traceback.strip().splitlines()]
    return f"{where} failed: {cause}"


def _run(args: argparse.Namespace) -> None:
    # Imported only now, for what they need may be missing.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from examples.virtual_power_plant.messages import Hour
    from examples.virtual_power_plant.report import print_result
    from examples.virtual_power_plant.simulation import simulate

    days = DAYS_PER_YEAR if args.year else args.days or DEFAULT_DAYS
    scenario = Scenario(days, args.plants, args.batteries, args.grid_limit)
    console = Console(highlight=False)
    where = "one process" if args.transport == "local" else "three processes"
    console.print(
        f"{scenario.plants} plants and {scenario.batteries} batteries in {where} ({args.transport}), "
        f"{scenario.days} {'day' if scenario.days == 1 else 'days'} from {get_start(scenario.days):D MMMM}."
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=args.no_progress,
    )
    with bar:
        task = bar.add_task("starting", total=scenario.days * HOURS_PER_DAY)

        def show(hour: Hour) -> None:
            date = get_start(scenario.days).shift(seconds=hour.time)
            bar.update(task, advance=1, description=f"{date:D MMM HH}:00")

        result = asyncio.run(simulate(scenario, args.transport, show))
    print_result(console, scenario, result)
    if args.plot is not None:
        # It takes a second to import matplotlib, which only those wait for who want a picture.
        from examples.virtual_power_plant.picture import draw

        draw(args.plot, scenario, result.figures)
        console.print(f"Picture: {args.plot}")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.virtual_power_plant",
        description="Photovoltaic plants and batteries share one connection to the grid, which is too small.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--days",
        type=_days,
        metavar="N",
        help=f"how many to simulate, from 10 June (default: {DEFAULT_DAYS})",
    )
    length.add_argument("--year", action="store_true", help="simulate a whole year")
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="tcp",
        help="local: all in one process; ipc: three processes, Unix sockets; tcp: three processes (default)",
    )
    parser.add_argument("--plants", type=_positive, default=12, metavar="N", help="how many (default: 12)")
    parser.add_argument("--batteries", type=_count, default=4, metavar="N", help="how many (default: 4)")
    parser.add_argument(
        "--grid-limit",
        type=_power,
        metavar="KW",
        help="most to feed in (default: half of the plants' peak power)",
    )
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="draw a picture: .png, .pdf or .svg")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser


# What arguments must be like. It is checked before anything is started, since a year takes a while.


def _count(text: str) -> int:
    return _parse_int(text, 0, 1000)


def _positive(text: str) -> int:
    return _parse_int(text, 1, 1000)


def _days(text: str) -> int:
    return _parse_int(text, 1, DAYS_PER_YEAR)


def _parse_int(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
    return int(text)


def _power(text: str) -> float:
    try:
        power = float(text)
    except ValueError:
        power = math.nan
    if not 0 < power < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of kW greater than 0, not {text!r}")
    return power


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"must end with .png, .pdf or .svg, not {path.name!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    return path


if __name__ == "__main__":
    sys.exit(main())
