"""A reconciliation as people read it, and as scripts do."""

from __future__ import annotations

import shlex
from dataclasses import replace

import kvplan
from kvplan.engines.flags import EngineArgs
from kvplan.memory.plan import answer
from kvplan.memory.report import SCHEMA_VERSION
from kvplan.memory.serve_command import serve_flags, to_words
from kvplan.models.load import find_bundled
from kvplan.observed.reconciliation import Line, Reconciliation

PLACES = {"GiB": 2, "blocks": 0, "tokens": 0, "x": 2}


def document(found: Reconciliation) -> dict[str, object]:
    """The document of `kvplan reconcile --json`: the same keys whatever the log, nulls for what it does not print."""
    plan, log = found.plan, found.log
    question = plan.question
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
            **plan.args.model_dump(mode="json"),
        },
        "lines": [_line_document(line) for line in found.lines],
        "contradictions": list(found.contradictions),
        "assumptions": list(found.assumptions),
        "overheads": found.overheads.model_dump(mode="json") if found.overheads else None,
        "why_nothing_learned": found.why_nothing_learned or None,
        "estimate_command": estimate_command(found, "PROFILE.json"),
    }


def _line_document(line: Line) -> dict[str, object]:
    return {
        "name": line.name,
        "unit": line.unit,
        "printed": line.printed,
        "planned": line.planned,
        "residual": line.residual,
        "explanation": line.explanation,
    }


def text(found: Reconciliation) -> str:
    """A table of log and plan, then what was assumed, contradicts itself, or can be saved."""
    question = found.plan.question
    head = f"{question.model.name} on {question.gpu.name}, {question.engine}"
    rows = [f"  {'':<21}{'log':>12}{'kvplan':>12}{'residual':>11}   explained by"]
    rows += [_row(line) for line in found.lines if line.printed is not None or line.name != "total"]
    notes = [*found.log.notes, *found.assumptions]
    parts = [head, "\n".join(rows)]
    parts += ["\n".join(f"Note: {note}." for note in notes)] if notes else []
    parts += (
        ["\n".join(f"Contradiction: {one}." for one in found.contradictions)] if found.contradictions else []
    )
    parts.append(_learned(found))
    return "\n\n".join(parts)


def _row(line: Line) -> str:
    places = PLACES[line.unit]
    printed = "-" if line.printed is None else f"{line.printed:,.{places}f}"
    residual = "" if line.residual is None else f"{line.residual:+,.{places}f}"
    label = line.label if line.unit in ("blocks", "tokens") else f"{line.label}, {line.unit}"
    return f"  {label:<21}{printed:>12}{line.planned:>12,.{places}f}{residual:>11}   {line.explanation}"


def _learned(found: Reconciliation) -> str:
    if found.overheads is None:
        return f"No overheads learned: {found.why_nothing_learned}."
    profile = found.overheads
    return (
        f"Overheads learned: sampler {profile.sampler_bytes_per_logit.value:.3g} B a logit, forward "
        f"{profile.forward_scale.value:.3g}, runtime {profile.runtime_gib.value:.2f} GiB. Keep them with "
        f"--save PROFILE.json, then:\n{estimate_command(found, 'PROFILE.json')}"
    )


def estimate_command(found: Reconciliation, profile: str) -> str:
    """The estimate that gives the log's pool back."""
    question = found.plan.question
    name = question.model.name
    model = name if find_bundled(name) else question.model.source or name
    words = ["kvplan", "estimate", model, "--gpu", question.gpu.name, "--engine", str(question.engine)]
    flags = to_words(serve_flags(needed_flags(found)))
    return shlex.join([*words, *flags, "--profile", profile])


def needed_flags(found: Reconciliation) -> EngineArgs:
    """The log's flags without those that the engine would choose by itself."""
    question = found.plan.question
    args = question.args
    for name in tuple(args.model_dump(exclude_defaults=True)):
        told = args.model_dump(exclude_defaults=True)
        fewer = EngineArgs(**{key: value for key, value in told.items() if key != name})
        if answer(replace(question, args=fewer)).args == found.plan.args:
            args = fewer
    return args
