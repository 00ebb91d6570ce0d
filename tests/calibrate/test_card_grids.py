"""The grids for a GPU hold enough points: what they would measure on a card of known costs can be fitted, and is found.

No GPU is touched: probes are listed as they would be on a card, and each is given the time that known costs say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="listing a card's probes needs torch")

from kvplan.calibrate.build import build  # noqa: E402
from kvplan.calibrate.fit.terms import predict_family, predict_steps  # noqa: E402
from kvplan.calibrate.measure import stages  # noqa: E402
from kvplan.calibrate.measure.grids import DEFAULT, QUICK, Grid  # noqa: E402
from kvplan.calibrate.measure.kernels import Kernels, Named, sdpa_kernel  # noqa: E402
from kvplan.calibrate.measure.probes import Ceilings  # noqa: E402
from kvplan.calibrate.measurements import IGNORED, collect, family  # noqa: E402
from kvplan.ground.errors import KvplanError  # noqa: E402

MACHINE = {
    "op": "machine",
    "machine": "NVIDIA H200",
    "gpu": "NVIDIA H200",
    "engine": "torch",
    "engine_version": "2",
}

HOPPER = Ceilings(2.7e12, 6.5e14, 50e6)
"""An H100: bytes per second read and written together, and 16-bit FLOPs per second, as measured elsewhere."""

CARD = {
    "gemm.bf16": {"bytes_per_s": 4.09e12, "flops_per_s": 7.85e14, "kernel_s": 4.5e-6, "p_norm": 2.68},
    "gemm.fp8": {"bytes_per_s": 4.2e12, "flops_per_s": 8.69e14, "kernel_s": 8.9e-6, "p_norm": 1.5},
    "gqa.bf16": {
        "bytes_per_s": 4.22e12, "flops_per_s": 6.34e14, "kernel_s": 1.14e-5, "sequence_s": 1.95e-8, "extra_keys": 589.0,
        "serial_bytes_per_s": 1.42e10, "mixed_block_s": 0.0, "mixed_crowding": 0.0,
    },
    "gqa.fp8": {
        "bytes_per_s": 2.68e12, "flops_per_s": 5.71e14, "kernel_s": 1.28e-5, "sequence_s": 2.17e-8, "extra_keys": 705.0,
        "serial_bytes_per_s": 5.25e9, "mixed_block_s": 0.0, "mixed_crowding": 0.0,
    },
    "mla.bf16": {
        "bytes_per_s": 4.52e12, "flops_per_s": 5.97e14, "kernel_s": 1.28e-5, "sequence_s": 7.53e-8,
        "extra_keys": 1533.0, "serial_bytes_per_s": 1.78e10,
    },
    "moe.bf16": {
        "bytes_per_s": 4.35e12, "flops_per_s": 6.71e14, "kernel_s": 3.76e-5, "p_norm": 1.38,
        "visit_bytes_per_s": 1.94e12,
    },
    "step": {
        "step_s": 1e-4, "layer_s": 4e-6, "row_s": 5e-7, "launch_s": 5e-4, "activation_bytes_per_s": 4.8e12,
    },
}  # fmt: skip
"""An H200, in the order of fits to published tables of its kernels (aiconfigurator-core 0.12.0)."""
KNOWN = {f"{name}.{key}": value for name, values in CARD.items() for key, value in values.items()}

MIXING = {
    "mixed_bytes_per_s": 2.2e12, "mixed_crowding": 5e-3, "mixed_block_s": 3e-11, "serial_bytes_per_s": 2e10,
}  # fmt: skip
"""What a kernel for ragged batches costs more, in the order of the fits to vLLM's steps on an H200."""


def card_points(grid: Grid, one_kernel: bool, budget_s: float = float("inf")) -> list[dict[str, Any]]:
    """Op and point of every probe that a Hopper card with triton would get in so many seconds."""
    named = {kv_dtype: Named("triton", sdpa_kernel) for kv_dtype in grid.kv_dtypes}
    kernels = Kernels(named, named if one_kernel else {}, mla=True, fp8_products=True)
    planned = stages.plan(grid, torch.device("cuda"), kernels, HOPPER, budget_s)
    return [{"op": p.op, **p.point} for s in planned for p in s.probes if p.op not in IGNORED]


def timed(points: list[dict[str, Any]], values: dict[str, float]) -> list[dict[str, Any]]:
    """Every point with the seconds that these costs say; launches only where a step is outside CUDA graphs."""
    rows, in_graphs = [], {k: v for k, v in values.items() if k != "step.launch_s"}
    for point in points:
        eager = point["op"] == "eager_step"
        name = "step" if eager else family(point)
        predict = predict_steps([point], {}) if name == "step" else predict_family(name, [point], values)
        rows.append({**point, "time_s": float(predict(values if eager else in_graphs)[0])})
    return rows


@pytest.mark.parametrize("one_kernel", [True, False])
@pytest.mark.parametrize("grid", [DEFAULT, QUICK], ids=lambda grid: grid.name)
def test_what_a_card_would_be_measured_at_can_be_fitted(grid: Grid, one_kernel: bool, tmp_path: Path) -> None:
    """The points of a grid tell every coefficient they must: whole decode steps left out are told within 1 %, and
    where one kernel serves both, mixed attention and whole mixed steps left out within 5 %.
    """
    values = dict(KNOWN)
    if one_kernel:
        values |= {f"gqa.{fmt}.{name}": value for fmt in ("bf16", "fp8") for name, value in MIXING.items()}
    rows = timed(card_points(grid, one_kernel), values)
    assert collect([MACHINE, *rows]).skipped == 0
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [MACHINE, *rows]))
    timing = build([path], name="card").timing
    assert timing is not None
    assert timing.coefficients["step.launch_s"] == pytest.approx(values["step.launch_s"], rel=0.05)
    assert timing.max_capture_size == 512
    decode = [e for e in timing.errors if (e.family, e.regime) == ("step", "decode")]
    assert decode
    assert max(e.median for e in decode) < 0.01, decode
    mixed = [e for e in timing.errors if e.regime == "mixed"]
    kernels = {f"gqa.{name.replace('bfloat16', 'bf16')}" for name in grid.kv_dtypes}
    assert {e.family for e in mixed} == kernels | ({"step"} if one_kernel else set())
    if one_kernel:
        assert max(e.median for e in mixed) < 0.05, mixed
        assert not any("mixed" in name and name.startswith("gqa") for name in timing.assumed)


def test_a_family_with_too_few_points_does_not_cost_the_profile(tmp_path: Path) -> None:
    """MLA of one number of heads cannot be fitted: it is left out, said so, and the rest is as without it."""
    rows = timed(card_points(QUICK, True), KNOWN)
    few = [r for r in rows if not (r["op"] == "mla_decode" and r["num_heads"] == 16)]
    none = [r for r in rows if r["op"] != "mla_decode"]
    profiles = []
    for name, some in (("few", few), ("none", none)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in [MACHINE, *some]))
        profiles.append(build([path]).timing)
    assert "cannot tell" in profiles[0].assumed["mla.bf16"]
    assert profiles[0].coefficients == profiles[1].coefficients
    (tmp_path / "bad.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in [MACHINE, rows[0]]))
    with pytest.raises(KvplanError, match="step"):
        build([tmp_path / "bad.jsonl"])


@pytest.mark.parametrize("budget_s", [60, 150])
def test_what_fits_a_short_time_can_be_fitted(budget_s: float, tmp_path: Path) -> None:
    """A plan thinned to the time keeps its order and its stages, stays within it, and still tells every coefficient."""
    points, every = (card_points(DEFAULT, True, seconds) for seconds in (budget_s, float("inf")))
    assert len(points) < len(every)
    assert {p["op"] for p in points} == {p["op"] for p in every}
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [MACHINE, *timed(points, KNOWN)]))
    timing = build([path]).timing
    assert timing is not None
    assert not [why for why in timing.assumed.values() if why.startswith("left out")]
    held = [e for e in timing.errors if e.held_out == "points marked held_out" and e.regime == "decode"]
    assert max(e.median for e in held) < 0.02, held


def test_the_whole_grid_fits_twelve_minutes() -> None:
    """Planned by the floors of an H100: one round of all points, memory, host and batches; then two rounds more."""
    *stages_of, whole = stages.planned_on_an_h100(720.0)
    assert all(points == of for _, points, of, _ in stages_of)
    assert whole[3] <= 720.0
