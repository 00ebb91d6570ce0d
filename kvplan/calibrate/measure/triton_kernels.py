"""Paged attention kernels of our own, for machines without FlashInfer or FlashAttention: decode, and ragged.

Flash-decoding: every (sequence, KV head) is split along its context; each part keeps an online softmax, a
second kernel joins the parts. The ragged kernel takes decodes and prompt chunks in one launch: a program has a few
queries of one sequence and walks all of its keys, as engines' unified kernels do. GQA heads of one KV head share its
reads. With ROPE > 0 it is MLA: one latent a token serves as key (with a rotary part behind it) and as value. Source of
the scheme: Dao et al., "Flash-Decoding for long-context inference" (2023). Imports triton; nobody imports this file
without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _split_kernel(  # type: ignore[no-untyped-def]
    q, pool, table, lengths, part_out, part_lse, scale,
    table_width, kv_heads, kv_offset, page_stride, token_stride, head_stride, splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One part of one sequence's context for up to ROWS query heads of one KV head."""
    seq, part = tl.program_id(0), tl.program_id(2)
    slices = tl.cdiv(GROUP, ROWS)
    kv_head, first = tl.program_id(1) // slices, (tl.program_id(1) % slices) * ROWS
    length = tl.load(lengths + seq)
    span = tl.cdiv(tl.cdiv(length, splits), TILE) * TILE
    begin = part * span
    end = tl.minimum(begin + span, length)
    rows, dims, cols = first + tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, TILE)
    heads = kv_heads * GROUP
    q_row = q + (seq * heads + kv_head * GROUP + rows[:, None]) * (DIM + ROPE)
    query = tl.load(q_row + dims[None, :], mask=rows[:, None] < GROUP, other=0.0)
    if ROPE > 0:
        turns = DIM + tl.arange(0, ROPE)
        q_turned = tl.load(q_row + turns[None, :], mask=rows[:, None] < GROUP, other=0.0)
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(begin, end, TILE):
        token = start + cols
        live = token < end
        page = tl.load(table + seq * table_width + token // PAGE, mask=live, other=0).to(tl.int64)
        at = page * page_stride + (token % PAGE) * token_stride + kv_head * head_stride
        keys = tl.load(pool + at[None, :] + dims[:, None], mask=live[None, :], other=0.0).to(query.dtype)
        scores = tl.dot(query, keys)
        if ROPE > 0:
            k_turned = tl.load(pool + at[None, :] + turns[:, None], mask=live[None, :], other=0.0)
            scores += tl.dot(q_turned, k_turned.to(query.dtype))
        scores = scores * scale
        scores = tl.where(live[None, :], scores, -float("inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - new_best[:, None])
        shrink = tl.exp(best - new_best)
        values = tl.load(pool + kv_offset + at[:, None] + dims[None, :], mask=live[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weights.to(query.dtype), values.to(query.dtype))
        total = total * shrink + tl.sum(weights, 1)
        best = new_best
    slot = (seq * heads + kv_head * GROUP + rows) * splits + part
    full = total > 0
    acc = acc / tl.where(full, total, 1.0)[:, None]
    tl.store(part_out + slot[:, None] * DIM + dims[None, :], acc, mask=rows[:, None] < GROUP)
    tl.store(part_lse + slot, tl.where(full, best + tl.log(total), -float("inf")), mask=rows < GROUP)


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(part_out, part_lse, out, SPLITS: tl.constexpr, WIDE: tl.constexpr, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Join the parts of one query head by their log-sum-exp."""
    row = tl.program_id(0)
    parts, dims = tl.arange(0, WIDE), tl.arange(0, DIM)
    live = parts < SPLITS
    lse = tl.load(part_lse + row * SPLITS + parts, mask=live, other=-float("inf"))
    share = tl.exp(lse - tl.max(lse, 0))
    share = share / tl.sum(share, 0)
    at = part_out + (row * SPLITS + parts[:, None]) * DIM + dims[None, :]
    value = tl.sum(tl.load(at, mask=live[:, None], other=0.0) * share[:, None], 0)
    tl.store(out + row * DIM + dims, value)


def paged_decode(
    q: torch.Tensor,
    pool: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    num_sms: int,
    rope: int = 0,
) -> Callable[[], torch.Tensor]:
    """Return a call that attends one query token per sequence to its paged context.

    q (batch, heads, dim + rope); pool (pages, 2, page, kv_heads, dim), any float dtype, or for MLA (rope > 0)
    (pages, 1, page, 1, dim + rope); table (batch, pages per sequence) int32; lengths (batch,) int32. The
    returned tensor is (batch, heads, dim) and is reused.
    """
    batch, heads, dim = q.shape[0], q.shape[1], q.shape[2] - rope
    page, kv_heads = pool.shape[2:4]
    group = heads // kv_heads
    rows = min(32, max(16, triton.next_power_of_2(group)))
    kv_offset = 0 if rope else pool.stride(1)
    longest = int(lengths.max())
    splits = max(1, min(math.ceil(longest / 256), math.ceil(4 * num_sms / (batch * kv_heads))))
    part_out = torch.empty(batch * heads * splits, dim, device=q.device, dtype=torch.float32)
    part_lse = torch.empty(batch * heads * splits, device=q.device, dtype=torch.float32)
    out = torch.full((batch, heads, dim), float("nan"), device=q.device, dtype=q.dtype)
    constants: dict[str, Any] = {
        "GROUP": group, "ROWS": rows, "DIM": dim, "ROPE": rope, "PAGE": page, "TILE": 32 if rope else 64,
    }  # fmt: skip
    grid = (batch, kv_heads * triton.cdiv(group, rows), splits)

    def call() -> torch.Tensor:
        _split_kernel[grid](
            q, pool, table, lengths, part_out, part_lse, (dim + rope) ** -0.5, table.shape[1], kv_heads,
            kv_offset, pool.stride(0), pool.stride(2), pool.stride(3), splits, **constants, num_warps=4,
        )  # fmt: skip
        _join_kernel[(batch * heads,)](
            part_out, part_lse, out, SPLITS=splits, WIDE=triton.next_power_of_2(splits), DIM=dim
        )
        return out

    return call


@triton.jit  # type: ignore[untyped-decorator]
def _ragged_kernel(  # type: ignore[no-untyped-def]
    q, pool, table, lengths, starts, block_seq, block_first, out, scale,
    table_width, kv_heads, kv_offset, page_stride, token_stride, head_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A few queries of one sequence, times the query heads of one KV head, over all keys that they may see."""
    block, kv_head = tl.program_id(0), tl.program_id(1)
    seq, first = tl.load(block_seq + block), tl.load(block_first + block)
    begin = tl.load(starts + seq)
    count = tl.load(starts + seq + 1) - begin
    past = tl.load(lengths + seq) - count
    rows, dims, cols = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, TILE)
    token = first + rows // GROUP
    live_row = (token < count) & (rows < ROWS // GROUP * GROUP)
    at_row = ((begin + token) * kv_heads * GROUP + kv_head * GROUP + rows % GROUP) * DIM
    query = tl.load(q + at_row[:, None] + dims[None, :], mask=live_row[:, None], other=0.0)
    end = past + tl.minimum(first + ROWS // GROUP, count)
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, end, TILE):
        key = start + cols
        live = key < end
        page = tl.load(table + seq * table_width + key // PAGE, mask=live, other=0).to(tl.int64)
        at = page * page_stride + (key % PAGE) * token_stride + kv_head * head_stride
        keys = tl.load(pool + at[None, :] + dims[:, None], mask=live[None, :], other=0.0).to(query.dtype)
        scores = tl.dot(query, keys) * scale
        scores = tl.where(live[None, :] & (key[None, :] <= past + token[:, None]), scores, -float("inf"))
        new_best = tl.maximum(
            best, tl.max(scores, 1)
        )  # finite from the first tile on: all see their first key
        weights = tl.exp(scores - new_best[:, None])
        shrink = tl.exp(best - new_best)
        values = tl.load(pool + kv_offset + at[:, None] + dims[None, :], mask=live[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weights.to(query.dtype), values.to(query.dtype))
        total = total * shrink + tl.sum(weights, 1)
        best = new_best
    tl.store(out + at_row[:, None] + dims[None, :], acc / total[:, None], mask=live_row[:, None])


def paged_ragged(
    q: torch.Tensor, pool: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Return a call that attends every sequence's new tokens, one or many, to its paged context, in one launch.

    q (tokens, heads, dim), packed; pool (pages, 2, page, kv_heads, dim), any float dtype; table (sequences, pages per
    sequence) int32; lengths (sequences,) int32, past and new tokens; starts (sequences + 1,) int32, where each one's
    queries begin. The returned tensor is shaped as q and is reused.
    """
    heads, dim = q.shape[1:]
    page, kv_heads = pool.shape[2:4]
    group = heads // kv_heads
    rows = max(64, triton.next_power_of_2(group))
    each = rows // group
    counts = [-(-n // each) for n in starts.diff().tolist()]
    owners = [(seq, i * each) for seq, count in enumerate(counts) for i in range(count)]
    block_seq, block_first = torch.tensor(owners, device=q.device, dtype=torch.int32).T.contiguous()
    out = torch.full_like(q, float("nan"))
    constants: dict[str, Any] = {"GROUP": group, "ROWS": rows, "DIM": dim, "PAGE": page, "TILE": 32}

    def call() -> torch.Tensor:
        _ragged_kernel[(len(owners), kv_heads)](
            q, pool, table, lengths, starts, block_seq, block_first, out, dim**-0.5, table.shape[1], kv_heads,
            pool.stride(1), pool.stride(0), pool.stride(2), pool.stride(3), **constants, num_warps=4,
        )  # fmt: skip
        return out

    return call
