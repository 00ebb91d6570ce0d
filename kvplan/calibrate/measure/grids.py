"""Which points are measured: a quick grid, the default, and a tiny one for a CPU. Plain data, no torch.

The points are those that buy accuracy per minute: batch and context spread wide for decode, GEMMs at the token
counts where weights stop and arithmetic starts to dominate, prompt chunks over a past, and mixed steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from kvplan.calibrate.session import Point

_KV_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}


class AttentionShape(NamedTuple):
    """One layer's attention on one rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def kv_bytes(self, kv_dtype: str) -> int:
        """Bytes of K and V per token and layer: 2 * kv_heads * head_dim * element size."""
        return 2 * self.num_kv_heads * self.head_dim * _KV_ELEMENT_BYTES[kv_dtype]


class StepModel(NamedTuple):
    """A decoder with random weights whose whole steps are timed."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention: AttentionShape
    num_experts: int = 0
    experts_per_token: int = 0


class Serving(NamedTuple):
    """A run of requests through a real scheduler: Poisson arrivals on a clock of batches, lognormal lengths."""

    model: StepModel
    num_requests: int
    gap_batches: float
    """Mean number of batches between two arrivals: the load does not depend on how fast the machine is."""
    prompt_tokens: int
    """Median; at most four times as many."""
    output_tokens: int
    pool_tokens: int
    """Small enough that requests wait for room and some are thrown out."""
    max_batch_tokens: int
    budget_s: float
    """Seconds after which a run is ended where it is."""
    repeats: int = 1
    """Times each run is served; its batches are the same every time."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Everything one calibration visits."""

    name: str
    kv_dtypes: tuple[str, ...]
    attention: tuple[AttentionShape, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    skewed_batch: int
    chunks: tuple[int, ...]
    pasts: tuple[int, ...]
    mixed_chunks: tuple[int, ...]
    mixed_batches: tuple[int, ...]
    mixed_contexts: tuple[int, ...]
    branches: tuple[int, ...]
    """Branches of one prompt, beside as many with prompts of their own."""
    shared_prompts: tuple[int, ...]
    gemm_tokens: tuple[int, ...]
    models: tuple[StepModel, ...]
    step_batches: tuple[int, ...]
    step_contexts: tuple[int, ...]
    draft_model: StepModel
    drafts: tuple[int, ...]
    """Draft tokens that a step verifies."""
    verify_batches: tuple[int, ...]
    sampled_rows: tuple[int, ...]
    vocabularies: tuple[int, ...]
    copy_bytes: tuple[int, ...]
    pool_shapes: tuple[tuple[int, int, int, int], ...]
    """(layers, KV heads, head_dim, block size) of the pools whose bytes are counted."""
    serving: Serving
    max_pool_bytes: int
    l2_bytes: int
    page: int = 16
    rounds: int = 1
    held_out_context: int = 32768
    """Whole steps from this context up are measured but not fitted: the error is stated on them."""


LLAMA_8B = StepModel("llama-3.1-8b", 32, 4096, 14336, 128256, AttentionShape(32, 8, 128))
QWEN_32B = StepModel("qwen3-32b", 64, 5120, 25600, 151936, AttentionShape(64, 8, 128))
QWEN_30B_A3B = StepModel("qwen3-30b-a3b", 48, 2048, 768, 151936, AttentionShape(32, 4, 128), 128, 8)
QWEN_14B = StepModel("qwen3-14b", 40, 5120, 17408, 151936, AttentionShape(40, 8, 128))
"""Held out: measured, never fitted."""
LLAMA_1B = StepModel("llama-3.2-1b", 16, 2048, 8192, 128256, AttentionShape(32, 8, 64))
TINY = StepModel("tiny-4", 4, 256, 704, 2048, AttentionShape(8, 2, 32))
TINY_DEEP = StepModel("tiny-8", 8, 256, 704, 2048, AttentionShape(8, 2, 32))
TINY_MOE = StepModel("tiny-moe", 4, 256, 176, 2048, AttentionShape(8, 2, 32), 8, 2)

HELD_OUT = frozenset({QWEN_14B.name})

_GQA = tuple(AttentionShape(kv * group, kv, 128) for kv in (1, 2, 8) for group in (1, 4, 8))
_POOLS = ((32, 8, 128, 16), (64, 8, 128, 16), (80, 1, 128, 16), (48, 4, 128, 32), (28, 2, 64, 16))

DEFAULT = Grid(
    name="default",
    kv_dtypes=("bfloat16", "fp8"),
    attention=(AttentionShape(32, 8, 128), *_GQA),
    batches=(1, 16, 64, 128, 256),
    contexts=(512, 2048, 8192, 32768, 65536),
    skewed_batch=16,
    chunks=(128, 512, 2048, 8192),
    pasts=(0, 8192, 32768),
    mixed_chunks=(16, 256, 2048),
    mixed_batches=(1, 16, 64, 128),
    mixed_contexts=(1024, 8192, 32768),
    branches=(4, 16, 64),
    shared_prompts=(8192, 32768),
    gemm_tokens=(1, 16, 64, 128, 256, 512, 2048, 8192),
    models=(LLAMA_8B, QWEN_32B, QWEN_30B_A3B, QWEN_14B),
    step_batches=(1, 8, 16, 32, 64, 128, 256),
    step_contexts=(512, 2048, 8192, 16384, 32768, 65536),
    draft_model=LLAMA_1B,
    drafts=(3, 7),
    verify_batches=(1, 16, 64),
    sampled_rows=(1, 64, 256),
    vocabularies=(32000, 151936),
    copy_bytes=(1 << 28, 1 << 31),
    pool_shapes=_POOLS,
    serving=Serving(LLAMA_8B, 48, 6.0, 512, 128, 16384, 512, 22.0),
    max_pool_bytes=24 << 30,
    l2_bytes=96 << 20,
    rounds=3,
)
QUICK = Grid(
    name="quick",
    kv_dtypes=("bfloat16",),
    attention=(AttentionShape(32, 8, 128), AttentionShape(8, 1, 128)),
    batches=(1, 16, 128),
    contexts=(512, 8192, 32768),
    skewed_batch=16,
    chunks=(128, 2048),
    pasts=(0, 8192),
    mixed_chunks=(16, 512),
    mixed_batches=(1, 16, 64),
    mixed_contexts=(1024, 8192),
    branches=(16,),
    shared_prompts=(8192,),
    gemm_tokens=(1, 64, 256, 2048),
    models=(LLAMA_8B,),
    step_batches=(1, 16, 64, 128),
    step_contexts=(512, 8192),
    draft_model=LLAMA_1B,
    drafts=(3,),
    verify_batches=(1, 64),
    sampled_rows=(1, 128),
    vocabularies=(128256,),
    copy_bytes=(1 << 30,),
    pool_shapes=_POOLS[:2],
    serving=Serving(LLAMA_8B, 24, 6.0, 512, 64, 8192, 512, 10.0),
    max_pool_bytes=16 << 30,
    l2_bytes=96 << 20,
)
CPU = Grid(
    name="cpu",
    kv_dtypes=("bfloat16",),
    attention=(AttentionShape(8, 2, 32),),
    batches=(1, 4, 16),
    contexts=(64, 256, 1024),
    skewed_batch=4,
    chunks=(64, 512, 1024),
    pasts=(0, 512),
    mixed_chunks=(16, 256),
    mixed_batches=(4, 16),
    mixed_contexts=(256, 1024),
    branches=(4,),
    shared_prompts=(256,),
    gemm_tokens=(1, 16, 64, 256),
    models=(TINY, TINY_DEEP, TINY_MOE),
    step_batches=(1, 4, 16),
    step_contexts=(64, 256, 1024),
    draft_model=TINY,
    drafts=(3,),
    verify_batches=(1, 4),
    sampled_rows=(1, 16),
    vocabularies=(2048,),
    copy_bytes=(1 << 24, 1 << 26),
    pool_shapes=((4, 2, 32, 16), (8, 1, 64, 16)),
    serving=Serving(TINY, 24, 2.0, 64, 24, 768, 128, 5.0, repeats=5),
    max_pool_bytes=1 << 30,
    l2_bytes=1 << 22,
    held_out_context=1024,
)
GRIDS = {grid.name: grid for grid in (DEFAULT, QUICK, CPU)}


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


WEIGHTS_SHARE, POOL_SHARE = 0.85, 0.5
"""Of the free memory: what weights of a measured model and what one pool may take."""


def fitting_grid(grid: Grid, free_bytes: float) -> Grid:
    """The same grid with models cut to layers that the card holds, and pools that it grants."""

    def cut(model: StepModel) -> StepModel:
        while model.num_layers > 1 and weight_bytes(model, 1 << 20) > WEIGHTS_SHARE * free_bytes:
            model = model._replace(num_layers=model.num_layers // 2)
        return model

    most = int(min(grid.max_pool_bytes, POOL_SHARE * free_bytes))
    models = tuple(cut(model) for model in grid.models)
    return replace(grid, models=models, draft_model=cut(grid.draft_model), max_pool_bytes=most)


def model_facts(model: StepModel) -> Point:
    """The fields of a step row that tell a fit which model it was."""
    shape = model._asdict() | {"model": model.name, "dtype": "bfloat16", "kv_dtype": "bfloat16"}
    return {k: v for k, v in shape.items() if k not in ("name", "attention")} | model.attention._asdict()
