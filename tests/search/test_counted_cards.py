"""Cards that are counted, and machines, among those that `recommend` chooses from."""

from __future__ import annotations

from kvplan.scenario.schema import parse_scenario
from kvplan.search.lift import _changes


def test_counted_cards_are_lifted_as_their_ranks() -> None:
    """`2xh100` is two ranks of an h100: what would lift it names the card and twice as many."""
    scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "2xh100", "workload": {"num_requests": 3}})
    flags, changed = zip(*_changes(scenario, ()), strict=True)
    assert "--tensor-parallel-size 4" in flags
    assert {(one.gpu, one.engine.tensor_parallel_size) for one in changed} == {
        ("h100-sxm", 2),
        ("h100-sxm", 4),
    }
