"""A real run beside a simulation of the same requests: signed errors of the figures people quote.

Reads per-request files only: vLLM's bench JSON or JSONL, CSV with latencies, kvplan's own records. Knows neither
the simulator nor profiles.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvplan.formulas.sums import exact_mean, exact_sum
from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted
from kvplan.workload.bench_result import BenchResult, bench_result, json_of, read_text

Array = NDArray[np.float64]

LARGEST = 1e12
"""Of any figure in a file: seconds, milliseconds or tokens."""

STATISTICS: dict[str, Callable[[Array], float]] = {
    "mean": exact_mean,
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
    notes: tuple[str, ...] = ()
    """What of the file is not in the figures, or not measured."""

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

    @property
    def notes(self) -> list[str]:
        """What is left out of either run, or not measured in it."""
        runs = (("real", self.real), ("simulated", self.simulated))
        return [f"{name} run: {note}" for name, run in runs for note in run.notes]

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
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [f"{'':<26}{'real':>14}{'simulated':>14}{'error':>9}"]
        lines += [str(x) for x in self.lines if math.isfinite(x.real) or math.isfinite(x.simulated)]
        lines += ["", *(f"per-request MAPE {name:<9}{value:>36.1%}" for name, value in self.mape.items())]
        lines += [f"note: {note}" for note in self.notes]
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
        with np.errstate(over="ignore"):
            mape[metric] = exact_mean(np.abs(b / a - 1.0))
    lines.append(MetricError("makespan_s", "total", real.makespan_s, simulated.makespan_s))
    lines.append(MetricError("num_preemptions", "total", real.num_preemptions, simulated.num_preemptions))
    lines.append(MetricError("kv_peak_fraction", "max", real.kv_peak, simulated.kv_peak))
    return RunComparison(tuple(lines), mape, real, simulated)


def _same_requests(real: RecordedRun, simulated: RecordedRun) -> None:
    if len(real.arrival_s) != len(simulated.arrival_s):
        raise KvplanError(
            f"{counted(len(real.arrival_s), 'request')} in the real run, {len(simulated.arrival_s):,} in the "
            "simulation; "
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
    """Read a per-request file; `totals` adds preemptions and KV peak from a JSON document of the same run.

    Requests that failed (no output) are left out and counted in the run's notes.
    Raises KvplanError for what cannot be read, naming the file.
    """
    run = _parse(read_text(path), path)
    return run if totals is None else _with_totals(run, totals)


def _parse(text: str, path: Path) -> RecordedRun:
    if path.suffix == ".csv":
        try:
            return _from_table(list(csv.DictReader(text.splitlines())), path)
        except csv.Error as error:
            raise KvplanError(f"{path}: not a CSV table ({error})") from None
    bench = bench_result(text, path)
    if bench is not None:
        return _from_bench(bench, path)
    whole = json_of(text)
    if isinstance(whole, dict):
        requests = whole.get("requests")
        rows = list(requests.values()) if isinstance(requests, dict) else [whole]
    elif isinstance(whole, list):
        rows = whole
    else:
        rows = [json_of(line) for line in text.splitlines() if line.strip()]
        if not rows or any(row is None for row in rows):
            raise KvplanError(f"{path}: neither CSV (.csv), JSON nor JSONL")
    return _from_table([_aiperf_row(r) if "metrics" in r else r for r in rows if isinstance(r, dict)], path)


def _aiperf_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of AIPerf's `profile_export.jsonl` in this module's names; latencies are milliseconds there."""
    metrics, said = record["metrics"], record.get("metadata")

    def value(name: str) -> Any:
        found = metrics.get(name) if isinstance(metrics, dict) else None
        return found.get("value") if isinstance(found, dict) else None

    start = _float(said.get("request_start_ns")) if isinstance(said, dict) else None
    failed = record.get("error") is not None
    return {
        "arrival_s": None if start is None else start / 1e9,
        "prompt_tokens": 1 if failed else value("input_sequence_length"),
        "output_tokens": 0 if failed else value("output_sequence_length"),
        "ttft_ms": value("time_to_first_token"),
        "e2e_ms": value("request_latency"),
        "tpot_ms": value("inter_token_latency"),
    }


def _from_bench(found: BenchResult, path: Path) -> RecordedRun:
    """Seconds in parallel lists; without start times, requests are taken to come evenly at the request rate."""
    if found.ttfts is None or found.itls is None:
        missing = [name for name in ("ttfts", "itls") if getattr(found, name) is None]
        raise KvplanError(f"{path}: no {', '.join(missing)}; save the bench result with --save-detailed")
    if not all(isinstance(gaps, list) for gaps in found.itls):
        raise KvplanError(f"{path}: itls must hold one list of gaps per request")
    ttft = _numbers("ttfts", found.ttfts, path) * 1e3
    decode = np.array([exact_sum(_numbers("itls", gaps, path)) for gaps in found.itls]) * 1e3
    output = _numbers("output_lens", found.output_lens, path)
    rate = found.request_rate
    starts: Array
    notes: tuple[str, ...] = ()
    if found.start_times is not None:
        starts = _numbers("start_times", found.start_times, path)
    else:
        gap = 1 / rate if rate is not None and math.isfinite(rate) else 0.0
        how = f"every {gap:g} s, its request_rate" if gap else "all at once"
        starts, notes = (
            np.asarray(np.arange(len(output)) * gap, np.float64),
            (f"no start times: arrivals are taken as {how}",),
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output > 1, decode / (output - 1), np.nan)
    prompt = _numbers("input_lens", found.input_lens, path)
    return _ordered(RecordedRun(starts, prompt, output, ttft, tpot, ttft + decode, notes=notes), path)


_NAMES: dict[str, tuple[str, ...]] = {
    "arrival_s": ("arrival_s", "arrived_at", "start_time"),
    "prompt_tokens": ("prompt_tokens", "input_tokens", "prompt", "input_len", "prompt_len"),
    "output_tokens": ("output_tokens", "output", "output_len"),
    "num_preemptions": ("num_preemptions", "preemptions"),
}


def _from_table(rows: Sequence[Mapping[str, Any]], path: Path) -> RecordedRun:
    """One row per request, times in the columns' units: `ttft_ms` or `ttft_s`, or kvplan's absolute seconds."""
    rows = [row for row in rows if row.get("finish_reason") not in ("rejected", "refused")]
    if not rows:
        raise KvplanError(f"{path}: no requests in it")
    read = {name: _column(rows, names, path) for name, names in _NAMES.items()}
    prompt, output = read["prompt_tokens"], read["output_tokens"]
    if prompt is None or output is None:
        lacking = _NAMES["prompt_tokens" if prompt is None else "output_tokens"]
        has = ", ".join(str(name) for name in [*rows[0]][:40])
        raise KvplanError(f"{path}: no column {' or '.join(lacking)}; it has {has}")
    arrival = read["arrival_s"] if read["arrival_s"] is not None else np.zeros(len(rows))
    ttft = _latency(rows, "ttft", "first_token_s", arrival, path)
    e2e = _latency(rows, "e2e", "finish_s", arrival, path)
    if ttft is None or e2e is None:
        raise KvplanError(f"{path}: needs ttft_ms and e2e_ms (or first_token_s and finish_s) per request")
    with np.errstate(divide="ignore", invalid="ignore"):
        computed = np.where(output > 1, (e2e - ttft) / (output - 1), np.nan)
    tpot = _latency(rows, "tpot", "", arrival, path)
    preemptions = read["num_preemptions"]
    return _ordered(
        RecordedRun(
            arrival_s=arrival,
            prompt_tokens=prompt,
            output_tokens=output,
            ttft_ms=ttft,
            tpot_ms=computed if tpot is None else tpot,
            e2e_ms=e2e,
            num_preemptions=math.nan if preemptions is None else float(preemptions.sum()),
        ),
        path,
    )


def _column(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> Array | None:
    name = next((n for n in names if n in rows[0]), None)
    return None if name is None else _numbers(f"column {name}", [row.get(name) for row in rows], path)


def _numbers(what: str, values: Sequence[Any], path: Path) -> Array:
    """Floats, NaN where nothing is written. Raises KvplanError for anything else, and beyond `LARGEST`."""
    found = [math.nan if value in (None, "") else _float(value) for value in values]
    bad = next((i for i, value in enumerate(found) if value is None or abs(value) > LARGEST), None)
    if bad is not None:
        raise KvplanError(
            f"{path}: {what}: not a number in every row (row {bad + 1}: {str(values[bad])[:40]!r})"
        )
    return np.array(found, float)


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _latency(
    rows: Sequence[Mapping[str, Any]], name: str, absolute: str, arrival: Array, path: Path
) -> Array | None:
    for column, scale in ((f"{name}_ms", 1.0), (f"{name}_s", 1e3)):
        found = _column(rows, (column,), path)
        if found is not None:
            return found * scale
    found = _column(rows, (absolute,), path) if absolute else None
    return None if found is None else (found - arrival) * 1e3


def _ordered(run: RecordedRun, path: Path) -> RecordedRun:
    """Without failed requests, in order of arrival from 0; equal arrivals keep the file's order."""
    served = run.output_tokens != 0
    if not served.any():
        raise KvplanError(f"{path}: every request failed: none has output tokens")
    order = np.flatnonzero(served)
    order = order[np.argsort(run.arrival_s[order], kind="stable")]
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        bad = order[~(getattr(run, name)[order] >= 0)]
        if len(bad):
            raise KvplanError(f"{path}: {name} of request {bad[0] + 1} is {getattr(run, name)[bad[0]]:g}")
    columns = {name: getattr(run, name)[order] for name in RecordedRun._fields[:6]}
    columns["arrival_s"] = columns["arrival_s"] - columns["arrival_s"].min()
    failed = len(served) - len(order)
    notes = (
        (*run.notes, f"{failed} of {len(served)} requests failed and are left out") if failed else run.notes
    )
    return run._replace(**columns, notes=notes)


def _with_totals(run: RecordedRun, path: Path) -> RecordedRun:
    document = json_of(read_text(path))
    if not isinstance(document, dict):
        raise KvplanError(f"{path}: not a JSON document")
    found: dict[str, Any] = {}
    for field, key in (("num_preemptions", "num_preemptions"), ("kv_peak", "kv_peak_fraction")):
        value = document.get(key, getattr(run, field))
        found[field] = math.nan if value is None else _float(value)
        if found[field] is None:
            raise KvplanError(f"{path}: {key} is no number: {str(value)[:40]!r}")
    return run._replace(**found)


def _cell(value: float) -> str:
    return f"{value:,.2f}" if math.isfinite(value) else "-"
