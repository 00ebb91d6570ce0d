"""The second twin's table in docs/validation.md: what it was held to."""

from __future__ import annotations

from conformance.sglang.random_scenarios import random_scenario
from sglang_conformance import golden, scenarios
from test_sglang_conformance import RANDOM
from test_sglang_mutants import MUTANTS
from validation import section

FAMILIES = {
    "plain, pages of 1 and 16": ("g01",),
    "long answers in a pool too small: retraction, with and without radix cache": ("g02", "m05", "m11"),
    "best of n: one prompt many times": ("g03", "m01", "m03"),
    "chunked and mixed prefill": ("g04",),
    "few request slots": ("g05",),
    "turns that continue each other: LRU, LFU": ("g06", "m02"),
    "tree search": ("g07",),
    "policies lpm, dfs-weight, shortest-prefill-first, lof": ("g08",),
    "200 random requests": ("g09",),
    "new-token ratio, clip, head of line, refused prompts": ("m04", "m06", "m07", "m08"),
    "aborts, priorities": ("m09", "m10"),
}
TOTALS = ("steps", "scheduled_tokens", "retractions", "hit_tokens", "evicted")


def row(name: str, prefixes: tuple[str, ...]) -> str:
    """One family's totals."""
    names = [n for n in scenarios() if n.startswith(prefixes)]
    logs = [log["summary"] for key, log in golden().items() if key[0] in names]
    return (
        f"| {name} | {len(names)} | " + " | ".join(f"{sum(s[key] for s in logs):,}" for key in TOTALS) + " |"
    )


def test_every_scenario_is_in_one_family() -> None:
    """The table leaves nothing out and counts nothing twice."""
    for name in scenarios():
        assert sum(name.startswith(prefixes) for prefixes in FAMILIES.values()) == 1, name


def test_the_table_of_the_docs_is_this_one() -> None:
    """docs/validation.md shows what the twin was held to."""
    rows = "\n".join(row(name, prefixes) for name, prefixes in FAMILIES.items())
    requests = sum(len(random_scenario(int(seed))["requests"]) for seed in RANDOM)
    section(
        "scheduler-sglang",
        f"""## Scheduler against SGLang's own

{len(scenarios())} scenarios in both event loops: {len(golden())} logs of SGLang 0.5.23's own scheduler and radix cache.
Equal in every log and pass: batches, hits, evictions, locks, retractions, queues, the new-token ratio; no scenario and
no kind is left out (`sched_sha256` and `state_sha256`).

| what | scenarios | passes | tokens scheduled | retractions | hit tokens | evicted tokens |
|---|---|---|---|---|---|---|
{rows}

{len(RANDOM)} random scenarios with {requests:,} requests over every flag and policy of the twin, hrrn included, in
both loops: equal too. {len(MUTANTS)} deliberate errors (the ratio never decays, a victim publishes its tokens, a paged
decode evicts only what it needs ...) are each caught by the logs. The simulator leaps over its pure decodes: its
passes, leaps spelled out, are SGLang's in the same logs, and leap and pass by pass agree to the picosecond in times and
to the token in hits and retractions (random workloads, both loops).

Differs from SGLang by intent: tokens are equal by name, not by value (the replay of the logs gives them the logs'
values), and an abort ends one request, not all whose id begins so. Not modelled: hybrid windows and states,
speculation, HiCache, disaggregation, data-parallel attention, LoRA, sessions, eviction policies beside lru and lfu. The
reference logs come from its CPU path with the forward pass replaced, not from a GPU. Step times under this scheduler
come from profiles measured with vLLM.""",
    )
