"""Random scenarios over SGLang's flags and policies, for comparing two schedulers pass by pass.

Small pools and short prompts: what differs is retracting, evicting, sharing and ordering, not length.

    python random_scenarios.py FOLDER [FIRST COUNT]       writes NAME.json per seed, for SGLang's own scheduler
    python random_scenarios.py --pack FOLDER ...          packs the hashes of its logs into random_golden.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

Json = dict[str, Any]
MAX_STEPS = 3000
PRESSED = 1000
"""From this seed on, pools are too small for what was let in."""
POLICIES = ["fcfs", "fcfs", "lof", "lpm", "lpm", "dfs-weight", "hrrn", "shortest-prefill-first", "priority"]


def random_prompt(rng: Random, requests: list[Json], longest: int) -> list[Json]:
    """A shared beginning or an earlier request's prompt and answer, and mostly tokens of its own."""
    prompt: list[Json] = []
    kind = rng.random()
    if requests and kind < 0.25:
        other = rng.choice(requests)
        prompt.append({"prompt_of": other["id"]})
        if (
            other["output_len"] > 1 and rng.random() < 0.7
        ):  # without its last token, which may be a stop token
            prompt.append({"output_of": other["id"], "len": rng.randint(1, other["output_len"] - 1)})
    elif kind < 0.7:
        prompt.append({"prefix_id": f"family{rng.randrange(3)}", "len": rng.randint(1, 2 * longest)})
    if not prompt or rng.random() < 0.6:
        prompt.append({"len": rng.randint(1, longest)})
    return prompt


def random_requests(rng: Random, by_priority: bool, longest: int, pool: int) -> list[Json]:
    """Requests with arrivals, follow-ups, stop tokens, known lengths, aborts, priorities."""
    requests: list[Json] = []
    tempo, eos, abort = rng.choice([0, 1, 6]), rng.choice([0, 0.5, 1]), rng.choice([0, 0, 0.25])
    ignore_eos, most = rng.choice([0, 0, 0.5]), rng.choice([6, 40, 120, pool // 4])
    for i in range(rng.randint(2, 20)):
        request: Json = {"id": f"r{i:02d}", "output_len": rng.randint(1, most)}
        request["prompt"] = random_prompt(rng, requests, longest)
        if i and rng.random() < 0.2:
            request |= {"after": [rng.choice(requests)["id"]], "delay_steps": rng.randint(0, 3)}
        else:
            request["arrival_step"] = rng.randint(0, tempo * i)
        if rng.random() < eos:
            request |= {"stop": "eos", "max_tokens": request["output_len"] + rng.randint(0, most // 2)}
        elif rng.random() < ignore_eos:
            request["ignore_eos"] = True
        if by_priority:
            request["priority"] = rng.randint(0, 40)
        if rng.random() < abort:
            request["abort_step"] = request.get("arrival_step", 0) + rng.randint(0, 30)
        requests.append(request)
    return requests


def random_scenario(seed: int) -> Json:
    """Draw the scenario of a seed."""
    rng = Random(seed)
    page = rng.choice([1, 1, 1, 4, 16])
    longest = rng.choice([10, 10, 40, 120])
    pages = max(rng.choice([150, 300, 600, 1200]) // page, 8)
    scenario: Json = {
        "name": f"random{seed:05d}",
        "note": "",
        "block_size": page,
        "num_gpu_blocks": pages,
        "max_model_len": rng.choice([pages * page, 4 * pages * page, max(pages * page // 2, 40)]),
        "max_num_seqs": rng.choice([2, 4, 8, 32, 32]),
        "max_num_batched_tokens": page * max(1, rng.choice([16, 32, 64, 256]) // page),
        "policy": rng.choice(POLICIES),
        "schedule_conservativeness": rng.choice([1.0, 0.05, 0.05, 0.05, 0.3, 1.5]),
    }
    options: Json = {
        "enable_chunked_prefill": False,
        "enable_mixed_chunk": True,
        "prefill_max_requests": rng.randint(1, 3),
        "prefill_decode_interval": rng.randint(1, 3),
        "radix_eviction_policy": "lfu",
        "max_prefill_tokens": rng.choice([16, 50, 200]),
    }
    scenario |= {key: value for key, value in options.items() if rng.random() < 0.15}
    if scenario["policy"] != "shortest-prefill-first" and rng.random() < 0.15:
        scenario["enable_prefix_caching"] = False
    if scenario["policy"] == "priority":
        scenario["priority_preemption_threshold"] = rng.choice([0, 5, 10])
        scenario["low_priority_first"] = rng.random() < 0.4
        scenario["disable_priority_preemption"] = rng.random() < 0.2
    scenario["requests"] = random_requests(rng, scenario["policy"] == "priority", longest, pages * page)
    return press(rng, scenario, pages * page) if seed >= PRESSED else scenario


def press(rng: Random, scenario: Json, pool: int) -> Json:
    """Let many long answers in at once on the promise that they will end soon: retractions."""
    scenario |= {"schedule_conservativeness": 0.05, "max_num_seqs": 32}
    for request in scenario["requests"]:
        request["output_len"] = rng.randint(pool // 12, pool // 4)
        request |= {"stop": "eos", "max_tokens": request["output_len"] + rng.randint(0, pool // 12)}
        request.pop("ignore_eos", None)
        if "arrival_step" in request:
            request["arrival_step"] = rng.randint(0, 12)
    lengths = {request["id"]: request["output_len"] for request in scenario["requests"]}
    for piece in (piece for request in scenario["requests"] for piece in request["prompt"]):
        if "output_of" in piece:
            piece["len"] = min(piece["len"], lengths[piece["output_of"]] - 1)
    return scenario


def pack(folders: list[str]) -> None:
    """Keep SGLang's hashes: scheduling and state, normal loop, then overlap."""
    golden = {}
    for path in sorted(path for folder in folders for path in Path(folder).glob("normal/random*.json")):
        logs = [
            json.loads((path.parents[1] / mode / path.name).read_text()) for mode in ("normal", "overlap")
        ]
        hashes = [log[key][:16] for log in logs for key in ("sched_sha256", "state_sha256")]
        golden[str(int(path.stem.removeprefix("random")))] = " ".join(hashes)
    Path(__file__).with_name("random_golden.json").write_text(json.dumps(golden, indent=0) + "\n")


def main() -> None:
    """Write scenarios, or pack what SGLang made of them."""
    if sys.argv[1] == "--pack":
        pack(sys.argv[2:])
        return
    first, count = (int(x) for x in (sys.argv[2:4] or ("0", "200")))
    for seed in range(first, first + count):
        scenario = random_scenario(seed)
        Path(sys.argv[1], f"{scenario['name']}.json").write_text(json.dumps(scenario))


if __name__ == "__main__":
    main()
