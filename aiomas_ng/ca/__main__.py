"""The command line of :mod:`aiomas_ng.ca`: ``python -m aiomas_ng.ca --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aiomas_ng.ca import Authority
from aiomas_ng.util import SSLCerts

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 1 if it failed (2 from :mod:`argparse` for a malformed
    one).

    Args:
        args: The arguments, by default those of the program.
    """
    options = _make_parser().parse_args(args)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"aiomas_ng.ca: {error}", file=sys.stderr)
        return 1
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aiomas_ng.ca",
        description="A private certificate authority for TLS between containers.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = _add(commands, _init, "init", "make an authority, and certificates for NAMEs")
    init.add_argument("names", nargs="*", metavar="NAME", help="whom to issue a certificate at once")
    _add_contents(init)

    issue = _add(commands, _issue, "issue", "issue a certificate with a new key")
    issue.add_argument("name", metavar="NAME", help="whom it is for")
    _add_contents(issue)

    renew = _add(commands, _renew, "renew", "issue a new certificate for the same key, hosts and roles")
    renew.add_argument("names", nargs="+", metavar="NAME", help="whose")
    renew.add_argument("--days", type=int, help="for how long; by default as long as the last one")

    revoke = _add(commands, _revoke, "revoke", "take a certificate back; then hand out ca.pem anew")
    revoke.add_argument("names", nargs="+", metavar="NAME", help="whose")

    _add(commands, _list, "list", "show what was issued")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], run: object, name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("directory", metavar="DIR", help="where the authority has its files")
    command.set_defaults(run=run)
    return command


def _add_contents(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        help="a DNS name or address that the owner can be connected to by; may be given several times; by "
        "default localhost, 127.0.0.1 and ::1",
    )
    command.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="ROLE",
        help="a role of the owner; may be given several times",
    )
    command.add_argument("--days", type=int, help="for how long certificates are valid (365)")
    command.add_argument("--force", action="store_true", help="replace files that are there")


def _contents(options: argparse.Namespace) -> dict[str, object]:
    contents = {"hosts": options.host, "roles": options.role, "force": options.force}
    return contents if options.days is None else {**contents, "days": options.days}


def _open(options: argparse.Namespace) -> Authority:
    return Authority.open(options.directory)


def _show(certs: SSLCerts) -> None:
    print(f"SSLCerts({certs.cafile!r}, {certs.certfile!r}, {certs.keyfile!r})")


def _init(options: argparse.Namespace) -> None:
    authority = Authority.create(options.directory, force=options.force)
    print(f"made an authority in {authority.directory}; ca.key is its secret and stays here")
    for name in options.names:
        _show(authority.issue(name, **_contents(options)))  # type: ignore[arg-type]  # of argparse


def _issue(options: argparse.Namespace) -> None:
    _show(_open(options).issue(options.name, **_contents(options)))  # type: ignore[arg-type]  # of argparse


def _renew(options: argparse.Namespace) -> None:
    authority = _open(options)
    for name in options.names:
        _show(authority.renew(name, days=options.days))


def _revoke(options: argparse.Namespace) -> None:
    authority = _open(options)
    for name in options.names:
        authority.revoke(name)
    print(f"revoked; give {authority.cafile} to all machines, and start their containers anew")


def _list(options: argparse.Namespace) -> None:
    authority = _open(options)
    for name in authority.names:
        said = authority.describe(name)
        state = "revoked" if said.is_revoked else "expired" if said.is_expired else "valid"
        print(
            f"{name}: {state}, until {said.not_after:%Y-%m-%d}, hosts {', '.join(said.hosts)}, "
            f"roles {', '.join(said.roles) or 'none'}"
        )


if __name__ == "__main__":
    sys.exit(main())
