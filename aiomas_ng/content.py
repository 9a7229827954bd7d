"""Content formats: what the bytes of a payload are, and how values become such bytes.

- TEXT, LINK_FORMAT: str, as UTF-8.  Numbers and booleans are written as text too, and arrive as text.
- JSON and all whose media type ends with ``+json``: what :class:`~aiomas_ng.codecs.JSON` carries, own types
  included; plain data is plain JSON.
- MSGPACK: what :class:`~aiomas_ng.codecs.MsgPack` carries, own types included; exact for bytes, and sequences
  arrive as tuples.
- CBOR and all whose media type ends with ``+cbor``: what the package ``cbor2`` carries
  (``pip install aiomas_ng[cbor]``).
- OCTET_STREAM and all others, known or not: bytes, as they are.

The numbers are those of the registry "CoAP Content-Formats" of IANA.

All that can go wrong when a peer's payload is decoded is a :exc:`~aiomas_ng.exceptions.DeserializationError`.
Of CBOR's tags those are refused that could do harm: references to values and strings, regular expressions,
mails and binary fractions; integers may have 4096 bytes, as in MsgPack.
"""

from __future__ import annotations

import enum
import importlib.util
import numbers
from typing import Any, Final, Self

from aiomas_ng import codecs
from aiomas_ng._core import cbor_bytes
from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.limits import DEFAULT_LIMITS, Limits
from aiomas_ng.channel import Serializers, _codec_factory
from aiomas_ng.exceptions import DeserializationError, SerializationError

__all__ = ["CODABLE", "Coder", "ContentFormat", "media_type_of"]


class ContentFormat(enum.IntEnum):
    """The number of a content format, with its media type.

    Raises:
        ValueError: The number is not among those that are known here; see :func:`media_type_of`.
    """

    _media_type: str

    def __new__(cls, number: int, media_type: str = "") -> Self:
        """Make a member of the enumeration."""
        member = int.__new__(cls, number)
        member._value_ = number
        member._media_type = media_type
        return member

    TEXT = 0, "text/plain; charset=utf-8"
    COSE_ENCRYPT0 = 16, 'application/cose; cose-type="cose-encrypt0"'
    COSE_MAC0 = 17, 'application/cose; cose-type="cose-mac0"'
    COSE_SIGN1 = 18, 'application/cose; cose-type="cose-sign1"'
    GIF = 21, "image/gif"
    JPEG = 22, "image/jpeg"
    PNG = 23, "image/png"
    LINK_FORMAT = 40, "application/link-format"
    XML = 41, "application/xml"
    OCTET_STREAM = 42, "application/octet-stream"
    EXI = 47, "application/exi"
    JSON = 50, "application/json"
    JSON_PATCH = 51, "application/json-patch+json"
    MERGE_PATCH = 52, "application/merge-patch+json"
    CBOR = 60, "application/cbor"
    CWT = 61, "application/cwt"
    MULTIPART = 62, "application/multipart-core"
    CBOR_SEQUENCE = 63, "application/cbor-seq"
    SENML_JSON = 110, "application/senml+json"
    SENSML_JSON = 111, "application/sensml+json"
    SENML_CBOR = 112, "application/senml+cbor"
    SENSML_CBOR = 113, "application/sensml+cbor"
    SENML_EXI = 114, "application/senml-exi"
    SENSML_EXI = 115, "application/sensml-exi"
    PROBLEM_DETAILS = 257, "application/concise-problem-details+cbor"
    SENML_XML = 310, "application/senml+xml"
    SENSML_XML = 311, "application/sensml+xml"
    SENML_ETCH_JSON = 320, "application/senml-etch+json"
    SENML_ETCH_CBOR = 322, "application/senml-etch+cbor"
    TD_JSON = 432, "application/td+json"
    #: MsgPack has no number of its own; this is the first one for experiments (RFC 7252, section 12.3).
    MSGPACK = 65000, "application/msgpack"

    @property
    def media_type(self) -> str:
        """The media type, with its parameters."""
        return self._media_type

    @classmethod
    def by_media_type(cls, media_type: str) -> ContentFormat:
        """Return the format of a media type; upper case and spaces between parameters make no difference.

        Raises:
            KeyError: None is known here.
        """
        return _BY_MEDIA_TYPE[_normalize(media_type)]


def media_type_of(content_format: int | None) -> str:
    """Return the media type of a content format, or in words what number it has."""
    if content_format is None:
        return "no content format"
    try:
        return ContentFormat(content_format).media_type
    except ValueError:
        return f"content format {int(content_format)}"


def _normalize(media_type: str) -> str:
    return ";".join(part.strip() for part in media_type.lower().split(";"))


_BY_MEDIA_TYPE: Final = {_normalize(member.media_type): member for member in ContentFormat}

_TEXTS: Final = frozenset((ContentFormat.TEXT, ContentFormat.LINK_FORMAT))
_JSONS: Final = frozenset(
    member for member in ContentFormat if member.media_type.endswith(("/json", "+json"))
)
_CBORS: Final = frozenset(
    member for member in ContentFormat if member.media_type.endswith(("/cbor", "+cbor"))
)

#: Formats that any value can be offered in, the preferred one first. CBOR is among them if it is installed.
CODABLE: Final = (
    ContentFormat.JSON,
    ContentFormat.MSGPACK,
    *((ContentFormat.CBOR,) if importlib.util.find_spec("cbor2") is not None else ()),
)


class Coder:
    """Turns values into payloads and back, by their content format.

    Args:
        extra_serializers: For JSON and MsgPack: callables that return the arguments of
            :meth:`aiomas_ng.codecs.Codec.add_serializer`, as those of a container.
        limits: Bounds of what is decoded.

    Raises:
        TypeError: *extra_serializers* are none.
    """

    def __init__(self, extra_serializers: Serializers = (), limits: Limits = DEFAULT_LIMITS) -> None:
        self._json = _codec_factory(codecs.JSON, extra_serializers)()
        self._msgpack = _codec_factory(codecs.MsgPack, extra_serializers)()
        for codec in (self._json, self._msgpack):
            codec.use_limits(limits)

    def encode(self, value: Any, content_format: int | None = None) -> tuple[bytes, int]:
        """Return *value* as bytes, and the content format that these have.

        Args:
            value: What is to be sent.
            content_format: The format to be used; by default OCTET_STREAM for bytes, TEXT for a str, and JSON
                for anything else.

        Raises:
            SerializationError: The value cannot be encoded in this format, or its package is not installed.
        """
        if content_format is None:
            content_format = _default_format(value)
        content_format = int(content_format)
        if content_format in _JSONS:
            return self._json.encode(value), content_format
        if content_format == ContentFormat.MSGPACK:
            return self._msgpack.encode(value), content_format
        if content_format in _CBORS:
            return cbor_bytes.encode(value), content_format
        if content_format in _TEXTS:
            return _to_text(value, content_format), content_format
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value), content_format
        raise SerializationError(f"{media_type_of(content_format)} takes bytes, not {short(value)}")

    def decode(self, payload: bytes, content_format: int | None = None) -> Any:
        """Return the value that *payload* is in *content_format*.

        It is the payload itself where the format is ``None`` or not one of those above.

        Raises:
            DeserializationError: It is no such value, or the package for it is not installed.
        """
        try:
            if content_format in _JSONS:
                return self._json.decode(payload)
            if content_format == ContentFormat.MSGPACK:
                return self._msgpack.decode(payload)
            if content_format in _CBORS:
                return cbor_bytes.decode(payload)
            if content_format in _TEXTS:
                return str(payload, "utf-8")
        except (DeserializationError, UnicodeDecodeError) as exc:
            raise DeserializationError(f"the payload is not {media_type_of(content_format)}: {exc}") from exc
        return payload


def _default_format(value: Any) -> ContentFormat:
    if isinstance(value, bytes | bytearray | memoryview):
        return ContentFormat.OCTET_STREAM
    return ContentFormat.TEXT if isinstance(value, str) else ContentFormat.JSON


def _to_text(value: Any, content_format: int) -> bytes:
    if content_format == ContentFormat.TEXT and isinstance(value, numbers.Number):
        value = str(value)
    if not isinstance(value, str):
        raise SerializationError(f"{media_type_of(content_format)} takes a str, not {short(value)}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise SerializationError(f"text with surrogates cannot be encoded: {exc.reason}") from exc
