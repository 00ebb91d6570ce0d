"""What vLLM makes of quantised weights on AMD's cards, beside vLLM's own classes under its ROCm platform.

`fixtures/held_vllm_0.32.json` is what vLLM 0.32.0 answered (`make_held.py`): bytes behind the parameters once they are
loaded.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from held_cases import CASES, MODELS
from places import FIXTURES

from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.engines.rank_weights import rank_weights, weights_of_stages
from kvplan.engines.weights_held import weights_held
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.models.architectures import from_config
from kvplan.models.held import AS_LOADED
from kvplan.models.load import load_model
from kvplan.profiles.step_times import find_formats

HELD: dict[str, Any] = json.loads((FIXTURES / "held_vllm_0.32.json").read_text())
WITH_AITER = ("mi355x", "quark mxfp4, DEQUANT_AT_LOAD=1")
"""Whose kernels the oracle does not have, but vLLM's image does."""


OF_WHOLE_BLOCKS = "modelopt fp8, blocks"
"""ModelOpt's format pads outputs below a block of 128: of labels, which no such checkpoint has."""


def answered() -> list[tuple[str, str, str]]:
    return [
        (card, name, kind)
        for card, cases in HELD.items()
        for name, kinds in cases.items()
        for kind, theirs in kinds.items()
        if isinstance(theirs, int)
        and (card, name) != WITH_AITER
        and not (name == OF_WHOLE_BLOCKS and kind in ("labels", "rewards"))
    ]


@pytest.mark.parametrize(("card", "name", "kind"), answered())
def test_bytes_equal_vllms(card: str, name: str, kind: str) -> None:
    """But for scales of whole matrices and the like: within a thousandth, where what is held so is a sixth and more."""
    case = CASES[name]
    config = MODELS[kind] | ({"quantization_config": case.config} if case.config else {})
    env = " ".join(f"{key}={value}" for key, value in case.env.items() if "MOE_PADDING" not in key) or None
    args = EngineArgs(env=env, quantization=case.quantization)
    held = weights_held(args, get_gpu(card), parse_engine("vllm"))
    mine = weights_of_stages(from_config(config, name), args, held=held)[0]
    assert mine.total == pytest.approx(HELD[card][name][kind], rel=1e-3)


def test_enough_is_held() -> None:
    """Each card and kind of model; what turns by a variable turns."""
    found = answered()
    assert len(found) > 400
    assert {card for card, _, _ in found} == set(HELD)
    assert HELD["mi300x"]["bf16"] == HELD["mi300x"]["bf16, MOE_PADDING=0"]
    for name, without in (
        ("fp8", "fp8, FP8_PADDING=0"),
        ("modelopt mxfp8", "modelopt mxfp8, DEQUANT_AT_LOAD=0"),
    ):
        assert HELD["mi300x"][name]["experts"] > HELD["mi300x"][without]["experts"]


def test_a_plan_on_an_amd_card_has_them() -> None:
    """DeepSeek's FP8 on MI300X: 256 bytes a row of whole 512, of all but experts and what stays in 16 bits."""
    args = EngineArgs(tensor_parallel_size=8)
    amd, nvidia = (estimate("deepseek-ai/DeepSeek-V3", gpu, args) for gpu in ("mi300x", "h200"))
    off = estimate(
        "deepseek-ai/DeepSeek-V3", "mi300x", args.model_copy(update={"env": "VLLM_ROCM_FP8_PADDING=0"})
    )
    sizes = [p.budget.weights.size.value for p in (amd, nvidia, off)]
    assert sizes[1] == sizes[2] < sizes[0]
    other = estimate("deepseek-ai/DeepSeek-V3", "mi300x", args, engine="sglang")
    assert other.budget.weights.size.value < sizes[0]


def test_the_plan_says_what_is_more_than_the_checkpoint() -> None:
    """Twice the weights of an MXFP8 checkpoint on MI325X, and why; nothing where all is as loaded."""
    model, args = "MiniMaxAI/MiniMax-M3-MXFP8", EngineArgs(tensor_parallel_size=8)
    wide, native = (estimate(model, gpu, args).budget.weights for gpu in ("mi325x", "mi355x"))
    more = (wide.size.value - native.size.value) / GiB
    assert "x mxfp8 held in 16 bits, one of 8 ranks" in str(wide)
    assert f"; {more:.2f} GiB of it for want of a kernel" in str(wide)
    assert "16 bits" not in str(native)
    apart, plain = (str(estimate("Qwen/Qwen3-8B-FP8", gpu).budget.weights) for gpu in ("mi300x", "h100"))
    assert "GiB of it between rows of FP8" in apart
    assert "GiB of it" not in plain


def test_products_of_groups_on_hopper_are_held_in_16_bits() -> None:
    """DeepSeek V4.1's `wo_a` has a kernel on compute capability 10.x alone (`init_mxfp8_linear_kernel`, batched)."""
    args = EngineArgs(tensor_parallel_size=8)
    model = load_model("deepseek-ai/DeepSeek-V4.1-Flash")
    hopper, blackwell, off = (
        rank_weights(model, told, held=weights_held(told, get_gpu(card), parse_engine("vllm")))
        for card, told in (
            ("h200", args),
            ("b200", args),
            ("h200", args.model_copy(update={"env": "VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD=0"})),
        )
    )
    groups, inner, columns = 8, 1024, 64 * 512 // 8
    assert hopper - blackwell == len(model.layers) * groups * inner * columns // 8
    assert off == blackwell


def test_time_is_of_what_is_held() -> None:
    """MXFP8 held in 16 bits is read as such."""
    model, args = from_config(MODELS["dense"], "m"), EngineArgs(quantization="mxfp8")
    cards = [weights_held(args, get_gpu(name), parse_engine("vllm")) for name in ("mi300x", "mi355x", "h100")]
    formats = [find_formats(model, args, held)["weight_format"] for held in (*cards, AS_LOADED)]
    assert formats == ["bf16", "fp8", "fp8", "fp8"]
    assert rank_weights(model, args, held=cards[0]) > rank_weights(model, args, held=cards[2])
