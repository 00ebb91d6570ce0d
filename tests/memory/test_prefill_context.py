"""Prompts split over ranks of their own, and residual streams cut over ranks: what each rank holds, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.cards import cards
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.answers import Plan
from kvplan.memory.forward import estimate
from kvplan.scenario.schema import Deployment
from kvplan.simulation.deploy import set_up

V3, LITE = "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V2-Lite"


def plan(model: str, pcp: int = 2, **flags: Any) -> Plan:
    args = EngineArgs(prefill_context_parallel_size=pcp, max_model_len=8192, **flags)
    return estimate(model, "h200", args)


WHOLE_TOKENS = {"enable_expert_parallel": True, "all2all_backend": "flashinfer_nvlink_two_sided"}
"""An exchange that tokens are not split for, so that shared experts are cut over data-parallel ranks too."""


@pytest.mark.parametrize("flags", [{}, WHOLE_TOKENS])
def test_experts_are_cut_as_over_data_parallel_ranks_and_kv_is_whole(flags: dict[str, Any]) -> None:
    """Weights are those of twice the data-parallel ranks; sequences are those of one replica, cards twice as many."""
    split, alone, twice = (
        plan(V3, pcp, tensor_parallel_size=8, data_parallel_size=dp, **flags)
        for pcp, dp in ((2, 1), (1, 1), (1, 2))
    )
    assert split.budget.weights.size == twice.budget.weights.size
    assert split.budget.weights.size.value < 0.6 * alone.budget.weights.size.value
    assert split.args.num_gpus == twice.args.num_gpus == 2 * alone.args.num_gpus
    assert split.bytes_per_token == alone.bytes_per_token
    assert split.max_num_seqs == alone.max_num_seqs == twice.max_num_seqs // 2
    assert split.price_per_hour == 2 * alone.price_per_hour


def test_shared_experts_are_whole_over_data_parallel_ranks_alone() -> None:
    """vLLM 0.32 `config/parallel.py: use_sequence_parallel_moe` asks for data parallelism, not for split prompts."""
    split, twice = (
        plan(V3, pcp, tensor_parallel_size=8, data_parallel_size=dp, enable_expert_parallel=True).budget
        for pcp, dp in ((2, 1), (1, 2))
    )
    shared = 3 * 2048 * 7168  # of each of 58 layers, in FP8 with a float32 scale per 128 x 128
    whole = 58 * (shared + 4 * shared // 128**2)
    assert twice.weights.size.value - split.weights.size.value == whole * 7 // 8


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("Qwen/Qwen3-8B", {}, r"latent attention \(MLA\) alone"),
        (LITE, {"enable_lora": True}, "beside --enable-lora"),
        (LITE, {"num_speculative_tokens": 2, "speculative_method": "ngram"}, "DSpark or MTP of one module"),
        (LITE, {"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "is not planned"),
        ("deepseek-ai/DeepSeek-V3.2", {"tensor_parallel_size": 8}, "needs --enforce-eager"),
    ],
)
def test_what_is_refused(model: str, flags: dict[str, Any], words: str) -> None:
    """vLLM 0.32 `pcp_manager.py: validate_config`; without the flag all of them plan."""
    with pytest.raises(KvplanError, match=words):
        plan(model, **flags)
    assert plan(model, 1, **flags).layout


def test_sparse_attention_without_graphs_and_mtp_of_one_module_plan() -> None:
    sparse = plan("deepseek-ai/DeepSeek-V3.2", tensor_parallel_size=8, enforce_eager=True)
    assert sparse.layout
    assert plan(V3, tensor_parallel_size=8, num_speculative_tokens=1).layout


def test_it_is_not_simulated_and_takes_cards() -> None:
    engine = EngineArgs(prefill_context_parallel_size=2, max_model_len=8192)
    with pytest.raises(KvplanError, match="planned, not simulated"):
        set_up(Deployment(model=LITE, gpu="h200", engine=engine))
    with pytest.raises(KvplanError, match="1 card, the parallel sizes ask for 2"):
        cards("1xh200", engine)
    assert cards("2xh200", engine)[1] == engine


def test_streams_over_ranks_are_qwen4exps_alone() -> None:
    """vLLM 0.32 refuses other models on several ranks, and several stages; on one rank the flag is ignored."""
    assert estimate("Qwen/Qwen3-8B", "h100", enable_hc_sp=True).layout
    with pytest.raises(KvplanError, match=r"--enable-hc-sp: vLLM 0\.32 has it for Qwen4Exp alone"):
        estimate("Qwen/Qwen3-8B", "h100", enable_hc_sp=True, tensor_parallel_size=2)
