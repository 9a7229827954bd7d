"""Functions that programs need around agents: event loops, TLS, dates, and objects by their name."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import ssl
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, overload

import arrow

from aiomas_ng._core.deadline import get_context_without
from aiomas_ng.exceptions import CredentialsError

__all__ = [
    "WILDCARD_HOSTS",
    "SSLCerts",
    "arrow_serializer",
    "as_ssl_context",
    "create_task",
    "get_loop",
    "make_ssl_client_context",
    "make_ssl_contexts",
    "make_ssl_server_context",
    "obj_from_str",
    "run",
]

T = TypeVar("T")

#: Hosts that stand for all interfaces.
WILDCARD_HOSTS: Final = (None, "", "::", "0.0.0.0")

StrPath = str | PathLike[str]

#: What a list of revoked certificates begins with.
CRL_HEADER: Final = "-----BEGIN X509 CRL-----"

_background_tasks: set[asyncio.Task[Any]] = set()
"""The tasks of :func:`create_task` until they are done: a loop itself keeps only weak references."""


def arrow_serializer() -> tuple[type[arrow.Arrow], Callable[[Any], str], Callable[[str], arrow.Arrow]]:
    """Return the arguments of :meth:`aiomas_ng.codecs.Codec.add_serializer` for dates of :mod:`arrow`.

    A date arrives with the same offset from UTC and the same microseconds.  It does not keep the name of its
    time zone.
    """
    return arrow.Arrow, str, _arrow_from_str


def _arrow_from_str(text: str) -> arrow.Arrow:
    # arrow.get() would take numbers and even other types, and does not read offsets that have seconds.
    if not isinstance(text, str):
        raise TypeError(f"a date is an ISO 8601 text, not a {type(text).__name__}")
    return arrow.Arrow.fromdatetime(datetime.fromisoformat(text))


def get_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop to use: the running one, else the one that is set for this thread.

    Where none is set, or a closed one, a new one is made and set.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        loop = _get_current_loop()
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop


def _get_current_loop() -> asyncio.AbstractEventLoop | None:
    with warnings.catch_warnings():
        # Some versions before 3.14 warn that they make a loop where none is set, which is what we want.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return asyncio.get_event_loop()
        except RuntimeError:
            return None


@overload
def run(until: None = None, loop: asyncio.AbstractEventLoop | None = None) -> None: ...
@overload
def run(until: Awaitable[T], loop: asyncio.AbstractEventLoop | None = None) -> T: ...
def run(until: Awaitable[T] | None = None, loop: asyncio.AbstractEventLoop | None = None) -> T | None:
    """Run the event loop for ever, or until something is done.

    Args:
        until: A coroutine, task or future to wait for.  ``None`` runs until ``loop.stop()`` is called.
        loop: The loop to run, by default that of :func:`get_loop`.

    Returns:
        The result of *until*.

    Raises:
        RuntimeError: The loop is running already.
        Exception: What *until* raises.
    """
    loop = loop or get_loop()
    if until is None:
        loop.run_forever()
        return None
    return loop.run_until_complete(until)


def create_task(
    coro: Coroutine[Any, Any, T],
    ignore_cancel: bool = True,
    loop: asyncio.AbstractEventLoop | None = None,
) -> asyncio.Task[T]:
    """Run a coroutine in the background, without waiting for it.

    The task is kept until it is done.  An exception in it goes to the exception handler of the loop as soon
    as the task is done, which by default logs it with its traceback.  No deadline around this call bounds it
    (:mod:`aiomas_ng.deadlines`).

    Args:
        coro: The coroutine.
        ignore_cancel: If false, a cancellation is reported like an exception.
        loop: The loop to run it in, by default that of :func:`get_loop`; it need not run yet.

    Returns:
        The task; it may be awaited and cancelled.
    """
    task = (loop or get_loop()).create_task(coro, context=get_context_without())
    _background_tasks.add(task)

    def report(task: asyncio.Task[T]) -> None:
        _background_tasks.discard(task)
        if task.cancelled():
            exc: BaseException | None = None if ignore_cancel else asyncio.CancelledError()
        else:
            exc = task.exception()
        if exc is not None:
            context = {"message": "Exception in background task", "exception": exc, "task": task}
            task.get_loop().call_exception_handler(context)

    task.add_done_callback(report)
    return task


def obj_from_str(obj_path: str) -> Any:
    """Return the object that ``'module:object'`` names, for example ``'package.module:Class.method'``.

    The module is imported, which runs its code: never call this with what a peer has sent.

    Raises:
        ValueError: *obj_path* is malformed.
        ImportError: The module cannot be imported.
        AttributeError: The object does not exist.
    """
    module, colon, names = obj_path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *names.split("."))) or not colon:
        raise ValueError(f"Malformed object name {obj_path!r}: expected 'module:object'")
    obj: Any = importlib.import_module(module)
    for name in names.split("."):
        obj = getattr(obj, name)
    return obj


class SSLCerts(NamedTuple):
    """Names of the PEM files for mutual TLS: the CA's certificate, our certificate, our private key."""

    cafile: str
    certfile: str
    keyfile: str


def make_ssl_contexts(credentials: Any) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Return the contexts of the server and of the clients.

    Args:
        credentials: :class:`SSLCerts`, a pair of contexts, or ``None`` for no TLS.

    Raises:
        TypeError: *credentials* is something else.
    """
    if isinstance(credentials, tuple) and not isinstance(credentials, SSLCerts) and len(credentials) == 2:
        server, client = credentials
        if isinstance(server, ssl.SSLContext) and isinstance(client, ssl.SSLContext):
            return server, client
    if credentials is not None and not isinstance(credentials, SSLCerts):
        raise TypeError(
            f"ssl must be SSLCerts, or two ssl.SSLContext (for the server, for the clients), "
            f"but is {credentials!r}"
        )
    return as_ssl_context(credentials, is_server=True), as_ssl_context(credentials, is_server=False)


def as_ssl_context(credentials: Any, *, is_server: bool) -> ssl.SSLContext | None:
    """Return *credentials* as a context for one side.

    Args:
        credentials: :class:`SSLCerts`, a context, or ``None`` for no TLS.
        is_server: For which side.

    Raises:
        TypeError: *credentials* is something else.
    """
    if credentials is None or isinstance(credentials, ssl.SSLContext):
        return credentials
    if isinstance(credentials, SSLCerts):
        return (make_ssl_server_context if is_server else make_ssl_client_context)(*credentials)
    raise TypeError(f"credentials must be SSLCerts or an ssl.SSLContext but are {credentials!r}")


def make_ssl_server_context(cafile: StrPath, certfile: StrPath, keyfile: StrPath) -> ssl.SSLContext:
    """Return a TLS context for servers that know their clients.

    TLS 1.3 or later, without compression.  A client must show a certificate as well, at each connection:
    sessions cannot be resumed.

    Args:
        cafile: Certificates of the authority that has signed those of the clients (PEM).  If there is a list
            of revoked certificates in it, those are refused.
        certfile: Certificate of the server, with the chain up to the authority (PEM).
        keyfile: Private key of the server (PEM).

    Raises:
        OSError: A file cannot be read; says which, and what it is for.
        CredentialsError: A file holds something else, or key and certificate do not match (an
            ``ssl.SSLError``).
    """
    return _make_ssl_context(ssl.PROTOCOL_TLS_SERVER, cafile, certfile, keyfile)


def make_ssl_client_context(cafile: StrPath, certfile: StrPath, keyfile: StrPath) -> ssl.SSLContext:
    """Return a TLS context for clients, the counterpart of :func:`make_ssl_server_context`.

    The server's certificate must be issued to the host name that the client connects to.

    Args:
        cafile: Certificates of the authority that has signed that of the server (PEM).  If there is a list of
            revoked certificates in it, those are refused.
        certfile: Certificate of the client, with the chain up to the authority (PEM).
        keyfile: Private key of the client (PEM).

    Raises:
        OSError: A file cannot be read; says which, and what it is for.
        CredentialsError: A file holds something else, or key and certificate do not match (an
            ``ssl.SSLError``).
    """
    context = _make_ssl_context(ssl.PROTOCOL_TLS_CLIENT, cafile, certfile, keyfile)
    context.check_hostname = True
    return context


def _make_ssl_context(protocol: int, cafile: StrPath, certfile: StrPath, keyfile: StrPath) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # A session that is resumed is not checked anew: who has a ticket could come in with a certificate
        # that has expired, or was revoked, meanwhile.
        context.num_tickets = 0
    authorities = _read_pem(cafile, "CERTIFICATE", "the certificate of the authority (cafile)")
    _read_pem(certfile, "CERTIFICATE", "our certificate (certfile)")
    _read_pem(keyfile, "PRIVATE KEY", "our private key (keyfile)")
    try:
        context.load_verify_locations(cadata=authorities)
    except ssl.SSLError as error:
        raise CredentialsError(cafile, f"the certificate of the authority is damaged: {error}") from error
    if CRL_HEADER in authorities:
        # OpenSSL takes the list from the file only.
        context.load_verify_locations(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    def refuse_password() -> str:
        raise CredentialsError(keyfile, "the private key is encrypted; expected one that needs no password")

    try:
        context.load_cert_chain(certfile=certfile, keyfile=keyfile, password=refuse_password)
    except CredentialsError:
        raise
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"the private key does not belong to the certificate in {certfile}"
            raise CredentialsError(keyfile, text) from error
        raise CredentialsError(certfile, f"certificate or key ({keyfile}) are damaged: {error}") from error
    return context


def _read_pem(path: StrPath, kind: str, what: str) -> str:
    """Return the text of a PEM file.

    Args:
        path: The file.
        kind: What the labels in it have to end with.
        what: What it is for.

    Raises:
        OSError: It cannot be read.
        CredentialsError: It holds something else.
    """
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise type(error)(error.errno, f"cannot read {what}: {error.strerror}", os.fspath(path)) from error
    labels = re.findall("-----BEGIN ([A-Z0-9 ]+)-----", text)
    if not any(label.endswith(kind) for label in labels):
        found = f"but it has {', '.join(sorted(set(labels)))}" if labels else "but it is no PEM file"
        raise CredentialsError(path, f"expected {what}, a PEM file with '-----BEGIN {kind}-----', {found}")
    return text
