"""Codecs turn messages into bytes and back.

- :class:`JSON`: readable, and understood by peers in any language; sequences arrive as lists.
- :class:`MsgPack`: smaller, faster, exact for bytes and for keys of any type; sequences arrive as tuples.
- :class:`MsgPackBlosc`: the same, compressed; for large messages over slow links.

All carry ``None``, ``bool``, ``int``, ``float``, ``str``, lists, tuples, dicts, bytes (bytearray and
memoryview arrive as bytes), and arrays and scalars of numpy.  Subclasses of these arrive as the plain type;
so do ``numpy.float64`` and ``numpy.str_``, which are subclasses of float and str.  Other types need a
serializer, see :meth:`Codec.add_serializer` and :func:`serializable`.  They travel by name, so the order in
which two sides add them does not matter.

Nothing that a peer sends makes a codec run code, except the deserializers that were added to it.  All that
can go wrong in :meth:`Codec.decode` is a :exc:`~aiomas_ng.exceptions.DeserializationError`, and what is
allocated is limited by the bytes received.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, overload

import msgpack

from aiomas_ng._core import blosc_chunk, builtin_types, json_text, msgpack_bytes
from aiomas_ng._core.codec_errors import EncodeError, describe, explain, short
from aiomas_ng._core.frames import BUNDLE
from aiomas_ng._core.serializable import add_methods
from aiomas_ng._core.type_registry import TypeRegistry, type_name
from aiomas_ng.exceptions import DeserializationError, SerializationError

__all__ = ["JSON", "Codec", "MsgPack", "MsgPackBlosc", "serializable"]

T = TypeVar("T")

LARGE: Final = 128 * 1024
"""Bytes from which on an object is kept apart from what is encoded around it, see
:meth:`MsgPack.encode_pieces`."""

MAX_APART: Final = 64
"""Items that a list or dict may have to be searched for large objects."""

_BUNDLE_HEAD: Final = bytes([0x93, BUNDLE, 0])  # [BUNDLE, 0, …
_BIN32: Final = b"\xc6"
BINARY: Final = frozenset({bytes, bytearray, memoryview})
_CONTAINERS: Final = frozenset({tuple, list, dict})

EXT_TYPE: Final = 0x61
"""The extension type of MsgPack that carries custom types: its payload is the MsgPack of ``[name, data]``."""

MAX_DEPTH: Final = 32
"""How deep objects of custom types may contain each other in MsgPack: each level holds its bytes once more,
and takes some 40 KiB of the thread's stack while it is decoded."""

PEEK_SIZE: Final = 1024
"""Bytes at the head of a message that :meth:`Codec.peek` looks at."""

_KEPT_BUFFER = 2**20
"""A packer never shrinks its buffer, so one that has packed more bytes than this is not kept."""


class Codec:
    """Base of all codecs.

    Subclasses implement :meth:`encode` and :meth:`decode`, and may implement :meth:`peek`.  Where the format
    has dicts but no extension types, :meth:`serialize_obj` and :meth:`deserialize_obj` carry custom types in
    it.
    """

    def __init__(self) -> None:
        self._types = TypeRegistry()

    def __str__(self) -> str:
        types = ", ".join(str(getattr(type, "__name__", type)) for type in self._types)
        return f"{self.__class__.__name__}[{types}]"

    def encode(self, data: Any) -> bytes:
        """Return *data* as bytes.

        Raises:
            SerializationError: Something in it cannot be encoded; the error says what, and where in *data*.
        """
        raise NotImplementedError

    def decode(self, data: bytes | bytearray | memoryview) -> Any:
        """Return what a peer has encoded.

        Raises:
            DeserializationError: *data* is damaged or malicious, or has a type that was not added here.
        """
        raise NotImplementedError

    def peek(self, data: bytes | bytearray | memoryview) -> tuple[int, Any] | None:
        """Return type and id of a message ``[type, id, content]`` whose content cannot be decoded.

        It never raises.

        Args:
            data: The message, or only its head.

        Returns:
            The type as int and the id as int or str; ``None`` where they cannot be read.
        """
        return None

    def add_serializer(
        self,
        type: Any,
        serialize: Callable[[Any], Any],
        deserialize: Callable[[Any], Any],
        *,
        name: str | None = None,
    ) -> None:
        """Let the codec carry objects of *type*.

        Args:
            type: The exact class of the objects; subclasses need a serializer of their own.  For
                :class:`object`, the serializer is used for everything that has none.
            serialize: Takes an object, returns something that the codec can encode.
            deserialize: Takes that, returns the object.
            name: The name of the type on the wire, the same on both sides.  Without it, it is
                ``module.qualname``, and a class that is in another module at the peer is found by its
                qualname.

        Raises:
            ValueError: There is a serializer for the type already, or another type has the name.
        """
        self._types.add(type, serialize, deserialize, name)

    def serialize_obj(self, obj: Any) -> dict[str, Any]:
        """Return the dict ``{"__type__": [name, data]}`` that carries *obj*; to be used by subclasses.

        Raises:
            SerializationError: There is no serializer for *obj*, or it failed.
        """
        return {json_text.TYPE_KEY: list(self._represent(obj, as_text=True))}

    def deserialize_obj(self, obj_repr: dict[Any, Any]) -> Any:
        """Return the object that a dict carries, or the dict itself where it carries none.

        Raises:
            DeserializationError: The type is not known here, or its deserializer failed.
        """
        content = obj_repr.get(json_text.TYPE_KEY) if len(obj_repr) == 1 else None
        if isinstance(content, (list, tuple)) and len(content) == 2 and isinstance(content[0], str):
            return self._restore(*content)
        return obj_repr

    def _represent(self, obj: Any, as_text: bool) -> tuple[str, Any]:
        """Return the name of the type of *obj* and what carries *obj*."""
        serializer = self._types.for_type(type(obj))
        try:
            if serializer is None:
                builtin = builtin_types.represent(obj, as_text)
                if builtin is not None:
                    return builtin
                serializer = self._types.for_type(object)
            if serializer is not None:
                return serializer.name, serializer.serialize(obj)
        except SerializationError as exc:
            raise EncodeError(str(exc), obj) from exc
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            raise EncodeError(f"Could not serialize {short(obj)}: {describe(exc)}", obj) from exc
        raise EncodeError(f"No serializer found for type {type_name(type(obj))}", obj)

    def _restore(self, name: str, data: Any) -> Any:
        """Return the object that was represented by *name* and *data*."""
        if name in builtin_types.NAMES:
            return builtin_types.restore(name, data)
        serializer = self._types.for_name(name)
        try:
            return serializer.deserialize(data)
        except DeserializationError:
            raise
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            raise DeserializationError(f"Could not deserialize a {serializer.name}: {describe(exc)}") from exc


class JSON(Codec):
    """Encodes messages as JSON text in UTF-8.

    Plain data is what :func:`json.dumps` makes of it, so peers in other languages understand it.  Custom
    types become ``{"__type__": [name, data]}``; a dict of the user's own may have that key, and any other
    str.  Keys that are no str follow the rules of :mod:`json`: numbers, booleans and ``None`` become text,
    others are refused.  So are str with surrogates, which UTF-8 does not have.
    """

    def encode(self, data: Any) -> bytes:
        """Return *data* as JSON; for errors see :meth:`Codec.encode`."""
        markers = 0

        def default(obj: Any) -> dict[str, Any]:
            nonlocal markers
            markers += 1
            return self.serialize_obj(obj)

        try:
            text = _json_encoder(default).encode(data)
            # To walk through all data for a key that is hardly ever used would cost more than the encoding.
            if text.count(json_text.MARKER) > markers:
                text = _json_encoder(self._serialize_escaped).encode(json_text.escape(data))
            return text.encode()
        except Exception as exc:
            text, cause = explain(exc, data)
            raise SerializationError(text) from cause

    def decode(self, data: bytes | bytearray | memoryview) -> Any:
        """Return what a peer has encoded; for errors see :meth:`Codec.decode`."""
        try:
            text = str(data, "utf-8")
            if json_text.MARKER in text:
                return json.loads(text, object_hook=self.deserialize_obj)
            return json.loads(text)
        except DeserializationError:
            raise
        except Exception as exc:
            raise DeserializationError(f"Not a JSON message: {describe(exc)}") from exc

    def peek(self, data: bytes | bytearray | memoryview) -> tuple[int, Any] | None:
        """Return type and id of a message, see :meth:`Codec.peek`."""
        try:
            return json_text.read_head(bytes(data[:PEEK_SIZE]))
        except Exception:
            return None

    def _serialize_escaped(self, obj: Any) -> dict[str, Any]:
        marker = self.serialize_obj(obj)
        return {key: json_text.escape(value) for key, value in marker.items()}


def _json_encoder(default: Callable[[Any], Any]) -> json.JSONEncoder:
    return json.JSONEncoder(default=default, ensure_ascii=False, separators=(",", ":"))


class MsgPack(Codec):
    """Encodes messages as MessagePack.

    Sequences arrive as tuples.  Dicts may have keys of any type that is hashable when it arrives.  Custom
    types may contain each other up to ``MAX_DEPTH`` (32) deep, integers may have up to 4096 bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        # Taken out while it packs, as it must not be used a second time then: by a serializer, or a thread.
        self._packers: list[msgpack.Packer] = []
        self._default = partial(self._to_ext, 1)
        self._ext_hook = partial(self._from_ext, 1)

    def encode(self, data: Any) -> bytes:
        """Return *data* as MessagePack; for errors see :meth:`Codec.encode`."""
        try:
            packer = self._packers.pop()
        except IndexError:
            packer = msgpack.Packer(default=self._default, use_bin_type=True)
        try:
            result: bytes = packer.pack(data)
        except Exception as exc:
            text, cause = explain(exc, data)
            raise SerializationError(text) from cause
        if len(result) <= _KEPT_BUFFER and not self._packers:
            self._packers.append(packer)
        return result

    def decode(self, data: bytes | bytearray | memoryview) -> Any:
        """Return what a peer has encoded; for errors see :meth:`Codec.decode`."""
        try:
            if len(data) > msgpack_bytes.HARMLESS_SIZE:
                msgpack_bytes.check_arrays(data)
            return msgpack.unpackb(data, use_list=False, strict_map_key=False, ext_hook=self._ext_hook)
        except DeserializationError:
            raise
        except Exception as exc:
            raise DeserializationError(f"Not a MsgPack message: {describe(exc)}") from exc

    def peek(self, data: bytes | bytearray | memoryview) -> tuple[int, Any] | None:
        """Return type and id of a message, see :meth:`Codec.peek`."""
        try:
            return msgpack_bytes.read_head(data[:PEEK_SIZE])
        except Exception:
            return None

    def encode_pieces(self, data: Any) -> list[bytes]:
        """Return *data* as :meth:`encode` does, in pieces: large bytes in it are left as they are.

        They are found in tuples, lists and dicts of few items, inside of each other; to copy them into the
        message would take longer than all the rest.

        Raises:
            SerializationError: As for :meth:`encode`.
        """
        pieces: list[bytes] = []
        packer = msgpack.Packer(default=self._default, use_bin_type=True, autoreset=False)
        try:
            _pack_pieces(data, packer, pieces, 0)
        except Exception as exc:
            text, cause = explain(exc, data)
            raise SerializationError(text) from cause
        pieces.append(packer.bytes())
        return pieces

    def join(self, payloads: list[bytes]) -> bytes:
        """Return encoded frames, at most 65,535, as one frame of the type BUNDLE."""
        count = len(payloads)
        head = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
        return b"".join([_BUNDLE_HEAD, head, *payloads])

    def split(self, data: bytes | memoryview) -> list[bytes] | None:
        """Undo :meth:`join` without decoding what is in the frames; ``None`` if *data* is no such frame, or
        is damaged."""
        if data[: len(_BUNDLE_HEAD)] != _BUNDLE_HEAD:
            return None
        try:
            return msgpack_bytes.cut_array(data, len(_BUNDLE_HEAD), _BUNDLE_HEAD[:2])
        except Exception:
            return None

    def _to_ext(self, depth: int, obj: Any) -> msgpack.ExtType:
        if depth > MAX_DEPTH:
            raise EncodeError(f"Objects of custom types contain each other more than {MAX_DEPTH} deep", obj)
        content = self._represent(obj, as_text=False)
        packer = msgpack.Packer(default=partial(self._to_ext, depth + 1), use_bin_type=True)
        try:
            return msgpack.ExtType(EXT_TYPE, packer.pack(content))
        except EncodeError:
            raise
        except Exception as exc:
            raise EncodeError(
                f"Could not encode what {short(obj)} was serialized to: {describe(exc)}", obj
            ) from exc

    def _from_ext(self, depth: int, code: int, payload: bytes) -> Any:
        if code != EXT_TYPE:
            raise DeserializationError(f"The extension type {code} of MsgPack is not known here")
        if depth > MAX_DEPTH:
            raise DeserializationError(f"Custom types contain each other more than {MAX_DEPTH} deep")
        if len(payload) > msgpack_bytes.HARMLESS_SIZE:
            msgpack_bytes.check_arrays(payload)
        hook = partial(self._from_ext, depth + 1)
        content = msgpack.unpackb(payload, use_list=False, strict_map_key=False, ext_hook=hook)
        if not isinstance(content, tuple) or len(content) != 2 or not isinstance(content[0], str):
            raise DeserializationError("The content of a custom type is not [name, data]")
        return self._restore(*content)


def is_large(value: bytes | bytearray | memoryview) -> bool:
    """Return whether *value* is worth to be kept apart from what is encoded around it."""
    if type(value) is not memoryview:
        return len(value) >= LARGE
    try:
        return value.nbytes >= LARGE
    except ValueError:  # it was released; to encode it says so
        return False


def _pack_pieces(value: Any, packer: msgpack.Packer, pieces: list[bytes], depth: int) -> None:
    """Pack *value*; at each large object add what was packed so far, and the object, to *pieces*."""
    kind = type(value)
    if kind in BINARY and is_large(value):
        data = value if kind is bytes else bytes(value)  # it may be changed before it has left
        pieces.append(packer.bytes() + _BIN32 + len(data).to_bytes(4, "big"))
        pieces.append(data)
        packer.reset()
    elif kind not in _CONTAINERS or len(value) > MAX_APART or depth > MAX_DEPTH:
        packer.pack(value)
    elif kind is dict:
        packer.pack_map_header(len(value))
        for key, item in value.items():
            packer.pack(key)
            _pack_pieces(item, packer, pieces, depth + 1)
    else:
        packer.pack_array_header(len(value))
        for item in value:
            _pack_pieces(item, packer, pieces, depth + 1)


def as_plain_msgpack(codec: Codec) -> MsgPack | None:
    """Return *codec* if its messages are MsgPack as it is, so that they can be joined and taken apart: not if
    a subclass has changed something about them."""
    cls = type(codec)
    if not isinstance(codec, MsgPack) or cls.encode is not MsgPack.encode or cls.decode is not MsgPack.decode:
        return None
    return codec if vars(codec).keys().isdisjoint(("encode", "decode")) else None


class MsgPackBlosc(MsgPack):
    """Encodes messages as MessagePack and compresses them with Blosc2 (``pip install aiomas_ng[blosc]``).

    Messages of less than some hundred bytes become larger, not smaller.

    Raises:
        ImportError: The package ``blosc2`` is not installed.
    """

    max_decompressed_size: int = 256 * 2**20
    """Bytes that a message may have when decompressed.  It can be set on a subclass or an instance."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import blosc2
        except ImportError as exc:
            raise ImportError(
                f"The codec {self.__class__.__name__} needs blosc2: pip install aiomas_ng[blosc]"
            ) from exc
        self._blosc2 = blosc2

    def encode(self, data: Any) -> bytes:
        """Return *data* as compressed MessagePack.

        Raises:
            SerializationError: As for :meth:`Codec.encode`, or there are more than 2 GiB before compression.
        """
        message = super().encode(data)
        if len(message) > blosc_chunk.MAX_SIZE:
            raise SerializationError(
                f"The message has {len(message)} bytes, Blosc2 compresses {blosc_chunk.MAX_SIZE} at most"
            )
        try:
            # One thread: each call would start and end the others.
            chunk: bytes = self._blosc2.compress2(
                message, typesize=8, clevel=1, codec=self._blosc2.Codec.ZSTD, nthreads=1
            )
        except Exception as exc:
            raise SerializationError(f"The message could not be compressed: {describe(exc)}") from exc
        return chunk

    def decode(self, data: bytes | bytearray | memoryview) -> Any:
        """Return what a peer has encoded.

        Raises:
            DeserializationError: As for :meth:`Codec.decode`, or the message has more than
                :attr:`max_decompressed_size` bytes when decompressed.
        """
        return super().decode(self._decompress(data))

    def peek(self, data: bytes | bytearray | memoryview) -> tuple[int, Any] | None:
        """Return type and id of a message, see :meth:`Codec.peek`; ``None`` if it is damaged or cut off."""
        try:
            return super().peek(self._decompress(data))
        except DeserializationError:
            return None

    def _decompress(self, data: bytes | bytearray | memoryview) -> bytearray:
        try:
            chunk = data.tobytes() if isinstance(data, memoryview) else data
            size = blosc_chunk.decompressed_size(chunk, self.max_decompressed_size)
            # Not decompress(), which trusts the sizes inside of the chunk.  And into a buffer of zeros: a
            # chunk may leave a part of it as it is, which else would be some memory of this process.
            message = bytearray(size)
            self._blosc2.decompress2(chunk, dst=message, nthreads=1)
        except DeserializationError:
            raise
        except Exception as exc:
            raise DeserializationError(f"Not a chunk of Blosc2: {describe(exc)}") from exc
        return message


@overload
def serializable(cls: type[T], repr: bool = True) -> type[T]: ...
@overload
def serializable(cls: None = None, repr: bool = True) -> Callable[[type[T]], type[T]]: ...
def serializable(cls: type[T] | None = None, repr: bool = True) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class serializable; used as ``@serializable`` or ``@serializable(repr=False)``.

    Every parameter of the class must be readable as an attribute of the same name.  Parameters of the form
    ``*args`` and ``**kwargs`` are not carried.  Of a dataclass, fields with ``init=False`` are carried too.

    The class gets ``__asdict__()``, ``__fromdict__(dict)`` and ``__serializer__()``, which returns the
    arguments of :meth:`Codec.add_serializer`.  It also gets a ``__repr__()``, unless it is a dataclass or
    *repr* is false.

    Example::

        @serializable
        class Point:
            def __init__(self, x, y):
                self.x, self.y = x, y

        codec = JSON()
        codec.add_serializer(*Point.__serializer__())
        codec.decode(codec.encode(Point(1, 2)))  # Point(x=1, y=2)
    """

    def wrap(cls: type[T]) -> type[T]:
        add_methods(cls, repr)
        return cls

    return wrap if cls is None else wrap(cls)
