"""Load a live vLLM until its KV pool is full, keep its /metrics pages, and say how well the time was foretold.

    python benchmarks/live_watch.py PYTHON_WITH_VLLM FOLDER [--load rollout|even|poisson] [--seconds 120]

starts vLLM's CPU build on a tiny local model with random weights, sends a bounded load, and writes FOLDER/pages.prom
(pages one after another, each sample with its time) and FOLDER/requests.jsonl (usage of finished requests).
The clock is the engine's CPU time while it works, so that another job on the machine does not count as a slower engine;
requests are sent by the same clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from live_vllm import vllm_server

from kvplan.calibrate.server.client import Server
from kvplan.ground.errors import KvplanError

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


def record(url: str, load: str, seconds: float, wall_s: float, folder: Path) -> None:
    """Send the load; keep a page every two seconds of the clock until the bound."""
    server, clock, rng = Server(url), EngineClock(), random.Random(7)
    model, end = server.facts().model, time.monotonic() + wall_s
    prompts = random.Random(8)

    def send(one: Sent) -> None:
        clock.wait(one.at_s)
        if clock.stopped:
            return
        clock.count(1)
        try:
            got = server.stream(
                model, [prompts.randrange(10, 1000) for _ in range(one.prompt_tokens)], one.output_tokens
            )
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
    with (folder / "pages.prom").open("w") as file:
        page = 0
        while clock.seconds < seconds and time.monotonic() < end:
            clock.wait(2.0 * page)
            before = clock.seconds
            text = Server(url, timeout_s=30).get("/metrics")
            stamp = 10**12 + round(500 * (before + clock.seconds))
            print(*kept(text, model, stamp), sep="\n", file=file, flush=True)
            page += 1
    clock.stopped = True
    pool.shutdown(wait=False, cancel_futures=True)


def main() -> None:
    """Record one load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--load", choices=LOADS, default="rollout")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--wall", type=float, default=400.0)
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "model").mkdir()
        blocks = {"num_gpu_blocks_override": LOADS[options.load][1]}
        with vllm_server(options.python, Path(name) / "model", options.port, **blocks) as url:
            record(url, options.load, options.seconds, options.wall, options.folder)
            print(f"pages in {options.folder}", flush=True)
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
