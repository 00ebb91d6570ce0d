"""Where a prefill chunk must end when layers keep a state: Mamba in mode `align`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvplan.ground.units import cdiv
from kvplan.schedulers.request import Request
from kvplan.schedulers.vllm.config import EngineConfig


def get_mamba_prefill_checkpoint_position(num_tokens: int, unit: int, drop_eagle_block: bool) -> int:
    """Return where a prompt of `num_tokens` can be resumed: the last multiple of `unit` before its last
    token.

    vLLM `kv_cache_interface.get_mamba_prefill_checkpoint_position`. With EAGLE the last unit is dropped
    instead.
    """
    if drop_eagle_block:
        return max(num_tokens // unit * unit - unit, 0)
    return (num_tokens - 1) // unit * unit


def is_mamba_prefill_checkpoint_valid(
    start: int, end: int, checkpoint: int, *, unit: int, block_size: int, alignment: int | None
) -> bool:
    """Whether the backend can write the state at `checkpoint` within the chunk (vLLM: same name)."""
    return (
        alignment is not None
        and start % unit == 0
        and cdiv(end, block_size) - 2 > (start - 1) // block_size
        and start + unit <= checkpoint < end
        and (checkpoint - start) % alignment == 0
    )


class SplitProgress(NamedTuple):
    """What a split reads of a request, where there is no `Request` that counts."""

    num_computed_tokens: int
    num_prompt_tokens: int
    num_tokens: int
    shared_prefix_boundary: int = 0


@dataclass(frozen=True, slots=True)
class MambaSplit:
    """What the split of an engine depends on."""

    block_size: int
    """Smallest block size of the groups that take part in prefix caching."""
    scheduler_block_size: int
    hash_block_size: int
    use_eagle: bool
    partial_hits: bool
    """Whether a hit may end inside a block."""
    checkpoint_alignment: int | None
    """Where a backend can write a state inside a chunk; None = nowhere."""
    max_chunk: int
    """The longest chunk that budget and long-prefill threshold ever allow."""
    stops_where_prompts_part: bool = False
    """Whether a state is kept at a junction inside a block too (`enable_mamba_shared_prefix_checkpoint`)."""

    @classmethod
    def of(cls, config: EngineConfig) -> MambaSplit | None:
        """Read the split from a config; None if no group needs one."""
        mamba = [group for group in config.groups if group.kind == "mamba"]
        if not any(group.mode == "align" for group in mamba):
            return None
        most = config.max_num_scheduled_tokens or config.max_num_batched_tokens
        return cls(
            block_size=min(config.named_block_sizes),
            scheduler_block_size=config.scheduler_block_size,
            hash_block_size=config.hash_block_size,
            use_eagle=config.use_eagle_block_drop,
            partial_hits=config.partial_hash_hits and config.hash_block_size < config.scheduler_block_size,
            checkpoint_alignment=mamba[0].checkpoint_alignment
            if all(g.checkpoint_blocks for g in mamba)
            else None,
            max_chunk=min(most, config.long_prefill_token_threshold or most),
            stops_where_prompts_part=config.mamba_shared_prefix_checkpoint,
        )

    def clip(self, request: Request | SplitProgress, num_new_tokens: int, num_hit_tokens: int = 0) -> int:
        """Return how many of the new tokens may run (vLLM `Scheduler._mamba_block_aligned_split`).

        A state is written where a chunk ends, so chunks end at block ends, at the prompt's last resumable
        position and at a junction that others share. 0 = wait for a larger budget.
        """
        start = request.num_computed_tokens + num_hit_tokens
        prefill_end = max(request.num_prompt_tokens, request.num_tokens - 1)
        if start >= prefill_end:
            return num_new_tokens
        size, end = self.block_size, start + num_new_tokens
        internal = end >= prefill_end and self._writes_inside(start, end, prefill_end)
        last = 0 if internal else self._position(request.num_tokens, size)
        if end < prefill_end:
            aligned = end // size * size
            if aligned > start or size <= self.max_chunk:
                end = aligned
        stops = [last]
        if start % size and not internal:
            stops.append((start // size + 1) * size)
        if self.partial_hits and not internal:
            tail = self._position(request.num_prompt_tokens, self.hash_block_size)
            stops.append(tail if last < tail < request.num_prompt_tokens else 0)
        junction = request.shared_prefix_boundary
        if start < junction < end:
            inside = self.stops_where_prompts_part and junction <= request.num_prompt_tokens
            stops.append(junction if inside else start + (junction - start) // size * size)
        end = min((stop for stop in stops if start < stop < end), default=end)
        return max(end - start, 0)

    def _position(self, num_tokens: int, unit: int) -> int:
        return get_mamba_prefill_checkpoint_position(num_tokens, unit, self.use_eagle)

    def _writes_inside(self, start: int, end: int, prefill_end: int) -> bool:
        unit = self.hash_block_size if self.partial_hits else self.scheduler_block_size
        return is_mamba_prefill_checkpoint_valid(
            start,
            end,
            self._position(prefill_end, unit),
            unit=self.hash_block_size,
            block_size=self.block_size,
            alignment=self.checkpoint_alignment,
        )
