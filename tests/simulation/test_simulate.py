"""The simulator obeys its laws: exact sums, queueing theory, leap = step by step, nothing faster than the memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.simulation.acceptance import uniforms
from kvplan.simulation.deploy import Setup, StatedStepTime
from kvplan.simulation.in_flight import series, steps_to_cover
from kvplan.simulation.records import FINISH_REASONS
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import StepShape

STEP = {"fixed_us": 8000, "per_sequence_us": 20, "per_context_token_ns": 65, "per_prefill_token_us": 30}


def scenario(workload: dict[str, Any], **keys: Any) -> Scenario:
    return parse_scenario({"model": "stated", "step_time": STEP, **keys, "workload": workload})


def setup(spec: Scenario, **engine: Any) -> Setup:
    sizes = {
        "num_gpu_blocks": 4001,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "max_model_len": 32768,
    }
    config = EngineConfig.model_validate({**sizes, **engine})
    return Setup(config, StatedStepTime.of(spec.step_time), 131072.0, 1)


def run(
    workload: dict[str, Any], step_by_step: bool = False, keys: dict[str, Any] | None = None, **engine: Any
) -> Result:
    spec = scenario(workload, **(keys or {}))
    setups = {name: setup(spec, **engine) for name in spec.deployments}
    return simulate(spec, step_by_step=step_by_step, setups=setups)


# --- one request, two requests ------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("prompt", "output"), [(100, 1), (100, 7), (5000, 300), (16, 33)])
def test_one_request_alone_takes_the_sum_of_its_steps(prompt: int, output: int, is_async: bool) -> None:
    """Its chunks, then one decode per further token, each at its own context; to the picosecond."""
    found = run({"num_requests": 1, "prompt": prompt, "answer": output, "stop": "length",
                 "arrivals": {"kind": "all_at_once"}}, async_scheduling=is_async)  # fmt: skip
    cost = StatedStepTime.of(found.scenario.step_time)
    chunks = [min(2048, prompt - done) for done in range(0, prompt, 2048)]
    expected = sum(cost.ticks(StepShape(n, 0, 0, n, 1, 0.0)) for n in chunks)
    assert found.records["first_token"][0] == expected
    expected += sum(cost.ticks(StepShape(1, 1, prompt + i)) for i in range(1, output))
    assert found.records["finish"][0] == expected
    assert "\n" not in repr(found)
    assert "1 of 1 requests completed" in repr(found)


@given(st.integers(1, 10**12), st.integers(0, 10**9), st.integers(1, 10**17))
def test_steps_to_cover_is_exact(ticks: int, slope: int, gap: int) -> None:
    """The smallest number of steps whose sum reaches the gap."""
    n = steps_to_cover(ticks, slope, gap)
    assert series(ticks, slope, n) >= gap > series(ticks, slope, n - 1)


def test_an_arrival_waits_for_the_end_of_the_step() -> None:
    """Sync: scheduled when the running step ends. Async: one full step later (vLLM schedules one step ahead)."""
    arrivals = {"kind": "constant", "rate": 4}
    keys = {"num_requests": 2, "prompt": 16, "answer": 100, "stop": "length", "arrivals": arrivals}
    for is_async in (False, True):
        found = run(keys, async_scheduling=is_async)
        cost = StatedStepTime.of(found.scenario.step_time)
        ends = np.cumsum([cost.ticks(StepShape(16, 0, 0, 16, 1, 0.0))]
                         + [cost.ticks(StepShape(1, 1, 16 + i)) for i in range(1, 99)])  # fmt: skip
        boundary = ends[np.searchsorted(ends, TICKS_PER_S // 4)]
        second = np.argmax(found.records["request_id"] == 1)
        assert found.records["scheduled"][second] == boundary
        mixed = cost.ticks(
            StepShape(17, 1, 16 + int(np.searchsorted(ends, boundary)) + 1 + is_async, 16, 1, 0.0)
        )
        ahead = cost.ticks(StepShape(1, 1, 16 + int(np.searchsorted(ends, boundary)) + 1)) if is_async else 0
        assert found.records["first_token"][second] == boundary + ahead + mixed


# --- leap equals step by step -------------------------------------------------------------------

LENGTHS = st.one_of(
    st.integers(1, 300),
    st.builds(lambda m, s: {"kind": "lognormal", "median": m, "sigma": s, "high": 900},
              st.integers(2, 300), st.floats(0, 1.2)),
)  # fmt: skip
ARRIVALS = st.one_of(
    st.builds(lambda r, b: {"kind": "poisson", "rate": r, "burstiness": b}, st.floats(0.5, 50), st.floats(0.2, 5)),
    st.builds(lambda c, p: {"kind": "closed_loop", "concurrency": c, "pause_s": p},
              st.integers(1, 12), st.sampled_from([0.0, 0.3])),
    st.just({"kind": "all_at_once"}),
)  # fmt: skip


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A workload, scenario keys and an engine, small and hostile."""
    workload = {
        "num_requests": draw(st.integers(1, 25)), "seed": draw(st.integers(0, 1000)),
        "arrivals": draw(ARRIVALS), "prompt": draw(LENGTHS), "thinking": draw(st.one_of(st.just(0), LENGTHS)),
        "answer": draw(LENGTHS), "stop": draw(st.sampled_from(["eos", "length", "never"])),
        "max_tokens": draw(st.sampled_from([None, 40, 700])),
        "shared_prefix_tokens": draw(st.sampled_from([0, 40, 130])), "shared_prefix_groups": draw(st.integers(1, 3)),
        "timeout_s": draw(st.sampled_from([None, None, 2.0])), "abort_share": draw(st.sampled_from([0.0, 0.4])),
        "abort_after_s": 1.0, "priority": 0,
    }  # fmt: skip
    if workload["stop"] == "never" and workload["max_tokens"] is None:
        workload["max_tokens"] = 700
    if draw(st.booleans()):
        workload["session"] = {"turns": 3, "message": 20, "pause_s": draw(st.sampled_from([0.0, 0.5])),
                               "keep_thinking": draw(st.booleans())}  # fmt: skip
    keys = {"replicas": draw(st.sampled_from([1, 1, 2])), "router": draw(st.sampled_from(["round_robin", "least_kv"])),
            "max_queue": draw(st.sampled_from([None, 6]))}  # fmt: skip
    engine = {
        "num_gpu_blocks": draw(st.sampled_from([40, 120, 600])), "max_num_seqs": draw(st.sampled_from([2, 8, 64])),
        "max_num_batched_tokens": draw(st.sampled_from([64, 256, 2048])), "max_model_len": 2048,
        "async_scheduling": draw(st.booleans()), "enable_prefix_caching": draw(st.booleans()),
        "policy": draw(st.sampled_from(["fcfs", "priority"])),
    }  # fmt: skip
    return workload, keys, engine


@settings(max_examples=120, deadline=None)
@given(runs())
def test_leap_equals_step_by_step(case: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    """Every record, to the picosecond: times, hits, preemptions, recomputed tokens, KV held over time."""
    workload, keys, engine = case
    leap, step = (run(workload, by_step, keys, **engine) for by_step in (False, True))
    assert step.totals.leaps == 0
    assert leap.verdict == step.verdict
    a, b = (r.records.table[np.argsort(r.records["request_id"], kind="stable")] for r in (leap, step))
    assert (a == b).all()
    for name in ("steps", "preemptions", "decode_ticks", "prefill_ticks", "mixed_ticks", "batch_ticks",
                 "decode_tokens", "recomputed_tokens", "peak_used_blocks"):  # fmt: skip
        assert getattr(leap.totals, name) == getattr(step.totals, name), name
    assert repr(leap.itl.mean) == repr(step.itl.mean)


@settings(max_examples=60, deadline=None)
@given(runs())
def test_every_request_ends_once_in_order(
    case: tuple[dict[str, Any], dict[str, Any], dict[str, Any]],
) -> None:
    """Conservation: one record each; arrival <= admission <= first token <= first visible token <= end."""
    workload, keys, engine = case
    found = run(workload, False, keys, **engine)
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
    assert (seen == (done & (records["output_tokens"] > records["thinking_tokens"]))).all()
    assert found.totals.peak_used_blocks <= engine["num_gpu_blocks"] - 1


def test_thousands_of_leaps_equal_their_steps() -> None:
    """One long run under pressure, sync and async."""
    workload = {"num_requests": 60, "arrivals": {"kind": "poisson", "rate": 3}, "answer": 40, "seed": 5,
                "prompt": {"kind": "lognormal", "median": 300, "sigma": 0.7, "high": 3000},
                "thinking": {"kind": "lognormal", "median": 400, "sigma": 0.8, "high": 4000}}  # fmt: skip
    for is_async in (False, True):
        leap, step = (
            run(workload, by, num_gpu_blocks=700, async_scheduling=is_async) for by in (False, True)
        )
        assert leap.totals.preemptions > 30
        assert (leap.records.table == step.records.table).all()
        assert leap.itl.p99 == pytest.approx(step.itl.p99, rel=0.01)
        assert leap.itl.median == pytest.approx(step.itl.median, rel=0.01)


# --- queueing theory ----------------------------------------------------------------------------


def test_light_load_has_no_queueing() -> None:
    """At one request per 1,000 service times nobody meets anybody: every TTFT is the prefill alone."""
    found = run({"num_requests": 300, "prompt": 64, "answer": 20, "stop": "length",
                 "arrivals": {"kind": "poisson", "rate": 0.005}})  # fmt: skip
    ttft = found.records["first_token"] - found.records["arrival"]
    assert (found.records["scheduled"] == found.records["arrival"]).all()
    assert set(ttft.tolist()) == {8_000_000_000 + 64 * 30_000_000}


def test_one_sequence_at_a_time_is_m_d_1() -> None:
    """max_num_seqs = 1 and equal requests: the mean wait is Pollaczek-Khinchine's rho s / (2 (1 - rho))."""
    service = 0.01
    keys = {"step_time": {"fixed_us": 1000}}
    for rho in (0.3, 0.7):
        workload = {"num_requests": 20_000, "prompt": 8, "answer": 10, "stop": "length",
                    "arrivals": {"kind": "poisson", "rate": rho / service}}  # fmt: skip
        found = run(workload, False, keys, max_num_seqs=1)
        waits = found.records.seconds("scheduled") - found.records.seconds("arrival")
        assert waits.mean() == pytest.approx(rho * service / (2 * (1 - rho)), rel=0.08)


def test_independent_slots_are_m_m_c() -> None:
    """Steps that cost the same whatever the batch: c slots, geometric lengths; the wait is Erlang's C formula."""
    c, mean_tokens, step_s = 4, 200, 0.001
    u = (np.arange(400) + 0.5) / 400
    lengths = np.maximum(1, np.rint(-mean_tokens * np.log(1 - u))).astype(int)
    service = lengths.mean() * step_s
    rho = 0.75
    workload = {"num_requests": 25_000, "prompt": 1, "stop": "length",
                "answer": {"kind": "empirical", "values": lengths.tolist()},
                "arrivals": {"kind": "poisson", "rate": rho * c / service}}  # fmt: skip
    found = run(workload, False, {"step_time": {"fixed_us": 1000}}, max_num_seqs=c)
    waits = found.records.seconds("scheduled") - found.records.seconds("arrival")
    a = rho * c
    tail = a**c / np.prod(np.arange(1, c + 1)) / (1 - rho)
    erlang_c = tail / (sum(a**k / np.prod(np.arange(1, k + 1)) for k in range(c)) + tail)
    assert waits.mean() == pytest.approx(erlang_c * service / (c * (1 - rho)), rel=0.08)


def test_littles_law() -> None:
    """Requests in the batch = throughput x time in the batch, whatever the load."""
    found = run({"num_requests": 3000, "answer": 60, "prompt": 50, "stop": "length",
                 "arrivals": {"kind": "poisson", "rate": 20}})  # fmt: skip
    records = found.records
    inside = (records["finish"] - records["scheduled"]).sum()
    assert found.totals.batch_ticks == pytest.approx(inside, rel=1e-9)


def test_nothing_is_faster_than_the_memory() -> None:
    """A lower bound: every decoded token's context must be read, and every step reads the weights."""
    found = run({"num_requests": 200, "thinking": 800, "answer": 100, "arrivals": {"kind": "all_at_once"}})
    t, us = found.totals, 1_000_000
    assert t.busy_ticks >= t.steps * 8000 * us + t.prefill_tokens * 30 * us
    contexts = found.records["kv_token_us"]
    assert (contexts >= (found.records["finish"] - found.records["first_token"]) // us * 512 // 1000).all()


# --- what the workload asks for -----------------------------------------------------------------


def test_same_seed_same_bytes() -> None:
    workload = {"num_requests": 80, "thinking": {"kind": "lognormal", "median": 200, "sigma": 1}, "seed": 11}
    a, b, c = run(workload), run(workload), run({**workload, "seed": 12})
    assert a.records.table.tobytes() == b.records.table.tobytes()
    assert a.to_dict() == b.to_dict()
    assert a.records.table.tobytes() != c.records.table.tobytes()


def test_closed_loop_keeps_its_concurrency() -> None:
    """Never more requests in the system than clients, and without pauses never fewer until the end."""
    found = run({"num_requests": 60, "answer": 30, "arrivals": {"kind": "closed_loop", "concurrency": 7}})
    assert found.to_dict()["max_concurrent_requests"] == 7
    starts = np.sort(found.records["arrival"])[7:]
    assert set((starts - 1).tolist()) <= set(found.records["finish"].tolist())


def test_clients_who_pause_begin_after_a_pause() -> None:
    """Not all at the same moment: over a pause's length, the number of those who have begun grows as it should."""
    arrivals = {"kind": "closed_loop", "concurrency": 400, "pause_s": 60}
    starts = (
        np.sort(run({"num_requests": 400, "answer": 5, "arrivals": arrivals}).records["arrival"])
        / TICKS_PER_S
    )
    assert starts.mean() == pytest.approx(60, rel=0.2)
    assert (starts < 60).mean() == pytest.approx(1 - np.exp(-1), abs=0.08)


def test_turns_follow_their_answers() -> None:
    """A turn arrives when the one before is answered and its pause is over, and hits what was said."""
    session = {"turns": 4, "message": 30, "pause_s": 2, "pause": "constant"}
    found = run({"num_requests": 5, "prompt": 200, "answer": 50, "session": session})
    records = found.records
    assert len(records) == 20
    by_id = {int(r): i for i, r in enumerate(records["request_id"])}
    for i, turn in enumerate(records["turn"]):
        if turn:
            mates = records["session"] == records["session"][i]
            before = np.flatnonzero(mates & (records["turn"] == turn - 1))[0]
            assert records["arrival"][i] == records["finish"][before] + 2 * TICKS_PER_S
            known = records["prompt_tokens"][before] + records["output_tokens"][before] - 1
            assert records["hit_tokens"][i] == known // 16 * 16
    assert len(by_id) == 20


def test_clients_leave() -> None:
    """At their time-out: the record says so, and its tokens count as discarded."""
    found = run({"num_requests": 6, "answer": 2000, "timeout_s": 3, "arrivals": {"kind": "all_at_once"}})
    records = found.records
    assert {FINISH_REASONS[r] for r in records["finish_reason"]} == {"timeout"}
    late = records["finish"] - records["arrival"] - 3 * TICKS_PER_S
    assert ((late >= 0) & (late < TICKS_PER_S // 50)).all()
    assert (records["discarded_tokens"] == records["output_tokens"]).all()
    assert found.exit_code == 1


def test_a_full_queue_refuses() -> None:
    found = run({"num_requests": 30, "answer": 50, "arrivals": {"kind": "all_at_once"}}, False, {"max_queue": 4},
                max_num_seqs=2)  # fmt: skip
    reasons = [FINISH_REASONS[r] for r in found.records["finish_reason"]]
    assert reasons.count("refused") == 26
    assert reasons.count("stop") == 4


def test_runaways_run_to_their_limit() -> None:
    found = run({"num_requests": 3, "thinking": 400, "answer": 5, "stop": "never", "max_tokens": 300})
    assert set(found.records["output_tokens"].tolist()) == {300}
    assert (found.records["first_visible"] == -1).all()
    assert any("cut while still thinking" in text for text in found.advice)


# --- it always ends -----------------------------------------------------------------------------


def test_what_never_fits_is_rejected_with_figures() -> None:
    """It names the blocks it needs and those there are, and does not block the others."""
    classes = {"big": {"prompt": 900, "answer": 40}, "small": {"prompt": 20, "answer": 5}}
    found = run(
        {"num_requests": 20, "classes": classes, "arrivals": {"kind": "all_at_once"}}, num_gpu_blocks=41
    )
    reasons = {(int(c), FINISH_REASONS[r]) for c, r in
               zip(found.records["class_id"], found.records["finish_reason"], strict=True)}  # fmt: skip
    assert reasons == {(0, "rejected"), (1, "stop")}
    assert any("needs 59 blocks for its 939 tokens of KV; the pool has 40" in note for note in found.notes)
    assert found.exit_code == 1


def test_what_a_hybrid_never_admits_is_rejected_too() -> None:
    """Sliding windows: the need is only known to the engine; a stuck head is taken out with a note."""
    groups = (KVCacheGroup(kind="full"), KVCacheGroup(kind="sliding_window", window=64))
    found = run({"num_requests": 3, "prompt": 900, "answer": 40, "arrivals": {"kind": "all_at_once"}},
                num_gpu_blocks=41, kv_cache_groups=groups)  # fmt: skip
    assert {FINISH_REASONS[r] for r in found.records["finish_reason"]} == {"rejected"}
    assert any(note.startswith("stuck: request 0") for note in found.notes)


def test_thrash_ends_with_a_verdict() -> None:
    """More tokens recomputed than the stated multiple of useful ones: the run stops and says so."""
    workload = {"num_requests": 400, "prompt": 200, "thinking": 1500, "answer": 10,
                "arrivals": {"kind": "all_at_once"}}  # fmt: skip
    found = run(workload, False, {"limits": {"thrash_ratio": 0.2}}, num_gpu_blocks=301)
    assert found.verdict == found.limited_by == "thrash"
    assert found.exit_code == 1
    assert len(found.records) == 400


@pytest.mark.parametrize("by_step", [False, True])
def test_the_horizon_ends_a_run(by_step: bool) -> None:
    """What has not finished is counted as unfinished, what has not arrived is not counted."""
    found = run({"num_requests": 100, "answer": 4000, "arrivals": {"kind": "constant", "rate": 2}}, by_step,
                {"limits": {"horizon_s": 9.9}})  # fmt: skip
    assert found.verdict == "horizon"
    assert found.duration_s == 9.9
    assert len(found.records) == 20
    assert {FINISH_REASONS[r] for r in found.records["finish_reason"]} == {"unfinished"}
    assert (
        found.records["output_tokens"].sum() == found.totals.decode_tokens + found.records["first_token"].size
    )


@pytest.mark.parametrize("step_by_step", [False, True])
@pytest.mark.parametrize("router", ["round_robin", "least_kv"])
def test_the_wall_clock_ends_a_run_of_thousands_of_replicas(step_by_step: bool, router: str) -> None:
    """Setting them up, choosing among them and stepping: each falls under the limit."""
    told = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": {"fixed_us": 8000}, "replicas": 4096, "router": router,
        "limits": {"wall_clock_s": 0.5},
        "workload": {"num_requests": 20_000, "arrivals": {"kind": "all_at_once"}, "prompt": 100, "answer": 2000},
    }  # fmt: skip
    begun = time.monotonic()
    with suppress(KvplanError):
        assert simulate(told, step_by_step=step_by_step).verdict == "wall_clock"
    assert time.monotonic() - begun < 10


def test_replicas_that_memory_cannot_step_are_refused() -> None:
    """Each block is an object: the bound is told before gigabytes are gone."""
    told = {
        "model": "Qwen/Qwen3-8B",
        "gpu": "h100",
        "replicas": 3,
        "engine": {"num_gpu_blocks_override": 9_000_000},
    }
    with pytest.raises(KvplanError, match="replicas of 9,000,000 blocks, step by step: 20,000,000 blocks"):
        simulate(told, step_by_step=True)


def test_the_wall_clock_ends_a_run() -> None:
    found = run({"num_requests": 3000, "answer": 500, "arrivals": {"kind": "all_at_once"}}, True,
                {"limits": {"wall_clock_s": 0.2}})  # fmt: skip
    assert found.verdict == "wall_clock"


def test_ctrl_c_prints_what_was_simulated() -> None:
    """Exit code 130, the report on stdout; the signal comes with the first line of progress."""
    words = ["simulate", "chat", "--set", "workload.num_requests=4000", "--step-by-step"]
    root = ROOT
    child = subprocess.Popen([sys.executable, "-m", "kvplan", *words], cwd=root, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stderr is not None
    first = child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert first.startswith("10% 400 of 4,000 requests")
    assert child.returncode == 130
    assert "Serving Benchmark Result" in out
    assert "interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("is_async", [False, True])
def test_speculation_saves_steps(is_async: bool) -> None:
    """With every draft right a decode gives 1 + k tokens; with none, one. Records stay whole."""
    workload = {"num_requests": 12, "prompt": 64, "thinking": 90, "answer": 60, "stop": "length",
                "arrivals": {"kind": "all_at_once"}}  # fmt: skip
    steps = {}
    for rate in (0.0, 0.7, 1.0):
        found = run(workload, False, {"acceptance_rate": rate}, num_speculative_tokens=2, async_scheduling=is_async,
                    spec_method="draft_model")  # fmt: skip
        records = found.records
        assert set(records["output_tokens"].tolist()) == {150}
        assert (records["first_token"] < records["first_visible"]).all()
        assert (records["first_visible"] < records["finish"]).all()
        assert (records["kv_token_us"] > 0).all()
        assert found.modes == {"": "leap"}
        steps[rate] = found.totals.steps
    assert steps[0.0] == pytest.approx(150, abs=5)
    assert steps[1.0] == pytest.approx(51, abs=5)
    assert steps[1.0] < steps[0.7] < steps[0.0]


def test_acceptance_by_position() -> None:
    """First drafts always right, second never: two tokens a step; the last rate holds for positions beyond."""
    workload = {"num_requests": 4, "prompt": 64, "thinking": 0, "answer": 120, "stop": "length",
                "arrivals": {"kind": "all_at_once"}}  # fmt: skip
    steps = {}
    for rates in ([1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0], [1.0]):
        found = run(workload, False, {"acceptance_rate": rates}, num_speculative_tokens=3, spec_method="draft_model",
                    async_scheduling=False)  # fmt: skip
        steps[tuple(rates)] = found.totals.steps
    assert steps[1.0, 0.0] == steps[1.0, 0.0, 1.0] == pytest.approx(60, abs=3)
    assert steps[1.0, 1.0] == steps[(1.0,)] == pytest.approx(30, abs=3)


def steps_of(row: int, output: int, rate: float, num_drafts: int) -> int:
    """Decode steps of a request whose drafts are drawn by its own tokens."""
    token, steps = 1, 0
    while token < output:
        draws = uniforms((0, 2, 0), row, token, num_drafts)
        token += 1 + next((i for i, draw in enumerate(draws) if draw >= rate), num_drafts)
        steps += 1
    return steps


@pytest.mark.parametrize("num", [1, 9])
def test_a_request_s_luck_is_its_own(num: int) -> None:
    """Which drafts are right does not hang on who else runs: the longest-lived of many decides their steps."""
    workload = {"num_requests": num, "prompt": 64, "thinking": 0, "answer": 200, "stop": "length",
                "arrivals": {"kind": "all_at_once"}}  # fmt: skip
    found = run(workload, False, {"acceptance_rate": 0.6}, num_speculative_tokens=3, spec_method="draft_model",
                async_scheduling=False, max_num_seqs=16, num_gpu_blocks=2000)  # fmt: skip
    each = [steps_of(row, 200, 0.6, 3) for row in range(num)]
    assert found.totals.steps == max(each) + 1
    assert len(set(each)) > 3 or num == 1


def test_draws_are_uniform_and_apart() -> None:
    """Mean and spread of uniform numbers; neighbours in row, token and place do not follow each other."""
    grid = np.array([uniforms((5, 2, 0), row, token, 4) for row in range(60) for token in range(60)])
    assert grid.mean() == pytest.approx(0.5, abs=0.01)
    assert grid.var() == pytest.approx(1 / 12, abs=0.003)
    by_row = grid[:, 0].reshape(60, 60)
    for one, two in ((grid[:, 0], grid[:, 1]), (by_row[1:].ravel(), by_row[:-1].ravel()),
                     (by_row[:, 1:].ravel(), by_row[:, :-1].ravel())):  # fmt: skip
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.06


def test_time_is_never_measured_here() -> None:
    """The clock is simulated: nothing of the machine's time gets into a result."""
    workload = {"num_requests": 10, "answer": 5}
    first = run(workload).to_dict()
    time.sleep(0.01)
    assert run(workload).to_dict() == first
