"""The app's inputs: all are in the link, links keep their word; extremes, mistakes, runs refused and cancelled."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")
pytest.importorskip("pandas")

from app_driver import APP, calm, is_running, one_line, press, rows, run, said, wait, widgets
from streamlit.testing.v1 import AppTest

from kvplan.pages import links, memory_tab, verdict
from kvplan.pages.uploads import MAX_BYTES

TABS = ("Estimate", "Simulate", "Strategies", "Recommend", "Calibration")
NOT_IN_THE_LINK = {"config_text", "log"}
"""Texts too long for an address."""
LINK: dict[str, object] = {
    "model": "Qwen/QwQ-32B", "gpu": "8xh200", "engine": "sglang", "tp": "2", "kv_cache_dtype": "fp8",
    "max_model_len": "40k",
    "max_num_seqs": "77", "max_num_batched_tokens": "4096", "gpu_memory_utilization": "0.8", "block_size": "32",
    "kv_offloading_size": "64", "file_tier": "remote",
    "pp": "2", "dp": "2", "dcp": "2", "quantization": "fp8", "enable_prefix_caching": False,
    "enable_expert_parallel": True, "enforce_eager": True, "speculative_method": "ngram", "num_speculative_tokens": "2",
    "users": "30", "thinking": "3K", "prompt": "100", "answer": "300", "slo": "visible<60s", "typical_thinking": "900",
    "pause": "30", "rate": "0.5", "max_dollars_per_hour": "90", "spare": "1", "day": "office-hours", "gpus": ["a10g"],
    "num_samples": "3", "num_requests": "2", "log_is_mine": True, "scenario_source": "Bundled scenario",
    "scenario": "chat", "scenario_set": "engine.max_num_seqs=9", "owners": True,
    "strategies_source": "Bundled scenario",
    "strategies": "strategy_pruning", "strategies_set": "problems.num_problems=4", "of_question": False,
    "search_source": "Bundled scenario", "search": "recommend_grpo", "search_set": "search.max_gpus=9",
    "profile": "l40s-vllm", "measurements": "vllm-cpu-0.32.jsonl",
}  # fmt: skip
"""Every input of every tab, none of them as the app would have it."""
ELSEWHERE: dict[str, object] = {"num_prompts": "9", "seed": "7"}
"""Those that stand in the place of a scenario's name."""
DEFAULTS_ARE = {"strategies_source": "Bundled scenario"}


@pytest.mark.parametrize(
    "inputs",
    [
        {"tp": 16, "model": "Qwen/Qwen2.5-1.5B-Instruct", "gpu": "h100-sxm"},
        {"thinking": "10000000", "answer": "10000000", "prompt": "10000000"},
        {"max_model_len": 1},
        {"max_num_seqs": 1 << 20, "max_num_batched_tokens": 1},
        {"gpu_memory_utilization": 0.01},
        {"model": "Qwen/Qwen3-8B", "kv_offloading_size": 100},
        {"model": "Qwen/Qwen3-8B", "file_tier": "local"},
        {"gpu": "rtx-4090", "model": "deepseek-ai/DeepSeek-R1"},
        {"gpu": "h100-sxm", "pp": 8, "dp": 16, "enable_expert_parallel": "true", "model": "Qwen/Qwen3-30B-A3B"},
        {"num_samples": 1000, "num_requests": 1000},
        {"model": "Qwen/Qwen3-Next-80B-A3B-Thinking", "gpu": "h200", "tp": 2},
        {"thinking": "0", "answer": "1", "prompt": "1", "users": "1"},
        {"thinking": "9" * 60_000},
        {"users": "1e9"},
        {"users": "10000001"},
        {"slo": "ttft<soon"},
        {"rate": "-1"},
        {"model": "![x](http://a.b/c.png)"},
        {"gpu": "/etc/passwd.yaml"},
        {"gpu": "local"},
        {"gpu": "gib=20,gbps=672,tflops=44,name=[x](http://a.b)"},
    ],
)  # fmt: skip
def test_extremes_are_answered(inputs: dict[str, object]) -> None:
    """Whatever the inputs, there is one verdict above the tabs, and no exception; a refusal is a line."""
    app = run(tab="Calibration", **inputs)
    told = [*app.error, *app.success, *app.warning, *app.info]
    assert 1 <= len(told) <= 2  # the second: that no profile times this card
    assert len(app.error) <= 1
    assert not any("](http" in box.value for box in told)


@pytest.mark.parametrize("tab", TABS[1:])
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {
            "scenario_source": "Your scenario",
            "strategies_source": "Your scenario",
            "search_source": "Your scenario",
        },
        {"thinking": "0", "answer": 1, "prompt": 1, "num_prompts": 1},
        {"thinking": "20K", "num_prompts": 1_000_000, "rate": "1e6"},
        {"engine": "tensorrt-llm", "gpu": "2xb200"},
        {
            "scenario_source": "Bundled scenario",
            "scenario_set": "x" * 4000,
            "strategies_set": "=",
            "pp": 8,
            "gpu": "h200",
        },
    ],
)
def test_every_tab_bears_extremes(tab: str, inputs: dict[str, object]) -> None:
    """Before anything is run: at most one line of complaint in a tab, no exception."""
    assert len(run(tab=tab, **inputs).error) <= 1


# --- links ----------------------------------------------------------------------------------------


def linked(tab: str, **more: object) -> AppTest:
    """The app as a link with all of `LINK` opens it."""
    app = AppTest.from_file(str(APP), default_timeout=120)
    for key, value in (LINK | more).items():
        words = str(value).lower() if isinstance(value, bool) else str(value)
        app.query_params[key] = value if isinstance(value, list) else words
    app.query_params["tab"] = tab
    return calm(app.run())


def test_every_input_is_part_of_the_link() -> None:
    """A link with a value for every input opens every input so; no tab has an input that links do not know, and every
    name that links may say is an input's."""
    opened = widgets(linked("Estimate")) | widgets(linked("Calibration"))
    assert {key: opened[key].value for key in LINK} == LINK
    other = widgets(run(**ELSEWHERE))
    assert {key: other[key].value for key in ELSEWHERE} == ELSEWHERE
    seen, files = {"tab"}, {"kv_offloading_size": "20", "file_tier": "local"}
    for inputs in ({}, {"scenario_source": "Your scenario"}, {"speculative_method": "mtp"}, files):
        for tab in TABS:
            for key, widget in widgets(run(tab=tab, **inputs)).items():
                assert key in NOT_IN_THE_LINK or widget.proto.query_param_key == key, key
                seen.add(key)
    assert seen | set(LINK) >= links.KEYS - links.VIEWS


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"tab": "Estimat"}, "tab: there is no 'Estimat'; did you mean Estimate"),
        ({"modle": "x"}, "No input is called 'modle'; did you mean model"),
        ({"tp": "3"}, "tp: there is no '3'"),
        ({"engine": "vlm"}, "did you mean vllm"),
        ({"tab": "Simulate", "scenario_source": "Bundled scenario", "scenario": "chta"}, "did you mean chat"),
        ({"tab": "Strategies", "strategies": "strategy_prunning"}, "did you mean strategy_pruning"),
        ({"profile": "h100"}, "profile: there is no 'h100'"),
        ({"enable_prefix_caching": "maybe"}, "there is no 'maybe'"),
        ({"![x](http://a.b/c.png)": "1"}, "No input is called"),
        ({"day": "[a](http://b.c)"}, "day: there is no"),
        ({"tp": ["1", "8"]}, "tp: said 2 times"),
        ({"tab": "Simulate", "scenario": "chat"}, "scenario: this link says it, but its scenario_source"),
        ({"num_speculative_tokens": "2"}, "its speculative_method does not ask for it"),
        ({"model": ["Qwen/Qwen3-8B", "Qwen/QwQ-32B"]}, "model: said 2 times"),
    ],
)
def test_a_link_that_says_what_is_not_there_answers_nothing(
    inputs: dict[str, object], complaint: str
) -> None:
    """The fault and the closest names, no other question's answer in its place; its text stays text; one may go on."""
    app = run(**inputs)
    assert complaint in said(app, "error")
    assert not app.metric
    assert not app.success
    assert "](http" not in app.error[0].value
    calm(app.run())
    assert complaint in said(app, "error")
    calm(app.button(key="link_rest").click().run())
    assert complaint not in said(app, "error")


def test_an_unknown_model_or_card_is_no_other_one() -> None:
    assert "did you mean Qwen/Qwen3-8B" in one_line(run(model="Qwen/Qwen3-8C"))
    assert "did you mean h100" in one_line(run(gpu="2xh10"))


def test_links_of_elsewhere_may_hang_something_on() -> None:
    assert not run(utm_source="x", embed="true").error


def test_the_verdict_comes_before_the_tabs_unless_the_link_may_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newcomer reads it while the browser loads the rest; what a link says is answered once all of it is read."""
    drawn: list[str] = []
    for name, module in (("verdict", verdict), ("tabs", memory_tab)):
        which = "render" if name == "verdict" else "inputs"
        real = getattr(module, which)
        monkeypatch.setattr(module, which, lambda *told, n=name, r=real: drawn.append(n) or r(*told))
    app = run()
    assert drawn[:2] == ["verdict", "tabs"]
    assert drawn.count("verdict") == drawn.count("tabs")
    drawn.clear()
    app = run(thinking="8K")
    assert drawn[:2] == ["tabs", "verdict"]
    drawn.clear()
    calm(app.run())
    assert drawn[:2] == ["verdict", "tabs"]
    drawn.clear()
    run(thinking="8K", tp="3")
    assert "verdict" not in drawn


def test_a_complaint_does_not_repeat_a_book() -> None:
    change = "x={" + "[" * 60_000
    app = run(tab="Simulate", scenario_source="Bundled scenario", scenario="chat", scenario_set=change)
    assert len(one_line(app)) < 2100  # every mark of it escaped


def test_a_view_is_part_of_the_link() -> None:
    """Which requests are looked at, of a run that the link starts."""
    inputs = {
        "users": "50",
        "thinking": "512",
        "num_prompts": "120",
        "first_request": "40",
        "run": "simulate",
    }
    app = wait(run(tab="Simulate", **inputs), "simulate")
    calm(app.run())
    assert app.slider(key="first_request").value == 40


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{not json", "JSON"),
        ("[1, 2]", "object"),
        pytest.param("[" * 100_000, "nested", id="nested"),
        pytest.param("9" * 60_000, "", id="digits"),
        ('{"architectures": ["NoSuchForCausalLM"], "hidden_size": 8}', "NoSuch"),
        pytest.param(
            '{"a": "' + "x" * MAX_BYTES + '"}', "2.0 MiB; the app takes up to 2 MiB", id="too large"
        ),
        ('{"architectures": ["Qwen3ForCausalLM"]}', ""),
    ],
)
def test_a_bad_config_is_one_line(text: str, complaint: str) -> None:
    app = run()
    calm(app.text_area(key="config_text").set_value(text).run())
    assert complaint in one_line(app)
    assert "kvplan-" not in one_line(app)
    file = ("config.json", text.encode(), "application/json")
    calm(app.file_uploader(key="config_file").set_value(file).run())
    assert complaint in one_line(app)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("engine.max_num_sequences=64", "did you mean"),
        ("no equals sign", "key.path=value"),
        ("model=../../etc/passwd", "bundled"),
        ("gpu=/etc/passwd.yaml", "gpu"),
        ("pricing.file=/etc/passwd", "pricing.file"),
        ("workload.trace={path: x.csv, format: azure}", ""),
        ("step_time.profile=/etc/passwd", "bundled profiles"),
        ("workload.num_requests=20000000", "kvplan simulate"),
        ("problems={strategies: [{strategy: best_of_n, n: 1000000000}]}", ""),
        ("problems={num_problems: 100000, strategies: [{strategy: best_of_n, n: 64}]}", "branches"),
    ],
)
def test_a_bad_change_is_one_line(change: str, complaint: str) -> None:
    app = run(tab="Simulate", scenario_source="Bundled scenario", scenario="chat", scenario_set=change)
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
    app = run(tab="Simulate", scenario_source="Your scenario")
    assert not app.error  # an invitation, not a complaint
    calm(app.file_uploader(key="scenario_file").set_value(("mine.yaml", content, "text/yaml")).run())
    assert complaint in one_line(app)


def test_a_bad_strategy_is_one_line() -> None:
    assert "no_such" in one_line(run(tab="Strategies", strategies_set="problems.strategies=[no_such]"))


def test_a_search_without_targets_is_one_line() -> None:
    inputs = {
        "search_source": "Bundled scenario",
        "search": "recommend_qwq_500_users",
        "search_set": "slo={}",
    }
    assert "too slow" in one_line(press(run(tab="Recommend", **inputs), "recommend"))


def test_a_scenario_that_does_not_fit_is_refused() -> None:
    inputs = {
        "scenario_source": "Bundled scenario",
        "scenario": "chat",
        "scenario_set": "model=Qwen/QwQ-32B\ngpu=l40s",
    }
    assert "no memory left" in one_line(press(run(tab="Simulate", **inputs), "simulate"))


# --- cancelling -----------------------------------------------------------------------------------

LONG = {
    "tab": "Simulate",
    "scenario_source": "Bundled scenario",
    "scenario": "chat",
    "scenario_set": "workload.num_requests=1000000",
}


def test_a_run_can_be_cancelled() -> None:
    """Cancelling says so at once; what was simulated so far is shown; the next run starts afresh."""
    app = run(**LONG)
    calm(app.button(key="simulate_run").click().run())
    clicked = time.monotonic()
    calm(app.button(key="simulate_cancel").click().run())
    while "Cancelled" not in said(app, "warning") and time.monotonic() - clicked < 20:
        calm(app.run())
    assert (
        time.monotonic() - clicked < 5
    )  # a page of the test harness takes its time; the job itself is timed elsewhere
    wait(app, "simulate")
    calm(app.run())
    assert "Cancelled" in said(app, "warning")
    calm(app.text_area(key="scenario_set").set_value("workload.num_requests=10").run())
    press(app, "simulate")
    assert rows(app, "Figure")["Completed"] == "10 of 10"


def test_a_long_run_asks_first() -> None:
    """After its first seconds it says how long it would take, and waits; no is an answer."""
    app = run(**LONG)
    calm(app.button(key="simulate_run").click().run())
    deadline = time.monotonic() + 60
    while "A smaller load" not in said(app, "warning") and time.monotonic() < deadline:
        time.sleep(0.2)
        calm(app.run())
    assert any(button.key == "simulate_go_on" for button in app.button)
    calm(app.button(key="simulate_cancel").click().run())
    wait(app, "simulate")
    calm(app.run())
    assert not is_running(app, "simulate")
    assert "Cancelled" in said(app, "warning")


def test_cards_that_hold_no_copy_say_what_to_choose() -> None:
    """No tab names a button that is not there."""
    app = run(tab="Recommend", model="Qwen/QwQ-32B", gpu="1xrtx-4090")
    assert "Does not fit" in said(app, "error")
    assert not any(button.key == "plan_run" for button in app.button)
    assert "Press" not in said(app, "info")
    assert "Estimate" in said(app, "info")
    ready = run(tab="Recommend", gpu="2xl40s")
    label = next(button.label for button in ready.button if button.key == "plan_run")
    assert f"Press {label} above" in said(ready, "info")
