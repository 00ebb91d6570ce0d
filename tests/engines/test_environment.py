"""Environment variables of vLLM: those that act change the plan as vLLM's code says, the others are listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.environment import ACTS, KERNEL_NAMES, NOT_PLANNED, environment_of, sort_out
from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.engines.idle_variables import IDLE
from kvplan.engines.resolve import resolve
from kvplan.engines.stages import stages_of
from kvplan.engines.told import Command
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.memory.forward import Plan, estimate
from kvplan.memory.overheads import indexer_workspace
from kvplan.memory.serve_command import shell_command, yaml_config
from kvplan.models.load import load_model
from kvplan.models.weights import stage_spans
from kvplan.profiles.step_times import make_step_times

QWEN = "Qwen/Qwen3-32B"


def plan(model: str = QWEN, env: str | None = None, **flags: object) -> Plan:
    return estimate(model, "h100", EngineArgs(env=env, **flags))  # type: ignore[arg-type]


def test_a_partition_of_layers() -> None:
    """Stages hold what VLLM_PP_LAYER_PARTITION says (vLLM 0.32 `distributed/utils.py: get_pp_indices`)."""
    assert stage_spans(62, 4, (20, 20, 20, 2)) == ((0, 20), (20, 40), (40, 60), (60, 62))
    even = plan(pipeline_parallel_size=2)
    stated = plan(env="VLLM_PP_LAYER_PARTITION=32,32", pipeline_parallel_size=2)
    assert stated.layout.num_blocks == even.layout.num_blocks
    uneven = plan(env="VLLM_PP_LAYER_PARTITION=40,24", pipeline_parallel_size=2)
    assert uneven.layout.num_blocks < even.layout.num_blocks
    for wrong in ("40,25", "64", "20,20,24"):
        with pytest.raises(KvplanError, match=r"VLLM_PP_LAYER_PARTITION=.*there are 2 of 64"):
            plan(env=f"VLLM_PP_LAYER_PARTITION={wrong}", pipeline_parallel_size=2)


def test_the_first_model_runner_s_sampler_holds_more() -> None:
    """More bytes per logit, so a lower peak in the second one (`catalog/overheads.json`)."""
    tokens = [
        plan("Qwen/Qwen3-8B", env).layout.num_blocks
        for env in (None, "VLLM_USE_V2_MODEL_RUNNER=1", "VLLM_USE_V2_MODEL_RUNNER=0")
    ]
    assert tokens[0] == tokens[1] > tokens[2]


def test_graphs_outside_the_budget() -> None:
    inside, outside = (plan(env=env) for env in (None, "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0"))
    graphs = inside.budget.graphs.size.value
    assert outside.budget.kv.size.value == inside.budget.kv.size.value + graphs


def test_chunks_kept_whole() -> None:
    """Without it the hybrid manager goes (vLLM 0.32 `config/vllm.py`), as by its flag."""
    scout = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    told = {"tensor_parallel_size": 8, "max_model_len": 131072}
    off = plan(scout, "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE=0", **told)
    same = plan(scout, disable_hybrid_kv_cache_manager=True, **told)
    assert off.max_concurrency == same.max_concurrency != plan(scout, **told).max_concurrency


def test_an_embedding_on_every_rank() -> None:
    """DeepSeek V3.2's class looks at it, V3's does not (vLLM 0.32 `layers/fused_embed_norm.py`)."""
    for name, copies in (("deepseek-ai/DeepSeek-V3.2", 7), ("deepseek-ai/DeepSeek-V3", 0)):
        model, sizes = load_model(name), []
        for env in (None, "VLLM_REPLICATE_EMBED=1"):
            made = estimate(model, "h200", EngineArgs(env=env, tensor_parallel_size=8))
            sizes.append(made.budget.weights.size.value)
        one_rank = model.vocab_size * model.hidden_size * 2 // 8
        assert sizes[1] - sizes[0] == copies * one_rank, name


def test_queries_of_a_group_on_every_rank() -> None:
    """The variable goes over the flag (vLLM 0.32 `models/deepseek_v2.py`)."""
    shape = {"tensor_parallel_size": 8, "decode_context_parallel_size": 8}
    weights = [
        plan("deepseek-ai/DeepSeek-V3", env, **shape, dcp_q_replicate=flag).budget.weights.size.value
        for env, flag in ((None, None), (None, True), ("VLLM_DCP_Q_REPLICATE=1", None))
    ]
    assert weights[0] < weights[1] == weights[2]
    off = plan("deepseek-ai/DeepSeek-V3", "VLLM_DCP_Q_REPLICATE=0", **shape, dcp_q_replicate=True)
    assert off.budget.weights.size.value == weights[0]


def test_longer_than_the_model() -> None:
    long = plan(env="VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", max_model_len=50_000)
    assert long.max_model_len == 50_000
    with pytest.raises(KvplanError, match="made for 40,960"):
        plan(max_model_len=50_000)


def test_latents_as_heads_are_refused() -> None:
    with pytest.raises(KvplanError, match="VLLM_MLA_DISABLE: keys and values of every head"):
        plan("deepseek-ai/DeepSeek-V2-Lite", "VLLM_MLA_DISABLE=1")
    assert plan("deepseek-ai/DeepSeek-V2-Lite", "VLLM_MLA_DISABLE=0").layout
    assert plan("Qwen/Qwen3-8B", "VLLM_MLA_DISABLE=1").layout


def test_a_pasted_command_takes_its_variables() -> None:
    told = read_command(
        "export VLLM_PP_LAYER_PARTITION=30,34 HF_TOKEN=x VLLM_USE_DEEP_GEMM=0\n"
        "VLLM_USE_V2_MODEL_RUNNER=0 vllm serve Qwen/Qwen3-32B -pp 2 --port 1"
    )
    assert told.args.environment == environment_of("VLLM_PP_LAYER_PARTITION=30,34 VLLM_USE_V2_MODEL_RUNNER=0")
    assert told.no_effect == ("--port", "HF_TOKEN")
    assert told.not_planned == ("VLLM_USE_DEEP_GEMM (kernels: timed as the default's)",)


@pytest.mark.parametrize("name", ACTS)
def test_what_is_printed_starts_the_same(name: str) -> None:
    """In front of the command; in a file, as a line that says how to start it."""
    words = {
        "VLLM_PP_LAYER_PARTITION": "30,34",
        "VLLM_MOE_ROUTING_SIMULATION_STRATEGY": "uniform_random",
        "VLLM_KV_CACHE_LAYOUT": "BLHNC",
    }
    said = words.get(name, "1")
    args = EngineArgs(env=f"{name}={said}")
    printed = shell_command(QWEN, args)
    assert read_command(printed).args == args
    assert yaml_config(QWEN, args).splitlines()[0] == f"# {name}={said} vllm serve --config FILE"
    assert EngineArgs(**json.loads(args.model_dump_json())) == args


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ("VLLM_USE_V2_MODEL_RUNNER=maybe", "vLLM reads a whole number"),
        ("VLLM_PP_LAYER_PARTITION=a,b", "layers of each pipeline stage"),
        ("VLLM_PP_LAYER_PARTITON=1,2", "did you mean VLLM_PP_LAYER_PARTITION"),
        ("VLLM_MOE_ROUTING_SIMULATION_STRATEGY=zipf", "vLLM has uniform_random and normal_routing"),
        ("HF_TOKEN=x", "no variable that acts"),
    ],
)
def test_what_cannot_be_read_is_refused(env: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        EngineArgs(env=env)


def test_every_other_variable_is_listed() -> None:
    """None is dropped in silence."""
    names = ["CUDA_VISIBLE_DEVICES", "VLLM_LOGGING_LEVEL", "VLLM_ATTENTION_BACKEND", "VLLM_USE_DEEP_GEMM"]
    unplanned, unaffected = sort_out([*names, *ACTS])
    assert unaffected == names[:2]
    assert [told.split(" ")[0] for told in unplanned] == sorted(names[2:])
    assert isinstance(read_command("vllm serve m"), Command)


def test_each_of_vllms_variables_is_one_of_four() -> None:
    """`fixtures/variables_vllm_0.32.txt` has the names that vLLM 0.32 reads (`make_variables.py`): each acts, is named
    with a reason, tunes kernels, or does nothing for a reason; and nothing else is sorted."""
    names = set((FIXTURES / "variables_vllm_0.32.txt").read_text().split())
    assert len(names) > 320
    kernels = {name for name in names - set(NOT_PLANNED) - set(IDLE) if KERNEL_NAMES.match(name)}
    sorted_out = [set(ACTS), set(NOT_PLANNED), set(IDLE), kernels - set(ACTS)]
    assert set().union(*sorted_out) == names
    assert sum(map(len, sorted_out)) == len(names)


def test_a_variable_that_vllm_does_not_have_is_named() -> None:
    unplanned, unaffected = sort_out(
        ["VLLM_LOGGING_LEVLE", "VLLM_ATTENTION_BACKEND", "TOKENIZERS_PARALLELISM"]
    )
    assert unaffected == ["TOKENIZERS_PARALLELISM"]
    assert unplanned[1] == "VLLM_LOGGING_LEVLE (vLLM 0.32 does not read it; did you mean VLLM_LOGGING_LEVEL?)"


INVARIANT = "VLLM_BATCH_INVARIANT=1"


def test_kernels_that_do_not_depend_on_the_batch() -> None:
    """Others than the usual, no states, and no prefix caching with Triton's latents (vLLM 0.32 `mla_attention.py`)."""
    usual, told = (estimate("Qwen/Qwen3-8B", "b200", env=env) for env in (None, INVARIANT))
    assert [p.shape.attention_backends for p in (usual, told)] == [("FLASHINFER",), ("FLASH_ATTN",)]
    shape: dict[str, Any] = {"tensor_parallel_size": 8}
    hopper, blackwell = (
        estimate("deepseek-ai/DeepSeek-V3", gpu, env=INVARIANT, **shape) for gpu in ("h200", "b200")
    )
    assert (hopper.shape.attention_backends, hopper.args.enable_prefix_caching) == (("FLASH_ATTN_MLA",), True)
    assert (blackwell.shape.attention_backends, blackwell.args.enable_prefix_caching) == (
        ("TRITON_MLA",),
        False,
    )
    with pytest.raises(KvplanError, match="no kernel of the states"):
        plan("Qwen/Qwen3-Next-80B-A3B-Instruct", INVARIANT, tensor_parallel_size=4)
    with pytest.raises(KvplanError, match="batch invariance not supported"):
        estimate("deepseek-ai/DeepSeek-V3.2", "h200", env=INVARIANT, **shape)


def test_logits_of_an_indexer() -> None:
    """The profile run makes room for so many MiB at once (vLLM 0.32 `layers/sparse_attn_indexer.py`)."""
    flags: dict[str, Any] = {"tensor_parallel_size": 8, "max_num_seqs": 64}
    rows = [
        estimate("deepseek-ai/DeepSeek-V3.2", "h200", env=f"VLLM_SPARSE_INDEXER_MAX_LOGITS_MB={mb}", **flags)
        for mb in (4096, 8192)
    ]
    small, large = (row.budget.activation.size.value for row in rows)
    assert large - small == 4096 << 20
    assert "logits of an indexer" in rows[0].budget.activation.why
    dense = [plan(env=f"VLLM_SPARSE_INDEXER_MAX_LOGITS_MB={mb}").budget.kv for mb in (512, 8192)]
    assert dense[0] == dense[1]


def test_keys_of_an_indexer() -> None:
    """`get_max_prefill_buffer_size` in vLLM 0.32's own words: "40 * 163840 * 132 = 865075200 bytes" at factor 5."""
    model = load_model("deepseek-ai/DeepSeek-V3.2")
    args = EngineArgs(tensor_parallel_size=8, max_num_batched_tokens=1024, max_num_seqs=8)
    resolved = resolve(args, model, get_gpu("h200"))
    stage, newest = stages_of(model, args)[0], parse_engine("vllm")
    assert indexer_workspace(model, resolved, stage, newest) == 865_075_200 + (1 << 20)
    few, many = (
        args.model_copy(update={"attention_config": f'{{"sparse_mla_prefill_workspace_factor": {factor}}}'})
        for factor in (40, 50)
    )
    grown = estimate(model, "h200", many).budget.activation.size.value
    grown -= estimate(model, "h200", few).budget.activation.size.value
    assert grown == 10 * 8 * 163_840 * 132


def test_keys_of_an_indexer_before_0_32() -> None:
    """40,000,000 entries of 132 bytes and 1 MiB at a million tokens, as `VLLM_DEBUG_WORKSPACE` printed before 0.32
    (vLLM issue 55221: 5036.40 MB, of GLM-5.3-Flash); 0.32 has 16 million."""
    model = load_model("deepseek-ai/DeepSeek-V3.2")
    args = EngineArgs(tensor_parallel_size=8, max_model_len=1_000_000, env="VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    resolved, stage = resolve(args, model, get_gpu("h200")), stages_of(model, args)[0]
    older, newest = (indexer_workspace(model, resolved, stage, parse_engine(f"vllm@0.{n}")) for n in (31, 32))
    assert round(older / 2**20, 2) == 5036.40
    assert newest - (1 << 20) == (older - (1 << 20)) * 2 // 5


def test_a_larger_workspace_of_flashinfer() -> None:
    """By the bytes above vLLM's 394 MiB, where FlashInfer serves at all."""
    env = f"VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE={2 << 30}"
    for backend, more in (("FLASHINFER", (2 << 30) - (394 << 20)), ("FLASH_ATTN", 0)):
        usual, told = (plan(env=e, attention_backend=backend).budget.runtime.size for e in (None, env))
        assert (told.value - usual.value, told.high - usual.high, told.low - usual.low) == (more, more, 0)


@pytest.mark.parametrize(
    ("env", "flags", "said"),
    [
        ("VLLM_BATCH_INVARIANT=1", {}, "VLLM_BATCH_INVARIANT"),
        ("VLLM_WEIGHT_OFFLOADING_DISABLE_UVA=1", {"cpu_offload_gb": 4}, "DISABLE_UVA"),
        ("VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY=1", {"cpu_offload_gb": 4}, "DISABLE_PIN_MEMORY"),
        ("VLLM_MOE_ROUTING_SIMULATION_STRATEGY=normal_routing", {}, "ROUTING_SIMULATION"),
    ],
)
def test_kernels_that_nobody_measured_are_doubts(env: str, flags: dict[str, Any], said: str) -> None:
    model, gpu = load_model("Qwen/Qwen3-30B-A3B"), get_gpu("h200")
    usual, told = (
        make_step_times(model, gpu, resolve(EngineArgs(env=e, **flags), model, gpu)) for e in (None, env)
    )
    assert said in str(told.doubt)
    assert told.doubt.high > usual.doubt.high
    assert said not in str(usual.doubt)


def test_what_does_not_go_with_variables() -> None:
    with pytest.raises(KvplanError, match="SimpleCPUOffloadConnector is not planned"):
        plan(env="VLLM_USE_SIMPLE_KV_OFFLOAD=1", kv_offloading_size=8)
    assert plan(env="VLLM_USE_SIMPLE_KV_OFFLOAD=1").budget.kv == plan().budget.kv
    assert sort_out(["VLLM_RANDOMIZE_DP_DUMMY_INPUTS"]) == ([], ["VLLM_RANDOMIZE_DP_DUMMY_INPUTS"])
