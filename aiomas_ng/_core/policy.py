"""A policy: who may reach a container, and which roles each peer has, which can be changed at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from aiomas_ng._core.access import Rule
from aiomas_ng._core.identity import Identity

__all__ = ["Policy"]


class Policy(Rule):
    """Who may reach a container at all, and which roles each peer has; it can be changed at any time.

    A change holds from the next call on, also on connections that are open. It may be made by any thread.

    Args:
        allow: Who may reach anything; ``None`` leaves it to the rules further inside.
        roles: The roles of each peer: a mapping from a name, a fingerprint or (as an integer) a user id to
            roles, or a function that is called with the :class:`Identity` for every decision. Roles in
            certificates do not count then. ``None``: roles are what certificates have as organizational
            units.

    Raises:
        TypeError: *allow* is no rule, or *roles* is something else.

    As the ``access`` of a container (or of a root service, or of a context's site) it gives peers their roles
    for all rules inside. Further inside it only does so for its own *allow*.
    """

    def __init__(
        self,
        allow: Rule | None = None,
        *,
        roles: Mapping[str | int, Iterable[str]] | Callable[[Identity], Iterable[str]] | None = None,
    ) -> None:
        if allow is not None and not isinstance(allow, Rule):
            raise TypeError(f"allow must be a rule, as in roles('operator'), or None, but is {allow!r}")
        self._allow = allow
        self._find_roles: Callable[[Identity], Iterable[str]] | None = None
        self._given: dict[str | int, frozenset[str]] = {}
        self._taken: dict[str | int, frozenset[str]] = {}  # of the roles in certificates
        self._blocked: frozenset[str | int] = frozenset()
        self._has_own_roles = roles is not None
        #: Whether roles are found by a function, whose answers are not remembered.
        self.has_function = callable(roles) and not isinstance(roles, Mapping)
        #: Counts the changes.
        self.version = 0
        if isinstance(roles, Mapping):
            for key, values in roles.items():
                self._given[_check_key(key)] = _check_roles(_as_several(values))
        elif callable(roles):
            self._find_roles = roles
        elif roles is not None:
            raise TypeError(f"roles must be a mapping or a function but is {roles!r}")

    def __repr__(self) -> str:
        return f"Policy({self._allow!r})"

    @property
    def allow(self) -> Rule | None:
        """Who may reach anything; ``None`` leaves it to the rules further inside. It can be set."""
        return self._allow

    @allow.setter
    def allow(self, rule: Rule | None) -> None:
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"allow must be a rule or None but is {rule!r}")
        self._allow = rule
        self.version += 1

    @property
    def roles(self) -> Mapping[str | int, frozenset[str]]:
        """The roles that were given, by name, fingerprint or user id."""
        return MappingProxyType(self._given)

    @property
    def blocked(self) -> frozenset[str | int]:
        """Names, fingerprints and user ids of those who may reach nothing."""
        return self._blocked

    def grant(self, key: str | int, *roles: str) -> None:
        """Give further roles to the peer that has this name, fingerprint or user id."""
        given = _check_roles(roles)
        key = _check_key(key)
        self._given = {**self._given, key: self._given.get(key, frozenset()) | given}
        self._taken = {**self._taken, key: self._taken.get(key, frozenset()) - given}
        self.version += 1

    def revoke(self, key: str | int, *roles: str) -> None:
        """Take roles from the peer that has this name, fingerprint or user id, also those that its
        certificate has, or a function gives it. Who does not have them is not changed.

        Raises:
            ValueError: No role was named; to shut somebody out, use :meth:`block`.
        """
        taken = _check_roles(roles)
        key = _check_key(key)
        if not taken:
            raise ValueError("name the roles to be revoked; to shut somebody out, use block()")
        self._given = {**self._given, key: self._given.get(key, frozenset()) - taken}
        self._taken = {**self._taken, key: self._taken.get(key, frozenset()) | taken}
        self.version += 1

    def block(self, key: str | int) -> None:
        """Shut out the peer that has this name, fingerprint or user id: it may reach nothing any more."""
        self._blocked = self._blocked | {_check_key(key)}
        self.version += 1

    def unblock(self, key: str | int) -> None:
        """Take back :meth:`block`."""
        self._blocked = self._blocked - {_check_key(key)}
        self.version += 1

    def allows(self, identity: Identity) -> bool:
        """Return whether *identity* may reach anything."""
        if self.is_blocked(identity):
            return False
        return self._allow is None or self._allow.allows(self.identify(identity))

    def is_blocked(self, identity: Identity) -> bool:
        """Return whether *identity*, or who forwards for it, is shut out."""
        if identity.forwarder is not None and self.is_blocked(identity.forwarder):
            return True
        return not self._blocked.isdisjoint(identity.get_keys())

    def identify(self, identity: Identity) -> Identity:
        """Return *identity* with the roles that it has here; without any rights if it is shut out."""
        if identity.is_self:
            return identity
        if self.is_blocked(identity):
            return identity.without_rights()
        if identity.forwarder is not None:
            forwarder = self.identify(identity.forwarder)
            return Identity(transport=identity.transport, forwarder=forwarder)
        keys = list(identity.get_keys())
        if self._find_roles is not None:
            own = _check_roles(_as_several(self._find_roles(identity)))
        else:
            own = frozenset() if self._has_own_roles else identity.roles
        given, taken = self._given, self._taken
        for key in keys:
            own |= given.get(key, frozenset())
        for key in keys:
            own -= taken.get(key, frozenset())
        return identity.with_roles(own)


def _check_key(key: Any) -> str | int:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise TypeError(f"a peer is known by a name, a fingerprint or a user id, not by {key!r}")
    return key


def _as_several(values: Any) -> tuple[Any, ...]:
    if isinstance(values, str):
        raise TypeError(f"roles must be a collection of strings: [{values!r}]")
    return tuple(values)


def _check_roles(values: tuple[Any, ...]) -> frozenset[str]:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"a role must be a string but is {value!r}")
    return frozenset(values)
