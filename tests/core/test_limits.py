"""Limits: every one is checked when it is set."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng import channel
from aiomas_ng._core.limits import DEFAULT_LIMITS, LARGEST_FRAME, Limits

NAMES = [field.name for field in dataclasses.fields(Limits)]
IN_WHOLE_NUMBERS = ["frame_size", "stream_window", "block_size"]


def test_defaults_are_public() -> None:
    """The class is the public one, and no argument gives the default limits."""
    assert channel.Limits is Limits
    assert Limits() == DEFAULT_LIMITS


@given(name=st.sampled_from(NAMES), value=st.integers(1, LARGEST_FRAME))
def test_each_limit_can_be_set_alone(name: str, value: int) -> None:
    """A limit has the value it was given, and all others have their defaults."""
    limits = Limits(**{name: value})  # type: ignore[arg-type]
    assert dataclasses.asdict(limits) == {**dataclasses.asdict(DEFAULT_LIMITS), name: value}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [0, -1, -0.5, float("-inf"), float("nan"), True, False, None, "5", b"5", [5], 1j, int], ids=repr
)
def test_what_is_no_positive_number_is_refused(name: str, value: Any) -> None:
    """Zero, negative numbers, NaN, booleans and what is no number are refused, and the error names both."""
    with pytest.raises(ValueError, match=f"limit {name} must be a number > 0 but is") as caught:
        Limits(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_WHOLE_NUMBERS])
def test_what_stays_on_this_side_may_be_unlimited(name: str) -> None:
    """Infinity switches a limit off, where it is not told to the peer or written into a header."""
    assert getattr(Limits(**{name: float("inf")}), name) == float("inf")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", IN_WHOLE_NUMBERS)
@pytest.mark.parametrize("value", [1.5, 64.0, float("inf")])
def test_what_goes_on_the_wire_is_a_whole_number(name: str, value: float) -> None:
    """A peer takes credit in whole items only, and a header has whole bytes."""
    with pytest.raises(ValueError, match=f"limit {name} must be an integer but is {value}"):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_largest_frame_is_what_the_header_can_say() -> None:
    """A frame may be as large as four bytes can say, and not larger."""
    assert Limits(frame_size=2**32 - 1).frame_size == LARGEST_FRAME
    with pytest.raises(ValueError, match="limit frame_size must be <= 4294967295 but is 4294967296"):
        Limits(frame_size=2**32)


def test_limits_are_fixed_and_named() -> None:
    """Limits are shared between connections, so they cannot be changed, and never be mixed up by position."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_LIMITS.calls = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[misc]
    assert dataclasses.replace(DEFAULT_LIMITS, calls=1).calls == 1
    assert hash(Limits(calls=1)) == hash(Limits(calls=1))


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        ({}, 32 * 1024),
        ({"block_size": 5000}, 4096),
        ({"block_size": 1023}, 512),
        ({"block_size": 1}, 16),
        ({"frame_size": 60_000}, 32 * 1024),
        ({"frame_size": 40_000}, 28 * 1024),
        ({"frame_size": 100}, 16),
    ],
    ids=str,
)
def test_blocks_fit_into_frames(changed: dict[str, int], size: int) -> None:
    """A block has a size that the wire knows, and there is room for it in a frame, in any codec."""
    assert Limits(**changed).payload_size == size  # type: ignore[arg-type]


# -- The documentation -----------------------------------------------------------------------------

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "limits.md"
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def rows_of_table() -> dict[str, float]:
    """Return the names in the table of the documentation, with the defaults that it gives."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) ?(\w*) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(dict.fromkeys(name for name, _, _ in rows)), "a limit has two rows"
    return {name: float(number.replace(",", "")) * UNITS.get(unit, 1) for name, number, unit in rows}


def test_table_has_all_limits() -> None:
    """The table has every limit, and no other, with its default."""
    assert rows_of_table() == dataclasses.asdict(DEFAULT_LIMITS)


def test_docstring_has_all_limits() -> None:
    """So does the docstring of the class."""
    described = re.findall(r"^        (\w+): ", Limits.__doc__ or "", re.MULTILINE)
    assert described == NAMES
