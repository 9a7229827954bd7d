"""Link format: what is written is read again, by others too, and filters find what they should."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng import linkformat
from aiomas_ng._core import link_text
from aiomas_ng.exceptions import AiomasError
from aiomas_ng.linkformat import Link, LinkFormat, LinkFormatError, parse, quote_path, resolve

SENSORS = """</sensors>;ct=40;title="Sensor Index",
</sensors/temp>;rt="temperature-c";if="sensor",
</sensors/light>;rt="light-lux";if="sensor",
<http://www.example.com/sensors/t123>;anchor="/sensors/temp"
;rel="describedby",
</t>;anchor="/sensors/temp";rel="alternate"
"""
"""An example of RFC 6690, section 5, with the line breaks that it has there."""

NAME_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$&+-.^_`|~"
KNOWN = [
    "rt",
    "if",
    "ct",
    "sz",
    "title",
    "title*",
    "rel",
    "rev",
    "anchor",
    "hreflang",
    "media",
    "type",
    "obs",
]

printable = st.characters(exclude_categories=["Cc", "Cs"])
values = (
    st.text(printable)
    | st.sampled_from(
        ['"', "\\", '\\"', "", " ", "0", "40", "040", "-1", "4 0", "en-US", "UTF-8'en'%e2%82%ac"]
    )
    | st.text('\\" ,;=<>0aé', max_size=6)
)
hrefs = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="<>"))
names = st.sampled_from(KNOWN) | st.builds(
    str.__add__, st.text(NAME_CHARS, min_size=1, max_size=5), st.sampled_from(["", "*"])
)
pairs = st.lists(st.tuples(names, st.none() | values), max_size=5)
links = st.builds(Link, hrefs, pairs)


# -- Links -----------------------------------------------------------------------------------------


def test_attributes_are_read_by_name() -> None:
    """The first of a name counts; a flag is there, without a value; others are a KeyError."""
    link = Link("/a", [("rt", "one"), ("rt", "two"), ("obs", None)])
    assert link.href == "/a"
    assert link["rt"] == "one"
    assert link.get_all("rt") == ["one", "two"]
    assert "obs" in link
    assert link["obs"] is None
    assert link.get("obs", "yes") == "yes"
    assert link.get("rt") == "one"
    assert link.get("if", "none") == "none"
    assert "if" not in link
    assert link.get_all("if") == []
    with pytest.raises(KeyError, match="if"):
        link["if"]


def test_lists_have_items() -> None:
    """Types, interfaces, relations and formats are lists; titles and all others are not."""
    link = Link("/a", rt="  one two  ", ct=[0, 50], title="a b", rel="")
    assert link.get_all("rt") == ["one", "two"]
    assert link.get_all("ct") == ["0", "50"]
    assert link.get_all("title") == ["a b"]
    assert link.get_all("rel") == []


def test_values_become_text() -> None:
    """Numbers and lists are written; True and None are flags; False and an empty list are left out."""
    link = Link(
        "/a", ct=(40, "50"), sz=7, obs=True, flag=None, hidden=False, rt=[], if_="core.s", x_="", _=""
    )
    assert link.attributes == (
        ("ct", "40 50"),
        ("sz", "7"),
        ("obs", None),
        ("flag", None),
        ("if", "core.s"),
        ("x", ""),
        ("_", ""),
    )


def test_pairs_come_before_keywords() -> None:
    """Both may be given; names that Python does not allow come as pairs."""
    link = Link("/a", [("title*", "UTF-8''x"), ("if", "a")], rt="b")
    assert str(link) == '</a>;title*=UTF-8\'\'x;if="a";rt="b"'


@pytest.mark.parametrize("href", ["<", "a>b", "\n", "a\x00", "\x7f", "\ud800"])
def test_a_target_that_cannot_be_written_is_refused(href: str) -> None:
    """Angle brackets, control characters and surrogates have no place in a target."""
    with pytest.raises(ValueError, match="the target of a link cannot have"):
        Link(href)


@pytest.mark.parametrize("name", ["", "a b", "a=", 'a"', "ü", "a*b", "**", "a;", "\n", "a\n", "'"])
def test_a_name_that_cannot_be_written_is_refused(name: str) -> None:
    """A name is a token of RFC 5987, with an asterisk at most at its end."""
    with pytest.raises(ValueError, match="cannot be the name of an attribute"):
        Link("/", [(name, "x")])


@pytest.mark.parametrize("value", ["\n", "a\tb", "\x00", "\x7f", "\udfff", ["a\n"]])
def test_a_value_that_cannot_be_written_is_refused(value: Any) -> None:
    """Control characters and surrogates are not passed on."""
    with pytest.raises(ValueError, match="attribute 'x' cannot have control characters"):
        Link("/", x=value)


@pytest.mark.parametrize("item", ["", "a b"])
def test_an_item_that_would_be_another_is_refused(item: str) -> None:
    """An item with a space would be two, an empty one none."""
    with pytest.raises(ValueError, match="is a list, where"):
        Link("/", rt=["ok", item])


@pytest.mark.parametrize(
    ("args", "attributes"),
    [
        ((5,), {}),
        ((b"/",), {}),
        ((None,), {}),
        (("/", [(5, "x")]), {}),
        (("/", [(b"x", "x")]), {}),
        (("/",), {"x": 1.5}),
        (("/",), {"x": b"x"}),
        (("/",), {"x": {"a"}}),
        (("/",), {"x": [True]}),
        (("/",), {"x": [None]}),
        (("/",), {"x": [["a"]]}),
    ],
)
def test_a_wrong_type_is_refused(args: tuple[Any, ...], attributes: dict[str, Any]) -> None:
    """Bytes, floats, sets and nested lists are no text."""
    with pytest.raises(TypeError, match=r"must (be|have)"):
        Link(*args, **attributes)


def test_links_do_not_change() -> None:
    """No attribute can be set or deleted."""
    link = Link("/a", rt="x")
    with pytest.raises(AttributeError, match="another href"):
        link.href = "/b"
    with pytest.raises(AttributeError, match="does not change"):
        link.other = "/b"  # type: ignore[attr-defined]  # that is the point
    with pytest.raises(AttributeError, match="without href"):
        del link.href
    assert str(link) == '</a>;rt="x"'


@given(link=links, other=links)
def test_links_are_values(link: Link, other: Link) -> None:
    """Equal links have the same parts and the same hash; copies are equal."""
    assert (link == other) == ((link.href, link.attributes) == (other.href, other.attributes))
    twin = Link(link.href, link.attributes)
    assert twin == link
    assert hash(twin) == hash(link)
    assert pickle.loads(pickle.dumps(link)) == link
    assert copy.deepcopy(link) == link
    assert link != link.href


def test_a_link_format_is_a_sequence() -> None:
    """Length, order, slices, equality; what is no link is refused."""
    a, b, c = Link("/a"), Link("/b"), Link("/c")
    links = LinkFormat([a, b, c])
    assert len(links) == 3
    assert list(links) == [a, b, c]
    assert links[-1] == c
    assert links[:2] == LinkFormat([a, b])
    assert b in links
    assert hash(links) == hash(LinkFormat(iter([a, b, c])))
    assert links != [a, b, c]
    assert links.links == (a, b, c)
    assert repr(links) == "<LinkFormat of 3 links>"
    assert repr(a) == "<Link </a>>"
    with pytest.raises(TypeError, match="expected a Link, not '/d'"):
        LinkFormat([a, "/d"])  # type: ignore[list-item]  # that is the point


# -- Text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "text"),
    [
        (Link("/"), "</>"),
        (Link(""), "<>"),
        (Link("/a", ct=40), "</a>;ct=40"),
        (Link("/a", ct=[40, 50]), '</a>;ct="40 50"'),
        (Link("/a", sz="010"), '</a>;sz="010"'),
        (Link("/a", obs=True), "</a>;obs"),
        (Link("/a", foo=""), '</a>;foo=""'),
        (Link("/a", lt=60), "</a>;lt=60"),
        (Link("/a", title=5), '</a>;title="5"'),
        (Link("/a", rt=5), '</a>;rt="5"'),
        (Link("/a", hreflang="en-US"), "</a>;hreflang=en-US"),
        (Link("/a", hreflang="?"), '</a>;hreflang="?"'),
        (Link("/a", anchor="/b"), '</a>;anchor="/b"'),
        (Link("/a", title='say "a\\b"'), '</a>;title="say \\"a\\\\b\\""'),
        (Link("/a", title="a,b;c=<d>"), '</a>;title="a,b;c=<d>"'),
        (Link("/a", [("title*", "UTF-8'de'%c3%bc")]), "</a>;title*=UTF-8'de'%c3%bc"),
        (Link("/a", [("title*", "no token")]), '</a>;title*="no token"'),
        (Link("/ä", title="Überblick €"), '</ä>;title="Überblick €"'),
    ],
    ids=str,
)
def test_text_follows_the_grammar(link: Link, text: str) -> None:
    """Numbers and extended values are tokens, flags stand alone, everything else is quoted."""
    assert str(link) == text
    assert parse(text) == LinkFormat([link])


@given(links=st.lists(links, max_size=5).map(LinkFormat))
@example(links=LinkFormat([Link("", [("a", "\\")]), Link("", [("a", '"')])]))
def test_what_is_written_is_read_again(links: LinkFormat) -> None:
    """Any links, as text and as UTF-8, also with any space between the parts."""
    assert parse(str(links)) == links
    assert parse(str(links).encode()) == links


@given(links=st.lists(links, max_size=4), data=st.data())
def test_spaces_between_parts_do_not_matter(links: list[Link], data: st.DataObject) -> None:
    """Spaces, tabs and line breaks may stand around commas, semicolons and equals signs."""

    def gap() -> str:
        return data.draw(st.text(" \t\r\n", max_size=2))

    text = gap()
    for index, link in enumerate(links):
        if index:
            text += gap() + "," + gap()
        text += f"<{link.href}>"
        for name, value in link.attributes:
            text += gap() + ";" + gap() + name
            if value is not None:
                quoted = value.replace("\\", "\\\\").replace('"', '\\"')
                text += gap() + "=" + gap() + f'"{quoted}"'
    assert parse(text + gap()) == LinkFormat(links)


def test_the_examples_of_the_rfc_are_read() -> None:
    """RFC 6690, section 5."""
    links = parse(SENSORS)
    assert [link.href for link in links] == [
        "/sensors",
        "/sensors/temp",
        "/sensors/light",
        "http://www.example.com/sensors/t123",
        "/t",
    ]
    assert links[0].attributes == (("ct", "40"), ("title", "Sensor Index"))
    assert links[3].attributes == (("anchor", "/sensors/temp"), ("rel", "describedby"))
    assert str(links) == SENSORS.replace("\n", "")
    assert (
        str(parse('</firmware/v2.1>;rt="firmware";sz=262144')[0])
        == '</firmware/v2.1>;rt="firmware";sz=262144'
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<a>;x=y", "y"),
        ("<a>;x=<y>", "<y>"),
        ("<a>;x=a=b", "a=b"),
        ("<a>;x=http://a/b?c=d#e", "http://a/b?c=d#e"),
        ("<a>;x=ü", "ü"),
        ('<a>;x=""', ""),
        ('<a>;x="\\a\\"\\\\"', 'a"\\'),
        ('<a>;x="a,b"', "a,b"),
        ('<a>;title*="quoted"', None),
    ],
)
def test_tokens_and_quoted_values_are_read(text: str, value: str | None) -> None:
    """Either form, whatever the attribute; escaped characters stand for themselves."""
    link = parse(text)[0]
    assert link.attributes[0][1] == (value if value is not None else "quoted")


@pytest.mark.parametrize("text", ["", " ", "\r\n\t ", b"", b"\n"])
def test_an_empty_text_has_no_links(text: str | bytes) -> None:
    """A server without resources says nothing."""
    assert parse(text) == LinkFormat()
    assert str(LinkFormat()) == ""


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a", 0),
        ("<", 0),
        ("<a", 0),
        ("<a<b>", 0),
        ("<a\n>", 0),
        ("<a>b", 3),
        ("<a>,", 4),
        ("<a>,,<b>", 4),
        (",<a>", 0),
        ("<a>;", 4),
        ("<a>;;x", 4),
        ("<a>;=x", 4),
        ("<a>;x=", 6),
        ("<a>;x=,<b>", 6),
        ('<a>;x="', 6),
        ('<a>;x="y', 6),
        ('<a>;x="y\\"', 6),
        ('<a>;x="\n"', 6),
        ('<a>;x="\\\n"', 6),
        ('<a>;x=y"z"', 7),
        ("<a>;x=y\\z", 7),
        ("<a>;x y", 6),
        ("<a>;ü=1", 4),
        ("<a>;x**=1", 6),
        ("<a> <b>", 4),
    ],
)
def test_what_is_no_link_format_is_an_error_with_its_place(text: str, position: int) -> None:
    """The error says where, is a ValueError and one of ours."""
    with pytest.raises(LinkFormatError) as caught:
        parse(text)
    assert caught.value.position == position
    assert f"(at character {position})" in str(caught.value)
    assert isinstance(caught.value, AiomasError)
    assert isinstance(caught.value, ValueError)


@given(text=st.text('<>;,="\\ab */\n', max_size=30) | st.text() | st.binary())
def test_no_text_raises_anything_else(text: str | bytes) -> None:
    """Whatever a peer sends gives links or the one error, and what gives links can be written."""
    with contextlib.suppress(LinkFormatError):
        links = parse(text)
        assert parse(str(links)) == links


def test_what_is_not_utf8_is_an_error() -> None:
    """The error says at which byte."""
    with pytest.raises(LinkFormatError, match=r"not in UTF-8: .* at byte 2"):
        parse(b"<a\xff>")


def test_errors_show_little_of_the_text() -> None:
    """A peer does not fill the log."""
    with pytest.raises(LinkFormatError) as caught:
        parse("<a>;" + "x" * 10_000 + "=")
    assert len(str(caught.value)) < 200


def test_pickled_errors_say_the_same() -> None:
    """Errors cross process borders."""
    error = LinkFormatError("wrong", 5)
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.position) == (str(error), 5)
    assert str(LinkFormatError("wrong")) == "wrong"


def test_texts_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Length, links and attributes; what is just within them is read."""
    monkeypatch.setattr(link_text, "MAX_LINKS", 3)
    monkeypatch.setattr(link_text, "MAX_ATTRIBUTES", 4)
    monkeypatch.setattr(link_text, "MAX_TEXT", 40)
    assert len(parse("<>,<>,<>")) == 3
    with pytest.raises(LinkFormatError, match=r"more than 3 links \(at character 9\)"):
        parse("<>,<>,<>,<>")
    assert len(parse("<>;a;b,<>;c;d")) == 2
    with pytest.raises(LinkFormatError, match="more than 4 attributes"):
        parse("<>;a;b,<>;c;d;e")
    assert len(parse("<" + "x" * 38 + ">")) == 1
    with pytest.raises(LinkFormatError, match="the text has 41 characters, the limit is 40"):
        parse("<" + "x" * 39 + ">")


def test_a_payload_is_not_decoded_beyond_the_bound() -> None:
    """Of too many bytes nothing is looked at."""
    with pytest.raises(LinkFormatError, match="bytes, the limit is"):
        parse(bytes(4 * linkformat.MAX_TEXT + 1))


@pytest.mark.parametrize(
    "piece", ["\\", '\\"', " ", "<", '<>;a="', "<>,", "<>;a,", ";a", "a", "=", '"', "\\\\a", "\t\n"]
)
@pytest.mark.parametrize("start", ["", "<", "<>;", '<>;a="', "<>;a="])
def test_hostile_texts_take_one_pass(start: str, piece: str) -> None:
    """A megabyte of whatever repeats takes a second or two at most; going back over it would take hours."""
    began = time.process_time()
    with contextlib.suppress(LinkFormatError):
        parse(start + piece * (2**20 // len(piece)))
    assert time.process_time() - began < 20


# -- Others read what we write, and we what they write -----------------------------------------------

foreign_names = st.sampled_from([name for name in KNOWN if name != "title*"]) | st.text(
    "abcXYZ019-._", min_size=1, max_size=5
)
foreign_links = st.builds(
    Link, hrefs.map(str.strip), st.lists(st.tuples(foreign_names, st.none() | values), max_size=5)
)


def as_they_read_it(links: LinkFormat) -> list[Any]:
    """What LinkHeader makes of our text; it takes back the escapes of quotes, not those of backslashes."""
    return [
        [link.href, [[name, value and value.replace("\\", "\\\\")] for name, value in link.attributes]]
        for link in links
    ]


@pytest.mark.needs("link_header")
@given(links=st.lists(foreign_links, max_size=4).map(LinkFormat))
def test_linkheader_reads_what_we_write(links: LinkFormat) -> None:
    """The package LinkHeader finds the same targets and attributes."""
    import link_header

    assert link_header.parse(str(links)).to_py() == as_they_read_it(links)


@pytest.mark.needs("aiocoap")
@given(links=st.lists(foreign_links, max_size=4).map(LinkFormat))
def test_aiocoap_reads_what_we_write(links: LinkFormat) -> None:
    """aiocoap finds the same targets and attributes."""
    from aiocoap.util import linkformat as theirs

    found = theirs.parse(str(links))
    assert [[link.href, link.attr_pairs] for link in found.links] == as_they_read_it(links)


plain_links = st.builds(
    Link,
    hrefs.map(str.strip),
    st.lists(
        st.tuples(foreign_names, st.none() | values.filter(lambda value: "\\" not in value)), max_size=5
    ),
)


@pytest.mark.needs("link_header")
@given(links=st.lists(plain_links, max_size=4).map(LinkFormat))
def test_we_read_what_linkheader_writes(links: LinkFormat) -> None:
    """With its spaces and its tokens."""
    import link_header

    text = str(link_header.LinkHeader([[link.href, list(link.attributes)] for link in links]))
    assert parse(text) == links


@pytest.mark.needs("aiocoap")
@given(links=st.lists(plain_links, max_size=4).map(LinkFormat))
def test_we_read_what_aiocoap_writes(links: LinkFormat) -> None:
    """With everything in quotes."""
    from aiocoap.util import linkformat as theirs

    found = theirs.LinkFormat([theirs.Link(link.href, list(link.attributes)) for link in links])
    assert parse(str(found)) == links


# -- Filters ---------------------------------------------------------------------------------------

HOUSE = LinkFormat(
    [
        Link("/temp", rt="temperature-c temperature", if_="sensor", ct=[0, 50], obs=True),
        Link("/light", rt="light-lux", if_=["sensor", "core.s"], ct=50, title="Lamp 1"),
        Link("/a%20b/c", ct=5, sz=100),
        Link("/", [("x", "1"), ("x", "2")], rel="self hosts", rev="up", obs=""),
    ]
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ([], "0123"),
        ([""], "0123"),
        (["rt=light-lux"], "1"),
        (["rt=temperature"], "0"),
        (["rt=temperature-c"], "0"),
        (["rt=temp"], ""),
        (["rt=temp*"], "0"),
        (["rt=*"], "01"),
        (["rt=*lux"], ""),
        (["rt=temperature-c temperature"], ""),
        (["rt="], ""),
        (["rt"], "01"),
        (["if=sensor"], "01"),
        (["if=core*"], "1"),
        (["rel=hosts"], "3"),
        (["rev=up"], "3"),
        (["ct=50"], "01"),
        (["ct=5"], "2"),
        (["ct=5*"], "012"),
        (["ct=0"], "0"),
        (["obs"], "03"),
        (["obs="], "03"),
        (["obs=*"], "03"),
        (["obs=1"], ""),
        (["title=Lamp 1"], "1"),
        (["title=Lamp"], ""),
        (["title=Lam*"], "1"),
        (["x=2"], "3"),
        (["x=3"], ""),
        (["sz=100"], "2"),
        (["nothing"], ""),
        (["nothing=*"], ""),
        (["href=/temp"], "0"),
        (["href=/t*"], "0"),
        (["href=/*"], "0123"),
        (["href=/"], "3"),
        (["href=/a b*"], "2"),
        (["href=/a%20b/c"], "2"),
        (["href=/a b/c"], "2"),
        (["href"], "0123"),
        (["href="], ""),
        (["RT=light-lux"], ""),
        (["=x"], ""),
        (["if=sensor", "ct=0"], "0"),
        (["if=sensor", "rt=light-lux", "obs"], ""),
        (["title=Lamp 1", "", "href=/l*"], "1"),
    ],
    ids=repr,
)
def test_filters_find(query: list[str], expected: str) -> None:
    """Exact values, beginnings, items of lists, flags, targets; several criteria have to hold at once."""
    found = [str(HOUSE.links.index(link)) for link in linkformat.filter(HOUSE, query)]
    assert "".join(found) == expected
    assert HOUSE.filter(tuple(query)) == linkformat.filter(HOUSE.links, iter(query))


def test_the_filters_of_the_rfc() -> None:
    """RFC 6690, section 5: by type, and by interface with a wildcard."""
    links = parse(SENSORS)
    assert str(links.filter(["rt=light-lux"])) == '</sensors/light>;rt="light-lux";if="sensor"'
    assert [link.href for link in links.filter(["if=sens*"])] == ["/sensors/temp", "/sensors/light"]
    assert [link.href for link in links.filter(["href=/sensors*"])] == [
        "/sensors",
        "/sensors/temp",
        "/sensors/light",
    ]


@given(
    links=st.lists(links, max_size=5), query=st.lists(st.text("rt=if*a ", max_size=6) | st.text(max_size=5))
)
def test_filters_take_any_query(links: list[Link], query: list[str]) -> None:
    """What is found was there, in the same order, and finding it again changes nothing."""
    found = linkformat.filter(links, query)
    rest = iter(links)
    assert all(any(link is other for other in rest) for link in found)
    assert found.filter(query) == found


# -- References ------------------------------------------------------------------------------------

RFC_3986 = {
    "g": "/b/c/g",
    "./g": "/b/c/g",
    "g/": "/b/c/g/",
    "/g": "/g",
    "?y": "/b/c/d;p?y",
    "g?y": "/b/c/g?y",
    "#s": "/b/c/d;p?q#s",
    "g#s": "/b/c/g#s",
    "g?y#s": "/b/c/g?y#s",
    ";x": "/b/c/;x",
    "g;x": "/b/c/g;x",
    "": "/b/c/d;p?q",
    ".": "/b/c/",
    "./": "/b/c/",
    "..": "/b/",
    "../": "/b/",
    "../g": "/b/g",
    "../..": "/",
    "../../": "/",
    "../../g": "/g",
    "../../../g": "/g",
    "../../../../g": "/g",
    "/./g": "/g",
    "/../g": "/g",
    "g.": "/b/c/g.",
    ".g": "/b/c/.g",
    "g..": "/b/c/g..",
    "..g": "/b/c/..g",
    "./../g": "/b/g",
    "./g/.": "/b/c/g/",
    "g/./h": "/b/c/g/h",
    "g/../h": "/b/c/h",
    "g;x=1/./y": "/b/c/g;x=1/y",
    "g;x=1/../y": "/b/c/y",
    "g?y/./x": "/b/c/g?y/./x",
    "g?y/../x": "/b/c/g?y/../x",
    "g#s/./x": "/b/c/g#s/./x",
    "g#s/../x": "/b/c/g#s/../x",
}
"""The examples of RFC 3986, section 5.4, without their beginning ``http://a``."""

ROOTS = [
    "tcp://localhost:5555",
    "tcp://[::1]:5555",
    "ipc://[/tmp/a socket]",
    "local://queue",
    "http://a",
    "coap://a:1",
]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(("reference", "expected"), RFC_3986.items())
def test_references_are_resolved(root: str, reference: str, expected: str) -> None:
    """The examples of RFC 3986, over each of our schemes and over others."""
    assert resolve(f"{root}/b/c/d;p?q", reference) == root + expected


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("base", ["", "/"])
def test_a_server_without_a_path_has_a_root(root: str, base: str) -> None:
    """With or without the last slash."""
    assert resolve(root + base, "x/y") == f"{root}/x/y"
    assert resolve(root + base, "/x") == f"{root}/x"
    assert resolve(root + base, "../x") == f"{root}/x"


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(
    "url", ["tcp://a:1/x/../y", "ipc://[/x]/aid", "coap://a/b", "urn:x", "g:h", "http:g"]
)
def test_whole_urls_are_kept(root: str, url: str) -> None:
    """What has a scheme is returned as it is."""
    assert resolve(f"{root}/b/c", url) == url


def test_an_authority_replaces_that_of_the_base() -> None:
    """``//host`` keeps the scheme only."""
    assert resolve("tcp://a:1/b", "//c:2/d") == "tcp://c:2/d"
    assert resolve("http://a/b?c", "//d") == "http://d"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("ipc://[/tmp/x]/aid/y", "ipc://[/tmp/x]/z"),
        ("ipc://[/tmp/x]/strange]/aid", "ipc://[/tmp/x]/strange]/z"),
        ("ipc:///tmp/x", "ipc://[/tmp/x]/z"),
        ("ipc://[/tmp/x]", "ipc://[/tmp/x]/z"),
        ("tcp://HOST:080/x", "tcp://HOST:80/z"),
        ("http://a#frag/ment", "http://a/z"),
        ("local://q/aid/x#frag", "local://q/z"),
    ],
)
def test_our_schemes_are_known(base: str, expected: str) -> None:
    """Sockets in brackets, sockets without, ports; a fragment of the base does not count."""
    assert resolve(base, "/z") == expected
    assert "#" not in resolve(base, "")


@pytest.mark.parametrize(
    "base", ["", "/a/b", "a", "//host/x", "urn:x", "mailto:a@b", "tcp:/a", "ipc://", "tcp://a"]
)
def test_a_base_that_is_no_whole_url_is_refused(base: str) -> None:
    """There is nothing to resolve against."""
    with pytest.raises(ValueError, match=r"cannot (resolve anything against|parse URL)"):
        resolve(base, "/x")
    with pytest.raises(ValueError, match=r"cannot (resolve anything against|parse URL)"):
        LinkFormat().resolve(base)


@given(path=st.text("/.a", max_size=20), reference=st.text("/.a?#", max_size=20))
def test_no_dots_are_left(path: str, reference: str) -> None:
    """Whatever the reference, the path of the result begins at the root and has no segment of dots."""
    if reference.startswith("//"):
        return
    result = resolve(f"tcp://h:1/{path}", reference)
    assert result.startswith("tcp://h:1/")
    if reference and reference[0] not in "?#":
        found = re.split("[?#]", result.removeprefix("tcp://h:1"))[0]
        assert not {".", ".."} & set(found.split("/"))


def test_links_are_resolved_with_their_anchors() -> None:
    """Target and anchor become whole URLs, the other attributes stay."""
    links = parse(SENSORS).resolve("tcp://localhost:5555/")
    assert [link.href for link in links] == [
        "tcp://localhost:5555/sensors",
        "tcp://localhost:5555/sensors/temp",
        "tcp://localhost:5555/sensors/light",
        "http://www.example.com/sensors/t123",
        "tcp://localhost:5555/t",
    ]
    assert links[4].attributes == (("anchor", "tcp://localhost:5555/sensors/temp"), ("rel", "alternate"))
    assert links[4] == parse(SENSORS)[4].resolve("tcp://localhost:5555")
    assert links.resolve("ipc://[/other]/") == links


# -- Prefixes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/house/cellar", "house/cellar", "/house/cellar/", ["house", "cellar"]])
def test_a_prefix_is_put_before_paths(prefix: str | list[str]) -> None:
    """Paths from the root are moved, targets and anchors alike; whole URLs and relative paths are not."""
    links = LinkFormat(
        [
            Link("/temp", [("anchor", "/x"), ("title", "/x"), ("anchor", None)]),
            Link("/"),
            Link("tcp://a:1/b", anchor="/c"),
            Link("//a/b"),
            Link("b"),
            Link("", anchor="d"),
            Link("?x"),
        ]
    )
    moved = links.prefixed(prefix)
    assert [link.href for link in moved] == [
        "/house/cellar/temp",
        "/house/cellar/",
        "tcp://a:1/b",
        "//a/b",
        "b",
        "",
        "?x",
    ]
    assert moved[0].attributes == (("anchor", "/house/cellar/x"), ("title", "/x"), ("anchor", None))
    assert moved[2]["anchor"] == "/house/cellar/c"
    assert moved[5]["anchor"] == "d"
    assert links[0].prefixed(prefix) == moved[0]
    assert links[0].href == "/temp"


@pytest.mark.parametrize("prefix", ["", "/", "//", [], ()])
def test_an_empty_prefix_changes_nothing(prefix: Any) -> None:
    """The root of a site is mounted nowhere."""
    assert HOUSE.prefixed(prefix) == HOUSE


def test_a_prefix_that_cannot_be_written_is_refused() -> None:
    """As with a target."""
    with pytest.raises(ValueError, match="a prefix cannot have"):
        HOUSE.prefixed("/a>b")


@given(path=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_segments_are_quoted(path: list[str]) -> None:
    """Any segments give a path that a link can have, and that is taken apart to the same ones."""
    from urllib.parse import unquote

    text = quote_path(path)
    assert Link(f"/{text}").href == f"/{text}"
    assert parse(f"</{text}>")[0].href == f"/{text}"
    assert [unquote(segment) for segment in text.split("/")] == (path or [""])
    assert not set(text) & set(' <>"{}|\\^`?#[]')


def test_what_a_segment_may_have_is_not_quoted() -> None:
    """The characters of RFC 3986's pchar stay as they are, slashes do not."""
    assert quote_path(["a-._~!$&'()*+,;=:@", "b/c", "ü?"]) == "a-._~!$&'()*+,;=:@/b%2Fc/%C3%BC%3F"


def test_nested_prefixes_add_up() -> None:
    """A site within a site within a site."""
    assert Link("/c").prefixed("b").prefixed(["a"]).href == "/a/b/c"
