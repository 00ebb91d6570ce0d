"""A tier of KV beyond the GPU on the clock: copies over a stated link, beside the model's steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.profiles.host_links import HostLink
from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.offloading.jobs import TransferJob
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.simulation.transfers import POLL_TICKS, TimedCopies

MS = TICKS_PER_S // 1000
TIERING = "TieringOffloadingSpec"
SLOW = {"read_gb_s": 0.5, "write_gb_s": 0.5}
"""A drive that requests wait for over hundreds of an engine's loops."""
LINK = HostLink("stated", 1e9, 1e9, 1e9, 0.0, "stated")
"""A block of 1,000,000 bytes takes a millisecond."""


def copies() -> TimedCopies:
    return TimedCopies(LINK, (1_000_000,))


def job(number: int, blocks: int, is_store: bool) -> TransferJob:
    return TransferJob(number, "r", is_store, (blocks,), ())


def test_each_way_is_a_queue_of_its_own() -> None:
    """Stores wait for stores and loads for loads, never for each other; a load begins behind its step's kernels."""
    link = copies()
    link.log = []
    link.begin(0, 0)
    for number, blocks, is_store in ((0, 5, True), (1, 3, True), (2, 4, False), (3, 1, False)):
        link.submit(job(number, blocks, is_store))
    assert link.launch(10 * MS) == 0
    spans = [(copy.is_store, copy.num_blocks, copy.start // MS, copy.end // MS) for copy in link.log]
    assert spans == [(True, 5, 0, 5), (True, 3, 5, 8), (False, 4, 10, 14), (False, 1, 14, 15)]


def test_ends_are_seen_at_polls() -> None:
    """A copy that ended is seen at the next poll, in order of submission within its direction."""
    link = copies()
    link.begin(0, 0)
    link.submit(job(0, 5, True))
    assert link.get_finished() == []
    link.launch(2 * MS)
    link.begin(3 * MS, 3 * MS)
    assert link.get_finished() == []
    link.begin(5 * MS - POLL_TICKS, 5 * MS)
    assert link.get_finished() == [0]
    assert link.is_idle


def test_a_flush_makes_its_step_longer() -> None:
    """The step waits before its kernels until the store has ended, and the poll sees it."""
    link = copies()
    link.begin(0, 0)
    link.submit(job(0, 30, True))
    link.launch(10 * MS)
    link.begin(10 * MS, 10 * MS)
    link.wait({0})
    assert link.get_finished() == [0]
    assert link.launch(10 * MS) == 20 * MS


def scenario(**changes: Any) -> dict[str, Any]:
    """Sessions that fall out of a small pool and come back; steps of stated length."""
    told: dict[str, Any] = {
        "model": "Qwen/Qwen3-8B",
        "gpu": "h100",
        "engine": {"max_model_len": 4096, "num_gpu_blocks_override": 400, "kv_offloading_size": 20},
        "kv_offloading": {"gb_s": 25},
        "step_time": {"fixed_us": 5000, "per_prefill_token_us": 50},
        "workload": {
            "num_requests": 14,
            "arrivals": {"kind": "poisson", "rate": 3},
            "prompt": {"kind": "uniform", "low": 600, "high": 1400},
            "answer": {"kind": "uniform", "low": 20, "high": 80},
            "session": {"turns": {"kind": "constant", "value": 3}, "pause_s": 8},
        },
    }
    for key, value in changes.items():
        told[key] = told.get(key, {}) | value if isinstance(value, dict) else value
    return told


def run(step_by_step: bool = False, **changes: Any) -> Result:
    return simulate(parse_scenario(scenario(**changes)), step_by_step=step_by_step)


def without(**changes: Any) -> Result:
    told = scenario(**changes)
    told["engine"] |= {"kv_offloading_size": None}
    del told["kv_offloading"]
    return simulate(parse_scenario(told), step_by_step=True)


def test_a_tier_saves_prompts() -> None:
    """The same requests: less is computed, first tokens come sooner; computed and found make up all prompts."""
    few = {"engine": {"max_num_seqs": 4}}
    tier, plain = run(**few), without(**few)
    assert tier.totals.preemptions == plain.totals.preemptions == 0
    assert tier.num_completed == plain.num_completed == len(tier.records)
    assert tier.totals.prefill_tokens < 0.8 * plain.totals.prefill_tokens
    assert tier.summaries()["ttft"].mean < plain.summaries()["ttft"].mean
    for result in (tier, plain):
        prompts = int(result.records["prompt_tokens"].sum())
        found = int(result.records["hit_tokens"].sum())
        assert result.totals.prefill_tokens + found == prompts


def test_a_slower_link_is_slower() -> None:
    """First tokens come later the thinner the link, and at last later than without a tier: a load is taken anyway."""
    ttft = [run(kv_offloading={"gb_s": rate}).summaries()["ttft"].mean for rate in (400, 25, 0.5)]
    assert ttft == sorted(ttft)
    assert ttft[-1] > without().summaries()["ttft"].mean


def test_a_small_tier_turns_over() -> None:
    """It evicts, and loads less than a large one."""
    small, large = run(engine={"kv_offloading_size": 0.5}), run()
    assert small.offload is not None and large.offload is not None  # noqa: PT018
    assert small.offload["evicted_chunks"] > 0 == large.offload["evicted_chunks"]
    assert small.offload["loaded_tokens"] < large.offload["loaded_tokens"]
    assert small.offload["chunks_used"] <= small.offload["chunks"]


def test_the_way_back_by_hand() -> None:
    """One session, two turns, the GPU flushed between: copy, the poll that sees it, and a step.

    992 of the second prompt's 1,012 tokens are loaded, 62 blocks of 2.25 MiB at 25 GB/s in 5.9 ms, behind a step
    without kernels; seen within a poll of the 1 ms loop, then one step computes the rest.
    """
    told = scenario(
        engine={"num_gpu_blocks_override": 260, "enable_prefix_caching": False, "async_scheduling": False},
        workload={
            "num_requests": 1,
            "prompt": {"kind": "constant", "value": 1000},
            "answer": {"kind": "constant", "value": 8},
            "session": {
                "turns": {"kind": "constant", "value": 2}, "pause_s": 2, "pause": "constant",
                "message": {"kind": "constant", "value": 4},
            },
        },
    )  # fmt: skip
    told["workload"]["arrivals"] = {"kind": "poisson", "rate": 1}
    result = simulate(parse_scenario(told))
    first, second = (result.records.seconds("first_token") - result.records.seconds("arrival"))[:2]
    assert first == pytest.approx(0.005 + 1000 * 50e-6)
    loaded = 992  # whole blocks of the first prompt: answers are not stored
    copy = 62 * 16 * 147456 / 25e9 + 30e-6
    rest = 0.005 + (1012 - loaded) * 50e-6
    assert copy + rest <= second <= copy + rest + 2 * 1e-3 + 1e-6
    assert result.offload is not None
    assert result.offload["loaded_tokens"] == loaded


@pytest.mark.parametrize(
    ("model", "blocks"),
    [("openai/gpt-oss-20b", 540), ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", 70), ("Qwen/Qwen3-8B", 300)],
)
def test_each_group_moves_its_own_bytes(model: str, blocks: int) -> None:
    """What the link carried is the sum over groups of blocks and the bytes of that group's block."""
    told = scenario(workload={"num_requests": 14, "prompt": {"kind": "uniform", "low": 1500, "high": 2600}})
    told |= {"model": model, "engine": {"kv_offloading_size": 20, "max_model_len": 4096, "max_num_seqs": 4}}
    told["workload"]["session"] |= {"pause_s": 1}
    told["engine"]["num_gpu_blocks_override"] = blocks
    parsed = parse_scenario(told)
    [setup] = set_ups(parsed).values()
    assert setup.tier is not None
    jobs: list[TransferJob] = []
    submit = TimedCopies.submit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedCopies, "submit", lambda self, job: (jobs.append(job), submit(self, job))[1])
        tier = simulate(parsed).offload
    assert tier is not None
    for is_store, name, total in ((True, "stored", "store_blocks"), (False, "loaded", "load_blocks")):
        moved = [job.group_blocks for job in jobs if job.is_store == is_store]
        by_group = [sum(blocks) for blocks in zip(*moved, strict=True)]
        num_bytes = sum(n * b for n, b in zip(by_group, setup.tier.block_bytes, strict=True))
        assert tier[f"{name}_bytes_per_rank"] == num_bytes
        assert sum(by_group) == tier[total]
    assert tier["store_blocks"] > 0


def test_what_is_not_simulated_is_refused_by_name() -> None:
    """Tiers of other kinds; keys of a tier that is not there; SGLang."""
    tiers: dict[str, Any] = {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [{"type": "obj"}]}
    with pytest.raises(KvplanError, match="type obj: of vLLM's tiers below host memory fs is simulated"):
        run(kv_offloading=tiers)
    with pytest.raises(KvplanError, match="spec_name TieringOffloadingSpec reads them"):
        run(kv_offloading={"secondary_tiers": [{"type": "fs"}]})
    with pytest.raises(KvplanError, match="store_threshold is not supported"):
        run(kv_offloading={"spec_name": "TieringOffloadingSpec", "store_threshold": 2})
    told = scenario()
    told["engine"] |= {"kv_offloading_size": None}
    with pytest.raises(KvplanError, match=r"engine\.kv_offloading_size"):
        simulate(parse_scenario(told))
    with pytest.raises(KvplanError, match="sglang has a host tier of its own"):
        simulate(parse_scenario(scenario() | {"sglang": {}}))


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_offloading": {"offload_prompt_only": False}},
        {"engine": {"kv_offloading_size": 0.5}},
        {"engine": {"num_gpu_blocks_override": 290}},
        {
            "engine": {"kv_offloading_size": 0.5},
            "kv_offloading": {"spec_name": TIERING, "secondary_tiers": [{}]},
        },
        {
            "engine": {"kv_offloading_size": 0.5},
            "kv_offloading": {"spec_name": TIERING, "secondary_tiers": [SLOW]},
        },
        {
            "engine": {"kv_offloading_size": 0.2},
            "kv_offloading": {"spec_name": TIERING, "secondary_tiers": [SLOW], "eviction_policy": "arc"},
            "limits": {"horizon_s": 15.6037},
        },
    ],
    ids=["plain", "answers too", "small tier", "small pool", "files", "slow files", "no room, cut short"],
)
def test_leaps_between_copies_change_nothing(changes: dict[str, Any], is_async: bool) -> None:
    """Every request's times to the tick, and all that the tier did, are those of the steps one by one."""
    told = scenario(**changes)
    told["engine"] |= {"async_scheduling": is_async}
    leaping, walking = (simulate(parse_scenario(told), step_by_step=walks) for walks in (False, True))
    for name, column in leaping.records.columns().items():
        is_real = column.dtype.kind == "f"  # times that never came are NaN in both
        assert np.array_equal(column, walking.records.columns()[name], equal_nan=is_real), name
    assert leaping.offload == walking.offload
    seen, stepped = ({s.time_s: s[-6:] for s in result.samples} for result in (leaping, walking))
    common = seen.keys() & stepped.keys()
    assert len(common) > 10
    assert all(seen[time_s] == stepped[time_s] for time_s in common)
    sums = ("steps", "decode_ticks", "prefill_ticks", "preemptions", "prefill_tokens", "flush_ticks")
    assert all(getattr(leaping.totals, name) == getattr(walking.totals, name) for name in sums)
    stores_answers = changes.get("kv_offloading", {}).get("offload_prompt_only") is False
    assert (leaping.totals.leapt_steps == 0) == stores_answers
    assert walking.totals.leaps == 0


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_wait_for_files_is_decided_once(is_async: bool) -> None:
    """An engine that has nothing to do but ask again does not: it sleeps until the end of a file, or an arrival."""
    told = scenario(
        engine={"kv_offloading_size": 0.5, "async_scheduling": is_async},
        kv_offloading={"spec_name": TIERING, "secondary_tiers": [SLOW]},
    )
    decided: list[int] = []
    schedule = StepByStep.schedule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepByStep, "schedule", lambda self: (decided.append(1), schedule(self))[1])
        result = simulate(parse_scenario(told))
    assert result.offload is not None
    assert result.offload["retries"] > 2000
    walked = result.totals.steps - result.totals.leapt_steps
    assert len(decided) < walked / 5


def test_advice_says_when_it_buys_nothing() -> None:
    """Prompts that never return are stored and never read."""
    alone = {"turns": {"kind": "constant", "value": 1}}
    result = run(workload={"session": alone, "num_requests": 6})
    assert any("it buys nothing at this load" in text for text in result.advice)
    assert not any("buys nothing" in text for text in run().advice)
