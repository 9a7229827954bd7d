"""Agents whose constructor fails."""

from __future__ import annotations

import abc
import asyncio
import inspect
from typing import Any

import pytest
from conftest import Transport

from aiomas_ng import Agent, Container, rpc
from aiomas_ng.exceptions import AgentNotFoundError


class Fragile(Agent):
    """Fails if it is told to, before or after it is registered."""

    def __init__(self, container: Container, fails: str = "", **kwds: Any) -> None:
        """Make one."""
        if fails == "before":
            raise ValueError(fails)
        super().__init__(container, **kwds)
        if fails == "after":
            raise ValueError(fails)
        if fails == "interrupt":
            raise KeyboardInterrupt

    def on_ready(self) -> None:
        raise AssertionError("the agent was not complete")

    on_stop = on_ready

    @rpc.expose
    def get_name(self) -> str:
        return str(self)


class Child(Fragile):
    """Has a constructor of its own."""

    def __init__(self, container: Container, fails: str = "", **kwds: Any) -> None:
        super().__init__(container, fails if fails != "child" else "", **kwds)
        if fails == "child":
            raise ValueError(fails)


class Heir(Child):
    """Has none."""


class Abstract(Fragile, abc.ABC):
    """Its class is of another kind."""


class Quiet(Agent):
    """Copes with what fails below it."""

    def __init__(self, container: Container) -> None:
        self.failure: Any = None
        try:
            self.prepare(container)
        except ValueError as error:
            self.failure = error

    def prepare(self, container: Container) -> None:
        super().__init__(container)
        raise ValueError("below")


class Coping(Fragile):
    """Copes with the constructor of its base."""

    def __init__(self, container: Container) -> None:
        try:
            super().__init__(container, "after")
        except ValueError:
            self.coped = True

    def on_ready(self) -> None:
        pass

    on_stop = on_ready


CASES = [
    (cls, fails)
    for cls in (Fragile, Child, Heir, Abstract)
    for fails in ("before", "after", "interrupt", "child")
    if fails != "child" or issubclass(cls, Child)
]


@pytest.mark.parametrize(("cls", "fails"), CASES)
async def test_failed_agent_is_forgotten(transport: Transport, cls: type[Fragile], fails: str) -> None:
    """Nothing of it can be reached, no hook of it runs, and its id is not given again."""
    one = await Container.create(transport.address(), as_coro=True)
    two = await Container.create(transport.address(), as_coro=True)
    with pytest.raises(KeyboardInterrupt if fails == "interrupt" else ValueError):
        cls(two, fails)
    with pytest.raises(KeyboardInterrupt if fails == "interrupt" else ValueError):
        cls(two, fails, aid="named")
    await asyncio.sleep(0)
    assert not two.agents.dict
    for aid in ("0", "named"):
        with pytest.raises(AgentNotFoundError):
            await one.connect(two._base_url + aid)
        with pytest.raises(AgentNotFoundError):
            two.get_site(aid)

    class Whole(Agent):
        pass

    agent = Whole(two)
    assert agent.addr == two._base_url + ("0" if fails == "before" else "1")
    await two._wait_ready(agent)
    await one.shutdown(as_coro=True)
    await two.shutdown(as_coro=True)


async def test_agent_that_copes_stays(transport: Transport) -> None:
    """A constructor that catches what those below it raise makes a whole agent."""
    container = await Container.create(transport.address(), as_coro=True)
    agents = [Quiet(container), Coping(container)]
    assert [container.agents.dict[str(number)] for number in range(2)] == agents
    assert isinstance(agents[0], Quiet)
    assert isinstance(agents[0].failure, ValueError)
    proxy = await container.connect(agents[1].addr)
    assert await proxy.get_name() == str(agents[1])
    await container.shutdown(as_coro=True)


def test_constructor_looks_as_before() -> None:
    """Tools see name, signature and documentation of the constructor as it was written."""
    assert str(inspect.signature(Fragile)).startswith("(container:")
    assert Fragile.__init__.__doc__ == "Make one."
    assert Fragile.__init__.__qualname__ == "Fragile.__init__"
