"""Block-scaled FP8 against tensor parallelism: shards that are no whole number of scale blocks are not loaded.

Rows and columns as one rank holds them. Sources: vLLM 0.32 `layers/quantization/utils/fp8_utils.py`
(`validate_fp8_block_shape`, `validate_fp8_block_shape_moe`) and `fused_moe/oracle/fp8.py`
(`refine_fp8_moe_block_shape`, in 0.29 and not in 0.28); SGLang 0.5.23 `layers/quantization/fp8.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd

from kvplan.models.modules import Module, checkpoint_name, layer_modules
from kvplan.models.quantization import Scheme, quantization_rule
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import rank_cut

ROW_PARALLEL = ("o_proj", "out_proj", "down_proj")
"""Matrices cut along their columns: a rank's columns are whole blocks."""
COLUMN_PARALLEL = ("self_attn.q_b_proj", "self_attn.kv_b_proj")
"""Matrices cut along their rows that no other is merged with. vLLM lets the merged ones (query, key and value; gate
and up) be ragged; gate and up mirror down."""
SMALLEST_REFINED = 32
"""Finer scale blocks of experts go down to so many columns."""


@lru_cache(256)
def ragged_shard(
    model: ModelSpec,
    *,
    tensor_parallel_size: int,
    data_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
    refines_experts: bool = False,
    splits_ba: bool = False,
) -> str | None:
    """The first matrix whose shard is no whole number of FP8 blocks, in words; None where all are, or none has blocks.

    Args:
        model: the model.
        tensor_parallel_size: ranks that cut each matrix.
        data_parallel_size: attention replicas; with experts they join the ranks that cut or share them.
        enable_expert_parallel: experts stay whole.
        refines_experts: the engine splits an expert's scale blocks until they divide its shard (vLLM from 0.29).
        splits_ba: the engine also cuts a linear attention's gates by blocks (SGLang before 0.5.9).
    """
    method = str((model.quantization or {}).get("quant_method", "")).lower()
    if tensor_parallel_size * data_parallel_size == 1 or method not in ("fp8", "compressed-tensors"):
        return None
    refines = refines_experts and method == "fp8"
    # shared experts stay whole where tokens are split over ranks: all three parallelisms at once
    whole = enable_expert_parallel and data_parallel_size > 1
    for module, scheme in _blocked(model, tensor_parallel_size, data_parallel_size, enable_expert_parallel):
        shared = "shared_expert" in module.name
        if not (whole and shared) and (
            found := _ragged(module, scheme, model.hidden_size, refines, splits_ba)
        ):
            return found
    return None


def _blocked(model: ModelSpec, tp: int, dp: int, expert_parallel: bool) -> Iterator[tuple[Module, Scheme]]:
    """The matrices that carry a scale per block of rows and columns; one layer of each kind."""
    rule, cut = quantization_rule(model), rank_cut(tp, dp, expert_parallel)
    seen = set()
    for i, layer in enumerate(model.layers):
        if layer in seen:
            continue
        seen.add(layer)
        for module in layer_modules(layer, model.hidden_size, cut):
            name = f"layers.{i}.{checkpoint_name(model.architecture, module.name)}"
            scheme = rule(module._replace(name=name))
            if scheme is not None and scheme.block_rows > 1 and scheme.block_cols > 1:
                yield module, scheme


def _ragged(module: Module, scheme: Scheme, hidden: int, refines: bool, splits_ba: bool) -> str | None:
    name, rows, cols = module.name, scheme.block_rows, scheme.block_cols
    if name.endswith(ROW_PARALLEL):
        size, block = module.cols, cols
    elif name.endswith(COLUMN_PARALLEL):
        size, block = module.rows, rows
    elif name.endswith("in_proj_qkv") and splits_ba:
        return f"the gates of linear attention would be cut below the FP8 blocks of {rows} x {cols}"
    else:
        return None
    refined = refines and module.role == "expert" and gcd(rows, cols, size, hidden) >= SMALLEST_REFINED
    if size % block == 0 or refined:
        return None
    return f"{name} would be {size} wide on a rank, no multiple of the checkpoint's FP8 blocks of {rows} x {cols}"
