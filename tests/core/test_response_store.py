"""The store behind a cache: within its bounds, and in the order of use."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiomas_ng._core.response_store import ResponseStore


def test_values_are_found_by_key_and_by_scope() -> None:
    """Each has one key and one scope; looking is no use, getting is."""
    store: ResponseStore[str] = ResponseStore(100, 3)
    assert store.put("a", "path", "A", 10)
    assert store.put("b", "path", "B", 10)
    assert store.put("c", "other", "C", 10)
    assert store.get("a") == "A"
    assert store.peek("b") == "B"
    assert store.get("x") is None
    assert store.peek("x") is None
    assert store.items_of("path") == [("a", "A"), ("b", "B")]
    assert store.items_of("nowhere") == []
    store.put("d", "other", "D", 10)
    assert "b" not in store  # it was only looked at
    assert store.items_of("path") == [("a", "A")]
    assert (len(store), store.size, store.evicted) == (3, 30, 1)


def test_a_value_takes_the_place_of_the_one_before() -> None:
    """Also in another scope, with another size."""
    store: ResponseStore[str] = ResponseStore(100, 3)
    store.put("a", "one", "A", 10)
    store.put("a", "two", "B", 20)
    assert (len(store), store.size, store.evicted) == (1, 20, 0)
    assert store.items_of("one") == []
    assert store.items_of("two") == [("a", "B")]


def test_a_value_of_more_than_a_quarter_is_not_kept() -> None:
    """It would drive out the others; what its key had before is gone all the same."""
    store: ResponseStore[str] = ResponseStore(100, 3)
    assert store.put("a", "path", "A", 25)
    assert store.put("b", "path", "B", 25)
    assert not store.put("a", "path", "C", 26)
    assert (len(store), store.size, store.evicted) == (1, 25, 0)
    assert "b" in store


def test_what_is_dropped_is_gone() -> None:
    """One by one, or all; that is no eviction."""
    store: ResponseStore[str] = ResponseStore(100, 3)
    for key in "abc":
        store.put(key, "path", key, 10)
    assert store.discard("a")
    assert not store.discard("a")
    store.clear()
    assert (len(store), store.size, store.evicted) == (0, 0, 0)
    assert store.items_of("path") == []
    assert not store.discard("b")


@pytest.mark.parametrize(
    ("bounds", "name"), [((0, 1), "max_size"), ((1, 0), "max_entries"), ((-1, 1), "max_size")]
)
def test_bounds_are_checked(bounds: tuple[int, int], name: str) -> None:
    """A store that could hold nothing is a mistake."""
    with pytest.raises(ValueError, match=f"{name} must be > 0 but is"):
        ResponseStore(*bounds)


class StoreModel(RuleBasedStateMachine):
    """The same by a list in the order of use."""

    @initialize(max_size=st.integers(1, 100), max_entries=st.integers(1, 5))
    def begin(self, max_size: int, max_entries: int) -> None:
        self.store: ResponseStore[object] = ResponseStore(max_size, max_entries)
        self.max_size = max_size
        self.max_entries = max_entries
        self.held: list[tuple[int, int, object, int]] = []  # the most recently used one last
        self.evicted = 0

    def find(self, key: int) -> tuple[int, int, Any, int] | None:
        return next((entry for entry in self.held if entry[0] == key), None)

    @rule(key=st.integers(0, 8), scope=st.integers(0, 2), size=st.integers(0, 30))
    def put(self, key: int, scope: int, size: int) -> None:
        value = object()
        self.held = [entry for entry in self.held if entry[0] != key]
        fits = 4 * size <= self.max_size
        assert self.store.put(key, scope, value, size) is fits
        if fits:
            self.held.append((key, scope, value, size))
        while len(self.held) > self.max_entries or sum(entry[3] for entry in self.held) > self.max_size:
            del self.held[0]
            self.evicted += 1

    @rule(key=st.integers(0, 8))
    def get(self, key: int) -> None:
        entry = self.find(key)
        assert self.store.peek(key) is (entry[2] if entry else None)
        assert self.store.get(key) is (entry[2] if entry else None)
        if entry:
            self.held.remove(entry)
            self.held.append(entry)

    @rule(key=st.integers(0, 8))
    def discard(self, key: int) -> None:
        assert self.store.discard(key) is (self.find(key) is not None)
        self.held = [entry for entry in self.held if entry[0] != key]

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.held.clear()

    @invariant()
    def agrees(self) -> None:
        assert len(self.store) == len(self.held) <= self.max_entries
        assert self.store.size == sum(entry[3] for entry in self.held) <= self.max_size
        assert self.store.evicted == self.evicted
        for scope in range(3):
            found = {key: value for key, value in self.store.items_of(scope)}
            assert found == {key: value for key, place, value, _ in self.held if place == scope}


TestStoreModel = StoreModel.TestCase
