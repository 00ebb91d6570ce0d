"""The app's first tab: it says what `estimate` says."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")

from streamlit.testing.v1 import AppTest

from kvplan.charts import memory_bar
from kvplan.demand import Demand
from kvplan.plan import estimate

APP = Path(__file__).resolve().parents[1] / "app.py"


def run(**inputs: object) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60)
    for key, value in inputs.items():
        app.query_params[key] = str(value)
    return app.run()


def test_app_shows_the_plan() -> None:
    """The first page is the plan of its defaults, to the digit."""
    app = run()
    assert not app.exception
    plan = estimate(
        "Qwen/Qwen3-8B", "h100-sxm", demand=Demand(input_len=512, output_len=16384, num_samples=32)
    )
    assert [m.value for m in app.metric] == [
        f"{int(plan.cache_tokens.value):,} tokens",
        f"{plan.max_concurrency.value:.2f}x",
        f"{plan.num_traces:,}",
    ]
    assert "Does not fit" in app.error[0].value


def test_app_answers_a_change_and_a_refusal() -> None:
    """Fewer samples, from the page's address, fit; a split that the engine refuses is one line, no exception."""
    app = run(num_samples=8)
    assert app.number_input(key="num_samples").value == 8
    assert "Fits" in app.success[0].value
    app.selectbox(key="model").set_value("Qwen/Qwen2.5-1.5B-Instruct").run()
    app.select_slider(key="tp").set_value(8).run()
    assert not app.exception
    assert "does not divide" in app.error[0].value


def test_memory_bar_shows_every_row_and_the_limits() -> None:
    """Segments sum to the card's total; the rules carry names."""
    plan = estimate("Qwen/Qwen3-8B", "h100")
    spec = memory_bar(plan).to_dict()
    datasets = list(spec["datasets"].values())
    segments = next(d for d in datasets if "use" in d[0])
    assert sum(s["gib"] for s in segments) == pytest.approx(plan.budget.total.size.value / 2**30)
    names = {d[0]["name"].split()[0] for d in datasets if "name" in d[0]}
    assert names == {"total", "budget"}
    assert spec["layer"][0]["encoding"]["x"]["title"] == "GiB of one GPU"
