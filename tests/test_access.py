"""Who calls, and who may: identities that reach handlers, rules at every place, and changes at run time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from access_ends import KINDS, World, denials, refused
from waiting import wait_until

import aiomas_ng
from aiomas_ng import Agent, Container, Context, Message, access, channel, expose, rpc, state, subproc
from aiomas_ng.access import (
    NOBODY,
    Identity,
    Policy,
    certified,
    get_caller,
    local,
    names,
    roles,
    same_host,
    same_user,
    uids,
    via,
)
from aiomas_ng.directory import Directory, lookup
from aiomas_ng.error import ResponseWrappingError
from aiomas_ng.exceptions import (
    AccessDeniedError,
    RemoteAccessError,
    RemoteException,
    RemoteSerializationError,
)
from aiomas_ng.message import Block, Code
from aiomas_ng.resource import ObservableResource, Resource, Site, WKCResource
from aiomas_ng.supervision import RestartAgent


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path."""
    path = Path(tempfile.mkdtemp(prefix="ng-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, directory: Path) -> World:
    """Every way to be connected in turn."""
    return World(directory, request.param)


@pytest.fixture(params=["tls", "tls-unix"])
def tls(request: pytest.FixtureRequest, directory: Path) -> World:
    """Containers with certificates."""
    return World(directory, request.param)


def assert_is_peer(identity: Identity | None, kind: str) -> None:
    """Check that *identity* is what a container named 'peer' with the unit 'operator' can show."""
    assert identity is not None
    transports = {"tcp": "tcp", "unix": "unix", "local": "local", "tls": "tls", "tls-unix": "unix"}
    assert identity.transport == transports[kind]
    if kind.startswith("tls"):
        assert identity.names == {"peer", "localhost"}
        assert identity.roles == {"operator"}
        assert identity.fingerprint is not None
        assert len(identity.fingerprint) == 64
    else:
        assert (identity.names, identity.roles, identity.fingerprint) == (frozenset(), frozenset(), None)
    if kind.endswith("unix"):
        assert (identity.uid, identity.gid) == (os.geteuid(), os.getegid())
        assert identity.pid == (os.getpid() if sys.platform == "linux" else None)
    else:
        assert (identity.pid, identity.uid, identity.gid) == (None, None, None)
    assert identity.is_local is (kind == "local")
    assert identity.is_loopback is (kind in ("tcp", "tls"))
    assert not identity.is_self


class Asker(Agent):
    """Says in every way in which it can be called who has called."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.seen: asyncio.Queue[Identity | None] = asyncio.Queue()
        self.site.add_resource("resource", AskingResource(self.seen))

    @expose
    def plain(self) -> None:
        self.seen.put_nowait(get_caller())

    @expose
    async def coroutine(self) -> None:
        await asyncio.sleep(0)
        self.seen.put_nowait(get_caller())

    @expose
    async def stream(self) -> AsyncIterator[int]:
        self.seen.put_nowait(get_caller())
        yield 1

    @expose
    def task(self) -> None:
        async def background() -> None:
            await asyncio.sleep(0)
            self.seen.put_nowait(get_caller())

        aiomas_ng.create_task(background())

    @expose
    async def ask_oneself(self) -> None:
        """Call another agent of the same container."""
        await (await self.container.connect(self.addr)).plain()

    @state
    def value(self) -> int:
        self.seen.put_nowait(get_caller())
        return 1


class AskingResource(ObservableResource):
    """Says who has sent the request."""

    def __init__(self, seen: asyncio.Queue[Identity | None]) -> None:
        self.seen = seen

    def render_get(self, request: Message) -> Message:
        assert request.remote.identity == get_caller()
        self.seen.put_nowait(get_caller())
        return Message(payload=b"x")

    async def render_put(self, request: Message) -> Message:
        await asyncio.sleep(0)
        self.seen.put_nowait(get_caller())
        return Message()


# -- Who calls -------------------------------------------------------------------------------------


async def test_every_handler_knows_who_calls(world: World) -> None:
    """Plain and async functions, streams, batches, one-way calls, tasks that they start, and resources: all
    know the peer by what its connection has shown."""
    async with world.container() as home, world.container("peer", "operator") as peer:
        asker = Asker(home)
        remote = await peer.connect(asker.addr)
        await remote.plain()
        await remote.coroutine()
        async for _ in remote.stream():
            pass
        await remote.task()
        await rpc.batch([remote.plain, remote.coroutine])
        rpc.with_options(remote.plain, oneway=True)()
        rpc.with_options(remote.coroutine, oneway=True)()
        for _ in range(8):
            assert_is_peer(await asker.seen.get(), world.kind)
        await peer.context.get(asker.addr + "/value")
        await peer.context.get(asker.addr + "/resource")
        await peer.context.put(asker.addr + "/resource", 1)
        for _ in range(3):
            assert_is_peer(await asker.seen.get(), world.kind)
        assert asker.seen.empty()
        assert get_caller() is None


async def test_the_other_side_is_known_as_well(world: World) -> None:
    """Who has dialled knows whom it has reached, as far as that was shown."""
    async with world.container("peer", "operator") as server, world.container() as client:
        await client.connect(Asker(server).addr)
        ((connection,), (accepted,)) = (client._connections, server._connections)
        assert_is_peer(connection.channel.identity, world.kind)
        assert accepted.channel.identity.names == ({"home", "localhost"} if world.has_tls else set())


async def test_an_agent_of_the_same_container_is_ourselves(world: World) -> None:
    """Within a container, by the short way and the long one, the caller is the container itself; and whose
    call it is that an agent works on does not matter there."""
    async with world.container() as home, world.container("peer") as peer:
        asker = Asker(home)
        own = await home.connect(asker.addr)
        await own.plain()
        await asyncio.gather(own.plain(), own.plain(), own.coroutine())
        await rpc.batch([own.plain])
        await home.context.get(asker.addr + "/value")
        await home.context.get(asker.addr + "/resource")
        await (await peer.connect(asker.addr)).ask_oneself()
        for _ in range(8):
            caller = await asker.seen.get()
            assert caller is not None
            assert caller.is_self
            assert caller.is_local
        assert asker.seen.empty()


async def test_hooks_run_for_nobody(directory: Path) -> None:
    """An agent that a call has made is not that of the caller: its hooks have none."""
    seen: list[Identity | None] = []

    class Made(Agent):
        def on_ready(self) -> None:
            seen.append(get_caller())

        def on_stop(self) -> None:
            seen.append(get_caller())

    class Maker(Agent):
        @expose
        async def make(self) -> None:
            made = Made(self.container)
            await self.container._wait_ready(made)
            await self.container.remove_agent(made)
            seen.append(get_caller())

    world = World(directory, "unix")
    async with world.container() as home, world.container() as peer:
        await (await peer.connect(Maker(home).addr)).make()
    assert seen[:2] == [None, None]
    assert seen[2] is not None


async def test_calls_at_the_same_time_are_not_mixed_up(tls: World) -> None:
    """Each of many calls of several peers that are worked on at once knows its own caller."""

    class Slow(Agent):
        @expose
        async def who(self) -> list[str]:
            before = get_caller()
            await asyncio.sleep(0.001)
            assert before == get_caller()
            assert before is not None
            return sorted(before.names)

        @expose
        def who_now(self) -> list[str]:
            caller = get_caller()
            assert caller is not None
            return sorted(caller.names)

    async with tls.container() as home, tls.container("a") as a, tls.container("b") as b:
        addr = Slow(home).addr
        of_a, of_b = await a.connect(addr), await b.connect(addr)
        calls = [call for _ in range(20) for call in (of_a.who(), of_b.who_now(), of_a.who_now(), of_b.who())]
        results = await asyncio.gather(*calls)
        assert [list(names) for names in results] == [["a", "localhost"], ["b", "localhost"]] * 40


async def test_channel_and_request_have_the_identity(world: World) -> None:
    """Below RPC, a channel and each of its requests say who the peer is, also after its end."""
    server_ssl = client_ssl = None
    if world.has_tls:
        server_ssl = aiomas_ng.make_ssl_server_context(*world.issue("home"))
        client_ssl = aiomas_ng.make_ssl_client_context(*world.issue("peer", "operator"))
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def answer(chan: channel.Channel) -> None:
        request = await chan.recv()
        assert request.identity == chan.identity
        await request.reply(None)
        seen.put_nowait(chan)

    kwds: dict[str, Any] = {} if world.kind == "local" else {"ssl": server_ssl}
    address = world.address()
    server = await channel.start_server(address, answer, **kwds)
    if world.has_tls:
        kwds = {"ssl": client_ssl} | ({"server_hostname": "localhost"} if "unix" in world.kind else {})
    else:
        kwds = {}
    client = await channel.open_connection(server.url if world.kind == "tls" else server.address, **kwds)
    await client.send(1)
    await client.close()
    accepted = await seen.get()
    server.close()
    await accepted.close()
    assert_is_peer(accepted.identity, world.kind)


async def test_a_certificate_that_nobody_verifies_is_none(directory: Path) -> None:
    """Where the context does not ask for certificates, or does not check them, nobody has a name."""
    world = World(directory, "tls")
    certs = world.issue("home")
    (directory / "strangers").mkdir()
    stranger = World(directory / "strangers", "tls").issue("scada", "operator")
    for mode, has_certificate in ((ssl.CERT_NONE, True), (ssl.CERT_OPTIONAL, False)):
        server = aiomas_ng.make_ssl_server_context(*certs)
        server.verify_mode = mode
        client = ssl.create_default_context(cafile=certs.cafile)
        if has_certificate:
            client.load_cert_chain(stranger.certfile, stranger.keyfile)
        home = await Container.create(
            ("127.0.0.1", 0), ssl=(server, client), access=certified(), as_coro=True
        )
        peer = await Container.create(("127.0.0.1", 0), ssl=(server, client), as_coro=True)
        try:
            with pytest.raises(RemoteAccessError):
                await peer.connect(home._base_url + "0")
            (accepted,) = home._connections
            assert accepted.channel.identity == Identity(transport="tls", is_loopback=True)
        finally:
            await peer.shutdown(as_coro=True)
            await home.shutdown(as_coro=True)


async def collect(stream: Any, items: list[Any] | None = None) -> None:
    """Iterate over *stream* to its end, into *items*."""
    async for item in stream:
        if items is not None:
            items.append(item)


# -- Where rules can be declared -------------------------------------------------------------------


class Battery(Agent):
    """Its methods and resources are for different people."""

    def __init__(self, container: Container) -> None:
        super().__init__(container)
        self.ran: list[str] = []
        self.part = Part()
        self.router.add("part")

    @expose
    def name(self) -> str:
        return "battery"

    @expose(allow=roles("operator"))
    def set_power(self, power: float) -> float:
        self.ran.append("set_power")
        return power

    @expose(allow=roles("operator"))
    async def count(self) -> AsyncIterator[int]:
        self.ran.append("count")
        for number in range(10_000):
            yield number

    @state(rt="energy.soc", write_access=roles("operator"))
    def soc(self) -> float:
        return 0.5

    @soc.setter
    def set_soc(self, value: float) -> None:
        self.ran.append("set_soc")

    @state(rt="energy.secret", access=roles("operator"))
    def secret(self) -> float:
        self.ran.append("secret")
        return 42


class Part:
    """A service that is narrowed by its router."""

    router = rpc.Service(access=roles("operator"))

    @expose
    def func(self) -> str:
        return "func"


class Narrow(Battery):
    """An agent that is narrowed as a whole."""

    access = roles("operator")


@contextlib.asynccontextmanager
async def home_and_peers(
    world: World, **kwargs: Any
) -> AsyncIterator[tuple[Container, Container, Container]]:
    """A container, another one that is an operator, and one that is a viewer."""
    async with (
        world.container("home", **kwargs) as home,
        world.container("scada", "operator") as operator,
        world.container("display", "viewer") as viewer,
    ):
        yield home, operator, viewer


async def test_methods_and_services(tls: World) -> None:
    """A method and a sub-service are for whom their rules let in, and the other ones for everybody."""
    async with home_and_peers(tls) as (home, operator, viewer):
        battery = Battery(home)
        allowed, denied = await operator.connect(battery.addr), await viewer.connect(battery.addr)
        assert await allowed.set_power(5) == 5
        assert await allowed.part.func() == "func"
        assert await denied.name() == "battery"
        assert battery.ran == ["set_power"]
        with denials() as lines:
            for call in (denied.set_power(5), denied.part.func(), denied.set_power(1, 2, 3)):
                with pytest.raises(RemoteAccessError) as caught:
                    await call
                assert (caught.value.agent, caught.value.type_name) == ("0", "aiomas_ng.AccessDeniedError")
                assert caught.value.errno == 13
            with pytest.raises(RemoteAccessError):
                await collect(denied.count())
        assert len(lines) == 4
        assert "'display'" in lines[0]
        assert "'agents/0/set_power'" in lines[0]
        assert battery.ran == ["set_power"]
        battery.part.access = roles("viewer")
        assert await denied.part.func() == "func"
        with pytest.raises(RemoteAccessError):
            await allowed.part.func()


async def test_one_denied_call_of_a_batch_concerns_no_other(tls: World) -> None:
    """In a batch each call is decided by itself."""
    async with home_and_peers(tls) as (home, _, viewer):
        remote = await viewer.connect(Battery(home).addr)
        results = await rpc.batch([remote.name, remote.set_power, remote.name], return_exceptions=True)
        assert (results[0], type(results[1]), results[2]) == ("battery", RemoteAccessError, "battery")
        assert results[1].path == "agents/0/set_power"


async def test_states(tls: World) -> None:
    """A state is read by whom it lets in, and written by those only whom it lets write, besides."""
    async with home_and_peers(tls) as (home, operator, viewer):
        battery = Battery(home)
        soc, secret = battery.addr + "/soc", battery.addr + "/secret"
        for context in (operator.context, viewer.context):
            assert await context.get(soc) == 0.5
        await operator.context.put(soc, 0.6)
        assert await operator.context.get(secret) == 42
        with refused(Code.FORBIDDEN):
            await viewer.context.put(soc, 0.6)
        with refused(Code.FORBIDDEN):
            await viewer.context.get(secret)
        with refused(Code.FORBIDDEN):
            async with viewer.context.observe(secret) as states:
                async for _ in states:
                    pytest.fail("nothing is to come")
        assert battery.ran == ["set_soc", "secret"]


async def test_discovery_lists_what_one_may_read(tls: World) -> None:
    """Lists of links differ by who asks; those of agents that were never asked for anything as well."""
    async with home_and_peers(tls) as (home, operator, viewer):
        addrs = [Battery(home).addr, Narrow(home).addr]
        home.site.add_resource("free", Resource())
        hidden = Resource()
        hidden.access = NOBODY
        home.site.add_resource("hidden", hidden)
        for _ in range(2):  # with and without the sites of the agents
            found = [link.href for link in await viewer.context.discover(home._base_url)]
            assert found == [home._base_url + "free", addrs[0] + "/soc"]
            found = [link.href for link in await operator.context.discover(home._base_url)]
            assert found == [
                home._base_url + "free",
                *(f"{addr}/{name}" for addr in addrs for name in ("soc", "secret")),
            ]
            found = [link.href for link in await viewer.context.discover(addrs[0])]
            assert found == [addrs[0] + "/soc"]
        assert len(await home.context.discover(home._base_url)) == 6
        assert len(home.site.get_resources_as_linkheader()) == 6


async def test_agents(tls: World) -> None:
    """An agent is narrowed by its class, or at any time by itself."""
    async with home_and_peers(tls) as (home, operator, viewer):
        narrow, battery = Narrow(home), Battery(home)
        assert await (await operator.connect(narrow.addr)).name() == "battery"
        with pytest.raises(RemoteAccessError, match="agents/0"):
            await viewer.connect(narrow.addr)
        with refused(Code.FORBIDDEN):
            await viewer.context.get(narrow.addr + "/soc")
        remote = await viewer.connect(battery.addr)
        assert await remote.name() == "battery"
        battery.access = names("scada") | names("somebody")
        for _ in range(2):
            with pytest.raises(RemoteAccessError):
                await remote.name()
        assert battery.access.allows(Identity(names=frozenset({"scada"})))
        battery.access = None
        assert await remote.name() == "battery"
        narrow.access = None
        assert await (await viewer.connect(narrow.addr)).name() == "battery"
        del narrow.access
        with pytest.raises(RemoteAccessError):
            await viewer.connect(narrow.addr)


async def test_rules_combine_from_the_outside_to_the_inside(tls: World) -> None:
    """All rules on the way have to let one in; each alone does not."""
    async with home_and_peers(tls, access=names("scada", "display")) as (home, operator, viewer):
        narrow = Narrow(home)
        async with tls.container("other", "operator") as other:
            with pytest.raises(RemoteAccessError):
                await other.connect(narrow.addr)
        remote = await operator.connect(narrow.addr)
        assert await remote.set_power(5) == 5
        narrow.access = roles("viewer")
        for call in (remote.set_power, (await viewer.connect(narrow.addr)).set_power):
            with pytest.raises(RemoteAccessError):
                await call(5)


async def test_without_certificates_the_system_says_who_it_is(directory: Path) -> None:
    """Over a Unix socket rules go by the user; over TCP there is nothing to go by, which is 4.01."""
    for kind in ("unix", "tcp", "local"):
        world = World(directory, kind)
        async with world.container() as home, world.container() as peer:
            battery = Battery(home)
            for rule in (same_user(), uids(os.geteuid()), same_host(), local()):
                battery.access = rule
                is_let_in = kind == "unix" and rule is not local()
                is_let_in |= rule is same_host() or (kind == "local" and rule is local())
                if is_let_in:
                    assert await (await peer.connect(battery.addr)).name() == "battery"
                    assert await peer.context.get(battery.addr + "/soc") == 0.5
                else:
                    with pytest.raises(RemoteAccessError):
                        await peer.connect(battery.addr)
                    with refused(Code.UNAUTHORIZED if kind == "tcp" else Code.FORBIDDEN):
                        await peer.context.get(battery.addr + "/soc")


async def test_plain_servers(tls: World) -> None:
    """Without containers, a root service and the site of a context are narrowed in the same way."""

    class Root:
        router = rpc.Service()

        @expose
        def func(self) -> str:
            return "func"

    root = Root()
    server_ssl = aiomas_ng.make_ssl_server_context(*tls.issue("home"))
    server = await rpc.start_server(tls.address(), root, ssl=server_ssl)
    site = Site()
    site.add_resource("x", AskingResource(asyncio.Queue()))
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    served = await Context.create_server_context(site, tls.address(), server_credentials=server_ssl)
    client_ssl = aiomas_ng.make_ssl_client_context(*tls.issue("peer", "operator"))
    hostname = {"server_hostname": "localhost"} if tls.kind == "tls-unix" else {}
    client = await rpc.open_connection(server.address, ssl=client_ssl, **hostname)
    context = await Context.create_client_context(client_credentials=client_ssl)
    url = served.urls[0]
    try:
        assert await client.remote.func() == "func"
        assert await context.get(url + "x") == b"x"
        root.access = site.access = policy = Policy(roles("viewer"), roles={"peer": ["operator"]})  # type: ignore[attr-defined]  # services have it
        for _ in range(2):
            with pytest.raises(RemoteAccessError):
                await client.remote.func()
            for name in ("x", ".well-known/core"):
                with refused(Code.FORBIDDEN):
                    await context.get(url + name)
            policy.grant("peer", "viewer")
            assert await client.remote.func() == "func"
            assert await context.get(url + "x") == b"x"
            policy.revoke("peer", "viewer")
    finally:
        await client.close()
        server.close()
        await context.shutdown()
        await served.shutdown()


@pytest.mark.parametrize("value", ["operator", ["operator"], {"operator"}, 5])
async def test_what_is_meant_for_a_rule_has_to_be_one(value: Any, directory: Path) -> None:
    """Nobody believes that something is narrowed that is not."""
    with pytest.raises(TypeError, match="access must be a rule"):
        type("Wrong", (Agent,), {"access": value})
    for declare in (
        lambda: expose(allow=value),
        lambda: state(access=value),
        lambda: state(write_access=value),
        lambda: rpc.Service(access=value),
    ):
        with pytest.raises(TypeError, match="access must be a rule"):
            declare()
    world = World(directory, "local")
    with pytest.raises(TypeError, match="access must be a rule"):
        async with world.container(access=value):
            pytest.fail("it was made")
    async with world.container() as home:
        for obj in (home, Battery(home), Narrow(home)):
            with pytest.raises(TypeError, match="access must be a rule"):
                obj.access = value
        with pytest.raises(TypeError, match="access must be a rule"):
            home.mount("other", "local://other/", access=value)


async def test_a_resource_that_means_a_rule_and_has_none_is_for_nobody(directory: Path) -> None:
    """A mistake in what a resource says about access shuts it, and does not open it."""
    world = World(directory, "tcp")
    async with world.container() as home, world.container() as peer:
        for name in ("access", "write_access"):
            resource: Any = AskingResource(asyncio.Queue())
            setattr(resource, name, "operator")
            home.site.add_resource("x", resource)
            with refused(Code.UNAUTHORIZED):
                await peer.context.put(home._base_url + "x", 1)
            if name == "access":
                with refused(Code.UNAUTHORIZED):
                    await peer.context.get(home._base_url + "x")
                assert not await peer.context.discover(home._base_url)
            else:
                assert await peer.context.get(home._base_url + "x") == b"x"


# -- Changes at run time ---------------------------------------------------------------------------


async def test_a_revoked_role_counts_from_the_next_call_on(tls: World) -> None:
    """On a connection that is open already: calls, requests, lists."""
    policy = Policy()
    async with home_and_peers(tls, access=policy) as (home, operator, _):
        battery = Battery(home)
        remote = await operator.connect(battery.addr)
        assert await remote.set_power(1) == 1
        for _ in range(2):
            policy.revoke("scada", "operator")
            with pytest.raises(RemoteAccessError):
                await remote.set_power(2)
            with refused(Code.FORBIDDEN):
                await operator.context.get(battery.addr + "/secret")
            with refused(Code.FORBIDDEN):
                await operator.context.put(battery.addr + "/soc", 1)
            assert len(await operator.context.discover(battery.addr)) == 1
            assert await remote.name() == "battery"
            policy.grant("scada", "operator")
            assert await remote.set_power(3) == 3
            assert len(await operator.context.discover(battery.addr)) == 2
        policy.block("scada")
        with pytest.raises(RemoteAccessError):
            await remote.name()
        with refused(Code.FORBIDDEN):
            await operator.context.get(battery.addr + "/soc")
        policy.unblock("scada")
        assert await remote.name() == "battery"
        assert len(operator._connections) == 1
        assert battery.ran.count("set_power") == 3


async def test_roles_by_a_function(tls: World) -> None:
    """A function is asked each time, so what it looks at may change at any moment; if it fails, nobody has a
    role."""
    table: dict[str, list[str]] = {"scada": ["operator"]}

    def find_roles(identity: Identity) -> list[str]:
        return [role for name in identity.names if name != "localhost" for role in table[name]]

    async with home_and_peers(tls, access=Policy(roles=find_roles)) as (home, operator, viewer):
        remote = await operator.connect(Battery(home).addr)
        assert await remote.set_power(1) == 1
        table["scada"] = []
        with pytest.raises(RemoteAccessError):
            await remote.set_power(1)
        table["scada"] = ["operator"]
        assert await remote.set_power(1) == 1
        with denials() as lines:
            other = await viewer.connect(Battery(home).addr)  # of whom the table knows nothing
            with pytest.raises(RemoteAccessError):
                await other.set_power(1)
        assert any("has failed" in line for line in lines)


async def test_a_handler_sees_the_roles_of_now(tls: World) -> None:
    """What is asked again in a handler that runs for long has changed with the policy."""
    policy = Policy(roles={"scada": ["operator", "auditor"]})
    gate = asyncio.Event()
    begun = asyncio.Event()

    class Long(Agent):
        @expose
        async def work(self) -> list[bool]:
            before = access.is_allowed(roles("auditor"))
            begun.set()
            await gate.wait()
            caller = get_caller()
            assert caller is not None
            assert caller.roles == {"operator"}
            with pytest.raises(AccessDeniedError):
                access.check(roles("auditor"))
            access.check(roles("operator"))
            return [before, access.is_allowed(roles("auditor"))]

    async with home_and_peers(tls, access=policy) as (home, operator, _):
        working = (await operator.connect(Long(home).addr)).work()
        await begun.wait()
        policy.revoke("scada", "auditor")
        gate.set()
        assert list(await working) == [True, False]


async def test_an_observation_ends_when_its_role_is_revoked(tls: World) -> None:
    """The next notification is that it is forbidden, and the last; the state is not told."""
    policy = Policy()
    async with home_and_peers(tls, access=policy) as (home, operator, _):
        battery = Battery(home)
        async with operator.context.observe(battery.addr + "/secret") as states:
            assert await anext(states) == 42
            policy.revoke("scada", "operator")
            battery.secret.changed()
            with refused(Code.FORBIDDEN):
                await anext(states)
        resource = home.get_site(battery)._resources["secret",]
        await wait_until(lambda: not resource.observation_count)
        assert await operator.context.get(battery.addr + "/soc") == 0.5


async def test_a_stream_ends_when_a_role_is_revoked(tls: World) -> None:
    """Of a stream that is under way no further item is sent."""
    policy = Policy()
    async with home_and_peers(tls, access=policy) as (home, operator, _):
        battery = Battery(home)
        remote = await operator.connect(battery.addr)
        received: list[int] = []
        stream = remote.count()
        received.append(await anext(aiter(stream)))
        policy.revoke("scada", "operator")
        with pytest.raises(RemoteAccessError):
            await collect(stream, received)
        assert 1 <= len(received) < 1000
        assert await remote.name() == "battery"


async def test_the_rest_of_a_body_is_not_given_either(tls: World) -> None:
    """A large state that is being fetched in blocks ends where the role is revoked."""

    class Large(Resource):
        access = roles("operator")

        def render_get(self, request: Message) -> Message:
            return Message(payload=bytes(100_000))

    policy = Policy()
    async with home_and_peers(tls, access=policy) as (home, operator, _):
        home.site.add_resource("large", Large())
        context, url = operator.context, home._base_url + "large"
        assert len(await context.get(url)) == 100_000
        first = await context.request(Message(Code.GET, uri=url), handle_blockwise=False).response
        assert first.opt.block2.more
        policy.revoke("scada", "operator")
        block = Block(len(first.payload) // 1024, False, first.opt.block2.szx)
        following = Message(Code.GET, uri=url, block2=block)
        response = await context.request(following, handle_blockwise=False).response
        assert response.code == Code.FORBIDDEN
        assert response.payload == b"not allowed"


async def test_who_changes_a_state_is_not_who_observes_it(tls: World) -> None:
    """A notification is rendered for who gets it: neither rights nor names of who has caused it are there.
    A getter that looks at who calls is asked for each of them."""

    class Secretive(Agent):
        level = 1

        @state
        def level_of(self) -> str:
            caller = get_caller()
            assert caller is not None
            return f"{self.level} for {min(caller.names)}"

        @level_of.setter
        def set_level(self, value: int) -> None:
            self.level = value

    async with home_and_peers(tls) as (home, operator, viewer):
        url = Secretive(home).addr + "/level_of"
        async with operator.context.observe(url) as first, viewer.context.observe(url) as second:
            assert (await anext(first), await anext(second)) == ("1 for localhost", "1 for display")
            await operator.context.put(url, 2)
            assert (await anext(first), await anext(second)) == ("2 for localhost", "2 for display")


async def test_a_restarted_agent_is_narrowed_as_before(tls: World) -> None:
    """What was said about one agent, and not about its class, also holds for the one that takes its place."""

    class Failing(Battery):
        @expose(allow=roles("viewer", "operator"))
        def fail(self) -> None:
            self.tasks.start(self._fail, on_failure=RestartAgent(first_pause=0, jitter=0))

        async def _fail(self) -> None:
            raise RuntimeError("on purpose")

    async with home_and_peers(tls) as (home, operator, viewer):
        failing = Failing(home)
        failing.access = roles("operator")
        remote = await operator.connect(failing.addr)
        await remote.fail()
        await wait_until(lambda: home.agents.dict.get("0") not in (None, failing))
        assert await remote.name() == "battery"
        with pytest.raises(RemoteAccessError):
            await viewer.connect(failing.addr)
        with refused(Code.FORBIDDEN):
            await viewer.context.get(failing.addr + "/soc")


async def test_a_connection_that_is_taken_up_again_has_the_same_identity(tls: World) -> None:
    """The peer is who it was, and what was revoked meanwhile is revoked."""
    policy = Policy()
    async with home_and_peers(tls, access=policy) as (home, operator, _):
        remote = await operator.connect(Battery(home).addr)
        (accepted,) = [client.channel for client in home._connections]
        before = accepted.identity
        for _ in range(2):
            wire = accepted.transport.wire
            wire.abort()
            assert await remote.name() == "battery"
            await wait_until(lambda old=wire: accepted.transport.wire not in (None, old))
            assert accepted.identity == before
            assert await remote.set_power(1) == 1
        accepted.transport.wire.abort()
        policy.revoke("scada", "operator")
        with pytest.raises(RemoteAccessError):
            await remote.set_power(1)
        assert [client.channel for client in home._connections] == [accepted]


# -- Not by way of others --------------------------------------------------------------------------


class Broker(Agent):
    """Hands proxies on, and calls what it is given."""

    kept: Any = None

    @expose
    async def get_proxy(self, addr: str) -> Any:
        return await self.container.connect(addr)

    @expose
    async def call(self, function: Any) -> Any:
        return await function()

    @expose
    def keep(self, agent: Any) -> None:
        self.kept = agent


async def test_a_third_party_comes_with_its_own_identity(tls: World) -> None:
    """A proxy is an address and no right: who gets it from an operator is still a viewer."""
    async with home_and_peers(tls) as (home, operator, viewer):
        battery, broker = Battery(home), Broker(operator)
        proxy = await (await viewer.connect(broker.addr)).get_proxy(battery.addr)
        assert await proxy.name() == "battery"
        with pytest.raises(RemoteAccessError):
            await proxy.set_power(1)
        assert battery.ran == []
        # The other way round: what a viewer hands to an operator, the operator may call.
        remote = await operator.connect(Broker(viewer).addr)
        assert await (await remote.get_proxy(battery.addr)).set_power(1) == 1


async def test_a_peer_cannot_have_us_call_what_it_may_not(tls: World) -> None:
    """A reference to something of ours that the peer may not reach is not taken: we could reach it."""
    async with home_and_peers(tls) as (home, operator, viewer):
        battery, narrow, broker = Battery(home), Narrow(home), Broker(home)
        for peer, is_allowed in ((viewer, False), (operator, True)):
            to_broker = await peer.connect(broker.addr)
            client = await peer._peers.get(to_broker._link.address).connect()
            targets = [
                (rpc.Proxy(client, f"agents/{battery.addr[-1]}/part/func"), "func"),
                (rpc.Proxy(client, f"agents/{narrow.addr[-1]}/name"), "battery"),
                # The same as if it were of a third party.
                (rpc.Proxy(to_broker._link, "agents/0/part/func", home._base_url), "func"),
            ]
            for target, result in targets:
                if is_allowed:
                    assert await to_broker.call(target) == result
                else:
                    with pytest.raises(RemoteSerializationError, match="not allowed"):
                        await to_broker.call(target)
            assert await to_broker.call(rpc.Proxy(client, f"agents/{battery.addr[-1]}/name")) == "battery"


async def test_root_services_cannot_be_made_deputies(tls: World) -> None:
    """Likewise without containers, where a reference to a service of ours arrives as the service itself."""
    called = []

    class Root:
        router = rpc.Service()

        @expose(allow=roles("admin"))
        def reset(self) -> None:
            called.append("reset")

        @expose
        def call(self, function: Any) -> None:
            function()

    server_ssl = aiomas_ng.make_ssl_server_context(*tls.issue("home"))
    server = await rpc.start_server(tls.address(), Root(), ssl=server_ssl)
    hostname = {"server_hostname": "localhost"} if tls.kind == "tls-unix" else {}
    client_ssl = aiomas_ng.make_ssl_client_context(*tls.issue("peer", "operator"))
    client = await rpc.open_connection(server.address, ssl=client_ssl, **hostname)
    with pytest.raises(RemoteAccessError):
        await client.remote.reset()
    with pytest.raises(RemoteSerializationError, match="not allowed"):
        await client.remote.call(client.remote.reset)
    assert not called
    await client.close()
    server.close()


@contextlib.asynccontextmanager
async def behind_a_hub(tls: World, **kwargs: Any) -> AsyncIterator[tuple[Container, Container, Container]]:
    """A container with a battery, a hub that is an operator and has it mounted, and one that is a viewer."""
    async with (
        tls.container("home") as home,
        tls.container("hub", "operator") as hub,
        tls.container("display", "viewer") as viewer,
    ):
        hub.mount("home", home._base_url, **kwargs)
        yield home, hub, viewer


async def test_a_forwarder_lends_nobody_its_rights(tls: World) -> None:
    """What is forwarded by an operator for a viewer is nobody's: it reaches what is for everybody, and
    nothing else."""
    async with behind_a_hub(tls) as (home, hub, viewer):
        battery = Battery(home)
        base = f"{hub._base_url}home/0"
        assert await hub.context.get(battery.addr + "/secret") == 42
        assert await viewer.context.get(base + "/soc") == 0.5
        for url in (base + "/secret", base.replace("display", "hub") + "/secret"):
            with refused(Code.UNAUTHORIZED):
                await viewer.context.get(url)
        with refused(Code.UNAUTHORIZED):
            await viewer.context.put(base + "/soc", 1)
        async with viewer.context.observe(base + "/soc") as states:
            assert await anext(states) == 0.5
        with refused(Code.UNAUTHORIZED):
            await anext(viewer.context.observe(base + "/secret"))
        found = await viewer.context.discover(f"{hub._base_url}home")
        assert [link.href for link in found] == [base + "/soc"]
        assert battery.ran == ["secret"]
        # Nor does the hub by itself get more through its own mount than by asking directly.
        with refused(Code.UNAUTHORIZED):
            await hub.context.get(base + "/secret")


async def test_via_lets_in_what_a_hub_forwards(tls: World) -> None:
    """Where the hub is trusted to decide, its mount does so."""
    async with behind_a_hub(tls, access=names("display")) as (home, hub, viewer):
        seen: asyncio.Queue[Identity | None] = asyncio.Queue()

        class Trusting(Agent):
            access = via(names("hub")) | names("scada")

            @state
            def value(self) -> int:
                seen.put_nowait(get_caller())
                return 1

        Trusting(home)
        url = f"{hub._base_url}home/0/value"
        assert await viewer.context.get(url) == 1
        caller = await seen.get()
        assert caller is not None
        assert caller.forwarder is not None
        assert (caller.names, caller.roles, caller.forwarder.names) == (set(), set(), {"hub", "localhost"})
        async with tls.container("other", "viewer") as other:
            with refused(Code.FORBIDDEN):
                await other.context.get(url)
            with refused(Code.FORBIDDEN):
                await other.context.get(home._base_url + "0/value")
        with refused(Code.FORBIDDEN):
            await hub.context.get(home._base_url + "0/value")


async def test_a_mount_of_oneself_is_no_way_in(tls: World) -> None:
    """A container that forwards to itself does not take what others ask for as its own."""
    async with home_and_peers(tls) as (home, operator, viewer):
        narrow = Narrow(home)
        home.mount("alias", narrow.addr)
        for peer in (viewer, operator):
            with refused(Code.UNAUTHORIZED):
                await peer.context.get(home._base_url + "alias/secret")
            with refused(Code.UNAUTHORIZED):
                await peer.context.discover(home._base_url + "alias")
        assert narrow.ran == []


async def test_a_directory_does_not_look_with_its_own_eyes(tls: World) -> None:
    """Who registers the address of the directory's own container does not learn what is not for him there."""
    async with home_and_peers(tls) as (home, _, viewer):
        directory, battery = Directory(home), Battery(home)
        query = ("ep=spy", f"base={home._base_url}")
        url = directory.addr + "/.well-known/rd"
        await viewer.context.post(url, uri_query=query)
        found = {link.href for link in await lookup(viewer.context, directory.addr)}
        assert battery.addr + "/soc" in found
        assert battery.addr + "/secret" not in found


# -- What one is told, and what is logged ----------------------------------------------------------


async def test_denials_are_logged_and_cannot_flood_the_log(tls: World) -> None:
    """Each is a line that says who and what, up to a number for each connection; the others are counted."""
    async with home_and_peers(tls) as (home, _, viewer):
        battery = Battery(home)
        with denials() as lines:
            remote = await viewer.connect(battery.addr)
            for _ in range(5):
                with pytest.raises(RemoteAccessError):
                    await remote.set_power(5)
            with refused(Code.FORBIDDEN):
                await viewer.context.get(battery.addr + "/secret")
            assert len(lines) == 6
            assert all("'display'" in line and "'0" not in line for line in lines)
            assert lines[5].endswith("'GET /0/secret'")
            for _ in range(100):
                rpc.with_options(remote.set_power, oneway=True)(5)
            long = rpc.Proxy(remote._link, "agents/0/part/" + "x\n" * 9999)
            with pytest.raises(RemoteAccessError):
                await long()
            assert len(lines) == 21  # the last one says that further ones are counted
            await viewer.shutdown(as_coro=True)
            await wait_until(lambda: not home._connections)
        assert len(lines) == 22
        assert lines[-1].startswith("87 more lines")
        assert all("\n" not in line and len(line) < 400 for line in lines)


async def test_a_handler_may_refuse_by_itself(tls: World) -> None:
    """The error of its own check reaches the caller as that of a rule, and is a line in the log."""

    class Choosy(Agent):
        @expose
        async def plan(self, day: str) -> str:
            access.check(roles("operator"), f"the plan of {day}")
            return day

        @state
        def plan_of_today(self) -> str:
            access.check(roles("operator"), "the plan of today")
            return "today"

    async with home_and_peers(tls) as (home, operator, viewer):
        addr = Choosy(home).addr
        assert await (await operator.connect(addr)).plan("today") == "today"
        assert await operator.context.get(addr + "/plan_of_today") == "today"
        assert await (await home.connect(addr)).plan("today") == "today"
        with denials() as lines:
            with pytest.raises(RemoteAccessError) as caught:
                await (await viewer.connect(addr)).plan("today")
            assert caught.value.message == "access to 'the plan of today' is not allowed"
            assert "File" not in caught.value.remote_traceback
            with refused(Code.FORBIDDEN):
                await viewer.context.get(addr + "/plan_of_today")
        assert [line.rpartition(": ")[2] for line in lines] == ["'the plan of today'"] * 2
    access.check(NOBODY)  # our own code may do what it likes


# -- Managers --------------------------------------------------------------------------------------


async def test_a_manager_spawns_for_whom_its_owner_says(tls: World) -> None:
    """What may be created can be narrowed for each name; it is not imported for the others."""
    allow = {f"{__name__}:Battery": roles("operator"), f"{__name__}:Broker": None}
    async with home_and_peers(tls) as (home, operator, viewer):
        manager = subproc.Manager(home, allow=allow)
        allowed, denied = await operator.connect(manager.addr), await viewer.connect(manager.addr)
        for remote, name in ((allowed, "Battery"), (allowed, "Broker"), (denied, "Broker")):
            await remote.spawn(f"{__name__}:{name}")
        with denials() as lines:
            for remote, name in ((denied, "Battery"), (denied, "Narrow"), (allowed, "Narrow")):
                with pytest.raises(RemoteException) as caught:
                    await remote.spawn(f"{__name__}:{name}")
                assert caught.value.type_name == "aiomas_ng.SpawnError"
        assert len(lines) == 1
        assert len(home.agents.dict) == 4
        manager.access = roles("operator")
        for call in (denied.spawn, denied.stop, denied.set_time):
            with pytest.raises(RemoteAccessError):
                await call(f"{__name__}:Broker")
        assert not manager.stop_received.done()


async def test_by_default_a_manager_spawns_nothing_for_other_hosts(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list, agents are created for what is on the same host, and nothing for others."""
    from aiomas_ng._io import principal

    for is_near in (True, False):
        monkeypatch.setattr(principal, "is_loopback", lambda peername, answer=is_near: answer)
        for kind in ("tcp", "tls"):
            world = World(directory, kind)
            async with world.container() as home, world.container("peer", "operator") as peer:
                remote = await peer.connect(subproc.Manager(home).addr)
                if is_near:
                    await remote.spawn(f"{__name__}:Battery")
                else:
                    with pytest.raises(RemoteException) as caught:
                        await remote.spawn("no_such_module:Battery")
                    assert caught.value.type_name == "aiomas_ng.SpawnError"
                    # For ourselves it does, as before.
                    await (await home.connect(home._base_url + "0")).spawn(f"{__name__}:Battery")


async def test_managers_of_processes_are_narrowed(directory: Path) -> None:
    """Rules and policies reach the processes of a set: who is no operator cannot even end them."""
    world = World(directory, "tls")
    certs = world.issue("worker")
    async with (
        world.container("owner", "operator") as owner,
        world.container("display", "viewer") as viewer,
        await subproc.start_processes(
            [("127.0.0.1", 0)],
            ssl=certs,
            access=Policy(certified()),
            manager_access=roles("operator"),
            allow={"aiomas_ng.directory:Directory": names("owner")},
        ) as processes,
    ):
        manager = await owner.connect(processes.managers[0])
        _, addr = await manager.spawn("aiomas_ng.directory:Directory")
        await viewer.connect(addr)
        with pytest.raises(RemoteAccessError):
            await viewer.connect(processes.managers[0])
        client = await viewer._peers.get(manager._link.address).connect()
        with pytest.raises(RemoteAccessError):
            await client.remote.agents.__getattr__("0").stop()
        await owner.context.get(addr + "/rd-lookup/ep")


def test_denied_error_says_what() -> None:
    """The errors have the path, and are PermissionErrors."""
    error = AccessDeniedError("agents/0/x")
    assert (error.path, error.errno) == ("agents/0/x", 13)
    assert str(error) == "access to 'agents/0/x' is not allowed"
    assert isinstance(error, PermissionError)
    remote = RemoteAccessError(("h", 1), "text", "T", "m")
    assert (remote.origin, remote.errno, remote.message) == (("h", 1), 13, "m")
    assert issubclass(ResponseWrappingError, Exception)
