"""The memory section of a profile: what an engine takes beside weights and KV, with source and range.

Bundled rows are `catalog/overheads.json`, one per engine and span of versions. The formulas are `overheads`'.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Self

from pydantic import Field, model_validator

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import GpuSpec


class Figure(Config):
    """A learned number: the value used, the range seen, where it comes from."""

    value: float
    """Used for the answer."""
    low: float
    """Smallest seen."""
    high: float
    """Largest seen."""
    source: str
    """Which logs or which code it was learned from."""

    @model_validator(mode="after")
    def _range_holds_the_value(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} lies outside {self.low}..{self.high}")
        return self


LOGGED_CAPABILITIES = (7.0, 7.5, 8.0, 8.6, 8.9, 9.0, 11.0, 12.0, 12.1)
"""CUDA compute capabilities whose start-up logs the bundled figures were learned from or held to."""
UNSEEN_SPREAD = 2.0
"""Assumed: on other cards (ROCm, B200 and B300, Orin) a figure may be half the least seen, or twice the most."""


class MemoryProfile(Config):
    """What an engine of these versions takes beside weights and KV; formulas in `kvplan.memory.overheads`."""

    engine: str
    """vllm, sglang or tensorrt-llm."""
    since: tuple[int, int]
    """First version it holds for."""
    legacy: bool = False
    """For vLLM's first engine (V0)."""
    sampler_bytes_per_logit: Figure
    """Peak bytes of the profiling sampler per logit (max_num_seqs x vocabulary)."""
    sampler_thresholds: bool = False
    """Whether the sampler finds top-k and top-p by thresholds, with a row of fp32 logits per program."""
    second_runner: tuple[str, ...] = ()
    """Which models vLLM's second model runner serves by default: architectures, `dense`, or `all`."""
    second_sampler_bytes_per_logit: Figure | None = None
    """The same peak in the second model runner."""
    keeps_expert_workspace: bool = False
    """Whether the experts' buffers of the profiling pass stay allocated."""
    residual_streams: int = 3
    """Tensors of the hidden size that are live at a layer's widest moment."""
    forward_scale: Figure
    """Peak of the profiling forward pass over the live tensors of its widest layer."""
    vision_gib: Figure
    """Peak of profiling a vision tower, GiB: of towers whose largest image is not known, or where it was learned."""
    vision_scale: Figure | None = None
    """Peak of profiling other towers over what their layers hold (`kvplan.memory.tower_profile`); None: `vision_gib`
    holds for all."""
    runtime_gib: Figure
    """Growth outside torch's peak: lazily loaded kernels, workspaces, fragmentation, GiB a GPU."""
    runtime_gib_of: dict[str, Figure] = Field(default_factory=dict)
    """The same of cards of a GPU architecture, where logs tell them apart."""
    runtime_gib_per_peer: Figure
    """The same for every further tensor-parallel rank, GiB."""
    runtime_gib_joined: Figure | None = None
    """The same where ranks are joined by NVLink, however many, instead of the figure per rank."""
    graphs_in_budget: bool
    """Whether CUDA graphs are deducted before the KV pool (vLLM 0.20 and later; never on ROCm)."""
    outside_in_second_runner: bool = False
    """Whether the second model runner does not deduct them yet."""
    graph_mib_per_layer: dict[str, Figure]
    """MiB per captured graph and layer, by GPU architecture; `default` for the others."""
    total_gib: dict[str, Figure] = Field(default_factory=dict)
    """What CUDA called the card's total, GiB, by the GPU table's name; the table's figure for others."""
    weights_gib: dict[str, Figure] = Field(default_factory=dict)
    """Loaded weights less the computed ones, GiB a GPU, by model; nothing for others."""

    def has_seen(self, gpu: GpuSpec) -> bool:
        """Whether start-up logs of this kind of card are behind the figures."""
        logged = gpu.vendor == "nvidia" and gpu.compute_capability in LOGGED_CAPABILITIES
        return logged or gpu.name in self.total_gib


@cache
def _rows() -> list[dict[str, Any]]:
    """The bundled rows, whole: each says what differs from the one before it of the same engine."""
    rows: list[dict[str, Any]] = []
    for told in json.loads((catalog_dir() / "overheads.json").read_text())["overheads"]:
        same = [row for row in rows if (row["engine"], row["legacy"]) == (told["engine"], told["legacy"])]
        rows.append((same[-1] if same else {}) | told)
    return rows


@cache
def memory_profile(engine: str, version: tuple[int, int], legacy: bool = False) -> MemoryProfile:
    """The bundled overheads of an engine's version: the newest row that is not newer than it."""
    same = [row for row in _rows() if row["engine"] == engine and row["legacy"] == legacy]
    rows = [row for row in same if tuple(row["since"]) <= version]
    if not rows:
        oldest = min(row["since"] for row in same)
        raise KvplanError(
            f"no overheads are known for {engine} before {oldest[0]}.{oldest[1]}; name a later version"
        )
    return MemoryProfile(**max(rows, key=lambda row: tuple(row["since"])))
