"""Limits of items a prompt: a tower is not loaded once all its kinds are at 0, and no kind at 0 is profiled.

Source: vLLM 0.32 `model_executor/models/interfaces.py: _mark_tower_model`, `multimodal/encoder_budget.py`;
`fixtures/tower_kinds_vllm_0.32.json` is what its classes mark (`tests/models/make_tower_kinds.py`).
"""

from __future__ import annotations

import copy
import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.memory.answers import Plan
from kvplan.memory.forward import estimate
from kvplan.memory.tower_profile import largest_item, runs_none, tower_bytes
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import ModelSpec
from kvplan.models.towers.kinds import CLIPS, OF
from kvplan.observed.log_flags import read_flags
from kvplan.scenario.schema import parse_scenario

MARKED: dict[str, list[list[str]]] = json.loads((FIXTURES / "tower_kinds_vllm_0.32.json").read_text())
CONFIGS: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
NOT_MARKED = {
    "Emu3ForConditionalGeneration": "the Transformers backend's: by what the processor takes",
    "HunYuanVLForConditionalGeneration": "the same",
    "VibeVoiceAsrForConditionalGeneration": "the same",
    "FunASRForConditionalGeneration": "marked by nothing; the kind that it supports",
    "Gemma4UnifiedForConditionalGeneration": "marked by nothing; kinds that it supports",
    "InklingForConditionalGeneration": "the same",
    "MiniCPMO": "the class of its version, chosen as it is made, marks both",
}
QWEN, MISTRAL = "Qwen/Qwen2.5-VL-7B-Instruct", "mistralai/Mistral-Small-3.2-24B-Instruct-2506"


def plan(model: ModelSpec | str, engine: str = "vllm@0.32", **flags: Any) -> Plan:
    return estimate(model, "h100", EngineArgs(**{"max_model_len": 8192, **flags}), engine=engine)


def sizes(model: ModelSpec | str, **flags: Any) -> tuple[int, int]:
    """Bytes of weights and of the activation peak."""
    budget = plan(model, **flags).budget
    return budget.weights.size.value, budget.activation.size.value


def limited(**counts: int) -> str:
    return json.dumps(counts)


def of_fixture(name: str) -> ModelSpec:
    return from_config(copy.deepcopy(CONFIGS[name]["config"]), name)


@pytest.mark.parametrize("name", MARKED)
def test_towers_are_for_the_kinds_that_vllms_classes_mark(name: str) -> None:
    assert sorted(sorted(kinds) for kinds in OF.get(name, (CLIPS,))) == MARKED[name]


def test_every_listed_architecture_is_marked_or_has_a_reason() -> None:
    assert OF.keys() - MARKED.keys() == NOT_MARKED.keys()


@pytest.mark.parametrize(
    ("name", "counts"),
    [(QWEN, {"image": 0, "video": 0}), (MISTRAL, {"image": 0}), (MISTRAL, {"image": 0, "audio": 3})],
)
def test_all_kinds_at_0_leave_the_language_model(name: str, counts: dict[str, int]) -> None:
    """However they are told: kvplan's flag, a pasted command, a log's line."""
    text = limited(**counts)
    alone = sizes(name, language_model_only=True)
    assert alone[0] < sizes(name)[0]
    assert sizes(name, limit_mm_per_prompt=text) == alone
    command = read_command(f"vllm serve {name} --limit-mm-per-prompt '{text}'").args
    assert sizes(name, limit_mm_per_prompt=command.limit_mm_per_prompt) == alone
    line = f"non-default args: {{'limit_mm_per_prompt': {counts}}}"
    assert sizes(name, **read_flags(line, "vllm")) == alone


def test_a_scenario_s_key_leaves_the_language_model() -> None:
    counts = {"image": 0, "video": 0}
    scenario = {
        "model": QWEN,
        "gpu": "h100",
        "engine": {"max_model_len": 8192, "limit_mm_per_prompt": counts},
    }
    flags = parse_scenario(scenario).engine
    assert sizes(QWEN, **flags.model_dump()) == sizes(QWEN, language_model_only=True)


@pytest.mark.parametrize("counts", [{"image": 0}, {"video": 0}, {"audio": 0}, {"image": 1, "video": 0}])
def test_one_kind_left_keeps_the_tower(counts: dict[str, int]) -> None:
    assert sizes(QWEN, limit_mm_per_prompt=limited(**counts))[0] == sizes(QWEN)[0]


@pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm"])
def test_other_engines_load_the_tower_whatever_vllms_flag_says(engine: str) -> None:
    told = plan(QWEN, engine, limit_mm_per_prompt=limited(image=0, video=0))
    assert not told.args.language_model_only


def test_vllm_before_0_27_loads_the_tower_and_profiles_none() -> None:
    """As with --language-model-only."""
    told = plan(QWEN, "vllm@0.26", limit_mm_per_prompt=limited(image=0, video=0)).budget
    assert told.weights.size == plan(QWEN, "vllm@0.26").budget.weights.size
    assert told.activation == plan(QWEN, "vllm@0.26", language_model_only=True).budget.activation


@pytest.mark.parametrize(
    ("name", "off", "rest", "unused"),
    [
        ("Qwen2_5OmniForConditionalGeneration", {"image": 0, "video": 0}, {"audio": 0}, "image and video"),
        ("Qwen3OmniMoeForConditionalGeneration", {"audio": 0}, {"image": 0, "video": 0}, "audio"),
        ("Phi4MMForCausalLM", {"image": 0, "audio": 0}, {"video": 0}, "audio"),
    ],
)
def test_one_of_two_towers_at_0_keeps_both_and_says_so(
    name: str, off: dict[str, int], rest: dict[str, int], unused: str
) -> None:
    """Their shares of the weights are not told apart."""
    model = of_fixture(name)
    told = plan(model, limit_mm_per_prompt=limited(**off))
    assert not told.args.language_model_only
    assert told.budget.weights.size == plan(model).budget.weights.size
    note = f"the unused tower for {unused}"
    assert note in told.budget.weights.why
    assert note in told.text()
    assert plan(model, limit_mm_per_prompt=limited(**off, **rest)).args.language_model_only
    assert "unused" not in plan(model).budget.weights.why + plan(model).text()


def test_a_tower_that_nothing_is_seen_with_is_not_profiled_as_if() -> None:
    """Qwen 2.5 Omni that only hears runs its longest sound: 30 s, less than an image."""
    model = of_fixture("Qwen2_5OmniForConditionalGeneration")
    assert model.vision is not None
    hears = plan(model, limit_mm_per_prompt=limited(image=0, video=0)).args
    item = largest_item(model.vision, hears)
    assert item is not None
    assert (item.kind, item.tokens, item.patches) == ("audio", 750, 1500)
    heard, seen = (
        tower_bytes(model.vision, told)
        for told in (hears, plan(model, limit_mm_per_prompt=limited(audio=0)).args)
    )
    assert heard is not None
    assert seen is not None
    assert 0 < heard < seen


@pytest.mark.parametrize("name", ["MiniCPMO", "MiMoV2Omni, with sections"])
def test_a_class_that_counts_no_sounds_runs_none(name: str) -> None:
    """Their tokens are not among those of which vLLM makes a budget: without pictures nothing is run or kept."""
    model = of_fixture(name)
    assert model.vision is not None
    hears, seen = (plan(model, limit_mm_per_prompt=text) for text in (limited(image=0, video=0), None))
    assert runs_none(model.vision, hears.args)
    assert not runs_none(model.vision, seen.args)
    assert hears.budget.activation.size.value < seen.budget.activation.size.value


def test_sounds_a_prompt_bound_those_of_the_profile() -> None:
    """Qwen 2 Audio's are of up to 750 tokens: eight prompts of one are fewer than fill a batch of 16,384."""
    model = of_fixture("Qwen2AudioForConditionalGeneration")
    assert model.vision is not None
    flags = {"max_num_seqs": 8, "max_num_batched_tokens": 16384}
    one, two, many = (
        tower_bytes(model.vision, plan(model, limit_mm_per_prompt=text, **flags).args)
        for text in (limited(audio=1), limited(audio=2), None)
    )
    assert one is not None
    assert two is not None
    assert many is not None
    assert two == 2 * one
    assert many > two
    item = largest_item(model.vision, plan(model, **flags).args)
    assert item is not None
    assert item.kind == "audio"


def test_a_profiled_image_is_bounded_by_images_alone() -> None:
    """Qwen 3.6 profiles an image: two prompts of one run two, whatever is told of videos."""
    model = load_model("Qwen/Qwen3.6-27B")
    flags = {"max_num_seqs": 2, "max_num_batched_tokens": 65536, "max_model_len": 131072}

    def peak(**counts: int) -> int:
        assert model.vision is not None
        found = tower_bytes(model.vision, plan(model, limit_mm_per_prompt=limited(**counts), **flags).args)
        assert found is not None
        return found

    assert peak(image=1) == peak(image=1, video=5)
    assert peak(image=2) == 2 * peak(image=1)
