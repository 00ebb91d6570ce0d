"""The batches of a real scheduler: recorded as they ran, kept apart from the fit, predicted, or one line why not."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from places import FIXTURES

torch = pytest.importorskip("torch", reason="measuring a card needs torch")

from kvplan.calibrate.fit.batches import AS_CALIBRATED, REFITTED, _as_computed, check_batches  # noqa: E402
from kvplan.calibrate.fit.terms import predict_family, predict_steps  # noqa: E402
from kvplan.calibrate.measure import device, transformers_batches  # noqa: E402
from kvplan.calibrate.measure.grids import (  # noqa: E402
    CPU,
    LLAMA_8B,
    Serving,
    model_facts,
)
from kvplan.calibrate.measure.transformers_batches import BatchedRequest, Recorder, batch_shape, draw_requests  # noqa: E402
from kvplan.calibrate.measurements import read_measurements  # noqa: E402
from kvplan.calibrate.outcome import skipped_points  # noqa: E402
from kvplan.calibrate.session import MeasurementSession, batches_path, open_session  # noqa: E402
from kvplan.cli.profile_report import batch_lines, skipped_lines  # noqa: E402
from kvplan.ground.gpu import get_gpu  # noqa: E402
from kvplan.profiles.profile import load_profile  # noqa: E402
from kvplan.profiles.timing_profile import TimingProfile  # noqa: E402

DEVICE = torch.device("cpu")
RECORDED = FIXTURES / "m.transformers.jsonl"
"""46 of the 330 batches of transformers 5.19 on one CPU thread (the model `tiny-4` of the CPU grid)."""


@pytest.fixture
def session(tmp_path: Path) -> MeasurementSession:
    return open_session(tmp_path / "m.jsonl", device.machine_facts(DEVICE))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_is_told_by_its_sums() -> None:
    """Decodes attend to past and themselves, a chunk to its past and half of itself; all its KV is counted once."""
    shape = batch_shape([(99, 1), (199, 1), (0, 64), (32, 16)])
    assert shape == {
        "op": "mixed_step", "num_tokens": 82, "num_decodes": 2, "decode_context": 300, "num_prefill_tokens": 80,
        "num_prefills": 2, "prefill_attention": 64 * 32 + 16 * 40, "kv_tokens": 100 + 200 + 64 + 48,
    }  # fmt: skip
    assert batch_shape([(5, 1)])["op"] == "decode_step"
    assert batch_shape([(0, 5)])["op"] == "prefill_step"


@pytest.mark.parametrize("serving", [CPU.serving, Serving(LLAMA_8B, 200, 6.0, 512, 128, 16384, 512, 22.0)])
def test_requests_are_drawn_once_and_for_all(serving: Serving) -> None:
    """The same seed gives the same requests, another other ones; every request fits the pool alone."""
    first, again, other = (draw_requests(serving, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == serving.num_requests
    assert all(a.arrival < b.arrival for a, b in pairwise(first))
    assert max(r.prompt_tokens + r.output_tokens for r in first) < 0.85 * serving.pool_tokens
    assert min(min(r.prompt_tokens, r.output_tokens) for r in first) >= 2


def test_a_small_card_serves_a_shallower_model() -> None:
    """Layers are halved until weights and KV leave room; a card with room for all keeps all of them."""
    serving = Serving(LLAMA_8B, 200, 6.0, 512, 128, 16384, 512, 22.0)
    depths = [
        transformers_batches.fitting(serving, gib * 2**30).model.num_layers for gib in (141, 24, 16, 8, 1)
    ]
    assert depths == [32, 32, 16, 8, 1]
    assert transformers_batches.fitting(serving, 141 * 2**30) == serving


class FakeProcessor:
    """A scheduler of one chunk or one token a batch for every request, with transformers' three calls and names."""

    def __init__(self, breaks_at: int = 10**9) -> None:
        self.waiting: list[BatchedRequest] = []
        self.active: list[Any] = []
        self.ran, self.breaks_at = 0, breaks_at
        self.inputs_and_outputs = SimpleNamespace(requests_in_batch=[])
        self.scheduler = SimpleNamespace(waiting_requests=self.waiting)

    def has_pending_requests(self) -> bool:
        return bool(self.waiting or self.active)

    def prepare_next_batch(self) -> bool:
        for request in self.waiting:
            self.active.append(SimpleNamespace(position_offset=0, request=request))
        self.waiting.clear()
        batch = []
        for state in self.active:
            new = 1 if state.position_offset else state.request.prompt_tokens
            state.position_offset += new
            batch.append(SimpleNamespace(state=state, query_length=new))
        self.inputs_and_outputs.requests_in_batch = batch
        return bool(batch)

    def _generation_step(self, model: Any) -> None:
        self.ran += 1
        if self.ran == self.breaks_at:
            raise torch.OutOfMemoryError("no room for the mask\nand a long dump")

    def update_batch(self) -> None:
        self.active = [
            s
            for s in self.active
            if s.position_offset - s.request.prompt_tokens + 1 < s.request.output_tokens
        ]


def drive(
    processor: FakeProcessor, requests: list[BatchedRequest], deadline: float = float("inf")
) -> Recorder:
    """transformers' loop, in this thread."""
    recorder = Recorder(processor, processor.waiting.append, list(requests), DEVICE, deadline)
    recorder.install()
    try:
        while not recorder.idle.is_set():
            if processor.prepare_next_batch():
                processor._generation_step(None)
                processor.update_batch()
    except torch.OutOfMemoryError:
        pass
    return recorder


def test_every_batch_that_ran_is_recorded() -> None:
    """Each token is computed once: over all batches the sums are those of the requests, whoever shared a batch."""
    requests = [BatchedRequest(0.5, 8, 4), BatchedRequest(2.0, 16, 6), BatchedRequest(40.0, 5, 3)]
    processor = FakeProcessor()
    recorder = drive(processor, requests)
    assert processor.ran == len(recorder.rows)
    assert sum(r["num_prefill_tokens"] for r in recorder.rows) == 8 + 16 + 5
    assert sum(r["num_decodes"] for r in recorder.rows) == 3 + 5 + 2
    assert {r["op"] for r in recorder.rows} == {"prefill_step", "decode_step", "mixed_step"}
    assert all(r["time_s"] >= r["forward_s"] >= 0 for r in recorder.rows)


def test_arrivals_follow_the_clock_of_batches_and_skip_idle_time() -> None:
    """A request joins once so many batches ran, or at once where the engine would stand idle."""
    requests = [BatchedRequest(0.0, 4, 9), BatchedRequest(3.0, 6, 2), BatchedRequest(1000.0, 7, 2)]
    joined = [r["num_prefill_tokens"] for r in drive(FakeProcessor(), requests).rows]
    assert joined[:5] == [4, 0, 0, 6, 0]
    assert joined[9] == 7
    assert len(joined) == 11


def test_a_run_past_its_deadline_hands_in_no_more() -> None:
    """The budget ends a run where it is."""
    assert drive(FakeProcessor(), [BatchedRequest(0.0, 4, 9)], deadline=time.perf_counter() - 1).rows == []


def test_batches_before_an_error_are_kept() -> None:
    """Out of memory in the third batch: two are recorded, and the error is known though the loop swallows it."""
    recorder = drive(FakeProcessor(breaks_at=3), [BatchedRequest(0.0, 4, 9)])
    assert len(recorder.rows) == 2
    assert isinstance(recorder.error, torch.OutOfMemoryError)


def fake_transformers(monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    module = ModuleType("transformers")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    module.__version__ = "9.9"  # type: ignore[attr-defined]
    for name, value in names.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_without_transformers_one_line_says_so(
    session: MeasurementSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is in the file once, however often it is tried; what a fit reads is untouched."""
    monkeypatch.setattr(transformers_batches, "find_spec", lambda name: None)
    for _ in range(2):
        note = transformers_batches.measure_batching(CPU, session, DEVICE)
        assert note == "batches of transformers not measured: transformers is not installed"
    assert [row["op"] for row in rows(session.path)] == ["machine", "batching"]
    assert skipped_points(session.path) == {note: 1}
    assert skipped_lines({note: 1}) == ["\nskipped:", f"     1 x {note}"]
    assert not batches_path(session.path).exists()
    batches_path(session.path).touch()  # a later run did measure them
    assert skipped_points(session.path) == {}


def test_another_interface_is_one_line(session: MeasurementSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers without continuous batching is named with what it lacks; nothing is raised."""
    fake_transformers(monkeypatch)
    note = transformers_batches.measure_batching(CPU, session, DEVICE)
    assert note.startswith("batches of transformers not measured: AttributeError: ")
    assert "\n" not in note


def test_a_run_that_broke_off_keeps_its_batches_and_is_run_again(
    session: MeasurementSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a broken run stay in the file, whole runs are not repeated, a broken one is."""
    fake_transformers(monkeypatch)
    ran: list[float] = []

    class FakeEngine:
        def __init__(self, *args: Any) -> None:
            pass

        def run(self, requests: list[BatchedRequest]) -> Recorder:
            ran.append(requests[0].arrival)
            return drive(FakeProcessor(3 if len(ran) == 2 else 10**9), requests)

    monkeypatch.setattr(transformers_batches, "Engine", FakeEngine)
    grid = replace(CPU, serving=CPU.serving._replace(repeats=1))
    note = transformers_batches.measure_batching(grid, session, DEVICE)
    assert note == "batches of transformers not measured: OutOfMemoryError: no room for the mask"
    file = batches_path(session.path)
    kept = rows(file)
    assert [row["run"] for row in kept if "run" in row][-2:] == [1, 1]
    assert transformers_batches.measure_batching(grid, session, DEVICE) == ""
    assert rows(file)[: len(kept)] == kept
    first, second = (draw_requests(CPU.serving, seed)[0].arrival for seed in (0, 1))
    assert ran == [first, second, second]
    assert all(row["held_out"] == (row["run"] == 1) for row in rows(file) if "run" in row)
    assert transformers_batches.measure_batching(grid, session, DEVICE) == ""
    assert len(ran) == 3


def test_repetitions_give_medians_of_the_same_batches() -> None:
    """Each run is served so often as asked, in turn; a batch's time is the median of those that ran just that batch."""

    def row(tokens: int, time_s: float) -> dict[str, Any]:
        return {"op": "decode_step", "num_tokens": tokens, "time_s": time_s, "forward_s": time_s / 2}

    repeats = [
        [row(1, 1.0), row(2, 5.0)],
        [row(1, 3.0), row(2, 7.0), row(3, 9.0)],
        [row(1, 8.0), row(9, 0.1)],
    ]
    found = transformers_batches.typical(repeats)
    assert [(r["time_s"], r["forward_s"], r["num_repeats"]) for r in found] == [
        (3.0, 1.5, 3), (6.0, 3.0, 2), (9.0, 4.5, 1),
    ]  # fmt: skip
    assert transformers_batches.typical([[]]) == transformers_batches.typical([]) == []


GEMM = {
    "gemm.bf16.bytes_per_s": 4.0e12, "gemm.bf16.flops_per_s": 6.5e14, "gemm.bf16.p_norm": 2.5,
    "gemm.bf16.kernel_s": 3e-6,
}  # fmt: skip
ATTENTION = {
    "gqa.bf16.bytes_per_s": 8e11, "gqa.bf16.flops_per_s": 1.5e14, "gqa.bf16.kernel_s": 9e-6,
    "gqa.bf16.sequence_s": 5e-8, "gqa.bf16.extra_keys": 200.0,
}  # fmt: skip


def written(tmp_path: Path, launch_s: float) -> Path:
    """A card whose products cost `GEMM`, and batches of an engine with `ATTENTION` under one mask and such launches."""
    card = {"op": "machine", "machine": "card", "gpu": "NVIDIA H200", "engine": "torch"}
    gemm = [
        {"op": "gemm", "dtype": "bfloat16", "num_tokens": m, "out_features": n, "in_features": k}
        for m in (1, 16, 64, 256, 1024, 4096)
        for n, k in ((6144, 4096), (28672, 4096), (4096, 14336))
    ]
    seconds = predict_family("gemm.bf16", gemm, {})(GEMM)
    lines = [card, *({**r, "time_s": float(s)} for r, s in zip(gemm, seconds, strict=True))]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f"{json.dumps(r)}\n" for r in lines))
    machine = card | {
        "engine": "transformers", "attention": "sdpa", "enforce_eager": True, "pool_tokens": 16384,
        "defaults": model_facts(LLAMA_8B),
    }  # fmt: skip
    batches: list[dict[str, Any]] = []
    for run in (0, 1):
        requests = draw_requests(Serving(LLAMA_8B, 24, 6.0, 512, 64, 16384, 512, 9.0), run)
        batches += [{**r, "run": run, "held_out": run == 1} for r in drive(FakeProcessor(), requests).rows]
    asked = [_as_computed(machine["defaults"] | row, masked=True) for row in batches]
    took = predict_steps(asked, {})(GEMM | ATTENTION | {"step.launch_s": launch_s})
    timed = [{**row, "time_s": float(s)} for row, s in zip(batches, took, strict=True)]
    batches_path(path).write_text("".join(f"{json.dumps(r)}\n" for r in [machine, *timed]))
    return path


@pytest.mark.parametrize("launch_s", [2e-5, 8e-4])
def test_an_engines_constants_are_found_from_one_run_and_hold_in_the_next(
    tmp_path: Path, launch_s: float
) -> None:
    """Batches made of known costs, bound by the card or by launches: refitted, the unseen run is told within 3 %."""
    timing = TimingProfile(coefficients=GEMM | ATTENTION)
    found = check_batches(written(tmp_path, launch_s), timing, get_gpu("h200"))
    assert found is not None
    assert found.note == ""
    errors = {e.regime: e for e in found.errors if e.held_out == REFITTED}
    assert set(errors) == {"decode", "prefill", "mixed"}
    assert max(e.median for e in errors.values()) < 0.03
    assert abs(found.totals[REFITTED]) < 0.02
    assert abs(found.totals[REFITTED]) < abs(found.totals[AS_CALIBRATED])


def test_recorded_batches_are_read_and_predicted(tmp_path: Path) -> None:
    """A real file is a measurement file of its own engine; its errors are of the unseen run alone."""
    found = read_measurements([RECORDED])
    assert found.machine["engine"] == "transformers"
    held = [row for row in found.families["step"] if row["held_out"]]
    shutil.copy(RECORDED, batches_path(tmp_path / "m.jsonl"))
    (tmp_path / "m.jsonl").write_text('{"op": "copy", "time_s": 1}\n{"op": "machine", "machine": "m"}\n')
    timing = load_profile("h200-vllm").timing
    assert timing is not None
    batches = check_batches(tmp_path / "m.jsonl", timing)
    assert batches is not None
    assert sum(e.num_points for e in batches.errors if e.held_out == AS_CALIBRATED) == len(held)
    assert batches.most_tokens <= batches.pool_tokens
    assert batches.note.startswith("not refitted: ")  # there are no products of that machine to hold on to
    text = "\n".join(batch_lines(batches))
    assert "transformers 5.19.0 (sdpa): 46 batches" in text
    assert batch_lines(None) == []


def test_the_fit_of_the_card_does_not_see_the_batches(tmp_path: Path) -> None:
    """Batches lie in a file of their own; putting both into one fit is refused."""
    path = written(tmp_path, 1e-4)
    assert set(read_measurements([path]).families) == {"gemm.bf16"}
    with pytest.raises(Exception, match="fit each engine apart"):
        read_measurements([path, batches_path(path)])


def test_no_batches_is_no_error(tmp_path: Path) -> None:
    """No file, or one without a batch of the unseen run: nothing to say."""
    timing = TimingProfile(coefficients=GEMM | ATTENTION)
    assert check_batches(tmp_path / "m.jsonl", timing) is None
    batches_path(tmp_path / "m.jsonl").write_text('{"op": "machine", "machine": "m"}\n')
    assert check_batches(tmp_path / "m.jsonl", timing) is None


def test_transformers_itself(session: MeasurementSession) -> None:
    """Where transformers is installed, its own scheduler runs two short loads and every batch of them is recorded."""
    pytest.importorskip(
        "transformers", reason="the batches of a real scheduler need transformers 5.17 or later"
    )
    tiny = CPU.serving._replace(repeats=2, num_requests=5, prompt_tokens=24, output_tokens=6, pool_tokens=256)
    grid = replace(CPU, serving=tiny)
    assert transformers_batches.measure_batching(grid, session, DEVICE) == ""
    found = [row for row in rows(batches_path(session.path)) if "run" in row]
    for run in (0, 1):
        asked = draw_requests(tiny, run)
        ran = [row for row in found if row["run"] == run]
        assert sum(row["num_prefill_tokens"] for row in ran) == sum(r.prompt_tokens for r in asked)
        assert sum(row["num_decodes"] for row in ran) == sum(r.output_tokens - 1 for r in asked)
        assert {row["num_repeats"] for row in ran} == {2}
