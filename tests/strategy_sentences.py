"""Whether a comparison's last sentence says what its intervals support, and its text keeps to a terminal's width."""

from __future__ import annotations

from math import inf

from kvplan.search.comparison import Comparison
from kvplan.search.strategy_table import WIDTH, short_names


def check_sentence(found: Comparison) -> None:
    """The last line says no more than the differences' intervals do."""
    rows = {row.strategy: row for row in found.rows}
    last = found.reason
    limit = found.scenario.slo.e2el_ms / 1000 if found.scenario.slo.e2el_ms else inf
    fit = {name: row for name, row in rows.items() if row.latency_p99_s <= limit}
    index = {row.strategy: i for i, row in enumerate(found.rows)}
    best = max(fit.values(), key=lambda row: row.accuracy)
    apart = [found.expectation.difference(index[best.strategy], index[n]) for n in fit if n != best.strategy]
    ties = [d for d in apart if d.low <= 0 <= d.high]
    assert {t.b for t in found.chosen.ties} | {t.a for t in found.chosen.ties} == (
        {d.b for d in ties} | ({best.strategy} if ties else set())
    )
    if ties:
        assert last.startswith("tie: ")
        assert "most accurate" not in last.split(";")[0]
        assert found.chosen.best is None
        assert all(str(tie) in last for tie in ties)
    else:
        assert found.chosen.best == found.choice == best.strategy
        assert ("is the most accurate" in last) == (len(fit) > 1)
        assert all(d.low > 0 for d in apart)
    if limit < inf and best.sampling.get("latency_p99_s", (0, inf))[1] == inf:
        assert "do not bound its p99" in last


def check_text(found: Comparison) -> None:
    """No line is wider than a terminal; the last is the choice, under the table's name of it; intervals are whole."""
    text = str(found)
    assert max(map(len, text.splitlines())) <= WIDTH
    shown = dict(zip([row.strategy for row in found.rows], short_names(found.specs)[0], strict=True))
    tail = " ".join(line.strip() for line in text[text.rindex("\nchoice: ") :].splitlines())
    assert shown[found.choice].split("(")[0] in tail
    for row in found.rows:
        assert row.accuracy_low is not None
        assert row.accuracy_high is not None
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
