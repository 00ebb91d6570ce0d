"""Leap equals step by step on random whole runs, to the picosecond: fleets, strategies, priorities, all of it mixed."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from run_scenarios import KINDS, random_run

from kvplan.simulation.simulator import simulate, solve

EXAMPLES = examples(100)
SUMS = (
    "steps", "decode_ticks", "prefill_ticks", "mixed_ticks", "batch_ticks", "num_decodes", "decode_tokens",
    "prefill_tokens", "recomputed_tokens", "preemptions", "peak_used_blocks",
)  # fmt: skip


def told(seed: int, kind: str, step_by_step: bool) -> tuple[dict[str, Any], int]:
    """All that leaping must not change; and how many steps were leapt over."""
    scenario, setups = random_run(Random(f"{kind}{seed}"), kind)
    found: dict[str, Any] = {}
    if kind == "strategies":
        solved = solve(scenario, setups=setups, step_by_step=step_by_step)
        result = solved.result
        found["solved"] = [(s.finish, s.correct) for s in solved.solved]
    else:
        result = simulate(scenario, setups=setups, step_by_step=step_by_step)
    totals = result.totals
    found |= {name: getattr(totals, name) for name in SUMS}
    columns = result.records.columns()
    found["records"] = {name: list(map(str, column)) for name, column in columns.items()}
    found |= {"verdict": result.verdict, "limited_by": result.limited_by, "notes": result.notes}
    return found, totals.leapt_steps


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_leaping_is_stepping(kind: str, seed: int) -> None:
    """Every record, every sum, why requests wait: on engines of any kind of memory, with drafts and without."""
    (leapt, _), (stepped, none) = told(seed, kind, step_by_step=False), told(seed, kind, step_by_step=True)
    assert leapt == stepped
    assert not none
