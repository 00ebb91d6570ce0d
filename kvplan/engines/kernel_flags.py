"""vLLM's flags of kernels and of what ranks exchange by: names, and the two JSON flags that say them too."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kvplan.ground.config import Config, read_object


def as_word(value: Any) -> Any:
    """A kernel's name as vLLM reads it: any case, dashes for underscores."""
    return value.lower().replace("-", "_") if isinstance(value, str) else value


def as_maybe(value: Any) -> Any:
    """A name in any case, or none of one's own."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else as_word(value)


MoeBackend = Annotated[
    Literal[
        "auto", "triton", "batched_triton", "deep_gemm", "deep_gemm_mega_moe", "cutlass", "flashinfer_trtllm",
        "flashinfer_cutlass", "flashinfer_cutedsl", "flashinfer_moe_ep_cutedsl", "flashinfer_b12x", "b12x",
        "flashinfer_moe_ep_mega_deep_gemm", "marlin", "humming", "triton_unfused", "aiter", "aiter_mega_moe",
        "aiter_triton_mxfp4_bf16", "flydsl", "hpc", "emulation", "rdna3",
    ],
    BeforeValidator(as_word),
]  # fmt: skip
LinearBackend = Annotated[
    Literal[
        "auto", "cutlass", "flashinfer_cutlass", "flashinfer_cutedsl", "flashinfer_trtllm", "flashinfer_cudnn",
        "flashinfer_b12x", "b12x", "marlin", "humming", "triton", "deep_gemm", "torch", "aiter", "machete", "fbgemm",
        "conch", "exllama", "emulation", "xpu", "xpu_woq",
    ],
    BeforeValidator(as_word),
]  # fmt: skip
TopkBackend = Annotated[
    Literal[
        "auto", "deep_select", "cooperative", "persistent", "per_row", "flashinfer", "torch", "aiter"
    ],
    BeforeValidator(as_word),
]  # fmt: skip
All2AllBackend = Annotated[
    Literal[
        "allgather_reducescatter", "naive", "pplx", "deepep_high_throughput", "deepep_low_latency", "deepep_v2",
        "mori_high_throughput", "mori_low_latency", "moonep", "nixl_ep", "flashinfer_all2allv",
        "flashinfer_nvlink_one_sided", "flashinfer_nvlink_two_sided",
    ],
    BeforeValidator(as_word),
]  # fmt: skip
OVER_NVLINK = ("moonep", "flashinfer_all2allv", "flashinfer_nvlink_one_sided", "flashinfer_nvlink_two_sided")
"""Exchanges that know no network: vLLM 0.32 `config/parallel.py`, `distributed/device_communicators/all2all.py`."""
MambaBackend = Annotated[Literal["triton", "flashinfer", "cpu"], BeforeValidator(as_word)]
SsuAlgorithm = Annotated[
    Literal["auto", "simple", "vertical", "horizontal"] | None, BeforeValidator(as_maybe)
]
GdnPrefill = Annotated[
    Literal["flashinfer", "triton", "cutedsl", "aiter_flydsl"] | None, BeforeValidator(as_maybe)
]
KdaPrefill = Annotated[
    Literal["auto", "triton", "flashkda", "flashinfer", "fused"] | None, BeforeValidator(as_maybe)
]
KdaDecode = Annotated[Literal["auto", "native", "flashinfer", "triton"] | None, BeforeValidator(as_maybe)]
DcpExchange = Annotated[Literal["ag_rs", "a2a"] | None, BeforeValidator(as_maybe)]

BATCHED_EXCHANGES = ("deepep_low_latency", "nixl_ep")
"""Whose buffers hold so many tokens for every expert."""
EAGER_EXCHANGES = ("deepep_high_throughput", "moonep")
"""Kernels between experts' ranks that no CUDA graph holds."""
SPLIT_EXCHANGES = ("deepep_low_latency", "deepep_high_throughput", "nixl_ep")
"""Exchanges that two micro-batches may overlap."""


class KernelConfig(Config):
    """`--kernel-config` with vLLM's keys."""

    moe_backend: MoeBackend = "auto"
    """As the flag."""
    linear_backend: LinearBackend = "auto"
    """As the flag."""
    sparse_indexer_topk_backend: TopkBackend = "auto"
    """As the flag."""
    linear_backend_per_quant: dict[str, LinearBackend] | None = None
    """Products by the format of their weights."""
    ir_op_priority: dict[str, Any] = Field(default_factory=dict)
    enable_flashinfer_autotune: bool | None = None
    """FlashInfer times its kernels at start-up."""
    enable_rocm_segmented_attn_autotune: bool = False
    enable_cutedsl_warmup: bool = True
    enable_jit_warmup: bool = True


class AttentionConfig(Config):
    """`--attention-config` with vLLM's keys."""

    backend: str | None = None
    """As --attention-backend."""
    backend_per_kind: dict[str, str] = Field(default_factory=dict)
    """Backends by kind of KV cache group (not planned)."""
    flash_attn_version: Literal[2, 3, 4] | None = None
    """Version of FlashAttention."""
    use_trtllm_attention: bool | None = None
    """FlashInfer's kernels of TensorRT-LLM."""
    indexer_kv_dtype: Literal["auto", "bf16", "fp8", "mxfp4", "nvfp4"] = "auto"
    """Keys of a sparse-attention indexer."""
    hisparse_config: dict[str, Any] | None = None
    """KV in host memory (not planned)."""
    mla_prefill_backend: str | None = None
    minimax_m3_msa_decode_backend: Literal["triton", "cutlass"] = "triton"
    flash_attn_max_num_splits_for_cuda_graph: int = 32
    tokenspeed_mla_min_split_kv: int = Field(1, ge=1, le=256)
    tq_max_kv_splits_for_cuda_graph: int = 32
    disable_flashinfer_q_quantization: bool = False
    use_prefill_query_quantization: bool = False
    indexer_sparse_logits: bool = False
    use_non_causal: bool = False
    sparse_mla_force_mqa: bool = False
    sparse_mla_prefill_workspace_factor: int | None = Field(None, ge=2)
    flex_attn_block_m: int | None = None
    flex_attn_block_n: int | None = None
    flex_attn_q_block_size: int | None = None
    flex_attn_kv_block_size: int | None = None


SLOWER_ATTENTION = (
    *("flash_attn_version", "use_trtllm_attention", "mla_prefill_backend", "minimax_m3_msa_decode_backend"),
    *(
        "flash_attn_max_num_splits_for_cuda_graph",
        "tokenspeed_mla_min_split_kv",
        "tq_max_kv_splits_for_cuda_graph",
    ),
    *("disable_flashinfer_q_quantization", "use_prefill_query_quantization", "indexer_sparse_logits"),
    *("use_non_causal", "sparse_mla_force_mqa", "flex_attn_block_m", "flex_attn_block_n"),
    *("flex_attn_q_block_size", "flex_attn_kv_block_size", "indexer_kv_dtype"),
)
"""Keys of it that change how long kernels take."""


def attention_text(value: Any) -> str | None:
    """`--attention-config` as vLLM takes it, checked, in one spelling; raises ValueError for what is not planned.

    >>> attention_text('{"backend": "flashinfer"}')
    '{"backend": "FLASHINFER"}'
    """
    told = _checked(AttentionConfig, value)
    if told is None:
        return None
    for name in ("backend_per_kind", "hisparse_config"):
        if told.get(name):
            raise ValueError(f"{name} is not planned; leave it out")
    backend = told.pop("backend", None)
    if backend is not None and backend.lower() != "auto":
        told["backend"] = backend.upper()
    return json.dumps(told, sort_keys=True) if told else None


def kernel_text(value: Any) -> str | None:
    """`--kernel-config` as vLLM takes it, checked, in one spelling."""
    told = _checked(KernelConfig, value)
    return json.dumps(told, sort_keys=True) if told else None


def _checked(kind: type[Config], value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    return read_object(kind, value).model_dump(exclude_unset=True)


@cache
def attention_config(text: str | None) -> AttentionConfig:
    """What the flag says; the defaults without it."""
    return AttentionConfig(**json.loads(text)) if text else AttentionConfig.model_construct()


@cache
def kernel_config(text: str | None) -> KernelConfig:
    """What the flag says; the defaults without it."""
    return KernelConfig(**json.loads(text)) if text else KernelConfig.model_construct()
