"""SGLang's scheduler behind the protocol that the simulator drives. Knows no clock."""

from __future__ import annotations

from kvplan.schedulers.protocol import (
    NOTHING,
    Chunk,
    DecodePath,
    FreeBlocks,
    Leap,
    LeapOutputs,
    Outputs,
    Step,
)
from kvplan.schedulers.request import Request
from kvplan.schedulers.sglang import leap
from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.sglang.req import Req
from kvplan.schedulers.sglang.schedule_batch import ScheduleBatch
from kvplan.schedulers.sglang.scheduler import SGLangScheduler

Launched = tuple[ScheduleBatch | None]
"""A pass that was launched and not ended yet; its batch is None if there was nothing to do."""


class SGLangEngine:
    """SGLang's scheduler with the methods of `SchedulerInterface`; a block is a page."""

    def __init__(self, config: SGLangConfig, may_leap: bool = True) -> None:
        self.config = config
        self.scheduler = SGLangScheduler(config)
        self.may_leap = may_leap
        self._reqs: dict[str, Req] = {}
        """Requests that have neither ended nor been aborted."""
        self._to_abort: list[str] = []
        self._launched: Launched | None = None

    def add_request(self, request: Request) -> None:
        """Queue a new request; its `max_tokens` becomes what the pool allows."""
        req = self.scheduler.add_request(request)
        request.max_tokens = max(req.max_new_tokens, 1)
        self._reqs[request.request_id] = req

    def abort(self, request_id: str) -> bool:
        """Take a request out before the next pass; if it runs, its memory comes free with its next token.

        False if it has ended already.
        """
        if self._reqs.pop(request_id, None) is None:
            return False
        self._to_abort.append(request_id)
        return True

    def has_requests(self) -> bool:
        """Whether there is something to schedule or to pass on; an idle pass follows the last one."""
        return not (self.scheduler.rested and self.scheduler.is_fully_idle)

    def schedule(self) -> Step:
        """Launch a pass and sort it into decodes and chunks."""
        self._end_pass()
        scheduler = self.scheduler
        for request_id in self._to_abort:
            scheduler.abort_request(request_id)
        self._to_abort.clear()
        scheduler.dropped.clear()
        batch = scheduler.schedule()
        while batch is None and scheduler.deferred and not scheduler.result_queue:
            scheduler.process(batch)  # an empty turn of the loop takes no time
            batch = scheduler.schedule()
        self._launched = (batch,)
        victims = [r.request for r in (*scheduler.retracted, *scheduler.preempted) if r.rid in self._reqs]
        if batch is not None and not batch.is_extend:
            return Step(
                len(batch.reqs), sum([r.kv_len for r in batch.reqs]), [], [], victims, len(batch.reqs)
            )
        rows = batch.rows if batch else []
        chunks = [Chunk(r.req.request, r.num_tokens, r.prefix_len) for r in rows if not r.is_decode]
        new = [r for r in rows if not r.is_decode and r.req.extend_batch_idx == 1]
        admitted = [(r.req.request, r.prefix_len) for r in new]
        context = sum(r.prefix_len + 1 for r in rows if r.is_decode)
        num_decodes = len(rows) - len(chunks)
        return Step(num_decodes, context, chunks, admitted, victims, num_decodes)

    def update_from_output(self) -> Outputs:
        """Read the oldest launched pass: which prefills gave a token, which requests ended."""
        result = self._end_pass()
        if result is None:
            ended = self.scheduler.oom_aborted
            return self._outputs([], ended) if ended else NOTHING
        first: list[Req] = []
        if result.is_extend:
            decoding = set(result.decoding_reqs)
            first = [r for r in self.scheduler.sampled if r not in decoding]
        ended = [r for r in self.scheduler.sampled if r.finished] + self.scheduler.oom_aborted
        return self._outputs(first, ended) if first or ended else NOTHING

    def plan_leap(self) -> Leap | None:
        """Return how many passes of pure decode come next, None if it is not worth a leap."""
        if not self.may_leap or self._launched is not None or self._to_abort:
            return None
        plan = leap.plan(self.scheduler)
        if plan is None or plan.num_passes < 2:
            return None
        context = sum([r.kv_len for r in plan.reqs]) + len(plan.reqs)
        return Leap(plan.num_passes, len(plan.reqs), context, plan.ends_on_arrival)

    def commit_leap(self, num_steps: int) -> LeapOutputs:
        """Take so many passes; nobody begins in them, or ends but with the last."""
        scheduler, reqs = self.scheduler, self.scheduler.running_batch.reqs
        ends = leap.ends_somebody(reqs, num_steps)
        leap.take_passes(scheduler, reqs, num_steps - ends)
        if not ends:
            return LeapOutputs(NOTHING, NOTHING)
        self._launched = (scheduler.schedule(),)
        return LeapOutputs(NOTHING, self.update_from_output())

    def free_blocks_in(self, num_steps: int) -> int:
        """Pages that will be free after so many passes of the leap under way."""
        needed = leap.tokens_needed(self.scheduler.running_batch.reqs, self.config.page_size, num_steps)
        return (self.scheduler.cache.available_and_evictable - needed) // self.config.page_size

    def free_blocks_over(self, num_steps: int) -> FreeBlocks | None:
        """Blocks are only taken while all decode."""
        return None

    def decode_path(self, request: Request) -> DecodePath | None:
        """None: nothing is drafted."""
        return None

    @property
    def keeps_counters(self) -> bool:
        """Requests' own counters are not kept."""
        return False

    def head(self) -> Request:
        """The request that waits first."""
        return self.scheduler.waiting_queue[0].request

    @property
    def num_running(self) -> int:
        """Requests that hold KV."""
        return self.config.num_request_slots - self.scheduler.cache.num_free_rows

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, retracted ones included."""
        return len(self.scheduler.waiting_queue)

    @property
    def holds_back(self) -> bool:
        """SGLang knows no such rule."""
        return False

    @property
    def is_short(self) -> bool:
        """Whether the next decode needs more than there is, so that somebody is retracted."""
        running = [r for r in self.scheduler.running_batch.reqs if r.rid in self._reqs]
        needed = leap.tokens_needed(running, self.config.page_size, 1)
        return needed > self.scheduler.cache.available_and_evictable

    @property
    def num_free_blocks(self) -> int:
        """Pages that can be taken, cached ones included."""
        return self.scheduler.cache.available_and_evictable // self.config.page_size

    @property
    def num_cached_free_blocks(self) -> int:
        """Pages that nobody holds and that can still be hit."""
        return self.scheduler.cache.tree.evictable_size // self.config.page_size

    @property
    def num_taken_blocks(self) -> int:
        """Pages taken so far."""
        return self.scheduler.cache.num_taken // self.config.page_size

    def _end_pass(self) -> ScheduleBatch | None:
        """Apply the result that is due to the launched pass, if there is one."""
        launched, self._launched = self._launched, None
        return self.scheduler.process(launched[0]) if launched else None

    def _outputs(self, first: list[Req], ended: list[Req]) -> Outputs:
        """Leave out requests whose clients have gone."""
        first_tokens = [r.request for r in first if r.rid in self._reqs]
        finished = [r.request for r in ended if self._reqs.pop(r.rid, None) is not None]
        return Outputs(first_tokens, finished)
