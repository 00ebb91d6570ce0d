"""The figures of one point of a sweep: a flat row of plain values, the same names for every scenario.

A point that cannot run is a row too: its `error` says why, and its figures are None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kvplan.formulas.sums import exact_mean
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Deployment, Scenario
from kvplan.search.expected_accuracy import expected_accuracy
from kvplan.search.strategy_row import strategy_row
from kvplan.simulation.deploy import Setup, set_up
from kvplan.simulation.metrics import summarise
from kvplan.simulation.result import ENERGY, Result
from kvplan.simulation.simulator import SolveResult, simulate, solve
from kvplan.simulation.solve_setup import only_models_of, set_up_all
from kvplan.simulation.uncertainty import (
    End,
    at_end,
    board_watts,
    find_ends,
    flips,
    is_doubted,
    span,
    watts_doubt,
)
from kvplan.workload.classes import Slo

Row = dict[str, Any]

COUNTS = ("completed", "failed", "num_preemptions", "recomputed_tokens", "num_gpus")
"""Whole numbers."""
TRUTHS = ("slo_met", "is_extrapolated")
"""True or false."""
TEXTS = ("verdict", "limited_by", "unsure", "error")
_FROM_RESULT = (
    "completed", "failed", "duration_s", "request_throughput", "output_throughput", "visible_throughput",
    "mean_ttft_ms", "p99_ttft_ms", "mean_ttfvt_ms", "p99_ttfvt_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_e2el_ms",
    "p99_e2el_ms", "slo_met", "num_preemptions", "recomputed_tokens", "kv_peak_fraction", "kv_mean_fraction",
    "mean_batch_size", "verdict", "limited_by",
)  # fmt: skip
_FROM_COST = ("num_gpus", "usd_per_hour", "usd_per_million_output_tokens", "usd_per_million_visible_tokens")
ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
"""What a strategy may expect, and the ends of its 95 % interval."""
_PLAIN = (
    *_FROM_RESULT[:-2],
    "goodput_share",
    *ACCURACY,
    "correct_per_s",
    "usd_per_correct",
    *_FROM_COST,
    *ENERGY,
)
RANGED = (
    "request_throughput", "output_throughput", "visible_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_ttfvt_ms",
    "p99_ttfvt_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "p99_e2el_ms", "goodput_share", "correct_per_s",
    "usd_per_correct", *_FROM_COST[2:], *ENERGY,
)  # fmt: skip
"""Figures with a `_low` and a `_high`: a 90 % range, from the ends of what steps may take; None where none were run."""
RANGES = tuple(f"{name}_{end}" for name in RANGED for end in ("low", "high"))
FIGURES = (*_PLAIN, "is_extrapolated", *_FROM_RESULT[-2:], *RANGES, "unsure", "error")
"""The columns behind a point's keys, named as in `kvplan simulate --json` and `kvplan compare --json`. Under a strategy
`completed` and the latencies are those of problems, `accuracy` is expected (95 %); the rest counts branches."""
LATENCIES = {
    "ttft_ms": "first token",
    "ttfvt_ms": "first visible token",
    "tpot_ms": "per token",
    "e2el_ms": "end to end",
}
"""Targets of an SLO, in words; the figure of each is its p99."""


def slos_of(scenario: Scenario) -> list[Slo]:
    """The targets of all classes of requests."""
    return [scenario.slo, *(cls.slo for cls in scenario.workload.by_name.values() if cls.slo)]


def asked_latencies(scenario: Scenario) -> list[str]:
    """Those of `LATENCIES` that have a target; the whole answer's where none has."""
    slos = slos_of(scenario)
    return [name for name in LATENCIES if any(getattr(slo, name) is not None for slo in slos)] or ["e2el_ms"]


class Interrupted(Exception):
    """Ctrl-C came while the point ran."""


def run_point(
    scenario: Scenario, end: End | None = None, stop_when_missed: bool = False, expects: bool = True
) -> Row:
    """Simulate one point; all steps at one `end` of what they may take, if one is given.

    `expects`: a strategy's accuracy is expected over many problems; else it is what came of the run's own, without an
    interval, for who looks at loads alone. What is refused, does not fit or fails is said in `error` and stops nothing.
    A run that is to stop as soon as its targets are missed has no figures then, only the verdict missed. Raises
    Interrupted for a run that Ctrl-C cut short: half a run is no row.
    """
    return _told(lambda: _run(scenario, end, stop_when_missed, expects)[0])


def run_ranged(scenario: Scenario) -> Row:
    """As `run_point`, and again at both ends of what steps may take: figures with ranges, what they could turn."""
    return _told(lambda: _ranged(scenario))


def _ranged(scenario: Scenario) -> Row:
    row, result = _run(scenario)
    setups = point_setups(scenario)
    if not is_doubted(setups):
        return with_ranges(row, [row, row], setups)
    rows, results = zip(*(_run(scenario, end) for end in find_ends(result.is_extrapolated)), strict=True)
    return with_ranges(row, rows, setups) | {"unsure": "; ".join(flips(result, results))}


def with_ranges(row: Row, ends: Sequence[Row], setups: Mapping[str, Setup]) -> Row:
    """A row with [low, high] of its figures, from its rows at both ends."""
    own, found = watts_doubt(setups), dict(row)
    for name in RANGED:
        both = span([row[name], *(end[name] for end in ends)], own if name in ENERGY else None)
        found[f"{name}_low"], found[f"{name}_high"] = both or (None, None)
    if found["mean_watts_high"] is not None:
        found["mean_watts_high"] = min(found["mean_watts_high"], board_watts(setups, row["num_gpus"]))
    return found


def _told(run: Callable[[], Row]) -> Row:
    """A row, or a row that says why there is none."""
    try:
        return run()
    except KvplanError as error:
        return error_row(str(error))
    except (
        ArithmeticError,
        AssertionError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        MemoryError,
    ) as error:
        return error_row(f"internal error, please report: {type(error).__name__}: {error}")


def error_row(reason: str) -> Row:
    """The row of a point that has no figures."""
    return {**dict.fromkeys(FIGURES), "error": reason}


def accuracy_text(row: Row) -> str:
    """A row's accuracy and its interval, e.g. 61.2% (59.4..63.0)."""
    text = f"{row['accuracy']:.1%}"
    if row["accuracy_low"] is None or row["accuracy_low"] == row["accuracy_high"]:
        return text
    return f"{text} ({100 * row['accuracy_low']:.1f}..{100 * row['accuracy_high']:.1f})"


CUT: Row = {**error_row(""), "verdict": "missed", "slo_met": False}
"""Of a run that stopped as soon as its targets were missed."""


def point_setups(scenario: Scenario, end: End | None = None) -> dict[str, Setup]:
    """The planned engines of a load or of problems, steps at one `end` of what they may take if one is given."""
    if scenario.problems is None:
        return cached_setups(scenario, end)
    spec = scenario.problems.strategies[0].expanded()[0]
    setups = _cached_solving(_Solving.of(only_models_of(scenario, spec)))
    return dict(setups) if end is None else at_end(setups, end)


def cached_setups(scenario: Scenario, end: End | None = None) -> dict[str, Setup]:
    """The planned engines; points that differ in their load alone share them."""
    return {
        name: _cached_setup(deployment.model_dump_json(include=_DEPLOYED), scenario.folder, end)
        for name, deployment in scenario.deployments.items()
    }


_DEPLOYED = set(Deployment.model_fields)


@dataclass(frozen=True, slots=True)
class _Solving:
    """A scenario with problems, alike for all that its engines hang on."""

    scenario: Scenario = field(compare=False)
    told: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, scenario: Scenario) -> _Solving:
        problems = scenario.problems
        assert problems is not None
        told = [f"{name} {d.model_dump_json(include=_DEPLOYED)}" for name, d in scenario.deployments.items()]
        told += [problems.verifier.model_dump_json(), repr(problems.compression)]
        return cls(scenario, tuple(told), scenario.folder)


@lru_cache(16)
def _cached_solving(solving: _Solving) -> dict[str, Setup]:
    return set_up_all(solving.scenario)


@lru_cache(64)
def _cached_setup(deployment: str, folder: Path, end: End | None) -> Setup:
    if end is not None:
        return at_end({"": _cached_setup(deployment, folder, None)}, end)[""]
    return set_up(Deployment.model_validate_json(deployment), folder)


def result_row(result: Result) -> Row:
    """The figures of a simulation. Raises Interrupted for one that was cut short."""
    if result.verdict == "interrupted":
        raise Interrupted
    document, good = result.to_dict(), result.good
    row = error_row("") | {name: document[name] for name in _FROM_RESULT}
    row |= {name: document["cost"][name] for name in _FROM_COST}
    row |= {name: document["energy"][name] for name in ENERGY}
    row["goodput_share"] = None if good is None else float(good.sum()) / max(1, result.num_requests)
    row["limited_by"] = str(row["limited_by"])
    row["unsure"] = ""
    row["is_extrapolated"] = result.is_extrapolated
    return row


def _run(
    scenario: Scenario, end: End | None = None, stop: bool = False, expects: bool = True
) -> tuple[Row, Result]:
    if scenario.problems is not None:
        return _solved(scenario, end, stop, expects)
    setups = cached_setups(scenario, end)
    result = simulate(scenario, setups=setups, keep_records=False, keep_samples=False, stop_when_missed=stop)
    return CUT if result.verdict == "missed" else result_row(result), result


def _solved(scenario: Scenario, end: End | None, stop: bool, expects: bool) -> tuple[Row, Result]:
    """The figures of a strategy: of its branches, and over them those of its problems."""
    assert scenario.problems is not None
    spec = scenario.problems.strategies[0].expanded()[0]
    setups = point_setups(scenario, end)
    found = solve(scenario, spec, setups=setups, stop_when_missed=stop)
    if found.verdict == "missed":
        return CUT, found.result
    row = result_row(found.result)
    if found.solved:
        expected = expected_accuracy(scenario, spec, setups, found.solved) if expects else None
        accuracy = None if expected is None else expected.accuracy
        line = strategy_row(scenario, scenario.problems, spec, found, accuracy=accuracy)
        row |= {"accuracy": line.accuracy, "correct_per_s": line.correct_per_s}
        if expected is not None:
            row |= {"accuracy_low": expected.interval.low, "accuracy_high": expected.interval.high}
        row |= {"usd_per_correct": line.usd_per_correct} | _problem_latencies(scenario, found, line.accuracy)
    return row, found.result


def _problem_latencies(scenario: Scenario, found: SolveResult, accuracy: float) -> Row:
    """Latencies of whole problems, milliseconds, how many are in time, and whether that and accuracy are enough."""
    assert scenario.problems is not None
    per_ms = TICKS_PER_S / 1e3
    took = np.array([s.finish - s.arrival for s in found.solved]) / per_ms
    seen = np.array([s.first_visible - s.arrival for s in found.solved]) / per_ms
    slo = scenario.slo
    good = (took <= (slo.e2el_ms or np.inf)) & (seen <= (slo.ttfvt_ms or np.inf))
    asked = scenario.problems.num_problems if scenario.problems.pass_table is None else len(found.solved)
    share = float(good.sum()) / asked
    row: Row = {
        "completed": len(found.solved),
        "failed": asked - len(found.solved),
        "mean_e2el_ms": exact_mean(took),
    }
    row |= {"p99_e2el_ms": summarise(took).p99, "mean_ttfvt_ms": exact_mean(seen)}
    row |= {"p99_ttfvt_ms": summarise(seen).p99, "goodput_share": share}
    row["slo_met"] = share >= slo.share and accuracy >= scenario.problems.min_accuracy
    return row
