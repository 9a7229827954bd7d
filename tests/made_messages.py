"""Messages for tests: all that Hypothesis can make of what the RFCs allow."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from aiomas_ng._core.codes import CODES, Code
from aiomas_ng._core.option_values import DEFINITIONS, MAX_NUMBER, Block, Definition, Format
from aiomas_ng._core.options import OptionNumber, Options

ATTRIBUTES = {number.name.lower(): number for number in OptionNumber if number is not OptionNumber.OSCORE}
"""Names of the attributes for options, but for ``etags``, which shares its number with ``etag``."""

REPEATED = {name for name, number in ATTRIBUTES.items() if DEFINITIONS[number].is_repeatable} - {"etag"} | {
    "etags"
}
"""Those that hold a tuple."""

blocks = st.builds(Block, st.integers(0, 2**20 - 1), st.booleans(), st.integers(0, 7))


def text_of(low: int, high: int) -> st.SearchStrategy[str]:
    """Make text of so many bytes in UTF-8, often as many as there may be."""
    text = st.text(min_size=low, max_size=high) | st.text("aß€😀", min_size=low, max_size=high)
    return text.filter(lambda text: low <= len(text.encode()) <= high) | st.sampled_from(
        ["a" * high, "ß" * (high // 2)]
    )


def value_of(definition: Definition) -> st.SearchStrategy[Any]:
    """Make a value that the option may have."""
    low, high = definition.low, definition.high
    if definition.format is Format.EMPTY:
        return st.just(True)
    if definition.format is Format.OPAQUE:
        return st.binary(min_size=low, max_size=high)
    if definition.format is Format.BLOCK:
        return blocks
    if definition.format is Format.UINT:
        largest = 256**high - 1
        return st.integers(low, largest) | st.integers(low, min(300, largest)) | st.just(largest)
    text = text_of(low, high)
    is_path = definition.number is OptionNumber.URI_PATH
    return text.filter(lambda text: text not in (".", "..")) if is_path else text


def values_of(number: OptionNumber) -> st.SearchStrategy[Any]:
    """Make what the attribute for that option may be set to."""
    value = value_of(DEFINITIONS[number])
    return st.lists(value, min_size=1, max_size=5).map(tuple) if DEFINITIONS[number].is_repeatable else value


def _name(number: OptionNumber) -> str:
    return "etags" if number is OptionNumber.ETAG else number.name.lower()


by_name = st.fixed_dictionaries(
    {}, optional={_name(number): values_of(number) for number in ATTRIBUTES.values()}
)
"""Names and values of attributes."""

unknown_numbers = st.integers(0, MAX_NUMBER).filter(lambda number: number not in DEFINITIONS)
unknown_options = st.lists(st.tuples(unknown_numbers, st.binary(max_size=300)), max_size=4)


def make_options(by_name: dict[str, Any], by_number: list[tuple[int, bytes]]) -> Options:
    """Return options from attributes, and from numbers and bytes."""
    options = Options()
    for name, value in by_name.items():
        setattr(options, name, value)
    for number, value in by_number:
        options.add_option(number, value)
    return options


options = st.builds(make_options, by_name, unknown_options)

codes = st.sampled_from(CODES).filter(lambda code: not code.is_signalling())
message_codes = codes.filter(lambda code: code != Code.EMPTY)
tokens = st.binary(max_size=8)
payloads = st.binary(max_size=40) | st.binary(min_size=250, max_size=300)

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda children: (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)
"""What a codec may hand out."""
