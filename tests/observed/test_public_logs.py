"""Other people's start-up logs on which `reconcile` once went wrong: the right figures of each."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from places import FIXTURES

from kvplan.cli.main import run
from kvplan.memory.forward import answer
from kvplan.observed.reader import file_lines
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.startup import read_log
from kvplan.profiles.memory_profile import memory_profile

PUBLIC = FIXTURES / "logs" / "public"
MINISTRAL = str(PUBLIC / "ministral3-14b.json")


def of(name: str, gpu: str, model: str | None = None) -> Reconciliation:
    return reconcile(file_lines(PUBLIC / f"{name}.log"), gpu=gpu, model=model)


def explained(found: Reconciliation) -> dict[str, str]:
    return {line.name: line.explanation for line in found.lines}


@pytest.mark.parametrize("name", ["commented-command", "worker-names"])
def test_ranks_are_those_of_the_command_or_of_the_workers_names(name: str) -> None:
    """52.36 GiB are 686,320 tokens of 80 KiB a rank: TP 2 and bfloat16, not fp8 on one rank."""
    found = of(name, "a100-80gb", MINISTRAL)
    assert found.plan.args.tensor_parallel_size == 2
    assert found.plan.args.kv_cache_dtype == "auto"
    assert found.plan.bytes_per_token == 80 * 1024
    assert explained(found)["cache_tokens"] == "follows from the printed GiB"
    assert found.log.figures["cache_tokens"] == 686_320


def test_one_named_worker_leaves_the_number_of_ranks_open() -> None:
    """Only TP0 speaks: two ranks or more, and the tokens say how many."""
    lines = (PUBLIC / "worker-names.log").read_text().replace("Worker_TP1", "Worker_TP0")
    log = read_log(lines)
    assert log.assumed_ranks == {"tensor_parallel_size": 2}
    four = lines.replace("686,320", "1,372,640").replace("6.86x", "13.73x")
    found = reconcile(four, gpu="a100-80gb", model=MINISTRAL)
    assert found.plan.args.tensor_parallel_size == 4
    assert "planned with -tp 4" in str(found)


def test_both_starts_of_a_restarted_container_are_alike() -> None:
    """0.5 of the card, 22.90 GiB, 166,752 tokens: the flags of the first start are printed again by the second."""
    lines = (PUBLIC / "restart.log").read_text()
    once = read_log("\n".join(lines.splitlines()[:5]))
    twice = read_log(lines)
    assert (twice.flags, twice.figures) == (once.flags, once.figures)
    assert twice.flags["gpu_memory_utilization"] == 0.5
    assert twice.figures["kv_gib"] == 22.90
    found = reconcile(lines, gpu="h100")
    assert explained(found)["cache_tokens"] == "follows from the printed GiB"
    assert found.overheads is not None


def test_a_command_above_the_log_holds_for_every_start() -> None:
    """A pasted command is told once, however often the engine below it starts; a second command replaces it."""
    start = (PUBLIC / "restart.log").read_text().split("\n", 1)[1].split("(APIServer")[0]
    command = "$ vllm serve Qwen/Qwen3-8B --gpu-memory-utilization 0.5 --max-num-seqs 64\n"
    assert read_log(command + start + start).flags["gpu_memory_utilization"] == 0.5
    other = command.replace("0.5", "0.7")
    assert read_log(command + start + other + start).flags["gpu_memory_utilization"] == 0.7


def test_decode_context_parallel_ranks_share_the_tokens() -> None:
    """46.80 GiB a rank are 5,721,088 tokens over 8 ranks of MLA."""
    found = of("decode-context-parallel", "h200")
    args = found.plan.args
    assert (args.tensor_parallel_size, args.decode_context_parallel_size) == (8, 8)
    assert found.log.figures["cache_tokens"] == 5_721_088
    assert explained(found)["cache_tokens"] == "follows from the printed GiB"
    assert "--decode-context-parallel-size 8" in found.estimate_command()


def test_a_flag_that_cannot_be_planned_does_not_lose_the_report() -> None:
    """A DCP that does not divide the ranks is left out, and said."""
    lines = (PUBLIC / "decode-context-parallel.log").read_text()
    found = reconcile(lines.replace("context-parallel-size 8", "context-parallel-size 3"), gpu="h200")
    assert found.plan.args.tensor_parallel_size == 8
    assert found.plan.args.decode_context_parallel_size == 1
    assert "the log's --decode-context-parallel-size is left out" in str(found)


def test_backends_are_read_in_any_case() -> None:
    """vLLM takes flashinfer for FLASHINFER; tokens follow from the 64.69 GiB."""
    found = of("lower-case-backend", "gb10", "Qwen/Qwen3.6-35B-A3B")
    assert found.plan.args.attention_backend == "FLASHINFER"
    assert explained(found)["cache_tokens"].startswith("follows from the printed GiB")


# ---- what is learned


def test_a_profile_run_of_images_is_not_a_drafter() -> None:
    """speculative_config=None rules drafts out; beside 21.86 GiB of weights, images leave 0.32 GiB for KV."""
    found = of("no-drafts-wsl", "rtx-5090")
    assert found.log.flags["num_speculative_tokens"] == 0
    assert "MTP" not in str(found)
    assert "RedHatAI/Qwen3.6-35B-A3B-NVFP4 is planned as" in str(found)
    learned = {value.name: value.value for value in found.learned}
    assert learned["vision_scale"] == pytest.approx(1.61, abs=0.01)
    assert learned["runtime_gib"] == pytest.approx(0.5, abs=0.01)
    assert "activation peak 2.45 GiB (planned 1.52); the log profiled images" in found.conclusion
    told = answer(replace(found.plan.question, profile=found.overheads))
    assert told.shape.kv_cache_size_tokens == 6_288


@pytest.mark.parametrize(
    ("name", "gpu", "model"),
    [("negative-pool", "h100", "google/gemma-3-27b-it"), ("refused-without-loading", "rtx-5090", None)],
)
def test_weights_that_no_line_prints_are_not_made_up(name: str, gpu: str, model: str | None) -> None:
    """+18.5 and -33.6 GiB of weights were "measured": nothing is, the missing line is named, the exit code is 1."""
    found = of(name, gpu, model)
    assert found.overheads is None
    assert found.learned == ()
    assert "lacks its loading line ('Model loading took ... GiB')" in found.conclusion
    words = ["reconcile", str(PUBLIC / f"{name}.log"), "--gpu", gpu, *(("--model", model) if model else ())]
    assert run(words) == 1


def test_an_8b_model_does_not_load_61_gib() -> None:
    """A pool that 61 GiB of weights would leave, without a loading line, and with one: neither is learned."""
    lines = (PUBLIC / "restart.log").read_text().split("\n(APIServer", 1)[0]
    lines = lines.replace("'gpu_memory_utilization': 0.5", "'gpu_memory_utilization': 0.98")
    lines = lines.replace("22.90 GiB", "14.00 GiB").replace("166,752", "101,936")
    silent = reconcile(lines.replace("Model loading took 15.27 GiB memory", ""), gpu="h100")
    assert silent.overheads is None
    assert not silent.agrees
    spoken = reconcile(lines.replace("15.27 GiB", "61.00 GiB"), gpu="h100")
    assert spoken.overheads is None
    assert not spoken.agrees
    assert "61.00 GiB of weights are not Qwen/Qwen3-8B's" in spoken.conclusion


def test_pinned_state_slots_leave_the_tokens_to_k_and_v() -> None:
    """SGLang: 171,008 tokens of 64 KiB are K + V, 10.44 GiB; the states beside them take what a flag says."""
    found = of("sglang-pinned-states", "h100")
    assert found.plan.shape.bytes_per_block == 64 * 1024
    keys_and_values = found.log.figures["k_gib"] + found.log.figures["v_gib"]
    assert keys_and_values == pytest.approx(171_008 * 64 * 1024 / 2**30, abs=0.01)
    assert "K and V" in explained(found)["cache_tokens"]
    assert found.agrees
    assert found.overheads is None


def test_a_hybrids_tokens_follow_in_sglang() -> None:
    """330,323 tokens beside 124 slots of states, by the usual shares."""
    found = of("sglang-hybrid-fp8", "h100")
    assert explained(found)["cache_tokens"] == "follows from the printed GiB"
    assert found.plan.shape.kv_cache_size_tokens == pytest.approx(330_323, rel=0.01)


def test_a_pool_of_max_tokens_teaches_nothing() -> None:
    """TensorRT-LLM: lengths are read off `max_seq_len=`, 860,320 tokens are max_tokens in blocks of 32."""
    found = of("trtllm-max-tokens", "h200", "meta-llama/Llama-3.1-8B")
    args = found.plan.args
    assert (args.max_model_len, args.max_num_seqs, args.max_num_batched_tokens) == (157, 4096, 23552)
    assert args.gpu_memory_utilization == pytest.approx(0.8)
    assert explained(found)["cache_tokens"] == "follows from the printed GiB"
    assert found.overheads is None
    assert "max_tokens 860,308 states the pool" in found.conclusion
    assert found.agrees


def test_every_learned_figure_is_printed() -> None:
    """What a saved profile holds in place of the bundled figures is in text and document."""
    found = of("no-drafts-wsl", "rtx-5090")
    saved = found.profile("x").memory
    assert saved is not None
    usual = memory_profile("vllm", (0, 20))
    changed = {name for name in type(saved).model_fields if getattr(saved, name) != getattr(usual, name)}
    assert {value.name.split()[0] for value in found.learned} == changed
    for value in found.learned:
        assert str(value) in str(found)
    assert found.to_dict()["conclusion"] == found.conclusion
    assert str(found).endswith(found.conclusion)


PLANNED = {
    "commented-command": ("a100-80gb", MINISTRAL),
    "worker-names": ("a100-80gb", MINISTRAL),
    "no-drafts-wsl": ("rtx-5090", None),
    "lower-case-backend": ("gb10", "Qwen/Qwen3.6-35B-A3B"),
    "decode-context-parallel": ("h200", None),
    "restart": ("h100", None),
    "sglang-hybrid-fp8": ("h100", None),
}


@pytest.mark.parametrize("name", PLANNED)
def test_printed_commands_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The follow-up command is one that `estimate` takes, and gives the log's tokens back."""
    gpu, model = PLANNED[name]
    saved = tmp_path / "saved.json"
    log = str(PUBLIC / f"{name}.log")
    words = ["reconcile", log, "--gpu", gpu, *(("--model", model) if model else ()), "--save", str(saved)]
    assert run(words) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("kvplan estimate ")
    assert run([*shlex.split(command.replace("PROFILE.json", str(saved)))[1:], "--json"]) in (0, 1)
    plan = json.loads(capsys.readouterr().out)
    if name != "lower-case-backend":  # whose tokens vLLM 0.20.2 counts as 0.21 does
        printed = read_log(file_lines(log)).figures["cache_tokens"]
        assert plan["kv"]["cache_tokens"] == pytest.approx(printed, rel=0.005)
