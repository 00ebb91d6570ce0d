"""Experts balanced over ranks, beside vLLM's own classes and its `EplbState` (`tests/models/make_balanced.py`)."""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.expert_balance import balances, check_eplb, redundant_experts
from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.stages import stages_of
from kvplan.ground.errors import KvplanError
from kvplan.memory.expert_balance import eplb_bytes
from kvplan.memory.forward import estimate
from kvplan.models.architectures import from_config
from kvplan.models.weights import stage_weights

CASES: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
BALANCED: dict[str, Any] = json.loads((FIXTURES / "balanced_vllm_0.32.json").read_text())
NOT_ASKED = ("timm", "Number of experts in the model")
"""What the makers' environment or config lacks."""
DEEPSEEK = {
    "model": "deepseek-ai/DeepSeek-V3",
    "gpu": "h200",
    "tensor_parallel_size": 8,
    "enable_expert_parallel": True,
}


def only(name: str) -> bool:
    return bool(CASES[name].get("flags", {}).get("language_model_only"))


def args_of(name: str) -> EngineArgs:
    return EngineArgs(
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        enable_eplb=True,
        eplb_config={"num_redundant_experts": 2, "window_size": 100},
        language_model_only=only(name),
    )


@pytest.mark.parametrize("name", [n for n, theirs in BALANCED.items() if "weights" in theirs])
def test_weights_and_state_equal_vllms(name: str) -> None:
    """What two redundant experts add to a rank's weights; the buffer of one layer, maps and loads."""
    theirs, model, args = BALANCED[name], from_config(CASES[name]["config"], name), args_of(name)
    if theirs["weights"] != theirs["plain"]["weights"] and not theirs["is_mixture"]:
        with pytest.raises(KvplanError, match="expert_load_view"):
            check_eplb(model, args, EngineVersion())
        return
    plain, more = (
        stage_weights(
            model,
            tensor_parallel_size=2,
            enable_expert_parallel=True,
            language_model_only=only(name),
            num_redundant_experts=n,
        )[0].total
        for n in (0, redundant_experts(model, args))
    )
    assert more - plain == pytest.approx(theirs["weights"] - theirs["plain"]["weights"], rel=1e-3, abs=4096)
    assert balances(model, args) == theirs["is_mixture"]
    assert eplb_bytes(model, args, stages_of(model, args)[0]) == pytest.approx(
        theirs.get("buffer", 0) + theirs.get("state", 0), rel=1e-3
    )


@pytest.mark.parametrize(
    "name",
    [n for n, t in BALANCED.items() if "weights" not in t and not any(w in t["refused"] for w in NOT_ASKED)],
)
def test_what_vllms_classes_refuse(name: str) -> None:
    """Classes that do not start with redundant experts, and experts that ranks do not divide."""
    with pytest.raises(KvplanError, match=r"--enable-eplb|--eplb-config"):
        check_eplb(from_config(CASES[name]["config"], name), args_of(name), EngineVersion())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"enable_eplb": True, "enable_expert_parallel": False}, "needs --enable-expert-parallel"),
        ({"enable_eplb": True, "tensor_parallel_size": 1}, "needs tensor or data parallelism"),
        ({"eplb_config": '{"num_redundant_experts": 8}'}, "needs --enable-eplb"),
        ({"enable_eplb": True, "eplb_config": {"num_redundant_experts": 9}}, "8 would, or 16 would"),
        ({"eplb_config": {"num_redundant": 8}}, "num_redundant"),
        ({"eplb_config": {"communicator": "pynccl"}}, "does not run beside steps"),
    ],
)
def test_what_the_config_refuses(flags: dict[str, object], said: str) -> None:
    """`config/parallel.py`, and the even distribution that `fused_moe/layer.py` asks for."""
    with pytest.raises(KvplanError, match=said):
        estimate(**{**DEEPSEEK, **flags})  # type: ignore[arg-type]


def test_redundant_experts_take_memory_and_visits() -> None:
    """32 more of DeepSeek-V3's 256: four more on each of eight ranks, 58 layers of 44 MB each; a row for the rest."""
    plain = estimate(**DEEPSEEK)  # type: ignore[arg-type]
    more = estimate(**DEEPSEEK, enable_eplb=True, eplb_config={"num_redundant_experts": 32})  # type: ignore[arg-type]
    added = more.budget.weights.size.value - plain.budget.weights.size.value
    assert added == pytest.approx(58 * 4 * 3 * 2048 * 7168 * (1 + 4 / 128**2), rel=1e-3)
    (row,) = [row for row in more.budget.rows if row.name == "eplb"]
    assert row.size.value > 36 * 3 * 2048 * 7168
    assert plain.budget.kv.size.value - more.budget.kv.size.value == added + row.size.value


def test_pasted_commands_act() -> None:
    """The flag, its JSON and keys of it behind a dot."""
    told = read_command(
        "vllm serve m -tp 8 --enable-expert-parallel --enable-eplb --eplb-config.num_redundant_experts 16"
        " --eplb-config.window_size 500"
    )
    assert not told.not_planned
    assert told.args.enable_eplb
    assert told.args.eplb_config == '{"num_redundant_experts": 16, "window_size": 500}'
