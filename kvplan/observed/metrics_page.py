"""A page of vLLM's /metrics as facts: load, counters, histograms of lengths, and what it says of its cache.

Names of vLLM 0.6 to 0.33 (`gpu_cache_usage_perc` became `kv_cache_usage_perc`). Several engines (data parallel) are
added up; the fullest pool counts. Known figures are kept, nothing else of a page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from math import fsum
from typing import NamedTuple

from kvplan.calibrate.server.client import Metric, parse_metrics
from kvplan.ground.errors import KvplanError
from kvplan.observed.load_lines import EngineLoad
from kvplan.observed.startup import StartupLog


class Histogram(NamedTuple):
    """Lengths of finished requests."""

    edges: tuple[float, ...]
    """Upper ends in tokens, the last infinite."""
    counts: tuple[float, ...]
    """Requests up to each end."""
    total: float
    """Tokens of all."""

    @property
    def requests(self) -> float:
        """How many it counts."""
        return self.counts[-1] if self.counts else 0.0

    @property
    def mean(self) -> float:
        """Tokens of a request; NaN of none."""
        return self.total / self.requests if self.requests else math.nan

    def quantile(self, share: float) -> float:
        """Tokens below which that share lies, straight within a bucket; the last finite end beyond it. NaN of none."""
        wanted, low, below = share * self.requests, 0.0, 0.0
        if not self.requests:
            return math.nan
        for edge, count in zip(self.edges, self.counts, strict=True):
            if count >= wanted:
                if math.isinf(edge):
                    return low
                return low + (edge - low) * (wanted - below) / max(count - below, 1e-9)
            low, below = edge, count
        return low

    def since(self, before: Histogram) -> Histogram:
        """What came after an earlier page; the whole where the server was started again between them."""
        if before.edges != self.edges or before.requests > self.requests:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(self.edges, counts, self.total - before.total)


NO_LENGTHS = Histogram((), (), 0.0)


class Snapshot(NamedTuple):
    """One page."""

    time_s: float
    """When it was read, in seconds of any clock that all pages share; NaN where nobody says."""
    model: str
    """As served: a name, a path or an alias."""
    running: float
    waiting: float
    usage: float
    """Share of the fullest KV pool in use, 0 to 1."""
    preemptions: float
    """Since the server started, as the three below."""
    prompt_tokens: float
    generation_tokens: float
    finished: float
    """Requests."""
    prompts: Histogram
    answers: Histogram
    """Tokens generated, thinking included."""
    cache: Mapping[str, str]
    """Labels of vllm:cache_config_info."""

    @property
    def pool_tokens(self) -> float:
        """Tokens that all KV pools hold: as told, else blocks x block size; NaN where neither is."""
        told = _number(self.cache.get("kv_cache_size_tokens", ""))
        blocks, size = (_number(self.cache.get(name, "")) for name in ("num_gpu_blocks", "block_size"))
        return told if told == told else blocks * size

    @property
    def load(self) -> EngineLoad:
        """As a log's lines tell it."""
        where = "the metrics page"
        return EngineLoad(self.running, self.waiting, self.usage, self.preemptions, self.running, where)


_SUMS = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "finished": ("vllm:request_success_total",),
}
_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_STAMPED = re.compile(r"^[a-zA-Z_:][\w:]*(?:\{[^}]*\})? \S+ (\d{12,14})$", re.MULTILINE)
"""A sample with its time in milliseconds, as Prometheus federates it."""


def read_page(text: str, time_s: float = math.nan) -> Snapshot:
    """Read one page.

    Args:
        text: Prometheus text.
        time_s: when it was read; a page whose samples carry times has its own.

    Raises:
        KvplanError: no metrics of vLLM in it.
    """
    stamp = _STAMPED.search(text)
    metrics = [m for m in parse_metrics(text) if m.name.startswith("vllm:") and math.isfinite(m.value)]
    if not any(m.name in _SUMS["running"] for m in metrics):
        raise KvplanError(
            "no metrics of vLLM in the page (vllm:num_requests_running ...); is this its /metrics?"
        )
    sums = {name: fsum(m.value for m in metrics if m.name in names) for name, names in _SUMS.items()}
    return Snapshot(
        time_s=float(stamp[1]) / 1000 if stamp else time_s,
        model=next((m.labels["model_name"] for m in metrics if "model_name" in m.labels), ""),
        usage=max((m.value for m in metrics if m.name in _USAGE), default=0.0),
        cache=next((m.labels for m in metrics if m.name == "vllm:cache_config_info"), {}),
        prompts=_histogram(metrics, "vllm:request_prompt_tokens"),
        answers=_histogram(metrics, "vllm:request_generation_tokens"),
        **sums,
    )


def _histogram(metrics: Iterable[Metric], base: str) -> Histogram:
    counts: dict[float, float] = {}
    total = 0.0
    for metric in metrics:
        if metric.name == f"{base}_sum":
            total += metric.value
        elif metric.name == f"{base}_bucket":
            edge = _number(metric.labels.get("le", ""))
            if edge == edge:
                counts[edge] = counts.get(edge, 0.0) + metric.value
    edges = tuple(sorted(counts))
    return Histogram(edges, tuple(counts[edge] for edge in edges), total) if edges else NO_LENGTHS


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def pages_of(text: str) -> Iterator[str]:
    """The pages of a file: one, or several one after another, each beginning where the first sample comes again."""
    first, page = "", list[str]()
    for line in text.splitlines():
        sample = (
            "" if line.startswith("#") or not line.strip() else line.rpartition("}")[0] or line.split(" ")[0]
        )
        if sample and sample == first:
            yield "\n".join(page)
            page = []
        first = first or sample
        page.append(line)
    yield "\n".join(page)


def is_page(text: str) -> bool:
    """Whether it is Prometheus text of vLLM rather than a log."""
    return bool(re.search(r"^vllm:\w+\{", text, re.MULTILINE))


def log_of(page: Snapshot, version: str = "", max_model_len: int | None = None) -> StartupLog:
    """What a start-up log would have told: blocks, flags and model, for `reconcile`.

    Args:
        page: of a live server, or saved.
        version: as the server's /version says.
        max_model_len: as its /v1/models says.
    """
    told, flags, figures = page.cache, dict[str, object](), dict[str, float]()
    for label, flag in (("gpu_memory_utilization", "gpu_memory_utilization"), ("block_size", "block_size"),
                        ("num_gpu_blocks_override", "num_gpu_blocks_override")):  # fmt: skip
        value = _number(told.get(label, ""))
        if value == value:
            flags[flag] = value if label == "gpu_memory_utilization" else int(value)
    if told.get("cache_dtype", "auto") != "auto":
        flags["kv_cache_dtype"] = told["cache_dtype"]
    if told.get("enable_prefix_caching") in ("True", "False"):
        flags["enable_prefix_caching"] = told["enable_prefix_caching"] == "True"
    if max_model_len:
        flags["max_model_len"] = max_model_len
    blocks = _number(told.get("num_gpu_blocks", ""))
    if blocks == blocks:
        figures["num_gpu_blocks"] = blocks
    return StartupLog(
        engine="vllm",
        version=version if re.match(r"\d+\.\d+", version) else "",
        legacy=False,
        model=page.model,
        gpu="",
        figures=figures,
        lines=dict.fromkeys(figures, 1),
        flags=flags,
        assumed_ranks={},
        month="",
        notes=(),
    )
