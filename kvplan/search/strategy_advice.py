"""What a comparison should say besides its rows: thinking budgets, whose chances are assumed, what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvplan.formulas.intervals import LEVEL
from kvplan.formulas.quality import Array
from kvplan.search.strategy_row import StrategyRow
from kvplan.workload.problems import Problems, StrategySpec, Task

TREES = {"beam_search", "diverse_tree_search", "backtracking_search", "tree_search", "prune_by_steps"}
UNIFORM = {"best_of_n", "weighted_vote", "self_consistency", "pruned_under_pressure"}
"""As many samples of every problem."""
JUDGED = {
    "best_of_n",
    "adaptive_best_of_n",
    "speculative_rejection",
    "weighted_vote",
    "pruned_under_pressure",
}
"""Ask a verifier which sample to take."""
CAPS = {
    "max_tokens",
    "thinking_token_budget",
    "effort",
    "max_thinking_tokens",
    "step_tokens",
    "segment_tokens",
}
"""Parameters that bound a trace."""
SURE = 0.02
"""A problem with p this close to 0 or 1 gains nothing from more samples."""
ENOUGH = 16
"""Samples of a table's problem, all right or all wrong, that say that it is mostly so."""
MANY = 0.2
"""Share of such problems that is worth a line."""


def recommended_caps(
    problems: Problems, tasks: Sequence[Task], specs: Sequence[StrategySpec], rows: Sequence[StrategyRow]
) -> dict[str, float]:
    """Thinking budgets: the 99th percentile of what traces would think, and the cheapest budget per right answer
    among those compared (absent when no budgets were)."""
    caps = {"p99_of_traces": float(np.ceil(np.percentile(_thinking(problems, tasks), 99)))}
    swept = [
        (row.usd_per_correct, spec.settings["thinking_token_budget"])
        for spec, row in zip(specs, rows, strict=False)
        if "thinking_token_budget" in spec.params and row.usd_per_correct is not None
    ]
    if len(swept) > 1:
        caps["cost_optimal"] = float(min(swept)[1])
    return caps


def _thinking(problems: Problems, tasks: Sequence[Task]) -> Array:
    """Thinking tokens of a table's own samples; of a set, of traces drawn from it."""
    facts = problems.quality
    measured = [task.skill.samples.tokens for task in tasks if task.skill.samples]
    if measured:
        return np.asarray(np.maximum(np.concatenate(measured).astype(float) - facts.answer_tokens, 1))
    means = np.array([task.skill.thinking_tokens for task in tasks])
    z = np.random.default_rng(problems.seed).standard_normal((64, len(means)))
    return np.asarray(means * np.exp(facts.sigma_within * z - facts.sigma_within**2 / 2))


def caution(problems: Problems) -> str:
    """Says that the chances of success are assumed; "" where somebody measured them."""
    if problems.pass_table is not None or not problems.quality.is_assumed:
        return ""
    return f"assumed chances of success (quality set {problems.quality.name}): rankings hold for those, not for a model"


def advice(
    problems: Problems, specs: Sequence[StrategySpec], tasks: Sequence[Task], cap: float
) -> Iterator[str]:
    """What the comparison lacks; `cap` is the thinking that one trace in a hundred exceeds, tokens."""
    names = {spec.strategy for spec in specs}
    free = [spec.name for spec in specs if not CAPS & spec.params.keys() and not spec.router]
    if free:
        yield (
            f"no hard cap on thinking in {', '.join(free)}: one trace in a hundred thinks beyond "
            f"{cap:,.0f} tokens and holds its KV all that time; set thinking_token_budget there"
        )
    if names & TREES and "best_of_n" not in names:
        yield "compare best_of_n before trees: it needs no step scores and is hard to beat at the same tokens"
    if names & TREES:
        yield (
            "searches over steps: small and middling ones gain about as published ones do, hundreds of beams too much "
            "(docs/validation/strategies.md)"
        )
    if names & TREES and problems.verifier.kind not in ("prm", "generative"):
        yield (
            f"a tree without a process reward model: a {problems.verifier.kind} verifier scores whole answers, "
            "so the step scores simulated here have no source"
        )
    if "verifier" not in problems.model_fields_set and names & (TREES | JUDGED):
        yield (
            "no verifier is stated: one that is never wrong picks the answers, as tests of a program might; state "
            "verifier: with its rates where it is none"
        )
    if names & UNIFORM:
        yield from _settled(tasks)


def _settled(tasks: Sequence[Task]) -> Iterator[str]:
    """That many problems gain nothing from samples: by their chances, or by enough samples of a table."""
    samples = [len(task.skill.samples.tokens) for task in tasks if task.skill.samples]
    p, few = np.array([task.skill.p for task in tasks]), min(samples, default=0)
    settled = (p == 0) | (p == 1) if samples else (p < SURE) | (p > 1 - SURE)
    share = float(np.mean(settled))
    if share < MANY or 0 < few < ENOUGH:
        return
    if samples:  # Clopper & Pearson 1934: none of n
        most = 1 - ((1 - LEVEL) / 2) ** (1 / few)
        who = (
            f"{share:.0%} of the problems have all or none of their samples right (p beyond {most:.2f} and "
            f"{1 - most:.2f}, 95 %): samples there buy little"
        )
    else:
        who = (
            f"{share:.0%} of the problems are always or never solved (p beyond {SURE} and {1 - SURE}): "
            "samples there buy nothing"
        )
    yield f"{who}; adaptive_best_of_n probes first"
