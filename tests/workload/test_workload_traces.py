"""Trace readers: each format is read, each kind of damage is named by its row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from places import TRUTH

from kvplan.errors import KvplanError
from kvplan.workload.classes import Workload
from kvplan.workload.load import draw_load
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
