"""Which coefficients a family's rows cannot tell: an error that says what to measure, or a note in the profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvplan.calibrate.fit.least_squares import Array, Solution, blind_spots, sensitivities
from kvplan.calibrate.fit.problem import FitProblem, scaled
from kvplan.calibrate.fit.terms import HINTS, Term
from kvplan.calibrate.measurements import Row
from kvplan.ground.errors import KvplanError

UNFELT = 5e-3
"""A coefficient whose doubling changes no row by more than about this share is not measured."""
SOFT = ("p_norm", "kernel_s", "row_s", "extra_keys", "mixed_crowding", "mixed_block_s", "serial_bytes_per_s",
        "visit_bytes_per_s", "two_shot_s", "two_shot_bytes_per_s")  # fmt: skip
"""Fields that shape a term; rows that do not feel them leave them at the belief, marked as assumed."""
BOOST = 100.0
BOOSTED = 0.02
"""What a coefficient must show at so many times its start to count as felt."""


def identify(problem: FitProblem, rows: Sequence[Row]) -> dict[str, str]:
    """Raise for coefficients these rows cannot tell; return the soft ones they leave at the belief."""
    names = list(problem.term.start)
    if len(rows) < 3:
        raise KvplanError(
            f"{problem.name}: {len(rows)} rows are too few for {_listed(names)}; measure {_hint(names)}"
        )
    jacobian = _felt(problem, rows)
    alone = [b.names[0] for b in blind_spots(jacobian, names) if len(b.names) == 1]
    if problem.name.split(".")[0] in ("step", "gqa") and not any(
        row.get("num_prefill_tokens") for row in rows
    ):
        alone += [name for name in names if name.startswith("gqa") and name.endswith("flops_per_s")]
    batches = {row["num_decodes"] for row in rows if row.get("num_decodes")}
    if len(batches) == 1:
        alone += [name for name in names if name.endswith("sequence_s")]
    unseen = list(dict.fromkeys(name for name in alone if not _is_soft(name)))
    if unseen:
        raise KvplanError(
            f"{problem.name}: no row tells {_listed(unseen)}; measure {_hint(unseen)}; or state it: "
            f"--assume {unseen[0]}=VALUE"
        )
    why = "not felt by the measured points; the value is a belief"
    return dict.fromkeys((name for name in alone), why) | _told_apart(problem, jacobian)


def _told_apart(problem: FitProblem, jacobian: Array) -> dict[str, str]:
    """Raise for coefficients that only change together, unless the card's data sheet tells one; then say so."""
    names = list(problem.term.start)
    hard = [i for i, name in enumerate(names) if not _is_soft(name)]
    kept = [names[i] for i in hard]
    leaning = blind_spots(jacobian[:, hard], kept)
    sheet = [i for i, name in enumerate(kept) if _on_data_sheet(name, problem.term)]
    known = np.vstack([jacobian[:, hard], 0.5 * np.eye(len(kept))[sheet]])
    for blind in blind_spots(known, kept) if leaning else []:
        raise KvplanError(
            f"{problem.name}: the rows cannot tell {_listed(blind.names)} apart (they only change together); "
            f"measure {_hint(blind.names)}; or state one: --assume {blind.names[0]}=VALUE"
        )
    why = "the measured points cannot tell it from fixed times; leans on the card's data sheet"
    return dict.fromkeys((n for b in leaning for n in b.names if _on_data_sheet(n, problem.term)), why)


def _is_soft(name: str) -> bool:
    return name.rsplit(".", 1)[1] in SOFT


def _felt(problem: FitProblem, rows: Sequence[Row]) -> Array:
    """Sensitivities at the start; a coefficient that starts too small to be felt is judged `BOOST` times as large."""
    start = problem.term.start
    predict = problem.build(rows)
    jacobian = sensitivities(predict, start)
    for i in np.flatnonzero(np.abs(jacobian).max(axis=0) < UNFELT):
        name = list(start)[i]
        boosted = dict(start) | {name: scaled(name, start[name], BOOST)}
        boosted_column = sensitivities(predict, boosted)[:, i]
        if np.abs(boosted_column).max() >= BOOSTED:
            jacobian[:, i] = boosted_column
    return jacobian


def _on_data_sheet(name: str, term: Term) -> bool:
    """Whether a coefficient is a memory rate that a known card bounds closely."""
    return name.endswith(".bytes_per_s") and name.startswith("gemm") and name in term.priors


def unfelt(problem: FitProblem, rows: Sequence[Row], solution: Solution) -> dict[str, str]:
    """Coefficients that turned out too small to see: what is known of them is a bound, and the profile says so."""
    size = np.abs(sensitivities(problem.build(rows), solution.values)).max(axis=0)
    why = "below 0.5 % of every measured point: a bound, not a measurement"
    return {name: why for name, felt in zip(solution.values, size, strict=True) if felt < UNFELT}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _hint(names: Sequence[str]) -> str:
    hints = dict.fromkeys(HINTS.get(name.rsplit(".", 1)[1], "") for name in names)
    return "; ".join(h for h in hints if h) or "more points"
