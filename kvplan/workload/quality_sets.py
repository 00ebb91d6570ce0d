"""How often and at what length a model solves problems: named, cited sets, or a user's pass/fail table.

Facts only; the draws are `outcomes.py`'s, the arithmetic `kvplan.formulas.quality`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated, Any, Self

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from kvplan.formulas import quality
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.workload.lengths import LONGEST

Share = Annotated[float, Field(ge=0, le=1)]
SampleCount = Annotated[int, Field(ge=1, le=1_000_000)]
BetaShape = Annotated[float, Field(gt=0, le=1e6)]


class Difficulty(Config):
    """The distribution of p, the chance that one sample solves a problem: a Beta, or levels with shares."""

    beta: tuple[BetaShape, BetaShape] | None = None
    """(a, b) of a Beta distribution."""
    levels: tuple[tuple[Share, Share], ...] = ()
    """(p, share of problems) pairs."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.beta is None) == (not self.levels):
            raise KvplanError("difficulty is either beta: [a, b] or levels: [[p, share], ...]")
        if self.levels and abs(sum(share for _, share in self.levels) - 1) > 1e-6:
            raise KvplanError("difficulty: the shares of the levels must add up to 1")
        return self

    def quantiles(self, num_problems: int, rng: np.random.Generator) -> quality.Array:
        """Draw p for `num_problems` problems, in order and spread evenly, so that their mean is the set's."""
        if self.beta is not None:
            draws = np.sort(rng.beta(*self.beta, size=(num_problems * 64)))
            return np.asarray(draws.reshape(num_problems, 64).mean(axis=1))
        p, share = np.array(sorted(self.levels)).T
        at = (np.arange(num_problems) + 0.5) / num_problems
        return np.asarray(p[np.minimum(np.searchsorted(np.cumsum(share), at), len(p) - 1)])


class QualitySet(Config):
    """How often and at what length a model solves the problems of a benchmark, with its source."""

    name: str = "unnamed"
    note: str = ""
    source: str = "assumed"
    date: str = ""
    """Of the source, as year-month or year-month-day."""
    model: str = ""
    """Whose samples they are, and on which problems."""
    coverage: tuple[tuple[SampleCount, Share], ...] = ()
    """Measured (samples, share of problems with a right one among them): pass@k."""
    votes: tuple[tuple[SampleCount, Share], ...] = ()
    """Measured (samples, share of problems whose majority is right)."""
    measured_max_tokens: int = Field(0, ge=0, le=LONGEST)
    """The max_tokens that the source sampled with; 0 = it does not say."""
    assumed: tuple[str, ...] = ()
    """Fields that no source states."""
    difficulty: Difficulty = Difficulty(levels=((0.5, 1.0),))
    thinking_tokens: float = Field(8000, gt=0, le=LONGEST)
    """Mean thinking tokens of a trace that nothing cuts."""
    answer_tokens: int = Field(400, ge=1, le=LONGEST)
    """Visible tokens after the thinking."""
    sigma_within: float = Field(0.3, ge=0, le=5)
    """Lognormal spread of the length between samples of one problem."""
    sigma_between: float = Field(0.45, ge=0, le=5)
    """Lognormal spread of the mean length between problems."""
    wrong_to_right_length: float = Field(1.0, gt=0, le=1000)
    """How many times longer a wrong trace thinks than a right one of the same problem."""
    wrong_answers: int = Field(4, ge=1, le=1_000_000)
    """Different wrong answers that a problem's wrong traces spread over, evenly; what a vote is up against."""
    forced_exponent: float = Field(1.0, ge=0, le=100)
    """A trace whose thinking is closed after a share s of it is right with chance p * s**this."""
    thinking_curve: tuple[tuple[Annotated[float, Field(ge=0, le=LONGEST)], Share], ...] = ()
    """Measured (thinking tokens, accuracy) points instead of that rule; may rise and fall again (overthinking)."""
    revision_gain: float = Field(0.15, ge=0, le=1)
    """Chance that another pass (a "Wait", a revision) mends a wrong trace."""
    revision_loss: float = Field(0.05, ge=0, le=1)
    """Chance that it spoils a right one; with gains exhausted the curve turns down (overthinking)."""
    revision_length: float = Field(0.35, gt=0, le=1000)
    """Thinking tokens of such a pass, as a share of a trace's."""

    @field_validator("thinking_curve")
    @classmethod
    def _is_a_curve(cls, points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if points:
            quality.thinking_curve(0, points)
        return points

    def kept_share(self, thinking: float, natural: float) -> float:
        """Chance that a trace which is right after the `natural` number of tokens is so after `thinking`."""
        if not self.thinking_curve:
            return float(min(1.0, thinking / natural) ** self.forced_exponent)
        now, full = quality.thinking_curve([thinking, natural], self.thinking_curve).tolist()
        return min(1.0, float(now / full)) if full else 1.0

    def mended_share(self, thinking: float, natural: float) -> float:
        """Chance that a trace which is wrong after the `natural` number of tokens is right after `thinking`.

        What the curve gains, as a share of what was wrong: problems of any spread whose mean is the curve's then gain
        just that. Without a curve nothing is gained.
        """
        if not self.thinking_curve:
            return 0.0
        now, full = quality.thinking_curve([thinking, natural], self.thinking_curve).tolist()
        return max(0.0, float((now - full) / (1 - full))) if full < 1 else 0.0

    @property
    def measured_samples(self) -> int:
        """Most samples a problem that its source counts with; 0 = it does not say."""
        return max((samples for samples, _ in (*self.coverage, *self.votes)), default=0)

    @property
    def is_assumed(self) -> bool:
        """Whether the chances of success themselves are an assumption."""
        return "difficulty" in self.assumed or self.source == "assumed"


@lru_cache(maxsize=1)
def quality_sets() -> dict[str, QualitySet]:
    """The bundled sets by name."""
    rows: dict[str, Any] = yaml.safe_load((catalog_dir() / "quality.yaml").read_text())
    return {name: QualitySet(name=name, **row) for name, row in rows.items()}


def quality_set(name: str) -> QualitySet:
    """Return the bundled set `name`, or raise KvplanError with the closest names."""
    sets = quality_sets()
    if name not in sets:
        raise KvplanError(
            f"unknown quality set {name!r}{did_you_mean(name, sets)}; there are {', '.join(sets)}"
        )
    return sets[name]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a table says of one problem: its samples, in the table's order."""

    tokens: tuple[int, ...]
    """Of each whole, thinking and answer."""
    correct: tuple[bool, ...]
    answers: tuple[int | None, ...] | None = None
    """Which answer each gave: `RIGHT`, wrong ones from 1, None = none; no tuple: the table does not say."""
    scores: tuple[float, ...] | None = None
    """A verifier's score of each, 0 to 1; None = the table has none."""


@dataclass(frozen=True, slots=True)
class Skill:
    """How one model fares on one problem; the strategy never sees it."""

    p: float
    thinking_tokens: float
    samples: Samples | None = None
    """Real samples to draw from instead of `p` and a lognormal length."""


def _even_lognormal(sigma: float, num: int) -> quality.Array:
    """Lognormal factors at even quantiles, in order; their mean is exactly 1."""
    z = [NormalDist().inv_cdf((i + 0.5) / num) for i in range(num)]
    factors = np.exp(sigma * np.array(z))
    return np.asarray(factors / factors.mean())


def skills(facts: QualitySet, num_problems: int, rng: np.random.Generator) -> list[Skill]:
    """Draw p and the mean length of each of `num_problems` problems, both spread evenly over their distributions.

    The same generator gives the same order for every set: what is hard for one model is hard for another.
    """
    order, lengths = rng.permutation(num_problems), rng.permutation(num_problems)
    p = facts.difficulty.quantiles(num_problems, rng)[order]
    mean = facts.thinking_tokens * _even_lognormal(facts.sigma_between, num_problems)[lengths]
    return [Skill(float(chance), float(tokens)) for chance, tokens in zip(p, mean, strict=True)]


def table_skills(table: dict[str, Samples]) -> list[Skill]:
    """One skill per problem of a pass/fail table."""
    return [Skill(sum(s.correct) / len(s.correct), sum(s.tokens) / len(s.tokens), s) for s in table.values()]
