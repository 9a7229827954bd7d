"""What runs in a process of its own: the server or the client of one contender.

``python -m benchmarks.process server NAME`` writes its address, as a line of JSON, and serves until its
standard input ends. ``python -m benchmarks.process client NAME`` reads that line, connects, and writes the
list of the workloads that it can do. Then it reads lines, ``{"workload": "sequential", "seconds": 1.0}``, and
answers each with ``{"count": 1234, "amount": 1.01}``, see :class:`benchmarks.workloads.Sample`, or
``{"error": "…"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any, TextIO

from benchmarks.contender import Operations
from benchmarks.contenders import Entry, find
from benchmarks.workloads import WORKLOADS, Workload, measure, measure_blocking

#: Has the variant of the contender that runs here, before its module is imported.
VARIANT_VARIABLE = "BENCHMARK_VARIANT"


def main() -> None:
    """Be a server or a client, until standard input ends."""
    role, name = sys.argv[1:]
    entry = find(name)
    os.environ[VARIANT_VARIABLE] = entry.variant
    answers = take_stdout()
    contender: Any = entry.load()
    context = contender.server() if role == "server" else contender.client(read_address())
    if isinstance(context, contextlib.AbstractAsyncContextManager):
        with asyncio.Runner(loop_factory=loop_factory(entry)) as runner:
            runner.run(_serve_async(context, answers))
    else:
        _serve_blocking(context, answers)


def read_address() -> Any:
    """Read the first line of standard input, and nothing beyond it."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or b"\n"
    return json.loads(line)


def take_stdout() -> TextIO:
    """Return a file for standard output, which from now on is standard error for everybody else."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return answers


def loop_factory(entry: Entry) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop of a contender."""
    if entry.loop == "uvloop":
        return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    if entry.loop == "busy":
        return importlib.import_module("aiomas_ng.tuning").BusyPollingEventLoop  # type: ignore[no-any-return]
    return asyncio.new_event_loop


@contextlib.asynccontextmanager
async def stdin_lines() -> AsyncIterator[asyncio.StreamReader]:
    """Give a reader for standard input."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    with contextlib.closing(transport):
        yield reader


async def _serve_async(context: contextlib.AbstractAsyncContextManager[Any], answers: TextIO) -> None:
    async with stdin_lines() as lines, context as offered:
        write(answers, _introduce(offered, is_blocking=False))
        while line := await lines.readline():
            workload, seconds = _read(line)
            try:
                sample = await measure(workload, offered, seconds)
            except Exception as error:
                write_error(answers, error)
            else:
                write(answers, dataclasses.asdict(sample))


def _serve_blocking(context: contextlib.AbstractContextManager[Any], answers: TextIO) -> None:
    with context as offered:
        write(answers, _introduce(offered, is_blocking=True))
        for line in sys.stdin:
            workload, seconds = _read(line)
            try:
                sample = measure_blocking(workload, offered, seconds)
            except Exception as error:
                write_error(answers, error)
            else:
                write(answers, dataclasses.asdict(sample))


def _introduce(offered: Any, is_blocking: bool) -> Any:
    """Return the workloads that a client can do; a server offers its address."""
    if isinstance(offered, Operations):
        return [name for name, workload in WORKLOADS.items() if workload.can_be_done(offered, is_blocking)]
    return offered


def _read(line: str | bytes) -> tuple[Workload, float]:
    command = json.loads(line)
    return WORKLOADS[command["workload"]], command["seconds"]


def write(answers: TextIO, answer: Any) -> None:
    """Answer."""
    answers.write(json.dumps(answer) + "\n")


def write_error(answers: TextIO, error: Exception) -> None:
    """Answer with an error."""
    traceback.print_exception(error)
    write(answers, {"error": "".join(traceback.format_exception_only(error)).strip()})


if __name__ == "__main__":
    main()
