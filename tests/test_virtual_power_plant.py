"""The demonstration: its physics, and that its figures do not depend on where the agents live."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

import aiomas_ng
from aiomas_ng import directory as directories
from aiomas_ng.error import ResponseWrappingError
from aiomas_ng.exceptions import ProcessError
from examples.virtual_power_plant import __main__ as command
from examples.virtual_power_plant import monitor, timeline
from examples.virtual_power_plant.batteries import Battery
from examples.virtual_power_plant.controller import EVENING, Controller
from examples.virtual_power_plant.market import award, divide
from examples.virtual_power_plant.messages import SERIALIZERS, STATE_OF_CHARGE, Offer, Report
from examples.virtual_power_plant.portfolio import Scenario
from examples.virtual_power_plant.simulation import Figures, Result, simulate
from examples.virtual_power_plant.storage import SMALLEST_POWER, Storage, StorageData

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "examples.virtual_power_plant"]

#: Two bright days, on which batteries get full and plants are curtailed.
SCENARIO = Scenario(days=2, plants=6, batteries=3, grid_limit=180.0)
NO_BATTERIES = Scenario(days=1, plants=3, batteries=0)

EXACT = 1e-6
"""How far a balance of energies (kWh) may be open."""

needs_demo = pytest.mark.needs("pvlib", "rich", "matplotlib")
needs_pvlib = pytest.mark.needs("pvlib")

powers = st.floats(0, 500, allow_subnormal=False)
offers = st.lists(
    st.none() | st.builds(Offer, st.floats(SMALLEST_POWER, 500), st.sampled_from([0.01, 0.02, 0.05]))
)


@pytest.fixture(scope="session")
def figures(arun: Callable[..., Any]) -> Figures:
    """What comes out of :data:`SCENARIO` in one process."""
    return arun(simulate(SCENARIO, "local")).figures


# -- Physics of the whole --------------------------------------------------------------------------


@needs_pvlib
def test_something_of_everything_happens(figures: Figures) -> None:
    """The scenario that the physics is tested with has hours of storing, giving back and curtailing."""
    assert len(figures.hours) == 48
    for name in ("available", "charged", "discharged", "curtailed"):
        assert sum(getattr(hour, name) > 1 for hour in figures.hours) >= 2


@needs_pvlib
def test_no_hour_is_left_out(figures: Figures) -> None:
    """Hours follow each other without a gap, from time 0 on."""
    assert [hour.time for hour in figures.hours] == [3600 * i for i in range(48)]


@needs_pvlib
def test_feed_in_stays_below_limit(figures: Figures) -> None:
    """The grid never gets more than it can take, nor has it to give."""
    limit = SCENARIO.get_grid_limit()
    assert all(-EXACT <= hour.feed_in <= limit + 1e-9 for hour in figures.hours)


@needs_pvlib
def test_curtailment_is_the_last_resort(figures: Figures) -> None:
    """Plants are curtailed only when each battery is full or charges with all its power, and while the grid
    gets all that it can take."""
    data = [StorageData(**battery) for battery in SCENARIO.get_batteries().values()]
    storages = [Storage(each) for each in data]
    for hour in figures.hours:
        offers = [storage.offer_charge() for storage in storages]
        if hour.curtailed > 0:
            most = sum(offer.power for offer in offers if offer is not None)
            assert hour.charged == pytest.approx(most, abs=SMALLEST_POWER)
            assert hour.feed_in == pytest.approx(SCENARIO.get_grid_limit(), abs=EXACT)
        # The batteries of the simulation, once more and without agents.
        for storage, power in zip(storages, award(offers, hour.charged), strict=True):
            if power > 0:
                storage.charge(power)
        offers = [storage.offer_discharge() for storage in storages]
        for storage, power in zip(storages, award(offers, hour.discharged), strict=True):
            if power > 0:
                storage.discharge(power)
        assert math.fsum(storage.energy for storage in storages) == pytest.approx(hour.stored, abs=EXACT)


@needs_pvlib
def test_batteries_give_in_the_evening(figures: Figures) -> None:
    """Batteries are emptied in the evening only, and never while others are filled."""
    for hour in figures.hours:
        assert not (hour.charged and hour.discharged)
        if hour.discharged:
            date = timeline.get_start(SCENARIO.days).shift(seconds=hour.time)
            assert timeline.get_hour_of_day(date) in EVENING


@needs_pvlib
def test_energy_balance_closes(figures: Figures) -> None:
    """What the hours say and what plants and batteries have counted for themselves is the same energy."""

    def total(name: str) -> float:
        return math.fsum(getattr(hour, name) for hour in figures.hours)

    plants, batteries = figures.plants, figures.batteries
    assert math.fsum(p.produced for p in plants) == pytest.approx(total("produced"), abs=EXACT)
    assert math.fsum(p.curtailed for p in plants) == pytest.approx(total("curtailed"), abs=EXACT)
    assert math.fsum(p.stored for p in plants) == pytest.approx(total("charged"), abs=EXACT)
    assert math.fsum(b.charged for b in batteries) == pytest.approx(total("charged"), abs=EXACT)
    assert math.fsum(b.discharged for b in batteries) == pytest.approx(total("discharged"), abs=EXACT)
    assert math.fsum(b.stored for b in batteries) == pytest.approx(figures.hours[-1].stored, abs=EXACT)
    assert total("available") == pytest.approx(
        total("feed_in")
        + total("curtailed")
        + math.fsum(b.lost for b in batteries)
        + math.fsum(b.gained for b in batteries),
        abs=EXACT,
    )


@needs_pvlib
def test_losses_are_those_of_the_efficiency(figures: Figures) -> None:
    """What a battery has lost is what its efficiency says, on the way in and on the way out."""
    for battery, data in zip(figures.batteries, SCENARIO.get_batteries().values(), strict=True):
        efficiency = data["efficiency"]
        gained = battery.charged * efficiency - battery.discharged / efficiency
        assert battery.gained == pytest.approx(gained, abs=EXACT)
        assert battery.lost > 0


@needs_pvlib
def test_state_of_charge_stays_within_bounds(figures: Figures) -> None:
    """All batteries together never hold less or more than the sum of their bounds."""
    data = [StorageData(**battery) for battery in SCENARIO.get_batteries().values()]
    least, most = sum(each.min_energy for each in data), sum(each.max_energy for each in data)
    assert all(least - EXACT <= hour.stored <= most + EXACT for hour in figures.hours)


@needs_pvlib
async def test_without_batteries_all_surplus_is_curtailed() -> None:
    """A virtual power plant without batteries works; it has nowhere to store anything."""
    result = await simulate(NO_BATTERIES, "local")
    hours = result.figures.hours
    assert sum(hour.curtailed for hour in hours) > 1
    assert not any(hour.charged or hour.discharged or hour.stored for hour in hours)
    limit = NO_BATTERIES.get_grid_limit()
    assert all(hour.curtailed == max(0.0, hour.available - limit) for hour in hours)


# -- The same everywhere ---------------------------------------------------------------------------


@needs_pvlib
@pytest.mark.parametrize("transport", ["local", "ipc", "tcp"])
async def test_figures_are_the_same_on_every_transport(transport: Any, figures: Figures) -> None:
    """In one process or in three, over Unix sockets or TCP: the figures are equal to the last digit."""
    result = await simulate(SCENARIO, transport)
    assert result.figures == figures
    assert repr(result.figures) == repr(figures)
    assert result.figures.fingerprint == figures.fingerprint


@needs_pvlib
async def test_fingerprint_tells_scenarios_apart(figures: Figures) -> None:
    """Another scenario has another fingerprint."""
    other = await simulate(NO_BATTERIES, "local")
    assert other.figures.fingerprint != figures.fingerprint


@needs_pvlib
async def test_calls_are_counted_where_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of calls is that of the requests that routers have answered, neither more nor less."""
    answered = []
    resolve = aiomas_ng.rpc.Router.resolve

    def counting(self: Any, path: str, *args: Any) -> Any:
        answered.append(path)
        return resolve(self, path, *args)

    monkeypatch.setattr(aiomas_ng.rpc.Router, "resolve", counting)
    result = await simulate(Scenario(days=1, plants=3, batteries=2), "local")
    assert result.figures.calls == len(answered)


@needs_pvlib
async def test_every_hour_is_announced() -> None:
    """The callback gets each hour as it is in the result, in order."""
    seen: list[Any] = []
    result = await simulate(NO_BATTERIES, "local", seen.append)
    assert seen == result.figures.hours


# -- A bad end -------------------------------------------------------------------------------------


@needs_pvlib
@pytest.mark.parametrize("transport", ["local", "ipc", "tcp"])
async def test_cancelling_a_run_ends_everything(transport: Any) -> None:
    """A run that is cancelled in the midst of it leaves nothing behind."""
    hours: list[Any] = []

    def cancel_at_noon(hour: Any) -> None:
        hours.append(hour)
        if len(hours) == 12:
            run.cancel()

    run = asyncio.create_task(simulate(SCENARIO, transport, cancel_at_noon))
    with pytest.raises(asyncio.CancelledError):
        await run
    assert len(hours) == 12


@needs_pvlib
async def test_death_in_the_midst_of_a_run_ends_everything() -> None:
    """If a container process is killed, the run ends with an error and leaves nothing behind."""

    def kill_at_noon(hour: Any) -> None:
        if hour.time == 12 * 3600:
            psutil.Process().children()[-1].kill()

    with pytest.raises(aiomas_ng.AiomasError):
        await simulate(SCENARIO, "tcp", kill_at_noon)


# -- Plants ----------------------------------------------------------------------------------------


@lru_cache
def year_of(peak_power: float, tilt: float, azimuth: float) -> list[float]:
    """Return the power of a plant for each hour of the year."""
    from examples.virtual_power_plant.photovoltaics import PlantData, compute_power

    return compute_power(PlantData(peak_power, tilt, azimuth))


@needs_pvlib
def test_power_of_plant_is_plausible() -> None:
    """A plant gives nothing at night, never more than its inverter can, and per year what is usual there."""
    year = year_of(100, 30, 180)
    assert len(year) == 8760
    assert all(type(power) is float and 0 <= power <= 100 / 1.2 for power in year)
    assert all(year[24 * day + hour] == 0 for day in range(365) for hour in (0, 1, 2, 23))
    assert 120_000 < sum(year) < 160_000


@needs_pvlib
def test_power_follows_the_orientation() -> None:
    """In the morning the plant that looks east gives more, in the afternoon the one that looks west."""
    east, west = year_of(100, 30, 90), year_of(100, 30, 270)

    def at(year: list[float], hour: int) -> float:
        return sum(year[hour::24])

    assert at(east, 8) > 1.5 * at(west, 8)
    assert at(west, 16) > 1.5 * at(east, 16)


@needs_pvlib
def test_power_is_symmetric_about_noon() -> None:
    """The sun is taken in the middle of each hour: around noon of the sun, a plant that looks south gives as
    much before as after it."""
    year = year_of(100, 30, 180)
    # Noon of the sun is at 12:20 in standard time there, on average.
    before = sum(year[24 * day + hour] for day in range(365) for hour in range(12))
    after = sum(year[24 * day + hour] for day in range(365) for hour in range(12, 24))
    assert 0.75 < before / after < 1.1


@needs_pvlib
@pytest.mark.parametrize("values", [(0, 30, 180), (10, 91, 180), (10, 30, 360), (math.nan, 30, 180)])
def test_impossible_plants_are_refused(values: tuple[float, float, float]) -> None:
    """A plant without size, upside down, or looking nowhere, is an error."""
    from examples.virtual_power_plant.photovoltaics import PlantData

    with pytest.raises(ValueError, match=r"must be"):
        PlantData(*values)


@needs_pvlib
async def test_plant_follows_its_clock() -> None:
    """What a plant reports belongs to the hour of its clock, also beyond the end of the year."""
    from examples.virtual_power_plant.plants import Plant

    async with open_container() as container:
        plant = Plant(container, "p", {"peak_power": 100, "tilt": 30, "azimuth": 180})
        year = year_of(100, 30, 180)
        begin = timeline.get_hour_of_year(timeline.WEEK_START)
        for hours in (0, 12, 24 * 300 + 12):
            container.clock.set_time(hours * 3600)
            assert plant.report() == Report(hours * 3600, year[(begin + hours) % 8760])


@needs_pvlib
@pytest.mark.parametrize("shares", [(-1, 0), (0, -1), (1e9, 0), (math.nan, 0)])
async def test_plant_refuses_impossible_shares(shares: tuple[float, float]) -> None:
    """Nobody can store or curtail more than a plant gives."""
    from examples.virtual_power_plant.plants import Plant

    async with open_container() as container:
        plant = Plant(container, "p", {"peak_power": 100, "tilt": 30, "azimuth": 180})
        container.clock.set_time(12 * 3600)
        with pytest.raises(ValueError, match="cannot be stored"):
            plant.share_surplus(*shares)


# -- Batteries -------------------------------------------------------------------------------------


@given(
    st.builds(
        StorageData,
        capacity=st.floats(1, 1000),
        max_power=st.floats(1, 1000),
        efficiency=st.floats(0.5, 1),
        wear_cost=st.floats(0, 1),
        min_soc=st.floats(0, 0.4),
        max_soc=st.floats(0.6, 1),
    ),
    st.lists(st.tuples(st.booleans(), st.floats(0.01, 1))),
)
def test_storage_keeps_its_bounds(data: StorageData, steps: list[tuple[bool, float]]) -> None:
    """However a battery is used, it stays within its bounds, no offer is beyond its power, and every kWh is
    accounted for."""
    storage = Storage(data)
    expected = storage.energy
    for is_charge, share in steps:
        offer = storage.offer_charge() if is_charge else storage.offer_discharge()
        if offer is None:
            continue
        assert SMALLEST_POWER <= offer.power <= data.max_power
        assert offer.cost >= 0
        power = share * offer.power
        if is_charge:
            assert storage.charge(power) == pytest.approx(power * offer.cost)
            expected += power * data.efficiency
        else:
            assert storage.discharge(power) == pytest.approx(power * offer.cost)
            expected -= power / data.efficiency
        assert data.min_energy <= storage.energy <= data.max_energy
        assert storage.energy == pytest.approx(expected, abs=EXACT)


def test_full_and_empty_storage_offers_nothing() -> None:
    """A battery that is empty does not offer to give, and one that is full does not offer to take."""
    storage = Storage(StorageData(capacity=10, max_power=100))
    assert storage.offer_discharge() is None
    offer = storage.offer_charge()
    assert offer is not None
    storage.charge(offer.power)
    assert storage.energy == pytest.approx(9.5)
    assert storage.offer_charge() is None


@pytest.mark.parametrize("power", [0, -1, 50.1, math.nan, math.inf])
def test_storage_refuses_more_than_it_offered(power: float) -> None:
    """What is beyond the offer is refused, and changes nothing."""
    storage = Storage(StorageData(capacity=200, max_power=50))
    with pytest.raises(ValueError, match="can take"):
        storage.charge(power)
    with pytest.raises(ValueError, match="can give"):
        storage.discharge(power)
    assert storage.energy == storage.data.min_energy


def test_losses_and_wear_cost() -> None:
    """Offers cost more if efficiency is lower, wear higher, or the battery fuller (for discharging:
    emptier)."""

    def cost(**data: float) -> float:
        offer = Storage(StorageData(capacity=100, max_power=10, **data)).offer_charge()
        assert offer is not None
        return offer.cost

    assert cost(efficiency=0.9) > cost(efficiency=0.95)
    assert cost(wear_cost=0.1) > cost(wear_cost=0.05)
    assert cost(efficiency=1, wear_cost=0) == 0
    storage = Storage(StorageData(capacity=100, max_power=10))
    charging, discharging = [], []
    for _ in range(5):
        charging.append(storage.offer_charge().cost)
        storage.charge(10)
        discharging.append(storage.offer_discharge().cost)
    assert charging == sorted(set(charging))
    assert discharging == sorted(set(discharging), reverse=True)


@pytest.mark.parametrize(
    "data",
    [
        {"capacity": 0},
        {"max_power": -1},
        {"efficiency": 0},
        {"efficiency": 1.1},
        {"min_soc": 0.9, "max_soc": 0.8},
        {"wear_cost": -1},
        {"capacity": math.nan},
    ],
    ids=str,
)
def test_impossible_batteries_are_refused(data: dict[str, float]) -> None:
    """A data sheet that no battery can have is an error that says what is wrong."""
    with pytest.raises(ValueError, match="must"):
        StorageData(**{"capacity": 10, "max_power": 10, **data})


async def test_battery_keeps_account() -> None:
    """A battery's account is what was charged and discharged, and what of it was lost."""
    async with open_container() as container:
        battery = Battery(container, "b", {"capacity": 100, "max_power": 50, "efficiency": 0.9})
        battery.charge(40.0)
        battery.discharge(10.0)
        account = battery.get_account()
    assert (account.charged, account.discharged) == (40, 10)
    assert account.gained == pytest.approx(40 * 0.9 - 10 / 0.9)
    assert account.lost == pytest.approx(40 - 10 - account.gained)
    assert account.stored == pytest.approx(5 + account.gained)


# -- Market and controller -------------------------------------------------------------------------


@given(offers, powers)
def test_awards_meet_the_demand_by_the_cheapest(offers: list[Offer | None], demand: float) -> None:
    """Nobody gets more than offered; together they get the demand, or all that there is; and whoever gets
    less than offered has nobody dearer that gets anything."""
    awards = award(offers, demand)
    assert len(awards) == len(offers)
    for offer, power in zip(offers, awards, strict=True):
        assert 0 <= power <= (offer.power if offer else 0)
    most = sum(offer.power for offer in offers if offer)
    assert sum(awards) == pytest.approx(min(demand, most), abs=2 * SMALLEST_POWER)
    pairs = [(offer, power) for offer, power in zip(offers, awards, strict=True) if offer]
    for cheap, power in pairs:
        if power < cheap.power:
            assert not any(other > 0 for dear, other in pairs if dear.cost > cheap.cost)


def test_equal_offers_are_awarded_in_order() -> None:
    """Of offers that cost the same, the first one is taken first; chance has no part in it."""
    assert award([Offer(10, 0.05), None, Offer(10, 0.01), Offer(10, 0.01)], 15) == [0, 0, 10, 5]


@given(st.lists(st.floats(0.1, 100), min_size=1), powers)
def test_divide_is_proportional(weights: list[float], amount: float) -> None:
    """The shares add up to the amount, and each is in proportion to its weight."""
    shares = divide(amount, weights)
    assert sum(shares) == pytest.approx(amount)
    for share, weight in zip(shares, weights, strict=True):
        assert share * sum(weights) == pytest.approx(amount * weight)


class LatePlant(aiomas_ng.Agent):
    """A plant whose clock is late."""

    @aiomas_ng.expose
    def report(self) -> Report:
        """Report about the hour before."""
        return Report(self.container.clock.time() - 3600, 1.0)


async def test_controller_refuses_plants_of_another_hour() -> None:
    """If containers were not in step, the run would end with an error and not with wrong figures."""
    async with open_container() as container:
        plant = LatePlant(container)
        controller = await Controller.create(container, 10.0, [plant.addr], [])
        with pytest.raises(RuntimeError, match="a plant lives at -7200"):
            await controller.balance()


@contextlib.asynccontextmanager
async def open_container(addr: Any = ("127.0.0.1", 0)) -> Any:
    """Open a container whose clock stands one hour before the week begins."""
    clock = aiomas_ng.ExternalClock(timeline.WEEK_START, init_time=-3600)
    container = await aiomas_ng.Container.create(
        addr, clock=clock, extra_serializers=SERIALIZERS, as_coro=True
    )
    try:
        yield container
    finally:
        await container.shutdown(as_coro=True)


# -- States of charge, observed --------------------------------------------------------------------

DATA = {"capacity": 100.0, "max_power": 50.0, "efficiency": 0.9}


class BrightPlant(aiomas_ng.Agent):
    """A plant that could always feed in 30 kW."""

    has_shared = False

    @aiomas_ng.expose
    def report(self) -> Report:
        """Report about the present hour."""
        return Report(self.container.clock.time(), 30.0)

    @aiomas_ng.expose
    def share_surplus(self, stored: float, curtailed: float) -> None:
        """Take note of it."""
        self.has_shared = True


class HesitantBattery(Battery):
    """A battery whose state of charge is shown when the test lets it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.may_show = asyncio.Event()
        self.may_show.set()

    @aiomas_ng.state(rt=STATE_OF_CHARGE)
    async def soc(self) -> float:
        """Return the state of charge when it may be shown."""
        await self.may_show.wait()
        return self._storage.soc


class BrokenMeter(Battery):
    """A battery that does not show what it is charged with."""

    @aiomas_ng.state(rt=STATE_OF_CHARGE)
    def soc(self) -> float:
        """Return what is true at first."""
        return self._first_energy / 100


@contextlib.asynccontextmanager
async def open_plant(battery_class: type[Battery], addrs: Callable[[], Any]) -> Any:
    """Open a container with a directory, a controller and a bright plant, and another one with a battery.

    Yields:
        The proxy of the controller, its address, the plant and the battery.
    """
    async with open_container(addrs()) as here, open_container(addrs()) as there:
        directory = directories.Directory(here)
        battery = await battery_class.create(there, "battery-01", DATA, directory.addr)
        plant = BrightPlant(here)
        controller = await Controller.create(here, 10.0, [plant.addr], [battery.addr], directory.addr)
        yield await here.connect(controller.addr), controller.addr, plant, battery


async def test_state_of_charge_is_a_resource(transport: Any) -> None:
    """What is got from the resource, and what an observer is notified of, is the state of charge to the last
    digit."""
    async with open_container(transport.address()) as here, open_container(transport.address()) as there:
        directory = directories.Directory(here)
        battery = await Battery.create(there, "battery-01", DATA, directory.addr)
        async with here.context.observe(f"{battery.addr}/soc") as states:
            assert await anext(states) == 0.05
            told = battery.charge(1 / 3)
            assert await anext(states) == told / 100 == battery.soc()
            told = battery.discharge(1 / 7)
            assert await anext(states) == told / 100 == await here.context.get(f"{battery.addr}/soc")


async def test_all_batteries_of_a_container_are_registered_once() -> None:
    """Batteries that are made at the same time are found in the directory, all of them under one registration
    of their container; when the container has shut down, they are no longer found."""
    async with open_container() as here:
        url = directories.Directory(here).addr
        async with open_container() as there:
            names = [f"battery-{number:02}" for number in range(1, 6)]
            batteries = await asyncio.gather(*(Battery.create(there, name, DATA, url) for name in names))
            links = await directories.lookup(here.context, url, rt=STATE_OF_CHARGE)
            assert sorted(link.href for link in links) == [f"{battery.addr}/soc" for battery in batteries]
            assert len(await directories.lookup_endpoints(here.context, url)) == 1
        assert await directories.lookup(here.context, url, rt=STATE_OF_CHARGE) == []


async def test_battery_without_directory_is_an_error() -> None:
    """Where a battery cannot be registered, whoever makes it is told so."""
    async with open_container() as here, open_container() as there:
        plant = BrightPlant(here)  # which is no directory
        with pytest.raises(ResponseWrappingError, match=r"4\.04"):
            await Battery.create(there, "battery-01", DATA, plant.addr)


@pytest.mark.parametrize("has_directory", [True, False])
async def test_controller_refuses_batteries_that_are_not_registered(has_directory: bool) -> None:
    """A controller that cannot observe each battery is not made, and the error says which battery it is."""
    async with open_container() as here:
        battery = Battery(here, "battery-01", DATA)
        url = directories.Directory(here).addr if has_directory else None
        with pytest.raises(LookupError, match=r"tcp://.*/battery-01"):
            await Controller.create(here, 10.0, [], [battery.addr], url)


async def test_hour_ends_when_the_state_was_seen(transport: Any) -> None:
    """An hour does not end before the controller has seen the state that the hour has brought about."""
    async with open_plant(HesitantBattery, transport.address) as (controller, addr, plant, battery):
        assert (await controller.balance()).charged == 20.0
        battery.may_show.clear()
        plant.has_shared = False
        balancing = asyncio.ensure_future(controller.balance())
        await wait_until(lambda: plant.has_shared)  # the last call of the hour
        for _ in range(3):
            await controller.count_calls()
        assert not balancing.done()
        battery.may_show.set()
        hour = await balancing
        assert hour.stored == battery.get_account().stored == pytest.approx(5 + 2 * 20 * 0.9)
        assert await battery.container.context.get(f"{addr}/states") == 3


async def test_state_that_does_not_agree_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If what is seen of a battery is not what it tells, the hour ends with an error with both numbers."""
    monkeypatch.setattr(monitor, "LONGEST_WAIT", 0.05)
    async with open_plant(BrokenMeter, lambda: ("127.0.0.1", 0)) as (controller, *_):
        with pytest.raises(aiomas_ng.RemoteException) as caught:
            await controller.balance()
    assert "/battery-01/soc is 0.05, but what its battery has told makes 0.23" in caught.value.message


async def test_death_of_a_battery_is_noticed_while_waiting(transport: Any) -> None:
    """If the container of a battery ends before its state was seen, the hour ends at once, with an error that
    names the battery."""
    async with open_plant(HesitantBattery, transport.address) as (controller, _, plant, battery):
        battery.may_show.clear()
        balancing = asyncio.ensure_future(controller.balance())
        await wait_until(lambda: plant.has_shared)
        await battery.container.shutdown(as_coro=True)
        with pytest.raises(aiomas_ng.RemoteException, match=r"battery-01/soc cannot be observed any more: "):
            await balancing


async def test_lost_battery_is_not_waited_for(transport: Any) -> None:
    """If the connection to a battery breaks before its state was seen, the hour ends at once, with an error
    that names the battery; no attempt is made to observe it again."""
    async with open_plant(HesitantBattery, transport.address) as (controller, _, plant, battery):
        battery.may_show.clear()
        balancing = asyncio.ensure_future(controller.balance())
        await wait_until(lambda: plant.has_shared)
        for client in list(battery.container._connections):
            await client.close()
        with pytest.raises(aiomas_ng.RemoteException, match=r"battery-01/soc cannot be observed any more: "):
            await balancing


@needs_pvlib
async def test_observations_end_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run lasts, the controller observes each battery; after it nobody does, and no battery is
    registered."""
    batteries: list[Battery] = []
    create = Battery.__init__

    def collect(self: Battery, *args: Any) -> None:
        create(self, *args)
        batteries.append(self)

    def count_observers() -> list[int]:
        resources = [battery.site.find(("soc",))[0] for battery in batteries]
        return [resource.observation_count for resource in resources]

    monkeypatch.setattr(Battery, "__init__", collect)
    seen: list[list[int]] = []
    await simulate(Scenario(days=1, plants=3, batteries=2), "local", lambda _: seen.append(count_observers()))
    assert seen == [[1, 1]] * 24
    assert count_observers() == [0, 0]


@needs_pvlib
async def test_each_change_is_observed_on_every_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller sees the first state of each battery and every change of it, neither more nor less, in
    one process or in three; and the figures are the same."""
    scenario = Scenario(days=1, plants=3, batteries=4)
    changes: list[float] = []
    charge, discharge = Storage.charge, Storage.discharge
    monkeypatch.setattr(Storage, "charge", lambda self, power: changes.append(power) or charge(self, power))
    monkeypatch.setattr(
        Storage, "discharge", lambda self, power: changes.append(power) or discharge(self, power)
    )
    here = await simulate(scenario, "local")
    assert len(changes) > 10
    assert here.states == 4 + len(changes)
    for transport in ("ipc", "tcp"):
        result = await simulate(scenario, transport)
        assert result.states == here.states
        assert result.figures.fingerprint == here.figures.fingerprint


@needs_pvlib
@pytest.mark.parametrize(("transport", "number"), [("tcp", 0), ("ipc", 1), ("tcp", 2)])
async def test_dead_container_is_named(transport: Any, number: int) -> None:
    """Whichever container dies, that of the controller or one with a battery only, the run ends with an error
    that says which one it was, and how it ended."""

    before = psutil.Process().children()  # such as helpers of multiprocessing, from tests before

    def kill_at_noon(hour: Any) -> None:
        if hour.time == 12 * 3600:
            [child for child in psutil.Process().children() if child not in before][number].kill()

    pattern = rf"^the container process at {transport}://\S+ has died \(exit code -9\)$"
    with pytest.raises(ProcessError, match=pattern):
        await simulate(SCENARIO, transport, kill_at_noon)


# -- Time and portfolio ----------------------------------------------------------------------------


@given(st.integers(0, 3 * 8760))
def test_hours_of_year_wrap_around(hours: int) -> None:
    """Every hour has a number, and a year later the same one."""
    date = timeline.YEAR_START + timedelta(hours=hours)
    assert timeline.get_hour_of_year(date) == hours % 8760
    assert timeline.get_hour_of_year(date.to("UTC")) == hours % 8760
    assert timeline.get_hour_of_day(date.to("UTC")) == hours % 24


def test_whole_year_begins_in_january() -> None:
    """A whole year is that of the calendar; shorter runs begin in summer, when there is something to see."""
    assert timeline.get_start(365) == timeline.YEAR_START
    assert timeline.get_start(364) == timeline.WEEK_START


def test_plants_differ() -> None:
    """No two of the first 35 plants have both size and orientation in common, and names are unique."""
    plants = Scenario(plants=35, batteries=9).get_plants()
    assert len(plants) == len({tuple(data.values()) for data in plants.values()}) == 35
    assert len(Scenario(batteries=9).get_batteries()) == 9


def test_limit_is_what_was_said() -> None:
    """The grid's limit is the one given, or by default half of the plants' peak power."""
    assert Scenario(grid_limit=12.5).get_grid_limit() == 12.5
    assert Scenario(plants=2).get_grid_limit() == pytest.approx((120 + 30) / 2)


# -- The command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--days", "0"], "argument --days: must be a whole number from 1 to 365, not '0'"),
        (["--days", "366"], "argument --days: must be a whole number from 1 to 365, not '366'"),
        (["--days", "two"], "argument --days: must be a whole number from 1 to 365, not 'two'"),
        (["--days", "7", "--year"], "not allowed with argument"),
        (["--plants", "0"], "argument --plants: must be a whole number from 1 to 1000, not '0'"),
        (["--batteries", "-1"], "argument --batteries: must be a whole number from 0 to 1000, not '-1'"),
        (["--grid-limit", "0"], "argument --grid-limit: must be a number of kW greater than 0, not '0'"),
        (["--grid-limit", "nan"], "argument --grid-limit: must be a number of kW greater than 0, not 'nan'"),
        (
            ["--grid-limit", "much"],
            "argument --grid-limit: must be a number of kW greater than 0, not 'much'",
        ),
        (["--transport", "udp"], "argument --transport: invalid choice: 'udp'"),
        (["--plot", "picture.gif"], "argument --plot: must end with .png, .pdf or .svg, not 'picture.gif'"),
        (["--plot", "/no/such/place/p.png"], "argument --plot: there is no directory '/no/such/place'"),
        (["--speed"], "unrecognized arguments: --speed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_explained(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad argument ends the command before anything is started, and the message says what is wrong."""
    with pytest.raises(SystemExit) as ended:
        command.main(args)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the packages of the extra are not installed, the command says which, and how to get them."""
    monkeypatch.setattr(command, "PACKAGES", ("no_such_package", "aiomas_ng"))
    assert command.main([]) == 1
    assert capsys.readouterr().err == (
        "virtual_power_plant: no_such_package must be installed for this: pip install -e '.[demo]'\n"
    )


@needs_demo
def test_command_runs_in_three_processes(tmp_path: Path, arun: Callable[..., Any]) -> None:
    """By default there are three processes; the command prints every plant and battery, the calls and the
    fingerprint, which is that of one process, and draws a picture."""
    picture = tmp_path / "picture.svg"
    # asyncio's debug mode would log to standard error how long it takes to import pvlib.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONASYNCIODEBUG"}
    done = subprocess.run(
        [*COMMAND, "--days", "1", "--plants", "3", "--plot", picture],
        cwd=ROOT,
        env={**environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 plants and 4 batteries in three processes (tcp), 1 day from 10 June." in done.stdout
    for text in ("plant-03", "of it stored", "curtailed", "battery-04", "Calls:", "per second", "Seen:"):
        assert text in done.stdout
    expected = arun(simulate(Scenario(days=1, plants=3), "local")).figures
    assert f"{expected.calls:,}" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        f"Fingerprint of all figures: {expected.fingerprint}",
        f"Picture: {picture}",
    ]
    assert "<svg" in picture.read_text(encoding="utf-8")


@needs_demo
def test_tables_have_every_number(figures: Figures) -> None:
    """The tables have a row for each plant and each battery, with its numbers and their sums."""
    text = print_to_text(SCENARIO, figures)
    for plant in figures.plants:
        assert f"{plant.produced:,.1f}" in text
        assert f"{plant.stored:,.1f}" in text
        assert f"{plant.curtailed:,.1f}" in text
    for battery in figures.batteries:
        assert f"{battery.lost:,.1f}" in text
    assert f"{math.fsum(plant.produced for plant in figures.plants):,.1f}" in text
    assert "at most 180.0 kW; the limit is 180.0 kW" in text
    assert "…" not in text


@needs_demo
def test_tables_without_batteries(figures: Figures) -> None:
    """Where there are no batteries, there is no table of them."""
    assert "Batteries" in print_to_text(SCENARIO, figures)
    assert "Batteries" not in print_to_text(SCENARIO, dataclasses.replace(figures, batteries=[]))


@needs_demo
def test_observed_states_are_counted_in_words(figures: Figures) -> None:
    """Below the tables stands how many states of charge were observed, of how many batteries; without
    batteries there is no such line."""
    text = print_to_text(SCENARIO, figures, states=1234)
    assert "Seen:   1,234 states of charge, live; batteries found in the directory: 3." in text.splitlines()
    assert "Seen:" not in print_to_text(SCENARIO, dataclasses.replace(figures, batteries=[]))


def print_to_text(scenario: Scenario, figures: Figures, states: int = 0) -> str:
    """Return what is printed on a terminal of the usual width."""
    from rich.console import Console

    from examples.virtual_power_plant.report import print_result

    file = io.StringIO()
    print_result(Console(file=file, width=80), scenario, Result(figures, 1.0, 1000.0, states))
    return file.getvalue()


@needs_demo
@pytest.mark.parametrize("days", [2, 32])
def test_pictures_by_hours_and_by_days(days: int, figures: Figures, tmp_path: Path) -> None:
    """A few days are drawn hour by hour, with the limit; a longer time day by day."""
    from examples.virtual_power_plant.picture import draw

    hours = figures.hours * (days // 2)
    picture = tmp_path / "picture.svg"
    with matplotlib_text():
        draw(picture, dataclasses.replace(SCENARIO, days=days), dataclasses.replace(figures, hours=hours))
    text = picture.read_text(encoding="utf-8")
    assert ("limit of the grid, 180 kW" in text) == (days == 2)
    assert ("kWh per day" in text) == (days == 32)


def matplotlib_text() -> Any:
    """Let matplotlib write text as text instead of as outlines."""
    from matplotlib import rc_context

    return rc_context({"svg.fonttype": "none"})


@contextlib.contextmanager
def running_command(*args: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start the command for a year in a process group of its own, and wait until its three children are
    there; yield the command and its children."""
    process = subprocess.Popen(
        [*COMMAND, "--year", "--no-progress", "--plants", "60", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with process:
            assert process.stdout is not None
            process.stdout.readline()  # comes before the processes are started
            me = psutil.Process(process.pid)
            while len(children := me.children()) < 3 and process.poll() is None:
                time.sleep(0.01)  # nobody tells us when a process has children
            yield process, children
            process.wait(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@needs_demo
@pytest.mark.parametrize("whom", ["the command", "the whole group"])
def test_interrupt_ends_everything(whom: str) -> None:
    """After Ctrl-C no process is left, and the last line says what happened; a terminal sends the signal to
    the children as well."""
    with running_command() as (process, children):
        assert len(children) == 3
        (os.kill if whom == "the command" else os.killpg)(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        psutil.wait_procs(children, timeout=30)
        assert not any(child.is_running() for child in children)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "virtual_power_plant: interrupted"


@needs_demo
def test_death_of_a_process_is_reported() -> None:
    """If one container dies, the others end, and the command says so and fails."""
    with running_command() as (process, children):
        children[1].kill()
        _, errors = process.communicate(timeout=30)
        psutil.wait_procs(children, timeout=30)
        assert not any(child.is_running() for child in children)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("virtual_power_plant: ")
    assert "Traceback" not in errors


@needs_demo
def test_failure_of_an_agent_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If an agent fails, the command says which, in what method and why."""
    monkeypatch.setattr(Battery, "get_account", aiomas_ng.expose(lambda self: 1 / 0))
    assert command.main(["--days", "1", "--transport", "local", "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        "virtual_power_plant: spawn() of agent 0 failed: ZeroDivisionError: division by zero"
    )
    assert "Traceback" not in error
