"""Runs of tokens on context-parallel ranks: which flag says how long they are, and which kernels take them."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate

LATENT, SPARSE = "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3.2"
SPLIT: dict[str, Any] = {
    "tensor_parallel_size": 16,
    "decode_context_parallel_size": 2,
    "max_model_len": 16384,
}
OLDER, TIER = {"dcp_kv_cache_interleave_size": 32}, {"kv_offloading_size": 64}


def test_the_older_flag_wins_where_a_connector_is() -> None:
    """Workers adjust as they start a KV connector, and only then (`adjust_dcp_kv_cache_interleave_size`)."""
    assert EngineArgs(**SPLIT, **OLDER).interleaved_tokens == 1
    assert EngineArgs(**SPLIT, **OLDER, **TIER).interleaved_tokens == 32
    assert EngineArgs(**SPLIT, **OLDER, **TIER, cp_kv_cache_interleave_size=16).interleaved_tokens == 32
    assert EngineArgs(**SPLIT, **TIER, cp_kv_cache_interleave_size=16).interleaved_tokens == 16
    assert EngineArgs(**OLDER, **TIER).interleaved_tokens == 1


@pytest.mark.parametrize(
    ("model", "gpu", "flags", "why"),
    [
        (LATENT, "b200", {"cp_kv_cache_interleave_size": 32}, "FLASHINFER_MLA takes 1 alone"),
        (LATENT, "b200", {**OLDER, **TIER}, "--dcp-kv-cache-interleave-size 32: FLASHINFER_MLA takes 1"),
        (LATENT, "b200", OLDER, ""),
        (LATENT, "h200", {"cp_kv_cache_interleave_size": 32}, ""),
        (
            LATENT,
            "h200",
            {"cp_kv_cache_interleave_size": 32, "num_speculative_tokens": 1},
            "with drafts: not with FLASH_ATTN_MLA",
        ),
        (LATENT, "h200", {"num_speculative_tokens": 1}, ""),
        (
            SPARSE,
            "h200",
            {
                "cp_kv_cache_interleave_size": 32,
                "num_speculative_tokens": 1,
                "attention_backend": "FLASHMLA_SPARSE",
                "kv_cache_dtype": "fp8",
            },
            "",
        ),
    ],
)
def test_kernels_that_take_no_runs(model: str, gpu: str, flags: dict[str, Any], why: str) -> None:
    """vLLM 0.32 `v1/worker/cp_utils.py`, `backends/mla/flashinfer_mla.py`."""
    if not why:
        assert estimate(model, gpu, **SPLIT, **flags).layout is not None
        return
    with pytest.raises(KvplanError, match=why):
        estimate(model, gpu, **SPLIT, **flags)
