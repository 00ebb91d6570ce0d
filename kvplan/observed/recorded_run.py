"""A real run beside a simulation of the same requests: signed errors of the figures people quote.

Reads per-request files only: vLLM's bench JSON or JSONL, CSV with latencies, kvplan's own records. Knows neither
the simulator nor profiles.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.errors import KvplanError

Array = NDArray[np.float64]

STATISTICS: dict[str, Callable[[Array], float]] = {
    "mean": lambda x: float(np.mean(x)),
    "p50": lambda x: float(np.quantile(x, 0.5)),
    "p90": lambda x: float(np.quantile(x, 0.9)),
    "p99": lambda x: float(np.quantile(x, 0.99)),
}


class RecordedRun(NamedTuple):
    """One run's requests, in order of arrival; latencies in milliseconds, NaN where not measured."""

    arrival_s: Array
    prompt_tokens: Array
    output_tokens: Array
    ttft_ms: Array
    tpot_ms: Array
    e2e_ms: Array
    num_preemptions: float = math.nan
    """Of all requests; NaN = the file does not say."""
    kv_peak: float = math.nan
    """Largest share of the KV pool in use; NaN = the file does not say."""

    @property
    def makespan_s(self) -> float:
        """First arrival to last token."""
        return float(np.max(self.arrival_s + self.e2e_ms / 1e3) - np.min(self.arrival_s))


class MetricError(NamedTuple):
    """One figure of both runs."""

    metric: str
    statistic: str
    real: float
    simulated: float

    @property
    def error(self) -> float:
        """simulated / real - 1; NaN where the real figure is 0 or unknown."""
        return self.simulated / self.real - 1.0 if self.real else math.nan

    def __str__(self) -> str:
        error = f"{self.error:>+9.1%}" if math.isfinite(self.error) else f"{'-':>9}"
        return (
            f"{f'{self.metric} {self.statistic}':<26}{_cell(self.real):>14}{_cell(self.simulated):>14}{error}"
        )


class RunComparison(NamedTuple):
    """All lines, and the mean absolute percentage error per request."""

    lines: tuple[MetricError, ...]
    mape: dict[str, float]
    real: RecordedRun
    simulated: RecordedRun

    def line(self, metric: str, statistic: str = "mean") -> MetricError:
        """One line by name."""
        return next(x for x in self.lines if (x.metric, x.statistic) == (metric, statistic))

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document; figures that a file does not hold are null."""
        return {
            "schema_version": 1,
            "num_requests": len(self.real.arrival_s),
            "figures": [
                {
                    "metric": x.metric,
                    "statistic": x.statistic,
                    **{name: _known(getattr(x, name)) for name in ("real", "simulated", "error")},
                }
                for x in self.lines
            ],
            "per_request_mape": {k: _known(v) for k, v in self.mape.items()},
        }

    def __str__(self) -> str:
        lines = [f"{'':<26}{'real':>14}{'simulated':>14}{'error':>9}"]
        lines += [str(x) for x in self.lines if math.isfinite(x.real) or math.isfinite(x.simulated)]
        lines += ["", *(f"per-request MAPE {name:<9}{value:>36.1%}" for name, value in self.mape.items())]
        return "\n".join(lines)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_runs(real: RecordedRun, simulated: RecordedRun) -> RunComparison:
    """Compare two runs of the same requests.

    Raises:
        KvplanError: other requests, in number or in tokens.
    """
    _same_requests(real, simulated)
    lines = []
    mape = {}
    for metric in ("ttft_ms", "tpot_ms", "e2e_ms"):
        a, b = getattr(real, metric), getattr(simulated, metric)
        both = np.isfinite(a) & np.isfinite(b) & (a > 0)
        if not both.any():
            continue
        a, b = a[both], b[both]
        lines += [MetricError(metric, name, f(a), f(b)) for name, f in STATISTICS.items()]
        mape[metric] = float(np.mean(np.abs(b / a - 1.0)))
    lines.append(MetricError("makespan_s", "total", real.makespan_s, simulated.makespan_s))
    lines.append(MetricError("num_preemptions", "total", real.num_preemptions, simulated.num_preemptions))
    lines.append(MetricError("kv_peak_fraction", "max", real.kv_peak, simulated.kv_peak))
    return RunComparison(tuple(lines), mape, real, simulated)


def _same_requests(real: RecordedRun, simulated: RecordedRun) -> None:
    if len(real.arrival_s) != len(simulated.arrival_s):
        raise KvplanError(
            f"{len(real.arrival_s):,} requests in the real run, {len(simulated.arrival_s):,} in the simulation; "
            "simulate the same requests (workload.trace of the real file)"
        )
    for name in ("prompt_tokens", "output_tokens"):
        differ = np.flatnonzero(getattr(real, name) != getattr(simulated, name))
        if len(differ):
            i = int(differ[0])
            raise KvplanError(
                f"request {i}: {getattr(real, name)[i]:,.0f} {name} in the real run, "
                f"{getattr(simulated, name)[i]:,.0f} in the simulation ({len(differ):,} differ); "
                "compare runs of the same requests"
            )


def read_run(path: Path, totals: Path | None = None) -> RecordedRun:
    """Read a per-request file; `totals` adds preemptions and KV peak from a JSON document of the same run."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KvplanError(
            f"{path}: cannot be read as text ({getattr(error, 'strerror', None) or 'not UTF-8'})"
        ) from None
    run = _parse(text, path)
    return run if totals is None else _with_totals(run, totals)


def _parse(text: str, path: Path) -> RecordedRun:
    if path.suffix == ".csv":
        return _from_table(list(csv.DictReader(text.splitlines())), path)
    try:
        documents = [json.loads(text)]
    except ValueError:
        try:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise KvplanError(f"{path}: neither CSV (.csv), JSON nor JSONL") from None
    first = documents[0] if documents else None
    if isinstance(first, dict) and "ttfts" in first:
        return _from_bench(first, path)
    rows = documents if len(documents) > 1 else first if isinstance(first, list) else []
    if isinstance(first, dict) and isinstance(first.get("requests"), dict):
        rows = list(first["requests"].values())
    return _from_table([r for r in rows if isinstance(r, dict)], path)


def _from_bench(document: Mapping[str, Any], path: Path) -> RecordedRun:
    """`vllm bench serve --save-result --save-detailed`: seconds in parallel lists."""
    needed = ("input_lens", "output_lens", "ttfts", "itls")
    missing = [k for k in needed if not document.get(k)]
    if missing:
        raise KvplanError(f"{path}: no {', '.join(missing)}; save the bench result with --save-detailed")
    ttft = np.array(document["ttfts"], float) * 1e3
    decode = np.array([sum(gaps) for gaps in document["itls"]]) * 1e3
    output = np.array(document["output_lens"], float)
    starts = np.array(document.get("start_times") or np.zeros(len(ttft)), float)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output > 1, decode / (output - 1), np.nan)
    prompt = np.array(document["input_lens"], float)
    return _ordered(RecordedRun(starts - starts.min(), prompt, output, ttft, tpot, ttft + decode))


_NAMES: dict[str, tuple[str, ...]] = {
    "arrival_s": ("arrival_s", "arrived_at", "start_time"),
    "prompt_tokens": ("prompt_tokens", "input_tokens", "prompt", "input_len", "prompt_len"),
    "output_tokens": ("output_tokens", "output", "output_len"),
    "num_preemptions": ("num_preemptions", "preemptions"),
}


def _from_table(rows: Sequence[Mapping[str, Any]], path: Path) -> RecordedRun:
    """One row per request, times in the columns' units: `ttft_ms` or `ttft_s`, or kvplan's absolute seconds."""
    if not rows:
        raise KvplanError(f"{path}: no requests in it")
    rows = [row for row in rows if row.get("finish_reason") not in ("rejected", "refused")]
    read = {name: _column(rows, names) for name, names in _NAMES.items()}
    for name in ("prompt_tokens", "output_tokens"):
        if read[name] is None:
            raise KvplanError(f"{path}: no column {' or '.join(_NAMES[name])}; it has {', '.join(rows[0])}")
    arrival = read["arrival_s"] if read["arrival_s"] is not None else np.zeros(len(rows))
    ttft = _latency(rows, "ttft", "first_token_s", arrival)
    e2e = _latency(rows, "e2e", "finish_s", arrival)
    if ttft is None or e2e is None:
        raise KvplanError(f"{path}: needs ttft_ms and e2e_ms (or first_token_s and finish_s) per request")
    prompt, output = read["prompt_tokens"], read["output_tokens"]
    assert prompt is not None
    assert output is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        computed = np.where(output > 1, (e2e - ttft) / (output - 1), np.nan)
    tpot = _latency(rows, "tpot", "", arrival)
    preemptions = read["num_preemptions"]
    total = math.nan if preemptions is None else float(preemptions.sum())
    return _ordered(
        RecordedRun(
            arrival_s=arrival - arrival.min(),
            prompt_tokens=prompt,
            output_tokens=output,
            ttft_ms=ttft,
            tpot_ms=computed if tpot is None else tpot,
            e2e_ms=e2e,
            num_preemptions=total,
        )
    )


def _column(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Array | None:
    name = next((n for n in names if n in rows[0]), None)
    if name is None:
        return None
    try:
        return np.array([float(row[name]) if row[name] not in (None, "") else math.nan for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise KvplanError(f"column {name}: not a number in every row ({error})") from None


def _latency(rows: Sequence[Mapping[str, Any]], name: str, absolute: str, arrival: Array) -> Array | None:
    for column, scale in ((f"{name}_ms", 1.0), (f"{name}_s", 1e3)):
        found = _column(rows, (column,))
        if found is not None:
            return found * scale
    found = _column(rows, (absolute,)) if absolute else None
    return None if found is None else (found - arrival) * 1e3


def _ordered(run: RecordedRun) -> RecordedRun:
    """In order of arrival; equal arrivals keep the file's order."""
    order = np.argsort(run.arrival_s, kind="stable")
    return run._replace(**{name: getattr(run, name)[order] for name in RecordedRun._fields[:6]})


def _with_totals(run: RecordedRun, path: Path) -> RecordedRun:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KvplanError(f"{path}: not a JSON document ({error})") from None
    preemptions = document.get("num_preemptions", run.num_preemptions)
    peak = document.get("kv_peak_fraction", run.kv_peak)
    return run._replace(
        num_preemptions=math.nan if preemptions is None else float(preemptions),
        kv_peak=math.nan if peak is None else float(peak),
    )


def _cell(value: float) -> str:
    return f"{value:,.2f}" if math.isfinite(value) else "-"


def chart_svg(found: RunComparison, width: int = 320) -> str:
    """Two scatter plots, simulated over real, of TTFT and E2E per request; points on the diagonal agree."""
    panels = [
        _panel(found, metric, i * (width + 40), width) for i, metric in enumerate(("ttft_ms", "e2e_ms"))
    ]
    size = f'width="{2 * width + 80}" height="{width + 60}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{"".join(panels)}</svg>\n'


def _panel(found: RunComparison, metric: str, left: int, width: int) -> str:
    a, b = getattr(found.real, metric) / 1e3, getattr(found.simulated, metric) / 1e3
    top = float(np.nanmax([*a, *b])) or 1.0
    x, y = left + 30 + a / top * width, 20 + width - b / top * width
    dots = "".join(
        f'<circle cx="{p:.1f}" cy="{q:.1f}" r="2" fill="#4c78a8" fill-opacity="0.5"/>\n'
        for p, q in zip(x, y, strict=True)
        if math.isfinite(p + q)
    )
    frame = f'<rect x="{left + 30}" y="20" width="{width}" height="{width}" fill="none" stroke="#999"/>'
    diagonal = f'<line x1="{left + 30}" y1="{20 + width}" x2="{left + 30 + width}" y2="20" stroke="#e45756"/>'
    name = metric.removesuffix("_ms").upper()
    title = f'<text x="{left + 30}" y="14">{name}: simulated over real, 0 to {top:,.2f} s</text>'
    return f"{frame}\n{diagonal}\n{title}\n{dots}"
