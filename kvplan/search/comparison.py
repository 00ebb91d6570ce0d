"""`compare`: the same problems, luck and GPUs through several strategies: who gets most right for what.

Runs `solve` once per strategy and reads one row off each run. Knows no clock and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import kvplan
from kvplan.errors import DoesNotFit, KvplanError
from kvplan.frames import make_frame
from kvplan.pictures import Pictures
from kvplan.scenario.schema import Scenario, as_scenario
from kvplan.search.choices import Choice, best_within, pareto
from kvplan.search.strategy_row import StrategyRow, strategy_row
from kvplan.simulation.deploy import Setup
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.pricing import check_prices, find_grid
from kvplan.simulation.result import ENERGY
from kvplan.simulation.simulator import SolveResult, solve
from kvplan.simulation.solve_setup import only_models_of, set_up_all
from kvplan.simulation.uncertainty import END_NAMES, at_end, find_ends, flips, is_doubted, watts_doubt
from kvplan.tables import Column, Part, make_table, range_text, text_of
from kvplan.workload.problems import Problems, StrategySpec, Task, draw_tasks

SCHEMA_VERSION = 1
TREES = {"beam_search", "tree_search", "prune_by_steps"}
UNIFORM = {"best_of_n", "self_consistency", "pruned_under_pressure"}
"""As many samples of every problem."""
CAPS = {"max_tokens", "thinking_token_budget", "effort", "max_thinking_tokens", "step_tokens"}
"""Parameters that bound a trace."""
SURE = 0.02
"""A problem with p this close to 0 or 1 gains nothing from more samples."""


@dataclass(slots=True)
class Comparison:
    """All rows, what they rest on, what to choose."""

    plot: ClassVar[Pictures] = Pictures()
    """Pictures of it, Altair charts: `dir(result.plot)` names them."""

    scenario: Scenario
    rows: list[StrategyRow]
    caution: str
    """Says that chances of success are assumed; empty when they are not."""
    choice: str
    """The best strategy within the limits; empty when none keeps them."""
    reason: str
    caps: dict[str, float]
    """Recommended thinking budgets, tokens."""
    advice: list[str] = field(default_factory=list)
    caveats: tuple[str, ...] = ()
    """Which engines the scheduler's rules stand for without having been checked against them."""
    sources: dict[str, str] = field(default_factory=dict)
    """What step times, their error, the KV pool and the price come from; alike for all rows."""
    interrupted: bool = False
    """Ctrl-C came: only the strategies that were done are here."""

    @property
    def budgets(self) -> list[tuple[int, StrategyRow]]:
        """The compared thinking budgets [tokens] with their rows, smallest first."""
        assert self.scenario.problems is not None
        specs = [spec for said in self.scenario.problems.strategies for spec in said.expanded()]
        swept = [
            (int(spec.settings["thinking_token_budget"]), row)
            for spec, row in zip(specs, self.rows, strict=False)
            if "thinking_token_budget" in spec.params
        ]
        return sorted(swept, key=lambda pair: pair[0])

    @property
    def exit_code(self) -> int:
        """130 when interrupted, 1 when no strategy keeps the limits."""
        return 130 if self.interrupted else 0 if self.choice else 1

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "inputs": self.scenario.model_dump(mode="json"),
            "caution": self.caution,
            "strategies": [row.to_dict() for row in self.rows],
            "choice": self.choice or None,
            "reason": self.reason,
            "recommended_thinking_budget": self.caps,
            "advice": self.advice,
            "caveats": list(self.caveats),
            "sources": self.sources,
        }

    @property
    def rests_on(self) -> list[str]:
        """The ranges of latency and cost, energy of the most accurate row, what times and prices the rows."""
        rows = sorted(self.rows, key=lambda r: (-r.accuracy, r.latency_p99_s))
        named = ("quality", "step_time", "step_time_range", "step_time_error", "price")
        sources = [
            f"{name.replace('_', ' ')}: {self.sources[name]}" for name in named if name in self.sources
        ]
        return [*_ranged(rows), *_energy(self.scenario, rows), *sources]

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        return make_frame(self.to_dict()["strategies"])

    def parts(self) -> list[Part]:
        """The table, best first, and what it means."""
        rows = sorted(self.rows, key=lambda r: (-r.accuracy, r.latency_p99_s))
        api = self.scenario.problems is not None and self.scenario.problems.api_model
        price: list[Column[StrategyRow]] = (
            [(f"$ at {api}", lambda r: _si(r.api_usd_per_correct))] if api else []
        )
        table = make_table([*COLUMNS, *price], rows, frozenset({0, 1, len(COLUMNS) - 1}))
        head = [f"NOTE {self.caution}"] if self.caution else []
        cheapest = self.caps.get("cost_optimal")
        optimal = f"; cheapest per correct answer of those compared: {cheapest:,.0f}" if cheapest else ""
        notes = [
            "* = nobody is at least as accurate, as fast (p99) and as cheap",
            f"choice: {self.reason}" if self.choice else self.reason,
            f"thinking budget: {self.caps['p99_of_traces']:,.0f} tokens cut one trace in a hundred{optimal}",
            *(f"{r.strategy}: {r.num_problems} problems solved, then {r.verdict}"
              for r in rows if r.verdict != "completed"),
            *(f"advice: {text}" for text in self.advice),
            *(f"caveat: {text}" for text in self.caveats),
            *self.rests_on,
        ]  # fmt: skip
        return [*head, table, "", *notes]

    def __str__(self) -> str:
        return text_of(self.parts())


def _si(value: float | None) -> str:
    """Four digits and a power of a thousand."""
    if value is None:
        return "-"
    for power, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= power:
            return f"{value / (1e3 if letter == 'k' else power):.4g}{letter}"
    return f"{value:.4g}"


COLUMNS: tuple[Column[StrategyRow], ...] = (
    ("", lambda r: "*" if r.pareto else ""),
    ("strategy", lambda r: r.strategy),
    ("accuracy", lambda r: f"{r.accuracy:.1%}"),
    ("p50 s", lambda r: f"{r.latency_p50_s:.1f}"),
    ("p99 s", lambda r: f"{r.latency_p99_s:.1f}"),
    ("visible s", lambda r: f"{r.first_visible_p50_s:.1f}"),
    ("correct/s", lambda r: f"{r.correct_per_s:.4g}"),
    ("GPU-s/correct", lambda r: _si(r.gpu_s_per_correct)),
    ("$/correct", lambda r: "-" if r.usd_per_correct is None else f"{r.usd_per_correct:.4f}"),
    ("J/correct", lambda r: _si(r.joules_per_correct)),
    ("tokens", lambda r: _si(r.generated_tokens)),
    ("verified", lambda r: _si(r.verified_tokens)),
    ("re-prefilled", lambda r: _si(r.reprefilled_tokens)),
    ("dead", lambda r: _si(r.dead_tokens)),
    ("FLOPs", lambda r: _si(r.flops)),
    ("KV GiB-s", lambda r: _si(r.kv_gib_s)),
    ("logical", lambda r: _si(r.kv_logical_gib_s)),
    (
        "sharing saves",
        lambda r: f"{1 - r.sharing_peak_blocks['full_block'] / r.sharing_peak_blocks['none']:.0%}",
    ),
    ("batch", lambda r: f"{r.concurrency:.1f}"),
    ("preempt", lambda r: f"{r.preemptions:,}"),
    ("cut", lambda r: f"{r.cut_share:.1%}"),
    ("limited by", lambda r: r.limited_by),
)


def compare(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    *,
    setups: dict[str, Setup] | None = None,
    ranges: bool = True,
    robust: bool = False,
    progress: Callable[[int, int], None] | None = None,
    observer: Observer = NO_OBSERVER,
) -> Comparison:
    """Run every strategy of the scenario over the same problems.

    `scenario` may be a bundled name, a file, or a dictionary of what a file would say. `ranges`: each is run at both
    ends of what its steps may take too, three runs instead of one. `robust`: choose by the slow end. Raises KvplanError
    for a scenario without problems, for `robust` without `ranges`, and what `solve` raises.
    """
    scenario = as_scenario(scenario)
    problems = scenario.problems
    if problems is None:
        raise KvplanError("nothing to compare: the scenario has no `problems` with `strategies`")
    if robust and not ranges:
        raise KvplanError("robust chooses by the slow end of the ranges: they cannot be left out")
    check_prices([scenario])
    specs = [spec for said in problems.strategies for spec in said.expanded()]
    rows: list[StrategyRow] = []
    ends: list[tuple[StrategyRow, ...]] = []
    caveats: dict[str, None] = {}
    sources: dict[str, str] = {}
    for number, spec in enumerate(specs):
        planned = setups or set_up_all(only_models_of(scenario, spec))
        found = solve(scenario, spec, setups=planned, observer=observer)
        if found.verdict == "interrupted":
            break
        row = strategy_row(scenario, problems, spec, found)
        runs = []
        if ranges and is_doubted(planned):
            ends_of = find_ends(found.result.is_extrapolated)
            runs = [solve(scenario, spec, setups=at_end(planned, e), observer=observer) for e in ends_of]
        if any(run.verdict == "interrupted" for run in runs):
            break
        peak = row.sharing_peak_blocks
        ends.append(tuple(strategy_row(scenario, problems, spec, run, peak) for run in runs))
        rows.append(_ranged_row(row, found, ends[-1], runs, planned) if ranges else row)
        caveats |= dict.fromkeys(found.result.caveats)
        sources = found.result.sources
        if progress is not None:
            progress(number + 1, len(specs))
    if not rows:
        raise KeyboardInterrupt
    rows, interrupted = _with_pareto(rows), len(rows) < len(specs)
    choice, reason = _choose(scenario, problems, _slow(rows, ends) if robust else rows)
    reason += _turned(scenario, problems, rows, ends, choice)
    tasks = draw_tasks(problems, scenario.folder)
    caps = recommended_caps(problems, tasks, specs, rows)
    advice = list(_advice(problems, specs, tasks, caps["p99_of_traces"]))
    return Comparison(
        scenario=scenario, rows=rows, caution=_caution(problems), choice=choice, reason=reason, caps=caps,
        advice=advice, caveats=tuple(caveats), sources=sources, interrupted=interrupted,
    )  # fmt: skip


def _with_pareto(rows: list[StrategyRow]) -> list[StrategyRow]:
    cost = [inf if row.usd_per_correct is None else row.usd_per_correct for row in rows]
    front = pareto([row.accuracy for row in rows], [[row.latency_p99_s for row in rows], cost])
    return [replace(row, pareto=bool(on)) for row, on in zip(rows, front, strict=True)]


def _ranged_row(
    row: StrategyRow, found: SolveResult, ends: Sequence[StrategyRow], runs: Sequence[SolveResult],
    planned: Mapping[str, Setup],
) -> StrategyRow:  # fmt: skip
    """The row with its ranges; what is stated takes just so long."""
    said = flips(found.result, [run.result for run in runs]) if runs else ()
    return row.with_ends(ends or (row, row), watts_doubt(planned), tuple(said))


def _slow(rows: Sequence[StrategyRow], ends: Sequence[Sequence[StrategyRow]]) -> list[StrategyRow]:
    """Each row as it is at the slow end of what its steps may take."""
    return [end[1] if end else row for row, end in zip(rows, ends, strict=True)]


def _turned(
    scenario: Scenario, problems: Problems, rows: Sequence[StrategyRow],
    ends: Sequence[Sequence[StrategyRow]], choice: str,
) -> str:  # fmt: skip
    """Which other choice the ends of the step times' range would make; "" where they make the same."""
    if not any(ends):
        return ""
    said = []
    for place, name in enumerate(END_NAMES):
        at = [end[place] if end else row for row, end in zip(rows, ends, strict=True)]
        other, _ = _choose(scenario, problems, at)
        if other != choice:
            said.append(f"{other or 'none keeps the limits'} at the {name} end of the step's range")
    return f"; within the error of step times it may be another: {', '.join(said)}" if said else ""


def _ranged(rows: Sequence[StrategyRow]) -> Iterator[str]:
    """The ranges of latency and cost, and what those could turn."""
    shown = (
        ("p99 s", "latency_p99_s"),
        ("$/correct", "usd_per_correct"),
        ("J/correct", "joules_per_correct"),
    )
    for row in rows:
        if row.ranges.get("latency_p99_s", (0, 0))[0] < row.ranges.get("latency_p99_s", (0, 0))[1]:
            document = row.to_dict()
            said = ", ".join(f"{title} {range_text(document, name)}" for title, name in shown)
            unsure = f"; unsure: {'; '.join(row.unsure)}" if row.unsure else ""
            yield f"90 % of {row.strategy}: {said}{unsure}"


def _energy(scenario: Scenario, rows: Sequence[StrategyRow]) -> Iterator[str]:
    """kWh and CO2 of the first row, and what they are counted with."""
    best, pricing, (grams_per_kwh, grid) = rows[0].to_dict(), scenario.pricing, find_grid(scenario)
    if best["mean_watts"] is not None:
        watts, *_, kwh, grams = (range_text(best, name) for name in ENERGY)
        yield (
            f"energy of {rows[0].strategy}: {watts} W; {kwh} kWh and {grams} g of CO2 per million output tokens at "
            f"PUE {pricing.pue:g} and {grams_per_kwh:g} g a kWh ({grid})"
        )


def _choose(scenario: Scenario, problems: Problems, rows: list[StrategyRow]) -> tuple[str, str]:
    """The most accurate strategy within T_max and above the minimum; of equals the cheaper."""
    limit = scenario.slo.e2el_ms / 1000 if scenario.slo.e2el_ms else inf
    options = [Choice(r.strategy, r.accuracy, r.latency_p99_s, r.usd_per_correct or inf) for r in rows]
    try:
        best = best_within(options, limit, problems.min_accuracy)
    except DoesNotFit as error:
        return "", str(error)
    within = f" within {limit:g} s (p99)" if limit < inf else ""
    return (
        best.name,
        f"{best.name} is the most accurate{within}: {best.accuracy:.1%} in {best.latency_s:.1f} s",
    )


def recommended_caps(
    problems: Problems, tasks: list[Task], specs: list[StrategySpec], rows: list[StrategyRow]
) -> dict[str, float]:
    """Thinking budgets: the 99th percentile of what traces would think, and the cheapest budget per right answer
    among those compared (absent when no budgets were)."""
    facts = problems.quality
    means = np.array([task.skill.thinking_tokens for task in tasks])
    z = np.random.default_rng(problems.seed).standard_normal((64, len(means)))
    lengths = means * np.exp(facts.sigma_within * z - facts.sigma_within**2 / 2)
    caps = {"p99_of_traces": float(np.ceil(np.percentile(lengths, 99)))}
    swept = [
        (row.usd_per_correct, spec.settings["thinking_token_budget"])
        for spec, row in zip(specs, rows, strict=False)
        if "thinking_token_budget" in spec.params and row.usd_per_correct is not None
    ]
    if len(swept) > 1:
        caps["cost_optimal"] = float(min(swept)[1])
    return caps


def _caution(problems: Problems) -> str:
    if problems.pass_table is not None or not problems.quality.is_assumed:
        return ""
    return f"assumed chances of success (quality set {problems.quality.name}): rankings hold for those, not for a model"


def _advice(problems: Problems, specs: list[StrategySpec], tasks: list[Task], cap: float) -> Iterator[str]:
    """What the comparison lacks; `cap` is the thinking that one trace in a hundred exceeds, tokens."""
    names = {spec.strategy for spec in specs}
    free = [spec.name for spec in specs if not CAPS & spec.params.keys() and not spec.router]
    if free:
        yield (
            f"no hard cap on thinking in {', '.join(free)}: one trace in a hundred thinks beyond "
            f"{cap:,.0f} tokens and holds its KV all that time; set thinking_token_budget there"
        )
    if names & TREES and "best_of_n" not in names:
        yield "compare best_of_n before trees: it needs no step scores and is hard to beat at the same tokens"
    if names & TREES and problems.verifier.kind not in ("prm", "generative"):
        yield (
            f"a tree without a process reward model: a {problems.verifier.kind} verifier scores whole answers, "
            "so the step scores simulated here have no source"
        )
    p = np.array([task.skill.p for task in tasks])
    share = float(np.mean((p < SURE) | (p > 1 - SURE)))
    if names & UNIFORM and share >= 0.2:
        yield (
            f"{share:.0%} of the problems are always or never solved (p beyond {SURE} and {1 - SURE}): "
            "samples there buy nothing; adaptive_best_of_n probes first"
        )
