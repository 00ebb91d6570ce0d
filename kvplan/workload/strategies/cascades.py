"""Two models: a small one tries first, a large one where the first try is not trusted."""

from __future__ import annotations

from kvplan.workload.strategies.parallel import leaders, samples, vote
from kvplan.workload.strategies.params import Count, ModelName, Share, Tokens, TokensOrNone
from kvplan.workload.strategies.strategy import ALL, Answer, Ask, Branch, Strategy


def cascade(
    large_model: ModelName = "", n: Count = 5, threshold: Share = 0.6, max_tokens: Tokens = ALL
) -> Strategy:
    """Sample n traces of the small model; where no more than `threshold` of them agree, ask the large one.

    Yue et al. 2023 (cascades by answer consistency), arXiv 2310.03094; Chen et al. 2023 (FrugalGPT), arXiv
    2305.05176. 0 never asks the large model, 1 always does.
    """
    finished = yield samples(range(n), max_tokens)
    if leaders(finished)[0] > threshold * n:
        return vote(finished)
    [trace] = yield Ask(start=(Branch(n, max_tokens=max_tokens, model=large_model, visible=True),))
    return Answer.of(trace)


def draft_then_verify(
    large_model: ModelName = "",
    verdict_tokens: Count = 64,
    threshold: Share = 0.5,
    instruction_tokens: TokensOrNone = 50,
    max_tokens: Tokens = ALL,
) -> Strategy:
    """The small model drafts; the large one reads the draft's answer, judges it, and solves what it does not trust.

    A verdict is the verifier's score, with its rates; the reading and `verdict_tokens` at most run on the large
    model. Aggarwal, Madaan et al. 2023 (AutoMix, where the small model judges itself), arXiv 2310.12963.
    """
    [draft] = yield Ask(start=(Branch(0, max_tokens=max_tokens),))
    if draft.answer is not None:
        judge = Branch(
            1,
            0,
            None,
            instruction_tokens,
            True,
            "critique",
            max_tokens=verdict_tokens,
            score=True,
            model=large_model,
        )
        [verdict] = yield Ask(start=(judge,))
        if verdict.score > threshold:
            return Answer.of(draft)
    [own] = yield Ask(start=(Branch(2, max_tokens=max_tokens, model=large_model, visible=True),))
    return Answer.of(own)
