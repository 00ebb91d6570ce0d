"""Flags that vLLM refuses once it knows the whole of its config (`config/vllm.py`)."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs
from kvplan.engines.late_checks import samples_shares
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.memory.layout import Layout, kv_layout
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.weights import heaviest_rank
from kvplan.profiles.step_times import model_work

DENSE, MOE = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"

LATENT = "deepseek-ai/DeepSeek-V2-Lite"
SPLIT = {"tensor_parallel_size": 2, "decode_context_parallel_size": 2, "block_size": 64}
BALANCED = {"data_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True}
DRAFTS = {"num_speculative_tokens": 2, "speculative_method": "ngram", "async_scheduling": False}
DRAWN = {"speculative_config": '{"draft_sample_method": "probabilistic"}'}
CASES = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
NANO = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
REPLAYED = {"use_replayssm": True, "mamba_backend": "flashinfer", "enable_prefix_caching": False}


@pytest.mark.parametrize(
    ("model", "flags", "said"),
    [
        (DENSE, {"use_replayssm": True}, "is not supported for architecture 'Qwen3ForCausalLM'"),
        (NANO, {"use_replayssm": True}, "need --mamba-backend flashinfer"),
        (NANO, {"use_replayssm": True, "mamba_backend": "cpu"}, "requires --mamba-backend"),
        (NANO, {**REPLAYED, "enable_prefix_caching": True}, "needs --no-enable-prefix-caching"),
        (NANO, {**REPLAYED, "replayssm_buffer_len": 32}, "takes at most 16"),
        (NANO, {**REPLAYED, "kv_offloading_size": 4}, "does not go with KV connectors"),
        (DENSE, {"engram_config": {"cpu_offload": False}}, "has no tables of n-grams"),
        (DENSE, {"engram_config": {"cpu_offload": False, "use_thp": True}}, "use_thp requires"),
        (DENSE, {"enable_batch_sharded_sampling": True}, "nothing to share"),
        (
            DENSE,
            {"enable_batch_sharded_sampling": True, "tensor_parallel_size": 4, "max_num_seqs": 2},
            "is below tensor_parallel_size 4",
        ),
        (DENSE, {"enable_return_routed_experts": True}, "has no experts"),
        (DENSE, {"return_sampling_mask": True, "env": "VLLM_USE_V2_MODEL_RUNNER=0"}, "requires VLLM_USE_V2"),
        (DENSE, {"watermark_config": "{}"}, "key: Field required"),
        (DENSE, {"watermark_config": '{"key": 1}', **DRAFTS}, '"draft_sample_method": "probabilistic"'),
        (DENSE, {"watermark_config": '{"key": 1}', **DRAFTS, **DRAWN}, "does not go with drafts by ngram"),
        (DENSE, {"ir_op_priority": '{"softmax": ["native"]}'}, "softmax is not one of rms_norm"),
        (
            LATENT,
            {**SPLIT, "block_size": None, "cp_kv_cache_interleave_size": 7},
            "7 must divide the block size, 64",
        ),
        (LATENT, {**SPLIT, "cp_kv_cache_interleave_size": 48}, "48 must divide the block size, 64"),
        (MOE, {"enable_elastic_ep": True}, "needs --enable-eplb"),
        (
            MOE,
            {**BALANCED, "enable_elastic_ep": True, "elastic_ep_max_dp_size": 1},
            "1 must be at least .* 2",
        ),
        (
            MOE,
            {**BALANCED, "enable_elastic_ep": True, "pipeline_parallel_size": 2},
            "does not go with --pipe",
        ),
        (MOE, {"enable_return_routed_experts": True, "enable_prefix_caching": False}, "needs prefix caching"),
    ],
)
def test_what_vllm_refuses(model: str, flags: dict[str, object], said: str) -> None:
    """In one line, with what would do."""
    with pytest.raises(KvplanError, match=said):
        estimate(model, "h100", **flags)


def test_routed_experts_leave_the_pool_alone() -> None:
    """Their buffer is made once the pool is (`gpu/model_runner.py: initialize_kv_cache`)."""
    plain, told = (estimate(MOE, "h100", enable_return_routed_experts=on).layout for on in (False, True))
    assert plain == told


def test_classes_that_leave_each_rank_its_logits() -> None:
    """Only these sample in shares (`compute_logits_local`)."""
    args = EngineArgs(enable_batch_sharded_sampling=True, tensor_parallel_size=2)
    llama = load_model("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert samples_shares(llama, args)
    assert not samples_shares(load_model(DENSE), args)
    assert not samples_shares(replace(llama, architecture="Qwen3ForCausalLM"), args)


def test_videos_decoded_on_the_card_come_out_of_the_pool() -> None:
    """A multimodal model's pool gives up the stated GiB, a stated pool too; a language model has no such part."""
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    for stated in ({}, {"kv_cache_memory_bytes": 20 * 2**30}):
        plain, less = (
            estimate(model, "h100", mm_ipc_gpu_memory_gb=gib, **stated).budget.kv.size.value for gib in (0, 3)
        )
        assert plain - less == 3 * 2**30
    text = [estimate(DENSE, "h100", mm_ipc_gpu_memory_gb=gib).budget.kv for gib in (0, 3)]
    assert text[0] == text[1]


def test_replicated_queries_are_weights_of_the_whole_group() -> None:
    """DeepSeek-V3 with eight ranks that split contexts: all of q_b_proj on each; alike without such ranks."""
    flags = {"tensor_parallel_size": 8, "decode_context_parallel_size": 8}
    plain, more = (
        estimate("deepseek-ai/DeepSeek-V3", "h200", dcp_q_replicate=on, **flags).budget.weights.size.value
        for on in (False, True)
    )
    whole = 61 * 128 * 192 * 1536 * (1 + 4 / 128**2)
    assert more - plain == pytest.approx(whole * 7 / 8, rel=1e-3)
    alone = [
        estimate("deepseek-ai/DeepSeek-V3", "h200", dcp_q_replicate=on, tensor_parallel_size=8).budget
        for on in (False, True)
    ]
    assert alone[0] == alone[1]


@pytest.mark.parametrize(
    ("tp", "rows", "bytes_per_block", "num_blocks", "tokens"),
    [
        (1, None, 4259840, 5041, 2580992),
        (1, 16, 4587520, 4681, 2396672),
        (1, 8, 4456448, 4818, 2466816),
        (2, None, 2129920, 10082, 5161984),
        (2, 16, 2293760, 9362, 4793344),
        (2, 8, 2228224, 9637, 4934144),
    ],
)
def test_replayed_states_take_a_ring_of_inputs(
    tp: int, rows: int | None, bytes_per_block: int, num_blocks: int, tokens: int
) -> None:
    """vLLM 0.32's planner of 20 GiB for its Nemotron-H class, prefix caching off: without, with 16 and with 8 rows."""
    flags = {**REPLAYED, "replayssm_buffer_len": rows} if rows else {"enable_prefix_caching": False}
    model = from_config(CASES["NemotronHForCausalLM"]["config"], "nano")
    args = EngineArgs(tensor_parallel_size=tp, max_num_batched_tokens=8192, max_num_seqs=256, **flags)
    layout = kv_layout(model, args, 20 * 2**30, capability=(9, 0))
    assert isinstance(layout, Layout)
    assert (layout.bytes_per_block, layout.num_blocks) == (bytes_per_block, num_blocks)
    assert layout.kv_cache_size_tokens == tokens


def test_replayed_states_are_written_seldom() -> None:
    """One step of 16 writes what every step reads."""
    model, formats = load_model(NANO), {"weight_format": "bf16", "expert_format": "bf16", "kv_format": "bf16"}
    plain, replayed = (
        model_work(model, EngineArgs(**flags), formats).state_bytes for flags in ({}, REPLAYED)
    )
    assert replayed / plain == pytest.approx((1 + 1 / 16) / 2)


@pytest.mark.parametrize(
    ("name", "tp", "theirs"),
    [
        ("DeepseekV41ForCausalLM", 2, 101_378_311_584),
        ("DeepseekV41ForCausalLM", 8, 25_344_443_520),
        ("Qwen4Exp, as published", 1, 102_400_491_536),
        ("Qwen4Exp, as published", 8, 12_800_061_440),
    ],
)
def test_tables_of_ngrams_on_the_cards(name: str, tp: int, theirs: int) -> None:
    """What `cpu_offload` false adds to vLLM 0.32's class on one rank."""
    model = from_config(CASES[name]["config"], name)
    plain, more = (heaviest_rank(model, tensor_parallel_size=tp, table_ranks=n).total for n in (0, tp))
    assert more - plain == pytest.approx(theirs, rel=1e-4)


def test_prompts_as_embeddings_take_a_buffer() -> None:
    """Of a step's tokens in the model's dtype, where no tower has it already (vLLM 0.32 `model_states/default.py`)."""
    for name, size in (("Qwen/Qwen3-8B", 8192 * 4096 * 2), ("Qwen/Qwen2.5-VL-7B-Instruct", 0)):
        plain, with_buffer = (estimate(name, "h100", enable_prompt_embeds=on) for on in (False, True))
        assert plain.budget.kv.size.value - with_buffer.budget.kv.size.value == size
    with pytest.raises(KvplanError, match="not supported with encoder-decoder"):
        estimate("openai/whisper-large-v3", "h100", enable_prompt_embeds=True)


def test_marks_and_masks_take_the_second_model_runner() -> None:
    """`config/vllm.py: use_v2_model_runner`: its sampler holds fewer logits, also where it is not the default's."""
    told = EngineArgs(max_num_seqs=1024, max_num_batched_tokens=2048)
    first, second = (
        estimate(MOE, "h100", told.model_copy(update={"env": f"VLLM_USE_V2_MODEL_RUNNER={n}"}))
        for n in (0, 1)
    )
    assert first.budget.activation.size != second.budget.activation.size
    marked = estimate(MOE, "h100", told.model_copy(update={"watermark_config": '{"key": 7}'}))
    assert marked.budget.activation == second.budget.activation


def test_masks_of_what_could_be_drawn() -> None:
    """`v1/worker/gpu/sample/output.py`: a bit a word, four bytes for each of 2,048 and a count, of every row."""
    told = EngineArgs(max_num_seqs=1024, max_num_batched_tokens=2048, env="VLLM_USE_V2_MODEL_RUNNER=1")
    plain, masked = (
        estimate(DENSE, "h100", told.model_copy(update={"return_sampling_mask": on})).budget.activation.size
        for on in (False, True)
    )
    words = load_model(DENSE).vocab_size
    row = -(-words // 8) + 4 * 2048 + 4
    assert (masked.value - plain.value, masked.high - plain.high, masked.low - plain.low) == (
        1024 * row,
        1024 * row,
        0,
    )


def test_pooling_on_one_renderer() -> None:
    """`config/model.py`: several do not go with the cache of items that start-up makes unless told otherwise."""
    told = {"runner": "pooling", "renderer_num_workers": 2}
    seeing, reading = "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-0.6B"
    with pytest.raises(KvplanError, match="--mm-processor-cache-gb 0"):
        estimate(seeing, "h100", **told)
    assert estimate(seeing, "h100", **told, mm_processor_cache_gb=0).layout
    assert estimate(reading, "h100", **told).layout
    assert estimate(seeing, "h100", renderer_num_workers=2).layout


def test_tables_of_ranks_that_may_come() -> None:
    """`distributed/eplb/eplb_state.py`: where experts lie, 8 bytes, and their last loads, 4, by layer and expert."""
    flags = {**BALANCED, "enable_elastic_ep": True}
    plans = (estimate(MOE, "h100", **flags, elastic_ep_max_dp_size=n) for n in (2, 16))
    few, most = (next(row.size.value for row in plan.budget.rows if row.name == "eplb") for plan in plans)
    assert most - few == 48 * 128 * 7 * (8 + 4)
