"""Orders of a pool's bytes (`VLLM_KV_CACHE_LAYOUT`) for every architecture, beside vLLM's own planner.

`fixtures/layouts_vllm_0.32.json` is what vLLM 0.32.0 answered on an H100 (`make_layouts.py`).
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.layout import Layout, kv_layout
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import AttentionKind

LAYOUTS: dict[str, Any] = json.loads((FIXTURES / "layouts_vllm_0.32.json").read_text())
PACKED = lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
CASES: dict[str, Any] = json.loads(PACKED)


@cache
def args_of(name: str) -> tuple[Any, dict[str, Any]]:
    """The model of a case and its flags, with prefix caching where vLLM has it."""
    model, flags = from_config(CASES[name]["config"], name), CASES[name].get("flags", {})
    kinds = {m.kind for layer in model.layers for m in layer.mixers} - {AttentionKind.NONE}
    told: dict[str, Any] = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
    told |= {"enable_prefix_caching": kinds != {AttentionKind.STATE}}
    return model, told | {"attention_backend": flags.get("attention_backend")}


def laid(name: str, order: str | None) -> Layout:
    model, told = args_of(name)
    env = f"VLLM_KV_CACHE_LAYOUT={order}" if order else None
    return kv_layout(model, EngineArgs(**told, env=env), 20 * GiB)


@pytest.mark.parametrize("name", LAYOUTS)
def test_plans_equal_vllms(name: str) -> None:
    """The same pool as without it, another, or a refusal."""
    usual = laid(name, None)
    for order, theirs in LAYOUTS[name].items():
        if isinstance(theirs, str):
            with pytest.raises(KvplanError, match=f"VLLM_KV_CACHE_LAYOUT={order}: for this model there are"):
                laid(name, order)
            continue
        mine = laid(name, order)
        found = mine.bytes_per_block, mine.num_blocks, mine.kv_cache_size_tokens
        if theirs is None:
            assert found == (usual.bytes_per_block, usual.num_blocks, usual.kv_cache_size_tokens), order
        else:
            assert found == (theirs["bytes_per_block"], theirs["num_blocks"], theirs["tokens"]), order


def test_enough_are_held() -> None:
    answers = [answer for found in LAYOUTS.values() for answer in found.values()]
    assert len(LAYOUTS) > 250
    assert sum(isinstance(answer, dict) for answer in answers) >= 20
    assert sum(isinstance(answer, str) for answer in answers) > 100


def test_older_names_and_kernels_of_one_order() -> None:
    """NHD and HND stand for two of them; FlashInfer on Blackwell takes heads first (vLLM 0.32 `flashinfer.py`)."""
    usual = estimate("Qwen/Qwen3-8B", "h100").layout
    assert estimate("Qwen/Qwen3-8B", "h100", env="VLLM_KV_CACHE_LAYOUT=NHD").layout == usual
    model, blackwell = load_model("Qwen/Qwen3-8B"), {"attention_backend": "FLASHINFER"}
    assert estimate(model, "b200", env="VLLM_KV_CACHE_LAYOUT=HND", **blackwell).layout
    with pytest.raises(KvplanError, match="there are LBHNC, BLHNC"):
        estimate(model, "b200", env="VLLM_KV_CACHE_LAYOUT=NHD", **blackwell)
    with pytest.raises(ValueError, match="vLLM has LBNHC"):
        EngineArgs(env="VLLM_KV_CACHE_LAYOUT=HNB")
