"""The app's inputs: all of them in the link, extremes, mistakes, runs refused and cancelled; never an exception."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")
pytest.importorskip("pandas")

from app_driver import APP, calm, metrics, one_line, press, run, widgets
from streamlit.testing.v1 import AppTest

from kvplan.pages.sidebar import PASTED
from kvplan.pages.uploads import MAX_BYTES

TABS = ("Estimate", "Simulate", "Strategies", "Recommend", "Calibration")
NOT_IN_THE_LINK = {"config_text", "log"}
"""Texts too long for an address."""
LINK: dict[str, object] = {
    "model": "Qwen/QwQ-32B", "gpu": "h200", "engine": "sglang", "tp": 2, "kv_cache_dtype": "fp8", "max_model_len": 9000,
    "max_num_seqs": 77, "max_num_batched_tokens": 4096, "gpu_memory_utilization": 0.8, "block_size": 32,
    "kv_offloading_size": 64, "pp": 2,
    "dp": 4, "dcp": 2, "quantization": "fp8", "enable_prefix_caching": False, "enable_expert_parallel": True,
    "input_len": 100, "thinking_len": 3000, "answer_len": 300, "spread": 0.3, "num_samples": 3, "num_requests": 2,
    "log_is_mine": True, "source": "From the sidebar", "num_prompts": 9, "request_rate": 1.5, "slo_ttft": 900.0,
    "slo_tpot": 50.0, "slo_e2el": 8000.0, "seed": 7, "strategies": "strategy_pruning", "strategies_set": "seed=3",
    "carry": 0.5, "slo_visible": 100.0, "slo_end": 100.0, "slo_share": 0.8, "cards": ["a10g"], "ranks": [4],
    "dtypes": ["fp8"], "max_gpus": 64, "profile": "l40s-vllm", "measurements": "vllm-cpu-0.32.jsonl",
}  # fmt: skip
"""Every input of every tab, none of them as the app would have it."""


@pytest.mark.parametrize(
    "inputs",
    [
        {"tp": 16, "model": "Qwen/Qwen2.5-1.5B-Instruct"},
        {"thinking_len": 1 << 24, "answer_len": 1 << 24, "input_len": 1 << 24},
        {"max_model_len": 1},
        {"max_num_seqs": 1 << 20, "max_num_batched_tokens": 1},
        {"gpu_memory_utilization": 0.01},
        {"model": "Qwen/Qwen3-8B", "kv_offloading_size": 100},
        {"gpu": "rtx-4090", "model": "deepseek-ai/DeepSeek-R1"},
        {"pp": 8, "dp": 16, "enable_expert_parallel": "true", "model": "Qwen/Qwen3-30B-A3B"},
        {"num_samples": 100_000, "num_requests": 100_000, "spread": 1.5},
        {"model": "Qwen/Qwen3-Next-80B-A3B-Thinking", "gpu": "h200", "tp": 2},
        {"model": "no such model", "tp": "seven", "num_samples": -3},
    ],
)
def test_extremes_are_answered(inputs: dict[str, object]) -> None:
    """Whatever the inputs, there is one verdict, and no exception; a refusal is a line."""
    app = run(**inputs)
    assert len(app.error) + len(app.success) + len(app.warning) == 1


@pytest.mark.parametrize("tab", TABS[1:])
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"source": "Upload", "measurements": "none", "profile": "no such profile", "strategies": "no such"},
        {"thinking_len": 0, "answer_len": 1, "input_len": 1, "spread": 0, "num_prompts": 1, "slo_end": 0},
        {
            "source": "From the sidebar",
            "thinking_len": 1 << 24,
            "spread": 1.5,
            "num_prompts": 1_000_000,
            "carry": 1e6,
        },
        {"source": "From the sidebar", "engine": "tensorrt-llm", "model": PASTED, "request_rate": 1e6},
        {
            "set": "x" * 4000,
            "strategies_set": "=",
            "source": "From the sidebar",
            "pp": 8,
            "dcp": 8,
            "max_num_seqs": 1,
        },
    ],
)
def test_every_tab_bears_extremes(tab: str, inputs: dict[str, object]) -> None:
    """Before anything is run: at most one line of complaint, no exception."""
    assert len(run(tab=tab, **inputs).error) <= 1


def linked(tab: str) -> AppTest:
    """The app as a link with all of `LINK` opens it."""
    app = AppTest.from_file(str(APP), default_timeout=120)
    for key, value in LINK.items():
        words = str(value).lower() if isinstance(value, bool) else str(value)
        app.query_params[key] = value if isinstance(value, list) else words
    app.query_params["tab"] = tab
    return calm(app.run())


def test_every_input_is_part_of_the_link() -> None:
    """A link with a value for every input opens every input so; no tab has an input that links do not know."""
    opened = widgets(linked("Estimate")) | widgets(linked("Calibration"))
    assert {key: opened[key].value for key in LINK} == LINK
    for inputs in ({}, {"model": PASTED}, {"source": "From the sidebar"}):
        for tab in TABS:
            for key, widget in widgets(run(tab=tab, **inputs)).items():
                assert key in NOT_IN_THE_LINK or widget.proto.query_param_key == key, key


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "paste a config.json"),
        ("{not json", "JSON"),
        ("[1, 2]", "object"),
        pytest.param("[" * 100_000, "nested", id="nested"),
        ('{"architectures": ["NoSuchForCausalLM"], "hidden_size": 8}', "NoSuch"),
        pytest.param(
            '{"a": "' + "x" * MAX_BYTES + '"}', "2.0 MiB; the app takes up to 2 MiB", id="too large"
        ),
        ('{"architectures": ["Qwen3ForCausalLM"]}', ""),
    ],
)
def test_a_bad_config_is_one_line(text: str, complaint: str) -> None:
    app = run(model=PASTED)
    calm(app.text_area(key="config_text").set_value(text).run())
    assert complaint in one_line(app)
    calm(
        app.file_uploader(key="config_file")
        .set_value(("config.json", text.encode(), "application/json"))
        .run()
    )
    assert complaint in one_line(app)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("engine.max_num_sequences=64", "did you mean"),
        ("no equals sign", "key.path=value"),
        ("model=../../etc/passwd", "bundled"),
        ("workload.trace={path: x.csv, format: azure}", ""),
        ("step_time.profile=/etc/passwd", "bundled profiles"),
        ("workload.num_requests=20000000", "kvplan simulate"),
    ],
)
def test_a_bad_change_is_one_line(change: str, complaint: str) -> None:
    app = run(tab="Simulate", scenario="chat", set=change)
    assert complaint in one_line(app)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"model: Qwen/Qwen3-8B\ngpu: h100\nworkload: {num_request: 4}\n", "did you mean num_requests?"),
        (b"model: [", "YAML"),
        (b"\xff\xfe\x00", ""),
        (b"", ""),
        (b"model: /etc/passwd\ngpu: h100\nworkload: {num_requests: 4}\n", "bundled"),
        pytest.param(b"#" * (MAX_BYTES + 1), "the app takes up to 2 MiB", id="too large"),
    ],
)
def test_a_bad_scenario_file_is_one_line(content: bytes, complaint: str) -> None:
    app = run(tab="Simulate", source="Upload")
    assert "upload a scenario" in one_line(app)
    calm(app.file_uploader(key="scenario_file").set_value(("mine.yaml", content, "text/yaml")).run())
    assert complaint in one_line(app)


def test_a_bad_strategy_is_one_line() -> None:
    app = run(tab="Strategies", strategies_set="problems.strategies=[no_such]")
    assert "no_such" in app.error[0].value


def test_an_empty_search_is_one_line() -> None:
    app = run(tab="Recommend")
    calm(app.multiselect(key="cards").set_value([]).run())
    assert "at least one card" in app.error[0].value
    app = run(tab="Recommend", slo_end=0)
    assert "too slow" in press(app, "recommend").error[0].value


def test_a_scenario_that_does_not_fit_is_refused() -> None:
    app = press(run(tab="Simulate", scenario="chat", set="model=Qwen/QwQ-32B\ngpu=l40s"), "simulate")
    assert "no memory left" in app.error[0].value


def test_a_run_can_be_cancelled() -> None:
    """What was simulated so far is shown, and says so; the next run starts afresh."""
    app = run(tab="Simulate", scenario="chat", set="workload.num_requests=1000000")
    calm(app.button(key="simulate_run").click().run())
    calm(app.button(key="simulate_cancel").click().run())
    deadline = time.monotonic() + 60
    while not any("Cancelled" in w.value for w in app.warning) and time.monotonic() < deadline:
        time.sleep(0.1)
        calm(app.run())
    assert any("Cancelled" in warning.value for warning in app.warning)
    calm(app.text_area(key="set").set_value("workload.num_requests=10").run())
    assert metrics(press(app, "simulate"))["Completed"] == "10 of 10"


def test_a_long_run_asks_first() -> None:
    """After its first seconds it says how long it would take, and waits; no is an answer."""
    app = run(tab="Simulate", scenario="chat", set="workload.num_requests=1000000")
    calm(app.button(key="simulate_run").click().run())
    deadline = time.monotonic() + 60
    while not any("This would take" in w.value for w in app.warning) and time.monotonic() < deadline:
        time.sleep(0.2)
        calm(app.run())
    assert any(button.key == "simulate_go_on" for button in app.button)
    calm(app.button(key="simulate_cancel").click().run())
    while any(button.key == "simulate_cancel" for button in app.button) and time.monotonic() < deadline:
        time.sleep(0.1)
        calm(app.run())
    assert any("Cancelled" in warning.value for warning in app.warning)
