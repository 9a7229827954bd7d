"""The options of a message.

An option is a number and a value; the number says what it means and what to do with it where it is not known
(RFC 7252, sections 5.4 and 5.10), see :mod:`aiomas_ng._core.option_values`.

The rules for what a peer sends:

- An option with a value of a wrong type or length counts as one that is not known, and so does every further
  one of an option that must not be repeated (RFC 7252, sections 5.4.3 and 5.4.5).
- What is not known, or counts so, is ignored if it is elective.  If it is critical, the message must not be
  acted upon: :meth:`Options.unknown_critical` names it.
- Unknown options are kept, as bytes, so that they can be passed on.
- What is no list of options at all is an :exc:`OptionError`.

A program that sets something wrong gets an :exc:`OptionError` as well, in the line where it does so.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final, Protocol, Self, TypeVar, cast, overload

from aiomas_ng._core.codec_errors import short
from aiomas_ng._core.option_values import (
    DEFINITIONS,
    MAX_LENGTH,
    MAX_NUMBER,
    UNDERSTOOD,
    Block,
    OptionError,
    OptionNumber,
    check,
    check_all,
    check_number,
    from_binary,
    is_critical,
    is_no_cache_key,
    is_repeatable,
    is_unsafe,
    name_of,
    take,
    to_binary,
)

__all__ = [
    "MAX_NUMBER",
    "MAX_OPTIONS",
    "Block",
    "OptionError",
    "OptionNumber",
    "Options",
    "SignalOptions",
    "is_critical",
    "is_no_cache_key",
    "is_repeatable",
    "is_unsafe",
    "name_of",
]

T = TypeVar("T")

#: Values of options that one message of a peer may have.
MAX_OPTIONS: Final = 1000

#: Options that a representation shows.
MAX_SHOWN: Final = 20

SEQUENCES: Final = (list, tuple)

_N = OptionNumber
_HOP_LIMIT: Final = int(_N.HOP_LIMIT)


class _Single(Protocol[T]):
    """An attribute of :class:`Options`, as the type checker sees it."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Single[T]: ...
    @overload
    def __get__(self, instance: Options, owner: type) -> T: ...
    def __set__(self, instance: Options, value: T) -> None: ...


class _Repeated(Protocol[T]):
    """The same for all values of an option that may be repeated: any iterable can be set."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Repeated[T]: ...
    @overload
    def __get__(self, instance: Options, owner: type) -> tuple[T, ...]: ...
    def __set__(self, instance: Options, value: Iterable[T] | None) -> None: ...


def _single(number: int, kind: type[T], doc: str) -> _Single[T | None]:
    """Return the attribute for an option that occurs once; ``None`` where it does not."""
    number = int(number)

    def get(options: Options) -> Any:
        return options._values.get(number)

    def set(options: Options, value: Any) -> None:
        if value is None:
            options._values.pop(number, None)
        else:
            options._values[number] = check(number, value)

    return cast("_Single[T | None]", property(get, set, doc=doc))


def _repeated(number: int, kind: type[T], doc: str) -> _Repeated[T]:
    """Return the attribute for all values of an option, as a tuple."""
    number = int(number)

    def get(options: Options) -> Any:
        return options._values.get(number, ())

    def set(options: Options, values: Any) -> None:
        checked = () if values is None else check_all(number, values)
        if checked:
            options._values[number] = checked
        else:
            options._values.pop(number, None)

    return cast("_Repeated[T]", property(get, set, doc=doc))


def _first(number: int, kind: type[T], doc: str) -> _Single[T | None]:
    """Return the attribute for the first value of an option that may be repeated."""
    number = int(number)

    def get(options: Options) -> Any:
        values = options._values.get(number)
        return values[0] if values else None

    def set(options: Options, value: Any) -> None:
        if value is None:
            options._values.pop(number, None)
        else:
            options._values[number] = (check(number, value),)

    return cast("_Single[T | None]", property(get, set, doc=doc))


def _flag(number: int, doc: str) -> _Single[bool]:
    """Return the attribute for an option without a value."""
    number = int(number)

    def get(options: Options) -> bool:
        return number in options._values

    def set(options: Options, value: Any) -> None:
        if value is None or value is False:
            options._values.pop(number, None)
        else:
            options._values[number] = check(number, value)

    return cast("_Single[bool]", property(get, set, doc=doc))


class Options:
    """The options of one message.

    Each known option is an attribute.  Setting it checks type and length; setting ``None``, ``()`` or
    ``False`` removes the option.  A name that is no option is an :exc:`AttributeError`, also when it is set.
    Unknown options are reached by their numbers, see :meth:`add_option`.
    """

    __slots__ = ("_rejected", "_values")

    # By number: the value, or the tuple of all values where the option may be repeated.
    _values: dict[int, Any]
    # Numbers of critical options that have come with a value that they must not have.
    _rejected: tuple[int, ...]

    __hash__ = None  # type: ignore[assignment]  # options can be changed

    def __init__(self) -> None:
        _set_values(self, {})
        _set_rejected(self, ())

    if_match = _repeated(
        _N.IF_MATCH, bytes, "Entity tags, one of which the state must have; ``b''`` if any will do."
    )
    uri_host = _single(_N.URI_HOST, str, "Host of the resource.")
    etag = _first(_N.ETAG, bytes, "Entity tag of a response, 1 to 8 bytes; of several the first one.")
    etags = _repeated(_N.ETAG, bytes, "Entity tags of the versions that a requester has.")
    if_none_match = _flag(_N.IF_NONE_MATCH, "Whether there must be no state yet.")
    observe = _single(
        _N.OBSERVE, int, "In a request 0 to observe or 1 to stop; in a notification its place in the order."
    )
    uri_port = _single(_N.URI_PORT, int, "Port of the resource.")
    location_path = _repeated(_N.LOCATION_PATH, str, "Path of what was created, by its segments.")
    uri_path = _repeated(_N.URI_PATH, str, "Path of the resource, by its segments.")
    content_format = _single(_N.CONTENT_FORMAT, int, "Content format of the payload.")
    max_age = _single(_N.MAX_AGE, int, "Seconds for which a response is fresh; ``None`` means 60.")
    uri_query = _repeated(_N.URI_QUERY, str, "Arguments of the query, as ``'name=value'``.")
    hop_limit = _single(
        _N.HOP_LIMIT,
        int,
        "How often a request may be forwarded, 1 to 255.  It is 0 where what has come is not allowed: "
        "such a request is to be answered by 4.00 (RFC 8768, section 3).",
    )
    accept = _single(_N.ACCEPT, int, "Content format that the requester wants.")
    location_query = _repeated(_N.LOCATION_QUERY, str, "Query of what was created.")
    block2 = _single(_N.BLOCK2, Block, "Which part of a response's body this is, or is wanted.")
    block1 = _single(_N.BLOCK1, Block, "Which part of a request's body this is, or was taken.")
    size2 = _single(_N.SIZE2, int, "Size of a response's body, in bytes.")
    proxy_uri = _single(_N.PROXY_URI, str, "URI that a proxy is to send the request to.")
    proxy_scheme = _single(_N.PROXY_SCHEME, str, "Scheme of the URI that a proxy is to send the request to.")
    size1 = _single(_N.SIZE1, int, "Size of a request's body, or the largest one that is taken, in bytes.")
    echo = _single(_N.ECHO, bytes, "What a server wants to get back, 1 to 40 bytes (RFC 9175).")
    no_response = _single(
        _N.NO_RESPONSE, int, "Classes of responses that are not wanted, as bits (RFC 7967)."
    )
    request_tag = _repeated(_N.REQUEST_TAG, bytes, "What tells concurrent transfers apart (RFC 9175).")
    deadline = _single(
        _N.DEADLINE,
        int,
        "Microseconds that are left for a request.  Set where it leaves and removed where it arrives, see "
        ":mod:`aiomas_ng.deadlines`.",
    )
    simulated_deadline = _single(_N.SIMULATED_DEADLINE, int, "The same in microseconds of simulated time.")

    def __setattr__(self, name: str, value: Any) -> None:
        setter = _SETTERS.get(name)
        if setter is None:
            raise AttributeError(_no_such_option(name))
        setter(self, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_no_such_option(name))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Options):
            return NotImplemented
        return self._values == other._values and self._rejected == other._rejected

    def __repr__(self) -> str:
        values = self._values
        parts = [f"{_attribute_of(number)}={short(values[number])}" for number in sorted(values)[:MAX_SHOWN]]
        if len(values) > MAX_SHOWN:
            parts.append(f"and {len(values) - MAX_SHOWN} more")
        return f"<Options {', '.join(parts) or 'none'}>"

    def __len__(self) -> int:
        """Return how many values there are."""
        return sum(len(value) if type(value) is tuple else 1 for value in self._values.values())

    def __bool__(self) -> bool:
        """Return whether there is any option."""
        return bool(self._values)

    def __contains__(self, number: object) -> bool:
        """Return whether there is an option of this number."""
        return number in self._values

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._values, self._rejected)

    def copy(self) -> Self:
        """Return options of their own with the same values."""
        return _restore(type(self), self._values.copy(), self._rejected)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()  # the values cannot be changed

    def unknown_critical(self) -> tuple[int, ...]:
        """Return the numbers of the critical options that are not known here, or that have come with a value
        that they must not have, in ascending order.

        If there are any, the message must not be acted upon.  Those with a wrong value stay among them,
        whatever is set later.
        """
        if not self._rejected and self._values.keys() <= UNDERSTOOD:
            return ()
        unknown = {number for number in self._values if is_critical(number) and number not in UNDERSTOOD}
        return tuple(sorted(unknown.union(self._rejected)))

    def cache_key(self, ignored: Iterable[int] = ()) -> tuple[tuple[int, Any], ...]:
        """Return numbers and values of the options that matter to a cache, in ascending order.

        Args:
            ignored: Numbers of options that do not, beside those that never do (:func:`is_no_cache_key`).
        """
        values = self._values
        ignored = frozenset(ignored)
        return tuple(
            [
                (number, values[number])
                for number in sorted(values)
                if number not in ignored and not is_no_cache_key(number)
            ]
        )

    # In binary form

    def add_option(self, number: int, value: bytes = b"") -> None:
        """Add an option in its binary form; this is the way to set one that is not known here.

        Args:
            number: Its number, 0 to 65535.
            value: Its value as CoAP encodes it.

        Raises:
            OptionError: The option cannot have this value, or is there already and must not be repeated.
        """
        number, data = _check_binary(number, value)
        if not take(self._values, number, from_binary(number, data)):
            if number in self._values and not is_repeatable(number):
                raise OptionError(
                    f"{name_of(number)} is there already and must not be repeated", number, value
                )
            raise OptionError(f"{name_of(number)} cannot have the value {short(value)}", number, value)

    def delete_option(self, number: int) -> None:
        """Remove all options of this number; without any nothing happens."""
        self._values.pop(number, None)

    def get_option(self, number: int) -> tuple[bytes, ...]:
        """Return the values of all options of this number, in binary form."""
        value = self._values.get(number, ())
        return tuple(map(to_binary, value if type(value) is tuple else (value,)))

    def option_list(self) -> list[tuple[int, bytes]]:
        """Return numbers and values of all options, in binary form and ascending order."""
        return [(number, value) for number in sorted(self._values) for value in self.get_option(number)]

    @classmethod
    def from_option_list(cls, pairs: Iterable[tuple[int, bytes]]) -> Self:
        """Return the options that a peer has sent in binary form.

        Args:
            pairs: Numbers up to 65535, and values.

        Raises:
            OptionError: There are more than :data:`MAX_OPTIONS` of them.
        """
        values: dict[int, Any] = {}
        rejected: list[int] = []
        for count, (number, value) in enumerate(pairs):
            if count == MAX_OPTIONS:
                raise OptionError(f"a message may have {MAX_OPTIONS} options at most")
            if not take(values, number, from_binary(number, value)):
                _reject(values, number, rejected)
        return _restore(cls, values, tuple(rejected))

    # In compact form

    def to_compact(self) -> list[Any]:
        """Return the options as a flat list ``[number, value, number, value, …]``, in ascending order.

        Values have the types of the codec: a uint is an int, a string a str, an opaque value bytes, and an
        empty one ``True``.
        """
        values = self._values
        flat: list[Any] = []
        for number in sorted(values) if len(values) > 1 else values:
            value = values[number]
            kind = type(value)
            if kind is tuple:
                for item in value:
                    flat += (number, item)
            elif kind is Block:
                flat += (number, value.to_uint())
            else:
                flat += (number, value)
        return flat

    @classmethod
    def from_compact(cls, sequence: Any) -> Self:
        """Return the options that a peer has sent in compact form.

        Raises:
            OptionError: It is no flat list of numbers, in ascending order, and values; or there are more than
                :data:`MAX_OPTIONS` of them.
        """
        if type(sequence) not in SEQUENCES or len(sequence) & 1:
            raise OptionError(f"options must be an array [number, value, …] but are {short(sequence)}")
        if len(sequence) > 2 * MAX_OPTIONS:
            raise OptionError(f"a message may have {MAX_OPTIONS} options at most")
        values: dict[int, Any] = {}
        rejected: list[int] = []
        last = 0
        items = iter(sequence)
        for number, value in zip(items, items, strict=True):
            if type(number) is not int or not last <= number <= MAX_NUMBER:
                raise OptionError(
                    f"option numbers must be integers up to {MAX_NUMBER} in ascending order, "
                    f"not {short(number)} after {last}"
                )
            last = number
            if not take(values, number, value):
                _reject(values, number, rejected)
        return _restore(cls, values, tuple(rejected))


class SignalOptions(Options):
    """The options of a signal between the two ends of a connection, a message of class 7.

    Their numbers mean something else in each signal (RFC 8323, section 5.2), so they are all bytes, and are
    reached by number only.
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("options of a signal have no names; they are set by add_option(number, value)")

    def unknown_critical(self) -> tuple[int, ...]:
        """Return the numbers of the critical options; none is defined up to now."""
        return tuple(filter(is_critical, sorted(self._values)))

    def add_option(self, number: int, value: bytes = b"") -> None:
        """Add an option; see :meth:`Options.add_option`."""
        number, data = _check_binary(number, value)
        self._values[number] = (*self._values.get(number, ()), data)

    @classmethod
    def from_option_list(cls, pairs: Iterable[tuple[int, bytes]]) -> Self:
        """Return the options that a peer has sent; see :meth:`Options.from_option_list`."""
        options = cls()
        for count, (number, value) in enumerate(pairs):
            if count == MAX_OPTIONS:
                raise OptionError(f"a message may have {MAX_OPTIONS} options at most")
            options.add_option(number, value)
        return options


# Attributes are usually set by Options.__setattr__, which is for those that users know.
_set_values: Final[Any] = vars(Options)["_values"].__set__
_set_rejected: Final[Any] = vars(Options)["_rejected"].__set__
_SETTERS: Final[dict[str, Any]] = {
    name: attribute.fset for name, attribute in vars(Options).items() if isinstance(attribute, property)
}

OptionsT = TypeVar("OptionsT", bound=Options)


def _restore(cls: type[OptionsT], values: dict[int, Any], rejected: tuple[int, ...]) -> OptionsT:
    options = cls.__new__(cls)
    _set_values(options, values)
    _set_rejected(options, rejected)
    return options


def _check_binary(number: Any, value: Any) -> tuple[int, bytes]:
    number = check_number(number)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise OptionError(f"option {number} must be given as bytes but is {short(value)}", number, value)
    if len(value) > MAX_LENGTH:
        raise OptionError(f"option {number} cannot have {len(value)} bytes, only {MAX_LENGTH}", number, value)
    return number, bytes(value)


def _reject(values: dict[int, Any], number: int, rejected: list[int]) -> None:
    """Ignore an option with a value that it must not have, or take note of it where it is critical."""
    if is_critical(number):
        rejected.append(number)
    elif number == _HOP_LIMIT:
        values.setdefault(number, 0)  # see Options.hop_limit


def _no_such_option(name: str) -> str:
    close = difflib.get_close_matches(name, _SETTERS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "others are set by add_option(number, value)"
    return f"there is no option {name!r}; {hint}"


def _attribute_of(number: int) -> str:
    definition = DEFINITIONS.get(number)
    return str(number) if definition is None else definition.number.name.lower()
