"""Runs a scenario pass by pass and logs every decision, in the format of the reference logs.

A pass: input, schedule and launch, apply a result. A pass with nothing to do is idle; steps then jump to the next
arrival.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from hashlib import blake2b

from kvplan.conformance.replay import MAX_STEPS, STUCK_STEPS, ReplayResult, ScenarioReplay
from kvplan.conformance.sglang_records import PassRecord, pools
from kvplan.conformance.sglang_scenario import SGLangRequest, SGLangScenario
from kvplan.ground.errors import DoesNotFit
from kvplan.schedulers.sglang.req import Req
from kvplan.schedulers.sglang.schedule_batch import BatchRow, ScheduleBatch
from kvplan.schedulers.sglang.scheduler import SGLangScheduler

VOCABULARY = 32_000


@cache
def token_id(name: str, index: int) -> Hashable:
    """Return a token's value as the reference logs draw it; now and then two streams begin with the same one."""
    if name.startswith("token:"):
        return int(name.removeprefix("token:"))
    digest = blake2b(f"{name}|{index}".encode(), digest_size=4).digest()
    return 3 + int.from_bytes(digest, "little") % (VOCABULARY - 3)


class SGLangReplay(ScenarioReplay[SGLangRequest, PassRecord]):
    """One run of a scenario on the twin of SGLang's scheduler."""

    def __init__(self, scenario: SGLangScenario) -> None:
        super().__init__(scenario.requests)
        self.scenario = scenario
        self.scheduler = SGLangScheduler(scenario.engine_config, token_id)
        self.reqs: dict[str, Req] = {}
        """By id, in the order in which they first came."""
        self._num_outputs: dict[str, int] = {}

    def iter_steps(self, max_steps: int = MAX_STEPS) -> Iterator[PassRecord]:
        """Yield a record per pass until all is done, or stuck for good."""
        stuck_steps, last = 0, PassRecord(-1)
        while self.step <= max_steps:
            if not self._is_busy() and last.mode == "idle":
                arrival = self._next_arrival()
                if arrival is None:
                    return
                self.step = max(self.step, arrival)
            if stuck_steps > STUCK_STEPS and not self._abort_ahead():
                self.stuck = True
                return
            record = PassRecord(self.step, self._arrivals())
            self._abort()
            moved = self._pass(record)
            stuck_steps = 0 if moved or record.mode == "idle" else stuck_steps + 1
            yield record
            last = record
            self.step += 1

    def find_stuck(self) -> DoesNotFit:
        """Say what a run that is stuck waits for."""
        return DoesNotFit("stuck: the head of the queue can never be admitted")

    def totals(self, result: ReplayResult[PassRecord]) -> dict[str, object]:
        """Return a run's totals and hashes."""
        steps, size = result.steps, self.scheduler.cache.size
        return {
            "type": "summary",
            "steps": len(steps),
            "stuck": result.stuck,
            "prefill_passes": sum(step.mode in ("prefill", "mixed") for step in steps),
            "decode_passes": sum(step.mode == "decode" for step in steps),
            "retractions": sum(len(step.retracted) for step in steps),
            "preemptions": sum(len(step.preempted) for step in steps),
            "scheduled_tokens": sum(step.n_tokens for step in steps),
            "output_tokens": sum(req.num_outputs for req in self.reqs.values()),
            "hit_tokens": sum(sum(step.hits.values()) for step in steps),
            "evicted": sum(step.evicted + step.evicted_end for step in steps),
            "peak_used": max((size - step.pools[0] - step.pools[1] for step in steps), default=0),
            "sched_sha256": result.sched_sha256,
            "state_sha256": result.state_sha256,
        }

    # --- input ------------------------------------------------------------------------------

    def _is_busy(self) -> bool:
        scheduler = self.scheduler
        in_flight = scheduler.last_batch is not None or scheduler.result_queue
        return bool(in_flight or len(self.finish) < len(self.reqs))

    def _arrivals(self) -> list[str]:
        ready = self._take_arrivals()
        for request in ready:
            engine_request = self.scenario.make_request(request, len(self.reqs))
            self.reqs[request.id] = self.scheduler.add_request(engine_request, ignore_eos=request.ignore_eos)
            self._num_outputs[request.id] = 0
        return [request.id for request in ready]

    def _abort(self) -> None:
        for request in list(self._to_abort):
            due = self._abort_due(request)
            if request.id in self.finish or request.id not in self.reqs or due is None or due > self.step:
                continue
            self._to_abort.remove(request)
            self.scheduler.abort_request(request.id)

    # --- the pass ---------------------------------------------------------------------------

    def _pass(self, record: PassRecord) -> bool:
        """Run one pass; say whether anything happened."""
        scheduler, kv_cache = self.scheduler, self.scheduler.cache
        evicted = kv_cache.num_evicted
        batch = scheduler.schedule()
        record.evicted = kv_cache.num_evicted - evicted
        self._note_schedule(record, batch)
        if (
            batch is None
            and scheduler.is_fully_idle
            and not (scheduler.config.enable_overlap and scheduler.last_batch)
        ):
            record.mode = "idle"
        evicted = kv_cache.num_evicted
        scheduler.process(batch)
        record.evicted_end = kv_cache.num_evicted - evicted
        record.pools_end = pools(kv_cache)
        return self._note_ends(record) or bool(record.sched or record.arrivals)

    def _note_schedule(self, record: PassRecord, batch: ScheduleBatch | None) -> None:
        scheduler = self.scheduler
        if batch is not None:
            record.mode = batch.mode
            record.sched = [self._entry(row) for row in batch.rows]
            record.hits = {i: before for i, _, before, kind in record.sched if kind in ("new", "resumed")}
        record.retracted = [r.rid for r in scheduler.retracted]
        record.preempted = [r.rid for r in scheduler.preempted]
        record.oom_aborted = [r.rid for r in scheduler.oom_aborted]
        record.pools = pools(scheduler.cache)
        record.running = [r.rid for r in scheduler.running_batch.reqs]
        record.waiting = [r.rid for r in scheduler.waiting_queue]
        record.chunked = scheduler.chunked_req.rid if scheduler.chunked_req else ""
        record.ratio = round(scheduler.ratio.current, 6)
        record.full = scheduler.running_batch.batch_is_full

    @staticmethod
    def _entry(row: BatchRow) -> tuple[str, int, int, str]:
        req = row.req
        kind = "resumed" if req.num_retractions else "new"
        if row.is_decode or req.extend_batch_idx > 1:
            kind = "decode" if row.is_decode else "prefill"
        return req.rid, row.num_tokens, row.prefix_len, kind

    def _note_ends(self, record: PassRecord) -> bool:
        """Note who ended; say whether anyone got a token or ended."""
        sampled = False
        left = [r.rid for r in self.scheduler.dropped if not r.extend_batch_idx]
        for i, req in self.reqs.items():
            if i in self.finish:
                continue
            sampled |= req.num_outputs > self._num_outputs[i]
            self._num_outputs[i] = req.num_outputs
            if not req.finished:
                continue
            self.finish[i] = self.step
            if i in record.oom_aborted:
                continue
            if req.finished_reason != "abort":
                record.finished.append(i)
            elif i not in left:
                record.aborted.append(i)
        record.aborted += left
        self.scheduler.dropped.clear()
        return bool(sampled or record.finished or record.aborted)
