"""Items whose sizes flags state, beside vLLM's own answer (`tests/models/make_told.py`)."""

from __future__ import annotations

import copy
import json
import lzma
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs, ResolvedArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.memory.item_sizes import told_facts
from kvplan.memory.tower_profile import _facts, largest_item
from kvplan.models.architectures import from_config
from kvplan.models.load import load_model
from kvplan.models.spec import VisionSpec

SAID: list[dict[str, Any]] = json.loads((FIXTURES / "told_items_vllm_0.32.json").read_text())
CONFIGS: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)


def vision_of(name: str, sizes: dict[str, Any] | None = None) -> VisionSpec:
    config = copy.deepcopy(CONFIGS[name]["config"])
    for key, value in (sizes or {}).items():
        config[key] = {**config[key], **value}
    vision = from_config(config, name).vision
    assert vision is not None
    return vision


def args(length: int = 8192, **flags: Any) -> ResolvedArgs:
    return estimate(load_model("Qwen/Qwen3.6-27B"), "h200", EngineArgs(max_model_len=length, **flags)).args


def described(case: dict[str, Any]) -> str:
    return f"{case['name']} {case['length']} {json.dumps(case['flags'])}"


@pytest.mark.parametrize("case", SAID, ids=described)
def test_items_are_counted_and_made_as_vllm_does(case: dict[str, Any]) -> None:
    """Tokens by which the largest is counted, and of the one that is run; what the processor refuses is refused."""
    vision, theirs = vision_of(case["name"], case.get("sizes")), case["vllm"]
    flags = args(case["length"], **case["flags"])
    if "error" in theirs:
        with pytest.raises(KvplanError, match="takes no"):
            largest_item(vision, flags)
        return
    mine, facts = largest_item(vision, flags), told_facts(vision, _facts(vision), flags)
    assert mine is not None
    assert facts is not None
    if (
        len(theirs["counted"]) == 1
        and "frames" in facts
        and mine.kind == "video"
        and "video" not in theirs["made"]
    ):
        pytest.skip("vLLM was asked of its image alone")
    kind = max(theirs["counted"], key=lambda m: (theirs["counted"][m], m))
    assert (mine.kind, mine.tokens) == (kind, theirs["counted"][kind])
    joined = facts["tile_patches"] / facts["tile_tokens"] if "tile_tokens" in facts else facts.get("merge", 4)
    assert mine.patches == theirs["made"][kind] * joined


def test_nemotrons_videos_have_the_frames_that_are_read() -> None:
    """vLLM 0.32 `nano_nemotron_vl.py: get_dummy_mm_data`: 32 frames in tubelets, however many the context holds."""
    vision = vision_of("NemotronH_Nano_VL_V2")
    told = args(131072, media_io_kwargs={"video": {"num_frames": 32}})
    facts = _facts(vision)
    mine, whole = largest_item(vision, told), largest_item(vision, args(131072))
    assert mine is not None
    assert whole is not None
    assert mine.patches == -(-32 // facts["media_frames"]) * facts["frame_patches"] < whole.patches
    assert mine.tokens == whole.tokens


def test_fewer_pixels_leave_more_for_kv() -> None:
    asked = {"max_model_len": 32768, "max_num_seqs": 8, "max_num_batched_tokens": 16384}
    plans = [
        estimate("Qwen/Qwen2.5-VL-7B-Instruct", "l40s", **asked, mm_processor_kwargs=told)
        for told in (None, {"max_pixels": 1003520})
    ]
    assert plans[0].budget.kv.size.value < plans[1].budget.kv.size.value
    assert plans[1].question.args.mm_processor_kwargs == '{"max_pixels": 1003520}'


def test_a_command_of_sizes_is_printed_again() -> None:
    line = (
        "vllm serve Qwen/Qwen2.5-VL-7B-Instruct --limit-mm-per-prompt "
        '\'{"image": {"count": 2, "width": 512}}\' --mm-processor-kwargs \'{"max_pixels": 1003520}\''
    )
    told = read_command(line)
    plan = estimate(told.model, "h100", told.args)
    assert read_command(plan.serve_command).args == told.args


@pytest.mark.parametrize("told", [{"max_pixels": "many"}, {"size": {"longest_edge": 0.5}}])
def test_pixels_are_whole_numbers(told: dict[str, Any]) -> None:
    with pytest.raises(KvplanError, match="must be a whole number of pixels"):
        estimate("Qwen/Qwen2.5-VL-7B-Instruct", "h100", mm_processor_kwargs=told)
