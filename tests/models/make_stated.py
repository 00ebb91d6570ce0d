"""Asks vLLM itself what its start-up profiles where flags state sizes of items, tower by tower.

    python tests/models/make_stated.py [NAME ...]
    python tests/models/make_stated.py limits

Writes `tests/fixtures/stated_items_vllm_0.32.json`: for each architecture, flags and length of the context what
`make_largest.py` writes without flags: tokens of an item by modality and the numbers of the item that is run; or what
vLLM refuses. Processors are made as they are loaded, with the keys of --mm-processor-kwargs that they know.
`limits` writes `item_limits_vllm_0.32.json`: how many items of a kind each class takes.

`tests/memory/test_stated_items.py` holds kvplan to them. Environment: see `make_largest.py`.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import make_largest
import vllm_meta
import whole_profiles
from make_largest import TOLD
from stated_processors import STUBS
from stated_sounds import EARS, UNCOUNTED, sounds

WRITTEN = make_largest.FIXTURES / "stated_items_vllm_0.32.json"
LIMITS = make_largest.FIXTURES / "item_limits_vllm_0.32.json"
LENGTHS = (8192, 131072)


def kwargs(**told: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": told}


def image(width: int, height: int, **more: Any) -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"image": {"count": 1, "width": width, "height": height}, **more}}


for version in (6, 7):
    sizes = {"vision_config": {"patch_size": 14}}
    make_largest.SIZES[f"MiniCPMV4_{version}ForConditionalGeneration"] = sizes
SHAPES = [image(512, 512), image(300, 1200), image(2000, 90)]
"""Pictures that are stated of every tower."""
SHAPELESS = {"Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM", "OpenPanguVLForConditionalGeneration"}
"""Whose videos are more tokens than any picture, or of which nothing is known without pixels."""
CASES: dict[str, list[dict[str, Any]]] = {
    "Gemma3ForConditionalGeneration": [
        kwargs(do_pan_and_scan=True),
        kwargs(do_pan_and_scan=True, pan_and_scan_max_num_crops=2),
        kwargs(images_kwargs={"do_pan_and_scan": True}),
        kwargs(do_pan_and_scan=True, pan_and_scan_min_crop_size=1000),
        {**kwargs(do_pan_and_scan=True), **image(700, 1500)},
        {**kwargs(do_pan_and_scan=True), **image(700, 800)},
    ],
    "Gemma4, with its towers": [
        *(kwargs(max_soft_tokens=n) for n in (70, 560, 1120)),
        kwargs(images_kwargs={"max_soft_tokens": 140}),
        {"limit_mm_per_prompt": {"video": {"num_frames": 4}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 100}}},
        {"limit_mm_per_prompt": {"video": 0}},
    ],
    "Gemma4UnifiedForConditionalGeneration": [
        *(kwargs(max_soft_tokens=n) for n in (70, 560, 1120)),
        {"limit_mm_per_prompt": {"video": {"num_frames": 4}}},
    ],
    "Mistral3ForConditionalGeneration": [kwargs(size={"longest_edge": n}) for n in (448, 1000)],
    "LightOnOCRForConditionalGeneration": [kwargs(size={"longest_edge": 700})],
    "PixtralForConditionalGeneration": [kwargs(size={"longest_edge": 700})],
    "KimiVLForConditionalGeneration": [
        image(1024, 1024),
        *(kwargs(in_token_limit=n) for n in (1024, 16384)),
        {**kwargs(in_token_limit=900), **image(900, 700)},
    ],
    "KimiK3, with its tower": [image(9000, 9000)],
    "InternVL, with its tower": [
        kwargs(max_patches=4),
        kwargs(min_patches=3, max_patches=5),
        kwargs(crop_to_patches=False),
        {},
        kwargs(crop_to_patches=True),
        kwargs(crop_to_patches=True, max_patches=4),
        kwargs(crop_to_patches=True, min_patches=3, max_patches=5),
        {**kwargs(crop_to_patches=True, max_patches=6), **image(900, 500, video=0)},
        {"limit_mm_per_prompt": {"image": 0, "video": {"num_frames": 5}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 5}}},
        {**kwargs(max_patches=6), **image(900, 500, video=0)},
    ],
    "Cohere2Vision, with its tower": [
        kwargs(max_patches=4),
        kwargs(crop_to_patches=False),
        {**kwargs(max_patches=6), **image(900, 500)},
        image(500, 900),
        image(1100, 1100),
    ],
    "Llama4ForConditionalGeneration": [
        kwargs(max_patches=4),
        {**kwargs(max_patches=5), **image(300, 1000)},
        {**kwargs(resize_to_max_canvas=True), **image(200, 300)},
        image(336, 700),
    ],
    "Idefics3ForConditionalGeneration": [
        kwargs(size={"longest_edge": 364}),
        kwargs(size={"longest_edge": 1000}),
        kwargs(do_image_splitting=False),
        image(364, 200),
    ],
    "SmolVLMForConditionalGeneration": [
        kwargs(size={"longest_edge": 728}),
        kwargs(do_image_splitting=False),
        image(200, 300),
    ],
    "Phi3VForCausalLM": [
        kwargs(num_crops=16),
        kwargs(num_crops=1),
        {**kwargs(num_crops=16), **image(50, 60)},
    ],
    "Phi4MMForCausalLM": [
        kwargs(dynamic_hd=4),
        kwargs(dynamic_hd=16),
        {**kwargs(dynamic_hd=4), **image(448, 1000)},
        image(400, 3000),
    ],
    "DeepseekVLV2ForCausalLM": [image(384, 384), image(300, 700)],
    "MolmoForCausalLM": [kwargs(max_crops=4), image(336, 700), image(100, 100)],
    "Molmo2ForConditionalGeneration": [
        {"limit_mm_per_prompt": {"video": 0}},
        {**kwargs(max_crops=4), "limit_mm_per_prompt": {"video": 0}},
        image(336, 700, video=0),
        image(900, 300, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 20}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 1}, "image": 0}},
    ],
    "DotsOCRForCausalLM": [
        kwargs(max_pixels=1003520),
        kwargs(size={"shortest_edge": 3136, "longest_edge": 401408}),
    ],
    "PaddleOCRVLForConditionalGeneration": [kwargs(max_pixels=501760), image(20, 300)],
    "KeyeForConditionalGeneration": [
        kwargs(max_pixels=501760),
        kwargs(size={"max_pixels": 250880}),
        {**kwargs(max_pixels=501760), **image(20, 300)},
        {"limit_mm_per_prompt": {"image": 1, "video": 1}},
        {"limit_mm_per_prompt": {"image": 2, "video": {"count": 2, "num_frames": 3}}},
        {
            "limit_mm_per_prompt": {
                "image": 0,
                "video": {"count": 1, "num_frames": 3, "width": 300, "height": 200},
            }
        },
    ],
    "KeyeVL1_5ForConditionalGeneration": [{"limit_mm_per_prompt": {"image": 1}}, kwargs(max_pixels=501760)],
    "Ernie4_5_VLMoeForConditionalGeneration": [
        kwargs(max_pixels=501760),
        kwargs(size={"shortest_edge": 3136, "longest_edge": 1003520}),
        {"limit_mm_per_prompt": {"video": {"num_frames": 5}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 4, "width": 300, "height": 200}}},
        image(500, 300, video=0),
    ],
    "NVLM_D": [kwargs(max_dynamic_patch=3), kwargs(use_thumbnail=False), kwargs(max_pixels=9)],
    "Eagle2_5_VLForConditionalGeneration": [kwargs(max_dynamic_patch=3), kwargs(max_pixels=9)],
    "LlavaNextForConditionalGeneration": [image(672, 300), image(337, 337)],
    "LlavaOnevisionForConditionalGeneration": [image(1000, 300, video=0), image(385, 385, video=0)],
    "BeeForConditionalGeneration": [image(900, 700)],
    "RForConditionalGeneration": [image(900, 700)],
    "Granite4VisionForConditionalGeneration": [image(384, 700)],
    "Step3VLForConditionalGeneration": [image(1000, 1100), image(700, 400)],
    "Step3p7ForConditionalGeneration": [image(1000, 1100)],
    "StepVLForConditionalGeneration": [],
    "Ovis": [kwargs(max_partition=4), image(448, 900), image(100, 60)],
    "NemotronH_Nano_VL_V2": [
        kwargs(max_num_tiles=4),
        {**kwargs(max_num_tiles=4), "limit_mm_per_prompt": {"video": 0}},
        kwargs(max_pixels=4),
        image(900, 400, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 8}}},
    ],
    "NemotronH_Nano_Omni_Reasoning_V3": [
        {"limit_mm_per_prompt": {"video": {"num_frames": 8}, "audio": 0}},
        {"limit_mm_per_prompt": {"video": 0}},
        {"limit_mm_per_prompt": {"video": 0, "audio": 0}},
        image(900, 400, video=0, audio=0),
        image(40, 4000, video=0, audio=0),
        image(3333, 3555, video=0, audio=0),
        image(511, 33, video=0, audio=0),
    ],
    "MiniCPMV": [
        {},
        kwargs(max_slice_nums=4),
        {**kwargs(max_slice_nums=4), "limit_mm_per_prompt": {"video": 0}},
        image(448, 448, video=0),
        image(448, 2000, video=0),
        image(300, 1700, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 3}}},
        {"limit_mm_per_prompt": {"image": 0, "video": {"num_frames": 3, "width": 300, "height": 700}}},
    ],
    "MiniCPMO": [{}, kwargs(max_slice_nums=4), image(300, 1700, video=0)],
    "MiniCPMV4_7ForConditionalGeneration": [
        kwargs(max_slice_nums=4),
        image(448, 2000, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 3, "width": 300, "height": 700}}},
    ],
    "MiniCPMV4_6ForConditionalGeneration": [
        kwargs(max_slice_nums=4),
        {**kwargs(max_slice_nums=4), "limit_mm_per_prompt": {"video": 0}},
        image(448, 448, video=0),
        image(448, 2000, video=0),
        image(300, 1700, video=0),
        {"limit_mm_per_prompt": {"video": {"num_frames": 3}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 3, "width": 300, "height": 700}}},
    ],
    "Ovis2_5": [
        {**kwargs(max_pixels=501760), "limit_mm_per_prompt": {"video": 0}},
        image(512, 512, video=0),
        image(900, 700, video=0),
        image(20, 700, video=0),
        image(1792, 8, video=0),
    ],
    "Qwen2_5OmniModel": [kwargs(max_pixels=501760), {"limit_mm_per_prompt": {"video": 0}}],
    "Qwen3OmniMoeForConditionalGeneration": [
        kwargs(max_pixels=501760),
        {"limit_mm_per_prompt": {"video": 0}},
    ],
    "InklingForConditionalGeneration": [
        {"limit_mm_per_prompt": {"audio": 0}},
        image(100, 50, audio=0),
        image(159, 160, audio=0),
        kwargs(rescale_image_frac=1.0),
    ],
    "DeepseekV4ForConditionalGeneration": [
        {},
        image(5, 9000),
        image(9000, 400),
        image(700, 100),
        kwargs(max_pixels=9),
    ],
    "DeepseekV41ForCausalLM": [{}, image(5, 9000), image(9000, 400), image(700, 100)],
    "Dots3NoteForCausalLM": [
        {"limit_mm_per_prompt": {"video": {"num_frames": 3}}},
        {"limit_mm_per_prompt": {"video": {"num_frames": 2, "width": 300, "height": 700}}},
        {"limit_mm_per_prompt": {"video": {"width": 20, "height": 2000}}},
        kwargs(max_pixels=501760),
        kwargs(seq=4000, output_reserve=100),
        kwargs(seq=1500),
        kwargs(max_new_tokens=5000),
        {**kwargs(target_height=56, target_width=700), "limit_mm_per_prompt": {"video": 0}},
        {**kwargs(min_pixels=401408, max_pixels=501760), **image(30, 90, video=0)},
        image(900, 700, video=0),
    ],
    "Cosmos3EdgeForConditionalGeneration": [
        {},
        kwargs(max_pixels=501760),
        kwargs(size={"shortest_edge": 4096, "longest_edge": 1003520}),
        {"limit_mm_per_prompt": {"video": {"num_frames": 1, "width": 640, "height": 480}}},
        {**kwargs(max_pixels=501760), "limit_mm_per_prompt": {"video": 0}},
        image(900, 700, video=0),
    ],
    "OpenPanguVLForConditionalGeneration": [
        kwargs(max_pixels=501760),
        kwargs(size={"shortest_edge": 3136, "longest_edge": 1806336}),
        {**kwargs(max_pixels=1806336), **image(500, 300, video=0)},
        {**kwargs(max_pixels=501760), "limit_mm_per_prompt": {"video": {"num_frames": 3, "width": 300}}},
    ],
    "Phi4ForCausalLMV": [
        {},
        kwargs(max_num_patches=1024),
        {**kwargs(min_num_patches=2000), **image(300, 200)},
        image(16, 960),
    ],
    "Llava, with its tower": [],
    "PaliGemma, with its tower": [],
    "AriaForConditionalGeneration": [],
    "Blip2ForConditionalGeneration": [],
    "BagelForConditionalGeneration": [],
    "GLM4VForCausalLM": [],
    "DeepseekOCRForCausalLM": [],
    "DeepseekOCR2ForCausalLM": [],
    "UnlimitedOCRForCausalLM": [],
}
"""Architecture -> flags beside those of `SHAPES`."""
CASES |= {name: [*CASES.get(name, ()), *more] for name, more in whole_profiles.CASES.items()}


CASES |= {
    **dict.fromkeys(("Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"), CASES["Ovis2_5"]),
    **dict.fromkeys(
        ("NemotronH_Omni_Reasoning_V3", "NemotronH_Super_Omni_Reasoning_V3"),
        CASES["NemotronH_Nano_Omni_Reasoning_V3"],
    ),
    "Qwen2_5OmniForConditionalGeneration": CASES["Qwen2_5OmniModel"],
    **dict.fromkeys(("QianfanOCRForConditionalGeneration", "SkyworkR1VChatModel"), CASES["NVLM_D"]),
    "Gemma3nForConditionalGeneration": [],
    "NemotronParseForConditionalGeneration": [],
    "OpenVLAForActionPrediction": [],
}
"""Of classes that are others' or like them, the same flags."""


def heard(samples: int, **more: Any) -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"audio": {"count": 1, "length": samples}, **more}}


LONG = 16_000, 100_000, 400_000, 700_000, 10**8
SOUNDS = [heard(n) for n in LONG]
UNSEEN: dict[str, int] = {"image": 0, "video": 0}
HEARD = [{"limit_mm_per_prompt": UNSEEN}, *(heard(n, **UNSEEN) for n in (700, *LONG))]
"""Sounds that are stated of towers that see too, where nothing may be seen."""


def sound(name: str, case: dict[str, Any], flags: dict[str, Any], length: int) -> dict[str, Any]:
    """vLLM's answer of a sound: tokens and the frames that pass the tower."""
    flags = {**case.get("flags", {}), **json.loads(json.dumps(flags))}
    flags.pop("language_model_only", None)
    vllm_meta._Tokenizer.add_tokens = lambda self, *names, **told: 0
    made, info, dummy = make_largest._info(
        make_largest.sized(name, case["config"]), flags, length, case.get("beside")
    )
    if name in EARS:
        _with_ears(name, info)
    else:
        _with_usual_ears(name, info)
    limits = [m for m in info.get_supported_mm_limits() if info.allowed_mm_limits.get(m)]
    if name in UNCOUNTED:
        type(info).get_max_image_tokens = type(info).get_max_video_tokens = lambda self, *told: 1
        told = info.get_mm_max_tokens_per_item(length, dict.fromkeys(limits, 1))
        return {"tokens": {m: n for m, n in told.items() if m in limits}}
    told = info.get_mm_max_tokens_per_item(length, dict.fromkeys(limits, 1))
    options = made.get_multimodal_config().limit_per_prompt
    samples = len(dummy.get_dummy_mm_data(length, {"audio": 1}, options)["audio"][0])
    tokens, frames = sounds()[name](info, samples)
    return {"tokens": {"audio": int((told or {"audio": tokens})["audio"])}, "frames": {"audio": int(frames)}}


def _with_ears(name: str, info: Any) -> None:
    """What its class hears with: transformers' own extractor, beside what it sees with."""
    ears = EARS[name]()
    if ears is None:  # its class makes its own
        return
    known = make_largest.PROCESSORS.get(name)
    stub = known(info) if known else SimpleNamespace()
    for key, made in ears.items():
        setattr(stub, key, made)
    type(info).get_hf_processor = lambda self, **told: stub
    type(info).get_feature_extractor = lambda self, **told: ears["feature_extractor"]


def _with_usual_ears(name: str, info: Any) -> None:
    """Whisper's numbers, and the longest that transformers' processors take."""
    ears = SimpleNamespace(
        sampling_rate=16000, chunk_length=30, n_samples=480000, hop_length=160, frame_rate=12.5
    )
    longest = {"AudioFlamingo3ForConditionalGeneration": 600}.get(name, 655)
    stub = SimpleNamespace(feature_extractor=ears, audio_merge_size=4, max_audio_len=longest)
    stub.mel_config = {"mel_sr": 16000, "mel_hop_length": 160}
    type(info).get_hf_processor = lambda self, **told: stub
    type(info).get_feature_extractor = lambda self, **told: ears


def limits(packed: dict[str, Any]) -> dict[str, Any]:
    """Architecture -> the most items of a kind that its class takes a prompt; none is None."""
    vllm_meta._Tokenizer.add_tokens = lambda self, *names, **told: 0
    found: dict[str, Any] = {}
    for name, case in packed.items():
        flags = {k: v for k, v in case.get("flags", {}).items() if k != "language_model_only"}
        beside = make_largest._glm_files(name) if name in make_largest.GLM_PIXELS else case.get("beside")
        try:
            info = make_largest._info(make_largest.sized(name, case["config"]), flags, 8192, beside)[1]
            found[case["config"]["architectures"][0]] = info.get_supported_mm_limits()
        except Exception as error:  # classes of text alone, packages that are not there
            print(name, type(error).__name__, str(error)[:80])
    return dict(sorted(found.items()))


def main() -> None:
    vllm_meta.platform()
    make_largest.PROCESSORS.update(STUBS)
    packed = json.loads(
        lzma.decompress((make_largest.FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
    )
    if sys.argv[1:] == ["limits"]:
        LIMITS.write_text(json.dumps(limits(packed), indent=1) + "\n")
        return
    written = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    for name in sys.argv[1:] or dict.fromkeys((*CASES, *sounds(), *UNCOUNTED)):
        said = [
            {"flags": flags, "length": length, "vllm": answer(name, packed[name], flags, length)}
            for flags in asked(name)
            for length in whole_profiles.LENGTHS.get(name, LENGTHS)
        ]
        written[name] = {"sizes": make_largest.SIZES.get(name, {}), "said": said}
        for case in said:
            print(name, case["flags"], case["length"], case["vllm"], flush=True)
    WRITTEN.write_text(json.dumps(dict(sorted(written.items())), indent=1) + "\n")


def asked(name: str) -> list[dict[str, Any]]:
    """Flags that are stated of one architecture."""
    heard = HEARD if name in sounds() else HEARD[:1] if name in UNCOUNTED else []
    if name not in CASES:
        return heard if name in UNCOUNTED else SOUNDS
    return [*([] if name in SHAPELESS else SHAPES), *CASES[name], *heard]


def answer(name: str, case: dict[str, Any], flags: dict[str, Any], length: int) -> dict[str, Any]:
    """vLLM's answer of one architecture under these flags."""
    TOLD.clear()
    told = flags.get("mm_processor_kwargs", {})
    TOLD.update({k: v for k, v in told.items() if not k.endswith("_kwargs")})
    TOLD.update(told.get("images_kwargs", {}))
    own = {k: v for k, v in case.get("flags", {}).items() if k != "language_model_only"}
    kinds = flags.get("limit_mm_per_prompt", {})
    if name in {*sounds(), *UNCOUNTED} and (
        name not in CASES or kinds.get("image") == kinds.get("video") == 0
    ):
        return sound(name, case, flags, length)
    try:
        flags = {**own, **json.loads(json.dumps(flags))}
        if name in whole_profiles.CHECKPOINTS:
            found = whole_profiles.ask(name, case, flags, length)
        else:
            found = make_largest.ask(name, {**case, "flags": flags}, length)
        if name in sounds() and kinds.get("audio") != 0:
            found["frames"] = (ears := sound(name, case, flags, length))["frames"]
            found["tokens"] |= ears["tokens"]
        return found
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return {"error": f"{type(error).__name__}: {str(error)[:160]}"}


if __name__ == "__main__":
    main()
