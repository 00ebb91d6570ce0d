"""Comparing a real run with a simulation: what is read, what is computed, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.observed.recorded_run import RecordedRun, compare_runs, read_run

ROWS = [(0.0, 100, 11, 50.0, 550.0), (1.0, 200, 21, 80.0, 1480.0), (2.5, 300, 1, 90.0, 90.0)]
"""arrival_s, prompt tokens, output tokens, ttft_ms, e2e_ms."""


def real_csv(path: Path, rows: list[tuple[Any, ...]] = ROWS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "arrival_s", "input_tokens", "output_tokens", "ttft_ms", "e2e_ms"])
        writer.writerows([f"r{i}", *row] for i, row in enumerate(rows))
    return path


def simulated_csv(path: Path, slower: float = 1.0) -> Path:
    """kvplan's own records, in the order in which requests ended, `slower` times as slow."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request_id", "arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s",
                         "num_preemptions"])  # fmt: skip
        for i, (arrival, prompt, output, ttft, e2e) in reversed(list(enumerate(ROWS))):
            first, last = arrival + slower * ttft / 1e3, arrival + slower * e2e / 1e3
            writer.writerow([i, arrival, prompt, output, first, last, i])
    return path


def bench_json(path: Path) -> Path:
    """`vllm bench serve --save-result --save-detailed`."""
    itls = [[(e2e - ttft) / 1e3 / max(1, output - 1)] * (output - 1) for _, _, output, ttft, e2e in ROWS]
    document = {
        "input_lens": [r[1] for r in ROWS], "output_lens": [r[2] for r in ROWS], "ttfts": [r[3] / 1e3 for r in ROWS],
        "itls": itls, "start_times": [7e5 + r[0] for r in ROWS],
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return path


def same(a: RecordedRun, b: RecordedRun) -> None:
    for name in RecordedRun._fields[:6]:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-6)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    """CSV of latencies, vLLM's bench JSON, JSONL and kvplan's records give the same run."""
    first = read_run(real_csv(tmp_path / "real.csv"))
    same(first, read_run(bench_json(tmp_path / "bench.json")))
    same(first, read_run(simulated_csv(tmp_path / "sim.csv")))
    lines = tmp_path / "rows.jsonl"
    keys = ("arrival_s", "prompt_len", "output_len", "ttft_ms", "e2e_ms")
    lines.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in ROWS))
    same(first, read_run(lines))


def test_errors_are_signed_and_per_request(tmp_path: Path) -> None:
    """A simulation that is a tenth too slow is +10 % in every latency, statistic and request."""
    found = compare_runs(
        read_run(real_csv(tmp_path / "r.csv")), read_run(simulated_csv(tmp_path / "s.csv", 1.1))
    )
    for metric in ("ttft_ms", "tpot_ms", "e2e_ms"):
        for statistic in ("mean", "p50", "p90", "p99"):
            assert found.line(metric, statistic).error == pytest.approx(0.10)
        assert found.mape[metric] == pytest.approx(0.10)
    assert found.line("ttft_ms").real == pytest.approx(220 / 3)
    assert found.line("makespan_s", "total").real == pytest.approx(2.59)
    assert found.line("num_preemptions", "total").simulated == 3


def test_one_token_answers_have_no_tpot(tmp_path: Path) -> None:
    """A request of one output token has no time per further token and is left out of that mean."""
    found = read_run(real_csv(tmp_path / "r.csv"))
    assert np.isnan(found.tpot_ms).tolist() == [False, False, True]
    assert found.tpot_ms[0] == pytest.approx(50.0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, JSON of one shape with nulls, totals from a second document, and a chart."""
    real, sim = real_csv(tmp_path / "r.csv"), simulated_csv(tmp_path / "s.csv", 0.9)
    totals, chart = tmp_path / "totals.json", tmp_path / "chart.svg"
    totals.write_text(json.dumps({"num_preemptions": 4, "kv_peak_fraction": 0.5}))
    assert run(["compare-run", str(real), str(sim), "--real-totals", str(totals), "--plot", str(chart)]) == 0
    text = capsys.readouterr().out
    assert "ttft_ms mean" in text
    assert "-10.0%" in text
    dots = sum(1 for row in ROWS for latency in (row[3], row[4], row[4] - row[3]) if latency > 0)
    assert chart.read_text().count('aria-roledescription="circle"') == dots
    assert run(["compare-run", str(real), str(sim), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    figures = {(f["metric"], f["statistic"]): f for f in document["figures"]}
    assert len(figures) == 15
    assert figures["kv_peak_fraction", "max"]["real"] is None
    assert document["per_request_mape"]["e2e_ms"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "arrival_s,input_tokens,ttft_ms,e2e_ms\n0,1,1,2\n", "no column output_tokens"),
        ("x.csv", "arrival_s,input_tokens,output_tokens\n0,1,1\n", "needs ttft_ms and e2e_ms"),
        ("x.csv", "arrival_s,input_tokens,output_tokens,ttft_ms,e2e_ms\n", "no requests in it"),
        ("x.csv", "arrival_s,input_tokens,output_tokens,ttft_ms,e2e_ms\n0,1,two,3,4\n", "not a number"),
        ("x.json", '{"ttfts": [1], "input_lens": [1]}', "--save-detailed"),
        ("x.json", "nonsense", "neither CSV"),
        ("y.csv", None, "cannot be read"),
    ],
)
def test_bad_files_are_one_line(
    name: str, text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line that names file and lack."""
    if text is not None:
        (tmp_path / name).write_text(text)
    assert run(["compare-run", str(tmp_path / name), str(real_csv(tmp_path / "r.csv"))]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said


def test_other_requests_are_refused(tmp_path: Path) -> None:
    """Another number of requests, or other tokens, is no comparison."""
    real = read_run(real_csv(tmp_path / "r.csv"))
    with pytest.raises(KvplanError, match="3 requests in the real run, 2 in the simulation"):
        compare_runs(real, read_run(real_csv(tmp_path / "s.csv", ROWS[:2])))
    other = [ROWS[0], (1.0, 200, 22, 80.0, 1480.0), ROWS[2]]
    with pytest.raises(
        KvplanError, match="request 1: 21 output_tokens in the real run, 22 in the simulation"
    ):
        compare_runs(real, read_run(real_csv(tmp_path / "s.csv", other)))


def test_the_table_shows_what_is_known(tmp_path: Path) -> None:
    """Figures that neither run has are left out."""
    found = compare_runs(*(read_run(real_csv(tmp_path / name)) for name in ("a.csv", "b.csv")))
    assert "kv_peak" not in str(found)


def test_a_failed_request_leaves_the_rest(tmp_path: Path) -> None:
    """One request of the benchmark failed; the simulation of its file has the other two: they are compared."""
    path = bench_json(tmp_path / "bench.json")
    document = json.loads(path.read_text())
    document["output_lens"][1], document["ttfts"][1], document["itls"][1] = 0, 0.0, []
    path.write_text(json.dumps(document))
    found = compare_runs(read_run(path), read_run(real_csv(tmp_path / "s.csv", [ROWS[0], ROWS[2]])))
    assert found.line("ttft_ms").error == pytest.approx(0.0)
    assert found.notes == ["real run: 1 of 3 requests failed and are left out"]
    assert found.to_dict()["num_requests"] == 2
    assert "note: real run: 1 of 3" in str(found)


def test_no_start_times_are_said(tmp_path: Path) -> None:
    """Without start times requests come at the file's request rate, and a note says so."""
    path = bench_json(tmp_path / "bench.json")
    document = json.loads(path.read_text()) | {"request_rate": 8.0}
    del document["start_times"]
    path.write_text(json.dumps(document))
    run_ = read_run(path)
    assert run_.arrival_s.tolist() == [0, 0.125, 0.25]
    assert run_.notes == ("no start times: arrivals are taken as every 0.125 s, its request_rate",)


def test_aiperf_says_the_same(tmp_path: Path) -> None:
    """AIPerf's profile export: nanoseconds since 1970, milliseconds, records in order of their ends."""
    lines = [
        {
            "metadata": {"request_start_ns": 1_759_813_207 * 10**9 + int(arrival * 1e9)},
            "metrics": {
                "input_sequence_length": {"value": prompt, "unit": "tokens"},
                "output_sequence_length": {"value": output, "unit": "tokens"},
                "time_to_first_token": {"value": ttft, "unit": "ms"},
                "request_latency": {"value": e2e, "unit": "ms"},
                **(
                    {"inter_token_latency": {"value": (e2e - ttft) / (output - 1), "unit": "ms"}}
                    if output > 1
                    else {}
                ),
            },
            "error": None,
        }
        for arrival, prompt, output, ttft, e2e in reversed(ROWS)
    ]
    lines.append({"metadata": {"request_start_ns": 5}, "metrics": {"error_isl": {"value": 3}}, "error": {}})
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_run(path)
    same(read_run(real_csv(tmp_path / "real.csv")), found)
    assert found.notes == ("1 of 4 requests failed and are left out",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '{"ttfts": [1], "itls": [3], "input_lens": [1], "output_lens": [2]}', "one list of gaps"),
        ("x.json", '{"ttfts": ["a"], "itls": [[]], "input_lens": [1], "output_lens": [2]}', "ttfts: not a number"),
        ("x.json", '{"ttfts": [1], "itls": [[]], "input_lens": 7, "output_lens": [2]}', "lists of one length"),
        ("x.json", '{"ttfts": [1], "itls": [[]], "input_lens": [1], "output_lens": [0]}', "every request failed"),
        ("x.json", '{"ttfts": [1], "itls": [[]], "input_lens": [1], "output_lens": [1e400]}', "not a number"),
        ("x.json", "[" * 100_000, "neither CSV"),
        ("x.json", "9" * 60_000, "neither CSV"),
        ("x.csv", "input_tokens,output_tokens,ttft_ms,e2e_ms\n-1,1,1,2\n", "prompt_tokens of request 1 is -1"),
        ("x.csv", "input_tokens,output_tokens,ttft_ms,e2e_ms\n1,1\n,,,,9\n", "prompt_tokens of request 2 is nan"),
        ("x.csv", 'a,"' + "b" * 200_000, "not a CSV table"),
        ("x.jsonl", "1\n2\n", "no requests in it"),
        ("x.jsonl", '{"finish_reason": "rejected"}', "no requests in it"),
    ],
)  # fmt: skip
def test_damage_is_one_line(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(KvplanError, match=words):
        read_run(tmp_path / name)


def test_totals_that_are_none(tmp_path: Path) -> None:
    run_, totals = real_csv(tmp_path / "r.csv"), tmp_path / "t.json"
    for text, words in (("[]", "not a JSON document"), ('{"num_preemptions": "x"}', "is no number")):
        totals.write_text(text)
        with pytest.raises(KvplanError, match=words):
            read_run(run_, totals)
