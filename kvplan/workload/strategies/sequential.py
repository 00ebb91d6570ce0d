"""Strategies that go on: one trace thinks longer, is forced to stop, is revised, or answers turn after turn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvplan.ground.errors import KvplanError
from kvplan.workload.strategies.params import Count, Share, Tokens, TokensOrNone
from kvplan.workload.strategies.strategy import ALL, Answer, Ask, Branch, Strategy

EFFORT_BUDGETS = {"minimal": 128, "low": 1024, "medium": 2048, "high": 4096}
"""Thinking budgets behind `reasoning_effort`. Source: LiteLLM's defaults (litellm/constants.py, 2025)."""


def single_pass(max_tokens: Tokens = ALL) -> Strategy:
    """One trace, streamed: chain of thought. Wei et al. 2022, arXiv 2201.11903."""
    [trace] = yield Ask(start=(Branch(0, max_tokens=max_tokens, visible=True),))
    return Answer.of(trace)


def extended_thinking(
    thinking_token_budget: Tokens = ALL,
    max_tokens: Tokens = ALL,
    effort: Literal["minimal", "low", "medium", "high"] | None = None,
    length_scale: Annotated[float, Field(gt=0, le=1000)] = 1.0,
) -> Strategy:
    """One trace whose thinking is closed at a soft budget, and cut at a hard `max_tokens`.

    `effort` is a named budget; `length_scale` is what a budget stated in the prompt does to natural lengths
    (L1: Aggarwal & Welleck 2025, arXiv 2503.04697, train models to heed it).
    """
    budget = min(thinking_token_budget, EFFORT_BUDGETS[effort] if effort else ALL)
    if budget >= max_tokens and budget != ALL:
        raise KvplanError(
            f"thinking_token_budget {budget} leaves no room for an answer in max_tokens {max_tokens}"
        )
    branch = Branch(
        0, max_tokens=max_tokens, thinking_token_budget=budget, length_scale=length_scale, visible=True
    )
    [trace] = yield Ask(start=(branch,))
    return Answer.of(trace)


def stated_budget(
    budget_tokens: Tokens = 4096,
    heed: Share = 1.0,
    instruction_tokens: TokensOrNone = 20,
    max_tokens: Tokens = ALL,
) -> Strategy:
    """One trace whose prompt states a budget of thinking; what would think longer heeds it, as far as `heed` says.

    Han et al. 2024 (TALE: any model, in the prompt), arXiv 2412.18547; Aggarwal & Welleck 2025 (L1: trained to heed
    it), arXiv 2503.04697. Nothing is enforced: `extended_thinking` does that.
    """
    branch = Branch(
        0,
        None,
        None,
        instruction_tokens,
        max_tokens=max_tokens,
        stated_budget=budget_tokens,
        heed=heed,
        visible=True,
    )
    [trace] = yield Ask(start=(branch,))
    return Answer.of(trace)


def compaction(
    segment_tokens: Tokens = 8192, summary_tokens: Tokens = 512, max_folds: Count = 16
) -> Strategy:
    """Think `segment_tokens`, write a summary, go on from the problem and the summary alone, until the answer.

    Yan et al. 2025 (InftyThink), arXiv 2503.06692. No sequence outgrows prompt + summary + segment (+ the summary
    being written); each fold pays its summary twice, as output and as prompt. What a summary loses is not modelled.
    """
    [piece] = yield Ask(start=(Branch(0, kind="step", max_tokens=segment_tokens),))
    for fold in range(1, max_folds + 1):
        if piece.done:
            break
        yield Ask(start=(Branch(2 * fold - 1, piece.id, kind="summary", max_tokens=summary_tokens),))
        following = Branch(
            2 * fold, piece.id, None, summary_tokens, folded=True, kind="step", max_tokens=segment_tokens
        )
        [piece] = yield Ask(start=(following,))
    return Answer.of(piece)


def budget_forcing(
    min_tokens: TokensOrNone = 0,
    num_waits: Annotated[int, Field(ge=0, le=10_000)] = 0,
    max_thinking_tokens: Tokens = ALL,
    end_tokens: TokensOrNone = 8,
) -> Strategy:
    """s1: think on after "Wait" until the minimum and the number of waits are reached, end by force at the budget.

    Muennighoff et al. 2025, arXiv 2501.19393. Each "Wait" costs one prompt token, the forced end `end_tokens`.
    """
    if not 0 <= min_tokens <= max_thinking_tokens or num_waits < 0:
        raise KvplanError(
            f"budget forcing needs 0 <= min_tokens ({min_tokens}) <= max_thinking_tokens ({max_thinking_tokens})"
            f" and num_waits >= 0, not {num_waits}"
        )
    [last] = yield Ask(start=(Branch(0, kind="thinking", max_tokens=max_thinking_tokens),))
    used, waits = last.tokens, 0
    while used + 1 < max_thinking_tokens and (waits < num_waits or used < min_tokens):
        waits += 1
        left = max_thinking_tokens - used - 1
        [last] = yield Ask(start=(Branch(waits, last.id, extra_prompt=1, kind="thinking", max_tokens=left),))
        used += 1 + last.tokens
    [answer] = yield Ask(
        start=(Branch(waits + 1, last.id, extra_prompt=end_tokens, kind="answer", visible=True),)
    )
    return Answer.of(answer)


def sequential_revision(
    max_rounds: Count = 4,
    min_gain: Share = 0.01,
    critique_tokens: TokensOrNone = 0,
    instruction_tokens: Count = 50,
    drop_thinking: bool = True,
    max_tokens: Tokens = ALL,
) -> Strategy:
    """Draft, score, revise, until a round's score gains less than `min_gain`; answer with the last that gained.

    With `critique_tokens` each revision follows a critique of the draft, a pass of its own that is paid for.
    Madaan et al. 2023, arXiv 2303.17651; the stop is the verifier's.
    """
    [kept] = yield Ask(start=(Branch(0, max_tokens=max_tokens, score=True),))
    rounds = 1
    for number in range(1, max_rounds):
        source, drop = kept.id, drop_thinking
        if critique_tokens:
            critique = Branch(
                2 * number - 1, source, None, instruction_tokens, drop, "critique", max_tokens=critique_tokens
            )
            [note] = yield Ask(start=(critique,))
            source, drop = note.id, False
        revision = Branch(
            2 * number, source, None, instruction_tokens, drop, "revision", max_tokens=max_tokens, score=True
        )
        [new] = yield Ask(start=(revision,))
        rounds += 1
        if new.score - kept.score < min_gain:
            break
        kept = new
    return Answer.of(kept, rounds)


def chat(
    num_turns: Count = 3,
    user_tokens: Count = 200,
    pause_s: Annotated[float, Field(ge=0, le=1e7)] = 30.0,
    max_tokens: Tokens = ALL,
    drop_thinking: bool = True,
) -> Strategy:
    """A conversation whose thinking is left out of the next turn's prompt, as chat templates of Qwen3 and R1 do.

    The answer is computed again as prompt (its KV saw the thinking), and the cached thinking is dead weight.
    """
    [turn] = yield Ask(start=(Branch(0, max_tokens=max_tokens, visible=True),))
    for number in range(1, num_turns):
        following = Branch(
            number, turn.id, None, user_tokens, drop_thinking, max_tokens=max_tokens, visible=True
        )
        [turn] = yield Ask(start=(following,), pause_s=pause_s)
    return Answer.of(turn)
