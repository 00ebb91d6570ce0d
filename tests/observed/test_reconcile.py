"""Start-up logs beside their plans: what is read, what explains it, what is learned, what is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import FIXTURES

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import answer
from kvplan.observed import reader
from kvplan.observed.log_flags import read_flags
from kvplan.observed.reader import file_lines
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.startup import read_log
from kvplan.profiles.memory_profile import MemoryProfile
from kvplan.profiles.profile import load_profile

LOGS = FIXTURES / "logs"

KNOWN = {  # file -> card, engine and version read, figures read, flags read
    "vllm-0.6-v0": (
        "rtx-3090",
        "vllm@0.6",
        {"num_gpu_blocks": 1952, "kv_gib": 3.81},
        {"max_model_len": 20000},
    ),
    "vllm-0.6-table": (
        "a100-80gb",
        "vllm@0.6",
        {"kv_gib": 53.29, "non_torch_gib": 1.79},
        {"max_model_len": 8192},
    ),
    "vllm-0.7-v0": ("a10g", "vllm@0.7", {"num_gpu_blocks": 36332, "graphs_gib": 0.18}, {"dtype": "bfloat16"}),
    "vllm-0.10-tp4-pp2": (
        "gh200-96gb",
        "vllm@0.10",
        {"kv_gib": 70.58, "cache_tokens": 6167536, "max_concurrency": 23.53},
        {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "max_num_batched_tokens": 16384},
    ),
    "vllm-0.11-debug": (
        "h100",
        "vllm@0.11",
        {"weights_gib": 44.7622, "activation_gib": 2.12, "total_gib": 79.18, "cache_tokens": 184832},
        {"block_size": 128, "gpu_memory_utilization": 0.95},
    ),
    "vllm-0.11-tp8-docker": (
        "h200",
        "vllm@0.11",
        {"kv_gib": 41.6, "cache_tokens": 635648},
        {"tensor_parallel_size": 8},
    ),
    "vllm-0.13-padding": (
        "rtx-5090",
        "vllm@0.13",
        {"cache_tokens": 950864},
        {"max_num_batched_tokens": 8192},
    ),
    "vllm-0.26-refused": (
        "l40s",
        "vllm@0.26",
        {"kv_gib": 7.04, "needed_gib": 8.18, "estimated_len": 112896, "graphs_estimated_gib": 1.11},
        {"max_num_seqs": 16, "enable_prefix_caching": False},
    ),
    "vllm-0.32-one-line": ("h100", "vllm@0.32", {"cache_tokens": 394012, "max_concurrency": 12.02}, {}),
    "sglang-0.4": ("rtx-4090", "sglang@0.4", {"cache_tokens": 38141, "k_gib": 2.33, "before_gib": 22.39}, {}),
    "sglang-0.5-hybrid": (
        "h100",
        "sglang@0.5",
        {"cache_tokens": 2618868, "state_slots": 48},
        {"max_num_seqs": 48},
    ),
    "sglang-0.5-tp2": (
        "h100",
        "sglang@0.5",
        {"cache_tokens": 293371, "graphs_gib": 1.02},
        {"tensor_parallel_size": 2},
    ),
    "trtllm-0.8": ("a100-80gb", "tensorrt-llm@0.8", {"kv_bytes": 69524783104, "cache_tokens": 132608}, {}),
    "trtllm-1.0": (
        "rtx-5090",
        "tensorrt-llm@1.0",
        {"num_gpu_blocks": 8219, "before_pool_gib": 17.83},
        {"max_num_seqs": 64},
    ),
}
MODELS = {"trtllm-0.8": "meta-llama/Llama-2-7b-hf"}
"""Models that a log does not name."""


def of(name: str) -> Reconciliation:
    return reconcile(file_lines(LOGS / f"{name}.txt"), gpu=KNOWN[name][0], model=MODELS.get(name))


def test_every_fixture_is_known() -> None:
    assert {path.stem for path in LOGS.glob("*.txt")} == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_figures_and_flags_are_read(name: str) -> None:
    """Engine, version, figures of the rank with least room, and flags, whatever the version's words."""
    _, engine, figures, flags = KNOWN[name]
    log = read_log(file_lines(LOGS / f"{name}.txt"))
    assert {key: log.figures[key] for key in figures} == figures
    assert {key: log.flags[key] for key in flags} == flags
    assert str(of(name).plan.question.engine) == engine


@pytest.mark.parametrize("name", KNOWN)
def test_printed_tokens_follow_from_the_printed_pool(name: str) -> None:
    """Whatever the overheads, the pool of the log becomes its blocks, tokens and concurrency; weights agree."""
    for line in of(name).lines:
        if line.unit in ("blocks", "tokens", "x") and line.printed is not None:
            assert line.explanation.startswith("follows from the printed GiB"), line
        if line.name == "weights" and line.printed is not None:
            assert line.explanation == "agrees" or name == "trtllm-0.8", line


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_learned_gives_the_log_back(name: str) -> None:
    """The plan of the same flags under the learned overheads has the log's blocks or tokens."""
    found = of(name)
    assert found.overheads is not None, found.why_nothing_learned
    shape = answer(replace(found.plan.question, profile=found.overheads)).shape
    for key, got in (("num_gpu_blocks", shape.num_blocks), ("cache_tokens", shape.kv_cache_size_tokens)):
        if key in found.log.figures:
            assert got == pytest.approx(found.log.figures[key], rel=0.005)


def test_explanations_name_what_differs() -> None:
    """A quantised checkpoint by its weights, a KV dtype by its tokens, drafts of another batch by its peak."""
    lines = {line.name: line.explanation for line in of("trtllm-0.8").lines}
    assert "quantization fp8" in lines["weights"]
    adopted = of("trtllm-1.0")
    assert adopted.plan.args.kv_cache_dtype == "fp8"
    assert "--kv-cache-dtype fp8" in str(adopted)
    half = {line.name: line.explanation for line in reconcile(halved_batch(), gpu="h100").lines}
    assert half["activation"].startswith("as with --max-num-seqs 512")


def halved_batch() -> str:
    """The debug log as it would be with max_num_seqs 512, which its flags do not tell: 38.4 B a logit less."""
    model = of("vllm-0.11-debug").plan
    less = 38.4 * 512 * model.question.model.vocab_size / 2**30
    gib = model.budget.activation.size.value / 2**30 - less
    log = (LOGS / "vllm-0.11-debug.txt").read_text()
    drop = ("GPU KV cache size", "Maximum concurrency", "Available KV", "DEBUG 10-09 08:03:00")
    kept = [line for line in log.splitlines() if not any(word in line for word in drop)]
    pool = f"(EngineCore_DP0 pid=272) INFO Available KV cache memory: {30.32 - gib:.2f} GiB"
    return "\n".join([*kept, pool]).replace("2.12 GiB for peak", f"{gib:.2f} GiB for peak")


# ---- what one log teaches about another


@pytest.mark.parametrize(("told", "asked"), [("20000", "29000"), ("29000", "20000")])
def test_another_length_stays_close(told: str, asked: str) -> None:
    """vLLM 0.6 on an RTX 3090 at 20,000 and 29,000 tokens (vLLM issue 10517): 3.81 and 2.89 GiB of KV."""
    first = (LOGS / "vllm-0.6-v0.txt").read_text()
    second = first.replace("20000", "29000").replace("17.06GiB", "17.98GiB").replace("3.81GiB", "2.89GiB")
    second = second.replace("# GPU blocks: 1952", "# GPU blocks: 1478").replace("1.56x", "0.82x")
    logs, blocks = {"20000": first, "29000": second}, {"20000": 1952, "29000": 1478}
    found = reconcile(logs[told], gpu="rtx-3090")
    assert found.overheads is not None
    args = found.plan.question.args.model_copy(update={"max_model_len": int(asked)})
    other = answer(replace(found.plan.question, args=args, profile=found.overheads))
    assert other.shape.num_blocks == pytest.approx(blocks[asked], rel=0.03)


def test_another_share_of_the_card_stays_close() -> None:
    """vLLM 0.26 on an L40S left 7.04 GiB at 0.86 and 8.82 GiB at 0.90."""
    found = of("vllm-0.26-refused")
    args = found.plan.question.args.model_copy(update={"gpu_memory_utilization": 0.9})
    other = answer(replace(found.plan.question, args=args, profile=found.overheads))
    assert other.budget.kv.size.value / 2**30 == pytest.approx(8.82, rel=0.03)


# ---- the command


def test_save_then_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`reconcile --save`, then `estimate --profile` with the same flags: the log's tokens."""
    profile = tmp_path / "mine.json"
    log = str(LOGS / "vllm-0.11-tp8-docker.txt")
    assert run(["reconcile", log, "--gpu", "h200", "--save", str(profile), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    words = told["estimate_command"].replace("PROFILE.json", str(profile)).split()[1:]
    assert run([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kv"]["cache_tokens"] == pytest.approx(635648, rel=0.005)
    assert "learned from a start-up log" in plan["sources"]["weights_bytes"]
    assert load_profile(profile).engine_version == "0.11.2"


def test_a_log_can_be_piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raw = (LOGS / "vllm-0.13-padding.txt").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert run(["reconcile", "-", "--gpu", "rtx-5090"]) == 0
    assert "950,864" in capsys.readouterr().out


def test_what_the_log_does_not_say_is_asked_for() -> None:
    with pytest.raises(KvplanError, match=r"does not name its card; name it: --gpu NAME"):
        reconcile((LOGS / "vllm-0.13-padding.txt").read_text())
    with pytest.raises(KvplanError, match=r"79.18 GiB: .*h100-sxm"):
        reconcile((LOGS / "vllm-0.11-debug.txt").read_text())
    with pytest.raises(KvplanError, match="does not name its model"):
        reconcile((LOGS / "trtllm-0.8.txt").read_text(), gpu="a100")
    with pytest.raises(KvplanError, match="is not bundled"):
        reconcile(
            (LOGS / "vllm-0.13-padding.txt").read_text().replace("google/gemma-3-1b-it", "me/mine"),
            gpu="h100",
        )
    with pytest.raises(KvplanError, match="the log is one of vllm"):
        reconcile((LOGS / "vllm-0.13-padding.txt").read_text(), gpu="h100", engine="sglang")


def test_a_card_named_in_the_log_is_taken() -> None:
    lines = "GPU 0: NVIDIA GeForce RTX 5090 (UUID: GPU-1)\n" + (LOGS / "vllm-0.13-padding.txt").read_text()
    assert reconcile(lines).plan.question.gpu.name == "rtx-5090"


def test_wrapped_commands_and_argument_lists_are_read() -> None:
    """Flags of a command over several lines, or of a container's argument list; a model by its cache folder."""
    log = read_log(
        "vllm serve /root/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/abc123 \\\n"
        "  -tp 2 --max-model-len 32768 \\\n    --no-enable-prefix-caching\n"
        '  - "--max-num-seqs=64"\n  - --api-key=sk-made-up-0123456789\n'
        "Available KV cache memory: 40.00 GiB\n"
    )
    assert log.flags == {
        "tensor_parallel_size": 2,
        "max_model_len": 32768,
        "enable_prefix_caching": False,
        "max_num_seqs": 64,
    }
    assert reconcile(log, gpu="h100").plan.question.model.name == "Qwen/Qwen3-8B"


def test_a_draft_model_does_not_contradict_its_target() -> None:
    """SGLang prints weights and KV again for a draft; the first figures are the target's."""
    target = (LOGS / "sglang-0.4.txt").read_text()
    draft = "[2025-07-20 09:00:42] Load weight end. type=Eagle, avail mem=1.00 GB, mem usage=0.46 GB.\n"
    draft += "[2025-07-20 09:00:43] KV Cache is allocated. #tokens: 38141, K size: 0.07 GB, V size: 0.07 GB\n"
    log = read_log(target + draft)
    assert (log.figures["weights_gib"], log.figures["k_gib"]) == (15.02, 2.33)


def test_an_overheads_profile_is_its_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = str(tmp_path / "sgl.json")
    assert run(["reconcile", str(LOGS / "sglang-0.4.txt"), "--gpu", "rtx-4090", "--save", profile]) == 0
    assert run(["estimate", "Qwen/Qwen3-8B", "--gpu", "rtx-4090", "--profile", profile]) == 2
    assert "overheads of sglang, not of vllm" in capsys.readouterr().err


def test_user_flags_win() -> None:
    from kvplan.engines.flags import EngineArgs

    found = reconcile(
        (LOGS / "vllm-0.13-padding.txt").read_text(), gpu="h100", args=EngineArgs(gpu_memory_utilization=0.5)
    )
    assert found.plan.args.gpu_memory_utilization == 0.5


# ---- bad input

V1 = (LOGS / "vllm-0.11-debug.txt").read_text()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "no start-up of vLLM, SGLang or TensorRT-LLM"),
        ("Listening on port 80\n" * 1000, "no start-up of vLLM, SGLang or TensorRT-LLM"),
        ("\n".join(V1.splitlines()[:4]), "ends before the engine sized its KV cache"),
        (V1 + (LOGS / "sglang-0.4.txt").read_text(), "figures of vllm and sglang in one log"),
        (
            V1 + V1.replace("28.20 GiB", "31.10 GiB").split("DEBUG", 1)[1],
            "contradicts itself: kv_gib is 28.2 in line 7",
        ),
        (
            V1.replace("max_seq_len=16000", "max_seq_len=32000"),
            "contradicts itself: max_model_len is 16000 in line 2",
        ),
        ("\0\1\2", "binary data"),
    ],
)
def test_bad_logs_are_named(lines: str, words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        reconcile(lines, gpu="h100")


def test_figures_that_exclude_each_other_are_named_and_teach_nothing() -> None:
    """Tokens that are not the concurrency's, and a budget that does not add up."""
    found = reconcile(V1.replace("11.55x", "7.20x"), gpu="h100")
    assert any("7.20x" in one for one in found.contradictions)
    assert found.overheads is None
    with pytest.raises(KvplanError, match="nothing to save"):
        found.profile("x")
    found = reconcile(V1.replace("44.76", "30.76"), gpu="h100", model="meta-llama/Llama-3.1-8B")
    assert any("the log prints" in one for one in found.contradictions)


def test_a_pool_stated_by_a_flag_teaches_nothing() -> None:
    stated = V1.replace("'block_size': 128", "'block_size': 128, 'kv_cache_memory_bytes': 30278574080")
    assert "states the pool" in reconcile(stated, gpu="h100").why_nothing_learned


def test_a_second_start_counts() -> None:
    """A log of two starts: the last one, and says so."""
    first = (LOGS / "vllm-0.13-padding.txt").read_text().replace("25.39", "11.11")
    found = reconcile(first + (LOGS / "vllm-0.13-padding.txt").read_text(), gpu="rtx-5090")
    assert found.log.figures["kv_gib"] == 25.39
    assert "2 starts" in str(found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(range(256)) * 100, "binary data"),
        (gzip.compress(V1.encode()), r"packed \(gzip\)"),
        (b"\xff\xfe\x00", "no start-up|binary"),
    ],
)
def test_files_that_are_no_text_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(content)
    with pytest.raises(KvplanError, match=words):
        read_log(file_lines(file))


def test_a_powershell_log_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_bytes(V1.encode("utf-16"))
    assert read_log(file_lines(file)).figures["cache_tokens"] == 184832


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reconcile", str(tmp_path / "none.log")]) == 2
    assert run(["reconcile", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "no such file" in err
    assert "is a folder" in err


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end is read in pieces, a log without an end is refused by name."""
    lines = list(reader.stream_lines(io.BytesIO(b"x" * 3_000_000)))
    assert max(len(line) for line in lines) <= reader.MiB + reader.LONGEST_LINE
    monkeypatch.setattr(reader, "MOST_BYTES", 2_000_000)
    with pytest.raises(KvplanError, match="longer than"):
        list(reader.stream_lines(io.BytesIO(b"x\n" * 3_000_000)))
    with pytest.raises(KvplanError, match="longer than"):
        list(reader.clean_lines("x" * 10 for _ in range(10**6)))


SECRETS = ("sk-made-up-0123456789", "hf_madeUpTokenForTests", "made-up")


@pytest.mark.parametrize("name", KNOWN)
def test_secrets_are_neither_shown_nor_stored(name: str) -> None:
    """Keys of command lines, namespaces and server arguments stay in the log."""
    found = of(name)
    profile = found.profile("x").model_dump_json()
    for told in (str(found), json.dumps(found.to_dict()), profile, repr(found.log)):
        assert not any(secret in told for secret in SECRETS)


def test_secrets_in_odd_places_are_not_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As a model's name, a flag's value, in a broken line: errors do not repeat them either."""
    odd = V1.replace("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "hf_madeUpTokenForTests")
    odd = odd.replace("kv_cache_dtype=auto", "kv_cache_dtype=sk-made-up-0123456789")
    file = tmp_path / "a.log"
    file.write_text(odd)
    assert run(["reconcile", str(file), "--gpu", "h100"]) == 2
    said = capsys.readouterr()
    assert "does not name its model" in said.err
    assert not any(secret in said.err + said.out for secret in SECRETS)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(V1.splitlines()) | st.text(max_size=80), max_size=12))
def test_any_lines_give_a_log_or_a_named_error(lines: list[str]) -> None:
    with contextlib.suppress(KvplanError):
        assert read_log(lines).figures


def test_profiles_without_the_new_keys_still_load() -> None:
    """Profiles saved before totals and weights were learned read as they did."""
    assert MemoryProfile.model_fields["total_gib"].get_default(call_default_factory=True) == {}


@pytest.mark.parametrize(
    "line",
    [
        """vllm serve m --max-num-seqs 8 --limit-mm-per-prompt '{"image": 2, "video": {"count": 0}}'""",
        "non-default args: {'limit_mm_per_prompt': {'image': 2, 'video': 0}, 'max_num_seqs': 8}",
    ],
)
def test_items_per_prompt_are_read_as_commands_say_and_logs_print_them(line: str) -> None:
    found = {"max_num_seqs": 8, "limit_mm_per_prompt": '{"image": 2, "video": 0}'}
    assert read_flags(line, "vllm") == found


def test_kv_connectors_are_no_flag_that_breaks_a_log() -> None:
    """vLLM's own offloading is read from its JSON; other connectors, and how Python prints one, tell nothing."""
    nixl = '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'
    own = nixl.replace("Nixl", "Offloading")
    line = "vllm serve m --max-num-seqs 8 --kv-transfer-config "
    assert read_flags(f"{line}'{nixl}'", "vllm") == {"max_num_seqs": 8}
    assert read_flags(f"{line}'{own}'", "vllm") == {"max_num_seqs": 8, "kv_transfer_config": own}
    object_ = "KVTransferConfig(kv_connector='NixlConnector', kv_role='kv_both')"
    printed = f"non-default args: {{'kv_transfer_config': {object_}, 'max_num_seqs': 8}}"
    assert read_flags(printed, "vllm") == {"max_num_seqs": 8}
