"""Who calls, and who may: identities of peers, and rules that narrow what is exposed.

::

    from aiomas_ng.access import Policy, get_caller, names, roles

    class Battery(Agent):
        access = roles("viewer", "operator")              # for all that it has

        @expose
        def soc(self): …

        @expose(allow=roles("operator"))                  # and this, besides
        def set_power(self, power):
            log(f"{get_caller()} sets {power}")

    policy = Policy(certified())                          # and that comes first
    container = await Container.create(addr, ssl=certs, access=policy, as_coro=True)
    policy.revoke("scada.example", "operator")            # holds from the next call on

What is asked, from the outside to the inside; all of them have to say yes:

====================  ==================================================================================
``Container.create``  *access*: everything that the container has, also what it tells about itself
a service             its attribute ``access``, or ``Service(access=…)``: functions and services below
an agent              its attribute ``access``: its methods and its resources
a method              ``@expose(allow=…)``
a site, a resource    its attribute ``access``; what changes something, also its ``write_access``
a state               ``@state(access=…, write_access=…)``
a mount               ``container.mount(…, access=…)``
====================  ==================================================================================

Where nothing is declared, everybody who can connect reaches what is exposed. What lives in the same container
is never asked. A peer that is denied something gets a
:exc:`~aiomas_ng.exceptions.RemoteAccessError`, or 4.03 (4.01 if it has not shown who it is), and nothing of
what it has asked for is run. The logger ``aiomas_ng.access`` gets a line.
"""

from __future__ import annotations

from aiomas_ng._core.access import (
    EVERYBODY,
    NOBODY,
    Rule,
    certified,
    fingerprints,
    gids,
    local,
    names,
    roles,
    same_host,
    same_user,
    uids,
    via,
)
from aiomas_ng._core.identity import Identity
from aiomas_ng._core.policy import Policy
from aiomas_ng._io.principal import CURRENT_PRINCIPAL, allow_caller
from aiomas_ng.exceptions import AccessDeniedError

__all__ = [
    "EVERYBODY",
    "NOBODY",
    "Identity",
    "Policy",
    "Rule",
    "certified",
    "check",
    "fingerprints",
    "get_caller",
    "gids",
    "is_allowed",
    "local",
    "names",
    "note_denial",
    "roles",
    "same_host",
    "same_user",
    "uids",
    "via",
]


def get_caller() -> Identity | None:
    """Return who has sent the call or request that the running code works on; ``None`` where there is none.

    It can be asked in a handler, plain or ``async``, of a remote procedure call or of a resource, and in
    tasks and callbacks that a handler has started; in threads, only if :func:`asyncio.to_thread` has started
    them. Its roles are those that the peer has now, so in what runs for long ask again.
    """
    principal = CURRENT_PRINCIPAL.get()
    return None if principal is None else principal.identity


def is_allowed(rule: Rule) -> bool:
    """Return whether who has sent the call or request that the running code works on is let in by *rule*.

    What lives in the same container always is, and so is code that works on no call.
    """
    return allow_caller(rule)


def check(rule: Rule | None, what: str = "this") -> None:
    """Go on only if :func:`is_allowed`.

    Args:
        rule: Who may; ``None`` for everybody.
        what: What this is about, for the error and the log; the peer sees it.

    Raises:
        AccessDeniedError: It is not. Let it out of the handler: the peer then gets a
            :exc:`~aiomas_ng.exceptions.RemoteAccessError`, or 4.03.
    """
    if rule is not None and not allow_caller(rule):
        note_denial(what)
        raise AccessDeniedError(what)


def note_denial(what: str) -> None:
    """Note in the log that who has sent the call or request that the running code works on was denied *what*.

    It is for handlers that refuse something in a way of their own. Where there is no such call, and for a
    peer that has been denied many things lately, it does nothing.
    """
    principal = CURRENT_PRINCIPAL.get()
    if principal is not None:
        principal.note_denial(what)
