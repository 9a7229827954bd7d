"""Watching states of charge: what the controller sees of the batteries, beside what they tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import aiomas_ng
from aiomas_ng import directory
from aiomas_ng.protocol import Context
from examples.virtual_power_plant.messages import STATE_OF_CHARGE

#: Seconds, of real time, within which a change has to be seen.
LONGEST_WAIT: Final = 30.0


class StateMonitor:
    """Observes the state of charge of some batteries, and keeps the latest of each; made by :meth:`create`.

    Nobody asks for a state: a battery whose state of charge has changed notifies who observes it.

    Args:
        context: Sends the requests.
        urls: Where the states of charge are, in the order of the batteries.
    """

    def __init__(self, context: Context, urls: Sequence[str]) -> None:
        #: How many states have come, the first one of each battery included.
        self.count = 0
        self._urls = urls
        self._latest: list[float | None] = [None] * len(urls)
        self._failures: dict[int, aiomas_ng.AiomasError] = {}
        self._news = asyncio.Event()
        # In a simulation, what is behind a lost connection does not come back as it was.
        context.patience = 0.0
        self._tasks = [context.spawn(self._observe(context, i)) for i in range(len(urls))]

    @classmethod
    async def create(
        cls, context: Context, batteries: Sequence[str], directory_url: str | None
    ) -> StateMonitor:
        """Look the states of charge of all *batteries* up, and observe them.

        Args:
            context: Sends the requests.
            batteries: Their addresses.
            directory_url: Where they are registered; ``None`` if there are no batteries.

        Raises:
            LookupError: A battery is not registered.
            AiomasError: The directory cannot be reached, or does not answer as one.
        """
        if not batteries:
            return cls(context, [])
        if directory_url is None:
            raise LookupError(f"nobody has said in which directory to look up {', '.join(batteries)}")
        links = await directory.lookup(context, directory_url, rt=STATE_OF_CHARGE)
        # A resource lies below the address of its agent.
        found = {link.href.rpartition("/")[0]: link.href for link in links}
        missing = [battery for battery in batteries if battery not in found]
        if missing:
            raise LookupError(f"there is no state of charge of {', '.join(missing)} in {directory_url}")
        return cls(context, [found[battery] for battery in batteries])

    async def close(self) -> None:
        """End all observations; safe to be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_for(self, expected: list[float]) -> None:
        """Wait until the states of charge are seen to be as *expected*, to the last digit.

        Notifications come when they come, maybe later than the answer to the call that has changed the state.

        Args:
            expected: One for each battery, in their order.

        Raises:
            RuntimeError: A battery cannot be observed any more, or its state of charge is still another one
                after :data:`LONGEST_WAIT`.
        """
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                while self._latest != expected:
                    self._check(expected)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            texts = [
                f"{url} is {seen}, but what its battery has told makes {told}"
                for url, seen, told in zip(self._urls, self._latest, expected, strict=True)
                if seen != told
            ]
            raise RuntimeError(f"after {LONGEST_WAIT} s, {'; '.join(texts)}") from None

    def _check(self, expected: Sequence[float]) -> None:
        """Raise an error if what is waited for cannot come any more."""
        for i, failure in self._failures.items():
            if self._latest[i] != expected[i]:
                raise RuntimeError(f"{self._urls[i]} cannot be observed any more: {failure}") from failure

    async def _observe(self, context: Context, number: int) -> None:
        try:
            # Leaving it, by cancellation too, tells the battery that nobody wants to be notified any more.
            async with context.observe(self._urls[number]) as states:
                async for state in states:
                    self._latest[number] = state
                    self.count += 1
                    self._news.set()
        except aiomas_ng.AiomasError as failure:
            self._failures[number] = failure
            self._news.set()
