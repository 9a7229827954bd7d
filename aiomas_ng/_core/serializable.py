"""What makes a class serializable: which attributes travel, and how an object is made from them.

The attributes are the parameters of the class, each of which must be readable under the same name.
Parameters of the form ``*args`` and ``**kwargs`` are not carried.  Of a dataclass also the fields that are no
parameters are carried (``field(init=False)``); they are set once the object is made.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
import weakref
from dataclasses import dataclass
from typing import Any

__all__ = ["add_methods"]

_cache: weakref.WeakKeyDictionary[type, Carried] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Carried:
    """What is carried of the objects of one class.

    Args:
        positional: Parameters that can only be given by position.
        required: Those of them that have no default.
        named: All other parameters.
        fields: Fields of a dataclass that are no parameters.
    """

    positional: tuple[str, ...]
    required: int
    named: tuple[str, ...]
    fields: tuple[str, ...]

    def dump(self, obj: Any) -> dict[str, Any]:
        """Return the carried attributes of *obj*.

        Raises:
            AttributeError: A parameter is no attribute.
        """
        result = {name: getattr(obj, name) for name in (*self.positional, *self.named)}
        # A field that was never set is not set on the other side either.
        result.update((name, getattr(obj, name)) for name in self.fields if hasattr(obj, name))
        return result

    def make(self, cls: type, attributes: Any) -> Any:
        """Return a new object of *cls* from what :meth:`dump` returned.

        Raises:
            TypeError: *attributes* is no dict, or has other names than the parameters.
        """
        if not isinstance(attributes, dict):
            raise TypeError(f"{cls.__qualname__} is made from a dict, not from a {type(attributes).__name__}")
        rest = dict(attributes)
        given = [name for name in self.positional if name in rest]
        # Positional parameters can only be left out from the end.
        if len(given) < self.required or given != list(self.positional[: len(given)]):
            raise TypeError(f"{cls.__qualname__} misses one of {', '.join(self.positional)}")
        args = [rest.pop(name) for name in given]
        fields = {name: rest.pop(name) for name in self.fields if name in rest}
        unknown = rest.keys() - set(self.named)
        if unknown:
            raise TypeError(f"{cls.__qualname__} has no {', '.join(sorted(map(str, unknown)))}")
        obj = cls(*args, **rest)
        for name, value in fields.items():
            # Frozen dataclasses refuse setattr(); their own constructor goes this way as well.
            object.__setattr__(obj, name, value)
        return obj


def add_methods(cls: type, with_repr: bool) -> None:
    """Add the methods of a serializable class to *cls*."""
    cls.__asdict__ = _asdict  # type: ignore[attr-defined]  # to add it is what this is for
    cls.__fromdict__ = classmethod(_fromdict)  # type: ignore[attr-defined]  # likewise
    cls.__serializer__ = classmethod(_serializer)  # type: ignore[attr-defined]  # likewise
    if with_repr and not dataclasses.is_dataclass(cls):
        cls.__repr__ = _repr  # type: ignore[assignment]  # the method of an instance, given as a function


def _asdict(self: Any) -> dict[str, Any]:
    """Return what is carried of the object."""
    return _carried(type(self)).dump(self)


def _fromdict(cls: type, attributes: Any) -> Any:
    """Return a new object from what ``__asdict__()`` returned."""
    return _carried(cls).make(cls, attributes)


def _serializer(cls: Any) -> tuple[Any, Any, Any]:
    """Return the arguments of :meth:`aiomas_ng.codecs.Codec.add_serializer`."""
    return cls, cls.__asdict__, cls.__fromdict__


_serializer.__name__ = "__serializer__"  # pickle looks for the bound method by this name


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    attributes = ", ".join(f"{name}={value!r}" for name, value in _carried(type(self)).dump(self).items())
    return f"{type(self).__name__}({attributes})"


def _carried(cls: type) -> Carried:
    """Return what is carried of the objects of *cls*.

    Raises:
        ValueError: Python does not know the parameters of the class.
    """
    # Not when the class is decorated: @dataclass may come after @serializable, and a subclass may differ.
    result = _cache.get(cls)
    if result is None:
        result = _cache[cls] = _inspect(cls)
    return result


def _inspect(cls: type) -> Carried:
    parameters = inspect.signature(cls).parameters.values()
    positional = [each for each in parameters if each.kind is each.POSITIONAL_ONLY]
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    names = {each.name for each in parameters}
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return Carried(
        positional=tuple(each.name for each in positional),
        required=sum(each.default is each.empty for each in positional),
        named=tuple(named),
        fields=tuple(each.name for each in fields if each.name not in names),
    )
