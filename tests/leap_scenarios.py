"""Random scenarios for the leap: full attention, and everything that can end a leap or mislead one; who decides alike.

Three moods: mixed; `echo`, where requests continue each other's prompts and outputs, some before these exist, so that
blocks have copies and hits grow while someone waits; `starve`, where several chunked prompts leave decodes no tokens.
"""

from __future__ import annotations

from random import Random
from typing import Any

from kvplan.conformance.replay import MAX_STEPS
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.schedulers.vllm.async_scheduler import make_scheduler

Json = dict[str, Any]


def random_scenario(rng: Random) -> Json:
    """Return a scenario as JSON."""
    mood = rng.choices(["mixed", "echo", "starve"], [50, 35, 15])[0]
    max_prompt, max_output = rng.choice([4, 20, 50]), rng.choice([4, 20, 60, 150])
    engine = _engine(rng, mood, 2 * (max_prompt + max_output) + 30)
    num_requests = rng.choice([3, 6, 12, 25, 40])
    mix = {
        "families": 1 if mood == "echo" else rng.choice([1, 1, 2, 4]),
        "shared": 1.0 if mood == "echo" else rng.choice([0, 0.4, 0.9]),
        "from_family": 0.25 if mood == "echo" else 0.6,
        "dependent": rng.choice([0, 0, 0.2] if mood == "echo" else [0, 0.2, 0.6]),
        "spread": rng.choice([0, 5, 20] if mood == "echo" else [0, 0, 3, 20, 100]),
        "stops": rng.choice([0, 0.6]),
        "aborts": rng.choice([0, 0, 0.05, 0.25]),
        "aligned": rng.random() < 0.4,
        "ahead": rng.random() < 0.3,
    }
    outputs = {f"q{i}": 1 if rng.random() < 0.07 else rng.randint(1, max_output) for i in range(num_requests)}
    requests: list[Json] = []
    lengths: dict[str, int] = {}
    for name in outputs:
        prompt, lengths[name] = _prompt(rng, mix, engine["block_size"], max_prompt, outputs, lengths)
        requests.append(_request(rng, mix, name, outputs[name], prompt, requests))
    return engine | {"requests": requests}


def _engine(rng: Random, mood: str, longest: int) -> Json:
    size = rng.choice([1, 2, 3, 4, 8, 16])
    num_seqs = rng.choice([1, 2, 4, 8, 48, 48])
    budget = max(num_seqs, rng.choice([4, 8, 16, 32, 64, 512, 512]))
    chunked, threshold = rng.random() < 0.85, rng.choice([0, 0, 0, 0, 3, 7, 20])
    if mood == "starve":
        chunked, threshold, num_seqs = True, rng.choice([2, 3, 5, 9]), rng.choice([4, 8, 16])
        budget = num_seqs + rng.choice([0, 1, 2, 4, 8])
    pool = -(-longest // size) * rng.choice([1.0, 1.0, 1.15, 1.5, 2.5, 5])
    return {
        "block_size": size,
        "num_gpu_blocks": max(2, int(pool)) + 1,
        "max_num_seqs": num_seqs,
        "max_num_batched_tokens": max(budget, num_seqs) if chunked else max(budget, longest),
        "max_model_len": longest,
        "enable_prefix_caching": rng.random() < 0.8,
        "enable_chunked_prefill": chunked,
        "policy": rng.choice(["fcfs", "fcfs", "priority"]),
        "watermark": rng.choice([0, 0, 0, 0.01, 0.1]),
        "scheduler_reserve_full_isl": rng.random() < 0.6,
        "long_prefill_token_threshold": threshold,
    }


def _prompt(
    rng: Random, mix: Json, size: int, max_prompt: int, outputs: dict[str, int], lengths: dict[str, int]
) -> tuple[list[Json], int]:
    """Return the segments of a prompt, and its length."""

    def aligned(length: int) -> int:
        return length // size * size if mix["aligned"] and length >= size and rng.random() < 0.7 else length

    prompt: list[Json] = []
    earlier = [name for name, length in lengths.items() if length <= max_prompt]
    what = rng.random()
    if what < mix["shared"] * mix["from_family"]:
        family = f"fam{rng.randrange(mix['families'])}"
        prompt.append({"prefix_id": family, "len": aligned(rng.randint(1, max_prompt))})
    elif what < mix["shared"] and earlier:
        name = rng.choice(earlier)
        prompt.append({"prompt_of": name})
        if rng.random() < 0.8:
            prompt.append({"output_of": name, "len": rng.randint(1, outputs[name])})
    elif mix["ahead"] and what < mix["shared"] + 0.1:
        name = rng.choice(list(outputs))
        prompt.append({"output_of": name, "len": rng.randint(1, outputs[name])})
    if rng.random() < 0.6 or not prompt:
        prompt.append({"len": aligned(rng.randint(1, max(1, max_prompt // 2)))})
    return prompt, sum(piece.get("len", 0) or lengths[piece["prompt_of"]] for piece in prompt)


def _request(rng: Random, mix: Json, name: str, output: int, prompt: list[Json], others: list[Json]) -> Json:
    request: Json = {"id": name, "output_len": output, "prompt": prompt, "priority": rng.randrange(3)}
    if others and rng.random() < mix["dependent"]:
        request |= {"after": rng.choice(others)["id"], "delay_steps": rng.randrange(4)}
    else:
        request["arrival_step"] = rng.randint(0, mix["spread"])
    if rng.random() < mix["stops"]:
        request |= {"stop": "eos", "max_tokens": output + rng.choice([0, 1, 2, 30])}
    if rng.random() < mix["aborts"]:
        request["abort_when"] = rng.choice(["before_schedule", "before_output"])
        if others and rng.random() < 0.5:
            request |= {"abort_after": rng.choice(others)["id"], "abort_delay_steps": rng.randrange(10)}
        else:
            request["abort_step"] = rng.randint(0, 150)
    return request


def compare(scenario: VLLMScenario, leap: LeapReplay, max_steps: int = MAX_STEPS) -> str:
    """Run a scenario step by step and on the leap; say where they first differ, empty if nowhere."""
    walk = VLLMReplay(scenario, make_scheduler(scenario.engine_config))
    theirs, ours = walk.run(max_steps).steps, leap.run(max_steps).steps
    for a, b in zip(theirs, ours, strict=False):
        if a.sched_line() != b.sched_line():
            return f"step {a.step}: step by step {a.sched_line()!r}, leap {b.sched_line()!r}"
    if len(theirs) != len(ours):
        return f"{len(theirs)} steps, leap {len(ours)}"
    state, evicted, hits = {}, 0, 0
    for step in theirs:
        evicted, hits = evicted + step.evicted, hits + sum(step.hits.values())
        state[step.step] = (step.step, step.free_end, step.cached_end, evicted, hits)
    for look in leap.looks:
        if any(a not in (None, b) for a, b in zip(look, state[look.step], strict=True)):
            return f"(step, free, cached, evicted, hits) {state[look.step]}, leap {tuple(look)}"
    return "" if walk.finish == leap.finish else f"ends {walk.finish}, leap {leap.finish}"


def with_limits(rng: Random, row: Json) -> Json:
    """Put limits of the scheduler's own below what the engine has room for."""
    limited = row | {"max_num_active_seqs": rng.choice([None, rng.randint(1, row["max_num_seqs"])])}
    if row["enable_chunked_prefill"] and rng.random() < 0.7:
        active = limited["max_num_active_seqs"] or row["max_num_seqs"]
        limited["max_num_scheduled_tokens"] = rng.choice([active, active + 1, active + 6, 20, 60])
    if row["long_prefill_token_threshold"] and rng.random() < 0.2:
        limited["long_prefill_token_threshold_adaptive"] = True
    return limited
