"""From a path to the function behind it, and from a service to its path.

Rules:

- A path is a list of names joined by ``/``: sub-services first, the function last.
- A function is reachable if it is marked by :func:`expose`, a sub-service if it is an entry of a
  :class:`ServiceDict`, was named to its parent's :class:`Service`, or was attached by
  :meth:`Router.set_sub_router`. Nothing else is, whatever names a peer tries.
- Looking up a name runs none of the user's code: properties and ``__getattr__`` are not asked.
- Nothing is remembered, so what is removed or replaced is gone at once.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, TypeVar, overload

from aiomas_ng.exceptions import NotExposedError, RoutingError

__all__ = ["Router", "Service", "ServiceDict", "expose", "is_rpc_service"]

F = TypeVar("F", bound=Callable[..., Any])

_MISSING: Final = object()


def expose(func: F) -> F:
    """Mark *func* as callable by a peer and return it; usable as a decorator.

    Nothing is wrapped: the function gains the attribute ``__rpc__`` with the value ``True``.

    Raises:
        ValueError: *func* is not callable.
    """
    if not callable(func):
        raise ValueError(f"only a callable can be exposed, not {func!r}")
    func.__rpc__ = True  # type: ignore[attr-defined]  # the mark that programs rely on
    return func


class Router:
    """A node in the tree of services: finds what its object *obj* and the services below offer.

    Args:
        obj: The object whose functions are served.
        sub_names: Attributes of *obj* that hold sub-services.  They may be ``None`` first and be set later.
    """

    __slots__ = ("_children", "_sub_names", "name", "obj", "parent")

    def __init__(self, obj: Any, sub_names: Iterable[str] = ()) -> None:
        self.obj = obj  #: The object that this router belongs to.
        self.name = ""  #: The router's name within its parent, ``""`` for a root.
        self.parent: Router | None = None  #: The parent router, ``None`` for a root.
        self._sub_names = tuple(sub_names)
        self._children: dict[str, Router] | None = None  # made when needed: most agents have none

    expose = staticmethod(expose)

    def __repr__(self) -> str:
        return f"<Router {self.path!r} of {self.obj!r}>"

    @property
    def path(self) -> str:
        """The path from the root to this router, without a slash at its ends; ``""`` for a root."""
        parts = []
        router = self
        while router.parent is not None:
            parts.append(router.name)
            router = router.parent
        return "/".join(reversed(parts))

    @property
    def root(self) -> Router:
        """The root of the tree that this router is part of."""
        router = self
        while router.parent is not None:
            router = router.parent
        return router

    def resolve(self, path: str) -> Any:
        """Return what *path* leads to: a function, or a service.

        Raises:
            RoutingError: The path leads nowhere; says up to where it could be followed.
            NotExposedError: It leads to something that is not exposed.
        """
        if not isinstance(path, str):
            raise RoutingError(f"a path must be a string but is {path!r}")
        router = self
        *services, last = path.split("/")
        for name in services:
            child = router._find_child(name)
            if child is None:
                raise router._explain(name)
            router = child
        return router._find_function(last)

    def add(self, name: str) -> None:
        """Attach the service that is the attribute *name* of :attr:`obj`; short for
        :meth:`set_sub_router`."""
        self.set_sub_router(getattr(self.obj, name).router, name)

    def set_sub_router(self, router: Router, name: str) -> None:
        """Attach *router* as the sub-service *name*.

        Raises:
            ValueError: It is no router, has a parent already, or would become its own ancestor.
        """
        if not isinstance(router, Router):
            raise ValueError(f"{router!r} is not a valid router")
        if router.parent is not None:
            raise ValueError(f"{router.obj!r} is already a sub-service of {router.parent.obj!r}")
        if self.root is router:
            raise ValueError(f"{router.obj!r} cannot be a sub-service of its own sub-service")
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
        for name in self.obj.dict if isinstance(self.obj, ServiceDict) else self._sub_names:
            child = self._find_child(name)
            if child is not None:
                child.adopt()

    def _find_child(self, name: str) -> Router | None:
        """Return the router of the sub-service *name*, attaching it if that was not done yet."""
        obj = self.obj
        if isinstance(obj, ServiceDict):
            service = obj.dict.get(name)
        elif name in self._sub_names:
            service = getattr(obj, name, None)
        else:
            return self._children.get(name) if self._children else None
        router = getattr(service, "router", None) if service is not None else None
        if not isinstance(router, Router):
            return self._children.get(name) if self._children and service is None else None
        if router.parent is None and self.root is not router:
            self.unset_sub_router(name)
            self.set_sub_router(router, name)
        return router

    def _find_function(self, name: str) -> Any:
        value = _look_up(self.obj, name)
        if value is not _MISSING and getattr(value, "__rpc__", None) is True and callable(value):
            return value
        child = self._find_child(name)
        if child is not None:
            return child.obj
        raise self._explain(name)

    def _explain(self, name: str) -> RoutingError:
        """Say why *name* cannot be reached here."""
        where = self.path or "the root service"
        if isinstance(self.obj, ServiceDict):
            is_there = name in self.obj.dict
        else:
            is_there = _look_up(self.obj, name) is not _MISSING or hasattr(type(self.obj), name)
        if is_there and name in self._sub_names:
            return RoutingError(f"sub-service {name!r} of {where} is not set")
        if is_there:
            cls = type(self.obj)
            return NotExposedError(
                f"{cls.__module__}.{cls.__qualname__}.{name} ({name!r} in {where}) is not exposed"
            )
        return RoutingError(f"name {name!r} not found in {where}")


def _look_up(obj: Any, name: str) -> Any:
    """Return the attribute *name* of *obj* without running code of its class, or ``_MISSING``.

    Instance attributes come first, then functions (bound) and slots; properties are not evaluated.
    """
    if isinstance(obj, ServiceDict):
        return obj.dict.get(name, _MISSING)
    value = getattr(obj, "__dict__", {}).get(name, _MISSING)
    if value is not _MISSING:
        return value
    # On the class a property gives itself and a class method its bound form, none of them evaluated.
    value = getattr(type(obj) if not isinstance(obj, type) else obj, name, _MISSING)
    if value is _MISSING or isinstance(value, property):
        return _MISSING
    if isinstance(value, types.MemberDescriptorType) or getattr(value, "__rpc__", None) is True:
        return getattr(obj, name, _MISSING)
    return value


class Service:
    """Descriptor that gives every instance of a class its :class:`Router`; its name must be ``router``.

    The router is made when it is asked for first.

    Args:
        sub_routers: Names of the attributes that hold sub-services. An attribute may be ``None`` first and be
            set later.
    """

    def __init__(self, sub_routers: Iterable[str] = ()) -> None:
        self._sub_router_names = tuple(sub_routers)

    @overload
    def __get__(self, instance: None, cls: type) -> Service: ...
    @overload
    def __get__(self, instance: object, cls: type) -> Router: ...
    def __get__(self, instance: object | None, cls: type) -> Service | Router:
        if instance is None:
            return self
        attributes = instance.__dict__
        router = attributes.get("router")
        if router is None:
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
    """

    __rpc__: ClassVar[bool] = True

    def __init__(self, dict: dict[str, Any] | None = None) -> None:
        self.dict = {} if dict is None else dict  #: The wrapped dict.
        self.router = Router(self)  #: The dict's router.
        self.router.adopt()


def is_rpc_service(obj: Any) -> bool:
    """Return whether *obj* can be served: it has a :class:`Router` as its attribute ``router``."""
    return isinstance(getattr(obj, "router", None), Router)
