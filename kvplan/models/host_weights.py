"""Weights that vLLM keeps in host memory instead of a card's: which tensors, in which order, what the card still holds.

    uva       tensor by tensor, tower first, then layer by layer, until the stated GiB are reached; kernels read them
              over the link each time
    prefetch  the last few layers of every group, copied into buffers on the card before they run

Embedding, head, drafting layers and whatever is made after loading stay on the card.
Source: vLLM 0.32 `model_executor/offloader/uva.py`, `prefetch.py`; `models/utils.py: make_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from kvplan.models.tensors import WeightTensor

Backend = Literal["uva", "prefetch"]

MAKE_THEIR_OWN = """
    ArceeForCausalLM CwmForCausalLM Emu3ForConditionalGeneration FlexOlmoForCausalLM GPTBigCodeForCausalLM
    GPTNeoXForCausalLM GlmForCausalLM HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
    HunYuanVLForConditionalGeneration Jais2ForCausalLM MellumForCausalLM NanbeigeForCausalLM Olmo2ForCausalLM
    Olmo3ForCausalLM OlmoForCausalLM PhiForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM
    VaultGemmaForCausalLM VibeVoiceAsrForConditionalGeneration Zamba2ForCausalLM
"""
NEVER_IN_HOST = frozenset(MAKE_THEIR_OWN.split())
"""Architectures whose vLLM classes make their layers by themselves, so that no offloader sees them."""
TOWERS_ON_CARD = ("Gemma4Unified", "InklingForConditional")
"""Architecture prefixes whose classes do not say which of their parts are a tower."""
LAYERS_ON_CARD = ("NemotronParse",)
"""Architecture prefixes whose classes make their decoder's layers by themselves, though not their tower."""
MAKE_TWO = """
    IQuestLoopCoderForCausalLM MoonshotKimiaForCausalLM MossTranscribeDiarizeForConditionalGeneration UltravoxModel
    VoxtralForConditionalGeneration WhisperForConditionalGeneration
"""
TWO_STACKS = frozenset(MAKE_TWO.split())
"""Architectures that make two stacks of layers: the prefetching offloader takes one (an assertion of vLLM's)."""

REMADE = {
    "Dots3NoteForCausalLM": {
        "vision.experts": 2,
        "vision.experts.padding": 0,
        "vision.experts.scales": 0,
        "vision.angles": 0,
    }
}
"""Architecture -> parts of its tower that are FP8 on the card once loaded, and how many times their bytes vLLM moves
before that: in 16 bits, which count towards the limit and are let go. vLLM 0.32 `models/dots3_note/nvidia/vision.py:
MoESwiGLUFFNFP8`, `models/interfaces.py: _mark_tower_model`."""


class Offload(NamedTuple):
    """What the flags ask for, in vLLM's words."""

    backend: Backend
    max_bytes: int = 0
    """uva: bytes per GPU, passed by at most one tensor."""
    params: tuple[str, ...] = ()
    """Segments of names, e.g. experts or mlp.gate_up_proj; empty: every tensor."""
    group_size: int = 0
    """prefetch: of so many layers the last `num_in_group` go."""
    num_in_group: int = 1
    prefetch_step: int = 1
    """prefetch: buffers for every tensor of a layer, and how many such layers ahead are copied."""


class HostWeights(NamedTuple):
    """Of one rank of one pipeline stage, in bytes."""

    dense: int = 0
    experts: int = 0
    tower: int = 0
    buffers: int = 0
    """On the card, for layers on their way."""
    slack: int = 0
    """What torch's allocator then takes less on the card, buffers counted."""
    num_layers: int = 0
    """With something in host memory."""

    @property
    def host_bytes(self) -> int:
        """In host memory."""
        return self.dense + self.experts + self.tower

    @property
    def saved(self) -> int:
        """By how much less the card's tensors take."""
        return self.host_bytes - self.buffers


NOTHING_IN_HOST = HostWeights()


def tower_tensor(architecture: str, name: str, num_bytes: int) -> WeightTensor:
    """One of a tower's as an offloader sees it.

    >>> tower_tensor("Dots3NoteForCausalLM", "vision.experts", 8).num_bytes
    16
    """
    times = REMADE.get(architecture, {}).get(name)
    return WeightTensor(name, num_bytes if times is None else times * num_bytes, is_remade=times is not None)


def in_host(
    offload: Offload, layers: Sequence[Sequence[WeightTensor]], tower: Sequence[WeightTensor] = ()
) -> HostWeights:
    """Pick the tensors of one stage's layers, and of the tower, that lie in host memory."""
    if offload.backend == "uva":
        return _by_address(offload, layers, tower)
    return _by_copies(offload, layers)


def _by_address(
    offload: Offload, layers: Sequence[Sequence[WeightTensor]], tower: Sequence[WeightTensor]
) -> HostWeights:
    left, found = offload.max_bytes, []
    for place, tensors in enumerate((tower, *layers)):
        for tensor in tensors:
            if left > 0 and tensor.is_named(offload.params):
                left -= tensor.num_bytes
                if not tensor.is_remade:
                    found.append((place, tensor))
    ours = [tensor for place, tensor in found if place]
    return HostWeights(
        dense=sum(t.num_bytes for t in ours if not t.is_expert),
        experts=sum(t.num_bytes for t in ours if t.is_expert),
        tower=sum(t.num_bytes for place, t in found if not place),
        slack=sum(t.slack for _, t in found),
        num_layers=len({place for place, _ in found if place}),
    )


def _by_copies(offload: Offload, layers: Sequence[Sequence[WeightTensor]]) -> HostWeights:
    """Buffers are shared by the tensors of one name and shape, `prefetch_step` of them."""
    first = offload.group_size - offload.num_in_group
    chosen = [
        [tensor for tensor in layer if tensor.is_named(offload.params)]
        for i, layer in enumerate(layers)
        if i % offload.group_size >= first
    ]
    gone = [tensor for layer in chosen for tensor in layer]
    kinds = set(gone)
    return HostWeights(
        dense=sum(t.num_bytes for t in gone if not t.is_expert),
        experts=sum(t.num_bytes for t in gone if t.is_expert),
        buffers=offload.prefetch_step * sum(t.num_bytes for t in kinds),
        slack=sum(t.slack for t in gone) - offload.prefetch_step * sum(t.slack for t in kinds),
        num_layers=sum(1 for layer in chosen if layer),
    )
