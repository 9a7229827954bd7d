"""Who may reach what: rules about identities; :mod:`aiomas_ng._core.policy` has those that change.

Rules:

- A rule is a question about an identity, answered by yes or no. It has no exceptions: there is no "not",
  because what a peer has not shown would then be in its favour.
- Rules are combined by ``&`` and ``|``. Where several are on the way to something, all of them have to say
  yes, and are asked from the outside to the inside.
- What lives in the same container is not asked.
- A rule that fails says no.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from aiomas_ng._core.identity import Identity

__all__ = [
    "EVERYBODY",
    "NOBODY",
    "AccessAttribute",
    "Rule",
    "StrictAccess",
    "certified",
    "check_class",
    "check_rule",
    "fingerprints",
    "gids",
    "local",
    "names",
    "roles",
    "rule_of",
    "rule_of_resource",
    "same_host",
    "same_user",
    "uids",
    "via",
]


class AccessAttribute:
    """The attribute ``access`` of a service, whose router has to know of a change.

    It is there so that setting it on an instance works at any time, on a class of services that says nothing
    about access as well. There, what is no rule is kept as any attribute is: it may be something else of the
    user's.
    """

    #: Whether nothing but a rule, or ``None`` for everybody, can be set.
    is_strict = False

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return vars(instance)["access"]
        except KeyError:
            return self._get_default()

    def __set__(self, instance: Any, value: Any) -> None:
        if self.is_strict:
            check_rule(value)
        attributes = vars(instance)
        attributes["access"] = value
        router = attributes.get("router")
        if hasattr(type(router), "set_sub_router"):
            router.access = value if isinstance(value, Rule) else None

    def __delete__(self, instance: Any) -> None:
        try:
            del vars(instance)["access"]
        except KeyError:
            raise AttributeError("access") from None
        router = vars(instance).get("router")
        if hasattr(type(router), "set_sub_router"):
            router.access = self if isinstance(self, Rule) else None

    def _get_default(self) -> Any:
        raise AttributeError("access")


class StrictAccess(AccessAttribute):
    """The same where the name stands for nothing else; everybody is let in until it is set."""

    is_strict = True

    def _get_default(self) -> Any:
        return None


def check_rule(value: Any) -> None:
    """Raise ``TypeError`` if *value* is neither a rule nor ``None``, which is everybody."""
    if value is not None and not isinstance(value, Rule):
        raise TypeError(f"access must be a rule, as in roles('operator'), or None, but is {value!r}")


def check_class(cls: type) -> None:
    """Check what *cls* itself says about access: what is meant for a rule and is none would let in everybody.

    Raises:
        TypeError: It is data and no rule, or a property, which is not asked.
    """
    value = vars(cls).get("access")
    if isinstance(value, property):
        raise TypeError(f"{cls.__qualname__}: access is no property; set self.access to a rule instead")
    if not callable(value) and not hasattr(type(value), "__get__"):
        try:
            check_rule(value)
        except TypeError as error:
            raise TypeError(f"{cls.__qualname__}: {error}") from None


class Rule(AccessAttribute):
    """A question about an identity: may it, or may it not?

    Subclasses define :meth:`allows`. As the attribute ``access`` of a class, a rule narrows all that its
    instances offer.
    """

    is_strict = True

    #: Whether the answer for one and the same identity may be another one later. If not, it is remembered.
    is_changing: bool = True

    def allows(self, identity: Identity) -> bool:
        """Return whether *identity* may."""
        raise NotImplementedError

    def __and__(self, other: Any) -> Rule:
        return _All(self, other) if isinstance(other, Rule) else NotImplemented

    def __or__(self, other: Any) -> Rule:
        return _Any(self, other) if isinstance(other, Rule) else NotImplemented

    def __bool__(self) -> bool:
        # As in "if roles('operator'):", which would always be true.
        raise TypeError("a rule is neither true nor false: ask allows(), or aiomas_ng.access.is_allowed()")

    def _get_default(self) -> Any:
        return self


class _Combined(Rule):
    _sign = ""

    def __init__(self, *rules: Rule) -> None:
        self._rules = rules
        self.is_changing = any(rule.is_changing for rule in rules)

    def __repr__(self) -> str:
        return f"({f' {self._sign} '.join(map(repr, self._rules))})"


class _All(_Combined):
    _sign = "&"

    def allows(self, identity: Identity) -> bool:
        return all(rule.allows(identity) for rule in self._rules)


class _Any(_Combined):
    _sign = "|"

    def allows(self, identity: Identity) -> bool:
        return any(rule.allows(identity) for rule in self._rules)


class _Simple(Rule):
    """A rule that asks for one of several values of an attribute."""

    is_changing = False

    def __init__(self, name: str, values: tuple[Any, ...], type_: type) -> None:
        if not values:
            raise ValueError(f"{name}() without any would allow nobody; say so with access.NOBODY")
        for value in values:
            if not isinstance(value, type_) or isinstance(value, bool):
                raise TypeError(f"{name}() takes values of type {type_.__name__}, not {value!r}")
        self._name = name
        self._values = frozenset(values)

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(map(repr, sorted(self._values)))})"


class _OneOf(_Simple):
    """One of the values, of an attribute that is a set."""

    def allows(self, identity: Identity) -> bool:
        found: frozenset[str] = getattr(identity, self._name)
        return not self._values.isdisjoint(found)


class _Equal(_Simple):
    """One of the values, of an attribute with one value or none."""

    def allows(self, identity: Identity) -> bool:
        return getattr(identity, self._name[:-1]) in self._values


class _Quality(Rule):
    """A question with no values in it."""

    is_changing = False

    def __init__(self, name: str, allows: Callable[[Identity], bool]) -> None:
        self._name = name
        self._allows = allows

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name  # they are one each, and found by their names

    def allows(self, identity: Identity) -> bool:
        return self._allows(identity)


class _Via(Rule):
    def __init__(self, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"via() takes a rule, as in via(names('hub.example')), not {rule!r}")
        self._rule = rule
        self.is_changing = rule.is_changing

    def __repr__(self) -> str:
        return f"via({self._rule!r})"

    def allows(self, identity: Identity) -> bool:
        return identity.forwarder is not None and self._rule.allows(identity.forwarder)


#: Everybody, also who has shown nothing.
EVERYBODY: Final[Rule] = _Quality("EVERYBODY", lambda identity: True)
#: Nobody but what lives in the same container.
NOBODY: Final[Rule] = _Quality("NOBODY", lambda identity: False)
_CERTIFIED: Final[Rule] = _Quality("_CERTIFIED", lambda identity: identity.fingerprint is not None)
_LOCAL: Final[Rule] = _Quality("_LOCAL", lambda identity: identity.is_local)
_SAME_HOST: Final[Rule] = _Quality(
    "_SAME_HOST",
    lambda identity: identity.is_local or identity.is_loopback or identity.uid is not None,
)
_SAME_USER: Final[Rule] = _Quality("_SAME_USER", lambda identity: identity.uid == os.geteuid())


def names(*names: str) -> Rule:
    """Return the rule that lets in peers whose certificate has one of these names.

    Args:
        *names: Common names, DNS names (in lower case) or URIs, each as a whole.
    """
    return _OneOf("names", names, str)


def roles(*roles: str) -> Rule:
    """Return the rule that lets in peers that have one of these roles."""
    return _OneOf("roles", roles, str)


def fingerprints(*fingerprints: str) -> Rule:
    """Return the rule that lets in peers with one of these certificates.

    Args:
        *fingerprints: SHA-256 of each, in hexadecimal digits; colons and upper case, as ``openssl x509
            -fingerprint -sha256`` writes them, are taken.
    """
    return _Equal("fingerprints", tuple(map(_clean_fingerprint, fingerprints)), str)


def _clean_fingerprint(text: Any) -> Any:
    cleaned = text.replace(":", "").lower() if isinstance(text, str) else text
    if isinstance(cleaned, str) and (len(cleaned) != 64 or not set(cleaned) <= set("0123456789abcdef")):
        raise ValueError(f"a fingerprint has 64 hexadecimal digits, but this is {text!r}")
    return cleaned


def uids(*uids: int) -> Rule:
    """Return the rule that lets in processes of these users, over Unix sockets."""
    return _Equal("uids", uids, int)


def gids(*gids: int) -> Rule:
    """Return the rule that lets in processes with one of these as their group, over Unix sockets.

    It is the group that the process acts as, not each that its user is a member of.
    """
    return _Equal("gids", gids, int)


def same_user() -> Rule:
    """Return the rule that lets in processes of the user that this one acts as, over Unix sockets."""
    return _SAME_USER


def same_host() -> Rule:
    """Return the rule that lets in what is on this host: over LocalQueue, Unix sockets, and TCP at a loopback
    address. Who comes through a tunnel or proxy that ends on this host is let in as well."""
    return _SAME_HOST


def certified() -> Rule:
    """Return the rule that lets in every peer with a certificate that was verified."""
    return _CERTIFIED


def local() -> Rule:
    """Return the rule that lets in what is in the same process: peers over LocalQueue."""
    return _LOCAL


def via(rule: Rule) -> Rule:
    """Return the rule that lets in what is forwarded by a peer that *rule* lets in, for whomever."""
    return _Via(rule)


def rule_of(declared: Any) -> Rule | None:
    """Return *declared*, what somebody has as the attribute ``access``, if it is a rule; else ``None``."""
    return declared if isinstance(declared, Rule) else None


class _Misdeclared(Rule):
    """Stands for what was meant for a rule and is none: it lets in nobody."""

    is_changing = False

    def allows(self, identity: Identity) -> bool:
        return False


MISDECLARED: Final[Rule] = _Misdeclared()


def rule_of_resource(resource: Any, name: str = "access") -> Rule | None:
    """Return the rule that is the attribute *name* of *resource*, ``None`` if it has none.

    For data that is no rule, which was meant for one, it is a rule that lets in nobody.
    """
    declared = getattr(resource, name, None)
    if declared is None or isinstance(declared, Rule):
        return declared
    return None if callable(declared) else MISDECLARED
