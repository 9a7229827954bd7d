"""The directory as others see it: registering, updating, looking up, observing, expiring, hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from conftest import Transport
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from aiomas_ng import Agent, Container, directory, error, linkformat, local_queue, state
from aiomas_ng.clocks import ExternalClock
from aiomas_ng.directory import Bounds, Directory
from aiomas_ng.message import CHANGED, CONTENT, CREATED, DELETED, GET, POST, VALID, Code, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource

LINK_FORMAT = 40
BASE = "tcp://node:1/"


class Hub:
    """A container with a directory, and a context that speaks to it."""

    def __init__(self, container: Container, agent: Directory, context: Context) -> None:
        self.container = container
        self.agent = agent
        self.context = context
        self.url = agent.addr
        self.root = container._base_url

    async def request(self, code: Code, path: str, payload: bytes = b"", **options: Any) -> Message:
        """Send a request to *path* below the directory and return the response, whatever it is."""
        return await self.context.request(Message(code, payload, f"{self.url}/{path}", **options)).response

    async def register(self, *query: str, links: str = "", base: str | None = BASE) -> str:
        """Register an endpoint, and return the path of the registration below the directory."""
        query += () if base is None else (f"base={base}",)
        response = await self.request(POST, "rd", links.encode(), content_format=LINK_FORMAT, uri_query=query)
        assert response.code == CREATED, response.payload
        aid, *path = response.opt.location_path
        assert aid == "directory"
        return "/".join(path)

    async def find(self, *criteria: str, kind: str = "res") -> str:
        """Look something up and return the text of the result."""
        response = await self.request(GET, f"rd-lookup/{kind}", uri_query=criteria)
        assert response.code == CONTENT, response.payload
        assert response.opt.content_format == LINK_FORMAT
        return response.payload.decode()


@contextlib.asynccontextmanager
async def open_hub(
    address: Any = None,
    *,
    clock: Any = None,
    make: Callable[..., Directory] = Directory,
    **kwds: Any,
) -> AsyncIterator[Hub]:
    """Open a container with a directory."""
    if address is None:
        address = local_queue.get_queue("hub")
    container = await Container.create(address, clock=clock, as_coro=True)
    try:
        async with await Context.create_client_context() as context:
            yield Hub(container, make(container, **kwds), context)
    finally:
        await container.shutdown(as_coro=True)


def code_of(response: Message) -> str:
    dotted: str = response.code.dotted
    return dotted


# -- Registering, over all transports --------------------------------------------------------------


async def test_the_life_of_a_registration(transport: Transport) -> None:
    """It is made, read, updated, replaced and removed, as RFC 9176, section 5, has it; then it is 4.04."""
    async with open_hub(transport.address()) as hub:
        path = await hub.register("ep=n", "lt=60", links="</a>;rt=x")
        assert await hub.find() == f'<tcp://node:1/a>;rt="x";anchor="{BASE}"'
        response = await hub.request(GET, path)
        assert (response.code, response.payload) == (CONTENT, b'</a>;rt="x"')
        assert response.opt.content_format == LINK_FORMAT

        assert (await hub.request(POST, path)).code == CHANGED
        assert (await hub.request(POST, path, uri_query=["base=tcp://new:2/", "et=bat"])).code == CHANGED
        assert await hub.find("et=bat") == '<tcp://new:2/a>;rt="x";anchor="tcp://new:2/"'

        assert await hub.register("ep=n", links="</b>") == path
        assert await hub.find() == f'<tcp://node:1/b>;anchor="{BASE}"'
        assert await hub.find(kind="ep") == f'</directory/{path}>;ep="n";base="{BASE}";rt="core.rd-ep"'

        assert (await hub.request(Code.DELETE, path)).code == DELETED
        assert await hub.find() == await hub.find(kind="ep") == ""
        for code in (GET, POST, Code.DELETE):
            assert code_of(await hub.request(code, path)) == "4.04"
        assert hub.agent.registration_count == 0


async def test_it_is_found_by_its_resource_types(transport: Transport) -> None:
    """Who knows the container finds the directory by discovery (RFC 9176, section 4.3)."""
    async with open_hub(transport.address(), aid="dir 1".replace(" ", "-")) as hub:
        links = await hub.context.discover(hub.root, rt="core.rd*")
        assert {link["rt"]: link.href.removeprefix(hub.root) for link in links} == {
            "core.rd": "dir-1/rd",
            "core.rd-lookup-res": "dir-1/rd-lookup/res",
            "core.rd-lookup-ep": "dir-1/rd-lookup/ep",
        }


async def test_registrations_are_not_listed_as_resources() -> None:
    """However many there are, the list of the container's resources does not grow."""
    async with open_hub() as hub:
        before = await hub.context.discover(hub.root)
        await hub.register("ep=n", links="</a>")
        assert await hub.context.discover(hub.root) == before


async def test_a_large_registration_goes_in_blocks() -> None:
    """More links than fit into one message are registered, read and found."""
    links = ",".join(f"</{'x' * 100}/{i}>" for i in range(3000))
    async with open_hub() as hub:
        path = await hub.register("ep=n", links=links)
        assert (await hub.request(GET, path)).payload.decode() == links
        assert len(linkformat.parse(await hub.find())) == 3000


async def test_absolute_links_and_anchors_are_left_as_they_are() -> None:
    """Only what is relative is resolved; a missing anchor is the base (RFC 9176, section 6.1)."""
    async with open_hub() as hub:
        await hub.register(
            "ep=n",
            links='<http://other/x>;rel="describedby";anchor="/a",</a>,<tcp://q:1/b>;anchor="coap://z/"',
        )
        assert await hub.find() == (
            f'<http://other/x>;rel="describedby";anchor="{BASE}a",'
            f'<{BASE}a>;anchor="{BASE}",<tcp://q:1/b>;anchor="coap://z/"'
        )


async def test_bases_of_foreign_schemes_are_fine() -> None:
    """Links to CoAP or HTTP servers can be registered by who knows them."""
    async with open_hub() as hub:
        await hub.register("ep=n", links="</a>", base="coap://[2001:db8::1]:61616")
        assert (await hub.find()).startswith("<coap://[2001:db8::1]:61616/a>")


async def test_an_update_without_lifetime_keeps_the_last_one() -> None:
    """And one with a lifetime sets it (RFC 9176, section 5.3.1)."""
    clock = ExternalClock(0)
    async with open_hub(clock=clock) as hub:
        path = await hub.register("ep=n", "lt=60")
        clock.set_time(50)
        await hub.request(POST, path)
        clock.set_time(109)
        await hub.request(POST, path, uri_query=["lt=10"])
        clock.set_time(118)
        assert hub.agent.registration_count == 1
        clock.set_time(119)
        assert hub.agent.registration_count == 0


async def test_the_base_of_who_was_dialled_is_known() -> None:
    """Where the directory's container has connected to the endpoint itself, its URL is the base."""
    async with open_hub() as hub:
        other = await Container.create(local_queue.get_queue("other"), as_coro=True)
        try:
            Plant(other, aid="p")
            assert await hub.container.context.get(f"{other._base_url}p/value") == 1
            (remote,) = other.context.tokenmanager.remotes
            request = Message(POST, b"</a>", remote=remote, uri_path=["directory", "rd"], uri_query=["ep=n"])
            assert (await other.context.request(request).response).code == CREATED
            assert await hub.find() == f'<{other._base_url}a>;anchor="{other._base_url}"'
        finally:
            await other.shutdown(as_coro=True)


async def test_without_a_base_whole_urls_can_be_registered() -> None:
    """No base is shown then; relative links are refused, until an update says the base."""
    async with open_hub() as hub:
        path = await hub.register("ep=n", links="<tcp://a:1/x>", base=None)
        assert await hub.find() == "<tcp://a:1/x>"
        assert "base" not in await hub.find(kind="ep")
        assert (await hub.request(POST, path)).code == CHANGED
        assert (await hub.request(POST, path, uri_query=[f"base={BASE}"])).code == CHANGED
        assert await hub.find() == f'<tcp://a:1/x>;anchor="{BASE}"'


# -- What bad input gets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "links", "code", "text"),
    [
        ("", "", "4.00", "parameter 'ep' is missing"),
        ("ep=", "", "4.00", "the name of the endpoint is empty"),
        ("ep=" + "x" * 64, "", "4.00", "64 bytes, the limit is 63"),
        ("ep=n&ep=m", "", "4.00", "'ep' comes twice"),
        ("ep=n&d=", "", "4.00", "the name of the sector is empty"),
        ("ep=n&lt=0", "", "4.00", "'lt' must be a number from 1 to 4294967295"),
        ("ep=n&lt=long", "", "4.00", "'lt' must be a number"),
        ("ep=n&href=/x", "", "4.00", "'href' cannot be an attribute"),
        ("ep=n&rt=x", "", "4.00", "'rt' cannot be an attribute"),
        ("ep=n&a b=x", "", "4.00", "cannot be the name of an attribute"),
        ("ep=n&base=", "", "4.00", "'base' must be a URL"),
        ("ep=n&base=node", "", "4.00", "'base' must be a URL"),
        ("ep=n&base=/x", "", "4.00", "'base' must be a URL"),
        ("ep=n&base=tcp://node", "", "4.00", "'base' must be a URL"),
        ("ep=n&base=coap:x", "", "4.00", "'base' must be a URL"),
        ("ep=n&base=coap://x/>", "", "4.00", "'base' must be a URL"),
        ("ep=n&base=tcp://node:1/?q", "", "4.00", "no query and no fragment"),
        ("ep=n&base=tcp://node:1/#f", "", "4.00", "no query and no fragment"),
        ("ep=n", "</a>", "4.00", "'/a' is relative, so 'base' has to say"),
        ("ep=n", '<tcp://a:1/>;anchor="/b"', "4.00", "'/b' is relative, so 'base' has to say"),
        ("ep=n&base=tcp://node:1/", "/a", "4.00", "malformed links: expected a target"),
        ("ep=n&base=tcp://node:1/", '</a>;title="', "4.00", "malformed links"),
        ("ep=n&base=tcp://node:1/", b"</\xff>", "4.00", "malformed links: the text is not in UTF-8"),
    ],
)
async def test_a_malformed_registration_is_refused(query: str, links: Any, code: str, text: str) -> None:
    """With 4.00 and a text that says what is wrong; nothing is registered."""
    payload = links if isinstance(links, bytes) else links.encode()
    async with open_hub() as hub:
        response = await hub.request(
            POST, "rd", payload, content_format=LINK_FORMAT, uri_query=query.split("&")
        )
        assert code_of(response) == code
        assert text in response.payload.decode()
        assert hub.agent.registration_count == 0


async def test_links_come_in_link_format() -> None:
    """Another content format is 4.15; none at all is taken for link format."""
    async with open_hub() as hub:
        query = ["ep=n", f"base={BASE}"]
        response = await hub.request(POST, "rd", b"[]", content_format=50, uri_query=query)
        assert code_of(response) == "4.15"
        assert (await hub.request(POST, "rd", b"</a>", uri_query=query)).code == CREATED


@pytest.mark.parametrize(
    ("query", "payload", "text"),
    [
        ("ep=other", b"", "'ep' cannot be changed"),
        ("d=north", b"", "'d' cannot be changed"),
        ("lt=0", b"", "'lt' must be a number"),
        ("base=x", b"", "'base' must be a URL"),
        ("", b"</b>", "an update has no payload"),
        ("page=1", b"", "'page' cannot be an attribute"),
    ],
)
async def test_a_malformed_update_is_refused(query: str, payload: bytes, text: str) -> None:
    """With 4.00, and it changes nothing, not even the end of the lifetime."""
    clock = ExternalClock(0)
    async with open_hub(clock=clock) as hub:
        path = await hub.register("ep=n", "lt=60", links="</a>")
        clock.set_time(10)
        response = await hub.request(POST, path, payload, uri_query=query.split("&"))
        assert code_of(response) == "4.00"
        assert text in response.payload.decode()
        assert await hub.find("ep=n") == f'<{BASE}a>;anchor="{BASE}"'
        assert clock.next_due() == 60


async def test_an_update_may_name_the_endpoint_that_it_is_for() -> None:
    """The same name and sector again are no change."""
    async with open_hub() as hub:
        path = await hub.register("ep=n", "d=north")
        assert (await hub.request(POST, path, uri_query=["ep=n", "d=north"])).code == CHANGED


@pytest.mark.parametrize("path", ["rd/", "rd/0", "rd/x", "rd/1/2", "rd/-1", "rd/%C2%B2"])
@pytest.mark.parametrize("code", [GET, POST, Code.DELETE])
async def test_locations_that_were_never_given(path: str, code: Code) -> None:
    """They are 4.04, also those that look like a number to some."""
    async with open_hub() as hub:
        await hub.register("ep=n")
        assert code_of(await hub.request(code, path)) == "4.04"


@pytest.mark.parametrize(
    ("code", "path"),
    [
        (GET, "rd"),
        (Code.PUT, "rd"),
        (Code.DELETE, "rd"),
        (Code.PUT, "rd-lookup/res"),
        (POST, "rd-lookup/ep"),
        (GET, ".well-known/rd"),
    ],
)
async def test_methods_that_are_not_offered(code: Code, path: str) -> None:
    """They are 4.05."""
    async with open_hub() as hub:
        assert code_of(await hub.request(code, path)) == "4.05"


async def test_a_registration_cannot_be_put() -> None:
    """RFC 9176 defines no PUT: links are replaced by registering again."""
    async with open_hub() as hub:
        path = await hub.register("ep=n")
        assert code_of(await hub.request(Code.PUT, path, b"</a>")) == "4.05"


@pytest.mark.parametrize("query", ["page=1", "count=x", "count=-1", "page=0&count=1&count=2"])
@pytest.mark.parametrize("kind", ["res", "ep"])
async def test_a_malformed_look_up_is_refused(kind: str, query: str) -> None:
    """With 4.00, observed or not."""
    async with open_hub() as hub:
        for observe in (None, 0):
            response = await hub.request(
                GET, f"rd-lookup/{kind}", uri_query=query.split("&"), observe=observe
            )
            assert code_of(response) == "4.00"
            assert b"parameter" in response.payload


@pytest.mark.parametrize("path", ["rd-lookup/res", "rd-lookup/ep", None])
async def test_only_link_format_is_offered(path: str | None) -> None:
    """Another format is 4.06."""
    async with open_hub() as hub:
        registration = await hub.register("ep=n")
        assert code_of(await hub.request(GET, path or registration, accept=50)) == "4.06"
        assert (await hub.request(GET, path or registration, accept=LINK_FORMAT)).code == CONTENT


queries = st.lists(
    st.text(max_size=20)
    | st.from_regex(r"(ep|d|lt|base|et)=.{0,30}", fullmatch=True)
    | st.sampled_from(["ep=n", "lt=60", "base=local://nobody/"]),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(query=queries, payload=st.binary(max_size=40) | st.sampled_from([b"</a>", b"</a>;rt=x,</b>;obs"]))
async def test_whatever_comes_is_taken_or_refused(query: list[str], payload: bytes) -> None:
    """Each answer is a success or names the error, and what was taken can be looked up and parsed."""
    async with open_hub() as hub:
        query = [text for text in query if len(text.encode()) <= 255]
        for path in ("rd", ".well-known/rd", "rd-lookup/res"):
            code = GET if path.startswith("rd-") else POST
            response = await hub.request(code, path, payload, uri_query=query)
            assert response.code.class_ in (2, 4, 5)
            assert response.code != Code.INTERNAL_SERVER_ERROR
        for kind in ("res", "ep"):
            linkformat.parse(await hub.find(kind=kind))


# -- Bounds ----------------------------------------------------------------------------------------


async def test_too_many_registrations() -> None:
    """5.03 with a time to try again; those that are there can still be renewed and replaced."""
    async with open_hub(bounds=Bounds(registrations=2)) as hub:
        path = await hub.register("ep=a")
        await hub.register("ep=b")
        response = await hub.request(POST, "rd", uri_query=["ep=c", f"base={BASE}"])
        assert code_of(response) == "5.03"
        assert response.opt.max_age == 60
        assert b"2 registrations already" in response.payload
        assert await hub.register("ep=a", links="</x>") == path
        await hub.request(Code.DELETE, path)
        await hub.register("ep=c")


@pytest.mark.parametrize(
    ("bounds", "links", "code"),
    [
        ({"links": 2}, "</a>,</b>,</c>", "4.13"),
        ({"size": 4_000}, f"</{'a' * 5_000}>", "4.13"),
        ({"size": 4_000}, f"</{'a' * 3_500}>", "4.13"),  # the text is small enough, what is made of it is not
        ({"total_size": 4_000}, f"</{'a' * 3_500}>", "5.03"),
    ],
)
async def test_too_large_registrations(bounds: dict[str, int], links: str, code: str) -> None:
    """4.13 for what no directory like this takes, 5.03 for what it may take later; what was there stays."""
    async with open_hub(bounds=Bounds(**bounds)) as hub:
        await hub.register("ep=n", links="</x>")
        query = ["ep=n", f"base={BASE}"]
        response = await hub.request(POST, "rd", links.encode(), uri_query=query)
        assert code_of(response) == code
        assert b"limit is" in response.payload
        assert await hub.find() == f'<{BASE}x>;anchor="{BASE}"'


async def test_an_update_cannot_exceed_the_bounds_either() -> None:
    """Neither by attributes, nor by a base that makes all links longer."""
    async with open_hub(bounds=Bounds(size=6_000)) as hub:
        path = await hub.register("ep=n", links=",".join(f"</{i}>" for i in range(5)))
        for query in ([f"a{i}=x" for i in range(50)], [f"base=tcp://{'h' * 230}:1/"]):
            assert code_of(await hub.request(POST, path, uri_query=query)) == "4.13"
        assert await hub.find("base=tcp://node:1/", kind="ep")


# -- Who may register ------------------------------------------------------------------------------


class Guarded(Directory):
    """Lets nobody touch what is called 'mine'."""

    def check(self, request: Message, endpoint: str, sector: str | None) -> None:
        assert request.remote is not None
        if endpoint == "mine" and sector != "public":
            raise error.Forbidden("not yours")


async def test_a_subclass_decides_who_may_register() -> None:
    """Registering, updating, removing and registering simply are asked for; look-ups are not."""
    async with open_hub(make=Guarded) as hub:
        query = ["ep=mine", f"base={hub.root}"]
        for path in ("rd", ".well-known/rd"):
            response = await hub.request(POST, path, uri_query=query)
            assert (code_of(response), response.payload) == ("4.03", b"not yours")
        await hub.register("ep=mine", "d=public")
        path = await hub.register("ep=other")
        assert (await hub.request(Code.DELETE, path)).code == DELETED
        hub.agent._registry.put(directory.Parameters("mine"), BASE, "", [], 0.0)
        number = linkformat.parse(await hub.find("ep=mine", kind="ep"))[1].href.rpartition("/")[2]
        for code in (POST, Code.DELETE):
            assert code_of(await hub.request(code, f"rd/{number}")) == "4.03"


# -- Look-ups --------------------------------------------------------------------------------------


async def test_results_come_by_page() -> None:
    """``page`` and ``count`` cut the result (RFC 9176, section 6.2)."""
    async with open_hub() as hub:
        await hub.register("ep=a", links=",".join(f"</{i}>" for i in range(5)))
        await hub.register("ep=b", links="</5>,</6>")
        pages = [linkformat.parse(await hub.find(f"page={i}", "count=3")) for i in range(4)]
        found = [[link.href.rpartition("/")[2] for link in page] for page in pages]
        assert found == [["0", "1", "2"], ["3", "4", "5"], ["6"], []]
        assert len(linkformat.parse(await hub.find("count=1", kind="ep"))) == 1


async def test_an_unchanged_result_is_not_sent_again() -> None:
    """Who has it gets 2.03 (RFC 9176, section 6.2, names entity tags); it is fresh for no time."""
    async with open_hub() as hub:
        await hub.register("ep=a", links="</x>")
        first = await hub.request(GET, "rd-lookup/res")
        assert first.opt.max_age == 0
        again = await hub.request(GET, "rd-lookup/res", etags=[first.opt.etag])
        assert (again.code, again.payload) == (VALID, b"")
        await hub.register("ep=b", links="</x>")
        changed = await hub.request(GET, "rd-lookup/res", etags=[first.opt.etag])
        assert changed.code == CONTENT


# -- Lifetimes, in simulated time ------------------------------------------------------------------


async def test_registrations_expire_in_simulated_time() -> None:
    """Exactly at the end of the lifetime, several at once; the clock knows when that is."""
    clock = ExternalClock(0)
    async with open_hub(clock=clock) as hub:
        for name in "abc":
            await hub.register(f"ep={name}", "lt=60", links="</x>")
        path = await hub.register("ep=d", "lt=60")
        assert clock.next_due() == 60
        clock.set_time(59)
        assert (await hub.request(POST, path)).code == CHANGED
        assert hub.agent.registration_count == 4
        clock.set_time(60)
        assert await hub.find(kind="ep") == await hub.find("ep=d", kind="ep")
        assert clock.next_due() == 119
        clock.set_time(1e9)
        assert await hub.find(kind="ep") == ""
        assert clock.next_due() is None


async def test_registrations_expire_unasked() -> None:
    """Nobody has to look for them to go, and an observer is told."""
    clock = ExternalClock(0)
    async with open_hub(clock=clock) as hub:
        await hub.register("ep=a", "lt=60")
        async with hub.context.observe(f"{hub.url}/rd-lookup/ep") as states:
            assert '"a"' in await anext(states)
            clock.set_time(60)
            assert await anext(states) == ""
            assert len(hub.agent._registry) == 0


async def test_registrations_expire_in_real_time() -> None:
    """With the clock that containers have by default."""
    async with open_hub() as hub, hub.context.observe(f"{hub.url}/rd-lookup/ep") as states:
        assert await anext(states) == ""
        begin = hub.container.loop.time()
        await hub.register("ep=a", "lt=1")
        assert '"a"' in await anext(states)
        assert await anext(states) == ""
        assert 0.9 < hub.container.loop.time() - begin < 20


async def test_no_timer_is_left_behind() -> None:
    """When the agent is removed, neither the clock nor the loop waits for anything of it."""
    clock = ExternalClock(0)
    async with open_hub(clock=clock) as hub:
        await hub.register("ep=a", "lt=60")
        await hub.container.remove_agent(hub.agent)
        assert clock.next_due() is None
        assert hub.agent._pause is not None
        assert hub.agent._pause.cancelled()


class _Racing(ExternalClock):
    """Real time passes between any two looks at it."""

    is_racing = False

    def call_at(self, t: Any, func: Any, *args: Any) -> Any:
        if self.is_racing:
            raise ValueError("in the past")
        return super().call_at(t, func, *args)

    def call_in(self, dt: float, func: Any, *args: Any) -> Any:
        assert dt == 0
        self.is_racing = False
        return super().call_at(self.time() + 1, func, *args)


async def test_an_end_that_has_passed_meanwhile() -> None:
    """Where real time passes between looking at the clock and setting the timer, it is looked at again."""
    clock = _Racing(0)
    async with open_hub(clock=clock) as hub:
        clock.is_racing = True
        await hub.register("ep=a", "lt=60")
        assert clock.next_due() == 1
        clock.set_time(1)
        await wait_until(lambda: clock.next_due() == 60)


# -- Observing -------------------------------------------------------------------------------------


async def test_look_ups_are_observed(transport: Transport) -> None:
    """Registrations that come, change and leave are told at once; the latest state comes in the end."""
    async with open_hub(transport.address()) as hub:
        async with hub.context.observe(f"{hub.url}/rd-lookup/res?rt=x") as states:
            assert await anext(states) == ""
            path = await hub.register("ep=a", links="</x>;rt=x,</y>;rt=y")
            assert await anext(states) == f'<{BASE}x>;rt="x";anchor="{BASE}"'
            await hub.request(POST, path, uri_query=["base=tcp://n:2/"])
            assert (await anext(states)).startswith("<tcp://n:2/x>")
            await hub.register("ep=a", links="</z>;rt=x")
            assert (await anext(states)).startswith(f"<{BASE}z>")
            await hub.request(Code.DELETE, path)
            assert await anext(states) == ""
        await wait_until(lambda: hub.agent._lookups[0].observation_count == 0)


async def test_renewals_are_not_told() -> None:
    """What changes nothing that can be looked up notifies nobody."""
    async with open_hub() as hub:
        path = await hub.register("ep=a", links="</x>")
        async with hub.context.observe(f"{hub.url}/rd-lookup/res") as states:
            await anext(states)
            for _ in range(5):
                await hub.request(POST, path, uri_query=["lt=70"])
                await hub.register("ep=a", "lt=80", links="</x>")
            assert not hub.agent._has_news
            await hub.register("ep=b", links="</y>")
            assert len(linkformat.parse(await anext(states))) == 2


async def test_a_burst_of_registrations_costs_few_notifications(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand in a row are some notifications with ever more of them, and in the end there are all."""
    async with open_hub() as hub:
        renders = 0
        find = hub.agent._registry.find_resources

        def count(criteria: Any) -> Any:
            nonlocal renders
            renders += 1
            return find(criteria)

        monkeypatch.setattr(hub.agent._registry, "find_resources", count)
        async with hub.context.observe(f"{hub.url}/rd-lookup/res?rt=x") as states:
            await anext(states)
            begin = hub.container.loop.time()
            await asyncio.gather(*(hub.register(f"ep=e{i}", links="</x>;rt=x") for i in range(1000)))
            while len(linkformat.parse(await anext(states))) < 1000:
                pass
            spent = hub.container.loop.time() - begin
            assert renders <= 4 + 2 * spent / directory.PAUSE


async def test_costly_notifications_are_followed_by_long_pauses() -> None:
    """However many look-ups are observed, notifying takes a part of the time only; nothing is lost."""
    async with open_hub() as hub, hub.context.observe(f"{hub.url}/rd-lookup/res") as states:
        await anext(states)
        await hub.register("ep=a", links="</x>")
        await anext(states)
        assert 0 < hub.agent._cost < 1
        hub.agent._cost = 0.1
        begin = hub.container.loop.time()
        await hub.register("ep=b", links="</x>")
        assert len(linkformat.parse(await anext(states))) == 2
        assert hub.container.loop.time() - begin > 0.3


async def test_the_end_of_the_directory_ends_observations() -> None:
    """The last notification is 4.04."""
    async with open_hub() as hub:
        states = hub.context.observe(f"{hub.url}/rd-lookup/res")
        assert await anext(states) == ""
        await hub.container.remove_agent(hub.agent)
        with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
            await anext(states)


# -- Simple registration ---------------------------------------------------------------------------


class Plant(Agent):
    """Has something to be found."""

    @state(rt="plant.value")
    def value(self) -> int:
        return 1


@contextlib.asynccontextmanager
async def open_container(address: Any, **kwds: Any) -> AsyncIterator[Container]:
    container = await Container.create(address, as_coro=True, **kwds)
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


def simply(hub: Hub, *query: str, **kwds: Any) -> Message:
    return Message(POST, uri=f"{hub.url}/.well-known/rd", uri_query=query, **kwds)


async def test_simple_registration_by_base(transport: Transport) -> None:
    """The directory fetches the links from the base itself (RFC 9176, section 5.1)."""
    async with open_hub(transport.address()) as hub, open_container(transport.address()) as other:
        Plant(other, aid="p")
        query = ["ep=n", "lt=60", f"base={other._base_url}", "et=plant"]
        response = await hub.context.request(simply(hub, *query)).response
        assert response.code == CHANGED
        assert not response.opt.location_path
        (link,) = linkformat.parse(await hub.find("et=plant"))
        assert link.href == f"{other._base_url}p/value"
        assert await hub.context.get(link.href) == 1


async def test_simple_registration_over_the_own_connection() -> None:
    """Without a base the links come over the connection of the request, from no known address."""
    site = directory_of(b"<tcp://n:1/x>;rt=x")
    async with open_hub() as hub, await Context.create_client_context() as context:
        context.serversite = site
        assert (await context.request(simply(hub, "ep=n")).response).code == CHANGED
        assert await hub.find() == '<tcp://n:1/x>;rt="x"'


def directory_of(payload: bytes, **options: Any) -> Any:
    """Return a site whose list of resources is *payload*."""
    from aiomas_ng.resource import Site

    class Core(Resource):
        def render_get(self, request: Message) -> Message:
            assert request.opt.accept == LINK_FORMAT
            return Message(payload=payload, **options)

    site = Site()
    site.add_resource([".well-known", "core"], Core())
    return site


class Silent(Resource):
    """Never answers."""

    async def render_get(self, request: Message) -> Message:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(
    ("site", "code", "text"),
    [
        (None, "5.02", "could not be fetched: "),
        (directory_of(b"</x>"), "4.00", "'/x' is relative, so 'base' has to say"),
        (directory_of(b"nonsense"), "5.02", "malformed links"),
        (directory_of(b"[]", content_format=50), "5.02", "4.06 Not Acceptable"),
        (directory_of(b",".join([b"<tcp://n:1/>"] * 3)), "4.13", "3 links, the limit is 2"),
        (directory_of(b"<tcp://n:1/%s>" % (b"x" * 9_000)), "4.13", "9012 bytes of links"),
    ],
)
async def test_a_simple_registration_that_fails(site: Any, code: str, text: str) -> None:
    """The answer says why; nothing is registered."""
    async with open_hub(bounds=Bounds(links=2, size=8_000)) as hub:
        hub.context.serversite = site
        response = await hub.context.request(simply(hub, "ep=n")).response
        assert code_of(response) == code
        assert text in response.payload.decode()
        assert hub.agent.registration_count == 0


@pytest.mark.parametrize(
    ("query", "payload", "code", "text"),
    [
        (["ep="], b"", "4.00", "is empty"),
        ([], b"", "4.00", "'ep' is missing"),
        (["ep=n"], b"</a>", "4.00", "has no payload"),
        (["ep=n", "base=nonsense"], b"", "4.00", "'base' must be a URL"),
        (["ep=n", "base=coap://n/"], b"", "4.00", "cannot be fetched from 'base'"),
        (["ep=n", "base=local://nobody/"], b"", "5.02", "could not be fetched"),
    ],
)
async def test_a_malformed_simple_registration(
    query: list[str], payload: bytes, code: str, text: str
) -> None:
    """It is refused with a text, before anything is fetched where that is possible."""
    async with open_hub() as hub:
        response = await hub.context.request(simply(hub, *query, payload=payload)).response
        assert code_of(response) == code
        assert text in response.payload.decode()


async def test_a_simple_registration_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not send its links gets 5.04; the fetch is taken back."""
    monkeypatch.setattr(directory, "FETCH_TIMEOUT", 0.05)
    site = directory_of(b"")
    site.add_resource([".well-known", "core"], Silent())
    async with open_hub() as hub:
        hub.context.serversite = site
        response = await hub.context.request(simply(hub, "ep=n")).response
        assert code_of(response) == "5.04"
        assert hub.agent._fetches == 0


async def test_there_are_not_too_many_fetches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, who registers simply gets 5.03; who gives up makes room."""
    monkeypatch.setattr(directory, "MAX_FETCHES", 2)
    site = directory_of(b"")
    site.add_resource([".well-known", "core"], Silent())
    async with open_hub() as hub:
        hub.context.serversite = site
        waiting = [hub.context.request(simply(hub, f"ep={name}")) for name in "ab"]
        await wait_until(lambda: hub.agent._fetches == 2)
        response = await hub.context.request(simply(hub, "ep=c")).response
        assert code_of(response) == "5.03"
        assert response.opt.max_age == 1
        for request in waiting:
            request.response.cancel()
        await wait_until(lambda: hub.agent._fetches == 0)


async def test_what_was_forwarded_needs_a_base() -> None:
    """The connection is that of who forwards: neither its links nor its URL are those of the endpoint."""
    async with open_hub() as hub, open_container(local_queue.get_queue("middle")) as middle:
        middle.mount("far", hub.root)
        url = f"{middle._base_url}far/directory"
        # Connect from the hub to the middle, so that the way back has a URL that could be taken for the base.
        await hub.container.context.discover(middle._base_url)
        for path, payload in (("rd", b"</a>"), (".well-known/rd", b"")):
            message = Message(POST, payload, f"{url}/{path}", uri_query=["ep=n"])
            response = await hub.context.request(message).response
            assert code_of(response) == "4.00"
            assert b"'base'" in response.payload
        assert hub.agent.registration_count == 0


async def test_who_registers_simply_while_the_directory_ends() -> None:
    """The links come too late: nothing is set off any more."""
    gate = asyncio.Event()

    class Core(Resource):
        async def render_get(self, request: Message) -> Message:
            await gate.wait()
            return Message(payload=b"")

    clock = ExternalClock(0)
    site = directory_of(b"")
    site.add_resource([".well-known", "core"], Core())
    async with open_hub(clock=clock) as hub:
        hub.context.serversite = site
        request = hub.context.request(simply(hub, "ep=n"))
        await wait_until(lambda: hub.agent._fetches)
        await hub.container.remove_agent(hub.agent)
        gate.set()
        await request.response
        assert clock.next_due() is None
