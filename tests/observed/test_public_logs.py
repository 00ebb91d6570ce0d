"""Other people's start-up logs on which `reconcile` once went wrong: the right figures of each."""

from __future__ import annotations

import pytest
from places import FIXTURES

from kvplan.observed.reader import file_lines
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.startup import read_log

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
