"""Pipeline stages of unequal weights, layers and memory: each planned by itself, the tightest decides.

The fixture: vLLM 0.32.0's own planner (`get_kv_cache_configs`) on its own model classes, built stage by stage, with
memory and VLLM_PP_LAYER_PARTITION drawn at random. Stages without any attention layer are left out, as in
`test_layout.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from places import FIXTURES
from test_layout import CARDS, args_of, model_of

from kvplan import estimate
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.layout import KvCacheTooSmall, kv_layout
from kvplan.models.load import load_model
from kvplan.models.weights import stage_weights

Case = dict[str, Any]
CASES: list[tuple[Case, Case]] = json.loads((FIXTURES / "stages_vllm_0.32.json").read_text())


def answer(case: Case) -> Case:
    args = args_of(case)
    if told := case.get("partition"):
        args = EngineArgs(**args.model_dump(exclude_unset=True), env=f"VLLM_PP_LAYER_PARTITION={told}")
    available = [int(gib * GiB) for gib in case["stage_gib"]]
    try:
        found = kv_layout(model_of(case["config"]), args, available, capability=CARDS[case["device"]])
    except KvCacheTooSmall as small:
        return {"refused": small.max_model_len}
    return {
        "blocks": found.num_blocks,
        "tokens": found.kv_cache_size_tokens,
        "concurrency": found.max_concurrency,
        "length": found.max_model_len,
        "stage_bytes": list(found.stage_bytes_per_block),
    }


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_vllm(number: int) -> None:
    """Blocks of the pool, printed tokens and concurrency, the fitted length, and every stage's bytes a block."""
    case, golden = CASES[number]
    assert answer(case) == golden


def test_cases_are_uneven() -> None:
    """The decision is no stage's by habit: each of the first three decides some."""
    deciding = set()
    for case, golden in CASES:
        if "refused" not in golden and "num_gpu_blocks_override" not in case:
            blocks = [
                int(g * GiB) // b for g, b in zip(case["stage_gib"], golden["stage_bytes"], strict=True)
            ]
            assert min(blocks) == golden["blocks"]
            deciding.add(blocks.index(min(blocks)))
    assert deciding >= {0, 1, 2}


QWEN = "Qwen/Qwen3-8B"
PARTITION = "VLLM_PP_LAYER_PARTITION"


def test_each_stage_has_its_own_weights_and_kv() -> None:
    """30 of 36 layers on the first stage: its pool is what the card leaves beside these, at 30/36 of the KV."""
    whole = estimate(QWEN, "h100")
    plan = estimate(QWEN, "h100", pipeline_parallel_size=2, env=f"{PARTITION}=30,6")
    stages = stage_weights(load_model(QWEN), pipeline_parallel_size=2, pp_layer_partition=(30, 6))
    assert plan.budget.weights.size.value == stages[0].loaded
    assert plan.layout is not None
    assert plan.layout.num_blocks == plan.budget.kv.size.value // plan.layout.bytes_per_block
    assert plan.bytes_per_token == whole.bytes_per_token * 30 // 36
    assert "layers 0-29 (stage 1 of 2)" in plan.budget.weights.why
    assert "stage 1 of 2, the tightest" in plan.budget.kv.why


def test_the_stage_with_most_weights_need_not_decide() -> None:
    """Llama-3.2-1B's embedding is a fourth of its weights, on the first and the last stage; the middle has more KV."""
    plan = estimate("Llama-3.2-1B", "l4", pipeline_parallel_size=3, env=f"{PARTITION}=5,6,5")
    stages = stage_weights(load_model("Llama-3.2-1B"), pipeline_parallel_size=3, pp_layer_partition=(5, 6, 5))
    assert plan.stage.rank == 1
    assert plan.budget.weights.size.value == stages[1].loaded < stages[0].loaded


def test_fuller_stages_hold_fewer_blocks() -> None:
    """Moving layers onto one stage never adds blocks; the even split has most."""
    blocks = [
        estimate(QWEN, "h100", pipeline_parallel_size=2, env=f"{PARTITION}={n},{36 - n}").shape.num_blocks
        for n in (18, 22, 27, 33)
    ]
    assert blocks == sorted(blocks, reverse=True)
    assert len(set(blocks)) == len(blocks)


def test_a_stage_that_holds_no_kv_is_refused() -> None:
    """vLLM's planner divides by the bytes of a block, or asserts that there are some."""
    with pytest.raises(KvplanError, match="no layer of stage 2 keeps KV"):
        estimate(
            "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "h100", pipeline_parallel_size=2, env=f"{PARTITION}=55,1"
        )


def test_what_drafts_lies_on_the_last_stage() -> None:
    """A draft model's weights are no part of the first stage's card (vLLM `v1/worker/gpu/model_runner.py`)."""
    asked = {
        "pipeline_parallel_size": 2,
        "num_speculative_tokens": 3,
        "colocate": {"draft": "Qwen/Qwen3-0.6B"},
    }
    first, last = (estimate(QWEN, "l4", env=f"{PARTITION}={cut}", **asked) for cut in ("30,6", "6,30"))  # type: ignore[arg-type]
    assert (first.stage.rank, last.stage.rank) == (0, 1)
    assert "colocated_draft" not in {row.name for row in first.budget.rows}
    assert "colocated_draft" in {row.name for row in last.budget.rows}


def test_a_stated_pool_must_fit_the_fullest_stage() -> None:
    """-- with as many bytes on each, weights decide whether a card holds both."""
    plan = estimate(
        QWEN, "l4", pipeline_parallel_size=2, env=f"{PARTITION}=35,1", kv_cache_memory_bytes="12G"
    )
    assert plan.refusal is not None
    assert "need" in plan.refusal.reason
    assert plan.budget.weights.size.value > 12 * GiB
