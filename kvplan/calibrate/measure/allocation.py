"""Memory probes: what KV pools, contexts, activations and CUDA graphs really take, by NVML and torch's counters.

Each function returns rows; `measure_memory` runs them all and appends what the file does not hold yet. On a CPU
the pools are real too, counted by tensor storage; what only a GPU has (context, graphs) is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import product

import torch

from kvplan.calibrate.measure.decoder import Decoder, DecoderLayer, captured, make_layers, mlp, moe
from kvplan.calibrate.measure.device import release, used_bytes
from kvplan.calibrate.measure.grids import Grid, StepModel
from kvplan.calibrate.measure.kernels import DECODE_KERNELS, TORCH_DTYPES, decoding, pick_kernel, sdpa_kernel
from kvplan.calibrate.measure.probes import end_on_a_failed_card, why_skipped
from kvplan.calibrate.measurements import Row
from kvplan.calibrate.session import MeasurementSession, Report, no_report


def measure_memory(
    grid: Grid,
    session: MeasurementSession,
    device: torch.device,
    report: Report = no_report,
    deadline: float = math.inf,
) -> None:
    """Append every memory row of this grid that is not in the file yet; what fails is noted and passed over.

    Past `deadline` (on `time.monotonic`'s clock) no further row is begun; the next run begins that kind again.
    """
    sources = (
        context_rows, pool_rows, growth_rows, largest_pool_rows, activation_rows, sampler_rows, graph_rows,
        runtime_rows,
    )  # fmt: skip
    for number, source in enumerate(sources):
        key = f"memory {source.__name__} {grid.name}"
        if key in session.done or time.monotonic() > deadline:
            continue
        report(f"memory: {source.__name__.removesuffix('_rows')}", number, len(sources))
        machine = session.machine["machine"]
        try:
            for row in source(grid, device):
                session.append({"machine": machine, **row})
                release(device)
                if time.monotonic() > deadline:
                    return
        except Exception as error:  # as for other probes: none may cost the others
            skipped = {"op": f"memory_{source.__name__}", "machine": machine, "skipped": why_skipped(error)}
            end_on_a_failed_card(error, skipped | {"key": key}, session)
            session.append(skipped)
            release(device)
        session.append({"op": "done", "machine": machine, "key": key})
        session.done.add(key)


def context_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """What the card gives away before the first tensor (CUDA context) and after the first GEMM (cuBLAS workspace).

    Call it first: it reads differences since the process touched the card.
    """
    if device.type != "cuda":
        return
    torch.ones(1, device=device)
    reserved, after_context = torch.cuda.memory_reserved(device), used_bytes(device)
    x = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16)
    x @ x
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info(device)
    yield {
        "op": "memory_context",
        "total_bytes": total,
        "free_bytes": free,
        "nvml_used_after_context_bytes": after_context,
        "torch_reserved_after_context_bytes": reserved,
        "nvml_used_after_gemm_bytes": used_bytes(device),
        "torch_reserved_bytes": torch.cuda.memory_reserved(device),
    }


def kv_pool(
    num_blocks: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """A paged KV pool as engines allocate it: one tensor (blocks, 2, block size, KV heads, head_dim) a layer."""
    layers, kv_heads, head_dim, page = shape
    return [
        torch.empty(num_blocks, 2, page, kv_heads, head_dim, dtype=dtype, device=device)
        for _ in range(layers)
    ]


def pool_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """Real pools over layers, KV heads, head_dim, dtype and block size: bytes taken against 2*L*H*d*bytes."""
    for shape in grid.pool_shapes:
        for name in grid.kv_dtypes:
            layers, kv_heads, head_dim, page = shape
            dtype = TORCH_DTYPES[name]
            token = 2 * layers * kv_heads * head_dim * dtype.itemsize
            num_blocks = max(1, grid.max_pool_bytes // 8 // (token * page))
            row: Row = {
                "op": "memory_pool", "num_layers": layers, "num_kv_heads": kv_heads, "head_dim": head_dim,
                "block_size": page, "kv_dtype": name, "num_blocks": num_blocks, "formula_bytes_per_token": token,
            }  # fmt: skip
            before = _counters(device)
            pool = kv_pool(num_blocks, shape, dtype, device)
            after = _counters(device)
            taken = {f"{k}_bytes": after[k] - before[k] for k in after}
            taken["storage_bytes"] = sum(t.untyped_storage().nbytes() for t in pool)
            measured = taken.get("allocated_bytes", taken["storage_bytes"])
            yield row | taken | {"bytes_per_token": measured / (num_blocks * page)}
            del pool


def _counters(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize()
    counts = {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
    }
    used = used_bytes(device)
    return counts if used is None else counts | {"nvml": used}


def growth_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """KV that grows block by block, tensor by tensor, against one pool of the same size: what the allocator wastes."""
    if device.type != "cuda":
        return
    _, kv_heads, head_dim, page = grid.pool_shapes[0]
    size = 2 * page * kv_heads * head_dim * 2
    count = min(20_000, grid.max_pool_bytes // 8 // size)
    before = _counters(device)
    blocks = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
    grown = _counters(device)
    del blocks[::2]
    torch.cuda.empty_cache()
    halved = _counters(device)
    yield {
        "op": "memory_growth",
        "block_bytes": size,
        "num_blocks": count,
        "formula_bytes": size * count,
        "allocated_bytes": grown["allocated"] - before["allocated"],
        "reserved_bytes": grown["reserved"] - before["reserved"],
        "reserved_after_freeing_half_bytes": halved["reserved"] - before["reserved"],
    }


def largest_pool_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """The largest single pool the card grants, approached from below in 1 % steps of what is free, then released."""
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    granted = 0
    for percent in range(90, 101):
        size = free * percent // 100
        try:
            pool = torch.empty(size, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            break
        granted = size
        del pool
        release(device)
    yield {"op": "memory_largest_pool", "free_bytes": free, "total_bytes": total, "granted_bytes": granted}


def activation_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """Peak of torch's allocator above the weights while one layer and the logits run, per prompt chunk."""
    if device.type != "cuda":
        return
    for model in grid.models:
        layer = make_layers(model, 1, device)[0]
        for chunk in grid.chunks:
            yield _activation(model, layer, chunk, device)
        del layer


def _activation(model: StepModel, layer: DecoderLayer, chunk: int, device: torch.device) -> Row:
    x = torch.randn(chunk, model.hidden_size, device=device, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    y = mlp(layer, x) if layer.router is None else moe(layer, x, model.experts_per_token)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated(device) - before
    del y
    return {
        "op": "memory_activation", "model": model.name, "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size, "num_experts": model.num_experts, "num_tokens": chunk,
        "peak_bytes": peak,
        "formula_bytes": 2 * chunk * (2 * model.intermediate_size + model.intermediate_size + model.hidden_size),
    }  # fmt: skip


def sampler_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """Peak of torch's allocator, logits included, while every row of them draws a token as vLLM 0.17 and later do."""
    if device.type != "cuda":
        return
    for rows, vocab in product(grid.sampled_rows, grid.vocabularies):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        logits = torch.empty(rows, vocab, device=device, dtype=torch.bfloat16).normal_()
        wide = logits.float()
        shares = wide.softmax(-1)
        shares.div_(torch.empty_like(shares).exponential_()).argmax(-1)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated(device) - before
        del logits, wide, shares
        yield {"op": "memory_sampler", "num_rows": rows, "vocab_size": vocab, "peak_bytes": peak}


def graph_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """Memory that capturing a decode graph takes, per batch size."""
    if device.type != "cuda":
        return
    model = grid.models[0]
    found = pick_kernel(DECODE_KERNELS, decoding([5, 64]), device, "bfloat16", grid.page)
    kernel = found.kernel if found else sdpa_kernel
    for batch in grid.step_batches:
        decoder = Decoder(model, decoding([grid.step_contexts[0]] * batch), grid.page, kernel, device)
        decoder.step()
        release(device)
        before = _counters(device)
        replay = captured(decoder.step)
        after = _counters(device)
        yield {
            "op": "memory_cuda_graph", "model": model.name, "num_layers": model.num_layers, "num_decodes": batch,
            **{f"{k}_bytes": after[k] - before[k] for k in after},
        }  # fmt: skip
        del replay, decoder


def runtime_rows(grid: Grid, device: torch.device) -> Iterator[Row]:
    """What the process holds once kernels of every kind were loaded, outside torch's allocator too."""
    if device.type != "cuda":
        return
    torch.cuda.synchronize()
    yield {
        "op": "memory_runtime",
        "nvml_used_bytes": used_bytes(device),
        "torch_reserved_bytes": torch.cuda.memory_reserved(device),
    }
