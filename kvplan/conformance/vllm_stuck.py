"""The head of the queue that can never run: what it needs, what there is."""

from __future__ import annotations

from kvplan.ground.errors import DoesNotFit
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.scheduler import Scheduler


class Stuck(DoesNotFit):
    """Nothing runs, all blocks are free, and the first waiting request needs more: it would wait for ever."""

    def __init__(self, request: Request, needed_blocks: int, usable_blocks: int, block_size: int) -> None:
        self.outgrew_pool = request.num_output_tokens > 0
        """Whether the prompt alone would have had room."""
        if needed_blocks <= usable_blocks:
            super().__init__(
                f"stuck: request {request.request_id} is never scheduled, although the pool has the"
                f" {needed_blocks} blocks it needs; raise max_num_batched_tokens"
            )
            return
        grown = f" and {request.num_output_tokens} output" if self.outgrew_pool else ""
        super().__init__(
            f"stuck: request {request.request_id} ({request.num_prompt_tokens} prompt{grown} tokens) needs"
            f" {needed_blocks} free KV blocks at once and the pool has {usable_blocks};"
            f" give it {needed_blocks - usable_blocks} blocks more, or shorter requests"
            f" ({block_size} tokens a block)"
        )


def find_stuck(scheduler: Scheduler) -> Stuck | None:
    """Say whether the engine waits for ever: call it after a schedule() that scheduled nothing.

    None while anything runs, is in flight, holds blocks, or can still be admitted.
    """
    manager = scheduler.kv_cache_manager
    usable = manager.block_pool.num_gpu_blocks - 1
    if scheduler.running or not scheduler.waiting or manager.block_pool.get_num_free_blocks() < usable:
        return None
    head = scheduler.waiting.peek_request()
    if head.num_stale_output_tokens:
        return None
    needed = manager.blocks_to_admit(head, scheduler.config)
    return Stuck(head, needed, usable, scheduler.config.block_size)
