"""Strategies whose chance of being right is a formula: exact given the problem, without a draw.

The other half of `outcomes.py`, which draws what is integrated here; tests hold the two together. Knows strategies,
quality sets and verifiers; no clock and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kvplan.formulas import quality
from kvplan.formulas.quality import Array
from kvplan.workload.lengths import normal_quantile
from kvplan.workload.outcomes import ScoreModel
from kvplan.workload.quality_sets import QualitySet, Skill
from kvplan.workload.strategies.sequential import EFFORT_BUDGETS
from kvplan.workload.strategies.strategy import ALL

_NODES = 128
_Z = normal_quantile((np.arange(_NODES) + 0.5) / _NODES)
"""Lengths are integrated over so many equal parts of their distribution."""


class OneTrace(NamedTuple):
    """What one trace of each problem does, as chances; the rest is answered and wrong."""

    right: Array
    """Right and answered."""
    unanswered: Array
    """Cut by `max_tokens`."""


def exact_accuracy(
    strategy: str,
    settings: Mapping[str, Any],
    skills: Sequence[Skill],
    facts: QualitySet,
    scores: ScoreModel,
    room: ArrayLike = ALL,
) -> Array | None:
    """Chance of each problem that the strategy, with these parameters, is right; None where no formula has it.

    `room`: tokens at most that each problem's traces may have beside their prompt.
    """
    formula = FORMULAS.get(strategy)
    if formula is None or settings.keys() - READ or any(skill.samples is not None for skill in skills):
        return None
    return formula(
        ExactCase(settings, skills, facts, scores, np.broadcast_to(np.asarray(room, float), len(skills)))
    )


class ExactCase(NamedTuple):
    """A strategy's parameters on some problems."""

    settings: Mapping[str, Any]
    skills: Sequence[Skill]
    facts: QualitySet
    scores: ScoreModel
    room: Array

    def sample(self) -> OneTrace:
        """One trace under this strategy's caps."""
        facts = self.facts
        p = np.array([skill.p for skill in self.skills])[:, None]
        mean = np.array([skill.thinking_tokens for skill in self.skills])[:, None]
        base = mean / (p + (1 - p) * facts.wrong_to_right_length)
        spread = np.exp(facts.sigma_within * _Z - facts.sigma_within**2 / 2)
        right, cut = self._ends(np.maximum(base * spread, 1.0), is_right=True)
        mended, cut_wrong = self._ends(
            np.maximum(base * facts.wrong_to_right_length * spread, 1.0), is_right=False
        )
        p = p[:, 0]
        right_share = p * (right * ~cut).mean(axis=1) + (1 - p) * (mended * ~cut_wrong).mean(axis=1)
        none = p * cut.mean(axis=1) + (1 - p) * cut_wrong.mean(axis=1)
        return OneTrace(np.clip(right_share, 0, 1 - none), none)

    def _ends(self, natural: Array, is_right: bool) -> tuple[Array, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Of traces that would think so long: how much stays right (or is mended), and what is cut."""
        told, facts = self.settings, self.facts
        effort = told.get("effort")
        budget = min(told.get("thinking_token_budget", ALL), EFFORT_BUDGETS[effort] if effort else ALL)
        wanted = np.maximum(np.round(natural * told.get("length_scale", 1.0)), 1)
        thinking = np.minimum(wanted, budget)
        share = _kept(facts, thinking, natural) if is_right else _mended(facts, thinking, natural)
        as_it_was = thinking == np.round(natural)
        cut = thinking + facts.answer_tokens > np.minimum(told.get("max_tokens", ALL), self.room)[:, None]
        return np.where(as_it_was, 1.0 if is_right else 0.0, share), cut

    @property
    def d_prime(self) -> float:
        """Of the verifier."""
        return quality.d_prime(self.scores.true_positive_rate, self.scores.true_negative_rate)


def _kept(facts: QualitySet, thinking: Array, natural: Array) -> Array:
    """`QualitySet.kept_share`, for arrays."""
    if not facts.thinking_curve:
        return np.asarray(np.minimum(1.0, thinking / natural) ** facts.forced_exponent)
    now, full = (quality.thinking_curve(at, facts.thinking_curve) for at in (thinking, natural))
    return np.asarray(np.where(full > 0, np.minimum(now / np.where(full > 0, full, 1.0), 1.0), 1.0))


def _mended(facts: QualitySet, thinking: Array, natural: Array) -> Array:
    """`QualitySet.mended_share`, for arrays."""
    if not facts.thinking_curve:
        return np.zeros_like(thinking)
    now, full = (quality.thinking_curve(at, facts.thinking_curve) for at in (thinking, natural))
    return np.asarray(
        np.where(full < 1, np.maximum(now - full, 0.0) / np.where(full < 1, 1 - full, 1.0), 0.0)
    )


def _one(case: ExactCase) -> Array:
    return case.sample().right


def _best_of_n(case: ExactCase) -> Array:
    one = case.sample()
    return quality.best_of_n(one.right, case.settings["n"], case.d_prime, unanswered=one.unanswered)


def _adaptive(case: ExactCase) -> Array | None:
    """What max_tokens cuts looks wrong to the verifier; of what max_model_len cuts the formula says nothing."""
    one, scores = case.sample(), case.scores
    if case.room.min() < case.settings["max_tokens"] and one.unanswered.max() > 1e-6:
        return None
    told = {key: case.settings[key] for key in ("probe", "hard", "easy", "n_hard", "n_medium")}
    rates = scores.true_positive_rate, scores.true_negative_rate
    return quality.adaptive_best_of_n(one.right, *rates, **told, unanswered=one.unanswered)


def _vote(case: ExactCase) -> Array | None:
    """Where nothing is cut and right traces are no shorter: ties, which go to the shortest trace, are then by lot."""
    one, budget = case.sample(), case.settings["thinking_token_budget"]
    if case.facts.wrong_to_right_length != 1 or budget != ALL or one.unanswered.max() > 1e-6:
        return None
    return quality.majority(one.right, case.settings["n"], case.facts.wrong_answers)


def _first_finish(case: ExactCase) -> Array | None:
    one, facts = case.sample(), case.facts
    if case.settings["m"] != 1 or one.unanswered.max() > 1e-6 or not facts.sigma_within:
        return None
    p = np.array([skill.p for skill in case.skills])
    return quality.first_finish(p, case.settings["k"], facts.wrong_to_right_length, facts.sigma_within)


FORMULAS: dict[str, Callable[[ExactCase], Array | None]] = {
    "single_pass": _one,
    "extended_thinking": _one,
    "grpo_group": _one,
    "best_of_n": _best_of_n,
    "adaptive_best_of_n": _adaptive,
    "self_consistency": _vote,
    "first_finish": _first_finish,
}
"""Strategy -> its formula."""
READ = {"max_tokens", "thinking_token_budget", "effort", "length_scale", "n", "vote_stop", "m", "k", "group_size",
        "probe", "hard", "easy", "n_hard", "n_medium"}  # fmt: skip
"""Parameters that formulas know; with any other a strategy is drawn."""
