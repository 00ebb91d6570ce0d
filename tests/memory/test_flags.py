"""Every flag of `EngineArgs` changes a plan, the simulated engine or its step time, or a reason says why not."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import answer, estimate
from kvplan.models.load import from_config, load_model
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.scenario.schema import Deployment
from kvplan.simulation.deploy import set_up
from kvplan.timing.step import StepShape

NANO = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
DENSE, MOE, LATENT = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite"
WINDOWED, HYBRID = "google/gemma-3-27b-it", "Qwen/Qwen3-Next-80B-A3B-Instruct"
NEMOTRON = {
    "architectures": ["NemotronHForCausalLM"], "hidden_size": 1024, "vocab_size": 32000, "num_hidden_layers": 2,
    "hybrid_override_pattern": "M-", "mamba_num_heads": 32, "mamba_head_dim": 64, "n_groups": 8,
    "ssm_state_size": 128, "conv_kernel": 4, "num_attention_heads": 16,
    "intermediate_size": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
"""A model of states alone."""

TIER = (
    '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both", '
    '"kv_connector_extra_config": {"cpu_bytes_to_use": 17179869184}}'
)

SPREAD = {
    "enable_expert_parallel": True,
    "data_parallel_size": 2,
    "all2all_backend": "deepep_low_latency",
}
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "tensor_parallel_size": (DENSE, {}, 2),
    "pipeline_parallel_size": (DENSE, {}, 2),
    "data_parallel_size": (MOE, {"enable_expert_parallel": True}, 2),
    "use_fp64_gumbel": (DENSE, {}, True),
    "return_sampling_mask": (DENSE, {}, True),
    "watermark_config": (DENSE, {}, '{"key": 7}'),
    "ir_op_priority": (DENSE, {}, '{"rms_norm": ["native"]}'),
    "disable_nccl_for_dp_synchronization": (MOE, {"data_parallel_size": 2}, False),
    "elastic_ep_max_dp_size": (
        MOE,
        {
            "data_parallel_size": 2,
            "enable_expert_parallel": True,
            "enable_eplb": True,
            "enable_elastic_ep": True,
        },
        8,
    ),
    "nnodes": (DENSE, {"tensor_parallel_size": 2}, 2),
    "data_parallel_size_local": (MOE, {"data_parallel_size": 2, "enable_expert_parallel": True}, 1),
    "data_parallel_rank": (MOE, {"data_parallel_size": 16, "enable_expert_parallel": True}, 0),
    "decode_context_parallel_size": (LATENT, {"tensor_parallel_size": 2}, 2),
    "enable_expert_parallel": (MOE, {"data_parallel_size": 2}, True),
    "max_model_len": (DENSE, {}, 8192),
    "max_num_seqs": (DENSE, {}, 16),
    "max_num_active_seqs": (DENSE, {}, 16),
    "max_num_batched_tokens": (DENSE, {}, 4096),
    "max_num_scheduled_tokens": (DENSE, {}, 4096),
    "gpu_memory_utilization": (DENSE, {}, 0.5),
    "kv_cache_memory_bytes": (DENSE, {}, 20 << 30),
    "num_gpu_blocks_override": (DENSE, {}, 5000),
    "block_size": (DENSE, {}, 32),
    "kv_cache_dtype": (DENSE, {}, "fp8"),
    "kv_cache_dtype_skip_layers": (DENSE, {"kv_cache_dtype": "fp8"}, ("0",)),
    "attention_backend": (DENSE, {}, "FLASHINFER"),
    "enable_prefix_caching": (DENSE, {}, False),
    "prefix_match_unit": (HYBRID, {"tensor_parallel_size": 4}, 16),
    "prefix_cache_retention_interval": (HYBRID, {"tensor_parallel_size": 4}, None),
    "performance_mode": (DENSE, {}, "throughput"),
    "enable_chunked_prefill": (DENSE, {}, False),
    "async_scheduling": (DENSE, {}, False),
    "scheduling_policy": (DENSE, {}, "priority"),
    "long_prefill_token_threshold": (DENSE, {}, 1024),
    "long_prefill_token_threshold_adaptive": (DENSE, {"long_prefill_token_threshold": 1024}, True),
    "scheduler_reserve_full_isl": (DENSE, {}, False),
    "prefill_schedule_interval": (DENSE, {}, 4),
    "watermark": (DENSE, {}, 0.1),
    "kv_offloading_size": (DENSE, {}, 16),
    "kv_transfer_config": (DENSE, {}, TIER),
    "offload_backend": (DENSE, {"offload_group_size": 4, "cpu_offload_gb": 2}, "uva"),
    "cpu_offload_gb": (DENSE, {}, 2),
    "cpu_offload_params": (DENSE, {"cpu_offload_gb": 2}, ("down_proj",)),
    "offload_group_size": (DENSE, {}, 4),
    "offload_num_in_group": (DENSE, {"offload_group_size": 4}, 2),
    "offload_prefetch_step": (DENSE, {"offload_group_size": 4}, 2),
    "offload_params": (DENSE, {"offload_group_size": 4}, ("mlp",)),
    "disable_hybrid_kv_cache_manager": (WINDOWED, {"max_model_len": 16384}, True),
    "swa_bounded_replay": (
        "deepseek-ai/DeepSeek-V4.1-Flash",
        {"tensor_parallel_size": 8, "max_model_len": 16384},
        False,
    ),
    "enable_mamba_shared_prefix_checkpoint": (
        HYBRID,
        {"tensor_parallel_size": 4, "num_speculative_tokens": 1, "prefix_match_unit": 16},
        True,
    ),
    "kv_sharing_fast_prefill": ("google/gemma-4-E4B-it", {"max_model_len": 16384}, True),
    "mamba_cache_dtype": (HYBRID, {"tensor_parallel_size": 4}, "float32"),
    "mamba_ssm_cache_dtype": (HYBRID, {"tensor_parallel_size": 4}, "float32"),
    "engram_config": (
        "deepseek-ai/DeepSeek-V4.1-Flash",
        {"tensor_parallel_size": 16, "max_model_len": 16384},
        '{"cpu_offload": false}',
    ),
    "use_replayssm": (NANO, {"mamba_backend": "flashinfer", "enable_prefix_caching": False}, True),
    "replayssm_buffer_len": (
        NANO,
        {"mamba_backend": "flashinfer", "enable_prefix_caching": False, "use_replayssm": True},
        8,
    ),
    "num_speculative_tokens": (HYBRID, {"tensor_parallel_size": 4}, 1),
    "speculative_method": (HYBRID, {"tensor_parallel_size": 4, "num_speculative_tokens": 1}, "ngram"),
    "speculative_config": (
        HYBRID,
        {"tensor_parallel_size": 4, "num_speculative_tokens": 1, "max_num_seqs": 256},
        {"draft_sample_method": "probabilistic"},
    ),
    "quantization": (DENSE, {}, "fp8"),
    "quantization_config": (DENSE, {"quantization": "fp8_per_block"}, '{"ignore": ["re:.*down_proj"]}'),
    "dtype": (DENSE, {"kv_cache_dtype": "fp8"}, "float32"),
    "enforce_eager": (DENSE, {}, True),
    "optimization_level": (DENSE, {}, 1),
    "compilation_config": (DENSE, {}, {"cudagraph_mode": "FULL_DECODE_ONLY"}),
    "cudagraph_capture_sizes": (DENSE, {}, (1, 2, 4)),
    "max_cudagraph_capture_size": (DENSE, {}, 8),
    "all2all_backend": (
        MOE,
        {"enable_expert_parallel": True, "data_parallel_size": 2},
        "deepep_high_throughput",
    ),
    "enable_dbo": (MOE, SPREAD, True),
    "ubatch_size": (MOE, SPREAD, 3),
    "dbo_decode_token_threshold": (MOE, SPREAD | {"enable_dbo": True}, 512),
    "dbo_prefill_token_threshold": (MOE, SPREAD | {"enable_dbo": True}, 8192),
    "attention_config": (DENSE, {}, {"backend": "flashinfer"}),
    "kda_prefill_backend": ("moonshotai/Kimi-Linear-48B-A3B-Instruct", {"tensor_parallel_size": 4}, "triton"),
    "disable_custom_all_reduce": (DENSE, {"tensor_parallel_size": 2}, True),
    "moe_backend": (MOE, {}, "triton"),
    "kernel_config": (MOE, {}, {"moe_backend": "triton"}),
    "linear_backend": (DENSE, {"quantization": "fp8"}, "marlin"),
    "mamba_backend": ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", {}, "flashinfer"),
    "mamba_ssu_algorithm": ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", {"mamba_backend": "flashinfer"}, "simple"),
    "gdn_prefill_backend": (HYBRID, {"tensor_parallel_size": 4}, "triton"),
    "kda_decode_backend": ("moonshotai/Kimi-Linear-48B-A3B-Instruct", {"tensor_parallel_size": 4}, "triton"),
    "dcp_comm_backend": (LATENT, {"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "a2a"),
    "sparse_indexer_topk_backend": (
        "deepseek-ai/DeepSeek-V3.2",
        {"tensor_parallel_size": 8, "pipeline_parallel_size": 2},
        "torch",
    ),
    "language_model_only": (WINDOWED, {"max_model_len": 16384}, True),
    "disable_sliding_window": (WINDOWED, {"max_model_len": 1024}, True),
    "enable_prompt_embeds": (DENSE, {}, True),
    "env": ("Qwen/Qwen3-8B", {}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    "limit_mm_per_prompt": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {"max_model_len": 65536, "max_num_seqs": 8},
        '{"video": 0}',
    ),
    "mm_processor_kwargs": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {"max_model_len": 65536, "max_num_seqs": 8},
        {"max_pixels": 1003520},
    ),
    "skip_mm_profiling": (WINDOWED, {"max_model_len": 16384, "max_num_seqs": 64}, True),
    "mm_encoder_tp_mode": (WINDOWED, {"max_model_len": 16384, "tensor_parallel_size": 2}, "data"),
    "mm_encoder_attn_backend": ("Qwen/Qwen2.5-VL-7B-Instruct", {"max_model_len": 65536}, "FLASHINFER"),
    "ec_transfer_config": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {"max_model_len": 65536},
        '{"ec_connector": "ECMooncakeConnector", "ec_role": "ec_consumer"}',
    ),
    "model_impl": (DENSE, {}, "transformers"),
    "enable_lora": (DENSE, {}, True),
    "max_loras": (DENSE, {"enable_lora": True}, 4),
    "specialize_active_lora": (DENSE, {"enable_lora": True, "max_loras": 4}, True),
    "max_lora_rank": (DENSE, {"enable_lora": True}, 64),
    "fully_sharded_loras": (DENSE, {"enable_lora": True, "tensor_parallel_size": 2}, True),
    "lora_dtype": (DENSE, {"enable_lora": True, "dtype": "float32"}, "float16"),
    "lora_target_modules": (DENSE, {"enable_lora": True}, ("o_proj",)),
    "enable_moe_shared_loras": (MOE, {"enable_lora": True}, True),
    "enable_mixed_moe_lora_format": ("openai/gpt-oss-20b", {"enable_lora": True}, True),
    "enable_tower_connector_lora": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {"max_model_len": 65536, "max_num_seqs": 8, "enable_lora": True},
        True,
    ),
    "enable_eplb": (MOE, {"tensor_parallel_size": 2, "enable_expert_parallel": True}, True),
    "eplb_config": (
        MOE,
        {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True},
        '{"num_redundant_experts": 2}',
    ),
    "mm_ipc_gpu_memory_gb": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        {"max_model_len": 65536, "max_num_seqs": 8},
        2.0,
    ),
    "dcp_q_replicate": (
        "deepseek-ai/DeepSeek-V3",
        {"tensor_parallel_size": 16, "decode_context_parallel_size": 2, "max_model_len": 16384},
        True,
    ),
}
"""Field -> (model, flags beside it, a value that changes the answer)."""
WITHOUT_EFFECT = {
    **dict.fromkeys(
        ("runner", "convert", "pooler_config"), "planned, not simulated: tests/memory/test_pooling.py"
    ),
    "api_server_count": "servers stand before the engine: what clients see, tests/simulation/test_frontend.py",
    "renderer_num_workers": "threads of those: the same",
    "mm_processor_cache_gb": "host memory; pooling refuses it beside those: tests/engines/test_late_checks.py",
    "prefill_context_parallel_size": "cards, experts cut; not simulated: tests/memory/test_prefill_context.py",
    "enable_hc_sp": "refused but for Qwen4Exp, which is timed as without: tests/memory/test_prefill_context.py",
    "max_num_queued_reqs": "API servers refuse, before the engine: tests/simulation/test_refusals.py",
    "max_num_queued_tokens": "the same",
    "stream_interval": "streams leave API servers in groups: tests/simulation/test_streams.py",
    "kv_offloading_backend": "lmcache is an outside server's tier, refused by name beside a size; nothing without one",
    "mm_encoder_only": "refused, as is an encoder's processor: tests/memory/test_encoder_engines.py",
    "mm_processor_device": "the same",
    "mm_encoder_attn_dtype": "not for H100: tests/memory/test_tower_attention.py",
    "media_io_kwargs": "start-up heeds it for Nemotron's towers alone, tests/memory/test_told_items.py",
    "mamba_cache_mode": "vLLM overrides it: align with prefix caching, none without",
    "override_generation_config": "the same: tests/profiles/test_engine_terms.py",
    "generation_config": "nothing of memory; sampling with top-k takes time with vLLM 0.11, tests/profiles",
    "enable_batch_sharded_sampling": "divides what a sampled row costs, which no bundled profile of H100 tells apart;"
    " the profile run samples whole; refused on one rank",
    "enable_return_routed_experts": "a buffer made after the pool is; refused without experts or prefix caching",
    "enable_elastic_ep": "as many ranks as there are, unless elastic_ep_max_dp_size says more",
    **dict.fromkeys(
        ("data_parallel_start_rank", "data_parallel_hybrid_lb", "data_parallel_external_lb"),
        "who spreads requests, in tests/simulation/test_load_balancing.py; refusals, tests/engines/test_machines.py",
    ),
    "data_parallel_multi_port_external_lb": "the same",
    "data_parallel_backend": "who starts replicas: tests/engines/test_machines.py",
    "node_rank": "which command of several it is: tests/engines/test_machines.py",
    "headless": "the same",
    "dcp_kv_cache_interleave_size": "the same as the next: tests/memory/test_interleaving.py",
    "cp_kv_cache_interleave_size": "which rank a token lies on, not how many; refused where no block is whole",
    "mamba_block_size": "beside attention the attention's block size wins; see the test on a model of states alone",
}


def facts(model: str, flags: dict[str, Any]) -> list[object]:
    """Memory, layout and traces of a plan; the engine and a step of the simulation."""
    plan = estimate(load_model(model), "h100", EngineArgs(**flags))
    setup = set_up(Deployment(model=model, gpu="h100", engine=EngineArgs(**flags)))
    step = StepShape(num_tokens=64, num_decodes=64, decode_context=64 * 4000)
    chunk = StepShape(3000, 0, 0, 3000, 2, 2.2e6)
    times = [setup.step_time.ticks(shape) for shape in (step, chunk)]
    return [plan.budget, plan.layout, plan.traces, setup.config, times, setup.sources["step_time_range"]]


def test_every_flag_is_listed_once() -> None:
    assert sorted([*CASES, *WITHOUT_EFFECT]) == sorted(EngineArgs.model_fields)


@pytest.mark.parametrize("field", CASES)
def test_every_flag_changes_something(field: str) -> None:
    model, beside, value = CASES[field]
    assert facts(model, beside | {field: value}) != facts(model, beside)


def states_alone() -> ModelSpec:
    model = from_config(NEMOTRON)
    assert {mixer.kind for layer in model.layers for mixer in layer.mixers} == {
        AttentionKind.STATE,
        AttentionKind.NONE,
    }
    return model


def test_a_mamba_block_is_where_states_are_kept() -> None:
    """With prefix caching a state every so many tokens; beside attention at the ends of attention's blocks."""
    alone = estimate(states_alone(), "h100", enable_prefix_caching=True, mamba_block_size=64)
    assert alone.layout is not None
    assert [group.block_size for group in alone.layout.groups] == [64]
    beside = estimate(HYBRID, "h100", tensor_parallel_size=4, mamba_block_size=64)
    assert beside.layout == estimate(HYBRID, "h100", tensor_parallel_size=4).layout


def test_the_cache_mode_is_what_prefix_caching_says() -> None:
    for asked in (None, "align", "none"):
        for caching in (True, False):
            args = EngineArgs(tensor_parallel_size=4, mamba_cache_mode=asked, enable_prefix_caching=caching)  # type: ignore[arg-type]
            plan = estimate(HYBRID, "h100", args)
            assert plan.args.mamba_cache_mode == ("align" if caching else "none")
            unasked = args.model_copy(update={"mamba_cache_mode": None})
            assert answer(plan.question).layout == estimate(HYBRID, "h100", unasked).layout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"mamba_cache_mode": "foo"}, "mamba_cache_mode 'foo': must be 'align' or 'none'"),
        ({"mamba_block_size": 12}, "mamba_block_size 12: must be a multiple of 8"),
        (
            {"mamba_block_size": 64, "enable_prefix_caching": False},
            "--mamba-block-size 64: only with prefix caching",
        ),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 300_000},
            "caches its states at the ends",
        ),
    ],
)
def test_flags_of_states_are_refused_by_name(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        estimate(HYBRID, "h100", tensor_parallel_size=4, **flags)


GEMMA = "google/gemma-3-4b-it"
OFF = {"enable_prefix_caching": False}


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        (DENSE, {"prefix_match_unit": 7}, "--prefix-match-unit 7 hits of one .* block size, 16: .* set it to 16"),
        (DENSE, {"prefix_match_unit": 8}, "--prefix-match-unit 8 hits of one"),
        (DENSE, OFF | {"prefix_match_unit": 7, "kv_offloading_size": 16}, "--prefix-match-unit 7 hits of one"),
        (GEMMA, {"prefix_match_unit": 7}, "--prefix-match-unit 7 must divide the block sizes .*, 16; 16 does"),
        (GEMMA, {"prefix_cache_retention_interval": 100}, "--prefix-cache-retention-interval 100 .* multiple of 16"),
        (GEMMA, OFF | {"prefix_cache_retention_interval": 100}, "multiple of 16"),
        (DENSE, {"prefix_cache_retention_interval": 64}, "--prefix-cache-retention-interval 64 has no effect"),
        (DENSE, OFF | {"prefix_cache_retention_interval": 64}, "has no effect .* set it to 0"),
        (
            GEMMA,
            {"disable_hybrid_kv_cache_manager": True, "prefix_cache_retention_interval": 64},
            "has no effect",
        ),
    ],
)  # fmt: skip
def test_hits_that_end_where_no_block_does_are_refused_by_plan_and_simulation(
    model: str, flags: dict[str, Any], words: str
) -> None:
    """vLLM 0.32 `kv_cache_utils.py: resolve_kv_cache_block_sizes` asks for a unit only while blocks have names,
    `kv_cache_coordinator.py: _validate_prefix_cache_retention_interval` for an interval always."""
    with pytest.raises(KvplanError, match=words) as refused:
        estimate(model, "h100", **flags)
    assert "\n" not in str(refused.value)
    with pytest.raises(KvplanError, match=words):
        set_up(Deployment(model=model, gpu="h100", engine=EngineArgs(**flags)))


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (DENSE, {"prefix_match_unit": 16, "prefix_cache_retention_interval": None}),
        (DENSE, OFF | {"prefix_match_unit": 7}),
        (GEMMA, {"prefix_match_unit": 8, "prefix_cache_retention_interval": 96}),
        (GEMMA, {"block_size": 32, "prefix_match_unit": 16, "prefix_cache_retention_interval": None}),
    ],
)
def test_hits_that_end_with_blocks_are_planned_and_simulated(model: str, flags: dict[str, Any]) -> None:
    assert estimate(model, "h100", **flags).layout is not None
    config = set_up(Deployment(model=model, gpu="h100", engine=EngineArgs(**flags))).config
    assert config.prefix_cache_retention_interval == flags.get("prefix_cache_retention_interval", 0)


def test_rings_are_not_dealt_between_ranks_with_prefix_caching() -> None:
    """Qwen 4's says nothing of them and vLLM asserts; GLM's stays whole on each. Without caching nobody asserts."""
    flags: dict[str, Any] = {"tensor_parallel_size": 8, "decode_context_parallel_size": 2}
    qwen4, glm = "Qwen/Qwen3.8-Flash-Next", "zai-org/GLM-5.3-Flash"
    with pytest.raises(KvplanError, match=r"replicated draft groups, got: CircularBufferSpec"):
        estimate(qwen4, "h200", **flags)
    for model, more in ((qwen4, OFF), (qwen4, {"decode_context_parallel_size": 1}), (glm, {})):
        plan = estimate(model, "h200", **flags | more)
        assert AttentionKind.CIRCULAR in {group.kind for group in plan.shape.groups}


@pytest.mark.parametrize("word", ["None", "none", ""])
def test_every_optional_number_can_be_left_open_in_words(word: str) -> None:
    """vLLM 0.32 `engine/arg_utils.py: optional_type` takes "None" and ""; a new field of that kind too.

    Words that mean something else (`mamba_cache_mode` none) stay what they are.
    """
    hints = {name: set(get_args(hint)) for name, hint in get_type_hints(EngineArgs).items()}
    numbers = {name for name, kinds in hints.items() if NoneType in kinds and kinds & {int, float}}
    assert {"prefix_match_unit", "prefix_cache_retention_interval", "gpu_memory_utilization"} < numbers
    for name in numbers:
        assert getattr(EngineArgs.model_validate({name: word}), name) is None
    assert EngineArgs.model_validate({"mamba_cache_mode": "none"}).mamba_cache_mode == "none"
