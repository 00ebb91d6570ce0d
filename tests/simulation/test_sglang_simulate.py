"""The second engine behind the simulator's seam: leap = step by step, exact sums, nothing lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulate import STEP, runs

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import SGLangFlags, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import Setup, StatedStepTime, set_up
from kvplan.simulation.records import FINISH_REASONS
from kvplan.simulation.result import Result
from kvplan.simulation.sim_request import REJECTED, TIMEOUT
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import StepShape

EXAMPLES = examples(100)
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def run(
    workload: dict[str, Any],
    step_by_step: bool = False,
    keys: dict[str, Any] | None = None,
    flags: dict[str, Any] | None = None,
    **engine: Any,
) -> Result:
    """Simulate on an engine whose sizes are stated."""
    spec = parse_scenario({"model": "stated", "step_time": STEP, **(keys or {}), "workload": workload})
    sizes = {"num_gpu_blocks": 64001, "block_size": 1, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
    config = EngineConfig.model_validate({**sizes, "max_model_len": 32768, **engine})
    setup = Setup(
        config, StatedStepTime.of(spec.step_time), 131072.0, 1, sglang=SGLangFlags.model_validate(flags or {})
    )
    return simulate(spec, step_by_step=step_by_step, setups={"": setup})


@st.composite
def sglang_runs(draw: st.DrawFn) -> tuple[Case, dict[str, Any]]:
    """A workload, an engine of as many tokens as the other twin's tests have, and SGLang's own flags."""
    workload, keys, engine = draw(runs())
    if workload["arrivals"]["kind"] == "closed_loop":
        keys["replicas"] = 1  # replicas that end at the same tick hand the next request to either client
    page = draw(st.sampled_from([1, 1, 16]))
    engine["num_gpu_blocks"] = (engine["num_gpu_blocks"] - 1) * 16 // page + 1
    engine["block_size"] = page
    flags = {
        "schedule_policy": draw(
            st.sampled_from(["fcfs", "lof", "lpm", "dfs-weight", "hrrn"])
            if engine["policy"] == "fcfs"
            else st.just("fcfs")
        ),
        "schedule_conservativeness": draw(st.sampled_from([0.05, 0.3, 1.0])),
        "enable_mixed_chunk": draw(st.sampled_from([False, False, True])),
        "prefill_decode_interval": draw(st.sampled_from([0, 0, 3, 40])),
        "radix_eviction_policy": draw(st.sampled_from(["lru", "lfu"])),
    }
    return (workload, keys, engine), flags


@settings(max_examples=EXAMPLES, deadline=None)
@given(sglang_runs())
def test_leap_equals_step_by_step(case: tuple[Case, dict[str, Any]]) -> None:
    """Every record, to the picosecond: times, hits, retractions, recomputed tokens, KV held over time."""
    (workload, keys, engine), flags = case
    leap, step = (run(workload, by_step, keys, flags, **engine) for by_step in (False, True))
    assert step.totals.leaps == 0
    assert (leap.verdict, leap.limited_by) == (step.verdict, step.limited_by)
    a, b = (r.records.table[np.argsort(r.records["request_id"], kind="stable")] for r in (leap, step))
    assert (a == b).all()
    for name in ("steps", "preemptions", "decode_ticks", "prefill_ticks", "mixed_ticks", "batch_ticks",
                 "decode_tokens", "recomputed_tokens", "blocked_seqs_ticks", "blocked_tokens_ticks",
                 "blocked_blocks_ticks"):  # fmt: skip
        assert getattr(leap.totals, name) == getattr(step.totals, name), name
    if (
        TIMEOUT not in leap.records["finish_reason"]
    ):  # else a pass may have begun for an abort that ended the run
        assert leap.totals.peak_used_blocks == step.totals.peak_used_blocks
    assert repr(leap.itl.mean) == repr(step.itl.mean)


@settings(max_examples=30, deadline=None)
@given(sglang_runs())
def test_every_request_ends_once_in_order(case: tuple[Case, dict[str, Any]]) -> None:
    """Conservation: one record each; arrival <= admission <= first token <= first visible token <= end."""
    (workload, keys, engine), flags = case
    found = run(workload, False, keys, flags, **engine)
    records = found.records
    assert len(set(records["request_id"].tolist())) == len(records)
    assert found.verdict == "completed"
    assert "unfinished" not in {FINISH_REASONS[r] for r in records["finish_reason"]}
    done = records.completed
    chain = [records[name][done] for name in ("arrival", "scheduled", "first_token", "finish")]
    assert all((x <= y).all() for x, y in pairwise(chain))
    seen = done & (records["first_visible"] >= 0)
    assert (records["first_visible"][seen] >= records["first_token"][seen]).all()
    assert (records["first_visible"][seen] <= records["finish"][seen]).all()
    assert found.totals.peak_used_blocks <= engine["num_gpu_blocks"] - 1


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("prompt", "output"), [(100, 1), (100, 7), (5000, 300), (16, 33)])
def test_one_request_alone_takes_the_sum_of_its_passes(prompt: int, output: int, overlap: bool) -> None:
    """Its chunks, then one decode per further token, each at its own context; to the picosecond."""
    found = run({"num_requests": 1, "prompt": prompt, "answer": output, "stop": "length",
                 "arrivals": {"kind": "all_at_once"}}, async_scheduling=overlap)  # fmt: skip
    cost = StatedStepTime.of(found.scenario.step_time)
    chunks = [min(2048, prompt - done) for done in range(0, prompt, 2048)]
    expected = sum(cost.ticks(StepShape(n, 0, 0, n, 1, 0.0)) for n in chunks)
    assert found.records["first_token"][0] == expected
    expected += sum(cost.ticks(StepShape(1, 1, prompt + i)) for i in range(1, output))
    assert found.records["finish"][0] == expected


def test_decodes_stand_still_while_a_prompt_runs() -> None:
    """Prefill before decode: one request's decodes wait for all chunks of another's prompt; mixed chunks do not."""
    workload = {"num_requests": 2, "prompt": 4096, "answer": 200, "stop": "length",
                "arrivals": {"kind": "constant", "rate": 2}}  # fmt: skip
    alone = run(workload | {"num_requests": 1})
    apart, mixed = (run(workload, flags={"enable_mixed_chunk": m}) for m in (False, True))
    assert apart.totals.mixed_ticks == 0
    assert mixed.totals.mixed_ticks > 0
    first = [int(r.records["finish"][np.argmin(r.records["request_id"])]) for r in (alone, apart)]
    chunk = StatedStepTime.of(apart.scenario.step_time).ticks(StepShape(2048, 0, 0, 2048, 1, 0.0))
    assert first[1] - first[0] >= 2 * chunk


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 2000), st.integers(2, 40), st.booleans(), st.booleans())
def test_intervals_between_tokens_add_up(
    num_requests: int, prompt: int, output: int, overlap: bool, mixed: bool
) -> None:
    """The sum of all inter-token latencies is the time from first to last token, pauses for prompts included."""
    workload = {"num_requests": num_requests, "prompt": prompt, "answer": output, "stop": "length",
                "arrivals": {"kind": "poisson", "rate": 10}}  # fmt: skip
    found = run(workload, flags={"enable_mixed_chunk": mixed}, async_scheduling=overlap)
    spans = found.records["finish"] - found.records["first_token"]
    assert found.totals.decode_tokens == num_requests * (output - 1)
    assert found.itl.mean * found.totals.decode_tokens == pytest.approx(spans.sum() * 1e3 / TICKS_PER_S)


def test_a_prompt_beyond_the_pool_is_refused() -> None:
    """A prompt that leaves less than the engine's margin runs as one token and is rejected, as SGLang does."""
    found = run(
        {"num_requests": 1, "prompt": 996, "answer": 2, "stop": "length"},
        num_gpu_blocks=1001,
        max_model_len=1000,
    )
    assert found.records["finish_reason"].tolist() == [REJECTED]


def test_a_scenario_names_its_engine() -> None:
    """`sglang:` plans SGLang's pool and overlap loop; what only the other twin can do is refused in one line."""
    data = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "sglang": {}, "workload": {"num_requests": 1}}
    setup = set_up(parse_scenario(data))
    assert setup.config.block_size == 1
    assert setup.config.async_scheduling
    assert setup.config.max_num_seqs == 4096  # SGLang's own default
    for change, message in (
        ({"engine": {"num_speculative_tokens": 2}}, "modelled for vLLM only"),
        ({"disaggregation": {"transfer_bytes_per_s": 1e9}}, "modelled for vLLM only"),
        ({"sglang": {"schedule_policy": "random"}}, "schedule_policy"),
    ):
        with pytest.raises(KvplanError, match=message):
            parse_scenario({**data, **change})


@pytest.mark.parametrize(
    ("keys", "flag"), [({"sglang": {}}, "--max-running-requests"), ({}, "--max-num-seqs")]
)
def test_advice_speaks_the_engines_language(keys: dict[str, Any], flag: str) -> None:
    """What to turn is named as the engine that was simulated names it."""
    data = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP,
        "engine": {"max_num_seqs": 2, "max_model_len": 4096},
        "workload": {"num_requests": 12, "arrivals": {"kind": "all_at_once"}, "prompt": 100, "answer": 50},
    }  # fmt: skip
    advice = simulate(parse_scenario(data | keys)).advice
    assert any(flag in text for text in advice), advice
