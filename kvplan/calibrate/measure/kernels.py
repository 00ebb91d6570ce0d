"""Paged attention kernels: the best one present for decodes, and for decodes beside prompts in one launch.

A kernel is a function from a `Batch` to a call. Every kernel is held against float32 attention on a small case before
it is timed; a library of another interface, or one that gives other numbers, is passed over. Without a kernel that
takes decodes and prompts together the two are timed in turn; rows say so (`one_kernel`), and a fit then learns nothing
of mixing from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvplan.calibrate.measure.grids import AttentionShape

TORCH_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.float8_e4m3fn,
}
MOST_WRONG = 2e-2
"""Relative error from which a kernel is not timed; 16-bit operands come to a tenth of it."""
FLEX_BLOCK = 128
"""FlexAttention's tile: queries of a sequence are padded to it, and pages are as large."""
SMALL_CASE = ((4, 1), (0, 40), (63, 1), (37, 20), (299, 1))
"""(past, new) of the batch that every kernel must get right before it is timed; the decode kernels its decodes."""


class Batch(NamedTuple):
    """Sequences that compute one token or many, over one paged pool of one layer."""

    q: torch.Tensor
    """(tokens, heads, head_dim), packed."""
    pool: torch.Tensor
    """(pages, 2, page, kv_heads, head_dim): keys at [:, 0], values at [:, 1]."""
    table: torch.Tensor
    """(sequences, pages of the longest one), int32; pages are scattered over the pool."""
    lengths: torch.Tensor
    """(sequences,), int32: tokens each sequence attends to, past and new."""
    starts: torch.Tensor
    """(sequences + 1,), int32: where each one's queries begin."""

    def new(self) -> list[int]:
        """Tokens that each sequence computes."""
        return self.starts.diff().tolist()


Kernel = Callable[[Batch], Callable[[], torch.Tensor]]


class Named(NamedTuple):
    """A kernel and what rows call it."""

    name: str
    kernel: Kernel


class Kernels(NamedTuple):
    """What this machine can time."""

    decode: Mapping[str, Named]
    """KV dtype -> the kernel for decodes."""
    mixed: Mapping[str, Named]
    """KV dtype -> the kernel that takes decodes and prompts together, where there is one."""
    mla: bool = False
    """Whether the latent kernel of MLA runs here."""
    fp8_products: bool = False
    grouped: bool = True
    """Whether experts are multiplied in one product, so that their steps can be captured."""


def decoding(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(past, new) of sequences that compute the last token of so many."""
    return [(n - 1, 1) for n in lengths]


def make_batch(
    shape: AttentionShape, parts: Sequence[tuple[int, int]], page: int, kv_dtype: str, device: torch.device,
    seed: int = 0, shared: int = 0,
) -> Batch:  # fmt: skip
    """A batch of (past, new) tokens per sequence: random queries, a scattered pool that holds exactly them.

    The first `shared` tokens (whole pages of them) are the same pages for all sequences: a prompt's, of its branches.
    """
    generator = torch.Generator(device).manual_seed(seed)
    compute = torch.float32 if kv_dtype == "float32" else torch.bfloat16
    lengths = [past + new for past, new in parts]
    common = min([shared, *lengths]) // page
    widths = [-(-n // page) - common for n in lengths]
    count = common + sum(widths)
    starts = torch.zeros(len(parts) + 1, device=device, dtype=torch.int32)
    starts[1:] = torch.tensor([new for _, new in parts], device=device).cumsum(0)
    room = (count, 2, page, shape.num_kv_heads, shape.head_dim)
    pool = torch.empty(room, device=device, dtype=compute).normal_(generator=generator)
    pool = pool.to(TORCH_DTYPES[kv_dtype]) if kv_dtype == "fp8" else pool
    order = torch.randperm(count, generator=generator, device=device).to(torch.int32)
    table = torch.zeros(len(parts), common + max(widths), device=device, dtype=torch.int32)
    table[:, :common] = order[:common]
    start = common
    for row, width in enumerate(widths):
        table[row, common : common + width] = order[start : start + width]
        start += width
    size = (int(starts[-1]), shape.num_heads, shape.head_dim)
    q = torch.randn(size, generator=generator, device=device).to(compute)
    return Batch(q, pool, table, torch.tensor(lengths, device=device, dtype=torch.int32), starts)


def make_mla_batch(shape: tuple[int, int, int], lengths: list[int], page: int, device: torch.device) -> Batch:
    """Queries already absorbed into the latent space and a pool (pages, 1, page, 1, rank + rope)."""
    heads, rank, rope = shape
    flat = make_batch(AttentionShape(heads, 1, rank + rope), decoding(lengths), page, "bfloat16", device)
    return flat._replace(pool=flat.pool[:, :1].contiguous())


def gather(batch: Batch, row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one sequence, (length, kv_heads, head_dim) each."""
    page = batch.pool.shape[2]
    pages = batch.pool[batch.table[row, : -(-length // page)].long()]
    k, v = (pages[:, side].flatten(0, 1)[:length] for side in (0, 1))
    return k, v


def reference(batch: Batch) -> torch.Tensor:
    """Float32 causal attention, sequence by sequence; (tokens, heads, head_dim)."""
    rows = []
    queries = torch.split(batch.q.float(), batch.new())
    for i, (q, length) in enumerate(zip(queries, batch.lengths.tolist(), strict=True)):
        k, v = gather(batch, i, length)
        group = q.shape[1] // k.shape[1]
        k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("thd,nhd->htn", q, k) * k.shape[-1] ** -0.5
        unseen = torch.ones_like(scores[0], dtype=torch.bool).triu(length - len(q) + 1)
        rows.append(torch.einsum("htn,nhd->thd", scores.masked_fill(unseen, -torch.inf).softmax(-1), v))
    return torch.cat(rows)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """|out - expected| / |expected|; NaN (an element never written) counts as infinite."""
    error = ((out.float() - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")


def is_right(kernel: Kernel, batch: Batch, bound: float = MOST_WRONG) -> bool:
    """Whether a kernel runs here and equals float32 attention; a library of another interface does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return relative_error(kernel(batch)(), reference(batch)) < bound
    except Exception:  # libraries and compilers have errors of their own
        return False


def sdpa_kernel(batch: Batch) -> Callable[[], torch.Tensor]:
    """PyTorch's own attention; pages are gathered first, as an engine without a paged kernel would."""
    new, lengths = batch.new(), batch.lengths.tolist()

    def call() -> torch.Tensor:
        rows = []
        for i, (q, length) in enumerate(zip(torch.split(batch.q, new), lengths, strict=True)):
            k, v = (x.to(q.dtype).transpose(0, 1)[None] for x in gather(batch, i, length))
            rows.append(causal(q.transpose(0, 1)[None], k, v)()[0].transpose(0, 1))
        return torch.cat(rows)

    return call


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
    """sdpa of a chunk over its past, (1, heads, tokens, dim): the past needs no mask, the chunk itself is causal."""
    new, length = q.shape[2], k.shape[2]
    if new == 1:
        return lambda: sdpa(q, k, v, enable_gqa=True)
    if new == length:
        return lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True)
    from torch.nn.attention.bias import causal_lower_right

    mask, group = causal_lower_right(new, length), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return lambda: sdpa(q, k, v, attn_mask=mask)


def _triton_decode(batch: Batch) -> Callable[[], torch.Tensor]:
    from kvplan.calibrate.measure.triton_kernels import paged_decode

    return paged_decode(batch.q, batch.pool, batch.table, batch.lengths, num_sms(batch.q.device))


def mla_decode(batch: Batch, rope: int) -> Callable[[], torch.Tensor]:
    """Absorbed MLA: every head attends to one latent of rank + rope elements a token."""
    from kvplan.calibrate.measure.triton_kernels import paged_decode

    return paged_decode(batch.q, batch.pool, batch.table, batch.lengths, num_sms(batch.q.device), rope=rope)


def num_sms(device: torch.device) -> int:
    """Multiprocessors to split contexts over; a few where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _triton_mixed(batch: Batch) -> Callable[[], torch.Tensor]:
    from kvplan.calibrate.measure.triton_kernels import paged_ragged

    return paged_ragged(*batch)


def _flash_attn_decode(batch: Batch) -> Callable[[], torch.Tensor]:
    from flash_attn import flash_attn_with_kvcache  # type: ignore[import-not-found]

    k, v = batch.pool[:, 0], batch.pool[:, 1]
    return lambda: flash_attn_with_kvcache(
        batch.q[:, None], k, v, cache_seqlens=batch.lengths, block_table=batch.table, causal=True
    )[:, 0]


def _flash_attn_mixed(batch: Batch) -> Callable[[], torch.Tensor]:
    from flash_attn import flash_attn_varlen_func

    k, v = batch.pool[:, 0], batch.pool[:, 1]
    ends = torch.zeros_like(batch.starts)
    ends[1:] = batch.lengths.cumsum(0)
    longest, widest = int(batch.lengths.max()), max(batch.new())
    return lambda: flash_attn_varlen_func(
        batch.q, k, v, batch.starts, ends, widest, longest, causal=True, block_table=batch.table
    )


def _flashinfer(batch: Batch, decodes: bool) -> Callable[[], torch.Tensor]:
    import flashinfer  # type: ignore[import-not-found]

    page, kv_heads, dim = batch.pool.shape[2:]
    widths = -(-batch.lengths // page)
    indptr = torch.zeros_like(batch.starts)
    indptr[1:] = widths.cumsum(0)
    indices = torch.cat([batch.table[i, :w] for i, w in enumerate(widths.tolist())])
    pages = (indptr, indices, (batch.lengths - 1) % page + 1)
    workspace = torch.empty(256 << 20, device=batch.q.device, dtype=torch.uint8)
    shape, types = (batch.q.shape[1], kv_heads, dim, page), {"q_data_type": batch.q.dtype}
    if decodes:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(*pages, *shape, **types, kv_data_type=batch.pool.dtype)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(batch.starts, *pages, *shape, causal=True, **types, kv_data_type=batch.pool.dtype)
    return lambda: wrapper.run(batch.q, batch.pool)


def flex_kernel(batch: Batch, compiled: bool = True) -> Callable[[], torch.Tensor]:
    """FlexAttention over pages of its own tile's size; every sequence's queries begin on a tile of their own."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    new, device, lengths = batch.new(), batch.q.device, batch.lengths.tolist()
    tiles = [-(-n // FLEX_BLOCK) for n in new]
    widths = [-(-n // FLEX_BLOCK) for n in lengths]
    size = (sum(tiles) * FLEX_BLOCK, *batch.q.shape[1:])
    q = torch.zeros(size, device=device, dtype=batch.q.dtype)
    position = torch.full(size[:1], -1, device=device)  # the last key that a query may see
    kept = torch.zeros(size[:1], device=device, dtype=torch.bool)
    k, v = (batch.q.new_zeros(sum(widths) * FLEX_BLOCK, *batch.pool.shape[3:]) for _ in "kv")
    counts, indices, row, page = [], torch.zeros(sum(tiles), sum(widths), dtype=torch.int32), 0, 0
    page_start = torch.zeros(sum(tiles), device=device, dtype=torch.int64)
    for i, (length, count, queries) in enumerate(zip(lengths, new, torch.split(batch.q, new), strict=True)):
        begin, first = row * FLEX_BLOCK, page * FLEX_BLOCK
        q[begin : begin + count], kept[begin : begin + count] = queries, True
        position[begin : begin + count] = torch.arange(length - count, length, device=device)
        for side, part in zip((k, v), gather(batch, i, length), strict=True):
            side[first : first + length] = part.to(batch.q.dtype)
        indices[row : row + tiles[i], : widths[i]] = torch.arange(page, page + widths[i])
        page_start[row : row + tiles[i]] = first
        counts += [widths[i]] * tiles[i]
        row, page = row + tiles[i], page + widths[i]

    def seen(b: Any, h: Any, query: Any, key: Any) -> Any:
        own = key - page_start[query // FLEX_BLOCK]
        return (own >= 0) & (own <= position[query])

    mask = BlockMask.from_kv_blocks(
        torch.tensor(counts, dtype=torch.int32, device=device)[None, None], indices.to(device)[None, None],
        BLOCK_SIZE=FLEX_BLOCK, mask_mod=seen,
    )  # fmt: skip
    attend = torch.compile(flex_attention) if compiled else flex_attention
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return lambda: attend(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)[kept]


DECODE_KERNELS: dict[str, tuple[Kernel, str]] = {
    "flashinfer": (lambda batch: _flashinfer(batch, decodes=True), "flashinfer"),
    "flash_attn": (_flash_attn_decode, "flash_attn"),
    "triton": (_triton_decode, "triton"),
}
MIXED_KERNELS: dict[str, tuple[Kernel, str]] = {
    "flashinfer": (lambda batch: _flashinfer(batch, decodes=False), "flashinfer"),
    "flash_attn": (_flash_attn_mixed, "flash_attn"),
    "triton": (_triton_mixed, "triton"),
    "flex_attention": (flex_kernel, "triton"),
}
"""Name -> (kernel, the module it needs), best first; all need a GPU."""


def pick_kernel(
    table: Mapping[str, tuple[Kernel, str]], parts: Sequence[tuple[int, int]], device: torch.device,
    kv_dtype: str, page: int,
) -> Named | None:  # fmt: skip
    """The first kernel of a table that can be imported and is right on a small case; None if there is none."""
    shape = AttentionShape(num_heads=8, num_kv_heads=2, head_dim=128)
    for name, (kernel, module) in table.items():
        if device.type != "cuda" or find_spec(module) is None:
            continue
        if is_right(kernel, make_batch(shape, parts, page, kv_dtype, device)):
            return Named(name, kernel)
    return None


def choose_kernels(device: torch.device, kv_dtypes: Sequence[str], page: int = 16) -> Kernels:
    """The best kernels of this machine for each KV dtype; a dtype that even PyTorch's own gets wrong is left out."""
    decodes = [part for part in SMALL_CASE if part[1] == 1]
    decode: dict[str, Named] = {}
    mixed: dict[str, Named] = {}
    for kv_dtype in kv_dtypes:
        found = pick_kernel(DECODE_KERNELS, decodes, device, kv_dtype, page)
        small = make_batch(AttentionShape(8, 2, 64), decodes, page, kv_dtype, device)
        if found is None and is_right(sdpa_kernel, small, 2.5 * MOST_WRONG):
            found = Named("sdpa", sdpa_kernel)
        both = pick_kernel(MIXED_KERNELS, SMALL_CASE, device, kv_dtype, page)
        decode |= {kv_dtype: found} if found else {}
        mixed |= {kv_dtype: both} if both else {}
    on_card = device.type == "cuda"
    return Kernels(
        decode,
        mixed,
        mla=on_card and find_spec("triton") is not None,
        fp8_products=on_card and torch.cuda.get_device_capability(device) >= (8, 9),
        grouped=not on_card or hasattr(torch, "_grouped_mm"),
    )
