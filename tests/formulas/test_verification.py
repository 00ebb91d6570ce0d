"""Drafts that adaptive verification verifies, beside vLLM's own code (`tests/models/make_verification.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from places import FIXTURES

from kvplan.formulas import verification
from kvplan.formulas.verification import admitted, cost_table, draft_budget, profiled_sizes
from kvplan.schedulers.vllm.adaptive_verification import AdaptiveVerification, VerificationCosts
from kvplan.schedulers.vllm.output import SchedulerOutput

TOLD = json.loads((FIXTURES / "verification_vllm_0.32.json").read_text())
CASES: list[dict[str, Any]] = TOLD["cases"]


def budget_of(case: dict[str, Any], rule: Callable[..., int] = draft_budget) -> int:
    drafts = np.array(case["drafts"])
    stale = np.cumprod(np.float32(case["stale"]).astype(np.float64), axis=1)
    survival = stale[np.arange(stale.shape[1])[None, :] < drafts[:, None]]
    most = min(int(drafts.sum()), max(0, case["most_logits"] - len(drafts)))
    draft, verify = tables_of(case)
    best = np.sort(survival)[::-1][:most]
    return rule(best, case["samples"], case["others"], draft[len(drafts)], verify)


def tables_of(case: dict[str, Any]) -> tuple[verification.Floats, verification.Floats]:
    limit = case["captured"][-1]
    draft = cost_table(case["draft_curve"], case["max_num_reqs"], limit)
    return draft, cost_table(case["verify_curve"], case["max_num_batched_tokens"], limit)


def test_steps_are_priced_as_vllm_prices_them() -> None:
    for case in CASES:
        assert profiled_sizes(case["captured"], case["max_num_batched_tokens"]) == case["profiled"]
        for mine, theirs in zip(tables_of(case), case["tables"], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_as_many_drafts_are_verified() -> None:
    assert [budget_of(case) for case in CASES] == [case["budget"] for case in CASES]
    whole = [sum(case["drafts"]) for case in CASES]
    cut = sum(0 < case["budget"] < n for case, n in zip(CASES, whole, strict=True))
    assert cut > len(CASES) / 3


def test_the_best_drafts_are() -> None:
    for case in CASES:
        survival = np.cumprod(np.float32(case["now"]).astype(np.float64), axis=1)
        found = admitted(survival, np.array(case["drafts"]), case["budget"])
        assert found.tolist() == case["admitted"]


def test_of_equal_drafts_the_first_places_come_first() -> None:
    survival = np.array([[0.9, 0.5, 0.2]] * 3)
    assert admitted(survival, np.array([3, 3, 1]), 4).tolist() == [2, 1, 1]
    assert admitted(survival, np.array([3, 3, 1]), 0).tolist() == [0, 0, 0]


def budgets_of(story: dict[str, Any], late: bool = True) -> list[int | None]:
    """The twin's, step by step; `late`: whoever came in with the step before counts as sure."""
    draft, verify = cost_table(story["draft_curve"], 12, 48), cost_table(story["verify_curve"], 400, 48)
    survival = tuple(np.cumprod(story["rates"]))
    verification = AdaptiveVerification(VerificationCosts(draft, verify, 1 << 20), survival)
    found: list[int | None] = []
    came_before: list[str] = []
    for told in story["steps"]:
        output = SchedulerOutput(1, {name: sum(both) for name, both in told["step"].items()})
        output.num_draft_tokens = {name: drafts for name, (_, drafts) in told["step"].items() if drafts}
        output.admitted, output.prefill_chunks = dict.fromkeys(told["new"], 0), set(told["chunks"])
        verified = verification.verified(output, came_before) if output.num_draft_tokens else None
        found.append(None if verified is None else sum(verified.values()))
        came_before = told["new"] if late else []
    return found


def test_confidences_come_two_steps_late() -> None:
    """As vLLM's own manager decides over many steps, requests coming and going."""
    for story in TOLD["stories"]:
        assert budgets_of(story) == [step["budget"] for step in story["steps"]]
    at_once = [budgets_of(story, late=False) for story in TOLD["stories"]]
    assert at_once != [[step["budget"] for step in story["steps"]] for story in TOLD["stories"]]


@pytest.mark.parametrize("wrong", [
    lambda survival, samples, others, draft, verify: draft_budget(survival, samples, others + 1, draft, verify),
    lambda survival, samples, others, draft, verify: draft_budget(survival, samples, others, 0.0, verify),
    lambda survival, samples, others, draft, verify: draft_budget(survival, 0, others, draft, verify),
    lambda survival, samples, others, draft, verify: draft_budget(survival[1:], samples, others, draft, verify),
])  # fmt: skip
def test_a_wrong_price_shows(wrong: Callable[..., int]) -> None:
    assert [budget_of(case, wrong) for case in CASES] != [case["budget"] for case in CASES]
