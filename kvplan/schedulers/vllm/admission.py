"""When a waiting request may enter: how many free blocks must be left for those that run already.

vLLM admits what fits now and preempts later (`grow`); other engines look ahead. The rules beside `grow` stand for
those engines on vLLM's queues and blocks; they were not held to those engines' logs, and say so. SGLang itself, held
to its logs, is `kvplan.schedulers.sglang`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from kvplan.schedulers.request import Request, cdiv
from kvplan.schedulers.vllm.sharing import SHARINGS

if TYPE_CHECKING:
    from kvplan.schedulers.vllm.config import BatchWait, EngineConfig
    from kvplan.schedulers.vllm.scheduler import Scheduler

Admission = Callable[["Scheduler", Request, int], int]
"""(scheduler, candidate, tokens it gets slots for now) -> free blocks that must be left then."""


def grow(scheduler: Scheduler, request: Request, num_tokens: int) -> int:
    """Leave nothing: admit, grow, preempt by recompute."""
    return 0


def reserve_max(scheduler: Scheduler, request: Request, num_tokens: int) -> int:
    """Leave what the running requests and the candidate can ever need: nobody is preempted."""
    manager = scheduler.kv_cache_manager
    running = sum(
        max(
            0,
            manager.most_blocks(other.num_prompt_tokens + other.max_tokens) - manager.num_held_blocks(other),
        )
        for other in scheduler.running
    )
    most = manager.most_blocks(request.num_prompt_tokens + request.max_tokens)
    return running + max(0, most - manager.most_blocks(num_tokens))


class Conservative:
    """Leave a share of what the running requests may still write; the share falls with every step, up at a retraction.

    SGLang's new-token ratio with its defaults: from 0.7 down to 0.098 within 600 steps, and after a retraction
    (sampled tokens + 20 each) / (tokens asked for). Of one request at most 4,096 future tokens count.
    """

    FIRST, LAST, STEPS, CLIP, AHEAD = 0.7, 0.098, 600, 4096, 20

    def __init__(self) -> None:
        self.ratio = self.FIRST
        self._step = 0
        self._num_preemptions = 0

    def __call__(self, scheduler: Scheduler, request: Request, num_tokens: int) -> int:
        """Return the blocks to leave."""
        self._follow(scheduler)
        running = sum(self._future(other) for other in scheduler.running)
        candidate = request.num_tokens - num_tokens + self._future(request)
        return cdiv(int(running * self.ratio) + candidate, scheduler.config.block_size)

    def _future(self, request: Request) -> int:
        return min(request.max_tokens - request.num_output_tokens, self.CLIP)

    def _follow(self, scheduler: Scheduler) -> None:
        """Let the share fall by the steps since the last look, or reset it after a retraction."""
        if scheduler.num_preemptions > self._num_preemptions:
            sampled = sum(r.num_output_tokens + self.AHEAD for r in scheduler.running)
            self.ratio = min(1.0, sampled / (1 + sum(r.max_tokens for r in scheduler.running)))
        elif not scheduler.running:
            self.ratio = self.FIRST
        else:
            fall = (self.FIRST - self.LAST) / self.STEPS
            self.ratio = max(self.LAST, self.ratio - fall * (scheduler.current_step - self._step))
        self._step, self._num_preemptions = scheduler.current_step, scheduler.num_preemptions


class HeldBack:
    """Prompts that wait for company: TensorRT-LLM's `PyExecutor._waiting_requests` on vLLM's queues.

    Asked once a step in which something decodes and prompts would join: the prompts that fit the step are counted,
    and held back while they and the decodes are too few, for a stated number of such steps at most.
    """

    def __init__(self, rule: BatchWait) -> None:
        self.rule = rule
        self.num_waited = 0

    def __call__(self, scheduler: Scheduler, num_scheduled_tokens: int) -> bool:
        """Say whether the queue is passed over in this step."""
        config = scheduler.config
        if not num_scheduled_tokens or not scheduler.waiting or len(scheduler.running) >= config.max_num_seqs:
            return False
        tokens = num_scheduled_tokens + self._joining(scheduler, num_scheduled_tokens)
        few = tokens < self.rule.max_tokens_ratio * config.max_num_batched_tokens
        held = few and self.num_waited < self.rule.timeout_iters
        self.num_waited = self.num_waited + 1 if held else 0
        return held

    @staticmethod
    def _joining(scheduler: Scheduler, num_scheduled_tokens: int) -> int:
        """Tokens of the prompts at the head of the queue that budget and places take."""
        budget = scheduler.config.max_num_batched_tokens - num_scheduled_tokens
        places = scheduler.config.max_num_seqs - len(scheduler.running)
        joining = 0
        for request in islice(scheduler.waiting, places):
            if joining + request.num_tokens > budget:
                break
            joining += request.num_tokens
        return joining


class AdmissionRule(NamedTuple):
    """An admission rule and what it stands for."""

    make: Callable[[], Admission]
    engine: str
    caveat: str
    """Empty, or which engine it was not checked against."""


ADMISSIONS: dict[str, AdmissionRule] = {
    "grow": AdmissionRule(lambda: grow, "vLLM V1", ""),
    "reserve_max": AdmissionRule(
        lambda: reserve_max,
        "TensorRT-LLM, GUARANTEED_NO_EVICT",
        "admission reserve_max: not checked against TensorRT-LLM",
    ),
    "max_utilization": AdmissionRule(
        lambda: grow,  # it pauses the youngest when blocks run out, which is vLLM's preemption
        "TensorRT-LLM, MAX_UTILIZATION",
        "admission max_utilization: not checked against TensorRT-LLM",
    ),
    "conservative": AdmissionRule(
        Conservative, "SGLang, new-token ratio", "admission conservative: not checked against SGLang"
    ),
}
"""Name -> rule."""


def caveats(config: EngineConfig) -> tuple[str, ...]:
    """Say of which engines a config's rules are unchecked stand-ins; empty for vLLM's own rules."""
    waits = "batch_wait: not checked against TensorRT-LLM's own logs" if config.batch_wait else ""
    found = (SHARINGS[config.sharing].caveat, ADMISSIONS[config.admission].caveat, waits)
    return tuple(caveat for caveat in found if caveat)
