"""Asks vLLM how its adaptive verification prices steps, and how many drafts of a batch it verifies.

    python tests/models/make_verification.py

Writes `tests/fixtures/verification_vllm_0.32.json`: sizes that start-up profiles, cost tables of random curves, and of
random batches the budget of `AdaptiveVerificationManager.get_num_tokens` and the drafts of each request that
`_assign_draft_token_budget` admits (scores all differ, so that nothing hangs on the order of equal ones). Then runs of
many steps in which requests come and go: the budget of each, where every draft's confidence is its place's rate.
"""

from __future__ import annotations

import contextlib
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


class Slot:
    """A host buffer and its copy on the card, which are one here."""

    def __init__(self, rows: int, steps: int) -> None:
        self.gpu = torch.ones(rows, steps)
        self.np = np.ones((rows, steps), np.float32)

    def copy_to_cpu(self) -> None:
        self.np[:] = self.gpu.numpy()


def without_streams() -> None:
    """Let confidences reach the host at once where vLLM waits for their copy."""
    theirs.gpu_sync_allowed = theirs.stream = lambda *_: contextlib.nullcontext()
    torch.cuda.current_stream = lambda *_: None


def story(rng: np.random.Generator) -> dict[str, Any]:
    """One engine, step by step: prompts in one chunk or several, decodes with all drafts or fewer, placeholders."""
    steps, most = int(rng.integers(1, 6)), 12
    rates = np.round(rng.uniform(0.4, 0.95, steps), 4)
    sizes, slope = [*range(1, 33), 40, 48, 96], float(rng.choice([0.3, 0.6]))
    verify = [(n, round(5.0 + slope * n + float(rng.normal(0, 0.05)), 6)) for n in sizes]
    draft = curve(rng, [1, 2, 4, 8, 12])
    tables = theirs.build_cost_tables_from_curves(draft, verify, most, 400, 48)
    states = SimpleNamespace(
        req_id_to_index={}, num_computed_tokens_np=np.zeros(most, np.int32), device="cpu",
        prefill_len=SimpleNamespace(np=np.zeros(most, np.int32)),
    )  # fmt: skip
    one = manager(states, steps, 1 << 20, tables)
    one._stale_confidences = [Slot(most, steps), Slot(most, steps)]
    one._confidence_probs, one._pending_resets = torch.ones(most, steps), []
    one._copy_events = [SimpleNamespace(synchronize=lambda: None, record=lambda: None)] * 2
    one._copy_stream = SimpleNamespace(wait_stream=lambda _: None)
    left: dict[str, int] = {}  # tokens of the prompt to come
    told, number = [], 0
    for _ in range(40):
        for name in [n for n in left if not left[n] and rng.random() < 0.1]:
            del left[name], states.req_id_to_index[name]
        new = []
        while len(left) < most and rng.random() < 0.4:
            name, number = f"r{number}", number + 1
            row = next(i for i in range(most) if i not in states.req_id_to_index.values())
            states.req_id_to_index[name], left[name] = row, int(rng.choice([1, 5, 20]))
            new.append(name)
            one.add_request(row)
        step: dict[str, tuple[int, int]] = {}
        for name in left:
            if rng.random() < 0.05:
                continue  # passed over
            others = min(left[name], int(rng.choice([3, 30]))) or 1
            drafts = 0 if left[name] > 1 or (name in new and rng.random() < 0.5) else steps
            if drafts and rng.random() < 0.1:
                drafts = int(rng.integers(0, steps + 1))
            step[name] = (others, drafts)
            row, whole = states.req_id_to_index[name], others >= left[name]
            states.num_computed_tokens_np[row] = 0
            states.prefill_len.np[row] = 0 if whole else 1 << 20
        if not step:
            continue
        chunks = [name for name, (others, _) in step.items() if others < left[name]]
        budget = None
        if any(drafts for _, drafts in step.values()):
            tokens = {name: others + drafts for name, (others, drafts) in step.items()}
            one.get_num_tokens(tokens, {n: [0] * d for n, (_, d) in step.items() if d})
            budget = one._batch_budget[2]
        rows = torch.tensor([states.req_id_to_index[name] for name in step])
        found = torch.tensor(rates, dtype=torch.float32).repeat(len(step), 1)
        one.record_confidences(found, SimpleNamespace(num_reqs=len(step), idx_mapping=rows))
        told.append({"new": [n for n in new if n in step], "step": step, "chunks": chunks, "budget": budget})
        for name, (others, _) in step.items():
            left[name] = max(0, left[name] - others)
        for name in new:
            if name not in step:  # comes in with a later step
                del left[name], states.req_id_to_index[name]
                one._pending_resets.clear()
    return {"rates": rates.tolist(), "draft_curve": draft, "verify_curve": verify, "steps": told}


def main() -> None:
    rng = np.random.default_rng(32)
    without_streams()
    found = {"cases": [case(rng) for _ in range(40)], "stories": [story(rng) for _ in range(12)]}
    lines = ",\n".join(
        f'"{what}": [\n ' + ",\n ".join(json.dumps(one, separators=(",", ":")) for one in told) + "]"
        for what, told in found.items()
    )
    FIXTURE.write_text(f"{{{lines}}}\n")


if __name__ == "__main__":
    main()
