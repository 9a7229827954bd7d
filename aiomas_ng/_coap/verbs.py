"""Requests in values instead of messages: the verbs of a context."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

from aiomas_ng import linkformat
from aiomas_ng._coap.states import States, decode
from aiomas_ng._core.codec_errors import short
from aiomas_ng.content import Coder
from aiomas_ng.exceptions import DeserializationError
from aiomas_ng.linkformat import Link, LinkFormat
from aiomas_ng.message import Code, ContentFormat, Message

if TYPE_CHECKING:
    from aiomas_ng._coap.requests import Request

__all__ = ["Verbs"]

#: Names of the query parameters of a discovery whose names Python does not allow.
CRITERIA: Final = {"if_": "if"}


class Verbs:
    """What a context can do with the state of a resource, and how it finds resources."""

    #: Encodes and decodes values.
    coder: Coder

    loop: asyncio.AbstractEventLoop

    @abstractmethod
    def request(
        self, request_message: Message, handle_blockwise: bool = True, *, timeout: float | None = None
    ) -> Request:
        """Send *request_message*."""

    async def get(
        self, url: str, *, accept: int | None = None, timeout: float | None = None, **options: Any
    ) -> Any:
        """Return the state of the resource at *url*, decoded by its content format.

        Args:
            url: ``tcp://host:port/agent/resource?query``, ``ipc://[path]/agent/resource``, …
            accept: The content format wanted; by default the server chooses.
            timeout: Seconds to wait; ``None`` for no limit.
            **options: Further options of the request, by name.

        Raises:
            ResponseWrappingError: The server says no; ``code`` says why, 4.04 for example.
            NetworkError: There is no way to the server, or the connection was lost.
            RequestTimedOut: It took too long (a ``TimeoutError``).
            DeserializationError: What came cannot be decoded.

        Cancelling it is safe and stops the work at the server.
        """
        return await self._do(Message(Code.GET, uri=url, accept=accept, **options), timeout)

    async def put(
        self,
        url: str,
        value: Any,
        *,
        content_format: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """Set the state of the resource at *url* to *value*; return what the server answers, ``None`` for
        nothing.

        Args:
            url: As for :meth:`get`.
            value: Anything that the content format can carry.
            content_format: By default text for a string, octets for bytes, else JSON.
            timeout: Seconds to wait; ``None`` for no limit.
            **options: Further options of the request, by name, such as ``if_match``.

        Raises:
            SerializationError: *value* does not fit the format.
            ResponseWrappingError, NetworkError, RequestTimedOut, DeserializationError: As for :meth:`get`.
        """
        return await self._do(self._encode(Code.PUT, url, value, content_format, options), timeout)

    async def post(
        self,
        url: str,
        value: Any = None,
        *,
        content_format: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """Let the resource at *url* process *value*; return what it answers, ``None`` for nothing.

        Args and errors are as for :meth:`put`; without a value, nothing is sent along.
        """
        return await self._do(self._encode(Code.POST, url, value, content_format, options), timeout)

    async def delete(self, url: str, *, timeout: float | None = None, **options: Any) -> Any:
        """Delete the resource at *url*; return what the server answers, ``None`` for nothing.

        Args and errors are as for :meth:`get`.
        """
        return await self._do(Message(Code.DELETE, uri=url, **options), timeout)

    def observe(
        self, url: str, *, accept: int | None = None, timeout: float | None = None, **options: Any
    ) -> States:
        """Return an iterator over the states of the resource at *url*, from the present one on.

        Who iterates slowly gets the latest state and not each. Leaving the iteration ends the observation, at
        the
        server too: at once at the end of ``async with``, else as soon as the iterator is dropped. A
        connection that is lost is made anew.

        Args:
            url: As for :meth:`get`.
            accept: As for :meth:`get`.
            timeout: Seconds to wait for the first state; ``None`` for no limit.
            **options: Further options of the request, by name.

        The iteration raises what :meth:`get` does, :exc:`~aiomas_ng.error.NotObservable` after the first
        state of a resource that cannot be observed, and :exc:`~aiomas_ng.error.ObservationCancelled` if the
        server ends it.
        """
        message = Message(Code.GET, uri=url, accept=accept, observe=0, **options)
        return States(self.request(message, timeout=timeout), self.coder)

    async def discover(self, *urls: str, timeout: float | None = None, **criteria: Any) -> list[Link]:
        """Ask the servers or agents at *urls* for links to their resources that meet all *criteria*.

        Args:
            *urls: Base URLs of containers, ``tcp://host:port/``, or URLs of agents, for theirs alone.
            timeout: Seconds to wait for each; ``None`` for no limit.
            **criteria: Attributes of the links, for example ``rt="energy.soc"``; an asterisk at the end
                stands for any text. ``if_`` stands for ``if``.

        Returns:
            The links, with URLs in ``href`` that :meth:`get` takes.

        Raises:
            ResponseWrappingError, NetworkError, RequestTimedOut: As for :meth:`get`, from any of the servers.
            DeserializationError: An answer is no list of links.
        """
        for url in urls:
            if not isinstance(url, str):
                raise TypeError(
                    f"discover() takes URLs one by one, as in discover(url, url), not {short(url)}"
                )
        query = tuple(f"{CRITERIA.get(name, name)}={value}" for name, value in criteria.items())
        tasks = [self.loop.create_task(self._discover_at(url, query, timeout)) for url in urls]
        try:
            found = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:  # for gather leaves them alone when one has failed
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return [link for links in found for link in links]

    async def _discover_at(self, url: str, query: tuple[str, ...], timeout: float | None) -> LinkFormat:
        message = Message(
            Code.GET,
            uri=f"{url.rstrip('/')}/.well-known/core",
            accept=int(ContentFormat.LINK_FORMAT),
            uri_query=query,
        )
        response = await self.request(message, timeout=timeout).response_raising
        try:
            return linkformat.parse(response.payload).resolve(url)
        except ValueError as failure:
            raise DeserializationError(f"{url} has not answered with a list of links: {failure}") from failure

    def _encode(
        self, code: Code, url: str, value: Any, content_format: int | None, options: dict[str, Any]
    ) -> Message:
        if value is None and content_format is None and code == Code.POST:
            return Message(code, uri=url, **options)
        payload, content_format = self.coder.encode(value, content_format)
        return Message(code, payload, url, content_format=content_format, **options)

    async def _do(self, message: Message, timeout: float | None) -> Any:
        response = await self.request(message, timeout=timeout).response_raising
        return decode(response, self.coder)
