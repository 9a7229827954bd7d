"""Who may reach a resource: rules are asked on the way of a request, and before a resource is listed."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from aiomas_ng._core.access import Rule, rule_of_resource
from aiomas_ng._core.codes import SAFE_METHODS
from aiomas_ng._core.identity import Identity
from aiomas_ng._io.principal import CURRENT_PRINCIPAL, Principal
from aiomas_ng.error import Forbidden, RenderableError, Unauthorized
from aiomas_ng.linkformat import quote_path
from aiomas_ng.message import Message

__all__ = [
    "admit",
    "enter",
    "get_principal",
    "get_rules",
    "is_admitted",
    "is_listed",
    "listing_for",
    "make_denial",
]

#: What stands for a requester that is not known to be anybody.
STRANGER = Principal(Identity())

#: For whom links are listed just now; ``None`` for us.
_LISTED_FOR: contextvars.ContextVar[Principal | None] = contextvars.ContextVar("_LISTED_FOR", default=None)


def get_principal(request: Message) -> Principal | None:
    """Return who has sent *request*; ``None`` if it comes from no connection but from our own code.

    What was forwarded, which its hop limit tells, is not the forwarder's own: it has none of its rights.
    """
    remote = request.remote
    if remote is None:
        return None
    channel = getattr(remote, "channel", None)
    principal: Principal = getattr(channel, "_principal", STRANGER)
    return principal if request.opt.hop_limit is None else principal.forwarded


def enter(request: Message, site: Any) -> tuple[Rule, ...]:
    """Begin to work on *request* in this task, and ask the rule of the outermost *site*.

    Returns:
        The rules that were asked.

    Raises:
        Forbidden, Unauthorized: It says no.
    """
    principal = get_principal(request)
    CURRENT_PRINCIPAL.set(principal)
    if principal is not None:
        principal.bind(rule_of_resource(site))
    return admit(request, site, ())


def get_rules(request: Message, resource: Any) -> tuple[Rule, ...]:
    """Return the rules of *resource* for such a request."""
    declared = [rule_of_resource(resource)]
    if request.code not in SAFE_METHODS:
        declared.append(rule_of_resource(resource, "write_access"))
    return tuple(rule for rule in declared if rule is not None)


def is_admitted(request: Message, resource: Any) -> bool:
    """Return whether the rules of *resource* let in who has sent *request*."""
    rules = get_rules(request, resource)
    principal = get_principal(request) if rules else None
    return principal is None or all(map(principal.allows, rules))


def admit(request: Message, resource: Any, path: tuple[str, ...]) -> tuple[Rule, ...]:
    """Ask the rules of *resource*.

    Args:
        request: What the resource is to answer.
        resource: The resource, or a site.
        path: What has led *request* to where its own path begins.

    Returns:
        The rules.

    Raises:
        Forbidden, Unauthorized: One of them says no.
    """
    rules = get_rules(request, resource)
    if rules:
        principal = get_principal(request)
        if principal is not None and not all(map(principal.allows, rules)):
            raise make_denial(principal, request, path)
    return rules


def make_denial(principal: Principal, request: Message, path: tuple[str, ...] = ()) -> RenderableError:
    """Return what is answered to who may not do what *request* asks for, and log it."""
    principal.note_denial(f"{request.code.name} /{quote_path(path + request.opt.uri_path)}")
    return (Forbidden if principal.is_known else Unauthorized)("not allowed")


@contextlib.contextmanager
def listing_for(request: Message) -> Iterator[None]:
    """List, meanwhile, only what who has sent *request* may read."""
    token = _LISTED_FOR.set(get_principal(request))
    try:
        yield
    finally:
        _LISTED_FOR.reset(token)


def is_listed(rule: Rule | None) -> bool:
    """Return whether what *rule* guards may be listed now."""
    principal = _LISTED_FOR.get()
    return rule is None or principal is None or principal.allows(rule)
