"""What a tier of KV beyond the GPUs buys: the same requests with and without it, side by side, and advice from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from kvplan.engines.kv_transfer import offloading_gib
from kvplan.scenario.schema import Deployment, KvOffloading, Scenario
from kvplan.simulation.deploy import set_ups, told_tier
from kvplan.simulation.observer import NO_OBSERVER, Observer
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

D = TypeVar("D", bound=Deployment)
Side = dict[str, Any]

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

    With files below host memory also with host memory alone. Does nothing where there is no tier, or where a run broke
    off.
    """
    if result.offload is None or result.verdict == "interrupted":
        return
    sides: dict[str, dict[str, Any] | None] = {"with": side(result), "without_files": None}
    others = {"without": without_tier(scenario)}
    if result.offload["file_tiers"]:
        others = {"without_files": without_files(scenario), **others}
    for name, told in others.items():
        setups = set_ups(told) if told.problems is None else None
        other = simulate(told, setups=setups, keep_records=False, keep_samples=False, observer=observer)
        if other.verdict == "interrupted":
            return
        sides[name] = side(other)
    result.offload_comparison = sides
    result.advice.extend([*tier_advice(result), *files_advice(result)])


def without_tier(scenario: Scenario) -> Scenario:
    """The scenario with no tier in any of its deployments."""
    return _everywhere(scenario, _plain)


def without_files(scenario: Scenario) -> Scenario:
    """The scenario with host memory alone in all of its deployments that have a tier."""
    return _everywhere(scenario, _host_alone)


def _everywhere(scenario: Scenario, change: Callable[[Any], Any]) -> Scenario:
    models = {name: change(deployment) for name, deployment in scenario.models.items()}
    changed: Scenario = change(scenario).model_copy(update={"models": models})
    return changed


def _host_alone(deployment: D) -> D:
    """vLLM's flag says all that the keys say, so that they stand in its place."""
    kept = told_tier(deployment)
    size = offloading_gib(deployment.engine.kv_offloading_size, deployment.engine.kv_transfer_config)
    engine = deployment.engine.model_copy(update={"kv_offloading_size": size, "kv_transfer_config": None})
    kept = kept.model_copy(update={"spec_name": "CPUOffloadingSpec", "secondary_tiers": ()})
    return deployment.model_copy(update={"engine": engine, "kv_offloading": kept})


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
    return [_verdict(both["with"], both["without"], TIER)]


def files_advice(result: Result) -> list[str]:
    """The same of files below host memory, beside host memory alone; also that nobody read them."""
    both = result.offload_comparison
    if both is None or both["without_files"] is None:
        return []
    assert result.offload is not None
    if not any(tier["read_bytes"] for tier in result.offload["file_tiers"]):
        ttft = _change(both["with"], both["without_files"], "mean_ttft_ms")
        moved = _moved(both["with"], both["without_files"], "mean_ttft_ms", ",.0f")
        waits = f", and looking for them holds requests up: mean TTFT {moved} ms ({_percent(ttft)})"
        return [
            "the files below host memory buy nothing at this load: none was ever read; what returns still lies in host"
            f" memory or on the GPU, or nothing returns{waits if ttft > MATTERS else ''}"
        ]
    return [_verdict(both["with"], both["without_files"], FILES)]


class Words(NamedTuple):
    """How a verdict speaks of what it judges."""

    name: str
    verbs: tuple[str, str, str, str]
    """saves, makes, pays, buys."""
    moves: str
    other: str


TIER = Words("the tier", ("saves", "makes", "pays", "buys"), "copies take", "without it")
FILES = Words(
    "the files below host memory",
    ("save", "make", "pay", "buy"),
    "reading them takes",
    "with host memory alone",
)


def _verdict(new: Side, old: Side, words: Words) -> str:
    ttft, busy, usd, computed = (
        _change(new, old, name)
        for name in ("mean_ttft_ms", "busy_s", "usd_per_million_output_tokens", "prefill_tokens")
    )
    told = (
        f"mean TTFT {_moved(new, old, 'mean_ttft_ms', ',.0f')} ms ({_percent(ttft)}), prompt tokens computed "
        f"{_percent(computed)}, GPU time {_percent(busy)}, $ per million output tokens {_percent(usd)}"
    )
    later, cheaper = ttft > MATTERS, min(busy, usd) < -MATTERS
    saves, makes, pays, buys = (f"{words.name} {verb}" for verb in words.verbs)
    if later and cheaper:
        return f"{saves} GPU time, yet first tokens come later: {words.moves} longer than computing; {told}"
    if later:
        return f"{makes} it worse: {words.moves} longer than computing what they bring; {told}"
    beside = f"beside the same requests {words.other}, {told}"
    if ttft < -MATTERS or cheaper:
        return f"{pays}: {beside}"
    return f"{buys} nothing at this load: {beside}"


def _change(new: Side, old: Side, name: str) -> float:
    """By which share of the old figure it changes; 0 where it cannot be told."""
    return new[name] / old[name] - 1 if new[name] is not None and old[name] else 0.0


def _percent(change: float) -> str:
    return f"{change:+.0%}" if abs(change) >= 0.005 else "the same"


def _moved(new: Side, old: Side, name: str, form: str) -> str:
    return " to ".join("-" if side[name] is None else format(side[name], form) for side in (old, new))
