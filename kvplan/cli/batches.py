"""The batches of a real scheduler in a report: the table that `calibrate` and `fit` both print."""

from __future__ import annotations

from kvplan.calibrate.fit.batches import Batches
from kvplan.profiles.timing_profile import RegimeError


def error_line(e: RegimeError) -> str:
    """One row of an error table."""
    return f"{e.regime:<14}{e.num_points:>8}{e.median:>9.1%}{e.p95:>8.1%}{e.bias:>8.1%}   {e.held_out}"


def batch_lines(batches: Batches | None) -> list[str]:
    """How well the batches of a real scheduler are told; nothing where there are none."""
    if batches is None:
        return []
    return [
        f"\n{batches.engine} ({batches.attention}): {batches.num_batches:,} batches under KV pressure "
        f"(up to {batches.most_tokens:,} of {batches.pool_tokens:,} tokens, {batches.most_waiting} waiting)",
        f"{'its batches':<14}{'points':>8}{'median':>9}{'p95':>8}{'bias':>8}   which",
        *(error_line(error) for error in batches.errors),
        *(f"{'a whole run':<39}{error:>+8.1%}   {which}" for which, error in batches.totals.items()),
        *([batches.note] if batches.note else []),
    ]
