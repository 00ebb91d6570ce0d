"""The vision towers that engines load with multimodal models: their sizes from `vision_config`, their weights.

Towers are never quantised here: published checkpoints leave them in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvplan.errors import KvplanError
from kvplan.models.config import Keys
from kvplan.models.modules import Module, vector
from kvplan.models.spec import VisionSpec
from kvplan.units import cdiv

FAMILIES = {
    "Gemma3": "siglip",
    "Mistral3": "pixtral",
    "Llama4": "llama4",
    "Qwen3VL": "qwen3_vl",
    "Qwen3_5": "qwen3_vl",
    "Gemma4": "gemma4",
    "KimiK25": "moonvit",
}
"""Architecture prefix -> tower."""
TOWERS = ("vision_config", "audio_config", "thinker_config", "audio_tower_config", "encoder_config")
"""Sections of a config that describe a tower."""


def vision_tower(outer: Keys, architecture: str, text_hidden: int) -> VisionSpec | None:
    """Read the tower's sizes; None where the config has no `vision_config` or the model is text only."""
    family = next((f for prefix, f in FAMILIES.items() if architecture.startswith(prefix)), None)
    if family is None and any(key in outer for key in TOWERS):
        return VisionSpec("unlisted", ())
    if family is None or "vision_config" not in outer or architecture.endswith("CausalLM"):
        return None
    k = outer.section("vision_config")
    return VisionSpec(family, (("text_hidden", text_hidden), *_READERS[family](k).items()))


def vision_modules(tower: VisionSpec, tp: int) -> list[Module]:
    """The tower's weights on one of `tp` ranks."""
    if tower.family == "unlisted":
        raise KvplanError(
            "the weights of this model's vision or audio tower are not known; --language-model-only plans without it"
        )
    return [m._replace(name="vision." + m.name, role="vision") for m in _MODULES[tower.family](tower, tp)]


# ---- sizes


def _plain(k: Keys) -> dict[str, int]:
    """Keys that most towers share."""
    return {
        "hidden": k.count("hidden_size", "vt_hidden_size"),
        "width": k.count("intermediate_size", "vt_intermediate_size"),
        "layers": k.count("num_hidden_layers", "depth", "vt_num_hidden_layers", high=4096),
        "patch": k.count("patch_size", high=4096),
    }


def _sized(k: Keys) -> dict[str, int]:
    return {**_plain(k), "image": k.count("image_size", high=1 << 20)}


def _llama4(k: Keys) -> dict[str, int]:
    return {
        **_sized(k),
        "adapter": k.count("projector_input_dim", default=4096),
        "output": k.count("vision_output_dim", "projector_output_dim", default=4096),
    }


def _qwen(k: Keys) -> dict[str, int]:
    return {
        **_plain(k),
        "pixels": k.count("in_channels", default=3, high=64)
        * k.count("temporal_patch_size", default=2, high=64),
        "positions": k.count("num_position_embeddings"),
        "merge": k.count("spatial_merge_size", default=2, high=64) ** 2,
        "output": k.count("out_hidden_size"),
        "deepstack": len(k.counts("deepstack_visual_indexes")),
    }


def _gemma4(k: Keys) -> dict[str, int]:
    head_dim = k.count("hidden_size") // k.count("num_attention_heads")
    positions = k.count("position_embedding_size", default=10240)
    return {**_plain(k), "positions": positions, "head_dim": k.count("head_dim", default=max(head_dim, 1))}


def _moonvit(k: Keys) -> dict[str, int]:
    grid = k.count("init_pos_emb_height", default=64) * k.count("init_pos_emb_width", default=64)
    return {**_plain(k), "positions": grid, "merge": 4}


_READERS = {
    "siglip": _sized,
    "pixtral": _plain,
    "llama4": _llama4,
    "qwen3_vl": _qwen,
    "gemma4": _gemma4,
    "moonvit": _moonvit,
}


# ---- weights


def _linear(name: str, rows: int, cols: int, bias: bool = True, copies: int = 1) -> Module:
    return Module(name, "vision", rows, cols, rows if bias else 0, copies, linear=False)


def _blocks(
    v: VisionSpec, tp: int, *, gated: bool = False, bias: bool = True, norms: int = 4
) -> Iterator[Module]:
    """The transformer's layers: fused QKV and the first MLP matrices cut by rows, the others by columns."""
    hidden, width, n = v["hidden"], cdiv(v["width"], tp), v["layers"]
    inner = cdiv(hidden, tp)
    yield _linear("attn.qkv", 3 * inner, hidden, bias, n)
    yield _linear("attn.proj", hidden, inner, bias, n)
    yield _linear("mlp.up", (2 if gated else 1) * width, hidden, bias, n)
    yield _linear("mlp.down", hidden, width, bias, n)
    yield vector("norms", norms * hidden * n)


def _siglip_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden = v["hidden"]
    yield _linear("patch_embedding", hidden, 3 * v["patch"] ** 2)
    yield vector("position_embedding", (v["image"] // v["patch"]) ** 2 * hidden)
    yield from _blocks(v, tp)
    yield vector("post_layernorm", 2 * hidden)
    yield _linear("projector", hidden, v["text_hidden"], bias=False)
    yield vector("projector_norm", hidden)


def _pixtral_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, text = v["hidden"], v["text_hidden"]
    yield _linear("patch_conv", hidden, 3 * v["patch"] ** 2, bias=False)
    yield vector("ln_pre_and_projector_norm", 2 * hidden)
    yield from _blocks(v, tp, gated=True, bias=False, norms=2)
    yield _linear("patch_merger", hidden, 4 * hidden, bias=False)
    yield _linear("linear_1", cdiv(text, tp), hidden, bias=False)
    yield _linear("linear_2", text, cdiv(text, tp), bias=False)


def _llama4_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, adapter, output = v["hidden"], v["adapter"], v["output"]
    yield _linear("patch_embedding", cdiv(hidden, tp), 3 * v["patch"] ** 2, bias=False)
    yield vector("class_and_position_embedding", ((v["image"] // v["patch"]) ** 2 + 2) * hidden)
    yield vector("layernorm_pre_and_post", 4 * hidden)
    yield from _blocks(v, tp)
    yield _linear("adapter.fc1", cdiv(adapter, tp), v["width"], bias=False)
    yield _linear("adapter.fc2", output, cdiv(adapter, tp), bias=False)
    yield _linear("projector", cdiv(v["text_hidden"], tp), output, bias=False)


def _qwen_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, merged = v["hidden"], v["hidden"] * v["merge"]
    yield _linear("patch_embed", hidden, v["pixels"] * v["patch"] ** 2)
    yield vector("pos_embed", v["positions"] * hidden)
    yield from _blocks(v, tp)
    yield vector("merger.norm", 2 * hidden)
    yield vector("deepstack.norms", 2 * merged * v["deepstack"])
    mergers = 1 + v["deepstack"]
    yield _linear("merger.fc1", cdiv(merged, tp), merged, copies=mergers)
    yield Module("merger.fc2", "vision", v["output"], cdiv(merged, tp), v["output"], mergers, linear=False)


def _gemma4_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden = v["hidden"]  # not cut: every rank holds the whole tower
    yield vector("position_embedding_table", 2 * v["positions"] * hidden)
    yield _linear("input_proj", hidden, 3 * v["patch"] ** 2, bias=False)
    yield from _blocks(v, 1, gated=True, bias=False)
    yield vector("qk_norms", 2 * v["head_dim"] * v["layers"])
    yield _linear("embedding_projection", v["text_hidden"], hidden, bias=False)


def _moonvit_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, merged = v["hidden"], v["hidden"] * v["merge"]
    yield _linear("patch_embed", hidden, 3 * v["patch"] ** 2)
    yield vector("pos_emb", v["positions"] * hidden)
    yield from _blocks(v, tp)
    yield vector("final_layernorm_and_pre_norm", 4 * hidden)
    yield _linear("linear_1", merged, merged)
    yield _linear("linear_2", v["text_hidden"], merged)


_MODULES = {
    "siglip": _siglip_modules,
    "pixtral": _pixtral_modules,
    "llama4": _llama4_modules,
    "qwen3_vl": _qwen_modules,
    "gemma4": _gemma4_modules,
    "moonvit": _moonvit_modules,
}
