"""Options: what a program sets is what arrives, and whatever a peer sends does no harm."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng._core import option_values, options
from aiomas_ng._core.option_values import DEFINITIONS, MAX_LENGTH, MAX_NUMBER, UNDERSTOOD, Format
from aiomas_ng._core.options import MAX_OPTIONS, Block, OptionError, OptionNumber, Options, SignalOptions
from aiomas_ng.exceptions import AiomasError
from tests import made_messages
from tests.made_messages import ATTRIBUTES, REPEATED, by_name, junk, unknown_numbers

HUGE = 2**20_000

# Number, is critical, is unsafe, is no cache key, is repeatable, format, shortest, longest value: the tables
# of RFC 7252 (5.10), 7641 (2), 7959 (2.1, 4), 8613 (2), 8768 (3), 7967 (2), 9175 (2.2.1, 3.2.1). The last two
# are ours.
TABLE = """
If-Match        1   x - - x opaque 0 8
Uri-Host        3   x x - - string 1 255
ETag            4   - - - x opaque 1 8
If-None-Match   5   x - - - empty  0 0
Observe         6   - x x - uint   0 3
Uri-Port        7   x x - - uint   0 2
Location-Path   8   - - - x string 0 255
OSCORE          9   x - - - opaque 0 255
Uri-Path        11  x x - x string 0 255
Content-Format  12  - - - - uint   0 2
Max-Age         14  - x - - uint   0 4
Uri-Query       15  x x - x string 0 255
Hop-Limit       16  - - - - uint   1 1
Accept          17  x - - - uint   0 2
Location-Query  20  - - - x string 0 255
Block2          23  x x - - block  0 3
Block1          27  x x - - block  0 3
Size2           28  - - x - uint   0 4
Proxy-Uri       35  x x - - string 1 1034
Proxy-Scheme    39  x x - - string 1 255
Size1           60  - - x - uint   0 4
Echo            252 - - x - opaque 1 40
No-Response     258 - x - - uint   0 1
Request-Tag     292 - - - x opaque 0 8
Deadline        65020 - - x - uint 0 7
Simulated-Deadline 65052 - - x - uint 0 7
"""


def first(pair: tuple[int, Any]) -> int:
    """Return what to sort by."""
    return pair[0]


def rows() -> Iterator[list[str]]:
    """Yield the rows of the table."""
    return (row.split() for row in TABLE.strip().splitlines())


# -- Numbers ---------------------------------------------------------------------------------------


def test_properties_of_the_registry() -> None:
    """Every option has the properties, the format and the lengths of its RFC."""
    found = []
    for number in OptionNumber:
        flags = (number.is_critical, number.is_unsafe, number.is_no_cache_key, number.is_repeatable)
        definition = number.definition
        marks = ["x" if flag else "-" for flag in flags]
        lengths = [str(definition.low), str(definition.high)]
        found.append(
            [number.name_printable, str(int(number)), *marks, definition.format.name.lower(), *lengths]
        )
    assert found == list(rows())
    assert set(DEFINITIONS) == set(OptionNumber)


@given(unknown_numbers)
def test_properties_of_unknown_numbers(number: int) -> None:
    """The bits of a number tell what to do with an option that is not known (RFC 7252, section 5.4.6)."""
    assert options.is_critical(number) == (number % 2 == 1)
    assert options.is_unsafe(number) == (number & 2 == 2)
    assert options.is_no_cache_key(number) == (number & 0b11110 == 0b11100)
    assert options.is_repeatable(number)
    assert options.name_of(number) == f"option {number}"


def test_names_for_people() -> None:
    """A known option is named as in its RFC."""
    assert options.name_of(11) == options.name_of(OptionNumber.URI_PATH) == "Uri-Path (11)"
    assert options.name_of(4) == "ETag (4)"
    assert options.name_of(9) == "OSCORE (9)"


# -- Blocks ----------------------------------------------------------------------------------------


@given(made_messages.blocks)
def test_block_survives_as_number(block: Block) -> None:
    """A block is the same after it has travelled, in 24 bits."""
    assert Block.from_uint(block.to_uint()) == block
    assert 0 <= block.to_uint() < 2**24


@pytest.mark.parametrize(
    ("block", "size", "start"),
    [
        (Block(0, False, 0), 16, 0),
        (Block(3, True, 0), 16, 48),
        (Block(5, False, 6), 1024, 5120),
        (Block(5, False, 7), 1024, 5120),
    ],
)
def test_block_place(block: Block, size: int, start: int) -> None:
    """Size and place of a block are in bytes; with BERT the unit has 1024 (RFC 8323, section 6)."""
    assert (block.size, block.start) == (size, start)
    number, more, szx = block
    assert (number, more, szx) == (block.number, block.more, block.szx)


# -- What a program sets ---------------------------------------------------------------------------


@given(by_name)
def test_attributes_hold_what_was_set(values: dict[str, Any]) -> None:
    """Each attribute has the value that was set, and all others are empty."""
    opt = made_messages.make_options(values, [])
    for name in [*ATTRIBUTES, "etags"]:
        if name == "etag":
            assert opt.etag == values.get("etags", (None,))[0]
        elif name == "if_none_match":
            assert opt.if_none_match is values.get(name, False)
        else:
            assert getattr(opt, name) == values.get(name, () if name in REPEATED else None)
    assert len(opt) == sum(len(value) if name in REPEATED else 1 for name, value in values.items())
    assert bool(opt) == bool(values)
    assert opt.unknown_critical() == ()


@given(by_name, st.data())
def test_setting_nothing_removes(values: dict[str, Any], data: st.DataObject) -> None:
    """None removes any option, as does () or False where that means none; twice does no harm."""
    opt = made_messages.make_options(values, [])
    for name in data.draw(st.permutations([*ATTRIBUTES, "etags"])):
        nothing = [None]
        if name in REPEATED:
            nothing += [(), [], iter(())]
        elif name == "if_none_match":
            nothing.append(False)
        for value in nothing:
            setattr(opt, name, value)
        assert not getattr(opt, name)
    assert opt == Options()
    assert not opt


class Index:
    """An integer of a foreign type, as those of numpy."""

    def __index__(self) -> int:
        return 60


class Text(str):
    """Text of a type of its own."""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("observe", 0, 0),
        ("observe", 2**24 - 1, 2**24 - 1),
        ("max_age", 0, 0),
        ("max_age", Index(), 60),
        ("content_format", OptionNumber.SIZE1, 60),
        ("etag", bytearray(b"x"), b"x"),
        ("etag", memoryview(b"x"), b"x"),
        ("etags", [b"a", b"b"], (b"a", b"b")),
        ("if_match", {b""}, (b"",)),
        ("uri_path", ["a", "", Text("b")], ("a", "", "b")),
        ("uri_path", (part for part in "ab"), ("a", "b")),
        ("uri_path", ["...", ".a", "a."], ("...", ".a", "a.")),
        ("uri_query", ["a" * 255], ("a" * 255,)),
        ("uri_query", ["ß" * 127], ("ß" * 127,)),
        ("location_path", [".."], ("..",)),
        ("block1", Block(1, True, 6), Block(1, True, 6)),
        ("block1", (1, True, 6), Block(1, True, 6)),
        ("block1", (1, 1, 6), Block(1, True, 6)),
        ("block2", 0x1E, Block(1, True, 6)),
        ("block2", (2**20 - 1, False, 7), Block(2**20 - 1, False, 7)),
        ("hop_limit", 1, 1),
        ("hop_limit", 255, 255),
        ("uri_host", "h", "h"),
        ("proxy_uri", "a" * 1034, "a" * 1034),
        ("echo", b"1" * 40, b"1" * 40),
        ("no_response", 26, 26),
    ],
)
def test_values_within_bounds(name: str, value: Any, expected: Any) -> None:
    """What an option may have is kept as plain values, whatever types of their own the program uses."""
    opt = Options()
    setattr(opt, name, value)
    kept = getattr(opt, name)
    assert kept == expected
    for one in kept if type(kept) is tuple else [kept]:
        assert type(one) in (int, str, bytes, Block)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("observe", -1, "an integer from 0 to 16777215"),
        ("observe", 2**24, "an integer from 0 to 16777215"),
        ("observe", True, "an integer"),
        ("observe", 0.0, "an integer"),
        ("observe", "0", "an integer"),
        pytest.param("observe", HUGE, "an integer", id="observe-huge"),
        ("max_age", 2**32, "an integer from 0 to 4294967295"),
        ("max_age", float("inf"), "an integer"),
        ("content_format", 65536, "an integer from 0 to 65535"),
        ("accept", "application/json", "an integer from 0 to 65535"),
        ("uri_port", 65536, "an integer from 0 to 65535"),
        ("hop_limit", 0, "an integer from 1 to 255"),
        ("hop_limit", 256, "an integer from 1 to 255"),
        ("no_response", 256, "an integer from 0 to 255"),
        ("etag", b"", "1 to 8 bytes"),
        ("etag", b"123456789", "1 to 8 bytes"),
        ("etag", "tag", "1 to 8 bytes"),
        ("etags", [b"a", b""], "1 to 8 bytes"),
        ("etags", b"tag", "a sequence of values"),
        ("if_match", 5, "a sequence of values"),
        ("request_tag", [b"123456789"], "0 to 8 bytes"),
        ("uri_path", "a/b", "a sequence of values, as in"),
        ("uri_path", ["a" * 256], "a str of 0 to 255 bytes in UTF-8"),
        ("uri_path", ["ß" * 128], "a str of 0 to 255 bytes in UTF-8"),
        ("uri_path", ["\ud800"], "a str of 0 to 255 bytes in UTF-8"),
        ("uri_path", [b"a"], "a str"),
        ("uri_path", ["."], "not '.' or '..'"),
        ("uri_path", ["a", ".."], "not '.' or '..'"),
        ("uri_query", "a=1", "a sequence of values, as in"),
        ("uri_query", [1], "a str"),
        ("uri_host", "", "a str of 1 to 255 bytes"),
        ("proxy_uri", "a" * 1035, "a str of 1 to 1034 bytes"),
        ("echo", b"", "1 to 40 bytes"),
        ("echo", b"1" * 41, "1 to 40 bytes"),
        ("block1", (1, 2), "a Block"),
        ("block1", (2**20, False, 0), "a Block"),
        ("block1", (-1, False, 0), "a Block"),
        ("block1", (0, False, 8), "a Block"),
        ("block1", (0, 2, 0), "a Block"),
        ("block1", (0, "no", 0), "a Block"),
        ("block1", (0.0, False, 0), "a Block"),
        ("block1", (0, False, None), "a Block"),
        ("block2", 2**24, "a Block"),
        ("block2", "0", "a Block"),
        ("if_none_match", 1, "True"),
        ("if_none_match", b"", "True"),
    ],
)
def test_values_out_of_bounds(name: str, value: Any, right: str) -> None:
    """A wrong value raises an error that names option, value and what would be right, and changes nothing."""
    opt = Options()
    number = ATTRIBUTES.get(name, OptionNumber.ETAG)
    before = {"observe": 5} if name != "observe" else {"max_age": 5}
    for other, kept in before.items():
        setattr(opt, other, kept)
    with pytest.raises(OptionError) as caught:
        setattr(opt, name, value)
    text = str(caught.value)
    assert number.name_printable in text
    assert right in text
    assert len(text) < 300
    assert caught.value.number == number
    assert isinstance(caught.value, AiomasError)
    assert isinstance(caught.value, ValueError)
    assert opt == made_messages.make_options(before, [])


def test_failing_iterable_changes_nothing() -> None:
    """An error while values are iterated over is the program's own; the option stays as it was."""
    opt = Options()
    opt.uri_path = ["a"]

    def fail() -> Iterator[str]:
        yield "b"
        raise LookupError("own")

    with pytest.raises(LookupError, match="own"):
        opt.uri_path = fail()
    assert opt.uri_path == ("a",)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("uri_pat", "did you mean 'uri_path'?"),
        ("etagz", "did you mean 'etag"),
        ("contentformat", "did you mean 'content_format'?"),
        ("xyz", "add_option"),
        ("_private", "add_option"),
        ("values", "add_option"),
    ],
)
def test_typos(name: str, hint: str) -> None:
    """A name that is no option can be neither set, read nor deleted, and the error says what was meant."""
    opt = Options()
    with pytest.raises(AttributeError) as caught:
        setattr(opt, name, 1)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    with pytest.raises(AttributeError, match="there is no option"):
        getattr(opt, name)
    with pytest.raises(AttributeError):
        delattr(opt, name)
    assert not hasattr(opt, name)
    assert opt == Options()


@pytest.mark.parametrize("name", ["_values", "_rejected", "copy", "to_compact"])
def test_inner_names_cannot_be_set(name: str) -> None:
    """Neither methods nor what is inside can be set like an option."""
    with pytest.raises(AttributeError):
        setattr(Options(), name, {})


# -- Copies and comparison -------------------------------------------------------------------------


@given(made_messages.options)
def test_copies_are_equal_and_independent(opt: Options) -> None:
    """A copy, of whatever kind, is equal, and changing it leaves the original alone."""
    for duplicate in (opt.copy(), copy.copy(opt), copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert type(duplicate) is Options
        assert duplicate == opt
        before = opt.option_list()
        duplicate.uri_path = ["changed", "entirely"]
        duplicate.etag = b"changed!"
        duplicate.max_age = 4711
        duplicate.add_option(65001, b"changed")
        assert duplicate != opt
        assert opt.option_list() == before


def test_comparison_with_others() -> None:
    """Options equal options of the same values only, and as they can be changed, they have no hash."""
    opt = Options()
    assert opt == Options()
    assert opt != {}
    assert opt is not None
    assert (opt == 5) is False
    with pytest.raises(TypeError, match="unhashable"):
        hash(opt)


def test_rejected_options_count_in_comparison() -> None:
    """Options that came with something malformed are not equal to those that did not."""
    opt = Options.from_compact([11, 5])
    assert opt != Options()
    assert opt.copy() == opt
    assert pickle.loads(pickle.dumps(opt)).unknown_critical() == (11,)


def test_repr_is_readable_and_short() -> None:
    """The representation names options by their attributes, and is short whatever is in them."""
    opt = Options()
    assert repr(opt) == "<Options none>"
    opt.uri_path = ["a"]
    opt.observe = 0
    opt.add_option(65001, b"x")
    assert repr(opt) == "<Options observe=0, uri_path=('a',), 65001=(b'x',)>"
    flood = Options.from_compact([item for n in range(1000, 2000) for item in (n, b"x" * 1000)])
    assert len(repr(flood)) < 2000
    assert "and 980 more" in repr(flood)


# -- By number -------------------------------------------------------------------------------------


@given(made_messages.options)
def test_binary_values_round_trip(opt: Options) -> None:
    """All options can be taken out as bytes and be put in again, one by one or at once."""
    pairs = opt.option_list()
    assert [number for number, _ in pairs] == sorted(number for number, _ in pairs)
    assert all(type(value) is bytes for _, value in pairs)
    assert len(pairs) == len(opt)
    other = Options()
    for number, value in pairs:
        other.add_option(number, value)
    assert other == opt
    assert Options.from_option_list(pairs) == opt
    for number in {number for number, _ in pairs}:
        assert other.get_option(number) == tuple(value for n, value in pairs if n == number)
        assert number in other
        other.delete_option(number)
        other.delete_option(number)
        assert number not in other
        assert other.get_option(number) == ()
    assert other == Options()


def test_add_option_takes_any_buffer_and_number() -> None:
    """Numbers of an enumeration and buffers of any kind become plain ones."""
    opt = Options()
    opt.add_option(OptionNumber.URI_PATH, bytearray(b"a"))
    opt.add_option(OptionNumber.IF_NONE_MATCH)
    opt.add_option(2049, memoryview(b"x"))
    assert opt.to_compact() == [5, True, 11, "a", 2049, b"x"]
    assert all(type(item) is not OptionNumber for item in opt.to_compact())
    assert OptionNumber.URI_PATH in opt
    assert opt.get_option(OptionNumber.URI_PATH) == (b"a",)


@pytest.mark.parametrize(
    ("number", "value", "text"),
    [
        (-1, b"", "from 0 to 65535"),
        (65536, b"", "from 0 to 65535"),
        (True, b"", "from 0 to 65535"),
        ("11", b"", "from 0 to 65535"),
        (1.0, b"", "from 0 to 65535"),
        (None, b"", "from 0 to 65535"),
        pytest.param(HUGE, b"", "from 0 to 65535", id="huge"),
        (11, "a", "must be given as bytes"),
        (11, None, "must be given as bytes"),
        (11, b"\xff", "cannot have the value"),
        (11, b"..", "cannot have the value"),
        (11, b"a" * 256, "cannot have the value"),
        (5, b"\x00", "cannot have the value"),
        (6, b"\x00\x00\x00\x01", "cannot have the value"),
        (16, b"", "cannot have the value"),
        (16, b"\x00", "cannot have the value"),
        (4, b"", "cannot have the value"),
        (7, b"", "there already"),
        (27, b"\x08", "there already"),
        pytest.param(2049, b"a" * (MAX_LENGTH + 1), "cannot have 65805 bytes", id="too-long"),
    ],
)
def test_add_option_refuses(number: Any, value: Any, text: str) -> None:
    """What an option cannot have raises a short error and adds nothing."""
    opt = Options()
    opt.uri_port = 5
    opt.block1 = (0, False, 0)
    before = opt.copy()
    with pytest.raises(OptionError, match=text) as caught:
        opt.add_option(number, value)
    assert len(str(caught.value)) < 300
    assert opt == before


def test_longest_unknown_value() -> None:
    """An unknown option may be as long as the encoding can announce."""
    opt = Options()
    opt.add_option(2048, b"a" * MAX_LENGTH)
    assert Options.from_compact(opt.to_compact()) == opt


# -- The compact form ------------------------------------------------------------------------------


@given(made_messages.options)
def test_compact_form_round_trips(opt: Options) -> None:
    """What is sent arrives, whether the codec has lists or tuples, and is a flat list of plain values."""
    flat = opt.to_compact()
    assert Options.from_compact(flat) == opt
    assert Options.from_compact(tuple(flat)) == opt
    assert Options.from_compact(flat).to_compact() == flat
    assert flat[::2] == sorted(flat[::2])
    assert {type(item) for item in flat} <= {int, str, bytes, bool}
    assert len(flat) == 2 * len(opt)


def test_compact_form_of_the_page() -> None:
    """The compact form is exactly what the description of the wire says."""
    opt = Options()
    opt.uri_path = ["a", "b"]
    opt.etags = [b"x"]
    opt.observe = 0
    opt.if_none_match = True
    opt.block2 = Block(1, True, 6)
    assert opt.to_compact() == [4, b"x", 5, True, 6, 0, 11, "a", 11, "b", 23, 30]
    assert Options().to_compact() == []


@given(junk)
@example([])
@example([11])
@example([[11, "a"]])
@example({11: "a"})
@example("aa")
@example(b"aa")
@example([True, b""])
@example([1.0, b""])
@example([-2, b""])
@example([65536, b""])
@example([HUGE, b""])
@example([12, 0, 11, "a"])
@example([[], b""])
def test_junk_in_compact_form(sequence: Any) -> None:
    """Anything that is no flat list of numbers and values, and only that, is an OptionError."""
    is_list = isinstance(sequence, (list, tuple)) and len(sequence) % 2 == 0
    numbers = sequence[::2] if is_list else []
    is_right = (
        is_list
        and all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers)
        and list(numbers) == sorted(numbers)
    )
    if is_right:
        Options.from_compact(sequence)
    else:
        with pytest.raises(OptionError) as caught:
            Options.from_compact(sequence)
        assert len(str(caught.value)) < 400


numbers = st.sampled_from(OptionNumber).map(int) | st.integers(0, 40) | st.integers(0, MAX_NUMBER)
some_values = (
    junk
    | st.sampled_from(
        [True, False, HUGE, -HUGE, "\ud800", "x" * 2000, b"x" * 100_000, ".", "..", 2**24, 2**32]
    )
    | st.integers(0, 2**33)
    | st.text(max_size=300)
    | st.binary(max_size=50)
)


def is_allowed(number: int, value: Any) -> bool:
    """Say by the tables whether a value in compact form is one that the option may have."""
    definition = DEFINITIONS.get(number)
    if definition is None:
        return type(value) is bytes and len(value) <= MAX_LENGTH
    low, high = definition.low, definition.high
    if definition.format is Format.EMPTY:
        return value is True
    if definition.format in (Format.UINT, Format.BLOCK):
        return type(value) is int and min(low, 1) <= value < 256**high
    if definition.format is Format.OPAQUE:
        return type(value) is bytes and low <= len(value) <= high
    if type(value) is not str or (number == OptionNumber.URI_PATH and value in (".", "..")):
        return False
    return low <= len(value.encode("utf-8", "surrogatepass")) <= high and not has_surrogates(value)


def has_surrogates(text: str) -> bool:
    """Say whether UTF-8 has no place for some of *text*."""
    return any(0xD800 <= ord(character) < 0xE000 for character in text)


@given(st.lists(st.tuples(numbers, some_values), max_size=8).map(lambda pairs: sorted(pairs, key=first)))
def test_values_of_peers(pairs: list[tuple[int, Any]]) -> None:
    """A wrong value never raises: elective options are ignored, critical ones reported, the rest is kept."""
    opt = Options.from_compact([item for pair in pairs for item in pair])
    kept: list[tuple[int, Any]] = []
    refused: set[int] = set()
    for number, value in pairs:
        is_double = not option_values.is_repeatable(number) and any(number == n for n, _ in kept)
        if is_allowed(number, value) and not is_double:
            kept.append((number, value))
        elif number % 2:
            refused.add(number)
        elif number == OptionNumber.HOP_LIMIT and not is_double:
            kept.append((number, 0))
    assert opt.to_compact() == [item for pair in kept for item in pair]
    unknown = {number for number, _ in kept if number % 2 and number not in UNDERSTOOD}
    assert opt.unknown_critical() == tuple(sorted(refused | unknown))


def as_compact(number: int, data: bytes) -> Any:
    """Return what a value in binary form is in compact form, ``None`` if the option may not have it."""
    definition = DEFINITIONS.get(number)
    if definition is None or definition.format is Format.OPAQUE:
        return data
    if not definition.low <= len(data) <= definition.high:
        return None
    if definition.format is Format.EMPTY:
        return True
    if definition.format is not Format.STRING:
        return int.from_bytes(data, "big")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


binary_values = (
    st.binary(max_size=12) | st.binary(min_size=250, max_size=260) | st.sampled_from([b".", b".."])
)


@given(st.lists(st.tuples(numbers, binary_values), max_size=8))
def test_binary_values_of_peers(pairs: list[tuple[int, bytes]]) -> None:
    """What comes in binary form is treated as the same in compact form."""
    pairs = sorted(pairs, key=lambda pair: pair[0])
    flat = [item for number, data in pairs for item in (number, as_compact(number, data))]
    assert Options.from_option_list(pairs) == Options.from_compact(flat)


def test_leading_zeros() -> None:
    """A number with leading zeros counts, as long as it is not too long (RFC 7252, section 3.2)."""
    opt = Options.from_option_list([(12, b"\x00\x32"), (14, b"\x00\x00\x00\x00"), (23, b"\x00\x00\x0e")])
    assert (opt.content_format, opt.max_age, opt.block2) == (50, 0, Block(0, True, 6))
    assert Options.from_option_list([(12, b"\x00\x00\x32")]).content_format is None


@pytest.mark.parametrize(("number", "value"), [(7, 5), (12, 50), (27, 0), (5, True), (3, "h")])
def test_repetition_of_what_must_not_be_repeated(number: int, value: Any) -> None:
    """The first one counts, further ones are like unknown options (RFC 7252, section 5.4.5)."""
    opt = Options.from_compact([number, value, number, value])
    assert opt.to_compact() == [number, value]
    assert opt.unknown_critical() == ((number,) if number % 2 else ())
    binary = Options().add_option  # the same for a program that does it is an error
    binary(number, Options.from_compact([number, value]).get_option(number)[0])
    with pytest.raises(OptionError, match="must not be repeated"):
        binary(number, Options.from_compact([number, value]).get_option(number)[0])


def test_unknown_critical() -> None:
    """Unknown critical options, and known ones with a wrong value, are reported once, in order."""
    assert Options().unknown_critical() == ()
    opt = Options.from_compact(
        [6, "wrong", 11, 5, 11, "right", 11, 6, 19, b"", 2049, b"a", 2049, b"b", 2050, b""]
    )
    assert opt.unknown_critical() == (11, 19, 2049)
    assert opt.uri_path == ("right",)
    assert opt.observe is None
    assert opt.get_option(2049) == (b"a", b"b")
    opt.uri_path = ["other"]
    opt.delete_option(2049)
    assert opt.unknown_critical() == (11, 19)
    assert opt.copy().unknown_critical() == (11, 19)


def test_oscore_is_known_by_name_only() -> None:
    """A protected message must be refused by who cannot undo the protection."""
    opt = Options.from_compact([9, b"\x09"])
    assert opt.get_option(OptionNumber.OSCORE) == (b"\x09",)
    assert opt.unknown_critical() == (9,)


@pytest.mark.parametrize("value", [0, 256, -1, True, "5", b"", None])
def test_invalid_hop_limit_is_seen(value: Any) -> None:
    """A hop limit that is not allowed is 0, so that the request can be refused (RFC 8768, section 3)."""
    assert Options.from_compact([16, value]).hop_limit == 0
    assert Options.from_compact([16, 5, 16, value]).hop_limit == 5
    assert Options.from_compact([16, value, 16, 5]).hop_limit == 0


def test_too_many_options() -> None:
    """As many options as there may be are taken, one more is an error, in both forms."""
    most = [item for _ in range(MAX_OPTIONS) for item in (11, "")]
    assert len(Options.from_compact(most)) == MAX_OPTIONS
    with pytest.raises(OptionError, match=f"{MAX_OPTIONS} options at most"):
        Options.from_compact([*most, 11, ""])
    pairs = [(11, b"")] * MAX_OPTIONS
    assert len(Options.from_option_list(pairs)) == MAX_OPTIONS
    with pytest.raises(OptionError, match=f"{MAX_OPTIONS} options at most"):
        Options.from_option_list([*pairs, (11, b"")])


# -- Caches ----------------------------------------------------------------------------------------


@given(made_messages.options, st.sets(numbers))
def test_cache_key(opt: Options, ignored: set[int]) -> None:
    """The key can be hashed, and depends on all options but those that do not matter to a cache."""
    key = opt.cache_key(ignored)
    hash(key)
    assert key == opt.copy().cache_key(ignored)
    shown = {number for number, _ in key}
    for number, _ in opt.option_list():
        assert (number in shown) == (number not in ignored and not options.is_no_cache_key(number))


def test_cache_key_is_independent_of_order() -> None:
    """The order in which options were set makes no difference."""
    first, second = Options(), Options()
    first.accept, first.uri_path = 50, ["a"]
    second.uri_path, second.accept = ["a"], 50
    second.observe, second.size1, second.echo = 0, 5, b"e"
    assert first.cache_key() == second.cache_key()


# -- Signals ---------------------------------------------------------------------------------------


def test_options_of_signals() -> None:
    """Options of signals are bytes under any number, as their meaning depends on the signal."""
    opt = SignalOptions.from_option_list([(2, b"\x04\x80\x00"), (4, b""), (4, b"long" * 10), (11, b"\xff")])
    assert opt.option_list() == [(2, b"\x04\x80\x00"), (4, b""), (4, b"long" * 10), (11, b"\xff")]
    assert opt.unknown_critical() == (11,)
    duplicate = opt.copy()
    assert type(duplicate) is SignalOptions
    duplicate.add_option(2, memoryview(b"x"))
    assert duplicate != opt
    assert opt.get_option(2) == (b"\x04\x80\x00",)


@pytest.mark.parametrize("value", ["x", None, 5, bytearray(MAX_LENGTH + 1)], ids=type)
def test_options_of_signals_refuse(value: Any) -> None:
    """They refuse what is no bytes or too long, and have no attributes by name."""
    opt = SignalOptions()
    with pytest.raises(OptionError, match=r"option 4 must be given as bytes|65805 bytes"):
        opt.add_option(4, value)
    with pytest.raises(AttributeError, match="have no names"):
        opt.etag = b"x"
    assert not opt


def test_too_many_options_of_signals() -> None:
    """The bound on their number is the same."""
    with pytest.raises(OptionError, match=f"{MAX_OPTIONS} options at most"):
        SignalOptions.from_option_list([(2, b"")] * (MAX_OPTIONS + 1))
