"""`sweep`: many scenarios, on the cores of one machine or on a Ray cluster; one row each, in the order of the grid.

The one file that knows joblib and ray. What a point is, is `grid`'s; what its row says, `figures`'; how rows are kept,
`sweep_file`'s.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.errors import KvplanError
from kvplan.scenario.schema import Scenario
from kvplan.search.grid import Point, make_axes, make_points, read_base
from kvplan.search.point_row import Interrupted, Row, error_row, run_point
from kvplan.search.sweep_file import HASH, SweepFile

Progress = Callable[[int, int], None]
"""Called with (points finished, points in all)."""
Task = Callable[[Scenario], Row]
"""What is done with each point."""

BACKENDS = ("local", "ray")
RETRIES = 2
"""How often points are tried again after their worker died, before they are run alone."""


QUIET = "ignore:resource_tracker"
"""Of Python's warnings, in the processes of a sweep."""
FEEDER = "ExecutorManagerThread"
JOIN_S = 2.0
"""How long a thread that is asked to end is waited for."""


class Execution(NamedTuple):
    """Where points run."""

    backend: str = "local"
    """local: processes of this machine; ray: a cluster."""
    workers: int = 1
    address: str | None = None
    """Of a Ray cluster; None starts one on this machine and stops it afterwards."""


class WorkerDied(Exception):
    """A worker process ended by itself: killed, or out of memory."""


class Finished(NamedTuple):
    """A point and its row."""

    point: Point
    row: Row


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
        progress: called with (finished, all).

    All points see the same draws (common random numbers), unless a seed is swept. A point that fails is a row
    with its reason in `error`.

    Raises:
        KvplanError: a key that does not exist, a grid of absurd size, a file that is another sweep's, a cluster that
            does not answer.
    """
    import pandas as pd

    found = sweep_rows(
        scenario, over, sample=sample, seed=seed, output=output, force=force, progress=progress,
        execution=Execution(backend, num_cores() if workers is None else workers, address),
    )  # fmt: skip
    if found.interrupted:
        if not found.rows:
            raise KeyboardInterrupt
        warnings.warn(f"interrupted: {len(found.rows)} of {found.num_points} points", stacklevel=2)
    return pd.DataFrame(found.rows).drop(columns=HASH)


class Sweep(NamedTuple):
    """The rows of a sweep, in grid order."""

    rows: list[Row]
    """Hash, keys and figures of every finished point."""
    num_points: int
    num_found: int
    """Points whose rows were in the file already."""
    interrupted: bool
    """Ctrl-C came before all points were finished."""


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    progress: Progress | None = None,
) -> Sweep:
    """Like `sweep`, as plain rows. After Ctrl-C the finished ones are kept, in the file and here."""
    points = make_points(
        read_base(scenario, overrides), make_axes(over), sample=sample, seed=seed, force=force
    )
    file = SweepFile(Path(output), tuple(points[0].settings)) if output is not None else None
    if file is not None:
        file.open()
    rows = {p.hash: _row(p, file.found[p.hash]) for p in points if file and p.hash in file.found}
    num_found = sum(p.hash in rows for p in points)
    todo = list({p.hash: p for p in points if p.hash not in rows}.values())
    interrupted = False
    try:
        for number, (point, figures) in enumerate(execute(todo, execution or Execution())):
            rows[point.hash] = _row(point, figures)
            if file is not None:
                file.add(rows[point.hash])
            if progress is not None:
                progress(number + 1, len(todo))
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:
        if file is not None:
            file.close()
        raise
    if file is not None:
        file.finish([p.hash for p in points])
    return Sweep(
        [_row(p, rows[p.hash]) for p in points if p.hash in rows], len(points), num_found, interrupted
    )


def _row(point: Point, figures: Row) -> Row:
    """Hash, keys, figures."""
    return {**figures, HASH: point.hash, **point.settings} if HASH in figures else {
        HASH: point.hash, **point.settings, **figures
    }  # fmt: skip


def execute(points: Sequence[Point], execution: Execution, task: Task = run_point) -> Iterator[Finished]:
    """Run points, each row as soon as it is there, in any order; those whose worker dies are tried again.

    A point that takes its worker down whenever it runs becomes a row that says so.
    """
    waiting = []
    for point in points:
        if point.scenario is None:
            yield Finished(point, error_row(point.error))
        else:
            waiting.append(point)
    deaths = 0
    with open_backend(execution, task) as run:
        while waiting:
            left = {point.index: point for point in waiting}
            try:
                for found in run(waiting):
                    del left[found.point.index]
                    yield found
                return
            except WorkerDied:
                waiting, deaths = list(left.values()), deaths + 1
            if deaths >= RETRIES:
                suspects, waiting = waiting[: 4 * execution.workers], waiting[4 * execution.workers :]
                for point in suspects:
                    yield _run_alone(run, point)


def _run_alone(run: Run, point: Point) -> Finished:
    """Run a suspect by itself, so that no other point goes down with it."""
    try:
        return next(iter(run([point])))
    except WorkerDied:
        why = "its worker process died whenever it ran: out of memory? lower workload.num_requests"
        return Finished(point, error_row(why))


Run = Callable[[Sequence[Point]], Iterator[Finished]]
"""Runs points; raises WorkerDied."""


@contextmanager
def open_backend(execution: Execution, task: Task) -> Iterator[Run]:
    """Where points run, until the block ends."""
    if execution.backend not in BACKENDS:
        raise KvplanError(f"--backend {execution.backend}: there are {' and '.join(BACKENDS)}")
    if execution.address is not None and execution.backend != "ray":
        raise KvplanError("--address is a Ray cluster's: add --backend ray")
    if execution.workers < 1:
        raise KvplanError(f"--workers {execution.workers}: at least 1")
    with ExitStack() as stack:
        if execution.backend == "ray":
            stack.enter_context(_ray_cluster(execution))
            yield lambda points: _in_blocks(points, execution.workers, task)
        elif execution.workers == 1:
            yield lambda points: _in_this_process(points, task)
        else:
            yield lambda points: _in_processes(points, execution.workers, task)


def _in_this_process(points: Sequence[Point], task: Task) -> Iterator[Finished]:
    for point in points:
        yield _checked(point, _run(task, point.scenario))


def _run(task: Task, scenario: Scenario | None) -> Row | None:
    """Run one point; None when Ctrl-C cut it short. This is what a worker process executes."""
    assert scenario is not None
    try:
        return task(scenario)
    except Interrupted:
        return None


def _checked(point: Point, row: Row | None) -> Finished:
    if row is None:
        raise KeyboardInterrupt
    return Finished(point, row)


def _run_numbered(place: int, task: Task, scenario: Scenario | None, parent: int) -> tuple[int, Row | None]:
    """Ctrl-C reaches every process; between two points a worker leaves it to its parent, which ends it."""
    if os.getpid() != parent:  # joblib runs tasks in the parent where it may not start processes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return place, _run(task, scenario)


def _joblib() -> Any:
    try:
        import joblib
    except ImportError:
        raise KvplanError(
            "several workers need joblib: pip install 'kvplan[sweep]'; or --workers 1"
        ) from None
    return joblib


def _in_processes(points: Sequence[Point], workers: int, task: Task) -> Iterator[Finished]:
    """Processes of this machine; they stay for the next call."""
    joblib = _joblib()
    from joblib.externals.loky.process_executor import BrokenProcessPool

    parallel = joblib.Parallel(
        workers, batch_size=1, pre_dispatch="3*n_jobs", return_as="generator_unordered"
    )
    tasks = (joblib.delayed(_run_numbered)(i, task, p.scenario, os.getpid()) for i, p in enumerate(points))
    rows = parallel(tasks)
    with _no_last_words():
        try:
            for place, row in rows:
                yield _checked(points[place], row)
        except BrokenProcessPool:
            raise WorkerDied from None
        except BaseException:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that tasks are cancelled: that is the point
                rows.close()
            joblib.externals.loky.get_reusable_executor().shutdown(wait=False, kill_workers=True)
            raise


@contextmanager
def _no_last_words() -> Iterator[None]:
    """Keep what joblib's helpers say when they are ended in the middle of their work off the terminal.

    These are the thread that feeds the workers, and the process that cleans up semaphores after a sweep that is killed.
    """
    ignored, said = os.environ.get("PYTHONWARNINGS", ""), threading.excepthook
    if QUIET not in ignored:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [ignored, QUIET]))

    def unless_feeding(args: Any) -> None:
        if args.thread is None or args.thread.name != FEEDER:
            said(args)

    threading.excepthook = unless_feeding
    try:
        yield
    except BaseException:
        for thread in threading.enumerate():
            if thread.name == FEEDER:
                thread.join(JOIN_S)
        raise
    finally:
        threading.excepthook = said


BLOCK = 16
"""Points per worker that a Ray cluster gets at a time: its backend hands out no row before all are done."""


def _in_blocks(points: Sequence[Point], workers: int, task: Task) -> Iterator[Finished]:
    """joblib's Ray backend, a block of points at a time."""
    joblib = _joblib()
    import ray

    size = BLOCK * workers
    for start in range(0, len(points), size):
        block = points[start : start + size]
        try:
            with joblib.parallel_backend("ray", n_jobs=workers):
                rows = joblib.Parallel(batch_size=1)(joblib.delayed(_run)(task, p.scenario) for p in block)
        except ray.exceptions.RayActorError:
            raise WorkerDied from None
        for point, row in zip(block, rows, strict=True):
            yield _checked(point, row)


@contextmanager
def _closed_stderr() -> Iterator[None]:
    """Ray's C++ part writes a line a second to the terminal while a cluster does not answer; its error says it once."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _ray_cluster(execution: Execution) -> Iterator[None]:
    """Join a cluster, or start one on this machine; leave it, or stop it."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise KvplanError("--backend ray needs Ray: pip install 'kvplan[ray]'") from None
    _check_answers(execution.address)
    known = [str(Path(__file__).resolve().parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    local = {} if execution.address else {"num_cpus": execution.workers, "include_dashboard": False}
    env = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, known))}}
    try:
        with _closed_stderr():
            ray.init(address=execution.address or "local", runtime_env=env, **quiet, **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise KvplanError(f"--address {execution.address}: {str(error).splitlines()[0]}") from None
    try:
        register_ray()
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """A host that does not answer is said at once; Ray itself would wait for minutes."""
    if address is None or address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise KvplanError(f"--address {address}: write host:port or ray://host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise KvplanError(f"--address {address}: no Ray cluster answers there ({why})") from None
