"""What a comparison should say besides its rows: thinking budgets, whose chances are assumed, what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

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


def recommended_caps(
    problems: Problems, tasks: Sequence[Task], specs: Sequence[StrategySpec], rows: Sequence[StrategyRow]
) -> dict[str, float]:
    """Thinking budgets: the 99th percentile of what traces would think, and the cheapest budget per right answer
    among those compared (absent when no budgets were)."""
    facts = problems.quality
    means = np.array([task.skill.thinking_tokens for task in tasks])
    z = np.random.default_rng(problems.seed).standard_normal((64, len(means)))
    lengths = means * np.exp(facts.sigma_within * z - facts.sigma_within**2 / 2)
    caps = {"p99_of_traces": float(np.ceil(np.percentile(lengths, 99)))}
    swept = [
        (row.usd_per_correct, spec.settings["thinking_token_budget"])
        for spec, row in zip(specs, rows, strict=False)
        if "thinking_token_budget" in spec.params and row.usd_per_correct is not None
    ]
    if len(swept) > 1:
        caps["cost_optimal"] = float(min(swept)[1])
    return caps


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
    p = np.array([task.skill.p for task in tasks])
    share = float(np.mean((p < SURE) | (p > 1 - SURE)))
    if names & UNIFORM and share >= 0.2:
        yield (
            f"{share:.0%} of the problems are always or never solved (p beyond {SURE} and {1 - SURE}): "
            "samples there buy nothing; adaptive_best_of_n probes first"
        )
