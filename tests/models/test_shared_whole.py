"""Every mixture of experts on one rank of tensor, data and expert parallelism at once, beside vLLM's own class.

`fixtures/shared_whole_vllm_0.32.json` is what vLLM 0.32.0 answered (`make_shared_whole.py`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from places import FIXTURES
from test_architectures import kept_twice, model_of, text_only

from kvplan.engines.flags import EngineArgs
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.engines.token_split import whole_mlps
from kvplan.memory.forward import estimate
from kvplan.models.load import load_model

SHARED: dict[str, Any] = json.loads((FIXTURES / "shared_whole_vllm_0.32.json").read_text())
SHARDS = "VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT=1"
FLAGS: dict[str, dict[str, Any]] = {
    "split": {},
    "naive": {"all2all_backend": "flashinfer_nvlink_two_sided"},
    "shards": {"env": SHARDS},
}
BESIDE = {
    "Step3p7ForConditionalGeneration": "3 MB that the fixture of architectures has neither at this size",
}
"""Where other weights than these differ, and which."""


def args_of(name: str, how: str) -> EngineArgs:
    return EngineArgs(
        tensor_parallel_size=2,
        data_parallel_size=2,
        enable_expert_parallel=True,
        language_model_only=text_only(name),
        **FLAGS[how],
    )


def answered() -> list[tuple[str, str]]:
    return [(name, how) for name, found in SHARED.items() for how in found if isinstance(found[how], int)]


@pytest.mark.parametrize(("name", "how"), answered())
def test_weights_equal_vllms(name: str, how: str) -> None:
    """To a kilobyte, or three millionths."""
    if name in BESIDE:
        pytest.skip(BESIDE[name])
    model = model_of(name)
    mine = weights_of_stages(model, args_of(name, how))[0]
    weights, theirs = mine.total - mine.rotary - kept_twice(model, 2), SHARED[name][how]
    assert abs(weights - theirs) <= max(1024, theirs // 300_000)


def test_enough_are_held() -> None:
    """Among them more than thirty whose shared experts are whole."""
    assert len(answered()) > 170
    assert sum(bool(whole_mlps(model_of(name), args_of(name, "split"))) for name in SHARED) > 30


def test_pipelines_cut_what_one_stage_does_not() -> None:
    """Kimi-K3 splits tokens on one stage alone, DeepSeek V3.2 its dense layers' (vLLM 0.32's classes)."""
    told: dict[str, Any] = {
        "tensor_parallel_size": 2,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
    }
    one, two = (EngineArgs(**told, pipeline_parallel_size=n) for n in (1, 2))
    sparse, kimi = load_model("deepseek-ai/DeepSeek-V3.2"), model_of("KimiK3, as published, 4 layers")
    assert [whole_mlps(sparse, args) for args in (one, two)] == [("shared", "dense"), ("shared",)]
    assert [whole_mlps(kimi, args) for args in (one, two)] == [("shared", "dense"), ()]
    cut = EngineArgs(**told, env=SHARDS, all2all_backend="deepep_v2")
    assert whole_mlps(kimi, cut) == ()


def test_a_plan_of_replicas_holds_them() -> None:
    """DeepSeek V3's, 58 layers of 3 x 7168 x 2048 in FP8: half of them more on each of two ranks."""
    sizes = [
        estimate(
            "deepseek-ai/DeepSeek-V3",
            "b200",
            EngineArgs(
                tensor_parallel_size=2,
                data_parallel_size=8,
                enable_expert_parallel=True,
                all2all_backend=exchange,
            ),
        ).budget.weights.size.value
        for exchange in ("flashinfer_nvlink_two_sided", "deepep_high_throughput")
    ]
    assert sizes[1] - sizes[0] == pytest.approx(58 * 3 * 7168 * 2048 // 2, rel=1e-3)
