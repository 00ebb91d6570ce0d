"""Random scenarios for SGLang's leaps, and a replay that takes them beside one that walks: who decides alike.

Moods: as the scenarios held to SGLang's own scheduler; `queue`, where priorities preempt and a head that does not fit
is tried in every pass, its prompt in the cache, while others evict; `apart`, where passes are kept for decodes.
"""

from __future__ import annotations

from random import Random
from typing import Any

from conformance.sglang.random_scenarios import MAX_STEPS, random_requests
from conformance.sglang.random_scenarios import random_scenario as plain_scenario

from kvplan.conformance.sglang_records import PassRecord, pools
from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangRequest, SGLangScenario
from kvplan.schedulers.sglang import leap
from kvplan.schedulers.sglang.scheduler import SGLangScheduler

Json = dict[str, Any]


def random_scenario(seed: int) -> Json:
    """Return a scenario as JSON."""
    rng = Random(f"leap{seed}")
    scenario = plain_scenario(seed)
    mood = rng.choices(["plain", "queue", "apart"], [40, 45, 15])[0]
    if mood == "queue":
        scenario |= _queue(rng)
    if mood == "apart" or rng.random() < 0.1:
        scenario["prefill_decode_interval"] = rng.choice([1, 2, 5, 20, 60])
    return scenario


def _queue(rng: Random) -> Json:
    page = rng.choice([1, 1, 4, 16])
    pool = rng.choice([200, 400, 800]) // page * page
    scenario: Json = {
        "name": "queue", "block_size": page, "num_gpu_blocks": pool // page, "max_model_len": 4 * pool,
        "max_num_seqs": rng.choice([2, 4, 32, 32]), "max_num_batched_tokens": page * rng.choice([4, 16, 64]),
        "policy": "priority", "schedule_conservativeness": rng.choice([0.05, 0.3, 1.0, 1.5]),
        "priority_preemption_threshold": rng.choice([0, 5, 10, 50]), "low_priority_first": rng.random() < 0.4,
        "enable_mixed_chunk": rng.random() < 0.2, "disable_priority_preemption": False,
        "enable_prefix_caching": rng.random() < 0.85, "enable_chunked_prefill": rng.random() < 0.85,
        "radix_eviction_policy": rng.choice(["lru", "lru", "lfu"]), "prefill_decode_interval": 0,
    }  # fmt: skip
    requests = random_requests(rng, True, rng.choice([10, 40]), pool)
    most = rng.choice([pool // 12, pool // 4])
    for request in requests:
        request["output_len"] = rng.randint(1, most)
        request.pop("ignore_eos", None)
        if request.get("stop"):
            request["max_tokens"] = request["output_len"] + rng.randint(0, most)
        if rng.random() < 0.7:
            request["priority"] = 0
    lengths = {request["id"]: request["output_len"] for request in requests}
    for request in requests:
        request["prompt"] = [
            piece | {"len": min(piece["len"], lengths[piece["output_of"]])} if "output_of" in piece else piece
            for piece in request["prompt"]
        ]
    return scenario | {"requests": requests}


class LeapReplay(SGLangReplay):
    """Takes the passes of a leap at its end, as a clock does; `rng` cuts leaps short anywhere."""

    def __init__(self, scenario: SGLangScenario, rng: Random | None = None) -> None:
        super().__init__(scenario)
        self.rng = rng
        self.num_leapt = 0
        """Passes leapt over."""
        self.num_tried = 0
        """Those of them in which the queue's head is tried."""
        self.num_deferred = 0
        """Those kept for decodes."""
        self._leap: leap.PassPlan | None = None
        self._done = 0
        """Passes of the leap under way that are written down."""
        self._inbox: list[SGLangRequest] = []

    @property
    def is_level(self) -> bool:
        """Whether the scheduler is where the log is."""
        return self._leap is None

    def _arrivals(self) -> list[str]:
        if self._leap is None:
            return super()._arrivals()
        ready = self._take_arrivals()
        self._inbox += ready
        return [request.id for request in ready]

    def _pass(self, record: PassRecord) -> bool:
        if self._leap is None:
            self._leap = self._plan()
            self._done = 0
        plan = self._leap
        if plan is None:
            return super()._pass(record)
        if self._done == plan.num_passes - 1 and leap.ends_somebody(plan.reqs, plan.num_passes):
            self._take(plan._replace(num_passes=self._done))
            planned = [(r.rid, 1, r.kv_len, "decode") for r in plan.reqs]
            moved = super()._pass(record)
            assert record.sched == planned, "the last pass of a leap is no plain decode"
            return moved
        record.mode = "decode"
        record.sched = [(r.rid, 1, r.kv_len + self._done, "decode") for r in plan.reqs]
        self._done += 1
        if self._done == plan.num_passes:
            self._take(plan)
        return True

    def _plan(self) -> leap.PassPlan | None:
        plan = leap.plan(self.scheduler) if not self.scheduler.dropped else None
        if plan is None:
            return None
        dues = [self._abort_due(r) for r in self._to_abort if r.id not in self.finish]
        leaving = {r.id for r in self._to_abort}
        dues += [self._due(r) for r in self._pending if plan.ends_on_arrival or r.id in leaving]
        most = min(
            [plan.num_passes, *(due - self.step for due in dues if due is not None and due > self.step)]
        )
        return plan._replace(num_passes=self.rng.randint(1, most) if self.rng else most)

    def _take(self, plan: leap.PassPlan) -> None:
        scheduler = self.scheduler
        self.num_leapt += plan.num_passes
        deferred = min(scheduler.decodes_before_prefill, plan.num_passes)
        self.num_deferred += deferred
        if scheduler.waiting_queue and not leap.admission_is_shut(scheduler):
            self.num_tried += plan.num_passes - deferred
        leap.take_passes(scheduler, plan.reqs, plan.num_passes)
        self._leap = None
        for request in self._inbox:
            engine_request = self.scenario.make_request(request, len(self.reqs))
            self.reqs[request.id] = scheduler.add_request(engine_request, ignore_eos=request.ignore_eos)
        self._inbox.clear()
        self._num_outputs = {i: req.num_outputs for i, req in self.reqs.items()}


def state(scheduler: SGLangScheduler) -> tuple[Any, ...]:
    """Return all that later decisions follow from, the order of evictions included."""
    nodes, stack = [], list(scheduler.cache.tree.root.children.values())
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack += node.children.values()
    nodes.sort(key=lambda node: (node.last_access_time, node.id))
    running = scheduler.running_batch
    return (
        pools(scheduler.cache), scheduler.cache.num_evicted, scheduler.cache.num_taken, scheduler.ratio.current,
        running.batch_is_full, [(r.rid, r.kv_len, r.num_outputs) for r in running.reqs],
        [(r.rid, r.fill_len, r.prefix_len, r.num_matched_prefix_tokens) for r in scheduler.waiting_queue],
        scheduler.decodes_before_prefill, scheduler.processed_tokens, scheduler.policy.calls_to_refresh,
        [(node.key, node.length, node.lock_ref, node.hit_count) for node in nodes],
    )  # fmt: skip


def compare(scenario: SGLangScenario, leaping: LeapReplay, max_steps: int = MAX_STEPS) -> str:
    """Run a scenario pass by pass and with leaps, side by side; say where they first differ, empty if nowhere."""
    walk = SGLangReplay(scenario)
    ours = leaping.iter_steps(max_steps)
    for theirs in walk.iter_steps(max_steps):
        mine = next(ours, None)
        if mine is None:
            return f"pass {theirs.step}: no leap comes so far"
        pairs: list[tuple[Any, Any]] = [
            (theirs.sched_line(), mine.sched_line()), (theirs.arrivals, mine.arrivals), (theirs.step, mine.step)
        ]  # fmt: skip
        if leaping.is_level:
            pairs += zip(
                (walk.finish, *state(walk.scheduler)),
                (leaping.finish, *state(leaping.scheduler)),
                strict=True,
            )
        for their_part, my_part in pairs:
            if their_part != my_part:
                return f"pass {theirs.step}: {their_part}, leap {my_part}"
    more = next(ours, None)
    if more is not None:
        return f"pass {more.step}: leaps go on"
    return "" if walk.stuck == leaping.stuck and walk.finish == leaping.finish else "another end"
