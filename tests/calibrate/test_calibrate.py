"""`kvplan calibrate` from start to end on this machine's CPU: it really measures, fits and predicts."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from reference import json_section
from validation import section

torch = pytest.importorskip("torch", reason="calibrating a card needs torch")

from kvplan.calibrate import card  # noqa: E402
from kvplan.calibrate.measure import allocation, device, grids, probes, stages  # noqa: E402
from kvplan.calibrate.server.loads import subject_of  # noqa: E402
from kvplan.calibrate.session import open_session  # noqa: E402
from kvplan.cli.main import run  # noqa: E402
from kvplan.ground.errors import KvplanError  # noqa: E402
from kvplan.models.load import load_model  # noqa: E402
from kvplan.profiles.profile import load_profile  # noqa: E402

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
        patch.setitem(probes.TARGET_S, "cpu", 0.01)
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
    monkeypatch.setattr(probes, "measure", lambda *a: pytest.fail("measured a point again"))
    files = ["--measurements", str(calibrated / "m.jsonl"), "-o", str(calibrated / "again.json")]
    assert run(["calibrate", "--device", "cpu", "--quiet", "--json", *files]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["coefficients"] == load_profile(calibrated / "p.json").timing.coefficients
    section("calibrate-json", json_section("calibrate", [document]), page="reference.md")
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
    assert "its batches" not in capsys.readouterr().out


def test_another_program_on_the_card_is_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement beside a stranger is none; --force is the user's word that it does not matter."""
    monkeypatch.setattr(stages, "strangers", lambda device: [4711])
    monkeypatch.setattr(stages, "run", lambda *a: 0)
    monkeypatch.setitem(grids.GRIDS, "cpu", SMALL)
    with pytest.raises(KvplanError, match=r"process 4711 .* --force"):
        card.measure_card(tmp_path / "m.jsonl", "cpu")
    card.measure_card(tmp_path / "m.jsonl", "cpu", force=True)


def _assert_one_line(capsys: pytest.CaptureFixture[str], says: str) -> None:
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_no_card_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU the command says what is missing and what to do."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert (
        run(["calibrate", "--measurements", str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "p.json")]) == 2
    )
    _assert_one_line(capsys, "CUDA")
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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rounds", "-1"], "--rounds -1: a number from 1 up"),
        (["-o", "{folder}"], "cannot be written (Is a directory)"),
        (["-o", "{folder}/binary/p.json"], "cannot be written (File exists)"),
        (["--measurements", "{folder}/binary"], "no measurement file that can be read (not text)"),
        (["--measurements", "{folder}"], "no measurement file that can be read (Is a directory)"),
        (["--measurements", "{folder}/array"], "array:1: not a measurement row"),
        (["--measurements", "{folder}/no-op"], "no-op:1: not a measurement row"),
        (["--measurements", "{folder}/p.json", "-o", "{folder}/p.json"], "is written by --measurements"),
    ],
)
def test_a_file_that_will_not_do_is_told_before_anything_is_measured(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and exit code 2, before minutes of measuring have gone by; files that were there stay as they were."""
    contents = {"binary": b"\x89PNG\xff\xfe", "array": b"[1]\n", "no-op": b'{"a": 1}\n'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probes, "measure", lambda *a: pytest.fail("measured"))
    given = [word.format(folder=tmp_path) for word in words]
    assert run(["calibrate", "--device", "cpu", "--quiet", *given]) == 2
    _assert_one_line(capsys, says)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "usage"),
        (["m.jsonl", "cpu", "huge"], "no grid 'huge'; there is default, quick, cpu"),
        (["m.jsonl", "tpu"], "no device 'tpu'"),
        (["m.jsonl", "cpu", "cpu", "more"], "usage"),
        (["file/m.jsonl", "cpu"], "cannot be written"),
    ],
)
def test_the_offline_command_says_what_is_wrong(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`python -m kvplan.calibrate.card` gives one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert card.main(words) == 2
    _assert_one_line(capsys, says)


def test_an_old_driver_is_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch warns of when it finds no card is in the error, and no warning besides."""

    def unavailable() -> bool:
        warnings.warn(
            "The NVIDIA driver on your system is too old (found version 11040).\nmore", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    with pytest.raises(
        KvplanError, match=r"no CUDA device \(The NVIDIA driver .* too old .*\); try `nvidia-smi`"
    ):
        device.pick_device("cuda")


def test_a_card_too_small_for_the_memory_probes_is_measured_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in a pool is a note in the file, the next probes run, and the note is not measured again."""

    def no_room(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(allocation, "kv_pool", no_room)
    session = open_session(tmp_path / "m.jsonl", device.machine_facts(torch.device("cpu")))
    for _ in range(2):
        allocation.measure_memory(SMALL, session, torch.device("cpu"))
    rows = [json.loads(line) for line in session.path.read_text().splitlines()]
    assert [row["op"] for row in rows if "skipped" in row] == ["memory_pool_rows"]
    assert len([row for row in rows if row["op"] == "done"]) == 8  # every kind was gone through
