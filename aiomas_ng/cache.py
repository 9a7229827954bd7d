"""A cache of responses (RFC 7252, sections 5.6 to 5.9, and RFC 7641).

::

    context = await Context.create_client_context(cache=Cache())
    ...
    print(context.cache.figures)

A request is answered from the cache while the response to an earlier one like it is *fresh*: for the Max-Age
that the server gave it, or for as long as it is observed. A response that is no longer fresh, but has an
entity tag, is *revalidated*: the request goes out with the tag, and the server says 2.03 in place of sending
all of it again.

What is kept:

- Responses 2.05 to GET and FETCH. Those with a Max-Age of 0 only if they have a tag.  Errors are not kept,
  though the RFC would allow it: a resource that has just been added should be seen at once.
- By server, and by all that tells requests from each other (the Cache-Key): method, path, query, format asked
  for, the body of a FETCH.
- Nothing of requests with a condition, for single blocks, or with options that are about this one exchange.

What ends freshness:

- Max-Age, measured by the clock of the cache; in simulated time it is simulated seconds.
- Any PUT, POST, DELETE, PATCH or iPATCH of ours to the same path, whatever the query: when it is sent, and
  again when it is answered or has failed.  A 2.01 also concerns the path that it names. Responses to requests
  that were under way meanwhile are not kept, for nobody knows which state they have.
- The end of an observation. While it lasts, the latest notification is the state, even beyond its Max-Age:
  our connections are reliable and keep the order, the server sends every change of the state (or skips to a
  later one), and when the connection ends, so does the observation.  Then the age counts from the last
  notification.

The memory of the cache is bounded; the least recently used responses give way. Who gets a response may change
it; the cache keeps its own.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from aiomas_ng._core.options import is_unsafe
from aiomas_ng._core.response_store import ResponseStore
from aiomas_ng.clocks import AsyncioClock, BaseClock
from aiomas_ng.message import Code, Message, OptionNumber, Options

__all__ = ["Cache", "Figures", "Ticket"]

MIB: Final = 2**20

#: What an entry takes besides payload and options, in bytes, as measured: some objects and their keys.
ENTRY_COST: Final = 1536

#: What an option takes besides its value.
OPTION_COST: Final = 64

#: Max-Age of a response that has none, in seconds (RFC 7252, section 5.10.5).
DEFAULT_MAX_AGE: Final = 60

#: Options of a request that do not tell which response fits: they say what the requester has already, that it
#: wants to go on hearing of it, how far it may be forwarded, and which transfer of blocks it belongs to.
NOT_IN_KEY: Final = (
    OptionNumber.ETAG,
    OptionNumber.OBSERVE,
    OptionNumber.HOP_LIMIT,
    OptionNumber.REQUEST_TAG,
)

#: Options of a response that are about this one exchange.
_NOT_KEPT: Final = (OptionNumber.OBSERVE, OptionNumber.SIZE2, OptionNumber.ECHO)

_CACHED_METHODS: Final = frozenset({Code.GET, Code.FETCH})
_UNSAFE_METHODS: Final = frozenset({Code.POST, Code.PUT, Code.DELETE, Code.PATCH, Code.iPATCH})


@dataclass(frozen=True, slots=True)
class Figures:
    """What a cache has done and holds.

    Attributes:
        hits: Requests that were answered without asking the server.
        misses: Requests that were not, though they could have been.
        revalidations: Those of the misses for which the server said that what we had is valid still.
        stored: Responses and notifications that were kept.
        evicted: Responses that gave way to others.
        invalidated: Responses that lost their freshness because of an unsafe method.
        size: Bytes of what is held.
        entries: Number of responses that are held.
    """

    hits: int
    misses: int
    revalidations: int
    stored: int
    evicted: int
    invalidated: int
    size: int
    entries: int


class _Scope:
    """One path of one server; lives as long as something refers to it."""

    __slots__ = ("__weakref__", "version")

    def __init__(self) -> None:
        self.version = 0  # raised by each change of ours


class _Entry:
    """A response that is kept, and from when on it counts."""

    __slots__ = ("etag", "is_invalid", "max_age", "response", "serial", "time")

    def __init__(self, response: Message, max_age: int, time: float, serial: int) -> None:
        self.response = response
        self.etag = response.opt.etag
        self.max_age = max_age
        self.time = time  # when it came, or was last found valid
        self.serial = serial  # of the observation that it came by, else 0
        self.is_invalid = False

    def is_fresh(self, now: float, is_observed: bool) -> bool:
        # A Max-Age of 0 asks not to be used again, observed or not.
        return not self.is_invalid and self.max_age > 0 and (is_observed or now - self.time < self.max_age)

    def answer(self, request: Message, now: float) -> Message:
        """Return a response of its own to *request*: 2.03 to who has this version already, else all of it."""
        if self.etag is not None and self.etag in request.opt.etags:
            response = Message(Code.VALID, etag=self.etag)
        else:
            response = self.response.copy()
        # What is left in whole seconds; rather less than more, for who gets it may keep it as well.
        response.opt.max_age = max(0, math.floor(self.max_age - (now - self.time)))
        response.token = request.token
        response.remote = request.remote
        response.request = request
        return response


class _Watch:
    """The observations of one key."""

    __slots__ = ("count", "serial")

    def __init__(self) -> None:
        self.count = 0
        self.serial = 0  # when we last heard by one of them


class Ticket:
    """A request that the cache wants to know the end of; made by :meth:`Cache.prepare`."""

    __slots__ = (
        "_entry",
        "_etags",
        "_is_watching",
        "_key",
        "_name",
        "_request",
        "_scope",
        "_serial",
        "_version",
    )

    def __init__(self, name: Hashable, request: Message, key: Hashable, scope: _Scope, serial: int) -> None:
        self._name = name
        self._request = request
        self._key = key  # None: the request is not one whose response is kept
        self._scope = scope
        self._version = scope.version
        self._serial = serial
        self._entry: _Entry | None = None  # what is revalidated
        self._etags = request.opt.etags  # those that the application has by itself
        self._is_watching = False

    def __repr__(self) -> str:
        return f"<Ticket of {self._request!r}>"


class Cache:
    """Responses of servers, while they are fresh or can be revalidated.

    A context drives it: :meth:`prepare` before a request is sent; :meth:`settle` with its response;
    :meth:`notify` with each notification; :meth:`unobserve` when there will be none; :meth:`abandon` when
    there was no response. Several contexts may share one cache.

    Args:
        clock: What ages are measured by; by default the clock of the first context that uses the cache, else
            real time.
        max_size: Bytes that it may hold, with all that belongs to a response.  One that would take more than
            a quarter of them is not kept.
        max_entries: Responses that it may hold.

    Raises:
        ValueError: A bound is not positive.
    """

    def __init__(
        self,
        clock: BaseClock | None = None,
        *,
        max_size: int = 16 * MIB,
        max_entries: int = 10_000,
    ) -> None:
        self._clock = clock
        self._store: ResponseStore[_Entry] = ResponseStore(max_size, max_entries)
        self._scopes: weakref.WeakValueDictionary[Hashable, _Scope] = weakref.WeakValueDictionary()
        self._watches: dict[Hashable, _Watch] = {}
        self._serials = itertools.count(1)
        self._hits = 0
        self._misses = 0
        self._revalidations = 0
        self._stored = 0
        self._invalidated = 0

    def __repr__(self) -> str:
        return f"<Cache of {len(self._store)} responses, {self._store.size} bytes>"

    @property
    def clock(self) -> BaseClock:
        """What ages are measured by."""
        if self._clock is None:
            self._clock = AsyncioClock()
        return self._clock

    def use_clock(self, clock: BaseClock) -> None:
        """Measure ages by *clock*, unless a clock was chosen before."""
        if self._clock is None:
            self._clock = clock

    @property
    def figures(self) -> Figures:
        """What the cache has done so far, and what it holds."""
        store = self._store
        return Figures(
            hits=self._hits,
            misses=self._misses,
            revalidations=self._revalidations,
            stored=self._stored,
            evicted=store.evicted,
            invalidated=self._invalidated,
            size=store.size,
            entries=len(store),
        )

    def clear(self) -> None:
        """Drop all responses; also those of requests that are under way now will not be kept.

        Observations go on and fill the cache again.  The figures keep counting.
        """
        self._store.clear()
        for scope in list(self._scopes.values()):
            scope.version += 1

    # Before a request

    def prepare(
        self, name: Hashable | None, request: Message
    ) -> tuple[Message | None, Message, Ticket | None]:
        """Look for the response to *request*, and say what is to be sent in case there is none.

        Args:
            name: What tells the server from others, such as its URL; ``None`` for one that is not cached.
            request: The request; it is not changed.

        Returns:
            The response, if there is a fresh one, or ``None``.  Then the request to send: *request* itself,
            or a copy with entity tags.  Then a ticket for what comes of it, or ``None`` if the cache need not
            know.
        """
        if name is None:
            return None, request, None
        if request.code in _UNSAFE_METHODS:
            self.invalidate(name, request)
            return None, request, self._make_ticket(name, request, None)
        if not _is_cacheable(request):
            return None, request, None
        key = (name, request.get_cache_key(NOT_IN_KEY))
        if request.opt.observe is not None:
            # It has to reach the server. Tags are not added either: the server might name a state by its tag
            # in any later notification, and nobody keeps all of them.
            return None, request, self._make_ticket(name, request, key)
        entry = self._store.get(key)
        if entry is not None:
            now = self.clock.time()
            if entry.is_fresh(now, key in self._watches):
                self._hits += 1
                return entry.answer(request, now), request, None
        self._misses += 1
        ticket = self._make_ticket(name, request, key)
        if entry is not None and entry.etag is not None:
            ticket._entry = entry
            if entry.etag not in ticket._etags:
                request = request.copy(etags=(entry.etag, *ticket._etags))
        return None, request, ticket

    def _make_ticket(self, name: Hashable, request: Message, key: Hashable) -> Ticket:
        place = (name, request.opt.uri_path)
        scope = self._scopes.get(place)
        if scope is None:
            scope = self._scopes[place] = _Scope()
        return Ticket(name, request, key, scope, next(self._serials))

    # After it

    def settle(self, ticket: Ticket, response: Message, *, is_observed: bool = False) -> Message:
        """Take note of the response to the request of *ticket*, and return what the application is to get.

        That is *response* itself, unless the server has only confirmed what we have: then it is all of that.

        Args:
            ticket: From :meth:`prepare`.
            response: The response, with the whole of its body.
            is_observed: Whether notifications will follow, until :meth:`unobserve`.
        """
        if ticket._key is None:
            self.abandon(ticket)
            if response.code == Code.CREATED and response.opt.location_path:
                self._invalidate(self._scopes.get((ticket._name, response.opt.location_path)))
            return response
        is_current = self._is_current(ticket)
        if is_observed:
            if not is_current and ticket._key not in self._watches:
                # What is held may be newer than the response or older: nothing would tell us.
                self._store.discard(ticket._key)
            self._watch(ticket)
        return self._take(ticket, response) if is_current else self._pass(ticket, response)

    def notify(self, ticket: Ticket, response: Message) -> Message:
        """Take note of a notification for the request of *ticket*, and return what the application is to get.

        From it on the observation counts as one that lasts, also after :meth:`unobserve`: it may have been
        registered anew.
        """
        if ticket._key is None:
            return response
        self._watch(ticket)
        return self._take(ticket, response)

    def unobserve(self, ticket: Ticket) -> None:
        """Take note that there will be no notification for *ticket* any more.

        The connection may be lost, or the observation cancelled by either side.  Calling it again does no
        harm.
        """
        if ticket._is_watching:
            ticket._is_watching = False
            watch = self._watches[ticket._key]
            watch.count -= 1
            if not watch.count:
                del self._watches[ticket._key]

    def abandon(self, ticket: Ticket) -> None:
        """Take note that the request of *ticket* has failed, or was cancelled.

        An unsafe one may have been executed all the same, so that what it concerns is not fresh any more.
        """
        self.unobserve(ticket)
        if ticket._key is None:
            self._invalidate(ticket._scope)

    def invalidate(self, name: Hashable, request: Message) -> None:
        """End the freshness of all that the server *name* has at the path of *request*, whatever the query.

        What has an entity tag is kept, for it may be valid still.
        """
        self._invalidate(self._scopes.get((name, request.opt.uri_path)))

    def _invalidate(self, scope: _Scope | None) -> None:
        if scope is None:
            return  # nothing is held, and nothing under way
        scope.version += 1
        for key, entry in self._store.items_of(scope):
            if not entry.is_invalid:
                self._invalidated += 1
            entry.is_invalid = True
            if entry.etag is None:
                self._store.discard(key)

    def _watch(self, ticket: Ticket) -> None:
        watch = self._watches.setdefault(ticket._key, _Watch())
        if not ticket._is_watching:
            ticket._is_watching = True
            watch.count += 1
        # From here on, responses to requests that were sent before may be older.
        watch.serial = ticket._serial = next(self._serials)

    def _is_current(self, ticket: Ticket) -> bool:
        """Return whether a response to *ticket* can be newer than what is known otherwise.

        Not so if we have changed the state since the request was sent, or an observation has told us of it.
        Of two plain requests, the response that comes last counts, as it does for the application.
        """
        if ticket._version != ticket._scope.version:
            return False
        watch = self._watches.get(ticket._key)
        if watch is not None and ticket._serial < watch.serial:
            return False
        entry = self._store.peek(ticket._key)
        return entry is None or ticket._serial >= entry.serial

    def _take(self, ticket: Ticket, response: Message) -> Message:
        """Keep *response* if it is to be kept; return what the application is to get."""
        if response.opt.block2 is not None:
            if ticket._is_watching:
                self._store.discard(ticket._key)  # it is out of date
            return response  # a part of something
        if response.code == Code.CONTENT:
            entry = self._make_entry(ticket, response, _get_max_age(response))
            if entry.max_age or entry.etag is not None:
                self._stored += self._put(ticket, entry)
            else:
                self._store.discard(ticket._key)  # what was there is out of date
        elif response.code == Code.VALID:
            confirmed = self._confirm(ticket, response)
            if confirmed is None:
                self._store.discard(ticket._key)  # it is of another version
                return response
            self._put(ticket, confirmed)
            return _expand(ticket, response, confirmed)
        elif response.code.class_ == 4:
            # There is no such state any more, or not for us.  With 5.xx the server only cannot say so now.
            self._store.discard(ticket._key)
        return response

    def _pass(self, ticket: Ticket, response: Message) -> Message:
        """Return what the application is to get, and keep nothing."""
        confirmed = self._confirm(ticket, response) if response.code == Code.VALID else None
        return response if confirmed is None else _expand(ticket, response, confirmed)

    def _confirm(self, ticket: Ticket, response: Message) -> _Entry | None:
        """Return what the 2.03 *response* confirms, as from now on; ``None`` if we do not have it."""
        etag = response.opt.etag
        entry = ticket._entry
        if entry is not None and (etag == entry.etag or (etag is None and not ticket._etags)):
            # It may have given way meanwhile. Without a tag, which it should have, it can mean this one only.
            self._revalidations += 1
        else:
            entry = self._store.peek(ticket._key)
            if entry is None or etag is None or entry.etag != etag:
                return None
        confirmed = self._make_entry(ticket, entry.response, _get_max_age(response))
        _update(confirmed.response.opt, response.opt)
        return confirmed

    def _make_entry(self, ticket: Ticket, response: Message, max_age: int) -> _Entry:
        kept = response.copy(payload=bytes(response.payload), token=b"", remote=None)
        kept.request = None
        for number in _NOT_KEPT:
            kept.opt.delete_option(number)
        return _Entry(kept, max_age, self.clock.time(), ticket._serial if ticket._is_watching else 0)

    def _put(self, ticket: Ticket, entry: _Entry) -> bool:
        request = ticket._request
        size = ENTRY_COST + len(entry.response.payload)
        size += _get_size(entry.response.opt) + _get_size(request.opt)
        if request.code != Code.GET:
            size += len(request.payload)  # it is part of the key
        return self._store.put(ticket._key, ticket._scope, entry, size)


def _is_cacheable(request: Message) -> bool:
    """Return whether the response to *request* depends on nothing but the Cache-Key and the state."""
    opt = request.opt
    return (
        request.code in _CACHED_METHODS
        and opt.block1 is None
        and opt.block2 is None
        and opt.observe != 1  # it ends an observation
        and opt.no_response is None
        and opt.echo is None
        and opt.proxy_uri is None
        and opt.proxy_scheme is None
        and not opt.if_match
        and not opt.if_none_match
    )


def _expand(ticket: Ticket, response: Message, entry: _Entry) -> Message:
    """Return what the application is to get for the 2.03 *response*, which may be what it has asked for."""
    if response.opt.etag in ticket._etags:
        return response
    answer = entry.answer(ticket._request, entry.time)
    answer.opt.observe = response.opt.observe
    answer.remote = response.remote
    return answer


def _update(kept: Options, given: Options) -> None:
    """Replace the options that a 2.03 gives anew (RFC 7252, section 5.9.1.3)."""
    for number in {number for number, _ in given.option_list()}:
        if not is_unsafe(number) and number not in _NOT_KEPT:
            kept.delete_option(number)
            for value in given.get_option(number):
                kept.add_option(number, value)


def _get_max_age(response: Message) -> int:
    max_age = response.opt.max_age
    return DEFAULT_MAX_AGE if max_age is None else max_age


def _get_size(opt: Options) -> int:
    flat = opt.to_compact()
    values = sum([len(value) for value in flat if isinstance(value, str | bytes)])
    return values + OPTION_COST * (len(flat) // 2)
