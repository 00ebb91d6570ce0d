"""What the simulator drives, leaps spelled out, takes SGLang's own passes, in both loops."""

from __future__ import annotations

import pytest
from sglang_conformance import golden, scenarios

from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.schedulers.sglang.stepper import SGLangEngine

LEFT_OUT = ("g08d", "m08", "m09", "g02h", "g02i")
"""Equal first tokens of strangers; refused and aborted requests, which the log counts apart; known lengths."""
NAMES = [name for name in scenarios() if not name.startswith(LEFT_OUT)]
Pass = tuple[int, int, int, int]
"""Requests in it, tokens, retracted or preempted, ended."""


def drive(scenario: SGLangScenario) -> tuple[dict[int, Pass], int]:
    """Run a scenario pass by pass, leaping where the engine can; return every pass and the number of leaps."""
    engine, finish, passes = SGLangEngine(scenario.engine_config), dict[str, int](), dict[int, Pass]()
    pending, step, num_leaps, was_idle = list(scenario.requests), 0, 0, False
    while True:
        due = {r.id: max([finish[i] + 1 + r.delay_steps for i in r.follows], default=r.arrival_step)
               for r in pending if all(i in finish for i in r.follows)}  # fmt: skip
        if was_idle and not engine.has_requests():
            if not pending:
                return passes, num_leaps
            step = max(step, min(due.values()))
        ready = sorted((r for r in pending if due.get(r.id, step + 1) <= step), key=lambda r: due[r.id])
        for request in ready:
            pending.remove(request)
            engine.add_request(scenario.make_request(request, step))
        leap = engine.plan_leap()
        if leap is not None:
            later = [n - step for i, n in due.items() if n > step]
            n = min([leap.max_steps, *later])
            engine.commit_leap(n)
            passes |= {step + i: (leap.num_decodes, leap.num_decodes, 0, 0) for i in range(n)}
            num_leaps, step = num_leaps + 1, step + n
            continue
        planned = engine.schedule()
        ended = engine.update_from_output().finished
        finish |= {r.request_id: step for r in ended}
        size = planned.num_decodes + len(planned.chunks)
        passes[step] = (size, planned.num_tokens, len(planned.preempted), len(ended))
        was_idle = not size
        step += 1


@pytest.mark.parametrize("mode", ["normal", "overlap"])
@pytest.mark.parametrize("name", NAMES)
def test_leaps_take_sglangs_passes(name: str, mode: str) -> None:
    """Batch, tokens, retractions and ends of every pass of the log, and as many passes as it has."""
    log = golden()[name, mode]
    passes, num_leaps = drive(SGLangScenario(**scenarios()[name] | {"async_scheduling": mode == "overlap"}))
    where = {column: i for i, column in enumerate(log["columns"])}
    theirs = {
        row[0]: tuple(row[where[c]] for c in ("n_sched", "n_tokens", "n_retracted", "n_finished"))
        for row in log["rows"]
        if row[where["mode"]] != "I"
    }
    assert {step: passes.get(step) for step in theirs} == theirs
    assert sum(size > 0 for size, *_ in passes.values()) == sum(
        log["summary"][key] for key in ("prefill_passes", "decode_passes")
    )
    assert num_leaps or name == "m01_identical"  # three tokens each: nothing to leap over
