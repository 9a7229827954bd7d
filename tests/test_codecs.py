"""Codecs: what arrives is what was sent, and nothing that a peer sends does harm."""

from __future__ import annotations

import array
import base64
import dataclasses
import json
import math
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiomas_ng import codecs
from aiomas_ng._core import blosc_chunk, builtin_types, codec_errors, numpy_types
from aiomas_ng.codecs import JSON, Codec, MsgPack, MsgPackBlosc, serializable
from aiomas_ng.exceptions import AiomasError, DeserializationError, SerializationError

ALL = [JSON, MsgPack, pytest.param(MsgPackBlosc, marks=pytest.mark.needs("blosc2"))]
PLAIN = [JSON, MsgPack]

every_codec = pytest.mark.parametrize("codec_class", ALL)
every_plain_codec = pytest.mark.parametrize("codec_class", PLAIN)

scalars = st.none() | st.booleans() | st.integers(-(2**300), 2**300) | st.floats() | st.text()
json_keys = st.text() | st.just("__type__")


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(children) | st.dictionaries(json_keys, children)


json_data = st.recursive(scalars | st.binary(), containers, max_leaves=20)
"""What arrives from JSON as it was sent."""

hashable = st.recursive(scalars | st.binary(), lambda children: st.lists(children).map(tuple), max_leaves=5)
msgpack_data = st.recursive(
    scalars | st.binary(),
    lambda children: st.lists(children).map(tuple) | st.dictionaries(hashable, children),
    max_leaves=20,
)
"""What arrives from MsgPack as it was sent."""


class Point:
    """A type with a serializer."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))

    @classmethod
    def __serializer__(cls) -> tuple[Any, Any, Any]:
        return cls, lambda point: [point.x, point.y], lambda data: cls(*data)


class Opaque:
    """A type without a serializer."""


class Unrepresentable:
    """A type whose representation fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no representation")


def with_point(codec_class: type[Codec]) -> Codec:
    """Return a codec that carries points."""
    codec = codec_class()
    codec.add_serializer(*Point.__serializer__())
    return codec


def round_trip(codec: Codec, data: Any) -> Any:
    return codec.decode(codec.encode(data))


def same(left: Any, right: Any) -> bool:
    """Compare strictly: types count as well, and NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or repr(left) == repr(right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


def ext(payload: Any, code: int = codecs.EXT_TYPE) -> bytes:
    """Return the MsgPack of a custom type with any payload."""
    content = MsgPack().encode(payload)
    return b"\xc9" + struct.pack("!Ib", len(content), code) + content


# -- What arrives -----------------------------------------------------------------------------------


@given(data=json_data)
@example(data={"__type__": ["dict", []]})
@example(data={"__type__": {"__type__": 1, "b": [{"__type__": None}]}})
def test_json_round_trip(data: Any) -> None:
    """JSON delivers any plain data and bytes as it was, and any dict with keys of str."""
    assert same(round_trip(JSON(), data), data)


@given(data=msgpack_data)
@example(data={"__type__": ("dict", ())})
@example(data={(1, ("a", None)): {b"\xff": 2**64}, "__type__": -(2**63) - 1})
def test_msgpack_round_trip(data: Any) -> None:
    """MsgPack delivers any plain data as it was, and dicts with keys of any hashable type."""
    assert same(round_trip(MsgPack(), data), data)


@pytest.mark.needs("blosc2")
@given(data=msgpack_data)
def test_blosc_round_trip(data: Any) -> None:
    """MsgPackBlosc delivers what MsgPack delivers."""
    assert same(round_trip(MsgPackBlosc(), data), data)


def test_sequences() -> None:
    """Sequences arrive as lists from JSON and as tuples from MsgPack."""
    assert round_trip(JSON(), [1, (2, 3)]) == [1, [2, 3]]
    assert round_trip(MsgPack(), [1, (2, 3)]) == (1, (2, 3))


@every_codec
def test_bytes_like(codec_class: type[Codec]) -> None:
    """Everything that is like bytes arrives as bytes."""
    data = [b"a\xff", bytearray(b"b"), memoryview(b"c")]
    assert list(round_trip(codec_class(), data)) == [b"a\xff", b"b", b"c"]


@every_codec
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_input_types(codec_class: type[Codec], kind: Any) -> None:
    """Messages may be given as any type of bytes."""
    codec = codec_class()
    assert codec.decode(kind(codec.encode({"a": "ä"}))) == {"a": "ä"}


@every_plain_codec
def test_subclasses_arrive_as_the_plain_type(codec_class: type[Codec]) -> None:
    """Subclasses of plain types are sent as what they extend."""

    class Pair(NamedTuple):
        left: int
        right: int

    class Number(IntEnum):
        ONE = 1

    class Text(str):
        __slots__ = ()

    left, number, text = round_trip(codec_class(), [Pair(1, 2), Number.ONE, Text("t")])
    assert (tuple(left), number, text) == ((1, 2), 1, "t")
    assert (type(number), type(text)) == (int, str)


def test_json_is_plain_json() -> None:
    """Plain data is JSON that any client reads, and text is UTF-8."""
    data = {"ä": [1, 2.5, None, True, {"b": []}], "big": 10**30, "nan": math.inf}
    message = JSON().encode(data)
    assert json.loads(message.decode()) == data
    assert "ä".encode() in message
    assert JSON().decode(json.dumps(data).encode()) == data


def test_json_keys() -> None:
    """Keys that are no str become text by json's rules, also next to the marker's key."""
    data = {2: "int", None: "none", True: "bool", 1.5: "float", "__type__": "text"}
    assert round_trip(JSON(), data) == {**json.loads(json.dumps(data))}
    assert round_trip(JSON(), {2: 3}) == {"2": 3}


@pytest.mark.parametrize(
    "data",
    [
        {"__type__": ["a", 1], "b": 2},
        {"__type__": []},
        {"__type__": [1, 2]},
        {"__type__": ["a", 2, 3]},
        {"__type__": "dict"},
        {"__type__": None},
    ],
)
def test_json_foreign_dicts_stay_plain(data: Any) -> None:
    """A dict of a foreign peer that is not exactly our marker is plain data."""
    assert JSON().decode(json.dumps(data).encode()) == data


@given(value=st.integers(-(2**9000), 2**9000))
@example(value=2**63)
@example(value=-(2**63) - 1)
@example(value=2 ** (8 * builtin_types.MAX_INT_SIZE - 1) - 1)
def test_msgpack_large_integers(value: int) -> None:
    """Integers of any size up to the limit arrive from MsgPack, as keys too."""
    assert round_trip(MsgPack(), {value: [value]}) == {value: (value,)}


def test_msgpack_too_large_integer() -> None:
    """An integer above the limit is refused in both directions."""
    with pytest.raises(SerializationError, match=r"4097 bytes is too large.*at \[1\]"):
        MsgPack().encode([0, 2 ** (8 * builtin_types.MAX_INT_SIZE)])
    with pytest.raises(DeserializationError, match="at most 4096 bytes"):
        MsgPack().decode(ext(["int", bytes(4097)]))


# -- Custom types -----------------------------------------------------------------------------------


@every_codec
def test_custom_types(codec_class: type[Codec]) -> None:
    """Objects with a serializer arrive, also inside of each other and next to dicts with the marker's key."""
    data = {"a": Point(Point(1, 2.5), {"__type__": Point(None, "x")}), "__type__": Point(b"\0", 2**70)}
    assert round_trip(with_point(codec_class), data) == data


def test_custom_type_as_key() -> None:
    """In MsgPack, an object can be the key of a dict."""
    assert round_trip(with_point(MsgPack), {Point(1, 2): Point(3, 4)}) == {Point(1, 2): Point(3, 4)}


def test_wire_of_custom_types() -> None:
    """Custom types travel by name: in MsgPack as one extension type, in JSON as a dict of one key."""
    name = f"{__name__}.Point"
    assert MsgPack().decode(b"\x01") == 1
    assert with_point(MsgPack).encode(Point(1, 2)) == b"\xc7" + ext([name, [1, 2]])[4:]
    assert json.loads(with_point(JSON).encode(Point(1, 2))) == {"__type__": [name, [1, 2]]}
    assert json.loads(JSON().encode({"__type__": 1, "b": b"x"})) == {
        "__type__": ["dict", [["__type__", 1], ["b", {"__type__": ["bytes", "eA=="]}]]]
    }


@every_codec
def test_order_of_serializers_does_not_matter(codec_class: type[Codec]) -> None:
    """Two sides may add their serializers in different order, and one may have more than the other."""
    sender, receiver = with_point(codec_class), codec_class()
    receiver.add_serializer(complex, lambda c: [c.real, c.imag], lambda data: complex(*data))
    receiver.add_serializer(*Point.__serializer__())
    assert receiver.decode(sender.encode(Point(1, 2))) == Point(1, 2)


@every_codec
def test_fallback(codec_class: type[Codec]) -> None:
    """A serializer for object takes everything that has none, after the types that are built in."""
    codec = with_point(codec_class)
    codec.add_serializer(object, lambda obj: type(obj).__name__, lambda data: f"<{data}>", name="anything")
    assert list(round_trip(codec, [Opaque(), Point(1, 2), b"x", Opaque])) == [
        "<Opaque>",
        Point(1, 2),
        b"x",
        "<type>",
    ]


@every_codec
def test_fallback_may_refuse(codec_class: type[Codec]) -> None:
    """What the serializer for object says about a value it does not know reaches the caller."""

    def refuse(obj: Any) -> Any:
        raise SerializationError("only services can be sent")

    codec = codec_class()
    codec.add_serializer(object, refuse, refuse, name="anything")
    with pytest.raises(SerializationError, match=r"^only services can be sent \(at \['a'\]\[1\]\)$"):
        codec.encode({"a": [1, Opaque()]})


@every_plain_codec
def test_other_module_at_the_peer(codec_class: type[Codec]) -> None:
    """A class that is in another module at the peer is found by its qualname, the longest that fits."""

    class Inner:
        pass

    sender, receiver = codec_class(), codec_class()
    sender.add_serializer(Point, lambda p: [p.x, p.y], lambda d: d, name="pkg.shapes.Point")
    sender.add_serializer(Inner, lambda p: 0, lambda d: d, name=f"__main__.{Inner.__qualname__}")
    receiver.add_serializer(*Point.__serializer__())
    receiver.add_serializer(Inner, lambda p: 0, lambda d: "inner")
    receiver.add_serializer(type("Inner", (), {}), lambda p: 0, lambda d: "other")
    assert list(receiver.decode(sender.encode([Point(1, 2), Inner()]))) == [Point(1, 2), "inner"]


@every_plain_codec
def test_ambiguous_or_given_names(codec_class: type[Codec]) -> None:
    """A name that could mean several types is refused, and a name that was given is only ever exact."""
    sender, receiver = codec_class(), codec_class()
    sender.add_serializer(Point, lambda p: 0, lambda d: d, name="shapes.Thing")
    for module in "ab":
        receiver.add_serializer(type("Thing", (), {"__module__": module}), id, lambda d: d)
    receiver.add_serializer(Point, lambda p: 0, lambda d: d, name="Point")
    with pytest.raises(DeserializationError, match=r"any of a\.Thing, b\.Thing"):
        receiver.decode(sender.encode(Point(1, 2)))
    with pytest.raises(DeserializationError, match=r"Point' is not known here; add its serializer"):
        receiver.decode(with_point(codec_class).encode(Point(1, 2)))


def test_one_serializer_per_type_and_name() -> None:
    """A type or a name that is there already, and a reserved name, are refused."""
    codec = with_point(MsgPack)
    with pytest.raises(ValueError, match="already a serializer for type"):
        codec.add_serializer(Point, str, str)
    with pytest.raises(ValueError, match="give this one another name="):
        codec.add_serializer(Opaque, str, str, name=f"{__name__}.Point")
    for name in ("", "dict", "array"):
        with pytest.raises(ValueError, match="reserved"):
            codec.add_serializer(Opaque, str, str, name=name)
    codec.add_serializer(Opaque, lambda obj: None, lambda data: "opaque")
    assert round_trip(codec, Opaque()) == "opaque"


def test_odd_types() -> None:
    """What is given as a type is not validated, as programs give functions and other things."""
    codec = JSON()
    codec.add_serializer(math.sqrt, str, str)
    codec.add_serializer(test_odd_types, str, str)
    codec.add_serializer(3.5, str, str)
    assert str(codec) == "JSON[sqrt, test_odd_types, 3.5]"


def test_str_of_a_codec() -> None:
    """A codec as text shows its types."""
    assert str(MsgPack()) == "MsgPack[]"
    assert str(with_point(JSON)) == "JSON[Point]"


def test_base_class() -> None:
    """The base of codecs implements no format."""
    with pytest.raises(NotImplementedError):
        Codec().encode(1)
    with pytest.raises(NotImplementedError):
        Codec().decode(b"1")
    assert Codec().peek(b"[0,1,2]") is None


def test_codec_of_a_user() -> None:
    """A codec of the user's own carries custom types with the dict that the base class offers."""

    class Own(Codec):
        def encode(self, data: Any) -> bytes:
            return json.dumps(data, default=self.serialize_obj).encode()

        def decode(self, data: bytes | bytearray | memoryview) -> Any:
            return json.loads(bytes(data), object_hook=self.deserialize_obj)

    codec = with_point(Own)
    assert round_trip(codec, {"a": [Point(1, b"x")]}) == {"a": [Point(1, b"x")]}
    with pytest.raises(SerializationError, match=r"No serializer found for type .*\.Opaque"):
        codec.encode(Opaque())
    with pytest.raises(DeserializationError):
        codec.decode(b'{"__type__": ["a.B", 1]}')


@every_codec
def test_serializer_may_use_the_codec(codec_class: type[Codec]) -> None:
    """A serializer may encode and decode with the codec that calls it."""
    codec = codec_class()
    codec.add_serializer(Point, lambda p: codec.encode({"__type__": [p.x, p.y]}), codec.decode)
    result = round_trip(codec, [1, Point(Point(2, 3), 4), {"__type__": 5}])
    assert result[1]["__type__"][0]["__type__"][1] == 3
    assert result[2] == {"__type__": 5}


@every_codec
def test_threads(codec_class: type[Codec]) -> None:
    """Several threads may use one codec."""
    codec = with_point(codec_class)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for _ in range(200):
            data = {"__type__": Point(number, "x" * number)}
            if round_trip(codec, data) != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@every_codec
def test_after_an_error(codec_class: type[Codec]) -> None:
    """A value that cannot be encoded does no harm to the next one, nor does a large one."""
    codec = codec_class()
    with pytest.raises(SerializationError):
        codec.encode(["a" * 100, Opaque()])
    assert round_trip(codec, "b") == "b"
    large = b"x" * 2**21
    assert round_trip(codec, large) == large
    assert round_trip(codec, "c") == "c"


# -- Errors of encoding -----------------------------------------------------------------------------


@every_codec
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Opaque(), r"^No serializer found for type .*\.Opaque$"),
        ([0, {"a": (1, Opaque())}], r"Opaque \(at \[1\]\['a'\]\[1\]\)"),
        ([Point(Opaque(), 1)], r"\.Opaque"),
        (["a", 0, "\ud800"], r"surrogates.* \(at \[2\]\)"),
        ({"\udfff": 0}, r"surrogates.* \(at the top, the key "),
        ([Point("\ud800", 1)], "surrogates"),
        ({1: {Unrepresentable()}}, r"No serializer found for type builtins.set \(at \[1\]\)"),
        ([Unrepresentable(), 10**5000, "\ud800"], "."),
        ({(1, Opaque()): 1}, "Opaque|keys must be str"),
    ],
)
def test_what_cannot_be_encoded(codec_class: type[Codec], data: Any, text: str) -> None:
    """An error of encoding says which type, and where in the data."""
    with pytest.raises(SerializationError, match=text) as info:
        with_point(codec_class).encode(data)
    assert type(info.value) is SerializationError
    assert isinstance(info.value, AiomasError)


@every_codec
def test_data_that_contains_itself(codec_class: type[Codec]) -> None:
    """Data that contains itself, directly or through an object, and data too deep, are refused."""
    cycle: list[Any] = []
    cycle.append([cycle])
    point = Point(0, None)
    point.y = {"__type__": [point]}
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    codec = with_point(codec_class)
    for data in (cycle, point, deep, {"a": [cycle, Opaque()]}):
        with pytest.raises(SerializationError):
            codec.encode(data)
    with pytest.raises(SerializationError, match="contains itself"):
        codec.encode(deep)


@every_codec
def test_serializer_that_fails(codec_class: type[Codec]) -> None:
    """An error in a serializer is the cause of ours; so is one in a deserializer."""
    codec = codec_class()
    codec.add_serializer(Unrepresentable, lambda obj: 1 / 0, int, name="u")
    codec.add_serializer(Point, lambda obj: 0, lambda data: 1 / data, name="p")
    with pytest.raises(SerializationError, match=r"ZeroDivisionError: division by zero \(at \[0\]\)") as info:
        codec.encode([Unrepresentable()])
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    with pytest.raises(
        DeserializationError, match="Could not deserialize a p: ZeroDivisionError"
    ) as decoding:
        codec.decode(codec.encode(Point(1, 2)))
    assert isinstance(decoding.value.__cause__, ZeroDivisionError)


@every_codec
def test_serializer_that_returns_its_object(codec_class: type[Codec]) -> None:
    """A serializer that returns what it was given does not run for ever."""
    codec = codec_class()
    codec.add_serializer(Point, lambda obj: obj, lambda data: data)
    with pytest.raises(SerializationError):
        codec.encode(Point(1, 2))


def test_subclass_that_refuses() -> None:
    """What a codec of the user's own says about a value reaches the caller."""

    class Strict(JSON):
        def serialize_obj(self, obj: Any) -> dict[str, Any]:
            raise SerializationError("plain data only")

    with pytest.raises(SerializationError, match=r"^plain data only$"):
        Strict().encode([Opaque()])


@every_codec
def test_deserializer_that_refuses(codec_class: type[Codec]) -> None:
    """A deserializer may say itself that data is malformed."""

    def refuse(data: Any) -> Any:
        raise DeserializationError("not today")

    codec = codec_class()
    codec.add_serializer(Point, lambda obj: 0, refuse)
    with pytest.raises(DeserializationError, match=r"^not today$"):
        codec.decode(codec.encode(Point(1, 2)))


def test_errors_whose_text_fails() -> None:
    """An exception that cannot be printed, or prints all the data, is described in short."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert codec_errors.describe(Mute()) == "Mute"
    assert codec_errors.describe(ValueError("x" * 10_000)) == "ValueError: " + "x" * 200
    assert codec_errors.short(Unrepresentable()).startswith("<Unrepresentable")
    assert codec_errors.short(type("list", (), {})()).startswith("<")


def test_search_for_the_place_is_bounded() -> None:
    """Very wide data that cannot be encoded is not searched through to its end."""
    wide = [list(range(1000))] * 1000 + [Opaque()]
    with pytest.raises(SerializationError, match=r"Opaque$"):
        MsgPack().encode(wide)


# -- Hostile peers ----------------------------------------------------------------------------------


def decodes_or_refuses(codec: Codec, message: bytes) -> None:
    try:
        codec.decode(message)
    except DeserializationError as exc:
        text = str(exc)
        assert len(text) < 1000
    head = codec.peek(message)
    assert head is None or (type(head[0]) is int and type(head[1]) in (int, str))


def hostile_codec(codec_class: type[Codec]) -> Codec:
    codec = with_point(codec_class)
    codec.add_serializer(object, lambda obj: None, lambda data: data["x"], name="r")
    return codec


@every_codec
@given(message=st.binary(max_size=200))
def test_random_bytes(codec_class: type[Codec], message: bytes) -> None:
    """Random bytes are decoded or refused, and nothing else happens."""
    decodes_or_refuses(hostile_codec(codec_class), message)


custom_names = (
    st.sampled_from(["array", "scalar", "bytes", "dict", "int", "r", f"{__name__}.Point"]) | st.text()
)
anything = st.deferred(lambda: msgpack_data | st.tuples(custom_names, msgpack_data))


@given(
    content=st.tuples(custom_names, msgpack_data) | msgpack_data, code=st.sampled_from([0x61, 0, 5, -1, 127])
)
def test_malformed_custom_types_in_msgpack(content: Any, code: int) -> None:
    """An extension type with any content is decoded or refused."""
    decodes_or_refuses(hostile_codec(MsgPack), b"\x91" + ext(content, code))


@given(name=custom_names, content=json_data)
def test_malformed_custom_types_in_json(name: str, content: Any) -> None:
    """A marker with any content is decoded or refused."""
    inner = JSON().encode(content).decode()
    message = f'[{{"__type__": [{json.dumps(name)}, {inner}]}}]'
    decodes_or_refuses(hostile_codec(JSON), message.encode(errors="replace"))


@every_codec
@given(data=st.data())
def test_damaged_messages(codec_class: type[Codec], data: st.DataObject) -> None:
    """Messages with flipped bits or cut off are decoded or refused."""
    codec = hostile_codec(codec_class)
    content = [0, 1, [Point(1, {"a": b"xyz", "__type__": 2**80}), [1.5, "äöü"] * 20, {"k": [None, True]}]]
    message = bytearray(codec.encode(content))
    for _ in range(data.draw(st.integers(0, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_refuses(codec, bytes(message[: data.draw(st.integers(0, len(message)))]))


@every_codec
@pytest.mark.parametrize("message", [b"", b"\xc1", b"\xff" * 3, b"\x93\x00", b"\x00\x00", b"1 2"])
def test_malformed_messages(codec_class: type[Codec], message: bytes) -> None:
    """What no codec writes is refused."""
    with pytest.raises(DeserializationError):
        codec_class().decode(message)


@pytest.mark.parametrize(
    "message",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b'"\xff"',
        b'{"__type__":["bytes","*"]}',
        b'{"__type__":["bytes",1]}',
        b'{"__type__":["dict",[[1,2]]]}',
        b'{"__type__":["dict",[[[],2]]]}',
        b'{"__type__":["int","AA=="]}',
        b'{"__type__":["a.B",0]}',
        b'{"__type__":["array",[["O"],[1],"AA=="]]}',
        b'{"__type__":["' + b"." * 100_000 + b'",0]}',
    ],
    ids=lambda message: message[:30],
)
def test_hostile_json(message: bytes) -> None:
    """JSON that is too deep, no UTF-8, or has malformed markers is refused."""
    codec = with_point(JSON)
    with pytest.raises(DeserializationError) as info:
        codec.decode(message)
    assert len(str(info.value)) < 300


@pytest.mark.parametrize(
    "message",
    [
        b"\x91" * 100_000,
        b"\x81" * 100_000,
        b"\xa1\xff",
        b"\x81\x90\x00\x00",
        b"\x81\x80\x00",
        b"\x81" + ext(["r", {"x": {}}]) + b"\x00",
        ext(["a.B", 0]),
        ext(["int", "1"]),
        ext(["int"]),
        ext([1, 2]),
        ext({}),
        ext(["bytes", "*"]),
        ext(["array", [1, 2]]),
        ext(["a", 0], code=5),
        msgpack.packb(msgpack.ExtType(0x61, b"")),
        b"\xc7\x05\xff\x00\x00\x00\x00\x00",
        b"\x92\xc7\x01\xff\x00",
    ],
    ids=lambda message: message[:12].hex(),
)
def test_hostile_msgpack(message: bytes) -> None:
    """MsgPack that is too deep, no UTF-8, or has malformed or unknown extension types is refused."""
    with pytest.raises(DeserializationError):
        hostile_codec(MsgPack).decode(message)


def test_nested_custom_types() -> None:
    """Custom types may contain each other up to a limit; beyond it, both sides refuse."""
    codec = with_point(MsgPack)
    data: Any = 0
    for _ in range(codecs.MAX_DEPTH):
        data = Point(data, 0)
    assert round_trip(codec, data) == data
    with pytest.raises(SerializationError, match="more than 32 deep"):
        codec.encode(Point(data, 0))
    payload = b"\x00"
    for _ in range(2000):
        payload = msgpack.packb(msgpack.ExtType(0x61, b"\x92\xa1r" + payload))
    with pytest.raises(DeserializationError, match="more than 32 deep"):
        hostile_codec(MsgPack).decode(payload)


@pytest.mark.parametrize("header", [b"\xdd\x00\x03\xff\x00", b"\xdc\xff\x00", b"\xdf\x00\x01\xff\x00"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_announced_items_are_not_allocated(header: bytes, is_nested: bool) -> None:
    """Arrays that announce more items than there are do not make the decoder allocate memory for them."""
    message = header * 1000 + bytes(2**18 - 1000 * len(header))
    if is_nested:
        message = msgpack.packb(msgpack.ExtType(0x61, message))
    codec = MsgPack()
    tracemalloc.start()
    try:
        with pytest.raises(DeserializationError):
            codec.decode(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * len(message)


def test_many_arrays_are_decoded() -> None:
    """Honest data with many arrays passes the check for those that announce too much."""
    data = {"a": [list(range(100))] * 1000, "b": Point([list(range(20))] * 1000, b"\xdc\xdd" * 1000)}
    result = round_trip(with_point(MsgPack), data)
    assert result["a"] == (tuple(range(100)),) * 1000
    assert result["b"].y == b"\xdc\xdd" * 1000


# -- The envelope of messages that do not decode ------------------------------------------------------


@every_plain_codec
@given(
    type=st.integers(-(2**63), 2**63),
    id=st.integers(-(2**63), 2**63) | st.text(max_size=20),
    content=json_data,
    data=st.data(),
)
def test_peek(codec_class: type[Codec], type: int, id: Any, content: Any, data: st.DataObject) -> None:
    """Type and id are read from a message of which only the head is there."""
    codec = codec_class()
    message = codec.encode([type, id, content])
    head_size = len(codec.encode([type, id])) + 1
    cut = data.draw(st.integers(head_size, max(head_size, len(message))))
    assert codec.peek(memoryview(message)[:cut]) == (type, id)


@every_plain_codec
@given(
    data=st.tuples(scalars | st.binary(), scalars | st.binary(), scalars)
    | st.tuples(st.integers(), st.integers())
    | json_data
)
def test_peek_is_strict(codec_class: type[Codec], data: Any) -> None:
    """Nothing is read from what does not begin with a type and an id."""
    codec = codec_class()
    expected = None
    # The head of a JSON list does not tell how long it is.
    sizes = range(3, 100) if codec_class is JSON else [3]
    is_envelope = isinstance(data, (tuple, list)) and len(data) in sizes
    if is_envelope and type(data[0]) is int and type(data[1]) in (int, str):
        expected = (data[0], data[1])
    assert codec.peek(codec.encode(data)) in (expected, None)


@every_plain_codec
@pytest.mark.parametrize(
    "data", [[True, 1, 2], [1, False, 2], [1.0, 2, 3], [1, None, 3], ["1", 2, 3], [0], 7, []]
)
def test_peek_refuses(codec_class: type[Codec], data: Any) -> None:
    """Booleans and other types are neither type nor id."""
    assert codec_class().peek(codec_class().encode(data)) is None


def test_peek_when_the_content_does_not_decode() -> None:
    """Type and id are read where the content has an unknown type; a cut id is not read."""
    for codec in (with_point(JSON), with_point(MsgPack)):
        message = codec.encode([0, "id-7", Point(1, 2)])
        assert type(codec)().peek(message) == (0, "id-7")
        assert codec.peek(message[:5]) is None
    assert JSON().peek(b'[0,"a\nb",') is None
    assert JSON().peek(b' [ 0 , "\\u00e4\\"" , x') == (0, 'ä"')
    assert MsgPack().peek(b"\x93\x00\xd9\xff" + b"a" * 50) is None
    assert MsgPack().peek(b"\x93\x00\xc7\x00\x61\x00") is None
    assert MsgPack().peek(b"\x93\x00\xdd\xff\xff\xff\xff") is None


# -- MsgPack in pieces, and several messages in one ---------------------------------------------------

MARK = codecs.LARGE

large_data = st.recursive(
    scalars | st.binary(max_size=50) | st.sampled_from([bytes(MARK), bytes(MARK - 1), b"x" * (MARK + 1)]),
    lambda children: (
        st.lists(children, max_size=5)
        | st.lists(children, max_size=5).map(tuple)
        | st.dictionaries(hashable, children, max_size=5)
        | children.map(lambda data: Point(data, 0))
    ),
    max_leaves=12,
)
"""Data with bytes in it that are as large as those that are kept apart, or almost."""


@settings(max_examples=40)
@given(data=large_data)
@example(data=bytes(MARK))
@example(data=[bytes(MARK)] * 3)
@example(data={bytes(MARK): bytes(MARK)})
@example(data=[0] * codecs.MAX_APART + [bytes(MARK)])
@example(data=(0, 1, ("path", (bytes(MARK),), {"a": [bytes(MARK), {}]})))
def test_pieces_are_the_same_message(data: Any) -> None:
    """A message in pieces is byte for byte the message in one."""
    codec = with_point(MsgPack)
    pieces = codec.encode_pieces(data)
    assert all(type(piece) is bytes for piece in pieces)
    assert b"".join(pieces) == codec.encode(data)


def test_large_bytes_are_not_copied() -> None:
    """Large bytes are one of the pieces as they are; what may be changed is copied, once."""
    codec, data = MsgPack(), bytes(MARK)
    assert any(piece is data for piece in codec.encode_pieces([1, {"a": (data,)}]))
    assert not any(piece is data for piece in codec.encode_pieces([1] * (codecs.MAX_APART + 1) + [data]))
    for changed in (bytearray(data), memoryview(bytearray(data))):
        pieces = codec.encode_pieces([changed, 1])
        changed[:] = b"x" * MARK
        assert codec.decode(b"".join(pieces)) == (data, 1)
    large = data * 64
    tracemalloc.start()
    try:
        codec.encode_pieces([1, large])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [MARK // 8 - 1, MARK // 8, MARK])
def test_views_of_wider_items(count: int) -> None:
    """Of a view of numbers the bytes arrive, all of them, whatever its length is counted in."""
    view = memoryview(array.array("d", [0.5]) * count)
    codec = MsgPack()
    assert codec.decode(b"".join(codec.encode_pieces([view]))) == (view.tobytes(),)


@pytest.mark.parametrize(
    "data",
    [object(), "\ud800", 2**40_000, {1: object()}, Opaque()],
    ids=["object", "text", "int", "dict", "opaque"],
)
def test_pieces_of_what_cannot_be_encoded(data: Any) -> None:
    """The errors are those of a message in one, and say where the fault is; the next message is whole."""
    codec = MsgPack()
    for message in ([bytes(MARK), data], [data, bytes(MARK)], {"a": [bytes(MARK), data]}):
        with pytest.raises(SerializationError) as in_pieces:
            codec.encode_pieces(message)
        with pytest.raises(SerializationError) as in_one:
            codec.encode(message)
        assert str(in_pieces.value) == str(in_one.value)
    assert codec.decode(b"".join(codec.encode_pieces([bytes(MARK)]))) == (bytes(MARK),)


def test_pieces_of_what_contains_itself() -> None:
    """Data that contains itself, many times over, is refused at once."""
    data: list[Any] = [bytes(MARK)]
    data += [data] * 10
    with pytest.raises(SerializationError):
        MsgPack().encode_pieces(data)
    released = memoryview(b"x")
    released.release()
    with pytest.raises(SerializationError):
        MsgPack().encode_pieces([released, bytes(MARK)])


@settings(max_examples=30)
@given(contents=st.lists(msgpack_data, max_size=20))
@example(contents=[])
@example(contents=[0] * 15)
@example(contents=[0] * 16)
@example(contents=[[11, 0, []]])
def test_joined_messages(contents: list[Any]) -> None:
    """Messages that are joined are decoded as one frame, and are split into what they were."""
    codec = MsgPack()
    payloads = [codec.encode((0, n, content)) for n, content in enumerate(contents)]
    message = codec.join(payloads)
    expected = (11, 0, tuple((0, n, content) for n, content in enumerate(contents)))
    assert same(codec.decode(message), codec.decode(codec.encode(expected)))
    assert len(message) <= sum(map(len, payloads)) + 8
    assert codec.split(message) == codec.split(memoryview(message)) == payloads
    assert codec.peek(message) == (11, 0)


def test_many_joined_messages() -> None:
    """As many messages are joined as the format has room for."""
    codec = MsgPack()
    payloads = [codec.encode((1, 2, 3))] * 65_535
    assert codec.split(codec.join(payloads)) == payloads


def test_messages_are_split_without_decoding_them() -> None:
    """What cannot be decoded is split all the same, and is still what it was."""
    codec = MsgPack()
    payloads = [codec.encode((0, 1, 2)), b"\x93\x00\x01" + ext(["no.Such", 0]), b"\x93\x00\x02\xa1\xff"]
    assert codec.split(codec.join(payloads)) == payloads


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x93",
        b"\x93\x0b",
        b"\x93\x0b\x00",
        b"\x93\x0b\x00\x91",
        b"\x93\x0b\x00\x05",
        b"\x93\x0b\x00\x81\x00\x00",
        b"\x93\x0b\x01\x91\x00",
        b"\x93\x01\x00\x91\x00",
        b"\x92\x0b\x00\x91\x00",
        b"\x93\x0b\x00\xdd\xff\xff\xff\xff",
        b"\x93\x0b\x00\x91\x93\x0b\x00\x90",
        b"\x93\x0b\x00\x90rest",
        b"\x93\x0b\x00\x92\xc1\x00",
    ],
    ids=lambda message: message.hex(),
)
def test_what_is_no_bundle_is_not_split(message: bytes) -> None:
    """Anything else than whole messages in one, none of them such a one again, is left alone."""
    for data in (message, memoryview(message)):
        assert MsgPack().split(data) is None


@given(message=st.binary(max_size=60))
def test_no_bytes_make_split_raise(message: bytes) -> None:
    """Whatever a peer sends, it is split or it is not."""
    for data in (message, b"\x93\x0b\x00" + message):
        parts = MsgPack().split(data)
        assert parts is None or b"".join(parts) == data[len(data) - sum(map(len, parts)) :]


def test_which_codecs_are_plain() -> None:
    """Only messages of MsgPack that nobody has a hand in are joined and split."""

    class Quiet(MsgPack):
        """Changes nothing."""

    class Encodes(MsgPack):
        def encode(self, data: Any) -> bytes:
            return super().encode(data)

    class Decodes(Quiet):
        def decode(self, data: Any) -> Any:
            return super().decode(data)

    for codec in (MsgPack(), Quiet(), with_point(MsgPack)):
        assert codecs.as_plain_msgpack(codec) is codec
    for other in (JSON(), Encodes(), Decodes(), Codec()):
        assert codecs.as_plain_msgpack(other) is None
    for name in ("encode", "decode"):
        spied = MsgPack()
        setattr(spied, name, getattr(spied, name))
        assert codecs.as_plain_msgpack(spied) is None


@pytest.mark.needs("blosc2")
def test_compressed_messages_are_not_plain() -> None:
    """Compressed messages cannot be joined."""
    assert codecs.as_plain_msgpack(MsgPackBlosc()) is None


# -- Blosc ------------------------------------------------------------------------------------------


@pytest.mark.needs("blosc2")
def test_blosc_compresses() -> None:
    """Large messages become smaller."""
    codec = MsgPackBlosc()
    data = tuple(float(number) for number in range(10_000))
    message = codec.encode(data)
    assert len(message) < 30_000
    assert codec.decode(message) == data


@pytest.mark.needs("blosc2")
def test_peek_into_a_compressed_message() -> None:
    """Type and id are read from a message whose content is not known here, but not from a damaged one."""
    codec = with_point(MsgPackBlosc)
    message = codec.encode([0, "id-7", Point(1, 2)])
    assert MsgPackBlosc().peek(message) == (0, "id-7")
    assert MsgPackBlosc().peek(message[:-1]) is None
    assert MsgPackBlosc().peek(b"") is None


@pytest.mark.needs("blosc2")
def test_blosc_limit() -> None:
    """A small message that would become larger than the limit is refused before it is decompressed."""

    class Small(MsgPackBlosc):
        max_decompressed_size = 10_000

    bomb = MsgPackBlosc().encode(bytes(100_000_000))
    assert len(bomb) < 20_000
    with pytest.raises(DeserializationError, match=r"100000005 bytes when decompressed, the limit is 10000"):
        Small().decode(bomb)
    codec = MsgPackBlosc()
    codec.max_decompressed_size = 9
    with pytest.raises(DeserializationError, match="the limit is 9"):
        codec.decode(codec.encode(bytes(100)))


@pytest.mark.needs("blosc2")
def test_blosc_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into a chunk is refused; so is what the library fails to compress."""
    codec = MsgPackBlosc()
    monkeypatch.setattr(blosc_chunk, "MAX_SIZE", 10)
    with pytest.raises(SerializationError, match="compresses 10 at most"):
        codec.encode(bytes(100))
    monkeypatch.undo()
    monkeypatch.setattr(codec._blosc2, "compress2", lambda *args, **kwds: 1 / 0)
    with pytest.raises(SerializationError, match="could not be compressed"):
        codec.encode(1)


@pytest.mark.needs("blosc2")
@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (2, 0),
        (2, 0xE5),
        (3, 0),
        (4, 0),
        (4, 200),
        (8, 0),
        (11, 0x80),
        (12, 1),
        (16, 3),
        (21, 160),
        (24, 1),
        (31, 1),
    ],
)
def test_blosc_header(offset: int, value: int) -> None:
    """A header that says anything unusual is refused: filters and codecs of others, wrong sizes."""
    codec = MsgPackBlosc()
    chunk = bytearray(codec.encode("abc" * 1000))
    chunk[offset] = value
    with pytest.raises(DeserializationError):
        codec.decode(chunk)


BLOSC_FUZZER = """
import random
from aiomas_ng.codecs import MsgPackBlosc
from aiomas_ng.exceptions import DeserializationError

codec = MsgPackBlosc()
codec.max_decompressed_size = 10**6
random.seed(1)
refused = 0
for _ in range(4000):
    size = random.randrange(1, 5000)
    numbers = [number / 7 for number in range(size)]
    data = random.choice([bytes(size), random.randbytes(size), "abc" * size, numbers, [7] * size])
    chunk = bytearray(codec.encode(data))
    for _ in range(random.randrange(1, 5)):
        # Most of what a chunk says about itself is in its first bytes.
        chunk[random.randrange(random.choice([32, 64, len(chunk)]) % len(chunk) or 1)] = random.randrange(256)
    if random.random() < 0.2:
        del chunk[random.randrange(len(chunk)):]
    if len(chunk) >= 16 and random.random() < 0.9:
        chunk[12:16] = len(chunk).to_bytes(4, "little")
    try:
        codec.decode(chunk)
    except DeserializationError:
        refused += 1
print(refused)
"""


@pytest.mark.needs("blosc2")
def test_hostile_chunks_do_not_crash() -> None:
    """Chunks with wrong sizes, flipped bits or a missing end never crash the interpreter."""
    process = subprocess.run(
        [sys.executable, "-c", BLOSC_FUZZER], capture_output=True, text=True, timeout=100, check=False
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 1000


def test_missing_blosc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without blosc2 the codec can be imported, and says on instantiation what is missing."""
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(ImportError, match=r"MsgPackBlosc needs blosc2: pip install aiomas_ng\[blosc\]"):
        MsgPackBlosc()


# -- numpy ------------------------------------------------------------------------------------------


def numpy_values() -> list[Any]:
    import numpy as np

    structured = np.dtype([("a", "<i4"), ("b", [("x", ">f8", (2, 3)), ("y", "S3")]), ("d", "M8[ms]")])
    titled = np.dtype([(("title", "name"), "<i4")])
    aligned = np.dtype({"names": ["a", "b"], "formats": ["i1", "<f8"], "offsets": [0, 8], "itemsize": 24})
    values = [
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(20)[::-3],
        np.array(5.5),
        np.zeros((0, 3), "f4"),
        np.zeros((2, 0, 3)),
        np.arange(3, dtype=">u2"),
        np.array([True, False]),
        np.array([1 + 2j], "c8"),
        np.array([1.5], "f2"),
        np.array(["ä", "bcd"]),
        np.array([b"a", b"bc"]),
        np.array(["2024-01-01", "NaT"], "M8[D]"),
        np.array([1, 2], "m8[25s]"),
        np.array([1, 2], "M8[us]"),
        np.ones(2, "V3"),
        np.zeros(3, structured),
        np.zeros((2, 2), titled),
        np.zeros(2, aligned),
        np.zeros(3, np.dtype([])),
        np.zeros(3, "V0"),
        np.longdouble([1.5]),
    ]
    scalars = [
        np.int64(-7),
        np.uint8(255),
        np.float32(1.5),
        np.bool_(True),
        np.complex128(1 + 2j),
        np.datetime64("2024-01-01T00:00:00.000001"),
        np.timedelta64(3, "h"),
        np.longdouble(1) / 3,
        np.zeros(1, structured)[0],
        np.void(b"abc"),
    ]
    return values + scalars


@pytest.mark.needs("numpy")
@every_codec
def test_numpy(codec_class: type[Codec]) -> None:
    """Arrays and scalars of every plain dtype arrive, arrays are writable and in C order."""
    import numpy as np

    codec = codec_class()
    for value in numpy_values():
        result = round_trip(codec, value)
        assert type(result) is type(value)
        assert result.dtype == value.dtype
        assert result.shape == value.shape
        assert repr(result.tolist()) == repr(value.tolist())
        if isinstance(result, np.ndarray):
            assert result.flags.writeable
            assert result.flags.c_contiguous


@pytest.mark.needs("numpy")
def test_numpy_padding_is_not_sent() -> None:
    """What happens to be in memory between the fields of a structured array does not leave the process."""
    import numpy as np

    packed = np.full(48, 0xAA, "u1")
    array = packed.view({"names": ["a", "b"], "formats": ["<i4", "<f8"], "offsets": [0, 8], "itemsize": 24})
    assert array.tobytes().count(b"\xaa") == 48
    message = MsgPack().encode(array)
    assert message.count(b"\xaa") == 24
    assert MsgPack().decode(message)["a"].tolist() == array["a"].tolist()


@pytest.mark.needs("numpy")
@every_codec
def test_numpy_subclasses_of_builtin_types(codec_class: type[Codec]) -> None:
    """Scalars that extend float and str arrive as these, and numpy's integers can be keys of MsgPack."""
    import numpy as np

    assert list(round_trip(codec_class(), [np.float64(0.1), np.str_("a")])) == [0.1, "a"]
    assert round_trip(MsgPack(), {np.int64(1): np.int64(2)}) == {1: 2}


@pytest.mark.needs("numpy")
@every_codec
def test_numpy_memory_map(codec_class: type[Codec], tmp_path: Any) -> None:
    """An array on disk arrives as an array in memory."""
    import numpy as np

    array = np.memmap(tmp_path / "array", dtype="f8", mode="w+", shape=(2, 3))
    array[1] = 7
    assert (round_trip(codec_class(), array) == array).all()


@pytest.mark.needs("numpy")
@every_codec
def test_numpy_refused(codec_class: type[Codec]) -> None:
    """Arrays of objects, and those that would lose something, are refused."""
    import numpy as np

    overlapping = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})
    titled = np.dtype([((5, "a"), "i4")])
    for value, text in [
        (np.array([None]), "dtype object cannot be carried"),
        (np.zeros(1, [("a", "O")]), "cannot be carried"),
        (np.zeros(1, overlapping), "cannot be carried"),
        (np.zeros(1, titled), "title"),
        (np.ma.masked_array([1], [True]), "MaskedArray would arrive as a plain array"),
        (np.zeros(1, [("a", "i4")]).view(np.recarray), "recarray"),
    ]:
        with pytest.raises(SerializationError, match=text):
            codec_class().encode([value])


@pytest.mark.needs("numpy")
def test_numpy_serializer_of_a_user() -> None:
    """A serializer that was added for arrays comes before ours."""
    import numpy as np

    codec = MsgPack()
    codec.add_serializer(np.ndarray, lambda array: array.tolist(), lambda data: ("own", data))
    assert round_trip(codec, np.arange(3)) == ("own", (0, 1, 2))


NUMPY_ATTACKS: list[Any] = [
    ["|O", [1], bytes(8)],
    ["<i4", [2], bytes(4)],
    ["<i4", [-1], b""],
    ["<i4", [-1, -1], bytes(4)],
    ["<i4", [True], bytes(4)],
    ["<i4", [1.0], bytes(4)],
    ["<i4", [2**62, 4], b""],
    ["<i4", [2**64], b""],
    ["<i4", [1] * 65, bytes(4)],
    ["<i4", 1, bytes(4)],
    ["<i4", "1", bytes(4)],
    ["<i4", [1], [0, 0, 0, 0]],
    ["<i4", [1], 4],
    ["<i4", [1]],
    ["<i3", [1], bytes(3)],
    ["i4,i4", [1], bytes(8)],
    ["(2,2)i4", [1], bytes(16)],
    ["object", [1], bytes(8)],
    ["<f8; import os", [1], bytes(8)],
    ["|V0", [10**9], b""],
    ["<U0", [10**9], b""],
    [[], [10**9], b""],
    [[["a", "|O"]], [1], bytes(8)],
    [[["a", [["b", "|O", [2]]]]], [1], bytes(16)],
    [[["a", "<i4"], ["a", "<i4"]], [1], bytes(8)],
    [[["a", "<i4", [2**31, 2**31]]], [1], bytes(4)],
    [[["a", "<i4", [-1]]], [1], bytes(4)],
    [[["a", "<i4", [1], 0]], [1], bytes(4)],
    [[["a"]], [1], bytes(4)],
    [[[1, "<i4"]], [1], bytes(4)],
    [[[["t", "n", "x"], "<i4"]], [1], bytes(4)],
    [[5], [1], bytes(4)],
    [None, [1], bytes(4)],
    [{"names": ["a"]}, [1], bytes(4)],
]


@pytest.mark.needs("numpy")
@pytest.mark.parametrize("attack", NUMPY_ATTACKS, ids=lambda attack: str(attack)[:40])
def test_hostile_arrays(attack: Any) -> None:
    """Arrays of objects, of wrong size, or with any other dtype than ours are refused before allocation."""

    def as_text(data: Any) -> Any:
        return base64.b64encode(data).decode() if isinstance(data, bytes) else data

    with pytest.raises(DeserializationError):
        MsgPack().decode(ext(["array", attack]))
    text = json.dumps({"__type__": ["array", [as_text(part) for part in attack]]})
    with pytest.raises(DeserializationError):
        JSON().decode(text.encode())


@pytest.mark.needs("numpy")
def test_hostile_scalars() -> None:
    """A scalar with a shape is refused, and so is an array whose dtype never ends."""
    with pytest.raises(DeserializationError, match="A scalar has no shape"):
        MsgPack().decode(ext(["scalar", ["<i4", [1], bytes(4)]]))
    descr: Any = "<i4"
    for _ in range(200):
        descr = [["a", descr]]
    decodes_or_refuses(MsgPack(), ext(["array", [descr, [1], bytes(4)]]))


def test_missing_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numpy, an array of the peer is refused, and the error says what is missing."""
    message = ext(["array", ["<i4", [1], bytes(4)]])
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(DeserializationError, match=r"pip install aiomas_ng\[numpy\]"):
        MsgPack().decode(message)
    with pytest.raises(SerializationError, match="No serializer found"):
        MsgPack().encode(Opaque())


def test_numpy_is_not_imported() -> None:
    """Codecs do not import numpy for data that has nothing of it."""
    program = (
        "import sys; from aiomas_ng.codecs import JSON, MsgPack\n"
        "for codec in (JSON(), MsgPack()): codec.decode(codec.encode([2**70, b'x', {'__type__': 1}]))\n"
        "assert 'numpy' not in sys.modules and 'blosc2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.needs("numpy")
def test_dtype_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype that pretends to be plain bytes, and would arrive as such, is refused."""
    import numpy as np

    monkeypatch.setattr("numpy.lib.format.dtype_to_descr", lambda dtype: "<V4")
    with pytest.raises(SerializationError, match="would arrive as <V4"):
        numpy_types.dump(np.zeros(1, "<i4"))


# -- serializable -----------------------------------------------------------------------------------


def carry(obj: Any, codec_class: type[Codec] = MsgPack) -> Any:
    """Send an object of a serializable class."""
    codec = codec_class()
    codec.add_serializer(*type(obj).__serializer__())
    return round_trip(codec, obj)


@serializable
class Plain:
    def __init__(self, x: Any, y: Any = 2, *args: Any, z: Any = 3, **kwargs: Any) -> None:
        self.x, self._y, self.z, self.args = x, y, z, args

    @property
    def y(self) -> Any:
        return self._y


@every_codec
def test_serializable_class(codec_class: type[Codec]) -> None:
    """The parameters of a class travel, except those that take any number of arguments."""
    obj = carry(Plain(1, 5, 6, 7, z=[8], other=9), codec_class)
    assert (obj.x, obj.y, list(obj.z), obj.args) == (1, 5, [8], ())
    assert Plain(1).__asdict__() == {"x": 1, "y": 2, "z": 3}
    assert repr(Plain("a")) == "Plain(x='a', y=2, z=3)"


def test_serializer_of_a_class() -> None:
    """The serializer is a bound class method that returns the three arguments."""
    cls, serialize, deserialize = Plain.__serializer__()
    assert cls is Plain
    assert deserialize(serialize(Plain(7))).x == 7


def test_serializer_can_be_pickled() -> None:
    """The serializer of a class can be among the arguments of a container in another process."""
    assert pickle.loads(pickle.dumps(Plain.__serializer__))()[0] is Plain


def test_serializable_with_options() -> None:
    """The decorator can be called, and can leave the representation alone."""

    @serializable(repr=False)
    class Silent:
        def __init__(self, x: Any) -> None:
            self.x = x

    @serializable()
    class Cyclic:
        def __init__(self, x: Any) -> None:
            self.x = x

    assert repr(Silent(1)).startswith("<")
    assert carry(Silent(1)).x == 1
    cyclic = Cyclic(0)
    cyclic.x = cyclic
    assert repr(cyclic) == "Cyclic(x=...)"


@serializable
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: tuple[Any, ...] = ()
    c: int = dataclasses.field(default=0, kw_only=True)
    d: int = dataclasses.field(init=False, default=1)
    e: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "d", self.a * 2)


def test_frozen_dataclass() -> None:
    """A frozen dataclass with slots arrives with all fields, and keeps its own representation."""
    obj = Frozen(1, (2,), c=3)
    object.__setattr__(obj, "d", 44)
    object.__setattr__(obj, "e", 55)
    assert carry(obj) == obj
    assert carry(obj).d == 44
    assert repr(obj) == "Frozen(a=1, b=(2,), c=3, d=44, e=55)"


def test_field_that_was_never_set() -> None:
    """A field that has no value is not carried."""
    assert Frozen(1).__asdict__() == {"a": 1, "b": (), "c": 0, "d": 2}
    assert not hasattr(carry(Frozen(1)), "e")


def test_dataclass_on_top() -> None:
    """The two decorators may come in the other order."""

    @dataclasses.dataclass
    @serializable(repr=False)
    class Late:
        a: int
        b: int = 2

    assert carry(Late(1)) == Late(1)


def test_subclasses() -> None:
    """The parameters of a subclass count, whether it is decorated again or not."""

    @dataclasses.dataclass
    @serializable(repr=False)
    class Base:
        a: int

    @serializable
    @dataclasses.dataclass
    class Again(Base):
        b: int

    @dataclasses.dataclass
    class Inherited(Base):
        c: int = 0

    class Narrow(Plain):
        def __init__(self, w: Any) -> None:
            super().__init__(w, w)
            self.w = w

    assert carry(Again(1, 2)) == Again(1, 2)
    assert carry(Inherited(1, 3)) == Inherited(1, 3)
    assert (carry(Narrow(4)).x, repr(Narrow(4))) == (4, "Narrow(w=4)")


@serializable
class Positional:
    def __init__(self, a: Any, b: Any = 2, /, c: Any = 3) -> None:
        self.a, self.b, self.c = a, b, c


def test_positional_parameters() -> None:
    """Parameters that can only be given by position are carried."""
    assert carry(Positional(1, 5, 6)).__asdict__() == {"a": 1, "b": 5, "c": 6}
    assert Positional.__fromdict__({"a": 1}).b == 2


@pytest.mark.parametrize("attributes", [{"b": 1}, {}, {"a": 1, "q": 2}, [1], None, {"a": 1, 5: 2}])
def test_malformed_attributes(attributes: Any) -> None:
    """What a peer sends for a class must be the names of its parameters."""
    codec = MsgPack()
    codec.add_serializer(*Positional.__serializer__())
    with pytest.raises(DeserializationError, match="Positional"):
        codec.decode(ext([f"{__name__}.Positional", attributes]))


def test_parameter_that_is_no_attribute() -> None:
    """A parameter that cannot be read is named by the error."""

    @serializable
    class Hidden:
        def __init__(self, x: Any) -> None:
            self._x = x

    with pytest.raises(SerializationError, match="no attribute 'x'"):
        carry(Hidden(1))
