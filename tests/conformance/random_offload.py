"""Random scenarios with a tier beyond the GPU: those of `random_scenarios`, with less room and more that returns."""

from __future__ import annotations

from random import Random
from typing import Any

from random_scenarios import prompt_lengths, random_scenario

Json = dict[str, Any]


def random_offload_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """One scenario; the same seed gives the same scenario."""
    rng = Random(f"offload {seed}")
    scenario = random_scenario(seed, version)
    for key in ("prefix_match_unit", "prefill_schedule_interval"):
        scenario.pop(key, None)
    for group in (*scenario.get("kv_cache_groups", ()), *scenario.get("kv_cache_layers", ())):
        group.pop("checkpoint_blocks", None)
        group.pop("checkpoint_alignment", None)
    factor = rng.choice([1, 1, 1, 2, 3])
    interval = scenario.get("prefix_cache_retention_interval")
    if interval:
        scenario["prefix_cache_retention_interval"] = interval * factor
    blocks = scenario["num_gpu_blocks"]
    scenario["offload"] = _tier(rng, factor, max(factor, int(blocks * rng.choice([0.3, 0.7, 1.5, 4, 10]))))
    later = Random(f"offload 0.33 {seed}")
    if version >= (0, 33) and later.random() < 0.4:
        scenario["offload"]["sync_load_tokens"] = later.choice([16, 60, 400])
    requests = scenario["requests"]
    for request in requests:
        if rng.random() < 0.05:
            request["max_load_tokens"] = rng.randint(0, 60)
        if rng.random() < 0.05:
            request["max_offload_tokens"] = rng.randint(0, 60)
    for i in range(rng.choice([0, 4, 8, 16])):
        requests.append(_returning(rng, scenario, i))
    return scenario


def random_tiering_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """One scenario with tiers below host memory, which is small and is asked for more."""
    rng = Random(f"tiering {seed}")
    scenario = random_offload_scenario(seed, version) | {"name": f"tiers{seed}"}
    tier = scenario["offload"]
    tier.pop("store_threshold", None)
    if rng.random() < 0.7:
        room = max(1, int(scenario["num_gpu_blocks"] * rng.choice([0.1, 0.2, 0.4, 0.8])))
        tier["num_cpu_blocks"] = room * tier["block_size_factor"]
    tier["secondary_tiers"] = [_files(rng) for _ in range(rng.choice([1, 1, 1, 2]))]
    for i in range(rng.choice([4, 8, 16])):
        scenario["requests"].append(_returning(rng, scenario, i, "again"))
    return scenario


def _files(rng: Random) -> Json:
    if rng.random() < 0.2:
        return {"type": "example"}
    delays = {way: rng.choice([0, 1, 1, 2, 5, 15]) for way in ("read_delay", "write_delay")}
    threads = {way: rng.choice([1, 1, 2, 16]) for way in ("n_read_threads", "n_write_threads")}
    return {"type": "fs", **delays, **threads, "chunks_per_step": rng.choice([None, None, 1, 3])}


def _tier(rng: Random, factor: int, num_blocks: int) -> Json:
    tier: Json = {"num_cpu_blocks": num_blocks, "block_size_factor": factor}
    tier |= {"store_delay": rng.choice([0, 1, 1, 2, 7, 20]), "load_delay": rng.choice([0, 1, 1, 2, 7, 20])}
    for key, value, chance in (
        ("policy", "arc", 0.4),
        ("offload_prompt_only", False, 0.5),
        ("store_threshold", rng.choice([1, 2, 3]), 0.15),
        ("max_tracker_size", rng.choice([1, 4, 20]), 0.15),
        ("store_blocks_per_step", rng.choice([1, 2, 5]), 0.3),
        ("load_blocks_per_step", rng.choice([1, 2, 5]), 0.3),
    ):
        if rng.random() < chance:
            tier[key] = value
    return tier


def _returning(rng: Random, scenario: Json, i: int, name: str = "back") -> Json:
    """A request that continues an earlier one's conversation, or asks the same once more."""
    known = scenario["requests"]
    other = rng.choice(known)["id"]
    room = scenario["max_model_len"] - _longest(known, other)
    request: Json = {"id": f"{name}{i}", "after": [other], "delay_steps": rng.choice([0, 2, 10, 30])}
    request["prompt"] = [{"prompt_of": other}]
    request["output_len"] = max(1, min(rng.randint(1, 12), room))
    if room > 8 and rng.random() < 0.6:
        output = next(r["output_len"] for r in known if r["id"] == other)
        told = min(rng.randint(1, output), room - 2)
        request["prompt"].append({"output_of": other, "len": told})
        request["output_len"] = max(1, min(request["output_len"], room - told))
    if scenario["policy"] == "priority":
        request["priority"] = rng.randint(0, 3)
    return request


def _longest(known: list[Json], request_id: str) -> int:
    """Tokens of a request's prompt."""
    return prompt_lengths(known)[request_id]
