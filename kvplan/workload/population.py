"""The problems that expectations are over: drawn anew from a distribution, or a fixed set again and again.

A quality set is a distribution: each round draws problems of its own, spread over its difficulty, two at each place so
that they tell how sure their mean is. A pass table's problems, or a scenario's own, are as many as they are: each
round is another draw of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path
from typing import Literal

import numpy as np

from kvplan.formulas import quality
from kvplan.formulas.intervals import LEVEL, Interval, student_t
from kvplan.formulas.quality import Array
from kvplan.workload.lengths import normal_quantile, quantile
from kvplan.workload.problems import Problems, Task, draw_tasks
from kvplan.workload.quality_sets import Difficulty, QualitySet, Skill
from kvplan.workload.strategies.session import Problem

Over = Literal["problems", "draws"]
"""What an interval is over: problems like these, or draws on just these."""

MOST = 64
"""Problems in a round of a distribution: two at each place of difficulty."""
ROUNDING = 1e-24
"""Variance of shares that are the same but for rounding."""
NEW = 1 << 40
"""Where the numbers of problems begin that no simulation draws."""


@dataclass(slots=True)
class Population:
    """Rounds of problems. The same round is the same for every strategy."""

    problems: Problems
    folder: Path = Path()
    over: Over = "problems"
    most: int = MOST
    """Problems in a round at most, where they are drawn or stand for others."""
    fixed: list[Task] | None = field(init=False)
    """The problems, where there are only these."""

    def __post_init__(self) -> None:
        is_finite = self.problems.pass_table is not None or self.over == "draws"
        self.fixed = draw_tasks(self.problems, self.folder) if is_finite else None
        if self.fixed is not None and self.over == "problems" and self.most < MOST:
            self.fixed = self.fixed[:: ceil(len(self.fixed) / self.most)]

    @property
    def round_size(self) -> int:
        """Problems in a round."""
        return 2 * max(self.most // 2, 1) if self.fixed is None else len(self.fixed)

    def round(self, number: int) -> list[Task]:
        """The problems of a round, with seeds of their own. Round 0 of fixed problems is what a simulation draws."""
        if self.fixed is None:
            return self._draw(number)
        return [task._replace(seed=self._seed(task, number)) for task in self.fixed] if number else self.fixed

    def _seed(self, task: Task, number: int) -> tuple[int, int]:
        return (self.problems.seed, NEW + number * self.round_size + task.problem.id)

    def _draw(self, number: int) -> list[Task]:
        told, size = self.problems, self.round_size
        rng = np.random.default_rng((told.seed, NEW, number))
        place = (np.repeat(np.arange(size // 2), 2) + rng.random(size)) / (size // 2)
        length, prompt_at = rng.random(size), rng.random(size)
        prompt = np.maximum(quantile(told.prompt, prompt_at), told.shared_prefix_tokens + 1)
        skill = spread_skills(told.quality, place, length)
        others = {
            name: (spread_skills(facts, place, length), facts) for name, facts in told.qualities.items()
        }
        first = NEW + number * size
        return [
            Task(
                Problem(i, int(prompt[i]), told.shared_prefix_tokens), 0.0, skill[i], (told.seed, first + i),
                float(1 - place[i]), {name: (theirs[i], facts) for name, (theirs, facts) in others.items()},
            )
            for i in range(size)
        ]  # fmt: skip

    def mean(self, values: Array) -> Estimate:
        """Mean of figures, (rounds, round size), and how sure it is.

        Drawn problems: the difference of the two at each place is what a place leaves open. Fixed ones: over draws
        how each problem's rounds differ, over problems how the problems do.
        """
        if self.fixed is None:
            pairs = values.reshape(-1, 2)
            apart = (pairs[:, 0] - pairs[:, 1]) ** 2
            variance, degrees = apart.sum() / 4 / len(pairs) ** 2, float(len(pairs))
            inside = float(apart.mean() / 2)
            return Estimate(
                float(values.mean()), float(variance), degrees, max(float(values.var()) - inside, 0.0), inside
            )
        rounds, size = values.shape
        each = values.mean(axis=0)
        inside = float(values.var(axis=0, ddof=1).mean()) if rounds > 1 else 0.0
        spread = float(each.var(ddof=1)) if size > 1 else 0.0
        between = max(spread - inside / rounds, 0.0)
        if self.over == "draws":
            return Estimate(
                float(each.mean()), inside / rounds / size, size * (rounds - 1.0), between, inside
            )
        return Estimate(float(each.mean()), spread / size, size - 1.0, between, inside)

    def apart(self, found: Estimate) -> Interval:
        """95 % interval of a difference of two accuracies, between -1 and 1.

        Where all problems of a table agree, their spread is 0 and says nothing: a share of 1 - 0.025^(1/n) of problems
        like them may be unlike all n with 2.5 % (Clopper & Pearson 1934, Biometrika 26, none of n), either way.
        """
        is_sample = self.fixed is not None and self.over == "problems"
        if is_sample and found.variance <= ROUNDING:
            unlike = 1 - ((1 - LEVEL) / 2) ** (1 / self.round_size)
            ends = [(1 - unlike) * found.mean + side * unlike for side in (-1, 1)]
        elif found.degrees < 1:  # one draw of each does not say how draws differ
            ends = [-1.0, 1.0]
        else:
            half = student_t(found.degrees) * sqrt(found.variance) if found.variance else 0.0
            ends = [found.mean + side * half for side in (-1, 1)]
        return Interval(max(ends[0], -1.0), min(ends[1], 1.0))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and draws."""

    mean: float
    variance: float
    """Of the mean."""
    degrees: float
    """Degrees of freedom of that variance."""
    between: float
    """Variance between problems."""
    within: float
    """Variance between draws of one problem; of drawn problems, between equally hard ones."""


def difficulty_quantile(difficulty: Difficulty, share: Array) -> Array:
    """The p that this share of a set's problems lies below."""
    if difficulty.beta is not None:
        return quality.beta_quantile(*difficulty.beta, share)
    p, shares = np.array(sorted(difficulty.levels)).T
    return np.asarray(p[np.minimum(np.searchsorted(np.cumsum(shares), share), len(p) - 1)])


def spread_skills(facts: QualitySet, place: Array, length: Array) -> list[Skill]:
    """Problems at these shares of a set's difficulties and lengths, in (0, 1).

    What is hard for one model is hard for another, and long for one is long for another, as in `skills`.
    """
    p = difficulty_quantile(facts.difficulty, place)
    spread = facts.sigma_between
    mean = facts.thinking_tokens * np.exp(spread * normal_quantile(length) - spread**2 / 2)
    return [Skill(float(chance), float(tokens)) for chance, tokens in zip(p, mean, strict=True)]
