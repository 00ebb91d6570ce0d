"""NVIDIA's measured kernel tables (package `aiconfigurator-core`, Apache-2.0) as measurement rows.

Tables: matrix products, grouped-query and MLA attention, fused experts, all-reduce, per GPU, engine and version.
They are kernels, not steps: launches between kernels, norms, the sampler and the host are not in them, so those
coefficients are stated as assumptions (`assumed`). The tables stay in the package; only fits may be kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kvplan.calibrate.measurements import Row
from kvplan.errors import KvplanError, did_you_mean
from kvplan.gpu import GpuSpec
from kvplan.timing.costs import MAX_CAPTURE_SIZE

SOURCE = "kernel tables of aiconfigurator-core"
"""What profiles fitted to them name as their source."""
MAX_ROWS = 3000
"""Rows kept of each table and format: every k-th of the sorted rows, so that all shapes stay represented."""
SYSTEMS = {
    "h100_sxm": "h100-sxm", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300", "gb200": "gb200",
    "gb300": "gb300", "l40s": "l40s", "l4": "l4", "a100_sxm": "a100-80gb", "h100_pcie": "h100-pcie",
    "rtx_pro_6000_server": "rtx-pro-6000",
}  # fmt: skip
"""The package's name of a system -> the GPU table's."""
FORMATS = {
    "bfloat16": "bf16", "float16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "fp8_static": "fp8_static",
    "nvfp4": "nvfp4",
    "int4_wo": "int4", "w4a16_mxfp4": "mxfp4",
}  # fmt: skip
MXFP4_IN_FP8 = "w4a8_mxfp4_mxfp8"
"""mxfp4 experts multiplied in fp8: what TensorRT-LLM runs where the card can (Blackwell)."""
L2_RESIDENT = (1 << 20, 100 << 20)
"""Decode rows whose KV lies between these bytes are left out: repeated in a loop they read from L2, not memory."""
ENOUGH_ROWS = 150
HOST_BOUND_MS = 0.025
"""A format whose quickest tenth of products takes longer was timed launching, not multiplying: left out."""
LAUNCHED_APART = 1.5
"""An engine's MLA blocks that take so many times TensorRT-LLM's were timed with gaps between their kernels.

Those with gaps take 1.6 to 2.4 times as long on four cards; on the B200, both timed in graphs, 1.1.
"""
PASSES = 12.0
"""Times a layer's element-wise kernels move one token's residual stream (norms, rotary, activation, adds)."""
MOST_OF_A_PRODUCT = 0.3
"""Share of an fp8 product's time that is left at least when the search for its largest activation is taken off."""
_MLA = {"hidden_size": 7168, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64}

Table = dict[str, Any]


def systems_dir() -> Path:
    """Where the package keeps its tables."""
    spec = find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise KvplanError("aiconfigurator-core is not installed: pip install 'kvplan[aiconfigurator]'")
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


def kernel_rows(system: str, engine: str) -> Iterator[Row]:
    """Rows of one system and engine (vllm, trtllm, sglang), newest version of each table."""
    folder = systems_dir() / system
    if not folder.is_dir():
        known = sorted(p.name for p in systems_dir().iterdir() if p.is_dir())
        raise KvplanError(
            f"no tables for {system!r}{did_you_mean(system, known)} (known: {', '.join(known)})"
        )
    name = {"tensorrt-llm": "trtllm"}.get(engine, engine)
    gemm = _newest(folder, "gemm", name, "gemm_perf")
    if gemm is None:
        engines = sorted(p.name for p in (folder / "gemm").iterdir()) if (folder / "gemm").is_dir() else []
        raise KvplanError(f"{system} has no tables of {engine!r}; it has {', '.join(engines) or 'none'}")
    mla = _mla_engine(folder, name)
    borrowed = (
        "" if mla == name else "; MLA blocks are TensorRT-LLM's, this engine's were timed launch by launch"
    )
    yield _machine(system, engine, gemm.parent.name, borrowed)
    yield from _gemm_rows(_read(gemm))
    scales = _newest(folder, "quantize", name, "computescale_perf")
    if scales is not None:
        yield from _static_rows(_read(gemm), _read(scales))
    for kind, file, convert in (
        ("attention", "generation_attention_perf", _decode_rows),
        ("attention", "context_attention_perf", _prefill_rows),
        ("mla", "mla_generation_module_perf", _mla_rows),
        ("mla", "mla_context_module_perf", _mla_rows),
        ("comm", "custom_allreduce_perf", _reduce_rows),
    ):
        path = _newest(folder, kind, mla if kind == "mla" else name, file)
        if path is not None:
            yield from convert(_read(path))
    yield from _expert_tables(sorted((folder / "moe" / name).glob("*/moe_perf.parquet"), key=_version), name)


def file_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Rows of single tables given as files, named SYSTEM__ENGINE_VERSION__TABLE.parquet; attention, all-reduce."""
    converters = {
        "generation_attention_perf": _decode_rows,
        "context_attention_perf": _prefill_rows,
        "custom_allreduce_perf": _reduce_rows,
        "gemm_perf": _gemm_rows,
    }
    facts = [path.stem.split("__") for path in paths]
    if not all(len(parts) == 3 and parts[0] in SYSTEMS and parts[2] in converters for parts in facts):
        raise KvplanError(
            f"name tables SYSTEM__ENGINE_VERSION__TABLE.parquet; SYSTEM is one of {', '.join(SYSTEMS)}, "
            f"TABLE one of {', '.join(converters)}"
        )
    systems = {parts[0] for parts in facts}
    if len(systems) > 1:
        raise KvplanError(f"tables of {', '.join(sorted(systems))}; fit one card at a time")
    system, engine = facts[0][0], facts[0][1]
    name, _, version = engine.partition("_")
    yield _machine(system, name, version)
    for path, (_, _, table) in zip(paths, facts, strict=True):
        yield from converters[table](_read(path))


def _machine(system: str, engine: str, version: str, borrowed: str = "") -> Row:
    return {
        "op": "machine", "machine": system, "engine": engine, "engine_version": version,
        "gpu": SYSTEMS.get(system, ""), "async_scheduling": True, "max_capture_size": MAX_CAPTURE_SIZE,
        "source": SOURCE + borrowed, "licence": "Apache-2.0",
    }  # fmt: skip


def assumed(gpu: GpuSpec) -> dict[str, tuple[float, str]]:
    """What kernel tables cannot tell, with the reason and the range believed."""
    return {
        "mixed_bytes_per_s": (float("inf"), "timed apart: decodes beside a prompt cost what they do alone (assumed)"),
        "mixed_crowding": (0.0, "as mixed_bytes_per_s"),
        "mixed_block_s": (0.0, "as mixed_bytes_per_s"),
        "step.layer_s": (4e-6, "norms, rotary embedding, activation of a layer in a CUDA graph: assumed, 2 to 10 us"),
        "step.launch_s": (5e-4, "launches of a layer outside CUDA graphs: assumed, 0.26 to 0.79 ms in published runs"),
        "step.step_s": (1e-4, "embedding, sampling, graph replay: assumed, 50 to 300 us"),
        "step.row_s": (5e-7, "sampler per row: assumed, 0.2 to 1 us"),
        "step.activation_bytes_per_s": (gpu.bandwidth / PASSES, f"{PASSES:.0f} passes over a token's stream, assumed"),
        "host.step_s": (2e-3, "CPU time of a step, hidden while the GPU works longer: assumed, 1 to 4 ms"),
        "host.row_s": (1e-5, "CPU time per sequence: assumed, 5 to 20 us"),
    }  # fmt: skip


def _mla_engine(folder: Path, name: str) -> str:
    """Whose MLA blocks to take: TensorRT-LLM's where this engine's take half as long again on the same card.

    Decodes run in CUDA graphs; some tables timed a block's kernels launch by launch (GB300: those of vLLM 0.24 take
    73 us at least, of 0.27 and of TensorRT-LLM 36 and 33).
    """
    own, other = (_newest(folder, "mla", engine, "mla_generation_module_perf") for engine in (name, "trtllm"))
    if own is None or other is None:
        return name
    return "trtllm" if _quickest_ms(own) > LAUNCHED_APART * _quickest_ms(other) else name


def _quickest_ms(path: Path) -> float:
    table = _read(path)
    return float(table["time_ms"][(table["gemm_type"] == "bfloat16") & (table["num_heads"] == 16)].min())


def _newest(folder: Path, kind: str, engine: str, file: str) -> Path | None:
    versions = list((folder / kind / engine).glob(f"*/{file}.parquet"))
    return max(versions, key=_version, default=None)


def _version(path: Path) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", path.parent.name)]


def _read(path: Path) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise KvplanError("reading the tables needs pyarrow: pip install 'kvplan[aiconfigurator]'") from None
    table = parquet.read_table(path)
    found = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    found["time_ms"] = found.pop("latency") if "latency" in found else found.pop("latency_ms")
    if "attn_dtype" in found and "head_dim" not in found:  # older tables hold one head size
        found["head_dim"] = np.full(len(found["time_ms"]), 128)
    return found


def _where(table: Table, chosen: Any, order: Sequence[str]) -> Table:
    """Rows of a table that are chosen, thinned to `MAX_ROWS` along a sort by `order`; impossible times dropped."""
    chosen = chosen & (table["time_ms"] > 0)
    index = np.flatnonzero(chosen)
    index = index[np.lexsort([table[name][index] for name in reversed(order)])]
    if len(index) > MAX_ROWS:
        index = index[np.linspace(0, len(index) - 1, MAX_ROWS).astype(int)]
    return {name: values[index] for name, values in table.items()}


def _dicts(table: Table, names: dict[str, str], op: str, **fixed: Any) -> Iterator[Row]:
    """Table rows as measurement rows under our names."""
    columns = {ours: table[theirs].tolist() for ours, theirs in names.items()}
    times = table["time_ms"].tolist()
    for i, time_ms in enumerate(times):
        yield {"op": op, **fixed, **{k: v[i] for k, v in columns.items()}, "time_ms": time_ms}


def _gemm_rows(table: Table) -> Iterator[Row]:
    """Layer-like products only (a million weights and more); the fastest kernel where several were timed."""
    names = {"num_tokens": "m", "out_features": "n", "in_features": "k"}
    for dtype in sorted(set(table["gemm_dtype"].tolist()) & FORMATS.keys()):
        size = table["n"].astype(np.int64) * table["k"]
        chosen = (table["gemm_dtype"] == dtype) & (size >= 1 << 20) & (table["m"] <= 8192)
        if not chosen.any():
            continue
        part = _fastest(_where_all(table, chosen), ("m", "n", "k"))
        if np.quantile(part["time_ms"], 0.1) > HOST_BOUND_MS:
            continue
        part = _where(part, np.ones(len(part["m"]), bool), ("n", "k", "m"))
        yield from _dicts(part, names, "gemm", dtype=FORMATS[dtype])


def _static_rows(table: Table, scales: Table) -> Iterator[Row]:
    """fp8 products of checkpoints that state the activations' scales: without looking for the largest activation.

    The tables time that search with every fp8 product, and once more alone, by tokens and input features.
    """
    part = _where_all(table, table["gemm_dtype"] == "fp8")
    widths = np.unique(scales["k"])
    nearest = (
        widths[np.abs(np.log(part["k"][:, None] / widths)).argmin(axis=1)] if len(part["k"]) else widths[:0]
    )
    search_ms = np.zeros(len(nearest))
    for width in np.unique(nearest):
        timed = _where_all(scales, scales["k"] == width)
        order, here = np.argsort(timed["m"]), nearest == width
        search_ms[here] = np.interp(part["m"][here], timed["m"][order], timed["time_ms"][order])
    part["time_ms"] = np.maximum(part["time_ms"] - search_ms, MOST_OF_A_PRODUCT * part["time_ms"])
    part["gemm_dtype"] = np.full(len(nearest), "fp8_static")
    yield from _gemm_rows(part)


def _where_all(table: Table, chosen: Any) -> Table:
    return {name: values[chosen] for name, values in table.items()}


def _fastest(table: Table, keys: Sequence[str]) -> Table:
    """One row per key, its smallest time."""
    order = np.lexsort([table["time_ms"], *(table[k] for k in keys)])
    stacked = np.stack([table[k][order] for k in keys])
    first = np.concatenate([[True], np.any(stacked[:, 1:] != stacked[:, :-1], axis=0)])
    return {name: values[order][first] for name, values in table.items()}


def _attention_tables(table: Table, order: Sequence[str], extra: Any) -> Iterator[tuple[str, Table]]:
    window = table.get("window_size", np.zeros(len(table["time_ms"])))
    for dtype in sorted(set(table["kv_cache_dtype"].tolist()) & FORMATS.keys()):
        chosen = (table["kv_cache_dtype"] == dtype) & (window == 0) & extra
        chosen &= np.isin(table["head_dim"], (64, 128, 256)) & (table["num_heads"] >= 4)
        chosen &= (table["num_key_value_heads"] <= 8) & (
            table["num_heads"] <= 16 * table["num_key_value_heads"]
        )
        yield FORMATS[dtype], _where(table, chosen, order)


_HEADS = {"num_heads": "num_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}


def _decode_rows(table: Table) -> Iterator[Row]:
    batch = table["batch_size"].astype(np.int64)
    table = table | {"decode_context": batch * (table["step"] + table["isl"])}
    element = np.where(table["kv_cache_dtype"] == "fp8", 1, 2)
    held = 2 * table["num_key_value_heads"] * table["head_dim"] * element * table["decode_context"]
    clear = (held <= L2_RESIDENT[0]) | (held >= L2_RESIDENT[1])
    names = _HEADS | {"num_decodes": "batch_size", "decode_context": "decode_context"}
    for fmt, part in _attention_tables(
        table, ("num_key_value_heads", "num_heads", "batch_size", "step"), clear
    ):
        yield from _dicts(part, names, "decode_attention", kv_dtype=fmt)


def _prefill_rows(table: Table) -> Iterator[Row]:
    tokens = table["batch_size"].astype(np.int64) * table["isl"]
    pairs = tokens * (table["isl"] / 2 + table["step"])
    table = table | {"tokens": tokens, "pairs": pairs}
    names = _HEADS | {
        "num_prefill_tokens": "tokens",
        "prefill_attention": "pairs",
        "num_prefills": "batch_size",
    }
    fits = (tokens <= 32768) & (table["isl"] >= 64)
    for fmt, part in _attention_tables(
        table, ("num_key_value_heads", "num_heads", "batch_size", "isl"), fits
    ):
        yield from _dicts(part, names, "prefill_attention", kv_dtype=fmt)


def _mla_rows(table: Table) -> Iterator[Row]:
    """Whole MLA blocks, projections included; their products are predicted from the gemm rows.

    A KV format that only prompts were timed in is left out.
    """
    decode = bool((table["step"] > 0).any())
    batch = table["batch_size"].astype(np.int64)
    tokens = batch if decode else batch * table["isl"]
    table = table | {
        "tokens": tokens,
        "context": batch * (table["step"] + 1),
        "pairs": tokens * table["isl"] / 2,
    }
    names = {"num_heads": "num_heads"}
    if decode:
        names |= {"num_decodes": "batch_size", "decode_context": "context"}
    else:
        names |= {"num_prefill_tokens": "tokens", "prefill_attention": "pairs", "num_prefills": "batch_size"}
    dense = (table["gemm_type"] == "bfloat16") & (table["num_heads"] >= 8) & (tokens <= 32768)
    for dtype in sorted(set(table["kv_cache_dtype"].tolist()) & FORMATS.keys()):
        part = _where(
            table, dense & (table["kv_cache_dtype"] == dtype), ("num_heads", "batch_size", "step", "isl")
        )
        yield from _dicts(part, names, "mla_module", kv_dtype=FORMATS[dtype], dtype="bf16", **_MLA)


def _expert_tables(paths: Sequence[Path], engine: str) -> Iterator[Row]:
    """Expert rows, each format from the newest version that timed enough of it (some re-time a few kernels only)."""
    tables = [_read(path) for path in paths]
    counts = {
        dtype: [int(np.sum((t["moe_dtype"] == dtype) & (t["distribution"] == "balanced"))) for t in tables]
        for dtype in sorted({d for t in tables for d in t["moe_dtype"].tolist()} & {*FORMATS, MXFP4_IN_FP8})
    }
    unused = "w4a16_mxfp4" if engine == "trtllm" and MXFP4_IN_FP8 in counts else MXFP4_IN_FP8
    counts.pop(unused, None)
    for dtype, each in counts.items():
        enough = [table for table, count in zip(tables, each, strict=True) if count >= ENOUGH_ROWS]
        if enough:
            yield from _moe_rows(enough[-1], dtype)


def _moe_rows(table: Table, dtype: str) -> Iterator[Row]:
    """Fused experts under balanced routing, where the number of distinct experts is known."""
    chosen = (table["moe_dtype"] == dtype) & (table["distribution"] == "balanced")
    chosen &= (table["moe_tp_size"] * table["moe_ep_size"] <= 8) & (table["num_tokens"] <= 16384)
    part = _fastest(_where_all(table, chosen), _MOE_KEYS)
    part = _where(part, np.ones(len(part["time_ms"]), bool), _MOE_KEYS)
    local = part["num_experts"] // part["moe_ep_size"]
    visits = part["num_tokens"] * part["topk"] / part["moe_ep_size"]
    part |= {
        "local": local, "distinct": np.minimum(local, np.maximum(1.0, visits)),
        "cut": part["inter_size"] / part["moe_tp_size"],
    }  # fmt: skip
    names = {
        "num_tokens": "num_tokens", "hidden_size": "hidden_size", "intermediate_size": "cut",
        "num_experts": "num_experts", "experts_per_token": "topk", "num_local_experts": "local",
        "distinct_experts": "distinct",
    }  # fmt: skip
    yield from _dicts(part, names, "moe", dtype=FORMATS.get(dtype, "mxfp4"))


_MOE_KEYS = ("hidden_size", "inter_size", "num_experts", "topk", "moe_tp_size", "moe_ep_size", "num_tokens")


def _reduce_rows(table: Table) -> Iterator[Row]:
    backend = table.get("backend", table["kernel_source"])
    names = [] if backend is None else backend.tolist()
    chosen = np.array([not str(name).endswith("eager") for name in names])
    sizes = (table["message_size"] >= 1 << 11) & (table["message_size"] <= 1 << 27)
    part = _where(table, chosen & sizes, ("num_gpus", "message_size"))
    part = part | {"num_bytes": 2 * part["message_size"]}
    yield from _dicts(part, {"num_ranks": "num_gpus", "num_bytes": "num_bytes"}, "all_reduce")
