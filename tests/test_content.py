"""Content: what is encoded arrives as it was, in every format, and a hostile payload is one kind of error."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import importlib.util
import ipaddress
import json
import math
import sys
import time
import tracemalloc
import uuid
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng import codecs
from aiomas_ng._core import cbor_bytes
from aiomas_ng.content import CODABLE, Coder, ContentFormat, media_type_of
from aiomas_ng.exceptions import DeserializationError, SerializationError

if importlib.util.find_spec("cbor2") is not None:
    import cbor2

needs_cbor = pytest.mark.needs("cbor2")

JSONS = [member for member in ContentFormat if "json" in member.media_type]
# A sequence of CBOR, which is another format, does not end like this.
CBORS = [member for member in ContentFormat if member.media_type.endswith("cbor")]
BYTES = sorted(
    set(ContentFormat)
    - {*JSONS, *CBORS, ContentFormat.TEXT, ContentFormat.LINK_FORMAT, ContentFormat.MSGPACK}
)
UNKNOWN = [1, 100, 12345, 65001, 65535]

finite = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4)
    ),
    max_leaves=10,
)


class Point:
    """A type with a serializer."""

    def __init__(self, x: float, y: float) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))

    @classmethod
    def __serializer__(cls) -> tuple[Any, Any, Any]:
        return cls, lambda point: [point.x, point.y], lambda data: cls(*data)


# -- Formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "number", "media_type"),
    [
        (ContentFormat.TEXT, 0, "text/plain; charset=utf-8"),
        (ContentFormat.LINK_FORMAT, 40, "application/link-format"),
        (ContentFormat.XML, 41, "application/xml"),
        (ContentFormat.OCTET_STREAM, 42, "application/octet-stream"),
        (ContentFormat.EXI, 47, "application/exi"),
        (ContentFormat.JSON, 50, "application/json"),
        (ContentFormat.CBOR, 60, "application/cbor"),
        (ContentFormat.SENML_JSON, 110, "application/senml+json"),
        (ContentFormat.SENML_CBOR, 112, "application/senml+cbor"),
        (ContentFormat.MSGPACK, 65000, "application/msgpack"),
    ],
)
def test_names_numbers_and_media_types(member: ContentFormat, number: int, media_type: str) -> None:
    """A format is an integer that knows its media type, and is found by both."""
    assert member == number
    assert member.media_type == media_type
    assert ContentFormat(number) is member
    assert media_type_of(number) == media_type
    assert ContentFormat.by_media_type(media_type) is member
    assert ContentFormat.by_media_type(media_type.upper().replace("; ", ";")) is member
    assert issubclass(ContentFormat, enum.IntEnum)


@pytest.mark.needs("aiocoap")
def test_registered_numbers() -> None:
    """All formats but the experimental one have the numbers that aiocoap knows for their media types."""
    from aiocoap.numbers.contentformat import ContentFormat as Other

    for member in set(ContentFormat) - {ContentFormat.MSGPACK, ContentFormat.PROBLEM_DETAILS}:
        assert int(Other.by_media_type(member.media_type)) == member


def test_media_types_differ() -> None:
    """No two formats share a media type or a number."""
    assert len({member.media_type for member in ContentFormat}) == len(ContentFormat)
    assert len(ContentFormat.__members__) == len(ContentFormat)


@pytest.mark.parametrize("number", UNKNOWN)
def test_unknown_numbers(number: int) -> None:
    """A number that is not known is no member, and is named by itself."""
    with pytest.raises(ValueError, match=str(number)):
        ContentFormat(number)
    assert media_type_of(number) == f"content format {number}"
    assert media_type_of(None) == "no content format"
    with pytest.raises(KeyError):
        ContentFormat.by_media_type("application/unknown")


def test_formats_for_any_value() -> None:
    """Formats that take any value are offered in order of preference, CBOR if it is there."""
    expected = [ContentFormat.JSON, ContentFormat.MSGPACK]
    if importlib.util.find_spec("cbor2") is not None:
        expected.append(ContentFormat.CBOR)
    assert list(CODABLE) == expected
    for content_format in CODABLE:
        payload, _ = Coder().encode({"a": [1, None]}, content_format)
        assert codecs.JSON().encode(Coder().decode(payload, content_format)) == b'{"a":[1,null]}'


# -- Round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "content_format", "payload"),
    [
        (b"\x00x", ContentFormat.OCTET_STREAM, b"\x00x"),
        (bytearray(b"x"), ContentFormat.OCTET_STREAM, b"x"),
        (memoryview(b"x"), ContentFormat.OCTET_STREAM, b"x"),
        ("ß", ContentFormat.TEXT, "ß".encode()),
        ("", ContentFormat.TEXT, b""),
        (1.5, ContentFormat.JSON, b"1.5"),
        (None, ContentFormat.JSON, b"null"),
        (True, ContentFormat.JSON, b"true"),
        ({"a": [1]}, ContentFormat.JSON, b'{"a":[1]}'),
    ],
)
def test_default_formats(value: Any, content_format: int, payload: bytes) -> None:
    """Without a format, bytes are bytes, text is text, and all else is JSON."""
    encoded = Coder().encode(value)
    assert encoded == (payload, content_format)
    assert [type(part) for part in encoded] == [bytes, int]


@given(json_values, st.sampled_from(JSONS))
def test_json_round_trips(value: Any, content_format: int) -> None:
    """Whatever JSON has a place for arrives as it was, and other programs can read it."""
    payload, number = Coder().encode(value, content_format)
    assert number == content_format
    assert Coder().decode(payload, number) == value
    assert json.loads(payload) == value


@given(json_values | st.binary() | st.integers())
def test_msgpack_round_trips(value: Any) -> None:
    """The same for MsgPack, bytes and large integers included; sequences arrive as tuples."""
    payload, number = Coder().encode(value, ContentFormat.MSGPACK)
    assert number == ContentFormat.MSGPACK
    assert Coder().decode(payload, number) == as_tuples(value)


def as_tuples(value: Any) -> Any:
    """Return *value* with all lists in it as tuples."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@needs_cbor
@given(json_values | st.binary() | st.integers(-(2**1000), 2**1000), st.sampled_from(CBORS))
def test_cbor_round_trips(value: Any, content_format: int) -> None:
    """The same for CBOR, bytes and large integers included."""
    payload, number = Coder().encode(value, content_format)
    assert number == content_format
    assert Coder().decode(payload, number) == value


@needs_cbor
@pytest.mark.parametrize(
    "value",
    [
        decimal.Decimal("-1.50"),
        decimal.Decimal("1e400"),
        decimal.Decimal("1." + "1" * 100),
        fractions.Fraction(-1, 3),
        {1, 2, 3},
        {1: "int", None: "none", b"b": "bytes"},
        uuid.UUID(int=5),
        datetime.datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=datetime.UTC),
        datetime.date(2024, 2, 29),
        ipaddress.ip_address("::1"),
        1 + 2j,
        math.inf,
        2**200,
        -(2**200),
        -(2**200) - 1,
    ],
    ids=repr,
)
def test_types_of_cbor(value: Any) -> None:
    """Types that CBOR has more than JSON arrive exactly."""
    payload, _ = Coder().encode(value, ContentFormat.CBOR)
    assert payload == cbor2.dumps(value)
    decoded = Coder().decode(payload, ContentFormat.CBOR)
    assert decoded == value
    assert type(decoded) is type(value)


@given(st.text())
def test_text_round_trips(text: str) -> None:
    """Any text arrives as it was, and so do links."""
    for content_format in (ContentFormat.TEXT, ContentFormat.LINK_FORMAT):
        assert Coder().encode(text, content_format) == (text.encode(), content_format)
        assert Coder().decode(text.encode(), content_format) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (-0.75, "-0.75"), (True, "True"), (decimal.Decimal("1.50"), "1.50"), (1j, "1j")],
)
def test_numbers_as_text(value: Any, text: str) -> None:
    """Numbers and booleans can be written as text."""
    assert Coder().encode(value, ContentFormat.TEXT) == (text.encode(), 0)
    assert Coder().decode(text.encode(), ContentFormat.TEXT) == text


@pytest.mark.needs("numpy")
def test_numbers_of_numpy_as_text() -> None:
    """So can those of numpy."""
    import numpy

    assert Coder().encode(numpy.float64(0.5), ContentFormat.TEXT)[0] == b"0.5"
    assert Coder().encode(numpy.int32(5), ContentFormat.TEXT)[0] == b"5"


@pytest.mark.parametrize("content_format", [*BYTES, *UNKNOWN])
def test_bytes_pass_through(content_format: int) -> None:
    """What we do not know how to encode must be bytes, and arrives as such."""
    payload, number = Coder().encode(bytearray(b"\xff\x00"), content_format)
    assert (payload, number) == (b"\xff\x00", content_format)
    assert Coder().decode(payload, number) == b"\xff\x00"
    for value in ("text", 5, None, ["x"]):
        with pytest.raises(SerializationError, match="takes bytes") as caught:
            Coder().encode(value, content_format)
        assert media_type_of(content_format) in str(caught.value)


def test_no_format() -> None:
    """A payload without a format is bytes."""
    assert Coder().decode(b"\xff", None) == b"\xff"
    assert Coder().decode(b"\xff") == b"\xff"


@pytest.mark.parametrize(
    "content_format", [ContentFormat.JSON, ContentFormat.MSGPACK, ContentFormat.SENML_JSON]
)
def test_own_types(content_format: int) -> None:
    """Own types travel with the serializers of the container, and only with them."""
    coder = Coder([Point.__serializer__])
    payload, _ = coder.encode({"at": Point(1, 2)}, content_format)
    assert coder.decode(payload, content_format) == {"at": Point(1, 2)}
    with pytest.raises(DeserializationError, match="Point"):
        Coder().decode(payload, content_format)
    with pytest.raises(SerializationError, match="Point"):
        Coder().encode(Point(1, 2), content_format)


@pytest.mark.parametrize("serializers", [Point.__serializer__, [Point], [lambda: 5]])
def test_wrong_serializers(serializers: Any) -> None:
    """What is no list of serializers is a TypeError, as for a container."""
    with pytest.raises(TypeError, match="extra_serializers"):
        Coder(serializers)


# -- What cannot be encoded ------------------------------------------------------------------------

cycle: list[Any] = []
cycle.append(cycle)

every_format = pytest.mark.parametrize(
    "content_format",
    [
        ContentFormat.JSON,
        ContentFormat.MSGPACK,
        pytest.param(ContentFormat.CBOR, marks=needs_cbor),
        ContentFormat.TEXT,
        ContentFormat.LINK_FORMAT,
    ],
)


@every_format
@pytest.mark.parametrize(
    "value", [object(), [lambda: 5], "\ud800", cycle, {"a": object}], ids=lambda value: type(value).__name__
)
def test_what_cannot_be_encoded(content_format: int, value: Any) -> None:
    """A value that the format has no place for is a short error of ours, whatever the package raises."""
    with pytest.raises(SerializationError) as caught:
        Coder().encode(value, content_format)
    assert 0 < len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, b"x", [], {}, object()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("content_format", [ContentFormat.TEXT, ContentFormat.LINK_FORMAT])
def test_what_is_no_text(content_format: int, value: Any) -> None:
    """What is neither text nor a number is not guessed at."""
    with pytest.raises(SerializationError, match=r"takes a str"):
        Coder().encode(value, content_format)
    with pytest.raises(SerializationError, match=r"takes a str"):
        Coder().encode(5, ContentFormat.LINK_FORMAT)


# -- What peers send -------------------------------------------------------------------------------


@every_format
@given(payload=st.binary(max_size=200))
@example(payload=b"")
@example(payload=b"\xff")
@example(payload=b"1 2")
@example(payload=b"\x01\x02")
@example(payload=b"[" * 100_000)
@example(payload=b"\x91" * 100_000)
@example(payload=b"\x81" * 100_000)
@example(payload=b"\xc1" * 100_000)
@example(payload=b'{"__type__": ["Point", [1, 2]]}')
@example(payload=b'{"__type__": ["bytes", 5]}')
def test_any_payload(content_format: int, payload: bytes) -> None:
    """Whatever comes is a value or an error that names the format."""
    try:
        Coder().decode(payload, content_format)
    except DeserializationError as error:
        text = str(error)
    else:
        return
    assert media_type_of(content_format) in text
    assert len(text) < 500


def nested_references(depth: int) -> bytes:
    """Return CBOR of a list that has 2**depth items, written in some 8 bytes for each level."""
    data = b"\xd8\x1c\x80"
    for level in range(depth):
        reference = b"\xd8\x1d" + (bytes((level,)) if level < 24 else bytes((0x18, level)))
        data = b"\x82" + data + reference
        data = b"\xd8\x1c" + data
    return data


@needs_cbor
@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"\xd8\x1c\x81\xd8\x1d\x00", "refused"),  # a list within itself
        (nested_references(30), "refused"),
        (b"\xd9\x01\x00\x82\x44aaaa\xd8\x19\x00", "refused"),  # references to strings
        (b"\xd8\x23\x65(a+)+", "refused"),  # a regular expression
        (b"\xd8\x24\x61x", "refused"),  # a mail
        (b"\xc5\x82\x1a\x00\x0f\x42\x40\x01", "refused"),  # 2**1000000
        (b"\xc4\x82\x1a\x7f\xff\xff\xff\x01", "exponent"),
        (b"\xc4\x82\x3a\x7f\xff\xff\xff\x01", "exponent"),
        (b"\xc4\x82\x01\x61x", "two integers"),
        (b"\xc4\x82\x01\xf5", "two integers"),
        (b"\xc4\x83\x01\x01\x01", "two integers"),
        (b"\xc4\x01", "two integers"),
        (b"\xd8\x1e\x82\x01\xfb" + b"\x00" * 8, "two integers"),
        (b"\xd8\x1e\x82\x01\x00", "application/cbor"),  # divided by zero
        (b"\xc2\x59\x10\x01" + b"\xff" * 4097, "4096 bytes"),
        (b"\xc3\x59\x10\x01" + b"\xff" * 4097, "4096 bytes"),
        (b"\xc2\x01", "4096 bytes"),
        (b"\x01\x02\x03", "2 bytes follow the value"),
        (b"\x81" * 1000 + b"\x01", "application/cbor"),
        (b"\xff", "application/cbor"),
    ],
    ids=lambda argument: argument[:6].hex() if isinstance(argument, bytes) else None,
)
def test_hostile_cbor(payload: bytes, text: str) -> None:
    """What CBOR could do harm with is refused."""
    with pytest.raises(DeserializationError, match=text) as caught:
        Coder().decode(payload, ContentFormat.CBOR)
    assert "application/cbor" in str(caught.value)
    assert len(str(caught.value)) < 300


@needs_cbor
def test_bounds_of_numbers() -> None:
    """Numbers of just the largest size are taken."""
    largest = 2 ** (8 * 4096) - 1
    for value in (largest, -largest - 1, fractions.Fraction(1, largest)):
        assert Coder().decode(cbor2.dumps(value), ContentFormat.CBOR) == value
    for exponent in (cbor_bytes.MAX_EXPONENT, -cbor_bytes.MAX_EXPONENT):
        value = decimal.Decimal((0, (1,), exponent))
        assert Coder().decode(cbor2.dumps(value), ContentFormat.CBOR) == value


@needs_cbor
@pytest.mark.parametrize(
    "payload",
    [
        b"\x9b\x00\x00\x00\x10\x00\x00\x00\x00",  # an array of 2**36 items
        b"\x9a\x0f\xff\xff\xff" * 300,
        b"\xbb\x00\x00\x00\x10\x00\x00\x00\x00",
        b"\x5b\x00\x00\x00\x10\x00\x00\x00\x00",
        b"\x7b\x00\x00\x00\x10\x00\x00\x00\x00",
        b"\x5f" + b"\x5a\x7f\xff\xff\xff",
    ],
    ids=lambda payload: payload[:3].hex(),
)
def test_announced_sizes_are_not_believed(payload: bytes) -> None:
    """Some bytes that announce gigabytes allocate no such memory, and take no time."""
    Coder().decode(b"\x01", ContentFormat.CBOR)  # everything is imported
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(DeserializationError):
            Coder().decode(payload, ContentFormat.CBOR)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 1


def test_without_cbor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says which extra to install, and all other formats work."""
    monkeypatch.setitem(sys.modules, "cbor2", None)
    with pytest.raises(SerializationError, match=r"pip install aiomas_ng\[cbor\]"):
        Coder().encode(5, ContentFormat.CBOR)
    with pytest.raises(DeserializationError, match=r"pip install aiomas_ng\[cbor\]"):
        Coder().decode(b"\x05", ContentFormat.CBOR)
    assert Coder().encode(5) == (b"5", ContentFormat.JSON)
