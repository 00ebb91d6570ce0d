"""From the points of kernel tables to surfaces: which points are believed, which are kept, what left-out ones say.

A point quicker than 1.05 of the data sheet is refused: it was read from a cache, or not run at all. Holes are filled
from their neighbours, so that a surface is whole. Knows arrays of points; `sources` knows whose they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.profiles.timing_profile import Regime, RegimeError
from kvplan.timing.costs import Array
from kvplan.timing.surfaces import (
    FULL,
    AttentionSurface,
    Curve,
    ExpertSurface,
    GemmSurface,
    Shape,
    Sheet,
    experts_sheet_s,
    product_sheet_s,
)
from kvplan.timing.work import ExpertWork, visit_bytes

Points = Mapping[str, Array]
"""Columns of a table; `time_s` is what was measured."""

BEYOND = 1.05
"""Of the data sheet: quicker points are refused."""
TOKENS = (
    1, 2, 4, 8, 16, 17, 32, 33, 48, 64, 65, 80, 96, 128, 129, 160, 192, 193, 256, 257, 384, 512, 513, 768,
    769, 1024, 1025, 1280, 1281, 1536, 1537, 1792, 1793, 2048, 2049, 2304, 2560, 2561, 3072, 3073, 3584, 3585,
    4096, 4097, 8192, 16384, 32768,
)  # fmt: skip
"""Kept of a product's token counts: both sides of the tiles' edges, fewer where the time is smooth."""
OUTS, INS = 128, 256
"""Narrowest products kept."""
FEWEST_CONTEXT = 15
"""Tokens; shorter contexts take no less time."""
EXPERT_TOKENS = (1, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)


class Made(NamedTuple):
    """A surface, how many points it holds and how many were refused, and what left-out points say."""

    surface: Any
    num_points: int
    refused: int
    share: float
    """Of the data sheet's rate that large points reach, in the median."""
    errors: tuple[RegimeError, ...]


def gemm_surface(points: Points, sheet: Sheet, family: str) -> Made:
    """Matrix products: columns m, n, k."""
    keep = np.isin(points["m"], TOKENS) & (points["n"] >= OUTS) & (points["k"] >= INS)
    (m, n, k), seconds = _cube([points[c][keep] for c in "mnk"], points["time_s"][keep])
    mesh = np.meshgrid(m, n, k, indexing="ij")
    bare = product_sheet_s(sheet, *mesh) - sheet.seconds(0.0, 0.0)
    seconds, refused = _refused(seconds, bare)
    ratio = np.log(seconds / product_sheet_s(sheet, *mesh))
    large = (mesh[0] >= 2048) & (mesh[1] >= 2048) & (mesh[2] >= 2048)
    share = float(np.nanmedian((bare / seconds)[large]))
    errors = _errors("gemm", family, "(out, in) shapes left out in turn", _left_out_columns(ratio, (n, k)))
    least = np.log(np.maximum(bare, 1e-12) / (BEYOND * product_sheet_s(sheet, *mesh)))
    whole = np.maximum(_filled(ratio, (m, n, k)), least)  # holes keep to the data sheet too
    return Made(GemmSurface(sheet, m, n, k, whole), _count(seconds), refused, share, errors)


def _left_out_columns(ratio: Array, axes: Sequence[Array]) -> Array:
    """ln(predicted / measured) of every inner column from its neighbours along the last two axes."""
    found = []
    for axis, grid in zip((1, 2), axes, strict=True):
        moved = np.moveaxis(ratio, axis, 0)
        place = np.log(grid[1:-1] / grid[:-2]) / np.log(grid[2:] / grid[:-2])
        place = place.reshape(-1, 1, 1)
        estimate = np.full(moved.shape, np.nan)
        estimate[1:-1] = (1 - place) * moved[:-2] + place * moved[2:]
        found.append(np.moveaxis(estimate, 0, axis))
    errors: Array = (found[0] + found[1]) / 2 - ratio
    return errors


def attention_surface(
    decode: Points, prompt: Points, sheet: Sheet, family: str, pair_flops: float = 0.0
) -> Made:
    """Attention of one KV format: decodes with batch, context, heads, kv_heads, head_dim; prompts with length too.

    `pair_flops` per head and pair where it is not 4 head sizes (MLA).
    """
    batches = np.unique(decode["batch"])
    contexts = np.unique(decode["context"][decode["context"] > FEWEST_CONTEXT])
    shapes = _shapes(decode)
    held = np.array([kv * size for _, kv, size in shapes])[:, None, None] * batches[:, None] * contexts
    element = sheet.element_bytes * (1 if pair_flops else 2)
    bare = held * element / sheet.bytes_per_s
    seconds, refused = _refused(_by_shape(decode, shapes, batches, contexts, "batch", "context"), bare)
    ratio = np.log(seconds / sheet.seconds(held * element, 0.0))
    along, across = _left_out_shapes(ratio, shapes)
    use_heads = _size(along) <= _size(across)
    lengths, prompt_shapes = np.unique(prompt["length"]), _shapes(prompt)
    flops = np.array([pair_flops * h if pair_flops else 4.0 * h * d for h, _, d in prompt_shapes])
    one = np.ones(1)
    prompt_s = _by_shape(
        {**prompt, "one": np.ones(len(prompt["length"]))}, prompt_shapes, one, lengths, "one", "length"
    )
    work = 0.5 * lengths**2 * flops[:, None]
    prompt_s, also = _refused(prompt_s[:, 0], work / sheet.flops_per_s)
    prompt_ratio = _filled(
        np.log(prompt_s / sheet.seconds(0.0, work)), (np.arange(len(flops)) + 1.0, lengths)
    )
    lengths_left = _left_out_middles(np.log(prompt_s / sheet.seconds(0.0, work)), lengths)
    surface = AttentionSurface(
        sheet, shapes, batches, contexts, _grown(ratio), lengths, prompt_shapes, prompt_ratio, bool(use_heads)
    )
    share = float(np.nanmedian((bare / seconds)[:, -3:, contexts >= 4096]))
    near = contexts <= 65536
    left = (along if use_heads else across)[:, :, near]
    errors = _errors("decode", family, "head shapes left out in turn, contexts to 64k", left)
    errors += _errors(
        "decode", family, "(batch, context) left out in turn", _left_out_cells(ratio, shapes)[:, :, near]
    )
    errors += _errors("prefill", family, "prompt lengths left out in turn", lengths_left)
    return Made(surface, _count(seconds) + _count(prompt_s), refused + also, share, errors)


def _shapes(points: Points) -> tuple[Shape, ...]:
    columns = np.stack([points[c].astype(int) for c in ("heads", "kv_heads", "head_dim")], axis=1)
    return tuple((int(h), int(kv), int(d)) for h, kv, d in np.unique(columns, axis=0))


def _by_shape(
    points: Points, shapes: tuple[Shape, ...], rows: Array, columns: Array, row: str, column: str
) -> Array:
    """Seconds by shape, row and column; NaN where nothing was measured."""
    index = {shape: i for i, shape in enumerate(shapes)}
    keys = zip(*(points[c].astype(int).tolist() for c in ("heads", "kv_heads", "head_dim")), strict=True)
    which = np.array([index[key] for key in keys])
    keep = np.isin(points[row], rows) & np.isin(points[column], columns)
    found = np.full((len(shapes), len(rows), len(columns)), np.inf)
    at = (which, np.searchsorted(rows, points[row]), np.searchsorted(columns, points[column]))
    np.minimum.at(found, tuple(axis[keep] for axis in at), points["time_s"][keep])
    return np.where(np.isfinite(found), found, np.nan)


def _left_out_shapes(ratio: Array, shapes: tuple[Shape, ...]) -> tuple[Array, Array]:
    """ln(predicted / measured) of every shape from others: along its heads; and from fewer KV heads, more sequences."""
    index = {shape: i for i, shape in enumerate(shapes)}
    along, across = np.full(ratio.shape, np.nan), np.full(ratio.shape, np.nan)
    for (heads, kv, size), i in index.items():
        others = sorted(h for h, n, d in shapes if (n, d) == (kv, size) and h != heads)
        below, above = [h for h in others if h < heads][-1:], [h for h in others if h > heads][:1]
        if below and above:
            w = math.log(heads / below[0]) / math.log(above[0] / below[0])
            along[i] = (
                (1 - w) * ratio[index[below[0], kv, size]] + w * ratio[index[above[0], kv, size]] - ratio[i]
            )
        fewer = index.get((heads // kv, 1, size)) if kv > 1 and heads % kv == 0 else None
        if fewer is not None:
            shift = round(math.log2(kv))
            across[i, : ratio.shape[1] - shift] = ratio[fewer, shift:] - ratio[i, : ratio.shape[1] - shift]
    return along, across


def _left_out_cells(ratio: Array, shapes: tuple[Shape, ...]) -> Array:
    """ln(predicted / measured) of every (batch, context) from what lies around it and from shapes beside it."""
    around = []
    for shift in ((1, 0), (0, 1), (1, -1)):
        before, after = (np.full(ratio.shape, np.nan) for _ in range(2))
        _shifted(ratio, shift, before)
        _shifted(ratio, (-shift[0], -shift[1]), after)
        around.append((before + after) / 2)
    beside, _ = _left_out_shapes(ratio, shapes)
    with np.errstate(all="ignore"):
        estimate = np.stack([*(a - ratio for a in around), beside, beside])
        count = np.sum(~np.isnan(estimate), axis=0)
        found: Array = np.where(count > 0, np.nansum(estimate, axis=0) / np.maximum(count, 1), np.nan)
    return found


def _shifted(ratio: Array, by: tuple[int, int], into: Array) -> None:
    spans = [(slice(max(d, 0), n + min(d, 0)), slice(max(-d, 0), n + min(-d, 0)))
             for d, n in zip(by, ratio.shape[1:], strict=True)]  # fmt: skip
    into[:, spans[0][0], spans[1][0]] = ratio[:, spans[0][1], spans[1][1]]


def _grown(ratio: Array) -> Array:
    """Holes of a decode surface: along contexts first, then batches, ends held."""
    found = ratio.copy()
    for axis in (2, 1):
        flat = np.moveaxis(found, axis, -1)
        shape = flat.shape
        rows = flat.reshape(-1, shape[-1]).copy()
        place = np.arange(shape[-1], dtype=float)
        _fill_rows(rows, place)
        found = np.moveaxis(rows.reshape(shape), -1, axis)
    return np.nan_to_num(found)


def _fill_rows(rows: Array, place: Array) -> None:
    for i in np.flatnonzero(np.isnan(rows).any(axis=1) & ~np.isnan(rows).all(axis=1)):
        known = ~np.isnan(rows[i])
        rows[i] = np.interp(place, place[known], rows[i][known])


def expert_surface(points: Points, sheet: Sheet, family: str) -> Made:
    """Fused experts: columns hidden, cut, topk, experts, ranks, tokens."""
    keep = np.isin(points["tokens"], EXPERT_TOKENS)
    names = ("hidden", "cut", "topk", "experts", "ranks")
    shapes, which = np.unique(np.stack([points[c] for c in names], axis=1), axis=0, return_inverse=True)
    tokens = np.array(EXPERT_TOKENS, float)
    seconds = np.full((len(shapes), len(tokens)), np.inf)
    np.minimum.at(
        seconds,
        (which.ravel()[keep], np.searchsorted(tokens, points["tokens"][keep])),
        points["time_s"][keep],
    )
    seconds = np.where(np.isfinite(seconds), seconds, np.nan)
    whole = ~np.isnan(seconds[:, :2]).any(axis=1)
    shapes, seconds = shapes[whole], seconds[whole]
    work = [_expert_work(shape) for shape in shapes]
    sheet_s = np.array([experts_sheet_s(sheet, e, tokens) for e in work])
    seconds, refused = _refused(seconds, sheet_s - sheet.seconds(0.0, 0.0))
    ratio = _filled(np.log(seconds / sheet_s), (np.arange(len(shapes)) + 1.0, tokens))
    middle = _left_out_middles(np.log(seconds / sheet_s)[:, 1:], tokens[1:])
    errors = _errors("moe", family, "token counts from 192 on left out in turn", middle)
    full = int(np.searchsorted(tokens, FULL))
    share = float(np.nanmedian((sheet_s / seconds)[:, full]))
    return Made(ExpertSurface(sheet, shapes, tokens, ratio), _count(seconds), refused, share, errors)


def _expert_work(shape: Array) -> ExpertWork:
    """One layer of one measured shape."""
    hidden, cut, topk, experts, ranks = shape.tolist()
    params = 3 * hidden * cut
    return ExpertWork(
        1, math.ceil(experts / ranks), topk / experts, 0.0, 2.0 * params, visit_bytes(hidden, cut), 1.0, int(hidden),
        cut, int(topk), int(ranks),
    )  # fmt: skip


def _left_out_middles(ratio: Array, axis: Array) -> Array:
    place = np.log(axis[1:-1] / axis[:-2]) / np.log(axis[2:] / axis[:-2])
    found: Array = (1 - place) * ratio[:, :-2] + place * ratio[:, 2:] - ratio[:, 1:-1]
    return found


def link_curve(num_bytes: Array, seconds: Array) -> Curve:
    """Exchanges over message sizes, the quicker of several ways of doing one."""
    sizes = np.unique(num_bytes)
    best = np.array([seconds[num_bytes == size].min() for size in sizes])
    best = np.minimum.accumulate(best[::-1])[::-1]  # a larger message's time bounds a smaller one's
    return Curve(tuple(float(f"{x:.6g}") for x in sizes), tuple(float(f"{x:.4g}") for x in best))


def _cube(columns: Sequence[Array], seconds: Array) -> tuple[list[Array], Array]:
    """Axes, and the least time at every crossing; NaN where nothing was measured."""
    axes = [np.unique(column).astype(float) for column in columns]
    found = np.full([len(axis) for axis in axes], np.inf)
    at = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True))
    np.minimum.at(found, at, seconds)
    return axes, np.where(np.isfinite(found) & (found > 0), found, np.nan)


def _refused(seconds: Array, bare_s: Array) -> tuple[Array, int]:
    """Without the points quicker than `BEYOND` of the data sheet, and how many those were."""
    with np.errstate(invalid="ignore"):
        beyond = seconds * BEYOND < bare_s
    return np.where(beyond, np.nan, seconds), int(beyond.sum())


def _filled(ratio: Array, axes: Sequence[NDArray[Any]]) -> Array:
    """Holes from neighbours along the last axes, averaged; what is still missing along the first."""
    found = ratio.copy()
    for _ in range(2):
        hole = np.isnan(found)
        if not hole.any():
            break
        guesses = []
        for axis in range(ratio.ndim - 1, -1 if ratio.ndim == 2 else 0, -1):
            moved = np.moveaxis(found, axis, -1)
            rows = moved.reshape(-1, moved.shape[-1]).copy()
            _fill_rows(rows, np.log(axes[axis]))
            guesses.append(np.moveaxis(rows.reshape(moved.shape), -1, axis))
        known = np.sum(~np.isnan(guesses), axis=0)
        mean = np.nansum(guesses, axis=0) / np.maximum(known, 1)
        found = np.where(hole & (known > 0), mean, found)
    return np.nan_to_num(found)


def _count(seconds: Array) -> int:
    return int(np.sum(~np.isnan(seconds)))


def _size(ratio: Array) -> float:
    known = np.abs(ratio[~np.isnan(ratio)])
    return float(np.quantile(known, 0.9)) if len(known) else math.inf


def _errors(regime: Regime, family: str, what: str, ratio: Array) -> tuple[RegimeError, ...]:
    known = ratio[~np.isnan(ratio)]
    if not len(known):
        return ()
    size = np.abs(np.expm1(known))
    median, p90, p95 = (round(float(np.quantile(size, q)), 4) for q in (0.5, 0.9, 0.95))
    bias = round(float(known.mean()), 4)
    return (RegimeError(regime=regime, family=family, held_out=what, num_points=len(known), median=median,
                        p90=p90, p95=p95, bias=bias),)  # fmt: skip
