"""The same problems, luck and GPUs through several strategies: who gets most right per second, dollar, GiB-second.

Runs `solve` once per strategy and reads one row off each run. Knows no clock and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any, NamedTuple

import numpy as np

import kvplan
from kvplan.errors import DoesNotFit, KvplanError
from kvplan.formulas.accounting import Floats, api_cost_usd, api_price
from kvplan.models.load import load_model, path_exists
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import active_parameters
from kvplan.scenario.schema import Scenario
from kvplan.search.choices import Option, best_within, pareto
from kvplan.simulation.deploy import Setup
from kvplan.simulation.records import FINISH_REASONS
from kvplan.simulation.solve import Solution, solve
from kvplan.simulation.watch import NOBODY, Watch
from kvplan.timing.work import step_work
from kvplan.units import TICKS_PER_S, GiB
from kvplan.workload.problems import Problems, StrategySpec, Task, draw_tasks, task_sampler
from kvplan.workload.strategies.alone import run_alone

SCHEMA_VERSION = 1
TREES = ("beam_search", "tree_search", "prune_by_steps")
SURE = 0.02
"""A problem with p this close to 0 or 1 gains nothing from more samples."""


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy's line of the table. Units are in the names; None = nothing was right, so no such figure."""

    strategy: str
    accuracy: float
    num_problems: int
    num_branches: int
    generated_tokens: int
    verified_tokens: int
    """Read and written by the verifier."""
    reprefilled_tokens: int
    """Computed again: after preemptions, and prompts that a sibling or parent had computed before."""
    dead_tokens: int
    """Cached tokens that no later prompt can hit, since the thinking before them was left out of it."""
    flops: float
    latency_p50_s: float
    latency_p99_s: float
    first_visible_p50_s: float
    correct_per_s: float
    gpu_s_per_correct: float | None
    usd_per_correct: float | None
    api_usd_per_correct: float | None
    """The same tokens at the hosted model `api_model`."""
    kv_gib_s: float
    """Physical: blocks held over time."""
    kv_logical_gib_s: float
    """Every branch counted whole."""
    kv_peak_fraction: float
    concurrency: float
    """Sequences in a step, mean over busy time."""
    preemptions: int
    pruned_branches: int
    cut_share: float
    """Traces whose thinking was closed by a budget or which were cut by max_tokens."""
    false_alarms: int
    """Right work that the verifier scored below one half."""
    misses: int
    """Wrong work that it scored above."""
    sharing_peak_blocks: dict[str, int]
    """Blocks of one problem's branches at their peak, under each sharing rule, with nothing in their way."""
    limited_by: str
    verdict: str
    pareto: bool = False
    """No other strategy has at least this accuracy at no more latency (p99) and cost."""

    @property
    def correct_per_gpu_hour(self) -> float:
        """Right answers that an hour of one GPU yields."""
        return 3600 / self.gpu_s_per_correct if self.gpu_s_per_correct else 0.0


@dataclass(slots=True)
class Comparison:
    """All rows, what they rest on, what to choose."""

    scenario: Scenario
    rows: list[Row]
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
    interrupted: bool = False
    """Ctrl-C came: only the strategies that were done are here."""

    @property
    def budgets(self) -> list[tuple[int, Row]]:
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
            "strategies": [{f.name: getattr(row, f.name) for f in fields(Row)} for row in self.rows],
            "choice": self.choice or None,
            "reason": self.reason,
            "recommended_thinking_budget": self.caps,
            "advice": self.advice,
            "caveats": list(self.caveats),
        }

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["strategies"])


def compare(
    scenario: Scenario,
    *,
    setups: dict[str, Setup] | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch = NOBODY,
) -> Comparison:
    """Run every strategy of the scenario over the same problems.

    Raises KvplanError for a scenario without problems, and what `solve` raises.
    """
    problems = scenario.problems
    if problems is None:
        raise KvplanError("nothing to compare: the scenario has no `problems` with `strategies`")
    specs = [spec for said in problems.strategies for spec in said.expanded()]
    rows: list[Row] = []
    caveats: dict[str, None] = {}
    for number, spec in enumerate(specs):
        found = solve(scenario, spec, setups=setups, watch=watch)
        if found.verdict == "interrupted":
            break
        rows.append(strategy_row(scenario, problems, spec, found))
        caveats |= dict.fromkeys(found.result.caveats)
        if progress is not None:
            progress(number + 1, len(specs))
    if not rows:
        raise KeyboardInterrupt
    rows, interrupted = _with_pareto(rows), len(rows) < len(specs)
    choice, reason = _choose(scenario, problems, rows)
    caps = recommended_caps(scenario, problems, specs, rows)
    advice = [text for rule in RULES for text in rule(Case(scenario, problems, specs, rows, caps))]
    return Comparison(
        scenario, rows, _caution(problems), choice, reason, caps, advice, tuple(caveats), interrupted
    )


def strategy_row(scenario: Scenario, problems: Problems, spec: StrategySpec, found: Solution) -> Row:
    """One strategy's run as a line of the table. Raises DoesNotFit when the run solved no problem."""
    records, effort, result, solved = found.records, found.effort, found.result, found.solved
    if not solved:
        raise DoesNotFit(f"{spec.name}: no problem was solved; the run ended with {found.verdict}")
    right = sum(s.correct for s in solved)
    seconds = found.duration / TICKS_PER_S
    took = np.array([s.finish - s.arrival for s in solved]) / TICKS_PER_S
    seen = np.array([s.first_visible - s.arrival for s in solved]) / TICKS_PER_S
    prompt = int((records["prompt_tokens"] - records["hit_tokens"])[records["scheduled"] >= 0].sum())
    recomputed, generated = int(records["recomputed_tokens"].sum()), int(records["output_tokens"].sum())
    usd = result.usd_per_hour * seconds / 3600
    pruned = int((records["finish_reason"] == FINISH_REASONS.index("pruned")).sum())
    per_token = result.pool.bytes_per_token
    busy = result.totals.busy_ticks or 1

    def each(total: float) -> float | None:
        return total / right if right else None

    return Row(
        strategy=spec.name,
        accuracy=right / len(solved),
        num_problems=len(solved),
        num_branches=len(records),
        generated_tokens=generated,
        verified_tokens=effort.verified_tokens + effort.verifier_decode_tokens,
        reprefilled_tokens=max(0, prompt - effort.needed_prompt_tokens) + recomputed,
        dead_tokens=effort.dead_tokens,
        flops=_flops(scenario, problems, found),
        latency_p50_s=float(np.percentile(took, 50)),
        latency_p99_s=float(np.percentile(took, 99)),
        first_visible_p50_s=float(np.percentile(seen, 50)),
        correct_per_s=right / seconds,
        gpu_s_per_correct=each(result.num_gpus * seconds),
        usd_per_correct=each(usd),
        api_usd_per_correct=each(_api_usd(problems, records)) if problems.api_model else None,
        kv_gib_s=result.pool.block_s * result.pool.block_size * per_token / GiB,
        kv_logical_gib_s=float(records["kv_token_us"].sum()) / 1e6 * per_token / GiB,
        kv_peak_fraction=result.pool.peak_fraction,
        concurrency=result.totals.batch_ticks / busy,
        preemptions=int(records["num_preemptions"].sum()),
        pruned_branches=pruned,
        cut_share=effort.cut_traces / max(1, effort.traces),
        false_alarms=effort.false_alarms,
        misses=effort.misses,
        sharing_peak_blocks=sharing_peak(problems, spec, draw_tasks(problems, scenario.folder)[0]),
        limited_by=str(result.limited_by),
        verdict=found.verdict,
    )


def sharing_peak(problems: Problems, spec: StrategySpec, task: Task, block_size: int = 16) -> dict[str, int]:
    """Blocks that one problem's branches hold when they hold most, under each sharing rule; tokens for `token`."""
    alone = run_alone(task.problem, spec.start(), task_sampler(problems, spec, task), block_size=block_size)
    assert alone.peak is not None
    return {rule: alone.peak.blocks(rule) for rule in ("none", "full_block", "copy_on_write", "token")}


def _api_usd(problems: Problems, records: Any) -> float:
    price = api_price(problems.api_model or "")
    hidden = records["thinking_tokens"]
    cost = api_cost_usd(
        price,
        records["prompt_tokens"],
        records["output_tokens"] - hidden,
        hidden,
        cached_tokens=records["hit_tokens"],
    )
    return float(cost.sum())


def _flops(scenario: Scenario, problems: Problems, found: Solution) -> float:
    """2 FLOPs per active parameter and token, and attention's over the contexts; verifier included."""
    columns, verifier = (
        ("prompt_tokens", "hit_tokens", "output_tokens", "recomputed_tokens"),
        problems.verifier,
    )
    replica, total = found.records["replica"], 0.0
    for name in sorted(set(found.models.values())):
        here = np.isin(replica, [place for place, model in found.models.items() if model == name])
        counts = [found.records[column][here].astype(float) for column in columns]
        total += _pass_flops(_model(scenario, name), *counts)
    if verifier.needs_model and verifier.model:
        scored = found.effort.verified_tokens + found.effort.verifier_decode_tokens
        total += 2.0 * active_parameters(_model(scenario, verifier.model)) * scored
    return total


def _pass_flops(model: ModelSpec, prompt: Floats, hit: Floats, out: Floats, again: Floats) -> float:
    context = float((out * (prompt + out / 2)).sum())
    pairs = float(((prompt**2 - hit**2) / 2 + again * (prompt + out) / 2).sum())
    attention = sum(
        a.num_layers * (a.decode_flops_per_token * context + a.pair_flops * pairs)
        for a in step_work(model).attention
    )
    tokens = float((prompt - hit + out + again).sum())
    return 2.0 * active_parameters(model) * tokens + attention


def _model(scenario: Scenario, name: str) -> ModelSpec:
    beside = scenario.folder / name
    return load_model(str(beside) if path_exists(beside) else name)


def _with_pareto(rows: list[Row]) -> list[Row]:
    cost = [inf if row.usd_per_correct is None else row.usd_per_correct for row in rows]
    front = pareto([row.accuracy for row in rows], [[row.latency_p99_s for row in rows], cost])
    return [replace(row, pareto=bool(on)) for row, on in zip(rows, front, strict=True)]


def _choose(scenario: Scenario, problems: Problems, rows: list[Row]) -> tuple[str, str]:
    """The most accurate strategy within T_max and above the minimum; of equals the cheaper."""
    limit = scenario.slo.e2el_ms / 1000 if scenario.slo.e2el_ms else inf
    options = [Option(r.strategy, r.accuracy, r.latency_p99_s, r.usd_per_correct or inf) for r in rows]
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
    scenario: Scenario, problems: Problems, specs: list[StrategySpec], rows: list[Row]
) -> dict[str, float]:
    """Thinking budgets: the 99th percentile of what traces would think, and the cheapest budget per right answer
    among those compared (absent when no budgets were)."""
    facts, tasks = problems.quality, draw_tasks(problems, scenario.folder)
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


class Case(NamedTuple):
    """What advice looks at."""

    scenario: Scenario
    problems: Problems
    specs: list[StrategySpec]
    rows: list[Row]
    caps: dict[str, float]


def _no_cap(case: Case) -> list[str]:
    caps = {"max_tokens", "thinking_token_budget", "effort", "max_thinking_tokens", "step_tokens"}
    free = [spec.name for spec in case.specs if not caps & spec.params.keys() and not spec.router]
    return [
        f"no hard cap on thinking in {', '.join(free)}: one trace in a hundred thinks beyond "
        f"{case.caps['p99_of_traces']:,.0f} tokens and holds its KV all that time; set thinking_token_budget there"
    ] if free else []  # fmt: skip


def _trees_first(case: Case) -> list[str]:
    names = {spec.strategy for spec in case.specs}
    if names & set(TREES) and "best_of_n" not in names:
        return [
            "compare best_of_n before trees: it needs no step scores and is hard to beat at the same tokens"
        ]
    return []


def _tree_without_prm(case: Case) -> list[str]:
    if {spec.strategy for spec in case.specs} & set(TREES) and case.problems.verifier.kind not in (
        "prm",
        "generative",
    ):
        return [
            f"a tree without a process reward model: a {case.problems.verifier.kind} verifier scores whole answers, "
            "so the step scores simulated here have no source"
        ]
    return []


def _wasted_samples(case: Case) -> list[str]:
    uniform = {"best_of_n", "self_consistency", "pruned_under_pressure"}
    if not any(spec.strategy in uniform for spec in case.specs):
        return []
    p = np.array([task.skill.p for task in draw_tasks(case.problems, case.scenario.folder)])
    share = float(np.mean((p < SURE) | (p > 1 - SURE)))
    if share < 0.2:
        return []
    return [
        f"{share:.0%} of the problems are always or never solved (p beyond {SURE} and {1 - SURE}): samples there buy "
        "nothing; adaptive_best_of_n probes first"
    ]


RULES = (_no_cap, _trees_first, _tree_without_prm, _wasted_samples)
