"""Strategies that spread: independent samples of one problem, and ways to choose among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvplan.workload.strategies.params import Count, Share, Tokens, TokensOrNone
from kvplan.workload.strategies.strategy import ALL, Answer, Ask, Branch, FinishedBranch, Strategy


def best_of_n(n: Count = 16, max_tokens: Tokens = ALL, thinking_token_budget: Tokens = ALL) -> Strategy:
    """Sample n traces, let the verifier score each, answer with the best. Cobbe et al. 2021, arXiv 2110.14168."""
    ask = samples(range(n), max_tokens, thinking_token_budget, score=True)
    return best(finished := (yield ask), len(finished))


def self_consistency(
    n: Count = 16, max_tokens: Tokens = ALL, thinking_token_budget: Tokens = ALL, vote_stop: bool = True
) -> Strategy:
    """Sample n traces and answer by majority. Wang et al. 2022, arXiv 2203.11171.

    With `vote_stop` the rest is cancelled as soon as no outcome of it could change the winner.
    """
    finished = yield samples(range(n), max_tokens, thinking_token_budget, wait=1 if vote_stop else ALL)
    while vote_stop and len(finished) < n and not _decided(finished, n - len(finished)):
        finished = finished + (yield Ask(wait=1))
    return vote(finished)


def first_finish(m: Count = 1, k: Count = 5, max_tokens: Tokens = ALL) -> Strategy:
    """short-m@k: start k traces, stop when m are done, majority of those, ties to the shortest.

    Hassid et al. 2025, arXiv 2505.17813.
    """
    finished = yield samples(range(k), max_tokens, wait=min(m, k))
    return vote(finished)


def weighted_vote(n: Count = 16, max_tokens: Tokens = ALL, thinking_token_budget: Tokens = ALL) -> Strategy:
    """Sample n traces, let the verifier score each, answer with the largest sum of scores over equal answers.

    Li et al. 2022, arXiv 2206.02336; "best-of-N weighted" of Snell et al. 2024, arXiv 2408.03314.
    """
    return vote((yield samples(range(n), max_tokens, thinking_token_budget, score=True)), weighted=True)


def fork_join(
    n: Count = 4,
    prefix_tokens: TokensOrNone = 0,
    summary_tokens: TokensOrNone = 200,
    max_tokens: Tokens = ALL,
) -> Strategy:
    """Think together, fork n threads, join: the thread that most agree with reads the others' summaries and answers.

    Pan et al. 2025, arXiv 2504.15466 (fork and join); Wen et al. 2025, arXiv 2509.04475 (parallel thinking). Threads
    share the prefix's KV and its mistakes; a summary is `summary_tokens` of prompt.
    """
    source = at = None
    if prefix_tokens:
        [trunk] = yield Ask(start=(Branch(0, kind="step", max_tokens=prefix_tokens),))
        if trunk.done:
            return Answer.of(trunk)
        source, at = trunk.id, trunk.tokens
    threads = yield Ask(start=tuple(Branch(1 + i, source, at, max_tokens=max_tokens) for i in range(n)))
    said = vote(threads)
    if n == 1 or said.branch is None:
        return said
    join = Branch(n + 1, said.branch, extra_prompt=(n - 1) * summary_tokens, kind="answer", visible=True)
    [joined] = yield Ask(start=(join,))
    return Answer.of(joined, n)


def adaptive_best_of_n(
    probe: Count = 4,
    hard: Share = 0.2,
    easy: Share = 0.8,
    n_hard: Count = 64,
    n_medium: Count = 16,
    max_tokens: Tokens = ALL,
) -> Strategy:
    """Sample a probe, judge the difficulty by it, spend accordingly, answer with the best of all.

    The probe's estimate is the share of its traces that the verifier scores above 0.5: at `easy` or more
    nothing is added; up to `hard` (but not 0) the total becomes `n_hard`, between them `n_medium`; a
    probe in which nothing looks right counts as hard too. It errs as probes do. After Snell et al. 2024,
    arXiv 2408.03314 (compute-optimal best-of-N), and Damani et al. 2024, arXiv 2410.04707.
    """
    finished = yield samples(range(probe), max_tokens, score=True)
    promising = sum(f.score > 0.5 for f in finished) / len(finished)
    if promising < easy:
        total = n_hard if promising <= hard else n_medium
        finished = finished + (yield samples(range(probe, max(total, probe)), max_tokens, score=True))
    return best(finished, len(finished))


def pruned_under_pressure(n: Count = 64, max_tokens: Tokens = ALL) -> Strategy:
    """STEP: n traces; when blocks run out the engine ends the worst-scored instead of preempting; weighted vote.

    arXiv 2601.09093. Each trace's weight is its score.
    """
    branches = tuple(Branch(i, max_tokens=max_tokens, score=True, prunable=True) for i in range(n))
    return vote((yield Ask(start=branches)), weighted=True)


def grpo_group(group_size: Count = 16, max_tokens: Tokens = 32768) -> Strategy:
    """One rollout group of GRPO: G traces of one prompt, each with a rule's reward, none chosen.

    Shao et al. 2024, arXiv 2402.03300; G = 16 and 32,768 tokens as in DeepSeek-R1, arXiv 2501.12948. The
    answer is the first trace's: over problems its accuracy is the mean reward.
    """
    finished = yield samples(range(group_size), max_tokens)
    return Answer.of(min(finished, key=lambda f: f.id), len(finished))


def best(finished: Iterable[FinishedBranch], samples: int) -> Answer:
    """The highest-scored branch that has an answer; no answer when none has."""
    answered = [f for f in finished if f.answer is not None]
    if not answered:
        return Answer(None, None, samples)
    return Answer.of(max(answered, key=lambda f: f.score), samples)


def vote(finished: list[FinishedBranch], weighted: bool = False) -> Answer:
    """The answer with the most votes (or the largest sum of scores), ties to the one with the shortest trace."""
    answered = sorted((f for f in finished if f.answer is not None), key=lambda f: f.tokens)
    if not answered:
        return Answer(None, None, len(finished))
    votes: dict[int | None, float] = {}
    for f in answered:
        votes[f.answer] = votes.get(f.answer, 0.0) + (f.score if weighted else 1.0)
    winner = max(votes, key=lambda answer: votes[answer])  # the first of equals: the shortest trace's
    return Answer(winner, next(f.id for f in answered if f.answer == winner), len(finished))


def leaders(finished: Iterable[FinishedBranch]) -> tuple[int, int]:
    """Votes of the answer that most gave, and of the next."""
    votes = Counter(f.answer for f in finished if f.answer is not None).most_common(2)
    return (votes[0][1] if votes else 0), (votes[1][1] if len(votes) > 1 else 0)


def _decided(finished: list[FinishedBranch], outstanding: int) -> bool:
    """Whether the leader stays ahead even if all the rest agreed on the runner-up."""
    first, second = leaders(finished)
    return first > second + outstanding


def samples(
    ids: Iterable[int], max_tokens: int, budget: int = ALL, score: bool = False, wait: int = ALL
) -> Ask:
    """Ask for one independent trace per id."""
    branches = (Branch(i, max_tokens=max_tokens, thinking_token_budget=budget, score=score) for i in ids)
    return Ask(start=tuple(branches), wait=wait)
