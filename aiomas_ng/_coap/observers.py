"""The observers of one resource, and how a change of its state reaches them.

A change costs as much as counting it. A task that runs while somebody has not seen the latest state goes in
rounds: it renders the state, once for all to whom it looks the same, and sends it to a few observers per turn
    of
the loop, so that neither the loop nor any observer waits for the others. Who does not read is left out until
it reads again. So each observer gets the latest state in the end, and as many of those before as there is
time for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final

from aiomas_ng._coap.admission import get_principal
from aiomas_ng._coap.observation import ServerObservation
from aiomas_ng._core.deadline import get_context_without
from aiomas_ng._io.job import pass_on_interrupt
from aiomas_ng._io.principal import CURRENT_PRINCIPAL
from aiomas_ng.message import Code, Message
from aiomas_ng.pipe import Pipe, render_exception

__all__ = ["Observer", "ObserverGroup", "Observers"]

#: Observers that are notified in one turn of the loop.
BATCH: Final = 64

#: Observe numbers have 24 bits (RFC 7641, section 3.4).
NUMBERS: Final = 2**24

Render = Callable[[Message], Awaitable[Message]]


class Observer:
    """One observer.

    Args:
        pipe: Where its notifications go.
        observation: What the resource knows it by.
    """

    __slots__ = (
        "_number",
        "ended",
        "group",
        "is_last",
        "is_ready",
        "is_waiting",
        "observation",
        "pipe",
        "seen",
        "wanted",
    )

    def __init__(self, pipe: Pipe, observation: ServerObservation) -> None:
        self.pipe = pipe
        self.observation = observation
        self.group: ObserverGroup | None = None
        self.seen = 0  # when the state was rendered that it has got, by the count of its group
        self.wanted = 0  # since when it is to get a newer one, although nothing has changed
        self.is_ready = False  # whether it has got its first response
        self.is_waiting = False  # whether its pipe will tell when there is room
        self.is_last = False  # whether the state that is wanted is the last one
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number: int | None = None

    def begin(self, response: Message) -> None:
        """Send the first response; what has happened since the observer joined then follows."""
        self.is_ready = True
        self.send(response)
        self.observation._begin(self.trigger)
        if self.group is not None and self.group.lacks_state(self):
            self.group.wake()

    def send(self, response: Message, is_last: bool = False) -> None:
        """Send *response*; an unsuccessful one ends the observation."""
        if self.group is None:
            return
        code = Code.CONTENT if response.code is None else response.code
        is_last = is_last or not code.is_successful()
        notification = response.copy(
            code=code, observe=None if is_last else self._next_number(self.group.owner)
        )
        if is_last:
            self.end()
        self.pipe.add_response(notification, is_last)

    def _next_number(self, owner: Observers) -> int:
        # Each observer counts for itself: numbers in common with others could run ahead by half of all there
        # are while it does not read, and the latest one would then look old. They begin above all that were
        # used before, because the observer may have been here already, under the same token.
        self._number = (owner.last_number if self._number is None else self._number) + 1
        owner.last_number = max(owner.last_number, self._number)
        return self._number % NUMBERS

    def end(self) -> None:
        """Let go of the observer; safe to be called twice."""
        if self.group is not None:
            self.group.leave(self)
        if not self.ended.done():
            self.ended.set_result(None)
        self.observation._finish()

    def trigger(self, response: Message | None, is_last: bool) -> None:
        """Send *response*, or the state as it is now."""
        if response is not None:
            self.send(response, is_last)
        elif self.group is not None:
            self.is_last = self.is_last or is_last
            self.group.refresh(self)


class ObserverGroup:
    """Observers to whom a resource looks the same.

    Args:
        owner: All observers of the resource.
        key: What this group is known by there.
        request: A request of one of them, which stands for all.
    """

    __slots__ = ("_changed", "_count", "_key", "_members", "_rendered", "_state", "_task", "owner", "request")

    def __init__(self, owner: Observers, key: Hashable, request: Message) -> None:
        self.owner = owner
        self.request = request
        self._key = key
        self._members: dict[Observer, None] = {}
        self._count = 0  # of reasons to render the state
        self._changed = 0  # the last one that matters to all
        self._state: Message | None = None
        self._rendered = -1  # the last one before the state was rendered
        self._task: asyncio.Task[None] | None = None

    @property
    def members(self) -> list[Observer]:
        """The observers."""
        return list(self._members)

    def join(self, observer: Observer) -> None:
        """Add *observer*, whose first response is about to be rendered."""
        self._members[observer] = None
        observer.group = self
        observer.seen = self._count

    def leave(self, observer: Observer) -> None:
        """Remove *observer*."""
        observer.group = None
        del self._members[observer]
        if not self._members and self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self.owner.left(self._key, self)

    def changed(self) -> None:
        """The state has changed."""
        self._count += 1
        self._changed = self._count
        self.wake()

    def refresh(self, observer: Observer) -> None:
        """Send *observer* the state as it is now, even if it has not changed."""
        self._count += 1
        observer.wanted = self._count
        self.wake()

    def wake(self) -> None:
        """See to it that those who have not got the latest state do."""
        if self._task is None:
            # It is for all of them, so it is not bound by what bounds the one who has woken it.
            context = get_context_without()
            self._task = asyncio.get_running_loop().create_task(self._notify(), context=context)
            self.owner.keep(self._task)

    def lacks_state(self, observer: Observer) -> bool:
        """Return whether *observer* is to be sent the state, as far as is known."""
        return observer.is_ready and not observer.is_waiting and observer.seen < self._get_need(observer)

    def _get_need(self, observer: Observer) -> int:
        """Return since when the state must have been rendered that *observer* is to have."""
        return max(self._changed, observer.wanted)

    async def _notify(self) -> None:
        try:
            while True:
                await asyncio.sleep(0)  # changes that come together are one
                behind = self._find_behind()
                if not behind:
                    return
                if self._state is None or self._rendered < max(map(self._get_need, behind)):
                    await self._render()
                assert self._state is not None
                await self._send(behind, self._state, self._rendered)
        finally:
            self._task = None

    def _find_behind(self) -> list[Observer]:
        """Return the observers that lack the latest state and have room for it; note those that have none."""
        behind = []
        for observer in filter(self.lacks_state, self._members):
            if observer.pipe.is_paused:
                self._wait_for(observer)
            else:
                behind.append(observer)
        return behind

    async def _render(self) -> None:
        count = self._count  # what happens from now on may not be in the state
        # Whoever has changed the state, it is rendered for those who observe.
        CURRENT_PRINCIPAL.set(get_principal(self.request))
        try:
            self._state = await self.owner.render(self.request)
        except Exception as exception:
            self._state = render_exception(exception, self.request, self.owner.log)
        self._rendered = count

    async def _send(self, behind: list[Observer], state: Message, rendered: int) -> None:
        for index, observer in enumerate(behind, start=1):
            # It may have left, or stopped to read, while others were notified.
            if observer.group is self and not observer.pipe.is_paused:
                observer.seen = rendered
                try:
                    observer.send(state, observer.is_last and rendered >= observer.wanted)
                except Exception:
                    self.owner.log.exception("cannot notify %r", observer.pipe)
                    observer.end()
            if index % BATCH == 0:
                await asyncio.sleep(0)

    def _wait_for(self, observer: Observer) -> None:
        observer.is_waiting = True

        def resumed() -> None:
            observer.is_waiting = False
            if observer.group is self:
                self.wake()

        observer.pipe.on_resume(resumed)


class Observers:
    """All observers of a resource.

    Args:
        render: Renders the resource's state for a request.
        on_count: Called with their number when it has changed.
        log: Where failures to notify them are noted.
    """

    __slots__ = ("_count", "_groups", "_on_count", "_tasks", "last_number", "log", "render")

    def __init__(self, render: Render, on_count: Callable[[int], object], log: Any) -> None:
        self.render = render
        self.log = log
        #: The highest number that any of them was sent.
        self.last_number = 0
        self._on_count = on_count
        self._count = 0
        self._groups: dict[Hashable, ObserverGroup] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self._count

    @property
    def members(self) -> list[Observer]:
        """All observers."""
        return [observer for group in self._groups.values() for observer in group.members]

    def join(self, key: Hashable, request: Message, observer: Observer) -> None:
        """Add an observer to the group of all with that *key*."""
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = ObserverGroup(self, key, request)
        group.join(observer)
        self._set_count(self._count + 1)

    def left(self, key: Hashable, group: ObserverGroup) -> None:
        """An observer has left *group*."""
        if not group.members:
            del self._groups[key]
        self._set_count(self._count - 1)

    def _set_count(self, count: int) -> None:
        self._count = count
        try:
            self._on_count(count)
        except BaseException as error:
            self.log.exception("update_observation_count() failed")
            pass_on_interrupt(error)

    def changed(self) -> None:
        """The state has changed."""
        for group in list(self._groups.values()):
            group.changed()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keep a task that notifies a group."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """If there are no observers any more, wait until the last notification was given up."""
        if not self._count and self._tasks:
            await asyncio.wait(self._tasks)
