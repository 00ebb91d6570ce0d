"""Sweeps: every point once, the same rows however they run, and nothing finished is ever lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from worker_killer import Killer

import kvplan
from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario
from kvplan.search import execution, sweep_file
from kvplan.search.execution import Execution, execute
from kvplan.search.grid import Axis, make_axes, make_points, parse_axis, read_base
from kvplan.search.point_row import FIGURES, RANGED, Row, error_row, run_point
from kvplan.search.sweep_file import HASH, SweepFile
from kvplan.search.sweeping import sweep_rows
from kvplan.simulation.result import ENERGY
from kvplan.simulation.simulator import simulate
from kvplan.simulation.uncertainty import find_ends

BASE = {
    "model": "Qwen/Qwen3-8B",
    "gpu": "h100",
    "engine": {"max_model_len": 16384},
    "step_time": {"fixed_us": 8000, "per_sequence_us": 20, "per_context_token_ns": 60, "per_prefill_token_us": 40},
    "workload": {
        "num_requests": 12,
        "arrivals": {"kind": "poisson", "rate": 2.0},
        "prompt": {"kind": "lognormal", "median": 300, "sigma": 0.7, "high": 2000},
        "thinking": {"kind": "lognormal", "median": 900, "sigma": 0.8, "high": 8000},
        "answer": 120,
    },
    "slo": {"ttfvt_ms": 30000},
}  # fmt: skip
OVER = {"engine.max_num_seqs": [2, 4, 64], "workload.arrivals.rate": [0.5, 8]}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# --- the grid ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**32))
def test_a_grid_has_every_combination_once(sizes: list[int], seed: int) -> None:
    """The last key runs fastest; a sample is a subset in the same order, and the same seed draws the same one."""
    keys = ("engine.max_num_seqs", "workload.seed", "workload.num_requests")
    axes = [Axis(key, tuple(range(1, size + 1))) for key, size in zip(keys, sizes, strict=False)]
    points = make_points(read_base(BASE), axes)
    values = [tuple(p.settings.values()) for p in points]
    assert values == sorted(set(values))
    number = 1
    for size in sizes:
        number *= size
    assert len(points) == number == len({p.hash for p in points})
    some = make_points(read_base(BASE), axes, sample=max(1, number // 2), seed=seed)
    assert len(some) == max(1, number // 2)
    assert {p.hash for p in some} <= {p.hash for p in points}
    assert [p.hash for p in some] == [
        p.hash for p in make_points(read_base(BASE), axes, sample=len(some), seed=seed)
    ]


def test_a_point_is_the_scenario_with_its_keys_set() -> None:
    """A sweep's row says what `simulate` says of the same scenario, to the last digit."""
    rows = sweep_rows(BASE, OVER).rows
    for row in rows[1], rows[4]:
        data = json.loads(json.dumps(BASE))
        data["engine"]["max_num_seqs"] = row["engine.max_num_seqs"]
        data["workload"]["arrivals"]["rate"] = row["workload.arrivals.rate"]
        document = simulate(parse_scenario(data)).to_dict()
        for name in (
            "duration_s",
            "p99_ttfvt_ms",
            "num_preemptions",
            "kv_peak_fraction",
            "slo_met",
            "limited_by",
        ):
            assert row[name] == document[name]
        assert row["usd_per_million_visible_tokens"] == document["cost"]["usd_per_million_visible_tokens"]


def test_overrides_reach_a_base_of_every_kind() -> None:
    """A bundled name, what a file says and a checked scenario; what was given stays as it was."""
    said = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "engine": {"max_num_seqs": 8}}
    for base_of in ("chat", said, parse_scenario(dict(said))):
        base = read_base(base_of, ["engine.max_num_seqs=32", "slo.tpot_ms=50"])
        assert base.data["engine"]["max_num_seqs"] == 32
        assert base.data["slo"]["tpot_ms"] == 50
    assert said["engine"] == {"max_num_seqs": 8}


def test_the_hash_knows_what_a_point_is(tmp_path: Path) -> None:
    """Spelling out a default changes nothing; another value, or other contents of a named file, does."""

    def point(**changes: object) -> str:
        return make_points(read_base({**BASE, **changes}), [Axis("gpu", ("h100",))])[0].hash

    assert point(replicas=1) == point() == point(name="else") != point(replicas=2)
    trace = tmp_path / "trace.csv"
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "model: Qwen/Qwen3-8B\nworkload: {arrivals: {kind: replay}, trace: {path: trace.csv, format: csv}}\n"
    )
    hashes = []
    for row in "0,10,20\n", "0,10,21\n":
        trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + row)
        os.utime(trace, ns=(len(hashes), len(hashes)))
        hashes.append(make_points(read_base(scenario), [Axis("gpu", ("h100",))])[0].hash)
    assert hashes[0] != hashes[1]


def test_strategies_become_points() -> None:
    """A scenario that compares strategies has a point for each, on the same problems."""
    over = {"gpu": ["h100", "h200"]}
    rows = sweep_rows(load_scenario("strategy_best_of_n", ["problems.num_problems=2"]), over).rows
    assert [(r["gpu"], r["strategy"].split("(")[0]) for r in rows] == [
        (gpu, "best_of_n") for gpu in over["gpu"] for _ in range(len(rows) // 2)
    ]
    assert len({r["strategy"] for r in rows}) == len(rows) // 2 > 1
    assert all(r["accuracy"] is not None and r["error"] == "" for r in rows)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (["engine.max_num_sex=1,2"], "engine.max_num_sex: unknown key; did you mean max_num_seqs"),
        (["gpu"], "write key=a,b,c"),
        (["gpu="], "write key=a,b,c"),
        (["gpu=[h100"], "not a list of YAML values"),
        (["gpu=h100", "gpu=h200"], "named twice"),
        ([], "nothing varies"),
        (["engine.max_num_seqs=-1,-2"], "engine.max_num_seqs"),
        ([f"{key}={','.join(map(str, range(1, 200)))}" for key in ("workload.seed", "workload.num_requests")],
         "39,601 points (199 workload.seed x 199 workload.num_requests) are more than 20,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_one_line(
    over: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KvplanError) as error:
        sweep_rows(BASE, over)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    if over:
        assert run(["sweep", "chat", "--quiet", "--over", *over]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_absurd_sizes_need_no_enumeration() -> None:
    """A grid of 10^12 points is refused at once, and sampled at once."""
    axes = [Axis(f"workload.{name}", tuple(range(1, 10_001))) for name in ("seed", "num_requests")]
    axes.append(Axis("replicas", tuple(range(1, 4001))))
    with pytest.raises(KvplanError, match="400,000,000,000 points"):
        make_points(read_base(BASE), axes)
    with pytest.raises(KvplanError, match="5,000,000; --sample"):
        make_points(read_base(BASE), axes, force=True)
    assert len(make_points(read_base(BASE), axes, sample=5)) == 5


# --- running ----------------------------------------------------------------------------------------


def test_points_that_fail_are_rows_with_their_reason() -> None:
    """A contradiction, a model that does not fit and an unknown card stop nothing."""
    over = {
        "gpu": ["h100", "nonsense"],
        "engine.tensor_parallel_size": [1, 3],
        "engine.max_model_len": [16384, 40960],
    }
    rows = sweep_rows(BASE, {**over, "engine.gpu_memory_utilization": [0.2, 0.9]}).rows
    fine = [r for r in rows if not r["error"]]
    assert len(rows) == 16
    assert {(r["gpu"], r["engine.tensor_parallel_size"]) for r in fine} == {("h100", 1)}
    reasons = " ".join(r["error"] for r in rows)
    assert "unknown GPU" in reasons
    assert "no memory left for KV" in reasons
    assert all(r[name] is None for r in rows if r["error"] for name in FIGURES if name != "error")


def test_processes_give_the_same_rows() -> None:
    assert sweep_rows(BASE, OVER, execution=Execution(workers=2)).rows == sweep_rows(BASE, OVER).rows


def test_a_frame_for_notebooks() -> None:
    frame = kvplan.sweep(BASE, OVER, workers=1)
    assert list(frame.columns) == [*OVER, *FIGURES]
    assert len(frame) == 6
    assert frame["duration_s"].gt(0).all()


@pytest.mark.filterwarnings("ignore:A worker stopped")
@pytest.mark.parametrize("forever", [False, True])
def test_a_worker_that_dies_is_replaced(tmp_path: Path, forever: bool) -> None:
    """Killed once, the point is run again; killing whenever it runs, it is a row that says so; others are whole."""
    seqs = list(range(1, 13))
    points = make_points(read_base(BASE), [Axis("engine.max_num_seqs", tuple(seqs))])
    found = list(execute(points, Execution(workers=2), Killer(tmp_path, 5, forever)))
    assert sorted(f.point.index for f in found) == list(range(12))
    failed = [f.point.settings["engine.max_num_seqs"] for f in found if f.row["error"]]
    assert failed == ([5] if forever else [])
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        (Execution("slurm"), "there are local and ray"),
        (Execution(workers=0), "at least 1"),
        (Execution(address="a:1"), "add --backend ray"),
    ],
)
def test_where_it_cannot_run(execution: Execution, said: str) -> None:
    with pytest.raises(KvplanError, match=said):
        sweep_rows(BASE, OVER, execution=execution)


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    """Said at once: Ray itself would try for minutes."""
    pytest.importorskip("ray")
    with pytest.raises(KvplanError, match="no Ray cluster answers there"):
        sweep_rows(BASE, OVER, execution=Execution("ray", address="127.0.0.1:9"))
    with pytest.raises(KvplanError, match="write host:port"):
        sweep_rows(BASE, OVER, execution=Execution("ray", address="nowhere"))


def test_without_joblib_there_is_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install .` brings no joblib, and the README's sweeps run then, too."""
    monkeypatch.setattr(execution, "find_spec", lambda name: None)
    assert execution.default_workers() == 1
    monkeypatch.undo()
    assert execution.default_workers() == execution.num_cores()


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_is_gone_on_with(tmp_path: Path, suffix: str) -> None:
    """Rows found are taken as they are, a torn last line is run again, and the end is the same file to the byte."""
    whole, torn = tmp_path / f"whole{suffix}", tmp_path / f"torn{suffix}"
    rows = sweep_rows(BASE, OVER, output=whole)
    assert rows.num_found == 0
    file = SweepFile(torn, tuple(OVER))
    file.open()
    for row in rows.rows[3:5]:
        file.add(row)
    with file.journal.open("a") as out:
        out.write(file._text(rows.rows[0], file.journal)[:50])
    again = sweep_rows(BASE, OVER, output=torn)
    assert again.num_found == 2
    assert again.rows == rows.rows
    assert torn.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [torn.name, whole.name]
    wider = sweep_rows(BASE, {**OVER, "workload.arrivals.rate": [0.5, 8, 9]}, output=torn)
    assert wider.num_found == 6
    assert len(wider.rows) == 9


def test_finished_points_are_not_run_again(tmp_path: Path) -> None:
    """What the file says of a point stands, even if it is not what a run would say."""
    path = tmp_path / "rows.csv"
    sweep_rows(BASE, OVER, output=path)
    path.write_text(path.read_text().replace(",completed,arrival_rate", ",seen before,arrival_rate"))
    marked = path.read_text().count("seen before")
    assert marked > 0
    assert [r["verdict"] for r in sweep_rows(BASE, OVER, output=path).rows].count("seen before") == marked


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("rows.txt", None, "must end in .csv, .jsonl, .parquet"),
        ("none/rows.csv", None, "there is no folder"),
        ("rows.csv", "a,b\n1,2\n", "holds a sweep over a, b, not over"),
        ("rows.jsonl", '{"a": 1}\n', "holds a sweep over a, not over"),
        ("rows.parquet", "not parquet", "is not a Parquet file"),
    ],
)
def test_another_file_is_left_alone(tmp_path: Path, name: str, contents: str | None, said: str) -> None:
    path = tmp_path / name
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(KvplanError) as error:
        sweep_rows(BASE, OVER, output=path)
    assert said in str(error.value)
    if contents is not None:
        assert path.read_text() == contents


def test_columns_of_another_version_are_said(tmp_path: Path) -> None:
    """The same keys, a figure missing."""
    path = tmp_path / "rows.jsonl"
    row = sweep_rows(BASE, OVER, sample=1).rows[0]
    path.write_text(json.dumps({k: v for k, v in row.items() if k != "accuracy_low"}) + "\n")
    with pytest.raises(KvplanError, match="has the columns of another version of kvplan"):
        sweep_rows(BASE, OVER, output=path)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    file = SweepFile(path, tuple(OVER))
    file.open()
    rows = sweep_rows(BASE, OVER).rows
    file.add(rows[0])
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KvplanError, match=r"No space left on device; 1 finished rows are kept; run the same"):
        file.add(rows[1])
    with pytest.raises(KvplanError, match="No space left"):
        file.finish([row[HASH] for row in rows])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_last_row_without_its_end_is_completed(tmp_path: Path, suffix: str) -> None:
    """An editor took the last newline off: the row counts, and the next one is not glued to it."""
    path = tmp_path / f"rows{suffix}"
    whole = sweep_rows(BASE, OVER, output=path).rows
    text = path.read_text()
    path.write_text(text.removesuffix("\n"))
    again = sweep_rows(BASE, {**OVER, "workload.arrivals.rate": [0.5, 8, 9]}, output=path)
    assert again.num_found == len(whole)
    assert path.read_text().startswith(text.splitlines()[0])
    assert len(path.read_text().splitlines()) == len(again.rows) + (suffix == ".csv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_two_sweeps_fill_one_file(tmp_path: Path, suffix: str) -> None:
    """Whichever ends first, the rows of both are there, whole and in order."""
    path, other = tmp_path / f"rows{suffix}", tmp_path / f"other{suffix}"
    whole = sweep_rows(BASE, OVER, output=other).rows
    one, two = SweepFile(path, tuple(OVER)), SweepFile(path, tuple(OVER))
    one.open()
    two.open()
    for i, row in enumerate(whole):
        (one if i % 2 else two).add(row)
    one.finish([row[HASH] for row in whole])
    two.add(whole[0])
    two.finish([row[HASH] for row in whole])
    assert path.read_bytes() == other.read_bytes()


def test_no_cell_of_a_sweep_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of the user's, as keys and in errors, are text to a spreadsheet; found again as they were."""
    path, key = tmp_path / "rows.csv", "name"
    texts = ["=HYPERLINK(1)", "-x", "@a", "it's", "'=b"]
    rows = [{HASH: f"{n:016x}", key: text, **error_row(text)} for n, text in enumerate(texts)]
    file = SweepFile(path, (key,))
    file.open()
    for row in rows:
        file.add(row)
    file.finish([row[HASH] for row in rows])
    cells = [cell for line in csv.reader(path.read_text().splitlines()) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    again = SweepFile(path, (key,))
    again.open()
    assert [(row[key], row["error"]) for row in again.found.values()] == [(text, text) for text in texts]
    scenario = tmp_path / "my.yaml"
    scenario.write_text(json.dumps(BASE))
    assert run(["sweep", str(scenario), "--over", "name==x,-y", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert [line[0] for line in csv.reader(out.splitlines())][1:] == ["'=x", "'-y"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hello", "line 2: 'hello' is no row"),
        ('{"point": 3', "line 2: .* is no row"),
        ("[" * 100_000, "line 2: .* is no row"),
        ({"point": ["x"]}, "point cannot be"),
        ({"completed": "many"}, "completed cannot be 'many'"),
        ({"completed": 10**40}, "completed cannot be"),
        ({"mean_ttft_ms": float("nan")}, "mean_ttft_ms cannot be 'nan'"),
        ({"error": 5}, "error cannot be '5'"),
    ],
)
def test_a_line_that_is_no_row_is_named_and_kept(tmp_path: Path, line: str | Row, said: str) -> None:
    """Nothing that somebody wrote is dropped in silence."""
    path = tmp_path / "rows.jsonl"
    sweep_rows(BASE, OVER, output=path)
    first, second, *rest = path.read_text().splitlines()
    bad = line if isinstance(line, str) else json.dumps(json.loads(second) | line)
    path.write_text("\n".join([first, bad, *rest]) + "\n")
    before = path.read_bytes()
    with pytest.raises(KvplanError, match=said):
        sweep_rows(BASE, OVER, output=path)
    assert path.read_bytes() == before


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    sweep_rows(BASE, OVER, output=path)
    rows = list(csv.reader(path.read_text().splitlines()))
    rows[1][rows[0].index("completed")] = "many"
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    with pytest.raises(KvplanError, match=r"line 2: .* is no row of this sweep"):
        sweep_rows(BASE, OVER, output=path)


@pytest.mark.parametrize(("workers", "stop"), [(1, "SIGINT"), (2, "SIGINT"), (2, "SIGKILL")])
def test_what_was_finished_survives(tmp_path: Path, workers: int, stop: str) -> None:
    """Ctrl-C exits with 130 and one line, a kill with nothing; both leave every finished row."""
    scenario, path = tmp_path / "s.yaml", tmp_path / "rows.csv"
    scenario.write_text(json.dumps(BASE | {"workload": {**BASE["workload"], "num_requests": 150}}))
    command = [sys.executable, "-m", "kvplan", "sweep", str(scenario), "--quiet", "-o", str(path), "--workers",
               str(workers), "--over", "workload.seed=" + ",".join(map(str, range(1000)))]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          cwd=Path(kvplan.__file__).parent.parent) as process:  # fmt: skip
        while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 4):
            time.sleep(0.02)
        os.killpg(process.pid, getattr(signal, stop))
        _, said = process.communicate(timeout=60)
    found = rows_of(path)
    if stop == "SIGINT":
        assert process.returncode == 130
        assert f"interrupted; {len(found)} of 1,000 points are finished" in said
        assert "Traceback" not in said
    assert 3 <= len(found) < 1000
    whole = [row for row in found if row["error"] is not None]
    assert all(row["verdict"] == "completed" for row in whole[:-1])
    assert len({row[HASH] for row in whole}) == len(whole)


@pytest.mark.parametrize("is_written", [False, True])
def test_ctrl_c_while_a_row_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """What is told as finished is in the file, once, whether the signal came before or after the disk took it."""
    append, told = sweep_file.append_whole, []

    def interrupted(path: Path, text: str) -> None:
        told.append(text)
        if len(told) != 3 or is_written:
            append(path, text)
        if len(told) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep_file, "append_whole", interrupted)
    path = tmp_path / "rows.csv"
    found = sweep_rows(BASE, OVER, output=path)
    assert found.interrupted
    assert len(found.rows) == 3
    assert [row[HASH] for row in rows_of(path)] == [row[HASH] for row in found.rows]


def test_a_worker_leaves_ctrl_c_to_its_parent() -> None:
    """A signal that comes between two points neither ends a worker nor makes it speak; the parent still hears it."""
    points = make_points(read_base(BASE), make_axes({"workload.seed": range(4)}))
    before = signal.getsignal(signal.SIGINT)

    def ignored(scenario: Scenario) -> Row:
        return {"ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}

    assert [done.row["ignored"] for done in execute(points, Execution(workers=2), ignored)] == [True] * 4
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_writes_csv_or_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text(json.dumps(BASE))
    words = [
        "sweep",
        str(scenario),
        "--quiet",
        "--workers",
        "1",
        "--over",
        "gpu=h100,nonsense",
        "replicas=1,2",
    ]
    assert run(words) == 0
    out = capsys.readouterr()
    assert [row["gpu"] for row in csv.DictReader(out.out.splitlines())] == [
        "h100",
        "h100",
        "nonsense",
        "nonsense",
    ]
    assert "2 of 4 points have no figures; the first: unknown GPU 'nonsense'" in out.err
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [point["replicas"] for point in document["points"]] == [1, 2, 1, 2]
    assert run(["sweep", str(scenario), "--quiet", "--over", "gpu=nonsense"]) == 1


def test_axes_are_read_as_yaml() -> None:
    assert parse_axis("a.b=1,2.5,x,true,null").values == (1, 2.5, "x", True, None)
    assert make_axes({"gpu": "h100", "seed": range(3)}) == [Axis("gpu", ("h100",)), Axis("seed", (0, 1, 2))]


def test_rows_have_ranges_and_say_what_those_could_turn() -> None:
    """Three runs: the point and both ends. Stated steps have none to spread; without ranges the columns stay empty."""
    base = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100", "slo": {"tpot_ms": 8.5},
        "workload": {"num_requests": 40, "prompt": 300, "answer": 60, "arrivals": {"kind": "poisson", "rate": 10}},
    }  # fmt: skip
    (row,) = sweep_rows(base, {"engine.max_num_seqs": [32]}).rows
    alone = run_point(parse_scenario(base | {"engine": {"max_num_seqs": 32}}))
    ends = [
        run_point(parse_scenario(base | {"engine": {"max_num_seqs": 32}}), end) for end in find_ends(False)
    ]
    for name in RANGED:
        if alone[name] is None:
            assert row[f"{name}_low"] is None
            continue
        low, high = (row[f"{name}_{end}"] for end in ("low", "high"))
        both = sorted([alone[name], *(end[name] for end in ends)])
        assert low <= both[0] <= row[name] <= both[-1] <= high
        assert name in ENERGY or (low, high) == (both[0], both[-1])
    assert row["mean_watts_high"] <= 700
    assert row["slo_met"] is True
    assert "targets are met, and missed at the slow end" in row["unsure"]
    (plain,) = sweep_rows(base, {"engine.max_num_seqs": [32]}, ranges=False).rows
    assert plain["mean_tpot_ms"] == row["mean_tpot_ms"]
    assert plain["mean_tpot_ms_low"] is None
    (stated,) = sweep_rows(base | {"step_time": {"fixed_us": 9000}}, {"engine.max_num_seqs": [32]}).rows
    assert stated["mean_tpot_ms_low"] == stated["mean_tpot_ms"] == stated["mean_tpot_ms_high"]


def test_own_prices_reach_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """simulate, sweep, recommend and compare take the file; an unknown grid is said before anything runs."""
    own = "gpus: {H100: {usd_per_hour: 1.5, date: 2026-10-01, source: our contract}}"
    (tmp_path / "p.yaml").write_text(own)
    (tmp_path / "s.yaml").write_text(json.dumps(BASE | {"slo": {}}))
    scenario, prices = str(tmp_path / "s.yaml"), ["--prices", str(tmp_path / "p.yaml"), "--quiet", "--json"]
    assert run(["simulate", scenario, *prices, "--no-range"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["usd_per_hour"] == 1.5
    assert run(["sweep", scenario, "--over", "gpu=h100", "--workers", "1", "--no-range", *prices]) == 0
    assert json.loads(capsys.readouterr().out)["points"][0]["usd_per_hour"] == 1.5
    search = [
        "--set",
        "slo.tpot_ms=50",
        "--set",
        "search.refine=0",
        "--set",
        "search.span=1",
        "--workers",
        "1",
    ]
    assert run(["recommend", scenario, "--over", "gpu=h100", "--rate", "1", *search, *prices]) == 0
    (best,) = json.loads(capsys.readouterr().out)["candidates"]
    assert (best["usd_per_hour"], best["price_source"]) == (1.5, "our contract, 2026-10-01")
    solve = ["strategy_best_of_n", "--set", "problems.num_problems=2", "--set", "gpu=h100", "--no-range"]
    assert run(["compare", *solve, *prices]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["sources"]["price"] == "our contract, 2026-10-01"
    assert run(["simulate", scenario, "--set", "pricing.grid=worl", "--quiet"]) == 2
    assert "did you mean world" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"file": "none.yaml"}, {"grid": "mars"}])
@pytest.mark.parametrize(("command", "more"), [("sweep", []), ("recommend", ["--rate", "1"])])
def test_prices_of_no_point_are_bad_input(
    command: str, more: list[str], wrong: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file or grid that no point can read ends the search in one line before it begins, as it ends a simulation."""
    (tmp_path / "s.yaml").write_text(json.dumps(BASE | {"pricing": wrong}))
    assert run([command, str(tmp_path / "s.yaml"), "--over", "gpu=h100,h200", "--quiet", *more]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert next(iter(wrong.values())) in said.err
    assert said.err.count("\n") == 1


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """In the middle of a point: nobody is left to burn a core for a sweep that is gone."""
    code = """
import os, time
from kvplan.scenario.schema import load_scenario
from kvplan.search.execution import Execution, run_scenarios

def endless(scenario):
    open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    time.sleep(600)

run_scenarios([load_scenario("chat")] * 2, Execution("local", 2), endless)
"""
    script = tmp_path / "sweep.py"
    script.write_text(code.replace("{sys.argv[1]}", str(tmp_path / "pids")))
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while len(pids := [int(p.name) for p in (tmp_path / "pids").iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)
