"""Heads that draft for another model: EAGLE's, whose embedding is the target's, and Gemma 4's, whose KV is too.

EAGLE-3 has an LM head of its own over a smaller vocabulary; EAGLE takes the target's. Held to vLLM 0.32's classes.
"""

from __future__ import annotations

from dataclasses import replace

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
GEMMA4_ASSISTANTS = ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM")
BODY_OF_EAGLE = "LlamaForCausalLM"


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
    )
