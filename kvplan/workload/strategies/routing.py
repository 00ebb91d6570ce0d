"""A router in front: a cheap classifier guesses how hard a problem is and picks model, budget and strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvplan.workload.strategies.strategy import Answer, Ask, Branch, Strategy

CLASSIFIER = -1
"""The id of the classifying branch; strategies number theirs from 0."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Where one class of problems goes."""

    start: Callable[[], Strategy]
    """The strategy of this tier."""
    model: str = ""
    """The model that runs it; empty = the scenario's main one."""


def difficulty_router(
    tiers: Sequence[Tier], classifier_model: str = "", instruction_tokens: int = 0
) -> Strategy:
    """Classify, then follow the tier's strategy on the tier's model.

    The classifier reads the prompt and says one token; it errs with the rate the problems state. Cost-aware
    cascades: Chen et al. 2023 (FrugalGPT), arXiv 2305.05176; Ong et al. 2024 (RouteLLM), arXiv 2406.18665.
    """
    guess = Branch(
        CLASSIFIER, extra_prompt=instruction_tokens, kind="classify", max_tokens=1, model=classifier_model
    )
    [said] = yield Ask(start=(guess,))
    assert said.answer is not None
    tier = tiers[said.answer]
    return (yield from on_model(tier.start(), tier.model))


def on_model(plan: Strategy, model: str) -> Strategy:
    """The same strategy with all its branches on `model`."""
    ask = next(plan)
    while True:
        started = tuple(replace(branch, model=branch.model or model) for branch in ask.start)
        finished = yield replace(ask, start=started)
        try:
            ask = plan.send(finished)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
