"""Measures what a large transfer does to small requests on the same connection; prints the figures as JSON.

A program of its own, so that asyncio is not in its debug mode, and nothing else runs in the process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

from aiomas_ng.message import GET, PUT, Message
from aiomas_ng.protocol import Context
from aiomas_ng.resource import Resource, Site

BYTES = 64 * 2**20
REQUESTS = 1000
"""Small requests during the transfers, in all."""
LEAST_ROUNDS = 3
MOST_ROUNDS = 12


class Small(Resource):
    """A short state."""

    def render_get(self, request: Message) -> Message:
        return Message(payload=b"0.75")


class Big(Resource):
    """Takes a large state."""

    size = 0

    def render_put(self, request: Message) -> Message:
        self.size = len(request.payload)
        return Message()


async def measure() -> dict[str, object]:
    """Return the median latency of small requests, in seconds, alone and during a transfer, for each
    round."""
    site, big = Site(), Big()
    site.add_resource("small", Small())
    site.add_resource("big", big)
    body = bytes(BYTES)
    medians: list[tuple[float, float]] = []
    count = 0
    async with (
        await Context.create_server_context(site, ("127.0.0.1", 0)) as server,
        await Context.create_client_context() as client,
    ):
        url = server.urls[0]

        async def ask() -> float:
            begin = time.perf_counter()
            response = await client.request(Message(GET, uri=url + "small")).response
            assert response.payload == b"0.75"
            return time.perf_counter() - begin

        while len(medians) < LEAST_ROUNDS or (count < REQUESTS and len(medians) < MOST_ROUNDS):
            alone = [await ask() for _ in range(REQUESTS // 2)]
            transfer = client.request(Message(PUT, body, uri=url + "big"))
            during = []
            while not transfer.response.done():
                during.append(await ask())
            assert (await transfer.response).code.is_successful()
            assert big.size == BYTES
            alone += [await ask() for _ in range(REQUESTS // 2)]
            count += len(during)
            medians.append((statistics.median(alone), statistics.median(during)))
    return {"bytes": BYTES, "requests": count, "medians": medians}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
