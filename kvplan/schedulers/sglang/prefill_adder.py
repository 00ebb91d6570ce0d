"""Who joins a prefill pass: budgets of memory, input tokens and the chunk."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.sglang.kv_cache import KVCache
from kvplan.schedulers.sglang.req import Req, ceil_page
from kvplan.schedulers.sglang.schedule_batch import ScheduleBatch

CLIP_MAX_NEW_TOKENS = 4096
"""Of one request at most so many future tokens count (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)."""
IGNORE_EOS_RESERVE_TOKENS = 1


class AddReqResult(Enum):
    """Whether a pass goes on to the next request."""

    CONTINUE = 1
    NO_TOKEN = 2
    OTHER = 3


class PrefillAdmission(NamedTuple):
    """The shape of an admitted prefill."""

    extend_len: int
    max_new_tokens: int
    """Future tokens to reserve; 0 for a chunk that is not the last."""
    is_chunked: bool


class PrefillAdder:
    """Fills one prefill batch (SGLang `PrefillAdder` with its `PrefillBudget`)."""

    def __init__(
        self, config: SGLangConfig, cache: KVCache, running: ScheduleBatch, new_token_ratio: float
    ) -> None:
        self.num_mixed = num_mixed = (
            len(running.reqs) if config.enable_mixed_chunk and config.chunk_size else 0
        )
        """Running requests that decode in this pass."""
        self.cache = cache
        self.page_size = config.page_size
        self.running = running
        self.new_token_ratio = new_token_ratio
        self.prefill_max_requests = config.prefill_max_requests
        self.refuses_second_chunk = config.schedule_policy == "shortest-prefill-first"
        self.threshold = config.priority_scheduling_preemption_threshold
        self.sign = -1 if config.schedule_low_priority_values_first else 1
        self.rem_input_tokens = config.max_prefill_tokens - num_mixed
        self.rem_chunk_tokens = None if config.chunk_size is None else config.chunk_size - num_mixed
        self.chunked_req_limit: int | None = None
        self.current_offset = num_mixed
        """Tokens that this pass allocates."""
        offset = 0.0  # summed one by one: the order of rounding is the scheduler's
        for req in running.reqs:
            offset += self._future_tokens(req)
        self.total_offset = num_mixed + offset
        """The same and what all may still write."""
        self.can_run: list[Req] = []
        self.preempted: list[Req] = []
        self.new_chunked_req: Req | None = None
        self._states: list[tuple[float, int]] | None = None

    @property
    def remaining_total(self) -> float:
        """Tokens left after what is promised."""
        return self.cache.available_and_evictable - self.total_offset

    @property
    def remaining_current(self) -> int:
        """Tokens left after what this pass allocates."""
        return self.cache.available_and_evictable - self.current_offset

    @property
    def is_spent(self) -> bool:
        """Whether no prompt token may be computed in this pass."""
        return self.rem_input_tokens <= 0 or (
            self.rem_chunk_tokens is not None and self.rem_chunk_tokens <= 0
        )

    def budget_state(self) -> AddReqResult:
        """Say whether another request may be tried (SGLang: same name)."""
        if self.remaining_total <= 0 or self.remaining_current <= 0:
            return AddReqResult.NO_TOKEN
        if self.is_spent:
            return AddReqResult.OTHER
        return AddReqResult.CONTINUE

    def add_chunked_req(self, req: Req) -> Req | None:
        """Go on with the chunked request, whatever memory says; return it if not done then (SGLang: same name)."""
        assert self.rem_chunk_tokens is not None
        limit = min(self.rem_chunk_tokens, int(self.remaining_total))
        limit = limit if limit > 0 else self.rem_chunk_tokens
        if self.chunked_req_limit is not None:
            limit = min(limit, self.chunked_req_limit)
        wanted = req.fill_len - req.prefix_len
        self._add(
            req,
            PrefillAdmission(
                min(wanted, limit), self._clipped(req) if wanted <= limit else 0, wanted > limit
            ),
        )
        return req if wanted > limit else None

    def add_one_req(self, req: Req, has_chunked_req: bool) -> AddReqResult:
        """Try the next request of the queue (SGLang: same name)."""
        if self.prefill_max_requests is not None and len(self.can_run) >= self.prefill_max_requests:
            return AddReqResult.OTHER
        if req.ignore_eos and self.cache.disabled:
            return self._add_one_req_ignore_eos(req)
        assert req.last_node is not None
        tree = self.cache.tree
        held = tree.inc_lock_ref(req.last_node)  # what it hits cannot be evicted for it
        admission = self._select(req, has_chunked_req)
        if isinstance(admission, PrefillAdmission):
            req.lock = tree.inc_lock_ref(req.last_node)
            self._add(req, admission)
            if admission.is_chunked:
                self.new_chunked_req = req
        tree.dec_lock_ref(held)
        return self.budget_state() if isinstance(admission, PrefillAdmission) else admission

    def preempt_to_schedule(self, req: Req) -> bool:
        """Retract running requests of lower priority until this one fits; False if that fails (SGLang: same name)."""
        candidates = [r for r in self.running.reqs if r not in self.preempted and not r.finished]
        candidates.sort(key=lambda r: (r.priority * self.sign, -r.queue_entry))
        missing = req.fill_len - req.prefix_len + self._clipped(req) - self.remaining_total
        chosen: list[Req] = []
        for other in candidates:
            if not self.may_displace(req, other):
                break
            chosen.append(other)
            missing -= self._future_tokens(other)
            if missing <= 0:
                break
        if not chosen or missing > 0:
            return False
        running = self.running
        for i, other in enumerate([r for r in running.reqs if r in chosen], start=1):
            self.total_offset -= self._future_tokens(other)
            self.cache.retract(other, len(running.reqs) - i)
        running.reqs = [r for r in running.reqs if r not in chosen]
        self.preempted += chosen
        return True

    def may_displace(self, req: Req, other: Req) -> bool:
        """Whether a request's priority is enough to take a running one's place."""
        return (req.priority - other.priority) * self.sign > self.threshold

    def wanted(self, req: Req) -> int:
        """Tokens that must be left for a request of the queue to enter: prompt, what it may write, a page."""
        max_new = min(max(req.max_new_tokens - req.num_outputs, 0), CLIP_MAX_NEW_TOKENS)
        return req.fill_len - req.prefix_len + max_new + self.page_size

    # --- inside -----------------------------------------------------------------------------

    def _clipped(self, req: Req) -> int:
        return min(req.max_new_tokens, CLIP_MAX_NEW_TOKENS)

    def _future_tokens(self, req: Req) -> float:
        """What a running request is expected to write still (SGLang `_get_running_request_total_token_offset`)."""
        ratio = 1.0 if req.ignore_eos else self.new_token_ratio
        return min(req.max_new_tokens - req.num_outputs, CLIP_MAX_NEW_TOKENS) * ratio

    def _select(self, req: Req, has_chunked_req: bool) -> PrefillAdmission | AddReqResult:
        """Decide how much of a prompt runs now (SGLang `_select_prefill_admission`)."""
        extend_len = req.fill_len - req.prefix_len
        if self.wanted(req) >= self.remaining_total:
            return AddReqResult.NO_TOKEN
        limit, input_tokens = self.rem_chunk_tokens, ceil_page(extend_len, self.page_size)
        if limit is None:
            if self.can_run and input_tokens >= self.rem_input_tokens:
                return AddReqResult.OTHER
        elif input_tokens > limit:
            if has_chunked_req and self.refuses_second_chunk:
                return AddReqResult.OTHER
            end = req.prefix_len + limit // self.page_size * self.page_size
            extend_len = end // self.page_size * self.page_size - req.prefix_len
            return PrefillAdmission(extend_len, 0, True) if extend_len > 0 else AddReqResult.OTHER
        return PrefillAdmission(extend_len, self._clipped(req), False)

    def _add(self, req: Req, admission: PrefillAdmission) -> None:
        """Take a request into the batch and charge the budgets (SGLang `_update_prefill_budget`)."""
        req.extend_end = req.prefix_len + admission.extend_len
        self.can_run.append(req)
        input_tokens = ceil_page(admission.extend_len, self.page_size)
        self.current_offset += input_tokens + self.page_size
        self.total_offset += input_tokens + self.page_size + admission.max_new_tokens
        self.rem_input_tokens -= input_tokens
        if self.rem_chunk_tokens is not None:
            self.rem_chunk_tokens -= input_tokens

    def _add_one_req_ignore_eos(self, req: Req) -> AddReqResult:
        """Without radix cache, lengths are known: replay when tokens come free (SGLang `add_one_req_ignore_eos`)."""
        extend_len = req.fill_len - req.prefix_len
        paged_input = ceil_page(extend_len, self.page_size) + self.page_size
        if paged_input > min(self.remaining_current, self.remaining_total) or not self._never_short(
            req, paged_input
        ):
            return AddReqResult.NO_TOKEN
        limit = self.rem_chunk_tokens
        if limit is None or extend_len <= limit:
            self._add(req, PrefillAdmission(extend_len, self._clipped(req), False))
        elif limit <= 0:
            return AddReqResult.OTHER
        else:
            self._add(req, PrefillAdmission(limit, 0, True))
            self.new_chunked_req = req
        return self.budget_state()

    def _never_short(self, req: Req, paged_input: int) -> bool:
        """Whether, finish by finish, every request would have a token left."""
        if self._states is None:
            reqs = [req, *self.running.reqs, *self.can_run]
            self._states = sorted((s for r in reqs if (s := self._state(r))[0] > 0), key=lambda s: s[0])
        elif (state := self._state(req))[0] > 0:
            last = max(len(self._states) - 1, 0)
            i = next((i for i, s in enumerate(self._states) if state[0] <= s[0]), last)
            self._states.insert(i, state)
        freed = 0
        for i, (tokens_left, tokens_occupied) in enumerate(self._states):
            num_left = len(self._states) - i
            free = self.remaining_current - paged_input + freed - tokens_left * num_left
            if free <= IGNORE_EOS_RESERVE_TOKENS * num_left:
                return False
            freed += tokens_occupied
        return True

    def _state(self, req: Req) -> tuple[float, int]:
        ratio = 1.0 if req.ignore_eos else self.new_token_ratio
        return req.max_new_tokens * ratio - req.num_outputs, req.seqlen
