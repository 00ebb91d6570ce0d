"""Laws of step time: one physics, exact lines, sane scaling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.formulas.graphs import capture_sizes
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from kvplan.timing.costs import AttentionCosts, GemmCosts, HostCosts
from kvplan.timing.step import ModelStepTime, StepCosts, StepShape, decode_ticks, roofline
from kvplan.timing.work import Product, step_work


def model(*attention: AttentionSpec, mlp: MlpSpec | None = None, layers: int = 32) -> ModelSpec:
    """A Llama-3.1-8B-like model; several attentions alternate."""
    kinds = attention or (AttentionSpec(AttentionKind.FULL, 32, 8, 128, 128),)
    each = tuple(LayerSpec(kinds[i % len(kinds)], mlp or MlpSpec(14336)) for i in range(layers))
    return ModelSpec("m", "A", each, 4096, 128256, 131072, "bfloat16", False)


SLIDING = AttentionSpec(AttentionKind.SLIDING, 32, 8, 128, 128, window=1024)
FULL = AttentionSpec(AttentionKind.FULL, 32, 8, 128, 128)
GEMM = GemmCosts(3e12, 7e14, kernel_s=2e-6)
ATTENTION = AttentionCosts(
    3e12, 5e14, 5e-6, 1e-7, mixed_bytes_per_s=6e12, mixed_crowding=0.01, serial_bytes_per_s=2e10
)
COSTS = StepCosts(GEMM, GEMM, GEMM, ATTENTION, step_s=1e-4, layer_s=5e-6, row_s=1e-6)
MODELS = {"dense": model(), "sliding": model(FULL, SLIDING), "moe": model(mlp=MlpSpec(768, 3, 128, 8))}
HOSTS = {
    "sync": COSTS,
    "async": replace(COSTS, host=HostCosts(9e-3, 1e-5, overlaps=True), capture_sizes=capture_sizes()),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None)
@given(
    batch=st.integers(1, 600), start=st.integers(1, 60_000), steps=st.integers(0, 10_000), drafts=st.integers(0, 5)
)  # fmt: skip
def test_decode_line_is_ticks(name: str, host: str, batch: int, start: int, steps: int, drafts: int) -> None:
    """The line equals `ticks` at its start and at any context before its limit, drafts to verify or none."""
    time = ModelStepTime(step_work(MODELS[name]), HOSTS[host])
    context, tokens = batch * start, batch * (1 + drafts)
    a, b, limit = time.decode_line(batch, context, tokens)
    assert limit > context
    for c in (context, min(context + steps * batch, limit - 1), limit - 1):
        assert a + b * c == time.ticks(StepShape(tokens, batch, c))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", MODELS)
def test_steps_of_a_batch_at_once(name: str, host: str) -> None:
    """Durations over rising contexts are those of each step alone, across the knots of its line."""
    time = ModelStepTime(step_work(MODELS[name]), HOSTS[host])
    contexts = np.array([70, 71, 5000, 9 * 1024 - 1, 9 * 1024, 9 * 1024 + 8, 10**6, 10**7])
    for tokens in (9, 36):
        each = [time.ticks(StepShape(tokens, 9, c)) for c in contexts.tolist()]
        assert decode_ticks(time, 9, tokens, contexts).tolist() == each
    assert decode_ticks(time, 9, 9, contexts[:0]).tolist() == []


@pytest.mark.parametrize("name", MODELS)
def test_drafts_cost_what_their_tokens_do(name: str) -> None:
    """A step that verifies drafts takes what the physics says of its tokens, to a line's rounding."""
    time = ModelStepTime(step_work(MODELS[name]), HOSTS["sync"])
    shape = StepShape(64, 16, 400_000)
    assert time.ticks(shape) == pytest.approx(time.seconds(shape) * 1e12, rel=1e-4)
    assert time.ticks(shape) > time.ticks(StepShape(16, 16, 400_000))


@pytest.mark.parametrize("name", MODELS)
def test_ticks_are_seconds(name: str) -> None:
    """Integer ticks agree with the broadcasting physics to rounding, pure decode and mixed."""
    time = ModelStepTime(step_work(MODELS[name]), HOSTS["async"])
    shape = StepShape(
        np.array([1, 64, 90, 600]), np.array([1, 64, 64, 88]), np.array([100, 640000, 9999, 176000]),
        np.array([0, 0, 26, 512]), np.array([0, 0, 1, 2]), np.array([0.0, 0.0, 5000.0, 3e6]),
    )  # fmt: skip
    each = [time.ticks(StepShape(*(column[i].item() for column in shape))) for i in range(4)]
    assert each == pytest.approx(time.seconds(shape) * 1e12, rel=1e-4)


def test_roofline_reads_weights_and_context() -> None:
    """Llama-3.1-8B at batch 1 on 3.35 TB/s: weights plus 131,072 B a context token, nothing else."""
    time = roofline(step_work(model()), 3.35e12, 989e12)
    weights = 32 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336) * 2 + 4096 * 128256 * 2
    assert time.seconds(StepShape(1, 1, 100_000)) == pytest.approx(
        (weights + 131072 * 100_000) / 3.35e12, rel=1e-3
    )


def test_moe_wakes_experts_with_the_batch() -> None:
    """One token reads top-k experts of a layer; a large batch reads them all."""
    work = step_work(MODELS["moe"])
    one, many = (roofline(work, 1e12, 1e30).seconds(StepShape(m, m, 0)) for m in (1, 4096))
    expert = 32 * 3 * 4096 * 768 * 2 / 1e12
    assert many - one == pytest.approx((128 - 8) * expert, rel=1e-6)


@settings(deadline=None)
@given(batch=st.integers(1, 512), context=st.integers(0, 10**7), chunk=st.integers(1, 8192))
def test_more_work_takes_longer(batch: int, context: int, chunk: int) -> None:
    """A longer context, one more sequence or a prompt chunk never makes a step shorter."""
    time = ModelStepTime(step_work(MODELS["sliding"]), COSTS)
    base = time.ticks(StepShape(batch, batch, context))
    assert time.ticks(StepShape(batch, batch, context + 1)) >= base
    assert time.ticks(StepShape(batch + 1, batch + 1, context)) >= base
    assert time.ticks(StepShape(batch + chunk, batch, context, chunk, 1, chunk * chunk / 2)) >= base


SHAPES = st.tuples(
    st.integers(0, 300), st.integers(1, 30_000), st.integers(0, 4096), st.integers(0, 20_000)
).filter(lambda s: s[0] + s[2] > 0)


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None)
@given(rows=st.lists(SHAPES, min_size=1, max_size=5))
def test_arrays_and_numbers_agree(name: str, rows: list[tuple[int, int, int, int]]) -> None:
    """`seconds` of an array of steps is `seconds` of each: the fit and the simulator share one physics."""
    time = ModelStepTime(step_work(MODELS[name]), HOSTS["async"])
    each = [
        StepShape(n + q, n, n * context, q, min(q, 1), q * (past + q / 2)) for n, context, q, past in rows
    ]
    together = StepShape(*(np.array(column) for column in zip(*each, strict=True)))
    assert time.seconds(together) == pytest.approx([float(time.seconds(shape)) for shape in each], rel=1e-12)


def test_windows_stop_growing() -> None:
    """Beyond the window a sliding layer's step no longer grows with the context; a full layer's does."""
    time = roofline(step_work(model(SLIDING)), 1e12, 1e15)
    near, at, far = (time.ticks(StepShape(8, 8, 8 * c)) for c in (512, 1024, 60_000))
    assert near < at == far


def test_mla_reads_one_latent_on_every_rank() -> None:
    """DeepSeek V3's context costs (512 + 64) * 2 bytes a layer and token, whatever the tensor parallelism."""
    mla = AttentionSpec(
        AttentionKind.MLA, 128, 1, v_head_dim=128, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
        q_lora_rank=1536,
    )  # fmt: skip
    for ranks in (1, 8):
        (work,) = step_work(model(mla), tensor_parallel_size=ranks).attention
        assert work.kv_bytes_per_token == 1152


def test_tensor_parallel_cuts_reading_and_adds_reductions() -> None:
    """Eight ranks read an eighth each and reduce twice a layer; KV heads are replicated beyond their number."""
    one, eight, many = (step_work(model(), tensor_parallel_size=n) for n in (1, 8, 16))
    assert eight.dense_bytes == pytest.approx(one.dense_bytes / 8)
    assert (one.num_all_reduces, eight.num_all_reduces) == (0, 2 * 32 + 1)
    assert eight.attention[0].kv_bytes_per_token == many.attention[0].kv_bytes_per_token == 512
    link = roofline(eight, 1e30, 1e30, 1e9).seconds(StepShape(64, 64, 0))
    assert link == pytest.approx(65 * 64 * 4096 * 2 * 2 * 7 / 8 / 1e9)


def test_sparse_attention_reads_its_top_k_and_an_indexer() -> None:
    """DeepSeek V3.2: main attention stops growing at the top-k, the indexer's 132 bytes a token do not."""
    sparse = AttentionSpec(
        AttentionKind.MLA, 128, 1, v_head_dim=128, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
        q_lora_rank=1536, index_head_dim=128, index_num_heads=64, index_topk=2048,
    )  # fmt: skip
    time = roofline(step_work(model(sparse)), 1e12, 1e30)
    steps = [time.seconds(StepShape(1, 1, c)) for c in (1000, 2000, 50_000, 51_000)]
    assert steps[1] - steps[0] == pytest.approx(32 * 1000 * (1152 + 132) / 1e12, rel=1e-6)
    assert steps[3] - steps[2] == pytest.approx(32 * 1000 * 132 / 1e12, rel=1e-6)


def test_graph_padding_is_a_staircase() -> None:
    """With captured sizes 1, 2, 4, 8, 16 ... nine sequences multiply as sixteen do, but read their own contexts."""
    gemm = GemmCosts(1e30, 1e12)
    costs = StepCosts(gemm, gemm, gemm, AttentionCosts(1e12, 1e30), capture_sizes=capture_sizes())
    work = replace(step_work(model()), head=Product(1, 0, 0))
    time = ModelStepTime(work, costs)
    nine, sixteen = (time.seconds(StepShape(n, n, 0)) for n in (9, 16))
    assert nine == pytest.approx(sixteen)
    assert time.ticks(StepShape(9, 9, 9000)) < time.ticks(StepShape(16, 16, 16_000))
