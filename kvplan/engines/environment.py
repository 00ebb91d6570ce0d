"""Environment variables of vLLM: which act on the plan, which change it in ways that are not planned, which do nothing.

Source: vLLM 0.32 `envs.py`, and where each is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from kvplan.engines.idle_variables import IDLE
from kvplan.ground.errors import KvplanError, did_you_mean


class Environment(NamedTuple):
    """The variables that act, read; None: left to the engine."""

    allow_long_max_model_len: bool = False
    """VLLM_ALLOW_LONG_MAX_MODEL_LEN: contexts beyond the model's are not refused."""
    pp_layer_partition: tuple[int, ...] = ()
    """VLLM_PP_LAYER_PARTITION: layers of each pipeline stage; empty: even shares."""
    use_v2_model_runner: bool | None = None
    """VLLM_USE_V2_MODEL_RUNNER: whose sampler peaks in the profile run."""
    memory_profiler_estimate_cudagraphs: bool = True
    """VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS: whether graphs are taken out of the budget before the KV pool."""
    allow_chunked_local_attn_with_hybrid_kv_cache: bool = True
    """The variable of that name: whether chunks of Llama 4 keep only what they see."""
    mla_disable: bool = False
    """VLLM_MLA_DISABLE: keys and values of every head in place of latents."""
    use_breakable_cudagraph: bool | None = None
    """VLLM_USE_BREAKABLE_CUDAGRAPH: CUDA graphs whose pieces are cut while they are captured, without compilation."""
    deepep_buffer_size_mb: int = 1024
    """VLLM_DEEPEP_BUFFER_SIZE_MB: MiB of DeepEP's buffer within a machine, and of that between machines."""
    deepep_high_throughput_force_intra_node: bool = False
    """VLLM_DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE: without the latter."""
    dcp_q_replicate: bool | None = None
    """VLLM_DCP_Q_REPLICATE: as --dcp-q-replicate, over which it goes."""
    replicate_embed: bool = False
    """VLLM_REPLICATE_EMBED: every rank holds the whole embedding, where the model's class looks."""
    batch_invariant: bool = False
    """VLLM_BATCH_INVARIANT: kernels whose results do not depend on the batch; not all attention has such."""
    sparse_indexer_max_logits_mb: int = 512
    """VLLM_SPARSE_INDEXER_MAX_LOGITS_MB: MiB of logits that an indexer of sparse attention holds at a time."""
    flashinfer_workspace_buffer_size: int = 394 << 20
    """VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE: bytes of FlashInfer's workspace."""
    kv_cache_layout: str = ""
    """VLLM_KV_CACHE_LAYOUT: in which order a pool's layers, blocks, heads, tokens and contents lie."""
    moe_routing_simulation_strategy: str = ""
    """VLLM_MOE_ROUTING_SIMULATION_STRATEGY: experts drawn at random in place of routed."""
    use_simple_kv_offload: bool = False
    """VLLM_USE_SIMPLE_KV_OFFLOAD: --kv-offloading-size by another connector."""
    rocm_fp8_padding: bool = True
    """VLLM_ROCM_FP8_PADDING: rows of FP8 are set apart on AMD's cards."""
    mxfp8_emulation_dequant_at_load: bool = True
    """VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD: MXFP8 in 16 bits where a card has no kernel for it."""
    mxfp4_emulation_dequant_at_load: bool = False
    """VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD: linear layers in MXFP4 in 16 bits where a card has no kernel for them."""
    kimi_k3_shard_sp_shared_expert: bool = False
    """VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT: Kimi's MLPs are cut where tokens are split over ranks too."""
    weight_offloading_disable_uva: bool = False
    """VLLM_WEIGHT_OFFLOADING_DISABLE_UVA: weights of --cpu-offload-gb are copied for each layer, not read in place."""
    adaptive_verification_profile_context_len: int = 8192
    """VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN: context of the steps that price the verifying of drafts."""
    weight_offloading_disable_pin_memory: bool = False
    """VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY: weights in host memory that may be paged."""


def _number(name: str, value: str) -> bool:
    if not re.fullmatch(r"[+-]?\d+", value.strip()):
        raise KvplanError(f"{name}={value[:40]}: vLLM reads a whole number, 0 or 1")
    return int(value) != 0


def _mib(name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,7}", value.strip()):
        raise KvplanError(f"{name}={value[:40]}: MiB, a whole number")
    return int(value)


def _size(name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,12}", value.strip()):
        raise KvplanError(f"{name}={value[:40]}: bytes, a whole number")
    return int(value)


def _tokens(name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value.strip()):
        raise KvplanError(f"{name}={value[:40]}: tokens, a whole number")
    return int(value)


ROUTINGS = ("", "uniform_random", "normal_routing")
"""Of vLLM 0.32 `layers/fused_moe/router/routing_simulator_router.py`."""


def _routing(name: str, value: str) -> str:
    if value not in ROUTINGS:
        raise KvplanError(f"{name}={value[:40]}: vLLM has {' and '.join(ROUTINGS[1:])}")
    return value


LAYOUTS = ("LBNHC", "LBHNC", "LHBNC", "NHD", "HND", "BLHNC", "BLNHC", "BHLNC")
"""Of vLLM 0.32 `envs.py`; NHD and HND are the first two."""


def _layout(name: str, value: str) -> str:
    if value not in LAYOUTS:
        raise KvplanError(f"{name}={value[:40]}: vLLM has {', '.join(LAYOUTS)}")
    return {"NHD": "LBNHC", "HND": "LBHNC"}.get(value, value)


def _word(name: str, value: str) -> bool:
    del name
    return value.strip().casefold() in ("1", "true")


def _partition(name: str, value: str) -> tuple[int, ...]:
    """As vLLM reads it: `int` of what is between commas, blanks and all (`distributed/utils.py: get_pp_indices`)."""
    parts = value.split(",")
    if not all(re.fullmatch(r"\d{1,6}", part.strip()) for part in parts):
        raise KvplanError(f"{name}={value[:40]}: layers of each pipeline stage, e.g. 20,21,21,18")
    return tuple(map(int, parts))


ACTS = {
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": _word,
    "VLLM_PP_LAYER_PARTITION": _partition,
    "VLLM_USE_V2_MODEL_RUNNER": _number,
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": _number,
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": _number,
    "VLLM_MLA_DISABLE": _number,
    "VLLM_USE_BREAKABLE_CUDAGRAPH": _number,
    "VLLM_DEEPEP_BUFFER_SIZE_MB": _mib,
    "VLLM_DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE": _number,
    "VLLM_REPLICATE_EMBED": _number,
    "VLLM_DCP_Q_REPLICATE": _number,
    "VLLM_BATCH_INVARIANT": _number,
    "VLLM_SPARSE_INDEXER_MAX_LOGITS_MB": _mib,
    "VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE": _size,
    "VLLM_KV_CACHE_LAYOUT": _layout,
    "VLLM_MOE_ROUTING_SIMULATION_STRATEGY": _routing,
    "VLLM_USE_SIMPLE_KV_OFFLOAD": _number,
    "VLLM_ROCM_FP8_PADDING": _number,
    "VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD": _word,
    "VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD": _word,
    "VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT": _number,
    "VLLM_WEIGHT_OFFLOADING_DISABLE_UVA": _number,
    "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY": _number,
    "VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN": _tokens,
}
"""Variables that act -> how vLLM reads them."""
KERNELS = "kernels: timed as the default's"
SLOWER = "a check in every step, whose time nobody measured"
NOT_PLANNED = {
    "VLLM_HUMMING_ONLINE_QUANT_CONFIG": "weights of --quantization humming, which is refused",
    "VLLM_RAY_DP_PACK_STRATEGY": "which replicas Ray puts on one machine: planned as strict, as many on each",
    "VLLM_PLUGINS": "code of one's own",
    "VLLM_MODEL_REDIRECT_PATH": "another model under this one's name",
    "VLLM_DP_SIZE": "replicas that are started by hand; state --data-parallel-size",
    "VLLM_ENABLE_STARTUP_PLAN": "the KV pool of an earlier start, where one was kept",
    "VLLM_USE_RUST_FRONTEND": "the API server's time is Python's",
    "VLLM_USE_FASTOKENS": "the API server's time is that of the usual tokenizers",
    "VLLM_VIDEO_LOADER_BACKEND": "what decodes videos on the card takes of it",
    "VLLM_COMPUTE_NANS_IN_LOGITS": SLOWER,
    "VLLM_RAISE_ON_LOGIT_NANS": SLOWER,
    "VLLM_GPU_SYNC_CHECK": SLOWER,
    "VLLM_TRACE_FUNCTION": SLOWER,
    **dict.fromkeys(
        (
            "VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE",
            "VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM",
            "VLLM_USE_RAY_WRAPPED_PP_COMM",
        ),
        "what stages exchange under Ray is timed as the default's",
    ),
}
"""Variables that change memory, scheduling or time in ways that are not planned, and what they are about."""
KERNEL_NAMES = re.compile(
    r"VLLM_(ROCM_(USE|AITER|QUICK|MONO|SHUFFLE)|USE_(FLASHINFER|DEEP_GEMM|TRITON_AWQ|OINK|FUSED_MOE|HW_AGNOSTIC|DIRECT_DCP"
    r"|NCCL_SYMM)|MOE_(USE|SKIP)|ALLREDUCE_|FLASHINFER_(ALLREDUCE|MOE)|BLOCKSCALE|ENABLE_(GEMM|HPC|FLA|INDUCTOR|PREGRAD)"
    r"|HUMMING|MARLIN|GDN_|KIMI_K3|MULTI_STREAM|SHARED_EXPERTS|DISABLE_(SHARED|DSV4|PYNCCL)|DEEPEP|B12X|DBO|TRITON_USE"
    r"|DISABLED_KERNELS|TUNED_CONFIG|MAX_TOKENS_PER_EXPERT|SSM_CONV|FLOAT32|CUSTOM_ALLREDUCE|FLASHINFER_AUTOTUNE_SKIP"
    r"|ROCM_FP8_MFMA|TRITON_FORCE|LORA_(DISABLE_PDL|ENABLE_DUAL))"
)
"""Variables that choose or tune kernels."""
GONE = {"VLLM_ATTENTION_BACKEND": "--attention-backend", "VLLM_ALL2ALL_BACKEND": "--all2all-backend"}
"""Variables of older versions -> the flag that took their place; 0.32 does not read them."""


def environment_text(value: Any) -> str | None:
    """`NAME=VALUE` of variables that act, by name, as a shell takes them before a command.

    Raises:
        ValueError: a variable that does not act, or a value that vLLM cannot read.

    >>> environment_text("VLLM_USE_V2_MODEL_RUNNER=0 VLLM_PP_LAYER_PARTITION=30,34")
    'VLLM_PP_LAYER_PARTITION=30,34 VLLM_USE_V2_MODEL_RUNNER=0'
    """
    if value is None:
        return None
    pairs = (
        value.items()
        if isinstance(value, Mapping)
        else (w.partition("=")[::2] for w in _PAIRS.split(str(value)))
    )
    told = {
        str(name).strip(): _one_word(int(said) if isinstance(said, bool) else said) for name, said in pairs
    }
    told.pop("", None)
    for name in told:
        if name not in ACTS:
            raise ValueError(
                f"{name[:60]} is no variable that acts on the plan{did_you_mean(name[:60], ACTS)}"
            )
    text = " ".join(f"{name}={told[name]}" for name in sorted(told))
    try:
        environment_of(text or None)
    except KvplanError as error:
        raise ValueError(str(error)) from None
    return text or None


_PAIRS = re.compile(r"\s+(?=[A-Za-z_]\w*=|$)")
"""What parts `NAME=VALUE`s: a value may have blanks."""


def _one_word(value: Any) -> str:
    """A value without the blanks around its commas and at its ends, which no reader of these minds."""
    return re.sub(r"\s*,\s*", ",", str(value).strip())


@lru_cache(64)
def environment_of(text: str | None) -> Environment:
    """The variables read.

    >>> environment_of("VLLM_PP_LAYER_PARTITION=30,34").pp_layer_partition
    (30, 34)
    """
    pairs = (word.partition("=")[::2] for word in _PAIRS.split(text) if word) if text else ()
    told: dict[str, Any] = {
        name.removeprefix("VLLM_").lower(): ACTS[name](name, said) for name, said in pairs
    }
    return Environment(**told)


def _about(name: str) -> str:
    """What a variable that does not act changes; "" for one without effect."""
    if name in NOT_PLANNED or name in IDLE:
        return NOT_PLANNED.get(name, "")
    if name in GONE:
        return f"vLLM 0.32 does not read it; now {GONE[name]}"
    if KERNEL_NAMES.match(name):
        return KERNELS
    unknown = f"vLLM 0.32 does not read it{did_you_mean(name[:60], (*ACTS, *NOT_PLANNED, *IDLE), 1)}"
    return unknown if name.startswith("VLLM_") else ""


def sort_out(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of variables that do not act: those that change the plan, with what they are about; those without effect.

    >>> sort_out(["VLLM_USE_DEEP_GEMM", "HF_TOKEN"])
    (['VLLM_USE_DEEP_GEMM (kernels: timed as the default\'s)'], ['HF_TOKEN'])
    """
    unplanned, unaffected = [], []
    for name in sorted(set(names) - set(ACTS)):
        if about := _about(name):
            unplanned.append(f"{name} ({about})")
        else:
            unaffected.append(name)
    return unplanned, unaffected
