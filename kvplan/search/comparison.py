"""`compare`: the same problems, luck and GPUs through several strategies: who gets most right for what, and how sure.

Accuracy is what strategies may expect (`workload.expectation`), over many problems; time, cost and KV are simulated on
the scenario's own. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, sqrt
from pathlib import Path
from typing import Any, ClassVar

import kvplan
from kvplan.ground.errors import KvplanError
from kvplan.ground.frames import make_frame
from kvplan.ground.pictures import Pictures
from kvplan.ground.tables import counted, range_text, short
from kvplan.scenario.schema import Scenario, as_scenario
from kvplan.search.allocation import Equal, Frontier
from kvplan.search.beside_api import Bill, BilledTokens, Routing, bill, bill_text, route_day, tokens_of
from kvplan.search.expected_accuracy import add_engine, lengths_of
from kvplan.search.sampling import PER_CORRECT, Sampling, sample_of, sampled
from kvplan.search.sensitivity import (
    BUDGET,
    Turn,
    accuracy_turns,
    load_turns,
    price_turns,
    time_turns,
    turns_text,
)
from kvplan.search.strategy_advice import advice, caution, recommended_caps
from kvplan.search.strategy_choice import Chosen, Field
from kvplan.search.strategy_row import StrategyRow, strategy_row
from kvplan.search.strategy_table import short_names, table_lines, wrapped
from kvplan.simulation.deploy import Setup
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.pricing import check_prices, find_api, find_apis, find_book, find_grid
from kvplan.simulation.result import ENERGY
from kvplan.simulation.simulator import SolveResult, solve
from kvplan.simulation.solve_setup import only_models_of, set_up_all
from kvplan.simulation.uncertainty import END_NAMES, at_end, find_ends, flips, is_doubted, watts_doubt
from kvplan.workload.expectation import (
    MAX_DRAWS,
    PRECISION,
    AccuracyDifference,
    Expectation,
    Expected,
    expect,
    points_text,
)
from kvplan.workload.population import Over
from kvplan.workload.problems import StrategySpec, draw_tasks

SCHEMA_VERSION = 1


@dataclass(slots=True)
class Comparison:
    """All rows, what they rest on, what to choose."""

    plot: ClassVar[Pictures] = Pictures()
    """Pictures of it, Altair charts: `dir(result.plot)` names them."""

    scenario: Scenario
    rows: list[StrategyRow]
    specs: list[StrategySpec]
    """Of the rows, in their order."""
    expectation: Expectation
    """What accuracy and tokens rest on."""
    samples: list[Sampling]
    """The problems that each row was simulated on."""
    caution: str
    """Says that chances of success are assumed; empty when they are not."""
    chosen: Chosen
    caps: dict[str, float]
    """Recommended thinking budgets, tokens."""
    advice: list[str] = field(default_factory=list)
    caveats: tuple[str, ...] = ()
    """Which engines the scheduler's rules stand for without having been checked against them."""
    sources: dict[str, str] = field(default_factory=dict)
    """What step times, their error, the KV pool and the price come from; alike for all rows."""
    interrupted: bool = False
    """Ctrl-C came: only the strategies that were done are here."""
    tokens: list[BilledTokens] = field(default_factory=list)
    """What each row's branches read and wrote."""
    routing: Routing | None = None
    """A day over the price file's tiers, where it has some."""
    turns: list[Turn] = field(default_factory=list)
    """Which stated values would turn the choice, and where."""
    equal: Equal | None = None
    """The price that all were brought to, where one was asked for."""
    frontier: Frontier | None = None
    """Accuracy over price of each strategy, where it was asked for."""

    @property
    def choice(self) -> str:
        """What to run within the limits, of a tie the cheapest; empty when none keeps them."""
        return self.chosen.name

    @property
    def reason(self) -> str:
        """Why, with its interval."""
        return self.chosen.reason

    @property
    def budgets(self) -> list[tuple[int, StrategyRow]]:
        """The compared thinking budgets [tokens] with their rows, smallest first."""
        swept = [
            (int(spec.settings["thinking_token_budget"]), row)
            for spec, row in zip(self.specs, self.rows, strict=True)
            if "thinking_token_budget" in spec.params
        ]
        return sorted(swept, key=lambda pair: pair[0])

    @property
    def exit_code(self) -> int:
        """130 when interrupted, 1 when no strategy keeps the limits."""
        return 130 if self.interrupted else 0 if self.choice else 1

    @property
    def differences(self) -> list[AccuracyDifference]:
        """Accuracy of the most accurate strategy less each other one's, in the order of the rows."""
        first = max(range(len(self.rows)), key=lambda i: self.rows[i].accuracy)
        return [self.expectation.difference(first, i) for i in range(len(self.rows)) if i != first]

    @property
    def interval_of(self) -> dict[str, str]:
        """What the intervals are over, by the ends of their keys."""
        found = self.expectation
        drawn = "" if found.population.fixed is not None else " drawn"
        reached = f"; {found.why}" if found.why else ""
        over = "over draws on these" if found.over == "draws" else "over"
        return {
            "accuracy_low, accuracy_high": f"95 % {over} {counted(found.num_problems, 'problem')}{drawn}{reached}",
            "_sampling_low, _sampling_high": f"95 % over problems like the {self.rows[0].num_problems:,} simulated",
            "_low, _high": f"90 % over what steps may take: {self.sources.get('step_time_range', 'stated, exact')}",
        }

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "inputs": self.scenario.model_dump(mode="json"),
            "caution": self.caution,
            "strategies": [row.to_dict() for row in self.rows],
            "choice": self.choice or None,
            "best": self.chosen.best,
            "reason": self.reason,
            "ties": [_document(tie) for tie in self.chosen.ties],
            "differences": [_document(apart) for apart in self.differences],
            "precision": self.expectation.precision,
            "num_problems_drawn": self.expectation.num_problems,
            "accuracy_over": self.expectation.over,
            "interval_of": self.interval_of,
            "beside_api": [one.to_dict() for one in self.bills(max(self.chosen.place, 0))],
            "routing": None if self.routing is None else self.routing._asdict(),
            "sensitivity": [turn.to_dict() for turn in self.turns],
            "equal": None if self.equal is None else self.equal.to_dict(),
            "frontier": None if self.frontier is None else self.frontier.to_dict(),
            "recommended_thinking_budget": self.caps,
            "advice": self.advice,
            "caveats": list(self.caveats),
            "sources": self.sources,
        }

    @property
    def rests_on(self) -> list[str]:
        """The ranges of latency and cost, energy of the most accurate row, what times and prices the rows."""
        rows = sorted(self.rows, key=lambda r: (-r.accuracy, r.latency_p99_s))
        return [*_ranged(rows), *_energy(self.scenario, rows), *self._sources()]

    def _sources(self) -> list[str]:
        named = ("quality", "step_time", "step_time_range", "step_time_error", "price")
        return [f"{name.replace('_', ' ')}: {self.sources[name]}" for name in named if name in self.sources]

    def bills(self, place: int) -> list[Bill]:
        """A row's tokens at every hosted model with a price, the cheapest first."""
        row, tokens = self.rows[place], self.tokens[place]
        prices = find_apis(self.scenario).values()
        return sorted((bill(tokens, price, row.accuracy, row.usd_per_hour) for price in prices),
                      key=lambda one: (one.usd_per_problem, one.model))  # fmt: skip

    def _api_lines(self, rows: Sequence[StrategyRow]) -> Iterator[str]:
        """The shown row beside its hosted model, and a day over the tiers."""
        model = self.scenario.problems.api_model if self.scenario.problems else None
        if model:
            for place, row in enumerate(self.rows):
                if row in rows:
                    found = next(
                        one for one in self.bills(place) if one.model == find_api(self.scenario, model).model
                    )
                    yield bill_text(row.strategy, found, row.usd_per_correct, row.problems_per_hour)
        if self.routing is not None:
            yield str(self.routing)

    def _engine_lines(self, row: StrategyRow) -> Iterator[str]:
        """What the engine changes of a row's accuracy, and how far so few simulated problems leave that open."""
        if row.accuracy_low is None or row.accuracy_high is None:
            return
        drawn = next(one for one in self.expectation.drawn if one.spec.name == row.strategy)
        wide, asked = 50 * (row.accuracy_high - row.accuracy_low), self.expectation.precision
        is_open = drawn.shift_variance > 0 and wide > asked
        if row.engine_points or is_open:
            changed = points_text(row.engine_points)
            needed = ceil(row.num_problems * (wide / asked) ** 2)
            more = f", {counted(row.num_problems, 'problem')}; some {needed:,} would tell to {asked:g} points"
            yield (
                f"{row.strategy}: pruning or another order changes {changed} points, as simulated"
                f"{more if is_open else ''}"
            )

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        return make_frame(self.to_dict()["strategies"])

    def __repr__(self) -> str:
        """Which strategies, best first; `print` has the table."""
        return f"<Comparison of {', '.join(row.strategy for row in self.rows)}>"

    def __str__(self) -> str:
        """The table, best first, and what it means."""
        return self.text()

    def text(self, columns: Sequence[str] = ()) -> str:
        """The same with other columns: names or groups of `strategy_table.COLUMNS` and `GROUPS`."""
        names, shared = short_names(self.specs)
        order = sorted(
            range(len(self.rows)), key=lambda i: (-self.rows[i].accuracy, self.rows[i].latency_p99_s)
        )
        rows = [self.rows[i] for i in order]
        head = [f"NOTE {self.caution}"] if self.caution else []
        above, *table = _split(table_lines(rows, [names[i] for i in order], columns))
        alike = "; ".join(part for part in (shared, *above) if part)
        head += [f"all: {alike}"] if alike else []
        short = {row.strategy: name for row, name in zip(self.rows, names, strict=True)}
        notes = [_renamed(text, short) for text in self.notes()]
        lines = [line for text in notes for line in wrapped(text)]
        return "\n".join([*(line for text in head for line in wrapped(text)), *table[0], "", *lines])

    def notes(self) -> Iterator[str]:
        """What belongs under the table; the choice comes last."""
        rows = sorted(self.rows, key=lambda r: (-r.accuracy, r.latency_p99_s))
        over = self.interval_of
        yield "* = nobody is as accurate, as fast (p99) and as cheap; who cannot be told apart is as accurate"
        yield f"accuracy: {over['accuracy_low, accuracy_high']}; latency, cost: {rows[0].num_problems:,} simulated"
        yield from (str(part) for part in (self.equal, self.frontier) if part is not None)
        cheapest = self.caps.get("cost_optimal")
        optimal = f"; cheapest per correct answer of those simulated: {cheapest:,.0f}" if cheapest else ""
        yield f"thinking budget: {self.caps['p99_of_traces']:,.0f} tokens cut one trace in a hundred{optimal}"
        for row in rows:
            if row.verdict != "completed":
                yield f"{row.strategy}: {counted(row.num_problems, 'problem')} solved, then {row.verdict}"
            yield from self._engine_lines(row)
        yield from (f"advice: {text}" for text in self.advice)
        yield from (f"caveat: {text}" for text in self.caveats)
        shown = next((row for row in rows if row.strategy == self.choice), rows[0])
        yield from _sampled_line(shown)
        yield from _ranged([shown])
        yield from _energy(self.scenario, [shown])
        yield from self._api_lines([shown])
        yield from self._sources()
        said = turns_text(self.turns)
        if said:
            yield said
        yield f"choice: {self.reason}" if self.choice else self.reason


def _split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands above a table's titles, and the table."""
    title = next(i for i, line in enumerate(lines) if line.startswith("   strategy"))
    return list(lines[:title]), list(lines[title:])


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with the names that the table has."""
    for full in sorted(names, key=len, reverse=True):
        text = text.replace(full, names[full])
    return text


def _document(apart: AccuracyDifference) -> dict[str, Any]:
    return {"a": apart.a, "b": apart.b, "points": apart.points, "low": apart.low, "high": apart.high,
            "tie": apart.is_tie, "text": f"{'tie: ' if apart.is_tie else ''}{apart}"}  # fmt: skip


@dataclass(slots=True)
class _Runs:
    """One strategy simulated: as predicted, and at both ends of what steps may take."""

    row: StrategyRow
    sample: Sampling
    tokens: BilledTokens
    ends: tuple[StrategyRow, ...]
    caveats: tuple[str, ...]
    sources: dict[str, str]


def compare(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    *,
    setups: dict[str, Setup] | None = None,
    ranges: bool = True,
    robust: bool = False,
    precision: float = PRECISION,
    max_draws: int = MAX_DRAWS,
    over: Over = "problems",
    max_dollars_per_hour: float = inf,
    requests_per_day: float = 100_000,
    sensitivity: bool = True,
    progress: Callable[[int, int], None] | None = None,
    observer: Observer = NO_OBSERVER,
) -> Comparison:
    """Run every strategy of the scenario over the same problems.

    `scenario` may be a bundled name, a file, or a dictionary of what a file would say. `ranges`: each is run at both
    ends of what its steps may take too, three runs instead of one. `robust`: choose by the slow end. `precision`,
    `max_draws`, `over`: how sure accuracies are to be, and of what (`workload.expectation.expect`).
    Strategies whose GPUs cost more than `max_dollars_per_hour` are not chosen. `sensitivity`: look for what would turn
    the choice (`search.sensitivity`). `requests_per_day`: that a price file's routes are billed for.
    Raises KvplanError for a scenario without problems, for `robust` without `ranges`, and what `solve` raises.
    """
    scenario = as_scenario(scenario)
    problems = scenario.problems
    if problems is None:
        raise KvplanError("nothing to compare: the scenario has no `problems` with `strategies`")
    if robust and not ranges:
        raise KvplanError("robust chooses by the slow end of the ranges: they cannot be left out")
    check_prices([scenario])
    if not 0 < precision < inf or max_draws < 1:
        raise KvplanError(f"precision ({precision:g} points) and max_draws ({max_draws:,}) must be above 0")
    specs = [spec for said in problems.strategies for spec in said.expanded()]
    if problems.api_model:  # what is wrong with prices is said before the runs
        find_api(scenario, problems.api_model)
    route_day(find_book(scenario).routes, requests_per_day)
    planned = [setups or set_up_all(only_models_of(scenario, spec)) for spec in specs]
    longest = [lengths_of(one) for one in planned]
    expectation = expect(
        problems, specs, scenario.folder, precision=precision, max_draws=max_draws, over=over, max_model_len=longest
    )  # fmt: skip
    done: list[_Runs] = []
    for number in range(len(specs)):
        runs = _simulated(scenario, expectation, number, planned[number], ranges, observer)
        if runs is None:
            break
        done.append(runs)
        if progress is not None:
            progress(number + 1, len(specs))
    if not done:
        raise KeyboardInterrupt
    found = _compared(
        scenario, specs[: len(done)], expectation, done, robust, max_dollars_per_hour, requests_per_day
    )
    if sensitivity and found.choice and len(done) == len(specs):
        found.turns = _turns(found, planned[found.chosen.place], min(BUDGET, max_draws))
    return replace(found, interrupted=len(done) < len(specs))


def _turns(found: Comparison, setups: dict[str, Setup], max_draws: int) -> list[Turn]:
    """What would turn the choice: quality, time, price, load."""
    scenario, chosen, rows = found.scenario, found.chosen, found.rows
    return [
        *accuracy_turns(scenario, found.expectation, chosen.fit, chosen.place, max_draws),
        *time_turns(scenario, rows, chosen.place),
        *price_turns(rows, chosen.tied, chosen.place),
        *load_turns(scenario, found.specs[chosen.place], setups),
    ]


def _simulated(
    scenario: Scenario, expectation: Expectation, number: int, planned: dict[str, Setup], ranges: bool,
    observer: Observer,
) -> _Runs | None:  # fmt: skip
    """One strategy on the clock; None when that was interrupted. Adds what the engine changes to its expectation."""
    problems, spec = scenario.problems, expectation.drawn[number].spec
    assert problems is not None
    found = solve(scenario, spec, setups=planned, observer=observer)
    if found.verdict == "interrupted":
        return None
    tasks, drawn = draw_tasks(problems, scenario.folder), expectation.drawn[number]
    if found.solved:
        add_engine(problems, drawn, tasks, found.solved)
    expected = expectation.expected(number)
    row = strategy_row(scenario, problems, spec, found, accuracy=expected.accuracy)
    sample = sample_of(problems, tasks, found.solved)
    row = replace(
        _sure(row, expected, sample),
        sd_between_problems=100 * sqrt(expected.estimate.between),
        sd_within_problem=100 * sqrt(expected.estimate.within),
        is_exact=expected.is_exact,
        engine_points=100 * drawn.shift,
    )
    runs: list[SolveResult] = []
    if ranges and is_doubted(planned):
        ends_of = find_ends(found.result.is_extrapolated)
        runs = [solve(scenario, spec, setups=at_end(planned, e), observer=observer) for e in ends_of]
    if any(run.verdict == "interrupted" for run in runs):
        return None
    peak = row.sharing_peak_blocks
    ends = tuple(
        _sure(
            strategy_row(scenario, problems, spec, run, peak, expected.accuracy),
            expected, sample_of(problems, tasks, run.solved),
        )
        for run in runs
    )  # fmt: skip
    return _Runs(
        row=_ranged_row(row, found, ends, runs, planned) if ranges else row,
        sample=sample,
        tokens=tokens_of(found.records, len(found.solved)),
        ends=ends,
        caveats=tuple(found.result.caveats),
        sources=found.result.sources,
    )


def _sure(row: StrategyRow, expected: Expected, sample: Sampling) -> StrategyRow:
    """The row with its intervals: of accuracy as expected, of time and cost over the problems it was simulated on."""
    costs = {name: getattr(row, name) for name in (*PER_CORRECT, "correct_per_s")}
    return replace(
        row,
        accuracy_low=expected.interval.low,
        accuracy_high=expected.interval.high,
        sampling=sampled(sample, costs, expected.accuracy, expected.estimate.variance),
    )


def _compared(
    scenario: Scenario, specs: list[StrategySpec], expectation: Expectation, done: Sequence[_Runs], robust: bool,
    max_usd_per_hour: float, requests_per_day: float,
) -> Comparison:  # fmt: skip
    problems = scenario.problems
    assert problems is not None
    rows = _with_pareto([runs.row for runs in done], expectation)
    field_of = Field(scenario, expectation, [runs.sample for runs in done], max_usd_per_hour)
    chosen = field_of.choose([runs.ends[1] if runs.ends else runs.row for runs in done] if robust else rows)
    slow = "; times and costs at the slow end of what steps may take" if robust and done[0].ends else ""
    chosen = replace(chosen, reason=chosen.reason + slow + _turned(field_of, done, chosen.name))
    tasks = draw_tasks(problems, scenario.folder)
    caps = recommended_caps(problems, tasks, specs, rows)
    return Comparison(
        scenario=scenario, rows=rows, specs=specs, expectation=expectation,
        samples=[runs.sample for runs in done], tokens=[runs.tokens for runs in done],
        routing=route_day(find_book(scenario).routes, requests_per_day), caution=caution(problems), chosen=chosen,
        caps=caps, advice=list(advice(problems, specs, tasks, caps["p99_of_traces"])),
        caveats=tuple(dict.fromkeys(text for runs in done for text in runs.caveats)), sources=done[-1].sources,
    )  # fmt: skip


def _with_pareto(rows: list[StrategyRow], expectation: Expectation) -> list[StrategyRow]:
    """The rows, marked where no other is as accurate, as fast and as cheap; who cannot be told apart is as accurate."""
    takes = [(r.latency_p99_s, inf if r.usd_per_correct is None else r.usd_per_correct) for r in rows]

    def beats(one: int, other: int) -> bool:
        if one == other or any(a > b for a, b in zip(takes[one], takes[other], strict=True)):
            return False
        apart = expectation.difference(one, other)
        return apart.low > 0 or (apart.is_tie and takes[one] != takes[other])

    every = range(len(rows))
    return [replace(row, pareto=not any(beats(j, i) for j in every)) for i, row in enumerate(rows)]


def _ranged_row(
    row: StrategyRow, found: SolveResult, ends: Sequence[StrategyRow], runs: Sequence[SolveResult],
    planned: Mapping[str, Setup],
) -> StrategyRow:  # fmt: skip
    """The row with its ranges; what is stated takes just so long."""
    said = flips(found.result, [run.result for run in runs]) if runs else ()
    return row.with_ends(ends or (row, row), watts_doubt(planned), tuple(said))


def _turned(field_of: Field, done: Sequence[_Runs], choice: str) -> str:
    """Which other choice the ends of the step times' range would make; "" where they make the same."""
    if not any(runs.ends for runs in done):
        return ""
    said = []
    for place, name in enumerate(END_NAMES):
        other = field_of.choose([runs.ends[place] if runs.ends else runs.row for runs in done]).name
        if other != choice:
            said.append(f"{other or 'none keeps the limits'} at the {name} end of the step's range")
    return f"; within the error of step times it may be another: {', '.join(said)}" if said else ""


SHOWN = (("mean s", "latency_mean_s"), ("p99 s", "latency_p99_s"), ("$/correct", "usd_per_correct"),
         ("J/correct", "joules_per_correct"))  # fmt: skip


def _sampled_line(row: StrategyRow) -> Iterator[str]:
    """The intervals of latency and cost over problems."""
    plain = row.to_dict()
    said = []
    for title, name in SHOWN:
        low, high = plain[f"{name}_sampling_low"], plain[f"{name}_sampling_high"]
        if low is not None:
            said.append(f"{title} {short(low)}..{short(high) if high is not None else '(no bound)'}")
    if said:
        yield f"95 % of {row.strategy}, over problems like the {row.num_problems:,} simulated: {', '.join(said)}"


def _ranged(rows: Sequence[StrategyRow]) -> Iterator[str]:
    """The ranges of latency and cost over what steps may take, and what those could turn."""
    for row in rows:
        if row.ranges.get("latency_p99_s", (0, 0))[0] < row.ranges.get("latency_p99_s", (0, 0))[1]:
            document = row.to_dict()
            said = ", ".join(f"{title} {range_text(document, name)}" for title, name in SHOWN)
            unsure = f"; unsure: {'; '.join(row.unsure)}" if row.unsure else ""
            yield f"90 % of {row.strategy}, over what steps may take: {said}{unsure}"


def _energy(scenario: Scenario, rows: Sequence[StrategyRow]) -> Iterator[str]:
    """kWh and CO2 of the first row, and what they are counted with."""
    best, pricing, (grams_per_kwh, grid) = rows[0].to_dict(), scenario.pricing, find_grid(scenario)
    if best["mean_watts"] is not None:
        watts, *_, kwh, grams = (range_text(best, name) for name in ENERGY)
        yield (
            f"energy of {rows[0].strategy}: {watts} W; {kwh} kWh and {grams} g of CO2 per million output tokens at "
            f"PUE {pricing.pue:g} and {grams_per_kwh:g} g a kWh ({grid})"
        )
