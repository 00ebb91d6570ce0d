"""Damaged scenarios, traces, pass tables and recorded runs: one line, an exit code of 0, 1 or 2, and an end."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from drawn import examples
from mutations import mutated

from kvplan.cli.main import run
from kvplan.ground.files import scenarios_dir

NUM = int(os.environ.get("KVPLAN_MUTATIONS", examples(300)))
"""Of each kind of file."""
LONGEST_S = 20.0
STOP = ["--quiet", "--json", "--set", "limits.wall_clock_s=1"]

FULL = """model: Qwen/Qwen3-8B
gpu: h100
engine: {max_num_seqs: 8, max_model_len: 8192, max_num_batched_tokens: 2048}
engine_version: "0.20"
step_time: {fixed_us: 4000, per_sequence_us: 20.5, per_context_token_ns: 10}
replicas: 2
router: least_kv
max_queue: 50
workload:
  num_requests: 30
  seed: 3
  arrivals: {kind: gamma, rate: 20.0, cv: 1.5}
  classes:
    short: {share: 2, prompt: {kind: uniform, low: 10, high: 100}, answer: 20, max_tokens: 50, priority: 1}
    long:
      prompt: {kind: lognormal, median: 300, sigma: 0.5, high: 2000}
      answer: {kind: empirical, values: [10, 20, 40], weights: [1, 2, 0.5]}
      thinking: 30
      session: {turns: 2, message: 20, pause_s: 0.1}
      correlation: {prompt_answer: 0.3}
      timeout_s: 5
      slo: {ttft_ms: 500, share: 0.9}
slo: {tpot_ms: 50}
pricing: {usd_per_gpu_hour: 2.0}
limits: {horizon_s: 1000, thrash_ratio: 4}
"""
SOLVE = """model: Qwen/Qwen3-8B
gpu: h100
step_time: {fixed_us: 4000}
problems:
  num_problems: 3
  prompt: 50
  seed: 1
  pass_table: table.csv
  arrivals: {kind: closed_loop, concurrency: 2}
  quality:
    difficulty: {beta: [0.5, 1.5]}
    thinking_tokens: 100
    answer_tokens: 10
    sigma_within: 0.3
    thinking_curve: [[0, 0.1], [50, 0.5], [100, 0.6]]
  strategies:
    - {strategy: best_of_n, n: [2, 4], label: wide}
    - {strategy: beam_search, beam_width: 2, branch_factor: 2, step_tokens: 32}
    - strategy: difficulty_router
      tiers: [{share: 0.5, strategy: single_pass}, {share: 0.5, strategy: {strategy: chat, num_turns: 2}}]
  verifier: {kind: orm, placement: remote, latency_s: 0.1, concurrency: 2}
"""
TABLE = "problem,sample,tokens,correct\n" + "".join(
    f"p{i // 4},{i % 4},{50 + i},{i % 3 % 2}\n" for i in range(12)
)
TRACES = {
    "mooncake": '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]}\n'
    '{"timestamp": 1500, "input_length": 512, "output_length": 6, "hash_ids": [7]}\n',
    "qwen_bailian": '{"timestamp": 1.5, "input_length": 40, "output_length": 5, "hash_ids": [1, 2, 3]}\n' * 2,
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,480,10\n" * 1
    + "2023-11-16 18:17:04.1,48,10\n",
    "servegen": "arrival_s,input_tokens,output_tokens,reason_tokens\n1.8,396,39,33\n2,96,9,3\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,C,472,18,490,API log\n"
    "6,C,47,0,47,API log\n",
    "vllm_bench": '{"request_rate": 8.0, "max_concurrency": null, "input_lens": [5, 6], "output_lens": [7, 8], '
    '"start_times": [11.5, 10.0], "ttfts": [0.1, 0.2], "itls": [[0.1, 0.1], [0.1]]}',
    "aiperf": '{"metadata": {"request_start_ns": 1759813207532900363}, "metrics": {"input_sequence_length": '
    '{"value": 55, "unit": "tokens"}, "output_sequence_length": {"value": 9}, "time_to_first_token": {"value": 9.5}, '
    '"request_latency": {"value": 90.5}}, "error": null}\n' * 2,
    "csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,3\n2,11,4\n",
}  # fmt: skip
RECORDS = (
    "request_id,arrival_s,prompt_tokens,output_tokens,first_token_s,finish_s,num_preemptions\n"
    + "".join(f"{i},{i},{5 + i},{7 + i},{i + 0.1},{i + 0.5},0\n" for i in range(2))
)


def ends_well(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, 1 or 2; a complaint of one line; an end in time; an exception is a traceback."""
    began = time.monotonic()
    code = run(words)
    took = time.monotonic() - began
    err = capsys.readouterr().err
    assert code in (0, 1, 2), f"exit code {code} for\n{what}"
    assert code != 2 or len(err.splitlines()) == 1, f"{err!r} for\n{what}"
    assert took < LONGEST_S, f"{took:.0f} s for\n{what}"


def damage(seed: int, kinds: list[str], try_one: Callable[[str, Random], None]) -> None:
    """`NUM` damaged texts, each shown to `try_one`; which one failed is in the assertion."""
    for number in range(NUM):
        rng = Random(seed * 1_000_000 + number)
        text = kinds[number % len(kinds)]
        try_one(mutated(text, rng, rng.choice(kinds)), rng)


Capture = pytest.CaptureFixture[str]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def test_scenarios(tmp_path: Path, capsys: Capture) -> None:
    """A workload, problems to solve, and bundled ones."""
    write(tmp_path / "table.csv", TABLE)
    bundled = [(scenarios_dir() / f"{name}.yaml").read_text() for name in ("chat", "strategy_router")]

    def one(text: str, rng: Random) -> None:
        path = write(tmp_path / "s.yaml", text)
        ends_well(["simulate", str(path), *STOP], text, capsys)

    damage(1, [FULL, SOLVE, FULL, SOLVE, *bundled], one)


def test_traces(tmp_path: Path, capsys: Capture) -> None:
    """Every format, with and without skipping what is damaged."""
    formats = {text: name for name, text in TRACES.items()}

    def one(text: str, rng: Random) -> None:
        write(tmp_path / "t", text)
        name = rng.choice(list(TRACES))
        for source, known in formats.items():
            if text[:12] == source[:12]:
                name = known
        data = {"model": "Qwen/Qwen3-8B", "step_time": {"fixed_us": 4000},
                "workload": {"trace": {"path": "t", "format": name}}}  # fmt: skip
        path = write(tmp_path / "s.yaml", json.dumps(data))
        skip = rng.choice([[], ["--skip-bad-rows"]])
        ends_well(["simulate", str(path), *STOP, *skip], f"{name}:\n{text}", capsys)

    damage(2, list(TRACES.values()), one)


def test_pass_tables(tmp_path: Path, capsys: Capture) -> None:
    scenario = write(tmp_path / "s.yaml", SOLVE)

    def one(text: str, rng: Random) -> None:
        write(tmp_path / "table.csv", text)
        ends_well(["simulate", str(scenario), *STOP], text, capsys)

    damage(3, [TABLE], one)


def test_recorded_runs(tmp_path: Path, capsys: Capture) -> None:
    """Bench results, AIPerf's records, CSV and JSONL, beside kvplan's own records; totals too."""
    result = write(tmp_path / "sim.csv", RECORDS)
    rows = list(csv.DictReader(RECORDS.splitlines()))
    lines = "\n".join(map(json.dumps, rows))
    kinds = [
        RECORDS,
        TRACES["vllm_bench"],
        TRACES["aiperf"],
        lines,
        json.dumps({"requests": dict(enumerate(rows))}),
    ]
    totals = '{"num_preemptions": 4, "kv_peak_fraction": 0.5}'

    def one(text: str, rng: Random) -> None:
        path = write(tmp_path / rng.choice(["r.csv" if text[:7] == "request" else "r.json", "r.jsonl"]), text)
        words = ["compare-run", str(path), str(result), "--plot", str(tmp_path / "c.svg")]
        if rng.random() < 0.3:
            words += ["--real-totals", str(write(tmp_path / "totals.json", mutated(totals, rng)))]
        ends_well([*words, *rng.choice([[], ["--json"]])], text, capsys)

    damage(4, kinds, one)
