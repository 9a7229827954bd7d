"""The cache: what it answers is what the server would have said, or what it has allowed to be said still."""

from __future__ import annotations

import asyncio
import collections
import gc
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiomas_ng.cache import ENTRY_COST, Cache, Figures, Ticket
from aiomas_ng.clocks import AsyncioClock, ExternalClock
from aiomas_ng.message import Block, Code, Message

SERVER = "tcp://localhost:5555/"
UNSAFE = [Code.PUT, Code.POST, Code.DELETE, Code.PATCH, Code.iPATCH]


@pytest.fixture
def clock() -> ExternalClock:
    """Time that stands still."""
    return ExternalClock(0)


@pytest.fixture
def cache(clock: ExternalClock) -> Cache:
    """A cache in that time."""
    return Cache(clock)


def get(path: str = "a", code: Code = Code.GET, **options: Any) -> Message:
    """Return a request."""
    return Message(code, uri_path=path.split("/"), **options)


def content(payload: bytes = b"state", code: Code = Code.CONTENT, **options: Any) -> Message:
    """Return a response."""
    return Message(code, payload, **options)


def begin(cache: Cache, request: Message, server: str = SERVER) -> Ticket:
    """Prepare a request that the cache must not answer, but wants to know the end of."""
    hit, _, ticket = cache.prepare(server, request)
    assert hit is None
    assert ticket is not None
    return ticket


def fetch(cache: Cache, request: Message, response: Message, server: str = SERVER) -> Message:
    """Send a request that the cache does not answer, and return what the application gets for *response*."""
    return cache.settle(begin(cache, request, server), response)


def find(cache: Cache, request: Message, server: str = SERVER) -> Message | None:
    """Return what the cache answers."""
    return cache.prepare(server, request)[0]


def sent_etags(cache: Cache, request: Message) -> tuple[bytes, ...]:
    """Return the tags that a request that is not answered is sent with."""
    hit, sent, _ = cache.prepare(SERVER, request)
    assert hit is None
    return sent.opt.etags


# -- Fresh responses -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.GET, Code.FETCH])
def test_a_fresh_response_is_given_again(cache: Cache, code: Code) -> None:
    """The first request goes to the server, the next one does not."""
    first = content(max_age=10, content_format=50)
    assert fetch(cache, get(code=code), first) is first
    hit = find(cache, get(code=code))
    assert hit is not None
    assert (hit.code, hit.payload, hit.opt.content_format) == (Code.CONTENT, b"state", 50)
    assert (cache.figures.hits, cache.figures.misses) == (1, 1)


def test_a_request_that_is_answered_needs_nothing_else(cache: Cache) -> None:
    """There is no ticket for it, and the request is as it was."""
    fetch(cache, get(), content())
    request = get()
    hit, sent, ticket = cache.prepare(SERVER, request)
    assert hit is not None
    assert sent is request
    assert ticket is None


@pytest.mark.parametrize(
    ("age", "left"),
    [(0.5, 9), (1, 9), (1.25, 8), (8.999, 1), (9, 1), (9.001, 0), (9.999, 0), (10, None), (11, None)],
)
def test_max_age_is_what_is_left_of_it(
    cache: Cache, clock: ExternalClock, age: float, left: int | None
) -> None:
    """In whole seconds, never more than there are; a response is fresh before its Max-Age, and not at it."""
    fetch(cache, get(), content(max_age=10))
    assert find(cache, get()).opt.max_age == 10  # type: ignore[union-attr]  # it is there
    clock.set_time(age)
    hit = find(cache, get())
    assert (hit.opt.max_age if hit else None) == left


def test_without_max_age_it_is_a_minute(cache: Cache, clock: ExternalClock) -> None:
    """The default of RFC 7252, section 5.10.5."""
    fetch(cache, get(), content())
    clock.set_time(59.5)
    assert find(cache, get()) is not None
    clock.set_time(60)
    assert find(cache, get()) is None


def test_the_latest_response_counts(cache: Cache, clock: ExternalClock) -> None:
    """With its own Max-Age, from when it came."""
    fetch(cache, get(), content(b"old", max_age=5))
    clock.set_time(5)
    fetch(cache, get(), content(b"new", max_age=100))
    clock.set_time(104)
    assert find(cache, get()).payload == b"new"  # type: ignore[union-attr]  # it is there


def test_a_hit_is_the_response_to_its_request(cache: Cache) -> None:
    """It has the token and the remote of the request, and says which one that is."""
    answered = get()
    answered.remote = answered.token = b"old"
    response = content()
    response.remote, response.token, response.request = object(), b"old", answered
    fetch(cache, answered, response)
    request = get(token=b"new", remote="there")
    hit = find(cache, request)
    assert hit is not None
    assert (hit.token, hit.remote, hit.request) == (b"new", "there", request)


def test_the_cache_holds_on_to_no_connection(cache: Cache) -> None:
    """What is kept does not keep the remote or the request alive."""

    class Remote:
        pass

    response = content(remote=Remote())
    response.request = get(remote=response.remote)
    fetch(cache, response.request, response)
    del response
    gc.collect()
    assert not [obj for obj in gc.get_objects() if isinstance(obj, Remote)]
    assert cache.figures.entries == 1


def test_who_changes_a_response_does_not_change_the_cache(cache: Cache) -> None:
    """Neither the first nor later ones, and not the request."""
    request = get()
    response = content(b"state", etag=b"tag", max_age=10)
    ticket = begin(cache, request)
    request.opt.uri_path = ("b",)
    cache.settle(ticket, response)
    for _ in range(3):
        response.payload = b"changed"
        response.code = Code.NOT_FOUND
        response.opt.etag = b"changed"
        response.opt.max_age = 1000
        response.opt.location_path = ("x",)
        hit = find(cache, get())
        assert hit is not None
        assert (hit.code, hit.payload, hit.opt.etag, hit.opt.max_age) == (Code.CONTENT, b"state", b"tag", 10)
        assert hit.opt.location_path == ()
        response = hit
    assert find(cache, get("b")) is None


def test_what_is_about_one_exchange_is_not_kept(cache: Cache) -> None:
    """A notification answers a plain request without its Observe option (RFC 7641, section 2), and so on."""
    fetch(cache, get(observe=0), content(observe=7, size2=5, echo=b"x"))
    hit = find(cache, get())
    assert hit is not None
    assert (hit.opt.observe, hit.opt.size2, hit.opt.echo) == (None, None, None)


# -- What tells requests apart ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        get("b"),
        get("a/"),
        get("a/b"),
        get(uri_query=["x=1"]),
        get(accept=50),
        get(uri_host="other"),
        get(code=Code.FETCH),
    ],
    ids=repr,
)
def test_other_requests_are_not_answered(cache: Cache, other: Message) -> None:
    """Another path, query, format, host or method: each has its own response."""
    fetch(cache, get(), content(b"one"))
    fetch(cache, other, content(b"other"))
    assert find(cache, get()).payload == b"one"  # type: ignore[union-attr]  # it is there
    assert find(cache, other).payload == b"other"  # type: ignore[union-attr]  # it is there
    assert cache.figures.entries == 2


def test_each_server_has_its_own_responses(cache: Cache) -> None:
    """The same path at another server is something else."""
    fetch(cache, get(), content(b"one"), "one")
    assert find(cache, get(), "two") is None
    assert find(cache, get(), "one") is not None


def test_the_body_of_a_fetch_counts(cache: Cache) -> None:
    """FETCH asks by its body (RFC 8132, section 2.1); GET has none."""
    fetch(cache, Message(Code.FETCH, b"1"), content(b"one"))
    assert find(cache, Message(Code.FETCH, b"2")) is None
    assert find(cache, Message(Code.FETCH, b"1")).payload == b"one"  # type: ignore[union-attr]  # it is there


@pytest.mark.parametrize("other", [get(hop_limit=5), get(size1=5), get(token=b"x", remote="x")], ids=repr)
def test_some_options_do_not_count(cache: Cache, other: Message) -> None:
    """How far a request may go, and what is no part of the Cache-Key."""
    fetch(cache, other, content())
    assert find(cache, get()) is not None
    assert find(cache, other) is not None


@pytest.mark.parametrize(
    "request_",
    [
        get(block2=Block(0, False, 6)),
        get(block1=Block(0, False, 6)),
        get(if_match=[b"x"]),
        get(if_none_match=True),
        get(no_response=2),
        get(echo=b"x"),
        get(proxy_uri="coap://a/b"),
        get(proxy_scheme="coap"),
        get(observe=1),
        Message(Code.EMPTY),
        Message(Code(31)),
        Message(None),
    ],
    ids=repr,
)
def test_some_requests_are_passed_by(cache: Cache, request_: Message) -> None:
    """Conditions, blocks, what is about one exchange, unknown methods: as if there were no cache."""
    fetch(cache, get(), content())
    before = cache.figures
    assert cache.prepare(SERVER, request_) == (None, request_, None)
    assert cache.figures == before


@pytest.mark.parametrize("code", [Code.GET, Code.PUT])
def test_a_server_without_a_name_is_passed_by(cache: Cache, code: Code) -> None:
    """Nobody could tell it from others."""
    request = get(code=code)
    assert cache.prepare(None, request) == (None, request, None)


# -- What is not kept ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [Code.NOT_FOUND, Code.SERVICE_UNAVAILABLE, Code.CREATED, Code.CONTINUE, Code(0x5E)]
)
def test_only_content_is_kept(cache: Cache, code: Code) -> None:
    """Errors and other successes are asked for each time."""
    response = content(code=code, max_age=100)
    assert fetch(cache, get(), response) is response
    assert find(cache, get()) is None
    assert cache.figures.entries == 0


def test_what_must_not_be_used_again_is_not_kept(cache: Cache) -> None:
    """Max-Age 0 without a tag; and what was there before is out of date then."""
    fetch(cache, get(), content(max_age=0))
    assert cache.figures.entries == 0
    cache.use_clock(ExternalClock(0))
    fetch(cache, get(), content(b"old"))
    cache.invalidate(SERVER, get())
    fetch(cache, get(), content(b"old", max_age=1, etag=b"x"))
    cache.clock.set_time(1)  # type: ignore[attr-defined]  # it is an external one
    fetch(cache, get(), content(max_age=0))
    assert cache.figures.entries == 0


@pytest.mark.parametrize("block", [Block(0, True, 6), Block(1, False, 6)])
def test_a_part_is_not_kept(cache: Cache, block: Block) -> None:
    """A block is not the body."""
    response = content(block2=block)
    assert fetch(cache, get(), response) is response
    assert cache.figures.entries == 0


def test_a_client_error_ends_what_is_kept(cache: Cache, clock: ExternalClock) -> None:
    """What is not there any more is not revalidated; with a fault of the server it may still be there."""
    fetch(cache, get(), content(etag=b"x", max_age=1))
    clock.set_time(1)
    fetch(cache, get(), content(code=Code.SERVICE_UNAVAILABLE))
    assert sent_etags(cache, get()) == (b"x",)
    fetch(cache, get(), content(code=Code.NOT_FOUND))
    assert sent_etags(cache, get()) == ()


# -- Revalidation ----------------------------------------------------------------------------------


def test_a_stale_response_with_a_tag_is_revalidated(cache: Cache, clock: ExternalClock) -> None:
    """The request goes out with the tag, and 2.03 gives the application all of it, with a new Max-Age."""
    fetch(cache, get(), content(etag=b"tag", max_age=5, content_format=50))
    clock.set_time(5)
    request = get(token=b"t")
    hit, sent, ticket = cache.prepare(SERVER, request)
    assert hit is None
    assert ticket is not None
    assert sent is not request
    assert (sent.opt.etags, request.opt.etags) == ((b"tag",), ())
    remote = object()
    response = cache.settle(ticket, content(b"", Code.VALID, etag=b"tag", max_age=7, remote=remote))
    assert (response.code, response.payload) == (Code.CONTENT, b"state")
    assert (response.opt.max_age, response.opt.content_format, response.opt.etag) == (7, 50, b"tag")
    assert (response.request, response.token, response.remote) == (request, b"t", remote)
    clock.set_time(11.9)
    assert find(cache, get()).payload == b"state"  # type: ignore[union-attr]  # it is there
    clock.set_time(12)
    assert find(cache, get()) is None
    assert cache.figures.revalidations == 1
    assert cache.figures.stored == 1


def test_a_response_without_a_tag_is_fetched_again(cache: Cache, clock: ExternalClock) -> None:
    """There is nothing to revalidate it by."""
    fetch(cache, get(), content(max_age=5))
    clock.set_time(5)
    assert sent_etags(cache, get()) == ()


def test_max_age_0_with_a_tag_is_revalidated_each_time(cache: Cache) -> None:
    """The server wants to be asked, but need not send it again."""
    fetch(cache, get(), content(etag=b"x", max_age=0))
    for _ in range(3):
        _, sent, ticket = cache.prepare(SERVER, get())
        assert sent.opt.etags == (b"x",)
        assert ticket is not None
        valid = content(b"", Code.VALID, etag=b"x", max_age=0)
        assert cache.settle(ticket, valid).payload == b"state"


def test_a_new_version_takes_the_place_of_the_old_one(cache: Cache, clock: ExternalClock) -> None:
    """2.05 instead of 2.03."""
    fetch(cache, get(), content(b"old", etag=b"1", max_age=1))
    clock.set_time(1)
    new = content(b"new", etag=b"2", max_age=1)
    assert fetch(cache, get(), new) is new
    assert find(cache, get()).payload == b"new"  # type: ignore[union-attr]  # it is there
    clock.set_time(2)
    assert sent_etags(cache, get()) == (b"2",)
    assert cache.figures.revalidations == 0


def test_2_03_without_a_tag_can_mean_one_version_only(cache: Cache, clock: ExternalClock) -> None:
    """A server that leaves the tag out is understood where there is no doubt."""
    fetch(cache, get(), content(etag=b"x", max_age=1))
    clock.set_time(1)
    assert fetch(cache, get(), content(b"", Code.VALID)).payload == b"state"
    clock.set_time(61)
    doubtful = content(b"", Code.VALID)
    assert fetch(cache, get(etags=[b"y"]), doubtful) is doubtful


def test_2_03_gives_other_options_anew(cache: Cache, clock: ExternalClock) -> None:
    """Those that are safe to forward replace the ones that are kept (RFC 7252, section 5.9.1.3)."""
    first = content(etag=b"x", max_age=1, content_format=50, location_query=["old"])
    first.opt.add_option(65000, b"kept")
    fetch(cache, get(), first)
    clock.set_time(1)
    valid = content(b"", Code.VALID, etag=b"x", content_format=60, observe=3, size2=9)
    valid.opt.add_option(65004, b"one")
    valid.opt.add_option(65004, b"two")
    valid.opt.add_option(65002, b"unsafe")
    response = fetch(cache, get(), valid)
    for message in (response, find(cache, get())):
        assert message is not None
        assert message.opt.content_format == 60
        assert message.opt.location_query == ("old",)
        assert message.opt.get_option(65000) == (b"kept",)
        assert message.opt.get_option(65004) == (b"one", b"two")
        assert message.opt.get_option(65002) == ()
        assert message.opt.size2 is None


def test_a_version_that_gave_way_meanwhile_is_not_lost(clock: ExternalClock) -> None:
    """The server says 2.03 for a tag that we have sent, so there must be something to give."""
    cache = Cache(clock, max_entries=1)
    fetch(cache, get(), content(etag=b"x", max_age=1))
    clock.set_time(1)
    ticket = begin(cache, get())
    fetch(cache, get("b"), content())
    assert cache.settle(ticket, content(b"", Code.VALID, etag=b"x")).payload == b"state"
    assert find(cache, get()) is not None


# -- Tags of the application -----------------------------------------------------------------------


def test_who_has_this_version_gets_2_03_from_the_cache(cache: Cache) -> None:
    """As from the server; who has others gets all of it."""
    fetch(cache, get(), content(etag=b"x", max_age=10))
    hit = find(cache, get(etags=[b"y", b"x"]))
    assert hit is not None
    assert (hit.code, hit.payload, hit.opt.etag, hit.opt.max_age) == (Code.VALID, b"", b"x", 10)
    assert find(cache, get(etags=[b"y"])).payload == b"state"  # type: ignore[union-attr]  # it is there


def test_tags_of_both_are_sent(cache: Cache, clock: ExternalClock) -> None:
    """What the application has by itself, and what the cache has; each once."""
    fetch(cache, get(), content(etag=b"x", max_age=1))
    clock.set_time(1)
    assert sent_etags(cache, get(etags=[b"y", b"z"])) == (b"x", b"y", b"z")
    request = get(etags=[b"y", b"x"])
    hit, sent, _ = cache.prepare(SERVER, request)
    assert hit is None
    assert sent is request


def test_2_03_for_a_tag_of_the_application_is_what_it_gets(cache: Cache, clock: ExternalClock) -> None:
    """It has that version, whether the cache has it or not."""
    fetch(cache, get(), content(etag=b"x", max_age=1))
    clock.set_time(1)
    both = content(b"", Code.VALID, etag=b"x")
    assert fetch(cache, get(etags=[b"x"]), both) is both
    assert find(cache, get()).payload == b"state"  # type: ignore[union-attr]  # it is there
    clock.set_time(61)
    own = content(b"", Code.VALID, etag=b"y")
    assert fetch(cache, get(etags=[b"y"]), own) is own
    assert cache.figures.entries == 0  # what the cache has is another version


# -- Unsafe methods --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", UNSAFE)
@pytest.mark.parametrize(
    "answer", [Code.CHANGED, Code.CREATED, Code.DELETED, Code.BAD_REQUEST, Code.GATEWAY_TIMEOUT]
)
def test_a_change_ends_freshness(cache: Cache, code: Code, answer: Code) -> None:
    """Of all that lies at the path, whatever the query and format; what has a tag is revalidated."""
    fetch(cache, get(), content())
    fetch(cache, get(accept=50), content(etag=b"x"))
    fetch(cache, get(code=Code.FETCH, uri_query=["x"]), content(etag=b"y"))
    fetch(cache, get("b"), content())
    fetch(cache, get("a/b"), content())
    request = get(code=code, uri_query=["other"])
    hit, sent, ticket = cache.prepare(SERVER, request)
    assert hit is None
    assert sent is request
    response = content(code=answer)
    assert ticket is not None
    assert cache.settle(ticket, response) is response
    assert find(cache, get()) is None
    assert sent_etags(cache, get(accept=50)) == (b"x",)
    assert sent_etags(cache, get(code=Code.FETCH, uri_query=["x"])) == (b"y",)
    assert find(cache, get("b")) is not None
    assert find(cache, get("a/b")) is not None
    assert cache.figures.invalidated == 3


def test_a_change_concerns_one_server(cache: Cache) -> None:
    """The same path elsewhere is something else."""
    fetch(cache, get(), content(), "other")
    fetch(cache, get(code=Code.PUT), content(code=Code.CHANGED))
    assert find(cache, get(), "other") is not None


def test_what_a_change_may_concern_is_not_fresh_while_it_is_under_way(cache: Cache) -> None:
    """From when it is sent, and again from when it is answered."""
    fetch(cache, get(), content(b"old"))
    change = begin(cache, get(code=Code.PUT))
    assert find(cache, get()) is None
    fetch(cache, get(), content(b"old"))  # the server has not got to it yet
    assert find(cache, get()) is not None
    cache.settle(change, content(code=Code.CHANGED))
    assert find(cache, get()) is None


def test_a_change_that_failed_may_have_been_made(cache: Cache) -> None:
    """Nobody knows after a timeout, so the server is asked."""
    change = begin(cache, get(code=Code.PUT))
    fetch(cache, get(), content(b"old"))
    cache.abandon(change)
    assert find(cache, get()) is None


def test_a_response_that_a_change_has_overtaken_is_not_kept(cache: Cache) -> None:
    """It may be of the state before or after; the application gets it, the cache does not."""
    before = begin(cache, get())
    change = begin(cache, get(code=Code.PUT))
    during = begin(cache, get())
    cache.settle(change, content(code=Code.CHANGED))
    after = begin(cache, get())
    for ticket in (before, during):
        response = content(b"old")
        assert cache.settle(ticket, response) is response
        assert find(cache, get()) is None
    cache.settle(after, content(b"new"))
    assert find(cache, get()).payload == b"new"  # type: ignore[union-attr]  # it is there


def test_a_revalidation_that_a_change_has_overtaken_is_not_kept(cache: Cache, clock: ExternalClock) -> None:
    """The application gets what was valid then; the next request asks again."""
    fetch(cache, get(), content(etag=b"x", max_age=1))
    clock.set_time(1)
    ticket = begin(cache, get())
    fetch(cache, get(code=Code.PUT), content(code=Code.CHANGED))
    assert cache.settle(ticket, content(b"", Code.VALID, etag=b"x")).payload == b"state"
    assert sent_etags(cache, get()) == (b"x",)


def test_an_error_that_a_change_has_overtaken_does_no_harm(cache: Cache) -> None:
    """4.04 from before a PUT does not end what came after it."""
    before = begin(cache, get())
    fetch(cache, get(code=Code.PUT), content(code=Code.CREATED))
    fetch(cache, get(), content(b"new"))
    cache.settle(before, content(code=Code.NOT_FOUND))
    assert find(cache, get()) is not None


def test_a_change_that_changed_nothing_costs_one_revalidation(cache: Cache) -> None:
    """After it the response is fresh again."""
    fetch(cache, get(), content(etag=b"x"))
    fetch(cache, get(code=Code.PUT), content(code=Code.CHANGED))
    assert fetch(cache, get(), content(b"", Code.VALID, etag=b"x")).payload == b"state"
    assert find(cache, get()) is not None


def test_what_was_created_is_not_fresh_either(cache: Cache) -> None:
    """A 2.01 names the path of what it has made, which may have been there before."""
    fetch(cache, get("a/1"), content())
    fetch(cache, get("a/2"), content())
    created = content(code=Code.CREATED, location_path=["a", "1"], location_query=["x"])
    fetch(cache, get(code=Code.POST), created)
    assert find(cache, get("a/1")) is None
    assert find(cache, get("a/2")) is not None


def test_freshness_can_be_ended_by_hand(cache: Cache) -> None:
    """For who knows more than the cache; where there is nothing, nothing happens."""
    cache.invalidate(SERVER, get())
    fetch(cache, get(), content())
    cache.invalidate(SERVER, get(uri_query=["x"]))
    assert find(cache, get()) is None


# -- Observations ----------------------------------------------------------------------------------


def observe(cache: Cache, response: Message, **options: Any) -> Ticket:
    """Start an observation that begins with *response*."""
    ticket = begin(cache, get(observe=0, **options))
    cache.settle(ticket, response, is_observed=True)
    return ticket


def test_what_is_observed_stays_fresh(cache: Cache, clock: ExternalClock) -> None:
    """Beyond its Max-Age, with the state of the last notification, until the observation ends."""
    ticket = observe(cache, content(b"1", max_age=5, observe=1))
    clock.set_time(100)
    assert find(cache, get()).payload == b"1"  # type: ignore[union-attr]  # it is there
    notification = content(b"2", max_age=5, observe=2)
    assert cache.notify(ticket, notification) is notification
    clock.set_time(103)
    hit = find(cache, get())
    assert hit is not None
    assert (hit.payload, hit.opt.max_age, hit.opt.observe) == (b"2", 2, None)
    clock.set_time(200)
    assert find(cache, get()).opt.max_age == 0  # type: ignore[union-attr]  # it is there
    cache.unobserve(ticket)
    assert find(cache, get()) is None


def test_after_an_observation_the_age_counts_from_the_last_notification(
    cache: Cache, clock: ExternalClock
) -> None:
    """What is left of its Max-Age then is left."""
    ticket = observe(cache, content(b"1", max_age=5))
    clock.set_time(10)
    cache.notify(ticket, content(b"2", max_age=5))
    clock.set_time(12)
    cache.unobserve(ticket)
    assert find(cache, get()).opt.max_age == 3  # type: ignore[union-attr]  # it is there
    clock.set_time(15)
    assert find(cache, get()) is None


def test_one_of_several_observations_is_enough(cache: Cache, clock: ExternalClock) -> None:
    """The last one that ends ends freshness; ending one twice does no harm."""
    one, two = (observe(cache, content(max_age=5)) for _ in range(2))
    clock.set_time(100)
    cache.unobserve(one)
    cache.unobserve(one)
    assert find(cache, get()) is not None
    cache.abandon(two)
    assert find(cache, get()) is None


def test_an_observation_keeps_fresh_what_it_is_about(cache: Cache, clock: ExternalClock) -> None:
    """Not another format of the same resource."""
    observe(cache, content(max_age=5), accept=50)
    fetch(cache, get(accept=60), content(max_age=5))
    clock.set_time(100)
    assert find(cache, get(accept=50)) is not None
    assert find(cache, get(accept=60)) is None


def test_a_request_to_observe_always_reaches_the_server(cache: Cache) -> None:
    """Also if there is a fresh response; without tags of ours, and without being counted."""
    fetch(cache, get(), content(etag=b"x"))
    request = get(observe=0)
    hit, sent, ticket = cache.prepare(SERVER, request)
    assert hit is None
    assert sent is request
    assert ticket is not None
    assert (cache.figures.hits, cache.figures.misses) == (0, 1)


def test_an_observation_that_was_declined_is_a_plain_request(cache: Cache, clock: ExternalClock) -> None:
    """Its response is fresh for its Max-Age."""
    fetch(cache, get(observe=0), content(max_age=5))
    assert find(cache, get()) is not None
    clock.set_time(5)
    assert find(cache, get()) is None


def test_max_age_0_counts_for_what_is_observed(cache: Cache) -> None:
    """The server does not want it to be used again, observed or not."""
    ticket = observe(cache, content(b"1", etag=b"1", max_age=0))
    assert sent_etags(cache, get()) == (b"1",)
    cache.notify(ticket, content(b"2", max_age=0))
    assert sent_etags(cache, get()) == ()
    cache.notify(ticket, content(b"3", max_age=1))
    assert find(cache, get()).payload == b"3"  # type: ignore[union-attr]  # it is there


def test_a_change_ends_freshness_until_the_next_notification(cache: Cache) -> None:
    """A notification is newer than what was known; or the server confirms what is there."""
    ticket = observe(cache, content(b"1", etag=b"1"))
    fetch(cache, get(code=Code.PUT), content(code=Code.CHANGED))
    assert sent_etags(cache, get()) == (b"1",)
    cache.notify(ticket, content(b"2", etag=b"2"))
    assert find(cache, get()).payload == b"2"  # type: ignore[union-attr]  # it is there
    fetch(cache, get(code=Code.PUT), content(code=Code.CHANGED))
    fetch(cache, get(), content(b"", Code.VALID, etag=b"2"))
    assert find(cache, get()) is not None


def test_the_beginning_of_an_observation_that_a_change_has_overtaken_is_not_kept(cache: Cache) -> None:
    """Notifications are, from then on."""
    ticket = begin(cache, get(observe=0))
    fetch(cache, get(code=Code.PUT), content(code=Code.CHANGED))
    cache.settle(ticket, content(b"old"), is_observed=True)
    assert find(cache, get()) is None
    cache.notify(ticket, content(b"new"))
    assert find(cache, get()) is not None


def test_a_response_does_not_undo_a_notification(cache: Cache) -> None:
    """A plain request that was sent before the notification may be answered by an older state."""
    ticket = observe(cache, content(b"1"))
    cache.invalidate(SERVER, get())
    slow = begin(cache, get())
    cache.notify(ticket, content(b"3"))
    response = content(b"2")
    assert cache.settle(slow, response) is response
    assert find(cache, get()).payload == b"3"  # type: ignore[union-attr]  # it is there
    cache.unobserve(ticket)
    cache.settle(slow, content(b"2"))
    assert find(cache, get()).payload == b"3"  # type: ignore[union-attr]  # it is there


@pytest.mark.parametrize(
    "options", [{"payload": bytes(100_000)}, {"max_age": 0}], ids=["too large", "no age"]
)
def test_a_response_does_not_undo_a_notification_that_is_not_kept(
    clock: ExternalClock, options: dict[str, Any]
) -> None:
    """What it says is known all the same: that anything older is out of date."""
    cache = Cache(clock, max_size=100_000)
    slow = begin(cache, get())
    ticket = observe(cache, content(**options))
    cache.settle(slow, content(b"old"))
    assert find(cache, get()) is None
    slow = begin(cache, get())
    cache.notify(ticket, content(**options))
    cache.settle(slow, content(b"old"))
    assert find(cache, get()) is None


def test_a_response_does_not_undo_the_beginning_of_an_observation(cache: Cache) -> None:
    """Nobody would correct it: the server notifies of changes after that."""
    slow = begin(cache, get())
    observe(cache, content(b"2"))
    cache.settle(slow, content(b"1"))
    assert find(cache, get()).payload == b"2"  # type: ignore[union-attr]  # it is there


def test_a_beginning_that_may_be_older_leaves_nothing_fresh(cache: Cache) -> None:
    """What is held may be older as well, if no observation has kept it up to date since."""
    one = observe(cache, content(b"1"))
    two = begin(cache, get(observe=0))
    cache.notify(one, content(b"2"))
    cache.unobserve(one)
    cache.settle(two, content(b"3"), is_observed=True)
    assert find(cache, get()) is None
    cache.notify(two, content(b"4"))
    assert find(cache, get()).payload == b"4"  # type: ignore[union-attr]  # it is there


def test_a_notification_that_is_a_part_ends_what_is_kept(cache: Cache) -> None:
    """The rest was not fetched, but what was there is out of date."""
    ticket = observe(cache, content(b"1"))
    part = content(b"2", block2=Block(0, True, 6))
    assert cache.notify(ticket, part) is part
    assert find(cache, get()) is None


def test_an_older_beginning_does_not_undo_a_notification(cache: Cache) -> None:
    """Of a second observation, whose first response comes late."""
    one = observe(cache, content(b"1"))
    two = begin(cache, get(observe=0))
    cache.notify(one, content(b"2"))
    cache.settle(two, content(b"1"), is_observed=True)
    assert find(cache, get()).payload == b"2"  # type: ignore[union-attr]  # it is there


def test_an_observation_that_was_registered_anew_counts_again(cache: Cache, clock: ExternalClock) -> None:
    """After the connection was lost nothing is known, with the next notification all is well."""
    ticket = observe(cache, content(b"1", max_age=5))
    clock.set_time(100)
    cache.unobserve(ticket)
    assert find(cache, get()) is None
    cache.notify(ticket, content(b"2", max_age=5))
    clock.set_time(200)
    assert find(cache, get()).payload == b"2"  # type: ignore[union-attr]  # it is there
    cache.unobserve(ticket)
    assert find(cache, get()) is None


def test_a_last_notification_can_end_what_is_kept(cache: Cache) -> None:
    """4.04: there is nothing any more."""
    ticket = observe(cache, content(etag=b"x"))
    gone = content(code=Code.NOT_FOUND)
    assert cache.notify(ticket, gone) is gone
    cache.unobserve(ticket)
    assert sent_etags(cache, get()) == ()


def test_a_notification_may_be_2_03(cache: Cache, clock: ExternalClock) -> None:
    """For a tag that the application has: it gets that; what is kept is fresh, or out of date."""
    ticket = observe(cache, content(b"1", etag=b"1", max_age=5), etags=[b"1", b"2"])
    clock.set_time(3)
    same = content(b"", Code.VALID, etag=b"1", max_age=5, observe=2)
    assert cache.notify(ticket, same) is same
    assert find(cache, get()).opt.max_age == 5  # type: ignore[union-attr]  # it is there
    other = content(b"", Code.VALID, etag=b"2", observe=3)
    assert cache.notify(ticket, other) is other
    assert sent_etags(cache, get()) == ()


def test_a_2_03_that_the_application_has_not_asked_for_is_made_whole(cache: Cache) -> None:
    """A notification stays one."""
    ticket = observe(cache, content(b"1", etag=b"1"))
    response = cache.notify(ticket, content(b"", Code.VALID, etag=b"1", observe=5))
    assert (response.code, response.payload, response.opt.observe) == (Code.CONTENT, b"1", 5)


def test_a_notification_about_something_else_is_passed_on(cache: Cache) -> None:
    """A ticket that is no observation's changes nothing."""
    ticket = begin(cache, get(code=Code.PUT))
    response = content()
    assert cache.notify(ticket, response) is response
    cache.unobserve(ticket)
    assert cache.figures.entries == 0


# -- Bounds ----------------------------------------------------------------------------------------


def test_the_least_recently_used_response_gives_way(clock: ExternalClock) -> None:
    """To be found is use."""
    cache = Cache(clock, max_entries=2)
    fetch(cache, get("a"), content())
    fetch(cache, get("b"), content())
    assert find(cache, get("a")) is not None
    fetch(cache, get("c"), content())
    assert find(cache, get("b")) is None
    assert find(cache, get("a")) is not None
    assert (cache.figures.entries, cache.figures.evicted) == (2, 1)


def test_bytes_are_bounded(clock: ExternalClock) -> None:
    """With payload, options and what belongs to an entry; a response of more than a quarter is not kept."""
    cache = Cache(clock, max_size=100_000)
    fetch(cache, get("large"), content(bytes(25_000)))
    assert cache.figures.entries == 0
    for index in range(20):
        fetch(cache, get(str(index)), content(bytes(20_000)))
        assert cache.figures.size <= 100_000
    assert (cache.figures.entries, cache.figures.evicted) == (4, 16)
    response = content(bytes(23_000), location_path=["x" * 200] * 10)
    assert fetch(cache, get("19", accept=50), response) is response
    assert find(cache, get("19", accept=50)) is None
    assert find(cache, get("19")) is not None


def test_a_response_that_grows_too_large_is_not_kept_in_its_old_version(clock: ExternalClock) -> None:
    """What is known to be out of date is not given."""
    cache = Cache(clock, max_size=20_000)
    ticket = observe(cache, content(b"old"))
    cache.notify(ticket, content(bytes(6_000)))
    assert find(cache, get()) is None
    assert cache.figures.size == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda index: (get(str(index)), content(b"")),
        lambda index: (get(f"agents/agent-{index}/state", accept=50), content(bytes(100), etag=b"12345678")),
        lambda index: (Message(Code.FETCH, index.to_bytes(2000, "big")), content(b"")),
        lambda index: (get("a", uri_query=[f"{index}-{part}" for part in range(100)]), content(b"")),
        lambda index: (get(str(index)), content(bytes(10_000))),
        lambda index: (get(str(index)), content(b"", location_query=[str(part) for part in range(100)])),
    ],
    ids=["empty", "usual", "fetch", "query", "payload", "options"],
)
def test_memory_is_bounded(clock: ExternalClock, make: Callable[[int], tuple[Message, Message]]) -> None:
    """What the figures say is what it takes, give or take a half, whatever it is that is large."""
    gc.collect()
    tracemalloc.start()
    try:
        cache = Cache(clock, max_size=1_000_000)
        fetch(cache, *make(0))
        before = tracemalloc.get_traced_memory()[0]
        for index in range(1, 1000):
            fetch(cache, *make(index))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 900_000 < cache.figures.size <= 1_000_000
    assert held < 1_500_000


def test_nothing_is_left_of_requests_without_responses(cache: Cache) -> None:
    """Tickets leave nothing behind, be they dropped, settled or abandoned, and nor do ended observations."""
    for index in range(100):
        begin(cache, get(str(index)))
        begin(cache, get(str(index), Code.PUT))
        cache.abandon(begin(cache, get(str(index), Code.DELETE)))
        fetch(cache, get(str(index)), content(code=Code.NOT_FOUND))
        ticket = begin(cache, get(str(index), observe=0))
        cache.settle(ticket, content(max_age=0), is_observed=True)
        cache.unobserve(ticket)
    del ticket
    gc.collect()
    assert cache.figures.entries == 0
    assert not cache._scopes
    assert not cache._watches


@pytest.mark.parametrize(
    ("bounds", "name"), [({"max_size": 0}, "max_size"), ({"max_entries": 0}, "max_entries")]
)
def test_bounds_are_checked(bounds: dict[str, int], name: str) -> None:
    """A cache that could hold nothing is a mistake."""
    with pytest.raises(ValueError, match=f"{name} must be > 0 but is 0"):
        Cache(**bounds)  # type: ignore[arg-type]  # no clock is among them


# -- The rest --------------------------------------------------------------------------------------


def test_figures_tell_what_happened(cache: Cache, clock: ExternalClock) -> None:
    """Each of them, and what is held."""
    assert cache.figures == Figures(0, 0, 0, 0, 0, 0, 0, 0)
    fetch(cache, get(), content(etag=b"x"))
    find(cache, get())
    find(cache, get())
    cache.invalidate(SERVER, get())
    fetch(cache, get(), content(b"", Code.VALID, etag=b"x"))
    figures = cache.figures
    assert figures.size > ENTRY_COST + 5
    assert figures == Figures(
        hits=2, misses=2, revalidations=1, stored=1, evicted=0, invalidated=1, size=figures.size, entries=1
    )
    assert repr(cache) == f"<Cache of 1 responses, {figures.size} bytes>"
    with pytest.raises(AttributeError):
        figures.hits = 5  # type: ignore[misc]  # that is the point


def test_a_cache_can_be_emptied(cache: Cache) -> None:
    """What is under way then is not kept; observations fill it again; the figures go on."""
    ticket = observe(cache, content())
    slow = begin(cache, get("b"))
    cache.clear()
    assert (cache.figures.entries, cache.figures.size, cache.figures.stored) == (0, 0, 1)
    assert find(cache, get()) is None
    cache.settle(slow, content())
    assert cache.figures.entries == 0
    cache.notify(ticket, content())
    assert find(cache, get()) is not None


async def test_by_default_time_is_real() -> None:
    """The clock of the event loop, found when it is needed."""
    cache = Cache()
    fetch(cache, get(), content(max_age=1000))
    assert isinstance(cache.clock, AsyncioClock)
    assert cache.clock.time() == pytest.approx(asyncio.get_running_loop().time(), abs=1)
    assert find(cache, get()).opt.max_age in (999, 1000)  # type: ignore[union-attr]  # it is there


def test_a_clock_is_chosen_once(clock: ExternalClock) -> None:
    """That of the first context; one that was given stays."""
    cache = Cache()
    cache.use_clock(clock)
    cache.use_clock(ExternalClock(0))
    assert cache.clock is clock
    given = Cache(clock)
    given.use_clock(ExternalClock(0))
    assert given.clock is clock


def test_a_ticket_says_what_it_is_of(cache: Cache) -> None:
    """For who debugs."""
    assert "GET" in repr(begin(cache, get()))


# -- A plainer program that says the same -----------------------------------------------------------


class Held:
    """What the model holds of a response."""

    def __init__(self, value: int, tag: bytes | None, max_age: int, time: float) -> None:
        self.value = value
        self.tag = tag
        self.max_age = max_age
        self.time = time
        self.is_valid = True


class CacheModel(RuleBasedStateMachine):
    """One request after the other: each answer of the cache, and all figures, are foreseen."""

    KEYS = ("a", "a?x", "b")

    @initialize()
    def start(self) -> None:
        self.clock = ExternalClock(0)
        self.cache = Cache(self.clock)
        self.held: dict[str, Held] = {}
        self.observations: dict[str, list[Ticket]] = collections.defaultdict(list)
        self.state = dict.fromkeys("ab", 0)
        self.last_value = 0
        self.hits = self.misses = self.revalidations = self.stored = self.invalidated = 0

    def request(self, key: str, code: Code = Code.GET, **options: Any) -> Message:
        path, _, query = key.partition("?")
        return Message(code, uri_path=[path], uri_query=[query] if query else (), **options)

    def respond(self, key: str, max_age: int, has_tag: bool) -> Message:
        value = self.state[key[0]]
        tag = str(value).encode() if has_tag else None
        return Message(Code.CONTENT, str(value).encode(), max_age=max_age, etag=tag)

    def hold(self, key: str, response: Message) -> None:
        self.held.pop(key, None)
        max_age = response.opt.max_age
        assert max_age is not None
        if max_age or response.opt.etag is not None:
            self.held[key] = Held(int(response.payload), response.opt.etag, max_age, self.clock.time())
            self.stored += 1

    @rule(dt=st.sampled_from([0.25, 1, 2.5, 7]))
    def wait(self, dt: float) -> None:
        self.clock.set_time(self.clock.time() + dt)

    @rule(path=st.sampled_from("ab"), max_age=st.integers(0, 6), has_tag=st.booleans())
    def change_elsewhere(self, path: str, max_age: int, has_tag: bool) -> None:
        self.last_value += 1
        self.state[path] = self.last_value
        for key in self.KEYS:
            for ticket in self.observations[key]:
                if key[0] == path:
                    response = self.respond(key, max_age, has_tag)
                    assert self.cache.notify(ticket, response) is response
                    self.hold(key, response)

    @rule(path=st.sampled_from("ab"), code=st.sampled_from(UNSAFE), is_lost=st.booleans())
    def change(self, path: str, code: Code, is_lost: bool) -> None:
        hit, _, ticket = self.cache.prepare(SERVER, self.request(path, code))
        assert hit is None
        assert ticket is not None
        if is_lost:
            self.cache.abandon(ticket)
        else:
            self.cache.settle(ticket, Message(Code.CHANGED))
        for key, held in list(self.held.items()):
            if key[0] == path:
                self.invalidated += held.is_valid
                held.is_valid = False
                if held.tag is None:
                    del self.held[key]

    @rule(
        key=st.sampled_from(KEYS),
        max_age=st.integers(0, 6),
        has_tag=st.booleans(),
        fault=st.sampled_from([None, None, None, None, Code.NOT_FOUND, Code.SERVICE_UNAVAILABLE]),
    )
    def get(self, key: str, max_age: int, has_tag: bool, fault: Code | None) -> None:
        held = self.held.get(key)
        now = self.clock.time()
        hit, sent, ticket = self.cache.prepare(SERVER, self.request(key))
        if held is not None and held.is_valid and held.max_age:
            left = held.max_age - (now - held.time)
            if left > 0 or self.observations[key]:
                self.hits += 1
                assert hit is not None
                assert hit.code == Code.CONTENT
                assert int(hit.payload) == held.value
                assert hit.opt.max_age == max(0, math.floor(left))
                return
        self.misses += 1
        assert hit is None
        assert ticket is not None
        assert sent.opt.etags == ((held.tag,) if held is not None and held.tag is not None else ())
        response = self.respond(key, max_age, has_tag) if fault is None else Message(fault)
        if fault is None and response.opt.etag in sent.opt.etags:
            answer = self.cache.settle(ticket, Message(Code.VALID, etag=response.opt.etag, max_age=max_age))
            self.revalidations += 1
            assert held is not None
            self.held[key] = Held(held.value, held.tag, max_age, now)
            assert (answer.code, int(answer.payload)) == (Code.CONTENT, held.value)
            assert answer.opt.max_age == max_age
            return
        assert self.cache.settle(ticket, response) is response
        if fault is None:
            self.hold(key, response)
        elif fault is Code.NOT_FOUND:
            self.held.pop(key, None)

    @rule(key=st.sampled_from(KEYS), max_age=st.integers(0, 6), has_tag=st.booleans())
    def observe(self, key: str, max_age: int, has_tag: bool) -> None:
        hit, _, ticket = self.cache.prepare(SERVER, self.request(key, observe=0))
        assert hit is None
        assert ticket is not None
        response = self.respond(key, max_age, has_tag)
        assert self.cache.settle(ticket, response, is_observed=True) is response
        self.hold(key, response)
        self.observations[key].append(ticket)

    @rule(key=st.sampled_from(KEYS))
    def unobserve(self, key: str) -> None:
        if self.observations[key]:
            self.cache.unobserve(self.observations[key].pop())

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.held.clear()

    @invariant()
    def figures_agree(self) -> None:
        figures = self.cache.figures
        assert figures.entries == len(self.held)
        assert (figures.size == 0) == (not self.held)
        assert (figures.hits, figures.misses, figures.revalidations, figures.stored, figures.invalidated) == (
            self.hits,
            self.misses,
            self.revalidations,
            self.stored,
            self.invalidated,
        )


TestCacheModel = CacheModel.TestCase


class Call:
    """A request on its way, and what the server has made of it."""

    def __init__(self, ticket: Ticket, sent: Message) -> None:
        self.ticket = ticket
        self.sent = sent
        self.response: Message | None = None
        self.version = 0  # of the state that the response shows or makes


class RaceModel(RuleBasedStateMachine):
    """Requests that overlap, on a connection that keeps the order: whatever the order of what happens, no
    answer of the cache is older than our own changes, than what an observation has told, or than Max-Age
    allows."""

    MAX_AGE = 5
    paths = st.sampled_from("aaab")
    stages = st.sampled_from(["sent", "rendered", "answered", "delivered"])

    @initialize(has_tags=st.booleans(), max_entries=st.sampled_from([1, 2, 100]))
    def start(self, has_tags: bool, max_entries: int) -> None:
        self.clock = ExternalClock(0)
        self.cache = Cache(self.clock, max_entries=max_entries)
        self.has_tags = has_tags
        self.versions = {"a": 0, "b": 0}
        self.since = {("a", 0): 0.0, ("b", 0): 0.0}  # when each version came up
        self.own = {"a": 0, "b": 0}  # the version of our last change that was answered
        self.told = {"a": 0, "b": 0}  # the version that an observation has told of
        self.waiting: list[Call] = []  # at the server
        self.rendered: list[Call] = []  # there, too, but with a response
        self.wire: collections.deque[tuple[Call, Message, int, bool]] = collections.deque()
        self.registered: list[Call] = []  # observations at the server
        self.observing: list[Call] = []  # and here

    def path_of(self, call: Call) -> str:
        return call.sent.opt.uri_path[0]

    def render(self, path: str, tags: tuple[bytes, ...] = ()) -> Message:
        payload = str(self.versions[path]).encode()
        if not self.has_tags:
            return Message(Code.CONTENT, payload, max_age=self.MAX_AGE)
        if payload in tags:
            return Message(Code.VALID, etag=payload, max_age=self.MAX_AGE)
        return Message(Code.CONTENT, payload, max_age=self.MAX_AGE, etag=payload)

    def change_state(self, path: str) -> None:
        self.versions[path] += 1
        self.since[path, self.versions[path]] = self.clock.time()
        for call in self.registered:
            if self.path_of(call) == path and call not in self.waiting and call not in self.rendered:
                self.wire.append((call, self.render(path), self.versions[path], True))

    @rule(dt=st.sampled_from([1.0, 4.0, 5.0]))
    def wait(self, dt: float) -> None:
        # Time passes only while nothing is under way, so that how old an answer may be is easy to say.
        self.settle_all()
        self.clock.set_time(self.clock.time() + dt)

    @rule(path=paths)
    def change_elsewhere(self, path: str) -> None:
        self.change_state(path)

    @rule(path=paths, stage=stages)
    def get(self, path: str, stage: str) -> None:
        self.send(Message(Code.GET, uri_path=[path]), stage)

    @rule(path=paths, stage=stages)
    def put(self, path: str, stage: str) -> None:
        self.send(Message(Code.PUT, uri_path=[path]), stage)

    @rule(path=paths, stage=stages)
    def observe(self, path: str, stage: str) -> None:
        self.send(Message(Code.GET, uri_path=[path], observe=0), stage)

    def send(self, request: Message, stage: str) -> None:
        """Send a request, and let it get some way, past others that have not got so far yet."""
        hit, sent, ticket = self.cache.prepare(SERVER, request)
        if hit is not None:
            self.check(request.opt.uri_path[0], int(hit.payload))
            return
        assert ticket is not None
        self.waiting.append(Call(ticket, sent))
        if sent.opt.observe == 0:
            self.registered.append(self.waiting[-1])
        if stage != "sent":
            self.work_on(self.waiting.pop())
            if stage != "rendered":
                self.answer_to(self.rendered.pop())
                while self.wire and stage == "delivered":
                    self.deliver()

    def check(self, path: str, version: int) -> None:
        assert version >= self.own[path]
        is_observed = any(self.path_of(call) == path for call in self.observing)
        if is_observed:
            assert version >= self.told[path]
            if not (self.waiting or self.rendered or self.wire):
                assert version == self.versions[path]
        else:
            ended = self.since.get((path, version + 1), math.inf)
            assert ended > self.clock.time() - self.MAX_AGE

    def work_on(self, call: Call) -> None:
        path = self.path_of(call)
        if call.sent.code is Code.PUT:
            self.change_state(path)
            call.response = Message(Code.CHANGED)
        else:
            call.response = self.render(path, call.sent.opt.etags)
        call.version = self.versions[path]
        self.rendered.append(call)

    def answer_to(self, call: Call) -> None:
        path = self.path_of(call)
        assert call.response is not None
        self.wire.append((call, call.response, call.version, False))
        if call in self.registered and call.version != self.versions[path]:
            self.wire.append((call, self.render(path), self.versions[path], True))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        self.work_on(self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1))))

    @precondition(lambda self: self.rendered)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.answer_to(self.rendered.pop(data.draw(st.integers(0, len(self.rendered) - 1))))

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self) -> None:
        call, response, version, is_notification = self.wire.popleft()
        path = self.path_of(call)
        if call.sent.code is Code.PUT:
            self.cache.settle(call.ticket, response)
            self.own[path] = max(self.own[path], version)
        elif is_notification:
            if call in self.observing:
                assert int(self.cache.notify(call.ticket, response).payload) == version
                self.told[path] = max(self.told[path], version)
        elif call in self.registered:
            self.observing.append(call)
            got = self.cache.settle(call.ticket, response, is_observed=True)
            assert int(got.payload) == version
            self.told[path] = max(self.told[path], version)
        else:
            assert int(self.cache.settle(call.ticket, response).payload) == version

    @precondition(lambda self: self.observing)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        call = self.observing.pop(data.draw(st.integers(0, len(self.observing) - 1)))
        self.registered.remove(call)
        self.cache.unobserve(call.ticket)

    @rule()
    def settle_all(self) -> None:
        while self.waiting or self.rendered or self.wire:
            if self.waiting:
                self.work_on(self.waiting.pop(0))
            elif self.rendered:
                self.answer_to(self.rendered.pop(0))
            else:
                self.deliver()

    @invariant()
    def answers_rightly(self) -> None:
        for path in "ab":
            hit = self.cache.prepare(SERVER, Message(Code.GET, uri_path=[path]))[0]
            if hit is not None:
                self.check(path, int(hit.payload))
        assert self.cache.figures.entries <= 2
        assert len(self.cache._watches) <= 2


TestRaceModel = RaceModel.TestCase
TestRaceModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
