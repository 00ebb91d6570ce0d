"""What would lift a candidate's limit: single changes, each simulated at more load; the cheapest that carries it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import ceil
from typing import NamedTuple

from kvplan.engines.cards import cards as counted_cards
from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import GpuSpec, get_gpu, gpu_names, split_count
from kvplan.memory.serve_command import flag_text
from kvplan.scenario.schema import Scenario
from kvplan.scenario.space import Search
from kvplan.search.candidates import TryLoad
from kvplan.search.execution import Execution, run_scenarios

MORE = 1.25
"""A change lifts the limit when so many times the highest load is sustained."""


class Lift(NamedTuple):
    """A change that carries more."""

    change: str
    usd_per_hour: float
    """Of one copy, more than before."""
    load: float
    """Sustained after the change."""

    def __str__(self) -> str:
        cost = f"${self.usd_per_hour:+.2f} an hour and copy".replace("$+", "+$").replace("$-", "-$")
        price = "at the same price" if abs(self.usd_per_hour) < 0.005 else cost
        return f"{self.change} carries {self.load:.3g} ({MORE:g} times as much) {price}"


def find_lifts(
    chosen: Sequence[tuple[Scenario | None, float | None]],
    execution: Execution,
    search: Search,
    gpus: Collection[str] = (),
) -> dict[int, Lift | None]:
    """The cheapest lift of each candidate, given its scenario and highest load; None where no single change does it.

    `gpus` are the cards that may be bought; empty: any of the table.
    """
    cards = [get_gpu(split_count(name)[1]) for name in gpus or gpu_names()]
    found: dict[int, Lift | None] = {}
    for place, (scenario, highest) in enumerate(chosen):
        if scenario is not None and highest:
            found[place] = _cheapest(scenario, highest, execution, search, cards)
    return found


def _cheapest(
    scenario: Scenario, highest: float, execution: Execution, search: Search, cards: Sequence[GpuSpec]
) -> Lift | None:
    load = highest * MORE if search.kind == "rate" else float(ceil(highest * MORE))
    changes, changed = zip(("", scenario), *_changes(scenario, cards), strict=True)
    rows = run_scenarios(changed, execution, TryLoad(search, load))
    now = rows[0].get("usd_per_hour_per_copy", 0.0)
    lifts = [
        Lift(change, row["usd_per_hour_per_copy"] - now, load)
        for change, row in zip(changes, rows, strict=True)
        if change and row["met"]
    ]
    return min(lifts, key=lambda lift: lift.usd_per_hour, default=None)


def _changes(scenario: Scenario, cards: Sequence[GpuSpec]) -> Iterator[tuple[str, Scenario]]:
    """Single changes of the main deployment, as a flag line says them; counted cards (`2xh100`) as their ranks."""
    now, args = counted_cards(scenario.gpu, scenario.engine)
    if now.name != scenario.gpu:
        scenario = scenario.model_copy(update={"gpu": now.name, "engine": args})
    for update in _flags(scenario.engine):
        # validated anew: what contradicts itself is refused as it would be on a command line
        engine = EngineArgs.model_validate({**scenario.engine.model_dump(exclude_defaults=True), **update})
        yield flag_text(scenario.engine_name, **update), scenario.model_copy(update={"engine": engine})
    better = [c for c in cards if c.bandwidth > now.bandwidth and c.total_bytes >= now.total_bytes]
    for card in sorted(better, key=lambda c: c.price_per_hour)[:2]:
        yield f"--gpu {card.name}", scenario.model_copy(update={"gpu": card.name})


def _flags(args: EngineArgs) -> Iterator[dict[str, object]]:
    if args.kv_cache_dtype == "auto":
        yield {"kv_cache_dtype": "fp8"}
    yield {"tensor_parallel_size": args.tensor_parallel_size * 2}
    seqs = ("max_num_seqs", "max_num_active_seqs")
    if more := {name: 2 * told for name in seqs if (told := getattr(args, name))}:
        yield more
    if args.gpu_memory_utilization is None or args.gpu_memory_utilization < 0.95:
        yield {"gpu_memory_utilization": 0.95}
    tokens = ("max_num_batched_tokens", "max_num_scheduled_tokens")
    if more := {name: 2 * told for name in tokens if (told := getattr(args, name))}:
        yield more
    if args.quantization is None:
        yield {"quantization": "fp8"}
