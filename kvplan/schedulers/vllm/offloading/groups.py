"""KV cache groups as the offloading connector sees them: chunks, windows of chunks, and what of them is worth storing.

Mirrors `SchedulerOffloadConfig` and `GroupOffloadConfig` of vLLM's `offloading/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvplan.ground.units import cdiv
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.schedulers.vllm.offloading.config import OffloadingConfig
from kvplan.schedulers.vllm.single_type_kv_cache_manager import Retention, SingleTypeKVCacheManager


@dataclass(frozen=True, slots=True)
class GroupOffloadConfig:
    """One group (vLLM: same name)."""

    group_id: int
    group: KVCacheGroup
    tokens_per_block: int
    tokens_per_chunk: int
    hashes_per_chunk: int
    is_eagle_group: bool
    """Whether it holds a drafter's layers: its last chunk may change while tokens are drafted."""
    manager: SingleTypeKVCacheManager

    @property
    def window_in_chunks(self) -> int | None:
        """Chunks that a hit needs, None = all before it (vLLM `get_sliding_window_size_in_chunks`)."""
        group = self.group
        if group.kind == "full":
            return None
        if group.kind == "mamba":
            return 1
        return cdiv(group.window or group.chunk or 1, self.tokens_per_chunk)

    @property
    def requires_cow_source(self) -> bool:
        """Whether states are stored one by one as they are written, since their table forgets (vLLM: same name)."""
        return self.group.kind == "mamba" and self.group.mode == "align"

    def load_window_size_in_chunks(self, num_tokens: int) -> int | None:
        """Return the chunks that a load up to so many tokens brings (vLLM: same name)."""
        window = self.window_in_chunks
        if self.group.window is not None and self.group.kind == "sliding_window":
            padding = -num_tokens % self.tokens_per_chunk
            window = max(window or 0, cdiv(self.group.window - 1 + padding, self.tokens_per_chunk))
        return window


@dataclass(frozen=True, slots=True)
class SchedulerOffloadConfig:
    """All groups (vLLM: same name)."""

    groups: tuple[GroupOffloadConfig, ...]
    blocks_per_chunk: int
    offload_prompt_only: bool
    alignment_tokens: int | None
    """Where hits can end, if all full-attention groups agree on it."""
    retention_interval: int | None
    stores_whole_chunks: bool
    """Whether a chunk is left out when one of its blocks that a hit needs has gone."""
    mamba_align_size: int | None
    """Chunk tokens of groups with states, None = there are none."""

    @classmethod
    def of(
        cls, config: EngineConfig, offloading: OffloadingConfig, managers: Sequence[SingleTypeKVCacheManager]
    ) -> SchedulerOffloadConfig:
        """Read the groups of an engine (vLLM `from_spec`)."""
        per_chunk = offloading.blocks_per_chunk
        groups = tuple(
            GroupOffloadConfig(
                group_id=i,
                group=group,
                tokens_per_block=size,
                tokens_per_chunk=size * per_chunk,
                hashes_per_chunk=size * per_chunk // config.hash_block_size,
                is_eagle_group=group.eagle,
                manager=manager,
            )
            for i, (group, size, manager) in enumerate(
                zip(config.groups, config.group_block_sizes, managers, strict=True)
            )
        )
        full = {group.tokens_per_chunk for group in groups if group.window_in_chunks is None}
        states = [group.tokens_per_chunk for group in groups if group.requires_cow_source]
        return cls(
            groups=groups,
            blocks_per_chunk=per_chunk,
            offload_prompt_only=offloading.offload_prompt_only,
            alignment_tokens=(full.pop() if len(full) == 1 else None)
            if full
            else max(group.tokens_per_chunk for group in groups),
            retention_interval=config.prefix_cache_retention_interval,
            stores_whole_chunks=config.rules.chunks_are_stored_whole,
            mamba_align_size=states[0] if states else None,
        )

    def reachable_chunks(
        self,
        group: GroupOffloadConfig,
        first: int,
        end: int,
        boundaries: Sequence[int],
        final_segment_end: int | None,
    ) -> list[bool] | None:
        """Say which of a group's chunks `first .. end - 1` a later hit can need; None = all.

        A chunk counts if one of its blocks does.
        """
        mask, per_chunk = (
            self.reachable_blocks(group, first, end, boundaries, final_segment_end),
            self.blocks_per_chunk,
        )
        if mask is None:
            return None
        return [any(mask[i : i + per_chunk]) for i in range(0, len(mask), per_chunk)]

    def reachable_blocks(
        self,
        group: GroupOffloadConfig,
        first: int,
        end: int,
        boundaries: Sequence[int],
        final_segment_end: int | None,
    ) -> list[bool] | None:
        """Say it of the chunks' blocks (vLLM `_reachable_store_block_mask`)."""
        per_chunk = self.blocks_per_chunk
        if self.alignment_tokens is None:
            return None
        return group.manager.reachable_block_mask(
            first * per_chunk,
            end * per_chunk,
            boundaries,
            Retention(
                self.alignment_tokens,
                self.retention_interval,
                group.is_eagle_group,
                None if final_segment_end is None else final_segment_end * per_chunk,
            ),
        )

    def final_swa_alignment_blocks(self, group: GroupOffloadConfig) -> int | None:
        """Return the blocks between two places where a window's hit can end (vLLM: same name)."""
        align = self.alignment_tokens
        if (
            align is None
            or group.is_eagle_group
            or group.group.kind != "sliding_window"
            or align % group.tokens_per_block
        ):
            return None
        return align // group.tokens_per_block
