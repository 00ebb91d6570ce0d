"""The answer of `plan` as one HTML page that needs no network: verdict, pictures, figures with their sources, commands.

Numbers are the answer's own, written as `kvplan plan` writes them; charts are inline SVG.
"""

from __future__ import annotations

import shlex
from html import escape
from string import Template

import kvplan
from kvplan.charts.plans import memory_bar
from kvplan.charts.saving import chart_svg
from kvplan.charts.searches import ranking, speed_and_throughput
from kvplan.ground.units import gib
from kvplan.scenario.schema import dump_scenario
from kvplan.search.planning import SURER, ServingAnswer, doubt_lines, question_rows, run_lines
from kvplan.search.recommendation import EXPLAINED, ranking_table

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --good: #00664a; --bad: #a33b00; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; color: var(--ink);
       background: #fff; margin: 0 auto; max-width: 860px; padding: 32px 20px 64px; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 4px; border-left: 6px solid $tone; padding-left: 14px; }
h2 { font-size: 1.1rem; margin: 36px 0 8px; }
p.soft, figcaption, footer { color: var(--soft); font-size: .875rem; }
figure { margin: 12px 0 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 520px; height: auto; display: block; }
pre { background: #f6f8fa; border: 1px solid var(--line); border-radius: 6px; padding: 12px; overflow-x: auto;
      font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 8px 0; }
.scroll { overflow-x: auto; }
.scroll table { min-width: 520px; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; }
th, td { text-align: left; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
li { margin: 3px 0; overflow-wrap: anywhere; }
@media print { body { padding: 0; max-width: none; font-size: 11pt; } h2 { break-after: avoid; }
  figure, table { break-inside: avoid; } pre { white-space: pre-wrap; } }
</style>
</head>
<body>
<h1>$verdict</h1>
<p class="soft">kvplan $version; asked: <code>$command</code></p>
$body
<footer><p>Every figure is computed by kvplan $version from the inputs at the end of this page; the same question gives
the same page.</p></footer>
</body>
</html>
""")


def report_html(answer: ServingAnswer) -> str:
    """The page. Raises KvplanError where vl-convert, which draws the pictures, is missing."""
    parts = [_asked(answer)]
    feasible = [c for c in answer.found.candidates if c.feasible]
    if feasible:
        parts += [
            figure("Deployments by cost", chart_svg(ranking(answer.found)), "US dollars an hour for all copies."),
            text("", str(ranking_table(answer.found, feasible))),
            *(f'<p class="soft">{escape(line)}</p>' for line in EXPLAINED),
            figure("Speed against throughput", chart_svg(speed_and_throughput(answer.found)),
                    "Numbers: places in the table. Each deployment at the highest load that keeps the targets; bars: "
                    "the 90 % range of step times; hollow, where there are any: measured by others, at the loads "
                    "that they ran."),
            text("What to run", "\n".join(line.strip() for line in run_lines(answer)[1:])),
            _memory(answer),
            *_how_sure(answer),
        ]  # fmt: skip
    parts.append(text("Inputs", dump_scenario(answer.found.scenario)))
    return PAGE.substitute(
        title=escape(f"{answer.found.scenario.model}: {'fits' if answer.fits else 'does not fit'}"),
        tone="var(--good)" if answer.fits else "var(--bad)",
        verdict=escape(answer.verdict[0].upper() + answer.verdict[1:]),
        version=kvplan.__version__,
        command=escape(command_line(answer)),
        body="\n".join(parts),
    )


def command_line(answer: ServingAnswer) -> str:
    """The command that asks this again."""
    words = ["kvplan", "plan", answer.found.scenario.model]
    for cards in answer.cards:
        words.append(f"--gpu={cards.number}x{cards.name}" if cards.number else f"--gpu={cards.name}")
    for name, value in answer.question.model_dump(exclude_defaults=True).items():
        words.append(f"--{name.replace('_', '-')}={value}")
    return shlex.join(words)


def _asked(answer: ServingAnswer) -> str:
    """The question, and what was assumed where nobody said it."""
    rows = [[escape(cell) for cell in row] for row in question_rows(answer.question)]
    cells = "".join(f"<tr><td>{name}</td><td>{text}</td><td>{note}</td></tr>" for name, text, note in rows)
    return f"<h2>What was asked</h2><table>{cells}</table>"


def _memory(answer: ServingAnswer) -> str:
    """The fullest GPU's memory, a row each with its source."""
    if answer.plan is None:
        return ""
    rows = [
        f'<tr><td>{escape(row.label)}</td><td class="number">{gib(row.size.value):,.2f}</td><td class="number">'
        f"{_span(row.size.low, row.size.high)}</td><td>{escape(row.source)}</td></tr>"
        for row in answer.plan.budget.rows
    ]
    table = f"<table><tr><th>Memory of a GPU</th><th>GiB</th><th>range</th><th>source</th></tr>{''.join(rows)}</table>"
    picture = figure("Where a GPU's memory goes", chart_svg(memory_bar(answer.plan)), "")
    return f'{picture}<div class="scroll">{table}</div>'


def _span(low: float, high: float) -> str:
    return f"{gib(low):,.2f} to {gib(high):,.2f}" if low != high else ""


def _how_sure(answer: ServingAnswer) -> list[str]:
    """The doubts, and what would make them smaller."""
    said = doubt_lines(answer)[1:]
    at = said.index(SURER)
    return [listed("How sure", said[:at]), listed(SURER, said[at + 1 :])]


def figure(title: str, svg: str, caption: str) -> str:
    """A picture under its title."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<h2>{escape(title)}</h2><figure role="img" aria-label="{escape(title)}">{svg}{below}</figure>'


def text(title: str, text: str) -> str:
    """Lines as they are printed, under a title if there is one."""
    return (f"<h2>{escape(title)}</h2>" if title else "") + f"<pre>{escape(text)}</pre>"


def listed(title: str, lines: list[str]) -> str:
    """A list under its title."""
    said = (" ".join(line.split()) for line in lines)
    items = "".join(f"<li>{escape(line[0].upper() + line[1:])}</li>" for line in said)
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>"
