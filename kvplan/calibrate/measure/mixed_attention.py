"""Mixed steps' attention: a prompt chunk beside decodes, in one kernel where there is one, as engines run it.

A kernel is a function from a `Ragged` batch to a call; `mixed_kernel` picks the first that can be imported and gives
the right answer here, and says its name. Without one, the decode and the prompt kernel run one after the other; the
rows say so (`one_kernel`), and a fit then learns nothing of mixing from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import torch

from kvplan.calibrate.measure.attention import (
    Batch,
    decode_kernel,
    gather,
    make_batch,
    prefill_call,
    relative_error,
)
from kvplan.calibrate.measure.grids import AttentionShape, Grid
from kvplan.calibrate.measure.probes import Probe
from kvplan.calibrate.session import Point

FLEX_BLOCK = 128
"""FlexAttention's tile: queries of a sequence are padded to it, and pages are as large."""


class Ragged(NamedTuple):
    """Sequences that compute one token or many, over one paged pool of one layer."""

    batch: Batch
    """`q` is packed, (tokens, heads, head_dim); `lengths` hold past and new tokens together."""
    starts: torch.Tensor
    """(sequences + 1,), int32: where each one's queries begin."""

    def new(self) -> list[int]:
        """Tokens that each sequence computes."""
        return self.starts.diff().tolist()


MixedKernel = Callable[[Ragged], Callable[[], torch.Tensor]]


def make_ragged(
    shape: AttentionShape, parts: Sequence[tuple[int, int]], page: int, kv_dtype: str, device: torch.device
) -> Ragged:
    """A batch of (past, new) tokens per sequence: random queries, a scattered pool that holds exactly them."""
    batch = make_batch(shape, [past + new for past, new in parts], page, kv_dtype, device)
    new = torch.tensor([new for _, new in parts], device=device)
    starts = torch.zeros(len(parts) + 1, dtype=torch.int32, device=device)
    starts[1:] = new.cumsum(0)
    generator = torch.Generator(device).manual_seed(1)
    size = (int(starts[-1]), shape.num_heads, shape.head_dim)
    q = torch.randn(size, generator=generator, device=device).to(batch.q.dtype)
    return Ragged(batch._replace(q=q), starts)


def ragged_reference(ragged: Ragged) -> torch.Tensor:
    """Float32 causal attention, sequence by sequence; (tokens, heads, head_dim)."""
    rows = []
    queries = torch.split(ragged.batch.q.float(), ragged.new())
    for i, (q, length) in enumerate(zip(queries, ragged.batch.lengths.tolist(), strict=True)):
        k, v = gather(ragged.batch, i, length)
        group = q.shape[1] // k.shape[1]
        k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("thd,nhd->htn", q, k) * k.shape[-1] ** -0.5
        unseen = torch.ones_like(scores[0], dtype=torch.bool).triu(length - len(q) + 1)
        rows.append(torch.einsum("htn,nhd->thd", scores.masked_fill(unseen, -torch.inf).softmax(-1), v))
    return torch.cat(rows)


def _flashinfer(ragged: Ragged) -> Callable[[], torch.Tensor]:
    import flashinfer  # type: ignore[import-not-found]

    batch, starts = ragged
    page, kv_heads, dim = batch.pool.shape[2:]
    widths = -(-batch.lengths // page)
    indptr = torch.zeros_like(starts)
    indptr[1:] = widths.cumsum(0)
    indices = torch.cat([batch.table[i, :w] for i, w in enumerate(widths.tolist())])
    workspace = torch.empty(256 << 20, device=starts.device, dtype=torch.uint8)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    types: dict[str, Any] = {"q_data_type": batch.q.dtype, "kv_data_type": batch.pool.dtype}
    last = (batch.lengths - 1) % page + 1
    wrapper.plan(starts, indptr, indices, last, batch.q.shape[1], kv_heads, dim, page, causal=True, **types)
    return lambda: wrapper.run(batch.q, batch.pool)


def _flash_attn(ragged: Ragged) -> Callable[[], torch.Tensor]:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    batch, starts = ragged
    k, v = batch.pool[:, 0], batch.pool[:, 1]
    ends = torch.zeros_like(starts)
    ends[1:] = batch.lengths.cumsum(0)
    longest, widest = int(batch.lengths.max()), max(ragged.new())
    return lambda: flash_attn_varlen_func(
        batch.q, k, v, starts, ends, widest, longest, causal=True, block_table=batch.table
    )


def _triton(ragged: Ragged) -> Callable[[], torch.Tensor]:
    from kvplan.calibrate.measure.triton_kernels import paged_ragged

    return paged_ragged(*ragged.batch, ragged.starts)


def flex_kernel(ragged: Ragged, compiled: bool = True) -> Callable[[], torch.Tensor]:
    """FlexAttention over pages of its own tile's size; every sequence's queries begin on a tile of their own."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    batch, new = ragged.batch, ragged.new()
    device, lengths = batch.q.device, batch.lengths.tolist()
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


MIXED_KERNELS: dict[str, tuple[MixedKernel, str]] = {
    "flashinfer": (_flashinfer, "flashinfer"),
    "flash_attn": (_flash_attn, "flash_attn"),
    "triton": (_triton, "triton"),
    "flex_attention": (flex_kernel, "triton"),
}
"""Name -> (kernel, the module it needs), best first; all need a GPU."""
SMALL_CASE = ((4, 1), (0, 40), (63, 1), (37, 20), (299, 1))
"""(past, new) of the batch that every kernel must get right before it is timed."""


def mixed_kernel(device: torch.device, kv_dtype: str, page: int = 16) -> tuple[str, MixedKernel] | None:
    """The best kernel that takes decodes and prompts together and is right on a small case; None if there is none."""
    shape = AttentionShape(num_heads=8, num_kv_heads=2, head_dim=128)
    for name, (kernel, module) in MIXED_KERNELS.items():
        if device.type != "cuda" or find_spec(module) is None:
            continue
        if is_right(kernel, make_ragged(shape, SMALL_CASE, page, kv_dtype, device)):
            return name, kernel
    return None


def is_right(kernel: MixedKernel, ragged: Ragged, bound: float = 2e-2) -> bool:
    """Whether a kernel runs here and equals float32 attention; a library of another interface does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return relative_error(kernel(ragged)(), ragged_reference(ragged)) < bound
    except Exception:  # libraries and compilers have errors of their own
        return False


def mixed_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """A prompt chunk beside a decode batch. Rows of two kernels are held out: they check that the parts add up.

    One kernel also runs each chunk alone, held out: how far its prompts are from those that the fit saw.
    """
    probes = []
    for kv_dtype in grid.kv_dtypes:
        found = mixed_kernel(device, kv_dtype, grid.page)
        for shape, chunk, batch, context in product(
            grid.attention[:1], grid.mixed_chunks, grid.mixed_batches, grid.mixed_contexts
        ):
            read = batch * context * shape.kv_bytes(kv_dtype)
            if read > grid.max_pool_bytes:
                continue
            point: Point = {
                **_kernel_facts(found, kv_dtype, device), "kv_dtype": kv_dtype, "block_size": grid.page,
                **shape._asdict(), "num_decodes": batch, "decode_context": batch * context,
                "num_prefill_tokens": chunk, "past": 0, "prefill_attention": chunk * chunk / 2,
            }  # fmt: skip
            parts = [(context - 1, 1)] * batch + [(0, chunk)]
            one = partial(_one_call, found[1] if found else None, shape, parts, grid.page, kv_dtype, device)
            probes.append(Probe("mixed_attention", point, one, read))
        if found:
            probes += [_lone_chunk(*found, chunk, kv_dtype, grid, device) for chunk in grid.mixed_chunks]
    return probes


def _lone_chunk(
    name: str, kernel: MixedKernel, chunk: int, kv_dtype: str, grid: Grid, device: torch.device
) -> Probe:
    shape = grid.attention[0]
    point: Point = {
        "kernel": name, "one_kernel": True, "held_out": True, "kv_dtype": kv_dtype, "block_size": grid.page,
        **shape._asdict(), "num_prefill_tokens": chunk, "past": 0, "prefill_attention": chunk * chunk / 2,
    }  # fmt: skip
    prepare = partial(_one_call, kernel, shape, [(0, chunk)], grid.page, kv_dtype, device)
    return Probe("prefill_attention", point, prepare, 0.0, 2.0 * chunk**2 * shape.num_heads * shape.head_dim)


def _kernel_facts(found: tuple[str, MixedKernel] | None, kv_dtype: str, device: torch.device) -> Point:
    if found:
        return {"kernel": found[0], "one_kernel": True, "held_out": False}
    return {"kernel": f"{decode_kernel(device, kv_dtype)[0]}+sdpa", "one_kernel": False, "held_out": True}


def _one_call(
    kernel: MixedKernel | None, shape: AttentionShape, parts: list[tuple[int, int]], page: int, kv_dtype: str,
    device: torch.device,
) -> list[Callable[[], object]]:  # fmt: skip
    if kernel is not None:
        return [kernel(make_ragged(shape, parts, page, kv_dtype, device))]
    lengths, (_, chunk) = [past + 1 for past, _ in parts[:-1]], parts[-1]
    decode = decode_kernel(device, kv_dtype)[1](make_batch(shape, lengths, page, kv_dtype, device))
    prefill = prefill_call(shape, chunk, 0, device)
    return [lambda: (decode(), prefill())]
