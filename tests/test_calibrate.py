"""`kvplan calibrate` from start to end on this machine's CPU: it really measures, fits and predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="calibrating a card needs torch")

from kvplan.calibrate import grids, measure, measure_card  # noqa: E402
from kvplan.calibrate.card import subject_of  # noqa: E402
from kvplan.cli import run  # noqa: E402
from kvplan.errors import KvplanError  # noqa: E402
from kvplan.model import load_model  # noqa: E402
from kvplan.profile import load_profile  # noqa: E402

SMALL = replace(
    grids.CPU,
    models=(grids.TINY, grids.TINY_DEEP),
    batches=(1, 4, 16),
    contexts=(64, 1024),
    chunks=(64, 512),
    gemm_tokens=(1, 64, 256),
    copy_bytes=(1 << 22,),
)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grids.GRIDS, "cpu", SMALL)
        patch.setitem(measure.TARGET_S, "cpu", 0.01)
        files = ["--measurements", str(folder / "m.jsonl"), "-o", str(folder / "p.json")]
        assert run(["calibrate", "--device", "cpu", "--quiet", *files]) == 0
    return folder


def test_a_profile_comes_out_that_other_commands_can_load(calibrated: Path) -> None:
    """Measure, fit, save: the profile loads, names the machine, and has coefficients above zero."""
    profile = load_profile(calibrated / "p.json")
    assert profile.timing is not None
    assert profile.engine == "torch"
    assert "torch" in profile.source
    assert all(value >= 0 for value in profile.timing.coefficients.values())


def test_the_stated_error_is_of_points_the_fit_had_not_seen(calibrated: Path) -> None:
    """Whole steps of a context longer than any fitted are predicted, and that error is in the profile.

    A CPU that other programs use is no place for a tight bound; the sizes must be right.
    """
    rows = [json.loads(line) for line in (calibrated / "m.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["op"] == "decode_step" and not r.get("noisy")]
    held = [r for r in steps if r["held_out"]]
    fitted = [r for r in steps if not r["held_out"]]
    assert max(r["max_context"] for r in fitted) < min(r["max_context"] for r in held)
    profile = load_profile(calibrated / "p.json")
    assert profile.timing is not None
    [error] = [
        e for e in profile.timing.errors if e.held_out == "points marked held_out" and e.regime == "decode"
    ]
    assert error.num_points == len(held)
    assert error.median < 0.5


def test_a_second_run_measures_nothing_and_says_the_same(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All points are in the file: the report is rebuilt from it, no probe runs."""
    monkeypatch.setitem(grids.GRIDS, "cpu", SMALL)
    monkeypatch.setattr(measure, "measure", lambda *a: pytest.fail("measured a point again"))
    files = ["--measurements", str(calibrated / "m.jsonl"), "-o", str(calibrated / "again.json")]
    assert run(["calibrate", "--device", "cpu", "--quiet", "--json", *files]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["coefficients"] == load_profile(calibrated / "p.json").timing.coefficients
    assert all(abs(pool["error"]) <= 0.001 for pool in document["kv_pools"])


def test_a_file_brought_from_another_machine_is_fitted(
    calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kvplan fit` of what a card measured makes the profile that `kvplan calibrate` made there."""
    assert run(["fit", str(calibrated / "m.jsonl"), "-o", str(calibrated / "f.json")]) == 0
    there, here = load_profile(calibrated / "p.json").timing, load_profile(calibrated / "f.json").timing
    assert there is not None
    assert here is not None
    assert here.coefficients == there.coefficients
    assert here.assumed == there.assumed
    assert "batches" not in capsys.readouterr().out


def test_another_program_on_the_card_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement beside a stranger is none; --force is the user's word that it does not matter."""
    monkeypatch.setattr(measure, "strangers", lambda device: [4711])
    monkeypatch.setattr(measure, "run", lambda *a: 0)
    monkeypatch.setitem(grids.GRIDS, "cpu", SMALL)
    with pytest.raises(KvplanError, match=r"process 4711 .* --force"):
        measure_card.measure_card(tmp_path / "m.jsonl", "cpu")
    measure_card.measure_card(tmp_path / "m.jsonl", "cpu", force=True)


def test_no_card_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU the command says what is missing and what to do."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert (
        run(["calibrate", "--measurements", str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "p.json")]) == 2
    )
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "m.jsonl").exists()


def test_a_server_needs_its_card_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A server does not say what it runs on."""
    assert run(["calibrate", "--server", "http://127.0.0.1:1"]) == 2
    assert "--gpu" in capsys.readouterr().err


def test_rows_of_a_served_model_carry_its_name_or_its_shape(tmp_path: Path) -> None:
    """A bundled model is named; a local one of equal layers is described; a mixed one is refused."""
    assert subject_of(load_model("Qwen/Qwen3-8B")) == {"model": "Qwen/Qwen3-8B"}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "vocab_size": 32000, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    subject = subject_of(load_model(str(tmp_path / "config.json")))
    assert (subject["num_layers"], subject["num_kv_heads"], subject["head_dim"]) == (8, 4, 64)
