"""The first run on a card, rehearsed: every line that only a card reaches is executed here, over a stand-in.

What is not here: how long anything takes. No figure of these tests is a measurement.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="rehearsing a card needs torch")

from cuda_stand_in import CUDA, GRAPH_BYTES, Card, stand_in  # noqa: E402

from kvplan.calibrate import card as entry  # noqa: E402
from kvplan.calibrate.card_memory import UNTOLD, learn_overheads  # noqa: E402
from kvplan.calibrate.measure import (  # noqa: E402
    allocation,
    device,
    grids,
    kernels,
    probes,
    stages,
    steps,
    transformers_batches,
)
from kvplan.calibrate.measurements import read_measurements  # noqa: E402
from kvplan.calibrate.outcome import pool_checks  # noqa: E402
from kvplan.calibrate.session import MeasurementSession  # noqa: E402
from kvplan.cli.main import run  # noqa: E402
from kvplan.ground.errors import KvplanError  # noqa: E402
from kvplan.ground.gpu import get_gpu  # noqa: E402
from kvplan.ground.units import GiB, MiB  # noqa: E402
from kvplan.memory.forward import estimate  # noqa: E402
from kvplan.models.load import load_model  # noqa: E402
from kvplan.profiles.profile import load_profile  # noqa: E402

MEASURE = Path(probes.__file__).parent
SMALL = replace(
    grids.CPU, name="default", kv_dtypes=("bfloat16", "fp8"), models=(grids.TINY, grids.TINY_MOE), batches=(1, 4),
    contexts=(64,), chunks=(32,), pasts=(0, 32), mixed_chunks=(16,),
    mixed_batches=(4,), mixed_contexts=(256,), gemm_tokens=(1, 16),
    step_batches=(1, 4), step_contexts=(64,), copy_bytes=(1 << 20,), max_pool_bytes=1 << 24, l2_bytes=1 << 16,
)  # fmt: skip


def cuda_lines(path: Path) -> set[int]:
    """Lines of a file that only a card reaches: guarded by a condition that names cuda, or calling torch.cuda."""
    found: set[int] = set()

    def lines(nodes: list[ast.stmt]) -> set[int]:
        return {n.lineno for node in nodes for n in ast.walk(node) if isinstance(n, ast.stmt)}

    def visit(body: list[ast.stmt]) -> None:
        for i, node in enumerate(body):
            test = ast.unparse(node.test) if isinstance(node, ast.If) else ""
            if "'cuda'" in test and "!=" in test and isinstance(node.body[-1], ast.Return | ast.Continue):
                found.update(lines(body[i + 1 :]))
            elif "'cuda'" in test and "==" in test:
                found.update(lines(node.body))
            if "torch.cuda" in ast.unparse(node) and not hasattr(node, "body"):
                found.add(node.lineno)
            for part in ("body", "orelse", "finalbody", "handlers"):
                visit(getattr(node, part, []) if part != "handlers" else [])
            for handler in getattr(node, "handlers", []):
                visit(handler.body)

    visit(ast.parse(path.read_text()).body)
    return found


@pytest.fixture
def card() -> Iterator[Card]:
    """A stand-in for a Hopper card, over the small grid; its clock says the same of everything."""
    with played() as found:
        yield found


@contextmanager
def played() -> Iterator[Card]:
    """One card for the duration, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    right = {"triton": (kernels.sdpa_kernel, "triton")}
    unlimited, ceilings_of = probes.Ceilings(), probes.ceilings_of
    with pytest.MonkeyPatch.context() as patch, stand_in() as found:
        patch.setitem(grids.GRIDS, "default", SMALL)
        patch.setitem(probes.TARGET_S, "cuda", 1e-3)
        patch.setattr(probes, "MIN_REPEATS", 1)
        patch.setattr(kernels, "find_spec", lambda name: name == "triton" or None)
        patch.setattr(kernels, "DECODE_KERNELS", right)
        patch.setattr(allocation, "DECODE_KERNELS", right)
        patch.setattr(kernels, "MIXED_KERNELS", right)
        patch.setattr(stages.attention, "mla_decode", lambda batch, rope: lambda: batch.q)
        patch.setattr(torch, "_grouped_mm", _grouped, raising=False)
        patch.setattr(torch, "_scaled_mm", lambda a, b, scale_a, scale_b, out_dtype: a.float() @ b.float())
        patch.setattr(stages, "measure_batching", lambda *args: "")
        patch.setattr(stages, "ceilings_of", lambda *args: ceilings_of(*args) and unlimited)
        yield found
    torch.set_num_threads(threads)


class Rehearsal(NamedTuple):
    """One whole run: its file, the card it was played on, the lines of the measure room that ran."""

    path: Path
    card: Card
    ran: dict[str, set[int]]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """All stages to their end, once for every test that asks what came of it."""
    ran: dict[str, set[int]] = {}
    room = str(MEASURE)

    def local(frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            ran.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
        return local

    def call(frame: Any, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(room) else None

    before = sys.gettrace()
    with played() as card:
        sys.settrace(call)
        session = entry.measure_card(tmp_path_factory.mktemp("card") / "m.jsonl")
        assert kernels.num_sms(CUDA) == 132
        assert device.free_bytes(CUDA) == card.free_bytes
        # kernels of Triton's and batches of transformers have tests of their own
        assert transformers_batches.Recorder(None, print, [], CUDA, 0.0)._now() > 0
        sys.settrace(before)
    return Rehearsal(session.path, card, ran)


def _grouped(rows: Any, weights: Any, offs: Any) -> Any:
    starts = [0, *offs.tolist()]
    return torch.cat([rows[a:b] @ w for a, b, w in zip(starts, starts[1:], weights, strict=False)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_that_needs_a_card_is_rehearsed(rehearsed: Rehearsal) -> None:
    """All stages run to their end: at least 95 % of the lines guarded by a CUDA condition were executed."""
    found = rows(rehearsed.path)
    assert found[0]["gpu"] == "NVIDIA H100 80GB HBM3"
    failed = [row for row in found if "skipped" in row]
    assert not failed, {row["skipped"] for row in failed}
    ops = {row["op"] for row in found}
    assert ops >= {
        "memory_context", "memory_pool", "memory_growth", "memory_largest_pool", "memory_activation",
        "memory_sampler", "memory_cuda_graph", "memory_runtime", "copy", "gemm", "moe", "decode_attention",
        "prefill_attention", "mixed_attention", "mla_decode", "decode_step", "eager_step", "prefill_step",
        "mixed_step", "eager_mixed_step", "draft_step", "verify_step", "host_step", "sampling", "shared_attention",
    }  # fmt: skip
    assert rehearsed.card.graphs
    wanted = {(path.name, line) for path in MEASURE.glob("*.py") for line in cuda_lines(path)}
    missed = sorted(
        (name, line) for name, line in wanted if line not in rehearsed.ran.get(str(MEASURE / name), ())
    )
    share = 1 - len(missed) / len(wanted)
    assert share >= 0.95, (f"{share:.1%} of {len(wanted)}", missed)


def test_the_overheads_of_a_rehearsed_card_serve_an_estimate(rehearsed: Rehearsal) -> None:
    """Memory rows become the profile's memory section: CUDA's total and graphs as played, the rest as bundled."""
    memory = learn_overheads(read_measurements([rehearsed.path]), get_gpu("h100"), "vllm")
    assert memory is not None
    assert memory.total_gib["h100-sxm"].value == 80
    graph = memory.graph_mib_per_layer["hopper"]
    assert graph.value == GRAPH_BYTES / MiB / grids.TINY.num_layers
    assert memory.vision_gib.source.startswith(UNTOLD)
    plan = estimate(load_model("Qwen/Qwen3-8B"), get_gpu("h100"), profile=memory)
    assert plan.budget.total.size.value == 80 * GiB


def test_a_time_below_the_floor_is_refused(card: Card, tmp_path: Path) -> None:
    """Seconds that beat the measured copy and product rates are no measurement; the row says so and is not fitted."""
    session = MeasurementSession(tmp_path / "m.jsonl", {"machine": "card"})
    fast = probes.Ceilings(1e9, 1e12)
    one = probes.Probe("gemm", {"dtype": "bfloat16"}, lambda: [lambda: None], 1e7, 1e6, 1e7)
    card.event_s = 1e-3
    probes.run([one], session, CUDA, ceilings=fast)
    [row] = rows(session.path)
    assert "not a measurement" in row["skipped"]
    assert "time_s" not in row
    small = replace(one, point={"dtype": "fp8"}, touched_bytes=0.0)
    probes.run([small], session, CUDA, ceilings=fast)
    assert "time_s" in rows(session.path)[-1]  # served from the cache: its bytes set no floor


class Clock:
    """Time that passes only where something is measured."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def measure(self, *args: Any) -> dict[str, Any]:
        self.now += 2.0
        return {"time_s": 1.0, "spread": 0.0, "num_repeats": 5, "noisy": False}

    def release(self, *args: Any) -> None:
        self.now += 1.0


@pytest.fixture
def clock(card: Card, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Probes of 2 s and memory rows of 1 s, by the clock alone."""
    found = Clock()
    monkeypatch.setattr(probes.time, "monotonic", found.monotonic)
    monkeypatch.setattr(probes, "measure", found.measure)
    monkeypatch.setattr(allocation, "release", found.release)
    return found


def test_a_short_budget_is_kept(card: Card, clock: Clock, tmp_path: Path) -> None:
    """Memory stage included, measuring ends within 1.2 times the time given, and further rounds too."""
    path = entry.measure_card(tmp_path / "m.jsonl", rounds=3, budget_s=30).path
    assert clock.now <= 1.2 * 30
    assert any("time_s" in row for row in rows(path))


def test_a_time_limit_ends_in_the_middle_and_the_next_call_goes_on(
    card: Card, clock: Clock, tmp_path: Path
) -> None:
    """What was measured stays, every stage says what it left, and another call measures only that."""
    out = tmp_path / "m.jsonl"
    entry.measure_card(out, budget_s=60)
    assert clock.now <= 1.2 * 60
    first = rows(out)
    assert any("no time left for" in str(row.get("skipped")) for row in first)
    timed = {row["key"] for row in first if "time_s" in row}
    assert timed
    entry.measure_card(out)
    keys = [row["key"] for row in rows(out) if "time_s" in row]
    assert len(keys) == len(set(keys)) > len(timed)
    pools = [row for row in rows(out) if row["op"] == "memory_pool"]
    assert len(pool_checks(out)) == len(SMALL.pool_shapes) * len(SMALL.kv_dtypes) <= len(pools)


def test_another_program_on_the_card_is_refused(card: Card, tmp_path: Path) -> None:
    """NVML names it; nothing is measured."""
    card.strangers = (4711,)
    with pytest.raises(KvplanError, match="process 4711"):
        entry.measure_card(tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


def test_a_kernel_that_returns_nonsense_is_passed_over(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are not attention: the next kernel is taken; where all are wrong, the KV dtype is left out."""
    wrong = {"mine": (lambda batch: lambda: batch.q * 0, "triton")}
    monkeypatch.setattr(kernels, "DECODE_KERNELS", wrong)
    monkeypatch.setattr(kernels, "MIXED_KERNELS", wrong)
    found = kernels.choose_kernels(CUDA, ["bfloat16"])
    assert found.decode["bfloat16"].name == "sdpa"
    assert found.mixed == {}
    monkeypatch.setattr(kernels, "sdpa_kernel", wrong["mine"][0])
    assert kernels.choose_kernels(CUDA, ["bfloat16"]).decode == {}


def test_no_driver_is_one_line(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch without a card says so; NVML without a driver leaves its figures out."""
    pynvml = sys.modules["pynvml"]

    def no_driver() -> None:
        raise pynvml.NVMLError("Driver Not Loaded")

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert device.clocks(CUDA) == {}
    assert device.used_bytes(CUDA) is None
    assert device.strangers("cuda") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KvplanError, match="no CUDA device"):
        device.pick_device("cuda")


def test_a_card_without_room_shrinks_the_grid(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models too large for the card are notes in the file; everything else is measured."""

    def no_room(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 15.00 GiB")

    steady = probes.Timing(1e-3, 0.0, 5)  # what is timed is of no account here
    monkeypatch.setattr(probes, "time_calls", lambda *args: steady)
    for module in (steps, allocation):
        monkeypatch.setattr(module, "Decoder", no_room)
    found = rows(entry.measure_card(tmp_path / "m.jsonl").path)
    skipped = {row["op"] for row in found if row.get("skipped") == "out of memory"}
    assert skipped >= {"decode_step", "eager_step", "host_step", "memory_graph_rows"}
    assert {row["op"] for row in found if "time_s" in row} >= {"decode_attention", "gemm", "prefill_step"}


LAPTOP = probes.Ceilings(2e11, 2e13, 32 << 20)
"""Rates of a laptop card at a low power limit."""


def test_a_laptop_card_is_measured_from_end_to_end(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 GiB, a mobile name, a low power limit, no room for CUDA graphs: a profile comes out, and a plan of it."""
    card.name, card.capability, card.num_sms, card.power_w = (
        "NVIDIA GeForce RTX 4060 Laptop GPU",
        (8, 9),
        24,
        45,
    )
    card.total_bytes, card.free_bytes = int(7.75 * GiB), int(6.9 * GiB)

    def no_graphs(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def timed(probe: probes.Probe, *args: Any) -> dict[str, Any]:
        if probe.point.get("mode") == "graph":
            no_graphs()
        wait = 3e-4 * int(probe.point.get("num_layers", 0))
        return {"time_s": 2e-5 + wait + LAPTOP.floor_s(replace(probe, touched_bytes=1e12)), "noisy": False}

    monkeypatch.setattr(allocation, "captured", no_graphs)
    monkeypatch.setattr(probes, "measure", timed)
    wide = replace(
        SMALL, contexts=grids.DEFAULT.contexts, batches=(1, 16, 64), attention=grids.DEFAULT.attention[:4],
        gemm_tokens=grids.DEFAULT.gemm_tokens, chunks=(32, 512), models=(grids.TINY, grids.TINY_DEEP),
    )  # fmt: skip
    monkeypatch.setitem(grids.GRIDS, "default", wide)
    m, p, svg = tmp_path / "m.jsonl", tmp_path / "p.json", tmp_path / "fit.svg"
    files = ["--measurements", str(m), "-o", str(p), "--plot", str(svg)]
    assert run(["calibrate", "--quiet", *files]) == 0
    profile = load_profile(p)
    assert profile.gpu == "rtx-4060-laptop"
    assert profile.timing is not None
    assert profile.memory is not None
    assert profile.memory.total_gib["rtx-4060-laptop"].value == 7.75
    assert profile.memory.graph_mib_per_layer["ada"].source.startswith(UNTOLD)
    assert "out of memory" in {row.get("skipped") for row in rows(m)}
    assert "</svg>" in svg.read_text()
    capsys.readouterr()
    words = [
        "--gpu",
        "rtx-4060-laptop",
        "--profile",
        str(p),
        "--max-model-len",
        "8192",
        "--enforce-eager",
        "--json",
    ]
    assert run(["estimate", "Qwen/Qwen3-1.7B", *words]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]


def test_models_too_large_for_a_card_are_cut_to_layers_that_fit() -> None:
    """An H100 measures every model whole, a card of 8 GiB a few layers of each, and pools of half its memory."""
    large, small = (grids.fitting_grid(grids.DEFAULT, size * GiB) for size in (78.6, 6.9))
    assert large == grids.DEFAULT
    assert all(grids.weight_bytes(model, 1 << 20) < 6.9 * GiB for model in small.models)
    assert small.max_pool_bytes == int(3.45 * GiB)
