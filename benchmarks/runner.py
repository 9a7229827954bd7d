"""Run the contenders: a pair of processes for each, which work in turn and sleep in between.

For each workload all of them are started anew, as what a process has done before may make it faster: once the
C library has seen large blocks it keeps them. Then there are rounds; in each of them each contender works for
a while, one after the other, and the next round begins with another one. A contender that fails or hangs is
left out of that workload from then on, and disturbs nobody else. Whatever happens, no process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from benchmarks.contenders import Entry
from benchmarks.figures import Results
from benchmarks.workloads import Sample, Workload

__all__ = ["ContenderError", "Pair", "Process", "rotated", "run"]

#: What runs in the processes.
MODULE: Final = "benchmarks.process"
#: Where this package is.
ROOT: Final = Path(__file__).parents[1]
#: How long a process may take to start, and to end by itself, in seconds.
START_TIME: Final = 60.0
STOP_TIME: Final = 3.0
#: How long an error may be that is shown.
ERROR_SIZE: Final = 300


class ContenderError(Exception):
    """A contender does not work; the text says why."""


class Process:
    """One of the processes, which talks in lines of JSON.

    Args:
        what: What it is called in errors.
        *args: Module and arguments.
    """

    def __init__(self, what: str, *args: str) -> None:
        self._what = what
        self._args = args
        self._process: asyncio.subprocess.Process | None = None
        self._errors: IO[bytes] | None = None

    async def start(self, *commands: Any) -> Any:
        """Start it, send it these commands, and return its first answer.

        Raises:
            ContenderError: It ends, or does not answer.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in stop()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", *self._args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            start_new_session=True,  # so that it can be ended with all that it has started itself
        )
        for command in commands:
            self.tell(command)
        return await self.answer(START_TIME)

    def tell(self, command: Any) -> None:
        """Send it a command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def answer(self, timeout: float) -> Any:
        """Return its next answer.

        Raises:
            ContenderError: It ends, or does not answer in time.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ContenderError(f"the {self._what} did not answer within {timeout:g} s") from None
        if not line:
            raise ContenderError(f"the {self._what} has ended: {self._last_error()}")
        try:
            return json.loads(line)
        except ValueError:
            raise ContenderError(f"the {self._what} does not answer in JSON: {line[:ERROR_SIZE]!r}") from None

    def _last_error(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:ERROR_SIZE] if lines else "it does not say why"

    async def stop(self, is_patient: bool) -> None:
        """End it, if need be by force, with all processes of its session."""
        if self._process is not None:
            process, self._process = self._process, None
            try:
                assert process.stdin is not None
                process.stdin.close()
                if is_patient:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STOP_TIME):
                            await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if self._errors is not None:
            self._errors.close()


class Pair:
    """Server and client of one contender."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        #: Names of the workloads that it can do, once it is started.
        self.workloads: list[str] = []
        self._server: Process | None = None
        self._client: Process | None = None

    async def measure(self, workload: Workload, seconds: float, timeout: float) -> Sample:
        """Let it do a workload for some seconds.

        Raises:
            ContenderError: It does not work. If it does not even answer it is ended.
        """
        assert self._client is not None
        try:
            self._client.tell({"workload": workload.name, "seconds": seconds})
            answer = await self._client.answer(timeout + 2 * seconds)
        except BaseException:
            await self.stop(is_patient=False)
            raise
        if "error" in answer:
            raise ContenderError(answer["error"][:ERROR_SIZE])
        return Sample(**answer)

    async def start(self) -> None:
        """Start both processes.

        Raises:
            ContenderError: It does not work.
        """
        self._server = Process("server", MODULE, "server", self.entry.name)
        address = await self._server.start()
        self._client = Process("client", MODULE, "client", self.entry.name)
        self.workloads = await self._client.start(address)

    async def stop(self, is_patient: bool = True) -> None:
        """End both processes."""
        client, self._client = self._client, None
        server, self._server = self._server, None
        try:
            if client is not None:
                await client.stop(is_patient)
        finally:
            if server is not None:
                await server.stop(is_patient)


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names, beginning with another one for each *number*."""
    start = number % len(names) if names else 0
    return [*names[start:], *names[:start]]


async def run(
    entries: Mapping[str, Entry],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    seconds: float,
    timeout: float,
    progress: Callable[[str], None],
) -> Results:
    """Let all contenders do all workloads, each for some seconds in each round.

    Args:
        entries: The contenders by name.
        workloads: The workloads.
        rounds: The number of rounds.
        seconds: How long each works in each round.
        timeout: How much longer it may take before it counts as hanging, in seconds.
        progress: Called with a line of text now and then.
    """
    results = Results()
    workloads_of: dict[str, list[str]] = {}
    for workload in workloads:
        able = (name for name in entries if workload.name in workloads_of.get(name, [workload.name]))
        pairs = {name: Pair(entries[name]) for name in able}
        try:
            progress(f"{workload.name}: starting")
            await start(pairs, workload.name, results)
            workloads_of |= {name: pair.workloads for name, pair in pairs.items() if pair.workloads}
            for number in range(rounds):
                for name in rotated(list(pairs), number):
                    if workload.name in pairs[name].workloads:
                        progress(f"{workload.name}: round {number + 1} of {rounds}, {name}")
                        try:
                            sample = await pairs[name].measure(workload, seconds, timeout)
                        except ContenderError as error:
                            results.add_error(workload.name, name, str(error))
                            pairs[name].workloads = []
                        else:
                            results.add(workload.name, name, number, workload.figure(sample))
        finally:
            await asyncio.shield(asyncio.gather(*(pair.stop() for pair in pairs.values())))
    return results


async def start(pairs: Mapping[str, Pair], workload: str, results: Results) -> None:
    """Start all pairs, some at the same time."""
    places = asyncio.Semaphore(os.cpu_count() or 1)

    async def start_one(name: str, pair: Pair) -> None:
        async with places:
            try:
                await pair.start()
            except ContenderError as error:
                results.add_error(workload, name, str(error))

    async with asyncio.TaskGroup() as tasks:
        for name, pair in pairs.items():
            tasks.create_task(start_one(name, pair))
