"""Which types a codec can carry, and under which name.

Rules:

- A type is looked up by its exact class; there is no inheritance.
- A type that was added travels under one name, and a name belongs to one type.
- The name is ``module.qualname`` unless one was given.  A class has another module where its file runs as a
  program (``__main__.Point``) than where it is imported (``shapes.Point``), so a name that is unknown here
  still finds the type with the same qualname, if there is exactly one.  Names that were given are only ever
  exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiomas_ng._core import builtin_types
from aiomas_ng._core.codec_errors import short
from aiomas_ng.exceptions import DeserializationError

__all__ = ["Serializer", "TypeRegistry", "type_name"]


@dataclass(frozen=True, slots=True)
class Serializer:
    """How one type travels.

    Args:
        name: The type's name on the wire.
        serialize: Turns an object of the type into something that the codec can encode.
        deserialize: Turns that back into an object.
    """

    name: str
    serialize: Callable[[Any], Any]
    deserialize: Callable[[Any], Any]


class TypeRegistry:
    """The types that were added to one codec."""

    def __init__(self) -> None:
        self._by_type: dict[Any, Serializer] = {}
        self._by_name: dict[str, Serializer] = {}
        self._by_qualname: dict[str, list[Serializer]] = {}

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the types in the order in which they were added."""
        return iter(self._by_type)

    def add(
        self,
        type: Any,
        serialize: Callable[[Any], Any],
        deserialize: Callable[[Any], Any],
        name: str | None = None,
    ) -> None:
        """Add a *type*.

        Raises:
            ValueError: The type was added before, another type has the name, or the name is reserved.
        """
        if type in self._by_type:
            raise ValueError(f"There is already a serializer for type {short(type)}")
        own_name = type_name(type) if name is None else name
        if not own_name or own_name in builtin_types.NAMES:
            raise ValueError(f"The name {own_name!r} is reserved, give another name= to the serializer")
        if own_name in self._by_name:
            raise ValueError(
                f"There is already a serializer named {own_name!r}, for another type; "
                f"give this one another name= (the same one on both sides)"
            )
        serializer = Serializer(own_name, serialize, deserialize)
        self._by_type[type] = self._by_name[own_name] = serializer
        qualname = getattr(type, "__qualname__", None)
        if name is None and isinstance(qualname, str):
            self._by_qualname.setdefault(qualname, []).append(serializer)

    def for_type(self, type: Any) -> Serializer | None:
        """Return the serializer of *type*, or ``None``."""
        return self._by_type.get(type)

    def for_name(self, name: str) -> Serializer:
        """Return the serializer whose type the peer calls *name*.

        Raises:
            DeserializationError: None is meant by it, or several could be.
        """
        serializer = self._by_name.get(name)
        if serializer is not None:
            return serializer
        # The peer does not say where its module ends.  Of "Inner" and "Outer.Inner" the longer one is meant.
        qualname = max(
            (each for each in self._by_qualname if name.endswith(f".{each}")), key=len, default=None
        )
        if qualname is not None:
            candidates = self._by_qualname[qualname]
            if len(candidates) == 1:
                return candidates[0]
            names = ", ".join(each.name for each in candidates)
            raise DeserializationError(
                f"The type {short(name)} is not known here and could be any of {names}; "
                f"add their serializers with the same name= on both sides"
            )
        raise DeserializationError(
            f"The type {short(name)} is not known here; add its serializer on this side as well, "
            f"under the same name"
        )


def type_name(type: Any) -> str:
    """Return ``module.qualname`` of *type*, or its representation where it has no such names."""
    module, qualname = getattr(type, "__module__", None), getattr(type, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualname, str):
        return f"{module}.{qualname}"
    return repr(type)
