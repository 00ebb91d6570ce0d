"""LLMServingSim's real runs of vLLM 0.19, request by request, as simulations; nothing of them is fitted to.

Each run is 300 requests whose prompts share prefixes as the trace's block hashes say. `measured` and `simulated` give
first tokens, time per output token and the whole of each request, in milliseconds, in order of arrival.
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.metrics import latencies
from kvplan.simulation.simulator import simulate
from kvplan.timing.costs import Array
from kvplan.timing.step import ScaledStepTime

BLOCK = 16
"""Tokens of a hashed block of the traces."""
LINK = {"kind": "pcie5", "gb_s": 16, "latency_us": 20}
"""Of the machine with two RTX PRO 6000: `link_bw` 16, `link_latency` 20000 in the runs' own meta.json."""


class Run(NamedTuple):
    """A run as its meta.json states it."""

    name: str
    model: str
    gpu: str
    engine: dict[str, Any]

    @property
    def num_gpus(self) -> int:
        return int(self.engine.get("tensor_parallel_size", 1) * self.engine.get("data_parallel_size", 1))


RUNS = (
    Run("RTXPRO6000_Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "rtx-pro-6000", {"max_num_seqs": 128}),
    Run("RTX4090_Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "rtx-4090",
        {"max_num_seqs": 256, "max_model_len": 32768, "num_gpu_blocks_override": 2588}),
    Run("RTXPRO6000_Qwen3-32B_tp2", "Qwen/Qwen3-32B", "rtx-pro-6000", {"max_num_seqs": 128, "tensor_parallel_size": 2}),
    Run("RTXPRO6000_Qwen3-30B-A3B_dp2_ep", "Qwen/Qwen3-30B-A3B-Instruct-2507", "rtx-pro-6000",
        {"max_num_seqs": 128, "data_parallel_size": 2, "enable_expert_parallel": True}),
)  # fmt: skip


class Times(NamedTuple):
    """Milliseconds, float[requests] each, in order of arrival."""

    ttft: Array
    tpot: Array
    e2e: Array


def requests(run: Run, folder: Path) -> list[dict[str, str]]:
    """The measured requests, in order of arrival."""
    return list(csv.DictReader((folder / f"{run.name}.requests.csv").read_text().splitlines()))


def measured(run: Run, folder: Path) -> Times:
    rows = requests(run, folder)
    return Times(*(np.array([float(row[f"{k}_ms"]) for row in rows]) for k in Times._fields))


def simulated(run: Run, folder: Path, prefixes: bool = True, ends: tuple[float, float] = (1.0, 1.0)) -> Times:
    """The same requests; steps, and what prompts add to them, take `ends` times as long as predicted."""
    with tempfile.TemporaryDirectory() as work:
        trace = Path(work) / "trace.jsonl"
        trace.write_text("".join(json.dumps(record) + "\n" for record in _mooncake(run, folder, prefixes)))
        scenario = parse_scenario(_spec(run, trace))
        setups = set_ups(scenario)
        if ends != (1.0, 1.0):
            setups = {
                name: replace(setup, step_time=ScaledStepTime(setup.step_time, *ends))
                for name, setup in setups.items()
            }
        records = simulate(scenario, setups=setups).records
    found, order = latencies(records), np.argsort(records["request_id"][records.completed])
    return Times(found.ttft[order], found.tpot[order], found.e2el[order])


def _mooncake(run: Run, folder: Path, prefixes: bool) -> list[dict[str, Any]]:
    """A trace as Mooncake writes it; without `prefixes` no two prompts share a block."""
    hashes = [json.loads(line)["hash_ids"] for line in (folder / f"{run.name}.hash_ids_block16.jsonl").open()]
    records = []
    for i, (row, ids) in enumerate(zip(requests(run, folder), hashes, strict=True)):
        tail = [10**9 + i] if int(row["input_tokens"]) % BLOCK else []
        first = 10**10 + 10**4 * i
        own = range(first, first + len([*ids, *tail]))
        records.append({
            "timestamp": 1e3 * float(row["arrival_s"]), "input_length": int(row["input_tokens"]),
            "output_length": int(row["output_tokens"]), "hash_ids": [*ids, *tail] if prefixes else list(own),
        })  # fmt: skip
    return records


def _spec(run: Run, trace: Path) -> dict[str, Any]:
    return {
        "model": run.model, "gpu": run.gpu, "engine_version": "0.19",
        "engine": {"max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9} | run.engine,
        "workload": {
            "trace": {"path": str(trace), "format": "mooncake", "block_size": BLOCK},
            "arrivals": {"kind": "replay"}, "stop": "length",
        },
    } | ({"interconnect": LINK} if run.num_gpus > 1 else {})  # fmt: skip
