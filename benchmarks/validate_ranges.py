"""How far step times may be off, from models left out; writes catalog/step_errors.yaml and docs/validation/ranges.md.

    python benchmarks/validate_ranges.py ../shared/truth [--every 5]

Points of one regime (engine and version, kernel tables or whole steps of the card, dense or mixture) give measured over
predicted decode steps, and first tokens. A family's range is made from the *other* families; how many of its points
fall inside is what the page says: of decode steps directly, of the silicon sample's and LLMServingSim's latencies
through simulations at both ends.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import llmservingsim, silicon
from benchmarks import validate_engine as engine
from kvplan.engines.flags import EngineArgs
from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.step_times import find_formats

PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation" / "ranges.md"
INSIDE = 0.9
SPREAD = 1.15
"""Ranges are wider than the quantiles of the families seen by this: the next family is another one."""
SPREAD_OF_FEW = {1: math.inf, 2: 4.70, 3: 2.05}
"""The same where so few families were seen: Student's 95 % quantile times sqrt(1 + 1 / n), over the normal's 1.645."""
FEW = 48
"""Sequences of a small batch."""
WANTED = 1.6
"""Half of a range's width over the median error, as was hoped for; a normal error with 90 % inside has 2.4."""
MANY = 20
"""Points of a regime whose share inside is told."""
WINDOW = 30
"""Requests of LLMServingSim's runs that are one point: those that arrived after each other."""
STEPS = "whole steps"
"""The regime of a card whose profile rests on whole steps of its own."""


class Seen(NamedTuple):
    """One point: ln(measured / predicted) of its decode step and first token, and where it lies."""

    regime: str
    kind: str
    family: str
    ratio: float
    first: float = math.nan
    """NaN: no first tokens, or the server held them back by flags that are not simulated."""
    batch: float = 0.0
    """Sequences in a step; 0: not told."""
    context: float = 0.0
    weights: str = ""
    gpus: int = 0
    card: str = ""
    row: silicon.Row | None = None
    window: tuple[llmservingsim.Run, slice] | None = None
    real: tuple[float, float] = (math.nan, math.nan)
    """Measured (TPOT, TTFT) in milliseconds, of points that are simulated at both ends."""

    @property
    def engine(self) -> str:
        return silicon.ENGINES[self.row["backend"]] if self.row else "vllm"


def of_mlenergy(path: Path) -> Iterable[Seen]:
    """vLLM 0.11.1's steady points by terms that never saw the point's family."""
    rows = [row for row in engine.read_rows(path) if engine.is_clean(row)]
    points = [p for row in rows if (p := engine.point(row)) is not None]
    fits = engine.left_out_fits(points)
    for p in points:
        said = float(p.terms @ fits[p.family] + p.kernels_s)
        model = load_model(engine.SAME_SHAPE.get(p.row["model"], p.row["model"]))
        yield Seen(
            "vllm 0.11", "mixture" if model.is_moe else "dense", p.family, math.log(p.itl_s / said),
            batch=p.row["avg_batch_size"], context=engine.mean_context(p.row), gpus=int(p.row["num_gpus"]),
            weights=find_formats(model, EngineArgs())["expert_format"], card=get_gpu(engine.CARDS[p.row["gpu"]]).name,
        )  # fmt: skip


def of_blis(path: Path) -> Iterable[Seen]:
    """vLLM 0.15.1's stages that were not overloaded."""
    for run in engine.read_rows(path):
        if any(stage["failed"] for stage in run["measured_by_stage"]):
            continue
        for stage in engine.replay(run):
            name = run["flags"]["model"].rpartition("/")[2]
            steps, first = (-math.log1p(stage.error(figure)) for figure in ("TPOT", "TTFT"))
            yield Seen(
                "tables",
                "dense",
                name,
                steps,
                first,
                card=get_gpu("h100").name,
                gpus=run["flags"]["tensor_parallelism"],
            )


def of_silicon(found: Iterable[silicon.Point]) -> Iterable[Seen]:
    """TensorRT-LLM, SGLang and newer vLLM; rows that state their weights.

    SGLang's servers there receive and send in intervals, which is not simulated: their first tokens are left out.
    """
    for p in found:
        row, model = p.row, silicon.known_model(p.row["model_path"])
        if not silicon.states_weights(row) or model is None:
            continue
        where = silicon.parallel(row)
        held_back = row["backend"] == "sglang" and silicon.is_inferencemax(row)
        yield Seen(
            "tables", "mixture" if p.moe else "dense",
            row["model_path"].rpartition("/")[2].partition("-V3")[0].partition("-R1")[0],
            -math.log1p(p.tpot_error), math.nan if held_back else -math.log1p(p.ttft_error),
            batch=float(row["concurrency"] or 0), context=int(row["isl"]) + int(row["osl"]) / 2,
            weights=silicon.formats(row, model)[1], gpus=where.tensor * where.data,
            card=silicon.GPUS[row["system"]], row=row,
            real=(float(row["silicon_tpot_ms"]), float(row["silicon_ttft_ms"])),
        )  # fmt: skip


def of_llmservingsim(folder: Path) -> Iterable[Seen]:
    """vLLM 0.19 on two cards whose steps were timed on another model: means of requests that arrived after each other.

    Windows of one run see each other through its queue; what counts is that their families are left out.
    """
    for run in llmservingsim.RUNS:
        real, said = llmservingsim.measured(run, folder), llmservingsim.simulated(run, folder)
        model, asked = load_model(run.model), llmservingsim.requests(run, folder)
        for start in range(0, len(asked), WINDOW):
            part = slice(start, start + WINDOW)
            tpot, ttft = float(real.tpot[part].mean()), float(real.ttft[part].mean())
            yield Seen(
                STEPS, "all", run.model.rpartition("/")[2], math.log(tpot / said.tpot[part].mean()),
                math.log(ttft / said.ttft[part].mean()), gpus=run.num_gpus, card=get_gpu(run.gpu).name,
                context=float(np.mean([int(r["input_tokens"]) + int(r["output_tokens"]) / 2 for r in asked[part]])),
                weights=find_formats(model, EngineArgs())["expert_format"], window=(run, part), real=(tpot, ttft),
            )  # fmt: skip


def quantiles(points: Sequence[Seen], figure: str = "ratio") -> tuple[float, float]:
    """5 and 95 % of the logarithms, every family weighing alike, wider about their middle by the families' number."""
    names = [p.family for p in points]
    spread = SPREAD_OF_FEW.get(len(set(names)), SPREAD)
    ratio = np.array([getattr(p, figure) for p in points])
    weight = 1 / np.array([names.count(n) for n in names])
    order = np.argsort(ratio)
    share = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    low, middle, high = (
        float(np.interp(q, share, ratio[order])) for q in ((1 - INSIDE) / 2, 0.5, (1 + INSIDE) / 2)
    )
    return middle + spread * (low - middle), middle + spread * (high - middle)


def other_families(p: Seen, points: Iterable[Seen]) -> list[Seen]:
    return [q for q in points if q.family != p.family]


class Regime(NamedTuple):
    """Points whose range is one, and how it fared on families left out."""

    name: str
    kind: str
    points: list[Seen]
    figure: str = "ratio"

    @property
    def families(self) -> list[str]:
        return sorted({p.family for p in self.points})

    def covers(self, p: Seen) -> bool:
        """Whether a point lies in the range that the other families make."""
        low, high = quantiles(other_families(p, self.points), self.figure)
        return bool(low <= getattr(p, self.figure) <= high)

    @property
    def inside(self) -> float:
        return float(np.mean([self.covers(p) for p in self.points]))

    @property
    def half_width(self) -> float:
        """Half of the range's width, a share of the prediction."""
        low, high = quantiles(self.points, self.figure)
        return (math.exp(high) - math.exp(low)) / 2

    @property
    def median(self) -> float:
        """Of |predicted / measured - 1|."""
        return float(np.median(np.abs(np.expm1([-getattr(p, self.figure) for p in self.points]))))

    def halves(self) -> list[Regime]:
        """Small and large batches apart, where three families have both."""
        told = [p for p in self.points if p.batch]
        parts = [
            Regime(self.name, f"{self.kind}, up to {FEW} sequences", [p for p in told if p.batch <= FEW]),
            Regime(self.name, f"{self.kind}, more", [p for p in told if p.batch > FEW]),
        ]
        return [r for r in parts if len(r.families) >= 3]

    def line(self) -> str:
        low, high = (math.exp(x) - 1 for x in quantiles(self.points, self.figure))
        return (
            f"| {self.name} | {self.kind} | {len(self.points)} | {len(self.families)} | {low:+.0%} to {high:+.0%} | "
            f"{self.half_width:.1%} | {self.median:.1%} | {self.half_width / self.median:.1f} | {self.inside:.0%} |"
        )


WHO = {
    "vllm 0.11": [{"engine": "vllm", "since": [0, 11], "until": [0, 12]}],
    "tables": [{"engine": "vllm", "since": [0, 12]}, {"engine": "tensorrt-llm"}, {"engine": "sglang"}],
    STEPS: [{"engine": "vllm"}],
}
SOURCES = {
    "vllm 0.11": "ML.ENERGY, vLLM 0.11.1 on H100 and B200",
    "tables": "BLIS's runs and aiconfigurator's silicon sample: vLLM 0.15 to 0.19, TensorRT-LLM, SGLang",
    STEPS: "LLMServingSim's four runs of vLLM 0.19 on RTX 4090 and PRO 6000, ten windows each",
}


def prompt_points(kind: str, seen: Iterable[Seen]) -> list[Seen]:
    """First tokens of a class of models, all engines together: each alone has too few families."""
    return [p for p in seen if p.kind == kind and not math.isnan(p.first)]


def ends(p: Seen, seen: list[Seen]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(quick, slow): how many times as long steps, and what prompts add to them, may take by the other families."""
    steps = quantiles(other_families(p, (q for q in seen if (q.regime, q.kind) == (p.regime, p.kind))))
    others = other_families(p, prompt_points(p.kind, seen))
    quick, slow = zip(steps, quantiles(others, "first"), strict=True)
    return (math.exp(quick[0]), math.exp(quick[1])), (math.exp(slow[0]), math.exp(slow[1]))


FIGURES = ("tpot", "ttft")


class Ranged(NamedTuple):
    """A point and its (TPOT, TTFT) simulated as predicted and at both ends of other families' range, milliseconds."""

    seen: Seen
    runs: tuple[tuple[float, float], ...]

    def values(self, figure: str) -> list[float]:
        return [run[FIGURES.index(figure)] for run in self.runs]

    def is_inside(self, figure: str) -> bool:
        values = self.values(figure)
        return min(values) <= self.seen.real[FIGURES.index(figure)] <= max(values)

    def half_width(self, figure: str) -> float:
        values = self.values(figure)
        return (max(values) - min(values)) / values[0] / 2


def through_the_queue(p: Seen, quick: tuple[float, float], slow: tuple[float, float], folder: Path) -> Ranged:
    """`folder`: of LLMServingSim's runs."""
    return Ranged(p, tuple(simulate_at(p, end, folder) for end in ((1.0, 1.0), quick, slow)))


def simulate_at(p: Seen, end: tuple[float, float], folder: Path) -> tuple[float, float]:
    """(TPOT, TTFT) in milliseconds where steps and prompts take so many times as long."""
    if p.window is not None:
        run, part = p.window
        found = llmservingsim.simulated(run, folder, ends=end)
        return float(found.tpot[part].mean()), float(found.ttft[part].mean())
    assert p.row is not None
    point = silicon.point(p.row, silicon.Reading(ends=end))
    assert point is not None  # it had a prediction to be seen by
    return point.tpot, point.ttft


def _upto(value: float, few: int, some: int) -> str:
    """Which of three ranges; none where nothing is told."""
    return "" if not value else f"to {few}" if value <= few else f"to {some}" if value <= some else "more"


DIMENSIONS: dict[str, Callable[[Seen], str]] = {
    "evidence": lambda p: p.regime if p.regime == STEPS else "kernel tables",
    "class": lambda p: p.kind.replace("all", ""),
    "engine": lambda p: "vllm 0.11" if p.regime == "vllm 0.11" else p.engine,
    "sequences": lambda p: _upto(p.batch, 8, FEW),
    "context": lambda p: _upto(p.context, 2048, 8192),
    "weights": lambda p: p.weights,
    "GPUs": lambda p: _upto(p.gpus, 1, 4),
    "card": lambda p: p.card,
}  # fmt: skip


def by_regime(step: list[tuple[Seen, bool]], queue: list[Ranged]) -> list[str]:
    """Shares inside by each dimension, of regimes with `MANY` points."""
    lines = [
        "| by | regime | decode steps | inside | simulated | TPOT inside | TTFT inside |",
        "|---" * 7 + "|",
    ]
    for name, of in DIMENSIONS.items():
        for value in sorted({of(p) for p, _ in step} - {""}):
            hits = [hit for p, hit in step if of(p) == value]
            runs = [r for r in queue if of(r.seen) == value]
            if len(hits) < MANY:
                continue
            told = [f"{np.mean([r.is_inside(f) for r in _told(runs, f)]):.0%}" if len(_told(runs, f)) >= MANY else ""
                    for f in ("tpot", "ttft")]  # fmt: skip
            lines.append(
                f"| {name} | {value} | {len(hits)} | {np.mean(hits):.0%} | {len(runs)} | {' | '.join(told)} |"
            )
    return lines


def _told(runs: list[Ranged], figure: str) -> list[Ranged]:
    return [r for r in runs if figure == "tpot" or not math.isnan(r.seen.first)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    parser.add_argument(
        "--every", type=int, default=5, help="simulate every n-th point of the silicon sample"
    )
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    serving = args.truth / "serving"
    rows = silicon.sample(serving / "aic_silicon_sample.csv")[:: args.every]
    with ProcessPoolExecutor(args.workers) as workers:
        found = [p for p in workers.map(silicon.point, rows, chunksize=4) if p is not None]
        seen = [*of_mlenergy(serving / "mlenergy" / "points.jsonl"), *of_blis(serving / "blis" / "runs.jsonl"),
                *of_silicon(found), *of_llmservingsim(serving / "llmservingsim")]  # fmt: skip
        asked = [(p, *ends(p, seen), serving / "llmservingsim") for p in seen if p.row or p.window]
        queue = list(workers.map(through_the_queue, *zip(*asked, strict=True), chunksize=4))
    write_catalog(seen)
    write_page(seen, queue)


def write_catalog(seen: list[Seen]) -> None:
    rows = []
    for r in regimes_of(seen):
        low, high = (round(math.exp(x), 3) for x in quantiles(r.points))
        first, last = quantiles(prompt_points(r.kind, seen), "first")
        for who in WHO[r.name]:
            rows.append(who | {
                "evidence": "steps" if r.name == STEPS else "tables",
                "kind": None if r.kind == "all" else r.kind, "low": low, "high": high,
                "prompt_low": round(math.exp(first), 3), "prompt_high": round(math.exp(last), 3),
                "median": round(r.median, 4), "num_points": len(r.points),
                "num_families": len(r.families), "source": SOURCES[r.name],
            })  # fmt: skip
    comment = (
        "# How far step times may be off. Made by benchmarks/validate_ranges.py, read by profiles/doubt.py\n"
    )
    path = catalog_dir() / "step_errors.yaml"
    path.write_text(comment + yaml.safe_dump(rows, sort_keys=False, width=118))


def regimes_of(seen: list[Seen]) -> list[Regime]:
    keys = sorted({(p.regime, p.kind) for p in seen}, reverse=True)
    return [Regime(*key, [p for p in seen if (p.regime, p.kind) == key]) for key in keys]


def write_page(seen: list[Seen], queue: list[Ranged]) -> None:
    head = ("regime", "class", "points", "families", "range", "half its width", "median error", "of it",
            "left out, inside")  # fmt: skip
    top = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    regimes = regimes_of(seen)
    parts = [part for r in regimes for part in r.halves()]
    prompts = [
        Regime(name, kind, prompt_points(kind, seen), "first")
        for name, kind in (("tables", "mixture"), ("tables", "dense"), (STEPS, "all"))
    ]
    step = [(p, r.covers(p)) for r in regimes for p in r.points]
    apart = [r.covers(p) for r in parts for p in r.points]
    least = min(r.half_width / r.median for r in [*regimes, *parts])
    worst = [
        f"| {r.name} | {r.kind} | {family} | {np.mean([r.covers(p) for p in r.points if p.family == family]):.0%} |"
        for r in regimes
        for family in r.families
    ]
    first = _told(queue, "ttft")
    hits = (
        [hit for _, hit in step] + [r.is_inside("tpot") for r in queue] + [r.is_inside("ttft") for r in first]
    )
    PAGE.write_text(f"""# Ranges of step times

Made by `benchmarks/validate_ranges.py`. A range is made of measured over predicted decode steps, 5 to 95 % of the
points of a regime with every family of models weighing alike, widened by {SPREAD - 1:.0%} (as Student's quantiles are
where two or three families are known). Here each family's points are held to the range of the *other* families:
{np.mean([hit for _, hit in step]):.0%} of {len(step)} lie inside.

{chr(10).join([*top, *(r.line() for r in regimes)])}

"Of it": half of the width over the median error. {WANTED} was hoped for; errors that are normal and 90 % inside
have 2.4, and no regime here has less than {least:.1f}.

What prompts add to a step errs more, and has a range of its own: measured over predicted first tokens, all engines
together. SGLang's servers of the sample receive and send in intervals that are not simulated: left out.

{chr(10).join([*top, *(r.line() for r in prompts)])}

Simulations are repeated at both ends, so that queues amplify what they amplify. {len(queue)} points of the silicon
sample and of LLMServingSim's runs were, at the ends that the other families make:
{np.mean([r.is_inside("tpot") for r in queue]):.0%} of TPOT and {np.mean([r.is_inside("ttft") for r in first]):.0%} of
{len(first)} TTFT lie inside; half of the width is {np.median([r.half_width("tpot") for r in queue]):.0%} and
{np.median([r.half_width("ttft") for r in first]):.0%} in the median. Steps, TPOT and TTFT together:
{np.mean(hits):.1%} of {len(hits)} figures lie inside. Shares by regime, where {MANY} points are:

{chr(10).join(by_regime(step, queue))}

| regime | class | family left out | decode steps inside |
|---|---|---|---|
{chr(10).join(worst)}

Small and large batches apart, by the same rule ({np.mean(apart):.0%} of {len(apart)} left-out points inside):

{chr(10).join([*top, *(r.line() for r in parts)])}

They are not used: a step of {FEW + 1} sequences would be quicker than one of {FEW} at the slow end, and closed forms
rest on steps that do not shorten when work is added.

"{STEPS.capitalize()}": cards whose profile rests on steps timed on them; a point is the mean of {WINDOW} requests that
arrived after each other. A card without a profile: half to twice, prompts 0.4 to 3 times (assumed). Rows
whose weights are not stated are left out.
""")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
