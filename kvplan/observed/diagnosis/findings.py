"""`why`: ranked causes of what a log, a message or a metrics page tells, in words, with the flags that mend each.

text --read_log, read_messages, read_load--> Case --reconcile--> plan beside it --rules--> causes, fixes planned
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import kvplan
from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.memory.report import SCHEMA_VERSION
from kvplan.models.spec import ModelSpec
from kvplan.observed.diagnosis.allocation import allocation
from kvplan.observed.diagnosis.cause import Case, Cause, in_words_of
from kvplan.observed.diagnosis.gap import gap, missing_gib
from kvplan.observed.diagnosis.loaded import loaded
from kvplan.observed.diagnosis.messages import Message, read_messages
from kvplan.observed.diagnosis.starved import starved, states
from kvplan.observed.diagnosis.stated import sampler, stated
from kvplan.observed.load_lines import EngineLoad, read_load
from kvplan.observed.reader import clean_lines
from kvplan.observed.reconciliation import reconcile
from kvplan.observed.startup import StartupLog, read_log

RULES: tuple[Callable[[Case], Iterator[Cause]], ...] = (
    stated,
    sampler,
    states,
    starved,
    allocation,
    loaded,
    gap,
)
"""Where causes come from; each yields those that it finds."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Ranked causes, and what they were read off."""

    case: Case
    causes: tuple[Cause, ...]
    """Most likely first; empty where nothing is amiss."""
    unplanned: str
    """Why there is no plan beside it; empty where there is one."""

    @property
    def subject(self) -> str:
        """Model, card and engine, as far as known."""
        found, log = self.case.found, self.case.log
        if found is not None:
            question = found.plan.question
            return f"{question.model.name} on {question.gpu.name}, {question.engine}"
        return ", ".join(filter(None, (log.model, log.gpu, f"{log.engine} {log.version}".strip())))

    @property
    def verdict(self) -> str:
        """The first line."""
        if self.causes:
            return self.causes[0].words
        found = self.case.found
        missing = missing_gib(found) if found else None
        if found is None:
            return "no complaint found"
        if missing is None:
            return "no complaint found; a flag states the pool, or the log does not print it"
        how = f"is {-missing:.2f} GiB more than" if missing < 0 else f"lies within {missing:.2f} GiB of"
        return f"nothing amiss: the log's KV cache {how} the planned one"

    def to_dict(self) -> dict[str, object]:
        """The document of `kvplan why --json`."""
        found, load = self.case.found, self.case.load
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "subject": {
                "engine": self.case.log.engine,
                "model": found.plan.question.model.name if found else self.case.log.model or None,
                "gpu": found.plan.question.gpu.name if found else self.case.log.gpu or None,
            },
            "verdict": self.verdict,
            "causes": [cause.to_dict() for cause in self.causes],
            "messages": [
                {"kind": m.kind, "line": m.line, "figures": dict(m.figures)} for m in self.case.messages
            ],
            "load": load._asdict() if load else None,
            "missing_gib": missing_gib(found) if found else None,
            "unplanned": self.unplanned or None,
        }

    def __str__(self) -> str:
        """Causes in order, each with the flags that mend it."""
        lines = [self.subject] if self.subject else []
        if not self.causes:
            return "\n".join([*lines, self.verdict[0].upper() + self.verdict[1:] + ".", *self._notes()])
        for number, cause in enumerate(self.causes, 1):
            lines += ["", f"{number}. {cause.words} [{cause.name}]"]
            lines += [f"   {fix}" for fix in cause.fixes]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        found = self.case.found
        notes = [f"Note: {note}." for note in found.assumptions] if found else []
        notes += [f"Not planned: {self.unplanned}."] if self.unplanned else []
        return ["", *notes] if notes else []


def findings(
    lines: str | Iterable[str],
    *,
    model: ModelSpec | str | None = None,
    gpu: GpuSpec | str | None = None,
    engine: EngineVersion | str | None = None,
    args: EngineArgs | None = None,
    entry_point: EntryPoint = "serve",
) -> Findings:
    """Why an engine does not start, holds less than planned, or waits.

    Args:
        lines: a start-up log, an error message, a traceback, a serving engine's lines, or several of them.
        model, gpu, engine, args, entry_point: as for `reconcile`, where the text does not tell them.

    Raises:
        KvplanError: nothing of an engine in it, or what `reconcile` refuses.
    """
    log, messages, load = read_text(lines, engine)
    return find(log, messages, load, model=model, gpu=gpu, engine=engine, args=args, entry_point=entry_point)


def read_text(
    lines: str | Iterable[str], engine: EngineVersion | str | None = None
) -> tuple[StartupLog, tuple[Message, ...], EngineLoad | None]:
    """A text's figures, complaints and load. Raises KvplanError where nothing of an engine is in it."""
    text = tuple(clean_lines(lines))
    messages, load = read_messages(text), read_load(text)
    log = read_log(text, broken_off=_speaker(messages, engine))
    if not (messages or load or log.figures):
        raise KvplanError(
            "nothing of vLLM, SGLang or TensorRT-LLM in it: give a start-up log, an error with its traceback, or a "
            "metrics page"
        )
    return log, messages, load


def find(
    log: StartupLog,
    messages: tuple[Message, ...] = (),
    load: EngineLoad | None = None,
    *,
    model: ModelSpec | str | None = None,
    gpu: GpuSpec | str | None = None,
    engine: EngineVersion | str | None = None,
    args: EngineArgs | None = None,
    entry_point: EntryPoint = "serve",
) -> Findings:
    """`findings` of what has been read already."""
    found, why = None, ""
    try:
        found = reconcile(log, model=model, gpu=gpu, engine=engine, args=args, entry_point=entry_point)
    except KvplanError as error:
        if model is not None and gpu is not None:
            raise
        why = str(error)
    case = Case(log, messages, load, found)
    causes = [cause for rule in RULES for cause in rule(case)]
    return Findings(case, _ranked(_spoken(cause, log.engine) for cause in causes), why)


def _spoken(cause: Cause, engine: str) -> Cause:
    """The cause with its fixes in the engine's own words."""
    fixes = tuple(fix._replace(change=in_words_of(engine, fix.change)) for fix in cause.fixes)
    return cause._replace(fixes=fixes)


def _ranked(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Heaviest first, each name once."""
    best: dict[str, Cause] = {}
    for cause in causes:
        if cause.name not in best or cause.weight > best[cause.name].weight:
            best[cause.name] = cause
    return tuple(sorted(best.values(), key=lambda cause: -cause.weight))


def _speaker(messages: tuple[Message, ...], engine: EngineVersion | str | None) -> str:
    """Whose words they are, where nothing else tells."""
    if engine is not None:
        return (engine if isinstance(engine, str) else engine.engine).partition("@")[0]
    return next((m.engine for m in messages if m.engine), "vllm")
