"""Measuring: the harness keeps what it measured, kernels are right before they are timed, bytes are counted truly."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from kvplan.calibrate.measure import allocation, attention, decoder, device, kernels, probes, steps
from kvplan.calibrate.measure.grids import (
    CPU,
    DEFAULT,
    GRIDS,
    HELD_OUT,
    TINY,
    TINY_MOE,
    AttentionShape,
    weight_bytes,
)
from kvplan.calibrate.measure.probes import Probe
from kvplan.calibrate.session import MeasurementSession, open_session
from kvplan.formulas.graphs import MAX_CAPTURE_SIZE
from kvplan.ground.errors import KvplanError

DEVICE = torch.device("cpu")
TRITON = kernels.Named("triton", kernels.sdpa_kernel)
SDPA = kernels.Kernels({"bfloat16": kernels.Named("sdpa", kernels.sdpa_kernel)}, {})


@pytest.fixture
def session(tmp_path: Path) -> MeasurementSession:
    return open_session(tmp_path / "m.jsonl", device.machine_facts(DEVICE))


def rows(session: MeasurementSession) -> list[dict]:
    return [json.loads(line) for line in session.path.read_text().splitlines()]


def counting_probe(calls: list[int], point: int = 1) -> Probe:
    def prepare() -> list:
        calls.append(point)
        return [lambda: sum(range(2000))]

    return Probe("count", {"n": point}, prepare)


def test_a_finished_point_is_not_measured_again(session: MeasurementSession) -> None:
    """A second run over the same file measures only what is missing, whatever was measured stays."""
    calls: list[int] = []
    assert probes.run([counting_probe(calls)], session, DEVICE) == 1
    again = open_session(session.path, session.machine)
    assert probes.run([counting_probe(calls), counting_probe(calls, 2)], again, DEVICE) == 1
    assert calls == [1, 2]
    assert [r["n"] for r in rows(session) if r["op"] == "count"] == [1, 2]


def test_rounds_are_separate_rows(session: MeasurementSession) -> None:
    """Each round of a probe is a row of its own: repetitions on different minutes."""
    probes.run([counting_probe([])], session, DEVICE, rounds=3)
    assert [r["round"] for r in rows(session) if r["op"] == "count"] == [0, 1, 2]


def test_a_torn_last_line_is_dropped_and_a_torn_middle_named(session: MeasurementSession) -> None:
    """A run killed while writing loses its last row at most; damage elsewhere is an error with its line number."""
    probes.run([counting_probe([])], session, DEVICE)
    whole = session.path.read_text()
    session.path.write_text(whole + '{"op": "cou')
    assert open_session(session.path, session.machine).done == session.done
    assert session.path.read_text() == whole
    session.path.write_text('{"op"\n' + whole)
    with pytest.raises(KvplanError, match=r"m\.jsonl:1: not a JSON object"):
        open_session(session.path, session.machine)


def test_a_file_of_another_machine_is_refused(session: MeasurementSession) -> None:
    """Two machines' figures never end in one file."""
    text = session.path.read_text().replace('"machine": "cpu', '"machine": "gpu')
    session.path.write_text(text)
    with pytest.raises(KvplanError, match="choose another file"):
        open_session(session.path, session.machine)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_is_a_row_and_the_rest_goes_on(session: MeasurementSession, error: Exception) -> None:
    """A probe that does not fit, whoever says so, is noted as skipped; later probes are measured."""

    def too_big() -> list:
        raise error

    probes.run([Probe("count", {"n": 0}, too_big), counting_probe([])], session, DEVICE)
    first, second = (r for r in rows(session) if r["op"] == "count")
    assert first["skipped"] == "out of memory"
    assert "time_s" not in first
    assert second["time_s"] > 0


def test_the_grid_shrinks_after_an_out_of_memory(session: MeasurementSession) -> None:
    """Points of the same op that move more bytes than one that did not fit are not tried; smaller ones are."""
    tried: list[str] = []

    def probe(op: str, size: float, fits: bool = True) -> Probe:
        def prepare() -> list:
            tried.append(f"{op}{size:g}")
            if not fits:
                raise torch.OutOfMemoryError("no room")
            return [lambda: None]

        return Probe(op, {"n": size}, prepare, floor_bytes=size)

    probes.run([probe("a", 5, fits=False), probe("a", 9), probe("a", 2), probe("b", 9)], session, DEVICE)
    assert tried == ["a5", "a2", "b9"]
    skipped = {r["n"]: r["skipped"] for r in rows(session) if "skipped" in r}
    assert skipped == {5: "out of memory", 9: "larger than a point that ran out of memory"}


def test_a_probe_that_fails_costs_only_itself(session: MeasurementSession) -> None:
    """Whatever a kernel's library raises is noted in one line; the next run tries that probe again."""

    def broken() -> list:
        raise LookupError("no kernel image\nlong dump")

    def two() -> list[Probe]:
        return [Probe("count", {"n": 0}, broken), counting_probe([])]

    probes.run(two(), session, DEVICE)
    first, second = (r for r in rows(session) if r["op"] == "count")
    assert first["skipped"] == "LookupError: no kernel image"
    assert second["time_s"] > 0
    again = open_session(session.path, session.machine)
    assert probes.run(two(), again, DEVICE) == 1


def test_a_card_that_fails_ends_the_run(session: MeasurementSession) -> None:
    """A failed card answers nothing more: the run ends at once, and the line says how to go on."""

    def broken() -> list:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    with pytest.raises(KvplanError, match=r"the card fails: .*m\.jsonl, run it again to go on"):
        probes.run([Probe("count", {"n": i}, broken) for i in range(20)], session, DEVICE)
    assert len([r for r in rows(session) if "skipped" in r]) == 1
    again = open_session(session.path, session.machine)
    assert (
        probes.run([counting_probe([], i) for i in range(20)], again, DEVICE) == 19
    )  # all but the one that did it


def test_a_memory_probe_that_fails_costs_only_itself(
    session: MeasurementSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is noted and the next ones run; one that brings the card down ends the run, and is not tried again."""

    def broken(*args: object) -> None:
        raise RuntimeError("cannot be captured")

    def down(*args: object) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(allocation, "pool_rows", broken)
    monkeypatch.setattr(allocation, "graph_rows", down)
    broken.__name__, down.__name__ = "pool_rows", "graph_rows"
    with pytest.raises(KvplanError, match=r"the card fails: .* run it again to go on"):
        allocation.measure_memory(CPU, session, DEVICE)
    skipped = [r["skipped"] for r in rows(session) if "skipped" in r]
    assert skipped[0] == "RuntimeError: cannot be captured"
    before = rows(session)
    allocation.measure_memory(CPU, open_session(session.path, session.machine), DEVICE)
    [after] = rows(session)[len(before) :]
    assert after["key"] == "memory runtime_rows cpu"  # what comes after graphs, which are not tried again


def test_a_kernel_that_never_works_is_left_alone(session: MeasurementSession) -> None:
    """After a few failures the rest of that kind is not tried; other kinds of the same op are."""
    tried: list[str] = []

    def probe(dtype: str, n: int) -> Probe:
        def prepare() -> list:
            tried.append(dtype)
            if dtype == "fp8":
                raise RuntimeError("not implemented for Float8_e4m3fn")
            return [lambda: None]

        return Probe("gemm", {"dtype": dtype, "n": n}, prepare)

    probes.run([probe(dtype, n) for dtype in ("fp8", "bf16") for n in range(8)], session, DEVICE)
    assert tried == ["fp8"] * probes.MOST_FAILURES + ["bf16"] * 8


def test_another_program_is_looked_for_on_the_first_visible_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML is asked about the card that CUDA_VISIBLE_DEVICES puts first, by index or by name, and says who computes."""
    asked: list[object] = []
    nvml = ModuleType("pynvml")
    nvml.NVMLError = OSError  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByIndex = asked.append  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByUUID = asked.append  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda handle: [  # type: ignore[attr-defined]
        SimpleNamespace(pid=os.getpid()),
        SimpleNamespace(pid=4711),
    ]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for visible in ("", "3,1", "GPU-5f"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert device.strangers("cuda") == [4711]
    assert asked == [0, 3, "GPU-5f"]
    assert device.strangers("cpu") == []


def test_timing_repeats_and_measures_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least five repetitions, and the median of what a clock said of each; one odd call does not move it."""
    clock = [0.0]
    odd = iter([0.0] * 6 + [9.0] + [0.0] * 1000)
    monkeypatch.setattr(probes.time, "thread_time", lambda: clock[0])

    def work(seconds: float) -> probes.Timing:
        def call() -> None:
            clock[0] += seconds + next(odd)

        return probes.time_calls([call], DEVICE)

    small, large = work(0.002), work(0.5)
    assert min(small.num_repeats, large.num_repeats) >= probes.MIN_REPEATS
    assert (small.time_s, large.time_s) == (pytest.approx(0.002), pytest.approx(0.5))


def test_no_card_is_one_clear_line() -> None:
    """Asking for a GPU that torch cannot use names the reason and a way on."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(KvplanError, match=r"CPU build|no CUDA device"):
        device.pick_device("cuda")


@pytest.mark.parametrize("lengths", [[1], [16, 17, 15], [300, 5, 64]])
def test_kernel_gives_attention(lengths: list[int]) -> None:
    """The kernel that is timed equals float32 attention over a scattered paged pool, also at block bounds."""
    shape = AttentionShape(num_heads=8, num_kv_heads=2, head_dim=64)
    batch = kernels.make_batch(shape, kernels.decoding(lengths), 16, "float32", DEVICE)
    _, kernel = kernels.choose_kernels(DEVICE, ["float32"]).decode["float32"]
    assert kernels.relative_error(kernel(batch)(), kernels.reference(batch)) < 1e-5


def test_an_unwritten_output_never_passes() -> None:
    """NaN counts as infinitely wrong."""
    assert kernels.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_prefill_call_is_causal_over_its_past() -> None:
    """A chunk over a past equals the last rows of causal attention over the whole."""
    torch.manual_seed(0)
    shape = AttentionShape(4, 2, 32)
    past, chunk = 40, 24
    call = attention.prefill_call(shape, chunk, past, DEVICE, torch.float32)
    whole = attention.prefill_call(shape, chunk, 0, DEVICE, torch.float32)
    assert call().shape == whole().shape == (1, 4, chunk, 32)
    torch.manual_seed(0)
    q = torch.randn(1, 4, chunk, 32)
    k, v = (torch.randn(1, 2, past + chunk, 32).repeat_interleave(2, 1) for _ in "kv")
    scores = q @ k.transpose(-1, -2) * 32**-0.5
    mask = torch.ones(chunk, past + chunk, dtype=torch.bool).tril(past)
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    assert torch.allclose(call(), expected, atol=1e-5)


@pytest.mark.parametrize(("total", "batch"), [(1000, 4), (64, 16), (100_000, 16), (7, 7)])
def test_skewed_lengths_keep_the_sum(total: int, batch: int) -> None:
    """Skewed lengths are positive, as many as asked, and sum to the same context."""
    lengths = attention.skewed(total, batch)
    assert len(lengths) == batch
    assert sum(lengths) == total
    assert min(lengths) >= 1


def test_grouped_experts_equal_each_token_alone() -> None:
    """The expert layer gives each token what its own top-k experts give, whatever else is in the batch."""
    layer = decoder.make_layers(TINY_MOE, 1, DEVICE, torch.float32)[0]
    x = torch.randn(9, TINY_MOE.hidden_size)
    together = decoder.moe(layer, x, 2)
    alone = torch.cat([decoder.moe(layer, row[None], 2) for row in x])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_step_writes_its_tokens_and_gives_one_each() -> None:
    """A decode step returns a token per sequence and writes the new K and V in the last slot of each."""
    step = decoder.Decoder(TINY, kernels.decoding([17, 32, 5]), 16, kernels.sdpa_kernel, DEVICE)
    before = step.batches[0].pool.clone()
    tokens = step.step()
    assert tokens.shape == (3,)
    changed = (step.batches[0].pool != before).any(-1).any(-1)
    assert changed.any(1).sum() == 3


def test_a_mixed_step_gives_a_token_to_each_sequence() -> None:
    """Decodes beside a prompt's chunk: the last token of each gets logits, all new tokens' K and V are written."""
    parts = [*kernels.decoding([17, 32]), (0, 20)]
    torch.manual_seed(1)
    every = decoder.Decoder(TINY, parts, 16, kernels.sdpa_kernel, DEVICE)
    torch.manual_seed(1)
    last = decoder.Decoder(TINY, parts, 16, kernels.sdpa_kernel, DEVICE, samples_all=False)
    before = last.batches[0].pool.clone()
    assert last.step().tolist() == every.step()[[0, 1, 21]].tolist()
    assert (last.batches[0].pool != before).any(-1).any(-1)[:, 0].sum() == 22


def test_mixed_steps_are_what_engines_run() -> None:
    """On a card in a graph up to the largest captured size, eagerly beyond; held out; none reads less than weights."""
    assert steps.CAPTURED == MAX_CAPTURE_SIZE
    on_card = kernels.Kernels({"bfloat16": TRITON}, {"bfloat16": TRITON})
    probes = steps.mixed_step_probes(DEFAULT, torch.device("cuda"), on_card)
    for probe in probes:
        facts = probe.point
        assert facts["held_out"]
        assert facts["num_tokens"] == facts["num_decodes"] + facts["num_prefill_tokens"]
        assert facts["prefill_attention"] == facts["num_prefill_tokens"] ** 2 / 2
        small = facts["num_tokens"] <= MAX_CAPTURE_SIZE
        assert facts["mode"] == ("graph" if small and probe.op == "mixed_step" else "eager")
        assert probe.floor_bytes > weight_bytes(
            next(m for m in DEFAULT.models if m.name == facts["model"]), 1
        )
    assert {p.op for p in probes} == {"mixed_step", "eager_mixed_step"}
    assert {p.point["model"] for p in probes} == {m.name for m in DEFAULT.models}
    assert steps.mixed_step_probes(DEFAULT, torch.device("cuda"), on_card._replace(mixed={})) == []
    here = steps.mixed_step_probes(CPU, DEVICE, SDPA)
    assert {(p.op, p.point["mode"]) for p in here} == {("mixed_step", "eager")}


def test_pool_bytes_equal_the_formula(session: MeasurementSession) -> None:
    """A real KV pool takes 2 * L * H * d * bytes per token, exactly, beyond the allocator's rounding."""
    allocation.measure_memory(CPU, session, DEVICE)
    pools = [r for r in rows(session) if r["op"] == "memory_pool"]
    assert len(pools) == len(CPU.pool_shapes)
    for row in pools:
        assert row["bytes_per_token"] == row["formula_bytes_per_token"]
        assert row["storage_bytes"] == row["formula_bytes_per_token"] * row["block_size"] * row["num_blocks"]


def test_weight_floor_counts_distinct_experts() -> None:
    """One token reads k experts of a layer, many tokens all of them; the floor never falls with the batch."""
    one, two, many = (weight_bytes(TINY_MOE, n) for n in (1, 2, 4096))
    expert = 2 * 3 * TINY_MOE.hidden_size * TINY_MOE.intermediate_size * TINY_MOE.num_layers
    assert two > one
    assert many - one == pytest.approx(expert * (TINY_MOE.num_experts - TINY_MOE.experts_per_token))


def test_default_grid_holds_out_a_model_and_the_long_contexts() -> None:
    """What the error is stated on is measured and marked: a third dense model and every context from 32k up."""
    points = steps.step_probes(DEFAULT, DEVICE, SDPA)
    held = {(p.point["model"], p.point["max_context"] >= 32768) for p in points if p.point["held_out"]}
    assert {name for name, _ in held} >= HELD_OUT
    assert all(p.point["held_out"] for p in points if p.point["max_context"] >= 32768)
    fitted = {p.point["model"] for p in points if not p.point["held_out"]}
    assert len(fitted) == 3
    assert not fitted & HELD_OUT


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_no_probe_exceeds_its_memory_bound(grid) -> None:
    """Every decode probe of every grid stays within the grid's pool bound."""
    for probe in attention.decode_probes(grid, DEVICE, SDPA):
        shape = AttentionShape(*(probe.point[f] for f in AttentionShape._fields))
        assert probe.point["decode_context"] * shape.kv_bytes("bfloat16") <= grid.max_pool_bytes
