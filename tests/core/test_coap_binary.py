"""The binary form of CoAP: it agrees with another implementation, and with the RFCs to the last bit."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomas_ng._core import coap_binary
from aiomas_ng._core.coap_binary import (
    Datagram,
    FrameParser,
    MessageType,
    Parts,
    decode_datagram,
    decode_frame,
    decode_options,
    encode_datagram,
    encode_frame,
    encode_options,
)
from aiomas_ng._core.codes import CODES, Code
from aiomas_ng._core.options import MAX_NUMBER, MAX_OPTIONS, Options, SignalOptions
from aiomas_ng.exceptions import FrameTooLargeError, MalformedFrameError
from tests.made_messages import codes, message_codes, options, payloads, tokens

if importlib.util.find_spec("aiocoap") is not None:
    import aiocoap
    from aiocoap.numbers.optionnumbers import OptionNumber as OtherNumber
    from aiocoap.transports import tcp

needs_aiocoap = pytest.mark.needs("aiocoap")

# For aiocoap this number, which no RFC has assigned, is that of a uint, and loses its zeros.
agreed_options = options.filter(lambda opt: 13 not in opt)

message_types = st.sampled_from(MessageType)
message_ids = st.integers(0, 65535)


def options_of(*pairs: tuple[int, bytes]) -> Options:
    """Return options of these numbers and values."""
    opt = Options()
    for number, value in pairs:
        opt.add_option(number, value)
    return opt


def other_message(code: int, token: bytes, opt: Options, payload: bytes, **header: Any) -> Any:
    """Return the same message of aiocoap."""
    message = aiocoap.Message(code=code, payload=payload, _token=token, **header)
    for number, value in opt.option_list():
        message.opt.add_option(OtherNumber(number).create_option(decode=value))
    return message


def parts_of(message: Any) -> tuple[int, bytes, list[tuple[int, bytes]], bytes]:
    """Return the parts of a message of aiocoap."""
    pairs = [(int(option.number), option.encode()) for option in message.opt.option_list()]
    return int(message.code), message.token, pairs, message.payload


# -- Agreement with aiocoap ------------------------------------------------------------------------


@needs_aiocoap
@given(codes, tokens, agreed_options, payloads)
def test_frames_agree_with_aiocoap(code: Code, token: bytes, opt: Options, payload: bytes) -> None:
    """A message over TCP has the same bytes in both, and each reads what the other has written."""
    ours = encode_frame(code, token, opt, payload)
    assert ours == tcp._serialize(other_message(code, token, opt, payload))
    assert parts_of(tcp._decode_message(ours)) == (code, token, opt.option_list(), payload)
    assert decode_frame(ours) == Parts(code, token, opt, payload)


@needs_aiocoap
@given(message_types, message_ids, message_codes, tokens, agreed_options, payloads)
def test_datagrams_agree_with_aiocoap(
    type: MessageType, message_id: int, code: Code, token: bytes, opt: Options, payload: bytes
) -> None:
    """A datagram has the same bytes in both, and each reads what the other has written."""
    ours = encode_datagram(type, message_id, code, token, opt, payload)
    theirs = other_message(code, token, opt, payload, _mtype=int(type), _mid=message_id)
    assert ours == theirs.encode()
    read = aiocoap.Message.decode(ours)
    assert parts_of(read) == (code, token, opt.option_list(), payload)
    assert (int(read.mtype), read.mid) == (type, message_id)
    assert decode_datagram(ours) == Datagram(type, message_id, code, token, opt, payload)


@needs_aiocoap
@given(st.data())
def test_attributes_agree_with_aiocoap(data: st.DataObject) -> None:
    """What a program of aiocoap sets by name, ours reads by the same name, and the other way round."""
    values = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "uri_path": st.lists(
                    st.text(max_size=20).filter(lambda text: text not in (".", "..")), max_size=3
                ),
                "uri_query": st.lists(st.text(max_size=20), max_size=3),
                "uri_host": st.text(min_size=1, max_size=20),
                "observe": st.integers(0, 2**24 - 1),
                "etag": st.binary(min_size=1, max_size=8),
                "if_match": st.lists(st.binary(max_size=8), max_size=3),
                "if_none_match": st.booleans(),
                "max_age": st.integers(0, 2**32 - 1),
                "content_format": st.integers(0, 65535),
                "accept": st.integers(0, 65535),
                "block1": st.tuples(st.integers(0, 2**20 - 1), st.booleans(), st.integers(0, 6)),
                "block2": st.tuples(st.integers(0, 2**20 - 1), st.booleans(), st.integers(0, 6)),
                "size1": st.integers(0, 2**32 - 1),
                "size2": st.integers(0, 2**32 - 1),
                "hop_limit": st.integers(1, 255),
                "no_response": st.integers(0, 255),
                "request_tag": st.lists(st.binary(max_size=8), max_size=3),
                "echo": st.binary(min_size=1, max_size=40),
            },
        )
    )
    theirs, ours = aiocoap.Message(code=1), Options()
    for name, value in values.items():
        setattr(theirs.opt, name, value)
        setattr(ours, name, value)
    assert theirs.opt.encode() == encode_options(ours)
    read, _ = decode_options(theirs.opt.encode())
    back = aiocoap.Message(code=1)
    back.opt.decode(encode_options(ours))
    for name in values:
        assert getattr(read, name) == getattr(theirs.opt, name)
        assert getattr(back.opt, name) == getattr(ours, name)


@needs_aiocoap
@given(
    st.sampled_from([Code.CSM, Code.PING, Code.PONG, Code.RELEASE, Code.ABORT]), st.binary(max_size=9), tokens
)
def test_signals_agree_with_aiocoap(code: Code, value: bytes, token: bytes) -> None:
    """Signals, whose options have other meanings, lose nothing on the way."""
    opt = SignalOptions()
    opt.add_option(2, value)
    opt.add_option(4, b"")
    ours = encode_frame(code, token, opt, b"why")
    assert ours == tcp._serialize(other_message(code, token, opt, b"why"))
    assert decode_frame(ours) == Parts(code, token, opt, b"why")
    assert type(decode_frame(ours).options) is SignalOptions


@needs_aiocoap
@pytest.mark.parametrize("size", [0, 11, 12, 13, 267, 268, 269, 65803, 65804, 65805, 65806])
def test_lengths_at_the_edges(size: int) -> None:
    """The length of a frame takes the form that the RFC has for it, at and around each limit."""
    for opt in (Options(), options_of((11, b"abc"))):
        ours = encode_frame(Code.CONTENT, b"\x01", opt, b"x" * size)
        assert ours == tcp._serialize(other_message(Code.CONTENT, b"\x01", opt, b"x" * size))
        assert decode_frame(ours).payload == b"x" * size
        assert FrameParser().feed(ours) == [decode_frame(ours)]


# -- Exact bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "data"),
    [
        ([], ""),
        ([(11, b"abc")], "b3 616263"),
        ([(11, b"a"), (11, b"b")], "b1 61 01 62"),
        ([(6, b""), (11, b"a")], "60 51 61"),
        ([(12, b"")], "c0"),
        ([(13, b"")], "d0 00"),
        ([(60, b"\x05")], "d1 2f 05"),
        ([(268, b"")], "d0 ff"),
        ([(269, b"")], "e0 0000"),
        ([(292, b"t")], "e1 0017 74"),
        ([(65535, b"")], "e0 fef2"),
        ([(2050, b"a" * 12)], "ec 06f5" + "61" * 12),
        ([(11, b"a" * 13)], "bd 00" + "61" * 13),
        ([(35, b"a" * 268)], "dd 16 ff" + "61" * 268),
        ([(35, b"a" * 269)], "de 16 0000" + "61" * 269),
    ],
)
def test_options_bit_by_bit(pairs: list[tuple[int, bytes]], data: str) -> None:
    """Delta and length are encoded as in RFC 7252, section 3.1, at each edge."""
    encoded = bytes.fromhex(data)
    assert encode_options(options_of(*pairs)) == encoded
    assert decode_options(encoded) == (options_of(*pairs), b"")
    assert decode_options(encoded + b"\xff\xff!") == (options_of(*pairs), b"\xff!")


def test_longest_option() -> None:
    """The longest value that can be announced is carried."""
    opt = options_of((65000, b"x" * (65535 + 269)))
    assert decode_options(encode_options(opt)) == (opt, b"")


@pytest.mark.parametrize(
    ("parts", "data"),
    [
        # RFC 7252, appendix A, figure 16.
        (
            (MessageType.CON, 0x7D34, Code.GET, b"", [(11, b"temperature")], b""),
            "40017d34bb" + b"temperature".hex(),
        ),
        ((MessageType.ACK, 0x7D34, Code.CONTENT, b"", [], b"22.3 C"), "60457d34ff" + b"22.3 C".hex()),
        # Figure 17 has a token.
        (
            (MessageType.CON, 0x7D35, Code.GET, b"\x20", [(11, b"temperature")], b""),
            "41017d3520bb" + b"temperature".hex(),
        ),
        ((MessageType.RST, 1, Code.EMPTY, b"", [], b""), "70000001"),
    ],
)
def test_datagrams_of_the_rfc(parts: Any, data: str) -> None:
    """The examples of RFC 7252 are read and written bit by bit."""
    type, message_id, code, token, pairs, payload = parts
    expected = Datagram(type, message_id, code, token, options_of(*pairs), payload)
    assert encode_datagram(*expected) == bytes.fromhex(data)
    assert decode_datagram(bytes.fromhex(data)) == expected


@pytest.mark.parametrize(
    ("parts", "data"),
    [
        # RFC 8323, figure 6.
        ((Code.VALID, b"\x7f", [], b""), "01 43 7f"),
        ((Code.EMPTY, b"", [], b""), "00 00"),
        ((Code.GET, b"ab", [(11, b"soc")], b""), "42 01 6162 b3736f63"),
        ((Code.CONTENT, b"", [], b"x" * 12), "d0 00 45 ff" + "78" * 12),
    ],
)
def test_frames_of_the_rfc(parts: Any, data: str) -> None:
    """A frame is written as in RFC 8323, section 3.2."""
    code, token, pairs, payload = parts
    assert encode_frame(code, token, options_of(*pairs), payload) == bytes.fromhex(data)
    assert decode_frame(bytes.fromhex(data)) == Parts(code, token, options_of(*pairs), payload)


@pytest.mark.parametrize("buffer", [bytearray, memoryview])
def test_any_buffer_is_taken(buffer: Any) -> None:
    """What was read into another kind of buffer gives the same, as plain bytes."""
    frame = encode_frame(Code.GET, b"t", options_of((4, b"e"), (2048, b"u")), b"p")
    assert decode_frame(buffer(frame)) == decode_frame(frame)
    datagram = encode_datagram(MessageType.CON, 1, Code.GET, b"t", options_of((4, b"e"), (2048, b"u")), b"p")
    assert decode_datagram(buffer(datagram)) == decode_datagram(datagram)
    assert FrameParser().feed(buffer(frame)) == [decode_frame(frame)]
    read = decode_frame(buffer(frame))
    assert (type(read.token), type(read.payload), read.options.etag) == (bytes, bytes, b"e")


# -- Malformed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "ff",  # a marker without payload
        "60 ff",
        "f0",  # 15 in one half only
        "0f",
        "1f",
        "b3 6162",  # cut off
        "d0",
        "e0 00",
        "0d",
        "0e 00",
        "0d 00 61",
        "e0 ffff",  # beyond the largest number
        "e0 fef2 10",
    ],
)
def test_malformed_options(data: str) -> None:
    """Options that end too early or break the rules are one kind of error, in frames and datagrams."""
    body = bytes.fromhex(data)
    with pytest.raises(MalformedFrameError):
        decode_options(body)
    with pytest.raises(MalformedFrameError):
        decode_frame(bytes((len(body) << 4, 1)) + body)
    with pytest.raises(MalformedFrameError):
        decode_datagram(b"\x40\x01\x00\x00" + body)


def test_largest_number() -> None:
    """The largest number is taken, one more is malformed."""
    just = b"\xe0" + (MAX_NUMBER - 269).to_bytes(2, "big")
    assert MAX_NUMBER in decode_options(just)[0]
    with pytest.raises(MalformedFrameError, match="65536"):
        decode_options(just + b"\x10")


def test_too_many_options() -> None:
    """The bound on their number holds here as well."""
    assert len(decode_options(b"\xb0" + b"\x00" * (MAX_OPTIONS - 1))[0]) == MAX_OPTIONS
    with pytest.raises(MalformedFrameError, match="options at most"):
        decode_options(b"\xb0" + b"\x00" * MAX_OPTIONS)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "40",
        "400100",
        "00010000",  # version 0
        "80010000",
        "c0010000",
        "49010000" + "00" * 9,  # a token of 9 bytes
        "4f010000" + "00" * 15,
        "42010000 61",  # ends within the token
        "41000000 61",  # an empty message with a token
        "40000000 b0",
        "40000000 ff61",
        "40010000 ff",
    ],
)
def test_malformed_datagrams(data: str) -> None:
    """A datagram that is no message is one kind of error."""
    with pytest.raises(MalformedFrameError):
        decode_datagram(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    [
        "",
        "00",
        "0001 00",  # goes on behind its end
        "1001",  # ends before it
        "0201 61",
        "d0",
        "d000",
        "e00000",
        "f000000000",
        "0901" + "00" * 9,  # a token of 9 bytes
        "0f01",
    ],
)
def test_malformed_frames(data: str) -> None:
    """What is not exactly one frame is one kind of error."""
    with pytest.raises(MalformedFrameError):
        decode_frame(bytes.fromhex(data))


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """Whatever arrives is a message or that one error; what was read is written so that it reads the same."""
    forms: list[tuple[Callable[[bytes], Any], Callable[..., bytes]]] = [
        (decode_frame, encode_frame),
        (decode_datagram, encode_datagram),
    ]
    for decode, encode in forms:
        try:
            *header, opt, payload = decode(data)
        except MalformedFrameError:
            continue
        *header_again, opt_again, payload_again = decode(encode(*header, opt, payload))
        assert (header_again, payload_again) == (header, payload)
        assert opt_again.option_list() == opt.option_list()


@pytest.mark.parametrize(
    ("code", "token"), [(-1, b""), (256, b""), (1, b"123456789")], ids=["negative", "too large", "long token"]
)
def test_wrong_headers(code: int, token: bytes) -> None:
    """A program's wrong code or token is a ValueError."""
    with pytest.raises(ValueError, match=r"from 0 to 255|8 bytes"):
        encode_frame(code, token, Options(), b"")
    with pytest.raises(ValueError, match=r"from 0 to 255|8 bytes"):
        encode_datagram(MessageType.CON, 0, code, token, Options(), b"")


@pytest.mark.parametrize("message_id", [-1, 65536])
def test_wrong_message_ids(message_id: int) -> None:
    """A message id has 16 bits."""
    with pytest.raises(ValueError, match="message id"):
        encode_datagram(MessageType.CON, message_id, Code.GET, b"", Options(), b"")


@pytest.mark.parametrize(
    ("token", "opt", "payload"),
    [(b"t", Options(), b""), (b"", options_of((11, b"a")), b""), (b"", Options(), b"p")],
    ids=["token", "options", "payload"],
)
def test_empty_datagrams_are_empty(token: bytes, opt: Options, payload: bytes) -> None:
    """An empty message must not carry anything (RFC 7252, section 4.1)."""
    with pytest.raises(ValueError, match="an empty message"):
        encode_datagram(MessageType.RST, 1, Code.EMPTY, token, opt, payload)


def test_frames_beyond_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that the header cannot announce is refused, with its size and the limit."""
    monkeypatch.setattr(coap_binary, "MAX_LENGTH", 10)
    assert encode_frame(Code.GET, b"", Options(), b"x" * 9)
    with pytest.raises(FrameTooLargeError) as caught:
        encode_frame(Code.GET, b"", Options(), b"x" * 10)
    assert (caught.value.size, caught.value.limit) == (11, 10)


# -- The parser ------------------------------------------------------------------------------------

frames = st.lists(
    st.tuples(st.sampled_from(CODES), tokens, st.just(Options()) | options, payloads), max_size=6
)


@given(frames, st.data())
def test_any_chunking_gives_the_same(
    messages: list[tuple[Code, bytes, Options, bytes]], data: st.DataObject
) -> None:
    """However a stream is cut, the same messages come out, each as soon as it is complete."""
    whole = [decode_frame(encode_frame(*message)) for message in messages]
    stream = b"".join(encode_frame(*message) for message in messages)
    ends = list(itertools.accumulate(len(encode_frame(*message)) for message in messages))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=10)))
    parser = FrameParser()
    parsed: list[Parts] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        parsed += parser.feed(stream[start:end])
        assert len(parsed) == sum(1 for place in ends if place <= end)
        assert parser.is_empty == (end in (0, *ends))
    assert parsed == whole
    assert parser.error is None


BROKEN = [
    b"\x09\x01",  # the token is too long
    b"\x10\x01\xff",  # a marker without payload
    b"\x20\x01\xf0\x00",
    b"\xd0\xff\x01",  # too large
    b"\xf0\xff\xff\xff\xff\x01",
]


@given(st.integers(0, 3), st.sampled_from(BROKEN), st.data())
@example(0, BROKEN[0], None)
def test_messages_before_an_error(count: int, broken: bytes, data: st.DataObject | None) -> None:
    """Of what precedes something malformed nothing is lost, however it is cut; nothing comes after it."""
    good = encode_frame(Code.GET, b"t", options_of((11, b"a")), b"")
    stream = good * count + broken + good * 3
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8))) if data is not None else []
    parser = FrameParser(max_size=100)
    parsed: list[Parts] = []
    errors = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        try:
            parsed += parser.feed(stream[start:end])
        except MalformedFrameError as error:
            errors.append(error)
    assert parsed == [decode_frame(good)] * count
    assert parser.error is not None
    assert set(errors) <= {parser.error}
    assert parser.is_empty
    for _ in range(2):
        with pytest.raises(MalformedFrameError):
            parser.feed(good)


@pytest.mark.parametrize("max_size", [0, 5, 12, 13, 300, 70_000])
def test_largest_message(max_size: int) -> None:
    """A message of just the largest size is taken; a larger one is refused by its header alone."""
    just = encode_frame(Code.CONTENT, b"12345678", Options(), b"x" * (max_size - 1) if max_size else b"")
    assert len(FrameParser(max_size).feed(just)) == 1
    larger = encode_frame(Code.CONTENT, b"12345678", Options(), b"x" * max(max_size, 1))
    with pytest.raises(MalformedFrameError, match=f"the limit is {max_size}"):
        FrameParser(max_size).feed(larger[:5])


def test_parser_holds_one_message_at_most() -> None:
    """Who sends byte by byte cannot make the parser hold more than one message of the largest size."""
    parser = FrameParser(max_size=1000)
    frame = encode_frame(Code.PUT, b"t", Options(), b"x" * 999)
    for place in range(len(frame) - 1):
        assert parser.feed(frame[place : place + 1]) == []
        assert len(parser._buffer) == place + 1
    assert len(parser.feed(frame[-1:])) == 1
    assert parser.is_empty


def test_wrong_max_size() -> None:
    """A negative limit makes no sense."""
    with pytest.raises(ValueError, match="max_size"):
        FrameParser(-1)
