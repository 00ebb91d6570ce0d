"""Random scenarios for the leap over groups that give blocks back: windows, chunks, states."""

from __future__ import annotations

from random import Random
from typing import Any

from leap_scenarios import random_scenario

Json = dict[str, Any]
KINDS = ("window", "chunk", "none", "align", "ring")


def random_groups(rng: Random, kind: str) -> Json:
    """Return a scenario as JSON, of an engine that does not cache prefixes."""
    if kind == "ring":
        return with_ring(rng, random_groups(rng, rng.choice(["window", "align"])))
    row = random_scenario(rng)
    size = row["block_size"] = rng.choice([1, 2, 4, 4, 8, 16])
    row["kv_cache_groups"] = groups = _groups(rng, kind, size, row["max_model_len"])
    row["enable_prefix_caching"] = False
    if kind == "align" and row["enable_chunked_prefill"]:
        row["max_num_batched_tokens"] = max(row["max_num_batched_tokens"], size + rng.choice([0, 1, 5, 40]))
    num_groups = sum(group.get("repeat", 1) for group in groups)
    one = -(-row["max_model_len"] // size) * num_groups
    row["num_gpu_blocks"] = max(4 * num_groups, int(one * rng.choice([0.5, 0.8, 1.0, 1.3, 2, 4]))) + 1
    return row


def _groups(rng: Random, kind: str, size: int, longest: int) -> list[Json]:
    full = {"kind": "full", "block_size": size, "repeat": rng.choice([1, 1, 2])}
    window = {
        "kind": "sliding_window",
        "window": rng.choice([1, 2, 5, 8, 16, 17, 33, 64]),
        "repeat": rng.choice([1, 2, 3]),
    }
    if kind == "window":
        wider = window | {"window": 2 * window["window"] + 1}
        if rng.random() < 0.2:
            full["block_size"] = 2 * size
        return rng.choice([[full, window], [window, full], [window], [full, window, wider]])
    if kind == "chunk":
        chunk = {
            "kind": "chunked_local",
            "chunk": rng.choice([1, 5, 8, 16, 20, 32, 64]),
            "repeat": rng.choice([1, 2]),
        }
        return rng.choice([[full, chunk], [chunk], [full, chunk, window]])
    state: Json = {"kind": "mamba", "mode": kind, "repeat": rng.choice([1, 2, 3])}
    if kind == "align":
        state["block_size"] = size
        if rng.random() < 0.4:
            state |= {"checkpoint_blocks": 1, "checkpoint_alignment": rng.choice([1, 4, 8])}
    return rng.choice([[full, state], [state, full], [state], [full, state, window]])


def with_ring(rng: Random, row: Json) -> Json:
    """Put circular buffers among a scenario's groups: a block a request, out of prefix caching."""
    repeat = rng.choice([1, 1, 2])
    ring = {"kind": "circular_buffer", "block_size": row["block_size"] * rng.choice([1, 2]), "repeat": repeat}
    groups = row["kv_cache_groups"]
    groups.insert(rng.randint(0, len(groups)), ring)
    row["num_gpu_blocks"] += repeat * rng.randint(1, row["max_num_seqs"])
    return row


def random_unshared(rng: Random, kind: str) -> Json:
    """Return one whose engine caches prefixes that nobody else asks for."""
    if kind == "ring":
        beside = rng.choice(["window", "align"])
        row = random_returns(rng) if rng.random() < 0.4 else random_unshared(rng, beside)
        remade = rng.choice([0, 0, 1, 8, 20])
        for group in row["kv_cache_groups"] if len(row["kv_cache_groups"]) > 1 else ():
            if remade and group["kind"] == "sliding_window":
                group |= {"bounded_replay": True, "window": remade}
        return with_ring(rng, row)
    row = random_groups(rng, kind)
    row["enable_prefix_caching"] = True
    for group in row["kv_cache_groups"]:
        if kind != "window":
            group["block_size"] = row["block_size"]
    for request in row["requests"]:
        outputs = request.get("max_tokens") or request["output_len"]
        request["prompt"] = [{"len": rng.randint(1, max(1, row["max_model_len"] - outputs))}]
    return row


def random_returns(rng: Random, beside: str = "") -> Json:
    """Return one in which preempted requests find much of their own again: long prompts, a small pool."""
    row = random_unshared(rng, "window")
    size, num_requests = rng.choice([1, 2, 4]), rng.randint(5, 14)
    longest = rng.choice([40, 80, 160])
    window = {
        "kind": "sliding_window",
        "window": rng.choice([3, 9, 16, 40, 60]),
        "repeat": rng.choice([1, 2]),
    }
    full = {"kind": "full", "repeat": rng.choice([1, 1, 2])}
    groups = rng.choice([[full, window], [window, full], [window], [full, window, window | {"window": 25}]])
    if beside == "chunk":
        chunk = {"kind": "chunked_local", "chunk": size * rng.choice([2, 5, 8]), "repeat": rng.choice([1, 2])}
        groups = rng.choice([[full, chunk], [chunk, full], [full, chunk, window]])
    if beside == "align":
        size = rng.choice([4, 8, 16])
        state: Json = {"kind": "mamba", "mode": "align", "block_size": size, "repeat": rng.choice([1, 2, 3])}
        if rng.random() < 0.4:
            state |= {"checkpoint_blocks": 1, "checkpoint_alignment": rng.choice([1, 4])}
        groups = rng.choice([[full, state], [state, full], [full, state, window]])
    one = -(-longest // size) * sum(group["repeat"] for group in groups)
    row |= {
        "block_size": size, "kv_cache_groups": groups, "max_model_len": longest, "max_num_seqs": 8,
        "num_gpu_blocks": int(one * rng.uniform(1.0, 1.8)) + 2,
        "enable_chunked_prefill": True, "max_num_batched_tokens": rng.choice([16, 40, 256]),
        "long_prefill_token_threshold": 0, "watermark": 0.0,
    }  # fmt: skip
    row["requests"] = [
        {
            "id": f"q{i}", "prompt": [{"len": rng.randint(longest // 4, longest // 2)}], "priority": rng.randrange(3),
            "output_len": rng.randint(1, longest // 2), "arrival_step": rng.choice([0, rng.randrange(30)]),
        }
        for i in range(num_requests)
    ]  # fmt: skip
    return row
