"""The `problems:` part of a scenario: what is to be solved, by which strategies, judged by which verifier.

Draws problems and the samplers that go with them; knows no clock and no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from kvplan.ground.config import Config, complaint
from kvplan.ground.errors import KvplanError
from kvplan.workload.arrivals import Arrivals, ClosedLoop, arrival_times
from kvplan.workload.lengths import Constant, Count, Length, quantile
from kvplan.workload.outcomes import TraceSampler
from kvplan.workload.pass_tables import PassTable, read_pass_table
from kvplan.workload.quality_sets import QualitySet, Skill, quality_set, skills, table_skills
from kvplan.workload.strategies.catalog import make, model_names, read
from kvplan.workload.strategies.routing import Tier, difficulty_router
from kvplan.workload.strategies.session import Problem
from kvplan.workload.strategies.strategy import Strategy
from kvplan.workload.verifiers import Verifier

ThinkingKv = Literal["keep", "drop_after_turn", "never_cache", "drop_at_answer"]


ROUTER = "difficulty_router"
MAX_STRATEGIES = 256
"""In one comparison, one per value of each list."""


class TierSpec(Config):
    """One class of a router: the share of problems that belong there, and what is done with them."""

    share: float = Field(gt=0, le=1)
    """Of all problems; the first tier holds the easiest."""
    model: str = ""
    """One of the scenario's `models`; empty = the main one."""
    strategy: StrategySpec
    """What its problems get."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.strategy.expanded()) > 1:
            raise KvplanError(f"{ROUTER}: a tier has one strategy; {self.strategy.name} stands for several")
        return self


class RouterSpec(Config):
    """Parameters of `difficulty_router`."""

    tiers: tuple[TierSpec, ...] = Field(min_length=1, max_length=64)
    """Easiest first."""
    accuracy: float = Field(1.0, ge=0, le=1)
    """Share of problems that the classifier puts into their own tier; the others land in a random wrong one."""
    classifier_model: str = ""
    """Who classifies; empty = the main model."""
    instruction_tokens: int = Field(0, ge=0, le=1_000_000)
    """The classifier's own prompt."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(tier.share for tier in self.tiers)
        if abs(total - 1) > 1e-6:
            raise KvplanError(f"{ROUTER}: the shares of the tiers must add up to 1, not {total:g}")
        return self

    def tier_of(self, ease: float) -> int:
        """The tier of a problem that is easier than all but this share of problems."""
        edges = np.cumsum([tier.share for tier in self.tiers])
        return min(int(np.searchsorted(edges, ease)), len(self.tiers) - 1)

    def start(self) -> Strategy:
        """A fresh generator."""
        tiers = [Tier(tier.strategy.start, tier.model) for tier in self.tiers]
        return difficulty_router(tiers, self.classifier_model, self.instruction_tokens)


class StrategySpec(Config):
    """One strategy with its parameters: `{strategy: best_of_n, n: 16, label: wide}`."""

    strategy: str
    """A name that `kvplan.workload.strategies.catalog` knows, or difficulty_router."""
    label: str = ""
    """What tables call it; by default the name and its parameters."""
    model: str = ""
    """One of the scenario's `models` that runs it instead of the main one."""
    params: dict[str, Any] = Field(default_factory=dict)
    """All other keys: the strategy's parameters. In a comparison a list stands for one strategy per value."""

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"strategy": data}
        if not isinstance(data, dict):
            return data
        known = {key: data[key] for key in cls.model_fields if key in data}
        params = known.get("params", {})
        extra = {key: value for key, value in data.items() if key not in known}
        return known | {"params": {**params, **extra} if isinstance(params, dict) else params}

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.strategy == ROUTER:
            assert self.router is not None  # read once, here
            return self
        count = prod(len(v) for v in self.params.values() if isinstance(v, list))
        if not 1 <= count <= MAX_STRATEGIES:
            raise KvplanError(
                f"{self.strategy}: lists make {count:,} strategies; 1 to {MAX_STRATEGIES} may be compared"
            )
        for spec in self.expanded():
            spec.start()
        return self

    @cached_property
    def router(self) -> RouterSpec | None:
        """The router's parameters, if this is one."""
        if self.strategy != ROUTER:
            return None
        try:
            return RouterSpec.model_validate(self.params)
        except ValidationError as error:
            raise KvplanError(f"{ROUTER}: {complaint(error)}") from None

    @property
    def name(self) -> str:
        """The label, or the name with its parameters."""
        said = "" if self.router else ", ".join(f"{key}={value}" for key, value in self.params.items())
        on = f" on {self.model}" if self.model else ""
        return self.label or (f"{self.strategy}({said})" if said else self.strategy) + on

    def expanded(self) -> list[StrategySpec]:
        """One spec per combination of list-valued parameters."""
        lists = (
            {} if self.strategy == ROUTER else {k: v for k, v in self.params.items() if isinstance(v, list)}
        )
        if not lists:
            return [self]
        picks = (dict(zip(lists, values, strict=True)) for values in product(*lists.values()))
        label = f"{self.label} " if self.label else ""
        return [
            self.model_copy(
                update={
                    "params": self.params | pick,
                    "label": label and label + ", ".join(f"{key}={value}" for key, value in pick.items()),
                }
            )
            for pick in picks
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """Every parameter as the strategy gets it; none for a router."""
        return {} if self.strategy == ROUTER else read(self.strategy, **self.params)

    @property
    def models(self) -> set[str]:
        """The further models that it uses."""
        router = self.router
        names = (
            {self.model, *(t.model for t in router.tiers), router.classifier_model}
            if router
            else {self.model}
            | {n for one in self.expanded() for n in model_names(self.strategy, **one.params)}
        )
        return names - {""}

    def start(self) -> Strategy:
        """A fresh generator of this strategy."""
        return self.starter()()

    def starter(self) -> Callable[[], Strategy]:
        """Starts it afresh at each call, its parameters read once."""
        router = self.router
        return router.start if router else make(self.strategy, **self.params)


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
    qualities: dict[str, Annotated[QualitySet, BeforeValidator(_named)]] = Field(
        default_factory=dict, max_length=64
    )
    """The same for the scenario's further models, by name."""
    pass_table: str | PassTable | None = None
    """The user's own graded samples instead of the set's p and lengths: a CSV of problem, sample, tokens, correct and,
    where there are, score and answer; or what an evaluation harness wrote."""
    strategies: Annotated[tuple[StrategySpec, ...], Field(min_length=1, max_length=MAX_STRATEGIES)] = (
        StrategySpec(strategy="single_pass"),
    )
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
    min_accuracy: float = Field(0.0, ge=0, le=1)
    """What the choice must reach; the latency limit is `slo.e2el_ms`, at the 99th percentile."""
    api_model: str | None = None
    """A hosted model of the price catalog to compare costs with."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Same seed, same problems and same luck for every strategy."""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        count = sum(len(said.expanded()) for said in self.strategies)
        if count > MAX_STRATEGIES:
            raise KvplanError(
                f"strategies: {count:,} with all their lists; at most {MAX_STRATEGIES} may be compared"
            )
        self._check_names()
        if self.thinking_kv == "drop_at_answer" and self.compression is None:
            raise KvplanError(
                "thinking_kv: drop_at_answer cannot work: the answer attends to the thinking it follows;"
                " choose drop_after_turn, or set compression (budget_tokens, buffer_tokens)"
            )
        self._check_steps()
        return self

    def _check_names(self) -> None:
        """A sentence about a strategy is about one: two that differ are not called alike."""
        named: dict[str, StrategySpec] = {}
        for spec in (one for said in self.strategies for one in said.expanded()):
            if named.setdefault(spec.name, spec) != spec:
                raise KvplanError(
                    f"strategies: two that differ are called {spec.name!r}; label: tells them apart"
                )

    def _check_steps(self) -> None:
        mean = self.quality.thinking_tokens
        for spec in (one for said in self.strategies for one in said.expanded()):
            step = spec.settings.get("step_tokens", 0)
            if self.pass_table is None and step > mean:
                raise KvplanError(
                    f"{spec.name}: a step of {step} tokens is longer than a whole trace ({mean:.0f} on average)"
                )


class Task(NamedTuple):
    """A problem with its arrival time and what the strategy may not know."""

    problem: Problem
    arrival_s: float
    skill: Skill
    seed: tuple[int, int]
    ease: float = 0.0
    """Share of problems that are easier."""
    others: dict[str, tuple[Skill, QualitySet]] = {}  # noqa: RUF012 (never changed)
    """How the scenario's further models fare on it."""


def draw_tasks(problems: Problems, folder: Path = Path()) -> list[Task]:
    """Draw the problems: the same for every strategy. Raises KvplanError for an unreadable table."""
    arrivals, lengths, _ = np.random.default_rng(problems.seed).spawn(3)
    if problems.pass_table is not None:
        who = table_skills(read_pass_table(problems.pass_table, folder).problems)
    else:
        who = _skills(problems, problems.quality, problems.num_problems)
    count = len(who)
    when = arrival_times(problems.arrivals, count, arrivals)
    prompt = np.maximum(quantile(problems.prompt, lengths.random(count)), problems.shared_prefix_tokens + 1)
    rank = np.argsort(np.argsort([-skill.p for skill in who], kind="stable"), kind="stable") / count
    further = {name: (_skills(problems, facts, count), facts) for name, facts in problems.qualities.items()}
    return [
        Task(
            Problem(i, int(prompt[i]), problems.shared_prefix_tokens), float(when[i]), skill, (problems.seed, i),
            float(rank[i]), {name: (theirs[i], facts) for name, (theirs, facts) in further.items()},
        )
        for i, skill in enumerate(who)
    ]  # fmt: skip


def _skills(problems: Problems, facts: QualitySet, num_problems: int) -> list[Skill]:
    luck = np.random.default_rng(problems.seed).spawn(3)[2]
    return skills(facts, num_problems, luck)


def task_sampler(problems: Problems, spec: StrategySpec, task: Task) -> TraceSampler:
    """Draws for one problem under one strategy; the same luck under every strategy."""
    rng = np.random.default_rng(task.seed)
    skill, facts = task.others.get(spec.model, (task.skill, problems.quality))
    sampler = TraceSampler(skill, facts, problems.verifier.score_model, rng, others=task.others)
    router = spec.router
    if router is not None:
        sampler.tier = router.tier_of(task.ease)
        sampler.router_accuracy, sampler.num_tiers = router.accuracy, len(router.tiers)
    return sampler
