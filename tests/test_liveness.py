"""The figures of liveness, and what they must be."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from aiomas_ng.liveness import DEFAULT_LIVENESS, ConnectionState, Liveness, PeerStatus

# -- The figures -----------------------------------------------------------------------------------


def test_defaults() -> None:
    """Ping after 15 s, wait for 30 s, and for 5 minutes if the peer is busy."""
    assert Liveness() == DEFAULT_LIVENESS
    assert dataclasses.astuple(Liveness()) == (15.0, 30.0, 3600.0)


@pytest.mark.parametrize("name", ["interval", "patience", "busy_patience"])
@pytest.mark.parametrize("value", [0, -1, 0.009, math.inf, math.nan, True, "15"])
def test_figure_that_is_no_time_is_refused(name: str, value: Any) -> None:
    """Each is a number of seconds, not too small, and finite; the error names it."""
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Liveness(**{name: value})


@pytest.mark.parametrize("name", ["interval", "patience"])
def test_only_busy_peers_may_be_waited_for_without_end(name: str) -> None:
    """``None`` is a value of busy_patience alone."""
    assert Liveness(busy_patience=None).busy_patience is None
    with pytest.raises(ValueError, match=name):
        Liveness(**{name: None})


def test_busy_peer_is_not_waited_for_less() -> None:
    """A busy_patience below patience would declare dead who is alive before who is not."""
    assert Liveness(patience=2, busy_patience=2).busy_patience == 2
    with pytest.raises(ValueError, match="busy_patience must not be less"):
        Liveness(patience=2, busy_patience=1)


def test_figures_cannot_be_changed_and_travel_to_other_processes() -> None:
    """Many connections share them; a container process gets them as an argument."""
    figures = Liveness(interval=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.interval = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(figures)) == figures
    assert pickle.loads(pickle.dumps(ConnectionState.CLOSED)) is ConnectionState.CLOSED


def test_status_cannot_be_changed() -> None:
    """It is what was the case at a time."""
    status = PeerStatus("tcp://h:1/", ConnectionState.CLOSED, None, None)  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.state = ConnectionState.CONNECTED  # type: ignore[misc]
