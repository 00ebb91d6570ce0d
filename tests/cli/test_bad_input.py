"""What strangers type and hand over: one line, exit 2, no traceback; counts as vLLM reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from kvplan.cli.main import LONGEST, run
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import human_readable_int
from kvplan.memory.report import short_source
from kvplan.models.load import from_config, load_model
from kvplan.scenario.schema import load_scenario

Capture = pytest.CaptureFixture[str]
SCENARIO = "model: Qwen/Qwen3-8B\ngpu: h100\nworkload:\n  num_requests: 3\n"


def complaint(capsys: Capture, *words: str) -> str:
    assert run(list(words)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert len(err) < 1.2 * LONGEST
    return err


def test_a_key_said_twice_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    """YAML keeps the last one in silence; here it is a typo."""
    for name, text in {"top": SCENARIO + "gpu: l40s\n", "below": SCENARIO + "  num_requests: 4\n"}.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        assert "is there twice" in complaint(capsys, "simulate", str(file))
    anchored = tmp_path / "anchors.yaml"
    anchored.write_text(
        SCENARIO + "models:\n  a: &a {model: Qwen/Qwen3-4B, gpu: h100}\n  b: {<<: *a, gpu: l40s}\n"
    )
    assert load_scenario(anchored).models["b"].gpu == "l40s"


@pytest.mark.parametrize(
    ("option", "meant"),
    {
        "--tp": "-tp",
        "--dp=2": "-dp",
        "--tp-size": "-tp",
        "--context": "--max-model-len",
        "--max-len": "--max-model-len",
        "--kv-dtype": "--kv-cache-dtype",
        "--batch-size": "--max-num-seqs",
        "--gpus": "--gpu",
    }.items(),
)
def test_unknown_options_are_told_what_is_meant(capsys: Capture, option: str, meant: str) -> None:
    """Typos, one dash too many, words of other tools."""
    said = complaint(capsys, "estimate", "Qwen/Qwen3-8B", option, "2")
    assert said == f"kvplan: unknown option {option.partition('=')[0]}; did you mean {meant}?\n"


@pytest.mark.parametrize("length", [300, 5000, 200_000])
def test_names_too_long_for_a_file(tmp_path: Path, capsys: Capture, length: int) -> None:
    name = "a" * length
    file = tmp_path / "s.yaml"
    file.write_text(SCENARIO.replace("Qwen/Qwen3-8B", name))
    complaint(capsys, "simulate", str(file))
    complaint(capsys, "simulate", name)
    complaint(capsys, "estimate", name)
    file.write_text(SCENARIO + f"step_time: {{profile: {name}}}\n")
    complaint(capsys, "simulate", str(file))


@pytest.mark.parametrize("rate", ["1e-300", "0.00000001"])
def test_arrivals_beyond_the_clock(capsys: Capture, rate: str) -> None:
    """Whole picoseconds fill 63 bits after 106 days; later arrivals are refused, not wrapped around."""
    arrivals = f"workload.arrivals={{kind: poisson, rate: {float(rate)!r}}}".replace("1e-08", "0.00000001")
    assert "raise the rate" in complaint(capsys, "simulate", "chat", "--set", arrivals)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("disaggregation={transfer_bytes_per_s: 1e-300}", "transfer_bytes_per_s"),
        ("workload.num_requests=" + "9" * 5000, "not a YAML value"),
        ("workload.prompt=" + "[" * 5000, "not a YAML value"),
    ],
    ids=["slow transfer", "digits", "depth"],
)
def test_absurd_overrides(capsys: Capture, override: str, words: str) -> None:
    assert words in complaint(capsys, "simulate", "chat", "--set", override)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("estimate", "Qwen/Qwen3-8B", "--users", "1e9users"), "--users: '1e9users' is not a count"),
        (("estimate", "Qwen/Qwen3-8B", "--users", "0"), "--users '0': must be greater than or equal to 1"),
        (("plan", "Qwen/Qwen3-8B", "--users", "5x"), "--users '5x': must be a valid integer\n"),
        (("simulate", "no-name-is-like-this"), "no such scenario file; kvplan list scenarios"),
        (("simulate", "."), "a folder, no scenario file"),
        (("simulate", "chat", "--set", "engine.max_num_seqs=abc"), "32K (= 32,768) or 20G (= 20 GiB)\n"),
        (("recommend", "chat", "--quiet"), "nothing varies: name a key"),
        (("watch", "/dev/null"), "neither a /metrics page nor a log of usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_was_typed_is_named_and_what_would_do(
    capsys: Capture, words: tuple[str, ...], said: str
) -> None:
    assert said in complaint(capsys, *words)


def test_a_device_is_not_a_folder_without_config(capsys: Capture) -> None:
    assert "/dev/null: not a file" in complaint(capsys, "estimate", "/dev/null")


def test_what_is_left_over_is_named(capsys: Capture) -> None:
    assert "unexpected argument 'extra'" in complaint(capsys, "estimate", "Qwen/Qwen3-8B", "extra")


@pytest.mark.parametrize("flag", ["--mamba-ssm-cache-dtype", "--mamba-cache-dtype"])
def test_a_state_of_no_dtype(capsys: Capture, flag: str) -> None:
    words = ["Qwen/Qwen3-Next-80B-A3B-Instruct", "-tp", "4", flag, "foo"]
    assert f"{flag} foo: must be auto" in complaint(capsys, "estimate", *words)


def test_an_engine_without_its_version(capsys: Capture) -> None:
    assert "not a version" in complaint(capsys, "estimate", "Qwen/Qwen3-8B", "--engine", "vllm@")


@pytest.mark.parametrize(
    ("text", "count"), [("1.005k", 1004), ("32k", 32_000), ("32K", 32_768), ("20G", 20 << 30), ("2.5g", 2_500_000_000)]
)  # fmt: skip
def test_counts_are_cut_as_vllm_cuts_them(text: str, count: int) -> None:
    """vLLM 0.32 `human_readable_int`: int(float(number) * multiplier), so 1.005k is 1,004."""
    assert human_readable_int(text) == count


def test_sizes_with_units_are_refused_as_by_vllm() -> None:
    with pytest.raises(KvplanError, match="20G"):
        human_readable_int("20GiB")


def test_auto_is_the_longest_that_fits() -> None:
    """vLLM 0.32 `human_readable_int_or_auto`."""
    assert EngineArgs(max_model_len="auto").max_model_len == -1  # type: ignore[arg-type]


def mistral(**keys: object) -> dict[str, object]:
    return {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "vocab_size": 32000,
        "intermediate_size": 14336, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, **keys,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "window"), [({}, 4096), ({"sliding_window": None}, 0), ({"sliding_window": 1024}, 1024)]
)
def test_mistral_without_a_window_has_transformers_default(keys: dict[str, object], window: int) -> None:
    """transformers `MistralConfig`: sliding_window=4096 unless the config says otherwise; null is none."""
    layers = from_config(mistral(**keys), "mistral", "made here").layers
    assert {layer.attention.window for layer in layers} == {window}


@pytest.mark.parametrize(
    "name", ["mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-Nemo-Instruct-2407",
             "mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistralai/Magistral-Small-2506",
             "LGAI-EXAONE/EXAONE-4.0-1.2B", "microsoft/phi-4"]
)  # fmt: skip
def test_bundled_models_without_windows(name: str) -> None:
    assert not any(layer.attention.window for layer in load_model(name).layers)


def test_a_source_is_cut_where_a_statement_ends() -> None:
    text = (
        "measured: 102 graphs x 36 layers; start-up logs: vLLM 0.11 on H100 and H200 (0.06-0.12) (0.11-0.57)"
    )
    assert short_source(text) == "measured: 102 graphs x 36 layers (0.11-0.57)"
    assert short_source("computed: exactly") == "computed: exactly"


def test_closed_and_full_outputs(tmp_path: Path) -> None:
    """A reader who leaves, a closed stdin and a full disk end a command without a traceback."""
    base = [sys.executable, "-m", "kvplan", "models", "--json"]
    root = ROOT
    for shell in ("| head -1", "< /dev/null > /dev/full", "<&- > /dev/null", ">&-"):
        done = subprocess.run(
            " ".join(base) + " " + shell, shell=True, cwd=root, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr, shell
        assert len(done.stderr.splitlines()) <= 1, (shell, done.stderr)


def test_a_refusal_prints_the_whole_document(capsys: Capture) -> None:
    """Exit 1, `fits` false, the reason, and the longest max_model_len that would start."""
    words = ["Qwen/Qwen3-8B", "--kv-cache-memory-bytes", "1G", "--max-model-len", "32k", "--json"]
    assert run(["estimate", *words]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert refused["fits"] is False
    assert "GiB" in refused["reason"]
    longest = refused["longest_max_model_len"]
    words[4] = str(longest)
    assert run(["estimate", *words]) == 0
    assert json.loads(capsys.readouterr().out).keys() == refused.keys()
    words[4] = str(longest + 16)
    assert run(["estimate", *words]) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    {
        ("--speculative-config", "ngram"): "--speculative-config: must be a JSON object, not ngram",
        ("--speculative-config", '{"tokens": 1}'): "--speculative-config: vLLM's config has no key 'tokens'",
        ("--quantization", "{}"): "--quantization: must be a name, as fp8, not {}; an object goes to --quant",
        ("--quantization", '{"targets": 3}'): "--quantization: must be a name",
        ("--quantization", '[{"base'): "--quantization: must be a name",
    }.items(),
)
def test_objects_of_flags_are_refused_by_the_flags_name(
    capsys: Capture, flags: tuple[str, str], said: str
) -> None:
    """Also where another field reads the object first; --quantization is a name, its object has a flag of its own."""
    assert said in complaint(capsys, "estimate", "Qwen/Qwen3-8B", "--gpu", "h100", *flags)
