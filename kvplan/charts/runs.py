"""Simulated runs as Altair charts: KV and queues over time, latencies, single requests, who owns which block,
how one problem's branches grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import altair as alt
import numpy as np

from kvplan.charts.drawing import (
    BLUE,
    EDGE,
    GREEN,
    GREY,
    HEIGHT,
    ORANGE,
    PALE,
    PINK,
    SKY,
    VERMILION,
    Layered,
    Rows,
    colour_scale,
    far_limit,
    inline,
    legend,
    limit_rule,
    log_ticks,
    peaks,
    seconds,
    seconds_unit,
    tips,
    token_axis,
)
from kvplan.simulation.block_map import BlockMap, Moment
from kvplan.simulation.branches import Node
from kvplan.simulation.records import Records
from kvplan.simulation.result import Result

FAR = 5
"""A pool of so many times what is held is named only: as a rule it would press what is held flat."""
KV_KINDS = {"shared": SKY, "prompt": BLUE, "thinking": ORANGE, "answer": GREEN}
IN_USE = "blocks in use"


def kv_over_time(result: Result) -> Layered:
    """Tokens held by kind, a shared one once for each holder; the blocks in use, and the pool's size, as a rule if it
    is near."""
    rows = [
        {"time_s": s.time_s, "kind": kind, "order": i, "tokens": getattr(s, f"{kind}_tokens")}
        for s in result.samples
        for i, kind in enumerate(KV_KINDS)
    ]
    used = [
        {"time_s": s.time_s, "kind": IN_USE, "tokens": s.used_blocks * result.pool.block_size}
        for s in result.samples
    ]
    colour = alt.Color("kind:N", scale=colour_scale({**KV_KINDS, IN_USE: GREY}), legend=legend(3))
    shown = [*seconds("time_s"), *tips("kind:N"), alt.Tooltip("tokens:Q", format=",")]
    x = alt.X("time_s:Q", title="seconds")
    y = alt.Y("tokens:Q", title="tokens held", axis=token_axis())
    area = alt.Chart(inline(rows)).mark_area(interpolate="step-after", stroke=EDGE, strokeWidth=0.5)
    line = alt.Chart(inline(used)).mark_line(interpolate="step-after", strokeWidth=1.5)
    pool, held = result.pool_tokens, _most_held(result)
    name = f"pool {pool:,} tokens"
    limit = limit_rule("y", pool, name) if pool < FAR * held else (far_limit(name),)
    return alt.layer(
        area.encode(x=x, y=y, color=colour, order=alt.Order("order:Q"), tooltip=shown),
        line.encode(x=x, y=y, color=colour, tooltip=shown),
        *limit,
    ).properties(height=HEIGHT + 60)


def _most_held(result: Result) -> int:
    """Tokens at the highest point of the picture."""
    kinds = (sum(getattr(s, f"{kind}_tokens") for kind in KV_KINDS) for s in result.samples)
    used = (s.used_blocks * result.pool.block_size for s in result.samples)
    return max((*kinds, *used), default=0)


TIER_COLOURS = {"host memory": SKY, "files below it": VERMILION}


def tier_over_time(result: Result) -> Layered:
    """Chunks in host memory, all of its slots as a rule, and in files below it; `result.offload` must be there."""
    assert result.offload is not None
    has_files = bool(result.offload["file_tiers"])
    host, files = (
        [{"time_s": s.time_s, "tier": tier, "chunks": getattr(s, name)} for s in result.samples]
        for tier, name in zip(TIER_COLOURS, ("tier_chunks", "files"), strict=True)
    )
    told = {
        "x": alt.X("time_s:Q", title="seconds"),
        "y": alt.Y("chunks:Q", title="chunks in the tier", axis=token_axis()),
        "color": alt.Color(
            "tier:N", scale=colour_scale(TIER_COLOURS), legend=legend(2) if has_files else None
        ),
        "tooltip": [*seconds("time_s"), *tips("tier:N"), alt.Tooltip("chunks:Q", format=",")],
    }
    area = (
        alt.Chart(inline(host))
        .mark_area(interpolate="step-after", stroke=EDGE, strokeWidth=0.75)
        .encode(**told)
    )
    line = alt.Chart(inline(files)).mark_line(interpolate="step-after").encode(**told)
    total = result.offload["chunks"]
    rule = limit_rule("y", total, f"host memory {total:,} chunks")
    return alt.layer(area, *([line] if has_files else []), *rule).properties(height=200)


FILE_JOBS = {"reading": BLUE, "writing": VERMILION}


def file_jobs_over_time(result: Result) -> Layered:
    """Jobs that read and write files below host memory, those that wait for a thread included."""
    rows = [
        {"time_s": s.time_s, "what": what, "jobs": count}
        for s in result.samples
        for what, count in zip(FILE_JOBS, (s.file_reads, s.file_writes), strict=True)
    ]
    return _steps(rows, FILE_JOBS, "jobs:Q", "file jobs", ",").properties(height=200)


COPIED = {"loaded": BLUE, "stored": VERMILION}


def copies_over_time(result: Result) -> Layered:
    """GiB of KV loaded from the tiers beyond the GPUs and stored there so far, each rank's part."""
    assert result.offload is not None
    moved = result.offload
    gib = {
        what: moved[f"{what}_bytes_per_rank"] / 2**30 / max(1, moved[blocks])
        for what, blocks in (("loaded", "load_blocks"), ("stored", "store_blocks"))
    }
    rows = [
        {"time_s": s.time_s, "what": what, "gib": count * gib[what]}
        for s in result.samples
        for what, count in zip(COPIED, (s.loaded_blocks, s.stored_blocks), strict=True)
    ]
    return _steps(rows, COPIED, "gib:Q", "GiB a rank, so far", ",.2f").properties(height=200)


def _steps(rows: Rows, colours: Mapping[str, str], figure: str, title: str, form: str) -> Layered:
    """A figure over time, a line of steps for each `what`, its name at its highest point."""
    name = figure.partition(":")[0]
    most = max((row[name] for row in rows), default=0) or 1
    x = alt.X("time_s:Q", title="seconds")
    y = alt.Y(
        figure,
        title=title,
        scale=alt.Scale(domain=[0, 1.15 * most], nice=False),
        axis=alt.Axis(tickMinStep=1) if form == "," else alt.Axis(),
    )
    line = (
        alt.Chart(inline(rows))
        .mark_line(interpolate="step-after")
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", scale=colour_scale(colours), legend=legend(len(colours))),
            strokeDash=alt.StrokeDash(
                "what:N", legend=None, scale=alt.Scale(domain=list(colours), range=DASHES)
            ),
            tooltip=[*seconds("time_s"), *tips("what:N"), alt.Tooltip(figure, format=form)],
        )
    )
    ends = (min(row["time_s"] for row in rows), max(row["time_s"] for row in rows)) if rows else (0.0, 0.0)
    names = peaks(rows, "what", name)
    parts: list[Any] = [line]
    for side in SIDES:
        some = [row for row in names if _side(row["time_s"], *ends) == side]
        if some:
            text = alt.Chart(inline(some)).mark_text(dy=-4, align=side, fontWeight="bold", baseline="bottom")
            parts.append(text.encode(x=x, y=y, text=alt.Text("what:N")))
    return alt.layer(*parts)


Side = Literal["left", "center", "right"]
SIDES: tuple[Side, ...] = get_args(Side)


def _side(time_s: float, first: float, last: float) -> Side:
    """Which end of a name stands at its peak, so that the name stays inside the chart."""
    place = (time_s - first) / (last - first) if last > first else 0.5
    return "left" if place < 0.1 else "right" if place > 0.9 else "center"


DASHES = [[1, 0], [6, 3], [2, 2]]
QUEUE_COLOURS = {"running": BLUE, "waiting": VERMILION, "preemptions so far": GREEN}


def queue_over_time(result: Result) -> Layered:
    """Requests running and waiting, and preemptions so far."""
    rows = [
        {"time_s": s.time_s, "what": what, "count": count}
        for s in result.samples
        for what, count in zip(QUEUE_COLOURS, (s.running, s.waiting, s.preemptions), strict=True)
    ]
    return _steps(rows, QUEUE_COLOURS, "count:Q", "requests", ",").properties(height=HEIGHT + 60)


LATENCIES = {"ttft": "time to first token", "tpot": "time per output token", "e2el": "end to end"}


WIDE = 8
"""Times of which the longest is so many medians, or a target is, are drawn on a logarithmic axis."""


def latency_shares(result: Result, name: str = "e2el") -> Layered:
    """Share of requests that are at most so slow, for one of `LATENCIES`, in the unit that suits; targets as rules."""
    values = np.sort(getattr(result.latencies, name))
    values = values[~np.isnan(values)]
    shares = np.linspace(0.0, 1.0, min(200, len(values))) if len(values) else np.zeros(0)
    quantiles = np.quantile(values, shares) if len(values) else values
    targets = sorted({getattr(slo, f"{name}_ms") for slo in result.slos} - {None})
    longest = max([*targets, *(float(v) for v in values[-1:])], default=1.0)
    unit, each = seconds_unit(longest / 1e3)
    is_wide = bool(len(values)) and 0 < WIDE * values[len(values) // 2] < longest
    rows = [
        {"time": float(v) / 1e3 * each, "share": float(q)}
        for v, q in zip(quantiles, shares, strict=True)
        if v > 0 or not is_wide  # a logarithmic axis has no zero
    ]
    ticks = log_ticks(rows[0]["time"], longest / 1e3 * each) if is_wide else []
    line = (
        alt.Chart(inline(rows))
        .mark_line(color=BLUE, interpolate="monotone")
        .encode(
            x=alt.X(
                "time:Q",
                title=f"{LATENCIES[name]}, {unit}",
                scale=alt.Scale(type="log", nice=False) if is_wide else alt.Scale(),
                axis=token_axis(ticks),
            ),
            y=alt.Y("share:Q", title="share of requests", axis=alt.Axis(format="%")),
            tooltip=[alt.Tooltip("time:Q", format=",.3~f", title=unit), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    parts: list[Any] = [line]
    for (
        ms
    ) in targets:  # the name stands inside, and where the curve is not: it rises to the right of the rule
        most = len(values) and np.searchsorted(values, ms, "right") > len(values) / 2
        side: Literal["left", "right"] = "right" if ms > longest / 2 else "left"
        at: Literal["top", "bottom"] = "bottom" if most else "top"
        parts += limit_rule("x", ms / 1e3 * each, f"SLO {ms / 1e3 * each:,.4g} {unit}", side, at)
    return alt.layer(*parts).properties(height=200)


PHASES = {"waiting": PALE, "prefill": BLUE, "thinking": ORANGE, "answer": GREEN}


def request_timeline(records: Records, first: int = 0, count: int = 40) -> Layered:
    """What became of single requests, in the order of their arrival: a lane each, its phases one after the other,
    preempted ones marked."""
    columns = records.columns()
    by_arrival = np.argsort(np.asarray(columns["arrival_s"], dtype=float), kind="stable")
    lanes = [int(i) for i in by_arrival[first : first + count]]
    rows = [phase for i in lanes for phase in _phases(columns, i)]
    order = [int(columns["request_id"][i]) for i in lanes]
    y = alt.Y("request:O", title="request, as they arrive", sort=order, axis=alt.Axis(labelOverlap=True))
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            x=alt.X("start_s:Q", title="seconds", scale=alt.Scale(zero=False)),
            x2=alt.X2("end_s:Q"),
            y=y,
            color=alt.Color("phase:N", scale=colour_scale(PHASES), legend=legend(4)),
            tooltip=[
                *tips("request:O", "phase:N"),
                *seconds("start_s", "end_s"),
                *tips("preemptions:Q", "end:N"),
            ],
        )
    )
    marked = [row for row in rows if row["preemptions"] and row["phase"] == "waiting"]
    ends = alt.Chart(inline(marked)).mark_point(
        shape="triangle-down", filled=True, color=VERMILION, size=60, opacity=1
    )
    shown = tips("request:O", "preemptions:Q")
    pre = ends.encode(x=alt.X("finish_s:Q"), y=y, tooltip=shown) if marked else None
    return alt.layer(bars, *([pre] if pre else [])).properties(height=150 + 11 * len(lanes))


def _phases(columns: Mapping[str, Any], i: int) -> Rows:
    """Waiting, prefill, thinking, answer of one request; phases that never came are left out."""
    times = [float(columns[f"{name}_s"][i]) for name in
             ("arrival", "scheduled", "first_token", "first_visible_token", "finish")]  # fmt: skip
    known = [t for t in times if t == t]
    starts = [t if t == t else known[-1] for t in times]
    common = {
        "request": int(columns["request_id"][i]),
        "preemptions": int(columns["num_preemptions"][i]),
        "end": str(columns["finish_reason"][i]),
        "finish_s": times[-1],
    }
    return [
        {**common, "phase": phase, "start_s": a, "end_s": b}
        for phase, (a, b) in zip(PHASES, pairwise(starts), strict=True)
        if b > a or phase == "waiting"
    ]


OWNERS = (BLUE, ORANGE, GREEN, PINK, SKY)
MAX_CELLS = 1024


def block_map(blocks: BlockMap, moment: Moment, replica: int = 0, columns: int = 32) -> Layered:
    """The pool at one moment, a cell per block (or per few): a colour per owner, shared, cached, free."""
    per_cell = -(-max(1, blocks.high_water) // MAX_CELLS)
    num_cells = -(-max(1, blocks.high_water) // per_cell)
    cells: Rows = [_cell(i, columns, per_cell) for i in range(num_cells)]
    for extent in moment.replicas[replica]:
        who = ", ".join(extent.owners) or "nobody: cached, free"
        for i in range(extent.first // per_cell, (extent.first + extent.length - 1) // per_cell + 1):
            cells[i] |= {"state": _state(extent.owners), "owner": who}
    names = {**{f"one request ({i + 1})": c for i, c in enumerate(OWNERS)},
             "shared": VERMILION, "cached": PALE, "free": "#88888811"}  # fmt: skip
    return alt.layer(
        alt.Chart(inline(cells))
        .mark_rect(stroke=EDGE, strokeWidth=0.5)
        .encode(
            x=alt.X("x:O", axis=None),
            y=alt.Y("y:O", axis=None),
            color=alt.Color("state:N", scale=colour_scale(names), legend=legend(3)),
            tooltip=tips("block:N", "owner:N"),
        )
        .properties(height=100 + 13 * -(-num_cells // columns))
    )


SLOT_COLOURS = {"read or written by a copy": ORANGE, "filled": SKY, "free": "#88888811"}


def tier_slots(moment: Moment, replica: int = 0) -> Layered:
    """The slots of a replica's tier at one moment, by what they are used for; it must have one."""
    slots = moment.tiers[replica]
    assert slots is not None
    return _one_bar(slots, SLOT_COLOURS, "slots", "slots of the tier, a chunk each")


PLACE_COLOURS = {"in host memory alone": SKY, "in both": GREEN, "in files alone": VERMILION}


def chunk_places(moment: Moment, replica: int = 0) -> Layered:
    """Where a replica's chunks lie at one moment; it must have files below host memory."""
    places = moment.places[replica]
    assert places is not None
    return _one_bar(places, PLACE_COLOURS, "chunks", "chunks in host memory and in files below it")


def _one_bar(counts: Sequence[int], colours: Mapping[str, str], name: str, title: str) -> Layered:
    """Counts beside each other in one bar."""
    rows = [
        {"state": state, "order": i, name: count}
        for i, (state, count) in enumerate(zip(colours, counts, strict=True))
    ]
    bar = (
        alt.Chart(inline(rows))
        .mark_bar(stroke=EDGE, strokeWidth=0.75)
        .encode(
            x=alt.X(f"{name}:Q", title=title, axis=token_axis()),
            color=alt.Color("state:N", scale=colour_scale(colours), legend=legend(3)),
            order=alt.Order("order:Q"),
            tooltip=[*tips("state:N"), alt.Tooltip(f"{name}:Q", format=",")],
        )
    )
    return alt.layer(bar).properties(height=90)


def _cell(i: int, columns: int, per_cell: int) -> dict[str, Any]:
    name = str(i) if per_cell == 1 else f"{i * per_cell}-{(i + 1) * per_cell - 1}"
    return {"x": i % columns, "y": i // columns, "block": name, "state": "free", "owner": "nobody"}


def _state(owners: tuple[str, ...]) -> str:
    """Requests take turns with the colours, so that neighbours in time differ."""
    if len(owners) != 1:
        return "shared" if owners else "cached"
    number = int(owners[0]) if owners[0].isdigit() else sum(owners[0].encode())
    return f"one request ({number % len(OWNERS) + 1})"


BRANCH_COLOURS = {"shared with others": SKY, "own": BLUE, "own, pruned": VERMILION}
MOST_ROWS = 48
"""Of a tree; families of branches are folded until it has no more."""


class Family(NamedTuple):
    """A branch, or so many alike: of one parent, of one kind and end; or all that grew from one."""

    node: Node
    """One of them; its tokens are their mean."""
    size: int

    @property
    def name(self) -> str:
        """Its number, or how many there are."""
        return (
            str(self.node.branch) if self.size == 1 else f"{self.node.branch} and {self.size - 1:,} like it"
        )


def fold(nodes: Sequence[Node], most: int = MOST_ROWS) -> list[Family]:
    """Branches as at most so many rows: of leaves that are alike the longest stay, then whole limbs become one."""
    for kept in (len(nodes), 40, 24, 16, 8, 4, 2, 1):
        found = _alike(nodes, kept)
        if len(found) <= most:
            return found
    for depth in range(max(node.depth for node in nodes) - 1, -1, -1):
        found = _alike(_limbs(nodes, depth), 1)
        if len(found) <= most or depth == 0:
            return found[:most]
    return found[:most]


def _alike(nodes: Sequence[Node | Family], kept: int) -> list[Family]:
    """Leaves of one parent, kind and end: the longest stay, the others become one row."""
    all_of = [node if isinstance(node, Family) else Family(node, 1) for node in nodes]
    parents = {family.node.parent for family in all_of}
    families: dict[tuple[int | None, str, bool], list[Family]] = {}
    for family in all_of:
        node = family.node
        if node.branch not in parents:
            families.setdefault((node.parent, node.kind, node.pruned), []).append(family)
    rows: dict[int, Family | None] = {}
    for some in families.values():
        by_length = sorted(some, key=lambda f: -f.node.output_tokens)
        rest = by_length[kept - 1 :] if len(some) > kept else []
        if rest:
            mean = round(sum(f.node.output_tokens * f.size for f in rest) / sum(f.size for f in rest))
            rows |= dict.fromkeys((f.node.branch for f in rest), None)
            first = min(rest, key=lambda f: f.node.branch).node
            rows[first.branch] = Family(first._replace(output_tokens=mean), sum(f.size for f in rest))
    shown = (rows.get(f.node.branch, f) for f in all_of)
    return [family for family in shown if family is not None]


def _limbs(nodes: Sequence[Node], depth: int) -> list[Family]:
    """What grew from a branch of that depth, as one row that reaches as far as its longest."""
    found: list[Family] = []
    for node in nodes:  # parents stand before their children
        if node.depth <= depth:
            found.append(Family(node, 1))
        else:
            limb = found[-1]
            reach = max(
                limb.node.prompt_tokens + limb.node.output_tokens, node.prompt_tokens + node.output_tokens
            )
            longer = limb.node._replace(output_tokens=reach - limb.node.prompt_tokens)
            found[-1] = Family(longer, limb.size + 1)
    return found


def branch_tree(nodes: Sequence[Node], most: int = MOST_ROWS) -> Layered:
    """A problem's branches by token position: what each shares, what it computed itself, which were pruned.

    Large families are folded into rows that say how many they stand for. Shift and the wheel zoom along the tokens,
    dragging moves, a double click shows all.
    """
    families = fold(nodes, most)
    shown = {family.node.branch: family.name for family in families}
    rows = [part for family in families for part in _spans(family)]
    y = alt.Y(
        "branch:N", sort=list(shown.values()), title=None, axis=alt.Axis(labelOverlap=False, labelLimit=150)
    )
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            x=alt.X("start:Q", title="tokens from the problem's beginning", axis=token_axis()),
            x2=alt.X2("end:Q"),
            y=y,
            color=alt.Color("part:N", scale=colour_scale(BRANCH_COLOURS), legend=legend(3)),
            tooltip=[
                *tips("branch:N", "parent:N", "kind:N", "part:N", "start:Q", "end:Q", "ended:N"),
            ],
        )
    )
    links = [
        {"x": f.node.prompt_tokens, "branch": shown[b], "link": f.node.branch}
        for f in families
        if f.node.parent in shown
        for b in (f.node.parent, f.node.branch)
    ]
    lines = (
        alt.Chart(inline(links))
        .mark_line(color=GREY, strokeWidth=1)
        .encode(x=alt.X("x:Q"), y=y, detail=alt.Detail("link:N"))
    )
    zoom = alt.selection_interval(
        name="zoom", bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]"
    )  # the wheel alone scrolls the page
    return alt.layer(bars.add_params(zoom), lines).properties(height=76 + 14 * len(families))


def _spans(family: Family) -> Rows:
    node = family.node
    own = "own, pruned" if node.pruned else "own"
    end = node.prompt_tokens + node.output_tokens
    common = {
        "branch": family.name,
        "parent": "the problem" if node.parent is None else str(node.parent),
        "kind": node.kind,
        "ended": node.end,
    }
    spans = ((0, node.hit_tokens, "shared with others"), (node.hit_tokens, end, own))
    return [{**common, "part": part, "start": a, "end": b} for a, b, part in spans if b > a]
