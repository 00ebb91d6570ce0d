"""Watts and joules per token against ML.ENERGY's steady points; writes docs/validation/energy.md.

    python benchmarks/validate_energy.py ../shared/truth

The watts of a card (`timing/energy.py`) are fitted with one model family left out at a time; "predicted" also takes the
step time from terms that never saw the family. The values of `catalog/power.yaml` are the fit to all families.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import validate_engine as engine
from kvplan.engines.flags import EngineArgs
from kvplan.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.step_times import find_formats, model_work
from kvplan.timing.energy import Done, moved

PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation" / "energy.md"
TDP = {"H100": 700.0, "B200": 1000.0}
TERMS = ("idle", "weights", "kv", "compute")
HUBER = 0.1
Array = engine.Array


class Drawn(NamedTuple):
    """One point: what a step moves, how long it took and is predicted to take, watts of a GPU."""

    point: engine.Point
    per_step: tuple[float, float, float]
    """Seconds of bandwidth for weights and for KV, of the bf16 peak for FLOPs."""
    predicted_s: float

    @property
    def measured_s(self) -> float:
        return float(self.point.row["avg_batch_size"] / self.point.row["output_tokens_per_s"])

    @property
    def watts(self) -> float:
        return float(self.point.row["watts"] / self.point.row["num_gpus"])

    def design(self, step_s: float) -> Array:
        weights, kv, compute = (x / step_s for x in self.per_step)
        return np.array([1.0, weights, kv, np.sqrt(compute)])


def drawn(point: engine.Point, terms: Array) -> Drawn:
    row = point.row
    model = load_model(engine.SAME_SHAPE.get(row["model"], row["model"]))
    gpu, args = get_gpu(engine.CARDS[row["gpu"]]), EngineArgs(**engine.engine_args(row))
    batch = round(row["avg_batch_size"])
    done = Done(1, batch, batch, batch, batch * engine.mean_context(row))
    weights, kv, flops = moved(model_work(model, args, find_formats(model, args)), done)
    each = (weights / gpu.bandwidth, kv / gpu.bandwidth, flops / gpu.flops("bf16"))
    return Drawn(point, each, float(point.terms @ terms + point.kernels_s))


def fit(points: list[Drawn]) -> Array:
    from scipy.optimize import nnls

    families = [p.point.family for p in points]
    watts, tdp = np.array([p.watts for p in points]), TDP[points[0].point.row["gpu"]]
    design = np.array([p.design(p.measured_s) for p in points])
    weight = 1 / watts / np.sqrt([families.count(f) for f in families])
    trust, found = np.ones(len(points)), np.zeros(len(TERMS))
    for _ in range(10):
        found, _ = nnls(design * (weight * trust)[:, None], watts * weight * trust)
        error = np.abs(np.minimum(design @ found, tdp) - watts) / watts
        trust = np.sqrt(np.minimum(1, HUBER / np.maximum(error, 1e-9)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    rows = engine.read_rows(parser.parse_args().truth / "serving" / "mlenergy" / "points.jsonl")
    points = [p for row in rows if engine.is_clean(row) and (p := engine.point(row)) is not None]
    fits = engine.left_out_fits(points)
    every = [drawn(p, fits[p.family]) for p in points]
    errors: dict[str, list[float]] = {
        "watts, measured step": [],
        "watts, predicted step": [],
        "J/token, all predicted": [],
    }
    tasks, lines = (
        [],
        ["| card | points | idle | weights | kv | compute | TDP |", "|---|---|---|---|---|---|---|"],
    )
    for card, tdp in TDP.items():
        mine = [p for p in every if p.point.row["gpu"] == card]
        lines.append(f"| {card} | {len(mine)} | {' | '.join(f'{v:.0f}' for v in fit(mine))} | {tdp:.0f} |")
        for family in sorted({p.point.family for p in mine}):
            found = fit([p for p in mine if p.point.family != family])
            for p in (p for p in mine if p.point.family == family):
                row = p.point.row
                known, told = (min(tdp, float(p.design(s) @ found)) for s in (p.measured_s, p.predicted_s))
                joules = told * row["num_gpus"] * p.predicted_s / row["avg_batch_size"]
                for name, error in zip(
                    errors, (known / p.watts, told / p.watts, joules / row["joules_per_token"]), strict=True
                ):
                    errors[name].append(error - 1)
                tasks.append(row["task"])
    gpqa = np.array(tasks) == "gpqa"
    table = ["| figure | points | median | p90 | bias |", "|---|---|---|---|---|"]
    for name, found in errors.items():
        table.append(f"| {name} | all {len(found)} | {engine.spread(found)} |")
        table.append(f"| {name} | GPQA {gpqa.sum()} | {engine.spread(np.array(found)[gpqa])} |")
    PAGE.write_text(f"""# Watts and joules per token

Made by `benchmarks/validate_energy.py` from ML.ENERGY's clean points of vLLM 0.11.1: watts of a GPU by what it moves
and multiplies, a model family left out. Two runs of one setting differ by 14 % in watts.

{chr(10).join(lines)}

{chr(10).join(table)}

All other cards take shares of their board power between these two: assumed, 0.6 to 1.4 of the figure.
""")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
