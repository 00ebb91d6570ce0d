"""What each family of measurements should take, as a function of coefficients: the fit's side of `timing`'s physics.

The formulas are those of `costs` and `step`, called with arrays; here is only which coefficients a family
has, where the search starts and what to measure when the data cannot tell one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kvplan.calibrate.fit.least_squares import Array, Predict, Prior
from kvplan.calibrate.measurements import Row, short_dtype
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.models.load import load_model
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from kvplan.profiles.step_times import ELEMENT_BYTES
from kvplan.profiles.surface_file import Surfaces
from kvplan.profiles.timing_profile import step_costs
from kvplan.timing.costs import AttentionCosts, GemmCosts, ReduceCosts, attention_s, expected_experts, gemm_s
from kvplan.timing.step import ModelStepTime, StepShape
from kvplan.timing.work import AttentionWork, StepWork, projections, step_work, visit_bytes

ACTIVATIONS = "step.activation_bytes_per_s"

HINTS = {
    "bytes_per_s": "decode steps at batch 1 and at a batch of 64 or more, contexts 512 and 8k or longer",
    "flops_per_s": "prompt chunks of 512 and 2048 or more tokens",
    "kernel_s": "the smallest shapes: one token, short context",
    "sequence_s": "decode at batch 1 and 128 with short contexts",
    "extra_keys": "prompt chunks of 128 and 512 tokens with no past",
    "mixed_bytes_per_s": "mixed steps: chunk 16, 256, 2048 x batch 16, 64, 128 x context 1k, 8k",
    "mixed_crowding": "mixed steps at batch 16 and 128 with contexts of 8k and more",
    "mixed_block_s": "mixed steps: chunks of 512 and 2048 beside 64 and 128 short decodes",
    "serial_bytes_per_s": "a 16-token chunk beside one sequence of 16k context",
    "visit_bytes_per_s": "experts of two sizes at 1024 and 8192 tokens",
    "two_shot_s": "all-reduces of 2 MB",
    "two_shot_bytes_per_s": "all-reduces of 16 MB and more",
    "p_norm": "products or chunks of 64, 128 and 256 tokens",
    "layer_s": "models of two depths, or decode at several batches",
    "launch_s": "one card or few (weights in memory bound the step) and many (launches do)",
    "step_s": "a model of another depth",
    "row_s": "a model of another depth at batch 1 and 128",
}


Costs = TypeVar("Costs", GemmCosts, AttentionCosts, ReduceCosts)

ENOUGH_FOR_TWO = 10
"""All-reduce rows from which one-shot and two-shot algorithms are told apart."""


class Rates(NamedTuple):
    """Bytes and FLOPs per second, in the right order of magnitude: where a search starts, no belief."""

    bytes_per_s: float
    flops_per_s: float


UNKNOWN_CARD = Rates(1e12, 1e14)


def rough_rates(rows: Sequence[Row]) -> Rates:
    """The best rates these rows reached, by the floors they carry; those of a large card where they carry none."""
    best = (
        max((row.get(floor, 0.0) / row["time_s"] for row in rows), default=0.0)
        for floor in ("floor_bytes", "floor_flops")
    )
    return Rates(*(found or unknown for found, unknown in zip(best, UNKNOWN_CARD, strict=True)))


class Term(NamedTuple):
    """One family's coefficients: where to start, what is believed before measuring."""

    start: dict[str, float]
    priors: dict[str, Prior]


def gemm_term(prefix: str, gpu: GpuSpec | None, fmt: str, rough: Rates = UNKNOWN_CARD) -> Term:
    """Start and beliefs of matrix products; a known card bounds its rates."""
    bandwidth, flops = (gpu.bandwidth, gpu.flops(fmt.split("_")[0])) if gpu else rough
    start = {"bytes_per_s": 0.87 * bandwidth, "flops_per_s": 0.7 * flops, "p_norm": 2.5, "kernel_s": 3e-6}
    priors = {"p_norm": Prior(2.5, 0.15), "kernel_s": Prior(3e-6, 1.0)}
    if gpu:
        priors |= {"bytes_per_s": Prior(0.87 * bandwidth, 0.06), "flops_per_s": Prior(0.7 * flops, 0.15)}
    return Term(
        {f"{prefix}.{k}": v for k, v in start.items()}, {f"{prefix}.{k}": v for k, v in priors.items()}
    )


def experts_term(prefix: str, gpu: GpuSpec | None, fmt: str, rough: Rates = UNKNOWN_CARD) -> Term:
    """Start and beliefs of experts: their products, and the activations moved around them."""
    start, priors = gemm_term(prefix, gpu, fmt, rough)
    rate = 0.3 * (gpu.bandwidth if gpu else rough.bytes_per_s)
    name = f"{prefix}.visit_bytes_per_s"
    return Term(start | {name: rate}, priors | {name: Prior(rate, 1.0)})


def reduce_term(prefix: str, rows: Sequence[Row]) -> Term:
    """Start of an all-reduce; many rows over a wide range tell two algorithms apart."""
    quick, far = min(r["time_s"] for r in rows), max(rows, key=lambda r: r["num_bytes"])
    rate = far["num_bytes"] / far["time_s"]
    if len(rows) < ENOUGH_FOR_TWO:
        return Term({f"{prefix}.kernel_s": quick, f"{prefix}.bytes_per_s": rate}, {})
    start = {
        "kernel_s": quick, "bytes_per_s": rate / 4, "two_shot_s": 5 * quick, "two_shot_bytes_per_s": 1.1 * rate,
    }  # fmt: skip
    priors = {f"{prefix}.{k}": Prior(start[k], 1.0) for k in ("two_shot_s", "two_shot_bytes_per_s")}
    return Term({f"{prefix}.{k}": v for k, v in start.items()}, priors)


def attention_term(prefix: str, gpu: GpuSpec | None, rough: Rates = UNKNOWN_CARD) -> Term:
    """Start and beliefs of attention. MLA engines run decodes and prompts apart: no mixed term."""
    bandwidth, flops = (gpu.bandwidth, gpu.flops("bf16")) if gpu else rough
    start = {
        "bytes_per_s": 0.8 * bandwidth, "flops_per_s": 0.5 * flops, "kernel_s": 8e-6, "sequence_s": 4e-8,
        "extra_keys": 300.0, "serial_bytes_per_s": 1e10,
    }  # fmt: skip
    priors = {
        "kernel_s": Prior(8e-6, 1.0), "sequence_s": Prior(4e-8, 1.5), "extra_keys": Prior(300.0, 0.7),
        "serial_bytes_per_s": Prior(2e10, 0.5),
    }  # fmt: skip
    if gpu:
        priors |= {"bytes_per_s": Prior(0.8 * bandwidth, 0.2), "flops_per_s": Prior(0.5 * flops, 0.3)}
    if not prefix.startswith("mla"):
        start |= {"mixed_bytes_per_s": 0.6 * bandwidth, "mixed_crowding": 5e-3, "mixed_block_s": 3e-11}
        priors |= {"mixed_crowding": Prior(5e-3, 1.0), "mixed_block_s": Prior(3e-11, 1.5)}
    return Term(
        {f"{prefix}.{k}": v for k, v in start.items()}, {f"{prefix}.{k}": v for k, v in priors.items()}
    )


def column(rows: Sequence[Row], name: str, default: float = 0.0) -> Array:
    """One field of all rows as an array."""
    return np.array([row.get(name, default) for row in rows], dtype=float)


def shapes(rows: Sequence[Row]) -> StepShape:
    """All rows' step shapes, an array per field."""
    chunk = column(rows, "num_prefill_tokens")
    prefills = np.array(
        [r.get("num_prefills", 1 if r.get("num_prefill_tokens") else 0) for r in rows], dtype=float
    )
    decodes = column(rows, "num_decodes")
    tokens = np.array(
        [r.get("num_tokens", r.get("num_decodes", 0) + r.get("num_prefill_tokens", 0)) for r in rows],
        dtype=float,
    )
    context, pairs = column(rows, "decode_context"), column(rows, "prefill_attention")
    return StepShape(tokens, decodes, context, chunk, prefills, pairs)


def element_wise(gpu: GpuSpec) -> dict[str, tuple[float, str]]:
    """Norms, rotary embedding and gates, which no row of a known card tells apart from other fixed times."""
    why = "element-wise kernels at the data sheet's rate: assumed, 0.8 to 2 of it; an RTX PRO 6000's move at 1.0 to 2.4"
    return {ACTIVATIONS: (gpu.bandwidth, why)}


def predict_family(name: str, rows: Sequence[Row], known: Mapping[str, float]) -> Predict:
    """Seconds of every row of a kernel family; `known` coefficients of earlier families are held."""
    kind, fmt = name.split(".", 1)
    if kind == "gemm":
        return _predict_gemm(name, rows, ELEMENT_BYTES.get(fmt, 2.0))
    if kind == "moe":
        return _predict_moe(name, rows, ELEMENT_BYTES.get(fmt, 2.0))
    if kind == "reduce":
        moved = column(rows, "num_bytes")
        return lambda v: np.asarray(_costs(ReduceCosts, v, name)(moved))
    work, shape = _attention_work(kind, rows, ELEMENT_BYTES.get(fmt, 2.0)), shapes(rows)
    products = _block_products_s(rows, known) if kind == "mla" else 0.0

    def predict(v: Mapping[str, float]) -> Array:
        fixed = (
            products + v[f"{name}.kernel_s"] + v[f"{name}.sequence_s"] * work.num_kv_heads * shape.num_decodes
        )
        return np.asarray(fixed + attention_s(_costs(AttentionCosts, v, name), work, shape))

    return predict


def _block_products_s(rows: Sequence[Row], known: Mapping[str, float]) -> Array:
    """Seconds of the projections that `mla_module` rows include; nothing for bare kernels."""
    if not any(row["op"] == "mla_module" for row in rows):
        return np.zeros(len(rows))
    if "gemm.bf16.bytes_per_s" not in known:
        raise KvplanError("mla_module rows include projections: gemm rows in bf16 must be fitted with them")
    costs = GemmCosts(**{k.rsplit(".", 1)[1]: v for k, v in known.items() if k.startswith("gemm.bf16.")})
    shape = shapes(rows)
    params = np.array([_projection_params(row) for row in rows])
    seconds = gemm_s(costs, params * 2.0, 2.0 * params * shape.num_tokens) + 6 * costs.kernel_s
    return np.where([row["op"] == "mla_module" for row in rows], seconds, 0.0)


def _projection_params(row: Row) -> float:
    return sum(n * k for n, k in projections(_mla_spec(row), row["hidden_size"], 1))


def _mla_spec(row: Row) -> AttentionSpec:
    return AttentionSpec(
        AttentionKind.MLA,
        row["num_heads"],
        1,
        v_head_dim=row.get("v_head_dim", 128),
        kv_lora_rank=row["kv_lora_rank"],
        qk_rope_head_dim=row["qk_rope_head_dim"],
        qk_nope_head_dim=row.get("qk_nope_head_dim", 128),
        q_lora_rank=row["q_lora_rank"],
    )


def _costs(kind: type[Costs], v: Mapping[str, float], prefix: str) -> Costs:
    """The costs whose fields are a prefix's coefficients."""
    return kind(**{k[len(prefix) + 1 :]: x for k, x in v.items() if k.startswith(f"{prefix}.")})


def _predict_gemm(name: str, rows: Sequence[Row], element: float) -> Predict:
    m, n, k = (column(rows, c) for c in ("num_tokens", "out_features", "in_features"))
    num_bytes, flops = n * k * element, 2.0 * m * n * k
    return lambda v: v[f"{name}.kernel_s"] + gemm_s(_costs(GemmCosts, v, name), num_bytes, flops)


def _predict_moe(name: str, rows: Sequence[Row], element: float) -> Predict:
    m, h, i = (column(rows, c) for c in ("num_tokens", "hidden_size", "intermediate_size"))
    experts, topk = column(rows, "num_experts"), column(rows, "experts_per_token")
    held = np.array([r.get("num_local_experts", r["num_experts"]) for r in rows], dtype=float)
    distinct = np.array([r.get("distinct_experts", np.nan) for r in rows], dtype=float)
    distinct = np.where(np.isnan(distinct), expected_experts(held, topk / experts, m), distinct)
    params = column(rows, "num_matrices", 3.0) * h * i
    visits = m * topk * held / experts
    num_bytes, flops = distinct * params * element, 2.0 * visits * params
    moved = visits * visit_bytes(h, i, column(rows, "num_matrices", 3.0))

    def predict(v: Mapping[str, float]) -> Array:
        costs = _costs(GemmCosts, v, name)
        return np.asarray(costs.kernel_s + gemm_s(costs, num_bytes, flops) + moved / costs.visit_bytes_per_s)

    return predict


def _attention_work(kind: str, rows: Sequence[Row], element: float) -> AttentionWork:
    """One layer's attention with an array per field; rows of a window are left to the step families."""
    heads: Any = column(rows, "num_heads")
    if kind == "mla":
        rank: Any
        rank, rope = column(rows, "kv_lora_rank", 512), column(rows, "qk_rope_head_dim", 64)
        pair: Any = (
            2.0 * heads * (column(rows, "qk_nope_head_dim", 128) + rope + column(rows, "v_head_dim", 128))
        )
        per_token: Any = (rank + rope) * element
        return AttentionWork(
            1, 0, per_token, 2.0 * heads * (2 * rank + rope), pair, heads, np.ones_like(heads)
        )
    kv: Any = column(rows, "num_kv_heads")
    dim: Any = column(rows, "head_dim")
    return AttentionWork(1, 0, 2.0 * kv * dim * element, 4.0 * heads * dim, 4.0 * heads * dim, heads, kv)


def predict_steps(
    rows: Sequence[Row], known: Mapping[str, float], surfaces: Surfaces | None = None
) -> Predict:
    """Seconds of whole steps, model by model; `known` coefficients and measured surfaces are held."""
    shape = shapes(rows)
    keys = [step_key(row) for row in rows]
    groups = [(key, np.array([i for i, k in enumerate(keys) if k == key])) for key in dict.fromkeys(keys)]

    def predict(v: Mapping[str, float]) -> Array:
        seconds = np.empty(len(rows))
        for key, index in groups:
            work, formats = step_subject(key)
            costs = step_costs({**known, **v}, surfaces, **formats, num_ranks=work.num_ranks).costs
            seconds[index] = ModelStepTime(work, costs).seconds(StepShape(*(f[index] for f in shape)))
        return seconds

    return predict


_STEP_FIELDS = (
    "model", "num_layers", "hidden_size", "intermediate_size", "vocab_size", "num_experts", "experts_per_token",
    "num_heads", "num_kv_heads", "head_dim", "num_matrices", "tensor_parallel_size", "dtype", "kv_dtype",
)  # fmt: skip


def step_key(row: Row) -> tuple[Any, ...]:
    """What tells the model and cut of a step row."""
    return tuple(row.get(name) for name in _STEP_FIELDS)


@cache
def step_subject(key: tuple[Any, ...]) -> tuple[StepWork, dict[str, Any]]:
    """Work of a step row's model, and the formats its coefficients are looked up by."""
    row = {k: v for k, v in zip(_STEP_FIELDS, key, strict=True) if v is not None}
    model = inline_model(row) if "num_layers" in row else load_model(str(row.get("model", "")))
    weight, kv = short_dtype(row.get("dtype", "bf16")), short_dtype(row.get("kv_dtype", "bf16"))
    element = 4.0 if weight == "float32" else ELEMENT_BYTES.get(weight, 2.0)
    kv_element = 4.0 if kv == "float32" else ELEMENT_BYTES.get(kv, 2.0)
    work = step_work(
        model,
        tensor_parallel_size=int(row.get("tensor_parallel_size", 1)),
        weight_bytes=element,
        kv_bytes=kv_element,
    )
    mla = any(layer.attention.kind is AttentionKind.MLA for layer in model.layers)
    return work, {"weight_format": weight, "kv_format": kv, "mla": mla}


def inline_model(row: Row) -> ModelSpec:
    """A decoder of equal layers from the shape fields of a step row."""
    missing = [
        n
        for n in ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
        if n not in row
    ]
    if missing:
        raise KvplanError(
            f"a step row with num_layers needs {', '.join(missing)} too, or the name of a bundled model"
        )
    attention = AttentionSpec(
        AttentionKind.FULL, row["num_heads"], row["num_kv_heads"], row["head_dim"], row["head_dim"]
    )
    mlp = MlpSpec(
        row["intermediate_size"],
        row.get("num_matrices", 3),
        row.get("num_experts", 0),
        row.get("experts_per_token", 0),
    )
    layers = (LayerSpec(attention, mlp),) * row["num_layers"]
    name = str(row.get("model", "measured"))
    return ModelSpec(
        name, "", layers, row["hidden_size"], row.get("vocab_size", 0), 1 << 20, "bfloat16", False
    )
