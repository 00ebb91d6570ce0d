"""Pieces that vision and audio towers share: what a row of `rows` reads, layers, patches, projectors.

A part is a `Weight`: rows, columns, and how tensor parallelism cuts it. Knows no bytes (`vision` places parts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.models.config import Keys
from kvplan.models.spec import Weight

Parts = Iterator[Weight]

ANY_LENGTH = 1 << 30
"""Frames of a video that only the context bounds."""


class NoSuchTower(KvplanError):
    """Sizes that the engine's own class refuses, so that the model does not start, with its tower or without."""


class TowerFacts(NamedTuple):
    """What a row reads: the whole config, the section with the tower's sizes, the language model's width."""

    outer: Keys
    tower: Keys
    text: int


class Tower(NamedTuple):
    """One row: where the sizes stand, and what they make."""

    section: str
    parts: Callable[[TowerFacts], Parts]
    heads: bool = True
    """Attention is cut by heads: they must divide by the ranks."""
    rotary: bool = False
    """It keeps a table of cosines and sines for 8,192 positions."""
    long_table: bool = False
    """The table has as many positions as the language model's context."""
    table: Callable[[TowerFacts], int] | None = None
    """Elements of another rotary table of its own."""
    largest: Callable[[TowerFacts], Mapping[str, int]] | None = None
    """What start-up profiles: patches and tokens of the largest item, widths; None: not known."""
    sound: Callable[[TowerFacts], Mapping[str, int]] | None = None
    """The longest sound of a tower that sees too; nothing in it where the config has no ears."""
    kind: str = ""
    """`model_type` of the only tower that the row describes, where the architecture takes others too."""


def item(
    hidden: int, width: int, patches: int, tokens: int, *, pixels: int, gated: int = 0, **more: int
) -> Mapping[str, int]:
    """Facts of the largest item: what passes the tower (patches or frames) and the tokens it becomes.

    `pixels`: 16-bit numbers of one patch as it comes in. More, where a tower is not a plain ViT over images:

    * `frames`, `frame_patches`, `frame_tokens`: a video, of so many frames at most; `frame_room`: what a frame is
      reckoned as where it is not its tokens; `beside`: tokens left for an image while frames are counted; `frames_run`:
      frames that are run, however many are counted; `run_tokens`, `run_least`, `run_patches`: one for so many of its
      tokens, of so many patches, and so many at least; `frame_pixels`: `pixels` of its patches; `most_patches`: of all.
    * `video_fills`: a video is counted as the context, whatever its frames become.
    * `fills`: the item is as many times patches and tokens as the context holds; `within`: tokens end with the context.
    * `at_once`: patches that the tower runs at a time.
    * `whole`: every rank runs it whole.
    * `samples`: of the longest sound; `token_samples`: of a token, where the context bounds it.
    * `scores`: numbers a patch that attention writes out beside Q, K, V; `kept`: of hidden states kept until the end;
      `outside`: of the widest moment outside of the layers: convolutions before them, resamplers and heads behind.
    """
    facts = {"hidden": hidden, "width": width, "patches": patches, "tokens": max(tokens, 1)}
    return facts | {"pixels": pixels, "gated": int(gated)} | more


SOUND = "sound_"
"""What facts of a sound are called beside those of what is seen."""


def beside(sound: Mapping[str, int]) -> dict[str, int]:
    """Facts of a sound, as they stand beside those of what is seen."""
    return {SOUND + key: n for key, n in sound.items()}


def heard_facts(facts: Mapping[str, int]) -> dict[str, int]:
    """Of a tower's facts those of its sound, where it sees too.

    >>> heard_facts({"patches": 9, **beside({"patches": 4})})
    {'patches': 4}
    """
    return {key.removeprefix(SOUND): n for key, n in facts.items() if key.startswith(SOUND)}


def linear(name: str, rows: int, cols: int, cut: str = "", *, bias: bool = True, copies: int = 1) -> Weight:
    """A matrix; `cut` is rows or cols."""
    return Weight(
        name, rows, cols, "rows" if cut == "rows" else "cols" if cut else "", bias=bias, copies=copies
    )


def vector(name: str, size: int, copies: int = 1) -> Weight:
    """Norms, positions, scales."""
    return Weight(name, size, copies=copies)


def sizes(k: Keys) -> tuple[int, int, int]:
    """Hidden size, width of the MLP, layers, under the names that towers give them."""
    hidden = k.count("embed_dim", "d_model", "hidden_size", "width")
    return (
        hidden,
        k.count("encoder_ffn_dim", "intermediate_size", default=4 * hidden),
        k.count("num_hidden_layers", "encoder_layers", "depth", "layers", high=4096),
    )


def blocks(
    k: Keys,
    *,
    layers: int = 0,
    cut: bool = True,
    gated: bool = False,
    bias: bool = True,
    norms: int = 4,
    inner: int = 0,
    kv: int = 0,
    cut_mlp: bool = True,
    key_bias: bool = True,
) -> Parts:
    """The transformer's layers: fused Q, K and V, the output, the MLP, and `norms` vectors of the hidden size each.

    `inner`: width of the heads together where it is not the hidden size; `kv`: of the keys' heads.
    """
    hidden, width, n = sizes(k)
    n, inner = layers or n, inner or hidden
    rows, cols = ("rows", "cols") if cut else ("", "")
    mlp_rows, mlp_cols = (rows, cols) if cut_mlp else ("", "")
    if key_bias:
        yield linear("attn.qkv", inner + 2 * (kv or inner), hidden, rows, bias=bias, copies=n)
    else:
        yield linear("attn.qv", 2 * inner, hidden, rows, bias=bias, copies=n)
        yield linear("attn.k", inner, hidden, rows, bias=False, copies=n)
    yield linear("attn.out", hidden, inner, cols, bias=bias, copies=n)
    yield linear("fc1", (2 if gated else 1) * width, hidden, mlp_rows, bias=bias, copies=n)
    yield linear("fc2", hidden, width, mlp_cols, bias=bias, copies=n)
    yield vector("norms", norms * hidden, n)


def patches(k: Keys, *, bias: bool = True, positions: int = -1, frames: int = 1) -> Parts:
    """The convolution that cuts an image into patches, and learned positions: a grid's unless told."""
    hidden, patch = sizes(k)[0], k.count("patch_size", high=4096)
    channels = k.count("num_channels", "in_channels", "in_chans", default=3, high=64)
    yield linear("patch_embedding", hidden, channels * frames * patch**2, bias=bias)
    if positions:
        yield vector("positions", (positions if positions > 0 else grid(k)) * hidden)


def grid(k: Keys) -> int:
    """Patches of the largest image."""
    return (k.count("image_size", high=1 << 20) // k.count("patch_size", high=4096)) ** 2


def merge(k: Keys, *keys: str) -> int:
    """Patches that become one token."""
    return k.count(*keys or ("spatial_merge_size",), default=2, high=64) ** 2


def two(
    name: str, sizes: tuple[int, int, int], *, bias: bool = True, cut: bool = False, norm: int = 0
) -> Parts:
    """A norm of `norm` elements and two matrices: (out, middle, in)."""
    out, middle, into = sizes
    if norm:
        yield vector(f"{name}.norm", norm)
    yield linear(f"{name}.linear_1", middle, into, "rows" if cut else "", bias=bias)
    yield linear(f"{name}.linear_2", out, middle, "cols" if cut else "", bias=bias)


def pairs(k: Keys, key: str) -> list[object]:
    """A list of lists."""
    found = k.raw.get(key)
    if not isinstance(found, list):
        raise k.error(f"{key} is missing")
    return found


def fraction(k: Keys, key: str, default: str) -> tuple[int, int]:
    """Two whole numbers with a slash between them."""
    over, _, under = k.text(key, default=default).partition("/")
    if not (over.isdecimal() and under.isdecimal() and len(over + under) < 8):
        raise k.error(f"{key} must be two whole numbers, as in {default}")
    return int(over), int(under)
