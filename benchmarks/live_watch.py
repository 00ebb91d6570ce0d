"""Load a live vLLM until its KV pool is full, keep its /metrics pages, and say how well the time was foretold.

    python benchmarks/live_watch.py PYTHON_WITH_VLLM FOLDER [--load rollout|even|poisson] [--before 40] [--seed 7]
    python benchmarks/live_watch.py --judge FOLDER

starts vLLM's CPU build on a tiny local model with random weights, sends a bounded load until the pool is full, and
writes FOLDER/pages.prom (pages one after another, each sample with its time) and FOLDER/requests.jsonl (usage of
finished requests). `--before` requests of the same lengths are served first, as of a server that has been up a while.
The clock is the engine's CPU time while it works, so that another job on the machine does not count as a slower engine;
requests are sent by the same clock.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from live_vllm import vllm_server

from kvplan.calibrate.server.client import Server
from kvplan.ground.errors import KvplanError
from kvplan.observed.metrics_page import Snapshot, pages_of, read_page
from kvplan.observed.watching.forecast import forecast

KEPT = re.compile(
    r"vllm:(num_requests_(running|waiting)|kv_cache_usage_perc|num_preemptions_total|prompt_tokens_total"
    r"|generation_tokens_total|request_success_total|cache_config_info|request_(prompt|generation)_tokens_sum"
    r"|request_generation_tokens_bucket|request_prompt_tokens_bucket.*\+Inf)"
)
"""What of a page `kvplan watch` reads."""
LABELS = re.compile(r'(?:_|[a-z])[a-z_]*="[^"]*",?')
CACHE = ("block_size", "cache_dtype", "kv_cache_size_tokens", "num_gpu_blocks", "num_gpu_blocks_override")
"""What of vllm:cache_config_info's labels."""


def kept(text: str, model: str, stamp_ms: int) -> list[str]:
    """The lines of a page that are read, with their time."""
    lines = []
    for line in text.splitlines():
        if KEPT.match(line) and "_by_" not in line and not ("success" in line and line.endswith(" 0.0")):
            if "cache_config_info" in line:
                told = [one for one in LABELS.findall(line) if one.partition("=")[0] in CACHE]
                line = f"vllm:cache_config_info{{{''.join(told).rstrip(',')}}} 1.0"
            lines.append(f"{line.replace(model, 'tiny')} {stamp_ms}")
    return lines


RATE = 2.5
"""Requests a second: twice what one thread computes."""


class Sent(NamedTuple):
    """One request of a load."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def rollout(rng: random.Random) -> Iterator[Sent]:
    """Long thinkers, all at once."""
    for _ in range(24):
        yield Sent(0.0, rng.randrange(150, 250), int(2400 * rng.lognormvariate(0, 0.1)))


def even(rng: random.Random) -> Iterator[Sent]:
    """One request after another at even gaps, faster than they end."""
    for i in range(300):
        yield Sent(i / RATE, rng.randrange(200, 400), int(600 * rng.lognormvariate(0, 0.3)))


def poisson(rng: random.Random) -> Iterator[Sent]:
    """The same at random gaps."""
    at = 0.0
    for one in even(rng):
        yield one._replace(at_s=at)
        at += rng.expovariate(RATE)


BEFORE_AT_ONCE = 8
MAX_NUM_SEQS = 256
"""vLLM's default for a server: blocks are what requests wait for, not a place in the batch."""
LOADS = {"rollout": (rollout, 1600), "even": (even, 1000), "poisson": (poisson, 1000)}
"""Load, and blocks of 32 tokens that fill under it within the bound."""


class EngineClock:
    """Seconds of CPU that the engine has used, and of wall while nothing is in flight."""

    def __init__(self) -> None:
        self.in_flight, self.seconds, self._lock = 0, 0.0, threading.Lock()
        self._cpu, self._wall, self.stopped = self._used(), time.monotonic(), False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.stopped:
            time.sleep(0.02)
            cpu, wall = self._used(), time.monotonic()
            with self._lock:
                self.seconds += cpu - self._cpu if self.in_flight else wall - self._wall
            self._cpu, self._wall = cpu, wall

    def _used(self) -> float:
        """CPU seconds of the process below the server that has used most: the worker, which computes the steps."""
        parents, used = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
            used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        below, ours = [os.getpid()], list[int]()
        while below:
            below = [pid for pid, parent in parents.items() if parent in below]
            ours += below
        servers = _children()
        return max((used[pid] for pid in ours if pid not in servers), default=0.0)

    def wait(self, until: float) -> None:
        """Sleep until that moment of the clock."""
        while self.seconds < until and not self.stopped:
            time.sleep(0.02)

    def count(self, change: int) -> None:
        """A request goes out or comes back."""
        with self._lock:
            self.in_flight += change


EVERY_S = 0.5
"""Between two pages, by the clock."""


def serve_before(url: str, load: str, number: int, seed: int) -> None:
    """Serve so many requests of the load's lengths, a few at a time."""
    server, rng = Server(url), random.Random(seed + 1000)
    model, sent = server.facts().model, list(LOADS[load][0](rng))[:number]
    with ThreadPoolExecutor(BEFORE_AT_ONCE) as pool:
        list(pool.map(lambda one: server.stream(model, [10] * one.prompt_tokens, one.output_tokens), sent))


def record(url: str, load: str, options: argparse.Namespace) -> None:
    """Send the load; keep a page every half second of the clock until the pool is full, or the bound."""
    folder, seconds = options.folder, options.seconds
    server, clock, rng = Server(url), EngineClock(), random.Random(options.seed)
    model, end = server.facts().model, time.monotonic() + options.wall
    prompts = random.Random(8)

    def send(one: Sent) -> None:
        clock.wait(one.at_s)
        if clock.stopped:
            return
        clock.count(1)
        try:
            tokens = [prompts.randrange(10, 1000) for _ in range(one.prompt_tokens)]
            got = server.stream(model, tokens, one.output_tokens)
        except KvplanError:
            return
        finally:
            clock.count(-1)
        row = {
            "time": round(clock.seconds, 3),
            "usage": {"prompt_tokens": one.prompt_tokens, "completion_tokens": len(got.token_s)},
        }
        with (folder / "requests.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    sent = list(LOADS[load][0](rng))
    pool = ThreadPoolExecutor(len(sent))
    for one in sent:
        pool.submit(send, one)
    pages: list[Snapshot] = []
    with (folder / "pages.prom").open("w") as file:
        while clock.seconds < seconds and time.monotonic() < end and not is_full(pages):
            clock.wait(EVERY_S * len(pages))
            before = clock.seconds
            text = Server(url, timeout_s=30).get("/metrics")
            stamp = 10**12 + round(500 * (before + clock.seconds))
            lines = kept(text, model, stamp)
            print(*lines, sep="\n", file=file, flush=True)
            pages.append(read_page("\n".join(lines)))
    clock.stopped = True
    pool.shutdown(wait=False, cancel_futures=True)


PHASES = (1 / 3, 0.5, 0.75, 0.98)
"""Shares of the pool between which forecasts are summed up."""
LEAST_LEFT_S = 3.0
"""Forecasts of less are not judged: pages are half a second apart."""


def judge(folder: Path) -> None:
    """Print every fourth page's forecast, made of the pages up to it two seconds apart, beside the time left."""
    pages = [read_page(text) for text in pages_of((folder / "pages.prom").read_text())]
    full = next((pages[i].time_s for i in range(len(pages)) if is_full(pages[: i + 1])), None)
    if full is None:
        sys.exit(f"the pool was never full: at most {max(page.usage for page in pages):.0%}")
    start, rows = pages[0].time_s, []
    seen = pages[:: round(2 / EVERY_S)]
    print(f"full after {full - start:.1f} s; {pages[0].finished:.0f} requests had been served before")
    for i, page in enumerate(seen):
        left = full - page.time_s
        told = forecast(seen[: i + 1])
        if page.usage < PHASES[0] or left < LEAST_LEFT_S or math.isnan(told.seconds):
            continue
        off, held = told.seconds / left - 1, told.low <= left <= told.high
        rows.append((page.usage, off, held, (told.seconds - left) / (full - start)))
        print(
            f"{page.time_s - start:6.1f} s  KV {page.usage:4.0%}  left {left:5.1f} s, told {told}: {off:+.0%}"
            f"{'' if held else ', not in the range'}"
        )
    for low, high in [*pairwise(PHASES), (PHASES[0], 1.0)]:
        mine = [row for row in rows if low <= row[0] < high]
        if mine:
            near, moment = (sum(abs(row[column]) <= 0.2 for row in mine) for column in (1, 3))
            print(
                f"KV {low:.0%} to {high:.0%}: {near} of {len(mine)} within 20 % of the time left, {moment} within 20 % "
                f"of the moment since the load began, median {median(row[1] for row in mine):+.0%}, "
                f"{sum(row[2] for row in mine)} in the range"
            )


def is_full(pages: Sequence[Snapshot]) -> bool:
    """Whether the forecast of the last page is "now"."""
    return bool(pages) and forecast(pages[-2:]).seconds == 0


def main() -> None:
    """Record one load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="?")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judge", action="store_true", help="no run: judge the pages of a folder")
    parser.add_argument("--before", type=int, default=0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--load", choices=LOADS, default="rollout")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--wall", type=float, default=400.0)
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    if options.judge:
        return judge(options.folder)
    if options.python is None:
        parser.error("which Python has vLLM?")
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "model").mkdir()
        engine = {"num_gpu_blocks_override": LOADS[options.load][1], "max_num_seqs": MAX_NUM_SEQS}
        with vllm_server(options.python, Path(name) / "model", options.port, **engine) as url:
            serve_before(url, options.load, options.before, options.seed)
            record(url, options.load, options)
            print(f"pages in {options.folder}", flush=True)
            judge(options.folder)
            sys.stdout.flush()
            for pid in _children():
                os.kill(pid, signal.SIGTERM)
            os._exit(0)  # requests still in flight would be waited for


def _children() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(folder.name))
    return found


if __name__ == "__main__":
    main()
