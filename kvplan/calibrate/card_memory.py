"""The memory section of a profile, from a file's memory rows: what one card gives away beside weights and KV.

A figure that the rows do not tell stays the engine's bundled one, and its source says so. The rows are torch's and our
kernels': an engine loads more of them, so that its growth outside torch is bounded from below only.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from kvplan.calibrate.measurements import Measurements, Row
from kvplan.engines.flags import parse_engine
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import GiB, MiB
from kvplan.profiles.memory_profile import Figure, MemoryProfile, memory_profile

UNTOLD = "not told by the measurements, bundled: "
"""Begins the source of a figure that the rows leave as it was."""
NEW_SAMPLER = (0, 17)
"""First vLLM that draws tokens as `memory_sampler` rows do."""

_POSITIVE: dict[str, tuple[str, ...]] = {
    "memory_context": (),
    "memory_runtime": (),
    "memory_activation": ("num_tokens", "hidden_size", "intermediate_size", "peak_bytes"),
    "memory_sampler": ("num_rows", "vocab_size", "peak_bytes"),
    "memory_cuda_graph": ("num_layers",),
}
"""Ops that teach something, and the fields that must be above 0."""


def learn_overheads(found: Measurements, card: GpuSpec | None, engine: str) -> MemoryProfile | None:
    """Overheads of `engine` (with an optional @version) on the measured card; None where no row is a card's."""
    rows: dict[str, list[Row]] = {}
    for row in found.memory:
        rows.setdefault(row["op"], []).append(_checked(row))
    if not rows.keys() & _POSITIVE.keys():
        return None
    version = parse_engine(engine)
    base = memory_profile(version.engine, version.version, version.legacy)
    where = f"measured on {found.machine.get('machine', 'a card')}"
    sampler = base.sampler_bytes_per_logit
    if base.engine == "vllm" and base.since >= NEW_SAMPLER:
        told = [r["peak_bytes"] / (r["num_rows"] * r["vocab_size"]) for r in rows.get("memory_sampler", [])]
        sampler = _figure(told, f"{where}: peak of drawing a token", sampler)
    else:
        sampler = _untold(sampler)
    dense = [r for r in rows.get("memory_activation", []) if not r.get("num_experts")]
    graphs = base.graph_mib_per_layer
    kind = card.architecture if card and card.architecture else "default"
    learned = {
        "sampler_bytes_per_logit": sampler,
        "forward_scale": _figure(
            list(map(_forward_scale, dense)), f"{where}: peak of a dense layer's MLP", base.forward_scale
        ),
        "vision_gib": _untold(base.vision_gib),
        "runtime_gib": _runtime(rows, base, where),
        "runtime_gib_of": {},
        "runtime_gib_per_peer": _untold(base.runtime_gib_per_peer),
        "graph_mib_per_layer": {name: _untold(figure) for name, figure in graphs.items()}
        | {kind: _graphs(rows.get("memory_cuda_graph", []), where, graphs.get(kind, graphs["default"]))},
    }
    total = float(found.machine.get("total_bytes") or 0) / GiB
    if card and total > 0:
        told_total = Figure(value=total, low=total, high=total, source=f"{where}: CUDA's total")
        learned["total_gib"] = {card.name: told_total}
    return base.model_copy(update=learned)


def _checked(row: Row) -> Row:
    """The row, if what is read of it are numbers; bytes that NVML did not say are None."""
    needed = _POSITIVE.get(row["op"], ())
    used = {k: v for k, v in row.items() if k in needed or k.endswith("_bytes")}
    for name, value in (dict.fromkeys(needed) | used).items() if row["op"] in _POSITIVE else ():
        if value is None and name.startswith("nvml"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
            raise KvplanError(f"{row.get('_at', 'row')}: {name} must be a number, not {str(value)[:40]!r}")
        if name in needed and value <= 0:
            raise KvplanError(f"{row.get('_at', 'row')}: {name} must be above 0, not {value}")
    return row


def _untold(figure: Figure) -> Figure:
    return figure.model_copy(update={"source": UNTOLD + figure.source})


def _figure(told: Sequence[float], source: str, bundled: Figure) -> Figure:
    """The median of what rows tell, with their range; the bundled figure where they tell nothing."""
    if not told:
        return _untold(bundled)
    return Figure(
        value=median(told), low=min(told), high=max(told), source=f"{source} ({len(told)} measurements)"
    )


def _forward_scale(row: Row) -> float:
    """Measured peak over the live tensors that `memory.overheads` counts: 3 hidden states, gate, up and product.

    The probe's peak holds one hidden state; its input and the residual lie outside: two more, of 2 bytes an element.
    """
    tokens, hidden, wide = row["num_tokens"], row["hidden_size"], row["intermediate_size"]
    return float((row["peak_bytes"] + 4 * tokens * hidden) / (2 * tokens * 3 * (hidden + wide)))


def _runtime(rows: dict[str, list[Row]], base: MemoryProfile, where: str) -> Figure:
    """GiB outside torch's allocator: for vLLM what grew since the context, for others with the context.

    Rows bound vLLM's from below; without NVML they tell nothing.
    """
    bundled = base.runtime_gib
    begun = next((r for r in rows.get("memory_context", []) if r.get("nvml_used_after_gemm_bytes")), None)
    if begun is None:
        return _untold(bundled)
    context = begun.get("nvml_used_after_context_bytes", 0) - begun.get(
        "torch_reserved_after_context_bytes", 0
    )
    libraries = begun["nvml_used_after_gemm_bytes"] - begun.get("torch_reserved_bytes", 0)
    ends = [
        r["nvml_used_bytes"] - r.get("torch_reserved_bytes", 0)
        for r in rows.get("memory_runtime", [])
        if r.get("nvml_used_bytes")
    ]
    most = max([libraries, *ends])
    parts = f"{where}: context {context / GiB:.2f} GiB, {(most - context) / GiB:.2f} more once kernels were loaded"
    if base.engine == "vllm":
        grown = (most - context) / GiB
        low, value, high = (max(grown, x) for x in (bundled.low, bundled.value, bundled.high))
        return Figure(
            value=value, low=low, high=high, source=f"{parts}, at least that; bundled: {bundled.source}"
        )
    return Figure(value=most / GiB, low=libraries / GiB, high=most / GiB, source=parts)


def _graphs(rows: Sequence[Row], where: str, bundled: Figure) -> Figure:
    """MiB a captured graph and layer: outside torch's pool, at most with the pool, which engines share among graphs."""
    with_nvml = [r for r in rows if r.get("nvml_bytes") is not None]
    outside = [(r["nvml_bytes"] - r.get("reserved_bytes", 0)) / r["num_layers"] / MiB for r in with_nvml]
    whole = [max(r["nvml_bytes"], 0) / r["num_layers"] / MiB for r in with_nvml]
    if not outside or median(outside) <= 0:
        return _untold(bundled)
    figure = _figure(outside, f"{where}: graphs of decode steps", bundled)
    return figure.model_copy(update={"low": max(0.0, figure.low), "high": max(figure.high, *whole)})
