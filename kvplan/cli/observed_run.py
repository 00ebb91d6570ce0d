"""`kvplan compare-run`: a real run beside a simulation of the same requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvplan.cli.options import print_json
from kvplan.errors import KvplanError
from kvplan.observed.recorded_run import chart_svg, compare_runs, read_run

SWITCH = Parameter(negative="")


def compare_run_command(
    real: Path,
    result: Path,
    /,
    *,
    real_totals: Path | None = None,
    totals: Path | None = None,
    chart: Path | None = None,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Compare a real run with a simulation of the same requests.

    Parameters
    ----------
    real
        The real run, one row per request: vllm bench serve's JSON (--save-detailed) or JSONL, or CSV with arrival_s,
        input_tokens, output_tokens, ttft_ms, e2e_ms.
    result
        The simulated one: what `kvplan simulate --records` wrote.
    real_totals
        JSON with num_preemptions and kv_peak_fraction of the real run.
    totals
        The same of the simulation: `kvplan simulate --json`.
    chart
        Write a scatter plot of simulated over real latencies here (.svg).
    json
        One JSON document on stdout.
    """
    found = compare_runs(read_run(real, real_totals), read_run(result, totals))
    if chart is not None:
        try:
            chart.write_text(chart_svg(found), encoding="utf-8")
        except OSError as error:
            raise KvplanError(f"{chart}: cannot be written ({error.strerror})") from None
    if json:
        print_json(found.to_dict())
    else:
        print(found)
    return 0
