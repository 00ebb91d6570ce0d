"""`kvplan compare`: several strategies on the same problems, as one table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from kvplan.cli.options import print_json
from kvplan.cli.progress import Progress
from kvplan.scenario import schema as scenarios
from kvplan.search.comparison import Comparison, Row, compare

SWITCH = Parameter(negative="")


def compare_command(
    scenario: str,
    /,
    *,
    set: tuple[str, ...] = (),
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
) -> int:
    """Compare test-time strategies: accuracy, latency, tokens, KV and cost per correct answer.

    Parameters
    ----------
    scenario
        A YAML file with `problems:` and its `strategies:`, or a bundled scenario's name.
    set
        Change a key, e.g. --set problems.num_problems=50; may be repeated.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    """
    loaded = scenarios.load_scenario(scenario, list(set))
    found = compare(loaded, progress=None if quiet else Progress(noun="strategies"))
    if json:
        print_json(found.to_dict())
    else:
        print(compare_text(found))
    if found.interrupted:
        print("kvplan: interrupted; the strategies that were done are shown", file=sys.stderr)
    return found.exit_code


def _si(value: float | None) -> str:
    """Four digits and a power of a thousand."""
    if value is None:
        return "-"
    for power, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= power:
            return f"{value / (1e3 if letter == 'k' else power):.4g}{letter}"
    return f"{value:.4g}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("", lambda r: "*" if r.pareto else ""),
    ("strategy", lambda r: r.strategy),
    ("accuracy", lambda r: f"{r.accuracy:.1%}"),
    ("p50 s", lambda r: f"{r.latency_p50_s:.1f}"),
    ("p99 s", lambda r: f"{r.latency_p99_s:.1f}"),
    ("visible s", lambda r: f"{r.first_visible_p50_s:.1f}"),
    ("correct/s", lambda r: f"{r.correct_per_s:.4g}"),
    ("GPU-s/correct", lambda r: _si(r.gpu_s_per_correct)),
    ("$/correct", lambda r: "-" if r.usd_per_correct is None else f"{r.usd_per_correct:.4f}"),
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


def compare_text(found: Comparison) -> str:
    """The table, best first, and what it means."""
    rows = sorted(found.rows, key=lambda r: (-r.accuracy, r.latency_p99_s))
    api = found.scenario.problems is not None and found.scenario.problems.api_model
    price = ((f"$ at {api}", lambda r: _si(r.api_usd_per_correct)),) if api else ()
    columns = (*COLUMNS, *price)
    table = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    left = {0, 1, len(COLUMNS) - 1}
    lines = [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    caps = found.caps
    cheapest = caps.get("cost_optimal")
    optimal = f"; cheapest per correct answer of those compared: {cheapest:,.0f}" if cheapest else ""
    notes = [
        "* = nobody is at least as accurate, as fast (p99) and as cheap",
        f"choice: {found.reason}" if found.choice else found.reason,
        f"thinking budget: {caps['p99_of_traces']:,.0f} tokens cut one trace in a hundred{optimal}",
        *(
            f"{r.strategy}: {r.num_problems} problems solved, then {r.verdict}"
            for r in rows
            if r.verdict != "completed"
        ),
        *(f"advice: {text}" for text in found.advice),
        *(f"caveat: {text}" for text in found.caveats),
    ]
    head = [f"NOTE {found.caution}"] if found.caution else []
    return "\n".join([*head, *(line.rstrip() for line in lines), "", *notes])
