"""Towers that are classes of the package timm: DeepSeek-VL2's SigLIP."""

from __future__ import annotations

from collections.abc import Mapping

from kvplan.models.config import Keys
from kvplan.models.towers.images import siglip
from kvplan.models.towers.parts import Parts, TowerFacts, linear, pairs, sizes, vector

SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
SO400M |= {"image_size": 384}
"""`vit_so400m_patch14_siglip_384`, which vLLM makes whatever the config's own sizes say."""


def deepseek_vl2(s: TowerFacts) -> Parts:
    """SigLIP and its pooling by attention, whose MLPs alone are cut; a projector that joins squares of patches.

    Source: vLLM 0.32 `models/deepseek_vl2.py`, timm 1.0 `vision_transformer.py`.
    """
    hidden, width, _ = sizes(Keys(s.outer.name, SO400M))
    for part in siglip(Keys(s.outer.name, SO400M)):
        yield part._replace(cut="") if part.name.startswith("attn") else part
    yield linear("attn_pool", 4 * hidden, hidden)
    yield vector("attn_pool.latent_and_norm", 3 * hidden)
    yield linear("attn_pool.fc1", width, hidden, "rows")
    yield linear("attn_pool.fc2", hidden, width, "cols")
    yield vector("image_newline_and_view_separator", 2 * _embedded(s))
    yield from _projector(s)


def _embedded(s: TowerFacts) -> int:
    return s.outer.section("projector_config").count("n_embed", default=2048)


def _projector(s: TowerFacts) -> Parts:
    k, out = s.outer.section("projector_config"), _embedded(s)
    into = k.count("input_dim", default=1152)
    if k.text("projector_type", default="downsample_mlp_gelu") == "linear":
        yield linear("projector", out, into)
        return
    middle = out * k.count("mlp_ratio", default=1, high=64)
    joined = k.count("downsample_ratio", default=2, high=64) ** 2
    yield linear("projector.first", middle, joined * into)
    yield linear("projector.middle", middle, middle, copies=max(k.count("depth", default=2, high=64) - 2, 0))
    yield linear("projector.last", out, middle)


def tiled_square(s: TowerFacts) -> Mapping[str, int]:
    """The candidate with most tokens: its tiles and the whole picture, an end to each row of tokens."""
    hidden, width, _ = sizes(Keys(s.outer.name, SO400M))
    found = pairs(s.outer, "candidate_resolutions") if "candidate_resolutions" in s.outer else [[384, 384]]
    sides = [p for p in found if isinstance(p, list) and len(p) == 2]
    if not sides or not all(type(n) is int and 384 <= n <= 1 << 16 for p in sides for n in p):
        raise s.outer.error("candidate_resolutions must be pairs of numbers from 384 on")
    joins = s.outer.section("projector_config").count("downsample_ratio", default=2, high=64)
    row = -(-(384 // 14) // joins)

    def tokens(high: int, wide: int) -> int:
        return row * (row + 1) + high * row * (wide * row + 1) + 1

    most, tiles = max((tokens(h // 384, w // 384), h // 384 * (w // 384)) for h, w in sides)
    patches = (tiles + 1) * (384 // 14) ** 2
    facts = {"hidden": hidden, "width": width, "patches": patches, "tokens": most}
    return facts | {"pixels": 3 * 14**2, "gated": 0}
