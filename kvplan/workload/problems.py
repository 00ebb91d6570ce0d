"""The `problems:` part of a scenario: what is to be solved, by which strategies, judged by which verifier.

Draws problems and the samplers that go with them; knows no clock and no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from kvplan.config import Config
from kvplan.errors import KvplanError
from kvplan.workload.arrivals import Arrivals, ClosedLoop, arrival_times
from kvplan.workload.lengths import Constant, Count, Length, quantile
from kvplan.workload.outcomes import TraceSampler
from kvplan.workload.quality_sets import QualitySet, Skill, quality_set, read_pass_table, skills, table_skills
from kvplan.workload.strategies.catalog import make
from kvplan.workload.strategies.protocol import Plan
from kvplan.workload.strategies.session import Problem, Session
from kvplan.workload.verifiers import Verifier

ThinkingKv = Literal["keep", "drop_after_turn", "never_cache", "drop_at_answer"]


class StrategySpec(Config):
    """One strategy with its parameters: `{strategy: best_of_n, n: 16, label: wide}`."""

    strategy: str
    """A name that `kvplan.workload.strategies.catalog` knows."""
    label: str = ""
    """What tables call it; by default the name and its parameters."""
    params: dict[str, Any] = Field(default_factory=dict)
    """All other keys: the strategy's parameters."""

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"strategy": data}
        if not isinstance(data, dict):
            return data
        known = {key: data[key] for key in ("strategy", "label", "params") if key in data}
        extra = {key: value for key, value in data.items() if key not in known}
        return known | {"params": {**data.get("params", {}), **extra}}

    @model_validator(mode="after")
    def _exists(self) -> Self:
        make(self.strategy, **self.params)
        return self

    @property
    def name(self) -> str:
        """The label, or the name with its parameters."""
        said = ", ".join(f"{key}={value}" for key, value in self.params.items())
        return self.label or (f"{self.strategy}({said})" if said else self.strategy)

    def start(self) -> Plan:
        """A fresh generator of this strategy."""
        return make(self.strategy, **self.params)()


class Compression(Config):
    """The KV of each sequence is kept at `budget_tokens`, and pruned back whenever it is `buffer_tokens` over.

    R-KV, arXiv 2505.24133. Accuracy kept at a budget is the method's claim, not computed here.
    """

    budget_tokens: Count
    """Tokens whose KV stays."""
    buffer_tokens: Count = 128
    """Newest tokens, kept until the next pruning."""


def _named(value: Any) -> Any:
    """A bundled set's name, or the set spelled out."""
    return quality_set(value) if isinstance(value, str) else value


class Problems(Config):
    """What is to be solved, and how."""

    num_problems: int = Field(100, ge=1, le=1_000_000)
    """Problems that arrive; a table brings its own number."""
    prompt: Length = Constant(value=500)
    """Tokens of a problem's prompt."""
    shared_prefix_tokens: Count = 0
    """The first so many are the same in all problems (a few-shot preamble)."""
    arrivals: Arrivals = ClosedLoop(kind="closed_loop", concurrency=1)
    """When problems arrive; by default one at a time."""
    quality: Annotated[QualitySet, BeforeValidator(_named)] = Field("assumed-u-shape", validate_default=True)
    """How often and at what length the model solves them: a bundled set's name, or a set spelled out."""
    pass_table: str | None = None
    """CSV of problem, sample, tokens, correct: the user's own samples, instead of the set's p and lengths."""
    strategies: tuple[StrategySpec, ...] = (StrategySpec(strategy="single_pass"),)
    """What to compare; `kvplan simulate` runs the first."""
    verifier: Verifier = Verifier()
    """Who scores."""
    thinking_kv: ThinkingKv = "keep"
    """keep = the engine's own rule; drop_after_turn = thinking leaves the cache when its request ends;
    never_cache = no generated token is ever cached."""
    compression: Compression | None = None
    """Compress each sequence's KV while it grows."""
    placement: Literal["one_replica", "spread"] = "one_replica"
    """Whether the branches of one problem go to one replica, where they share, or to all."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Same seed, same problems and same luck for every strategy."""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if not self.strategies:
            raise KvplanError("strategies: name at least one")
        if self.thinking_kv == "drop_at_answer" and self.compression is None:
            raise KvplanError(
                "thinking_kv: drop_at_answer cannot work: the answer attends to the thinking it follows;"
                " choose drop_after_turn, or set compression (budget_tokens, buffer_tokens)"
            )
        self._check_steps()
        return self

    def _check_steps(self) -> None:
        mean = self.quality.thinking_tokens
        for spec in self.strategies:
            step = spec.params.get("step_tokens")
            if self.pass_table is None and isinstance(step, int) and step > mean:
                raise KvplanError(
                    f"{spec.name}: a step of {step} tokens is longer than a whole trace ({mean:.0f} on average)"
                )


class Task(NamedTuple):
    """A problem with its arrival time and what the strategy may not know."""

    problem: Problem
    arrival_s: float
    skill: Skill
    seed: tuple[int, int]


def draw_tasks(problems: Problems, folder: Path = Path()) -> list[Task]:
    """Draw the problems: the same for every strategy. Raises KvplanError for an unreadable table."""
    arrivals, lengths, luck = np.random.default_rng(problems.seed).spawn(3)
    if problems.pass_table is not None:
        who = table_skills(read_pass_table(folder / problems.pass_table))
    else:
        who = skills(problems.quality, problems.num_problems, luck)
    when = arrival_times(problems.arrivals, len(who), arrivals)
    prompt = np.maximum(
        quantile(problems.prompt, lengths.random(len(who))), problems.shared_prefix_tokens + 1
    )
    return [
        Task(
            Problem(i, int(prompt[i]), problems.shared_prefix_tokens),
            float(when[i]),
            skill,
            (problems.seed, i),
        )
        for i, skill in enumerate(who)
    ]


def session(problems: Problems, spec: StrategySpec, task: Task, new_id: Callable[[], int]) -> Session:
    """One problem under one strategy, ready to begin."""
    rng = np.random.default_rng(task.seed)
    sampler = TraceSampler(task.skill, problems.quality, problems.verifier.score_model, rng)
    return Session(task.problem, spec.start(), sampler, new_id)
