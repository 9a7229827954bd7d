"""Event loops, background tasks, dates, names of objects, and TLS."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import arrow
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import aiomas_ng
from aiomas_ng import util
from aiomas_ng._core.type_registry import type_name
from aiomas_ng.codecs import JSON, MsgPack
from aiomas_ng.exceptions import DeserializationError
from aiomas_ng.util import (
    arrow_serializer,
    create_task,
    get_loop,
    make_ssl_client_context,
    make_ssl_server_context,
    obj_from_str,
    run,
)

# -- Dates ------------------------------------------------------------------------------------------

offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))


@given(naive=st.datetimes(), offset=offsets.map(lambda delta: timedelta(seconds=int(delta.total_seconds()))))
def test_dates_arrive_exactly(naive: datetime, offset: timedelta) -> None:
    """A date arrives with its offset and its microseconds."""
    date = arrow.Arrow.fromdatetime(naive.replace(tzinfo=timezone(offset)))
    for codec in (JSON(), MsgPack()):
        codec.add_serializer(*arrow_serializer())
        result = codec.decode(codec.encode(date))
        assert type(result) is arrow.Arrow
        assert result.naive == date.naive
        assert result.utcoffset() == date.utcoffset()


def test_dates_of_other_clients() -> None:
    """Dates that other clients write in ISO 8601 are understood; without an offset they are in UTC."""
    _, serialize, deserialize = arrow_serializer()
    noon = arrow.Arrow(2024, 2, 29, 12)
    assert deserialize("2024-02-29T12:00:00Z") == noon
    assert deserialize("2024-02-29 13:00+01:00") == noon
    assert deserialize("2024-02-29T12:00:00").utcoffset() == timedelta(0)
    assert serialize(noon) == "2024-02-29T12:00:00+00:00"
    assert deserialize(serialize(arrow.get(datetime.now(UTC)).to("Europe/Berlin"))).tzinfo is not None


@pytest.mark.parametrize("data", [0, 1e9, None, [2024, 1], "", "yesterday", "2024-13-01", "9" * 1000])
def test_malformed_dates(data: Any) -> None:
    """What is no date is refused."""
    codec = JSON()
    codec.add_serializer(*arrow_serializer())
    marker = {"__type__": [type_name(arrow.Arrow), data]}
    with pytest.raises(DeserializationError):
        codec.decode(json.dumps(marker).encode())


# -- Event loops ------------------------------------------------------------------------------------


def test_get_loop_without_a_loop() -> None:
    """Without a loop a new one is made and set, and it is the same one from then on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = get_loop()
        assert get_loop() is loop
    assert not loop.is_running()


def test_get_loop_after_it_was_closed() -> None:
    """A closed loop is replaced."""
    first = get_loop()
    first.close()
    second = get_loop()
    assert second is not first
    assert not second.is_closed()


def test_get_loop_that_was_set() -> None:
    """A loop that the program has set is used."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    assert get_loop() is loop


async def test_get_loop_that_runs() -> None:
    """Inside of a coroutine the running loop is used."""
    assert get_loop() is asyncio.get_running_loop()


def test_get_loop_in_a_thread() -> None:
    """Another thread gets a loop of its own."""
    loops = [get_loop()]

    def work() -> None:
        loops.append(get_loop())
        assert run(answer()) == 42
        loops[-1].close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert loops[0] is not loops[1]
    assert loops[1].is_closed()


def test_get_loop_after_asyncio_run() -> None:
    """A program that has used asyncio.run() before still gets a loop."""
    assert asyncio.run(answer()) == 42
    assert run(answer()) == 42


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_run_until() -> None:
    """A coroutine, a task or a future can be waited for, also in a given loop."""
    assert run(answer()) == 42
    assert run(get_loop().create_task(answer())) == 42
    future: asyncio.Future[str] = get_loop().create_future()
    get_loop().call_soon(future.set_result, "done")
    assert run(until=future) == "done"
    other = asyncio.new_event_loop()
    assert run(answer(), other) == 42
    other.close()


def test_run_raises() -> None:
    """What the coroutine raises is raised."""

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(fail())


def test_run_for_ever() -> None:
    """Without argument the loop runs until it is stopped."""
    calls: list[int] = []
    loop = get_loop()
    loop.call_soon(calls.append, 1)
    loop.call_soon(loop.stop)
    run()
    assert calls == [1]


# -- Background tasks -------------------------------------------------------------------------------


async def test_create_task() -> None:
    """A background task can be awaited."""
    assert await create_task(answer()) == 42


def test_create_task_before_the_loop_runs() -> None:
    """A task can be created before its loop runs, in a given loop as well."""
    task = create_task(answer())
    assert run(task) == 42
    other = asyncio.new_event_loop()
    task = create_task(answer(), loop=other)
    assert run(task, other) == 42
    other.close()


async def test_background_errors_are_logged(asyncio_errors: list[str]) -> None:
    """An exception in a background task is logged with its traceback as soon as it happens."""

    async def fail() -> None:
        raise ValueError("lost?")

    task = create_task(fail())
    await asyncio.wait([task])
    (message,) = asyncio_errors
    assert "Exception in background task" in message
    assert "ValueError: lost?" in message
    assert "in fail" in message
    asyncio_errors.clear()


async def test_background_errors_go_to_the_handler() -> None:
    """The exception handler of the loop gets exception and task."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))

    async def fail() -> None:
        raise ValueError

    task = create_task(fail())
    await asyncio.wait([task])
    assert [type(context["exception"]) for context in contexts] == [ValueError]
    assert contexts[0]["task"] is task


@pytest.mark.parametrize("ignore_cancel", [True, False])
async def test_cancelled_task(ignore_cancel: bool) -> None:
    """A cancellation is reported only on request."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
    task = create_task(asyncio.Event().wait(), ignore_cancel=ignore_cancel)
    task.cancel()
    await asyncio.wait([task])
    assert [type(context["exception"]) for context in contexts] == [asyncio.CancelledError] * (
        not ignore_cancel
    )


async def test_task_is_kept_until_it_is_done() -> None:
    """A background task that nobody holds is not collected as garbage before it is done."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = weakref.ref(future)

    async def wait(future: asyncio.Future[None]) -> None:
        await future

    task = weakref.ref(create_task(wait(future)))
    del future
    await asyncio.sleep(0)
    gc.collect()
    kept, future_again = task(), waiting()
    assert kept is not None
    assert future_again is not None
    future_again.set_result(None)
    await kept
    assert kept not in util._background_tasks


# -- Objects by their name --------------------------------------------------------------------------


def test_obj_from_str() -> None:
    """Modules, classes and their attributes are found."""
    assert obj_from_str("aiomas_ng:Agent") is aiomas_ng.Agent
    assert obj_from_str("aiomas_ng.util:obj_from_str") is obj_from_str
    assert obj_from_str("aiomas_ng.agent:Container.create") == aiomas_ng.Container.create


@pytest.mark.parametrize(
    "path", ["", "a", ":", "a:", ":b", "a:b:c", "a..b:c", "a:b.", "a b:c", ".a:b", "1:2"]
)
def test_obj_from_str_malformed(path: str) -> None:
    """A malformed name is refused before anything is imported."""
    with pytest.raises(ValueError, match="Malformed object name"):
        obj_from_str(path)


def test_obj_from_str_missing() -> None:
    """A module that is missing and an object that is missing are told apart."""
    with pytest.raises(ImportError):
        obj_from_str("aiomas_ng.missing:x")
    with pytest.raises(AttributeError):
        obj_from_str("aiomas_ng.util:missing")


# -- TLS --------------------------------------------------------------------------------------------


class Certificates:
    """Files of an authority, and of certificates that it has issued to *names*."""

    def __init__(self, directory: Path, *names: str) -> None:
        directory.mkdir()
        authority = trustme.CA()
        self.cafile = str(directory / "ca.pem")
        authority.cert_pem.write_to_path(self.cafile)
        self.files: dict[str, tuple[str, str, str]] = {}
        for name in names:
            certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
            issued = authority.issue_cert(name)
            issued.private_key_pem.write_to_path(str(key))
            certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            self.files[name] = (self.cafile, str(certificate), str(key))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ours", "localhost", "client.example", "elsewhere.example")


async def echo(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, hostname: str = "localhost"
) -> tuple[bytes, ssl.SSLObject]:
    """Send one line over loopback; the server must not see a connection that fails."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    lines: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        writer.write(lines[-1])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    try:
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(
            host, port, ssl=client_context, server_hostname=hostname
        )
        try:
            writer.write(b"hello\n")
            line = await reader.readline()
            # With TLS 1.3 a client knows only from the first read that the server refused its certificate.
            if not line:
                raise ConnectionResetError("refused")
            return line, writer.get_extra_info("ssl_object")
        finally:
            writer.transport.abort()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
    except (ssl.SSLError, OSError):
        assert not lines, "the server has talked to a client that it must refuse"
        raise
    finally:
        server.close()
        await server.wait_closed()


async def test_tls(certificates: Certificates) -> None:
    """Server and client know each other, and talk TLS 1.3 without compression."""
    line, connection = await echo(
        make_ssl_server_context(*certificates.files["localhost"]),
        make_ssl_client_context(*certificates.files["client.example"]),
    )
    assert line == b"hello\n"
    assert connection.version() == "TLSv1.3"
    assert connection.compression() is None


async def test_tls_paths(certificates: Certificates) -> None:
    """The files may be given as paths."""
    server = make_ssl_server_context(*map(Path, certificates.files["localhost"]))
    client = make_ssl_client_context(*map(Path, certificates.files["client.example"]))
    assert (await echo(server, client))[0] == b"hello\n"


async def test_tls_client_without_certificate(certificates: Certificates) -> None:
    """A client that shows no certificate is refused."""
    client = ssl.create_default_context(cafile=certificates.cafile)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await echo(make_ssl_server_context(*certificates.files["localhost"]), client)


async def test_tls_client_of_another_authority(certificates: Certificates, tmp_path: Path) -> None:
    """A client whose certificate another authority has signed is refused."""
    others = Certificates(tmp_path / "others", "client.example")
    _, certificate, key = others.files["client.example"]
    client = make_ssl_client_context(certificates.cafile, certificate, key)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await echo(make_ssl_server_context(*certificates.files["localhost"]), client)


async def test_tls_server_of_another_authority(certificates: Certificates, tmp_path: Path) -> None:
    """A client refuses a server whose certificate another authority has signed."""
    others = Certificates(tmp_path / "others", "localhost")
    client = make_ssl_client_context(*certificates.files["client.example"])
    with pytest.raises(ssl.SSLCertVerificationError):
        await echo(make_ssl_server_context(*others.files["localhost"]), client)


async def test_tls_host_name(certificates: Certificates) -> None:
    """A client refuses a server whose certificate was issued to another name."""
    client = make_ssl_client_context(*certificates.files["client.example"])
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname mismatch"):
        await echo(make_ssl_server_context(*certificates.files["elsewhere.example"]), client)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_tls_1_2_is_refused(certificates: Certificates, side: str) -> None:
    """A peer that can only TLS 1.2 is refused on both sides."""
    contexts: dict[str, ssl.SSLContext] = {
        "server": make_ssl_server_context(*certificates.files["localhost"]),
        "client": make_ssl_client_context(*certificates.files["client.example"]),
    }
    contexts[side].minimum_version = ssl.TLSVersion.TLSv1_2
    contexts[side].maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await echo(contexts["server"], contexts["client"])


@pytest.mark.parametrize("make", [make_ssl_server_context, make_ssl_client_context])
def test_tls_options(certificates: Certificates, make: Callable[..., ssl.SSLContext]) -> None:
    """Both contexts demand TLS 1.3 and a certificate of the peer; the client checks the host name."""
    context = make(*certificates.files["localhost"])
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.check_hostname == (make is make_ssl_client_context)
    with pytest.raises(FileNotFoundError):
        make(certificates.cafile, "missing.pem", "missing.key")


def test_no_deprecated_calls_in_a_fresh_interpreter() -> None:
    """The first loop of a program is made without any warning."""
    program = "from aiomas_ng.util import get_loop; get_loop().close()"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
