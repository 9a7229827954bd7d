"""What a peer can cause in the log is limited."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from conftest import Transport
from faults import EXCEPTION, MESSAGE, RawPeer, open_raw_client, open_raw_server
from waiting import wait_until

from aiomas_ng import rpc
from aiomas_ng._core.log_limit import LOG_LINES
from aiomas_ng.exceptions import ClosedByPeerError

COUNT = 500


class Service:
    """What is called."""

    router = rpc.Service()

    @rpc.expose
    def fail(self) -> None:
        raise ValueError("on purpose")

    @rpc.expose
    def echo(self, value: Any) -> Any:
        return value


def undecodable(peer: RawPeer, number: int) -> None:
    """Send a request whose content is of an extension type that nobody knows."""
    head = b"\x93\x00\xce" + (1000 + number).to_bytes(4, "big")
    payload = head + b"\xc7\x01\x07x"
    peer.send_bytes(len(payload).to_bytes(4, "big") + payload)


def failing_message(peer: RawPeer, number: int) -> None:
    """Send a one-way call of a function that raises."""
    peer.send(MESSAGE, 0, ["fail", [], {}])


def unknown_path(peer: RawPeer, number: int) -> None:
    """Send a one-way call of a function that is not there."""
    peer.send(MESSAGE, 0, [f"nowhere{number}", [], {}])


def complaint(peer: RawPeer, number: int) -> None:
    """Send an exception that belongs to no request."""
    peer.send(EXCEPTION, None, ["Error", "a lie"])


@pytest.mark.parametrize("send", [undecodable, failing_message, unknown_path, complaint])
async def test_flood_is_a_few_lines(
    transport: Transport, caplog: pytest.LogCaptureFixture, send: Any
) -> None:
    """Some lines show what is wrong, one says that there will be no more, and of the others the number is
    told when the connection has ended."""
    async with open_raw_client(transport, greets=True) as (peer, channel):
        rpc.RpcClient(channel, Service())
        for number in range(COUNT):
            send(peer, number)
        assert await peer.call(["echo", [1], {}]) == 1
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == LOG_LINES + 1
        assert "counted and not logged" in lines.pop().getMessage()
        peer.close()
        await wait_until(lambda: channel._lost.done())
        (last,) = caplog.records[LOG_LINES + 1 :]
        assert last.levelno == logging.WARNING
        assert f"{COUNT - LOG_LINES} more lines" in last.getMessage()


async def test_next_minute_begins_anew(
    transport: Transport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute lines come again, after the number of those that were left out."""
    async with open_raw_client(transport, greets=True) as (peer, channel):
        rpc.RpcClient(channel, Service())
        for number in range(COUNT):
            failing_message(peer, number)
        assert await peer.call(["echo", [1], {}]) == 1
        assert channel._limited_log is not None
        channel._limited_log._limit._begin -= 60
        failing_message(peer, 0)
        assert await peer.call(["echo", [2], {}]) == 2
        texts = [record.getMessage() for record in caplog.records[LOG_LINES + 1 :]]
        assert len(texts) == 2
        assert "480 more lines" in texts[0]
        assert "one-way call" in texts[1]


async def test_other_connections_are_logged(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """The limit is one for each connection: a peer that floods hides no other one."""
    async with open_raw_client(transport, greets=True) as (peer, channel):
        rpc.RpcClient(channel, Service())
        for number in range(COUNT):
            failing_message(peer, number)
        assert await peer.call(["echo", [1], {}]) == 1
        caplog.clear()
        async with open_raw_server(transport) as (other, raw):
            complaint(raw, 0)
            raw.close()
            with pytest.raises(ClosedByPeerError):
                await other.recv()
        assert len([record for record in caplog.records if "a lie" in record.getMessage()]) == 1
