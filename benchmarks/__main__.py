"""Compare aiomas_ng with other libraries: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import report
from benchmarks.contenders import CONTENDERS, find
from benchmarks.figures import Results
from benchmarks.runner import run
from benchmarks.workloads import WORKLOADS

T = TypeVar("T")


def main() -> int:
    """Run the benchmarks that the command line asks for; return the exit status."""
    options = parse()
    if options.list:
        print_list()
        return 0
    entries = {}
    for entry in select(find, options.contenders, CONTENDERS, "contender"):
        if missing := entry.missing():
            print(f"{entry.name} is left out: {missing}\n")
        else:
            entries[entry.name] = entry
    workloads = select(WORKLOADS.__getitem__, options.workloads, WORKLOADS, "workload")
    if not entries:
        print("there is no contender", file=sys.stderr)
        return 2
    settings = {"rounds": options.rounds, "seconds": options.time}
    about = report.describe_run(entries.values(), **settings)
    with nullcontext() if options.quick else alone(), asyncio.Runner() as runner:
        results = runner.run(
            until_signal(run(entries, workloads, timeout=options.timeout, progress=say, **settings))
        )
    say("")
    text = describe(about, results, list(entries))
    print(text)
    if options.output is not None:
        write(options.output, about, results, text, list(entries))
    return 0


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list workloads and contenders")
    parser.add_argument("--workloads", metavar="A,B", help="only these")
    parser.add_argument("--contenders", metavar="A,B", help="only these; with a dot: a module of yours")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often everything is measured [%(default)s]"
    )
    parser.add_argument("--time", type=float, default=0.3, help="seconds for each measurement [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="a try: 1 round of 0.05 s")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        help="seconds after which a contender counts as hanging [%(default)s]",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write results.json, table.md and plot.svg there"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.time = 1, 0.05
    if options.rounds < 1 or options.time <= 0:
        parser.error("there must be at least one round, and some time")
    return options


def print_list() -> None:
    """Print workloads and contenders."""
    print("Workloads:")
    for workload in WORKLOADS.values():
        print(f"  {workload.name:16}  {workload.title}")
    print("Contenders:")
    for entry in CONTENDERS.values():
        print(f"  {entry.name:16}  {entry.missing() or entry.versions()}")


def select(find: Callable[[str], T], names: str | None, default: Iterable[str], what: str) -> list[T]:
    """Return what has the names, which are separated by commas.

    Raises:
        SystemExit: One does not exist.
    """
    try:
        return [find(name) for name in (names.split(",") if names else default)]
    except KeyError as error:
        raise SystemExit(f"there is no {what} {error}; there are: {', '.join(default)}") from None


async def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and let it clean up if the process is asked to end; Ctrl-C is taken care of by asyncio."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await work


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other run of ours is going on, which would disturb this one."""
    path = Path(tempfile.gettempdir()) / f"aiomas_ng-benchmarks-{os.getuid()}.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run to end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Show how far we are, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def describe(about: dict[str, Any], results: Results, names: Sequence[str]) -> str:
    """Return all that is to be read, in Markdown."""
    lines = [report.heading(about), "", report.tables(results, names)]
    if found := report.verdicts(results):
        lines += ["### Targets", "", report.table_of_targets(found)]
    return "\n".join(lines)


def write(directory: Path, about: dict[str, Any], results: Results, text: str, names: Sequence[str]) -> None:
    """Write everything into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"run": about, **results.as_json()}, indent=1)
    (directory / "results.json").write_text(content + "\n", encoding="utf-8")
    (directory / "table.md").write_text(text, encoding="utf-8")
    try:
        report.plot(results, names, directory / "plot.svg")
    except ModuleNotFoundError as error:
        print(f"there is no plot: {error}", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("ended before it was done")
