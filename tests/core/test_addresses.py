"""Addresses: what is written is read again, and what cannot be read says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng._core.addresses import Address, parse_agent_url, parse_host_port, parse_url, tcp_url
from aiomas_ng.exceptions import AddressError, AiomasError

ports = st.integers(0, 65535)
hosts = (
    st.sampled_from(["localhost", "127.0.0.1", "sub-domain.example.org", "münchen.example", "fe80::1%eth0"])
    | st.ip_addresses().map(str)
    | st.text(min_size=1).filter(lambda host: not set(host) & set("/[]"))
)
paths = st.text(min_size=1) | st.text("[]/:.a", min_size=1)
queue_ids = st.text(min_size=1).filter(lambda queue_id: "/" not in queue_id)
agent_ids = st.text(min_size=1).filter(lambda aid: not set(aid) & set("/[]"))

addresses = st.one_of(
    st.builds(lambda *place: Address("tcp", place), hosts, ports),
    st.builds(Address, st.just("ipc"), paths),
    st.builds(Address, st.just("local"), queue_ids),
)


# -- Round trips -----------------------------------------------------------------------------------


@given(address=addresses, aid=agent_ids)
@example(address=Address("tcp", ("::1", 5555)), aid="0")
@example(address=Address("tcp", ("::", 0)), aid="0")
@example(address=Address("ipc", "/tmp/a]/b"), aid="0")
@example(address=Address("ipc", "]"), aid="0")
@example(address=Address("ipc", "["), aid="0")
@example(address=Address("ipc", "tcp://localhost:1/0"), aid="0")
@example(address=Address("local", "tcp:"), aid=":")
def test_url_is_read_as_it_was_written(address: Address, aid: str) -> None:
    """The URL of any address gives that address again, with and without an agent's id and the last slash."""
    assert address.url.endswith("/")
    assert parse_url(address.url) == (address, "")
    assert parse_url(address.url[:-1]) == (address, "")
    assert parse_url(address.url + aid) == parse_agent_url(address.url + aid) == (address, aid)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address("tcp", ("localhost", 5555)), "tcp://localhost:5555/"),
        (Address("tcp", ("127.0.0.1", 0)), "tcp://127.0.0.1:0/"),
        (Address("tcp", ("::1", 5555)), "tcp://[::1]:5555/"),
        (Address("ipc", "/tmp/sock"), "ipc://[/tmp/sock]/"),
        (Address("ipc", "relative sock"), "ipc://[relative sock]/"),
        (Address("local", "queue"), "local://queue/"),
    ],
)
def test_url_of_an_address(address: Address, url: str) -> None:
    """URLs look as programs written for aiomas know them."""
    assert address.url == url


def test_tcp_url_takes_a_port_as_text() -> None:
    """The port may be text, as it was given by a user."""
    assert tcp_url("localhost", "5555") == tcp_url("localhost", 5555) == "tcp://localhost:5555/"


def test_address_is_a_key() -> None:
    """Equal addresses are one key, so that a connection is found again however its URL was written."""
    same = {parse_url(url)[0] for url in ("tcp://h:80", "tcp://h:80/", "tcp://h:0080/aid", "tcp://[h]:80/")}
    assert same == {Address("tcp", ("h", 80))}
    assert Address("ipc", "x") != Address("local", "x")


@pytest.mark.parametrize(
    ("url", "address", "rest"),
    [
        ("tcp://localhost:5555/0", Address("tcp", ("localhost", 5555)), "0"),
        ("tcp://localhost:5555/agents/0/", Address("tcp", ("localhost", 5555)), "agents/0/"),
        ("tcp://::1:5555/0", Address("tcp", ("::1", 5555)), "0"),
        ("ipc:///tmp/sock", Address("ipc", "/tmp/sock"), ""),
        ("ipc://sock/0", Address("ipc", "sock/0"), ""),
        ("ipc://[sock]", Address("ipc", "sock"), ""),
        ("ipc://[/a]/b]/0", Address("ipc", "/a]/b"), "0"),
        ("local://queue", Address("local", "queue"), ""),
        ("local://queue/0/1", Address("local", "queue"), "0/1"),
    ],
)
def test_url_in_other_forms(url: str, address: Address, rest: str) -> None:
    """IPv6 hosts and paths are also understood without brackets, and the rest of a URL is kept as it is."""
    assert parse_url(url) == (address, rest)


# -- Errors ----------------------------------------------------------------------------------------

MALFORMED = [
    (None, "a URL must be a string but is None"),
    (5, "a URL must be a string but is 5"),
    (b"tcp://h:1/", "a URL must be a string but is b'tcp://h:1/'"),
    (("h", 1), r"a URL must be a string but is \('h', 1\)"),
    ("", "must begin with one of tcp://, ipc://, local://"),
    ("localhost:5555/0", "must begin with one of"),
    ("tcp:/localhost:5555/0", "must begin with one of"),
    ("://localhost:5555/0", "must begin with one of"),
    ("http://localhost:5555/0", "must begin with one of"),
    ("TCP://localhost:5555/0", "must begin with one of"),
    (" tcp://localhost:5555/0", "must begin with one of"),
    ("tcp://", r"'' has no port, expected tcp://host:port/…"),
    ("tcp://localhost", r"'localhost' has no port, expected tcp://host:port/…"),
    ("tcp://localhost/0", r"'localhost' has no port"),
    ("tcp:///0", "'' has no port"),
    ("tcp://:5555/0", "the host is missing, expected tcp://host:port/…"),
    ("tcp://[]:5555/0", "the host is missing"),
    ("tcp://[::1]/0", r"'\[:' is no host"),
    ("tcp://[::1:5555/0", r"'\[::1' is no host, expected tcp://host:port/…"),
    ("tcp://::1]:5555/0", r"'::1\]' is no host"),
    ("tcp://[[::1]]:5555/0", r"'\[::1\]' is no host"),
    ("tcp://localhost:/0", "port must be a number from 0 to 65535 but is ''"),
    ("tcp://localhost:http/0", "port must be a number from 0 to 65535 but is 'http'"),
    ("tcp://localhost:-1/0", "but is '-1'"),
    ("tcp://localhost:65536/0", "but is '65536'"),
    ("tcp://localhost:5555?x/0", r"but is '5555\?x'"),
    ("tcp://localhost: 5555/0", "but is ' 5555'"),
    ("tcp://localhost:+5555/0", r"but is '\+5555'"),
    ("tcp://localhost:5_5/0", "but is '5_5'"),
    ("tcp://localhost:٥٥/0", "but is '٥٥'"),
    ("tcp://localhost:²/0", "but is '²'"),
    ("tcp://localhost:" + "9" * 10_000 + "/0", "port must be a number"),
    ("ipc://", r"the path is missing, expected ipc://\[path\]/…"),
    ("ipc://[", r"expected ipc://\[path\]/…"),
    ("ipc://[]", r"expected ipc://\[path\]/…"),
    ("ipc://[]/0", r"expected ipc://\[path\]/…"),
    ("ipc://[path/0", r"expected ipc://\[path\]/…"),
    ("ipc://[path]0", r"expected ipc://\[path\]/…"),
    ("local://", "the queue id is missing, expected local://id/…"),
    ("local:///0", "the queue id is missing"),
]


@pytest.mark.parametrize(("url", "text"), MALFORMED, ids=lambda value: f"{value!r:.40}")
@pytest.mark.parametrize("parse", [parse_url, parse_agent_url])
def test_malformed_url_says_what_is_wrong(parse: Any, url: Any, text: str) -> None:
    """Every malformed URL is one kind of error that names the URL and what would be right."""
    with pytest.raises(AddressError, match=text) as caught:
        parse(url)
    assert isinstance(caught.value, AiomasError)
    assert isinstance(caught.value, ValueError)
    assert f"{url!r}" in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("tcp://h:1", "no agent id is given, expected tcp://h:1/agent-id"),
        ("tcp://h:1/", "no agent id is given, expected tcp://h:1/agent-id"),
        ("tcp://h:1/agents/0", "'agents/0' is no agent id, expected tcp://h:1/agent-id"),
        ("tcp://h:1/0/", "'0/' is no agent id"),
        ("tcp://h:1//", "'/' is no agent id"),
        ("tcp://::1:1", r"no agent id is given, expected tcp://\[::1\]:1/agent-id"),
        ("ipc://[path]", r"no agent id is given, expected ipc://\[path\]/agent-id"),
        ("ipc:///tmp/sock/0", r"no agent id is given, expected ipc://\[/tmp/sock/0\]/agent-id"),
        ("local://queue/", "no agent id is given, expected local://queue/agent-id"),
    ],
)
def test_url_without_an_agent(url: str, text: str) -> None:
    """The URL of a server is none of an agent, and the error says how one would look there."""
    with pytest.raises(AddressError, match=text):
        parse_agent_url(url)


@given(
    url=st.text() | st.builds("{}://{}".format, st.sampled_from(["tcp", "ipc", "local"]), st.text("[]:/a0"))
)
def test_any_text_parses_or_is_an_address_error(url: str) -> None:
    """No text makes the parser fail in another way, and what parses is written and read as the same again."""
    try:
        address, rest = parse_url(url)
    except AddressError as error:
        assert repr(url) in str(error)  # noqa: PT017  # only one of the two happens
    else:
        assert parse_url(address.url) == (address, "")
        assert url.endswith(rest)


# -- Host and port ---------------------------------------------------------------------------------


@given(host=hosts | st.none(), port=ports)
def test_port_may_be_a_number_or_text(host: str | None, port: int) -> None:
    """Programs pass the port as they got it, for example from a command line."""
    assert parse_host_port((host, port)) == parse_host_port((host, str(port))) == (host, port)
    assert type(parse_host_port((host, str(port)))[1]) is int


@pytest.mark.parametrize("addr", [(), ("h",), ("h", 1, 2), ("h", 1, 0, 0)])
def test_address_of_other_than_two_parts(addr: tuple[Any, ...]) -> None:
    """A TCP address has two parts, also for IPv6."""
    with pytest.raises(AddressError, match=r"a TCP address must be \(host, port\) but is") as caught:
        parse_host_port(addr)
    assert repr(addr) in str(caught.value)


@pytest.mark.parametrize(
    "port",
    [None, -1, 65536, 1.0, "1.0", True, False, b"80", [80], "", "x", "0x50", "8 0", 2**20_000],
    ids=type,
)
def test_port_that_is_none(port: Any) -> None:
    """What is no port number is refused, also booleans and numbers that cannot be printed."""
    with pytest.raises(AddressError, match="port must be a number from 0 to 65535 but is"):
        parse_host_port(("h", port))
