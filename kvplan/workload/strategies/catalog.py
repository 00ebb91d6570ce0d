"""Strategies by name, and a strategy with its parameters as a scenario states them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.workload.strategies import cascades, parallel, sequential, stepwise, stopping
from kvplan.workload.strategies.params import ModelName
from kvplan.workload.strategies.strategy import Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "single_pass": sequential.single_pass,
    "extended_thinking": sequential.extended_thinking,
    "stated_budget": sequential.stated_budget,
    "budget_forcing": sequential.budget_forcing,
    "best_of_n": parallel.best_of_n,
    "self_consistency": parallel.self_consistency,
    "weighted_vote": parallel.weighted_vote,
    "confidence_stopped_vote": stopping.confidence_stopped_vote,
    "early_stopped_vote": stopping.early_stopped_vote,
    "first_finish": parallel.first_finish,
    "first_agreement": stopping.first_agreement,
    "fork_join": parallel.fork_join,
    "adaptive_best_of_n": parallel.adaptive_best_of_n,
    "speculative_rejection": stepwise.speculative_rejection,
    "cascade": cascades.cascade,
    "draft_then_verify": cascades.draft_then_verify,
    "compaction": sequential.compaction,
    "sequential_revision": sequential.sequential_revision,
    "beam_search": stepwise.beam_search,
    "diverse_tree_search": stepwise.diverse_tree_search,
    "backtracking_search": stepwise.backtracking_search,
    "prune_by_steps": stepwise.prune_by_steps,
    "tree_search": stepwise.tree_search,
    "pruned_under_pressure": parallel.pruned_under_pressure,
    "grpo_group": parallel.grpo_group,
    "monte_carlo_labels": stepwise.monte_carlo_labels,
    "chat": sequential.chat,
}
"""What `strategy:` may say in a scenario."""


@lru_cache(maxsize=64)
def parameters(name: str) -> type[BaseModel]:
    """The parameters of strategy `name` as a pydantic model: types, limits, defaults."""
    if name not in STRATEGIES:
        raise KvplanError(
            f"unknown strategy {name!r}{did_you_mean(name, STRATEGIES)}; there are {', '.join(STRATEGIES)}"
        )
    function = STRATEGIES[name]
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], p.default) for p in signature(function).parameters.values()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def read(name: str, **values: Any) -> dict[str, Any]:
    """All parameters of strategy `name`, defaults filled in and values read: 4K is 4,096.

    Raises KvplanError for an unknown name or parameter, or a value out of its range.
    """
    model = parameters(name)
    try:
        settings = model(**values)
    except ValidationError as error:
        raise KvplanError(_first_problem(name, model, error)) from None
    return {key: getattr(settings, key) for key in model.model_fields}


def model_names(name: str, **values: Any) -> set[str]:
    """The further models that strategy `name` runs branches on, as its parameters name them."""
    hints = get_type_hints(STRATEGIES[name], include_extras=True)
    chosen = read(name, **values)
    return {chosen[key] for key, hint in hints.items() if hint == ModelName and chosen[key]}


def make(name: str, **values: Any) -> Callable[[], Strategy]:
    """Return a function that starts strategy `name` with these parameters; each call starts it afresh.

    Raises what `read` raises, and KvplanError for parameters that contradict each other.

    >>> plan = make("best_of_n", n=4)()
    >>> len(next(plan).start)
    4
    """
    chosen, function = read(name, **values), STRATEGIES[name]
    next(function(**chosen))  # a strategy checks its parameters against each other before it first asks
    return partial(function, **chosen)


def _first_problem(name: str, model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"strategy {name} has no parameter {key!r}{did_you_mean(key, model.model_fields)}"
    return f"strategy {name}: {key}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
