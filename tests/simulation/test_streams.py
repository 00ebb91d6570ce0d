"""Streams that send tokens in groups (`stream_interval`): what clients see is what vLLM's rule sends, read by read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.replica import Replica
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

STATED = {"fixed_us": 8000, "per_sequence_us": 20, "per_context_token_ns": 10, "per_prefill_token_us": 30}
DRAFTS = {"num_speculative_tokens": 3, "speculative_method": "ngram"}
ENGINES = [
    {},
    {"async_scheduling": False},
    DRAFTS,
    DRAFTS | {"async_scheduling": False},
    {"data_parallel_size": 2},
]

SHORT_PROMPTS = {"prompt": 40, "arrivals": {"kind": "poisson", "rate": 60}}
"""Most of what they hold grows: a small pool preempts."""


def run(
    engine: dict[str, Any], workload: dict[str, Any], step_by_step: bool = False, frontend: Any = "none"
) -> Result:
    told = {
        "prompt": 300, "thinking": {"kind": "uniform", "low": 0, "high": 60},
        "answer": {"kind": "uniform", "low": 1, "high": 60}, "max_tokens": 100, "num_requests": 30,
        "arrivals": {"kind": "poisson", "rate": 15},
    }  # fmt: skip
    scenario = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STATED, "frontend": frontend}
    engine = {"max_model_len": 512, "num_gpu_blocks_override": 2000, "max_num_seqs": 12} | engine
    return simulate(
        parse_scenario(scenario | {"workload": told | workload, "engine": engine}), step_by_step=step_by_step
    )


def test_a_stream_alone() -> None:
    """Of 20 tokens the first leaves alone, then 8, 8 and the last 3; the client's other times stay."""
    alone = {"num_requests": 1, "thinking": 0, "answer": 20, "max_tokens": 20}
    told, each = (run({"stream_interval": n}, alone) for n in (8, 1))
    assert told.itl.mean == pytest.approx(each.itl.mean * 19 / 3)
    assert told.itl.median == pytest.approx(8 * each.itl.mean, rel=0.005)
    assert told.engine_itl == each.engine_itl
    for name in ("ttft", "tpot", "e2el"):
        assert told.summaries()[name] == each.summaries()[name]


def vllms_pieces(reads: list[tuple[int, int]], interval: int, total: int) -> Iterator[tuple[int, int]]:
    """(time, tokens so far) of each output that `make_request_output` of vLLM 0.32 does not keep back."""
    sent_tokens_offset = num_output_tokens = 0
    for now, count in reads:
        if count == num_output_tokens:
            continue
        num_output_tokens, finished = count, count == total
        if finished or sent_tokens_offset == 0 or num_output_tokens - sent_tokens_offset >= interval:
            sent_tokens_offset = num_output_tokens
            yield now, num_output_tokens


@pytest.mark.parametrize("interval", [2, 7, 50, 1000])
@pytest.mark.parametrize("engine", [*ENGINES[:4], {"async_scheduling": False, "num_gpu_blocks_override": 50}])
def test_pieces_are_those_of_vllms_rule(
    engine: dict[str, Any], interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every output of every read put through it: as many pieces, as far apart, and the visible token's."""
    reads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    read_step = Replica._read_step

    def noted(self: Replica, now: int) -> None:
        here = [*self.resident]
        read_step(self, now)
        for request in here:
            reads[request.row].append((now, request.num_output_tokens))

    monkeypatch.setattr(Replica, "_read_step", noted)
    result = run(engine | {"stream_interval": interval}, SHORT_PROMPTS, step_by_step=True)
    if "num_gpu_blocks_override" in engine:
        assert result.totals.preemptions
    gaps: list[int] = []
    records = result.records
    rows = zip(
        *(records[n].tolist() for n in ("request_id", "output_tokens", "thinking_tokens", "first_visible")),
        strict=True,
    )
    for row, total, thinking, visible in rows:
        pieces = list(vllms_pieces(reads[row], interval, total))
        gaps += np.diff([at for at, _ in pieces]).tolist()
        seen = next((at for at, count in pieces if count > thinking), None)
        assert visible == (-1 if seen is None else seen)
    assert result.itl.mean == pytest.approx(1e3 * np.mean(gaps) / TICKS_PER_S)
    assert result.itl.p99 == pytest.approx(
        1e3 * np.percentile(gaps, 99, method="higher") / TICKS_PER_S, rel=0.2
    )
    assert result.itl.median == pytest.approx(1e3 * np.median(gaps) / TICKS_PER_S, rel=0.05)


@given(
    seed=st.integers(0, 10**6),
    interval=st.sampled_from([2, 5, 16, 200]),
    engine=st.sampled_from(ENGINES),
    blocks=st.sampled_from([40, 60, 2000]),
)
@settings(max_examples=30, deadline=None)
def test_leaps_and_steps_send_the_same(seed: int, interval: int, engine: dict[str, Any], blocks: int) -> None:
    """Every record and every interval, preempted or not."""
    told = engine | {"stream_interval": interval, "num_gpu_blocks_override": blocks}
    leap, steps = (run(told, SHORT_PROMPTS | {"seed": seed}, by_steps) for by_steps in (False, True))
    assert (leap.records.table == steps.records.table).all()
    assert leap.itl == steps.itl
    assert "leap" in leap.modes[""]


def test_sending_costs_less() -> None:
    """A server sends an eighth of the pieces; making text costs what it did."""
    costs = {"output_us": 30, "send_us": 80}
    burst = {
        "arrivals": {"kind": "all_at_once"},
        "thinking": 0,
        "answer": 200,
        "max_tokens": 200,
        "num_requests": 12,
    }
    load = [run({"stream_interval": n}, burst, frontend=costs).api_server_load for n in (1, 8)]
    assert None not in load
    assert load[1] / load[0] == pytest.approx((30 + 80 / 8) / (30 + 80), rel=0.02)


def test_a_model_beside_sends_as_it_did() -> None:
    """Of two deployments, one in groups: the other's tokens are pieces each."""
    models = {"judge": {"model": "Qwen/Qwen3-8B", "engine": {"stream_interval": 10}}}
    each = {"share": 0.5, "prompt": 100, "answer": 51, "max_tokens": 51}
    classes = {"a": each, "b": each | {"model": "judge"}}
    workload = {"num_requests": 20, "classes": classes, "arrivals": {"kind": "poisson", "rate": 2}}
    base = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": workload, "models": models}
    result = simulate(parse_scenario(base))
    in_groups = int((result.records["class_id"] == 1).sum())
    pieces = 50 * (20 - in_groups) + 5 * in_groups
    assert result.itl.mean == pytest.approx(result.engine_itl.mean * 20 * 50 / pieces)
