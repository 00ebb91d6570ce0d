"""Start-up logs as rows of figures that vLLM printed, each with its source: `fixtures/starts/vllm.csv`."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from memory_rows import TRUTH, Row, args_of, end_to_end, gpu_of, kv_bytes, model_of, version_of
from places import FIXTURES

from kvplan.engines.flags import EngineArgs, EngineVersion, parse_engine
from kvplan.ground.gpu import GpuSpec, get_gpu
from kvplan.ground.units import GiB
from kvplan.memory.demand import Demand
from kvplan.memory.forward import Plan, Question, answer
from kvplan.models.load import load_model
from kvplan.models.spec import ModelSpec
from kvplan.profiles.memory_profile import MemoryProfile

FORMATS = {
    "fp8-dynamic": "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    "w8a8": "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
}
"""Formats of checkpoints whose own config is not bundled: a checkpoint of the same kind."""


class Start(NamedTuple):
    """One start of vLLM; GiB as printed, None where it was not."""

    id: str
    source: str
    model: ModelSpec
    gpu: GpuSpec
    args: EngineArgs
    engine: EngineVersion
    weights_gib: float | None
    activation_gib: float | None
    non_torch_gib: float | None
    graphs_gib: float | None
    kv_gib: float

    def plan(self, profile: MemoryProfile | None = None) -> Plan:
        """What kvplan plans for it."""
        return answer(Question(self.model, self.gpu, self.args, self.engine, Demand(), profile=profile))


@cache
def starts() -> tuple[Start, ...]:
    """Every row."""
    with (FIXTURES / "starts" / "vllm.csv").open() as file:
        return tuple(map(_start, csv.DictReader(file)))


def _start(row: dict[str, str]) -> Start:
    model = load_model(row["model"])
    if row["format"] in FORMATS:
        model = replace(model, quantization=load_model(FORMATS[row["format"]]).quantization)
    gpu, total = get_gpu(row["gpu"]), float(row["total_gib"])
    counts = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
    args = EngineArgs(
        tensor_parallel_size=int(row["tp"]),
        pipeline_parallel_size=int(row["pp"]),
        gpu_memory_utilization=float(row["utilization"]),
        quantization="fp8" if row["format"] == "fp8" else None,
        **{name: int(row[name]) for name in counts if row[name]},
    )
    figures = ("weights_gib", "activation_gib", "non_torch_gib", "graphs_gib", "kv_gib")
    printed = [float(row[name]) if row[name] else None for name in figures]
    assert printed[-1] is not None
    return Start(
        row["id"],
        row["source"],
        model,
        gpu.model_copy(update={"usable_gib": total, "usable_gib_range": (total, total)}),
        args,
        parse_engine(f"vllm@{row['version']}"),
        *printed,  # type: ignore[arg-type]
    )


@cache
def reference_starts() -> tuple[Start, ...]:
    """Reference logs beside the checkout whose card, share, version and format are known; none where it lies alone."""
    if not TRUTH.is_dir():
        return ()
    return tuple(_reference(row, args_of(row), kv_bytes(row)) for row in end_to_end())


def _reference(row: Row, args: EngineArgs, kv: float | None) -> Start:
    assert kv is not None
    names = ("model_weights_gib", "activation_peak_gib", "non_torch_gib", "cuda_graph_gib")
    weights, activation, growth, graphs = (row["printed"].get(name) for name in names)
    return Start(
        row["id"],
        row["source_url"],
        model_of(row),
        gpu_of(row),
        args,
        version_of(row),
        weights,
        activation,
        growth,
        None if not graphs or graphs < 0 else graphs,
        kv / GiB,
    )
