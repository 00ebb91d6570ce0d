"""Pages and groups: how layers that remember differently share one pool of equal blocks.

A `Page` is one layer's share of a block. A group is a set of layers with one block table; every group draws
from the same pool, so a block is as large as the largest group's pages together. Re-derived from vLLM 0.32,
`v1/core/kv_cache_utils.py`. Knows no model and no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import lcm
from typing import NamedTuple

from kvplan.formulas.capacity import chunked_blocks, full_blocks, state_blocks, window_blocks
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.models.spec import AttentionKind


@dataclass(frozen=True, slots=True)
class Page:
    """What one layer stores in one block, on one rank."""

    kind: AttentionKind
    block_size: int
    """Tokens per block."""
    token_bytes: int = 0
    """Bytes a token; 0 for states."""
    state_bytes: int = 0
    """Bytes of the state; 0 for attention."""
    window: int = 0
    """Tokens of the window or chunk; kept, without effect, when the window counts as full attention."""
    reserved: int = 0
    """Of attention to an encoder: tokens that start-up reserves for a request's items, the whole budget of a step."""
    retained: int = 0
    """Tokens kept behind the window for multi-token prediction with several modules."""
    stride: int = 1
    """Bytes that blocks must lie whole multiples of apart, where pages of several sizes lie in one."""
    padded_bytes: int = 0
    """Size the page is padded to; 0: not padded."""
    shape: tuple[int | str, ...] = ()
    """Heads, head sizes, KV dtype: layers of one group have equal shapes."""
    speculative_blocks: int = 0
    checkpoint_alignment: int = 0
    """States only: tokens whose multiples a prefill can write one more state at from inside a chunk; 0: none."""
    replicated: bool = False
    """States only: every rank holds all of it."""
    bounded_replay: bool = False
    """Windows only: kept out of prefix caching, and made again from the end of a hit."""
    aligned: bool = False
    """States only: prefix caching keeps the state at block ends (mamba_cache_mode align)."""

    @property
    def content_bytes(self) -> int:
        """Bytes of the page without padding."""
        return self.state_bytes or self.token_bytes * self.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes the page takes."""
        return self.padded_bytes or self.content_bytes

    def blocks(self, max_model_len: int, max_in_flight_tokens: int, dcp: int = 1) -> int:
        """Blocks that start-up reserves for one request of `max_model_len` tokens."""
        if self.kind.is_fixed:
            return int(state_blocks(self.speculative_blocks, self.checkpoint_alignment > 0, self.aligned))
        if self.kind.is_growing:
            return int(full_blocks(max_model_len, self.block_size * dcp))
        if self.kind is AttentionKind.CROSS:
            return int(full_blocks(self.reserved, self.block_size))
        if self.kind is AttentionKind.CHUNKED:
            return int(chunked_blocks(max_model_len, self.window, max_in_flight_tokens, self.block_size))
        window = self.window + self.retained
        return int(window_blocks(max_model_len, window, max_in_flight_tokens, self.block_size))


class Layer(NamedTuple):
    """A layer's page and where the layer lives."""

    stage: int
    page: Page
    is_last: bool = False
    """The last layer the engine builds; with multi-token prediction a drafting one."""


Group = list[Layer]


def bytes_per_block(groups: Sequence[Group]) -> int:
    """Bytes of one block: the largest group's pages together, at a stride that their kernels take."""
    size = max((sum(layer.page.num_bytes for layer in group) for group in groups), default=0)
    unit = lcm(*(layer.page.stride for group in groups for layer in group))
    return cdiv(size, unit) * unit


def on_stage(groups: Sequence[Group], stage: int) -> list[Group]:
    """The groups as one pipeline stage holds them; some may be empty there."""
    return [[layer for layer in group if layer.stage == stage] for group in groups]


def group_layers(layers: Sequence[Layer], *, hybrid: bool = True, merge_ratio: float = 1.5) -> list[Group]:
    """Split layers into groups the way the engine does.

    Args:
        layers: every layer that owns KV, in the order the model builds them.
        hybrid: False for --disable-hybrid-kv-cache-manager: windows and chunks count as full attention.
        merge_ratio: see `versions.Rules`.

    Raises:
        KvplanError: the kinds cannot share one page size.
    """
    layers = [layer._replace(is_last=i == len(layers)) for i, layer in enumerate(layers, 1)]
    if not hybrid:
        layers = promote_windows(layers)
    if not layers:
        return []
    if is_uniform([layer.page for layer in layers]):
        return [layers]
    try:
        return _deal(_unify_page_sizes(layers), merge_ratio)
    except _CannotPad:
        with suppress(KvplanError):
            promoted = promote_windows(layers)
            if is_uniform([layer.page for layer in promoted]):
                return [promoted]
        raise KvplanError(
            "these layers' KV pages cannot be brought to one size; the engine refuses them"
        ) from None


def is_uniform(pages: Sequence[Page]) -> bool:
    """Whether all layers need the same number of blocks for any sequence, so one block table serves all."""
    return len({_need(page) for page in pages}) == 1


def _need(page: Page) -> tuple[object, ...]:
    if page.kind.is_growing:
        return (page.block_size,)
    if page.kind.is_fixed:
        blocks = (page.speculative_blocks, page.checkpoint_alignment, page.replicated)
        return (page.kind, page.block_size, *blocks, page.num_bytes)
    return (page.kind, page.block_size, page.window)


def promote_windows(layers: Sequence[Layer]) -> list[Layer]:
    """Count windows and chunks as full attention, if some layer has full attention already."""
    full_sizes = {layer.page.block_size for layer in layers if layer.page.kind.is_growing}
    if not full_sizes or is_uniform([layer.page for layer in layers]):
        return list(layers)
    block_size = full_sizes.pop() if len(full_sizes) == 1 else 0
    promoted = [layer._replace(page=_promoted(layer.page, block_size)) for layer in layers]
    if not is_uniform([layer.page for layer in promoted]):
        raise KvplanError(
            "this model needs the hybrid KV cache manager; drop --disable-hybrid-kv-cache-manager"
        )
    return promoted


def _promoted(page: Page, block_size: int) -> Page:
    if not page.kind.is_windowed:
        return page
    block_size = block_size or page.block_size
    padded = page.padded_bytes and max(page.padded_bytes, page.token_bytes * block_size)
    return replace(page, kind=AttentionKind.FULL, block_size=block_size, padded_bytes=padded, retained=0)


def pack(layers: Sequence[Layer]) -> list[Group]:
    """Group layers whose pages differ in size and lie together in a block (vLLM's `_get_packed_kv_cache_groups`).

    Layers that need the same number of blocks for any sequence make a bucket. A bucket with as many layers of each
    page size is a repeating pattern; patterns with several sizes stay whole, and say how many repeats the groups of
    the others get.
    """
    layers = [layer._replace(is_last=i == len(layers)) for i, layer in enumerate(layers, 1)]
    buckets: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        buckets.setdefault(_need(layer.page), []).append(layer)
    patterns = [_by_size(bucket) for bucket in buckets.values()]
    even = [p for p in patterns if len({len(same) for same in p}) == 1]
    least = max((len(p[0]) for p in even if len(p) > 1), default=0)
    repeats = _least_padding([len(p[0]) for p in even], least) if least else 0

    def fewest(pattern: list[list[Layer]]) -> int:
        return cdiv(len(pattern[0]), repeats) if repeats and pattern in even else 1

    def is_small(pattern: list[list[Layer]]) -> bool:
        kind = pattern[0][0].page.kind
        return kind.is_fixed or (not repeats and kind is AttentionKind.SLIDING)

    anchor = max(_widest(p, sum(map(len, p)) if is_small(p) else fewest(p)) for p in patterns)
    groups = []
    for bucket, pattern in zip(buckets.values(), patterns, strict=True):
        num_groups = fewest(pattern)
        if is_small(pattern):
            num_groups = max(num_groups, cdiv(len(bucket), max(anchor // bucket[0].page.num_bytes, 1)))
        if num_groups == 1:
            groups.append(bucket)
            continue
        rows = list(zip(*pattern, strict=True))
        groups += [[layer for row in rows[i::num_groups] for layer in row] for i in range(num_groups)]
    return groups


def _widest(pattern: list[list[Layer]], num_groups: int) -> int:
    """Bytes of the largest of the groups that a bucket splits into."""
    return sum(cdiv(len(same), num_groups) * same[0].page.num_bytes for same in pattern)


def _by_size(bucket: list[Layer]) -> list[list[Layer]]:
    found: dict[int, list[Layer]] = {}
    for layer in bucket:
        found.setdefault(layer.page.num_bytes, []).append(layer)
    return list(found.values())


def _least_padding(sizes: list[int], least: int) -> int:
    """The group size from `least` on that pads all `sizes` least; of equals the largest."""
    return min(
        range(least, max(sizes) + 1),
        key=lambda d: (sum(-size % d for size in sizes), -d),
        default=least,
    )


class _CannotPad(Exception):
    """A latent page that does not divide the largest page: sparse kernels index whole rows."""


def _unify_page_sizes(layers: Sequence[Layer]) -> list[Layer]:
    """Bring all pages to the largest one's size: more tokens a block where that divides, else padding."""
    largest = max(layer.page.num_bytes for layer in layers)
    return [layer._replace(page=_grown(layer.page, largest)) for layer in layers]


def _grown(page: Page, num_bytes: int) -> Page:
    if page.num_bytes == num_bytes:
        return page
    if page.kind.is_fixed:
        return replace(page, padded_bytes=num_bytes)
    if num_bytes % page.num_bytes == 0:
        if page.padded_bytes:  # the engine trips over its own assertion here
            raise KvplanError(
                "kv_cache_dtype_skip_layers: these layers' padded KV pages cannot share one pool"
            )
        return replace(page, block_size=page.block_size * (num_bytes // page.num_bytes))
    if page.kind is AttentionKind.MLA:
        raise _CannotPad
    return replace(page, padded_bytes=num_bytes)


def _deal(layers: Sequence[Layer], merge_ratio: float) -> list[Group]:
    """Deal each kind's layers into groups of equal size, so that every group fills a block.

    The size is the smallest kind's count, or the largest kind's if that is less than `merge_ratio` times as many;
    groups that come out short leave padding.
    """
    kinds: dict[Page, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.page, []).append(layer)
    smallest = min(map(len, kinds.values()))
    largest = max(map(len, kinds.values()))
    size = largest if largest < merge_ratio * smallest else smallest
    groups = []
    for same in kinds.values():
        num_groups = cdiv(len(same), size)
        groups += [same[i::num_groups] for i in range(num_groups)]
    return groups
