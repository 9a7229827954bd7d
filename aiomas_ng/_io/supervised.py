"""What every agent has so that it can be supervised: the arguments that it was made with, and the tasks that
its class declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from aiomas_ng._core.restarts import Log, Policy
from aiomas_ng._io.background import check_policy

if TYPE_CHECKING:
    from aiomas_ng.agent import Agent

__all__ = ["Supervised", "background", "get_declared", "make_again"]

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])

MARK: Final = "__background__"


@overload
def background(func: F, /) -> F: ...
@overload
def background(*, on_failure: Policy | None = None) -> Callable[[F], F]: ...
def background(func: Any = None, /, *, on_failure: Policy | None = None) -> Any:
    """Mark a coroutine method of an agent as a task that runs as long as the agent lives.

    It is started without arguments when the agent's ``on_ready`` has ended, and cancelled before its
    ``on_stop``. Nothing is wrapped: the method can still be called. A subclass that overrides it marks its
    own, or has no such task.

    ::

        class Meter(Agent):
            @background(on_failure=RestartTask())
            async def poll(self):
                while True:
                    self.power = await self.device.read()
                    await self.container.clock.sleep(1)

    Args:
        func: The method.
        on_failure: What follows a failure, by default the agent's ``on_failure``.

    Raises:
        TypeError: *func* is no coroutine function, or *on_failure* no policy.
    """
    if on_failure is not None:
        check_policy(on_failure, "on_failure")

    def mark(func: Any) -> Any:
        if not inspect.iscoroutinefunction(func):
            raise TypeError(f"a background task must be a coroutine function (async def), not {func!r}")
        setattr(func, MARK, (on_failure,))
        return func

    return mark if func is None else mark(func)


def get_declared(cls: type[Supervised]) -> dict[str, Policy | None]:
    """Return the tasks that *cls* and its bases declare, by name, each with its policy, if it has one of its
    own."""
    return cls._Supervised__declared


def _find_declared(cls: type) -> dict[str, Policy | None]:
    attributes: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        attributes.update(vars(base))  # in a subclass the name may be something else
    return {name: getattr(value, MARK)[0] for name, value in attributes.items() if _is_marked(value)}


def _is_marked(value: Any) -> bool:
    return inspect.isfunction(value) and hasattr(value, MARK)


def make_again(agent: Supervised) -> Any:
    """Call the class of *agent* with the arguments that it was made with."""
    args, named = agent._Supervised__args, agent._Supervised__named
    count = len(named) // 2
    return type(agent)(*args, **dict(zip(named[:count], named[count:], strict=True)))


class _TasksOfAgent:
    """The tasks of an agent as its attribute, which a subclass or an instance may use for something else."""

    def __get__(self, agent: Agent | None, owner: type) -> Any:
        return self if agent is None else agent.container.supervisor._get_tasks(agent)


class _SignatureOfInit:
    """The signature of a class is that of its ``__init__``, also where ``__new__`` takes anything."""

    def __get__(self, instance: object | None, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]  # it is looked at, not called
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Supervised:
    """Base of :class:`~aiomas_ng.agent.Agent`."""

    __signature__ = _SignatureOfInit()

    #: What follows the failure of a background task that has no policy of its own, one of
    #: :mod:`aiomas_ng.supervision`; set by a class or an instance.
    on_failure: Any = Log()

    #: The agent's background tasks, :class:`~aiomas_ng.supervision.AgentTasks`; started by
    #: ``self.tasks.start(self.poll)``, or declared with :func:`~aiomas_ng.supervision.background`.
    tasks: Any = _TasksOfAgent()

    _Supervised__declared: dict[str, Policy | None] = {}  # noqa: RUF012  # each class has its own

    # What the agent was made with. There may be many agents, and a dict for each would be large: the names of
    # arguments, then their values.
    _Supervised__args: tuple[Any, ...] = ()
    _Supervised__named: tuple[Any, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        new: Any = super().__new__
        self: Self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        self._Supervised__args = args
        if kwargs:
            self._Supervised__named = (*kwargs, *kwargs.values())
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._Supervised__declared = _find_declared(cls)
        if cls._Supervised__declared:
            check_policy(cls.on_failure, f"{cls.__name__}.on_failure")
