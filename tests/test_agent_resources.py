"""Agents with resources: declared states, sites of agents and containers, access by URL, discovery."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from coap_contexts import Value
from conftest import Transport
from waiting import wait_until

import aiomas_ng
from aiomas_ng import Agent, Container, Message, error, expose, state
from aiomas_ng.agent import BoundState, State
from aiomas_ng.exceptions import AgentNotFoundError, RemoteException
from aiomas_ng.message import CHANGED, CONTENT, DELETE, GET, POST, PUT, Code, ContentFormat
from aiomas_ng.resource import Resource, Site

state_alias = state
"""For classes whose own ``state`` hides the decorator."""


class Battery(Agent):
    """An agent with states of every sort."""

    def __init__(self, container: Container, aid: str | None = None) -> None:
        super().__init__(container, aid=aid)
        self.energy = 0.5
        self.mode: str | None = "idle"
        self.orders: list[Any] = []

    @state(rt="energy.soc", if_="core.s", title="State of charge", max_age=5)
    def soc(self) -> float:
        """The state of charge."""
        return self.energy

    @soc.setter
    def set_soc(self, value: float) -> None:
        self.energy = value

    @state(rt="energy.mode")
    async def mode_of_work(self) -> str:
        await asyncio.sleep(0)
        if self.mode is None:
            raise error.NotFound("no mode")
        return self.mode

    @mode_of_work.setter
    async def mode_of_work(self, value: str) -> None:  # of the same name, as with a property
        await asyncio.sleep(0)
        self.mode = value

    @mode_of_work.deleter
    def forget(self) -> None:
        self.mode = None

    @state(path="orders/all", observable=False)
    def list_orders(self) -> list[Any]:
        return self.orders

    @list_orders.post
    async def order(self, value: Any) -> int:
        self.orders.append(value)
        return len(self.orders)

    def charge(self, energy: float) -> None:
        """Change the state by itself."""
        self.energy += energy
        self.soc.changed()


@contextlib.asynccontextmanager
async def containers(*addrs: Any, **kwds: Any) -> AsyncIterator[list[Container]]:
    """Make a container at each address and shut all of them down at the end."""
    made: list[Container] = []
    try:
        for addr in addrs:
            made.append(await Container.create(addr, as_coro=True, **kwds))
        yield made
    finally:
        for container in made:
            await container.shutdown(as_coro=True)


class Place:
    """An agent, and a container to ask it from."""

    def __init__(self, asking: Container, battery: Battery) -> None:
        self.container = battery.container
        self.battery = battery
        self.context = asking.context
        self.url = battery.addr


@contextlib.asynccontextmanager
async def place(transport: Transport, *, is_local: bool = False, **kwds: Any) -> AsyncIterator[Place]:
    """Give an agent, asked from its own container or from another one."""
    async with containers(transport.address(), transport.address(), **kwds) as (one, two):
        yield Place(one if is_local else two, Battery(one, "bat"))


async def ask(place: Place, code: Code, path: str, payload: bytes = b"", **options: Any) -> Message:
    """Send one request to the agent and return the response."""
    return await place.context.request(Message(code, payload, f"{place.url}/{path}", **options)).response


# -- Access ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_local", [False, True])
async def test_states_by_url(transport: Transport, is_local: bool) -> None:
    """Values are read, set, posted and deleted by URL, from the same container and from another one."""
    async with place(transport, is_local=is_local) as there:
        context, url, battery = there.context, there.url, there.battery
        assert await context.get(url + "/soc") == 0.5
        assert await context.put(url + "/soc", 0.75) is None
        assert (battery.energy, battery.soc()) == (0.75, 0.75)
        assert await context.get(url + "/mode_of_work") == "idle"
        await context.put(url + "/mode_of_work", "charging")
        assert await battery.mode_of_work() == "charging"
        await context.delete(url + "/mode_of_work")
        with pytest.raises(error.ResponseWrappingError, match="no mode"):
            await context.get(url + "/mode_of_work")
        assert await context.post(url + "/orders/all", {"kWh": 3}) == 1
        assert await context.post(url + "/orders/all") == 2
        assert await context.get(url + "/orders/all") == [{"kWh": 3}, None]


@pytest.mark.parametrize("is_local", [False, True])
async def test_observation_by_url(transport: Transport, is_local: bool) -> None:
    """Who observes gets the state after changed(), and after each request that has changed it."""
    async with place(transport, is_local=is_local) as there:
        async with there.context.observe(there.url + "/soc") as states:
            assert await anext(states) == 0.5
            there.battery.charge(0.25)
            assert await anext(states) == 0.75
            await there.context.put(there.url + "/soc", 0.125)
            assert await anext(states) == 0.125
        soc, _ = there.battery.site.find(("soc",))
        await wait_until(lambda: not soc.observation_count)
        there.battery.charge(1)  # nobody is told
        async with there.context.observe(there.url + "/mode_of_work") as modes:
            assert await anext(modes) == "idle"
            await there.context.put(there.url + "/mode_of_work", "busy")
            assert await anext(modes) == "busy"
            await there.context.delete(there.url + "/mode_of_work")
            with pytest.raises(error.ResponseWrappingError) as caught:
                await anext(modes)
            assert caught.value.code == Code.NOT_FOUND


async def test_post_notifies(transport: Transport) -> None:
    """A request that is processed may have changed the state, so observers get it."""

    class Counter(Agent):
        count = 0

        @state
        def number(self) -> int:
            return self.count

        @number.post
        def add(self, value: int) -> None:
            self.count += value

    async with containers(transport.address()) as (one,):
        counter = Counter(one)
        async with one.context.observe(counter.number.url) as states:
            assert await anext(states) == 0
            assert await one.context.post(counter.number.url, 3) is None
            assert await anext(states) == 3


async def test_state_that_cannot_be_observed(transport: Transport) -> None:
    """A state that says so is not observable: one response, and changed() does nothing."""
    async with place(transport) as there:
        async with there.context.observe(there.url + "/orders/all") as states:
            assert await anext(states) == []
            with pytest.raises(error.NotObservable):
                await anext(states)
        there.battery.list_orders.changed()


async def test_methods_that_are_not_offered(transport: Transport) -> None:
    """Only what was declared is offered; the response says what."""
    async with place(transport) as there:
        for code, path, offered in (
            (DELETE, "soc", b"GET, PUT"),
            (POST, "soc", b"GET, PUT"),
            (PUT, "orders/all", b"GET, POST"),
            (POST, "mode_of_work", b"GET, PUT, DELETE"),
        ):
            response = await ask(there, code, path)
            assert response.code == Code.METHOD_NOT_ALLOWED
            assert response.payload == b"offered: " + offered


@pytest.mark.parametrize("path", ["", "nothing", "soc/", "soc/x", "/soc", "orders"])
async def test_paths_that_do_not_exist(path: str) -> None:
    """What an agent does not have is 4.04."""
    async with place(Transport("tcp", None)) as there:  # type: ignore[arg-type]  # it needs no directory
        assert (await ask(there, GET, path)).code == Code.NOT_FOUND


async def test_agents_that_do_not_exist(transport: Transport) -> None:
    """Resources of an agent that does not exist are 4.04, also below ids that no agent can have."""
    async with place(transport) as there:
        base = there.url.removesuffix("bat")
        for path in ("other/soc", "bat", "", "%20/soc", "a%2Fb/soc", "ü/soc", "bat%00/soc"):
            response = await there.context.request(Message(GET, uri=base + path)).response
            assert response.code == Code.NOT_FOUND


async def test_agent_with_a_strange_id(transport: Transport) -> None:
    """The URL of a state leads to it, whatever characters the agent's id has."""
    async with containers(transport.address()) as (one,):
        for aid in ("grüße", "50%", "a&b=c", "x%41", ".well-known"):
            battery = Battery(one, aid)
            assert await one.context.get(battery.soc.url) == 0.5
            (link,) = await one.context.discover(battery.soc.url.removesuffix("/soc"), rt="energy.soc")
            assert await one.context.get(link.href) == 0.5


# -- Values and formats ----------------------------------------------------------------------------


class Shelf(Agent):
    """Gives back what was put."""

    value: Any = None

    @state
    def item(self) -> Any:
        return self.value

    @item.setter
    def set_item(self, value: Any) -> None:
        self.value = value

    @state(ct=[ContentFormat.TEXT, ContentFormat.JSON], path="text/or/json")
    def other(self) -> Any:
        return self.value

    @other.setter
    def set_other(self, value: Any) -> None:
        self.value = value


def as_lists(value: Any) -> Any:
    """Return *value* with lists in place of tuples, which MsgPack gives."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return list(map(as_lists, value)) if isinstance(value, list | tuple) else value


FORMATS = [
    ContentFormat.JSON,
    ContentFormat.MSGPACK,
    pytest.param(ContentFormat.CBOR, marks=pytest.mark.needs("cbor2")),
]


@pytest.mark.parametrize("content_format", FORMATS)
@pytest.mark.parametrize("value", [1, 2.5, True, None, "text", [1, [2]], {"a": {"b": []}}, {"__type__": 1}])
async def test_values_in_all_formats(content_format: int, value: Any) -> None:
    """A value of any kind arrives in each format, and is read in the one asked for."""
    async with containers(("127.0.0.1", 0)) as (one,):
        shelf = Shelf(one)
        await one.context.put(shelf.item.url, value, content_format=content_format)
        assert as_lists(shelf.value) == value
        assert as_lists(await one.context.get(shelf.item.url, accept=content_format)) == value
        response = await one.context.request(Message(GET, uri=shelf.item.url, accept=content_format)).response
        assert (response.code, response.opt.content_format) == (CONTENT, content_format)


@pytest.mark.parametrize(
    ("value", "content_format"),
    [("text", 0), (b"bytes", 42), (b"", 42), (bytearray(b"x"), 42), (1, 50), ([], 50), (None, 50)],
)
async def test_default_formats(value: Any, content_format: int) -> None:
    """Without a wish, strings are given as text, bytes as octets, and anything else as JSON."""
    async with containers(("127.0.0.1", 0)) as (one,):
        shelf = Shelf(one)
        shelf.value = value
        response = await one.context.request(Message(GET, uri=shelf.item.url)).response
        assert response.opt.content_format == content_format
        assert await one.context.get(shelf.item.url) == value


class Point:
    """A type of the application."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x


def point_serializer() -> tuple[Any, ...]:
    """Serialize points."""
    return Point, lambda point: point.x, Point


@pytest.mark.parametrize("content_format", [ContentFormat.JSON, ContentFormat.MSGPACK])
async def test_own_types(transport: Transport, content_format: int) -> None:
    """Types that the containers have serializers for travel in JSON and in MsgPack."""
    addrs = transport.address(), transport.address()
    async with containers(*addrs, extra_serializers=[point_serializer]) as (one, two):
        shelf = Shelf(one)
        await two.context.put(shelf.item.url, [Point(3)], content_format=content_format)
        assert list(shelf.value) == [Point(3)]
        assert list(await two.context.get(shelf.item.url, accept=content_format)) == [Point(3)]


async def test_formats_that_are_declared(transport: Transport) -> None:
    """Declared formats are given and taken, the first one by default; others are 4.06 and 4.15."""
    async with containers(transport.address()) as (one,):
        shelf = Shelf(one)
        context, url = one.context, shelf.other.url
        assert url.endswith("/text/or/json")
        await context.put(url, "0.5", content_format=0)
        assert shelf.value == "0.5"
        await context.put(url, 0.25, content_format=50)
        assert (await context.get(url), await context.get(url, accept=50)) == ("0.25", 0.25)
        for wrong in (60, 65000, 41, 9999):
            response = await context.request(Message(GET, uri=url, accept=wrong)).response
            assert response.code == Code.NOT_ACCEPTABLE
            response = await context.request(Message(PUT, b"x", url, content_format=wrong)).response
            assert response.code == Code.UNSUPPORTED_CONTENT_FORMAT
            assert b"what is: text/plain" in response.payload
        assert shelf.value == 0.25


@pytest.mark.parametrize("content_format", [40, 41, 112, 9999])
async def test_formats_that_are_taken_by_default(content_format: int) -> None:
    """What nobody would decode is not taken, unless it was declared."""
    async with containers(("127.0.0.1", 0)) as (one,):
        shelf = Shelf(one)
        message = Message(PUT, b"x", shelf.item.url, content_format=content_format)
        assert (await one.context.request(message).response).code == Code.UNSUPPORTED_CONTENT_FORMAT
        assert shelf.value is None


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[1]]"])
async def test_bodies_that_do_not_decode(payload: bytes) -> None:
    """A body that is not in its format is 4.00, and the setter is not called."""
    async with containers(("127.0.0.1", 0)) as (one,):
        shelf = Shelf(one)
        message = Message(PUT, payload, shelf.item.url, content_format=50)
        response = await one.context.request(message).response
        assert response.code == Code.BAD_REQUEST
        assert b"application/json" in response.payload
        assert shelf.value is None


async def test_body_without_a_format() -> None:
    """A body that does not say what it is arrives as bytes."""
    async with containers(("127.0.0.1", 0)) as (one,):
        shelf = Shelf(one)
        await one.context.request(Message(PUT, b"{}", shelf.item.url)).response_raising
        assert shelf.value == b"{}"


async def test_value_that_cannot_be_encoded(caplog: pytest.LogCaptureFixture) -> None:
    """A state that its format cannot carry is a bug of the agent: 5.00, logged."""
    async with containers(("127.0.0.1", 0)) as (one,):
        shelf = Shelf(one)
        shelf.value = object()
        response = await one.context.request(Message(GET, uri=shelf.item.url)).response
        assert (response.code, response.payload) == (Code.INTERNAL_SERVER_ERROR, b"")
    assert "item" in caplog.text


async def test_methods_that_return_messages(transport: Transport) -> None:
    """A method may return a whole message; the agent's own object is not changed by that."""

    class Direct(Agent):
        kept = Message(payload=b"hello", content_format=0)

        @state(max_age=7)
        def greeting(self) -> Message:
            return self.kept

        @greeting.setter
        def set_greeting(self, value: str) -> Message:
            return Message(Code.CREATED, location_path=["x", value])

    async with containers(transport.address()) as (one,):
        direct = Direct(one)
        response = await one.context.request(Message(GET, uri=direct.greeting.url)).response
        assert (response.code, response.payload, response.opt.max_age) == (CONTENT, b"hello", 7)
        again = await one.context.request(
            Message(GET, uri=direct.greeting.url, etags=[response.opt.etag])
        ).response
        assert (again.code, again.opt.max_age) == (Code.VALID, 7)
        assert (direct.kept.payload, direct.kept.code, len(direct.kept.opt)) == (b"hello", None, 1)
        created = await one.context.request(
            Message(PUT, b"y", direct.greeting.url, content_format=0)
        ).response
        assert (created.code, created.opt.location_path) == (Code.CREATED, ("x", "y"))
        await one.context.put(direct.greeting.url, "z", if_match=[response.opt.etag])


async def test_max_age(transport: Transport) -> None:
    """A state says how long it may be cached, if that was declared."""
    async with place(transport) as there:
        assert (await ask(there, GET, "soc")).opt.max_age == 5
        assert (await ask(there, GET, "mode_of_work")).opt.max_age is None


async def test_states_have_entity_tags(transport: Transport) -> None:
    """Who has the present state gets 2.03; a condition holds for the tag of any format."""
    async with place(transport) as there:
        first = await ask(there, GET, "soc")
        assert (await ask(there, GET, "soc", etags=[first.opt.etag])).code == Code.VALID
        packed = await ask(there, GET, "soc", accept=65000)
        assert packed.opt.etag != first.opt.etag
        for tag in (packed.opt.etag, first.opt.etag):
            await there.context.put(there.url + "/soc", 0.75, if_match=[tag], content_format=50)
            there.battery.energy = 0.5
        await there.context.put(there.url + "/soc", 0.75, if_match=[b""])
        with pytest.raises(error.ResponseWrappingError, match="another version"):
            await there.context.put(there.url + "/soc", 0.1, if_match=[first.opt.etag])
        there.battery.mode = None
        with pytest.raises(error.ResponseWrappingError, match="no state"):
            await there.context.put(there.url + "/mode_of_work", "x", if_match=[b""])
        await there.context.put(there.url + "/mode_of_work", "x", if_none_match=True)


async def test_methods_that_raise(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the module ``error`` says no; anything else is a bug, and observers learn of no change."""

    class Strict(Agent):
        value = 1

        @state
        def number(self) -> int:
            return self.value

        @number.setter
        def number(self, value: Any) -> None:
            if value == "bug":
                raise ZeroDivisionError("secret")
            raise error.UnprocessableEntity("not that")

    async with containers(transport.address()) as (one,):
        strict = Strict(one)
        async with one.context.observe(strict.number.url) as states:
            assert await anext(states) == 1
            for value, code in (("bug", Code.INTERNAL_SERVER_ERROR), (5, Code.UNPROCESSABLE_ENTITY)):
                with pytest.raises(error.ResponseWrappingError) as caught:
                    await one.context.put(strict.number.url, value)
                assert caught.value.code == code
                assert b"secret" not in caught.value.message.payload
            strict.value = 2
            strict.number.changed()
            assert await anext(states) == 2
    assert "secret" in caplog.text


# -- Declarations ----------------------------------------------------------------------------------


async def test_declared_states_are_methods(transport: Transport) -> None:
    """On the class a state is a declaration, on an agent it can be called and has a URL."""
    assert isinstance(Battery.soc, State)
    assert Battery.soc.__doc__ == "The state of charge."
    assert repr(Battery.soc) == "<State 'soc', from Battery.soc>"
    assert aiomas_ng.state is state
    async with place(transport) as there:
        soc = there.battery.soc
        assert isinstance(soc, BoundState)
        assert soc.url == there.url + "/soc"
        assert repr(soc) == f"<State {soc.url!r}>"
        there.battery.set_soc(0.75)
        assert soc() == 0.75
        with pytest.raises(AttributeError, match="cannot be replaced; set what its method returns"):
            there.battery.soc = 0.5  # type: ignore[assignment]  # what the test is about


def test_what_cannot_be_declared() -> None:
    """Wrong declarations are errors where they are made."""
    with pytest.raises(TypeError, match="state decorates a method, not 5"):
        state(5)  # type: ignore[call-overload]  # what the test is about
    with pytest.raises(ValueError, match="must not have the segment"):
        state(path="..")(lambda self: 1)
    with pytest.raises(TypeError, match="Twice: the states one and two have the same path, 'x'"):

        class Twice(Agent):
            @state(path="x")
            def one(self) -> int: ...  # type: ignore[empty-body]  # never called

            @state(path="/x/")
            def two(self) -> int: ...  # type: ignore[empty-body]  # never called


async def test_inheritance(transport: Transport) -> None:
    """States are inherited; a subclass replaces, extends or drops them without changing its base."""

    class Special(Battery):
        @state(rt="energy.special")
        def soc(self) -> float:  # replaces, and has no setter
            return 1.0

        def forget(self) -> None:  # what DELETE calls
            self.mode = "forgotten"

        @Battery.list_orders.deleter
        def list_orders(self) -> None:  # extends
            self.orders.clear()

        @Battery.mode_of_work.setter
        def mode_of_work(self, value: str) -> None:
            self.mode = value.upper()

    class Plain(Special):
        def list_orders(self) -> list[Any]:  # is no state any more
            return []

    async with containers(transport.address()) as (one,):
        context = one.context
        special, base, plain = Special(one), Battery(one), Plain(one)
        assert await context.get(special.soc.url) == 1.0
        with pytest.raises(error.ResponseWrappingError, match=r"4\.05"):
            await context.put(special.soc.url, 2)
        await context.delete(special.mode_of_work.url)
        assert special.mode == "forgotten"
        await context.put(special.mode_of_work.url, "loud")
        await context.put(base.mode_of_work.url, "quiet")
        assert (special.mode, base.mode) == ("LOUD", "quiet")
        await context.post(special.list_orders.url, 1)
        await context.delete(special.list_orders.url)
        assert special.orders == []
        with pytest.raises(error.ResponseWrappingError, match=r"4\.05"):
            await context.delete(base.list_orders.url)
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await context.get(plain.addr + "/orders/all")
        with pytest.raises(TypeError, match="must have its name, 'soc'"):
            Battery.soc.setter(lambda self, value: None)


async def test_functions_without_a_name_of_their_own(transport: Transport) -> None:
    """A setter may be any function, such as a lambda."""

    class Lamp(Agent):
        is_on = False

        @state
        def light(self) -> bool:
            return self.is_on

        light.setter(lambda self, value: setattr(self, "is_on", value))
        light.deleter(lambda self: setattr(self, "is_on", None))

    async with containers(transport.address()) as (one,):
        lamp = Lamp(one)
        await one.context.put(lamp.light.url, True)
        assert lamp.is_on is True
        await one.context.delete(lamp.light.url)
        assert lamp.is_on is None


async def test_state_at_the_root_of_an_agent(transport: Transport) -> None:
    """A state with an empty path is the agent itself, with a slash at the end."""

    class Root(Agent):
        @state(path="")
        def whole(self) -> str:
            return "all"

    async with containers(transport.address()) as (one,):
        root = Root(one)
        assert root.whole.url == root.addr + "/"
        async with one.context.observe(root.whole.url) as states:
            assert await anext(states) == "all"
            root.whole.changed()
            assert await anext(states) == "all"


async def test_agents_with_attributes_of_the_same_names(transport: Transport) -> None:
    """An agent may use the names ``site``, ``state`` and ``context`` for its own purposes."""

    class Own(Agent):
        state = "solid"
        context = None

        def __init__(self, container: Container) -> None:
            super().__init__(container)
            self.site = "Kassel"  # type: ignore[assignment]  # what the test is about

        @state_alias
        def load(self) -> str:
            return f"{self.site} {self.state}"

    async with containers(transport.address()) as (one,):
        own = Own(one)
        assert await one.context.get(own.load.url) == "Kassel solid"
        one.get_site(own).add_resource("x", Value(b"y"))
        assert await one.context.get(own.addr + "/x") == b"y"

    class Stated(Agent):
        @state_alias
        def site(self) -> str:  # type: ignore[override]  # what the test is about
            return "a state"

    async with containers(transport.address()) as (one,):
        assert await one.context.get(Stated(one).site.url) == "a state"


async def test_states_beside_procedures(transport: Transport) -> None:
    """Resources and remote procedure calls of one agent share the connection."""

    class Both(Battery):
        router = aiomas_ng.rpc.Service()

        @expose
        def double(self) -> float:
            return 2 * self.energy

    async with containers(transport.address(), transport.address()) as (one, two):
        both = Both(one)
        proxy = await two.connect(both.addr)
        assert await proxy.double() == 1.0
        await two.context.put(both.soc.url, 2.0)
        assert await proxy.double() == 4.0
        with pytest.raises(RemoteException):
            await proxy.soc()  # nothing is reachable by calls that was not exposed
        assert len(one.context.tokenmanager.remotes) == 1


# -- Sites of agents and containers ----------------------------------------------------------------


async def test_resources_come_and_go_at_run_time(transport: Transport) -> None:
    """An agent adds and removes resources, declared ones as well, and may hide its own list."""
    async with place(transport) as there:
        site = there.battery.site
        assert isinstance(site, Site)
        assert site is there.container.get_site("bat") is there.container.get_site(there.battery)
        value = Value(b"one")
        site.add_resource("extra/value", value)
        async with there.context.observe(there.url + "/extra/value") as states:
            assert await anext(states) == b"one"
            value.set(b"two")
            assert await anext(states) == b"two"
            site.remove_resource("extra/value")
            with pytest.raises(error.ResponseWrappingError) as caught:
                await anext(states)
            assert caught.value.code == Code.NOT_FOUND
        site.remove_resource("soc")
        there.battery.soc.changed()
        assert (await ask(there, GET, "soc")).code == Code.NOT_FOUND
        links = await there.context.discover(there.url)
        assert [link.href for link in links] == [there.url + "/mode_of_work", there.url + "/orders/all"]
        site.add_resource("soc", Value(b"stand-in"))
        assert (await ask(there, GET, "soc")).payload == b"stand-in"
        site.add_resource(".well-known/core", Value(b"no list"))
        assert (await ask(there, GET, ".well-known/core")).payload == b"no list"


async def test_sites_of_others(transport: Transport) -> None:
    """A container has the sites of its own agents only."""
    async with containers(transport.address(), transport.address()) as (one, two):
        a, b = Battery(one, "same"), Battery(two, "same")
        for wrong in ("nobody", b):
            with pytest.raises(AgentNotFoundError):
                one.get_site(wrong)
        assert one.get_site(a) is one.get_site("same")
        await one.remove_agent(a)
        with pytest.raises(AgentNotFoundError):
            a.site  # noqa: B018  # looking it up is what fails


async def test_site_of_a_container(transport: Transport) -> None:
    """A container's own resources lie beside its agents; a longer path counts, and an agent before a site."""
    async with place(transport) as there:
        site = there.container.site
        site.add_resource("version", Value(b"1"))
        site.add_resource("bat/extra", Value(b"longer"))
        below = Site()
        below.add_resource("soc", Value(b"mounted"))
        below.add_resource("only", Value(b"only"))
        site.add_resource("bat", below)
        site.add_resource("bat/deep", below)
        base = there.url.removesuffix("bat")
        assert await there.context.get(base + "version") == b"1"
        assert await there.context.get(there.url + "/extra") == b"longer"
        assert await there.context.get(there.url + "/soc") == 0.5
        assert await there.context.get(there.url + "/deep/only") == b"only"
        assert (await ask(there, GET, "only")).code == Code.NOT_FOUND
        site.add_resource(".well-known/core", Value(b"no list"))
        assert await there.context.get(base + ".well-known/core") == b"no list"


async def test_agent_that_is_removed_while_observed(transport: Transport) -> None:
    """Whoever observes an agent that is removed gets 4.04; changes afterwards tell nobody."""
    async with place(transport) as there:
        async with there.context.observe(there.url + "/soc") as states:
            assert await anext(states) == 0.5
            await there.container.remove_agent(there.battery)
            with pytest.raises(error.ResponseWrappingError, match="was removed") as caught:
                await anext(states)
            assert caught.value.code == Code.NOT_FOUND
        assert (await ask(there, GET, "soc")).code == Code.NOT_FOUND
        there.battery.soc.changed()


@pytest.mark.parametrize("is_observed", [False, True])
async def test_removal_of_agents_without_a_site(transport: Transport, is_observed: bool) -> None:
    """Removing an agent whose resources nobody has used does nothing more."""
    async with place(transport) as there:
        if is_observed:
            await ask(there, GET, "soc")
        await there.container.remove_agent("bat")
        there.battery.charge(1)


async def test_container_that_shuts_down_while_observed(transport: Transport) -> None:
    """Whoever observes an agent whose container shuts down learns that it has ended."""
    async with containers(transport.address(), transport.address()) as (one, two):
        battery = Battery(one)
        states = two.context.observe(battery.soc.url)
        async with states:
            assert await anext(states) == 0.5
            await one.shutdown(as_coro=True)
            with pytest.raises(error.ResponseWrappingError) as caught:
                await anext(states)
            assert caught.value.code == Code.SERVICE_UNAVAILABLE
        battery.soc.changed()


async def test_states_of_a_container_that_has_shut_down(transport: Transport) -> None:
    """Changes of an agent whose container is gone do nothing."""
    async with containers(transport.address()) as (one,):
        battery = Battery(one)
        assert await one.context.get(battery.soc.url) == 0.5
    battery.charge(1)


async def test_agents_that_nobody_asks_cost_nothing() -> None:
    """A hundred thousand agents have no object for their resources, until somebody asks for one."""
    async with containers(("127.0.0.1", 0)) as (one,):

        class Small(Agent):
            @state(rt="small")
            def value(self) -> int:
                return 7

            @value.setter
            def set_value(self, value: int) -> None: ...

        tracemalloc.start()
        few = [Small(one) for _ in range(1000)]
        for agent in few:
            agent.value.changed()
        trace = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, f"*/aiomas_ng/{path}") for path in ("_coap/*", "resource.py")]
        )
        tracemalloc.stop()
        assert sum(each.size for each in trace.traces) < 1000, "that is one byte per agent"
        many = [Small(one) for _ in range(100_000)]
        assert await one.context.get(many[-1].value.url) == 7
        assert len(one.site._sites) == 1


# -- Discovery -------------------------------------------------------------------------------------


async def test_discovery(transport: Transport) -> None:
    """Resources are found by their attributes, of one agent, one container or several."""
    async with containers(transport.address(), transport.address(), transport.address()) as (one, two, three):
        a, b, c = Battery(one, "a"), Battery(one, "b"), Battery(two, "c")
        a.site.add_resource("extra", Value())
        bases = [battery.addr.removesuffix(battery.addr[-1]) for battery in (b, c)]
        discover = three.context.discover
        assert [link.href for link in await discover(*bases, rt="energy.soc")] == [
            a.soc.url, b.soc.url, c.soc.url,
        ]  # fmt: skip
        assert [link.href for link in await discover(bases[0], rt="energy.*", if_="core.*")] == [
            a.soc.url, b.soc.url,
        ]  # fmt: skip
        (link,) = await discover(b.addr, title="State*")
        assert (link.href, link["rt"], link["if"]) == (b.soc.url, "energy.soc", "core.s")
        assert "obs" in link
        everything = await discover(a.addr)
        assert [link.href for link in everything] == [
            a.soc.url, a.mode_of_work.url, a.list_orders.url, a.addr + "/extra",
        ]  # fmt: skip
        assert "obs" not in everything[2]
        assert await discover(bases[0], rt="nothing") == []
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await discover(a.addr + "/nobody")


async def test_listed_formats(transport: Transport) -> None:
    """A link says which formats were declared."""
    async with containers(transport.address()) as (one,):
        shelf = Shelf(one)
        links = await one.context.discover(shelf.addr, ct="50")
        assert [(link.href, link["ct"]) for link in links] == [(shelf.other.url, "0 50")]


async def test_list_is_the_same_before_and_after_use(transport: Transport) -> None:
    """The links to an agent's states do not depend on whether its resources were used already."""
    async with place(transport) as there:
        base = there.url.removesuffix("bat")
        before = await there.context.discover(base)
        await ask(there, GET, "soc")
        assert await there.context.discover(base) == before
        assert len(before) == 3


async def test_resource_may_be_any(transport: Transport) -> None:
    """Resources of an agent need not be states."""

    class Adder(Resource):
        def render_post(self, request: Message) -> Message:
            return Message(CHANGED, str(sum(map(int, request.payload.split()))).encode(), content_format=0)

    async with place(transport) as there:
        there.battery.site.add_resource(["calc", "add"], Adder())
        assert await there.context.post(there.url + "/calc/add", "1 2 3") == "6"
