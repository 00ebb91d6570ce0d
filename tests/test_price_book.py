"""Prices and grid factors: every row dated and sourced, one's own file before them, mistakes said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvplan.errors import KvplanError
from kvplan.gpu import get_gpu, gpu_names
from kvplan.price_book import bundled_grids, bundled_prices, read_price_book
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.simulator import simulate

SPEC: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B", "gpu": "h100",
    "workload": {"num_requests": 5, "arrivals": {"kind": "poisson", "rate": 2}, "prompt": 100, "answer": 20},
}  # fmt: skip
OWN = """
gpus: {H100: {usd_per_hour: 1.5, date: 2026-10-01, source: our contract}}
grids: {ours: {gco2_per_kwh: 30, year: 2025, source: the utility}}
"""


def test_every_card_has_a_price_with_date_and_source() -> None:
    assert set(bundled_prices()) == set(gpu_names())
    for name, price in bundled_prices().items():
        assert price.date.year >= 2026
        assert ("assumed" in price.source) or "." in price.source
        assert get_gpu(name).price_per_hour == price.usd_per_hour
        assert str(price.date) in get_gpu(name).price_source
    listed = [p for p in bundled_prices().values() if "assumed" not in p.source]
    assert len(listed) > 20


def test_every_grid_has_a_year_and_a_source() -> None:
    """The world's mean lies between the cleanest and the dirtiest."""
    factors = {name: grid.gco2_per_kwh for name, grid in bundled_grids().items()}
    assert min(factors.values()) < factors["world"] < max(factors.values())
    assert all(grid.year >= 2020 and len(grid.source) > 4 for grid in bundled_grids().values())


def test_own_rows_come_first_and_stated_figures_before_those(tmp_path: Path) -> None:
    """Under any name of the card; dollars, grams and their sources follow."""
    (tmp_path / "p.yaml").write_text(OWN)
    pricing = {"file": str(tmp_path / "p.yaml"), "grid": "ours"}
    found = simulate(parse_scenario(SPEC | {"pricing": pricing})).to_dict()
    assert found["cost"]["usd_per_hour"] == 1.5
    assert found["cost"]["price_source"] == "our contract, 2026-10-01"
    energy = found["energy"]
    assert energy["grid_source"] == "ours: the utility, 2025"
    grams = energy["gco2_per_million_output_tokens"]
    assert grams == pytest.approx(energy["kwh_per_million_output_tokens"] * 30)
    stated = pricing | {"usd_per_gpu_hour": 9.0, "grid_gco2_per_kwh": 100}
    found = simulate(parse_scenario(SPEC | {"pricing": stated})).to_dict()
    assert found["cost"]["usd_per_hour"] == 9.0
    assert found["cost"]["price_source"] == found["energy"]["grid_source"] == "stated"
    other = simulate(parse_scenario(SPEC | {"gpu": "l40s", "pricing": pricing})).to_dict()
    assert other["cost"]["usd_per_hour"] == get_gpu("l40s").price_per_hour


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "holds no prices"), ("gpus: [", "cannot be read"), ("cards: {}", "cards"),
        ("gpus: {h100: {usd_per_hour: -1, date: 2026-01-01, source: x}}", "usd_per_hour"),
        ("gpus: {h100: {usd_per_hour: 1, source: x}}", "date"),
        ("grids: {a: {gco2_per_kwh: .nan, year: 2025, source: x}}", "gco2_per_kwh"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(KvplanError, match=said) as error:
        read_price_book(tmp_path / "p.yaml")
    assert "\n" not in str(error.value)
