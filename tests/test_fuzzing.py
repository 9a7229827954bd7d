"""A short run of the harnesses for the fuzzer; ``make fuzz`` makes the long one, guided by coverage."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.fuzzing.entries import ENTRIES, Source
from tests.fuzzing.fuzz import Fuzzer, fuzz_plainly
from tests.fuzzing.victim import Victim


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    assert logging.getLogger("aiomas_ng").level == logging.NOTSET


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_withstands(entry: str, codec: str) -> None:
    """Random and mutated frames let no exception out, leave nothing behind, and keep nobody from being
    served."""
    fuzzer = Fuzzer(entry, codec)
    try:
        fuzz_plainly(fuzzer, 15_000, seed=1)
    finally:
        fuzzer.close()


def test_harness_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an exception does get out, the harness says so: it is not blind."""

    def fail(*args: object) -> None:
        raise RuntimeError("got out")

    victim = Victim()
    monkeypatch.setattr("aiomas_ng._io.dispatcher.Dispatcher._take_session", fail)
    pieces = ENTRIES["session"](victim, Source(bytes([0, 0, 0, 0, 0, 0])))
    assert pieces
    with pytest.raises(AssertionError, match="got out"):
        victim.run(_attack(victim, pieces))
    monkeypatch.undo()
    victim.problems.clear()
    victim.close()


async def _attack(victim: Victim, pieces: list[bytes]) -> None:
    await victim.attack_server(pieces)
    await victim.check()


@pytest.mark.parametrize("entry", ENTRIES)
def test_any_bytes_make_an_attack(entry: str) -> None:
    """The harness itself takes any bytes, none as well, and the same ones make the same attack."""
    victim = Victim()
    try:
        for data in (b"", bytes(100), bytes(range(256)) * 4, b"\xff" * 500):
            assert ENTRIES[entry](victim, Source(data)) == ENTRIES[entry](victim, Source(data))
    finally:
        victim.close()
