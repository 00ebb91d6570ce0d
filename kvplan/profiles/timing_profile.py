"""The timing section of a profile: fitted coefficients of one card and engine, their error and their range.

Coefficients are named `family.format.field`, e.g. `gemm.bf16.bytes_per_s`, `gqa.fp8.sequence_s`, `reduce.4.kernel_s`,
`step.layer_s`, `host.step_s`; `step_costs` picks those a model needs and says what it had to borrow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, PrivateAttr, field_validator

from kvplan.formulas.graphs import MAX_CAPTURE_SIZE, Graphs, capture_sizes
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.profiles.surface_file import Surfaces, read_surfaces
from kvplan.timing.costs import (
    AttentionCosts,
    GemmCosts,
    HostCosts,
    ReduceCosts,
)
from kvplan.timing.links import Link
from kvplan.timing.step import FREE, MicroBatches, ModelStepTime, StepCosts, StepShape
from kvplan.timing.surfaces import Curve
from kvplan.timing.work import StepWork

ELEMENT_BYTES = {
    "bf16": 2.0, "float32": 4.0, "fp8": 1.0, "fp8_block": 1.0, "fp8_static": 1.0, "int8": 1.0, "nvfp4": 0.5625,
    "mxfp4": 0.53125, "int4": 0.53,
}  # fmt: skip
"""Bytes per weight or KV element, block scales included."""
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
    "gemm": {f.name for f in fields(GemmCosts)} | {"scale"},
    "moe": {f.name for f in fields(GemmCosts)} | {"scale"},
    "gqa": {f.name for f in fields(AttentionCosts)} | {"scale"},
    "mla": {f.name for f in fields(AttentionCosts)} | {"scale"},
    "reduce": {f.name for f in fields(ReduceCosts)},
    "step": {
        "step_s",
        "layer_s",
        "row_s",
        "launch_s",
        "piecewise_s",
        "activation_bytes_per_s",
        "shared_reads",
        "skew",
    },
    "host": {"step_s", "row_s", "gap_s", "many_s"},
}
"""Family -> the fields its coefficients may have."""


Regime = Literal["decode", "prefill", "mixed", "gemm", "moe", "all_reduce"]


class RegimeError(Config):
    """How far predictions of held-out points were off, |predicted / measured - 1|."""

    regime: Regime
    """What kind of step or kernel."""
    family: str = ""
    """Which coefficients: gemm.bf16, gqa.fp8, step, ..."""
    held_out: str
    """Which points the fit had not seen."""
    num_points: int = Field(gt=0)
    median: float = Field(ge=0)
    p90: float | None = Field(None, ge=0)
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


class KernelSource(Config):
    """Which measurements a surface holds, and how they stood up to the data sheet."""

    version: str
    """Engine and version of the kernels."""
    num_points: int = Field(ge=0)
    """Rows of the table that it is made of."""
    refused: int = 0
    """Rows left out: quicker than 1.05 of the data sheet."""
    share: float = 0.0
    """Of the data sheet's rate, in the median of large points."""
    why: str = ""
    """Why this version, and what looks wrong about it."""


class TimingProfile(Config):
    """Measured surfaces (in a file beside the profile) and coefficients, with their provenance."""

    coefficients: dict[str, float]
    """Name -> value, SI units."""
    assumed: dict[str, str] = Field(default_factory=dict)
    """Coefficients nobody measured here -> why this value, with a range."""
    errors: tuple[RegimeError, ...] = ()
    """Held-out errors per regime; never the training residual."""
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Measured from, to: num_decodes, mean_context, chunk_tokens, num_ranks."""
    draws: tuple[dict[str, float], ...] = ()
    """Bootstrap: sets of coefficients as likely as the fitted one; how sure the fit is of itself (for two cards
    of one kind), not how wrong it is elsewhere."""
    host_overlaps: bool = True
    """Asynchronous scheduling hides host time."""
    seen_by_client: bool = False
    """Steps were timed at a server's clients: what its API server takes is in them."""
    max_capture_size: int = Field(MAX_CAPTURE_SIZE, ge=0, le=1 << 16)
    """Largest CUDA-graph batch; 0 = measured eagerly."""
    num_points: int = 0
    """Rows fitted or kept."""
    kernels: dict[str, KernelSource] = Field(default_factory=dict)
    """Where each surface comes from; the surfaces are in a file beside the profile."""
    _file: Path | None = PrivateAttr(default=None)
    _surfaces: Surfaces | None = PrivateAttr(default=None)

    @property
    def surfaces(self) -> Surfaces:
        """What was measured, read when first asked for; empty for a profile of coefficients."""
        if self._surfaces is not None:
            return self._surfaces
        return read_surfaces(self._file) if self.kernels and self._file else {}

    def with_surfaces(self, surfaces: Surfaces | Path) -> TimingProfile:
        """The profile with these surfaces, or with those of a file."""
        found = self.model_copy()
        if isinstance(surfaces, Path):
            found._file = surfaces
        else:
            found._surfaces = surfaces
        return found

    def with_values(self, values: Mapping[str, float], scales: Mapping[str, float]) -> TimingProfile:
        """The profile with other coefficients, and families `scales` times as slow."""
        scaled = {k: v * self.coefficients.get(k, 1.0) for k, v in scales.items() if v != 1.0}
        return self.model_copy(update={"coefficients": self.coefficients | dict(values) | scaled})

    @field_validator("coefficients")
    @classmethod
    def _exist(cls, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            check_name(name)
            if value < 0 or (value == 0 and name.endswith("bytes_per_s")):
                raise ValueError(f"{name} must be above 0, not {value}")
            if name == "step.shared_reads" and value > 1:
                raise ValueError(f"{name} is a share, at most 1, not {value}")
        return values

    @field_validator("draws")
    @classmethod
    def _all_exist(cls, draws: tuple[dict[str, float], ...]) -> tuple[dict[str, float], ...]:
        return tuple(cls._exist(draw) for draw in draws)

    def step_time(self, work: StepWork, **formats: Any) -> ModelStepTime:
        """Step time of a model's work on this card; formats as in `step_costs`."""
        return self._time(self.coefficients, work, formats)

    def borrowed(self, work: StepWork, **formats: Any) -> tuple[str, ...]:
        """What `step_time` has to take from another format or number of ranks."""
        return self._found(self.coefficients, work, formats).borrowed

    def _time(self, values: Mapping[str, float], work: StepWork, formats: dict[str, Any]) -> ModelStepTime:
        return ModelStepTime(work, self._found(values, work, formats).costs)

    def _found(self, values: Mapping[str, float], work: StepWork, formats: dict[str, Any]) -> Found:
        told = {"sizes": capture_sizes(self.max_capture_size)} | formats
        ranks = work.gathers.num_ranks if work.gathers else 1
        return step_costs(
            values, self.surfaces, **told, num_ranks=work.num_ranks, num_data_ranks=ranks,
            overlaps=self.host_overlaps,
        )  # fmt: skip

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
    surfaces: Surfaces | None = None,
    *,
    weight_format: str = "bf16",
    expert_format: str | None = None,
    kv_format: str = "bf16",
    mla: bool = False,
    num_ranks: int = 1,
    num_data_ranks: int = 1,
    link: Link | None = None,
    overlaps: bool = False,
    sizes: tuple[int, ...] = (),
    decode_sizes: tuple[int, ...] | None = None,
    whole_decodes: int | None = None,
    largest_graph: int = 0,
    tiers: Graphs | None = None,
    micro: MicroBatches = MicroBatches(),  # noqa: B008 (a tuple)
) -> Found:
    """Pick a model's costs from a profile's surfaces and coefficients, borrowing across formats where one is missing.

    `link` (stated, or the card's) serves where the profile timed no exchange among so many ranks.
    """
    notes: list[str] = []
    known = _Known(values, surfaces or {}, notes)
    gemm = known.products("gemm", weight_format)
    experts = known.products("moe", expert_format or weight_format)
    attention = known.attention("mla" if mla else "gqa", kv_format)
    fixed = {k: values.get(f"step.{k}", 0.0) for k in ("step_s", "layer_s", "row_s", "shared_reads", "skew")}
    host = HostCosts(
        values.get("host.step_s", 0.0), values.get("host.row_s", 0.0), overlaps,
        gap_s=values.get("host.gap_s", 0.0), launch_s=values.get("step.launch_s", 0.0),
        many_s=values.get("host.many_s", 0.0), piecewise_s=values.get("step.piecewise_s", 0.0),
    )  # fmt: skip
    costs = StepCosts(
        gemm, experts, replace(known, notes=[]).products("gemm", "bf16"), attention,
        reduce=known.all_reduce(num_ranks, link), gather=known.gather(num_data_ranks, link), host=host,
        activation_bytes_per_s=values.get("step.activation_bytes_per_s", math.inf), capture_sizes=sizes,
        decode_sizes=decode_sizes, whole_decodes=whole_decodes, largest_graph=largest_graph, tiers=tiers, micro=micro,
        **fixed,
    )  # fmt: skip
    return Found(costs, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Known:
    """What a profile says of kernels: measured surfaces first, then fitted coefficients, then the next format's."""

    values: Mapping[str, float]
    surfaces: Surfaces
    notes: list[str]

    def products(self, kind: str, fmt: str) -> Any:
        """Products or experts of a format: its own, a like format's, or bf16's scaled; experts as dense ones last."""
        for like in (fmt, *ALIKE.get(fmt, ())):
            found = self._own(f"{kind}.{like}", GemmCosts)
            if found is not None:
                if like != fmt:
                    self.notes.append(f"{kind} in {fmt}: as in {like}")
                return found
        base = self._own(f"{kind}.bf16", GemmCosts)
        if base is None and kind == "moe":
            return self._dense_experts(fmt)
        if base is None:
            raise KvplanError(f"the profile has no products in {fmt} nor in bf16; measure gemm or step rows")
        if fmt in ("bf16", "float32"):
            return base
        faster = BORROWED_FLOPS.get(fmt, 1.0)
        what = "products" if kind == "gemm" else "experts"
        self.notes.append(f"{what} in {fmt}: bf16's read rate, {faster} x its matrix rate")
        if isinstance(base, GemmCosts):
            return replace(base, flops_per_s=base.flops_per_s * faster)
        sheet = base.sheet._replace(
            flops_per_s=base.sheet.flops_per_s * faster, element_bytes=ELEMENT_BYTES[fmt]
        )
        return replace(base, sheet=sheet)

    def _dense_experts(self, fmt: str) -> Any:
        """Experts of a profile that timed none: as its products."""
        dense = self.products("gemm", fmt)
        if isinstance(dense, GemmCosts):
            return dense
        return GemmCosts(0.8 * dense.sheet.bytes_per_s, 0.6 * dense.sheet.flops_per_s)

    def attention(self, kind: str, fmt: str) -> Any:
        """Attention at a KV format: its own, or bf16's read slower."""
        own, base = (self._own(f"{kind}.{f}", AttentionCosts) for f in (fmt, "bf16"))
        if isinstance(own, AttentionCosts) and base is not None:
            mixed = {f.name for f in fields(AttentionCosts) if f.name.startswith(("mixed", "serial"))}
            stated = {k.rsplit(".", 1)[1] for k in self.values if k.startswith(f"{kind}.{fmt}.")}
            return replace(own, **{k: getattr(base, k) for k in mixed - stated})
        if own is not None:
            return own
        if base is None and kind == "gqa":
            raise KvplanError("the profile has no attention; measure decode_attention or step rows")
        if base is None:
            self.notes.append("MLA attention: rates of grouped-query attention")
            return self.attention("gqa", fmt)
        if fmt in ("bf16", "float32"):
            return base
        slower = BORROWED_KV.get(fmt, 0.7)
        self.notes.append(f"KV in {fmt}: {slower} x bf16's bytes per second")
        if isinstance(base, AttentionCosts):
            return replace(base, bytes_per_s=base.bytes_per_s * slower)
        return replace(base, sheet=base.sheet._replace(bytes_per_s=base.sheet.bytes_per_s * slower))

    def _own(self, family: str, kind: type[Any]) -> Any:
        """A family's surface, at this draw's scale, or its coefficients; None if the profile has neither."""
        stated = _fields(self.values, family)
        scale = stated.pop("scale", 1.0)
        surface = self.surfaces.get(family)
        if surface is not None and not isinstance(surface, Curve):
            return replace(surface, scale=scale) if scale != 1.0 else surface
        return _costs(kind, stated, family) if stated else None

    def all_reduce(self, num_ranks: int, link: Link | None) -> Any:
        """All-reduce among so many ranks: over a stated link, as measured, as among the nearest, or over the card's."""
        if num_ranks == 1:
            return FREE
        if link is not None and link.comes_first:
            self.notes.append(f"all-reduce: a ring over {link}")
            return link.all_reduce(num_ranks)
        measured = {int(k.split(".")[1]) for k in self.surfaces if k.startswith("all_reduce.")}
        fitted = {int(k.split(".")[1]) for k in self.values if k.startswith("reduce.")}
        if not measured | fitted:
            link = link or Link("")
            self.notes.append(f"all-reduce: a ring over {link}")
            return link.all_reduce(num_ranks)
        nearest = min(measured or fitted, key=lambda n: abs(n - num_ranks))
        if nearest != num_ranks:
            self.notes.append(f"all-reduce among {num_ranks}: as among {nearest}")
        curve = self.surfaces.get(f"all_reduce.{nearest}")
        if curve is not None:
            return curve
        return _costs(ReduceCosts, _fields(self.values, f"reduce.{nearest}"), f"reduce.{nearest}")

    def gather(self, num_ranks: int, link: Link | None) -> Any:
        """Passing every data-parallel rank's tokens to all, as measured or over the link."""
        if num_ranks == 1:
            return FREE
        measured = {int(k.split(".")[1]) for k in self.surfaces if k.startswith("all_gather.")}
        if measured and not (link is not None and link.comes_first):
            nearest = min(measured, key=lambda n: abs(n - num_ranks))
            if nearest != num_ranks:
                self.notes.append(f"dispatch and combine among {num_ranks}: as among {nearest}")
            return self.surfaces[f"all_gather.{nearest}"]
        link = link or Link("")
        self.notes.append(f"dispatch and combine: over {link}")
        return link.gather(num_ranks)


def _fields(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {k[len(prefix) + 1 :]: v for k, v in values.items() if k.startswith(prefix + ".")}


def _costs(kind: type[T], found: Mapping[str, float], name: str) -> T:
    """The costs of a family. Raises KvplanError for a profile that lacks one of its coefficients."""
    lacking = [f.name for f in fields(kind) if f.default is MISSING and f.name not in found]
    if lacking:
        raise KvplanError(f"the profile has {name}.{next(iter(found))}, but no {name}.{lacking[0]}")
    return kind(**found)
