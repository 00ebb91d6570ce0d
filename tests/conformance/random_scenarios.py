"""Random scenarios over every feature, for comparing two engines step by step.

Small pools and short prompts: what differs between engines is evicting, preempting and sharing, not length.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvplan.conformance.vllm_records import StepRecord

Json = dict[str, Any]


RANDOM_MAX_STEPS = 3000
"""Some of these engines preempt for ever; so far they are followed."""


def run_hash(steps: Iterable[StepRecord]) -> str:
    """16 digits of a hash over all that was decided and held in a run."""
    lines = "".join(step.sched_line() + step.state_line() for step in steps)
    return sha256(lines.encode()).hexdigest()[:16]


def random_groups(rng: Random, block_size: int, num_drafts: int, eagle: bool, caching: bool) -> list[Json]:
    """One to four groups; an empty list stands for full attention alone."""
    first = {"kind": "full"} | ({"eagle": True} if eagle and rng.random() < 0.7 else {})
    window = {"kind": "sliding_window", "window": rng.choice([3, 5, 8, 16, 24, 33, 64])}
    other = {"kind": "sliding_window", "window": rng.choice([4, 12, 40])}
    chunk = {"kind": "chunked_local", "chunk": block_size * rng.choice([1, 2, 3, 4])}
    mamba: Json = {"kind": "mamba", "mode": "align" if caching or rng.random() < 0.5 else "none"}
    if rng.random() < 0.3:
        mamba |= {"checkpoint_blocks": 1, "checkpoint_alignment": rng.choice([1, 2, block_size])}
    menu = [[], [], [first, window], [first, window | {"repeat": 2}], [first, window, other], [window]]
    menu += [[first, mamba], [first, mamba | {"repeat": 2}], [first, window, mamba]]
    if not eagle:
        menu += [[first, chunk], [first, chunk | {"repeat": 2}], [chunk]]
        menu += [[first, window | {"block_size": 2 * block_size}, mamba]]
    menu += [
        [first, window | {"block_size": 2 * block_size}],
        [first | {"block_size": 2 * block_size}, window],
    ]
    if mamba["mode"] == "none":
        menu += [[mamba]]
    return rng.choice(menu)


def random_layers(rng: Random, groups: list[Json]) -> list[Json]:
    """The same kinds as layers, which the engine groups itself."""
    layers = []
    for group in groups:
        layer = {key: value for key, value in group.items() if key not in ("repeat", "eagle", "block_size")}
        layer["layers"] = rng.randint(1, 9)
        if layer["kind"] in ("full", "sliding_window") and rng.random() < 0.3:
            layer["kv_heads"] = 2
        layers.append(layer)
    return layers


def random_prompt(rng: Random, i: int, block_size: int, longest: int) -> list[Any]:
    """Shared beginnings, an earlier request's prompt or answer, own tokens; or plain token ids."""
    if rng.random() < 0.04:
        return [rng.choice([7, 8]) if rng.random() < 0.02 else 7 for _ in range(rng.randint(1, longest))]
    prompt: list[Json] = []
    kind = rng.random()
    if i and kind < 0.2:
        other = f"r{rng.randrange(i)}"
        prompt.append({"prompt_of": other})
        if rng.random() < 0.7:
            prompt.append({"output_of": other, "len": rng.randint(1, 12)})
    elif kind < 0.65:
        prompt.append({"prefix_id": f"family{rng.randrange(3)}", "len": rng.randint(1, longest)})
        if rng.random() < 0.1:
            prompt[-1]["start"] = block_size
    if not prompt or rng.random() < 0.6:
        aligned = rng.random() < 0.3
        prompt.append({"len": block_size * rng.randint(1, 3) if aligned else rng.randint(1, longest)})
    return prompt


def random_requests(rng: Random, scenario: Json) -> list[Json]:
    """Requests with arrivals, follow-ups, stop tokens, aborts, priorities."""
    requests: list[Json] = []
    block_size, longest = scenario["block_size"], rng.choice([20, 40, 80])
    tempo, eos, abort = rng.choice([0, 1, 4]), rng.random() * 0.8, rng.choice([0, 0, 0.2])
    for i in range(rng.randint(2, 14)):
        request: Json = {"id": f"r{i}", "output_len": rng.randint(1, rng.choice([4, 30, 60]))}
        request["prompt"] = random_prompt(rng, i, block_size, longest)
        if i and rng.random() < 0.2:
            request |= {"after": [f"r{rng.randrange(i)}"], "delay_steps": rng.randint(0, 3)}
        else:
            request["arrival_step"] = rng.randint(0, tempo * i)
        if rng.random() < eos:
            request["stop"] = "eos"
            if rng.random() < 0.4:
                request["max_tokens"] = request["output_len"] + rng.randint(0, 3)
        if scenario["policy"] == "priority":
            request["priority"] = rng.randint(0, 3)
        if rng.random() < abort:
            request["abort_when"] = rng.choice(["before_schedule", "before_output"])
            if i and rng.random() < 0.5:
                request |= {"abort_after": [f"r{rng.randrange(i)}"], "abort_delay_steps": rng.randint(0, 2)}
            else:
                request["abort_step"] = request.get("arrival_step", 0) + rng.randint(0, 30)
        if scenario.get("num_speculative_tokens") and rng.random() < 0.3:
            request["accept"] = [rng.randint(0, 1) for _ in range(rng.randint(1, 5))]
        requests.append(request)
    return requests


def prompt_lengths(requests: list[Json]) -> dict[str, int]:
    """Tokens of each prompt."""
    lengths: dict[str, int] = {}
    for request in requests:
        lengths[request["id"]] = sum(
            1
            if isinstance(piece, int)
            else lengths[piece["prompt_of"]]
            if "prompt_of" in piece
            else piece["len"]
            for piece in request["prompt"]
        )
    return lengths


def random_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """One scenario; the same seed gives the same scenario, but for flags that a version does not have."""
    scenario = _scenario(seed)
    if version >= (0, 33):
        scenario |= _flags_of_033(Random(f"0.33 {seed}"), scenario)
    return scenario if version >= (0, 32) else _plain(scenario, version)


def compressed_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """One with the groups of models that compress their latents: circular buffers, windows out of prefix caching."""
    rng = Random(f"compressed {seed}")
    scenario = _scenario(seed) | {"name": f"compressed{seed}"}
    for key in ("kv_cache_layers", "prefix_match_unit", "prefix_cache_retention_interval"):
        scenario.pop(key, None)
    size = scenario["block_size"]
    eagle = bool(scenario.get("num_speculative_tokens")) and scenario["spec_method"] == "eagle"
    first: Json = {"kind": "full"} | ({"eagle": True} if eagle and rng.random() < 0.5 else {})
    window: Json = {"kind": "sliding_window", "window": rng.choice([3, 8, 16, 33]), "bounded_replay": True}
    window |= {"block_size": size // rng.choice([1, 2, 4])}
    named = {"kind": "sliding_window", "window": rng.choice([5, 12])}
    ring: Json = {"kind": "circular_buffer", "block_size": rng.choice([2, 4, 8])}
    mode = "align" if scenario["enable_prefix_caching"] else "none"
    state = {"kind": "mamba", "mode": mode}
    menu = [
        [first, ring],
        [ring, first],
        [window, first],
        [window, window, first, ring],
        [state, first, ring],
    ]
    menu += [[first, window, ring], [first, named, ring], [first, named, window]]
    groups = rng.choice(menu)
    scenario["kv_cache_groups"] = groups
    scenario["num_gpu_blocks"] += (
        sum(2 if "window" in group else 1 for group in groups) * scenario["max_num_seqs"]
    )
    return scenario


def dspark_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """A random scenario whose EAGLE head is DSpark; another drafter's, or none, stays."""
    scenario = random_scenario(seed, version)
    return scenario | ({"spec_method": "dspark"} if scenario.get("spec_method") == "eagle" else {})


def limited_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """A random scenario under limits of the scheduler's own, and states kept where EAGLE's prompts part."""
    rng = Random(f"limited {seed}")
    scenario = random_scenario(seed, version) | {"name": f"limited{seed}"}
    if rng.random() < 0.5:
        scenario["max_num_active_seqs"] = rng.randint(1, scenario["max_num_seqs"])
    if rng.random() < 0.6 and scenario["enable_chunked_prefill"]:
        scenario["max_num_scheduled_tokens"] = rng.choice([3, 7, 16, 20, 40, 300])
    if rng.random() < 0.5 and scenario["enable_chunked_prefill"]:
        scenario["long_prefill_token_threshold"] = min(rng.choice([2, 5, 9, 16]), scenario["max_model_len"])
        scenario["long_prefill_token_threshold_adaptive"] = True
    if scenario["enable_prefix_caching"] and rng.random() < 0.5:
        _let_prompts_part(rng, scenario)
    return scenario


def _let_prompts_part(rng: Random, scenario: Json) -> None:
    """Full attention beside states, EAGLE's more often than not, and hits that end inside blocks."""
    for key in ("kv_cache_layers", "prefix_cache_retention_interval"):
        scenario.pop(key, None)
    drafts = rng.choice([1, 1, 2])
    method = rng.choice(["eagle", "eagle", "ngram"])
    scenario |= {
        "num_speculative_tokens": drafts,
        "spec_method": method,
        "accept_rate": rng.choice([0.4, 0.8]),
    }
    state = {"kind": "mamba", "mode": "align"} | rng.choice(
        [{}, {}, {"checkpoint_blocks": 1, "checkpoint_alignment": rng.choice([1, 2])}]
    )
    scenario["kv_cache_groups"] = [{"kind": "full", "eagle": method == "eagle" and rng.random() < 0.8}, state]
    scenario["prefix_match_unit"] = scenario["block_size"] // rng.choice([2, 4])
    scenario["enable_mamba_shared_prefix_checkpoint"] = rng.random() < 0.8
    scenario["max_num_batched_tokens"] = max(
        scenario["max_num_batched_tokens"], scenario["max_num_seqs"] * (2 + drafts)
    )
    scenario["num_gpu_blocks"] += 4 * scenario["max_num_seqs"]


def tiered_scenario(seed: int, version: tuple[int, int] = (0, 32)) -> Json:
    """A random scenario whose drafts become fewer, none or more as the batch grows; where nobody drafts, as it is."""
    rng = Random(f"tiered {seed}")
    scenario = random_scenario(seed, version) | {"name": f"tiered{seed}"}
    drafts = scenario.get("num_speculative_tokens", 0)
    if not drafts:
        return scenario
    return scenario | {"num_speculative_tokens_per_batch_size": random_tiers(rng, drafts)}


def random_tiers(rng: Random, drafts: int) -> list[list[int]]:
    """[from, to, drafts] for small batches: none, fewer or more than are made otherwise, gaps and any order."""
    tiers, low = [], 1
    for _ in range(rng.randint(1, 4)):
        high = low + rng.choice([0, 0, 1, 2, 5])
        tiers.append([low, high, rng.randint(0, drafts + 1)])
        low = high + rng.choice([1, 1, 2])
    rng.shuffle(tiers)
    return tiers


SCENARIOS = {
    "all": random_scenario,
    "compressed": compressed_scenario,
    "dspark": dspark_scenario,
    "limited": limited_scenario,
    "tiered": tiered_scenario,
}


LATER = ("watermark", "scheduler_reserve_full_isl", "prefix_cache_retention_interval")
"""Flags that versions before 0.32 do not all have."""
BEYOND_PLAIN = (
    "kv_cache_groups",
    "kv_cache_layers",
    "num_speculative_tokens",
    "spec_method",
    "prefix_match_unit",
)


def _plain(scenario: Json, version: tuple[int, int]) -> Json:
    """Full attention without drafts: what older versions are held to; under 0.11 first come, first served."""
    kept = {key: value for key, value in scenario.items() if key not in (*LATER, *BEYOND_PLAIN)}
    return kept if version >= (0, 12) else kept | {"policy": "fcfs"}


def _flags_of_033(rng: Random, scenario: Json) -> Json:
    flags: Json = {"prefill_schedule_interval": rng.choice([2, 3, 5])} if rng.random() < 0.2 else {}
    if scenario.get("spec_method") == "eagle" and rng.random() < 0.3:
        flags["disable_lookahead_block_hashes"] = True
    return flags


def _scenario(seed: int) -> Json:
    rng = Random(seed)
    block_size = rng.choice([4, 4, 8, 16])
    num_drafts = rng.choice([0, 0, 0, 1, 2, 3])
    method = rng.choice(["eagle", "eagle", "draft_model", "ngram"])
    caching = rng.random() < 0.8
    scenario: Json = {"name": f"random{seed}", "block_size": block_size, "enable_prefix_caching": caching}
    scenario["policy"] = rng.choice(["fcfs", "fcfs", "priority"])
    scenario["max_num_seqs"] = rng.choice([2, 4, 16])
    if num_drafts:
        scenario |= {"num_speculative_tokens": num_drafts, "spec_method": method}
        scenario["accept_rate"] = rng.choice([0.0, 0.4, 0.7, 1.0])
    groups = random_groups(rng, block_size, num_drafts, bool(num_drafts) and method == "eagle", caching)
    if len(groups) > 1 and rng.random() < 0.15:
        scenario["kv_cache_layers"] = random_layers(rng, groups)
    elif groups:
        scenario["kv_cache_groups"] = groups
    wide = "kv_cache_layers" in scenario or any("block_size" in group for group in groups)
    unit = 2 * block_size if wide else block_size
    if caching and any(group["kind"] in ("sliding_window", "mamba") for group in groups):
        scenario["prefix_cache_retention_interval"] = rng.choice([0, 0, None, unit, 2 * unit, 4 * unit])
    mamba_last = len(groups) == 2 and groups[1]["kind"] == "mamba" and groups[1]["mode"] == "align"
    if caching and mamba_last and rng.random() < 0.5:
        scenario["prefix_match_unit"] = block_size // rng.choice([2, 4])
    for key, value, chance in (
        ("watermark", rng.choice([0.05, 0.3]), 0.15),
        ("scheduler_reserve_full_isl", False, 0.25),
        ("long_prefill_token_threshold", rng.choice([5, 16, 30]), 0.25),
    ):
        if rng.random() < chance:
            scenario[key] = value
    requests = random_requests(rng, scenario)
    lengths = prompt_lengths(requests)
    longest = max(lengths[r["id"]] + max(r["output_len"], r.get("max_tokens", 0)) for r in requests)
    scenario["max_model_len"] = longest + rng.choice([0, 1, 7, 40])
    if scenario.get("long_prefill_token_threshold", 0) > scenario["max_model_len"]:
        del scenario["long_prefill_token_threshold"]
    chunked = rng.random() < 0.85
    scenario["enable_chunked_prefill"] = chunked
    budget = rng.choice([16, 24, 48, 100, 256]) if chunked else 256
    scenario["max_num_batched_tokens"] = max(budget, scenario["max_num_seqs"] * (num_drafts + 2))
    if not chunked:
        scenario["max_num_batched_tokens"] = max(budget, scenario["max_model_len"])
        scenario.pop("long_prefill_token_threshold", None)
    num_groups = sum(group.get("repeat", 1) for group in groups) or 1
    num_groups *= 2 if "kv_cache_layers" in scenario else 1
    need = -(-longest // block_size) * num_groups
    scenario["num_gpu_blocks"] = (
        2 + int(need * rng.choice([0.8, 1.1, 1.5, 2.5, 6])) + num_groups * (1 + num_drafts)
    )
    scenario["requests"] = requests
    return scenario


def main() -> None:
    """Write scenarios: random_scenarios.py FOLDER FIRST_SEED COUNT."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"random{seed}.json").write_text(json.dumps(random_scenario(seed)))


if __name__ == "__main__":
    main()
