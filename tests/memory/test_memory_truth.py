"""Plans against public start-up logs: printed KV to blocks, refusals.

Reference data: `shared/truth/memory` beside the project, not part of it. The tables go into docs/validation.md.
"""

from __future__ import annotations

import pytest
from memory_rows import TRUTH, Row, args_of, dated, end_to_end, gpu_of, model_of, plan_of, rows, version_of
from validation import section

from kvplan.engines.resolve import resolve
from kvplan.ground.errors import KvplanError
from kvplan.ground.limits import Limit
from kvplan.ground.units import GiB
from kvplan.memory.demand import Demand
from kvplan.memory.forward import Question, answer, capability
from kvplan.memory.layout import kv_layout

pytestmark = pytest.mark.skipif(not TRUTH.is_dir(), reason=f"reference logs are not at {TRUTH}")

# Printed KV GiB -> printed tokens or blocks

EXPLAINED = {
    "v1-h200x2-dsv4-flash": "DeepSeek V4 as versions before 0.32 lay it out is not known, and refused by name",
    "v1-pro5000x8-dsv4-flash": "DeepSeek V4 as versions before 0.32 lay it out is not known, and refused by name",
}
"""Rows that are not reproduced, and why."""


def printed_pairs() -> list[Row]:
    """Rows that print KV GiB and tokens or blocks, from engines that ran or refused."""
    said = [(row, row["printed"]) for row in rows()]
    return [
        r
        for r, p in said
        if p.get("available_kv_gib") and (p.get("kv_cache_tokens") or p.get("num_gpu_blocks"))
    ]


def reproduced(row: Row) -> tuple[bool, str]:
    """Whether the printed figure lies between those of the lowest and the highest pool that print the same GiB."""
    printed = row["printed"]
    what = "kv_cache_tokens" if printed.get("kv_cache_tokens") else "num_gpu_blocks"
    low, high = (_figure(row, what, printed["available_kv_gib"] + off) for off in (-0.005, 0.005))
    return low <= printed[what] <= high, f"{low:,}..{high:,}, printed {printed[what]:,}"


def _figure(row: Row, what: str, gib: float) -> int:
    model, gpu, engine = model_of(row), gpu_of(row), version_of(row)
    args = resolve(args_of(row), model, gpu, engine)
    if what == "num_gpu_blocks":  # refused starts print blocks too, and those do not depend on the length
        args = args.model_copy(update={"max_model_len": 16})
    stages = [int(gib * GiB)] * args.pipeline_parallel_size
    layout = kv_layout(model, args, stages, capability=capability(gpu), version=engine.version)
    return layout.kv_cache_size_tokens if what == "kv_cache_tokens" else layout.num_blocks


def test_printed_gib_gives_printed_blocks() -> None:
    """Blocks and tokens follow from the printed GiB, to the block, on at least 95 % of checkable logs."""
    pairs = printed_pairs()
    lines, misses = [], set()
    for row in pairs:
        try:
            equal, text = reproduced(row)
        except KvplanError:
            equal, text = False, EXPLAINED.get(row["id"], "refused")
        misses |= set() if equal else {row["id"]}
        lines.append(
            f"| {_run(row)} | {row['printed']['available_kv_gib']} | {text} | {'equal' if equal else 'no'} |"
        )
    assert misses == set(EXPLAINED), f"unexplained {misses ^ set(EXPLAINED)}"
    checkable = [row for row in pairs if row["sanity"]["status"] != "unclear" or row["id"] not in misses]
    assert sum(row["id"] not in misses for row in checkable) >= 0.95 * len(checkable)
    assert len(checkable) >= 20
    section("memory-blocks", "\n".join([BLOCKS_HEAD, *lines]))


BLOCKS_HEAD = """## Printed KV memory to printed tokens or blocks

Public start-up logs of vLLM print the memory left for KV to 0.01 GiB, and the tokens or blocks it became. "Equal": the
printed figure lies between kvplan's for the smallest and the largest pool that print the same GiB.

| model, card, version | printed GiB | kvplan for that GiB, and what the log prints | |
|---|---|---|---|"""


def _run(row: Row) -> str:
    """Model, card and engine of a log."""
    version = str(version_of(row)) if dated(row) else "version not told"
    return f"{row['model'].split(' (')[0]}, {row['gpu'].split(' (')[0]} TP{row['tp']}, {version}"


# Refusals

REFUSED = {
    "v0-3090-llama31-8b-29k": Limit.KV_BLOCKS,
    "v1-h100-llama33-70b-fp8-tp1-FAIL": Limit.WEIGHTS,
    "v1-h100-gptoss-120b-util95": Limit.KV_BLOCKS,
    "v1-l40s-qwen35-27b-fp8-util90": Limit.MAX_NUM_SEQS,
}
"""Logs of starts that were refused."""


def test_refusals_are_predicted_and_nothing_else() -> None:
    """Every printed refusal is predicted, for its reason; nothing that started is refused."""
    for row in end_to_end():
        refusal = plan_of(row).refusal
        assert (refusal and refusal.limit) == REFUSED.get(row["id"]), f"{row['id']}: {refusal}"
    assert set(REFUSED) <= {row["id"] for row in end_to_end()}


def test_a_refusal_names_the_length_the_log_names() -> None:
    """0.86 of an L40S left 7.04 GiB where one request of 131,072 tokens needs 8.18: vLLM estimated 112,896."""
    row = next(r for r in rows() if r["id"] == "v1-l40s-qwen35-27b-fp8-util90")
    lengths = []
    for gib in (7.035, 7.045):
        args = args_of(row, max_num_seqs=16, kv_cache_memory_bytes=int(gib * GiB))
        refusal = answer(Question(model_of(row), gpu_of(row), args, version_of(row), Demand())).refusal
        assert refusal is not None
        assert refusal.needed_bytes / GiB == pytest.approx(8.18, abs=0.01)
        lengths.append(refusal.max_model_len)
    assert lengths[0] <= 112_896 <= lengths[1] + 784, f"{lengths}; blocks hold 784 tokens"
