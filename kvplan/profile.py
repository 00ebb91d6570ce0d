"""A profile: what was measured or learned about one engine on one class of GPU, with its source and range.

Two independent sections: `memory` (what lives beside weights and KV) and `timing` (how long steps take).
Bundled overheads are `catalog/overheads.json`. Knows no arithmetic; `overheads` and `timing` do.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Self

from pydantic import Field, model_validator

from kvplan.config import Config
from kvplan.errors import KvplanError
from kvplan.resources import catalog_dir
from kvplan.timing_profile import TimingProfile


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


class MemoryProfile(Config):
    """What an engine of these versions takes beside weights and KV; formulas in `kvplan.overheads`."""

    engine: str
    """vllm, sglang or tensorrt-llm."""
    since: tuple[int, int]
    """First version it holds for."""
    legacy: bool = False
    """For vLLM's first engine (V0)."""
    sampler_bytes_per_logit: Figure
    """Peak bytes of the profiling sampler per logit (max_num_seqs x vocabulary)."""
    forward_scale: Figure
    """Peak of the profiling forward pass over the live tensors of its widest layer."""
    vision_gib: Figure
    """Peak of profiling a vision tower, GiB."""
    runtime_gib: Figure
    """Growth outside torch's peak: lazily loaded kernels, workspaces, fragmentation, GiB a GPU."""
    runtime_gib_per_peer: Figure
    """The same for every further tensor-parallel rank, GiB."""
    graphs_in_budget: bool
    """Whether CUDA graphs are deducted before the KV pool (vLLM 0.21 and later)."""
    graph_mib_per_layer: dict[str, Figure]
    """MiB per captured graph and layer, by GPU architecture; `default` for the others."""


class Profile(Config):
    """One file of measured facts about an engine on a GPU."""

    name: str
    """File name without .json."""
    gpu: str = ""
    """The GPU table's name of the card it was measured on."""
    engine: str = "vllm"
    """Engine or kernel set."""
    memory: MemoryProfile | None = None
    """Overheads learned there; None: the bundled ones serve."""
    timing: TimingProfile | None = None
    """Step-time coefficients fitted there; None: the roofline serves."""
    source: str = Field("", max_length=2000)
    """Who measured what, when."""


@cache
def bundled_memory_profiles() -> tuple[MemoryProfile, ...]:
    """All bundled overheads, oldest first."""
    rows = json.loads((catalog_dir() / "overheads.json").read_text())["overheads"]
    return tuple(MemoryProfile(**row) for row in rows)


def memory_profile(engine: str, version: tuple[int, int], legacy: bool = False) -> MemoryProfile:
    """The bundled overheads of an engine's version: the newest row that is not newer than it."""
    rows = [
        p
        for p in bundled_memory_profiles()
        if p.engine == engine and p.legacy == legacy and p.since <= version
    ]
    if not rows:
        raise KvplanError(
            f"no overheads are known for {engine} {version[0]}.{version[1]}; name a later version"
        )
    return max(rows, key=lambda p: p.since)
