"""When a waiting request may enter: how many free blocks must be left for those that run already.

vLLM admits what fits now and preempts later (`grow`); other engines look ahead. The rules beside `grow` stand for
TensorRT-LLM's on vLLM's queues and blocks; they were not held to its logs, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.config import BatchWait, EngineConfig
from kvplan.schedulers.vllm.kv_cache_manager import KVCacheManager

BlocksToLeave = Callable[[KVCacheManager, Iterable[Request], Request, int], int]
"""(blocks, running requests, candidate, tokens it gets slots for now) -> free blocks that must be left then."""


def grow(manager: KVCacheManager, running: Iterable[Request], request: Request, num_tokens: int) -> int:
    """Leave nothing: admit, grow, preempt by recompute."""
    return 0


def reserve_max(
    manager: KVCacheManager, running: Iterable[Request], request: Request, num_tokens: int
) -> int:
    """Leave what the running requests and the candidate can ever need: nobody is preempted."""

    def most(one: Request) -> int:
        return manager.most_blocks(one.num_prompt_tokens + one.max_tokens)

    candidate = max(0, most(request) - manager.most_blocks(num_tokens))
    return candidate + sum(max(0, most(other) - manager.num_held_blocks(other)) for other in running)


ADMISSIONS: dict[str, BlocksToLeave] = {
    "grow": grow,
    "reserve_max": reserve_max,  # TensorRT-LLM, GUARANTEED_NO_EVICT
    "max_utilization": grow,  # TensorRT-LLM: it pauses the youngest when blocks run out, which is vLLM's preemption
}
"""Name -> rule."""


class HeldBack:
    """Prompts that wait for company: TensorRT-LLM's `PyExecutor._waiting_requests` on vLLM's queues.

    Asked once a step in which something decodes and prompts would join: the prompts that fit the step are counted,
    and held back while they and the decodes are too few, for a stated number of such steps at most.
    """

    def __init__(self, config: EngineConfig, rule: BatchWait) -> None:
        self.config = config
        self.rule = rule
        self.num_waited = 0

    def __call__(self, waiting: Sequence[Request], num_running: int, num_scheduled_tokens: int) -> bool:
        """Say whether the queue is passed over in this step."""
        rule, places = self.rule, self.config.max_num_seqs - num_running
        if not num_scheduled_tokens or not waiting or places <= 0:
            return False
        max_tokens = self.config.max_num_batched_tokens
        tokens = num_scheduled_tokens
        for request in islice(waiting, places):
            if tokens + request.num_tokens > max_tokens:
                break
            tokens += request.num_tokens
        held = tokens < rule.max_tokens_ratio * max_tokens and self.num_waited < rule.timeout_iters
        self.num_waited = self.num_waited + 1 if held else 0
        return held
