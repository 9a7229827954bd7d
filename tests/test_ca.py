"""The private authority: files, what certificates say, renewal and revocation, and its command line."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from aiomas_ng import Agent, Container, subproc
from aiomas_ng.ca import DEFAULT_HOSTS, Authority, Certificate, _files
from aiomas_ng.ca.__main__ import main
from aiomas_ng.exceptions import CredentialsError, TLSError
from aiomas_ng.util import SSLCerts, make_ssl_client_context, make_ssl_server_context
from tests.conftest import Transport


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A new one."""
    return Authority.create(tmp_path / "authority")


def mode(path: str | Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


def load(certs: SSLCerts) -> x509.Certificate:
    """Return a certificate."""
    return x509.load_pem_x509_certificate(Path(certs.certfile).read_bytes())


@contextlib.asynccontextmanager
async def container(certs: SSLCerts | None, addr: Any = ("127.0.0.1", 0)) -> AsyncIterator[Container]:
    """Give a container, and end it."""
    made = await Container.create(addr, ssl=certs, as_coro=True)
    try:
        yield made
    finally:
        await made.shutdown(as_coro=True)


# -- Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_permissions(tmp_path: Path, mask: int) -> None:
    """Private keys are for their owner alone, and the directory too, whatever the umask; no draft is left."""
    old = os.umask(mask)
    try:
        authority = Authority.create(tmp_path / "deep" / "down")
        certs = authority.issue("alice")
        authority.renew("alice")
        authority.revoke("alice")
    finally:
        os.umask(old)
    assert mode(authority.directory) == 0o700
    assert mode(authority.directory / "ca.key") == mode(certs.keyfile) == 0o600
    assert mode(certs.cafile) == mode(certs.certfile) == 0o644
    assert sorted(os.listdir(authority.directory)) == ["alice.key", "alice.pem", "ca.key", "ca.pem"]


def test_nothing_is_overwritten(authority: Authority) -> None:
    """What is there stays, byte for byte, unless that is asked for."""
    authority.issue("alice")
    before = {path: path.read_bytes() for path in authority.directory.iterdir()}
    with pytest.raises(FileExistsError, match="--force"):
        Authority.create(authority.directory)
    with pytest.raises(FileExistsError, match=r"alice.*renew it, or"):
        authority.issue("alice")
    assert {path: path.read_bytes() for path in authority.directory.iterdir()} == before
    authority.issue("alice", force=True)
    Authority.create(authority.directory, force=True)
    after = {path: path.read_bytes() for path in authority.directory.iterdir()}
    assert all(after[path] != before[path] for path in before)
    with pytest.raises(CredentialsError, match="this authority has not issued it"):
        Authority.open(authority.directory).describe("alice")


def test_one_file_of_two_is_there(authority: Authority) -> None:
    """A private key without its certificate is not overwritten either."""
    certs = authority.issue("alice")
    os.unlink(certs.certfile)
    with pytest.raises(FileExistsError):
        authority.issue("alice")
    with pytest.raises(FileNotFoundError, match=r"alice\.pem does not exist"):
        authority.get("alice")


def test_a_race_is_lost_without_harm(tmp_path: Path) -> None:
    """Where another process makes the file meanwhile, its content stays, and no draft is left."""
    path = tmp_path / "file"
    _files.write(path, b"first", 0o600, force=False)
    with pytest.raises(FileExistsError, match="--force"):
        _files.write(path, b"second", 0o600, force=False)
    assert path.read_bytes() == b"first"
    _files.write(path, b"third", 0o600, force=True)
    assert path.read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, for example, leaves the old file and no draft."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        _files.write(path, b"new", 0o600, force=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_open(authority: Authority, tmp_path: Path) -> None:
    """An authority is the same one when it is opened again; where there is none, or something else, the error
    names the file."""
    certs = authority.issue("alice", roles=["operator"])
    again = Authority.open(str(authority.directory))
    assert again.describe("alice") == authority.describe("alice")
    assert again.get("alice") == certs
    assert repr(again) == f"<Authority in {authority.directory}>"
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        Authority.open(tmp_path)
    for name, content, text in [
        ("ca.key", b"no key", "expected a private key"),
        ("ca.key", Path(certs.keyfile).read_bytes(), "does not belong to the certificate"),
        ("ca.pem", b"no certificate", "expected a certificate"),
    ]:
        (authority.directory / name).write_bytes(content)
        with pytest.raises(CredentialsError, match=text) as caught:
            Authority.open(authority.directory)
        assert str(caught.value.path).endswith(name)


# -- What certificates say -------------------------------------------------------------------------


def test_certificate_of_the_authority(authority: Authority) -> None:
    """It may sign certificates and lists of revoked ones, and no other authorities."""
    certificate = x509.load_pem_x509_certificate(Path(authority.cafile).read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
    assert timedelta(days=3649) < certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=3651)


def test_certificate(authority: Authority) -> None:
    """It has name, roles and hosts where they belong, serves both sides, and its key is one of P-256."""
    hosts = ["lab.example", "*.grid.example", "192.0.2.7", "2001:db8::1"]
    certs = authority.issue("alice", hosts=hosts, roles=["operator", "Gäste & Co"], days=30)
    certificate = load(certs)
    assert certificate.subject.rfc4514_string() == "CN=alice,OU=Gäste & Co,OU=operator"
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    key = load_pem_private_key(Path(certs.keyfile).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    said = authority.describe("alice")
    assert said == Certificate(
        name="alice",
        hosts=tuple(hosts),
        roles=("operator", "Gäste & Co"),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial_number=certificate.serial_number,
        is_revoked=False,
    )
    assert not said.is_expired
    assert timedelta(days=29) < said.not_after - datetime.now(UTC) < timedelta(days=31)
    assert said.not_before < datetime.now(UTC) - timedelta(minutes=59)  # clocks may be late
    assert authority.names == ["alice"]


def test_defaults(authority: Authority) -> None:
    """Without hosts a certificate is for the own machine; no two have the same number or key."""
    certs = [authority.issue(name) for name in ("alice", "bob")]
    assert authority.describe("alice").hosts == DEFAULT_HOSTS
    assert authority.describe("alice").roles == ()
    assert len({load(each).serial_number for each in certs}) == 2
    assert len({Path(each.keyfile).read_bytes() for each in certs}) == 2


def test_not_longer_than_the_authority(tmp_path: Path) -> None:
    """No certificate is valid for longer than that of the authority."""
    authority = Authority.create(tmp_path, days=10)
    authority.issue("alice", days=1000)
    certificate = x509.load_pem_x509_certificate(Path(authority.cafile).read_bytes())
    assert authority.describe("alice").not_after == certificate.not_valid_after_utc


@pytest.mark.parametrize(
    "name", ["", "ca", "CA", "a/b", "../x", ".x", "x.", "a b", "a\n", "ä", "x" * 65, None, 1]
)
def test_bad_names(authority: Authority, name: Any) -> None:
    """A name that could lead elsewhere, or is none, is refused, and nothing is written."""
    before = sorted(authority.directory.parent.rglob("*"))
    for method in (authority.issue, authority.renew, authority.revoke, authority.get, authority.describe):
        with pytest.raises(ValueError, match="name must"):
            method(name)
    assert sorted(authority.directory.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("kwds", "error", "text"),
    [
        ({"hosts": ["lab.example:5555"]}, ValueError, "without a port"),
        ({"hosts": ["a b"]}, ValueError, "host must be"),
        ({"hosts": [""]}, ValueError, "host must be"),
        ({"hosts": [7]}, ValueError, "host must be"),
        ({"hosts": "lab.example"}, TypeError, "hosts must be a list"),
        ({"roles": "operator"}, TypeError, "roles must be a list"),
        ({"roles": [""]}, ValueError, "a role must have"),
        ({"roles": ["a\0b"]}, ValueError, "a role must have"),
        ({"roles": ["r" * 65]}, ValueError, "a role must have"),
        ({"days": 0}, ValueError, "days must be"),
        ({"days": -1}, ValueError, "days must be"),
        ({"days": 1e9}, ValueError, "days must be"),
        ({"days": True}, ValueError, "days must be"),
    ],
)
def test_bad_contents(authority: Authority, kwds: dict[str, Any], error: type[Exception], text: str) -> None:
    """What cannot stand in a certificate is refused, and nothing is written."""
    with pytest.raises(error, match=text):
        authority.issue("alice", **kwds)
    assert not authority.names
    assert not (authority.directory / "alice.key").exists()


# -- Renewal and revocation ------------------------------------------------------------------------


def test_renew(authority: Authority) -> None:
    """The new certificate says the same, for as long as the last one or as told; only its file changes."""
    certs = authority.issue("alice", hosts=["lab.example"], roles=["operator"], days=20)
    key, old = Path(certs.keyfile).read_bytes(), authority.describe("alice")
    assert authority.renew("alice") == certs
    new = authority.describe("alice")
    assert (new.name, new.hosts, new.roles) == (old.name, old.hosts, old.roles)
    assert new.serial_number != old.serial_number
    assert abs(new.not_after - old.not_after) < timedelta(minutes=1)
    authority.renew("alice", days=40)
    assert timedelta(days=39) < authority.describe("alice").not_after - datetime.now(UTC)
    assert Path(certs.keyfile).read_bytes() == key
    make_ssl_server_context(*certs)
    with pytest.raises(FileNotFoundError, match=r"bob\.pem"):
        authority.renew("bob")


def test_renew_what_has_expired(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate whose time is over is renewed like any other."""
    from aiomas_ng.ca import _authority, _parts

    past = datetime.now(UTC).replace(microsecond=0) - timedelta(days=100)
    with monkeypatch.context() as patch:
        patch.setattr(_parts, "now", lambda: past)
        patch.setattr(_authority, "now", lambda: past)
        authority.issue("alice", days=30)
    assert authority.describe("alice").is_expired
    authority.renew("alice")
    said = authority.describe("alice")
    assert not said.is_expired
    assert timedelta(days=29) < said.not_after - datetime.now(UTC) < timedelta(days=31)


async def test_revoke(authority: Authority) -> None:
    """Who was revoked is refused, in both directions, by those who have the new file; the others are not, and
    a new certificate is fine."""
    alice, bob, carol = (authority.issue(name) for name in ("alice", "bob", "carol"))
    authority.revoke("carol")
    authority.revoke("bob")
    authority.revoke("bob")
    assert [authority.describe(name).is_revoked for name in ("alice", "bob", "carol")] == [False, True, True]
    async with container(alice) as first, container(bob) as second, container(carol) as third:
        agent = Agent(first)
        for revoked in (second, third):
            with pytest.raises(TLSError, match="our certificate was revoked"):
                await revoked.connect(agent.addr)
            with pytest.raises(TLSError, match="certificate of the server was revoked"):
                await first.connect(Agent(revoked).addr)
        with pytest.raises(ValueError, match="was revoked"):
            authority.renew("bob")
        authority.issue("bob", force=True)
        assert not authority.describe("bob").is_revoked
        assert authority.describe("carol").is_revoked
        async with container(bob) as fresh:
            assert str(await fresh.connect(agent.addr))
            assert str(await first.connect(Agent(fresh).addr))
    with pytest.raises(FileNotFoundError):
        authority.revoke("nobody")


# -- Use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_containers(authority: Authority, tmp_path: Path, kind: str) -> None:
    """Containers with certificates of one authority talk, over TCP and Unix sockets; its files satisfy the
    strictest checks that there are."""
    address = Transport(kind, tmp_path).address
    alice, bob = authority.issue("alice", roles=["operator"]), authority.issue("bob")
    async with container(alice, address()) as one, container(bob, address()) as two:
        proxy = await one.connect(Agent(two).addr)
        assert "AgentProxy" in str(proxy)
        (client,) = two._connections
        subject = dict(pair for part in client.channel.get_extra_info("peercert")["subject"] for pair in part)
        assert subject == {"commonName": "alice", "organizationalUnitName": "operator"}
    server_side, client_side = make_ssl_server_context(*alice), make_ssl_client_context(*bob)
    for context in (server_side, client_side):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    first = await Container.create(address(), ssl=(server_side, client_side), as_coro=True)
    async with container(bob, address()) as second:
        assert str(await second.connect(Agent(first).addr))
        assert str(await first.connect(Agent(second).addr))
    await first.shutdown(as_coro=True)


async def test_container_processes(authority: Authority) -> None:
    """Container processes are started with certificates, reached by who has one, and not by who has none."""
    alice, worker = authority.issue("alice"), authority.issue("worker")
    async with (
        await subproc.start_processes(
            [("127.0.0.1", 0)], ssl=worker, allow=["tests.subproc_agents:*"]
        ) as started,
        container(alice) as friend,
        container(None) as stranger,
    ):
        manager = await friend.connect(started.managers[0])
        battery, _ = await manager.spawn("tests.subproc_agents:Battery", capacity=3)
        assert "Battery" in str(battery)
        with pytest.raises(TLSError, match="speaks TLS"):
            await stranger.connect(started.managers[0])


# -- Files that are wrong, seen from a container ---------------------------------------------------


def test_wrong_files(authority: Authority, tmp_path: Path) -> None:
    """The error names the file that is missing or holds something else, and what was expected in it."""
    alice, bob = authority.issue("alice"), authority.issue("bob")
    text, empty, cut = (tmp_path / name for name in ("text.pem", "empty.pem", "cut.pem"))
    text.write_text("hello")
    empty.write_text("")
    cut.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", alice.keyfile, "-out", locked, "-passout", "pass:x"],
        check=True,
        timeout=30,
    )
    missing = str(tmp_path / "missing.pem")
    cases: list[tuple[SSLCerts, type[Exception], str]] = [
        (alice._replace(cafile=missing), FileNotFoundError, "certificate of the authority.*missing.pem"),
        (alice._replace(certfile=missing), FileNotFoundError, "our certificate.*missing.pem"),
        (alice._replace(keyfile=missing), FileNotFoundError, "our private key.*missing.pem"),
        (alice._replace(cafile=str(tmp_path)), IsADirectoryError, "certificate of the authority"),
        (
            alice._replace(cafile=str(text)),
            CredentialsError,
            "text.pem: expected the certificate of the auth",
        ),
        (alice._replace(certfile=str(empty)), CredentialsError, "empty.pem: expected our cert.*it is no PEM"),
        (alice._replace(certfile=alice.keyfile), CredentialsError, "alice.key: .*but it has PRIVATE KEY"),
        (alice._replace(keyfile=alice.certfile), CredentialsError, "alice.pem: .*but it has CERTIFICATE"),
        (alice._replace(keyfile=bob.keyfile), CredentialsError, "bob.key: .*does not belong to.*alice.pem"),
        (
            alice._replace(cafile=str(cut)),
            CredentialsError,
            "cut.pem: the certificate of the authority is dam",
        ),
        (alice._replace(certfile=str(cut)), CredentialsError, "cut.pem: certificate or key"),
        (alice._replace(keyfile=str(locked)), CredentialsError, "locked.key: the private key is encrypted"),
    ]
    for certs, error, expected in cases:
        for make in (make_ssl_server_context, make_ssl_client_context):
            with pytest.raises(error, match=expected) as caught:
                make(*certs)
            assert isinstance(caught.value, OSError)
            assert isinstance(caught.value, ssl.SSLError) is (error is CredentialsError)
        with pytest.raises(error, match=expected):
            Container.create(("127.0.0.1", 0), ssl=certs)


# -- The command line ------------------------------------------------------------------------------


def test_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command makes an authority and certificates; it prints what to give to a container."""
    directory = tmp_path / "certs"
    args = ["init", str(directory), "alice", "bob", "--host", "lab.example", "--host", "::1"]
    assert main([*args, "--role", "operator", "--days", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ca.key is its secret" in lines[0]
    authority = Authority.open(directory)
    assert [eval(line, {"SSLCerts": SSLCerts}) for line in lines[1:]] == [
        authority.get("alice"),
        authority.get("bob"),
    ]
    said = authority.describe("bob")
    assert (said.hosts, said.roles) == (("lab.example", "::1"), ("operator",))
    assert said.not_after - datetime.now(UTC) < timedelta(days=6)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command does what the method of its name does."""
    directory = str(tmp_path)
    assert main(["init", directory]) == 0
    assert main(["issue", directory, "alice"]) == 0
    assert main(["issue", directory, "bob", "--role", "a", "--role", "b", "--days", "3"]) == 0
    number = Authority.open(directory).describe("alice").serial_number
    assert main(["renew", directory, "alice", "bob", "--days", "9"]) == 0
    assert Authority.open(directory).describe("alice").serial_number != number
    assert main(["revoke", directory, "bob"]) == 0
    capsys.readouterr()
    assert main(["list", directory]) == 0
    alice, bob = capsys.readouterr().out.splitlines()
    assert alice.startswith("alice: valid, until 20")
    assert alice.endswith("hosts localhost, 127.0.0.1, ::1, roles none")
    assert bob.startswith("bob: revoked, until 20")
    assert bob.endswith("roles a, b")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["init", "DIR"], "has an authority already; --force"),
        (["issue", "DIR", "alice"], "has a certificate for 'alice' already"),
        (["issue", "DIR", "../x"], "a name must"),
        (["issue", "DIR", "x", "--days", "0"], "days must be"),
        (["renew", "DIR", "nobody"], "nobody.pem"),
        (["revoke", "DIR", "nobody"], "nobody.pem"),
        (["list", "DIR/missing"], "ca.pem"),
    ],
)
def test_commands_that_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], text: str
) -> None:
    """What cannot be done is one line on standard error and the exit status 1."""
    assert main(["init", str(tmp_path), "alice"]) == 0
    capsys.readouterr()
    assert main([arg.replace("DIR", str(tmp_path)) for arg in args]) == 1
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("aiomas_ng.ca: ")
    assert text in output.err
    assert output.err.count("\n") == 1


def test_program(tmp_path: Path) -> None:
    """It runs as a module, without a warning; a command that is none is the exit status 2 of argparse."""
    command = [sys.executable, "-W", "error", "-m", "aiomas_ng.ca"]
    subprocess.run([*command, "init", tmp_path / "x", "alice"], check=True, timeout=60, capture_output=True)
    assert Authority.open(tmp_path / "x").names == ["alice"]
    result = subprocess.run([*command, "nonsense"], check=False, timeout=60, capture_output=True)
    assert result.returncode == 2


DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["howto/tls.md", "reference/ca.md"])
def test_commands_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Every command on the page does what it says, one after the other."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    commands = re.findall(r"python -m aiomas_ng\.ca (.+?)(?:`|$)", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        args = re.sub(r"\[NAME \.\.\.\]|NAME \.\.\.|NAME", "name", command).replace("DIR", "made").split()
        if args[0] == "issue" and page.startswith("reference"):
            args[-1] = "other"
        assert main(args) == 0, command


def test_missing_package() -> None:
    """Without cryptography the error names the extra; the package itself does not need it."""
    program = "import sys; sys.modules['cryptography'] = None; import aiomas_ng; import aiomas_ng.ca"
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True
    )
    last = result.stderr.splitlines()[-1]
    assert (
        last
        == "ModuleNotFoundError: aiomas_ng.ca needs the package cryptography: pip install 'aiomas_ng[ca]'"
    )
