"""The twin's tier against vLLM 0.32.0's own connector and CPU manager: 81 scenarios, sync and async."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine_conformance import FOLDER, offload_golden, offload_replay, offload_scenarios
from places import TRUTH
from test_offload_mutants import MUTANTS
from validation import section

from kvplan.conformance.vllm_replay import VLLMReplay, offload_sha256
from kvplan.conformance.vllm_scenario import VLLMScenario

KEYS = sorted(offload_golden())


def nothing_is_left(replay: VLLMReplay) -> bool:
    """Whether the end of a run left no job, fence, pinned slot, deferred block or request over."""
    scheduler, pool = replay.scheduler, replay.pool
    left: list[object] = [scheduler.requests, pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()]
    if scheduler.loads is not None:
        connector, loads = scheduler.loads.connector, scheduler.loads
        left += [connector.num_jobs, connector.num_fenced_blocks, connector.manager.num_pinned]
        left += [loads.holding, loads.inflight_prefills, loads.finished_recving, connector.num_requests]
        left += [loads.deferred_frees.num_blocks if loads.deferred_frees else 0]
    return not any(left)


def totals(replay: VLLMReplay) -> tuple[dict[str, Any], dict[str, str]]:
    """What a run amounts to, and its hashes."""
    result = replay.run()
    told = [step.offload for step in result.steps if step.offload is not None]
    sums = {
        "loads": sum(len(o.load) for o in told),
        "load_chunks": sum(len(job[3]) for o in told for job in o.load),
        "stores": sum(len(o.store) for o in told),
        "store_chunks": sum(len(job[3]) for o in told for job in o.store),
        "store_failed": sum(len(o.store_failed) for o in told),
        "cpu_evicted": sum(len(o.cpu_evicted) for o in told),
        "flushed": sum(len(o.flush) for o in told),
        "retries": sum(entry[2] is None for o in told for entry in o.lookups),
        "preemptions": sum(len(step.preempted) for step in result.steps),
        "hit_tokens": sum(sum(step.hits.values()) for step in result.steps),
        "scheduled_tokens": sum(step.n_tokens for step in result.steps),
        "steps": len(result.steps),
    }
    hashes = {"sched_sha256": result.sched_sha256, "state_sha256": result.state_sha256}
    return sums, hashes | {"offload_sha256": offload_sha256(result)}


def test_every_scenario_has_both_logs() -> None:
    """No scenario is left out: 81 scenarios, 162 logs, 158 of them with a tier."""
    assert len(offload_scenarios()) == 81
    assert set(KEYS) == {(name, mode) for name in offload_scenarios() for mode in ("sync", "async")}
    assert sum("offload_sha256" in log for log in offload_golden().values()) == 158


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_equals_vllm(key: tuple[str, str]) -> None:
    """Every lookup, job, flush, eviction and slot of every step is vLLM's, and every batch and block with it.

    At the end nothing is left over.
    """
    log, replay = offload_golden()[key], offload_replay(*key)
    sums, hashes = totals(replay)
    summary = log["summary"]
    assert {k: n for k, n in sums.items() if k in summary} == {k: summary[k] for k in sums if k in summary}
    assert {k: h for k, h in hashes.items() if k in log} == {k: log[k] for k in hashes if k in log}
    assert nothing_is_left(replay)


@pytest.mark.skipif(not (TRUTH / "offload").is_dir(), reason="the reference logs are not beside the checkout")
def test_bundled_logs_are_the_reference() -> None:
    """The packed hashes are those of the reference logs as they were written."""
    for (name, mode), log in offload_golden().items():
        written = json.loads((TRUTH / "offload" / "golden" / mode / f"{name}.json").read_text())
        for key in ("sched_sha256", "state_sha256", "offload_sha256"):
            assert log.get(key, written.get(key)) == written.get(key), (name, mode, key)
        scenario = json.loads((TRUTH / "offload" / "scenarios" / f"{name}.json").read_text())
        assert VLLMScenario(**scenario) == VLLMScenario(**offload_scenarios()[name])


FAMILIES = {
    "sessions that come back": ("ses_",),
    "samples of one prompt, shared prompts": ("bo8_", "sys_", "twin_"),
    "tier too small or full of writes": ("cpu_", "lru_"),
    "stores in flight at the end, aborts": ("end_", "abort_", "store_"),
    "preemption": ("pre_",),
    "partly on the GPU": ("part_",),
    "queue and reservations": ("queue_",),
    "windows, chunks, states": ("swa_", "chunked_", "mamba_"),
    "drafts": ("spec_",),
    "random": ("rnd",),
}


def family(name: str, prefixes: tuple[str, ...]) -> str:
    """One row of the table."""
    logs = [log["summary"] for key, log in offload_golden().items() if key[0].startswith(prefixes)]
    keys = ("steps", "loads", "stores", "cpu_evicted", "store_failed", "flushed", "retries", "preemptions")
    totals = " | ".join(f"{sum(log.get(key, 0) for log in logs):,}" for key in keys)
    return f"| {name} | {len(logs) // 2} | {totals} |"


def test_the_table_of_the_docs_is_this_one() -> None:
    """docs/validation/offloading.md shows what the tier was held to; no scenario is left out or counted twice."""
    for name in offload_scenarios():
        assert sum(name.startswith(prefixes) for prefixes in FAMILIES.values()) == 1, name
    rows = "\n".join(family(name, prefixes) for name, prefixes in FAMILIES.items())
    runs = json.loads((FOLDER / "offload" / "oracle_runs.json").read_text())
    keys = ("logs", "steps", "jobs", "refused", "differing")
    table = "\n".join(f"| {run['what']} | " + " | ".join(f"{run[k]:,}" for k in keys) + " |" for run in runs)
    section(
        "offloading",
        f"""## KV offloading against vLLM's own

{len(offload_scenarios())} scenarios, synchronous and asynchronous: {len(offload_golden())} logs of vLLM 0.32.0's own
scheduler, offloading connector (both sides) and CPU manager. Equal in every log and step: batches, victims, hits, block
counts, lookups, loads, stores, flushes, evictions, slots taken, pinned and being written, blocks kept back.

| what | scenarios | steps | loads | stores | chunks evicted | offers refused | flushes | asked again | preemptions |
|---|---|---|---|---|---|---|---|---|---|
{rows}

Random engines with a tier, both run side by side (`make oracle`); refused: groups of different block sizes without
prefix caching, which vLLM does not start with a connector.

| scenarios | logs | steps | jobs | refused | differing |
|---|---|---|---|---|---|
{table}

Tiers below host memory (`TieringOffloadingSpec`): 5,340 of those jobs bring chunks back, 18,673 take them there. vLLM's
manager, its `fs` and `example` tiers and their look-ups ran as they are, on real files; its threads and the moment of a
step's look-ups were stood in for. {len(offload_golden("tiers"))} logs are kept as hashes. Of its tiers `obj`, `p2p` and
`kvcr` need services and networks that were not there: refused by name, as are versions other than 0.32. Not followed:
`backpressure`, which goes by the wall clock, reads that fail, `kv_load_tiers` of a request.

vLLM 0.33.0 ([what it does differently](versions.md)): {len(offload_golden("0.33"))} logs of these scenarios and of
random ones, synchronous loads among them, are equal to its twin's.

{len(MUTANTS)} deliberate errors are each caught by these logs. Where vLLM walks a set (requests that ended before one
step) its own order differs from run to run; the logs and the twin take the order of the ends. Not followed, and refused
by name: partial Mamba tails (`prefix_match_unit` below the block size). Not modelled: copies that fail, context
parallelism, `reset_prefix_cache`, the simple connector (`VLLM_USE_SIMPLE_KV_OFFLOAD`), LMCache.""",
    )
