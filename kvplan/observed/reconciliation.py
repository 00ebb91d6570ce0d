"""`reconcile`: a real engine's start-up log beside the plan of the same model, flags and card, line by line.

    log --logs.read_log--> figures, flags, names --> plan --logs.explain--> lines, each with what explains it
                                                          --logs.learn--> overheads, for `estimate --profile`

Knows no formula of memory: `plan` does. Knows no log format: `logs` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec
from kvplan.memory.answers import Plan
from kvplan.memory.overheads import estimate_overheads
from kvplan.memory.plan import answer
from kvplan.models.spec import ModelSpec
from kvplan.observed import StartupLog, read_log
from kvplan.observed.explain import (
    adopt,
    contradictions,
    explain_activation,
    explain_graphs,
    explain_layout,
    explain_pool,
    explain_runtime,
    explain_weights,
)
from kvplan.observed.learn import Unlearned, activation_bytes, learn, non_torch_gib
from kvplan.observed.pool import PrintedPool, printed_pool
from kvplan.observed.question import question_of, stated_flags
from kvplan.profiles.memory_profile import MemoryProfile
from kvplan.profiles.profile import Profile
from kvplan.units import GiB, gib


class Line(NamedTuple):
    """One figure of the log and the plan's."""

    name: str
    """Key, e.g. weights."""
    label: str
    """As printed."""
    unit: str
    """GiB, blocks, tokens or x."""
    printed: float | None
    """What the log says; None where it does not."""
    planned: float
    """What the plan of the same flags says."""
    explanation: str
    """What the residual comes from."""

    @property
    def residual(self) -> float | None:
        """Log less plan, in the line's unit."""
        return None if self.printed is None else self.printed - self.planned


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A log and its plan."""

    log: StartupLog
    plan: Plan
    """The plan of the log's model, flags and card, with bundled overheads."""
    lines: tuple[Line, ...]
    pool: PrintedPool
    """The KV pool that the log tells, and what kvplan makes of that pool."""
    contradictions: tuple[str, ...]
    """Figures of the log that exclude each other; such a log teaches nothing."""
    overheads: MemoryProfile | None
    """Overheads under which the plan gives the log's pool; None where the log does not tell."""
    why_nothing_learned: str
    """Why there are none; empty where there are."""
    assumptions: tuple[str, ...]
    """What the log did not say and was assumed."""

    def profile(self, name: str) -> Profile:
        """The overheads as a profile for `estimate --profile`. Raises KvplanError where nothing was learned."""
        if self.overheads is None:
            raise KvplanError(f"nothing to save: {self.why_nothing_learned}")
        question = self.plan.question
        return Profile(
            name=name,
            gpu=question.gpu.name,
            engine=question.engine.engine,
            engine_version=self.log.version or "{}.{}".format(*question.engine.version),
            memory=self.overheads,
            source=f"start-up log of {question.engine} with {question.model.name} on {question.gpu.name}",
        )

    def to_dict(self) -> dict[str, object]:
        """The document that `kvplan reconcile --json` prints."""
        from kvplan.observed.report import document

        return document(self)

    def __str__(self) -> str:
        from kvplan.observed.report import text

        return text(self)


def reconcile(
    log: str | Iterable[str] | StartupLog,
    *,
    model: ModelSpec | str | None = None,
    gpu: GpuSpec | str | None = None,
    engine: EngineVersion | str | None = None,
    args: EngineArgs | None = None,
    entry_point: EntryPoint = "serve",
) -> Reconciliation:
    """Set a start-up log beside the plan of the same model, flags and card.

    Args:
        log: the text, its lines (`logs.file_lines` streams a file), or a log already read.
        model, gpu, engine: where the log does not print them, or to overrule it.
        args: flags that the log does not print; they win over the log's.
        entry_point: `llm` for offline use, whose batch defaults differ.

    Raises:
        KvplanError: no log of an engine, contradicting figures, a model or card that nobody names.
    """
    told = log if isinstance(log, StartupLog) else read_log(log)
    question, assumptions = question_of(told, model, gpu, engine, args, entry_point)
    plan = answer(question)
    pool = printed_pool(told, plan)
    stated = stated_flags(told, engine, args)
    better = adopt(told, plan, pool, stated)
    if better is not None:
        plan = answer(better.question)
        pool, assumptions = printed_pool(told, plan), (*assumptions, better.why)
    conflicts = contradictions(told, plan, pool)
    learned = Unlearned(conflicts[0]) if conflicts else learn(told, plan, pool)
    why = learned if isinstance(learned, Unlearned) else ""
    overheads = None if isinstance(learned, Unlearned) else learned
    lines = _lines(told, plan, pool)
    return Reconciliation(told, plan, lines, pool, conflicts, overheads, str(why), assumptions)


def _lines(log: StartupLog, plan: Plan, pool: PrintedPool) -> tuple[Line, ...]:
    """The figures in the order an engine meets them."""
    budget, figures = plan.budget, log.figures
    weights = figures.get("weights_gib")
    if weights is None and "weights_mib" in figures:
        weights = figures["weights_mib"] / 1024
    peak = activation_bytes(log)
    activation = None if peak is None else peak / GiB
    graphs = figures.get("graphs_estimated_gib") if plan.budget.graphs.size.value else None
    rows = [
        Line(
            "total", "card's total", "GiB", figures.get("total_gib"), gib(plan.question.gpu.total_bytes), ""
        ),
        Line("weights", "weights", "GiB", weights, gib(budget.weights.size.value), ""),
        Line("activation", "activation peak", "GiB", activation, gib(budget.activation.size.value), ""),
        Line(
            "non_torch",
            "runtime (non-torch)",
            "GiB",
            non_torch_gib(log),
            gib(budget.runtime.size.value),
            "",
        ),
        Line("cuda_graph", "CUDA graphs", "GiB", graphs or figures.get("graphs_gib"), gib(_graphs(plan)), ""),
        Line("kv_pool", "KV cache", "GiB", pool.printed_gib, gib(budget.kv.size.value), ""),
        Line("num_gpu_blocks", "blocks", "blocks", figures.get("num_gpu_blocks"), plan.shape.num_blocks, ""),
        Line(
            "cache_tokens",
            "tokens",
            "tokens",
            figures.get("cache_tokens"),
            plan.shape.kv_cache_size_tokens,
            "",
        ),
        Line(
            "max_concurrency",
            "concurrency",
            "x",
            figures.get("max_concurrency"),
            plan.shape.max_concurrency,
            "",
        ),
    ]
    return tuple(row._replace(explanation=_explain(row, log, plan, pool)) for row in rows)


def _graphs(plan: Plan) -> int:
    """CUDA graphs, whether or not the budget holds them."""
    question = plan.question
    assert question.profile is not None
    return estimate_overheads(question.model, plan.args, question.gpu, question.profile).graphs.value


def _explain(line: Line, log: StartupLog, plan: Plan, pool: PrintedPool) -> str:
    if line.printed is None:
        return "not printed"
    if line.name == "total":
        return "what CUDA reports there" if abs(line.printed - line.planned) > 0.005 else "agrees"
    if line.name == "weights":
        return explain_weights(line.printed, plan)
    if line.name == "activation":
        return explain_activation(line.printed, plan)
    if line.name == "non_torch":
        return explain_runtime(line.printed, plan)
    if line.name == "cuda_graph":
        return explain_graphs(line.printed, line.planned, plan)
    if line.name == "kv_pool":
        return explain_pool(line.printed, plan)
    return explain_layout(line.name, line.printed, log, plan, pool)
