"""`kvplan watch`: a serving vLLM beside its plan, live or from saved pages and request logs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvplan.calibrate.server.client import Server
from kvplan.cli.options import FLAGS, SWITCH, print_json
from kvplan.cli.sparkline import kv_lines
from kvplan.cli.terminal import show
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.observed.metrics_page import Snapshot, is_page, log_of, pages_of, read_page
from kvplan.observed.reader import file_lines
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.watching.expected import ClassFinding, compare_classes, lengths_of
from kvplan.observed.watching.usage_log import Usage, read_usage
from kvplan.observed.watching.view import Bounds, View
from kvplan.scenario.schema import Scenario, load_scenario

MOST_PAGES = 10_000
"""Kept of a server that is watched for long: the last ones."""


def watch_command(
    source: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *more: str,
    model: str | None = None,
    gpu: str | None = None,
    engine: str | None = None,
    args: FLAGS = None,
    scenario: str | None = None,
    interval: float | None = None,
    duration: Annotated[float | None, Parameter(name="--for")] = None,
    once: Annotated[bool, SWITCH] = False,
    max_kv: float | None = None,
    max_queue: float | None = None,
    max_preemptions: float | None = None,
    full_within: float | None = None,
    max_tokens: float | None = None,
    spark: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """A live vLLM beside its plan: KV use, queue, preemptions, tokens a request, when the pool is full.

    Reads a server's /metrics and changes nothing; works as well on saved pages (several, or several in one file) and on
    a log of usage (JSON lines), alone or together. Exit code 1 as soon as a limit is crossed, for CI and cron.

    For example:

        kvplan watch http://localhost:8000 --gpu h100

        kvplan watch http://localhost:8000 --once --max-kv 0.9 --max-queue 20

        kvplan watch page-*.prom --interval 15 --full-within 600

        kvplan watch usage.jsonl page.prom --scenario long_thinking

    Parameters
    ----------
    source
        The address of a running vLLM, a saved page of its /metrics, a JSONL of usage, or - for standard input.
    more
        More pages, oldest first, and request logs.
    model
        Bundled name, config.json or folder, where the server's name for it is not one.
    gpu
        A name of `kvplan gpus`: with it the pool stands beside the planned one.
    engine
        E.g. vllm@0.19, where the server does not say.
    scenario
        A bundled scenario or YAML file: requests stand beside its lengths, class by class, and the pool beside its
        deployment's where the server serves its model.
    interval
        Seconds between two pages: asked of a server (10 by default), or of saved pages that carry no times; else the
        files' own times count.
    duration
        Seconds to watch; without it until interrupted.
    once
        One page, no trend.
    max_kv
        Largest share of the KV pool in use, 0 to 1.
    max_queue
        Most waiting requests.
    max_preemptions
        Most preemptions while watching; of one page, since the server started.
    full_within
        Seconds that the pool must last at this trend.
    max_tokens
        Most output tokens of one request of the log.
    spark
        KV use over time as a line of blocks at the end, also where no terminal reads.
    json
        One JSON document on stdout, at the end.
    """
    for name, value in (("--interval", interval), ("--for", duration)):
        if value is not None and not 0 < value < 1e8:
            raise KvplanError(f"{name} {value:g}: seconds above 0")
    limits = Bounds(max_kv, max_queue, max_preemptions, full_within, max_tokens)
    expected = load_scenario(scenario) if scenario else None
    plan = _Planner(model, gpu, engine, args, expected)
    if source.startswith(("http://", "https://")):
        requests = _requests_of(more)
        server = _Live(source, interval or 10.0, 0.0 if once else math.inf if duration is None else duration)
        if gpu or expected:
            plan.ask(server.server)
        view = _follow(server, requests, expected, plan, limits, quiet=json or once)
    else:
        pages, requests = _saved([source, *more], interval)
        view = View(pages, requests, _classes(requests, expected), plan(pages), limits)
    if json:
        print_json(view.to_dict())
    else:
        times, shares = [page.time_s for page in view.pages], [page.usage for page in view.pages]
        pool = f"{view.pool_tokens:,.0f} tokens" if view.pool_tokens > 0 else "the pool"
        show([str(view), *kv_lines(times, shares, is_asked=spark, pool=pool)])
    return 1 if view.crossed else 0


class _Live:
    """A server's pages, one every interval."""

    def __init__(self, address: str, interval_s: float, for_s: float) -> None:
        self.server = Server(
            address.removesuffix("/").removesuffix("/metrics"), timeout_s=10.0, whole_s=math.inf
        )
        self.interval_s, self.for_s = interval_s, for_s

    def pages(self) -> Iterator[Snapshot]:
        """Until the time is over, or for ever."""
        began = time.monotonic()
        for number in range(1 << 62):
            before = time.monotonic()
            text = self.server.get("/metrics")
            yield read_page(text, (before + time.monotonic()) / 2 - began)
            following = began + (number + 1) * self.interval_s
            if following - began > self.for_s:
                return
            time.sleep(max(0.0, following - time.monotonic()))


def _follow(
    server: _Live,
    requests: tuple[Usage, ...],
    expected: Scenario | None,
    plan: _Planner,
    limits: Bounds,
    *,
    quiet: bool,
) -> View:
    """The view when the time is over, a limit is crossed, or somebody interrupts."""
    pages: list[Snapshot] = []
    classes = _classes(requests, expected)
    view = View((), requests, classes, None, limits)
    try:
        for page in server.pages():
            pages = [*pages[-MOST_PAGES:], page]
            found = view.found or plan(pages)
            view = View(tuple(pages), requests, classes, found, limits, more_to_come=server.for_s > 0)
            if not quiet:
                print(view.line(), flush=True)
            if view.crossed:
                break
    except KeyboardInterrupt:
        if not pages:
            raise
    return view


class _Planner:
    """The plan of what a page says of its server, where model and card are known: told, or the scenario's."""

    def __init__(
        self,
        model: str | None,
        gpu: str | None,
        engine: str | None,
        args: EngineArgs | None,
        expected: Scenario | None,
    ) -> None:
        self.model, self.gpu, self.engine, self.args = model, gpu, engine, args
        self.deployments = list(expected.deployments.values()) if expected else []
        self.version = ""
        self.max_model_len: int | None = None

    def ask(self, server: Server) -> None:
        """Version and longest context of a live server, where it tells more than its metrics."""
        with suppress(KvplanError):
            facts = server.facts()
            self.version, self.max_model_len = facts.engine_version, facts.max_model_len

    def __call__(self, pages: Sequence[Snapshot]) -> Reconciliation | None:
        if not pages:
            return None
        log = log_of(pages[-1], self.version, self.max_model_len)
        gpu, args = self.gpu, self.args
        same = [
            one for one in self.deployments if _last_part(one.model) == _last_part(self.model or log.model)
        ]
        if gpu is None and same:
            gpu, args = same[0].gpu, args or same[0].engine
        if gpu is None:
            return None
        return reconcile(log, model=self.model, gpu=gpu, engine=self.engine, args=args)


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _classes(requests: tuple[Usage, ...], expected: Scenario | None) -> tuple[ClassFinding, ...]:
    return compare_classes(requests, lengths_of(expected)) if expected and requests else ()


def _requests_of(names: Sequence[str]) -> tuple[Usage, ...]:
    return tuple(usage for name in names for usage in read_usage(file_lines(name), name))


def _saved(names: Sequence[str], interval: float | None) -> tuple[tuple[Snapshot, ...], tuple[Usage, ...]]:
    """Pages in the order given, timed, and requests; folders stand for the files in them."""
    pages: list[Snapshot] = []
    requests: list[Usage] = []
    for name in _files(names):
        lines = tuple(file_lines(name))
        text = "\n".join(lines)
        if is_page(text):
            pages += [read_page(page, _written(name)) for page in pages_of(text)]
        else:
            requests += read_usage(lines, name)
    return tuple(_timed(pages, interval)), tuple(requests)


def _files(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        folder = Path(os.path.expanduser(name))
        if name != "-" and folder.is_dir():
            yield from (str(file) for file in sorted(folder.iterdir()) if file.is_file())
        else:
            yield name


def _written(name: str) -> float:
    """When a file was written; NaN of standard input."""
    return math.nan if name == "-" else Path(os.path.expanduser(name)).stat().st_mtime


def _timed(pages: Sequence[Snapshot], interval: float | None) -> list[Snapshot]:
    """Pages with times that rise: given, their own, or their files'."""
    if interval is not None:
        return [page._replace(time_s=number * interval) for number, page in enumerate(pages)]
    times = [page.time_s for page in pages]
    if len(pages) > 1 and not all(a < b for a, b in pairwise(times)):
        raise KvplanError(
            f"the {len(pages)} pages carry no times that rise, nor do their files; say --interval SECONDS"
        )
    return list(pages)
