"""Gemma's layers that read others' KV run on a token of each prompt's chunk alone (`--kv-sharing-fast-prefill`)."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.engines.resolve import resolve
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.memory.forward import estimate
from kvplan.models.kv_sharing import fast_prefill_bytes, first_kv_shared_layer
from kvplan.models.load import from_config, load_model
from kvplan.models.spec import ModelSpec
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.step import StepShape

E4B = load_model("google/gemma-4-E4B-it")
DENSE = load_model("google/gemma-4-31B-it")


def times(model: ModelSpec = E4B, **flags: Any) -> StepTimes:
    args = EngineArgs(
        max_num_seqs=64, max_num_batched_tokens=8192, **{"kv_sharing_fast_prefill": True} | flags
    )
    return make_step_times(model, get_gpu("h100"), args)


def prefill(num_tokens: int, num_chunks: int = 1, num_decodes: int = 0) -> StepShape:
    pairs = num_tokens * num_tokens / num_chunks / 2
    return StepShape(num_tokens + num_decodes, num_decodes, 2000 * num_decodes, num_tokens, num_chunks, pairs)


def test_18_of_42_layers_are_spared() -> None:
    """Gemma 4 E4B: `num_kv_shared_layers` 18; of a long prompt they compute one token, which costs next to nothing."""
    found, whole = times(), times(kv_sharing_fast_prefill=False)
    assert (first_kv_shared_layer(E4B), len(E4B.layers)) == (24, 42)
    assert found.last is not None
    assert (found.last.time.work.num_layers, found.last.window, found.last.whole_up_to) == (18, 1, 0)
    share = found.step.ticks(prefill(8192)) / whole.step.ticks(prefill(8192))
    assert 0.5 < share < 0.65  # 24 of 42 layers, and the LM head


def test_decodes_take_what_they_took_and_short_prompts_less() -> None:
    found, whole = times().step, times(kv_sharing_fast_prefill=False).step
    decode = StepShape(64, 64, 64 * 1000)
    assert found.ticks(decode) == whole.ticks(decode)
    assert found.decode_line(64, 64000) == whole.decode_line(64, 64000)
    assert found.ticks(prefill(1)) == whole.ticks(prefill(1))
    assert found.ticks(prefill(600, 4, 32)) < whole.ticks(prefill(600, 4, 32))


@pytest.mark.parametrize(
    ("model", "flags"), [(E4B, {"pipeline_parallel_size": 2}), (DENSE, {}), (load_model("Qwen/Qwen3-8B"), {})]
)
def test_who_has_nothing_to_skip(model: ModelSpec, flags: dict[str, Any]) -> None:
    """Several stages, a Gemma without shared layers, another model."""
    assert times(model, **flags).last is None


def test_the_buffers() -> None:
    """E4B: 8 bytes of position, 2,560 of hidden and 42 x 256 of embeddings a token, in bf16; 31B has no embeddings."""
    assert fast_prefill_bytes(E4B, 8192) == 8192 * (8 + 2 * (2560 + 42 * 256))
    assert fast_prefill_bytes(DENSE, 8192) == 8192 * (8 + 2 * 5376)
    flags = {"max_model_len": 8192, "kv_sharing_fast_prefill": True}
    for model, size in ((E4B, fast_prefill_bytes(E4B, 8192)), (load_model("Qwen/Qwen3-8B"), 0)):
        less = estimate(model, "h100", **flags | {"kv_sharing_fast_prefill": False}).budget.kv.size.value
        assert less - estimate(model, "h100", **flags).budget.kv.size.value == size


def test_gemma_3n_keeps_four_streams() -> None:
    """`altup_num_inputs` 4: hidden states of each, and 30 layers' embeddings of 256."""
    config = {
        "architectures": ["Gemma3nForCausalLM"], "model_type": "gemma3n_text", "hidden_size": 2048, "head_dim": 256,
        "num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 8192,
        "hidden_size_per_layer_input": 256, "vocab_size": 262400, "vocab_size_per_layer_input": 262144,
        "altup_num_inputs": 4, "laurel_rank": 64, "num_kv_shared_layers": 10, "sliding_window": 512,
        "max_position_embeddings": 32768,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
    }  # fmt: skip
    model = from_config(config)
    assert first_kv_shared_layer(model) == 20
    assert fast_prefill_bytes(model, 1000) == 1000 * (8 + 2 * (4 * 2048 + 30 * 256))
    assert times(model).last is not None


@pytest.mark.parametrize(("method", "refused"), [("eagle", True), ("mtp", True), ("ngram", False)])
def test_drafters_of_hidden_states_are_refused(method: str, refused: bool) -> None:
    flags: dict[str, Any] = {"num_speculative_tokens": 2, "speculative_method": method}
    args = EngineArgs(kv_sharing_fast_prefill=True, max_model_len=4096, **flags)
    if refused:
        with pytest.raises(KvplanError, match=f"--kv-sharing-fast-prefill: not beside {method}"):
            resolve(args, E4B, get_gpu("h100"))
    else:
        assert resolve(args, E4B, get_gpu("h100")).kv_sharing_fast_prefill
