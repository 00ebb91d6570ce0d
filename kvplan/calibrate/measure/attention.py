"""Attention probes of one layer: paged decode, prompt chunks, both together, a shared prompt, and MLA's latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from kvplan.calibrate.measure.grids import AttentionShape, Grid
from kvplan.calibrate.measure.kernels import (
    Kernel,
    Kernels,
    Named,
    causal,
    decoding,
    make_batch,
    make_mla_batch,
    mla_decode,
)
from kvplan.calibrate.measure.probes import Probe
from kvplan.calibrate.session import Point

MLA_SHAPES = ((128, 512, 64), (16, 512, 64))
"""(heads, latent rank, rotary width) of DeepSeek V3 and R1 on one rank and on eight; source: their config.json.

Of one number of heads, the bytes and the products of a context cannot be told apart.
"""
Calls = list[Callable[[], object]]


def skewed(total: int, batch: int) -> list[int]:
    """Lengths with the same sum, halving from one to the next until they reach a sixteenth of the mean."""
    floor = max(1, total // (16 * batch))
    lengths, left = [], total
    for i in range(batch):
        rest = batch - i - 1
        lengths.append(left if rest == 0 else max(floor, min(left // 2, left - rest * floor)))
        left -= lengths[-1]
    return lengths


def decode_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Paged decode attention of one layer over shapes, KV dtypes, batches and contexts."""
    probes = []
    for (kv_dtype, found), shape, batch, context in product(
        kernels.decode.items(), grid.attention, grid.batches, grid.contexts
    ):
        if batch * context * shape.kv_bytes(kv_dtype) > grid.max_pool_bytes:
            continue
        layouts = {"equal": [context] * batch}
        if batch == grid.skewed_batch:
            layouts["skewed"] = skewed(batch * context, batch)
        for layout, lengths in layouts.items():
            facts: Point = {"layout": layout}
            probes.append(
                _decode_probe("decode_attention", shape, lengths, facts, found, kv_dtype, grid, device)
            )
    return probes


def shared_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Branches that decode behind one prompt's pages, beside as many whose prompts are their own."""
    probes = []
    for (kv_dtype, found), branches, prompt in product(
        kernels.decode.items(), grid.branches, grid.shared_prompts
    ):
        for shared in (prompt, 0):
            lengths = [prompt + grid.page] * branches
            facts: Point = {"num_branches": branches, "shared_tokens": shared}
            probes.append(
                _decode_probe(
                    "shared_attention",
                    grid.attention[0],
                    lengths,
                    facts,
                    found,
                    kv_dtype,
                    grid,
                    device,
                    shared,
                )
            )
    return probes


def _decode_probe(
    op: str, shape: AttentionShape, lengths: list[int], facts: Point, found: Named, kv_dtype: str, grid: Grid,
    device: torch.device, shared: int = 0,
) -> Probe:  # fmt: skip
    held = sum(lengths) - (len(lengths) - 1) * shared
    read = held * shape.kv_bytes(kv_dtype)
    copies = max(1, min(8, round(grid.l2_bytes * 2 / read)))
    point: Point = {
        "kernel": found.name, "kv_dtype": kv_dtype, "block_size": grid.page, **shape._asdict(),
        "num_decodes": len(lengths), "decode_context": sum(lengths), "max_context": max(lengths), **facts,
    }  # fmt: skip

    def prepare() -> Calls:
        parts = decoding(lengths)
        return [
            found.kernel(make_batch(shape, parts, grid.page, kv_dtype, device, seed, shared))
            for seed in range(copies)
        ]

    flops = 4.0 * sum(lengths) * shape.num_heads * shape.head_dim
    return Probe(op, point, prepare, read, flops, copies * read)


def mla_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Absorbed MLA decode, where its kernel runs."""
    probes = []
    for mla, batch, context in product(MLA_SHAPES if kernels.mla else (), grid.batches, grid.contexts):
        heads, rank, rope = mla
        read = batch * context * (rank + rope) * 2
        if read > grid.max_pool_bytes:
            continue
        point: Point = {
            "kernel": "triton", "kv_dtype": "bfloat16", "block_size": 64, "num_heads": heads, "kv_lora_rank": rank,
            "qk_rope_head_dim": rope, "num_decodes": batch, "decode_context": batch * context, "max_context": context,
        }  # fmt: skip
        flops = 2.0 * batch * context * heads * (2 * rank + rope)
        probes.append(
            Probe("mla_decode", point, partial(_mla_call, mla, batch, context, device), read, flops, read)
        )
    return probes


def _mla_call(mla: tuple[int, int, int], batch: int, context: int, device: torch.device) -> Calls:
    return [mla_decode(make_mla_batch(mla, [context] * batch, 64, device), mla[2])]


def prefill_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """One prompt chunk over a past: causal attention of `chunk` queries to `past + chunk` keys.

    Over quantised KV a chunk is timed without a past: its own keys and values are still as they were computed.
    """
    probes = []
    for kv_dtype, shape, chunk, past in product(grid.kv_dtypes, grid.attention, grid.chunks, grid.pasts):
        if past and kv_dtype != grid.kv_dtypes[0]:
            continue
        point: Point = {"kernel": "sdpa", "kv_dtype": kv_dtype, **shape._asdict(), **_chunk(chunk, past)}
        flops = 4.0 * chunk * (past + chunk / 2) * shape.num_heads * shape.head_dim
        probes.append(
            Probe("prefill_attention", point, partial(_prefill_calls, shape, chunk, past, device), 0.0, flops)
        )
    return probes


def _chunk(chunk: int, past: int = 0) -> Point:
    """The fields of a prompt chunk in a row."""
    return {"num_prefill_tokens": chunk, "past": past, "prefill_attention": chunk * (past + chunk / 2)}


def _prefill_calls(shape: AttentionShape, chunk: int, past: int, device: torch.device) -> Calls:
    return [prefill_call(shape, chunk, past, device)]


def prefill_call(
    shape: AttentionShape, chunk: int, past: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], torch.Tensor]:
    """Causal attention of a chunk over its past, random queries, keys and values."""
    q = torch.randn(1, shape.num_heads, chunk, shape.head_dim, device=device, dtype=dtype)
    k, v = (
        torch.randn(1, shape.num_kv_heads, past + chunk, shape.head_dim, device=device, dtype=dtype)
        for _ in "kv"
    )
    return causal(q, k, v)


def mixed_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """A prompt chunk beside decodes, over chunks, batches and contexts, for each KV dtype.

    One kernel for both also runs each chunk alone, held out: how far its prompts are from those that the fit saw.
    """
    probes, shape = [], grid.attention[0]
    for kv_dtype, decode in kernels.decode.items():
        found = kernels.mixed.get(kv_dtype)
        name = found.name if found else f"{decode.name}+sdpa"
        facts: Point = {
            "kernel": name, "one_kernel": found is not None, "held_out": found is None, "kv_dtype": kv_dtype,
            "block_size": grid.page, **shape._asdict(),
        }  # fmt: skip
        for chunk, batch, context in product(grid.mixed_chunks, grid.mixed_batches, grid.mixed_contexts):
            read = batch * context * shape.kv_bytes(kv_dtype)
            if read > grid.max_pool_bytes:
                continue
            point = {**facts, "num_decodes": batch, "decode_context": batch * context, **_chunk(chunk)}
            parts = [*decoding([context] * batch), (0, chunk)]
            call = partial(_mixed_calls, found, decode.kernel, shape, parts, grid.page, kv_dtype, device)
            probes.append(Probe("mixed_attention", point, call, read, _flops(shape, chunk), read))
        for chunk in grid.mixed_chunks if found else ():
            call = partial(
                _mixed_calls, found, decode.kernel, shape, [(0, chunk)], grid.page, kv_dtype, device
            )
            alone = {**facts, "held_out": True, **_chunk(chunk)}
            probes.append(Probe("prefill_attention", alone, call, 0.0, _flops(shape, chunk)))
    return probes


def _flops(shape: AttentionShape, chunk: int) -> float:
    return 2.0 * chunk**2 * shape.num_heads * shape.head_dim


def _mixed_calls(
    found: Named | None, decode: Kernel, shape: AttentionShape, parts: list[tuple[int, int]], page: int,
    kv_dtype: str, device: torch.device,
) -> Calls:  # fmt: skip
    if found is not None:
        return [found.kernel(make_batch(shape, parts, page, kv_dtype, device))]
    decodes = decode(make_batch(shape, parts[:-1], page, kv_dtype, device))
    prefill = prefill_call(shape, parts[-1][1], 0, device)
    return [lambda: (decodes(), prefill())]
