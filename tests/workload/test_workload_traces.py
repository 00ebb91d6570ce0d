"""Trace readers: each format is read, each kind of damage is named by its row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from places import TRUTH

from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.simulator import simulate
from kvplan.workload.classes import Workload
from kvplan.workload.load import Load, draw_load
from kvplan.workload.traces import Trace, TraceRow, TraceSpec, read_trace


def read(path: Path, fmt: str, **keys: object) -> Trace:
    spec = TraceSpec.model_validate({"path": path.name, "format": fmt, **keys})
    return read_trace(spec, path.parent, np.random.default_rng(0))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_mooncake(tmp_path: Path) -> None:
    """Milliseconds become seconds from the first row; hash ids name blocks of 512 tokens."""
    rows = [{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]},
            {"timestamp": 4500, "input_length": 512, "output_length": 6, "hash_ids": [7]}]  # fmt: skip
    path = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(path, "mooncake").rows == [TraceRow(0, 600, 5, 0, (7, 8)), TraceRow(1.5, 512, 6, 0, (7,))]
    keys = {"trace": {"path": "t.jsonl", "format": "mooncake"}, "arrivals": {"kind": "replay", "speed": 2}}
    load = draw_load(Workload.model_validate(keys), tmp_path)
    assert load.prompt(0) == (("b7", 512, 0), ("b8", 88, 0))
    assert load.arrival_s.tolist() == [0, 0.75]


def test_azure_dates_and_line_ends(tmp_path: Path) -> None:
    """Seven digits of a second, CRLF, no newline at the end."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
    text += "2023-11-16 18:18:04.0000000,1,2"
    rows = read(write(tmp_path, "a.csv", text), "azure").rows
    assert rows[1] == TraceRow(pytest.approx(60.02004), 1, 2)


def test_servegen_has_thinking(tmp_path: Path) -> None:
    text = "arrival_s,client_id,input_tokens,output_tokens,reason_tokens\n1.8,48,396,395,333\n"
    assert read(write(tmp_path, "s.csv", text), "servegen").rows == [TraceRow(0, 396, 395, 333)]


def test_vllm_bench_json_and_jsonl(tmp_path: Path) -> None:
    """The detailed result's lists, in order of their start times; or one request per line."""
    result = {"input_lens": [5, 6], "output_lens": [7, 8], "start_times": [11.5, 10.0]}
    path = write(tmp_path, "r.json", json.dumps(result))
    assert read(path, "vllm_bench").rows == [TraceRow(0, 6, 8), TraceRow(1.5, 5, 7)]
    path = write(tmp_path, "r.jsonl", '{"timestamp": 1, "prompt_len": 5, "output_len": 9}\n\n')
    assert read(path, "vllm_bench").rows == [TraceRow(0, 5, 9)]


def test_plain_csv_knows_the_usual_names(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,3\n2,11,4\n")
    assert read(path, "csv").rows == [TraceRow(0, 10, 3), TraceRow(2, 11, 4)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("5,0,3", "row 3: 0 prompt tokens"),
        ("5,10,-3", "row 3: -3 output tokens"),
        ("5,ten,3", "row 3: not numbers"),
        ("5,10", "row 3: not numbers"),
        ("5,1.5,3", "row 3: not numbers"),
        ("5,10,3,4", "row 3: more fields"),
        ("nan,10,3", "row 3: arrival time nan"),
        ("inf,10,3", "row 3: arrival time inf"),
        ("1,10,3", "row 3: arrives at 1 s, before the row above it"),
        ("5,10,99999999999", "row 3: 99999999999 output tokens"),
    ],
)
def test_damaged_rows_are_named_or_counted(tmp_path: Path, row: str, words: str) -> None:
    """The error says the row and what is wrong; skip_bad_rows leaves it out and counts it."""
    text = f"arrival_s,prompt_tokens,output_tokens\n4,8,8\n{row}\n6,9,9\n"
    path = write(tmp_path, "p.csv", text)
    with pytest.raises(KvplanError, match=words):
        read(path, "csv")
    found = read(path, "csv", skip_bad_rows=True)
    assert (len(found.rows), found.num_bad_rows) == (2, 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "row 1: not a JSON object"),
        ("[1]", "row 1: not a JSON object"),
        ('{"timestamp": 1}', "needs timestamp, input_length"),
        ('{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1]}', "1 hash ids of 512"),
    ],
)
def test_damaged_mooncake_lines(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        read(write(tmp_path, "t.jsonl", line + "\n"), "mooncake")


def test_files_that_are_not_traces(tmp_path: Path) -> None:
    with pytest.raises(KvplanError, match="not a file"):
        read(tmp_path / "none.csv", "csv")
    with pytest.raises(KvplanError, match="needs prompt_tokens and output_tokens"):
        read(write(tmp_path, "x.csv", "a,b\n1,2\n"), "csv")
    with pytest.raises(KvplanError, match="needs contexttokens, generatedtokens"):
        read(write(tmp_path, "y.csv", "timestamp\n1\n"), "azure")
    with pytest.raises(KvplanError, match="no requests"):
        read(write(tmp_path, "z.csv", "prompt_tokens,output_tokens\n"), "csv")
    with pytest.raises(KvplanError):
        read(write(tmp_path, "b.csv", "\x00\x01\x02"), "csv")


def test_limit_and_sample(tmp_path: Path) -> None:
    """`limit` takes the first rows, `sample` a share of them in their order."""
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},{i + 1},1\n" for i in range(2000))
    path = write(tmp_path, "p.csv", text)
    assert len(read(path, "csv", limit=10).rows) == 10
    rows = read(path, "csv", sample=0.25).rows
    assert 400 < len(rows) < 600
    assert [r.prompt_tokens for r in rows] == sorted(r.prompt_tokens for r in rows)


@pytest.mark.parametrize(
    ("name", "fmt", "count"),
    [
        ("mooncake_conversation_head.jsonl", "mooncake", 7772),
        ("azure2023_code.csv", "azure", 8819),
        ("azure2023_conv.csv", "azure", 19366),
        ("servegen_deepseek_r1_day_thinned_40k.csv", "servegen", 40000),
    ],
)
def test_published_traces_are_read_whole(name: str, fmt: str, count: int) -> None:
    """Every row of the published traces is sound (row counts from their README)."""
    path = TRUTH / "workloads" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: reference data outside the project")
    assert len(read(path, fmt).rows) == count


def replayed(folder: Path, name: str, fmt: str, **keys: object) -> Load:
    """The load of a workload that names a trace and says nothing of arrivals."""
    return draw_load(Workload.model_validate({"trace": {"path": name, "format": fmt, **keys}}), folder)


def test_a_trace_keeps_its_times(tmp_path: Path) -> None:
    """Without a word on arrivals the trace's own times are replayed; with one, a note says that they are not."""
    write(tmp_path, "p.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n4,10,3\n7.5,11,4\n")
    load = replayed(tmp_path, "p.csv", "csv")
    assert (load.arrival_s.tolist(), load.arrivals.kind, load.notes) == ([0, 3.5], "replay", ())
    keys = {"trace": {"path": "p.csv", "format": "csv"}, "arrivals": {"kind": "all_at_once"}}
    [note] = draw_load(Workload.model_validate(keys), tmp_path).notes
    assert note == "the trace's own arrival times were not used: workload.arrivals is all_at_once"


def test_a_trace_without_times_asks(tmp_path: Path) -> None:
    """Nothing is assumed where neither file nor scenario says when requests come."""
    write(tmp_path, "p.csv", "prompt_tokens,output_tokens\n10,3\n11,4\n")
    with pytest.raises(KvplanError, match=r"no arrival times; say workload\.arrivals"):
        replayed(tmp_path, "p.csv", "csv")
    keys = {"trace": {"path": "p.csv", "format": "csv"}, "arrivals": {"kind": "constant", "rate": 2}}
    load = draw_load(Workload.model_validate(keys), tmp_path)
    assert (load.arrival_s.tolist(), load.notes) == ([0, 0.5], ())


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ({"request_rate": 8.0, "burstiness": 0.5}, "poisson", "poisson at rate 8, burstiness 0.5"),
        ({"request_rate": "inf"}, "all_at_once", "all_at_once"),
        ({"request_rate": "inf", "max_concurrency": 4}, "closed_loop", "closed_loop at concurrency 4"),
    ],
)
def test_a_bench_result_without_start_times(
    said: dict[str, object], kind: str, words: str, tmp_path: Path
) -> None:
    """It is sent again as it was sent: at its request rate, all at once, or by so many clients; a note says so."""
    result = {"input_lens": [5] * 2000, "output_lens": [7] * 2000, "start_times": None, **said}
    write(tmp_path, "r.json", json.dumps(result))
    load = replayed(tmp_path, "r.json", "vllm_bench")
    assert load.arrivals.kind == kind
    assert load.notes == (f"the bench result has no start times: arrivals are drawn as it was sent, {words}",)
    if kind == "poisson":
        assert load.arrival_s[-1] == pytest.approx(2000 / 8, rel=0.15)


def test_failed_requests_are_left_out(tmp_path: Path) -> None:
    """A benchmark's failed request has no output: it is counted, and the rest is read."""
    result = {"input_lens": [5, 6, 7], "output_lens": [7, 0, 8], "start_times": [1, 2, 3]}
    write(tmp_path, "r.json", json.dumps(result))
    load = replayed(tmp_path, "r.json", "vllm_bench")
    assert (load.prompt_tokens.tolist(), load.num_bad_rows) == ([5, 7], 1)
    assert load.notes == ("requests of the trace that had failed were left out: 1",)


def test_several_results_in_one_file_are_not_one(tmp_path: Path) -> None:
    line = json.dumps({"input_lens": [5], "output_lens": [7]})
    with pytest.raises(KvplanError, match="2 results, one a line"):
        read(write(tmp_path, "r.jsonl", f"{line}\n{line}\n"), "vllm_bench")
    with pytest.raises(KvplanError, match="lists of one length"):
        read(write(tmp_path, "r.json", '{"input_lens": [5], "output_lens": [7, 8]}'), "vllm_bench")


def test_burstgpt(tmp_path: Path) -> None:
    """Seconds, request and response tokens; no response tokens mean that the request failed."""
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text += (
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n50,ChatGPT,9,0,9,API log\n"
    )
    found = read(write(tmp_path, "b.csv", text), "burstgpt")
    assert found.rows == [TraceRow(0, 472, 18), TraceRow(40, 1087, 230)]
    assert found.num_failed == 1


def test_qwen_bailian(tmp_path: Path) -> None:
    """Seconds, not milliseconds; a hash names 16 tokens."""
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 40, "output_length": 9,
           "type": "text", "turn": 1, "hash_ids": [1, 2, 3]}  # fmt: skip
    later = row | {"timestamp": 63.114, "hash_ids": [1, 2, 4]}
    write(tmp_path, "q.jsonl", f"{json.dumps(row)}\n{json.dumps(later)}\n")
    load = replayed(tmp_path, "q.jsonl", "qwen_bailian")
    assert load.arrival_s.tolist() == [0, pytest.approx(2.0)]
    assert load.prompt(1) == (("b1", 16, 0), ("b2", 16, 0), ("b4", 8, 0))


def test_any_block_size(tmp_path: Path) -> None:
    """Hashes of 64 tokens need `block_size`; without it the error names the key."""
    path = write(
        tmp_path,
        "t.jsonl",
        '{"timestamp": 0, "input_length": 130, "output_length": 5, "hash_ids": [1, 2, 3]}',
    )
    assert read(path, "mooncake", block_size=64).block_tokens == 64
    with pytest.raises(KvplanError, match=r"3 hash ids of 512 tokens for 130 .*say trace\.block_size"):
        read(path, "mooncake")


def test_servegen_language_and_offline(tmp_path: Path) -> None:
    """Its language models do not reason; its offline batches have no times."""
    text = "arrival_s,input_tokens,output_tokens\n1,396,395\n"
    assert read(write(tmp_path, "s.csv", text), "servegen").rows == [TraceRow(0, 396, 395)]
    line = '{"request_id": 0, "type": "text", "input_length": 61, "output_length": 2370, "duration": 14000}'
    assert read(write(tmp_path, "s.jsonl", line), "servegen").rows == [TraceRow(None, 61, 2370)]


def aiperf_record(start_s: float, prompt: int, output: int) -> dict[str, object]:
    return {
        "metadata": {"session_num": 0, "request_start_ns": 1_759_813_207 * 10**9 + int(start_s * 1e9)},
        "metrics": {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
        },
        "error": None,
    }


def test_aiperf(tmp_path: Path) -> None:
    """Records are in order of their ends; the trace is in order of starts. A record with an error had failed."""
    failed = aiperf_record(1.0, 5, 5) | {"error": {"code": 499}, "metrics": {"error_isl": {"value": 5}}}
    records = [aiperf_record(2.5, 20, 4), failed, aiperf_record(0.5, 10, 30)]
    found = read(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records))), "aiperf")
    assert found.rows == [TraceRow(0, 10, 30), TraceRow(pytest.approx(2.0), 20, 4)]
    assert found.num_failed == 1


@pytest.mark.parametrize(
    ("name", "fmt", "rows"),
    [
        ("T01-mooncake-50rows.jsonl", "mooncake", 50),
        ("T02-bench-no-start-times.jsonl", "vllm_bench", 20),
        ("T03-bench-one-failed-request.json", "vllm_bench", 19),
        ("T04-burstgpt.csv", "burstgpt", 5),
        ("T05-qwen-bailian.jsonl", "qwen_bailian", 2),
    ],
)
def test_public_reports(name: str, fmt: str, rows: int) -> None:
    """Files of this kind that people attach to reports."""
    path = TRUTH.parent / "cases" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: reference data outside the project")
    assert len(replayed(path.parent, name, fmt)) == rows


def test_mooncake_head_by_default_is_its_own_rush(tmp_path: Path) -> None:
    """The first 2,000 requests of the hour at their own times: over two minutes to the first token, hundreds at once.

    Poisson arrivals at 1/s, taken for them once, gave 405 ms.
    """
    path = TRUTH / "workloads" / "mooncake_conversation_head.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here: reference data outside the project")
    trace = {"path": str(path), "format": "mooncake", "limit": 2000}
    result = simulate(parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": {"trace": trace}}))
    document = result.to_dict()
    workload = {"trace": trace, "arrivals": {"kind": "replay"}}
    replayed = simulate(
        parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": workload})
    ).to_dict()
    assert document["mean_ttft_ms"] == replayed["mean_ttft_ms"] == pytest.approx(130_000, rel=0.05)
    assert document["max_concurrent_requests"] > 500
