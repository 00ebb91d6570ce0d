"""What vLLM refuses of kernels, exchanges and micro-batches is refused; buffers and batches that they bring."""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.kernel_flags import attention_text, kernel_text
from kvplan.engines.resolve import resolve
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import GiB
from kvplan.memory.exchange_buffers import batched_workspace, exchange_bytes, low_latency_bytes
from kvplan.memory.forward import estimate
from kvplan.memory.graphs import engine_graphs
from kvplan.memory.kernel_checks import check_kernels
from kvplan.memory.overheads import second_runner
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.profiles.memory_profile import memory_profile

TOLD = json.loads(lzma.decompress((FIXTURES / "graphs_vllm_0.32.json.xz").read_bytes()))["deployments"]
CONFIGS = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
DENSE, MOE, DEEPSEEK = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3.1"
SPREAD: dict[str, Any] = {"enable_expert_parallel": True, "data_parallel_size": 2, "max_model_len": 8192}
LOW: dict[str, Any] = SPREAD | {"all2all_backend": "deepep_low_latency"}


@pytest.mark.parametrize(
    ("model", "gpu", "flags", "words"),
    [
        (MOE, "h100", SPREAD | {"enable_dbo": True}, "--all2all-backend allgather_reducescatter: micro-batches"),
        (DENSE, "h100", {"ubatch_size": 2}, "--all2all-backend allgather_reducescatter: micro-batches"),
        (MOE, "h100", LOW | {"enable_dbo": True, "dbo_decode_token_threshold": 1}, "must be at least 2"),
        (MOE, "h100", LOW | {"ubatch_size": 4, "dbo_prefill_token_threshold": 3}, "must be at least 4"),
        (MOE, "h100", {"moe_backend": "flashinfer_trtllm"}, "for compute capability 10.x, h100-sxm has 9"),
        (MOE, "b200", {"moe_backend": "hpc"}, "for compute capability 9.x"),
        (MOE, "h100", {"moe_backend": "aiter"}, "--moe-backend aiter: not for nvidia's cards"),
        (MOE, "h100", {"moe_backend": "marlin"}, "--moe-backend marlin: not for experts in bf16; there are"),
        (MOE, "h100", {"kernel_config": {"moe_backend": "marlin"}}, "--moe-backend marlin: not for experts in bf16"),
        (MOE, "h100", {"moe_backend": "fast"}, "moe_backend 'fast': must be 'auto'"),
        (DEEPSEEK, "h200", {"tensor_parallel_size": 8, "all2all_backend": "moonep"}, "for unquantised bf16 models"),
        (DENSE, "h100", {"mamba_ssu_algorithm": "simple"}, "only with --mamba-backend flashinfer"),
        (DENSE, "h100", {"kda_prefill_backend": "fused"}, "only on ROCm"),
        (DENSE, "a100-80gb", {"attention_config": {"flash_attn_version": 3}}, "flash_attn_version 3: not for"),
        (DENSE, "rtx-5090", {"attention_config": {"flash_attn_version": 4}}, "flash_attn_version 4: not for"),
        (DENSE, "h100", {"attention_config": {"hisparse_config": {"x": 1}}}, "hisparse_config is not planned"),
        (DENSE, "h100", {"attention_config": {"foo": 1}}, "foo"),
        (
            DENSE,
            "h100",
            {"attention_backend": "FLASHINFER", "attention_config": {"backend": "flashinfer"}},
            "vLLM refuses both",
        ),
        (DENSE, "h100", {"attention_config": {"flash_attn_version": 2}, "kv_cache_dtype": "fp8",
                         "attention_backend": "FLASH_ATTN"}, "an fp8 KV cache needs FlashAttention 3"),
    ],
)  # fmt: skip
def test_what_vllm_refuses_is_refused(model: str, gpu: str, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(KvplanError, match=words) as refused:
        estimate(model, gpu, **flags)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "gpu", "flags"),
    [
        (DENSE, "h100", {"moe_backend": "aiter"}),
        (MOE, "h100", {"moe_backend": "humming"}),
        (MOE, "mi300x", {"moe_backend": "aiter"}),
        (MOE, "b200", {"moe_backend": "flashinfer-trtllm"}),
        (DENSE, "h100", {"attention_backend": "auto"}),
        (DENSE, "h100", {"mamba_backend": "cpu"}),
        (MOE, "h100", LOW | {"enable_dbo": True}),
    ],
)
def test_what_vllm_takes_is_planned(model: str, gpu: str, flags: dict[str, Any]) -> None:
    """A backend of experts for a dense model, humming for layers that are not quantised, names in other spellings."""
    assert estimate(model, gpu, **flags).budget.weights.size.value > 0


@pytest.mark.parametrize("i", range(len(TOLD)))
def test_deployments_are_settled_as_vllm_settles_them(i: int) -> None:
    """Graphs, batches, scheduling, micro-batches, runner and backend of vLLM 0.32's own `VllmConfig`; refusals."""
    case, gpu = TOLD[i], get_gpu("h100")
    model = from_config(CONFIGS[case["model"]]["config"], case["model"])
    flags = EngineArgs.model_validate(case["flags"])
    if "refused" in case:
        with pytest.raises(KvplanError):
            check_kernels(model, resolve(flags, model, gpu), gpu)
        return
    args = resolve(flags, model, gpu)
    check_kernels(model, args, gpu)
    mine = {
        name: getattr(args, name) for name in ("max_num_batched_tokens", "max_num_seqs", "async_scheduling")
    }
    mine |= {
        "mode": engine_graphs(model, args, gpu, EngineVersion()).mode,
        "micro_batches": args.num_micro_batches,
        "second_runner": second_runner(model, args, memory_profile("vllm", (0, 32))),
        "attention_backend": args.attention_backend,
    }
    assert mine == {name: case[name] for name in mine}


def test_the_low_latency_buffers_are_deepeps() -> None:
    """2 x (send + receive) of 128 tokens for each of 288 experts; DeepEP's own print of an older layout is 2,116 MB."""
    back_of_then = 16 + 2 * 7168
    then = 4 * 288 * 128 * back_of_then + 2 * 1152 + 128
    assert round(then / 1e6, 2) == 2116.29
    now = 4 * 288 * 128 * (back_of_then - 16 + 4 * 56) + 2 * 1152 + 128
    assert low_latency_bytes(128, 7168, 288) == now


def test_buffers_are_of_spread_experts_alone() -> None:
    model = load_model(DEEPSEEK)

    def size(**flags: Any) -> int:
        return exchange_bytes(model, EngineArgs(max_num_batched_tokens=256, **flags))

    assert size(**LOW) == GiB + low_latency_bytes(256, 7168, 256)
    assert size(**LOW | {"all2all_backend": "nixl_ep"}) == low_latency_bytes(256, 7168, 256)
    throughput = {"all2all_backend": "deepep_high_throughput"}
    assert size(**SPREAD | throughput) == GiB
    assert size(**SPREAD | throughput | {"data_parallel_size": 16}) == 2 * GiB
    assert size(**SPREAD) == size(**LOW | {"enable_expert_parallel": False}) == 0
    assert exchange_bytes(load_model(DENSE), EngineArgs(**LOW)) == 0


def test_the_variable_sizes_deepeps_buffer() -> None:
    args = EngineArgs(max_num_batched_tokens=256, env="VLLM_DEEPEP_BUFFER_SIZE_MB=256", **LOW)
    assert exchange_bytes(load_model(DEEPSEEK), args) == GiB // 4 + low_latency_bytes(256, 7168, 256)
    with pytest.raises(KvplanError, match="VLLM_DEEPEP_BUFFER_SIZE_MB=1G: MiB"):
        estimate(DEEPSEEK, "h200", env="VLLM_DEEPEP_BUFFER_SIZE_MB=1G", tensor_parallel_size=8)


def test_buffers_are_in_the_budget() -> None:
    plain, low = (estimate(MOE, "h100", **flags).budget for flags in (SPREAD, LOW))
    more = low.runtime.size.value - plain.runtime.size.value
    assert more == exchange_bytes(load_model(MOE), EngineArgs(max_num_batched_tokens=256, **LOW))
    assert "buffers of deepep_low_latency" in low.runtime.why


def test_each_expert_has_rows_for_the_tokens_of_all_ranks() -> None:
    """[64 of 128 experts, 256 tokens x 2 ranks, max(2,048, 2 x 768)] and [..., 768], 16 bits."""
    args = EngineArgs(max_num_batched_tokens=256, **LOW)
    assert batched_workspace(load_model(MOE), args) == 2 * 64 * 512 * (2048 + 768)


def test_such_buffers_bring_a_step_of_256_tokens() -> None:
    """vLLM 0.32 `config/scheduler.py`; a stated batch stays."""
    model, gpu = load_model(MOE), get_gpu("h100")
    assert resolve(EngineArgs(**LOW), model, gpu).max_num_batched_tokens == 256
    assert resolve(EngineArgs(performance_mode="throughput", **LOW), model, gpu).max_num_batched_tokens == 512
    assert resolve(EngineArgs(max_num_batched_tokens=1024, **LOW), model, gpu).max_num_batched_tokens == 1024
    assert resolve(EngineArgs(**SPREAD), model, gpu).max_num_batched_tokens == 8192


def test_exchanges_that_no_graph_holds_leave_graphs_out() -> None:
    for backend in ("deepep_high_throughput", "moonep"):
        plan = estimate(MOE, "h100", **SPREAD | {"all2all_backend": backend})
        assert plan.budget.graphs.size.value == 0
        assert estimate(DENSE, "h100", all2all_backend=backend).budget.graphs.size.value > 0


def test_micro_batches_run_in_the_first_model_runner() -> None:
    """Its asynchronous scheduling has no pipeline stages; asked for the second, vLLM takes that."""
    model, gpu = load_model(MOE), get_gpu("h100")
    stages = LOW | {"enable_dbo": True, "pipeline_parallel_size": 2}
    assert not resolve(EngineArgs(**stages), model, gpu).async_scheduling
    assert resolve(EngineArgs(**LOW | {"pipeline_parallel_size": 2}), model, gpu).async_scheduling
    second = EngineArgs(**stages, env="VLLM_USE_V2_MODEL_RUNNER=1")
    assert resolve(second, model, gpu).async_scheduling


def test_json_flags_are_kept_in_one_spelling() -> None:
    assert attention_text({"backend": "flash_attn"}) == '{"backend": "FLASH_ATTN"}'
    assert attention_text({"backend": "auto"}) is None
    assert kernel_text({"moe_backend": "Deep-GEMM"}) == '{"moe_backend": "deep_gemm"}'
