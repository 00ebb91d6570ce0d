"""Every public start-up log of the reference data, rebuilt as log lines: read, explained, learned from.

Reference data: `shared/truth/memory` beside the project, not part of it. The table goes into docs/validation.md.
"""

from __future__ import annotations

import json
from functools import cache
from statistics import median
from typing import Any

import pytest
from log_rows import log_text, pool_gib
from memory_rows import QUANTIZATION, TOLD, TRUTH, gpu_of, model_of, version_of
from validation import section

from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.ground.errors import KvplanError
from kvplan.memory.answers import Question
from kvplan.memory.demand import Demand
from kvplan.memory.forward import answer
from kvplan.models.spec import ModelSpec
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.startup import read_log
from kvplan.profiles.profile import Profile

pytestmark = pytest.mark.skipif(not TRUTH.is_dir(), reason=f"reference logs are not at {TRUTH}")

Row = dict[str, Any]

CARDS = {
    "sgl-24g-llama31-8b": "rtx-4090",
    "sgl-kt-dsv3-tp2": "l40s",
    "trt-a10-llama2-7b": "a10",
    "v1-32g-gams-9b-gemma2": "rtx-5090",
    "v1-ada48x2-llama3-70b-awq-tp2": "l40s",
    "v1-glm47-nvfp4-tp4": "rtx-pro-6000",
    "v1-pro6000x2-qwen3-32b-tp2": "rtx-pro-6000",
    "v1-qwen35-2b": "rtx-4090",
}
"""Cards of rows whose text names only a class."""
ENGINES = {
    "sgl-mi300x-llama31-8b": "sglang@0.3",
    "sgl-h100-llama31-8b-pr4760": "sglang@0.4",
    "sgl-24g-llama31-8b": "sglang@0.4",
    "trt-a100-llama2-7b-sq": "tensorrt-llm@0.8",
    "trt-a10-llama2-7b": "tensorrt-llm@0.5",
}
UNKNOWN_MODELS = {
    "v1-zamba2-2.7b": "no config",
    "v1-3090x2-kimi-linear-awq": "no config",
    "v1-a100-gemma4-31b-awq": "no config; figures of two versions, rounded",
    "v1-h200x2-dsv4-flash": "DeepSeek V4's attention is refused by name",
    "v1-pro5000x8-dsv4-flash": "DeepSeek V4's attention is refused by name",
}
"""Rows that are read, but whose model kvplan does not know."""
NOT_LEARNED = {
    "v0-2080ti22g-qwen3-30b-a3b-tp4-131k": "its 1.21x does not follow from its 4.07 GiB: named as a contradiction",
    "v1-h100-gptoss-120b-blog": "share of the card not told, and not 0.9",
    "v1-h20-qwen35-27b": "11.8 GiB of weights by its pool, which prints none: less than 4 bits a weight",
    "sgl-kt-dsv3-tp2": "--max-total-tokens states the pool",
    "v1-glm47-nvfp4-tp4": "79.1 GiB of weights and KV in 0.8 of a 96 GB card",
}
"""Rows that teach nothing, and why."""
PRINTED = {
    "model_weights_gib": "weights_gib",
    "available_kv_gib": "kv_gib",
    "kv_cache_tokens": "cache_tokens",
    "num_gpu_blocks": "num_gpu_blocks",
    "max_concurrency": "max_concurrency",
    "activation_peak_gib": "activation_gib",
    "non_torch_gib": "non_torch_gib",
    "cuda_graph_gib": "graphs_gib",
    "k_gb": "k_gib",
    "v_gb": "v_gib",
    "kv_gb": "kv_gib",
    "avail_after_load_gb": "after_gib",
    "avail_after_pool_gb": "after_pool_gib",
    "allocated_kv_bytes": "kv_bytes",
    "mamba_blocks": "state_blocks",
    "max_mamba_cache_size": "state_slots",
    "mamba_conv_gb": "conv_gib",
    "mamba_ssm_gb": "ssm_gib",
    "available_before_pool_gib": "before_pool_gib",
    "peak_torch_memory_gib": "peak_torch_gib",
}
"""Reference figure -> kvplan's name for it."""


@cache
def rows() -> dict[str, Row]:
    every = [json.loads(line) for line in (TRUTH / "cases.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in every}


def test_every_log_is_parsed() -> None:
    """All 63 logs: engine, and each printed figure that a log line carries."""
    assert len(rows()) == 63
    for name, row in rows().items():
        log = read_log(log_text(row))
        assert row["engine"].startswith(log.engine), name
        for key, figure in PRINTED.items():
            printed = pool_gib(row) if key == "available_kv_gib" else row["printed"].get(key)
            instead = "allocated_kv_bytes" if key == "available_kv_gib" else ""
            if printed is None or row["printed"].get(instead):
                continue
            assert log.figures[figure] == pytest.approx(printed, abs=0.005), (name, key)


@cache
def found(name: str) -> Reconciliation:
    """The row's log beside its plan, as a user would ask: the log, model, card, and version where it is told."""
    row = rows()[name]
    told: dict[str, Any] = TOLD.get(name, {})
    quantization = (QUANTIZATION | {"smoothquant int8": "fp8"}).get(row["quantization"] or "")
    args = EngineArgs(**({"quantization": quantization} if quantization else {}), **told)
    engine = ENGINES.get(name) or (
        version_of(row) if row["engine"].startswith("vllm") and dated(row) else None
    )
    card = CARDS.get(name) or gpu_of(row)
    return reconcile(log_text(row), model=model_of(row), gpu=card, engine=engine, args=args)


def dated(row: Row) -> bool:
    """Whether anything tells the version; else kvplan guesses, as for a user."""
    return str(version_of(row).version) != "(0, 20)" or "0.20" in (row["engine_version"] or "")


def known() -> list[str]:
    return [name for name in rows() if name not in UNKNOWN_MODELS]


def test_saved_overheads_give_every_log_back() -> None:
    """`--save`, then `estimate --profile` with the same flags: tokens and blocks within 0.5 %."""
    learned = 0
    for name in known():
        result = found(name)
        if name in NOT_LEARNED:
            assert result.overheads is None, name
            continue
        assert result.overheads is not None, f"{name}: {result.why_nothing_learned}"
        saved = Profile.model_validate_json(result.profile(name).model_dump_json(exclude_defaults=True))
        question = result.plan.question
        asked = Question(
            question.model, question.gpu, question.args, question.engine, Demand(), profile=saved.memory
        )
        shape, figures = answer(asked).shape, result.log.figures
        for figure, got in (
            ("num_gpu_blocks", shape.num_blocks),
            ("cache_tokens", shape.kv_cache_size_tokens),
        ):
            if figures.get(figure) and name not in ODD:
                assert got == pytest.approx(figures[figure], rel=0.005), (name, figure)
        learned += 1
    assert learned >= 50


def test_what_printed_pools_do_not_explain_is_little() -> None:
    """Tokens that do not follow from the printed GiB under any tried assumption: few rows, each told."""
    odd = {
        name
        for name in known()
        for line in found(name).lines
        if line.explanation.startswith("the printed GiB would be")
    }
    assert odd <= ODD, odd - ODD


ODD = {
    "v0-2080ti22g-qwen3-30b-a3b-tp4-131k",  # named as a contradiction
    "v1-4090x2-qwen36-27b-dflash",  # a DFlash drafter shares the pool
    "v1-thor-qwen35-122b-nvfp4-mtp",  # drafts of unknown number, and another KV dtype
}

PAIRS = [
    ("v0-3090-llama31-8b-20k", "v0-3090-llama31-8b-29k", {"max_model_len": 29000}),
    ("v0-3090-llama31-8b-29k", "v0-3090-llama31-8b-20k", {"max_model_len": 20000}),
]
"""Learned from the first, predicts the second's blocks under its flags."""


@pytest.mark.parametrize(("first", "second", "flags"), PAIRS)
def test_another_length_stays_within_3_percent(first: str, second: str, flags: dict[str, int]) -> None:
    result = found(first)
    args = result.plan.question.args.model_copy(update=flags)
    question = result.plan.question
    plan = answer(
        Question(question.model, question.gpu, args, question.engine, Demand(), profile=result.overheads)
    )
    assert plan.shape.num_blocks == pytest.approx(rows()[second]["printed"]["num_gpu_blocks"], rel=0.03)


def test_other_lengths_of_a_hybrid_stay_within_3_percent() -> None:
    """Nemotron-H: overheads learned at one length give the printed concurrency at the four others."""
    row = rows()["v1-nemotron-h-8b-tp2"]
    result = found("v1-nemotron-h-8b-tp2")
    question = result.plan.question
    for length, times in row["printed"]["max_concurrency_by_len"].items():
        model = _of_any_length(question.model)
        args = question.args.model_copy(
            update={"max_model_len": int(length), "block_size": row["block_size"]}
        )
        plan = answer(
            Question(model, question.gpu, args, question.engine, Demand(), profile=result.overheads)
        )
        assert plan.max_concurrency.value == pytest.approx(times, rel=0.03), length


def _of_any_length(model: ModelSpec) -> ModelSpec:
    from dataclasses import replace

    return replace(model, max_model_len=1 << 20)


# ---- SGLang and TensorRT-LLM


def others() -> list[str]:
    return [name for name, row in rows().items() if not row["engine"].startswith("vllm")]


def test_other_engines_pools() -> None:
    """Printed pool to tokens: exact within rounding on nine in ten. Pool from flags: median within 5 %."""
    exact, errors, lines = [], [], []
    for name in others():
        result = found(name)
        pool, plan = result.pool, result.plan
        printed = result.log.figures["cache_tokens"]
        told = "no pool printed"
        if pool.printed_gib is not None and pool.low is not None and pool.high is not None:
            low, high = pool.low.kv_cache_size_tokens, pool.high.kv_cache_size_tokens
            exact.append(pool.holds("cache_tokens", printed))
            told = f"{low:,}..{high:,}, {'equal' if exact[-1] else 'no'}"
        got = plan.shape.kv_cache_size_tokens
        errors.append(abs(got / printed - 1))
        model, card = rows()[name]["model"].split(" (")[0], plan.question.gpu.name
        run = f"{model}, {card}, {plan.question.engine}"
        lines.append(f"| {run} | {printed:,.0f} | {told} | {got:,} ({got / printed - 1:+.1%}) |")
    assert len(exact) >= 7
    assert sum(exact) >= 0.9 * len(exact)
    assert median(errors) <= 0.05
    section(
        "memory-other-engines",
        "\n".join([HEAD, *lines, "", f"Median of the last column: {median(errors):.1%}."]),
    )


HEAD = """## SGLang and TensorRT-LLM

Public start-up logs. Second column: tokens printed. Third: kvplan's tokens for the smallest and the largest pool
that print the same GiB. Fourth: tokens from card, model and flags alone (`mem_fraction_static` 0.88 before SGLang
0.5 and its own formula since; `free_gpu_memory_fraction` 0.9). DeepSeek-V3 kept its experts in the host's memory
(ktransformers), which kvplan does not plan. The A10's TensorRT engine was built for 25 prompts of 4,096 tokens.

| model, card, engine | printed | from the printed pool | from flags |
|---|---|---|---|"""


def test_unknown_models_are_asked_for_or_refused() -> None:
    """What kvplan cannot plan is a named error, never a guess."""
    for name in UNKNOWN_MODELS:
        if rows()[name].get("config_file"):
            with pytest.raises(KvplanError):
                found(name)
        else:
            with pytest.raises(KvplanError, match="does not name its model"):
                reconcile(log_text(rows()[name]), gpu="h100", engine=parse_engine("vllm@0.20"))
