"""A child process that ends with its parent, and the line between the two.

The line is a pair of sockets. The parent starts the child with :meth:`Child.start` and hands it its settings
with :meth:`Child.set_up`; the child reads them with :meth:`Line.read`, and answers with :meth:`Line.report`
once, what it is ready with or why it failed. Then the line is silent. It ends when the parent hangs up or
dies, in whatever way, which :meth:`Line.watch_parent` in the child waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from aiomas_ng.exceptions import ProcessError

__all__ = ["Child", "Line"]

#: Seconds that a child whose parent died is given to shut down before it ends at once.
ORPHAN_TIMEOUT: Final = 3.0
#: How often a child looks whether its parent is alive, in seconds. The line tells it earlier, unless a fork
#: of the parent holds the other end open.
PARENT_CHECK_INTERVAL: Final = 1.0

HEADER = struct.Struct("!Q")
"""Before the settings: their size in bytes."""


class Child:
    """A child process, as its parent knows it.

    Args:
        process: The process.
        line: Our end of the line to it.
    """

    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self.process = process
        self._line = line

    @classmethod
    async def start(cls, main: str) -> Child:
        """Start the process, which then waits for its settings.

        Its standard input is empty; standard output and standard error are those of this process.

        Args:
            main: ``'module:function'``, called in the child with a :class:`Line`.

        Raises:
            OSError: The system cannot start one.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # -W, -X dev and the like, as multiprocessing does
                    "-P",  # what lies in the working directory must not shadow the standard library
                    "-c",
                    _child_code(main, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
                ours.setblocking(False)
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    async def set_up(self, settings: bytes) -> dict[str, Any]:
        """Hand the child its settings and return what it reports when it is ready.

        Raises:
            ProcessError: It failed or died.
        """
        loop = asyncio.get_running_loop()
        report = b""
        with contextlib.suppress(ConnectionError):  # it has died: the report is missing or incomplete
            await loop.sock_sendall(self._line, HEADER.pack(len(settings)) + settings)
            while part := await loop.sock_recv(self._line, 65536):
                report += part
        try:
            outcome: dict[str, Any] = json.loads(report)
        except ValueError:
            code = await self.process.wait()
            raise ProcessError(
                f"container process {self.process.pid} ended with code {code} before it was ready"
            ) from None
        if "error" in outcome:
            error = ProcessError(f"container process {self.process.pid} failed: {outcome['error']}")
            error.add_note(f"In the container process:\n{outcome['traceback']}")
            raise error
        return outcome

    def hang_up(self) -> None:
        """Let the child shut down; safe to be called twice."""
        with contextlib.suppress(OSError):
            # Closing alone would not reach the child as long as a fork of this process has the socket, too.
            self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()


def _child_code(main: str, line_number: int) -> str:
    module, _, function = main.partition(":")
    # The path goes along here, because the package itself may have to be found by it. PYTHONPATH would not
    # do: it reaches the processes that the child starts, which may run another Python.
    path = [os.fspath(entry) for entry in sys.path]
    return (
        f"import sys; sys.path[:] = {path!a}; from aiomas_ng._io.child import Line; "
        f"from {module} import {function}; {function}(Line({line_number}, {os.getpid()}))"
    )


class Line:
    """The child's end of the line.

    Args:
        number: The file number of the socket.
        parent: The parent's process id.
    """

    def __init__(self, number: int, parent: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.set_inheritable(False)  # processes that the child starts must not hold it open
        self._parent = parent
        self.was_used = False  #: Whether something was reported.

    def read(self) -> bytes | None:
        """Return the settings, ``None`` if the parent hung up before they were complete."""
        with self._socket.makefile("rb") as stream:
            head = stream.read(HEADER.size)
            if len(head) < HEADER.size:
                return None
            (size,) = HEADER.unpack(head)
            settings = stream.read(size)
        return settings if len(settings) == size else None

    def report(self, **outcome: str) -> None:
        """Report that this process is ready, or the ``error`` and ``traceback`` with which it failed."""
        self.was_used = True
        with contextlib.suppress(OSError):  # the parent has died, which is watch_parent's business
            self._socket.sendall(json.dumps(outcome).encode())
            self._socket.shutdown(socket.SHUT_WR)

    def watch_parent(
        self, loop: asyncio.AbstractEventLoop, end: Callable[[], object], hurry: Callable[[], object]
    ) -> None:
        """Wait, in a thread, until the parent hangs up or dies; let the loop call *end*. If the parent is
        dead, let it call *hurry*; and if the loop is too busy, end this process at once."""
        self._socket.settimeout(PARENT_CHECK_INTERVAL)
        while os.getppid() == self._parent:
            try:
                self._socket.recv(1)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends already
            loop.call_soon_threadsafe(end)
        while os.getppid() == self._parent:  # as long as it lives, it decides how long this may take
            time.sleep(PARENT_CHECK_INTERVAL)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(hurry)
        time.sleep(ORPHAN_TIMEOUT)
        os._exit(1)
