"""Attention probes: paged decode and prompt chunks over a past, with the best kernel present.

A kernel is a function from (queries, pool, table, lengths) to a call; `decode_kernel` picks the first that can
be imported and says its name. Every kernel is held against float32 attention before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvplan.calibrate.measure.grids import AttentionShape, Grid
from kvplan.calibrate.measure.probes import Probe
from kvplan.calibrate.session import Point
from kvplan.errors import KvplanError

TORCH_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.float8_e4m3fn,
}
Kernel = Callable[["Batch"], Callable[[], torch.Tensor]]


class Batch(NamedTuple):
    """Decoding sequences over one paged pool of one layer."""

    q: torch.Tensor
    """(batch, heads, head_dim)."""
    pool: torch.Tensor
    """(pages, 2, page, kv_heads, head_dim): keys at [:, 0], values at [:, 1]."""
    table: torch.Tensor
    """(batch, pages of the longest sequence), int32; pages are scattered over the pool."""
    lengths: torch.Tensor
    """(batch,), int32: tokens each sequence attends to."""


def make_batch(
    shape: AttentionShape,
    lengths: Sequence[int],
    page: int,
    kv_dtype: str,
    device: torch.device,
    seed: int = 0,
) -> Batch:
    """Random queries and a scattered paged pool that holds exactly these sequences."""
    generator = torch.Generator(device).manual_seed(seed)
    compute = torch.float32 if kv_dtype == "float32" else torch.bfloat16
    widths = [-(-n // page) for n in lengths]
    q = torch.randn(len(lengths), shape.num_heads, shape.head_dim, generator=generator, device=device).to(
        compute
    )
    size = (sum(widths), 2, page, shape.num_kv_heads, shape.head_dim)
    pool = torch.empty(size, device=device, dtype=compute).normal_(generator=generator)
    pool = pool.to(TORCH_DTYPES[kv_dtype]) if kv_dtype == "fp8" else pool
    order = torch.randperm(sum(widths), generator=generator, device=device).to(torch.int32)
    table = torch.zeros(len(lengths), max(widths), device=device, dtype=torch.int32)
    start = 0
    for row, width in enumerate(widths):
        table[row, :width] = order[start : start + width]
        start += width
    return Batch(q, pool, table, torch.tensor(lengths, device=device, dtype=torch.int32))


def reference(batch: Batch) -> torch.Tensor:
    """Float32 attention, sequence by sequence; (batch, heads, head_dim)."""
    rows = []
    for i, length in enumerate(batch.lengths.tolist()):
        k, v = gather(batch, i, length)
        group = batch.q.shape[1] // k.shape[1]
        k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hd,nhd->hn", batch.q[i].float(), k) * k.shape[-1] ** -0.5
        rows.append(torch.einsum("hn,nhd->hd", scores.softmax(-1), v))
    return torch.stack(rows)


def gather(batch: Batch, row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one sequence, (length, kv_heads, head_dim) each."""
    page = batch.pool.shape[2]
    pages = batch.pool[batch.table[row, : -(-length // page)].long()]
    k, v = (pages[:, side].flatten(0, 1)[:length] for side in (0, 1))
    return k, v


def _sdpa_kernel(batch: Batch) -> Callable[[], torch.Tensor]:
    """PyTorch's own attention; pages are gathered first, as an engine without a paged kernel would."""
    lengths = batch.lengths.tolist()

    def call() -> torch.Tensor:
        rows = []
        for i, length in enumerate(lengths):
            k, v = (x.to(batch.q.dtype).transpose(0, 1)[None] for x in gather(batch, i, length))
            rows.append(sdpa(batch.q[i][None, :, None], k, v, enable_gqa=True)[0, :, 0])
        return torch.stack(rows)

    return call


def _triton_kernel(batch: Batch) -> Callable[[], torch.Tensor]:
    from kvplan.calibrate.measure.triton_kernels import paged_decode

    sms = torch.cuda.get_device_properties(batch.q.device).multi_processor_count if batch.q.is_cuda else 8
    return paged_decode(batch.q, batch.pool, batch.table, batch.lengths, sms)


def _flash_attn_kernel(batch: Batch) -> Callable[[], torch.Tensor]:
    from flash_attn import flash_attn_with_kvcache  # type: ignore[import-not-found]

    k, v = batch.pool[:, 0], batch.pool[:, 1]
    return lambda: flash_attn_with_kvcache(
        batch.q[:, None], k, v, cache_seqlens=batch.lengths, block_table=batch.table, causal=True
    )[:, 0]


def _flashinfer_kernel(batch: Batch) -> Callable[[], torch.Tensor]:
    import flashinfer  # type: ignore[import-not-found]

    page, kv_heads, dim = batch.pool.shape[2:]
    widths = -(-batch.lengths // page)
    indptr = torch.zeros(len(widths) + 1, device=batch.q.device, dtype=torch.int32)
    indptr[1:] = widths.cumsum(0)
    indices = torch.cat([batch.table[i, :w] for i, w in enumerate(widths.tolist())])
    workspace = torch.empty(128 << 20, device=batch.q.device, dtype=torch.uint8)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    last = (batch.lengths - 1) % page + 1
    types: dict[str, Any] = {"q_data_type": batch.q.dtype, "kv_data_type": batch.pool.dtype}
    wrapper.plan(indptr, indices, last, batch.q.shape[1], kv_heads, dim, page, **types)
    return lambda: wrapper.run(batch.q, batch.pool)


DECODE_KERNELS: dict[str, tuple[Kernel, str]] = {
    "flashinfer": (_flashinfer_kernel, "flashinfer"),
    "flash_attn": (_flash_attn_kernel, "flash_attn"),
    "triton": (_triton_kernel, "triton"),
}
"""Name -> (kernel, the module it needs), best first."""


def decode_kernel(device: torch.device, kv_dtype: str) -> tuple[str, Kernel]:
    """The best decode kernel that this machine can run and that gives the right answer on a small case."""
    shape = AttentionShape(num_heads=8, num_kv_heads=2, head_dim=128)
    for name, (kernel, module) in DECODE_KERNELS.items():
        if device.type != "cuda" or find_spec(module) is None or (kv_dtype == "fp8" and name == "flash_attn"):
            continue
        batch = make_batch(shape, [5, 64, 300], 16, kv_dtype, device)
        try:
            error = relative_error(kernel(batch)(), reference(batch))
        except Exception:  # whatever a version of the library raises that does not take this shape or type
            continue
        if error < 2e-2:
            return name, kernel
    return "sdpa", _sdpa_kernel


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """|out - expected| / |expected|; NaN (an element never written) counts as infinite."""
    error = ((out.float() - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")


def skewed(total: int, batch: int) -> list[int]:
    """Lengths with the same sum, halving from one to the next until they reach a sixteenth of the mean."""
    floor = max(1, total // (16 * batch))
    lengths, left = [], total
    for i in range(batch):
        rest = batch - i - 1
        lengths.append(left if rest == 0 else max(floor, min(left // 2, left - rest * floor)))
        left -= lengths[-1]
    return lengths


def decode_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Paged decode attention of one layer over shapes, KV dtypes, batches and contexts."""
    probes = []
    for kv_dtype in grid.kv_dtypes:
        name, kernel = decode_kernel(device, kv_dtype)
        for shape, batch, context in product(grid.attention, grid.batches, grid.contexts):
            if batch * context * shape.kv_bytes(kv_dtype) > grid.max_pool_bytes:
                continue
            layouts = {"equal": [context] * batch}
            if batch == grid.skewed_batch:
                layouts["skewed"] = skewed(batch * context, batch)
            probes += [
                _decode_probe(shape, lengths, kind, name, kernel, kv_dtype, grid, device)
                for kind, lengths in layouts.items()
            ]
    return probes


def _decode_probe(
    shape: AttentionShape, lengths: list[int], layout: str, name: str, kernel: Kernel, kv_dtype: str,
    grid: Grid, device: torch.device,
) -> Probe:  # fmt: skip
    read = sum(lengths) * shape.kv_bytes(kv_dtype)
    copies = max(1, min(8, round(grid.l2_bytes * 2 / read)))
    point: Point = {
        "kernel": name, "kv_dtype": kv_dtype, "block_size": grid.page, **shape._asdict(), "num_decodes": len(lengths),
        "decode_context": sum(lengths), "max_context": max(lengths), "layout": layout,
    }  # fmt: skip

    def prepare() -> list[Callable[[], object]]:
        return [
            kernel(make_batch(shape, lengths, grid.page, kv_dtype, device, seed)) for seed in range(copies)
        ]

    return Probe(
        "decode_attention", point, prepare, read, 4.0 * sum(lengths) * shape.num_heads * shape.head_dim
    )


def mla_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Absorbed MLA decode: every head attends to one latent of rank + rope elements a token."""
    if device.type != "cuda" or find_spec("triton") is None:
        return []
    from kvplan.calibrate.measure.triton_kernels import paged_decode

    sms = torch.cuda.get_device_properties(device).multi_processor_count
    probes = []
    for mla, batch, context in product(MLA_SHAPES, grid.batches, grid.contexts):
        heads, rank, rope = mla
        read = batch * context * (rank + rope) * 2
        if read > grid.max_pool_bytes:
            continue
        point: Point = {
            "kernel": "triton", "kv_dtype": "bfloat16", "block_size": 64, "num_heads": heads, "kv_lora_rank": rank,
            "qk_rope_head_dim": rope, "num_decodes": batch, "decode_context": batch * context, "max_context": context,
        }  # fmt: skip

        def prepare(
            mla: tuple[int, int, int] = mla, batch: int = batch, context: int = context
        ) -> list[Callable[[], object]]:
            return [paged_decode(*make_mla_batch(mla, [context] * batch, 64, device), sms, rope=mla[2])]

        probes.append(
            Probe("mla_decode", point, prepare, read, 2.0 * batch * context * heads * (2 * rank + rope))
        )
    return probes


MLA_SHAPES = ((128, 512, 64), (16, 512, 64))
"""(heads, latent rank, rotary width) of DeepSeek V3 and R1 on one rank and on eight; source: their config.json.

Of one number of heads, the bytes and the products of a context cannot be told apart.
"""


def make_mla_batch(shape: tuple[int, int, int], lengths: list[int], page: int, device: torch.device) -> Batch:
    """Queries already absorbed into the latent space and a pool (pages, 1, page, 1, rank + rope)."""
    heads, rank, rope = shape
    flat = make_batch(AttentionShape(heads, 1, rank + rope), lengths, page, "bfloat16", device)
    return flat._replace(pool=flat.pool[:, :1].contiguous())


def prefill_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """One prompt chunk over a past: causal attention of `chunk` queries to `past + chunk` keys.

    Over quantised KV a chunk is timed without a past: its own keys and values are still as they were computed.
    """
    probes = []
    for kv_dtype, shape, chunk, past in product(grid.kv_dtypes, grid.attention, grid.chunks, grid.pasts):
        if past and kv_dtype != grid.kv_dtypes[0]:
            continue
        pairs = chunk * (past + chunk / 2)
        point: Point = {
            "kernel": "sdpa", "kv_dtype": kv_dtype, **shape._asdict(),
            "num_prefill_tokens": chunk, "past": past, "prefill_attention": pairs,
        }  # fmt: skip
        flops = 4.0 * pairs * shape.num_heads * shape.head_dim

        def prepare(
            shape: AttentionShape = shape, chunk: int = chunk, past: int = past
        ) -> list[Callable[[], object]]:
            return [prefill_call(shape, chunk, past, device)]

        probes.append(Probe("prefill_attention", point, prepare, 0.0, flops))
    return probes


def prefill_call(
    shape: AttentionShape, chunk: int, past: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], torch.Tensor]:
    """Causal attention of a chunk over its past; the past needs no mask, the chunk itself is causal."""
    q = torch.randn(1, shape.num_heads, chunk, shape.head_dim, device=device, dtype=dtype)
    k, v = (
        torch.randn(1, shape.num_kv_heads, past + chunk, shape.head_dim, device=device, dtype=dtype)
        for _ in "kv"
    )
    if past == 0:
        return lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True)
    from torch.nn.attention.bias import causal_lower_right

    mask = causal_lower_right(chunk, past + chunk)
    group = shape.num_heads // shape.num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return lambda: sdpa(q, k, v, attn_mask=mask)


def check_kernels(device: torch.device, kv_dtypes: Sequence[str]) -> dict[str, str]:
    """KV dtype -> the kernel that will be timed; an error if even the fallback is wrong here."""
    chosen = {}
    for kv_dtype in kv_dtypes:
        name, kernel = decode_kernel(device, kv_dtype)
        batch = make_batch(AttentionShape(8, 2, 64), [3, 40], 16, kv_dtype, device)
        error = relative_error(kernel(batch)(), reference(batch))
        if error > 5e-2:
            raise KvplanError(
                f"attention kernel {name} is {error:.2g} off float32 on this machine; not timed"
            )
        chosen[kv_dtype] = name
    return chosen
