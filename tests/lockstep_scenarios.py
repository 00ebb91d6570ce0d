"""Random loads on ranks in lockstep: engines, step times with knots, arrivals, clients that leave, priorities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.simulation.deploy import Setup
from kvplan.timing.step import NO_KNOT, StepShape

MS = TICKS_PER_S // 1000


@dataclass(frozen=True)
class KnottedStepTime:
    """A step time whose decode line gets steeper at each multiple of `knot` tokens of context; 0 = a straight one."""

    fixed: int
    per_sequence: int
    per_context: int
    per_prefill: int
    knot: int = 0
    per_pooled: int = 0
    """Per token of all ranks, where one of them has more than `graphs`."""
    graphs: int = 0

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step."""
        context = int(shape.decode_context)
        base, slope, _ = self.decode_line(shape.num_decodes, context)
        return int(base + slope * context + self.per_prefill * shape.num_prefill_tokens)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        """(a, b, limit); the pieces meet, with slopes of 1, 2, 3 ... times the first."""
        base = self.fixed + self.per_sequence * num_decodes
        if not self.knot:
            return base, self.per_context, NO_KNOT
        knots = decode_context // self.knot
        meets = self.per_context * self.knot * (knots * (knots + 1) // 2)
        return base - meets, self.per_context * (knots + 1), (knots + 1) * self.knot

    def pool_ticks(self, num_tokens: int, tokens_of_ranks: Sequence[int]) -> int:
        """What all ranks' tokens add to each rank's step, were one of them to run eagerly."""
        return self.per_pooled * sum(tokens_of_ranks) if max(tokens_of_ranks) > self.graphs else 0


def random_lockstep(rng: Random, drafts: int = 0) -> tuple[Scenario, dict[str, Setup]]:
    """Return a scenario and its engines: groups of two to nine ranks, one group or two; each may draft."""
    most = rng.choice([20, 60, 200])
    size = rng.choice([1, 4, 16])
    num_seqs = rng.choice([1, 2, 4, 8, 32])
    budget = max(num_seqs, rng.choice([8, 32, 128, 2048]))
    chunked = rng.random() < 0.85
    longest = 4 * most + 40
    pool = int(-(-longest // size) * rng.choice([1.0, 1.1, 1.5, 3, 10])) * (1 + (drafts > 0)) + 2 * drafts
    config = EngineConfig(
        block_size=size,
        num_gpu_blocks=pool + 1,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=(budget if chunked else max(budget, longest)) * (1 + drafts),
        num_speculative_tokens=drafts,
        spec_method=rng.choice(["eagle", "ngram"]) if drafts else "eagle",
        kv_cache_groups=rng.choice([(), (KVCacheGroup(kind="sliding_window", window=9), KVCacheGroup())])
        if drafts
        else (),
        max_model_len=longest,
        enable_prefix_caching=rng.random() < 0.7,
        enable_chunked_prefill=chunked,
        policy=rng.choice(["fcfs", "fcfs", "priority"]),
        async_scheduling=rng.random() < 0.5,
        watermark=rng.choice([0, 0, 0.05]),
        scheduler_reserve_full_isl=rng.random() < 0.6,
        long_prefill_token_threshold=rng.choice([0, 0, 0, 5]),
    )
    time = KnottedStepTime(
        rng.choice([0, 1, 8]) * MS + 1, rng.choice([0, 0, MS // 50]), rng.choice([0, 3, 67_700, MS // 20, MS]),
        rng.choice([1, MS // 20]), rng.choice([0, 0, 100, 1000]),
    )  # fmt: skip
    setup = Setup(config, time, 1000.0, 1, lockstep_ranks=rng.choice([2, 2, 3, 4, 9]))
    rate = rng.choice([2, 20, 200, 2000])
    deployment = {
        "replicas": rng.choice([1, 1, 2]),
        "router": rng.choice(["round_robin", "least_kv", "prefix_aware"]),
    }
    workload = random_workload(rng, most, rate)
    data = {
        "model": "stated",
        "step_time": {"fixed_us": 1},
        "workload": workload,
        "limits": {"thrash_ratio": 1e6},
        "acceptance_rate": rng.choice([0.0, 0.6, 0.9]) if drafts else 0.0,
    }
    if rng.random() < 0.15:
        data["limits"]["horizon_s"] = rng.choice([0.05, 0.5, 2])
    time = replace(time, per_pooled=rng.choice([0, 0, MS // 300, MS]), graphs=rng.choice([0, 3, 16, 200]))
    setup = replace(setup, step_time=time)
    return parse_scenario(data | deployment), {"": setup}


def random_workload(rng: Random, most: int, rate: float) -> dict[str, Any]:
    """Return arrivals, lengths of up to `most` tokens, clients that leave, shared prompts, classes with priorities."""
    arrivals = rng.choice(
        [
            {"kind": "poisson", "rate": rate},
            {"kind": "constant", "rate": rate},
            {"kind": "all_at_once"},
            {"kind": "closed_loop", "concurrency": rng.choice([2, 8, 30]), "pause_s": rng.choice([0, 0.05])},
        ]
    )
    lengths = {"kind": "lognormal", "sigma": rng.choice([0.8, 2.0]), "high": most}
    own = {
        "prompt": lengths | {"median": max(1, most // rng.choice([2, 10]))},
        "answer": lengths | {"median": max(1, most // rng.choice([2, 5, 20]))},
        "thinking": rng.choice([0, lengths | {"median": max(1, most // 5)}]),
        "stop": rng.choice(["eos", "length"]),
        **rng.choice([{}, {}, {"timeout_s": 20 / rate}, {"abort_share": 0.3, "abort_after_s": 5 / rate}]),
    }
    shared = rng.choice([{}, {}, {"shared_prefix_tokens": most // 3, "shared_prefix_groups": 2}])
    if rng.random() < 0.4:
        classes = {"a": own | shared | {"priority": 0}, "b": own | {"priority": 1}}
        own, shared = {"classes": classes}, {}
    return {
        "num_requests": rng.choice([5, 15, 40]), "seed": rng.randrange(10**6), "arrivals": arrivals,
        **own, **shared,
    }  # fmt: skip
