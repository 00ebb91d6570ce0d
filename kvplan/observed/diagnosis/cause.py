"""A cause in words, with how sure it is and the flags that mend it; and what causes are read off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.engines.spelling import spell, unspoken
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB, gib
from kvplan.memory.answers import Plan, Question
from kvplan.memory.forward import answer
from kvplan.memory.inverse import what_would_fit
from kvplan.observed.diagnosis.messages import Message
from kvplan.observed.learn import PLAUSIBLE
from kvplan.observed.load_lines import EngineLoad
from kvplan.observed.reconciliation import Reconciliation
from kvplan.observed.startup import StartupLog
from kvplan.profiles.memory_profile import MemoryProfile

SHORT = {"tensor_parallel_size": "-tp", "pipeline_parallel_size": "-pp", "data_parallel_size": "-dp"}


class Fix(NamedTuple):
    """A change that mends it."""

    change: str
    """Flags to add or change, in vLLM's words, or what to do."""
    effect: str
    """What then holds; by the planner where `verified`."""
    verified: bool
    """Whether the plan was made again with it, and serves."""

    def __str__(self) -> str:
        return f"{self.change}: {self.effect}" + ("" if self.verified else " (not planned)")


class Cause(NamedTuple):
    """One thing that explains what is seen."""

    name: str
    """Key, e.g. length; the list is in docs/why.md."""
    words: str
    """One sentence with its figures."""
    weight: float
    """0 to 1: how much of what is seen it explains, and how far it is from the usual. Orders causes; no probability."""
    fixes: tuple[Fix, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """One of the document's `causes`."""
        return {
            "name": self.name,
            "words": self.words,
            "weight": round(self.weight, 3),
            "fixes": [fix._asdict() for fix in self.fixes],
        }


@dataclass(frozen=True, slots=True)
class Case:
    """What there is to go by."""

    log: StartupLog
    messages: tuple[Message, ...]
    load: EngineLoad | None
    found: Reconciliation | None
    """None where nobody names the model or the card."""

    def message(self, kind: str) -> Message | None:
        """The first complaint of a kind."""
        return next((m for m in self.messages if m.kind == kind), None)

    @property
    def plan(self) -> Plan | None:
        """The plan of the log's model, flags and card, with the log's own pool where it prints one."""
        if self.found is None:
            return None
        return as_printed(self.found) or self.found.plan

    def figure(self, name: str) -> float | None:
        """A printed figure."""
        return self.log.figures.get(name)

    def number(self, flag: str) -> float | None:
        """A flag of the log, where its value is a number above 0."""
        told = self.log.flags.get(flag)
        is_number = isinstance(told, int | float) and not isinstance(told, bool) and 0 < told < 1e15
        return float(told) if is_number else None  # type: ignore[arg-type]

    def share(self) -> float | None:
        """gpu_memory_utilization, or what the engine calls it: told, else planned."""
        told = self.number("gpu_memory_utilization") or self.log.figures.get("utilization")
        if told is not None and 0 < told <= 1:
            return told
        return self.found.plan.args.gpu_memory_utilization if self.found else None


def as_printed(found: Reconciliation) -> Plan | None:
    """The plan whose pool is the printed one: under learned overheads, or with growth moved by the difference."""
    question, printed = found.plan.question, found.pool.printed_gib
    if found.overheads is not None:
        return _answer(replace(question, profile=found.overheads))
    if printed is None or question.profile is None or question.engine.engine != "vllm":
        return None
    args = question.args
    if args.kv_cache_memory_bytes or args.num_gpu_blocks_override:
        return None
    growth = gib(found.plan.budget.kv.size.value) - printed
    if not PLAUSIBLE[0] <= question.profile.runtime_gib.value + growth <= PLAUSIBLE[1]:
        return None
    return _answer(replace(question, profile=_moved(question.profile, growth)))


def _moved(profile: MemoryProfile, more_gib: float) -> MemoryProfile:
    value = profile.runtime_gib.value + more_gib
    figure = profile.runtime_gib.model_copy(update={"value": value, "low": value, "high": value})
    return profile.model_copy(update={"runtime_gib": figure})


def _answer(question: Question) -> Plan | None:
    try:
        return answer(question)
    except KvplanError:
        return None


def proven(plan: Plan | None, **flags: object) -> Fix | None:
    """A change of flags, planned: None where there is no plan to ask, or the engine would still refuse."""
    if plan is None:
        return None
    question = plan.question
    try:
        args = EngineArgs.model_validate(question.args.model_dump(exclude_unset=True) | flags)
    except (KvplanError, ValueError):
        return None
    changed = _answer(replace(question, args=args))
    if changed is None or not changed.serves or _tokens(changed) <= 0:
        return None
    return Fix(spelled(flags), holds(changed), verified=True)


def gains(plan: Plan | None, **flags: object) -> Fix | None:
    """`proven`, where it also gives more KV than there is."""
    fix = proven(plan, **flags)
    if fix is None or plan is None:
        return None
    args = EngineArgs.model_validate(plan.question.args.model_dump(exclude_unset=True) | flags)
    changed = _answer(replace(plan.question, args=args))
    now = _tokens(plan) if plan.serves else 0.0
    if changed is None or _tokens(changed) <= 1.02 * now:
        return None
    was = f" instead of {now:,.0f}" if now else ""
    return fix._replace(effect=f"{_tokens(changed):,.0f} tokens of KV{was}")


def _tokens(plan: Plan) -> float:
    return plan.cache_tokens.value if plan.layout else 0.0


def spelled(flags: dict[str, object]) -> str:
    """Flags as vLLM's command line has them."""
    words = []
    for name, value in flags.items():
        flag = SHORT.get(name, "--" + name.replace("_", "-"))
        words.append(flag if value is True else f"--no-{flag[2:]}" if value is False else f"{flag} {value}")
    return " ".join(words)


def in_words_of(engine: str, change: str) -> str:
    """A change in vLLM's words, as another engine says it; what it has no word for stays as it is.

    >>> in_words_of("sglang", "--max-model-len 3200"), in_words_of("sglang", "nvidia-smi; end it")
    ('--context-length 3200', 'nvidia-smi; end it')
    """
    if engine == "vllm":
        return change
    fields = {flag: field for field, flag in SHORT.items()}
    words = change.split()
    names, values = words[::2], words[1::2]
    told = {
        fields.get(name, name[2:].replace("-", "_")): value
        for name, value in zip(names, values, strict=False)
    }
    if len(names) != len(values) or not told.keys() <= EngineArgs.model_fields.keys():
        return change
    args = EngineArgs.model_validate(told)
    if unspoken(args, engine):
        return change
    dash = (lambda word: "--" + word.replace("_", "-")) if engine == "sglang" else str
    said = {**spell(args, engine, in_file=True), **spell(args, engine)}
    return " ".join(f"{dash(word)} {value}" for word, value in said.items()) or change


def holds(plan: Plan) -> str:
    """What a plan that serves holds."""
    return f"starts, {plan.max_concurrency.value:,.2f} x {plan.max_model_len:,} tokens"


def options(plan: Plan | None) -> tuple[Fix, ...]:
    """What the planner itself would change, each verified by it."""
    if plan is None or plan.fits:
        return ()
    return tuple(Fix(option.change, option.effect, verified=True) for option in what_would_fit(plan))


def about(fixes: Iterable[Fix], *words: str) -> tuple[Fix, ...]:
    """Those of some fixes whose change speaks of any of these flags."""
    return tuple(fix for fix in fixes if any(word in fix.change.split() for word in words))


def needed_gib(plan: Plan | None) -> float | None:
    """KV of one request of max_model_len, GiB."""
    if plan is None:
        return None
    return plan.shape.blocks_per_request * plan.shape.bytes_per_block / GiB
