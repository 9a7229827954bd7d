"""From a path to the function behind it, and from a service to its path.

Rules:

- A path is a list of names joined by ``/``: sub-services first, the function last.
- A function is reachable if it is marked by :func:`expose`, a sub-service if it is an entry of a
  :class:`ServiceDict`, was named to its parent's :class:`Service`, or was attached by
  :meth:`Router.set_sub_router`. Nothing else is, whatever names a peer tries.
- The mark counts on the function itself; nothing inherits it from its class.
- Looking up a name runs none of the user's code: properties, ``__getattr__`` and metaclasses are not asked.
  (Attributes that were named as sub-services are.)
- A caller who is named has to be let in by the rules on the way, from the root on (:mod:`aiomas_ng.access`).
  Each is asked before anything behind it is looked at, so that who is not let in learns nothing of that.
- Nothing is remembered, so what is removed or replaced is gone at once, in both directions: a service that
  was replaced has no path any more.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeGuard, TypeVar, overload

from aiomas_ng._core.access import AccessAttribute, Rule, check_rule, rule_of
from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import AgentRestartingError, NotExposedError, RoutingError

__all__ = ["Router", "Service", "ServiceDict", "expose", "is_rpc_service"]

F = TypeVar("F", bound=Callable[..., Any])

_MISSING: Final = object()


class Caller(Protocol):
    """Who calls, as far as rules are concerned."""

    def check(self, rules: Sequence[Rule | None], path: str) -> None:
        """Raise :exc:`~aiomas_ng.exceptions.AccessDeniedError` if one of *rules* does not let the caller in;
        the first of them is that of the root."""


class _Narrowed:
    """The mark of a function that not everybody may call."""

    __slots__ = ("rule",)

    def __init__(self, rule: Rule) -> None:
        self.rule = rule


_Mark = bool | _Narrowed | None


@overload
def expose(func: F, /) -> F: ...
@overload
def expose(*, allow: Rule | None) -> Callable[[F], F]: ...
def expose(func: Any = _MISSING, /, *, allow: Rule | None = None) -> Any:
    """Mark *func* as callable by a peer and return it; usable as a decorator.

    ::

        @expose
        def step(self): …

        @expose(allow=roles("operator"))
        def reset(self): …

    Nothing is wrapped: the function gains the attribute ``__rpc__``, with the value ``True`` if everybody may
    call it.

    Args:
        func: The function.
        allow: Who may call it, a rule of :mod:`aiomas_ng.access`. In a subclass that overrides the method,
            it has to be said again, as that it is exposed.

    Raises:
        ValueError: *func* is not callable.
        TypeError: *allow* is no rule.
    """
    check_rule(allow)
    if func is _MISSING:
        return lambda func: _mark(func, allow)
    return _mark(func, allow)


def _mark(func: F, allow: Rule | None) -> F:
    if not callable(func):
        raise ValueError(f"only a callable can be exposed, not {func!r}")
    mark = True if allow is None else _Narrowed(allow)
    func.__rpc__ = mark  # type: ignore[attr-defined]  # the mark that programs rely on
    return func


_get: Final = object.__getattribute__


class Router:
    """A node in the tree of services: finds what its object *obj* and the services below offer.

    Args:
        obj: The object whose functions are served.
        sub_names: Attributes of *obj* that hold sub-services.  They may be ``None`` first and be set later.
    """

    __slots__ = ("_children", "_is_adopting", "_sub_names", "access", "name", "obj", "parent")

    def __init__(self, obj: Any, sub_names: Iterable[str] = ()) -> None:
        self.obj = obj  #: The object that this router belongs to.
        self.name = ""  #: The router's name within its parent, ``""`` for a root.
        self.parent: Router | None = None  #: The parent router, ``None`` for a root.
        #: Who may reach what lies here and below, ``None`` for everybody. Set by the attribute ``access`` of
        #: the object, and can be set.
        self.access: Rule | None = _find_access(obj)
        self._sub_names = tuple(sub_names)
        self._is_adopting = False
        self._children: dict[str, Router] | None = None  # made when needed: most agents have none

    expose = staticmethod(expose)

    def __repr__(self) -> str:
        return f"<Router {self.path!r} of {self.obj!r}>"

    @property
    def path(self) -> str:
        """The path from the root to this router, without a slash at its ends; ``""`` for a root."""
        parts = []
        router = self
        while (parent := router._find_parent()) is not None:
            parts.append(router.name)
            router = parent
        return "/".join(reversed(parts))

    @property
    def root(self) -> Router:
        """The root of the tree that this router is part of."""
        router = self
        while (parent := router._find_parent()) is not None:
            router = parent
        return router

    def resolve(self, path: str, caller: Caller | None = None) -> Any:
        """Return what *path* leads to: a function, or a service (to be called only if it can be).

        Args:
            path: The path, from this router on.
            caller: Who wants to call it; ``None`` for us.

        Raises:
            RoutingError: The path leads nowhere; says up to where it could be followed.
            NotExposedError: It leads to something that is not exposed, such as the ``__call__`` of a service.
            AccessDeniedError: It is not for the *caller*.
        """
        # As nearly always: services that are attached, and still what is there, then a method that the class
        # itself defines.
        rules: tuple[Rule | None, ...] | None
        try:
            *names, last = path.split("/")
            router, obj, rules = self, self.obj, None if self.access is None else (self.access,)
            for name in names:
                child = router._children[name]  # type: ignore[index]  # a TypeError is caught
                entries = obj.dict if type(obj) is ServiceDict else _get(obj, "__dict__")
                obj = child.obj
                if entries[name] is not obj or child.parent is not router:
                    raise KeyError(name)
                router = child
                if child.access is not None:
                    rules = (*(rules or (None,)), child.access)
            cls = type(obj)
            function = cls.__dict__[last]
            if (
                type(function) is types.FunctionType
                and ((mark := function.__dict__["__rpc__"]) is True or type(mark) is _Narrowed)
                and last not in _get(obj, "__dict__")
                and not issubclass(cls, _NOT_PLAIN)
            ):
                if rules is None and mark is True:
                    return types.MethodType(function, obj)
                return _narrow(types.MethodType(function, obj), caller, rules, mark, path)
        except (AttributeError, KeyError, TypeError):
            pass
        found, rules = self._find(path, caller)
        if callable(found) and is_rpc_service(found):
            mark = _get_service_mark(found)
            if not mark:
                raise NotExposedError(f"service {path!r} cannot be called: its __call__ is not exposed")
            _admit(caller, rules, mark, path)
        return found

    def find(self, path: str, caller: Caller | None = None) -> Any:
        """Return what *path* leads to, as :meth:`resolve`, but not in order to call it."""
        return self._find(path, caller)[0]

    def _find(self, path: str, caller: Caller | None) -> tuple[Any, tuple[Rule | None, ...]]:
        """Return what *path* leads to, and the rules on the way, which let *caller* in."""
        if not isinstance(path, str):
            raise RoutingError(f"a path must be a string but is {short(path)}")
        router = self
        rules: tuple[Rule | None, ...] = (self.access,)
        _admit(caller, rules, True, path)
        *services, last = path.split("/")
        for name in services:
            child = router._find_child(name)
            if child is None:
                raise router._explain(name)
            router = child
            rules = (*rules, child.access)
            _admit(caller, rules, True, path)
        found, mark, access = router._find_function(last)
        rules = (*rules, access)
        _admit(caller, rules, mark, path)
        return found, rules

    def add(self, name: str) -> None:
        """Attach the service that is the attribute *name* of :attr:`obj`, and whatever the attribute is set
        to later; what is attached so already stays.

        Raises:
            ValueError: See :meth:`set_sub_router`.
        """
        router = getattr(self.obj, name).router
        if self._children is None or self._children.get(name) is not router:
            self.set_sub_router(router, name)
        if name not in self._sub_names:
            self._sub_names += (name,)

    def set_sub_router(self, router: Router, name: str) -> None:
        """Attach *router* as the sub-service *name*, in place of what was attached so before.

        Raises:
            ValueError: It is no router, has a parent already, or would become its own ancestor.
        """
        if not _is_router(router):
            raise ValueError(f"{router!r} is not a valid router")
        parent = router._find_parent()
        if parent is not None:
            raise ValueError(f"{router.obj!r} is already a sub-service of {parent.obj!r}")
        if self.root is router:
            raise ValueError(f"{router.obj!r} cannot be a sub-service of its own sub-service")
        if router.parent is not None:
            router.parent.unset_sub_router(router.name)
        self.unset_sub_router(name)
        router.name = name
        router.parent = self
        if self._children is None:
            self._children = {}
        self._children[name] = router

    def unset_sub_router(self, name: str) -> None:
        """Detach the sub-service *name*, so that it can be attached elsewhere. Without such a one nothing
        happens."""
        router = self._children.pop(name, None) if self._children else None
        if router is not None:
            router.name, router.parent = "", None

    def adopt(self) -> None:
        """Attach sub-services that were set after the router was made, all the way down."""
        self._is_adopting = True
        try:
            for name in list(self.obj.dict if isinstance(self.obj, ServiceDict) else self._sub_names):
                child = self._find_child(name)
                # Only down the tree: services may also refer to each other in circles.
                if child is not None and child.parent is self and child.name == name:
                    child.adopt()
        finally:
            self._is_adopting = False

    def _peek(self, name: str) -> Router | None:
        """Return the router of what is the sub-service *name* now, attached or not."""
        obj = self.obj
        if isinstance(obj, ServiceDict):
            service = obj.dict.get(name)
        elif name in self._sub_names:
            service = getattr(obj, name, None)
        else:
            return self._children.get(name) if self._children else None
        router = getattr(service, "router", None)
        return router if _is_router(router) else None

    def _find_parent(self) -> Router | None:
        """Return the parent, ``None`` also if it has something else under our name by now."""
        parent = self.parent
        return parent if parent is not None and parent._peek(self.name) is self else None

    def _find_child(self, name: str) -> Router | None:
        """Return the router of the sub-service *name*, attaching it if that was not done yet."""
        router = self._peek(name)
        if router is None:
            self.unset_sub_router(name)  # it was there once
        elif router.parent is not self or router.name != name:
            self.unset_sub_router(name)
            # Who is adopting just now, further up, is to become our ancestor and not our child.
            if router._find_parent() is None and not router._is_adopting and self.root is not router:
                self.set_sub_router(router, name)
        return router

    def _find_function(self, name: str) -> tuple[Any, _Mark, Rule | None]:
        """Return a function and its mark, or a service and its rule."""
        obj = self.obj
        value, is_of_class = _look_up(obj, name)
        mark = _get_mark(value) if value is not _MISSING else None
        if mark:
            if is_of_class:
                value = getattr(self.obj, name)  # binds it
            if callable(value):
                # What is a service as well is narrowed by that, too.
                child = self._find_child(name)
                return value, mark, child.access if child is not None else None
        child = self._find_child(name)
        if child is not None:
            return child.obj, True, child.access
        raise self._explain(name)

    def _explain(self, name: str) -> RoutingError:
        """Say why *name* cannot be reached here."""
        where = self.path or "the root service"
        if isinstance(self.obj, ServiceDict) and name in self.obj.restarting:
            return AgentRestartingError(name)
        if _look_up(self.obj, name)[0] is _MISSING:
            return RoutingError(f"name {name!r} not found in {where}")
        if name in self._sub_names:
            return RoutingError(f"sub-service {name!r} of {where} is not set")
        cls = type(self.obj)
        return NotExposedError(
            f"{cls.__module__}.{cls.__qualname__}.{name} ({name!r} in {where}) is not exposed"
        )


def _admit(caller: Caller | None, rules: tuple[Rule | None, ...], mark: _Mark, path: str) -> None:
    """Let *rules*, and that of a function with *mark*, decide on *caller*."""
    if caller is not None:
        caller.check((*rules, mark.rule) if isinstance(mark, _Narrowed) else rules, path)


def _narrow(
    method: Any, caller: Caller | None, rules: tuple[Rule | None, ...] | None, mark: _Mark, path: str
) -> Any:
    """Return *method* if *caller* is let in."""
    _admit(caller, rules or (None,), mark, path)
    return method


def _find_access(obj: Any) -> Rule | None:
    """Return the rule that is the attribute ``access`` of *obj*, or of its class."""
    attributes = {} if isinstance(obj, type) else _attributes(obj)
    if "access" in attributes:
        return rule_of(attributes["access"])
    return rule_of(_look_up_in_class(obj if isinstance(obj, type) else type(obj), "access"))


def _is_router(obj: Any) -> TypeGuard[Router]:
    return issubclass(type(obj), Router)  # a mock of one lies about its class


def _look_up(obj: Any, name: str) -> tuple[Any, bool]:
    """Return the attribute *name* of *obj* as it is stored, and whether its class stores it.

    ``_MISSING`` if there is none. Instance attributes come first, slots count as such.
    """
    if isinstance(obj, ServiceDict):
        return obj.dict.get(name, _MISSING), False
    is_class = isinstance(obj, type)
    attributes = {} if is_class else _attributes(obj)
    if name in attributes:
        return attributes[name], False
    value = _look_up_in_class(obj if is_class else type(obj), name)
    if isinstance(value, types.MemberDescriptorType) and not is_class:
        try:
            return value.__get__(obj), False
        except AttributeError:  # the slot is empty
            return _MISSING, False
    return value, value is not _MISSING


def _look_up_in_class(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return _MISSING


def _attributes(obj: Any) -> Any:
    """Return the ``__dict__`` of *obj* without asking its class, empty if it has none."""
    try:
        return object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return {}


def _get_mark(value: Any) -> _Mark:
    """Return the mark of *value* itself, or of the function that it wraps or binds, by :func:`expose`."""
    if type(value) is types.FunctionType:
        return _as_mark(value.__dict__.get("__rpc__"))
    if type(value) is types.MethodType:
        return _get_mark(value.__func__)
    mark = _as_mark(_attributes(value).get("__rpc__"))
    if mark:
        return mark
    # Static and class methods, and the wrappers of extension modules, which pretend to be what they wrap.
    wrapped = _look_up_in_class(type(value), "__wrapped__")
    if isinstance(wrapped, types.MemberDescriptorType | types.GetSetDescriptorType):
        with contextlib.suppress(AttributeError):  # it was never set
            return _get_mark(wrapped.__get__(value))
    return None


def _as_mark(value: Any) -> _Mark:
    return value if value is True or type(value) is _Narrowed else None


def _get_service_mark(obj: Any) -> _Mark:
    """Return the mark of a service that is called itself."""
    return _get_mark(obj) or _get_mark(_look_up_in_class(type(obj), "__call__"))


class Service:
    """Descriptor that gives every instance of a class its :class:`Router`; its name must be ``router``.

    The router is made when it is asked for first.

    Args:
        sub_routers: Names of the attributes that hold sub-services. An attribute may be ``None`` first and be
            set later.
        access: Who may reach the service and what is below, a rule of :mod:`aiomas_ng.access`. It is what
            the class then has as its attribute ``access``.

    Raises:
        TypeError: *access* is no rule.
    """

    def __init__(self, sub_routers: Iterable[str] = (), *, access: Rule | None = None) -> None:
        if isinstance(sub_routers, str):
            raise TypeError(f"the names of sub-services must be a list of strings: [{sub_routers!r}]")
        check_rule(access)
        self._sub_router_names = tuple(sub_routers)
        self._access = access

    def __set_name__(self, owner: type, name: str) -> None:
        # So that `service.access = …` works at any time; what a class has of that name stays.
        if self._access is not None:
            if "access" in vars(owner):
                raise TypeError(
                    f"{owner.__qualname__} says 'access' twice, as an attribute and for its router"
                )
            owner.access = self._access  # type: ignore[attr-defined]  # it is what this makes
        elif _look_up_in_class(owner, "access") is _MISSING:
            owner.access = AccessAttribute()  # type: ignore[attr-defined]  # likewise

    @overload
    def __get__(self, instance: None, cls: type) -> Service: ...
    @overload
    def __get__(self, instance: object, cls: type) -> Router: ...
    def __get__(self, instance: object | None, cls: type) -> Service | Router:
        if instance is None:
            return self
        attributes = instance.__dict__
        router = attributes.get("router")
        if router is None or router.obj is not instance:  # a copy of another instance brings that one's
            router = attributes["router"] = Router(instance, self._sub_router_names)
            router.adopt()
        return router

    def __set__(self, instance: object, value: Any) -> None:
        raise AttributeError("the router of a service cannot be replaced")

    expose = staticmethod(expose)


class ServiceDict:
    """A dict of functions and services as a service; an empty one is valid, entries come and go at run time.

    Args:
        dict: The dict to wrap, kept as it is.
        access: Who may reach what is in it, a rule of :mod:`aiomas_ng.access`; it can be set later as well.
    """

    access = AccessAttribute()

    def __init__(self, dict: dict[str, Any] | None = None, *, access: Rule | None = None) -> None:
        self.dict = {} if dict is None else dict  #: The wrapped dict.
        self.restarting: set[str] = set()  #: Names of entries that are missing now, but will come back.
        if access is not None:
            self.access = access
        self.router = Router(self)  #: The dict's router.
        self.router.adopt()


#: What has more than its class to offer.
_NOT_PLAIN: Final = (type, ServiceDict)


def is_rpc_service(obj: Any) -> bool:
    """Return whether *obj* can be served: it has a :class:`Router` as its attribute ``router``."""
    return _is_router(getattr(obj, "router", None))
