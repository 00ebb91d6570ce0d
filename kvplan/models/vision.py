"""The vision towers that engines load with multimodal models: their sizes from `vision_config`, their weights.

Towers are never quantised here: published checkpoints leave them in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import cdiv
from kvplan.models.config import Keys
from kvplan.models.modules import Cut, Module, extra_modules, vector
from kvplan.models.spec import VisionSpec

if TYPE_CHECKING:
    from kvplan.models.towers.parts import Tower

FAMILIES = {
    "Gemma3For": "siglip",
    "Mistral3": "pixtral",
    "Llama4": "llama4",
    "Qwen3VL": "qwen3_vl",
    "Qwen3_5": "qwen3_vl",
    "InternS1Pro": "qwen3_vl",
    "InternS2Preview": "qwen3_vl",
    "InternS2Mobius": "qwen3_vl",
    "Cosmos3For": "qwen3_vl",
    "CohereCompass": "qwen3_vl",
    "Qwen4Exp": "qwen3_vl",
    "Gemma4": "gemma4",
    "DiffusionGemma": "gemma4",
    "KimiK25": "moonvit",
    "KimiK3": "moonvit3d",
    "Qwen2VL": "qwen2_vl",
    "JinaVL": "qwen2_vl",
    "Qwen2_5_VL": "qwen2_5_vl",
    "Glm4v": "glm4v",
    "InternVLFor": "internvl",
    "LlavaForC": "clip",
    "PaliGemma": "paligemma",
    "Cohere2Vision": "cohere2_vision",
}
"""Architecture prefix -> tower."""
CUT_BY_HEADS = frozenset(
    {"qwen3_vl", "qwen2_vl", "qwen2_5_vl", "glm4v", "clip", "paligemma", "cohere2_vision", "declared"}
)
TOWERS = ("vision_config", "audio_config", "thinker_config", "audio_tower_config", "encoder_config")
"""Sections of a config that describe a tower."""


def has_tower(architecture: str) -> bool:
    """Whether the architecture's tower is known."""
    from kvplan.models.towers.rows import DECLARED

    listed = architecture.startswith(tuple(FAMILIES)) and architecture.endswith(
        ("ConditionalGeneration", "Ranking", "BlockDiffusion")
    )
    return listed or architecture in DECLARED


def vision_tower(
    outer: Keys, architecture: str, text_hidden: int, *, multimodal: bool = False
) -> VisionSpec | None:
    """Read the tower's sizes; None where the config has no `vision_config` or the model is text only.

    `multimodal`: the architecture always has a tower, whatever section its sizes stand in.
    """
    if not multimodal and not any(key in outer for key in TOWERS):
        return None
    from kvplan.models.towers.kinds import tower_kinds

    found = _sized_tower(outer, architecture, text_hidden, multimodal)
    kinds = tower_kinds(architecture, outer)
    return found and replace(found, towers=kinds, architecture=architecture, shapes=_shapes(outer))


def _shapes(outer: Keys) -> tuple[tuple[int, int], ...]:
    """Sides of pictures of several tiles."""
    found = outer.raw.get("image_grid_pinpoints", outer.raw.get("candidate_resolutions"))
    pairs = [p for p in found if isinstance(p, list) and len(p) == 2] if isinstance(found, list) else []
    return tuple((a, b) for a, b in pairs if type(a) is int and type(b) is int and min(a, b) > 0)


def _sized_tower(outer: Keys, architecture: str, text_hidden: int, multimodal: bool) -> VisionSpec | None:
    from kvplan.models.towers.heard import gemma4_sound  # only where there is a tower: for cold starts
    from kvplan.models.towers.parts import TowerFacts, beside
    from kvplan.models.towers.rows import DECLARED
    from kvplan.models.towers.sound import gemma4_audio

    if architecture in DECLARED:
        return declared_tower(outer, DECLARED[architecture], text_hidden)
    family = next((f for prefix, f in FAMILIES.items() if architecture.startswith(prefix)), None)
    if family is None and (multimodal or any(key in outer for key in TOWERS)):
        return VisionSpec("unlisted", ())
    if family is None or "vision_config" not in outer or architecture.endswith("CausalLM"):
        return None
    k = outer.section("vision_config")
    if family == "clip" and (k.text("model_type") != "clip_vision_model" or _last_layer(outer) is None):
        return VisionSpec("unlisted", ())
    if family == "clip":
        k = Keys(
            k.name,
            {**k.raw, "num_hidden_layers": k.count("num_hidden_layers") + 1 + (_last_layer(outer) or 0)},
        )
    if family == "cohere2_vision":
        k = Keys(k.name, {**k.raw, "alignment": outer.raw.get("alignment_intermediate_size")})
    facts = {"text_hidden": text_hidden, **_READERS[family](k)}
    if family == "clip":
        facts["projector_bias"] = int(outer.flag("multimodal_projector_bias", True))
    if family == "glm4v":
        facts |= _glm_pixels(outer)
    if family in CUT_BY_HEADS:
        facts["heads"] = k.count("num_attention_heads", "num_heads")
    heard = outer.section("audio_config") if family == "gemma4" else Keys(k.name, {})
    try:
        sound = tuple(gemma4_audio(heard, text_hidden)) if heard.raw else ()
        facts |= beside(gemma4_sound(TowerFacts(outer, k, text_hidden))) if heard.raw else {}
    except KvplanError:
        return VisionSpec("unlisted", ())
    return VisionSpec(family, tuple(facts.items()), sound)


def declared_tower(outer: Keys, row: Tower, text_hidden: int) -> VisionSpec | None:
    """A tower by its row; unlisted where the config's sizes are not those the row reads; None where it has none."""
    k = outer.section(row.section) if row.section else outer
    if not k.raw and row.section in outer.section("thinker_config"):
        outer = outer.section("thinker_config")
        k = outer.section(row.section)
    if not k.raw:
        return None
    if row.kind not in ("", k.text("model_type")):
        return VisionSpec("unlisted", ())
    from kvplan.models.towers.parts import NoSuchTower, TowerFacts, beside

    try:
        parts = tuple(row.parts(TowerFacts(outer, k, text_hidden)))
        facts = _heads(k) if row.heads else {}
        long = outer.section("text_config").count("max_position_embeddings") if row.long_table else 8192
        facts |= {"table": _table(k, long)} if row.rotary else {}
        facts |= {"table": row.table(TowerFacts(outer, k, text_hidden))} if row.table else {}
        facts |= row.largest(TowerFacts(outer, k, text_hidden)) if row.largest else {}
        facts |= beside(row.sound(TowerFacts(outer, k, text_hidden))) if row.sound else {}
    except NoSuchTower:
        raise
    except KvplanError:
        return VisionSpec("unlisted", ())
    return VisionSpec("declared", tuple(facts.items()), parts)


def _heads(k: Keys) -> dict[str, int]:
    heads = k.count("num_attention_heads", "num_heads", "encoder_attention_heads", "heads")
    return {"heads": heads + k.count("num_dummy_heads", default=0, low=0)}


def _table(k: Keys, positions: int) -> int:
    """Elements of the rotary table: half a head for each position."""
    k = k.section("vision_config") if "vision_config" in k else k
    return positions * _rotated(
        k.count("qk_channels", default=k.count("hidden_size") // k.count("num_heads"))
    )


def _rotated(head_dim: int) -> int:
    """Numbers of one position in the table: half a head's, a cosine and a sine each for every second."""
    return head_dim // 2 + head_dim // 2 % 2


def vision_modules(tower: VisionSpec, tp: int, *, checkpoint: bool = False) -> list[Module]:
    """The tower's weights on one of `tp` ranks, or as they stand in the checkpoint."""
    if tower.family == "unlisted":
        raise KvplanError(
            "the weights of this model's vision or audio tower are not known; --language-model-only plans without it"
        )
    heads = dict(tower.facts).get("heads", tp) if tower.family in CUT_BY_HEADS else tp
    if heads % tp:
        raise KvplanError(f"tensor_parallel_size {tp}: the tower's {heads} heads do not divide by it")
    made = _MODULES[tower.family](tower, tp) if tower.family in _MODULES else ()
    modules = (*made, *extra_modules(tower.parts, Cut(tp, checkpoint=checkpoint)))
    return [m._replace(name="vision." + m.name, role="vision") for m in modules]


def _last_layer(outer: Keys) -> int | None:
    """LLaVA's `vision_feature_layer`: layers after it are not loaded; None where it is a list."""
    found = outer.raw.get("vision_feature_layer", -2)
    return found if isinstance(found, int) and found < 0 else None


def vision_rotary(tower: VisionSpec) -> int:
    """Bytes of the tower's own table of cosines and sines, where its class keeps one."""
    if tower.family == "declared":
        return 2 * dict(tower.facts).get("table", 0)
    if tower.family == "llama4":  # both axes of every patch and of the class token
        positions = (tower["image"] // tower["patch"]) ** 2 + 1
        return positions * 2 * (tower["hidden"] // tower["heads"]) * 2
    if tower.family not in ("qwen2_vl", "qwen2_5_vl", "glm4v", "qwen3_vl"):
        return 0
    return 2 * 8192 * _rotated(tower["hidden"] // tower["heads"])


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
        "adapted": k.count("projector_output_dim", "vision_output_dim", default=4096),
        "heads": k.count("num_attention_heads", default=16),
    }


def _qwen(k: Keys) -> dict[str, int]:
    return {
        **_plain(k),
        "pixels": k.count("in_channels", default=3, high=64)
        * k.count("temporal_patch_size", default=2, high=64),
        "positions": k.count("num_position_embeddings"),
        "merge": k.count("spatial_merge_size", default=2, high=64) ** 2,
        "heads": k.count("num_heads", "num_attention_heads", default=16),
        "output": k.count("out_hidden_size"),
        "deepstack": len(k.counts("deepstack_visual_indexes")),
    }


def _gemma4(k: Keys) -> dict[str, int]:
    head_dim = k.count("hidden_size") // k.count("num_attention_heads")
    positions = k.count("position_embedding_size", default=10240)
    return {**_plain(k), "positions": positions, "head_dim": k.count("head_dim", default=max(head_dim, 1))}


def _qwen2(k: Keys) -> dict[str, int]:
    hidden = k.count("embed_dim", "hidden_size")
    return {
        "hidden": hidden,
        "width": hidden * k.count("mlp_ratio", default=4)
        if "embed_dim" in k
        else k.count("intermediate_size"),
        "layers": k.count("depth", high=4096),
        "patch": k.count("patch_size", high=4096),
        "pixels": k.count("in_channels", "in_chans", default=3, high=64)
        * k.count("temporal_patch_size", default=2, high=64),
        "merge": k.count("spatial_merge_size", default=2, high=64) ** 2,
        "output": k.count("out_hidden_size", "hidden_size"),
    }


def _glm4v(k: Keys) -> dict[str, int]:
    output = k.count("out_hidden_size")
    return {
        **_qwen2(k),
        "width": output,
        "merger": k.count("intermediate_size"),
        "image": k.count("image_size"),
    }


def _glm_pixels(outer: Keys) -> dict[str, int]:
    """Pixels of the largest image and video, and whether they are counted by them.

    GLM-4.6V's and GLM-4.5V's checkpoints differ in their processors, of which a config.json says nothing, and in their
    contexts: 131,072 and 65,536. Source: processors as printed in vLLM's issue 22077 (GLM-4.1V), pull requests 43422
    and 48729 (GLM-4.6V).
    """
    newer = outer.section("text_config").count("max_position_embeddings", default=0, low=0) > 65536
    pixels = {"image_pixels": 9_633_792, "video_pixels": 100_352_000 if newer else 47_040_000}
    return pixels | ({"by_budget": 1} if newer else {})


def _internvl(k: Keys) -> dict[str, int]:
    grid = 1
    for image, patch in zip(k.counts("image_size"), k.counts("patch_size"), strict=True):
        grid *= image // max(patch, 1)
    return {
        "hidden": k.count("hidden_size"),
        "width": k.count("intermediate_size"),
        "layers": k.count("num_hidden_layers", high=4096),
        "patch": k.counts("patch_size")[0],
        "positions": grid + 1,
        "bias": int(k.flag("attention_bias")),
        "qk_norm": int(k.flag("use_qk_norm")),
        "final_norm": int(not k.flag("use_mean_pooling", True)),
    }


def _cohere2(k: Keys) -> dict[str, int]:
    return {**_sized(k), "alignment": k.count("alignment", default=36864)}


def _moonvit3d(k: Keys) -> dict[str, int]:
    return {**_moonvit(k), "qkv": k.count("qkv_hidden_size")}


def _moonvit(k: Keys) -> dict[str, int]:
    grid = k.count("init_pos_emb_height", default=64) * k.count("init_pos_emb_width", default=64)
    heads = k.count("num_attention_heads", "vt_num_attention_heads", default=16)
    return {**_plain(k), "positions": grid, "merge": 4, "heads": heads}


_READERS = {
    "siglip": _sized,
    "pixtral": _plain,
    "llama4": _llama4,
    "qwen3_vl": _qwen,
    "gemma4": _gemma4,
    "moonvit": _moonvit,
    "moonvit3d": _moonvit3d,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2,
    "glm4v": _glm4v,
    "internvl": _internvl,
    "clip": _sized,
    "paligemma": _sized,
    "cohere2_vision": _cohere2,
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
    yield _linear("adapter.fc2", v["adapted"], cdiv(adapter, tp), bias=False)
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


def _moonvit3d_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, merged, n = v["hidden"], v["hidden"] * v["merge"], v["layers"]
    ranks = 1 if v["heads"] % tp else tp  # whole where its heads do not divide; the projector always is
    yield _linear("patch_embed", hidden, 3 * v["patch"] ** 2, bias=False)
    yield vector("pos_emb", v["positions"] * hidden)
    yield _linear("wqkv", 3 * cdiv(v["qkv"], ranks), hidden, bias=False, copies=n)
    yield _linear("wo", hidden, cdiv(v["qkv"], ranks), bias=False, copies=n)
    yield _linear("mlp", 2 * cdiv(v["width"], ranks), hidden, bias=False, copies=n)
    yield vector("norms", 2 * hidden * n + hidden)
    yield _linear("linear_1", merged, merged, bias=False)
    yield _linear("linear_2", v["text_hidden"], merged, bias=False)
    yield vector("post_norm", v["text_hidden"])


def _merger(v: VisionSpec, tp: int) -> Iterator[Module]:
    merged = v["hidden"] * v["merge"]
    yield _linear("merger.fc1", cdiv(merged, tp), merged)
    yield _linear("merger.fc2", v["output"], cdiv(merged, tp))


def _qwen2_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, newer = v["hidden"], v.family == "qwen2_5_vl"
    if newer and v["width"] % tp:
        raise KvplanError(f"tensor_parallel_size {tp}: the tower's MLP of {v['width']} does not divide by it")
    yield _linear("patch_embed", hidden, v["pixels"] * v["patch"] ** 2, bias=False)
    yield from _blocks(v, tp, gated=newer, norms=2 if newer else 4)
    yield vector("merger.norm", hidden if newer else 2 * hidden)
    yield from _merger(v, tp)


def _glm4v_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, output, merger = v["hidden"], v["output"], cdiv(v["merger"], tp)
    yield _linear("patch_embed", hidden, v["pixels"] * v["patch"] ** 2)
    yield vector("position_embedding", (v["image"] // v["patch"]) ** 2 * hidden)
    yield from _blocks(v, tp, gated=True, bias=False, norms=2)
    yield vector("post_norms", 2 * hidden + 2 * output)
    yield _linear("downsample", output, hidden * v["merge"])
    yield _linear("merger.proj", cdiv(output, tp), output, bias=False)
    yield _linear("merger.gate_up", 2 * merger, output, bias=False)
    yield _linear("merger.down", output, merger, bias=False)


def _internvl_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden, merged, n, width = v["hidden"], 4 * v["hidden"], v["layers"], cdiv(v["width"], tp)
    yield _linear("patch_embedding", hidden, 3 * v["patch"] ** 2)
    yield vector("class_and_position_embedding", (1 + v["positions"]) * hidden)
    yield _linear("attn.qkv", 3 * hidden, hidden, bool(v["bias"]), n)  # attention is not cut
    yield _linear("attn.proj", hidden, hidden, copies=n)
    yield _linear("mlp.up", width, hidden, copies=n)
    yield _linear("mlp.down", hidden, width, copies=n)
    yield vector("norms_and_scales", (6 + 2 * v["qk_norm"]) * hidden * n + 2 * hidden * v["final_norm"])
    yield vector("projector.norm", 2 * merged)
    yield _linear("projector.linear_1", v["text_hidden"], merged)
    yield _linear("projector.linear_2", v["text_hidden"], v["text_hidden"])


def _clip_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    hidden = v["hidden"]
    yield _linear("patch_embedding", hidden, 3 * v["patch"] ** 2, bias=False)
    yield vector("class_and_position_embedding", ((v["image"] // v["patch"]) ** 2 + 2) * hidden)
    yield vector("pre_layernorm", 2 * hidden)
    yield from _blocks(v, tp)
    bias = bool(v["projector_bias"])
    yield _linear("projector.linear_1", cdiv(v["text_hidden"], tp), hidden, bias)
    yield _linear("projector.linear_2", v["text_hidden"], cdiv(v["text_hidden"], tp), bias)


def _other_siglip_modules(v: VisionSpec, tp: int) -> Iterator[Module]:
    """PaliGemma's and Command A Vision's: Gemma 3's tower, other projectors."""
    yield from (m for m in _siglip_modules(v, tp) if not m.name.startswith("projector"))
    if v.family == "paligemma":
        yield _linear("projector", v["text_hidden"], v["hidden"])
    else:
        gated = v["alignment"] // 2
        yield _linear("projector.linear_1", cdiv(2 * gated, tp), 4 * v["hidden"])
        yield _linear("projector.linear_2", v["text_hidden"], cdiv(gated, tp))


_MODULES = {
    "siglip": _siglip_modules,
    "pixtral": _pixtral_modules,
    "llama4": _llama4_modules,
    "qwen3_vl": _qwen_modules,
    "gemma4": _gemma4_modules,
    "moonvit": _moonvit_modules,
    "moonvit3d": _moonvit3d_modules,
    "qwen2_vl": _qwen2_modules,
    "qwen2_5_vl": _qwen2_modules,
    "glm4v": _glm4v_modules,
    "internvl": _internvl_modules,
    "clip": _clip_modules,
    "paligemma": _other_siglip_modules,
    "cohere2_vision": _other_siglip_modules,
}
