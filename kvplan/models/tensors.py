"""The parameters of a layer as vLLM makes them: fused where it fuses, under its names, in its order.

Knows sizes in bytes and names. What quantisation makes of a matrix, and how ranks cut it, `weights` knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvplan.ground.units import MiB
from kvplan.models.modules import checkpoint_name


def allocator_slack(size: int) -> int:
    """Bytes that torch holds beyond a large tensor's own: memory comes in 2 MiB, and a rest of 1 MiB is not split off.

    Source: torch `CUDACachingAllocator.cpp`, kRoundLarge, kMinLargeAlloc, kSmallSize.

    >>> allocator_slack(129 * 2**20 + 2**19), allocator_slack(128 * 2**20)
    (524288, 0)
    """
    left = -size % (2 * MiB)
    return left if size >= 10 * MiB and left <= MiB else 0


class WeightTensor(NamedTuple):
    """One parameter of vLLM's on one rank."""

    name: str
    """Within its layer or tower, as vLLM names it."""
    num_bytes: int
    is_expert: bool = False
    is_plain: bool = True
    """Not quantised."""
    is_remade: bool = False
    """Made anew on the card once loaded: it counts towards what is moved, and does not stay there."""

    @property
    def slack(self) -> int:
        """What torch's allocator takes on the card beyond its own bytes."""
        return allocator_slack(self.num_bytes) if self.is_plain else 0

    def is_named(self, params: Sequence[str]) -> bool:
        """Whether whole segments of its name are among these; nothing named is everything.

        >>> WeightTensor("mlp.experts.w2_weight", 1).is_named(["experts"])
        True
        >>> WeightTensor("mlp.w2_weight", 1).is_named(["w2"])
        False
        """
        return not params or any(f".{param}." in f".{self.name}." for param in params)


PARTS_OF = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
}
"""vLLM fuses Q, K and V, gate and up."""
LATENT = {"q_a_proj": "fused_qkv_a_proj", "kv_a_proj_with_mqa": "fused_qkv_a_proj"}
"""And of latent attention with a latent of queries its first products."""
OF_EXPERTS = {"gate_proj": "w13", "up_proj": "w13", "down_proj": "w2"}
"""And of all experts together gate and up, and down."""


BESIDE_CHECKPOINTS: dict[str, tuple[tuple[str, str], ...]] = {
    "GptOss": (("self_attn.", "attn."), ("mlp.gate.", "mlp.router.")),
    "Ernie4_5_VLMoe": (("mlp.experts.", "mlp.text_experts."), ("mlp.gate.", "mlp.text_experts_gate.")),
    "Moondream3": (("mlp.experts.", "mlp."),),
    "HfMoondream": (("mlp.experts.", "mlp."),),
    "Qwen": (("mlp.shared_experts.", "mlp.shared_expert."),),
}
"""Architecture prefix -> where vLLM's classes call a module otherwise than kvplan, as checkpoints do or not."""


def vllm_name(architecture: str, name: str) -> str:
    """A parameter's name in this architecture's class, relative to its layer."""
    for prefix, pairs in BESIDE_CHECKPOINTS.items():
        if architecture.startswith(prefix):
            for ours, theirs in pairs:
                if name.startswith(ours):
                    return theirs + name[len(ours) :]
    return checkpoint_name(architecture, name)


class WeightPiece(NamedTuple):
    """A module's bytes: elements, scales and biases, as one rank holds them."""

    name: str
    elements: int
    scales: int = 0
    biases: int = 0
    is_expert: bool = False
    is_plain: bool = True
    """Not quantised."""
    is_matrix: bool = True
    scale: str = "weight_scale"
    """vLLM's name of the scales."""

    def times(self, copies: int) -> WeightPiece:
        """So many of it."""
        sizes = {part: copies * getattr(self, part) for part in ("elements", "scales", "biases")}
        return self._replace(**sizes)


def tensors_of(pieces: Iterable[WeightPiece]) -> list[WeightTensor]:
    """vLLM's parameters of one layer from modules named as in checkpoints, in its order: experts' scales and biases
    come after their weights."""
    pieces = list(pieces)
    has_latent = any(piece.name.endswith(".q_a_proj") for piece in pieces)
    found: dict[str, WeightTensor] = {}
    for piece in pieces:
        if not piece.is_expert:
            for name, size in _parameters(piece, has_latent):
                _add(found, name, size, piece)
            continue
        _add_experts(found, [p for p in pieces if p.is_expert])
    return [tensor for tensor in found.values() if tensor.num_bytes]


def _add(found: dict[str, WeightTensor], name: str, size: int, piece: WeightPiece) -> None:
    before = found.get(name, WeightTensor(name, 0))
    found[name] = WeightTensor(name, before.num_bytes + size, piece.is_expert, piece.is_plain)


def _add_experts(found: dict[str, WeightTensor], pieces: list[WeightPiece]) -> None:
    """All experts of a layer, once."""
    if any(tensor.is_expert for tensor in found.values()):
        return
    for part in ("elements", "scales", "biases"):
        for piece in pieces:
            parent, _, last = piece.name.rpartition(".")
            stem = f"{parent}.routed_experts.{OF_EXPERTS.get(last, last)}"
            word = {"elements": "weight", "scales": piece.scale, "biases": "bias"}[part]
            _add(found, f"{stem}_{word}", getattr(piece, part), piece)


def _parameters(piece: WeightPiece, has_latent: bool) -> list[tuple[str, int]]:
    parent, _, last = piece.name.rpartition(".")
    last = PARTS_OF.get(last, (LATENT.get(last, last) if has_latent else last))
    stem = f"{parent}.{last}" if parent else last
    if not piece.is_matrix and not piece.biases:
        return [(f"{stem}.weight", piece.elements)]
    sizes = (piece.elements, piece.scales, piece.biases)
    return [
        (f"{stem}.{word}", size) for word, size in zip(("weight", piece.scale, "bias"), sizes, strict=True)
    ]
