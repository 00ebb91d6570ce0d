"""`--compilation-config`: vLLM's JSON of torch.compile and CUDA graphs, with the keys and checks of its 0.32."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

from pydantic import Field, field_validator

from kvplan.formulas.graphs import MODES
from kvplan.ground.config import Config, read_object
from kvplan.ground.errors import did_you_mean

Compile = Literal["NONE", "STOCK_TORCH_COMPILE", "DYNAMO_TRACE_ONCE", "VLLM_COMPILE"]
COMPILE: tuple[Compile, ...] = ("NONE", "STOCK_TORCH_COMPILE", "DYNAMO_TRACE_ONCE", "VLLM_COMPILE")
"""Compilation modes by their number."""
BY_NUMBER = ("NONE", "PIECEWISE", "FULL")
"""Graph modes that vLLM takes as a number too."""


class PassFlags(Config):
    """`pass_config`: fusions of kernels."""

    fuse_norm_quant: bool | None = None
    fuse_act_quant: bool | None = None
    fuse_attn_quant: bool | None = None
    eliminate_noops: bool = True
    fuse_allreduce_rms: bool | None = None
    enable_qk_norm_rope_fusion: bool | None = None
    fuse_rope_kvcache_cat_mla: bool | None = None
    fuse_act_padding: bool | None = None
    fuse_mla_dual_rms_norm: bool | None = None
    fuse_rope_kvcache: bool | None = None
    fuse_qk_norm_rope_kvcache: bool | None = None
    rope_kvcache_fusion_max_token_num: int = 256
    fi_allreduce_fusion_max_size_mb: float | None = None


class CompilationFlags(Config):
    """`--compilation-config` with vLLM's keys; those without a docstring say nothing of memory or graphs."""

    mode: Compile | None = None
    """torch.compile; None: as the optimisation level says."""
    cudagraph_mode: str | None = None
    """Which steps replay graphs; None: as the optimisation level says."""
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    """Batches captured, in tokens."""
    max_cudagraph_capture_size: int | None = None
    """Largest of them, where they are not stated."""
    cudagraph_specialize_lora: bool = True
    """False: with LoRA all steps run in the graphs with adapters."""
    splitting_ops: tuple[str, ...] | None = None
    """Where pieces end; none: one piece."""
    use_inductor_graph_partition: bool | None = None
    """Pieces cut by the compiler instead."""
    pass_config: PassFlags = Field(default_factory=PassFlags.model_construct)
    """Fusions."""
    cudagraph_mm_encoder: bool = False
    """Graphs of the vision tower too."""
    cudagraph_decoder_replay: bool = True
    """Graphs of the layers that run on the end of chunks alone (DeepSeek V4.1)."""
    decoder_replay_cudagraph_capture_sizes: tuple[int, ...] = ()
    """Their sizes."""
    decoder_replay_trim_threshold: int = Field(768, ge=0)
    """Tokens of a step from which on a graph gives way to those layers."""
    debug_dump_path: str | None = None
    cache_dir: str = ""
    compile_cache_save_format: Literal["binary", "unpacked"] = "binary"
    backend: str = ""
    custom_ops: tuple[str, ...] = ()
    ir_enable_torch_wrap: bool | None = None
    compile_mm_encoder: bool = False
    encoder_cudagraph_token_budgets: tuple[int, ...] = ()
    encoder_cudagraph_max_vision_items_per_batch: int = 0
    encoder_cudagraph_max_frames_per_batch: int | None = None
    compile_sizes: tuple[int | str, ...] | None = None
    compile_ranges_endpoints: tuple[int, ...] | None = None
    inductor_compile_config: dict[str, Any] = Field(default_factory=dict)
    inductor_passes: dict[str, Any] = Field(default_factory=dict)
    cudagraph_num_of_warmups: int = 0
    cudagraph_copy_inputs: bool = False
    dynamic_shapes_config: dict[str, Any] = Field(default_factory=dict)
    fast_moe_cold_start: bool | None = None

    @field_validator("mode", mode="before")
    @classmethod
    def _by_name_or_number(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value.upper()
        known = isinstance(value, int) and 0 <= value < len(COMPILE)
        return COMPILE[value] if known else value

    @field_validator("cudagraph_mode", mode="before")
    @classmethod
    def _is_a_mode(cls, value: Any) -> Any:
        name = BY_NUMBER[value] if value in (0, 1, 2) and not isinstance(value, str) else value
        if isinstance(name, str) and name.upper().rpartition(".")[2] in MODES:
            return name.upper().rpartition(".")[2]
        if value is None:
            return None
        raise ValueError(
            f"{str(value)[:40]!r} is none of {', '.join(MODES)}{did_you_mean(str(value), MODES)}"
        )


def compilation_text(value: Any) -> str | None:
    """The flag's value as vLLM takes it, checked, in one spelling; raises ValueError for what vLLM refuses.

    >>> compilation_text('{"cudagraph_mode": "piecewise"}')
    '{"cudagraph_mode": "PIECEWISE"}'
    """
    if value is None:
        return None
    told = read_object(CompilationFlags, value)
    return json.dumps(told.model_dump(exclude_unset=True), sort_keys=True) if told.model_fields_set else None


@cache
def compilation_flags(text: str | None) -> CompilationFlags:
    """What the flag says; the defaults without it."""
    return CompilationFlags(**json.loads(text)) if text else CompilationFlags.model_construct()
