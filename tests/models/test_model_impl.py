"""`--model-impl transformers`: planned where vLLM holds the same by it, as it was asked; else refused in a line."""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES
from test_architectures import kept_twice

from kvplan.engines.flags import EngineArgs
from kvplan.engines.model_impl import (
    ALIKE,
    ALIKE_ON_ONE_RANK,
    WITH_TOWERS,
    WITH_TOWERS_ON_ONE_RANK,
    as_implemented,
    by_transformers,
)
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.models.load import from_config, load_model
from kvplan.models.weights import heaviest
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation.deploy import set_up

TOLD = json.loads((FIXTURES / "transformers_vllm_0.32.json").read_text())
CASES = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
KV = ("bytes_per_block", "num_blocks", "tokens", "refused")


def architecture(name: str) -> str:
    return str(CASES[name]["config"]["architectures"][0])


def alike(name: str, tp: str) -> bool:
    """Whether vLLM holds the same by both, to a thousandth: routers differ in their bits, norms in a vector or two."""
    ours, own = TOLD[name].get(tp, {}), CASES[name]["vllm"].get(tp, {})
    if "error" in ours or "error" in own or not (ours and own):
        return False
    return abs(ours["weights"] / own["weights"] - 1) < 1e-3 and all(ours.get(k) == own.get(k) for k in KV)


EVERYWHERE = ALIKE | WITH_TOWERS
PLANNED = sorted(name for name in TOLD if architecture(name) in EVERYWHERE | ALIKE_ON_ONE_RANK)


@pytest.mark.parametrize("name", PLANNED)
def test_weights_and_kv_are_vllms_by_that_class(name: str) -> None:
    """On one, two and eight ranks, wherever vLLM starts it; those that are planned on one alone differ on two."""
    wide = architecture(name) in EVERYWHERE
    for tp, told in TOLD[name].items():
        if "error" in told or (tp != "1" and not wide):
            continue
        args = EngineArgs(model_impl="transformers", tensor_parallel_size=int(tp))
        model = as_implemented(from_config(CASES[name]["config"]), args)
        rank = heaviest(weights_of_stages(model, args))
        loaded = rank.total - rank.rotary - kept_twice(model, int(tp))
        assert loaded == pytest.approx(told["weights"], rel=1e-4)
        assert told["rotary"] == 0
    assert alike(name, "1")


def test_all_text_models_that_are_alike_are_planned() -> None:
    """And nothing else: what was asked says of every architecture whether it is, on one rank or on all."""
    names = {architecture(name) for name in TOLD if "ConditionalGeneration" not in architecture(name)}
    of = {one: [name for name in TOLD if architecture(name) == one] for one in names}
    single = {one for one, cases in of.items() if all(alike(name, "1") for name in cases)}
    wide = {one for one in single if all(alike(name, tp) for name in of[one] for tp in ("2",))}
    assert wide == ALIKE
    assert single - wide == ALIKE_ON_ONE_RANK - WITH_TOWERS_ON_ONE_RANK


def test_all_that_see_or_hear_and_are_alike_are_planned() -> None:
    """On one rank, or with whole towers on several; where several cases ask of one, all must be."""
    names = {architecture(name) for name in TOLD if "ConditionalGeneration" in architecture(name)}
    of = {one: [name for name in TOLD if architecture(name) == one] for one in names}
    of = {one: [name for name in cases if "error" not in TOLD[name]["1"]] for one, cases in of.items()}
    single = {
        one
        for one, cases in of.items()
        if cases and all(alike(name, "1") and held(name, 1) for name in cases)
    }
    wide = {one for one in single if all(held(name, 2) for name in of[one])}
    assert wide == WITH_TOWERS
    assert single - wide == WITH_TOWERS_ON_ONE_RANK


def held(name: str, tp: int) -> bool:
    """Whether a rank with whole towers is as vLLM's, to a ten-thousandth."""
    told = TOLD[name].get(str(tp), {})
    if "weights" not in told:
        return False
    args = EngineArgs(tensor_parallel_size=tp, mm_encoder_tp_mode="data")
    rank = heaviest(weights_of_stages(by_transformers(from_config(CASES[name]["config"])), args))
    return bool(abs((rank.total - rank.rotary) / told["weights"] - 1) < 1e-4)


def test_towers_are_whole_and_in_doubt() -> None:
    """Those of transformers are not cut over ranks; what profiling them takes, half to twice vLLM's own class's."""
    told: dict[str, Any] = {"tensor_parallel_size": 2}
    own, other = (
        estimate("Qwen/Qwen3-VL-8B-Instruct", "h100", EngineArgs(model_impl=one, **told))
        for one in ("vllm", "transformers")
    )
    assert other.budget.weights.size.value > own.budget.weights.size.value
    assert other.budget.activation.size.high == 2 * own.budget.activation.size.high
    assert "as of vLLM's own class" in other.budget.activation.why


def test_rotary_tables_are_not_kept() -> None:
    own, told = (
        estimate("Qwen/Qwen3-8B", "h100", EngineArgs(model_impl=one)).budget.weights.size.value
        for one in ("vllm", "transformers")
    )
    [table] = load_model("Qwen/Qwen3-8B").rotary
    assert own - told == table.positions * table.dims * table.itemsize


def test_times_are_in_doubt() -> None:
    ends = [
        set_up(
            parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "engine": {"model_impl": one}})
        ).sources["step_time_range"]
        for one in ("vllm", "transformers")
    ]
    assert ends[0] != ends[1]
    assert "--model-impl transformers: timed as vLLM's own class" in str(ends[1])


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {}, "of Qwen3NextForCausalLM it holds others, or does not start it so"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"tensor_parallel_size": 2}, "planned on one rank alone"),
        ("google/gemma-3-27b-it", {}, "of Gemma3ForConditionalGeneration it holds others"),
        ("openai/gpt-oss-20b", {}, "does not support MXFP4 yet"),
        ("google/gemma-4-31B-it", {"tensor_parallel_size": 2}, "of Gemma4ForConditionalGeneration it holds others"),
        ("Qwen/Qwen3-8B", {"enable_lora": True}, "not planned beside --enable-lora"),
        ("Qwen/Qwen3-8B", {"model_impl": "terratorch"}, "runs TerraTorch's models by it, which have no KV"),
        ("Qwen/Qwen3-8B", {"model_impl": "jax"}, "must be 'auto', 'vllm', 'transformers' or 'terratorch'"),
    ],
)  # fmt: skip
def test_what_is_not_planned_is_one_line(model: str, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        estimate(model, "h100", **{"model_impl": "transformers", **flags})


def test_other_engines_have_no_such_choice() -> None:
    asked = {"tensor_parallel_size": 2, "model_impl": "transformers"}
    plan = estimate("Qwen/Qwen3-8B", "h100", EngineArgs(**asked), engine="sglang")
    assert plan.question.model.rotary
