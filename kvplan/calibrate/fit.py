"""Measurements in, a timing profile out: positive coefficients, held-out errors, bootstrap draws.

Kernel rows fix their own family's coefficients; whole-step rows fix what is left (fixed times, or everything when
there are no kernel rows). A coefficient the rows cannot tell is an error that says what to measure, unless the
caller states it (`assume`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from kvplan.calibrate.measurements import Measurements, Row
from kvplan.calibrate.predict import (
    HINTS,
    Term,
    attention_term,
    column,
    gemm_term,
    predict_family,
    predict_steps,
    rough_rates,
    shapes,
    step_key,
    step_subject,
)
from kvplan.calibrate.solve import Array, Predict, Prior, Solution, blind_spots, sensitivities, solve
from kvplan.errors import KvplanError
from kvplan.gpu import GpuSpec
from kvplan.timing_profile import RegimeError, TimingProfile

NOISE = 0.02
"""Relative error of a row that a prior is weighed against."""
EFFECTIVE_ROWS = 200
"""However many rows a family has, beliefs weigh as against this many."""
NUM_DRAWS = 16
UNFELT = 5e-3
"""A coefficient whose doubling changes no row by more than about this share is not measured."""
SOFT = ("p_norm", "kernel_s", "row_s", "extra_keys", "mixed_crowding", "mixed_block_s", "serial_bytes_per_s")
"""Fields that shape a term; rows that do not feel them leave them at the belief, marked as assumed."""
EXTRA_KEYS = Prior(400.0, 0.1)
"""In whole steps, products and attention both grow with the prompt's tokens: this share is what kernels showed."""
BINS = (0, 1024, 4096, 16384, 65536, math.inf)
"""Context ranges that are left out in turn."""

Regime = Literal["decode", "prefill", "mixed", "gemm", "moe", "all_reduce"]


class Problem(NamedTuple):
    """One family to fit: rows, how to predict them, where to start, what is believed."""

    name: str
    rows: list[Row]
    term: Term
    build: Callable[[Sequence[Row]], Predict]


class Fitted(NamedTuple):
    """One family's outcome."""

    values: dict[str, float]
    assumed: dict[str, str]
    errors: list[RegimeError]
    draws: list[dict[str, float]]


def fit(
    measurements: Measurements,
    *,
    gpu: GpuSpec | None = None,
    assume: Mapping[str, tuple[float, str]] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> TimingProfile:
    """Fit every family of the measurements.

    `assume` maps a coefficient (or a bare field, for every family) to a value and its reason; infinity as a rate
    means that the term costs nothing.
    """
    given = dict(assume or {})
    rng = np.random.default_rng(seed)
    parts: list[Fitted] = []
    known: dict[str, float] = {}
    for name, rows in sorted(measurements.families.items(), key=_order):
        eager = bool(measurements.machine.get("enforce_eager"))
        term = step_term(rows, known, gpu, eager) if name == "step" else _kernel_term(name, rows, gpu)
        problem = _problem(name, rows, term, known)
        if gpu is None:
            given = _merge_fixed(term) | given
            problem = _to_scale(problem)
        part = _fit_family(problem, given, num_draws, rng)
        parts.append(part)
        known |= part.values
    coefficients = known | {k: v for k, (v, _) in given.items() if "." in k and math.isfinite(v)}
    stated = {k: why for k, (_, why) in given.items() if "." in k}
    return TimingProfile(
        coefficients={k: float(f"{v:.6g}") for k, v in sorted(coefficients.items())},
        assumed=stated | {k: why for part in parts for k, why in part.assumed.items()},
        errors=tuple(error for part in parts for error in part.errors),
        ranges=measured_ranges([row for rows in measurements.families.values() for row in rows]),
        draws=tuple(_merged(parts, i) for i in range(num_draws)),
        host_overlaps=bool(measurements.machine.get("async_scheduling", False)),
        max_capture_size=int(measurements.machine.get("max_capture_size", 0)),
        num_points=sum(len(rows) for rows in measurements.families.values()),
    )


def _order(item: tuple[str, list[Row]]) -> tuple[bool, str]:
    """Products first (MLA blocks include some), whole steps last."""
    return item[0] == "step", item[0]


def _merged(parts: Sequence[Fitted], index: int) -> dict[str, float]:
    return {k: float(f"{v:.6g}") for part in parts if part.draws for k, v in part.draws[index].items()}


def _problem(name: str, rows: list[Row], term: Term, known: Mapping[str, float]) -> Problem:
    held = dict(known)
    if name == "step":
        return Problem(name, rows, term, lambda some: predict_steps(some, held))
    return Problem(name, rows, term, lambda some: predict_family(name, some, held))


def _merge_fixed(term: Term) -> dict[str, tuple[float, str]]:
    """One model on a card without a data sheet: fixed time per layer cannot be told from reading weights."""
    if "step.layer_s" not in term.start or "step.step_s" in term.start:
        return {}
    why = "one depth, no data sheet: fixed time per layer is inside the weights' read rate; other models will differ"
    return {"step.layer_s": (0.0, why)}


def _to_scale(problem: Problem) -> Problem:
    """Start an unknown machine where its rows are: all rates and times scaled alike, beliefs about times dropped."""
    measured = column(problem.rows, "time_s")
    start = problem.term.start
    for _ in range(3):  # the parts do not all scale, so once is not enough
        ratio = float(np.median(measured / problem.build(problem.rows)(start)))
        start = {k: _scaled(k, v, ratio) for k, v in start.items()}
    pure = {k: p for k, p in problem.term.priors.items() if not k.endswith("_s")}
    return problem._replace(term=Term(start, pure))


def _kernel_term(name: str, rows: Sequence[Row], gpu: GpuSpec | None) -> Term:
    kind, fmt = name.split(".", 1)
    if kind in ("gemm", "moe"):
        return gemm_term(name, gpu, fmt, rough_rates(rows))
    if kind == "reduce":
        return Term({f"{name}.kernel_s": 5e-6, f"{name}.bytes_per_s": 1e11}, {})
    return attention_term(name, gpu, rough_rates(rows))


def step_term(
    rows: Sequence[Row], known: Mapping[str, float], gpu: GpuSpec | None, eager: bool = False
) -> Term:
    """Whole steps fix what no kernel row did; with one depth, everything fixed counts per layer.

    An eager engine on a GPU is bound by its launches instead: they stand in for the fixed time of layers.
    """
    subjects = {step_key(row): step_subject(step_key(row)) for row in rows}
    depths = {work.num_layers for work, _ in subjects.values()}
    fixed = Prior(3e-4, 0.7) if eager else Prior(2e-5, 0.7)
    name = "step.launch_s" if eager else "step.layer_s"
    start, priors = {name: fixed.middle}, {name: fixed}
    if len(depths) > 1:
        start |= {"step.step_s": 1e-4, "step.row_s": 1e-6}
        priors |= {"step.step_s": Prior(1e-4, 1.5), "step.row_s": Prior(1e-6, 1.5)}
    terms = []
    for _, formats in subjects.values():
        weight = "bf16" if formats["weight_format"] == "float32" else formats["weight_format"]
        kv = "bf16" if formats["kv_format"] == "float32" else formats["kv_format"]
        kind = "mla" if formats["mla"] else "gqa"
        rough = rough_rates(rows)
        terms += [
            gemm_term(f"gemm.{weight}", gpu, weight, rough),
            attention_term(f"{kind}.{kv}", gpu, rough),
        ]
    for term in terms:
        fresh = {k: v for k, v in term.start.items() if k not in known and not k.endswith("kernel_s")}
        start |= fresh
        priors |= {k: v for k, v in term.priors.items() if k in fresh}
        priors |= {k: EXTRA_KEYS for k in fresh if k.endswith("extra_keys")}
    ranks = {work.num_ranks for work, _ in subjects.values()} - {1}
    start |= {f"reduce.{n}.bytes_per_s": 5e10 for n in ranks if f"reduce.{n}.bytes_per_s" not in known}
    priors |= {
        f"reduce.{n}.bytes_per_s": Prior(5e10, 1.0) for n in ranks if f"reduce.{n}.bytes_per_s" in start
    }
    return Term(start, priors)


def _fit_family(
    problem: Problem, given: Mapping[str, tuple[float, str]], num_draws: int, rng: np.random.Generator
) -> Fitted:
    held = _stated(problem.term, given)
    term = Term(
        {k: v for k, v in problem.term.start.items() if k not in held},
        {k: v for k, v in problem.term.priors.items() if k not in held},
    )
    build = problem.build
    problem = problem._replace(term=term, build=lambda rows: _with(build(rows), held))
    rows = [row for row in problem.rows if not row.get("held_out")]
    assumed = _identify(problem, rows)
    solution = run(problem, rows, term.start)
    errors = held_out_errors(problem, rows, solution)
    assumed |= _unfelt(problem, rows, solution)
    draws = bootstrap(problem, rows, solution, errors, num_draws, rng)
    values = solution.values | {k: v for k, (v, _) in given.items() if k in held and math.isfinite(v)}
    values |= {k: v for k, v in held.items() if math.isfinite(v)}
    return Fitted(values, assumed | {k: _reason(k, given) for k in held}, errors, draws)


def _stated(term: Term, given: Mapping[str, tuple[float, str]]) -> dict[str, float]:
    """Coefficients of a term that the caller states, by full name or by bare field."""
    found = {}
    for name in term.start:
        field = name.rsplit(".", 1)[1]
        if name in given or field in given:
            found[name] = given.get(name, given.get(field, (0.0, "")))[0]
    return found


def _reason(name: str, given: Mapping[str, tuple[float, str]]) -> str:
    return given.get(name, given.get(name.rsplit(".", 1)[1], (0.0, "")))[1]


def _with(predict: Predict, held: Mapping[str, float]) -> Predict:
    return lambda v: predict({**v, **held})


def run(
    problem: Problem, rows: Sequence[Row], start: Mapping[str, float], max_iterations: int = 60
) -> Solution:
    """Solve one family, its beliefs as extra rows; every regime weighs the same, however many rows it has."""
    return _solve(problem, rows, column(rows, "time_s"), start, max_iterations)


def _solve(
    problem: Problem, rows: Sequence[Row], measured: Array, start: Mapping[str, float], max_iterations: int
) -> Solution:
    predict, priors = problem.build(rows), problem.term.priors
    regimes = np.array([regime(row) for row in rows])
    share = {name: np.mean(regimes == name) for name in set(regimes.tolist())}
    total = min(len(rows), EFFECTIVE_ROWS)
    weights = np.array([total / (len(rows) * len(share) * share[name]) for name in regimes.tolist()])

    def with_beliefs(v: Mapping[str, float]) -> Array:
        pulls = [(v[k] / p.middle) ** (NOISE / p.width) for k, p in priors.items()]
        return np.concatenate([predict(v), pulls])

    target = np.concatenate([measured, np.ones(len(priors))])
    weights = np.concatenate([weights, np.ones(len(priors))])
    found = solve(with_beliefs, start, target, weights=weights, max_iterations=max_iterations)
    return Solution(found.values, found.residuals[: len(rows)])


def _identify(problem: Problem, rows: Sequence[Row]) -> dict[str, str]:
    """Raise for coefficients these rows cannot tell; return the soft ones they leave at the belief.

    A search starts at a GPU's fixed times. On a machine a hundred times slower they would not be felt there, so
    what is not felt at the start is looked for again where the search ends.
    """
    start = problem.term.start
    try:
        return _identify_at(problem, rows, start)
    except KvplanError:
        if len(rows) < 3:
            raise
        return _identify_at(problem, rows, run(problem, rows, start).values)


def _identify_at(problem: Problem, rows: Sequence[Row], values: Mapping[str, float]) -> dict[str, str]:
    """Identify with the sensitivities at `values`."""
    names = list(problem.term.start)
    if len(rows) < 3:
        raise KvplanError(
            f"{problem.name}: {len(rows)} rows are too few for {_listed(names)}; measure {_hint(names)}"
        )
    jacobian = sensitivities(problem.build(rows), values)
    soft = {}
    hard = [i for i, name in enumerate(names) if name.rsplit(".", 1)[1] not in SOFT]
    for blind in blind_spots(jacobian, names):
        if len(blind.names) == 1 and blind.names[0].rsplit(".", 1)[1] in SOFT:
            soft[blind.names[0]] = "not felt by the measured points; the value is a belief"
    kept = [names[i] for i in hard]
    leaning = blind_spots(jacobian[:, hard], kept)
    if leaning:
        beliefs = [i for i, name in enumerate(kept) if _on_data_sheet(name, problem.term)]
        known = np.vstack([jacobian[:, hard], 0.5 * np.eye(len(kept))[beliefs]])
        unseen = [b for b in leaning if len(b.names) == 1]
        for blind in unseen + [b for b in blind_spots(known, kept) if len(b.names) > 1]:
            _complain(problem.name, blind.names)
        for name in {n for b in leaning for n in b.names if _on_data_sheet(n, problem.term)}:
            soft[name] = "the measured points cannot tell it from fixed times; leans on the card's data sheet"
    return soft


def _on_data_sheet(name: str, term: Term) -> bool:
    """Whether a coefficient is a memory rate that a known card bounds closely."""
    return name.endswith(".bytes_per_s") and name.startswith("gemm") and name in term.priors


def _unfelt(problem: Problem, rows: Sequence[Row], solution: Solution) -> dict[str, str]:
    """Coefficients that turned out too small to see: what is known of them is a bound, and the profile says so."""
    size = np.abs(sensitivities(problem.build(rows), solution.values)).max(axis=0)
    why = "below 0.5 % of every measured point: a bound, not a measurement"
    return {name: why for name, felt in zip(solution.values, size, strict=True) if felt < UNFELT}


def _complain(family: str, names: Sequence[str]) -> None:
    field = names[0].rsplit(".", 1)[1]
    if len(names) == 1:
        raise KvplanError(
            f"{family}: no row tells {names[0]}; measure {_hint(names)}, or state it: --assume {names[0]}=VALUE"
        )
    raise KvplanError(
        f"{family}: the rows cannot tell {_listed(names)} apart (they only change together); measure {_hint(names)}, "
        f"or state one: --assume {names[0].rsplit('.', 1)[0]}.{field}=VALUE"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _hint(names: Sequence[str]) -> str:
    hints = dict.fromkeys(HINTS.get(name.rsplit(".", 1)[1], "") for name in names)
    return "; ".join(h for h in hints if h) or "more points"


def held_out_errors(problem: Problem, rows: list[Row], solution: Solution) -> list[RegimeError]:
    """Errors on points the fit had not seen: context ranges left out in turn, models likewise, marked rows."""
    found: list[RegimeError] = []
    for what, label in (("ranges left out in turn", _range_of), ("models left out in turn", _model_of)):
        labels = np.array([label(row) for row in rows])
        if len(set(labels.tolist())) > 1:
            found += _left_out(problem, rows, labels, solution, what)
    marked = [row for row in problem.rows if row.get("held_out")]
    if marked:
        ratio = np.log(problem.build(marked)(solution.values) / column(marked, "time_s"))
        found += _summaries(problem.name, marked, ratio, "points marked held_out")
    return found


def _left_out(
    problem: Problem, rows: list[Row], labels: Any, solution: Solution, what: str
) -> list[RegimeError]:
    seen: list[Row] = []
    ratios: list[Array] = []
    for label in sorted(set(labels.tolist())):
        inside = [row for row, one in zip(rows, labels, strict=True) if one != label]
        outside = [row for row, one in zip(rows, labels, strict=True) if one == label]
        if len(inside) < max(3, len(problem.term.start)):
            continue
        again = run(problem, inside, solution.values, 15)
        ratios.append(np.log(problem.build(outside)(again.values) / column(outside, "time_s")))
        seen += outside
    return _summaries(problem.name, seen, np.concatenate(ratios), what) if ratios else []


def _summaries(family: str, rows: Sequence[Row], ratio: Array, what: str) -> list[RegimeError]:
    regimes = np.array([regime(row) for row in rows])
    found = []
    for name in sorted(set(regimes.tolist())):
        part = ratio[regimes == name]
        size = np.abs(np.expm1(part))
        found.append(
            RegimeError(
                regime=name,
                family=family,
                held_out=what,
                num_points=len(part),
                median=round(float(np.median(size)), 4),
                p95=round(float(np.quantile(size, 0.95)), 4),
                bias=round(float(part.mean()), 4),
            )
        )
    return found


def bootstrap(
    problem: Problem, rows: Sequence[Row], solution: Solution, errors: Sequence[RegimeError], num_draws: int,
    rng: np.random.Generator,
) -> list[dict[str, float]]:  # fmt: skip
    """Refits to resampled residuals, each scaled by a common error as large as the held-out bias.

    Residuals alone would say how well the coefficients of these points are known; a question about other
    points or another model is off by what the held-out points were off together.
    """
    predicted = problem.build(rows)(solution.values)
    common = max((abs(error.bias) for error in errors), default=0.0)
    draws = []
    for _ in range(num_draws):
        noise = rng.choice(solution.residuals, len(rows)) - solution.residuals.mean()
        scale = math.exp(common * rng.standard_normal())
        again = _solve(problem, rows, predicted * np.exp(noise), solution.values, 4)
        draws.append({k: _scaled(k, v, scale) for k, v in again.values.items()})
    return draws


def _scaled(name: str, value: float, scale: float) -> float:
    """A rate falls and a time grows when everything takes `scale` times as long."""
    if name.endswith("bytes_per_s") or name.endswith("flops_per_s"):
        return value / scale
    return value * scale if name.endswith("_s") else value


def regime(row: Row) -> Regime:
    """What kind of step or kernel a row is."""
    op = row["op"]
    if op in ("gemm", "moe", "all_reduce"):
        return op  # type: ignore[no-any-return]
    if not row.get("num_prefill_tokens"):
        return "decode"
    return "mixed" if row.get("num_decodes") else "prefill"


def _range_of(row: Row) -> int:
    """The context range of a row; for products and reductions, of its tokens or kilobytes."""
    if row["op"] in ("gemm", "moe"):
        size = 16 * row["num_tokens"]
    elif row["op"] == "all_reduce":
        size = row["num_bytes"] / 64
    elif row.get("num_decodes"):
        size = row["decode_context"] / row["num_decodes"]
    else:
        size = row["prefill_attention"] / row["num_prefill_tokens"]
    return int(np.searchsorted(BINS, size, side="right"))


def _model_of(row: Row) -> str:
    return str(row.get("model", "")) if regime(row) in ("decode", "prefill", "mixed") else ""


def measured_ranges(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """From-to of batch, mean context and chunk over all rows with attention."""
    rows = [row for row in rows if row["op"] not in ("gemm", "moe", "all_reduce")]
    if not rows:
        return {}
    shape = shapes(rows)
    decodes = shape.num_decodes > 0
    found = {
        "num_decodes": shape.num_decodes[decodes],
        "mean_context": shape.decode_context[decodes] / shape.num_decodes[decodes],
        "chunk_tokens": shape.num_prefill_tokens[shape.num_prefill_tokens > 0],
    }
    return {k: (float(v.min()), float(v.max())) for k, v in found.items() if len(v)}
