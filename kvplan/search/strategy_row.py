"""One strategy's run as a flat row: what was right, what it took, what it cost. Units are in the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any

import numpy as np

from kvplan.formulas.accounting import Floats
from kvplan.formulas.intervals import Interval
from kvplan.formulas.sums import exact_mean
from kvplan.ground.errors import DoesNotFit
from kvplan.ground.units import TICKS_PER_S, GiB
from kvplan.models.load import load_model, path_exists
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import active_parameters
from kvplan.scenario.schema import Scenario
from kvplan.search.beside_api import bill, tokens_of
from kvplan.simulation.pricing import find_api
from kvplan.simulation.records import FINISH_REASONS
from kvplan.simulation.result import ENERGY
from kvplan.simulation.simulator import SolveResult
from kvplan.simulation.uncertainty import span
from kvplan.timing.work import step_work
from kvplan.workload.problems import Problems, StrategySpec, Task, draw_tasks, task_sampler
from kvplan.workload.strategies.alone import run_alone

PER_JOULE = ("joules_per_correct", *ENERGY)
RANGED = ("latency_mean_s", "latency_p50_s", "latency_p99_s", "first_visible_p50_s", "correct_per_s",
          "gpu_s_per_correct", "usd_per_correct", *PER_JOULE)  # fmt: skip
"""Figures with a 90 % range, `_low` to `_high`, from the ends of what steps may take."""
SAMPLED = ("latency_mean_s", "latency_p50_s", "latency_p99_s", "first_visible_p50_s", "correct_per_s",
           "gpu_s_per_correct", "usd_per_correct", "joules_per_correct")  # fmt: skip
"""Figures with a 95 % interval over problems, `_sampling_low` to `_sampling_high` (see `search.sampling`)."""


@dataclass(frozen=True, slots=True)
class StrategyRow:
    """One strategy's line of the table. Units are in the names; None = nothing was right, so no such figure."""

    strategy: str
    accuracy: float
    """Expected over problems and draws; in a row of one run, the run's own."""
    num_problems: int
    """That were simulated."""
    num_branches: int
    generated_tokens: int
    verified_tokens: int
    """Read and written by the verifier."""
    reprefilled_tokens: int
    """Computed again: after preemptions, and prompts that a sibling or parent had computed before."""
    dead_tokens: int
    """Cached tokens that no later prompt can hit, since the thinking before them was left out of it."""
    flops: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p99_s: float
    first_visible_p50_s: float
    correct_per_s: float
    gpu_s_per_correct: float | None
    usd_per_correct: float | None
    usd_per_hour: float
    """Of all GPUs that it runs on."""
    problems_per_hour: float
    """That these GPUs carry as simulated."""
    api_usd_per_correct: float | None
    """The same tokens at the hosted model `api_model`."""
    api_usd_per_problem: float | None
    api_hidden_share: float | None
    """Of that, thinking that nobody sees."""
    break_even_per_hour: float | None
    """Problems an hour from which on one's own GPUs are cheaper than that API."""
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
    mean_watts: float | None = None
    """Of all GPUs while it ran, a verifier's own work left out; None where nobody knows."""
    joules_per_output_token: float | None = None
    kwh_per_million_output_tokens: float | None = None
    gco2_per_million_output_tokens: float | None = None
    """Both at the scenario's PUE and grid factor."""
    joules_per_correct: float | None = None
    accuracy_low: float | None = None
    """95 %, over problems or draws; None in a row of one run."""
    accuracy_high: float | None = None
    sd_between_problems: float | None = None
    """Of the accuracy, points: how problems differ; more problems make its interval narrower."""
    sd_within_problem: float | None = None
    """How draws of one problem, or of equally hard ones, differ; next to 0 where a formula has its chance."""
    is_exact: bool = False
    """Whether the chance on each problem is a formula's, and only problems are drawn."""
    simulated_accuracy: float = 0.0
    """Of the problems simulated, one draw each."""
    engine_points: float = 0.0
    """What the engine changes of the accuracy by pruning and cutting, points; the accuracy has it."""
    sampling: dict[str, Interval] = field(default_factory=dict)
    """Figure -> 95 % interval over problems like those simulated; without those that nothing bounds."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Figure -> (low, high), 90 %; empty where the ends were not simulated."""
    unsure: tuple[str, ...] = ()
    """What the ends of the step times' range decide otherwise."""
    pareto: bool = False
    """No other strategy has this accuracy, as far as they can be told apart, at no more latency (p99) and cost."""

    @property
    def correct_per_gpu_hour(self) -> float:
        """Right answers that an hour of one GPU yields."""
        return 3600 / self.gpu_s_per_correct if self.gpu_s_per_correct else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, each ranged and sampled figure with its ends; None where nobody simulated or nothing bounds."""
        left_out = ("ranges", "sampling")
        plain = {f.name: getattr(self, f.name) for f in fields(StrategyRow) if f.name not in left_out}
        for name in RANGED:
            plain[f"{name}_low"], plain[f"{name}_high"] = self.ranges.get(name, (None, None))
        for name in SAMPLED:
            for end, value in zip(("low", "high"), self.sampling.get(name, (None, None)), strict=True):
                plain[f"{name}_sampling_{end}"] = value if value is not None and isfinite(value) else None
        return plain | {"unsure": list(self.unsure)}

    def with_ends(
        self, ends: Sequence[StrategyRow], own: tuple[float, float], unsure: Sequence[str]
    ) -> StrategyRow:
        """The row with its ranges; `own`: what watts may be off by besides their step times."""
        found = {}
        for name in RANGED:
            values = [getattr(row, name) for row in (self, *ends)]
            both = span(values, own if name in PER_JOULE else None)
            if both is not None:
                found[name] = both
        return replace(self, ranges=found, unsure=tuple(unsure))


def strategy_row(
    scenario: Scenario,
    problems: Problems,
    spec: StrategySpec,
    found: SolveResult,
    peak: dict[str, int] | None = None,
    accuracy: float | None = None,
) -> StrategyRow:
    """One strategy's run as a line of the table; `peak`: its `sharing_peak`, if it is known already.

    What a correct answer takes is told by the expected `accuracy`, or without one by the run's own.

    Raises DoesNotFit when the run solved no problem.
    """
    records, effort, result, solved = found.records, found.effort, found.result, found.solved
    if not solved:
        raise DoesNotFit(f"{spec.name}: no problem was solved; the run ended with {found.verdict}")
    of_run = sum(s.correct for s in solved) / len(solved)
    expected = of_run if accuracy is None else accuracy
    right = expected * len(solved)
    seconds = found.duration / TICKS_PER_S
    took = np.array([s.finish - s.arrival for s in solved]) / TICKS_PER_S
    seen = np.array([s.first_visible - s.arrival for s in solved]) / TICKS_PER_S
    prompt = int((records["prompt_tokens"] - records["hit_tokens"])[records["scheduled"] >= 0].sum())
    recomputed, generated = int(records["recomputed_tokens"].sum()), int(records["output_tokens"].sum())
    usd = result.usd_per_hour * seconds / 3600
    pruned = int((records["finish_reason"] == FINISH_REASONS.index("pruned")).sum())
    per_token = result.pool.bytes_per_token
    busy = result.totals.busy_ticks or 1
    energy = result.to_dict()["energy"]
    joules = None if energy["mean_watts"] is None else energy["mean_watts"] * result.duration_s

    billed = None
    if problems.api_model:
        tokens = tokens_of(records, len(solved))
        billed = bill(tokens, find_api(scenario, problems.api_model), expected, result.usd_per_hour)

    def each(total: float) -> float | None:
        return total / right if right else None

    return StrategyRow(
        strategy=spec.name,
        accuracy=expected,
        simulated_accuracy=of_run,
        num_problems=len(solved),
        num_branches=len(records),
        generated_tokens=generated,
        verified_tokens=effort.verified_tokens + effort.verifier_decode_tokens,
        reprefilled_tokens=max(0, prompt - effort.needed_prompt_tokens) + recomputed,
        dead_tokens=effort.dead_tokens,
        flops=_flops(scenario, problems, found),
        latency_mean_s=exact_mean(took),
        latency_p50_s=float(np.percentile(took, 50)),
        latency_p99_s=float(np.percentile(took, 99)),
        first_visible_p50_s=float(np.percentile(seen, 50)),
        correct_per_s=right / seconds,
        gpu_s_per_correct=each(result.num_gpus * seconds),
        usd_per_correct=each(usd),
        usd_per_hour=result.usd_per_hour,
        problems_per_hour=3600 * len(solved) / seconds if seconds else 0.0,
        api_usd_per_correct=billed.usd_per_correct if billed else None,
        api_usd_per_problem=billed.usd_per_problem if billed else None,
        api_hidden_share=billed.hidden_share if billed else None,
        break_even_per_hour=billed.break_even_per_hour if billed else None,
        kv_gib_s=result.pool.block_s * result.pool.block_size * per_token / GiB,
        kv_logical_gib_s=float(records["kv_token_us"].sum()) / 1e6 * per_token / GiB,
        kv_peak_fraction=result.pool.peak_fraction,
        concurrency=result.totals.batch_ticks / busy,
        preemptions=int(records["num_preemptions"].sum()),
        pruned_branches=pruned,
        cut_share=effort.cut_traces / max(1, effort.traces),
        false_alarms=effort.false_alarms,
        misses=effort.misses,
        sharing_peak_blocks=peak or sharing_peak(problems, spec, draw_tasks(problems, scenario.folder)[0]),
        limited_by=str(result.limited_by),
        verdict=found.verdict,
        joules_per_correct=None if joules is None else each(joules),
        **{name: energy[name] for name in ENERGY},
    )


def sharing_peak(problems: Problems, spec: StrategySpec, task: Task, block_size: int = 16) -> dict[str, int]:
    """Blocks that one problem's branches hold when they hold most, under each sharing rule; tokens for `token`."""
    alone = run_alone(task.problem, spec.start(), task_sampler(problems, spec, task), block_size=block_size)
    assert alone.peak is not None
    return {rule: alone.peak.blocks(rule) for rule in ("none", "full_block", "copy_on_write", "token")}


def _flops(scenario: Scenario, problems: Problems, found: SolveResult) -> float:
    """2 FLOPs per active parameter and token, and attention's over the contexts; verifier included."""
    columns = ("prompt_tokens", "hit_tokens", "output_tokens", "recomputed_tokens")
    replica, verifier, total = found.records["replica"], problems.verifier, 0.0
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
