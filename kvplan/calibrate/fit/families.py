"""Measurements in, a timing profile out: positive coefficients, held-out errors, bootstrap draws.

Kernel rows fix their own family's coefficients; whole-step rows fix what is left (fixed times, or everything when
there are no kernel rows). A family with a coefficient that its rows cannot tell is left out with what to measure,
unless the caller states it (`assume`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvplan.calibrate.fit.held_out import bootstrap, held_out_errors, measured_ranges
from kvplan.calibrate.fit.identify import identify, unfelt
from kvplan.calibrate.fit.least_squares import Predict, Prior
from kvplan.calibrate.fit.mixing import timed_apart
from kvplan.calibrate.fit.problem import FitProblem, run, scaled
from kvplan.calibrate.fit.terms import (
    ACTIVATIONS,
    Term,
    attention_term,
    column,
    experts_term,
    gemm_term,
    predict_family,
    predict_steps,
    reduce_term,
    rough_rates,
    step_key,
    step_subject,
)
from kvplan.calibrate.measurements import Measurements, Row
from kvplan.formulas.graphs import MAX_CAPTURE_SIZE
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.profiles.timing_profile import RegimeError, TimingProfile

NUM_DRAWS = 16
ACHIEVED = 0.8
"""Share of a card's matrix rate that large products reach at best."""
LAUNCHES = Prior(3e-4, 0.7)
"""Launches of a layer outside CUDA graphs, in seconds: believed of an eager engine."""
LAUNCH_BOUND = 1.26
"""An eager step that takes so many times the GPU's work is bound by launches (p-norm 3 of two equal parts)."""
EXTRA_KEYS = Prior(400.0, 0.1)
"""In whole steps, products and attention both grow with the prompt's tokens: this share is what kernels showed."""


LEFT_OUT = "left out: "
"""Begins the reason, in `assumed`, of a family that could not be fitted."""


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
    """Fit every family of the measurements; one that cannot be fitted is left out, and `assumed` says why.

    `assume` maps a coefficient (or a bare field, for every family) to a value and its reason; infinity as a rate
    means that the term costs nothing.

    Raises:
        KvplanError: no family can be fitted.
    """
    machine, families = measurements.machine, dict(measurements.families)
    stated = dict(assume or {})
    rng = np.random.default_rng(seed)
    parts: list[Fitted] = []
    known = {name: value for name, (value, _) in stated.items() if name == ACTIVATIONS}
    left_out: dict[str, str] = {}
    for name, rows in sorted(measurements.families.items(), key=_order):
        given = timed_apart(machine, families) | stated
        try:
            term = _term(name, rows, known, gpu, bool(machine.get("enforce_eager")))
            problem = _problem(name, rows, term, known)
            if gpu is None:
                stated = _merge_fixed(term) | stated
                problem = _to_scale(problem)
            given |= stated
            part = _fit_family(problem, given | _above_sheet(problem, given, gpu), num_draws, rng)
        except KvplanError as error:
            del families[name]
            left_out[name] = str(error)
        else:
            parts.append(part)
            known |= part.values
    if not parts:
        raise KvplanError("; ".join(left_out.values()))
    launches: dict[str, float] = {}
    try:
        launches = launch_s(measurements.eager, known)
    except KvplanError as error:
        left_out["step.launch_s"] = str(error)
    known |= launches
    given = timed_apart(machine, families) | _read_once(machine) | stated
    coefficients = known | {k: v for k, (v, _) in given.items() if "." in k and math.isfinite(v)}
    fitted = [row for rows in families.values() for row in rows]
    return TimingProfile(
        coefficients={k: float(f"{v:.6g}") for k, v in sorted(coefficients.items())},
        assumed={k: why for k, (_, why) in given.items() if "." in k}
        | {k: why for part in parts for k, why in part.assumed.items()}
        | {name: f"{LEFT_OUT}{why.removeprefix(f'{name}: ')}" for name, why in left_out.items()},
        errors=tuple(error for part in parts for error in part.errors),
        ranges=measured_ranges(fitted),
        draws=tuple(_merged(parts, i) for i in range(num_draws)),
        host_overlaps=bool(machine.get("async_scheduling", False)),
        seen_by_client=bool(machine.get("seen_by_client", False)),
        max_capture_size=int(machine.get("max_capture_size", MAX_CAPTURE_SIZE if launches else 0)),
        num_points=len(fitted),
    )


def _read_once(machine: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """A CPU's caches give a block that several sequences hold to all of them; on GPUs nobody measured it."""
    if machine.get("gpu") != "cpu":
        return {}
    return {"step.shared_reads": (1.0, "a CPU reads KV that sequences share once: assumed, 0.8 to 1")}


def launch_s(eager: Sequence[Row], known: Mapping[str, float]) -> dict[str, float]:
    """`step.launch_s` from decode steps outside CUDA graphs that wait for their launches; empty where none does.

    All else is known by now.
    """
    work = predict_steps(eager, known)({}) if eager else np.empty(0)
    rows = [row for row, gpu_s in zip(eager, work, strict=True) if row["time_s"] > LAUNCH_BOUND * gpu_s]
    if not rows:
        return {}
    problem = _problem("step", rows, Term({"step.launch_s": LAUNCHES.middle}, {}), known)
    return run(problem, rows, problem.term.start).values


def _order(item: tuple[str, list[Row]]) -> tuple[bool, str]:
    """Products first (MLA blocks include some), whole steps last."""
    return item[0] == "step", item[0]


def _merged(parts: Sequence[Fitted], index: int) -> dict[str, float]:
    return {k: float(f"{v:.6g}") for part in parts if part.draws for k, v in part.draws[index].items()}


def _problem(name: str, rows: list[Row], term: Term, known: Mapping[str, float]) -> FitProblem:
    held = dict(known)
    if name == "step":
        return FitProblem(name, rows, term, lambda some: predict_steps(some, held))
    return FitProblem(name, rows, term, lambda some: predict_family(name, some, held))


def _merge_fixed(term: Term) -> dict[str, tuple[float, str]]:
    """One model on a card without a data sheet: fixed time per layer cannot be told from reading weights."""
    known_products = not any(name.startswith("gemm.") for name in term.start)
    if "step.layer_s" not in term.start or "step.step_s" in term.start or known_products:
        return {}
    why = "one depth, no data sheet: fixed time per layer is inside the weights' read rate; other models will differ"
    return {"step.layer_s": (0.0, why)}


def _to_scale(problem: FitProblem) -> FitProblem:
    """Start an unknown machine where its rows are: all rates and times scaled alike, beliefs about times dropped."""
    measured = column(problem.rows, "time_s")
    start = problem.term.start
    for _ in range(3):  # the parts do not all scale, so once is not enough
        ratio = float(np.median(measured / problem.build(problem.rows)(start)))
        start = {k: scaled(k, v, ratio) for k, v in start.items()}
    pure = {k: p for k, p in problem.term.priors.items() if not k.endswith("_s")}
    return problem._replace(term=Term(start, pure))


def _term(
    name: str, rows: Sequence[Row], known: Mapping[str, float], gpu: GpuSpec | None, eager: bool
) -> Term:
    """The coefficients that a family's rows may tell."""
    if name == "step":
        return step_term(rows, known, gpu, eager)
    kind, fmt = name.split(".", 1)
    if kind in ("gemm", "moe"):
        return (gemm_term if kind == "gemm" else experts_term)(name, gpu, fmt, rough_rates(rows))
    if kind == "reduce":
        return reduce_term(name, rows)
    return attention_term(name, gpu, rough_rates(rows))


def step_term(
    rows: Sequence[Row], known: Mapping[str, float], gpu: GpuSpec | None, eager: bool = False
) -> Term:
    """Whole steps fix what no kernel row did; with one depth, everything fixed counts per layer.

    An eager engine on a GPU is bound by its launches instead: they stand in for the fixed time of layers.
    """
    subjects = {step_key(row): step_subject(step_key(row)) for row in rows}
    depths = {work.num_layers for work, _ in subjects.values()}
    fixed = LAUNCHES if eager else Prior(2e-5, 0.7)
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
    problem: FitProblem, given: Mapping[str, tuple[float, str]], num_draws: int, rng: np.random.Generator
) -> Fitted:
    held = _stated(problem.term, given)
    term = Term(
        {k: v for k, v in problem.term.start.items() if k not in held},
        {k: v for k, v in problem.term.priors.items() if k not in held},
    )
    build = problem.build
    problem = problem._replace(term=term, build=lambda rows: _with(build(rows), held))
    rows = [row for row in problem.rows if not row.get("held_out")]
    assumed = identify(problem, rows)
    solution = run(problem, rows, term.start)
    errors = held_out_errors(problem, rows, solution)
    assumed |= unfelt(problem, rows, solution)
    draws = bootstrap(problem, rows, solution, errors, num_draws, rng)
    values = solution.values | {k: v for k, (v, _) in given.items() if k in held and math.isfinite(v)}
    values |= {k: v for k, v in held.items() if math.isfinite(v)}
    return Fitted(values, assumed | {k: _reason(k, given) for k in held}, errors, draws)


def _above_sheet(
    problem: FitProblem, given: Mapping[str, tuple[float, str]], gpu: GpuSpec | None
) -> dict[str, tuple[float, str]]:
    """Experts' matrix rate, stated, where the rows would put it beyond what the card can do.

    Both products and moved activations grow with the visits; experts of one width cannot tell them apart.
    """
    kind, *fmt = problem.name.split(".")
    name = f"{problem.name}.flops_per_s"
    if gpu is None or kind != "moe" or name in given:
        return {}
    most = ACHIEVED * gpu.flops(fmt[0].split("_")[0])
    rows = [row for row in problem.rows if not row.get("held_out")]
    if len(rows) < len(problem.term.start) or run(problem, rows, problem.term.start).values[name] <= most:
        return {}
    why = (
        f"experts too alike to tell products from moved activations: {ACHIEVED:.0%} of the data sheet's rate"
    )
    return {name: (most, why)}


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
