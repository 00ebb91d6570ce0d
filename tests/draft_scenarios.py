"""Random scenarios with drafts for the leap: any drafter, any luck, and what makes steps give fewer drafts than all."""

from __future__ import annotations

from random import Random
from typing import Any

from conformance.random_scenarios import random_tiers as random_tiers
from leap_scenarios import random_scenario

METHODS = ("ngram", "eagle", "mtp", "dspark", "draft_model")


def drafted_scenario(rng: Random) -> dict[str, Any]:
    """Return a scenario as JSON: three in ten have budgets that cut drafts, one in four ends at the model's length."""
    row = random_scenario(rng)
    drafts = rng.randint(1, 4)
    threshold, budget = row["long_prefill_token_threshold"], row["max_num_batched_tokens"]
    row |= {
        "num_speculative_tokens": drafts,
        "spec_method": rng.choice(METHODS),
        "accept_rate": rng.choice([0.0, 0.3, 0.7, 0.9, 1.0]),
        "engine_version": rng.choice(["0.32", "0.32", "0.33"]),
        "long_prefill_token_threshold": threshold and threshold + drafts,
        "max_num_batched_tokens": max(budget, 2) if rng.random() < 0.3 else budget * (1 + drafts) + drafts,
    }
    if (
        row["engine_version"] == "0.33"
        and row["spec_method"] in ("eagle", "mtp", "dspark")
        and rng.random() < 0.3
    ):
        row["disable_lookahead_block_hashes"] = True
    if rng.random() < 0.25:
        _end_at_the_models_length(row)
    return row


def told_scenario(rng: Random) -> dict[str, Any]:
    """The same by methods that need more slots, or none, with keys of `--speculative-config` that schedulers read."""
    row = drafted_scenario(rng)
    row["spec_method"] = rng.choice(["dflash", "medusa", "eagle3", "draft_model", "eagle"])
    if row["spec_method"] in ("dflash", "eagle3", "eagle"):
        row["disable_eagle_block_drop"] = rng.random() < 0.5
    if row["spec_method"] in ("draft_model", "eagle3"):
        row["parallel_drafting"] = rng.random() < 0.5
    if row["spec_method"] == "medusa":
        row.pop("disable_lookahead_block_hashes", None)
    return row


def _end_at_the_models_length(row: dict[str, Any]) -> None:
    """Make the model as short as the longest request; a pool without chunked prefill stays as it is."""
    lengths: dict[str, int] = {}
    longest = 1
    for request in row["requests"]:
        prompt = sum(piece.get("len", 0) or lengths[piece["prompt_of"]] for piece in request["prompt"])
        lengths[request["id"]] = prompt
        longest = max(longest, prompt + max(request["output_len"], request.get("max_tokens", 0)))
    if row["enable_chunked_prefill"] and row["long_prefill_token_threshold"] <= longest:
        row["max_model_len"] = longest
