"""What a cache holds, within bounds of bytes and entries; what of it is valid is decided elsewhere.

Entries belong to scopes: one scope has all entries that a change of one thing concerns.  When there is no
room, the least recently used entries give way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["ResponseStore"]

V = TypeVar("V")


class _Item(Generic[V]):
    __slots__ = ("scope", "size", "value")

    def __init__(self, scope: Hashable, value: V, size: int) -> None:
        self.scope = scope
        self.value = value
        self.size = size


class ResponseStore(Generic[V]):
    """Values by key, each with a scope and a size.

    Args:
        max_size: Bytes of all values.
        max_entries: Values.

    Raises:
        ValueError: A bound is not positive.
    """

    __slots__ = ("_items", "_max_entries", "_max_size", "_scopes", "evicted", "size")

    def __init__(self, max_size: int, max_entries: int) -> None:
        for name, value in (("max_size", max_size), ("max_entries", max_entries)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0 but is {value}")
        self._max_size = max_size
        self._max_entries = max_entries
        self._items: OrderedDict[Hashable, _Item[V]] = OrderedDict()
        self._scopes: dict[Hashable, dict[Hashable, None]] = {}
        self.size = 0  #: Bytes of all values.
        self.evicted = 0  #: Values that gave way so far.

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._items

    def get(self, key: Hashable) -> V | None:
        """Return the value of *key*, which counts as use; ``None`` if there is none."""
        item = self._items.get(key)
        if item is None:
            return None
        self._items.move_to_end(key)
        return item.value

    def peek(self, key: Hashable) -> V | None:
        """Return the value of *key*, which does not count as use; ``None`` if there is none."""
        item = self._items.get(key)
        return None if item is None else item.value

    def put(self, key: Hashable, scope: Hashable, value: V, size: int) -> bool:
        """Keep *value* in place of what *key* had before; return whether it is small enough for that.

        No value may take more than a quarter of the store; others would have to go for it all the time.
        """
        self.discard(key)
        if size > self._max_size // 4:
            return False
        while self._items and (self.size + size > self._max_size or len(self._items) >= self._max_entries):
            self.discard(next(iter(self._items)))
            self.evicted += 1
        self._items[key] = _Item(scope, value, size)
        self._scopes.setdefault(scope, {})[key] = None
        self.size += size
        return True

    def discard(self, key: Hashable) -> bool:
        """Drop the value of *key*; return whether there was one."""
        item = self._items.pop(key, None)
        if item is None:
            return False
        self.size -= item.size
        keys = self._scopes[item.scope]
        del keys[key]
        if not keys:
            del self._scopes[item.scope]
        return True

    def items_of(self, scope: Hashable) -> list[tuple[Hashable, V]]:
        """Return keys and values of *scope*, which does not count as use."""
        return [(key, self._items[key].value) for key in self._scopes.get(scope, ())]

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()
        self._scopes.clear()
        self.size = 0
