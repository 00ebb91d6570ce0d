"""LLMServingSim's kernel tables of one model (attention, dense, per_sequence, moe parquet files) as whole steps.

Composed: every layer's kernels, the output head and the sampler, no host time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvplan.calibrate.measurements import Row
from kvplan.ground.errors import KvplanError
from kvplan.timing.costs import expected_experts

SHAPES: dict[str, dict[str, int]] = {
    "Llama-3.1-8B": {
        "num_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
        "num_heads": 32, "num_kv_heads": 8, "head_dim": 128,
    },
    "Qwen3-32B": {
        "num_layers": 64, "hidden_size": 5120, "intermediate_size": 25600, "vocab_size": 151936,
        "num_heads": 64, "num_kv_heads": 8, "head_dim": 128,
    },
    "Qwen3-30B-A3B-Instruct-2507": {
        "num_layers": 48, "hidden_size": 2048, "intermediate_size": 768, "vocab_size": 151936, "num_heads": 32,
        "num_kv_heads": 4, "head_dim": 128, "num_experts": 128, "experts_per_token": 8,
    },
}  # fmt: skip
"""Shapes of the tables' models; source: their config.json."""
ONCE = ("embedding", "final_layernorm")
TWICE = ("layernorm",)


def llmservingsim_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Whole steps composed from the kernel tables of one card, any number of models and TP degrees."""
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in paths:
        stem, _, kind = path.stem.rpartition("_")
        if path.stem.endswith("per_sequence"):
            stem, kind = path.stem[: -len("_per_sequence")], "per_sequence"
        groups[stem][kind] = path
    cards = {_card(stem) for stem in groups}
    if len(cards) != 1:
        raise KvplanError(
            f"tables of {len(cards)} cards ({', '.join(sorted(cards))}); fit one card at a time"
        )
    yield {
        "op": "machine", "machine": cards.pop(), "engine": "vllm", "engine_version": "0.19.0",
        "source": "LLMServingSim profiler tables, composed into steps", "licence": "MIT",
    }  # fmt: skip
    for stem, files in sorted(groups.items()):
        if {"attention", "dense", "per_sequence"} <= files.keys():
            yield from _composed(stem, {kind: _table(path) for kind, path in files.items() if kind != "skew"})


def _card(stem: str) -> str:
    return stem.removeprefix("llmservingsim_").split("_", 1)[0]


def _table(path: Path) -> dict[str, Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise KvplanError("reading parquet needs pyarrow: pip install 'kvplan[sweep]'") from None
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise KvplanError(f"{path}: not a parquet table ({error})") from None
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def _composed(stem: str, tables: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """One row per point of the attention grid: layers x (attention + dense kernels [+ experts]) + head + sampler."""
    _, _, rest = stem.removeprefix("llmservingsim_").partition("_")
    model, _, tp = rest.rpartition("_tp")
    if model not in SHAPES:
        raise KvplanError(f"{stem}: shapes of {model!r} are not known; known: {', '.join(SHAPES)}")
    shape, grid = SHAPES[model], tables["attention"]
    layers = shape["num_layers"]
    chunk, decodes = grid["prefill_chunk"], grid["n_decode"]
    tokens, rows = chunk + decodes, decodes + (chunk > 0)
    micros = layers * grid["time_us"]
    for layer in np.unique(tables["dense"]["layer"]):
        count = 1 if layer in ONCE else 2 * layers if layer in TWICE else layers
        micros = micros + count * _interpolated(tables["dense"], layer, "tokens", tokens)
    for layer in np.unique(tables["per_sequence"]["layer"]):
        micros = micros + _interpolated(tables["per_sequence"], layer, "sequences", rows)
    if "num_experts" in shape:
        if "moe" not in tables:
            return
        micros = micros + layers * _experts(tables["moe"], shape, tokens)
    common = {"model": model, "tensor_parallel_size": int(tp), **shape}
    reduced = {"all_reduce": "left out"} if int(tp) > 1 else {}
    for i in range(len(micros)):
        q, past, n, context = (
            int(grid[c][i]) for c in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        yield {
            "op": "mixed_step" if q and n else "prefill_step" if q else "decode_step", **common, **reduced,
            "num_decodes": n, "decode_context": n * context, "num_prefill_tokens": q,
            "prefill_attention": q * (past + q / 2), "past": past, "time_us": float(micros[i]),
        }  # fmt: skip


def _interpolated(table: dict[str, Any], layer: str, key: str, at: Any) -> Any:
    chosen = table["layer"] == layer
    order = np.argsort(table[key][chosen])
    return np.interp(at, table[key][chosen][order], table["time_us"][chosen][order])


def _experts(table: dict[str, Any], shape: dict[str, int], tokens: Any) -> Any:
    """Expert time at the expected number of distinct experts: interpolated along experts, then along tokens."""
    share = shape["experts_per_token"] / shape["num_experts"]
    distinct = expected_experts(shape["num_experts"], share, tokens)
    grid = np.unique(table["tokens"])
    each = []
    for count in grid:
        chosen = table["tokens"] == count
        order = np.argsort(table["activated_experts"][chosen])
        x, y = table["activated_experts"][chosen][order], table["time_us"][chosen][order]
        each.append(np.interp(distinct, x, y))
    stacked = np.array(each)
    low = np.clip(np.searchsorted(grid, tokens, side="right") - 1, 0, len(grid) - 2)
    part = np.clip((tokens - grid[low]) / (grid[low + 1] - grid[low]), 0.0, 1.0)
    index = np.arange(len(tokens))
    return stacked[low, index] * (1 - part) + stacked[low + 1, index] * part
