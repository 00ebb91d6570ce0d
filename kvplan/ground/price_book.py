"""What GPUs and hosted models cost and what a grid's kilowatt-hour emits: bundled rows with date and source, own file.

    gpus: {h100-sxm: {usd_per_hour: 2.10, date: 2026-10-01, source: our contract}}
    grids: {ours: {gco2_per_kwh: 30, year: 2025, source: the utility's disclosure}}
    apis: {our-model: {input: 0.5, output: 2.0, date: 2026-10-01, source: our contract}}
    routes: [{name: small, share: 0.85, usd_per_request: 0.001}, {name: large, share: 0.15, usd_per_request: 0.05}]

Own rows come before the bundled ones (`catalog/gpu_prices.json`, `prices.yaml`, `grids.yaml`). Knows no scenario.
"""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import price_rows
from kvplan.ground.strict_yaml import complaint_of, load_yaml

MAX_BYTES = 1 << 20
EXAMPLE = "gpus: {h100: {usd_per_hour: 2.10, date: 2026-10-01, source: our contract}}"


class GpuPrice(Config):
    """What one card costs."""

    usd_per_hour: float = Field(ge=0, le=1e6)
    date: date
    """When it was so."""
    source: str
    """Who says so."""

    def __str__(self) -> str:
        """E.g. $2.50 an hour (a page, on demand, 2026-08-26)."""
        return f"${self.usd_per_hour:.2f} an hour ({self.source}, {self.date})"


class GridFactor(Config):
    """What a kilowatt-hour emits."""

    gco2_per_kwh: float = Field(ge=0, le=1e5)
    """Grams of CO2 equivalents."""
    year: int = Field(ge=1990, le=2100)
    """That it was measured in."""
    source: str
    """Who says so."""

    def __str__(self) -> str:
        """E.g. 473 g a kWh (Ember, 2024)."""
        return f"{self.gco2_per_kwh:g} g a kWh ({self.source}, {self.year})"


class ApiPrice(Config):
    """A hosted model's price list, US dollars per million tokens."""

    model: str = ""
    """The provider's name of it."""
    provider: str = ""
    """Who asks that price."""
    input: float = Field(ge=0, le=1e6)
    """Prompt tokens."""
    cached_input: float | None = Field(None, ge=0, le=1e6)
    """Prompt tokens found in the provider's cache; None = no discount."""
    output: float = Field(ge=0, le=1e6)
    """Generated tokens, hidden ones included."""
    date: date
    """In force on this day."""
    source: str
    """Where it was read."""


class RoutePrice(Config):
    """One tier that a router sends requests to."""

    name: str = ""
    share: float = Field(ge=0, le=1)
    """Of all requests."""
    usd_per_request: float = Field(ge=0, le=1e6)
    """What one costs there."""


class PriceBook(Config):
    """A file of one's own prices and grid factors."""

    gpus: dict[str, GpuPrice] = Field(default_factory=dict, max_length=10_000)
    """By a card's name or alias."""
    grids: dict[str, GridFactor] = Field(default_factory=dict, max_length=10_000)
    """By the name that `pricing.grid` gives."""
    apis: dict[str, ApiPrice] = Field(default_factory=dict, max_length=10_000)
    """Hosted models by the name that `problems.api_model` gives."""
    routes: tuple[RoutePrice, ...] = Field((), max_length=1000)
    """Tiers of a router and what a request costs in each; the shares add up to 1."""

    def grid(self, name: str) -> GridFactor:
        """A grid of this book, else a bundled one. Raises KvplanError with the closest names."""
        known = bundled_grids() | self.grids
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise KvplanError(f"no grid factor for {name!r}{hint}")
        return known[name]


ROWS: dict[str, type[Config]] = {
    "gpus": GpuPrice,
    "grids": GridFactor,
    "apis": ApiPrice,
    "routes": RoutePrice,
}
"""What a row of each section holds."""


@cache
def bundled_prices() -> dict[str, GpuPrice]:
    """Every card's price by its name in the GPU table."""
    return {name: GpuPrice(**row) for name, row in price_rows().items()}


@cache
def bundled_grids() -> dict[str, GridFactor]:
    """Every bundled grid factor by its name."""
    return {name: GridFactor(**row) for name, row in _load(catalog_dir() / "grids.yaml").items()}


def read_price_book(path: Path) -> PriceBook:
    """Read a file of prices and grid factors. Raises KvplanError in one line for what is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise KvplanError(f"{path}: prices of {path.stat().st_size:,} bytes; at most {MAX_BYTES:,}")
        found = _load(path)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise KvplanError(f"{path}: cannot be read ({complaint_of(error)})") from None
    if not isinstance(found, dict):
        raise KvplanError(f"{path}: holds no prices; write gpus:, grids:, apis: or routes:, e.g. {EXAMPLE}")
    try:
        return PriceBook.model_validate(found)
    except ValidationError as error:
        raise KvplanError(f"{path}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """Where it is and what would do; an unknown key before the one that it stands for is missed."""
    first = min(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    *above, key = map(str, first["loc"] or ("",))
    row = ROWS.get(above[0] if above else key, PriceBook)
    where = ".".join([*above, key])
    if first["type"] == "extra_forbidden":
        known = row.model_fields if above else PriceBook.model_fields
        near = "" if above else did_you_mean(key, known)
        return f"{where}: unknown key{near or '; there are ' + ', '.join(known)}"
    needed = ", ".join(name for name, field in row.model_fields.items() if field.is_required())
    if first["type"] == "missing":
        return f"{where}: is needed; a row has {needed}"
    if first["type"] == "model_type":
        return f"{where}: must be keys ({needed}), not {str(first['input'])[:60]!r}"
    return f"{where}: {first['msg'].splitlines()[0][:120]}"


def _load(path: Path) -> Any:
    return load_yaml(path.read_text(encoding="utf-8"))
