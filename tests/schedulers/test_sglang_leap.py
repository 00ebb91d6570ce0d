"""What the simulator drives, leaps spelled out, takes SGLang's own passes, in both loops; leaps decide as passes do."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from conformance.sglang import random_scenarios
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import TESTS
from sglang_conformance import golden, scenarios
from sglang_leap_scenarios import LeapReplay, compare, random_scenario
from syntax_mutants import mutate

from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.schedulers.sglang import leap
from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.sglang.scheduler import SGLangScheduler
from kvplan.schedulers.sglang.stepper import SGLangEngine

Json = dict[str, Any]
EXAMPLES = examples(100)
RANDOM: dict[str, str] = json.loads((TESTS / "conformance/sglang/random_golden.json").read_text())

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
            ended = engine.commit_leap(n).last.finished
            passes |= {step + i: (leap.num_decodes, leap.num_decodes, 0, 0) for i in range(n)}
            num_leaps, step = num_leaps + 1, step + n
            passes[step - 1] = (leap.num_decodes, leap.num_decodes, 0, len(ended))
            finish |= {r.request_id: step - 1 for r in ended}
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


def difference(seed: int, overlap: bool, rng: Random | None = None) -> str:
    """Run a random scenario pass by pass and with leaps; return the first difference, empty if there is none."""
    scenario = SGLangScenario(**random_scenario(seed) | {"async_scheduling": overlap})
    return compare(scenario, LeapReplay(scenario, rng))


@given(st.integers(0, 2**32), st.booleans(), st.booleans())
@example(
    38, False, False
)  # the first touch of the queue's hits splits a node, whose lower half ages from then on
@example(1553, True, False)  # nobody waits any more: the batch is not full
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_workloads(seed: int, overlap: bool, cut: bool) -> None:
    """Every decision; where a leap ends, pools, ratio, queues and the order of evictions too; also when it is cut."""
    assert not difference(seed, overlap, Random(seed) if cut else None)


@pytest.mark.parametrize("mode", ["normal", "overlap"])
@pytest.mark.parametrize("name", scenarios())
def test_golden(name: str, mode: str) -> None:
    """SGLang's own logs, decision for decision, taken in leaps."""
    scenario = SGLangScenario(**scenarios()[name] | {"async_scheduling": mode == "overlap"})
    leaping = LeapReplay(scenario)
    assert leaping.run().sched_sha256 == golden()[name, mode]["sched_sha256"]
    assert leaping.num_leapt or name == "m01_identical"


@pytest.mark.parametrize("seed", RANDOM)
def test_random_scenarios_of_sglang(seed: str) -> None:
    """Random engines over all flags decide in leaps as SGLang itself did."""
    row = random_scenarios.random_scenario(int(seed))
    runs = [LeapReplay(SGLangScenario(**row | {"async_scheduling": a})) for a in (False, True)]
    hashes = [run.run(random_scenarios.MAX_STEPS).sched_sha256[:16] for run in runs]
    assert hashes == RANDOM[seed].split()[::2]


def test_what_leaps() -> None:
    """Passes that try the head in vain and passes kept for decodes are leapt over as others are."""
    leapt = tried = deferred = passes = 0
    for seed in range(100):
        leaping = LeapReplay(SGLangScenario(**random_scenario(seed)))
        passes += len(leaping.run(random_scenarios.MAX_STEPS).steps)
        leapt, tried, deferred = (
            leapt + leaping.num_leapt, tried + leaping.num_tried, deferred + leaping.num_deferred
        )  # fmt: skip
    assert leapt > passes * 2 / 3
    assert tried > leapt / 5
    assert deferred > leapt / 50


def test_priorities_go_with_orders_of_arrival() -> None:
    """SGLang does not start with priorities under an order that looks at its cache; nor is one simulated."""
    with pytest.raises(ValueError, match="under fcfs and lof only"):
        SGLangConfig(
            max_total_tokens=99, context_length=99, enable_priority_scheduling=True, schedule_policy="lpm"
        )


PRIORITIES: Json = {"policy": "priority", "max_model_len": 9000, "priority_preemption_threshold": 0}
DISPLACED = PRIORITIES | {
    "num_gpu_blocks": 5000, "max_num_seqs": 2, "requests": [
        {"id": "a", "prompt": [{"len": 10}], "output_len": 2000, "priority": 5},
        {"id": "b", "prompt": [{"len": 10}], "output_len": 2000, "priority": 0},
        {"id": "c", "prompt": [{"len": 10}], "output_len": 3680, "priority": 3, "arrival_step": 5},
    ],
}  # fmt: skip
"""c may take b's place, and does as soon as less is reckoned with for both."""
WAITED = DISPLACED | {
    "num_gpu_blocks": 5400, "requests": [
        {"id": "a", "prompt": [{"prefix_id": "both", "len": 10}], "output_len": 2000, "priority": 5},
        {"id": "b", "prompt": [{"len": 10}], "output_len": 2000, "priority": 5},
        {"id": "c", "prompt": [{"prefix_id": "both", "len": 10}, {"len": 10}], "output_len": 3680, "arrival_step": 5},
    ], "max_num_seqs": 9,
}  # fmt: skip
"""c enters some hundred passes later, when less is reckoned with for both; it hits what a holds."""
SPENT = PRIORITIES | {
    "num_gpu_blocks": 400, "max_num_batched_tokens": 4, "enable_mixed_chunk": True, "requests": [
        {"id": "x", "prompt": [{"prefix_id": "seen", "len": 20}], "output_len": 1, "priority": 9},
        *({"id": f"r{i}", "prompt": [{"len": 4}], "output_len": 60, "priority": 5, "arrival_step": 9}
          for i in range(4)),
        {"id": "h", "prompt": [{"prefix_id": "seen", "len": 20}, {"len": 5}], "output_len": 200,
         "arrival_step": 9},
    ],
}  # fmt: skip
"""Four that decode are a whole chunk: h is not even looked up."""
PUBLISHED = PRIORITIES | {
    "num_gpu_blocks": 400, "requests": [
        {"id": "a", "prompt": [{"len": 10}], "output_len": 100, "priority": 9},
        {"id": "r", "prompt": [{"prefix_id": "both", "len": 90}, {"len": 10}], "output_len": 20, "priority": 5,
         "arrival_step": 5},
        {"id": "h", "prompt": [{"prefix_id": "both", "len": 90}, {"len": 10}], "output_len": 120,
         "arrival_step": 5},
    ],
}  # fmt: skip
"""In the overlap loop h is refused in the pass before r's prompt is published, and enters with it."""

MUTANTS: dict[str, tuple[Json | None, Any, str, str, str]] = {
    "the last of them ends in the leap": (
        None, leap, "max_passes", "r.last_output - r.num_outputs", "r.last_output - r.num_outputs + 1"),
    "an end by length is not foreseen": (
        None, leap, "max_passes", "r.max_new_tokens - r.num_outputs == left", "False"),
    "who has ended decodes on": (None, leap, "decoding", "scheduler.drop_finished()", "None"),
    "an end lets nobody in": (
        None, SGLangScheduler, "drop_finished", "running.batch_is_full, self.refused = False, None",
        "running.batch_is_full = False"),
    "memory lasts a pass more": (None, leap, "max_passes", "room + 1", "room + len(reqs) + 1"),
    "the ratio stands still": (None, leap, "_decode", "ratio.decay_step()", "None"),
    "pages are not asked for before the last pass": (
        None, leap, "_decode", "before_last + len(reqs) * cache.page_size", "before_last"),
    "the share that is reckoned with never falls": (
        WAITED, leap, "_shortage", "ratio.decay * passes", "0 * passes"),
    "the running requests never write less": (WAITED, leap, "_shortage", "np.cumsum(counted)", "counted"),
    "passes take twice as much": (
        WAITED, leap, "_shortage", "_taken(scheduler, reqs, passes)", "2 * _taken(scheduler, reqs, passes)"),
    "what is held can be evicted": (WAITED, leap, "_unheld_hit", "node is not None and not node.lock_ref",
                                    "node is not None"),
    "a page is taken a pass early": (WAITED, leap, "_taken", "np.cumsum(each) - each", "np.cumsum(each)"),
    "nobody is displaced": (DISPLACED, leap, "passes_refused", "adder.may_displace(head, r)", "False"),
    "a spent budget tries the head": (SPENT, leap, "passes_refused", "adder.is_spent", "False"),
    "the head comes in after the leap": (
        None, leap, "plan", "passes_refused(scheduler, reqs, num_passes)", "num_passes"),
    "passes kept for decodes have no end": (
        None, leap, "plan", "min(num_passes, scheduler.decodes_before_prefill)", "num_passes"),
    "passes kept for decodes are not counted": (
        None, leap, "take_passes", "scheduler.decodes_before_prefill -= deferred", "pass"),
    "a try touches nothing": (None, leap, "_decode_between_tries", "scheduler.num_allocatable() > 0", "False"),
    "the queue's hits are touched once": (None, leap, "_decode_between_tries", "tree.num_nodes > num_nodes", "False"),
    "tries are not counted": (
        None, leap, "_decode_between_tries", "policy.pass_over(number - last - 1)", "None"),
    "newcomers are not tried": (None, SGLangScheduler, "_enqueue", "self.refused = None", "pass"),
    "a prompt just published is not hit": (
        PUBLISHED, SGLangScheduler, "_process_batch_result",
        "self.refused = None", "pass"),
}  # fmt: skip
"""What a wrong rule says -> the case that shows it, None = random ones do; the rule."""


def differs(row: Json | None) -> bool:
    """Whether a case, or any of many random workloads, shows a difference in either loop."""
    rows = [random_scenario(seed) for seed in range(150)] if row is None else [row]
    for scenario in (SGLangScenario(**r | {"async_scheduling": a}) for r in rows for a in (False, True)):
        try:
            if compare(scenario, LeapReplay(scenario)):
                return True
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case notices each wrong rule, and the right one passes it."""
    row, *mutant = MUTANTS[name]
    assert row is None or not differs(row)
    mutate(monkeypatch, *mutant)
    assert differs(row)
