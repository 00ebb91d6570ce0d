"""Random scenarios for leaps by visits, and who decides alike: every step, and the whole free queue between leaps."""

from __future__ import annotations

from math import lcm
from random import Random
from typing import Any

from draft_scenarios import METHODS, drafted_scenario, random_tiers
from group_scenarios import random_groups, random_returns, with_ring

from kvplan.conformance.replay import ReplayResult
from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_visits import VisitReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.request import BlockHasher
from kvplan.schedulers.vllm.block_pool import NAME_BITS, name_of

Json = dict[str, Any]
KINDS = (
    "window",
    "chunk",
    "none",
    "align",
    "echo",
    "kept",
    "ring",
    "drafts",
    "drafts, align",
    "drafts, ring",
    "tiers",
    "tiers, full",
)


def random_visits(rng: Random, kind: str) -> Json:
    """Return a scenario as JSON: contents shared, requests that continue each other, preemption, aborts."""
    if kind.startswith("tiers"):
        full = kind.endswith("full")
        row = (
            drafted_scenario(rng)
            if full
            else _random_drafts(rng, rng.choice(["window", "align", "echo", "ring"]))
        )
        row |= {"num_speculative_tokens_per_batch_size": random_tiers(rng, row["num_speculative_tokens"])}
        return row | ({"async_scheduling": rng.random() < 0.5} if full else {})
    if kind.startswith("drafts"):
        _, _, beside = kind.partition(", ")
        return _random_drafts(rng, beside or rng.choice(KINDS[:5]))
    if kind == "kept":
        return _random_kept(rng)
    if kind == "ring":
        return _random_ring(rng)
    if kind == "echo":
        row = random_returns(rng)
        _echo(rng, row)
    elif kind != "none" and rng.random() < 0.25:
        row = random_returns(rng, "" if kind == "window" else kind)
        _share(rng, row)
    else:
        row = random_groups(rng, kind)
    row["enable_prefix_caching"] = kind != "none" and rng.random() < 0.9
    sizes = [group.get("block_size") or row["block_size"] for group in row["kv_cache_groups"]]
    if kind == "window" and rng.random() < 0.25:
        row["prefix_cache_retention_interval"] = rng.choice([None, max(sizes) * rng.choice([1, 2, 5])])
    row["async_scheduling"] = rng.random() < 0.5
    return row


def _random_kept(rng: Random) -> Json:
    """Return one that caches states, and windows beside them, at every so many tokens or everywhere."""
    row = random_visits(rng, "align")
    sizes = [group.get("block_size") or row["block_size"] for group in row["kv_cache_groups"]]
    row["enable_prefix_caching"] = True
    row["prefix_cache_retention_interval"] = rng.choice([None, lcm(*sizes) * rng.choice([1, 2, 5])])
    return row


def _random_ring(rng: Random) -> Json:
    """Return one with a circular buffer, windows that stay out of prefix caching, or both, of blocks of several sizes.

    Something must take part in it.
    """
    row = random_visits(rng, rng.choice(["window", "align", "echo"]))
    groups = row["kv_cache_groups"]
    windows = [group for group in groups if group["kind"] == "sliding_window"]
    row.pop("prefix_cache_retention_interval", None)
    if windows and rng.random() < 0.7:
        reach, size = rng.choice([1, 3, 9, 16, 40]), row["block_size"]
        for window in windows:
            window |= {
                "bounded_replay": True,
                "window": reach,
                "block_size": max(1, size // rng.choice([1, 2])),
            }
        if len(windows) == len(groups):
            groups.insert(rng.randint(0, len(groups)), {"kind": "full"})
            row["num_gpu_blocks"] += row["max_model_len"] // size
    elif windows and rng.random() < 0.5:  # names of full attention's blocks wait for those of a window
        for group in groups:
            group["block_size"] = row["block_size"] * (2 if group in windows else 1)
    return with_ring(rng, row) if not windows or rng.random() < 0.7 else row


def _random_drafts(rng: Random, kind: str) -> Json:
    """Return one whose decodes verify drafts; budgets and the model's length may cut them.

    Chunked local attention does not go with drafts from the model's own hidden states.
    """
    while True:
        row = random_visits(rng, kind)
        sizes = [
            g.get("block_size") or row["block_size"] for g in row["kv_cache_groups"] if g["kind"] == "mamba"
        ]
        most = min(sizes, default=5) - 1 if kind in ("align", "kept", "ring") else 4
        if most > 0:
            break
    drafts = rng.randint(1, min(4, most))
    chunks = any(group["kind"] == "chunked_local" for group in row["kv_cache_groups"])
    method = rng.choice(["ngram", "draft_model"] if chunks else METHODS)
    threshold, budget = row["long_prefill_token_threshold"], row["max_num_batched_tokens"]
    row |= {
        "num_speculative_tokens": drafts,
        "spec_method": method,
        "accept_rate": rng.choice([0.0, 0.3, 0.7, 0.9, 1.0]),
        "engine_version": rng.choice(["0.32", "0.32", "0.33"]),
        "long_prefill_token_threshold": threshold and threshold + drafts,
        "max_num_batched_tokens": max(budget, 2) if rng.random() < 0.3 else budget * (1 + drafts) + drafts,
    }
    if method in ("eagle", "mtp", "dspark"):
        for group in row["kv_cache_groups"]:
            if rng.random() < 0.3:
                group["eagle"] = True
        if row["engine_version"] == "0.33" and rng.random() < 0.3:
            row["disable_lookahead_block_hashes"] = True
    if kind == "align" and row["enable_prefix_caching"] and rng.random() < 0.3:
        row["prefix_cache_retention_interval"] = None
    return row


def _share(rng: Random, row: Json) -> None:
    """Let prompts begin alike, or with what an earlier request asked and got."""
    earlier: list[Json] = []
    for request in row["requests"]:
        what = rng.random()
        length = sum(piece.get("len", 0) for piece in request["prompt"])
        if what < 0.5:
            shared = rng.randint(1, length)
            own = [{"len": length - shared}] if shared < length else []
            request["prompt"] = [{"prefix_id": f"fam{rng.randrange(2)}", "len": shared}, *own]
        elif what < 0.8 and earlier:
            other = rng.choice(earlier)
            room = row["max_model_len"] - request["output_len"]
            pieces = [*other["prompt"], {"output_of": other["id"], "len": other["output_len"]}]
            if sum(piece["len"] for piece in pieces) < room and all("len" in p for p in other["prompt"]):
                request["prompt"] = [{"prompt_of": other["id"]}, pieces[-1], {"len": 1}]
                continue
        earlier.append(request)


def _echo(rng: Random, row: Json) -> None:
    """Let prompts repeat what others say: before these are here, while they run and once they have ended."""
    start, outputs = rng.randint(1, 12), {r["id"]: r["output_len"] for r in row["requests"]}
    row |= {"policy": rng.choice(["fcfs", "priority"]), "max_num_seqs": rng.choice([2, 3, 8])}
    row["num_gpu_blocks"] *= rng.choice([1, 1, 4])
    for request in row["requests"]:
        request["arrival_step"] = rng.choice([0, rng.randrange(60)])
        request["prompt"] = [{"prefix_id": "all", "len": start}]
        name = rng.choice([*outputs])
        length = min(outputs[name], row["max_model_len"] - request["output_len"] - start)
        if name != request["id"] and length > 0 and rng.random() < 0.6:
            request["prompt"].append({"output_of": name, "len": rng.randint(1, length)})


def contents_of(hasher: BlockHasher) -> dict[int, int]:
    """Return what block names stand for: they are numbers in the order in which they were asked for."""
    before: dict[int, tuple[int, Any]] = {
        name: (parent, content) for (parent, content), name in hasher._names.items()
    }
    for (parent, stream, index), names in hasher._runs.items():
        parents = [parent, *names[:-1]]
        for i, (above, name) in enumerate(zip(parents, names, strict=False)):
            before[name] = (above, (stream, index + i * hasher.hash_block_size))
    found = {0: 0}
    for name, (parent, content) in sorted(before.items()):
        found[name] = hash((found[parent], content))
    return found


def queue_of(replay: VLLMReplay) -> list[tuple[int, Any]]:
    """Return the free queue in order: block ids, what they hold, and for which group."""
    contents = contents_of(replay.manager.hasher)

    def named(key: int | None) -> Any:
        return key and (contents[name_of(key)], key >> NAME_BITS)

    return [
        (block.block_id, (named(block.block_hash), block.num_hash_tokens, [*map(named, block.extra_hashes)]))
        for block in replay.pool.free_block_queue
    ]


class Walk(VLLMReplay):
    """Step by step, told in which steps to write the free queue down."""

    def __init__(self, scenario: VLLMScenario, steps: set[int]) -> None:
        super().__init__(scenario)
        self.steps = steps
        self.queues: dict[int, Any] = {}

    def _count_blocks(self, record: StepRecord) -> None:
        super()._count_blocks(record)
        if self.step in self.steps:
            self.queues[self.step] = queue_of(self)


class Visits(VisitReplay):
    """By visits; writes the free queue down in some of the steps in which leap and log are together."""

    def __init__(self, scenario: VLLMScenario, rng: Random | None, every: int) -> None:
        super().__init__(scenario, rng)
        self.every = every
        self.queues: dict[int, Any] = {}

    def _count_blocks(self, record: StepRecord) -> None:
        super()._count_blocks(record)
        if not self._spelled and len(self.looks) % self.every == 0:
            self.queues[self.step] = queue_of(self)


def difference(
    row: Json, rng: Random | None = None, max_steps: int = 1500, every: int = 3
) -> tuple[str, Visits, ReplayResult[StepRecord]]:
    """Run a scenario step by step and by visits; say where they first differ, empty if nowhere."""
    scenario = VLLMScenario(**row)
    leap = Visits(scenario, rng, every)
    ours = leap.run(max_steps)
    walk = Walk(scenario, set(leap.queues))
    theirs = walk.run(max_steps)
    return _first_difference(theirs, ours, walk, leap), leap, theirs


def _first_difference(
    theirs: ReplayResult[StepRecord], ours: ReplayResult[StepRecord], walk: Walk, leap: Visits
) -> str:
    for a, b in zip(theirs.steps, ours.steps, strict=False):
        if (a.sched_line(), a.free) != (b.sched_line(), b.free):
            return (
                f"step {a.step}: step by step {a.sched_line()!r} {a.free}, visits {b.sched_line()!r} {b.free}"
            )
    if len(theirs.steps) != len(ours.steps):
        return f"{len(theirs.steps)} steps, visits {len(ours.steps)}"
    evicted, hits, told = 0, 0, {}
    for step in theirs.steps:
        evicted, hits = evicted + step.evicted, hits + sum(step.hits.values())
        told[step.step] = (step.step, step.free_end, step.cached_end, evicted, hits)
    for look in leap.looks:
        if any(a not in (None, b) for a, b in zip(look, told[look.step], strict=True)):
            return f"(step, free, cached, evicted, hits) {told[look.step]}, visits {tuple(look)}"
    for step, queue in leap.queues.items():
        if queue != walk.queues.get(step):
            return f"step {step}: free queue {walk.queues.get(step)}, visits {queue}"
    return "" if walk.finish == leap.finish else f"ends {walk.finish}, visits {leap.finish}"
