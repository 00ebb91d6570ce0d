"""A plan's question and answer: what was asked, names looked up, and what follows. Types only; `plan` fills them.

A `Question` can be asked again with one thing changed, which is how `inverse` finds what would fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint, ResolvedArgs
from kvplan.errors import DoesNotFit
from kvplan.gpu import GpuSpec
from kvplan.limits import Limit
from kvplan.memory.budget import Budget
from kvplan.memory.demand import Demand
from kvplan.memory.layout import Layout
from kvplan.models.spec import ModelSpec
from kvplan.profiles.memory_profile import MemoryProfile
from kvplan.units import gib


class Span(NamedTuple):
    """A count with the range that the memory overheads leave open."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the engine would not start."""

    reason: str
    limit: Limit
    needed_bytes: int
    available_bytes: int
    max_model_len: int
    """Longest context that would start; 0 if none."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, names looked up; the forward formula's arguments, so that it can be asked again, changed."""

    model: ModelSpec
    gpu: GpuSpec
    args: EngineArgs
    engine: EngineVersion
    demand: Demand
    entry_point: EntryPoint = "serve"
    colocate: tuple[tuple[str, ModelSpec], ...] = ()
    profile: MemoryProfile | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: memory of the fullest GPU, the engine's own figures, and what they mean for the asked load."""

    question: Question
    args: ResolvedArgs
    """Flags as the engine would resolve them."""
    budget: Budget
    """Memory of the GPU that has least left for KV."""
    layout: Layout | None
    """None where the engine refuses."""
    shape: Layout
    """Groups, pages and block size whatever the pool; its number of blocks means nothing on a refusal."""
    refusal: Refusal | None
    cache_tokens: Span
    """`GPU KV cache size`, as the engine prints it."""
    max_concurrency: Span
    """Requests of max_model_len tokens at once, as the engine prints it."""
    trace_tokens: int
    """Tokens of one full-grown trace of the asked load."""
    traces: Span
    """Traces of the asked load that KV memory holds at once, over all replicas."""

    @property
    def max_model_len(self) -> int:
        """The context the engine serves; with -1 the one it settles on."""
        if self.layout:
            return self.layout.max_model_len
        asked = self.args.max_model_len
        return asked if asked > 0 else self.question.model.default_max_model_len

    @property
    def num_traces(self) -> int:
        """Traces that run at once: KV memory and max_num_seqs both hold them."""
        return min(int(self.traces.value), self.args.max_num_seqs * self.args.data_parallel_size)

    @property
    def fits(self) -> bool:
        """Whether the engine starts and the asked traces live at once."""
        return (
            self.refusal is None
            and self.too_long is None
            and self.num_traces >= self.question.demand.num_traces
        )

    @property
    def fits_for_sure(self) -> bool:
        """Whether it fits at the worst end of the overheads' range too."""
        seqs = self.args.max_num_seqs * self.args.data_parallel_size
        return self.fits and min(self.traces.low, seqs) >= self.question.demand.num_traces

    @property
    def too_long(self) -> str | None:
        """Why a trace of the asked lengths is never served, or None."""
        if self.refusal or self.trace_tokens <= self.max_model_len:
            return None
        return f"a trace of {self.trace_tokens:,} tokens exceeds max_model_len {self.max_model_len:,}"

    @property
    def limited_by(self) -> Limit:
        """What gives out first."""
        if self.refusal:
            return self.refusal.limit
        seqs = self.args.max_num_seqs * self.args.data_parallel_size
        return Limit.KV_BLOCKS if self.traces.value <= seqs else Limit.MAX_NUM_SEQS

    def check(self) -> Plan:
        """Return itself, or raise DoesNotFit with needed, available and the longest that fits."""
        if self.refusal:
            raise DoesNotFit(self.refusal.reason)
        if not self.fits:
            raise DoesNotFit(self.too_long or self.shortfall)
        return self

    @property
    def shortfall(self) -> str:
        """The missing concurrency in one sentence."""
        wanted = self.question.demand.num_traces
        return (
            f"{wanted:,} traces of {self.trace_tokens:,} tokens asked, {self.num_traces:,} fit at once "
            f"(limited by {self.limited_by})"
        )

    def to_dict(self) -> dict[str, object]:
        """The document that `kvplan estimate --json` prints."""
        from kvplan.memory.report import plan_document

        return plan_document(self)

    def to_frame(self) -> Any:
        """The memory rows as a pandas DataFrame: use, gib, low, high, source."""
        import pandas as pd

        rows = (self.budget.total, *self.budget.rows)
        facts = [(row.name, *(gib(size) for size in row.size), row.source) for row in rows]
        return pd.DataFrame(facts, columns=["use", "gib", "low", "high", "source"])

    def _repr_html_(self) -> str:
        """The text of `kvplan estimate`, for notebooks."""
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        from kvplan.memory.report import plan_text

        return plan_text(self)
