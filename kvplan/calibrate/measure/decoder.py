"""A decoder with random weights and real shapes: what an engine runs between two scheduler decisions.

Norms, projections, rotary embedding, paged attention, MLP or experts, logits and the greedy choice of a token. No
tokenizer, no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import rms_norm, silu

from kvplan.calibrate.measure.grids import AttentionShape, StepModel
from kvplan.calibrate.measure.kernels import Kernel, make_batch


class DecoderLayer(NamedTuple):
    """Random weights of one layer; expert weights have a leading expert dimension."""

    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    router: torch.Tensor | None


def random_tensor(*size: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal, of the size that keeps activations near 1."""
    return torch.empty(*size, device=device, dtype=dtype).normal_(std=size[-1] ** -0.5)


def make_layers(
    model: StepModel, num_layers: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> list[DecoderLayer]:
    """Weights of `num_layers` layers, drawn afresh for each."""
    shape, hidden, wide = model.attention, model.hidden_size, model.intermediate_size
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    lead = (model.num_experts,) if model.num_experts else ()
    draw = partial(random_tensor, device=device, dtype=dtype)
    return [
        DecoderLayer(
            qkv=draw(heads + 2 * kv, hidden),
            out=draw(hidden, heads),
            gate_up=draw(*lead, 2 * wide, hidden),
            down=draw(*lead, hidden, wide),
            router=draw(model.num_experts, hidden) if lead else None,
        )
        for _ in range(num_layers)
    ]


def mlp(layer: DecoderLayer, x: torch.Tensor) -> torch.Tensor:
    """Gated MLP, (tokens, hidden) -> (tokens, hidden)."""
    gate, up = (x @ layer.gate_up.T).chunk(2, -1)
    return (silu(gate) * up) @ layer.down.T


def moe(layer: DecoderLayer, x: torch.Tensor, top_k: int) -> torch.Tensor:
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
    """One step over a batch with one paged pool per layer; sequences compute their last token, or their last few.

    `samples_all`: every token gets logits, as drafts that are verified do; else the last one of each sequence, as an
    engine does of a prompt's chunk.
    """

    def __init__(
        self,
        model: StepModel,
        parts: Sequence[tuple[int, int]],
        page: int,
        kernel: Kernel,
        device: torch.device,
        samples_all: bool = True,
    ) -> None:
        self.model = model
        self.layers = make_layers(model, model.num_layers, device)
        self.embedding = random_tensor(model.vocab_size, model.hidden_size, device=device)
        self.batches = [
            make_batch(model.attention, parts, page, "bfloat16", device, i) for i in range(model.num_layers)
        ]
        self.attend = [kernel(batch) for batch in self.batches]
        owners = [row for row, (_, new) in enumerate(parts) for _ in range(new)]
        places = [past + i for past, new in parts for i in range(new)]
        row, place = (torch.tensor(x, device=device) for x in (owners, places))
        self.tokens = torch.randint(model.vocab_size, (len(owners),), device=device)
        angle = torch.rand(len(owners), 1, model.attention.head_dim // 2, device=device)
        self.cos, self.sin = angle.cos().to(self.embedding.dtype), angle.sin().to(self.embedding.dtype)
        self.pages = [batch.table[row, place // page].long() for batch in self.batches]
        self.slot = place % page
        self.sampled = (
            slice(None) if samples_all else torch.tensor([new for _, new in parts]).cumsum(0).to(device) - 1
        )

    def step(self) -> torch.Tensor:
        """Run the step: tokens in, one out for each that is sampled; the new tokens' KV is written to the pools."""
        x = self.embedding[self.tokens]
        for index, layer in enumerate(self.layers):
            x = x + self._attention(index, rms_norm(x, x.shape[-1:]))
            y = rms_norm(x, x.shape[-1:])
            x = x + (mlp(layer, y) if layer.router is None else moe(layer, y, self.model.experts_per_token))
        x = x[self.sampled]
        return (rms_norm(x, x.shape[-1:]) @ self.embedding.T).argmax(-1)

    def _attention(self, index: int, x: torch.Tensor) -> torch.Tensor:
        shape: AttentionShape = self.model.attention
        layer, batch, page = self.layers[index], self.batches[index], self.pages[index]
        sizes = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        q, k, v = (x @ layer.qkv.T).view(len(x), -1, shape.head_dim).split(sizes, 1)
        batch.q.copy_(rotate(q, self.cos, self.sin))
        batch.pool[page, 0, self.slot] = rotate(k, self.cos, self.sin)
        batch.pool[page, 1, self.slot] = v
        return self.attend[index]().flatten(1) @ layer.out.T


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
