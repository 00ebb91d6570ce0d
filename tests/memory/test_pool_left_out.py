"""KV pools of start-up logs, with every learned figure taken from logs of other models, and the ranges they give.

Rows: `fixtures/starts/vllm.csv`, and reference logs where they lie beside the checkout. The table goes into
docs/validation.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import pytest
from memory_rows import TRUTH
from start_rows import Start, reference_starts, starts
from validation import section

from kvplan.engines.flags import parse_engine
from kvplan.ground.units import GiB, MiB
from kvplan.memory.overheads import captured_graphs, second_runner
from kvplan.profiles.memory_profile import Figure, MemoryProfile, memory_profile

UNTOLD = {
    "a100-0.6.6-llama3-8b": "its 9.37 GiB of activation are those of 2,048 sequences: max_num_seqs was set",
    "gb10-0.27-qwen3-0.6b": "NVIDIA's own build, on memory that the host shares",
}
"""Rows that are neither judged nor learned from, and why."""
UNRECORDED = {
    "v0-a100-40-dsv2-lite-tp8": "a serving container that sets its own max_num_seqs",
    "v1-h100-mistral-small-3.2-24b": "peak below half the default batch's sampler: max_num_seqs was set",
    "v0-80g-phi4-bnb4": "started by a trainer, with LoRA",
}
"""Rows of starts whose flags are not all recorded: predicted, but nothing is learned from them."""


@cache
def judged() -> tuple[Start, ...]:
    """Rows whose card, share, version and format are known, from the checkout or beside it."""
    return tuple(s for s in (*starts(), *reference_starts()) if s.id not in UNTOLD)


class Told(NamedTuple):
    """One figure that one log tells."""

    name: str
    """Field of the profile."""
    of: str
    """What it is told by beside the version: architecture of the card, or nothing."""
    era: tuple[int, int, bool]
    model: str
    value: float


def era(start: Start) -> tuple[int, int, bool]:
    """The bundled row that holds for it."""
    found = memory_profile("vllm", start.engine.version, start.engine.legacy)
    return (*found.since, found.legacy)


@cache
def told() -> tuple[Told, ...]:
    """Every figure of every log whose flags are recorded."""
    return tuple(t for s in judged() if s.id not in UNRECORDED for t in _told(s))


def _told(start: Start) -> Iterator[Told]:
    plan, profile = start.plan(), memory_profile("vllm", start.engine.version, start.engine.legacy)
    budget, card, model = plan.budget, start.gpu.architecture, start.model
    key = (era(start), model.name)
    if start.activation_gib and "sampler" in budget.activation.why:
        logits = plan.args.max_num_seqs * model.vocab_size
        second = (
            second_runner(model, plan.args, profile) and profile.second_sampler_bytes_per_logit is not None
        )
        name = "second_sampler_bytes_per_logit" if second else "sampler_bytes_per_logit"
        used = getattr(profile, name).value
        more = start.activation_gib * GiB - budget.activation.size.value
        yield Told(name, "", *key, used + more / logits)
    growth = start.non_torch_gib
    if growth is None and start.engine.version >= (0, 17) and start.graphs_gib is not None:
        weights = start.weights_gib or budget.weights.size.value / GiB
        taken = weights + budget.activation.size.value / GiB
        inside = start.graphs_gib if profile.graphs_in_budget else 0
        growth = budget.budget_bytes / GiB - taken - inside - start.kv_gib
    joined = start.args.tensor_parallel_size > 1
    if growth is not None and not joined:
        yield Told("runtime_gib", "hopper" if card == "hopper" else "", *key, growth)
    elif growth is not None and "NVLink" in start.gpu.interconnect:
        alone = profile.runtime_gib_of.get(card, profile.runtime_gib).value
        yield Told("runtime_gib_joined", "", *key, growth - alone)
    graphs = captured_graphs(model, plan.args, start.gpu, plan.question.engine, profile).num_captured * len(
        model.layers
    )
    if start.graphs_gib and start.engine.version >= (0, 19) and graphs:
        yield Told("graph_mib_per_layer", "", *key, start.graphs_gib * GiB / MiB / graphs)


LEAST_GIB = 0.03
"""GiB by which a figure that is the rest of five others, each printed to 0.01, may always be off."""


def figure(values: list[float], least: float = 0.0) -> Figure:
    """Median, and the range that holds nine in ten of what comes next, `least` on either side.

    Order statistics where there are enough of them; else their span, widened by what a uniform spread would need
    (n values span (n - 1) / (n + 1) of it), and half as much again of a single one.
    """
    values = sorted(values)
    n, middle = len(values), median(values)
    if n >= 19:
        low, high = values[int(0.05 * (n + 1)) - 1], values[-int(0.05 * (n + 1))]
    elif n > 1:
        wider = 0.9 * (n + 1) / (n - 1)
        low, high = (middle + (end - middle) * max(1.0, wider) for end in (values[0], values[-1]))
    else:
        low, high = middle - abs(middle) / 2, middle + abs(middle) / 2
    low, high = min(low, middle - least), max(high, middle + least)
    return Figure(value=middle, low=low, high=high, source="logs of other models")


def nearest(name: str, of: str, when: tuple[int, int, bool], without: str) -> Figure | None:
    """The figure from logs of other models of its own span of versions; one value a model, however many logs.

    Where that span has none: the median of the nearest span that has, in the range of all, half as much again.
    """
    others = [t for t in told() if (t.name, t.of) == (name, of) and t.model != without]
    spans = {t.era for t in others}
    if not spans:
        return None
    least = LEAST_GIB if "gib" in name else 0.0
    best = min(spans, key=lambda e: (e[2] != when[2], abs(e[0] * 100 + e[1] - when[0] * 100 - when[1])))
    found = figure(_by_model(t for t in others if t.era == best), least)
    if best == when:
        return found
    every = figure(_by_model(others), least)
    low, high = min(found.value / 2, every.low), max(1.5 * found.value, every.high)
    return found.model_copy(update={"low": min(found.low, low), "high": max(found.high, high)})


def _by_model(figures: Iterable[Told]) -> list[float]:
    by_model: dict[str, list[float]] = {}
    for t in figures:
        by_model.setdefault(t.model, []).append(t.value)
    return [median(values) for values in by_model.values()]


def learned_without(start: Start) -> MemoryProfile:
    """The overheads of a row's version, every learned figure from logs of other models."""
    base, when, model = (
        memory_profile("vllm", start.engine.version, start.engine.legacy),
        era(start),
        start.model.name,
    )
    update: dict[str, Any] = {}
    for name in ("runtime_gib_joined", "second_sampler_bytes_per_logit"):
        if getattr(base, name) is not None:
            update[name] = nearest(name, "", when, model) or getattr(base, name)
    sampler = "sampler_bytes_per_logit"
    same = [e for e in {t.era for t in told()} if (e[:2] >= (0, 17)) == (when[:2] >= (0, 17))]
    if same:  # sorting and thresholds are different kernels, not older and newer figures of one
        update[sampler] = nearest(sampler, "", min(same, key=lambda e: abs(e[1] - when[1])), model)
    card = "hopper" if start.gpu.architecture == "hopper" else ""
    growth = nearest("runtime_gib", card, when, model) or base.runtime_gib
    update |= {"runtime_gib_of": {"hopper": growth}} if card else {"runtime_gib": growth}
    graphs = nearest("graph_mib_per_layer", "", when, model)
    if graphs is not None:
        update["graph_mib_per_layer"] = {"default": graphs}
    return base.model_copy(update={name: value for name, value in update.items() if value is not None})


class Judged(NamedTuple):
    """A row beside its plan, GiB."""

    start: Start
    kv: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return self.kv / self.start.kv_gib - 1

    @property
    def inside(self) -> bool:
        """Whether the printed figure lies in the range, at the printed precision."""
        return self.low - 0.005 <= self.start.kv_gib <= self.high + 0.005


@cache
def left_out() -> tuple[Judged, ...]:
    """Every row, planned without its model's logs."""
    pools = [(s, s.plan(learned_without(s)).budget.kv.size) for s in judged()]
    return tuple(Judged(s, p.value / GiB, p.low / GiB, p.high / GiB) for s, p in pools)


def _summary(rows: list[Judged]) -> tuple[float, float, float, float]:
    """(median error, nine in ten, share inside, median width over the pool) of the rows with a pool."""
    errors = sorted(abs(r.error) for r in rows)
    widths = [(r.high - r.low) / r.start.kv_gib for r in rows]
    return (
        median(errors),
        errors[min(len(errors) - 1, int(0.9 * len(errors)))],
        sum(r.inside for r in rows) / len(rows),
        median(widths),
    )


def test_kv_pool_of_models_left_out() -> None:
    """Median within 1 %, nine in ten within 4 %; 85 to 95 % of the pools inside ranges about 1 % wide."""
    rows = [r for r in left_out() if r.start.kv_gib > 0]
    middle, ninth, inside, width = _summary(rows)
    assert len(rows) >= 50
    assert middle <= 0.01
    assert ninth <= 0.04
    assert 0.85 <= inside <= 0.95
    assert width <= 0.03
    if TRUTH.is_dir():
        section("memory-pool", "\n".join([POOL_HEAD, *map(_line, left_out()), "", *_totals(rows)]))


def _line(r: Judged) -> str:
    s = r.start
    note = "refused, as predicted" if s.kv_gib <= 0 else f"{r.error:+.1%}" + ("" if r.inside else ", outside")
    ranks = s.args.tensor_parallel_size
    return (
        f"| {s.model.name}, {s.gpu.name} TP{ranks}, {s.engine} | {s.kv_gib:.2f} | {r.kv:.2f} ({r.low:.2f}-"
        f"{r.high:.2f}) | {note} |"
    )


def _totals(rows: list[Judged]) -> Iterator[str]:
    groups = {
        "all": rows,
        "vLLM 0.19 on H100": [r for r in rows if r.start.id.startswith("h100-0.19")],
        "all others": [r for r in rows if not r.start.id.startswith("h100-0.19")],
    }
    for name, group in groups.items():
        middle, ninth, inside, width = _summary(group)
        worst = max(abs(r.error) for r in group)
        yield (
            f"* {name}: {len(group)} logs, median {middle:.1%}, nine in ten within {ninth:.1%}, worst {worst:.1%}; "
            f"{inside:.0%} inside their range, whose median width is {width:.1%} of the pool."
        )


POOL_HEAD = """## KV pool end to end

What is left for KV, from card, flags and version alone: weights computed, and every learned figure (bytes per logit,
growth outside torch, graphs) the median of logs of *other* models, with the range that holds nine in ten of those.
Logs whose card, utilisation and version are known; flags they do not record count as defaults.

| model, card, version | log, GiB | kvplan, GiB | |
|---|---|---|---|"""


def test_bundled_figures_are_what_all_logs_say() -> None:
    """Each bundled range holds nine in ten of the logs' own figures, and its value lies among them."""
    groups: dict[tuple[str, str, tuple[int, int, bool]], list[float]] = {}
    for t in told():
        groups.setdefault((t.name, t.of, t.era), []).append(t.value)
    for (name, of, (major, minor, legacy)), values in groups.items():
        profile = memory_profile("vllm", (major, minor), legacy)
        found = getattr(profile, name)
        if name == "graph_mib_per_layer":
            found = found["default"]
        if of:
            found = profile.runtime_gib_of.get(of, profile.runtime_gib)
        held = sum(found.low - 0.01 <= v <= found.high + 0.01 for v in values)
        assert held >= 0.85 * len(values), (name, of, minor, sorted(values))


def test_a_nine_gib_activation_is_a_sampler_of_2048() -> None:
    """Llama-3 8B on an A100 printed a peak of 9.37 GiB: what sampling 2,048 sequences takes, to 0.1 GiB."""
    start = next(s for s in starts() if s.id == "a100-0.6.6-llama3-8b")
    assert start.activation_gib == 9.37
    usual = start.plan().budget.activation.size.value / GiB
    assert usual < 1.5
    asked = start._replace(args=start.args.model_copy(update={"max_num_seqs": 2048})).plan().budget
    assert asked.activation.why.startswith("sampler of 2,048")
    assert asked.activation.size.value / GiB == pytest.approx(9.37, abs=0.1)
    assert asked.kv.size.value / GiB == pytest.approx(start.kv_gib, rel=0.01)


def test_weights_are_what_the_allocator_holds() -> None:
    """Printed weights of 16-bit checkpoints, to 0.1 GiB or 0.1 %: tensors as torch rounds them up."""
    errors = []
    for s in starts():
        if s.weights_gib is None or s.model.quantization or s.model.vision or s.args.quantization:
            continue
        if s.args.pipeline_parallel_size == 1:
            errors.append(s.plan().budget.weights.size.value / GiB - s.weights_gib)
    assert len(errors) >= 25
    assert max(map(abs, errors)) <= 0.05
    assert sum(abs(e) <= 0.01 for e in errors) >= 0.8 * len(errors)


def test_sampler_takes_what_its_version_does() -> None:
    """38 bytes a logit while it sorted, 14 and a row per program since, about 6 in the second runner."""
    start = next(s for s in starts() if s.id == "h100-0.18-qwen3-14b")
    logits = 1024 * start.model.vocab_size
    peaks = {
        minor: start._replace(engine=parse_engine(f"vllm@0.{minor}")).plan().budget for minor in (16, 19, 27)
    }
    per_logit = {minor: budget.activation.size.value / logits for minor, budget in peaks.items()}
    assert 38 < per_logit[16] < 39.5
    assert 14 < per_logit[19] < 15.5
    assert per_logit[27] < 10
