"""Messages: what is sent arrives, URIs mean what the RFC says, and no message is one kind of error."""

from __future__ import annotations

import copy
import gc
import importlib.util
import pickle
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng import codecs, content, message
from aiomas_ng._core.addresses import Address
from aiomas_ng._core.codes import Code
from aiomas_ng._core.options import MAX_OPTIONS, SignalOptions
from aiomas_ng.content import Coder
from aiomas_ng.exceptions import (
    AddressError,
    DeserializationError,
    MalformedFrameError,
    SerializationError,
)
from aiomas_ng.message import (
    CHANGED,
    CONTENT,
    CSM,
    DELETE,
    FETCH,
    GET,
    NOT_FOUND,
    POST,
    PUT,
    VALID,
    Block,
    ContentFormat,
    Message,
    OptionError,
    OptionNumber,
    Options,
)
from tests import made_messages
from tests.made_messages import by_name, junk, message_codes, options, payloads, tokens

if importlib.util.find_spec("aiocoap") is not None:
    import aiocoap

HERE = Address("tcp", ("h", 1))

messages = st.builds(Message, message_codes, payloads, token=tokens)


def with_options(base: Message, opt: Options) -> Message:
    """Return *base* with other options."""
    base.opt = opt
    return base


messages_with_options = st.builds(with_options, messages, options)


class Peer:
    """A connection, as far as messages know it."""

    def __init__(self, uri_base: str | None) -> None:
        self.uri_base = uri_base


def parts_of(one: Message) -> tuple[Any, ...]:
    """Return all that travels."""
    return one.code, one.token, one.opt, one.payload


# -- Creation --------------------------------------------------------------------------------------


def test_defaults() -> None:
    """A message without anything has no code, no options, and is about nothing."""
    empty = Message()
    assert (empty.code, empty.payload, empty.token) == (None, b"", b"")
    assert (empty.remote, empty.request) == (None, None)
    assert empty.opt == Options()
    assert empty.opt is not Message().opt


@given(message_codes, payloads, by_name)
def test_options_by_name(code: Code, payload: bytes, values: dict[str, Any]) -> None:
    """Every option can be given by its name."""
    made = Message(code, payload, **values)
    assert made.opt == made_messages.make_options(values, [])
    assert (made.code, made.payload) == (code, payload)


@pytest.mark.parametrize(("code", "expected"), [(1, GET), (0x45, CONTENT), (0x9F, Code(0x9F)), (GET, GET)])
def test_code_is_a_code(code: int, expected: Code) -> None:
    """A number becomes a code."""
    assert Message(code).code is expected
    assert Message().copy(code=code).code is expected


@pytest.mark.parametrize("payload", [bytearray(b"x"), memoryview(b"x")])
def test_payload_is_bytes(payload: Any) -> None:
    """Any buffer becomes bytes."""
    assert type(Message(PUT, payload).payload) is bytes
    assert Message(PUT).copy(payload=payload).payload == b"x"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((256,), {}, ValueError, "from 0 to 255"),
        (("GET",), {}, ValueError, "from 0 to 255"),
        ((GET, "text"), {}, TypeError, "set_value"),
        ((GET, None), {}, TypeError, "must be bytes"),
        ((GET, 5), {}, TypeError, "must be bytes"),
        ((GET,), {"observe": -1}, OptionError, "Observe"),
        ((GET,), {"uri_pth": ["a"]}, AttributeError, "did you mean 'uri_path'"),
        ((GET,), {"mtype": 0}, AttributeError, "mtype"),
        ((GET, b"", "x"), {}, AddressError, "tcp://"),
        ((GET, b"", 5), {}, AddressError, "must be a str"),
        ((GET, b"", ""), {}, AddressError, "tcp://"),
    ],
)
def test_wrong_arguments(arguments: Any, options: Any, error: type[Exception], text: str) -> None:
    """What a message cannot have is refused, in the constructor as in a copy."""
    with pytest.raises(error, match=text):
        Message(*arguments, **options)
    changes = dict(zip(("code", "payload", "uri"), arguments, strict=False)) | options
    with pytest.raises(error, match=text):
        Message(GET).copy(**changes)


def test_no_further_attributes() -> None:
    """A typo in an attribute does not go unnoticed."""
    with pytest.raises(AttributeError):
        Message().paylod = b""  # type: ignore[attr-defined]


def test_comparison_is_by_identity() -> None:
    """Two messages are never the same, so they can be keys."""
    one, other = Message(GET), Message(GET)
    assert one != other
    assert len({one, other, one}) == 2


def test_size() -> None:
    """A message without options takes little memory: an application may hold many thousands."""
    gc.collect()
    one = Message(CONTENT)
    assert sys.getsizeof(one) + sys.getsizeof(one.opt) + sys.getsizeof(one.opt._values) < 300
    assert not hasattr(one, "__dict__")


def test_names_of_the_module() -> None:
    """Every code stands in the module by its name, and all of that is exported."""
    for name, code in Code.__members__.items():
        assert getattr(message, name) is code
        assert name in message.__all__
    for name in ("Code", "ContentFormat", "OptionNumber", "Options", "Block", "OptionError", "Message"):
        assert name in message.__all__
    assert all(hasattr(message, name) for name in message.__all__)
    assert (message.Block, message.OptionNumber) == (Block, OptionNumber)


# -- Representation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Message(), "<Message without code>"),
        (Message(GET), "<Message GET />"),
        (Message(GET, uri="tcp://h:1/a/b", observe=0), "<Message GET tcp://h:1/a/b, 3 option(s)>"),
        (Message(CONTENT, b"x" * 12, max_age=5), "<Message 2.05 Content, 12 bytes, 1 option(s)>"),
        (Message(VALID, etag=b"x"), "<Message 2.03 Valid, 1 option(s)>"),
        (Message(0x9F), "<Message 4.31>"),
        (Message(CSM), "<Message 7.01 CSM>"),
        (Message(0), "<Message EMPTY>"),
        (Message(8), "<Message 0.08 />"),
    ],
)
def test_repr(made: Message, text: str) -> None:
    """The representation says what it is, how large, and how many options it has."""
    assert repr(made) == text


def test_repr_is_short() -> None:
    """Whatever a peer has sent, the representation is short and does not fail."""
    flood = Message(GET, b"x" * 10_000)
    flood.opt = Options.from_compact([item for _ in range(MAX_OPTIONS) for item in (11, "ß" * 100)])
    assert len(repr(flood)) < 400
    assert f"{MAX_OPTIONS} option(s)" in repr(flood)


def test_repr_of_a_number() -> None:
    """A number that a program sets as the code is printed like the code, and sent like it."""
    made = Message()
    made.code = 0x45
    assert repr(made) == "<Message 2.05 Content>"
    assert made.to_compact() == [0x45, b""]
    assert made.encode() == Message(CONTENT).encode()


# -- Copies ----------------------------------------------------------------------------------------


@given(messages_with_options)
def test_copies_are_independent(made: Message) -> None:
    """A copy has all that the original has; changing it leaves the original alone."""
    made.remote, made.request = HERE, Message(GET)
    for duplicate in (made.copy(), copy.copy(made)):
        assert parts_of(duplicate) == parts_of(made)
        assert duplicate.remote is made.remote
        assert duplicate.request is made.request
        before = made.opt.copy()
        duplicate.opt.uri_path = ["changed", "entirely"]
        duplicate.opt.etag = b"changed!"
        duplicate.payload = b"changed"
        duplicate.token = b"changed"
        assert made.opt == before
        assert made.payload != b"changed"


@given(messages_with_options, by_name, payloads, message_codes, tokens)
def test_copies_with_changes(
    made: Message, values: dict[str, Any], payload: bytes, code: Code, token: bytes
) -> None:
    """Changes are the arguments of the constructor; options that are not among them stay."""
    before = made.opt.copy()
    new = made.copy(code=code, payload=payload, token=token, remote=HERE, **values)
    assert (new.code, new.payload, new.token, new.remote) == (code, payload, token, HERE)
    for name, value in values.items():
        setattr(before, name, value)
    assert new.opt == before


def test_copy_removes_by_nothing() -> None:
    """An option is removed from a copy by None, () or False."""
    made = Message(GET, observe=0, uri_path=["a"], if_none_match=True, etag=b"x")
    new = made.copy(observe=None, uri_path=(), if_none_match=False)
    assert new.opt.to_compact() == [4, b"x"]
    assert len(made.opt) == 4


def test_copy_with_uri() -> None:
    """A new URI replaces path, query and address; options that are given beside it count."""
    made = Message(GET, uri="tcp://h:1/a?b", observe=0)
    new = made.copy(uri_query=["c"], uri="tcp://other:2/d/e")
    assert new.get_request_uri() == "tcp://other:2/d/e?c"
    assert new.opt.observe == 0
    assert made.get_request_uri() == "tcp://h:1/a?b"


def test_failing_copy_changes_nothing() -> None:
    """An error leaves the original as it was."""
    made = Message(GET, observe=0)
    with pytest.raises(OptionError):
        made.copy(observe=1, max_age=-1)
    assert made.opt.observe == 0


@given(messages_with_options)
def test_pickling(made: Message) -> None:
    """A message that has no connection can be pickled."""
    made.remote = HERE
    duplicate = pickle.loads(pickle.dumps(made))
    assert parts_of(duplicate) == parts_of(made)
    assert duplicate.remote == HERE


# -- Values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "content_format", "payload"),
    [
        ("ß", ContentFormat.TEXT, "ß".encode()),
        (b"\xff", ContentFormat.OCTET_STREAM, b"\xff"),
        ({"soc": 0.5}, ContentFormat.JSON, b'{"soc":0.5}'),
    ],
)
def test_values(value: Any, content_format: int, payload: bytes) -> None:
    """A value is kept as payload and content format, and is given back by these."""
    made = Message(PUT)
    made.set_value(value)
    assert (made.payload, made.opt.content_format) == (payload, content_format)
    assert made.get_value() == value
    made.set_value([value], ContentFormat.MSGPACK)
    assert made.opt.content_format == ContentFormat.MSGPACK
    assert made.get_value() == (value,)


def test_values_of_own_types() -> None:
    """A coder of the program's own is used where it is given."""

    class Doubling(Coder):
        def encode(self, value: Any, content_format: int | None = None) -> tuple[bytes, int]:
            return str(2 * value).encode(), 0

        def decode(self, payload: bytes, content_format: int | None = None) -> Any:
            return int(payload) // 2

    made = Message(PUT)
    made.set_value(21, coder=Doubling())
    assert made.text == "42"
    assert made.get_value(coder=Doubling()) == 21


@pytest.mark.parametrize(
    ("value", "content_format", "error"),
    [
        (object(), None, SerializationError),
        (5, ContentFormat.PNG, SerializationError),
        (b"x", 65536, OptionError),
        (b"x", -1, OptionError),
    ],
)
def test_values_that_fail(value: Any, content_format: int | None, error: type[Exception]) -> None:
    """What cannot be encoded changes neither payload nor options."""
    made = Message(PUT, b"before", content_format=0)
    with pytest.raises(error):
        made.set_value(value, content_format)
    assert (made.payload, made.opt.content_format) == (b"before", 0)


def test_values_that_do_not_decode() -> None:
    """A payload that is not what its format says is an error that names the format."""
    with pytest.raises(DeserializationError, match="application/json"):
        Message(CONTENT, b"{", content_format=50).get_value()
    assert Message(CONTENT, b"{").get_value() == b"{"


def test_text() -> None:
    """The payload is text if it is UTF-8, whatever format it has."""
    assert Message(NOT_FOUND, "größer".encode()).text == "größer"
    assert Message(CONTENT, b"{}", content_format=50).text == "{}"
    with pytest.raises(DeserializationError, match="UTF-8"):
        _ = Message(CONTENT, b"\xff").text


def test_one_coder_for_all() -> None:
    """The coder for plain values is made once."""
    assert message._get_coder() is message._get_coder()
    assert isinstance(message._get_coder(), content.Coder)


# -- URIs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "url", "path", "query", "normal"),
    [
        ("tcp://h:1", "tcp://h:1/", (), (), "tcp://h:1/"),
        ("tcp://h:1/", "tcp://h:1/", (), (), None),
        ("tcp://h:1/a", "tcp://h:1/", ("a",), (), None),
        ("tcp://h:1/a/", "tcp://h:1/", ("a", ""), (), None),
        ("tcp://h:1//", "tcp://h:1/", ("", ""), (), None),
        ("tcp://h:1//a", "tcp://h:1/", ("", "a"), (), None),
        ("tcp://h:1/a//b", "tcp://h:1/", ("a", "", "b"), (), None),
        ("tcp://h:1?x=1", "tcp://h:1/", (), ("x=1",), "tcp://h:1/?x=1"),
        ("tcp://h:1/?x=1&y", "tcp://h:1/", (), ("x=1", "y"), None),
        ("tcp://h:1/a?", "tcp://h:1/", ("a",), ("",), None),
        ("tcp://h:1/a?&", "tcp://h:1/", ("a",), ("", ""), None),
        ("tcp://h:1/a?b?c/d", "tcp://h:1/", ("a",), ("b?c/d",), None),
        ("tcp://h:1/%2F%3f%25", "tcp://h:1/", ("/?%",), (), "tcp://h:1/%2F%3F%25"),
        ("tcp://h:1/a?x=%26%3D%23", "tcp://h:1/", ("a",), ("x=&=#",), "tcp://h:1/a?x=%26=%23"),
        ("tcp://h:1/%C3%9F", "tcp://h:1/", ("ß",), (), None),
        ("tcp://h:1/ß", "tcp://h:1/", ("ß",), (), "tcp://h:1/%C3%9F"),
        ("tcp://h:1/a+b", "tcp://h:1/", ("a+b",), (), None),
        ("tcp://h:1/~a-b._!$&'()*+,;=:@", "tcp://h:1/", ("~a-b._!$&'()*+,;=:@",), (), None),
        ("tcp://h:1/%zz", "tcp://h:1/", ("%zz",), (), "tcp://h:1/%25zz"),
        ("tcp://h:1/a/./b", "tcp://h:1/", ("a", "b"), (), "tcp://h:1/a/b"),
        ("tcp://h:1/a/../b", "tcp://h:1/", ("b",), (), "tcp://h:1/b"),
        ("tcp://h:1/a/b/..", "tcp://h:1/", ("a", ""), (), "tcp://h:1/a/"),
        ("tcp://h:1/a/.", "tcp://h:1/", ("a", ""), (), "tcp://h:1/a/"),
        ("tcp://h:1/..", "tcp://h:1/", (), (), "tcp://h:1/"),
        ("tcp://h:1/../../a", "tcp://h:1/", ("a",), (), "tcp://h:1/a"),
        ("tcp://h:1/a/%2e%2E/b", "tcp://h:1/", ("b",), (), "tcp://h:1/b"),
        ("tcp://h:1/...", "tcp://h:1/", ("...",), (), None),
        ("tcp://[::1]:5683/a", "tcp://[::1]:5683/", ("a",), (), None),
        ("ipc://[/tmp/s]", "ipc://[/tmp/s]/", (), (), "ipc://[/tmp/s]/"),
        (
            "ipc://[/tmp/s]/a/b?c=[d]",
            "ipc://[/tmp/s]/",
            ("a", "b"),
            ("c=[d]",),
            "ipc://[/tmp/s]/a/b?c=%5Bd%5D",
        ),
        ("ipc://[/tmp/s?#]/a?b", "ipc://[/tmp/s?#]/", ("a",), ("b",), None),
        ("ipc:///tmp/s?x", "ipc://[/tmp/s?x]/", (), (), "ipc://[/tmp/s?x]/"),
        ("local://queue/a?b", "local://queue/", ("a",), ("b",), None),
        ("local://queue?b", "local://queue/", (), ("b",), "local://queue/?b"),
    ],
)
def test_uris(uri: str, url: str, path: tuple[str, ...], query: tuple[str, ...], normal: str | None) -> None:
    """A URI is taken apart as RFC 7252, section 6.4, has it, and is put together again (section 6.5)."""
    made = Message(GET, uri=uri)
    assert isinstance(made.remote, Address)
    assert made.remote.url == url
    assert made.opt.uri_path == path
    assert made.opt.uri_query == query
    assert made.get_request_uri() == (normal or uri)


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("coap://h:1/a", "tcp://, ipc://, local://"),
        ("coap+tcp://h:1/a", "tcp://, ipc://, local://"),
        ("http://h/", "tcp://, ipc://, local://"),
        ("h:1/a", "tcp://, ipc://, local://"),
        ("/a/b", "tcp://, ipc://, local://"),
        ("tcp://h/a", "no port"),
        ("tcp://h:x/a", "port"),
        ("tcp://:1/a", "host is missing"),
        ("tcp://h:1/a#f", "fragment"),
        ("tcp://h:1/a?b#f", "fragment"),
        ("tcp://h:1/a#f?b", "fragment"),
        ("tcp://h:1/#", "fragment"),
        ("ipc://[/tmp/s]/a#f", "fragment"),
        ("ipc://[/tmp/s", "expected ipc"),
        ("local:///a", "queue id is missing"),
        ("tcp://h:1/%ff", "UTF-8"),
        ("tcp://h:1/?%ff", "UTF-8"),
        ("tcp://h:1/" + "a" * 256, "255 bytes"),
        ("tcp://h:1/?" + "a" * 256, "255 bytes"),
        ("tcp://h:1/" + "a/" * 500 + "%ff", "UTF-8"),
    ],
    ids=lambda argument: argument[:20],
)
def test_wrong_uris(uri: str, text: str) -> None:
    """A URI that cannot be used is a ValueError that says why, each time, and changes nothing."""
    made = Message(GET, uri="tcp://h:1/before?x")
    for _ in range(2):
        with pytest.raises(ValueError, match=text) as caught:
            made.set_request_uri(uri)
        assert isinstance(caught.value, AddressError | OptionError)
    assert made.get_request_uri() == "tcp://h:1/before?x"


segments = st.text(max_size=10).filter(lambda text: text not in (".", ".."))


@given(st.lists(segments, max_size=5), st.lists(st.text(max_size=10), max_size=4))
def test_uris_round_trip(path: list[str], query: list[str]) -> None:
    """Whatever is in the options, the URI made of it leads back to the same options, in plain ASCII."""
    made = Message(GET, remote=HERE, uri_path=path, uri_query=query)
    uri = made.get_request_uri()
    assert uri.isascii()
    assert "#" not in uri
    other = Message(GET, uri=uri)
    if path != [""]:  # which no URI can say (RFC 7252, section 6.5)
        assert other.opt == made.opt
    assert other.remote == HERE
    assert other.get_request_uri() == uri


@pytest.mark.needs("aiocoap")
@given(st.lists(segments, min_size=1, max_size=5), st.lists(st.text(max_size=10), max_size=4))
def test_uris_agree_with_aiocoap(path: list[str], query: list[str]) -> None:
    """aiocoap reads the same path and query from our URIs."""
    uri = Message(GET, uri_path=path, uri_query=query).get_request_uri()
    theirs = aiocoap.Message(code=1)
    theirs.set_request_uri("coap://h" + uri, set_uri_host=False)
    ours = Message(GET, uri="tcp://h:1" + uri)
    assert theirs.opt.uri_path == ours.opt.uri_path
    # It takes an empty query for none.
    assert theirs.opt.uri_query == ours.opt.uri_query or query == [""]


def test_setting_a_uri_replaces_the_one_before() -> None:
    """Nothing of an earlier URI is left; other options stay."""
    made = Message(GET, uri="tcp://h:1/a/b?c&d", observe=0)
    made.set_request_uri("local://q")
    assert made.opt.to_compact() == [6, 0]
    assert made.remote == Address("local", "q")


def test_messages_do_not_share_what_is_remembered() -> None:
    """Changing the path of one message does not change that of another with the same URI."""
    one, other = Message(GET, uri="tcp://h:1/a?b"), Message(GET, uri="tcp://h:1/a?b")
    one.opt.uri_path = ["x"]
    one.opt.add_option(15, b"y")
    assert other.get_request_uri() == Message(GET, uri="tcp://h:1/a?b").get_request_uri() == "tcp://h:1/a?b"


def test_long_uris_are_not_remembered() -> None:
    """However many long URIs are used, none of them is kept."""
    message._parse_uri.cache_clear()
    made = Message(GET, uri="tcp://h:1/" + "a" * 200 + "/b")
    assert made.opt.uri_path == ("a" * 200, "b")
    assert message._parse_uri.cache_info().currsize == 0
    assert message._parse_uri.cache_info().maxsize


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        (Peer("tcp://h:1/"), "tcp://h:1/a?b"),
        (Peer(None), "/a?b"),
        (None, "/a?b"),
        (object(), "/a?b"),
        (Address("ipc", "/tmp/s"), "ipc://[/tmp/s]/a?b"),
    ],
)
def test_uri_of_connections(remote: Any, expected: str) -> None:
    """The base of the URI is that of the connection, if that has one."""
    assert Message(GET, remote=remote, uri_path=["a"], uri_query=["b"]).get_request_uri() == expected


def test_uri_of_a_response() -> None:
    """A response has the URI of its request."""
    response = Message(CONTENT)
    assert response.get_request_uri() == "/"
    response.request = Message(GET, uri="tcp://h:1/a")
    assert response.get_request_uri() == "tcp://h:1/a"


def test_uri_for_a_proxy() -> None:
    """With Proxy-Uri, that is where the request goes (RFC 7252, section 5.10.2)."""
    made = Message(GET, uri="tcp://h:1/a", proxy_uri="coap://other/b")
    assert made.get_request_uri() == "coap://other/b"


# -- Cache keys ------------------------------------------------------------------------------------


def test_cache_key_of_aiocoap() -> None:
    """The example of aiocoap's documentation holds here."""
    one, other = Message(GET), Message(GET)
    one.opt.uri_path = other.opt.uri_path = ("s", "1")
    one.opt.size1, other.opt.size1 = 10, 20
    assert one.get_cache_key() == other.get_cache_key()
    other.opt.etag = b"000"
    assert one.get_cache_key() != other.get_cache_key()
    ignored = [OptionNumber.ETAG]
    assert one.get_cache_key(ignored) == other.get_cache_key(ignored)


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        (Message(GET), Message(FETCH), False),
        (Message(GET), Message(GET, token=b"t", remote=HERE), True),
        (Message(GET), Message(GET, b"payload"), True),
        (Message(DELETE), Message(DELETE, b"payload"), True),
        (Message(FETCH), Message(FETCH, b"payload"), False),
        (Message(POST), Message(POST, b"payload"), False),
        (Message(GET), Message(GET, observe=0), True),
        (Message(GET), Message(GET, observe=1, size2=5, echo=b"e"), True),
        (Message(GET), Message(GET, accept=50), False),
        (Message(GET), Message(GET, uri_query=["a"]), False),
        (Message(GET, uri_path=["a", "b"]), Message(GET, uri_path=["b", "a"]), False),
        (Message(GET, uri_path=["a"]), Message(GET, uri_query=["a"]), False),
    ],
)
def test_cache_keys(one: Message, other: Message, is_alike: bool) -> None:
    """Keys are equal for requests that may be answered alike, and only for these."""
    assert (one.get_cache_key() == other.get_cache_key()) == is_alike
    if is_alike:
        assert hash(one.get_cache_key()) == hash(other.get_cache_key())


@given(messages_with_options, st.sets(st.integers(0, 65535)))
def test_cache_keys_can_be_hashed(made: Message, ignored: set[int]) -> None:
    """A key can be made of any message, and is the same for its copy."""
    assert hash(made.get_cache_key(ignored)) == hash(made.copy().get_cache_key(ignored))


# -- The compact form ------------------------------------------------------------------------------


@given(messages_with_options, st.booleans(), st.none() | tokens)
def test_compact_form_round_trips(made: Message, more: bool, token: bytes | None) -> None:
    """What is sent arrives, with whichever codec the connection has."""
    compact = made.to_compact(token=token, more=more)
    expected = (made.code, made.token if token is None else token, made.opt, made.payload)
    for codec in (codecs.JSON(), codecs.MsgPack()):
        arrived, arrived_more = Message.from_compact(codec.decode(codec.encode(compact)))
        assert parts_of(arrived) == expected
        assert arrived_more is more
        assert type(arrived.code) is Code
        assert (arrived.remote, arrived.request) == (None, None)
        assert arrived.to_compact(more=more) == compact


@pytest.mark.parametrize(
    ("made", "more", "compact"),
    [
        (Message(GET, token=b"t"), False, [1, b"t"]),
        (Message(GET, token=b"t", uri_path=["a", "b"]), False, [1, b"t", [11, "a", 11, "b"]]),
        (Message(CONTENT, b"p", token=b"t"), False, [69, b"t", [], b"p"]),
        (Message(CONTENT, b"p", token=b"t", content_format=0), False, [69, b"t", [12, 0], b"p"]),
        (Message(CONTENT, b"p", token=b"t", observe=5), True, [69, b"t", [6, 5], b"p", True]),
        (Message(CHANGED, token=b"t"), True, [68, b"t", [], b"", True]),
        (Message(PUT, b"p"), False, [3, b"", [], b"p"]),
    ],
)
def test_compact_form_is_the_shortest(made: Message, more: bool, compact: list[Any]) -> None:
    """Trailing defaults are dropped; all values are plain; a peer may as well send the defaults."""
    found = made.to_compact(more=more)
    assert found == compact
    assert type(found[0]) is int
    padded = found + [[], b"", False][len(found) - 2 :]
    for form in (found, padded, tuple(padded)):
        arrived, arrived_more = Message.from_compact(form)
        assert (parts_of(arrived), arrived_more) == (parts_of(made), more)


def test_what_cannot_be_sent() -> None:
    """A message without a code, or with a payload that is no bytes, is the program's fault."""
    with pytest.raises(ValueError, match="without a code"):
        Message().to_compact()
    with pytest.raises(ValueError, match="without a code"):
        Message().encode()
    made = Message(PUT)
    made.payload = "text"  # type: ignore[assignment]
    for send in (made.to_compact, made.encode):
        with pytest.raises(TypeError, match="set_value"):
            send()
    made.payload = bytearray(b"x")  # type: ignore[assignment]
    assert made.to_compact() == [3, b"", [], b"x"]
    made.code = 256
    with pytest.raises(ValueError, match="from 0 to 255"):
        made.to_compact()


@given(junk)
@example(None)
@example([])
@example([1])
@example([1, b"", [], b"", False, None])
@example([0, b""])
@example([256, b""])
@example([-1, b""])
@example([True, b""])
@example([1.0, b""])
@example(["1", b""])
@example([2**20_000, b""])
@example([1, "t"])
@example([1, None])
@example([1, b"123456789"])
@example([1, b"", None])
@example([1, b"", {}])
@example([1, b"", ""])
@example([1, b"", b""])
@example([1, b"", 0])
@example([1, b"", [11]])
@example([1, b"", [12, 0, 11, "a"]])
@example([1, b"", [[11, "a"]]])
@example([1, b"", [], "text"])
@example([1, b"", [], None])
@example([1, b"", [], b"", 1])
@example([1, b"", [], b"", None])
@example({0: 1, 1: b""})
@example(b"\x01\x00")
@example("\x01\x00")
def test_junk_in_compact_form(content: Any) -> None:
    """Anything that is no message is one kind of error, with a short text."""
    try:
        arrived, more = Message.from_compact(content)
    except MalformedFrameError as error:
        text = str(error)
        assert 0 < len(text) < 500
    else:
        assert type(content) in (list, tuple)
        assert type(arrived.code) is Code
        assert arrived.code > 0
        assert type(arrived.payload) is bytes
        assert type(arrived.token) is bytes
        assert len(arrived.token) <= 8
        assert type(more) is bool


codes_or_junk = st.integers(-1, 256) | junk
options_or_junk = (
    st.lists(st.integers(0, 70) | st.text(max_size=3) | st.binary(max_size=3), max_size=8) | junk
)


@given(
    codes_or_junk, tokens | junk, options_or_junk, payloads | junk, st.booleans() | junk, st.integers(0, 5)
)
def test_almost_messages(code: Any, token: Any, options: Any, payload: Any, more: Any, length: int) -> None:
    """What almost is a message is taken exactly if it is one."""
    content = [code, token, options, payload, more][:length]
    is_right = (
        length >= 2
        and type(code) is int
        and 0 < code < 256
        and type(token) is bytes
        and len(token) <= 8
        and (length < 3 or is_list_of_options(options))
        and (length < 4 or type(payload) is bytes)
        and (length < 5 or type(more) is bool)
    )
    if is_right:
        arrived, _ = Message.from_compact(content)
        assert arrived.code == code
    else:
        with pytest.raises(MalformedFrameError):
            Message.from_compact(content)


def is_list_of_options(options: Any) -> bool:
    """Say whether *options* is a flat list of numbers in ascending order, and values."""
    if type(options) not in (list, tuple) or len(options) % 2:
        return False
    numbers = list(options[::2])
    return all(type(n) is int and 0 <= n < 65536 for n in numbers) and numbers == sorted(numbers)


def test_too_many_options() -> None:
    """The bound on options is an error of the frame."""
    with pytest.raises(MalformedFrameError, match=f"{MAX_OPTIONS} options"):
        Message.from_compact([1, b"", [11, ""] * (MAX_OPTIONS + 1)])


def test_wrong_values_of_options_are_no_malformed_frame() -> None:
    """An option with a wrong value is left to whoever answers the request."""
    arrived, _ = Message.from_compact([1, b"t", [11, 5, 14, "x", 27, b""]])
    assert arrived.opt.unknown_critical() == (11, 27)
    assert arrived.opt.max_age is None


# -- The binary form -------------------------------------------------------------------------------


@given(messages_with_options.filter(lambda made: not made.code.is_signalling()))
def test_binary_form_round_trips(made: Message) -> None:
    """A message survives the form of CoAP over TCP."""
    peer = Peer(None)
    arrived = Message.decode(made.encode(), remote=peer)
    assert parts_of(arrived) == parts_of(made)
    assert arrived.remote is peer
    assert type(arrived.code) is Code


def test_binary_form_of_signals() -> None:
    """A signal has options of its own kind."""
    made = Message(CSM)
    made.opt = SignalOptions()
    made.opt.add_option(4)
    arrived = Message.decode(made.encode())
    assert parts_of(arrived) == parts_of(made)
    assert type(arrived.opt) is SignalOptions


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x01\x45", b"\x00\x45\x00", b"\x10\x45\xff"])
def test_malformed_binary_form(data: bytes) -> None:
    """What is not exactly one frame is a malformed one."""
    with pytest.raises(MalformedFrameError):
        Message.decode(data)


def test_too_long_token() -> None:
    """A token that CoAP cannot carry is refused."""
    with pytest.raises(ValueError, match="8 bytes"):
        Message(GET, token=b"123456789").encode()
