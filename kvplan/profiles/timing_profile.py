"""The timing section of a profile: fitted coefficients of one card and engine, their error and their range.

Coefficients are named `family.format.field`, e.g. `gemm.bf16.bytes_per_s`, `gqa.fp8.sequence_s`, `reduce.4.kernel_s`,
`step.layer_s`, `host.step_s`; `step_costs` picks those a model needs and says what it had to borrow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, field_validator

from kvplan.config import Config
from kvplan.errors import KvplanError, did_you_mean
from kvplan.timing.costs import (
    MAX_CAPTURE_SIZE,
    AttentionCosts,
    GemmCosts,
    HostCosts,
    ReduceCosts,
    StepCosts,
    capture_sizes,
)
from kvplan.timing.step import ModelStepTime, StepShape
from kvplan.timing.work import StepWork

T = TypeVar("T", GemmCosts, AttentionCosts, ReduceCosts)

BORROWED_FLOPS = {"fp8": 1.6, "fp8_static": 1.6, "fp8_block": 1.4, "nvfp4": 2.5, "mxfp4": 1.0, "int4": 0.9}
"""Matrix rate over bf16's where a profile has no products of that format (assumed, 0.7 to 1.3 of it)."""
ALIKE = {
    "fp8_block": ("fp8", "fp8_static"),
    "fp8": ("fp8_block", "fp8_static"),
    "fp8_static": ("fp8", "fp8_block"),
    "mxfp4": ("nvfp4",),
    "nvfp4": ("mxfp4",),
    "int8": ("fp8",),
}
"""Formats whose kernels are close enough to lend each other costs, nearest first."""
BORROWED_KV = {"fp8": 0.7}
"""KV bytes per second over bf16's: fp8 is read about 1.4 times faster, at half the bytes."""

FIELDS = {
    "gemm": {f.name for f in fields(GemmCosts)},
    "moe": {f.name for f in fields(GemmCosts)},
    "gqa": {f.name for f in fields(AttentionCosts)},
    "mla": {f.name for f in fields(AttentionCosts)},
    "reduce": {f.name for f in fields(ReduceCosts)},
    "step": {"step_s", "layer_s", "row_s", "launch_s", "activation_bytes_per_s"},
    "host": {"step_s", "row_s", "gap_s"},
}
"""Family -> the fields its coefficients may have."""
RING_S = 10e-6
"""Fixed part of an all-reduce that no profile measured."""


class RegimeError(Config):
    """How far predictions of held-out points were off, |predicted / measured - 1|."""

    regime: Literal["decode", "prefill", "mixed", "gemm", "moe", "all_reduce"]
    """What kind of step or kernel."""
    family: str = ""
    """Which coefficients: gemm.bf16, gqa.fp8, step, ..."""
    held_out: str
    """Which points the fit had not seen."""
    num_points: int = Field(gt=0)
    median: float = Field(ge=0)
    p95: float = Field(ge=0)
    bias: float
    """Mean of ln(predicted / measured); below 0: too fast."""


def check_name(name: str) -> None:
    """Raise ValueError for a coefficient that does not exist, e.g. `gqa.bf16.bytes_per_sec`."""
    family, *middle = name.split(".")[:-1] or [""]
    known = [f"{'.'.join([family, *middle])}.{f}" for f in FIELDS.get(family, ())]
    if family == "reduce" and not (middle and re.fullmatch("[0-9]{1,6}", middle[0])):
        raise ValueError(f"{name[:80]}: reduce is followed by a number of ranks, as in reduce.4.kernel_s")
    if name not in known or len(middle) != (family not in ("step", "host")):
        every = [f"{kind}.FORMAT.{f}" for kind, names in FIELDS.items() for f in names]
        raise ValueError(f"no coefficient {name[:80]!r}{did_you_mean(name, known or every)}")


class TimingProfile(Config):
    """Coefficients with their provenance; the tables they came from are not kept."""

    coefficients: dict[str, float]
    """Name -> value, SI units."""
    assumed: dict[str, str] = Field(default_factory=dict)
    """Coefficients nobody measured here -> why this value, with a range."""
    errors: tuple[RegimeError, ...] = ()
    """Held-out errors per regime; never the training residual."""
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Measured from, to: num_decodes, mean_context, chunk_tokens, num_ranks."""
    draws: tuple[dict[str, float], ...] = ()
    """Bootstrap: sets of coefficients as likely as the fitted one, for intervals."""
    host_overlaps: bool = True
    """Asynchronous scheduling hides host time."""
    max_capture_size: int = Field(MAX_CAPTURE_SIZE, ge=0, le=1 << 16)
    """Largest CUDA-graph batch; 0 = measured eagerly."""
    num_points: int = 0
    """Rows fitted."""

    @field_validator("coefficients")
    @classmethod
    def _exist(cls, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            check_name(name)
            if value < 0 or (value == 0 and name.endswith("bytes_per_s")):
                raise ValueError(f"{name} must be above 0, not {value}")
        return values

    @field_validator("draws")
    @classmethod
    def _all_exist(cls, draws: tuple[dict[str, float], ...]) -> tuple[dict[str, float], ...]:
        return tuple(cls._exist(draw) for draw in draws)

    def step_time(self, work: StepWork, **formats: Any) -> ModelStepTime:
        """Step time of a model's work on this card; formats as in `step_costs`."""
        return self._time(self.coefficients, work, formats)

    def draw_times(self, work: StepWork, **formats: Any) -> list[ModelStepTime]:
        """One step time per bootstrap draw, for `--uncertainty`."""
        return [self._time(self.coefficients | draw, work, formats) for draw in self.draws]

    def borrowed(self, work: StepWork, **formats: Any) -> tuple[str, ...]:
        """What `step_time` has to take from another format or number of ranks."""
        return step_costs(self.coefficients, **formats, num_ranks=work.num_ranks).borrowed

    def _time(self, values: Mapping[str, float], work: StepWork, formats: dict[str, Any]) -> ModelStepTime:
        sizes = capture_sizes(self.max_capture_size) if self.max_capture_size else ()
        found = step_costs(
            values, **formats, num_ranks=work.num_ranks, overlaps=self.host_overlaps, sizes=sizes
        )
        return ModelStepTime(work, found.costs)

    def outside(self, shape: StepShape) -> tuple[str, ...]:
        """Which measured ranges a step leaves, one phrase each; empty inside all of them."""
        asked = {
            "num_decodes": shape.num_decodes,
            "mean_context": shape.decode_context / shape.num_decodes if shape.num_decodes else 0,
            "chunk_tokens": shape.num_prefill_tokens,
        }
        return tuple(
            f"{name} {asked[name]:,.0f} outside the measured {low:,.0f} to {high:,.0f}"
            for name, (low, high) in self.ranges.items()
            if asked.get(name) and not low <= asked[name] <= high
        )


class Found(NamedTuple):
    """Costs for one model, and what had to be borrowed for them."""

    costs: StepCosts
    borrowed: tuple[str, ...]


def step_costs(
    values: Mapping[str, float],
    *,
    weight_format: str = "bf16",
    expert_format: str | None = None,
    kv_format: str = "bf16",
    mla: bool = False,
    num_ranks: int = 1,
    link_bytes_per_s: float = math.inf,
    overlaps: bool = False,
    sizes: tuple[int, ...] = (),
) -> Found:
    """Pick a model's costs from a profile's coefficients, borrowing across formats where one is missing.

    `link_bytes_per_s` (one direction, per GPU) serves for all-reduces that the profile never measured.
    """
    notes: list[str] = []
    gemm = _gemm(values, "gemm", weight_format, notes)
    experts = _gemm(values, "moe", expert_format or weight_format, notes)
    head = _gemm(values, "gemm", "bf16", [])
    attention = _attention(values, mla, kv_format, notes)
    fixed = {k: values.get(f"step.{k}", 0.0) for k in ("step_s", "layer_s", "row_s")}
    host = HostCosts(
        values.get("host.step_s", 0.0), values.get("host.row_s", 0.0), overlaps,
        gap_s=values.get("host.gap_s", 0.0), launch_s=values.get("step.launch_s", 0.0),
    )  # fmt: skip
    costs = StepCosts(
        gemm, experts, head, attention, _reduce(values, num_ranks, link_bytes_per_s, notes), host,
        activation_bytes_per_s=values.get("step.activation_bytes_per_s", math.inf), capture_sizes=sizes, **fixed,
    )  # fmt: skip
    return Found(costs, tuple(notes))


def _fields(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {k[len(prefix) + 1 :]: v for k, v in values.items() if k.startswith(prefix + ".")}


def _costs(kind: type[T], found: Mapping[str, float], name: str) -> T:
    """The costs of a family. Raises KvplanError for a profile that lacks one of its coefficients."""
    lacking = [f.name for f in fields(kind) if f.default is MISSING and f.name not in found]
    if lacking:
        raise KvplanError(f"the profile has {name}.{next(iter(found))}, but no {name}.{lacking[0]}")
    return kind(**found)


def _gemm(values: Mapping[str, float], kind: str, fmt: str, notes: list[str]) -> GemmCosts:
    """Products of a format: its own, a like format's, for experts the dense ones', or bf16's scaled."""
    for like in (fmt, *ALIKE.get(fmt, ())):
        own = _fields(values, f"{kind}.{like}")
        if own:
            if like != fmt:
                notes.append(f"{kind} in {fmt}: as in {like}")
            return _costs(GemmCosts, own, f"{kind}.{like}")
    if kind == "moe":
        return _gemm(values, "gemm", fmt, notes)
    base = _fields(values, "gemm.bf16")
    if not base:
        raise KvplanError(f"the profile has no products in {fmt} nor in bf16; measure gemm or step rows")
    if fmt in ("bf16", "float32"):
        return _costs(GemmCosts, base, "gemm.bf16")
    notes.append(f"products in {fmt}: bf16's read rate, {BORROWED_FLOPS.get(fmt, 1.0)} x its matrix rate")
    costs = _costs(GemmCosts, base, "gemm.bf16")
    return replace(costs, flops_per_s=costs.flops_per_s * BORROWED_FLOPS.get(fmt, 1.0))


def _attention(values: Mapping[str, float], mla: bool, fmt: str, notes: list[str]) -> AttentionCosts:
    kind = "mla" if mla else "gqa"
    own = _fields(values, f"{kind}.{fmt}")
    base = _fields(values, f"{kind}.bf16")
    if own:
        lent = {k: v for k, v in base.items() if "mixed" in k or "serial" in k}
        return _costs(AttentionCosts, lent | own, f"{kind}.{fmt}")
    if not base:
        if not mla:
            raise KvplanError("the profile has no attention; measure decode_attention or step rows")
        notes.append("MLA attention: rates of grouped-query attention")
        return _attention(values, False, fmt, notes)
    if fmt in ("bf16", "float32"):
        return _costs(AttentionCosts, base, f"{kind}.bf16")
    notes.append(f"KV in {fmt}: {BORROWED_KV.get(fmt, 0.7)} x bf16's bytes per second")
    costs = _costs(AttentionCosts, base, f"{kind}.bf16")
    return replace(costs, bytes_per_s=costs.bytes_per_s * BORROWED_KV.get(fmt, 0.7))


def _reduce(values: Mapping[str, float], num_ranks: int, link: float, notes: list[str]) -> ReduceCosts:
    """All-reduce among so many ranks, or among the nearest measured number, or a ring over the link."""
    if num_ranks == 1:
        return ReduceCosts()
    measured = sorted({int(k.split(".")[1]) for k in values if k.startswith("reduce.")})
    if not measured:
        notes.append(
            f"all-reduce: a ring over the link plus {RING_S * 1e6:.0f} microseconds (assumed, 4 to 30)"
        )
        return ReduceCosts(RING_S, link * num_ranks / (2.0 * (num_ranks - 1)))
    nearest = min(measured, key=lambda n: abs(n - num_ranks))
    if nearest != num_ranks:
        notes.append(f"all-reduce among {num_ranks}: as among {nearest}")
    return _costs(ReduceCosts, _fields(values, f"reduce.{nearest}"), f"reduce.{nearest}")
