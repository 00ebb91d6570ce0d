"""API servers that refuse while many are under way (vLLM `check_admission`): who is refused, and who is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.ground.content import Segment
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.admission_control import AdmissionControl, QueueLimits
from kvplan.simulation.bench_report import bench_text
from kvplan.simulation.records import FINISH_REASONS, UNSET
from kvplan.simulation.result import Result
from kvplan.simulation.sim_request import SimRequest
from kvplan.simulation.simulator import simulate, solve

REFUSED = FINISH_REASONS.index("refused")
STATED = {"fixed_us": 8000, "per_sequence_us": 20, "per_context_token_ns": 10, "per_prefill_token_us": 30}

SHORT = {"thinking_tokens": 60, "answer_tokens": 10}
DRAFTS = {"num_speculative_tokens": 2, "speculative_method": "ngram"}
ENGINES = [
    {},
    {"async_scheduling": False},
    {"data_parallel_size": 2},
    DRAFTS,
    DRAFTS | {"async_scheduling": False},
]


def run(workload: dict[str, Any], engine: dict[str, Any], step_by_step: bool = False, **more: Any) -> Result:
    told = {"prompt": 600, "answer": 60, "max_tokens": 60, "num_requests": 60} | workload
    told.setdefault("arrivals", {"kind": "poisson", "rate": 20})
    engine = {"max_model_len": 4096, "num_gpu_blocks_override": 2000, "max_num_seqs": 8} | engine
    scenario = {
        "model": "Qwen/Qwen3-8B",
        "gpu": "h100",
        "step_time": STATED,
        "workload": told,
        "engine": engine,
    }
    return simulate(parse_scenario(scenario | more), step_by_step=step_by_step)


def inside(result: Result) -> int:
    """Most requests that were in the engine or waiting to be read at once, at any arrival that was let in."""
    records = result.records
    kept = records["finish_reason"] != REFUSED
    arrivals, ends = records["engine_arrival"][kept], np.sort(records["finish"][kept])
    order = np.sort(arrivals)
    return max(i + 1 - int(np.searchsorted(ends, t, "right")) for i, t in enumerate(order))


@pytest.mark.parametrize(
    "frontend", ["none", {"request_ms": 3, "per_1k_tokens_ms": 2, "output_us": 40, "send_us": 20}]
)
@pytest.mark.parametrize("limit", [1, 5, 20])
def test_never_more_requests_than_the_limit(limit: int, frontend: Any) -> None:
    """Waiting and running together; one refused has no engine in its record, and all others are answered."""
    result = run({}, {"max_num_queued_reqs": limit}, frontend=frontend)
    refused = result.records["finish_reason"] == REFUSED
    assert inside(result) == limit
    assert 0 < refused.sum() < 60
    assert (result.records["engine_first_token"][refused] == UNSET).all()
    assert result.num_completed + refused.sum() == 60 == len(result.records)
    assert sum(result.notes[n] for n in result.notes if "503" in n) == refused.sum()


def test_a_refusal_is_told() -> None:
    """In the report, the document and the advice; without limits nobody is refused."""
    result = run({}, {"max_num_queued_reqs": 5})
    refused = int((result.records["finish_reason"] == REFUSED).sum())
    assert f"of them refused (HTTP 503):            {refused}" in bench_text(result)
    assert result.to_dict()["finish_reasons"]["refused"] == result.to_dict()["failed"] == refused
    assert any("refused while others were under way" in text for text in result.advice)
    assert "refused" not in bench_text(run({}, {}))


def test_the_queue_of_prompts_is_bounded() -> None:
    """A request comes in while fewer tokens than the limit have no first token: then their sum is below it plus one."""
    limit = 2000
    result = run({"num_requests": 100, "arrivals": {"kind": "all_at_once"}}, {"max_num_queued_tokens": limit})
    assert result.num_completed == 4  # 0, 600, 1,200 and 1,800 are below 2,000
    paced = run({"arrivals": {"kind": "poisson", "rate": 60}}, {"max_num_queued_tokens": limit})
    records = paced.records
    kept = records["finish_reason"] != REFUSED
    come, first = np.sort(records["engine_arrival"][kept]), np.sort(records["first_token"][kept])
    queued = [600 * (i - int(np.searchsorted(first, t, "right"))) for i, t in enumerate(come)]
    assert max(queued) < limit
    assert 0 < (~kept).sum() < 60


def test_prompts_are_counted_by_server_requests_by_all() -> None:
    """Two API servers have a backlog each: twice the prompts come in; the limit of requests is of both together."""
    burst: dict[str, Any] = {"num_requests": 40, "arrivals": {"kind": "all_at_once"}}
    served = {
        (name, n): run(burst, {name: limit, "api_server_count": n}).num_completed
        for name, limit in (("max_num_queued_tokens", 2000), ("max_num_queued_reqs", 6))
        for n in (1, 2)
    }
    assert served["max_num_queued_tokens", 2] == 2 * served["max_num_queued_tokens", 1] == 8
    assert served["max_num_queued_reqs", 2] == served["max_num_queued_reqs", 1] == 6


def test_a_limit_of_nothing_refuses_everybody() -> None:
    result = run({}, {"max_num_queued_reqs": 0})
    assert (result.records["finish_reason"] == REFUSED).all()
    assert result.exit_code == 1


def test_all_replicas_of_a_copy_share_the_limit() -> None:
    """Data-parallel replicas are behind one front; independent copies each have their own."""
    burst: dict[str, Any] = {"num_requests": 40, "arrivals": {"kind": "all_at_once"}}
    assert run(burst, {"max_num_queued_reqs": 6, "data_parallel_size": 2}).num_completed == 6
    assert run(burst, {"max_num_queued_reqs": 6}, replicas=2).num_completed == 12


def test_a_strategys_branch_may_be_refused() -> None:
    """It gives no answer; the others vote."""
    problems = {
        "num_problems": 4, "quality": SHORT, "arrivals": {"kind": "all_at_once"},
        "strategies": [{"strategy": "self_consistency", "n": 4, "max_tokens": 200}],
    }  # fmt: skip
    scenario = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STATED, "problems": problems}
    found = solve(parse_scenario(scenario | {"engine": {"max_num_queued_reqs": 9}}))
    refused = found.records["finish_reason"] == REFUSED
    assert refused.sum() == 16 - 9
    assert len(found.solved) == 4


@given(
    seed=st.integers(0, 10**6),
    reqs=st.sampled_from([None, 2, 9, 30]),
    tokens=st.sampled_from([None, 100, 2500]),
    engine=st.sampled_from(ENGINES),
    closed=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_leaps_and_steps_refuse_the_same(
    seed: int, reqs: int | None, tokens: int | None, engine: dict[str, Any], closed: bool
) -> None:
    """Every record is the same, whoever is refused when."""
    arrivals = {"kind": "closed_loop", "concurrency": 12} if closed else {"kind": "poisson", "rate": 30}
    workload = {"seed": seed, "arrivals": arrivals, "answer": {"kind": "uniform", "low": 1, "high": 90}}
    told = engine | {"max_num_queued_reqs": reqs, "max_num_queued_tokens": tokens}
    runs = [run(workload | {"max_tokens": 100}, told, by_steps) for by_steps in (False, True)]
    assert (runs[0].records.table == runs[1].records.table).all()
    assert "leap" in runs[0].modes[""]


@pytest.mark.parametrize("limits", [{"max_num_queued_tokens": 900}, {"max_num_queued_reqs": 7}])
def test_ranks_in_lockstep_refuse_the_same(limits: dict[str, int]) -> None:
    """Data-parallel ranks of experts leap as one, behind one front."""
    engine = {"data_parallel_size": 2, "enable_expert_parallel": True} | limits
    workload = {
        "arrivals": {"kind": "poisson", "rate": 60},
        "answer": {"kind": "uniform", "low": 1, "high": 60},
    }
    runs = [run(workload, engine, s, model="Qwen/Qwen3-30B-A3B") for s in (False, True)]
    assert (runs[0].records.table == runs[1].records.table).all()
    assert 0 < (runs[0].records["finish_reason"] == REFUSED).sum() < 60


def request(row: int, prompt: int) -> SimRequest:
    return SimRequest(row, (Segment(f"p{row}", prompt),), 10, 10)


def test_vllms_own_count() -> None:
    """`check_admission` by hand: n + 1 > limit refuses, tokens >= limit refuse, a first token ends a prompt's part."""
    gate = AdmissionControl(QueueLimits(3, 100, 1))
    a, b, c, d = (request(i, n) for i, n in enumerate((99, 1, 5, 5)))
    for one in (a, b):
        assert gate.refuses(one, 0) == ""
        gate.come(one)
        gate.enter(one)
    assert gate.refuses(c, 0) == "max_num_queued_tokens 100"
    a.first_token, a.first_delay = 10, 5
    assert gate.refuses(c, 14) == "max_num_queued_tokens 100"
    assert gate.refuses(c, 15) == ""
    gate.come(c)
    gate.enter(c)
    assert gate.refuses(d, 15) == "max_num_queued_reqs 3"
    gate.leave(b, 20)
    assert [gate.refuses(d, now) for now in (19, 20)] == ["max_num_queued_reqs 3", ""]


def test_other_engines_have_no_such_flag() -> None:
    with pytest.raises(KvplanError, match="max_num_queued_reqs is modelled for vLLM only"):
        run({}, {"max_num_queued_reqs": 5}, sglang={})
