"""Routing: every exposed function is found, nothing else is reachable, and every service knows its path."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiomas_ng import rpc
from aiomas_ng._core.routing import Router, Service, ServiceDict, expose, is_rpc_service
from aiomas_ng.exceptions import AgentRestartingError, AiomasError, NotExposedError, RoutingError


class Leaf:
    """A service without others below."""

    router = Service()

    def __init__(self, name: str = "leaf") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @expose
    def who(self) -> str:
        return self.name

    def secret(self) -> str:
        raise AssertionError("a function was called that is not exposed")


class Tree(Leaf):
    """A service with two that may be set."""

    router = Service(["left", "right"])

    def __init__(self, name: str = "tree", left: Any = None, right: Any = None) -> None:
        super().__init__(name)
        self.left = left
        self.right = right


class Bomb:
    """Something that must not be touched by a look-up."""

    def __get__(self, instance: object, cls: type) -> Any:
        raise AssertionError("a descriptor was evaluated")


def assert_unreachable(service: Any, *paths: str) -> None:
    """Check that *paths* cannot be resolved, and that the reason can be told."""
    for path in paths:
        with pytest.raises(RoutingError) as caught:
            service.router.resolve(path)
        assert isinstance(caught.value, LookupError)
        assert isinstance(caught.value, AiomasError)
        assert str(caught.value)


def assert_not_exposed(service: Any, *paths: str) -> None:
    for path in paths:
        with pytest.raises(NotExposedError, match="not exposed"):
            service.router.resolve(path)


# -- Exposing --------------------------------------------------------------------------------------


def test_expose_marks_and_returns_the_function() -> None:
    """Nothing is wrapped; the mark is the one that programs rely on; all three names do the same."""

    def function() -> None:
        """Text."""

    for mark in (expose, rpc.expose, Router.expose, Service.expose, Leaf().router.expose, Leaf.router.expose):
        function.__dict__.clear()
        assert mark(function) is function
        assert function.__dict__ == {"__rpc__": True}


@pytest.mark.parametrize("thing", [None, 5, "text", object(), [], property(), classmethod(lambda cls: 1)])
def test_only_what_can_be_called_is_exposed(thing: Any) -> None:
    """What cannot be called cannot be exposed, and the error shows it."""
    with pytest.raises(ValueError, match="only a callable can be exposed, not ") as caught:
        expose(thing)
    assert repr(thing) in str(caught.value)


class SlottedWrapper:
    """Pretends to be the function it wraps, as the wrappers of extension modules do."""

    __slots__ = ("__wrapped__",)

    def __init__(self, wrapped: Any) -> None:
        self.__wrapped__ = wrapped

    def __get__(self, instance: Any, cls: Any) -> Any:
        return SlottedWrapper(self.__wrapped__.__get__(instance, cls))

    def __call__(self, *args: Any) -> Any:
        return self.__wrapped__(*args)


def shout(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> str:
        return function(*args).upper()

    return wrapper


class CallableObject:
    def __call__(self) -> str:
        return "object"


class Base:
    @expose
    def inherited(self) -> str:
        return "inherited"

    @expose
    def overridden(self) -> str:
        raise AssertionError

    @expose
    def hidden(self) -> str:
        raise AssertionError


class Everything(Base):
    """A service with exposed functions of every kind."""

    router = Service()
    __slots__ = ("in_slot",)

    def __init__(self) -> None:
        other = Leaf("other")
        self.alias = other.who
        self.own_lambda = expose(lambda: "own lambda")
        self.partial = expose(functools.partial(str, "partial"))
        self.object = expose(CallableObject())
        self.in_slot = other.who
        self.Class = expose(type("Class", (), {"__str__": lambda self: "instance"}))

    @expose
    def method(self) -> str:
        return "method"

    @expose
    async def coroutine(self) -> str:
        return "coroutine"

    @staticmethod
    @expose
    def static_inner() -> str:
        return "static inner"

    @expose
    @staticmethod
    def static_outer() -> str:
        return "static outer"

    @classmethod
    @expose
    def class_method(cls) -> str:
        return cls.__name__

    @expose
    def overridden(self) -> str:
        return "overridden"

    def hidden(self) -> str:
        """Overrides an exposed method without exposing it."""
        raise AssertionError

    @shout
    @expose
    def wrapped(self) -> str:
        return "wrapped"

    @expose
    @functools.lru_cache  # noqa: B019  # the instance may live on
    def cached_outer(self) -> str:
        return "cached outer"

    @functools.lru_cache  # noqa: B019
    @expose
    def cached_inner(self) -> str:
        return "cached inner"

    @expose
    def __call__(self) -> str:
        return "call"

    slotted = SlottedWrapper(expose(lambda self: "slotted"))
    twice_slotted = SlottedWrapper(SlottedWrapper(expose(lambda self: "twice slotted")))
    class_lambda = expose(lambda self: "class lambda")
    class_alias = Leaf("another").who
    _private = expose(lambda self: "private")


@pytest.mark.parametrize(
    ("name", "result"),
    {
        "alias": "other",
        "own_lambda": "own lambda",
        "partial": "partial",
        "object": "object",
        "in_slot": "other",
        "method": "method",
        "static_inner": "static inner",
        "static_outer": "static outer",
        "class_method": "Everything",
        "inherited": "inherited",
        "overridden": "overridden",
        "wrapped": "WRAPPED",
        "cached_outer": "cached outer",
        "cached_inner": "cached inner",
        "slotted": "slotted",
        "twice_slotted": "twice slotted",
        "class_lambda": "class lambda",
        "class_alias": "another",
        "_private": "private",
        "Class": "instance",
        "__call__": "call",
    }.items(),
)
def test_exposed_functions_of_every_kind_are_found(name: str, result: str) -> None:
    """Whatever kind of function is marked, it is found and called as it would be in Python."""
    everything = Everything()
    assert str(everything.router.resolve(name)()) == result
    assert str(ServiceDict({"x": everything}).router.resolve(f"x/{name}")()) == result


def test_override_that_is_not_exposed_hides_the_exposed_one() -> None:
    """A subclass takes an exposed method back by overriding it, on the class or on the instance."""
    everything = Everything()
    everything.method = lambda: "not exposed"  # type: ignore[method-assign]
    assert_not_exposed(everything, "hidden", "method")


def test_coroutine_function_is_found() -> None:
    """An asynchronous function is found like a plain one, and not called."""
    coroutine = Everything().router.resolve("coroutine")()
    assert isinstance(coroutine, types.CoroutineType)
    coroutine.close()


def test_functions_of_a_dict() -> None:
    """Functions, bound methods and partials are found in a dict if they are exposed."""
    leaf = Leaf()
    services = ServiceDict(
        {"f": expose(lambda: 1), "who": leaf.who, "secret": leaf.secret, "g": lambda: 2, "n": 5}
    )
    assert services.router.resolve("f")() == 1
    assert services.router.resolve("who")() == "leaf"
    assert_not_exposed(services, "secret", "g", "n")


def test_functions_of_a_class() -> None:
    """A router of a class finds its static and class methods, and those of its bases."""

    class Tools(Base):
        __slots__ = ("slot",)

        @staticmethod
        @expose
        def static() -> str:
            return "static"

        @classmethod
        @expose
        def cls_method(cls) -> str:
            return cls.__name__

        def secret(self) -> None: ...

    router = Router(Tools)
    assert router.resolve("static")() == "static"
    assert router.resolve("cls_method")() == "Tools"
    assert router.resolve("inherited")(None) == "inherited"
    for name in ("secret", "slot", "__init__", "__dict__"):
        with pytest.raises(NotExposedError):
            router.resolve(name)
    for name in ("mro", "__subclasses__"):  # these belong to its metaclass
        with pytest.raises(RoutingError, match="not found"):
            router.resolve(name)


# -- Nothing else is reachable ---------------------------------------------------------------------

DUNDERS = sorted({*dir(object), *dir(type), *dir(Leaf), *dir(types.FunctionType), "__rpc__", "__globals__"})


@pytest.mark.parametrize("service", [Leaf(), Tree(), ServiceDict(), ServiceDict({"x": Leaf()})], ids=repr)
def test_what_python_itself_gives_is_not_reachable(service: Any) -> None:
    """No name that objects, classes and functions have by themselves leads anywhere."""
    for name in set(DUNDERS) - {"who"}:
        assert_unreachable(service, name, f"x/{name}", f"left/{name}", f"who/{name}", f"router/{name}")
        for rest in ("__init__", "__globals__", "who", "resolve"):
            assert_unreachable(service, f"{name}/{rest}")


ROUTER_NAMES = [name for name in dir(Router) if not name.startswith("__")]


@pytest.mark.parametrize("service", [Tree("t", Leaf()), ServiceDict({"left": Leaf()})], ids=["tree", "dict"])
def test_router_itself_is_not_reachable(service: Any) -> None:
    """A peer cannot change the tree: neither a router nor a ServiceDict is a service by itself."""
    service.router.resolve("left/who")
    for name in ("router", "dict", *ROUTER_NAMES):
        assert_unreachable(
            service, name, f"router/{name}", f"left/router/{name}", f"left/{name}", f"dict/{name}"
        )
    assert_unreachable(service, "left/router", "router/obj/left/who", "left/router/parent/left/who")


def test_empty_and_odd_paths_lead_nowhere() -> None:
    """Slashes in odd places, relative paths and odd characters are names like any other."""
    service = Tree("tree", Leaf())
    for path in ["", "/", "//", "/who", "who/", "left/", "left//who", "./who", "../who", "left/../who"]:
        assert_unreachable(service, path)
    for path in ["who ", " who", "WHO", "who\0", "\0", "\ud800", "left\\who", "left.who", "*", "w" * 10**6]:
        assert_unreachable(service, path)
    assert_unreachable(service, "/" * 10**5, "left/" * 10**5 + "who", "who/" * 10**5)


@given(
    path=st.lists(st.sampled_from(["left", "right", "who", "secret", "router", ""]) | st.text()).map("/".join)
)
def test_any_path_is_resolved_or_a_routing_error(path: str) -> None:
    """Of all paths, exactly the few that are meant lead somewhere."""
    leaf = Leaf()
    service = Tree("tree", leaf)
    expected = {"who": service.who, "left": leaf, "left/who": leaf.who}
    try:
        found = service.router.resolve(path)
    except RoutingError:
        assert path not in expected
    else:
        assert found == expected[path]


@pytest.mark.parametrize(
    "path", [None, 5, b"who", ["who"], {"who": 1}, 2**20_000, [2**20_000], True], ids=type
)
def test_path_that_is_no_string(path: Any) -> None:
    """A path that is no string is an error of routing, even if it cannot be printed."""
    for method in (Leaf().router.resolve, Leaf().router.find):
        with pytest.raises(RoutingError, match="a path must be a string but is"):
            method(path)


def test_properties_are_not_evaluated() -> None:
    """Looking up a name evaluates no property, cached property or other descriptor."""
    calls = []

    class Careful(Leaf):
        @property
        def prop(self) -> Any:
            calls.append("prop")
            return expose(lambda: 1)

        @functools.cached_property
        def cached(self) -> Any:
            calls.append("cached")
            return expose(lambda: 1)

        bomb: Any = Bomb()

    service = Careful()
    assert_not_exposed(service, "prop", "cached", "bomb")
    assert_unreachable(service, "prop/who", "cached/who", "bomb/who", "prop/__call__")
    assert not calls


def test_getattr_is_not_asked() -> None:
    """An object that makes up attributes as they are asked for is not asked."""
    asked: list[str] = []

    class Inventive(Leaf):
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return expose(lambda: 1)

    service = Inventive()
    assert service.router.resolve("who")() == "leaf"
    assert_unreachable(service, "anything", "__anything__", "left/who")
    assert not asked


def test_getattribute_is_not_asked_for_what_is_not_exposed() -> None:
    """Nor does an object that answers every question itself give more away."""

    class Controlling(Leaf):
        def __getattribute__(self, name: str) -> Any:
            if name in ("router", "__dict__", "name", "who", "__class__"):
                return super().__getattribute__(name)
            raise AssertionError(f"was asked for {name}")

    service = Controlling()
    assert service.router.resolve("who")() == "leaf"
    assert_unreachable(service, "secret", "anything", "__doc__", "router", "name")


class Agreeable:
    """Says yes to everything, and must not be believed."""

    def __init__(self, asked: list[str]) -> None:
        object.__setattr__(self, "asked", asked)

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return True

    def __call__(self, *args: Any) -> Any:
        raise AssertionError("called")


class Touchy:
    """Fails when it is asked for an attribute that it does not have."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __call__(self) -> Any:
        raise AssertionError("called")


def test_attributes_are_not_asked_whether_they_are_exposed() -> None:
    """Objects that a service merely holds, such as a connection to a database, run none of their code."""
    asked: list[str] = []

    class Holder(Leaf):
        on_class: ClassVar[Any] = Agreeable(asked)
        touchy_class: ClassVar[Any] = Touchy()

        def __init__(self) -> None:
            super().__init__()
            self.agreeable = Agreeable(asked)
            self.touchy = Touchy()

    assert_not_exposed(Holder(), "agreeable", "on_class", "touchy", "touchy_class")
    assert_unreachable(Holder(), "agreeable/x", "on_class/__call__", "touchy/x")
    services = ServiceDict({"agreeable": Agreeable([])})
    assert_not_exposed(services, "agreeable")
    assert not asked


@pytest.mark.parametrize("kind", [mock.Mock, mock.MagicMock, mock.AsyncMock, mock.NonCallableMock])
def test_mocks_are_not_exposed(kind: type) -> None:
    """A mock has every attribute, but neither the mark nor a router, unless it is given one."""

    class Holder(Leaf):
        router = Service(["sub"])
        on_class = kind()
        on_class_too = kind(spec=Leaf)

        def __init__(self) -> None:
            super().__init__()
            self.mock = kind()
            self.like_a_leaf = kind(spec=Leaf())
            self.sub = kind()

    service = Holder()
    for name in ("on_class", "on_class_too", "mock", "like_a_leaf", "sub"):
        assert_unreachable(service, name, f"{name}/who", f"{name}/router", f"{name}/__call__")
    services = ServiceDict(
        {"mock": kind(), "router": kind(spec=Router), "spec": mock.create_autospec(Leaf())}
    )
    for name in services.dict:
        assert_unreachable(services, name, f"{name}/who")
    with pytest.raises(ValueError, match="is not a valid router"):
        service.router.set_sub_router(kind(spec=service.router), "mock")


def test_mock_that_is_exposed_is_found() -> None:
    """In a test, a mock may stand for an exposed function."""
    services = ServiceDict({"mock": expose(mock.Mock(return_value=5))})
    assert services.router.resolve("mock")() == 5


def test_services_that_were_not_mounted_are_not_reachable() -> None:
    """That a service holds another does not make that one's functions reachable, whatever holds it."""

    class Holder(Leaf):
        on_class: ClassVar[Any] = Leaf("on class")

        def __init__(self) -> None:
            super().__init__()
            self.other = Leaf("other")
            self.services = ServiceDict({"other": self.other})
            self.list = [self.other]
            self.dict = {"who": self.other.who}

        def method(self) -> None: ...

        method.who = Leaf("of a function").who  # type: ignore[attr-defined]

    service = Holder()
    assert_not_exposed(service, "other", "on_class", "services", "list", "dict")
    for name in ("other", "on_class", "services", "services/other", "list/0", "dict", "method"):
        assert_unreachable(service, f"{name}/who")
    assert service.other.router.parent is service.services.router


def test_mark_is_not_inherited_from_a_class() -> None:
    """Exposing a class exposes neither its instances nor its subclasses, which programs hold as well."""

    @expose
    class Marked:
        def __call__(self) -> None: ...

    class Sub(Marked): ...

    class CallableDict(ServiceDict):
        def __call__(self) -> None: ...

    class Holder(Leaf):
        factory = Sub
        on_class = Marked()

        def __init__(self) -> None:
            super().__init__()
            self.marked = Marked()
            self.sub = Sub
            self.dict_class = ServiceDict
            self.callable_dict = CallableDict()

    assert Marked.__rpc__  # type: ignore[attr-defined]
    assert_not_exposed(Holder(), "factory", "on_class", "marked", "sub", "dict_class", "callable_dict")


@pytest.mark.parametrize("value", [1, "yes", [True], None, False])
def test_only_the_mark_itself_counts(value: Any) -> None:
    """A function with another value in place of the mark is not exposed."""

    def function() -> None: ...

    function.__rpc__ = value  # type: ignore[attr-defined]
    assert_not_exposed(ServiceDict({"f": function}), "f")


def test_marked_object_that_cannot_be_called_is_not_exposed() -> None:
    """A mark on something else than a callable leads nowhere."""
    thing = types.SimpleNamespace(__rpc__=True, who=expose(lambda: 1))
    assert_not_exposed(ServiceDict({"thing": thing}), "thing")
    assert_unreachable(ServiceDict({"thing": thing}), "thing/who")


def test_wrapping_does_not_expose() -> None:
    """A partial or closure of an exposed function is another function, and a broken wrapper is none."""
    leaf = Leaf()
    broken = SlottedWrapper(None)
    del broken.__wrapped__
    services = ServiceDict(
        {
            "partial": functools.partial(leaf.who),
            "closure": lambda: leaf.who(),
            "method": functools.partialmethod(Leaf.who),
            "static": staticmethod(leaf.secret),
            "broken": broken,
            "of_secret": SlottedWrapper(leaf.secret),
        }
    )
    assert_not_exposed(services, *services.dict)


class Meta(type):
    """A metaclass with an exposed method, and one that makes up attributes."""

    @expose
    def of_metaclass(cls) -> None:
        raise AssertionError

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"the metaclass was asked for {name}")


def test_metaclass_is_not_asked() -> None:
    """What a metaclass has or makes up belongs to the class, not to its instances."""

    class WithMeta(Leaf, metaclass=Meta): ...

    service = WithMeta()
    assert service.router.resolve("who")() == "leaf"
    for name in ("of_metaclass", "made_up", "mro"):
        with pytest.raises(RoutingError, match=f"name '{name}' not found in the root service"):
            service.router.resolve(name)


def test_empty_slot_leads_nowhere() -> None:
    """A slot is an attribute if it is set, and nothing if not; no ``__getattr__`` is asked for it."""

    class Slotted:
        __slots__ = ("__dict__", "slot")
        router = Service()

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"was asked for {name}")

    service = Slotted()
    with pytest.raises(RoutingError, match="'slot' not found"):
        service.router.resolve("slot")
    service.slot = expose(lambda: 5)
    assert service.router.resolve("slot")() == 5
    service.slot = lambda: 5
    assert_not_exposed(service, "slot")


def test_object_without_a_dict_can_be_routed() -> None:
    """A Router that is made by hand serves an object that has slots alone."""

    class Slotted:
        __slots__ = ("slot",)

        @expose
        def f(self) -> int:
            return 5

    slotted = Slotted()
    slotted.slot = expose(lambda: 6)
    router = Router(slotted)
    assert (router.resolve("f")(), router.resolve("slot")()) == (5, 6)


def test_keys_of_a_default_dict_are_not_made() -> None:
    """Asking for a name adds nothing to a dict that makes up its values."""
    services = ServiceDict(collections.defaultdict(lambda: expose(lambda: 1)))
    assert_unreachable(services, "x", "x/y")
    assert not services.dict


# -- Calling a service -----------------------------------------------------------------------------


def test_service_is_called_only_if_that_is_exposed() -> None:
    """A path that ends at a service does not make its ``__call__`` reachable."""

    class Callable(Leaf):
        def __call__(self) -> str:
            raise AssertionError

    class Exposed(Leaf):
        @expose
        def __call__(self) -> str:
            return "called"

    callable_service, exposed, plain, marked = Callable(), Exposed(), Leaf(), expose(Callable())
    services = ServiceDict(
        {
            "callable": callable_service,
            "exposed": exposed,
            "plain": plain,
            "marked": marked,
            "dict": ServiceDict(),
        }
    )
    with pytest.raises(
        NotExposedError, match="service 'callable' cannot be called: its __call__ is not exposed"
    ):
        services.router.resolve("callable")
    assert_not_exposed(services, "callable/__call__")
    assert services.router.resolve("exposed") is exposed
    assert services.router.resolve("exposed/__call__")() == "called"
    assert services.router.resolve("plain") is plain
    assert services.router.resolve("dict") is services.dict["dict"]
    assert services.router.resolve("marked") is marked
    for path, service in services.dict.items():
        assert services.router.find(path) is service


def test_class_below_a_router_is_not_called() -> None:
    """A class whose functions are served is not a factory of its instances."""

    class Tools:
        router: ClassVar[Router]

        @staticmethod
        @expose
        def f() -> int:
            return 5

    Tools.router = Router(Tools)
    services = ServiceDict({"tools": Tools})
    assert services.router.resolve("tools/f")() == 5
    assert_not_exposed(services, "tools")


# -- Messages --------------------------------------------------------------------------------------


def test_errors_say_up_to_where_the_path_could_be_followed() -> None:
    """Each error names what is missing and where."""
    service = Tree("tree", Tree("sub", Leaf()), None)
    for path, error, text in [
        ("nope", RoutingError, "name 'nope' not found in the root service"),
        ("nope/who", RoutingError, "name 'nope' not found in the root service"),
        ("left/nope/who", RoutingError, "name 'nope' not found in left"),
        ("left/left/nope", RoutingError, "name 'nope' not found in left/left"),
        ("left/who/nope", NotExposedError, f"{__name__}.Tree.who ('who' in left) is not exposed"),
        ("secret", NotExposedError, f"{__name__}.Tree.secret ('secret' in the root service) is not exposed"),
        ("left/left/name", NotExposedError, f"{__name__}.Leaf.name ('name' in left/left) is not exposed"),
        ("right", RoutingError, "sub-service 'right' of the root service is not set"),
        ("left/right/who", RoutingError, "sub-service 'right' of left is not set"),
    ]:
        with pytest.raises(RoutingError) as caught:
            service.router.resolve(path)
        assert (type(caught.value), str(caught.value)) == (error, text)


def test_attribute_that_was_never_set_is_not_found() -> None:
    """A name of a sub-service without such an attribute is simply not there, until it is."""

    class Late:
        router = Service(["sub"])

    late: Any = Late()
    with pytest.raises(RoutingError, match="name 'sub' not found"):
        late.router.resolve("sub/who")
    late.sub = Leaf()
    assert late.router.resolve("sub/who")() == "leaf"
    del late.sub
    assert_unreachable(late, "sub/who", "sub")


def test_router_shows_itself() -> None:
    """The representation has path and object."""
    service = Tree("tree", Leaf("l"))
    assert repr(service.router) == "<Router '' of <tree>>"
    assert repr(service.left.router) == "<Router 'left' of <l>>"


# -- The descriptor --------------------------------------------------------------------------------


def test_router_is_made_once_per_instance() -> None:
    """Every instance has its own router, made when it is first asked for; the class has the Service."""
    one, two = Leaf(), Leaf()
    assert "router" not in vars(one)
    assert one.router is one.router is not two.router
    assert (one.router.obj, two.router.obj) == (one, two)
    assert isinstance(Leaf.router, Service)


def test_names_of_sub_services_are_no_single_string() -> None:
    """A forgotten bracket does not make a sub-service of every letter."""
    with pytest.raises(TypeError, match=r"must be a list of strings: \['agents'\]"):
        Service("agents")


def test_router_of_an_instance_cannot_be_replaced() -> None:
    """Assigning to the router is an error, before and after it was made."""
    leaf = Leaf()
    for _ in range(2):
        with pytest.raises(AttributeError, match="the router of a service cannot be replaced"):
            leaf.router = Router(leaf)  # type: ignore[assignment, misc]
        assert leaf.router.obj is leaf


def test_subclass_may_redefine_its_router() -> None:
    """The names of a subclass's Service replace those of its base."""

    class More(Tree):
        router = Service(["right", "third"])

        def __init__(self) -> None:
            super().__init__("more", Leaf("l"), Leaf("r"))
            self.third = Leaf("third")

    service = More()
    assert service.router.resolve("right/who")() == "r"
    assert service.router.resolve("third/who")() == "third"
    assert_not_exposed(service, "left")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copy_of_a_service_has_its_own_router(duplicate: Callable[[Any], Any]) -> None:
    """The copy of a service answers for itself, not for the one that it was copied from."""
    service = Leaf("original")
    service.router.resolve("who")
    other = duplicate(service)
    other.name = "copy"
    assert other.router is not service.router
    assert other.router is other.router
    assert other.router.resolve("who")() == "copy"
    assert service.router.resolve("who")() == "original"


def test_what_is_a_service() -> None:
    """A service has a router; a mock, a class and a proxy of attributes have not."""
    assert is_rpc_service(Leaf())
    assert is_rpc_service(ServiceDict())
    assert is_rpc_service(types.SimpleNamespace(router=Router(object())))
    for thing in (None, 5, Leaf, ServiceDict, mock.Mock(), Agreeable([]), types.SimpleNamespace(router=None)):
        assert not is_rpc_service(thing)
    assert not is_rpc_service(mock.Mock(router=mock.Mock(spec=Router)))


# -- Attaching and detaching -----------------------------------------------------------------------


def test_sub_services_may_be_set_later() -> None:
    """An attribute that is ``None`` first is a sub-service as soon as it is set to one."""
    service = Tree()
    assert_unreachable(service, "left", "left/who")
    service.left = Leaf("late")
    assert service.router.resolve("left/who")() == "late"
    service.left = None
    assert_unreachable(service, "left", "left/who")


@pytest.mark.parametrize("is_resolved", [False, True])
@pytest.mark.parametrize("is_mounted_elsewhere", [False, True])
def test_replaced_sub_service_is_gone_in_both_directions(
    is_resolved: bool, is_mounted_elsewhere: bool
) -> None:
    """The new one is reachable, and the old one has no path any more, whether or not anybody looked it up.

    Or a reference to the old one, sent to a peer, would lead to the new one.
    """
    for service, put in (
        (tree := Tree(), functools.partial(setattr, tree)),
        (services := ServiceDict(), services.dict.__setitem__),
    ):
        old, new = Leaf("old"), Leaf("new")
        put("left", old)
        service.router.adopt()
        assert old.router.path == "left"
        elsewhere = ServiceDict({"new": new}) if is_mounted_elsewhere else None
        put("left", new)
        if is_resolved:
            assert service.router.resolve("left/who")() == "new"
        assert (old.router.path, old.router.root) == ("", old.router)
        assert service.router.resolve("left/who")() == "new"
        assert new.router.root is (elsewhere or service).router
        other = ServiceDict({"again": old})
        assert old.router.path == "again"
        assert old.router.root is other.router


def test_entries_of_a_dict_come_and_go() -> None:
    """What is put into the dict of a ServiceDict at run time is reachable at once, and so on."""
    data: dict[str, Any] = {}
    services = ServiceDict(data)
    assert services.dict is data
    leaf = data["leaf"] = Leaf()
    data["f"] = expose(lambda: 1)
    assert services.router.resolve("leaf/who")() == "leaf"
    assert services.router.resolve("f")() == 1
    data["f"] = expose(lambda: 2)
    assert services.router.resolve("f")() == 2
    data["f"] = Leaf("not a function any more")
    assert services.router.resolve("f/who")() == "not a function any more"
    data["leaf"] = expose(lambda: 3)
    assert services.router.resolve("leaf")() == 3
    assert_unreachable(services, "leaf/who")
    assert leaf.router.path == ""
    data.clear()
    assert_unreachable(services, "leaf", "f", "leaf/who", "f/who")
    services.dict = {"new": leaf}
    assert services.router.resolve("new/who")() == "leaf"


@pytest.mark.parametrize("is_inherited", [False, True])
def test_only_the_entries_of_a_dict_are_served(is_inherited: bool) -> None:
    """Methods of a subclass of ServiceDict are no entries, and hide none."""

    class Special(ServiceDict):
        @expose
        def f(self) -> str:
            raise AssertionError

    services = (type("More", (Special,), {}) if is_inherited else Special)()
    assert_unreachable(services, "f")
    services.dict["f"] = expose(lambda: "entry")
    assert services.router.resolve("f")() == "entry"


def test_same_service_under_two_names() -> None:
    """A service may be mounted twice; both ways lead there, and its path is the one that is left."""
    leaf = Leaf()
    services = ServiceDict({"one": leaf, "two": leaf})
    elsewhere = ServiceDict({"three": leaf})
    assert leaf.router.path == "one"
    for path in ("one/who", "two/who"):
        assert services.router.resolve(path)() == "leaf"
    assert elsewhere.router.resolve("three/who")() == "leaf"
    assert (leaf.router.path, leaf.router.root) == ("one", services.router)
    del services.dict["one"]
    services.router.adopt()
    assert leaf.router.path == "two"
    services.dict.clear()
    elsewhere.router.adopt()
    assert (leaf.router.path, leaf.router.root) == ("three", elsewhere.router)


def test_add_follows_the_attribute() -> None:
    """A service that was added by the name of its attribute is gone with it; adding twice does nothing."""
    service: Any = Leaf("root")
    service.tool = Leaf("tool")
    assert_unreachable(service, "tool", "tool/who")
    for _ in range(2):
        service.router.add("tool")
        assert service.router.resolve("tool/who")() == "tool"
    old, service.tool = service.tool, Leaf("new")
    assert service.router.resolve("tool/who")() == "new"
    assert (old.router.path, service.tool.router.path) == ("", "tool")
    del service.tool
    assert_unreachable(service, "tool", "tool/who")


def test_add_of_a_declared_sub_service_that_was_set_later() -> None:
    """A declared sub-service may be added as well, once it is there, resolved before or not."""
    service = Tree()
    with pytest.raises(AttributeError):
        service.router.add("left")
    service.left = Leaf()
    service.router.add("left")
    service.right = Leaf("right")
    service.router.resolve("right/who")
    service.router.add("right")
    assert (service.left.router.path, service.right.router.path) == ("left", "right")


def test_add_of_what_is_no_service() -> None:
    """Adding an attribute that is missing or holds no service is an error, and changes nothing."""
    service: Any = Leaf()
    service.tool = types.SimpleNamespace(router="none", who=expose(lambda: 1))
    for name, error in (("missing", AttributeError), ("name", AttributeError), ("tool", ValueError)):
        with pytest.raises(error):
            service.router.add(name)
        assert_unreachable(service, name, f"{name}/who")


def test_router_can_be_attached_without_an_attribute() -> None:
    """``set_sub_router`` attaches under any name, until it is detached or replaced."""
    service, one, two = Leaf("root"), Leaf("one"), Leaf("two")
    service.router.set_sub_router(one.router, "sub")
    assert service.router.resolve("sub/who")() == "one"
    service.router.set_sub_router(two.router, "sub")
    assert service.router.resolve("sub/who")() == "two"
    assert (one.router.path, one.router.parent, two.router.path) == ("", None, "sub")
    service.router.unset_sub_router("sub")
    service.router.unset_sub_router("sub")
    service.router.unset_sub_router("other")
    assert_unreachable(service, "sub", "sub/who")
    assert (two.router.path, two.router.parent, two.router.name) == ("", None, "")
    one.router.set_sub_router(two.router, "below")
    assert two.router.root is one.router


@pytest.mark.parametrize(
    "thing", [None, 5, "router", Router, Leaf(), Leaf.router, mock.Mock(spec=Router)], ids=repr
)
def test_only_routers_are_attached(thing: Any) -> None:
    """Something else than a router is refused."""
    with pytest.raises(ValueError, match="is not a valid router"):
        Leaf().router.set_sub_router(thing, "x")


def test_router_has_one_parent() -> None:
    """A router that is attached somewhere is not attached again, be it to the same parent."""
    leaf = Leaf()
    services, other = ServiceDict({"leaf": leaf}), Leaf("other")
    for router in (services.router, other.router):
        with pytest.raises(ValueError, match=r"<leaf> is already a sub-service of <.*ServiceDict"):
            router.set_sub_router(leaf.router, "leaf")
    assert leaf.router.path == "leaf"
    del services.dict["leaf"]
    other.router.set_sub_router(leaf.router, "leaf")
    assert leaf.router.root is other.router


def test_router_is_not_its_own_ancestor() -> None:
    """A tree has no circles, however long."""
    one, two, three = Leaf("one"), Leaf("two"), Leaf("three")
    with pytest.raises(ValueError, match="<one> cannot be a sub-service of its own sub-service"):
        one.router.set_sub_router(one.router, "self")
    one.router.set_sub_router(two.router, "two")
    two.router.set_sub_router(three.router, "three")
    with pytest.raises(ValueError, match="<one> cannot be a sub-service of its own sub-service"):
        three.router.set_sub_router(one.router, "one")
    assert three.router.path == "two/three"


def test_services_that_name_each_other() -> None:
    """Services may refer to each other in circles: the one that was asked first is the root."""
    parent = Tree("parent")
    parent.left = child = Tree("child", parent)
    child.right = child
    assert (parent.router.path, child.router.path) == ("", "left")
    assert child.router.root is parent.router
    assert parent.router.resolve("left/who")() == "child"
    assert parent.router.resolve("left/left/who")() == "parent"
    assert parent.router.resolve("left/right/right/who")() == "child"
    parent.router.adopt()
    assert (parent.router.path, child.router.path) == ("", "left")
    services = ServiceDict()
    services.dict["self"] = services
    services.router.adopt()
    assert services.router.path == ""
    assert services.router.find("self/self") is services


def test_shared_services_are_adopted_once() -> None:
    """Where many ways lead to the same service, adopting takes time by services and not by ways."""
    layer: Any = Leaf("bottom")
    for n in range(60):
        layer = Tree(str(n), layer, layer)
    assert layer.router.resolve("left/" * 60 + "who")() == "bottom"
    layer.router.adopt()


def test_dict_may_change_while_it_is_adopted() -> None:
    """A service that registers another one when it is first asked for its router is no trouble."""
    services = ServiceDict()

    class Spawning:
        @property
        def router(self) -> Router:
            services.dict.setdefault("spawned", Leaf())
            return Router(self)

    services.dict["spawning"] = Spawning()
    services.router.adopt()
    assert services.router.resolve("spawned/who")() == "leaf"


def test_error_while_adopting_leaves_the_router_usable() -> None:
    """If the attribute of a sub-service fails, that error shows, and the service goes on afterwards."""

    class Failing(Leaf):
        router = Service(["sub"])
        fails = True

        @property
        def sub(self) -> Any:
            if self.fails:
                raise RuntimeError("not now")
            return None

    service, root = Failing(), Tree("root")
    with pytest.raises(RuntimeError, match="not now"):
        _ = service.router
    service.fails = False
    root.left = service
    assert root.router.resolve("left/who")() == "leaf"
    assert service.router.path == "left"


# -- Reverse look-up -------------------------------------------------------------------------------


def test_path_of_every_service_leads_to_it() -> None:
    """Below the root each service knows its path once the root's router was asked for."""
    service = Tree("root", ServiceDict({"a": Tree("a", Leaf()), "b": ServiceDict({"c": Leaf("c")})}))
    router = service.router
    paths = ["left", "left/a", "left/a/left", "left/b", "left/b/c"]
    for path in paths:
        found = router.find(path)
        assert found.router.path == path
        assert found.router.root is router
    assert (router.path, router.root) == ("", router)


def test_adopt_attaches_what_was_set_later() -> None:
    """Services that were set after the routers were made have a path after adopting, all the way down."""
    service = Tree("root", ServiceDict())
    assert service.router.path == ""
    low, high = Leaf("low"), Tree("high")
    service.left.dict["low"] = low
    service.right = high
    high.left = ServiceDict({"deep": Leaf("deep")})
    assert low.router.root is low.router
    service.router.adopt()
    assert low.router.path == "left/low"
    assert high.left.dict["deep"].router.path == "right/left/deep"


NAMES = ["left", "right"]


class TreeModel(RuleBasedStateMachine):
    """Whatever is put where, paths lead to what is there now, and back."""

    @initialize()
    def start(self) -> None:
        self.services: list[Any] = [ServiceDict(), Tree("1"), Tree("2"), ServiceDict(), Leaf("4")]
        self.root = self.services[0]

    def get(self, service: Any, name: str) -> Any:
        return service.dict.get(name) if isinstance(service, ServiceDict) else getattr(service, name, None)

    @rule(parent=st.integers(0, 3), name=st.sampled_from(NAMES), child=st.none() | st.integers(0, 4))
    def put(self, parent: int, name: str, child: int | None) -> None:
        """Put any service anywhere, also above itself; or take away what is there."""
        value = None if child is None else self.services[child]
        service = self.services[parent]
        if isinstance(service, ServiceDict):
            service.dict[name] = value
        else:
            setattr(service, name, value)

    @rule()
    def adopt(self) -> None:
        self.root.router.adopt()

    @rule(parent=st.integers(0, 3), name=st.sampled_from(NAMES), child=st.integers(0, 4))
    def attach(self, parent: int, name: str, child: int) -> None:
        """By hand too: it may be refused, and is only an offer where an attribute says something else."""
        with contextlib.suppress(ValueError):
            self.services[parent].router.set_sub_router(self.services[child].router, name)

    @rule(parent=st.integers(0, 3), name=st.sampled_from(NAMES))
    def detach(self, parent: int, name: str) -> None:
        self.services[parent].router.unset_sub_router(name)

    @rule(path=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
    def follow(self, path: list[str]) -> None:
        """A path leads to what it leads to in Python."""
        expected = self.root
        for name in path:
            expected = self.get(expected, name) if expected is not None else None
        if expected is None:
            assert_unreachable(self.root, "/".join(path), "/".join(path) + "/who")
        else:
            assert self.root.router.find("/".join(path)) is expected

    @invariant()
    def paths_lead_back(self) -> None:
        for service in self.services:
            router = service.router
            if router.path:
                assert router.root.find(router.path) is service
            else:
                assert router.root is router


TestTree = TreeModel.TestCase
TestTree.settings = settings(stateful_step_count=30, deadline=None)


def walk(service: Any, depth: int) -> Iterator[str]:
    """Yield all paths that exist below *service*, made from the names that it has in any way."""
    names = {*dir(service), *vars(service), *getattr(service, "dict", ())}
    for name in names:
        yield name
        value = getattr(service, "dict", {}).get(name) or vars(service).get(name)
        if depth and value is not None and hasattr(value, "__dict__"):
            yield from (f"{name}/{rest}" for rest in walk(value, depth - 1))


def test_all_names_of_a_tree_are_tried() -> None:
    """Of all names in a tree of services, as deep as they go, exactly the exposed ones can be called."""
    service = Tree("root", Everything(), ServiceDict({"leaf": Leaf(), "f": expose(lambda: 1)}))
    service.spare = Leaf()  # type: ignore[attr-defined]  # not mounted
    called = set()
    for path in set(walk(service, 3)):
        with contextlib.suppress(RoutingError):
            if callable(service.router.resolve(path)):
                called.add(path)
    everything = {
        *(
            "alias",
            "own_lambda",
            "partial",
            "object",
            "in_slot",
            "Class",
            "method",
            "coroutine",
            "static_inner",
        ),
        *(
            "static_outer",
            "class_method",
            "inherited",
            "overridden",
            "wrapped",
            "cached_outer",
            "cached_inner",
        ),
        *("__call__", "slotted", "twice_slotted", "class_lambda", "class_alias", "_private"),
    }
    assert called == {"who", "left", "right/f", "right/leaf/who"} | {f"left/{name}" for name in everything}


def test_what_is_just_being_restarted_says_so() -> None:
    """A name that will come back leads to an error of its own, also below it; and no other name does."""
    services = ServiceDict()
    services.restarting.add("0")
    for path in ("0", "0/step", "0/sub/step"):
        with pytest.raises(AgentRestartingError, match="agent '0' is just being restarted"):
            services.router.resolve(path)
    with pytest.raises(RoutingError, match="'1' not found"):
        services.router.resolve("1/step")
    services.dict["0"] = len  # whatever is there counts
    services.restarting.discard("0")
    with pytest.raises(RoutingError) as caught:
        services.router.resolve("0/step")
    assert not isinstance(caught.value, AgentRestartingError)
