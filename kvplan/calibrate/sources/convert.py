"""Other people's step-time tables as measurement rows. You bring the files; kvplan ships none of them.

* `llmservingsim`: LLMServingSim's kernel tables of one model (attention, dense, per_sequence, moe parquet files),
  composed into whole steps: every layer's kernels, the output head and the sampler, no host time.
* `splitwise`: Splitwise's `perf_model.csv` of whole prompt phases and decode steps.
* `aiconfigurator`: see `aiconfigurator.py`.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kvplan.calibrate.measurements import Row
from kvplan.errors import KvplanError
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
    "llama2-70b": {
        "num_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000,
        "num_heads": 64, "num_kv_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
"""Shapes of the tables' models; source: their config.json."""

ONCE = ("embedding", "final_layernorm")
TWICE = ("layernorm",)
SPLITWISE_PROMPT_TOKENS = 8192
"""Splitwise's engine runs longer prompt phases in several passes; they say nothing of one step."""


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


def splitwise_rows(paths: Sequence[Path], hardware: str) -> Iterator[Row]:
    """Whole decode steps and single-prompt phases of Llama-2-70B, one machine of the CSV; medians over repeats.

    Left out: `pcap` decode rows (a copy of the uncapped ones), TP 2 at batch 64 (does not fit the cards), prompt
    phases of more than one prompt (run in several passes).
    """
    rows = [row for path in paths for row in _csv(path)]
    known = sorted({row["hardware"] for row in rows if "pcap" not in row["hardware"]})
    if hardware not in known:
        raise KvplanError(f"no rows of hardware {hardware!r}; the file has {', '.join(known)}")
    yield {
        "op": "machine", "machine": hardware, "engine": "vllm", "engine_version": "0.2 (2023, before CUDA graphs)",
        "source": "Splitwise performance model data", "licence": "MIT", "enforce_eager": True,
    }  # fmt: skip
    groups: dict[tuple[int, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["model"] == "llama2-70b" and row["hardware"] == hardware:
            key = ("tensor_parallel", "batch_size", "prompt_size", "token_size")
            groups[tuple(int(row[k]) for k in key)].append(row)
    for (tp, batch, prompt, output), repeats in sorted(groups.items()):
        if tp == 2 and batch >= 64:
            continue
        common = {"model": "llama2-70b", "tensor_parallel_size": tp, **SHAPES["llama2-70b"]}
        context = batch * (prompt + output // 2)
        yield {
            "op": "decode_step", **common, "num_decodes": batch, "decode_context": context,
            "time_ms": median(float(r["token_time"]) for r in repeats),
        }  # fmt: skip
        if batch == 1 and output == 128:
            yield {
                "op": "prefill_step", **common, "num_prefill_tokens": prompt, "prefill_attention": prompt**2 / 2,
                "time_ms": median(float(r["prompt_time"]) for r in repeats),
            }  # fmt: skip


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise KvplanError(f"{path}: cannot be read as CSV ({error})") from None
    needed = {"model", "hardware", "tensor_parallel", "batch_size", "prompt_size", "token_size", "token_time"}
    missing = needed - set(rows[0] if rows else ())
    if missing:
        raise KvplanError(
            f"{path}: no column {', '.join(sorted(missing))}; this is not Splitwise's perf_model.csv"
        )
    return rows


def engine_grid_rows(path: Path) -> Iterator[Row]:
    """Steps of a vLLM CPU engine timed one by one (`grid.json`): CPU seconds of each whole step."""
    data = json.loads(path.read_text())
    config = data["model_config"]
    shape = {
        "num_layers": config["num_hidden_layers"], "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"], "vocab_size": config["vocab_size"],
        "num_heads": config["num_attention_heads"], "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
    }  # fmt: skip
    yield {
        "op": "machine", "schema_version": 1, "machine": "cpu, 1 thread", "gpu": "cpu", "engine": "vllm-cpu",
        "engine_version": "0.32.0", "source": "a vLLM CPU engine, timed step by step", "licence": "Apache-2.0",
        "defaults": {"model": data["model"], **shape},
    }  # fmt: skip
    for row in data["rows"]:
        q, n = row["prefill_tokens"], row["n_decode"]
        decode = {"num_decodes": n, "decode_context": row["sum_ctx_decode"]} if n else {}
        prefill = {
            "num_prefill_tokens": q, "num_prefills": row["n_prefill"], "prefill_attention": row["prefill_attn"],
        } if q else {}  # fmt: skip
        op = "mixed_step" if q and n else "prefill_step" if q else "decode_step"
        yield {"op": op, **decode, **prefill, "time_s": round(row["cpu_s"], 6)}


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write rows as JSONL; return how many."""
    lines = [json.dumps({k: v for k, v in row.items() if k != "_at"}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return len(lines)
