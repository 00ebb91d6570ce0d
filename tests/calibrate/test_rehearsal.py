"""The first run on a card, rehearsed: every line that only a card reaches is executed here, over a stand-in.

What is not here: how long anything takes. No figure of these tests is a measurement.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="rehearsing a card needs torch")

from cuda_stand_in import CUDA, Card, stand_in  # noqa: E402

from kvplan.calibrate import card as entry  # noqa: E402
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
from kvplan.calibrate.session import MeasurementSession  # noqa: E402
from kvplan.errors import KvplanError  # noqa: E402

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
def traced() -> Iterator[dict[str, set[int]]]:
    """Lines of the measure room that ran."""
    ran: dict[str, set[int]] = {}

    def local(frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            ran.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
        return local

    def call(frame: Any, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(str(MEASURE)) else None

    before = sys.gettrace()
    sys.settrace(call)
    yield ran
    sys.settrace(before)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    monkeypatch.setitem(grids.GRIDS, "default", SMALL)
    monkeypatch.setitem(probes.TARGET_S, "cuda", 1e-3)
    monkeypatch.setattr(probes, "MIN_REPEATS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name == "triton" or None)
    right = {"triton": (kernels.sdpa_kernel, "triton")}
    monkeypatch.setattr(kernels, "DECODE_KERNELS", right)
    monkeypatch.setattr(allocation, "DECODE_KERNELS", right)
    monkeypatch.setattr(kernels, "MIXED_KERNELS", right)
    monkeypatch.setattr(stages.attention, "mla_decode", lambda batch, rope: lambda: batch.q)
    monkeypatch.setattr(torch, "_grouped_mm", _grouped, raising=False)
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, scale_a, scale_b, out_dtype: a.float() @ b.float())
    monkeypatch.setattr(stages, "measure_batching", lambda *args: "")
    unlimited = probes.Ceilings()  # the stand-in's clock says the same of everything
    monkeypatch.setattr(stages, "ceilings_of", lambda *args: probes.ceilings_of(*args) and unlimited)
    with stand_in() as found:
        yield found
    torch.set_num_threads(threads)


def _grouped(rows: Any, weights: Any, offs: Any) -> Any:
    starts = [0, *offs.tolist()]
    return torch.cat([rows[a:b] @ w for a, b, w in zip(starts, starts[1:], weights, strict=False)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_that_needs_a_card_is_rehearsed(
    card: Card, traced: dict[str, set[int]], tmp_path: Path
) -> None:
    """All stages run to their end: at least 95 % of the lines guarded by a CUDA condition were executed."""
    session = entry.measure_card(tmp_path / "m.jsonl")
    found = rows(session.path)
    assert found[0]["gpu"] == "NVIDIA H100 80GB HBM3"
    failed = [row for row in found if "skipped" in row]
    assert not failed, {row["skipped"] for row in failed}
    ops = {row["op"] for row in found}
    assert ops >= {
        "memory_context", "memory_pool", "memory_growth", "memory_largest_pool", "memory_activation",
        "memory_cuda_graph", "copy", "gemm", "moe", "decode_attention", "prefill_attention", "mixed_attention",
        "mla_decode", "decode_step", "eager_step", "prefill_step", "draft_step", "verify_step", "host_step",
        "sampling", "shared_attention",
    }  # fmt: skip
    assert card.graphs
    assert (
        kernels.num_sms(CUDA) == 132
    )  # kernels of Triton's and batches of transformers have tests of their own
    assert transformers_batches._free_bytes(CUDA) == card.free_bytes
    assert transformers_batches.Recorder(None, print, [], CUDA, 0.0)._now() > 0
    wanted = {(path.name, line) for path in MEASURE.glob("*.py") for line in cuda_lines(path)}
    missed = sorted((name, line) for name, line in wanted if line not in traced.get(str(MEASURE / name), ()))
    share = 1 - len(missed) / len(wanted)
    assert share >= 0.95, (f"{share:.1%} of {len(wanted)}", missed)


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


def test_a_time_limit_ends_in_the_middle_and_the_next_call_goes_on(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured stays, every stage says what it left, and another call measures only that."""
    out = tmp_path / "m.jsonl"
    clock = iter(range(10**6))
    monkeypatch.setattr(probes.time, "monotonic", lambda: float(next(clock)))
    entry.measure_card(out, budget_s=60)
    first = rows(out)
    assert any("no time left for" in str(row.get("skipped")) for row in first)
    timed = {row["key"] for row in first if "time_s" in row}
    assert timed
    monkeypatch.setattr(probes.time, "monotonic", lambda: 0.0)
    entry.measure_card(out)
    keys = [row["key"] for row in rows(out) if "time_s" in row]
    assert len(keys) == len(set(keys)) > len(timed)


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

    for module in (steps, allocation):
        monkeypatch.setattr(module, "Decoder", no_room)
    found = rows(entry.measure_card(tmp_path / "m.jsonl").path)
    skipped = {row["op"] for row in found if row.get("skipped") == "out of memory"}
    assert skipped >= {"decode_step", "eager_step", "host_step", "memory_graph_rows"}
    assert {row["op"] for row in found if "time_s" in row} >= {"decode_attention", "gemm", "prefill_step"}
