"""Every architecture with one switch of its language model turned, beside vLLM's own class on one rank.

`fixtures/switches_vllm_0.32.json.xz` is what vLLM 0.32.0 answered (`make_switches.py`): ties, biases and norms that a
config asks for, whether or not its class reads them.
"""

from __future__ import annotations

import json
import lzma
from typing import Any

import pytest
from places import FIXTURES
from switches import TOPS, topped, turned
from test_architectures import kept_twice, text_only

from kvplan.models.architectures import from_config
from kvplan.models.weights import heaviest_rank


def _read(name: str) -> Any:
    return json.loads(lzma.decompress((FIXTURES / f"{name}_vllm_0.32.json.xz").read_bytes()))


CASES, SWITCHED = _read("architectures"), _read("switches")
NOT_MODELLED = {
    ("AriaForConditionalGeneration", "mlp_bias"): "biases of its shared experts",
    ("Ernie4_5_MoeForCausalLM", "use_bias"): "biases of its dense and shared MLPs",
    ("Ernie4_5_VLMoeForConditionalGeneration", "use_bias"): "biases of its dense and shared MLPs",
    ("NemotronH_Nano_VL_V2", "attention_bias"): "the oracle's config class leaves that out",
    ("OpenPanguVLForConditionalGeneration", "bias"): "either of two keys gives it biases",
    (
        "PaddleOCRVL, as published",
        "tie_word_embeddings",
    ): "its sizes stand at the top, its class's tie in a section",
    ("PanguEmbeddedForCausalLM", "bias"): "either of two keys gives it biases",
    ("Zamba2ForCausalLM", "add_bias_linear"): "biases of its MLPs",
}
"""Switches that no published config turns and that differ, and why."""


@pytest.mark.parametrize("name", SWITCHED)
def test_switches_do_what_they_do_in_vllms_class(name: str) -> None:
    """To a kilobyte, or three millionths."""
    for switch, theirs in SWITCHED[name].items():
        key, _, value = switch.partition("=")
        config = CASES[name]["config"]
        config = topped(config, TOPS[key]) if key in TOPS else turned(config, key, value == "True")
        if theirs is None or config is None or (name, key) in NOT_MODELLED:
            continue
        model = from_config(config, name)
        mine = heaviest_rank(model, language_model_only=text_only(name))
        weights = mine.total - mine.rotary - kept_twice(model, 1)
        assert abs(weights - theirs) <= max(1024, theirs // 300_000), switch


def test_most_switches_are_held() -> None:
    """More than a thousand answers; a switch of a case that is gone would be none."""
    answers = [theirs for found in SWITCHED.values() for theirs in found.values() if theirs is not None]
    assert len(answers) > 1000
    assert SWITCHED.keys() <= CASES.keys()
