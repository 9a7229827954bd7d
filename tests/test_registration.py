"""Registering in a directory and looking up: what the clients do, in good times and in bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import Transport
from waiting import wait_until

from aiomas_ng import Agent, Container, error, local_queue, state
from aiomas_ng._coap import registration as registrations
from aiomas_ng.clocks import ExternalClock
from aiomas_ng.directory import (
    DEFAULT_LIFETIME,
    Bounds,
    Directory,
    ParameterError,
    Registration,
    lookup,
    lookup_endpoints,
    observe_endpoints,
    observe_lookup,
    register,
)
from aiomas_ng.exceptions import AddressError, ProtocolError
from aiomas_ng.linkformat import Link, LinkFormatError
from aiomas_ng.message import CONTENT, CREATED, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import ObservableResource, Resource


class Battery(Agent):
    """Has a state of charge."""

    @state(rt="energy.soc")
    def soc(self) -> float:
        return 0.5


@contextlib.asynccontextmanager
async def open_container(address: Any = None, **kwds: Any) -> AsyncIterator[Container]:
    """Open a container; its shutdown may be too late if the test has shut it down already."""
    if address is None:
        address = local_queue.get_queue(uuid.uuid4().hex)
    container = await Container.create(address, as_coro=True, **kwds)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


@contextlib.asynccontextmanager
async def open_two(**kwds: Any) -> AsyncIterator[tuple[Directory, Container]]:
    """Open a directory in one container, and another container with a battery."""
    async with open_container(**kwds) as hub, open_container(**kwds) as container:
        Battery(container, aid="bat")
        yield Directory(hub), container


def hrefs(links: list[Link]) -> list[str]:
    return [link.href for link in links]


def only(agent: Directory) -> Any:
    """Return the only registration that a directory has."""
    (found,) = agent._registry._by_number.values()
    return found


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts follow each other quickly."""
    monkeypatch.setattr(registrations, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(registrations, "LONGEST_PAUSE", 0.01)


# -- Registering and looking up --------------------------------------------------------------------


async def test_agents_find_each_other(transport: Transport) -> None:
    """Registered, looked up by type, read and observed by URL, and gone when it leaves."""
    async with (
        open_container(transport.address()) as hub,
        open_container(transport.address()) as a,
        open_container(transport.address()) as b,
    ):
        url = Directory(hub).addr
        battery = Battery(a, aid="bat")
        registration = await register(a, url, sector="north", et="plant")
        assert registration.is_registered
        assert registration.url is not None
        assert registration.url.startswith(f"{url}/rd/")
        (link,) = await lookup(b.context, url, rt="energy.*", d="north")
        assert link.href == f"{battery.addr}/soc"
        assert link["rt"] == "energy.soc"
        assert await b.context.get(link.href) == 0.5
        async with b.context.observe(link.href) as states:
            assert await anext(states) == 0.5
        (endpoint,) = await lookup_endpoints(b.context, url, et="plant")
        assert endpoint.href == registration.url
        assert endpoint["base"] == a._base_url
        assert endpoint["ep"] == registration.endpoint
        await registration.close()
        assert not registration.is_registered
        assert registration.url is None
        assert await lookup(b.context, url) == await lookup_endpoints(b.context, url) == []


async def test_a_container_can_register_in_its_own_directory() -> None:
    """No socket is needed for that."""
    async with open_container() as container:
        Battery(container, aid="bat")
        url = Directory(container).addr
        async with await register(container, url) as registration:
            assert registration.is_registered
            assert hrefs(await lookup(container.context, url, rt="energy.soc")) == [
                f"{container._base_url}bat/soc"
            ]


async def test_all_parameters_arrive() -> None:
    """Name, sector, lifetime, base and attributes of all kinds; a slash at the end of the URL is fine."""
    async with open_two() as (agent, container):
        registration = await register(
            container,
            f"{agent.addr}/",
            endpoint="house 7",
            sector="süd",
            lifetime=77.9,
            base="tcp://gate:1/",
            et="plant",
            if_="x",
            mobile=True,
            v=3,
            tags=["a", "b"],
            absent=False,
        )
        found = only(agent)
        assert (found.endpoint, found.sector, found.base) == ("house 7", "süd", "tcp://gate:1/")
        assert found.lifetime == registration.lifetime == 77
        assert found.attributes == (
            ("et", "plant"),
            ("if", "x"),
            ("mobile", None),
            ("v", "3"),
            ("tags", "a b"),
        )
        assert hrefs(await lookup(container.context, agent.addr, if_="x")) == ["tcp://gate:1/bat/soc"]
        assert "house 7" in repr(registration)
        assert "registered" in repr(registration)


async def test_the_default_name_is_the_base_url() -> None:
    """Without its slash; the lifetime is that of the RFC."""
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr)
        assert registration.endpoint == container._base_url.rstrip("/")
        assert only(agent).lifetime == DEFAULT_LIFETIME


@pytest.mark.parametrize("size", [0, 1, 40, 63, 64, 100, 300])
@pytest.mark.parametrize("letter", ["x", "é", "\udcff"])
def test_default_names_fit(size: int, letter: str) -> None:
    """However long the path of a socket is, and whatever it has; different ones have different names."""
    url = f"ipc://[/{letter * size}]/"
    name = registrations.make_endpoint_name(url)
    data = url.rstrip("/").encode("utf-8", "surrogatepass")
    if len(data) <= 63:
        assert name == url.rstrip("/")
    else:
        assert len(name.encode()) <= 63
        assert name != registrations.make_endpoint_name(f"ipc://[/{letter * size}y]/")


async def test_the_same_name_takes_the_place() -> None:
    """Who registers by it has the location from then on; the number of registrations stays one."""
    async with open_two() as (agent, container):
        first = await register(container, agent.addr, endpoint="x", base="tcp://a:1/")
        second = await register(container, agent.addr, endpoint="x", base="tcp://b:1/")
        assert first.url == second.url
        assert hrefs(await lookup(container.context, agent.addr)) == ["tcp://b:1/bat/soc"]


async def test_criteria_and_pages() -> None:
    """All criteria together, endpoints' and links'; ``page`` and ``count`` cut the result."""
    async with open_two() as (agent, container):
        for i in range(5):
            await register(container, agent.addr, endpoint=f"e{i}", base=f"tcp://n{i}:1/")
        context = container.context
        found = await lookup(context, agent.addr, rt="energy.soc", page=1, count=2)
        assert hrefs(found) == ["tcp://n2:1/bat/soc", "tcp://n3:1/bat/soc"]
        assert hrefs(await lookup(context, agent.addr, ep="e4", rt="*")) == ["tcp://n4:1/bat/soc"]
        assert await lookup(context, agent.addr, rt="nothing") == []
        assert len(await lookup_endpoints(context, agent.addr, rt="energy.soc", count=3)) == 3
        with pytest.raises(error.ResponseWrappingError, match="needs 'count'"):
            await lookup(context, agent.addr, page=1)


async def test_through_a_mounted_container() -> None:
    """A directory behind another container is registered in, renewed, and left all the same."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container), open_container(clock=clock) as middle:
        middle.mount("far", agent.container._base_url)
        url = f"{middle._base_url}far/directory"
        registration = await register(container, url, lifetime=60)
        assert registration.url is not None
        assert registration.url.startswith(f"{url}/rd/")
        assert hrefs(await lookup(container.context, url, rt="energy.soc")) == [
            f"{container._base_url}bat/soc"
        ]
        clock.set_time(50)
        await wait_until(lambda: only(agent).expires == 110)
        await registration.close()
        assert agent.registration_count == 0


# -- What goes wrong at first ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwds", "text"),
    [
        ({"endpoint": ""}, "the name of the endpoint is empty"),
        ({"endpoint": "x" * 64}, "64 bytes"),
        ({"endpoint": "a\n"}, "control characters"),
        ({"sector": ""}, "the name of the sector is empty"),
        ({"lifetime": 0}, "from 1 to 4294967295 seconds"),
        ({"lifetime": 2**32}, "from 1 to 4294967295 seconds"),
        ({"lifetime": float("nan")}, "from 1 to 4294967295 seconds"),
        ({"lifetime": float("inf")}, "from 1 to 4294967295 seconds"),
        ({"lifetime": True}, "from 1 to 4294967295 seconds"),
        ({"lifetime": "60"}, "from 1 to 4294967295 seconds"),
        ({"href": "x"}, "'href' cannot be an attribute"),
        ({"rt": "x"}, "'rt' cannot be an attribute"),
        ({"ep": "x"}, "'ep' comes twice"),
        ({"et": "a\n"}, "control characters"),
        ({"et": {}}, "must be a string, a number"),
        ({"et": "x" * 300}, "303 bytes, the limit is 255"),
        ({"base": "tcp://" + "x" * 300}, "bytes, the limit is 255"),
    ],
)
async def test_what_cannot_be_registered(kwds: dict[str, Any], text: str) -> None:
    """It is refused here, by one type of error, before anybody is asked."""
    async with open_container() as container:
        with pytest.raises(ParameterError, match=text):
            await register(container, "local://nobody/directory", **kwds)


async def test_nobody_is_there() -> None:
    """A directory that cannot be reached, does not exist, or has no valid address, is told at once."""
    async with open_container() as container, open_container() as hub:
        with pytest.raises(error.NetworkError):
            await register(container, "local://nobody/directory")
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await register(container, f"{hub._base_url}directory")
        with pytest.raises(AddressError):
            await register(container, "directory")
        for find in (lookup, lookup_endpoints):
            with pytest.raises(error.NetworkError):
                await find(container.context, "local://nobody/directory")
            with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
                await find(container.context, f"{hub._base_url}directory")


async def test_waiting_for_the_directory(transport: Transport) -> None:
    """With a timeout, containers and their directory may start in any order."""
    async with open_container() as container:
        async with open_container(transport.address()) as hub:
            url = hub._base_url
        address = _address_of(url)
        waiting = asyncio.ensure_future(register(container, f"{url}directory", timeout=None))
        await asyncio.sleep(0)
        async with open_container(address) as hub:
            Directory(hub)
            assert (await waiting).is_registered


def _address_of(url: str) -> Any:
    """Return the address to listen at that a container had whose base URL this is."""
    protocol, _, rest = url.partition("://")
    if protocol == "tcp":
        host, _, port = rest.strip("/").rpartition(":")
        return host, int(port)
    return rest[1:-2] if protocol == "ipc" else local_queue.get_queue(rest.strip("/"))


async def test_a_directory_that_says_no() -> None:
    """Its answer is raised, with code and text."""
    async with open_container() as hub, open_container() as container:
        agent = Directory(hub, bounds=Bounds(links=1))
        Battery(container, aid="a")
        Battery(container, aid="b")
        with pytest.raises(error.ResponseWrappingError, match=r"4\.13.*2 links, the limit is 1"):
            await register(container, agent.addr)


class _Fixed(Resource):
    """Answers everything by one response."""

    def __init__(self, **response: Any) -> None:
        self.response = response

    def render_get(self, request: Message) -> Message:
        return Message(**self.response)

    render_post = render_get


async def test_a_directory_that_does_not_say_where() -> None:
    """A success without a location breaks the rules of RFC 9176, section 5."""
    async with open_two() as (agent, container):
        agent.site.add_resource("rd", _Fixed(code=CREATED))
        with pytest.raises(ProtocolError, match="has not said where"):
            await register(container, agent.addr)


@pytest.mark.parametrize(
    "response",
    [
        {"payload": b"nonsense", "content_format": 40},
        {"payload": b"nonsense", "content_format": 42},
        {"payload": b"{}", "content_format": 50},
    ],
)
async def test_look_ups_that_are_no_links(response: dict[str, Any]) -> None:
    """They are one type of error, whether the format is another one or malformed."""
    async with open_two() as (agent, container):
        agent.site.add_resource("rd-lookup/res", _Fixed(code=CONTENT, **response))
        with pytest.raises((LinkFormatError, error.ResponseWrappingError)):
            await lookup(container.context, agent.addr)


async def test_an_empty_answer_has_no_links() -> None:
    """Also one without a content format."""
    async with open_two() as (agent, container):
        agent.site.add_resource("rd-lookup/res", _Fixed(code=CONTENT))
        assert await lookup(container.context, agent.addr) == []


async def test_octets_are_no_links() -> None:
    """A payload without a content format is not taken for a list of links."""
    async with open_two() as (agent, container):
        agent.site.add_resource("rd-lookup/res", _Fixed(code=CONTENT, payload=b"</a>"))
        with pytest.raises(LinkFormatError, match="not in link format"):
            await lookup(container.context, agent.addr)


# -- Renewing --------------------------------------------------------------------------------------


async def test_it_is_renewed_after_three_quarters_of_its_lifetime() -> None:
    """By the clock of the container, again and again; never before."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        registration = await register(container, agent.addr, lifetime=60)
        number = only(agent).number
        clock.set_time(44)
        # Would it be renewed, its request would arrive before this one.
        await lookup(container.context, agent.addr)
        assert only(agent).expires == 60
        for due in (45, 90, 135, 180):
            clock.set_time(due)
            await wait_until(lambda due=due: only(agent).expires == due + 60)
            assert registration.is_registered
        assert only(agent).number == number


async def test_it_is_renewed_in_real_time() -> None:
    """With the clock that containers have by default."""
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr, lifetime=1)
        first = only(agent)
        expires = first.expires
        await wait_until(lambda: first.expires > expires)
        assert only(agent) is first
        assert registration.is_registered


async def test_time_that_passes_while_it_is_renewed() -> None:
    """A lifetime counts from before the request, so that nobody is late who thinks that there is time."""
    clock = ExternalClock(0)
    has_come = asyncio.Event()
    gate = asyncio.Event()

    class Late(Resource):
        async def render_post(self, request: Message) -> Message:
            has_come.set()
            await gate.wait()
            return Message(CREATED, location_path=("directory", "rd", "1"))

    async with open_two(clock=clock) as (agent, container):
        agent.site.add_resource("rd", Late())
        waiting = asyncio.ensure_future(register(container, agent.addr, lifetime=60))
        await has_come.wait()
        clock.set_time(50)
        gate.set()
        registration = await waiting
        assert registration._renewal_due == 45
        clock.set_time(60)
        assert not registration.is_registered


async def test_a_step_beyond_the_lifetime() -> None:
    """Where simulated time jumps past the end, it is registered anew."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        registration = await register(container, agent.addr, lifetime=60)
        first = registration.url
        clock.set_time(1000)
        assert not registration.is_registered
        await wait_until(lambda: registration.is_registered)
        assert registration.url != first
        assert only(agent).expires == 1060
        assert len(await lookup(container.context, agent.addr)) == 1


async def test_a_directory_that_has_forgotten() -> None:
    """A renewal that gets 4.04 registers anew."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        registration = await register(container, agent.addr, lifetime=60)
        first = registration.url
        await container.context.delete(first)
        clock.set_time(45)
        await wait_until(lambda: registration.url != first)
        assert registration.is_registered
        assert only(agent).expires == 105


async def test_new_resources_come_with_a_renewal() -> None:
    """Whoever does not say that there are new ones has them registered all the same; those gone are gone."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        await register(container, agent.addr, lifetime=60)
        Battery(container, aid="bat2")
        await container.remove_agent("bat")
        assert hrefs(await lookup(container.context, agent.addr)) == [f"{container._base_url}bat/soc"]
        clock.set_time(45)
        await wait_until(lambda: only(agent).expires == 105)
        assert hrefs(await lookup(container.context, agent.addr)) == [f"{container._base_url}bat2/soc"]


async def test_an_update_registers_new_resources_at_once() -> None:
    """The next renewal then counts from there."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        registration = await register(container, agent.addr, lifetime=60)
        Battery(container, aid="bat2")
        clock.set_time(10)
        await asyncio.gather(registration.update(), registration.update())
        assert len(await lookup(container.context, agent.addr)) == 2
        clock.set_time(45)
        await lookup(container.context, agent.addr)
        assert only(agent).expires == 70
        clock.set_time(55)
        await wait_until(lambda: only(agent).expires == 115)


class Moody(Directory):
    """A directory that can be told to refuse everything."""

    refusal: error.RenderableError | None = None
    requests = 0

    def check(self, request: Message, endpoint: str, sector: str | None) -> None:
        self.requests += 1
        if self.refusal is not None:
            raise self.refusal


async def test_a_renewal_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and tried again, with pauses, until it is accepted; nothing is raised into nowhere."""
    clock = ExternalClock(0)
    async with open_container(clock=clock) as hub, open_container(clock=clock) as container:
        agent = Moody(hub)
        registration = await register(container, agent.addr, lifetime=60)
        agent.refusal = error.ServiceUnavailable("having a bad day")
        with caplog.at_level(logging.WARNING, "aiomas_ng.directory"):
            clock.set_time(50)
            await wait_until(lambda: agent.requests >= 4)
        assert "having a bad day" in caplog.text
        assert registration.is_registered  # still, as its lifetime has not ended
        clock.set_time(60)
        assert not registration.is_registered
        agent.refusal = None
        await wait_until(lambda: registration.is_registered)
        assert only(agent).expires == 120


async def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts that fail, up to the longest one; not before the first attempt."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    clock = ExternalClock(0)
    async with open_container(clock=clock) as hub, open_container(clock=clock) as container:
        agent = Moody(hub)
        await register(container, agent.addr, lifetime=60)
        monkeypatch.setattr(registrations, "FIRST_PAUSE", 1.0)
        monkeypatch.setattr(registrations, "LONGEST_PAUSE", 60.0)
        monkeypatch.setattr(registrations.random, "uniform", lambda a, b: b)
        monkeypatch.setattr(registrations.asyncio, "sleep", note)
        agent.refusal = error.Forbidden("no")
        clock.set_time(45)
        while agent.requests < 9:
            await sleep(0.001)
        agent.refusal = None
        while only(agent).expires != 105:
            await sleep(0.001)
        assert [pause for pause in pauses if pause >= 1][:8] == [2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_failure_of_ours_is_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    """A resource that cannot be described does not end the renewals for good."""

    class Broken(Resource):
        is_broken = False

        def get_link_description(self) -> dict[str, Any]:
            if self.is_broken:
                raise RuntimeError("broken")
            return {"rt": "x"}

    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        broken = Broken()
        container.site.add_resource("broken", broken)
        await register(container, agent.addr, lifetime=60)
        broken.is_broken = True
        with caplog.at_level(logging.ERROR, "aiomas_ng.directory"):
            clock.set_time(45)
            await wait_until(lambda: caplog.records)
        assert caplog.records[0].exc_info is not None
        broken.is_broken = False
        await wait_until(lambda: only(agent).expires == 105)


async def test_an_update_that_fails_is_tried_again() -> None:
    """It raises, what was registered stays, and in the background it is tried until it succeeds."""
    async with open_container() as hub, open_container() as container:
        agent = Moody(hub)
        registration = await register(container, agent.addr)
        Battery(container, aid="bat")
        agent.refusal = error.ServiceUnavailable("not now")
        with pytest.raises(error.ResponseWrappingError, match="not now"):
            await registration.update()
        assert registration.is_registered
        agent.refusal = None
        await wait_until(lambda: len(only(agent).entries) == 1)


class _Racing(ExternalClock):
    """Real time passes between any two looks at it."""

    is_racing = False

    def call_at(self, t: Any, func: Any, *args: Any) -> Any:
        if self.is_racing:
            self.is_racing = False
            raise ValueError("in the past")
        return super().call_at(t, func, *args)


async def test_a_renewal_that_has_become_due_meanwhile() -> None:
    """Where real time passes between looking at the clock and setting the timer, it is renewed at once."""
    clock = _Racing(0)
    async with open_container() as hub, open_container(clock=clock) as container:
        agent = Moody(hub)
        clock.is_racing = True
        await register(container, agent.addr, lifetime=60)
        await wait_until(lambda: agent.requests == 2)


# -- Lost connections ------------------------------------------------------------------------------


async def test_a_directory_that_was_restarted(transport: Transport) -> None:
    """Its clients notice that the connection is lost, and register anew in what is there then."""
    async with open_container(transport.address()) as a, open_container(transport.address()) as b:
        Battery(a, aid="bat")
        async with open_container(transport.address()) as hub:
            url = Directory(hub).addr
            address = _address_of(hub._base_url)
            first = await register(a, url)
            second = await register(b, url)
            before = first.url
            observed = observe_lookup(b.context, url, rt="energy.soc")
            assert hrefs(await anext(observed)) == [f"{a._base_url}bat/soc"]
        await wait_until(lambda: not first.is_registered)
        assert "not registered" in repr(first)
        async with open_container(address) as hub:
            agent = Directory(hub)
            await wait_until(lambda: first.is_registered and second.is_registered)
            assert agent.registration_count == 2
            assert first.url != before
            # The observation goes on as well, and ends up with what is there.
            while hrefs(await asyncio.wait_for(lookup(b.context, url, rt="energy.soc"), 5)) != [
                f"{a._base_url}bat/soc"
            ]:
                pass
            await observed.aclose()


async def test_a_lost_connection_to_a_directory_that_remembers() -> None:
    """It is registered again at the same location."""
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr, endpoint="x")
        before = registration.url
        found = only(agent)
        remote = registration._remote
        assert remote is not None
        await remote.channel.close()
        await wait_until(lambda: registration._remote is not remote)
        assert registration.is_registered
        assert registration.url == before
        assert only(agent) is found
        registration._lost(remote)  # told late, of a connection that has been replaced
        assert registration.is_registered


async def test_a_connection_that_is_lost_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What succeeds only to be lost at once is not tried without pauses."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(registrations, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(registrations, "LONGEST_PAUSE", 60.0)
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr)
        monkeypatch.setattr(registrations.asyncio, "sleep", note)
        for _ in range(5):
            remote = registration._remote
            assert remote is not None
            await remote.channel.close()
            while registration._remote is remote or not registration.is_registered:
                await sleep(0.001)
        found = [pause for pause in pauses if pause >= 1]
        assert len(found) == 4
        assert found[-1] >= 8


async def test_what_has_held_for_long_is_no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss long after the last one is followed by an attempt without a pause."""
    monkeypatch.setattr(registrations, "FIRST_PAUSE", 100.0)
    monkeypatch.setattr(registrations, "LONGEST_PAUSE", 0.001)
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr)
        monkeypatch.setattr(registrations.random, "uniform", lambda a, b: 1e6)
        for _ in range(3):
            await asyncio.sleep(0.005)  # so long it has to hold
            remote = registration._remote
            assert remote is not None
            await remote.channel.close()
            await wait_until(lambda remote=remote: registration._remote is not remote)
        assert agent.registration_count == 1


# -- The end ---------------------------------------------------------------------------------------


async def test_closing_leaves(transport: Transport) -> None:
    """At the end of ``async with`` the directory has forgotten it; closing twice, at once too, is fine."""
    async with open_container(transport.address()) as hub, open_container(transport.address()) as container:
        agent = Directory(hub)
        async with await register(container, agent.addr) as registration:
            assert agent.registration_count == 1
        assert agent.registration_count == 0
        assert "closed" in repr(registration)
        await asyncio.gather(registration.close(), registration.close())
        with pytest.raises(RuntimeError, match="was closed"):
            await registration.update()


async def test_nothing_is_renewed_after_closing() -> None:
    """Neither by a timer nor by a lost connection."""
    clock = ExternalClock(0)
    async with open_two(clock=clock) as (agent, container):
        registration = await register(container, agent.addr, lifetime=60)
        remote = registration._remote
        await registration.close()
        assert clock.next_due() is None
        assert remote is not None
        await remote.channel.close()
        clock.set_time(100)
        await lookup(container.context, agent.addr)
        assert agent.registration_count == 0
        assert registration._keeper is None


async def test_the_end_of_the_container_ends_the_renewals() -> None:
    """Without closing, also in the middle of an attempt; closing afterwards is fine."""
    clock = ExternalClock(0)
    async with open_container(clock=clock) as hub:
        agent = Moody(hub)
        for refusal in (None, error.Forbidden("no")):
            async with open_container(clock=clock) as container:
                registration = await register(container, agent.addr, lifetime=60)
                agent.refusal = refusal
                clock.set_time(clock.time() + 45)
                await wait_until(lambda: agent.requests > 1)
                keeper = registration._keeper
            assert keeper is not None
            assert keeper.done()
            assert not registration.is_registered
            await registration.close()


async def test_closing_without_a_directory(caplog: pytest.LogCaptureFixture) -> None:
    """If it cannot be told, that is only noted: it forgets by itself."""
    async with open_container() as container:
        async with open_container() as hub:
            registration = await register(container, Directory(hub).addr)
        with caplog.at_level(logging.INFO, "aiomas_ng.directory"):
            await registration.close()
        assert "was not told" in caplog.text
        assert not registration.is_registered


@pytest.mark.parametrize("refusal", [error.Forbidden("stay"), error.NotFound("who?")])
async def test_closing_against_a_refusal(
    refusal: error.RenderableError, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is noted; that it was forgotten already is as good as leaving."""
    async with open_container() as hub, open_container() as container:
        agent = Moody(hub)
        registration = await register(container, agent.addr)
        agent.refusal = refusal
        with caplog.at_level(logging.INFO, "aiomas_ng.directory"):
            await registration.close()
        assert ("could not leave" in caplog.text) == isinstance(refusal, error.Forbidden)


async def test_closing_while_it_is_updated() -> None:
    """The update comes first, or finds that it was closed; in the end it has left."""
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr)
        results = await asyncio.gather(
            registration.update(), registration.close(), registration.update(), return_exceptions=True
        )
        assert results[:2] == [None, None]
        assert isinstance(results[2], RuntimeError)
        assert agent.registration_count == 0
        assert not registration.is_registered


async def test_a_cancelled_update_is_done_later() -> None:
    """Cancelling it harms nothing: what it may have left undone is done in the background."""
    async with open_two() as (agent, container):
        registration = await register(container, agent.addr)
        Battery(container, aid="bat2")
        update = asyncio.ensure_future(registration.update())
        await asyncio.sleep(0)
        update.cancel()
        await wait_until(lambda: len(only(agent).entries) == 2)
        await wait_until(lambda: registration._renewal_due > container.clock.time())
        assert update.cancelled()


async def test_a_container_that_was_shut_down_cannot_register() -> None:
    """It is told so."""
    async with open_container() as hub:
        agent = Directory(hub)
        async with open_container() as container:
            registration = await register(container, agent.addr)
        with pytest.raises(error.LibraryShutdown):
            await registration.update()
        with pytest.raises(error.LibraryShutdown):
            await register(container, agent.addr)


async def test_who_renews_when_the_context_ends_stops() -> None:
    """If the context was shut down by itself, the renewals end without a word."""
    async with open_two() as (agent, container):
        registration = Registration(container, agent.addr, "x", None, 60, "tcp://a:1/", {})
        await container.context.shutdown()
        await registration._keep()


# -- Observed look-ups -----------------------------------------------------------------------------


async def test_observed_look_ups(transport: Transport) -> None:
    """Whatever comes, changes and leaves is seen, and only if it meets the criteria."""
    async with (
        open_container(transport.address()) as hub,
        open_container(transport.address()) as a,
        open_container(transport.address()) as b,
    ):
        agent = Directory(hub)
        Battery(a, aid="bat")
        async with (
            observe_lookup(b.context, agent.addr, rt="energy.soc") as resources,
            observe_endpoints(b.context, agent.addr, rt="energy.soc") as endpoints,
        ):
            assert await anext(resources) == await anext(endpoints) == []
            await register(b, agent.addr, endpoint="nothing of interest")
            registration = await register(a, agent.addr, endpoint="a")
            assert hrefs(await anext(resources)) == [f"{a._base_url}bat/soc"]
            assert [link["ep"] for link in await anext(endpoints)] == ["a"]
            Battery(a, aid="bat2")
            await registration.update()
            assert len(await anext(resources)) == 2
            await registration.close()
            assert await anext(resources) == await anext(endpoints) == []
        await wait_until(lambda: sum(lookups.observation_count for lookups in agent._lookups) == 0)
        assert agent.addr in repr(resources)


async def test_results_that_stay_are_not_given_twice() -> None:
    """A notification about something else is passed over."""
    async with open_two() as (agent, container):
        found = observe_lookup(container.context, agent.addr, rt="energy.soc")
        assert await anext(found) == []
        waiting = asyncio.ensure_future(anext(found))
        for i in range(3):
            await container.context.post(f"{agent.addr}/rd", uri_query=[f"ep=e{i}", "base=tcp://a:1/"])
            await wait_until(lambda: agent._pause is None)
        assert not waiting.done()
        await register(container, agent.addr)
        assert len(await waiting) == 1
        await found.aclose()


async def test_leaving_the_iteration_ends_the_observation() -> None:
    """Also without ``async with``, as soon as it is dropped."""
    async with open_two() as (agent, container):
        async for links in observe_lookup(container.context, agent.addr):
            assert links == []
            assert agent._lookups[0].observation_count == 1
            break
        del links
        await wait_until(lambda: agent._lookups[0].observation_count == 0)


async def test_observing_what_is_no_directory() -> None:
    """The first step raises what a look-up would, and a malformed result is an error whenever it comes."""

    class Fickle(ObservableResource):
        payload = b"</a>"

        def render_get(self, request: Message) -> Message:
            return Message(CONTENT, self.payload, content_format=40)

    async with open_two() as (agent, container):
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await anext(observe_lookup(container.context, f"{container._base_url}nobody"))
        fickle = Fickle()
        agent.site.add_resource("rd-lookup/ep", fickle)
        async with observe_endpoints(container.context, agent.addr, timeout=10) as found:
            assert hrefs(await anext(found)) == [f"{agent.container._base_url}a"]
            fickle.payload = b"nonsense"
            fickle.updated_state()
            with pytest.raises(LinkFormatError):
                await anext(found)


async def test_a_look_up_that_takes_too_long() -> None:
    """Its timeout counts, for an observation that of the first result."""

    class Slow(Resource):
        async def render_get(self, request: Message) -> Message:
            await asyncio.Event().wait()
            raise AssertionError

    async with open_two() as (agent, container):
        agent.site.add_resource("rd-lookup/res", Slow())
        with pytest.raises(TimeoutError):
            await lookup(container.context, agent.addr, timeout=0.01)
        with pytest.raises(TimeoutError):
            await anext(observe_lookup(container.context, agent.addr, timeout=0.01))


async def test_a_plain_context_can_look_up_too() -> None:
    """No container is needed for that."""
    async with open_two() as (agent, container), await Context.create_client_context() as context:
        await register(container, agent.addr)
        assert len(await lookup(context, agent.addr, rt="energy.soc")) == 1
