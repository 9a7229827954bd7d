"""Rules and policies: pure decisions about identities."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.access import check_class
from aiomas_ng._core.identity import SELF, Identity
from aiomas_ng.access import (
    EVERYBODY,
    NOBODY,
    Policy,
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

FINGERPRINT = "0f" * 32

ANONYMOUS = Identity(transport="tcp")
SCADA = Identity(
    transport="tls",
    names=frozenset({"scada.example", "scada"}),
    roles=frozenset({"operator"}),
    fingerprint=FINGERPRINT,
)
METER = Identity(
    transport="tls", names=frozenset({"meter.example"}), roles=frozenset({"viewer"}), fingerprint="ab" * 32
)
USER = Identity(transport="unix", pid=7, uid=os.geteuid(), gid=100)
OTHER_USER = Identity(transport="unix", pid=8, uid=os.geteuid() + 1, gid=101)
NEIGHBOUR = Identity(transport="tcp", is_loopback=True)
LOCAL = Identity(transport="local")
ALL = (ANONYMOUS, SCADA, METER, USER, OTHER_USER, NEIGHBOUR, LOCAL)


@pytest.mark.parametrize(
    ("rule", "let_in"),
    [
        (names("scada"), [SCADA]),
        (names("scada.example", "meter.example"), [SCADA, METER]),
        (names("SCADA"), []),
        (names("scada.exampl", "*"), []),
        (roles("operator"), [SCADA]),
        (roles("operator", "viewer"), [SCADA, METER]),
        (fingerprints(FINGERPRINT), [SCADA]),
        (fingerprints(":".join(["0F"] * 32)), [SCADA]),
        (uids(os.geteuid()), [USER]),
        (gids(101), [OTHER_USER]),
        (same_user(), [USER]),
        (same_host(), [USER, OTHER_USER, NEIGHBOUR, LOCAL]),
        (certified(), [SCADA, METER]),
        (local(), [LOCAL]),
        (EVERYBODY, list(ALL)),
        (NOBODY, []),
        (via(EVERYBODY), []),
        (roles("viewer") & names("meter.example"), [METER]),
        (roles("viewer") & names("scada"), []),
        (roles("viewer") | uids(os.geteuid() + 1), [METER, OTHER_USER]),
        (Policy(), list(ALL)),
        (Policy(roles("viewer")), [METER]),
        (Policy(roles("viewer"), roles={"scada": ["viewer"]}), [SCADA]),
    ],
    ids=repr,
)
def test_who_is_let_in(rule: Rule, let_in: list[Identity]) -> None:
    """Each rule lets in whom it names, and nobody else; not what these forward for others either."""
    assert [identity for identity in ALL if rule.allows(identity)] == let_in
    forwarded = [rule.allows(identity.forwarded()) for identity in ALL]
    assert set(forwarded) == {repr(rule) in ("EVERYBODY", "Policy(None)", "via(EVERYBODY)")}


@pytest.mark.parametrize("identity", ALL, ids=str)
def test_via_asks_about_the_forwarder(identity: Identity) -> None:
    """What is forwarded is let in by a rule about who forwards, and only by that."""
    assert via(names("scada")).allows(identity.forwarded()) is (identity is SCADA)
    assert not via(names("scada")).allows(identity)
    assert not via(names("scada")).allows(identity.forwarded().forwarded())
    assert via(via(names("scada"))).allows(identity.forwarded().forwarded()) is (identity is SCADA)


RULES = st.recursive(
    st.sampled_from([names("scada"), roles("viewer"), same_user(), local(), EVERYBODY, NOBODY, certified()]),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner), st.builds(lambda a, b: a | b, inner, inner)
    ),
)


@given(RULES, RULES, st.sampled_from(ALL))
def test_rules_combine_as_logic_does(one: Rule, two: Rule, identity: Identity) -> None:
    """ "and" and "or" of rules are those of their answers, and rules survive pickling."""
    assert (one & two).allows(identity) is (one.allows(identity) and two.allows(identity))
    assert (one | two).allows(identity) is (one.allows(identity) or two.allows(identity))
    assert pickle.loads(pickle.dumps(one & two)).allows(identity) is (one & two).allows(identity)


@given(RULES, st.sampled_from(ALL), st.sampled_from(ALL))
def test_whoever_shows_less_gets_no_more(rule: Rule, identity: Identity, other: Identity) -> None:
    """There is no rule that lets somebody in because of what he has not shown."""
    if rule.allows(identity.without_rights()):
        assert rule.allows(identity)
        assert rule.allows(other)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: names(), ValueError),
        (lambda: roles(), ValueError),
        (lambda: uids(), ValueError),
        (lambda: names(["a"]), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: names(5), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: uids("root"), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: uids(True), TypeError),
        (lambda: fingerprints("abc"), ValueError),
        (lambda: fingerprints("g" * 64), ValueError),
        (lambda: via("hub"), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: names("a") & "b", TypeError),
        (lambda: names("a") | None, TypeError),
        (lambda: ~names("a"), TypeError),  # type: ignore[operator]  # there is no "not"
        (lambda: bool(names("a")), TypeError),
        (lambda: Policy("operator"), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: Policy(roles=["operator"]), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: Policy(roles={"a": "operator"}), TypeError),
        (lambda: Policy(roles={"a": [5]}), TypeError),  # type: ignore[list-item]  # the mistake
        (lambda: Policy(roles={5.0: ["a"]}), TypeError),  # type: ignore[dict-item]  # the mistake
        (lambda: Policy().revoke("a"), ValueError),
        (lambda: Policy().block(None), TypeError),  # type: ignore[arg-type]  # the mistake
        (lambda: setattr(Policy(), "allow", "operator"), TypeError),
    ],
)
def test_mistakes_are_errors(make: Callable[[], Any], error: type[Exception]) -> None:
    """What is no rule is an error where it is written, as it would let in everybody or nobody."""
    with pytest.raises(error):
        make()


# -- Policies --------------------------------------------------------------------------------------


def test_roles_of_certificates_are_the_default() -> None:
    """Without a mapping, units are roles; with one, certificates have no say in it."""
    assert Policy().identify(SCADA).roles == {"operator"}
    policy = Policy(roles={"meter.example": {"operator"}, FINGERPRINT: {"auditor"}, os.geteuid(): {"admin"}})
    assert policy.identify(SCADA).roles == {"auditor"}
    assert policy.identify(METER).roles == {"operator"}
    assert policy.identify(USER).roles == {"admin"}
    assert policy.identify(OTHER_USER).roles == set()


def test_a_name_is_no_user_id() -> None:
    """Whoever has a certificate for the name "0" does not get what user 0 has."""
    policy = Policy(roles={0: {"admin"}})
    assert not policy.identify(Identity(transport="tls", names=frozenset({"0"}), fingerprint="f")).roles


def test_revoke_and_grant() -> None:
    """A role can be taken from who has it by certificate, by mapping or by function, and be given back."""
    for policy in (
        Policy(),
        Policy(roles={"scada": ["operator"]}),
        Policy(roles=lambda identity: ["operator"] if "scada" in identity.names else []),
    ):
        assert policy.identify(SCADA).roles == {"operator"}
        before = policy.version
        policy.revoke("scada", "operator")
        assert policy.version != before
        assert policy.identify(SCADA).roles == set()
        policy.grant("scada.example", "operator")
        assert policy.identify(SCADA).roles == set(), "one of its names still has it taken away"
        policy.grant("scada", "operator", "auditor")
        assert policy.identify(SCADA).roles == {"operator", "auditor"}
        assert policy.roles["scada"] == {"operator", "auditor"}


def test_block() -> None:
    """Who is blocked, by whichever of its keys, may reach nothing, and what it forwards does not either."""
    for key in ("scada", "scada.example", FINGERPRINT):
        policy = Policy()
        policy.block(key)
        assert policy.blocked == {key}
        assert not policy.allows(SCADA)
        assert not policy.allows(SCADA.forwarded())
        assert policy.identify(SCADA) == Identity(transport="tls")
        assert policy.allows(METER)
        policy.unblock(key)
        assert policy.allows(SCADA)
        assert policy.identify(SCADA) == SCADA


def test_the_mapping_is_copied() -> None:
    """A change of the mapping that was given has no effect, so that there is one way to make a change."""
    mapping = {"scada": {"operator"}}
    policy = Policy(roles=mapping)
    mapping["scada"].add("admin")
    mapping["meter.example"] = {"admin"}
    assert policy.identify(SCADA).roles == {"operator"}
    assert policy.identify(METER).roles == set()
    with pytest.raises(TypeError):
        policy.roles["scada"] = frozenset()  # type: ignore[index]  # the mistake


def test_what_lives_here_is_left_alone() -> None:
    """A container is itself, whatever a policy says."""
    assert Policy(roles=lambda identity: 1 / 0).identify(SELF) is SELF  # type: ignore[arg-type,return-value]


def test_a_policy_maps_the_forwarder() -> None:
    """Roles that a policy gives to who forwards count in via()."""
    policy = Policy(via(roles("hub")), roles={"scada": ["hub"]})
    assert policy.allows(SCADA.forwarded())
    assert not policy.allows(SCADA)
    assert not policy.allows(METER.forwarded())


def test_policies_can_be_pickled() -> None:
    """They can be handed to container processes."""
    policy = Policy(roles("operator") | same_user(), roles={"scada": ["operator"]})
    policy.block("meter.example")
    copy = pickle.loads(pickle.dumps(policy))
    assert [copy.allows(identity) for identity in ALL] == [policy.allows(identity) for identity in ALL]


# -- The attribute ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["operator", ["operator"], {"operator"}, 5, True])
def test_a_class_that_means_a_rule_and_has_none(value: Any) -> None:
    """Data as the attribute is a mistake that would let in everybody."""
    with pytest.raises(TypeError, match="access must be a rule"):
        check_class(type("Battery", (), {"access": value}))


def test_a_class_may_use_the_name_for_a_method() -> None:
    """A method called so, a rule, or nothing, is fine; a property would be a rule that nobody asks."""
    for value in (lambda self: 5, NOBODY, None):
        check_class(type("Battery", (), {"access": value}))
    check_class(type("Battery", (), {}))
    with pytest.raises(TypeError, match="no property"):
        check_class(type("Battery", (), {"access": property(lambda self: NOBODY)}))
