"""Functions of the user that are told of changes: each of all of them, in their order, whatever the functions
do."""

from __future__ import annotations

import collections
import contextvars
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

from aiomas_ng._core.deadline import get_context_without

__all__ = ["Listeners"]

logger = logging.getLogger("aiomas_ng.liveness")

#: Registrations at one place; beyond, somebody registers again and again.
MAX_LISTENERS: Final = 10_000


class Listeners:
    """Functions that want to be told of something.

    Args:
        what: What they are called, for errors and the log.
    """

    __slots__ = ("_entries", "_is_telling", "_news", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._entries: dict[object, tuple[Callable[..., Any], contextvars.Context]] = {}
        self._news: collections.deque[tuple[Any, ...]] = collections.deque()
        self._is_telling = False

    def add(self, callback: Callable[..., Any]) -> Callable[[], None]:
        """Tell *callback* from now on; return a function that ends this, and may be called twice.

        It runs in the context (:mod:`contextvars`) that it was added in, without a deadline: it has nothing
        to do with who happens to bring about the news.

        Raises:
            TypeError: *callback* is no function, or is a coroutine function.
            RuntimeError: There are thousands of them already.
        """
        if inspect.iscoroutinefunction(callback) or not callable(callback):
            raise TypeError(f"the {self._what} must be a plain function but is {callback!r}")
        if len(self._entries) >= MAX_LISTENERS:
            raise RuntimeError(f"{MAX_LISTENERS} functions are registered as {self._what} already")
        key = object()
        self._entries[key] = callback, get_context_without() or contextvars.copy_context()

        def remove() -> None:
            self._entries.pop(key, None)

        return remove

    def tell(self, *news: Any) -> None:
        """Call all functions with *news*. What they themselves bring about is told after it."""
        if not self._entries:
            return
        self._news.append(news)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._news:
                news = self._news.popleft()
                for key, (callback, context) in list(self._entries.items()):
                    if key in self._entries:  # else another one has removed it
                        context.run(self._call, callback, news)
        finally:
            self._is_telling = False
            self._news.clear()

    def _call(self, callback: Callable[..., Any], news: tuple[Any, ...]) -> None:
        try:
            callback(*news)
        except Exception:
            logger.exception("the %s %r failed", self._what, callback)
