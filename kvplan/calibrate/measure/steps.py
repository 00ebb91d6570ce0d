"""GEMM and whole-step probes: a decoder with random weights and real shapes, eagerly and as a CUDA graph.

A step is what an engine runs between two scheduler decisions: norms, projections, rotary embedding, paged
attention, MLP or experts, logits and the greedy choice of a token. No tokenizer, no checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch.nn.functional import rms_norm, silu

from kvplan.calibrate.measure.attention import Batch, Kernel, decode_kernel, make_batch, prefill_call
from kvplan.calibrate.measure.grids import HELD_OUT, AttentionShape, Grid, StepModel
from kvplan.calibrate.measure.probes import Probe, one_line, release
from kvplan.calibrate.session import Point, Session


class Layer(NamedTuple):
    """Random weights of one layer; expert weights have a leading expert dimension."""

    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    router: torch.Tensor | None


def _random(*size: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*size, device=device, dtype=dtype).normal_(std=size[-1] ** -0.5)


def make_layers(
    model: StepModel, num_layers: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> list[Layer]:
    """Weights of `num_layers` layers, drawn afresh for each."""
    shape, hidden, wide = model.attention, model.hidden_size, model.intermediate_size
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    lead = (model.num_experts,) if model.num_experts else ()
    draw = partial(_random, device=device, dtype=dtype)
    return [
        Layer(
            qkv=draw(heads + 2 * kv, hidden),
            out=draw(hidden, heads),
            gate_up=draw(*lead, 2 * wide, hidden),
            down=draw(*lead, hidden, wide),
            router=draw(model.num_experts, hidden) if lead else None,
        )
        for _ in range(num_layers)
    ]


def mlp(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Gated MLP, (tokens, hidden) -> (tokens, hidden)."""
    gate, up = (x @ layer.gate_up.T).chunk(2, -1)
    return (silu(gate) * up) @ layer.down.T


def moe(layer: Layer, x: torch.Tensor, top_k: int) -> torch.Tensor:
    """Top-k experts: tokens sorted by expert, one grouped product; a loop over experts where torch has none."""
    assert layer.router is not None
    weights, chosen = (x @ layer.router.T).softmax(-1).topk(top_k, -1)
    order = chosen.flatten().argsort()
    rows = x[order // top_k]
    counts = torch.zeros(layer.router.shape[0], dtype=torch.int64, device=x.device)
    counts.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten()))  # bincount cannot be captured
    if x.is_cuda and hasattr(torch, "_grouped_mm"):
        ends = counts.cumsum(0).to(torch.int32)
        gate, up = torch._grouped_mm(rows, layer.gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
        hidden = torch._grouped_mm(silu(gate) * up, layer.down.transpose(1, 2), offs=ends)
    else:
        parts = []
        for expert, part in enumerate(rows.split(counts.tolist())):
            if len(part):
                gate, up = (part @ layer.gate_up[expert].T).chunk(2, -1)
                parts.append((silu(gate) * up) @ layer.down[expert].T)
        hidden = torch.cat(parts)
    scaled = hidden * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add_(0, order // top_k, scaled)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (tokens, heads, dim)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Decoder:
    """One decode step over a batch whose KV lies in one paged pool per layer."""

    def __init__(
        self, model: StepModel, lengths: list[int], page: int, kernel: Kernel, device: torch.device
    ) -> None:
        self.model = model
        self.layers = make_layers(model, model.num_layers, device)
        self.embedding = _random(model.vocab_size, model.hidden_size, device=device)
        self.batches = [
            make_batch(model.attention, lengths, page, "bfloat16", device, i) for i in range(model.num_layers)
        ]
        self.attend = [kernel(batch) for batch in self.batches]
        self.tokens = torch.randint(model.vocab_size, (len(lengths),), device=device)
        angle = torch.rand(len(lengths), 1, model.attention.head_dim // 2, device=device)
        self.cos, self.sin = angle.cos().to(self.embedding.dtype), angle.sin().to(self.embedding.dtype)
        last = self.batches[0].lengths.long() - 1
        self.page = self.batches[0].table.gather(1, (last // page)[:, None])[:, 0].long()
        self.slot = last % page

    def step(self) -> torch.Tensor:
        """Run the step: (batch,) tokens in, (batch,) tokens out; the new token's KV is written to the pool."""
        x = self.embedding[self.tokens]
        for layer, batch, attend in zip(self.layers, self.batches, self.attend, strict=True):
            x = x + self._attention(layer, batch, attend, rms_norm(x, x.shape[-1:]))
            y = rms_norm(x, x.shape[-1:])
            x = x + (mlp(layer, y) if layer.router is None else moe(layer, y, self.model.experts_per_token))
        return (rms_norm(x, x.shape[-1:]) @ self.embedding.T).argmax(-1)

    def _attention(
        self, layer: Layer, batch: Batch, attend: Callable[[], torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        shape: AttentionShape = self.model.attention
        sizes = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        q, k, v = (x @ layer.qkv.T).view(len(x), -1, shape.head_dim).split(sizes, 1)
        batch.q.copy_(rotate(q, self.cos, self.sin))
        batch.pool[self.page, 0, self.slot] = rotate(k, self.cos, self.sin)
        batch.pool[self.page, 1, self.slot] = v
        return attend().flatten(1) @ layer.out.T


def captured(step: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """A CUDA graph of the step, replayed by the returned call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def weight_bytes(model: StepModel, num_tokens: int) -> float:
    """Bytes of 16-bit weights that a step of `num_tokens` reads at least; of experts, the expected distinct ones."""
    shape, hidden = model.attention, model.hidden_size
    attention = hidden * shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    expert = 3 * hidden * model.intermediate_size
    distinct = 1.0
    if model.num_experts:
        missed = (1 - model.experts_per_token / model.num_experts) ** num_tokens
        distinct = model.num_experts * (1 - missed)
    return 2.0 * (model.num_layers * (attention + distinct * expert) + hidden * model.vocab_size)


def step_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Whole decode steps over models, batches and contexts, eager and (on a GPU) as CUDA graphs."""
    name, kernel = decode_kernel(device, "bfloat16")
    modes = ("graph", "eager") if device.type == "cuda" else ("eager",)
    probes = []
    for model, batch, context in product(grid.models, grid.step_batches, grid.step_contexts):
        kv = batch * context * model.num_layers * model.attention.kv_bytes("bfloat16")
        if kv > grid.max_pool_bytes:
            continue
        for mode in modes:
            if mode == "eager" and device.type == "cuda" and context != grid.step_contexts[0]:
                continue  # eager differs from graphs by host time, which does not depend on the context
            if mode == "graph" and model.num_experts and not hasattr(torch, "_grouped_mm"):
                continue
            probes.append(_step_probe(model, batch, context, mode, name, kernel, kv, grid, device))
    return probes


def _step_probe(
    model: StepModel, batch: int, context: int, mode: str, name: str, kernel: Kernel, kv: int,
    grid: Grid, device: torch.device,
) -> Probe:  # fmt: skip
    point: Point = {
        **model_facts(model), "mode": mode, "kernel": name, "num_tokens": batch, "num_decodes": batch,
        "decode_context": batch * context, "max_context": context,
        "held_out": model.name in HELD_OUT or context >= grid.held_out_context,
    }  # fmt: skip

    def prepare() -> list[Callable[[], object]]:
        decoder = Decoder(model, [context] * batch, grid.page, kernel, device)
        return [captured(decoder.step) if mode == "graph" else decoder.step]

    op = "eager_step" if mode == "eager" and device.type == "cuda" else "decode_step"
    return Probe(op, point, prepare, weight_bytes(model, batch) + kv)


def model_facts(model: StepModel) -> Point:
    """The fields of a step row that tell a fit which model it was."""
    shape = model._asdict() | {"model": model.name, "dtype": "bfloat16", "kv_dtype": "bfloat16"}
    return {k: v for k, v in shape.items() if k not in ("name", "attention")} | model.attention._asdict()


def prefill_step_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Whole prompt chunks of each model, cut to a few layers and stated as such: a chunk is compute-bound."""
    probes = []
    for model, chunk in product(grid.models, grid.chunks):
        point: Point = {
            **model_facts(model), "num_layers": CHUNK_LAYERS, "mode": "eager", "kernel": "sdpa",
            "num_tokens": chunk, "num_prefill_tokens": chunk, "num_prefills": 1,
            "prefill_attention": chunk * chunk / 2, "held_out": model.name in HELD_OUT,
        }  # fmt: skip

        def prepare(model: StepModel = model, chunk: int = chunk) -> list[Callable[[], object]]:
            return [_prefill_layers(model, chunk, device)]

        probes.append(Probe("prefill_step", point, prepare))
    return probes


CHUNK_LAYERS = 4


def _prefill_layers(model: StepModel, chunk: int, device: torch.device) -> Callable[[], torch.Tensor]:
    layers = make_layers(model, CHUNK_LAYERS, device)
    attend = prefill_call(model.attention, chunk, 0, device)
    start, head = (_random(n, model.hidden_size, device=device) for n in (chunk, model.vocab_size))

    def call() -> torch.Tensor:
        x = start
        for layer in layers:
            rms_norm(x, x.shape[-1:]) @ layer.qkv.T  # attention below has random inputs of its own: same work
            x = x + attend()[0].transpose(0, 1).flatten(1) @ layer.out.T
            z = rms_norm(x, x.shape[-1:])
            x = x + (mlp(layer, z) if layer.router is None else moe(layer, z, model.experts_per_token))
        return (rms_norm(x[-1:], x.shape[-1:]) @ head.T).argmax(-1)

    return call


def gemm_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Projections of the grid's dense models over token counts, in bf16 and, where the card can, fp8."""
    dtypes = ["bfloat16"]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        dtypes.append("fp8")
    shapes = {shape for model in grid.models if not model.num_experts for shape in projections(model)}
    return [
        _gemm_probe(dtype, m, n, k, grid, device)
        for dtype, (n, k), m in product(dtypes, sorted(shapes), grid.gemm_tokens)
    ]


def projections(model: StepModel) -> list[tuple[int, int]]:
    """(out, in) features of a dense layer's four GEMMs: QKV, attention output, gate and up, down."""
    shape, hidden, wide = model.attention, model.hidden_size, model.intermediate_size
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return [(heads + 2 * kv, hidden), (hidden, heads), (2 * wide, hidden), (hidden, wide)]


def _gemm_probe(dtype: str, m: int, n: int, k: int, grid: Grid, device: torch.device) -> Probe:
    element = {"bfloat16": 2, "fp8": 1}[dtype]
    copies = max(1, min(8, round(2 * grid.l2_bytes / (n * k * element))))

    def prepare() -> list[Callable[[], object]]:
        return [_gemm_call(dtype, m, n, k, device) for _ in range(copies)]

    point: Point = {"dtype": dtype, "num_tokens": m, "out_features": n, "in_features": k}
    return Probe("gemm", point, prepare, element * n * k + (element * k + 2 * n) * m, 2.0 * m * n * k)


def _gemm_call(dtype: str, m: int, n: int, k: int, device: torch.device) -> Callable[[], object]:
    x, w = _random(m, k, device=device), _random(n, k, device=device)
    if dtype != "fp8":
        return lambda: x @ w.T
    one = torch.ones((), device=device)
    x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    return lambda: torch._scaled_mm(x8, w8.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def moe_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """One layer's experts, router and sorting included, of each mixture; also half as wide, which tells what moves."""
    probes = []
    for model, share, tokens in product(grid.models, (1, 2), grid.gemm_tokens):
        if not model.num_experts:
            continue
        wide = model.intermediate_size // share
        point: Point = {
            "dtype": "bfloat16", "num_tokens": tokens, "hidden_size": model.hidden_size, "intermediate_size": wide,
            "num_experts": model.num_experts, "experts_per_token": model.experts_per_token,
        }  # fmt: skip
        params = 3 * model.hidden_size * wide
        missed = (1 - model.experts_per_token / model.num_experts) ** tokens
        prepare = partial(_experts_call, model._replace(intermediate_size=wide), tokens, device)
        read = 2.0 * params * model.num_experts * (1 - missed)
        probes.append(Probe("moe", point, prepare, read, 2.0 * params * tokens * model.experts_per_token))
    return probes


def _experts_call(model: StepModel, tokens: int, device: torch.device) -> list[Callable[[], object]]:
    layer, x = make_layers(model, 1, device)[0], _random(tokens, model.hidden_size, device=device)
    return [lambda: moe(layer, x, model.experts_per_token)]


def copy_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Device-to-device copies: the bandwidth ceiling, counting bytes read and written."""

    def prepare(size: int) -> list[Callable[[], object]]:
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return [lambda: target.copy_(source)]

    return [Probe("copy", {"num_bytes": n}, lambda n=n: prepare(n), 2.0 * n) for n in grid.copy_bytes]  # type: ignore[misc]


def host_times(grid: Grid, session: Session, device: torch.device) -> None:
    """Time the host needs to launch an eager step, without waiting for the GPU: append one row per batch."""
    model, (name, kernel) = grid.models[0], decode_kernel(device, "bfloat16")
    for batch in grid.step_batches:
        key = f"host_step {model.name} {batch}"
        if key in session.done or device.type != "cuda":
            continue
        try:
            times = _launch_times(Decoder(model, [grid.step_contexts[0]] * batch, grid.page, kernel, device))
        except Exception as error:  # larger batches do not fit either, and batches of transformers come next
            row = {"op": "host_step", "machine": session.machine["machine"], "num_decodes": batch}
            session.append(row | {"skipped": one_line(error)})
            break
        row = {"op": "host_step", "machine": session.machine["machine"], "model": model.name, "kernel": name}
        session.append(
            row | {"num_decodes": batch, "time_s": sorted(times[2:])[5], "num_repeats": 10, "key": key}
        )
        session.done.add(key)
        release(device)


def _launch_times(decoder: Decoder) -> list[float]:
    """Seconds that 12 steps take to launch, each on an idle card."""
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        decoder.step()
        times.append(time.perf_counter() - start)
    return times
