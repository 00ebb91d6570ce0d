"""What a scenario's GPUs cost and its electricity emits, and who says so: stated, its file's, or bundled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from kvplan.formulas.accounting import api_prices
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.gpu import get_gpu
from kvplan.ground.price_book import ApiPrice, GridFactor, PriceBook, read_price_book
from kvplan.scenario.schema import Scenario
from kvplan.simulation.deploy import Setup


class Price(NamedTuple):
    """Of one GPU."""

    usd_per_hour: float
    source: str


def find_price(scenario: Scenario, setup: Setup) -> Price:
    """What an hour of a deployment's GPU costs. Raises KvplanError for a price file that cannot be read."""
    stated = scenario.pricing.usd_per_gpu_hour
    if stated is not None:
        return Price(stated, "stated")
    own = _prices(find_book(scenario), setup.gpu)
    return own or Price(setup.usd_per_gpu_hour, setup.sources.get("price", ""))


def find_grid(scenario: Scenario) -> tuple[float, str]:
    """Grams of CO2 a kilowatt-hour, and who says so."""
    pricing = scenario.pricing
    if pricing.grid_gco2_per_kwh is not None:
        return pricing.grid_gco2_per_kwh, "stated"
    grid: GridFactor = find_book(scenario).grid(pricing.grid)
    return grid.gco2_per_kwh, f"{pricing.grid}: {grid.source}, {grid.year}"


def find_apis(scenario: Scenario) -> dict[str, ApiPrice]:
    """Hosted models' prices by name: the scenario's file's, then the bundled ones."""
    own = {
        name: row if row.model else row.model_copy(update={"model": name})
        for name, row in find_book(scenario).apis.items()
    }
    return own | {name: row for name, row in api_prices().items() if name not in own}


def find_api(scenario: Scenario, model: str) -> ApiPrice:
    """A hosted model's price. Raises KvplanError with the closest names."""
    known = find_apis(scenario)
    if model not in known:
        raise KvplanError(f"no price for {model!r}{did_you_mean(model, known)}; there are {', '.join(known)}")
    return known[model]


def check_prices(scenarios: Iterable[Scenario]) -> None:
    """Raise KvplanError, the first one's, where none of the scenarios has prices and a grid factor that can be read.

    And where a row of a price file is no card's, neither of the table nor a scenario's: a typo would price nothing.
    """
    first: KvplanError | None = None
    scenarios = list(scenarios)
    _check_cards(scenarios)
    for scenario in scenarios:
        try:
            find_book(scenario)
            find_grid(scenario)
            return
        except KvplanError as error:
            first = first or error
    if first is not None:
        raise first


def _check_cards(scenarios: Sequence[Scenario]) -> None:
    cards = {deployment.gpu for scenario in scenarios for deployment in scenario.deployments.values()}
    for path in dict.fromkeys(s.folder / s.pricing.file for s in scenarios if s.pricing.file is not None):
        try:
            names = list(_read(path).gpus)
        except KvplanError:
            continue  # another scenario's file may be read
        for name in names:
            if name in cards:
                continue
            try:
                get_gpu(name)
            except KvplanError as error:
                raise KvplanError(f"{path}: gpus: {error}") from None


def find_book(scenario: Scenario) -> PriceBook:
    """The scenario's own prices; empty without a file."""
    if scenario.pricing.file is None:
        return PriceBook()
    return _read(scenario.folder / scenario.pricing.file)


@lru_cache(16)
def _read(path: Path) -> PriceBook:
    return read_price_book(path)


def _prices(book: PriceBook, gpu: str) -> Price | None:
    """The book's price of a card, under any of its names."""
    for name, row in book.gpus.items():
        try:
            same = gpu in (name, get_gpu(name).name)
        except KvplanError:
            same = False
        if same:
            return Price(row.usd_per_hour, f"{row.source}, {row.date}")
    return None
