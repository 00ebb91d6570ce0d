"""Routing by what replicas hold, on their GPUs and in tiers beyond them."""

from __future__ import annotations

from typing import Any

import pytest
from simulation.test_simulate_offloading import TIERING, scenario

from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import parse_scenario
from kvplan.schedulers.request import Request, Segment
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.held_prefix import HeldPrefix
from kvplan.schedulers.vllm.offloading.jobs import TransferJob
from kvplan.simulation import router as routers
from kvplan.simulation.simulator import simulate


class AtOnce:
    """Copies that have ended when somebody looks."""

    def __init__(self) -> None:
        self.jobs: list[int] = []

    def submit(self, job: TransferJob) -> None:
        self.jobs.append(job.job_id)

    def wait(self, jobs: Any) -> None:
        """Nothing is under way."""

    def get_finished(self) -> list[int]:
        jobs, self.jobs = self.jobs, []
        return jobs


def engine(num_chunks: int, files: bool) -> StepByStep:
    tiers = [{"type": "fs"}] if files else []
    tier = {"num_chunks": num_chunks, "secondary_tiers": tiers}
    config = EngineConfig(block_size=4, num_gpu_blocks=12, max_model_len=40, kv_offloading=tier)
    return StepByStep(config, copies=AtOnce())


def serve(engine: StepByStep, name: str, num_tokens: int) -> None:
    engine.add_request(Request(name, (Segment(name, num_tokens),), 1))
    while engine.has_requests():
        engine.schedule()
        engine.update_from_output()


def held(engine: StepByStep, name: str, num_tokens: int) -> HeldPrefix:
    return engine.held_prefix(Request("asks", (Segment(name, num_tokens),), 1))


@pytest.mark.parametrize("files", [False, True])
def test_each_block_is_told_where_it_is_nearest(files: bool) -> None:
    """A prompt is on the GPU, then in host memory as the GPU forgets it, then in files as host memory does."""
    small = engine(num_chunks=8, files=files)
    serve(small, "a", 32)
    assert held(small, "a", 36) == (32, 0, 0)
    assert held(small, "b", 36) == (0, 0, 0)
    serve(small, "b", 24)
    found = held(small, "a", 36)
    assert found.gpu < 32
    assert sum(found) == 32 if files else found.cpu <= 8
    serve(small, "c", 32)
    assert held(small, "a", 36) == ((0, 0, 32) if files else (0, 0, 0))


def test_asking_changes_nothing() -> None:
    """The same steps, whether or not somebody asked between them."""
    outcomes = []
    for asks in (False, True):
        one = engine(num_chunks=8, files=True)
        for name, num_tokens in (("a", 32), ("b", 24), ("a", 36), ("c", 32), ("a", 36)):
            if asks:
                held(one, name, num_tokens)
            serve(one, f"{name}", num_tokens)
        outcomes.append((one.offloaded, one.scheduler.kv_cache_manager.block_pool.num_evicted))
    assert outcomes[0] == outcomes[1]


def told(router: str) -> dict[str, Any]:
    tiers = {"spec_name": TIERING, "secondary_tiers": [{}]}
    return scenario(kv_offloading=tiers) | {"replicas": 3, "router": router}


def test_the_replica_with_the_best_score_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No replica that may be chosen holds more; each returning session finds its replica."""
    choices: list[tuple[float, float]] = []
    choose = routers.kv_aware

    def watched(router: Any, replicas: Any, request: Any, now: int) -> int:
        place = choose(router, replicas, request, now)
        least = min(replica.num_requests for replica in replicas)
        open_ones = [r for r in replicas if r.num_requests <= least + routers.IMBALANCE]
        choices.append(
            (routers._score(replicas[place], request), max(routers._score(r, request) for r in open_ones))
        )
        return place

    monkeypatch.setitem(routers.ROUTERS, "kv_aware", watched)
    result = simulate(parse_scenario(told("kv_aware")))
    assert all(chosen == best for chosen, best in choices)
    assert sum(best > 0 for _, best in choices) >= result.num_completed // 2
    hits = {
        name: int(simulate(parse_scenario(told(name))).records["hit_tokens"].sum())
        for name in ("kv_aware", "round_robin")
    }
    assert hits["kv_aware"] > 1.5 * hits["round_robin"]


def test_sglang_is_refused_by_name() -> None:
    """Its radix tree is not asked."""
    other = scenario() | {"replicas": 2, "router": "kv_aware", "sglang": {}, "kv_offloading": {}}
    other["engine"] = {"max_model_len": 4096}
    with pytest.raises(KvplanError, match="router kv_aware is simulated with vLLM's scheduler only"):
        simulate(parse_scenario(other))
