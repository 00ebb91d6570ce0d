"""Flags that vLLM refuses once it knows the whole of its config (`config/vllm.py`)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.engines.late_checks import samples_shares
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.models.load import load_model

DENSE, MOE = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        (DENSE, {"enable_batch_sharded_sampling": True}, "nothing to share"),
        (
            DENSE,
            {"enable_batch_sharded_sampling": True, "tensor_parallel_size": 4, "max_num_seqs": 2},
            "is below tensor_parallel_size 4",
        ),
        (DENSE, {"enable_return_routed_experts": True}, "has no experts"),
        (MOE, {"enable_return_routed_experts": True, "enable_prefix_caching": False}, "needs prefix caching"),
    ],
)
def test_what_vllm_refuses(model: str, flags: dict[str, object], said: str) -> None:
    """In one line, with what would do."""
    with pytest.raises(KvplanError, match=said):
        estimate(model, "h100", **flags)


def test_routed_experts_leave_the_pool_alone() -> None:
    """Their buffer is made once the pool is (`gpu/model_runner.py: initialize_kv_cache`)."""
    plain, told = (estimate(MOE, "h100", enable_return_routed_experts=on).layout for on in (False, True))
    assert plain == told


def test_classes_that_leave_each_rank_its_logits() -> None:
    """Only these sample in shares (`compute_logits_local`)."""
    args = EngineArgs(enable_batch_sharded_sampling=True, tensor_parallel_size=2)
    llama = load_model("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert samples_shares(llama, args)
    assert not samples_shares(load_model(DENSE), args)
    assert not samples_shares(replace(llama, architecture="Qwen3ForCausalLM"), args)


def test_videos_decoded_on_the_card_come_out_of_the_pool() -> None:
    """A multimodal model's pool gives up the stated GiB, a stated pool too; a language model has no such part."""
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    for stated in ({}, {"kv_cache_memory_bytes": 20 * 2**30}):
        plain, less = (
            estimate(model, "h100", mm_ipc_gpu_memory_gb=gib, **stated).budget.kv.size.value for gib in (0, 3)
        )
        assert plain - less == 3 * 2**30
    text = [estimate(DENSE, "h100", mm_ipc_gpu_memory_gb=gib).budget.kv for gib in (0, 3)]
    assert text[0] == text[1]


def test_replicated_queries_are_weights_of_the_whole_group() -> None:
    """DeepSeek-V3 with eight ranks that split contexts: all of q_b_proj on each; alike without such ranks."""
    flags = {"tensor_parallel_size": 8, "decode_context_parallel_size": 8}
    plain, more = (
        estimate("deepseek-ai/DeepSeek-V3", "h200", dcp_q_replicate=on, **flags).budget.weights.size.value
        for on in (False, True)
    )
    whole = 61 * 128 * 192 * 1536 * (1 + 4 / 128**2)
    assert more - plain == pytest.approx(whole * 7 / 8, rel=1e-3)
    alone = [
        estimate("deepseek-ai/DeepSeek-V3", "h200", dcp_q_replicate=on, tensor_parallel_size=8).budget
        for on in (False, True)
    ]
    assert alone[0] == alone[1]
