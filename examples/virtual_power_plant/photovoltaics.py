"""The power of a photovoltaic plant, from weather data and by the models of pvlib.

    irradiance on the ground ─▶ on the modules ─▶ less reflection ─▶ direct current ─▶ alternating current
                                      │                                     ▲
    air temperature, wind ────────────┴────▶ temperature of the cells ──────┘

The weather is the "typical meteorological year" (TMY3) of Greensboro, North Carolina, which comes with pvlib,
so nothing has to be downloaded.  It is put together of real months of different years.  For each hour it has
the irradiance (global, direct, diffuse) in W/m², the temperature of the air in °C, and the wind in m/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import pandas as pd
import pvlib  # type: ignore[import-untyped]  # it has no type hints

from examples.virtual_power_plant.timeline import HOURS_PER_YEAR, YEAR_START, ZONE

WEATHER_FILE: Final = Path(pvlib.__file__).parent / "data" / "723170TYA.CSV"

#: Loss of power per kelvin above 25 °C, typical of crystalline silicon.
TEMPERATURE_COEFFICIENT: Final = -0.0035
#: Direct current per alternating current that an inverter is made for; sunnier than that is cut off.
DC_AC_RATIO: Final = 1.2
MOUNTING: Final = pvlib.temperature.TEMPERATURE_MODEL_PARAMETERS["sapm"]["open_rack_glass_polymer"]


@dataclass(frozen=True, slots=True)
class PlantData:
    """How a plant was built.

    Args:
        peak_power: Power of all modules under standard test conditions, in kWp.
        tilt: Of the modules against the ground, in degrees.
        azimuth: Where they look to, in degrees: 90 is east, 180 south, 270 west.

    Raises:
        ValueError: No plant can be like this.
    """

    peak_power: float
    tilt: float
    azimuth: float

    def __post_init__(self) -> None:
        if not self.peak_power > 0:
            raise ValueError(f"peak_power must be > 0 kWp, but is {self.peak_power}")
        if not 0 <= self.tilt <= 90:
            raise ValueError(f"tilt must be from 0 to 90 degrees, but is {self.tilt}")
        if not 0 <= self.azimuth < 360:
            raise ValueError(f"azimuth must be from 0 to below 360 degrees, but is {self.azimuth}")


@lru_cache(maxsize=1)
def load_weather() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return, for the middle of each hour of the year, the weather and the position of the sun.

    Plants in the same process share them.

    Raises:
        ValueError: The file is not what this program was written for.
    """
    weather, site = pvlib.iotools.read_tmy3(WEATHER_FILE, coerce_year=YEAR_START.year)
    offset = ZONE.utcoffset(None).total_seconds() / 3600
    if len(weather) != HOURS_PER_YEAR or site["TZ"] != offset:
        raise ValueError(f"{WEATHER_FILE} must have {HOURS_PER_YEAR} hours and the time zone {offset:+}")
    # The file names an hour by its end, and its values are means; the sun is best taken half an hour earlier.
    weather.index = weather.index - pd.Timedelta(minutes=30)
    place = pvlib.location.Location(site["latitude"], site["longitude"], altitude=site["altitude"])
    return weather, place.get_solarposition(weather.index)


def compute_power(plant: PlantData) -> list[float]:
    """Return the power that *plant* can feed in, in kW, for each hour of the year."""
    weather, sun = load_weather()
    days = pd.DatetimeIndex(weather.index).day_of_year.to_numpy()
    orientation = plant.tilt, plant.azimuth, sun["apparent_zenith"], sun["azimuth"]
    irradiance = pvlib.irradiance.get_total_irradiance(
        *orientation,
        weather["dni"],
        weather["ghi"],
        weather["dhi"],
        dni_extra=pvlib.irradiance.get_extra_radiation(days),
        model="haydavies",
    )
    # Light that comes in at a flat angle is reflected by the glass.
    transmitted = pvlib.iam.physical(pvlib.irradiance.aoi(*orientation))
    absorbed = irradiance["poa_direct"] * transmitted + irradiance["poa_diffuse"]
    cell_temperature = pvlib.temperature.sapm_cell(
        irradiance["poa_global"], weather["temp_air"], weather["wind_speed"], **MOUNTING
    )
    dc_power = pvlib.pvsystem.pvwatts_dc(
        absorbed, cell_temperature, plant.peak_power, TEMPERATURE_COEFFICIENT
    )
    dc_power *= 1 - pvlib.pvsystem.pvwatts_losses() / 100  # dirt, shadows, wiring: PVWatts' usual 14 %
    ac_power = pvlib.inverter.pvwatts(dc_power, plant.peak_power / DC_AC_RATIO)
    # Plain floats, for what goes over the wire must be plain.
    return [float(power) for power in ac_power]
