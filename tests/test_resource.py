"""Resources and sites: handlers, methods, preconditions, content negotiation, paths, lists of links."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from aiomas_ng import error, linkformat, resource
from aiomas_ng._coap.site import get_prefix
from aiomas_ng._core.log_limit import LOG_LINES
from aiomas_ng.linkformat import Link, LinkFormat
from aiomas_ng.message import (
    CHANGED,
    CONTENT,
    DELETE,
    FETCH,
    GET,
    NOT_FOUND,
    PATCH,
    POST,
    PUT,
    VALID,
    Code,
    ContentFormat,
    Message,
    iPATCH,
)
from aiomas_ng.pipe import Pipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import (
    ObservableResource,
    PathCapable,
    Renderer,
    Resource,
    ServerObservation,
    Site,
    WKCResource,
    hashing_etag,
    negotiate,
)

HASH_OF_HELLO = b"\xaa\xf4\xc6\x1d\xdc\xc5\xe8\xa2"
METHODS = (GET, PUT, POST, DELETE, FETCH, PATCH, iPATCH)


class Text(Resource):
    """A text that can be read and replaced; ``None`` stands for no state."""

    def __init__(self, text: str | None = "hello") -> None:
        self.text = text

    def render_get(self, request: Message) -> Message:
        if self.text is None:
            raise error.NotFound
        response = Message(CONTENT, self.text.encode())
        hashing_etag(request, response)
        return response

    def render_put(self, request: Message) -> Message:
        self.text = request.payload.decode()
        return Message(CHANGED)


class Where(Resource):
    """Answers with the path that it sees."""

    def render_get(self, request: Message) -> Message:
        return Message(payload="|".join(request.opt.uri_path).encode())


class Handlers(Resource):
    """A resource whose handlers are given by name."""

    def __init__(self, **handlers: Callable[[Message], Any]) -> None:
        for name, handler in handlers.items():
            setattr(self, f"render_{name}", handler)


@contextlib.asynccontextmanager
async def served(site: Any, **kwds: Any) -> AsyncIterator[tuple[Context, str]]:
    """Serve *site*; gives a client and the base URL."""
    server = await Context.create_server_context(site, ("127.0.0.1", 0), **kwds)
    async with server, await Context.create_client_context() as client:
        yield client, server.urls[0]


def at(path: str, one: Any) -> Site:
    """Return a site with one resource."""
    site = Site()
    site.add_resource(path, one)
    return site


async def ask(one: Any, code: Code = GET, payload: bytes = b"", **options: Any) -> Message:
    """Return what a resource answers, without any network."""
    response: Message = await one.render(Message(code, payload, **options))
    return response


# -- Entity tags -----------------------------------------------------------------------------------


def test_hashing_etag_turns_content_into_valid() -> None:
    """The example of the reference: whoever has the version gets 2.03 with its tag, and nothing else."""
    request = Message(GET, etags=[HASH_OF_HELLO])
    response = Message(CONTENT, b"hello", content_format=0)
    hashing_etag(request, response)
    assert response.code == VALID
    assert (response.payload, response.opt.etag, len(response.opt)) == (b"", HASH_OF_HELLO, 1)
    assert "2.03 Valid" in repr(response)
    assert "1 option(s)" in repr(response)


def test_hashing_etag_tags_other_versions() -> None:
    """Whoever has another version, or none, gets the payload with its tag."""
    for tags in ([], [b"12345678"]):
        response = Message(None, b"hello")
        hashing_etag(Message(GET, etags=tags), response)
        assert (response.code, response.payload, response.opt.etag) == (None, b"hello", HASH_OF_HELLO)


def test_hashing_etag_keeps_a_tag_and_max_age() -> None:
    """A tag that a handler has set counts, and a 2.03 says how long it is fresh."""
    response = Message(CONTENT, b"hello", etag=b"v1", max_age=5)
    hashing_etag(Message(GET, etags=[b"v0", b"v1"]), response)
    assert (response.code, response.opt.etag, response.opt.max_age) == (VALID, b"v1", 5)


@pytest.mark.parametrize("code", [c for c in Code if c.is_response() and c != CONTENT])
def test_hashing_etag_leaves_other_responses_alone(code: Code) -> None:
    """It acts on 2.05 only, so it is safe with all kinds of responses."""
    response = Message(code, b"hello")
    hashing_etag(Message(GET, etags=[HASH_OF_HELLO]), response)
    assert (response.code, response.payload, len(response.opt)) == (code, b"hello", 0)


# -- Handlers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", METHODS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_each_method_has_its_handler(code: Code, is_async: bool) -> None:
    """Every method is answered by its handler, plain or async, and gets the code it usually has."""

    def plain(request: Message) -> Message:
        return Message(payload=request.code.name.encode())

    async def waits(request: Message) -> Message:
        await asyncio.sleep(0)
        return plain(request)

    one = Handlers(**{code.name.lower(): waits if is_async else plain})
    response = await ask(one, code)
    assert response.payload == code.name.encode()
    assert response.code == resource.DEFAULT_CODES[code]
    for other in METHODS:
        if other != code:
            with pytest.raises(error.MethodNotAllowed, match=rf"offered: {code.name}$"):
                await ask(one, other)


async def test_code_of_the_handler_counts() -> None:
    """A handler may choose the code."""
    one = Handlers(put=lambda request: Message(Code.CREATED), get=lambda request: Message(NOT_FOUND))
    assert (await ask(one, PUT)).code == Code.CREATED
    assert (await ask(one)).code == NOT_FOUND


async def test_handler_that_is_taken_away() -> None:
    """A subclass takes a handler away by setting it to None."""

    class ReadOnly(Text):
        render_put = None  # type: ignore[assignment]  # what the test is about

    with pytest.raises(error.MethodNotAllowed, match=r"offered: GET$"):
        await ask(ReadOnly(), PUT)
    with pytest.raises(error.MethodNotAllowed, match="offered: nothing"):
        await ask(Resource())


@pytest.mark.parametrize("number", [8, 15, 31])
async def test_unknown_methods(number: int) -> None:
    """A method that nobody knows is not allowed (RFC 7252, section 5.8)."""
    async with served(at("text", Text())) as (client, url):
        response = await client.request(Message(Code(number), uri=url + "text")).response
    assert response.code == Code.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    "result", [None, "text", b"bytes", Message(GET), Message(Code.EMPTY), Message(Code.CSM), Message, (1,)]
)
async def test_wrong_results(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that returns no response has failed: 5.00 without internals, and one entry in the log."""
    async with served(at("wrong", Handlers(get=lambda request: result))) as (client, url):
        response = await client.request(Message(GET, uri=url + "wrong")).response
    assert (response.code, response.payload) == (Code.INTERNAL_SERVER_ERROR, b"")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "must return a Message" in record.getMessage()


async def test_wrong_result_of_a_nameless_handler() -> None:
    """The error says which handler it was, even if that has no name."""
    one = Handlers(get=functools.partial(lambda value, request: value, 5))
    with pytest.raises(TypeError, match=r"functools.partial.* has returned 5"):
        await ask(one)


@pytest.mark.parametrize("shows_errors", [False, True])
async def test_handler_that_raises(shows_errors: bool, caplog: pytest.LogCaptureFixture) -> None:
    """An exception is logged once; the requester learns type and text only if the server says so."""

    async def fail(request: Message) -> Message:
        raise ZeroDivisionError("secret")

    async with served(at("bad", Handlers(get=fail)), shows_errors=shows_errors) as (client, url):
        response = await client.request(Message(GET, uri=url + "bad")).response
    assert response.code == Code.INTERNAL_SERVER_ERROR
    assert response.payload == (b"ZeroDivisionError: secret" if shows_errors else b"")
    assert sum("secret" in record.getMessage() for record in caplog.records) == 1


async def test_very_many_failures(caplog: pytest.LogCaptureFixture) -> None:
    """Of very many that one peer causes, the log has some, and their number when the peer has gone. Those of
    another peer are not hidden by them, and each is answered."""

    async def fail(request: Message) -> Message:
        raise ZeroDivisionError("on purpose")

    def count_tracebacks() -> int:
        return sum(record.exc_info is not None for record in caplog.records)

    async with served(at("bad", Handlers(get=fail))) as (client, url):
        for _ in range(LOG_LINES + 5):
            response = await client.request(Message(GET, uri=url + "bad")).response
            assert response.code == Code.INTERNAL_SERVER_ERROR
        assert count_tracebacks() == LOG_LINES
        async with Context() as other:
            await other.request(Message(GET, uri=url + "bad")).response
            assert count_tracebacks() == LOG_LINES + 1
    assert sum("5 more lines about" in record.getMessage() for record in caplog.records) == 1


async def test_errors_render_themselves(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the module ``error`` is the response, and nothing that has to be logged."""

    def fail(request: Message) -> Message:
        raise error.Forbidden("not you")

    async with served(at("mine", Handlers(get=fail))) as (client, url):
        with pytest.raises(error.ResponseWrappingError, match=r"4\.03 .*not you") as caught:
            await client.get(url + "mine")
    assert caught.value.code == Code.FORBIDDEN
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_unknown_critical_option() -> None:
    """A critical option that nobody knows is 4.02, and the handler is not asked."""
    calls: list[Message] = []
    async with served(at("here", Handlers(get=calls.append))) as (client, url):
        message = Message(GET, uri=url + "here")
        message.opt.add_option(2049, b"x")
        response = await client.request(message).response
    assert response.code == Code.BAD_OPTION
    assert b"2049" in response.payload
    assert not calls


# -- Preconditions ---------------------------------------------------------------------------------


async def test_if_match() -> None:
    """A PUT with If-Match is done if one of the tags is that of the state, else it is 4.12."""
    text = Text()
    await ask(text, PUT, b"one", if_match=[b"12345678", HASH_OF_HELLO])
    assert text.text == "one"
    with pytest.raises(error.PreconditionFailed, match="another version"):
        await ask(text, PUT, b"two", if_match=[HASH_OF_HELLO])
    assert text.text == "one"


async def test_empty_if_match() -> None:
    """The empty tag asks for any state."""
    text = Text()
    await ask(text, PUT, b"one", if_match=[b""])
    text.text = None
    with pytest.raises(error.PreconditionFailed, match="no state"):
        await ask(text, PUT, b"two", if_match=[b""])
    assert text.text is None


async def test_if_none_match() -> None:
    """If-None-Match asks for there being no state yet."""
    text = Text(None)
    await ask(text, PUT, b"one", if_none_match=True)
    with pytest.raises(error.PreconditionFailed, match="exists"):
        await ask(text, PUT, b"two", if_none_match=True)
    assert text.text == "one"


@pytest.mark.parametrize(
    "reading",
    [{}, {"get": lambda request: Message(NOT_FOUND)}, {"get": lambda request: Message(Code.FORBIDDEN)}],
)
async def test_preconditions_without_a_state(reading: dict[str, Any]) -> None:
    """What cannot be read has no state that could match."""
    one = Handlers(put=lambda request: Message(), **reading)
    assert (await ask(one, PUT, if_none_match=True)).code == CHANGED
    with pytest.raises(error.PreconditionFailed):
        await ask(one, PUT, if_match=[b"x"])


async def test_tag_of_the_handler_counts_for_preconditions() -> None:
    """Tags that a resource chooses by itself are compared, and made by hashing otherwise."""
    seen: list[Message] = []

    def get(request: Message) -> Message:
        seen.append(request)
        return Message(payload=b"hello", etag=b"v1")

    one = Handlers(get=get, put=lambda request: Message())
    await ask(one, PUT, b"data", if_match=[b"v1"], content_format=0, uri_query=["a=1"])
    (probe,) = seen
    assert (probe.code, probe.payload, probe.opt.uri_query) == (GET, b"", ("a=1",))
    assert not probe.opt.if_match
    assert probe.opt.content_format is None
    untagged = Handlers(get=lambda request: Message(payload=b"hello"), put=lambda request: Message())
    await ask(untagged, PUT, if_match=[HASH_OF_HELLO])


async def test_precondition_of_the_safe_methods_is_no_matter() -> None:
    """A GET changes nothing, so a condition does not keep it."""
    assert (await ask(Text(), if_match=[b"none"])).payload == b"hello"


async def test_one_of_concurrent_conditional_puts_wins() -> None:
    """Of many requests for the same version exactly one is done, although the handlers wait."""

    class SlowText(Text):
        async def render_put(self, request: Message) -> Message:  # type: ignore[override]  # may be async
            await asyncio.sleep(0)
            return super().render_put(request)

    text = SlowText()
    async with served(at("text", text)) as (client, url):
        puts = [client.put(url + "text", f"{n}", if_match=[HASH_OF_HELLO], timeout=10) for n in range(20)]
        results = await asyncio.gather(*puts, return_exceptions=True)
    failures = [result for result in results if result is not None]
    assert len(failures) == 19
    assert all(
        isinstance(e, error.ResponseWrappingError) and e.code == Code.PRECONDITION_FAILED for e in failures
    )
    assert text.text == str(results.index(None))


async def test_no_change_begins_while_a_conditional_one_is_under_way() -> None:
    """A request without a condition waits for one with it, but not for others without."""
    order: list[str] = []
    gates = {name: asyncio.Event() for name in ("conditional", "one", "two")}

    async def put(request: Message) -> Message:
        name = request.payload.decode()
        order.append(f"{name} begins")
        await gates[name].wait()
        order.append(f"{name} ends")
        return Message()

    one = Handlers(get=lambda request: Message(payload=b"hello"), put=put)
    tasks = [asyncio.ensure_future(ask(one, PUT, b"conditional", if_match=[b""]))]
    await asyncio.sleep(0)
    tasks += [asyncio.ensure_future(ask(one, PUT, name)) for name in (b"one", b"two")]
    await asyncio.sleep(0)
    assert order == ["conditional begins"]
    gates["conditional"].set()
    await wait_until(lambda: len(order) == 4)
    assert order == ["conditional begins", "conditional ends", "one begins", "two begins"]
    gates["one"].set()
    gates["two"].set()
    await asyncio.gather(*tasks)


# -- Content formats -------------------------------------------------------------------------------


def test_negotiate() -> None:
    """The format asked for is chosen if it is offered, by default the first one."""
    offered = [ContentFormat.JSON, ContentFormat.TEXT, 4711]
    assert negotiate(Message(GET), offered) == ContentFormat.JSON
    assert negotiate(Message(GET, accept=0), offered) == ContentFormat.TEXT
    assert negotiate(Message(GET, accept=4711), offered) == 4711
    with pytest.raises(
        error.NotAcceptable, match=r"60 is not .* application/json \(50\), .*content format 4711"
    ):
        negotiate(Message(GET, accept=60), offered)


async def test_format_that_was_not_asked_for() -> None:
    """A response in another format than the one asked for becomes 4.06, one of unknown format does not."""
    one = Handlers(get=lambda request: Message(payload=b"{}", content_format=50))
    with pytest.raises(error.NotAcceptable, match="what is: application/json"):
        await ask(one, accept=0)
    assert (await ask(one, accept=50)).payload == b"{}"
    assert (await ask(one)).payload == b"{}"
    assert (await ask(Text(), accept=60)).payload == b"hello"


async def test_refused_format_of_an_error() -> None:
    """Accept is about states: an error passes in whichever format it is."""
    one = Handlers(get=lambda request: Message(NOT_FOUND, b"no", content_format=0))
    assert (await ask(one, accept=50)).code == NOT_FOUND


async def test_handler_refuses_a_content_format() -> None:
    """A handler raises UnsupportedMediaType for a body that it does not take: 4.15."""

    def put(request: Message) -> Message:
        raise error.UnsupportedMediaType

    async with served(at("here", Handlers(put=put))) as (client, url):
        response = await client.request(Message(PUT, b"x", url + "here")).response
    assert response.code == Code.UNSUPPORTED_CONTENT_FORMAT


# -- Paths -----------------------------------------------------------------------------------------


async def read(site: Any, *path: str) -> str:
    """Return the text of the resource at *path*, ``"4.04"`` if there is none."""
    try:
        response: Message = await site.render(Message(GET, uri_path=path))
    except error.NotFound:
        return "4.04"
    return response.payload.decode()


async def test_site_of_the_reference() -> None:
    """The resources of a site within a site are rendered below its path, its root with a slash at the end."""
    batch = Site()
    batch.add_resource(["light1"], Text("one"))
    batch.add_resource(["light2"], Text("two"))
    batch.add_resource([], Text("root"))
    site = Site()
    site.add_resource(["hello"], Text())
    site.add_resource("batch", batch)
    async with served(site) as (client, url):
        texts = [await client.get(url + path) for path in ("hello", "batch/light1", "batch/light2", "batch/")]
        assert texts == [b"hello", b"one", b"two", b"root"]
        for path in ("batch", "", "batch/light3", "hello/", "hello/x", "/hello", "batch//", "batch/light1/"):
            with pytest.raises(error.ResponseWrappingError) as caught:
                await client.get(url + path)
            assert caught.value.code == NOT_FOUND
    assert [link.href for link in site.get_resources_as_linkheader()] == [
        "/hello", "/batch/light1", "/batch/light2", "/batch/",
    ]  # fmt: skip


async def test_resource_at_the_path_of_a_site() -> None:
    """A resource may lie where a site lies; they share the path with and without a slash."""
    site = Site()
    site.add_resource("batch", at("light", Text("light")))
    site.add_resource("batch", Text("alone"))
    assert [await read(site, *path) for path in (["batch"], ["batch", "light"], ["batch", ""])] == [
        "alone", "light", "4.04",
    ]  # fmt: skip
    site.remove_resource("batch")
    assert [await read(site, *path) for path in (["batch"], ["batch", "light"])] == ["4.04", "4.04"]


async def test_longest_path_counts() -> None:
    """A resource counts before a site, and a longer path before a shorter one."""
    site = Site()
    site.add_resource("a", at("b/c", Text("of the site")))
    assert await read(site, "a", "b", "c") == "of the site"
    site.add_resource("a/b", at("c", Text("of the longer one")))
    assert await read(site, "a", "b", "c") == "of the longer one"
    site.add_resource("a/b/c", Text("itself"))
    assert await read(site, "a", "b", "c") == "itself"


async def test_site_at_the_root() -> None:
    """A site within a site at ``[]`` answers what nothing else does, and the root itself."""
    site = at("", at("x", Text("below")))
    site.add_resource("y", Text("beside"))
    assert [await read(site, name) for name in ("x", "y", "z")] == ["below", "beside", "4.04"]
    assert await read(at("", at("", Text("root")))) == "root"


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("a/b", ("a", "b")),
        ("/a/b/", ("a", "b")),
        (["a/b"], ("a/b",)),
        ("a%2Fb", ("a%2Fb",)),
        ("grüße/🔋", ("grüße", "🔋")),
        ("a//b", ("a", "", "b")),
        (["", "a"], ("", "a")),
        ("", ()),
        ("/", ()),
        ([""], ()),
        ([], ()),
        (("x",), ("x",)),
    ],
)
async def test_paths(path: Any, segments: tuple[str, ...]) -> None:
    """Paths are given by segments, in which anything may occur, or as text that is cut at the slashes."""
    site = at(path, Text())
    assert await read(site, *segments) == "hello"
    async with served(site) as (client, url):
        assert await client.get(url + linkformat.quote_path(segments)) == b"hello"
        (link,) = site.get_resources_as_linkheader().resolve(url)
        assert await client.get(link.href) == b"hello"


@pytest.mark.parametrize("path", [["a", ""], ("", "")])
def test_paths_with_an_empty_end(path: Any) -> None:
    """A path must not end with an empty segment."""
    with pytest.raises(ValueError, match="must not end with an empty segment"):
        Site().add_resource(path, Text())


@pytest.mark.parametrize("path", ["a/./b", ["..", "a"], "."])
def test_paths_with_dots(path: Any) -> None:
    """A path must not have segments that a URL cannot have."""
    with pytest.raises(ValueError, match="must not have the segment"):
        Site().add_resource(path, Text())


@pytest.mark.parametrize("path", [[1], [None], [b"a"]])
def test_paths_of_other_types(path: Any) -> None:
    """The segments of a path are strings."""
    with pytest.raises(TypeError, match="segments of a path must be strings"):
        Site().add_resource(path, Text())


def test_what_is_no_resource() -> None:
    """Only what renders requests can be added, and the error says what is wrong."""
    for wrong in (None, "text", lambda request: None, object()):
        with pytest.raises(TypeError, match=r"must render requests, as Resource and Site do, but is"):
            Site().add_resource("x", wrong)
    with pytest.raises(TypeError, match="give an instance of the class"):
        Site().add_resource("x", Text)


def test_site_within_itself() -> None:
    """A site cannot lie within itself, not even two levels down."""
    site, below = Site(), Site()
    site.add_resource("below", below)
    for inner in (site, below):
        with pytest.raises(ValueError, match="cannot lie within itself"):
            inner.add_resource("x", site)


async def test_resources_see_the_rest_of_the_path() -> None:
    """What is path capable sees what follows its own path; a resource sees none."""

    class Rest(Where, PathCapable):
        pass

    site = Site()
    site.add_resource("where", Where())
    site.add_resource("deep", at("rest", Rest()))
    assert await read(site, "where") == ""
    assert await read(site, "deep", "rest", "a", "b") == "a|b"
    assert await read(site, "deep", "rest", "") == ""
    assert await read(site, "deep", "rest") == "4.04"


async def test_request_below_a_site_knows_its_uri() -> None:
    """A request that has gone through sites still has the URI that was asked for, and its copies too."""
    seen: list[Message] = []

    def get(request: Message) -> Message:
        seen.append(request)
        return Message()

    site = at("a", at("b c", Handlers(get=get)))
    await site.render(Message(GET, uri_path=["a", "b c"], uri_query=["q=1"]))
    (request,) = seen
    assert request.get_request_uri() == "/a/b%20c?q=1"
    assert request.copy(payload=b"x").get_request_uri() == "/a/b%20c?q=1"
    assert "/a/b%20c" in repr(request)
    assert get_prefix(request) == ("a", "b c")
    assert get_prefix(Message(GET)) == ()


@given(st.lists(st.lists(st.sampled_from(["a", "b", ""]), max_size=4), max_size=8), st.data())
def test_routing_follows_its_rules(paths: list[list[str]], data: st.DataObject) -> None:
    """For any resources and sites: the resource at the path, else the site with the longest beginning."""
    site = Site()
    resources, sites = {}, {}
    for path in paths:
        if path and path[-1] == "" and path != [""]:
            continue
        key = () if path == [""] else tuple(path)
        if data.draw(st.booleans()):
            resources[key] = Text()
            site.add_resource(path, resources[key])
        else:
            sites[key] = Site()
            site.add_resource(path, sites[key])
    asked = tuple(data.draw(st.lists(st.sampled_from(["a", "b", ""]), max_size=5)))
    expected: Any = None
    if asked in resources:
        expected = resources[asked], len(asked)
    else:
        for depth in range(len(asked) + 1):
            if asked[:depth] in sites and (depth < len(asked) or not asked):
                expected = sites[asked[:depth]], depth
    if expected is None:
        with pytest.raises(error.NotFound):
            site.find(asked)
    else:
        assert site.find(asked) == expected


# -- Removal ---------------------------------------------------------------------------------------


async def test_removal() -> None:
    """What was removed is not found any more, and can be added again."""
    site, text = Site(), Text()
    site.add_resource("text", text)
    site.remove_resource("/text/")
    assert await read(site, "text") == "4.04"
    with pytest.raises(KeyError, match="there is no resource at 'text'"):
        site.remove_resource("text")
    site.add_resource("text", text)
    assert await read(site, "text") == "hello"
    assert repr(site) == "<Site with 1 resources>"


async def test_replacement() -> None:
    """Whatever is added takes the place of what was there."""
    site = at("text", Text("old"))
    site.add_resource("text", Text("new"))
    assert await read(site, "text") == "new"
    assert len(site.get_resources_as_linkheader()) == 1


# -- Lists of links --------------------------------------------------------------------------------


class Lamp(Resource):
    """A resource with all attributes."""

    rt = "light lamp"
    if_ = "core.a"
    ct = (0, 50)
    title = "The lamp"


def test_link_description() -> None:
    """A resource is described by its attributes; those without a value are left out."""
    assert Lamp().get_link_description() == {
        "rt": "light lamp",
        "if": "core.a",
        "ct": "0 50",
        "title": "The lamp",
    }
    assert Resource().get_link_description() == {}
    assert ObservableResource().get_link_description() == {"obs": None}
    one = Resource()
    one.ct = ContentFormat.CBOR
    assert one.get_link_description() == {"ct": "60"}
    one.ct = "0 40"
    assert one.get_link_description() == {"ct": "0 40"}


def core(site: Site) -> Site:
    """Return *site* with a list of its resources."""
    site.add_resource([".well-known", "core"], WKCResource(site.get_resources_as_linkheader))
    return site


async def test_list_of_resources() -> None:
    """A server's list has all resources with their attributes, in link format, and itself."""
    site = core(at("lamp", Lamp()))
    site.add_resource("batch", at("x y", ObservableResource()))
    async with served(site) as (client, url):
        response = await client.request(Message(GET, uri=url + ".well-known/core")).response
    assert response.opt.content_format == 40
    assert response.text == (
        '</lamp>;rt="light lamp";if="core.a";ct="0 50";title="The lamp",'
        "</.well-known/core>;ct=40,</batch/x%20y>;obs"
    )


@pytest.mark.parametrize(
    ("query", "hrefs"),
    [
        (["rt=lamp"], ["/lamp"]),
        (["rt=l*"], ["/lamp", "/led"]),
        (["rt=lam"], []),
        (["if=core.*"], ["/lamp"]),
        (["ct=50"], ["/lamp"]),
        (["ct=5"], []),
        (["href=/l*"], ["/lamp", "/led"]),
        (["href=/led"], ["/led"]),
        (["rt=light", "ct=0"], ["/lamp"]),
        (["obs="], ["/door"]),
        (["obs"], ["/door"]),
        (["nothing=x"], []),
        ([""], ["/lamp", "/led", "/door", "/.well-known/core"]),
    ],
)
async def test_filters(query: list[str], hrefs: list[str]) -> None:
    """The list is filtered by what the query says (RFC 6690, section 4.1)."""
    site = at("lamp", Lamp())
    led, door = Resource(), ObservableResource()
    led.rt = "light"
    site.add_resource("led", led)
    site.add_resource("door", door)
    response = await core(site).render(
        Message(GET, uri_path=[".well-known", "core"], uri_query=query, accept=40)
    )
    assert [link.href for link in linkformat.parse(response.payload)] == hrefs


async def test_list_of_resources_can_be_revalidated() -> None:
    """Whoever has the list already gets 2.03; in another format there is none, and nothing can be written."""
    site = core(at("lamp", Lamp()))
    path = [".well-known", "core"]
    first = await ask(site, uri_path=path)
    assert (await ask(site, uri_path=path, etags=[first.opt.etag])).code == VALID
    with pytest.raises(error.NotAcceptable):
        await ask(site, uri_path=path, accept=50)
    with pytest.raises(error.MethodNotAllowed):
        await ask(site, PUT, uri_path=path)


async def test_list_of_a_site_within_a_site() -> None:
    """A list below the root has the same links as that of the root: paths from the root on."""
    inner = core(at("lamp", Lamp()))
    outer = at("a b", at("inner", inner))
    async with served(outer) as (client, url):
        found = await client.discover(url + "a%20b/inner", rt="lamp")
        assert [link.href for link in found] == [url + "a%20b/inner/lamp"]
        by_href = await client.discover(url + "a%20b/inner", href="/a%20b/inner/l*")
        assert [link.href for link in by_href] == [url + "a%20b/inner/lamp"]


async def test_list_generator_may_give_any_links() -> None:
    """A list may come from any function, as an iterable of links."""
    one = WKCResource(lambda: [Link("/x", rt="y")])
    assert (await ask(one)).payload == b'</x>;rt="y"'
    assert one.ct == 40


async def test_resources_that_are_not_listed() -> None:
    """A resource without a description has a bare link, one whose description is None has none."""

    class Bare:
        async def needs_blockwise_assembly(self, request: Message) -> bool:
            return False

        async def render(self, request: Message) -> Message:
            return Message(CONTENT, b"bare")

        async def render_to_pipe(self, pipe: Pipe) -> None:
            pipe.add_response(await self.render(pipe.request), is_last=True)

    class Hidden(Text):
        def get_link_description(self) -> Any:
            return None

    class Opaque(Bare, PathCapable):
        pass

    site = at("bare", Bare())
    site.add_resource("hidden", Hidden())
    site.add_resource("opaque", Opaque())
    assert site.get_resources_as_linkheader() == LinkFormat([Link("/bare")])
    assert isinstance(Bare(), Renderer)
    async with served(site) as (client, url):
        assert await client.get(url + "bare") == b"bare"
        assert await client.get(url + "opaque/x") == b"bare"
        assert await client.get(url + "hidden") == b"hello"


# -- What a context asks a site --------------------------------------------------------------------


async def test_site_passes_questions_on() -> None:
    """A site asks the resource whether it wants blocks put together, and whether it takes an observer."""

    class Raw(ObservableResource):
        async def needs_blockwise_assembly(self, request: Message) -> bool:
            return False

    site = at("a", at("raw", Raw()))
    site.add_resource("text", Text())
    assert not await site.needs_blockwise_assembly(Message(PUT, uri_path=["a", "raw"]))
    assert await site.needs_blockwise_assembly(Message(PUT, uri_path=["text"]))
    assert await site.needs_blockwise_assembly(Message(PUT, uri_path=["nothing"]))
    for path, is_accepted in ((["a", "raw"], True), (["text"], False)):
        observation = ServerObservation()
        await site.add_observation(Message(GET, uri_path=path, observe=0), observation)
        assert observation.is_accepted is is_accepted


async def test_resource_takes_blocks_by_itself() -> None:
    """A resource that says so gets the blocks of a body one by one."""

    class Raw(Resource):
        def __init__(self) -> None:
            self.blocks: list[Any] = []

        async def needs_blockwise_assembly(self, request: Message) -> bool:
            return False

        def render_put(self, request: Message) -> Message:
            block = request.opt.block1
            self.blocks.append((block.number, block.more, len(request.payload)))
            return Message(Code.CONTINUE if block.more else CHANGED, block1=block)

    raw = Raw()
    async with served(at("raw", raw)) as (client, url):
        await client.put(url + "raw", bytes(80_000))
    assert raw.blocks == [(0, True, 32768), (32, True, 32768), (64, False, 14464)]
