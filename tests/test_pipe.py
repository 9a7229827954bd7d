"""Pipes: whatever happens at either end, each learns what it has to, once, and neither waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiomas_ng import error, pipe
from aiomas_ng._coap import driving, events
from aiomas_ng.exceptions import OverloadError
from aiomas_ng.message import CONTENT, EMPTY, GET, Message
from aiomas_ng.pipe import (
    WINDOW,
    IterablePipe,
    LinkedPipe,
    Pipe,
    PipeState,
    error_to_message,
    render_exception,
    run_driving_pipe,
)
from tests.waiting import wait_until


def make_request(**options: Any) -> Message:
    return Message(GET, uri_path=("somewhere",), **options)


def make_response(payload: object = b"", **options: Any) -> Message:
    return Message(CONTENT, str(payload).encode() if payload != b"" else b"", **options)


class Recorder:
    """A callback that keeps the events.

    Args:
        pipe: Where it is registered.
        is_interest: Whether it is interest.
    """

    def __init__(self, pipe: Pipe, is_interest: bool = True) -> None:
        self.events: list[events.Event] = []
        self.unregister = pipe.on_event(self, is_interest)

    def __call__(self, event: events.Event) -> bool:
        self.events.append(event)
        return True

    @property
    def messages(self) -> list[Message | None]:
        return [event.message for event in self.events]


class Counter:
    """A callback without arguments that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def fail() -> None:
    raise ValueError("a callback")


TOMBSTONE = (None, None, True)


# -- States ----------------------------------------------------------------------------------------


def test_a_pipe_is_prepared_until_it_is_started() -> None:
    """Callbacks may be registered until it is handed over; then it is active."""
    pipe = Pipe(make_request())
    assert pipe.state is PipeState.PREPARING
    recorder = Recorder(pipe)
    pipe.start()
    assert pipe.state is PipeState.ACTIVE
    assert not pipe.is_ended
    assert recorder.events == []
    pipe.start()
    assert pipe.state is PipeState.ACTIVE


@pytest.mark.parametrize(
    "act",
    [
        Pipe.start,
        lambda pipe: pipe.add_response(make_response()),
        lambda pipe: pipe.on_interest_end(lambda: None),
    ],
)
def test_the_first_act_of_a_responder_ends_the_preparation(act: Callable[[Pipe], None]) -> None:
    """From then on no new interest may come up, but who only watches is welcome."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    act(pipe)
    assert pipe.state is PipeState.ACTIVE
    with pytest.raises(error.PipeStateError, match="is active: register callbacks before"):
        pipe.on_event(lambda _: True)
    watcher = Recorder(pipe, is_interest=False)
    pipe.add_response(make_response())
    assert len(watcher.events) == 1


@pytest.mark.parametrize(
    "act",
    [Pipe.start, lambda pipe: pipe.add_response(make_response()), lambda pipe: pipe.add_exception(OSError())],
)
def test_without_interest_a_pipe_ends_at_once(act: Callable[[Pipe], None]) -> None:
    """It was abandoned, and who watches is told so."""
    pipe = Pipe(make_request())
    watcher = Recorder(pipe, is_interest=False)
    act(pipe)
    assert pipe.is_ended
    assert pipe.was_abandoned
    assert watcher.events == [TOMBSTONE]


def test_nothing_is_registered_on_an_ended_pipe() -> None:
    """Neither interest nor watching."""
    pipe = Pipe(make_request())
    pipe.start()
    for is_interest in (True, False):
        with pytest.raises(error.PipeStateError, match="is ended"):
            pipe.on_event(lambda _: True, is_interest)


def test_interest_that_was_taken_back_in_time_does_not_count() -> None:
    """A callback unregistered during the preparation is no interest; the pipe ends only at its start."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    recorder.unregister()
    assert pipe.state is PipeState.PREPARING
    other = Recorder(pipe)
    pipe.start()
    assert pipe.state is PipeState.ACTIVE
    recorder.unregister()
    assert pipe.state is PipeState.ACTIVE
    other.unregister()
    assert pipe.was_abandoned


def test_a_last_response_ends_a_pipe() -> None:
    """It is not abandoned then, even if the callback does not want to go on."""
    pipe = Pipe(make_request())
    got = []
    pipe.on_event(got.append)  # returns None
    pipe.add_response(make_response(), is_last=True)
    assert len(got) == 1
    assert pipe.is_ended
    assert not pipe.was_abandoned


def test_an_exception_is_always_the_last_event() -> None:
    """It ends the pipe, and carries the exception."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    failure = OSError("broken")
    pipe.add_exception(failure)
    assert recorder.events == [(None, failure, True)]
    assert pipe.is_ended
    assert not pipe.was_abandoned


def test_representation_says_state_and_interest() -> None:
    """For logs."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    assert repr(pipe) == "<Pipe preparing, 1 interested, <Message GET /somewhere, 1 option(s)>>"


# -- Callbacks -------------------------------------------------------------------------------------


def test_events_come_in_order_to_all() -> None:
    """Each callback gets each event, once."""
    pipe = Pipe(make_request())
    recorders = [Recorder(pipe), Recorder(pipe, is_interest=False), Recorder(pipe)]
    responses = [make_response(i) for i in range(5)]
    for response in responses:
        pipe.add_response(response, is_last=response is responses[-1])
    for recorder in recorders:
        assert recorder.events == [(r, None, r is responses[-1]) for r in responses]


@pytest.mark.parametrize("result", [False, None])
def test_a_callback_that_does_not_return_true_is_not_called_again(result: Any) -> None:
    """For the last one with interest, that is the end of the pipe."""
    pipe = Pipe(make_request())
    got = []

    def once(event: events.Event) -> Any:
        got.append(event)
        return result

    pipe.on_event(once)
    other = Recorder(pipe)
    pipe.add_response(make_response(1))
    pipe.add_response(make_response(2))
    assert len(got) == 1
    assert len(other.events) == 2
    other.unregister()
    assert pipe.was_abandoned


def test_a_callback_that_fails_is_logged_and_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    """The others are not harmed."""
    pipe = Pipe(make_request())
    calls = []

    def failing(event: events.Event) -> bool:
        calls.append(event)
        raise ValueError("what a callback")

    pipe.on_event(failing)
    other = Recorder(pipe)
    pipe.add_response(make_response())
    pipe.add_response(make_response())
    assert len(calls) == 1
    assert len(other.events) == 2
    assert "what a callback" in caplog.text


def test_a_callback_that_fails_may_be_the_last_interest() -> None:
    """Then the pipe ends, and who watches gets the event, and then the end."""
    pipe = Pipe(make_request(), logging.getLogger("silent"))
    pipe.on_event(lambda _: 1 / 0)
    watcher = Recorder(pipe, is_interest=False)
    response = make_response()
    pipe.add_response(response)
    assert pipe.was_abandoned
    assert watcher.events == [(response, None, False), TOMBSTONE]


def test_a_callback_that_fails_at_the_last_event_ends_nothing_twice() -> None:
    """The pipe has ended by the event."""
    pipe = Pipe(make_request(), logging.getLogger("silent"))
    pipe.on_event(lambda _: 1 / 0)
    watcher = Recorder(pipe, is_interest=False)
    ends = Counter()
    pipe.on_interest_end(ends)
    pipe.add_response(make_response(), is_last=True)
    assert not pipe.was_abandoned
    assert len(watcher.events) == 1
    assert ends.calls == 1


def test_keyboard_interrupt_in_a_callback_is_not_swallowed() -> None:
    """It leaves, and the pipe can still be used."""
    pipe = Pipe(make_request())

    def interrupt(event: events.Event) -> bool:
        if not event.is_last:
            raise KeyboardInterrupt
        return True

    pipe.on_event(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipe.add_response(make_response())
    pipe.add_response(make_response(), is_last=True)
    assert pipe.is_ended


@pytest.mark.parametrize("is_last", [False, True])
def test_interest_that_ends_during_an_event(is_last: bool) -> None:
    """The others get the event first; a last event counts for more than the loss of interest."""
    pipe = Pipe(make_request())
    states = []

    def leave(event: events.Event) -> bool:
        unregister()
        states.append(pipe.state)
        return True

    unregister = pipe.on_event(leave)
    watcher = Recorder(pipe, is_interest=False)
    ends = Counter()
    pipe.on_interest_end(ends)
    response = make_response()
    pipe.add_response(response, is_last)
    assert states == [PipeState.ACTIVE]
    assert pipe.is_ended
    assert pipe.was_abandoned == (not is_last)
    assert watcher.events == [(response, None, is_last), *([] if is_last else [TOMBSTONE])]
    assert ends.calls == 1
    unregister()
    assert ends.calls == 1


def test_callback_that_unregisters_another_one() -> None:
    """It must not, but then the other is not called any more, and nothing breaks."""
    pipe = Pipe(make_request())
    pipe.on_event(lambda _: other.unregister() or True)
    other = Recorder(pipe)
    third = Recorder(pipe)
    pipe.add_response(make_response())
    assert other.events == []
    assert len(third.events) == 1
    assert pipe.state is PipeState.ACTIVE


def test_callback_that_registers_a_watcher() -> None:
    """The new one gets the events after that one."""
    pipe = Pipe(make_request())
    watchers = []

    def register(event: events.Event) -> bool:
        if not watchers:
            watchers.append(Recorder(pipe, is_interest=False))
        return True

    pipe.on_event(register)
    pipe.add_response(make_response(1))
    assert watchers[0].events == []
    pipe.add_response(make_response(2))
    assert watchers[0].messages[0].payload == b"2"


def test_callback_that_produces_events(caplog: pytest.LogCaptureFixture) -> None:
    """It gets an error that says so, at the place where it does it."""
    pipe = Pipe(make_request())
    caught = []

    def produce(event: events.Event) -> bool:
        for act in (lambda: pipe.add_response(make_response()), lambda: pipe.add_exception(OSError())):
            with pytest.raises(error.PipeStateError, match="must not produce events") as info:
                act()
            caught.append(info)
        return True

    pipe.on_event(produce)
    pipe.add_response(make_response(), is_last=True)
    assert len(caught) == 2
    assert pipe.is_ended


def test_unregistering_twice_does_no_harm() -> None:
    """Nor does unregistering after the end."""
    pipe = Pipe(make_request())
    first, second = Recorder(pipe), Recorder(pipe)
    pipe.start()
    first.unregister()
    first.unregister()
    assert not pipe.is_ended
    second.unregister()
    second.unregister()
    assert pipe.was_abandoned


def test_the_same_function_registered_twice_counts_twice() -> None:
    """Registrations are told apart, not functions."""
    pipe = Pipe(make_request())
    got: list[Any] = []

    def callback(event: events.Event) -> bool:
        got.append(event)
        return True

    unregister = pipe.on_event(callback)
    pipe.on_event(callback)
    pipe.add_response(make_response())
    assert len(got) == 2
    unregister()
    pipe.add_response(make_response())
    assert len(got) == 3


# -- Responses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", [None, "text", b"bytes", make_request, 0.75])
def test_what_is_no_message_is_no_response(response: Any) -> None:
    """The producer learns it, before anybody else sees it."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    with pytest.raises(TypeError, match="a response must be a Message"):
        pipe.add_response(response, is_last=True)
    assert recorder.events == []
    assert not pipe.is_ended


@pytest.mark.parametrize("code", [None, GET, 31, 32, 63, 0xC0, 0xE1, 255])
def test_a_response_must_have_the_code_of_one(code: Any) -> None:
    """A request, a signal or no code at all is an error of the producer."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    with pytest.raises(ValueError, match="must have the code of one"):
        pipe.add_response(Message(code))
    assert recorder.events == []


@pytest.mark.parametrize("code", [EMPTY, CONTENT, 64, 95, 128, 191])
def test_codes_of_responses(code: Any) -> None:
    """All of the classes 2 to 5, and 0 for a response that was not sent."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    pipe.add_response(Message(code))
    assert len(recorder.events) == 1


def test_late_exception_on_an_ended_pipe(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and dropped, without an error of the log itself (a defect of aiocoap)."""
    caplog.set_level(logging.DEBUG)
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    pipe.add_response(make_response(), is_last=True)
    pipe.add_exception(ValueError("too late %s %d"))
    pipe.add_exception(error.NetworkError("no way %s"))
    pipe.add_response(make_response("late"))
    assert len(recorder.events) == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO", "DEBUG"]
    assert "too late %s %d" in caplog.text
    assert "no way %s" in caplog.text


def test_a_log_of_ones_own() -> None:
    """Whatever is logged goes there, adapters included."""
    records: list[logging.LogRecord] = []
    log = logging.getLogger("tests.pipe")
    log.propagate = False
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    log.addHandler(handler)
    pipe = Pipe(make_request(), logging.LoggerAdapter(log, {}))
    pipe.start()
    pipe.add_exception(ValueError())
    log.removeHandler(handler)
    assert len(records) == 1


# -- The end of interest ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["unregister", "response", "exception"])
def test_on_interest_end_is_called_exactly_once(end: str) -> None:
    """At a last event, or when there is no interest any more, whichever is first."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    first, second = Counter(), Counter()
    pipe.on_interest_end(first)
    pipe.on_interest_end(second)
    pipe.add_response(make_response())
    assert (first.calls, second.calls) == (0, 0)
    if end == "unregister":
        recorder.unregister()
    elif end == "response":
        pipe.add_response(make_response(), is_last=True)
    else:
        pipe.add_exception(OSError())
    assert (first.calls, second.calls) == (1, 1)
    recorder.unregister()
    pipe.add_exception(error.NetworkError())
    assert (first.calls, second.calls) == (1, 1)


def test_on_interest_end_is_called_at_once_where_there_is_none() -> None:
    """Without any callback, or after the end."""
    pipe = Pipe(make_request())
    for _ in range(2):
        called = Counter()
        pipe.on_interest_end(called)
        assert called.calls == 1


def test_on_interest_end_callback_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others are called."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    called = Counter()
    pipe.on_interest_end(fail)
    pipe.on_interest_end(called)
    recorder.unregister()
    assert called.calls == 1
    assert "ValueError: a callback" in caplog.text


def test_on_interest_end_callback_that_adds_another() -> None:
    """The pipe has ended by then, so that one is called at once."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    called = Counter()
    pipe.on_interest_end(lambda: pipe.on_interest_end(called))
    recorder.unregister()
    assert called.calls == 1


# -- Signs of life ---------------------------------------------------------------------------------


def test_poke_reaches_the_responder_until_the_end() -> None:
    """Nothing comes back; without a responder nothing happens; one that fails harms no other."""
    pipe = Pipe(make_request(), logging.getLogger("silent"))
    Recorder(pipe)
    pipe.poke()
    first, second = Counter(), Counter()
    pipe.on_poke(first)
    pipe.on_poke(fail)
    pipe.on_poke(second)
    assert pipe.state is PipeState.PREPARING
    pipe.poke()
    pipe.poke()
    assert (first.calls, second.calls) == (2, 2)
    pipe.add_response(make_response(), is_last=True)
    pipe.on_poke(first)
    pipe.poke()
    assert (first.calls, second.calls) == (2, 2)


# -- Back pressure ---------------------------------------------------------------------------------


async def test_drain_returns_at_once_where_nobody_is_slow() -> None:
    """Neither before nor after any events does it wait."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    await pipe.drain()
    pipe.add_response(make_response())
    await pipe.drain()


async def test_drain_waits_for_resume() -> None:
    """All that wait go on together."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    pipe.start()
    pipe.pause()
    assert pipe.is_paused
    tasks = [asyncio.create_task(pipe.drain()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    pipe.resume()
    assert not pipe.is_paused
    await asyncio.gather(*tasks)


async def test_drain_looks_again_after_it_was_woken() -> None:
    """A pipe that was paused again meanwhile is waited for again."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    pipe.pause()
    task = asyncio.create_task(pipe.drain())
    await asyncio.sleep(0)
    pipe.resume()
    pipe.pause()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    pipe.resume()
    await task


@pytest.mark.parametrize("end", ["unregister", "last"])
async def test_drain_ends_with_the_pipe(end: str) -> None:
    """A paused pipe that has ended holds nobody."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    pipe.start()
    pipe.pause()
    task = asyncio.create_task(pipe.drain())
    await asyncio.sleep(0)
    if end == "last":
        pipe.add_response(make_response(), is_last=True)
    else:
        recorder.unregister()
    await task
    assert not pipe.is_paused
    await pipe.drain()


async def test_cancelled_drain_leaves_nothing_behind() -> None:
    """However often a producer gives up waiting, the pipe does not grow."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    pipe.pause()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pipe.drain(), 0)
        task = asyncio.create_task(pipe.drain())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not pipe._on_resume
    pipe.resume()
    await pipe.drain()


async def test_drain_that_is_cancelled_and_woken_at_once() -> None:
    """The cancellation counts, and nothing is set twice."""
    pipe = Pipe(make_request())
    Recorder(pipe)
    pipe.pause()
    task = asyncio.create_task(pipe.drain())
    await asyncio.sleep(0)
    task.cancel()
    pipe.resume()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_producer_without_end_notices_its_cancellation() -> None:
    """On an ended pipe, drain() lets the loop run, so that who never waits else can be cancelled."""
    pipe = Pipe(make_request())
    recorder = Recorder(pipe)
    pipe.start()
    recorder.unregister()
    rounds = 0

    async def produce() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            pipe.add_response(make_response())
            await pipe.drain()

    task = asyncio.create_task(produce())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rounds <= 2


def test_on_resume_is_called_once() -> None:
    """At once if nobody waits, else when the pipe is resumed or ends; one that fails harms no other."""
    pipe = Pipe(make_request(), logging.getLogger("silent"))
    recorder = Recorder(pipe)
    called = Counter()
    pipe.on_resume(called)
    assert called.calls == 1
    pipe.start()
    pipe.pause()
    pipe.on_resume(fail)
    pipe.on_resume(called)
    assert called.calls == 1
    pipe.resume()
    pipe.resume()
    assert called.calls == 2
    pipe.pause()
    pipe.on_resume(called)
    recorder.unregister()
    assert called.calls == 3
    pipe.resume()
    assert called.calls == 3


# -- A model of all that ---------------------------------------------------------------------------


class ModelCallback:
    """A callback that does at each event what it was told to."""

    def __init__(self, model: PipeModel, is_interest: bool) -> None:
        self.model = model
        self.is_interest = is_interest
        self.behaviour = "keep"
        self.got: list[Any] = []
        self.expected: list[Any] = []
        self.is_registered = True
        self.unregister = model.pipe.on_event(self, is_interest)

    def __call__(self, event: events.Event) -> Any:
        self.got.append(event)
        if self.behaviour == "raise":
            raise ValueError
        if self.behaviour == "unregister":
            self.unregister()
            self.unregister()
        return self.behaviour in ("keep", "unregister")


class PipeModel(RuleBasedStateMachine):
    """What the documentation says, by a plainer program."""

    def __init__(self) -> None:
        super().__init__()
        self.pipe = Pipe(make_request(), logging.getLogger("silent"))
        self.state = PipeState.PREPARING
        self.was_abandoned = False
        self.is_paused = False
        self.callbacks: list[ModelCallback] = []
        self.ends: list[Counter] = []
        self.resumes: list[tuple[Counter, bool]] = []  # and whether it was called

    def live(self) -> list[ModelCallback]:
        return [callback for callback in self.callbacks if callback.is_registered]

    def end(self, was_abandoned: bool) -> None:
        self.state = PipeState.ENDED
        self.was_abandoned = was_abandoned
        for callback in self.live():
            if was_abandoned:
                callback.expected.append(TOMBSTONE)
            callback.is_registered = False
        self.resumed()

    def resumed(self) -> None:
        self.resumes = [(counter, True) for counter, _ in self.resumes]

    def check_interest(self) -> None:
        if self.state is PipeState.ACTIVE and not any(callback.is_interest for callback in self.live()):
            self.end(was_abandoned=True)

    def begin(self) -> None:
        if self.state is PipeState.PREPARING:
            self.state = PipeState.ACTIVE
            self.check_interest()

    @rule(is_interest=st.booleans())
    def register(self, is_interest: bool) -> None:
        if self.state is PipeState.ENDED or (is_interest and self.state is PipeState.ACTIVE):
            with pytest.raises(error.PipeStateError):
                self.pipe.on_event(lambda _: True, is_interest)
        else:
            self.callbacks.append(ModelCallback(self, is_interest))

    @precondition(lambda self: self.callbacks)
    @rule(data=st.data(), behaviour=st.sampled_from(["keep", "leave", "raise", "unregister"]))
    def tell(self, data: st.DataObject, behaviour: str) -> None:
        data.draw(st.sampled_from(self.callbacks)).behaviour = behaviour

    @precondition(lambda self: self.callbacks)
    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        callback = data.draw(st.sampled_from(self.callbacks))
        callback.is_registered = False
        self.check_interest()
        callback.unregister()

    @rule()
    def start(self) -> None:
        self.begin()
        self.pipe.start()

    @rule(is_last=st.booleans(), is_exception=st.booleans())
    def emit(self, is_last: bool, is_exception: bool) -> None:
        exception = error.NetworkError() if is_exception else None
        response = None if is_exception else make_response()
        event = (response, exception, is_last or is_exception)
        self.begin()
        if self.state is PipeState.ACTIVE:
            for callback in self.live():
                callback.expected.append(event)
                callback.is_registered = callback.behaviour == "keep"
            if event[2]:
                self.end(was_abandoned=False)
            else:
                self.check_interest()
        if exception is not None:
            self.pipe.add_exception(exception)
        else:
            assert response is not None
            self.pipe.add_response(response, is_last)

    @rule()
    def on_interest_end(self) -> None:
        self.begin()
        self.ends.append(Counter())
        self.pipe.on_interest_end(self.ends[-1])

    @rule()
    def pause(self) -> None:
        self.is_paused = True
        self.pipe.pause()

    @rule()
    def resume(self) -> None:
        self.is_paused = False
        self.resumed()
        self.pipe.resume()

    @rule()
    def on_resume(self) -> None:
        counter = Counter()
        waits = self.is_paused and self.state is not PipeState.ENDED
        self.resumes.append((counter, not waits))
        self.pipe.on_resume(counter)

    @invariant()
    def agrees(self) -> None:
        assert self.pipe.state is self.state
        assert self.pipe.was_abandoned == self.was_abandoned
        assert self.pipe.is_ended == (self.state is PipeState.ENDED)
        assert self.pipe.is_paused == (self.is_paused and not self.pipe.is_ended)
        for callback in self.callbacks:
            assert callback.got == callback.expected
            assert sum(event[2] for event in callback.got) <= 1
        for counter in self.ends:
            assert counter.calls == self.pipe.is_ended
        for counter, was_called in self.resumes:
            assert counter.calls == was_called


PipeModel.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestPipeModel = PipeModel.TestCase


# -- The task that works on a request --------------------------------------------------------------


def make_watched_pipe() -> tuple[Pipe, Recorder]:
    pipe = Pipe(make_request())
    return pipe, Recorder(pipe)


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task, whichever it is."""
    await asyncio.wait([task])


async def test_driver_runs_in_a_task_with_a_name() -> None:
    """The caller goes on; the task is kept where it is to be, until its end."""
    pipe, recorder = make_watched_pipe()
    tasks: set[asyncio.Task[Any]] = set()
    names = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task in tasks
        names.append(task.get_name())
        pipe.add_response(make_response(1))
        await asyncio.sleep(0)
        pipe.add_response(make_response(2), is_last=True)

    run_driving_pipe(pipe, work(), "the worker", tasks=tasks)
    assert recorder.events == []
    (task,) = tasks
    await task
    assert names == ["the worker"]
    assert [message.payload for message in recorder.messages] == [b"1", b"2"]
    await asyncio.sleep(0)
    assert not tasks


@pytest.mark.parametrize("failure", [ValueError("x"), error.NotFound("x"), TypeError(), GeneratorExit()])
async def test_exception_of_the_driver_is_the_last_event(failure: BaseException) -> None:
    """Whatever it is, it arrives at the requester, and nowhere else."""
    pipe, recorder = make_watched_pipe()

    async def work() -> None:
        pipe.add_response(make_response())
        raise failure

    run_driving_pipe(pipe, work())
    await wait_until(lambda: pipe.is_ended)
    assert recorder.events[1:] == [(None, failure, True)]


async def test_driver_that_returns_without_a_last_response() -> None:
    """That is its fault, and the requester is told so instead of waiting for ever."""
    pipe, recorder = make_watched_pipe()

    async def work() -> None:
        pipe.add_response(make_response())

    run_driving_pipe(pipe, work())
    await wait_until(lambda: pipe.is_ended)
    failure = recorder.events[1].exception
    assert isinstance(failure, RuntimeError)
    assert "there was no last response to <Message GET /somewhere" in str(failure)


async def test_exception_after_the_last_event_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It comes too late for the requester, but it is a fault."""
    pipe, recorder = make_watched_pipe()

    async def work() -> None:
        pipe.add_response(make_response(), is_last=True)
        raise ValueError("in the cleanup")

    tasks: set[asyncio.Task[Any]] = set()
    run_driving_pipe(pipe, work(), tasks=tasks)
    await asyncio.gather(*tasks)
    assert len(recorder.events) == 1
    assert "ValueError: in the cleanup" in caplog.text


async def test_loss_of_interest_cancels_the_driver() -> None:
    """Its cleanup runs, and no event is left to anybody."""
    pipe, recorder = make_watched_pipe()
    steps = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    tasks: set[asyncio.Task[Any]] = set()
    run_driving_pipe(pipe, work(), tasks=tasks)
    (task,) = tasks
    await asyncio.sleep(0)
    recorder.unregister()
    await ended(task)
    assert task.cancelled()
    assert steps == ["cancelled", "cleaned up"]
    assert recorder.events == []


async def test_driver_without_interest_is_never_begun() -> None:
    """There is nobody to work for, and no warning about that."""
    began = []

    async def work() -> None:
        began.append(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = Pipe(make_request())
        run_driving_pipe(pipe, work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
    assert pipe.was_abandoned
    assert not began


@pytest.mark.parametrize("by", ["interest", "task"])
async def test_driver_that_is_cancelled_before_its_first_step(
    by: str, recwarn: pytest.WarningsRecorder
) -> None:
    """It was never awaited, and that is no reason for a warning; who still waits gets an error."""
    pipe, recorder = make_watched_pipe()
    tasks: set[asyncio.Task[Any]] = set()

    async def work() -> None:
        raise AssertionError

    run_driving_pipe(pipe, work(), tasks=tasks)
    (task,) = tasks
    if by == "interest":
        recorder.unregister()
    else:
        task.cancel()
    await ended(task)
    await asyncio.sleep(0)
    gc.collect()
    assert not recwarn.list
    assert not tasks
    if by == "task":
        (event,) = recorder.events
        assert isinstance(event.exception, error.ServiceUnavailable)


async def test_driver_that_is_cancelled_from_elsewhere() -> None:
    """The requester waits still, and gets a 5.03."""
    pipe, recorder = make_watched_pipe()
    tasks: set[asyncio.Task[Any]] = set()
    run_driving_pipe(pipe, asyncio.Event().wait(), tasks=tasks)
    (task,) = tasks
    await asyncio.sleep(0)
    task.cancel()
    await ended(task)
    (event,) = recorder.events
    assert event.exception.to_message().code.dotted == "5.03"
    assert event.is_last


async def test_driver_that_raises_cancelled_error_by_itself() -> None:
    """As when something that it waits for was cancelled: the requester does not wait for ever."""
    pipe, recorder = make_watched_pipe()

    async def work() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    run_driving_pipe(pipe, work())
    await wait_until(lambda: pipe.is_ended)
    assert isinstance(recorder.events[0].exception, error.ServiceUnavailable)


@pytest.mark.parametrize("chain", [0, 1, 3])
async def test_cleanup_after_the_last_event_is_not_cancelled(chain: int) -> None:
    """Whoever adds the last event, and however many pipes it passes."""
    outer, recorder = make_watched_pipe()
    pipe = outer
    for _ in range(chain):
        pipe = error_to_message(pipe, logging.getLogger("silent"))
    steps = []
    go_on = asyncio.Event()

    async def work() -> None:
        try:
            await go_on.wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            steps.append("cleaned up")

    tasks: set[asyncio.Task[Any]] = set()
    run_driving_pipe(pipe, work(), tasks=tasks)
    (task,) = tasks
    await asyncio.sleep(0)
    pipe.add_response(make_response(), is_last=True)  # not from within the task
    assert outer.is_ended
    assert not pipe.was_abandoned
    go_on.set()
    await ended(task)
    assert steps == ["cleaned up"]
    assert not task.cancelled()
    assert len(recorder.events) == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_driver_stops_the_loop(kind: type[BaseException]) -> None:
    """As it does everywhere; the requester is told nevertheless."""
    pipe, recorder = make_watched_pipe()

    async def work() -> None:
        raise kind

    async def main() -> None:
        run_driving_pipe(pipe, work())
        await asyncio.sleep(10)

    with pytest.raises(kind):
        asyncio.run(main())
    assert isinstance(recorder.events[0].exception, kind)


async def test_a_driver_that_closes_its_connection_goes_on() -> None:
    """Through a chain of pipes; but it is cancelled where that comes from a task or callback made by it."""
    for how in ("itself", "callback", "other"):
        outer, recorder = make_watched_pipe()
        inner = error_to_message(outer, logging.getLogger("silent"))
        steps = []

        async def work(how: str = how, outer: Pipe = outer, steps: list[str] = steps) -> None:
            loop = asyncio.get_running_loop()
            if how == "itself":
                outer._abandon(driving.get_closer())
            elif how == "callback":
                loop.call_soon(lambda: outer._abandon(driving.get_closer()))
            else:
                outer._abandon()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            steps.append("went on")

        tasks: set[asyncio.Task[Any]] = set()
        run_driving_pipe(inner, work(), tasks=tasks)
        (task,) = tasks
        await ended(task)
        assert bool(steps) == (how == "itself")
        assert task.cancelled() == (how != "itself")
        assert recorder.events == []


def test_without_a_loop_nobody_is_a_closer() -> None:
    """A connection may also be closed while the loop does not run."""
    assert driving.get_closer() is None


# -- Exceptions as messages ------------------------------------------------------------------------


class BrokenError(error.RenderableError):
    """An error that cannot say what it is.

    Args:
        result: What it says instead.
    """

    def __init__(self, result: Any) -> None:
        super().__init__("broken")
        self.result = result

    def to_message(self) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class UnprintableError(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise ValueError


def test_renderable_errors_say_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """They are no faults, so nothing is logged."""
    response = render_exception(error.NotFound("not here"), make_request(), logging.getLogger("tests"))
    assert (response.code.dotted, response.payload) == ("4.04", b"not here")
    assert not caplog.records


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("secret"),
        KeyboardInterrupt("secret"),
        UnprintableError("secret"),
        BrokenError(ValueError("secret")),
        BrokenError("secret"),
        BrokenError(Message()),
        BrokenError(make_request(uri_query=("secret",))),
    ],
)
def test_anything_else_is_5_00_without_internals(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has what the response has not."""
    response = render_exception(failure, make_request(), logging.getLogger("tests"))
    assert (response.code.dotted, response.payload) == ("5.00", b"")
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info


def test_internals_are_shown_where_that_is_wanted() -> None:
    """Type and text, if there is one."""
    log = logging.getLogger("silent")
    response = render_exception(ValueError("details"), make_request(), log, has_details=True)
    assert response.payload == b"ValueError: details"
    response = render_exception(UnprintableError(), make_request(), log, has_details=True)
    assert response.payload == b"UnprintableError"


def test_error_to_message_passes_responses_on() -> None:
    """As they are, the last one as the last."""
    old, recorder = make_watched_pipe()
    new = error_to_message(old, old.log)
    assert new.request is old.request
    first, second = make_response(1), make_response(2)
    new.add_response(first)
    new.add_response(second, is_last=True)
    assert recorder.events == [(first, None, False), (second, None, True)]
    assert new.is_ended
    assert not new.was_abandoned


def test_error_to_message_makes_responses_of_exceptions() -> None:
    """Last ones."""
    for failure, code in ((error.Forbidden(), "4.03"), (ZeroDivisionError(), "5.00")):
        old, recorder = make_watched_pipe()
        error_to_message(old, logging.getLogger("silent")).add_exception(failure)
        (event,) = recorder.events
        assert event.exception is None
        assert event.message.code.dotted == code
        assert event.is_last
        assert old.is_ended


def test_error_to_message_passes_loss_of_interest_on() -> None:
    """Also where there was none to begin with."""
    old, recorder = make_watched_pipe()
    new = error_to_message(old, old.log)
    ends = Counter()
    new.on_interest_end(ends)
    recorder.unregister()
    assert new.was_abandoned
    assert ends.calls == 1
    assert error_to_message(Pipe(make_request()), old.log).is_ended


def test_error_to_message_when_interest_ends_by_a_response() -> None:
    """The responder learns that at once."""
    old = Pipe(make_request())
    old.on_event(lambda _: False)
    new = error_to_message(old, old.log)
    new.add_response(make_response())
    assert new.was_abandoned


async def test_error_to_message_passes_back_pressure_on() -> None:
    """Whichever of both is paused, the responder waits, until both are not."""
    old, _ = make_watched_pipe()
    new = error_to_message(old, old.log)
    old.pause()
    new.pause()
    task = asyncio.create_task(new.drain())
    await asyncio.sleep(0)
    old.resume()
    await asyncio.sleep(0)
    assert not task.done()
    old.pause()
    new.resume()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert new.is_paused
    assert not task.done()
    old.resume()
    await task
    assert not new.is_paused


async def test_linked_pipe_watches_its_outlet_once() -> None:
    """However many wait, and give up waiting, nothing piles up at the outlet; and none is forgotten."""
    old, recorder = make_watched_pipe()
    new = LinkedPipe(old, old.log, make_request(accept=0))
    assert new.request.opt.accept == 0
    Recorder(new)
    old.start()
    old.pause()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(new.drain(), 0.001)
    assert len(old._on_resume or ()) == 1
    called = Counter()
    new.on_resume(lambda: (old.pause(), new.on_resume(called)))
    old.resume()
    assert called.calls == 0
    old.resume()
    assert called.calls == 1
    old.pause()
    new.on_resume(called)
    recorder.unregister()
    assert called.calls == 2


async def test_drain_of_a_linked_pipe_that_ends_alone() -> None:
    """Its outlet may stay paused."""
    old, _ = make_watched_pipe()
    new = LinkedPipe(old, old.log)
    recorder = Recorder(new)
    new.start()
    old.pause()
    task = asyncio.create_task(new.drain())
    await asyncio.sleep(0)
    recorder.unregister()
    await task


# -- Iteration -------------------------------------------------------------------------------------


async def collect(pipe: IterablePipe) -> list[events.Event]:
    return [event async for event in pipe]


async def test_iteration_ends_after_the_last_event() -> None:
    """With a last response as with an exception (a defect of aiocoap), and it stays at its end."""
    for last in (make_response(), error.NotFound()):
        pipe = IterablePipe(make_request())
        pipe.add_response(make_response(1))
        if isinstance(last, Message):
            pipe.add_response(last, is_last=True)
        else:
            pipe.add_exception(last)
        iterator = aiter(pipe)
        assert (await anext(iterator)).message.payload == b"1"
        assert last in await anext(iterator)
        for _ in range(3):
            with pytest.raises(StopAsyncIteration):
                await anext(iterator)


async def test_iteration_waits_for_events() -> None:
    """They may come one by one, while somebody waits for them."""
    pipe = IterablePipe(make_request())
    task = asyncio.create_task(collect(pipe))
    for number in range(3):
        await asyncio.sleep(0)
        pipe.add_response(make_response(number), is_last=number == 2)
    assert [event.message.payload for event in await task] == [b"0", b"1", b"2"]


async def test_a_pipe_is_iterated_over_only_once() -> None:
    """The second attempt is an error, and so are callbacks with interest."""
    pipe = IterablePipe(make_request())
    iterator = aiter(pipe)
    assert aiter(iterator) is iterator
    with pytest.raises(error.PipeStateError, match="only once"):
        aiter(pipe)
    with pytest.raises(error.PipeStateError, match="can only watch"):
        pipe.on_event(lambda _: True)


async def test_watching_an_iterable_pipe() -> None:
    """Who watches gets the events, and does not keep the pipe alive."""
    pipe = IterablePipe(make_request())
    watcher = Recorder(pipe, is_interest=False)
    pipe.add_response(make_response())
    await aiter(pipe).aclose()
    assert pipe.was_abandoned
    assert watcher.events[1:] == [TOMBSTONE]


async def test_two_tasks_wait_for_the_next_event() -> None:
    """The second one gets an error, the first one the event."""
    pipe = IterablePipe(make_request())
    iterator = aiter(pipe)
    task = asyncio.create_task(anext(iterator))
    await asyncio.sleep(0)
    with pytest.raises(error.PipeStateError, match="another task waits"):
        await anext(iterator)
    pipe.add_response(make_response(), is_last=True)
    assert (await task).is_last


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Let nothing be cleaned up but by reference counts."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_break_ends_the_interest() -> None:
    """At once, without the garbage collector (a defect of aiocoap)."""
    with no_collection():
        pipe = IterablePipe(make_request())
        ends = Counter()
        pipe.on_interest_end(ends)
        pipe.add_response(make_response())
        async for _ in pipe:
            break
        assert ends.calls == 1
        assert pipe.was_abandoned


async def test_exception_in_the_loop_ends_the_interest() -> None:
    """While it is still being handled, and kept by somebody."""
    with no_collection():
        pipe = IterablePipe(make_request())
        pipe.add_response(make_response())

        async def iterate() -> None:
            async for _ in pipe:
                raise ValueError

        with pytest.raises(ValueError) as caught:
            await iterate()
        assert pipe.was_abandoned
        del caught


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_cancelled_iteration_ends_the_interest(is_waiting: bool) -> None:
    """Though the task, with its error and all its frames, is still there."""
    with no_collection():
        pipe = IterablePipe(make_request())
        pipe.add_response(make_response())

        async def iterate() -> None:
            async for _ in pipe:
                if not is_waiting:
                    await asyncio.Event().wait()

        task = asyncio.create_task(iterate())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not pipe.is_ended
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert pipe.was_abandoned
        del caught


async def test_timeout_for_one_event_does_not_end_the_interest() -> None:
    """Waiting can be given up and begun anew, and no event is lost."""
    pipe = IterablePipe(make_request())
    iterator = aiter(pipe)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(iterator), 0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(iterator)
    task = asyncio.create_task(anext(iterator))
    await asyncio.sleep(0)
    pipe.add_response(make_response(), is_last=True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await anext(iterator)).is_last


async def test_async_with_ends_the_interest() -> None:
    """At once, whoever else holds the iterator; and events that nobody has read are dropped."""
    ends = Counter()
    async with IterablePipe(make_request()) as pipe:
        pipe.on_interest_end(ends)
        iterator = aiter(pipe)
        pipe.add_response(make_response())
        assert ends.calls == 0
    assert ends.calls == 1
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)
    async with IterablePipe(make_request()) as pipe:
        pipe.add_response(make_response(), is_last=True)
    assert not pipe.was_abandoned
    assert await collect(pipe) == []


async def test_async_with_over_a_pipe_that_was_never_handed_over() -> None:
    """There is nothing to be taken back, and nobody to be told."""
    async with IterablePipe(make_request()) as pipe:
        pass
    assert pipe.is_ended
    called = Counter()
    pipe.on_interest_end(called)
    assert called.calls == 1


async def test_aclose_twice() -> None:
    """It ends the iteration, also that of a task which waits; the second time nothing happens."""
    pipe = IterablePipe(make_request())
    ends = Counter()
    pipe.on_interest_end(ends)
    iterator = aiter(pipe)
    task = asyncio.create_task(collect_from(iterator))
    await asyncio.sleep(0)
    await iterator.aclose()
    await iterator.aclose()
    assert await task == []
    assert ends.calls == 1


async def collect_from(iterator: events.Iterator) -> list[events.Event]:
    return [event async for event in iterator]


async def test_aclose_before_the_pipe_was_handed_over() -> None:
    """The responder then learns at once that nobody is interested."""
    pipe = IterablePipe(make_request())
    await aiter(pipe).aclose()
    assert pipe.was_abandoned


async def test_abandoned_from_within_ends_the_iteration() -> None:
    """Nobody waits for what cannot come."""
    pipe = IterablePipe(make_request())
    task = asyncio.create_task(collect(pipe))
    await asyncio.sleep(0)
    pipe.start()
    pipe._abandon()
    assert await task == []


async def test_the_pipe_is_freed_without_the_garbage_collector() -> None:
    """Pipe, iterator, queue and driver form no circle that lasts."""
    with no_collection():
        pipe = IterablePipe(make_request())
        tasks: set[asyncio.Task[Any]] = set()

        async def work(pipe: Pipe) -> None:
            pipe.add_response(make_response(), is_last=True)

        run_driving_pipe(pipe, work(pipe), tasks=tasks)
        assert len(await collect(pipe)) == 1
        await asyncio.sleep(0)
        is_alive = weakref.ref(pipe)
        del pipe
        await asyncio.sleep(0)
        assert not tasks
        assert is_alive() is None


async def test_iterator_that_is_collected_in_another_thread() -> None:
    """What that leads to happens in the thread of the loop: sockets are written to from there only."""
    pipe = IterablePipe(make_request())
    threads = []
    pipe.on_interest_end(lambda: threads.append(threading.current_thread()))
    holder = [aiter(pipe)]
    thread = threading.Thread(target=holder.clear)
    thread.start()
    await asyncio.to_thread(thread.join)
    await wait_until(lambda: threads)
    assert threads == [threading.current_thread()]


def test_iterator_that_outlives_its_loop() -> None:
    """There is nobody left to be told."""

    async def main() -> events.Iterator:
        pipe = IterablePipe(make_request())
        pipe.start()
        return aiter(pipe)

    iterator = asyncio.run(main())
    del iterator


def test_iterator_without_a_loop() -> None:
    """It ends the interest where it is dropped."""
    pipe = IterablePipe(make_request())
    iterator = aiter(pipe)
    pipe.start()
    del iterator
    assert pipe.was_abandoned


def test_an_iterator_made_by_hand() -> None:
    """As the reference page has it: a queue, and what is called when the iteration was left."""
    queue = events.EventQueue()
    ends = Counter()
    iterator = IterablePipe.Iterator(queue, ends)

    async def main() -> None:
        queue.put(events.Event(None, None, False))
        await anext(iterator)
        await iterator.aclose()
        queue.put(events.Event(None, None, False))  # comes too late
        assert len(queue) == 0
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)

    asyncio.run(main())
    assert ends.calls == 1


# -- Bounds of the iteration -----------------------------------------------------------------------


async def test_slow_reader_holds_the_producer_back() -> None:
    """Never more than the window waits, nothing is lost, and everything arrives in order."""
    most = 0
    async with IterablePipe(make_request()) as pipe:

        async def produce() -> None:
            nonlocal most
            for number in range(1000):
                pipe.add_response(make_response(number), is_last=number == 999)
                most = max(most, len(pipe._queue))
                await pipe.drain()

        run_driving_pipe(pipe, produce())
        got = []
        async for event in pipe:
            got.append(event.message.payload)
            if len(got) % 100 == 0:
                for _ in range(10):
                    await asyncio.sleep(0)
    assert got == [b"%d" % number for number in range(1000)]
    assert most == WINDOW


async def test_producer_that_does_not_wait_gets_an_error() -> None:
    """After twice the window; what is in the queue arrives, and the error after it."""
    pipe = IterablePipe(make_request())
    produced = 0

    async def produce() -> None:
        nonlocal produced
        while True:
            pipe.add_response(make_response(produced))
            produced += 1

    run_driving_pipe(pipe, produce())
    got = await collect(pipe)
    assert produced == 2 * WINDOW
    assert [event.message.payload for event in got[:-1]] == [b"%d" % n for n in range(produced)]
    assert isinstance(got[-1].exception, OverloadError)
    assert "await pipe.drain()" in str(got[-1].exception)


def test_a_last_event_always_has_room() -> None:
    """A response as well as an exception."""
    for act in (
        lambda p: p.add_response(make_response(), is_last=True),
        lambda p: p.add_exception(OSError()),
    ):
        pipe = IterablePipe(make_request())
        for _ in range(2 * WINDOW):
            pipe.add_response(make_response())
        with pytest.raises(OverloadError):
            pipe.add_response(make_response())
        act(pipe)
        assert pipe.is_ended


def test_an_ended_pipe_takes_anything() -> None:
    """There is no overload where everything is dropped."""
    pipe = IterablePipe(make_request())
    for _ in range(2 * WINDOW):
        pipe.add_response(make_response())
    pipe._abandon()
    pipe.add_response(make_response())
    assert len(pipe._queue) == 0


async def test_overload_passes_linked_pipes() -> None:
    """The producer is told, wherever in the chain the queue is."""
    pipe = IterablePipe(make_request())
    inner = error_to_message(error_to_message(pipe, pipe.log), pipe.log)
    for _ in range(2 * WINDOW):
        inner.add_response(make_response())
    with pytest.raises(OverloadError):
        inner.add_response(make_response())
    assert len(pipe._queue) == 2 * WINDOW
    await aiter(pipe).aclose()
    assert inner.is_ended
    inner.add_response(make_response())


async def test_notifications_coalesce() -> None:
    """A slow reader sees the latest state; what is no notification is never replaced."""
    pipe = IterablePipe(make_request(observe=0))
    for number in range(10_000):
        pipe.add_response(make_response(number, observe=number))
    pipe.add_response(make_response("between"))
    for number in range(10_000):
        pipe.add_response(make_response(number, observe=number))
    assert not pipe.is_paused
    pipe.add_response(make_response("end", observe=1), is_last=True)
    payloads = [event.message.payload for event in await collect(pipe)]
    assert payloads == [b"9999", b"between", b"9999", b"end"]


async def test_a_notification_that_was_read_is_not_replaced() -> None:
    """Who keeps up sees each."""
    pipe = IterablePipe(make_request(observe=0))
    iterator = aiter(pipe)
    for number in range(5):
        pipe.add_response(make_response(number, observe=number))
        assert (await anext(iterator)).message.payload == b"%d" % number


@given(st.lists(st.sampled_from("nsr"), max_size=600))
def test_the_queue_is_bounded_whatever_comes(kinds: list[str]) -> None:
    """Notifications (n) and responses of a stream (s) in any order, and reading (r): the latest counts."""

    async def main() -> None:
        pipe = IterablePipe(make_request(observe=0))
        iterator = aiter(pipe)
        expected: list[bytes] = []
        last_kind: list[str] = []
        for number, kind in enumerate(kinds):
            payload = b"%d" % number
            if kind == "r":
                if expected:
                    assert (await anext(iterator)).message.payload == expected.pop(0)
                    last_kind.pop(0)
                continue
            if kind == "s" and len(expected) >= 2 * WINDOW:
                with pytest.raises(OverloadError):
                    pipe.add_response(make_response(number))
                continue
            pipe.add_response(make_response(number, observe=number if kind == "n" else None))
            if kind == "n" and last_kind[-1:] == ["n"]:
                expected[-1] = payload
            else:
                expected.append(payload)
                last_kind.append(kind)
            assert pipe.is_paused == (len(expected) >= WINDOW)
            assert len(pipe._queue) == len(expected) <= 2 * WINDOW + 1
        await iterator.aclose()

    asyncio.run(main())


def test_speed_of_a_pipe_does_not_depend_on_its_past() -> None:
    """A hundred thousand events leave nothing behind that makes the next one slower."""
    pipe = Pipe(make_request())
    pipe.on_event(lambda _: True)
    response = make_response()

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(1000):
            pipe.add_response(response)
        return time.perf_counter() - begin

    first = min(measure() for _ in range(5))
    for _ in range(50):
        measure()
    assert min(measure() for _ in range(5)) < 10 * first


# -- The names of the reference --------------------------------------------------------------------


def test_events_are_tuples() -> None:
    """Of message, exception and whether it is the last, as the reference has it."""
    event = Pipe.Event("message", "exception", True)
    assert isinstance(event, tuple)
    assert (event.message, event.exception, event.is_last) == ("message", "exception", True) == event
    assert Pipe.Event is events.Event
    assert set(pipe.__all__) == {"IterablePipe", "Pipe", "PipeState", "error_to_message", "run_driving_pipe"}
