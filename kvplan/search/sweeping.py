"""`sweep`: many scenarios, one row each, in the order of the grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.ground.frames import make_frame
from kvplan.ground.tables import counted
from kvplan.scenario.schema import Scenario
from kvplan.search.execution import Execution, default_workers, execute
from kvplan.search.grid import Point, make_axes, make_points, read_base
from kvplan.search.point_row import Row, run_point, run_ranged
from kvplan.search.sweep_file import HASH, SweepFile
from kvplan.simulation.pricing import check_prices

Progress = Callable[[int, int], None]
"""Called with (points finished, points in all)."""


def sweep(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    over: Mapping[str, Any] | Sequence[str],
    *,
    sample: int | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    backend: str = "local",
    workers: int | None = None,
    address: str | None = None,
    force: bool = False,
    ranges: bool = True,
    progress: Progress | None = None,
) -> Any:
    """Simulate every combination of values; return a pandas DataFrame with a row per point, in grid order.

    Args:
        scenario: a file, a bundled name, a dictionary or a Scenario: the base.
        over: scenario key -> values, e.g. `{"engine.max_num_seqs": [64, 128], "gpu": ["h100", "h200"]}`.
        sample: this many combinations, drawn at random, instead of all; `seed` draws them.
        output: CSV, JSONL or Parquet file; rows are added as they finish, and points found there are not run again.
        backend: "local", or "ray" with the `address` of a cluster (None: one on this machine).
        workers: processes; None = one per core.
        force: run more than 20,000 points.
        ranges: simulate each point at both ends of what its steps may take too, three runs instead of one; `_low` and
            `_high` of the figures are None without.
        progress: called with (finished, all).

    All points see the same draws (common random numbers), unless a seed is swept. A point that fails is a row
    with its reason in `error`.

    Raises:
        KvplanError: a key that does not exist, a grid of absurd size, a file that is another sweep's, a cluster that
            does not answer, no pandas.
    """
    make_frame([])  # pandas is missed before the work
    found = sweep_rows(
        scenario, over, sample=sample, seed=seed, output=output, force=force, ranges=ranges, progress=progress,
        execution=Execution(backend, default_workers() if workers is None else workers, address),
    )  # fmt: skip
    if found.interrupted:
        if not found.rows:
            raise KeyboardInterrupt
        warnings.warn(f"interrupted: {len(found.rows)} of {counted(found.num_points, 'point')}", stacklevel=2)
    return make_frame(found.rows).drop(columns=HASH)


class Sweep(NamedTuple):
    """The rows of a sweep, in grid order."""

    rows: list[Row]
    """Hash, keys and figures of every finished point."""
    num_points: int
    num_found: int
    """Points whose rows were in the file already."""
    interrupted: bool
    """Ctrl-C came before all points were finished."""


def sweep_rows(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    over: Mapping[str, Any] | Sequence[str],
    *,
    overrides: Iterable[str] = (),
    sample: int | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    execution: Execution | None = None,
    force: bool = False,
    ranges: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """Like `sweep`, as plain rows. After Ctrl-C the finished ones are kept, in the file and here."""
    points = make_points(
        read_base(scenario, overrides), make_axes(over), sample=sample, seed=seed, force=force
    )
    check_prices(p.scenario for p in points if p.scenario)
    file = SweepFile(Path(output), tuple(points[0].settings)) if output is not None else None
    if file is not None:
        file.open()
    kept = {} if file is None else file.found
    rows = {p.hash: _row(p, kept[p.hash]) for p in points if p.hash in kept}
    num_found = sum(p.hash in rows for p in points)
    todo = list({p.hash: p for p in points if p.hash not in rows}.values())
    interrupted, task = False, run_ranged if ranges else run_point
    try:
        for number, (point, figures) in enumerate(execute(todo, execution or Execution(), task), 1):
            rows[point.hash] = _row(point, figures)
            if file is not None:
                file.add(rows[point.hash])
            if progress is not None:
                progress(number, len(todo))
    except KeyboardInterrupt:
        interrupted = True
    if file is not None:
        for unwritten in (
            rows.keys() - file.found.keys()
        ):  # Ctrl-C came between a result and its row in the file
            file.add(rows[unwritten])
        file.finish([p.hash for p in points])
    finished = [_row(p, rows[p.hash]) for p in points if p.hash in rows]
    return Sweep(finished, len(points), num_found, interrupted)


def _row(point: Point, figures: Row) -> Row:
    """Hash, keys, figures; a file's row has the first two as text."""
    named = {HASH: point.hash, **point.settings}
    return named | figures | named
