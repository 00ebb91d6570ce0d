"""The KV layout against vLLM's own planner, and the laws it must obey."""

from __future__ import annotations

import pytest

from kvplan.engine_args import EngineArgs
from kvplan.layout import KvCacheTooSmall, kv_layout
from kvplan.model import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from kvplan.units import GiB


def dense(num_layers: int = 36, window_every: int = 0) -> ModelSpec:
    full = AttentionSpec(AttentionKind.FULL, num_heads=32, num_kv_heads=8, head_dim=128, v_head_dim=128)
    local = AttentionSpec(
        AttentionKind.SLIDING, num_heads=32, num_kv_heads=8, head_dim=128, v_head_dim=128, window=1024
    )
    kinds = [local if window_every and i % window_every else full for i in range(num_layers)]
    layers = tuple(LayerSpec(kind, MlpSpec(1)) for kind in kinds)
    return ModelSpec("dense", "Qwen3ForCausalLM", layers, 4096, 150_000, 40_960, "bfloat16", False)


BASE = EngineArgs(
    max_num_batched_tokens=8192, max_model_len=32_768, enable_prefix_caching=True, async_scheduling=True
)
BLOCK = 2 * 8 * 128 * 2 * 16 * 36


def test_the_null_block_is_kept_back() -> None:
    """Exactly one request plus the null block fits; a byte less is refused with the next shorter length."""
    assert kv_layout(dense(), BASE, BLOCK * 2049).num_blocks == 2049
    with pytest.raises(KvCacheTooSmall) as refused:
        kv_layout(dense(), BASE, BLOCK * 2049 - 1)
    assert refused.value.max_model_len == 32_752


def test_windows_share_one_pool_with_full_layers() -> None:
    """Four window layers to one full layer: five groups, window groups capped by the tokens in flight."""
    layout = kv_layout(dense(40, window_every=5), BASE, 20 * GiB)
    assert [g.kind for g in layout.groups] == [AttentionKind.FULL] + [AttentionKind.SLIDING] * 4
    assert [g.blocks_per_request for g in layout.groups] == [2048] + [(1023 + 2 * 8192 + 15) // 16 + 1] * 4
