"""Weights in host memory beside vLLM's own offloaders, over every architecture (`make_offloaded.py`)."""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.models.architectures import from_config
from kvplan.models.host_weights import TWO_STACKS, HostWeights, Offload, in_host
from kvplan.models.load import load_model
from kvplan.models.tensors import WeightPiece, WeightTensor, tensors_of
from kvplan.models.weights import heaviest_rank, stage_weights

CASES: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
OFFLOADED: dict[str, Any] = json.loads((FIXTURES / "offloaded_vllm_0.32.json").read_text())
STARTED = [name for name, theirs in OFFLOADED.items() if theirs["all"] is not None]
EVERYTHING = 1 << 60
OTHERWISE = {
    "GlmOcr, as published": "vLLM builds its tower twice and counts both",
    "MiniCPMO": "vLLM builds its tower twice and counts both",
    "BeeForConditionalGeneration": "a part between tower and language model that vLLM counts to neither",
    "FunASRForConditionalGeneration": "a part between tower and language model that vLLM counts to neither",
    "DeepseekV41ForCausalLM": "its tables lie in host memory already; the meta device counts them once more",
    "Qwen4Exp, as published": "its tables lie in host memory already; the meta device counts them once more",
    "TeleChat2ForCausalLM": "biases of zero that are no parameters",
}
"""Where the bytes of a whole model differ, and why."""
NAMES_MEET = {
    "BailingMoeV3VLForConditionalGeneration": "two kinds of layers whose output is named alike here"
}


def host(name: str, offload: Offload) -> HostWeights:
    case = CASES[name]
    only = bool(case.get("flags", {}).get("language_model_only"))
    model = from_config(case["config"], name)
    return stage_weights(model, language_model_only=only, offload=offload)[0].host


@pytest.mark.parametrize("name", STARTED)
def test_all_that_vllm_moves(name: str) -> None:
    """Everything in layers and towers, and the experts by their name; to four kilobytes or a ten-thousandth, and half
    of a thousandth where a tower is there."""
    theirs = OFFLOADED[name]
    let_go = theirs.get("remade", 0)  # once loaded
    if name not in OTHERWISE:
        assert host(name, Offload("uva", EVERYTHING)).host_bytes == pytest.approx(
            theirs["all"] - let_go, rel=5e-4, abs=4096
        )
    if theirs["all"]:
        experts = host(name, Offload("uva", EVERYTHING, ("experts",))).host_bytes
        assert experts == pytest.approx(theirs["experts"] - let_go, rel=1e-4, abs=4096)


ANOTHER_ORDER = """
    DbrxForCausalLM DeepseekV4ForCausalLM GraniteMoeHybridForCausalLM InklingForCausalLM MiniMaxM3SparseForCausalLM
    PanguProMoEV2ForCausalLM Step3TextForCausalLM
"""
"""Language models that vLLM's classes make in another order: the last tensor to move may be another."""


def is_text(name: str) -> bool:
    return from_config(CASES[name]["config"], name).vision is None


@pytest.mark.parametrize("name", [n for n in STARTED if OFFLOADED[n]["all"] and n not in OTHERWISE])
def test_half_of_it(name: str) -> None:
    """Language models end at the matrix at which vLLM's offloader ends; those of another order, and towers, whose
    parts are told by kind, near it."""
    theirs = OFFLOADED[name]["half"] - OFFLOADED[name].get("remade", 0)
    mine = host(name, Offload("uva", OFFLOADED[name]["all"] // 2)).host_bytes
    same_order = is_text(name) and name not in ANOTHER_ORDER.split() and "HYV4" not in name
    near = pytest.approx(theirs, rel=5e-4, abs=4096) if same_order else pytest.approx(theirs, rel=0.25)
    assert mine == near


@pytest.mark.parametrize("name", STARTED)
def test_layers_that_are_copied(name: str) -> None:
    """Bytes in host memory and of the buffers on the card; what vLLM's offloader stumbles over is known."""
    theirs, architecture = OFFLOADED[name]["prefetch"], CASES[name]["config"].get("architectures", [name])[0]
    if theirs is None or architecture in TWO_STACKS:
        assert architecture in TWO_STACKS
        return
    if name in OTHERWISE:
        return
    mine = host(name, Offload("prefetch", group_size=3, prefetch_step=2))
    assert mine.host_bytes == pytest.approx(theirs[0], rel=1e-4, abs=4096)
    if name not in NAMES_MEET:
        assert mine.buffers == pytest.approx(theirs[1], rel=1e-4, abs=8192)


@pytest.mark.parametrize(("gibibytes", "stay"), [(10, 1_731_727_360), (20, 12_737_306_112)])
def test_experts_that_see_in_fp8_are_moved_in_vain(gibibytes: int, stay: int) -> None:
    """dots3-note's: up to 11.8 GB of 16 bits are moved first, then made FP8 on the card. What stays in host memory, by
    vLLM's own class and offloader (`make_offloaded.py`, under these limits)."""
    limit = Offload("uva", gibibytes * 2**30)
    host = stage_weights(load_model("dots-studio/dots3-note-prev"), offload=limit)[0].host
    assert host.host_bytes == pytest.approx(stay, rel=0.03)


def test_what_leaves_the_card_is_what_the_host_holds() -> None:
    """Card and host together hold the model; buffers come on top; embedding and head stay."""
    model = load_model("Qwen/Qwen3-8B")
    whole = heaviest_rank(model)
    moved = heaviest_rank(model, offload=Offload("uva", EVERYTHING))
    assert moved.loaded == moved.embedding + moved.lm_head + moved.rotary + (
        whole.layers[0].total * len(whole.layers) - moved.host.host_bytes
    )
    copied = heaviest_rank(model, offload=Offload("prefetch", group_size=4, prefetch_step=3))
    assert copied.host.host_bytes == 9 * whole.layers[0].total
    assert copied.host.buffers == 3 * whole.layers[0].total
    assert copied.loaded == pytest.approx(whole.loaded - 6 * whole.layers[0].total, rel=1e-3)


def test_each_rank_has_its_own() -> None:
    """Bytes are per GPU: with more stages and ranks each moves as much, of its own layers."""
    model, offload = load_model("Qwen/Qwen3-32B"), Offload("uva", 5 * 2**30)
    for tp, pp in ((1, 1), (2, 1), (2, 2)):
        for rank in stage_weights(model, tensor_parallel_size=tp, pipeline_parallel_size=pp, offload=offload):
            assert 5 * 2**30 <= rank.host.host_bytes < 5.3 * 2**30


def test_names_of_segments() -> None:
    """Whole segments count; scales have names of their own."""
    pieces = [WeightPiece("mlp.experts.gate_proj", 8, 2, 0, True, True, False, "weight_scale_inv")]
    pieces += [piece._replace(name=f"mlp.experts.{last}_proj") for piece in pieces for last in ("up", "down")]
    tensors = tensors_of(pieces)
    assert [(t.name, t.num_bytes) for t in tensors] == [
        ("mlp.experts.routed_experts.w13_weight", 16),
        ("mlp.experts.routed_experts.w2_weight", 8),
        ("mlp.experts.routed_experts.w13_weight_scale_inv", 4),
        ("mlp.experts.routed_experts.w2_weight_scale_inv", 2),
    ]
    assert in_host(Offload("uva", 100, ("w13_weight",)), [tensors]).host_bytes == 16
    assert in_host(Offload("uva", 100, ("expert", "w2")), [tensors]).host_bytes == 0
    assert in_host(Offload("uva", 1), [[WeightTensor("a", 8), WeightTensor("b", 8)]]).host_bytes == 8
