"""`reconcile`: a real engine's start-up log beside the plan of the same model, flags and card, line by line.

    log --read_log--> figures, flags, names --> plan --explain--> lines, each with what explains it
                                                     --learn--> overheads, for `estimate --profile`

Knows no formula of memory and no log format.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import kvplan
from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import GiB, gib
from kvplan.memory.answers import Plan, Question
from kvplan.memory.forward import answer
from kvplan.memory.report import SCHEMA_VERSION
from kvplan.memory.serve_command import to_words
from kvplan.models.load import find_bundled, load_model
from kvplan.models.spec import ModelSpec
from kvplan.observed.explain import adopt, contradictions, explain
from kvplan.observed.learn import (
    Learned,
    Unlearned,
    activation_bytes,
    learn,
    learned_values,
    non_torch_gib,
    planned_graphs,
)
from kvplan.observed.pool import PrintedPool, figure, pinned_pool, printed_pool
from kvplan.observed.question import question_of, stated_flags
from kvplan.observed.startup import StartupLog, read_log
from kvplan.profiles.memory_profile import MemoryProfile, memory_profile
from kvplan.profiles.profile import Profile

PLACES = {"GiB": 2, "blocks": 0, "tokens": 0, "x": 2}
"""Decimals of a figure, by its unit."""


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

    def to_dict(self) -> dict[str, object]:
        """One of the document's `lines`."""
        return {
            "name": self.name,
            "unit": self.unit,
            "printed": self.printed,
            "planned": self.planned,
            "residual": self.residual,
            "explanation": self.explanation,
        }

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Label with its unit, what the log says, what the plan says, the residual, its explanation."""
        places = PLACES[self.unit]
        printed = "-" if self.printed is None else f"{self.printed:,.{places}f}"
        apart = None if self.residual is None else round(self.residual, places)
        residual = "" if apart is None else f"{apart:+,.{places}f}" if apart else f"{0:.{places}f}"
        label = self.label if self.unit in ("blocks", "tokens") else f"{self.label}, {self.unit}"
        return label, printed, f"{self.planned:,.{places}f}", residual, self.explanation

    def __str__(self) -> str:
        label, printed, planned, residual, explanation = self.cells
        return f"  {label:<21}{printed:>12}{planned:>12}{residual:>11}   {explanation}"


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
    beyond: bool = False
    """Whether nothing was learned because log and plan are further apart than any overhead accounts for."""

    @property
    def agrees(self) -> bool:
        """Whether log and plan may be of one start: no figures exclude each other, no residual is out of bounds."""
        return not (self.contradictions or self.beyond)

    @property
    def learned(self) -> tuple[Learned, ...]:
        """Every figure that the saved profile holds in place of a bundled one."""
        engine = self.plan.question.engine
        bundled = memory_profile(engine.engine, engine.version, engine.legacy)
        return learned_values(self.overheads, bundled) if self.overheads else ()

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
        """The document of `kvplan reconcile --json`: the same keys whatever the log; null = not printed."""
        log, question = self.log, self.plan.question
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "log": {
                "engine": log.engine,
                "version": log.version or None,
                "model": log.model or None,
                "gpu": log.gpu or None,
                "figures": dict(log.figures),
                "flags": dict(log.flags),
                "notes": list(log.notes),
            },
            "inputs": {
                "model": question.model.name,
                "gpu": question.gpu.name,
                "engine": str(question.engine),
                **self.plan.args.model_dump(mode="json"),
            },
            "lines": [line.to_dict() for line in self.lines],
            "contradictions": list(self.contradictions),
            "assumptions": list(self.assumptions),
            "overheads": self.overheads.model_dump(mode="json") if self.overheads else None,
            "learned": [value._asdict() for value in self.learned],
            "why_nothing_learned": self.why_nothing_learned or None,
            "conclusion": self.conclusion,
            "estimate_command": self.estimate_command() or None,
        }

    def __str__(self) -> str:
        """A table of log and plan, then what was assumed, contradicts itself, or can be saved."""
        question = self.plan.question
        rows = [f"  {'':<21}{'log':>12}{'kvplan':>12}{'residual':>11}   explained by"]
        rows += [str(line) for line in self.lines if line.printed is not None or line.name != "total"]
        parts = [
            f"{question.model.name} on {question.gpu.name}, {question.engine}",
            "\n".join(rows),
            "\n".join(f"Note: {note}." for note in (*self.log.notes, *self.assumptions)),
            "\n".join(f"Contradiction: {one}." for one in self.contradictions),
            self.conclusion,
        ]
        return "\n\n".join(filter(None, parts))

    @property
    def conclusion(self) -> str:
        """Where the KV cache's residual goes, and every figure learned; or why none was."""
        if self.overheads is None:
            return f"No overheads learned: {self.why_nothing_learned}."
        figures = "; ".join(map(str, self.learned))
        return f"{self._verdict(self.overheads)}\nOverheads learned: {figures or 'none that differ'}."

    def _verdict(self, overheads: MemoryProfile) -> str:
        """What the plan becomes under the learned overheads."""
        question, rows = self.plan.question, self.plan.budget.rows
        told = answer(replace(question, profile=overheads)).budget.rows
        changed = [
            f"{new.label} {gib(new.size.value):.2f} GiB (planned {gib(old.size.value):.2f})"
            for old, new in zip(rows, told, strict=True)
            if old.name not in ("kv_pool", "outside_budget")
            and abs(gib(new.size.value - old.size.value)) >= 0.01
        ]
        if not changed:
            return "The log's KV cache is the planned one."
        images = "; the log profiled images" if "encoder_tokens" in self.log.figures else ""
        return f"The log's KV cache follows with {', '.join(changed)}{images}."

    def estimate_command(self, profile: str = "PROFILE.json") -> str:
        """The estimate that gives the log's pool back, with the saved overheads; empty if there is none.

        Models from elsewhere than a bundled config or a path, and lengths beyond the config's, have none.
        """
        if self.overheads is None:
            return ""
        question = self.plan.question
        name = question.model.name if find_bundled(question.model.name) else question.model.source
        flags = self._needed_flags().model_dump(exclude_defaults=True)
        try:
            answer(
                replace(question, model=load_model(name), args=EngineArgs(**flags), profile=self.overheads)
            )
        except KvplanError:
            return ""
        words = ["kvplan", "estimate", name, "--gpu", question.gpu.name, "--engine", str(question.engine)]
        words += ["--entry-point", question.entry_point] if question.entry_point != "serve" else []
        words += to_words({flag.replace("_", "-"): value for flag, value in flags.items()})
        return shlex.join([*words, "--profile", profile])

    def _needed_flags(self) -> EngineArgs:
        """The log's flags without those that the engine would choose by itself."""
        question = self.plan.question
        args = question.args
        for name in args.model_dump(exclude_defaults=True):
            fewer = EngineArgs(
                **{k: v for k, v in args.model_dump(exclude_defaults=True).items() if k != name}
            )
            with suppress(KvplanError):  # a flag that the others stand on
                if answer(replace(question, args=fewer)).args == self.plan.args:
                    args = fewer
        return args


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
        log: the text, its lines (`file_lines` streams a file), or a log already read.
        model, gpu, engine: where the log does not print them, or to overrule it.
        args: flags that the log does not print; they win over the log's.
        entry_point: `llm` for offline use, whose batch defaults differ.

    Raises:
        KvplanError: no log of an engine, contradicting figures, a model or card that nobody names.
    """
    told = log if isinstance(log, StartupLog) else read_log(log)
    question, assumptions = question_of(told, model, gpu, engine, args, entry_point)
    plan, left_out = _answerable(question, args)
    assumptions += left_out
    pool = printed_pool(told, plan)
    stated = stated_flags(told, engine, args)
    better = adopt(told, plan, pool, stated)
    if better is not None:
        plan = answer(better.question)
        pool, assumptions = printed_pool(told, plan), (*assumptions, better.why)
    elif not pool.holds("cache_tokens", told.figures.get("cache_tokens", 0)):
        pool = pinned_pool(told, plan) or pool
    conflicts = contradictions(told, plan, pool)
    overheads, why, beyond = None, conflicts[0] if conflicts else "", False
    if not conflicts:
        try:
            overheads = learn(told, plan, pool)
        except Unlearned as reason:
            why, beyond = str(reason), reason.beyond
    return Reconciliation(
        log=told,
        plan=plan,
        lines=_lines(told, plan, pool, stated),
        pool=pool,
        contradictions=conflicts,
        overheads=overheads,
        why_nothing_learned=why,
        assumptions=assumptions,
        beyond=beyond,
    )


def _answerable(question: Question, asked: EngineArgs | None) -> tuple[Plan, tuple[str, ...]]:
    """The plan, without those flags of the log that no plan can be made with, and what was left out.

    Raises KvplanError where the user's own flags, or model and card, allow none.
    """
    try:
        return answer(question), ()
    except KvplanError as error:
        told = question.args.model_dump(exclude_defaults=True)
        keep = asked.model_fields_set if asked else frozenset()
        for name in sorted(set(told) - keep):
            args = EngineArgs(**{k: v for k, v in told.items() if k != name})
            with suppress(KvplanError):
                flag = "--" + name.replace("_", "-")
                return answer(replace(question, args=args)), (f"the log's {flag} is left out: {error}",)
        if set(told) - keep:
            args = EngineArgs(**{k: v for k, v in told.items() if k in keep})
            return answer(replace(question, args=args)), (f"the log's flags are left out: {error}",)
        raise


def _lines(log: StartupLog, plan: Plan, pool: PrintedPool, stated: Collection[str]) -> tuple[Line, ...]:
    """The figures in the order an engine meets them."""
    budget, shape, figures, profile = plan.budget, plan.shape, log.figures, plan.question.profile
    assert profile is not None
    peak, mib = activation_bytes(log), figures.get("weights_mib")
    weights = figures.get("weights_gib", None if mib is None else mib / 1024)
    graphs = (figures.get("graphs_estimated_gib") if budget.graphs.size.value else None) or figures.get(
        "graphs_gib"
    )
    sizes = (
        ("total", "card's total", figures.get("total_gib"), plan.question.gpu.total_bytes),
        ("weights", "weights", weights, budget.weights.size.value),
        ("activation", "activation peak", None if peak is None else peak / GiB, budget.activation.size.value),
        ("non_torch", "runtime (non-torch)", non_torch_gib(log), budget.runtime.size.value),
        ("cuda_graph", "CUDA graphs", graphs, planned_graphs(plan, profile)),
        ("kv_pool", "KV cache", pool.printed_gib, budget.kv.size.value),
    )
    counts = (
        ("num_gpu_blocks", "blocks", "blocks", shape.num_blocks),
        ("cache_tokens", "tokens", "tokens", figure(shape, "cache_tokens")),
        ("max_concurrency", "concurrency", "x", shape.max_concurrency),
    )
    return tuple(
        Line(name, label, unit, printed, planned, explain(name, printed, planned, plan, pool, stated))
        for name, label, unit, printed, planned in (
            *((name, label, "GiB", printed, gib(size)) for name, label, printed, size in sizes),
            *((name, label, unit, figures.get(name), planned) for name, label, unit, planned in counts),
        )
    )
