"""Requests that wait for KV from beyond the GPU, and blocks that come back a step late because of them.

What vLLM's scheduler keeps for a KV connector: `kv_holding_waiting`, `finished_recving_kv_req_ids`,
`_inflight_prefills`, `deferred_frees`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.block_pool import KVCacheBlock
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.kv_cache_manager import KVCacheManager
from kvplan.schedulers.vllm.offloading.scheduler import OffloadingConnectorScheduler
from kvplan.schedulers.vllm.request_queue import QUEUES
from kvplan.schedulers.vllm.single_type_kv_cache_manager import SlotDemand


class DeferredFrees:
    """Blocks freed while the step in flight may still write them (vLLM `defer_block_free`).

    A load is not ordered with that step, so blocks return once its output is processed.
    """

    def __init__(self, manager: KVCacheManager) -> None:
        self._manager = manager
        self._queue: deque[tuple[int, list[KVCacheBlock]]] = deque()
        self._num_scheduled = 0
        self._num_processed = 0

    @property
    def num_blocks(self) -> int:
        """Blocks kept back, what windows have left behind included."""
        return sum(len(blocks) for _, blocks in self._queue)

    @property
    def num_held_blocks(self) -> int:
        """Those of them that are blocks."""
        return sum(not block.is_null for _, blocks in self._queue for block in blocks)

    def step_scheduled(self, requests: Iterable[Request]) -> None:
        """Count a step with tokens, and who is in it."""
        self._num_scheduled += 1
        for request in requests:
            request.last_sched_seq = self._num_scheduled

    def step_processed(self) -> None:
        """Give back what waited for this step."""
        self._num_processed += 1
        while self._queue and self._queue[0][0] <= self._num_processed:
            self._manager.block_pool.free_blocks(reversed(self._queue.popleft()[1]))

    def steps_passed(self, num_steps: int, requests: Iterable[Request]) -> None:
        """Count steps that were scheduled and as many that were processed, these requests in all of them."""
        assert not self._queue
        self._num_scheduled += num_steps
        self._num_processed += num_steps
        for request in requests:
            request.last_sched_seq += num_steps

    def can_free(self, request: Request) -> bool:
        """Whether no step in flight writes a request's blocks."""
        return request.last_sched_seq <= self._num_processed

    def defer(self, request: Request) -> None:
        """Keep a request's blocks back until the last step scheduled is processed."""
        blocks = self._manager.pop_blocks_for_free(request)
        if blocks:
            self._queue.append((self._num_scheduled, blocks))


class KVLoads:
    """Waiting requests that hold blocks."""

    def __init__(self, config: EngineConfig, manager: KVCacheManager) -> None:
        self.connector = OffloadingConnectorScheduler(config, manager)
        self.deferred_frees = DeferredFrees(manager) if config.async_scheduling else None
        self._manager = manager
        self._max_model_len = config.max_model_len
        drafts = config.num_speculative_tokens
        self._decode_tokens = 1 + drafts + config.num_lookahead_tokens if drafts else 0
        self._decode_blocks = sum(
            cdiv(self._decode_tokens, size)
            for group, size in zip(config.groups, config.group_block_sizes, strict=True)
            if group.kind != "mamba"
        )
        self.holding = QUEUES[config.policy]()
        """Loading, or loaded and not yet admitted (vLLM `kv_holding_waiting`)."""
        self.finished_recving: set[Request] = set()
        """Loaded, and not yet looked at."""
        self.inflight_prefills: dict[Request, None] = {}
        """Loading, or in mid prompt: they still need blocks for the rest."""
        self.skipped: list[Request] = []
        """Of this step's scan, those that hold blocks."""
        self.passed: Request | None = None
        """The request looked at last, if it asks again in the next step or has just begun to load."""

    def is_loading(self, request: Request) -> bool:
        """Whether bytes still move into its blocks."""
        return request.status is RequestStatus.WAITING_FOR_REMOTE_KVS and request not in self.finished_recving

    def holds(self, request: Request) -> bool:
        """Whether a waiting request holds blocks (vLLM `_holds_kv_blocks`)."""
        return request.num_computed_tokens > 0 or request.status is RequestStatus.WAITING_FOR_REMOTE_KVS

    def passes(self, request: Request) -> bool:
        """Whether the request just looked at lets those behind it go on."""
        passed, self.passed = self.passed, None
        return passed is request

    def start(self, request: Request, num_computed_tokens: int) -> None:
        """Let a request wait for its load."""
        request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
        request.num_computed_tokens = num_computed_tokens
        self.inflight_prefills[request] = None
        self.passed = request

    def is_ready(self, request: Request) -> bool:
        """Name a request's blocks once they are loaded; say whether it can be admitted (vLLM
        `_handle_blocked_waiting_request`). If all of it was loaded its last token is computed again."""
        if request.status is not RequestStatus.WAITING_FOR_REMOTE_KVS:
            return True
        if request not in self.finished_recving:
            return False
        self._manager.cache_blocks(request, request.num_computed_tokens)
        if request.num_computed_tokens == request.num_tokens:
            request.num_computed_tokens -= 1
        self.finished_recving.remove(request)
        request.status = RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING
        return True

    def requeue_skipped(self) -> None:
        """Put those that this step passed over back, in order."""
        self.holding.prepend_requests(reversed(self.skipped))
        self.skipped.clear()

    def forget(self, request: Request) -> None:
        """Drop a request that has ended."""
        self.finished_recving.discard(request)
        self.inflight_prefills.pop(request, None)

    def reserved_blocks(self) -> int:
        """Count the blocks that a load must leave: what prompts under way still need, and a step of drafts (vLLM
        `_inflight_prefill_reserved_blocks`, `_spec_decode_step_blocks`)."""
        return self._decode_blocks + sum(map(self._remaining_blocks, self.inflight_prefills))

    def _remaining_blocks(self, request: Request) -> int:
        """Count the blocks a request still needs for its whole length (vLLM `_request_remaining_blocks`)."""
        full = min(request.num_tokens, self._max_model_len)
        end = max(request.num_prompt_tokens, request.num_tokens - 1)
        return self._manager.coordinator.get_num_blocks_to_allocate(
            request.request_id,
            SlotDemand(full + self._decode_tokens, full, end, apply_admission_cap=True),
            self._manager.empty_hit.blocks,
            request.num_computed_tokens,
        )
