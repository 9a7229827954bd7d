"""What becomes of an agent whose constructor fails."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiomas_ng.agent import Agent, Container

__all__ = ["undo_if_construction_fails"]


def undo_if_construction_fails(cls: type[Agent]) -> None:
    """Let the container of an agent of class *cls* forget it if its ``__init__`` raises; its id is not given
    again.

    Of several constructors on the way up the outermost one counts: a subclass may cope with what those below
    it raise. The constructor is wrapped, because a metaclass would not get along with those of others.
    """
    init = cls.__dict__.get("__init__")
    if not isinstance(init, FunctionType):
        return

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwds: Any) -> None:
        try:
            init(self, *args, **kwds)
        except BaseException:
            if type(self).__init__ is __init__:
                _discard(self)
            raise

    cls.__init__ = __init__  # type: ignore[method-assign]  # that of this class and no other


def _discard(agent: Agent) -> None:
    container: Container | None = getattr(agent, "_Agent__container", None)
    aid = getattr(agent, "_Agent__addr", "").rpartition("/")[2]
    if container is None or container.agents.dict.get(aid) is not agent:
        return
    supervisor = container.supervisor
    if supervisor._is_making(agent):
        return  # it makes up for it
    container._forget(aid)
    if supervisor._has_tasks(agent):
        supervisor._keep(container.loop.create_task(supervisor._stop_tasks(agent)))
