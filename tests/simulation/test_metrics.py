"""Statistics over records: definitions are vLLM's, histograms keep their promised error, files hold what they say."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.metrics import Sample, Timeline, TokenMeter, latencies, meets, summarise
from kvplan.simulation.records import Record, Records, check_target, write_records
from kvplan.simulation.result import peak_concurrency
from kvplan.simulation.simulator import simulate
from kvplan.workload.classes import Slo

MS = TICKS_PER_S // 1000


def record(request_id: int = 0, **keys: int) -> tuple[int, ...]:
    usual = dict.fromkeys(Record._fields, 0) | {
        "request_id": request_id, "arrival": 1000 * MS, "scheduled": 1010 * MS, "first_token": 1100 * MS,
        "first_visible": 1500 * MS, "finish": 2100 * MS, "prompt_tokens": 7, "output_tokens": 11,
    }  # fmt: skip
    return tuple((usual | keys).values())


def records(*rows: tuple[int, ...]) -> Records:
    found = Records(["default"], kv_bytes_per_token=2.0**30)
    for row in rows:
        found.add(row)
    return found


def test_latencies_are_vllms() -> None:
    """TTFT from arrival; TPOT over the tokens after the first; one token has no TPOT; only whole answers count."""
    found = latencies(
        records(record(), record(1, output_tokens=1, finish=1100 * MS), record(2, finish_reason=2))
    )
    assert found.ttft.tolist() == [100, 100]
    assert found.ttfvt[0] == 500
    assert found.e2el.tolist() == [1100, 100]
    assert found.tpot[0] == pytest.approx(100)
    assert np.isnan(found.tpot[1])


def test_goodput_needs_all_targets() -> None:
    """A target that is met by all, one that is missed by one; a cut-off thought misses the visible-token target."""
    found = latencies(
        records(record(), record(1, output_tokens=1, finish=1100 * MS), record(2, first_visible=-1))
    )
    class_id = np.zeros(3, np.int64)
    assert meets(found, class_id, [Slo(ttft_ms=100, tpot_ms=100)]).tolist() == [True, True, True]
    assert meets(found, class_id, [Slo(tpot_ms=99.9)]).tolist() == [False, True, False]
    assert meets(found, class_id, [Slo(ttfvt_ms=10_000)]).tolist() == [True, True, False]


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 1001)
    found = summarise(np.append(values, np.nan))
    assert found.p99 == np.percentile(values, 99)
    assert found.mean == pytest.approx(values.mean())


@given(st.lists(st.tuples(st.integers(10**9, 10**11), st.integers(0, 10**8), st.integers(1, 300), st.integers(1, 400)),
                min_size=1, max_size=40))  # fmt: skip
def test_intervals_of_leaps_are_those_of_their_steps(leaps: list[tuple[int, int, int, int]]) -> None:
    """Percentiles within 1 %, the mean exact, against every single interval written out."""
    meter, start = TokenMeter(), 0
    steps = []
    for ticks, slope, decodes, count in leaps:
        durations = ticks + slope * np.arange(count)
        steps += [(durations, decodes)]
        end = start + int(durations.sum())
        meter.add(ticks, int(durations[-1]), decodes, count, start, end)
        start = end
    values = np.concatenate([d for d, _ in steps])
    weights = np.concatenate([np.full(len(d), w) for d, w in steps])
    found = meter.intervals()
    assert meter.total == weights.sum()
    assert found.mean == pytest.approx((values * weights).sum() / weights.sum() / MS, rel=1e-9)
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    for percentile, value in ((0.5, found.median), (0.9, found.p90), (0.99, found.p99)):
        low, high = (values[order][min(len(values) - 1, np.searchsorted(share, percentile + d))] / MS
                     for d in (-0.004, 0.004))  # fmt: skip
        assert low * 0.99 <= value <= high * 1.01


def test_token_rate_counts_every_token() -> None:
    """Spread over seconds, nothing is lost; buckets double when a run outgrows them."""
    meter = TokenMeter()
    for second in range(0, 20_000, 500):
        meter.add(10 * MS, 10 * MS, 50, 1000, second * TICKS_PER_S, (second + 10) * TICKS_PER_S)
    assert meter.peak_tokens_per_s() == pytest.approx(5000, rel=0.01)
    assert meter.bucket_ticks == 4 * TICKS_PER_S
    assert meter._tokens.sum() == pytest.approx(40 * 50_000)


def test_peak_concurrency_is_a_direct_count() -> None:
    rng = np.random.default_rng(3)
    rows = [record(i, arrival=int(a), finish=int(a + d)) for i, (a, d) in
            enumerate(zip(rng.integers(0, 10**4, 300), rng.integers(1, 900, 300), strict=True))]  # fmt: skip
    found = records(*rows)
    moments = np.concatenate([found["arrival"], found["finish"]])
    inside = (found["arrival"] <= moments[:, None]) & (moments[:, None] < found["finish"])
    assert peak_concurrency(found) == inside.sum(1).max()


def test_timeline_is_bounded_and_even() -> None:
    """Never more samples than allowed; the interval doubles; the first sample stays."""
    timeline = Timeline(interval=10, max_samples=16)
    for now in range(0, 10_000, 3):
        if now >= timeline.next_at:
            timeline.add(now, Sample(now, *[0] * 8))
    assert 8 <= len(timeline.samples) <= 16
    gaps = np.diff([sample.time_s for sample in timeline.samples])
    assert gaps.min() > 0.6 * gaps.max()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_hold_the_records(suffix: str, tmp_path: Path) -> None:
    """Sorted by request, seconds with nine decimals, nothing where nothing happened."""
    found = records(record(5), record(2, first_visible=-1, kv_token_us=3_000_000))
    path = tmp_path / f"out{suffix}"
    write_records(found, path)
    if suffix == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert rows[0]["first_visible_token_s"] == ""
        assert float(rows[1]["first_visible_token_s"]) == 1.5
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows[0]["first_visible_token_s"] is None
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(path).to_pylist()
    assert [int(row["request_id"]) for row in rows] == [2, 5]
    assert float(rows[0]["kv_gib_s"]) == 3
    assert float(rows[0]["finish_s"]) == 2.1


def test_targets_are_checked_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(KvplanError, match=r"must end in \.csv"):
        check_target(tmp_path / "x.txt")


def test_a_class_is_no_formula(tmp_path: Path) -> None:
    """A spreadsheet would run a name that begins like a formula; in CSV it is quoted as text."""
    found = Records(["=HYPERLINK(1)"])
    found.add(Record(*[0] * len(Record._fields)))
    write_records(found, tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().splitlines()[1].startswith("0,'=HYPERLINK(1),")


def test_a_hundred_thousand_records_are_eighteen_megabytes() -> None:
    """Flat integers, no Python object per record."""
    found = Records(["default"])
    row = record()
    for _ in range(100_000):
        found.add(row)
    assert found.table.nbytes == 100_000 * 23 * 8
    assert len(found) == 100_000


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_a_summary_does_not_depend_on_the_order(values: list[float], luck: random.Random) -> None:
    """To the last digit: numpy's versions add up in different orders, and documents are compared across them."""
    mixed = values.copy()
    luck.shuffle(mixed)
    strided = np.zeros((len(mixed), 3))
    strided[:, 1] = mixed
    assert summarise(np.array(values)) == summarise(np.array(mixed)) == summarise(strided[:, 1])


def test_tokens_that_are_all_thinking_have_a_price() -> None:
    """Answers cut while they think: output costs what it costs, visible tokens have no price."""
    work = {"num_requests": 3, "prompt": 50, "thinking": 100, "answer": 20, "max_tokens": 40}
    result = simulate(
        parse_scenario({"model": "Qwen/Qwen3-8B", "step_time": {"fixed_us": 5000}, "workload": work})
    )
    cost = result.to_dict()["cost"]
    assert cost["usd_per_million_visible_tokens"] is None
    assert cost["usd_per_million_output_tokens"] == pytest.approx(cost["usd"] / 120 * 1e6)
