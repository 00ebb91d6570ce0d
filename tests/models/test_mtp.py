"""Whom vLLM lets draft with its own layers: beside `SpeculativeConfig`, for every config of the architectures' fixture.

`fixtures/drafting_vllm_0.32.json` is what vLLM 0.32.0 answered to 1, 4 and 9 tokens (`make_drafting.py`).
"""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.drafting import check_drafting
from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.engines.speculative_config import METHODS
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.serve_command import serve_flags
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model

SAID: dict[str, Any] = json.loads((FIXTURES / "drafting_vllm_0.32.json").read_text())
CASES = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
WITH_LAYERS = [name for name in SAID["mtp"] if from_config(CASES[name]["config"], name).mtp_layers]
STARTS_NOT = ("Step3p",)
"""vLLM's config takes them; the class that drafts ends (`test_steps_layers_end_since_0_19`)."""


def why_not(name: str, tokens: int) -> str:
    """kvplan's reason; empty: it drafts."""
    args = EngineArgs(num_speculative_tokens=tokens)
    try:
        check_drafting(from_config(CASES[name]["config"], name), args, parse_engine("vllm@0.32"))
    except KvplanError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("name", WITH_LAYERS)
def test_refused_where_vllm_refuses(name: str, tokens: int) -> None:
    """By its own reason: no drafting class for the model type, or a number that its modules do not divide."""
    said = SAID["mtp"][name]
    said = said if isinstance(said, str) else said[str(tokens)]
    mine = why_not(name, tokens)
    if name.startswith(STARTS_NOT):
        assert "layer_types" in mine or "multiple" in mine
    elif "Unsupported speculative method" in said:
        assert "Unsupported speculative method: 'mtp'" in mine
    elif "must be divisible by" in said:
        assert "or a multiple" in mine
    else:
        assert ":" not in said
        assert not mine


def test_every_reason_was_seen() -> None:
    """The fixture holds models that draft, that have no class, and numbers that do not divide."""
    said = [s for by in SAID["mtp"].values() for s in ([by] if isinstance(by, str) else by.values())]
    for what in ("DeepSeekMTPModel", "Unsupported speculative method", "must be divisible by"):
        assert any(what in one for one in said)
    refused = {name.split(",")[0] for name in WITH_LAYERS if "no class" in why_not(name, 1)}
    assert {
        "BailingMoeV2ForCausalLM",
        "Glm5NextForCausalLM",
        "MiniCPMV4_6ForConditionalGeneration",
    } <= refused


@pytest.mark.parametrize(("engine", "starts"), [("vllm@0.18", True), ("vllm@0.19", False), ("sglang", True)])
def test_steps_layers_end_since_0_19(engine: str, starts: bool) -> None:
    """vLLM issue 40000: IndexError at start-up; 0.18.1 ran."""
    model, args = load_model("stepfun-ai/Step-3.5-Flash"), EngineArgs(num_speculative_tokens=3)
    if starts:
        check_drafting(model, args, parse_engine(engine))
    else:
        with pytest.raises(KvplanError, match="issue 40000"):
            check_drafting(model, args, parse_engine(engine))


def test_every_method_of_vllm_is_planned_or_refused_by_name() -> None:
    """The names that `SpeculativeConfig.method` takes."""
    assert set(SAID["methods"]) == set(METHODS)


def test_dspark_of_v41_is_planned_and_its_mtp_is_not() -> None:
    """vLLM: "DeepSeek V4.1 has no classic-MTP draft: its checkpoints ship DSpark stages"; three layers weigh more."""
    asked = {"tensor_parallel_size": 4, "num_speculative_tokens": 5}
    name = "deepseek-ai/DeepSeek-V4.1-Flash"
    drafted = estimate(name, "h200", EngineArgs(**asked, speculative_method="dspark"))
    plain = estimate(name, "h200", EngineArgs(tensor_parallel_size=4))
    assert drafted.budget.weights.size.value - plain.budget.weights.size.value > 2 * GiB
    told = serve_flags(drafted.question.args)["speculative-config"]
    assert told == {"method": "dspark", "num_speculative_tokens": 5}
    with pytest.raises(KvplanError, match="method dspark"):
        estimate(name, "h200", EngineArgs(**asked))
    with pytest.raises(KvplanError, match="dspark_target_layer_ids"):
        estimate("Qwen/Qwen3-8B", "h200", EngineArgs(**asked, speculative_method="dspark"))
    with pytest.raises(KvplanError, match="vLLM alone"):
        estimate(name, "h200", EngineArgs(**asked, speculative_method="dspark"), engine="sglang")


def test_dspark_named_by_its_target_is_the_targets_own() -> None:
    """`--speculative-config` may name the checkpoint again; as it may leave the name out."""
    name = "deepseek-ai/DeepSeek-V4.1-Flash"
    args = EngineArgs(tensor_parallel_size=4, num_speculative_tokens=5, speculative_method="dspark")
    own, named = (estimate(name, "h200", args, colocate=c) for c in (None, {"draft": name}))
    assert own.budget == named.budget
