"""All groups of an engine together: what a request takes, gives back and names in them, by `group_tables`."""

from __future__ import annotations

from math import lcm
from typing import Any

from kvplan.ground.units import cdiv
from kvplan.schedulers.leap.group_sequence import GroupSequence
from kvplan.schedulers.leap.group_tables import (
    CHUNKED,
    FULL,
    STATE,
    WHOLE,
    WINDOW,
    Returned,
    Spec,
    StateTable,
)
from kvplan.schedulers.leap.state import Sequence
from kvplan.schedulers.request import NEVER
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.schedulers.vllm.mamba_split import (
    MambaSplit,
    get_mamba_prefill_checkpoint_position,
    is_mamba_prefill_checkpoint_valid,
)


class Groups:
    """All groups of an engine without drafts."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.lag = int(config.async_scheduling)
        self.max_model_len = config.max_model_len
        self.specs, self.order = _specs(config)
        sizes = {spec.size for spec in self.specs if spec.kind != WHOLE}
        self.period = lcm(*sizes) if sizes else 1
        self.takes = [
            (size, sum(s.count for s in self.specs if s.size == size and s.kind != WHOLE)) for size in sizes
        ]
        """(block size, blocks taken whenever one is full)."""
        self.num_whole = sum(spec.count for spec in self.specs if spec.kind == WHOLE)
        self.returning = [spec for spec in self.specs if spec.kind in (WINDOW, STATE)]
        self.chunked = [spec for spec in self.specs if spec.kind == CHUNKED]
        self.state = next((spec for spec in self.specs if spec.kind == STATE), None)
        self.parks = config.enable_prefix_caching
        """Whether what a preempted request may find of its own is written down."""
        self.split = MambaSplit.of(config)
        self.alignment = config.scheduler_block_size
        self.hash_size = config.hash_block_size
        self.full_groups = {i for i, which in enumerate(self.order) if self.specs[which].kind == FULL}
        self.replay_tokens = config.prefix_replay_tokens
        """Tokens at the end of a hit that are computed again."""
        self.num_checkpoints = sum(group.checkpoint_blocks for group in config.groups)
        """Blocks that the states' tables may take beside one each."""
        self._checkpoints = next((g for g in config.groups if g.checkpoint_blocks), None)

    def length(self, tokens: int) -> int:
        """Return the blocks of the tables without gaps that so many tokens fill or begin."""
        found = self.num_whole if tokens else 0
        for spec in self.specs:
            if spec.kind < STATE:
                found += spec.count * -(-tokens // spec.size)
        return found

    def ranges(self, ends: tuple[int, ...], spec: Spec) -> list[tuple[int, int]]:
        """Return the blocks of a window that hits at these tokens need, where all is computed."""
        if len(ends) == 1:
            last = ends[0] // spec.size
            return [(max(0, last - spec.num_named), last)]
        found: list[tuple[int, int]] = []
        for end in sorted(ends):
            last = end // spec.size
            first = max(0, last - spec.num_named)
            if found and first <= found[-1][1]:
                first, _ = found.pop()
            found.append((first, last))
        return found

    def new_states(self, num_hit_tokens: int) -> StateTable | None:
        """Return the states' table of a request that was admitted with a hit of so many tokens."""
        if self.state is None:
            return None
        length = num_hit_tokens // self.state.size
        return StateTable(length, {length - 1: True} if length else {})

    def ends_of(self, seq: GroupSequence, num_hit_tokens: int) -> tuple[int, ...]:
        """Return the tokens at which hits of a request's blocks may end, its own last ones included."""
        ends = [(seq.request.num_prompt_tokens - 1) // self.alignment * self.alignment]
        if seq.junction:
            ends.append(seq.junction // self.alignment * self.alignment)
        if num_hit_tokens:
            ends.append(num_hit_tokens)
        return tuple(ends)

    def named_ranges(self, seq: Sequence, spec: Spec, hashed: int, lo: int = 0) -> list[tuple[int, int]]:
        """Return the blocks of a window, from `lo` on, that have names once `hashed` tokens are."""
        assert isinstance(seq, GroupSequence)
        if not self.config.enable_prefix_caching:
            return []
        limit = hashed // self.alignment * self.alignment // spec.size
        clipped = [(max(lo, first), min(last, limit)) for first, last in self.ranges(seq.ends, spec)]
        return [(first, last) for first, last in clipped if first < last]

    def named_in(self, seq: Sequence, spec: Spec, lo: int, hi: int, hashed: int) -> int:
        """Count blocks `lo .. hi - 1` that have names once `hashed` tokens are."""
        if not self.config.enable_prefix_caching or lo >= hi:
            return 0
        if spec.kind == WINDOW:
            ranges = self.named_ranges(seq, spec, hashed)
            return sum(max(0, min(hi, end) - max(lo, start)) for start, end in ranges)
        end = min(hashed, seq.cacheable) // self.alignment * self.alignment // spec.size
        return max(0, min(hi, end) - lo)

    def give_back(self, seq: Sequence, gone: int, table: StateTable | None, processed: int) -> Returned:
        """Let a request's tables give back what lies behind `processed` tokens; `gone` is up to where they have."""
        unnamed = named = 0
        for spec in self.specs:
            if spec.kind in (WINDOW, CHUNKED):
                lo, hi = spec.gone(gone), spec.gone(processed)
                if lo < hi:
                    some = self.named_in(seq, spec, lo, hi, processed)
                    unnamed, named = unnamed + spec.count * (hi - lo - some), named + spec.count * some
        if table is not None and self.state is not None:
            states = table.remove(processed, self.state.size)
            unnamed += self.state.count * states.unnamed
            named += self.state.count * states.named
        return Returned(unnamed, named)

    def name_states(self, seq: GroupSequence, start: int, end: int, checkpoint: int) -> int:
        """Give states their names after a chunk; return how many lost theirs again."""
        table, state = seq.states, self.state
        if not self.config.enable_prefix_caching or table is None or state is None:
            return 0
        last = (seq.request.num_prompt_tokens - 1) // self.alignment * self.alignment
        for position in (last, seq.junction // self.alignment * self.alignment):
            index = position // state.size - 1
            if start < position <= end and index in table.live:
                table.live[index] = True
        if checkpoint:
            index = -(-end // state.size) - 2
            keeps = checkpoint in (last, seq.junction)
            lost = not keeps and table.live[index]
            table.live[index] = keeps
            return state.count * lost
        return 0

    def whole_prompt(self, tokens: int, computed: int, table: StateTable | None, checkpoint: int) -> int:
        """Return the blocks that admission counts for all of a prompt of which `computed` tokens are cached."""
        found = self.num_whole
        for spec in self.specs:
            if spec.kind < STATE:
                most = min(-(-tokens // spec.size), spec.most_at_admission)
                found += spec.count * max(0, most - computed // spec.size)
        if table is not None:
            assert self.state is not None
            found += self.state.count * table.need(tokens, self.state.size, checkpoint)
        return found

    def checkpoint(self, table: StateTable | None, start: int, end: int, prefill_end: int) -> int:
        """Return where a chunk writes a state inside itself, 0 = nowhere (vLLM `_needs_internal_checkpoint`)."""
        if self._checkpoints is None or table is None:
            return 0
        assert self.state is not None
        size = self.state.size
        position = get_mamba_prefill_checkpoint_position(end, self.alignment, False)
        index = cdiv(end, size) - 2
        if self.config.prefix_cache_retention_interval != 0:
            prefill_end = 0
        fits = end >= prefill_end and index >= 0 and index not in table.live
        return position if fits and is_mamba_prefill_checkpoint_valid(
            start, end, position, unit=self.hash_size, block_size=size,
            alignment=self._checkpoints.checkpoint_alignment,
        ) else 0  # fmt: skip


def _specs(config: EngineConfig) -> tuple[list[Spec], list[int]]:
    """Return the different groups, and for each group in order which of them it is."""
    found: dict[Any, int] = {}
    order = []
    for group in config.groups:
        pages = group.kv_heads, group.head_size, group.state_bytes
        key = _kind(group), group.block_size, group.window or group.chunk, group.prefix_cacheable, pages
        order.append(found.setdefault(key, len(found)))
    specs = []
    for i, (kind, size, reach, is_named, _) in enumerate(found):
        flight, most = config.max_in_flight_tokens, NEVER
        if kind == WINDOW:
            most = cdiv(min(reach - 1 + flight, config.max_model_len), size) + 1
        elif kind == CHUNKED:
            most = cdiv(min(reach + flight, config.max_model_len), size)
        named = cdiv(reach - 1, size) if kind == WINDOW and is_named else 0
        specs.append(Spec(kind, size, reach or 0, order.count(i), named, most, i, is_named))
    return specs, order


def _kind(group: KVCacheGroup) -> int:
    if group.kind == "circular_buffer":
        return WHOLE
    if group.kind == "mamba":
        return STATE if group.mode == "align" else WHOLE
    return {"full": FULL, "sliding_window": WINDOW, "chunked_local": CHUNKED}[group.kind]
