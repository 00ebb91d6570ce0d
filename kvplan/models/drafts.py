"""Heads that draft for another model: EAGLE's, whose embedding is the target's, and Gemma 4's, whose KV is too.

EAGLE-3 has an LM head of its own over a smaller vocabulary; EAGLE takes the target's. Held to vLLM 0.32's classes.
"""

from __future__ import annotations

from dataclasses import replace

from kvplan.models.config import Keys
from kvplan.models.spec import ModelSpec, Weight

EAGLE3_OF_LLAMA = (
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3MiniMaxM2ForCausalLM",
    "Eagle3Qwen2_5vlForCausalLM",
    "Eagle3Qwen3vlForCausalLM",
    "PEagleDraftModel",
    "PeagleLlamaForCausalLM",
)
EAGLE3_OF_QWEN3 = ("Eagle3Qwen3ForCausalLM", "PeagleQwen3ForCausalLM")
EAGLE3 = frozenset((*EAGLE3_OF_LLAMA, *EAGLE3_OF_QWEN3))
"""Names of EAGLE-3's heads, by the layer that they have."""
DSPARK = ("Qwen3DSparkModel", "DSparkDraftModel")
"""DSpark beside a Qwen3, or any target of its width (DeepSpec's checkpoints)."""
EAGLE = "EagleLlamaForCausalLM"
"""EAGLE's first head; its checkpoints call themselves LlamaForCausalLM, `--speculative-config` says what they are."""
MEDUSA = "MedusaModel"
GEMMA4_ASSISTANTS = ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM")
BODY_OF_EAGLE = "LlamaForCausalLM"
BODIES_OF_EAGLE3 = ("LlamaForCausalLM", "Qwen3ForCausalLM")
"""What EAGLE-3's heads may call themselves too; one with a vocabulary of its own drafts, whatever method is asked."""
DFLASH = ("DFlashDraftModel", "MuseGlimmerAssistantModel", "DFlashMuseGlimmerAssistantModel")
"""DFlash on Qwen3's layers."""
DFLASH_BY_NAME = ("MuseGlimmerAssistantModel",)
"""Architectures that say that they draft by DFlash, whatever their checkpoint is called."""
HEADS = {
    **dict.fromkeys(EAGLE3, "eagle3"),
    **dict.fromkeys(DSPARK, "dspark"),
    **dict.fromkeys(DFLASH, "dflash"),
    MEDUSA: "medusa",
    **dict.fromkeys(GEMMA4_ASSISTANTS, "mtp"),
}
"""Architecture of what only drafts -> the method it does so by."""


def as_head(model: ModelSpec, method: str, num_tokens: int = 1) -> ModelSpec | None:
    """The model as vLLM builds it to draft so many tokens by a method that takes heads; None: it has no such class that
    is planned."""
    if method == "medusa" == model.drafts_as:
        return replace(model, layers=model.layers[:1] * num_tokens)
    if model.drafts_as == method:
        return model
    if method == "eagle" and model.architecture == BODY_OF_EAGLE:
        return eagle_head(model)
    if method == "eagle3" and model.architecture in BODIES_OF_EAGLE3:
        named = replace(model, architecture=f"Eagle3{model.architecture}")
        return eagle3_head(named, Keys(model.name, {}))
    return None


def eagle3_head(model: ModelSpec, k: Keys) -> ModelSpec:
    """A Llama or Qwen3 as EAGLE-3's head.

    `fc` joins some of the target's hidden states; Q, K and V of the first layer read embedding and state side by side;
    every layer norms its state; the LM head scores a vocabulary of its own, and `d2t` maps it to the target's (int64).
    Source: vLLM 0.32 `models/llama_eagle3.py`.
    """
    hidden, inner = model.hidden_size, k.section("eagle_config")
    drafted = k.count("draft_vocab_size", default=model.vocab_size, high=1 << 28)
    reads = k.count("target_hidden_size", default=hidden)
    listed = len(inner.counts("eagle_aux_hidden_state_layer_ids")) or 3
    states = k.count("num_aux_hidden_states", default=listed, high=64)
    extras = [Weight("lm_head", drafted, hidden, cut="vocab", linear=True)]
    if drafted != model.vocab_size:
        extras.append(Weight("d2t", drafted, itemsize=8))
    if reads != hidden:  # the target's is of another width
        extras.append(Weight("embed_tokens", model.vocab_size, hidden, cut="vocab"))
    if inner.flag("use_aux_hidden_state", True):
        extras.append(Weight("fc", hidden, states * reads, linear=True))
        normed = inner.flag("norm_before_fc", k.flag("norm_before_fc")), k.flag("fc_norm")
        extras.append(Weight("norms_of_states", sum(normed) * states * reads))
    layers = tuple(replace(layer, norm_size=layer.norm_size + hidden) for layer in model.layers)
    first = replace(layers[0], attention=replace(layers[0].attention, reads_embedding=True))
    return replace(
        model,
        layers=(first, *layers[1:]),
        extras=(*model.extras, *(w for w in extras if w.rows)),
        shares_ends=True,
        drafts_as="eagle3",
        reads_hidden_size=reads,
    )


def eagle_head(model: ModelSpec) -> ModelSpec:
    """A small Llama as EAGLE's head: the target's embedding and LM head, no first norm and no last.

    `fc` joins a token's embedding and the target's hidden state. Source: vLLM 0.32 `models/llama_eagle.py`.
    """
    hidden, first = model.hidden_size, model.layers[0]
    return replace(
        model,
        architecture=EAGLE,
        layers=(replace(first, norm_size=first.norm_size - hidden), *model.layers[1:]),
        extras=(*model.extras, Weight("fc", hidden, 2 * hidden)),
        final_norms=0,
        shares_ends=True,
        drafts_as="eagle",
        reads_hidden_size=hidden,
    )
