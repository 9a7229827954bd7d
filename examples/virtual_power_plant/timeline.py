"""The hours of the simulation: how long they are, when they begin, and where in the year they lie."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Final

import arrow
from arrow.arrow import Arrow

#: Length of a step in seconds and in hours: weather data have one value per hour.
STEP: Final = 3600
STEP_HOURS: Final = STEP / 3600

HOURS_PER_DAY: Final = 24
DAYS_PER_YEAR: Final = 365
HOURS_PER_YEAR: Final = HOURS_PER_DAY * DAYS_PER_YEAR

#: Standard time at the place of the weather; the data know no daylight saving time.
ZONE: Final = timezone(timedelta(hours=-5))

#: A typical year has no number of its own; it gets that of a year without a leap day.
YEAR_START: Final = arrow.Arrow(2025, 1, 1, tzinfo=ZONE)
#: A week with bright and with dull days.
WEEK_START: Final = arrow.Arrow(2025, 6, 10, tzinfo=ZONE)


def get_start(days: int) -> Arrow:
    """Return when a simulation of *days* begins: a whole year on 1 January, everything else in June."""
    return YEAR_START if days == DAYS_PER_YEAR else WEEK_START


def get_hour_of_year(date: Arrow) -> int:
    """Return the number, from 0 to 8759, of the hour of the year that *date* lies in; the next year is like
    this one."""
    return int((date - YEAR_START).total_seconds() // STEP) % HOURS_PER_YEAR


def get_hour_of_day(date: Arrow) -> int:
    """Return the hour, from 0 to 23, that *date* lies in, in the standard time of the place."""
    return int(date.to(ZONE).hour)
