"""What a tier of KV beyond the GPUs buys: the same requests with and without it, side by side, and advice from that."""

from __future__ import annotations

from typing import Any, TypeVar

from kvplan.scenario.schema import Deployment, KvOffloading, Scenario
from kvplan.simulation.deploy import set_ups
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

D = TypeVar("D", bound=Deployment)

COMPARED = (
    "prefix_cache_hit_rate",
    "prefill_tokens",
    "recomputed_tokens",
    "num_preemptions",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "output_throughput",
    "request_goodput",
    "busy_s",
    "usd",
    "usd_per_million_output_tokens",
)
"""What both runs are compared in, keys of the document; prefill_tokens counts what was computed of prompts, that which
preemptions had lost included, and busy_s the engines' time in steps."""
MATTERS = 0.02
"""A figure that changes by less than this share is the same (assumed)."""


def add_tier_gain(scenario: Scenario, result: Result, observer: Observer = NO_OBSERVER) -> None:
    """Simulate the same requests without any tier and note both sides in a result, and what follows from them.

    Does nothing where there is no tier, or where a run broke off.
    """
    if result.offload is None or result.verdict == "interrupted":
        return
    plain = without_tier(scenario)
    setups = set_ups(plain) if plain.problems is None else None
    other = simulate(plain, setups=setups, keep_records=False, keep_samples=False, observer=observer)
    if other.verdict == "interrupted":
        return
    result.offload_comparison = {"with": side(result), "without": side(other)}
    result.advice.extend(tier_advice(result))


def without_tier(scenario: Scenario) -> Scenario:
    """The scenario with no tier in any of its deployments."""
    models = {name: _plain(deployment) for name, deployment in scenario.models.items()}
    return _plain(scenario).model_copy(update={"models": models})


def _plain(deployment: D) -> D:
    engine = deployment.engine.model_copy(update={"kv_offloading_size": None, "kv_transfer_config": None})
    return deployment.model_copy(update={"engine": engine, "kv_offloading": KvOffloading()})


def side(result: Result) -> dict[str, Any]:
    """The figures of `COMPARED`, and tokens loaded from a tier."""
    document = result.to_dict()
    flat = document | document["cost"] | {"prefill_tokens": result.totals.prefill_tokens}
    loaded = result.offload["loaded_tokens"] if result.offload else 0
    return {"loaded_tokens": loaded, **{name: flat[name] for name in COMPARED}}


def tier_advice(result: Result) -> list[str]:
    """What the two sides say: that the tier pays, in what, or that it buys nothing; nothing where nobody read it."""
    both = result.offload_comparison
    if both is None or not both["with"]["loaded_tokens"]:
        return []
    ttft, busy, usd, computed = (
        _change(both, name)
        for name in ("mean_ttft_ms", "busy_s", "usd_per_million_output_tokens", "prefill_tokens")
    )
    told = (
        f"mean TTFT {_moved(both, 'mean_ttft_ms', ',.0f')} ms ({_percent(ttft)}), prompt tokens computed "
        f"{_percent(computed)}, GPU time {_percent(busy)}, $ per million output tokens {_percent(usd)}"
    )
    later, cheaper = ttft > MATTERS, min(busy, usd) < -MATTERS
    if later and cheaper:
        return [
            f"the tier saves GPU time, yet first tokens come later: copies take longer than computing; {told}"
        ]
    if later:
        return [f"the tier makes it worse: copies take longer than computing what they bring; {told}"]
    if ttft < -MATTERS or cheaper:
        return [f"the tier pays: beside the same requests without it, {told}"]
    return [f"the tier buys nothing at this load: beside the same requests without it, {told}"]


def _change(both: dict[str, dict[str, Any]], name: str) -> float:
    """By which share of the figure without a tier it changes; 0 where it cannot be told."""
    new, old = both["with"][name], both["without"][name]
    return new / old - 1 if new is not None and old else 0.0


def _percent(change: float) -> str:
    return f"{change:+.0%}" if abs(change) >= 0.005 else "the same"


def _moved(both: dict[str, dict[str, Any]], name: str, form: str) -> str:
    return " to ".join("-" if both[which][name] is None else format(both[which][name], form)
                       for which in ("without", "with"))  # fmt: skip
