"""KV cache groups, pages and blocks as the engine lays them out at start-up; vLLM's planner, re-derived.

    model + flags + GPU generation --kv.pages--> pages --kv.groups--> groups --here--> blocks, tokens

Given the bytes that are left for KV, it says what the engine would print (`GPU KV cache size`, `Maximum
concurrency`) or refuse, and the longest context that would fit. Does not know where those bytes come from
(`budget` does). Mirrors vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvplan.engines.draft_kinds import READ_STATES
from kvplan.engines.flags import EngineArgs
from kvplan.formulas import capacity
from kvplan.formulas.capacity import (
    chunked_resident_blocks,
    full_blocks,
    pool_blocks,
    state_blocks,
    window_resident_blocks,
)
from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.ground.units import gib
from kvplan.memory.kv.backends import Capability
from kvplan.memory.kv.groups import Group, bytes_per_block, group_layers, is_uniform, on_stage, pack
from kvplan.memory.kv.mixers import LayoutSetup
from kvplan.memory.kv.orders import check_order
from kvplan.memory.kv.pages import Pages, model_pages
from kvplan.memory.kv.versions import MIRRORED, Rules, Version, rules_for
from kvplan.models.spec import AttentionKind, ModelSpec

if TYPE_CHECKING:
    from kvplan.formulas.capacity import IntLike
    from kvplan.formulas.varying import Ints


class KvCacheTooSmall(DoesNotFit):
    """One request of the asked length does not fit the KV memory."""

    def __init__(
        self, message: str, needed_bytes: int, available_bytes: int, max_model_len: int, stage: int = 0
    ) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.max_model_len = max_model_len
        """The longest context that fits, as vLLM estimates it; 0 if not even one token does."""
        self.stage = stage
        """The pipeline stage that it does not fit."""


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers with one block table."""

    kind: AttentionKind
    num_layers: int
    block_size: int
    """Tokens per block on one rank."""
    page_bytes: int
    """Bytes of one layer's page; of all layers' pages together where they differ."""
    bytes_per_block: int
    """Bytes of the group's pages on the pipeline stage that decides."""
    copied_bytes: int
    """Bytes that a copy of one of its blocks to or from host memory moves on the fullest stage: pages without their
    padding, or the whole block where layers are packed into it (vLLM `offloading/worker.py: register_kv_caches`)."""
    blocks_per_request: int
    """Blocks that start-up reserves for one request of max_model_len tokens."""
    window: int = 0
    num_shards: int = 1
    """Ranks that deal this group's tokens between them (decode context parallelism)."""
    speculative_blocks: int = 0
    """States only: blocks for drafts that may be taken back."""
    checkpoint_alignment: int = 0
    """States only: tokens whose multiples a prefill can write one more state at, into a block of its own; 0: none."""
    bounded_replay: bool = False
    """Windows only: kept out of prefix caching, and made again from the end of a hit (DeepSeek V4.1)."""
    holds_last_layer: bool = False
    """Whether the last layer that the engine builds is here: vLLM takes this group for the MTP drafter's."""
    other_stages_bytes: int = 0
    """Bytes of its pages on all other pipeline stages together."""

    @property
    def block_tokens(self) -> int:
        """Tokens per block over all ranks that deal them between them; a scheduler's block size."""
        return self.block_size * self.num_shards

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the group takes part in prefix caching (vLLM: same name)."""
        return self.kind is not AttentionKind.CIRCULAR and not self.bounded_replay

    def resident_blocks(self, num_tokens: IntLike) -> Ints:
        """Blocks that a sequence of `num_tokens` computed tokens holds in this group while it decodes.

        A state takes one more, for a step, whenever a block of tokens is full and prefix caching keeps its state.
        """
        if self.kind.is_fixed:
            states = state_blocks(self.speculative_blocks, prefix_caching=False)
            return full_blocks(num_tokens, 1) * 0 + states
        if self.kind is AttentionKind.SLIDING:
            return window_resident_blocks(num_tokens, self.window, self.block_size)
        if self.kind is AttentionKind.CROSS:
            return full_blocks(num_tokens, 1) * 0 + full_blocks(self.window, self.block_size)
        if self.kind is AttentionKind.CHUNKED:
            return chunked_resident_blocks(num_tokens, self.window, self.block_size)
        return full_blocks(num_tokens, self.block_tokens)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the engine decides about its KV cache before the first request."""

    groups: tuple[KvGroup, ...]
    num_blocks: int
    """Blocks of the pool, null block included."""
    bytes_per_block: int
    """Bytes of one block on the pipeline stage that decides."""
    block_size: int
    """The engine's --block-size after start-up has adjusted it."""
    max_model_len: int
    max_in_flight_tokens: int
    kv_cache_dtype: str
    attention_backends: tuple[str, ...]
    version: Version = MIRRORED
    counts_pages: bool = False
    """Whether the engine prints the tokens of its pages (SGLang, TensorRT-LLM); vLLM has rules by version."""
    stage: int = 0
    """The pipeline stage that decides: its memory holds the fewest blocks, and all stages take as many."""
    stage_bytes_per_block: tuple[int, ...] = ()
    """Bytes of one block on each pipeline stage; empty: all alike."""

    @property
    def blocks_per_request(self) -> int:
        """Blocks that start-up reserves for one request of max_model_len tokens, over all groups."""
        return sum(group.blocks_per_request for group in self.groups)

    @property
    def max_concurrency(self) -> float:
        """Requests of max_model_len tokens that fit at once, as vLLM prints it."""
        return float(capacity.max_concurrency(self.num_blocks, self.blocks_per_request))

    @property
    def kv_cache_size_tokens(self) -> int:
        """Size of the pool in tokens as the engine prints it; vLLM's is for hybrids not a token capacity."""
        if self.counts_pages:
            return self.num_blocks * self.block_size
        if rules_for(self.version).tokens_by_concurrency:
            return int(self.max_concurrency * self.max_model_len)
        smallest = min(group.block_size for group in self.groups)
        return self.num_blocks // len(self.groups) * smallest * self.groups[0].num_shards

    def bytes_per_block_of(self, stage: int) -> int:
        """Bytes of one block on a pipeline stage."""
        return self.stage_bytes_per_block[stage] if self.stage_bytes_per_block else self.bytes_per_block

    @property
    def most_bytes_per_block(self) -> int:
        """Bytes of one block on the pipeline stage that keeps most."""
        return max(self.stage_bytes_per_block, default=self.bytes_per_block)

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can hold: all but the null block."""
        return self.num_blocks - 1

    def resident_blocks(self, num_tokens: IntLike) -> Ints:
        """Blocks that a sequence of `num_tokens` computed tokens holds while it decodes; broadcasts.

        For windows and chunks much less than `blocks_per_request`, which has to allow for prefill.
        """
        first, *others = [group.resident_blocks(num_tokens) for group in self.groups]
        return sum(others, start=first)


def kv_layout(
    model: ModelSpec,
    args: EngineArgs,
    available_bytes: int | Sequence[int],
    *,
    capability: Capability = (9, 0),
    draft: ModelSpec | None = None,
    version: Version = MIRRORED,
) -> Layout:
    """Lay out the KV cache as the engine would.

    Args:
        model: the model.
        args: flags, defaults resolved (`engines.resolve.resolve`).
        available_bytes: KV memory of one rank, or of one rank per pipeline stage.
        capability: compute capability of the GPU.
        draft: the draft model, if one drafts.
        version: of vLLM; what the planner of older ones does differently is in `kv.versions`.

    Raises:
        KvCacheTooSmall: not even one request of max_model_len fits.
        KvplanError: a combination that the engine refuses.
    """
    unusual = next((m.unusual_cache for layer in model.layers for m in layer.mixers if m.unusual_cache), "")
    if version < MIRRORED and unusual:
        raise KvplanError(
            f"{model.name}: {unusual}, planned as vLLM {MIRRORED[0]}.{MIRRORED[1]} lays that out; how "
            f"{version[0]}.{version[1]} does is not known"
        )
    rules = rules_for(version)
    pages = model_pages(LayoutSetup.of(model, args, capability, rules), draft)
    check_order(args.environment.kv_cache_layout, pages, capability[0])
    if _hybrid_manager_off(model, args):
        args = args.model_copy(update={"disable_hybrid_kv_cache_manager": True})
    return pages_layout(pages, args, available_bytes, longest=model.default_max_model_len, version=version)


def _blocks_outermost(pages: Pages, args: EngineArgs) -> bool:
    """Whether the asked order lets a block's pages differ in size (vLLM 0.32 `_get_packed_kv_cache_groups`)."""
    made = [layer.page for layer in pages.layers]
    asked = args.environment.kv_cache_layout.startswith("B")
    return asked and not is_uniform(made) and len({page.num_bytes for page in made}) > 1


def pages_layout(
    pages: Pages,
    args: EngineArgs,
    available_bytes: int | Sequence[int],
    *,
    longest: int,
    version: Version = MIRRORED,
) -> Layout:
    """Lay out a list of pages: the planner alone, for layers that no model describes.

    Args:
        pages: every layer's page.
        args: as for `kv_layout`.
        available_bytes: as for `kv_layout`.
        longest: the length where `args.max_model_len` names none, and the most that -1 may settle on.
        version: as for `kv_layout`.

    Raises:
        KvCacheTooSmall: not even one request of max_model_len fits.
        KvplanError: layers that cannot share a pool.
    """
    rules = rules_for(version)
    hybrid = not args.disable_hybrid_kv_cache_manager
    is_packed = hybrid and (pages.packed or _blocks_outermost(pages, args))
    if is_packed:
        groups = pack(pages.layers)
    else:
        groups = group_layers(pages.layers, hybrid=hybrid, merge_ratio=rules.merge_ratio)
    if not groups:
        raise KvplanError("no layer of this model keeps KV or a state: there is no cache to plan")
    request = _Request(args.decode_context_parallel_size, max_in_flight_tokens(args, rules))
    stages = _Stages.of(groups, args, available_bytes, rules)
    asked = args.max_model_len
    length = longest if asked is None or asked == -1 else asked
    if asked == -1:
        length = _fitted_length(stages, request, length)
    _check_fits(stages, request, length)
    stage, packed = stages.tightest, max(stages.block_bytes) if is_packed else None
    return Layout(
        groups=tuple(_describe(group, request, length, stage, packed) for group in groups),
        num_blocks=stages.num_blocks[stage],
        bytes_per_block=stages.block_bytes[stage],
        block_size=pages.block_size,
        max_model_len=length,
        max_in_flight_tokens=request.max_in_flight_tokens,
        kv_cache_dtype=pages.kv_cache_dtype,
        attention_backends=pages.backends,
        version=version,
        stage=stage,
        stage_bytes_per_block=tuple(stages.block_bytes),
    )


def max_in_flight_tokens(args: EngineArgs, rules: Rules = Rules()) -> int:  # noqa: B008 (a tuple)
    """Tokens scheduled but not settled: the token budget, once per batch that is in flight.

    One batch per pipeline stage, and one more under asynchronous scheduling.
    """
    batches = args.pipeline_parallel_size + (args.async_scheduling is not False)
    batches = batches if rules.counts_steps_in_flight else 1
    assert args.max_num_batched_tokens is not None, "resolve the flags first"
    return batches * args.max_num_batched_tokens


def _hybrid_manager_off(model: ModelSpec, args: EngineArgs) -> bool:
    """The user's flag; and vLLM itself turns it off for chunked attention with a drafting head."""
    chunked = any(layer.attention.kind is AttentionKind.CHUNKED for layer in model.layers)
    drafts = args.num_speculative_tokens > 0 and args.speculative_method in READ_STATES
    kept_whole = drafts or not args.environment.allow_chunked_local_attn_with_hybrid_kv_cache
    return args.disable_hybrid_kv_cache_manager or (chunked and kept_whole)


@dataclass(frozen=True, slots=True)
class _Request:
    """What one request's reservation depends on besides its length."""

    dcp: int
    max_in_flight_tokens: int

    def blocks(self, groups: Sequence[Group], length: int) -> int:
        return sum(self.group_blocks(group, length) for group in groups)

    def group_blocks(self, group: Group, length: int) -> int:
        pages = {layer.page for layer in group}
        return max(page.blocks(length, self.max_in_flight_tokens, self.dcp) for page in pages)


@dataclass(frozen=True, slots=True)
class _Stages:
    """The pool as each pipeline stage sees it: the same block ids, its own layers and memory."""

    groups: list[Group]
    block_bytes: list[int]
    available_bytes: list[int]
    num_reserved: int
    """Blocks that no request may count on: the null block."""

    @classmethod
    def of(
        cls, groups: list[Group], args: EngineArgs, available_bytes: int | Sequence[int], rules: Rules
    ) -> _Stages:
        num = args.pipeline_parallel_size
        available = [available_bytes] * num if isinstance(available_bytes, int) else list(available_bytes)
        if len(available) != num:
            raise KvplanError(f"{len(available)} KV memory sizes for {num} pipeline stages")
        sizes = [bytes_per_block(on_stage(groups, stage)) for stage in range(num)]
        if 0 in sizes:  # vLLM 0.32 `kv_cache_utils.py: _get_kv_cache_bytes_per_block` asserts or divides by 0
            raise KvplanError(
                f"pipeline_parallel_size {num}: no layer of stage {sizes.index(0) + 1} keeps KV or a state, and"
                " vLLM's planner takes no such stage"
            )
        if args.num_gpu_blocks_override is not None:
            available = [args.num_gpu_blocks_override * size for size in sizes]
        return cls(groups, sizes, available, int(rules.keeps_null_block))

    @property
    def num_blocks(self) -> list[int]:
        """Blocks that the memory of each stage holds."""
        pairs = zip(self.available_bytes, self.block_bytes, strict=True)
        return [int(pool_blocks(available, size)) for available, size in pairs]

    @property
    def tightest(self) -> int:
        """The stage with fewest blocks; of equals the one whose blocks are largest."""
        held = self.num_blocks
        return min(range(len(held)), key=lambda i: (held[i], -self.block_bytes[i]))

    @property
    def usable_bytes(self) -> list[tuple[int, int]]:
        """(bytes of a block, bytes less the null block) of each stage."""
        pairs = zip(self.available_bytes, self.block_bytes, strict=True)
        return [(s, a - s * self.num_reserved) for a, s in pairs]


def _longest(stages: _Stages, request: _Request, size: int, usable: int, longest: int) -> int:
    """Longest request that fits one stage, by bisection as vLLM searches; 0 if none."""

    def fits(length: int) -> bool:
        return request.blocks(stages.groups, length) * size <= usable

    if not fits(1):
        return 0
    low, high = 1, longest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _fitted_length(stages: _Stages, request: _Request, longest: int) -> int:
    """The length that --max-model-len -1 settles on."""
    for stage, (size, usable) in enumerate(stages.usable_bytes):
        longest = min(longest, _longest(stages, request, size, usable, longest))
        if longest <= 0:
            raise KvCacheTooSmall("no KV memory for even one token", 0, 0, 0, stage)
    return longest


def _check_fits(stages: _Stages, request: _Request, length: int) -> None:
    """Refuse what vLLM refuses: one request of full length must fit beside the null block, on every stage."""
    for stage, (size, usable) in enumerate(stages.usable_bytes):
        if usable <= 0:
            text = f"no memory left for KV blocks: {gib(usable + size):.2f} GiB, one block is {gib(size):.2f} GiB"
            raise KvCacheTooSmall(text, size, usable, 0, stage)
        needed = request.blocks(stages.groups, length) * size
        if needed <= usable:
            continue
        fits = _longest(stages, request, size, usable, length)
        what = f"one request of {length:,} tokens needs {gib(needed):.2f} GiB of KV cache"
        then = f"{fits:,} tokens would fit (--max-model-len {fits})" if fits else "not even one token fits"
        raise KvCacheTooSmall(f"{what}, there are {gib(usable):.2f} GiB; {then}", needed, usable, fits, stage)


def _fullest_content(group: Group) -> int:
    """Bytes of a group's pages without padding, on the pipeline stage that has most of them."""
    content: dict[int, int] = {}
    for layer in group:
        content[layer.stage] = content.get(layer.stage, 0) + layer.page.content_bytes
    return max(content.values())


def _describe(group: Group, request: _Request, length: int, stage: int, packed_bytes: int | None) -> KvGroup:
    first = group[0].page
    total = sum(layer.page.num_bytes for layer in group)
    here = sum(layer.page.num_bytes for layer in group if layer.stage == stage)
    same = len({(layer.page.num_bytes, layer.page.shape) for layer in group}) == 1
    return KvGroup(
        kind=first.kind,
        num_layers=len(group),
        block_size=first.block_size,
        page_bytes=first.num_bytes if same else total,
        bytes_per_block=here,
        copied_bytes=_fullest_content(group) if packed_bytes is None else packed_bytes,
        blocks_per_request=request.group_blocks(group, length),
        window=first.window,
        num_shards=request.dcp if first.kind.is_growing else 1,
        speculative_blocks=first.speculative_blocks,
        checkpoint_alignment=first.checkpoint_alignment if first.aligned else 0,
        bounded_replay=first.bounded_replay,
        holds_last_layer=any(layer.is_last for layer in group),
        other_stages_bytes=total - here,
    )
