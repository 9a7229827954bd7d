"""Mounting other containers: what passes through hops, in both directions, and what ends at them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
from coap_contexts import Echo, Stuck, Value, raw_client, raw_server, site_of
from conftest import Transport
from resource_peers import Stream
from waiting import wait_until

from aiomas_ng import Agent, Container, error, state
from aiomas_ng._core.limits import DEFAULT_LIMITS
from aiomas_ng.exceptions import AddressError
from aiomas_ng.forwarding import DEFAULT_HOP_LIMIT, Forwarder
from aiomas_ng.linkformat import Link
from aiomas_ng.message import CONTENT, DELETE, GET, POST, PUT, Code, ContentFormat, Message
from aiomas_ng.pipe import WINDOW, IterablePipe, Pipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource, Site, WKCResource


class Chain:
    """A client, hubs that each have mounted the next one as ``far``, and an origin.

    Args:
        client: Who asks.
        origin: Who answers.
        hubs: Those in between, the client's neighbour first.
        url: The origin's base URL as the client sees it.
    """

    def __init__(self, client: Context, origin: Context, hubs: list[Context], url: str) -> None:
        self.client = client
        self.origin = origin
        self.hubs = hubs
        self.url = url

    async def ask(self, code: Code, path: str, payload: bytes = b"", **options: Any) -> Message:
        """Send one request through the chain and return the response."""
        return await self.client.request(Message(code, payload, self.url + path, **options)).response

    async def until_quiet(self) -> None:
        """Wait until no request is under way anywhere."""
        everybody = [self.client, self.origin, *self.hubs]
        await wait_until(
            lambda: (
                not any(
                    each.tokenmanager.incoming_requests or each.tokenmanager.outgoing_requests
                    for each in everybody
                )
            )
        )


@contextlib.asynccontextmanager
async def chain(
    transport: Transport, site: Any, hops: int = 2, base: str = "", **kwds: Any
) -> AsyncIterator[Chain]:
    """Give a chain.

    Args:
        transport: How its members are connected.
        site: What the origin has.
        hops: How many hubs there are.
        base: What of the origin is mounted.
        **kwds: Options of the forwarders.
    """
    async with contextlib.AsyncExitStack() as stack:
        origin = await Context.create_server_context(site, transport.address())
        await stack.enter_async_context(origin)
        hubs: list[Context] = []
        target = origin.urls[0] + base
        for _ in range(hops):
            hub = await open_hub(stack, transport, target, **kwds)
            hubs.insert(0, hub)
            target = hub.urls[0] + "far"
        client = await stack.enter_async_context(await Context.create_client_context())
        yield Chain(client, origin, hubs, target.rstrip("/") + "/")


async def open_hub(
    stack: contextlib.AsyncExitStack, transport: Transport, target: str, **kwds: Any
) -> Context:
    """Return a context that has mounted *target* as ``far``."""
    site = Site()
    hub = await Context.create_server_context(site, transport.address())
    await stack.enter_async_context(hub)
    site.add_resource("far", Forwarder(hub, target, **kwds))
    return hub


class Everything(Resource):
    """Answers each request with what it sees of it."""

    def render_get(self, request: Message) -> Message:
        options = request.opt
        text = (
            f"{request.code.name} {'|'.join(options.uri_query)} {options.accept} {request.payload.decode()}"
        )
        return Message(payload=text.encode(), etag=b"tag", max_age=9, content_format=0)

    render_put = render_post = render_delete = render_fetch = render_patch = render_ipatch = render_get


# -- Values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [0, 1, 2, 4])
async def test_requests_and_responses_pass(transport: Transport, hops: int) -> None:
    """Every method passes with its options and payload, and the response comes back as it is."""
    async with chain(transport, site_of(all=Everything()), hops) as far:
        for code in (GET, PUT, POST, DELETE, Code.FETCH, Code.PATCH, Code.iPATCH):
            response = await far.ask(code, "all", b"body", uri_query=["a=1", "b"], accept=0)
            assert response.payload == f"{code.name} a=1|b 0 body".encode()
            options = response.opt
            assert (options.etag, options.max_age, options.content_format) == (b"tag", 9, 0)
            assert response.get_request_uri() == f"{far.url}all?a=1&b"
        assert (await far.ask(GET, "all", etags=[b"tag"])).code == CONTENT  # the origin does not compare
        await far.until_quiet()


async def test_agents_reach_each_other_through_a_third_container(transport: Transport) -> None:
    """Containers mount others; their agents are read, set and observed through them, and found."""

    class Battery(Agent):
        energy = 0.5

        @state(rt="energy.soc")
        def soc(self) -> float:
            return self.energy

        @soc.setter
        def set_soc(self, value: float) -> None:
            self.energy = value

    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(3):
            made.append(await Container.create(transport.address(), as_coro=True))
            stack.push_async_callback(made[-1].shutdown, as_coro=True)
        north, hub, south = made
        battery = Battery(north, aid="bat")
        hub.mount(["all", "north"], battery.addr.removesuffix("bat"))
        base = Agent(hub, aid="hub").addr.removesuffix("hub")
        (link,) = await south.context.discover(base + "all/north", rt="energy.*")
        assert link.href == base + "all/north/bat/soc"
        assert await south.context.get(link.href) == 0.5
        async with south.context.observe(link.href) as states:
            assert await anext(states) == 0.5
            await south.context.put(link.href, 0.75)
            assert await anext(states) == 0.75
            hub.site.remove_resource("all/north")
            with pytest.raises(error.ResponseWrappingError, match="mount was removed") as caught:
                await anext(states)
            assert caught.value.code == Code.NOT_FOUND
        resource, _ = battery.site.find(("soc",))
        await wait_until(lambda: not resource.observation_count)
        with pytest.raises(AddressError):
            hub.mount("south", "coap://south.example/")


@pytest.mark.parametrize(
    "path", ["", "a", "a/b", "a//b", "a/", "gr%C3%BC%C3%9Fe", "a%2Fb", "%3F%23", "/a", "//"]
)
async def test_paths_pass(path: str) -> None:
    """Whatever path follows the mount is what the origin sees."""

    class Paths(Site):
        async def render_to_pipe(self, pipe: Pipe) -> None:
            text = "+".join(pipe.request.opt.uri_path)
            pipe.add_response(Message(CONTENT, text.encode(), content_format=0), is_last=True)

    async with chain(Transport("local", None), Paths()) as far:  # type: ignore[arg-type]  # it needs no directory
        expected = Message(GET, uri="tcp://x:1/" + path).opt.uri_path
        assert (await far.ask(GET, path)).text == "+".join(expected)


async def test_mounted_at_the_root(transport: Transport) -> None:
    """A forwarder may be the whole site of a context, or lie at its root."""
    async with chain(transport, site_of(value=Value(b"x")), 0) as near, contextlib.AsyncExitStack() as stack:
        for at_root in (False, True):
            site = Site()
            hub = await stack.enter_async_context(
                await Context.create_server_context(site, transport.address())
            )
            forwarder = Forwarder(hub, near.url)
            if at_root:
                site.add_resource("", forwarder)
            else:
                hub.serversite = forwarder
            assert await near.client.get(hub.urls[0] + "value") == b"x"


async def test_mounted_part(transport: Transport) -> None:
    """What is mounted may be a part of the origin; requests stay within it."""
    inner = site_of(value=Value(b"inside"), root=Value())
    inner.add_resource([], Value(b"the root"))
    origin = site_of(outside=Value(b"outside"))
    origin.add_resource("house/grüße", inner)
    async with chain(transport, origin, 1, "house/gr%C3%BC%C3%9Fe/") as far:
        assert await far.client.get(far.url + "value") == b"inside"
        assert await far.client.get(far.url) == b"the root"
        response = await far.ask(GET, "outside")
        assert response.code == Code.NOT_FOUND


ABSOLUTE = Link("tcp://elsewhere:1/x", rt="far.away")


class Shop(Resource):
    """Makes things: at its own place, and elsewhere."""

    def render_post(self, request: Message) -> Message:
        return Message(
            Code.CREATED, location_path=request.payload.decode().split("/"), location_query=["v=1"]
        )


async def test_location_leads_through_the_hops(transport: Transport) -> None:
    """What was created has the path that leads there through the hops; what is out of reach has none."""
    async with chain(transport, site_of(shop=Shop())) as far:
        response = await far.ask(POST, "shop", b"shop/1")
        assert (response.opt.location_path, response.opt.location_query) == (("far", "shop", "1"), ("v=1",))
    part = site_of()
    part.add_resource("part", site_of(shop=Shop()))
    async with chain(transport, part, 1, "part") as far:
        assert (await far.ask(POST, "shop", b"part/shop/1")).opt.location_path == ("far", "shop", "1")
        assert (await far.ask(POST, "shop", b"other/1")).opt.location_path == ()


async def test_no_response_passes(transport: Transport) -> None:
    """A requester that wants no response gets none, and the work is done (RFC 7967)."""
    value = Value()
    async with chain(transport, site_of(value=value)) as far:
        response = await far.ask(PUT, "value", b"new", no_response=26)
        assert response.code == Code.EMPTY
        await wait_until(lambda: value.writes == [b"new"])
        assert (await far.ask(PUT, "value", b"newer", no_response=2)).code == Code.EMPTY
        assert (await far.ask(PUT, "nothing", b"x", no_response=2)).code == Code.NOT_FOUND
        await far.until_quiet()


async def test_rendered_without_a_pipe(transport: Transport) -> None:
    """A site that renders by itself gets one response, also where an observation was asked for."""
    async with chain(transport, site_of(value=Value(b"x"), stuck=Stuck()), 0) as near:
        site = Site()
        site.add_resource("far", Forwarder(near.client, near.url, timeout=0.1))
        response = await site.render(Message(GET, uri_path=["far", "value"], observe=0))
        assert (response.payload, response.opt.observe) == (b"x", None)
        with pytest.raises(error.GatewayTimeout):
            await site.render(Message(GET, uri_path=["far", "stuck"]))
        assert not await site.needs_blockwise_assembly(Message(PUT, uri_path=["far", "value"]))


def test_wrong_urls() -> None:
    """A forwarder needs a base URL."""
    for url in ("coap://x/", "tcp://x", "nonsense", "tcp://x:1/a?b=c"):
        with pytest.raises(AddressError):
            Forwarder(None, url)  # type: ignore[arg-type]  # it comes to nothing
    shown = repr(Forwarder(None, "tcp://x:1/a%20b/"))  # type: ignore[arg-type]  # it only shows itself
    assert shown == "<Forwarder to tcp://x:1/a%20b>"


# -- Streams ---------------------------------------------------------------------------------------


async def test_stream_passes(transport: Transport) -> None:
    """All responses of a stream arrive in order."""
    async with chain(transport, site_of(stream=Stream(500))) as far:
        async with IterablePipe(Message(GET, uri=far.url + "stream")) as pipe:
            far.client.begin(pipe)
            payloads = [event.message.payload async for event in pipe if event.message is not None]
        assert payloads == [b"%d" % number for number in range(1, 501)]
        await far.until_quiet()


async def test_slow_reader_of_a_stream_holds_the_origin_back(transport: Transport) -> None:
    """Who does not read stops the origin, after as many responses as all hops may hold; leaving ends it."""
    stream = Stream()
    async with chain(transport, site_of(stream=stream)) as far:
        async with IterablePipe(Message(GET, uri=far.url + "stream")) as pipe:
            far.client.begin(pipe)
            events = aiter(pipe)
            await anext(events)
            produced = -1
            while produced != stream.produced:  # until it stands still
                produced = stream.produced
                for _ in range(20):
                    await asyncio.sleep(0.001)
            assert produced <= 3 * 3 * WINDOW
            for number in range(2, 1000):
                event = await anext(events)
                assert event.message is not None
                assert event.message.payload == b"%d" % number
        await stream.ended.wait()
        assert isinstance(stream.error, asyncio.CancelledError)
        await far.until_quiet()


# -- Observation -----------------------------------------------------------------------------------


async def test_observation_passes(transport: Transport) -> None:
    """An observer behind two hops gets each state that it waits for, in order."""
    value = Value(b"0")
    async with chain(transport, site_of(value=value)) as far:
        async with far.client.observe(far.url + "value") as states:
            for number in range(20):
                assert await anext(states) == b"%d" % number
                value.set(b"%d" % (number + 1))
        await far.until_quiet()
        await wait_until(lambda: not value.observation_count)


async def test_observation_that_is_left_ends_at_the_origin(transport: Transport) -> None:
    """Leaving the ``async for`` is enough for the observation to be cancelled two hops away."""
    value = Value(b"0")
    async with chain(transport, site_of(value=value)) as far:
        async for received in far.client.observe(far.url + "value"):
            assert value.observation_count == 1
            if received == b"2":
                break
            value.set(b"%d" % (int(received) + 1))
        await wait_until(lambda: not value.observation_count)
        await far.until_quiet()


async def test_observers_behind_a_hub_are_alike_at_the_origin(transport: Transport) -> None:
    """Several observers through one hub are several at the origin, and one rendering is enough for them."""
    value = Value(b"0")
    value.is_alike_for_all = True
    async with chain(transport, site_of(value=value), 1) as far, contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(await Context.create_client_context())
        everybody = [
            await stack.enter_async_context(context.observe(far.url + "value"))
            for context in (far.client, far.client, other)
        ]
        for states in everybody:
            assert await anext(states) == b"0"
        assert value.observation_count == 3
        value.reads = 0
        value.set(b"1")
        for states in everybody:
            assert await anext(states) == b"1"
        assert value.reads == 1


async def test_slow_observer_gets_the_latest_state(transport: Transport) -> None:
    """An observer that does not read skips what it has missed, and neither hub keeps more than one state."""
    value = Value(bytes(20_000))
    async with chain(transport, site_of(value=value)) as far, raw_client(far.hubs[0].urls[0]) as raw:
        await raw.ask(GET, "far/value", observe=0)
        (remote,) = [each for each in far.hubs[0].tokenmanager.remotes if b"t" in each.incoming]
        raw.raw.stop_reading()
        async with far.client.observe(far.url + "value") as states:
            await anext(states)
            number = 0
            after = 0
            while after < 50:
                number += 1
                after += remote.is_paused
                value.set(b"%05d" % number * 4000)
                while await anext(states) != value.payload:
                    pass
        raw.raw.start_reading()
        received = 0
        while (await raw.receive_message()).payload != value.payload:
            received += 1
        assert received < number - 40


async def test_what_cannot_be_observed(transport: Transport) -> None:
    """A resource that cannot be observed is not, through hops either; an error is passed on."""
    async with chain(transport, site_of(all=Everything())) as far:
        async with far.client.observe(far.url + "all") as states:
            assert await anext(states) == "GET  None "
            with pytest.raises(error.NotObservable):
                await anext(states)
        async with far.client.observe(far.url + "nothing") as states:
            with pytest.raises(error.ResponseWrappingError, match=r"4\.04"):
                await anext(states)
        await far.until_quiet()


async def test_observation_that_the_origin_ends(transport: Transport) -> None:
    """The last notification arrives as it is."""
    value = Value(b"x")
    site = site_of(value=value)
    async with chain(transport, site) as far, far.client.observe(far.url + "value") as states:
        assert await anext(states) == b"x"
        site.remove_resource("value")
        with pytest.raises(error.ResponseWrappingError, match="resource was removed") as caught:
            await anext(states)
        assert caught.value.code == Code.NOT_FOUND
        await far.until_quiet()


async def test_origin_that_restarts_while_it_is_observed() -> None:
    """When the origin is lost and comes back, the observation goes on, and the observer notices nothing."""
    value = Value(b"before")
    async with contextlib.AsyncExitStack() as stack:
        origin = await Context.create_server_context(site_of(value=value), ("127.0.0.1", 0))
        address = ("127.0.0.1", int(origin.urls[0].rstrip("/").rpartition(":")[2]))
        first = await open_hub(stack, Transport("tcp", None), origin.urls[0])  # type: ignore[arg-type]  # no directory
        client = await stack.enter_async_context(await Context.create_client_context())
        states = await stack.enter_async_context(client.observe(first.urls[0] + "far/value"))
        assert await anext(states) == b"before"
        for remote in origin.tokenmanager.remotes:
            remote.channel.transport.abort()
        await origin.shutdown()
        value = Value(b"after")
        again = await Context.create_server_context(site_of(value=value), address)
        await stack.enter_async_context(again)
        assert await anext(states) == b"after"
        value.set(b"later")
        assert await anext(states) == b"later"


async def test_origin_that_does_not_come_back(transport: Transport) -> None:
    """When the origin is lost for longer than the hub's patience, the observation ends with 5.02."""
    async with chain(transport, site_of(value=Value(b"x"))) as far:
        far.hubs[1].patience = 0.05
        async with far.client.observe(far.url + "value") as states:
            assert await anext(states) == b"x"
            for remote in far.origin.tokenmanager.remotes:
                remote.channel.transport.abort()
            for server in far.origin._servers:
                server.close()
            with pytest.raises(error.ResponseWrappingError) as caught:
                await anext(states)
            assert caught.value.code == Code.BAD_GATEWAY


# -- Errors ----------------------------------------------------------------------------------------


async def test_errors_pass(transport: Transport) -> None:
    """Unsuccessful responses arrive as they are, with their options and texts."""

    class Failing(Resource):
        def render_get(self, request: Message) -> Message:
            raise error.ServiceUnavailable("later", max_age=7)

        def render_put(self, request: Message) -> Message:
            raise error.GatewayTimeout("of its own")

    async with chain(transport, site_of(failing=Failing())) as far:
        response = await far.ask(GET, "failing")
        assert (response.code, response.text, response.opt.max_age) == (Code.SERVICE_UNAVAILABLE, "later", 7)
        response = await far.ask(PUT, "failing")
        assert (response.code, response.text) == (Code.GATEWAY_TIMEOUT, "of its own")
        assert (await far.ask(POST, "failing")).code == Code.METHOD_NOT_ALLOWED
        assert (await far.ask(GET, "nothing")).code == Code.NOT_FOUND
        message = Message(GET, uri=far.url + "failing")
        message.opt.add_option(2049, b"")
        assert (await far.client.request(message).response).code == Code.BAD_OPTION


@pytest.mark.parametrize("options", [{}, {"observe": 0}])
@pytest.mark.parametrize("path", ["value", ".well-known/core"])
async def test_origin_that_is_not_there(transport: Transport, options: dict[str, Any], path: str) -> None:
    """Where there is no way to the origin, the response is 5.02."""
    async with chain(transport, Site()) as far:
        await far.origin.shutdown()
        response = await far.ask(GET, path, **options)
        assert response.code == Code.BAD_GATEWAY
        await far.until_quiet()


async def test_origin_that_is_lost_while_it_works(transport: Transport) -> None:
    """When the connection to the origin breaks, whoever waits gets 5.02; and then it is there again."""
    stuck = Stuck()
    async with chain(transport, site_of(stuck=stuck, value=Value(b"x"))) as far:
        asked = asyncio.ensure_future(far.ask(GET, "stuck"))
        await wait_until(lambda: stuck.begun)
        for remote in far.origin.tokenmanager.remotes:
            remote.channel.transport.abort()
        assert (await asked).code == Code.BAD_GATEWAY
        await wait_until(lambda: stuck.cancelled)
        assert await far.client.get(far.url + "value") == b"x"


@pytest.mark.parametrize("options", [{}, {"observe": 0}])
async def test_origin_that_does_not_answer(transport: Transport, options: dict[str, Any]) -> None:
    """A hub that has a time limit answers 5.04 after it, and stops the work at the origin."""
    stuck = Stuck()
    async with chain(transport, site_of(stuck=stuck), timeout=0.05) as far:
        response = await far.ask(GET, "stuck", **options)
        assert response.code == Code.GATEWAY_TIMEOUT
        await wait_until(lambda: stuck.cancelled)
        await far.until_quiet()


async def test_cancelled_request_ends_at_the_origin(transport: Transport) -> None:
    """Taking back a request stops the work two hops away."""
    stuck = Stuck()
    async with chain(transport, site_of(stuck=stuck)) as far:
        with pytest.raises(error.RequestTimedOut):
            await far.client.get(far.url + "stuck", timeout=0.05)
        await wait_until(lambda: stuck.cancelled)
        await far.until_quiet()


# -- Bodies in blocks ------------------------------------------------------------------------------

BODY = bytes(range(256)) * 800  # some 200 kB: seven blocks


async def test_bodies_pass_in_blocks(transport: Transport) -> None:
    """Large bodies pass in both directions, also in one exchange."""
    value = Value()
    async with chain(transport, site_of(value=value, echo=Echo())) as far:
        await far.client.put(far.url + "value", BODY)
        assert value.writes == [BODY]
        assert await far.client.get(far.url + "value") == BODY
        assert await far.client.post(far.url + "echo", BODY) == BODY
        await far.until_quiet()


async def test_hubs_do_not_keep_bodies(transport: Transport) -> None:
    """Blocks pass one by one: what no hub could hold as a whole arrives nevertheless."""
    value = Value()
    async with chain(transport, site_of(value=value)) as far:
        for hub in far.hubs:
            hub.limits = dataclasses.replace(DEFAULT_LIMITS, body_size=50_000, transfer_size=50_000)
        await far.client.put(far.url + "value", BODY)
        assert await far.client.get(far.url + "value") == BODY


async def test_large_states_are_observed(transport: Transport) -> None:
    """Notifications that take several blocks arrive as a whole."""
    value = Value(BODY)
    async with chain(transport, site_of(value=value)) as far, far.client.observe(far.url + "value") as states:
        assert await anext(states) == BODY
        for number in range(3):
            value.set(bytes([number]) + BODY)
            assert await anext(states) == value.payload


async def test_transfers_of_two_requesters_do_not_mix(transport: Transport) -> None:
    """Two peers that send blocks of the same resource through one hub, without tags, do not get into each
    other's way."""
    value = Value()
    async with chain(transport, site_of(value=value)) as far:
        url = far.hubs[0].urls[0]
        async with raw_client(url) as one, raw_client(url) as two:
            for number in range(3):
                for raw, letter in ((one, b"1"), (two, b"2")):
                    block = (number, number < 2, 6)
                    response = await raw.ask(PUT, "far/value", letter * 1024, block1=block)
                    assert response.code == (Code.CONTINUE if number < 2 else Code.CHANGED)
        assert value.writes == [b"1" * 3072, b"2" * 3072]


# -- Lists of links --------------------------------------------------------------------------------


def listed(**resources: Any) -> Site:
    """Return a site with *resources* and a list of them."""
    site = site_of(**resources)
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    return site


async def test_links_lead_through_the_hops(transport: Transport) -> None:
    """The list of a mounted container has links that lead there through the hops, with filters."""
    value = Value(b"x")
    value.rt = "example"
    async with chain(transport, listed(value=value, other=Value())) as far:
        (link,) = await far.client.discover(far.url, rt="exam*")
        assert link.href == far.url + "value"
        assert await far.client.get(link.href) == b"x"
        assert [link.href for link in await far.client.discover(far.url)] == [
            far.url + name for name in ("value", "other", ".well-known/core")
        ]
        first = await far.ask(GET, ".well-known/core")
        again = await far.ask(GET, ".well-known/core", etags=[first.opt.etag])
        assert again.code == Code.VALID
        assert (await far.ask(GET, ".well-known/core", accept=50)).code == Code.NOT_ACCEPTABLE
        assert (await far.ask(GET, ".well-known/core", observe=0)).opt.observe is None


async def test_mounts_are_listed(transport: Transport) -> None:
    """A hub's own list has the mount, by the link to the list there."""
    async with chain(transport, listed(value=Value())) as far:
        hub = far.hubs[0]
        site: Any = hub.serversite
        site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
        (link,) = await far.client.discover(hub.urls[0], rt="aiomas_ng.mount")
        assert link.href == far.url + ".well-known/core"
        assert (await far.client.request(Message(GET, uri=link.href)).response).code == CONTENT


async def test_links_of_a_part(transport: Transport) -> None:
    """Of a part that is mounted, the links within it are changed, those elsewhere kept, others dropped."""
    part = site_of(value=Value(b"x"))
    links = [Link("/a b/value".replace(" ", "%20")), Link("/outside"), Link("/a%20bc"), ABSOLUTE]
    part.add_resource([".well-known", "list"], WKCResource(lambda: links))
    origin = Site()
    origin.add_resource("a b", part)

    class Fixed(Resource):
        def render_get(self, request: Message) -> Message:
            text = ",".join(map(str, links))
            return Message(payload=text.encode(), content_format=ContentFormat.LINK_FORMAT)

    part.add_resource([".well-known", "core"], Fixed())
    async with chain(transport, origin, 1, "a%20b") as far:
        found = await far.client.discover(far.url)
        assert [link.href for link in found] == [far.url + "value", "tcp://elsewhere:1/x"]
        assert found[1]["rt"] == "far.away"


async def test_long_lists(transport: Transport) -> None:
    """A list that takes several blocks is put together, changed, and passed on in blocks."""
    names = [f"resource-with-a-long-name-{number:05}" for number in range(3000)]
    async with chain(transport, listed(**{name: Value() for name in names})) as far:
        found = await far.client.discover(far.url, href="/resource*")
        assert [link.href for link in found] == [far.url + name for name in names]


async def test_lists_that_are_none(transport: Transport) -> None:
    """A list that is not in link format is the origin's fault: 5.02; in another format it is passed on."""

    class Broken(Resource):
        content_format = 40

        def render_get(self, request: Message) -> Message:
            return Message(payload=b"<no list", content_format=self.content_format)

    broken = Broken()
    site = Site()
    site.add_resource(".well-known/core", broken)
    async with chain(transport, site) as far:
        assert (await far.ask(GET, ".well-known/core")).code == Code.BAD_GATEWAY
        broken.content_format = 0
        assert (await far.ask(GET, ".well-known/core")).payload == b"<no list"
        assert (await far.ask(PUT, ".well-known/core")).code == Code.METHOD_NOT_ALLOWED


# -- Hops ------------------------------------------------------------------------------------------


async def test_circles_end(transport: Transport) -> None:
    """A request that goes round in circles ends with 5.08, which names those it has passed."""
    async with contextlib.AsyncExitStack() as stack:
        sites = Site(), Site()
        hubs = [
            await stack.enter_async_context(await Context.create_server_context(site, transport.address()))
            for site in sites
        ]
        for site, hub, other, name in zip(sites, hubs, hubs[::-1], ("left", "right"), strict=True):
            site.add_resource("round", Forwarder(hub, other.urls[0] + "round", name=name))
        client = await stack.enter_async_context(await Context.create_client_context())
        response = await client.request(Message(GET, uri=hubs[0].urls[0] + "round/x")).response
        assert response.code == Code.HOP_LIMIT_REACHED
        assert response.text.split() == ["left", "right"] * (DEFAULT_HOP_LIMIT // 2) + ["left"]
        for observe in (None, 0):
            message = Message(GET, uri=hubs[0].urls[0] + "round/x", hop_limit=255, observe=observe)
            response = await client.request(message).response
            assert response.code == Code.HOP_LIMIT_REACHED
            assert len(response.payload) == error.MAX_DIAGNOSTIC


async def test_hop_limit_of_the_requester(transport: Transport) -> None:
    """A request passes as many hubs as it says; the origin does not count (RFC 8768)."""
    async with chain(transport, site_of(value=Value(b"x")), 3) as far:
        for hop_limit, code in ((4, CONTENT), (3, Code.HOP_LIMIT_REACHED), (1, Code.HOP_LIMIT_REACHED)):
            response = await far.ask(GET, "value", hop_limit=hop_limit)
            assert response.code == code
        names = (await far.ask(GET, "value", hop_limit=2)).text
        assert names == f"{far.hubs[0].urls[0]} {far.hubs[1].urls[0]}"
        assert (await far.client.get(far.hubs[2].urls[0] + "far/value", hop_limit=2)) == b"x"
        direct = Message(GET, uri=far.origin.urls[0] + "value", hop_limit=1)
        assert (await far.client.request(direct).response).code == CONTENT


async def test_hop_limit_that_is_not_allowed(transport: Transport) -> None:
    """A hop limit of 0 is answered by 4.00 (RFC 8768, section 3)."""
    async with chain(transport, site_of(value=Value()), 1) as far, raw_client(far.hubs[0].urls[0]) as raw:
        raw.send([GET, b"t", [11, "far", 11, "value", 16, 0]])
        assert (await raw.receive_message()).code == Code.BAD_REQUEST


async def test_what_travels_between_hub_and_origin(transport: Transport) -> None:
    """The origin gets the request with its own path, a hop limit and a tag of the requester."""
    async with raw_server(transport) as (hub, server):
        site = Site()
        await hub.listen(transport.address())
        hub.serversite = site
        site.add_resource("far", Forwarder(hub, server.url + "base"))
        async with await Context.create_client_context() as client:
            url = hub.urls[0] + "far/x"
            asked = client.request(Message(PUT, b"body", url, uri_query=["q"], if_match=[b"e"]))
            peer = await server.peer()
            request = await peer.receive_message()
            assert (request.code, request.payload) == (PUT, b"body")
            assert (request.opt.uri_path, request.opt.uri_query) == (("base", "x"), ("q",))
            assert (request.opt.if_match, request.opt.hop_limit) == ((b"e",), DEFAULT_HOP_LIMIT)
            assert request.opt.request_tag[-1] == b"\x01"
            peer.respond(request, Code.CHANGED, b"done")
            assert (await asked.response).payload == b"done"
