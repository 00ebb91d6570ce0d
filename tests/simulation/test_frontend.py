"""The API servers before an engine: a queue that clients see, that moves when requests come, and that holds no step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.ground.units import TICKS_PER_S
from kvplan.profiles.profile import load_profile
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.api_server import LEAST_SHARE, backlog
from kvplan.simulation.deploy import set_up
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

STEP = {"fixed_us": 5000, "per_sequence_us": 20, "per_context_token_ns": 10, "per_prefill_token_us": 50}
SLOW = {"request_ms": 10, "per_1k_tokens_ms": 2.5}


def run(step_by_step: bool = False, **changes: Any) -> Result:
    workload = {
        "num_requests": 40, "arrivals": {"kind": "poisson", "rate": 4.0},
        "prompt": {"kind": "uniform", "low": 100, "high": 4000}, "answer": {"kind": "uniform", "low": 2, "high": 60},
    }  # fmt: skip
    data = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP, "workload": workload}
    return simulate(parse_scenario(data | changes), step_by_step=step_by_step)


def one_by_one(**changes: Any) -> Result:
    return run(
        workload={
            "num_requests": 12, "prompt": {"kind": "uniform", "low": 100, "high": 4000}, "answer": 20,
            "arrivals": {"kind": "closed_loop", "concurrency": 1},
        },
        engine={"async_scheduling": False},  # no step in flight when the next request comes
        **changes,
    )  # fmt: skip


def test_a_lone_client_sees_the_frontend_and_nothing_else() -> None:
    """TTFT and E2E grow by the stated latency of each prompt, TPOT by nothing; rounds take that much longer."""
    plain, slow = one_by_one(), one_by_one(frontend=SLOW)
    prompts = plain.records["prompt_tokens"]
    latency = 0.010 + 0.0025 * prompts / 1000
    assert slow.latencies.ttft == pytest.approx(plain.latencies.ttft + 1e3 * latency, abs=1e-6)
    assert slow.latencies.e2el == pytest.approx(plain.latencies.e2el + 1e3 * latency, abs=1e-6)
    assert slow.latencies.tpot == pytest.approx(plain.latencies.tpot)
    assert slow.duration_s - plain.duration_s == pytest.approx(latency.sum())


COSTS = st.fixed_dictionaries({
    "request_ms": st.floats(0, 200), "per_1k_tokens_ms": st.floats(0, 50), "latency_ms": st.sampled_from([0, 3]),
    "output_us": st.sampled_from([0, 30, 400]), "send_us": st.sampled_from([0, 60, 1500]),
})  # fmt: skip


@settings(max_examples=examples(15), deadline=None)
@given(COSTS, st.integers(0, 99), st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.booleans())
def test_leaping_equals_stepping(
    frontend: dict[str, float], seed: int, replicas: int, servers: int, is_async: bool
) -> None:
    """The same times to the picosecond, whenever requests come out of the servers and tokens reach clients."""
    changes = {
        "frontend": frontend, "replicas": replicas,
        "engine": {"api_server_count": servers, "data_parallel_size": 2, "async_scheduling": is_async},
    }  # fmt: skip
    for arrivals in ({"kind": "poisson", "rate": 4.0}, {"kind": "closed_loop", "concurrency": 5}):
        workload = {
            "num_requests": 20, "arrivals": arrivals, "seed": seed, "prompt": 500, "thinking": 20,
            "answer": {"kind": "uniform", "low": 2, "high": 60}, "timeout_s": 2,
        }  # fmt: skip
        leapt, stepped = (run(step, workload=workload, **changes) for step in (False, True))
        assert (leapt.records.table == stepped.records.table).all()
        assert leapt.api_server_load == stepped.api_server_load


@given(st.integers(0, 500), st.integers(0, 60), st.integers(1, 50), st.integers(0, 5), st.integers(1, 30))
def test_the_backlog_of_a_run_of_steps_is_lindleys(
    behind: int, work: int, ticks: int, slope: int, count: int
) -> None:
    """In closed form what one step after the other gives: passed time off, never below nothing, new work on."""
    found = behind
    for step in range(count):
        found = max(0, found - ticks - slope * step) + work
    assert backlog(behind, work, ticks, slope, count) == found


def test_requests_queue_for_the_servers_core() -> None:
    """Poisson arrivals at one process of constant work wait rho s / (2 (1 - rho)) in the mean (Khinchine)."""
    rate, work_s = 40.0, 0.015
    load = {
        "num_requests": 20_000, "arrivals": {"kind": "poisson", "rate": rate}, "prompt": 1, "answer": 1,
    }  # fmt: skip
    records = run(workload=load, frontend={"request_ms": 1e3 * work_s}).records
    waits = records.seconds("engine_arrival") - records.seconds("arrival") - work_s
    busy = rate * work_s
    assert waits.mean() == pytest.approx(busy * work_s / (2 * (1 - busy)), rel=0.1)


STEADY = {"fixed_us": 4000, "per_sequence_us": 0, "per_context_token_ns": 0, "per_prefill_token_us": 0}
STREAMS = {"num_requests": 60, "prompt": 1, "answer": 500, "arrivals": {"kind": "all_at_once"}}


def streams(servers: int = 1, **frontend: float) -> Result:
    """Sixty streams of a token every 4 ms."""
    engine = {"api_server_count": servers}
    return run(workload=STREAMS, step_time=STEADY, frontend=frontend, engine=engine)


def test_a_slow_server_never_holds_the_engine_back() -> None:
    """The engine's own times are those without a server; clients' are later, by the middle of the pieces of a step."""
    plain, slow = streams(), streams(output_us=10, send_us=20)
    assert (slow.records["engine_finish"] == plain.records["finish"]).all()
    late_us = (slow.records["finish"] - slow.records["engine_finish"]) / 1e6
    assert late_us == pytest.approx(60 * 10 + 61 / 2 * 20, abs=1)
    assert slow.engine_itl == plain.itl == slow.itl
    assert slow.api_server_load == pytest.approx(60 * 30 / 4000, rel=0.01)


def test_tokens_that_wait_leave_in_one_piece() -> None:
    """Where a round over all streams takes longer than a step, its length is that of a stream's pieces: 60 x 100 us of
    what making text leaves, half of the core; nothing more piles up, and time per token stays the engine's."""
    slow = streams(output_us=4000 / 60 / 2, send_us=100)
    assert slow.itl.median == pytest.approx(60 * 0.1 / 0.5, rel=0.01)
    assert slow.itl.mean == pytest.approx(12, rel=0.01)
    assert slow.engine_itl.median == pytest.approx(4, rel=0.01)
    assert slow.latencies.tpot.mean() == pytest.approx(4, rel=0.01)
    late_ms = (slow.records["finish"] - slow.records["engine_finish"]) / 1e9
    assert (late_ms < 12).all()
    assert slow.api_server_load == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("output_us", [100, 300, 600])
def test_a_server_behind_ends_its_text_and_no_later(output_us: int) -> None:
    """Text for longer than a step keeps the core busy: the last tokens leave when all text that came is made, after a
    round of sending at its least share at most; what waits is waited for once."""
    found = streams(output_us=output_us, send_us=20)
    text_s = 60 * 500 * output_us / 1e6
    assert 0 < found.duration_s - text_s < 60 * 20e-6 * LEAST_SHARE
    assert found.records["engine_finish"].max() == 2 * TICKS_PER_S


def test_several_servers_share_the_streams() -> None:
    """Two processes have half the load each."""
    one, two = (streams(servers, output_us=10, send_us=20) for servers in (1, 2))
    work = [(found.api_server_load or 0) * found.duration_s for found in (one, two)]
    assert work[0] == pytest.approx(2 * work[1])


def test_workers_share_the_prompts_and_a_prompt_takes_as_long() -> None:
    """Ten prompts at once: one worker makes them one by one; with two, half of each waits in the queue behind. The
    wait of all is that of the queue, each prompt's own 40 ms stay."""
    load = {
        "num_requests": 10,
        "prompt": 1000,
        "answer": 2,
        "arrivals": {"kind": "all_at_once"},
    }
    cost = {"per_1k_tokens_ms": 40}
    one, two = (run(workload=load, engine={"renderer_num_workers": n}, frontend=cost) for n in (1, 2))
    for found, behind in ((one, 40), (two, 20)):
        entered = found.records["engine_arrival"] / (TICKS_PER_S / 1000)
        assert sorted(entered) == pytest.approx([40 + behind * i for i in range(10)])
    work = [(found.api_server_load or 0) * found.duration_s for found in (one, two)]
    assert work[0] == pytest.approx(2 * work[1])


def test_workers_gain_nothing_at_the_slow_end() -> None:
    """Templates and Python beside the tokenizer wait for one interpreter's lock; SGLang has no such flag."""
    asked = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "engine": {"renderer_num_workers": 4}}
    setup = set_up(parse_scenario(asked))
    assert [times.workers for times in (setup.api_ends[0], setup.api, setup.api_ends[1])] == [4, 4, 1]


def test_a_client_comes_back_when_it_has_its_last_token() -> None:
    """A closed loop of one: every round takes longer by what its last token takes to get out."""
    loop = {
        "num_requests": 10,
        "prompt": 1,
        "answer": 20,
        "arrivals": {"kind": "closed_loop", "concurrency": 1},
    }
    sync = {"async_scheduling": False}
    plain, slow = (
        run(workload=loop, step_time=STEADY, engine=sync, frontend=f) for f in ("none", {"send_us": 1000})
    )
    assert slow.duration_s - plain.duration_s == pytest.approx(10 * 0.001)
    assert slow.engine_latencies.e2el == pytest.approx(plain.latencies.e2el)


def test_a_clients_times_are_the_default() -> None:
    """As measured for the engine's version, unless step times are stated; with `none` both names say the engine's."""
    setup = set_up(parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100"}))
    assert setup.api.takes_time
    assert all(low <= value <= high for low, value, high in zip(setup.api_ends[0], setup.api, setup.api_ends[1],
                                                               strict=True))  # fmt: skip
    assert not set_up(
        parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP})
    ).api.takes_time
    document = run(frontend="none").to_dict()
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert document[f"mean_{name}_ms"] == document[f"mean_engine_{name}_ms"]
    assert document["api_server_load"] is None
    document = run(frontend=SLOW).to_dict()
    assert document["mean_ttft_ms"] > 10 + document["mean_engine_ttft_ms"]


def test_who_leaves_in_the_frontend_never_reaches_the_engine() -> None:
    """A client that gives up before its request is through takes no block and no step."""
    workload = {
        "num_requests": 5, "arrivals": {"kind": "all_at_once"}, "prompt": 100, "answer": 10, "timeout_s": 0.5,
    }  # fmt: skip
    result = run(workload=workload, frontend={"request_ms": 1000})
    assert set(result.records["finish"]) == {round(0.5e12)}
    assert not result.totals.prefill_tokens


def test_strategies_call_through_it() -> None:
    """Each branch of a strategy is a request: four problems in sequence pay four times."""
    problems = {
        "num_problems": 4, "arrivals": {"kind": "closed_loop", "concurrency": 1}, "strategies": ["single_pass"],
    }  # fmt: skip
    data = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "step_time": STEP, "problems": problems,
        "engine": {"async_scheduling": False},
    }  # fmt: skip
    plain, slow = (
        simulate(parse_scenario(data | extra)) for extra in ({}, {"frontend": {"request_ms": 250}})
    )
    assert slow.duration_s - plain.duration_s == pytest.approx(4 * 0.25)


def test_a_profile_timed_at_clients_has_its_api_server_in_it(tmp_path: Path) -> None:
    """A server that was calibrated from outside: nothing is added to what its clients saw."""
    profile = load_profile("rtx-4090-vllm")
    assert profile.timing is not None
    for at_client in (False, True):
        timing = profile.timing.model_copy(update={"seen_by_client": at_client})
        path = tmp_path / f"{at_client}.json"
        path.write_text(profile.model_copy(update={"name": "mine", "timing": timing}).model_dump_json())
        scenario = {"model": "Qwen/Qwen3-8B", "gpu": "rtx-4090", "step_time": {"profile": str(path)}}
        setup = set_up(parse_scenario(scenario | {"engine": {"max_model_len": 8192}}))
        assert setup.api.takes_time is not at_client


@pytest.mark.parametrize("is_async", [False, True])
def test_leaping_over_drafts_equals_stepping(is_async: bool) -> None:
    """Several tokens a step, each step of a length of its own: the same times at engine and client."""
    workload = {
        "num_requests": 20, "arrivals": {"kind": "poisson", "rate": 20.0}, "prompt": 500, "thinking": 20,
        "answer": {"kind": "uniform", "low": 2, "high": 60}, "timeout_s": 2,
    }  # fmt: skip
    engine = {
        "num_speculative_tokens": 2, "speculative_method": "ngram_gpu", "async_scheduling": is_async,
        "max_model_len": 8192,
    }  # fmt: skip
    frontend = {"request_ms": 30, "output_us": 300, "send_us": 600}
    leapt, stepped = (
        run(step, workload=workload, engine=engine, frontend=frontend) for step in (False, True)
    )
    assert leapt.modes[""] == "leap"
    assert (leapt.records.table == stepped.records.table).all()
