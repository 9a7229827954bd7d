"""The states of an observed resource, as values."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from aiomas_ng.error import PipeStateError, ResponseWrappingError
from aiomas_ng.message import Message

if TYPE_CHECKING:
    from aiomas_ng._coap.requests import Request
    from aiomas_ng.content import Coder

__all__ = ["States", "decode"]


def decode(response: Message, coder: Coder) -> Any:
    """Return the value in *response*, ``None`` where there is none.

    Raises:
        DeserializationError: It cannot be decoded.
    """
    if not response.payload and response.opt.content_format is None:
        return None
    return coder.decode(response.payload, response.opt.content_format)


class States:
    """Iterates over the states of a resource; made by :meth:`aiomas_ng.protocol.Context.observe`.

    Args:
        request: The request that observes.
        coder: Decodes the states.
    """

    def __init__(self, request: Request, coder: Coder) -> None:
        assert request.observation is not None
        self.request = request
        self._coder = coder
        self._observation = request.observation
        # From the beginning, so that none is missed, and so that dropping it ends the observation.
        self._notifications = request.observation.__aiter__()
        self._has_begun = False
        request.response.add_done_callback(_note_outcome)

    def __repr__(self) -> str:
        return f"<States of {self.request!r}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self._has_begun:
            first = self.request.response
            # Not the future itself: a first state that one has not waited for long enough still comes.
            await asyncio.wait([first])
            if first.cancelled():
                raise StopAsyncIteration  # another task has ended the observation
            response = first.result()
            self._has_begun = True
        else:
            response = await self._notifications.__anext__()
        if not response.code.is_successful():
            await self.aclose()
            raise ResponseWrappingError(response)
        return decode(response, self._coder)

    async def aclose(self) -> None:
        """End the observation; safe to be called twice."""
        self._has_begun = True
        await self._notifications.aclose()
        self._observation.cancel()

    async def __aenter__(self) -> Self:
        if self._observation.cancelled and self._has_begun:
            raise PipeStateError("this observation has ended: call observe() again")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _note_outcome(response: Any) -> None:
    # Whoever iterates learns of it; where nobody does any more, nobody has to.
    if not response.cancelled():
        response.exception()
