"""A strategy beside the same at a hosted API: bills, hidden tokens, break-even, routes, own prices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_compare import SHORT, engine

from kvplan.cli.main import run
from kvplan.formulas.accounting import api_prices
from kvplan.ground.errors import KvplanError
from kvplan.ground.price_book import ApiPrice, RoutePrice
from kvplan.scenario.schema import parse_scenario
from kvplan.search.beside_api import BilledTokens, bill, bill_text, route_day
from kvplan.search.comparison import Comparison, compare


def compared(folder: Path | None = None, prices: str = "", **more: object) -> Comparison:
    told: dict[str, object] = {"num_problems": 8, "quality": SHORT, "strategies": ["single_pass"], **more}
    pricing = {}
    if folder is not None:
        (folder / "own.yaml").write_text(prices)
        pricing = {"file": str(folder / "own.yaml")}
    scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "problems": told, "pricing": pricing})
    return compare(scenario, setups=engine(), ranges=False, sensitivity=False)


def test_a_bill_by_hand() -> None:
    """1,000 prompt tokens at $2, 300 visible and 700 hidden at $10 a million: $0.012, 7/12 of it hidden."""
    price = ApiPrice(model="m", input=2.0, output=10.0, date="2026-01-01", source="here")
    found = bill(BilledTokens(10, 10_000, 0, 3_000, 7_000), price, 0.5, usd_per_hour=3.0)
    assert found.usd_per_problem == pytest.approx(0.012)
    assert found.hidden_share == pytest.approx(7 / 12)
    assert found.usd_per_correct == pytest.approx(0.024)
    assert found.break_even_per_hour == pytest.approx(250)
    text = bill_text("one", found, 0.01, problems_per_hour=100)
    assert "58% of it hidden thinking, against $0.0100 on these GPUs" in text
    assert "from 250 problems an hour, more than the 100 that they carry" in text
    assert "here, 2026-01-01" in text


def test_a_row_and_its_bill_agree() -> None:
    """The column, the bill and the break-even are one figure at the row's own accuracy and price an hour."""
    found = compared(api_model="deepseek-r1")
    row, bills = found.rows[0], {one.model: one for one in found.bills(0)}
    assert bills.keys() == api_prices().keys()
    assert row.api_usd_per_problem == bills["deepseek-r1"].usd_per_problem
    assert row.api_usd_per_correct == pytest.approx(row.api_usd_per_problem / row.accuracy)
    assert row.break_even_per_hour == pytest.approx(row.usd_per_hour / row.api_usd_per_problem)
    assert row.usd_per_correct == pytest.approx(row.usd_per_hour / row.problems_per_hour / row.accuracy)
    document = found.to_dict()
    assert [one["usd_per_problem"] for one in document["beside_api"]] == sorted(
        b.usd_per_problem for b in bills.values()
    )
    assert all(one["date"] and one["source"] for one in document["beside_api"])
    assert "at deepseek-r1 (" in str(found)


def test_own_prices_come_first(tmp_path: Path) -> None:
    """A file's hosted models stand before the bundled ones, a new name beside them; an unknown one is one line."""
    own = "{input: 0, output: 1000, date: 2026-10-01, source: our contract}"
    found = compared(tmp_path, f"apis: {{gpt-5: {own}, ours: {own}}}", api_model="ours")
    bills = {one.model: one for one in found.bills(0)}
    assert (
        bills["gpt-5"].usd_per_problem == bills["ours"].usd_per_problem == found.rows[0].api_usd_per_problem
    )
    assert bills["ours"].price.source == "our contract"
    with pytest.raises(KvplanError, match="no price for 'our'; did you mean ours"):
        compared(tmp_path, f"apis: {{ours: {own}}}", api_model="our")


def test_a_router_over_a_day(tmp_path: Path) -> None:
    """100,000 requests a day, 85 / 10 / 5 % at $0.001, 0.01 and 0.05: $435 against $5,000 all at the dearest."""
    tiers = ((0.85, 0.001), (0.10, 0.01), (0.05, 0.05))
    day = route_day([RoutePrice(share=s, usd_per_request=usd) for s, usd in tiers], 100_000)
    assert day is not None
    assert day.usd_per_day == pytest.approx(435)
    assert day.usd_per_day_dearest == pytest.approx(5000)
    rows = ", ".join(f"{{share: {s}, usd_per_request: {usd}}}" for s, usd in tiers)
    found = compared(tmp_path, f"routes: [{rows}]")
    assert "100,000 requests a day, routed: $435.00, all at the dearest tier: $5,000.00" in " ".join(
        str(found).split()
    )
    assert found.to_dict()["routing"]["usd_per_day"] == pytest.approx(435)
    with pytest.raises(KvplanError, match="must add up to 1"):
        route_day([RoutePrice(share=0.5, usd_per_request=1)], 10)


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page with the bill of every hosted model, dated; columns of the API need a name."""
    pytest.importorskip("vl_convert")
    file, page = tmp_path / "s.yaml", tmp_path / "page.html"
    problems = {
        "num_problems": 3,
        "quality": SHORT,
        "strategies": ["single_pass", {"strategy": "best_of_n", "n": 2}],
    }
    file.write_text(json.dumps({"model": "Qwen/Qwen3-8B", "problems": problems}))
    flags = ["--quiet", "--no-range", "--api", "gpt-5", "--columns", "api", "--report", str(page)]
    assert run(["compare", str(file), *flags]) == 0
    out = capsys.readouterr().out
    assert "API $/correct" in out
    assert "even/h" in out
    text = page.read_text()
    assert "Beside the API" in text
    for name, price in api_prices().items():
        assert f"<td>{name}</td>" in text
        assert str(price.date) in text
    assert run(["compare", str(file), "--quiet", "--columns", "api"]) == 2
    assert "--api NAME" in capsys.readouterr().err
