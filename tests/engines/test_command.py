"""Pasted commands: what vLLM's parser takes is taken, what it refuses is refused, what does nothing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import FIXTURES

from kvplan.cli.main import run
from kvplan.engines.command import ACTS, NOT_PLANNED, read_command
from kvplan.engines.flags import EngineArgs
from kvplan.engines.resolve import resolve
from kvplan.engines.told import Command
from kvplan.engines.vllm_parser import vllm_flags
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu, split_count
from kvplan.memory.forward import estimate
from kvplan.memory.serve_command import serve_flags
from kvplan.models.load import from_config, load_model
from kvplan.models.lora import Adapters, lora_bytes

TEXT = (FIXTURES / "recipe_commands.txt").read_text()
RECIPES = [tuple(block.split("\n", 1)) for block in TEXT.split("\n== ")[1:]]


def test_every_flag_of_vllms_parser_is_known() -> None:
    """318 actions of the parser, less help and the positional model."""
    assert len(vllm_flags()) == 316
    assert set(ACTS) - {"num-speculative-tokens", "speculative-method"} <= set(vllm_flags())
    assert set(NOT_PLANNED) <= set(vllm_flags())
    assert not set(NOT_PLANNED) & set(ACTS)


TAKEN = {"video-pruning-rate": "0.5", "video-pruning-method": "evs"}
"""Values of flags that do not take 1."""


@pytest.mark.parametrize("name", sorted(vllm_flags()))
def test_every_flag_acts_or_is_listed(name: str) -> None:
    """None is dropped in silence."""
    refused = ("config",)
    if (
        name in ("model", "hf-overrides", "limit-mm-per-prompt", "speculative-config", *refused)
        or name in ACTS
    ):
        return
    kind = vllm_flags()[name]
    value = [] if kind in ("switch", "maybe") else [TAKEN.get(name, "1")]
    words = ["vllm", "serve", "m", f"--{name}", *value]
    if name == "enable-mamba-cache-stochastic-rounding":
        with pytest.raises(KvplanError, match="only with --mamba-ssm-cache-dtype float16"):
            read_command(words)
        words += ["--mamba-ssm-cache-dtype", "float16"]
    if name == "enable-fault-tolerance":
        words += ["--data-parallel-rank", "0"]
    if name.startswith("mm-encoder-fp8-scale") and name.endswith("path"):
        words += ["--mm-encoder-attn-dtype", "fp8"]
    told = read_command(words)
    listed = told.no_effect + tuple(flag.split(" ")[0] for flag in told.not_planned)
    assert listed == (f"--{name}",)


def outcome(head: str, text: str) -> str:
    """planned, or the first words of the refusal."""
    card = head.split(" | ")[1]
    try:
        told = read_command(text)
        model = load_model(told.model, hf_overrides=told.hf_overrides)
        estimate(model, get_gpu(split_count(card)[1]), told.args, engine=told.engine)
    except KvplanError as error:
        return str(error)
    return "planned"


REFUSED_BY_VLLM = ("--disable-log-requests", "serve serve", "image=4,audio=1")
"""What stands in commands that vLLM 0.32's own parser refuses."""


def test_recipes_are_read() -> None:
    """Every command is read, or refused as vLLM's own parser refuses it."""
    refused = 0
    for _, text in RECIPES:
        if any(part in text for part in REFUSED_BY_VLLM):
            with pytest.raises(KvplanError, match=r"has no such flag|unrecognized argument|a JSON object"):
                read_command(text)
            refused += 1
        else:
            read_command(text)
    assert refused == 5


def test_nineteen_in_twenty_recipes_are_planned() -> None:
    """Or refused as vLLM refuses them: by its parser, or states cached without chunks."""
    outcomes = [outcome(head, text) for head, text in RECIPES]
    planned = sum(o == "planned" for o in outcomes)
    by_vllm = sum(any(part in text for part in REFUSED_BY_VLLM) for _, text in RECIPES)
    by_vllm += sum("caches its states at the ends of chunks" in o for o in outcomes)
    assert (len(RECIPES), planned, by_vllm) == (85, 79, 6)
    assert planned + by_vllm >= 0.95 * len(RECIPES)


def test_the_older_form_of_limits_is_answered_with_the_newer() -> None:
    """vLLM 0.32's parser wants JSON; `image=4,audio=1` is how older commands say it."""
    with pytest.raises(KvplanError, match=r"""not image=4,audio=1; as '\{"image": 4, "audio": 1\}'$"""):
        read_command("vllm serve m --limit-mm-per-prompt image=4,audio=1")
    with pytest.raises(KvplanError, match=r"must be a JSON object, not image=many$"):
        read_command("vllm serve m --limit-mm-per-prompt image=many")


TP, PP, DP = "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"
DRAFTS, METHOD = "num_speculative_tokens", "speculative_method"


POD = """
kind: Deployment
spec:
  template:
    spec:
      volumes:
      - name: shm
        emptyDir: {medium: Memory}
      containers:
      - name: m
        image: vllm/vllm-openai:v0.11.0
        command: ["/bin/sh", "-c"]
        args: ["vllm serve m -tp 2 --max-model-len ${LENGTH}"]
        env:
        - name: TOKEN
          valueFrom: {secretKeyRef: {name: hub, key: token}}
        - name: LENGTH
          value: "32768"
        ports:
        - containerPort: 8000
"""
COMPOSE = """
services:
  web:
    image: nginx:latest
  m:
    image: vllm/vllm-openai:latest
    command: --model m --max-num-seqs 32
    environment:
      TOKEN: abc
"""


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("vllm serve m -tp 2 -pp=3 -dp 4", {TP: 2, PP: 3, DP: 4}),
        ("vllm serve m --max_model_len=32K -ep", {"max_model_len": 32768, "enable_expert_parallel": True}),
        ("vllm serve m --tensor-parallel 4 --max-num-se 8", {TP: 4, "max_num_seqs": 8}),
        ("vllm serve m --no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("vllm serve m -sc.method mtp -sc.num_speculative_tokens 2", {METHOD: "mtp", DRAFTS: 2}),
        (
            """vllm serve m --speculative-config '{"method":"eagle3","model":"x/y","num_speculative_tokens":3}'""",
            {METHOD: "eagle3", DRAFTS: 3},
        ),
        (
            """vllm serve m --speculative-config '{"model":"yuhuili/EAGLE-x","num_speculative_tokens":2}'""",
            {METHOD: "eagle", DRAFTS: 2},
        ),
        (
            """vllm serve m --speculative-config '{"model":"x/small","num_speculative_tokens":2}'""",
            {METHOD: "draft_model", DRAFTS: 2},
        ),
        (
            """vllm serve m --speculative-config '{"method":"qwen3_next_mtp","num_speculative_tokens":2}'""",
            {METHOD: "mtp", DRAFTS: 2},
        ),
        ("vllm serve m --spec-method ngram --spec-tokens 4", {METHOD: "ngram", DRAFTS: 4}),
        ("vllm serve m --spec-method suffix", {METHOD: "suffix", DRAFTS: 24}),
        ("vllm serve m --spec-method dspark --spec-tokens 5", {METHOD: "dspark", DRAFTS: 5}),
        (
            """vllm serve m --speculative-config '{"model":"org/dspark_qwen3_8b","num_speculative_tokens":7}'""",
            {METHOD: "dspark", DRAFTS: 7},
        ),
        ("vllm serve m -cc.cudagraph_mode=none", {"compilation_config": '{"cudagraph_mode": "NONE"}'}),
        (
            "vllm serve m -O0 --specialize-active-lora",
            {"optimization_level": 0, "specialize_active_lora": True},
        ),
        (
            "vllm serve m --cudagraph-capture-sizes 1 2 4 --max-cudagraph-capture-size 4",
            {"cudagraph_capture_sizes": (1, 2, 4), "max_cudagraph_capture_size": 4},
        ),
        (
            "vllm serve m --limit-mm-per-prompt.image 0 --limit-mm-per-prompt.video 0",
            {"limit_mm_per_prompt": '{"image": 0, "video": 0}'},
        ),
        ("vllm serve m --limit-mm-per-prompt.video 0", {"limit_mm_per_prompt": '{"video": 0}'}),
        ("""vllm serve m --limit-mm-per-prompt '{"audio": 0}'""", {"limit_mm_per_prompt": '{"audio": 0}'}),
        (
            """vllm serve m --limit-mm-per-prompt '{"image": 1, "video": 0}'""",
            {"limit_mm_per_prompt": {"image": 1, "video": 0}},
        ),
        ("vllm serve m --enable-lora --max-lora-rank 64", {"enable_lora": True, "max_lora_rank": 64}),
        ("nohup env A=1 python -m vllm.entrypoints.openai.api_server --model m -tp 2 > log 2>&1 &", {TP: 2}),
        ("N=4\nvllm serve m -tp ${N} --max-model-len ${LEN:-8192}", {TP: 4, "max_model_len": 8192}),
        ("docker run x vllm/vllm-openai:v1 --model m --max-num-seqs 8", {"max_num_seqs": 8}),
        ('docker run --entrypoint bash x -c "vllm serve m -tp 2"', {TP: 2}),
        ('["--model", "m", "--tensor-parallel-size", "2"]', {TP: 2}),
        ('- --model\n- m\n- "--tensor-parallel-size=2"', {TP: 2}),
        ('args: ["--model", "m", "--tensor-parallel-size", "2"]', {TP: 2}),
        (POD, {TP: 2, "max_model_len": 32768}),
        (COMPOSE, {"max_num_seqs": 32}),
    ],
)
def test_spellings(text: str, fields: dict[str, Any]) -> None:
    """As the shell and vLLM read them."""
    told = read_command(text)
    assert (told.engine, told.model) == ("vllm", "m")
    assert told.args == EngineArgs(**fields)


@pytest.mark.parametrize(
    "text",
    [
        "(cd /models && vllm serve m -tp 2)",
        "vllm serve m -tp 2;echo done",
        "vllm serve m -tp 2|tee log",
        "vllm serve m -tp 2&",
        "vllm serve m -tp 2 >log 2>&1",
        'tmux new-session -d -s v "vllm serve m -tp 2"',
        "ssh host 'cd /srv; exec vllm serve m -tp 2'",
        'bash -c "A=1 vllm serve m -tp 2"',
        'CMD="vllm serve m -tp 2"\n$CMD',
        'ARGS="-tp 2 --port 80"\nvllm serve m $ARGS',
        'ARGS=(\n  m # the model\n  -tp 2\n)\nARGS+=(--port 80)\nexec vllm serve "${ARGS[@]}"',
        "[Service]\nEnvironment='A=1'\nExecStart=/opt/bin/vllm serve m \\\n  -tp 2\nRestart=always",
    ],
)
def test_shells(text: str) -> None:
    """Subshells, commands within a word, arrays, variables of several flags, units of systemd: as bash starts them."""
    told = read_command(text)
    assert (told.model, told.args) == ("m", EngineArgs(tensor_parallel_size=2))
    assert set(told.no_effect) <= {"--port", "A"}


def test_more_than_one_engine_is_said() -> None:
    for text in ("vllm serve m -tp 2; vllm serve n", "vllm serve m -tp 2 &\nvllm serve n"):
        told = read_command(text)
        assert (told.model, told.notes) == ("m", ("more than one engine is started; the first is planned",))
    assert not read_command("pip install vllm==0.19.0 && vllm serve m").no_effect


@pytest.mark.parametrize(
    "start", ["command: [vllm, serve, m]", 'command: [sh, -c, "vllm serve m"]', "args: [m]"]
)
def test_a_manifest_keeps_its_image(start: str) -> None:
    told = read_command(f"containers:\n- image: vllm/vllm-openai:v0.19.0\n  {start}\n")
    assert (told.model, told.version) == ("m", "0.19")


def test_what_a_shell_would_work_out_is_asked_for() -> None:
    """A value that only a shell can know is named; quoted lines stay whole."""
    with pytest.raises(KvplanError) as refused:
        read_command("vllm serve m -tp $(nvidia-smi -L | wc -l)")
    assert str(refused.value) == (
        "--tensor-parallel-size $(nvidia-smi -L | wc -l): what a command prints is not known here; write the value"
    )
    lines = 'vllm serve m --hf-overrides \'{\n  "rope_theta": 1,\n  "a": "b; c"\n}\''
    assert read_command(lines).hf_overrides == {"rope_theta": 1, "a": "b; c"}
    with pytest.raises(KvplanError, match="cannot be read: no closing quotation"):
        read_command('A="-x\nvllm serve m $A')


def test_other_engines() -> None:
    """Their flags by their words."""
    sglang = read_command(
        "python3 -m sglang.launch_server --model-path m --tp 8 --mem-fraction-static 0.8 --port 1"
    )
    assert (sglang.engine, sglang.model, sglang.no_effect) == ("sglang", "m", ("--port",))
    assert (sglang.args.tensor_parallel_size, sglang.args.gpu_memory_utilization) == (8, 0.8)
    spread = read_command("python -m sglang.launch_server --model m --tp 8 --moe-a2a-backend deepep --ep 2")
    assert spread.args.enable_expert_parallel
    assert spread.notes == ()
    assert spread.not_planned == ("--moe-a2a-backend",)
    cut = read_command("python -m sglang.launch_server --model m --tp 8 --moe-a2a-backend none")
    assert not cut.args.enable_expert_parallel
    trt = read_command("trtllm-serve m --tp_size 4 --max_batch_size 64")
    assert (trt.engine, trt.args.tensor_parallel_size, trt.args.max_num_seqs) == ("tensorrt-llm", 4, 64)
    assert read_command("trtllm-serve m --kv_cache_dtype fp8").args.kv_cache_dtype == "fp8"


def test_sglang_data_parallel() -> None:
    """Attention in parts of the tensor-parallel ranks (SGLang `dp_attention.py`: tp // dp), or whole copies."""
    start = "python -m sglang.launch_server --model m --tp 8"
    inside = read_command(f"{start} --dp 4 --enable-dp-attention")
    assert inside.args == EngineArgs(tensor_parallel_size=2, data_parallel_size=4)
    assert "4 parts" in inside.notes[0]
    said = serve_flags(inside.args, "sglang", experts=True)
    assert said == {"tp-size": 8, "dp-size": 4, "enable-dp-attention": True}
    spread = read_command(f"{start} --dp 4 --ep 8 --enable-dp-attention")
    assert serve_flags(spread.args, "sglang", experts=True) == said | {"ep-size": 8}
    copies = read_command(f"{start} --data-parallel-size 2")
    assert copies.args == EngineArgs(tensor_parallel_size=8)
    assert "one of them" in copies.notes[0]
    with pytest.raises(KvplanError, match="does not divide"):
        read_command(f"{start} --dp 3 --enable-dp-attention")


def test_sglang_experts_over_some_of_the_ranks() -> None:
    """They are cut over the rest, so that a rank holds as much; the command that is planned says another number."""
    start = "python -m sglang.launch_server --model m --tp 8"
    part = read_command(f"{start} --ep 4")
    assert part.args == EngineArgs(tensor_parallel_size=8, enable_expert_parallel=True)
    assert part.notes == ("--ep-size 4: planned as experts over all 8 ranks, which hold as much of them",)
    assert read_command(f"{start} --ep 8").notes == read_command(start).notes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ls -l", "no engine is started"),
        ("vllm serve", "names no model"),
        ("vllm bench serve --model m", "no engine is started"),
        ("vllm serve m --tensor-parallel-sise 2", "did you mean tensor-parallel-size"),
        ("vllm serve m --swap-space 4", "has no such flag"),
        ("vllm serve m --bogus 1", r"--bogus: vLLM 0\.32 has no such flag$"),
        ("vllm serve m --max 4", "ambiguous, could be"),
        ("vllm serve m other", "unrecognized argument 'other'"),
        ("vllm serve m -tp", "expected one argument"),
        ("vllm serve m -tp $N", "value is not stated"),
        ("vllm serve m --speculative-config nothing", "must be a JSON object"),
        ("vllm serve m --spec-method medusa --spec-tokens 2", "'medusa' needs a model"),
        ("vllm serve m --spec-method egle --spec-tokens 2", "vLLM has no method 'egle'; did you mean eagle"),
        ("vllm serve m --spec-method eagle3 --spec-tokens 2", "needs a model"),
        ("vllm serve m --spec-method mtp", "num_speculative_tokens is missing"),
        ('vllm serve "m', "cannot be read"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(KvplanError, match=message):
        read_command(text)


def test_estimate_takes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Behind `--`; what does nothing is named; kvplan's own flags stand before it and win."""
    words = ["estimate", "--gpu", "2xh100", "--max-model-len", "8k", "--", "vllm", "serve", "Qwen/Qwen3-8B"]
    assert run([*words, "-tp", "2", "--max-model-len", "4096", "--port", "80"]) == 0
    out = capsys.readouterr().out
    assert "Maximum concurrency for 8,000 tokens" in out
    assert out.rstrip().endswith("No effect on the plan: --port")


def test_no_number_can_be_said_on_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As vLLM takes it, in a pasted command and in kvplan's own; what is printed can be pasted."""
    said = ["--prefix-cache-retention-interval", "None", "--prefix-match-unit", "None"]
    pasted = read_command(" ".join(["vllm serve google/gemma-3-4b-it", *said])).args
    assert (pasted.prefix_cache_retention_interval, pasted.prefix_match_unit) == (None, None)
    assert run(["estimate", "google/gemma-3-4b-it", *said]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert "--prefix-cache-retention-interval None" in printed
    assert read_command(printed).args.prefix_cache_retention_interval is None


def test_an_unknown_model_that_drafts_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """And said so; one that the command's own flags name is planned."""
    config = '{"method": "eagle3", "model": "x/y", "num_speculative_tokens": 3}'
    words = [
        "estimate",
        "--gpu",
        "h100",
        "--",
        "vllm",
        "serve",
        "Qwen/Qwen3-8B",
        "--speculative-config",
        config,
    ]
    assert run(words) == 0
    assert "Left out, no config of it is bundled: x/y, which drafts" in capsys.readouterr().out


def test_a_json_list_alone_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate", "--gpu", "h100", "--", '["vllm","serve","Qwen/Qwen3-8B"]']) == 0
    assert "KV cache" in capsys.readouterr().out


def test_hf_overrides_act() -> None:
    """A longer rope, as vLLM lays it over the config."""
    told: Command = read_command("""vllm serve Qwen/Qwen3-8B --hf-overrides '{"num_hidden_layers": 2}'""")
    assert len(load_model(told.model, hf_overrides=told.hf_overrides).layers) == 2


def test_lora_memory_equals_vllms() -> None:
    """A and B of every matrix, of the embedding and of the head: vLLM 0.32's own LoRA manager on this Llama."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    }
    assert lora_bytes(from_config(config), Adapters()) == 12_304_384


def test_throughput_mode_doubles_what_is_not_stated() -> None:
    """vLLM 0.32 `arg_utils.py: _set_default_max_num_seqs_and_batched_tokens_args`, on an H100's 8,192 and 1,024."""

    def batch(line: str) -> tuple[int, int]:
        args = resolve(
            read_command(f"vllm serve Qwen/Qwen3-8B {line}").args,
            load_model("Qwen/Qwen3-8B"),
            get_gpu("h100"),
        )
        return args.max_num_batched_tokens, args.max_num_seqs

    tokens, seqs = batch("")
    assert batch("--performance-mode throughput") == (2 * tokens, 2 * seqs)
    assert batch("--performance-mode throughput --max-num-seqs 64") == (2 * tokens, 64)


def test_flags_that_change_steps_do_not_pass_for_none() -> None:
    told = read_command(
        "vllm serve Qwen/Qwen3-8B --stream-interval 8 --worker-extension-cls x.Y --use-fp64-gumbel --port 80"
        " --disable-cascade-attn"
    )
    assert told.no_effect == ("--port", "--disable-cascade-attn")
    assert told.not_planned[0].startswith("--worker-extension-cls (code of one's own")
    assert told.args.use_fp64_gumbel


def test_kernels_and_micro_batches_are_read() -> None:
    told = read_command(
        "vllm serve m --moe-backend Deep-GEMM -ac.backend=FLASHINFER --enable-dbo --all2all-backend deepep_low_latency "
        '--kernel-config \'{"linear_backend": "marlin"}\' --kda-prefill-backend triton'
    )
    assert told.not_planned == told.no_effect == ()
    assert told.args == EngineArgs(
        moe_backend="deep_gemm",
        attention_config={"backend": "FLASHINFER"},  # type: ignore[arg-type]
        enable_dbo=True,
        all2all_backend="deepep_low_latency",
        kernel_config={"linear_backend": "marlin"},  # type: ignore[arg-type]
        kda_prefill_backend="triton",
    )


def test_the_tag_of_an_image_is_the_engines_version() -> None:
    """A docker line and a manifest; `latest` and an engine that is named say nothing."""
    docker = "docker run --gpus all vllm/vllm-openai:{} --model Qwen/Qwen3-8B"
    manifest = "containers:\n- image: vllm/vllm-openai:v0.19.1-x86_64\n  args: [--model, Qwen/Qwen3-8B]\n"
    assert read_command(docker.format("v0.19.0")).engine_asked == "vllm@0.19"
    assert read_command(manifest).engine_asked == "vllm@0.19"
    assert read_command(docker.format("latest")).engine_asked == "vllm"
    assert read_command("vllm serve Qwen/Qwen3-8B").notes == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("-cc 3", "compilation_config 3: must be a JSON object|must be a JSON object"),
        ("-cc.cudagraph_mode=BAR", "'BAR' is none of NONE, PIECEWISE"),
        ("-cc.foo=1", "foo"),
        ("-cc.mode=7", "mode 7: must be 'NONE', 'STOCK_TORCH_COMPILE'"),
        ("-cc.full_cuda_graph=true", "full_cuda_graph"),
        ("--cudagraph-capture-sizes 1 0", "--cudagraph-capture-sizes"),
        ("--max-cudagraph-capture-size 1.5", "--max-cudagraph-capture-size"),
        ("-O7", "--optimization-level"),
    ],
)
def test_compilation_flags_that_vllms_parser_refuses_are_refused(flags: str, words: str) -> None:
    with pytest.raises((KvplanError, ValueError), match=words):
        read_command(f"vllm serve m {flags}")


def test_sizes_of_items_that_do_not_act_are_said() -> None:
    assert read_command("vllm serve m -O3").notes == ()


def test_sizes_of_items_are_read() -> None:
    """As vLLM's classes take them; videos' pruning is checked and changes nothing that start-up takes."""
    start = "vllm serve m --limit-mm-per-prompt "
    told = read_command(start + '\'{"image": {"count": 2, "width": 512}, "video": {"num_frames": 8}}\'').args
    assert told.limit_mm_per_prompt == (
        '{"image": {"count": 2, "width": 512}, "video": {"count": 999, "num_frames": 8}}'
    )
    told = read_command("vllm serve m --mm-processor-kwargs.max_pixels 1003520 --media-io-kwargs '{}'").args
    assert (told.mm_processor_kwargs, told.media_io_kwargs) == ('{"max_pixels": 1003520}', None)
    pruned = read_command("vllm serve m --video-pruning-rate 0.5 --video-pruning-method evs")
    assert pruned.no_effect == ("--video-pruning-rate", "--video-pruning-method")
    for flags, message in (
        ("--limit-mm-per-prompt.image.length 3", "image has no 'length'; vLLM takes count, width, height"),
        ("--limit-mm-per-prompt.video.num_frames 0", "num_frames must be a whole number above 0"),
        ("--mm-processor-kwargs nothing", "must be a JSON object"),
        ("--video-pruning-rate 1", r"must be a share in \[0, 1\)"),
        ("--video-pruning-method best", "must be evs or vidcom2"),
    ):
        with pytest.raises((KvplanError, ValueError), match=message):
            read_command(f"vllm serve m {flags}")


def test_scales_of_towers_go_with_eight_bits_alone() -> None:
    """vLLM 0.32 `config/multimodal.py: _validate_multimodal_config`; what they say changes no plan."""
    path, save = "--mm-encoder-fp8-scale-path a.json", "--mm-encoder-fp8-scale-save-path b.json"
    with pytest.raises(KvplanError, match="scale-path: only with --mm-encoder-attn-dtype fp8"):
        read_command(f"vllm serve m {path}")
    with pytest.raises(KvplanError, match="scale-save-path: not beside --mm-encoder-fp8-scale-path"):
        read_command(f"vllm serve m --mm-encoder-attn-dtype fp8 {path} {save}")
    told = read_command(f"vllm serve m --mm-encoder-attn-dtype fp8 {path}")
    assert told.no_effect == ("--mm-encoder-fp8-scale-path",)


def test_no_drafts_at_all_are_refused() -> None:
    with pytest.raises(KvplanError, match="must be greater than 0"):
        read_command('vllm serve m --speculative-config \'{"method": "mtp", "num_speculative_tokens": 0}\'')


@pytest.mark.parametrize(
    ("flag", "idle", "other"),
    [
        ("scheduler-cls", "vllm.v1.core.sched.async_scheduler.AsyncScheduler", "my.Scheduler"),
        ("worker-cls", "auto", "my.Worker"),
    ],
)
def test_values_that_change_the_plan(flag: str, idle: str, other: str) -> None:
    """Of these flags the default's values change nothing; others do, in ways that are not planned."""
    assert read_command(f"vllm serve m --{flag} {idle}").no_effect == (f"--{flag}",)
    [told] = read_command(f"vllm serve m --{flag} {other}").not_planned
    assert told.startswith(f"--{flag} (")


@pytest.mark.parametrize("flag", ["logits-processors my.L", "model-class-overrides '{}'", "worker-cls my.W"])
def test_what_changes_memory_or_time_does_not_pass_for_nothing(flag: str) -> None:
    told = read_command(f"vllm serve m --{flag}")
    assert not told.no_effect
    assert len(told.not_planned) == 1


def test_a_file_of_flags_stands_before_the_commands_own(tmp_path: Path) -> None:
    """As vLLM's parser reads --config: the command line's own flags win, switches may be off, dicts are JSON."""
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: Qwen/Qwen3-8B\ntensor-parallel-size: 4\nmax_num_seqs: 64\nenable-prefix-caching: false\n"
        "enforce-eager: true\ncudagraph-capture-sizes: [1, 2]\nspeculative-config:\n  method: ngram\n"
        "  num_speculative_tokens: 3\n"
    )
    told = read_command(f"vllm serve --config {file} -tp 2 --port 80")
    assert (told.model, told.no_effect, told.not_planned) == ("Qwen/Qwen3-8B", ("--port",), ())
    assert told.args == EngineArgs(
        tensor_parallel_size=2,
        max_num_seqs=64,
        enable_prefix_caching=False,
        enforce_eager=True,
        cudagraph_capture_sizes=(1, 2),
        num_speculative_tokens=3,
        speculative_method="ngram",
    )
    assert read_command(f"vllm serve Qwen/Qwen3-4B --config={file}").model == "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("serve.txt", "port: 80", "a .yaml or .yml file"),
        ("serve.yaml", None, "cannot be read"),
        ("serve.yaml", "- 80", "holds no flags"),
        ("serve.yaml", "port: [", "--config"),
        ("serve.yaml", "tensor-paralel: 2", "no such flag"),
    ],
)
def test_files_of_flags_not_to_be_read(tmp_path: Path, name: str, text: str | None, why: str) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(KvplanError, match=why):
        read_command(f"vllm serve m --config {file}")


def test_keys_of_one_object_are_laid_together_at_every_depth() -> None:
    """`--flag.a.b` twice, lists that grow, counts with suffixes; one stated whole gives way, as to vLLM's parser."""
    sized = "--limit-mm-per-prompt.image.count 2 --limit-mm-per-prompt.image.width 512"
    told = read_command(f"vllm serve m {sized} --limit-mm-per-prompt.image.height 256").args
    assert told.limit_mm_per_prompt == '{"image": {"count": 2, "height": 256, "width": 512}}'
    graphs = (
        "-cc.cudagraph_capture_sizes+ 1,2 -cc.cudagraph_capture_sizes+ 4 -cc.pass_config.fuse_norm_quant true"
    )
    told = read_command(f"vllm serve m {graphs} -cc.pass_config.fuse_act_quant=false").args
    assert json.loads(told.compilation_config or "") == {
        "cudagraph_capture_sizes": [1, 2, 4],
        "pass_config": {"fuse_act_quant": False, "fuse_norm_quant": True},
    }
    told = read_command("vllm serve m -cc.cudagraph_mode=NONE -cc '{\"max_cudagraph_capture_size\": 8}'").args
    assert told.compilation_config == '{"cudagraph_mode": "NONE"}'
    extra = "--kv-transfer-config.kv_connector_extra_config."
    told = read_command(
        "vllm serve m --kv-transfer-config.kv_connector OffloadingConnector --kv-transfer-config.kv_role kv_both "
        f"{extra}cpu_bytes_to_use 40g {extra}blocks_per_chunk 4"
    ).args
    assert json.loads(told.kv_transfer_config or "")["kv_connector_extra_config"] == {
        "blocks_per_chunk": 4,
        "cpu_bytes_to_use": 40_000_000_000,
    }


@pytest.mark.parametrize("spelled", ["-O1", "-O 1", "-O=1", "--optimization-level 1"])
def test_levels_of_optimisation(spelled: str) -> None:
    assert read_command(f"vllm serve m {spelled} --port 1").args == EngineArgs(optimization_level=1)


@pytest.mark.parametrize("text", ["TP=2; vllm serve m -tp $TP", "export TP=2; vllm serve m -tp ${TP}"])
def test_a_variable_before_a_semicolon(text: str) -> None:
    assert read_command(text).args.tensor_parallel_size == 2


def test_other_engines_flags_that_change_the_plan_do_not_pass_for_nothing() -> None:
    told = read_command(
        "python -m sglang.launch_server --model-path m --cpu-offload-gb 4 --speculative-algorithm NGRAM --port 1"
    )
    assert told.not_planned == ("--cpu-offload-gb", "--speculative-algorithm")
    assert told.no_effect == ("--port",)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--stream-interval 0", "--stream-interval '0': must be greater than or equal to 1"),
        ("--max-lora-rank 48", "--max-lora-rank"),
        ("--enable-lora --max-loras 4 --max-cpu-loras 2", "--max-cpu-loras 2 must be at least --max-loras 4"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(flags: str, why: str) -> None:
    with pytest.raises(KvplanError, match=why) as error:
        read_command(f"vllm serve m {flags}")
    assert "\n" not in str(error.value)


def test_flags_in_vain_are_said() -> None:
    told = read_command("vllm serve m --max-loras 8 --offload-backend uva --offload-group-size 4")
    assert told.notes == (
        "--max-loras does nothing without --enable-lora",
        "--offload-group-size does nothing with --offload-backend uva",
    )
    assert read_command("vllm serve m --enable-lora --max-loras 8 --cpu-offload-gb 4").notes == ()
    both = read_command("vllm serve m --cpu-offload-gb 4 --offload-group-size 4").notes
    assert both == ("--cpu-offload-gb does nothing beside --offload-group-size, which prefetches",)
