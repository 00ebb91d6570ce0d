"""Public start-up logs as rows: what each says of its model, card, engine version and flags."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from places import TRUTH as REFERENCE

from kvplan.engines.flags import EngineArgs, EngineVersion, parse_engine
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu
from kvplan.ground.units import GiB
from kvplan.memory.demand import Demand
from kvplan.memory.forward import Plan, Question, answer
from kvplan.models.load import find_bundled, from_config, load_model
from kvplan.models.spec import ModelSpec
from kvplan.profiles.memory_profile import MemoryProfile

TRUTH = REFERENCE / "memory"

Row = dict[str, Any]

VERSION = {
    "v0-3090-llama31-8b-20k": "0.6",
    "v0-3090-llama31-8b-29k": "0.6",
    "v0-a100-40-dsv2-lite-tp8": "0.7",
    "v1-qwen3next-80b-w4a16-075": "0.21",
}
"""Versions that a log's date (December 2024), or way of counting memory (0.6.5 and 0.6.6 count as 0.7) or tokens
tells."""

TOLD: dict[str, dict[str, Any]] = {
    "v1-gb10-qwen35-122b-int4": {"num_speculative_tokens": 2},
    "v1-l40s-qwen35-27b-fp8-util90": {"enable_prefix_caching": False},
    "v1-5090-qwen36-35b-a3b-nvfp4": {"enable_prefix_caching": True},
    "v1-5060tix4-qwen36-27b-nvfp4": {"enable_prefix_caching": True},
    "v1-qwen3next-80b-w4a16-075": {"enable_prefix_caching": True},
    "v1-a5000-llama31-8b": {"enforce_eager": True},
    "v0-80g-phi4-bnb4": {"gpu_memory_utilization": 0.696},
}
"""Flags that a row's notes tell: MTP-2; the layout notes: fits only without prefix caching; 55.09 GiB of 79.15. And
states with prefix caching, off by default before vLLM 0.28: the first's public compose file asks for it, commands of
the two others are not known and their tokens are those of states kept for it."""

QUANTIZATION = {"fp8 compressed-tensors": "fp8", "fp8 block": "fp8", "bitsandbytes 4-bit": "bitsandbytes"}
"""Formats whose checkpoint config the logs do not carry, as a quantisation on load of the same size."""


@cache
def rows() -> list[Row]:
    every = [json.loads(line) for line in (TRUTH / "cases.jsonl").read_text().splitlines()]
    return [
        r
        for r in every
        if r["engine"].startswith("vllm") and not r["sanity"]["circular"] and r.get("config_file")
    ]


@cache
def _model(config_file: str) -> ModelSpec:
    """The bundled config of that name, vision tower and all; else the reference data's architecture numbers."""
    name = Path(config_file).stem.replace("__", "/")
    if find_bundled(name):
        return load_model(name)
    return from_config(json.loads((TRUTH / config_file).read_text()), name)


def model_of(row: Row) -> ModelSpec:
    """The row's model; a log's own max_model_len shows that its checkpoint's config allowed it."""
    model = _model(row["config_file"])
    return replace(model, max_model_len=max(model.max_model_len, row["max_model_len"] or 0))


def version_of(row: Row) -> EngineVersion:
    """The row's version, 0.20 where nothing tells one."""
    found = dated(row)
    return parse_engine(
        f"vllm@{found[0] if found else '0.20'}" + ("-v0" if row["engine"] == "vllm-v0" else "")
    )


def dated(row: Row) -> re.Match[str] | None:
    return re.match(r"0\.\d+", VERSION.get(row["id"], row["engine_version"] or ""))


def gpu_of(row: Row) -> GpuSpec:
    """The row's card, with the total its log prints."""
    said = row["gpu"].split("(")[0].strip().removesuffix("-class")
    for name in (said, said.split(" ")[0], said.split("/")[0], "h100"):
        try:
            card = get_gpu(name)
            break
        except KvplanError:
            continue
    gib = row["gpu_memory_gib"]
    return card.model_copy(update={"usable_gib": gib, "usable_gib_range": (gib, gib)}) if gib else card


FLAGS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")


def args_of(row: Row, **more: Any) -> EngineArgs:
    flags = {name: row[name] for name in FLAGS if row[name] is not None}
    if row["block_size"] in (16, 32, 64, 128):
        flags["block_size"] = row["block_size"]
    quantization = QUANTIZATION.get(row["quantization"] or "")
    return EngineArgs(
        tensor_parallel_size=row["tp"],
        pipeline_parallel_size=row["pp"] or 1,
        kv_cache_dtype=row["kv_cache_dtype"] or "auto",
        quantization=quantization,
        **flags | TOLD.get(row["id"], {}) | more,
    )


def end_to_end() -> list[Row]:
    """Rows whose card, utilisation and version are known, with the KV that was left."""
    return [r for r in rows() if r["gpu_memory_utilization"] and known(r) and kv_bytes(r) is not None]


def known(row: Row) -> bool:
    """Whether the log tells card, version and a weight format that its config or a flag gives."""
    card = row["gpu_memory_gib"] or not re.search("inferred|class", row["gpu"])
    return bool(card and dated(row)) and row["quantization"] in (None, "mxfp4", *QUANTIZATION)


def kv_bytes(row: Row) -> float | None:
    """The printed KV memory, or that of the printed blocks."""
    printed = row["printed"]
    if printed.get("available_kv_gib") is not None:
        return float(printed["available_kv_gib"] * GiB)
    if not printed.get("num_gpu_blocks"):
        return None
    return float(printed["num_gpu_blocks"] * plan_of(row).shape.bytes_per_block)


def plan_of(row: Row, profile: MemoryProfile | None = None, **more: Any) -> Plan:
    return answer(
        Question(model_of(row), gpu_of(row), args_of(row, **more), version_of(row), Demand(), profile=profile)
    )
