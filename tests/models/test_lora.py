"""Memory for adapters beside vLLM's own manager of them, over every architecture (`make_adapters.py`)."""

from __future__ import annotations

import json
import lzma
import re
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.models.architectures import architectures, from_config
from kvplan.models.load import load_model
from kvplan.models.lora import Adapters, lora_bytes
from kvplan.models.lora_classes import NO_ADAPTERS, UNASKED

CASES: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
TAKEN: dict[str, Any] = json.loads((FIXTURES / "adapters_vllm_0.32.json").read_text())
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "fully_sharded": {"fully_sharded_loras": True},
    "shared": {"enable_moe_shared_loras": True},
    "mixed": {"enable_mixed_moe_lora_format": True},
    "targets": {"lora_target_modules": ("o_proj", "down_proj")},
}
HELD = [name for name, taken in TAKEN.items() if taken is not None]
REFUSED = [name for name, taken in TAKEN.items() if taken is None]


def mine(name: str, what: str, ranks: int) -> int:
    model = from_config(CASES[name]["config"], name)
    return lora_bytes(model, Adapters(max_loras=2, **ASKED[what]), tensor_parallel_size=ranks)


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("name", HELD)
def test_bytes_equal_vllms(name: str, what: str) -> None:
    """A and B of two adapters of rank 16 on one of two ranks, in every format and cut: to the byte."""
    theirs = TAKEN[name].get(what)
    assert theirs is None or mine(name, what, 2) == theirs


@pytest.mark.parametrize("name", [name for name in HELD if TAKEN[name].get("tower")])
def test_towers_equal_vllms(name: str) -> None:
    """With the flag, on one rank."""
    model = from_config(CASES[name]["config"], name)
    asked = Adapters(max_loras=2, enable_tower_connector_lora=True)
    assert lora_bytes(model, asked) == TAKEN[name]["tower"]


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("name", [name for name in HELD if "plain on 4" in TAKEN[name]])
def test_bytes_equal_vllms_on_other_ranks(name: str, ranks: int) -> None:
    """Groups of a state mixer are one matrix or several, as the ranks divide them; heads of KV are copied."""
    for what in ("plain", "fully_sharded"):
        assert mine(name, what, ranks) == TAKEN[name][f"{what} on {ranks}"]


@pytest.mark.parametrize("name", REFUSED)
def test_classes_without_adapters_are_refused(name: str) -> None:
    """Where vLLM's class is not `SupportsLoRA`, its worker ends."""
    with pytest.raises(KvplanError, match="does not support LoRA"):
        mine(name, "plain", 1)


def test_every_architecture_is_held_refused_or_said_to_be_neither() -> None:
    """What vLLM's manager was not asked about, the row says."""
    asked = {from_config(CASES[name]["config"], name).architecture for name in TAKEN}
    drafts = {name for name in architectures() if re.search("[Ee]agle|DFlash|DSpark|Medusa|Assistant", name)}
    assert set(architectures()) - asked - set(NO_ADAPTERS.split()) - drafts == set(UNASKED.split())
    assert "vLLM was not asked of Qwen3VLMoe" in why("Qwen/Qwen3-VL-30B-A3B-Instruct")
    assert "vLLM was not asked" not in why("Qwen/Qwen2.5-VL-7B-Instruct")
    assert "where vLLM was not asked" in why("google/gemma-4-E2B-it", enable_tower_connector_lora=True)


def why(name: str, *, enable_tower_connector_lora: bool = False) -> str:
    rows = estimate(
        name, "h200", enable_lora=True, enable_tower_connector_lora=enable_tower_connector_lora
    ).budget.rows
    return next(row.why for row in rows if row.name == "lora")


def test_the_tower_has_its_own() -> None:
    """Its matrices are adapted where the class allows it and the flag asks for it; not without the tower."""
    model = load_model("Qwen/Qwen2.5-VL-7B-Instruct")
    plain, more = (lora_bytes(model, Adapters(enable_tower_connector_lora=on)) for on in (False, True))
    assert 0.1 * plain < more - plain < plain
    assert lora_bytes(model, Adapters(enable_tower_connector_lora=True), has_tower=False) == plain
    text = load_model("Qwen/Qwen3-8B")
    assert lora_bytes(text, Adapters(enable_tower_connector_lora=True)) == lora_bytes(text, Adapters())


def test_auto_is_the_models_dtype() -> None:
    """Twice the bytes in float32; a stated dtype has 16 bits."""
    rows = {
        (dtype, lora): next(
            row.size.value
            for row in estimate(
                "Qwen/Qwen3-8B", "h100", enable_lora=True, dtype=dtype, lora_dtype=lora
            ).budget.rows
            if row.name == "lora"
        )
        for dtype, lora in (("auto", "auto"), ("float32", "auto"), ("float32", "float16"))
    }
    assert rows["float32", "auto"] == 2 * rows["auto", "auto"] == 2 * rows["float32", "float16"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"enable_expert_parallel": True}, "leave out --enable-expert-parallel"),
        ({"max_lora_rank": 1}, "does not divide by 2 ranks"),
    ],
)
def test_what_cannot_be_cut(flags: dict[str, object], said: str) -> None:
    """`_verify_ep_fs` of `lora/layers/fused_moe.py`, and an even division of the rank."""
    with pytest.raises(KvplanError, match=said):
        estimate(
            "Qwen/Qwen3-30B-A3B",
            "h100",
            tensor_parallel_size=2,
            enable_lora=True,
            fully_sharded_loras=True,
            **flags,
        )


def test_pasted_commands_act() -> None:
    """Every flag of adapters is read."""
    told = read_command(
        "vllm serve m --enable-lora --fully-sharded-loras --lora-dtype bfloat16 --enable-moe-shared-loras"
        " --enable-mixed-moe-lora-format --enable-tower-connector-lora --lora-target-modules o_proj qkv_proj"
    )
    assert not told.not_planned
    assert not told.no_effect
    assert told.args.lora_target_modules == ("o_proj", "qkv_proj")
