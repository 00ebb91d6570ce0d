"""Prices and grid factors: every row dated and sourced, one's own file before them, mistakes said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvplan.engines.flags import NEWEST
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu, gpu_names
from kvplan.ground.price_book import bundled_grids, bundled_prices, read_price_book
from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.vllm import rules
from kvplan.search.grid import parse_axis
from kvplan.search.recommending import recommend
from kvplan.search.sweeping import sweep_rows
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
        ("", "holds no prices.*usd_per_hour: 2.10"), ("gpu: {}", "gpu: unknown key; did you mean gpus"),
        ("gpus: {h100: {price: 3}}", "gpus.h100.price: unknown key; there are usd_per_hour, date, source"),
        ("gpus: {h100: 3.0}", r"gpus.h100: must be keys \(usd_per_hour, date, source\), not '3.0'"),
        ("gpus: {h100: {usd_per_hour: 3}}", "gpus.h100.date: is needed; a row has usd_per_hour, date, source"),
        ("routes: [{usd_per_request: 1}]", "routes.0.share: is needed; a row has share, usd_per_request"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(KvplanError, match=said) as error:
        read_price_book(tmp_path / "p.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpus: {h10: {usd_per_hour: 1, date: 2026-10-01, source: ours}}", "did you mean h100"),
        ("gpus: {h100: {usd_per_hour: 1, date: 2026-10-01, source: ours},\n"
         "       h100: {usd_per_hour: 2, date: 2026-10-01, source: ours}}", "key 'h100' is there twice, line 2"),
        ("grids: {}\ngrids: {}", "key 'grids' is there twice, line 2"),
    ],
)  # fmt: skip
def test_a_row_that_would_price_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """An unknown card and a key said twice, by every command that prices, before it works."""
    (tmp_path / "p.yaml").write_text(text)
    scenario = parse_scenario(SPEC | {"pricing": {"file": str(tmp_path / "p.yaml")}})
    searched = {"slo": {"ttft_ms": 1e5}, "pricing": {"file": str(tmp_path / "p.yaml")}}
    for ask in (
        lambda: simulate(scenario),
        lambda: recommend(SPEC | searched, {"gpu": ["h100", "h200"]}),
        lambda: sweep_rows(scenario, {"gpu": ["h100", "h200"]}),
    ):
        with pytest.raises(KvplanError, match=said):
            ask()


def test_a_card_of_ones_own_has_its_price_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the scenario names it."""
    card = get_gpu("h100").model_dump(mode="json") | {"name": "ours", "aliases": []}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    (tmp_path / "p.yaml").write_text(
        "gpus: {./card.yaml: {usd_per_hour: 7.5, date: 2026-10-01, source: ours}}"
    )
    monkeypatch.chdir(tmp_path)
    said = SPEC | {"gpu": "./card.yaml", "pricing": {"file": str(tmp_path / "p.yaml")}}
    assert simulate(parse_scenario(said)).to_dict()["cost"]["usd_per_hour"] == 7.5


def test_keys_said_twice_are_refused_wherever_yaml_is_read(tmp_path: Path) -> None:
    """In a card's file and in the values of an axis too."""
    (tmp_path / "card.yaml").write_text("gib: 20\ngbps: 600\ngib: 24\n")
    with pytest.raises(KvplanError, match="key 'gib' is there twice, line 3"):
        get_gpu(str(tmp_path / "card.yaml"))
    with pytest.raises(KvplanError, match="key 'n' is there twice"):
        parse_axis("problems.strategies=[{strategy: best_of_n, n: 4, n: 8}]")


def test_the_newest_known_version_is_the_scheduling_rules_own() -> None:
    assert NEWEST["vllm"] == rules.NEWEST
