"""What an engine is told at start-up: sizes, flags and KV cache groups, by vLLM's names and with vLLM's
defaults.
"""

from __future__ import annotations

from math import gcd, lcm
from typing import Literal

from pydantic import Field, model_validator

from kvplan.formulas.draft_tiers import DraftTiers, drafts_by_batch, tiers_fault
from kvplan.formulas.hit_places import interval_fault, unit_fault
from kvplan.ground.config import Config
from kvplan.schedulers.vllm.offloading.config import OffloadingConfig
from kvplan.schedulers.vllm.rules import MIRRORED, SchedulerRules, parse_version

Kind = Literal["full", "sliding_window", "chunked_local", "mamba", "circular_buffer"]
Admission = Literal["grow", "reserve_max", "max_utilization"]


class KVCacheGroup(Config):
    """Layers that share one block table: vLLM's `KVCacheGroupSpec` with its spec."""

    kind: Kind = "full"
    """How the layers remember: full, sliding_window, chunked_local, mamba or circular_buffer."""
    block_size: int | None = Field(None, ge=1)
    """Tokens per block; None = the engine's, or max_model_len for mamba in mode none."""
    window: int | None = Field(None, ge=1)
    """Tokens that a sliding-window layer sees."""
    bounded_replay: bool = False
    """A sliding window that stays out of prefix caching: the end of a hit is computed again to fill it."""
    chunk: int | None = Field(None, ge=1)
    """Tokens of a local-attention chunk."""
    mode: Literal["align", "none"] = "align"
    """Mamba: keep a state per block (align), as prefix caching needs, or only the running one (none)."""
    checkpoint_blocks: Literal[0, 1] = 0
    """Mamba: a spare block into which the last prefill chunk can write a state that lies inside it."""
    checkpoint_alignment: int | None = Field(None, ge=1)
    """Mamba: where in a chunk the backend can write such a state; None = nowhere."""
    eagle: bool = False
    """Whether the group holds layers of an EAGLE or MTP drafter."""
    repeat: int = Field(1, ge=1)
    """Groups of this kind."""
    kv_heads: int = Field(1, ge=1)
    """Page size, for telling specs apart."""
    head_size: int = Field(16, ge=1)
    """Page size, for telling specs apart."""
    state_bytes: int | None = Field(None, ge=1)
    """Page size of a mamba group."""

    @model_validator(mode="after")
    def _window_or_chunk(self) -> KVCacheGroup:
        if self.kind == "sliding_window" and self.window is None:
            raise ValueError("a sliding_window group needs `window`")
        if self.kind == "chunked_local" and self.chunk is None:
            raise ValueError("a chunked_local group needs `chunk`")
        if self.kind != "sliding_window" and self.bounded_replay:
            raise ValueError("bounded_replay is a sliding_window group's")
        return self

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the group takes part in prefix caching (vLLM: same name)."""
        return self.kind != "circular_buffer" and not self.bounded_replay

    @property
    def prefix_replay_tokens(self) -> int:
        """Tokens at the end of a hit that are computed again (vLLM: same name)."""
        return self.window or 0 if self.bounded_replay else 0


class BatchWait(Config):
    """Prompts held back while others decode, until they fill a step or have waited long enough (TensorRT-LLM)."""

    timeout_iters: int = Field(ge=1, le=10**9)
    """Steps that prompts are held back at most (TensorRT-LLM `batch_wait_timeout_iters`)."""
    max_tokens_ratio: float = Field(gt=0, le=1)
    """Share of max_num_batched_tokens that ends the wait (TensorRT-LLM `batch_wait_max_tokens_ratio`)."""


class EngineConfig(Config):
    """Everything that the scheduler and the KV cache manager decide by."""

    engine_version: str = Field(MIRRORED, pattern=r"^\d{1,4}\.\d{1,4}")
    """vLLM's version; `rules` has what it does differently."""
    block_size: int = Field(16, ge=1)
    """Tokens per KV block."""
    num_gpu_blocks: int = Field(ge=2)
    """Blocks of the pool as vLLM counts them: one of them is the null block and never used."""
    max_num_seqs: int = Field(256, ge=1)
    """Most running requests."""
    max_num_active_seqs: int | None = Field(None, ge=1)
    """Most requests that are admitted, where that is fewer; None = max_num_seqs."""
    max_num_batched_tokens: int = Field(8192, ge=1)
    """Most tokens in one step."""
    max_num_scheduled_tokens: int | None = Field(None, ge=1)
    """Most of them that requests get, drafting's own slots apart; None = max_num_batched_tokens."""
    max_model_len: int = Field(ge=1)
    """Longest prompt + output."""
    enable_prefix_caching: bool = True
    """Reuse full blocks of earlier requests."""
    enable_chunked_prefill: bool = True
    """Split long prompts over several steps. Without, max_num_batched_tokens must be max_model_len at least, as vLLM
    asks; under reserve_max a prompt need only fit the step it enters, as TensorRT-LLM asks."""
    policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the waiting queue and choice of the victim."""
    async_scheduling: bool = False
    """Schedule a step while the one before it runs."""
    watermark: float = Field(0.0, ge=0, lt=1)
    """Share of blocks kept free when admitting beside running requests."""
    scheduler_reserve_full_isl: bool = True
    """Admit a prompt only if all of it fits now."""
    long_prefill_token_threshold: int = Field(0, ge=0)
    """Cap on one prompt's tokens in a step while others wait or run; 0 = none."""
    long_prefill_token_threshold_adaptive: bool = False
    """Whether that cap is never below an even share of the step among all requests."""
    prefix_match_unit: int | None = Field(None, ge=1)
    """Granularity of prefix-cache hits of mamba hybrids, in tokens; None = the block sizes' greatest divisor.
    """
    prefix_cache_retention_interval: int | None = Field(0, ge=0)
    """Where window and mamba groups keep hits: every n tokens, 0 = at the prompt's end, None = everywhere."""
    enable_mamba_shared_prefix_checkpoint: bool = False
    """EAGLE and MTP: keep a state where prompts were seen to part too, inside a block as well."""
    kv_cache_groups: tuple[KVCacheGroup, ...] = ()
    """Groups with a block table each, drawing on one pool; empty = one full-attention group."""
    num_speculative_tokens: int = Field(0, ge=0)
    """Drafts per decode step, at most."""
    num_speculative_tokens_per_batch_size: DraftTiers | None = None
    """[from, to, drafts]: how many are made in a step that holds so many requests; None = always as many."""
    spec_method: Literal[
        "eagle", "eagle3", "mtp", "dflash", "dspark", "draft_model", "medusa", "ngram", "ngram_gpu", "suffix",
        "extract_hidden_states", "custom_class",
    ] = "eagle"  # fmt: skip
    """Who drafts."""
    enable_adaptive_verification: bool = False
    """Whether the worker verifies fewer drafts than are scheduled; the scheduler decides as if it verified all."""
    parallel_drafting: bool = False
    """EAGLE and draft models draft all tokens in one pass (a key of `--speculative-config`, as the next two)."""
    disable_eagle_block_drop: bool = False
    """Hits keep the last block, though its drafter's KV may differ."""
    disable_lookahead_block_hashes: bool = False
    """EAGLE and MTP drop the last hit block as before 0.33 (a key of `--speculative-config`)."""
    prefill_schedule_interval: int = Field(1, ge=1)
    """Steps from one that prefills to the next, while requests decode; from 0.33 on, without data parallelism."""

    kv_offloading: OffloadingConfig | None = None
    """A tier of KV in host memory behind the GPU's blocks; None = there is none."""

    admission: Admission = "grow"
    """When a waiting request may enter; grow is vLLM's."""
    batch_wait: BatchWait | None = None
    """Whether waiting prompts are held back for a fuller step; None, as in vLLM: never."""

    @property
    def rules(self) -> SchedulerRules:
        """What this version does differently."""
        return SchedulerRules(parse_version(self.engine_version))

    @property
    def max_num_active_reqs(self) -> int:
        """Most running requests (vLLM: same name)."""
        return self.max_num_active_seqs or self.max_num_seqs

    @property
    def token_budget(self) -> int:
        """Tokens that the requests of a step can get, together."""
        return min(self.max_num_scheduled_tokens or self.max_num_batched_tokens, self.max_num_batched_tokens)

    def prefill_cap(self, num_requests: int) -> int:
        """Return the cap on one prompt's tokens while so many requests run or wait; 0 = none."""
        cap = self.long_prefill_token_threshold
        if num_requests < 2 and self.rules.lone_prompts_have_no_cap:
            return 0
        if cap and self.long_prefill_token_threshold_adaptive:
            return max(cap, self.max_num_batched_tokens // max(1, num_requests))
        return cap

    @property
    def mamba_shared_prefix_checkpoint(self) -> bool:
        """Whether states inside blocks are kept where prompts part (vLLM: same name)."""
        drops = self.use_eagle_block_drop or any(group.eagle for group in self.groups)
        drops = drops and not self.num_hash_lookahead_tokens
        return self.enable_mamba_shared_prefix_checkpoint and drops and self.partial_hash_hits

    @property
    def reserves_full_isl(self) -> bool:
        """Whether a prompt is admitted only if all of it fits."""
        return self.scheduler_reserve_full_isl and self.rules.whole_prompts_must_fit

    @property
    def use_eagle(self) -> bool:
        """Whether drafts come from the model's own hidden states (vLLM: same name)."""
        methods = ("eagle", "eagle3", "mtp", "dflash", "dspark")
        return self.num_speculative_tokens > 0 and self.spec_method in methods

    @property
    def num_hash_lookahead_tokens(self) -> int:
        """Tokens after a block that its name covers too, since the drafter's KV depends on them (vLLM: same name)."""
        legacy = self.disable_lookahead_block_hashes or not self.rules.lookahead_block_hashes
        legacy = legacy or self.kv_offloading is not None
        return int(self.use_eagle and self.enable_prefix_caching and not legacy)

    @property
    def use_eagle_block_drop(self) -> bool:
        """Whether hits leave out a block, whose drafter KV may depend on a token that differs (vLLM: same name)."""
        return self.use_eagle and not self.num_hash_lookahead_tokens and not self.disable_eagle_block_drop

    @property
    def num_lookahead_tokens(self) -> int:
        """KV slots past the scheduled tokens that the drafter writes (vLLM: same name)."""
        if not self.use_eagle and self.spec_method != "draft_model":
            return 0
        return self.num_speculative_tokens + (self.spec_method == "dflash")

    @property
    def draft_slots(self) -> int:
        """Input slots that drafting takes per scheduled request (vLLM `max_num_new_slots_for_drafting`).

        A draft model takes one; what drafts all tokens at once all of them, DSpark and P-EAGLE the first in the slot of
        the token before it.
        """
        method, drafts = self.spec_method, self.num_speculative_tokens
        if not drafts:
            return 0
        if method == "dflash" or (self.parallel_drafting and method == "draft_model"):
            return drafts
        if method == "dspark" or self.parallel_drafting:
            return drafts - 1
        return int(method == "draft_model")

    @property
    def drafts_by_batch(self) -> tuple[int, ...]:
        """Drafts made in a step, by the number of requests that it holds (vLLM `dynamic_sd_lookup`)."""
        tiers = self.num_speculative_tokens_per_batch_size
        return drafts_by_batch(tiers, self.max_num_seqs, self.num_speculative_tokens)

    @property
    def max_in_flight_tokens(self) -> int:
        """Tokens that can be scheduled and not yet processed (vLLM: same name)."""
        return self.max_num_batched_tokens * (2 if self.async_scheduling else 1)

    @property
    def groups(self) -> tuple[KVCacheGroup, ...]:
        """The groups one by one, block sizes filled in."""
        return tuple(
            group.model_copy(update={"repeat": 1, "block_size": self._block_size(group)})
            for group in self.kv_cache_groups
            or (KVCacheGroup(eagle=self.use_eagle and not self.disable_eagle_block_drop),)
            for _ in range(group.repeat)
        )

    def _block_size(self, group: KVCacheGroup) -> int:
        whole = group.kind == "mamba" and group.mode == "none"
        return group.block_size or (self.max_model_len if whole else self.block_size)

    @property
    def group_block_sizes(self) -> tuple[int, ...]:
        """Tokens per block of each group."""
        return tuple(self._block_size(group) for group in self.groups)

    @property
    def scheduler_block_size(self) -> int:
        """Alignment of prefix-cache hits (vLLM `resolve_kv_cache_block_sizes`)."""
        return lcm(*self.group_block_sizes)

    @property
    def hash_block_size(self) -> int:
        """Tokens between two block names (vLLM `resolve_kv_cache_block_sizes`)."""
        whole_states = any(g.kind == "mamba" and g.mode == "none" for g in self.groups)
        if len(self.groups) == 1 or not self.enable_prefix_caching or whole_states:
            return self.scheduler_block_size
        return self.prefix_match_unit or gcd(*self.named_block_sizes)

    @property
    def named_block_sizes(self) -> tuple[int, ...]:
        """Tokens per block of the groups that take part in prefix caching, of all where none does."""
        named = tuple(self._block_size(group) for group in self.groups if group.prefix_cacheable)
        return named or self.group_block_sizes

    @property
    def prefix_replay_tokens(self) -> int:
        """Tokens at the end of a hit that are computed again; a hit of no more is none (vLLM: same name)."""
        return max(group.prefix_replay_tokens for group in self.groups)

    @property
    def partial_hash_hits(self) -> bool:
        """Whether a hit may end inside a block (vLLM `partial_hash_hits_enabled`)."""
        unit = self.hash_block_size
        sizes = self.group_block_sizes
        return (
            self.enable_prefix_caching
            and len(self.groups) > 1
            and any(
                g.kind == "mamba" and g.mode == "align" and s > unit
                for g, s in zip(self.groups, sizes, strict=True)
            )
            and all(
                g.kind in ("full", "mamba") or s == unit or not g.prefix_cacheable
                for g, s in zip(self.groups, sizes, strict=True)
            )
        )

    @model_validator(mode="after")
    def _groups_agree(self) -> EngineConfig:
        mamba = [g for g in self.kv_cache_groups if g.kind == "mamba"]
        if len({g.mode for g in mamba}) > 1:
            raise ValueError("mamba groups must share one mode")
        if self.enable_prefix_caching and any(g.mode == "none" for g in mamba):
            raise ValueError("mamba in mode none needs enable_prefix_caching=false")
        if self.enable_prefix_caching and not any(group.prefix_cacheable for group in self.groups):
            raise ValueError("enable_prefix_caching needs a group that takes part in it")
        if len({g.window for g in self.groups if g.bounded_replay}) > 1:
            raise ValueError("sliding_window groups with bounded_replay must share one window")
        unit, interval = self.prefix_match_unit, self.prefix_cache_retention_interval
        if self.enable_prefix_caching and (
            fault := unit_fault(unit, self.named_block_sizes, len(self.groups))
        ):
            raise ValueError(f"prefix_match_unit {unit} {fault}")
        forgets = any(g.kind in ("sliding_window", "mamba") for g in self.groups)
        if fault := interval_fault(interval, self.group_block_sizes, forgets):
            raise ValueError(f"prefix_cache_retention_interval {interval} {fault}")
        return self

    @model_validator(mode="after")
    def _tiers_agree(self) -> EngineConfig:
        tiers = self.num_speculative_tokens_per_batch_size
        if tiers is None:
            return self
        if not self.num_speculative_tokens:
            raise ValueError("num_speculative_tokens_per_batch_size needs num_speculative_tokens")
        if fault := tiers_fault(tiers):
            raise ValueError(f"num_speculative_tokens_per_batch_size: {fault}")
        return self

    @model_validator(mode="after")
    def _can_offload(self) -> EngineConfig:
        if self.kv_offloading is None:
            return self
        if self.kv_offloading.sync_load_budget_bytes and self.rules.version < (0, 33):
            raise ValueError("sync_load_budget_bytes: vLLM has it from 0.33 on")
        if self.kv_offloading.secondary_tiers and self.rules.version[:2] != (0, 32):
            raise ValueError("secondary_tiers: known as vLLM 0.32 has them, of no other version")
        if self.admission != "grow" or self.batch_wait:
            raise ValueError("kv_offloading is vLLM's connector: it goes with admission grow alone")
        if self.prefill_schedule_interval > 1 and self.rules.prefill_cadence_is_local:
            raise ValueError("kv_offloading with prefill_schedule_interval is not followed")
        if not all(group.prefix_cacheable for group in self.groups):
            raise ValueError("kv_offloading beside groups that stay out of prefix caching is not followed")
        if self.partial_hash_hits:
            raise ValueError("kv_offloading with a prefix_match_unit below the block size is not followed")
        if any(size % self.hash_block_size for size in self.group_block_sizes):
            raise ValueError("kv_offloading of groups with different block sizes needs enable_prefix_caching")
        interval = self.prefix_cache_retention_interval
        chunk = self.kv_offloading.blocks_per_chunk
        for group, size in zip(self.groups, self.group_block_sizes, strict=True):
            if group.kind != "full" and interval and interval % (size * chunk):
                raise ValueError(
                    f"prefix_cache_retention_interval {interval} must be a multiple of {size * chunk} (a chunk)"
                )
        return self

    @model_validator(mode="after")
    def _limits_agree(self) -> EngineConfig:
        budget, length = self.token_budget, self.max_model_len
        name = (
            "max_num_batched_tokens" if budget == self.max_num_batched_tokens else "max_num_scheduled_tokens"
        )
        recomputes = self.admission != "reserve_max"  # under which nothing longer than a prompt is prefilled
        if not self.enable_chunked_prefill and budget < length and recomputes:
            raise ValueError(
                f"{name} {budget} is below max_model_len {length}: without chunked prefill"
                " a prompt of that length could never run"
            )
        buffers = self.max_num_batched_tokens
        if buffers < self.max_num_seqs:
            raise ValueError(f"max_num_batched_tokens {buffers} is below max_num_seqs {self.max_num_seqs}")
        if self.max_num_active_reqs > self.max_num_seqs:
            raise ValueError(
                f"max_num_active_seqs {self.max_num_active_seqs} is above max_num_seqs {self.max_num_seqs}"
            )
        if self.long_prefill_token_threshold > length:
            raise ValueError(
                f"long_prefill_token_threshold {self.long_prefill_token_threshold} is above max_model_len {length}"
            )
        if buffers <= self.draft_slots:
            raise ValueError(f"max_num_batched_tokens {buffers} leaves nothing beside a draft model's slots")
        return self
