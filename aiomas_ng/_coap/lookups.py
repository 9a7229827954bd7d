"""Look-ups in a directory: once, and observed (RFC 9176, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from aiomas_ng import linkformat
from aiomas_ng._coap.verbs import CRITERIA
from aiomas_ng._core.addresses import parse_url
from aiomas_ng.linkformat import Link
from aiomas_ng.message import ContentFormat
from aiomas_ng.protocol import Context

if TYPE_CHECKING:
    from aiomas_ng._coap.states import States

__all__ = ["Lookups", "lookup", "lookup_endpoints", "observe_endpoints", "observe_lookup"]

LINK_FORMAT: Final = int(ContentFormat.LINK_FORMAT)


async def lookup(
    context: Context, directory_url: str, *, timeout: float | None = None, **criteria: Any
) -> list[Link]:
    """Return links to all resources in a directory that meet all *criteria*.

    Args:
        context: Sends the request; that of a container is ``container.context``.
        directory_url: URL of the directory, ``tcp://host:port/directory``.
        timeout: Seconds to wait; ``None`` for no limit.
        **criteria: Attributes of the links, or of the endpoints that they belong to, for example
            ``rt="energy.soc"`` or ``d="north"``; an asterisk at the end stands for any text. ``if_`` stands
            for ``if``. ``count`` is the number of links wanted at most, ``page`` says which of them, from 0.

    Returns:
        The links, with URLs in ``href`` that :meth:`~aiomas_ng.protocol.Context.get` takes, in the order in
        which their endpoints have registered.

    Raises:
        ResponseWrappingError: There is no directory (4.04), or a criterion is malformed (4.00).
        NetworkError, RequestTimedOut: As for :meth:`~aiomas_ng.protocol.Context.get`.
        LinkFormatError: The answer is no list of links (a ``ValueError``).
        OptionError: A criterion has more than 255 bytes (a ``ValueError``).
    """
    return await _look_up(context, directory_url, "res", criteria, timeout)


async def lookup_endpoints(
    context: Context, directory_url: str, *, timeout: float | None = None, **criteria: Any
) -> list[Link]:
    """Return links to all registrations in a directory that meet all *criteria*.

    Args and errors are as for :func:`lookup`; an endpoint also meets a criterion that one of its links meets.

    Returns:
        The links. Their attributes describe the endpoint: ``ep`` its name, ``d`` its sector, ``base`` the URL
        where it is, and what it was registered with.
    """
    return await _look_up(context, directory_url, "ep", criteria, timeout)


def observe_lookup(
    context: Context, directory_url: str, *, timeout: float | None = None, **criteria: Any
) -> Lookups:
    """Return an iterator over what :func:`lookup` finds, from now on, whenever that changes.

    ::

        async with observe_lookup(context, directory_url, rt="energy.soc") as lookups:
            async for links in lookups:
                ...

    Who iterates slowly gets the latest result and not each. Leaving the iteration ends the observation.

    Args:
        context, directory_url, criteria: As for :func:`lookup`.
        timeout: Seconds to wait for the first result; ``None`` for no limit.

    The iteration raises what :func:`lookup` does, and what that of
    :meth:`~aiomas_ng.protocol.Context.observe` does.
    """
    return Lookups(context, directory_url, "res", criteria, timeout)


def observe_endpoints(
    context: Context, directory_url: str, *, timeout: float | None = None, **criteria: Any
) -> Lookups:
    """Return an iterator over what :func:`lookup_endpoints` finds; see :func:`observe_lookup`."""
    return Lookups(context, directory_url, "ep", criteria, timeout)


class Lookups:
    """Iterates over the results of a look-up; made by :func:`observe_lookup` and :func:`observe_endpoints`.

    Args:
        context: Sends the request.
        directory_url: URL of the directory.
        kind: ``"res"`` or ``"ep"``.
        criteria: What to look for.
        timeout: Seconds to wait for the first result.
    """

    def __init__(
        self,
        context: Context,
        directory_url: str,
        kind: str,
        criteria: dict[str, Any],
        timeout: float | None,
    ) -> None:
        self._base = directory_url
        self._last: str | None = None
        self._states: States = context.observe(
            _get_lookup_url(directory_url, kind),
            accept=LINK_FORMAT,
            timeout=timeout,
            uri_query=_make_criteria(criteria),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self._base}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Link]:
        # A notification only says that something has changed in the directory, which may be something else.
        while (text := _as_text(await self._states.__anext__())) == self._last:
            pass
        self._last = text
        return _parse(text, self._base)

    async def aclose(self) -> None:
        """End the observation; safe to be called twice."""
        await self._states.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _look_up(
    context: Context, directory_url: str, kind: str, criteria: dict[str, Any], timeout: float | None
) -> list[Link]:
    value = await context.get(
        _get_lookup_url(directory_url, kind),
        accept=LINK_FORMAT,
        timeout=timeout,
        uri_query=_make_criteria(criteria),
    )
    return _parse(_as_text(value), directory_url)


def _get_lookup_url(directory_url: str, kind: str) -> str:
    parse_url(directory_url)  # raises an error for what is none
    return f"{directory_url.rstrip('/')}/rd-lookup/{kind}"


def _make_criteria(criteria: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{CRITERIA.get(name, name)}={value}" for name, value in criteria.items())


def _as_text(value: Any) -> str:
    """Return the text of links that a directory has answered with."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise linkformat.LinkFormatError("the answer is not in link format")
    return value


def _parse(text: str, base: str) -> list[Link]:
    return list(linkformat.parse(text).resolve(base))
