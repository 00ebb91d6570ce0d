"""The answer of `compare` as one HTML page that needs no network: choice, picture, table, how sure, beside the API."""

from __future__ import annotations

import shlex
from html import escape

import kvplan
from kvplan.charts.report import PAGE, figure, listed, text
from kvplan.charts.saving import chart_svg
from kvplan.charts.searches import pareto
from kvplan.ground.tables import short
from kvplan.scenario.schema import dump_scenario
from kvplan.search.comparison import Comparison
from kvplan.search.strategy_table import short_names, table_lines


def comparison_html(found: Comparison) -> str:
    """The page. Raises KvplanError where vl-convert, which draws the picture, is missing."""
    names, shared = short_names(found.specs)
    order = sorted(
        range(len(found.rows)), key=lambda i: (-found.rows[i].accuracy, found.rows[i].latency_p99_s)
    )
    lines = table_lines([found.rows[i] for i in order], [names[i] for i in order])
    caption = (
        "Numbers: strategies in the scenario's order. Bars: 95 % intervals. Size: dollars per correct answer."
    )
    notes = [*([found.caution] if found.caution else []), *found.notes()]
    parts = [
        figure("Accuracy, latency, cost", chart_svg(pareto(found)), caption),
        text("", "\n".join([*([f"all: {shared}"] if shared else []), *lines])),
        listed("How sure", notes),
        _beside_api(found),
        text("Inputs", dump_scenario(found.scenario)),
    ]
    return PAGE.substitute(
        title=escape(found.choice or "no strategy keeps the limits"),
        tone="var(--good)" if found.choice else "var(--bad)",
        verdict=escape(found.reason),
        version=kvplan.__version__,
        command=escape(shlex.join(["kvplan", "compare", found.scenario.name or "scenario.yaml"])),
        body="\n".join(parts),
    )


def _beside_api(found: Comparison) -> str:
    """The chosen strategy at every hosted model: same branches, tokens and quality."""
    place = max(found.chosen.place, 0)
    row = found.rows[place]
    own = "-" if row.usd_per_correct is None else f"{row.usd_per_correct:.4f}"
    cells = [
        ("these GPUs", "", own, "", f"{short(row.problems_per_hour)} carried", found.sources.get("price", ""))
    ]
    for one in found.bills(place):
        each = "-" if one.usd_per_correct is None else f"{one.usd_per_correct:.4f}"
        even = "-" if one.break_even_per_hour is None else short(one.break_even_per_hour)
        source = f"{one.price.source}, {one.price.date}"
        cells.append((one.model, f"{one.usd_per_problem:.4f}", each, f"{one.hidden_share:.0%}", even, source))
    titles = (
        "hosted model",
        "$ a problem",
        "$ a correct answer",
        "hidden",
        "cheaper here from, problems/h",
        "source",
    )
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in cells)
    routed = "" if found.routing is None else f"<p>{escape(str(found.routing))}</p>"
    said = f"{row.strategy}: the same branches, tokens and quality; hidden tokens are billed as output."
    return (
        f'<h2>Beside the API</h2><p class="soft">{escape(said)}</p>'
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>{routed}'
    )
