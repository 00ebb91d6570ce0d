"""Draws what the branches of a problem do: lengths, answers, scores. The random half of `kvplan.formulas.quality`.

A problem has a chance p; a trace of it is right with chance p; a wrong one goes wrong at some point and never
recovers by itself; a verifier's score is d' standard deviations higher on right work, and of unfinished work a mistake
shows the more, the more was built on it. The k-th first-hand sample of a problem is the same under every strategy, so
that strategies are compared on the same luck.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np

from kvplan.formulas import quality
from kvplan.workload.quality_sets import QualitySet, Samples, Skill
from kvplan.workload.strategies.session import BranchOutcome
from kvplan.workload.strategies.strategy import ALL, RIGHT, Branch, Reason

Z = NormalDist()
BLOCK = 16  # first-hand samples drawn at a time
LATER = 32  # continuations drawn at a time


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """What a verifier's scores are worth: rates at a threshold of 0.5, and how alike it errs on relatives."""

    true_positive_rate: float = 0.9
    true_negative_rate: float = 0.9
    correlation: float = 0.0
    """Share of the score's noise that is the text's: branches have it in common by the share of text that they have."""


@dataclass(slots=True)
class _Trace:
    """The hidden state of one branch."""

    facts: QualitySet
    p: float
    """Chance of the model that runs it."""
    length: float
    """Thinking tokens of the whole trace, if nothing cuts it."""
    done: float
    """Already generated in the branch and its ancestors; under `step` the answer counts too."""
    error_at: float
    """Share of the trace after which it is wrong; above 1 for a right one."""
    wrong: int | None
    """Which wrong answer it would give; None = a table says that it gives none."""
    bias: float
    """The heritable part of the verifier's error."""
    first_length: float
    """Thinking tokens of the first trace in this line; a revision's length goes by it."""
    answer_tokens: int
    """Visible tokens after the thinking."""
    score: float | None = None
    """The score of the whole trace that a table states."""
    went_on: bool = False
    """Whether a branch has taken it further: the first does, later ones are other futures of the same prefix."""

    @property
    def right(self) -> bool:
        """Whether the whole trace is right."""
        return self.error_at > 1

    @property
    def on_track(self) -> bool:
        """Whether what exists so far is right."""
        return self.done < self.error_at * self.length

    @property
    def shown(self) -> float:
        """How much of its mistake shows in what exists: in step with what was built on it, all of it at the end."""
        if self.on_track:
            return 0.0
        rest = (1 - self.error_at) * self.length
        return min((self.done - self.error_at * self.length) / rest, 1.0) if rest > 0 else 1.0


@dataclass(slots=True)
class TraceSampler:
    """Draws what the branches of one problem do; `Session`'s sampler."""

    skill: Skill
    facts: QualitySet
    scores: ScoreModel
    rng: np.random.Generator
    tier: int = RIGHT
    """For a router: which class the problem is in."""
    router_accuracy: float = 1.0
    num_tiers: int = 1
    others: dict[str, tuple[Skill, QualitySet]] = field(default_factory=dict)
    """By `Branch.model`, where a problem may go to several models."""
    traces: dict[int, _Trace] = field(default_factory=dict)
    scored_good: dict[int, bool] = field(default_factory=dict)
    """Branch -> whether what the verifier scored was right; what its errors are counted against."""
    num_rows: int = 0
    """Samples taken from a table; beyond those that it has they are the same again, in another order."""
    _rows: list[int] = field(default_factory=list)
    _seen_rows: dict[int, tuple[float, int | None, float]] = field(default_factory=dict)
    """What was drawn of a row where its table says nothing: the same when it comes again."""
    _fresh: list[tuple[float, ...]] = field(default_factory=list)
    _num_fresh: int = 0
    _later: list[list[float]] = field(default_factory=list)
    _later_rng: np.random.Generator | None = None
    _d: float = 0.0
    _cut: float = 0.0

    def __post_init__(self) -> None:
        self._d, self._cut = _separation(self.scores)

    def draw(self, branch: Branch, parent: BranchOutcome | None) -> BranchOutcome:
        """Return what `branch` will do (see `Sampler`)."""
        if branch.kind == "classify":
            return BranchOutcome(1, 0, "stop", self._classify(), 0.0)
        trace = self.traces[branch.id] = self._trace(branch, parent)
        return DRAWS[branch.kind](self, branch, trace)

    # --- the hidden trace -------------------------------------------------------------------------------

    def _trace(self, branch: Branch, parent: BranchOutcome | None) -> _Trace:
        if branch.parent is None or parent is None:
            return self._root(branch)
        old = self.traces[branch.parent]
        if branch.kind in ("answer", "critique", "summary"):
            return old
        if branch.parent_tokens is not None and branch.parent_tokens < parent.tokens:
            here = min(branch.parent_tokens, parent.thinking_tokens)
            return self._continued(branch, old, old.done - parent.thinking_tokens + here)
        if branch.kind == "step" or branch.parent_tokens is not None:
            if old.went_on:
                return self._continued(branch, old, old.done)
            old.went_on = True
            bias = self._bias(old, _common(branch, old, old.done), self._next()[3])
            return _Trace(
                old.facts, old.p, old.length, old.done, old.error_at, old.wrong, bias, old.first_length,
                old.answer_tokens, old.score,
            )  # fmt: skip
        if branch.kind == "trace":
            return self._root(branch)  # another turn: a new question
        return self._revised(old)

    def _root(self, branch: Branch) -> _Trace:
        """The next first-hand sample: the same numbers under every strategy."""
        if self._num_fresh == len(self._fresh):
            draws = self.rng.random((BLOCK, 3)), self.rng.standard_normal((BLOCK, 2))
            self._fresh.extend(map(tuple, np.concatenate(draws, axis=1).tolist()))
        u_right, u_where, u_wrong, z, bias = self._fresh[self._num_fresh]
        self._num_fresh += 1
        skill, facts = self.others.get(branch.model, (self.skill, self.facts))
        wrong = 1 + int(u_wrong * facts.wrong_answers)
        if skill.samples is not None:
            return self._of_table(skill, facts, skill.samples, u_right, u_where, wrong, bias)
        length, error_at = _length_and_error(skill, facts, z, u_right, u_where)
        return _Trace(
            facts=facts, p=skill.p, length=length, done=0.0, error_at=error_at, wrong=wrong, bias=bias,
            first_length=length, answer_tokens=facts.answer_tokens,
        )  # fmt: skip

    def _of_table(
        self, skill: Skill, facts: QualitySet, table: Samples, u: float, u_where: float, wrong: int | None, bias: float
    ) -> _Trace:  # fmt: skip
        """The next row of a shuffled table: length, correctness, answer and score stay together, none comes twice."""
        taken = self.num_rows % len(table.tokens)
        if not taken:
            self._rows = list(range(len(table.tokens)))
        place = taken + int(u * (len(self._rows) - taken))
        self._rows[taken], self._rows[place] = self._rows[place], self._rows[taken]
        row = self._rows[taken]
        self.num_rows += 1
        u_where, wrong, bias = self._seen_rows.setdefault(row, (u_where, wrong, bias))
        answer = min(facts.answer_tokens, table.tokens[row] - 1)
        length = float(max(table.tokens[row] - answer, 1))
        if table.answers is not None and not table.correct[row]:
            wrong = table.answers[row]
        return _Trace(
            facts=facts, p=skill.p, length=length, done=0.0, error_at=2.0 if table.correct[row] else u_where,
            wrong=wrong, bias=bias, first_length=length, answer_tokens=answer,
            score=None if table.scores is None else table.scores[row],
        )  # fmt: skip

    def _bias(self, old: _Trace, common: float, z: float) -> float:
        """The verifier's error on a branch: in part its parent's, by the share of its text that both have."""
        keeps = self.scores.correlation * common
        return sqrt(keeps) * old.bias + sqrt(1 - keeps) * z

    def _continued(self, branch: Branch, old: _Trace, done: float) -> _Trace:
        """A sibling future of the same prefix: right so far, it may still go wrong; wrong, it stays wrong."""
        u_wrong_at, u_stays, u_wrong, z = self._next()
        share = min(done / old.length, 1.0)
        error_at = old.error_at
        if share < error_at:
            stays = old.p ** (1 - share)
            error_at = 2.0 if u_stays < stays else share + (1 - share) * _first_error(stays, u_wrong_at)
        wrong = 1 + int(u_wrong * old.facts.wrong_answers)
        bias = self._bias(old, _common(branch, old, done), z)
        return _Trace(
            old.facts, old.p, old.length, done, error_at, wrong, bias, old.first_length, old.answer_tokens
        )  # fmt: skip

    def _next(self) -> list[float]:
        """Luck of branches that go on, from a stream of its own: first-hand samples stay the same beside them."""
        if not self._later:
            if self._later_rng is None:
                self._later_rng = self.rng.spawn(1)[0]
            draws = self._later_rng.random((LATER, 3)), self._later_rng.standard_normal((LATER, 1))
            self._later = np.concatenate(draws, axis=1).tolist()
        return self._later.pop()

    def _revised(self, old: _Trace) -> _Trace:
        facts = old.facts
        change, u_kept, _, z = self._next()
        right = change >= facts.revision_loss if old.right else change < facts.revision_gain
        spread = exp(facts.sigma_within * Z.inv_cdf(min(max(u_kept, 1e-15), 1 - 1e-15)))
        length = max(old.first_length * facts.revision_length * spread, 1.0)
        error_at = 2.0 if right else 0.5
        bias = self._bias(old, 1.0, z)
        return replace(
            old, length=length, done=0.0, error_at=error_at, bias=bias, score=None, went_on=False
        )  # fmt: skip

    # --- one way of ending per kind -----------------------------------------------------------------------

    def _whole(self, branch: Branch, trace: _Trace) -> BranchOutcome:
        """Thinking, closed at the budget if it comes to that, then the answer, unless `max_tokens` cuts."""
        natural = max(trace.length - trace.done, 1.0)
        wanted = _at_least(_heeded(natural * branch.length_scale, branch), branch.min_thinking_tokens)
        held_back = branch.kind == "thinking"
        budget = min(branch.thinking_token_budget, branch.max_tokens if held_back else ALL)
        thinking = min(wanted, budget)
        if thinking != round(natural):
            self._close_early(trace, trace.done + thinking)
        trace.done = trace.length
        if held_back:
            reason: Reason = "stop" if thinking == wanted else "length"
            return BranchOutcome(
                thinking, thinking, reason, None, self._score(branch, trace, trace.shown, trace.score)
            )
        return self._ended(branch, trace, thinking)

    def _answer(self, branch: Branch, trace: _Trace) -> BranchOutcome:
        return self._ended(branch, trace, 0)

    def _critique(self, branch: Branch, trace: _Trace) -> BranchOutcome:
        tokens = min(trace.facts.answer_tokens, branch.max_tokens)
        return BranchOutcome(
            tokens, tokens, "stop", None, self._score(branch, trace, trace.shown, trace.score)
        )

    def _summary(self, branch: Branch, trace: _Trace) -> BranchOutcome:
        """As long as it is told to be; what it leaves out is not modelled."""
        return BranchOutcome(
            branch.max_tokens, branch.max_tokens, "stop", None, self._score(branch, trace, trace.shown)
        )

    def _step(self, branch: Branch, trace: _Trace) -> BranchOutcome:
        """A piece of the trace; the answer is its last stretch and is cut into steps like the rest."""
        rest = trace.length - trace.done
        left = max(round(rest + trace.answer_tokens), 1)
        thinking, cut = max(round(rest), 0), branch.max_tokens
        if left > cut:
            trace.done += cut
            score = self._score(branch, trace, trace.shown)
            return BranchOutcome(cut, min(thinking, cut), "length", None, score)
        trace.done += left
        return BranchOutcome(
            left, thinking, "stop", self._says(trace), self._score(branch, trace, trace.shown, trace.score)
        )

    def _ended(self, branch: Branch, trace: _Trace, thinking: int) -> BranchOutcome:
        tokens = thinking + trace.answer_tokens
        if tokens <= branch.max_tokens:
            return BranchOutcome(
                tokens,
                thinking,
                "stop",
                self._says(trace),
                self._score(branch, trace, trace.shown, trace.score),
            )
        cut = branch.max_tokens
        return BranchOutcome(cut, min(thinking, cut), "length", None, self._score(branch, trace, 1.0))

    def _close_early(self, trace: _Trace, thinking: float) -> None:
        """Thinking of another length than the natural one: some right traces are lost, or some wrong ones saved."""
        if trace.right:
            kept = trace.facts.kept_share(thinking, trace.length)
            if kept < 1 and self._next()[0] >= kept:
                trace.error_at, trace.score = 0.5, None
        else:
            mended = trace.facts.mended_share(thinking, trace.length)
            if mended > 0 and self._next()[0] < mended:
                trace.error_at, trace.score = 2.0, None

    def _says(self, trace: _Trace) -> int | None:
        return RIGHT if trace.right else trace.wrong

    def _score(self, branch: Branch, trace: _Trace, shown: float, stated: float | None = None) -> float:
        """A number in (0, 1); above 0.5 with the verifier's own rates, or what a table states of the whole trace."""
        if not branch.score:
            return float("nan")
        self.scored_good[branch.id] = shown == 0
        if stated is not None:
            return stated
        x = trace.bias + self._d * (1 - shown) - self._cut
        return 1 / (1 + exp(-x if -40 < x < 40 else -40.0 if x > 0 else 40.0))

    def _classify(self) -> int:
        told, other, *_ = self._next()
        if self.num_tiers == 1 or told < self.router_accuracy:
            return self.tier
        return (self.tier + 1 + int(other * (self.num_tiers - 1))) % self.num_tiers


DRAWS = {
    "trace": TraceSampler._whole,
    "revision": TraceSampler._whole,
    "thinking": TraceSampler._whole,
    "answer": TraceSampler._answer,
    "critique": TraceSampler._critique,
    "summary": TraceSampler._summary,
    "step": TraceSampler._step,
}


@lru_cache(64)
def _separation(scores: ScoreModel) -> tuple[float, float]:
    """d' of a verifier, and where on wrong work's scores its threshold lies."""
    rate = min(max(scores.true_negative_rate, 1e-9), 1 - 1e-9)
    return quality.d_prime(scores.true_positive_rate, scores.true_negative_rate), Z.inv_cdf(rate)


def _common(branch: Branch, old: _Trace, done: float) -> float:
    """Share of a branch's text, at its end, that is its parent's: so much of what a verifier reads is the same."""
    room = old.length + old.answer_tokens
    return min(done / min(done + branch.max_tokens, room), 1.0) if done > 0 else 0.0


def _heeded(natural: float, branch: Branch) -> float:
    """Thinking tokens when the prompt states a budget (see `Branch.heed`)."""
    if natural <= branch.stated_budget:
        return natural
    return float(branch.stated_budget**branch.heed * natural ** (1 - branch.heed))


def _at_least(tokens: float, least: int) -> int:
    return max(round(tokens), least, 1)


def _length_and_error(
    skill: Skill, facts: QualitySet, z: float, u_right: float, u_where: float
) -> tuple[float, float]:
    """Thinking tokens of a whole trace, and the share of it after which it is wrong (2 = never)."""
    right = u_right < skill.p
    ratio = facts.wrong_to_right_length
    base = skill.thinking_tokens / (skill.p + (1 - skill.p) * ratio)
    spread = facts.sigma_within
    length = base * (1.0 if right else ratio) * exp(spread * z - spread * spread / 2)
    return max(length, 1.0), 2.0 if right else _first_error(skill.p, u_where)


def _first_error(p: float, u: float) -> float:
    """Share of a wrong trace before its first error: survival p^share, given that it errs by share 1."""
    if p <= 1e-12:
        return 0.0
    return min(log(1 - u * (1 - p)) / log(p), 1.0) if p < 1 else 1.0
