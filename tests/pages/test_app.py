"""What each tab shows beyond the figures that `test_app_parity.py` holds to the command line and to notebooks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")
pytest.importorskip("pandas")

from app_driver import (
    LOG,
    calm,
    dots,
    metrics,
    one_line,
    press,
    rows,
    run,
    said,
    shown_scenario,
    wait,
    words,
)

from kvplan.calibrate.measurements import read_measurements
from kvplan.cli.main import run as cli
from kvplan.engines.flags import EngineArgs
from kvplan.ground.files import measurements_dir
from kvplan.memory.demand import Demand
from kvplan.memory.forward import estimate
from kvplan.models.load import find_bundled
from kvplan.pages.uploads import MAX_BYTES
from kvplan.profiles.profile import load_profile
from kvplan.search.recommending import recommend
from kvplan.simulation.deploy import told_tier

Printed = Callable[..., Any]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a command prints with --json."""

    def of(*words: str) -> Any:
        capsys.readouterr()
        cli([*words, "--json"])
        return json.loads(capsys.readouterr().out)

    return of


# --- Estimate --------------------------------------------------------------------


def of(output_len: int, max_model_len: int | None = None) -> list[str]:
    """Flags of the longest output, and of the context that the question's longest request needs."""
    context = [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
    return ["--output-len", str(output_len), *context]


LOCAL_FILES = json.dumps({
    "kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
        "spec_name": "TieringOffloadingSpec",
        "secondary_tiers": [{"type": "fs", "root_dir": "/mnt/kv", "locality": "LOCAL"}],
    }
})  # fmt: skip


def test_each_tier_is_told_as_the_command_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Slots and break-even of host memory, what files below it hold and from which length they pay, word for word."""
    flags = ["--kv-offloading-size", "200", "--kv-transfer-config", LOCAL_FILES, "--input-len", "512"]
    capsys.readouterr()
    cli(["estimate", "Qwen/Qwen3-8B", "--gpu", "1xh100-sxm", *flags, *of(16640, 24576)])
    printed = " ".join(capsys.readouterr().out.replace("`", "").split())
    shown = said(run(kv_offloading_size="200", file_tier="local"), "markdown").splitlines()
    for begins in ("Host tier: 200 GiB, ", "A prefix that returns loads", "Files below it (nvme4, "):
        (line,) = (text for text in shown if text.startswith(begins))
        assert line in printed


def test_a_pasted_config_is_planned_like_the_bundled_one() -> None:
    bundled = find_bundled("Qwen/Qwen3-8B")
    assert bundled is not None
    app = run()
    calm(app.text_area(key="config_text").set_value(bundled.read_text()).run())
    assert metrics(app) == metrics(run())
    assert "your config.json" in said(app, "caption")
    assert "requests of your model" in said(app, "info")
    assert app.selectbox(key="model").disabled  # the one in the sentence is not what is answered
    assert not run().selectbox(key="model").disabled
    assert any("your-model" in code.value for code in app.code)


# --- Simulate: seven -------------------------------------------------------------------------------


def test_simulate_takes_the_question() -> None:
    """Users, lengths, targets, cards and engine of the file shown are the sentence's; what is changed is said."""
    app = run(
        tab="Simulate",
        users=7,
        thinking="2K",
        prompt=300,
        gpu="4xh200",
        tp=2,
        slo="tpot<40ms",
        engine="sglang",
    )
    told = shown_scenario(app)
    assert told.workload.arrivals.model_dump()["concurrency"] == 7
    assert (told.workload.thinking.high, told.workload.prompt.median) == (2048, 300)  # type: ignore[union-attr]
    assert (told.gpu, told.replicas, told.engine.tensor_parallel_size, told.slo.tpot_ms) == (
        "h200",
        2,
        2,
        40.0,
    )
    assert told.sglang is not None
    assert "2 copies on 2 x h200" in said(app, "caption")


def test_the_drive_of_the_files_is_that_of_the_scenario() -> None:
    """As estimated it is the flag's; another one stands in the file shown, below the same host memory."""
    inputs = {"tab": "Simulate", "kv_offloading_size": "20", "file_tier": "remote"}
    usual, other = shown_scenario(run(**inputs)), shown_scenario(run(**inputs, file_drive="nvme5"))
    assert usual.engine.kv_transfer_config is not None
    assert other.engine.kv_transfer_config is None
    assert [tier.drive for tier in told_tier(usual).secondary_tiers] == ["cephfs"]
    assert [tier.drive for tier in told_tier(other).secondary_tiers] == ["nvme5"]
    assert usual.engine.kv_offloading_size == other.engine.kv_offloading_size == 20


def test_a_model_of_ones_own_is_simulated(printed: Printed, tmp_path: Path) -> None:
    """The visitor's config.json lies beside the scenario; the file shown, with that config, is the same run."""
    bundled = find_bundled("Qwen/Qwen3-8B")
    assert bundled is not None
    app = run(tab="Simulate", users=8, thinking="1K", num_prompts=12)
    calm(app.text_area(key="config_text").set_value(bundled.read_text()).run())
    shown = metrics(press(app, "simulate"))
    assert shown == metrics(press(run(tab="Simulate", users=8, thinking="1K", num_prompts=12), "simulate"))


def test_who_owns_which_block_is_shown() -> None:
    """The table at the slider's time names requests, their blocks and how many are shared."""
    app = press(
        run(tab="Simulate", scenario_source="Bundled scenario", scenario="block_map", owners="true"),
        "simulate",
    )
    table = next(table.value for table in app.table if "shared" in table.value)
    assert (table["shared"] <= table["blocks"]).all()
    assert table["shared"].max() > 0


def test_a_tier_is_shown_beside_no_tier(printed: Printed) -> None:
    """The table has the command's figures of both sides; at a moment the slots of the tier are drawn."""
    told = ["workload.num_requests=6", "engine.num_gpu_blocks_override=2600", "engine.kv_offloading_size=9"]
    inputs = {
        "scenario_source": "Bundled scenario",
        "scenario": "offload_tools",
        "scenario_set": "\n".join(told),
    }
    app = press(run(tab="Simulate", owners="true", **inputs), "simulate")
    flags = [word for text in told for word in ("--set", text)]
    both = printed("simulate", "offload_tools", *flags, "--quiet")["offload_comparison"]
    sides = next(table.value for table in app.table if "without" in table.value)
    shown = dict(zip(sides[""], zip(sides["with the tier"], sides["without"], strict=True), strict=True))
    assert shown["Tokens loaded"] == (f"{both['with']['loaded_tokens']:,}", "0")
    assert shown["Mean TTFT (ms)"] == tuple(f"{both[s]['mean_ttft_ms']:.2f}" for s in ("with", "without"))
    drawn = " ".join(chart.proto.spec for chart in app.get("vega_lite_chart"))
    assert all(title in drawn for title in ("chunks in the tier", "GiB a rank, so far", "slots of the tier"))


def test_files_are_shown_beside_host_memory_alone(printed: Printed) -> None:
    """The table has the command's figures of three sides, the advice is the command's; their charts are drawn."""
    told = ["workload.num_requests=20", "engine.num_gpu_blocks_override=6000", "engine.kv_offloading_size=4",
            "workload.session.pause_s=120"]  # fmt: skip
    inputs = {
        "scenario_source": "Bundled scenario",
        "scenario": "offload_files",
        "scenario_set": "\n".join(told),
    }
    app = press(run(tab="Simulate", owners="true", **inputs), "simulate")
    flags = [word for text in told for word in ("--set", text)]
    document = printed("simulate", "offload_files", *flags, "--quiet")
    sides = next(table.value for table in app.table if "host memory alone" in table.value)
    for key, name in (
        ("with", "with the tier"),
        ("without_files", "host memory alone"),
        ("without", "without"),
    ):
        shown = dict(zip(sides[""], sides[name], strict=True))
        assert shown["Tokens loaded"] == f"{document['offload_comparison'][key]['loaded_tokens']:,}"
        assert shown["Mean TTFT (ms)"] == f"{document['offload_comparison'][key]['mean_ttft_ms']:.2f}"
    assert document["offload"]["file_tiers"][0]["read_bytes"] > 0
    (advice,) = (text for text in document["advice"] if text.startswith("the files below host memory"))
    assert advice in said(app, "caption")
    drawn = " ".join(chart.proto.spec for chart in app.get("vega_lite_chart"))
    for title in (
        "files below it",
        "file jobs",
        "chunks in host memory and in files below it",
    ):
        assert title in drawn


# --- Strategies: four ------------------------------------------------------------------------------


def test_ones_own_samples_are_compared() -> None:
    """An uploaded pass table: its problems, its lengths; what is no table is one line."""
    lines = [f"{p},{s},{500 + 10 * s},{int(s % 2 == 0)}" for p in range(3) for s in range(8)]
    table = "\n".join(["problem,sample,tokens,correct", *lines]).encode()
    app = run(
        tab="Strategies",
        strategies="strategy_best_of_n",
        strategies_set="problems.strategies=[{strategy: best_of_n, n: 4}]",
    )
    calm(app.file_uploader(key="pass_table").set_value(("mine.csv", table, "text/csv")).run())
    press(app, "compare")
    frame = next(frame.value for frame in app.dataframe if "accuracy" in frame.value)
    assert frame["num_problems"].tolist() == [3]
    calm(app.file_uploader(key="pass_table").set_value(("mine.csv", b"a,b\n1,2\n", "text/csv")).run())
    assert "problem" in one_line(press(app, "compare"))


# --- Recommend: four -------------------------------------------------------------------------------


def test_a_scenarios_own_search_is_ranked() -> None:
    """The tab's rows are the candidates of `recommend` for the scenario it shows."""
    changes = ["search.over={gpu: [l40s, a10g], engine.tensor_parallel_size: [1]}", "search.users=null",
               "search.rate=5", "workload.num_requests=40", "model=Qwen/Qwen3-8B",
               "workload.thinking=60", "workload.answer=20", "search.refine=0", "engine={}",
               "workload.arrivals={kind: poisson, rate: 5}"]  # fmt: skip
    inputs = {
        "search_source": "Bundled scenario",
        "search": "recommend_qwq_500_users",
        "search_set": "\n".join(changes),
    }
    app = run(tab="Recommend", **inputs)
    told = shown_scenario(app)
    press(app, "recommend")
    found = recommend(told.model_dump(mode="json", exclude_defaults=True))
    feasible = [c for c in found.candidates if c.feasible]
    assert feasible
    ranked = next(table.value for table in app.table if "Deployment" in table.value)
    assert [text.replace("\\", "") for text in ranked["Deployment"]] == [c.label for c in feasible]


def test_the_first_question_answers_itself_for_everybody() -> None:
    """Somebody new is shown a plan that fits, with its range, and asks nothing for it; the next one finds it there."""
    app = run()
    for _ in range(100):
        if app.success:
            break
        calm(app.run())
    assert "Fits: Qwen3-8B for 20 users on 1 x h100-sxm" in said(app, "success")
    asked = Demand(input_len=512, output_len=16384 + 256)
    _, low, high = estimate("Qwen/Qwen3-8B", "h100", EngineArgs(max_model_len=24576), demand=asked).traces
    spread = "at the worst and at the best" if int(low) == int(high) else f"{int(low)} to {int(high)}"
    assert app.metric[0].delta == spread
    assert "Fits" in said(run(), "success")


# --- Calibration, logs -----------------------------------------------------------------------------


def test_a_log_is_set_beside_its_plan() -> None:
    app = run(model="Qwen/Qwen3-32B", gpu="h100-sxm", thinking="1K", log_is_mine="true")
    calm(app.text_area(key="log").set_value(LOG).run())
    lines = next(table.value for table in app.table if "Printed" in table.value)
    assert "18,176" in map(words, lines["Printed"])
    assert any("Overheads learned: runtime" in text.value.replace("\\", "") for text in app.markdown)
    before = len(app.error)
    for text in ("nothing of an engine", LOG + "#" * MAX_BYTES):
        calm(app.text_area(key="log").set_value(text).run())
        assert len(app.error) == before + 1


def test_calibration_shows_the_questions_profile_and_fits() -> None:
    """The profile that times the question's card and engine; measurements that come with kvplan are fitted in place."""
    assert "h100-sxm-sglang" in said(run(tab="Calibration", engine="sglang"), "markdown")
    app = run(tab="Calibration", profile="rtx-4090-vllm", measurements="vllm-cpu-0.32.jsonl")
    assert "requests that decode in a step" in app.table[0].value["what"].tolist()
    press(app, "fit")
    errors = next(frame.value for frame in app.dataframe if "held_out" in frame.value)
    assert set(errors["regime"]) == {"decode", "prefill", "mixed"}


def test_uploaded_measurements_are_fitted_and_drawn() -> None:
    """Every uploaded row is a dot, predicted against measured; what is no measurement is one line."""
    content = (measurements_dir() / "vllm-cpu-0.32.jsonl").read_bytes()
    app = run(tab="Calibration", profile="rtx-4090-vllm")
    for bad in (b"{not json", b'{"op": "gemm"}', b"\xff", b""):
        calm(app.file_uploader(key="measured").set_value(("mine.jsonl", bad, "application/jsonl")).run())
        assert one_line(press(app, "fit"))
    calm(
        app.file_uploader(key="measured")
        .set_value(("mine.jsonl", b"#" * (MAX_BYTES + 1), "application/jsonl"))
        .run()
    )
    assert "2 MiB" in one_line(app)
    calm(app.file_uploader(key="measured").set_value(("mine.jsonl", content, "application/jsonl")).run())
    press(app, "fit")
    measurements = read_measurements([measurements_dir() / "vllm-cpu-0.32.jsonl"])
    assert len(dots(app)) == sum(map(len, measurements.families.values()))


def test_a_real_run_is_set_beside_its_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run beside itself: no difference anywhere; what is no run is one line."""
    path = tmp_path / "r.csv"
    cli(["simulate", "chat", "--set", "workload.num_requests=20", "--quiet", "--records", str(path)])
    capsys.readouterr()
    content = path.read_bytes()
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


def test_a_linked_run_starts_by_itself() -> None:
    app = wait(run(tab="Simulate", users=4, thinking="512", num_prompts=10, run="simulate"), "simulate")
    calm(app.run())
    assert rows(app, "Figure")["Completed"] == "10 of 10"
