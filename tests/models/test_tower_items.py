"""The largest item of towers, as vLLM 0.32's processing classes say it of the configs in the fixture."""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

import pytest
from places import FIXTURES

from kvplan.memory.tower_profile import largest_image
from kvplan.models.architectures import from_config


@cache
def cases() -> dict[str, Any]:
    packed = (FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()
    found: dict[str, Any] = json.loads(lzma.decompress(packed))
    return found


@pytest.mark.parametrize(
    ("name", "patches", "tokens"),
    [
        # 1536 x 384: four tiles and the whole picture; 14 tokens in a row of a tile and its end, a separator
        ("DeepseekVLV2ForCausalLM", 5 * 729, 14 * 15 + 56 * 15 + 1),
        # five minutes, a token for every fifth of a second
        ("FunAudioChatForConditionalGeneration", 15_000, 1500),
        # 768 x 768, a quarter of the side in the first stage
        ("Gemma3nForConditionalGeneration", 192 * 192, 256),
        # 3,000 frames by `_get_feat_extract_output_lengths`: 13 tokens a hundred
        ("MoonshotKimiaForCausalLM", 1500, 390),
        ("OpenVLAForActionPrediction", 256, 256),
        ("Phi4ForCausalLMV", 3600, 3600),
    ],
)
def test_the_largest_item(name: str, patches: int, tokens: int) -> None:
    """Patches (or frames) through the tower, and the tokens they become."""
    vision = from_config(cases()[name]["config"], name).vision
    assert vision is not None
    found = largest_image(vision)
    assert found is not None
    assert found[:2] == (patches, tokens)
