"""The scheduler's table in docs/validation.md: what it was held to."""

from __future__ import annotations

import json
from typing import Any

from engine_conformance import FOLDER, golden, scenarios
from test_engine_mutants import MUTANTS
from validation import section

from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.errors import KvplanError
from kvplan.schedulers.leap.allowed import has_one_full_group, why_no_visits, why_not

FAMILIES = {
    "full attention, block 16": ("m0", "s0", "s10_block16"),
    "full attention, blocks of 32 and 64": ("e_", "s10_block32", "s10_block64"),
    "ends by stop token": ("eos_",),
    "aborts": ("abort_",),
    "sliding windows": ("swa_",),
    "chunked local attention": ("chk_",),
    "Mamba-like state": ("mam_",),
    "speculation": ("spec_", "mix_"),
    "stuck, lone long prompt": ("stuck_", "lpt_"),
}


def does_leap(name: str) -> bool:
    """Whether a leaping scheduler runs a scenario to its end, in closed form or by visits."""
    scenario = VLLMScenario(**scenarios()[name])
    if not has_one_full_group(scenario.engine_config) and not why_no_visits(scenario.engine_config):
        return True
    if has_one_full_group(scenario.engine_config):
        return not why_not(scenario.engine_config)
    try:
        LeapReplay(scenario).run()
    except KvplanError:
        return False
    return True


def row(name: str, prefixes: tuple[str, ...]) -> str:
    """One family's totals."""
    names = [n for n in scenarios() if n.startswith(prefixes)]
    logs = [log["summary"] for key, log in golden().items() if key[0] in names]
    leaps = sum(map(does_leap, names))
    keys = ("steps", "scheduled_tokens", "preemptions", "hit_tokens", "evicted")
    totals = " | ".join(f"{sum(log[key] for log in logs):,}" for key in keys)
    return f"| {name} | {len(names)} | {totals} | {leaps} |"


def oracle_runs() -> str:
    """The runs of `make oracle` on record."""
    runs: list[dict[str, Any]] = json.loads((FOLDER / "oracle_runs.json").read_text())
    keys = ("logs", "steps", "refused", "differing")
    return "\n".join(
        f"| {run['what']} | " + " | ".join(f"{run[key]:,}" for key in keys) + " |" for run in runs
    )


def test_every_scenario_is_in_one_family() -> None:
    """The table leaves nothing out and counts nothing twice."""
    for name in scenarios():
        assert sum(name.startswith(prefixes) for prefixes in FAMILIES.values()) == 1, name


def test_the_table_of_the_docs_is_this_one() -> None:
    """docs/validation.md shows what the twin was held to."""
    rows = "\n".join(row(name, prefixes) for name, prefixes in FAMILIES.items())
    section(
        "scheduler",
        f"""## Scheduler against vLLM's own

{len(scenarios())} scenarios, each with synchronous and asynchronous scheduling: {len(golden())} logs of
vLLM 0.32.0's own scheduler and KV cache manager. Equal in every log and step: batches, victims, hits, evictions, block
counts; no scenario is left out. `leaps` counts the scenarios that a leaping scheduler runs too, with the same
hashes: in closed form, or by visits where requests of windows, chunks and states share content or draft.

| what | scenarios | steps | tokens scheduled | preemptions | hit tokens | evicted blocks | leaps |
|---|---|---|---|---|---|---|---|
{rows}

Random scenarios over all of these features, both engines run side by side (`make oracle`); refused: vLLM does not
take the flags. Versions before 0.32: full attention without drafts ([what differs](versions.md)).

| scenarios | logs | steps | refused | differing |
|---|---|---|---|---|
{oracle_runs()}

{len(MUTANTS)} deliberate errors (wrong free order, blocks named a step late, admission in a preempting step ...) are
each caught by these logs. Not checked against their engine: the admission rules `reserve_max` and `max_utilization`
(TensorRT-LLM); its `batch_wait` was held to measured latencies alone. Of the KV connectors vLLM's own offloading to
host memory is modelled ([offloading](offloading.md)). Not modelled: encoder inputs, LoRA limits, pipeline parallelism,
multi-module MTP, n-gram drafters that propose fewer than k tokens, drafts whose number varies.""",
    )
