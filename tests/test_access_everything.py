"""A peer that may reach nothing reaches nothing at all: everything that a container has is tried.

What is tried is not written down here, but found in the container: a new way to reach something is a new
test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from access_ends import KINDS, World, denials

import aiomas_ng
from aiomas_ng import Agent, Container, Context, Message, expose, rpc, state
from aiomas_ng._core.log_limit import LOG_LINES
from aiomas_ng._core.routing import Router, _get_mark, _look_up_in_class
from aiomas_ng.access import NOBODY, Policy, Rule, names, roles, same_host, uids
from aiomas_ng.directory import Directory
from aiomas_ng.exceptions import RemoteAccessError
from aiomas_ng.message import Block, Code
from aiomas_ng.resource import ObservableResource, Site
from aiomas_ng.subproc import Manager

METHODS = (Code.GET, Code.FETCH, Code.POST, Code.PUT, Code.PATCH, Code.iPATCH, Code.DELETE)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Every way to be connected in turn."""
    directory = Path(tempfile.mkdtemp(prefix="ng-"))
    yield World(directory, request.param)
    shutil.rmtree(directory)


class Everything(Agent):
    """An agent with all that an agent can have; each handler leaves a trace."""

    def __init__(self, container: Container, ran: list[str]) -> None:
        super().__init__(container)
        self.ran = ran
        self.part = Part(ran)
        self.table = rpc.ServiceDict({"entry": self.entry, "part": Part(ran)})
        self.router.add("part")
        self.router.add("table")
        self.site.add_resource("plain", Plain(ran))
        inner = Site()
        inner.add_resource("deep", Plain(ran))
        self.site.add_resource("inner", inner)

    @expose
    def plain(self, *args: Any, **kwargs: Any) -> str:
        self.ran.append("plain")
        return "plain"

    @expose
    async def coroutine(self, *args: Any) -> None:
        self.ran.append("coroutine")

    @expose
    async def stream(self, *args: Any) -> AsyncIterator[int]:
        self.ran.append("stream")
        yield 1

    @expose
    @staticmethod
    def static(*args: Any) -> None:
        raise AssertionError("static")

    @expose
    def entry(self, *args: Any) -> None:
        self.ran.append("entry")

    @state(rt="test.value")
    def value(self) -> int:
        self.ran.append("value")
        return 1

    @value.setter
    def set_value(self, value: Any) -> None:
        self.ran.append("set_value")

    @value.post
    def post_value(self, value: Any) -> None:
        self.ran.append("post_value")

    @value.deleter
    def delete_value(self) -> None:
        self.ran.append("delete_value")


class Part:
    """A service below an agent, which can be called itself."""

    router = rpc.Service()

    def __init__(self, ran: list[str]) -> None:
        self.ran = ran

    @expose
    def __call__(self, *args: Any) -> None:
        self.ran.append("part()")

    @expose
    def func(self, *args: Any) -> None:
        self.ran.append("part.func")


class Plain(ObservableResource):
    """A resource that offers all methods."""

    def __init__(self, ran: list[str]) -> None:
        self.ran = ran

    def _answer(self, request: Message) -> Message:
        self.ran.append(f"resource {request.code.name}")
        return Message(payload=b"x")

    render_get = render_fetch = render_post = render_put = render_patch = render_ipatch = _answer
    render_delete = _answer


def list_functions(router: Router, path: str = "") -> Iterator[str]:
    """Yield the paths of all that can be called below *router*, and of services that cannot be."""
    obj = router.obj
    table = obj.dict if isinstance(obj, rpc.ServiceDict) else {}
    found = set(table) | {name for cls in type(obj).__mro__ for name in vars(cls)} | set(vars(obj))
    for name in sorted(found):
        value = table.get(name, _look_up_in_class(type(obj), name))
        if _get_mark(value):
            yield path + name
    children = set(router._children or ()) | set(router._sub_names) | set(table)
    for name in sorted(children):
        child = router._find_child(name)
        if child is not None:
            yield path + name
            yield from list_functions(child, f"{path}{name}/")


def list_resources(site: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all resources below *site*."""
    for below in site._resources:
        yield path + below
    for below, inner in site._subsites.items():
        if hasattr(inner, "_resources"):
            yield from list_resources(inner, path + below)
        else:  # it handles the rest by itself
            yield path + below
            yield (*path, *below, "anything", "below")
    yield (*path, ".well-known", "core")
    for aid in getattr(site, "_agents", ()):
        yield from list_resources(site.get_agent_site(aid), (*path, aid))


@contextlib.asynccontextmanager
async def everything(world: World, **kwargs: Any) -> AsyncIterator[tuple[Container, list[str]]]:
    """A container with one of each thing that a container can have."""
    ran: list[str] = []
    async with world.container("everything", "servers", **kwargs) as container:
        Everything(container, ran)
        Manager(container, allow=["*"])
        Directory(container)
        container.site.add_resource("own", Plain(ran))
        container.mount("alias", container._base_url + "0")
        container.mount("other", container._base_url)
        yield container, ran


#: Rules by which the peers of these tests are let in, or not: each by what it can show.
LETS_IN: dict[str, Rule] = {
    "tls": roles("operator"),
    "tls-unix": names("peer") & roles("operator"),
    "tcp": same_host(),
    "unix": uids(os.geteuid()),
    "local": same_host(),
}
KEEPS_OUT: dict[str, list[Rule]] = {
    "tls": [roles("admin"), names("somebody"), roles("operator") & names("somebody"), NOBODY],
    "tls-unix": [
        roles("admin"),
        uids(os.geteuid() + 1) & roles("operator"),
        Policy(roles("operator"), roles={}),
    ],
    "tcp": [roles("operator"), names("127.0.0.1"), uids(os.geteuid()), NOBODY],
    "unix": [uids(os.geteuid() + 1), roles("operator"), NOBODY],
    "local": [roles("operator"), uids(os.geteuid()), NOBODY],
}


def test_the_walk_finds_everything() -> None:
    """What is walked over has what this module has put there, and what containers have by themselves."""

    async def main() -> tuple[set[str], set[tuple[str, ...]]]:
        directory = Path(tempfile.mkdtemp(prefix="ng-"))
        try:
            async with everything(World(directory, "tcp")) as (container, _):
                return set(list_functions(container.router)), set(list_resources(container.site))
        finally:
            shutil.rmtree(directory)

    functions, resources = asyncio.run(main())
    methods = ("plain", "coroutine", "stream", "static", "entry", "part/__call__", "part/func", "part")
    assert {f"agents/0/{name}" for name in methods} <= functions
    assert {"agents/0/table/entry", "agents/0/table/part/func", "agents/0", "agents"} <= functions
    assert {"validate_aid", "agents/1/spawn", "agents/1/stop", "agents/1/set_time"} <= functions
    assert {
        ("0", "value"),
        ("0", "plain"),
        ("0", "inner", "deep"),
        ("own",),
        ("alias", "anything", "below"),
    } <= (resources)
    assert {
        (".well-known", "core"),
        ("0", ".well-known", "core"),
        ("directory", "rd-lookup", "res"),
    } <= resources
    assert {("directory", "rd"), ("directory", ".well-known", "rd")} <= resources


async def call_everything(remote: rpc.RpcClient, paths: list[str]) -> dict[str, Any]:
    """Call each of *paths* in every way, and return the outcomes: a result, or an exception."""
    outcomes: dict[str, Any] = {}

    async def note(name: str, reply: Any) -> None:
        try:
            outcomes[name] = await reply
        except Exception as error:
            outcomes[name] = error

    def proxy(path: str) -> Any:
        return rpc.Proxy(remote, path)

    for path in paths:
        await note(f"{path}()", proxy(path)())
        await note(f"{path}(0)", proxy(path)("0"))
        await note(f"{path}(x=0)", proxy(path)(x="0"))
        rpc.with_options(proxy(path), oneway=True)("0")
        reply = proxy(path)("0")
        try:
            async for item in reply:
                outcomes[f"{path} as stream"] = item
        except Exception as error:
            outcomes[f"{path} as stream"] = error
    calls = [partial(proxy(path), "0") for path in paths]
    results = await rpc.batch(calls, return_exceptions=True)
    outcomes.update({f"{path} in a batch": result for path, result in zip(paths, results, strict=True)})
    return outcomes


#: Ways to send a request.
VARIANTS: dict[str, dict[str, Any]] = {
    "with a body": {"payload": b"1", "content_format": 50},
    "with a block": {"payload": b"x" * 1024, "block1": Block(0, True, 6), "request_tag": (b"t",)},
    "for a block": {"block2": Block(1, False, 6)},
    "as forwarded": {"hop_limit": 5},
    "on condition": {"if_match": (b"",)},
}


async def request_everything(context: Context, base: str, paths: list[tuple[str, ...]]) -> dict[str, Any]:
    """Send requests of all kinds to all *paths*, and return codes by what was sent."""
    codes: dict[str, Any] = {}
    for path, method in itertools.product(paths, METHODS):
        url = base + "/".join(path)
        variants: dict[str, dict[str, Any]] = {"": {}}
        if method in (Code.GET, Code.PUT):
            variants |= VARIANTS
        if method in (Code.GET, Code.FETCH):
            variants["observed"] = {"observe": 0}
        for name, options in variants.items():
            message = Message(method, uri=url, **options)
            response = await context.request(message, handle_blockwise=False, timeout=10).response
            codes[f"{method.name} {'/'.join(path)} {name}"] = response.code
    return codes


@pytest.mark.parametrize("index", range(2))
async def test_who_may_reach_nothing_reaches_nothing(world: World, index: int) -> None:
    """All methods in every way, all resources with all methods, observed and in blocks, lists and look-ups,
    what is there and what is not: each is refused in the same words, and no handler runs."""
    with denials() as lines:
        async with (
            everything(world, access=KEEPS_OUT[world.kind][index]) as (container, ran),
            world.container("peer", "operator") as peer,
        ):
            url = container._base_url
            functions = [*list_functions(container.router), "missing", "agents/7/plain", "", "router/obj"]
            resources = [*list_resources(container.site), ("missing",), ("7", "value"), ()]
            with pytest.raises(RemoteAccessError):
                await peer.connect(container.agents.dict["0"].addr)
            with pytest.raises(RemoteAccessError):
                await peer.connect(url + "missing")
            client = await peer._peers.get(_address(url)).connect()
            outcomes = await call_everything(client, [path for path in functions if path])
            for name, outcome in outcomes.items():
                assert type(outcome) is RemoteAccessError, (name, outcome)
                assert isinstance(outcome, PermissionError)
                assert outcome.message == f"access to {outcome.path!r} is not allowed"
                assert ".py" not in outcome.remote_traceback
            codes = await request_everything(peer.context, url, resources)
            assert set(codes.values()) <= {Code.FORBIDDEN, Code.UNAUTHORIZED}, codes
            direct = {code for name, code in codes.items() if not name.endswith("forwarded")}
            assert direct == {Code.UNAUTHORIZED if world.kind == "tcp" else Code.FORBIDDEN}
            (remote,) = [client.channel._lane for client in container._connections]
            assert not remote.incoming
            assert remote.transfers is None
            assert not container.agents.dict["1"].stop_received.done()
            assert len(container.agents.dict) == 3
    assert ran == []
    assert 0 < len(lines) <= 2 * (LOG_LINES + 2)  # of the peer, and of what it forwards
    assert any("were left out of the log" in line for line in lines)


def _address(url: str) -> Any:
    from aiomas_ng._core.addresses import parse_url

    return parse_url(url)[0]


async def test_who_may_reach_all_reaches_all(world: World) -> None:
    """The same walk by somebody who is let in: nothing is refused for want of rights."""
    with denials() as lines:
        async with (
            everything(world, access=LETS_IN[world.kind]) as (container, ran),
            world.container("peer", "operator") as peer,
        ):
            url = container._base_url
            client = await peer._peers.get(_address(url)).connect()
            # The manager's stop is harmless here: nobody waits for it.
            outcomes = await call_everything(client, [*list_functions(container.router), "missing"])
            assert not [name for name, outcome in outcomes.items() if isinstance(outcome, RemoteAccessError)]
            resources = [path for path in list_resources(container.site) if path[0] not in ("alias", "other")]
            codes = await request_everything(peer.context, url, resources)
            refused = {name for name, code in codes.items() if code in (Code.FORBIDDEN, Code.UNAUTHORIZED)}
            # What is forwarded has none of the rights of who forwards it.
            assert refused == {name for name in codes if name.endswith("as forwarded")}
    assert {"plain", "coroutine", "stream", "entry", "part()", "part.func", "value", "set_value"} <= set(ran)
    assert {"post_value", "delete_value", *(f"resource {method.name}" for method in METHODS)} <= set(ran)
    assert lines


async def test_an_agent_narrowed_hides_all_of_it(world: World) -> None:
    """An agent's rule holds for all its methods and resources, in every way; the rest of the container is
    as it was."""
    async with (
        everything(world) as (container, ran),
        world.container("peer", "operator") as peer,
    ):
        agent = container.agents.dict["0"]
        agent.access = KEEPS_OUT[world.kind][0]
        url = container._base_url
        with pytest.raises(RemoteAccessError, match="agents/0"):
            await peer.connect(agent.addr)
        client = await peer._peers.get(_address(url)).connect()
        mine = [path for path in list_functions(container.router) if path.startswith("agents/0")]
        mine += ["agents/0/missing", "agents/0/part/missing"]
        outcomes = await call_everything(client, mine)
        assert {type(outcome) for outcome in outcomes.values()} == {RemoteAccessError}
        resources = [path for path in list_resources(container.site) if path[0] in ("0", "alias")]
        resources = [path for path in resources if len(path) > 1]  # a mount itself is no resource
        resources += [("0", "missing"), ("other", "0", "value")]
        codes = await request_everything(peer.context, url, resources)
        assert set(codes.values()) <= {Code.FORBIDDEN, Code.UNAUTHORIZED}, codes
        assert ran == []
        listed = {link.href.removeprefix(url) for link in await peer.context.discover(url)}
        assert "own" in listed
        assert not [href for href in listed if href.startswith("0/")]
        for mount in ("other", "alias"):
            with contextlib.suppress(aiomas_ng.error.ResponseWrappingError):
                assert not [link for link in await peer.context.discover(url + mount) if "value" in link.href]
        assert await peer.context.get(url + "own") == b"x"
        agent.access = None
        assert await (await peer.connect(agent.addr)).plain() == "plain"
        assert await peer.context.get(agent.addr + "/value") == 1
