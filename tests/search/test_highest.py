"""Before ranking: what the closed form rules out, and the highest load that a deployment sustains."""

from __future__ import annotations

from math import ceil, log2
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recommend import BASE, WORKLOAD

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import load_scenario, parse_scenario
from kvplan.scenario.space import Search
from kvplan.search.bounds import cannot_meet, least_seconds
from kvplan.search.candidates import copies_needed, share_of
from kvplan.search.highest_load import LoadTest, Trial, highest_load
from kvplan.search.point_row import point_setups, run_point
from kvplan.simulation.deploy import Setup, set_ups
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import StepShape

# --- the closed form ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    target=st.sampled_from(["e2el_ms", "ttfvt_ms", "tpot_ms"]),
    tightness=st.floats(0.3, 3.0),
    rate=st.floats(0.05, 40.0),
    share=st.sampled_from([0.5, 0.9, 1.0]),
    seqs=st.sampled_from([1, 4, 32]),
    blocks=st.sampled_from([200, 600, 4000]),
    stated=st.booleans(),
    shared=st.sampled_from([0, 200]),
    replicas=st.sampled_from([1, 3]),
    closed=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_closed_form_never_rules_out_what_a_simulation_meets(
    target: str, tightness: float, rate: float, share: float, seqs: int, blocks: int, stated: bool, shared: int,
    replicas: int, closed: bool, seed: int,
) -> None:  # fmt: skip
    """Whatever the deployment and the load: if the targets were met, no bound says that they cannot be."""
    near = {"e2el_ms": 9000, "ttfvt_ms": 7000, "tpot_ms": 13}[target]
    step = {"fixed_us": 9000, "per_sequence_us": 300, "per_context_token_ns": 100, "per_prefill_token_us": 40}
    loop = {"kind": "closed_loop", "concurrency": 1 + int(rate), "pause_s": 0.5}
    arrivals = loop if closed else {"kind": "poisson", "rate": rate}
    scenario = parse_scenario({
        **{k: v for k, v in BASE.items() if k != "search"},
        "engine": {"max_model_len": 3000, "max_num_seqs": seqs, "num_gpu_blocks_override": blocks},
        "replicas": replicas,
        "step_time": step if stated else {},
        "workload": {**WORKLOAD, "seed": seed, "num_requests": 20, "arrivals": arrivals,
                     "shared_prefix_tokens": shared},
        "slo": {target: near * tightness, "share": share},
    })  # fmt: skip
    setups = set_ups(scenario)
    said = cannot_meet(scenario, setups)
    if simulate(scenario, setups=setups, keep_records=False).slo_met:
        assert said == ""


def test_the_closed_form_does_rule_out() -> None:
    """It is not silent: a target below one request's own decoding, and a load beyond the memory's bandwidth."""
    data = {k: v for k, v in BASE.items() if k != "search"}
    hurried = parse_scenario({**data, "slo": {"e2el_ms": 2000}})
    assert "too slow even alone" in cannot_meet(hurried, set_ups(hurried))
    crowd = {**WORKLOAD, "num_requests": 3000, "arrivals": {"kind": "poisson", "rate": 200.0}}
    crowded = parse_scenario({**data, "workload": crowd, "slo": {"e2el_ms": 100000}})
    assert "cannot keep up" in cannot_meet(crowded, set_ups(crowded))
    calm = parse_scenario(data)
    assert cannot_meet(calm, set_ups(calm)) == ""


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=30), st.integers(0, 1000))
def test_least_seconds_is_below_any_schedule(batches: list[int], context: int) -> None:
    """However decodes are batched, the steps take at least the bound's time."""
    setup = set_ups(parse_scenario(BASE))[""]
    batches = [min(b, setup.config.max_num_seqs) for b in batches]
    pool = (setup.config.num_gpu_blocks - 1) * setup.config.block_size
    contexts = [min(pool, b * context) for b in batches]
    steps = [StepShape(b, b, c) for b, c in zip(batches, contexts, strict=True)]
    took = sum(setup.step_time.ticks(step) for step in steps) / TICKS_PER_S
    assert least_seconds(setup, sum(batches), sum(contexts)) <= took * (1 + 1e-9)


# --- the highest load -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["e2el_ms", "tpot_ms"])
def test_the_highest_rate_is_that_of_a_fine_scan(target: str) -> None:
    """Within 2 % of a scan in steps of 1 %, with at most a tenth of its simulations."""
    slo = {"e2el_ms": 90000, "share": 0.95} if target == "e2el_ms" else {"tpot_ms": 26, "share": 0.95}
    engine = {**BASE["engine"], "max_num_seqs": 4 if target == "e2el_ms" else 256}
    test = LoadTest(parse_scenario({**BASE, "slo": slo, "engine": engine}), "rate", span=1)
    found = highest_load(test, 0.01)
    rates = np.geomspace(found.load / 2, found.load * 2, 140)
    met = [test.try_load(float(rate)).met for rate in rates]
    assert met[0] and not met[-1]  # noqa: PT018
    assert found.load == pytest.approx(rates[max(np.flatnonzero(met))], rel=0.02)
    assert 10 * found.num_simulations <= len(rates)


def test_whole_users_are_found_to_the_one() -> None:
    test = LoadTest(parse_scenario({**BASE, "slo": {"e2el_ms": 90000, "share": 0.95}}), "users")
    found = highest_load(test, 0.001, 4)
    assert found.met is not None
    assert test.try_load(found.load).met
    assert not test.try_load(found.load + 1).met


def test_a_batch_is_as_large_as_its_deadline_allows() -> None:
    test = LoadTest(parse_scenario({**BASE, "slo": {}}), "batch", 120.0)
    found = highest_load(test, 0.001, 50)
    assert found.met is not None
    assert found.met.row["completed"] == found.load
    assert found.met.row["duration_s"] <= 120 < test.whole(test.try_load(found.load + 1)).row["duration_s"]


def test_trials_differ_by_their_load_alone() -> None:
    """Common random numbers: the same requests, arriving at the same moments of a stretched clock."""
    test = LoadTest(parse_scenario(BASE), "rate", span=1)
    slow, fast = (test.at(rate).workload for rate in (0.01, 0.3))
    assert slow.model_copy(update={"arrivals": fast.arrivals}) == fast
    assert test._replace(seed_shift=3).at(1).workload.seed == slow.seed + 3


class Threshold(NamedTuple):
    """A load test that sustains loads up to a limit, and counts how often it was asked."""

    limit: float
    kind: str
    asked: list[float]

    def try_load(self, load: float) -> Trial:
        self.asked.append(load)
        return Trial(load, load <= self.limit, {"limited_by": "kv_blocks"})

    def guess(self) -> float:
        return 16.0

    def least(self) -> float:
        return 1.0 if self.kind == "users" else 1e-4

    @property
    def scenario(self) -> Any:
        return None


@given(st.floats(0.1, 20_000), st.floats(0.01, 1000), st.sampled_from([0.01, 0.25]))
def test_a_highest_load_is_narrowed_from_wherever_it_begins(
    limit: float, guess: float, precision: float
) -> None:
    """Met itself, missed a little above; in a number of trials that grows with the logarithm of the distance."""
    test = Threshold(limit, "rate", [])
    found = highest_load(test, precision, guess)  # type: ignore[arg-type]
    if guess > 4096 * limit:
        return
    assert found.met is not None
    assert found.missed is not None
    assert found.load <= limit < found.missed.load <= found.load * (1 + precision) * (1 + 1e-9)
    assert (
        found.num_simulations == len(test.asked) <= 4 + abs(log2(limit / guess)) + log2(log2(64) / precision)
    )


@given(st.floats(1, 3000), st.integers(1, 5000), st.sampled_from(["rate", "users"]))
def test_the_fewest_copies_are_found_by_halving(limit: float, load: int, kind: str) -> None:
    """One less would not carry the load, to the precision asked for; hundreds of copies take a handful of trials."""
    search = Search.model_validate({kind: load})
    test: Any = Threshold(limit, kind, [])
    first = highest_load(test, 0.25, min(16, load), most=2 * load)
    assert first.met is not None
    test.asked.clear()
    copies, met, found = copies_needed(test, first, first.met, search)
    assert share_of(load, copies, kind) <= met.load <= limit
    fewest = next(n for n in range(1, load + 1) if share_of(load, n, kind) <= limit)
    assert fewest <= copies <= max(fewest, ceil(fewest * 1.0102))
    assert len(test.asked) <= 8
    assert found.num_simulations == first.num_simulations + len(test.asked)


@pytest.mark.parametrize("limit", [2.0, 116.0, 3000.0])
def test_ten_million_users_take_about_the_trials_of_five_hundred(limit: float) -> None:
    """A fleet's share is one copy's share: no trial has more users than one copy can have, and few more are made."""

    def trials(users: int) -> list[float]:
        search = Search.model_validate({"users": users})
        test: Any = Threshold(limit, "users", [])
        first = highest_load(test, 0.25, min(64, users), most=2 * users)
        assert first.met is not None
        copies_needed(test, first, first.met, search)
        return list(test.asked)

    few, many = trials(500), trials(10_000_000)
    assert len(many) <= len(few) + 10
    assert max(many) <= 8 * limit + 64


@pytest.mark.parametrize("slo", [{"tpot_ms": 45}, {"ttft_ms": 4000, "share": 0.95}])
def test_a_sustained_rate_is_sustained_for_longer(slo: dict[str, float]) -> None:
    """Trials last many times as long as a request stays, so that the KV cache is as full as it gets."""
    engine = {**BASE["engine"], "num_gpu_blocks_override": 1500}
    test = LoadTest(parse_scenario({**BASE, "engine": engine, "slo": slo}), "rate")
    found = highest_load(test, 0.05)
    longer = test.at(found.load * 0.85)
    number = 4 * longer.workload.num_requests
    longer = longer.model_copy(
        update={"workload": longer.workload.model_copy(update={"num_requests": number})}
    )
    row = run_point(longer)
    assert row["slo_met"]
    assert found.met is not None
    assert row["duration_s"] > 3 * found.met.row["duration_s"]


def test_trials_of_problems_share_their_engines() -> None:
    """Points that differ in load alone plan once; another verifier, compression or flag is another engine."""

    def engine(*told: str) -> Setup:
        return point_setups(load_scenario("strategy_rollout_labels", told))[""]

    first = engine("problems.num_problems=5")
    assert engine("problems.num_problems=9", "workload.seed=3") is first
    for told in (
        "problems.verifier={kind: orm, model: Qwen/Qwen3-0.6B}",
        "problems.compression={budget_tokens: 4096, buffer_tokens: 64}",
        "engine.max_num_seqs=7",
    ):
        assert engine(told).config != first.config, told
