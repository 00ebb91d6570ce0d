"""Votes that stop early: when the leader is sure enough, when a window agrees, when enough traces said the same."""

from __future__ import annotations

from kvplan.formulas.quality import lead_confidence
from kvplan.workload.strategies.parallel import leaders, samples, vote
from kvplan.workload.strategies.params import Count, Share, Tokens
from kvplan.workload.strategies.strategy import ALL, Ask, FinishedBranch, Strategy


def confidence_stopped_vote(
    n: Count = 40, batch: Count = 1, confidence: Share = 0.95, max_tokens: Tokens = ALL
) -> Strategy:
    """Sample `batch` traces at a time until the leading answer is sure to lead, n at most, and vote.

    Sure: P(leader beats the runner-up) > `confidence` under a Beta posterior; 1 takes all n. Aggarwal et al. 2023
    (adaptive consistency), arXiv 2305.11860: n = 40, one at a time, 0.95.
    """
    finished: list[FinishedBranch] = []
    for begin in range(0, n, batch):
        finished += yield samples(range(begin, min(begin + batch, n)), max_tokens)
        if lead_confidence(*leaders(finished)) > confidence:
            break
    return vote(finished)


def early_stopped_vote(n: Count = 40, window: Count = 5, max_tokens: Tokens = ALL) -> Strategy:
    """Sample `window` traces at a time until one window agrees on its answer, n at most, and vote over all.

    Li et al. 2024 (early-stopping self-consistency), arXiv 2401.10480.
    """
    finished: list[FinishedBranch] = []
    for begin in range(0, n, window):
        new = yield samples(range(begin, min(begin + window, n)), max_tokens)
        finished += new
        if leaders(new)[0] == window:
            break
    return vote(finished)


def first_agreement(m: Count = 2, n: Count = 5, max_tokens: Tokens = ALL) -> Strategy:
    """Start n traces, stop as soon as m that are done gave one answer; where none gets m, the majority of all.

    m = 1 is the first to finish: Agarwal et al. 2025 (first finish search), arXiv 2505.18149.
    """
    finished = yield samples(range(n), max_tokens, wait=1)
    while len(finished) < n and leaders(finished)[0] < m:
        finished = finished + (yield Ask(wait=1))
    return vote(finished)
