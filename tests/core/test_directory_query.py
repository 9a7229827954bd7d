"""Queries of a directory: what registrations and look-ups may say, and that all else is refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomas_ng._core.directory_query import (
    MAX_LIFETIME,
    MAX_NAME,
    MAX_PAGE,
    Page,
    ParameterError,
    Parameters,
    parse_page,
    parse_parameters,
)

# -- Registrations ---------------------------------------------------------------------------------


def test_all_parameters_are_told_apart() -> None:
    """The four that have a meaning are taken out, all others are attributes, in order and with flags."""
    query = ["ep=n1", "d=north", "lt=600", "base=tcp://h:1/", "et=a", "", "mobile", "et=b", "x="]
    assert parse_parameters(query) == Parameters(
        "n1", "north", 600, "tcp://h:1/", (("et", "a"), ("mobile", None), ("et", "b"), ("x", ""))
    )


def test_nothing_is_a_query_too() -> None:
    """An update may change nothing."""
    assert parse_parameters([]) == Parameters()


def test_a_value_may_have_an_equals_sign() -> None:
    """Only the first one separates name and value."""
    assert parse_parameters(["ep=a=b"]).endpoint == "a=b"


@pytest.mark.parametrize("lifetime", [1, 59, 60, 90_000, MAX_LIFETIME])
def test_lifetimes_of_the_whole_range(lifetime: int) -> None:
    """RFC 9176, section 5, has 1 to 4294967295."""
    assert parse_parameters([f"lt={lifetime}"]).lifetime == lifetime


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "+5", "4294967296", "99999999999", "1e3", "60.0", "", " 60", "6_0", "٦٠", "x", "9" * 300],
)
def test_any_other_lifetime_is_refused(text: str) -> None:
    """What is no number of the range is refused with the name of the parameter, whatever int() would take."""
    with pytest.raises(ParameterError, match="'lt' must be a number from 1 to 4294967295"):
        parse_parameters([f"lt={text}"])


@pytest.mark.parametrize("name", ["ep", "d"])
def test_names_have_63_bytes_at_most(name: str) -> None:
    """63 bytes are fine, 64 are refused, counted in UTF-8."""
    assert parse_parameters([f"{name}={'é' * 31}x"])
    with pytest.raises(ParameterError, match=f"64 bytes, the limit is {MAX_NAME}"):
        parse_parameters([f"{name}={'é' * 32}"])


@pytest.mark.parametrize("name", ["ep", "d"])
@pytest.mark.parametrize("bad", ["\0", "a\nb", "\x7f", "\x9f", "\ud800"])
def test_names_have_no_control_characters(name: str, bad: str) -> None:
    """RFC 9176, section 5, excludes 0 to 31 and 127 to 159; a surrogate could not be sent on."""
    with pytest.raises(ParameterError, match="control characters"):
        parse_parameters([f"{name}={bad}"])


@pytest.mark.parametrize("query", [["ep="], ["ep"], ["d="], ["ep=a", "d"]])
def test_names_are_not_empty(query: list[str]) -> None:
    """An empty name is refused, with or without the equals sign."""
    with pytest.raises(ParameterError, match="is empty"):
        parse_parameters(query)


@pytest.mark.parametrize("name", ["ep", "d", "lt", "base"])
def test_what_has_one_value_comes_once(name: str) -> None:
    """Which one of two would count is not guessed."""
    with pytest.raises(ParameterError, match=f"'{name}' comes twice"):
        parse_parameters([f"{name}=1", f"{name}=1"])


@pytest.mark.parametrize("text", ["href=/x", "page=1", "count", "rt=a", "anchor=b"])
def test_attributes_that_could_not_be_searched_for_are_refused(text: str) -> None:
    """Those would mean something else in a look-up."""
    with pytest.raises(ParameterError, match="a meaning of its own"):
        parse_parameters([text])


@pytest.mark.parametrize("text", ["=x", "a b=x", 'a"=x', "a;b", "é=x", "a,b=1"])
def test_names_of_attributes_that_a_link_cannot_have(text: str) -> None:
    """They would break the list of links that a look-up returns."""
    with pytest.raises(ParameterError, match="cannot be the name of an attribute"):
        parse_parameters([text])


@pytest.mark.parametrize("value", ["a\nb", "\0", "\ud800"])
def test_values_of_attributes_that_a_link_cannot_have(value: str) -> None:
    """The same holds for values."""
    with pytest.raises(ParameterError, match="control characters"):
        parse_parameters([f"et={value}"])


@given(
    st.lists(st.text(max_size=20) | st.from_regex(r"(ep|d|lt|base|et)=.{0,70}", fullmatch=True), max_size=6)
)
def test_any_query_is_taken_or_refused(query: list[str]) -> None:
    """Whatever comes, there is a result within the bounds or the one error."""
    try:
        parameters = parse_parameters(query)
    except ParameterError:
        return
    assert parameters.lifetime is None or 1 <= parameters.lifetime <= MAX_LIFETIME
    for name in (parameters.endpoint, parameters.sector):
        assert name is None or 0 < len(name.encode()) <= MAX_NAME


# -- Pages -----------------------------------------------------------------------------------------


def test_without_count_all_links_are_wanted() -> None:
    """Criteria are left as they are; empty ones are skipped."""
    assert parse_page(["rt=a", "", "d=x"]) == (Page(), ["rt=a", "d=x"])
    assert list(Page().cut("abc")) == ["a", "b", "c"]


@given(items=st.lists(st.integers()), page=st.integers(0, 5), count=st.integers(0, 5))
def test_a_page_is_a_slice(items: list[int], page: int, count: int) -> None:
    """Page p of n links each begins with link p·n (RFC 9176, section 6.2)."""
    texts = list(map(str, items))
    found, _ = parse_page([f"page={page}", f"count={count}"])
    assert list(found.cut(texts)) == texts[page * count : page * count + count]


def test_page_zero_is_the_default() -> None:
    """``count`` alone is a limit."""
    assert list(parse_page(["count=2"])[0].cut("abc")) == ["a", "b"]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (["page=1"], "needs 'count'"),
        (["page=1", "count=x"], "'count' must be a number"),
        (["page=-1", "count=1"], "'page' must be a number"),
        (["count="], "'count' must be a number"),
        (["count"], "'count' must be a number"),
        (["count=1", "count=1"], "'count' comes twice"),
        ([f"count={MAX_PAGE + 1}"], "'count' must be a number"),
    ],
)
def test_malformed_pages(query: list[str], text: str) -> None:
    """They are refused in words."""
    with pytest.raises(ParameterError, match=text):
        parse_page(query)


def test_the_largest_page_does_not_overflow() -> None:
    """Two of the largest numbers multiply to a start that an iterator can still take."""
    page, _ = parse_page([f"page={MAX_PAGE}", f"count={MAX_PAGE}"])
    assert list(page.cut("abc")) == []
