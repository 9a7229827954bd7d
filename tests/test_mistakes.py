"""What newcomers get wrong with resources, and what they are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Transport

from aiomas_ng import JSON, Agent, Container, channel, deadlines, directory, error, state
from aiomas_ng.channel import Limits
from aiomas_ng.exceptions import AddressError
from aiomas_ng.message import PUT, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource, Site


class Large(Resource):
    """A resource with a large body."""

    body = bytes(range(256)) * 400

    def render_get(self, request: Message) -> Message:
        return Message(payload=self.body)

    def render_put(self, request: Message) -> Message:
        self.body = request.payload
        return Message()


def large_site() -> Site:
    """Return a site with a large resource at ``/large``."""
    site = Site()
    site.add_resource(["large"], Large())
    return site


async def test_other_codec_is_named_and_ends_the_connection(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """Two sides with different codecs do not complain to each other for ever; the error names the cause."""
    async with (
        await Context.create_client_context(codec=JSON) as client,
        await Context.create_server_context(large_site(), transport.address()) as server,
    ):
        with pytest.raises(error.NetworkError, match="same codec"):
            await client.get(server.urls[0] + "large")
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) < 5


async def test_small_frames_get_small_blocks(transport: Transport) -> None:
    """Who has small frames asks for blocks that fit into them, and can read large bodies."""
    async with (
        await Context.create_client_context(limits=Limits(frame_size=3000)) as client,
        await Context.create_server_context(large_site(), transport.address()) as server,
    ):
        url = server.urls[0] + "large"
        assert await client.get(url) == Large.body
        await client.put(url, Large.body[::-1])
        assert await client.get(url) == Large.body[::-1]


async def test_cache_must_be_one() -> None:
    """Anything else is refused, and the context works on without."""
    async with await Context.create_client_context() as context:
        for nonsense in (True, {}, 5):
            with pytest.raises(TypeError, match="cache must be a Cache"):
                context.cache = nonsense  # type: ignore[assignment]
        assert context.cache is None


async def test_site_must_be_an_instance() -> None:
    """The class of a site is no site."""
    with pytest.raises(TypeError, match=r"Site\(\)"):
        await Context.create_server_context(Site, ("127.0.0.1", 0))  # type: ignore[arg-type]


async def test_observation_that_has_ended_cannot_be_entered_again(transport: Transport) -> None:
    """It would be empty without a word."""

    class Sensor(Agent):
        @state
        def value(self) -> int:
            return 1

    container = await Container.create(transport.address(), as_coro=True)
    states = container.context.observe(Sensor(container).value.url)
    async with states:
        assert await anext(states) == 1
    with pytest.raises(error.PipeStateError, match="again"):
        await states.__aenter__()
    await container.shutdown(as_coro=True)


async def test_wrong_arguments_are_named(transport: Transport) -> None:
    """Lists in place of URLs, agents in place of addresses, containers in place of contexts."""
    container = await Container.create(transport.address(), as_coro=True)
    agent = directory.Directory(container)
    context: Any = container.context
    with pytest.raises(TypeError, match=r"discover\(url, url\)"):
        await context.discover([agent.addr])
    with pytest.raises(AddressError, match="must be a string"):
        await directory.register(container, agent)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Container"):
        await directory.register(context, agent.addr)
    with pytest.raises(AddressError, match="must be a string"):
        await directory.lookup(context, agent)  # type: ignore[arg-type]
    await container.shutdown(as_coro=True)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"max_age": -1}, ValueError, "max_age"),
        ({"max_age": 2**32}, ValueError, "max_age"),
        ({"max_age": "60"}, ValueError, "max_age"),
        ({"ct": "json"}, TypeError, "ContentFormat.JSON"),
        ({"ct": []}, TypeError, "ContentFormat.JSON"),
        ({"ct": 65536}, TypeError, "ContentFormat.JSON"),
    ],
    ids=str,
)
def test_wrong_options_of_a_state(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    """They are named where the state is declared, and not when somebody reads it."""
    with pytest.raises(kind, match=text):
        state(**options)(lambda self: 1)


def test_generator_is_no_state() -> None:
    """A state is one value."""

    def values(self: Any) -> Any:
        yield 1

    async def later_values(self: Any) -> Any:
        yield 1

    for getter in (values, later_values):
        with pytest.raises(TypeError, match="yields"):
            state(getter)


@pytest.mark.parametrize("name", ["addr", "container", "on_ready", "on_stop", "router"])
def test_state_cannot_take_the_name_of_what_agents_have(name: str) -> None:
    """The class is refused, and told another way."""

    def declare() -> None:
        type("Wrong", (Agent,), {name: make_state(name)})

    with pytest.raises(TypeError, match=f"path='{name}'"):
        declare()


def make_state(name: str) -> Any:
    """Return a state of that name."""

    def getter(self: Any) -> int:
        return 1

    getter.__name__ = name
    return state(getter)


def test_typo_in_an_option_is_explained() -> None:
    """An unknown option is told from a known one that is meant."""
    make: Callable[..., Message] = Message
    with pytest.raises(AttributeError, match="uri_path"):
        make(PUT, uri_pat=["a"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"limits": 5}, r"limits must be Limits, as in Limits\(calls=100\), but is 5"),
        ({"liveness": 5}, r"liveness must be Liveness, as in Liveness\(interval=5\), or None, but is 5"),
    ],
    ids=repr,
)
async def test_wrong_figures_are_named(options: dict[str, Any], text: str) -> None:
    """What is no set of limits, or no figures of liveness, is refused before anything is opened."""
    with pytest.raises(TypeError, match=text):
        await Container.create(("127.0.0.1", 0), as_coro=True, **options)
    with pytest.raises(TypeError, match=text):
        await channel.open_connection(("127.0.0.1", 1), **options)
    with pytest.raises(TypeError, match=text):
        await channel.start_server(("127.0.0.1", 0), print, **options)


def test_deadline_must_be_a_number() -> None:
    """A deadline of some other type is refused with what it is."""
    with pytest.raises(TypeError, match="a deadline must be a number of seconds but is '5'"):
        deadlines.within("5")  # type: ignore[arg-type]
