"""Block-scaled FP8 against tensor parallelism: shards that are no whole number of scale blocks are not loaded.

Rows and columns as one rank holds them. Sources: vLLM 0.11, 0.15, 0.19, 0.21, 0.28, 0.32
`layers/quantization/utils/fp8_utils.py` (`validate_fp8_block_shape`, `validate_fp8_block_shape_moe`),
`layers/linear.py` (`_maybe_allow_fp8_block_shape_mismatch`: pull request 30836, first released in 0.14) and
`fused_moe/oracle/fp8.py` (`refine_fp8_moe_block_shape`, in 0.29 and not in 0.28); SGLang 0.5.23
`layers/quantization/fp8.py` (`validate_block_quant_shapes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from kvplan.models.modules import Module, checkpoint_name, layer_modules
from kvplan.models.quantization import Scheme, quantization_rule
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import rank_cut

ROW_PARALLEL = ("o_proj", "out_proj", "down_proj")
"""Matrices cut along their columns: a rank's columns are whole blocks."""
COLUMN_PARALLEL = ("self_attn.q_b_proj", "self_attn.kv_b_proj", "latent q_proj")
"""Matrices cut along their rows that no other is merged with; the query of latent attention is one too."""
MERGED_FIRST, MERGED_LAST = ("q_proj", "k_proj", "gate_proj"), ("v_proj", "up_proj")
"""Matrices cut along their rows and merged: query, key and value, gate and up. The last one may be ragged where
nothing is cut; all may be in vLLM from 0.14 on, which knows the block size of `fp8` checkpoints but not of
`compressed-tensors`."""
SMALLEST_REFINED = 32
"""Finer scale blocks of experts go down to so many columns."""


@lru_cache(256)
def ragged_shard(
    model: ModelSpec,
    *,
    tensor_parallel_size: int,
    data_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    merged_whole: bool = False,
    refines_experts: bool = False,
    splits_ba: bool = False,
) -> str | None:
    """The first matrix whose shard is no whole number of FP8 blocks, in words; None where all are, or none has blocks.

    Args:
        model: the model.
        tensor_parallel_size: ranks that cut each matrix.
        data_parallel_size: attention replicas; with experts they join the ranks that cut or share them.
        enable_expert_parallel: experts stay whole.
        merged_whole: each of the matrices that are merged must be whole blocks (vLLM before 0.14, SGLang).
        refines_experts: the engine splits an expert's scale blocks until they divide its shard (vLLM from 0.29).
        splits_ba: the engine also cuts a linear attention's gates by blocks (SGLang before 0.5.9).
    """
    method = str((model.quantization or {}).get("quant_method", "")).lower()
    if method not in ("fp8", "compressed-tensors"):
        return None
    rules = _Rules(
        cut=tensor_parallel_size > 1,
        merged_whole=merged_whole or method == "compressed-tensors",
        refines_experts=refines_experts and method == "fp8",
        splits_ba=splits_ba and tensor_parallel_size > 1,
    )
    # shared experts stay whole where tokens are split over ranks: all three parallelisms at once
    whole = enable_expert_parallel and data_parallel_size > 1
    for module, scheme in _blocked(model, tensor_parallel_size, data_parallel_size, enable_expert_parallel):
        shared = "shared_expert" in module.name
        if not (whole and shared) and (found := _ragged(module, scheme, model.hidden_size, rules)):
            return found
    return None


class _Rules(NamedTuple):
    """What the engine checks, as `ragged_shard` describes it."""

    cut: bool
    merged_whole: bool
    refines_experts: bool
    splits_ba: bool


def _blocked(model: ModelSpec, tp: int, dp: int, expert_parallel: bool) -> Iterator[tuple[Module, Scheme]]:
    """The matrices that carry a scale per block of rows and columns; one layer of each kind."""
    for module, scheme in quantised(model, tp, dp, expert_parallel):
        if scheme.block_rows > 1 and scheme.block_cols > 1:
            yield module, scheme


def quantised(model: ModelSpec, tp: int, dp: int, expert_parallel: bool) -> Iterator[tuple[Module, Scheme]]:
    """The matrices of the layers that the checkpoint's format converts; one layer of each kind."""
    rule, cut = quantization_rule(model), rank_cut(tp, dp, expert_parallel)
    seen = set()
    for i, layer in enumerate(model.layers):
        if layer in seen:
            continue
        seen.add(layer)
        for module in layer_modules(layer, model.hidden_size, cut):
            name = f"layers.{i}.{checkpoint_name(model.architecture, module.name)}"
            scheme = rule(module._replace(name=name))
            if scheme is not None:
                latent = module.name == "self_attn.q_proj" and layer.attention.is_latent
                yield module._replace(name="latent q_proj") if latent else module, scheme


def _ragged(module: Module, scheme: Scheme, hidden: int, rules: _Rules) -> str | None:
    name, rows, cols = module.name, scheme.block_rows, scheme.block_cols
    if name.endswith("in_proj_qkv") and rules.splits_ba:
        return f"the gates of linear attention would be cut below the FP8 blocks of {rows} x {cols}"
    size, block = _checked(module, scheme, rules)
    refined = (
        rules.refines_experts
        and module.role == "expert"
        and gcd(rows, cols, size, hidden) >= SMALLEST_REFINED
    )
    if size % block == 0 or refined:
        return None
    return f"{name} would be {size} wide on a rank, no multiple of the checkpoint's FP8 blocks of {rows} x {cols}"


def _checked(module: Module, scheme: Scheme, rules: _Rules) -> tuple[int, int]:
    """The size that the engine checks and what it must be a multiple of; (0, 1) where it checks none."""
    name, expert = module.name, module.role == "expert"
    if name.endswith(ROW_PARALLEL) and (rules.cut or expert):
        return module.cols, scheme.block_cols
    if name.endswith(COLUMN_PARALLEL) and rules.cut:
        return module.rows, scheme.block_rows
    first, last = name.endswith(MERGED_FIRST), name.endswith(MERGED_LAST)
    if (first or (last and rules.cut)) and (expert or rules.merged_whole):
        return module.rows, scheme.block_rows
    return 0, 1
