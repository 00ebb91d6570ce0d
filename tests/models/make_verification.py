"""Asks vLLM how its adaptive verification prices steps, and how many drafts of a batch it verifies.

    python tests/models/make_verification.py

Writes `tests/fixtures/verification_vllm_0.32.json`: sizes that start-up profiles, cost tables of random curves, and of
random batches the budget of `AdaptiveVerificationManager.get_num_tokens` and the drafts of each request that
`_assign_draft_token_budget` admits (scores all differ, so that nothing hangs on the order of equal ones).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.spec_decode import adaptive_verification as theirs

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "verification_vllm_0.32.json"


def manager(states: Any, steps: int, most_logits: int, tables: Any) -> Any:
    """vLLM's manager without a card's streams and buffers."""
    found = object.__new__(theirs.AdaptiveVerificationManager)
    found.req_states, found.num_speculative_steps = states, steps
    found.num_bonus_tokens, found._max_total_logits = 1, most_logits
    found.cost_tables, found._stale_idx, found._cudagraph_limit = tables, 0, 0
    return found


def curve(rng: np.random.Generator, sizes: list[int]) -> list[tuple[int, float]]:
    """Costs that rise, jump and waver."""
    steps = rng.exponential(1.0, len(sizes)) * rng.integers(0, 2, len(sizes))
    return [
        (n, round(float(c), 6))
        for n, c in zip(sizes, 3.0 + np.cumsum(steps) + rng.normal(0, 0.1, len(sizes)), strict=True)
    ]


def case(rng: np.random.Generator) -> dict[str, Any]:
    """One engine and one batch of it."""
    captured = sorted({int(n) for n in rng.integers(1, 64, 8)})
    most_tokens, most_reqs, steps = (
        int(rng.integers(100, 400)),
        int(rng.integers(8, 33)),
        int(rng.integers(1, 8)),
    )
    one = manager(SimpleNamespace(max_num_batched_tokens=most_tokens), steps, 0, None)
    sizes = [batch["num_tokens"] for batch in one.batches_to_profile(captured)]
    assert sizes[:: theirs._PROFILE_REPLAYS] == sorted(set(sizes))
    verify = curve(rng, sorted(set(sizes)))
    draft = curve(rng, [n for n in captured if n <= most_reqs] or [1])
    tables = theirs.build_cost_tables_from_curves(draft, verify, most_reqs, most_tokens, captured[-1])
    num = int(rng.integers(1, most_reqs + 1))
    drafts = rng.integers(0, steps + 1, num)
    others = np.where(rng.random(num) < 0.2, rng.integers(1, 9, num), 1)
    samples = rng.random(num) < 0.9
    sure = rng.random(num) < 0.1
    confidences = np.round(rng.uniform(0.2, 0.999, (num, steps)), 5).astype(np.float32)
    stale = np.where(sure[:, None], np.float32(1.0), confidences)
    ids = [f"r{i}" for i in range(num)]
    states = SimpleNamespace(
        req_id_to_index={i: n for n, i in enumerate(ids)},
        num_computed_tokens_np=np.zeros(num, np.int32),
        prefill_len=SimpleNamespace(np=np.where(samples, 0, 1 << 20)),
    )
    most_logits = int(rng.choice([1 << 20, num + int(rng.integers(0, 1 + drafts.sum()))]))
    whole = manager(states, steps, most_logits, tables)
    whole._stale_confidences = [SimpleNamespace(np=stale)]
    tokens = {i: int(n) for i, n in zip(ids, others + drafts, strict=True)}
    whole.get_num_tokens(tokens, {i: [0] * int(n) for i, n in zip(ids, drafts, strict=True)})
    budget = whole._batch_budget[2]
    capacities = torch.tensor(drafts, dtype=torch.int32)
    if budget < drafts.sum():
        theirs._assign_draft_token_budget(
            torch.tensor(confidences), torch.arange(num), capacities, budget, steps
        )
    return {
        "captured": captured, "max_num_batched_tokens": most_tokens, "max_num_reqs": most_reqs,
        "profiled": sorted(set(sizes)), "draft_curve": draft, "verify_curve": verify,
        "tables": [np.round(table, 6).tolist() for table in tables],
        "drafts": drafts.tolist(), "others": int(others.sum()), "samples": int(samples.sum()),
        "stale": np.round(stale.astype(np.float64), 5).tolist(),
        "now": np.round(confidences.astype(np.float64), 5).tolist(),
        "most_logits": most_logits, "budget": budget, "admitted": capacities.tolist(),
    }  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(32)
    text = ",\n ".join(json.dumps(case(rng), separators=(",", ":")) for _ in range(40))
    FIXTURE.write_text(f"[{text}]\n")


if __name__ == "__main__":
    main()
