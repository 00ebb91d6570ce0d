"""The command line: exit codes, one-line errors, the JSON contract, cold start without heavy imports."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from kvplan.cli.main import COMMANDS, build_app, run, spell
from kvplan.engines.flags import EngineArgs

QWEN = "Qwen/Qwen3-8B"

DOCUMENT = {
    "schema_version",
    "kvplan_version",
    "inputs",
    "fits",
    "limited_by",
    "memory",
    "kv",
    "sources",
    "what_would_fit",
}
MEMORY = {
    "total_bytes",
    "budget_bytes",
    "weights_bytes",
    "activation_bytes",
    "cuda_graph_bytes",
    "non_torch_bytes",
}
KV = {
    "bytes_per_token",
    "bytes_per_sequence",
    "block_size",
    "num_gpu_blocks",
    "cache_tokens",
    "max_concurrency",
}

Capture = pytest.CaptureFixture[str]


def document(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = run(["estimate", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_estimate_tells_the_engines_two_lines(capsys: Capture) -> None:
    """vLLM's own log lines, then traces, and the command that serves it."""
    assert run(["estimate", QWEN, "--gpu", "h100", "--input-len", "512", "--output-len", "8K"]) == 0
    out, err = capsys.readouterr()
    assert "GPU KV cache size: " in out
    assert "Maximum concurrency for 40,960 tokens per request: " in out
    assert "traces at once" in out
    assert out.rstrip().endswith(f"vllm serve {QWEN} --max-model-len 8704")
    assert err == ""


def test_json_has_the_keys_of_the_contract(capsys: Capture) -> None:
    code, doc = document(capsys, QWEN, "--gpu", "h100")
    assert code == 0
    assert doc.keys() >= DOCUMENT
    assert doc["memory"].keys() >= MEMORY | {"kv_pool_bytes"}
    assert doc["kv"].keys() >= KV
    assert doc["fits"] is True
    memory = doc["memory"]
    rows = sum(memory[name] for name in MEMORY - {"total_bytes", "budget_bytes"}) + memory["kv_pool_bytes"]
    assert rows == memory["budget_bytes"]
    assert set(memory) - {"budget_bytes"} <= set(doc["sources"])
    assert doc["inputs"].keys() >= EngineArgs.model_fields.keys()
    assert doc["inputs"]["max_num_batched_tokens"] == 8192


def test_json_keeps_its_shape_on_every_answer(capsys: Capture) -> None:
    """Fits, does not fit, does not start: the same keys, nothing missing."""

    def shape(value: object) -> object:
        if not isinstance(value, dict):
            return None
        return {key: shape(inner) for key, inner in value.items() if key != "colocate"}

    questions = [(QWEN, "h100"), (QWEN, "rtx-4090"), ("meta-llama/Llama-3.1-70B", "h100")]
    answers = [document(capsys, model, "--gpu", gpu) for model, gpu in questions]
    assert [code for code, _ in answers] == [0, 1, 1]
    assert shape(answers[0][1]) == shape(answers[1][1]) == shape(answers[2][1])
    refused = answers[1][1]
    assert refused["reason"]
    assert 0 < refused["longest_max_model_len"] < 40_960
    assert refused["what_would_fit"]
    assert all(option["fits"] for option in refused["what_would_fit"])


def test_a_stated_pool_is_the_pool(capsys: Capture) -> None:
    """16 GiB of 147,456 B/token in blocks of 16: 7,281 blocks, null block included."""
    words = ("--kv-cache-memory-bytes", str(16 << 30), "--max-model-len", "8192")
    code, doc = document(capsys, QWEN, "--gpu", "h100", *words)
    assert code == 0
    assert doc["memory"]["kv_pool_bytes"] == 16 << 30
    assert doc["kv"]["num_gpu_blocks"] == (16 << 30) // (147_456 * 16)
    assert doc["kv"]["bytes_per_token"] == 147_456


def test_a_profile_brings_its_own_overheads(capsys: Capture, tmp_path: Path) -> None:
    """A measured memory section replaces the bundled one; a profile without one is refused."""
    figure = {"value": 1.0, "low": 1.0, "high": 1.0, "source": "my card"}
    names = ("sampler_bytes_per_logit", "forward_scale", "vision_gib", "runtime_gib", "runtime_gib_per_peer")
    memory = {
        "engine": "vllm",
        "since": [0, 32],
        "graphs_in_budget": False,
        "graph_mib_per_layer": {"default": figure},
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "mine", "memory": memory | dict.fromkeys(names, figure)}))
    _, doc = document(capsys, QWEN, "--profile", str(file))
    assert doc["memory"]["non_torch_bytes"] == 1 << 30
    assert "my card" in doc["sources"]["non_torch_bytes"]
    assert run(["estimate", QWEN, "--profile", "h100-sxm-vllm"]) == 2
    assert "no memory section" in capsys.readouterr().err


def test_short_flags_are_vllms(capsys: Capture) -> None:
    _, doc = document(
        capsys, "Qwen/Qwen3-32B", "--gpu", "h100", "-tp", "4", "-pp=2", "-dp", "2", "--max_num_seqs", "64"
    )
    inputs = doc["inputs"]
    names = (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "max_num_seqs",
        "num_gpus",
    )
    assert [inputs[name] for name in names] == [4, 2, 2, 64, 16]
    _, doc = document(
        capsys, QWEN, "-q", "fp8", "-ep", "--cudagraph-capture-sizes", "1", "2", "4", "-dcp", "1"
    )
    assert doc["serve_command"].endswith(
        "--enable-expert-parallel --quantization fp8 --cudagraph-capture-sizes 1 2 4"
    )


@pytest.mark.parametrize("flag", ["async-scheduling", "enable-prefix-caching"])
def test_switches_have_a_no(capsys: Capture, flag: str) -> None:
    key = flag.replace("-", "_")
    assert document(capsys, QWEN, f"--{flag}")[1]["inputs"][key] is True
    assert document(capsys, QWEN, f"--no-{flag}")[1]["inputs"][key] is False


def test_every_flag_of_the_contract_is_taken(capsys: Capture) -> None:
    """UX contract: flags as vLLM spells them."""
    words = "-tp 8 -dcp 2 --block-size 64 --kv-cache-dtype auto --max-model-len 32K --max-num-seqs 64"
    words += " --max-num-batched-tokens 4k --gpu-memory-utilization 0.9 --no-async-scheduling --enable-prefix-caching"
    words += " --num-speculative-tokens 1 --engine vllm@0.30"
    code, doc = document(capsys, "deepseek-ai/DeepSeek-R1", "--gpu", "b300", *words.split())
    assert code == 0, doc["reason"]
    assert doc["inputs"]["max_model_len"] == 32_768
    assert doc["inputs"]["max_num_batched_tokens"] == 4_000
    words = "--disable-hybrid-kv-cache-manager"
    assert (
        document(capsys, "google/gemma-3-27b-it", words)[1]["inputs"]["disable_hybrid_kv_cache_manager"]
        is True
    )
    words = "--mamba-ssm-cache-dtype float32 --gpu h200"
    assert (
        document(capsys, "Qwen/Qwen3.5-27B", *words.split())[1]["inputs"]["mamba_ssm_cache_dtype"]
        == "float32"
    )


BAD = [
    ("estimate nosuch-model", "not a bundled model"),
    ("estimate Qwen/Qwen3-8", "did you mean Qwen/Qwen3-8B"),
    (f"estimate {QWEN} --gpu h10o", "did you mean h100"),
    (f"estimate {QWEN} --gpu-memory-utilization 1.4", "(0, 1]"),
    (f"estimate {QWEN} --gpu-memory-utilization abc", "--gpu-memory-utilization 'abc'"),
    (f"estimate {QWEN} --gpu-memory-utilization nan", "--gpu-memory-utilization"),
    (f"estimate {QWEN} -tp 3", "does not divide"),
    (f"estimate {QWEN} -tp 0", "--tensor-parallel-size"),
    (f"estimate {QWEN} --max-model-len -5", "--max-model-len"),
    (f"estimate {QWEN} --max-model-len 1.5K", "decimals go with k"),
    (f"estimate {QWEN} --max-model-len 99999999999999999999", "--max-model-len"),
    (f"estimate {QWEN} --output-len -3", "--output-len"),
    (f"estimate {QWEN} --num-samples 0", "--num-samples"),
    (f"estimate {QWEN} --kv-cache-memory-bytes -1", "--kv-cache-memory-bytes"),
    (f"estimate {QWEN} --kv-cache-dtype fp9", "did you mean fp8"),
    (f"estimate {QWEN} --block-size 7", "7"),
    (f"estimate {QWEN} --engine vlm", "unknown engine"),
    (f"estimate {QWEN} --engine vllm@new", "not a version"),
    (f"estimate {QWEN} --colocate reward", "ROLE=MODEL"),
    (f"estimate {QWEN} --colocate judge={QWEN}", "roles are"),
    (f"estimate {QWEN} --price-per-hour -2", "--price-per-hour"),
    (f"estimate {QWEN} --max-modle-len 5", "--max-model-len"),
    ("estimate", "model"),
    ("estimat", "estimate"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_bad_input_is_one_line_and_exit_2(capsys: Capture, line: str, words: str) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words.casefold() in err.casefold()
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "not json", "{}", '{"architectures": ["Foo"]}', "[" * 100_000])
def test_bad_config_file_is_one_line_and_exit_2(tmp_path: Path, capsys: Capture, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    for path in (file, tmp_path):
        assert run(["estimate", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_folder_without_config(tmp_path: Path, capsys: Capture) -> None:
    assert run(["estimate", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_serve_command_and_lists(capsys: Capture) -> None:
    assert run(["serve-command", QWEN, "-tp", "2", "--format", "yaml"]) == 0
    assert "tensor-parallel-size: 2" in capsys.readouterr().out
    assert run(["serve-command", "meta-llama/Llama-3.1-70B"]) == 1
    assert "no memory left" in capsys.readouterr().err
    assert run(["gpus"]) == 0
    assert "h100-sxm" in capsys.readouterr().out
    assert run(["gpus", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["gpus"]) >= 25
    assert run(["models", "qwen3-8b"]) == 0
    assert QWEN in capsys.readouterr().out
    assert run(["models", "no-such-model"]) == 1


def test_help_has_examples_and_no_colour(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command explains itself with an example."""
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["estimate", "--help"]) == 0
    text = capsys.readouterr().out
    assert run(["--help"]) == 0
    top = capsys.readouterr().out
    assert all(name in top for name in COMMANDS)
    assert "kvplan estimate Qwen/Qwen3-8B" in text
    assert "--gpu-memory-utilization" in text
    assert "\x1b[" not in top + text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_how_it_is_used(name: str, capsys: Capture) -> None:
    """Each has examples of itself, and each example is a command line that is taken."""
    module, _, function = COMMANDS[name][0].partition(":")
    about = getattr(import_module(f"kvplan.cli.{module}"), function).__doc__.partition("    Parameters\n")[0]
    lines = re.findall(r"^ {8}.*?(kvplan .*)$", about.partition("For example:")[2], re.M)
    assert any(line.split()[1] == name for line in lines)
    for line in lines:
        words = shlex.split(line)
        words = words[: words.index(">")] if ">" in words else words
        build_app(words[1]).parse_args(spell(words[1:]), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_no_default_that_says_nothing(name: str, capsys: Capture) -> None:
    """An empty tuple is Python's, not a reader's; a switch without a --no- form is off unless given."""
    assert run([name, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert not re.search(r"\[default: (\(\)|\"\"|None)?\]|--empty-", said)
    assert "One JSON document on stdout. [default" not in said


def test_a_model_that_is_not_bundled_is_offered_from_the_hub(capsys: Capture) -> None:
    assert run(["estimate", "somebody/new-model-7b"]) == 2
    assert "--hub asks the Hugging Face hub" in capsys.readouterr().err


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvplan.cli.memory_commands.estimate", interrupted)
    assert run(["estimate", QWEN]) == 130


def test_spell_leaves_values_alone() -> None:
    """Only flags are respelled; a model named a_b stays."""
    assert spell(["estimate", "my_model", "-tp", "2", "--kv_cache_dtype=fp8_e4m3"]) == [
        "estimate",
        "my_model",
        "--tensor-parallel-size",
        "2",
        "--kv-cache-dtype=fp8_e4m3",
    ]


def test_cold_start_is_light(tmp_path: Path) -> None:
    """`python -m kvplan estimate` works from any folder and loads nothing heavy."""
    code = (
        "import sys; from kvplan.cli.main import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "estimate", QWEN],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "GPU KV cache size" in done.stdout
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {
        "torch",
        "streamlit",
        "simpy",
        "pandas",
        "altair",
        "ray",
        "joblib",
        "pyarrow",
        "scipy",
    }


@pytest.mark.parametrize(
    "asked",
    [
        ("openai/whisper-large-v3", "h100", "sglang"),
        ("google/gemma-4-E4B-it-assistant", "h100", "vllm"),
        ("deepseek-ai/DeepSeek-V4.1-Flash", "h200", "vllm@0.19"),
    ],
)
def test_support_refuses_what_estimate_refuses(
    asked: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In its words; a model larger than one card is planned all the same."""
    model, card, engine = asked
    assert run(["support", *asked]) == 1
    said = capsys.readouterr().out.removeprefix("refused: ").strip()
    assert run(["estimate", model, "--gpu", card, "--engine", engine]) == 2
    assert said in capsys.readouterr().err
    assert run(["support", "deepseek-ai/DeepSeek-R1", "h100"]) == 0


def test_two_models_are_not_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A model beside a command that names another."""
    assert run(["estimate", "Qwen/Qwen3-8B", "--", "vllm", "serve", "Qwen/Qwen3-0.6B"]) == 2
    assert "leave one out" in capsys.readouterr().err
