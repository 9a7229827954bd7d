"""A private certificate authority for TLS between containers: an own one for a project, a laboratory, a test.

In one command, for the whole set-up::

    python -m aiomas_ng.ca init certs alice bob --host 127.0.0.1 --host lab.example

Or from Python::

    authority = Authority.create("certs")
    certs = authority.issue("alice", hosts=["lab.example"], roles=["operator"])
    container = await Container.create(("lab.example", 5555), ssl=certs, as_coro=True)

A directory has all of it: ``ca.pem``, which everybody needs; ``ca.key``, which only the authority needs and
which never leaves its machine; and for each name a ``NAME.pem`` and a ``NAME.key``, which go to that machine.
Keys are for ECDSA on the curve P-256. Private keys are readable by their owner alone, and nothing is
overwritten unless that is asked for.

What a certificate says: the name is the subject's common name, roles are its organizational units, and hosts
are its alternative names, which clients compare with where they connect to. It serves both sides, as a
container is both.

It needs the package cryptography: ``pip install aiomas_ng[ca]``.
"""

from __future__ import annotations

try:
    from aiomas_ng.ca._authority import DEFAULT_HOSTS, Authority, Certificate
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "cryptography":
        raise
    raise ModuleNotFoundError(
        "aiomas_ng.ca needs the package cryptography: pip install 'aiomas_ng[ca]'", name=error.name
    ) from error

__all__ = ["DEFAULT_HOSTS", "Authority", "Certificate"]
