"""The observers of a resource: who is one, what they get, and that none of them delays another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
from coap_contexts import Value, raw_client, served, site_of
from conftest import Transport
from waiting import wait_until

from aiomas_ng import error
from aiomas_ng._coap import observers
from aiomas_ng.message import CONTENT, GET, PUT, Code, Message
from aiomas_ng.pipe import IterablePipe
from aiomas_ng.protocol import Context
from aiomas_ng.resource import ObservableResource, ServerObservation, Site


class Counter(ObservableResource):
    """A number that is rendered with the query, and counts what happens to it."""

    is_alike_for_all = True

    def __init__(self) -> None:
        self.number = 0
        self.renders = 0
        self.counts: list[int] = []
        self.failure: Exception | None = None

    def render_get(self, request: Message) -> Message:
        self.renders += 1
        if self.failure is not None:
            raise self.failure
        return Message(payload=f"{self.number}{''.join(request.opt.uri_query)}".encode())

    def update_observation_count(self, newcount: int) -> None:
        self.counts.append(newcount)

    def set(self, number: int) -> None:
        """Change the state."""
        self.number = number
        self.updated_state()


class Gated(Counter):
    """Renders what it has at the beginning, but not before its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun = 0
        self.cancelled = 0

    async def render_get(self, request: Message) -> Message:  # type: ignore[override]  # may be async
        response = super().render_get(request)
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.cancelled += 1
            raise
        return response


class Taker(Counter):
    """Keeps its observations, and what happens to them."""

    def __init__(self, accept: Callable[[ServerObservation], object] | None = None) -> None:
        super().__init__()
        self.accept = accept
        self.observations: list[ServerObservation] = []
        self.cancellations = 0

    async def add_observation(self, request: Message, serverobservation: ServerObservation) -> None:
        self.observations.append(serverobservation)
        if self.accept is not None:
            self.accept(serverobservation)
        else:
            serverobservation.accept(self.cancelled)

    def cancelled(self) -> None:
        """The observation has ended."""
        self.cancellations += 1


class Observed:
    """What one observer gets.

    Args:
        context: Who observes.
        url: What.
    """

    def __init__(self, context: Context, url: str, **options: Any) -> None:
        self.request = context.request(Message(GET, uri=url, observe=0, **options))
        assert self.request.observation is not None
        self.observation = self.request.observation
        self.payloads: list[bytes] = []
        self.messages: list[Message] = []
        self.errors: list[BaseException] = []
        self.observation.register_callback(self._take)
        self.observation.register_errback(self.errors.append)

    def _take(self, message: Message) -> None:
        self.messages.append(message)
        self.payloads.append(message.payload)

    async def begin(self) -> Observed:
        """Wait for the first response, which counts as well."""
        response = await self.request.response
        self.messages.insert(0, response)
        self.payloads.insert(0, response.payload)
        return self

    async def until(self, payload: bytes) -> None:
        """Wait for a notification."""
        await wait_until(lambda: payload in self.payloads)

    async def until_ended(self) -> None:
        """Wait for the end of the observation, as the server makes it."""
        await wait_until(lambda: self.errors)


async def observe(context: Context, url: str, **options: Any) -> Observed:
    """Begin to observe and wait for the first response."""
    return await Observed(context, url, **options).begin()


# -- Who is an observer ----------------------------------------------------------------------------


async def test_observer_gets_the_states(transport: Transport) -> None:
    """An observer gets the present state, further ones as they come, and none after it has left."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, server, url):
        one = await observe(client, url + "counter")
        assert one.payloads == [b"0"]
        for number in (1, 2, 3):
            counter.set(number)
            await one.until(b"%d" % number)
        one.observation.cancel()
        await wait_until(lambda: not counter.observation_count)
        counter.set(4)
        assert await client.get(url + "counter") == b"4"
        assert one.payloads == [b"0", b"1", b"2", b"3"]
        assert counter.counts == [1, 0]
        assert not server.tokenmanager.incoming_requests


async def test_declined_observation(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A resource that declines an observer answers once, without the option, and raises nothing.

    The defect is that of aiocoap: an AttributeError after the reply.
    """
    counter = Taker(lambda observation: None)
    async with served(transport, site_of(counter=counter)) as (client, server, url):
        one = await observe(client, url + "counter")
        assert one.messages[0].opt.observe is None
        (ending,) = one.errors
        assert isinstance(ending, error.NotObservable)
        assert (counter.observation_count, counter.counts, counter.cancellations) == (0, [], 0)
        assert not server.tokenmanager.incoming_requests
        counter.set(1)
        assert await client.get(url + "counter") == b"1"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_observation_is_declined_after_it_was_accepted(transport: Transport) -> None:
    """An observation that is deregistered before it was answered is declined, and its callback is called."""
    counter: Taker

    def accept(observation: ServerObservation) -> None:
        observation.accept(counter.cancelled)
        observation.deregister("no room")

    counter = Taker(accept)
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        assert (one.payloads, counter.cancellations, counter.observation_count) == ([b"0"], 1, 0)
        assert isinstance(one.errors[0], error.NotObservable)


@pytest.mark.parametrize("accepts_first", [False, True])
@pytest.mark.parametrize("failure", [ValueError("bug"), error.Forbidden("not you")])
async def test_add_observation_that_raises(
    accepts_first: bool, failure: Exception, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """What the hook raises is the response, as from a handler; nobody is left registered."""
    counter: Taker

    def accept(observation: ServerObservation) -> None:
        if accepts_first:
            observation.accept(counter.cancelled)
        raise failure

    counter = Taker(accept)
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        is_bug = isinstance(failure, ValueError)
        assert one.messages[0].code == (Code.INTERNAL_SERVER_ERROR if is_bug else Code.FORBIDDEN)
        assert (counter.observation_count, counter.cancellations) == (0, int(accepts_first))
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == int(is_bug)


@pytest.mark.parametrize("code", [PUT, Code.POST, Code.DELETE])
async def test_only_reading_can_be_observed(code: Code, transport: Transport) -> None:
    """The option Observe means nothing in a request that changes the state."""
    value = Value(b"old")
    value.render_post = value.render_delete = value.render_put  # type: ignore[attr-defined]  # one handler for all
    async with served(transport, site_of(value=value)) as (client, _, url):
        response = await client.request(Message(code, b"new", url + "value", observe=0)).response
        assert (response.code.is_successful(), response.opt.observe) == (True, None)
        assert (value.observation_count, value.writes) == (0, [b"new"])


async def test_first_response_that_is_an_error(transport: Transport) -> None:
    """Who observes what is not there gets the error, and is no observer."""
    counter = Counter()
    counter.failure = error.NotFound("nothing yet")
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        assert (one.messages[0].code, one.messages[0].opt.observe) == (Code.NOT_FOUND, None)
        assert counter.counts == [1, 0]
        # Returned, and not raised.
        counter.render_get = lambda request: Message(Code.NOT_FOUND)  # type: ignore[method-assign]  # a stand-in
        two = await observe(client, url + "counter")
        assert two.messages[0].code == Code.NOT_FOUND
        assert counter.counts == [1, 0, 1, 0]


async def test_hook_for_the_number_of_observers(transport: Transport) -> None:
    """The hook is told of each change, also where an own callback was given to accept."""
    counter = Taker()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one, two = await observe(client, url + "counter"), await observe(client, url + "counter")
        assert counter.counts == [1, 2]
        one.observation.cancel()
        await wait_until(lambda: counter.counts == [1, 2, 1])
        assert counter.cancellations == 1
        two.observation.cancel()
        await wait_until(lambda: counter.counts == [1, 2, 1, 0])
        assert counter.cancellations == 2


async def test_hook_that_raises(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """A failure of the hook is logged and harms no observer."""
    counter = Counter()

    def fail(newcount: int) -> None:
        raise ValueError("the hook")

    counter.update_observation_count = fail  # type: ignore[method-assign]  # what the test is about
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        counter.set(1)
        await one.until(b"1")
    assert "the hook" in caplog.text


async def test_lost_connection_ends_its_observations(transport: Transport) -> None:
    """Observers whose connection ends are gone, others stay."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        async with raw_client(url) as raw:
            for token in (b"1", b"2"):
                await raw.ask(GET, "counter", token=token, observe=0)
            assert counter.observation_count == 3
        await wait_until(lambda: counter.observation_count == 1)
        counter.set(5)
        await one.until(b"5")


async def test_observer_registers_anew(transport: Transport) -> None:
    """A request with the same token takes the place of the first one, and its numbers go on."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (_, _, url), raw_client(url) as raw:
        first = await raw.ask(GET, "counter", observe=0)
        numbers = [first.opt.observe]
        for number in range(1, 4):
            counter.set(number)
            numbers.append((await raw.receive_message()).opt.observe)
        numbers.append((await raw.ask(GET, "counter", observe=0)).opt.observe)
        assert counter.observation_count == 1
        counter.set(9)
        last = await raw.receive_message()
        assert last.payload == b"9"
        numbers.append(last.opt.observe)
        assert numbers == sorted(set(numbers))


# -- What they get ---------------------------------------------------------------------------------


async def test_alike_observers_share_a_rendering(transport: Transport) -> None:
    """A state is rendered once for all whose requests are the same, and for each other request once."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        paths = ["counter", "counter", "counter?a", "counter?a", "counter?b"]
        all_of_them = [await observe(client, url + path) for path in paths]
        formatted = await observe(client, url + "counter", accept=0)
        counter.renders = 0
        counter.set(1)
        for one, state in zip(all_of_them, (b"1", b"1", b"1a", b"1a", b"1b"), strict=True):
            await one.until(state)
        await formatted.until(b"1")
        assert counter.renders == 4


async def test_hops_and_tags_make_no_difference(transport: Transport) -> None:
    """How a request has travelled is no reason to render the state again."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter", hop_limit=3, request_tag=[b"x"])
        two = await observe(client, url + "counter")
        counter.renders = 0
        counter.set(1)
        await one.until(b"1")
        await two.until(b"1")
        assert counter.renders == 1


async def test_observers_that_are_not_alike(transport: Transport) -> None:
    """Without the promise that all are alike, each one's request is rendered."""
    counter = Counter()
    counter.is_alike_for_all = False
    counter.render_get = lambda request: Message(  # type: ignore[method-assign]  # a stand-in
        payload=request.token + b"%d" % counter.number
    )
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one, two = await observe(client, url + "counter"), await observe(client, url + "counter")
        counter.set(1)
        for each in (one, two):
            await each.until(each.payloads[0][:-1] + b"1")
        assert one.payloads != two.payloads


async def test_changes_in_quick_succession(transport: Transport) -> None:
    """Changes that come together are rendered once, and the last one is what everybody gets."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one, two = await observe(client, url + "counter"), await observe(client, url + "counter")
        counter.renders = 0
        for number in range(1, 1001):
            counter.set(number)
        await one.until(b"1000")
        await two.until(b"1000")
        assert (one.payloads, counter.renders) == ([b"0", b"1000"], 1)


async def test_change_during_the_first_response_is_not_lost(transport: Transport) -> None:
    """A change while the first response is rendered is notified after it."""
    counter = Gated()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = Observed(client, url + "counter")
        await wait_until(lambda: counter.begun == 1)
        counter.set(7)
        counter.gate.set()
        await one.begin()
        await one.until(b"7")
        assert one.payloads == [b"0", b"7"]


async def test_change_during_a_notification_is_not_lost(transport: Transport) -> None:
    """A change while a state is rendered is rendered once more, and so is what was triggered meanwhile."""
    counter = Gated()
    counter.gate.set()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one, two = await observe(client, url + "counter"), await observe(client, url + "counter")
        counter.gate.clear()
        counter.begun = 0
        counter.set(1)
        await wait_until(lambda: counter.begun == 1)
        counter.set(2)
        counter.gate.set()
        for each in (one, two):
            await each.until(b"2")
            assert each.payloads == [b"0", b"1", b"2"]


async def test_observer_that_comes_while_the_others_are_notified(transport: Transport) -> None:
    """Whoever joins while a state is rendered for others that leave meanwhile gets the latest state."""
    counter = Gated()
    counter.gate.set()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        counter.gate.clear()
        counter.begun = 0
        counter.set(1)
        await wait_until(lambda: counter.begun == 1)
        two = Observed(client, url + "counter")
        await wait_until(lambda: counter.begun == 2)
        one.observation.cancel()
        await wait_until(lambda: counter.observation_count == 1)
        counter.set(2)
        counter.gate.set()
        await two.begin()
        await two.until(b"2")


async def test_slow_rendering_delays_nobody_else(transport: Transport) -> None:
    """While the state is rendered for one request, observers with another one get theirs."""
    gate = asyncio.Event()

    class Uneven(Counter):
        async def render_get(self, request: Message) -> Message:  # type: ignore[override]  # may be async
            if self.number and request.opt.uri_query:
                await gate.wait()
            return super().render_get(request)

    counter = Uneven()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        slow, fast = await observe(client, url + "counter?slow"), await observe(client, url + "counter")
        for number in (1, 2, 3):
            counter.set(number)
            await fast.until(b"%d" % number)
        assert slow.payloads == [b"0slow"]
        gate.set()
        await slow.until(b"3slow")


@pytest.mark.parametrize("failure", [ValueError("bug"), error.NotFound("gone")])
async def test_handler_that_raises_while_notifying(
    transport: Transport, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What a handler raises ends all observations with that response; a bug is logged once."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        all_of_them = [await observe(client, url + "counter") for _ in range(5)]
        counter.failure = failure
        counter.set(1)
        is_bug = isinstance(failure, ValueError)
        for one in all_of_them:
            await one.until_ended()
            assert one.messages[-1].code == (Code.INTERNAL_SERVER_ERROR if is_bug else Code.NOT_FOUND)
            assert b"bug" not in one.payloads[-1]
            assert isinstance(one.errors[0], error.ObservationCancelled)
        assert counter.observation_count == 0
        counter.failure = None
        again = await observe(client, url + "counter")
        counter.set(2)
        await again.until(b"2")
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == int(is_bug)


async def test_observers_of_one_resource_at_two_paths(transport: Transport) -> None:
    """A resource that was added twice has all its observers."""
    counter = Counter()
    async with served(transport, site_of(one=counter, two=counter)) as (client, _, url):
        both = [await observe(client, url + path) for path in ("one", "two")]
        counter.set(1)
        for each in both:
            await each.until(b"1")


# -- Responses that are chosen ---------------------------------------------------------------------


async def test_response_for_all(transport: Transport) -> None:
    """A given response goes to all observers as it is, without rendering; by default it is 2.05."""
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        all_of_them = [await observe(client, url + path) for path in ("counter", "counter?a")]
        counter.renders = 0
        counter.updated_state(Message(payload=b"given"))
        for one in all_of_them:
            await one.until(b"given")
            assert one.messages[-1].code == CONTENT
        assert counter.renders == 0
        counter.updated_state(Message(Code.NOT_FOUND, b"the end"))
        for one in all_of_them:
            await one.until_ended()
            assert one.payloads[-1] == b"the end"
        assert counter.observation_count == 0


async def test_response_for_all_comes_after_the_first_one(transport: Transport) -> None:
    """A response that is given while the first one is rendered follows it."""
    counter = Gated()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = Observed(client, url + "counter")
        await wait_until(lambda: counter.begun == 1)
        counter.updated_state(Message(payload=b"given"))
        counter.gate.set()
        await one.begin()
        await one.until(b"given")
        assert one.payloads == [b"0", b"given"]


def test_updates_without_observers() -> None:
    """Without observers an update does nothing."""
    counter = Counter()
    counter.updated_state()
    counter.updated_state(Message())
    counter.close_observations()
    assert (counter.observation_count, counter.renders) == (0, 0)


async def test_trigger(transport: Transport) -> None:
    """A trigger lets the state be rendered for that observer alone, or sends it what is given."""
    counter = Taker()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one, two = await observe(client, url + "counter"), await observe(client, url + "counter")
        first, second = counter.observations
        counter.number = 5  # without telling
        first.trigger()
        await one.until(b"5")
        second.trigger(Message(payload=b"yours"))
        await two.until(b"yours")
        assert (one.payloads, two.payloads) == ([b"0", b"5"], [b"0", b"yours"])
        second.trigger(is_last=True)
        await two.until_ended()
        assert two.payloads[-1] == b"5"
        first.trigger(Message(payload=b"bye"), is_last=True)
        await one.until_ended()
        assert one.messages[-1].payload == b"bye"
        assert one.messages[-1].opt.observe is None
        assert (counter.observation_count, counter.cancellations) == (0, 2)
        first.trigger()
        second.trigger(Message(payload=b"too late"))


async def test_trigger_during_a_rendering(transport: Transport) -> None:
    """What is triggered while the state is rendered is not answered by that rendering, not even the last."""
    counter = Gated()
    counter.gate.set()
    taken: list[ServerObservation] = []

    async def add_observation(request: Message, serverobservation: ServerObservation) -> None:
        serverobservation.accept(lambda: None)
        taken.append(serverobservation)

    counter.add_observation = add_observation  # type: ignore[method-assign]  # a stand-in
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        counter.gate.clear()
        counter.begun = 0
        counter.set(1)
        await wait_until(lambda: counter.begun == 1)
        counter.number = 2  # without telling
        taken[0].trigger(is_last=True)
        counter.gate.set()
        await one.until_ended()
        assert one.payloads == [b"0", b"1", b"2"]


async def test_triggers_before_the_first_response(transport: Transport) -> None:
    """What is triggered before the first response follows it; what is to be the last counts."""

    def accept(observation: ServerObservation) -> None:
        observation.accept(lambda: None)
        observation.trigger(Message(payload=b"early"))
        observation.trigger(Message(payload=b"last"), is_last=True)
        observation.trigger(Message(payload=b"later"))

    async with served(transport, site_of(counter=Taker(accept))) as (client, _, url):
        one = await observe(client, url + "counter")
        await one.until_ended()
        assert one.payloads == [b"0", b"last"]


async def test_deregister(transport: Transport) -> None:
    """A server that ends an observation says why, in a 5.03."""
    counter = Taker()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        counter.observations[0].deregister("closing for today")
        await one.until_ended()
        assert one.messages[-1].code == Code.SERVICE_UNAVAILABLE
        assert "closing for today" in str(one.errors[0])
        assert (counter.observation_count, counter.cancellations) == (0, 1)


# -- Removal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["resource", "site", "site of the site"])
async def test_removal_while_observed(transport: Transport, level: str) -> None:
    """Whoever observes what is removed, alone or with its site, gets 4.04 as the last notification."""
    counter = Counter()
    inner, middle, outer = Site(), Site(), Site()
    inner.add_resource("counter", counter)
    middle.add_resource("inner", inner)
    middle.add_resource("plain", Value())
    outer.add_resource("middle", middle)
    async with served(transport, outer) as (client, _, url):
        target = url + "middle/inner/counter"
        one = await observe(client, target)
        if level == "resource":
            inner.remove_resource("counter")
        elif level == "site":
            middle.remove_resource("inner")
        else:
            outer.remove_resource("middle")
        await one.until_ended()
        assert one.messages[-1].code == Code.NOT_FOUND
        assert "removed" in str(one.errors[0])
        assert counter.observation_count == 0
        two = await observe(client, target)
        assert two.messages[0].code == Code.NOT_FOUND


async def test_removed_and_added_again(transport: Transport) -> None:
    """What was added again can be observed again; adding it once more where it is changes nothing."""
    counter, site = Counter(), Site()
    site.add_resource("counter", counter)
    async with served(transport, site) as (client, _, url):
        one = await observe(client, url + "counter")
        site.add_resource("counter", counter)
        counter.set(1)
        await one.until(b"1")
        site.remove_resource("counter")
        site.add_resource("counter", counter)
        await one.until_ended()
        two = await observe(client, url + "counter")
        counter.set(2)
        await two.until(b"2")


async def test_replacement_while_observed(transport: Transport) -> None:
    """Whoever observes what something else takes the place of gets 4.04, and may observe that."""
    site = site_of(counter=Counter())
    async with served(transport, site) as (client, _, url):
        one = await observe(client, url + "counter")
        site.add_resource("counter", Value(b"new"))
        await one.until_ended()
        assert one.messages[-1].code == Code.NOT_FOUND
        assert (await observe(client, url + "counter")).payloads == [b"new"]


async def test_removal_before_the_first_response(transport: Transport) -> None:
    """A resource that is removed while the first response is rendered answers 4.04."""
    counter = Gated()
    site = site_of(counter=counter)
    async with served(transport, site) as (client, _, url):
        one = Observed(client, url + "counter")
        await wait_until(lambda: counter.begun == 1)
        site.remove_resource("counter")
        counter.gate.set()
        assert (await one.begin()).messages[0].code == Code.NOT_FOUND
        assert counter.observation_count == 0


# -- Who does not read, and the end ----------------------------------------------------------------


async def test_observer_that_does_not_read_gets_the_latest_state(transport: Transport) -> None:
    """Who stops to read is left out; later it gets what was on the way, and the latest state."""
    value = Value(bytes(30_000))
    value.is_alike_for_all = True
    async with served(transport, site_of(value=value)) as (client, server, url), raw_client(url) as raw:
        other = await observe(client, url + "value")
        await raw.ask(GET, "value", observe=0)
        (remote,) = [
            r for r in server.tokenmanager.remotes if r.incoming and r.url is None and b"t" in r.incoming
        ]
        raw.raw.stop_reading()
        number = 0
        while not remote.is_paused:
            number += 1
            value.set(b"%06d" % number * 5000)
            await other.until(value.payload)
        for _ in range(200):
            number += 1
            value.set(b"%06d" % number * 5000)
        await other.until(value.payload)
        raw.raw.start_reading()
        received = 0
        while (await raw.receive_message()).payload != value.payload:
            received += 1
        assert received < number - 190


async def test_shutdown_waits_for_a_notification_that_is_rendered(transport: Transport) -> None:
    """A server that shuts down while a state is rendered cancels that, and waits until it has cleaned up."""
    counter = Gated()
    counter.gate.set()
    async with served(transport, site_of(counter=counter)) as (client, server, url):
        one = await observe(client, url + "counter")
        counter.gate.clear()
        counter.begun = 0
        counter.set(1)
        await wait_until(lambda: counter.begun == 1)
        await server.shutdown()
        assert (counter.cancelled, counter.observation_count) == (1, 0)
        await one.until_ended()


async def test_last_observer_cancels_the_rendering(transport: Transport) -> None:
    """When the last observer leaves, the rendering of a state that nobody wants is given up."""
    counter = Gated()
    counter.gate.set()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        one = await observe(client, url + "counter")
        counter.gate.clear()
        counter.begun = 0
        counter.set(1)
        await wait_until(lambda: counter.begun == 1)
        one.observation.cancel()
        await wait_until(lambda: counter.cancelled)


async def test_observer_without_a_network() -> None:
    """A pipe of one's own observes as well; a notification that is not read yet is replaced by the next."""
    counter = Counter()
    async with IterablePipe(Message(GET, observe=0)) as pipe:
        task = asyncio.ensure_future(counter.render_to_pipe(pipe))
        events = aiter(pipe)
        first = await anext(events)
        assert first.message is not None
        assert (first.message.payload, first.is_last) == (b"0", False)
        for number in (1, 2, 3):
            counter.set(number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        second = await anext(events)
        assert second.message is not None
        assert second.message.payload == b"3"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert counter.counts == [1, 0]


async def test_pipe_that_fails_harms_no_other_observer(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """An observer whose pipe takes nothing is let go of; the others are notified."""

    class Broken(IterablePipe):
        def add_response(self, response: Message, is_last: bool = False) -> None:
            if response.payload != b"0":
                raise ValueError("broken pipe")
            super().add_response(response, is_last)

    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        pipe = Broken(Message(GET, observe=0, uri_path=("counter",)))
        task = asyncio.ensure_future(counter.render_to_pipe(pipe))
        await wait_until(lambda: counter.observation_count)
        one = await observe(client, url + "counter")
        counter.set(1)
        await one.until(b"1")
        await task
        assert counter.observation_count == 1
    assert "broken pipe" in caplog.text


# -- Many ------------------------------------------------------------------------------------------


async def test_batches_leave_room_for_others(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many observers are notified over several turns of the loop; some may leave in between."""
    monkeypatch.setattr(observers, "BATCH", 2)
    counter = Counter()
    async with served(transport, site_of(counter=counter)) as (client, _, url):
        all_of_them = [await observe(client, url + "counter") for _ in range(7)]
        counter.set(1)
        all_of_them[-1].observation.register_callback(lambda _: counter.set(2))
        all_of_them[0].observation.register_callback(lambda _: all_of_them[5].observation.cancel())
        for one in [*all_of_them[:5], all_of_them[6]]:
            await one.until(b"2")
        await wait_until(lambda: counter.observation_count == 6)


OBSERVERS = 1000
SILENT = 10
CONNECTIONS = 10
CHANGES = 10_000
STEP = 50
"""Changes per turn of the loop."""

PADDING = 20_000
"""Bytes of the state that those get who do not read: they make the buffers of the system overflow soon."""


class Busy(ObservableResource):
    """A number that may come with padding."""

    is_alike_for_all = True
    number = 0

    def render_get(self, request: Message) -> Message:
        padding = PADDING if request.opt.uri_query else 0
        return Message(payload=b"%d" % self.number + b" " * padding)


async def test_load(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of 1,000 observers of a resource that changes 10,000 times, those 990 that read get the last state.

    The 10 that never read hold back nobody, and what is kept for them is bounded.
    """
    transport = Transport("unix", tmp_path_factory.mktemp("s"))
    busy = Busy()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        _, server, url = await enter(served(transport, site_of(busy=busy)))
        readers = []
        for _ in range(CONNECTIONS):
            client = await enter(await Context.create_client_context())
            for _ in range((OBSERVERS - SILENT) // CONNECTIONS):
                readers.append(Observed(client, url + "busy"))
        await asyncio.gather(*(reader.begin() for reader in readers))
        silent = [await enter(raw_client(url)) for _ in range(SILENT)]
        for raw in silent:
            await raw.ask(GET, "busy", observe=0, uri_query=["padded"])
            raw.raw.stop_reading()
        assert busy.observation_count == OBSERVERS
        kept = 0
        for number in range(1, CHANGES + 1):
            busy.number = number
            busy.updated_state()
            if number % STEP == 0:
                await asyncio.sleep(0)
                buffers = [
                    remote.channel.transport.get_write_buffer_size() for remote in server.tokenmanager.remotes
                ]
                kept = max(kept, *buffers)
        last = b"%d" % CHANGES
        await asyncio.gather(*(reader.until(last) for reader in readers))
        counts = sorted(len(reader.payloads) for reader in readers)
        assert all(reader.payloads[-1] == last for reader in readers)
        assert counts[0] > counts[-1] / 2, "some observers were held back"
        stuck = [remote for remote in server.tokenmanager.remotes if remote.is_paused]
        assert len(stuck) == SILENT, "the silent ones were not tested"
        assert kept < 1_000_000
        for raw in silent:
            raw.raw.start_reading()
            while (await raw.receive_message()).payload.strip() != last:
                pass
