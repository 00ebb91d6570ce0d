"""Probes of single products: the ceilings (copy, one large product), projections, experts, and sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from kvplan.calibrate.measure.decoder import make_layers, moe, random_tensor
from kvplan.calibrate.measure.grids import Grid, StepModel
from kvplan.calibrate.measure.kernels import Kernels
from kvplan.calibrate.measure.probes import Probe
from kvplan.calibrate.session import Point


def gemm_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Projections of the grid's dense models over token counts, in bf16 and, where the card can, fp8."""
    dtypes = ("bfloat16", "fp8") if kernels.fp8_products else ("bfloat16",)
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
    read = element * n * k + (element * k + 2 * n) * m
    return Probe("gemm", point, prepare, read, 2.0 * m * n * k, copies * read)


def _gemm_call(dtype: str, m: int, n: int, k: int, device: torch.device) -> Callable[[], object]:
    x, w = random_tensor(m, k, device=device), random_tensor(n, k, device=device)
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
        flops = 2.0 * params * tokens * model.experts_per_token
        probes.append(Probe("moe", point, prepare, read, flops, read))
    return probes


def _experts_call(model: StepModel, tokens: int, device: torch.device) -> list[Callable[[], object]]:
    layer, x = make_layers(model, 1, device)[0], random_tensor(tokens, model.hidden_size, device=device)
    return [lambda: moe(layer, x, model.experts_per_token)]


def copy_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Device-to-device copies: the bandwidth ceiling, counting bytes read and written."""
    return [
        Probe("copy", {"num_bytes": n}, partial(_copy_call, n, device), 2.0 * n, 0.0, 2.0 * n)
        for n in grid.copy_bytes
    ]


def _copy_call(size: int, device: torch.device) -> list[Callable[[], object]]:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return [lambda: target.copy_(source)]


def large_product(grid: Grid, device: torch.device) -> list[Probe]:
    """The largest product of the grid in 16 bits: the ceiling of arithmetic."""
    n, k = max((shape for model in grid.models for shape in projections(model)), key=lambda s: s[0] * s[1])
    return [_gemm_probe("bfloat16", max(grid.gemm_tokens), n, k, grid, device)]


def sampling_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Choosing a token for every row of logits: greedily, or at random among the top k and p."""
    probes = []
    for rows, vocab, method in product(grid.sampled_rows, grid.vocabularies, ("greedy", "top_k_top_p")):
        point: Point = {"num_rows": rows, "vocab_size": vocab, "method": method}
        prepare = partial(_sampling_call, rows, vocab, method, device)
        probes.append(Probe("sampling", point, prepare, 2.0 * rows * vocab, 0.0, 2.0 * rows * vocab))
    return probes


def _sampling_call(rows: int, vocab: int, method: str, device: torch.device) -> list[Callable[[], object]]:
    logits = random_tensor(rows, vocab, device=device) * vocab**0.5
    if method == "greedy":
        return [lambda: logits.argmax(-1)]
    return [lambda: sample(logits, top_k=50, top_p=0.9)]


def sample(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """One token a row, (rows, vocabulary) -> (rows,): sorted, cut, drawn by the exponential trick, as vLLM does in
    PyTorch (`v1/sample/ops/topk_topp_sampler.py`)."""
    ordered, index = logits.float().sort(-1, descending=True)
    ordered[:, top_k:] = -torch.inf
    shares = ordered.softmax(-1)
    shares = shares.masked_fill(shares.cumsum(-1) - shares > top_p, 0.0)
    drawn = (shares / torch.empty_like(shares).exponential_()).argmax(-1, keepdim=True)
    return index.gather(-1, drawn)[:, 0]
