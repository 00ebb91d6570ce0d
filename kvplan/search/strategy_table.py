"""The table of a comparison: what was asked first in 100 columns, the rest by name or group; all of it as CSV.

What all rows share is said once above them. Knows rows and how to write them; computes nothing.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import safe_cell
from kvplan.ground.tables import WIDTH, Column, make_table, range_text
from kvplan.search.strategy_row import RANGED, SAMPLED, StrategyRow
from kvplan.workload.expectation import points_text
from kvplan.workload.problems import StrategySpec


def si(value: float | None) -> str:
    """Four digits and a power of a thousand."""
    if value is None:
        return "-"
    for power, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= power:
            return f"{value / (1e3 if letter == 'k' else power):.4g}{letter}"
    return f"{value:.4g}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _accuracy(row: StrategyRow) -> str:
    if row.accuracy_low is None or row.accuracy_high is None:
        return f"{100 * row.accuracy:.1f}"
    return f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.1f}..{100 * row.accuracy_high:.1f})"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _sharing(row: StrategyRow) -> str:
    return f"{1 - row.sharing_peak_blocks['full_block'] / row.sharing_peak_blocks['none']:.0%}"


def _range(row: StrategyRow, name: str) -> str:
    """A figure with its range over what steps may take."""
    return range_text(row.to_dict(), name)


def _sampling(row: StrategyRow, name: str) -> str:
    """A figure with its interval over problems; open where nothing bounds it."""
    plain = row.to_dict()
    value, low, high = plain[name], plain[f"{name}_sampling_low"], plain[f"{name}_sampling_high"]
    if value is None or low is None:
        return "-" if value is None else f"{value:.3g}"
    return f"{value:.3g} ({low:.3g}..{'' if high is None else f'{high:.3g}'})"


COLUMNS: dict[str, Column[StrategyRow]] = {
    "accuracy": ("accuracy %", _accuracy),
    "latency": ("s: mean", lambda r: _seconds(r.latency_mean_s)),
    "latency_p50_s": ("p50", lambda r: _seconds(r.latency_p50_s)),
    "latency_p99_s": ("p99", lambda r: _seconds(r.latency_p99_s)),
    "usd_per_correct": (
        "$/correct",
        lambda r: "-" if r.usd_per_correct is None else f"{r.usd_per_correct:.4f}",
    ),
    "joules_per_correct": ("J/correct", lambda r: si(r.joules_per_correct)),
    "kv_gib_s": ("KV GiB-s", lambda r: si(r.kv_gib_s)),
    "limited_by": ("limited by", lambda r: r.limited_by),
    "usd_per_hour": ("$/h", lambda r: f"{r.usd_per_hour:.2f}"),
    "first_visible_p50_s": ("visible s", lambda r: f"{r.first_visible_p50_s:.1f}"),
    "correct_per_s": ("correct/s", lambda r: f"{r.correct_per_s:.4g}"),
    "gpu_s_per_correct": ("GPU-s/correct", lambda r: si(r.gpu_s_per_correct)),
    "generated_tokens": ("tokens", lambda r: si(r.generated_tokens)),
    "verified_tokens": ("verified", lambda r: si(r.verified_tokens)),
    "reprefilled_tokens": ("re-prefilled", lambda r: si(r.reprefilled_tokens)),
    "dead_tokens": ("dead", lambda r: si(r.dead_tokens)),
    "flops": ("FLOPs", lambda r: si(r.flops)),
    "kv_logical_gib_s": ("logical", lambda r: si(r.kv_logical_gib_s)),
    "sharing_peak_blocks": ("sharing saves", _sharing),
    "concurrency": ("batch", lambda r: f"{r.concurrency:.1f}"),
    "preemptions": ("preempt", lambda r: f"{r.preemptions:,}"),
    "cut_share": ("cut", lambda r: f"{r.cut_share:.1%}"),
    "false_alarms": ("alarms", lambda r: f"{r.false_alarms:,}"),
    "misses": ("misses", lambda r: f"{r.misses:,}"),
    "num_problems": ("simulated", lambda r: f"{r.num_problems:,}"),
    "simulated_accuracy": ("run's %", lambda r: f"{100 * r.simulated_accuracy:.1f}"),
    "sd_between_problems": ("sd problems", lambda r: _points(r.sd_between_problems)),
    "sd_within_problem": ("sd draws", lambda r: _points(r.sd_within_problem)),
    "engine_points": ("engine +-", lambda r: points_text(r.engine_points)),
    "mean_watts": ("W", lambda r: si(r.mean_watts)),
    "joules_per_output_token": ("J/token", lambda r: si(r.joules_per_output_token)),
    "kwh_per_million_output_tokens": ("kWh/Mtok", lambda r: si(r.kwh_per_million_output_tokens)),
    "gco2_per_million_output_tokens": ("gCO2/Mtok", lambda r: si(r.gco2_per_million_output_tokens)),
    "api_usd_per_correct": ("API $/correct", lambda r: si(r.api_usd_per_correct)),
    "api_usd_per_problem": ("API $/problem", lambda r: si(r.api_usd_per_problem)),
    "api_hidden_share": (
        "hidden",
        lambda r: "-" if r.api_hidden_share is None else f"{r.api_hidden_share:.0%}",
    ),
    "break_even_per_hour": ("even/h", lambda r: si(r.break_even_per_hour)),
    "problems_per_hour": ("carried/h", lambda r: si(r.problems_per_hour)),
}
"""Key of the JSON row (`latency`: the mean) -> title and text."""
COLUMNS |= {f"{name}_sampling": (f"{name} 95 %", partial(_sampling, name=name)) for name in SAMPLED}
COLUMNS |= {f"{name}_range": (f"{name} 90 %", partial(_range, name=name)) for name in RANGED}

API = ("api_usd_per_correct", "api_usd_per_problem", "api_hidden_share", "break_even_per_hour")
"""What is known where a hosted model is named."""
GROUPS: dict[str, tuple[str, ...]] = {
    "main": ("accuracy", "latency", "latency_p50_s", "latency_p99_s", "usd_per_correct", "joules_per_correct",
             "kv_gib_s", "limited_by"),
    "speed": ("first_visible_p50_s", "correct_per_s", "gpu_s_per_correct", "concurrency", "preemptions"),
    "tokens": ("generated_tokens", "verified_tokens", "reprefilled_tokens", "dead_tokens", "flops", "cut_share"),
    "kv": ("kv_gib_s", "kv_logical_gib_s", "sharing_peak_blocks", "preemptions"),
    "quality": ("accuracy", "simulated_accuracy", "num_problems", "sd_between_problems", "sd_within_problem",
                "engine_points", "cut_share", "false_alarms", "misses"),
    "energy": ("mean_watts", "joules_per_output_token", "kwh_per_million_output_tokens",
               "gco2_per_million_output_tokens", "joules_per_correct"),
    "api": ("usd_per_correct", *API, "problems_per_hour"),
    "sampling": tuple(f"{name}_sampling" for name in ("latency_mean_s", "latency_p99_s", "usd_per_correct")),
    "ranges": tuple(f"{name}_range" for name in ("latency_mean_s", "latency_p99_s", "usd_per_correct")),
}  # fmt: skip
"""What `--columns` takes besides single names; `all` is every column."""
SHORT_LIMITS = {"memory_bandwidth": "bandwidth", "token_budget": "tokens", "max_num_seqs": "num_seqs",
                "interconnect": "links", "arrival_rate": "arrivals"}  # fmt: skip


def pick_columns(asked: Sequence[str]) -> list[str]:
    """Names of columns, groups spelled out, each once; the main ones where nothing is asked.

    Raises KvplanError for a name that is neither, with the closest.
    """
    found: dict[str, None] = {}
    for name in (part.strip() for text in asked or ("main",) for part in text.split(",")):
        if name != "all" and name not in GROUPS and name not in COLUMNS:
            known = [*GROUPS, "all", *COLUMNS]
            hint = did_you_mean(name, known) or f"; groups are {', '.join([*GROUPS, 'all'])}"
            raise KvplanError(f"--columns: no column {name!r}{hint}")
        found |= dict.fromkeys(COLUMNS if name == "all" else GROUPS.get(name, (name,)))
    return list(found)


def needs_api(asked: Sequence[str]) -> bool:
    """Whether columns were asked for, by name or their own group, that nobody knows without a hosted model."""
    names = {part.strip() for text in asked for part in text.split(",")}
    return bool(names & {"api", *API})


def short_names(specs: Sequence[StrategySpec]) -> tuple[list[str], str]:
    """What rows are called without the parameters that all have alike, and those parameters."""
    named = [spec for spec in specs if not spec.label and spec.router is None]
    shared: dict[str, Any] = {}
    if len(named) == len(specs) > 1:
        first = specs[0].params
        shared = {k: v for k, v in first.items() if all(k in s.params and s.params[k] == v for s in specs)}
    kept = [
        s.model_copy(update={"params": {k: v for k, v in s.params.items() if k not in shared}}) for s in specs
    ]
    names = [spec.name for spec in kept]
    if len(set(names)) < len({spec.name for spec in specs}):
        return [spec.name for spec in specs], ""
    return names, ", ".join(f"{key}={value}" for key, value in shared.items())


def table_lines(rows: Sequence[StrategyRow], names: Sequence[str], asked: Sequence[str] = ()) -> list[str]:
    """The table's lines, and above them what all rows have in common; as wide as `WIDTH`.

    `names`: what each row is called; one that is too long goes on in the next line. More columns than one line takes
    follow below, under the names again.
    """
    picked = pick_columns(asked)
    above = []
    limits = {row.limited_by for row in rows}
    if not asked and len(limits) == 1:
        picked.remove("limited_by")
        above = [f"limited by {limits.pop()}"]
    columns = [COLUMNS[name] for name in picked]
    if not asked:
        columns = [(t, _shortened(show)) if t == "limited by" else (t, show) for t, show in columns]
    whole = len(_body(columns, rows)[0])
    broken = [_broken(name, max(WIDTH - whole - 5, 40 if asked else 12)) for name in names]
    width = max(len(part) for parts in (*broken, ["strategy"]) for part in parts)
    lines: list[str] = []
    for some in _in_lines(columns, rows, WIDTH - width - 5) if asked else [columns]:
        title, *body = _body(some, rows)
        lines += ["", f"   {'strategy'.ljust(width)}  {title}".rstrip()]
        for row, parts, text in zip(rows, broken, body, strict=True):
            lines.append(f"{'*' if row.pareto else ' '}  {parts[0].ljust(width)}  {text}".rstrip())
            lines += [f"   {part}" for part in parts[1:]]
    return [*above, *lines[1:]]


def _body(columns: Sequence[Column[StrategyRow]], rows: Sequence[StrategyRow]) -> list[str]:
    """Titles and a line a row, all as long."""
    left = frozenset(i for i, (title, _) in enumerate(columns) if title == "limited by")
    body = make_table(columns, rows, left).lines()
    return [line.ljust(max(map(len, body))) for line in body]


def _in_lines(
    columns: Sequence[Column[StrategyRow]], rows: Sequence[StrategyRow], room: int
) -> list[list[Column[StrategyRow]]]:
    """The columns, as many together as there is room for; one at least."""
    found: list[list[Column[StrategyRow]]] = [[]]
    for column in columns:
        if found[-1] and len(_body([*found[-1], column], rows)[0]) > room:
            found.append([])
        found[-1].append(column)
    return found


def _broken(name: str, room: int) -> list[str]:
    """A name in lines of at most `room`: after a bracket, a comma or "=", within a word where that is too long."""
    lines = [""]
    for piece in re.findall(r"[^(,=]+[(,=]? ?|[(,=] ?", name):
        if lines[-1].strip() and len(lines[-1]) + len(piece.rstrip()) > room:
            lines.append("  ")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > room:
            lines[-1:] = [lines[-1][:room], "  " + lines[-1][room:]]
    return [line.rstrip() for line in lines]


def _shortened(show: Callable[[StrategyRow], str]) -> Callable[[StrategyRow], str]:
    return lambda row: SHORT_LIMITS.get(show(row), show(row))


def wrapped(text: str) -> list[str]:
    """A note in lines of the table's width."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]


def csv_text(rows: Sequence[StrategyRow]) -> str:
    """Every figure of every row, with a title line."""
    flat = [_flat(row.to_dict()) for row in rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(flat[0])
    writer.writerows(["" if v is None else safe_cell(v) for v in row.values()] for row in flat)
    return out.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {f"{key}_{name}": part for name, part in value.items()}
        else:
            found[key] = "; ".join(value) if isinstance(value, list) else value
    return found
