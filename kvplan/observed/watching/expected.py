"""Finished requests beside a scenario's lengths, class by class: which are longer than it says, and how many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.observed.watching.usage_log import Usage
from kvplan.scenario.schema import Scenario
from kvplan.workload.load import draw_load

Array = NDArray[np.float64]

DRAWN = 20_000
"""Requests drawn of a scenario."""
RARE = 0.99
"""Quantile of a class's own lengths beyond which a request is an outlier."""


class ClassLengths(NamedTuple):
    """What a scenario says of one class: tokens of drawn requests."""

    prompt: Array
    thinking: Array
    output: Array
    """Thinking and answer."""


class ClassFinding(NamedTuple):
    """One class of a scenario, and the requests taken for it."""

    name: str
    num_requests: int
    median_output: float
    """Tokens, of the requests; NaN of none."""
    planned_median_output: float
    p90_output: float
    planned_p90_output: float
    limit_tokens: float
    """The class's own 99 % of output."""
    outliers: int
    """Requests beyond it; 1 % are expected."""
    largest: float
    """Output tokens of the longest request."""

    @property
    def is_off(self) -> bool:
        """More outliers than luck: beyond the expected count by three standard deviations."""
        expected = (1 - RARE) * self.num_requests
        return self.outliers > expected + 3 * math.sqrt(expected) + 1

    def __str__(self) -> str:
        share = self.outliers / self.num_requests if self.num_requests else 0.0
        return (
            f"{self.name}: {self.num_requests:,} requests, output median {self.median_output:,.0f} (scenario "
            f"{self.planned_median_output:,.0f}), p90 {self.p90_output:,.0f} ({self.planned_p90_output:,.0f}); "
            f"{share:.1%} beyond {self.limit_tokens:,.0f} tokens where 1 % are expected, longest {self.largest:,.0f}"
        )


def lengths_of(scenario: Scenario) -> dict[str, ClassLengths]:
    """Lengths of each class, drawn as a simulation draws them. Raises KvplanError for a trace that cannot be read."""
    workload = scenario.workload.model_copy(update={"num_requests": DRAWN})
    load = draw_load(workload, scenario.folder)
    found = {}
    for index, name in enumerate(load.class_names):
        mine = load.class_id == index
        if mine.any():
            columns = (load.prompt_tokens, load.thinking_tokens, load.output_tokens)
            found[name] = ClassLengths(*(column[mine].astype(np.float64) for column in columns))
    return found


def compare_classes(
    requests: Sequence[Usage], lengths: Mapping[str, ClassLengths]
) -> tuple[ClassFinding, ...]:
    """Each class beside the requests that name it; those that name none go where their prompt is likeliest."""
    taken: dict[str, list[float]] = {name: [] for name in lengths}
    medians = {name: math.log1p(float(np.median(one.prompt))) for name, one in lengths.items()}
    for request in requests:
        name = request.request_class
        if name not in lengths:
            at = math.log1p(request.prompt_tokens)
            name = min(medians, key=lambda one: abs(medians[one] - at))
        taken[name].append(request.output_tokens)
    return tuple(_finding(name, np.array(taken[name]), one) for name, one in lengths.items())


def _finding(name: str, output: Array, planned: ClassLengths) -> ClassFinding:
    limit = float(np.quantile(planned.output, RARE))

    def of(values: Array, share: float) -> float:
        return float(np.quantile(values, share)) if len(values) else math.nan

    return ClassFinding(
        name=name,
        num_requests=len(output),
        median_output=of(output, 0.5),
        planned_median_output=of(planned.output, 0.5),
        p90_output=of(output, 0.9),
        planned_p90_output=of(planned.output, 0.9),
        limit_tokens=limit,
        outliers=int((output > limit).sum()),
        largest=float(output.max()) if len(output) else math.nan,
    )


# ---- the budget that keeps them in the pool


class ThinkingBudget(NamedTuple):
    """A cap of thinking under which so many requests live in the pool at once."""

    tokens: int
    """thinking_token_budget."""
    share_cut: float
    """Share of requests that think longer."""
    resident_tokens: float
    """Of one request, over its life, under the cap."""

    def to_dict(self) -> dict[str, Any]:
        """As in the document."""
        return self._asdict()


ROOM = 0.9
"""Share of the pool that may be filled on average; the rest is for chance."""


def thinking_budget(requests: Sequence[Usage], at_once: float, pool_tokens: float) -> ThinkingBudget | None:
    """The largest cap of thinking under which `at_once` requests fill no more than `ROOM` of the pool.

    A request holds its prompt and, over its life, half of what it generates; long ones live longer, so they count by
    their length. Output counts as thinking where usage does not tell it apart. None where no cap is needed, or none
    would do.
    """
    prompt = np.array([r.prompt_tokens for r in requests])
    output = np.array([r.output_tokens for r in requests])
    told = np.array([r.thinking_tokens for r in requests])
    thinking = np.where(np.isnan(told), output, np.minimum(told, output))
    if not len(output) or not at_once > 0 or not pool_tokens > 0 or not output.sum():
        return None
    most = ROOM * pool_tokens / at_once

    def resident(cap: float) -> float:
        short = output - np.maximum(0.0, thinking - cap)
        weight = np.maximum(short, 1.0)
        return float(((prompt + short / 2) * weight).sum() / weight.sum())

    if resident(math.inf) <= most or resident(0.0) > most:
        return None
    low, high = 0, int(thinking.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if resident(middle) <= most else (low, middle - 1)
    return ThinkingBudget(low, float((thinking > low).mean()), resident(low))
