"""What a simulation found: figures by the names of `vllm bench serve`, and what reasoning adds to them.

One document whose keys do not depend on flags: what was not measured is null. Knows records and totals, not
the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import kvplan
from kvplan.formulas.sums import exact_sum
from kvplan.ground.frames import make_frame
from kvplan.ground.pictures import Pictures
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario
from kvplan.simulation.energy import Energy
from kvplan.simulation.file_tiers import FileJob
from kvplan.simulation.metrics import (
    Latencies,
    Sample,
    Summary,
    engine_latencies,
    latencies,
    meets,
    summarise,
)
from kvplan.simulation.records import FINISH_REASONS, UNSET, Records
from kvplan.simulation.replica_stats import Totals
from kvplan.simulation.transfers import Copy
from kvplan.workload.classes import Slo

SCHEMA_VERSION = 1

ENERGY = (
    "mean_watts",
    "joules_per_output_token",
    "kwh_per_million_output_tokens",
    "gco2_per_million_output_tokens",
)
"""Watts of all GPUs while it ran, joules of the cards; kWh and grams of CO2 at the scenario's PUE and grid factor."""
EXTRAPOLATES = "step times extrapolate"
"""How a note begins that says so."""
LONG_QUEUES = 0.5
"""Requests spent more than this share of their time in the queue: the load is above what is sustained."""

VERDICTS = {
    "completed": "every request ended",
    "horizon": "the horizon was reached first",
    "wall_clock": "the wall-clock limit was reached first",
    "interrupted": "interrupted",
    "missed": "its targets were missed, whatever came",
    "thrash": "preemption and recomputation eat each other",
}


@dataclass(slots=True)
class Pool:
    """KV blocks of all replicas of a run."""

    num_blocks: int
    block_size: int
    bytes_per_token: float
    peak_fraction: float
    """Of one replica's pool, the fullest replica's fullest moment."""
    mean_fraction: float
    """Over busy time."""
    block_s: float
    """Blocks held, integrated over busy time."""
    replicas: int = 1
    """How many such pools the run has."""


@dataclass(slots=True)
class Result:
    """One run. `to_dict` is the `--json` document, `to_frame` the records, `records`, `samples` the raw material."""

    plot: ClassVar[Pictures] = Pictures()
    """Pictures of it, Altair charts: `dir(result.plot)` names them."""

    scenario: Scenario
    verdict: str
    duration_s: float
    records: Records
    samples: list[Sample]
    totals: Totals
    pool: Pool
    itl: Summary
    """As a client counts: time between two pieces of a stream."""
    engine_itl: Summary
    """Time between two tokens in the engine."""
    api_server_load: float | None
    """What requests and streams ask of the API server processes' time; beyond 1, tokens leave several at once."""
    peak_output_throughput: float
    num_gpus: int
    usd_per_hour: float
    classes: list[str]
    slos: list[Slo]
    num_requests: int
    """Requests that were to arrive."""
    modes: dict[str, str]
    sources: dict[str, str]
    notes: dict[str, int]
    limited_by: str = ""
    advice: list[str] = field(default_factory=list)
    num_bad_rows: int = 0
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each deployment's scheduler ran with, defaults resolved."""
    caveats: tuple[str, ...] = ()
    """Which engines the scheduler's rules stand for without having been checked against them."""
    energy: Energy | None = None
    """Watts of all GPUs; None where they cannot be told."""
    grid: tuple[float, str] = (0.0, "")
    """Grams of CO2 a kilowatt-hour of its electricity emits, and who says so."""
    offload: dict[str, Any] | None = None
    """What the tier beyond the GPUs did; None where there is none."""
    offload_comparison: dict[str, Any] | None = None
    """The same requests `with` and `without` the tier, where it was asked for."""
    copies: dict[int, list[Copy]] = field(default_factory=dict)
    """Replica -> its copies to and from the tier, where an observer asked for them."""
    file_jobs: dict[int, list[FileJob]] = field(default_factory=dict)
    """The same of jobs that read and write files below host memory, tier by tier."""
    intervals: dict[str, list[float]] | None = None
    """[low, high] of each figure where it was asked for."""
    load_share: float | None = None
    """Of an open loop: load over the highest that its deployment sustains."""
    interval_of: str = ""
    """What the intervals are over."""
    doubts: tuple[str, ...] = ()
    """Verdicts that the ends of the step times' range do not share."""

    @property
    def latencies(self) -> Latencies:
        """Of every finished request, milliseconds."""
        return latencies(self.records)

    @property
    def engine_latencies(self) -> Latencies:
        """The same without the API servers."""
        return engine_latencies(self.records)

    @property
    def pool_tokens(self) -> int:
        """Tokens that the KV pools of all main replicas hold."""
        return self.pool.num_blocks * self.pool.block_size * self.pool.replicas

    @property
    def num_completed(self) -> int:
        """Requests that got their whole answer."""
        return int(self.records.completed.sum())

    @property
    def good(self) -> NDArray[np.bool_] | None:
        """Which finished requests meet their targets; None when there are no targets."""
        if all(slo.is_empty for slo in self.slos):
            return None
        return meets(self.latencies, self.records["class_id"][self.records.completed], self.slos)

    @property
    def slo_met(self) -> bool | None:
        """Whether enough requests of every class met their targets; None without targets."""
        good = self.good
        if good is None:
            return None
        class_id = self.records["class_id"]
        done = class_id[self.records.completed]
        asked = [(slo.share, good[done == i].sum(), (class_id == i).sum()) for i, slo in enumerate(self.slos)
                 if not slo.is_empty]  # fmt: skip
        return all(hits >= share * count for share, hits, count in asked)

    @property
    def is_extrapolated(self) -> bool:
        """Whether steps lay outside of what their profile measured."""
        return any(note.startswith(EXTRAPOLATES) for note in self.notes)

    @property
    def is_overloaded(self) -> bool:
        """Whether requests spent most of their time in the queue: the load is above what this deployment sustains."""
        records = self.records
        waits = records.seconds("scheduled") - records.seconds("arrival")
        lasts = float(np.nansum(records.seconds("finish") - records.seconds("arrival")))
        return lasts > 0 and float(np.nansum(waits)) >= LONG_QUEUES * lasts

    @property
    def exit_code(self) -> int:
        """0 done, 1 a target missed, thrash, or nothing could be served, 130 interrupted."""
        if self.verdict == "interrupted":
            return 130
        rejected = (self.records["finish_reason"] == FINISH_REASONS.index("rejected")).any()
        return int(
            self.verdict == "thrash" or self.slo_met is False or bool(rejected) or not self.num_completed
        )

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame, one row per request."""
        return make_frame(self.records.columns())

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document: keys never depend on flags, what was not measured is null."""
        document: dict[str, Any] = _nulls(
            {
                "schema_version": SCHEMA_VERSION,
                "kvplan_version": kvplan.__version__,
                "inputs": self.scenario.model_dump(mode="json"),
                "engines": self.engines,
                "verdict": self.verdict,
                "limited_by": self.limited_by,
                "advice": self.advice,
                **self._counts(),
                **self._rates(),
                **self._latency_keys(),
                "slo_met": self.slo_met,
                **self._engine(),
                "reasoning": self._reasoning(),
                "classes": [self._class(i) for i in range(len(self.classes))],
                "cost": self._cost(),
                "energy": self._energy(),
                "offload": self.offload,
                "offload_comparison": self.offload_comparison,
                "intervals": self.intervals,
                "interval_of": self.interval_of,
                "doubts": self.doubts,
                "timeline": [sample._asdict() for sample in self.samples],
                "modes": self.modes,
                "caveats": self.caveats,
                "sources": self.sources,
                "notes": [
                    f"{text} ({count} times)" if count > 1 else text for text, count in self.notes.items()
                ],
            }
        )
        return document

    def _counts(self) -> dict[str, Any]:
        reasons = np.bincount(self.records["finish_reason"], minlength=len(FINISH_REASONS))
        done = self.records.completed
        return {
            "completed": self.num_completed,
            "failed": len(self.records) - self.num_completed,
            "num_requests": self.num_requests,
            "finish_reasons": dict(zip(FINISH_REASONS, map(int, reasons), strict=True)),
            "skipped_trace_rows": self.num_bad_rows,
            "duration_s": self.duration_s,
            "duration": self.duration_s,
            "total_input_tokens": int(self.records["prompt_tokens"][done].sum()),
            "total_output_tokens": int(self.records["output_tokens"][done].sum()),
            "total_thinking_tokens": int(self.records["thinking_tokens"][done].sum()),
        }

    def _rates(self) -> dict[str, Any]:
        duration = self.duration_s or math.nan
        counts = self._counts()
        good = self.good
        output = counts["total_output_tokens"]
        return {
            "request_throughput": counts["completed"] / duration,
            "request_goodput": None if good is None else int(good.sum()) / duration,
            "output_throughput": output / duration,
            "visible_throughput": (output - counts["total_thinking_tokens"]) / duration,
            "total_token_throughput": (output + counts["total_input_tokens"]) / duration,
            "max_output_tokens_per_s": self.peak_output_throughput,
            "api_server_load": self.api_server_load,
            "load_share": self.load_share,
            "max_concurrent_requests": peak_concurrency(self.records),
        }

    def summaries(self) -> dict[str, Summary]:
        """Latencies by vLLM's short names, a client's; ttfvt is the time to the first visible token.

        Those named engine_ are without the API servers, and so is the time in the queue.
        """
        found = self.latencies
        named = {"ttft": found.ttft, "ttfvt": found.ttfvt, "tpot": found.tpot, "e2el": found.e2el}
        alone = self.engine_latencies
        in_engine = {"ttft": alone.ttft, "tpot": alone.tpot, "e2el": alone.e2el}
        waits = self.records.seconds("scheduled") - self.records.seconds("engine_arrival")
        return {
            **{k: summarise(v) for k, v in named.items()},
            "itl": self.itl,
            **{f"engine_{k}": summarise(v) for k, v in in_engine.items()},
            "engine_itl": self.engine_itl,
            "queue": summarise(waits * 1e3),
        }

    def _latency_keys(self) -> dict[str, float]:
        return {
            f"{statistic}_{name}_ms": value
            for name, summary in self.summaries().items()
            for statistic, value in summary._asdict().items()
        }

    def _engine(self) -> dict[str, Any]:
        t, pool = self.totals, self.pool
        busy = t.busy_ticks or math.nan
        computed = t.prefill_tokens + int(self.records["hit_tokens"].sum())
        return {
            "steps": t.steps,
            "leaps": t.leaps,
            "leapt_steps": t.leapt_steps,
            "num_preemptions": t.preemptions,
            "recomputed_tokens": t.recomputed_tokens,
            "discarded_tokens": int(self.records["discarded_tokens"].sum()),
            "prefix_cache_hit_tokens": int(self.records["hit_tokens"].sum()),
            "prefix_cache_hit_rate": int(self.records["hit_tokens"].sum()) / computed if computed else None,
            "busy_s": t.busy_ticks / TICKS_PER_S,
            "decode_time_share": t.decode_ticks / busy,
            "prefill_time_share": t.prefill_ticks / busy,
            "mixed_time_share": t.mixed_ticks / busy,
            "mean_batch_size": t.batch_ticks / busy,
            "kv_peak_fraction": pool.peak_fraction,
            "kv_mean_fraction": pool.mean_fraction,
            "kv_num_gpu_blocks": pool.num_blocks,
            "kv_block_size": pool.block_size,
            "kv_bytes_per_token": pool.bytes_per_token,
            "waiting_for": {
                "max_num_seqs_s": t.blocked_seqs_ticks / TICKS_PER_S,
                "token_budget_s": t.blocked_tokens_ticks / TICKS_PER_S,
                "kv_blocks_s": t.blocked_blocks_ticks / TICKS_PER_S,
                "batch_wait_s": t.held_back_ticks / TICKS_PER_S,
            },
        }

    def _reasoning(self) -> dict[str, Any]:
        done = self.records.completed
        output, thinking = (int(self.records[c][done].sum()) for c in ("output_tokens", "thinking_tokens"))
        gib_s = self.records["kv_token_us"] * (self.records.kv_bytes_per_token / 1e6 / 2**30)
        cut = done & (self.records["first_visible"] == UNSET)
        return {
            "thinking_share": thinking / output if output else None,
            "answers_cut_while_thinking": int(cut.sum()),
            "mean_preemptions_per_request": self.totals.preemptions / max(1, len(self.records)),
            "kv_gib_s_per_answer": exact_sum(gib_s) / self.num_completed if self.num_completed else None,
            "kv_peak_gib": self.pool.peak_fraction * self.pool.num_blocks * self.pool.block_size
            * self.pool.bytes_per_token / 2**30,
        }  # fmt: skip

    def _class(self, index: int) -> dict[str, Any]:
        done, class_id = self.records.completed, self.records["class_id"]
        mine = class_id[done] == index
        good = self.good
        found = self.latencies
        return {
            "class": self.classes[index],
            "num_requests": int((class_id == index).sum()),
            "completed": int(mine.sum()),
            "slo": self.slos[index].model_dump(mode="json"),
            "goodput_share": None if good is None or not mine.any() else float(good[mine].mean()),
            **{f"{s}_{n}_ms": getattr(summarise(v[mine]), s) for n, v in found._asdict().items()
               for s in ("mean", "p99")},
        }  # fmt: skip

    def _cost(self) -> dict[str, Any]:
        hours = self.duration_s / 3600
        usd = self.usd_per_hour * hours
        counts = self._counts()
        tokens = counts["total_output_tokens"]
        visible = tokens - counts["total_thinking_tokens"]
        return {
            "num_gpus": self.num_gpus,
            "usd_per_hour": self.usd_per_hour,
            "price_source": self.sources.get("price"),
            "usd": usd,
            "usd_per_million_output_tokens": usd / tokens * 1e6 if tokens else None,
            "usd_per_million_visible_tokens": usd / visible * 1e6 if visible else None,
            "usd_per_answer": usd / self.num_completed if self.num_completed else None,
        }

    def _energy(self) -> dict[str, Any]:
        """Watts, joules, kWh and grams of CO2 at the scenario's grid factor and PUE; ranges are in `intervals`."""
        found, pricing = self.energy, self.scenario.pricing
        tokens = self._counts()["total_output_tokens"]
        if found is None or not tokens:
            return dict.fromkeys(ENERGY) | {"source": None} | self._counted_with()
        joules = found.mean_watts * self.duration_s / tokens
        kwh = joules * 1e6 / 3.6e6 * pricing.pue
        values = (found.mean_watts, joules, kwh, kwh * self.grid[0])
        return {**dict(zip(ENERGY, values, strict=True)), "source": found.source, **self._counted_with()}

    def _counted_with(self) -> dict[str, Any]:
        """What kWh and CO2 are counted with."""
        grams, source = self.grid
        return {"pue": self.scenario.pricing.pue, "grid_gco2_per_kwh": grams, "grid_source": source}

    def __repr__(self) -> str:
        """What was run and what limited it; records and samples would be pages."""
        done = f"{self._counts()['completed']:,} of {self.num_requests:,} requests completed"
        return f"<Result of {self.scenario.model}: {done} in {self.duration_s:,.1f} s, limited by {self.limited_by}>"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        counts, rates, engine = self._counts(), self._rates(), self._engine()
        rows = {
            "requests": f"{counts['completed']} of {counts['num_requests']} completed",
            "output tokens/s": f"{rates['output_throughput']:,.1f}",
            **{f"{n} mean, p99 (ms)": f"{s.mean:,.1f}, {s.p99:,.1f}" for n, s in self.summaries().items()},
            "preemptions": f"{engine['num_preemptions']:,}",
            "KV peak": f"{engine['kv_peak_fraction']:.0%}",
            "limited by": self.limited_by,
        }
        cells = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows.items())
        return f"<table>{cells}</table>"


def peak_concurrency(records: Records) -> int:
    """The most requests that were in the system at once."""
    arrival, finish = np.sort(records["arrival"]), np.sort(records["finish"])
    if not len(arrival):
        return 0
    return int((np.arange(1, len(arrival) + 1) - np.searchsorted(finish, arrival, "right")).max())


def total(parts: Sequence[Totals]) -> Totals:
    """Sums over replicas; the peak is the largest of theirs."""
    summed = Totals()
    for name in Totals.__dataclass_fields__:
        merge = max if name.startswith("peak") else sum
        setattr(summed, name, merge([getattr(part, name) for part in parts]))
    return summed


def _nulls(value: Any) -> Any:
    """Plain JSON values: NaN and infinity become null."""
    if isinstance(value, dict):
        return {key: _nulls(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_nulls(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
