"""Resources that are declared on the class of an agent: a method gives the state, others change it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from aiomas_ng._coap.admission import get_principal, is_listed
from aiomas_ng._coap.site import as_path
from aiomas_ng._core.access import Rule, check_rule
from aiomas_ng.content import CODABLE, Coder, media_type_of
from aiomas_ng.error import BadRequest, NotFound, UnsupportedContentFormat
from aiomas_ng.exceptions import DeserializationError, SerializationError
from aiomas_ng.linkformat import Link, LinkFormat, quote_path
from aiomas_ng.message import Code, ContentFormat, Message
from aiomas_ng.resource import ObservableResource, Resource, hashing_etag, negotiate

if TYPE_CHECKING:
    from aiomas_ng.agent import Agent
    from aiomas_ng.pipe import Pipe

__all__ = ["BoundState", "State", "describe_states", "get_states", "make_resource", "state"]

#: Attributes of all agents, which no state can take the place of.
RESERVED: Final = ("addr", "container", "on_ready", "on_stop", "router")

F = TypeVar("F", bound=Callable[..., Any])

#: What a string, and what bytes are offered as.
TEXT_FORMATS: Final = (ContentFormat.TEXT, *CODABLE)
BYTES_FORMATS: Final = (ContentFormat.OCTET_STREAM,)

#: What is taken where nothing else was declared.
TAKEN_FORMATS: Final = (ContentFormat.OCTET_STREAM, *TEXT_FORMATS)


@overload
def state(getter: Callable[..., Any], /) -> State: ...
@overload
def state(
    *,
    path: str | None = None,
    rt: str | None = None,
    if_: str | None = None,
    ct: int | Iterable[int] | None = None,
    title: str | None = None,
    observable: bool = True,
    max_age: int | None = None,
    access: Rule | None = None,
    write_access: Rule | None = None,
) -> Callable[[Callable[..., Any]], State]: ...
def state(
    getter: Callable[..., Any] | None = None,
    /,
    *,
    path: str | None = None,
    rt: str | None = None,
    if_: str | None = None,
    ct: int | Iterable[int] | None = None,
    title: str | None = None,
    observable: bool = True,
    max_age: int | None = None,
    access: Rule | None = None,
    write_access: Rule | None = None,
) -> Any:
    """Offer what a method of an agent returns as a resource below the agent's address.

    ::

        class Battery(Agent):
            @state(rt="energy.soc")
            def soc(self):
                return self._energy / self._capacity

            @soc.setter
            def set_soc(self, value):
                self._energy = value * self._capacity

            def charge(self, energy):
                self._energy += energy
                self.soc.changed()

    The method can still be called, ``self.soc()``. Methods are plain or ``async`` functions. They return a
    value, which is encoded in the content format asked for, or a :class:`~aiomas_ng.message.Message`; they
    raise an error of :mod:`aiomas_ng.error` to say no.

    Args:
        getter: The method; it has no arguments.
        path: Path below the agent's address, by default the method's name.
        rt: Resource type, by which it can be discovered: one or several, separated by spaces.
        if_: Interface description, likewise.
        ct: Content formats offered and taken, the first one by default. Without it, offered are: octets for
            bytes, text for strings, and JSON, MsgPack and (if ``cbor2`` is installed) CBOR for everything but
            bytes; all of these are taken.
        title: What it is, for people.
        observable: Whether it can be observed. Who observes is notified after ``self.soc.changed()``, and
            after each request that has changed it.
        max_age: Seconds for which a state may be cached, by default 60; 0 for never.
        access: Who may reach it, a rule of :mod:`aiomas_ng.access`; by default everybody.
        write_access: Who may, besides, do anything else than read it.
    """

    def decorate(getter: Callable[..., Any]) -> State:
        if not callable(getter):
            raise TypeError(f"state decorates a method, not {getter!r}")
        if inspect.isasyncgenfunction(getter) or inspect.isgeneratorfunction(getter):
            raise TypeError(f"{getter.__qualname__} yields, but a state is one value: return it")
        _check_max_age(max_age)
        formats = _as_formats(ct)
        declaration = State(getter, path, rt, if_, formats, title, observable, max_age)
        declaration.access, declaration.write_access = access, write_access
        return declaration

    check_rule(access)
    check_rule(write_access)

    return decorate if getter is None else decorate(getter)


def _check_max_age(max_age: Any) -> None:
    if max_age is not None and (not isinstance(max_age, int) or not 0 <= max_age < 2**32):
        raise ValueError(f"max_age must be an integer from 0 to {2**32 - 1} (seconds) but is {max_age!r}")


def _as_formats(ct: Any) -> tuple[int, ...] | None:
    if ct is None:
        return None
    formats = (ct,) if isinstance(ct, int) else tuple(ct)
    if not formats or not all(isinstance(number, int) and 0 <= number <= 0xFFFF for number in formats):
        raise TypeError(f"ct must be a content format, as ContentFormat.JSON, or several, but is {ct!r}")
    return tuple(map(int, formats))


class State:
    """What :func:`state` makes of a method: the declaration of a resource.

    On an instance it is a :class:`BoundState`.
    """

    def __init__(
        self,
        getter: Callable[..., Any],
        path: str | None,
        rt: str | None,
        if_: str | None,
        ct: tuple[int, ...] | None,
        title: str | None,
        is_observable: bool,
        max_age: int | None,
    ) -> None:
        self.getter = getter
        self.name: str = getter.__name__
        self.segments = as_path(self.name if path is None else path)
        self.rt = rt
        self.if_ = if_
        self.ct = ct
        self.title = title
        self.is_observable = is_observable
        self.max_age = max_age
        self.access: Rule | None = None
        self.write_access: Rule | None = None
        self.set: Callable[..., Any] | None = None
        self.process: Callable[..., Any] | None = None
        self.remove: Callable[..., Any] | None = None
        self.__doc__ = getter.__doc__
        self._owner = ""  # name of the class that it belongs to, as soon as that is complete

    def __repr__(self) -> str:
        return f"<State {self.path!r}, from {self.getter.__qualname__}>"

    @property
    def path(self) -> str:
        """The path below the agent's address, as part of a URL."""
        return quote_path(self.segments)

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner.__name__

    def setter(self, func: F) -> F:
        """Let *func*, a method with one argument, take the values that are PUT."""
        return self._register("set", func)

    def post(self, func: F) -> F:
        """Let *func*, a method with one argument, process the values that are POSTed.

        Where there is none it gets ``None``. What it returns is the answer.
        """
        return self._register("process", func)

    def deleter(self, func: F) -> F:
        """Let *func*, a method without arguments, do what DELETE asks for."""
        return self._register("remove", func)

    def _register(self, role: str, func: F) -> F:
        declaration = self
        if self._owner:
            # A subclass extends what it inherits, which must stay as it is for the others; as with a
            # property.
            if func.__name__ != self.name:
                raise TypeError(
                    f"{self!r} belongs to {self._owner}: in a subclass, a method that extends it must "
                    f"have its name, {self.name!r}"
                )
            declaration = copy.copy(self)
            declaration._owner = ""
        setattr(declaration, role, func)
        # Of the same name, as with a property, it must not replace the declaration.
        return declaration if func.__name__ == self.name else func  # type: ignore[return-value]  # nobody calls it

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> BoundState: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else BoundState(self, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(f"{self!r} cannot be replaced; set what its method returns, and call changed()")


def bind(func: Callable[..., Any], agent: Agent) -> Callable[..., Any]:
    """Return *func* as a method of *agent*; that of a subclass, if it has overridden it."""
    name = getattr(func, "__name__", "")
    for base in type(agent).__mro__:
        if vars(base).get(name) is func:
            method: Callable[..., Any] = getattr(agent, name)
            return method
    return func.__get__(agent)  # type: ignore[no-any-return]  # what has no name of its own


class BoundState:
    """A declared resource of one agent.

    Args:
        declaration: What was declared.
        agent: Whose resource it is.
    """

    __slots__ = ("_agent", "_declaration")

    def __init__(self, declaration: State, agent: Agent) -> None:
        self._declaration = declaration
        self._agent = agent

    def __repr__(self) -> str:
        return f"<State {self.url!r}>"

    def __call__(self) -> Any:
        """Return what the method returns: the state, or a coroutine for it."""
        return self._declaration.getter(self._agent)

    @property
    def url(self) -> str:
        """Where the resource is."""
        base, _, aid = self._agent.addr.rpartition("/")
        return f"{base}/{quote_path((aid,))}/{self._declaration.path}"

    def changed(self) -> None:
        """Notify the observers: the state has changed. Without observers it does nothing."""
        self._agent.container._state_changed(self._agent, self._declaration.segments)


def get_states(cls: type) -> dict[tuple[str, ...], State]:
    """Return the resources that are declared on *cls* and its bases, by path.

    Raises:
        TypeError: Two of them have the same path, or one has the name of something that agents have.
    """
    names: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names.update(vars(base))  # in a subclass the name may be something else
    found: dict[tuple[str, ...], State] = {}
    for name, value in names.items():
        if isinstance(value, State) and name in RESERVED:
            raise TypeError(
                f"{cls.__name__}: a state cannot have the name {name!r}, which each agent uses for something "
                f"else; give the method another name, and the state path={name!r}"
            )
        if isinstance(value, State) and found.setdefault(value.segments, value) is not value:
            other = found[value.segments].name
            raise TypeError(
                f"{cls.__name__}: the states {other} and {name} have the same path, {value.path!r}"
            )
    return found


def describe_states(cls: type) -> LinkFormat:
    """Return links to the resources that are declared on *cls*, as seen at the agent's address."""
    return LinkFormat(
        Link(f"/{declaration.path}", **_describe(declaration))
        for declaration in get_states(cls).values()
        if is_listed(declaration.access)
    )


def _describe(declaration: State) -> dict[str, Any]:
    resource = (ObservableResource if declaration.is_observable else Resource)()
    _copy_description(resource, declaration)
    return resource.get_link_description()


def _copy_description(resource: Resource, declaration: State) -> None:
    resource.rt, resource.if_, resource.title = declaration.rt, declaration.if_, declaration.title
    resource.ct = declaration.ct
    resource.access, resource.write_access = declaration.access, declaration.write_access


def make_resource(declaration: State, agent: Agent, coder: Coder) -> Resource:
    """Return the resource of one agent for what was declared."""
    cls = ObservableStateResource if declaration.is_observable else StateResource
    return cls(declaration, agent, coder)


class StateResource(Resource):
    """Answers requests by the methods of an agent.

    Args:
        declaration: Which methods.
        agent: The agent.
        coder: Encodes and decodes values.
    """

    def __init__(self, declaration: State, agent: Agent, coder: Coder) -> None:
        self._declaration = declaration
        self._coder = coder
        _copy_description(self, declaration)
        self.serve(agent)

    def serve(self, agent: Agent) -> None:
        """Answer by the methods of *agent* from now on."""
        self._agent = agent
        declaration = self._declaration
        if declaration.set is not None:
            self.render_put = functools.partial(self._put, bind(declaration.set, agent))
        if declaration.process is not None:
            self.render_post = functools.partial(self._post, bind(declaration.process, agent))
        if declaration.remove is not None:
            self.render_delete = functools.partial(self._delete, bind(declaration.remove, agent))

    def get_observing_pipes(self) -> list[Pipe]:
        """Return the pipes of those who observe this and have got a first state."""
        return []

    async def render_get(self, request: Message) -> Message:
        """Return the state."""
        response = self._respond(request, Code.CONTENT, await self._get())
        if response.opt.max_age is None:
            response.opt.max_age = self._declaration.max_age
        hashing_etag(request, response)
        return response

    async def get_etags(self, request: Message) -> Sequence[bytes] | None:
        """Return the entity tags of the present state in all formats that it is offered in."""
        try:
            value = await self._get()
        except NotFound:
            return None
        tags: list[bytes] = []
        for content_format in self._get_offered(value):
            state = self._respond(Message(Code.GET, accept=content_format), Code.CONTENT, value)
            hashing_etag(request, state)
            tags += state.opt.etags
        return tags

    async def _get(self) -> Any:
        return await _wait_for(self._declaration.getter(self._agent))

    async def _put(self, setter: Callable[..., Any], request: Message) -> Message:
        result = await _wait_for(setter(self._decode(request)))
        self._changed()
        return self._respond(request, Code.CHANGED, result)

    async def _post(self, process: Callable[..., Any], request: Message) -> Message:
        has_value = request.payload or request.opt.content_format is not None
        result = await _wait_for(process(self._decode(request) if has_value else None))
        self._changed()
        return self._respond(request, Code.CHANGED, result)

    async def _delete(self, remove: Callable[..., Any], request: Message) -> Message:
        result = await _wait_for(remove())
        self._changed()
        return self._respond(request, Code.DELETED, result)

    def _changed(self) -> None:
        """The state may have changed."""

    def _decode(self, request: Message) -> Any:
        content_format = request.opt.content_format
        taken = self._declaration.ct or TAKEN_FORMATS
        if content_format is not None and content_format not in taken:
            names = ", ".join(f"{media_type_of(number)} ({int(number)})" for number in taken)
            raise UnsupportedContentFormat(f"content format {content_format} is not taken; what is: {names}")
        try:
            return self._coder.decode(request.payload, content_format)
        except DeserializationError as failure:
            raise BadRequest(str(failure)) from failure

    def _get_offered(self, value: Any) -> Sequence[int]:
        if isinstance(value, Message):
            return (0 if value.opt.content_format is None else value.opt.content_format,)
        if self._declaration.ct is not None:
            return self._declaration.ct
        if isinstance(value, bytes | bytearray | memoryview):
            return BYTES_FORMATS
        return TEXT_FORMATS if isinstance(value, str) else CODABLE

    def _respond(self, request: Message, code: Code, value: Any) -> Message:
        if isinstance(value, Message):
            return value.copy(code=code if value.code is None else value.code)  # the agent may keep its own
        if value is None and code != Code.CONTENT:
            return Message(code)
        content_format = negotiate(request, self._get_offered(value))
        try:
            payload, content_format = self._coder.encode(value, content_format)
        except SerializationError as failure:
            raise RuntimeError(f"{self._declaration!r} cannot be offered: {failure}") from failure
        return Message(code, payload, content_format=content_format)


async def _wait_for(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


class ObservableStateResource(StateResource, ObservableResource):
    """The same, observable."""

    # The methods do not see the request. But they may ask who calls.
    is_alike_for_all = True

    def get_observing_pipes(self) -> list[Pipe]:
        """Return the pipes of those who observe this and have got a first state."""
        members = self._observers.members if self._observers is not None else []
        return [observer.pipe for observer in members if observer.is_ready]

    def _get_audience(self, request: Message) -> Hashable:
        principal = get_principal(request)
        return super()._get_audience(request), principal and principal.identity

    def _changed(self) -> None:
        self.updated_state()
