"""A result as text: `vllm bench serve`'s block, labels and order as vLLM prints them, then a Reasoning section."""

from __future__ import annotations

from typing import Any

from kvplan.ground.tables import short
from kvplan.simulation.metrics import Summary
from kvplan.simulation.result import VERDICTS, Result
from kvplan.workload.arrivals import ClosedLoop

WIDTH = 50

SECTIONS = (
    ("ttft", "Time to First Token", "TTFT"),
    ("tpot", "Time per Output Token (excl. 1st token)", "TPOT"),
    ("itl", "Inter-token Latency", "ITL"),
    ("e2el", "End-to-end Latency", "E2EL"),
)


def bench_text(result: Result) -> str:
    """The whole report."""
    return "\n".join([bench_block(result), *bench_tail(result)])


def bench_block(result: Result) -> str:
    """The figures, between two rules."""
    document = result.to_dict()
    lines = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        *_head(result, document),
        *(line for key, title, name in SECTIONS for line in _latency(result.summaries()[key], title, name)),
        *_reasoning(result, document),
        *_offload(document["offload"]),
        *_both_sides(result),
        "=" * WIDTH,
    ]
    return "\n".join(lines)


def _line(label: str, value: Any) -> str:
    return f"{label:<40} {_cell(value):<10}".rstrip()


def _head(result: Result, d: dict[str, Any]) -> list[str]:
    arrivals = result.scenario.workload.arrivals
    rate = getattr(arrivals, "rate", None)
    goodput, refused = d["request_goodput"], d["finish_reasons"]["refused"]
    return [
        _line("Successful requests:", d["completed"]),
        _line("Failed requests:", d["failed"]),
        *([_line("  of them refused (HTTP 503):", refused)] if refused else []),
        *(
            [_line("Maximum request concurrency:", arrivals.concurrency)]
            if isinstance(arrivals, ClosedLoop)
            else []
        ),
        *([] if rate is None else [_line("Request rate configured (RPS):", float(rate))]),
        _line("Benchmark duration (s):", d["duration_s"]),
        _line("Total input tokens:", d["total_input_tokens"]),
        _line("Total generated tokens:", d["total_output_tokens"]),
        _line("Request throughput (req/s):", d["request_throughput"]),
        *([] if goodput is None else [_line("Request goodput (req/s):", goodput)]),
        _line("Output token throughput (tok/s):", d["output_throughput"]),
        _line("Peak output token throughput (tok/s):", d["max_output_tokens_per_s"]),
        _line("Peak concurrent requests:", float(d["max_concurrent_requests"])),
        _line("Total token throughput (tok/s):", d["total_token_throughput"]),
    ]


def _latency(summary: Summary, title: str, name: str) -> list[str]:
    return [
        f"{title:-^{WIDTH}}",
        _line(f"Mean {name} (ms):", summary.mean),
        _line(f"Median {name} (ms):", summary.median),
        _line(f"P99 {name} (ms):", summary.p99),
    ]


def _reasoning(result: Result, d: dict[str, Any]) -> list[str]:
    """What vLLM does not print."""
    visible, reasoning = result.summaries()["ttfvt"], d["reasoning"]
    share = reasoning["thinking_share"]
    return [
        f"{'Reasoning':-^{WIDTH}}",
        _line("Mean time to first visible token (ms):", visible.mean),
        _line("P99 time to first visible token (ms):", visible.p99),
        _line("Thinking share of output (%):", None if share is None else 100.0 * share),
        _line("Answers cut while thinking:", reasoning["answers_cut_while_thinking"]),
        _line("Mean TTFT in the engine (ms):", d["mean_engine_ttft_ms"]),
        _line("P99 TTFT in the engine (ms):", d["p99_engine_ttft_ms"]),
        _line("API server load (%):", None if d["api_server_load"] is None else 100.0 * d["api_server_load"]),
        _line("Preemptions:", d["num_preemptions"]),
        _line("Recomputed tokens:", d["recomputed_tokens"]),
        _line("Prefix cache hit tokens:", d["prefix_cache_hit_tokens"]),
        _line("Mean batch:", d["mean_batch_size"]),
        _line("KV peak (% of the fullest pool):", 100.0 * d["kv_peak_fraction"]),
        _line("KV GiB-seconds per answer:", reasoning["kv_gib_s_per_answer"]),
        _line("GPU power (W, all GPUs):", d["energy"]["mean_watts"]),
        _line("Energy per output token (J):", d["energy"]["joules_per_output_token"]),
    ]


def _offload(tier: dict[str, Any] | None) -> list[str]:
    """What the tier beyond the GPU did, where there is one."""
    if tier is None:
        return []
    share = tier["loaded_share"]
    return [
        f"{'KV beyond the GPU':-^{WIDTH}}",
        _line("Requests that loaded:", tier["lookup_hits"]),
        _line("Loaded tokens:", tier["loaded_tokens"]),
        _line("Loaded of all prompt tokens not hit (%):", None if share is None else 100.0 * share),
        _line("Loaded (GiB a rank):", tier["loaded_bytes_per_rank"] / 2**30),
        _line("Stored (GiB a rank):", tier["stored_bytes_per_rank"] / 2**30),
        _line("Chunks evicted:", tier["evicted_chunks"]),
        _line("Offers without room:", tier["failed_offers"]),
        _line("Asked again:", tier["retries"]),
        _line("Steps waited for copies (s):", tier["flush_s"]),
        _line("Tier filled (%):", 100.0 * tier["chunks_used"] / tier["chunks"]),
        *(line for files in tier["file_tiers"] for line in _files(files)),
    ]


def _files(tier: dict[str, Any]) -> list[str]:
    """What a tier of files below host memory did."""
    return [
        _line(f"Files ({tier['drive']}):", tier["files"]),
        _line("Read from files (GiB):", tier["read_bytes"] / 2**30),
        _line("Written to files (GiB):", tier["written_bytes"] / 2**30),
        _line("Drive busy reading (%):", 100.0 * tier["read_busy"]),
        _line("Drive busy writing (%):", 100.0 * tier["write_busy"]),
    ]


SIDES = (
    ("prefix_cache_hit_rate", "Prompt tokens found (%)", 100.0),
    ("loaded_tokens", "Tokens loaded", 1),
    ("prefill_tokens", "Prompt tokens computed", 1),
    ("recomputed_tokens", "  lost to preemption", 1),
    ("mean_ttft_ms", "Mean TTFT (ms)", 1.0),
    ("p99_ttft_ms", "P99 TTFT (ms)", 1.0),
    ("mean_tpot_ms", "Mean TPOT (ms)", 1.0),
    ("output_throughput", "Output tokens/s", 1.0),
    ("busy_s", "GPU time in steps (s)", 1.0),
    ("usd_per_million_output_tokens", "$ per million output", 1.0),
)
"""Key, label and unit of what is compared."""


def side_rows(result: Result) -> list[tuple[str, ...]]:
    """What is compared, under the names of the sides: with the tier and without, between them host memory alone.

    Nothing where they were not simulated.
    """
    sides = {key: side for key, side in (result.offload_comparison or {}).items() if side is not None}
    if not sides:
        return []
    names = ("", *(SIDE_NAMES[key] for key in sides))
    rows = ((label, *(_scaled(side[key], unit) for side in sides.values())) for key, label, unit in SIDES)
    return [names, *rows]


SIDE_NAMES = {"with": "with the tier", "without_files": "host memory alone", "without": "without"}


def _both_sides(result: Result) -> list[str]:
    rows = side_rows(result)
    if not rows:
        return []
    short = {"with the tier": "with", "host memory alone": "host only"}
    widths = (26, 12) if len(rows[0]) == 3 else (24, 10)
    return [
        f"{'With the tier and without':-^{WIDTH}}",
        "".join(f"{short.get(name, name):>{widths[1]}}" if name else " " * widths[0] for name in rows[0]),
        *(
            f"{f'{label}:':<{widths[0]}}" + "".join(f"{v:>{widths[1]}}" for v in values)
            for label, *values in rows[1:]
        ),
    ]


def _scaled(value: float | None, unit: float) -> str:
    return _cell(None if value is None else value * unit)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else f"{value}"


def bench_tail(result: Result) -> list[str]:
    """Verdict, limit, advice, sources: a line each."""
    ended = "" if result.verdict == "completed" else f"Ended early: {VERDICTS[result.verdict]}"
    missed = "SLO missed" if result.slo_met is False else ""
    return [
        *filter(None, (ended, _thrash(result), missed)),
        f"Limited by: {result.limited_by}",
        *(f"Advice: {text}" for text in result.advice),
        *_intervals(result),
        *(f"Unsure: {text}" for text in result.doubts),
        *(f"Caveat: {text}" for text in result.caveats),
        *(f"Note: {text}" for text in result.to_dict()["notes"]),
        *(f"{_title(key)}: {text}" for key, text in result.sources.items()),
        *(
            [
                f"Power: {result.energy.source}, {result.energy.low - 1:+.0%} to {result.energy.high - 1:+.0%}",
                _carbon(result),
            ]
            if result.energy
            else []
        ),
        *(f"Mode: {text}" for text in dict.fromkeys(result.modes.values()) if text != "leap"),
    ]


def _title(key: str) -> str:
    """What a source is of: `step_time` is Step time, `kv_pool` KV pool."""
    words = key.replace("_", " ").capitalize()
    return f"KV{words[2:]}" if key.startswith("kv_") else words


def _carbon(result: Result) -> str:
    """kWh and CO2, and what they are counted with."""
    energy = result.to_dict()["energy"]
    kwh, grams = (energy[f"{name}_per_million_output_tokens"] for name in ("kwh", "gco2"))
    if kwh is None:
        return "Energy: no output"
    with_what = f"PUE {energy['pue']:g}, {energy['grid_gco2_per_kwh']:g} g a kWh ({energy['grid_source']})"
    return f"Energy: {kwh:.3g} kWh and {short(grams)} g of CO2 per million output tokens; {with_what}"


def _intervals(result: Result) -> list[str]:
    shown = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "output_throughput", "mean_watts",
             "joules_per_output_token", "usd_per_million_output_tokens")  # fmt: skip
    found = result.intervals or {}
    lines = [
        f"  {name:<32}{found[name][0]:>12,.2f} to {found[name][1]:,.2f}" for name in shown if name in found
    ]
    return [f"Range ({result.interval_of})", *lines] if lines else []


def _thrash(result: Result) -> str:
    if result.verdict != "thrash":
        return ""
    t = result.totals
    useful = t.decode_tokens + t.prefill_tokens - t.recomputed_tokens
    return (
        f"thrash: {useful:,} useful tokens, {t.recomputed_tokens:,} recomputed, {t.preemptions:,} preemptions"
    )
