"""How many tokens after the GPU's hit the tier can load: vLLM's `_lookup_complete_chunks`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kvplan.ground.units import cdiv
from kvplan.schedulers.vllm.offloading.groups import GroupOffloadConfig, SchedulerOffloadConfig
from kvplan.schedulers.vllm.offloading.manager import LookupResult
from kvplan.schedulers.vllm.offloading.policies import OffloadKey, RequestCacheAccess
from kvplan.schedulers.vllm.offloading.request_state import RequestOffloadState

Lookup = Callable[[OffloadKey, RequestCacheAccess], LookupResult]


def maximal_prefix_lookup(
    keys: Sequence[OffloadKey], lookup: Lookup, access: RequestCacheAccess
) -> int | None:
    """Count the chunks there are from the start; None = one of them is not ready or not known (vLLM: same name)."""
    num_hits, pending = 0, False
    for key in keys:
        result = lookup(key, access)
        if result is LookupResult.MISS:
            break
        pending |= result is not LookupResult.HIT
        num_hits += 1
    return None if pending else num_hits


def sliding_window_lookup(
    keys: Sequence[OffloadKey],
    window: int,
    first_window: int,
    lookup: Lookup,
    access: RequestCacheAccess,
) -> int | None:
    """Return where the last run of `window` chunks ends, looking from the right (vLLM: same name).

    The rightmost run must have `first_window` chunks. A shorter run counts at the very start; None = a chunk of the run
    is still being written, or one was looked at of which it is not known yet whether it is there.
    """
    run, pending, unknown, required = 0, False, False, first_window
    for i in range(len(keys) - 1, -1, -1):
        result = lookup(keys[i], access)
        if result in (LookupResult.MISS, LookupResult.RETRY):
            unknown |= result is LookupResult.RETRY
            run, pending, required = 0, False, window
        else:
            pending |= result is LookupResult.HIT_PENDING
            run += 1
        if run == required:
            return None if pending or unknown else i + required
    return None if pending or unknown else run


class ChunkLookup:
    """One request's question to the tier; groups shorten each other's answers until all agree."""

    def __init__(self, config: SchedulerOffloadConfig, lookup: Lookup) -> None:
        self.config = config
        self.lookup = lookup
        windows = [group for group in config.groups if group.window_in_chunks is not None]
        windows.sort(key=lambda group: group.window_in_chunks or 0, reverse=True)
        self.windows = tuple(windows)
        self.groups = tuple(g for g in config.groups if g.window_in_chunks is None) + self.windows

    def __call__(self, state: RequestOffloadState, being_loaded: Collection[OffloadKey]) -> int | None:
        """Return the tokens to load after the GPU's hit, 0 for less than a chunk, None to ask again."""
        num_tokens = self._agree(state)
        if num_tokens and being_loaded and self._is_being_loaded(state, num_tokens, being_loaded):
            return None
        return num_tokens

    def _longest(self, state: RequestOffloadState) -> int:
        """Return where the hit must end at the latest; the last token is computed again where a window slides."""
        longest = state.req.num_tokens
        if state.req.max_load_tokens is not None:
            longest = min(longest, state.num_locally_computed_tokens + state.req.max_load_tokens)
        if self.windows:
            longest -= 1
            if self.config.mamba_align_size is not None:
                longest -= longest % self.config.mamba_align_size
        return longest

    def _agree(self, state: RequestOffloadState) -> int | None:
        computed, end = state.num_locally_computed_tokens, self._longest(state)
        num_hit_tokens, defers = 0, False
        eagle_verified: set[int] = set()
        todo = self.groups
        while todo:
            groups, todo = todo, ()
            looked_up_window = False
            for group in groups:
                size, keys = group.tokens_per_chunk, state.group_states[group.group_id].offload_keys
                end = min(end, len(keys) * size)
                if state.req.max_load_tokens is not None:
                    end -= end % size
                if end - computed < size:
                    return 0
                drops = group.is_eagle_group and group.group_id not in eagle_verified
                num_hits = self._look(group, keys, computed // size, end, drops, state.access)
                if num_hits == 0:
                    return 0
                if num_hits is None:
                    defers = True
                else:
                    if drops:
                        num_hits -= 1
                        eagle_verified.add(group.group_id)
                    end = min(end, size * (computed // size + num_hits))
                new_num_hit_tokens = end - computed
                if new_num_hit_tokens < size:
                    return 0
                if new_num_hit_tokens < num_hit_tokens:
                    if not group.is_eagle_group:
                        eagle_verified.clear()
                    if defers:
                        defers, todo = False, self.groups
                    elif looked_up_window and not todo:
                        todo = self.windows
                looked_up_window |= group.window_in_chunks is not None
                num_hit_tokens = new_num_hit_tokens
        return None if defers else num_hit_tokens

    def _look(
        self,
        group: GroupOffloadConfig,
        keys: Sequence[OffloadKey],
        first: int,
        end: int,
        drops: bool,
        access: RequestCacheAccess,
    ) -> int | None:
        """Look up one group's chunks from `first` to where `end` lies; a drafter's group looks one further."""
        size = group.tokens_per_chunk
        query = min(end + size, len(keys) * size) if drops else end
        num_chunks = min(cdiv(query, size), len(keys))
        window = group.window_in_chunks
        if window is None:
            return maximal_prefix_lookup(keys[first:num_chunks], self.lookup, access)
        first_window = group.load_window_size_in_chunks(min(end, (num_chunks - drops) * size))
        assert first_window is not None
        return sliding_window_lookup(
            keys[first:num_chunks], window + drops, first_window + drops, self.lookup, access
        )

    def _is_being_loaded(
        self, state: RequestOffloadState, num_tokens: int, being_loaded: Collection[OffloadKey]
    ) -> bool:
        """Whether another request loads one of these chunks now: after that they are hit on the GPU."""
        computed = state.num_locally_computed_tokens
        end = computed + num_tokens
        for group in self.config.groups:
            size = group.tokens_per_chunk
            keys = state.group_states[group.group_id].offload_keys[computed // size : cdiv(end, size)]
            window = group.load_window_size_in_chunks(end)
            if window is not None:
                keys = keys[-window:]
            if any(key in being_loaded for key in keys):
                return True
        return False
