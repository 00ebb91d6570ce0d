"""Where points run: in this process, on the cores of this machine (joblib) or on a Ray cluster.

The one file that knows joblib and ray. What a point is, is `grid`'s; what its row says, `point_row`'s.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Scenario
from kvplan.search.grid import Point
from kvplan.search.point_row import Interrupted, Row, error_row, run_point

Task = Callable[[Scenario], Row]
"""What is done with each point."""
RunPoints = Callable[[Sequence["Point"]], Iterator["FinishedPoint"]]
"""Runs points; raises WorkerDied."""

BACKENDS = ("local", "ray")
RETRIES = 2
"""How often points are tried again after their worker died, before they are run alone."""
QUIET = "ignore:resource_tracker"
"""Of Python's warnings, in the processes of a sweep."""
FEEDER = "ExecutorManagerThread"
WATCH_S = 1.0
"""Between two looks whether the parent still lives."""
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


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One per core; one where joblib is missing, as after a plain `pip install .`."""
    return num_cores() if find_spec("joblib") else 1


class FinishedPoint(NamedTuple):
    """A point and its row."""

    point: Point
    row: Row


def execute(points: Sequence[Point], execution: Execution, task: Task = run_point) -> Iterator[FinishedPoint]:
    """Run points, each row as soon as it is there, in any order; those whose worker dies are tried again.

    A point that takes its worker down whenever it runs becomes a row that says so.
    """
    waiting = []
    for point in points:
        if point.scenario is None:
            yield FinishedPoint(point, error_row(point.error))
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


def run_scenarios(scenarios: Sequence[Scenario], execution: Execution, task: Task) -> list[Row]:
    """What a task says of each scenario, in their order."""
    points = [Point(i, {}, scenario, "", "") for i, scenario in enumerate(scenarios)]
    rows = {point.index: row for point, row in execute(points, execution, task)}
    return [rows[point.index] for point in points]


def _run_alone(run: RunPoints, point: Point) -> FinishedPoint:
    """Run a suspect by itself, so that no other point goes down with it."""
    try:
        return next(iter(run([point])))
    except WorkerDied:
        why = "its worker process died whenever it ran: out of memory? lower workload.num_requests"
        return FinishedPoint(point, error_row(why))


@contextmanager
def open_backend(execution: Execution, task: Task) -> Iterator[RunPoints]:
    """Where points run, until the block ends."""
    if execution.backend not in BACKENDS:
        raise KvplanError(f"--backend {execution.backend}: there are {' and '.join(BACKENDS)}")
    if execution.address is not None and execution.backend != "ray":
        raise KvplanError("--address is a Ray cluster's: add --backend ray")
    if execution.workers < 1:
        raise KvplanError(f"--workers {execution.workers}: at least 1")
    if execution.backend == "ray":
        with _ray_cluster(execution):
            yield partial(_in_blocks, workers=execution.workers, task=task)
    elif execution.workers == 1:
        yield partial(_in_this_process, task=task)
    else:
        yield partial(_in_processes, workers=execution.workers, task=task)


def _in_this_process(points: Sequence[Point], task: Task) -> Iterator[FinishedPoint]:
    for point in points:
        yield _checked(point, _run(task, point.scenario))


def _run(task: Task, scenario: Scenario | None) -> Row | None:
    """Run one point; None when Ctrl-C cut it short. This is what a worker process executes."""
    assert scenario is not None
    try:
        return task(scenario)
    except Interrupted:
        return None


def _checked(point: Point, row: Row | None) -> FinishedPoint:
    if row is None:
        raise KeyboardInterrupt
    return FinishedPoint(point, row)


def _run_numbered(place: int, task: Task, scenario: Scenario | None, parent: int) -> tuple[int, Row | None]:
    """Ctrl-C reaches every process; between two points a worker leaves it to its parent, which ends it."""
    if os.getpid() != parent:  # joblib runs tasks in the parent where it may not start processes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with(parent)
    return place, _run(task, scenario)


@cache
def _end_with(parent: int) -> None:
    """A parent that is killed outright ends nobody: this worker then ends itself, in the middle of a point too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    if os.getppid() == parent:
        threading.Thread(target=watch, daemon=True).start()


def _joblib() -> Any:
    try:
        import joblib
    except ImportError:
        raise KvplanError(
            "several workers need joblib: pip install 'kvplan[sweep]'; or --workers 1"
        ) from None
    return joblib


def _in_processes(points: Sequence[Point], workers: int, task: Task) -> Iterator[FinishedPoint]:
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


def _in_blocks(points: Sequence[Point], workers: int, task: Task) -> Iterator[FinishedPoint]:
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
