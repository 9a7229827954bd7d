"""Who gets how much: plain functions, whose results depend on the order of what is given to them only."""

from __future__ import annotations

from collections.abc import Sequence

from examples.virtual_power_plant.messages import Offer
from examples.virtual_power_plant.storage import SMALLEST_POWER


def award(offers: Sequence[Offer | None], demand: float) -> list[float]:
    """Distribute *demand* among *offers*, the cheapest first; of those that cost the same, the first of them.

    Args:
        offers: What there is; ``None`` for those who offer nothing.
        demand: What is wanted, in kW.

    Returns:
        What each is awarded, in kW, in the order of *offers*; 0 for those who get nothing.  If demand is left
        over, nobody can meet it, or it is less than :data:`SMALLEST_POWER`.
    """
    awards = [0.0] * len(offers)
    ranking = sorted((offer.cost, i) for i, offer in enumerate(offers) if offer is not None)
    for _, i in ranking:
        if demand < SMALLEST_POWER:
            break
        offer = offers[i]
        assert offer is not None  # it would not be in the ranking
        awards[i] = min(offer.power, demand)
        demand -= awards[i]
    return awards


def divide(amount: float, weights: Sequence[float]) -> list[float]:
    """Divide *amount* in proportion to *weights*, which are not negative and not all 0."""
    share = amount / sum(weights)
    return [weight * share for weight in weights]
