"""Registration: each container with batteries tells a directory what can be observed there."""

from __future__ import annotations

import asyncio
from typing import Final

import aiomas_ng
from aiomas_ng import directory
from examples.virtual_power_plant.timeline import DAYS_PER_YEAR, HOURS_PER_DAY, STEP

#: Seconds of simulated time after which a registration that was not renewed ends.  It is longer than any run:
#: a simulated day takes some milliseconds, and a renewal could not keep up with that.
LIFETIME: Final = 2 * DAYS_PER_YEAR * HOURS_PER_DAY * STEP


class Herald(aiomas_ng.Agent):
    """Keeps its container registered; there is one in each container, made by :meth:`announce`.

    Args:
        container: What is registered.
        directory_url: Where.
    """

    AID: Final = "herald"

    def __init__(self, container: aiomas_ng.Container, directory_url: str) -> None:
        super().__init__(container, aid=self.AID)
        self._directory_url = directory_url
        self._registration: directory.Registration | None = None
        self._lock = asyncio.Lock()

    @classmethod
    async def announce(cls, container: aiomas_ng.Container, directory_url: str) -> None:
        """Register all resources of *container*, also those that have come since it was registered first.

        Raises:
            AiomasError: The directory cannot be reached, or does not accept the registration.
        """
        herald = container.agents.dict.get(cls.AID)
        if herald is None:
            herald = cls(container, directory_url)
        await herald._register()

    async def _register(self) -> None:
        async with self._lock:  # agents are created at the same time
            if self._registration is None:
                self._registration = await directory.register(
                    self.container, self._directory_url, lifetime=LIFETIME
                )
            else:
                await self._registration.update()

    async def on_stop(self) -> None:
        """Leave the directory."""
        if self._registration is not None:
            await self._registration.close()
