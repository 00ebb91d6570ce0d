"""`--model-impl transformers`: planned where vLLM holds the same by it, as it was asked; else refused in a line."""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES
from test_architectures import kept_twice

from kvplan.engines.flags import EngineArgs
from kvplan.engines.model_impl import ALIKE, ALIKE_ON_ONE_RANK, as_implemented
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


PLANNED = sorted(name for name in TOLD if architecture(name) in ALIKE | ALIKE_ON_ONE_RANK)


@pytest.mark.parametrize("name", PLANNED)
def test_weights_and_kv_are_vllms_by_that_class(name: str) -> None:
    """On one, two and eight ranks, wherever vLLM starts it; those that are planned on one alone differ on two."""
    wide = architecture(name) in ALIKE
    for tp, told in TOLD[name].items():
        if "error" in told or (tp != "1" and not wide):
            continue
        args = EngineArgs(model_impl="transformers", tensor_parallel_size=int(tp))
        model = as_implemented(from_config(CASES[name]["config"]), args)
        loaded = heaviest(weights_of_stages(model, args)).total - kept_twice(model, int(tp))
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
    assert single - wide == ALIKE_ON_ONE_RANK


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
        ("Qwen/Qwen2.5-VL-7B-Instruct", {}, "of Qwen2_5_VLForConditionalGeneration it holds others"),
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
