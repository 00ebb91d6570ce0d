"""When a waiting request may enter: how many free blocks must be left for those that run already.

vLLM admits what fits now and preempts later (`grow`); other engines look ahead. The rules beside `grow` stand for
TensorRT-LLM's on vLLM's queues and blocks; they were not held to its logs, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        self.in_vain = False
        """Whether the queue was last looked at, while steps count, and nobody could enter."""
        self.holds = False
        """Whether in the step, or the steps of the leap, just decided the rule alone keeps those out that wait."""

    def __call__(self, waiting: Iterable[int], num_running: int, num_scheduled_tokens: int) -> bool:
        """Say whether the queue is passed over in this step, given the tokens of each that waits; somebody does."""
        held = self.plan(waiting, num_running, num_scheduled_tokens) > 0
        if self.counts(num_running, num_scheduled_tokens):
            self.num_waited = self.num_waited + 1 if held else 0
            self.holds = self.holds and held
            self.in_vain = self.in_vain or not held  # unless the caller lets somebody in
        return held

    def plan(self, waiting: Iterable[int], num_running: int, num_scheduled_tokens: int) -> int:
        """Return for how many steps the queue is passed over, whoever could enter, if all stays as it is."""
        counts = self.counts(num_running, num_scheduled_tokens)
        is_short = counts and self._is_short(waiting, num_running, num_scheduled_tokens)
        self.holds = is_short and not self.in_vain
        return self.rule.timeout_iters - self.num_waited if is_short else 0

    def counts(self, num_running: int, num_scheduled_tokens: int) -> bool:
        """Whether a step in which somebody waits counts: something decodes, and there is a place."""
        return num_scheduled_tokens > 0 and num_running < self.config.max_num_active_reqs

    def pass_steps(
        self, num_steps: int, waiting: Iterable[int], num_running: int, num_scheduled_tokens: int
    ) -> None:
        """Count so many steps, at least one, in which all stays as it is: held back, tried once, held back again."""
        is_short = self._is_short(waiting, num_running, num_scheduled_tokens)
        self.in_vain = self.in_vain or not is_short
        self.num_waited = (self.num_waited + num_steps) % (self.rule.timeout_iters + 1) if is_short else 0

    def _is_short(self, waiting: Iterable[int], num_running: int, num_scheduled_tokens: int) -> bool:
        """Whether the prompts that fit the step and the decodes are too few."""
        max_tokens, tokens = self.config.token_budget, num_scheduled_tokens
        for num_tokens in islice(waiting, self.config.max_num_active_reqs - num_running):
            if tokens + num_tokens > max_tokens:
                break
            tokens += num_tokens
        return tokens < self.rule.max_tokens_ratio * max_tokens
