"""Which steps CUDA graphs may hold a model's attention in, beside what vLLM's metadata builders say."""

from __future__ import annotations

import json
import lzma

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.resolve import resolve
from kvplan.formulas.graphs import Support
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.memory.forward import estimate
from kvplan.memory.graphs import engine_graphs
from kvplan.memory.kv.backends import BACKENDS
from kvplan.models.load import load_model

TOLD = json.loads(lzma.decompress((FIXTURES / "graphs_vllm_0.32.json.xz").read_bytes()))["support"]
NAMES = {
    "NEVER": Support.NEVER,
    "UNIFORM_SINGLE_TOKEN_DECODE": Support.SINGLE_TOKEN,
    "UNIFORM_BATCH": Support.UNIFORM,
    "ALWAYS": Support.ALWAYS,
}
BY_CARD = {"FLASH_ATTN", "FLASH_ATTN_DIFFKV", "FLASHINFER", "TRITON_FLASH_ATTN", "TRITON_FLASHINFER"}
"""Whose support the card decides: FlashAttention 3 on Hopper alone; or a method, of FlashInfer and of two in one."""


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() & TOLD.keys() - BY_CARD))
def test_backends_are_captured_as_their_builders_say(name: str) -> None:
    assert BACKENDS[name].graphs is NAMES[TOLD[name]]


def mode(model: str, gpu: str, asked: str = "FULL", **flags: object) -> str:
    told = {"compilation_config": {"cudagraph_mode": asked}} | flags
    spec, card = load_model(model), get_gpu(gpu)
    return engine_graphs(
        spec, resolve(EngineArgs.model_validate(told), spec, card), card, EngineVersion()
    ).mode


QWEN = "Qwen/Qwen3-8B"
DRAFTS = {"num_speculative_tokens": 2, "speculative_method": "ngram"}


@pytest.mark.parametrize(
    ("model", "gpu", "flags", "settled"),
    [
        (QWEN, "h100", {}, "FULL"),
        (QWEN, "a100-80gb", {}, "FULL_AND_PIECEWISE"),
        (QWEN, "a100-80gb", {"attention_backend": "TRITON_ATTN"}, "FULL"),
        (QWEN, "b200", {}, "FULL_AND_PIECEWISE"),
        (QWEN, "h100", {"attention_backend": "FLASHINFER", **DRAFTS}, "FULL_AND_PIECEWISE"),
        (QWEN, "a100-80gb", {"attention_backend": "FLASHINFER", **DRAFTS}, "PIECEWISE"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "h200", {"tensor_parallel_size": 2}, "FULL_AND_PIECEWISE"),
        ("deepseek-ai/DeepSeek-V2-Lite", "h100", {}, "FULL_AND_PIECEWISE"),
        ("openai/whisper-large-v3", "h100", {}, "FULL_DECODE_ONLY"),
    ],
)
def test_full_graphs_are_what_the_kernels_of_the_card_allow(
    model: str, gpu: str, flags: dict[str, object], settled: str
) -> None:
    assert mode(model, gpu, **flags) == settled


LLAMA4 = "meta-llama/Llama-4-Scout-17B-16E-Instruct"


def test_chunked_attention_is_never_in_a_graph() -> None:
    """Its virtual batches are made anew each step: pieces by default, refused as one graph."""
    assert (
        mode(LLAMA4, "h200", "FULL_AND_PIECEWISE", tensor_parallel_size=4, max_model_len=8192) == "PIECEWISE"
    )
    with pytest.raises(KvplanError, match=r"cudagraph_mode FULL: .* try PIECEWISE"):
        estimate(
            LLAMA4,
            "h200",
            tensor_parallel_size=4,
            compilation_config={"cudagraph_mode": "FULL"},
            max_model_len=8192,
        )


def test_states_need_a_block_each_only_where_decodes_are_one_graph() -> None:
    """vLLM 0.32 `config/compilation.py`: the check is of full graphs."""
    flags = {
        "tensor_parallel_size": 4,
        "max_num_seqs": 512,
        "num_gpu_blocks_override": 300,
        "max_model_len": 4096,
    }
    hybrid = "Qwen/Qwen3-Next-80B-A3B-Instruct"
    refused = estimate(hybrid, "h100", **flags)
    pieces = estimate(hybrid, "h100", **flags, compilation_config={"cudagraph_mode": "PIECEWISE"})
    assert refused.refusal is not None
    assert "max_num_seqs 512 exceeds" in str(refused.refusal)
    assert pieces.refusal is None


def test_graphs_in_memory_are_as_many_as_are_captured() -> None:
    """86 by default on an L40S with 256 sequences, 51 in pieces, 35 of decodes, 2 of sizes stated; none without."""
    for told, count in (
        ({}, 86),
        ({"compilation_config": {"cudagraph_mode": "PIECEWISE"}}, 51),
        ({"compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}, 35),
        ({"cudagraph_capture_sizes": (1,)}, 2),
        ({"optimization_level": 0}, 0),
        ({"performance_mode": "interactivity"}, 86 + 2 * 25),
        ({"enable_lora": True}, 172),
    ):
        graphs = estimate(QWEN, "l40s", max_model_len=8192, **told).budget.graphs  # type: ignore[arg-type]
        assert f"{count} graphs" in graphs.why, told
