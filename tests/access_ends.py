"""Containers that know each other by certificates or by what the system says, for the tests of access."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from aiomas_ng import Container, SSLCerts, get_queue

#: How a peer may be connected: over TCP or Unix sockets, with or without TLS, and over LocalQueue.
KINDS = ("tcp", "unix", "local", "tls", "tls-unix")


class World:
    """An authority, and containers with certificates of it.

    Args:
        directory: Where the files are; its path is short.
        kind: How the containers are connected, one of :data:`KINDS`.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self._authority: trustme.CA | None = None

    @property
    def has_tls(self) -> bool:
        """Whether peers have certificates."""
        return self.kind.startswith("tls")

    def issue(self, name: str, unit: str | None = None) -> SSLCerts:
        """Return a certificate for the common name *name*, with an organizational *unit*."""
        if self._authority is None:
            self._authority = trustme.CA()
            self._authority.cert_pem.write_to_path(self.directory / "ca.pem")
        cert = self._authority.issue_cert(
            "127.0.0.1", "localhost", common_name=name, organization_unit_name=unit
        )
        stem = uuid.uuid4().hex[:8]
        chain, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        cert.private_key_pem.write_to_path(key)
        for blob in cert.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        return SSLCerts(str(self.directory / "ca.pem"), str(chain), str(key))

    def address(self) -> Any:
        """Return an address that nobody has used."""
        if self.kind == "local":
            return get_queue(uuid.uuid4().hex)
        if self.kind.endswith("unix"):
            return str(self.directory / uuid.uuid4().hex[:8])
        return ("127.0.0.1", 0)

    @contextlib.asynccontextmanager
    async def container(
        self, name: str = "home", unit: str | None = None, **kwargs: Any
    ) -> AsyncIterator[Container]:
        """A container whose certificate, where there are any, has *name* and *unit*."""
        certs = self.issue(name, unit) if self.has_tls else None
        container = await Container.create(self.address(), ssl=certs, as_coro=True, **kwargs)
        try:
            yield container
        finally:
            await container.shutdown(as_coro=True)


class DenialLog(logging.Handler):
    """The lines of the logger ``aiomas_ng.access``."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def denials() -> Iterator[list[str]]:
    """The lines that are logged about denials meanwhile."""
    handler = DenialLog()
    logger = logging.getLogger("aiomas_ng.access")
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


def refused(code: Any) -> Any:
    """Expect a request to be answered by *code*."""
    from aiomas_ng.error import ResponseWrappingError

    return pytest.raises(ResponseWrappingError, match=code.dotted)
