"""A fitted profile as text: what `calibrate` and `fit` both print of a measurement file and its profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvplan.calibrate.build import batches_beside
from kvplan.calibrate.fit.batches import Batches
from kvplan.calibrate.outcome import pool_checks, skipped_points
from kvplan.calibrate.two_cards import CoefficientRatio, TimeRatio
from kvplan.profiles.memory_profile import Figure, MemoryProfile
from kvplan.profiles.profile import Profile
from kvplan.profiles.timing_profile import RegimeError


def report_lines(profile: Profile, measured: Path | None = None) -> list[str]:
    """The profile, and of the measurement file behind it: memory against the formula, batches, what is missing."""
    lines = [*profile_lines(profile), *memory_lines(profile.memory)]
    if measured is None:
        return lines
    return [
        *lines,
        *pool_lines(measured),
        *batch_lines(batches_beside(measured, profile)),
        *skipped_lines(skipped_points(measured)),
    ]


def profile_lines(profile: Profile) -> list[str]:
    """Provenance, coefficients, held-out errors, what was assumed and what was left out."""
    timing = profile.timing
    assert timing is not None
    lines = [
        f"{profile.name}: {profile.gpu or 'card not in the GPU table'}, {profile.engine} {profile.engine_version}",
        f"  source: {profile.source}{f' ({profile.licence})' if profile.licence else ''}",
        "",
        f"{'coefficient':<34}{'value':>12}",
    ]
    for name, value in timing.coefficients.items():
        mark = "  assumed" if name in timing.assumed else ""
        lines.append(f"{name:<34}{value:>12.4g}{mark}")
    lines += ["", f"{'held-out error':<24}{'':<26}{'points':>8}{'median':>9}{'p95':>9}{'bias':>9}"]
    lines += [error_line(f"{e.regime} ({e.family})", e) for e in timing.errors]
    if timing.assumed:
        lines += ["", "not measured:", *(f"  {name}: {why}" for name, why in timing.assumed.items())]
    return lines


def memory_lines(memory: MemoryProfile | None) -> list[str]:
    """The overheads that `estimate --profile` takes, each with its range and source; nothing without any."""
    if memory is None:
        return []
    figures = {name: getattr(memory, name) for name in type(memory).model_fields}
    flat = {
        f"{name}{f'.{kind}' if kind else ''}": figure
        for name, value in figures.items()
        for kind, figure in (value.items() if isinstance(value, dict) else [("", value)])
        if isinstance(figure, Figure)
    }
    head = f"\n{f'overheads for estimate ({memory.engine})':<34}{'value':>10}{'low':>10}{'high':>10}"
    return [
        head,
        *(f"{k:<34}{f.value:>10.4g}{f.low:>10.4g}{f.high:>10.4g}  {f.source}" for k, f in flat.items()),
    ]


def comparison_lines(times: Sequence[TimeRatio], coefficients: Sequence[CoefficientRatio]) -> list[str]:
    """Two cards of one kind: ratios of times and coefficients, second over first, and where they differ."""
    lines = [f"{'times, second over first':<34}{'points':>8}{'ratio':>9}{'error':>9}"]
    lines += [
        f"{t.family:<34}{t.num_points:>8,}{t.ratio:>9.3f}{t.error:>9.1%}{_apart(t.differs)}" for t in times
    ]
    lines += ["", f"{'coefficient':<34}{'first':>12}{'second':>12}{'ratio':>9}"]
    lines += [
        f"{c.name:<34}{c.first[0]:>12.4g}{c.second[0]:>12.4g}{c.ratio:>9.3f}{_apart(c.differs)}"
        for c in coefficients
    ]
    apart = [*(t.family for t in times if t.differs), *(c.name for c in coefficients if c.differs)]
    said = f"beyond both errors: {', '.join(apart)}" if apart else "nowhere beyond both errors"
    return [*lines, "", f"the cards differ {said}"]


def _apart(differs: bool) -> str:
    return "  differs" if differs else ""


def error_line(what: str, e: RegimeError) -> str:
    """One row of an error table."""
    figures = f"{e.num_points:>8,}{e.median:>9.1%}{e.p95:>9.1%}{e.bias:>+9.1%}"
    return f"{what:<24}{e.held_out:<26}{figures}"


def pool_lines(measured: Path) -> list[str]:
    """Bytes per token of real KV pools beside the formula; nothing where none was measured."""
    pools = pool_checks(measured)
    lines = [
        f"{f'{p.num_layers} x {p.num_kv_heads} x {p.head_dim} {p.kv_dtype}':<42}{p.formula_bytes:>10,}"
        f"{p.measured_bytes:>12,.1f}{p.error:>9.3%}"
        for p in pools
    ]
    head = f"\n{'KV pool (layers x heads x dim)':<34}{'formula':>10}{'measured':>12}{'error':>9}   bytes per token"
    return [head, *lines] if lines else []


def batch_lines(batches: Batches | None) -> list[str]:
    """How well the batches of a real scheduler are told; nothing where there are none."""
    if batches is None:
        return []
    return [
        f"\n{batches.engine} ({batches.attention}): {batches.num_batches:,} batches under KV pressure "
        f"(up to {batches.most_tokens:,} of {batches.pool_tokens:,} tokens, {batches.most_waiting} waiting)",
        f"{'its batches':<50}{'points':>8}{'median':>9}{'p95':>9}{'bias':>9}",
        *(error_line(error.regime, error) for error in batches.errors),
        *(f"{'a whole run':<24}{which:<52}{error:>+9.1%}" for which, error in batches.totals.items()),
        *([batches.note] if batches.note else []),
    ]


def skipped_lines(skipped: dict[str, int]) -> list[str]:
    """What was not measured and why."""
    lines = [f"  {count:>4} x {why}" for why, count in sorted(skipped.items())]
    return ["\nskipped:", *lines] if lines else []
