"""Memory rows into the overheads of `estimate`: by hand-made rows whose answer is known."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvplan.calibrate.build import build
from kvplan.calibrate.card import write_folder
from kvplan.calibrate.card_memory import UNTOLD, learn_overheads
from kvplan.calibrate.measurements import Measurements
from kvplan.calibrate.two_cards import coefficient_ratios, time_ratios
from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import GiB, MiB
from kvplan.profiles.memory_profile import MemoryProfile, memory_profile
from kvplan.profiles.timing_profile import TimingProfile

MACHINE = {"op": "machine", "machine": "NVIDIA H100 80GB HBM3", "total_bytes": int(79.1 * GiB)}
CONTEXT: dict[str, Any] = {
    "op": "memory_context", "nvml_used_after_context_bytes": 502 * MiB, "torch_reserved_after_context_bytes": 2 * MiB,
    "nvml_used_after_gemm_bytes": 620 * MiB, "torch_reserved_bytes": 20 * MiB,
}  # fmt: skip
RUNTIME = {"op": "memory_runtime", "nvml_used_bytes": 820 * MiB, "torch_reserved_bytes": 20 * MiB}


def learned(*rows: dict[str, Any], engine: str = "vllm") -> MemoryProfile:
    found = learn_overheads(Measurements(MACHINE, {}, 0, rows), get_gpu("h100"), engine)
    assert found is not None
    return found


def test_what_no_row_tells_stays_bundled_and_says_so() -> None:
    """One row of the context: every other figure is the bundled one, named as such."""
    found, bundled = learned(CONTEXT), memory_profile("vllm", (0, 32))
    for name in ("sampler_bytes_per_logit", "forward_scale", "vision_gib", "runtime_gib_per_peer"):
        figure, old = getattr(found, name), getattr(bundled, name)
        assert (figure.value, figure.low, figure.high) == (old.value, old.low, old.high)
        assert figure.source == UNTOLD + old.source
    assert found.total_gib["h100-sxm"].value == pytest.approx(79.1)


def test_a_file_without_memory_rows_of_a_card_has_no_memory_section() -> None:
    """Pools alone, as a CPU measures them, tell the formula, not an overhead."""
    assert learn_overheads(Measurements(MACHINE, {}, 0, [{"op": "memory_pool"}]), None, "vllm") is None


def test_growth_outside_torch_bounds_vllms_from_below_and_is_sglangs_whole() -> None:
    """vLLM's budget begins after the context; SGLang counts the context, 780 MiB here, with its libraries."""
    bundled = memory_profile("vllm", (0, 32)).runtime_gib
    assert learned(CONTEXT, RUNTIME).runtime_gib.value == bundled.value
    much = RUNTIME | {"nvml_used_bytes": (500 + 2048 + 20) * MiB}
    assert learned(CONTEXT, much).runtime_gib.value == 2.0
    other = learned(CONTEXT, RUNTIME, engine="sglang").runtime_gib
    assert (other.value, other.low) == (800 / 1024, 600 / 1024)


def test_graphs_cost_what_lies_outside_torchs_pool_and_at_most_the_pool_too() -> None:
    """Per graph and layer, of the card's architecture; one row of 3.2 MiB outside over 32 layers is 0.1 MiB."""
    rows = [
        {
            "op": "memory_cuda_graph",
            "num_layers": 32,
            "nvml_bytes": n * MiB,
            "reserved_bytes": (n - 3.2) * MiB,
        }
        for n in (6.4, 12.8)
    ]
    figure = learned(*rows).graph_mib_per_layer["hopper"]
    assert (figure.value, figure.high) == (pytest.approx(0.1), pytest.approx(0.4))
    none = [row | {"nvml_bytes": 0, "reserved_bytes": 0} for row in rows]
    assert learned(*none).graph_mib_per_layer["hopper"].source.startswith(UNTOLD)


def test_peaks_become_the_coefficients_of_sampler_and_forward_pass() -> None:
    """14 bytes a logit and the live tensors exactly: 14 and a scale of 1; older engines draw otherwise."""
    tokens, hidden, wide = 2048, 4096, 14336
    activation = {
        "op": "memory_activation", "num_tokens": tokens, "hidden_size": hidden, "intermediate_size": wide,
        "peak_bytes": 2 * tokens * (hidden + 3 * wide),
    }  # fmt: skip
    experts = activation | {"num_experts": 8, "peak_bytes": 1}
    sampler = {"op": "memory_sampler", "num_rows": 64, "vocab_size": 32000, "peak_bytes": 14 * 64 * 32000}
    found = learned(activation, experts, sampler)
    assert found.forward_scale.value == pytest.approx(1.0)
    assert found.sampler_bytes_per_logit.value == 14
    assert learned(sampler, engine="vllm@0.11").sampler_bytes_per_logit.source.startswith(UNTOLD)


def step_file(path: Path, scale: float, **machine: Any) -> Path:
    """Decode and prompt steps of two models on a card that takes `scale` times as long for all of it."""
    rows: list[dict[str, Any]] = [
        {"op": "machine", "machine": "card", "gpu": "card", "engine": "torch", "engine_version": "2", **machine},
        CONTEXT,
    ]  # fmt: skip
    for tokens in (1, 16, 64, 256, 1024, 4096):
        for out, into in ((4096, 4096), (28672, 4096), (4096, 14336)):
            seconds = 5e-6 + max(2 * out * into / 2e12, 2 * tokens * out * into / 5e14)
            rows.append(
                {"op": "gemm", "num_tokens": tokens, "out_features": out, "in_features": into, "dtype": "bf16",
                 "spread": 0.01, "time_s": scale * seconds}
            )  # fmt: skip
    for batch in (1, 16, 64):
        for context in (512, 4096, 32768):
            for kv_heads in (2, 8):
                seconds = 4e-6 + batch * kv_heads * 1e-8 + batch * context * kv_heads * 512 / 2e12
                rows.append(
                    {"op": "decode_attention", "num_heads": 32, "num_kv_heads": kv_heads, "head_dim": 128,
                     "kv_dtype": "bf16", "num_decodes": batch, "decode_context": batch * context, "spread": 0.01,
                     "time_s": scale * seconds}
                )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_cards_of_one_kind_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A card 10 % slower differs beyond errors of 2 % each, family by family; a card beside itself nowhere."""
    a, b = step_file(tmp_path / "a.jsonl", 1.0), step_file(tmp_path / "b.jsonl", 1.1)
    ratios = time_ratios(a, b)
    assert {r.family for r in ratios} == {"gemm.bf16", "gqa.bf16"}
    assert all(r.ratio == pytest.approx(1.1) and r.differs for r in ratios)
    assert not any(r.differs for r in time_ratios(a, a))
    values = {"gemm.bf16.bytes_per_s": 2e12, "step.layer_s": 1e-6}
    timing = TimingProfile(coefficients=values, assumed={"step.layer_s": "?"})
    slower = timing.model_copy(update={"coefficients": values | {"gemm.bf16.bytes_per_s": 1.8e12}})
    [one] = coefficient_ratios(timing, slower)
    assert one.ratio == pytest.approx(0.9)
    assert one.differs
    assert not coefficient_ratios(timing, timing)[0].differs
    other = step_file(tmp_path / "other.jsonl", 1.0, gpu="another")
    with pytest.raises(KvplanError, match="no two cards of one kind"):
        time_ratios(a, other)
    assert run(["fit", str(a), "--compare", str(b), "--plot", str(tmp_path / "a.svg")]) == 0
    said = capsys.readouterr().out
    assert "the cards differ beyond both errors: gemm.bf16" in said
    dots = (tmp_path / "a.svg").read_text().count('aria-roledescription="circle"')
    assert dots == 18  # decodes alone do not tell attention: left out
    assert run(["fit", str(a), str(b), "--compare", str(b)]) == 2
    assert build([a]).memory is not None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"op": "memory_sampler", "num_rows": 0, "vocab_size": 1, "peak_bytes": 1},
            "num_rows must be above 0",
        ),
        ({"op": "memory_activation"}, "num_tokens must be a number"),
        (CONTEXT | {"nvml_used_after_gemm_bytes": "many"}, "must be a number, not 'many'"),
    ],
)
def test_memory_rows_that_are_none_are_named(row: dict[str, Any], says: str) -> None:
    """A foreign row is one line, no traceback."""
    with pytest.raises(KvplanError, match=says):
        learned(row)
    none = {name: None for name in CONTEXT if name.startswith("nvml")}
    assert learned(CONTEXT | none).runtime_gib.source.startswith(UNTOLD)


def test_the_folder_of_its_own_holds_all_that_it_imports(tmp_path: Path) -> None:
    """Every kvplan module that a copied file names was copied too; without words `run.py` says how it is called."""
    write_folder(tmp_path / "folder")
    files = {p.relative_to(tmp_path / "folder") for p in (tmp_path / "folder").rglob("*.py")}
    copied = {".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in files}
    for file in files:
        for node in ast.walk(ast.parse((tmp_path / "folder" / file).read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kvplan"):
                names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert names & copied, (file, node.module)
                assert str(node.module) in copied, (file, node.module)
    ended = subprocess.run(
        [sys.executable, tmp_path / "folder" / "run.py"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("usage")
